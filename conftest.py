"""What holds for every test: one thread in each process (pytest -n auto starts as many as there are
cores), which gives way when it waits, and random numbers that are the same in every run. The
modules that they test lie beside this file."""

import os
import random
import sys

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.pop("PYTHONUNBUFFERED", None)  # it hides what the flush at the end of a process does

import numpy as np
import pytest
import torch


def pytest_configure(config):
    config.addinivalue_line("markers", "slow: seconds each; -m 'not slow' leaves them out")


def pytest_collection_modifyitems(items):
    """The slow ones first, so that no process has one left when the others are done."""
    items.sort(key=lambda item: "slow" not in item.keywords)


@pytest.fixture(autouse=True)
def seeded():
    """Whatever ran before in this process."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture
def fixed_nonce(monkeypatch):
    """A key's nonces come from a seed, in this process: a score that depends on them is the same in
    every run. (No parameter gives them: two files of one nonce would betray each other.)"""
    monkeypatch.setattr(os, "urandom", random.Random(0).randbytes)


@pytest.fixture(scope="session")
def speech(tmp_path_factory):
    """A folder of eight voices of 1 s."""
    import soundfile

    from helpers import voice
    folder = tmp_path_factory.mktemp("speech")
    for i in range(8):
        soundfile.write(folder / f"{i}.wav", voice(1, 16000, i), 16000)
    return folder


@pytest.fixture(scope="session")
def hub(tmp_path_factory):
    """A folder as torch.hub takes it, with a small WavLM."""
    pytest.importorskip("torchaudio")
    from helpers import LARGE, TORCHAUDIO
    folder = tmp_path_factory.mktemp("hub")
    (folder / "hubconf.py").write_text(TORCHAUDIO.replace("{config}", repr(LARGE)))
    return folder


@pytest.fixture
def folder(tmp_path):
    """With the files of HIDE, and a `tmp`."""
    import soundfile

    from helpers import voice
    soundfile.write(tmp_path / "cover.wav", 0.5 * voice(1, 16000, 1), 16000)
    soundfile.write(tmp_path / "secret.wav", voice(0.5, 16000, 2), 16000)
    (tmp_path / "tmp").mkdir()
    return tmp_path


@pytest.fixture
def paths(tmp_path):
    """{name: path} of a pair of voices in `tmp_path`, as evaluate.py writes it."""
    from helpers import pair_files
    return pair_files(tmp_path)
