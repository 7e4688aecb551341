"""The commands beside a torchaudio that raises when it is imported: what needs none of it works,
and the rest says in one line what to do."""

import os
import re
import subprocess
import sys
from importlib import metadata

import numpy as np
import pytest
import soundfile
import torch
from torchaudio.functional import resample as reference

from files import resample as lazy_torchaudio
from files.resample import resample
from helpers import COVER, ROOT, SECRET, TINY, voice

FAULTS = {
    "OSError": "libcudart.so.13: cannot open shared object file:\\n No such file or directory",
    "RuntimeError":
        "Detected that PyTorch and TorchAudio were compiled with different CUDA versions.",
    "ImportError": "cannot import name",
}
REMEDY = (rf"torchaudio {re.escape(metadata.version('torchaudio'))} cannot be loaded beside "
          rf"torch {re.escape(torch.__version__)} \(.*\); .*: pip install -r requirements.txt")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A torchaudio for each fault, and sound files of two rates."""
    folder = tmp_path_factory.mktemp("faults")
    for name, message in FAULTS.items():
        (folder / name / "torchaudio").mkdir(parents=True)
        (folder / name / "torchaudio" / "__init__.py").write_text(f'raise {name}("{message}")\n')
    for part, rate in (("own", 16000), ("other", 22050)):
        (folder / part).mkdir()
        for i in range(6):
            soundfile.write(folder / part / f"{i}.wav", voice(1, rate, i), rate)
    x = soundfile.read(SECRET)[0][:16000]
    soundfile.write(folder / "deep.wav", x + 1e-6, 16000, subtype="PCM_24")
    soundfile.write(folder / "fast.wav", x, 44100)
    (folder / "hubconf.py").write_text("import torchaudio\n")
    return folder


def run(folder, fault, *words):
    """python WORDS in the repository, with the torchaudio that has this fault before all others."""
    environment = os.environ | {"PYTHONPATH": str(folder / fault)}
    return subprocess.run([sys.executable, *map(str, words)], cwd=ROOT, env=environment,
                          capture_output=True, text=True, timeout=300)


@pytest.mark.parametrize("fault", FAULTS)
def test_it_cannot_be_imported(folder, fault):
    done = run(folder, fault, "-c", "import torchaudio")
    assert done.returncode == 1 and fault in done.stderr, "or the other tests would show nothing"


@pytest.mark.parametrize("fault", ["OSError", "RuntimeError"])
def test_hide_and_reveal_of_one_rate(folder, tmp_path, fault):
    hidden, found = tmp_path / "stego.wav", tmp_path / "found.wav"
    for secret in (SECRET, folder / "deep.wav"):  # 24 bits are brought to 16
        for words in (["hide", COVER, secret, "-o", hidden], ["reveal", hidden, "-o", found]):
            done = run(folder, fault, "stego.py", *words, "--overwrite")
            assert done.returncode == 0 and done.stderr == "", done.stderr
        x, y = (soundfile.read(path)[0] for path in (secret, found))
        assert len(x) == len(y) and np.sum((x - y) ** 2) < 1e-3 * np.sum(x ** 2)


def test_tensors(folder):
    program = """
import torch, wavinwav
from lattice import lattice
cover, secret = 0.1 * torch.randn(2, 16000)
for model in lattice.load("lattice/lattice.pt"), wavinwav.load("models/wavinwav.pt"):
    print(model.reveal(model.hide(cover, secret)[0])[1].shape)
"""
    done = run(folder, "OSError", "-c", program)
    assert done.stdout == 2 * "torch.Size([16000])\n", done.stderr


def test_training_at_the_models_own_rate(folder, tmp_path):
    done = run(folder, "OSError", "train.py", "--data_dir", folder / "own", *TINY, "--noise",
               "gaussian", "--steps", 4, "--workers", 1, "--out_dir", tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "best.pt").exists()


@pytest.mark.parametrize("fault, words", [
    ("OSError", ["stego.py", "hide", COVER, "{folder}/fast.wav", "-o", "{out}/stego.wav"]),
    ("RuntimeError", ["train.py", "--data_dir", "{folder}/other", *TINY]),
    ("ImportError", ["train.py", "--data_dir", "{folder}/own", *TINY, "--adversarial"]),
    ("OSError", ["train.py", "--data_dir", "{folder}/own", *TINY, "--noise", "identity,resample"]),
    ("OSError", ["train.py", "--data_dir", "{folder}/other", *TINY, "--sample_rate", 22050,
                 "--wavlm_weight", 1]),
    ("RuntimeError", ["train.py", "--data_dir", "{folder}/own", *TINY, "--wavlm_weight", 1,
                      "--wavlm_source", "torchaudio/WAVLM_BASE_PLUS"]),
    ("OSError", ["train.py", "--data_dir", "{folder}/own", *TINY, "--wavlm_weight", 1,
                 "--wavlm_source", "{folder}"]),
    ("OSError", ["evaluate.py", "--cover", COVER, "--secret", "{folder}/fast.wav",
                 "--no_perceptual"]),
    ("RuntimeError", ["evaluate.py", "--cover", COVER, "--secret", SECRET, "--no_perceptual",
                      "--attacks", "--snr", 50]),
], ids=["hide", "train", "adversarial", "resample", "WavLM", "bundle", "hubconf", "evaluate",
        "attacks"])
def test_one_line_for_what_needs_it(folder, tmp_path, fault, words):
    words = [str(word).format(folder=folder, out=tmp_path) for word in words]
    if words[0] == "train.py":
        words += ["--out_dir", tmp_path / "run"]
    done = run(folder, fault, *words)
    assert done.returncode == 1 and done.stdout == "", done.stderr
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert re.search(REMEDY, done.stderr), done.stderr
    assert not os.listdir(tmp_path), "nothing half-written"


@pytest.mark.parametrize("rates", [(44100, 16000), (16000, 24000)])
def test_resample(rates):
    x = torch.from_numpy(np.stack([voice(0.1, rates[0], seed) for seed in (1, 2)]))
    y = resample(x, *rates)
    assert y.shape == (2, -(-x.shape[1] * rates[1] // rates[0]))
    assert torch.allclose(y, reference(x, *rates), atol=1e-5)  # whose kernel is computed in float32
    assert resample(x, 16000, 16000) is x


@pytest.mark.parametrize("rates", [(44100, 16000), (16000, 24000), (1001, 1000)])
def test_resample_without_a_kernel_of_all_phases(rates, monkeypatch):
    """As rates that have no common factor need it: the same, and differentiable."""
    monkeypatch.setattr(lazy_torchaudio, "LARGEST_KERNEL", 1000)  # several pieces, too
    x = torch.from_numpy(np.stack([voice(0.1, rates[0], seed) for seed in (1, 2)]))
    y = resample(x.requires_grad_(), *rates)
    assert y.shape == (2, -(-x.shape[1] * rates[1] // rates[0]))
    assert torch.allclose(y, reference(x, *rates), atol=1e-5)
    y.square().sum().backward()
    assert x.grad.isfinite().all() and x.grad.any()


def test_rates_without_a_common_factor():
    x = torch.sin(2 * torch.pi * 440 * torch.arange(4410, dtype=torch.float64) / 44101).float()
    y = resample(x, 44101, 48000)
    wanted = torch.sin(2 * torch.pi * 440 * torch.arange(len(y), dtype=torch.float64) / 48000)
    assert len(y) == 4800 and (y - wanted)[100:-100].abs().max() < 1e-3
