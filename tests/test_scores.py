"""evaluation/scores.py: each score against known values; means, tables and CSV."""

import csv
import math
import shutil

import pytest
import soundfile
import torch

from evaluation import scores
from evaluation.baselines import lsb
from files import sound
from helpers import COVER
from training.noise import gaussian


def test_score_pair_reads_the_files(paths):
    """Of a system that uses the cover as the stego, and reveals it."""
    def copy(cover_path, secret_path, stego_path):
        shutil.copy(cover_path, stego_path)

    system = lsb(4)._replace(hide=copy, reveal=shutil.copy)
    values = scores.score_pair(system, paths, perceptual=False)
    cover, secret = (soundfile.read(paths[name])[0] for name in ("cover", "secret"))
    assert values["stego SNR"] == math.inf and values["stego LSD"] == 0
    expected = 10 * math.log10((secret ** 2).sum() / ((secret - cover) ** 2).sum())
    assert values["secret SNR"] == pytest.approx(expected, abs=1e-4)
    assert values["secret LSD"] > 1 and values["RTF"] > 0


def test_lsd():
    x = 0.1 * torch.randn(16000, generator=torch.Generator().manual_seed(0))
    assert scores.lsd(x, x) == 0
    assert abs(scores.lsd(x, 2 * x) - 20 * math.log10(2)) < 0.01
    assert scores.lsd(torch.zeros(5000), torch.zeros(5000)) == 0
    assert math.isfinite(scores.lsd(x[:100], 0 * x[:100]))


@pytest.fixture(scope="module")
def speech():
    return sound.from_pcm(soundfile.read(COVER, dtype="int16")[0][:48000])


@pytest.mark.parametrize("score, package, same, noisy", [
    (scores.pesq, "pesq", 4.5, 2), (scores.stoi, "pystoi", 0.99, 0.95),
    (scores.speaker_similarity, "resemblyzer", 0.999, 0.9)])
def test_speech_scores(speech, score, package, same, noisy):
    pytest.importorskip(package)
    noise = gaussian(speech, torch.randn_like(speech), 0)
    assert score(speech, speech, 16000) > same and score(speech, noise, 16000) < noisy
    if package != "pystoi":
        assert math.isnan(score(0 * speech, speech, 16000))


def test_table_and_csv(tmp_path, capsys):
    """Lost counts as 0 dB, lossless not at all."""
    mixed = [{"secret SNR": math.inf}, {"secret SNR": 3.0}, {"secret SNR": None}, {}]
    table = {"some": [{"secret SNR": 3.04}], "mixed": mixed, "failed": [{}],
             "exact": [{"secret SNR": math.inf}], "gone": [{"secret SNR": None}]}
    scores.print_table(table, scores.COLUMNS)
    assert [line.split() for line in capsys.readouterr().out.splitlines()] == [
        ["secret"], ["SNR"], ["some", "3.0"],
        "mixed 1.5±2.9 secret SNR: 1 lossless, 1 lost, 1 without".split(),
        "failed failed, see above".split(), ["exact", "lossless"], ["gone", "lost"]]
    scores.write_csv(tmp_path / "t.csv", {"systems": table})
    with open(tmp_path / "t.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [list(row.values()) for row in rows[:2]] == [
        ["systems", "some", "secret SNR", "3.04", "", "1", "0", "0"],
        ["systems", "mixed", "secret SNR", "1.5", "2.94", "2", "1", "1"]]
