"""How the lattice's coder is trained: by maximum likelihood, on secrets alone.

Shapes: B pairs of a batch, T samples, N crops.
"""

import torch
from torch import nn

import wavinwav
from lattice import lattice
from training import noise

FULL_SCALE = 32768  # of 16-bit PCM


def draw_steps(secrets, uniform_step, uniform_shaping):
    """Settings for secrets [N, T] in PCM units, from uniform numbers [N]: steps 10 to 65 dB below
    their levels, and how far these follow the signal; integers [N] each, as Quantiser.forward
    takes them."""
    level = 0.5 * torch.log2(secrets.square().mean(1))
    shaping = (256 * (1.4 * uniform_shaping - 0.4).clamp_min(0)).long()  # a third has none
    step = 64 * (level - (10 + 55 * uniform_step) / 6.02) - 0.75 * shaping
    return step.long(), shaping


def table_settings(crops, batches=8):
    """What the coder's tables are counted on: crops [N, T] in `batches` parts, (secrets, step,
    shaping) of each, under common steps of 1 to 500."""
    generator = torch.Generator().manual_seed(0)
    settings = []
    for n, secrets in enumerate(crops.chunk(batches)):
        shaping = int(256 * torch.rand(1, generator=generator)) * (n % 3 > 0)
        settings.append((FULL_SCALE * secrets, int(64 * 9 * (n + 0.5) / batches), shaping))
    return settings


class LatticeObjective(nn.Module):
    """Bits a sample that a lattice model's coder takes. The interface is objective.Objective's."""

    scores, validation = [], ["val_bits"]
    no_use_for = {"w_stego", "w_cover", "w_secret", "w_z", "wave", "stft", "snr", "snr_ceiling",
                  "wavlm_weight", "adversarial", "noise", "robust_from"}
    build, load = staticmethod(lattice.Lattice), staticmethod(lattice.load)

    def __init__(self, model, args, device, amp):
        super().__init__()
        self.model, self.args, self.crops = model, args, None

    @torch.no_grad()
    def initialise(self, pairs):
        """Measure the long-term level of each band, which is known before the first frame."""
        coefficients = wavinwav.lapped(self.sample(pairs), self.model.config.bands)
        level = coefficients.square().mean((0, 2)).sqrt().clamp_min(1e-6)
        self.model.quantiser.level.copy_((8 * torch.log2(FULL_SCALE * level)).floor())

    def sample(self, pairs):
        if self.crops is None:
            self.crops = pairs.sample(256)
        return self.crops

    def trainable(self):
        return dict(self.model.named_parameters())

    def forward(self, cover, secret, numbers, batch):
        """-> loss, scores [0], no waves."""
        secrets = FULL_SCALE * torch.cat([cover, secret])  # both are secrets; no cover is needed
        seeds = noise.seeds_of(self.args.seed, numbers.tolist(), "settings")
        uniform = noise.draw_items(torch.rand, seeds, (2, 2), secrets.device)  # [B, side, setting]
        step, shaping = draw_steps(secrets, *uniform.transpose(0, 1).flatten(0, 1).unbind(1))
        return self.model(secrets, step, shaping).mean(), secrets.new_zeros(0), {}

    @torch.no_grad()
    def before_validation(self, pairs):
        """Count the coder's tables. The coder runs on the CPU."""
        device = self.model.quantiser.level.device
        self.model.cpu().measure(table_settings(self.sample(pairs)))
        self.model.to(device)

    @torch.no_grad()
    def validate(self, loader, device):
        """Bits a sample of fixed crops, the sum over crops of the mean over four settings, and the
        number of crops."""
        totals = torch.zeros(2)
        self.model.cpu()
        for cover, secret, _ in loader:
            secrets = FULL_SCALE * torch.cat([cover, secret])
            coefficients = self.model.analyse(secrets, self.model.config.bands)
            for step, shaping in ((64, 0), (192, 0), (320, 100), (384, 200)):
                classes, integers, _ = self.model.quantiser.quantise(coefficients, step, shaping)
                bits = self.model.coder.cost(classes, integers).mean().item()
                totals += torch.tensor([bits * len(secrets), len(secrets)])
        self.model.to(device)
        return totals

    def goodness(self, values):
        return -values[0]

    def shown(self, values):
        return f"{values[0]:.3f} bits a sample"
