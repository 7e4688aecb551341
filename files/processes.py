"""Work done by as many processes as there are cores, its results in order."""

import collections
import contextlib
import ctypes
import multiprocessing
import os
import signal
import sys
from concurrent.futures.process import BrokenProcessPool, ProcessPoolExecutor

import torch
from tqdm import tqdm

from files.command import StegoError, noting_signals

_work = None  # what a worker process does; it inherits it


def _start(work, parent):
    global _work
    _work = work
    torch.set_num_threads(1)
    libc = ctypes.CDLL(None)
    libc.prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: end when the parent is killed
    if os.getppid() != parent:  # it was killed before that
        os._exit(1)
    with contextlib.suppress(AttributeError):  # musl has none
        libc.mallopt(-1, 1 << 30)  # M_TRIM_THRESHOLD, M_MMAP_THRESHOLD: keep freed memory, half of
        libc.mallopt(-3, 1 << 30)  # the time would go to returning it to the system
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _do(task):
    return _work(task)


def in_order(work, tasks, unit=None):
    """Yield work(task) of each task, in order, with a progress bar if a unit is given. Processes
    are forked on Linux, where it is safe; threads would wait for each other."""
    daemon = multiprocessing.current_process().daemon  # which may not have children
    workers = min(len(tasks), os.cpu_count() or 1) if sys.platform == "linux" and not daemon else 1
    results = _in_processes(work, tasks, workers) if workers > 1 else map(work, tasks)
    disable = None if unit else True  # None: shown on a terminal only
    yield from tqdm(results, total=len(tasks), unit=unit or "", leave=False, disable=disable)


def _in_processes(work, tasks, workers):
    fork, waiting = multiprocessing.get_context("fork"), collections.deque()
    others = multiprocessing.active_children()
    with ProcessPoolExecutor(workers, fork, _start, (work, os.getpid())) as pool:
        try:
            for task in tasks:
                if len(waiting) > workers:  # results that nobody takes would fill the memory
                    yield waiting.popleft().result()
                with noting_signals() as noted:  # what a handler raises in a fork is lost
                    try:
                        waiting.append(pool.submit(_do, task))
                    except OSError as error:
                        raise StegoError(f"no process can be started ({error.strerror}); raise the "
                                         "limit, or end what else runs") from error
                for number in noted:
                    signal.raise_signal(number)
            while waiting:
                yield waiting.popleft().result()
        except BaseException as error:
            for worker in multiprocessing.active_children():  # do not wait for what they do
                if worker not in others:
                    worker.kill()
            if isinstance(error, BrokenProcessPool):
                raise StegoError("a worker process was killed; is there enough memory?") from error
            raise


def bar(seconds):
    """The unit of a progress bar for so much audio, or None for none."""
    return "part" if seconds > 60 else None
