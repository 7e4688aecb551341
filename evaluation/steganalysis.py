"""Steganalysis: can a detector distinguish stegos from covers?

    systems = systems_to_detect(models)
    print_table(steganalysis(systems, train_pairs, test_pairs, 16000), COLUMNS)

The attacker has the program, its models and speech, but not the key. They hide secrets in covers,
train a detector on these pairs, and classify recordings of other speakers: one decision for a whole
file of 3 to 5 s, from its samples alone, without the cover that a stego was made of. The detector
is ridge regression with a Gaussian kernel on features of a file.

Shapes: T samples, N files, D features, F frames. Samples are integer arrays [T], 1 LSB = 1.
"""

import sys
import tempfile

import numpy as np
from tqdm import tqdm

from evaluation.baselines import System, is_lattice, lsb, opus, our_system, plus_minus
from evaluation.scores import samples, signal, write_pair
from files import sound
from files.command import StegoError
from files.processes import in_order

KEY = "a key unknown to the detector"
COLUMNS = {"stego SNR": 1, "accuracy": 3, "AUC": 3}
MIN_SAMPLES = 1536  # that the features need


def systems_to_detect(models: dict, names: list[str] = ()) -> list[System]:
    """The systems with these names, or all: models, which hide with a key; the baselines; and two
    controls, ±1 everywhere and nothing. Raises StegoError for an unknown name."""
    systems = []
    for label, model in models.items():
        if is_lattice(model):
            systems += [our_system(model, label, snr, key=KEY) for snr in (52, 58, 64, 70)]
            systems += [our_system(model, label, 58, masking=x, key=KEY) for x in (0, 0.25)]
            systems += [our_system(model, label, snr, masking=1, key=KEY) for snr in (52, 58, 64)]
        else:
            systems += [our_system(model, label, key=KEY),
                        our_system(model, label)._replace(name=f"{label}, no key")]
    systems += [lsb(1), lsb(4), opus(32), plus_minus(1), plus_minus(0)]
    known = {system.name: system for system in systems}
    for name in names:
        if name not in known:
            raise StegoError(f"{name!r} is unknown to --steganalysis; give some of: "
                             + "; ".join(known))
    return [known[name] for name in names or known]


def steganalysis(systems: list[System], train_pairs: list, test_pairs: list, rate: int,
                 folder: str | None = None) -> dict[str, list[dict]]:
    """How well detectors do: a table with a row for each system, one {score: value} for each test
    pair, {} if the system hides too few of the pairs. The accuracy of a pair is that of the two
    decisions on its cover and its stego; its AUC is the share of the other pairs' covers that look
    less like stegos than its stego, whose mean over pairs is the area under the ROC curve. Pairs
    are (cover, secret) signals; temporary files are written in `folder`. Raises StegoError for
    pairs that are too short."""
    pairs = [*train_pairs, *test_pairs]
    if min(len(cover) for cover, _ in pairs) < MIN_SAMPLES:
        raise StegoError(f"detectors need files of {MIN_SAMPLES} samples; give a higher --rate")

    def hide_all(number):
        """Features of a cover; features and SNR of its stegos, or None."""
        with tempfile.TemporaryDirectory(dir=folder) as temporary:
            paths = write_pair(temporary, *pairs[number], rate)
            cover, stegos = signal(paths["cover"]), []
            for system in systems:
                try:
                    system.hide(paths["cover"], paths["secret"], paths["stego"])
                    snr = sound.snr_of(cover, signal(paths["stego"]))
                    stegos.append((features(samples(paths["stego"])[0]), snr))
                except StegoError as error:
                    tqdm.write(f"{system.name}: {error}", file=sys.stderr)
                    stegos.append(None)
            return features(samples(paths["cover"])[0]), stegos

    covers, stegos = zip(*in_order(hide_all, range(len(pairs)), "pair"))
    table = {}
    for system, column in zip(systems, zip(*stegos)):
        hidden = [number for number, found in enumerate(column) if found]
        train = [number for number in hidden if number < len(train_pairs)]
        test = [number for number in hidden if number >= len(train_pairs)]
        if len(train) < 5 or len(test) < 2:
            table[system.name] = [{}]
            continue
        score = detector(np.stack([covers[number] for number in train]),
                         np.stack([column[number][0] for number in train]))
        negative = score(np.stack([covers[number] for number in test]))
        positive = score(np.stack([column[number][0] for number in test]))
        table[system.name] = [
            {"stego SNR": column[number][1],
             "accuracy": np.mean([negative[i] < 0, positive[i] >= 0]),
             "AUC": share_below(positive[i], np.delete(negative, i))}
            for i, number in enumerate(test)]
    return table


def share_below(value: float, others: np.ndarray) -> float:
    """The share of others that lie below a value; equal ones count half."""
    return ((others < value).mean() + (others <= value).mean()) / 2


def detector(covers: np.ndarray, stegos: np.ndarray, ridge: float = 1e-4):
    """Train on features [N, D] of pairs: ridge regression of ±1 with a Gaussian kernel as wide as
    the median distance. Returns a function that scores features [N, D] of files: [N], above 0 for
    stegos."""
    both = np.concatenate([covers, stegos])
    mean, deviation = both.mean(0), both.std(0)
    varies = deviation > 1e-8

    def scaled(files):  # to mean 0 and deviation 1 on the training files, within ±4
        return ((files - mean) * varies / np.where(varies, deviation, 1)).clip(-4, 4)

    def distance(files):
        return ((files ** 2).sum(1)[:, None] + (x ** 2).sum(1) - 2 * files @ x.T).clip(0)

    x, sign = scaled(both), np.repeat([-1.0, 1.0], len(covers))
    width = np.median(distance(x)) + 1e-12
    weights = np.linalg.solve(np.exp(-distance(x) / width) + ridge * len(x) * np.eye(len(x)), sign)
    return lambda files: np.exp(-distance(scaled(files)) / width) @ weights


# ---------------------------------------------------------------- features

def features(x: np.ndarray) -> np.ndarray:
    """Features [D] of samples [T], at least MIN_SAMPLES."""
    return np.concatenate([quiet(x), bits(x), floor(x)])


def quiet(x: np.ndarray) -> np.ndarray:
    """Shares of pairs of neighbours in the first, second and third differences, in steps of 1 and 4
    LSB clipped to ±5 steps, in the quietest 5 % and 20 % of frames of 256 samples (after the
    subtractive pixel adjacency matrix: Pevny, Bas and Fridrich, 2010)."""
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
    """Square roots of the shares of all pairs of neighbours among integers [n] clipped to ±limit.
    Pairs that mirror each other in time or sign are counted together."""
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
    for _ in range(5):  # samples and their differences: shares of magnitude 0, 1, ...
        size = np.abs(difference)
        counts = [*(size == np.arange(16)[:, None]).mean(1),
                  *((size < 2 << i).mean() for i in range(8))]
        values += [np.log10(np.array(counts) + 1 / len(x))]
        difference = np.diff(difference)
    for plane in range(6):
        bit = x >> plane & 1
        values += [[bit.mean(), abs(bit.mean() - 0.5), (bit[1:] == bit[:-1]).mean(),
                    (bit[2:] == bit[:-2]).mean()]]
    for width in (3, 5, 6, 7, 9, 11, 13):
        shares = np.bincount(x % width, minlength=width) / len(x)
        values += [[np.log10(1e-6 + ((shares - 1 / width) ** 2).sum())]]
    return np.concatenate(values)


def floor(x: np.ndarray, size: int = 512) -> np.ndarray:
    """The log power of samples [T]: low percentiles of 16 bands, histograms and flatness of the
    spectrum's quarters, and low percentiles of its upper half by the loudness of frames."""
    window = np.hanning(size)
    frames = np.lib.stride_tricks.sliding_window_view(x.astype(float), size)[::size // 2]
    power = np.abs(np.fft.rfft(frames * window)[:, 1:]) ** 2 / (window ** 2).sum() + 0.01
    decibels = 10 * np.log10(power)  # [F, size / 2]

    def split(x, parts):
        return x.reshape(len(x), parts, -1)

    level = 10 * np.log10(split(power, 16).mean(2))
    values = [np.percentile(level, (0, 2, 5, 10, 20, 35, 50), 0)]
    for quarter in np.moveaxis(split(decibels, 4), 1, 0):
        counts = np.histogram(quarter.clip(-20, 60), np.arange(-20.5, 62, 3))[0]
        values += [np.sqrt(counts / quarter.size)]
    flatness = split(decibels, 4).mean(2) - 10 * np.log10(split(power, 4).mean(2))
    values += [np.percentile(flatness, (5, 25, 50, 75, 95), 0)]
    for some in np.array_split(power.sum(1).argsort(), 5):
        values += [np.percentile(decibels[some, size // 4:], (1, 10, 50))]
    return np.concatenate([np.ravel(value) for value in values])
