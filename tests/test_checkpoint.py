"""checkpoint.py: a file is whole or not there."""

import os

import pytest
import torch

from files import checkpoint
from helpers import INN, LATTICE, ROBUST
from lattice.lattice import Lattice, LatticeConfig


def test_what_was_there_stays_after_a_fault(tmp_path):
    path = tmp_path / "model.pt"
    model = Lattice(LatticeConfig(growth=1))
    checkpoint.save(model, path, training={"step": 3})
    with pytest.raises(ZeroDivisionError):
        with checkpoint.replacing(path) as temporary:
            with open(temporary, "w") as file:
                file.write("half")
            1 / 0
    with pytest.raises(TypeError):
        checkpoint.save(model, path, training=(x for x in ()))
    assert [each.name for each in tmp_path.iterdir()] == ["model.pt"]
    content = checkpoint.read(path)
    assert content["training"] == {"step": 3} and content["config"]["growth"] == 1
    assert all(map(torch.equal, content["state_dict"].values(), model.state_dict().values()))


@pytest.mark.parametrize("name", ["x" * 244 + ".pt", "ä" * 120 + ".pt"], ids=["ascii", "umlauts"])
def test_the_longest_names(tmp_path, name):
    own = checkpoint.temporary_name(tmp_path / name)["prefix"] + "x.tmp"
    (tmp_path / own.replace(f"-{os.getpid()}-", "-4194999-")).touch()  # of a process that is gone
    (tmp_path / own).touch()
    checkpoint.save(Lattice(LatticeConfig(growth=1)), tmp_path / name)
    assert sorted(os.listdir(tmp_path)) == sorted([name, own])


@pytest.mark.parametrize("folder", [".", "elsewhere"])
def test_models_by_name(tmp_path, folder, monkeypatch):
    """From any folder, also from one that has a folder of that name."""
    (tmp_path / "elsewhere" / "lattice").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / folder)
    for name, path in (("robust", ROBUST), ("wavinwav", INN), ("lattice", LATTICE)):
        assert os.path.samefile(checkpoint.model_path(name), path)
    for path in ("robust.pt", "./robust", "nosuch", os.path.join("models", "robust")):
        assert checkpoint.model_path(path) == path
