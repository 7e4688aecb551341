"""The systems that are compared, and an upper bound for all of them.

    for system in all_systems(load_models()):            # models, LSB, the frequency chop, Opus
        system.hide(cover_path, secret_path, stego_path)
        system.reveal(stego_path, revealed_path)
    bound(cover, secret, stego_snr)                      # dB

A system is a model or a baseline with its settings: one row of a table. Files are mono, 16-bit WAV
or FLAC; cover and secret have the same length.
Shapes: T samples. Samples are integer arrays [T] (1 LSB = 1), signals float tensors [T] in [-1, 1).
"""

import io
import math
import os
import zlib
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import soundfile
import torch
from torch import Tensor
from torch.nn import functional

import stego
from evaluation.scores import samples
from files import sound
from files.checkpoint import model_path
from files.command import StegoError
from files.resample import resample
from wavinwav import lapped, unlapped

HERE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
SHIPPED = "wavinwav", "lattice", "paper", "robust"
LATTICE_SNRS = 36, 41, 46, 52, 58, 64  # dB, of the stegos in the table
INN_SNRS = 42, 45, 48, 51


class System(NamedTuple):
    """One row of a table. Both functions take paths, and raise StegoError if it is not possible."""

    name: str  # what it is, a comma, its settings
    hide: Callable  # (cover, secret, stego)
    reveal: Callable  # (stego, revealed)


def all_systems(models: dict, lattice_snrs=LATTICE_SNRS) -> list[System]:
    """All rows of the table: models {label: model} first."""
    systems = []
    for label, model in models.items():
        if is_lattice(model):
            systems += [our_system(model, label, snr=snr) for snr in lattice_snrs]
            systems.append(our_system(model, label, snr=58, masking=1))
        elif label_of(model) == "INN":
            systems += [our_system(model, label, snr=snr) for snr in INN_SNRS]
        else:
            systems.append(our_system(model, label))
    return [*systems, *map(lsb, (4, 6, 8)), frequency_chop(), *map(opus, (20, 32, 60))]


# ---------------------------------------------------------------- models

def load_models(names=None, default=SHIPPED) -> dict:
    """{label: model} from names of shipped models or paths; a model whose label is taken has its
    name. No names: those of `default` that are there. Raises StegoError."""
    models = {}
    for name in names or [name for name in default if os.path.isfile(model_path(name))]:
        model = stego.load_model(name)
        label = label_of(model)
        models[name if label in models else label] = model
    return models


def is_lattice(model) -> bool:
    return model.config.preset == "lattice"


def label_of(model) -> str:
    """A model's name in tables: INN for the default, or its preset."""
    return {"lapped": "INN"}.get(model.config.preset, model.config.preset)


def our_system(model, label: str, snr: float | None = None, masking: float | None = None,
               key: str | None = None) -> System:
    """A model at a stego SNR in dB, or at its own default; a lattice also with masking (0 to 1)."""
    def hide(cover_path, secret_path, stego_path):
        stego.hide(cover_path, secret_path, stego_path, model, snr, masking=masking, key=key,
                   overwrite=True)

    def reveal(stego_path, revealed_path):
        stego.reveal(stego_path, revealed_path, model, key, overwrite=True)

    setting = "" if snr is None else f", {snr:g} dB"
    setting += "" if masking is None else f", masking {masking:g}"
    return System(label + setting, hide, reveal)


# ---------------------------------------------------------------- baselines

def on_files(name: str, hide: Callable, reveal: Callable) -> System:
    """A System from hide(cover, secret, rate) and reveal(stego, rate) on samples [T]."""
    def hide_file(cover_path, secret_path, stego_path):
        cover, rate = samples(cover_path)
        hidden = hide(cover, samples(secret_path)[0], rate)
        sound.write_audio(stego_path, hidden.astype(np.int16), rate)

    def reveal_file(stego_path, revealed_path):
        hidden, rate = samples(stego_path)
        sound.write_audio(revealed_path, reveal(hidden, rate).astype(np.int16), rate)

    return System(name, hide_file, reveal_file)


def embed(cover: np.ndarray, values: np.ndarray, bits: int) -> np.ndarray:
    """Samples congruent to `values` [T] (0 to 2^bits - 1) modulo 2^bits, each the nearest to the
    cover's that int16 can hold."""
    step = 1 << bits
    stego = cover + (values - cover + step // 2) % step - step // 2
    return stego + step * (stego < -32768) - step * (stego > 32767)


def plus_minus(change: int = 1) -> System:
    """A control for steganalysis: each sample goes up or down by `change` (0 or more) at random;
    nothing is hidden, and silence revealed."""
    def hide(cover, secret, rate):
        steps = np.random.default_rng(zlib.crc32(cover.tobytes())).integers(0, 2, len(cover))
        return (cover + change * (2 * steps - 1)).clip(-32768, 32767)

    name = f"±{change} everywhere" if change else "nothing"
    return on_files(name, hide, lambda hidden, rate: np.zeros(len(hidden)))


def lsb(bits: int) -> System:
    """LSB replacement: the secret's top `bits` bits, rounded, in the cover's low bits. Mid-tread,
    so that silence is revealed as silence."""
    step, half = 1 << (16 - bits), 1 << (bits - 1)

    def hide(cover, secret, rate):
        quantised = np.floor(secret / step + 0.5).astype(np.int64).clip(-half, half - 1)
        return embed(cover, quantised + half, bits)

    def reveal(hidden, rate):
        return (hidden % (2 * half) - half) * step

    return on_files(f"LSB, {bits} bit{'s' * (bits > 1)}", hide, reveal)


def frequency_chop() -> System:
    """The lower half of the secret's spectrum replaces the upper half of the cover's, in the same
    order and at its own level: a baseline of Hide and Speak (Kreuk et al., arXiv 1902.03083).
    Theirs uses an STFT and keeps the phases; here it is an orthonormal MDCT of 128 bands, in which
    whatever is written can be read back."""
    def spectrum(x):  # [T] -> [1, 128, frames]
        return lapped(torch.from_numpy(x.astype(np.float64))[None], 128)

    def waveform(coefficients, length):
        return unlapped(coefficients, length)[0].round().clamp(-32768, 32767).numpy()

    def hide(cover, secret, rate):
        mixed = torch.cat([spectrum(cover)[:, :64], spectrum(secret)[:, :64]], 1)
        return waveform(mixed, len(cover))

    def reveal(hidden, rate):
        low = spectrum(hidden)[:, 64:]
        return waveform(torch.cat([low, torch.zeros_like(low)], 1), len(hidden))

    return on_files("frequency chop", hide, reveal)


def encode_opus(x: np.ndarray, rate: int, kbps: float) -> bytes:
    """A signal [T] as an Ogg Opus file of at most, and close to, `kbps` kbit/s, headers included.
    Raises StegoError if Opus needs more."""
    budget = kbps * 1000 / 8 * len(x) / rate
    if rate not in (8000, 12000, 16000, 24000, 48000):
        x, rate = resample(torch.from_numpy(x), rate, 48000).numpy(), 48000

    def encode(level):  # soundfile takes a level, not a bit rate; the size falls almost linearly
        file = io.BytesIO()
        soundfile.write(file, x, rate, format="OGG", subtype="OPUS", compression_level=level)
        return file.getvalue()

    low, high, large, small = 0.0, 1.0, encode(0.0), encode(1.0)
    if len(small) > budget:
        raise StegoError(f"Opus needs more than {kbps} kbit/s for {len(x) / rate:.1f} s")
    for _ in range(4):  # regula falsi between a level that is too large and one that fits
        share = max(0, 0.998 * budget - len(small)) / max(1, len(large) - len(small))
        level = max(0.0, high - (high - low) * share)
        content = encode(level)
        if len(content) <= budget:
            high, small = level, content
        else:
            low, large = level, content
    return small


def decode_opus(content: bytes, rate: int, length: int) -> Tensor:
    """An Ogg Opus file as a signal [length] at `rate` Hz."""
    x, own_rate = soundfile.read(io.BytesIO(content), dtype="float32")
    x = resample(torch.from_numpy(x), own_rate, rate)[:length]
    return functional.pad(x, (0, length - len(x)))


def opus(kbps: float) -> System:
    """An Ogg Opus file of the secret, preceded by its size in bytes (4 bytes), in as few low bits
    as can hold it. Its RTF includes the search for the bit rate."""
    def hide(cover, secret, rate):
        content = encode_opus(secret.astype(np.float32) / sound.FULL_SCALE, rate, kbps)
        content = len(content).to_bytes(4, "big") + content
        stream = np.unpackbits(np.frombuffer(content, np.uint8))
        bits = math.ceil(len(stream) / len(cover))
        if bits > 8:
            raise StegoError(f"Opus at {kbps} kbit/s needs more than 8 bits a sample")
        values = np.pad(stream, (0, -len(stream) % bits)).reshape(-1, bits) @ (1 << np.arange(bits))
        return np.append(embed(cover[:len(values)], values, bits), cover[len(values):])

    def reveal(hidden, rate):
        for bits in range(1, 9):
            stream = (hidden[:, None] >> np.arange(bits) & 1).astype(np.uint8)
            content = np.packbits(stream).tobytes()
            if content[4:8] == b"OggS":
                size = int.from_bytes(content[:4], "big")
                return sound.to_pcm(decode_opus(content[4:4 + size], rate, len(hidden)))
        raise StegoError("the file carries no Ogg file")

    return on_files(f"Opus, {kbps} kbit/s", hide, reveal)


# ---------------------------------------------------------------- upper bound

def bound(cover: Tensor, secret: Tensor, stego_snr: float) -> float:
    """Upper bound of the secret SNR in dB for signals [T] at a stego SNR in dB.

    Capacity: the stego is the cover plus an error of power D LSB^2, rounded to 16 bits, which is
    noise of power N = 1/12 LSB^2. The cover is known when hiding, so it costs nothing (Costa,
    "Writing on dirty paper", 1983): 1/2 log2(1 + D / N) bits a sample. Cells of odd width w have
    D = (w^2 - 1) / 12 and carry exactly that, log2(w).

    Distortion: each coefficient k of the secret in a circular MDCT of 256 bands is Gaussian with
    variance v_k, the mean square over the 3 frames x 5 bands around it, and the v_k are known for
    free. Reverse water-filling (Cover and Thomas, 10.3.3): the sum of max(0, 1/2 log2(v_k / w)) is
    the capacity; the distortion is the mean of min(w, v_k), plus 1/12 because the revealed file is
    rounded too.

    A Gaussian is the hardest source for its variance, and the v_k come from the secret itself: this
    bounds models of this kind with free side information, and is no theorem about speech. Where the
    capacity is large, a system may be lossless.
    """
    power = sound.FULL_SCALE ** 2 * cover.double().square().mean().item()
    bits = 0.5 * math.log2(1 + 12 * power * 10 ** (-stego_snr / 10)) * len(secret)
    x = sound.FULL_SCALE * secret.double()
    squares = lapped(functional.pad(x, (0, -len(x) % 256))[None], 256).square()
    variance = functional.avg_pool2d(squares, (5, 3), 1, (2, 1), count_include_pad=False)
    variance = variance.flatten().clamp_min(1e-9)
    log_variance = variance.log2()
    low, high = log_variance.min().item() - 2 * bits / len(x), log_variance.max().item()
    for _ in range(40):  # log2 of the water level
        level = (low + high) / 2
        if 0.5 * (log_variance - level).clamp_min(0).sum() > bits:
            low = level
        else:
            high = level
    distortion = variance.clamp_max(2 ** high).sum().item() / len(x)
    return 10 * math.log10(x.square().mean().item() / (distortion + 1 / 12))
