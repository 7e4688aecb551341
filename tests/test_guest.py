"""The lattice is a guest: without the folder lattice/, all but its own models works."""

import os
import shutil
import subprocess
import sys

import pytest
import soundfile

from helpers import COVER, LATTICE, ROOT, SECRET, TINY, voice, voices_in


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    """The repository without it, and beside it a folder of voices."""
    folder = tmp_path_factory.mktemp("copy")
    shutil.copytree(ROOT, folder / "repository", ignore=shutil.ignore_patterns(
        "lattice", "tests", "docs", "runs", ".*", "__pycache__"))
    (folder / "voices").mkdir()
    voices_in(folder / "voices")
    for seed in range(4):
        soundfile.write(folder / "voices" / f"{seed}.wav", voice(1, 16000, seed), 16000)
    return folder


def run(copy, script, *words):
    """(exit code, stdout, stderr) of a script there."""
    words = [sys.executable, copy / "repository" / script, *words]
    done = subprocess.run(list(map(str, words)), cwd=copy / "voices", capture_output=True,
                          text=True, timeout=200)
    return done.returncode, done.stdout, done.stderr


def test_hide_and_reveal(copy):
    code, out, err = run(copy, "stego.py", "hide", "cover.wav", "secret.wav", "-o", "../stego.wav")
    assert code == 0 and "secret SNR" in out and err == ""
    code, out, err = run(copy, "stego.py", "reveal", "../stego.wav", "-o", "../found.wav")
    assert code == 0 and "0.50 s revealed" in out and err == ""


def test_its_models_are_refused_in_one_line(copy, tmp_path):
    code, out, err = run(copy, "stego.py", "hide", COVER, SECRET, "-o", tmp_path / "stego.wav",
                         "--model", LATTICE)
    assert code and out == "" and len(err.splitlines()) == 1
    assert err.startswith("error: ") and "lattice.pt needs the folder lattice/" in err
    assert not os.listdir(tmp_path)


def test_training(copy, tmp_path):
    flags = "--data_dir", copy / "voices", "--out_dir", tmp_path / "run", "--steps", 2
    code, out, err = run(copy, "train.py", *flags, *TINY)
    assert code == 0 and "done: " in out and "Traceback" not in err, err
    assert (tmp_path / "run" / "best.pt").exists()


def test_the_table(copy):
    code, out, err = run(copy, "evaluate.py", "--cover", "cover.wav", "--secret", "secret.wav",
                         "--no_perceptual")
    assert code == 0 and "Traceback" not in err, err
    assert "INN, 48 dB" in out and "\nrobust " in out and "lattice" not in out
