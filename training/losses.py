"""The losses, and the round trip on which they are measured.

Shapes: B batch, T samples, F frames.
"""

import contextlib
import math
from functools import partial

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import wavinwav
from training import noise
from training.data import sample

PAIRS = {"stego": ("cover", "stego"), "cover": ("cover", "cover^"), "secret": ("secret", "secret^")}
DISTANCES = "wave", "stft", "snr", "wavlm"


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


def term_names(weights):
    """The names of the terms in which no weight is 0, in the order of `loss_terms`."""
    names = [(pair, kind) for pair in PAIRS for kind in DISTANCES]
    names = [f"{pair}_{kind}" for pair, kind in names if weights[pair] and weights[kind]]
    return names + ["z"] * bool(weights["z"])


def weigh(flags, done=1.0):
    """The weights of the losses, as `loss_terms` takes them, after this share of the run."""
    w_stego, stft = flags.w_stego, flags.stft
    if flags.w_stego_end:
        w_stego += (flags.w_stego_end - w_stego) * min(1, 2 * done)
    if flags.stft_from:
        stft *= min(1, max(1e-6, (done - flags.stft_from) / 0.4))
    return {"stego": w_stego, "cover": flags.w_cover, "secret": flags.w_secret,
            "z": flags.w_z, "wave": flags.wave, "stft": stft, "snr": flags.snr,
            "wavlm": flags.wavlm_weight}


def loss_terms(waves, r, weights, snr_ceiling, wavlm=None):
    """The weighted terms of the loss, by name; their sum is the loss.

    waves: {"cover": [B, T], "stego": ..., "cover^": ..., "secret": ..., "secret^": ...}
    r: of any shape
    weights: of "stego", "cover", "secret", times those of "wave", "stft", "snr", "wavlm"; of "z"
    snr_ceiling: dB at which the SNR saturates
    """
    distances = {
        "wave": lambda a, b: (a - b).abs().mean(),
        "stft": stft_distance,
        "snr": lambda a, b: -snr(a, b, 10 ** (-snr_ceiling / 10)).mean(),
        "wavlm": wavlm,
    }
    terms = {}
    for name in term_names(weights):
        if name == "z":  # the negative log-likelihood of r under N(0, 1)
            terms[name] = weights["z"] * 0.5 * (r.square().mean() + math.log(2 * math.pi))
        else:
            pair, kind = name.split("_")
            reference, estimate = (waves[wave] for wave in PAIRS[pair])
            terms[name] = weights[pair] * weights[kind] * distances[kind](reference, estimate)
    return terms


def recompute(model):
    """Let the subnets of all couplings keep their inputs only, and compute the rest again in
    `backward`."""
    for coupling in model.modules():
        if isinstance(coupling, wavinwav.AffineCoupling):
            for subnet in coupling.children():
                subnet.forward = partial(checkpoint, subnet.forward, use_reentrant=False)


class Objective(nn.Module):
    """Hides, rounds to 16 bits, adds noise, reveals, and measures the losses: the paper's training
    of any of its networks. DistributedDataParallel wraps it.

    seed: of all random numbers
    amp: the context of the subnets, as torch.autocast
    pool: kinds of noise, as NoiseLayer takes them, or none
    """

    scores = ["stego_snr", "secret_snr"]  # dB

    def __init__(self, model, seed, amp=contextlib.nullcontext, pool="", wavlm=None,
                 snr_ceiling=80.0):
        super().__init__()
        self.model, self.seed, self.amp = model, seed, amp
        self.noise = noise.NoiseLayer(pool, model.config.sample_rate) if pool else None
        self.wavlm, self.snr_ceiling = wavlm, snr_ceiling

    @torch.no_grad()
    def initialise(self, pairs):
        """Divide each band by a level half-way, in dB, between its own long-term rms and that of
        all bands, from training crops."""
        if (bands := self.model.config.bands) > 1:
            power = wavinwav.lapped(sample(pairs, 256), bands).square().mean((0, 2))
            rms = power.sqrt()
            self.model.level.copy_((rms * power.mean().sqrt()).sqrt()[:, None])

    def draw(self, kind, numbers, purpose, shape, like):
        """Random numbers [B, *shape] of torch.randn or torch.rand, of the pairs' numbers alone."""
        seeds = noise.seeds_of(self.seed, numbers.tolist(), purpose)
        return noise.draw_items(kind, seeds, shape, like.device).to(like.dtype)

    def change(self, stego, numbers, batch):
        """The stego after the noise, if there is any: of the same kind and strength in all
        processes that share a batch."""
        if not self.noise:
            return stego
        seed, = noise.seeds_of(self.seed, [batch], "batch")
        seeds = noise.seeds_of(self.seed, numbers.tolist(), "noise")
        return noise.quantize(self.noise(stego.float(), seed, seeds), 16)

    def round_trip(self, cover, secret, numbers, batch):
        """cover, secret [B, T] -> stego, cover^, secret^ [B, T], r."""
        stego, r = self.model(cover, secret)
        stego = noise.quantize(stego, 16)
        changed, z = self.change(stego, numbers, batch), torch.zeros_like(stego)
        return stego, *self.model.inverse(changed, z, self.model.config.robust), r

    def forward(self, cover, secret, numbers, batch, weights):
        """cover, secret [B, T]; the pairs' numbers [B]; the batch's number in the run, the same in
        all processes; the losses' weights -> terms of the loss, scores [2], waves."""
        with self.amp():
            stego, cover_, secret_, r = self.round_trip(cover, secret, numbers, batch)
        waves = {"cover": cover, "secret": secret, "stego": stego,
                 "cover^": cover_, "secret^": secret_}
        with torch.no_grad():
            scores = torch.stack([snr(cover, stego).mean(), snr(secret, secret_).mean()])
        return loss_terms(waves, r, weights, self.snr_ceiling, self.wavlm), scores, waves

    @torch.no_grad()
    def validate(self, loader, device, model):
        """Sums of the scores over all pairs of `loader`, rounded to files and under the noise, and
        their number [3]; waves [T] of the first pair."""
        totals, shown = torch.zeros(3), {}
        trained, self.model = self.model, model.eval()
        for batch, pair in enumerate(loader):
            cover, secret = pair.cover.to(device), pair.secret.to(device)
            stego, _, secret_, _ = self.round_trip(cover, secret, pair.number, batch)
            secret_ = noise.quantize(secret_, 16)
            scores = [snr(cover, stego).sum(), snr(secret, secret_).sum()]
            totals += torch.tensor([*scores, len(cover)])
            shown = shown or {"cover": cover[0], "stego": stego[0],
                              "secret": secret[0], "revealed secret": secret_[0]}
        self.model = trained.train()
        return totals, shown


class LappedObjective(Objective):
    """The same for dirty-paper coding, in float32: the cells' width is varied, and rounding to a
    file, which has no gradient, is replaced by noise of the spectrum that it will have."""

    @torch.no_grad()
    def initialise(self, pairs):
        """The long-term level of each band, and cells that begin by following it."""
        model, secrets = self.model, sample(pairs, 256)
        *_, gain = model.cells(model.fit(secrets, secrets, 0.0, rounds=0))
        x = wavinwav.lapped(wavinwav.FULL_SCALE * secrets, model.config.bands)
        power = (gain[:, 0] * x[:, :model.config.carriers]).square().mean((0, 2))
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
