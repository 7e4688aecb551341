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

# Run a command and print the peak KiB of its largest process. Linux counts the parent's memory too,
# so the parent has to be small. Windows has no such figure.
PEAK = """
import subprocess, sys
subprocess.run([sys.executable, *sys.argv[1:]], check=True, stdout=subprocess.DEVNULL)
if sys.platform != "win32":
    import resource
    print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
"""


def measure_speed(model: str, minutes: float = 10, channels: int = 1):
    """Hide and reveal the examples, repeated to so many minutes, in one or two channels. Prints
    audio seconds per second, program start and model load included, and the peak KiB of the
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
            command = [os.path.join(HERE, "stego.py"), *words, "--model", model]
            start = time.perf_counter()
            peak = subprocess.check_output([sys.executable, "-c", PEAK, *command], text=True)
            speed = 60 * minutes / (time.perf_counter() - start)
            print(f"{words[0]}: {speed:.3g} times real time; largest process: {peak.strip()} KiB")
