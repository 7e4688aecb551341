"""Hide one sound file in another, and reveal it.

    python stego.py hide COVER SECRET -o STEGO.wav               # --snr 60: a stego closer to the cover, a coarser secret
    python stego.py reveal STEGO.wav -o SECRET.wav
    python stego.py hide COVER SECRET -o STEGO.wav --key         # asks for a passphrase; --key-file FILE reads one
    python stego.py hide COVER SECRET -o STEGO.wav --model wavinwav-affine.pt    # for channels that add some noise

COVER and SECRET: WAV, FLAC, OGG, MP3 and what else libsndfile reads, one or two channels, any rate; `-` is the standard
input. STEGO: WAV or FLAC of the cover's rate, channels and length, of 16 bits, or of 24 where the cover has more than 16;
`-` is the standard output. hide reads the file back and prints how close the stego is to the cover, and the revealed
secret to the secret. Length does not matter: both work part by part, on all cores.
"""

import argparse
import collections
import contextlib
import errno
import functools
import gc
import getpass
import itertools
import math
import multiprocessing
import os
import shutil
import signal
import sys
import tempfile
import warnings
from concurrent.futures.process import BrokenProcessPool, ProcessPoolExecutor
from dataclasses import dataclass, replace

gc.disable()  # while torch makes its objects: half a second
import numpy as np
import soundfile
import torch
from torch.nn import functional
from tqdm import tqdm

import wavinwav
from lazy_torchaudio import TorchaudioError, resample
from wavinwav import HEADER_SAMPLES, LEAST_SAMPLES, SEAL_SAMPLES, SEGMENT, Cipher, Header, Lattice

gc.freeze()
gc.enable()

HERE = os.path.dirname(os.path.abspath(__file__))
FULL_SCALE = 32768  # of 16-bit PCM: a file's sample n is n / FULL_SCALE in the model
BLOCK = 1 << 17  # samples that are read at a time
AFFINE_PIECE = 1 << 20  # samples of each channel that an affine model works on, without those around them
FORMATS = {".wav": "WAV", ".flac": "FLAC"}  # that keep samples as they are, 16 or 24 bits of them


class StegoError(Exception):
    """Bad input, told in one line that names the file and the remedy. Its cause, where there is one, is what a library or
    the model raised, such as `wavinwav.NoSecret`, `OtherModel` or `Damaged`."""


# ---------------------------------------------------------------- files

@dataclass
class Sound:
    """A sound file, decoded into a raw temporary file, so that any part of it can be read and memory does not grow."""

    raw: str  # the temporary file's path
    rate: int  # Hz
    channels: int
    frames: int = 0  # samples in each channel
    depth: int = 16  # bits of a sample, 16 or 24
    gain: float = 1.0  # what samples of floating point were turned down by, to lie within full scale
    scale: float = 1.0  # what `read` turns samples down by

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
        """Samples from `start` to `stop`, channels taking turns: an int32 tensor [n]."""
        stop = self.samples if stop is None else min(stop, self.samples)
        x = np.fromfile(self.raw, self.dtype, max(0, stop - start), offset=start * self.dtype.itemsize)
        x = torch.from_numpy(x.astype(np.int32))
        return x if self.scale == 1 else (x.double() * self.scale).round().int()

    def pieces(self, start=0, stop=None, size=BLOCK):
        stop = self.samples if stop is None else stop
        return (self.read(i, min(stop, i + size)) for i in range(start, stop, size))

    @functools.cached_property
    def energy(self):
        return sum(map(energy, self.pieces()))


def open_audio(path, name=None):
    """A soundfile.SoundFile to read from. Raises StegoError for what is no usable audio file."""
    name = name or path
    if not os.path.exists(path):
        raise StegoError(f"{name} does not exist; give a sound file")
    if os.path.isdir(path):
        raise StegoError(f"{name} is a folder; give a sound file")
    try:
        file = soundfile.SoundFile(path)
    except (soundfile.LibsndfileError, OSError) as error:
        reason = getattr(error, "error_string", error)
        raise StegoError(f"{name} cannot be read as audio ({reason}); give a WAV, FLAC, OGG or MP3 file") from error
    if not file.frames:
        raise StegoError(f"{name} has no samples; give a file with sound in it")
    return file


def read_audio(path, dtype="float32"):
    """All samples [T, channels] as numpy, and the rate in Hz. Raises StegoError for what is no usable audio file."""
    with open_audio(path) as file:
        try:
            samples = file.read(dtype=dtype, always_2d=True)
        except soundfile.LibsndfileError as error:
            raise StegoError(f"{path} cannot be read as audio ({error}); it may be damaged") from error
        if not np.isfinite(samples).all():
            raise StegoError(f"{path} has samples that are NaN or infinite; repair or re-export it")
        return samples, file.samplerate


def decode(path, name, folder, depth=None, mono=False, whole=True):
    """The sound file at `path` (named `name` in messages) as a Sound in `folder`, of 24 bits if its samples have more than
    16 bits and `depth` does not say otherwise. `whole` refuses files that are cut; without it, the file may be a stego, and
    its depth is what it uses. Raises StegoError."""
    with open_audio(path, name) as file, tempfile.NamedTemporaryFile(dir=folder, delete=False) as raw:
        if file.channels > 2:
            raise StegoError(f"{name} has {file.channels} channels, and one or two can be used; mix it down first")
        short = file.subtype in ("PCM_16", "PCM_S8", "PCM_U8", "ULAW", "ALAW")
        fine = file.subtype in ("PCM_24", "PCM_32", "FLOAT", "DOUBLE")
        found = Sound(raw.name, file.samplerate, 1 if mono else file.channels, depth=depth or (24 if fine else 16))
        direct, limit, peak = short and found.depth == 16 and found.channels == file.channels, 1 << found.depth - 1, 0
        used = 0  # bits
        if whole and _cut(path, file):
            raise StegoError(f"{name} is cut: it ends before its header says; get the whole file")
        try:
            if not (short or file.subtype.startswith("PCM")):
                for x in file.blocks(BLOCK, dtype="float64", always_2d=True):
                    if not np.isfinite(x).all():
                        raise StegoError(f"{name} has samples that are NaN or infinite; repair or re-export it")
                    peak = max(peak, np.abs(x).max(initial=0))
                file.seek(0)
            found.gain = (limit - 1) / limit / peak if peak > 1 else 1.0
            for x in file.blocks(BLOCK, dtype="int16" if direct else "float64", always_2d=True):
                if not direct:
                    x = x.mean(1, keepdims=True) if mono else x
                    x = (x * (found.gain * limit)).round().clip(-limit, limit - 1).astype(found.dtype)
                x.tofile(raw)
                found.frames += len(x)
                used |= 0 if whole else int(np.bitwise_or.reduce(x, axis=None))
        except soundfile.LibsndfileError as error:
            raise StegoError(f"{name} cannot be read to its end ({error}); it may be damaged") from error
        except OSError as error:
            raise StegoError(f"{folder} cannot hold {name} decoded ({error.strerror or error}); "
                             "set TMPDIR to a folder with room") from error
        if whole and file.format == "FLAC" and found.frames < file.frames:
            raise StegoError(f"{name} is cut: {found.frames} of {file.frames} samples are left; get the whole file")
    if not found.frames:
        raise StegoError(f"{name} has no samples; give a file with sound in it")
    if not whole and found.depth == 24 and not used & 255:
        return decode(path, name, folder, 16, whole=False)
    return found


def _cut(path, file):
    """Whether a WAV file is shorter than its header says. (Writers to pipes put 0 or almost 2 ** 31 or 2 ** 32 there.)"""
    if file.format not in ("WAV", "WAVEX"):
        return False
    with open(path, "rb") as content:
        size = int.from_bytes(content.read(8)[4:], "little")
    return 0 < size < 0x7FFFF000 and os.path.getsize(path) < size + 8


def resampled(sound, rate, length, folder):
    """A Sound at another rate, cut to `length` samples in each channel; the same in pieces as in one."""
    common = math.gcd(sound.rate, rate)
    old, new = sound.rate // common, rate // common
    size, context = (old * math.ceil(n / old) for n in (BLOCK, 64 * max(1, old / new)))  # frames; what reaches a piece
    with tempfile.NamedTemporaryFile(dir=folder, delete=False) as raw:
        found = Sound(raw.name, rate, sound.channels)
        for start in range(0, sound.frames, size):
            first = max(0, start - context)
            x = sound.read(first * sound.channels, (start + size + context) * sound.channels).view(-1, sound.channels)
            x = resample(x.T.float() / (1 << sound.depth - 1), old, new)
            x = x[:, (start - first) // old * new:][:, :min(size // old * new, length - found.frames)]
            to_pcm(x).T.tofile(raw)
            found.frames += x.shape[1]
    return found


@contextlib.contextmanager
def standard_streams(inputs, output):
    """The paths to use for these paths, of which `-` is the standard input or output."""
    with tempfile.TemporaryDirectory() as folder:
        paths = [os.path.join(folder, "stdin") if path == "-" else path for path in inputs]
        if "-" in inputs:
            with open(os.path.join(folder, "stdin"), "wb") as file:
                shutil.copyfileobj(sys.stdin.buffer, file)
        yield paths, os.path.join(folder, "stdout.wav") if output == "-" else output, folder
        if output == "-":
            with open(os.path.join(folder, "stdout.wav"), "rb") as file:
                shutil.copyfileobj(file, sys.stdout.buffer)


def check_output(path, overwrite):
    """Refuse, before the work, what cannot be written after it."""
    if path != "-" and os.path.splitext(path)[1].lower() not in FORMATS:
        raise StegoError(f"{path}: only WAV and FLAC keep every sample as it is; give a name that ends in .wav or .flac")
    if os.path.isdir(path) or not os.path.isdir(os.path.dirname(os.path.abspath(path))):
        raise StegoError(f"{path} cannot be written: {'it is' if os.path.isdir(path) else 'there is no such'} folder")
    if os.path.exists(path) and not overwrite:
        raise StegoError(f"{path} exists; give another name, or --overwrite")


@contextlib.contextmanager
def writing(path, rate, channels, depth=16, seconds=0):
    """A function that takes integer samples [n], channels taking turns, for a new sound file. It takes its place when it is
    complete: a fault leaves nothing behind."""
    name = FORMATS[os.path.splitext(path)[1].lower()]
    if name == "WAV" and seconds * rate * channels * depth / 8 > 0xFFFF0000:
        name = "RF64"
    try:
        with wavinwav.replacing(path) as temporary:
            with soundfile.SoundFile(temporary, "w", rate, channels, f"PCM_{depth}", format=name) as file:
                def put(samples):
                    samples = np.asarray(samples).reshape(-1, channels)
                    try:
                        file.write(samples.astype(np.int16) if depth == 16 else samples.astype(np.int32) << 8)
                    except AssertionError as error:  # soundfile's way to say that not all was written
                        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from error

                yield put
    except (soundfile.LibsndfileError, OSError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise StegoError(f"{path} cannot be written ({reason}); is there room, and the right to?") from error


def write_audio(path, samples, rate):
    """Write int16 samples [T] or [T, channels] as 16-bit PCM."""
    with writing(path, rate, 1 if samples.ndim == 1 else samples.shape[1]) as put:
        put(samples)


def to_pcm(x):
    """Float tensor in [-1, 1) to int16, rounded and clipped. Any shape."""
    return (x * FULL_SCALE).round().clamp(-FULL_SCALE, FULL_SCALE - 1).to(torch.int16).numpy()


def from_pcm(samples):
    """int16 array to a float tensor in [-1, 1). Any shape."""
    return torch.from_numpy(samples.astype(np.float32)) / FULL_SCALE


def snr_of(reference, estimate):
    """Signal-to-noise ratio in dB of two float tensors [T]: infinite if they are equal, minus infinite for silence."""
    return decibel(energy(reference), energy(reference - estimate))


def energy(x):
    return sum(part.double().square().sum().item() for part in x.flatten().split(1 << 16))


def decibel(signal_energy, noise_energy):
    return math.inf if not noise_energy else 10 * math.log10(signal_energy / noise_energy) if signal_energy else -math.inf


# ---------------------------------------------------------------- parts, on all cores

_work = None  # of a child process, which inherits it


def _set_up(work):
    global _work
    _work = work
    torch.set_num_threads(1)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _do(task):
    return _work(task)


def _in_processes(work, tasks, workers):
    todo = iter(tasks)
    with ProcessPoolExecutor(workers, multiprocessing.get_context("fork"), _set_up, (work,)) as pool:
        waiting = collections.deque(pool.submit(_do, task) for task in itertools.islice(todo, workers + 1))
        try:
            while waiting:
                result = waiting.popleft().result()
                waiting.extend(pool.submit(_do, task) for task in itertools.islice(todo, 1))
                yield result
        except BrokenProcessPool as error:
            raise StegoError("a worker process was killed; is there enough memory?") from error


def in_order(work, tasks, unit=None):
    """work(task) of each task, in their order: each worker process holds one, one more waits, and the next is added when a
    result has been taken. A bar of tasks, if their unit has a name. Threads would wait for Python's lock."""
    workers = min(len(tasks), os.cpu_count() or 1) if sys.platform == "linux" else 1
    results = _in_processes(work, tasks, workers) if workers > 1 else map(work, tasks)
    yield from tqdm(results, total=len(tasks), unit=unit or "", leave=False, disable=None if unit else True)


def bar(seconds):
    """The unit of a bar for so much audio, or None for none."""
    return "part" if seconds > 60 else None


# ---------------------------------------------------------------- hide and reveal

def load_model(path):
    try:
        return wavinwav.load(path)
    except FileNotFoundError as error:
        raise StegoError(f"{path} does not exist; give a model with --model") from error
    except OSError as error:
        raise StegoError(f"{path} cannot be read ({error.strerror}); give a model with --model") from error
    except ValueError as error:
        raise StegoError(f"{error}; give another one with --model") from error


def read_secret(path, name, folder, cover, cover_name):
    """The secret as a Sound of the cover's rate and of its number of channels, or one. Raises StegoError."""
    with open_audio(path, name) as file:
        stereo = file.channels == 2
    secret = decode(path, name, folder, None if not stereo else 16, mono=stereo and cover.channels == 1)
    if stereo and cover.channels == 1:
        print(f"note: {name} was mixed to one channel, as {cover_name} has", file=sys.stderr)
    if secret.seconds > cover.seconds:
        raise StegoError(f"{name} lasts {secret.seconds:.3f} s, longer than its cover's {cover.seconds:.3f} s; "
                         "cut it, or take a longer cover")
    note_gain(secret, name)
    if secret.rate != cover.rate or secret.depth != 16:
        try:
            secret = resampled(secret, cover.rate, cover.frames, folder)
        except TorchaudioError as error:
            raise StegoError(f"{name} cannot be brought to the rate of {cover_name}: {error}") from error
    return secret


def note_gain(sound, name):
    if sound.gain < 1:
        print(f"note: {name} was turned down by {-20 * math.log10(sound.gain):.2f} dB, to full scale", file=sys.stderr)


def verify(sound, header, cipher):
    """Raises wavinwav.Damaged if a stego is not what was made."""
    start = sound.samples - SEAL_SAMPLES
    seal = cipher.seal_of(sound.pieces(0, start), sound.read(start)) if sound.samples == header.samples else b""
    header.verify(sound.samples, seal, sound.read(max(0, start)))


def hide(cover_path, secret_path, stego_path, model, snr=wavinwav.STEGO_SNR, shaping=None, masking=wavinwav.MASKING,
         key=None, depth=None, overwrite=False):
    """Hide a sound file in another one, and check the result on disk.

    Args:
        cover_path, secret_path: sound files, or "-"; the secret lasts no longer.
        stego_path: WAV or FLAC file, or "-".
        model: from `load_model`.
        snr, shaping, masking: for lattice models, see `wavinwav.Lattice.hide`; `snr` in dB.
        key: passphrase, str or bytes, that `reveal` will need; None is none.
        depth: bits of the stego's samples, 16 or 24; None is 24 where the cover has more than 16.
        overwrite: whether stego_path may exist.
    Returns:
        stego SNR, secret SNR in dB: of the file against the cover, and of what `reveal` gets out of it against the secret at
        the cover's rate; infinite if they are equal.
    Raises:
        StegoError. Then nothing has been written.
    """
    if not math.isfinite(snr):
        raise StegoError(f"a stego SNR of {snr} dB makes no sense; give a number such as {wavinwav.STEGO_SNR:g}")
    if depth not in (None, 16, 24):
        raise StegoError(f"samples of {depth} bits cannot be written; give 16 or 24")
    if cover_path == secret_path == "-":
        raise StegoError("cover and secret cannot both be the standard input")
    check_output(stego_path, overwrite)
    with standard_streams([cover_path, secret_path], stego_path) as ((cover_file, secret_file), stego_file, folder):
        cover = decode(cover_file, cover_path, folder, depth)
        if cover.samples < LEAST_SAMPLES:
            raise StegoError(f"{cover_path} has {cover.samples} samples, too short to hide anything in; "
                             f"a cover needs at least {LEAST_SAMPLES}")
        note_gain(cover, cover_path)
        secret = read_secret(secret_file, secret_path, folder, cover, cover_path)
        cipher = Cipher(key)
        if isinstance(model, Lattice):
            header = model.header(cover.samples, secret.frames, secret.channels, cover.rate)
            parts, frame = hide_lattice(model, header, cipher, cover, secret, snr, shaping, masking), cover
        else:
            header = Header(cover.samples, secret.frames, model.fingerprint(), 0, secret.channels)
            parts, cover, frame = hide_affine(model, cipher, cover, secret, cover_path, folder)
        noise = secret_noise = 0
        seal = cipher.seal()
        with writing(stego_file, cover.rate, cover.channels, cover.depth, cover.seconds) as put:
            def put_sealed(samples, change):
                nonlocal noise
                noise += change
                seal.update(wavinwav.raw(samples))
                put(samples)

            head = frame.read(0, HEADER_SAMPLES)
            wavinwav.write_bits(head, header.pack(cipher))
            put_sealed(head, energy(head - cover.read(0, HEADER_SAMPLES)))
            done = HEADER_SAMPLES
            try:
                for samples, change, lost in parts:
                    put_sealed(torch.from_numpy(samples), change)
                    done, secret_noise = done + len(samples), secret_noise + lost
            except ValueError as error:
                raise StegoError(f"{cover_path}: {error}; take a longer cover, or a lower --snr") from error
            tail = frame.read(done)
            tail[-SEAL_SAMPLES:] &= ~3
            seal.update(wavinwav.raw(tail))
            wavinwav.write_bits(tail[-SEAL_SAMPLES:], seal.digest())
            noise += energy(tail - cover.read(done))
            put(tail)
        found = decode(stego_file, stego_path, folder, cover.depth)
        try:
            verify(found, header, cipher)
        except wavinwav.Damaged as error:
            os.remove(stego_file)
            raise StegoError(f"{stego_path} does not hold what was written to it; the disk may be full or damaged") from error
        if not isinstance(model, Lattice):  # the lattice's decoder is exact: what it makes of these samples is known
            place = 0
            for samples in reveal_affine(model, cipher, found, header):
                piece = secret.read(place, place + samples.size)
                secret_noise += energy(piece - torch.from_numpy(samples.flatten().astype(np.int32)))
                place += samples.size
        return decibel(cover.energy, noise), decibel(secret.energy, secret_noise)


def hide_lattice(model, header, cipher, cover, secret, snr, shaping, masking):
    """For each part: stego samples, the energy of what changed in them, and of what is lost of the secret."""
    last = cover.samples - SEAL_SAMPLES
    powers = torch.empty((last - HEADER_SAMPLES) // SEGMENT, dtype=torch.float64)  # a list would leave holes in the heap
    for i, piece in enumerate(cover.pieces(HEADER_SAMPLES, last)):
        found = wavinwav.segment_powers(piece)
        powers[i * (BLOCK // SEGMENT):][:len(found)] = found
    done = HEADER_SAMPLES + SEGMENT * len(powers)
    cover.energy = SEGMENT * powers.sum().item() + energy(cover.read(0, HEADER_SAMPLES)) + energy(cover.read(done))
    codes = wavinwav.choose_widths(powers, cover.energy / cover.samples / 10 ** (snr / 10), masking, cover.depth)

    def work(part):
        before = cover.read(part.samples.start, part.samples.stop)
        piece = secret.read(part.secret.start * secret.channels, part.secret.stop * secret.channels)
        piece = piece.view(-1, secret.channels).float()
        stego, decoded = model.hide_part(header, cipher, part, before, piece, codes, shaping, cover.depth, exact=False)
        decoded = decoded.round().clamp(-FULL_SCALE, FULL_SCALE - 1)
        return stego.numpy(), energy(stego - before), energy(decoded - piece)

    return in_order(work, header.parts(), bar(cover.seconds))


def segments_key(cipher):
    return cipher.stream(b"segments\0", 32)


def hide_affine(model, cipher, cover, secret, cover_name, folder):
    """As `hide_lattice`; also the cover, turned down by as little as it takes for the stego to lie within full scale, and the
    stego, which has neither header nor seal yet."""
    limit = 1 << cover.depth - 1

    def work(start):
        stop = min(start + AFFINE_PIECE, cover.frames)
        x = cover.read(start * cover.channels, stop * cover.channels).view(-1, cover.channels).T.float()
        piece = secret.read(start * secret.channels, stop * secret.channels).view(-1, secret.channels).T / FULL_SCALE
        piece = functional.pad(piece, (0, stop - start - piece.shape[1])).expand(cover.channels, -1)
        piece = wavinwav.scramble(piece, segments_key(cipher), cover.rate) if cipher.keyed else piece
        stego = (model.hide(x / limit, piece.contiguous())[0] * limit).round()
        return stego.int().T.numpy(), max(stego.max().item() / (limit - 1), -stego.min().item() / limit)

    found = Sound(os.path.join(folder, "stego.raw"), cover.rate, cover.channels, cover.frames, cover.depth)
    for _ in range(6):
        highest = 0
        with open(found.raw, "wb") as raw:
            for stego, peak in in_order(work, range(0, cover.frames, AFFINE_PIECE), bar(cover.seconds)):
                stego.astype(cover.dtype).tofile(raw)
                highest = max(highest, peak)
        if highest <= 1:
            break
        cover = replace(cover, scale=cover.scale * 0.9999 / highest)
    else:
        raise StegoError(f"{cover_name} is too loud; turn it down")
    if cover.scale < 1:
        print(f"note: {cover_name} was turned down by {-20 * math.log10(cover.scale):.2f} dB, so that nothing clips",
              file=sys.stderr)

    def parts():
        for start in range(HEADER_SAMPLES, cover.samples - SEAL_SAMPLES, BLOCK):
            stop = min(start + BLOCK, cover.samples - SEAL_SAMPLES)
            before, stego = cover.read(start, stop), found.read(start, stop)
            yield stego.numpy(), energy(stego - before), 0
    return parts(), cover, found


def reveal_affine(model, cipher, stego, header):
    """The secret's samples, int16 [n, channels], piece by piece."""
    def work(start):
        stop = min(start + AFFINE_PIECE, stego.frames)
        x = stego.read(start * stego.channels, stop * stego.channels).view(-1, stego.channels).T.float()
        secret = model.reveal(x / (1 << stego.depth - 1))[1]
        secret = wavinwav.unscramble(secret, segments_key(cipher), stego.rate) if cipher.keyed else secret
        secret = secret.mean(0, keepdim=True) if header.channels == 1 else secret
        return to_pcm(secret[:, :header.length - start].T)

    return in_order(work, range(0, header.length, AFFINE_PIECE), bar(header.length / stego.rate))


def reveal(stego_path, secret_path, model, key=None, force=False, overwrite=False):
    """Write the secret that a stego file carries as a 16-bit file of the stego's rate.

    Args:
        stego_path: a file that `hide` wrote, or "-".
        secret_path: WAV or FLAC file, or "-".
        model: from `load_model`, the one that hid it.
        key: the passphrase, str or bytes.
        force: reveal what is left in a file that was changed: blocks of a few seconds that are damaged come out silent. An
            affine model reveals even without a header, a secret as long as the stego.
        overwrite: whether secret_path may exist.
    Returns:
        The secret's length in seconds.
    Raises:
        StegoError, with its cause: NoSecret (or another key), OtherModel, Damaged. Then nothing has been written.
    """
    check_output(secret_path, overwrite)
    with standard_streams([stego_path], secret_path) as ((stego_file,), secret_file, folder):
        stego = decode(stego_file, stego_path, folder, whole=False)
        try:
            header, cipher = Header.read(stego.read(0, HEADER_SAMPLES), key, model.fingerprint())
            if not force:
                verify(stego, header, cipher)
        except wavinwav.NoSecret as error:
            if not force or isinstance(model, Lattice):
                raise StegoError(f"{stego_path}: {error}; give a file as hide wrote it, and its key") from error
            header, cipher = Header(stego.samples, stego.frames, 0, 0, stego.channels), Cipher(key)
        except wavinwav.OtherModel as error:
            raise StegoError(f"{stego_path}: {error}; give it with --model") from error
        except wavinwav.Damaged as error:
            raise StegoError(f"{stego_path}: {error}; get it as hide wrote it, or reveal what is left with --force") from error
        seconds = header.length / stego.rate
        with writing(secret_file, stego.rate, header.channels, 16, seconds) as put:
            if not isinstance(model, Lattice):
                for samples in reveal_affine(model, cipher, stego, header):
                    put(samples)
                return seconds

            def work(part):
                samples = stego.read(part.samples.start, part.samples.stop)
                samples = functional.pad(samples, (0, part.samples.stop - part.samples.start - len(samples)))
                try:
                    secret, blocks, lost = model.reveal_part(header, cipher, part, samples)
                except wavinwav.Damaged as error:
                    raise StegoError(f"{stego_path}: {error}; get it as hide wrote it") from error
                return to_pcm(secret / FULL_SCALE), blocks, lost

            blocks = lost = 0
            for samples, more, damaged in in_order(work, header.parts(), bar(seconds)):
                put(samples)
                blocks, lost = blocks + more, lost + damaged
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                try:
                    wavinwav.report_damage(blocks, lost)
                except wavinwav.Damaged as error:
                    raise StegoError(f"{stego_path}: {error}; nothing is left of it") from error
            for warning in caught:
                print(f"warning: {stego_path}: {warning.message}", file=sys.stderr)
        return seconds


# ---------------------------------------------------------------- the command

def read_key(args):
    """The passphrase that --key or --key-file gives, or None."""
    if args.key_file:
        try:
            with open(args.key_file, "rb") as file:
                key = file.read(1 << 16).rstrip(b"\r\n")
        except OSError as error:
            raise StegoError(f"{args.key_file} cannot be read ({error.strerror}); give a file with a passphrase") from error
        if not key:
            raise StegoError(f"{args.key_file} is empty; write a passphrase into it")
        return key
    if not args.key:
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", getpass.GetPassWarning)
            key = getpass.getpass("key: ")
            if args.command == "hide" and getpass.getpass("key, again: ") != key:
                raise StegoError("the keys differ; type the same one twice")
    except (EOFError, getpass.GetPassWarning) as error:
        raise StegoError("there is nobody to ask for a key; give --key-file") from error
    if not key:
        raise StegoError("the key is empty; type a passphrase")
    return key


class Parser(argparse.ArgumentParser):
    def error(self, message):
        self.exit(2, f"error: {message}; see {self.prog} --help\n")


def main(argv=None):
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    hiding = commands.add_parser("hide", help="hide a secret in a cover")
    hiding.add_argument("cover", metavar="COVER", help="sound file of any rate, one or two channels; it is never resampled")
    hiding.add_argument("secret", metavar="SECRET", help="sound file, no longer than the cover; brought to its rate, and to "
                        "one channel where it has one")
    hiding.add_argument("-o", "--output", required=True, metavar="STEGO.wav", help="the stego file to write, WAV or FLAC")
    revealing = commands.add_parser("reveal", help="reveal the secret of a stego file")
    revealing.add_argument("stego", metavar="STEGO.wav", help="file that hide wrote")
    revealing.add_argument("-o", "--output", required=True, metavar="SECRET.wav", help="the file to write, WAV or FLAC")
    hiding.add_argument("--snr", type=float, default=wavinwav.STEGO_SNR, metavar="DB",
                        help="stego SNR in dB, for lattice models: a higher one leaves the secret less quality "
                        f"(default: {wavinwav.STEGO_SNR:g})")
    hiding.add_argument("--shaping", type=float, metavar="X",
                        help="lattice models: 0 gives the secret the best SNR, up to 1 moves its noise to where it is loud, "
                        "for the ear (default: the more, the fewer bits there are)")
    hiding.add_argument("--masking", type=float, default=wavinwav.MASKING, metavar="X",
                        help="lattice models: 0 changes all of the cover alike, which gives the secret most; up to 1 follows "
                        f"the cover's level, for the ear (default: {wavinwav.MASKING})")
    hiding.add_argument("--depth", type=int, choices=(16, 24), help="bits of the stego's samples: in 24 bits there is room "
                        "for more (default: 24 where the cover has more than 16)")
    revealing.add_argument("--force", action="store_true", help="reveal what is left in a file that was changed")
    for command in (hiding, revealing):
        command.add_argument("--model", default=os.path.join(HERE, "wavinwav.pt"), metavar="FILE",
                             help="the model, the same for hide and reveal (default: the wavinwav.pt beside this script)")
        keys = command.add_mutually_exclusive_group()
        keys.add_argument("--key", action="store_true", help="ask for a passphrase, without which nothing can be revealed")
        keys.add_argument("--key-file", metavar="FILE", help="read the passphrase from a file, up to a newline at its end")
        command.add_argument("--overwrite", action="store_true", help="replace the output file if it exists")
    args = parser.parse_args(argv)
    for name in ("shaping", "masking"):
        if not 0 <= (getattr(args, name, None) or 0) <= 1:
            parser.error(f"--{name} must be from 0 to 1")
    report = sys.stderr if args.output == "-" else sys.stdout
    try:
        key = read_key(args)
        model = load_model(args.model)
        if args.command == "hide":
            stego_snr, secret_snr = hide(args.cover, args.secret, args.output, model, args.snr, args.shaping, args.masking,
                                         key, args.depth, args.overwrite)
            quality = "secret lossless" if secret_snr == math.inf else f"secret SNR {secret_snr:.2f} dB"
            print(f"{args.output}: stego SNR {stego_snr:.2f} dB, {quality}", file=report)
        else:
            seconds = reveal(args.stego, args.output, model, key, args.force, args.overwrite)
            print(f"{args.output}: {seconds:.2f} s revealed", file=report)
    except StegoError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("error: interrupted")
    except OSError as error:  # of temporary files
        sys.exit(f"error: {error.filename or tempfile.gettempdir()}: {error.strerror}; is there room, and the right to write?")


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("error: stopped"))  # so that temporary files are removed
    main()
    sys.stdout.flush()
    os._exit(0)  # without taking torch apart, another half second
