"""evaluation/attacks.py: what is left of a secret after its stego was changed."""

import shutil

import pytest
import soundfile
import torch
from torch.nn import functional

import stego
from evaluation import attacks
from evaluation.baselines import opus, our_system
from evaluation.scores import signal
from files import sound
from helpers import INN, LATTICE, ROBUST, pair_files, voice


def test_inn(paths):
    model = stego.load_model(INN)
    scores = attacks.attack_pair(model, our_system(model, "INN"), paths, 0, perceptual=False)
    assert set(scores) | set(attacks.unavailable_attacks()) == set(attacks.ATTACKS)
    snr = {name: values["SNR"] for name, values in scores.items()}
    assert snr["none"] > snr["noise 70 dB"] > snr["noise 60 dB"]
    assert snr["noise 50 dB"] is None, "refused, since it would be noise"
    few_samples = "one sample", "one lost", "last 100 ms cut"
    assert min(snr[name] for name in few_samples) > snr["noise 60 dB"]


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
    for name in ("noise 50 dB", "gain 0.5", "rate x 3/4", "44.1 kHz", "48 kHz",
                 "first 100 ms cut", "last 100 ms cut"):
        assert scores[name]["STOI"] > clean - 0.07 and clean > 0.5, name
    assert (scores["Opus 32 kbit/s"]["STOI"] or 0) < clean, "lost, or worse"


def test_a_system_whose_stegos_are_changed(tmp_path):
    paths = pair_files(tmp_path, 3)
    usual = our_system(stego.load_model(ROBUST), "robust")
    names, found = [], []
    for system in usual, attacks.changed(usual, "gain 0.5"), attacks.changed(usual, "44.1 kHz"):
        system.hide(*list(paths.values())[:3])
        system.reveal(paths["stego"], paths["revealed"])
        names.append(system.name)
        found.append((soundfile.info(paths["stego"]).samplerate, signal(paths["revealed"])))
    assert names == ["robust", "robust, gain 0.5", "robust, 44.1 kHz"]
    assert [rate for rate, _ in found] == [16000, 16000, 44100]
    assert min(sound.snr_of(found[0][1], x) for _, x in found[1:]) > 10


def test_a_pair_that_cannot_be_hidden(paths):
    values = attacks.attack_pair(None, opus(2), paths, 0)
    assert set(values["none"]) == set() and len(values) > 20


@pytest.mark.skipif(not shutil.which("ffmpeg"), reason="needs the program ffmpeg")
@pytest.mark.parametrize("rate", [4000, 16000, 44100])
def test_codecs(rate):
    x = torch.from_numpy(0.3 * voice(1, rate, 1))
    for name, least in (("MP3 128 kbit/s", 9), ("AAC 64 kbit/s", 9), ("Opus 32 kbit/s", 0)):
        y = attacks.ATTACKS[name](x, rate)
        assert len(y) == len(x) and sound.snr_of(x, y) > least, name


def test_a_delay_is_taken_away():
    x = torch.from_numpy(voice(1, 16000, 1))
    late, early = functional.pad(x, (137, 0)), functional.pad(x[41:], (0, 41))
    assert torch.equal(attacks.aligned(x, late), x)
    assert torch.equal(attacks.aligned(x, early)[41:-41], x[41:-41])


def test_without_ffmpeg(monkeypatch):
    monkeypatch.setattr(attacks, "which", lambda name: None)
    assert attacks.unavailable_attacks() == [
        "MP3 128 kbit/s", "MP3 64 kbit/s", "AAC 128 kbit/s", "AAC 64 kbit/s"]
