"""The noise layer does what its flags say, lets the gradient through, and does not depend on how a
batch is split."""

import math

import pytest
import torch

from helpers import speechlike
from training import noise
from training.noise import KINDS, NoiseLayer

RATE = 16000


def snr(x, y):
    return 10 * torch.log10(x.square().sum(1) / (x - y).square().sum(1))


@pytest.mark.parametrize("name", KINDS)
def test_gradient_split_and_seed(name):
    x = speechlike(3, 8000).float().requires_grad_()
    layer = NoiseLayer(name, RATE)
    y = layer(x, 7, [1, 2, 3])
    assert y.shape == x.shape
    gradient, = torch.autograd.grad(y.square().sum(), x)
    assert gradient.isfinite().all() and gradient.norm() > 0.1 * x.norm()
    parts = torch.cat([layer(x[:1], 7, [1]), layer(x[1:], 7, [2, 3])])
    assert torch.allclose(y, parts, atol=1e-6)
    if name != "identity":
        assert not torch.allclose(y, x, atol=1e-6)
        assert not torch.equal(y, layer(x, 8, [4, 5, 6]))


@pytest.mark.parametrize("name", ["gaussian", "speckle"])
def test_noise_has_its_level(name):
    x = speechlike(3, 8000).float()
    assert (snr(x, NoiseLayer(f"{name}:30", RATE)(x, 0, [1, 2, 3])) - 30).abs().max() < 0.5


def test_spectral_changes_keep_what_lies_below():
    n = torch.arange(8000) / RATE
    low, high = (torch.sin(2 * math.pi * hertz * n)[None] for hertz in (500, 7000))
    for layer in (NoiseLayer("lowpass:4000", RATE), NoiseLayer("resample:1/2", RATE)):
        y = layer(low + high, 0, [0])
        assert snr(low[:, 500:-500], y[:, 500:-500]).item() > 40


def test_levels_and_losses():
    x = speechlike(3, 8000).float()
    assert torch.allclose(NoiseLayer("gain:-6", RATE)(x, 0, [0, 1, 2]), x * 10 ** -0.3)
    eight = NoiseLayer("quantize:8:8", RATE)(x, 0, [0, 1, 2])
    assert torch.equal(eight * 128, (eight * 128).round())
    assert (eight - x).abs().max() <= 1 / 256 + 1e-6
    assert noise.quantize(torch.tensor([1.5, -1.5]), 16).tolist() == [32767 / 32768, -1]
    lost = NoiseLayer("dropout:0.1", RATE)(x, 0, [0, 1, 2])
    assert abs((lost == 0).float().mean().item() - 0.1) < 0.02
    assert torch.equal(lost[lost != 0], x[lost != 0])


def test_strengths_are_drawn_from_what_is_asked_for():
    x = speechlike(1, 8000).float()
    found = {round((y.norm() / x.norm()).log10().item() * 20)
             for seed in range(200) for y in [NoiseLayer("gain:-2:3", RATE)(x, seed, [0])]}
    assert found == {-2, -1, 0, 1, 2, 3}
    two = {round(snr(x, NoiseLayer("gaussian:20,gaussian:40", RATE)(x, seed, [0])).item(), -1)
           for seed in range(20)}
    assert two == {20, 40}, "each entry has its own strength"
    parts = [noise.resample(x, part) for part in ("1/2", "3/4")]
    for seed in range(20):
        y = NoiseLayer("resample:1/2:3/4", RATE)(x, seed, [0])
        assert any(torch.equal(y, part) for part in parts)


@pytest.mark.parametrize("pool, message", [
    ("gaussian,echos", "no noise 'echos'"), ("", "no noise ''"), ("identity:3", "no strength"),
    ("dropout:0.5:1.5", "from 0 to 1"), ("quantize:8:4", "lowest and the highest"),
    ("quantize:8.5", "type int"), ("gaussian:loud", "type float"), ("gaussian:nan", "from -20"),
    ("gaussian:1:2:3", "lowest and the highest"), ("resample:14411/16000", "small numbers"),
    ("resample:half", "type Fraction"), ("resample:1/0", "type Fraction"),
    ("resample:0", "from 1/100"), ("gain:", "type float")])
def test_what_makes_no_sense_is_refused(pool, message):
    with pytest.raises(ValueError, match=message) as caught:
        NoiseLayer(pool, RATE)
    assert pool.split(",")[-1].split(":")[0] in str(caught.value)
    assert "\n" not in str(caught.value)


def test_each_purpose_has_seeds_of_its_own():
    purposes = ("noise", "z", "settings", "batch", "snr", "rounding")
    seeds = [noise.seeds_of(run, range(100), purpose) for run in (0, 1) for purpose in purposes]
    assert len(set(sum(seeds, []))) == 2 * 6 * 100
