"""steganalysis.py and detectors.py: what a detector must find, what it cannot, and what is kept."""

import json
import os

import numpy as np
import pytest
import soundfile
import torch

import evaluate
from evaluation import detectors, steganalysis
from evaluation.baselines import lsb, plus_minus
from helpers import INN, voice


def pairs(count, seed):
    voices = [torch.from_numpy(0.3 * voice(1.1, 4000, seed + i)) for i in range(2 * count)]
    return list(zip(voices[::2], voices[1::2]))


def test_it_is_sure_of_four_bits_and_guesses_at_nothing(tmp_path):
    methods = [lsb(4), plus_minus(0)]
    tables = steganalysis.steganalysis(methods, {}, pairs(40, 0), pairs(24, 100), 4000, 0,
                                       str(tmp_path), steps=0)
    four, nothing = tables["steganalysis"]
    assert four["method"].startswith("LSB, 4 bits: ") and len(four["values"]["AUC"]) == 3
    assert min(four["values"]["AUC"]) > 0.9 and min(four["values"]["accuracy"]) > 0.8
    assert set(four["values"]) >= {"with 8 pairs", "with 32 pairs", "stego SNR"}
    assert nothing["values"]["stego SNR"] == 3 * [np.inf]
    assert all(abs(x - 0.5) < 0.3 for x in nothing["values"]["AUC"])
    assert abs(np.mean(nothing["values"]["AUC"]) - 0.5) < 0.2
    for row in tables["detectors"]:
        assert set(row["scores"]) == {name for name in detectors.DETECTORS if "network" not in name}


def test_networks_learn_what_is_plain_to_see():
    covers = [np.round(8000 * voice(3, 2000, seed)).astype(np.int64) for seed in range(12)]
    rng = np.random.default_rng(0)
    files = [detectors.Files(dict(enumerate(some)), []) for some in (
        covers, [x // 256 * 256 + rng.integers(0, 256, len(x)) for x in covers])]
    for name in ("waveform network", "spectral network"):
        score = detectors.trained(name, files, range(8), 2000, 0, steps=25)
        scores = [score(some, range(8, 12)) for some in files]
        assert steganalysis.auc(*scores) > 0.9


def test_features_have_one_size_and_are_finite():
    sizes = set()
    for x in (np.zeros(detectors.LEAST, np.int64), np.arange(-32768, 32768, 7),
              np.full(3000, 32767)):
        groups = detectors.features(x)
        assert all(np.isfinite(values).all() for values in groups.values())
        sizes.add(tuple(map(len, groups.values())))
    assert len(sizes) == 1


def test_auc():
    rng = np.random.default_rng(0)
    negative, positive = rng.integers(0, 10, 40), rng.integers(3, 12, 50)
    both = [(p > n) + 0.5 * (p == n) for n in negative for p in positive]
    assert abs(steganalysis.auc(negative, positive) - np.mean(both)) < 1e-12
    assert steganalysis.auc(np.zeros(5), np.zeros(7)) == 0.5
    assert steganalysis.auc(np.zeros(5), np.ones(7)) == 1


def run(folder, *names, **flags):
    words = ["--data_dir", folder / "test", "--steganalysis", folder / "train", *names]
    flags = {"pairs": 4, "train_pairs": 6, "model": INN, "rate": 4000,
             "detector_steps": 2} | flags
    words += [word for name, value in flags.items() for word in (f"--{name}", value)]
    evaluate.main([str(word) for word in words])


@pytest.fixture
def voices(tmp_path):
    for part in ("train", "test"):
        (tmp_path / part).mkdir()
        for i in range(3):
            x = 0.3 * voice(3.2, 4000, i + 10 * (part == "test"))
            soundfile.write(tmp_path / part / f"{i}.wav", x, 4000)
    return tmp_path


def test_stegos_are_kept_and_methods_chosen(voices, capsys):
    kept, names = voices / "kept", ("LSB, 4 bits", "±1 everywhere")
    run(voices, *names, steganalysis_cache=kept, json=voices / "t.json")
    first = capsys.readouterr().out
    assert all(name in first for name in names) and "Opus" not in first
    files = {file.path: file.stat().st_mtime_ns for file in os.scandir(kept)}
    assert len(files) > 10
    run(voices, *names, steganalysis_cache=kept)
    assert capsys.readouterr().out == first
    assert files == {file.path: file.stat().st_mtime_ns for file in os.scandir(kept)}
    run(voices, names[0], steganalysis_cache=kept, seed=1, train_pairs=7)
    assert len(os.listdir(kept)) > len(files)
    tables = json.loads((voices / "t.json").read_text())
    assert len(tables["steganalysis"]) == len(tables["detectors"]) == 2


@pytest.mark.parametrize("names, flags, message", [
    (["LSB"], {}, "there is no method 'LSB' to detect; give some of: INN; INN, no key; LSB, 1 bit"),
    ([], {"steganalysis_cache": "none/kept"}, "none/kept: No such file or directory"),
    ([], {"steganalysis_cache": "file"}, "file/stego.flac cannot be written (Not a dir"),
    (["LSB, 4 bits"], {"rate": 400}, "detectors need files of 1536 samples; give a higher --rate")])
def test_one_line_says_what_is_wrong(voices, monkeypatch, names, flags, message):
    monkeypatch.chdir(voices)
    (voices / "file").write_text("as it was")
    with pytest.raises(SystemExit) as caught:
        run(voices, *names, **flags)
    assert message in caught.value.code and len(caught.value.code.splitlines()) == 1
