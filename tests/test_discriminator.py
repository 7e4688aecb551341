"""discriminator.py against an account of each layer of its own, and the originals' state dicts."""

import contextlib
import copy
import re

import pytest
import torch
from torch.nn import functional

from discriminator import (
    FAKES,
    Adversary,
    MultiScaleSTFTDiscriminator,
    STFTDiscriminator,
    discriminator_loss,
    feature_matching_loss,
    generator_loss,
)
from helpers import voices

FIVE = (1024, 2048, 512, 256, 128)
LAYERS = {  # strides, dilations and paddings in (time, frequency)
    "convs.0": ((1, 1), (1, 1), (1, 4)),
    "convs.1": ((1, 2), (1, 1), (1, 4)),
    "convs.2": ((1, 2), (2, 1), (2, 4)),
    "convs.3": ((1, 2), (4, 1), (4, 4)),
    "convs.4": ((1, 1), (1, 1), (1, 1)),
    "conv_post": ((1, 1), (1, 1), (1, 1)),
}


def old_state(network, seed=0):
    """Random weights, under the names that the originals give them."""
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for name, value in network.state_dict().items():
        name = re.sub(r"parametrizations\.weight\.original0$", "weight_g", name)
        name = re.sub(r"parametrizations\.weight\.original1$", "weight_v", name)
        if not name.endswith("window"):
            value = 0.1 * torch.randn(value.shape, generator=generator)
        state[name] = value
    return state


def by_hand(x, state, n_fft, slope):
    """One scale, from the weights in old_state: logits and maps."""
    window = torch.hann_window(n_fft)
    frames = x.unfold(-1, n_fft, n_fft // 4)  # [B, C, N, n_fft]
    spectrum = torch.fft.rfft(frames * window) / window.square().sum().sqrt()
    x, maps = torch.cat([spectrum.real, spectrum.imag], 1), []
    for name, (stride, dilation, padding) in LAYERS.items():
        if name == "convs.0":
            weight = state[f"{name}.conv.weight"]
        else:
            weight = state[f"{name}.conv.weight_v"]
            norm = weight.flatten(1).norm(dim=1)[:, None, None, None]
            weight = weight * state[f"{name}.conv.weight_g"] / norm
        x = functional.conv2d(x, weight, state[f"{name}.conv.bias"], stride, padding, dilation)
        if name != "conv_post":
            x = torch.where(x > 0, x, slope * x)
            maps.append(x)
    return x, maps


@pytest.mark.parametrize("n_ffts, count", [
    ({}, 283398), (dict(n_ffts=FIVE), 472330)], ids=["encodec", "audiocraft"])
def test_number_of_parameters(n_ffts, count):
    assert sum(p.numel() for p in MultiScaleSTFTDiscriminator(**n_ffts).parameters()) == count


@pytest.mark.parametrize("channels, slope", [(1, 0.2), (2, 0.3)])
def test_state_dict_of_the_originals(channels, slope):
    network = MultiScaleSTFTDiscriminator((256, 128), filters=4, channels=channels, slope=slope)
    old = old_state(network)
    second = "discriminators.1."
    assert {name.removeprefix(second) for name in old if name.startswith(second)} == {
        "spec_transform.window", "convs.0.conv.weight", "convs.0.conv.bias",
        *(f"{layer}.conv.{part}" for layer in list(LAYERS)[1:]
          for part in ("bias", "weight_g", "weight_v"))}
    new = copy.deepcopy(network)
    network.load_state_dict(old.copy(), strict=True)
    x = voices(2, 0.1875).reshape(2 // channels, channels, -1)
    with torch.no_grad():
        logits, maps = network(x)
        for i, n_fft in enumerate((256, 128)):
            start = f"discriminators.{i}."
            state = {name.removeprefix(start): value for name, value in old.items()
                     if name.startswith(start)}
            expected, expected_maps = by_hand(x, state, n_fft, slope)
            torch.testing.assert_close([logits[i], *maps[i]], [expected, *expected_maps],
                                       rtol=1e-4, atol=1e-4)
            alone = STFTDiscriminator(n_fft, 4, channels, slope)
            alone.load_state_dict(state, strict=True)
            assert alone(x)[0].equal(logits[i])
        new.load_state_dict(network.state_dict(), strict=True)
        assert all(map(torch.equal, new(x)[0], logits))
        del old["discriminators.0.convs.2.conv.weight_g"]
        with pytest.raises(RuntimeError, match=r"convs\.2"):
            network.load_state_dict(old, strict=True)


def test_losses_by_hand():
    real = [torch.tensor([2.0, 0.0]), torch.tensor([0.5])]
    fake = [torch.tensor([-3.0, 1.0]), torch.tensor([0.0])]
    assert discriminator_loss(real, fake).item() == ((0.5 + 1.0) + (0.5 + 1.0)) / 2
    assert generator_loss(fake).item() == (1.0 + 0.0) / 2
    second = [torch.tensor([4.0]), torch.tensor([1.0, 1.0])]
    maps = [[torch.tensor([1.0, 2.0]), torch.tensor([0.0])], second]
    other = [[torch.tensor([1.0, 0.0]), torch.tensor([3.0])], second]
    matching = feature_matching_loss(maps, other).item()
    assert matching == (1 + 3 + 0 + 0) / 4, "each map counts the  whatever its size"
    real, fake = torch.ones(2, requires_grad=True), torch.zeros(2, requires_grad=True)
    feature_matching_loss([[real]], [[fake]]).backward()
    assert real.grad is None and fake.grad.tolist() == [-0.5, -0.5]


def test_autocast():
    network = MultiScaleSTFTDiscriminator((256, 128), filters=8)
    x = voices(2, 0.25)[:, None].requires_grad_()
    exact, exact_maps = network(x)
    with torch.autocast("cpu", torch.bfloat16):
        logits, maps = network(x.bfloat16())
    assert {y.dtype for scale in [logits, *maps] for y in scale} == {torch.bfloat16}
    for a, b in zip([*exact, *exact_maps[0]], [*logits, *maps[0]]):
        assert (a - b.float()).norm() < 0.03 * a.norm()
    loss = generator_loss(logits) + feature_matching_loss(exact_maps, maps)
    loss.backward()
    assert loss.dtype == torch.float32 and x.grad.isfinite().all() and x.grad.abs().max() > 0


def test_adversary():
    """It learns from waves that are detached, and judges with its weights frozen."""
    adversary = Adversary(1e-3, 1.0, "cpu", contextlib.nullcontext)
    waves = {name: voices(1, 0.128, seed).requires_grad_()
             for seed, name in enumerate(("cover", "secret", *FAKES))}

    def changed_by(act, *more):
        before = copy.deepcopy(adversary.network.state_dict())
        act(*more)
        after = adversary.network.state_dict()
        return any(not torch.equal(before[name], after[name]) for name in after)

    assert not changed_by(lambda: sum(adversary.judge(waves)).backward())
    assert all(waves[name].grad.any() for name in FAKES)
    assert all(parameter.grad is None for parameter in adversary.network.parameters())
    for wave in waves.values():
        wave.grad = None
    assert changed_by(adversary.learn, waves)
    assert all(wave.grad is None for wave in waves.values())
    broken = {name: wave * torch.nan for name, wave in waves.items()}
    assert not changed_by(adversary.learn, broken), "the step is skipped"
