"""evaluate.py: the command on a folder and on two files, its outputs, and what it refuses."""

import csv
import os
import re
import signal
import sys
import time

import numpy as np
import pytest
import soundfile

import evaluate
from evaluation import scores
from evaluation.speed import measure_speed
from helpers import INN, voice, voices
from running import ROOT, Running, python


def run(*words):
    evaluate.main([str(word) for word in words])


def table(text):
    return {line[:16].strip(): line[16:].split() for line in text.splitlines()}


def test_folder(tmp_path, capsys):
    for i in range(3):
        soundfile.write(tmp_path / f"{i}.wav", 0.3 * voice(3.2, 8000, i), 8000)
    run("--data_dir", tmp_path, "--model", "lattice", "paper", "--pairs", 2, "--rate", 8000,
        "--no_perceptual", "--snr", 50, "--attacks", "--csv", tmp_path / "t.csv")
    out = table(capsys.readouterr().out)
    with open(tmp_path / "t.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    lines = {(line["row"], line["score"]): line for line in rows if line["table"] == "systems"}
    assert list(dict.fromkeys(system for system, _ in lines)) == [
        "lattice, 50 dB", "lattice, 58 dB, masking 1", "paper", "LSB, 4 bits", "LSB, 6 bits",
        "LSB, 8 bits", "frequency chop", "Opus, 20 kbit/s", "Opus, 32 kbit/s", "Opus, 60 kbit/s"]
    assert all(line["pairs"] == "2" for key, line in lines.items() if key[1] == "secret SNR")
    few, many = (lines[f"LSB, {bits} bits", "secret SNR"] for bits in (4, 8))
    assert float(many["mean"]) > float(few["mean"]) + 20
    stego = lines["LSB, 4 bits", "stego SNR"]
    assert float(stego["interval"]) > 0, "two different pairs"
    assert out["LSB, 4 bits"][0].startswith(f"{float(stego['mean']):.1f}±")
    attacked = {(line["row"], line["score"]): line for line in rows if line["table"] == "attacks"}
    assert attacked["noise 70 dB", "lattice SNR"]["lost"] == "2"
    clean, noisy = (attacked[row, "paper SNR"]["mean"] for row in ("none", "noise 20 dB"))
    assert float(clean) > 5 and float(noisy) < float(clean)


def test_unusable_files_are_left_out(tmp_path, capsys):
    for i in range(2):
        soundfile.write(tmp_path / f"{i}.wav", 0.3 * voice(3.2, 8000, i), 8000)
    x = 0.3 * voice(3.2, 8000, 3)
    soundfile.write(tmp_path / "int16_scale.wav", 32768 * x, 8000, "FLOAT")
    soundfile.write(tmp_path / "nan.wav", np.where(np.abs(x) > 0.01, x, np.nan), 8000, "FLOAT")
    run("--data_dir", tmp_path, "--model", INN, "--pairs", 6, "--rate", 8000, "--no_perceptual")
    out, err = capsys.readouterr()
    assert "INN, 48 dB" in out and not re.search(r"[01].wav", err)
    assert "int16_scale.wav is left out: " in err and "nan.wav is left out: " in err
    (tmp_path / "0.wav").unlink()
    with pytest.raises(SystemExit, match="^error: there are fewer than 2 usable audio files"):
        run("--data_dir", tmp_path, "--no_perceptual", "--model", INN, "--rate", 8000)


def test_missing_packages_are_named_in_one_line(monkeypatch, paths, capsys):
    words = "--cover", paths["cover"], "--secret", paths["secret"], "--model", INN
    message = "^error: [a-z]+ is not installed: pip install -r requirements-eval.txt"
    with monkeypatch.context() as without:
        for name in ("pesq", "pystoi", "matplotlib", "matplotlib.figure"):
            without.setitem(sys.modules, name, None)  # importing it fails
        for more in ([], ["--no_perceptual", "--plot", "x.png"]):
            with pytest.raises(SystemExit, match=message):
                run(*words, *more)
    pytest.importorskip("pesq")
    pytest.importorskip("pystoi")
    monkeypatch.setitem(sys.modules, "resemblyzer", None)
    scores.speaker_encoder.cache_clear()
    run(*words)
    scores.speaker_encoder.cache_clear()
    out, err = capsys.readouterr()
    assert "resemblyzer is not installed: pip install" in err and "similarity" not in out


@pytest.mark.parametrize("flag, name, reason", [
    ("--plot", "folder.png", "{} cannot be written (it is not a file)"),
    ("--csv", "none/t.csv", "{} cannot be written (No such file or directory)"),
    ("--page", "file/listen", "{} cannot be written (Not a directory)"),
    ("--page", "file", "{}/index.html cannot be written (Not a directory)"),
    ("--csv", 300 * "x", "{} cannot be written (File name too long)"),
    ("--plot", "p.bmp", "{} cannot be written: give a name that ends in .png, .svg or .pdf"),
    ("--csv", "file", "none.wav does not exist")])
def test_outputs_are_checked_before_the_work(tmp_path, flag, name, reason):
    """There is no cover, so that the work fails: existing files are left as they were."""
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "file").write_text("as it was")
    with pytest.raises(SystemExit) as caught:
        run("--cover", "none.wav", "--secret", "none.wav", "--no_perceptual", flag,
            tmp_path / name)
    assert caught.value.code.startswith("error: " + reason.format(tmp_path / name))
    assert len(caught.value.code.splitlines()) == 1
    assert sorted(os.listdir(tmp_path)) == ["file", "folder.png"]
    assert (tmp_path / "file").read_text() == "as it was"


def command(paths, *more):
    return (os.path.join(ROOT, "evaluate.py"), "--cover", paths["cover"], "--secret",
            paths["secret"], "--model", INN, "--no_perceptual", *more)


@pytest.mark.parametrize("closed", ["| head -1", ">&- 2>&-"])
def test_csv_is_written_although_stdout_is_closed(tmp_path, paths, closed):
    done = python(*command(paths, "--csv", "t.csv"), cwd=tmp_path, shell="{} " + closed)
    assert done.returncode == 0 and done.stderr == ""
    with open(tmp_path / "t.csv", newline="") as file:
        assert len(list(csv.DictReader(file))) > 20


def test_a_signal_ends_the_run_in_one_line(tmp_path, paths):
    (tmp_path / "tmp").mkdir()
    process = Running(*command(paths, "--attacks"), temporary=str(tmp_path / "tmp"))
    while not os.listdir(tmp_path / "tmp"):
        assert process.poll() is None, process.finish()
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGTERM)
    code, _, err = process.finish()
    assert (code, err) == (1, "error: interrupted\n")
    assert not os.listdir(tmp_path / "tmp")


@pytest.mark.parametrize("words", [
    "", "--cover a.wav", "--page x --cover a.wav", "--page x --csv t.csv",
    "--data_dir x --cover a --secret b", "--data_dir x --steganalysis x",
    "--cover a --secret b --steganalysis x", "--data_dir x --steganalysis y --attacks",
    "--data_dir x --pairs 0", "--data_dir x --snr 52 nan", "--data_dir x --seed -1"])
def test_contradicting_flags(words, capsys):
    with pytest.raises(SystemExit) as caught:
        run(*words.split())
    error = capsys.readouterr().err
    assert caught.value.code == 2 and error.startswith("error: ") and error.count("\n") == 1


def test_measure_speed(capsys):
    measure_speed(INN, minutes=0.05, channels=2)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines] == ["hide", "reveal"]
    for line in lines:
        speed, memory = re.search(r"([\d.]+) times real time.* (\d+) KiB", line).groups()
        assert float(speed) > 0 and float(memory) > 50_000


def test_two_files_of_other_rates_and_lengths(tmp_path, capsys):
    soundfile.write(tmp_path / "a.wav", 0.3 * voice(0.5, 16000, 1), 16000)
    soundfile.write(tmp_path / "b.flac", 0.3 * voices(2, 0.6, 2, 24000).numpy().T, 24000)
    soundfile.write(tmp_path / "silent.wav", np.zeros(16000), 16000)
    words = "--no_perceptual", "--model", "lattice", "--snr", 50, "--cover", tmp_path / "a.wav"
    run(*words, "--secret", tmp_path / "b.flac")
    out = table(capsys.readouterr().out)
    assert abs(float(out["lattice, 50 dB"][0]) - 50) < 0.5, "one pair has no interval"
    assert float(out["lattice, 50 dB"][2]) > float(out["LSB, 6 bits"][2]) + 10
    with pytest.raises(SystemExit, match="silent.wav is silent"):
        run(*words, "--secret", tmp_path / "silent.wav")
