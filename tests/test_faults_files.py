"""Faults of the world around: key files, inputs, outputs, streams, limits, signals."""

import errno
import multiprocessing
import os
import signal
import stat
import struct
import subprocess
import sys
import time

import numpy as np
import pytest
import soundfile
import torch

import stego
from files import checkpoint
from files.command import StegoError
from helpers import (
    HIDE,
    INN,
    LATTICE,
    ROOT,
    all_end,
    finish,
    launch,
    members,
    refused,
    run_stego,
    voice,
    voices_in,
)
from helpers import run_inside as run
from wavinwav import Config, build


@pytest.fixture
def folder(tmp_path):
    return voices_in(tmp_path)


@pytest.fixture
def long(folder):
    for name in ("cover", "secret"):
        soundfile.write(folder / f"{name}.wav", np.tile(voice(1, 16000, 5), 600), 16000)
    return folder


# ---------------------------------------------------------------- keys

@pytest.mark.parametrize("content, expected", [
    (None, "--key-file '' cannot be read"), (b"", "is empty; write a passphrase into it"),
    (b"\n", "is empty"), (b"\xef\xbb\xbf\r\n", "is empty"),
    (b"\xff\xfea\0b\0", "is UTF-16; save it as UTF-8"),
    (b"k" * 65537, "has more than 65536 bytes"), ("/dev/zero", "has more than 65536 bytes")],
    ids=["unset", "empty", "blank", "mark", "UTF-16", "long", "endless"])
def test_key_files_that_are_refused(folder, content, expected):
    name = {type(None): "", str: content}.get(type(content), "key")
    if name == "key":
        (folder / "key").write_bytes(content)
    refused(folder, (*HIDE, "--key-file", name), expected)
    refused(folder, ("reveal", "cover.wav", "-o", "out.wav", "--key-file", name), expected)


def test_key_files_that_are_one_key(folder):
    """A byte order mark and the end of the line do not count; everything else does."""
    long = b"k" * 65000
    for name, key in (("plain", long), ("mark", b"\xef\xbb\xbf" + long + b"\r\n"),
                      ("other", long[:-1] + b"x")):
        (folder / name).write_bytes(key)
    assert run(folder, *HIDE, "--key-file", "mark")[0] == 0
    reveal = "reveal", "out.wav", "-o", "found.wav", "--key-file"
    refused(folder, (*reveal, "other"), "the key or the model is another")
    assert run(folder, *reveal, "plain")[0] == 0


# ---------------------------------------------------------------- inputs

@pytest.mark.parametrize("sizes, noted", [
    ((0, 0), True), ((36, 0), True), ((-1, -1), False), (((1 << 31) - 1,) * 2, False)],
    ids=str)
def test_recordings_of_unknown_length(folder, sizes, noted):
    """Interrupted ones, and what encoders write into pipes, are read to their end."""
    content = bytearray((folder / "cover.wav").read_bytes())
    for place, size in zip((4, 40), sizes):
        content[place:place + 4] = struct.pack("<I", size % (1 << 32))
    (folder / "open.wav").write_bytes(content)
    code, out, err = run(folder, "hide", "open.wav", "secret.wav", "-o", "out.wav")
    assert code == 0 and ("note: open.wav is an interrupted recording" in err) == noted
    assert soundfile.info(folder / "out.wav").frames == 16000


def test_pipes_and_devices_do_not_hang(folder):
    os.mkfifo(folder / "pipe.wav")
    for name in ("pipe.wav", "/dev/zero", "/dev/null"):
        for pair in ((name, "secret.wav"), ("cover.wav", name)):
            refused(folder, ("hide", *pair, "-o", "out.wav"), "a pipe or a device")
    refused(folder, (*HIDE[:3], "-o", "pipe.wav", "--overwrite"), "it is not a file")


@pytest.mark.parametrize("name", ["take.raw", b"t\xffke.wav", "t\nke.wav", "täke.wav", "-.wav"],
                         ids=ascii)
def test_names(folder, name):
    name = os.fsdecode(name)
    os.rename(folder / "cover.wav", folder / name)
    out = name if name.endswith("wav") else "out.wav"
    os.mkdir(folder / "sub")
    code, told, err = run(folder, "hide", f"./{name}", "secret.wav", "-o", f"sub/{out}")
    assert code == 0 and err == "" and len(told.splitlines()) == 1
    assert os.listdir(folder / "sub") == [out]


def test_another_locale(folder):
    os.rename(folder / "cover.wav", folder / "täke.wav")
    environment = os.environ | dict(LC_ALL="C", PYTHONUTF8="0", PYTHONCOERCECLOCALE="0")
    words = "hide", "täke.wav", "secret.wav", "-o", "öut.wav"
    done = subprocess.run([sys.executable, os.path.join(ROOT, "stego.py"), *words], cwd=folder,
                          env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and done.stderr == "" and (folder / "öut.wav").exists()


def test_an_awkward_rate(folder):
    """44,101 and 48,000 have no common factor: a kernel of all their phases would take 8 GB."""
    soundfile.write(folder / "cover.wav", voice(1, 48000, 1), 48000)
    soundfile.write(folder / "secret.wav", voice(0.5, 44101, 2), 44101)
    limited = "ulimit -v 6000000; exec "  # KiB; torch itself takes most of that
    words = " ".join([sys.executable, os.path.join(ROOT, "stego.py"), *HIDE, "--model", LATTICE])
    done = subprocess.run(["bash", "-c", limited + words], cwd=folder, capture_output=True,
                          text=True)
    assert done.returncode == 0, done.stderr


def test_a_secret_that_is_longer_by_less_than_a_sample(folder):
    """Of its cover: 44101 samples at 44.1 kHz last 16000.4 at 16 kHz."""
    for count, code in ((44101, 0), (44104, 1)):
        soundfile.write(folder / "secret.wav", voice(2, 44100, 2)[:count], 44100)
        done, _, err = run(folder, *HIDE[:-1], f"{count}.wav")
        assert done == code, err
    assert "lasts 1.000 s, longer than its cover's 1.000 s by 1 samples" in err


# ---------------------------------------------------------------- outputs

def test_a_file_that_appears_meanwhile_is_kept(folder):
    """Also if two processes hide into one output at once: one of them fails."""
    running = [launch(folder, *HIDE, temporary=str(folder / "tmp")) for _ in range(2)]
    codes, _, errors = zip(*(finish(*each) for each in running))
    assert sorted(codes) == [0, 1] and "out.wav exists" in errors[codes.index(1)]
    soundfile.write(folder / "cover.wav", np.tile(voice(1, 16000, 1), 60), 16000)
    pid, streams, _ = started(folder, "late.wav")
    (folder / "late.wav").write_text("precious")
    code, _, err = finish(pid, streams)
    assert code == 1 and "late.wav exists by now; give another name, or --overwrite" in err
    assert (folder / "late.wav").read_text() == "precious"
    assert sorted(os.listdir(folder)) == ["cover.wav", "late.wav", "out.wav", "secret.wav", "tmp"]


def started(folder, output="out.wav"):
    """A hide that is at work on its output: its number, its streams, its temporary file."""
    pid, streams = launch(folder, *HIDE[:-1], output, temporary=str(folder / "tmp"))
    while not (found := [name for name in os.listdir(folder) if name.startswith(output + ".")]):
        time.sleep(0.001)
    return pid, streams, found[0]


def test_overwrite_keeps_mode_and_link(folder):
    (folder / "sub").mkdir()
    (folder / "sub" / "old.wav").write_text("old")
    os.chmod(folder / "sub" / "old.wav", 0o640)
    os.symlink("sub/old.wav", folder / "out.wav")
    refused(folder, HIDE, "out.wav exists")
    assert run(folder, *HIDE, "--overwrite")[0] == 0
    assert os.readlink(folder / "out.wav") == "sub/old.wav"
    assert stat.S_IMODE(os.stat(folder / "sub" / "old.wav").st_mode) == 0o640
    assert os.listdir(folder / "sub") == ["old.wav"]
    assert soundfile.info(folder / "sub" / "old.wav").frames == 16000
    before = os.umask(0o027)
    try:
        assert run(folder, *HIDE[:-1], "new.wav")[0] == 0
    finally:
        os.umask(before)
    assert stat.S_IMODE(os.stat(folder / "new.wav").st_mode) == 0o640


# ---------------------------------------------------------------- streams

@pytest.mark.parametrize("words, redirection, code, expected", [
    ("cover.wav -o out.wav", "<&- >&- 2>&-", 0, ""),
    ("cover.wav -o out.wav", ">/dev/full", 1, "out.wav is written (stego SNR"),
    ("cover.wav -o -", "<&- >piped.wav", 0, "-: stego SNR"),
    ("cover.wav -o -", ">&-", 1, "error: the standard output is closed"),
    ("cover.wav -o -", ">/dev/full", 1, "error: the standard output takes no more (No space left"),
    ("cover.wav -o -", "> >(exec true)", 1,
     "error: the standard output takes no more (Broken pipe)"),
    ("- -o out.wav", "<&-", 1, "error: the standard input is closed; give the name of a file"),
], ids=str)
def test_closed_and_full_streams(folder, words, redirection, code, expected):
    stereo = voice(1, 16000, 2)[:, None] * (1, 0.6)
    soundfile.write(folder / "secret.wav", stereo, 16000)  # which prints a note
    program = f"'{sys.executable}' '{os.path.join(ROOT, 'stego.py')}' hide"
    command = f"{program} {words.replace(' -o', ' secret.wav -o')} {redirection}"
    done = subprocess.run(["bash", "-c", command], cwd=folder, capture_output=True, text=True)
    assert done.returncode == code, done.stderr
    assert expected in done.stderr and "Traceback" not in done.stderr
    noted = "2>&-" not in redirection and "is closed" not in expected
    assert len(done.stderr.splitlines()) == noted + bool(expected)
    for name in ("out.wav", "piped.wav"):
        if name in words + redirection and "is closed" not in expected:
            assert soundfile.info(folder / name).frames == 16000


# ---------------------------------------------------------------- what is left of a cut stego

@pytest.fixture(scope="module")
def paper(tmp_path_factory):
    torch.manual_seed(0)
    path = str(tmp_path_factory.mktemp("paper") / "paper.pt")
    checkpoint.save(build(Config.paper(blocks=1, growth=2)), path)
    return path


@pytest.mark.parametrize("name, keyed", [("INN", ("--key-file", "key")), ("paper", ())])
def test_force_is_silent_after_a_cut(folder, name, keyed, paper):
    (folder / "key").write_text("open sesame")
    x = np.tile(voice(1, 16000, 5), 35)
    for file in ("cover", "secret"):
        soundfile.write(folder / f"{file}.wav", 0.3 * x, 16000)
    common = ["--model", INN if name == "INN" else paper, *keyed]
    assert run(folder, *HIDE, *common)[0] == 0
    soundfile.write(folder / "cut.wav", soundfile.read(folder / "out.wav", 100_000)[0], 16000)
    refused(folder, ("reveal", "cut.wav", "-o", "found.wav", *common), "100000 of 560000")
    code, out, err = run(folder, "reveal", "cut.wav", "-o", "found.wav", "--force", *common)
    assert code == 0 and out == "found.wav: 35.00 s revealed\n"
    assert err == ("note: cut.wav was cut: 100000 of 560000 samples are left, and the rest of the "
                   "secret is silent\n")
    found = soundfile.read(folder / "found.wav")[0]
    assert len(found) == 560_000 and found[:90_000].any()
    assert not found[100_000:].any()


# ---------------------------------------------------------------- limits of the machine

NO_FOLDER = """
import runpy, sys, tempfile
tempfile._candidate_tempdir_list = lambda: ["/nowhere"]
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.parametrize("script", ["stego.py", "train.py", "evaluate.py", "lattice/train.py"])
def test_no_folder_for_temporary_files_at_the_start(script):
    words = [sys.executable, "-c", NO_FOLDER, script, "--data_dir", "x"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr == (
        "error: No usable temporary directory found in ['/nowhere']; set TMPDIR to a folder with "
        "room\n")


def test_no_folder_for_temporary_files(folder):
    code, _, err = run_stego(folder, *HIDE, temporary="/nowhere")  # gone since it was found
    assert code == 1 and err.startswith("error: temporary files cannot be written (No such file")


def _hide(folder):
    return stego.hide(*(str(folder / f"{name}.wav") for name in ("cover", "secret", "out")),
                      stego.load_model(INN))


def test_a_process_that_may_have_no_children(long):
    with multiprocessing.get_context("fork").Pool(1) as pool:  # whose processes are daemons
        assert min(pool.apply_async(_hide, (long,)).get(60)) > 20


def test_no_process_can_be_started(long, monkeypatch):
    def fork():
        raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")

    monkeypatch.setattr(os, "fork", fork)
    with pytest.raises(StegoError, match="no process can be started .Resource temporarily"):
        _hide(long)
    assert sorted(os.listdir(long)) == ["cover.wav", "secret.wav", "tmp"]


SHORT_OF_MEMORY = """
import os, resource, runpy, sys
sys.path.insert(0, os.path.dirname(sys.argv[1]))
import stego
with open("/proc/self/statm") as file:
    total = int(file.read().split()[0]) * resource.getpagesize() + (50 << 20)
resource.setrlimit(resource.RLIMIT_AS, (total, total))
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_too_little_memory(long):
    words = [sys.executable, "-c", SHORT_OF_MEMORY, os.path.join(ROOT, "stego.py"), *HIDE]
    done = subprocess.run(words, cwd=long, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (
        1, "error: there is not enough memory; raise the limit, or end what else runs\n")
    assert sorted(os.listdir(long)) == ["cover.wav", "secret.wav", "tmp"]


# ---------------------------------------------------------------- signals

@pytest.mark.parametrize("number, send", [
    (signal.SIGHUP, os.killpg), (signal.SIGINT, os.killpg), (signal.SIGTERM, os.kill)], ids=str)
def test_signals_leave_nothing(long, number, send):
    """To all processes or one, at any moment."""
    pid, streams, output = started(long)
    assert stat.S_IMODE(os.stat(long / output).st_mode) == 0o600
    inside, = os.listdir(long / "tmp")
    assert stat.S_IMODE(os.stat(long / "tmp" / inside).st_mode) == 0o700
    for _ in range(2):  # as a terminal that is closed does
        send(pid, number)
    code, _, err = finish(pid, streams)
    assert (code, err) == (1, "error: interrupted\n")
    assert sorted(os.listdir(long)) == ["cover.wav", "secret.wav", "tmp"]
    assert not os.listdir(long / "tmp")


@pytest.mark.slow
def test_stale_temporary_files_are_removed(long):
    pid, _, output = started(long)
    os.killpg(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    assert output in os.listdir(long) and len(os.listdir(long / "tmp")) == 1
    for name in ("cover", "secret"):
        soundfile.write(long / f"{name}.wav", voice(1, 16000, 5), 16000)
    (long / "tmp" / "wavinwav-of-mine").mkdir()
    assert run(long, *HIDE)[0] == 0
    assert sorted(os.listdir(long)) == ["cover.wav", "out.wav", "secret.wav", "tmp"]
    assert os.listdir(long / "tmp") == ["wavinwav-of-mine"]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere there are no workers")
def test_workers_go_when_only_their_parent_is_killed(long):
    pid, _, _ = started(long)
    end = time.monotonic() + 60
    while len(members(pid)) < 2 and time.monotonic() < end:
        time.sleep(0.001)
    assert len(members(pid)) > 1
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    assert all_end(pid)


KILLED_EARLY = """
import os, signal, time
from files import processes

def early(*args, start=processes._start):
    parent = os.getppid()
    os.kill(parent, signal.SIGKILL)
    while os.getppid() == parent:
        time.sleep(0.01)
    start(*args)

os.cpu_count, processes._start = lambda: 2, early
list(processes.in_order(time.sleep, [100, 100]))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere there are no workers")
def test_workers_go_when_their_parent_is_killed_before_they_have_started():
    done = subprocess.run([sys.executable, "-c", KILLED_EARLY], cwd=ROOT, timeout=60,
                          capture_output=True)  # until no process has these streams
    assert done.returncode == -signal.SIGKILL


def test_a_folder_in_use_is_left_alone(long):
    pid, streams, _ = started(long)
    inside, = os.listdir(long / "tmp")
    for name in ("cover", "secret"):
        soundfile.write(long / f"short {name}.wav", voice(1, 16000, 5), 16000)
    assert run(long, "hide", "short cover.wav", "short secret.wav", "-o", "other.wav")[0] == 0
    assert inside in os.listdir(long / "tmp")
    assert finish(pid, streams)[0] == 0
