"""scores.py: each score against what is known of it, means, and the table's cells."""

import math

import pytest
import soundfile
import torch

from evaluation.scores import (
    DIGITS,
    cell,
    lsd,
    mean_interval,
    print_table,
    samples,
    score_pair,
    speech_scores,
    summary,
)
from files import sound
from helpers import COVER, pair_files
from training import noise


class Copy:
    """A method that puts the cover itself in the stego's place, and reveals that."""

    name = family = "copy"

    def hide(self, cover_path, secret_path, stego_path):
        sound.write_audio(stego_path, soundfile.read(cover_path, dtype="int16")[0], 16000)

    def reveal(self, stego_path, revealed_path):
        self.hide(stego_path, None, revealed_path)


def test_scores_are_of_the_files(tmp_path):
    paths = pair_files(tmp_path)
    scores = score_pair(Copy(), paths, perceptual=False)
    cover, secret = (soundfile.read(paths[name])[0] for name in ("cover", "secret"))
    assert scores["stego SNR"] == math.inf and scores["stego LSD"] == 0
    expected = 10 * math.log10((secret ** 2).sum() / ((secret - cover) ** 2).sum())
    assert scores["secret SNR"] == pytest.approx(expected, abs=1e-4)
    assert scores["secret LSD"] > 1 and scores["RTF"] > 0
    assert samples(paths["stego"])[1] == 16000


def test_lsd():
    x = 0.1 * torch.randn(16000, generator=torch.Generator().manual_seed(0))
    assert lsd(x, x) == 0
    assert abs(lsd(x, 2 * x) - 20 * math.log10(2)) < 0.01
    assert lsd(torch.zeros(5000), torch.zeros(5000)) == 0
    assert math.isfinite(lsd(x[:100], 0 * x[:100]))


def test_speech_scores():
    pytest.importorskip("pesq")
    pytest.importorskip("pystoi")
    x = sound.from_pcm(soundfile.read(COVER, dtype="int16")[0][:48000])
    same = speech_scores(x, x, 16000)
    noisy = speech_scores(x, noise.gaussian(x, torch.randn_like(x), 0), 16000)
    assert same["PESQ"] > 4.5 and same["STOI"] > 0.99
    assert noisy["PESQ"] < 2 and noisy["STOI"] < 0.95
    assert math.isnan(speech_scores(0 * x, x, 16000)["PESQ"])


def test_means_count_the_lost_and_leave_out_the_rest():
    assert mean_interval([1.0, 3.0, math.inf, math.nan]) == (2, pytest.approx(1.96))
    assert mean_interval([4.0, None])[0] == 2, "lost: 0 dB"
    rows = [{"secret SNR": math.inf}, {"secret SNR": 3.0}, {"secret SNR": None}, {}]
    row = summary("m", "m", rows)
    assert (row["pairs"], row["failed"]) == (4, 1)
    assert row["lossless"] == row["lost"] == {"secret SNR": 1}
    assert row["scores"]["secret SNR"][0] == 1.5


def test_cells_of_the_table(capsys):
    assert cell("secret SNR", [math.inf] * 3, 1) == ("lossless", "")
    assert cell("gain", [None] * 3, 1) == ("lost", "")
    assert cell("secret PESQ", [2.0, math.nan], 2) == ("2.00", "secret PESQ: 1 without")
    rows = [summary("some", "m", [{"secret SNR": 3.04}]), summary("none", "m", [{}])]
    print_table(rows, {f"secret {score}": digits for score, digits in DIGITS.items()})
    assert [line.split() for line in capsys.readouterr().out.splitlines()] == [
        ["secret"], ["SNR"], ["some", "3.0"], ["none", "failed,", "see", "above"]]
