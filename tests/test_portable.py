"""What works where something is missing: what only Linux has, the folder lattice/, torchaudio."""

import os
import re
import shutil

import numpy as np
import pytest
import soundfile

from helpers import COVER, LATTICE, SECRET, voice
from running import HIDE, ROOT, STEGO, python
from trainings import SHORT, TINY, TINY_LATTICE, TINY_PAPER

WITHOUT = """
import ctypes, os, signal, sys, sysconfig
import soundfile, torch, tqdm

def no_library(name, *args, **kwargs):
    raise TypeError("bad argument type for built-in operation")

for name in ("fcntl", "grp", "pwd", "resource", "termios"):
    sys.modules[name] = None
for name in ("fork", "forkpty", "getpgrp", "getuid", "geteuid", "killpg", "mkfifo", "pread",
             "setpgrp", "setsid", "sched_getaffinity"):
    delattr(os, name)
for name in dir(signal):
    if name.startswith("SIG") and name not in ("SIGABRT", "SIGFPE", "SIGILL", "SIGINT", "SIGSEGV",
                                               "SIGTERM", "SIG_DFL", "SIG_IGN"):
        delattr(signal, name)
for name in ("alarm", "pthread_sigmask", "setitimer", "siginterrupt"):
    delattr(signal, name)
ctypes.CDLL = no_library
sysconfig.get_config_vars()  # which needs the name of the platform
sys.platform = "another"
os.environ["USERNAME"] = "user"
"""


def run(module, *words):
    """As on Windows: without signals, locks, forks and the C library."""
    done = python("-m", module, *words, before=WITHOUT)
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
    return done


@pytest.mark.parametrize("model", ["wavinwav", "lattice"])
def test_hide_and_reveal_without_linux(tmp_path, model):
    """In several parts, which would go to processes."""
    for name, path in (("cover", COVER), ("secret", SECRET)):
        x, rate = soundfile.read(path, dtype="int16")
        soundfile.write(tmp_path / f"{name}.wav", np.resize(x, 40 * rate), rate)
    cover, secret, stego, found = (
        tmp_path / f"{name}.wav" for name in ("cover", "secret", "stego", "found"))
    run("stego", "hide", cover, secret, "-o", stego, "--model", model)
    run("stego", "reveal", stego, "-o", found, "--model", model)
    x, y = (soundfile.read(path)[0] for path in (secret, found))
    assert len(x) == len(y) and np.sum((x - y) ** 2) < 1e-2 * np.sum(x ** 2)


def test_training_and_evaluation_without_linux(speech, tmp_path):
    runs = {"lapped": ("train", *TINY, *SHORT, "--adversarial"),
            "paper": ("train", *TINY_PAPER), "lattice": ("lattice.train", *TINY_LATTICE)}
    for name, words in runs.items():
        run(*words, "--data_dir", speech, "--out_dir", tmp_path / name, "--steps", 2)
        assert (tmp_path / name / "last.pt").exists()
    done = run("evaluate", "--cover", COVER, "--secret", SECRET, "--no_perceptual", "--model",
               "wavinwav")
    assert "secret" in done.stdout


def test_without_the_lattice(tmp_path, speech, folder):
    copy = shutil.copytree(ROOT, tmp_path / "copy", ignore=shutil.ignore_patterns(
        "lattice", "tests", "docs", "runs", ".*", "__pycache__"))

    def run(script, *words):
        done = python(copy / script, *words, cwd=folder)
        assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
        return done.stdout

    assert "secret SNR" in run("stego.py", *HIDE)
    assert "0.50 s revealed" in run("stego.py", "reveal", "out.wav", "-o", "found.wav")
    flags = *TINY, "--steps", 2, "--data_dir", speech, "--out_dir", "run"
    assert "done: " in run("train.py", *flags)
    table = run("evaluate.py", "--cover", "cover.wav", "--secret", "secret.wav", "--no_perceptual")
    assert "INN, 48 dB" in table and "\nrobust " in table and "lattice" not in table
    done = python(copy / "stego.py", *HIDE[:-1], "other.wav", "--model", LATTICE, cwd=folder)
    assert done.returncode and done.stdout == "" and len(done.stderr.splitlines()) == 1
    assert re.match("error: .*lattice.pt needs the folder lattice/", done.stderr)
    assert not (folder / "other.wav").exists()


@pytest.fixture(scope="module")
def broken(tmp_path_factory):
    """A folder with a torchaudio that raises when it is imported, and a WavLM that needs it."""
    folder = tmp_path_factory.mktemp("broken")
    (folder / "torchaudio.py").write_text('raise OSError("libcudart.so.13:\\n none")')
    (folder / "hubconf.py").write_text("import torchaudio\n")
    return str(folder)


def test_resampling_works_without_torchaudio(broken, folder):
    done = python("-c", "import torchaudio", PYTHONPATH=broken)
    assert "OSError: libcudart.so.13" in done.stderr, "or this would show nothing"
    soundfile.write(folder / "secret.wav", voice(0.5, 22050, 1), 22050)
    done = python(STEGO, *HIDE, cwd=folder, PYTHONPATH=broken)
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr


@pytest.mark.parametrize("source", ["torchaudio/WAVLM_BASE_PLUS", "folder"])
def test_what_needs_torchaudio_ends_with_one_line(broken, speech, tmp_path, source):
    source = broken if source == "folder" else source
    done = python("train.py", *TINY, "--steps", 4, "--out_dir", tmp_path / "run", "--data_dir",
                  speech, "--wavlm_weight", 1, "--wavlm_source", source, PYTHONPATH=broken)
    assert done.returncode == 1 and len(done.stderr.splitlines()) == 1, done.stderr
    assert re.search(r"libcudart.so.13: none; .*torchaudio, where it is needed, must be the one "
                     r"built for torch \S+: pip install -r requirements.txt", done.stderr)
    assert not os.listdir(tmp_path), "nothing half-written"
