"""The paper's network, set by hand."""

import os
import subprocess
import sys

import pytest
import torch

import fold
import wavinwav
from helpers import ROOT, buzz, pair_files, printed_snrs, run_stego, snr

SMALL = ["--blocks", "9", "--growth", "32", "--kernel", "3"]


def run(folder, *words):
    done = subprocess.run([sys.executable, os.path.join(ROOT, "fold.py"), *words], cwd=folder,
                          capture_output=True, text=True, timeout=60)
    return done.returncode, done.stdout, done.stderr


def test_files_are_hidden_and_revealed(tmp_path):
    code, out, err = run(tmp_path, "fold.pt", *SMALL)
    assert (code, out, err) == (0, "fold.pt is written\n", "")
    pair_files(tmp_path)
    for words in (["hide", "cover.wav", "secret.wav", "-o", "stego.wav"],
                  ["reveal", "stego.wav", "-o", "revealed.wav"]):
        code, out, err = run_stego(tmp_path, *words, "--model", "fold.pt")
        assert code == 0, err
        if words[0] == "hide":
            stego_snr, secret_snr = printed_snrs(out)
            assert stego_snr > 12 and secret_snr > 8


def test_any_z_reveals_and_r_is_exact():
    model = wavinwav.build(wavinwav.Config.paper(blocks=6, growth=16, kernel=3))
    fold.fold(model)
    cover, secret = buzz(2, 4000), 0.7 * buzz(2, 4000, seed=1)
    stego, r = model.hide(cover, secret)
    results = [model.reveal(stego, z)[1] for z in (torch.zeros_like(r), torch.randn_like(r), r)]
    assert snr(cover, stego) > 12
    assert snr(secret, results[0]) > 10 and snr(secret, results[1]) > 10
    assert snr(secret, results[2]) > 35


@pytest.mark.parametrize("words, expected", [
    (["fold.pt", "--blocks", "4"], "so few blocks cannot"),
    (["fold.pt", "--blocks", "2", "--growth", "1"], "so few blocks cannot"),
    (["fold.pt", "--growth", "0"], "Config.growth must be"),
    (["cover.wav"], "cover.wav exists"),
])
def test_mistakes(tmp_path, words, expected):
    pair_files(tmp_path)
    before = sorted(os.listdir(tmp_path))
    code, out, err = run(tmp_path, *words)
    assert code and err.startswith("error: ") and err.count("\n") == 1 and expected in err
    assert sorted(os.listdir(tmp_path)) == before
