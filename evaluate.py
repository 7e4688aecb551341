"""Score methods of hiding speech on files: hide, write 16-bit WAV, read back, reveal, compare.

    python evaluate.py --data_dir DIR                      # 64 random pairs of 3 to 5 s: a table
    python evaluate.py --cover A --secret B --plot P.png   # your two files, and their spectrograms
    python evaluate.py --data_dir DIR --rate 48000 --csv T.csv --json T.json --curve C.png
    python evaluate.py --data_dir DIR --attacks            # what is left after the stego is changed
    python evaluate.py --data_dir DIR --steganalysis DIR2  # detectors, trained on DIR2's voices
    python evaluate.py --page docs/listen                  # a page to listen to, of the examples

Folders are searched as train.py does. Scores are in `scores.py`, the methods in `baselines.py`:
ours, LSB replacement, the frequency chop, Opus in the low bits, and what no method can pass.
Extras, for PESQ, STOI and pictures: pip install -r requirements-eval.txt

Shapes: T samples. Signals are float tensors [T] in [-1, 1).
"""

import argparse
import contextlib
import csv
import importlib.util
import json
import math
import os
import random
import sys
import tempfile
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from evaluation import pictures
from evaluation.attacks import ATTACKS, attack_pair
from evaluation.baselines import (
    HERE,
    LATTICE_SNRS,
    SHIPPED,
    all_methods,
    bound,
    load_models,
    lsb,
    opus,
    ours,
)
from evaluation.page import write_page
from evaluation.scores import (
    COLUMNS,
    mean_interval,
    need,
    print_table,
    score_pair,
    signal,
    summary,
    write_pair,
)
from evaluation.steganalysis import methods_to_detect, print_detections, steganalysis
from files import sound
from files.checkpoint import replacing, temporary_name
from files.command import (
    Parser,
    StegoError,
    interrupt_on_signals,
    mistakes_in_one_line,
    say,
    settle_streams,
    tell,
)
from files.parts import in_order
from files.resample import resample
from training.data import SILENCE, find_audio, read_crop

EXAMPLES = [os.path.join(HERE, "examples", f"{name}.wav") for name in ("cover", "secret")]


def evaluate(args, folder: str):
    """All that the flags of `main` ask for, but the page; `folder` is for temporary files."""
    pairs, rate = open_pairs(args)
    say(f"pairs: {len(pairs)}, at {rate} Hz, scored on 16-bit files; "
        "mean ± half of the 95 % interval")
    models = load_models(args.model)
    methods = all_methods(models, args.snr)
    defaults = {label: ours(model, label) for label, model in models.items()}
    if args.plot:
        paths = write_pair(folder, *pairs[0], rate)
        pictures.plot_pair(args.plot, next(iter(defaults.values())), paths)
    curve_snrs = range(16, 73, 4) if args.curve else ()
    bound_snrs = sorted({*args.snr, *curve_snrs})

    def work(number):
        """Of one pair: each method's scores, the bound at each stego SNR, each model's attacks."""
        paths = write_pair(tempfile.mkdtemp(dir=folder), *pairs[number], rate)
        cover, secret = signal(paths["cover"]), signal(paths["secret"])
        rows = []
        for method in methods:
            torch.manual_seed(args.seed)
            row = score_pair(method, paths, not args.no_perceptual)
            if row:
                highest = bound(cover, secret, row["stego SNR"])
                row["below bound"] = highest - row["secret SNR"]
            rows.append(row)
        bounds = [{"stego SNR": snr, "secret SNR": bound(cover, secret, snr)}
                  for snr in bound_snrs]
        attacked = [attack_pair(model, defaults[label], paths, args.seed + 1000 * number)
                    for label, model in models.items() if args.attacks]
        return rows, bounds, attacked

    rows, bounds, attacked = zip(*in_order(work, range(len(pairs)), "pair"))
    bounds = dict(zip(bound_snrs, zip(*bounds)))
    summaries = [summary(method.name, method.family, scores)
                 for method, scores in zip(methods, zip(*rows))]
    summaries += [summary(f"bound, {snr:g} dB", "bound", bounds[snr]) for snr in args.snr]
    tables = {"methods": summaries}
    print_table(summaries, COLUMNS)
    if args.attacks:
        tables["attacks"] = [summary(label, label, scores)
                             for label, scores in zip(models, zip(*attacked))]
        tell("", sys.stdout)
        tell("secret SNR in dB after the stego is changed; "
             "lost, where nothing can be revealed, counts as 0 dB", sys.stdout)
        print_table(tables["attacks"], dict.fromkeys(ATTACKS, 1))
    if args.curve:
        curve = [(snr, mean_interval([row["secret SNR"] for row in bounds[snr]])[0])
                 for snr in bounds]
        pictures.plot_curve(args.curve, summaries, curve)
    write_tables(args, tables, rate)


def detect_stegos(args, folder: str):
    """The tables of `steganalysis`; `folder` is for stegos that are not kept."""
    directory, *names = args.steganalysis
    models = load_models(args.model or SHIPPED[:2])
    methods = methods_to_detect(models, names)
    pairs, rate = open_pairs(args)
    train_pairs = list(draw_pairs(find_audio(directory), args.train_pairs, args.seed, rate))
    say(f"pairs: {len(train_pairs)} to train on, {len(pairs)} to test, at {rate} Hz")
    tables = steganalysis(methods, models, train_pairs, pairs, rate, args.seed,
                          args.steganalysis_cache or folder, args.detector_steps)
    print_detections(tables)
    write_tables(args, tables, rate)


def make_page(args):
    """The page of two files, or the examples, by the models, LSB and Opus."""
    *voices, rate = own_pair(args.cover or EXAMPLES[0], args.secret or EXAMPLES[1])
    models = load_models(args.model or SHIPPED[:2])
    methods = [ours(model, label) for label, model in models.items()]
    perceptual = all(importlib.util.find_spec(name) for name in ("pesq", "pystoi"))
    size = write_page(args.page, *voices, rate, [*methods, lsb(6), opus(32)],
                      perceptual and not args.no_perceptual)
    say(f"{os.path.join(args.page, 'index.html')}: {size / 1e6:.2f} MB in all")


# ---------------------------------------------------------------- pairs

def open_pairs(args) -> tuple[list, int]:
    """The pairs of signals that the flags ask for, and their rate in Hz."""
    if args.cover:
        cover, secret, rate = own_pair(args.cover, args.secret)
        return [(cover, secret)], rate
    files = find_audio(args.data_dir)
    return list(draw_pairs(files, args.pairs, args.seed, args.rate)), args.rate


def draw_pairs(files: list[tuple], count: int, seed: int, rate: int
               ) -> Iterator[tuple[Tensor, Tensor]]:
    """`count` pairs of different files of 3 s or more, from `data.find_audio`, both cut to the same
    3 to 5 s at `rate` Hz, neither silent."""
    rng = random.Random(seed)
    files = [file for file in files if file[1] / file[2] >= 3]
    if len(files) < 2:
        sys.exit("error: there are fewer than 2 audio files of at least 3 s; give other folders")

    def draw(seconds, other=None):
        for _ in range(1000):
            path, frames, own_rate = rng.choice(files)
            x = read_crop(path, rng, round(seconds * rate), rate)
            x = x[:math.ceil(frames * rate / own_rate)]  # without the zeros after a shorter file
            if path != other and x.square().mean() > SILENCE:
                return x, path
        sys.exit("error: there are fewer than 2 audio files that are not silent; "
                 "give other folders")

    for _ in range(count):
        seconds = rng.uniform(3, 5)
        cover, path = draw(seconds)
        secret, _ = draw(seconds, path)
        length = min(len(cover), len(secret))
        yield cover[:length], secret[:length]


def own_pair(cover_path: str, secret_path: str) -> tuple[Tensor, Tensor, int]:
    """Two files as signals of one length, mono, at the cover's rate; and that rate in Hz. Raises
    StegoError."""
    (cover, rate), (secret, secret_rate) = map(sound.read_audio, (cover_path, secret_path))
    cover, secret = (torch.from_numpy(x.mean(1)) for x in (cover, secret))
    secret = resample(secret, secret_rate, rate)
    length = min(len(cover), len(secret))
    for path, x in ((cover_path, cover[:length]), (secret_path, secret[:length])):
        if not x.square().mean() > SILENCE:
            raise StegoError(f"{path} is silent; give a file with speech in the first "
                             f"{length / rate:.1f} s")
    return cover[:length], secret[:length], rate


# ---------------------------------------------------------------- files

def write_tables(args, tables: dict[str, list[dict]], rate: int):
    """To the files that the flags name."""
    if args.csv:
        write_csv(args.csv, tables)
    if args.json:
        write_json(args.json, {"settings": vars(args) | {"rate": rate}} | tables)


def check_output(path: str, endings: tuple[str, ...] = ()):
    """Refuse, before the work, what cannot be written after it. Raises StegoError."""
    if endings and os.path.splitext(path)[1].lower() not in endings:
        raise StegoError(f"{path} cannot be written: give a name that ends in "
                         f"{', '.join(endings[:-1])} or {endings[-1]}")
    if os.path.exists(path) and not os.path.isfile(path):
        raise StegoError(f"{path} cannot be written: it is no file; give another name")
    temporary = temporary_name(path)
    try:
        with open(temporary, "xb"):
            pass
        os.remove(temporary)
    except OSError as error:
        raise StegoError(f"{path} cannot be written ({error.strerror}); give another name"
                         ) from error


def write_csv(path: str, tables: dict[str, list[dict]]):
    """A line a number: its mean over pairs, half of the 95 % interval, and how many pairs are
    what."""
    with replacing(path) as temporary, open(temporary, "w", newline="") as file:
        lines = csv.writer(file)
        lines.writerow("table method score mean interval pairs lossless lost".split())
        for table, summaries in tables.items():
            for row in summaries:
                for name, values in row["values"].items():
                    numbers = ["" if math.isnan(x) else f"{x:.6g}" for x in row["scores"][name]]
                    finite = sum(x is None or math.isfinite(x) for x in values)
                    lines.writerow([table, row["method"], name, *numbers, finite,
                                    values.count(math.inf), values.count(None)])


def write_json(path: str, content: dict):
    with replacing(path) as temporary, open(temporary, "w") as file:
        json.dump(plain(content), file, indent=1)


def plain(x):
    """For JSON: no NaN, no infinity (null), no numpy."""
    if isinstance(x, dict):
        return {key: plain(value) for key, value in x.items()}
    if isinstance(x, (list, tuple)):
        return [plain(value) for value in x]
    if isinstance(x, (float, np.floating)):
        return float(x) if math.isfinite(x) else None
    return int(x) if isinstance(x, np.integer) else x


# ---------------------------------------------------------------- the command

def read_flags(argv=None) -> argparse.Namespace:
    """Ends the run with one line where flags do not fit together."""
    parser = Parser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flag = parser.add_argument
    flag("--data_dir", metavar="DIR", help="folder of speech to draw pairs from")
    flag("--cover", metavar="FILE",
         help="score this one pair: a cover, mixed to mono, at its own rate")
    flag("--secret", metavar="FILE",
         help="and its secret, brought to that rate; the longer of the two is cut")
    flag("--page", metavar="FOLDER",
         help="instead of a table, write a web page on which COVER and SECRET (default: the "
              "examples), hidden in each other, can be heard; by the models (default: wavinwav.pt "
              "and lattice.pt), LSB and Opus")
    flag("--model", nargs="+", metavar="FILE", help="models to score (default: the shipped ones)")
    flag("--snr", nargs="+", type=float, default=LATTICE_SNRS, metavar="DB",
         help="stego SNRs of lattice models, and of the bound "
              f"(default: {' '.join(map(str, LATTICE_SNRS))})")
    flag("--pairs", type=int, default=64, help="number of pairs (default: 64)")
    flag("--rate", type=int, default=16000,
         help="rate in Hz that pairs of DIR are brought to (default: 16000)")
    flag("--seed", type=int, default=0,
         help="of the pairs, the noise and the detectors (default: 0)")
    flag("--no_perceptual", action="store_true", help="leave out PESQ and STOI")
    flag("--attacks", action="store_true",
         help="also change our stegos, and score the secret that is left")
    flag("--steganalysis", nargs="+", metavar=("DIR", "METHOD"),
         help="instead of the table, train detectors on this folder's other voices, for these "
              "methods, such as 'lattice, 58 dB' (default: all that are known to it)")
    flag("--steganalysis_cache", metavar="FOLDER",
         help="keep the stegos that detectors train on and are tested on, for the next run")
    flag("--train_pairs", type=int, default=512,
         help="number of pairs for detectors (default: 512)")
    flag("--detector_steps", type=int, default=500,
         help="training steps of the detectors that are networks; 0 leaves these out, with most of "
              "the time (default: 500)")
    flag("--plot", metavar="FILE.png", help="spectrograms of the first pair, with the first model")
    flag("--curve", metavar="FILE.png",
         help="secret SNR and PESQ over stego SNR, of all methods and the bound")
    flag("--csv", metavar="FILE", help="write the tables, a line a number")
    flag("--json", metavar="FILE", help="write the tables, the settings and every pair's scores")
    args = parser.parse_args(argv)
    if bool(args.cover) != bool(args.secret) or args.data_dir and (args.cover or args.page):
        parser.error("give --data_dir, or --cover and --secret, or --page with or without the two")
    if not (args.data_dir or args.cover or args.page):
        parser.error("give --data_dir, or --cover and --secret, or --page")
    if args.page and (args.attacks or args.steganalysis or args.plot or args.curve or args.csv
                      or args.json):
        parser.error("--page writes nothing but the page; ask for the rest in another run")
    if args.steganalysis and (
            not args.data_dir
            or os.path.realpath(args.steganalysis[0]) == os.path.realpath(args.data_dir)):
        parser.error("--steganalysis needs --data_dir, and another folder than that")
    if args.steganalysis and (args.attacks or args.plot or args.curve):
        parser.error("--steganalysis prints its own table; ask for the rest in another run")
    if min(args.pairs, args.train_pairs, args.rate, args.detector_steps + 1) < 1:
        parser.error("--pairs, --train_pairs and --rate must be at least 1, --detector_steps 0")
    if not all(0 <= snr <= 120 for snr in args.snr) or not 0 <= args.seed < 1 << 32:
        parser.error("--snr must be from 0 to 120, and --seed from 0 and below 2 ** 32")
    return args


def main(argv=None):
    args = read_flags(argv)
    with mistakes_in_one_line():
        check_before_the_work(args)
        if args.page:
            make_page(args)
            return
        with tempfile.TemporaryDirectory() as folder:
            work = detect_stegos if args.steganalysis else evaluate
            work(args, folder)


def check_before_the_work(args):
    """What would end it after hours: outputs that cannot be written, packages that are missing."""
    for path in filter(None, (args.plot, args.curve)):
        check_output(path, pictures.FORMATS)
    for path in filter(None, (args.csv, args.json)):
        check_output(path)
    if args.page:
        if os.path.isfile(args.page):
            raise StegoError(f"{args.page} cannot be written: it is no folder; give another name")
        there = os.path.isdir(args.page)
        check_output(os.path.join(args.page, "index.html") if there else args.page)
    elif not (args.no_perceptual or args.steganalysis):
        need("pesq", "pystoi")
    if args.steganalysis_cache:
        with contextlib.suppress(FileExistsError):
            os.mkdir(args.steganalysis_cache)
        check_output(os.path.join(args.steganalysis_cache, "stego.flac"))
    if args.plot or args.curve:
        need("matplotlib.figure")


if __name__ == "__main__":
    settle_streams()
    interrupt_on_signals()
    main()
