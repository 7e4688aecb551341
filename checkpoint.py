"""Files that are whole or not there, and models as files.

    checkpoint.save(model, "model.pt")                   # what wavinwav.load or lattice.load reads
    checkpoint.save(model, "last.pt", training={...})    # the same, with more in it
    content = checkpoint.read("last.pt")
"""

import contextlib
import os
from collections.abc import Iterator
from dataclasses import asdict

import torch
from torch import nn

FORMAT = 2  # of the files


@contextlib.contextmanager
def replacing(path: str | os.PathLike) -> Iterator[str]:
    """The name of a temporary file beside `path`, which takes its place at the end, or is removed
    after a fault."""
    temporary = f"{os.fspath(path)}.{os.getpid()}.tmp"
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        if os.path.exists(temporary):
            os.remove(temporary)


def save(model: nn.Module, path: str | os.PathLike, **extra):
    """Write a model's config (a dataclass) and weights, and `extra`, of plain types. After a fault,
    such as OSError, a file that was at `path` is still there."""
    content = {"wavinwav": FORMAT, "config": asdict(model.config), "state_dict": model.state_dict()}
    with replacing(path) as temporary:
        torch.save(content | extra, temporary)


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
