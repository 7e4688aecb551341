"""files/resample.py against torchaudio, itself and pure tones."""

import math

import numpy as np
import pytest
import torch

from files import resample as module
from files.resample import resample
from helpers import voice

RATES = [(44100, 16000), (16000, 44100), (48000, 16000), (16000, 24000), (1001, 1000)]


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
    y = resample(x, 16000, 8000)
    assert y.shape == (2, 3, 80)
    assert torch.allclose(y[1, 2], resample(x[1, 2], 16000, 8000), atol=1e-6)
    assert resample(x, 16000, 16000) is x
    for rates in ((16000, 8000), (44101, 48000)):
        assert resample(x[..., :0], *rates).shape == (2, 3, 0)
