"""Every script without what only Linux has, as on Windows: in one process, without signals, locks,
forks and the C library."""

import subprocess
import sys

import numpy as np
import pytest
import soundfile

from helpers import COVER, ROOT, SECRET

WITHOUT = """
import ctypes, os, runpy, signal, sys
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
sys.argv = sys.argv[1:]
sys.path.insert(0, os.getcwd())
if sys.argv[0] == "-m":
    del sys.argv[0]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
else:
    runpy.run_path(sys.argv[0], run_name="__main__")
"""


def run(*words):
    done = subprocess.run([sys.executable, "-c", WITHOUT, *map(str, words)], cwd=ROOT,
                          capture_output=True, text=True, timeout=300)
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
    return done


@pytest.mark.parametrize("model", ["models/wavinwav.pt", "lattice/lattice.pt"])
def test_hide_and_reveal(tmp_path, model):
    """In several parts, which would go to processes."""
    for name, path in (("cover", COVER), ("secret", SECRET)):
        x, rate = soundfile.read(path, dtype="int16")
        soundfile.write(tmp_path / f"{name}.wav", np.resize(x, 40 * rate), rate)
    run("stego.py", "hide", tmp_path / "cover.wav", tmp_path / "secret.wav", "-o",
        tmp_path / "stego.wav", "--model", model)
    run("stego.py", "reveal", tmp_path / "stego.wav", "-o", tmp_path / "found.wav",
        "--model", model)
    x, y = (soundfile.read(tmp_path / f"{name}.wav")[0] for name in ("secret", "found"))
    assert len(x) == len(y) and np.sum((x - y) ** 2) < 1e-2 * np.sum(x ** 2)


def test_evaluation(tmp_path):
    done = run("evaluate.py", "--cover", COVER, "--secret", SECRET, "--no_perceptual")
    assert "secret" in done.stdout
