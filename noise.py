"""What may happen to a stego between hide and reveal, differentiable: the noise layer of the paper's robust stage.

    layer = NoiseLayer(["identity", "gaussian", "resample"], sample_rate=16000)
    changed = layer(stego, batch_seed, item_seeds)

Each batch meets one change, drawn from the pool (a name that stands there twice is drawn twice as often), of a strength
that is drawn too. The numbers depend on the seeds alone: the same wherever a batch is split among processes.

Shapes: B batch, T samples.
"""

import random
from fractions import Fraction

import torch
from torch import Tensor

import lazy_torchaudio

STRENGTHS = {  # lowest and highest, or what to choose from; drawn evenly for each batch
    "snr": (20.0, 50.0),  # dB of gaussian and speckle noise, measured from the stego
    "rates": ("1/2", "3/4", "7/8"),  # resample: to this part of the rate, and back
    "cutoff": (3000.0, 7500.0),  # Hz, lowpass
    "bits": (8, 14),  # quantize
    "dropout": (0.0, 0.005),  # share of the samples that are lost
    "gain": (-3.0, 3.0),  # dB
}


def gaussian(x: Tensor, normal: Tensor, snr: float) -> Tensor:
    """White noise `snr` dB below each item. x and normal (of variance 1) [..., T]."""
    return x + normal * x.square().mean(-1, keepdim=True).sqrt() * 10 ** (-snr / 20)


def speckle(x: Tensor, normal: Tensor, snr: float) -> Tensor:
    """Multiplicative noise: each sample changes in proportion to itself."""
    return x + normal * x * 10 ** (-snr / 20)


def resample(x: Tensor, part: str | Fraction) -> Tensor:
    """To this part of the rate, and back. The kernel has as many taps as the parts of the fraction: keep them small."""
    whole, kept = Fraction(part).denominator, Fraction(part).numerator
    down = lazy_torchaudio.resample(x, whole, kept)
    return lazy_torchaudio.resample(down, kept, whole)[..., :x.shape[-1]]


def low_pass(x: Tensor, share: float) -> Tensor:
    """Take away all above a share of the sample rate."""
    spectrum = torch.fft.rfft(x)
    keep = torch.arange(spectrum.shape[-1], device=x.device) < share * x.shape[-1]
    return torch.fft.irfft(torch.where(keep, spectrum, 0), x.shape[-1])


def quantize(x: Tensor, bits: int) -> Tensor:
    """Round to so many bits, within full scale; the gradient passes straight through."""
    limit = 1 << bits - 1
    return x + ((x * limit).round().clamp(-limit, limit - 1) / limit - x).detach()


def dropout(x: Tensor, uniform: Tensor, share: float) -> Tensor:
    """Lose this share of the samples, by uniform numbers [..., T]."""
    return torch.where(uniform < share, 0, x)


def gain(x: Tensor, decibel: float) -> Tensor:
    return x * 10 ** (decibel / 20)


class NoiseLayer:
    """Draws a change for a batch and applies it. Raises ValueError for an unknown name, or a strength out of its range;
    TorchaudioError where the pool has resample and torchaudio cannot be loaded."""

    def __init__(self, pool: list[str], sample_rate: int, **strengths):
        self.pool, self.rate, self.strengths = pool, sample_rate, STRENGTHS | strengths
        for name in pool:
            if name not in self.kinds:
                raise ValueError(f"there is no noise {name!r}, only {', '.join(self.kinds)}")
        for name, allowed in {"dropout": (0, 1), "bits": (2, 16), "cutoff": (1, float("inf"))}.items():
            low, high = self.strengths[name]
            if not allowed[0] <= low <= high <= allowed[1]:
                raise ValueError(f"noise {name} must rise from {allowed[0]} to {allowed[1]} at most, not {low:g} {high:g}")
        for part in self.strengths["rates"]:
            if not 0 < Fraction(part) or Fraction(part).denominator > 100 or Fraction(part).numerator > 100:
                raise ValueError(f"noise rate {part} must be a fraction of small numbers, such as 3/4")
        if "resample" in pool:
            lazy_torchaudio.load()  # a fault is told now, not in the middle of the training

    kinds = {  # (x, what draws numbers like x, what draws a strength, rate in Hz) -> what is left of x
        "identity": lambda x, draw, strength, rate: x,
        "gaussian": lambda x, draw, strength, rate: gaussian(x, draw(torch.randn), strength("snr")),
        "speckle": lambda x, draw, strength, rate: speckle(x, draw(torch.randn), strength("snr")),
        "resample": lambda x, draw, strength, rate: resample(x, strength("rates")),
        "lowpass": lambda x, draw, strength, rate: low_pass(x, strength("cutoff") / rate),
        "quantize": lambda x, draw, strength, rate: quantize(x, strength("bits")),
        "dropout": lambda x, draw, strength, rate: dropout(x, draw(torch.rand), strength("dropout")),
        "gain": lambda x, draw, strength, rate: gain(x, strength("gain")),
    }

    def __call__(self, x: Tensor, batch_seed: int, item_seeds: list[int]) -> Tensor:
        """x [B, T] in float32, a seed for the batch and one for each item -> [B, T]."""
        rng = random.Random(batch_seed)
        name = rng.choice(self.pool)

        def strength(of):
            choices = self.strengths[of]
            return rng.choice(choices) if of == "rates" else rng.randint(*choices) if of == "bits" else rng.uniform(*choices)

        def draw(kind):
            return draw_items(kind, item_seeds, x.shape[1:]).to(x)

        return self.kinds[name](x, draw, strength, self.rate)


def draw_items(kind, seeds: list[int], shape) -> Tensor:
    """Random numbers [B, *shape] of torch.randn or torch.rand, each item's from its own seed."""
    return torch.stack([kind(shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds])
