"""Command lines from a dataclass: a field a flag, the comment beside it its help text.

    @dataclass
    class Flags(Common):
        # optimisation
        lr: float = 1e-2  # peak learning rate

    flags, resumed, error = read(Flags, {"small": {"lr": 1e-3}}, "How to train", argv)
"""

import argparse
import inspect
import math
import os
import re
from dataclasses import asdict, dataclass, fields
from typing import Literal, get_args

from files import checkpoint
from files.command import Parser
from training.processes import stop
from training.record import refuse_another_run

FREE_ON_RESUME = {"data_dir", "val_dir", "steps", "device", "workers", "out_dir", "resume",
                  "log_every", "val_every", "save_every", "tensorboard", "no_progress"}
POSITIVE = {"crop", "steps", "batch_size", "accumulate", "lr", "clip", "log_every", "val_every",
            "save_every", "val_pairs"}


@dataclass
class Common:
    """The flags of every training. A preset has other defaults for some."""

    # data
    data_dir: str = ""  # folder of speech, searched with all its subfolders
    hf_dataset: str = ""  # instead, a dataset on the Hugging Face hub, or a folder that its
    #                       `datasets` library reads; it is streamed
    hf_config: str = ""  # which of its configurations
    hf_split: str = "train"  # which of its splits
    hf_val_split: str = ""  # split to validate on (default: the first items of HF_SPLIT)
    hf_column: str = "audio"  # which of its columns
    val_dir: str = ""  # folder to validate on (default: 5 percent of the files, at least 2)
    crop: float = 2.0  # length of a training crop in seconds
    gain: float = 6.0  # change the level of each crop by up to this many dB, up or down
    tilt: float = 0.0  # vary crops as other recordings would: raise high frequencies by up to this
    #                    many dB, change the speed by up to half, add faint noise; 0: do not
    val_pairs: int = 64  # pairs in the fixed validation set, each of one crop's length
    workers: int = 1  # processes that load data; 0: load in the training process

    # optimisation
    steps: int = 1500  # optimiser steps in all; a finished run can be resumed with more
    batch_size: int = 6  # pairs in a batch of one process
    accumulate: int = 1  # batches whose gradients are added up for one step
    lr: float = 4e-3  # peak learning rate of Adam
    schedule: Literal["cosine", "decay"] = "cosine"  # after the warm-up: cosine to zero, or divided
    #                                                  by 10 at each quarter of the run
    warmup: int = 50  # steps in which the learning rate rises from zero
    clip: float = 5.0  # norm to which a larger gradient is scaled down
    spike: float = 0.0  # skip a step whose gradient is this many times the usual; 0: never
    average: float = 0.0  # decay of averaged weights, which are validated and saved as best.pt; 0:
    #                       the weights themselves are
    seed: int = 0  # of the weights, the data and the noise
    device: str = ""  # cpu, cuda, cuda:1, ... (default: cuda where there is one)

    # output
    out_dir: str = ""  # folder of the run (default: runs/PRESET)
    resume: bool = False  # go on from OUT_DIR/last.pt, with its flags; it must be there
    log_every: int = 50  # steps between rows of metrics.csv
    val_every: int = 500  # steps between validations, a multiple of --log_every
    save_every: int = 500  # steps between writes of last.pt
    tensorboard: bool = False  # also write the metrics, sounds and spectrograms for TensorBoard
    no_progress: bool = False  # no progress bar


def documented(cls):
    """(section, name, help) of a dataclass's fields, from the comments in its source."""
    section, source = "", "\n".join(map(inspect.getsource, reversed(cls.__mro__[:-1])))
    pattern = r"^    (?:# (.*)|(\w+): .*?  # (.*(?:\n    #  .*)*))"  # a section, or a field
    for heading, name, text in re.findall(pattern, source, re.MULTILINE):
        section = heading or section
        if name:
            yield section, name, re.sub(r"\n    # +", " ", text)


def shown_default(field, presets):
    """The default of a flag, for its help."""
    values = {preset: defaults.get(field.name, field.default)
              for preset, defaults in presets.items()}
    texts = {preset: format(value, "g") if isinstance(value, (int, float)) else value
             for preset, value in values.items() if value not in (None, "")}
    if len(set(texts.values())) == 1 and len(texts) == len(values):
        return f" (default: {[*texts.values()][0]})"
    parts = ", ".join(f"{text} in {preset}" for preset, text in texts.items())
    return f" (default: {parts})" if parts else ""


def make_parser(cls, presets, description):
    """The argparse parser of a dataclass; flags that are not given are not in its result."""
    parser = Parser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter,
        usage="%(prog)s --data_dir DIR [flags]; --help lists them", allow_abbrev=False,
        argument_default=argparse.SUPPRESS)
    of_name, groups = {field.name: field for field in fields(cls)}, {}
    for section, name, text in documented(cls):
        field, choices = of_name[name], get_args(of_name[name].type)
        if section not in groups:
            groups[section] = parser.add_argument_group(section)
        if field.type is bool:
            more = dict(action="store_true" if field.default is False
                        else argparse.BooleanOptionalAction)
        elif choices:
            more = dict(choices=choices)
        else:
            more = dict(type=field.type, metavar=name.upper())
        text += "" if field.type is bool else shown_default(field, presets)
        groups[section].add_argument(f"--{name}", help=text.replace("%", "%%"), **more)
    return parser


class Saved(dict):
    """What a checkpoint holds; ends the run where something is missing."""

    def __init__(self, content, path):
        super().__init__(content)
        self.path = path

    def __missing__(self, name):
        stop(f"{self.path} is damaged: it lacks {name}")


def read(cls, presets, description, argv=None, needs=lambda flags: []):
    """Flags of a command line, and those of the run that it resumes.

    cls: dataclass with the fields preset, out_dir and resume, and others
    presets: {name: {field: default}}
    needs: function of the flags that gives (names of flags, whether they have an effect, what they
        need to have one), ...
    -> the flags; the content of last.pt or None; the parser's function to end with a message
    """
    parser = make_parser(cls, presets, description)
    given = vars(parser.parse_args(argv))
    preset = given.get("preset", cls.preset)
    known = {name: value for name, value in presets[preset].items() if hasattr(cls, name)}
    flags, resumed = cls(**known | {"out_dir": os.path.join("runs", preset)} | given), None
    if flags.resume:
        path = os.path.join(flags.out_dir, "last.pt")
        try:
            resumed = checkpoint.read(path)
        except FileNotFoundError:
            stop(f"{path} does not exist: there is nothing to resume")
        except (ValueError, OSError) as error:
            stop(str(error))
        if "training" not in resumed:
            stop(f"{path} is a model, not a checkpoint: start from it with --init_from")
        resumed = Saved(resumed | {"training": Saved(resumed["training"], path)}, path)
        saved = resumed["training"]["flags"]
        for name, value in given.items():
            if name not in FREE_ON_RESUME and value != saved.get(name):
                stop(f"--{name} {value} differs from the {saved.get(name)} of {path}; a resumed "
                     "run keeps its flags (a new run can start with --init_from)")
        if saved.keys() != {field.name for field in fields(cls)}:
            stop(f"{path} was written by another version: start from it with --init_from")
        flags = cls(**saved | {name: given[name] for name in given.keys() & FREE_ON_RESUME})
    check(flags, given, needs(flags), parser.error)
    if not resumed:
        refuse_another_run(flags.out_dir)
    return flags, resumed, parser.error


def useful(flags):
    """(names of train.py's flags, whether they have an effect, what they need to have one)."""
    lapped = flags.preset in ("lapped", "robust")
    losses = flags.w_stego or flags.w_cover or flags.w_secret
    source = flags.robust_from or flags.init_from
    return [
        ("carriers stego_snr margin reserve", lapped, "--preset lapped or robust"),
        ("first levels", flags.preset == "robust", "--preset robust"),
        ("blocks kernel recompute robust_from", not lapped, "--preset paper"),
        ("sample_rate bands carriers first levels blocks growth kernel clamp stego_snr margin "
         "reserve",
         not source, f"a new network; that of {source} is as it is"),
        ("wave stft snr wavlm_weight", losses, "--w_stego, --w_cover or --w_secret"),
        ("stft_from", flags.stft, "--stft"),
        ("snr_ceiling", flags.snr, "--snr"),
        ("wavlm_source wavlm_distance", flags.wavlm_weight, "--wavlm_weight"),
        ("adv_weight feat_weight disc_start disc_lr", flags.adversarial, "--adversarial"),
        ("amp", not lapped or flags.adversarial, "--preset paper or --adversarial"),
        ("robust_from", flags.noise and not flags.init_from, "--noise, and no --init_from"),
    ]


def check(flags, given, needs, error):
    """Call error(message) for flags that are out of range, or have no effect.

    needs: (names of flags, whether they have an effect, what they need to have one), ...
    """
    needs = [("hf_config hf_split hf_column hf_val_split", flags.hf_dataset, "--hf_dataset"),
             ("hf_val_split", not flags.val_dir, "no --val_dir"), *needs]
    for names, fulfilled, what in needs:
        for name in names.split():
            if name in given and not fulfilled:
                error(f"--{name} has no effect here: it needs {what}")
    if bool(flags.data_dir) == bool(flags.hf_dataset):
        error("give either --data_dir or --hf_dataset")
    for name, value in asdict(flags).items():
        if isinstance(value, (int, float)) and not 0 <= value < math.inf:  # as NaN is not
            error(f"--{name} must be a number from 0 on, not {value}")
        if name in POSITIVE and not value > 0:
            error(f"--{name} must be above 0")
    if flags.hf_dataset and flags.workers > 1:
        error(f"--workers {flags.workers}: a dataset is streamed by one; give 0 or 1")
    if flags.val_every % flags.log_every:
        error("--val_every must be a multiple of --log_every")
    if flags.seed >= 1 << 32:
        error("--seed must be below 2 ** 32")
    if os.path.exists(flags.out_dir) and not os.path.isdir(flags.out_dir):
        error(f"--out_dir {flags.out_dir} is not a folder")
