"""The folder of a run, and what is recorded there: metrics.csv, TensorBoard's events, a picture."""

import contextlib
import csv
import errno
import os

import torch

from files import checkpoint
from training.processes import stop

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

MOST_SKIPPED = 20  # steps in a row
EXPLODED = 1e6  # a loss; those of all presets begin below 100, so these weights have blown up
locks = []  # files that stay open, and locked, while the process lives


def claim(folder):
    """Make a folder, and keep it to this process. Raises OSError."""
    os.makedirs(folder, exist_ok=True)
    lock = open(os.path.join(folder, ".lock"), "w")
    try:
        if fcntl:
            fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:  # others come of file systems without locks
        if error.errno in (errno.EAGAIN, errno.EACCES):
            stop(f"{folder}: another run is at work in it; give another --out_dir")
    locks.append(lock)


def refuse_another_run(folder):
    """End the run where the folder has files of another one."""
    for name, remedy in (("last.pt", "go on with --resume"), ("best.pt", "remove it"),
                         ("metrics.csv", "remove it")):
        path = os.path.join(folder, name)
        if os.path.exists(path):
            stop(f"{path} exists: {remedy}, or give another --out_dir")


def stop_if_broken(step, loss, in_a_row):
    """End the run if the loss has exploded, or many steps in a row were skipped."""
    if in_a_row >= MOST_SKIPPED:
        stop(f"{in_a_row:.0f} steps in a row were skipped, up to step {step}, since their gradient "
             "was not finite or too large: try a lower --lr, other weights of the losses, or "
             "--amp fp32")
    if abs(loss) > EXPLODED:
        stop(f"the loss has exploded, to {loss:.3g} at step {step}: try a lower --lr, or --spike 5")


class Record:
    """Claims a folder. Appends rows to its metrics.csv, and to TensorBoard's events if asked for.

    header: names of the columns, the first of which is the step
    step: at which a resumed run goes on; rows of later steps come again, and are dropped
    """

    def __init__(self, folder, header, step=0, tensorboard=False):
        claim(folder)
        self.path, self.writer = os.path.join(folder, "metrics.csv"), None
        rows = []
        if step and os.path.exists(self.path):
            with open(self.path, newline="") as file:
                rows = [row for row in csv.reader(file)
                        if len(row) == len(header) and row != header and int(row[0]) <= step]
        with (checkpoint.replacing(self.path) as temporary,
              open(temporary, "w", newline="") as file):
            csv.writer(file).writerows([header, *rows])
        self.file, self.header = open(self.path, "a", newline="", buffering=1), header
        if tensorboard:
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError:
                stop("--tensorboard needs a package: pip install tensorboard")
            self.writer = SummaryWriter(folder, purge_step=step + 1 if step else None)

    def row(self, values):
        """Write a row {column: number}; columns that are not there stay empty."""
        csv.writer(self.file).writerow(
            f"{values[name]:.6g}" if name in values else "" for name in self.header)
        for name, value in values.items():
            if self.writer and name != "step":
                self.writer.add_scalar(name, value, values["step"])

    def sounds(self, step, waves, rate):
        """Waves {name: [T]} in [-1, 1) as sounds and as spectrograms, for TensorBoard alone."""
        for name, x in waves.items() if self.writer else ():
            x = x.float().cpu()
            spectrum = torch.stft(x, 512, 128, window=torch.hann_window(512), return_complex=True)
            level = 20 * torch.log10(spectrum.abs().clamp_min(1e-5)).flip(0)
            self.writer.add_audio(f"sounds/{name}", x.clamp(-1, 1)[None], step, rate)
            self.writer.add_image(f"spectrograms/{name}", ((level + 60) / 100).clamp(0, 1), step,
                                  dataformats="HW")  # no page shows two kinds under one name

    def finish(self):
        """Close the files, and draw the validations over the steps into metrics.png, if there is
        matplotlib."""
        self.file.close()
        if self.writer:
            self.writer.close()
        with contextlib.suppress(ImportError):
            from matplotlib.figure import Figure
            with open(self.path, newline="") as file:
                rows = list(csv.DictReader(file))
            names = [name for name in self.header if name.startswith("val_")]
            unit = "SNR, dB" if names[0].endswith("_snr") else "bits a sample"
            axes = (figure := Figure()).add_subplot(xlabel="step", ylabel=unit)
            for name in names:
                found = [(int(row["step"]), float(row[name])) for row in rows if row[name]]
                label = name.removeprefix("val_").removesuffix("_snr")
                axes.plot(*zip(*found), marker=".", label=label)
            axes.legend()
            with checkpoint.replacing(self.path.removesuffix("csv") + "png") as temporary:
                figure.savefig(temporary, format="png")
