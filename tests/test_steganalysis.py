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


def test_features_have_one_size_and_are_finite():
    sizes = set()
    for x in (np.zeros(steganalysis.MIN_SAMPLES, np.int64), np.arange(-32768, 32768, 7),
              np.full(3000, 32767)):
        values = steganalysis.features(x)
        assert np.isfinite(values).all()
        sizes.add(values.shape)
    assert len(sizes) == 1


def test_share_below():
    assert steganalysis.share_below(2, np.array([1, 2, 3, 4])) == 0.375


@pytest.fixture
def voices(tmp_path):
    for part in ("train", "test"):
        (tmp_path / part).mkdir()
        for i in range(3):
            x = 0.3 * voice(3.2, 4000, i + 10 * (part == "test"))
            soundfile.write(tmp_path / part / f"{i}.wav", x, 4000)
    return tmp_path


def run(folder, *names, rate=4000):
    words = ["--data_dir", folder / "test", "--steganalysis", folder / "train", *names,
             "--pairs", 4, "--train_pairs", 6, "--model", INN, "--rate", rate,
             "--csv", folder / "t.csv"]
    evaluate.main([str(word) for word in words])


def test_command(voices, capsys):
    names = "LSB, 4 bits", "±1 everywhere"
    run(voices, *names)
    out = capsys.readouterr().out
    assert all(name in out for name in names) and "Opus" not in out
    run(voices, *names)
    assert capsys.readouterr().out == out, "everything has a seed"
    with open(voices / "t.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["score"] for row in rows} == {"stego SNR", "accuracy", "AUC"}


@pytest.mark.parametrize("names, rate, message", [
    (["LSB"], 4000, "'LSB' is unknown to --steganalysis; give some of: INN; INN, no key; LSB, 1"),
    (["LSB, 4 bits"], 400, "detectors need files of 1536 samples; give a higher --rate")])
def test_one_line_says_what_is_wrong(voices, names, rate, message):
    with pytest.raises(SystemExit) as caught:
        run(voices, *names, rate=rate)
    assert message in caught.value.code and len(caught.value.code.splitlines()) == 1
