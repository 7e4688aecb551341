"""A network whose secret survives MP3, AAC, noise, another rate, another level, and a cut.

`RobustINN` is `wavinwav.LappedINN` with wide cells in some bands of the cover, above the loudest,
in which codecs make the most noise. They carry the lowest bands of the secret; the levels of its
other bands, which come back as noise of these levels; and bits: a known pattern, by which `find`
places a stego in time and level, and the header of a file.

Shapes: B batch, T samples, M bands of the lapped transform, F frames, P phases of frames.
"""

import hashlib
import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from wavinwav import FULL_SCALE, ORDER, LappedConfig, LappedINN, Pair, basis

LOWEST, RANGE = 18.0, 56.0  # dB of an LSB: the levels that are carried
QUIETER = 0.7  # the noise that levels become, as a factor
BITS = 2  # bands that carry bits; in every fourth frame the pattern alone
SEARCHED, LEAST_FRAMES = 4096, 64  # in which `find` looks
LONGEST_CUT = 1 << 19  # frames that may be missing at the start
LEAST_SURE = 8  # standard deviations from chance


@dataclass
class RobustConfig(LappedConfig):
    preset: str = "robust"
    carriers: int = 13
    first: int = 20  # lowest band of the cover that carries anything
    stego_snr: float = 33.5
    reserve: float = 0.14
    levels: int = 2  # bands of the cover that carry levels: one level a frame each


class RobustINN(LappedINN):
    """See above. In training, the bands of which only levels are carried are silent."""

    def __init__(self, config: RobustConfig):
        super().__init__(config)
        low, self.used = config.carriers, config.carriers + config.levels + BITS
        self.end = config.first + self.used  # of the bands that are used
        if self.end > config.bands:
            raise ValueError(f"Config.first must be at most {config.bands - self.used}")
        place = torch.arange(low, config.bands).div(low).log() / math.log(config.bands / low)
        groups = torch.arange(4 * config.levels)[:, None]
        member = (place * len(groups)).long() == groups
        self.register_buffer("member", member.float(), persistent=False)  # [groups, M - carriers]

    def profile(self) -> Tensor:
        carriers = self.log_cells.exp()
        others = carriers.square().mean().sqrt()
        others = others.expand(len(ORDER), 1, self.used - self.config.carriers)
        return torch.cat([carriers, others], 2)

    def split(self, x: Tensor) -> Tensor:
        """The bands from `first` on, which are the cover's; so `encode` moves the secret there."""
        return super().split(x.roll(-self.config.first, 1))

    def join(self, x: Tensor, like: Tensor) -> Tensor:
        return super().join(x, like).roll(self.config.first, 1)

    def encode(self, secret: Tensor, gain: Tensor, keyed: bool) -> Pair:
        low = self.config.carriers
        v, slope = super().encode(secret.roll(self.config.first, 1), gain, keyed)
        power = (gain[:, 0] * secret[:, low:]).square()
        power = functional.pad(power, (0, -power.shape[2] % 4)).unflatten(2, (-1, 4)).mean(3)
        power = self.member @ power / self.member.sum(1, keepdim=True).clamp_min(1)
        decibel = 10 * power.clamp_min(1).log10()  # [B, groups, F / 4]
        level = (2 * (decibel - LOWEST) / RANGE - 1).clamp(-1, 1).unflatten(1, (4, -1)).mT
        bits = level.new_zeros(*level.shape[:3], BITS)  # which come with the dither
        return torch.cat([v, level, bits], 3), functional.pad(slope, (0, self.used - low))

    def decode(self, v: Tensor, gain: Tensor, like: Tensor) -> Tensor:
        low = self.config.carriers
        y = super().decode(v[..., :low], gain, like).roll(-self.config.first, 1)
        if self.training:
            return y
        level = v[..., low:-BITS].mT.flatten(1, 2)
        level = torch.where(level > 1.2, -1, level).clamp(-1, 1)  # silence, by noise out of range
        level = functional.avg_pool1d(level, 3, 1, 1, count_include_pad=False)
        decibel = LOWEST + RANGE * (level + 1) / 2
        decibel = functional.interpolate(decibel, scale_factor=4, mode="linear")[..., :y.shape[2]]
        generator = torch.Generator().manual_seed(0)
        sides = 2 * torch.randint(2, (y.shape[1] - low, y.shape[2]), generator=generator) - 1
        rms = 10 ** (decibel / 20) - 10 ** (LOWEST / 20)
        noise = QUIETER * (self.member.T @ rms) * sides.to(y) / gain[:, 0]
        return torch.cat([y[:, :low], noise], 1)

    def with_bits(self, dither: Tensor, first: int, content: bytes) -> Tensor:
        """A dither in cells [B, F, M], whose first frame has the given number, with the pattern
        and the bits of `content`, again and again, in the bands for these."""
        symbols = signs(first, dither.shape[1], content).to(dither) / 4
        return torch.cat([dither[..., :self.end - BITS], symbols.expand(len(dither), -1, -1),
                          dither[..., self.end:]], 2)


def signs(first: int, count: int, content: bytes = b"") -> Tensor:
    """What `count` frames carry from frame number `first` on, +1 or -1 [F, BITS]: a pseudo-random
    pattern, which is multiplied by the bits of `content` in three of four frames."""
    stop = (first + count) * BITS
    stream = hashlib.shake_256(b"WavInWav").digest(stop // 8 + 1)
    pattern = signs_of(stream)[first * BITS:stop]
    if content:
        bits, numbers = signs_of(content), bit_numbers(first, count)
        pattern = pattern * torch.where(numbers < 0, 1, bits[numbers % len(bits)])
    return pattern.view(-1, BITS)


def signs_of(content: bytes) -> Tensor:
    """The bits of some bytes, the lowest first: 1 for 0, and -1 for 1."""
    x = torch.frombuffer(bytearray(content), dtype=torch.uint8).long()
    return 1 - 2 * (x[:, None] >> torch.arange(8) & 1).flatten()


def bit_numbers(first: int, count: int) -> Tensor:
    """The number of the bit that each place [F * BITS] carries; -1 for the pattern alone."""
    place = torch.arange(first * BITS, (first + count) * BITS)
    group, inside = place // (4 * BITS), place % (4 * BITS) - BITS
    return torch.where(inside < 0, -1, 3 * BITS * group + inside)


def frames_for(bits: int) -> int:
    """How many frames it takes to carry so many bits once."""
    return math.ceil(4 * bits / (3 * BITS))


class Found(NamedTuple):
    """Where and how a stego lies in a signal."""

    start: int  # the signal's first sample is the stego's of this number, which may be negative
    width: float  # of the bits' cells in LSB; negative if the signal is upside down
    votes: Tensor  # for 0 if positive, for 1 if negative [F * BITS]
    numbers: Tensor  # of the bits that they are for; -1 for the pattern

    def read(self, count: int) -> tuple[bytes, float]:
        """The first `count` bytes, and which share of the votes agrees with them."""
        data = self.numbers >= 0
        votes, numbers = self.votes[data], self.numbers[data] % (8 * count)
        bits = torch.zeros(8 * count).index_add(0, numbers, votes) < 0
        agreeing = ((votes < 0) == bits[numbers]).float().mean().item()
        return bytes((bits.view(-1, 8) << torch.arange(8)).sum(1).tolist()), agreeing


def find(model: RobustINN, wave: Tensor) -> Found | None:
    """Find what is left of a stego in a signal [T] in [-1, 1] of its rate, at any level; None if
    there is nothing.

    In the bands of the bits, coefficients lie a quarter of a cell from its centre, whatever the
    bits are, if the frames begin where they did and the cells have the right width. So all
    beginnings are tried, with widths over 8 octaves. The pattern then gives the first frame's
    number."""
    bands = model.config.bands
    frames = min(len(wave) // bands - 2, SEARCHED)
    if frames < LEAST_FRAMES:
        return None
    wave = FULL_SCALE * wave[:(frames + 2) * bands]
    filters = torch.cat(basis(bands, wave))[:, model.end - BITS:model.end].T
    x = functional.conv1d(wave[None, None], filters[:, None])[0, :, :frames * bands]
    x = x.reshape(BITS, frames, bands)  # the coefficients of all frames, for all beginnings

    widths = wave.square().mean().sqrt().clamp_min(1) * 2 ** (torch.arange(-448, 64) / 64)
    loud = x.square().sum((0, 2)).topk(min(frames, 512)).indices
    scores = torch.cat([clustering(x[:, loud].flatten(0, 1), some) for some in widths.split(16)])
    if scores.max() < LEAST_SURE:
        return None
    # Odd fractions of the width fit as well, so the widest of the best is taken.
    number = (scores.amax(1) > 0.9 * scores.max()).nonzero()[-1].item()
    begin = scores[number].argmax().item()
    width, x = widths[number], x[..., begin].T  # [F, BITS]
    for most in 2, 8, 32:  # least squares, to the nearest quarters of cells
        place = (2 * x / width - 0.5).round() / 2 + 0.25
        near = (place.abs() < most) & ((x / width - place).abs() < 1 / 8)
        width = (x * place)[near].sum() / place[near].square().sum()

    x = torch.sin(2 * math.pi * x / width)  # about 1 and -1
    alone = signs(0, LONGEST_CUT).float()
    alone[torch.arange(LONGEST_CUT) % 4 != 0] = 0
    size = LONGEST_CUT + SEARCHED
    spectra = torch.fft.rfft(alone.T, size) * torch.fft.rfft(x.T, size).conj()
    match = torch.fft.irfft(spectra, size).sum(0)
    first = match.abs().argmax().item()
    if not match[first].abs() >= LEAST_SURE * (frames / 4) ** 0.5:  # as NaN is not
        return None
    side = match[first].sign().item()
    first -= size * (first >= LONGEST_CUT)  # the number of the first frame
    x = side * x[max(0, -first):]
    votes = (x * signs(max(0, first), len(x))).flatten()
    return Found(first * bands - begin, side * width.item(), votes,
                 bit_numbers(max(0, first), len(x)))


def clustering(x: Tensor, widths: Tensor) -> Tensor:
    """By how many standard deviations coefficients [N, beginnings], those within 8 cells of zero,
    are nearer to a quarter of a cell from a centre than by chance [widths, beginnings]."""
    phase = x / widths[:, None, None]
    near = phase.abs() < 8
    return -(torch.cos(4 * math.pi * phase) * near).sum(1) / (near.sum(1) / 2 + 1).sqrt()
