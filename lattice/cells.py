"""The lattice: words of 32 bits become digits in the cells of a cover's samples.

    stego = write_words(words, cover, widths, cipher, part, depth)
    words, starts = read_words(stego, cipher, part)

A segment is 512 samples, whose cells have one width (see widths.py). Four consecutive samples of
it, its label, state the width in cells of 3; each of the others holds one digit, or nothing where
the width is 1. The cipher decides where the label begins, and what is added to it. A segment of
zeros has no label: its width is 1.

Shapes: n samples of a part, N segments, W words.
"""

import functools
import math
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional

from files.container import Cipher
from lattice.widths import LABEL, SAMPLES_AT_ONCE, SEGMENT, WIDTHS


def congruent(cover: Tensor, digits: Tensor, width: int, limit: int = 32768) -> Tensor:
    """Move each sample of a cover, within a cell around it, to the value that is congruent to its
    digit modulo the cell's width.

        stego = cover + wrap(digit - cover);   digit = stego % width

    The distortion is (width ** 2 - 1) / 12 whatever the cover is: dirty-paper coding (Costa 1983)
    by quantisation index modulation (Chen and Wornell 2001). cover and stego are in
    [-limit, limit), where the neighbouring cell is taken at the ends, digits in [0, width).
    """
    stego = cover + (digits - cover + width // 2) % width - width // 2
    stego = torch.where(stego < -limit, stego + width, stego)
    return torch.where(stego >= limit, stego - width, stego)


def write_words(words: Tensor, cover: Tensor, widths: Tensor, cipher: Cipher, part: int, depth: int
                ) -> Tensor:
    """Hide words [W] in a part of a cover.

    Args:
        words: integers below 2 ** 32, at most word_starts(widths)[-1] of them.
        cover: integers of `depth` bits [n], of which whole segments are used.
        widths: of the segments' cells, indices into WIDTHS [N]. Segments behind the last word stay
            as they are.
        part: its number, which selects other random numbers of the cipher.
    Returns:
        The stego [n].
    """
    limit, starts = 1 << (depth - 1), word_starts(widths)
    used = int(torch.searchsorted(starts, len(words)))
    stego = cover.clone()

    def put(digits, width, where):
        after = congruent(cover.index_select(0, where), digits.flatten(), width, limit)
        stego.index_copy_(0, where, after.to(cover.dtype))

    added, first, dither = random_numbers(len(widths), cipher, part)
    labelled = (widths > 0) | ~silent_segments(cover)
    labelled = labelled[:used].nonzero()[:, 0]
    label = ((widths + added) % len(WIDTHS))[labelled, None] // 3 ** torch.arange(LABEL) % 3
    put(label, 3, positions(labelled, first, 0, LABEL))
    for width, segments in by_width(widths[:used]):
        index = starts[segments, None] + torch.arange(room_for(width))
        digits = digits_of(words[index.clamp(max=len(words) - 1)], width)
        digits = digits + dither[segments, :digits.shape[1]] % width
        put(digits, width, positions(segments, first, LABEL, LABEL + digits.shape[1]))
    return stego


def read_words(stego: Tensor, cipher: Cipher, part: int) -> tuple[Tensor, Tensor]:
    """Inverse of `write_words`: all words [W] that a part's samples [n] hold, and `word_starts`."""
    count = len(stego) // SEGMENT
    added, first, dither = random_numbers(count, cipher, part)
    label = stego[positions(torch.arange(count), first, 0, LABEL)].view(-1, LABEL)
    label = (label % 3 * 3 ** torch.arange(LABEL)).sum(1)
    widths = ((label - added) % len(WIDTHS)).masked_fill(silent_segments(stego), 0)
    starts = word_starts(widths)
    words = torch.zeros(int(starts[-1]), dtype=torch.long)
    for width, segments in by_width(widths):
        samples = stego.index_select(0, positions(segments, first, LABEL, SEGMENT))
        digits = samples.view(len(segments), -1) - dither[segments] % width
        where = starts[segments, None] + torch.arange(room_for(width))
        words[where] = words_of(digits % width, width)
    return words, starts


# ---------------------------------------------------------------- segments

def word_starts(widths: Tensor) -> Tensor:
    """How many words the segments before each one hold, and all of them at the end [N + 1]."""
    room = torch.tensor([room_for(width) for width in WIDTHS])
    return functional.pad(room[widths].cumsum(0), (1, 0))


def by_width(widths: Tensor) -> Iterator[tuple[int, Tensor]]:
    """Go through the segments that hold anything, those of one width together: the width, and the
    numbers of some segments."""
    for index in widths[widths > 0].unique().tolist():
        segments = (widths == index).nonzero()[:, 0]
        for some in segments.split(SAMPLES_AT_ONCE // SEGMENT):
            yield WIDTHS[index], some


def silent_segments(samples: Tensor) -> Tensor:
    """Which segments of a part [n] are all zeros [N]. Where nothing is hidden in digital silence,
    there is no label either, which would be the only trace of a change."""
    return ~samples[:len(samples) // SEGMENT * SEGMENT].view(-1, SEGMENT).any(1)


def random_numbers(count: int, cipher: Cipher, part: int) -> tuple[Tensor, Tensor, Tensor]:
    """What is added to each segment's label, modulo len(WIDTHS), and where the label begins in its
    segment, [count] each; and what is added to each digit, modulo the width [count, 508]. Digits
    of the words themselves are not equally frequent, which a detector could count."""
    words = cipher.words(b"labels %d\0" % part, count)
    dither = cipher.integers(b"digits %d\0" % part, count * (SEGMENT - LABEL))
    return words % len(WIDTHS), (words >> 16) % SEGMENT, dither.view(count, SEGMENT - LABEL)


def positions(segments: Tensor, first: Tensor, start: int, stop: int) -> Tensor:
    """Where in a part the samples `start` to `stop` of segments [N] lie, counted from the label on
    and around the segment's end. [N * (stop - start)]"""
    turned = (first[segments, None] + torch.arange(start, stop)).bitwise_and_(SEGMENT - 1)
    return turned.add_(segments[:, None], alpha=SEGMENT).flatten()


# ---------------------------------------------------------------- words as digits

# Words of 32 bits do not fill whole digits in base `width`. So a segment's words are one string of
# bits, which is cut into numbers of so many bits that they nearly fill a whole number of digits.

@functools.lru_cache
def radix(width: int) -> tuple[int, int, int]:
    """How many numbers a segment holds, and the digits and bits of each, at most 62 bits, with the
    least waste."""
    choices = [((SEGMENT - LABEL) // digits, digits, (width ** digits).bit_length() - 1)
               for digits in range(1, 1 + int(62 / math.log2(width)))]
    return max(choices, key=lambda choice: choice[0] * choice[2])


def room_for(width: int) -> int:
    """How many words a segment holds in cells of a width."""
    numbers, _, bits = radix(width) if width > 1 else (0, 0, 0)
    return numbers * bits // 32


def digits_of(words: Tensor, width: int) -> Tensor:
    """Words of segments [N, room_for(width)] -> digits [N, numbers * digits], lowest first."""
    _, count, bits = radix(width)
    numbers = recut(words, 32, bits)
    result = torch.empty(count, *numbers.shape, dtype=torch.int32)
    for digit in result:
        quotient = numbers // width
        digit.copy_(numbers - quotient * width)
        numbers = quotient
    return result.permute(1, 2, 0).flatten(1)


def words_of(digits: Tensor, width: int) -> Tensor:
    """Inverse of `digits_of`; of the digits of segments, [N, SEGMENT - LABEL], some are unused."""
    count, each, bits = radix(width)
    numbers = 0
    for digit in reversed(digits[:, :count * each].unflatten(1, (count, each)).unbind(2)):
        numbers = numbers * width + digit.long()
    return recut(numbers & ((1 << bits) - 1), bits, 32)[:, :room_for(width)]


def recut(values: Tensor, old: int, new: int) -> Tensor:
    """Cut strings of bits, given as `old`-bit integers [N, n], lowest bit first, into `new`-bit
    integers, both at most 62; the last one is padded with zeros."""
    start = torch.arange(math.ceil(values.shape[1] * old / new)) * new
    values = functional.pad(values, (0, new // old + 2))
    first, gone = start // old, start % old
    result = values[:, first] >> gone
    for i in range(1, new // old + 2):
        have = i * old - gone
        result |= torch.where(have < new, values[:, first + i] << have.clamp(max=new), 0)
    return result & ((1 << new) - 1)
