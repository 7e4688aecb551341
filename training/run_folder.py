"""The folder of a training run: whose it is, where it goes on, its metrics."""

import csv
import errno
import fcntl
import os

from files import checkpoint
from training.data import stop

ANEW_ON_RESUME = {"resume", "data_dir", "val_dir", "out_dir", "device", "workers", "save_every",
                  "no_progress"}
SAVED = {"args", "step", "pairs", "best", "skipped", "window", "optimiser", "scaler", "adversary"}

locks = []  # files that stay open, and locked, while the process lives


def claim(folder):
    """Make a folder, and keep it to this process. Raises OSError."""
    os.makedirs(folder, exist_ok=True)
    lock = open(os.path.join(folder, ".lock"), "w")
    try:
        fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:  # others come of file systems without locks
        if error.errno in (errno.EAGAIN, errno.EACCES):
            stop(f"{folder}: another run is at work in it; give another --out_dir")
    locks.append(lock)


def go_on(path, args, given):
    """The checkpoint at `path`, whose flags come into the place of args'."""
    try:
        content = checkpoint.read(path)
    except FileNotFoundError:
        stop(f"{path} does not exist: there is nothing to resume")
    except (ValueError, OSError) as error:
        stop(str(error))
    if "training" not in content:
        stop(f"{path} is a model, not a checkpoint: start from it with --init_from")
    if lacking := {"config", "state_dict"} - content.keys() | SAVED - set(content["training"]):
        stop(f"{path} is damaged: it lacks {min(lacking)}")
    saved = content["training"]["args"]
    for name, value in given.items():
        if name not in ANEW_ON_RESUME and value != saved.get(name):
            stop(f"--{name} {value} differs from the {saved.get(name)} of {path}; a resumed run "
                 "keeps its flags (a new run can start with --init_from)")
    vars(args).update({name: value for name, value in saved.items() if name not in ANEW_ON_RESUME})
    return content


def start_metrics(path, step, header):
    """Open metrics.csv to go on after `step`; rows that a killed run wrote later are dropped, as
    they come again."""
    rows = []
    if step and os.path.exists(path):
        with open(path, newline="") as file:
            rows = [row for row in list(csv.reader(file))[1:]
                    if len(row) == len(header) and int(row[0]) <= step]
    with checkpoint.replacing(path) as temporary, open(temporary, "w", newline="") as file:
        csv.writer(file).writerows([header, *rows])
    return open(path, "a", newline="", buffering=1)
