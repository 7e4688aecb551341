"""What the couplings are trained for: the losses, and the objective that weighs them.

Shapes: B batch, T samples, F frames.
"""

import math
from dataclasses import replace

import torch
from torch import distributed, nn

import noise
import wavinwav
from data import RANK, WORLD
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
        "snr": lambda: -snr(reference, estimate, 1e-4).clamp(max=args.snr_ceiling).mean(),
        "wavlm_weight": lambda: wavlm(reference, estimate),
    }
    weights = {name: getattr(args, name) for name in terms}
    return sum(weight * terms[name]() for name, weight in weights.items() if weight)


def total_loss(args, wavlm, waves, r):
    """The loss of waves {"cover": [B, T], ...} and r [B, bands (+ 1), F]."""
    total = 0.0
    for name, (reference, estimate) in PAIRS.items():
        if weight := getattr(args, name):
            total = total + weight * distance(args, wavlm, waves[reference], waves[estimate])
    if args.w_z:
        z = r[:, :waves["cover"].shape[1] // r.shape[2]]  # without the row of turned frames
        total = total + args.w_z * 0.5 * (z.square().mean() + math.log(2 * math.pi))
    return total


class AffineObjective(nn.Module):
    """What to do with the affine couplings in training: losses and scores of a batch, validation.
    DistributedDataParallel wraps it. LatticeObjective has the same interface."""

    scores = ["stego_snr", "secret_snr"]  # what `forward` measures
    validation = ["val_stego_snr", "val_secret_snr"]  # what `validate` measures
    no_use_for = set()  # flags
    build, load = staticmethod(wavinwav.WavINN), staticmethod(wavinwav.load)

    def __init__(self, model, args, device, amp):
        super().__init__()
        self.model, self.args, self.amp = model, args, amp
        self.noise = self.wavlm = None
        model.recompute(args.recompute)
        rate = model.config.sample_rate
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
        """Measure on training crops what a new model starts from: the level of each band."""
        if self.model.config.bands > 1:
            coefficients = wavinwav.lapped(pairs.sample(256), self.model.config.bands)
            level = coefficients.square().mean((0, 2)).sqrt().clamp_min(1e-6)
            self.model.level.copy_(level[:, None])

    @staticmethod
    def with_second_stack(model):
        """The model with a second stack that is to reveal: the one that it has, or else a copy of
        its couplings."""
        state = model.state_dict()
        copies = {f"robust_{name}": value for name, value in state.items()
                  if name.startswith("blocks.")}
        result = wavinwav.WavINN(replace(model.config, robust=True))
        result.load_state_dict(copies | state)
        return result

    def trainable(self):
        """Parameters by name. The paper's robust stage hides as before."""
        prefix = "robust_blocks." if self.model.config.robust else ""
        return {name: parameter for name, parameter in self.model.named_parameters()
                if name.startswith(prefix)}

    def change(self, stego, numbers, batch):
        """What the noise, if there is any, leaves of a stego; the same kind of it, and as strong,
        in all processes that share a batch."""
        if not self.noise:
            return stego
        seed, = noise.seeds_of(self.args.seed, [batch], "batch")
        seeds = noise.seeds_of(self.args.seed, numbers.tolist(), "noise")
        return noise.quantize(self.noise(stego.float(), seed, seeds), 16)

    def round_trip(self, cover, secret, numbers, batch):
        """Hide, keep what a 16-bit file keeps, change it, reveal: the waves, r."""
        stego, r = self.model(cover, secret)
        stego = noise.quantize(stego, 16)
        changed = self.change(stego, numbers, batch)
        z = self.model.draw_z(stego)
        if self.model.config.latent == "normal":
            seeds = noise.seeds_of(self.args.seed, numbers.tolist(), "z")
            z = noise.draw_items(torch.randn, seeds, z.shape[1:], z.device).to(z.dtype)
        cover_, secret_ = self.model.inverse(changed, z, self.model.revealing)
        waves = {"cover": cover, "secret": secret, "stego": stego,
                 "cover^": cover_, "secret^": secret_}
        return waves, r

    def forward(self, cover, secret, numbers, batch):
        """cover, secret [B, T], the pairs' numbers [B], the batch's number among all of the run,
        which all processes share -> loss, scores [2], waves."""
        with self.amp():
            waves, r = self.round_trip(cover, secret, numbers, batch)
        with torch.no_grad():
            scores = [snr(cover, waves["stego"]).mean(), snr(secret, waves["secret^"]).mean()]
        return total_loss(self.args, self.wavlm, waves, r), torch.stack(scores), waves

    def before_validation(self, pairs):
        """What has to be measured on training crops first: nothing."""

    @torch.no_grad()
    def validate(self, loader, device):
        """Stego SNR and secret SNR in dB of fixed pairs, under the noise if there is any: sums over
        the pairs, and their number."""
        totals = torch.zeros(3)
        for batch, (cover, secret, numbers) in enumerate(loader):
            waves, _ = self.round_trip(cover.to(device), secret.to(device), numbers, batch)
            revealed = noise.quantize(waves["secret^"], 16)
            scores = [snr(waves["cover"], waves["stego"]), snr(waves["secret"], revealed)]
            totals += torch.tensor([*(score.sum() for score in scores), len(cover)])
        return totals

    def goodness(self, values):
        """Of what `validate` found; the model with the highest becomes best.pt."""
        return sum(values)

    def shown(self, values):
        return f"stego {values[0]:.1f} dB, secret {values[1]:.1f} dB"
