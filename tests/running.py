"""Programs in processes of their own, as `python WORDS` runs them. They are forked from a process
that has loaded torch already, which takes a tenth of the time. Nothing of ours is loaded in it."""

import multiprocessing
import os
import resource
import runpy
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from typing import NamedTuple

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
STEGO, TRAIN = (os.path.join(ROOT, name) for name in ("stego.py", "train.py"))
HIDE = "hide", "cover.wav", "secret.wav", "-o", "out.wav"
SERVER = multiprocessing.get_context("forkserver")
# torch._dynamo: each optimiser imports it; without matplotlib, there is just no picture
SERVER.set_forkserver_preload(["matplotlib.figure", "soundfile", "torch._dynamo", "tqdm"])


class Done(NamedTuple):
    """What a program leaves."""

    returncode: int  # below 0: the number of the signal that killed it
    stdout: str
    stderr: str


class Running:
    """A program at work in `cwd`, in a session of its own, without a terminal.

    `words` are those behind `python`: a script, `-c` and a program, or `-m` and a module.
    `environment` is more variables, `limits` {number as in `resource`: its limit}, and `temporary`
    the folder for temporary files that was found before. `before` is run first, in the same
    process. The standard input is empty.
    """

    def __init__(self, *words, cwd=ROOT, temporary=None, before="", limits=None, environment=None):
        self.streams = [tempfile.NamedTemporaryFile() for _ in range(3)]
        self.stderr = self.streams[2]
        self.process = SERVER.Process(target=_run, args=(
            list(map(str, words)), str(cwd), [stream.name for stream in self.streams], temporary,
            before, limits or {}, environment or {}))
        self.process.start()
        self.pid = self.process.pid

    def poll(self):
        """Its exit code, or None while it is at work."""
        return self.process.exitcode

    def finish(self):
        """Wait for its end -> Done."""
        self.process.join(200)
        if hangs := self.process.is_alive():
            self.process.kill()
            self.process.join()
        texts = [stream.read().decode(errors="replace") for stream in self.streams[1:]]
        assert not hangs, texts
        return Done(self.process.exitcode, *texts)


def _run(words, cwd, streams, temporary, before, limits, environment):
    multiprocessing.set_start_method(None, force=True)  # the platform's, not the server's
    os.setsid()
    for number, name in enumerate(streams):
        os.dup2(os.open(name, os.O_RDWR), number)
    sys.stdin, sys.stdout, sys.stderr = (
        open(i, "w" if i else "r", closefd=False) for i in range(3))
    os.chdir(cwd)
    os.environ.update(environment)
    for number, limit in limits.items():
        resource.setrlimit(number, (limit, limit))
    tempfile.tempdir = temporary
    ours = ROOT, os.path.join(ROOT, "tests"), ""
    sys.path[:] = [path for path in sys.path if path not in ours]
    sys.path[:0] = filter(None, environment.get("PYTHONPATH", "").split(os.pathsep))
    script, *sys.argv = words if words[0] in ("-c", "-m") else (None, *words)
    sys.path.insert(0, "" if script else os.path.dirname(sys.argv[0]))
    exec(before, {})
    if script == "-c":
        program, sys.argv[0] = sys.argv[0], "-c"
        exec(compile(program, "-c", "exec"), {"__name__": "__main__"})
    elif script == "-m":
        runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
    else:
        runpy.run_path(sys.argv[0], run_name="__main__")


def python(*words, cwd=ROOT, shell=None, before="", **environment):
    """What `python WORDS` leaves: Done. With `shell`, a command of bash in which {} stands for it,
    it is a new interpreter; else see Running."""
    if shell is None:
        return Running(*words, cwd=cwd, before=before, environment=environment).finish()
    command = shell.replace("{}", shlex.join(map(str, [sys.executable, *words])))
    done = subprocess.run(["bash", "-o", "pipefail", "-c", command], cwd=cwd, capture_output=True,
                          env=os.environ | environment, text=True, timeout=200)
    return Done(done.returncode, done.stdout, done.stderr)


def members(session):
    """Processes of a session, those that have ended and wait for their parent left out."""
    found = []
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{name}/stat") as file:
                state, _, _, own = file.read().rpartition(")")[2].split()[:4]
        except OSError:  # it has ended since
            continue
        if int(own) == session and state != "Z":
            found.append(int(name))
    return found


def all_end(session):
    """Whether all processes of a session end within a minute; those that do not are killed."""
    deadline = time.monotonic() + 60
    while (left := members(session)) and time.monotonic() < deadline:
        time.sleep(0.05)
    for process in left:
        os.kill(process, signal.SIGKILL)
    return not left


def launch(folder, *words, largest=None, temporary=None):
    """`python stego.py WORDS` at work in a folder: Running. `temporary` is the folder for temporary
    files, by default the `tmp` in `folder`, if there is one; `largest` is the size in bytes that a
    file can have."""
    own = os.path.join(folder, "tmp")
    temporary = temporary or (own if os.path.isdir(own) else None)
    return Running(STEGO, *words, cwd=folder, temporary=temporary,
                   limits={resource.RLIMIT_FSIZE: largest} if largest else {})


def run_stego(folder, *words, **more):
    """What `python stego.py WORDS` in a folder leaves: Done."""
    return launch(folder, *words, **more).finish()


def refused(folder, words, expected, **more):
    """It ends with one line, and leaves nothing."""
    before = sorted(os.listdir(folder))
    code, out, err = run_stego(folder, *words, **more)
    assert code in (1, 2) and out == "" and len(err.splitlines()) == 1, err
    assert err.startswith("error: ") and expected in err
    assert sorted(os.listdir(folder)) == before and not os.listdir(folder / "tmp")
