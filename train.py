"""Train WavInWav on a folder of speech.

    python train.py --data_dir DIR                                    # a laptop, about an hour
    python train.py --data_dir DIR --out_dir runs/lapped --resume     # go on with a run that was stopped
    python train.py --data_dir DIR --preset lattice                   # the lattice preset's coder, minutes on a CPU
    python train.py --data_dir DIR --preset paper                     # the paper's network, losses and schedule (a GPU)
    python train.py --data_dir DIR --init_from wavinwav-affine.pt --adversarial    # start from a model's weights
    python train.py --data_dir DIR --robust_from CKPT --noise gaussian,resample    # the paper's robust stage
    torchrun --nproc_per_node 8 train.py --data_dir DIR               # one process a GPU, batch_size pairs in each

DIR is searched for all that soundfile reads (wav, flac, ogg, mp3, ...), at any rate and channel count. OUT_DIR gets
last.pt (everything --resume needs), best.pt (the model that did best in validation; both are files that
wavinwav.load or lattice.load reads) and metrics.csv.

A pair of crops and its random numbers depend on --seed and the pair's number alone, so a run that is killed and resumed
ends as it would have without, and it does not matter how many processes share a batch.

Shapes: B pairs of this process's batch, T samples.
"""

import argparse
import bisect
import contextlib
import csv
import functools
import io
import itertools
import math
import os
import random
import re
import signal
import sys

import soundfile
import torch
from torch import distributed, nn
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, Dataset, IterableDataset
from tqdm import tqdm

import discriminator
import lattice
import lazy_torchaudio
import noise
import wavinwav
import wavlm_loss
from lattice import Lattice, LatticeConfig
from wavinwav import Config, WavINN

RANK, WORLD = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))  # torchrun sets these

PRESETS = {  # a preset's values for flags that have no other default
    "lapped": dict(steps=6000, batch_size=4, lr=5e-4, schedule="cosine", warmup=200,
                   w_stego=1.0, w_cover=0.0, w_secret=1.0, w_z=0.0, wave=0.0, stft=0.0, snr=1.0, wavlm_weight=0.0),
    "lattice": dict(steps=4000, batch_size=4, lr=3e-3, schedule="cosine", warmup=50),
    "paper": dict(steps=570000, batch_size=4, lr=1e-4, schedule="decay", warmup=0, recompute=True,
                  w_stego=2.0, w_cover=1.0, w_secret=1.0, w_z=10.0, wave=1.0, stft=1.0, snr=0.0, wavlm_weight=0.0),
}
MODEL_FLAGS = ("bands", "blocks", "growth", "kernel", "clamp", "swapped", "shift", "attenuation", "turn_level",
               "pilot", "sample_rate")
PAIRS = {"w_stego": ("cover", "stego"), "w_cover": ("cover", "cover^"), "w_secret": ("secret", "secret^")}
FAKES = tuple(fake for _, fake in PAIRS.values())
LATTICE_FLAGS = "bands", "growth", "sample_rate"
AFFINE_ONLY = {*PAIRS, "w_z", "wave", "stft", "snr", "wavlm_weight", "adversarial", "noise", "robust_from", *MODEL_FLAGS}
AFFINE_ONLY -= set(LATTICE_FLAGS)
ANEW_ON_RESUME = {"resume", "data_dir", "val_dir", "out_dir", "device", "workers", "save_every", "no_progress"}
SILENCE = 1e-5  # mean square of a crop, -50 dBFS: under it there is nothing to hide or to hide in
FULL_SCALE = 32768  # of 16-bit PCM


def stop(message):
    """End the run with one line on stderr, from one process."""
    sys.exit(message if RANK == 0 else 1)


# ---------------------------------------------------------------- flags

def parse_arguments(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
                                     allow_abbrev=False)
    config = {"lapped": Config.lapped(), "lattice": LatticeConfig(), "paper": Config.paper()}

    def flag(group, name, kind, text, default=None, **more):
        """A flag whose help states its default, or each preset's."""
        by_preset = [f"{preset} {table[name]:g}" if kind is not str else f"{preset} {table[name]}"
                     for preset, table in PRESETS.items() if name in table]
        if name in MODEL_FLAGS:
            by_preset = [f"{preset} {getattr(config[preset], name):g}" for preset in PRESETS if hasattr(config[preset], name)]
        shown = ", ".join(by_preset) if by_preset else default
        text += f" (default: {shown})" if shown is not None else ""
        group.add_argument(f"--{name}", type=kind, default=default, help=text, **more)

    group = parser.add_argument_group("data")
    flag(group, "data_dir", str, "folder of speech, searched with all its subfolders", metavar="DIR")
    flag(group, "hf_dataset", str, "instead, a dataset on the Hugging Face hub, or a folder that its `datasets` library reads; "
         "it is streamed, and a run that goes on skips what it has used", metavar="NAME")
    flag(group, "hf_config", str, "which of that dataset's configurations", metavar="NAME")
    flag(group, "hf_split", str, "and which of its splits", "train", metavar="NAME")
    flag(group, "hf_column", str, "and which of its columns", "audio", metavar="NAME")
    flag(group, "val_dir", str, "folder to validate on (default: 5 percent of the files of --data_dir, at least 2; or the "
         "first items of --hf_dataset)", metavar="DIR")
    flag(group, "crop", float, "length of a training crop in seconds", 2.0)
    flag(group, "gain", float, "each training crop's level is changed by up to this many dB, up or down", 0.0)
    flag(group, "val_pairs", int, "pairs in the fixed validation set, each of one crop's length", 64)
    flag(group, "workers", int, "processes that load data; 0 loads in the training process", 1)

    group = parser.add_argument_group("network")
    flag(group, "preset", str, "what the other defaults come from", "lapped", choices=list(PRESETS))
    flag(group, "init_from", str, "start from the weights in this model file or checkpoint; the network is the file's, but for "
         "--shift and --pilot", metavar="FILE")
    flag(group, "sample_rate", int, "rate in Hz that all audio is brought to")
    flag(group, "bands", int, "bands of the lapped transform; 1 works on the waveform itself")
    flag(group, "blocks", int, "affine couplings in the stack")
    flag(group, "growth", int, "channels that each inner conv of a dense subnet adds")
    flag(group, "kernel", int, "taps of these convs, odd")
    flag(group, "clamp", float, "bound of the log-scale")
    flag(group, "swapped", int, "bands exchanged by the swap initialisation")
    flag(group, "shift", int, "bands below the top at which the secret's lowest go; 0 is where the cover is weakest")
    flag(group, "attenuation", float, "of the secret's bands in the swap, linear")
    flag(group, "turn_level", float, "root mean square of the cover's high bands above which a frame may be turned; 0 turns "
         "none")

    flag(group, "pilot", float, "amplitude of the tone that tells the stego's gain, relative to the stego's level; 0 is none")

    group = parser.add_argument_group("losses", "The loss is W_STEGO L(cover, stego) + W_COVER L(cover, cover^) + W_SECRET "
                                      "L(secret, secret^) + W_Z NLL(r), with L = WAVE * L1 + STFT * multi-resolution STFT - SNR "
                                      "* dB + WAVLM_WEIGHT * WavLM distance.")
    flag(group, "w_stego", float, "weight of stego against cover")
    flag(group, "w_cover", float, "weight of the recovered cover against the cover")
    flag(group, "w_secret", float, "weight of the recovered secret against the secret")
    flag(group, "w_z", float, "weight of the standard-normal negative log-likelihood of r, mean over its elements")
    flag(group, "wave", float, "weight of the mean absolute difference of the waveforms")
    flag(group, "stft", float, "weight of the multi-resolution STFT distance")
    flag(group, "snr", float, "weight of the signal-to-noise ratio in dB, which saturates at 40")
    flag(group, "snr_ceiling", float, "dB of it above which an item earns nothing", 40.0)
    flag(group, "wavlm_weight", float, "weight of the distance between what WavLM hears")
    flag(group, "wavlm_source", str, "torch.hub repository, folder with a hubconf.py, or torchaudio/WAVLM_BASE_PLUS",
         "bshall/knn-vc")
    flag(group, "wavlm_distance", str, "between its hidden states", "l1", choices=["l1", "l2", "cosine"])

    group = parser.add_argument_group("adversary", "A multi-scale STFT discriminator learns to tell cover and secret from "
                                      "stego, cover^ and secret^; the network learns to mislead it.")
    group.add_argument("--adversarial", action="store_true", help="add ADV_WEIGHT times the generator's hinge loss, and "
                       "FEAT_WEIGHT times feature matching")
    flag(group, "adv_weight", float, "weight of the discriminator's verdict", 1.0)
    flag(group, "feat_weight", float, "weight of the mean absolute difference of its feature maps", 2.0)
    flag(group, "disc_start", int, "steps before it begins to learn and to judge", 0)
    flag(group, "disc_lr", float, "its Adam's learning rate", 1e-4)

    group = parser.add_argument_group("noise", "What happens to the stego before it is revealed, another thing in each batch.")
    flag(group, "noise", str, f"names from {', '.join(noise.NoiseLayer.kinds)}, with commas; one that stands there twice comes "
         "twice as often", metavar="NAME,...")
    flag(group, "robust_from", str, "the paper's robust stage: hide as the model in this file, and train a copy of it "
         "that reveals", metavar="FILE")
    for name, text in {"snr": "gaussian and speckle: dB below the stego", "cutoff": "lowpass: Hz",
                       "bits": "quantize: bits a sample", "dropout": "dropout: share of the samples", "gain": "gain: dB"}.items():
        low, high = noise.STRENGTHS[name]
        group.add_argument(f"--noise_{name}", type=type(low), nargs=2, default=[low, high], metavar=("LOW", "HIGH"),
                           help=f"{text} (default: {low:g} to {high:g})")
    rates = noise.STRENGTHS["rates"]
    group.add_argument("--noise_rates", nargs="+", default=list(rates), metavar="PART",
                       help=f"resample: to one of these parts of the rate, and back (default: {' '.join(rates)})")

    group = parser.add_argument_group("optimisation")
    flag(group, "steps", int, "optimiser steps in all")
    flag(group, "batch_size", int, "pairs a step and accumulation")
    flag(group, "accumulate", int, "batches whose gradients are added up for one step", 1)
    flag(group, "lr", float, "peak learning rate of Adam")
    flag(group, "direct_lr", float, "learning rate of the gated subnets' linear paths, times --lr", 0.1)
    flag(group, "beta2", float, "Adam's second decay rate", 0.99)
    flag(group, "schedule", str, "after the warm-up: cosine to zero, or a tenth at each quarter of the run",
         choices=["cosine", "decay"])
    flag(group, "warmup", int, "steps in which the learning rate rises from zero")
    flag(group, "clip", float, "largest norm of the gradient; a larger one is scaled down", 1.0)
    flag(group, "max_skipped", int, "this many non-finite steps in a row, each skipped, end the run", 20)
    flag(group, "trained", str, "train only the parameters in whose names this is found; the others stay (default: all)",
         metavar="REGEX")
    flag(group, "seed", int, "of the weights, the data and the noise", 0)

    group = parser.add_argument_group("machine")
    flag(group, "device", str, "cpu, cuda, cuda:1, ... (default: cuda where there is one)")
    flag(group, "amp", str, "precision of the subnets while training; auto is bf16 or else fp16 on CUDA, fp32 elsewhere",
         "auto", choices=["auto", "fp32", "bf16", "fp16"])
    group.add_argument("--recompute", action="store_true", default=None,
                       help="keep the activations of one subnet only and compute them again: far less memory, a third more "
                            "time (default: paper)")
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
    if args.preset == "lattice" and given & AFFINE_ONLY:
        parser.error(f"--{min(given & AFFINE_ONLY)} has no parameter to reach in the lattice preset: its cells and steps are "
                     "computed, and what it learns is to predict sizes, by maximum likelihood")
    if (args.data_dir is None) == (args.hf_dataset is None):
        parser.error("give either --data_dir or --hf_dataset")
    if args.robust_from and (args.init_from or not args.noise):
        parser.error("--robust_from needs --noise, and takes the place of --init_from")
    for name, value in PRESETS[args.preset].items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    args.recompute = bool(args.recompute)
    args.out_dir = args.out_dir or os.path.join("runs", args.preset)
    for name in ("crop", "steps", "batch_size", "accumulate", "lr", "clip", "log_every", "val_every", "save_every", "val_pairs",
                 "max_skipped"):
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
        stop(f"{folder} is not a folder")
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
    if bad and RANK == 0:
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
            stop(f"{folder} has {len(part)} audio files to {name}, and a cover and a secret need 2; "
                     f"{len(files)} readable audio files were found in {args.data_dir}")
    return train, val


class Pairs(Dataset):
    """Pairs of crops of two different files: n -> cover, secret, float32 [T], n. Pair n depends on seed and n alone."""

    def __init__(self, files, rate, samples, seed, gain=0.0):
        self.files, self.rate, self.samples, self.seed, self.gain = files, rate, samples, seed, gain
        self.ends = list(itertools.accumulate(max(frames / rate, samples / self.rate) for _, frames, rate in files))
        if any(own != rate for _, _, own in files):
            lazy_torchaudio.load()  # a fault is told now, not in the middle of the training

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
            x = lazy_torchaudio.resample(x, rate, self.rate) if len(x) else x
            x = functional.pad(x[:self.samples], (0, max(0, self.samples - len(x))))
            if x.square().mean() > SILENCE:  # a NaN fails this too
                return x * 10 ** (rng.uniform(-self.gain, self.gain) / 20), chosen
        raise RuntimeError("1000 crops in a row were silent or could not be read")

    def rng(self, index):
        return random.Random(f"{self.seed}/{index}")

    def __getitem__(self, index):
        rng = self.rng(index)
        cover, chosen = self.crop(rng)
        return cover, self.crop(rng, other=chosen)[0], index

    def sample(self, count, first=1):
        """Other crops, to measure on: [count, T]."""
        return torch.stack([self.crop(self.rng(-first - i))[0] for i in range(count)])


class HubPairs:
    """Pairs of crops of the items of a Hugging Face dataset, streamed: pair n of a process is made of the items 2 n and
    2 n + 1 of its share, which are shuffled among a thousand. Yields what `Pairs` gives."""

    def __init__(self, stream, column, rate, samples, seed, gain=0.0, shuffled=1000):
        self.stream, self.column, self.rate, self.samples, self.seed, self.gain = stream, column, rate, samples, seed, gain
        self.shuffled = shuffled
        lazy_torchaudio.load()  # the rates of what will come are not known

    def items(self, first, rank=0, world=1):
        from datasets.distributed import split_dataset_by_node
        stream = self.stream
        if self.shuffled:
            stream = stream.shuffle(random.Random(self.seed).getrandbits(31), buffer_size=self.shuffled)
        stream = split_dataset_by_node(stream, rank, world) if world > 1 else stream
        for item in stream.repeat(None).skip(first):
            yield item[self.column]

    def crop(self, item, rng):
        """A crop that is not silent of an item {"bytes": ..., "path": ...}, if there is any."""
        with soundfile.SoundFile(io.BytesIO(item["bytes"]) if item["bytes"] else item["path"]) as file:
            need = math.ceil(self.samples * file.samplerate / self.rate)
            for _ in range(20):
                file.seek(rng.randrange(max(1, file.frames - need + 1)))
                x = torch.from_numpy(file.read(need, dtype="float32", always_2d=True).mean(1))
                x = lazy_torchaudio.resample(x, file.samplerate, self.rate) if len(x) else x
                x = functional.pad(x[:self.samples], (0, max(0, self.samples - len(x))))
                if x.square().mean() > SILENCE:
                    return x * 10 ** (rng.uniform(-self.gain, self.gain) / 20)
        # Noise is better than a division by 0.
        return 0.01 * torch.randn(self.samples, generator=torch.Generator().manual_seed(0))

    def pairs(self, first=0, rank=0, world=1):
        """From pair `first` of a process on; without end."""
        items = self.items(2 * first, rank, world)
        for n in itertools.count(first):
            rng = random.Random(f"{self.seed}/{n * world + rank}")
            yield self.crop(next(items), rng), self.crop(next(items), rng), n * world + rank

    @functools.cache
    def sample(self, count, first=1):
        pairs = itertools.islice(self.pairs(), count // 2)
        return torch.cat([torch.stack(pair[:2]) for pair in pairs])


def open_hub(args):
    """The items of --hf_dataset as a stream, and how many come first to validate on."""
    try:
        import datasets
    except ImportError:
        stop("--hf_dataset needs a package: pip install datasets")
    try:
        if os.path.exists(os.path.join(args.hf_dataset, "state.json")):  # what save_to_disk wrote
            stream = datasets.load_from_disk(args.hf_dataset).to_iterable_dataset()
        else:
            stream = datasets.load_dataset(args.hf_dataset, args.hf_config, split=args.hf_split, streaming=True)
        if args.hf_column not in next(iter(stream)):
            raise ValueError(f"it has no column {args.hf_column}")
        return stream.cast_column(args.hf_column, datasets.Audio(decode=False))
    except Exception as error:  # of many kinds: no network, no such name, split or column
        stop(f"--hf_dataset {args.hf_dataset} cannot be used ({str(error).strip().splitlines()[0]}); see its page for "
             "configurations, splits and columns")


def leave_signals_to_the_parent(worker):
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


class Share:
    """The numbers of this process's pairs, batch after batch: of every WORLD batches, one."""

    def __init__(self, first, count, batch_size):
        self.first, self.count, self.size = first, count, batch_size

    def __len__(self):
        return self.count * self.size

    def __iter__(self):
        starts = range(self.first + RANK * self.size, self.first + self.count * WORLD * self.size, WORLD * self.size)
        return (n for start in starts for n in range(start, start + self.size))


class Stream(IterableDataset):
    """What DataLoader reads of HubPairs, on this process, from its pair `first` on."""

    def __init__(self, pairs, first):
        self.pairs, self.first = pairs, first

    def __iter__(self):
        return self.pairs.pairs(self.first, RANK, WORLD)


def batches(pairs, batch_size, first, count, workers):
    """`count` batches of this process, after all processes together have used `first` pairs: cover, secret [B, T], and the
    pairs' numbers [B]."""
    if isinstance(pairs, HubPairs):
        dataset, sampler, workers = Stream(pairs, first // WORLD), None, min(workers, 1)
    else:
        dataset, sampler = pairs, Share(first, count, batch_size)
    return DataLoader(dataset, batch_size, sampler=sampler, num_workers=workers, worker_init_fn=leave_signals_to_the_parent)


def load_data(args, rate, samples):
    """Pairs to train on, the fixed validation batches of this process, and a description."""
    seed, count = f"train {args.seed}", math.ceil(args.val_pairs / args.batch_size / WORLD)
    try:
        if args.hf_dataset:
            stream, reserved = open_hub(args), 0 if args.val_dir else 2 * args.val_pairs
            train_pairs = HubPairs(stream.skip(reserved), args.hf_column, rate, samples, seed, args.gain)
            val_pairs = HubPairs(stream.take(reserved), args.hf_column, rate, samples, "val", shuffled=0)
            about = f"{args.hf_dataset} to train on, {args.val_dir or f'its first {reserved} items'} to validate on"
            if args.val_dir:
                val_pairs = Pairs(find_audio(args.val_dir), rate, samples, "val")
        else:
            train_files, val_files = split_files(args)
            train_pairs = Pairs(train_files, rate, samples, seed, args.gain)
            val_pairs = Pairs(val_files, rate, samples, "val")
            about = f"{len(train_files)} files to train on, {len(val_files)} to validate on"
        return train_pairs, list(itertools.islice(batches(val_pairs, args.batch_size, 0, count, 0), count)), about
    except (RuntimeError, soundfile.LibsndfileError, StopIteration) as error:
        stop(f"{args.data_dir or args.hf_dataset}: {error}")


# ---------------------------------------------------------------- losses

# ---------------------------------------------------------------- losses

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


def distance(args, wavlm, reference, estimate):
    """L of the loss between two waveforms [B, T]."""
    terms = {
        "wave": lambda: (reference - estimate).abs().mean(),
        "stft": lambda: stft_distance(reference, estimate),
        "snr": lambda: -snr(reference, estimate, floor=1e-4).clamp(max=args.snr_ceiling).mean(),
        "wavlm_weight": lambda: wavlm(reference, estimate),
    }
    return sum(getattr(args, name) * term() for name, term in terms.items() if getattr(args, name))


def total_loss(args, wavlm, waves, r):
    """The loss of waves {"cover": [B, T], ...} and r [B, bands (+ 1), F]."""
    z = r[:, :waves["cover"].shape[1] // r.shape[2]]  # without the row of turned frames
    terms = {weight: functools.partial(distance, args, wavlm, *map(waves.get, pair)) for weight, pair in PAIRS.items()}
    terms["w_z"] = lambda: 0.5 * (z.square().mean() + math.log(2 * math.pi))
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


def seeds_of(args, numbers, purpose):
    """A seed for each pair, of its number, and for one of the things that random numbers are needed for."""
    return [4 * (1_000_003 * args.seed + n) + purpose for n in numbers.tolist()]


class AffineObjective(nn.Module):
    """The losses and scores of an affine model on a batch; what DistributedDataParallel wraps."""

    scores, validation = ["stego_snr", "secret_snr"], ["val_stego_snr", "val_secret_snr"]

    def __init__(self, model, args, device, amp):
        super().__init__()
        self.model, self.args, self.amp, self.layer, self.wavlm = model, args, amp, None, None
        model.recompute(args.recompute)
        if args.noise:
            strengths = {name: tuple(getattr(args, f"noise_{name}")) for name in noise.STRENGTHS}
            self.layer = noise.NoiseLayer(args.noise.split(","), model.config.sample_rate, **strengths)
        if args.wavlm_weight:
            if RANK > 0:  # the first process downloads, the others find it there
                distributed.barrier()
            self.wavlm = wavlm_loss.WavLMLoss(args.wavlm_source, distance=args.wavlm_distance,
                                              sample_rate=model.config.sample_rate, device=device)
            if RANK == 0 and WORLD > 1:
                distributed.barrier()

    def round_trip(self, cover, secret, numbers, layer=None):
        """Hide, keep what a 16-bit file keeps, change it, reveal: the waves, r."""
        stego, r = self.model(cover, secret)
        stego = changed = noise.quantize(stego, 16)
        if layer:
            seeds = seeds_of(self.args, numbers, 0)
            changed = noise.quantize(layer(stego.float(), seeds[0] - 4 * RANK * len(seeds), seeds), 16)
        z = self.model.draw_z(stego)
        if self.model.config.latent == "normal":
            z = noise.draw_items(torch.randn, seeds_of(self.args, numbers, 1), z.shape[1:]).to(z)
        cover_, secret_ = self.model.inverse(changed, z, self.model.revealing)
        return {"cover": cover, "secret": secret, "stego": stego, "cover^": cover_, "secret^": secret_}, r

    def forward(self, cover, secret, numbers):
        """-> loss, scores [2], waves."""
        with self.amp():
            waves, r = self.round_trip(cover, secret, numbers, self.layer)
        with torch.no_grad():
            scores = torch.stack([snr(cover, waves["stego"]).mean(), snr(secret, waves["secret^"]).mean()])
        return total_loss(self.args, self.wavlm, waves, r), scores, waves

    @torch.no_grad()
    def validate(self, loader, device):
        """Mean stego SNR and secret SNR in dB on the fixed validation pairs, under the noise if there is any."""
        totals = torch.zeros(3)
        for cover, secret, numbers in loader:
            waves, _ = self.round_trip(cover.to(device), secret.to(device), numbers, self.layer)
            secret_ = noise.quantize(waves["secret^"], 16)
            scores = [snr(waves[name], x).sum().item() for name, x in (("cover", waves["stego"]), ("secret", secret_))]
            totals += torch.tensor([*scores, len(cover)])
        return mean_of_all(totals)

    def goodness(self, values):
        return sum(values)

    def shown(self, values):
        return f"stego {values[0]:.1f} dB, secret {values[1]:.1f} dB"


class LatticeObjective(nn.Module):
    """The same for a lattice model: bits a sample, of secrets alone."""

    scores, validation = [], ["val_bits"]

    def __init__(self, model, args, device, amp):
        super().__init__()
        self.model, self.args = model, args

    def forward(self, cover, secret, numbers):
        secrets = FULL_SCALE * torch.cat([cover, secret])  # both are secrets; nothing depends on the cover
        uniform = noise.draw_items(torch.rand, seeds_of(self.args, numbers, 2), (2, 2)).transpose(0, 1).flatten(0, 1)
        step, shaping = (x.to(secrets.device) for x in draw_steps(secrets, *uniform.unbind(1)))
        return self.model(secrets, step, shaping).mean(), secrets.new_zeros(0), {}

    @torch.no_grad()
    def validate(self, loader, device):
        """Bits a sample that the lattice coder takes for the fixed validation crops, mean over four steps."""
        totals = torch.zeros(2)
        self.model.cpu()
        for cover, secret, _ in loader:
            secrets = FULL_SCALE * torch.cat([cover, secret])
            coefficients = self.model.analyse(secrets, self.model.config.bands)
            for step, shaping in ((64, 0), (192, 0), (320, 100), (384, 200)):
                classes, integers, _ = self.model.quantiser.quantise(coefficients, step, shaping)
                totals += torch.tensor([self.model.coder.cost(classes, integers).mean().item() * len(secrets), len(secrets)])
        self.model.to(device)
        return mean_of_all(totals)

    def goodness(self, values):
        return -values[0]

    def shown(self, values):
        return f"{values[0]:.3f} bits a sample"


def mean_of_all(totals):
    """Sums, of which the last is their number, over all processes -> means."""
    if WORLD > 1:
        distributed.all_reduce(totals)
    return (totals[:-1] / totals[-1]).tolist()


class Adversary:
    """The discriminator and what trains it. It learns before it judges, on fakes that are detached; while it judges, its
    weights are frozen."""

    def __init__(self, args, device, amp, fp16):
        self.args, self.amp = args, amp
        self.network = discriminator.MultiScaleSTFTDiscriminator().to(device)
        self.parallel = DistributedDataParallel(self.network, broadcast_buffers=False) if WORLD > 1 else self.network
        self.optimiser = torch.optim.Adam(self.network.parameters(), args.disc_lr, betas=(0.5, 0.9), fused=True)
        self.scaler = torch.amp.GradScaler(device.type, enabled=fp16)

    def look(self, waves, names, network):
        """At some of the waves, all brought to the loudness of speech: of each, the logits of all scales, and the maps."""
        real = {fake: cover for cover, fake in PAIRS.values()}
        level = {name: waves[name].square().mean(1, keepdim=True).sqrt().clamp_min(1e-3) for name in ("cover", "secret")}
        x = torch.cat([waves[name] / level[real.get(name, name)] for name in names])[:, None]
        with self.amp():
            logits, maps = network(x)
        size = len(waves["cover"])
        return [([x[i:i + size] for x in logits], [[x[i:i + size] for x in scale] for scale in maps])
                for i in range(0, len(x), size)]

    def learn(self, waves):
        """One step of the discriminator. -> its loss, before the step."""
        self.network.requires_grad_(True)
        self.optimiser.zero_grad()
        waves = {name: x.detach() for name, x in waves.items()}
        logits = [logits for logits, _ in self.look(waves, ("cover", "secret", *FAKES), self.parallel)]
        real, fake = ([torch.cat(scale) for scale in zip(*part)] for part in (logits[:2], logits[2:]))
        loss = discriminator.discriminator_loss(real, fake)
        self.scaler.scale(loss).backward()
        self.scaler.unscale_(self.optimiser)
        norm = nn.utils.clip_grad_norm_(self.network.parameters(), self.args.clip)
        if math.isfinite(norm):
            self.scaler.step(self.optimiser)
        self.scaler.update()
        return loss.detach()

    def judge(self, waves):
        """-> the generator's loss, which is least where the discriminator is misled, and feature matching."""
        self.network.requires_grad_(False)
        with torch.no_grad():
            (_, cover), (_, secret) = self.look(waves, ("cover", "secret"), self.network)
        fakes = self.look(waves, FAKES, self.network)
        verdict = sum(discriminator.generator_loss(logits) for logits, _ in fakes) / len(fakes)
        matching = map(discriminator.feature_matching_loss, (cover, cover, secret), (maps for _, maps in fakes))
        return verdict, sum(matching) / len(fakes)

    def state_dict(self):
        return {name: getattr(self, name).state_dict() for name in ("network", "optimiser", "scaler")}

    def load_state_dict(self, state):
        for name, value in state.items():
            getattr(self, name).load_state_dict(value)


def draw_steps(secrets, uniform_step, uniform_shaping):
    """Settings for secrets [N, T] in PCM units, from uniform numbers [N]: steps 10 to 65 dB below their levels, and how far
    these follow the signal; integers [N] each, as Quantiser.forward takes them."""
    level = 0.5 * torch.log2(secrets.square().mean(1).cpu())
    shaping = (256 * (1.4 * uniform_shaping - 0.4).clamp_min(0)).long()  # a third has none
    step = 64 * (level - (10 + 55 * uniform_step) / 6.02) - 0.75 * shaping
    return step.long(), shaping


@torch.no_grad()
def count_tables(model, pairs, batches=8, count=32):
    """The lattice coder's tables, from training crops under common steps of 1 to 500."""
    generator = torch.Generator().manual_seed(0)
    samples = []
    for n in range(batches):
        secrets = FULL_SCALE * pairs.sample(count, 1000 + n * count)
        shaping = int(256 * torch.rand(1, generator=generator)) * (n % 3 > 0)
        samples.append((secrets, int(64 * 9 * (n + 0.5) / batches), shaping))
    model.measure(samples)


def build(preset, config):
    """The network of a preset with these fields in its config, as it is before training."""
    if preset == "lattice":
        return Lattice(LatticeConfig(**config))
    return WavINN(getattr(Config, preset)(**config))


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
            stop(f"{last_path} does not exist: there is nothing to resume")
        except (ValueError, OSError) as error:
            stop(str(error))
        if "training" not in checkpoint:
            stop(f"{last_path} is a model, not a checkpoint: start from it with --init_from")
        saved = checkpoint["training"]["args"]
        for name in given - ANEW_ON_RESUME:
            if getattr(args, name) != saved[name]:
                stop(f"--{name} {getattr(args, name)} differs from the {saved[name]} of {last_path}; "
                     "a resumed run keeps its flags (a new run can start with --init_from)")
        vars(args).update({name: value for name, value in saved.items() if name not in ANEW_ON_RESUME})
    elif os.path.exists(last_path):
        stop(f"{last_path} exists: go on with --resume, or give another --out_dir")

    # the machine: one process, or one of WORLD that torchrun has started
    local = f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if WORLD > 1 else "cuda"
    device = torch.device(args.device or (local if torch.cuda.is_available() else "cpu"))
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if WORLD > 1 and not distributed.is_initialized():
        distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
    precision = args.amp
    if precision == "auto":
        precision = "fp32" if device.type != "cuda" else "bf16" if torch.cuda.is_bf16_supported() else "fp16"
    amp = functools.partial(torch.autocast, device.type, dtype={"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision),
                            enabled=precision != "fp32")

    # the network
    torch.manual_seed(args.seed)
    source = args.robust_from or args.init_from
    altered = {name: getattr(args, name) for name in ("shift", "pilot") if getattr(args, name) is not None}
    try:
        if checkpoint:
            model = build(args.preset, checkpoint["config"])
        elif args.robust_from:
            model = wavinwav.altered(wavinwav.load(source), robust=True, **altered).train()
        elif args.init_from:
            model = (lattice.load if args.preset == "lattice" else wavinwav.load)(source)
            model = (wavinwav.altered(model, **altered) if altered else model).train()
        else:
            changes = {name: getattr(args, name) for name in MODEL_FLAGS if getattr(args, name) is not None}
            model = build(args.preset, changes)
    except (ValueError, OSError) as error:
        stop(str(error))
    config = model.config

    for name, parameter in model.named_parameters():
        frozen = getattr(config, "robust", False) and not name.startswith("robust_blocks.")  # the robust stage hides as before
        parameter.requires_grad_(not frozen and bool(re.search(args.trained or "", name)))
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if not trained:
        stop(f"--trained {args.trained} is in the name of no parameter that can be trained, such as {name}")

    # the data
    samples = max(1, round(args.crop * config.sample_rate / config.bands)) * config.bands
    train_pairs, val_set, about = load_data(args, config.sample_rate, samples)
    if config.bands > 1 and not source and not checkpoint:
        coefficients = wavinwav.lapped(train_pairs.sample(256), config.bands)
        level = coefficients.square().mean((0, 2)).sqrt().clamp_min(1e-6)
        if args.preset == "lattice":
            model.quantiser.level.copy_((8 * torch.log2(FULL_SCALE * level)).floor())
        else:
            model.level.copy_(level[:, None])
    model.to(device)

    # what is trained, and how
    try:
        objective = (LatticeObjective if args.preset == "lattice" else AffineObjective)(model, args, device, amp)
        adversary = Adversary(args, device, amp, precision == "fp16") if args.adversarial else None
    except (ValueError, RuntimeError) as error:
        stop(str(error))
    parallel = objective
    if WORLD > 1:  # robust: the last phi in the way back changes nothing but cover^
        parallel = DistributedDataParallel(objective, broadcast_buffers=False, find_unused_parameters=getattr(config, "robust", False))
    groups = [dict(params=[p for name, p in trained.items() if (".direct." in name) == direct], scale=scale)
              for direct, scale in ((False, 1.0), (True, args.direct_lr))]
    optimiser = torch.optim.Adam([group for group in groups if group["params"]], args.lr, betas=(0.9, args.beta2), fused=True)
    scaler = torch.amp.GradScaler(device.type, enabled=precision == "fp16")

    # the state of the run
    first_step, pairs, best, skipped, in_a_row = 0, 0, -math.inf, 0, 0
    measured = ["loss", *objective.scores, *(["disc_loss", "adv_loss", "feat_loss"] if adversary else []), "grad_norm"]
    window = torch.zeros(len(measured) + 1, device=device)  # their sums since the last row, and the number of steps
    if checkpoint:
        training = checkpoint["training"]
        model.load_state_dict(checkpoint["state_dict"])
        optimiser.load_state_dict(training["optimiser"])
        scaler.load_state_dict(training["scaler"])
        if adversary:
            adversary.load_state_dict(training["adversary"])
        first_step, pairs, best = (training[name] for name in ("step", "pairs", "best"))
        skipped, in_a_row = training["skipped"], training["in_a_row"]
        window = training["window"].to(device)
    if RANK == 0:
        os.makedirs(args.out_dir, exist_ok=True)
        header = ["step", *measured, "lr", "skipped", *objective.validation]
        metrics = start_metrics(os.path.join(args.out_dir, "metrics.csv"), first_step, header)
    stopped = []
    for name in (signal.SIGINT, signal.SIGTERM):
        signal.signal(name, lambda number, frame: stopped.append(number))

    def save(step):
        shared = window.clone()
        if WORLD > 1:
            distributed.all_reduce(shared)
        if RANK == 0:
            model.save(last_path, training=dict(
                args=vars(args), step=step, pairs=pairs, best=best, skipped=skipped, in_a_row=in_a_row,
                window=shared.cpu() / WORLD, optimiser=optimiser.state_dict(), scaler=scaler.state_dict(),
                adversary=adversary and adversary.state_dict()))
        if WORLD > 1:  # also since a process that ends while gloo lets go of a tensor can hang (torch 2.4)
            distributed.barrier()

    if RANK == 0:
        count = sum(p.numel() for p in trained.values())
        print(f"{args.preset}: {count:,} parameters to train, {about}, {WORLD} x {device}, {precision}, steps {first_step} to "
              f"{args.steps}, in {args.out_dir}")
    loader = iter(batches(train_pairs, args.batch_size, pairs, (args.steps - first_step) * args.accumulate, args.workers))
    bar = tqdm(total=args.steps, initial=first_step, disable=args.no_progress or RANK > 0, dynamic_ncols=True)
    validated = [math.nan] * len(objective.validation)
    for step in range(first_step, args.steps):
        rate = learning_rate(step, args)
        for group in optimiser.param_groups:
            group["lr"] = rate * group["scale"]
        judging = adversary and step >= args.disc_start
        optimiser.zero_grad()
        for micro in range(args.accumulate):
            cover, secret, numbers = next(loader)
            cover, secret = (x.to(device, non_blocking=True) for x in (cover, secret))
            last = WORLD == 1 or micro == args.accumulate - 1
            with contextlib.nullcontext() if last else parallel.no_sync():
                loss, scores, waves = parallel(cover, secret, numbers)
                against = []
                if adversary:
                    against = [torch.zeros((), device=device)] * 3
                if judging:
                    against = [adversary.learn(waves), *adversary.judge(waves)]
                    loss = loss + args.adv_weight * against[1] + args.feat_weight * against[2]
                scaler.scale(loss / args.accumulate).backward()
            with torch.no_grad():
                window[:-2] += torch.stack([loss, *scores, *against]).nan_to_num() / args.accumulate
            pairs += len(cover) * WORLD
        scaler.unscale_(optimiser)
        norm = nn.utils.clip_grad_norm_(trained.values(), args.clip)
        if math.isfinite(norm):
            scaler.step(optimiser)
            in_a_row = 0
        else:
            skipped, in_a_row = skipped + 1, in_a_row + 1
            if in_a_row >= args.max_skipped:
                stop(f"the gradient was not finite {in_a_row} times in a row, the last at step {step + 1}: "
                     "try a lower --lr, other weights of the losses, or --amp fp32")
        scaler.update()
        window[-2:] += torch.stack([norm.nan_to_num(0, 0, 0), torch.ones_like(norm)])
        done = step + 1
        bar.update()
        if WORLD > 1:  # one process may have heard of it before another
            flag = torch.tensor(max(stopped, default=0), device=device)
            distributed.all_reduce(flag, distributed.ReduceOp.MAX)
            stopped = [flag.item()] if flag else []

        if done % args.log_every == 0 or done == args.steps:
            if WORLD > 1:
                distributed.all_reduce(window)
            means = dict(zip(measured, (window / window[-1]).tolist()))
            window.zero_()
            fresh = done % args.val_every == 0 or done == args.steps
            if fresh:
                if args.preset == "lattice":
                    model.cpu()
                    count_tables(model, train_pairs)
                validated = objective.validate(val_set, device)
                if objective.goodness(validated) > best:
                    best = objective.goodness(validated)
                    if RANK == 0:
                        model.save(best_path)
            if RANK == 0:
                csv.writer(metrics).writerow([
                    done, *(f"{value:.6g}" for value in means.values()), f"{rate:.4g}", skipped,
                    *(f"{value:.4f}" if fresh else "" for value in validated)])
                now = [means[name] for name in objective.scores] or [means["loss"]]
                bar.set_postfix_str(f"{objective.shown(now)}, lr {rate:.1e}, validation {objective.shown(validated)}")
        if done % args.save_every == 0 or done == args.steps or stopped:
            save(done)
        if stopped:
            bar.close()
            if RANK == 0:
                print(f"stopped after step {done}: {last_path} is written, go on with --resume", file=sys.stderr)
            sys.exit(128 + stopped[0])
    bar.close()
    if RANK == 0:
        print(f"done: {best_path} is the best model, {objective.shown(validated)} in the last validation")
    if WORLD > 1:
        distributed.destroy_process_group()


if __name__ == "__main__":
    main()
