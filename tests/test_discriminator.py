"""discriminator.py: the originals' state dicts and logits, losses by hand, and the adversary."""

import contextlib
import copy

import pytest
import torch

from discriminator import (
    FAKES,
    Adversary,
    MultiScaleSTFTDiscriminator,
    discriminator_loss,
    feature_matching_loss,
    generator_loss,
)
from helpers import voices

FIVE = (1024, 2048, 512, 256, 128)
NORMED = "convs.1.conv", "convs.2.conv", "convs.3.conv", "convs.4.conv", "conv_post.conv"
FIRST = "convs.0.conv"


@pytest.mark.parametrize("n_ffts, count", [
    ({}, 283398), (dict(n_ffts=FIVE), 472330)], ids=["encodec", "audiocraft"])
def test_number_of_parameters(n_ffts, count):
    assert sum(p.numel() for p in MultiScaleSTFTDiscriminator(**n_ffts).parameters()) == count


@pytest.mark.parametrize("channels, slope, expected", [
    (1, 0.2, [[0.96306, 1.20025, 1.05626], [0.97, 1.11563, 1.02726]]),
    (2, 0.3, [[0.95648, 1.23983, 1.15765], [0.96056, 1.05509, 1.07498]])])
def test_state_dict_of_the_originals(channels, slope, expected):
    """Of EnCodec and AudioCraft, whose layers gave the expected logits."""
    network = MultiScaleSTFTDiscriminator((256, 128), filters=4, channels=channels, slope=slope)
    old = {}
    for name, value in network.state_dict().items():
        name = name.replace("parametrizations.weight.original0", "weight_g")
        name = name.replace("parametrizations.weight.original1", "weight_v")
        wave = (torch.arange(value.numel()) + 0.2).cos().view(value.shape)
        old[name] = value if name.endswith("window") else wave
    second = "discriminators.1."
    assert {name.removeprefix(second) for name in old if name.startswith(second)} == {
        "spec_transform.window", f"{FIRST}.weight", f"{FIRST}.bias",
        *(f"{layer}.{part}" for layer in NORMED for part in ("bias", "weight_g", "weight_v"))}
    network.load_state_dict(old, strict=True)
    x = (torch.arange(6000) ** 1.5).sin().view(2 // channels, channels, -1)
    with torch.no_grad():
        logits, maps = network(x)
    assert [len(scale) for scale in maps] == [5, 5]
    found = [y.flatten()[::50][:3].tolist() for y in logits]
    assert found == [pytest.approx(some, rel=1e-4) for some in expected]
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
    assert matching == (1 + 3 + 0 + 0) / 4, "each map counts the same, whatever its size"
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
