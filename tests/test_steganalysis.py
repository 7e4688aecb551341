"""evaluation/steganalysis.py: what detectors must find, what they cannot, and the command."""

import csv

import numpy as np
import pytest
import soundfile
import torch

import evaluate
from evaluation import steganalysis
from evaluation.baselines import lsb, plus_minus
from helpers import INN, voice


def pairs(count, seed):
    voices = [torch.from_numpy(0.3 * voice(1.1, 4000, seed + i)) for i in range(2 * count)]
    return list(zip(voices[::2], voices[1::2]))


def test_four_bits_are_detected_and_nothing_is_not():
    table = steganalysis.steganalysis(
        [lsb(4), plus_minus(0)], pairs(40, 0), pairs(24, 100), 4000)
    four, nothing = table["LSB, 4 bits"], table["nothing"]
    assert len(four) == len(nothing) == 24
    for score, least in (("AUC", 0.9), ("accuracy", 0.8)):
        assert np.mean([pair[score] for pair in four]) > least
        assert abs(np.mean([pair[score] for pair in nothing]) - 0.5) < 0.1
    assert {pair["stego SNR"] for pair in nothing} == {np.inf}


def test_a_system_that_hides_too_few_pairs_has_no_values():
    short = [(torch.zeros(2000), torch.zeros(2000)), *pairs(5, 0)]
    refusing = lsb(1)._replace(name="refusing", hide=steganalysis.opus(1).hide)
    table = steganalysis.steganalysis([refusing], short, pairs(3, 100), 4000)
    assert table == {"refusing": [{}]}


def test_command(tmp_path, capsys):
    for part, first in (("train", 0), ("test", 10)):
        (tmp_path / part).mkdir()
        for i in range(3):
            soundfile.write(tmp_path / part / f"{i}.wav", 0.3 * voice(3.2, 4000, first + i), 4000)

    def run(*names, rate=4000):
        words = ["--data_dir", tmp_path / "test", "--steganalysis", tmp_path / "train", *names,
                 "--pairs", 4, "--train_pairs", 6, "--model", INN, "--rate", rate,
                 "--csv", tmp_path / "t.csv"]
        evaluate.main([str(word) for word in words])
        return capsys.readouterr().out

    names = "LSB, 4 bits", "±1 everywhere"
    out = run(*names)
    assert all(name in out for name in names) and "Opus" not in out
    assert run(*names) == out, "everything has a seed"
    with open(tmp_path / "t.csv", newline="") as file:
        assert {row["score"] for row in csv.DictReader(file)} == {"stego SNR", "accuracy", "AUC"}
    with pytest.raises(SystemExit, match="^error: 'LSB' is unknown to --steganalysis; give .*$"):
        run("LSB")
    with pytest.raises(SystemExit, match="^error: detectors need files of 1536 samples; .*$"):
        run("LSB, 4 bits", rate=400)
