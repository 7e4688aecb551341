"""stego.py as a user runs it: real files through the real commands, with the shipped models."""

import io
import math
import os
import re
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch

import stego
from files import sound
from files.resample import resample
from helpers import COVER, INN, LATTICE, ROOT, SECRET, printed_snrs, run_stego, voice
from lattice import parts
from lattice.lattice import Lattice
from lattice.widths import SEGMENT

EITHER = pytest.mark.parametrize("model", [LATTICE, INN], ids=["lattice", "INN"])


def run(*words, expect=0):
    code, out, err = run_stego(ROOT, *words)
    assert code == expect and "Traceback" not in err, err
    return SimpleNamespace(stdout=out, stderr=err)


def snr(reference, estimate):
    return 10 * np.log10(np.sum(reference ** 2) / np.sum((reference - estimate) ** 2))


@pytest.mark.parametrize("options, least", [
    ([], (47.6, 32)), (["--snr", 40], (39.6, 40)), (["--model", LATTICE], (51.8, 60)),
    (["--model", LATTICE, "--snr", 58], (57.8, 50))],
    ids=["default", "40 dB", "lattice", "lattice, 58 dB"])
def test_examples_hide_and_reveal(tmp_path, options, least):
    hidden, revealed = tmp_path / "stego.wav", tmp_path / "secret.wav"
    stego_snr, secret_snr = printed_snrs(run("hide", COVER, SECRET, "-o", hidden, *options).stdout)
    run("reveal", hidden, "-o", revealed, *(options[:2] if LATTICE in options else []))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["secret.wav", "stego.wav"]
    info = soundfile.info(hidden)
    assert (info.format, info.subtype, info.samplerate) == ("WAV", "PCM_16", 16000)
    assert info.frames == soundfile.info(COVER).frames
    cover, written, secret, found = (
        soundfile.read(path)[0] for path in (COVER, hidden, SECRET, revealed))
    assert len(found) == len(secret), "the true length travels in the file"
    assert abs(snr(cover, written) - stego_snr) < 0.01
    assert abs(snr(secret, found) - secret_snr) < 0.01
    assert least[0] < stego_snr < least[0] + 1 and secret_snr > least[1]


def test_lossless_where_the_cover_has_room(tmp_path):
    done = run("hide", COVER, SECRET, "-o", tmp_path / "stego.wav", "--snr", 36,
               "--model", LATTICE)
    assert "secret lossless" in done.stdout
    run("reveal", tmp_path / "stego.wav", "-o", tmp_path / "found.wav", "--model", LATTICE)
    found, secret = (
        soundfile.read(path, dtype="int16")[0] for path in (tmp_path / "found.wav", SECRET))
    assert np.array_equal(found, secret)


@pytest.mark.parametrize("rate, model", [(48000, LATTICE), (8000, INN)], ids=["lattice", "INN"])
def test_secret_is_brought_to_the_rate_of_the_cover(tmp_path, rate, model):
    """Another rate, two channels, another format; a cover that fills no whole number of frames."""
    soundfile.write(tmp_path / "cover.flac", voice(2.0003, rate, 1), rate)
    soundfile.write(tmp_path / "secret.ogg", np.stack([voice(1.5, 44100, 2)] * 2, 1), 44100,
                    format="OGG", subtype="VORBIS")
    paths = [tmp_path / name for name in ("cover.flac", "secret.ogg", "stego.wav", "found.wav")]
    run("hide", *paths[:2], "-o", paths[2], "--model", model)
    run("reveal", paths[2], "-o", paths[3], "--model", model)
    cover, hidden, found = (soundfile.info(paths[i]) for i in (0, 2, 3))
    assert (hidden.samplerate, hidden.frames) == (rate, cover.frames)
    assert (found.samplerate, found.channels) == (rate, 1)
    assert abs(found.frames / rate - 1.5) < 0.02


@EITHER
def test_a_secret_of_the_same_length_and_one_sample(tmp_path, model):
    for seconds, samples in ((1, 16000), (1 / 16000, 1)):
        soundfile.write(tmp_path / "cover.wav", voice(1, 16000, 1), 16000)
        soundfile.write(tmp_path / "secret.wav", voice(seconds, 16000, 2), 16000)
        for words in (["hide", "cover.wav", "secret.wav", "-o", "stego.wav"],
                      ["reveal", "stego.wav", "-o", "found.wav"]):
            stego.main([str(tmp_path / word) if word.endswith(".wav") else word for word in words]
                       + ["--model", model, "--overwrite"])
        assert soundfile.info(tmp_path / "found.wav").frames == samples


@pytest.mark.parametrize("kind", ["square", "clipped", "noise"])
@EITHER
def test_covers_at_full_scale(tmp_path, kind, model, capsys):
    """The lattice takes the neighbouring cell, the INN limits the cover: nothing clips."""
    x = voice(2, 16000, 1)
    noise = np.random.default_rng(0).uniform(-1, 1, len(x))
    loud = {"square": np.sign(x), "clipped": np.clip(20 * x, -1, 1), "noise": noise}[kind]
    soundfile.write(tmp_path / "secret.wav", voice(2, 16000, 2), 16000)
    found = []
    for name, cover in (("loud", loud), ("half", loud / 2)):
        soundfile.write(tmp_path / "cover.wav", cover, 16000)
        paths = [str(tmp_path / f"{part}.wav") for part in ("cover", "secret", "stego")]
        level = "58" if model == LATTICE else "48"
        stego.main(["hide", *paths[:2], "-o", paths[2], "--model", model, "--overwrite",
                    "--snr", level])
        out, err = capsys.readouterr()
        found.append(math.inf if "lossless" in out else printed_snrs(out)[1])
        missed = float(re.search(r"stego SNR (\S+) dB", out)[1]) < float(level) - 1
        assert ("misses the SNR" in err) == missed and len(err.splitlines()) == missed
        assert found[-1] > 20
    if model == LATTICE:  # the INN has to spend some of the change on limiting the cover
        assert found[0] > found[1] - 3 or found[1] == math.inf


@pytest.mark.parametrize("kind, rates, message", [
    ("opposite phases", (16000, 16000), "error: nothing is left of secret.wav once it is mixed to"),
    ("high", (8000, 44100), "note: secret.wav was brought to the 8000 Hz of cover.wav, which leaves"
                            " an SNR of 4.8 dB"),
    ("quiet cover", (16000, 16000), "note: stego.wav misses the SNR of 48 dB: cover.wav is too")])
def test_what_is_lost_is_said(tmp_path, kind, rates, message):
    """And the printed secret SNR is against the given file."""
    x, y = (0.3 * voice(1, rate, rate) for rate in rates)
    if kind == "opposite phases":
        y = np.stack([y, -y], 1)
    elif kind == "high":
        tones = np.sin(np.arange(44100)[:, None] * 2 * np.pi * np.array([440, 9000]) / 44100)
        y = tones @ [0.1, 0.1 / 2 ** 0.5]
    else:
        x *= 1e-3
    soundfile.write(tmp_path / "cover.wav", x, rates[0])
    soundfile.write(tmp_path / "secret.wav", y, rates[1])
    code, out, err = run_stego(tmp_path, "hide", "cover.wav", "secret.wav", "-o", "stego.wav")
    assert err.startswith(message) and len(err.splitlines()) == 1
    assert (code, out != "") == ((1, False) if "error" in message else (0, True))
    if kind == "high":
        assert printed_snrs(out)[1] == pytest.approx(4.8, abs=0.1)


@EITHER
@pytest.mark.parametrize("rate, channels, secret_channels", [
    (8000, 1, 1), (44100, 2, 1), (96000, 2, 2), (44100, 1, 2)], ids=str)
def test_any_rate_and_channels(tmp_path, model, rate, channels, secret_channels, capsys):
    def sound(n, seed):
        return np.stack([0.3 * voice(1, rate, seed + 10 * c) for c in range(n)], 1)

    soundfile.write(tmp_path / "cover.flac", sound(channels, 1), rate)
    soundfile.write(tmp_path / "secret.wav", sound(secret_channels, 2), rate)
    model = stego.load_model(model)
    names = "cover.flac", "secret.wav", "stego.flac", "found.wav"
    paths = [str(tmp_path / name) for name in names]
    stego_snr, secret_snr = stego.hide(*paths[:3], model)
    low = rate == 8000
    least = (51.4, 25 if low else 30) if isinstance(model, Lattice) else (46.5, 15 if low else 28)
    assert stego_snr > least[0]
    if channels < secret_channels:  # what mixing took of the given file counts
        assert 0 < secret_snr < 10
    else:
        assert secret_snr > least[1]
    assert ("mixed to one channel" in capsys.readouterr().err) == (channels < secret_channels)
    stego.reveal(paths[2], paths[3], model)
    info = soundfile.info(paths[3])
    assert (info.samplerate, info.channels) == (rate, min(channels, secret_channels))
    assert info.frames == rate


@pytest.mark.parametrize("form, subtype, depth", [
    ("WAV", "PCM_U8", 16), ("WAV", "GSM610", 16), ("WAV", "PCM_32", 24), ("WAV", "FLOAT", 24),
    ("CAF", "ALAC_16", 16), ("CAF", "ALAC_24", 24)])
@EITHER
def test_any_cover(tmp_path, form, subtype, depth, model):
    soundfile.write(tmp_path / "cover.wav", voice(1, 16000, 1), 16000, subtype, format=form)
    soundfile.write(tmp_path / "secret.wav", 0.3 * voice(1, 16000, 2), 16000)
    model = stego.load_model(model)
    paths = [str(tmp_path / name) for name in ("cover.wav", "secret.wav", "stego.wav", "found.wav")]
    _, secret_snr = stego.hide(*paths[:3], model, snr=41)
    stego.reveal(paths[2], paths[3], model)
    assert soundfile.info(paths[2]).subtype == f"PCM_{depth}"
    secret, found = (soundfile.read(path, dtype="int16")[0] for path in (paths[1], paths[3]))
    measured = sound.snr_of(sound.from_pcm(secret), sound.from_pcm(found))
    assert abs(measured - secret_snr) < 0.01 or measured == secret_snr == np.inf
    if depth == 24 and isinstance(model, Lattice):
        assert np.array_equal(secret, found), "24 bits have room for all of a 16-bit secret"
        wider = str(tmp_path / "wider.wav")
        soundfile.write(wider, soundfile.read(paths[2], dtype="int32")[0], 16000, subtype="PCM_32")
        stego.reveal(wider, paths[3], model, overwrite=True)


def test_lossy_inputs_floats_beyond_full_scale_and_16_bits_in_24(tmp_path, capsys):
    model = stego.load_model(LATTICE)
    x = voice(0.5, 16000, 1)
    soundfile.write(tmp_path / "cover.ogg", x, 16000, format="OGG", subtype="VORBIS")
    soundfile.write(tmp_path / "secret.wav", 3 * voice(0.4, 16000, 2), 16000, subtype="FLOAT")
    hidden, found = str(tmp_path / "stego.wav"), str(tmp_path / "found.wav")
    stego.hide(str(tmp_path / "cover.ogg"), str(tmp_path / "secret.wav"), hidden, model)
    assert "secret.wav was turned down by" in capsys.readouterr().err
    soundfile.write(tmp_path / "wide.flac", soundfile.read(hidden, dtype="int32")[0], 16000,
                    subtype="PCM_24", format="FLAC")
    stego.reveal(hidden, found, model)
    first = soundfile.read(found)[0]
    stego.reveal(str(tmp_path / "wide.flac"), found, model, overwrite=True)
    assert np.array_equal(soundfile.read(found)[0], first), "the same samples in another format"


def test_pipes(tmp_path):
    soundfile.write(tmp_path / "cover.wav", voice(1, 16000, 1), 16000)
    soundfile.write(tmp_path / "secret.wav", voice(0.5, 16000, 2), 16000)
    (tmp_path / "key").write_text("open sesame\n")
    cover, key = str(tmp_path / "cover.wav"), ["--key-file", str(tmp_path / "key")]
    run = [sys.executable, os.path.join(ROOT, "stego.py")]
    hidden = subprocess.run(
        [*run, "hide", cover, "-", "-o", "-", *key], input=(tmp_path / "secret.wav").read_bytes(),
        capture_output=True, check=True)
    assert b"stego SNR" in hidden.stderr and hidden.stdout[:4] == b"RIFF"
    revealed = subprocess.run([*run, "reveal", "-", "-o", "-", *key], input=hidden.stdout,
                              capture_output=True, check=True)
    assert soundfile.info(io.BytesIO(revealed.stdout)).frames == 8000


def test_pieces_and_processes_do_not_matter(tmp_path, monkeypatch):
    """The same samples from several processes that read small pieces, and from one that reads all
    at once. The secret is resampled on the way."""
    monkeypatch.setattr(parts, "PART_SEGMENTS", 30)
    x, y = np.stack([voice(4, 16000, 1), 0.5 * voice(4, 16000, 2)], 1) / 2, voice(3.9, 22050, 3)
    soundfile.write(tmp_path / "cover.wav", x, 16000)
    soundfile.write(tmp_path / "secret.wav", y, 22050)
    model = stego.load_model(LATTICE)
    paths = [str(tmp_path / name) for name in ("cover.wav", "secret.wav", "stego.wav", "found.wav")]
    results = []
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
    paths = [str(tmp_path / name) for name in ("cover.wav", "secret.wav", "stego.wav", "found.wav")]
    soundfile.write(paths[0], x, 8000)
    soundfile.write(paths[1], y, 8000)
    run, more = [sys.executable, os.path.join(ROOT, "stego.py")], ["--model", model]
    hidden = subprocess.run([*run, "hide", *paths[:2], "-o", paths[2], *more], check=True,
                            capture_output=True, text=True)
    subprocess.run([*run, "reveal", paths[2], "-o", paths[3], *more], check=True,
                   capture_output=True)
    cover, secret, written, found = (
        torch.from_numpy(soundfile.read(path, dtype="float32")[0]) for path in paths)
    snrs = sound.snr_of(cover, written), sound.snr_of(secret, found)
    assert printed_snrs(hidden.stdout) == pytest.approx(snrs, abs=0.01) and snrs[1] > 30
