"""Programs in processes of their own, as `python WORDS` runs them. They are forked from a process
that has loaded torch already, which takes a tenth of the time. Nothing of ours is loaded in it."""

import multiprocessing
import os
import resource
import runpy
import sys
import tempfile
from typing import NamedTuple

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
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

    `words` are those behind `python`: a script, `-c` and a program, or `-m` and a module. `stdin`
    is bytes, `environment` more variables, `limits` {number as in `resource`: its limit}, and
    `temporary` the folder for temporary files that was found before.
    """

    def __init__(self, *words, cwd=ROOT, stdin=b"", temporary=None, limits=None, environment=None):
        self.streams = [tempfile.NamedTemporaryFile() for _ in range(3)]
        self.streams[0].write(stdin)
        self.streams[0].flush()
        self.stderr = self.streams[2]
        self.process = SERVER.Process(target=_run, args=(
            list(map(str, words)), str(cwd), [stream.name for stream in self.streams], temporary,
            limits or {}, environment or {}))
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


def _run(words, cwd, streams, temporary, limits, environment):
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
    if script == "-c":
        program, sys.argv[0] = sys.argv[0], "-c"
        exec(compile(program, "-c", "exec"), {"__name__": "__main__"})
    elif script == "-m":
        runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
    else:
        runpy.run_path(sys.argv[0], run_name="__main__")
