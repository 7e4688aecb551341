"""Resampling, and the commands where torchaudio is missing or broken."""

import math
import os
import re
import subprocess
import sys

import numpy as np
import pytest
import soundfile
import torch

from files import resample as module
from files.resample import resample
from helpers import COVER, ROOT, TINY, voice

RATES = [(44100, 16000), (16000, 44100), (48000, 16000), (16000, 24000), (1001, 1000)]


# ---------------------------------------------------------------- the signal

def two_voices(rate):
    return torch.from_numpy(np.stack([voice(0.1, rate, seed) for seed in (1, 2)]))


@pytest.mark.parametrize("rates", RATES, ids=str)
def test_equal_to_torchaudio(rates):
    functional = pytest.importorskip("torchaudio.functional", exc_type=Exception)
    x = two_voices(rates[0])
    assert torch.allclose(resample(x, *rates), functional.resample(x, *rates), atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("rates", RATES, ids=str)
def test_direct_resampling_equals_the_convolution(rates, dtype, monkeypatch):
    x = two_voices(rates[0]).to(dtype).requires_grad_()
    wanted = resample(x, *rates)
    assert wanted.shape == (2, -(-x.shape[1] * rates[1] // rates[0])) and wanted.dtype == dtype
    wanted_gradient, = torch.autograd.grad(wanted.square().sum(), x)
    monkeypatch.setattr(module, "LARGEST_KERNEL", 1000)  # several pieces, too
    found = resample(x, *rates)
    found.square().sum().backward()
    assert torch.allclose(found, wanted, atol=1e-5)
    assert torch.allclose(x.grad, wanted_gradient, atol=1e-4) and x.grad.any()


@pytest.mark.parametrize("rates", [*RATES, (44101, 48000)], ids=str)
def test_a_tone_keeps_frequency_and_phase(rates):
    def tone(count, rate):
        return torch.sin(2 * math.pi * rates[0] / 40 * torch.arange(count).double() / rate)

    y = resample(tone(2000, rates[0]).float(), *rates)
    assert len(y) == -(-2000 * rates[1] // rates[0])
    assert (y - tone(len(y), rates[1]))[100:-100].abs().max() < 2e-3


def test_shapes():
    x = torch.randn(2, 3, 160)
    assert resample(x, 16000, 8000).shape == (2, 3, 80)
    assert torch.allclose(resample(x, 16000, 8000)[1, 2], resample(x[1, 2], 16000, 8000),
                          atol=1e-6)
    assert resample(x, 16000, 16000) is x
    assert resample(x[..., :0], 16000, 8000).shape == (2, 3, 0)
    assert resample(x[..., :0], 44101, 48000).shape == (2, 3, 0)


# ---------------------------------------------------------------- without torchaudio

@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Sound files of two rates, and a torchaudio that raises when it is imported."""
    folder = tmp_path_factory.mktemp("faults")
    (folder / "torchaudio").mkdir()
    (folder / "torchaudio" / "__init__.py").write_text('raise OSError("libcudart.so.13:\\n none")')
    for part, rate in (("own", 16000), ("other", 22050)):
        (folder / part).mkdir()
        for i in range(6):
            soundfile.write(folder / part / f"{i}.wav", voice(1, rate, i), rate)
    (folder / "hubconf.py").write_text("import torchaudio\n")
    return folder


def run(folder, out, *words):
    """python WORDS in the repository, with the broken torchaudio."""
    words = [str(word).format(folder=folder, out=out) for word in words]
    return subprocess.run([sys.executable, *words], cwd=ROOT, capture_output=True, text=True,
                          env=os.environ | {"PYTHONPATH": str(folder)}, timeout=300)


def test_resampling_works_without_torchaudio(folder, tmp_path):
    done = run(folder, tmp_path, "-c", "import torchaudio")
    assert "OSError: libcudart.so.13" in done.stderr, "or this would show nothing"
    done = run(folder, tmp_path, "stego.py", "hide", COVER, "{folder}/other/0.wav", "-o",
               "{out}/stego.wav")
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr


@pytest.mark.parametrize("source", ["torchaudio/WAVLM_BASE_PLUS", "{folder}"])
def test_what_needs_torchaudio_ends_with_one_line(folder, tmp_path, source):
    done = run(folder, tmp_path, "train.py", *TINY, "--steps", 4, "--out_dir", "{out}/run",
               "--data_dir", "{folder}/own", "--wavlm_weight", 1, "--wavlm_source", source)
    assert done.returncode == 1 and len(done.stderr.splitlines()) == 1, done.stderr
    assert re.search(r"libcudart.so.13: none; .*torchaudio, where it is needed, must be the one "
                     r"built for torch \S+: pip install -r requirements.txt", done.stderr)
    assert not os.listdir(tmp_path), "nothing half-written"
