"""container.py: header and seal in samples, for both layouts; the cipher's streams."""

import hashlib
import os

import pytest
import torch

from files import container
from files.command import StegoError
from files.container import DENSE, SPARSE, Cipher, Damaged, Header, NoSecret, key_bytes
from helpers import header_of

LAYOUTS = pytest.mark.parametrize("layout", [DENSE, SPARSE], ids=["dense", "sparse"])
MODEL = 123456789


def noise(count):
    generator = torch.Generator().manual_seed(0)
    return torch.randint(-3000, 3000, (count,), dtype=torch.int32, generator=generator)


def make(layout, key=None):
    """A sealed stego [6000] with nothing in it, its header and its cipher."""
    header, cipher = Header(6000, 4000, MODEL, 77, 2, layout, (44100, 2, 24)), Cipher(key)
    pieces = noise(6000).tensor_split((2000, 3000))
    return torch.cat(list(container.sealed(pieces, header, cipher))), header, cipher


def check(stego, header, cipher):
    container.verify(lambda start, stop: stego[start:stop], len(stego), header, cipher)


def test_few_samples_change():
    """In the lattice's layout, at most one of 15; in the other, every fourth may."""
    for layout, step in ((DENSE, 15), (SPARSE, 4)):
        samples, content = noise(40 * layout.byte_samples), bytes(range(40))
        before = samples.clone()
        layout.write(samples, content)
        assert (samples != before).view(-1, step).sum(1).max() == 1
        assert torch.equal(samples >> 1, before >> 1) and layout.read(samples) == content
    marks = SPARSE.marks(content, len(samples) + 99)[:len(samples)]
    assert torch.equal(samples[::4] & 1, marks[::4]) and (marks >= 0).sum() == 320


@LAYOUTS
def test_a_wrong_key_is_derived_once(layout, monkeypatch):
    stego, _, _ = make(layout, key="key")
    calls, scrypt = [], hashlib.scrypt
    monkeypatch.setattr(hashlib, "scrypt", lambda *_, **more: calls.append(more) or bytes(32))
    with pytest.raises(NoSecret):
        header_of(stego, "other", MODEL, layout)
    assert [(call["n"], call["r"], len(call["salt"])) for call in calls] == [(1 << 17, 8, 16)]
    assert len(scrypt(b"k", **calls[0])) == 32, "its memory is allowed"


@LAYOUTS
def test_seal(layout):
    stego, header, cipher = make(layout, key="key")
    check(stego, header, cipher)
    whole, = container.sealed([noise(6000)], header, cipher)
    assert torch.equal(whole, stego), "in one piece or in several"
    for changed in (*range(0, 6000, 61), *range(6000 - layout.seal_samples, 6000, 13)):
        damaged = stego.clone()
        damaged[changed] ^= 1 << changed % 3
        with pytest.raises(Damaged, match="changed after it was made"):
            check(damaged, header, cipher)
    with pytest.raises(Damaged, match="it was cut: 5999 of 6000 samples"):
        check(stego[:-1], header, cipher)
    for other, cipher_ in ((torch.cat([stego, stego[:1]]), cipher), (stego, Cipher())):
        with pytest.raises(Damaged, match="changed"):
            check(other, header, cipher_)


@LAYOUTS
def test_header_is_noise_without_the_key(layout):
    header, cipher = Header(4000, 2000, MODEL, 77, 1, layout), Cipher("k")
    packed = []
    for _ in range(30):
        cipher.nonce = os.urandom(16)  # as of other files, without deriving the key anew
        packed.append(list(header.pack(cipher)))
    bits = ((torch.tensor(packed)[..., None] >> torch.arange(8)) & 1).flatten(1).double().mean(0)
    # Of 360 fair bits in 30 headers, one is always the same in 360 * 2 / 2 ** 30, 7e-7, of all
    # runs; the standard deviation of the mean is 0.005.
    assert 0.46 < bits.mean() < 0.54
    assert 0 < bits.min() and bits.max() < 1, "none is always the same"


def test_a_passphrase_is_one_key_however_it_is_typed():
    for key in ("caf\u00e9\nx", "cafe\u0301\nx", "caf\u00e9\nx".encode(), b"cafe\xcc\x81\r\nx\r\n",
                b"\xef\xbb\xbfcaf\xc3\xa9\rx\n"):
        assert key_bytes(key) == "caf\u00e9\nx".encode(), key
    assert key_bytes(b"\xff\xfe\x00") == b"\xff\xfe\x00", "bytes that are no text"
    assert key_bytes("a ") != key_bytes("a")


@pytest.mark.parametrize("key", ["", b"", "\n", b"\xef\xbb\xbf\r\n"], ids=repr)
def test_an_empty_key_is_an_error(key):
    """Not the same as none: who gives one believes that it hides."""
    stego, _, _ = make(DENSE)
    for attempt in (lambda: Cipher(key), lambda: header_of(stego, key, MODEL, DENSE)):
        with pytest.raises(StegoError, match="the key is empty"):
            attempt()
    with pytest.raises(StegoError, match="the key is not text in UTF-8"):
        Cipher("a\udcff")


def test_uniform_numbers():
    cipher = Cipher()
    x = cipher.uniform(b"dither\0", 1_000_000)
    assert x.dtype == torch.float32 and -0.5 <= x.min() < -0.49 and 0.49 < x.max() <= 0.5
    assert abs(x.double().mean()) < 1e-3
    assert x.double().square().mean() == pytest.approx(1 / 12, rel=0.005)
    assert abs((x[1:].double() @ x[:-1].double()) / len(x)) < 1e-3
    for levels in (2 ** 16, 2 ** 20):  # finer than 24 bits in a cell: no grid shows
        phase = (2 * torch.pi * levels * x.double()).cos().mean()
        assert abs(phase) < 6 / (2 * len(x)) ** 0.5
    assert torch.equal(cipher.uniform(b"dither\0", 1000), x[:1000]), "a stream, whatever its length"
    assert not torch.equal(cipher.uniform(b"other\0", 1000), x[:1000])
    keyed = [Cipher("k", bytes(16)), Cipher("l", bytes(16)), Cipher("k")]
    streams = [each.uniform(b"dither\0", 1000) for each in (cipher, *keyed)]
    assert len({stream.sum().item() for stream in streams}) == 4, "each key and nonce has its own"


def test_fingerprint():
    state = [torch.randn(3, 4), torch.arange(5), torch.zeros(2, dtype=torch.int32)]
    first = container.fingerprint(state)
    assert first == container.fingerprint([x.clone() for x in state])
    for i in range(len(state)):
        changed = [x.clone() for x in state]
        changed[i].view(-1)[0] += 1
        assert container.fingerprint(changed) != first
