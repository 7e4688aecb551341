"""Stegos that were made once and stay: every version of this format reveals them.

    PYTHONPATH=. python tests/test_golden.py    # makes them anew, for another format or model
"""

import os

import numpy as np
import pytest
import soundfile

import stego
from helpers import INN, LATTICE, ROBUST, voice
from running import ROOT

FOLDER = os.path.join(ROOT, "tests", "golden")
MODELS = {"wavinwav": (INN, 25), "lattice": (LATTICE, 40), "robust": (ROBUST, 5)}  # dB, at least


def sounds():
    """Cover and secret, of 8 kHz."""
    return 0.5 * voice(1.5, 8000, 1), 0.5 * voice(1.2, 8000, 2)


@pytest.mark.parametrize("name", MODELS)
def test_golden_stego(name, tmp_path):
    model = stego.load_model(MODELS[name][0])
    found = str(tmp_path / "found.wav")
    stego.reveal(os.path.join(FOLDER, f"{name}.flac"), found, model)
    secret, found = sounds()[1], soundfile.read(found)[0]
    assert len(found) == len(secret)
    noise = np.sum((secret - found) ** 2)
    assert 10 * np.log10(np.sum(secret ** 2) / noise) > MODELS[name][1]


def make():
    os.makedirs(FOLDER, exist_ok=True)
    paths = [os.path.join(FOLDER, f"{name}.wav") for name in ("cover", "secret")]
    for path, x in zip(paths, sounds()):
        soundfile.write(path, x, 8000)
    for name in MODELS:
        model = stego.load_model(MODELS[name][0])
        print(name, stego.hide(*paths, os.path.join(FOLDER, f"{name}.flac"), model, overwrite=True))
    for path in paths:
        os.remove(path)


if __name__ == "__main__":
    make()
