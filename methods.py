"""What differs by model when files are hidden and revealed: a lattice, an INN, the paper's own.

A method gives the header of a stego and its samples, piece by piece, and inversely the samples of
a secret. The pieces are worked on by as many processes as there are cores.
"""

import collections
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

import container
import lattice
import wavinwav
from cells import LEAST_SAMPLES, MASKING, choose_widths, parts_of, segment_powers
from container import DENSE, SPARSE, Header
from lattice import Lattice
from sound import FULL_SCALE, Sound, StegoError, energy, to_pcm
from wavinwav import CODES, LappedINN, lapped

PIECE = 1 << 18  # samples of each channel that the paper's network works on
PART = 1 << 21  # frames at most that the INN works on
EXCERPT, EXCERPTS = 8192, 32  # frames, and how many of them tell the width of the INN's cells
LOOKED_AT = 1 << 18  # frames in which cells are looked for, where the header is lost


def method_of(model):
    """How to hide in files with a model."""
    kinds = {Lattice: LatticeMethod, LappedINN: InnMethod}
    return kinds.get(type(model), PaperMethod)(model)


class InnMethod:
    """Files with dirty-paper coding (`wavinwav.LappedINN`): part by part, on all cores."""

    layout = SPARSE
    least_samples = SPARSE.header_samples + SPARSE.seal_samples

    def __init__(self, model):
        self.model = model

    def fingerprint(self):
        return model_fingerprint(self.model)

    def header(self, cover, secret):
        return Header(cover.samples, secret.frames, self.fingerprint(), 0, secret.channels,
                      self.layout)

    def hide(self, header, cipher, cover, secret, snr, shaping, masking):
        """The stego's samples, without header and seal, piece by piece; sets header.setting."""
        snr = self.model.config.stego_snr if snr is None else snr
        code = self.fit(cover, secret, snr, cipher)
        header.setting = int(code)
        limit = 1 << (cover.depth - 1)

        def work(part):
            index, start, stop = part
            x, y = self.read(cover, start, stop) / limit, self.read(secret, start, stop)
            y = functional.pad(y / FULL_SCALE, (0, x.shape[1] - y.shape[1]))
            stego, _ = self.model.embed(
                x, y.expand_as(x), code.expand(len(x)), self.dither(cipher, index, x.shape),
                cover.depth, None if index else self.parity(header, cipher, cover.channels))
            return (stego * limit).round().int().T.flatten().numpy()

        for samples in in_order(work, self.parts(cover), bar(cover.seconds)):
            yield torch.from_numpy(samples)

    def fit(self, cover, secret, snr, cipher):
        """The code [1] of the setting that comes closest to a stego SNR in dB, by excerpts."""
        starts = range(0, cover.frames, EXCERPT)
        if len(starts) > EXCERPTS:
            starts = [cover.frames * i // EXCERPTS for i in range(EXCERPTS)]
        x, y = [], []
        for start in starts:
            piece = self.read(cover, start, min(start + EXCERPT, cover.frames))
            other = self.read(secret, start, start + piece.shape[1])
            other = functional.pad(other, (0, piece.shape[1] - other.shape[1]))
            x.append(piece.flatten() / (1 << (cover.depth - 1)))
            y.append(other.expand_as(piece).flatten() / FULL_SCALE)
        x, y = (torch.cat(pieces)[None] for pieces in (x, y))
        power = cover.energy / cover.samples / (1 << (cover.depth - 1)) ** 2
        louder = x.square().mean().item() / power if power else 1
        whole = x.shape[1] // self.model.config.bands * self.model.config.bands
        snr, dither = snr + 10 * math.log10(louder or 1), self.dither(cipher, 0, (1, whole))
        return self.model.fit(x[:, :whole], y[:, :whole], snr, dither)

    def parity(self, header, cipher, channels):
        """That of the first frames [channels, n], by which the header lies in them; -1 for any."""
        samples = torch.full((self.layout.header_samples,), -1)
        samples[::self.layout.spacing] = self.layout.targets(header.pack(cipher))
        return samples.view(-1, channels).T

    def dither(self, cipher, index, shape):
        if not cipher.keyed:
            return None
        return cipher.uniform(b"dither %d\0" % index, shape[0] * shape[1]).view(shape)

    def measure(self, header, cipher, written, secret):
        """The energy of what `reveal` lacks of a secret, from the written stego."""
        noise = start = 0
        for pcm in self.reveal(header, cipher, written):
            before = secret.read(start, start + pcm.size)
            noise += energy(before - torch.from_numpy(pcm.flatten().astype(np.int32)))
            start += pcm.size
        return noise

    def assumed_header(self, stego):
        """What to go by where there is no header: the cells that the samples seem to lie in, and a
        secret as long as the stego."""
        x = self.read(stego, 0, LOOKED_AT) / (1 << (stego.depth - 1))
        header = Header(stego.samples, stego.frames, 0, 0, stego.channels, self.layout)
        header.setting = find_code(self.model, x)
        return header

    def reveal(self, header, cipher, stego):
        """The secret's samples, int16 [n, channels], piece by piece."""
        code = torch.tensor([float(header.setting)])

        def work(part):
            index, start, stop = part
            x = self.read(stego, start, stop) / (1 << (stego.depth - 1))
            x = functional.pad(x, (0, stop - start - x.shape[1]))
            dither = self.dither(cipher, index, x.shape)
            y = self.model.extract(x, code.expand(len(x)), dither)[1]
            y = y.mean(0, keepdim=True) if header.channels == 1 else y
            return to_pcm(y[:, :max(0, header.length - start)].T)

        frames = header.samples // stego.channels
        parts = [part for part in self.parts(stego, frames) if part[1] < header.length]
        return in_order(work, parts, bar(header.length / stego.rate))

    def parts(self, sound, frames=None):
        """(index, first frame, last) of what is worked on at once: one part, or an even number of
        nearly one size, of whole frames of the transform but for the last."""
        frames, bands = frames or sound.frames, self.model.config.bands
        count = 2 * math.ceil(frames / (2 * PART)) if frames > 0.4 * PART else 1
        size = math.ceil(frames / count / bands) * bands
        if frames - (count - 1) * size < bands:
            count, size = 1, frames
        starts = range(0, frames, size)
        return [(i, start, min(frames, start + size)) for i, start in enumerate(starts)]

    def read(self, sound, start, stop):
        """Frames of a Sound, float32 [channels, n]."""
        samples = sound.read(start * sound.channels, stop * sound.channels)
        return samples.view(-1, sound.channels).T.float()


def find_code(model, x):
    """The code, a whole number or not, of the cells that a stego [B, T] lies in, where the header
    that tells it is lost: in other cells, coefficients would lie anywhere. (A gain changes it.)"""
    whole = x.shape[1] // model.config.bands * model.config.bands
    x = model.phases(lapped(wavinwav.FULL_SCALE * x[:, :whole], model.config.bands))[0]
    x = x.transpose(0, 1).flatten(1)
    x = x[:, x.square().sum(0).argsort(descending=True)]  # loud frames first: they tell most

    def together(codes, frames):
        cells = model.cells([], model.decode(codes)[0])[0]
        phase = x[:, :frames] / cells
        far = (phase.abs() > 1).float()  # others would lie around the centre of any cell
        waves = torch.cos(2 * math.pi * phase)
        return (waves * far).mean((1, 2)).abs() / (far.mean((1, 2)) + 0.125)

    likely = together(torch.arange(CODES).float(), 48).topk(256).indices.float()
    best = likely[together(likely, 512).argmax()]  # few frames may fit cells of half the width
    for width in (2.0, 0.25):
        near = best + torch.linspace(-width, width, 65)
        best = near[together(near, 1024).argmax()]
    return best.item() if model.config.reserve else round(best.item())


class LatticeMethod:
    """Files with a lattice: part by part, on all cores."""

    layout, least_samples = DENSE, LEAST_SAMPLES

    def __init__(self, model):
        self.model = model
        self.secret_noise = 0  # energy of what hiding took from the secret

    def fingerprint(self):
        return self.model.fingerprint()

    def header(self, cover, secret):
        return self.model.header(cover.samples, secret.frames, secret.channels, cover.rate)

    def hide(self, header, cipher, cover, secret, snr, shaping, masking):
        """The stego's samples, without header and seal, piece by piece."""
        snr = lattice.STEGO_SNR if snr is None else snr
        masking = MASKING if masking is None else masking
        first, last = self.layout.header_samples, cover.samples - self.layout.seal_samples
        powers = torch.cat([segment_powers(piece) for piece in cover.pieces(first, last)])
        error = cover.energy / cover.samples / 10 ** (snr / 10)
        widths = choose_widths(powers, error, masking, cover.depth)
        parts = parts_of(header)

        def work(part):
            before = cover.read(part.samples.start, part.samples.stop)
            pcm = secret.read(part.secret.start * secret.channels,
                              part.secret.stop * secret.channels).view(-1, secret.channels).float()
            stego, decoded = self.model.hide_part(
                header, cipher, part, before, pcm, widths, shaping, cover.depth, exact=False)
            decoded = decoded.round().clamp(-FULL_SCALE, FULL_SCALE - 1)
            return stego.numpy(), energy(decoded - pcm)

        yield cover.read(0, first)
        for stego, lost in in_order(work, parts, bar(cover.seconds)):
            self.secret_noise += lost
            yield torch.from_numpy(stego)
        yield cover.read(parts[-1].samples.stop)

    def measure(self, header, cipher, written, secret):
        """The energy of what `reveal` will lack of a secret: decoding is exact, so it is known."""
        return self.secret_noise

    def assumed_header(self, stego):
        """What to go by where there is no header: nothing."""

    def reveal(self, header, cipher, stego):
        """The secret's samples, int16 [n, channels], piece by piece. Raises Damaged."""
        def work(part):
            samples = stego.read(part.samples.start, part.samples.stop)
            missing = part.samples.stop - part.samples.start - len(samples)
            secret, blocks, lost = self.model.reveal_part(
                header, cipher, part, functional.pad(samples, (0, missing)))
            return to_pcm(secret / FULL_SCALE), blocks, lost

        blocks = lost = 0
        for pcm, more_blocks, more_lost in in_order(work, parts_of(header), bar(stego.seconds)):
            yield pcm
            blocks, lost = blocks + more_blocks, lost + more_lost
        damage = lattice.tell_damage(blocks, lost)
        if damage:
            print(f"warning: {stego.name}: {damage}", file=sys.stderr)


class PaperMethod:
    """Files with the paper's network: piece by piece, on all cores. A key permutes segments."""

    layout = SPARSE
    least_samples = SPARSE.header_samples + SPARSE.seal_samples

    def __init__(self, model):
        self.model = model

    def fingerprint(self):
        return model_fingerprint(self.model)

    def header(self, cover, secret):
        return Header(cover.samples, secret.frames, self.fingerprint(), 0, secret.channels,
                      self.layout)

    def hide(self, header, cipher, cover, secret, snr, shaping, masking):
        """The stego's samples, without header and seal, piece by piece. The cover is turned down by
        as little as it takes for them to lie within full scale."""
        limit = 1 << (cover.depth - 1)

        def work(start):
            x, y = self.read(cover, start) / limit, self.read(secret, start) / FULL_SCALE
            y = functional.pad(y, (0, x.shape[1] - y.shape[1])).expand(cover.channels, -1)
            y = container.scramble(y, segments_key(cipher), cover.rate) if cipher.keyed else y
            stego = (self.model.hide(x, y.contiguous())[0] * limit).round()
            peak = max(stego.max().item() / (limit - 1), -stego.min().item() / limit)
            return stego.int().T.numpy(), peak

        path = os.path.join(os.path.dirname(cover.path), "stego.raw")
        stego = Sound(cover.name, path, cover.rate, cover.channels, cover.frames, cover.depth)
        for _ in range(6):
            highest = 0
            with open(path, "wb") as file:
                starts = range(0, cover.frames, PIECE)
                for samples, peak in in_order(work, starts, bar(cover.seconds)):
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

    def assumed_header(self, stego):
        """What to go by where there is no header: a secret as long as the stego."""
        return Header(stego.samples, stego.frames, 0, 0, stego.channels, self.layout)

    def reveal(self, header, cipher, stego):
        """The secret's samples, int16 [n, channels], piece by piece."""
        def work(start):
            x = self.read(stego, start) / (1 << (stego.depth - 1))
            y = self.model.reveal(x)[1]
            y = container.unscramble(y, segments_key(cipher), stego.rate) if cipher.keyed else y
            y = y.mean(0, keepdim=True) if header.channels == 1 else y
            return to_pcm(y[:, :header.length - start].T)

        starts = range(0, header.length, PIECE)
        return in_order(work, starts, bar(header.length / stego.rate))

    def read(self, sound, start):
        """Frames of a Sound, float32 [channels, n]."""
        samples = sound.read(start * sound.channels, (start + PIECE) * sound.channels)
        return samples.view(-1, sound.channels).T.float()


def segments_key(cipher):
    return cipher.stream(b"segments\0", 32)


def model_fingerprint(model):
    """A checksum of an INN's config and weights."""
    config = zlib.crc32(repr(asdict(model.config)).encode())
    return config ^ container.fingerprint(model.state_dict().values())


_work = None  # of a child process, which inherits it


def _set_up(work):
    global _work
    _work = work
    torch.set_num_threads(1)
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
    results = _in_processes(work, tasks, workers) if workers > 1 else map(work, tasks)
    disable = None if unit else True  # None: shown on a terminal only
    yield from tqdm(results, total=len(tasks), unit=unit or "", leave=False, disable=disable)


def bar(seconds):
    """The unit of a bar for so much audio, or None for none."""
    return "part" if seconds > 60 else None
