"""Can a detector tell stegos from covers?

    methods = methods_to_detect(models)
    tables = steganalysis(methods, models, train_pairs, test_pairs, 16000, "cache")

The observer has the program, its models and speech to hide in, but not the key. It hides secrets in
covers, learns from these pairs what a stego looks like, and judges files of other voices: a verdict
for each whole file of 3 to 5 s, by its samples alone. Half of the files are covers, the others
stegos of other covers.

All detectors of detectors.py are trained on four fifths of the pairs; the one that is best on the
rest is trained anew on all of them, and tested. The networks are, for one seed only.

Shapes: T samples. Samples are integer arrays [T], 1 LSB = 1.
"""

import hashlib
import math
import os
import random
import sys
import tempfile
from collections import Counter

import numpy as np
from tqdm import tqdm

import stego
import wavinwav
from evaluation import baselines
from evaluation.baselines import Method, lsb, opus, ours, plus_minus
from evaluation.detectors import DETECTORS, LEAST, Files, features, trained
from evaluation.scores import mean_interval, print_table, samples, summary, write_pair
from files import container, sound
from files import parts as hiding
from files.command import StegoError, tell
from files.parts import in_order
from lattice import cells, coder, lattice, quantiser
from lattice.lattice import Lattice

KEY = "a key that the observer has not"
SEEDS = 3
LEAKED = 8, 32, 128  # pairs for training, besides all
COLUMNS = {"stego SNR": 1, "accuracy": 3, "AUC": 3, **{f"with {n} pairs": 3 for n in LEAKED}}


def methods_to_detect(models: dict, names: list[str] = ()) -> list[Method]:
    """Those of these names, or all: models, which hide with a key; the others; and two controls, ±1
    everywhere and nothing. Raises StegoError for a name that is none of theirs."""
    methods = []
    for label, model in models.items():
        if isinstance(model, Lattice):
            methods += [ours(model, label, snr, key=KEY) for snr in (52, 58, 64, 70)]
            methods += [ours(model, label, 58, masking=x, key=KEY) for x in (0, 0.25)]
            methods += [ours(model, label, snr, masking=1, key=KEY) for snr in (52, 58, 64)]
        else:
            methods += [ours(model, label, key=KEY),
                        ours(model, label)._replace(name=f"{label}, no key")]
    methods += [lsb(1), lsb(4), opus(32), plus_minus(1), plus_minus(0)]
    known = {method.name: method for method in methods}
    for name in names:
        if name not in known:
            raise StegoError(f"there is no method {name!r} to detect; give some of: "
                             + "; ".join(known))
    return [known[name] for name in names or known]


def steganalysis(methods: list[Method], models: dict, train_pairs: list, test_pairs: list,
                 rate: int, seed: int, cache: str, steps: int) -> dict[str, list[dict]]:
    """Summaries {"steganalysis": accuracy and AUC of the best detector, "detectors": the AUC of
    all}, a row a method, a value a seed. Pairs are (cover, secret) signals; stegos are kept in the
    folder `cache`, and what is there is not hidden again. `steps` are the networks', of the first
    seed; 0 leaves them out. A method that can hide too few of the pairs has no values. Raises
    StegoError for pairs that are too short."""
    pairs = [*train_pairs, *test_pairs]
    if min(len(cover) for cover, _ in pairs) < LEAST:
        raise StegoError(f"detectors need files of {LEAST} samples; give a higher --rate")
    known = [version(method, models) for method in methods]

    def look(number):
        cover = sound.to_pcm(pairs[number][0]).astype(np.int64)
        with tempfile.TemporaryDirectory() as folder:
            paths = write_pair(folder, *pairs[number], rate)
            stegos = [kept_stego(*each, paths, cache) for each in zip(methods, known)]
        return features(cover), [path and (path, features(samples(path)[0])) for path in stegos]

    covers, stegos = zip(*in_order(look, range(len(pairs)), "pair"))

    def work(index):
        there = [number for number in range(len(pairs)) if stegos[number][index]]
        train = [number for number in there if number < len(train_pairs)]
        test = there[len(train):]
        if len(train) < 5 or len(test) < 2:
            return math.nan, []
        before = {i: sound.to_pcm(pairs[i][0]).astype(np.int64) for i in there}
        after = {i: samples(stegos[i][index][0])[0] for i in there}
        files = (Files(before, covers), Files(after, [x[index] and x[index][1] for x in stegos]))
        results = [detect(files, train, test, rate, seed + i, 0 if i else steps)
                   for i in range(SEEDS)]
        snrs = [sound.snr_of(sound.from_pcm(before[i]), sound.from_pcm(after[i])) for i in test]
        return math.inf if math.inf in snrs else mean_interval(snrs)[0], results

    tables = {"steganalysis": [], "detectors": []}
    for method, (snr, results) in zip(methods, in_order(work, range(len(methods)), "detector")):
        names, scores, areas = zip(*results) if results else ([], [{}], [{}])
        chosen = "".join(f": {name}" for name, _ in Counter(names).most_common(1))
        scores = [{"stego SNR": snr} | each if each else each for each in scores]
        tables["steganalysis"].append(summary(method.name + chosen, method.family, scores))
        tables["detectors"].append(summary(method.name, method.family, areas))
    return tables


def print_detections(tables: dict[str, list[dict]]):
    """What `steganalysis` returned."""
    tell("files of other voices, told apart; 0.5 is guessing; mean ± half of the 95 % interval "
         f"over {SEEDS} seeds", sys.stdout)
    print_table(tables["steganalysis"], COLUMNS)
    tell("", sys.stdout)
    tell("AUC of each detector, trained on four fifths of the pairs", sys.stdout)
    print_table(tables["detectors"], dict.fromkeys(DETECTORS, 3))


# ---------------------------------------------------------------- stegos that are kept

def version(method: Method, models: dict) -> bytes:
    """What a method's stegos depend on, besides covers and secrets: its name, which tells its
    parameters; its model; the code."""
    digest = hashlib.sha256(method.name.encode())
    if method.family in models:
        state = models[method.family].state_dict()
        digest.update(b"%d" % container.fingerprint(state.values()))
    for module in (baselines, cells, coder, container, hiding, lattice, quantiser, sound, stego,
                   wavinwav):
        with open(module.__file__, "rb") as file:
            digest.update(file.read())
    return digest.digest()


def kept_stego(method: Method, known: bytes, paths: dict[str, str], cache: str) -> str | None:
    """The path of a stego in the cache, hidden now if it is not there; None where the method cannot
    hide this pair. `known` is the method's `version`."""
    digest = hashlib.sha256(known)
    for name in ("cover", "secret"):
        with open(paths[name], "rb") as file:
            digest.update(file.read())
    path = os.path.join(cache, f"{digest.hexdigest()[:32]}.flac")
    if not os.path.exists(path):
        try:
            method.hide(paths["cover"], paths["secret"], path)
        except StegoError as error:
            tqdm.write(f"{method.name}: {error}", file=sys.stderr)
            return None
    return path


# ---------------------------------------------------------------- the best of all detectors

def detect(files: tuple[Files, Files], train: list, test: list, rate: int, seed: int,
           steps: int) -> tuple[str, dict, dict]:
    """The detector that is best on the last fifth of training pairs, in a random order; its
    accuracy and AUC, trained on all of them and on fewer; and the AUC of each detector, trained on
    four fifths. `files` are covers and stegos; the test is on covers of a random half of test
    pairs and stegos of the other, then the other way round: means of both."""
    rng = random.Random(seed)
    train, test = (rng.sample(numbers, len(numbers)) for numbers in (train, test))
    first, last = train[:len(train) * 4 // 5], train[len(train) * 4 // 5:]
    halves = test[:len(test) // 2], test[len(test) // 2:]
    own, areas = {}, {}

    def tested(score):  # accuracy and AUC
        ways = [list(map(score, files, way)) for way in (halves, halves[::-1])]
        correct = [((covers < 0).mean() + (stegos >= 0).mean()) / 2 for covers, stegos in ways]
        return np.mean(correct), np.mean([auc(*way) for way in ways])

    for name, (_, groups) in DETECTORS.items():
        if not (groups or steps):
            continue
        score = trained(name, files, first, rate, seed, steps)
        own[name] = auc(*(score(some, last) for some in files))
        areas[name] = tested(score)[1]
    best = max(own, key=own.get)
    accuracies = {}
    for count in (*(n for n in LEAKED if n < len(train)), len(train)):
        score = trained(best, files, train[:count], rate, seed, steps)
        accuracies[count], area = tested(score)
    scores = {"accuracy": accuracies.pop(len(train)), "AUC": area}
    return best, scores | {f"with {n} pairs": x for n, x in accuracies.items()}, areas


def auc(negative: np.ndarray, positive: np.ndarray) -> float:
    """Area under the ROC curve of two score arrays, exact: the chance that a positive ranks above a
    negative, ties half."""
    order = np.sort(negative)
    below = np.searchsorted(order, positive, "left")
    up_to = np.searchsorted(order, positive, "right")
    return (below + up_to).mean() / 2 / len(negative)
