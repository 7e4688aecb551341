"""The standard streams in the place of files, and a folder for what is temporary."""

import contextlib
import fcntl
import glob
import os
import re
import shutil
import sys
import tempfile

from files.checkpoint import is_running
from files.command import StegoError, standard_output


@contextlib.contextmanager
def private_folder():
    """A temporary folder that only its owner can look into. Those of processes that were killed are
    removed first: a lock tells that one is in use, also to who does not see its process."""
    prefix = os.path.join(tempfile.gettempdir(), "wavinwav-")
    for stale in glob.glob(glob.escape(prefix) + "*"):
        process = re.match(r"\d+", stale[len(prefix):])
        if process and not is_running(int(process[0])):
            with (contextlib.suppress(OSError), open(os.path.join(stale, "lock"), "r+") as lock):
                fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(stale)
    with tempfile.TemporaryDirectory(prefix=f"wavinwav-{os.getpid()}-") as folder:
        with open(os.path.join(folder, "lock"), "w") as lock:
            with contextlib.suppress(OSError):  # a file system without locks
                fcntl.lockf(lock, fcntl.LOCK_EX)
            yield folder


@contextlib.contextmanager
def standard_streams(inputs, output):
    """The paths to use for these paths, of which `-` is the standard input or output, and a folder
    for temporary files. Raises StegoError."""
    if "-" in inputs and sys.stdin is None or output == "-" and sys.stdout is None:
        closed = "input" if "-" in inputs and sys.stdin is None else "output"
        raise StegoError(f"the standard {closed} is closed; give a file's name in the place of -")
    with private_folder() as folder:
        paths = [os.path.join(folder, "stdin") if path == "-" else path for path in inputs]
        if "-" in inputs:
            with open(os.path.join(folder, "stdin"), "wb") as file:
                shutil.copyfileobj(sys.stdin.buffer, file)
        yield paths, (os.path.join(folder, "stdout.wav") if output == "-" else output), folder
        if output == "-":
            with standard_output(), open(os.path.join(folder, "stdout.wav"), "rb") as file:
                shutil.copyfileobj(file, sys.stdout.buffer)
                sys.stdout.flush()
