"""evaluation/scores.py: each score against known values; means, tables and CSV."""

import csv
import math

import pytest
import soundfile
import torch

from evaluation import scores
from files import sound
from helpers import COVER, pair_files
from training.noise import gaussian


class Copy:
    """Uses the cover as the stego, and reveals it."""

    name = "copy"

    def hide(self, cover_path, secret_path, stego_path):
        sound.write_audio(stego_path, soundfile.read(cover_path, dtype="int16")[0], 16000)

    def reveal(self, stego_path, revealed_path):
        self.hide(stego_path, None, revealed_path)


def test_score_pair_reads_the_files(tmp_path):
    paths = pair_files(tmp_path)
    values = scores.score_pair(Copy(), paths, perceptual=False)
    cover, secret = (soundfile.read(paths[name])[0] for name in ("cover", "secret"))
    assert values["stego SNR"] == math.inf and values["stego LSD"] == 0
    expected = 10 * math.log10((secret ** 2).sum() / ((secret - cover) ** 2).sum())
    assert values["secret SNR"] == pytest.approx(expected, abs=1e-4)
    assert values["secret LSD"] > 1 and values["RTF"] > 0
    assert scores.samples(paths["stego"])[1] == 16000


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


def test_mean_interval():
    assert scores.mean_interval([1.0, 3.0, math.inf, math.nan]) == (2, pytest.approx(1.96))
    assert scores.mean_interval([4.0, None])[0] == 2, "lost counts as 0 dB"
    assert all(map(math.isnan, scores.mean_interval([math.inf])))


def test_cells():
    assert scores.cell("secret SNR", [math.inf] * 3, 1) == ("lossless", "")
    assert scores.cell("gain", [None] * 3, 1) == ("lost", "")
    assert scores.cell("secret PESQ", [2.0, math.nan], 2) == ("2.00", "secret PESQ: 1 without")
    assert scores.cell("secret PESQ", [math.nan], 2) == ("-", "")


def test_table_and_csv(tmp_path, capsys):
    mixed = [{"secret SNR": math.inf}, {"secret SNR": 3.0}, {"secret SNR": None}, {}]
    table = {"some": [{"secret SNR": 3.04}], "mixed": mixed, "failed": [{}]}
    scores.print_table(table, scores.COLUMNS)
    assert [line.split() for line in capsys.readouterr().out.splitlines()] == [
        ["secret"], ["SNR"], ["some", "3.0"],
        "mixed 1.5±2.9 secret SNR: 1 lossless, 1 lost, 1 without".split(),
        "failed failed, see above".split()]
    scores.write_csv(tmp_path / "t.csv", {"systems": table})
    with open(tmp_path / "t.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [list(row.values()) for row in rows] == [
        ["systems", "some", "secret SNR", "3.04", "", "1", "0", "0"],
        ["systems", "mixed", "secret SNR", "1.5", "2.94", "2", "1", "1"]]
