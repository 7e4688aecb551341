"""Detectors: features of a file's samples, classifiers of features, and networks: cover or stego?

    score = trained("quiet kernel", (covers, stegos), numbers, 16000, seed, steps)
    score(covers, others)   # [N], above 0 for what looks like a stego

Four groups of features look at a file:

    quiet   how neighbours in its first three differences follow each other, in its quietest frames
            (after the subtractive pixel adjacency matrix: Pevny, Bas and Fridrich, 2010)
    bits    counts of small samples and differences, of pairs of values, of bits in each plane, of
            repeats
    floor   how low the spectrum falls, by band
    places  how rough it is where a lattice has header and seal, and in few samples of a segment

Two classifiers take one group or more: an ensemble of Fisher's linear discriminants in random
subspaces (Kodovsky, Fridrich and Holub, 2012), and ridge regression with a Gaussian kernel. Two
small networks learn from the samples, and from their log spectrum.

Shapes: T samples, N files, D features, F frames, B batch. Samples are integer arrays [T],
1 LSB = 1.
"""

import random
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from files.container import DENSE
from lattice.cells import SEGMENT

LEAST = 1536  # samples that features need


def features(x: np.ndarray) -> dict[str, np.ndarray]:
    """Of samples [T], LEAST or more: {group: [D]}."""
    return {"quiet": quiet(x), "bits": bits(x), "floor": floor(x), "places": places(x)}


def quiet(x: np.ndarray) -> np.ndarray:
    """Shares of pairs of neighbours in the first, second and third differences, in steps of 1 and 4
    LSB and cut off at ±5 steps, in the quietest 5 % and 20 % of frames of 256 samples."""
    frames = x[:len(x) // 256 * 256].reshape(-1, 256)
    order, shares = np.diff(frames, axis=1).var(1).argsort(), []
    for share in (0.05, 0.2):
        difference = frames[np.sort(order[:max(2, int(share * len(frames)))])]
        for power in range(3):
            difference = np.diff(difference, axis=1)
            shares += [neighbours(np.rint(difference / (step << power)).astype(int).ravel())
                       for step in (1, 4)]
    return np.concatenate(shares)


def neighbours(x: np.ndarray, limit: int = 5) -> np.ndarray:
    """The square roots of the shares of all pairs of neighbours among integers [n], cut off at
    ±limit; a pair counts as its mirror images in time and sign do."""
    size = 2 * limit + 1
    x = x.clip(-limit, limit) + limit
    counts = np.bincount(x[:-1] * size + x[1:], minlength=size ** 2).reshape(size, size)
    counts = counts + counts.T
    counts = counts + counts[::-1, ::-1]
    row, column = np.triu_indices(size)
    once = row + column < size
    counts = counts[row[once], column[once]]
    return np.sqrt(counts / counts.sum())


def bits(x: np.ndarray) -> np.ndarray:
    """Statistics of small values and of the lowest bits of samples [T]."""
    values, difference = [], x
    for _ in range(5):  # samples and their differences: how many have a size of 0, 1, ...
        size = np.abs(difference)
        counts = [*(size == np.arange(16)[:, None]).mean(1),
                  *((size < 2 << i).mean() for i in range(8))]
        values += [np.log10(np.array(counts) + 1 / len(x))]
        difference = np.diff(difference)
    histogram = np.bincount(x.clip(-513, 512) + 513, minlength=1026)[1:-1].astype(float)
    for width in (2, 4, 8, 16):  # a chi-squared test of what lies in one cell, and half one off
        for shift in (0, width // 2):
            cells = np.roll(histogram, -shift).reshape(-1, width)
            mean = cells.mean(1, keepdims=True)
            square = ((cells - mean) ** 2 / mean.clip(1)).sum()
            values += [[np.log10(1e-3 + square / max(1, (mean > 0).sum() * (width - 1)))]]
    for plane in range(6):
        bit = x >> plane & 1
        values += [[bit.mean(), abs(bit.mean() - 0.5), (bit[1:] == bit[:-1]).mean(),
                    (bit[2:] == bit[:-2]).mean()]]
    for width in (3, 5, 6, 7, 9, 11, 13):
        shares = np.bincount(x % width, minlength=width) / len(x)
        values += [[np.log10(1e-6 + ((shares - 1 / width) ** 2).sum())]]
    runs = np.diff([-1, *np.flatnonzero(np.diff(x)), len(x) - 1]).astype(float)
    used = len(np.unique(x)) / (np.ptp(x) + 1)
    values += [np.log10([runs.max(), np.mean(runs ** 2), used])]
    return np.concatenate(values)


def floor(x: np.ndarray, size: int = 512) -> np.ndarray:
    """How low the log power of samples [T] falls, in 16 bands, in their single bins, in quarters of
    the spectrum; and in its upper half by how loud frames are."""
    window = np.hanning(size)
    frames = np.lib.stride_tricks.sliding_window_view(x.astype(float), size)[::size // 2]
    power = np.abs(np.fft.rfft(frames * window)[:, 1:]) ** 2 / (window ** 2).sum() + 0.01
    decibels = 10 * np.log10(power)  # [F, size / 2]

    def split(x, parts):
        return x.reshape(len(x), parts, -1)

    level = 10 * np.log10(split(power, 16).mean(2))
    values = [np.percentile(level, (0, 2, 5, 10, 20, 35, 50), 0),
              np.percentile(split(decibels, 16), (0.1, 1, 5, 20), (0, 2))]
    for quarter in np.moveaxis(split(decibels, 4), 1, 0):
        counts = np.histogram(quarter.clip(-20, 60), np.arange(-20.5, 62, 3))[0]
        values += [np.sqrt(counts / quarter.size)]
    flatness = split(decibels, 4).mean(2) - 10 * np.log10(split(power, 4).mean(2))
    values += [np.percentile(flatness, (5, 25, 50, 75, 95), 0)]
    for some in np.array_split(power.sum(1).argsort(), 5):
        values += [np.percentile(decibels[some, size // 4:], (1, 10, 50))]
    return np.concatenate([np.ravel(value) for value in values])


def places(x: np.ndarray) -> np.ndarray:
    """How rough samples [T] are, by the log of their third differences, at both ends, where a
    lattice has header and seal, against what follows there; and how far the smoothest and the
    roughest few samples of segments are from the others, by loudness."""
    rough = np.log2(1 + np.abs(np.diff(x, 3)))
    values = []
    for end, count in ((rough, DENSE.header_samples), (rough[::-1], DENSE.seal_samples)):
        first, *others = np.array_split(end[:3 * count], 3)
        for share in (0.25, 0.5, 0.75, 0.95):
            at, *after = (np.quantile(some, share) for some in (first, *others))
            values += [at, at - after[0], at - min(after)]
    segments = rough[DENSE.header_samples:]
    segments = segments[:len(segments) // SEGMENT * SEGMENT].reshape(-1, SEGMENT)
    for some in np.array_split(segments[segments.mean(1).argsort()], (2, len(segments) // 4)):
        if len(some):
            values += list(np.quantile(some, (0.01, 0.03, 0.97, 0.99), 1).mean(1) - some.mean())
        else:
            values += 4 * [0.0]
    return np.array(values)


# ---------------------------------------------------------------- detectors

class Files(NamedTuple):
    """Covers, or their stegos, by the numbers of their pairs."""

    samples: dict  # {number: [T]}
    features: list  # [{group: [D]}]

    def table(self, numbers, groups) -> np.ndarray:  # [N, D]
        return np.stack([np.concatenate([self.features[i][group] for group in groups])
                         for i in numbers])


def scaled(covers: np.ndarray, stegos: np.ndarray):
    """A function that brings features [N, D] to a mean of 0 and a deviation of 1 on these, within
    ±4."""
    both = np.concatenate([covers, stegos])
    mean, deviation = both.mean(0), both.std(0)
    there = deviation > 1e-8
    return lambda x: ((x - mean) * there / np.where(there, deviation, 1)).clip(-4, 4)


def fisher(covers, stegos, seed, dimensions=200, learners=60, ridge=0.01):
    """An ensemble of linear discriminants, each of a random choice of features [N, D] and of
    pairs, drawn with repeats: a function that gives scores [N], above 0 for stegos."""
    rng, size = np.random.default_rng(seed), covers.shape[1]
    direction, offset = np.zeros(size), 0
    for _ in range(learners):
        some = rng.choice(size, min(dimensions, size), replace=False)
        drawn = rng.integers(0, len(covers), len(covers))[:, None]
        before, after = covers[drawn, some], stegos[drawn, some]
        difference, middle = after.mean(0) - before.mean(0), (after.mean(0) + before.mean(0)) / 2
        within = np.concatenate([before - before.mean(0), after - after.mean(0)])
        scatter = within.T @ within / len(within) + ridge * np.eye(len(some))
        normal = np.linalg.solve(scatter, difference)
        normal /= np.sqrt(normal @ scatter @ normal) + 1e-12
        direction[some] += normal
        offset -= normal @ middle
    return lambda x: (x @ direction + offset) / learners


def kernel(covers, stegos, seed, ridge=1e-4):
    """Ridge regression of ±1 with a Gaussian kernel, as wide as the median distance: the same."""
    x = np.concatenate([covers, stegos])
    sign = np.repeat([-1.0, 1.0], len(covers))

    def distance(a):
        return ((a ** 2).sum(1)[:, None] + (x ** 2).sum(1) - 2 * a @ x.T).clip(0)

    width = np.median(distance(x)) + 1e-12
    weights = np.linalg.solve(np.exp(-distance(x) / width) + ridge * len(x) * np.eye(len(x)), sign)
    return lambda a: np.exp(-distance(a) / width) @ weights


def convolutions(kind, widths: list[int], kernel: int, stride: int, padding: int) -> nn.Sequential:
    """Layers of nn.Conv1d or nn.Conv2d, from one width to the next, normalised over batches."""
    norm = {nn.Conv1d: nn.BatchNorm1d, nn.Conv2d: nn.BatchNorm2d}[kind]
    return nn.Sequential(*(
        layer for inputs, outputs in zip(widths, widths[1:]) for layer in (
            kind(inputs, outputs, kernel, stride, padding, bias=False), norm(outputs), nn.ReLU())))


class Waveform(nn.Module):
    """Samples [B, T] in LSB -> logits [B]: fixed first, second and third differences, cut off at
    three levels (after the rich models' residuals: Fridrich and Kodovsky, 2012), then a small CNN;
    26 k parameters."""

    def __init__(self):
        super().__init__()
        filters = [[0, 0, 1, -1], [0, 1, -2, 1], [1, -3, 3, -1]]
        self.register_buffer("filters", torch.tensor(filters, dtype=torch.float32)[:, None])
        self.layers = convolutions(nn.Conv1d, [9, 16, 32, 32, 48], 8, stride=4, padding=4)
        self.last = nn.Linear(48, 1)

    def forward(self, x: Tensor) -> Tensor:
        residual = functional.conv1d(x[:, None], self.filters)
        x = torch.cat([(residual / level).clamp(-1, 1) for level in (8, 64, 512)], 1)
        return self.last(self.layers(x).mean(2))[:, 0]


class Spectral(nn.Module):
    """The same from the log power of 128 bands in frames of 256 samples; 21 k parameters."""

    def __init__(self):
        super().__init__()
        self.register_buffer("window", torch.hann_window(256))
        self.layers = convolutions(nn.Conv2d, [1, 16, 24, 32, 32], 3, stride=2, padding=1)
        self.last = nn.Linear(32 * 8, 1)  # 8 bands are left

    def forward(self, x: Tensor) -> Tensor:
        spectrum = torch.stft(x, 256, window=self.window, return_complex=True)[:, 1:]
        power = (spectrum.abs().square() / 96 + 0.01).log10()
        return self.last(self.layers(power[:, None]).mean(3).flatten(1))[:, 0]


def network(kind, files, numbers, rate, seed, steps, batch=16):
    """Train one on `batch` crops of 1 s of covers and the same of their stegos at a time: a
    function that gives the scores [N] of files [T], means over whole seconds."""
    torch.manual_seed(seed)
    rng = random.Random(seed)
    model = kind()
    optimiser = torch.optim.AdamW(model.parameters(), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 5e-3, total_steps=steps)
    labels = torch.arange(2.).repeat(batch)  # cover, stego, cover, ...
    for _ in range(steps):
        crops = []
        for i in rng.choices(numbers, k=batch):
            start = rng.randrange(len(files[0].samples[i]) - rate + 1)
            crops += [some.samples[i][start:start + rate] for some in files]
        logits = model(torch.tensor(np.stack(crops), dtype=torch.float32))
        loss = functional.binary_cross_entropy_with_logits(logits, labels)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    model.eval()

    @torch.no_grad()
    def score(x):
        seconds = x[:len(x) // rate * rate].reshape(-1, rate)
        return model(torch.tensor(seconds, dtype=torch.float32)).mean().item()

    return lambda recordings: np.array([score(x) for x in recordings])


LOOKS = {"quiet": ("quiet",), "quiet, bits": ("quiet", "bits"),
         "all": ("quiet", "bits", "floor", "places")}
DETECTORS = {f"{name} {kind.__name__}": (kind, groups)
             for kind in (fisher, kernel) for name, groups in LOOKS.items()}
DETECTORS |= {f"{kind.__name__.lower()} network": (kind, None) for kind in (Waveform, Spectral)}


def trained(name: str, files: tuple[Files, Files], numbers: list, rate: int, seed: int, steps: int):
    """The detector of this name, trained on pairs of these numbers, of covers and stegos: a
    function that gives the scores [N] of Files and some numbers."""
    kind, groups = DETECTORS[name]
    if groups is None:
        score = network(kind, files, numbers, rate, seed, steps)
        return lambda some, numbers: score([some.samples[i] for i in numbers])
    tables = [some.table(numbers, groups) for some in files]
    scale = scaled(*tables)
    score = kind(*map(scale, tables), seed)
    return lambda some, numbers: score(scale(some.table(numbers, groups)))
