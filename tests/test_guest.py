"""The lattice is a guest: without the folder lattice/, all but its own models works."""

import os
import shutil
import subprocess
import sys

import pytest

from helpers import COVER, LATTICE, ROOT, SECRET, voices_in


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    """The repository without it."""
    folder = tmp_path_factory.mktemp("copy") / "repository"
    shutil.copytree(ROOT, folder, ignore=shutil.ignore_patterns(
        "lattice", "tests", "docs", ".*", "__pycache__"))
    return folder


def run(folder, *words):
    """(exit code, stdout, stderr) of a Python script there."""
    words = [sys.executable, *map(str, words)]
    done = subprocess.run(words, cwd=folder, capture_output=True, text=True, timeout=200)
    return done.returncode, done.stdout, done.stderr


def test_hide_and_reveal(copy, tmp_path):
    voices_in(tmp_path)
    stego, found = tmp_path / "stego.wav", tmp_path / "found.wav"
    code, out, err = run(
        copy, "stego.py", "hide", tmp_path / "cover.wav", tmp_path / "secret.wav", "-o", stego)
    assert code == 0 and "secret SNR" in out and err == ""
    code, out, err = run(copy, "stego.py", "reveal", stego, "-o", found)
    assert code == 0 and "0.50 s revealed" in out and err == ""


def test_its_models_are_refused_in_one_line(copy, tmp_path):
    code, out, err = run(copy, "stego.py", "hide", COVER, SECRET, "-o", tmp_path / "stego.wav",
                         "--model", LATTICE)
    assert code and out == "" and len(err.splitlines()) == 1
    assert err.startswith("error: ") and "lattice.pt needs the folder lattice/" in err
    assert not os.listdir(tmp_path)


def test_the_table(copy):
    code, out, err = run(copy, "evaluate.py", "--cover", COVER, "--secret", SECRET,
                         "--no_perceptual")
    assert code == 0 and "Traceback" not in err, err
    assert "INN, 48 dB" in out and "robust" in out and "lattice" not in out
