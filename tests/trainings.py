"""Trainings of seconds: their flags, how they are run, and what they leave."""

import csv
import signal
import time

import torch

from files import checkpoint
from running import Running, python
from train import main as train_main
from training.noise import KINDS

# train.py's flags for networks and runs of seconds
QUICK = [
    "--crop", "0.25", "--batch_size", "2", "--val_pairs", "4", "--log_every", "2",
    "--val_every", "4", "--save_every", "2", "--warmup", "2", "--no_progress", "--workers", "0",
    "--device", "cpu"]
TINY = ["--bands", "16", "--carriers", "16", "--growth", "4", *QUICK]
TINY_PAPER = ["--preset", "paper", "--blocks", "2", "--growth", "4", *QUICK]
TINY_LATTICE = ["--growth", "4", *QUICK]
SHORT = ["--crop", "0.134"]  # just the longest window of the discriminator
EVERYTHING = ["--adversarial", "--disc_start", "3", *SHORT, "--noise", ",".join(KINDS)]


def train(*flags, main=train_main):
    """Run train.py, or another main, in this process, which has loaded torch already."""
    torch.set_num_threads(1)
    main([str(flag) for flag in flags])


def begun(folder, *flags, module="train"):
    """A long run that has written its first rows, in a session of its own."""
    process = Running("-m", module, *flags, "--steps", 10000, "--out_dir", folder)
    wait_for_rows(process, folder)
    return process


def wait_for_rows(process, folder, count=2):
    """Until a running training has so many rows in its metrics.csv."""
    while not (folder / "metrics.csv").exists() or len(metrics(folder)) < count:
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.05)


KILLED = """
import os, signal
replace, written = os.replace, []

def killing(source, target):
    written.append(os.path.basename(target))
    if written.count("last.pt") == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    replace(source, target)

os.replace = killing
"""


def train_killed(*flags, module="train"):
    """A run that is killed, without a chance to clean up, when its second last.pt is written but
    has not yet taken its place."""
    done = python("-m", module, *flags, before=KILLED)
    assert done.returncode == -signal.SIGKILL, done.stderr


def metrics(folder):
    """The rows of a run's metrics.csv."""
    with open(folder / "metrics.csv", newline="") as file:
        return list(csv.DictReader(file))


def weights(path):
    """All numbers of a model file [n]."""
    state = checkpoint.read(path)["state_dict"]
    return torch.cat([value.flatten().double() for value in state.values()])


def gradients(path):
    """Means of the last steps' gradients, as Adam has them: of the network [n], and of the
    discriminator, if there is one."""
    training = checkpoint.read(path)["training"]
    states = [part["optimiser"]["state"] for part in (training, training["adversary"]) if part]
    return [torch.cat([state[i]["exp_avg"].flatten() for i in sorted(state)]) for state in states]
