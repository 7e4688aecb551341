"""The lattice coupling, and words of 32 bits in the cells of a cover's samples.

A cell of width w is w neighbouring sample values; which of them a stego's sample has is a digit of
base w. Between header and seal, 512 samples are a segment, whose cells have one width: its first
three samples tell which, in cells of 4, and each of the others holds a digit. Segments belong to
parts, which know nothing of each other: processes share the work, and memory does not grow.
"""

import functools
import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from container import DENSE, Cipher, Header

SEGMENT = 512  # samples
TELLING = 3  # samples at a segment's beginning that tell the width of the others' cells
WIDTHS = [round(2 ** (i / 4)) for i in range(4, 4 + 4 ** TELLING)]  # from 2, in quarter octaves
PART_SEGMENTS = 10240  # in a part, at most: 5 minutes at 16 kHz
LEAST_SAMPLES = DENSE.header_samples + DENSE.seal_samples + SEGMENT  # of a cover
MASKING = 0.25  # a segment's distortion is proportional to this power of the cover's power in it
SAMPLES_AT_ONCE = 1 << 16  # about, so that they stay in the cache


class LatticeCoupling(nn.Module):
    """Additive coupling on a lattice of integers: the secret takes the cover's place within a cell.

    r = wrap(secret - cover); stego = cover + r. So stego = secret modulo the cell's width, the
    secret does not depend on r, and the distortion is (width ** 2 - 1) / 12 whatever the cover is:
    dirty-paper coding (Costa 1983) by quantisation index modulation (Chen and Wornell 2001). Where
    that leaves the range of samples, the neighbouring cell is taken. Integers of any shape.
    """

    def forward(self, cover: Tensor, secret: Tensor, width: int, limit: int = 32768
                ) -> tuple[Tensor, Tensor]:
        """cover in [-limit, limit), secret in [0, width) -> stego in [-limit, limit), r."""
        stego = cover + (secret - cover + width // 2) % width - width // 2
        stego = torch.where(stego < -limit, stego + width, stego)
        stego = torch.where(stego >= limit, stego - width, stego)
        return stego, stego - cover

    def inverse(self, stego: Tensor, r: Tensor, width: int) -> tuple[Tensor, Tensor]:
        return stego - r, stego % width


# ---------------------------------------------------------------- parts

class Part(NamedTuple):
    """A part of a secret, and where it is hidden."""

    index: int
    secret: slice  # of samples in each channel
    samples: slice  # of the stego
    segments: slice  # the same, in segments


def parts_of(header: Header) -> list[Part]:
    """The parts of a stego and its secret: one, or an even number of nearly one size, so that two
    or four processes end together."""
    first = header.layout.header_samples
    segments = (header.samples - first - header.layout.seal_samples) // SEGMENT
    count = 2 * math.ceil(segments / (2 * PART_SEGMENTS)) if segments > 0.4 * PART_SEGMENTS else 1
    length = math.ceil(header.length / count)
    parts = []
    for i in range(count):
        secret = slice(min(header.length, i * length), min(header.length, (i + 1) * length))
        start, stop = i * segments // count, (i + 1) * segments // count
        samples = slice(first + start * SEGMENT, first + stop * SEGMENT)
        parts.append(Part(i, secret, samples, slice(start, stop)))
    return parts


# ---------------------------------------------------------------- widths

def segment_powers(samples: Tensor) -> Tensor:
    """Mean square of each segment in the samples between header and seal. [n] -> [n // 512]"""
    samples = samples[:len(samples) // SEGMENT * SEGMENT]
    return torch.cat([piece.view(-1, SEGMENT).double().square().mean(1)
                      for piece in samples.split(SAMPLES_AT_ONCE)])


def choose_widths(powers: Tensor, error: float, masking: float, depth: int) -> Tensor:
    """The cells of each segment, as indices into WIDTHS, from `segment_powers`: their distortion is
    proportional to that to the power of `masking`, and has a mean of at most `error`."""
    masked = (powers + 1) ** masking
    # An even cell has no middle, which costs 3 / 12.
    distortion = torch.tensor([(width ** 2 + (-1 if width % 2 else 2)) / 12 for width in WIDTHS],
                              dtype=torch.float64)
    widest = min(len(WIDTHS) - 1, 4 * depth - 12)
    golden = 0.6180339887498949  # its multiples spread out evenly what rounding down takes
    dither = torch.arange(len(masked), dtype=torch.float64) * golden % 1

    def widths(exponent):  # of a distortion of masked * 2 ** exponent
        octaves = 2 * torch.log2(12 * masked * 2 ** exponent) - 4
        return (octaves + dither).floor().clamp(0, widest).long()

    low, high = -60.0, 60.0
    for _ in range(60):
        middle = (low + high) / 2
        if distortion[widths(middle)].mean() <= error:
            low = middle
        else:
            high = middle
    return widths(low)


def word_starts(widths: Tensor) -> Tensor:
    """How many words all segments before each hold [segments + 1]."""
    room = torch.tensor([room_for(width) for width in WIDTHS])
    return functional.pad(room[widths].cumsum(0), (1, 0))


def by_width(widths: Tensor):
    """Yield a width, the segments that have it, and so on; some segments at a time."""
    for index in widths.unique().tolist():
        segments = (widths == index).nonzero()[:, 0]
        for some in segments.split(SAMPLES_AT_ONCE // SEGMENT):
            yield WIDTHS[index], some


def encipher_widths(widths: Tensor, cipher: Cipher, part: int) -> Tensor:
    """Or decipher them."""
    stream = cipher.integers(b"widths %d\0" % part, len(widths), torch.uint8)
    return widths ^ (stream % len(WIDTHS)).long()


# ---------------------------------------------------------------- words

def write_words(words: Tensor, cover: Tensor, widths: Tensor, cipher: Cipher, part: int, depth: int
                ) -> Tensor:
    """A part's stego [n] with these words [W] in it, from its cover of `depth` bits and the widths
    of its segments."""
    coupling, limit, starts = LatticeCoupling(), 1 << (depth - 1), word_starts(widths)
    used = int(torch.searchsorted(starts, len(words)))
    stego = cover.clone()
    before, after = cover.view(-1, SEGMENT), stego.view(-1, SEGMENT)
    telling = encipher_widths(widths, cipher, part)[:used, None]
    telling = (telling >> (2 * torch.arange(TELLING))) & 3
    after[:used, :TELLING] = coupling(before[:used, :TELLING], telling, 4, limit)[0]
    for width, segments in by_width(widths[:used]):
        index = starts[segments, None] + torch.arange(room_for(width))
        digits = digits_of(words[index.clamp(max=len(words) - 1)], width)
        cells = segments[:, None], torch.arange(TELLING, TELLING + digits.shape[1])
        after[cells] = coupling(before[cells], digits, width, limit)[0]
    return stego


def read_words(stego: Tensor, cipher: Cipher, part: int) -> tuple[Tensor, Tensor]:
    """Inverse of `write_words`: all words [W] that a part's samples [n] hold, and `word_starts`."""
    coupling, segments = LatticeCoupling(), stego.view(-1, SEGMENT)
    telling = coupling.inverse(segments[:, :TELLING], 0, 4)[1]
    widths = encipher_widths((telling << (2 * torch.arange(TELLING))).sum(1), cipher, part)
    starts = word_starts(widths)
    words = torch.zeros(int(starts[-1]), dtype=torch.long)
    for width, some in by_width(widths):
        digits = coupling.inverse(segments[some, TELLING:], 0, width)[1]
        words[starts[some, None] + torch.arange(room_for(width))] = words_of(digits, width)
    return words, starts


@functools.lru_cache
def radix(width: int) -> tuple[int, int]:
    """Numbers of digits of a base, and of bits in their place: at most 62, with the least waste."""
    choices = [(digits, (width ** digits).bit_length() - 1)
               for digits in range(1, 1 + int(62 / math.log2(width)))]
    return max(choices, key=lambda choice: (SEGMENT - TELLING) // choice[0] * choice[1])


def room_for(width: int) -> int:
    """Words that a segment holds in cells of a width."""
    digits, bits = radix(width)
    return (SEGMENT - TELLING) // digits * bits // 32


def digits_of(words: Tensor, width: int) -> Tensor:
    """Words of segments [N, room_for(width)] as digits of a base [N, n]."""
    digits, bits = radix(width)
    numbers = recut(words, 32, bits)
    result = torch.empty(digits, *numbers.shape, dtype=torch.int32)
    for digit in result:
        quotient = numbers // width
        digit.copy_(numbers - quotient * width)
        numbers = quotient
    return result.permute(1, 2, 0).flatten(1)


def words_of(digits: Tensor, width: int) -> Tensor:
    """Inverse of `digits_of`: the words in all digits of segments [N, SEGMENT - TELLING]."""
    count, bits = radix(width)
    groups = digits[:, :digits.shape[1] // count * count].unflatten(1, (-1, count))
    numbers = 0
    for digit in reversed(groups.unbind(2)):
        numbers = numbers * width + digit.long()
    return recut(numbers, bits, 32)[:, :room_for(width)]


def recut(values: Tensor, old: int, new: int) -> Tensor:
    """Cut streams of `old`-bit integers [N, n], lowest bit first, into `new`-bit ones, both at most
    62; the last is filled up."""
    start = torch.arange(math.ceil(values.shape[1] * old / new)) * new
    values = functional.pad(values, (0, new // old + 2))
    first, gone = start // old, start % old
    result = values[:, first] >> gone
    for i in range(1, new // old + 2):
        have = i * old - gone
        result |= torch.where(have < new, values[:, first + i] << have.clamp(max=new), 0)
    return result & ((1 << new) - 1)
