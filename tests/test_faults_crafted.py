"""Crafted files: headers and models with numbers that none has, and the right checksums."""

import math

import numpy as np
import pytest
import soundfile
import torch

import stego
from files import container
from files.command import StegoError
from files.container import DENSE, Cipher, Header
from helpers import INN, LATTICE, voice
from lattice.cells import word_starts, write_words
from lattice.lattice import Mode
from lattice.parts import join_streams, parts_of
from lattice.widths import choose_widths, noise_floors
from running import refused
from running import run_stego as run


def craft(folder, model, *, stego_channels=1, **fields):
    """A stego of 16000 samples whose header, checksum and seal are right, and these fields not."""
    model = stego.load_model(model)
    method = stego.method_of(model)
    values = dict(samples=16000, length=8000, model=method.fingerprint(), setting=256, channels=1,
                  layout=method.layout, form=(16000, stego_channels, 16))
    header = Header(**values | fields)
    x = torch.from_numpy(voice(1, 16000, 1) * 32768).int()
    x, = container.sealed([x], header, Cipher())
    soundfile.write(folder / "out.wav", x.numpy().astype(np.int16).reshape(-1, stego_channels),
                    16000)


@pytest.mark.parametrize("model", [LATTICE, INN], ids=["lattice", "INN"])
@pytest.mark.parametrize("fields, expected", [
    (dict(samples=1 << 39), "it was cut: 16000 of 549755813888 samples are left"),
    (dict(samples=1 << 24), "it was cut"),
    (dict(length=1 << 39), "the header makes no sense"),
    (dict(channels=2), "its header does not fit it"),
    (dict(stego_channels=2, length=9000), "its header does not fit it"),
    *((field, None) for field in (dict(length=16000), dict(setting=0), dict(setting=65535),
                                  dict(setting=4224))),
], ids=str)
def test_crafted_headers(folder, model, fields, expected):
    craft(folder, model, **fields)
    for more in ((), ("--force",)):
        words = "reveal", "out.wav", "-o", "found.wav", "--model", model, *more
        if expected is None:  # noise, or damage, and no more
            code, _, err = run(folder, *words, "--overwrite")
            assert code in (0, 1) and "Traceback" not in err and len(err.splitlines()) < 2
        elif not ("--force" in more and "sense" in expected and model == INN):
            refused(folder, words, expected)  # but an INN reveals without a header


@pytest.mark.parametrize("mode", [Mode(60000, 0, False, False), Mode(-2048, 0, False, False),
                                  Mode(0, 0x3FFF, False, False), Mode(0, 0, False, True)], ids=str)
def test_crafted_modes(folder, mode):
    model, cipher = stego.load_model(LATTICE), Cipher()
    x = torch.from_numpy(voice(1, 16000, 1) * 32768).int()
    header = Header(16000, 8000, model.fingerprint(), 256, form=(16000, 1, 16))
    part, = parts_of(header)
    floors = noise_floors(x[DENSE.header_samples:-DENSE.seal_samples])
    widths = choose_widths(floors, 1000.0 * x.numel(), 0.5, 16)[part.segments]
    words = join_streams(mode, [torch.arange(200)], word_starts(widths), cipher, 0)
    for message, more in (("its parts are not of a lattice", ()),
                          ("nothing is left of it", ("--force",))):
        x[part.samples] = write_words(words, x[part.samples], widths, cipher, 0, 16)
        x, = container.sealed([x], header, cipher)
        soundfile.write(folder / "out.wav", x.numpy().astype(np.int16), 16000)
        words_ = "reveal", "out.wav", "-o", "found.wav", "--model", LATTICE, *more
        refused(folder, words_, message)
        words[4:] ^= 1  # then no block is intact, and what the mode says is as good as noise


@pytest.mark.parametrize("place, number", [
    (22, 0), (22, 0xFFFF), (24, 0), (24, 0x7FFFFFFF), (24, 0xFFFFFFFF), (16, 0xFFFFFFFF)])
def test_crafted_wav_headers(folder, place, number):
    """Channels and rates that none has."""
    content = bytearray((folder / "cover.wav").read_bytes())
    size = 2 if place == 22 else 4
    content[place:place + size] = number.to_bytes(size, "little")
    (folder / "odd.wav").write_bytes(content)
    for pair in (("odd.wav", "secret.wav"), ("cover.wav", "odd.wav")):
        code, _, err = run(folder, "hide", *pair, "-o", "out.wav", "--overwrite")
        assert code in (0, 1) and len(err.splitlines()) <= 1, err
        assert code == 0 or err.startswith("error: ")


def flat(path, *values):
    """A FLAC of a few 100 kB: each number for half an hour, arrays as they are."""
    with soundfile.SoundFile(path, "w", 8000, 1, "PCM_16") as file:
        for value in values:
            file.write(np.full(1 << 24, value, np.int16) if isinstance(value, int) else value)


@pytest.mark.parametrize("model", ["wavinwav", "lattice", "paper", "robust"])
@pytest.mark.parametrize("value", [0, 5])
@pytest.mark.parametrize("force", [[], ["--force"]], ids=["", "force"])
def test_no_more_is_decoded_than_a_search_takes(folder, model, value, force):
    """A FLAC of one value decodes to a thousand times its size: 64 MB here."""
    flat(folder / "out.flac", value, value)
    refused(folder, ("reveal", "out.flac", "-o", "found.wav", "--model", model, *force),
            "give a file as hide wrote it", largest=1 << 23)


@pytest.mark.parametrize("silence", [0, 1])
@pytest.mark.parametrize("force", [[], ["--force"]], ids=["", "force"])
@pytest.mark.parametrize("fields, expected", [
    (dict(start=0, stop=16000, samples=16000), ("it was changed", "nothing is left of it")),
    (dict(length=1 << 25), 2 * ["the header makes no sense"])], ids=str)
def test_a_header_behind_an_hour_of_silence(folder, silence, force, fields, expected):
    """No more is decoded than it says, and it cannot say that most of a stego is silent, with a
    secret as long in a few samples."""
    x, start = torch.from_numpy(voice(1, 16000, 1) * 32768).int(), 1 << 25
    model = stego.load_model(LATTICE)
    x[0] = 2
    values = dict(samples=start + len(x), length=8000, model=model.fingerprint(), setting=256,
                  form=(8000, 1, 16), start=start, stop=start + len(x))
    DENSE.write(x[:DENSE.header_samples], Header(**values | fields).pack(Cipher()))
    flat(folder / "out.flac", silence, silence, x.numpy().astype(np.int16))
    refused(folder, ("reveal", "out.flac", "-o", "found.wav", "--model", LATTICE, *force),
            expected[bool(force)], largest=1 << 20)


def crafted(path, model, config=None, **tensors):
    """A copy of a model with other fields, and tensors whose first number is another one."""
    content = torch.load(model, weights_only=True)
    content["config"] |= config or {}
    for name, value in tensors.items():
        name = name.replace("__", ".")
        assert name in content["state_dict"]
        if isinstance(value, torch.Tensor):
            content["state_dict"][name] = value
        else:
            content["state_dict"][name].flatten()[0] = value
    torch.save(content, path)


SCALE = "scales__0__first__weight"
FREQUENCY, LEVEL, SHRINK = "coder__frequency", "quantiser__level", "quantiser__shrink"


@pytest.mark.parametrize("model, config, tensors", [
    (INN, {"bands": 10 ** 9}, {}), (INN, {"bands": 10 ** 5}, {}), (INN, {"growth": 10 ** 9}, {}),
    (INN, {"growth": 900}, {}), (INN, {"clamp": math.nan}, {}), (INN, {"margin": -1.0}, {}),
    (INN, {"stego_snr": "48"}, {}), (INN, {"bands": True}, {}), (INN, {"preset": "paper"}, {}),
    (INN, {}, {SCALE: math.nan}), (INN, {}, {SCALE: math.inf}), (INN, {}, {"log_cells": math.nan}),
    (INN, {}, {"level": torch.zeros(1).expand(10 ** 6, 10 ** 6)}),
    (INN, {}, {"level": torch.ones(64, dtype=torch.complex64) * math.nan}),
    (LATTICE, {"bands": 10 ** 9}, {}), (LATTICE, {"bands": 0}, {}), (LATTICE, {"growth": 0}, {}),
    (LATTICE, {"growth": 8}, {}), (LATTICE, {"colour": 1}, {}), (INN, {"growth": 16}, {}),
    (LATTICE, {"growth": 10 ** 9}, {}), (LATTICE, {"sample_rate": 0}, {}),
    (LATTICE, {"sample_rate": 128}, {}), (LATTICE, {"sample_rate": 4095}, {}),
    (LATTICE, {}, {FREQUENCY: 0}), (LATTICE, {}, {FREQUENCY: 1 << 14}),
    (LATTICE, {}, {FREQUENCY: -5}), (LATTICE, {}, {FREQUENCY: torch.zeros(32, 128)}),
    (LATTICE, {}, {LEVEL: -1}), (LATTICE, {}, {LEVEL: 256}), (LATTICE, {}, {SHRINK: math.nan}),
    (LATTICE, {}, {SHRINK: 3.0}), (LATTICE, {}, {"quantiser__scales__0__out": math.nan}),
    (LATTICE, {}, {"quantiser__scales__0__out": 1e38})], ids=str)
def test_crafted_models(tmp_path, model, config, tensors):
    crafted(tmp_path / "crafted.pt", model, config, **tensors)
    with pytest.raises(StegoError, match="^.*crafted.pt.*; give another one with --model$"):
        stego.load_model(str(tmp_path / "crafted.pt"))
