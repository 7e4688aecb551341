"""Train the lattice's coder on speech, by maximum likelihood, on secrets alone.

    python -m lattice.train --data_dir DIR              # 26 minutes of one core
    python -m lattice.train --data_dir DIR --resume     # go on with a stopped run

OUT_DIR gets the files that train.py writes; best.pt has the fewest bits in validation. lattice.load
reads it, and last.pt.

Shapes: B pairs of a batch, T samples, N crops.
"""

import files.start  # noqa: F401

# isort: split
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

import train
import wavinwav
from lattice import lattice
from training import data, noise
from training.flags import Common, read
from training.processes import faults_in_one_line, run, set_up

FULL_SCALE = 32768  # of 16-bit PCM
PRESETS = {"lattice": dict(gain=0.0, steps=4000, batch_size=4, lr=3e-3, clip=1.0, device="cpu")}


@dataclass
class Flags(Common):
    # network
    preset: Literal["lattice"] = "lattice"  # the only one
    init_from: str = ""  # start from the coder in this model file
    growth: int = 16  # hidden units of each of the networks that predict scales


def draw_steps(secrets, uniform_step, uniform_shaping):
    """Settings for secrets [N, T] in PCM units, from uniform numbers [N]: steps 10 to 65 dB below
    their levels, and how far these follow the signal; integers [N] each, as Quantiser.forward
    takes them."""
    level = 0.5 * torch.log2(secrets.square().mean(1))
    shaping = (256 * (1.4 * uniform_shaping - 0.4).clamp_min(0)).long()  # a third has none
    step = 64 * (level - (10 + 55 * uniform_step) / 6.02) - 0.75 * shaping
    return step.long(), shaping


def table_settings(crops, batches=8):
    """Crops [N, T] to count the coder's tables on, in `batches` parts: (secrets, step, shaping) of
    each, under common steps of 1 to 500."""
    generator = torch.Generator().manual_seed(0)
    settings = []
    for n, secrets in enumerate(crops.chunk(batches)):
        shaping = int(256 * torch.rand(1, generator=generator)) * (n % 3 > 0)
        settings.append((FULL_SCALE * secrets, int(64 * 9 * (n + 0.5) / batches), shaping))
    return settings


class Objective(nn.Module):
    """Bits a sample that the coder takes for both sides of pairs; the interface is that of
    losses.Objective. Its tables are counted on crops [N, T]."""

    scores = ["bits"]

    def __init__(self, model, seed, crops):
        super().__init__()
        self.model, self.seed, self.crops = model, seed, crops

    def forward(self, cover, secret, numbers, batch, weights):
        secrets = FULL_SCALE * torch.cat([cover, secret])
        seeds = noise.seeds_of(self.seed, numbers.tolist(), "settings")
        uniform = noise.draw_items(torch.rand, seeds, (2, 2), cover.device)  # [B, side, setting]
        step, shaping = draw_steps(secrets, *uniform.transpose(0, 1).flatten(0, 1).unbind(1))
        loss = self.model.quantiser(secrets, step, shaping).mean()
        return {"bits": loss}, [loss], {}

    @torch.no_grad()
    def validate(self, loader, device, model):
        """Counts the tables first, on the CPU, where the coder runs. -> sum of the bits over
        batches and four settings, and their number [2]; no waves."""
        found = []
        model.cpu().measure(table_settings(self.crops))
        for pair in loader:
            secrets = FULL_SCALE * torch.cat([pair.cover, pair.secret])
            coefficients = model.analyse(secrets, model.config.bands)
            for step, shaping in ((64, 0), (192, 0), (320, 100), (384, 200)):
                classes, integers, _ = model.quantiser.quantise(coefficients, step, shaping)
                found.append(model.coder.cost(classes, integers).mean().item())
        model.to(device)
        return torch.tensor([sum(found), len(found)]), {}


def main(argv=None):
    flags, resumed, _ = read(Flags, PRESETS, __doc__, argv, lambda flags: [
        ("growth", not flags.init_from, "no --init_from")])
    device, *_ = set_up(flags.device, "fp32")
    torch.manual_seed(flags.seed)
    with faults_in_one_line():
        model = (lattice.load(flags.init_from) if flags.init_from else
                 lattice.Lattice(lattice.LatticeConfig(growth=flags.growth)))
        opened = data.open_data(flags, model.config)
        crops = data.sample(opened[0], 256)
    if resumed:
        model.load_state_dict(resumed["state_dict"])
    elif not flags.init_from:  # the long-term level of each band, known before the first frame
        level = wavinwav.lapped(crops, model.config.bands).square().mean((0, 2)).sqrt()
        model.quantiser.level.copy_((8 * torch.log2(FULL_SCALE * level.clamp_min(1e-6))).floor())
    train.fit(flags, resumed, Objective(model.train(), flags.seed, crops), opened, device, sign=-1)


if __name__ == "__main__":
    run(main)
