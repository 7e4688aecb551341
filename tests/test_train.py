"""train.py and lattice.train as a user runs them: real files, real command lines, killed and
resumed. Tiny networks, seconds each."""

import importlib.util
import os
import signal
import threading

import numpy as np
import pytest
import soundfile
import torch

import wavinwav
from files import checkpoint
from helpers import voice, voices
from lattice import lattice
from lattice.train import main as lattice_main
from running import all_end, members, python
from train import DEFAULTS, Flags, learning_rate, main
from training.flags import read
from trainings import (
    EVERYTHING,
    QUICK,
    TINY,
    TINY_LATTICE,
    TINY_PAPER,
    begun,
    metrics,
    train,
    train_killed,
    weights,
)


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


def refused(*flags, main=main):
    """The one line with which it ends."""
    with pytest.raises(SystemExit) as caught:
        train(*flags, main=main)
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


@pytest.mark.slow
@pytest.mark.parametrize("main, preset", [
    (main, TINY), (main, [*TINY_PAPER, "--average", "0.9"]), (lattice_main, TINY_LATTICE),
    (main, [*TINY, *EVERYTHING, "--wavlm_weight", 1])],
    ids=["lapped", "paper", "lattice", "everything"])
def test_killed_and_resumed_ends_as_uninterrupted(data, tmp_path, request, capsys, main, preset):
    flags = ["--data_dir", data, *preset, "--steps", 8]
    if "--wavlm_weight" in preset:
        flags += ["--wavlm_source", request.getfixturevalue("hub")]
    train(*flags, "--out_dir", tmp_path / "whole", main=main)
    errors = capsys.readouterr().err
    for part in ("skipped 2 of 15 files", "broken.wav", "empty.wav"):
        assert part in errors

    cut = tmp_path / "cut"
    train_killed(*flags, "--out_dir", cut, module=main.__module__)
    step = checkpoint.read(cut / "last.pt")["training"]["step"]
    assert step == 2 and len(metrics(cut)) == 2
    train("--out_dir", cut, "--resume", "--no_progress", main=main)
    assert torch.equal(weights(cut / "last.pt"), weights(tmp_path / "whole" / "last.pt"))
    assert torch.equal(weights(cut / "best.pt"), weights(tmp_path / "whole" / "best.pt"))
    assert (cut / "metrics.csv").read_text() == (tmp_path / "whole" / "metrics.csv").read_text()
    assert [row["step"] for row in metrics(cut)] == [str(step) for step in range(2, 9, 2)]
    validated = "val_bits" if preset is TINY_LATTICE else "val_stego_snr"
    assert [bool(row[validated]) for row in metrics(cut)] == [False, True] * 2


@pytest.mark.skipif(os.name == "nt", reason="signals differ")
@pytest.mark.parametrize("module, flags, number, send", [
    ("train", TINY, signal.SIGINT, os.kill),
    ("train", [*TINY, "--workers", 2], signal.SIGTERM, os.killpg),  # as batch schedulers send it
    ("lattice.train", TINY_LATTICE, signal.SIGTERM, os.kill)])
def test_a_signal_saves_between_checkpoints(speech, tmp_path, module, flags, number, send):
    process = begun(tmp_path, "--data_dir", speech, *flags, "--save_every", 5000, module=module)
    send(process.pid, number)
    code, _, errors = process.finish()
    assert code == 128 + number and "Traceback" not in errors
    assert errors.splitlines()[-1].startswith("stopped; ") and "--resume" in errors
    assert checkpoint.read(tmp_path / "last.pt")["training"]["step"] >= 4


@pytest.mark.skipif(not os.path.exists("/proc/self/stat"), reason="no list of processes here")
def test_loaders_die_with_their_parent(speech, tmp_path):
    process = begun(tmp_path, "--data_dir", speech, *TINY, "--workers", 2)
    assert len(members(process.pid)) >= 3, "two loaders, or the rest would show nothing"
    os.kill(process.pid, signal.SIGKILL)
    process.finish()
    assert all_end(process.pid)


def test_main_leaves_signals_as_they_were_and_runs_in_a_thread(speech, tmp_path):
    """As in a notebook."""
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    words = "--data_dir", speech, *TINY, "--steps", 2, "--out_dir"
    train(*words, tmp_path / "a")
    assert before == [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    thread = threading.Thread(target=train, args=[*words, tmp_path / "b"])
    thread.start()
    thread.join()
    assert torch.equal(weights(tmp_path / "a" / "last.pt"), weights(tmp_path / "b" / "last.pt"))


FAILING = """
from training import losses

def fail(reference, estimate):
    raise ArithmeticError("no distance")

losses.stft_distance = fail
"""


def test_a_fault_in_a_step_ends_the_run(speech, tmp_path):
    """A process that waits at its end for loaders that it cannot reach would time out."""
    done = python("-m", "train", "--data_dir", speech, *TINY, "--workers", 2, "--steps", 1000,
                  "--out_dir", tmp_path, before=FAILING)
    assert done.returncode == 1 and "ArithmeticError: no distance" in done.stderr


def test_training_learns_and_is_shown(speech, tmp_path):
    """An untrained network has nearly the scores of the first validation."""
    shown = ["--tensorboard"] if importlib.util.find_spec("tensorboard") else []
    train("--data_dir", speech, *TINY, *shown, "--steps", 60, "--val_every", 6,
          "--out_dir", tmp_path)
    scores = [float(row["val_stego_snr"]) + float(row["val_secret_snr"])
              for row in metrics(tmp_path) if row["val_stego_snr"]]
    assert scores[-1] > scores[0] + 0.3, scores
    model = wavinwav.load(tmp_path / "best.pt")
    stego, _ = model.hide(*voices(2, 1, 20))
    assert model.reveal(stego)[1].shape == (16000,)
    pytest.importorskip("matplotlib")
    assert (tmp_path / "metrics.png").stat().st_size > 5000
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    found = events.EventAccumulator(str(tmp_path))
    found.Reload()  # of one name, TensorBoard's pages would show only a sound or a picture
    waves = ["cover", "stego", "secret", "revealed secret"]
    assert found.Tags()["audio"] == [f"sounds/{wave}" for wave in waves]
    assert found.Tags()["images"] == [f"spectrograms/{wave}" for wave in waves]
    assert {"loss", "lr", "val_stego_snr"} <= set(found.Tags()["scalars"])


def test_lattice_training_learns(speech, tmp_path):
    train("--data_dir", speech, *TINY_LATTICE, "--steps", 60, "--lr", "1e-2", "--val_every", 20,
          "--out_dir", tmp_path, main=lattice_main)
    bits = [float(row["val_bits"]) for row in metrics(tmp_path) if row["val_bits"]]
    assert bits[-1] < bits[0] - 0.05, bits
    assert lattice.load(tmp_path / "best.pt").config.growth == 4


def test_init_from_takes_network_and_weights(speech, tmp_path):
    train("--data_dir", speech, *TINY, "--steps", 2, "--out_dir", tmp_path / "a")
    first = tmp_path / "a" / "best.pt"
    train("--data_dir", speech, *QUICK, "--steps", 2, "--lr", "1e-12", "--out_dir", tmp_path / "b",
          "--init_from", first)
    assert torch.allclose(weights(tmp_path / "b" / "last.pt"), weights(first), atol=1e-9)
    assert wavinwav.load(tmp_path / "b" / "last.pt").config.bands == 16


@pytest.mark.parametrize("preset", [TINY, TINY_PAPER], ids=["lapped", "paper"])
def test_metrics_have_each_term_of_the_loss(speech, tmp_path, preset):
    losses = ["--w_stego", 1, "--w_cover", 2, "--w_secret", 3, "--w_z", 4, "--wave", 5,
              "--stft", 6, "--snr", 0.01]
    train("--data_dir", speech, *preset, *losses, "--steps", 4, "--accumulate", 2,
          "--out_dir", tmp_path)
    for row in metrics(tmp_path):
        terms = {name: float(value) for name, value in row.items() if name.startswith("loss_")}
        assert terms.keys() == {"loss_z", *(f"loss_{pair}_{kind}" for kind in (
            "wave", "stft", "snr") for pair in ("stego", "cover", "secret"))}
        assert sum(terms.values()) == pytest.approx(float(row["loss"]), rel=1e-4)
        assert float(row["skipped"]) == 0


def test_a_finished_run_can_be_extended(speech, tmp_path):
    """It goes on as one whose learning rate was for more steps from there on."""
    flags = ["--data_dir", speech, *TINY_PAPER, "--schedule", "decay", "--warmup", 0, "--lr", 1e-3]
    train(*flags, "--steps", 4, "--out_dir", tmp_path)
    train("--out_dir", tmp_path, "--resume", "--steps", 16, "--log_every", 1, "--val_every", 3,
          "--no_progress")
    rows = metrics(tmp_path)
    assert [int(row["step"]) for row in rows] == [2, 4, *range(5, 17)]
    assert [float(row["lr"]) for row in rows[2:7]] == pytest.approx([1e-4] * 4 + [1e-5])
    assert "--lr 1.0 differs from the 0.001 of" in refused(
        "--out_dir", tmp_path, "--resume", "--steps", 20, "--lr", 1)


def test_skipped_steps(speech, tmp_path):
    """Those with a spike in the gradient; many that are not finite end the run."""
    run = "--data_dir", speech, *TINY, "--out_dir"
    train(*run, tmp_path / "spikes", "--steps", 20, "--spike", 1.1)
    skipped = int(metrics(tmp_path / "spikes")[-1]["skipped"])
    assert 0 < skipped < 20
    assert "20 steps in a row were skipped, up to step 20" in refused(
        *run, tmp_path / "nan", "--steps", 50, "--snr", "1e38", "--save_every", 4)
    assert weights(tmp_path / "nan" / "last.pt").isfinite().all()
    assert metrics(tmp_path / "nan")[-1]["loss"] == "nan"
    for name, at, taken in (("spikes", 20, 20 - skipped), ("nan", 16, 0)):
        saved = checkpoint.read(tmp_path / name / "last.pt")["training"]
        assert saved["step"] == at and saved["skipped"][0] == at - taken
        assert {int(x["step"]) for x in saved["optimiser"]["state"].values()} == {taken}


def test_an_exploded_loss_ends_the_run(speech, tmp_path):
    assert "the loss has exploded, to" in refused(
        "--data_dir", speech, *TINY_PAPER, "--steps", 400, "--lr", 0.1, "--clip", 1e9, "--out_dir",
        tmp_path)
    assert len(metrics(tmp_path)) < 100


def test_half_precision_on_a_cpu(speech, tmp_path):
    """In fp16 each step whose scaled gradient is not finite halves the scale, which begins hundreds
    of times too high here, and changes nothing else."""
    flags = ["--data_dir", speech, *TINY_PAPER, "--blocks", 1, "--crop", 0.07, "--batch_size", 1,
             "--val_pairs", 2, "--val_every", 16]
    train(*flags, "--amp", "bf16", "--steps", 4, "--out_dir", tmp_path / "bf16")
    assert float(metrics(tmp_path / "bf16")[-1]["loss"]) < 100
    train(*flags, "--amp", "fp16", "--steps", 16, "--out_dir", tmp_path)
    saved = checkpoint.read(tmp_path / "last.pt")["training"]
    skipped = int(metrics(tmp_path)[-1]["skipped"])
    assert 0 < skipped < 16 and saved["scaler"]["scale"] == 65536 / 2 ** skipped
    assert {int(state["step"]) for state in saved["optimiser"]["state"].values()} == {16 - skipped}
    assert weights(tmp_path / "last.pt").isfinite().all()


@pytest.mark.parametrize("flags, expected", [
    (["--schedule", "cosine", "--warmup", "4", "--steps", "12"],
     {0: 0.25, 3: 1.0, 4: 1.0, 6: 0.5 + 0.5 * 0.5 ** 0.5, 8: 0.5, 10: 0.5 - 0.5 * 0.5 ** 0.5}),
    (["--schedule", "decay", "--warmup", "0", "--steps", "8"],
     {0: 1.0, 1: 1.0, 2: 0.1, 3: 0.1, 4: 0.01, 6: 0.001, 7: 0.001})])
def test_learning_rate(flags, expected):
    words = ["--data_dir", "x", "--out_dir", "x", "--lr", "1", *flags]
    flags, *_ = read(Flags, DEFAULTS, "", words)
    for step, rate in expected.items():
        assert learning_rate(step, flags) == pytest.approx(rate)


STRICT = """
import sys, torch, train
rate = train.learning_rate

def strict(step, flags):
    torch.cuda.set_sync_debug_mode("error" if 0 < step < 7 else "default")
    return rate(step, flags)

train.learning_rate = strict
train.main(sys.argv[1:])
"""


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("amp", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("preset", [TINY, TINY_PAPER], ids=["lapped", "paper"])
def test_cuda(speech, tmp_path, preset, amp):
    """Between two rows of metrics.csv no step waits for the device: torch raises where one would.
    (The noise kind resample waits once, for its kernel.)"""
    noise = "gaussian,speckle,lowpass,quantize,dropout,gain"
    done = python("-c", STRICT, "--data_dir", speech, *preset, "--device", "cuda", "--amp", amp,
                  "--noise", noise, "--adversarial", "--crop", 0.2, "--steps", 24,
                  *"--log_every 8 --val_every 8 --save_every 8".split(), "--out_dir", tmp_path)
    assert done.returncode == 0, done.stderr
    skipped = int(metrics(tmp_path)[-1]["skipped"])
    saved = checkpoint.read(tmp_path / "last.pt")["training"]
    if amp == "fp16":  # whose GradScaler begins too high: some of the first steps may be skipped
        assert saved["scaler"]["scale"] == 65536 / 2 ** skipped
    else:
        assert not saved["scaler"] and skipped == 0


def test_loader_processes_give_the_same_run(speech, tmp_path):
    """To the last bit, of files of the model's own rate: resampling may round otherwise in a
    loader."""
    for name, workers in (("a", 0), ("b", 2)):
        train("--data_dir", speech, *TINY, "--steps", 4, "--workers", workers,
              "--out_dir", tmp_path / name)
    assert torch.equal(weights(tmp_path / "a" / "last.pt"), weights(tmp_path / "b" / "last.pt"))
