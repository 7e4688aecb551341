"""Train WavInWav on speech.

    python train.py --data_dir DIR                                  # a laptop, 15 minutes
    python train.py --data_dir DIR --resume                         # go on with a stopped run
    python train.py --hf_dataset parler-tts/mls_eng_10k --hf_val_split dev
    python train.py --data_dir DIR --preset paper                   # the paper's network and losses
    python train.py --data_dir DIR --preset bands                   # its blocks, where they learn
    python train.py --data_dir DIR --init_from MODEL --adversarial  # start from a model's weights
    python train.py --data_dir DIR --preset paper --robust_from MODEL --noise gaussian,resample:3/4
    torchrun --nproc_per_node 8 train.py --data_dir DIR             # one process a GPU

DIR is searched for everything that soundfile reads (wav, flac, ogg, mp3, ...), at any rate and
channel count. OUT_DIR gets last.pt (everything that --resume needs), best.pt (the model with the
best validation; wavinwav.load reads both), metrics.csv and metrics.png.

The loss is W_STEGO L(cover, stego) + W_COVER L(cover, cover^) + W_SECRET L(secret, secret^)
+ W_Z NLL(r), with L = WAVE * L1 + STFT * multi-resolution STFT - SNR * dB + WAVLM_WEIGHT * WavLM.

A pair of crops and its random numbers depend on --seed and the pair's number alone, so a run that
is killed and resumed ends as it would have without, however many processes share a batch.
"""

import files.start  # noqa: F401

# isort: split
import contextlib
import copy
import itertools
import math
import os
import sys
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Literal

import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

import robust
import wavinwav
from discriminator import Adversary
from files import checkpoint
from files.command import noting_signals, tell
from training import data, processes
from training.flags import Common, read, useful
from training.losses import LappedObjective, Objective, recompute, term_names, weigh
from training.processes import RANK, WORLD, run, set_up, stop, sum_of_all
from training.record import Record, stop_if_broken
from wavlm_loss import WavLMLoss


@dataclass
class Flags(Common):
    """Flags beside those of training/flags.py. None: as the preset's network has it."""

    # network
    preset: Literal["lapped", "robust", "paper", "bands"] = "lapped"  # gives other defaults
    init_from: str = ""  # start from the network and the weights in this model file
    robust_from: str = ""  # the paper's robust stage: hide as the model in this file, and train a
    #                        copy of it to reveal under --noise
    sample_rate: int = None  # Hz, to which all audio is resampled
    bands: int = None  # bands of the lapped transform; 1 in the paper, where they are samples
    carriers: int = None  # the lowest bands, which carry the secret
    blocks: int = None  # affine couplings in the stack
    growth: int = None  # channels that each inner conv of a subnet adds
    kernel: int = None  # taps of these convs
    clamp: float = None  # bound of the log-scale
    stego_snr: float = None  # dB, unless hide is asked for another; training varies it by 6
    first: int = None  # lowest band of the cover that carries anything
    levels: int = None  # bands of the cover that carry levels of what is above the carriers
    margin: float = None  # LSB that are left empty at both edges of a cell
    reserve: float = None  # share of a cell's width that is left empty there too, for noise

    # losses
    w_stego: float = 1.0  # weight of stego against cover
    w_stego_end: float = 0.0  # w_stego rises to this over the first half of the run; 0: it stays
    w_cover: float = 0.0  # weight of the recovered cover against the cover
    w_secret: float = 1.0  # weight of the recovered secret against the secret
    w_z: float = 0.0  # weight of the standard-normal negative log-likelihood of r
    wave: float = 0.0  # weight of the mean absolute difference of the waveforms
    stft: float = 5.0  # weight of the multi-resolution STFT distance
    stft_from: float = 0.0  # share of the run after which it starts to rise to that, from 0; it
    #                         arrives 0.4 later; 0: it has this weight from the start
    snr: float = 1.0  # weight of the signal-to-noise ratio in dB
    snr_ceiling: float = 80.0  # dB at which it saturates
    wavlm_weight: float = 0.0  # weight of the distance between WavLM's hidden states
    wavlm_source: str = "bshall/knn-vc"  # torch.hub repository, folder with a hubconf.py, or
    #                                      torchaudio/WAVLM_BASE_PLUS
    wavlm_distance: Literal["l1", "l2", "cosine"] = "l1"  # between hidden states

    # adversary
    adversarial: bool = False  # train a multi-scale STFT discriminator, and mislead it
    adv_weight: float = 1.0  # weight of the generator's hinge loss
    feat_weight: float = 2.0  # weight of feature matching
    disc_start: int = 0  # steps before the discriminator starts
    disc_lr: float = 1e-4  # learning rate of its Adam

    # noise
    noise: str = ""  # kinds of noise between hide and reveal, of which each batch gets one, with a
    #                  strength or a range of strengths: gaussian:20:50,resample:3/4,identity; list
    #                  a kind twice to double its probability; the others are speckle, lowpass,
    #                  quantize, dropout and gain (units and usual strengths: training/noise.py)

    # machine
    amp: Literal["auto", "fp32", "bf16", "fp16"] = "auto"  # precision of the subnets in training;
    #                                        auto: bf16 or else fp16 on CUDA, fp32 elsewhere
    recompute: bool = None  # compute activations again: far less memory, a third more time


NETWORKS = {"lapped": wavinwav.Config.lapped, "paper": wavinwav.Config.paper,
            "bands": partial(wavinwav.Config.paper, blocks=6, growth=48, kernel=3, bands=32),
            "robust": robust.RobustConfig}
PRESETS = {
    "lapped": {},
    "robust": dict(stft=0.0, lr=6e-3, noise="gaussian:36:50"),
    "paper": dict(
        gain=0.0, w_stego=2.0, w_cover=1.0, w_z=10.0, wave=1.0, stft=1.0, snr=0.0, snr_ceiling=40.0,
        steps=570000, batch_size=4, lr=1e-4, schedule="decay", warmup=0, clip=1.0, recompute=True),
    "bands": dict(
        crop=0.32, gain=10.0, tilt=12.0, w_stego=2.0, w_stego_end=12.0, w_secret=5.0, wave=1.0,
        stft=0.026, stft_from=0.1, snr=0.0, snr_ceiling=40.0, steps=11000, batch_size=4, lr=1.5e-3,
        clip=1.0, spike=5.0, average=0.999),
}
DEFAULTS = {preset: asdict(NETWORKS[preset]()) | PRESETS[preset] for preset in PRESETS}
LONGEST_WINDOW = 2048  # samples, of the STFTs; that of the losses is half reflected at both ends


def learning_rate(step, flags):
    """The rate of step 0, 1, ..., steps - 1."""
    if step < flags.warmup:
        return flags.lr * (step + 1) / flags.warmup
    done = (step - flags.warmup) / max(1, flags.steps - flags.warmup)
    if flags.schedule == "cosine":
        return flags.lr * 0.5 * (1 + math.cos(math.pi * done))
    return flags.lr * 0.1 ** int(4 * done)


def make_model(flags, resumed):
    """The network before the first step, or as it was in the checkpoint that is resumed."""
    source = flags.robust_from or flags.init_from
    if resumed:
        model = wavinwav.build(resumed["config"])
        model.load_state_dict(resumed["state_dict"])
    elif source:
        checkpoint.read(source)
        model = wavinwav.load(source)
        if model.config.preset != NETWORKS[flags.preset]().preset:
            stop(f"{source} holds a model of preset {model.config.preset}; give --preset "
                 f"{model.config.preset}")
        if flags.robust_from and not model.config.robust:
            state = model.state_dict()
            model = wavinwav.build(replace(model.config, robust=True))
            model.load_state_dict(state | {f"robust_{name}": x for name, x in state.items()
                                           if name.startswith("blocks.")})
    else:
        config = NETWORKS[flags.preset]()
        chosen = vars(flags).keys() & asdict(config).keys() - {"preset"}
        model = wavinwav.build(replace(config, **{name: vars(flags)[name] for name in chosen}))
    for name, parameter in model.named_parameters():  # the robust stage hides as before
        parameter.requires_grad_(name.startswith("robust_") or not hasattr(model, "robust_blocks"))
    return model.train()


def main(argv=None):
    flags, resumed, error = read(Flags, DEFAULTS, __doc__, argv, useful)
    if not term_names(weigh(flags)) and not flags.adversarial:
        error("every loss has the weight 0")
    device, precision, amp = set_up(flags.device, flags.amp)
    torch.manual_seed(flags.seed)
    with processes.faults_in_one_line():
        model = make_model(flags, resumed)
        least = LONGEST_WINDOW if flags.adversarial else LONGEST_WINDOW // 2 + 1
        opened = data.open_data(flags, model.config, least)
        wavlm = adversary = None
        if flags.wavlm_weight:
            with processes.first_process_first():  # it downloads the weights for the others
                wavlm = WavLMLoss(flags.wavlm_source, None, flags.wavlm_distance,
                                  model.config.sample_rate, device)
        objective = (LappedObjective if isinstance(model, wavinwav.LappedINN) else Objective)(
            model, flags.seed, amp, flags.noise, wavlm, flags.snr_ceiling)
        if not (resumed or flags.init_from or flags.robust_from):
            objective.initialise(opened[0])
        if flags.recompute:
            recompute(model)
        if flags.adversarial:
            adversary = Adversary(flags.disc_lr, flags.clip, device, amp, precision == "fp16")
    fit(flags, resumed, objective, opened, device, precision, term_names(weigh(flags)),
        partial(weigh, flags), adversary)


def fit(flags, resumed, objective, opened, device, precision="fp32", terms=(), weigh=None,
        adversary=None, sign=1):
    """Train, from the beginning or from where a run was stopped.

    flags, resumed: from `read`
    objective: a module as losses.Objective: `model`, `scores`, `forward` and `validate`
    opened: from `data.open_data`
    terms: names of the terms of the loss that get columns in metrics.csv
    weigh: function of the share of the run that is done, to the weights that `forward` gets
    sign: -1 for scores of which lower ones are better
    """
    pairs, val_set, about = opened
    last_path, best_path = (os.path.join(flags.out_dir, name) for name in ("last.pt", "best.pt"))
    state = resumed["training"] if resumed else dict(
        step=0, used=[0], best=-math.inf, unusable=0, reason="")
    first_step, best, model = state["step"], state["best"], objective.to(device).model
    if first_step >= flags.steps:
        if RANK == 0:
            tell(f"{last_path} has all its {flags.steps} steps: give --steps with more")
        return
    trained = [p for p in model.parameters() if p.requires_grad]
    parallel = objective
    if WORLD > 1:  # robust: the last phi on the way back changes nothing but cover^
        parallel = DistributedDataParallel(objective, broadcast_buffers=False,
                                           find_unused_parameters=hasattr(model, "robust_blocks"))
    optimiser = torch.optim.Adam(trained, flags.lr, betas=(0.9, 0.99), fused=True)
    scaler = torch.amp.GradScaler(device.type, enabled=precision == "fp16")

    # the state of the run
    averaged = copy.deepcopy(model) if flags.average else model
    against_names = ["disc_loss", "adv_loss", "feat_loss"] if adversary else []
    measured = ["loss", *(f"loss_{name}" for name in terms), *objective.scores, *against_names,
                "grad_norm"]
    window = torch.zeros(len(measured) + 1, device=device)  # sums since the last row, and steps
    skipped = torch.zeros(3, device=device)  # steps: in all, just now; the usual gradient norm
    used, unusable, reason = max(state["used"]), state["unusable"] * (RANK == 0), state["reason"]
    parts = dict(optimiser=optimiser, scaler=scaler, adversary=adversary,
                 averaged=averaged if flags.average else None)
    if resumed:
        for name, part in parts.items():
            if part:
                part.load_state_dict(state[name])
        window, skipped = state["window"].to(device), state["skipped"].to(device)
        if isinstance(pairs, data.HubPairs) and len(state["used"]) == WORLD:
            used = state["used"][RANK]
    if RANK == 0:
        record = Record(flags.out_dir, ["step", *measured, "lr", "skipped", "unusable",
                                        *(f"val_{name}" for name in objective.scores)],
                        first_step, flags.tensorboard)
        tell(f"{flags.preset}: {sum(p.numel() for p in trained):,} parameters to train, "
             f"{about}, {WORLD} x {device}, {precision}, steps {first_step} to {flags.steps}, "
             f"in {flags.out_dir}")

    def save(step):
        sums = sum_of_all(window.clone()).cpu() / WORLD
        places = torch.zeros(WORLD + 1, dtype=torch.long)
        places[RANK], places[-1] = used, unusable
        *places, bad = sum_of_all(places).tolist()
        if RANK == 0:
            checkpoint.save(model, last_path, training=dict(
                flags=asdict(flags), step=step, used=places, best=best, unusable=bad,
                reason=reason, skipped=skipped.cpu(), window=sums,
                **{name: part and part.state_dict() for name, part in parts.items()}))
        if WORLD > 1:  # else another process might end first, and torchrun then kills this one
            distributed.barrier()

    remaining = (flags.steps - first_step) * flags.accumulate
    loader = data.batches(pairs, flags.batch_size, used, remaining, flags.workers)
    bar = tqdm(total=flags.steps, initial=first_step, dynamic_ncols=True,
               disable=flags.no_progress or RANK > 0)
    with noting_signals() as signals:
        for step in range(first_step, flags.steps):
            try:
                batches, lost = list(itertools.islice(loader, flags.accumulate)), ""
            except (RuntimeError, OSError) as error:
                lost = data.summary(error)
            # One process may get a signal or lose its data before the others: all end together.
            code = torch.tensor(max([int(lost != ""), *(128 + number for number in signals)]))
            if code := sum_of_all(code, distributed.ReduceOp.MAX).item():
                save(step)
                bar.close()
                if RANK == 0 or lost:
                    tell(f"{lost or 'stopped'}; {last_path} is of step {step}, go on with "
                         "--resume", sys.stderr)
                sys.exit(code)

            # Nothing here waits for the device, until there is a row to write.
            lr, weights = learning_rate(step, flags), weigh and weigh(step / flags.steps)
            for group in optimiser.param_groups:
                group["lr"] = lr
            optimiser.zero_grad()
            sums = torch.zeros(len(measured) - 1, device=device)
            for micro, pair in enumerate(batches):
                cover, secret = (x.to(device, non_blocking=True) for x in pair[:2])
                last = WORLD == 1 or micro == flags.accumulate - 1  # then gradients are shared
                with contextlib.nullcontext() if last else parallel.no_sync():
                    batch = step * flags.accumulate + micro
                    losses, scores, waves = parallel(cover, secret, pair.number, batch, weights)
                    loss = sum(losses.values())
                    against = [torch.zeros((), device=device)] * len(against_names)
                    if adversary and step >= flags.disc_start:
                        against = [adversary.learn(waves), *adversary.judge(waves)]
                        loss = loss + flags.adv_weight * against[1] + flags.feat_weight * against[2]
                    scaler.scale(loss / flags.accumulate).backward()
                with torch.no_grad():
                    sums += torch.stack([loss, *map(losses.get, terms), *scores, *against])
                used, unusable = pair.number[-1].item() + 1, unusable + sum(pair.unusable).item()
                reason = reason or max(pair.reason)
            scaler.unscale_(optimiser)
            norm = nn.utils.clip_grad_norm_(trained, flags.clip)
            total, in_a_row, usual = skipped
            broken = ~norm.isfinite()
            if flags.spike:
                broken = broken | (norm > flags.spike * usual) & (usual > 0)
            optimiser.found_inf = broken.float()  # fused Adam skips the step where this is 1
            scaler.step(optimiser)
            scaler.update()
            if flags.average:
                share = 1 - min(flags.average, (step + 1) / (step + 10))
                with torch.no_grad():
                    torch._foreach_lerp_([*averaged.parameters()], [*model.parameters()], share)
            usual = torch.where(broken, usual, usual + (norm - usual) * max(0.02, 1 / (step + 1)))
            skipped = torch.stack([total + broken, (in_a_row + 1) * broken, usual])
            sums = torch.cat([sums / flags.accumulate, torch.stack([norm, torch.ones_like(norm)])])
            window += torch.where(broken, 0, sums)
            done = step + 1
            bar.update()

            if done % flags.log_every == 0 or done == flags.steps:
                sums = sum_of_all(window)
                means = (sums[:-1] / sums[-1]).tolist()
                window.zero_()
                total, in_a_row, _ = skipped.tolist()
                stop_if_broken(done, means[0], in_a_row)
                bad = sum_of_all(torch.tensor(unusable)).item()
                row = dict(zip(measured, means), step=done, lr=lr, skipped=total, unusable=bad)
                if done % flags.val_every == 0 or done == flags.steps:
                    totals, sounds = objective.validate(val_set, device, averaged)
                    *totals, count = sum_of_all(totals).tolist()
                    row |= {f"val_{name}": total / count
                            for name, total in zip(objective.scores, totals)}
                    if sign * sum(totals) / count > best:
                        best = sign * sum(totals) / count
                        if RANK == 0:
                            checkpoint.save(averaged, best_path)
                    if RANK == 0:
                        record.sounds(done, sounds, model.config.sample_rate)
                if RANK == 0:
                    record.row(row)
                    bar.set_postfix_str(", ".join(f"{name} {row[name]:.1f}"
                                                  for name in objective.scores))
            if done % flags.save_every == 0 or done == flags.steps:
                save(done)
    bar.close()
    if best == -math.inf:
        stop(f"no validation gave a finite score, so there is no {best_path}: try a lower --lr")
    if RANK == 0:
        record.finish()
        if bad:
            tell(f"{bad} files or items could not be used, the first: {reason}", sys.stderr)
        last = ", ".join(f"val_{name} {row[f'val_{name}']:.2f}" for name in objective.scores)
        tell(f"done: {best_path} is the best model; the last validation: {last}")
    if WORLD > 1:
        distributed.destroy_process_group()


if __name__ == "__main__":
    run(main)
