"""Score a model on files: hide, write 16-bit WAV, read back, reveal, compare.

    python evaluate.py --data_dir DIR                      # 64 random pairs of 3 to 5 s, drawn with a seed
    python evaluate.py --data_dir DIR --rate 48000         # the same pairs, brought to 48 kHz
    python evaluate.py --data_dir DIR --attacks            # the secret after noise and gain on the stego
    python evaluate.py --speed                             # audio seconds per second for ten minutes of audio
    python evaluate.py --memory                            # a training step of the paper preset, with and without --recompute

DIR is searched as train.py does. SNR in dB; PESQ wide band at 16 kHz (package pesq), STOI (package pystoi).
"""

import argparse
import math
import os
import random
import subprocess
import sys
import tempfile
import time

import numpy as np
import soundfile
import torch
from torchaudio.functional import resample
from tqdm import tqdm

import stego
from train import SILENCE, find_audio

HERE = os.path.dirname(os.path.abspath(__file__))


def draw_pairs(files, count, seed, rate):
    """`count` pairs of different files of 3 s or more, both cut to the same 3 to 5 s at `rate` Hz, neither silent."""
    rng = random.Random(seed)
    files = [file for file in files if file[1] / file[2] >= 3]
    if len(files) < 2:
        sys.exit("there are fewer than 2 audio files of at least 3 s")

    def draw(seconds, other=None):
        while True:
            path, frames, own_rate = rng.choice(files)
            start = rng.randrange(frames - math.ceil(seconds * own_rate) + 1) if frames / own_rate > seconds else 0
            x = torch.from_numpy(soundfile.read(path, math.ceil(seconds * own_rate), start, dtype="float32", always_2d=True)[0].mean(1))
            if path != other and x.square().mean() > SILENCE:
                return resample(x, own_rate, rate), path

    for _ in range(count):
        seconds = rng.uniform(3, 5)
        cover, path = draw(seconds)
        secret, _ = draw(seconds, path)
        length = min(len(cover), len(secret), round(seconds * rate))
        yield cover[:length], secret[:length]


def speech_scores(name, reference, estimate, rate):
    """PESQ (wide band) and STOI of two float tensors [T]."""
    try:
        from pesq import NoUtterancesError, pesq
        from pystoi import stoi
    except ImportError as error:
        sys.exit(f"{error.name} is not installed: pip install pesq pystoi, or give --no_perceptual")
    reference, estimate = (resample(x, rate, 16000).numpy() for x in (reference, estimate))
    try:
        quality = pesq(16000, reference, estimate, "wb")
    except NoUtterancesError:
        quality = math.nan
    return {f"{name} PESQ": quality, f"{name} STOI": stoi(reference, estimate, 16000)}


def score_pair(cover, secret, rate, model, folder, perceptual, attacks):
    """Scores of one pair, all on what stego.py wrote and a reader finds."""
    paths = {name: os.path.join(folder, f"{name}.wav") for name in ("cover", "secret", "stego", "revealed")}
    stego.write_audio(paths["cover"], stego.to_pcm(cover), rate)
    stego.write_audio(paths["secret"], stego.to_pcm(secret), rate)
    stego.hide(paths["cover"], paths["secret"], paths["stego"], model)
    stego.reveal(paths["stego"], paths["revealed"], model)
    cover, secret, hidden, revealed = (stego.from_pcm(stego.read_audio(path, "int16")[0][:, 0]) for path in paths.values())
    scores = {"stego SNR": stego.snr(cover, hidden), "secret SNR": stego.snr(secret, revealed)}
    if perceptual:
        scores |= speech_scores("stego", cover, hidden, rate) | speech_scores("secret", secret, revealed, rate)
    for name, attack in (ATTACKS if attacks else {}).items():
        # the header does not survive these: its length is known here
        attacked = stego.from_pcm(stego.to_pcm(attack(hidden)))
        scores[f"secret SNR, {name}"] = stego.snr(secret, model.reveal(attacked)[1])
    return scores


def add_noise(x, decibel):
    return x + torch.randn_like(x) * x.square().mean().sqrt() * 10 ** (-decibel / 20)


ATTACKS = {f"noise at {decibel} dB": lambda x, decibel=decibel: add_noise(x, decibel) for decibel in (50, 40, 30, 20)}
ATTACKS["gain 0.9"] = lambda x: 0.9 * x


def report(rows):
    """Mean and 95 % interval of each score."""
    for name in rows[0]:
        values = np.array([row[name] for row in rows if math.isfinite(row[name])])
        half = 1.96 * values.std(ddof=1) / math.sqrt(len(values)) if len(values) > 1 else math.nan
        print(f"{name:26s} {values.mean():7.2f} +- {half:.2f}   ({len(values)} pairs)")


def measure_speed(model_path, minutes=10, rate=16000):
    """Audio seconds per second of the whole commands, start and model load included."""
    with tempfile.TemporaryDirectory() as folder:
        paths = {name: os.path.join(folder, f"{name}.wav") for name in ("cover", "secret", "stego", "revealed")}
        for name in ("cover", "secret"):
            speech, own_rate = stego.read_audio(os.path.join(HERE, "examples", f"{name}.wav"))
            stego.write_audio(paths[name], stego.to_pcm(torch.from_numpy(np.resize(speech[:, 0], minutes * 60 * own_rate))), own_rate)
        commands = {"hide": ["hide", paths["cover"], paths["secret"], "-o", paths["stego"]],
                    "reveal": ["reveal", paths["stego"], "-o", paths["revealed"]]}
        for name, words in commands.items():
            start = time.perf_counter()
            subprocess.run([sys.executable, os.path.join(HERE, "stego.py"), *words, "--model", model_path], check=True)
            print(f"{name}: {minutes * 60 / (time.perf_counter() - start):.0f} times real time, {minutes} minutes of audio")


MEMORY_STEP = """
import resource, sys, torch
from wavinwav import Config, WavINN
model = WavINN(Config.paper())
model.recompute(sys.argv[1] == "1")
optimiser = torch.optim.Adam(model.parameters())
cover, secret = 0.1 * torch.randn(2, 1, 32000)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
stego, r = model(cover, secret)
cover_, secret_ = model.inverse(stego, torch.randn_like(r))
loss = sum((a - b).abs().mean() for a, b in ((cover, stego), (cover, cover_), (secret, secret_))) + r.square().mean()
loss.backward()
optimiser.step()
after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(before, after)
"""


def measure_memory():
    """Peak resident memory of one training step of the paper preset, batch 1, 2 s at 16 kHz, on the CPU."""
    peaks = {}
    for flag, name in (("0", "all activations"), ("1", "recomputed")):
        # glibc would keep large freed blocks in a heap that small ones fragment
        environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "1000000"}
        run = subprocess.run([sys.executable, "-c", MEMORY_STEP, flag], check=True, capture_output=True, text=True, cwd=HERE, env=environment)
        before, peaks[name] = (int(word) / 1024 for word in run.stdout.split())  # Linux counts in KiB
        print(f"{name:16s} peak {peaks[name]:6.0f} MiB, of which {before:.0f} MiB before the step")
    print(f"ratio {peaks['all activations'] / peaks['recomputed']:.1f}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_dir", metavar="DIR", help="folder of speech")
    parser.add_argument("--model", default=os.path.join(HERE, "wavinwav.pt"), metavar="FILE", help="model to score (default: the shipped one)")
    parser.add_argument("--pairs", type=int, default=64, help="number of pairs (default: 64)")
    parser.add_argument("--rate", type=int, default=16000, help="rate in Hz that covers and secrets are brought to (default: 16000)")
    parser.add_argument("--seed", type=int, default=0, help="of the pairs and the noise (default: 0)")
    parser.add_argument("--no_perceptual", action="store_true", help="leave out PESQ and STOI")
    parser.add_argument("--attacks", action="store_true", help="also change the stego, and score the secret that is left")
    parser.add_argument("--speed", action="store_true", help="time hide and reveal of ten minutes instead")
    parser.add_argument("--memory", action="store_true", help="measure the memory of a training step of the paper preset instead")
    args = parser.parse_args()
    if args.memory:
        return measure_memory()
    if args.speed:
        return measure_speed(args.model)
    if not args.data_dir:
        parser.error("--data_dir is needed")
    torch.manual_seed(args.seed)
    try:
        model = stego.load_model(args.model)
        with tempfile.TemporaryDirectory() as folder:
            pairs = draw_pairs(find_audio(args.data_dir), args.pairs, args.seed, args.rate)
            report([score_pair(cover, secret, args.rate, model, folder, not args.no_perceptual, args.attacks)
                    for cover, secret in tqdm(pairs, total=args.pairs)])
    except stego.StegoError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
