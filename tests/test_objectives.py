"""Each objective of train.py in real, short runs: what it changes, resumed after a kill, and in
many processes."""

import contextlib
import os
import signal

import pytest
import torch

import wavinwav
from discriminator import Adversary
from files import checkpoint
from helpers import voices
from lattice.train import table_settings
from running import TRAIN, Running
from training import noise
from training.losses import LappedObjective, recompute, snr, term_names
from trainings import (
    EVERYTHING,
    SHORT,
    TINY,
    TINY_PAPER,
    gradients,
    metrics,
    train,
    wait_for_rows,
)
from wavlm_loss import WavLMLoss

WEIGHTS = dict.fromkeys(("stego", "cover", "secret", "z", "wave", "stft", "snr", "wavlm"), 0)


@pytest.fixture(scope="module")
def model(speech, tmp_path_factory):
    """A small model, trained a little without noise."""
    folder = tmp_path_factory.mktemp("clean")
    run(speech, folder, *TINY, "--steps", 8, "--lr", "3e-3", "--val_every", 8)
    return folder / "best.pt"


def test_recomputation_changes_no_gradient():
    model = wavinwav.build(wavinwav.Config.paper(blocks=2, growth=4)).double()
    x, found, passes = torch.randn(2, 1000).double(), [], []
    first = next(m for m in model.blocks[1].phi.modules() if isinstance(m, torch.nn.Conv1d))
    first.register_forward_hook(lambda *_: passes.append(1))
    for change in (lambda model: None, recompute):
        change(model)
        model.zero_grad()
        sum(y.square().mean() for y in model(x, x.flip(1))).backward()
        found.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
    assert torch.allclose(*found, rtol=1e-9, atol=1e-15)
    assert len(passes) == 3, "once, and then again in the backward pass"


def run(speech, folder, *flags):
    train("--data_dir", speech, "--out_dir", folder, *flags)
    return metrics(folder)


BANDS = ["--preset", "bands", "--crop", 0.15, "--warmup", 20, "--log_every", 20, "--val_every", 20,
         "--val_pairs", 16, "--workers", 0, "--no_progress", "--w_stego_end", 0, "--stft", 0,
         "--tilt", 0, "--steps", 60]


@pytest.fixture(scope="module")
def bands(speech, tmp_path_factory):
    """The folder of a short run of the paper's blocks on bands."""
    folder = tmp_path_factory.mktemp("bands")
    run(speech, folder, *BANDS, "--growth", 16)
    return folder


def test_stego_and_secret_rise_together(bands):
    stego, secret = ([float(row[f"val_{name}_snr"]) for row in metrics(bands)]
                     for name in ("stego", "secret"))
    assert stego[-1] > max(5, stego[0]) and secret[-1] > max(3, secret[0])


def torchrun(*flags):
    """Two processes at work."""
    return Running("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", 2, TRAIN,
                   *flags)


def after_noise(path, decibel):
    """The secret SNR of a fixed pair whose stego gets noise of so many dB, and the stego before."""
    model, normal = wavinwav.load(path), torch.Generator().manual_seed(5)
    normal = torch.randn(4, 32000, generator=normal)
    cover, secret = voices(4, 2, 30), voices(4, 2, 40)
    stego, _ = model.hide(cover, secret)
    noisy = noise.gaussian(noise.quantize(stego, 16), normal, decibel)
    return snr(secret, model.reveal(noisy)[1]).mean().item(), stego


def test_robust_stage_reveals_better_and_hides_the_same(speech, bands, tmp_path):
    model, robust = bands / "last.pt", tmp_path / "last.pt"
    run(speech, tmp_path, *BANDS, "--robust_from", model, "--noise", "gaussian:10")
    before, stego_before = after_noise(model, 10)
    after, stego_after = after_noise(robust, 10)
    assert torch.equal(stego_before, stego_after)
    assert after > before + 2, (before, after)
    first, second = (wavinwav.load(path).state_dict() for path in (model, robust))
    assert all(torch.equal(first[name], second[name]) for name in first)
    added = second.keys() - first.keys()
    assert added == {f"robust_{name}" for name in first if name.startswith("blocks.")}
    moved = [name for name in added if not torch.equal(second[name], first[name[len("robust_"):]])]
    assert len(moved) > len(added) / 2


def test_discriminator_learns_while_the_network_trains(speech, tmp_path):
    """Of the paper's network, whose waves are far from true ones under much noise."""
    flags = [*TINY_PAPER, *SHORT, "--adversarial", "--disc_lr", "2e-3", "--noise", "gaussian:0",
             "--adv_weight", 0, "--feat_weight", 0, "--disc_start", 2, "--steps", 16]
    losses = [float(row["disc_loss"]) for row in run(speech, tmp_path, *flags)]
    assert losses[0] == 0 and min(losses[-4:]) < 0.9 * losses[1], "it starts late, and then learns"
    network = wavinwav.load(tmp_path / "best.pt")
    names = wavinwav.build(network.config).state_dict().keys()
    assert network.state_dict().keys() == names, "it stays out of the model"


@pytest.mark.parametrize("name", ["stego_stft", "cover_stft", "secret_stft", "z", "secret_wave",
                                  "secret_snr", "secret_wavlm", "secret_noise", "adversary"])
def test_each_loss_alone_reaches_every_parameter(model, hub, name):
    network = wavinwav.load(model).train()
    pool, name = ("gaussian", "secret_stft") if name == "secret_noise" else ("", name)
    objective = LappedObjective(network, seed=0, pool=pool, wavlm=WavLMLoss(str(hub)))
    cover, secret = voices(2, 0.25, 30), voices(2, 0.25, 40)
    weights = WEIGHTS | dict.fromkeys(name.split("_"), 1)
    terms, _, waves = objective(cover, secret, torch.arange(2), 0, weights)
    assert list(terms) == term_names(weights) == ([] if name == "adversary" else [name])
    loss = sum(terms.values())
    if name == "adversary":
        torch.manual_seed(0)
        loss = sum(Adversary(1e-3, 1.0, "cpu", contextlib.nullcontext).judge(waves))
    loss.backward()
    for parameter, value in network.named_parameters():
        assert value.grad is not None and value.grad.isfinite().all(), parameter
        assert value.grad.any(), parameter


@pytest.mark.slow
@pytest.mark.parametrize("flags", [
    [*TINY, *EVERYTHING, "--disc_start", 1, "--steps", 2, "--amp", "fp32"],
    [*TINY_PAPER, "--steps", 6, "--amp", "fp32"]], ids=["lapped", "paper"])
def test_two_processes_train_as_one(speech, tmp_path, flags):
    """One with a larger batch, or that accumulates gradients. In metrics.csv and by their
    gradients, not their weights: Adam moves a weight as far for a gradient that is all rounding as
    for any other, so that weights may be apart by the sum of the learning rates. Without clipping,
    for the same reason."""
    flags = ["--data_dir", speech, *flags, "--clip", 1e6, "--val_every", 2]
    done = torchrun(*flags, "--out_dir", tmp_path / "two").finish()
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("parameters to train") == 1
    more = ("--batch_size", 4) if "--adversarial" in flags else ("--accumulate", 2)
    run(speech, tmp_path / "one", *flags[2:], *more)
    # Sums in another order are 1e-6 apart. After a step, samples of the stego that are rounded to
    # 16 bits the other way make it up to 4e-4, and 2e-3 for the discriminator, whose gradients of
    # true and false nearly cancel. Other noise makes it 0.01 to 1; other pairs, 0.1 to 1.
    one, two = (gradients(tmp_path / name / "last.pt") for name in ("one", "two"))
    for a, b, tolerance in zip(one, two, (0.005, 0.02), strict=False):
        assert (a - b).norm() < tolerance * a.norm()
    for a, b in zip(metrics(tmp_path / "one"), metrics(tmp_path / "two"), strict=True):
        assert a.keys() == b.keys()
        for name in a:
            if a[name] != b[name]:
                x, y = float(a[name]), float(b[name])
                # validation rounds to files: where one sample falls the other way, all that follow
                # in its stretch do, and 0.02 dB of so few pairs
                tolerance = 0.02 if name.startswith("val_") else 2e-3
                assert abs(x - y) < tolerance * (1 + abs(x)), (name, a, b)


@pytest.mark.slow
def test_another_number_of_processes_goes_on(speech, tmp_path):
    """Stopped between checkpoints while two processes train; one goes on, with the pairs that come
    next."""
    flags = ["--data_dir", speech, *TINY, "--steps", 1_000_000, "--save_every", 1_000_000]
    process = torchrun(*flags, "--out_dir", tmp_path)
    wait_for_rows(process, tmp_path)
    os.kill(process.pid, signal.SIGTERM)
    assert "last.pt is of step" in (errors := process.finish().stderr), errors
    saved = checkpoint.read(tmp_path / "last.pt")["training"]
    assert 4 <= saved["step"] < 1_000_000 and max(saved["used"]) == 4 * saved["step"]
    process = Running(TRAIN, "--data_dir", speech, *TINY, "--out_dir", tmp_path, "--resume")
    wait_for_rows(process, tmp_path, saved["step"] // 2 + 2)
    os.kill(process.pid, signal.SIGTERM)
    assert "go on with --resume" in process.finish().stderr
    again = checkpoint.read(tmp_path / "last.pt")["training"]
    assert max(again["used"]) - max(saved["used"]) == 2 * (again["step"] - saved["step"]) > 0


def test_noise_is_the_same_wherever_a_batch_is_shared(model):
    """Two processes, that have every other pair, change them as one that has all: by one kind and
    strength in a batch, and by each pair's own random numbers."""
    pool = "gain:-9:9,lowpass:2000:7000,gaussian,dropout:0.1"
    objective = LappedObjective(wavinwav.load(model), seed=0, pool=pool)
    stego, drawn = voices(4, 0.5, 30), set()
    for batch in range(10):
        whole = objective.change(stego, torch.arange(4), batch)
        for rank in (0, 1):
            part = objective.change(stego[rank::2], torch.arange(4)[rank::2], batch)
            assert (part - whole[rank::2]).abs().max() <= 1 / 32768
        drawn.add(whole.square().sum().item())
    assert len(drawn) > 5, "another in each batch"
    waves = [LappedObjective(wavinwav.load(model).train(), seed=0, pool=pool)(
        stego, stego.flip(0), torch.arange(4), 0, WEIGHTS)[2] for pool in ("", "gaussian:0")]
    assert torch.equal(waves[0]["stego"], waves[1]["stego"])
    assert not torch.allclose(waves[0]["secret^"], waves[1]["secret^"]), "it is revealed from noise"


def test_the_snr_of_the_stego_is_varied(model):
    objective = LappedObjective(wavinwav.load(model).train(), seed=0)
    cover, secret = voices(4, 0.5, 30), voices(4, 0.5, 40)
    levels = torch.stack([
        snr(cover, objective(cover, secret, torch.arange(n, n + 4), 0, WEIGHTS)[2]["stego"])
        for n in range(0, 40, 4)])
    assert levels.min() < 43 and levels.max() > 47, "around 46 dB"


def test_lattice_tables_are_counted_on_all_crops():
    crops = torch.rand(64, 1000, generator=torch.Generator().manual_seed(0))
    settings = table_settings(crops)
    assert torch.equal(torch.cat([secrets for secrets, _, _ in settings]), 32768 * crops)
    assert len({step for _, step, _ in settings}) == 8
    assert len({shaping for _, _, shaping in settings}) > 3
