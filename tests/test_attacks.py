"""evaluation/attacks.py: what is left of a secret after its stego was changed."""

import pytest
import soundfile
import torch
from torch.nn import functional

import stego
from evaluation import attacks
from evaluation.baselines import our_system
from files import sound
from helpers import INN, LATTICE, pair_files, voice


@pytest.fixture
def paths(tmp_path):
    return pair_files(tmp_path)


def test_inn(paths):
    model = stego.load_model(INN)
    scores = attacks.attack_pair(model, our_system(model, "INN"), paths, 0)
    assert list(scores) == list(attacks.ATTACKS)
    assert scores["none"] > scores["noise 70 dB"] > scores["noise 60 dB"] > scores["noise 50 dB"]
    assert min(scores["one sample"], scores["one lost"]) > scores["noise 50 dB"]
    again = attacks.attack_pair(model, our_system(model, "INN"), paths, 0)
    assert scores == again, "the noise has a seed"


def test_lattice_reveals_all_or_nothing(paths):
    model = stego.load_model(LATTICE)
    scores = attacks.attack_pair(model, our_system(model, "lattice"), paths, 0)
    assert scores.pop("none") > 20
    scores.pop("MP3 128 kb/s")  # needs a libsndfile with MP3
    assert set(scores.values()) == {None}


def test_delay_and_mp3():
    x = torch.from_numpy(voice(1, 16000, 1))
    assert attacks.delay(x, functional.pad(x, (137, 0))) == 137
    assert attacks.delay(x, x[41:]) == -41
    if "MP3" in soundfile.available_formats():
        for rate in (16000, 44100, 8000):
            x = torch.from_numpy(0.3 * voice(1, rate, 1))
            assert sound.snr_of(x, attacks.mp3(x, rate)) > 12
