"""Speech files, or a Hugging Face dataset, as pairs of crops.

    pairs = Pairs(find_audio("speech"), rate=16000, samples=32000, seed="train 0")
    cover, secret, number, unusable, reason = pairs[7]
    for batch in batches(pairs, batch_size=4, first=0, count=100, workers=1): ...

Shapes: B pairs in a batch, T samples in a crop.
"""

import bisect
import copy
import io
import itertools
import math
import os
import random
import sys
from inspect import signature
from typing import NamedTuple

import soundfile
import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset, IterableDataset

from files.command import StegoError, one_line
from files.resample import resample
from files.source import open_audio
from training.processes import RANK, WORLD, stop

SILENCE = 1e-5  # mean square, -50 dBFS: below, there is nothing to hide or to hide in
TRIES = 20  # crops of a file that may be silent before it counts as silent
PATIENCE = 100  # unusable files before the run ends
OLDEST_DATASETS = "3.6"


class DataError(RuntimeError):
    """Why there are no more pairs, in one line."""

    def __init__(self, text):  # a DataLoader puts a worker's traceback before it
        super().__init__(text.rpartition("DataError: ")[2].strip())


class Pair(NamedTuple):
    """Two crops, or a batch of them."""

    cover: Tensor  # float32 [T] or [B, T]
    secret: Tensor
    number: int  # unique in the run
    unusable: int  # files or items that were drawn for it, and could not be used
    reason: str  # of the first of them


def find_audio(folder):
    """(path, frames, rate) of all audio files under a folder, sorted by path. A file or folder that
    several links lead to counts once. Empty and unreadable files are named in one warning."""
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
    first = {os.path.realpath(path): path for path in sorted(paths, reverse=True)}
    files, bad = [], []
    for path in sorted(first.values()):
        try:
            with open_audio(path) as sound:
                files.append((path, sound.frames, sound.samplerate))
        except StegoError:
            bad.append(path)
    if bad and RANK == 0:
        names = ", ".join(bad[:5]) + (", ..." if len(bad) > 5 else "")
        print(f"skipped {len(bad)} of {len(paths)} files, empty or not readable: "
              f"{one_line(names)}", file=sys.stderr)
    return files


def read_crop(source, rng, samples, rate):
    """A crop that begins anywhere in a path or a file's bytes: mono, at `rate` Hz, float32
    [samples], with zeros after the end of a shorter file. Raises StegoError."""
    source = io.BytesIO(source) if isinstance(source, bytes) else source
    with open_audio(source, "it") as sound:
        need = math.ceil(samples * sound.samplerate / rate)
        if sound.frames > need:
            sound.seek(rng.randrange(sound.frames - need + 1))
        x = sound.read(min(need, sound.frames), dtype="float32", always_2d=True).mean(1)
    x = resample(torch.from_numpy(x), sound.samplerate, rate)[:samples]
    return functional.pad(x, (0, samples - len(x)))


def usable_crop(source, rng, samples, rate, gain, tilt=0.0):
    """A crop that is not silent, its level changed by up to `gain` dB, and `varied` if there is a
    tilt. Raises StegoError."""
    for _ in range(TRIES):
        speed = 2 ** rng.uniform(-0.6, 0.6) if tilt else 1.0
        x = read_crop(source, rng, round(samples * speed), rate)
        if x.square().mean() > SILENCE:
            x = varied(x, rng, samples, tilt) if tilt else x
            x = x * 10 ** (rng.uniform(-gain, gain) / 20)
            return x / x.abs().max().clamp_min(1) if tilt else x
    raise StegoError("it is silent")


def varied(x, rng, samples, tilt):
    """A crop as of another recording [samples]: resampled, its high frequencies raised by up to
    `tilt` dB or lowered by a third of that, and every second time with white noise."""
    spectrum, bins = torch.fft.rfft(x) * (samples / len(x)), samples // 2 + 1
    spectrum = functional.pad(spectrum, (0, bins - len(spectrum)))
    corner, decibel = rng.uniform(0.1, 0.5), rng.uniform(-tilt / 3, tilt)
    rise = ((torch.linspace(0, 1, bins) - corner) / (1 - corner)).clamp_min(0)
    x = torch.fft.irfft(spectrum * 10 ** (decibel * rise / 20), samples)
    if rng.random() < 0.5:
        normal = torch.randn(samples, generator=torch.Generator().manual_seed(rng.getrandbits(31)))
        x = x + normal * x.square().mean().sqrt() * 10 ** (-rng.uniform(30, 70) / 20)
    return x


class Pairs(Dataset):
    """Pairs of crops of two different files. Pair n depends on seed and n alone. The level of each
    crop is changed by up to `gain` dB."""

    def __init__(self, files, rate, samples, seed, gain=0.0, tilt=0.0, purpose="train"):
        self.files, self.rate, self.samples = files, rate, samples
        self.seed, self.change, self.purpose = seed, (gain, tilt), purpose
        seconds = (max(frames / own, samples / rate) for _, frames, own in files)
        self.ends = list(itertools.accumulate(seconds, initial=0.0))

    def draw(self, rng, problems, other=None):
        """A crop of a file, drawn by duration from all but one, and the file's index. Appends to
        `problems` those that were unusable. Raises DataError."""
        skipped = (self.ends[other], self.ends[other + 1]) if other is not None else (0.0, 0.0)
        for _ in range(PATIENCE):
            place = rng.random() * (self.ends[-1] - skipped[1] + skipped[0])
            place += (skipped[1] - skipped[0]) * (place >= skipped[0])
            chosen = min(bisect.bisect(self.ends, place), len(self.files)) - 1
            path = self.files[chosen][0]
            try:
                return usable_crop(path, rng, self.samples, self.rate, *self.change), chosen
            except StegoError as error:
                problems.append(f"{path}: {error}")
        names = "; ".join(dict.fromkeys(problems[-3:]))
        raise DataError(f"no file to {self.purpose} on: {PATIENCE} in a row are unusable, the last "
                        f"of them {names}")

    def __getitem__(self, number):
        rng, problems = random.Random(f"{self.seed}/{number}"), []
        cover, chosen = self.draw(rng, problems)
        secret, _ = self.draw(rng, problems, chosen)
        return Pair(cover, secret, number, len(problems), problems[0] if problems else "")


class HubPairs(IterableDataset):
    """Pairs of crops of a Hugging Face dataset, streamed: pair n of a process is of the items 2 n
    and 2 n + 1 of its share, which are shuffled, among so many, anew in each epoch. A pair with
    an unusable item is skipped."""

    place = ()  # arguments of `pairs` for a DataLoader

    def __init__(self, stream, column, rate, samples, seed, gain=0.0, tilt=0.0, shuffled=0):
        self.stream, self.column, self.rate, self.samples = stream, column, rate, samples
        self.seed, self.change, self.shuffled = seed, (gain, tilt), shuffled

    def items(self, rank=0, world=1):
        """A process's share of the items, epoch after epoch, without end. Raises DataError."""
        from datasets.distributed import split_dataset_by_node
        stream = self.stream
        if self.shuffled:
            seed = random.Random(self.seed).getrandbits(31)
            one = {"max_buffer_input_shards": 1}  # more are read in threads, 5 s to end an epoch
            options = one if one.keys() <= signature(stream.shuffle).parameters.keys() else {}
            stream = stream.shuffle(seed, buffer_size=self.shuffled, **options)
        if world > 1:
            stream = split_dataset_by_node(stream, rank, world)
        for epoch in itertools.count():
            stream.set_epoch(epoch)
            item = None
            try:
                for item in stream:
                    yield item[self.column]
            except Exception as error:  # of many kinds: no network, a file that is gone
                raise DataError(f"the dataset gives no more items ({summary(error)})") from error
            if item is None:
                raise DataError(f"the dataset has too few items for {world} processes")

    def __iter__(self):
        return self.pairs(*self.place)

    def pairs(self, first=0, rank=0, world=1):
        """From pair `first` of a process on, without end. Raises DataError."""
        items = itertools.islice(self.items(rank, world), 2 * first, None)
        problems, excess, cause = [], 0, ""
        for own in itertools.count(first):
            two = list(itertools.islice(items, 2))
            number, crops = own * world + rank, []
            rng = random.Random(f"{self.seed}/{number}")
            for item in two:
                try:
                    crops.append(usable_crop(content(item), rng, self.samples, self.rate,
                                             *self.change))
                    excess = max(0, excess - 1)
                except StegoError as error:
                    problems.append(f"an item: {error}")
                    excess += 1
                    cause = problems[-1] if excess == 1 else cause
            if excess >= PATIENCE:
                raise DataError(f"more than half of the items are unusable, the first: {cause}")
            if len(crops) == 2:
                yield Pair(*crops, number, len(problems), problems[0] if problems else "")
                problems = []


def content(item):
    """The path or the bytes of an item {"path": ..., "bytes": ...}. Raises StegoError."""
    if not item or not (item["bytes"] or item["path"]):
        raise StegoError("it is empty")
    if item["bytes"] or "://" not in item["path"]:
        return item["bytes"] or item["path"]
    import fsspec
    with fsspec.open(item["path"], "rb") as file:
        return file.read()


def share(first, count, batch_size, rank, world):
    """The numbers of a process's pairs, from `first` on: of every `world` batches, one."""
    start = first + rank * batch_size
    for batch in range(start, start + count * world * batch_size, world * batch_size):
        yield from range(batch, batch + batch_size)


def leave_signals_to_the_parent(worker):
    """A signal to the whole process group must not end a loader while the run saves. (Ignoring
    signals would not do: Python ends its workers by one, and waits for them.)"""
    if hasattr(os, "setpgrp"):
        os.setpgrp()


def batches(pairs, batch_size, first, count, workers, rank=RANK, world=WORLD):
    """`count` batches of a process, each a Pair of tensors, from pair `first` of the run on."""
    if isinstance(pairs, HubPairs):
        dataset, sampler, workers = copy.copy(pairs), None, min(workers, 1)
        dataset.place = math.ceil((first - rank) / world), rank, world
    else:
        dataset, sampler = pairs, share(first, count, batch_size, rank, world)
    loader = DataLoader(dataset, batch_size, sampler=sampler, num_workers=workers,
                        pin_memory=torch.cuda.is_available(),
                        worker_init_fn=leave_signals_to_the_parent)
    return itertools.islice(loader, count)


def sample(pairs, count):
    """Crops to measure on, the same in every process: [count, T]."""
    batch = next(batches(pairs, math.ceil(count / 2), 0, 1, workers=0, rank=0, world=1))
    return torch.cat([batch.cover, batch.secret])[:count]


def summary(error):
    """An exception in a few words."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def open_hub(name, config, column):
    """{split: stream of items {column: {"bytes", "path"}}} of a dataset on the hub, or in a folder
    that `datasets` reads. None is the split of one that has none."""
    try:
        import datasets
    except ImportError:
        stop(f"--hf_dataset needs a package: pip install 'datasets>={OLDEST_DATASETS}'")
    try:
        if any(os.path.exists(os.path.join(name, file)) for file in
               ("state.json", "dataset_dict.json")):  # written by save_to_disk
            found = datasets.load_from_disk(name)
            found = found if isinstance(found, dict) else {None: found}
            found = {split: part.to_iterable_dataset() for split, part in found.items()}
        else:
            found = datasets.load_dataset(name, config, streaming=True)
        streams = {}
        for split, part in found.items():
            kind = (part.features or {}).get(column)
            if kind is not None and not isinstance(kind, (datasets.Audio, dict)) and (
                    getattr(kind, "dtype", None) not in ("string", "binary", "large_binary")):
                raise ValueError(f"its column {column} is not of audio files, but {kind}")
            # Before any item is read: decoding would need one more package, torchcodec.
            streams[split] = part.select_columns([column]).cast_column(
                column, datasets.Audio(decode=False))
        return streams
    except Exception as error:  # of many kinds: no network, no such name, split or column
        stop(f"--hf_dataset {name} cannot be used ({summary(error)}); see its page for "
             f"configurations, splits and columns. Versions from {OLDEST_DATASETS} on work; this "
             f"is datasets {datasets.__version__}")


def choose_split(streams, split, flag):
    """The stream of a split. `datasets` calls the split of a file dev.parquet `validation`."""
    if split in ("dev", "val", "valid") and split not in streams:
        split = "validation"
    if set(streams) == {None} and split == "train":
        return streams[None]
    if split not in streams:
        stop(f"there is no split {split}: give --{flag} "
             f"{', '.join(map(str, filter(None, streams))) or 'train, the only one'}")
    return streams[split]


def need_two(files, purpose, folder, note=""):
    """The files, of which a pair needs two. Ends the run where there are fewer."""
    if len(files) < 2:
        stop(f"{folder} has too few audio files to {purpose} on: {len(files)}{note}, and a pair "
             "needs 2")
    return files


def open_data(flags, config, least=1):
    """Pairs to train on, batches to validate on, and a description of both, by the flags data_dir,
    hf_*, val_dir, val_pairs, crop, gain, tilt and seed, for a model of this config. Crops are of
    whole hops and `least` samples or more. One folder is split by its list of files alone."""
    rate, hop = config.sample_rate, config.bands
    samples = max(1, round(flags.crop * rate / hop)) * hop
    if samples < least:
        stop(f"--crop {flags.crop:g} is too short: {least} samples are the least, "
             f"{least / rate:.3f} s")
    open_pairs = open_dataset if flags.hf_dataset else open_folder
    val = None
    if flags.val_dir:
        val_files = need_two(find_audio(flags.val_dir), "validate", flags.val_dir)
        val = Pairs(val_files, rate, samples, "val", purpose="validate")
    train, val, about = open_pairs(flags, rate, samples, val)
    count = math.ceil(flags.val_pairs / flags.batch_size / WORLD)
    return train, list(batches(val, flags.batch_size, 0, count, workers=0)), about


def open_folder(flags, rate, samples, val):
    """The pairs of --data_dir, those to validate on, if there are none yet, and a description."""
    files = find_audio(flags.data_dir)
    note = f" of the {len(files)} readable ones"
    if not val:
        random.Random(0).shuffle(files)
        count = max(2, len(files) // 20)
        files, held_out = files[count:], files[:count]
        val = Pairs(held_out, rate, samples, "val", purpose="validate")
        note += f" ({len(held_out)} of them are kept for validation)"
    need_two(files, "train", flags.data_dir, note)
    return (Pairs(files, rate, samples, f"train {flags.seed}", flags.gain, flags.tilt), val,
            f"{len(files)} files to train on, {len(val.files)} to validate on")


def open_dataset(flags, rate, samples, val):
    """The same of --hf_dataset."""
    column, reserved = flags.hf_column, 2 * flags.val_pairs
    streams = open_hub(flags.hf_dataset, flags.hf_config, column)
    stream, about = choose_split(streams, flags.hf_split, "hf_split"), flags.val_dir
    if not val and flags.hf_val_split:
        held_out = choose_split(streams, flags.hf_val_split, "hf_val_split")
        val, about = HubPairs(held_out, column, rate, samples, "val"), f"its {flags.hf_val_split}"
    elif not val:
        val = HubPairs(stream.take(reserved), column, rate, samples, "val")
        stream, about = stream.skip(reserved), f"its first {reserved} items"
    train = HubPairs(stream, column, rate, samples, f"train {flags.seed}", flags.gain, flags.tilt,
                     shuffled=1000)
    try:
        next(train.items())
    except DataError as error:
        stop(f"--hf_dataset {flags.hf_dataset} has no items to train on beside {about} ({error}): "
             "give fewer --val_pairs, --hf_val_split or --val_dir")
    return train, val, f"{flags.hf_dataset} to train on, {about} to validate on"
