"""The processes of a run: one, or those that torchrun has started."""

import collections
import os
import sys

from torch import distributed

from files.command import one_line

RANK = int(os.environ.get("RANK", 0))
WORLD = int(os.environ.get("WORLD_SIZE", 1))

reduced = collections.deque(maxlen=64)


def sum_of_all(x, operation=distributed.ReduceOp.SUM):
    """The sum of a tensor over all processes, or their maximum, in its place. The last tensors are
    kept: a thread of gloo that is the last to release one needs Python's lock for it, which a
    process that ends may hold while it waits for the thread (seen with torch 2.4)."""
    if WORLD > 1:
        reduced.append(x)
        distributed.all_reduce(x, operation)
    return x


def stop(message):
    """End the run with one line on stderr, from one process."""
    sys.exit(one_line(message) if RANK == 0 else 1)
