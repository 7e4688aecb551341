"""Scores of a system on pairs of files, all measured on the files that it wrote; tables of them.

    paths = write_pair(folder, cover, secret, 16000)    # two signals
    scores = score_pair(system, paths)                  # hide, reveal, and measure
    print_table({"its name": [scores]}, COLUMNS)

SNR and LSD in dB, wide-band PESQ at 16 kHz, STOI, speaker similarity of secret and revealed secret;
RTF is audio seconds per second of processing, hide and reveal together. (The paper also reports
ABX, which needs a model that cannot be had offline.) A system is a `baselines.System`.

Shapes: T samples, F frames. Samples are integer arrays [T] (1 LSB = 1), signals float tensors [T]
in [-1, 1).
"""

import csv
import functools
import importlib
import math
import os
import sys
import time
import warnings

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from tqdm import tqdm

from files import sound
from files.checkpoint import replacing
from files.command import StegoError, tell
from files.resample import resample

NAMES = "cover", "secret", "stego", "revealed"


def score_pair(system, paths: dict[str, str], perceptual: bool = True) -> dict[str, float]:
    """Scores {name: value} of a system on the files of one pair; {} if it cannot hide. Writes the
    stego and the revealed secret. `perceptual` adds PESQ, STOI and speaker similarity."""
    start = time.perf_counter()
    try:
        system.hide(paths["cover"], paths["secret"], paths["stego"])
        system.reveal(paths["stego"], paths["revealed"])
    except StegoError as error:
        tqdm.write(f"{system.name}: {error}", file=sys.stderr)
        return {}
    seconds = time.perf_counter() - start
    x, rate = {name: signal(paths[name]) for name in NAMES}, samples(paths["cover"])[1]
    scores = {}
    for name, before, after in (("stego", "cover", "stego"), ("secret", "secret", "revealed")):
        values = {"SNR": sound.snr_of(x[before], x[after]), "LSD": lsd(x[before], x[after])}
        if perceptual:
            values["PESQ"] = pesq(x[before], x[after], rate)
            values["STOI"] = stoi(x[before], x[after], rate)
            if name == "secret" and speaker_encoder():
                values["similarity"] = speaker_similarity(x[before], x[after], rate)
        scores |= {f"{name} {key}": value for key, value in values.items()}
    return scores | {"RTF": len(x["cover"]) / rate / seconds}


# ---------------------------------------------------------------- files of a pair

def write_pair(folder: str, cover: Tensor, secret: Tensor, rate: int) -> dict[str, str]:
    """Write two signals as 16-bit WAV files. Returns {name: path} of NAMES; stego and revealed
    secret are not there yet."""
    paths = {name: os.path.join(folder, f"{name}.wav") for name in NAMES}
    for name, x in (("cover", cover), ("secret", secret)):
        sound.write_audio(paths[name], sound.to_pcm(x), rate)
    return paths


def samples(path: str) -> tuple[np.ndarray, int]:
    """Samples of a 16-bit mono file, int64 so that arithmetic does not overflow; its rate in Hz.
    Raises StegoError."""
    x, rate = sound.read_audio(path, "int16")
    return x[:, 0].astype(np.int64), rate


def signal(path: str) -> Tensor:
    """The same as a float signal."""
    return sound.from_pcm(samples(path)[0])


# ---------------------------------------------------------------- scores

def lsd(reference: Tensor, estimate: Tensor) -> float:
    """Log-spectral distance in dB of two signals [T]: the root mean square over bins of the
    difference in log power, averaged over frames (Gray and Markel, "Distance measures for speech
    processing", 1976), with the frames of the super-resolution literature: 2048 samples, every 512,
    Hann (Kuleshov et al., arXiv 1708.00853). The power of 16-bit rounding is added, so that digital
    silence is not minus infinity."""
    window = torch.hann_window(2048)
    floor = window.square().sum() / 12 / sound.FULL_SCALE ** 2

    def log_power(x):  # [bins, F]
        x = functional.pad(x, (0, max(0, 2048 - len(x))))
        spectrum = torch.stft(x, 2048, 512, window=window, return_complex=True)
        return 10 * (spectrum.abs().square() + floor).log10()

    difference = log_power(reference) - log_power(estimate)
    return difference.square().mean(0).sqrt().mean().item()


def need(*names: str) -> list:
    """Import optional packages. Raises StegoError, which says how to install them."""
    try:
        return [importlib.import_module(name) for name in names]
    except ImportError as error:
        raise StegoError(f"{(error.name or names[0]).split('.')[0]} is not installed: "
                         "pip install -r requirements-eval.txt"
                         + (", or give --no_perceptual" if "pesq" in names else "")) from error


def pesq(reference: Tensor, estimate: Tensor, rate: int) -> float:
    """Wide-band PESQ of two signals [T]; NaN where it finds no speech."""
    package, = need("pesq")
    reference, estimate = (resample(x, rate, 16000).numpy() for x in (reference, estimate))
    try:
        return package.pesq(16000, reference, estimate, "wb")
    except package.PesqError:
        return math.nan


def stoi(reference: Tensor, estimate: Tensor, rate: int) -> float:
    """Short-time objective intelligibility of two signals [T], up to 1."""
    reference, estimate = (resample(x, rate, 16000).numpy() for x in (reference, estimate))
    return float(need("pystoi")[0].stoi(reference, estimate, 16000))


@functools.cache
def speaker_encoder():
    """resemblyzer and its speaker encoder, whose weights come with the package; None if it is not
    installed."""
    try:
        with warnings.catch_warnings():  # it imports deprecated modules
            warnings.simplefilter("ignore")
            import resemblyzer
    except ImportError:
        return None
    return resemblyzer, resemblyzer.VoiceEncoder("cpu", verbose=False)


def speaker_similarity(reference: Tensor, estimate: Tensor, rate: int) -> float:
    """Cosine similarity of the speaker embeddings (generalised end-to-end loss: Wan et al., arXiv
    1710.10467) of two signals [T]: 0 to 1, NaN where no speech is found. Needs resemblyzer."""
    if not (reference.any() and estimate.any()):
        return math.nan
    resemblyzer, encoder = speaker_encoder()
    voices = [resemblyzer.preprocess_wav(resample(x, rate, 16000).numpy())
              for x in (reference, estimate)]
    if not all(map(len, voices)):
        return math.nan
    first, second = map(encoder.embed_utterance, voices)
    return float(first @ second)


# ---------------------------------------------------------------- tables

DIGITS = {"SNR": 1, "LSD": 2, "PESQ": 2, "STOI": 3, "similarity": 3}
COLUMNS = {f"{part} {score}": DIGITS[score] for part in ("stego", "secret") for score in DIGITS}
COLUMNS |= {"below bound": 1, "RTF": 1}  # {score: digits}


def mean_interval(values: list) -> tuple[float, float]:
    """Mean and half of its 95 % interval (normal, over pairs). Lost (None) counts as 0; infinities
    and NaN are left out. NaN if nothing remains."""
    values = np.array([value or 0 for value in values if value is None or math.isfinite(value)])
    half = 1.96 * values.std(ddof=1) / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return (values.mean() if len(values) else math.nan), half


def print_table(table: dict[str, list[dict]], columns: dict[str, int]):
    """Print a table {row: one {score: value} for each pair}; {} is a pair that failed. `columns` is
    {score: digits}. Notes at the end of a row count the pairs that its means leave out."""
    names = {name for scores in table.values() for values in scores for name in values}
    columns = {name: digits for name, digits in columns.items() if name in names}
    width = max(map(len, table)) + 1
    heads = [name.rpartition(" ") for name in columns]
    for line in (0, 2):
        tell(" " * width + "".join(f"{head[line]:>12s}" for head in heads))
    for row, scores in table.items():
        if not any(scores):
            tell(f"{row:{width}s}  failed, see above")
            continue
        cells = [cell(name, column(scores, name), digits) for name, digits in columns.items()]
        numbers = "".join(f"{text:>12s}" for text, _ in cells)
        notes = "; ".join(note for _, note in cells if note)
        tell(f"{row:{width}s}{numbers}  {notes}")


def column(scores: list[dict], name: str) -> list:
    """One score of each pair: finite, infinite where the secret is lossless, None where it is lost,
    NaN where there is no such score."""
    return [values.get(name, math.nan) for values in scores]


def cell(name: str, values: list, digits: int) -> tuple[str, str]:
    """A mean over pairs as text, and a note on the pairs that it leaves out."""
    mean, half = mean_interval(values)
    without = sum(x is not None and math.isnan(x) for x in values)
    counts = {"lossless": values.count(math.inf), "lost": values.count(None), "without": without}
    for word, count in counts.items():
        if count == len(values):
            return "-" if word == "without" else word, ""
    note = ", ".join(f"{count} {word}" for word, count in counts.items() if count)
    text = "-" if math.isnan(mean) else f"{mean:.{digits}f}"
    text += "" if math.isnan(half) or name == "RTF" else f"±{half:.{digits}f}"
    return text, note and f"{name}: {note}"


def write_csv(path: str, tables: dict[str, dict[str, list[dict]]]):
    """Write tables, one number per line: its mean over pairs, half of the 95 % interval, and how
    many pairs are in the mean, lossless, and lost."""
    with replacing(path) as temporary, open(temporary, "w", newline="") as file:
        lines = csv.writer(file)
        lines.writerow("table row score mean interval pairs lossless lost".split())
        for table, rows in tables.items():
            for row, scores in rows.items():
                for name in dict.fromkeys(name for values in scores for name in values):
                    values = column(scores, name)
                    numbers = ["" if math.isnan(x) else f"{x:.6g}" for x in mean_interval(values)]
                    finite = sum(x is None or math.isfinite(x) for x in values)
                    lines.writerow([table, row, name, *numbers, finite, values.count(math.inf),
                                    values.count(None)])
