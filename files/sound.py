"""Sound files of any length: decoded into a temporary file, read in pieces, written as a whole.

Samples are integers of 16 or 24 bits, in tensors or arrays [n]; two channels are interleaved.
"""

import contextlib
import errno
import functools
import math
import os
import tempfile
from dataclasses import dataclass, replace

import numpy as np
import soundfile
import torch
from torch.nn import functional

from files.checkpoint import check_writable, replacing
from files.command import StegoError, note
from files.resample import resample
from files.source import READ_AT_ONCE, check_whole, open_audio

FULL_SCALE = 32768  # of 16-bit PCM: a file's sample n is n / FULL_SCALE in a model
SHORT = "PCM_16", "PCM_S8", "PCM_U8", "ULAW", "ALAW", "ALAC_16"  # encodings of 16 bits at most
LONG = "PCM_24", "PCM_32", "ALAC_20", "ALAC_24", "ALAC_32"
FORMATS = {".wav": "WAV", ".flac": "FLAC"}  # that keep samples as they are, 16 or 24 bits of them


@dataclass
class Sound:
    """A sound file decoded into a temporary file of integers, so that any part of it can be read
    in constant memory."""

    name: str  # for messages
    path: str  # of the temporary file
    rate: int  # Hz
    channels: int
    frames: int = 0  # samples in each channel
    depth: int = 16  # bits of a sample, 16 or 24
    gain: float = 1.0  # factor that brought floating-point samples within full scale
    scale: float = 1.0  # factor that `read` applies
    skipped: int = 0  # frames of digital silence before the first one

    @property
    def dtype(self):
        return np.dtype(np.int16 if self.depth == 16 else np.int32)

    @property
    def seconds(self):
        return self.frames / self.rate

    @property
    def samples(self):
        return self.frames * self.channels

    def read(self, start=0, stop=None):
        """Samples from `start` to `stop`, channels interleaved: an int32 tensor [n]."""
        stop = self.samples if stop is None else min(stop, self.samples)
        offset = start * self.dtype.itemsize
        x = np.fromfile(self.path, self.dtype, max(0, stop - start), offset=offset)
        x = torch.from_numpy(x.astype(np.int32))
        return x if self.scale == 1 else (x.double() * self.scale).round().int()

    def pieces(self, start=0, stop=None):
        """The same in pieces."""
        stop = self.samples if stop is None else stop
        for first in range(start, stop, READ_AT_ONCE):
            yield self.read(first, min(stop, first + READ_AT_ONCE))

    @functools.cached_property
    def energy(self):  # once `scale` is final
        return sum(map(energy, self.pieces()))

    def distance(self, other):
        """The energy of the difference from a Sound of this rate and about as many frames, which
        may have fewer bits, or one channel."""
        scale, total = 2 ** (self.depth - other.depth), 0.0
        for start in range(0, self.frames, READ_AT_ONCE):
            x, y = (sound.read(start * sound.channels, (start + READ_AT_ONCE) * sound.channels)
                    .view(-1, sound.channels) for sound in (self, other))
            total += energy(x - scale * functional.pad(y, (0, 0, 0, len(x) - len(y))))
        return total


def read_audio(path, dtype="float32"):
    """All samples [T, channels] as numpy, and the rate in Hz. Raises StegoError for a file that is
    cut off or cannot be used."""
    with open_audio(path) as file:
        check_whole(file)
        return np.concatenate(list(file.pieces(dtype))), file.samplerate


def decode(path, name, folder, depth=None, whole=True, most=math.inf, skip=False):
    """Decode the sound file at `path`, named `name` in messages, into `folder`.

    depth: bits of the samples; None is 24 if the file has more than 16
    whole: refuse a file that is cut off. Without it, the file may be a stego, and its depth is the
        one that its samples use.
    most: stop after about so many frames, READ_AT_ONCE more at most
    skip: leave out digital silence, of 0 and 1, at the beginning, as many times READ_AT_ONCE frames
        as there are; the Sound may be empty

    Returns a Sound. Raises StegoError, and OSError if the folder cannot hold it.
    """
    with (open_audio(path, name) as file,
          tempfile.NamedTemporaryFile(dir=folder, delete=False) as plain):
        if file.channels > 2:
            raise StegoError(f"{name} has {file.channels} channels, and one or two can be used; "
                             "mix it down first")
        if whole:
            check_whole(file)
        if file.unfinished:
            note(f"{name} is an interrupted recording: its header has no length, so everything in "
                 "it is taken")
        short = file.subtype in SHORT
        depth = depth or (24 if file.subtype in (*LONG, "FLOAT", "DOUBLE") else 16)
        sound = Sound(name, plain.name, file.samplerate, file.channels, depth=depth)
        limit, used = 1 << (depth - 1), 0  # used: bits
        if not short and file.subtype not in LONG:  # it may exceed full scale
            with open_audio(path, name) as before:
                peak = max((np.abs(x).max() for x in before.pieces("float64", most)), default=0)
            sound.gain = (limit - 1) / limit / peak if peak > 1 else 1.0
        direct = short and depth == 16
        for x in file.pieces("int16" if direct else "float64"):
            if not direct:
                x = (x * (sound.gain * limit)).round().clip(-limit, limit - 1).astype(sound.dtype)
            if skip and not sound.frames and not (x >> 1).any():
                sound.skipped += len(x)
                continue
            x.tofile(plain)
            sound.frames += len(x)
            used |= 0 if whole else int(np.bitwise_or.reduce(x, axis=None))
            if sound.frames >= most:
                break
        guessed = file.subtype in ("MPEG_LAYER_I", "MPEG_LAYER_II")  # the number of frames
        if whole and sound.frames < file.frames and not guessed:
            raise StegoError(f"{name} is cut off: {sound.frames} of {file.frames} samples are "
                             "left; get the whole file, or convert what is left to WAV")
    if not sound.frames + sound.skipped:
        raise StegoError(f"{name} has no samples; give a file with sound in it")
    if not whole and depth == 24 and not used & 255:
        return decode(path, name, folder, 16, whole, most, skip)
    return sound


def resampled(sound, rate, length, folder, mono=False):
    """A Sound at another rate, of at most `length` frames and 16 bits, mixed to one channel if
    `mono` is set. The result does not depend on pieces."""
    common = math.gcd(sound.rate, rate)
    old, new = sound.rate // common, rate // common
    size = old * math.ceil(READ_AT_ONCE / max(old, new))  # frames of a piece
    context = old * math.ceil(64 * max(1, old / new) / old)  # frames beside it that it depends on
    with tempfile.NamedTemporaryFile(dir=folder, delete=False) as plain:
        result = Sound(sound.name, plain.name, rate, 1 if mono else sound.channels)
        for start in range(0, sound.frames, size):
            first = max(0, start - context)
            x = sound.read(first * sound.channels, (start + size + context) * sound.channels)
            x = x.view(-1, sound.channels).T.float() / (1 << (sound.depth - 1))
            x = x.mean(0, keepdim=True) if mono else x
            x = resample(x, old, new)[:, (start - first) // old * new:]
            x = x[:, :min(size // old * new, length - result.frames)]
            to_pcm(x).T.tofile(plain)
            result.frames += x.shape[1]
    return result


def moved(sound, frames):
    """A Sound with so many frames of silence before it, or without as many of its first ones."""
    folder = os.path.dirname(sound.path)
    with tempfile.NamedTemporaryFile(dir=folder, delete=False) as plain:
        np.zeros(max(0, frames) * sound.channels, sound.dtype).tofile(plain)
        for x in sound.pieces(max(0, -frames) * sound.channels):
            x.numpy().astype(sound.dtype).tofile(plain)
    return replace(sound, path=plain.name, frames=sound.frames + frames)


def check_output(path, overwrite):
    """Raises StegoError, before the work, if a sound file cannot be written to `path`."""
    if path != "-" and os.path.splitext(path)[1].lower() not in FORMATS:
        raise StegoError(f"{path}: only WAV and FLAC keep every sample as it is; "
                         "give a name that ends in .wav or .flac")
    if path != "-":
        check_writable(path)
    if os.path.exists(path) and not overwrite:
        raise StegoError(f"{path} exists; give another name, or --overwrite")


@contextlib.contextmanager
def placing(path, overwrite=True):
    """Gives the name of a temporary file, which becomes `path` at the end unless there was an
    error. Raises StegoError."""
    try:
        with replacing(path, overwrite) as temporary:
            yield temporary
    except FileExistsError as error:
        raise StegoError(f"{path} exists by now; give another name, or --overwrite") from error
    except (soundfile.LibsndfileError, OSError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise StegoError(f"{path} cannot be written ({reason}); is there room, and the right to?"
                         ) from error


@contextlib.contextmanager
def writing(temporary, path, rate, channels, depth=16, seconds=0):
    """Gives a function that appends integer samples [n], channels interleaved, to a new sound file
    `temporary`, whose format is that of `path`. Raises StegoError if the format does not have this
    rate, LibsndfileError, OSError."""
    form = FORMATS[os.path.splitext(path)[1].lower()]
    if form == "FLAC" and rate > (655350 if rate % 10 == 0 else 65535):
        raise StegoError(f"{path} cannot be written: FLAC has no rate of {rate} Hz; give a name "
                         "that ends in .wav")
    if form == "WAV" and seconds * rate * channels * depth / 8 > 0xFFFF0000:
        form = "RF64"
    name = os.fsencode(temporary) if os.name == "posix" else temporary
    with soundfile.SoundFile(name, "w", rate, channels, f"PCM_{depth}", format=form) as file:
        def put(samples):
            x = np.asarray(samples).reshape(-1, channels)
            x = x.astype(np.int16) if depth == 16 else x.astype(np.int32) << 8
            try:
                file.write(x)
            except AssertionError as error:  # soundfile's sign that not everything was written
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from error

        yield put


def write_audio(path, samples, rate):
    """Write int16 samples [T] or [T, channels] as 16-bit PCM, replacing a file. Raises StegoError.
    """
    channels = 1 if samples.ndim == 1 else samples.shape[1]
    with placing(path) as temporary, writing(temporary, path, rate, channels) as put:
        put(samples)


def to_pcm(x):
    """Float tensor in [-1, 1) to int16, rounded and clipped. Any shape."""
    return (x * FULL_SCALE).round().clamp(-FULL_SCALE, FULL_SCALE - 1).to(torch.int16).numpy()


def from_pcm(samples):
    """int16 array to a float tensor in [-1, 1). Any shape."""
    return torch.from_numpy(samples.astype(np.float32)) / FULL_SCALE


def snr_of(reference, estimate):
    """Signal-to-noise ratio in dB of two float tensors [T]: infinity if they are equal, minus
    infinity for a silent reference."""
    return decibel(energy(reference), energy(reference - estimate))


def energy(x):
    pieces = (piece.double() for piece in x.flatten().split(READ_AT_ONCE))
    return sum(piece.dot(piece).item() for piece in pieces)


def decibel(signal_energy, noise_energy):
    if not noise_energy:
        return math.inf
    return 10 * math.log10(signal_energy / noise_energy) if signal_energy else -math.inf
