"""Steganalysis: can a detector distinguish stegos from covers?

    systems = systems_to_detect(models)
    print_table(steganalysis(systems, train_pairs, test_pairs, 16000, seed=0), COLUMNS)

The attacker has the program, its models and speech, but not the key. They hide secrets in covers,
train detectors on these pairs, and classify recordings of other speakers: one decision for a whole
file of 3 to 5 s, from its samples alone. Half of the files are covers, the others stegos of other
covers. Of two classifiers the one that does better on a fifth of the training pairs is trained
again on all of them, and tested: an ensemble of Fisher's linear discriminants in random subspaces
(Kodovsky, Fridrich and Holub, 2012), and ridge regression with a Gaussian kernel.

Shapes: T samples, N files, D features, F frames. Samples are integer arrays [T], 1 LSB = 1.
"""

import math
import random
import sys
import tempfile
from collections import Counter

import numpy as np
from tqdm import tqdm

from evaluation.baselines import System, is_lattice, lsb, opus, our_system, plus_minus
from evaluation.scores import mean_interval, samples, signal, write_pair
from files import sound
from files.command import StegoError
from files.container import DENSE
from files.processes import in_order

KEY = "a key unknown to the detector"
SEEDS = 3
COLUMNS = {"stego SNR": 1, "accuracy": 3, "AUC": 3}
MIN_SAMPLES = 1536  # that the features need
SEGMENT = 512  # samples of a lattice's stego that share a noise level


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


def steganalysis(systems: list[System], train_pairs: list, test_pairs: list, rate: int, seed: int,
                 folder: str | None = None) -> dict[str, list[dict]]:
    """Accuracy and AUC of detectors: a table with a row for each system, one {score: value} for
    each of SEEDS seeds, {} if the system hides too few of the pairs. Pairs are (cover, secret)
    signals; temporary files are written in `folder`. Raises StegoError for pairs that are too
    short."""
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

    def detect_one(index):
        hidden = {number: row[index] for number, row in enumerate(stegos) if row[index]}
        train = [number for number in hidden if number < len(train_pairs)]
        test = [number for number in hidden if number >= len(train_pairs)]
        if len(train) < 5 or len(test) < 2:
            return systems[index].name, [{}]
        files = covers, {number: values for number, (values, _) in hidden.items()}
        names, scores = zip(*(detect(files, train, test, seed + i) for i in range(SEEDS)))
        snrs = [hidden[number][1] for number in test]
        snr = math.inf if math.inf in snrs else mean_interval(snrs)[0]
        return (f"{systems[index].name}: {Counter(names).most_common(1)[0][0]}",
                [{"stego SNR": snr} | each for each in scores])

    return dict(in_order(detect_one, range(len(systems)), "detector"))


def detect(files: tuple, train: list, test: list, seed: int) -> tuple[str, dict]:
    """The name of the classifier that is best on the last fifth of the training pairs, and its
    scores on the test pairs, trained on all training pairs. `files` are features [D] of covers and
    of stegos by pair number. The test uses covers of a random half of the test pairs and stegos of
    the other, then the other way round, and takes the means."""
    rng = random.Random(seed)
    train, test = (rng.sample(numbers, len(numbers)) for numbers in (train, test))
    fifth, half = len(train) * 4 // 5, len(test) // 2

    def pick(kind, numbers):  # [N, D]
        return np.stack([files[kind][number] for number in numbers])

    def scores_of(classifier, learned, covers, stegos):
        score = trained(classifier, pick(0, learned), pick(1, learned), seed)
        negative, positive = score(pick(0, covers)), score(pick(1, stegos))
        return ((negative < 0).mean() + (positive >= 0).mean()) / 2, auc(negative, positive)

    best = max((fisher, kernel), key=lambda classifier: scores_of(
        classifier, train[:fifth], train[fifth:], train[fifth:])[1])
    accuracy, area = np.mean([scores_of(best, train, test[:half], test[half:]),
                              scores_of(best, train, test[half:], test[:half])], 0)
    return best.__name__, {"accuracy": accuracy, "AUC": area}


def auc(negative: np.ndarray, positive: np.ndarray) -> float:
    """Exact area under the ROC curve of two score arrays; ties count half."""
    order = np.sort(negative)
    below = np.searchsorted(order, positive, "left")
    up_to = np.searchsorted(order, positive, "right")
    return (below + up_to).mean() / 2 / len(negative)


# ---------------------------------------------------------------- classifiers

def trained(classifier, covers: np.ndarray, stegos: np.ndarray, seed: int):
    """Train a classifier on features [N, D] of pairs. Returns a function that scores features
    [N, D] of files: [N], above 0 for stegos."""
    both = np.concatenate([covers, stegos])
    mean, deviation = both.mean(0), both.std(0)
    varies = deviation > 1e-8

    def scaled(x):  # to mean 0 and deviation 1 on the training files, within ±4
        return ((x - mean) * varies / np.where(varies, deviation, 1)).clip(-4, 4)

    score = classifier(scaled(covers), scaled(stegos), seed)
    return lambda files: score(scaled(files))


def fisher(covers, stegos, seed, dimensions=200, learners=60, ridge=0.01):
    """An ensemble of linear discriminants, each of randomly chosen features of [N, D] and of pairs
    drawn with replacement. Returns a function that scores files: [N], above 0 for stegos."""
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
    """Ridge regression of ±1 with a Gaussian kernel as wide as the median distance. Returns a
    function as `fisher` does."""
    x = np.concatenate([covers, stegos])
    sign = np.repeat([-1.0, 1.0], len(covers))

    def distance(a):
        return ((a ** 2).sum(1)[:, None] + (x ** 2).sum(1) - 2 * a @ x.T).clip(0)

    width = np.median(distance(x)) + 1e-12
    weights = np.linalg.solve(np.exp(-distance(x) / width) + ridge * len(x) * np.eye(len(x)), sign)
    return lambda a: np.exp(-distance(a) / width) @ weights


# ---------------------------------------------------------------- features

def features(x: np.ndarray) -> np.ndarray:
    """Features [D] of samples [T], at least MIN_SAMPLES."""
    return np.concatenate([quiet(x), bits(x), floor(x), places(x)])


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
    histogram = np.bincount(x.clip(-513, 512) + 513, minlength=1026)[1:-1].astype(float)
    for width in (2, 4, 8, 16):  # chi-squared test within cells, and cells shifted by half
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
    """Low percentiles of the log power of samples [T]: of 16 bands, of their single bins, of
    quarters of the spectrum, and of its upper half by the loudness of frames."""
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
    """Roughness of samples [T] (log magnitude of third differences): at both ends, where a lattice
    puts header and seal, compared with the samples next to them; and of the smoothest and roughest
    few samples of a segment compared with its mean, by loudness."""
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
