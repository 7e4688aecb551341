"""What differs by model when files are hidden and revealed: a lattice, an INN, the paper's own.

A method gives the header of a stego and its samples, piece by piece, and inversely the samples of
a secret. The pieces are worked on by as many processes as there are cores.
"""

import collections
import ctypes
import importlib
import itertools
import math
import multiprocessing
import os
import signal
import sys
import threading
import zlib
from concurrent.futures.process import BrokenProcessPool, ProcessPoolExecutor
from dataclasses import asdict

import numpy as np
import torch
from torch.nn import functional
from tqdm import tqdm

from files import container
from files.command import StegoError
from files.container import SPARSE, Header
from files.sound import FULL_SCALE, Sound, energy, to_pcm
from wavinwav import LappedINN, Setting, lapped

PIECE = 1 << 18  # samples of each channel that the paper's network works on
PART = 1 << 20  # samples at most that the INN works on
EXCERPT, EXCERPTS = 8192, 16  # frames, and how many of them tell the width of the INN's cells
LOOKED_AT = 1 << 18  # frames in which cells are looked for, where the header is lost
CODES = 1 << 12  # of cells' widths and gains, as `LappedINN.fit` gives them


def method_of(model):
    """How to hide in files with a model."""
    if model.config.preset == "lattice":
        return lattice_module("parts").LatticeMethod(model)
    return (InnMethod if isinstance(model, LappedINN) else PaperMethod)(model)


def lattice_module(name, path="this model"):
    """A module of the folder lattice/, which only its own models, such as the one at `path`, need.
    Raises StegoError."""
    try:
        return importlib.import_module(f"lattice.{name}")
    except ModuleNotFoundError as error:
        raise StegoError(f"{path} needs the folder lattice/ beside stego.py; get it, or give "
                         "another model with --model") from error


class NetworkMethod:
    """What the INNs of wavinwav.py have in common."""

    layout = SPARSE
    least_samples = SPARSE.header_samples + SPARSE.seal_samples

    def __init__(self, model):
        self.model = model
        self.secret_noise = 0  # energy of what hiding took from the secret

    def fingerprint(self):
        """A checksum of the config and the weights."""
        config = zlib.crc32(repr(asdict(self.model.config)).encode())
        return config ^ container.fingerprint(self.model.state_dict().values())

    def header(self, cover, secret):
        return Header(cover.samples, secret.frames, self.fingerprint(), 0, secret.channels,
                      self.layout)

    def assumed_header(self, stego):
        """What to go by where there is no header: a secret as long as the stego."""
        return Header(stego.samples, stego.frames, 0, 0, stego.channels, self.layout)

    def read(self, sound, start, stop, count=None):
        """Frames of a Sound, float32 [channels, n] in [-1, 1), with zeros up to a count."""
        x = sound.read(start * sound.channels, stop * sound.channels).view(-1, sound.channels)
        x = x.T.float() / (1 << (sound.depth - 1))
        return functional.pad(x, (0, (count or x.shape[1]) - x.shape[1]))


class InnMethod(NetworkMethod):
    """Files with dirty-paper coding (`wavinwav.LappedINN`): part by part, on all cores."""

    def hide(self, header, cipher, cover, secret, snr, shaping, masking):
        """The stego's samples, without header and seal, piece by piece; sets header.setting."""
        snr = self.model.config.stego_snr if snr is None else snr
        setting = self.fit(cover, secret, snr, cipher)
        header.setting = packed(setting)
        parts = self.parts(cover)

        def work(part):
            keep_memory()
            index, start, stop = part
            x = self.read(cover, start, stop)
            y = self.read(secret, start, stop, x.shape[1]).expand_as(x)
            marks = torch.full_like(x, -1) if index else self.marks(header, cipher, *x.shape)
            stego = self.model.embed(
                x, y, setting, marks, cover.depth, self.dither(cipher, index, *x.shape))
            lost = 0 if part == parts[-1] else self.lost(header, cipher, part, stego, secret)
            stego = (stego * (1 << (cover.depth - 1))).round().T.flatten()
            return stego.numpy().astype(cover.dtype), lost

        for samples, lost in in_order(work, parts, bar(cover.seconds)):
            self.secret_noise += lost
            yield torch.from_numpy(samples)

    def measure(self, header, cipher, written, secret):
        """The energy of what `reveal` lacks of a secret: of the last part, in which the seal has
        come since, from the written stego; of the others `hide` has found it."""
        part = self.parts(written)[-1]
        x = self.read(written, *part[1:])
        return self.secret_noise + self.lost(header, cipher, part, x, secret)

    def lost(self, header, cipher, part, stego, secret):
        """The energy of what can't be revealed of a part's secret."""
        pcm = self.revealed(header, cipher, part, stego)
        start = part[1] * secret.channels
        return energy(secret.read(start, start + pcm.size)
                      - torch.from_numpy(pcm.flatten().astype(np.int32)))

    def revealed(self, header, cipher, part, stego):
        """The secret, int16 [n, channels], from a part [channels, n] of a stego."""
        index, start, _ = part
        dither = self.dither(cipher, index, *stego.shape)
        with torch.no_grad():
            secret = self.model.inverse(stego, unpacked(header.setting), dither)[1]
        secret = secret.mean(0, keepdim=True) if header.channels == 1 else secret
        return to_pcm(secret[:, :max(0, header.length - start)].T)

    def fit(self, cover, secret, snr, cipher):
        """The `wavinwav.Setting` [1] that comes closest to a stego SNR in dB, by excerpts."""
        starts = range(0, cover.frames, EXCERPT)
        if len(starts) > EXCERPTS:
            starts = [cover.frames * i // EXCERPTS for i in range(EXCERPTS)]
        x = [self.read(cover, start, start + EXCERPT) for start in starts]
        y = [self.read(secret, start, start + EXCERPT, piece.shape[1]).expand_as(piece).flatten()
             for start, piece in zip(starts, x)]
        x, y = torch.cat([piece.flatten() for piece in x])[None], torch.cat(y)[None]
        power = cover.energy / cover.samples / (1 << (cover.depth - 1)) ** 2
        louder = x.square().mean().item() / power if power else 1
        snr = snr + 10 * math.log10(louder or 1)
        return self.model.fit(x, y, snr, self.dither(cipher, 0, *x.shape))

    def marks(self, header, cipher, channels, count):
        """The lowest bits of frames [channels, n] in which the header lies, -1 elsewhere."""
        samples = torch.full((count * channels,), -1)
        bits = self.layout.targets(header.pack(cipher))
        samples[:self.layout.header_samples:self.layout.spacing] = bits
        return samples.view(-1, channels).T

    def dither(self, cipher, index, channels, length):
        """What a key adds to the secret in a part, in cells [channels, P, F / P, carriers]: one
        number a sample, hop by hop."""
        if not cipher.keyed:
            return None
        x = cipher.uniform(b"dither %d\0" % index, channels * length).view(channels, length)
        bands = self.model.config.bands
        x = functional.pad(x, (0, -length % bands)).unflatten(1, (-1, bands))
        return self.model.split(x.mT)

    def assumed_header(self, stego):
        """The same, and the cells that the samples seem to lie in."""
        header = super().assumed_header(stego)
        header.setting = find_code(self.model, self.read(stego, 0, LOOKED_AT))
        return header

    def reveal(self, header, cipher, stego):
        """The secret's samples, int16 [n, channels], piece by piece."""
        def work(part):
            keep_memory()
            x = self.read(stego, *part[1:], part[2] - part[1])
            pcm = self.revealed(header, cipher, part, x)
            pcm[max(0, stego.frames - part[1]):] = 0  # where it was cut off
            return pcm

        frames = header.samples // stego.channels
        parts = [part for part in self.parts(stego, frames) if part[1] < header.length]
        return in_order(work, parts, bar(header.length / stego.rate))

    def parts(self, sound, frames=None):
        """(index, first frame, last) of what is worked on at once: one part, or an even number of
        nearly one size, of whole frames of the transform but for the last."""
        frames, bands = frames or sound.frames, self.model.config.bands
        samples = frames * sound.channels
        count = 2 * math.ceil(samples / (2 * PART)) if samples > 0.4 * PART else 1
        size = math.ceil(frames / count / bands) * bands
        starts = range(0, frames, size)
        return [(i, start, min(frames, start + size)) for i, start in enumerate(starts)]


def packed(setting):
    """A `wavinwav.Setting` as a whole number of 12 bits."""
    return int(16 * setting.width + setting.gain)


def unpacked(code):
    """Inverse of `packed`, of a number or a tensor [n]."""
    code = torch.as_tensor(code, dtype=torch.float32).view(-1)
    return Setting((code / 16).floor(), code % 16)


def find_code(model, x):
    """The code, a whole number or not, of the cells that a stego [B, T] lies in, where the header
    that tells it is lost: in other cells, coefficients would lie anywhere. (A gain changes it.)"""
    x = model.split(lapped(x * FULL_SCALE, model.config.bands)).transpose(0, 1).flatten(1, 2)
    x = x[:, x.square().sum((0, 2)).argsort(descending=True)]  # loud frames first: they tell most

    def together(codes, frames, least=1.5):
        phase = x[:, :frames] / model.cells(unpacked(codes))[0]
        far = (phase.abs() > least).float()  # others would lie around the centre of any cell
        waves = torch.cos(2 * math.pi * phase)
        return (waves * far).mean((1, 2, 3)).abs() / (far.mean((1, 2, 3)) + 0.125)

    likely = together(torch.arange(CODES).float(), 12).topk(256).indices.float()
    best = likely[together(likely, 128).argmax()]  # few frames may fit cells of half the width
    wider = best + torch.tensor([0.0, 256, 512])
    scores = together(wider, 256)
    best = wider[scores > 0.7 * scores[0]][-1]  # as the whole may
    for width in (2.0, 0.25):
        near = best + torch.linspace(-width, width, 65)
        best = near[together(near, 512, 3.5).argmax()]
    return best.item() if model.config.reserve else round(best.item())


class PaperMethod(NetworkMethod):
    """Files with the paper's network: piece by piece, on all cores. A key permutes segments."""

    def hide(self, header, cipher, cover, secret, snr, shaping, masking):
        """The stego's samples, without header and seal, piece by piece. The cover is turned down by
        as little as it takes for them to lie within full scale."""
        limit = 1 << (cover.depth - 1)

        def work(piece):
            x = self.read(cover, *piece)
            y = self.read(secret, *piece, x.shape[1]).expand_as(x)
            y = container.scramble(y, segments_key(cipher), cover.rate) if cipher.keyed else y
            stego = (self.model.hide(x, y.contiguous())[0] * limit).round()
            peak = max(stego.max().item() / (limit - 1), -stego.min().item() / limit)
            return stego.int().T.numpy(), peak

        path = os.path.join(os.path.dirname(cover.path), "stego.raw")
        stego = Sound(cover.name, path, cover.rate, cover.channels, cover.frames, cover.depth)
        for _ in range(6):
            highest = 0
            with open(path, "wb") as file:
                for samples, peak in in_order(work, pieces(cover.frames), bar(cover.seconds)):
                    samples.astype(cover.dtype).tofile(file)
                    highest = max(highest, peak)
            if highest <= 1:
                break
            cover.scale *= 0.9999 / highest
        else:
            raise StegoError(f"{cover.name} is too loud; turn it down")
        if cover.scale < 1:
            print(f"note: {cover.name} was turned down by {-20 * math.log10(cover.scale):.2f} dB, "
                  "so that nothing clips", file=sys.stderr)
        first, last = self.layout.header_samples, cover.samples - self.layout.seal_samples
        yield stego.read(0, first)
        yield from stego.pieces(first, last)
        yield stego.read(last)

    def measure(self, header, cipher, written, secret):
        """The energy of what `reveal` lacks of a secret, from the written stego."""
        noise = start = 0
        for pcm in self.reveal(header, cipher, written):
            before = secret.read(start, start + pcm.size)
            noise += energy(before - torch.from_numpy(pcm.flatten().astype(np.int32)))
            start += pcm.size
        return noise

    def reveal(self, header, cipher, stego):
        """The secret's samples, int16 [n, channels], piece by piece."""
        frames = header.samples // stego.channels

        def work(piece):
            start, stop = piece
            x = self.read(stego, start, stop, stop - start)
            y = self.model.reveal(x)[1]
            y[:, max(0, stego.frames - start):] = 0  # where it was cut off
            y = container.unscramble(y, segments_key(cipher), stego.rate) if cipher.keyed else y
            y = y.mean(0, keepdim=True) if header.channels == 1 else y
            return to_pcm(y[:, :header.length - start].T)

        needed = [piece for piece in pieces(frames) if piece[0] < header.length]
        return in_order(work, needed, bar(header.length / stego.rate))


def pieces(frames):
    """(first frame, last) of what the paper's network works on at once; the last piece has half of
    PIECE at least."""
    stops = [*range(PIECE, frames - PIECE // 2 + 1, PIECE), frames]
    return list(zip([0, *stops], stops))


def segments_key(cipher):
    return cipher.stream(b"segments\0", 32)


def keep_memory():
    """Where the C library is glibc, large arrays that are freed stay with the process: half of the
    time would go to giving them back to the system and getting them again."""
    try:
        for parameter in (-1, -3):  # M_TRIM_THRESHOLD, M_MMAP_THRESHOLD
            ctypes.CDLL(None).mallopt(parameter, 1 << 30)
    except (AttributeError, OSError, TypeError):
        pass


_work = None  # of a child process, which inherits it


def _set_up(work):
    global _work
    _work = work
    torch.set_num_threads(1)
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: go when the parent is killed
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _do(task):
    return _work(task)


def _submit(pool, task):
    """A future of the task, for which a process may start. What a signal's handler raises in a fork
    is lost, so signals wait."""
    if threading.current_thread() is not threading.main_thread():  # where no handler runs
        return pool.submit(_do, task)
    waiting = []
    handlers = {number: signal.signal(number, lambda number, frame: waiting.append(number))
                for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        return pool.submit(_do, task)
    except OSError as error:
        raise StegoError(f"no process can be started ({error.strerror}); raise the limit, or end "
                         "what else runs") from error
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        for number in waiting:
            signal.raise_signal(number)


def _in_processes(work, tasks, workers):
    todo = iter(tasks)
    fork = multiprocessing.get_context("fork")
    with ProcessPoolExecutor(workers, fork, _set_up, (work,)) as pool:
        waiting = collections.deque(
            _submit(pool, task) for task in itertools.islice(todo, workers + 1))
        try:
            while waiting:
                result = waiting.popleft().result()
                waiting.extend(_submit(pool, task) for task in itertools.islice(todo, 1))
                yield result
        except BrokenProcessPool as error:
            raise StegoError("a worker process was killed; is there enough memory?") from error


def in_order(work, tasks, unit=None):
    """work(task) of each task, in their order: each worker process holds one, one more waits, and
    the next is added when a result has been taken. A bar of tasks, if their unit has a name.
    Threads would wait for Python's lock."""
    workers = min(len(tasks), os.cpu_count() or 1) if sys.platform == "linux" else 1
    if multiprocessing.current_process().daemon:  # as of a multiprocessing.Pool, has no children
        workers = 1
    results = _in_processes(work, tasks, workers) if workers > 1 else map(work, tasks)
    disable = None if unit else True  # None: shown on a terminal only
    yield from tqdm(results, total=len(tasks), unit=unit or "", leave=False, disable=disable)


def bar(seconds):
    """The unit of a bar for so much audio, or None for none."""
    return "part" if seconds > 60 else None
