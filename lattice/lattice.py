"""The lattice: hide in samples that stay what they are, bit for bit, close to what theory allows.

    model = lattice.load("lattice.pt")
    stego, r = model.hide(cover, secret)      # float tensors [T] or [2, T] in [-1, 1)
    cover_, secret_ = model.reveal(stego)

The secret's lapped coefficients are quantised; their scales are predicted from those before them
(`ScaleNet`); an entropy coder (coder.py) makes words of them; these become digits in the cells of
the cover's samples (cells.py). An integer discrete flow (Hoogeboom et al. 2019), except for the
secret's quantisation, and lossless altogether where there is room. It runs on the CPU.

Shapes: S samples and C channels of a secret; N blocks of about 4 s in all channels together, F
frames in a block, M bands (config.bands at config.sample_rate, in proportion at other rates),
M / 8 lanes of the coder. Samples of a secret count in PCM units of 16 bits.
"""

import bisect
import functools
import math
import os
import warnings
import zlib
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from files import checkpoint, container
from files.container import DENSE, Cipher, Damaged, Header
from lattice.cells import (
    LEAST_SAMPLES,
    MASKING,
    Part,
    choose_widths,
    noise_floors,
    parts_of,
    read_words,
    word_starts,
    write_words,
)
from lattice.coder import CLASSES, PRECISION, SYMBOLS, TABLES, Coder
from lattice.quantiser import BATCH, Quantised, Quantiser
from wavinwav import lapped

STEGO_SNR = 52.0  # dB, unless another is asked for
BLOCK_FRAMES = 256  # about, in a block, which is decoded without the others
MOST_BANDS = 8192  # of the lapped transform
RESIDUAL = 14  # the class of what rounding a lossless block's samples leaves

# How `fit` searches; found by trial on speech.
FINEST_STEP, COARSEST_STEP = -64, 64 * 20
PROBED_BLOCKS, PROBED_FRAMES = 48, 24  # what is measured of a secret that has far more
PROBE_MARGIN = 0.991  # a part of the bits, left for what the other blocks take above these
COST_OF_SIZE, COST_OF_SQUARE = 2.2, -0.1  # the first guess of a frame's bits, by mean log2 size
SAVED_BY_SHAPING = 0.95  # of COST_OF_SIZE, by a shaping of 1: steps of loud frames are coarser
# With few bits, noise is better where it is loud: most shaping below 3.1 bits a coefficient. From
# 5 bits on nobody hears it, and the SNR counts.
SHAPING_AT_NO_BITS, SHAPING_LOST_BY_BIT, MOST_SHAPING = 2.35, 0.47, 0.9


@dataclass
class LatticeConfig:
    """What defines a lattice. Raises ValueError naming the field whose value is invalid."""

    preset: str = "lattice"  # a label, by which train.py and files tell it from an INN
    sample_rate: int = 16000  # Hz, of the training audio; it works at any
    bands: int = 256  # of the lapped transform at that rate: a multiple of 128, 1/16 of it at most
    growth: int = 16  # hidden units of each of the three networks that predict scales

    def __post_init__(self):
        for name, divisor, most in (("sample_rate", 1, 1_000_000), ("bands", 128, MOST_BANDS),
                                    ("growth", 1, 1000)):
            value = getattr(self, name)
            if type(value) is not int or not divisor <= value <= most or value % divisor:
                rule = "a multiple of 128 and" if divisor > 1 else "a whole number"
                raise ValueError(f"LatticeConfig.{name} must be {rule} from {divisor} to {most}, "
                                 f"not {value!r}")
        if 16 * self.bands > self.sample_rate:  # transforms of files at usual rates would be huge
            raise ValueError("LatticeConfig.bands must be at most a sixteenth of sample_rate, not "
                             f"{self.bands} for {self.sample_rate}")
        if self.preset != "lattice":
            raise ValueError(f"LatticeConfig.preset must be 'lattice', not {self.preset!r}")


class Mode(NamedTuple):
    """What `Lattice.decompress` needs to be told of a part."""

    step: int  # 2 ** (step / 64) is the coarseness of quantisation
    shaping: int  # how much steps follow the signal, in 1/256
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
    """The learned codec of a secret, and its place in a cover's samples.

    `hide` and `reveal` are for tensors; `hide_part` and `reveal_part` for files, part by part;
    `forward` and `measure` for training.
    """

    def __init__(self, config: LatticeConfig):
        super().__init__()
        self.config = config
        self.quantiser = Quantiser(config.bands, config.growth)
        self.coder = Coder()
        self.set_tables(torch.zeros(TABLES, SYMBOLS))

    # ------------------------------------------------ a secret in samples

    def hide(self, cover: Tensor, secret: Tensor, snr: float = STEGO_SNR,
             shaping: float | None = None, sample_rate: int | None = None, depth: int = 16,
             masking: float = MASKING, key: str | bytes | None = None) -> tuple[Tensor, Tensor]:
        """Hide a secret in a cover.

        Args:
            cover: float waveform [T], or [2, T] of two channels, in [-1, 1), which will be
                rounded to `depth` bits.
            secret: float waveform [S] or [2, S] in [-1, 1), no longer than the cover.
            snr: of the stego, in dB. The secret gets all the quality that this leaves it. One bit a
                sample is the least: a very quiet cover is changed more.
            shaping: how much the secret's steps follow its envelope, 0 (for its SNR) to 1 (for the
                ear); None chooses by the bits there are.
            sample_rate: of both in Hz; None is config.sample_rate. It sets the width of a band,
                and is not stored.
            depth: bits of the samples, 16 to 24, which must reach `reveal` unchanged.
            masking: the stego's noise power follows this power of the cover's noise floor, in
                segments of 512 samples: 0 is white, for the secret's SNR, 1 as far below the floor
                everywhere, but where it is loud: hard to find there.
            key: a passphrase that `reveal` will need.
        Returns:
            stego like cover, on the grid of `depth` bits and never clipped.
            r, flat: stego - cover, then what quantisation took from the secret.
        Raises:
            ValueError: tensors of other shapes, numbers out of range, an empty key, a cover too
            short for the secret.
        """
        _check("cover", cover)
        _check("secret", secret)
        for name, value, least, most in (("snr", snr, 0, 120), ("shaping", shaping or 0, 0, 1),
                                         ("masking", masking, 0, 1), ("depth", depth, 16, 24)):
            if not least <= value <= most:
                raise ValueError(f"{name} must be from {least} to {most}, not {value}")
        if secret.shape[-1] > cover.shape[-1]:
            raise ValueError("the secret is longer than the cover")
        limit = 1 << (depth - 1)
        samples = (cover.float() * limit).round_().clamp_(-limit, limit - 1).int()
        samples = samples.movedim(-1, 0).flatten()
        pcm = 32768 * secret.float().movedim(-1, 0).reshape(secret.shape[-1], -1)  # [S, C]
        if len(samples) < LEAST_SAMPLES:
            raise ValueError("the cover is too short for any secret")
        header = self.header(len(samples), len(pcm), pcm.shape[1], sample_rate)
        cipher = Cipher(key)
        floors = noise_floors(samples[DENSE.header_samples:-DENSE.seal_samples], cover.dim())
        noise = samples.double().square().sum().item() / 10 ** (snr / 10)
        widths = choose_widths(floors, noise, masking, depth)
        stego, decoded = samples.clone(), torch.zeros(pcm.shape, dtype=torch.float64)
        for part in parts_of(header):
            before = samples[part.samples], pcm[part.secret]
            stego[part.samples], decoded[part.secret] = self.hide_part(
                header, cipher, part, *before, widths, shaping, depth)
        stego, = container.sealed([stego], header, cipher)
        lost = ((pcm - decoded) / 32768).flatten().to(cover.dtype)
        r = torch.cat([(stego - samples) / limit, lost])
        return _shaped(stego / limit, cover), r

    def reveal(self, stego: Tensor, z: Tensor | None = None, depth: int = 16,
               key: str | bytes | None = None, force: bool = False) -> tuple[Tensor, Tensor]:
        """Reveal what `hide` hid in the samples [T] or [2, T], on the grid of `depth` bits.

        Returns cover, like stego, and secret, [S] or [2, S]: exactly with r in the place of z;
        without it the cover is the stego itself. With `force`, what is left of a changed or
        shortened stego: damaged blocks are silent, with a warning.
        Raises NoSecret, also with a wrong key; OtherModel; OtherVersion; and Damaged, with
        `force` only if nothing is left.
        """
        _check("stego", stego)
        samples = (stego.float() * (1 << (depth - 1))).round_().int().movedim(-1, 0).flatten()
        header, cipher = Header.read(samples, key, self.fingerprint(), DENSE)
        if not force:
            container.verify(lambda start, stop: samples[start:stop], len(samples), header, cipher)
        samples = functional.pad(samples, (0, header.samples - len(samples)))
        revealed = [self.reveal_part(header, cipher, part, samples[part.samples])
                    for part in parts_of(header)]
        blocks, lost = (sum(counts) for counts in list(zip(*revealed))[1:])
        if damage := tell_damage(blocks, lost):
            warnings.warn(damage)
        secret = (torch.cat([pcm for pcm, *_ in revealed]) / 32768).to(stego.dtype)
        if z is not None:
            stego = stego - _shaped(z[:stego.numel()], stego)
            secret = secret + z[stego.numel():].view(secret.shape)
        return stego, secret[:, 0] if header.channels == 1 else secret.T

    def header(self, samples: int, length: int, channels: int = 1, sample_rate: int | None = None
               ) -> Header:
        """Of a stego of `samples` in all channels together, with a secret [channels, length]."""
        config = self.config
        bands = config.bands * (sample_rate or config.sample_rate) / config.sample_rate
        bands = min(MOST_BANDS, 128 * max(1, round(bands / 128)))
        return Header(samples, length, self.fingerprint(), bands, channels, DENSE)

    @torch.inference_mode()
    def hide_part(self, header: Header, cipher: Cipher, part: Part, cover: Tensor, secret: Tensor,
                  widths: Tensor, shaping: float | None = None, depth: int = 16
                  ) -> tuple[Tensor, Tensor]:
        """Hide a part of a secret, in units of 16-bit PCM [S, C], in its part of the cover,
        integers of `depth` bits [n], in cells of the widths that `choose_widths` gave for all
        segments.

        Returns the stego, like cover; and what `reveal_part` will give. Raises ValueError if there
        is no room.
        """
        if not len(secret):
            return cover.clone(), secret.double()
        shaping = None if shaping is None else round(256 * shaping)
        widths = widths[part.segments]
        starts = word_starts(widths)
        mode, streams, quantised = self.fit(secret, header.setting, int(starts[-1]), shaping)
        words = join_streams(mode, streams, starts, cipher, part.index)
        stego = write_words(words, cover, widths, cipher, part.index, depth)
        if mode.lossless:
            return stego, secret.double()
        decoded = self.synthesise(self.quantiser.dequantise(*quantised))
        decoded = rotate(decoded) if mode.rotated else decoded
        return stego, decoded.view(secret.shape[1], -1)[:, :len(secret)].T

    @torch.inference_mode()
    def reveal_part(self, header: Header, cipher: Cipher, part: Part, stego: Tensor
                    ) -> tuple[Tensor, int, int]:
        """Inverse of `hide_part`: the part of the secret, in units of 16-bit PCM [S, C], float64,
        in which damaged blocks are silent; the number of its blocks, and of damaged ones. Raises
        Damaged for words that cannot be decoded."""
        bands, length = header.setting, part.secret.stop - part.secret.start
        if not length:
            return torch.zeros(0, header.channels, dtype=torch.float64), 0, 0
        if not 0 < bands <= MOST_BANDS or bands % 128:  # though its checksum is right
            raise Damaged("its header is not of a lattice")
        words, starts = read_words(stego, cipher, part.index)
        blocks = header.channels * self.shape_of(length, bands)[1]
        mode, streams = split_streams(words, starts, cipher, part.index, blocks, bands // 4)
        possible = (FINEST_STEP <= mode.step <= COARSEST_STEP and mode.shaping <= 256
                    and mode.rotated < header.channels)
        if not possible and any(stream is not None for stream in streams):
            raise Damaged("its parts are not of a lattice")
        mode = mode if possible else Mode(0, 0, False, False)  # of a part that is silent
        try:
            secret = self.decompress(streams, length, header.channels, bands, mode)
        except IndexError as error:  # nor do those of blocks
            raise Damaged("its words end before the secret does") from error
        return secret, blocks, streams.count(None)

    def check(self):
        """Raises ValueError for weights with which nothing could be coded."""
        frequency, level = self.coder.frequency, self.quantiser.level
        tables = (frequency >= 0).all() and (frequency[:, -1] > 0).all() and (
            frequency.sum(1) == 1 << PRECISION).all()
        if not (tables and (level >= 0).all() and (level <= 255).all()
                and (self.quantiser.shrink.abs() <= 1).all()
                and all((x.abs() < 1e6).all() for x in self.parameters())):
            raise ValueError("a weight is out of its range")

    def fingerprint(self) -> int:
        """A checksum of all that decoding depends on."""
        band = torch.arange(self.config.bands)
        integers = [x for net in self.quantiser.scales for x in net.integers(band, torch.arange(2))]
        return container.fingerprint([*integers, self.quantiser.level, self.coder.frequency])

    # ------------------------------------------------ a secret as words

    def shape_of(self, length: int, bands: int) -> tuple[int, int]:
        """Frames of a block, and blocks of each channel, for a secret of `length` samples."""
        frames = math.ceil(length / bands)
        blocks = max(1, round(frames / BLOCK_FRAMES))
        return math.ceil(frames / blocks), blocks

    def fit(self, secret: Tensor, bands: int, words: int, shaping: int | None
            ) -> tuple[Mode, list[Tensor], Quantised]:
        """The finest form of a secret [S, C] that fits, with its table, into this number of
        words: its mode, and what `compress` gave. Without a given shaping, steps follow the
        signal the more, the fewer bits there are. Raises ValueError if there is no room."""
        frames, blocks = self.shape_of(len(secret), bands)
        rotated = correlated(secret)
        padded = cut_blocks(secret, frames * bands, blocks)
        coefficients = self.analyse(rotate(padded) if rotated else padded, bands)
        blocks, total = len(padded), padded.numel()
        room = words - 1 - 3 * blocks
        lanes_ends = blocks * 3 * bands // 16  # in words: a lane's state takes 48 bits too many
        budget = 32 * (room - lanes_ends) / total  # bits a coefficient
        budget *= PROBE_MARGIN if 2 * blocks > PROBED_BLOCKS else 1
        if shaping is None:
            wanted = SHAPING_AT_NO_BITS - SHAPING_LOST_BY_BIT * budget
            shaping = round(256 * min(MOST_SHAPING, max(0.0, wanted)))
        step = self.find_step(coefficients, budget, shaping)

        def attempt(mode):
            """What is to be returned for this mode, and by how many words it exceeds the room."""
            streams, quantised = self.compress(secret, coefficients, mode)
            return (mode, streams, quantised), sum(map(len, streams)) - room

        if step < 0 and torch.equal(secret, secret.round()):
            result, excess = attempt(Mode(0, 0, True, rotated))
            if excess <= 0:
                return result
        best = None
        for _ in range(20):
            result, excess = attempt(Mode(step, shaping, False, rotated))
            bits = 32 * excess / total  # a coefficient
            steps = 64 * bits / (1 - 0.7 * shaping / 256)  # about, that change them by as much
            if bits <= 0:
                best = result
                if bits > -0.05 * budget or step <= FINEST_STEP:  # full enough
                    break
                step = max(FINEST_STEP, step + min(-1, round(0.8 * steps)))
            elif best or step == COARSEST_STEP:
                break
            else:
                step = min(COARSEST_STEP, step + 1 + round(1.25 * steps))
        if not best:
            raise ValueError("the cover is too short for this secret; take a longer one, or a "
                             "lower SNR")
        return best

    def find_step(self, coefficients: Tensor, budget: float, shaping: int) -> int:
        """The finest step at which coefficients [F, M, N] take about `budget` bits each.

        The cost of a frame is nearly a function of its mean log size. It is measured on some
        blocks, at a step where the function so far says that all frames, judged by a thin sample,
        fit; beginning with a guess, mostly twice.
        """
        frames, _, blocks = coefficients.shape
        thin = coefficients[::math.ceil(frames * blocks / 2048)]
        probe, settled = coefficients, slice(None)
        if 2 * blocks > PROBED_BLOCKS:
            some = torch.linspace(0, blocks - 1, min(blocks, PROBED_BLOCKS)).long()
            probe = coefficients[:PROBED_FRAMES, :, some]
            settled = slice(4, None)  # what comes first in a block costs more

        def powers_of_size(x, step):
            size = x.abs().mul_(2 ** (-step / 64)).add_(1).log2_().mean(1).double().flatten()
            return torch.stack([size, size ** 2, size ** 3], 1)

        guess = COST_OF_SIZE - SAVED_BY_SHAPING * shaping / 256, COST_OF_SQUARE, 0.0
        function = torch.tensor(guess, dtype=torch.float64)
        last = None
        for _ in range(4):
            def fits(step):
                return (powers_of_size(thin, step) @ function).mean().item() <= budget

            steps = range(FINEST_STEP, COARSEST_STEP)
            step = FINEST_STEP + bisect.bisect_left(steps, True, key=fits)
            if last is not None and abs(step - last) <= 3:
                break
            classes, integers, _ = self.quantiser.quantise(probe, step, shaping)
            costs = self.coder.cost(classes, integers).view(probe.shape).mean(1)[settled]
            costs = costs.flatten().to(function)[:, None]
            sizes = powers_of_size(probe[settled], step)
            function, last = torch.linalg.lstsq(sizes, costs).solution[:, 0], step
            function *= costs.mean() / (sizes @ function).mean().clamp_min(1e-9)
        return step

    def compress(self, secret: Tensor, coefficients: Tensor, mode: Mode
                 ) -> tuple[list[Tensor], Quantised]:
        """The words of each block of a secret [S, C], whose blocks have these coefficients, and
        what `quantise` gave."""
        frames, bands, blocks = coefficients.shape
        quantised = self.quantiser.quantise(coefficients, mode.step, mode.shaping)
        classes, integers, _ = quantised
        if mode.lossless:
            nearly = self.synthesise(self.quantiser.dequantise(*quantised, centred=False))
            nearly = (rotate(nearly) if mode.rotated else nearly).round_()
            samples = cut_blocks(secret, frames * bands, blocks // secret.shape[1]).double()
            rest = (samples - nearly).int().T.reshape(-1, bands // 8, blocks)
            classes = torch.cat([classes, torch.full_like(rest, RESIDUAL, dtype=torch.uint8)])
            integers = torch.cat([integers, rest])
        return self.coder.encode(classes, integers), quantised

    def decompress(self, streams: list[Tensor | None], length: int, channels: int, bands: int,
                   mode: Mode) -> Tensor:
        """Inverse of `compress`: [S, C] in float64. A block without a stream comes out silent."""
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
            if len(good) == len(streams):
                secret = decoded
            else:
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

    # ------------------------------------------------ training

    def forward(self, secret: Tensor, step: Tensor, shaping: Tensor) -> Tensor:
        """Bits a sample that coding takes, see `Quantiser.forward`."""
        return self.quantiser(secret, step, shaping)

    @torch.no_grad()
    def measure(self, samples: list[tuple[Tensor, int, int]]):
        """Count the coder's tables, and how far magnitudes shrink, on (secrets [N, T], step,
        shaping) as in `forward`. To be called after training."""
        counts = torch.zeros(TABLES, SYMBOLS)
        excess, number = torch.zeros(2, CLASSES)
        self.quantiser.shrink.zero_()
        for secrets, step, shaping in samples:
            coefficients = self.analyse(secrets, self.config.bands)
            classes, integers, steps = self.quantiser.quantise(coefficients, step, shaping)
            decoded = self.quantiser.dequantise(classes, integers, steps)
            classes, magnitude = (self.quantiser.order(x, decoded.shape[1]).long()
                                  for x in (classes, integers.abs()))
            counts += self.coder.count(classes, magnitude)
            coded = magnitude > 0
            classes, magnitude = classes[coded], magnitude[coded]
            ratio = coefficients[coded].abs() / decoded[coded].abs()
            excess.index_add_(0, classes, magnitude * (1 - ratio))
            number += classes.bincount(minlength=CLASSES)
        self.set_tables(counts)
        self.quantiser.shrink.copy_(excess / (number + 100))

    @torch.no_grad()
    def set_tables(self, counts: Tensor):
        """The coder's tables from counts [TABLES, SYMBOLS], smoothed by what training maximised."""
        log_scale = ((torch.arange(TABLES) + 0.5) / 4 - 5) * math.log(2)
        prior = self.quantiser.likelihood(torch.arange(SYMBOLS), log_scale[:, None])
        self.coder.set_tables(counts, prior.clamp_min(0))


def is_lattice(content: dict) -> bool:
    """Whether `checkpoint.read` gave a lattice."""
    config = content.get("config")
    return isinstance(config, dict) and config.get("preset") == "lattice"


def load(path: str | os.PathLike) -> Lattice:
    """The lattice in a file that `checkpoint.save` wrote, ready for hide and reveal.

    Raises OSError if the file cannot be read, ValueError naming it if it holds no lattice.
    """
    content = checkpoint.read(path)
    if not is_lattice(content):
        raise ValueError(f"{path} holds no lattice: load it with wavinwav.load")
    try:
        model = Lattice(LatticeConfig(**content["config"]))
        model.load_state_dict(content["state_dict"])
        model.check()
    except (AttributeError, KeyError, TypeError, RuntimeError, ValueError) as error:
        raise ValueError(f"{path} holds a model that does not fit its own description") from error
    return model.eval()


# ---------------------------------------------------------------- blocks in a part's words

def join_streams(mode: Mode, streams: list[Tensor], starts: Tensor, cipher: Cipher, part: int
                 ) -> Tensor:
    """The words of a part, enciphered: a mode, a table of the blocks, and the blocks. The table
    tells of each block its first segment and its first word there, so that damage to one block
    does not move the next; its number of words; and their checksum, with the mode. `starts` are
    the segments'."""
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
    """Inverse of `join_streams`: the mode, and the words of each block, `least` at least, or None
    where they were changed."""
    size = 1 + 3 * blocks
    table = functional.pad(words[:size], (0, max(0, size - len(words))))
    first, *table = (table ^ cipher.words(b"words %d 0\0" % part, size)).tolist()
    streams = []
    for i, (start, count, check) in enumerate(zip(table[::3], table[1::3], table[2::3])):
        first_word = int(starts[min(start >> 12, len(starts) - 1)]) + (start & 0xFFF)
        stream = words[first_word:first_word + count]
        stream = stream ^ cipher.words(b"words %d %d\0" % (part, i + 1), len(stream))
        intact = len(stream) >= least and _checksum(stream, first) == check
        streams.append(stream if intact else None)
    return Mode.unpack(first), streams


def _checksum(words: Tensor, start: int) -> int:
    return zlib.crc32(container.bytes_of(words), start)


def tell_damage(blocks: int, lost: int) -> str:
    """That `lost` of `blocks` are silent, or "". Raises Damaged if all are."""
    if blocks == lost:
        raise Damaged("the secret was changed or cut off")
    if not lost:
        return ""
    return f"{lost} of {blocks} blocks of the secret were changed or cut off, and are silent"


# ---------------------------------------------------------------- blocks and their coefficients

def cut_blocks(secret: Tensor, size: int, count: int) -> Tensor:
    """[S, C] -> blocks, one channel after the other, [C * count, size], the last of each filled up
    with zeros."""
    return functional.pad(secret.T, (0, size * count - len(secret))).reshape(-1, size)


def rotate(blocks: Tensor) -> Tensor:
    """Left and right to middle and side, or back: orthonormal, its own inverse. [2 N, T] -> same"""
    left, right = blocks.chunk(2)
    return torch.cat([left + right, left - right]) * 0.5 ** 0.5


def correlated(secret: Tensor) -> bool:
    """Whether middle and side of a secret [S, 2] take fewer bits than left and right."""
    if secret.shape[1] != 2:
        return False
    (left, both), (_, right) = (secret.T @ secret / len(secret)).tolist()
    middle, side = (left + right) / 2 + both, (left + right) / 2 - both
    return (middle + 1) * (side + 1) < (left + 1) * (right + 1)


@functools.lru_cache
def exact_basis(bands: int) -> tuple[Tensor, Tensor, Tensor]:
    """The basis of wavinwav.unlapped in float64, its DCT rounded so that sums of multiples by
    integers below 2 ** 22 have no rounding error: the window's two quarters [M / 2] and the
    DCT-IV [M, M]."""
    n = torch.arange(bands, dtype=torch.float64) + 0.5
    angle = math.pi / (2 * bands) * n[:bands // 2]
    cosines = (math.pi / bands * n[:, None] * n).cos_().mul_(math.sqrt(2 / bands))
    cosines[:bands // 2] = -cosines[:bands // 2].flip(0)
    return angle.sin(), angle.cos(), cosines.mul_(2 ** 22).round_().div_(2 ** 22)


def exactly_unlapped(coefficients: Tensor) -> Tensor:
    """wavinwav.unlapped in float64, and almost its result, but the same on every machine for
    integers below 2 ** 22. [N, M, F] -> [N, T]"""
    sine, cosine, dct = exact_basis(coefficients.shape[1])
    falling, rising = (coefficients.double().mT @ dct.T).chunk(2, 2)
    falling = falling.roll(1, 1)
    left, right = sine * rising + cosine * falling, sine * falling - cosine * rising
    return torch.cat([left, right.flip(2)], 2).flatten(1)


# ---------------------------------------------------------------- tensors of the user

def _shaped(x: Tensor, other: Tensor) -> Tensor:
    """Interleaved samples [n] in the shape of [T] or [2, T]."""
    return x.view(-1, other.numel() // other.shape[-1]).T.reshape(other.shape).to(other.dtype)


def _check(name: str, x: Tensor):
    floats = torch.float32, torch.float64  # in less than these, samples lose their lowest bits
    shape = x.shape if isinstance(x, Tensor) and x.dtype in floats else ()
    if not shape or shape[:-1] not in ((), (2,)):
        raise ValueError(f"{name} must be a float32 tensor [T], or [2, T] of two channels")
    if not x.numel():
        raise ValueError(f"{name} must have at least one sample")
    if not x.isfinite().all():
        raise ValueError(f"{name} has samples that are NaN or infinite")
