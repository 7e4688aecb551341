"""checkpoint.py: a file is whole or not there."""

import pytest
import torch

from files import checkpoint
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


def test_a_file_of_another_version_is_refused(tmp_path):
    path = tmp_path / "model.pt"
    checkpoint.save(Lattice(LatticeConfig(growth=1)), path)
    torch.save(checkpoint.read(path) | {"wavinwav": 1}, path)
    with pytest.raises(ValueError, match="model.pt is not a WavInWav model of this version"):
        checkpoint.read(path)
