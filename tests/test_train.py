"""train.py as a user runs it: real files, real command lines, killed and resumed. Tiny networks,
seconds each."""

import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import soundfile
import torch

import wavinwav
from files import checkpoint
from helpers import (
    INN,
    LATTICE,
    QUICK,
    ROOT,
    TINY,
    TINY_LATTICE,
    TINY_PAPER,
    gradients,
    metrics,
    train_command,
    train_killed,
    voice,
    weights,
)
from lattice import lattice
from train import learning_rate, main, parse_arguments


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A folder as people have them: several formats, rates, channel counts, silence, and files that
    are broken."""
    folder = tmp_path_factory.mktemp("data")
    (folder / "deep" / "er").mkdir(parents=True)
    for i in range(8):
        soundfile.write(folder / "deep" / f"{i}.wav", voice(1, 16000, i), 16000)
    stereo = np.stack([voice(1, 44100, 10), voice(1, 44100, 11)], 1)
    soundfile.write(folder / "a.flac", stereo, 44100)
    soundfile.write(folder / "b.OGG", voice(1, 22050, 12), 22050, format="OGG", subtype="VORBIS")
    soundfile.write(folder / "c.mp3", voice(1, 48000, 13), 48000, format="MP3")
    soundfile.write(folder / "deep" / "er" / "short.wav", voice(0.1, 8000, 14), 8000)
    soundfile.write(folder / "silent.wav", np.zeros(16000, np.float32), 16000)
    soundfile.write(folder / "empty.wav", np.zeros(0, np.float32), 16000)
    (folder / "broken.wav").write_bytes(b"RIFF of nothing")
    (folder / "notes.txt").write_text("not audio")
    return folder


def train(*flags, expect=0):
    done = subprocess.run(train_command(*flags), capture_output=True, text=True, timeout=200)
    assert done.returncode == expect, done.stderr
    assert "Traceback" not in done.stderr, done.stderr
    return done


@pytest.mark.slow
@pytest.mark.parametrize("preset", [TINY, TINY_PAPER, TINY_LATTICE],
                         ids=["lapped", "paper", "lattice"])
def test_killed_and_resumed_ends_as_uninterrupted(data, tmp_path, preset):
    flags = ["--data_dir", data, *preset, "--steps", 12]
    whole = train(*flags, "--out_dir", tmp_path / "whole")
    for part in ("skipped 2 of 15 files", "broken.wav", "empty.wav"):
        assert part in whole.stderr

    cut = tmp_path / "cut"
    train_killed(*flags, "--out_dir", cut)
    step = checkpoint.read(cut / "last.pt")["training"]["step"]
    assert step == 2 and len(metrics(cut)) == 2
    train("--data_dir", data, "--out_dir", cut, "--resume", *preset)
    assert torch.equal(weights(cut / "last.pt"), weights(tmp_path / "whole" / "last.pt"))
    assert torch.equal(weights(cut / "best.pt"), weights(tmp_path / "whole" / "best.pt"))
    assert (cut / "metrics.csv").read_text() == (tmp_path / "whole" / "metrics.csv").read_text()
    assert [row["step"] for row in metrics(cut)] == [str(step) for step in range(2, 13, 2)]
    validated = "val_bits" if preset is TINY_LATTICE else "val_stego_snr"
    assert [bool(row[validated]) for row in metrics(cut)] == [False, True] * 3


@pytest.mark.skipif(os.name == "nt", reason="signals differ")
def test_ctrl_c_saves_between_checkpoints(data, tmp_path):
    flags = ["--data_dir", data, *TINY, "--steps", 10000, "--save_every", 5000]
    process = subprocess.Popen(train_command(*flags, "--out_dir", tmp_path),
                               stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    while not (tmp_path / "metrics.csv").exists() or len(metrics(tmp_path)) < 2:
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    errors = process.communicate(timeout=60)[1]
    assert process.returncode == 130 and "--resume" in errors and "Traceback" not in errors
    assert checkpoint.read(tmp_path / "last.pt")["training"]["step"] >= 4


@pytest.mark.skipif(os.name == "nt", reason="signals differ")
def test_sigterm_to_all_processes_saves(data, tmp_path):
    """As batch schedulers send it: also to the processes that load data."""
    flags = ["--data_dir", data, *TINY, "--workers", 2, "--steps", 10000, "--save_every", 5000]
    process = subprocess.Popen(train_command(*flags, "--out_dir", tmp_path),
                               stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
                               start_new_session=True)
    while not (tmp_path / "metrics.csv").exists() or len(metrics(tmp_path)) < 2:
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGTERM)
    errors = process.communicate(timeout=60)[1]
    assert process.returncode == 143 and "--resume" in errors and "Traceback" not in errors
    assert checkpoint.read(tmp_path / "last.pt")["training"]["step"] >= 4


def members(session):
    """Processes of a session, those that have ended and wait for their parent left out."""
    found = []
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{name}/stat") as file:
                state, _, _, own = file.read().rpartition(")")[2].split()[:4]
        except OSError:  # it has ended since
            continue
        if int(own) == session and state != "Z":
            found.append(int(name))
    return found


@pytest.mark.skipif(not os.path.exists("/proc/self/stat"), reason="no list of processes here")
def test_loaders_die_with_their_parent(data, tmp_path):
    flags = ["--data_dir", data, *TINY, "--workers", 2, "--steps", 10000]
    process = subprocess.Popen(train_command(*flags, "--out_dir", tmp_path),
                               stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                               start_new_session=True)
    while not (tmp_path / "metrics.csv").exists() or len(metrics(tmp_path)) < 1:
        assert process.poll() is None
        time.sleep(0.05)
    assert len(members(process.pid)) >= 3, "two loaders, or the rest would show nothing"
    process.kill()
    process.wait()
    deadline = time.time() + 60
    while (left := members(process.pid)) and time.time() < deadline:
        time.sleep(0.1)
    for loader in left:
        os.kill(loader, signal.SIGKILL)
    assert not left, "loaders were left"


FAILING = """
import sys, objective, train

def fail(reference, estimate):
    raise ArithmeticError("no distance")

objective.stft_distance = fail
train.main(sys.argv[1:])
"""


def test_a_fault_in_a_step_ends_the_run(data, tmp_path):
    """A process that waits at its end for loaders that it cannot reach would time out."""
    words = [sys.executable, "-c", FAILING, "--data_dir", data, *TINY, "--workers", 2,
             "--steps", 1000, "--out_dir", tmp_path]
    done = subprocess.run([str(word) for word in words], capture_output=True, text=True, cwd=ROOT,
                          timeout=60)
    assert done.returncode == 1 and "ArithmeticError: no distance" in done.stderr


def test_training_learns(data, tmp_path):
    """A network that has learned nothing scores what the first validation shows, nearly."""
    train("--data_dir", data, *TINY, "--steps", 60, "--val_every", 2, "--out_dir", tmp_path)
    scores = [float(row["val_stego_snr"]) + float(row["val_secret_snr"])
              for row in metrics(tmp_path) if row["val_stego_snr"]]
    assert scores[-1] > scores[0] + 0.3, scores
    cover, secret = (torch.from_numpy(voice(1, 16000, seed)) for seed in (20, 21))
    model = wavinwav.load(tmp_path / "best.pt")
    assert model.reveal(model.hide(cover, secret)[0])[1].shape == (16000,)


def test_lattice_training_learns(data, tmp_path):
    train("--data_dir", data, *TINY_LATTICE, "--steps", 60, "--lr", "1e-2", "--val_every", 20,
          "--out_dir", tmp_path)
    bits = [float(row["val_bits"]) for row in metrics(tmp_path) if row["val_bits"]]
    assert bits[-1] < bits[0] - 0.05, bits
    cover, secret = (torch.from_numpy(voice(1, 16000, seed)) for seed in (20, 21))
    model = lattice.load(tmp_path / "best.pt")
    stego, r = model.hide(cover, secret)
    assert (model.reveal(stego)[1] - secret + r[16000:]).abs().max() < 1e-6


def test_init_from_takes_network_and_weights(data, tmp_path):
    train("--data_dir", data, *TINY, "--steps", 2, "--out_dir", tmp_path / "a")
    first = tmp_path / "a" / "best.pt"
    train("--data_dir", data, *QUICK, "--steps", 2, "--lr", "1e-12", "--out_dir", tmp_path / "b",
          "--init_from", first)
    assert torch.allclose(weights(tmp_path / "b" / "last.pt"), weights(first), atol=1e-9)
    assert wavinwav.load(tmp_path / "b" / "last.pt").config.bands == 16


def test_every_loss_trains_every_preset(data, tmp_path):
    for name, preset in (("lapped", TINY), ("paper", TINY_PAPER)):
        losses = ["--w_stego", 1, "--w_cover", 1, "--w_secret", 1, "--w_z", 1, "--wave", 1,
                  "--stft", 1, "--snr", 0.01]
        train("--data_dir", data, *preset, *losses, "--steps", 4, "--accumulate", 2,
              "--out_dir", tmp_path / name)
        assert metrics(tmp_path / name)[-1]["skipped"] == "0"


def test_non_finite_steps_are_skipped_and_many_stop_the_run(data, tmp_path):
    done = train("--data_dir", data, *TINY, "--steps", 50, "--snr", "1e38", "--max_skipped", 4,
                 "--out_dir", tmp_path, expect=1)
    assert "not finite 4 times in a row" in done.stderr
    before = checkpoint.read(tmp_path / "last.pt")
    assert before["training"]["step"] == 2 and before["training"]["skipped"].tolist() == [2, 2]
    assert weights(tmp_path / "last.pt").isfinite().all()
    assert all(not state["step"] for state in before["training"]["optimiser"]["state"].values())


def test_fused_adam_skips_a_non_finite_step():
    """What the loop and the adversary build on."""
    network = torch.nn.Linear(3, 1)
    optimiser = torch.optim.Adam(network.parameters(), 0.1, fused=True)
    states = []
    for scale in (1.0, torch.inf, 1.0):
        optimiser.zero_grad()
        (network(torch.ones(2, 3)).mean() * scale).backward()
        norm = torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimiser.found_inf = (~norm.isfinite()).float()
        optimiser.step()
        states.append(torch.cat([p.detach().flatten().clone() for p in network.parameters()]))
    assert torch.equal(states[0], states[1]) and not torch.equal(states[1], states[2])
    assert states[2].isfinite().all()


def test_bf16_training_runs_on_a_cpu(data, tmp_path):
    train("--data_dir", data, *TINY, "--amp", "bf16", "--steps", 4, "--out_dir", tmp_path)
    assert float(metrics(tmp_path)[-1]["stego_snr"]) > 5


def test_fp16_skips_what_overflows(data, tmp_path):
    """On a CPU too: each step whose scaled gradient is not finite halves the scale, which begins
    hundreds of times too high here, and changes nothing else."""
    flags = ["--data_dir", data, *TINY_PAPER, "--amp", "fp16", "--crop", 0.1, "--steps", 16]
    train(*flags, "--out_dir", tmp_path)
    saved = checkpoint.read(tmp_path / "last.pt")["training"]
    skipped = int(metrics(tmp_path)[-1]["skipped"])
    assert 0 < skipped < 16 and saved["scaler"]["scale"] == 65536 / 2 ** skipped
    assert {int(state["step"]) for state in saved["optimiser"]["state"].values()} == {16 - skipped}
    assert weights(tmp_path / "last.pt").isfinite().all()


def test_accumulation_equals_a_larger_batch(data, tmp_path):
    """In its gradient: weights would hang on last bits, where a gradient is nearly zero."""
    def first_gradient(name, *flags):
        train("--data_dir", data, *TINY, "--steps", 1, "--clip", 1e6, *flags,
              "--out_dir", tmp_path / name)
        return gradients(tmp_path / name / "last.pt")[0]

    larger = first_gradient("larger", "--batch_size", 4)
    accumulated = first_gradient("accumulated", "--accumulate", 2)
    smaller = first_gradient("smaller")
    assert (accumulated - larger).norm() < 1e-3 * larger.norm()
    assert (smaller - larger).norm() > 0.1 * larger.norm()


@pytest.mark.parametrize("flags, expected", [
    (["--schedule", "cosine", "--warmup", "4", "--steps", "12"],
     {0: 0.25, 3: 1.0, 4: 1.0, 6: 0.5 + 0.5 * 0.5 ** 0.5, 8: 0.5, 10: 0.5 - 0.5 * 0.5 ** 0.5}),
    (["--schedule", "decay", "--warmup", "0", "--steps", "8"],
     {0: 1.0, 1: 1.0, 2: 0.1, 3: 0.1, 4: 0.01, 6: 0.001, 7: 0.001})])
def test_learning_rate(flags, expected):
    args, _ = parse_arguments(["--data_dir", "x", "--lr", "1", *flags])
    for step, rate in expected.items():
        assert learning_rate(step, args) == pytest.approx(rate)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("amp", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("preset", [TINY, TINY_PAPER, TINY_LATTICE],
                         ids=["lapped", "paper", "lattice"])
def test_cuda(data, tmp_path, preset, amp):
    """fp16 has a GradScaler, which begins too high: some of the first steps may be skipped."""
    flags = ["--data_dir", data, *preset, "--device", "cuda", "--amp", amp, "--steps", 24]
    train(*flags, "--out_dir", tmp_path)
    skipped = int(metrics(tmp_path)[-1]["skipped"])
    saved = checkpoint.read(tmp_path / "last.pt")["training"]
    if amp == "fp16":
        assert saved["scaler"]["scale"] == 65536 / 2 ** skipped
    else:
        assert not saved["scaler"] and skipped == 0
    train("--data_dir", data, *QUICK, "--device", "cuda", "--out_dir", tmp_path, "--resume")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("preset", [TINY, TINY_PAPER], ids=["lapped", "paper"])
def test_no_step_waits_for_the_device(data, tmp_path, preset):
    """Between two rows of metrics.csv; torch raises where something would wait. (The noise kind
    resample waits once, for its kernel.)"""
    noise = "gaussian,speckle,lowpass,quantize,dropout,gain"
    flags = ["--data_dir", data, *preset, "--device", "cuda", "--noise", noise, "--adversarial",
             "--crop", 0.2, "--steps", 8, "--log_every", 8, "--val_every", 8, "--save_every", 8]
    script = ("import sys, torch, train\n"
              "rate = train.learning_rate\n"
              "def strict(step, args):\n"
              "    torch.cuda.set_sync_debug_mode('error' if 0 < step < 7 else 'default')\n"
              "    return rate(step, args)\n"
              "train.learning_rate = strict\n"
              "train.main(sys.argv[1:])\n")
    done = subprocess.run([sys.executable, "-c", script, *map(str, flags), "--out_dir", tmp_path],
                          capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr


def test_loader_processes_give_the_same_run(tmp_path):
    """To the last bit, of files of the model's own rate: resampling may round otherwise in a
    loader."""
    (tmp_path / "data").mkdir()
    for i in range(6):
        soundfile.write(tmp_path / "data" / f"{i}.wav", voice(1, 16000, i), 16000)
    for name, workers in (("a", 0), ("b", 2)):
        train("--data_dir", tmp_path / "data", *TINY, "--steps", 4, "--workers", workers,
              "--out_dir", tmp_path / name)
    assert torch.equal(weights(tmp_path / "a" / "last.pt"), weights(tmp_path / "b" / "last.pt"))


def test_one_line_for_what_cannot_be_done(data, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "silent").mkdir()
    for i in range(4):
        soundfile.write(tmp_path / "silent" / f"{i}.wav", np.zeros(16000), 16000)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "last.pt").write_bytes(b"damaged")
    out = ["--out_dir", tmp_path / "new"]
    cases = [
        (["--data_dir", tmp_path / "missing", *out], "is not a folder"),
        (["--data_dir", tmp_path / "empty", *out], "has 0 audio files"),
        (["--data_dir", tmp_path / "silent", *out], "silent"),
        (["--data_dir", data, "--val_dir", tmp_path / "empty", *out], "to validate on"),
        (["--data_dir", data, *out, "--resume"], "nothing to resume"),
        (["--data_dir", data, "--out_dir", tmp_path / "run"], "go on with --resume"),
        (["--data_dir", data, "--out_dir", tmp_path / "run", "--resume"], "is not a WavInWav"),
        (["--data_dir", data, *out, "--carriers", 65], "carriers must be at most the 64 bands"),
        (["--data_dir", data, *out, "--noise", "echo"], "there is no noise 'echo'"),
        (["--data_dir", data, *out, "--noise", "gain:3:-3"], "lowest and the highest"),
        (["--data_dir", data, *out, "--trained", "xyz"], "in the name of no parameter"),
        (["--data_dir", data, *out, "--init_from", data / "notes.txt"], "is not a WavInWav model"),
        (["--data_dir", data, *out, "--init_from", LATTICE], "give --preset lattice"),
        (["--data_dir", data, *out, "--init_from", INN, "--preset", "paper"],
         "give --preset lapped"),
        (["--data_dir", data, *out, "--init_from", INN, "--preset", "lattice"],
         "give --preset lapped"),
    ]
    for flags, expected in cases:
        with pytest.raises(SystemExit) as caught:  # here, since a subprocess loads torch anew
            main([str(flag) for flag in flags])
        assert expected in str(caught.value) and len(str(caught.value).splitlines()) == 1
    done = train(*cases[1][0], expect=1)
    assert done.stderr.count("\n") == 1


def test_resume_refuses_other_flags(data, tmp_path):
    train("--data_dir", data, *TINY, "--steps", 2, "--out_dir", tmp_path)
    done = train("--data_dir", data, "--lr", "0.5", "--out_dir", tmp_path, "--resume", expect=1)
    assert "--lr 0.5 differs from the" in done.stderr and "Traceback" not in done.stderr
