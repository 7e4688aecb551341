"""Files that are whole or not there, and models as files.

    checkpoint.save(model, "model.pt")                   # what wavinwav.load or lattice.load reads
    checkpoint.save(model, "last.pt", training={...})    # the same, with more in it
"""

import contextlib
import os
from collections.abc import Iterator
from dataclasses import asdict

import torch
from torch import nn


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
    content = {"wavinwav": 2, "config": asdict(model.config), "state_dict": model.state_dict()}
    with replacing(path) as temporary:
        torch.save(content | extra, temporary)
