"""Compare systems that hide speech, on files: hide, write 16-bit WAV, read back, reveal, score.

    python evaluate.py --data_dir DIR                      # table of 64 random pairs of 3 to 5 s
    python evaluate.py --cover A --secret B --plot P.png   # two files, and their spectrograms
    python evaluate.py --data_dir DIR --rate 48000 --csv T.csv
    python evaluate.py --data_dir DIR --attacks            # reveal after changing the stego
    python evaluate.py --data_dir DIR --steganalysis DIR2  # detectors trained on DIR2's speakers
    python evaluate.py --page docs/listen                  # web page with the examples to listen to

Folders are searched as train.py does. The systems, in evaluation/baselines.py, are our models, LSB
replacement, the frequency chop and Opus in the low bits. PESQ, STOI and pictures need extra
packages: pip install -r requirements-eval.txt

Shapes: T samples. Signals are float tensors [T] in [-1, 1).
"""

import files.start  # noqa: F401

# isort: split
import argparse
import math
import os
import random
import tempfile
from collections.abc import Iterator

import torch
from torch import Tensor

from evaluation import baselines, scores, steganalysis
from evaluation.attacks import attack_pair, changed, unavailable_attacks
from evaluation.page import PLOT_FORMATS, plot_pair, write_page
from files import sound
from files.checkpoint import check_writable
from files.command import (
    Parser,
    StegoError,
    interrupt_on_signals,
    mistakes_in_one_line,
    settle_streams,
    tell,
)
from files.processes import in_order
from files.resample import resample
from training.data import SILENCE, find_audio, read_crop

EXAMPLES = [os.path.join(baselines.HERE, "examples", f"{name}.wav") for name in ("cover", "secret")]
HEARD = "MP3 128 kbit/s", "noise 40 dB"  # attacks on the robust model whose result the page has


def compare(args, folder: str):
    """Print the table of all systems, and the attacks on the models; `folder` is temporary."""
    pairs, rate = open_pairs(args)
    tell(f"pairs: {len(pairs)}, at {rate} Hz, as 16-bit files; mean ± half of the 95 % interval")
    models = baselines.load_models(args.model)
    systems = baselines.all_systems(models, args.snr)
    defaults = {label: baselines.our_system(model, label) for label, model in models.items()}
    if args.plot:
        paths = scores.write_pair(folder, *pairs[0], rate)
        plot_pair(args.plot, next(iter(defaults.values())), paths)

    def score(number):
        """Of one pair, {system: scores} and {attack: scores of all models}."""
        paths = scores.write_pair(tempfile.mkdtemp(dir=folder), *pairs[number], rate)
        cover, secret = (scores.signal(paths[name]) for name in ("cover", "secret"))
        results, attacked = {}, {}
        for system in systems:
            torch.manual_seed(args.seed)
            values = scores.score_pair(system, paths, not args.no_perceptual)
            if values:
                highest = baselines.bound(cover, secret, values["stego SNR"])
                values["below bound"] = highest - values["secret SNR"]
            results[system.name] = values
        for label, model in (models.items() if args.attacks else ()):
            seed = args.seed + 1000 * number
            left = attack_pair(model, defaults[label], paths, seed, not args.no_perceptual)
            for attack, values in left.items():
                values = {f"{label} {name}": x for name, x in values.items()}
                attacked.setdefault(attack, {}).update(values)
        return results, attacked

    found = zip(*in_order(score, range(len(pairs)), "pair"))
    tables = {name: {row: [rows[row] for rows in of_pairs] for row in of_pairs[0]}
              for name, of_pairs in zip(("systems", "attacks"), found)}
    scores.print_table(tables["systems"], scores.COLUMNS)
    if args.attacks:
        tell("")
        tell("secret after the stego was changed; lost: nothing could be revealed, counts as 0")
        columns = {f"{label} {name}": scores.DIGITS[name]
                   for label in models for name in ("SNR", "STOI")}
        scores.print_table(tables["attacks"], columns)
    if args.csv:
        scores.write_csv(args.csv, tables)


def detect_stegos(args, folder: str):
    """Print how well detectors find stegos; `folder` is temporary."""
    directory, *names = args.steganalysis
    models = baselines.load_models(args.model, baselines.SHIPPED[:3])
    systems = steganalysis.systems_to_detect(models, names)
    pairs, rate = open_pairs(args)
    train_pairs = list(draw_pairs(find_audio(directory), args.train_pairs, args.seed, rate))
    tell(f"pairs: {len(train_pairs)} for training, {len(pairs)} for the test, at {rate} Hz; 0.5 is "
         "guessing; mean ± half of the 95 % interval over test pairs")
    table = steganalysis.steganalysis(systems, train_pairs, pairs, rate, folder)
    scores.print_table(table, steganalysis.COLUMNS)
    if args.csv:
        scores.write_csv(args.csv, {"steganalysis": table})


def make_page(args):
    """Write the page of two files, or of the examples, with the models, LSB and Opus."""
    *voices, rate = own_pair(args.cover or EXAMPLES[0], args.secret or EXAMPLES[1])
    systems = []
    for label, model in baselines.load_models(args.model, baselines.SHIPPED).items():
        systems.append(baselines.our_system(model, label))
        if label == "robust":
            systems += [changed(systems[-1], name) for name in HEARD
                        if name not in unavailable_attacks()]
    size = write_page(args.page, *voices, rate, [*systems, baselines.lsb(6), baselines.opus(32)],
                      not args.no_perceptual)
    tell(f"{os.path.join(args.page, 'index.html')}: {size / 1e6:.2f} MB in all")


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
    """`count` pairs from different files of at least 3 s, as `find_audio` lists them: both cut to
    the same 3 to 5 s, at `rate` Hz, neither silent. Raises StegoError if there are too few."""
    rng = random.Random(seed)
    files = [file for file in files if file[1] / file[2] >= 3]

    def draw(seconds, other=None):
        for _ in range(1000):
            if len(files) < 2:
                break
            file = path, frames, own_rate = rng.choice(files)
            try:
                x = read_crop(path, rng, round(seconds * rate), rate)
            except StegoError as error:
                sound.note(f"{path} is left out: {error}")
                files.remove(file)
                continue
            x = x[:math.ceil(frames * rate / own_rate)]  # without the padding of a shorter file
            if path != other and x.square().mean() > SILENCE:
                return x, path
        raise StegoError("there are fewer than 2 usable audio files of at least 3 s that are not "
                         "silent; give other folders")

    for _ in range(count):
        seconds = rng.uniform(3, 5)
        cover, path = draw(seconds)
        secret, _ = draw(seconds, path)
        length = min(len(cover), len(secret))
        yield cover[:length], secret[:length]


def own_pair(cover_path: str, secret_path: str) -> tuple[Tensor, Tensor, int]:
    """Two files as mono signals of the same length at the cover's rate, and that rate in Hz. Raises
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


# ---------------------------------------------------------------- the command

def read_flags(argv=None) -> argparse.Namespace:
    """Exits with one line if flags contradict each other."""
    parser = Parser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flag = parser.add_argument
    flag("--data_dir", metavar="DIR", help="folder of speech to draw pairs from")
    flag("--cover", metavar="FILE",
         help="score one pair: this cover, mixed to mono, at its own rate")
    flag("--secret", metavar="FILE",
         help="and this secret, resampled to the cover's rate; the longer of the two is cut")
    flag("--page", metavar="FOLDER",
         help="instead of a table, write a web page to listen to COVER and SECRET (default: the "
              "examples), hidden in each other by the models (default: those shipped), LSB "
              "and Opus")
    flag("--model", nargs="+", metavar="MODEL",
         help="models to score: files, or names of shipped ones (default: these)")
    flag("--snr", nargs="+", type=float, default=baselines.LATTICE_SNRS, metavar="DB",
         help="stego SNRs of lattice models, in dB "
              f"(default: {' '.join(map(str, baselines.LATTICE_SNRS))})")
    flag("--pairs", type=int, default=64, help="number of pairs (default: 64)")
    flag("--rate", type=int, default=16000,
         help="rate in Hz that pairs of DIR are resampled to (default: 16000)")
    flag("--seed", type=int, default=0,
         help="seed of pairs and noise (default: 0)")
    flag("--no_perceptual", action="store_true",
         help="leave out PESQ, STOI and speaker similarity")
    flag("--attacks", action="store_true",
         help="also change the models' stegos, and score the secret that is left")
    flag("--steganalysis", nargs="+", metavar=("DIR", "SYSTEM"),
         help="instead of the table, train detectors on this folder of other speakers, for these "
              "systems, such as 'lattice, 58 dB' (default: all)")
    flag("--train_pairs", type=int, default=512,
         help="number of pairs to train detectors on (default: 512)")
    flag("--plot", metavar="FILE.png",
         help="write spectrograms of the first pair, hidden by the first model")
    flag("--csv", metavar="FILE", help="write the tables, one number per line")
    args = parser.parse_args(argv)
    own = args.cover or args.page
    if bool(args.cover) != bool(args.secret) or bool(args.data_dir) == bool(own):
        parser.error("give --data_dir, or --cover and --secret, or --page with or without the two")
    if args.page and (args.attacks or args.steganalysis or args.plot or args.csv):
        parser.error("--page writes nothing but the page; ask for the rest in another run")
    if args.steganalysis and (
            not args.data_dir
            or os.path.realpath(args.steganalysis[0]) == os.path.realpath(args.data_dir)):
        parser.error("--steganalysis needs --data_dir, and another folder than that")
    if args.steganalysis and (args.attacks or args.plot):
        parser.error("--steganalysis prints its own table; ask for the rest in another run")
    if min(args.pairs, args.train_pairs, args.rate) < 1:
        parser.error("--pairs, --train_pairs and --rate must be at least 1")
    if not all(0 <= snr <= 120 for snr in args.snr) or not 0 <= args.seed < 1 << 32:
        parser.error("--snr must be from 0 to 120, and --seed from 0 and below 2 ** 32")
    return args


def check_before_work(args):
    """Report now what would end hours of work: missing packages, outputs that cannot be written."""
    if args.plot and not args.plot.lower().endswith(PLOT_FORMATS):
        raise StegoError(f"{args.plot} cannot be written: give a name that ends in "
                         f"{', '.join(PLOT_FORMATS[:-1])} or {PLOT_FORMATS[-1]}")
    page = args.page
    if page and os.path.exists(page):
        page = os.path.join(page, "index.html")
    for path in filter(None, (args.plot, args.csv, page)):
        check_writable(path)
    if not (args.no_perceptual or args.steganalysis):
        scores.need("pesq", "pystoi")
        if not scores.speaker_encoder():
            sound.note("no speaker similarity: resemblyzer is not installed: "
                       "pip install -r requirements-eval.txt")
    if args.plot or args.page:
        scores.need("matplotlib.figure")
    if args.attacks and unavailable_attacks():
        sound.note(f"left out: {', '.join(unavailable_attacks())}; they need the program ffmpeg")


def main(argv=None):
    args = read_flags(argv)
    with mistakes_in_one_line():
        check_before_work(args)
        if args.page:
            return make_page(args)
        with tempfile.TemporaryDirectory() as folder:
            (detect_stegos if args.steganalysis else compare)(args, folder)


if __name__ == "__main__":
    settle_streams()
    interrupt_on_signals()
    main()
