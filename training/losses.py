"""What the couplings are trained for: the losses, and the objective that weighs them.

Shapes: B batch, T samples, F frames.
"""

import contextlib
import math
from dataclasses import replace
from functools import partial

import torch
from torch import distributed, nn
from torch.utils.checkpoint import checkpoint

import wavinwav
from training import noise
from training.data import RANK, WORLD
from wavlm_loss import WavLMLoss

PAIRS = {  # weight: which waves it is for
    "w_stego": ("cover", "stego"),
    "w_cover": ("cover", "cover^"),
    "w_secret": ("secret", "secret^"),
}


def snr(reference, estimate, floor=1e-10):
    """Signal-to-noise ratio in dB for each item, [B, T] -> [B]; saturates at -10 log10(floor)."""
    signal = reference.square().sum(-1)
    noise = (reference - estimate).square().sum(-1)
    return 10 * torch.log10(signal / (noise + floor * signal))


def stft_distance(reference, estimate):
    """Multi-resolution STFT distance, the mean over resolutions of spectral convergence and
    log-magnitude L1 (Yamamoto et al. 2020, section 3.2). [B, T] x 2 -> scalar."""
    total = 0.0
    for n_fft, hop, win in ((1024, 120, 600), (2048, 240, 1200), (512, 50, 240)):
        window = torch.hann_window(win, device=reference.device)

        def magnitude(x):
            spectrum = torch.stft(x, n_fft, hop, win, window, return_complex=True)
            power = spectrum.real ** 2 + spectrum.imag ** 2
            return power.clamp_min(1e-7).sqrt()  # abs() has NaN gradients at 0

        a, b = magnitude(reference), magnitude(estimate)
        convergence = (a - b).norm(dim=(1, 2)) / a.norm(dim=(1, 2)).clamp_min(1e-3)
        total = total + convergence.mean() + (a.log() - b.log()).abs().mean()
    return total / 3


def distance(args, wavlm, reference, estimate):
    """L of the loss between two waveforms [B, T]."""
    terms = {
        "wave": lambda: (reference - estimate).abs().mean(),
        "stft": lambda: stft_distance(reference, estimate),
        "snr": lambda: -snr(reference, estimate, 10 ** (-args.snr_ceiling / 10)).mean(),
        "wavlm_weight": lambda: wavlm(reference, estimate),
    }
    weights = {name: getattr(args, name) for name in terms}
    return sum(weight * terms[name]() for name, weight in weights.items() if weight)


def total_loss(args, wavlm, waves, r):
    """The loss of waves {"cover": [B, T], ...} and r, of any shape."""
    total = 0.0
    for name, (reference, estimate) in PAIRS.items():
        if weight := getattr(args, name):
            total = total + weight * distance(args, wavlm, waves[reference], waves[estimate])
    if args.w_z:
        total = total + args.w_z * 0.5 * (r.square().mean() + math.log(2 * math.pi))
    return total


def recompute(model):
    """Let the dense subnets keep their inputs only, and compute the rest again in `backward`."""
    for module in model.modules():
        if isinstance(module, wavinwav.DenseSubnet):
            module.forward = partial(checkpoint, module.forward, use_reentrant=False)


class Objective(nn.Module):
    """What to do with a network in training: losses and scores of a batch, validation. The paper's;
    DistributedDataParallel wraps it. LatticeObjective has the same interface."""

    scores = ["stego_snr", "secret_snr"]  # what `forward` measures
    validation = ["val_stego_snr", "val_secret_snr"]  # what `validate` measures
    no_use_for = set()  # flags
    build, load = staticmethod(wavinwav.build), staticmethod(wavinwav.load)

    def __init__(self, model, args, device, amp):
        super().__init__()
        self.model, self.args, self.amp = model, args, amp
        self.noise = self.wavlm = None
        rate = model.config.sample_rate
        if args.recompute:
            recompute(model)
        if args.noise:
            self.noise = noise.NoiseLayer(args.noise, rate)
        if args.wavlm_weight:
            if RANK > 0:  # the first process downloads, the others find it there
                distributed.barrier()
            self.wavlm = WavLMLoss(args.wavlm_source, None, args.wavlm_distance, rate, device)
            if RANK == 0 and WORLD > 1:
                distributed.barrier()

    @torch.no_grad()
    def initialise(self, pairs):
        """Bands are divided by the square root of their long-term level."""
        if (bands := self.model.config.bands) > 1:
            power = wavinwav.lapped(pairs.sample(256), bands).square().mean((0, 2))
            self.model.level.copy_((power * power.mean()).sqrt().sqrt()[:, None])

    @staticmethod
    def with_second_stack(model):
        """The model with a second stack that is to reveal: the one that it has, or else a copy."""
        state = model.state_dict()
        result = wavinwav.build(replace(model.config, robust=True))
        copies = {name: state[name.removeprefix("robust_")] for name in result.state_dict()
                  if name.removeprefix("robust_") in state}
        result.load_state_dict(copies | state)
        return result

    def trainable(self):
        """Parameters by name. The paper's robust stage hides as before."""
        prefix = "robust_" if getattr(self.model.config, "robust", False) else ""
        return {name: parameter for name, parameter in self.model.named_parameters()
                if name.startswith(prefix)}

    def draw(self, kind, numbers, purpose, shape, like):
        """Random numbers [B, *shape] of torch.randn or torch.rand, of the pairs' numbers alone."""
        seeds = noise.seeds_of(self.args.seed, numbers.tolist(), purpose)
        return noise.draw_items(kind, seeds, shape, like.device).to(like.dtype)

    def change(self, stego, numbers, batch):
        """What the noise, if there is any, leaves of a stego; the same kind of it, and as strong,
        in all processes that share a batch."""
        if not self.noise:
            return stego
        seed, = noise.seeds_of(self.args.seed, [batch], "batch")
        seeds = noise.seeds_of(self.args.seed, numbers.tolist(), "noise")
        return noise.quantize(self.noise(stego.float(), seed, seeds), 16)

    def round_trip(self, cover, secret, numbers, batch):
        """Hide, keep what a 16-bit file keeps, change it, reveal -> stego, cover^, secret^, r."""
        stego, r = self.model(cover, secret)
        stego = noise.quantize(stego, 16)
        changed, z = self.change(stego, numbers, batch), torch.zeros_like(stego)
        return stego, *self.model.inverse(changed, z, self.model.config.robust), r

    def forward(self, cover, secret, numbers, batch):
        """cover, secret [B, T], the pairs' numbers [B], the batch's number among all of the run,
        which all processes share -> loss, scores [2], waves."""
        with self.amp():
            stego, cover_, secret_, r = self.round_trip(cover, secret, numbers, batch)
        waves = {"cover": cover, "secret": secret, "stego": stego,
                 "cover^": cover_, "secret^": secret_}
        with torch.no_grad():
            scores = torch.stack([snr(cover, stego).mean(), snr(secret, secret_).mean()])
        return total_loss(self.args, self.wavlm, waves, r), scores, waves

    def before_validation(self, pairs):
        """What has to be measured on training crops before: nothing."""

    @torch.no_grad()
    def validate(self, loader, device):
        """Stego SNR and secret SNR in dB of fixed pairs, under the noise if there is any: sums over
        the pairs, and their number."""
        totals = torch.zeros(3)
        self.model.eval()
        for batch, (cover, secret, numbers) in enumerate(loader):
            cover, secret = cover.to(device), secret.to(device)
            stego, _, secret_, _ = self.round_trip(cover, secret, numbers, batch)
            scores = [snr(cover, stego), snr(secret, noise.quantize(secret_, 16))]
            totals += torch.tensor([*(score.sum() for score in scores), len(cover)])
        self.model.train()
        return totals

    def goodness(self, values):
        """Of what `validate` found; the model with the highest becomes best.pt."""
        return sum(values)

    def shown(self, values):
        return f"stego {values[0]:.1f} dB, secret {values[1]:.1f} dB"


class LappedObjective(Objective):
    """The same for dirty-paper coding: the cells' width is varied, and rounding to a file, which
    cannot be trained through, is noise of the spectrum that it will have."""

    no_use_for = {"recompute", "robust_from"}  # it has no subnets worth it, and no second stack

    def __init__(self, model, args, device, amp):
        super().__init__(model, args, device, contextlib.nullcontext)  # for 16 bits, all of float32

    @torch.no_grad()
    def initialise(self, pairs):
        """The long-term level of each band, and cells that begin by following it."""
        model, secrets = self.model, pairs.sample(256)
        gain = model.cells(model.fit(secrets, secrets, 0.0, rounds=0))[2]
        x = model.split(wavinwav.lapped(wavinwav.FULL_SCALE * secrets, model.config.bands))
        power = (gain * x).square().mean((0, 1, 2))
        model.level.copy_(power.sqrt().clamp_min(1e-3))
        model.log_cells += 0.3 * model.level.log()

    def round_trip(self, cover, secret, numbers, batch):
        model, snr_ = self.model, torch.full_like(cover[:, 0], self.model.config.stego_snr)
        if model.training:
            snr_ = snr_ + 6 * (2 * self.draw(torch.rand, numbers, "snr", (), cover) - 1)
        setting = model.fit(cover, secret, snr_, rounds=0)
        stego, slope = model(cover, secret, setting)
        if model.training:
            normal = self.draw(torch.randn, numbers, "rounding", stego.shape[1:], stego)
            weights = wavinwav.noise_weights(slope)
            power = weights.log().mean(1, keepdim=True).exp() / weights / 12
            normal = wavinwav.lapped(normal, model.config.bands) * power.sqrt()
            stego = stego + wavinwav.unlapped(normal, stego.shape[1]) / wavinwav.FULL_SCALE
        else:
            free = torch.full_like(stego, -1)
            stego = wavinwav.round_to_file(wavinwav.FULL_SCALE * stego, slope, free)
            stego = stego / wavinwav.FULL_SCALE
        cover_, secret_ = model.inverse(self.change(stego, numbers, batch), setting)
        return stego, cover_, secret_, torch.stack([cover - stego, secret - secret_], 1)
