"""Standard streams in place of files, and the folder for temporary files."""

import contextlib
import os
import shutil
import sys
import tempfile

from files.checkpoint import temporary_name
from files.command import StegoError, standard_output


@contextlib.contextmanager
def private_folder():
    """A temporary folder that only its owner can look into. Raises StegoError if there is no place
    for one, or no room in it."""
    try:
        name = temporary_name(os.path.join(tempfile.gettempdir(), "wavinwav"))
        with tempfile.TemporaryDirectory(**name) as folder:
            yield folder
    except OSError as error:
        raise StegoError(f"temporary files cannot be written ({error.strerror or error}); set "
                         "TMPDIR to a folder with room") from error


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
