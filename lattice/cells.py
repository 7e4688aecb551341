"""The lattice coupling, and words of 32 bits in the cells of a cover's samples.

A cell of width w is w neighbouring sample values; which of them a stego's sample has is a digit of
base w. Between header and seal, 512 samples are a segment, whose cells have one width: four samples
in a row, the key knows where, tell which, in cells of 3, and each of the others holds a digit, or,
in cells of 1, nothing. Segments belong to parts, which know nothing of each other: processes share
the work, and memory does not grow.
"""

import functools
import math
from typing import Callable, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from files.container import DENSE, Cipher, Header

SEGMENT = 512  # samples
TELLING = 4  # samples of a segment that tell the width of the others' cells
WIDTHS = [1] + [round(2 ** (i / 4)) for i in range(4, 3 + 3 ** TELLING)]  # in quarter octaves
SHIFTS = 64  # of a segment's numbers, in turn
PART_SEGMENTS = 10240  # in a part, at most: 5 minutes at 16 kHz
LEAST_SAMPLES = DENSE.header_samples + DENSE.seal_samples + SEGMENT  # of a cover
FRAME, BANDS = 256, 8  # samples and bands of the spectra by which noise floors are found
MASKING = 0.4  # a segment's distortion is proportional to this power of its noise floor
CEILING = 6.0  # dB; that is cut off where it is loud, to be more elsewhere, up to this much
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

def noise_floors(samples: Tensor, channels: int = 1) -> Tensor:
    """Mean square of the white noise that each segment of the samples between header and seal could
    have: as much as is in the weakest of its bands, at its weakest time. Channels take turns.
    [n] -> [n // 512]"""
    samples = samples[:len(samples) // SEGMENT * SEGMENT]
    size = FRAME // channels
    window = torch.hann_window(size)
    floors = []
    for piece in samples.split(SAMPLES_AT_ONCE):
        frames = piece.float().view(-1, SEGMENT // channels, channels).unfold(1, size, size // 2)
        power = torch.fft.rfft(frames * window)[..., 1:].abs().square_()
        bands = power.unflatten(-1, (BANDS, -1)).mean(-1) / window.square().sum()
        floors.append(bands.flatten(1).amin(1).double())
    return torch.cat(floors)


def choose_widths(floors: Tensor, energy: float, masking: float, depth: int) -> Tensor:
    """The cells of each segment, as indices into WIDTHS, from `noise_floors`: their distortion is
    proportional to that to the power of `masking`, up to a limit, and has at most this energy in
    all; but the cells have a mean of one bit at least."""
    error = energy / (SEGMENT * len(floors))  # of a sample
    # An even cell has no middle, which costs 3 / 12.
    distortion = torch.tensor([(width ** 2 + (-1 if width % 2 else 2)) / 12 for width in WIDTHS],
                              dtype=torch.float64)
    bits = torch.tensor(WIDTHS, dtype=torch.float64).log2()
    widest = min(len(WIDTHS) - 1, 4 * depth - 11)
    golden = 0.6180339887498949  # its multiples spread out evenly what rounding down takes
    dither = torch.arange(len(floors), dtype=torch.float64) * golden % 1

    def widths(wanted):  # of segments that are to have these distortions
        quarters = 2 * torch.log2(12 * wanted + 1)  # of an octave, of a width
        return (quarters - 3 + dither).floor().clamp(0, widest).long()

    def solve(wanted, error):  # what the most exponent gives
        low, high = -60.0, 60.0
        for _ in range(60):
            middle = (low + high) / 2
            chosen = widths(wanted(2 ** middle))
            if distortion[chosen].mean() <= error or bits[chosen].mean() <= 1:
                low = middle
            else:
                high = middle
        return wanted(2 ** low)

    masked = (floors + 2 ** -20) ** masking  # silence takes some where there is nothing else
    masked = solve(lambda scale: scale * masked, error * 10 ** (CEILING / 10))
    return widths(solve(lambda scale: masked.clamp(max=scale), error))


def word_starts(widths: Tensor) -> Tensor:
    """How many words all segments before each hold [segments + 1]."""
    room = torch.tensor([room_for(width) for width in WIDTHS])
    return functional.pad(room[widths].cumsum(0), (1, 0))


def by_width(widths: Tensor):
    """Yield a width, the segments that have it, and so on; some segments at a time. Cells of 1 hold
    nothing."""
    for index in widths[widths > 0].unique().tolist():
        segments = (widths == index).nonzero()[:, 0]
        for some in segments.split(SAMPLES_AT_ONCE // SEGMENT):
            yield WIDTHS[index], some


def telling(count: int, cipher: Cipher, part: int) -> tuple[Tensor, Tensor]:
    """What is added to indices into WIDTHS, modulo their number, to encipher them; and where in its
    segment the first of the samples is that tell them. [count] each"""
    words = cipher.words(b"telling %d\0" % part, count)
    return words % len(WIDTHS), (words >> 16) % SEGMENT


def places(segments: Tensor, first: Tensor, start: int, stop: int) -> Tensor:
    """Where in a part the samples `start` to `stop` of segments [N] lie, in the order in which they
    are used: from the first that tells the width on, round to it. [N * (stop - start)]"""
    turned = (first[segments, None] + torch.arange(start, stop)).bitwise_and_(SEGMENT - 1)
    return turned.add_(segments[:, None], alpha=SEGMENT).flatten()


# ---------------------------------------------------------------- words

def write_words(words: Tensor, cover: Tensor, widths: Tensor, cipher: Cipher, part: int, depth: int
                ) -> Tensor:
    """A part's stego [n] with these words [W] in it, from its cover of `depth` bits and the widths
    of its segments."""
    coupling, limit, starts = LatticeCoupling(), 1 << (depth - 1), word_starts(widths)
    used = int(torch.searchsorted(starts, len(words)))
    stego = cover.clone()
    added, first = telling(len(widths), cipher, part)
    told = ((widths + added) % len(WIDTHS))[:used, None] // 3 ** torch.arange(TELLING) % 3
    cells = places(torch.arange(used), first, 0, TELLING)
    after = coupling(cover[cells], told.flatten(), 3, limit)[0]
    stego.index_copy_(0, cells, after.to(cover.dtype))
    shifts = digit_shifts(len(widths), cipher, part)
    for width, segments in by_width(widths[:used]):
        index = starts[segments, None] + torch.arange(room_for(width))
        held = words[index.clamp(max=len(words) - 1)]
        digits = digits_of(held, width, shifts(width, segments))
        cells = places(segments, first, TELLING, TELLING + digits.shape[1])
        after = coupling(cover.index_select(0, cells), digits.flatten(), width, limit)[0]
        stego.index_copy_(0, cells, after)
    return stego


def read_words(stego: Tensor, cipher: Cipher, part: int) -> tuple[Tensor, Tensor]:
    """Inverse of `write_words`: all words [W] that a part's samples [n] hold, and `word_starts`."""
    coupling, count = LatticeCoupling(), len(stego) // SEGMENT
    added, first = telling(count, cipher, part)
    cells = places(torch.arange(count), first, 0, TELLING)
    told = coupling.inverse(stego[cells].view(-1, TELLING), 0, 3)[1]
    told = (told * 3 ** torch.arange(TELLING)).sum(1)
    widths = (told - added) % len(WIDTHS)
    starts = word_starts(widths)
    words = torch.zeros(int(starts[-1]), dtype=torch.long)
    shifts = digit_shifts(len(widths), cipher, part)
    for width, some in by_width(widths):
        samples = stego.index_select(0, places(some, first, TELLING, SEGMENT))
        digits = coupling.inverse(samples.view(len(some), -1), 0, width)[1]
        found = words_of(digits, width, shifts(width, some))
        words[starts[some, None] + torch.arange(room_for(width))] = found
    return words, starts


@functools.lru_cache
def radix(width: int) -> tuple[int, int]:
    """Numbers of digits of a base, and of bits in their place: at most 62, with the least waste."""
    choices = [(digits, (width ** digits).bit_length() - 1)
               for digits in range(1, 1 + int(62 / math.log2(width)))]
    return max(choices, key=lambda choice: (SEGMENT - TELLING) // choice[0] * choice[1])


def room_for(width: int) -> int:
    """Words that a segment holds in cells of a width."""
    if width == 1:
        return 0
    return numbers_in(width) * radix(width)[1] // 32


def digit_shifts(segments: int, cipher: Cipher, part: int) -> Callable[[int, Tensor], Tensor]:
    """A function of a width and some of so many segments [N] that have it: what is added to each
    number whose digits they hold, modulo as many as there are [N, numbers]. Without it, numbers
    below a power of 2 would leave some digits rarer than others, which a detector can count."""
    stream = cipher.words(b"digits %d\0" % part, segments * SHIFTS).view(segments, SHIFTS)

    def shifts(width, some):
        share = stream[some][:, torch.arange(numbers_in(width)) % SHIFTS].double() * 2 ** -32
        return (share * width ** radix(width)[0]).long()

    return shifts


def numbers_in(width: int) -> int:
    """How many numbers a segment's digits make."""
    return (SEGMENT - TELLING) // radix(width)[0]


def digits_of(words: Tensor, width: int, shifts: Tensor) -> Tensor:
    """Words of segments [N, room_for(width)] as digits of a base [N, n], by `digit_shifts`."""
    digits, bits = radix(width)
    numbers = recut(words, 32, bits)
    numbers = (numbers + shifts[:, :numbers.shape[1]]) % width ** digits
    result = torch.empty(digits, *numbers.shape, dtype=torch.int32)
    for digit in result:
        quotient = numbers // width
        digit.copy_(numbers - quotient * width)
        numbers = quotient
    return result.permute(1, 2, 0).flatten(1)


def words_of(digits: Tensor, width: int, shifts: Tensor) -> Tensor:
    """Inverse of `digits_of`: the words in all digits of segments [N, SEGMENT - TELLING]."""
    count, bits = radix(width)
    groups = digits[:, :digits.shape[1] // count * count].unflatten(1, (-1, count))
    numbers = 0
    for digit in reversed(groups.unbind(2)):
        numbers = numbers * width + digit.long()
    numbers = (numbers - shifts) % width ** count & ((1 << bits) - 1)
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
