"""Train WavInWav on a folder of speech.

    python train.py --data_dir DIR                                  # a laptop, 15 minutes
    python train.py --data_dir DIR --out_dir runs/lapped --resume   # go on with a stopped run
    python train.py --data_dir DIR --preset lattice                 # the lattice's coder, minutes
    python train.py --data_dir DIR --preset paper                   # the paper's network and losses
    python train.py --data_dir DIR --preset bands                   # its blocks, where they learn
    python train.py --data_dir DIR --init_from MODEL --adversarial  # start from a model's weights
    python train.py --data_dir DIR --preset paper --robust_from MODEL --noise gaussian,resample:3/4
    torchrun --nproc_per_node 8 train.py --data_dir DIR             # one process a GPU

DIR is searched for all that soundfile reads (wav, flac, ogg, mp3, ...), at any rate and channel
count. OUT_DIR gets last.pt (everything --resume needs), best.pt (the model that did best in
validation; both are files that wavinwav.load or lattice.load reads) and metrics.csv.

A pair of crops and its random numbers depend on --seed and the pair's number alone, so a run that
is killed and resumed ends as it would have without, and it does not matter how many processes share
a batch.

Shapes: B pairs of this process's batch, T samples.
"""

import argparse
import collections
import contextlib
import csv
import functools
import math
import os
import re
import sys
from dataclasses import fields, replace

import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from discriminator import Adversary
from files import checkpoint
from files.command import Parser, on_ending_signals, settle_streams, tell
from lattice.lattice import LatticeConfig
from lattice.train import LatticeObjective
from training import data, noise, run_folder
from training.data import RANK, WORLD, stop
from training.losses import LappedObjective, Objective
from wavinwav import Config

PRESETS = {  # configuration, objective, and values for flags that have no other default
    "lapped": (Config.lapped, LappedObjective, dict(
        steps=1500, batch_size=6, lr=4e-3, schedule="cosine", warmup=50, clip=5.0, gain=6.0,
        recompute=False, w_stego=1.0, w_cover=0.0, w_secret=1.0, w_z=0.0, wave=0.0, stft=5.0,
        snr=1.0, snr_ceiling=80.0)),
    "paper": (Config.paper, Objective, dict(
        steps=570000, batch_size=4, lr=1e-4, schedule="decay", warmup=0, clip=1.0, gain=0.0,
        recompute=True, w_stego=2.0, w_cover=1.0, w_secret=1.0, w_z=10.0, wave=1.0, stft=1.0,
        snr=0.0, snr_ceiling=40.0)),
    "bands": (functools.partial(Config.paper, blocks=6, growth=48, kernel=3, bands=32), Objective,
              dict(
        steps=2000, batch_size=4, crop=0.32, lr=1.5e-3, schedule="cosine", warmup=50, clip=1.0,
        gain=0.0, recompute=False, w_stego=2.0, w_cover=0.0, w_secret=5.0, w_z=0.0, wave=1.0,
        stft=0.0, snr=0.0, snr_ceiling=40.0)),
    "lattice": (LatticeConfig, LatticeObjective, dict(
        steps=4000, batch_size=4, lr=3e-3, schedule="cosine", warmup=50, clip=1.0, gain=0.0)),
}
MODEL_FLAGS = {  # fields of Config, where their metadata has no help
    "sample_rate": "rate in Hz that all audio is brought to",
    "bands": "bands of the lapped transform; 1 in the paper, where they are samples",
    "carriers": "of these, the lowest ones carry the same of the secret",
    "blocks": "affine couplings in the stack",
    "growth": "channels that each inner conv of a subnet adds",
    "kernel": "taps of these convs",
    "clamp": "bound of the log-scale",
    "stego_snr": "dB, of a stego unless another is asked for; training varies it by 6",
    "margin": "LSB that are left empty at both edges of a cell",
    "reserve": "of a cell's usual width, left empty there too, for noise",
}
LONGEST_WINDOW = 2048  # samples, of the STFTs; the losses' is half reflected at both ends


def model_flags(preset):
    """Flags of a preset's network, which are fields of its configuration, and their help."""
    texts = {field.name: field.metadata.get("help") or MODEL_FLAGS.get(field.name)
             for field in fields(PRESETS[preset][0]()) if field.type in (int, float)}
    return {name: text for name, text in texts.items() if text}


def parse_arguments(argv=None):
    """-> all flags, and those that were given."""
    first = Parser(add_help=False, allow_abbrev=False)
    first.add_argument("--preset", default="lapped", choices=list(PRESETS))
    preset = first.parse_known_args(argv)[0].preset
    config, objective, defaults = PRESETS[preset]
    defaults = dict(defaults, preset=preset)
    parser = Parser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
        usage="%(prog)s --data_dir DIR [flags]; --help has them, with the defaults of --preset",
        allow_abbrev=False, argument_default=argparse.SUPPRESS)

    def section(title, text=None):
        group = parser.add_argument_group(title, text)

        def flag(name, kind, text, default=None, **more):
            """A flag with the preset's default, or this one."""
            default = defaults.setdefault(name, default)
            if default is not None and kind is not bool:
                text += f" (default: {default if kind is str else format(default, 'g')})"
            if name in objective.no_use_for:
                text = argparse.SUPPRESS
            if kind is bool:
                more = dict(action="store_true") | more
            else:
                more["type"] = kind
            group.add_argument(f"--{name}", help=text, **more)
        return flag

    flag = section("data")
    flag("data_dir", str, "folder of speech, searched with all its subfolders", metavar="DIR")
    flag("hf_dataset", str, "instead, a dataset on the Hugging Face hub, or a folder that its "
         "`datasets` library reads; it is streamed, and a run that goes on skips what it has used",
         metavar="NAME")
    flag("hf_config", str, "which of that dataset's configurations", metavar="NAME")
    flag("hf_split", str, "and which of its splits", "train", metavar="NAME")
    flag("hf_column", str, "and which of its columns", "audio", metavar="NAME")
    flag("val_dir", str, "folder to validate on (default: 5 percent of the files of --data_dir, at "
         "least 2; or the first items of --hf_dataset)", metavar="DIR")
    flag("crop", float, "length of a training crop in seconds", 2.0)
    flag("gain", float, "each crop's level is changed by up to this many dB, up or down")
    flag("val_pairs", int, "pairs in the fixed validation set, each of one crop's length", 64)
    flag("workers", int, "processes that load data; 0 loads in the training process", 1)

    flag = section("network")
    flag("preset", str, "what the other defaults come from", choices=list(PRESETS))
    flag("init_from", str, "start from the network and the weights in this model file or "
         "checkpoint", metavar="FILE")
    for name, text in model_flags(preset).items():
        default = getattr(config(), name)
        flag(name, type(default), text, default)

    flag = section("losses", "The loss is W_STEGO L(cover, stego) + W_COVER L(cover, cover^)\n"
                   "+ W_SECRET L(secret, secret^) + W_Z NLL(r), with L = WAVE * L1\n+ STFT * "
                   "multi-resolution STFT - SNR * dB + WAVLM_WEIGHT * WavLM distance.")
    flag("w_stego", float, "weight of stego against cover")
    flag("w_cover", float, "weight of the recovered cover against the cover")
    flag("w_secret", float, "weight of the recovered secret against the secret")
    flag("w_z", float, "weight of the standard-normal negative log-likelihood of r, mean over its "
         "elements")
    flag("wave", float, "weight of the mean absolute difference of the waveforms")
    flag("stft", float, "weight of the multi-resolution STFT distance")
    flag("snr", float, "weight of the signal-to-noise ratio in dB")
    flag("snr_ceiling", float, "dB at which it saturates")
    flag("wavlm_weight", float, "weight of the distance between what WavLM hears", 0.0)
    flag("wavlm_source", str, "torch.hub repository, folder with a hubconf.py, "
         "WavLM-Large.pt, or torchaudio/WAVLM_BASE_PLUS", "bshall/knn-vc")
    flag("wavlm_distance", str, "between its hidden states", "l1", choices=["l1", "l2", "cosine"])

    flag = section("adversary", "A multi-scale STFT discriminator learns to tell cover and secret\n"
                   "from stego, cover^ and secret^; the network learns to mislead it.")
    flag("adversarial", bool, "add ADV_WEIGHT times the generator's hinge loss, and FEAT_WEIGHT "
         "times feature matching", False)
    flag("adv_weight", float, "weight of the discriminator's verdict", 1.0)
    flag("feat_weight", float, "weight of the mean absolute difference of its feature maps", 2.0)
    flag("disc_start", int, "steps before it begins to learn and to judge", 0)
    flag("disc_lr", float, "its Adam's learning rate", 1e-4)

    kinds = ", ".join(name + (f" ({kind.unit}, {':'.join(map(str, kind.usual))})" * bool(kind.unit))
                      for name, kind in noise.KINDS.items())
    flag = section("noise", "What happens to the stego before it is revealed, another kind in\n"
                   "each batch. One that stands there twice comes twice as often.")
    flag("noise", str, "kinds with commas, each with its strength or range of strengths: "
         f"gaussian:20:50,resample:3/4,identity. There are {kinds}", metavar="KIND[:LOW:HIGH],...")
    flag("robust_from", str, "the paper's robust stage: hide as the model in this file, and train "
         "a copy of it that reveals", metavar="FILE")

    flag = section("optimisation")
    flag("steps", int, "optimiser steps in all")
    flag("batch_size", int, "pairs a step, a process and an accumulation")
    flag("accumulate", int, "batches whose gradients are added up for one step", 1)
    flag("lr", float, "peak learning rate of Adam")
    flag("beta2", float, "Adam's second decay rate", 0.99)
    flag("schedule", str, "after the warm-up: cosine to zero, or a tenth at each quarter of the "
         "run", choices=["cosine", "decay"])
    flag("warmup", int, "steps in which the learning rate rises from zero")
    flag("clip", float, "largest norm of the gradient; a larger one is scaled down")
    flag("max_skipped", int, "this many non-finite steps in a row, each skipped, end the run", 20)
    flag("trained", str, "train only the parameters in whose names this is found; the others stay "
         "(default: all)", metavar="REGEX")
    flag("seed", int, "of the weights, the data and the noise", 0)

    flag = section("machine")
    flag("device", str, "cpu, cuda, cuda:1, ... (default: cuda where there is one)")
    flag("amp", str, "precision of the subnets while training; auto is bf16 or else fp16 on CUDA, "
         "fp32 elsewhere", "auto", choices=["auto", "fp32", "bf16", "fp16"])
    flag("recompute", bool, "keep the activations of one subnet only and compute them again: far "
         "less memory, a third more time (default: in the preset paper)", False,
         action=argparse.BooleanOptionalAction)

    flag = section("output")
    flag("out_dir", str, "folder for last.pt, best.pt and metrics.csv",
         os.path.join("runs", preset), metavar="DIR")
    flag("resume", bool, "go on from OUT_DIR/last.pt, with its flags; it must be there", False)
    flag("log_every", int, "steps between rows of metrics.csv", 50)
    flag("val_every", int, "steps between validations, a multiple of --log_every", 500)
    flag("save_every", int, "steps between writes of last.pt", 500)
    flag("no_progress", bool, "no progress bar", False)

    given = vars(parser.parse_args(argv))
    args = argparse.Namespace(**defaults | given)
    if useless := given.keys() & objective.no_use_for:
        parser.error(f"--{min(useless)} has no effect in the {preset} preset")
    if (args.data_dir is None) == (args.hf_dataset is None):
        parser.error("give either --data_dir or --hf_dataset")
    if args.robust_from and (args.init_from or not args.noise):
        parser.error("--robust_from needs --noise, and takes the place of --init_from")
    source = args.robust_from or args.init_from
    if source and (useless := given.keys() & model_flags(preset)):
        parser.error(f"--{min(useless)} is for a new network; that of {source} is as it is")
    for name, value in vars(args).items():
        if isinstance(value, (int, float)) and not 0 <= value < math.inf:  # as NaN is not
            parser.error(f"--{name} must be a number from 0 on, not {value}")
    for name in ("crop", "steps", "batch_size", "accumulate", "lr", "clip", "log_every",
                 "val_every", "save_every", "val_pairs", "max_skipped"):
        if not getattr(args, name) > 0:
            parser.error(f"--{name} must be above 0")
    if args.val_every % args.log_every:
        parser.error("--val_every must be a multiple of --log_every")
    if args.seed >= 1 << 32 or args.beta2 >= 1:
        parser.error("--seed must be below 2 ** 32, and --beta2 below 1")
    if os.path.exists(args.out_dir) and not os.path.isdir(args.out_dir):
        parser.error(f"--out_dir {args.out_dir} is not a folder")
    try:
        re.compile(args.trained or "")
    except re.error as error:
        parser.error(f"--trained {args.trained} is no regular expression: {error}")
    return args, given


def learning_rate(step, args):
    """The rate of step 0, 1, ..., steps - 1."""
    if step < args.warmup:
        return args.lr * (step + 1) / args.warmup
    done = (step - args.warmup) / max(1, args.steps - args.warmup)
    if args.schedule == "cosine":
        return args.lr * 0.5 * (1 + math.cos(math.pi * done))
    return args.lr * 0.1 ** int(4 * done)


def preset_of(path):
    """The preset that a model file names, or None."""
    config = checkpoint.read(path).get("config")
    return config.get("preset") if isinstance(config, dict) else None


def make_model(args, resumed):
    """The network, as it is before the first step, or was in the checkpoint that is resumed."""
    config, objective, _ = PRESETS[args.preset]
    source = args.robust_from or args.init_from
    if resumed:
        model = objective.build(replace(config(), **resumed["config"]))
        model.load_state_dict(resumed["state_dict"])
    elif source:
        preset = preset_of(source)
        if preset in PRESETS and PRESETS[preset][1] is not objective:
            stop(f"{source} holds a model of preset {preset}; give --preset {preset}")
        model = objective.load(source)
        if args.robust_from:
            model = objective.with_second_stack(model)
    else:
        values = {name: getattr(args, name) for name in model_flags(args.preset)}
        model = objective.build(config(**values))
    return model.train()


reduced = collections.deque(maxlen=64)


def sum_of_all(x, operation=distributed.ReduceOp.SUM):
    """The sum of a tensor over all processes, or their maximum, in its place. The last ones are
    kept: gloo's threads, where they are the last to let go of a tensor, need Python's lock for it,
    which a process that ends may hold while it waits for them (seen with torch 2.4)."""
    if WORLD > 1:
        reduced.append(x)
        distributed.all_reduce(x, operation)
    return x


def main(argv=None):
    args, given = parse_arguments(argv)
    outputs = [os.path.join(args.out_dir, name) for name in ("last.pt", "best.pt", "metrics.csv")]
    last_path, best_path, metrics_path = outputs
    resumed = None
    if args.resume:
        resumed = run_folder.go_on(last_path, args, given)
        if resumed["training"]["step"] >= args.steps:
            if RANK == 0:
                tell(f"{last_path} has all its {args.steps} steps: there is nothing to do",
                     sys.stdout)
            return
    elif present := [path for path in outputs if os.path.exists(path)]:
        remedy = "go on with --resume" if last_path in present else "remove it"
        stop(f"{present[0]} exists: {remedy}, or give another --out_dir")

    # the machine: one process, or one of WORLD that torchrun has started
    local = f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if WORLD > 1 else "cuda"
    try:
        device = torch.device(args.device or (local if torch.cuda.is_available() else "cpu"))
        if device.type == "cuda" and device.index is not None:
            torch.cuda.set_device(device)
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        stop(f"--device {args.device} cannot be used: {str(error).splitlines()[0]}")
    if WORLD > 1 and not distributed.is_initialized():
        distributed.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo")
    precision = args.amp
    if precision == "auto":
        precision = "fp32"
        if device.type == "cuda":
            precision = "bf16" if torch.cuda.is_bf16_supported() else "fp16"
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision)
    amp = functools.partial(torch.autocast, device.type, dtype=dtype, enabled=dtype is not None)

    # the network, the data, what is trained, and how
    torch.manual_seed(args.seed)
    try:
        model = make_model(args, resumed)
        config = model.config
        objective = PRESETS[args.preset][1](model, args, device, amp)
        trained = {name: p for name, p in objective.trainable().items()
                   if re.search(args.trained or "", name)}
        if not trained:
            stop(f"--trained {args.trained} is in the name of no parameter that can be trained, "
                 f"such as {min(objective.trainable())}")
        model.requires_grad_(False)
        for parameter in trained.values():
            parameter.requires_grad_(True)
        hop = getattr(config, "bands", 1)
        samples = max(1, round(args.crop * config.sample_rate / hop)) * hop
        least = LONGEST_WINDOW if args.adversarial else LONGEST_WINDOW // 2 + 1
        if samples < least:
            stop(f"--crop {args.crop:g} is too short: {least} samples are the least, "
                 f"{least / config.sample_rate:.3f} s")
        train_pairs, val_pairs, about = data.open_data(args, config.sample_rate, samples)
        count = math.ceil(args.val_pairs / args.batch_size / WORLD)
        val_set = list(data.batches(val_pairs, args.batch_size, 0, count, 0))
        if not (resumed or args.init_from or args.robust_from):
            objective.initialise(train_pairs)
        objective.to(device)
        adversary = None
        if args.adversarial:
            adversary = Adversary(args.disc_lr, args.clip, device, amp, precision == "fp16")
    except (ValueError, RuntimeError, OSError) as error:
        stop(" ".join(str(error).split()))
    parallel = objective
    if WORLD > 1:  # robust: the last phi in the way back changes nothing but cover^
        parallel = DistributedDataParallel(objective, broadcast_buffers=False,
                                           find_unused_parameters=bool(args.robust_from))
    optimiser = torch.optim.Adam(trained.values(), args.lr, betas=(0.9, args.beta2), fused=True)
    scaler = torch.amp.GradScaler(device.type, enabled=precision == "fp16")

    # the state of the run
    first_step, pairs, best = 0, 0, -math.inf
    against_names = ["disc_loss", "adv_loss", "feat_loss"] if adversary else []
    measured = ["loss", *objective.scores, *against_names, "grad_norm"]
    window = torch.zeros(len(measured) + 1, device=device)  # sums since the last row, and steps
    skipped = torch.zeros(2, device=device)  # non-finite steps: of all, of those just before now
    if resumed:
        training = resumed["training"]
        optimiser.load_state_dict(training["optimiser"])
        scaler.load_state_dict(training["scaler"])
        if adversary:
            adversary.load_state_dict(training["adversary"])
        first_step, pairs, best = (training[name] for name in ("step", "pairs", "best"))
        window, skipped = training["window"].to(device), training["skipped"].to(device)
    if RANK == 0:
        run_folder.claim(args.out_dir)
        for path in outputs:
            checkpoint.remove_stale(path)
        header = ["step", *measured, "lr", "skipped", *objective.validation]
        metrics = run_folder.start_metrics(metrics_path, first_step, header)
        tell(f"{args.preset}: {sum(p.numel() for p in trained.values()):,} parameters to train, "
             f"{about}, {WORLD} x {device}, {precision}, steps {first_step} to {args.steps}, "
             f"in {args.out_dir}", sys.stdout)
    signals = []
    on_ending_signals(lambda number, frame: signals.append(number))

    def save(step):
        shared = sum_of_all(window.clone()).cpu() / WORLD
        if RANK == 0:
            checkpoint.save(model, last_path, training=dict(
                args=vars(args), step=step, pairs=pairs, best=best, skipped=skipped.cpu(),
                window=shared, optimiser=optimiser.state_dict(), scaler=scaler.state_dict(),
                adversary=adversary and adversary.state_dict()))
        # Also since a process that ends while gloo lets go of a tensor can hang (torch 2.4).
        if WORLD > 1:
            distributed.barrier()

    remaining = (args.steps - first_step) * args.accumulate
    loader = data.batches(train_pairs, args.batch_size, pairs, remaining, args.workers)
    bar = tqdm(total=args.steps, initial=first_step, dynamic_ncols=True,
               disable=args.no_progress or RANK > 0)
    validated = [math.nan] * len(objective.validation)
    for step in range(first_step, args.steps):
        # Nothing here waits for the device, but what is logged.
        rate = learning_rate(step, args)
        for group in optimiser.param_groups:
            group["lr"] = rate
        optimiser.zero_grad()
        for micro in range(args.accumulate):
            cover, secret, numbers = next(loader)
            cover, secret = (x.to(device, non_blocking=True) for x in (cover, secret))
            last = WORLD == 1 or micro == args.accumulate - 1
            with contextlib.nullcontext() if last else parallel.no_sync():
                batch = step * args.accumulate + micro
                loss, scores, waves = parallel(cover, secret, numbers, batch)
                against = [torch.zeros((), device=device)] * len(against_names)
                if adversary and step >= args.disc_start:
                    against = [adversary.learn(waves), *adversary.judge(waves)]
                    loss = loss + args.adv_weight * against[1] + args.feat_weight * against[2]
                scaler.scale(loss / args.accumulate).backward()
            with torch.no_grad():
                window[:-2] += torch.stack([loss, *scores, *against]).nan_to_num() / args.accumulate
            pairs += len(cover) * WORLD
        scaler.unscale_(optimiser)
        norm = nn.utils.clip_grad_norm_(trained.values(), args.clip)
        broken = (~norm.isfinite()).float()
        optimiser.found_inf = broken  # fused Adam skips the step where this is 1, as for GradScaler
        scaler.step(optimiser)
        scaler.update()
        skipped = torch.stack([skipped[0] + broken, (skipped[1] + 1) * broken])
        window[-2:] += torch.stack([norm.nan_to_num(0, 0, 0), torch.ones_like(norm)])
        done = step + 1
        bar.update()
        # One process may hear of a signal before another, and that while it waits for the others.
        signal = sum_of_all(torch.tensor(max(signals, default=0)), distributed.ReduceOp.MAX)

        if done % args.log_every == 0 or done == args.steps:
            means = (sum_of_all(window) / window[-1]).tolist()[:-1]
            window.zero_()
            total, in_a_row = map(int, skipped.tolist())
            if in_a_row >= args.max_skipped:
                stop(f"the gradient was not finite {in_a_row} times in a row, the last at step "
                     f"{done}: try a lower --lr, other weights of the losses, or --amp fp32")
            fresh = done % args.val_every == 0 or done == args.steps
            if fresh:
                objective.before_validation(train_pairs)
                totals = sum_of_all(objective.validate(val_set, device))
                validated = (totals[:-1] / totals[-1]).tolist()
                if objective.goodness(validated) > best:
                    best = objective.goodness(validated)
                    if RANK == 0:
                        checkpoint.save(model, best_path)
            if RANK == 0:
                csv.writer(metrics).writerow([
                    done, *(f"{value:.6g}" for value in means), f"{rate:.4g}", total,
                    *(f"{value:.4f}" if fresh else "" for value in validated)])
                now = means[1:1 + len(objective.scores)] or means[:1]
                bar.set_postfix_str(f"{objective.shown(now)}, lr {rate:.1e}, "
                                    f"validation {objective.shown(validated)}")
        if done % args.save_every == 0 or done == args.steps or signal:
            save(done)
        if signal:
            bar.close()
            if RANK == 0:
                tell(f"stopped after step {done}: {last_path} is written, go on with --resume",
                     sys.stderr)
            sys.exit(128 + signal.item())
    bar.close()
    if best == -math.inf:
        stop(f"no validation gave a finite score, so there is no {best_path}: try a lower --lr")
    if RANK == 0:
        tell(f"done: {best_path} is the best model, {objective.shown(validated)} in the last "
             "validation", sys.stdout)
    if WORLD > 1:
        distributed.destroy_process_group()


if __name__ == "__main__":
    settle_streams()
    try:
        main()
    except KeyboardInterrupt:  # before the first step
        stop("interrupted")
    except OSError as error:
        stop(f"{error.filename or 'metrics.csv'}: {error.strerror}; is there room, and the right "
             "to write?")
