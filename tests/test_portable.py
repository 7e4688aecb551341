"""Every script without what only Linux has, as on Windows: in one process, without signals, locks,
forks and the C library."""

import subprocess
import sys

import numpy as np
import pytest
import soundfile

from helpers import COVER, ROOT, SECRET, TINY, TINY_LATTICE, TINY_PAPER, voice

WITHOUT = """
import ctypes, os, runpy, signal, sys, sysconfig
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
sys.path.insert(0, os.getcwd())
for command in sys.argv[1:]:
    sys.argv = command.split("\\n")
    runpy.run_path(sys.argv[0], run_name="__main__")
"""


def run(*commands):
    """Scripts with their arguments, one after the other in one process."""
    commands = ["\n".join(map(str, words)) for words in commands]
    done = subprocess.run([sys.executable, "-c", WITHOUT, *commands], cwd=ROOT,
                          capture_output=True, text=True, timeout=300)
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
    return done


@pytest.mark.parametrize("model", ["wavinwav", "lattice"])
def test_hide_and_reveal(tmp_path, model):
    """In several parts, which would go to processes."""
    for name, path in (("cover", COVER), ("secret", SECRET)):
        x, rate = soundfile.read(path, dtype="int16")
        soundfile.write(tmp_path / f"{name}.wav", np.resize(x, 40 * rate), rate)
    cover, secret, stego, found = (
        tmp_path / f"{name}.wav" for name in ("cover", "secret", "stego", "found"))
    run(["stego.py", "hide", cover, secret, "-o", stego, "--model", model])
    run(["stego.py", "reveal", stego, "-o", found, "--model", model])
    x, y = (soundfile.read(path)[0] for path in (secret, found))
    assert len(x) == len(y) and np.sum((x - y) ** 2) < 1e-2 * np.sum(x ** 2)


def test_training_and_evaluation(tmp_path):
    for i in range(6):
        soundfile.write(tmp_path / f"{i}.wav", voice(1, 16000, i), 16000)
    runs = {"lapped": ("train.py", *TINY, "--adversarial"), "paper": ("train.py", *TINY_PAPER),
            "lattice": ("lattice/train.py", *TINY_LATTICE)}
    done = run(*([*words, "--data_dir", tmp_path, "--out_dir", tmp_path / name, "--steps", 2]
                 for name, words in runs.items()),
               ["evaluate.py", "--cover", COVER, "--secret", SECRET, "--no_perceptual",
                "--model", "lattice", "wavinwav"])
    for name in runs:
        assert (tmp_path / name / "last.pt").exists()
    assert "secret" in done.stdout
