"""Files with a lattice: hidden and revealed part by part, on all cores.

A part is up to five minutes of a secret, in the same share of the cover's samples. Parts know
nothing of each other, so processes share the work and memory does not grow. The words of a part:

    mode | table: (start, number of words, checksum) of each block | block | block | ...

A start is a segment of the cover and a word in it, so that damage to one block does not move the
next. All words are enciphered.
"""

import bisect
import math
import sys
import zlib
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from files import container
from files.container import DENSE, Cipher, Damaged, Header, sounding
from files.processes import bar, in_order
from files.sound import FULL_SCALE, READ_AT_ONCE, energy, to_pcm
from lattice.cells import read_words, word_starts, write_words
from lattice.fit import fit
from lattice.lattice import COARSEST_STEP, FINEST_STEP, MOST_BANDS, Mode
from lattice.lattice import load as load  # for files/parts.py
from lattice.widths import MASKING, SEGMENT, choose_widths, noise_floors

STEGO_SNR = 52.0  # dB, unless another is asked for
PART_SEGMENTS = 10240  # in a part, at most: 5 minutes at 16 kHz


class LatticeMethod:
    """How to hide in files with a lattice; the interface is that of files/parts.py."""

    layout, survives = DENSE, 0
    usual_snr, options = STEGO_SNR, ("snr", "shaping", "masking")
    least_samples = DENSE.header_samples + DENSE.seal_samples + SEGMENT  # of a cover

    def __init__(self, model):
        self.model, self.fingerprint = model, model.fingerprint
        self.secret_noise = 0  # energy of what hiding took from the secret

    def header(self, cover, secret):
        start, stop = sounding(cover.read, cover.samples)
        if stop - start < max(self.least_samples, cover.samples / 2):  # all samples are needed
            start, stop = 0, cover.samples
        return Header(cover.samples, secret.frames, self.fingerprint(),
                      self.model.bands_at(cover.rate), secret.channels, self.layout,
                      start=start, stop=stop)

    def hide(self, header, cipher, cover, secret, snr, shaping, masking):
        """The stego's samples, without header and seal, piece by piece."""
        masking = MASKING if masking is None else masking
        first = header.start + self.layout.header_samples
        last = header.stop - self.layout.seal_samples
        # as numbers: small tensors that stay between freed pieces keep the heap from shrinking
        floors = torch.tensor(
            [floor for piece in cover.pieces(first, last)
             for floor in noise_floors(piece, cover.channels).tolist()], dtype=torch.double)
        widths = choose_widths(floors, cover.energy / 10 ** (snr / 10), masking, cover.depth)
        parts = parts_of(header)

        def work(part):
            before = cover.read(part.samples.start, part.samples.stop)
            pcm = secret.read(part.secret.start * secret.channels,
                              part.secret.stop * secret.channels).view(-1, secret.channels).float()
            stego, decoded = self.hide_part(
                header, cipher, part, before, pcm, widths[part.segments], shaping, cover.depth)
            lost = sum(energy(x.round().clamp(-FULL_SCALE, FULL_SCALE - 1) - y) for x, y in zip(
                decoded.split(READ_AT_ONCE), pcm.split(READ_AT_ONCE)))
            return stego.numpy().astype(cover.dtype), lost

        yield from cover.pieces(0, header.start)
        beginning = cover.read(header.start, first)
        if not (beginning[:2] >> 1).any():  # in silence: so that `reveal` finds the header here
            beginning[0] = 2
        yield beginning
        for stego, lost in in_order(work, parts, bar(cover.seconds)):
            self.secret_noise += lost
            yield torch.from_numpy(stego)
        yield cover.read(parts[-1].samples.stop, header.stop)
        yield from cover.pieces(header.stop)

    @torch.inference_mode()
    def hide_part(self, header, cipher, part, cover, secret, widths, shaping, depth):
        """Hide a part of a secret, in units of 16-bit PCM [S, C], in its part of the cover [n], in
        cells of these widths. Returns the stego [n], and what `reveal_part` will return. Raises
        ValueError if there is no room."""
        starts = word_starts(widths)
        room, words, decoded = int(starts[-1]), torch.zeros(0, dtype=torch.long), secret.double()
        if len(secret):
            mode, streams, decoded = fit(self.model, secret, header.setting, room, shaping)
            words = join_streams(mode, streams, starts, cipher, part.index)
        if cipher.keyed:  # the number of changed samples must not show how much is hidden
            filling = cipher.words(b"filling %d\0" % part.index, room - len(words))
            words = torch.cat([words, filling])
        return write_words(words, cover, widths, cipher, part.index, depth), decoded

    def measure(self, header, cipher, written, secret):
        """The energy of what `reveal` will lack of a secret: decoding is exact, so it is known."""
        return self.secret_noise

    def recover(self, decoded, key):
        """Without its header, nothing can be revealed of a stego."""

    def reveal(self, header, cipher, stego):
        """The secret's samples, int16 [n, channels], piece by piece; damaged blocks are silent,
        with a warning. Raises Damaged."""
        def work(part):
            samples = stego.read(part.samples.start, part.samples.stop)
            missing = part.samples.stop - part.samples.start - len(samples)
            secret, blocks, lost = self.reveal_part(
                header, cipher, part, functional.pad(samples, (0, missing)))
            pieces = secret.split(READ_AT_ONCE)  # which stay in the cache
            return np.concatenate([to_pcm(x / FULL_SCALE) for x in pieces]), blocks, lost

        blocks = lost = 0
        for pcm, more_blocks, more_lost in in_order(work, parts_of(header), bar(stego.seconds)):
            yield pcm
            blocks, lost = blocks + more_blocks, lost + more_lost
        if lost == blocks:
            raise Damaged("the secret was changed or cut off")
        if lost:
            print(f"warning: {stego.name}: {lost} of {blocks} blocks of the secret were changed or "
                  "cut off, and are silent", file=sys.stderr)

    @torch.inference_mode()
    def reveal_part(self, header, cipher, part, stego):
        """Inverse of `hide_part`: the secret [S, C], float64; the number of its blocks, and of
        damaged ones, which are silent. Raises Damaged for words that cannot be decoded."""
        bands, length = header.setting, part.secret.stop - part.secret.start
        if not length:
            return torch.zeros(0, header.channels, dtype=torch.float64), 0, 0
        if not 0 < bands <= MOST_BANDS or bands % 128:  # though its checksum is right
            raise Damaged("its header is not of a lattice")
        words, starts = read_words(stego, cipher, part.index)
        blocks = header.channels * self.model.shape_of(length, bands)[1]
        mode, streams = split_streams(words, starts, cipher, part.index, blocks, bands // 4)
        possible = (FINEST_STEP <= mode.step <= COARSEST_STEP and mode.shaping <= 256
                    and mode.rotated < header.channels)
        if not possible and any(stream is not None for stream in streams):
            raise Damaged("its parts are not of a lattice")
        mode = mode if possible else Mode(0, 0, False, False)  # of a part that is silent
        try:
            secret = self.model.decompress(streams, length, header.channels, bands, mode)
        except IndexError as error:
            raise Damaged("its words end before the secret does") from error
        return secret, blocks, streams.count(None)


class Part(NamedTuple):
    """A part of a secret, and where it is hidden."""

    index: int
    secret: slice  # of samples in each channel
    samples: slice  # of the stego
    segments: slice  # the same, in segments


def parts_of(header: Header) -> list[Part]:
    """The parts of a stego and its secret: one, or an even number of nearly equal size, so that two
    or four processes end together."""
    first = header.start + header.layout.header_samples
    segments = (header.stop - header.layout.seal_samples - first) // SEGMENT
    count = 2 * math.ceil(segments / (2 * PART_SEGMENTS)) if segments > 0.4 * PART_SEGMENTS else 1
    length = math.ceil(header.length / count)
    parts = []
    for i in range(count):
        secret = slice(min(header.length, i * length), min(header.length, (i + 1) * length))
        start, stop = i * segments // count, (i + 1) * segments // count
        samples = slice(first + start * SEGMENT, first + stop * SEGMENT)
        parts.append(Part(i, secret, samples, slice(start, stop)))
    return parts


def join_streams(mode: Mode, streams: list[Tensor], starts: Tensor, cipher: Cipher, part: int
                 ) -> Tensor:
    """The words of a part, enciphered [W], from its mode and the words of its blocks. `starts` is
    from `word_starts`."""
    first, starts = mode.pack(), starts.tolist()
    table, filled = [first], 1 + 3 * len(streams)
    for stream in streams:
        segment = bisect.bisect(starts, filled) - 1
        start = (segment << 12) | (filled - starts[segment])
        table += [start, len(stream), _checksum(stream, first)]
        filled += len(stream)
    pieces = [torch.tensor(table), *streams]
    return torch.cat([piece ^ cipher.words(b"words %d %d\0" % (part, i), len(piece))
                      for i, piece in enumerate(pieces)])


def split_streams(words: Tensor, starts: Tensor, cipher: Cipher, part: int, blocks: int, least: int
                  ) -> tuple[Mode, list[Tensor | None]]:
    """Inverse of `join_streams`: the mode, and the words of each block, at least `least`, or None
    where they were changed. Raises Damaged for blocks that share words, whose copies could take any
    amount of memory."""
    size = 1 + 3 * blocks
    table = functional.pad(words[:size], (0, max(0, size - len(words))))
    first, *table = (table ^ cipher.words(b"words %d 0\0" % part, size)).tolist()
    streams, taken = [], torch.zeros(len(words), dtype=torch.bool)
    for i, (start, count, check) in enumerate(zip(table[::3], table[1::3], table[2::3])):
        first_word = int(starts[min(start >> 12, len(starts) - 1)]) + (start & 0xFFF)
        stream = words[first_word:first_word + count]
        stream = stream ^ cipher.words(b"words %d %d\0" % (part, i + 1), len(stream))
        intact = len(stream) >= least and _checksum(stream, first) == check
        if intact and taken[first_word:first_word + count].any():
            raise Damaged("its blocks overlap")
        taken[first_word:first_word + count] |= intact
        streams.append(stream if intact else None)
    return Mode.unpack(first), streams


def _checksum(words: Tensor, start: int) -> int:
    return zlib.crc32(container.bytes_of(words), start)
