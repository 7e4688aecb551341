"""Train WavInWav on a folder of speech.

    python train.py --data_dir DIR                                    # a laptop, about an hour
    python train.py --data_dir DIR --out_dir runs/lapped --resume     # go on with a run that was stopped
    python train.py --data_dir DIR --preset lattice                   # the lattice preset's coder, minutes on a CPU
    python train.py --data_dir DIR --preset paper                     # the paper's network, losses and schedule (a GPU)
    python train.py --data_dir DIR --init_from wavinwav.pt            # start from a model's weights

DIR is searched for all that soundfile reads (wav, flac, ogg, mp3, ...), at any rate and channel count. OUT_DIR gets
last.pt (everything --resume needs), best.pt (the model that did best in validation; both are files that
wavinwav.load reads) and metrics.csv.

The data of step n and its random numbers depend on --seed and n alone, so a run that is killed and resumed ends as it
would have without.
"""

import argparse
import bisect
import csv
import functools
import itertools
import math
import os
import random
import signal
import sys

import soundfile
import torch
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset
from torchaudio.transforms import Resample
from tqdm import tqdm

import wavinwav
from wavinwav import Config, Lattice

PRESETS = {  # a preset's values for flags that have no other default
    "lapped": dict(steps=6000, batch_size=4, lr=5e-4, schedule="cosine", warmup=200,
                   w_stego=1.0, w_cover=0.0, w_secret=1.0, w_z=0.0, wave=0.0, stft=0.0, snr=1.0),
    "lattice": dict(steps=4000, batch_size=4, lr=3e-3, schedule="cosine", warmup=50),
    "paper": dict(steps=570000, batch_size=4, lr=1e-4, schedule="decay", warmup=0, recompute=True,
                  w_stego=2.0, w_cover=1.0, w_secret=1.0, w_z=10.0, wave=1.0, stft=1.0, snr=0.0),
}
MODEL_FLAGS = ("bands", "blocks", "growth", "kernel", "clamp", "swapped", "attenuation", "turn_level", "sample_rate")
OBJECTIVES = ("w_stego", "w_cover", "w_secret", "w_z", "wave", "stft", "snr")
ANEW_ON_RESUME = {"resume", "data_dir", "val_dir", "out_dir", "device", "workers", "save_every", "no_progress"}
SILENCE = 1e-5  # mean square of a crop, -50 dBFS: under it there is nothing to hide or to hide in
FULL_SCALE = 32768  # of 16-bit PCM


# ---------------------------------------------------------------- flags

def parse_arguments(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
                                     allow_abbrev=False)
    config = {preset: getattr(Config, preset)() for preset in PRESETS}

    def flag(group, name, kind, text, default=None, **more):
        """A flag whose help states its default, or each preset's."""
        by_preset = [f"{preset} {table[name]:g}" if kind is not str else f"{preset} {table[name]}"
                     for preset, table in PRESETS.items() if name in table]
        if name in MODEL_FLAGS:
            by_preset = [f"{preset} {getattr(config[preset], name):g}" for preset in PRESETS]
        shown = ", ".join(by_preset) if by_preset else default
        text += f" (default: {shown})" if shown is not None else ""
        group.add_argument(f"--{name}", type=kind, default=default, help=text, **more)

    group = parser.add_argument_group("data")
    flag(group, "data_dir", str, "folder of speech, searched with all its subfolders", required=True, metavar="DIR")
    flag(group, "val_dir", str, "folder to validate on (default: 5 percent of the files of --data_dir, at least 2)", metavar="DIR")
    flag(group, "crop", float, "length of a training crop in seconds", 2.0)
    flag(group, "gain", float, "each training crop's level is changed by up to this many dB, up or down", 0.0)
    flag(group, "val_pairs", int, "pairs in the fixed validation set, each of one crop's length", 64)
    flag(group, "workers", int, "processes that load data; 0 loads in the training process", 1)

    group = parser.add_argument_group("network")
    flag(group, "preset", str, "what the other defaults come from", "lapped", choices=list(PRESETS))
    flag(group, "init_from", str, "start from the weights in this model file or checkpoint; the network is the file's", metavar="FILE")
    flag(group, "sample_rate", int, "rate in Hz that all audio is brought to")
    flag(group, "bands", int, "bands of the lapped transform; 1 works on the waveform itself")
    flag(group, "blocks", int, "affine couplings in the stack")
    flag(group, "growth", int, "channels that each inner conv of a dense subnet adds")
    flag(group, "kernel", int, "taps of these convs, odd")
    flag(group, "clamp", float, "bound of the log-scale")
    flag(group, "swapped", int, "bands exchanged by the swap initialisation")
    flag(group, "attenuation", float, "of the secret's bands in the swap, linear")
    flag(group, "turn_level", float, "root mean square of the cover's high bands above which a frame may be turned; 0 turns none")

    group = parser.add_argument_group("losses", "The loss is W_STEGO L(cover, stego) + W_COVER L(cover, cover^) + W_SECRET "
                                      "L(secret, secret^) + W_Z NLL(r), with L = WAVE * L1 + STFT * multi-resolution STFT - SNR * dB.")
    flag(group, "w_stego", float, "weight of stego against cover")
    flag(group, "w_cover", float, "weight of the recovered cover against the cover")
    flag(group, "w_secret", float, "weight of the recovered secret against the secret")
    flag(group, "w_z", float, "weight of the standard-normal negative log-likelihood of r, mean over its elements")
    flag(group, "wave", float, "weight of the mean absolute difference of the waveforms")
    flag(group, "stft", float, "weight of the multi-resolution STFT distance")
    flag(group, "snr", float, "weight of the signal-to-noise ratio in dB, which saturates at 40")

    group = parser.add_argument_group("optimisation")
    flag(group, "steps", int, "optimiser steps in all")
    flag(group, "batch_size", int, "pairs a step and accumulation")
    flag(group, "accumulate", int, "batches whose gradients are added up for one step", 1)
    flag(group, "lr", float, "peak learning rate of Adam")
    flag(group, "direct_lr", float, "learning rate of the gated subnets' linear paths, times --lr", 0.1)
    flag(group, "beta2", float, "Adam's second decay rate", 0.99)
    flag(group, "schedule", str, "after the warm-up: cosine to zero, or a tenth at each quarter of the run", choices=["cosine", "decay"])
    flag(group, "warmup", int, "steps in which the learning rate rises from zero")
    flag(group, "clip", float, "largest norm of the gradient; a larger one is scaled down", 1.0)
    flag(group, "max_skipped", int, "this many non-finite steps in a row, each skipped, end the run", 20)
    flag(group, "seed", int, "of the weights, the data and the noise", 0)

    group = parser.add_argument_group("machine")
    flag(group, "device", str, "cpu, cuda, cuda:1, ... (default: cuda where there is one)")
    flag(group, "amp", str, "precision of the subnets while training; auto is bf16 or else fp16 on CUDA, fp32 elsewhere",
         "auto", choices=["auto", "fp32", "bf16", "fp16"])
    group.add_argument("--recompute", action="store_true", default=None,
                       help="keep the activations of one subnet only and compute them again: far less memory, a third more time (default: paper)")
    group.add_argument("--no_recompute", dest="recompute", action="store_false", help="keep all activations (default: lapped)")

    group = parser.add_argument_group("output")
    flag(group, "out_dir", str, "folder for last.pt, best.pt, metrics.csv (default: runs/PRESET)", metavar="DIR")
    group.add_argument("--resume", action="store_true", help="go on from OUT_DIR/last.pt, with its flags; it must be there")
    flag(group, "log_every", int, "steps between rows of metrics.csv", 50)
    flag(group, "val_every", int, "steps between validations, a multiple of --log_every", 500)
    flag(group, "save_every", int, "steps between writes of last.pt", 500)
    group.add_argument("--no_progress", action="store_true", help="no progress bar")

    args = parser.parse_args(argv)
    given = {action.dest for action in parser._actions for option in action.option_strings
             if option in [word.split("=")[0] for word in (sys.argv[1:] if argv is None else argv)]}
    if args.preset == "lattice" and given & set(OBJECTIVES):
        parser.error(f"--{min(given & set(OBJECTIVES))} has no parameter to reach in the lattice preset, "
                     "which is trained by maximum likelihood: its loss is the bits that a sample of the secret takes")
    for name, value in PRESETS[args.preset].items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    args.recompute = bool(args.recompute)
    args.out_dir = args.out_dir or os.path.join("runs", args.preset)
    for name in ("crop", "steps", "batch_size", "accumulate", "lr", "clip", "log_every", "val_every", "save_every", "val_pairs", "max_skipped"):
        if not getattr(args, name) > 0:
            parser.error(f"--{name} must be above 0")
    if args.val_every % args.log_every:
        parser.error("--val_every must be a multiple of --log_every")
    return args, given


# ---------------------------------------------------------------- data

def find_audio(folder):
    """(path, frames, rate) of all audio files under a folder, sorted by path. Files that cannot be read, or are empty,
    are named in one warning."""
    if not os.path.isdir(folder):
        sys.exit(f"{folder} is not a folder")
    endings = {"." + name.lower() for name in soundfile.available_formats()} - {".raw"} | {".oga", ".opus", ".aif"}
    paths = sorted(os.path.join(root, name) for root, _, names in os.walk(folder, followlinks=True) for name in names
                   if os.path.splitext(name)[1].lower() in endings)
    files, bad = [], []
    for path in paths:
        try:
            info = soundfile.info(path)
            frames = info.frames
        except (soundfile.LibsndfileError, OSError):
            frames = 0
        if frames > 0:
            files.append((path, frames, info.samplerate))
        else:
            bad.append(path)
    if bad:
        names = ", ".join(bad[:5]) + (", ..." if len(bad) > 5 else "")
        print(f"skipped {len(bad)} of {len(paths)} files, empty or not readable: {names}", file=sys.stderr)
    return files


def split_files(args):
    """Training and validation files, from two folders or from one with a split that depends on the file list alone."""
    files = find_audio(args.data_dir)
    if args.val_dir:
        train, val = files, find_audio(args.val_dir)
    else:
        random.Random(0).shuffle(files)
        count = max(2, len(files) // 20)
        train, val = files[count:], files[:count]
    for name, folder, part in (("train on", args.data_dir, train), ("validate on", args.val_dir or args.data_dir, val)):
        if len(part) < 2:
            sys.exit(f"{folder} has {len(part)} audio files to {name}, and a cover and a secret need 2; "
                     f"{len(files)} readable audio files were found in {args.data_dir}")
    return train, val


@functools.lru_cache
def resampler(rate, wanted):
    return Resample(rate, wanted)


class Pairs(Dataset):
    """Pairs of crops of two different files: index -> cover, secret, float32 [T]. Pair n depends on seed and n alone."""

    def __init__(self, files, rate, samples, seed, gain=0.0):
        self.files, self.rate, self.samples, self.seed, self.gain = files, rate, samples, seed, gain
        self.ends = list(itertools.accumulate(max(frames / rate, samples / self.rate) for _, frames, rate in files))

    def crop(self, rng, other=None):
        """A crop that is not silent, of a file drawn by duration, and the file's index; shorter files are padded."""
        for _ in range(1000):
            chosen = min(bisect.bisect(self.ends, rng.random() * self.ends[-1]), len(self.files) - 1)
            path, frames, rate = self.files[chosen]
            need = math.ceil(self.samples * rate / self.rate)
            start = rng.randrange(max(1, frames - need + 1))
            if chosen == other:
                continue
            try:
                with soundfile.SoundFile(path) as file:
                    file.seek(start)
                    x = torch.from_numpy(file.read(need, dtype="float32", always_2d=True).mean(1))
            except (soundfile.LibsndfileError, OSError):
                continue
            if rate != self.rate and len(x):
                x = resampler(rate, self.rate)(x)
            x = functional.pad(x[:self.samples], (0, max(0, self.samples - len(x))))
            if x.square().mean() > SILENCE:  # a NaN fails this too
                return x * 10 ** (rng.uniform(-self.gain, self.gain) / 20), chosen
        raise RuntimeError("1000 crops in a row were silent or could not be read")

    def rng(self, index):
        return random.Random(f"{self.seed}/{index}")

    def __getitem__(self, index):
        rng = self.rng(index)
        cover, chosen = self.crop(rng)
        return cover, self.crop(rng, other=chosen)[0]


def leave_signals_to_the_parent(worker):
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def batches(pairs, batch_size, first, last, workers):
    """Batches `first` to `last` (exclusive): each is two tensors [B, T]."""
    return DataLoader(pairs, batch_size, sampler=range(first * batch_size, last * batch_size), num_workers=workers,
                      worker_init_fn=leave_signals_to_the_parent)


@torch.no_grad()
def measure_level(pairs, bands, count=256):
    """Long-term root mean square of each band of the lapped transform in the training data, [bands, 1]."""
    crops = torch.stack([pairs.crop(pairs.rng(-1 - i))[0] for i in range(count)])
    return wavinwav.lapped(crops, bands).square().mean((0, 2)).sqrt()[:, None].clamp_min(1e-6)


# ---------------------------------------------------------------- losses

def quantise(x):
    """What a 16-bit file keeps of x; the gradient passes straight through."""
    return x + ((x * FULL_SCALE).round().clamp(-FULL_SCALE, FULL_SCALE - 1) / FULL_SCALE - x).detach()


def snr(reference, estimate, floor=1e-10):
    """Signal-to-noise ratio in dB for each item, [B, T] -> [B]; it saturates at -10 log10(floor)."""
    signal = reference.square().sum(-1)
    noise = (reference - estimate).square().sum(-1)
    return 10 * torch.log10(signal / (noise + floor * signal))


def stft_distance(reference, estimate):
    """Multi-resolution STFT distance, the mean over resolutions of spectral convergence and log-magnitude L1
    (Yamamoto et al. 2020, section 3.2). [B, T] x 2 -> scalar."""
    total = 0.0
    for n_fft, hop, win in ((1024, 120, 600), (2048, 240, 1200), (512, 50, 240)):
        window = torch.hann_window(win, device=reference.device)

        def magnitude(x):
            spectrum = torch.stft(x, n_fft, hop, win, window, return_complex=True)
            return (spectrum.real ** 2 + spectrum.imag ** 2).clamp_min(1e-7).sqrt()  # abs() has NaN gradients at 0

        a, b = magnitude(reference), magnitude(estimate)
        convergence = (a - b).norm(dim=(1, 2)) / a.norm(dim=(1, 2)).clamp_min(1e-3)
        total = total + convergence.mean() + (a.log() - b.log()).abs().mean()
    return total / 3


def distance(args, reference, estimate):
    """L of the loss between two waveforms [B, T]."""
    terms = {
        "wave": lambda: (reference - estimate).abs().mean(),
        "stft": lambda: stft_distance(reference, estimate),
        "snr": lambda: -snr(reference, estimate, floor=1e-4).mean(),
    }
    return sum(getattr(args, name) * term() for name, term in terms.items() if getattr(args, name))


def total_loss(args, cover, secret, stego, r, cover_, secret_):
    z = r[:, :cover.shape[1] // r.shape[2]]  # without the row of turned frames
    terms = {
        "w_stego": lambda: distance(args, cover, stego),
        "w_cover": lambda: distance(args, cover, cover_),
        "w_secret": lambda: distance(args, secret, secret_),
        "w_z": lambda: 0.5 * (z.square().mean() + math.log(2 * math.pi)),
    }
    return sum(getattr(args, name) * term() for name, term in terms.items() if getattr(args, name))


# ---------------------------------------------------------------- training

def learning_rate(step, args):
    """The rate of step 0, 1, ..., steps - 1."""
    if step < args.warmup:
        return args.lr * (step + 1) / args.warmup
    done = (step - args.warmup) / max(1, args.steps - args.warmup)
    if args.schedule == "cosine":
        return args.lr * 0.5 * (1 + math.cos(math.pi * done))
    return args.lr * 0.1 ** int(4 * done)


def round_trip(model, cover, secret):
    """Hide, keep what a 16-bit file keeps, reveal: stego, r, cover^, secret^."""
    stego, r = model(cover, secret)
    stego = quantise(stego)
    return stego, r, *model.inverse(stego, model.draw_z(stego))


@torch.no_grad()
def validate(model, loader, device):
    """Mean stego SNR and secret SNR in dB on the fixed validation pairs."""
    scores = []
    for cover, secret in loader:
        cover, secret = cover.to(device), secret.to(device)
        stego, _, _, secret_ = round_trip(model, cover, secret)
        scores.append(torch.stack([snr(cover, stego), snr(secret, quantise(secret_))]))
    return torch.cat(scores, 1).mean(1).tolist()


def draw_steps(secrets):
    """Random settings for secrets [N, T] in PCM units: steps 10 to 65 dB below their levels, and how far these follow the
    signal; integers [N] each, as Lattice.forward takes them."""
    level = 0.5 * torch.log2(secrets.square().mean(1).cpu())
    shaping = (256 * (1.4 * torch.rand(len(secrets)) - 0.4).clamp_min(0)).long()  # a third has none
    step = 64 * (level - (10 + 55 * torch.rand(len(secrets))) / 6.02) - 0.75 * shaping
    return step.long(), shaping


@torch.no_grad()
def count_tables(model, pairs, batches=8, count=32):
    """The lattice coder's tables, from training crops under common steps of 1 to 500."""
    generator = torch.Generator().manual_seed(0)
    samples = []
    for n in range(batches):
        secrets = FULL_SCALE * torch.stack([pairs.crop(pairs.rng(-1000 - n * count - i))[0] for i in range(count)])
        samples.append((secrets, int(64 * 9 * (n + 0.5) / batches), int(256 * torch.rand(1, generator=generator)) * (n % 3 > 0)))
    model.measure(samples)


@torch.no_grad()
def validate_lattice(model, loader):
    """Bits a sample that the lattice coder takes for the fixed validation crops, mean over four steps."""
    secrets = FULL_SCALE * torch.cat([torch.cat(batch) for batch in loader])
    coefficients = model.analyse(secrets, model.config.bands)
    total = 0.0
    for step, shaping in ((64, 0), (192, 0), (320, 100), (384, 200)):
        classes, integers, _ = model.quantise(coefficients, step, shaping)
        total += model.cost(classes, integers).mean().item() / 4
    return total


def start_metrics(path, step, header):
    """Open metrics.csv to go on after `step`; rows that a killed run wrote later are dropped, as they come again."""
    rows = []
    if step and os.path.exists(path):
        with open(path, newline="") as file:
            rows = [row for row in list(csv.reader(file))[1:] if len(row) == len(header) and int(row[0]) <= step]
    with wavinwav.replacing(path) as temporary, open(temporary, "w", newline="") as file:
        csv.writer(file).writerows([header, *rows])
    return open(path, "a", newline="", buffering=1)


def main(argv=None):
    args, given = parse_arguments(argv)
    last_path, best_path = (os.path.join(args.out_dir, name) for name in ("last.pt", "best.pt"))

    # a run that goes on brings its own flags; a new one must not write over an old one
    checkpoint = None
    if args.resume:
        try:
            checkpoint = wavinwav.read_checkpoint(last_path)
        except FileNotFoundError:
            sys.exit(f"{last_path} does not exist: there is nothing to resume")
        except (ValueError, OSError) as error:
            sys.exit(str(error))
        if "training" not in checkpoint:
            sys.exit(f"{last_path} is a model, not a checkpoint: start from it with --init_from")
        saved = checkpoint["training"]["args"]
        for name in given - ANEW_ON_RESUME:
            if getattr(args, name) != saved[name]:
                sys.exit(f"--{name} {getattr(args, name)} differs from the {saved[name]} of {last_path}; "
                         "a resumed run keeps its flags (a new run can start with --init_from)")
        vars(args).update({name: value for name, value in saved.items() if name not in ANEW_ON_RESUME})
    elif os.path.exists(last_path):
        sys.exit(f"{last_path} exists: go on with --resume, or give another --out_dir")

    device = torch.device(args.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    precision = args.amp
    if precision == "auto":
        precision = "fp32" if device.type != "cuda" else "bf16" if torch.cuda.is_bf16_supported() else "fp16"
    amp = functools.partial(torch.autocast, device.type, dtype={"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision),
                            enabled=precision != "fp32")

    # the network
    torch.manual_seed(args.seed)
    try:
        if args.init_from and not checkpoint:
            model = wavinwav.load(args.init_from).train()
        elif checkpoint:
            model = wavinwav.build(Config(**checkpoint["config"]))
        else:
            changes = {name: getattr(args, name) for name in MODEL_FLAGS if getattr(args, name) is not None}
            model = wavinwav.build(getattr(Config, args.preset)(**changes))
    except (ValueError, OSError) as error:
        sys.exit(str(error))
    config, lattice = model.config, isinstance(model, Lattice)
    if lattice != (args.preset == "lattice"):
        sys.exit(f"{args.init_from} holds a model of preset {config.preset}; give --preset {config.preset}")
    if not lattice:
        model.recompute(args.recompute)

    # the data
    train_files, val_files = split_files(args)
    samples = max(1, round(args.crop * config.sample_rate / config.bands)) * config.bands
    train_pairs = Pairs(train_files, config.sample_rate, samples, f"train {args.seed}", args.gain)
    val_pairs = Pairs(val_files, config.sample_rate, samples, "val")
    try:
        val_set = list(batches(val_pairs, args.batch_size, 0, math.ceil(args.val_pairs / args.batch_size), 0))
        if config.bands > 1 and not args.init_from and not checkpoint:
            level = measure_level(train_pairs, config.bands)
            model.level.copy_((8 * torch.log2(FULL_SCALE * level[:, 0])).floor() if lattice else level)
    except RuntimeError as error:
        sys.exit(f"{args.data_dir}: {error}")
    model.to(device)

    # the optimiser
    direct = [p for name, p in model.named_parameters() if ".direct." in name]
    others = [p for name, p in model.named_parameters() if ".direct." not in name]
    groups = [dict(params=others, scale=1.0), dict(params=direct, scale=args.direct_lr)]
    optimiser = torch.optim.Adam([group for group in groups if group["params"]], lr=args.lr, betas=(0.9, args.beta2))
    scaler = torch.amp.GradScaler(device.type, enabled=precision == "fp16")

    # the state of the run
    first_step, best, skipped, in_a_row = 0, -math.inf, 0, 0
    window = torch.zeros(5, device=device)  # sums since the last row: loss, stego SNR, secret SNR, gradient norm, steps
    if checkpoint:
        training = checkpoint["training"]
        model.load_state_dict(checkpoint["state_dict"])
        optimiser.load_state_dict(training["optimiser"])
        scaler.load_state_dict(training["scaler"])
        first_step, best, skipped, in_a_row = (training[name] for name in ("step", "best", "skipped", "in_a_row"))
        window = training["window"].to(device)

    os.makedirs(args.out_dir, exist_ok=True)
    header = ["step", "loss", "stego_snr", "secret_snr", "grad_norm", "lr", "skipped", "val_stego_snr", "val_secret_snr"]
    if lattice:
        header = ["step", "loss", "grad_norm", "lr", "skipped", "val_bits"]
    metrics = start_metrics(os.path.join(args.out_dir, "metrics.csv"), first_step, header)
    stopped = []
    for name in (signal.SIGINT, signal.SIGTERM):
        signal.signal(name, lambda number, frame: stopped.append(number))

    def save(step):
        model.save(last_path, training=dict(
            args=vars(args), step=step, best=best, skipped=skipped, in_a_row=in_a_row, window=window.cpu(),
            optimiser=optimiser.state_dict(), scaler=scaler.state_dict()))

    count = sum(p.numel() for p in model.parameters())
    print(f"{args.preset}: {count:,} parameters, {len(train_files)} files to train on, {len(val_files)} to validate on, "
          f"{device}, {precision}, steps {first_step} to {args.steps}, in {args.out_dir}")
    loader = iter(batches(train_pairs, args.batch_size, first_step * args.accumulate, args.steps * args.accumulate, args.workers))
    bar = tqdm(total=args.steps, initial=first_step, disable=args.no_progress, dynamic_ncols=True)
    validated = [math.nan] if lattice else [math.nan, math.nan]
    for step in range(first_step, args.steps):
        rate = learning_rate(step, args)
        for group in optimiser.param_groups:
            group["lr"] = rate * group["scale"]
        torch.manual_seed(args.seed * 1_000_003 + step)  # of z: the numbers of a step do not depend on those before
        optimiser.zero_grad()
        for _ in range(args.accumulate):
            cover, secret = (x.to(device, non_blocking=True) for x in next(loader))
            if lattice:  # both are secrets; nothing depends on the cover
                secrets = FULL_SCALE * torch.cat([cover, secret])
                loss = model(secrets, *(x.to(device) for x in draw_steps(secrets))).mean() / args.accumulate
            else:
                with amp():
                    stego, r, cover_, secret_ = round_trip(model, cover, secret)
                loss = total_loss(args, cover, secret, stego, r, cover_, secret_) / args.accumulate
            scaler.scale(loss).backward()
            with torch.no_grad():
                window[0] += loss.nan_to_num()
                if not lattice:
                    scores = torch.stack([snr(cover, stego).mean(), snr(secret, secret_).mean()]) / args.accumulate
                    window[1:3] += scores.nan_to_num()
        scaler.unscale_(optimiser)
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), args.clip)
        if math.isfinite(norm):
            scaler.step(optimiser)
            in_a_row = 0
        else:
            skipped, in_a_row = skipped + 1, in_a_row + 1
            if in_a_row >= args.max_skipped:
                sys.exit(f"the gradient was not finite {in_a_row} times in a row, the last at step {step + 1}: "
                         "try a lower --lr, other weights of the losses, or --amp fp32")
        scaler.update()
        window[3:] += torch.stack([norm.nan_to_num(0, 0, 0), torch.ones_like(norm)])
        done = step + 1
        bar.update()

        if done % args.log_every == 0 or done == args.steps:
            loss_mean, stego_mean, secret_mean, norm_mean, _ = (window / window[4]).tolist()
            window.zero_()
            scores = ["", ""]
            if done % args.val_every == 0 or done == args.steps:
                if lattice:
                    model.cpu()
                    count_tables(model, train_pairs)
                    validated = [-validate_lattice(model, val_set)]
                    model.to(device)
                else:
                    validated = validate(model, val_set, device)
                scores = [f"{abs(score):.4f}" for score in validated] if lattice else [f"{score:.4f}" for score in validated]
                if sum(validated) > best:
                    best = sum(validated)
                    model.save(best_path)
            means = [] if lattice else [f"{stego_mean:.4f}", f"{secret_mean:.4f}"]
            csv.writer(metrics).writerow([done, f"{loss_mean:.6g}", *means, f"{norm_mean:.4g}", f"{rate:.4g}", skipped,
                                          *scores[:len(validated)]])
            if lattice:
                bar.set_postfix_str(f"{loss_mean:.3f} bits a sample, lr {rate:.1e}, validation {-validated[0]:.3f} bits")
            else:
                bar.set_postfix_str(f"stego {stego_mean:.1f} dB, secret {secret_mean:.1f} dB, lr {rate:.1e}, "
                                    f"validation {validated[0]:.1f} / {validated[1]:.1f} dB")
        if done % args.save_every == 0 or done == args.steps or stopped:
            save(done)
        if stopped:
            bar.close()
            print(f"stopped after step {done}: {last_path} is written, go on with --resume", file=sys.stderr)
            sys.exit(128 + stopped[0])
    bar.close()
    unit = f"{-best:.3f} bits a sample" if lattice else f"stego + secret SNR {best:.1f} dB"
    print(f"done: {best_path} is the best model, {unit} in validation")


if __name__ == "__main__":
    main()
