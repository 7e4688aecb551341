"""Files that are whole or not there, and models as files.

    checkpoint.save(model, "model.pt")                   # what wavinwav.load or lattice.load reads
    checkpoint.save(model, "last.pt", training={...})    # the same, with more in it
    content = checkpoint.read("last.pt")
"""

import contextlib
import errno
import glob
import os
import re
import stat
import threading
from collections.abc import Iterator
from dataclasses import asdict

import torch
from torch import nn

FORMAT = 2  # of model files


@contextlib.contextmanager
def replacing(path: str | os.PathLike, overwrite: bool = True) -> Iterator[str]:
    """The name of a temporary file beside `path`, which takes its place at the end, or is removed
    after a fault. Only its owner can read it until then, when it gets the mode of the file that it
    replaces. A link stays: the file that it leads to is replaced.

    Raises FileExistsError at the end if there is a file and `overwrite` is not set.
    """
    path = os.path.realpath(path)
    remove_stale(path)
    temporary = temporary_name(path)
    umask = os.umask(0o077)  # which can only be read by setting it
    os.umask(umask)
    try:
        os.close(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
        yield temporary
        mode = os.stat(path).st_mode if os.path.exists(path) else 0o666 & ~umask
        os.chmod(temporary, stat.S_IMODE(mode))
        if overwrite:
            os.replace(temporary, path)
        else:
            _place(temporary, path)
    finally:
        if os.path.exists(temporary):
            os.remove(temporary)


def check_writable(path: str | os.PathLike):
    """Raises OSError if `replacing` could not write a file at `path`: a folder, a pipe or a device,
    a name that is too long, a folder that takes no files. Leaves nothing."""
    if os.path.exists(path) and not os.path.isfile(path):
        raise OSError(errno.EINVAL, "it is not a file", os.fspath(path))
    with contextlib.suppress(FileNotFoundError):
        os.stat(path)  # a name that is too long
    open(temporary_name(path), "xb").close()
    os.remove(temporary_name(path))


def temporary_name(path: str | os.PathLike) -> str:
    """For this thread to write what will be at `path`; `remove_stale` recognises it."""
    return f"{_stem(path)}.{os.getpid()}-{threading.get_ident()}.tmp"


def _stem(path: str | os.PathLike) -> str:
    """A path whose name is short enough for an ending of 50 bytes more."""
    folder, name = os.path.split(os.fspath(path))
    while len(os.fsencode(name)) > 200:
        name = name[:-1]
    return os.path.join(folder, name)


def _place(temporary: str, path: str):
    """Rename a file. Of two processes that do so at once, one raises FileExistsError."""
    try:
        os.link(temporary, path)
    except FileExistsError:
        raise
    except OSError:  # the file system has no hard links
        open(path, "xb").close()
        os.replace(temporary, path)


def remove_stale(path: str | os.PathLike):
    """Remove the temporary files of processes that were killed before they replaced `path`."""
    stem = _stem(path)
    for temporary in glob.glob(glob.escape(stem) + ".*.tmp"):
        number = re.fullmatch(r"\.(\d+)(-\d+)?\.tmp", temporary[len(stem):])
        if number and not is_running(int(number[1])):
            with contextlib.suppress(OSError):
                os.remove(temporary)


def is_running(process: int) -> bool:
    """Whether there is a process of this number. Windows cannot tell: there, always."""
    if os.name == "nt":
        return True
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass
    return True


def model_path(name: str) -> str:
    """The path of a shipped model, such as "robust", or the path that was given."""
    root = os.path.dirname(os.path.dirname(os.path.realpath(__file__)))
    for folder in ("models", "lattice"):
        path = os.path.join(root, folder, f"{name}.pt")
        if name == os.path.basename(name) and os.path.isfile(path):
            return path
    return name


def save(model: nn.Module, path: str | os.PathLike, **extra):
    """Write a model's config (a dataclass) and weights, and `extra`, of plain types. After a fault,
    a file that was at `path` is still there. Raises OSError naming it if it cannot be written."""
    with replacing(path) as temporary:
        try:
            torch.save({"wavinwav": FORMAT, "config": asdict(model.config),
                        "state_dict": model.state_dict(), **extra}, temporary)
        except RuntimeError as error:  # torch's word for a write that failed
            raise OSError(errno.EIO, "it cannot be written to its end", os.fspath(path)) from error


def read(path: str | os.PathLike) -> dict:
    """What `save` wrote, on the CPU. Raises OSError, or ValueError naming the file."""
    with open(path, "rb") as file:
        try:
            content = torch.load(file, map_location="cpu", weights_only=True)
        except Exception as error:  # a damaged file raises one of half a dozen types
            raise ValueError(f"{path} is not a WavInWav model, or is damaged") from error
    if not isinstance(content, dict) or content.get("wavinwav") != FORMAT:
        raise ValueError(f"{path} is not a WavInWav model of this version")
    return content
