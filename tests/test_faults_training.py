"""Faults of training: folders in use or of another run, flags, speech, checkpoints, full disks."""

import os
import random
import resource
import shutil
import signal

import numpy as np
import pytest
import soundfile
import torch

import wavinwav
from files import checkpoint
from helpers import INN, LATTICE
from running import TRAIN, Running, python
from train import main
from training import data as data_module
from trainings import QUICK, TINY, begun, metrics, train


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """Folders without voices, with silent ones, and with files in the place of a run's."""
    folder = tmp_path_factory.mktemp("places")
    for name in ("empty", "silent", "damaged", "best.pt", "metrics.csv"):
        (folder / name).mkdir()
    for i in range(4):
        soundfile.write(folder / "silent" / f"{i}.wav", np.zeros(16000), 16000)
    for name in ("damaged/last.pt", "best.pt/best.pt", "metrics.csv/metrics.csv"):
        (folder / name).write_text("precious")
    return folder


@pytest.mark.parametrize("flags, expected", [
    (["--lr", "nan"], "--lr must be a number from 0 on, not nan"),
    (["--clip", "-1"], "--clip must be"), (["--snr_ceiling", "inf"], "--snr_ceiling must"),
    (["--workers", "-1"], "--workers must be"), (["--crop", "0"], "--crop must be above 0"),
    (["--seed", "-1"], "--seed must be"), (["--seed", str(1 << 64)], "--seed must be below"),
    (["--preset", "none"], "--preset: invalid choice"), (["--steps", "1e3"], "--steps: invalid"),
    (["--recompute"], "--recompute has no effect here: it needs --preset paper"),
    (["--init_from", INN, "--bands", "64"], "--bands has no effect here: it needs a new network"),
    (["--amp", "bf16"], "--amp has no effect here"), (["--disc_lr", "1e-4"], "needs --adversarial"),
    (["--hf_split", "dev"], "--hf_split has no effect here: it needs --hf_dataset"),
    (["--wavlm_distance", "l2"], "needs --wavlm_weight"),
    (["--preset", "paper", "--margin", "1"], "it needs --preset lapped"),
    (["--hf_dataset", "x"], "give either --data_dir or --hf_dataset"),
    (["--snr", "0", "--snr_ceiling", "40"], "--snr_ceiling has no effect here: it needs --snr"),
    (["--w_stego", "0", "--w_secret", "0", "--stft", "1"], "it needs --w_stego, --w_cover or"),
    (["--snr", "0", "--stft", "0"], "every loss has the weight 0"),
    (["--preset", "paper", "--robust_from", INN], "needs --noise, and no --init_from"),
    (["--out_dir", __file__], "is not a folder"),
    (["--data_dir", "missing"], "is not a folder"),
    (["--data_dir", "empty"], "too few audio files to train on: 0 of the 0"),
    (["--data_dir", "silent"], "no file to validate on: 100 in a row"),
    (["--val_dir", "empty"], "to validate on"),
    (["--resume"], "nothing to resume"),
    (["--out_dir", "damaged", "--resume"], "is not a WavInWav"),
    (["--out_dir", "damaged"], "last.pt exists: go on with --resume, or give another --out_dir"),
    (["--out_dir", "best.pt"], "best.pt exists: "),
    (["--out_dir", "metrics.csv"], "metrics.csv exists: "),
    (["--device", "foo"], "--device foo cannot be used"),
    (["--device", "meta"], "--device meta cannot be used"),
    (["--device", "cuda:99"], "--device cuda:99 cannot be used"),
    (["--crop", "0.05"], "--crop 0.05 is too short: 1025 samples are the least, 0.064 s"),
    (["--crop", "0.1", "--adversarial"], "--crop 0.1 is too short: 2048 samples"),
    (["--bands", 16, "--carriers", 17], "carriers must be at most the 16 bands"),
    (["--noise", "echo"], "there is no noise 'echo'"),
    (["--noise", "gain:3:-3"], "lowest and the highest"),
    (["--noise", "gaussian:nan"], "must be from"),
    (["--init_from", "damaged/last.pt"], "is not a WavInWav model"),
    (["--init_from", LATTICE], "is not a network of this version"),
    (["--init_from", INN, "--preset", "paper"], "give --preset lapped"),
], ids=str)
def test_what_is_found_out_before_the_work(speech, places, monkeypatch, capsys, flags, expected):
    monkeypatch.chdir(places)
    before = sorted(places.rglob("*"))
    with pytest.raises(SystemExit) as caught:
        train("--data_dir", speech, "--out_dir", "run", *QUICK, *flags)
    out, err = capsys.readouterr()
    message = err if caught.value.code == 2 else caught.value.code
    assert expected in message and len(message.splitlines()) == 1 and out == ""
    assert caught.value.code != 2 or message.startswith("error: ")
    assert sorted(places.rglob("*")) == before
    assert (places / "damaged" / "last.pt").read_text() == "precious"


@pytest.mark.skipif(os.name == "nt", reason="signals differ")
def test_two_runs_do_not_share_a_folder(speech, tmp_path):
    flags = "--data_dir", speech, *TINY
    process = begun(tmp_path, *flags)
    with pytest.raises(SystemExit, match="another run is at work in it; give another --out_dir"):
        train("--out_dir", tmp_path, "--resume")
    os.killpg(process.pid, signal.SIGHUP)  # its terminal is closed: it saves, and gives way
    done = process.finish()
    assert done.returncode == 128 + signal.SIGHUP and "go on with --resume" in done.stderr
    assert checkpoint.read(tmp_path / "last.pt")["training"]["step"] >= 4
    process = begun(tmp_path, *flags, "--resume")
    os.kill(process.pid, signal.SIGKILL)
    process.finish()


def test_a_finished_run_has_nothing_to_resume(speech, tmp_path, capsys):
    train("--data_dir", speech, *TINY, "--steps", 2, "--out_dir", tmp_path)
    before = (tmp_path / "last.pt").stat().st_mtime_ns
    capsys.readouterr()
    train("--data_dir", speech, "--out_dir", tmp_path, "--resume")
    assert capsys.readouterr() == (
        f"{tmp_path}/last.pt has all its 2 steps: give --steps with more\n", "")
    assert (tmp_path / "last.pt").stat().st_mtime_ns == before


def test_a_run_without_a_best_model_says_so(speech, tmp_path):
    """Weights that are NaN give no finite score."""
    train("--data_dir", speech, *TINY, "--steps", 2, "--out_dir", tmp_path / "a")
    content = checkpoint.read(tmp_path / "a" / "last.pt")
    content["state_dict"] = {name: torch.full_like(value, torch.nan) if value.is_floating_point()
                             else value for name, value in content["state_dict"].items()}
    content["training"] |= dict(step=0, used=[0], best=-torch.inf)
    torch.save(content, tmp_path / "a" / "last.pt")
    with pytest.raises(SystemExit, match="no validation gave a finite score"):
        train("--data_dir", speech, "--out_dir", tmp_path / "a", "--resume")


@pytest.fixture(scope="module")
def halfway(speech, tmp_path_factory):
    """The last.pt of a run that has stopped."""
    folder = tmp_path_factory.mktemp("halfway")
    train("--data_dir", speech, *TINY, "--steps", 2, "--save_every", 1, "--out_dir", folder)
    return folder / "last.pt"


@pytest.mark.parametrize("lacking", ["flags", "optimiser", "step", "config", "state_dict", "used",
                                     "best", "scaler", "window"])
def test_a_checkpoint_that_lacks_something(speech, halfway, tmp_path, lacking):
    content = checkpoint.read(halfway)
    content["training"]["flags"]["steps"] = 4
    for part in (content, content["training"]):
        part.pop(lacking, None)
    torch.save(content, tmp_path / "last.pt")
    with pytest.raises(SystemExit, match=f"last.pt is damaged: it lacks {lacking}"):
        main(["--data_dir", str(speech), "--out_dir", str(tmp_path), "--resume"])


@pytest.mark.skipif(os.name == "nt", reason="open files cannot be removed")
@pytest.mark.parametrize("flag", ["--data_dir", "--hf_dataset"])
def test_data_lost_in_mid_run(speech, tmp_path, flag):
    """The run saves between its checkpoints, and ends with one line."""
    folder, more = tmp_path / "speech", []
    shutil.copytree(speech, folder)
    if flag == "--hf_dataset":
        datasets = pytest.importorskip("datasets")
        items = [{"bytes": path.read_bytes(), "path": path.name} for path in speech.iterdir()]
        table = datasets.Dataset.from_dict({"audio": items}).cast_column("audio", datasets.Audio())
        table.to_parquet(folder / "train.parquet")
        more = ["--val_pairs", 1]
    process = begun(tmp_path / "run", flag, folder, *TINY, *more)
    shutil.rmtree(folder)
    code, _, errors = process.finish()
    step = checkpoint.read(tmp_path / "run" / "last.pt")["training"]["step"]
    assert code == 1 and len(errors.splitlines()) == 1, errors
    assert f"last.pt is of step {step}, go on with --resume" in errors


@pytest.mark.slow
def test_folders_that_take_no_files(speech, tmp_path):
    """Not even the first one, or no second last.pt; or what is no folder."""
    train("--data_dir", speech, *TINY, "--steps", 2, "--out_dir", tmp_path / "a")
    size = (tmp_path / "a" / "last.pt").stat().st_size
    (tmp_path / "file").touch()
    for name, largest in (("b", 1000), ("c", size - 1000), ("file/x", 1 << 30)):
        done = Running(TRAIN, "--data_dir", speech, *TINY, "--steps", 2, "--out_dir", name,
                       cwd=tmp_path, limits={resource.RLIMIT_FSIZE: largest}).finish()
        assert done.returncode == 1 and len(done.stderr.splitlines()) == 1, done.stderr
        assert done.stderr.startswith(f"error: {name}")
        assert "; is there room, and the right" in done.stderr
        assert not list(tmp_path.rglob("*tmp"))


def test_links_names_and_pipes_in_the_data(speech, tmp_path):
    """A file that links lead to counts once; what is no file does not hang."""
    (tmp_path / "deep").mkdir()
    names = [str(tmp_path / name) for name in ("0.wav", "tä\n.wav", os.fsdecode(b"t\xff.wav"))]
    for name in names:
        shutil.copy(speech / "0.wav", name)
    for link, to in (("deep/again.wav", "../0.wav"), ("00.wav", "0.wav"), ("loop.wav", "loop.wav"),
                     ("deep/up", "..")):
        os.symlink(to, tmp_path / link)
    os.mkfifo(tmp_path / "pipe.wav")
    files = data_module.find_audio(str(tmp_path))
    assert sorted(path for path, _, _ in files) == sorted(names)
    for name in names:
        assert data_module.usable_crop(name, random.Random(0), 4000, 16000, 0) is not None


@pytest.mark.parametrize("redirection", ["<&- >&- 2>&-", ">/dev/full"])
def test_streams_that_take_nothing(speech, tmp_path, redirection):
    """No file gets the numbers of closed ones, and the training does not end for that."""
    done = python(TRAIN, "--data_dir", speech, *TINY, "--steps", 2, "--out_dir", "run",
                  cwd=tmp_path, shell="exec {} " + redirection)
    assert done.returncode == 0 and done.stderr == "" and len(metrics(tmp_path / "run")) == 1
    assert wavinwav.load(tmp_path / "run" / "best.pt")
