"""attacks.py: what is left of secrets, and a detector that finds what is plain to see."""

import math

import numpy as np
import pytest
import soundfile
import torch
from torch.nn import functional

import attacks
import sound
import stego
from baselines import embed, lsb, ours
from helpers import INN, LATTICE, pair_files, voice


@pytest.fixture
def paths(tmp_path):
    return pair_files(tmp_path)


def test_an_inn_reveals_what_is_left(paths):
    model = stego.load_model(INN)
    scores = attacks.attack_pair(model, ours(model, "INN"), paths, 0)
    assert list(scores) == list(attacks.ATTACKS)
    assert scores["none"] > scores["noise 70 dB"] > scores["noise 60 dB"] > scores["noise 50 dB"]
    few_frames = min(scores["one sample"], scores["one lost"])
    assert few_frames > scores["noise 50 dB"]
    again = attacks.attack_pair(model, ours(model, "INN"), paths, 0)
    assert scores == again, "the noise has a seed"


def test_a_lattice_reveals_all_or_nothing(paths):
    model = stego.load_model(LATTICE)
    scores = attacks.attack_pair(model, ours(model, "lattice"), paths, 0)
    assert scores.pop("none") > 20
    scores.pop("MP3 128 kb/s")  # not everywhere
    assert set(scores.values()) == {None}


def test_delay_and_mp3():
    x = torch.from_numpy(voice(1, 16000, 1))
    assert attacks.delay(x, functional.pad(x, (137, 0))) == 137
    assert attacks.delay(x, x[41:]) == -41
    if "MP3" in soundfile.available_formats():
        for rate in (16000, 44100, 8000):
            x = torch.from_numpy(0.3 * voice(1, rate, 1))
            assert sound.snr_of(x, attacks.mp3(x, rate)) > 12


def test_auc():
    rng = np.random.default_rng(0)
    negative, positive = rng.integers(0, 10, 40), rng.integers(3, 12, 50)
    pairs = [(p > n) + 0.5 * (p == n) for n in negative for p in positive]
    assert abs(attacks.auc(negative, positive) - np.mean(pairs)) < 1e-12
    assert attacks.auc(np.zeros(5), np.zeros(7)) == 0.5
    assert attacks.auc(np.zeros(5), np.ones(7)) == 1


def test_detector():
    assert 20_000 < sum(p.numel() for p in attacks.Detector().parameters()) < 50_000
    covers = [np.round(8000 * voice(3, 2000, seed)).astype(np.int64) for seed in range(12)]
    rng = np.random.default_rng(0)
    marked = [(x, embed(x, rng.integers(0, 256, len(x)), 8)) for x in covers]
    accuracy, area = attacks.detect(marked[:8], marked[8:], 2000, 0, steps=25, batch=8)
    assert accuracy > 0.8 and area > 0.9
    alike = [(x, x) for x in covers[8:]]
    assert attacks.detect(marked[:8], alike, 2000, 0, steps=2, batch=2) == (0.5, 0.5)


def test_steganalysis_of_methods(tmp_path):
    voices = [torch.from_numpy(0.3 * voice(1.1, 4000, seed)) for seed in range(8)]
    pairs = list(zip(voices[::2], voices[1::2]))
    rows = attacks.steganalysis([lsb(8)], pairs[:3], pairs[3:], 4000, 0, tmp_path, steps=3)
    assert [row["method"] for row in rows] == ["LSB, 8 bits"]
    values = rows[0]["values"]
    assert math.isfinite(values["stego SNR"][0]) and 0 <= values["accuracy"][0] <= 1
