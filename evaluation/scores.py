"""Scores of a method on pairs of files, all on what it wrote: SNR, LSD, PESQ, STOI; means; tables.

    paths = write_pair(folder, cover, secret, 16000)    # of two signals
    scores = score_pair(method, paths)                  # it hides, reveals, and is scored
    print_table([summary("a method", "its family", [scores])], COLUMNS)

SNR and LSD in dB, PESQ wide band at 16 kHz, STOI; RTF is audio seconds per second of processing,
hide and reveal together. A method is what `baselines.Method` describes.

Shapes: T samples, F frames. Samples are integer arrays [T] (1 LSB = 1), signals float tensors [T]
in [-1, 1).
"""

import importlib
import math
import os
import sys
import time

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from tqdm import tqdm

from files import sound
from files.command import StegoError, tell
from files.resample import resample

NAMES = "cover", "secret", "stego", "revealed"


def score_pair(method, paths: dict[str, str], perceptual: bool = True) -> dict[str, float]:
    """Scores {name: value} of a method on the files of one pair; {} where it cannot hide. Writes
    the stego and the revealed secret. `perceptual` adds PESQ and STOI."""
    start = time.perf_counter()
    try:
        method.hide(paths["cover"], paths["secret"], paths["stego"])
        method.reveal(paths["stego"], paths["revealed"])
    except StegoError as error:
        tqdm.write(f"{method.name}: {error}", file=sys.stderr)
        return {}
    seconds = time.perf_counter() - start
    x, rate = {name: signal(paths[name]) for name in NAMES}, samples(paths["cover"])[1]
    scores = {}
    for name, before, after in (("stego", "cover", "stego"), ("secret", "secret", "revealed")):
        values = {"SNR": sound.snr_of(x[before], x[after]), "LSD": lsd(x[before], x[after])}
        if perceptual:
            values |= speech_scores(x[before], x[after], rate)
        scores |= {f"{name} {key}": value for key, value in values.items()}
    return scores | {"RTF": len(x["cover"]) / rate / seconds}


# ---------------------------------------------------------------- the files of a pair

def write_pair(folder: str, cover: Tensor, secret: Tensor, rate: int) -> dict[str, str]:
    """Write two signals as 16-bit WAV files. Returns the paths of these and of the stego and the
    revealed secret to come, by NAMES."""
    paths = {name: os.path.join(folder, f"{name}.wav") for name in NAMES}
    for name, x in (("cover", cover), ("secret", secret)):
        sound.write_audio(paths[name], sound.to_pcm(x), rate)
    return paths


def samples(path: str) -> tuple[np.ndarray, int]:
    """The samples of a 16-bit mono file, int64 so that arithmetic does not overflow; and its rate
    in Hz. Raises StegoError."""
    x, rate = sound.read_audio(path, "int16")
    return x[:, 0].astype(np.int64), rate


def signal(path: str) -> Tensor:
    """The same as a signal."""
    return sound.from_pcm(samples(path)[0])


# ---------------------------------------------------------------- scores of two signals

def lsd(reference: Tensor, estimate: Tensor) -> float:
    """Log-spectral distance in dB of two signals [T]: the root mean square over bins of the
    difference of log power, mean over frames (Gray and Markel, "Distance measures for speech
    processing", 1976), with the frames of the super-resolution literature: 2048 samples, every 512,
    Hann (Kuleshov et al., arXiv 1708.00853). Power counts from that of 16-bit rounding up, so that
    digital silence is not minus infinity."""
    window = torch.hann_window(2048)
    floor = window.square().sum() / 12 / sound.FULL_SCALE ** 2

    def log_power(x):  # [bins, F]
        x = functional.pad(x, (0, max(0, 2048 - len(x))))
        spectrum = torch.stft(x, 2048, 512, window=window, return_complex=True)
        return 10 * (spectrum.abs().square() + floor).log10()

    difference = log_power(reference) - log_power(estimate)
    return difference.square().mean(0).sqrt().mean().item()


def need(*names: str) -> list:
    """Import optional packages, or end with the one line that says how to get them."""
    try:
        return [importlib.import_module(name) for name in names]
    except ImportError as error:
        sys.exit(f"{error.name.split('.')[0]} is not installed: "
                 "pip install -r requirements-eval.txt"
                 + (", or give --no_perceptual" if "pesq" in names else ""))


def speech_scores(reference: Tensor, estimate: Tensor, rate: int) -> dict[str, float]:
    """PESQ (wide band; NaN where it finds no speech) and STOI of two signals [T]."""
    pesq, pystoi = need("pesq", "pystoi")
    reference, estimate = (resample(x, rate, 16000).numpy() for x in (reference, estimate))
    try:
        quality = pesq.pesq(16000, reference, estimate, "wb")
    except pesq.PesqError:
        quality = math.nan
    return {"PESQ": quality, "STOI": float(pystoi.stoi(reference, estimate, 16000))}


# ---------------------------------------------------------------- means over pairs

def mean_interval(values: list) -> tuple[float, float]:
    """Mean, and half of its 95 % interval (normal, over pairs); lost (None) counts as 0, what is
    not finite is left out. NaN where there is none."""
    values = np.array([value or 0 for value in values if value is None or math.isfinite(value)])
    half = 1.96 * values.std(ddof=1) / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return (values.mean() if len(values) else math.nan), half


def summary(method: str, family: str, rows: list[dict]) -> dict:
    """A method's scores over all pairs, from [{score: value}]: a finite value, infinity where the
    secret came back lossless, None where it is lost, NaN where there is none."""
    names = dict.fromkeys(name for row in rows for name in row)
    values = {name: [row.get(name, math.nan) for row in rows] for name in names}
    counts = {word: {name: column.count(mark) for name, column in values.items() if mark in column}
              for word, mark in (("lossless", math.inf), ("lost", None))}
    means = {name: mean_interval(column) for name, column in values.items()}
    return {"method": method, "family": family, "pairs": len(rows), "failed": rows.count({}),
            **counts, "values": values, "scores": means}


# ---------------------------------------------------------------- tables

DIGITS = {"SNR": 1, "LSD": 2, "PESQ": 2, "STOI": 3}
COLUMNS = {f"{part} {score}": DIGITS[score] for part in ("stego", "secret") for score in DIGITS}
COLUMNS |= {"below bound": 1, "RTF": 1}  # {score: digits}


def print_table(summaries: list[dict], columns: dict[str, int]):
    """One row a method, `columns` {score: digits}; notes on pairs that are not in a mean at the
    row's end."""
    columns = {name: digits for name, digits in columns.items()
               if any(name in row["scores"] for row in summaries)}
    width = max(len(row["method"]) for row in summaries) + 1
    heads = [name.split(" ", 1) if " " in name else ("", name) for name in columns]
    for line in (0, 1):
        tell(" " * width + "".join(f"{head[line]:>12s}" for head in heads), sys.stdout)
    for row in summaries:
        if row["failed"] == row["pairs"]:
            tell(f"{row['method']:{width}s}  failed, see above", sys.stdout)
            continue
        cells = [cell(name, row["values"][name], digits) if name in row["values"] else ("-", "")
                 for name, digits in columns.items()]
        numbers = "".join(f"{text:>12s}" for text, _ in cells)
        notes = "; ".join(note for _, note in cells if note)
        tell(f"{row['method']:{width}s}{numbers}  {notes}", sys.stdout)


def cell(name: str, values: list, digits: int) -> tuple[str, str]:
    """A mean over pairs as text, and what to note of the pairs that are not in it."""
    mean, half = mean_interval(values)
    counts = {"lossless": values.count(math.inf), "lost": values.count(None)}
    for word, count in counts.items():
        if count == len(values):
            return word, ""
    counts["without"] = sum(x is not None and math.isnan(x) for x in values)
    note = ", ".join(f"{count} {word}" for word, count in counts.items() if count)
    text = "-" if math.isnan(mean) else f"{mean:.{digits}f}"
    text += "" if math.isnan(half) or name == "RTF" else f"±{half:.{digits}f}"
    return text, note and f"{name}: {note}"
