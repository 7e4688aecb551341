"""Faults of the world around: key files, inputs, outputs, streams, limits, signals."""

import errno
import multiprocessing
import os
import resource
import signal
import stat
import struct
import sys
import time

import numpy as np
import pytest
import soundfile

import stego
from files.command import StegoError
from helpers import INN, LATTICE, voice
from running import HIDE, STEGO, Running, all_end, launch, members, python, refused
from running import run_stego as run


@pytest.fixture
def long(folder):
    for name in ("cover", "secret"):
        soundfile.write(folder / f"{name}.wav", np.tile(voice(1, 16000, 5), 600), 16000)
    return folder


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
    done = python(STEGO, "hide", "täke.wav", "secret.wav", "-o", "öut.wav", cwd=folder,
                  shell="exec {}", LC_ALL="C", PYTHONUTF8="0", PYTHONCOERCECLOCALE="0")
    assert done.returncode == 0 and done.stderr == "" and (folder / "öut.wav").exists()


def test_an_awkward_rate(folder):
    """44,101 and 48,000 have no common factor: a kernel of all their phases would take 8 GB."""
    soundfile.write(folder / "cover.wav", voice(1, 48000, 1), 48000)
    soundfile.write(folder / "secret.wav", voice(0.5, 44101, 2), 44101)
    limits = {resource.RLIMIT_AS: 6 << 30}  # torch itself takes most of that
    done = Running(STEGO, *HIDE, "--model", LATTICE, cwd=folder, limits=limits).finish()
    assert done.returncode == 0, done.stderr


# ---------------------------------------------------------------- outputs

def test_a_file_that_appears_meanwhile_is_kept(folder):
    """Also if two processes hide into one output at once: one of them fails."""
    running = [launch(folder, *HIDE) for _ in range(2)]
    codes, _, errors = zip(*(each.finish() for each in running))
    assert sorted(codes) == [0, 1] and "out.wav exists" in errors[codes.index(1)]
    soundfile.write(folder / "cover.wav", np.tile(voice(1, 16000, 1), 60), 16000)
    process, _ = started(folder, "late.wav")
    (folder / "late.wav").write_text("precious")
    code, _, err = process.finish()
    assert code == 1 and "late.wav exists by now; give another name, or --overwrite" in err
    assert (folder / "late.wav").read_text() == "precious"
    assert sorted(os.listdir(folder)) == ["cover.wav", "late.wav", "out.wav", "secret.wav", "tmp"]


def started(folder, output="out.wav"):
    """A hide that is at work on its output, and the name of its temporary file."""
    process = launch(folder, *HIDE[:-1], output)
    while not (found := [name for name in os.listdir(folder) if name.startswith(output + ".")]):
        time.sleep(0.001)
    return process, found[0]


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
    done = python(STEGO, *HIDE[:-1], "new.wav", cwd=folder, shell="umask 027; exec {}")
    assert done.returncode == 0
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
    words = words.replace(" -o", " secret.wav -o")
    done = python(STEGO, "hide", *words.split(), cwd=folder, shell="{} " + redirection)
    assert done.returncode == code, done.stderr
    assert expected in done.stderr and "Traceback" not in done.stderr
    noted = "2>&-" not in redirection and "is closed" not in expected
    assert len(done.stderr.splitlines()) == noted + bool(expected)
    for name in ("out.wav", "piped.wav"):
        if name in words + redirection and "is closed" not in expected:
            assert soundfile.info(folder / name).frames == 16000


# ---------------------------------------------------------------- what is left of a cut stego

@pytest.mark.parametrize("common", [("--key-file", "key"), ("--model", "paper")], ids=str)
def test_force_is_silent_after_a_cut(folder, common):
    (folder / "key").write_text("open sesame")
    x = np.tile(voice(1, 16000, 5), 35)
    for file in ("cover", "secret"):
        soundfile.write(folder / f"{file}.wav", 0.3 * x, 16000)
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

NO_FOLDER = "import tempfile; tempfile._candidate_tempdir_list = lambda: ['/nowhere']"


@pytest.mark.parametrize("module", ["stego", "train", "evaluate", "lattice.train"])
def test_no_folder_for_temporary_files_at_the_start(module):
    done = python("-m", module, "--data_dir", "x", before=NO_FOLDER)
    assert done.returncode == 1 and done.stderr == (
        "error: No usable temporary directory found in ['/nowhere']; set TMPDIR to a folder with "
        "room\n")


def test_no_folder_for_temporary_files(folder):
    code, _, err = run(folder, *HIDE, temporary="/nowhere")  # gone since it was found
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
import resource, stego
with open("/proc/self/statm") as file:
    total = int(file.read().split()[0]) * resource.getpagesize() + (50 << 20)
resource.setrlimit(resource.RLIMIT_AS, (total, total))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_too_little_memory(long):
    done = python(STEGO, *HIDE, cwd=long, before=SHORT_OF_MEMORY)
    assert (done.returncode, done.stderr) == (
        1, "error: there is not enough memory; raise the limit, or end what else runs\n")
    assert sorted(os.listdir(long)) == ["cover.wav", "secret.wav", "tmp"]


# ---------------------------------------------------------------- signals

@pytest.mark.parametrize("number, send", [
    (signal.SIGHUP, os.killpg), (signal.SIGINT, os.killpg), (signal.SIGTERM, os.kill)], ids=str)
def test_signals_leave_nothing(long, number, send):
    """To all processes or one, at any moment."""
    process, output = started(long)
    assert stat.S_IMODE(os.stat(long / output).st_mode) == 0o600
    inside, = os.listdir(long / "tmp")
    assert stat.S_IMODE(os.stat(long / "tmp" / inside).st_mode) == 0o700
    for _ in range(2):  # as a terminal that is closed does
        send(process.pid, number)
    code, _, err = process.finish()
    assert (code, err) == (1, "error: interrupted\n")
    assert sorted(os.listdir(long)) == ["cover.wav", "secret.wav", "tmp"]
    assert not os.listdir(long / "tmp")


@pytest.mark.parametrize("words", [[STEGO], ["train.py"], ["evaluate.py"], ["-m", "lattice.train"]])
def test_a_signal_while_torch_loads(tmp_path, words):
    """Ends the script without a traceback."""
    (tmp_path / "torch.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGINT)")
    done = python(*words, "--help", shell="exec {}", PYTHONPATH=str(tmp_path))
    assert (done.returncode, done.stdout, done.stderr) == (-signal.SIGINT, "", "")


@pytest.mark.slow
def test_stale_temporary_files_are_removed(long):
    process, output = started(long)
    os.killpg(process.pid, signal.SIGKILL)
    process.finish()
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
    process, _ = started(long)
    end = time.monotonic() + 60
    while len(members(process.pid)) < 2 and time.monotonic() < end:
        time.sleep(0.001)
    assert len(members(process.pid)) > 1
    os.kill(process.pid, signal.SIGKILL)
    process.finish()
    assert all_end(process.pid)


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
    done = python("-c", KILLED_EARLY)  # until no process has its streams
    assert done.returncode == -signal.SIGKILL


def test_a_folder_in_use_is_left_alone(long):
    process, _ = started(long)
    inside, = os.listdir(long / "tmp")
    for name in ("cover", "secret"):
        soundfile.write(long / f"short {name}.wav", voice(1, 16000, 5), 16000)
    assert run(long, "hide", "short cover.wav", "short secret.wav", "-o", "other.wav")[0] == 0
    assert inside in os.listdir(long / "tmp")
    assert process.finish()[0] == 0
