"""Train the lattice's coder on speech, by maximum likelihood, on secrets alone.

    python -m lattice.train --data_dir DIR              # 26 minutes of one core
    python -m lattice.train --data_dir DIR --resume     # go on with a stopped run

OUT_DIR gets last.pt (everything that --resume needs), best.pt (the model with the fewest bits in
validation; lattice.load reads both), metrics.csv and metrics.png.

Shapes: B pairs of a batch, T samples, N crops.
"""

import files.start  # noqa: F401

# isort: split
import math
import os
import sys
from dataclasses import asdict, dataclass
from typing import Literal

import torch
from torch import nn
from tqdm import tqdm

import wavinwav
from files import checkpoint
from files.command import noting_signals, tell
from lattice import lattice
from training import data, noise
from training.flags import Common, check, read
from training.processes import run, stop
from training.record import Record, claim, refuse_another_run

FULL_SCALE = 32768  # of 16-bit PCM
PRESETS = {"lattice": dict(crop=2.0, gain=0.0)}


@dataclass
class Flags(Common):
    # training
    preset: Literal["lattice"] = "lattice"  # the only one
    init_from: str = ""  # start from the coder in this model file
    growth: int = 16  # hidden units of each of the networks that predict scales
    steps: int = 4000  # optimiser steps in all; a finished run can be resumed with more
    batch_size: int = 4  # pairs in a batch
    lr: float = 3e-3  # peak learning rate of Adam, which falls to zero as a cosine
    warmup: int = 50  # steps in which it rises from zero
    clip: float = 1.0  # norm to which a larger gradient is scaled down
    seed: int = 0  # of the weights and the data
    device: str = "cpu"  # cpu, cuda, cuda:1, ...


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


def bits(model, pair, seed):
    """The loss of a batch: bits a sample that the coder takes for both sides of its pairs."""
    device = model.quantiser.level.device
    secrets = FULL_SCALE * torch.cat([pair.cover, pair.secret]).to(device)
    seeds = noise.seeds_of(seed, pair.number.tolist(), "settings")
    uniform = noise.draw_items(torch.rand, seeds, (2, 2), device)  # [B, side, setting]
    step, shaping = draw_steps(secrets, *uniform.transpose(0, 1).flatten(0, 1).unbind(1))
    return model.quantiser(secrets, step, shaping).mean()


@torch.no_grad()
def validate(model, val_set, crops):
    """Count the coder's tables on crops [N, T], on the CPU, where the coder runs. -> bits a sample
    of the validation set, the mean over four settings."""
    device, found = model.quantiser.level.device, []
    model.cpu().measure(table_settings(crops))
    for pair in val_set:
        secrets = FULL_SCALE * torch.cat([pair.cover, pair.secret])
        coefficients = model.analyse(secrets, model.config.bands)
        for step, shaping in ((64, 0), (192, 0), (320, 100), (384, 200)):
            classes, integers, _ = model.quantiser.quantise(coefficients, step, shaping)
            found.append(model.coder.cost(classes, integers).mean().item())
    model.to(device)
    return sum(found) / len(found)


def main(argv=None):
    flags, given, resumed, error = read(Flags, PRESETS, __doc__, argv)
    check(flags, given, [("growth", not flags.init_from, "no --init_from")], error)
    last_path, best_path = (os.path.join(flags.out_dir, name) for name in ("last.pt", "best.pt"))
    state = resumed["training"] if resumed else dict(step=0, used=0, best=math.inf, loss=0.0)
    if state["step"] >= flags.steps:
        return tell(f"{last_path} has all its {flags.steps} steps: give --steps with more",
                    sys.stdout)
    if not resumed:
        refuse_another_run(flags.out_dir)
    torch.manual_seed(flags.seed)
    try:
        model = (lattice.load(flags.init_from) if flags.init_from else
                 lattice.Lattice(lattice.LatticeConfig(growth=flags.growth)))
        rate, hop = model.config.sample_rate, model.config.bands
        samples = max(1, round(flags.crop * rate / hop)) * hop
        train_pairs, val_pairs, about = data.open_data(flags, rate, samples)
        count = math.ceil(flags.val_pairs / flags.batch_size)
        val_set = list(data.batches(val_pairs, flags.batch_size, 0, count, workers=0))
        crops = data.sample(train_pairs, 256)
    except (ValueError, RuntimeError, OSError, data.DataError) as fault:
        stop(" ".join(str(fault).split()))
    if resumed:
        model.load_state_dict(resumed["state_dict"])
    elif not flags.init_from:  # the long-term level of each band, known before the first frame
        level = wavinwav.lapped(crops, hop).square().mean((0, 2)).sqrt().clamp_min(1e-6)
        model.quantiser.level.copy_((8 * torch.log2(FULL_SCALE * level)).floor())
    model.train().to(flags.device)
    optimiser = torch.optim.Adam(model.parameters(), flags.lr, betas=(0.9, 0.99))
    if resumed:
        optimiser.load_state_dict(state["optimiser"])
    claim(flags.out_dir)
    record = Record(flags.out_dir, ["step", "loss", "lr", "val_bits"], state["step"],
                    flags.tensorboard)
    tell(f"lattice: {sum(p.numel() for p in model.parameters()):,} parameters to train, {about}, "
         f"steps {state['step']} to {flags.steps}, in {flags.out_dir}", sys.stdout)
    loader = data.batches(train_pairs, flags.batch_size, state["used"],
                          flags.steps - state["step"], flags.workers)

    def save():
        checkpoint.save(model, last_path, training=state | dict(
            flags=asdict(flags), optimiser=optimiser.state_dict()))

    with noting_signals() as signals:
        for step in tqdm(range(state["step"], flags.steps), initial=state["step"],
                         total=flags.steps, disable=flags.no_progress):
            try:
                pair, lost = next(loader), ""
            except (data.DataError, RuntimeError, OSError) as fault:
                lost = data.summary(fault)
            if lost or signals:
                save()
                tell(f"{lost or 'stopped'}; {last_path} is of step {step}, go on with --resume",
                     sys.stderr)
                sys.exit(1 if lost else 128 + signals[0])
            done = (step - flags.warmup) / max(1, flags.steps - flags.warmup)
            lr = flags.lr * min((step + 1) / max(1, flags.warmup),
                                0.5 * (1 + math.cos(math.pi * max(0.0, done))))
            optimiser.param_groups[0]["lr"] = lr
            optimiser.zero_grad()
            loss = bits(model, pair, flags.seed)
            loss.backward()
            if nn.utils.clip_grad_norm_(model.parameters(), flags.clip).isfinite():
                optimiser.step()
            state |= dict(step=step + 1, used=pair.number[-1].item() + 1,
                          loss=state["loss"] + loss.item() / flags.log_every)
            if state["step"] % flags.log_every == 0 or state["step"] == flags.steps:
                row = dict(step=state["step"], loss=state["loss"], lr=lr)
                state["loss"] = 0.0
                if row["step"] % flags.val_every == 0 or row["step"] == flags.steps:
                    row["val_bits"] = validate(model, val_set, crops)
                    if row["val_bits"] < state["best"]:
                        state["best"] = row["val_bits"]
                        checkpoint.save(model, best_path)
                record.row(row)
            if state["step"] % flags.save_every == 0 or state["step"] == flags.steps:
                save()
    record.finish()
    tell(f"done: {best_path} is the best model, {state['best']:.3f} bits a sample in validation",
         sys.stdout)


if __name__ == "__main__":
    run(main)
