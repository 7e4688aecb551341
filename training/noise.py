"""What may happen to a stego between hide and reveal, differentiable: the noise layer of the
paper's robust stage.

    layer = NoiseLayer("identity,gaussian:20:50,resample:3/4", sample_rate=16000)
    changed = layer(stego, batch_seed, item_seeds)

Each batch meets one kind of the pool, drawn evenly, of a strength that is drawn too. The numbers
depend on the seeds alone: the same wherever a batch is split among processes.

Shapes: B batch, T samples.
"""

import random
from collections.abc import Callable
from fractions import Fraction
from typing import NamedTuple

import torch
from torch import Tensor

from files.resample import resample as change_rate


def gaussian(x: Tensor, normal: Tensor, snr: float) -> Tensor:
    """White noise `snr` dB below each item. x and normal (of variance 1) [..., T]."""
    return x + normal * x.square().mean(-1, keepdim=True).sqrt() * 10 ** (-snr / 20)


def speckle(x: Tensor, normal: Tensor, snr: float) -> Tensor:
    """Multiplicative noise: each sample changes in proportion to itself."""
    return x + normal * x * 10 ** (-snr / 20)


def resample(x: Tensor, part: str | Fraction) -> Tensor:
    """To this part of the rate, and back."""
    kept, whole = Fraction(part).as_integer_ratio()
    down = change_rate(x, whole, kept)
    return change_rate(down, kept, whole)[..., :x.shape[-1]]


def low_pass(x: Tensor, share: float) -> Tensor:
    """Take away all above a share of the sample rate."""
    spectrum = torch.fft.rfft(x)
    keep = torch.arange(spectrum.shape[-1], device=x.device) < share * x.shape[-1]
    return torch.fft.irfft(torch.where(keep, spectrum, 0), x.shape[-1])


def quantize(x: Tensor, bits: int) -> Tensor:
    """Round to so many bits, within full scale; the gradient passes straight through."""
    limit = 1 << (bits - 1)
    return x + ((x * limit).round().clamp(-limit, limit - 1) / limit - x).detach()


def dropout(x: Tensor, uniform: Tensor, share: float) -> Tensor:
    """Lose this share of the samples, by uniform numbers [..., T]."""
    return torch.where(uniform < share, 0, x)


def gain(x: Tensor, decibel: float) -> Tensor:
    return x * 10 ** (decibel / 20)


class Kind(NamedTuple):
    """A kind of noise. Fractions are chosen from; other strengths are drawn from a range."""

    unit: str  # of the strength
    usual: tuple  # lowest and highest strength, or the fractions
    limits: tuple  # of what may be asked for
    change: Callable | None  # (x, random numbers, if it takes some, strength) -> what is left of x
    random: Callable | None = None  # torch.randn or torch.rand


KINDS = {
    "identity": Kind("", (), (), None),
    "gaussian": Kind("dB below the stego", (20.0, 50.0), (-20, 120), gaussian, torch.randn),
    "speckle": Kind("dB below the sample", (20.0, 50.0), (-20, 120), speckle, torch.randn),
    "resample": Kind("part of the rate", (Fraction(1, 2), Fraction(3, 4), Fraction(7, 8)),
                     (Fraction(1, 100), 100), resample),
    "lowpass": Kind("Hz", (3000.0, 7500.0), (1, 1e6), low_pass),
    "quantize": Kind("bits a sample", (8, 14), (2, 16), quantize),
    "dropout": Kind("share of the samples", (0.0, 0.005), (0, 1), dropout, torch.rand),
    "gain": Kind("dB", (-3.0, 3.0), (-60, 60), gain),
}


def read_strengths(entry: str) -> tuple[str, tuple]:
    """"gaussian:20:50" -> "gaussian", (20.0, 50.0); without numbers, the usual ones. Raises
    ValueError for an unknown name, or strengths that make no sense."""
    name, *words = entry.strip().split(":")
    if name not in KINDS:
        raise ValueError(f"there is no noise {name!r}, only {', '.join(KINDS)}")
    kind = KINDS[name]
    if not words:
        return name, kind.usual
    if not kind.usual:
        raise ValueError(f"noise {entry}: {name} has no strength")
    number = type(kind.usual[0])
    try:
        strengths = tuple(number(word) for word in words)
    except (ValueError, ZeroDivisionError):
        raise ValueError(f"noise {entry}: strengths are numbers of type {number.__name__}, "
                         f"such as {name}:{':'.join(map(str, kind.usual))}") from None
    lowest, highest = kind.limits
    if not all(lowest <= strength <= highest for strength in strengths):
        raise ValueError(f"noise {entry}: {kind.unit} must be from {lowest} to {highest}")
    if number is Fraction:
        if max(max(part.as_integer_ratio()) for part in strengths) > 100:
            raise ValueError(f"noise {entry}: take fractions of small numbers, such as 3/4")
    elif len(strengths) > 2 or strengths[0] > strengths[-1]:
        raise ValueError(f"noise {entry}: give one strength, or the lowest and the highest")
    return name, strengths


class NoiseLayer:
    """Draws a kind of noise for a batch, and applies it.

    pool: "NAME[:LOW[:HIGH]],...", or "resample:PART:..."; without strengths, the usual ones
    Raises ValueError as `read_strengths`.
    """

    def __init__(self, pool: str, sample_rate: int):
        self.pool = [read_strengths(entry) for entry in pool.split(",")]
        self.rate = sample_rate

    def __call__(self, x: Tensor, batch_seed: int, item_seeds: list[int]) -> Tensor:
        """x [B, T] in float32, a seed for the batch and one for each item -> [B, T]."""
        rng = random.Random(batch_seed)
        name, strengths = rng.choice(self.pool)
        kind = KINDS[name]
        if not kind.change:
            return x
        if isinstance(strengths[0], Fraction):
            strength = rng.choice(strengths)
        elif isinstance(strengths[0], int):
            strength = rng.randint(strengths[0], strengths[-1])
        else:
            strength = rng.uniform(strengths[0], strengths[-1])
        if kind.unit == "Hz":
            strength /= self.rate
        drawn = []
        if kind.random:
            drawn.append(draw_items(kind.random, item_seeds, x.shape[1:], x.device))
        return kind.change(x, *drawn, strength)


def draw_items(function, seeds: list[int], shape, device="cpu") -> Tensor:
    """Random numbers [B, *shape] of torch.randn or torch.rand, each item's from its own seed."""
    items = [function(shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
    return torch.stack(items).to(device, non_blocking=True)


def seeds_of(seed: int, numbers: list[int], purpose: str) -> list[int]:
    """A seed for each of the numbered pairs or batches of a run, and for one purpose."""
    stream = ("noise", "z", "settings", "batch", "snr", "rounding").index(purpose)
    return [8 * (1_000_003 * seed + number) + stream for number in numbers]
