"""container.py: header and seal in samples, for both layouts; the cipher's streams."""

import hashlib
import os

import pytest
import torch

from files import container
from files.command import StegoError
from files.container import DENSE, SPARSE, Cipher, Damaged, Header, NoSecret, OtherModel, key_bytes
from helpers import header_of

LAYOUTS = pytest.mark.parametrize("layout", [DENSE, SPARSE], ids=["dense", "sparse"])
MODEL = 123456789


def noise(count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-3000, 3000, (count,), dtype=torch.int32, generator=generator)


def make(layout, count=6000, key=None, cuts=(2000, 3000), seed=0):
    """A sealed stego with nothing in it, its header and its cipher."""
    header, cipher = Header(count, 4000, MODEL, 77, 2, layout, (44100, 2, 24)), Cipher(key)
    pieces = noise(count, seed).tensor_split(cuts)
    return torch.cat(list(container.sealed(pieces, header, cipher))), header, cipher


def check(stego, header, cipher):
    container.verify(lambda start, stop: stego[start:stop], len(stego), header, cipher)


def test_few_samples_change():
    """In the lattice's layout, at most one of 15; in the other, every fourth may."""
    samples = noise(1500)
    before = samples.clone()
    DENSE.write(samples, bytes(range(50)))
    changes = (samples != before).view(-1, 15).sum(1)
    assert changes.max() == 1 and changes.float().mean() > 0.8
    for place in range(1500):  # any one that changes is noticed
        samples[place] ^= 1
        assert DENSE.read(samples) != bytes(range(50))
        samples[place] ^= 1
    samples, before = noise(1600), noise(1600)
    SPARSE.write(samples, bytes(range(50)))
    marks = SPARSE.marks(bytes(range(50)), 2000)
    assert torch.equal(samples[::4] & 1, marks[:1600:4]) and (marks >= 0).sum() == 400
    samples[::4] = before[::4]
    assert torch.equal(samples, before)


@LAYOUTS
@pytest.mark.parametrize("key", [None, "key"], ids=str)
def test_header(layout, key):
    stego, header, cipher = make(layout, key=key)
    again, its_cipher = header_of(stego, key, MODEL, layout)
    assert again == header and its_cipher.nonce == cipher.nonce
    assert its_cipher.stream(b"x\0", 9) == cipher.stream(b"x\0", 9)
    first = stego[:layout.header_samples]
    assert header_of(first, key, MODEL, layout)[0] == header, "no more is needed"


@LAYOUTS
def test_what_cannot_be_read(layout):
    stego, _, _ = make(layout)
    with pytest.raises(NoSecret, match="the key or the model is another"):
        header_of(stego, "key", MODEL, layout)
    for model, other in ((MODEL + 1, layout), (MODEL, SPARSE if layout == DENSE else DENSE)):
        with pytest.raises(OtherModel):
            header_of(stego, None, model, other)
    header = Header(6000, 7000, MODEL, 77, 1, layout)  # a secret longer than its stego
    impossible, = container.sealed([noise(6000)], header, Cipher())
    for samples in (noise(6000), stego[1:], stego[:50], 0 * stego, impossible):
        with pytest.raises(NoSecret):
            header_of(samples, None, MODEL, layout)


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
    least = layout.header_samples + layout.seal_samples
    shortest = Header(least, 1, MODEL, 0, 1, layout)
    stego_, = container.sealed([noise(least)], shortest, cipher)
    check(stego_, shortest, cipher)
    for changed in (*range(0, 6000, 61), *range(6000 - layout.seal_samples, 6000, 13)):
        for bit in (1, 4):
            damaged = stego.clone()
            damaged[changed] ^= bit
            with pytest.raises(Damaged, match="changed after it was made"):
                check(damaged, header, cipher)
    with pytest.raises(Damaged, match="it was cut: 5999 of 6000 samples"):
        check(stego[:-1], header, cipher)
    with pytest.raises(Damaged, match="changed"):
        check(torch.cat([stego, stego[:1]]), header, cipher)
    with pytest.raises(Damaged, match="changed"):
        check(stego, header, Cipher())


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


def test_streams():
    cipher, other = Cipher("k"), Cipher("k")
    assert cipher.nonce != other.nonce
    assert cipher.keyed and not Cipher().keyed
    assert Cipher().stream(b"a\0", 9) == Cipher().stream(b"a\0", 9)
    assert len({x.stream(p, 9) for x in (cipher, other, Cipher()) for p in (b"a\0", b"b\0")}) == 6
    words = cipher.words(b"a\0", 20000)
    assert words.dtype == torch.int64 and 0 <= words.min() and words.max() < 1 << 32
    assert words.double().mean() == pytest.approx(2 ** 31, rel=0.05)
    assert len(cipher.words(b"a\0", 0)) == len(cipher.uniform(b"a\0", 0)) == 0


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


def test_fingerprint():
    state = [torch.randn(3, 4), torch.arange(5), torch.zeros(2, dtype=torch.int32)]
    first = container.fingerprint(state)
    assert first == container.fingerprint([x.clone() for x in state])
    for i in range(len(state)):
        changed = [x.clone() for x in state]
        changed[i].view(-1)[0] += 1
        assert container.fingerprint(changed) != first
