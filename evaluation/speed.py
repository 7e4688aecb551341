"""Speed and memory of the stego.py command on a long recording.

    python -c "from evaluation.speed import measure_speed; measure_speed('wavinwav', minutes=10)"
"""

import os
import subprocess
import sys
import tempfile
import time

import numpy as np

from evaluation.baselines import HERE
from files import sound

# Run a command and print the peak KiB of its largest process, 0 on Windows. Linux counts the
# parent's memory too, so the parent has to be small.
PEAK = """
import subprocess, sys
subprocess.run([sys.executable, *sys.argv[1:]], check=True, stdout=subprocess.DEVNULL)
try:
    import resource
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
except ImportError:
    peak = 0
print(peak // 1024 if sys.platform == "darwin" else peak)
"""


def measure_speed(model: str, minutes: float = 10, channels: int = 1):
    """Hide and reveal the examples, repeated to so many minutes and one or two channels. Prints
    audio seconds per second, program start and model load included, and the peak memory of the
    largest process. Raises subprocess.CalledProcessError if stego.py fails."""
    with tempfile.TemporaryDirectory() as folder:
        cover, secret, stego, revealed = (
            os.path.join(folder, f"{name}.wav") for name in "cover secret stego revealed".split())
        for path in (cover, secret):
            speech, rate = sound.read_audio(
                os.path.join(HERE, "examples", os.path.basename(path)), "int16")
            speech = np.concatenate([speech, speech[::-1]], 1)[:, :channels]  # right: reversed
            speech = np.resize(speech, (round(60 * minutes * rate), channels))
            sound.write_audio(path, speech, rate)
        for words in (["hide", cover, secret, "-o", stego], ["reveal", stego, "-o", revealed]):
            start = time.perf_counter()
            peak = subprocess.run(
                [sys.executable, "-c", PEAK, os.path.join(HERE, "stego.py"), *words, "--model",
                 model], check=True, stdout=subprocess.PIPE, text=True).stdout
            speed = 60 * minutes / (time.perf_counter() - start)
            print(f"{words[0]}: {speed:.3g} times real time, {minutes:g} minutes, channels: "
                  f"{channels}, {rate} Hz; largest process {int(peak) / 1024:.0f} MiB")
