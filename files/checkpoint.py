"""Files that are whole or not there, and models as files.

    checkpoint.save(model, "model.pt")                   # what wavinwav.load or lattice.load reads
    checkpoint.save(model, "last.pt", training={...})    # the same, with more in it
    content = checkpoint.read("last.pt")
"""

import contextlib
import errno
import glob
import os
import platform
import re
import shutil
import stat
import tempfile
import warnings
import zlib
from collections.abc import Iterator
from dataclasses import asdict
from secrets import token_hex

import torch
from torch import nn

from files.command import StegoError

FORMAT = 2  # of model files


@contextlib.contextmanager
def replacing(path: str | os.PathLike, overwrite: bool = True) -> Iterator[str]:
    """The name of a temporary file beside `path`, which takes its place at the end, or is removed
    after a fault. Only its owner can read it until then, when it gets the mode of the file that it
    replaces. A link stays: the file that it leads to is replaced.

    Raises OSError at once if `path` cannot be written, and FileExistsError at the end if there is a
    file and `overwrite` is not set.
    """
    path = os.path.realpath(path)
    umask = os.umask(0o077)  # which can only be read by setting it
    os.umask(umask)
    mode = 0o666 & ~umask
    with contextlib.suppress(FileNotFoundError):  # but not a name that is too long
        mode = stat.S_IMODE(os.stat(path).st_mode)
    place = temporary_name(path)
    temporary = os.path.join(place["dir"], place["prefix"] + token_hex(4) + place["suffix"])
    try:  # a signal may come as soon as the file is there
        os.close(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
        yield temporary
        os.chmod(temporary, mode)
        if not overwrite:
            open(path, "xb").close()  # of two processes that do so at once, one fails
        os.replace(temporary, path)
    finally:
        if os.path.exists(temporary):
            os.remove(temporary)


def check_writable(path: str | os.PathLike):
    """Raises StegoError if `replacing` could not write a file at `path`: a folder, a pipe or a
    device, a name that is too long, a folder that takes no files. Leaves nothing."""
    try:
        if os.path.exists(path) and not os.path.isfile(path):
            raise OSError(errno.EINVAL, "it is not a file")
        with contextlib.suppress(FileNotFoundError):
            os.stat(path)  # a name that is too long
        tempfile.TemporaryFile(dir=os.path.dirname(os.path.realpath(path))).close()
    except OSError as error:
        raise StegoError(f"{path} cannot be written ({error.strerror}); give another name"
                         ) from error


def temporary_name(path: str | os.PathLike) -> dict[str, str]:
    """How the names of this process's temporary files and folders for `path` begin and end, as
    arguments of tempfile's functions. Those of processes of this machine that were killed are
    removed."""
    folder, name = os.path.split(os.path.realpath(path))
    while len(os.fsencode(name)) > 200:  # of 255 that a name can have
        name = name[:-1]
    prefix = f"{name}.{zlib.crc32(platform.node().encode())}-"
    for left in glob.glob(f"{glob.escape(prefix)}*.tmp", root_dir=folder):
        process = re.match(r"\d+", left[len(prefix):])
        if process and not is_running(int(process[0])):
            left = os.path.join(folder, left)
            with contextlib.suppress(OSError):
                (shutil.rmtree if os.path.isdir(left) else os.remove)(left)
    return {"prefix": f"{prefix}{os.getpid()}-", "suffix": ".tmp", "dir": folder}


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
    with open(path, "rb") as file, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's, of a pickle that is refused below
        try:
            content = torch.load(file, map_location="cpu", weights_only=True)
        except Exception as error:  # a damaged file raises one of half a dozen types
            raise ValueError(f"{path} is not a WavInWav model, or is damaged") from error
    if not isinstance(content, dict) or content.get("wavinwav") != FORMAT:
        raise ValueError(f"{path} is not a WavInWav model of this version")
    return content
