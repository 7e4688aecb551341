"""Speed and memory, each measured on processes of their own.

    python -m evaluation.speed --speed    # hide and reveal ten minutes and an hour of audio
    python -m evaluation.speed --speed --model lattice/lattice.pt
    python -m evaluation.speed --memory   # a training step of the paper's network

The peak of resident memory is what Linux tells of a process.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time

import numpy as np

import stego
from files import sound
from files.command import Parser, interrupt_on_signals, mistakes_in_one_line, say, settle_streams

HERE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
RECORDINGS = (10, 1), (60, 2)  # minutes, channels

# Run a command; print the KiB of its largest process. Linux adds what the parent has itself, so the
# parent must be small.
PEAK = """
import resource, subprocess, sys
subprocess.run([sys.executable, *sys.argv[1:]], check=True, stdout=subprocess.DEVNULL)
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
"""

# A training step of the paper's network on argv[2] samples, whose activations are computed again
# if argv[1] is 1; print the KiB before and after it.
STEP = """
import resource, sys, torch
from training.losses import recompute
from wavinwav import Config, PaperINN
model = PaperINN(Config.paper())
if sys.argv[1] == "1":
    recompute(model)
optimiser = torch.optim.Adam(model.parameters())
cover, secret = 0.1 * torch.randn(2, 1, int(sys.argv[2]))  # [B, T] each
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
stego, r = model(cover, secret)
cover_, secret_ = model.inverse(stego, torch.randn_like(r))
pairs = (cover, stego), (cover, cover_), (secret, secret_)
loss = sum((a - b).abs().mean() for a, b in pairs) + r.square().mean()
loss.backward()
optimiser.step()
print(before, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def measure_speed(model_path: str, recordings=RECORDINGS):
    """Print audio seconds per second of the whole commands, start and model load included, and the
    memory of their largest process, for recordings of so many minutes and channels."""
    for minutes, channels in recordings:
        with tempfile.TemporaryDirectory() as folder:
            cover, secret, hidden, revealed = (
                os.path.join(folder, f"{name}.wav")
                for name in ("cover", "secret", "stego", "revealed"))
            for path in (cover, secret):
                rate = write_recording(path, minutes, channels)
            commands = ["hide", cover, secret, "-o", hidden], ["reveal", hidden, "-o", revealed]
            for words in commands:
                words = [os.path.join(HERE, "stego.py"), *words, "--model", model_path]
                start = time.perf_counter()
                peak = run(["-c", PEAK, *words])[0]
                times = 60 * minutes / (time.perf_counter() - start)
                say(f"{words[1]}: {times:.0f} times real time, {minutes} minutes of "
                    f"{'stereo' if channels == 2 else 'mono'} at {rate} Hz; "
                    f"the largest process had {peak:.0f} MiB")


def write_recording(path: str, minutes: float, channels: int) -> int:
    """The example of this name, again and again; a second channel runs backward. Returns its rate
    in Hz."""
    speech, rate = sound.read_audio(os.path.join(HERE, "examples", os.path.basename(path)), "int16")
    speech = np.concatenate([speech[:, :1], speech[::-1, :1]], 1)[:, :channels]
    sound.write_audio(path, np.resize(speech, (round(60 * minutes * rate), channels)), rate)
    return rate


def measure_memory(seconds: float = 2.0):
    """Print the peak of resident memory of one training step of the paper's network, batch 1, on
    `seconds` at 16 kHz, on the CPU."""
    peaks = []
    for recompute, name in (0, "all activations"), (1, "recomputed"):
        # glibc would keep large freed blocks in a heap that small ones fragment
        environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "1000000"}
        before, peak = run(["-c", STEP, str(recompute), str(round(16000 * seconds))], environment)
        say(f"{name:16s} peak {peak:6.0f} MiB, of which {before:.0f} MiB before the step")
        peaks.append(peak)
    say(f"ratio {peaks[0] / peaks[1]:.1f}")


def run(words: list[str], environment=None) -> list[float]:
    """The numbers of KiB that a Python program prints, in MiB."""
    done = subprocess.run([sys.executable, *words], check=True, stdout=subprocess.PIPE, text=True,
                          cwd=HERE, env=environment)
    return [int(word) / 1024 for word in done.stdout.split()]


def main(argv=None):
    parser = Parser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--speed", action="store_true",
                      help="time stego.py on ten minutes of mono and on an hour of stereo")
    what.add_argument("--memory", action="store_true",
                      help="measure a training step of the paper's network, with and without "
                           "--recompute")
    parser.add_argument("--model", metavar="FILE",
                        default=os.path.join(HERE, "models", "wavinwav.pt"),
                        help="the model to time (default: the wavinwav.pt beside this script)")
    args = parser.parse_args(argv)
    try:
        with mistakes_in_one_line():
            if args.memory:
                measure_memory()
            else:
                stego.load_model(args.model)  # a fault is told before the work
                measure_speed(os.path.abspath(args.model))
    except subprocess.CalledProcessError:  # which has told why
        sys.exit(1)


if __name__ == "__main__":
    settle_streams()
    interrupt_on_signals()
    main()
