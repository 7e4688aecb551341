"""stego.py as a user runs it: real files through the real commands, with the shipped models."""

import math
import os

import numpy as np
import pytest
import soundfile
import torch

import stego
from files import sound
from files.parts import InnMethod
from files.resample import resample
from helpers import COVER, INN, LATTICE, SECRET, file_snr, four, printed_snrs, voice, voices
from lattice import parts
from lattice.lattice import Lattice
from lattice.widths import SEGMENT
from running import HIDE, ROOT, STEGO, python, run_stego

EITHER = pytest.mark.parametrize("model", [LATTICE, INN], ids=["lattice", "INN"])


def run(*words):
    done = run_stego(ROOT, *words)
    assert done.returncode == 0, done.stderr
    return done


@pytest.mark.parametrize("options, least", [
    ([], (47.6, 32)), (["--snr", 40], (39.6, 40)), (["--model", LATTICE], (51.8, 60)),
    (["--model", LATTICE, "--snr", 58], (57.8, 50)),
    (["--model", LATTICE, "--snr", 36], (36.5, math.inf))], ids=str)
def test_examples_hide_and_reveal(tmp_path, options, least):
    hidden, revealed = tmp_path / "stego.wav", tmp_path / "secret.wav"
    snrs = printed_snrs(run("hide", COVER, SECRET, "-o", hidden, *options).stdout)
    run("reveal", hidden, "-o", revealed, *(options[:2] if LATTICE in options else []))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["secret.wav", "stego.wav"]
    info = soundfile.info(hidden)
    assert (info.format, info.subtype, info.samplerate) == ("WAV", "PCM_16", 16000)
    assert (file_snr(COVER, hidden), file_snr(SECRET, revealed)) == pytest.approx(snrs, abs=0.01)
    assert least[0] < snrs[0] < least[0] + 1 and snrs[1] >= least[1]


@pytest.mark.parametrize("kind, rates, message", [
    ("opposite phases", (16000, 16000), "error: nothing is left of secret.wav once it is mixed to"),
    ("high", (8000, 44100), "note: secret.wav was brought to the 8000 Hz of cover.wav, which leaves"
                            " an SNR of 4.8 dB"),
    ("loud floats", (16000, 16000), "note: secret.wav was turned down by"),
    ("quiet cover", (16000, 16000), "note: stego.wav misses the SNR of 48 dB: cover.wav is too")])
def test_what_is_lost_is_said(tmp_path, kind, rates, message):
    """And the printed secret SNR is against the given file."""
    x, y = (0.3 * voice(1, rate, rate) for rate in rates)
    if kind == "opposite phases":
        y = np.stack([y, -y], 1)
    elif kind == "high":
        tones = np.sin(np.arange(44100)[:, None] * 2 * np.pi * np.array([440, 9000]) / 44100)
        y = tones @ [0.1, 0.1 / 2 ** 0.5]
    elif kind == "loud floats":
        y *= 10
    else:
        x *= 1e-3
    soundfile.write(tmp_path / "cover.wav", x, rates[0])
    soundfile.write(tmp_path / "secret.wav", y, rates[1], "FLOAT" if "loud" in kind else "PCM_16")
    code, out, err = run_stego(tmp_path, "hide", "cover.wav", "secret.wav", "-o", "stego.wav")
    assert err.startswith(message) and len(err.splitlines()) == 1
    assert (code, out != "") == ((1, False) if "error" in message else (0, True))
    if kind == "high":
        assert printed_snrs(out)[1] == pytest.approx(4.8, abs=0.1)


@EITHER
@pytest.mark.parametrize("rate, channels, secret_channels", [
    (8000, 1, 1), (44100, 2, 1), (96000, 2, 2), (44100, 1, 2)], ids=str)
def test_any_rate_and_channels(tmp_path, model, rate, channels, secret_channels, capsys):
    paths, model = four(tmp_path), stego.load_model(model)
    for path, count, seed in zip(paths, (channels, secret_channels), (1, 2)):
        soundfile.write(path, 0.3 * voices(count, 1, seed, rate).numpy().T, rate)
    stego_snr, secret_snr = stego.hide(*paths[:3], model)
    low, mixed = rate == 8000, channels < secret_channels
    least = (51.4, 25 if low else 30) if isinstance(model, Lattice) else (46.5, 15 if low else 28)
    assert stego_snr > least[0]
    # what mixing took of the given file counts
    assert 0 < secret_snr < 10 if mixed else secret_snr > least[1]
    assert ("mixed to one channel" in capsys.readouterr().err) == mixed
    if rate == 44100:  # the same samples in a wider format
        soundfile.write(paths[2], soundfile.read(paths[2], dtype="int32")[0], rate, "PCM_32")
    stego.reveal(paths[2], paths[3], model)
    info = soundfile.info(paths[3])
    assert (info.samplerate, info.channels) == (rate, min(channels, secret_channels))
    assert info.frames == rate


def test_pipes(folder):
    (folder / "key").write_text("open sesame\n")
    shell = "cat secret.wav | {} > out.wav"
    done = python(STEGO, *HIDE[:2], "-", "-o", "-", "--key-file", "key", cwd=folder, shell=shell)
    assert done.returncode == 0 and "stego SNR" in done.stderr
    done = python(STEGO, "reveal", "-", "-o", "-", "--key-file", "key", cwd=folder,
                  shell="cat out.wav | {} > found.wav")
    assert done.returncode == 0 and soundfile.info(folder / "found.wav").frames == 8000


@EITHER
def test_pieces_and_processes_do_not_matter(tmp_path, monkeypatch, model):
    """The same samples from several processes that read small pieces, and from one that reads all
    at once. The secret is resampled on the way."""
    monkeypatch.setattr(parts, "PART_SEGMENTS", 30)
    monkeypatch.setattr(InnMethod, "part", 20000)
    x, y = np.stack([voice(4, 16000, 1), 0.5 * voice(4, 16000, 2)], 1) / 2, voice(3.9, 22050, 3)
    soundfile.write(tmp_path / "cover.wav", x, 16000)
    soundfile.write(tmp_path / "secret.wav", y, 22050)
    model = stego.load_model(model)
    paths, results = four(tmp_path), []
    for cores, at_once in ((2, 10 * SEGMENT), (1, 1 << 20)):
        monkeypatch.setattr(os, "cpu_count", lambda: cores)
        monkeypatch.setattr(sound, "READ_AT_ONCE", at_once)
        stego.hide(*paths[:3], model, overwrite=True)
        stego.reveal(*paths[2:], model, overwrite=True)
        results.append([soundfile.read(path, dtype="int16")[0] for path in paths[2:]])
    assert all(np.array_equal(*pair) for pair in zip(*results))
    cover = sound.decode(paths[0], paths[0], tmp_path)
    secret = stego.read_secret(paths[1], paths[1], tmp_path, cover)[0].read() / sound.FULL_SCALE
    at_once = torch.from_numpy(soundfile.read(paths[1], dtype="float32")[0])
    at_once = resample(at_once, 22050, 16000)
    assert len(at_once) == len(secret) and (at_once - secret).abs().max() < 1 / sound.FULL_SCALE


@pytest.mark.slow
@EITHER
def test_minutes_lose_what_hide_printed(tmp_path, model):
    """In parts of their usual size, through the commands."""
    louder = np.linspace(0.3, 1, 160_000)
    x, y = (np.resize(voice(20, 8000, seed) * louder, 260 * 8000 - seed) for seed in (5, 6))
    paths = four(tmp_path)
    soundfile.write(paths[0], x, 8000)
    soundfile.write(paths[1], y, 8000)
    hidden = run("hide", *paths[:2], "-o", paths[2], "--model", model)
    run("reveal", paths[2], "-o", paths[3], "--model", model)
    snrs = file_snr(*paths[::2]), file_snr(*paths[1::2])
    assert printed_snrs(hidden.stdout) == pytest.approx(snrs, abs=0.01) and snrs[1] > 30
