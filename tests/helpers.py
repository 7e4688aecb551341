"""What several tests need: sounds, paths, and the commands as a user runs them."""

import csv
import os
import re
import resource
import shlex
import signal
import subprocess
import sys
import time

import numpy as np
import soundfile
import torch

from evaluation import scores
from files import checkpoint
from files.container import Header
from files.sound import snr_of as snr
from running import ROOT, Done, Running
from train import main as train_main
from training.noise import KINDS

COVER, SECRET = (os.path.join(ROOT, "examples", f"{name}.wav") for name in ("cover", "secret"))
LATTICE = os.path.join(ROOT, "lattice", "lattice.pt")
INN, ROBUST = (os.path.join(ROOT, "models", f"{name}.pt") for name in ("wavinwav", "robust"))

STEGO, TRAIN = (os.path.join(ROOT, name) for name in ("stego.py", "train.py"))
HIDE = "hide", "cover.wav", "secret.wav", "-o", "out.wav"

# WavLM-Large's networks with 8 channels and 3 layers, for torchaudio
LARGE = dict(
    extractor_mode="layer_norm", extractor_conv_bias=False,
    extractor_conv_layer_config=[(8, 10, 5), *4 * [(8, 3, 2)], *2 * [(8, 2, 2)]],
    encoder_embed_dim=32, encoder_projection_dropout=0.1, encoder_pos_conv_kernel=16,
    encoder_pos_conv_groups=4, encoder_num_layers=3, encoder_num_heads=4, encoder_max_distance=80,
    encoder_num_buckets=32, encoder_attention_dropout=0.1, encoder_ff_interm_features=64,
    encoder_ff_interm_dropout=0.1, encoder_dropout=0.1, encoder_layer_norm_first=True,
    encoder_layer_drop=0.1, aux_num_out=None)
TORCHAUDIO = """
import torch
from torchaudio.models import wavlm_model

def wavlm_large(pretrained=True, progress=True, device="cuda"):
    torch.manual_seed(0)
    return wavlm_model(**{config}).to(device).train()
"""

# train.py's flags for networks and runs of seconds
QUICK = [
    "--crop", "0.25", "--batch_size", "2", "--val_pairs", "4", "--log_every", "2",
    "--val_every", "4", "--save_every", "2", "--warmup", "2", "--no_progress", "--workers", "0",
    "--device", "cpu"]
TINY = ["--bands", "16", "--carriers", "16", "--growth", "4", *QUICK]
TINY_PAPER = ["--preset", "paper", "--blocks", "2", "--growth", "4", *QUICK]
TINY_LATTICE = ["--growth", "4", *QUICK]
SHORT = ["--crop", "0.134"]  # just the longest window of the discriminator
EVERYTHING = ["--adversarial", "--disc_start", "3", *SHORT, "--noise", ",".join(KINDS)]


# ---------------------------------------------------------------- sounds

def voice(seconds, rate, seed):
    """A buzz with wandering pitch and formant-like colour: enough of speech for a training loop."""
    rng = np.random.default_rng(seed)
    n = int(seconds * rate)
    pitch = 120 + 80 * rng.random() + 20 * np.sin(np.arange(n) / rate * 3 + seed)
    phase = 2 * np.pi * np.cumsum(pitch) / rate
    x = sum(np.sin(k * phase) / k for k in range(1, 12))
    x = x * (1.1 + np.sin(np.arange(n) / rate * 9 + seed))
    return (0.1 * x + 0.002 * rng.standard_normal(n)).astype(np.float32)


def voices(count, seconds, seed=0, rate=16000):
    """[count, T]"""
    return torch.stack([torch.from_numpy(voice(seconds, rate, seed + i)) for i in range(count)])


def speechlike(*shape, seed=0):
    """Noise with the spectral slope and the loudness changes of speech, [..., T]."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(*shape, generator=generator, dtype=torch.float64)
    slope = 1 + torch.linspace(0, 20, shape[-1] // 2 + 1, dtype=torch.float64) ** 2
    x = torch.fft.irfft(torch.fft.rfft(x) / slope, n=shape[-1])
    x = x * (1.1 + torch.sin(torch.arange(shape[-1]) / 3000))
    return 0.5 * x / x.abs().amax(-1, keepdim=True).clamp_min(1e-9)


def pcm(*shape, seed=0):
    """The same on the grid of 16 bits, float32."""
    return ((speechlike(*shape, seed=seed) * 32768).round() / 32768).float()


def file_snr(reference, estimate):
    """In dB, of two sound files."""
    return snr(*(torch.from_numpy(soundfile.read(path)[0]) for path in (reference, estimate)))


def four(folder):
    """The names of a cover, a secret, a stego and a revealed secret."""
    return [str(folder / f"{name}.wav") for name in ("cover", "secret", "stego", "found")]


def likeness(a, b):
    """The inner product of two vectors over what it would be, root mean square, if the signs of one
    were coin tosses. Then it passes 6 in 2 exp(-6 ** 2 / 2), 3e-8, of all cases, whatever the sizes
    are (Hoeffding's inequality, given the sizes): a correlation has no such bound where a few large
    values decide it, as in what a wrong key decodes."""
    products = (a.double() - a.double().mean()) * (b.double() - b.double().mean())
    return abs(products.sum() / products.norm()).item()


def header_of(samples, *more):
    """Header.read of a stego [n]."""
    return Header.read(lambda start, stop: samples[start:stop], len(samples), *more)


def pair_files(folder, seconds=1.001, rate=16000):
    """A pair as evaluate.py writes it; at first its length is no multiple of a hop. {name: path}"""
    pair = (torch.from_numpy(0.3 * voice(seconds, rate, seed)) for seed in (1, 2))
    return scores.write_pair(folder, *pair, rate)


# ---------------------------------------------------------------- processes

def python(*words, cwd=ROOT, shell=None, **environment):
    """What `python WORDS` leaves: Done. With `shell`, a command of bash in which {} stands for it,
    it is a new interpreter; else see running.py."""
    if shell is None:
        return Running(*words, cwd=cwd, environment=environment).finish()
    command = shell.replace("{}", shlex.join(map(str, [sys.executable, *words])))
    done = subprocess.run(["bash", "-o", "pipefail", "-c", command], cwd=cwd, capture_output=True,
                          env=os.environ | environment, text=True, timeout=200)
    return Done(done.returncode, done.stdout, done.stderr)


def members(session):
    """Processes of a session, those that have ended and wait for their parent left out."""
    found = []
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{name}/stat") as file:
                state, _, _, own = file.read().rpartition(")")[2].split()[:4]
        except OSError:  # it has ended since
            continue
        if int(own) == session and state != "Z":
            found.append(int(name))
    return found


def all_end(session):
    """Whether all processes of a session end within a minute; those that do not are killed."""
    deadline = time.monotonic() + 60
    while (left := members(session)) and time.monotonic() < deadline:
        time.sleep(0.05)
    for process in left:
        os.kill(process, signal.SIGKILL)
    return not left


# ---------------------------------------------------------------- stego.py

def launch(folder, *words, stdin=b"", largest=None, temporary=None):
    """`python stego.py WORDS` at work in a folder: Running. `temporary` is the folder for temporary
    files, by default the `tmp` in `folder`, if there is one; `largest` is the size in bytes that a
    file can have."""
    own = os.path.join(folder, "tmp")
    return Running(STEGO, *words, cwd=folder, stdin=stdin,
                   temporary=temporary or (own if os.path.isdir(own) else None),
                   limits={resource.RLIMIT_FSIZE: largest} if largest else {})


def run_stego(folder, *words, **more):
    """What `python stego.py WORDS` in a folder leaves: Done."""
    return launch(folder, *words, **more).finish()


def printed_snrs(text):
    """Stego and secret SNR in dB, of what `hide` prints."""
    text = text.replace("secret lossless", "secret SNR inf dB")
    snrs = re.search(r"stego SNR (\S+) dB, secret SNR (\S+) dB", text).groups()
    return tuple(map(float, snrs))


def voices_in(folder):
    """The folder, with files for HIDE and a `tmp`."""
    soundfile.write(folder / "cover.wav", 0.5 * voice(1, 16000, 1), 16000)
    soundfile.write(folder / "secret.wav", voice(0.5, 16000, 2), 16000)
    (folder / "tmp").mkdir()
    return folder


def refused(folder, words, expected, **more):
    """It ends with one line, and leaves nothing."""
    before = sorted(os.listdir(folder))
    code, out, err = run_stego(folder, *words, **more)
    assert code in (1, 2) and out == "" and len(err.splitlines()) == 1, err
    assert err.startswith("error: ") and expected in err
    assert sorted(os.listdir(folder)) == before and not os.listdir(folder / "tmp")


# ---------------------------------------------------------------- train.py

def train(*flags, main=train_main):
    """Run train.py, or another main, in this process, which has loaded torch already."""
    torch.set_num_threads(1)
    main([str(flag) for flag in flags])


def begun(folder, *flags, module="train"):
    """A long run that has written its first rows, in a session of its own."""
    process = Running("-m", module, *flags, "--steps", 10000, "--out_dir", folder)
    wait_for_rows(process, folder)
    return process


def wait_for_rows(process, folder, count=2):
    """Until a running training has so many rows in its metrics.csv."""
    while not (folder / "metrics.csv").exists() or len(metrics(folder)) < count:
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.05)


KILLED = """
import os, runpy, signal, sys
replace, written = os.replace, []

def killing(source, target):
    written.append(os.path.basename(target))
    if written.count("last.pt") == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    replace(source, target)

os.replace = killing
sys.argv = sys.argv[1:]
runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
"""


def train_killed(*flags, module="train"):
    """A run that is killed, without a chance to clean up, when its second last.pt is written but
    has not yet taken its place."""
    done = python("-c", KILLED, module, *flags)
    assert done.returncode == -signal.SIGKILL, done.stderr


def metrics(folder):
    """The rows of a run's metrics.csv."""
    with open(folder / "metrics.csv", newline="") as file:
        return list(csv.DictReader(file))


def weights(path):
    """All numbers of a model file [n]."""
    state = checkpoint.read(path)["state_dict"]
    return torch.cat([value.flatten().double() for value in state.values()])


def gradients(path):
    """Means of the last steps' gradients, as Adam has them: of the network [n], and of the
    discriminator, if there is one."""
    training = checkpoint.read(path)["training"]
    states = [part["optimiser"]["state"] for part in (training, training["adversary"]) if part]
    return [torch.cat([state[i]["exp_avg"].flatten() for i in sorted(state)]) for state in states]
