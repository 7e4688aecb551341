"""stego.py as a user runs it: real files through the real commands, with the shipped model."""

import ast
import math
import os
import re
import resource
import runpy
import shutil
import signal
import subprocess
import sys
import tempfile
import traceback
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch

import stego
from test_train import voice

HERE = os.path.dirname(os.path.abspath(__file__))
COVER, SECRET = (os.path.join(HERE, "examples", f"{name}.wav") for name in ("cover", "secret"))
MODEL, AFFINE = (os.path.join(HERE, f"{name}.pt") for name in ("wavinwav", "wavinwav-affine"))


def launch(folder, *words, stdin=b"", largest=None, temporary=None):
    """`python stego.py WORDS` in a process of its own, in which torch is loaded already: its number and streams."""
    streams = [tempfile.TemporaryFile() for _ in range(3)]
    streams[0].write(stdin)
    streams[0].seek(0)
    pid = os.fork()
    if not pid:
        code = 70
        try:
            os.setsid()  # no terminal to ask for a key
            for number, stream in enumerate(streams):
                os.dup2(stream.fileno(), number)
            sys.stdin, sys.stdout, sys.stderr = (open(i, "r" if i == 0 else "w", closefd=False) for i in range(3))
            os.chdir(folder)
            sys.argv = ["stego.py", *map(str, words)]
            torch.set_num_threads(1)
            signal.alarm(60)
            tempfile.tempdir = temporary or tempfile.tempdir
            if largest:
                resource.setrlimit(resource.RLIMIT_FSIZE, (largest, largest))
            runpy.run_path(os.path.join(HERE, "stego.py"), run_name="__main__")
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else 1 if stop.code else 0
            if isinstance(stop.code, str):
                print(stop.code, file=sys.stderr)
        except BaseException:
            traceback.print_exc()
        finally:
            for stream in (sys.stdout, sys.stderr):
                stream.flush()
            os._exit(code)
    return pid, streams


def finish(pid, streams):
    """(exit code, stdout, stderr) of a process that `launch` began."""
    status = os.waitpid(pid, 0)[1]
    assert not os.WIFSIGNALED(status), "killed, as after a hang"
    for stream in streams:
        stream.seek(0)
    return os.waitstatus_to_exitcode(status), *(stream.read().decode(errors="replace") for stream in streams[1:])


def command(folder, *words, **more):
    return finish(*launch(folder, *words, **more))


def run(*words, expect=0):
    code, out, err = command(HERE, *words)
    assert code == expect and "Traceback" not in err, err
    return SimpleNamespace(stdout=out, stderr=err)


def printed_snrs(text):
    stego_snr, secret_snr = re.search(r"stego SNR (\S+) dB, secret SNR (\S+) dB", text).groups()
    return float(stego_snr), float(secret_snr)


def snr(reference, estimate):
    return 10 * np.log10(np.sum(reference ** 2) / np.sum((reference - estimate) ** 2))


@pytest.mark.parametrize("options, least", [([], (51.8, 60)), (["--snr", 58], (57.8, 50)), (["--model", AFFINE], (24, 12))],
                         ids=["default", "58 dB", "affine"])
def test_examples_hide_and_reveal(tmp_path, options, least):
    hidden, revealed = tmp_path / "stego.wav", tmp_path / "secret.wav"
    stego_snr, secret_snr = printed_snrs(run("hide", COVER, SECRET, "-o", hidden, *options).stdout)
    run("reveal", hidden, "-o", revealed, *(options if AFFINE in options else []))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["secret.wav", "stego.wav"]
    info = soundfile.info(hidden)
    assert (info.format, info.subtype, info.samplerate, info.frames) == ("WAV", "PCM_16", 16000, soundfile.info(COVER).frames)
    cover, written, secret, found = (soundfile.read(path)[0] for path in (COVER, hidden, SECRET, revealed))
    assert len(found) == len(secret), "the true length travels in the file"
    assert abs(snr(cover, written) - stego_snr) < 0.01 and abs(snr(secret, found) - secret_snr) < 0.01
    assert stego_snr > least[0] and secret_snr > least[1]


def test_lossless_where_the_cover_has_room(tmp_path):
    assert "secret lossless" in run("hide", COVER, SECRET, "-o", tmp_path / "stego.wav", "--snr", 36).stdout
    run("reveal", tmp_path / "stego.wav", "-o", tmp_path / "found.wav")
    assert np.array_equal(soundfile.read(tmp_path / "found.wav", dtype="int16")[0], soundfile.read(SECRET, dtype="int16")[0])


@pytest.mark.parametrize("rate, model", [(8000, MODEL), (24000, AFFINE), (48000, MODEL)], ids=str)
def test_secret_is_brought_to_the_rate_of_the_cover(tmp_path, rate, model):
    """Another rate, two channels, another format; a cover that fills no whole number of frames."""
    soundfile.write(tmp_path / "cover.flac", voice(2.0003, rate, 1), rate)
    soundfile.write(tmp_path / "secret.ogg", np.stack([voice(1.5, 44100, 2)] * 2, 1), 44100, format="OGG", subtype="VORBIS")
    run("hide", tmp_path / "cover.flac", tmp_path / "secret.ogg", "-o", tmp_path / "stego.wav", "--model", model)
    run("reveal", tmp_path / "stego.wav", "-o", tmp_path / "found.wav", "--model", model)
    cover, hidden, found = (soundfile.info(tmp_path / name) for name in ("cover.flac", "stego.wav", "found.wav"))
    assert (hidden.samplerate, hidden.frames) == (rate, cover.frames)
    assert (found.samplerate, found.channels) == (rate, 1)
    assert abs(found.frames / rate - 1.5) < 0.02


@pytest.mark.parametrize("model", [MODEL, AFFINE], ids=["lattice", "affine"])
def test_a_secret_of_the_same_length_and_one_sample(tmp_path, model):
    for seconds, samples in ((1, 16000), (1 / 16000, 1)):
        soundfile.write(tmp_path / "cover.wav", voice(1, 16000, 1), 16000)
        soundfile.write(tmp_path / "secret.wav", voice(seconds, 16000, 2), 16000)
        for words in (["hide", "cover.wav", "secret.wav", "-o", "stego.wav"], ["reveal", "stego.wav", "-o", "found.wav"]):
            stego.main([str(tmp_path / word) if word.endswith(".wav") else word for word in words]
                       + ["--model", model, "--overwrite"])
        assert soundfile.info(tmp_path / "found.wav").frames == samples


@pytest.mark.parametrize("kind", ["square", "clipped", "noise"])
@pytest.mark.parametrize("model", [MODEL, AFFINE], ids=["lattice", "affine"])
def test_covers_at_full_scale(tmp_path, kind, model, capsys):
    """The lattice takes the neighbouring cell, and nothing clips; an affine model turns the cover down, and says so."""
    x = voice(2, 16000, 1)
    loud = {"square": np.sign(x), "clipped": np.clip(20 * x, -1, 1), "noise": np.random.default_rng(0).uniform(-1, 1, len(x))}[kind]
    soundfile.write(tmp_path / "secret.wav", voice(2, 16000, 2), 16000)
    found = []
    for name, cover in (("loud", loud), ("half", loud / 2)):
        soundfile.write(tmp_path / "cover.wav", cover, 16000)
        stego.main(["hide", *(str(tmp_path / f"{part}.wav") for part in ("cover", "secret")), "-o", str(tmp_path / "stego.wav"),
                    "--model", model, "--overwrite", "--snr", "58"])
        out, err = capsys.readouterr()
        found.append(math.inf if "lossless" in out else printed_snrs(out)[1])
        if model == MODEL:
            assert err == ""
        elif name == "loud":
            assert "cover.wav was turned down by" in err
    assert found[0] > found[1] - 3 or found[1] == math.inf


def test_two_files_copied_alone_are_enough(tmp_path):
    """wavinwav.py needs torch and the standard library only."""
    tree = ast.parse(open(os.path.join(HERE, "wavinwav.py")).read())
    names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert {name.split(".")[0] for name in names} - set(sys.stdlib_module_names) == {"torch"}
    for name in ("wavinwav.py", "wavinwav.pt"):
        shutil.copy(os.path.join(HERE, name), tmp_path)
    program = """
import torch, wavinwav
model = wavinwav.load("wavinwav.pt")
cover, secret = 0.1 * torch.randn(2, 16000)
stego, r = model.hide(cover, secret)
print(model.reveal(stego)[1].shape, (model.reveal(stego, r)[1] - secret).abs().max().item() < 1e-3)
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, timeout=100)
    assert done.stdout.strip() == "torch.Size([16000]) True", done.stderr
