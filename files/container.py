"""What lies where in the samples of a stego, whichever model made it.

    first samples                        between                          last samples
    header: nonce, fields, checksum      what the model hides             seal

Header and seal are bytes in the lowest bits of samples, as a `Layout` says. A key enciphers the
header and whatever a model asks the `Cipher` for; the seal tells whether any sample has changed.
Samples are integer tensors [n] on the CPU, in which two channels take turns.
"""

import ctypes
import hashlib
import os
import random
import struct
import zlib
from dataclasses import dataclass
from typing import Callable, Iterable, Iterator

import torch
from torch import Tensor
from torch.nn import functional

MAGIC = b"WIW8"  # changes with anything that reveal must know, such as the size of parts
FIELDS = struct.Struct(">4sQQIHB")  # the magic word, and what `Header` has
NONCE_BYTES, CHECK_BYTES, SEAL_BYTES = 12, 4, 16
HEADER_BYTES = NONCE_BYTES + FIELDS.size + CHECK_BYTES
HASHED_AT_ONCE = 1 << 16  # samples
SEGMENT_SECONDS = 0.02  # what `scramble` permutes


class NoSecret(ValueError):
    """There is no header that this key opens."""


class OtherModel(ValueError):
    """The secret was hidden with another model."""


class OtherVersion(ValueError):
    """The secret was hidden by another version of this code."""


class Damaged(ValueError):
    """The stego is not what `hide` made."""


class Layout:
    """How bytes lie in the lowest bits of samples: `byte_samples` to a byte. A header begins a
    stego, a seal ends it."""

    byte_samples: int

    @property
    def header_samples(self) -> int:
        return HEADER_BYTES * self.byte_samples

    @property
    def seal_samples(self) -> int:
        return SEAL_BYTES * self.byte_samples


@dataclass(frozen=True)
class Plain(Layout):
    """The lowest `bits` (1, 2, 4) of every `spacing`-th sample are the content."""

    bits: int
    spacing: int

    @property
    def byte_samples(self) -> int:
        return 8 // self.bits * self.spacing

    @property
    def mask(self) -> int:
        return (1 << self.bits) - 1

    def targets(self, content: bytes) -> Tensor:
        """What the lowest bits of samples 0, spacing, 2 * spacing, ... are to be for these bytes:
        integers below 2 ** bits [8 / bits * len(content)]."""
        return _cut(content, self.bits)

    def write(self, samples: Tensor, content: bytes):
        """Put bytes into samples [byte_samples * len(content)], in place."""
        chosen = samples[::self.spacing]
        chosen.copy_((chosen & ~self.mask) | self.targets(content).to(chosen.dtype))

    def read(self, samples: Tensor) -> bytes:
        """Inverse of `write`."""
        return _joined(samples[::self.spacing] & self.mask, self.bits)

    def cleared(self, samples: Tensor) -> Tensor:
        """A copy of samples in which all bits that `write` could change are 0."""
        samples = samples.clone()
        samples[::self.spacing] &= ~self.mask
        return samples


@dataclass(frozen=True)
class Coded(Layout):
    """Four bits are the syndrome of the lowest bits of 15 samples by a Hamming code: the exclusive
    or of the numbers, 1 to 15, of those that are odd. To change it to what it should be, one sample
    changes by 1, of which nothing is to be heard or found (matrix embedding: Crandall 1998)."""

    byte_samples = 30

    def write(self, samples: Tensor, content: bytes):
        """Put bytes into samples [byte_samples * len(content)], in place."""
        blocks = samples.view(-1, 15)
        number = self.syndromes(samples) ^ _cut(content, 4)
        blocks ^= (number[:, None] == torch.arange(1, 16)).to(samples.dtype)

    def read(self, samples: Tensor) -> bytes:
        """Inverse of `write`."""
        return _joined(self.syndromes(samples), 4)

    def cleared(self, samples: Tensor) -> Tensor:
        """A copy of samples in which all bits that `write` could change are 0."""
        return samples & ~1

    def syndromes(self, samples: Tensor) -> Tensor:
        """Four bits of each 15 samples, as integers."""
        bit = torch.arange(4)
        numbers = torch.arange(1, 16)[:, None] >> bit & 1
        return (((samples & 1).long().view(-1, 15) @ numbers & 1) << bit).sum(1)


def _cut(content: bytes, bits: int) -> Tensor:
    """Bytes as integers of `bits` bits, the lowest first [8 / bits * len(content)]."""
    values = torch.tensor(list(content))[:, None] >> torch.arange(0, 8, bits)
    return (values & ((1 << bits) - 1)).flatten()


def _joined(values: Tensor, bits: int) -> bytes:
    """Inverse of `_cut`."""
    return bytes((values.view(-1, 8 // bits) << torch.arange(0, 8, bits)).sum(1).tolist())


DENSE = Coded()  # of a lattice, whose cells leave no other trace where the cover is quiet
SPARSE = Plain(bits=1, spacing=4)  # of an INN, which knows of these bits when it rounds
LAYOUTS = DENSE, SPARSE, Plain(bits=2, spacing=1)  # the last is of former versions' lattices
HEADER_SAMPLES = max(layout.header_samples for layout in LAYOUTS)  # enough for `Header.read`


class Cipher:
    """A stream cipher: SHAKE-256 over a key and a nonce, which is new for every stego. scrypt
    (RFC 7914) makes the key of a passphrase. Without one (None) it is public: then it hides
    nothing. Raises ValueError for an empty key."""

    def __init__(self, key: str | bytes | None = None, nonce: bytes | None = None):
        if key is not None and not key:
            raise ValueError("the key is empty: give a passphrase, or None for none")
        key = key.encode(errors="surrogateescape") if isinstance(key, str) else key
        self.keyed = key is not None
        self.nonce = nonce or (os.urandom(NONCE_BYTES) if self.keyed else bytes(NONCE_BYTES))
        self.root = b"WavInWav"
        if self.keyed:
            self.root = hashlib.scrypt(
                key, salt=self.nonce, n=1 << 15, r=8, p=1, maxmem=1 << 26, dklen=32)

    def stream(self, purpose: bytes, count: int) -> bytes:
        """`count` bytes, other ones for each purpose. Purposes end in a zero byte, so that none
        begins as another one does."""
        return hashlib.shake_256(self.root + self.nonce + purpose).digest(count)

    def integers(self, purpose: bytes, count: int, dtype: torch.dtype) -> Tensor:
        """`count` integers [count], uniform over all that dtype holds."""
        if not count:
            return torch.zeros(0, dtype=dtype)
        stream = self.stream(purpose, count * dtype.itemsize)
        return torch.frombuffer(bytearray(stream), dtype=dtype)

    def words(self, purpose: bytes, count: int) -> Tensor:
        """`count` integers from 0 to 2 ** 32 - 1, int64 [count]."""
        return self.integers(purpose, count, torch.int32).long() & 0xFFFFFFFF

    def uniform(self, purpose: bytes, count: int) -> Tensor:
        """`count` numbers in [-0.5, 0.5), multiples of 2 ** -16, float32 [count]: a dither."""
        return self.integers(purpose, count, torch.int16).float().mul_(2 ** -16)

    def seal(self):
        """A keyed hash (BLAKE2b). The digest over `bytes_of` all samples of a stego, with zeros
        in the place of the seal, is the seal."""
        return hashlib.blake2b(key=self.stream(b"seal\0", 32), digest_size=SEAL_BYTES)


@dataclass
class Header:
    """What reveal must know before all else: enciphered, with a checksum, in the first samples."""

    samples: int  # of the stego, in all channels together
    length: int  # of the secret, samples in each channel
    model: int  # its fingerprint
    setting: int = 0  # the model's own, 16 bits: of a lattice its bands, of an INN its cells' scale
    channels: int = 1  # of the secret
    layout: Layout = DENSE  # not stored: where the header was found

    def pack(self, cipher: Cipher) -> bytes:
        fields = FIELDS.pack(
            MAGIC, self.samples, self.length, self.model, self.setting, self.channels)
        fields += cipher.stream(b"check\0" + fields, CHECK_BYTES)
        return cipher.nonce + _xor(fields, cipher.stream(b"header\0", len(fields)))

    @classmethod
    def unpack(cls, content: bytes, key: str | bytes | None, layout: Layout
               ) -> "tuple[Header, Cipher]":
        """Inverse of `pack`. Raises NoSecret, OtherVersion."""
        cipher = Cipher(key, content[:NONCE_BYTES])
        content = content[NONCE_BYTES:]
        content = _xor(content, cipher.stream(b"header\0", len(content)))
        fields, check = content[:-CHECK_BYTES], content[-CHECK_BYTES:]
        magic, *values = FIELDS.unpack(fields)
        if magic[:3] != MAGIC[:3] or cipher.stream(b"check\0" + fields, CHECK_BYTES) != check:
            raise NoSecret("there is no secret, or the key is another, "
                           "or the beginning was changed or cut off")
        if magic != MAGIC:
            raise OtherVersion("the secret was hidden by another version of WavInWav")
        header = cls(*values, layout)
        least = layout.header_samples + layout.seal_samples
        if not (0 < header.length <= header.samples >= least and 1 <= header.channels <= 2):
            raise NoSecret("the header makes no sense")
        return header, cipher

    @classmethod
    def read(cls, samples: Tensor, key: str | bytes | None, model: int, layout: Layout
             ) -> "tuple[Header, Cipher]":
        """The header of a stego, of which HEADER_SAMPLES are enough, and the cipher of the rest.
        `model` is the fingerprint of the one in hand, and `layout` the one that it uses.

        Raises NoSecret, also with a wrong key; OtherModel; OtherVersion.
        """
        failure = None
        for candidate in sorted(LAYOUTS, key=lambda other: other != layout):  # its own first
            first = samples[:candidate.header_samples]
            first = functional.pad(first, (0, candidate.header_samples - len(first)))
            try:
                header, cipher = cls.unpack(candidate.read(first), key, candidate)
            except NoSecret as error:
                failure = failure or error
                continue
            if header.model != model or header.layout != layout:
                raise OtherModel("the secret was hidden with another model")
            return header, cipher
        raise failure


def sealed(pieces: Iterable[Tensor], header: Header, cipher: Cipher) -> Iterator[Tensor]:
    """A whole stego, piece by piece, from its samples without header and seal. These are put into
    the first and the last piece, in place, which must be long enough for them."""
    layout, seal, pieces = header.layout, cipher.seal(), iter(pieces)
    piece = next(pieces)
    layout.write(piece[:layout.header_samples], header.pack(cipher))
    for following in pieces:
        _hash(seal, piece)
        yield piece
        piece = following
    body, tail = piece[:-layout.seal_samples], piece[-layout.seal_samples:]
    _hash(seal, body)
    _hash(seal, layout.cleared(tail))
    layout.write(tail, seal.digest())
    yield piece


def _hash(seal, samples: Tensor):
    """Update a seal, by so few samples at once that no copy of all is made."""
    for piece in samples.split(HASHED_AT_ONCE):
        seal.update(bytes_of(piece))


def verify(read: Callable[[int, int], Tensor], count: int, header: Header, cipher: Cipher):
    """Raises Damaged unless a stego of `count` samples, which `read(start, stop)` gives, is what
    `sealed` made."""
    if count < header.samples:
        raise Damaged(f"it was cut: {count} of {header.samples} samples are left")
    layout, seal = header.layout, cipher.seal()
    last = header.samples - layout.seal_samples
    for start in range(0, last, HASHED_AT_ONCE):
        _hash(seal, read(start, min(last, start + HASHED_AT_ONCE)))
    tail = read(last, header.samples)
    _hash(seal, layout.cleared(tail))
    if count > header.samples or layout.read(tail) != seal.digest():
        raise Damaged("it was changed after it was made")


def scramble(x: Tensor, key: int | str | bytes, sample_rate: int = 16000) -> Tensor:
    """Permute the 20 ms segments of [..., T] by a key, section III-D of the paper; a shorter rest
    stays in place.

    The permutation hides what is said from a listener, not from an analyst: it is no cipher.
    """
    return _permute(x, key, sample_rate, invert=False)


def unscramble(x: Tensor, key: int | str | bytes, sample_rate: int = 16000) -> Tensor:
    """Inverse of `scramble` with the same key and rate."""
    return _permute(x, key, sample_rate, invert=True)


def _permute(x: Tensor, key: int | str | bytes, sample_rate: int, invert: bool) -> Tensor:
    size = max(1, round(SEGMENT_SECONDS * sample_rate))
    count = x.shape[-1] // size
    order = list(range(count))
    random.Random(key).shuffle(order)  # the same in all versions of Python, and on all machines
    order = torch.tensor(order, dtype=torch.long, device=x.device)
    if invert:
        order = order.argsort()
    segments, rest = x[..., :count * size].unflatten(-1, (count, size)), x[..., count * size:]
    return torch.cat([segments[..., order, :].flatten(-2), rest], -1)


def fingerprint(tensors: Iterable[Tensor]) -> int:
    """A checksum of a model's tensors, float32 or integers below 2 ** 31."""
    check = 0
    for x in tensors:
        x = x.detach().cpu().flatten()
        x = x.float().view(torch.int32) if x.is_floating_point() else x
        check = zlib.crc32(bytes_of(x), check)
    return check


def bytes_of(integers: Tensor) -> memoryview:
    """Integers [n] as 4 bytes each, without a copy where they are int32."""
    integers = integers.to(torch.int32).contiguous()
    content = (ctypes.c_char * (4 * len(integers))).from_address(integers.data_ptr())
    content.owner = integers  # which keeps the memory
    return memoryview(content)


def _xor(a: bytes, b: bytes) -> bytes:
    return bytes(x ^ y for x, y in zip(a, b))
