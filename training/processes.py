"""The processes of a run, one or those that torchrun has started, and their devices."""

import collections
import contextlib
import os
import signal
import sys
from functools import partial

import torch
from torch import distributed

from files.command import mistakes_in_one_line, one_line, settle_streams

RANK = int(os.environ.get("RANK", 0))
WORLD = int(os.environ.get("WORLD_SIZE", 1))

reduced = collections.deque(maxlen=64)

def sum_of_all(x, operation=distributed.ReduceOp.SUM):
    """The sum of a tensor over all processes, or their maximum, in its place. The last tensors are
    kept: a thread of gloo that is the last to release one needs Python's lock for it, and a process
    that ends meanwhile hangs or aborts (seen with torch 2.4 and 2.10)."""
    if WORLD > 1:
        reduced.append(x)
        distributed.all_reduce(x, operation)
    return x


def stop(message):
    """End the run with one line on stderr, from one process."""
    sys.exit(one_line(message) if RANK == 0 else 1)


def set_up(device, precision):
    """-> the device of this process, by default CUDA where there is one; the precision of the
    subnets, where "auto" is bf16 or else fp16 on CUDA; and their autocast context."""
    local = f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if WORLD > 1 else "cuda"
    try:
        found = torch.device(device or (local if torch.cuda.is_available() else "cpu"))
        if found.type == "cuda" and found.index is not None:
            torch.cuda.set_device(found)
        torch.zeros(1, device=found).item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        stop(f"--device {device} cannot be used: {str(error).splitlines()[0]}")
    if WORLD > 1 and not distributed.is_initialized():
        distributed.init_process_group("cpu:gloo,cuda:nccl" if found.type == "cuda" else "gloo")
    if precision == "auto":
        best = "bf16" if torch.cuda.is_bf16_supported() else "fp16"
        precision = best if found.type == "cuda" else "fp32"
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision)
    return found, precision, partial(torch.autocast, found.type, dtype, dtype is not None)


@contextlib.contextmanager
def faults_in_one_line():
    """End the run with one line for what a user can mend while it is set up."""
    try:
        yield
    except (ValueError, RuntimeError, OSError) as error:
        stop(" ".join(str(error).split()))


@contextlib.contextmanager
def first_process_first():
    """Run a block in the first process, and then in the others."""
    if RANK > 0:
        distributed.barrier()
    yield
    if RANK == 0 and WORLD > 1:
        distributed.barrier()


def run(main):
    """Run a training script: what a user can mend ends it with one line."""
    settle_streams()
    if signal.getsignal(signal.SIGINT) == signal.SIG_DFL:  # set by files/start.py
        signal.signal(signal.SIGINT, signal.default_int_handler)
    with mistakes_in_one_line():
        main()
