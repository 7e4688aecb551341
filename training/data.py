"""Files of speech, or a dataset of the Hugging Face hub, as pairs of crops.

    pairs = Pairs(find_audio("speech"), rate=16000, samples=32000, seed="train 0")
    cover, secret, number = pairs[7]  # the same whenever, and wherever, it is asked for
    for cover, secret, numbers in batches(pairs, 4, first=0, count=100, workers=1): ...

Shapes: B pairs of a batch, T samples of a crop, N crops.
"""

import bisect
import io
import itertools
import math
import os
import random
import sys

import soundfile
import torch
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset, IterableDataset

from files.command import one_line
from files.resample import resample

RANK = int(os.environ.get("RANK", 0))  # torchrun sets these: which process this is, of how many
WORLD = int(os.environ.get("WORLD_SIZE", 1))
SILENCE = 1e-5  # mean square of a crop, -50 dBFS: under it there is nothing to hide or to hide in
UNREADABLE = soundfile.LibsndfileError, OSError


def stop(message):
    """End the run with one line on stderr, from one process."""
    sys.exit(one_line(message) if RANK == 0 else 1)


def find_audio(folder):
    """(path, frames, rate) of all audio files under a folder, sorted by path. What links lead to
    more than once, a folder or a file, counts once. Files that are empty, or cannot be read, are
    named in one warning."""
    if not os.path.isdir(folder):
        stop(f"{folder} is not a folder")
    endings = {"." + name.lower() for name in soundfile.available_formats()} - {".raw"}
    endings |= {".oga", ".opus", ".aif"}
    paths, searched = [], set()
    for root, folders, names in os.walk(folder, followlinks=True):
        folders.sort()
        real = os.path.realpath(root)
        if real in searched:
            folders.clear()
            continue
        searched.add(real)
        paths += [os.path.join(root, name) for name in names
                  if os.path.splitext(name)[1].lower() in endings]
    files, bad = [], []
    first = {os.path.realpath(path): path for path in sorted(paths, reverse=True)}
    for path in sorted(first.values()):
        try:
            info = soundfile.info(os.fsencode(path)) if os.path.isfile(path) else None
        except UNREADABLE:
            info = None
        if info and info.frames > 0:
            files.append((path, info.frames, info.samplerate))
        else:
            bad.append(path)
    if bad and RANK == 0:
        names = ", ".join(bad[:5]) + (", ..." if len(bad) > 5 else "")
        print(f"skipped {len(bad)} of {len(paths)} files, empty or not readable: "
              f"{one_line(names)}", file=sys.stderr)
    return files


def read_crop(file, rng, samples, rate):
    """A crop that begins anywhere in a sound file (a path, or a file object): mono, at `rate` Hz,
    float32 [samples], with zeros after the end of a shorter file. Raises one of UNREADABLE."""
    file = os.fsencode(file) if isinstance(file, (str, os.PathLike)) else file
    with soundfile.SoundFile(file) as sound:
        need = math.ceil(samples * sound.samplerate / rate)
        if sound.frames > need:
            sound.seek(rng.randrange(sound.frames - need + 1))
        x = torch.from_numpy(sound.read(need, dtype="float32", always_2d=True).mean(1))
    if len(x):
        x = resample(x, sound.samplerate, rate)
    return functional.pad(x[:samples], (0, max(0, samples - len(x))))


def usable_crop(file, rng, samples, rate, gain):
    """A crop whose level is changed by up to `gain` dB; None if it is silent or cannot be read."""
    try:
        x = read_crop(file, rng, samples, rate)
    except UNREADABLE:
        return None
    if not SILENCE < x.square().mean() < math.inf:  # as NaN is not
        return None
    return x * 10 ** (rng.uniform(-gain, gain) / 20)


class Pairs(Dataset):
    """Pairs of crops of two different files: n -> cover, secret, float32 [T], n. Each crop's level
    is changed by up to `gain` dB. Pair n depends on seed and n alone."""

    def __init__(self, files, rate, samples, seed, gain=0.0):
        self.files, self.rate, self.samples = files, rate, samples
        self.seed, self.gain = seed, gain
        seconds = (max(frames / own, samples / rate) for _, frames, own in files)
        self.ends = list(itertools.accumulate(seconds))

    def crop(self, rng, other=None):
        """A crop that is not silent, of a file drawn by duration, and the file's index."""
        for _ in range(1000):
            chosen = bisect.bisect(self.ends, rng.random() * self.ends[-1])
            chosen = min(chosen, len(self.files) - 1)
            if chosen == other:
                continue
            x = usable_crop(self.files[chosen][0], rng, self.samples, self.rate, self.gain)
            if x is not None:
                return x, chosen
        raise RuntimeError(f"1000 crops in a row, of {self.files[0][0]} and others, were silent or "
                           "could not be read")

    def __getitem__(self, index):
        rng = random.Random(f"{self.seed}/{index}")
        cover, chosen = self.crop(rng)
        return cover, self.crop(rng, other=chosen)[0], index

    def sample(self, count):
        """Other crops, to measure on: [count, T]."""
        rngs = (random.Random(f"{self.seed}/sample {n}") for n in range(count))
        return torch.stack([self.crop(rng)[0] for rng in rngs])


class HubPairs:
    """Pairs of crops of the items of a Hugging Face dataset, streamed: pair n of a process is made
    of the items 2 n and 2 n + 1 of its share, which are shuffled among a thousand. They look like
    those of `Pairs`."""

    def __init__(self, stream, column, rate, samples, seed, gain=0.0, shuffled=1000):
        self.stream, self.column, self.rate, self.samples = stream, column, rate, samples
        self.seed, self.gain, self.shuffled = seed, gain, shuffled

    def items(self, first=0, rank=0, world=1):
        """From item `first` of a process's share on; without end."""
        from datasets.distributed import split_dataset_by_node
        stream = self.stream
        if self.shuffled:
            seed = random.Random(self.seed).getrandbits(31)
            stream = stream.shuffle(seed, buffer_size=self.shuffled)
        if world > 1:
            stream = split_dataset_by_node(stream, rank, world)
        for item in stream.repeat(None).skip(first):
            yield item[self.column]

    def crop(self, item, rng):
        """A crop of an item {"bytes": ..., "path": ...}; faint noise where twenty crops are not
        usable, so that the items that follow keep their numbers."""
        for _ in range(20):
            file = io.BytesIO(item["bytes"]) if item["bytes"] else item["path"]
            x = usable_crop(file, rng, self.samples, self.rate, self.gain)
            if x is not None:
                return x
        generator = torch.Generator().manual_seed(rng.getrandbits(31))
        return 0.01 * torch.randn(self.samples, generator=generator)

    def pairs(self, first=0, rank=0, world=1):
        """From pair `first` of a process on; without end."""
        items = self.items(2 * first, rank, world)
        for n in itertools.count(first):
            number = n * world + rank
            rng = random.Random(f"{self.seed}/{number}")
            yield self.crop(next(items), rng), self.crop(next(items), rng), number

    def sample(self, count):
        """Crops to measure on: [count, T]. They are the first items'."""
        items = enumerate(itertools.islice(self.items(), count))
        return torch.stack([self.crop(item, random.Random(f"{self.seed}/sample {n}"))
                            for n, item in items])


class Stream(IterableDataset):
    """What DataLoader reads of HubPairs, on one process, from its pair `first` on."""

    def __init__(self, pairs, first):
        self.pairs, self.first = pairs, first

    def __iter__(self):
        return self.pairs.pairs(self.first, RANK, WORLD)


def share(first, count, batch_size, rank, world):
    """The numbers of a process's pairs, from `first` on: of every `world` batches, one."""
    start = first + rank * batch_size
    for batch in range(start, start + count * world * batch_size, world * batch_size):
        yield from range(batch, batch + batch_size)


def leave_signals_to_the_parent(worker):
    """A signal to the whole process group must not take the data from a loop that is about to save.
    (Ignoring signals would not do: Python ends its workers by one, and waits for them.)"""
    os.setpgrp()


def batches(pairs, batch_size, first, count, workers):
    """`count` batches of this process, after all processes together have used `first` pairs: cover,
    secret [B, T], and the pairs' numbers [B]."""
    if isinstance(pairs, HubPairs):
        dataset, sampler = Stream(pairs, first // WORLD), None
        workers = min(workers, 1)
    else:
        dataset, sampler = pairs, share(first, count, batch_size, RANK, WORLD)
    loader = DataLoader(dataset, batch_size, sampler=sampler, num_workers=workers,
                        pin_memory=torch.cuda.is_available(),
                        worker_init_fn=leave_signals_to_the_parent)
    return itertools.islice(loader, count)


def open_hub(name, config, split, column):
    """The items of a dataset on the hub, or in a folder that `datasets` reads, as a stream."""
    try:
        import datasets
    except ImportError:
        stop("--hf_dataset needs a package: pip install datasets")
    try:
        if os.path.exists(os.path.join(name, "state.json")):  # what save_to_disk wrote
            stream = datasets.load_from_disk(name).to_iterable_dataset()
        else:
            stream = datasets.load_dataset(name, config, split=split, streaming=True)
        if column not in next(iter(stream)):
            raise ValueError(f"it has no column {column}")
        return stream.cast_column(column, datasets.Audio(decode=False))
    except Exception as error:  # of many kinds: no network, no such name, split or column
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        stop(f"--hf_dataset {name} cannot be used ({reason}); see its page for configurations, "
             "splits and columns")


def split_files(args):
    """Training and validation files, from two folders, or from one by its list of files alone."""
    files = find_audio(args.data_dir)
    if args.val_dir:
        train, val = files, find_audio(args.val_dir)
    else:
        random.Random(0).shuffle(files)
        count = max(2, len(files) // 20)
        train, val = files[count:], files[:count]
    for purpose, folder, part in (("train", args.data_dir, train),
                                  ("validate", args.val_dir or args.data_dir, val)):
        if len(part) < 2:
            stop(f"{folder} has {len(part)} audio files to {purpose} on, and a cover and a secret "
                 f"need 2; {len(files)} readable audio files were found in {args.data_dir}")
    return train, val


def open_data(args, rate, samples):
    """What train.py's flags ask for: pairs to train on, pairs to validate on, a description."""
    seed = f"train {args.seed}"
    if not args.hf_dataset:
        train, val = split_files(args)
        train_pairs = Pairs(train, rate, samples, seed, args.gain)
        train_pairs.sample(1)  # raises now, not in a loader process, where all are silent
        about = f"{len(train)} files to train on, {len(val)} to validate on"
        return train_pairs, Pairs(val, rate, samples, "val"), about

    stream = open_hub(args.hf_dataset, args.hf_config, args.hf_split, args.hf_column)
    if args.val_dir:
        reserved, about = 0, args.val_dir
        val_pairs = Pairs(find_audio(args.val_dir), rate, samples, "val")
    else:
        reserved = 2 * args.val_pairs
        about = f"its first {reserved} items"
        val_pairs = HubPairs(stream.take(reserved), args.hf_column, rate, samples, "val",
                             shuffled=0)
    stream = stream.skip(reserved)
    if next(iter(stream), None) is None:
        stop(f"--hf_dataset {args.hf_dataset} has nothing but the {reserved} items to validate on: "
             "give fewer --val_pairs, or --val_dir")
    train_pairs = HubPairs(stream, args.hf_column, rate, samples, seed, args.gain)
    return train_pairs, val_pairs, f"{args.hf_dataset} to train on, {about} to validate on"
