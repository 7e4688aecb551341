"""Header and seal of a stego, and the cipher, whichever model made it.

    silence | header: nonce, fields, checksum | what the model hides | seal | silence

Header and seal are bytes in the lowest bits of samples, as a `Layout` says. A lattice, which leaves
digital silence alone, has them where the cover begins and ends to sound; other models have no
silence outside. A key enciphers the header and whatever a model asks the `Cipher` for. The seal, a
keyed hash, covers every sample. Samples are int32 tensors [n] on the CPU; two channels are
interleaved.
"""

import hashlib
import hmac
import os
import struct
import unicodedata
import zlib
from dataclasses import dataclass
from typing import Callable, Iterable, Iterator

import torch
from torch import Tensor
from torch.nn import functional

from files.command import StegoError

MAGIC = b"WIW9"  # changes with anything that reveal must know, such as the size of parts
FIELDS = struct.Struct(">4s5s5s5sIHBI")  # the magic word, and what `Header` has
NONCE_BYTES, CHECK_BYTES, SEAL_BYTES = 16, 4, 16
HEADER_BYTES = NONCE_BYTES + FIELDS.size + CHECK_BYTES
READ_AT_ONCE = 1 << 16  # samples
SCRYPT = dict(n=1 << 17, r=8, p=1, maxmem=1 << 28, dklen=32)  # 128 MiB, half a second (OWASP)
NOT_TEXT = "is not text in UTF-8; type another, or give --key-file"


class NoSecret(ValueError):
    """There is no header that this key opens."""


class OtherModel(ValueError):
    """The secret was hidden with another model."""


class Damaged(ValueError):
    """The stego is not what `hide` made."""


class Layout:
    """How bytes lie in the lowest bits of samples: `byte_samples` samples to a byte."""

    byte_samples: int

    def __init__(self):
        self.header_samples = HEADER_BYTES * self.byte_samples
        self.seal_samples = SEAL_BYTES * self.byte_samples

    def start(self, read: "Read", count: int) -> int:
        """Where the header of a stego of `count` samples begins."""
        return 0


class Sparse(Layout):
    """The lowest bit of every fourth sample."""

    spacing, byte_samples = 4, 32

    def write(self, samples: Tensor, content: bytes):
        """Put bytes into samples [byte_samples * len(content)], in place."""
        chosen = samples[::self.spacing]
        chosen.copy_((chosen & ~1) | _bits(content, 1).to(chosen.dtype))

    def read(self, samples: Tensor) -> bytes:
        """Inverse of `write`."""
        return _bytes(samples[::self.spacing] & 1, 1)

    def cleared(self, samples: Tensor) -> Tensor:
        """A copy of samples in which all bits that `write` could change are 0."""
        samples = samples.clone()
        samples[::self.spacing] &= ~1
        return samples

    def marks(self, content: bytes, count: int) -> Tensor:
        """What `write` will make of the lowest bits of `count` samples; -1 where it leaves them."""
        marks = torch.full((count,), -1)
        marks[:len(content) * self.byte_samples:self.spacing] = _bits(content, 1)
        return marks


class Coded(Layout):
    """Matrix embedding (Crandall 1998) with a Hamming code: four bits are the exclusive or of the
    numbers, 1 to 15, of those of 15 samples that are odd. To write four bits, at most one of the 15
    samples changes, by 1, which is hard to detect."""

    byte_samples = 30

    def start(self, read: "Read", count: int) -> int:
        return sounding(read, count)[0]

    def write(self, samples: Tensor, content: bytes):
        """Put bytes into samples [byte_samples * len(content)], in place."""
        blocks = samples.view(-1, 15)
        number = self.syndromes(samples) ^ _bits(content, 4)
        blocks ^= (number[:, None] == torch.arange(1, 16)).to(samples.dtype)

    def read(self, samples: Tensor) -> bytes:
        """Inverse of `write`."""
        return _bytes(self.syndromes(samples), 4)

    def cleared(self, samples: Tensor) -> Tensor:
        """A copy of samples in which all bits that `write` could change are 0."""
        return samples & ~1

    def syndromes(self, samples: Tensor) -> Tensor:
        """Four bits of each 15 samples, as integers."""
        bit = torch.arange(4)
        numbers = torch.arange(1, 16)[:, None] >> bit & 1
        return (((samples & 1).long().view(-1, 15) @ numbers & 1) << bit).sum(1)


def _bits(content: bytes, bits: int) -> Tensor:
    """Bytes as integers of `bits` bits, the lowest first [8 / bits * len(content)]."""
    values = torch.tensor(list(content), dtype=torch.long)[:, None] >> torch.arange(0, 8, bits)
    return (values & ((1 << bits) - 1)).flatten()


def _bytes(values: Tensor, bits: int) -> bytes:
    """Inverse of `_bits`."""
    return bytes((values.view(-1, 8 // bits) << torch.arange(0, 8, bits)).sum(1).tolist())


DENSE = Coded()  # of a lattice, where few samples may change in quiet parts of the cover
SPARSE = Sparse()  # of an INN, which rounds with these bits in view
Read = Callable[[int, int], Tensor]  # from a start and a stop to these samples


def sounding(read: Read, count: int) -> tuple[int, int]:
    """Where `count` samples begin and end to sound, rounded outwards to even numbers; (0, 0) if
    they do not. At the beginning, 0 and 1 are silence, for a header may turn one into the other."""
    for first in range(0, count, READ_AT_ONCE):
        found = (read(first, min(count, first + READ_AT_ONCE)) >> 1).nonzero()
        if len(found):
            start = (first + int(found[0])) & ~1
            break
    else:
        return 0, 0
    for last in range(count, start, -READ_AT_ONCE):
        first = max(start, last - READ_AT_ONCE)
        found = read(first, last).nonzero()
        if len(found):
            return start, min(count, (first + int(found[-1]) + 2) & ~1)


def key_bytes(key: str | bytes) -> bytes:
    """A passphrase in its normal form: NFC, UTF-8, line ends as \\n and none at the end. So it is
    one key however it is typed or saved; bytes that are not UTF-8 stay as they are. Raises
    StegoError for an empty key, or text that is none."""
    if isinstance(key, bytes):
        try:
            key = key.decode("utf-8-sig")
        except UnicodeDecodeError:
            return key
    key = unicodedata.normalize("NFC", key).replace("\r\n", "\n").replace("\r", "\n").rstrip("\n")
    if not key:
        raise StegoError("the key is empty; give a passphrase, or none")
    try:
        return key.encode()
    except UnicodeError as error:
        raise StegoError(f"the key {NOT_TEXT}") from error


class Cipher:
    """A stream cipher: SHAKE-256 over a key and a nonce, which is new for every stego. scrypt
    (RFC 7914) derives the key from a passphrase. Without one (None) the stream is public, and
    hides nothing. Raises StegoError as `key_bytes` does."""

    def __init__(self, key: str | bytes | None = None, nonce: bytes | None = None):
        self.keyed = key is not None
        self.nonce = nonce or (os.urandom(NONCE_BYTES) if self.keyed else bytes(NONCE_BYTES))
        self.root = b"WavInWav"
        if self.keyed:
            self.root = hashlib.scrypt(key_bytes(key), salt=self.nonce, **SCRYPT)

    def stream(self, purpose: bytes, count: int) -> bytes:
        """`count` bytes, others for each purpose. A purpose ends in a zero byte, so that none is
        the beginning of another."""
        return hashlib.shake_256(self.root + self.nonce + purpose).digest(count)

    def integers(self, purpose: bytes, count: int) -> Tensor:
        """`count` integers, uniform over int32 [count]."""
        stream = bytearray(self.stream(purpose, 4 * count))
        return torch.frombuffer(stream, dtype=torch.int32) if count else torch.zeros(0).int()

    def words(self, purpose: bytes, count: int) -> Tensor:
        """`count` integers from 0 to 2 ** 32 - 1, int64 [count]."""
        return self.integers(purpose, count).long() & 0xFFFFFFFF

    def uniform(self, purpose: bytes, count: int) -> Tensor:
        """`count` numbers in [-0.5, 0.5], of 2 ** 32 levels, float32 [count]: a dither."""
        return self.integers(purpose, count).float().mul_(2 ** -32)

    def seal(self):
        """A keyed hash (BLAKE2b). The digest over `bytes_of` all samples of a stego, with zeros
        in the place of the seal, is the seal."""
        return hashlib.blake2b(key=self.stream(b"seal\0", 32), digest_size=SEAL_BYTES)


@dataclass
class Header:
    """What reveal must know first: enciphered, with a checksum, in the first samples that sound."""

    samples: int  # of the stego, in all channels together
    length: int  # of the secret, samples in each channel
    model: int  # its fingerprint
    setting: int = 0  # the model's own, 16 bits: of a lattice its bands, of an INN its cells
    channels: int = 1  # of the secret
    layout: Layout = DENSE  # not stored: where the header was found
    form: tuple[int, int, int] = (0, 0, 0)  # of the stego: rate in Hz, channels, bits
    start: int = 0  # not stored: the sample at which the header was found
    stop: int = 0  # the sample after the seal's last; 0: the seal is at the end of the stego

    def __post_init__(self):
        self.stop = self.stop or self.samples

    def pack(self, cipher: Cipher) -> bytes:
        rate, channels, depth = self.form
        counts = depth << 2 | (channels == 2) << 1 | (self.channels == 2)
        long = (x.to_bytes(5, "big") for x in (self.samples, self.stop - self.start, self.length))
        fields = FIELDS.pack(MAGIC, *long, self.model, self.setting, counts, rate)
        fields += cipher.stream(b"check\0" + fields, CHECK_BYTES)
        return cipher.nonce + _xor(fields, cipher.stream(b"header\0", len(fields)))

    @classmethod
    def unpack(cls, content: bytes, cipher: Cipher, layout: Layout, start: int = 0
               ) -> "Header | None":
        """Inverse of `pack`. None if it is none, or the key is another."""
        content = _xor(content[NONCE_BYTES:], cipher.stream(b"header\0", len(content)))
        fields, check = content[:-CHECK_BYTES], content[-CHECK_BYTES:]
        if not hmac.compare_digest(cipher.stream(b"check\0" + fields, CHECK_BYTES), check):
            return None
        magic, *long, model, setting, counts, rate = FIELDS.unpack(fields)
        samples, span, length = (int.from_bytes(x, "big") for x in long)
        least = layout.header_samples + layout.seal_samples
        possible = 0 < length <= samples and least <= span <= samples <= 2 * span
        if magic != MAGIC or not possible:
            raise NoSecret("the header makes no sense")
        form = rate, 1 + (counts >> 1 & 1), counts >> 2
        return cls(samples, length, model, setting, 1 + (counts & 1), layout, form, start,
                   start + span)

    @classmethod
    def read(cls, read: Read, count: int, key: str | bytes | None, model: int, layout: Layout
             ) -> "tuple[Header, Cipher]":
        """The header of a stego of `count` samples, and the cipher of the rest. `model` is the
        fingerprint of the one in hand, and `layout` the one that it uses.

        Raises NoSecret, also with a wrong key; OtherModel. With a key, a stego of another layout
        is NoSecret, since each layout has its own nonce, and a key is derived once.
        """
        layouts = [layout] if key is not None else [layout, *{DENSE, SPARSE} - {layout}]
        for candidate in layouts:
            start = candidate.start(read, count)
            first = read(start, min(count, start + candidate.header_samples))
            first = functional.pad(first, (0, candidate.header_samples - len(first)))
            content = candidate.read(first)
            cipher = Cipher(key, content[:NONCE_BYTES] if key is not None else None)
            if header := cls.unpack(content, cipher, candidate, start):
                if header.model != model or header.layout != layout:
                    raise OtherModel("the secret was hidden with another model")
                return header, cipher
        raise NoSecret("there is no secret of this version, or the key or the model is another, "
                       "or the beginning was changed or cut off")


def sealed(pieces: Iterable[Tensor], header: Header, cipher: Cipher) -> Iterator[Tensor]:
    """A whole stego, piece by piece, from its samples without header and seal, which are written in
    place. Some piece must begin with the header, and one must end with the seal."""
    layout, seal, position = header.layout, cipher.seal(), 0
    for piece in pieces:
        if position == header.start:
            layout.write(piece[:layout.header_samples], header.pack(cipher))
        position += len(piece)
        if position == header.stop:
            body, tail = piece[:-layout.seal_samples], piece[-layout.seal_samples:]
            seal.update(bytes_of(body))
            seal.update(bytes_of(layout.cleared(tail)))
            layout.write(tail, seal.digest())
        elif position < header.stop:
            seal.update(bytes_of(piece))
        yield piece


def verify(read: Read, count: int, header: Header, cipher: Cipher):
    """Raises Damaged unless a stego of `count` samples is what `sealed` made."""
    if count < header.samples:
        raise Damaged(f"it was cut: {count} of {header.samples} samples are left")
    if not header.stop <= count == header.samples:
        raise Damaged("it was changed after it was made")
    layout, seal = header.layout, cipher.seal()
    last = header.stop - layout.seal_samples
    for start in range(0, last, READ_AT_ONCE):
        seal.update(bytes_of(read(start, min(last, start + READ_AT_ONCE))))
    tail = read(last, header.stop)
    seal.update(bytes_of(layout.cleared(tail)))
    intact = hmac.compare_digest(layout.read(tail), seal.digest())
    for start in range(header.stop, count, READ_AT_ONCE):  # behind the seal is digital silence
        intact = intact and not read(start, min(count, start + READ_AT_ONCE)).any()
    if not intact:
        raise Damaged("it was changed after it was made")


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
    return integers.to(torch.int32).contiguous().numpy().data


def _xor(a: bytes, b: bytes) -> bytes:
    return bytes(x ^ y for x, y in zip(a, b))
