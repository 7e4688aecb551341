"""Standard streams in place of files, and the folder for temporary files."""

import contextlib
import glob
import os
import re
import shutil
import sys
import tempfile

from files.checkpoint import is_running
from files.command import StegoError, standard_output

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None


def lock(file):
    """Whether an open file is now locked, until it is closed. It is not if another process has
    locked it, or files cannot be locked here."""
    with contextlib.suppress(OSError, AttributeError):
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    return False


@contextlib.contextmanager
def private_folder():
    """A temporary folder that only its owner can look into. Those of killed processes are removed
    first; a lock shows that one is in use, even by a process in another container. Raises
    StegoError."""
    try:
        prefix = os.path.join(tempfile.gettempdir(), "wavinwav-")
    except FileNotFoundError as error:
        raise StegoError("there is no folder for temporary files; set TMPDIR to a folder with room"
                         ) from error
    for stale in glob.glob(glob.escape(prefix) + "*"):
        process = re.match(r"\d+", stale[len(prefix):])
        if process and not is_running(int(process[0])):
            with (contextlib.suppress(OSError), open(os.path.join(stale, "lock"), "r+") as file):
                if lock(file):
                    shutil.rmtree(stale)
    with tempfile.TemporaryDirectory(prefix=f"wavinwav-{os.getpid()}-") as folder:
        with open(os.path.join(folder, "lock"), "w") as file:
            lock(file)
            yield folder


@contextlib.contextmanager
def standard_streams(inputs, output):
    """Gives the paths to use for `inputs` and `output`, in which `-` is a standard stream, and a
    folder for temporary files. Raises StegoError."""
    if "-" in inputs and sys.stdin is None or output == "-" and sys.stdout is None:
        closed = "input" if "-" in inputs and sys.stdin is None else "output"
        raise StegoError(f"the standard {closed} is closed; give the name of a file instead of -")
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
