"""make_models.sh: it makes what is shipped, goes on where it was stopped, and refuses nonsense."""

import os
import subprocess
import sys

import pytest
import soundfile

from evaluation import baselines
from helpers import voice
from running import ROOT
from trainings import QUICK

FLAGS = *QUICK, "--steps", 1


def make(*words):
    path = os.pathsep.join([os.path.dirname(sys.executable), os.environ["PATH"]])
    return subprocess.run(["sh", os.path.join(ROOT, "make_models.sh"), *map(str, words)],
                          env=os.environ | {"PATH": path}, capture_output=True, text=True)


@pytest.mark.slow
def test_models_by_the_recipe(tmp_path):
    speech, models = tmp_path / "some speech", tmp_path / "models"
    speech.mkdir()
    for i in range(4):
        soundfile.write(speech / f"{i}.wav", voice(1, 16000, i), 16000)
    done = make(speech, models, *FLAGS)
    assert done.returncode == 0, done.stderr
    paths = [models / name for name in ("wavinwav.pt", "lattice.pt", "paper.pt", "robust.pt")]
    assert list(baselines.load_models(map(str, paths))) == ["INN", "lattice", "paper", "robust"]

    paths[3].unlink()  # as if it had been stopped before the copy
    before = paths[0].stat().st_mtime_ns
    assert make(speech, models, *FLAGS).returncode == 0
    assert paths[3].exists() and paths[0].stat().st_mtime_ns == before


def test_arguments(tmp_path):
    for words in ([], [tmp_path], [tmp_path / "none", tmp_path]):
        done = make(*words)
        assert done.returncode == 2 and done.stderr.startswith("error: ")
        assert len(done.stderr.splitlines()) == 1 and os.listdir(tmp_path) == []
