"""The lattice's model: it turns a secret into words of 32 bits, as few as possible, and back.

    model = load("lattice/lattice.pt")
    streams, quantised = model.compress(secret, coefficients, mode)
    secret = model.decompress(streams, length, channels, bands, mode)

A secret's lapped coefficients are quantised, and their scales predicted (quantiser.py); an entropy
coder makes words of the integers (coder.py). How finely to quantise is found in fit.py. The words
become digits in the cells of the cover's samples (cells.py, widths.py); parts.py does all this for
files. Together it is an integer discrete flow (Hoogeboom et al. 2019), except for the quantisation;
where there is room the secret is coded without loss. Runs on the CPU.

Shapes: S samples and C channels of a secret; N blocks of about 4 s, of all channels together; F
frames in a block, M bands, config.bands at config.sample_rate and in proportion at other rates.
A secret's samples are in units of 16-bit PCM.
"""

import functools
import math
import os
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from files import checkpoint, container
from lattice.coder import CLASSES, PRECISION, SYMBOLS, TABLES, Coder
from lattice.quantiser import BATCH, Quantised, Quantiser
from wavinwav import lapped

BLOCK_FRAMES = 256  # about, in a block, which can be decoded without the others
MOST_BANDS = 4096  # of the lapped transform
FINEST_STEP, COARSEST_STEP = -64, 64 * 20
RESIDUAL = 14  # the coder's class for what rounding leaves of a lossless secret's samples


@dataclass
class LatticeConfig:
    """What defines a lattice. Raises ValueError for values that are invalid."""

    preset: str = "lattice"  # by which files tell it from other models
    sample_rate: int = 16000  # Hz, of the training audio; it works at any
    bands: int = 256  # of the lapped transform at that rate
    growth: int = 16  # hidden units of each of the three networks that predict scales

    def __post_init__(self):
        rate, bands, growth = self.sample_rate, self.bands, self.growth
        whole = all(type(value) is int for value in (rate, bands, growth))
        if not (self.preset == "lattice" and whole and bands % 128 == 0 and 0 < growth <= 1000
                and 0 < bands <= min(MOST_BANDS, rate / 16) and rate <= 1_000_000):
            raise ValueError(f"{self} is impossible: bands must be a multiple of 128, at most "
                             f"{MOST_BANDS} and sample_rate / 16, and growth 1 to 1000")


class Mode(NamedTuple):
    """How a secret was compressed: all that decompressing it needs to know."""

    step: int  # quantisation steps are 2 ** (step / 64), from FINEST_STEP to COARSEST_STEP
    shaping: int  # how much steps follow the signal, in 1/256, up to 256
    lossless: bool
    rotated: bool  # left and right to middle and side

    def pack(self) -> int:
        """As 32 bits."""
        flags = (self.lossless << 30) | (self.rotated << 31)
        return (self.step + 2048) | (self.shaping << 16) | flags

    @classmethod
    def unpack(cls, word: int) -> "Mode":
        step, shaping = (word & 0xFFFF) - 2048, (word >> 16) & 0x3FFF
        return cls(step, shaping, bool((word >> 30) & 1), bool(word >> 31))


class Lattice(nn.Module):
    """The learned codec of a secret."""

    def __init__(self, config: LatticeConfig):
        super().__init__()
        self.config = config
        self.quantiser = Quantiser(config.bands, config.growth)
        self.coder = Coder()
        self.set_tables(torch.zeros(TABLES, SYMBOLS))

    def compress(self, secret: Tensor, coefficients: Tensor, mode: Mode
                 ) -> tuple[list[Tensor], Quantised]:
        """The words [W] of each block of a secret [S, C], whose blocks have these coefficients
        [F, M, N]; and what `quantise` returned."""
        frames, bands, blocks = coefficients.shape
        quantised = self.quantiser.quantise(coefficients, mode.step, mode.shaping)
        classes, integers, _ = quantised
        if mode.lossless:  # quantise, then code what is missing from every sample
            nearly = self.synthesise(self.quantiser.dequantise(*quantised, centred=False))
            nearly = (rotate(nearly) if mode.rotated else nearly).round_()
            samples = cut_blocks(secret, frames * bands, blocks // secret.shape[1]).double()
            rest = (samples - nearly).int().T.reshape(-1, bands // 8, blocks)
            classes = torch.cat([classes, torch.full_like(rest, RESIDUAL, dtype=torch.uint8)])
            integers = torch.cat([integers, rest])
        return self.coder.encode(classes, integers), quantised

    def decompress(self, streams: list[Tensor | None], length: int, channels: int, bands: int,
                   mode: Mode) -> Tensor:
        """Inverse of `compress`: the secret [S, C] in float64. A block whose stream is None comes
        out silent. Raises IndexError for streams that are too short."""
        frames, blocks = self.shape_of(length, bands)
        secret = torch.zeros(channels * blocks, frames * bands, dtype=torch.float64)
        good = [block for block, stream in enumerate(streams) if stream is not None]
        rest = 0
        if good:
            decode = self.coder.decoder([streams[block] for block in good], bands // 8)
            shape = frames, bands, len(good)
            classes = torch.empty(shape, dtype=torch.uint8)
            integers = torch.empty(shape, dtype=torch.int32)
            steps = self.quantiser.walk(
                classes, integers, mode.step, mode.shaping,
                lambda frame, group, classes, steps: decode(classes).float())
            decoded = self.synthesise(self.quantiser.dequantise(
                classes, integers, steps, centred=not mode.lossless))
            secret.index_copy_(0, torch.tensor(good), decoded)
            if mode.lossless:
                rest = decode(torch.full((frames * bands, len(good)), RESIDUAL)).T
        secret = rotate(secret) if mode.rotated else secret
        if mode.lossless:
            secret = secret.round_()
            secret[good] += rest
        return secret.view(channels, -1)[:, :length].T

    def analyse(self, secret: Tensor, bands: int) -> Tensor:
        """Samples [N, T] -> coefficients [F, M, N]."""
        return torch.cat([lapped(x.double(), bands).float().permute(2, 1, 0)
                          for x in secret.split(BATCH)], 2)

    def synthesise(self, coefficients: Tensor) -> Tensor:
        """[F, M, N] -> samples [N, T] in float64, the same on every machine."""
        batches = [x.permute(2, 1, 0) for x in coefficients.split(BATCH, 2)]
        return torch.cat(list(map(exactly_unlapped, batches)))

    def shape_of(self, length: int, bands: int) -> tuple[int, int]:
        """Frames of a block, and blocks of each channel, for a secret of `length` samples."""
        frames = math.ceil(length / bands)
        blocks = max(1, round(frames / BLOCK_FRAMES))
        return math.ceil(frames / blocks), blocks

    def bands_at(self, rate: int) -> int:
        """Bands of the lapped transform at a sample rate in Hz, of nearly the trained width."""
        bands = self.config.bands * rate / self.config.sample_rate
        return min(MOST_BANDS, 128 * max(1, round(bands / 128)))

    def fingerprint(self) -> int:
        """A checksum of all that decoding depends on."""
        band = torch.arange(self.config.bands)
        integers = [x for net in self.quantiser.scales for x in net.integers(band, torch.arange(2))]
        return container.fingerprint([*integers, self.quantiser.level, self.coder.frequency])

    # ------------------------------------------------ training

    @torch.no_grad()
    def measure(self, samples: list[tuple[Tensor, int, int]]):
        """After training: count the coder's tables, and how far magnitudes shrink, on (secrets
        [N, T], step, shaping) as in `Quantiser.forward`."""
        counts = torch.zeros(TABLES, SYMBOLS)
        excess, number = torch.zeros(2, CLASSES)
        self.quantiser.shrink.zero_()
        for secrets, step, shaping in samples:
            coefficients = self.analyse(secrets, self.config.bands)
            classes, integers, steps = self.quantiser.quantise(coefficients, step, shaping)
            decoded = self.quantiser.dequantise(classes, integers, steps)
            classes, magnitude = (self.quantiser.order(x, decoded.shape[1]).long()
                                  for x in (classes, integers.abs()))
            entries, _ = self.coder.entries(classes, magnitude)
            counts += entries.flatten().bincount(minlength=counts.numel()).view(counts.shape)
            coded = magnitude > 0
            classes, magnitude = classes[coded], magnitude[coded]
            ratio = coefficients[coded].abs() / decoded[coded].abs()
            excess.index_add_(0, classes, magnitude * (1 - ratio))
            number += classes.bincount(minlength=CLASSES)
        self.set_tables(counts)
        self.quantiser.shrink.copy_(excess / (number + 100))

    @torch.no_grad()
    def set_tables(self, counts: Tensor):
        """The coder's tables from counts [TABLES, SYMBOLS], smoothed by the likelihood that
        training maximised."""
        log_scale = ((torch.arange(TABLES) + 0.5) / 4 - 5) * math.log(2)
        prior = self.quantiser.likelihood(torch.arange(SYMBOLS), log_scale[:, None])
        self.coder.set_tables(counts, prior.clamp_min(0))


def load(path: str | os.PathLike) -> Lattice:
    """The lattice in a file that `checkpoint.save` wrote.

    Raises OSError if the file cannot be read, ValueError naming it if it holds no lattice.
    """
    content = checkpoint.read(path)
    try:
        model = Lattice(LatticeConfig(**content["config"]))
        model.load_state_dict(content["state_dict"])
        frequency, level = model.coder.frequency, model.quantiser.level
        if not ((frequency >= 0).all() and (frequency[:, -1] > 0).all()
                and (frequency.sum(1) == 1 << PRECISION).all()
                and (level >= 0).all() and (level <= 255).all()
                and (model.quantiser.shrink.abs() <= 1).all()
                and all((x.abs() < 1e6).all() for x in model.parameters())):
            raise ValueError("a weight is out of its range")
    except (AttributeError, KeyError, TypeError, RuntimeError, ValueError) as error:
        raise ValueError(f"{path} is not a lattice of this version (a network is for "
                         "wavinwav.load), or is damaged") from error
    return model.eval()


# ---------------------------------------------------------------- blocks

def cut_blocks(secret: Tensor, size: int, count: int) -> Tensor:
    """[S, C] -> blocks, one channel after the other, [C * count, size], padded with zeros."""
    return functional.pad(secret.T, (0, size * count - len(secret))).reshape(-1, size)


def rotate(blocks: Tensor) -> Tensor:
    """Left and right to middle and side, or back: orthonormal, its own inverse. [2 N, T] -> same"""
    left, right = blocks.chunk(2)
    return torch.cat([left + right, left - right]) * 0.5 ** 0.5


@functools.lru_cache
def exact_basis(bands: int) -> tuple[Tensor, Tensor, Tensor]:
    """The basis of `exactly_unlapped`: the window's two quarters [M / 2] and the DCT-IV [M, M],
    float64. The DCT is rounded to multiples of 2 ** -22: then products with integers below
    2 ** 22, and their sums, are exact, and the order of summation does not matter."""
    n = torch.arange(bands, dtype=torch.float64) + 0.5
    angle = math.pi / (2 * bands) * n[:bands // 2]
    cosines = (math.pi / bands * n[:, None] * n).cos_().mul_(math.sqrt(2 / bands))
    cosines[:bands // 2] = -cosines[:bands // 2].flip(0)
    return angle.sin(), angle.cos(), cosines.mul_(2 ** 22).round_().div_(2 ** 22)


def exactly_unlapped(coefficients: Tensor) -> Tensor:
    """wavinwav.unlapped in float64, nearly, but the same on every machine for integers below
    2 ** 22. [N, M, F] -> [N, T]"""
    sine, cosine, dct = exact_basis(coefficients.shape[1])
    falling, rising = (coefficients.double().mT @ dct.T).chunk(2, 2)
    falling = falling.roll(1, 1)
    left, right = sine * rising + cosine * falling, sine * falling - cosine * rising
    return torch.cat([left, right.flip(2)], 2).flatten(1)
