"""evaluation/attacks.py: what is left of a secret after its stego was changed."""

import shutil

import pytest
import soundfile
import torch
from torch.nn import functional

import stego
from evaluation import attacks
from evaluation.baselines import opus, our_system
from files import sound
from helpers import INN, LATTICE, ROBUST, pair_files, voice


def test_inn(paths):
    model = stego.load_model(INN)
    scores = attacks.attack_pair(model, our_system(model, "INN"), paths, 0, perceptual=False)
    assert set(scores) | set(attacks.unavailable_attacks()) == set(attacks.ATTACKS)
    snr = {name: values["SNR"] for name, values in scores.items()}
    assert snr["none"] > snr["noise 70 dB"] > snr["noise 60 dB"] > snr["noise 50 dB"]
    few_samples = "one sample", "one lost", "last 100 ms cut"
    assert min(snr[name] for name in few_samples) > snr["noise 50 dB"]
    again = attacks.attack_pair(model, our_system(model, "INN"), paths, 0, perceptual=False)
    assert scores == again, "the noise has a seed"


def test_lattice_reveals_all_or_nothing(paths):
    model = stego.load_model(LATTICE)
    scores = attacks.attack_pair(model, our_system(model, "lattice"), paths, 0, perceptual=False)
    assert scores.pop("none")["SNR"] > 20
    assert all(values == {"SNR": None} for values in scores.values())


def test_robust_model_keeps_the_secret_intelligible(tmp_path):
    pytest.importorskip("pystoi")
    model, paths = stego.load_model(ROBUST), pair_files(tmp_path, 3)
    scores = attacks.attack_pair(model, our_system(model, "robust"), paths, 0)
    clean = scores["none"]["STOI"]
    for name in ("noise 50 dB", "gain 0.5", "rate x 3/4", "last 100 ms cut"):
        assert scores[name]["STOI"] > clean - 0.05 and clean > 0.5
    assert (scores["Opus 32 kbit/s"]["STOI"] or 0) < clean, "lost, or worse"


def test_a_pair_that_cannot_be_hidden(paths):
    values = attacks.attack_pair(None, opus(2), paths, 0)
    assert set(values["none"]) == set() and len(values) > 20


def test_delay():
    x = torch.from_numpy(voice(1, 16000, 1))
    assert attacks.delay(x, functional.pad(x, (137, 0))) == 137
    assert attacks.delay(x, x[41:]) == -41


@pytest.mark.parametrize("rate", [16000, 44100, 8000])
def test_codecs(rate):
    x = torch.from_numpy(0.3 * voice(1, rate, 1))
    for name, least in (("MP3 128 kbit/s", 12), ("AAC 128 kbit/s", 6), ("AAC 64 kbit/s", 6),
                        ("Opus 32 kbit/s", 0)):
        if name not in attacks.unavailable_attacks():
            y = attacks.ATTACKS[name](x, rate)
            assert len(y) == len(x) and sound.snr_of(x, y) > least, name


def test_a_rate_that_a_codec_does_not_have(tmp_path, capsys):
    paths = pair_files(tmp_path, rate=4000)
    model = stego.load_model(INN)
    scores = attacks.attack_pair(model, our_system(model, "INN"), paths, 0, perceptual=False)
    assert scores["noise 70 dB"]["SNR"] > 0
    if "MP3 64 kbit/s" in scores:
        assert scores["MP3 64 kbit/s"] == {}
        assert "MP3 64 kbit/s, at 4000 Hz: " in capsys.readouterr().err


def test_codecs_that_are_missing(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.setattr(soundfile, "available_formats", lambda: {"WAV": "", "MP3": ""})
    assert attacks.unavailable_attacks() == ["AAC 128 kbit/s", "AAC 64 kbit/s"]
    monkeypatch.setattr(soundfile, "available_formats", lambda: {"WAV": ""})
    assert len(attacks.unavailable_attacks()) == 4
