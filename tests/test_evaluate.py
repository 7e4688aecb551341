"""evaluate.py: each method, score and attack against what is known of it, then the command on files of our own."""

import csv
import json
import math
import os
import sys
import types

import numpy as np
import pytest
import soundfile
import torch

import evaluate
import noise
import sound
import stego
from helpers import COVER, INN, voice


@pytest.fixture
def paths(tmp_path):
    """A pair of 1 s as evaluate writes it; its length is no multiple of a hop."""
    return evaluate.write_pair(tmp_path, *(torch.from_numpy(0.3 * voice(1.001, 16000, seed)) for seed in (1, 2)), 16000)


def run(method, paths):
    """cover, secret, stego, revealed as samples, all from files."""
    method.hide(paths["cover"], paths["secret"], paths["stego"])
    method.reveal(paths["stego"], paths["revealed"])
    assert all(soundfile.info(path).subtype == "PCM_16" for path in paths.values())
    return [evaluate.samples(path)[0] for path in paths.values()]


@pytest.mark.parametrize("bits", [1, 4, 8])
def test_embedding_takes_the_nearest_sample_that_fits(bits):
    rng = np.random.default_rng(0)
    cover = np.concatenate([rng.integers(-32768, 32768, 300), [-32768] * 50, [32767] * 50])
    values = rng.integers(0, 2 ** bits, 400)
    hidden = evaluate.embed(cover, values, bits)
    candidates = np.arange(-32768, 32768)
    for x, value, y in zip(cover, values, hidden):
        fitting = candidates[candidates % 2 ** bits == value]
        assert y in fitting and abs(y - x) == np.abs(fitting - x).min()


@pytest.mark.parametrize("bits", [4, 6, 8])
def test_lsb(paths, bits):
    cover, secret, hidden, revealed = run(evaluate.lsb(bits), paths)
    assert np.abs(hidden - cover).max() <= 2 ** bits / 2
    assert np.abs(revealed - secret).max() <= 2 ** (16 - bits) / 2
    assert not revealed[np.abs(secret) < 2 ** (15 - bits)].any(), "mid-tread: silence is silence"
    loud = evaluate.lsb(bits)
    soundfile.write(paths["secret"], np.array([32767, -32768] * 500, np.int16), 16000)
    soundfile.write(paths["cover"], np.array([32767, -32768] * 500, np.int16), 16000)
    assert np.abs(np.subtract(*run(loud, paths)[1::2])).max() <= 2 ** (16 - bits), "full scale does not wrap around"


def test_frequency_chop(paths):
    cover, secret, hidden, revealed = run(evaluate.frequency_chop(), paths)
    whole = len(cover) // 128 * 128
    spectra = [evaluate.lapped(torch.from_numpy(x[:whole] / 1)[None], 128)[0] for x in (cover, secret, hidden, revealed)]
    assert (spectra[2][:64] - spectra[0][:64]).square().mean() < 0.2, "the cover's lower half, but for rounding"
    assert (spectra[3][:64] - spectra[1][:64]).square().mean() < 0.4, "the secret's lower half, rounded twice"
    assert np.array_equal(hidden[whole:], cover[whole:]) and not revealed[whole:].any()


@pytest.mark.parametrize("rate, kbps", [(16000, 20), (48000, 60), (11025, 32)])
def test_opus(tmp_path, rate, kbps):
    paths = evaluate.write_pair(tmp_path, *(torch.from_numpy(0.3 * voice(2, rate, seed)) for seed in (1, 2)), rate)
    secret = evaluate.samples(paths["secret"])[0]
    size = len(evaluate.encode_opus(secret.astype(np.float32) / 32768, rate, kbps)) * 8 / 1000 / 2
    assert 0.93 * kbps < size <= kbps, "all bytes of the file, closest from below"
    cover, secret, hidden, revealed = run(evaluate.opus(kbps), paths)
    bits = math.ceil(kbps * 1000 / rate)
    assert np.abs(hidden - cover).max() == 2 ** (bits - 1), "the fewest bits that hold it"
    assert abs(evaluate.delay(*(torch.from_numpy(x / 32768) for x in (secret, revealed)))) <= 1, "no pre-skip is left"
    assert len(revealed) == len(secret) and np.corrcoef(secret, revealed)[0, 1] > 0.9


def test_opus_that_cannot_be(paths):
    with pytest.raises(sound.StegoError, match="needs more than 2 kbit/s"):
        run(evaluate.opus(2), paths)
    with pytest.raises(sound.StegoError, match="no Ogg"):
        evaluate.opus(20).reveal(paths["cover"], paths["revealed"])
    assert evaluate.score_pair(evaluate.opus(2), paths, False) == {}


def test_rate_of_cells():
    cover = (3000 * voice(1, 16000, 1)).astype(np.int16)
    for bits in (1, 2, 3, 4, 8):
        level = evaluate.fixed_bits_snr(cover, bits)
        rate = evaluate.rate_of_snr(sound.from_pcm(cover), level)
        assert abs(rate - 0.5 * math.log2(4 ** bits + 3)) < 1e-4, "cells of 2^B LSB carry B bits, almost all that fits"


def test_bound():
    torch.manual_seed(0)
    noise, cover = 0.1 * torch.randn(2, 65536)
    power = sound.FULL_SCALE ** 2 * cover.square().mean().item()
    level = {bits: 10 * math.log10(power / ((4 ** bits - 1) / 12)) for bits in (1, 2, 4)}  # just these bits fit
    for bits in level:  # white noise: 6.02 dB a bit, and a little for the dents that 15 squares find in its spectrum
        assert 0 <= evaluate.bound(cover, noise, level[bits]) - 6.02 * bits < 0.6
    assert abs(evaluate.bound(cover, noise, 200)) < 0.6, "no room, no secret"
    assert evaluate.bound(cover, noise, -20) < 10 * math.log10(12 * 3277 ** 2) + 0.1, "the revealed file is rounded"
    # one half of the spectrum empty: all bits go to the other, 12.04 dB a bit there
    half = torch.fft.irfft(torch.cat([torch.fft.rfft(noise)[:16384], torch.zeros(16385)]))
    assert 23.5 < evaluate.bound(cover, half, level[2]) < 26.5
    # the closed form of water-filling, by sorting
    x = 32768 * torch.from_numpy(voice(4.096, 16000, 3)).double()
    squares = evaluate.lapped(x[None], 256).square()
    v = torch.nn.functional.avg_pool2d(squares, (5, 3), 1, (2, 1), count_include_pad=False).flatten().sort(descending=True)[0]
    levels = (v.log2().cumsum(0) - 2 * 2 * len(x)) / torch.arange(1, len(v) + 1)  # 2 bits a sample
    water = 2 ** levels[(levels < v.log2()).nonzero()[-1]]
    expected = 10 * torch.log10(x.square().mean() / (v.minimum(water).mean() + 1 / 12))
    assert abs(evaluate.bound(cover, x.float() / 32768, level[2]) - expected) < 0.01


def test_lsd():
    x = 0.1 * torch.randn(16000, generator=torch.Generator().manual_seed(0))
    assert evaluate.lsd(x, x) == 0
    assert abs(evaluate.lsd(x, 2 * x) - 20 * math.log10(2)) < 0.01
    assert evaluate.lsd(torch.zeros(5000), torch.zeros(5000)) == 0 and math.isfinite(evaluate.lsd(x[:100], 0 * x[:100]))


def test_auc():
    rng = np.random.default_rng(0)
    negative, positive = rng.integers(0, 10, 40), rng.integers(3, 12, 50)
    pairs = [(p > n) + 0.5 * (p == n) for n in negative for p in positive]
    assert abs(evaluate.auc(negative, positive) - np.mean(pairs)) < 1e-12
    assert evaluate.auc(np.zeros(5), np.zeros(7)) == 0.5 and evaluate.auc(np.zeros(5), np.ones(7)) == 1


def test_means_count_the_lost_and_leave_out_the_rest():
    assert evaluate.mean_interval([1.0, 3.0, math.inf, math.nan]) == (2, pytest.approx(1.96))
    assert evaluate.mean_interval([4.0, None])[0] == 2, "lost: 0 dB"
    row = evaluate.summary("m", "m", [{"secret SNR": math.inf}, {"secret SNR": 3.0}, {"secret SNR": None}, {}])
    assert (row["pairs"], row["failed"], row["lossless"], row["lost"]) == (4, 1, {"secret SNR": 1}, {"secret SNR": 1})
    assert row["scores"]["secret SNR"][0] == 1.5 and evaluate.plain(row["values"]) == {"secret SNR": [None, 3.0, None, None]}
    assert evaluate.cell("secret SNR", [math.inf] * 3, 1) == ("lossless", "")
    assert evaluate.cell("gain", [None] * 3, 1) == ("lost", "")
    assert evaluate.cell("secret PESQ", [2.0, math.nan], 2) == ("2.00", "secret PESQ: 1 without")


def test_delay_and_mp3():
    x = torch.from_numpy(voice(1, 16000, 1))
    assert evaluate.delay(x, torch.nn.functional.pad(x, (137, 0))) == 137 and evaluate.delay(x, x[41:]) == -41
    if "MP3" in soundfile.available_formats():
        for rate in (16000, 44100, 8000):
            x = torch.from_numpy(0.3 * voice(1, rate, 1))
            assert sound.snr_of(x, evaluate.mp3(x, rate)) > 12


def test_attacks(paths, monkeypatch):
    model = stego.load_model(INN)
    scores = evaluate.attack_pair(model, evaluate.ours(model, "INN"), paths, 0)
    assert list(scores) == list(evaluate.ATTACKS)
    assert scores["none"] > scores["noise 70 dB"] > scores["noise 60 dB"] > scores["noise 50 dB"]
    assert min(scores["one sample"], scores["one lost"]) > scores["noise 50 dB"], "a few frames"
    assert scores == evaluate.attack_pair(model, evaluate.ours(model, "INN"), paths, 0), "the noise has a seed"

    def reveal(stego_path, secret_path, model, force, overwrite):  # as a lattice model would: everything or nothing
        if open(stego_path, "rb").read() != open(paths["stego"], "rb").read():
            raise sound.StegoError("changed")
        sound.write_audio(secret_path, evaluate.samples(paths["secret"])[0].astype(np.int16), 16000)

    monkeypatch.setattr(stego, "reveal", reveal)
    lattice = types.SimpleNamespace(config=types.SimpleNamespace(preset="lattice"))
    scores = evaluate.attack_pair(lattice, evaluate.lsb(4), paths, 0)
    assert scores.pop("none") == math.inf and set(scores.values()) == {None}


def test_detector():
    assert 20_000 < sum(p.numel() for p in evaluate.Detector().parameters()) < 50_000
    covers = [np.round(8000 * voice(3, 2000, seed)).astype(np.int64) for seed in range(12)]
    rng = np.random.default_rng(0)
    marked = [(x, evaluate.embed(x, rng.integers(0, 256, len(x)), 8)) for x in covers]
    accuracy, area = evaluate.detect(marked[:8], marked[8:], 2000, 0, steps=25, batch=8)
    assert accuracy > 0.8 and area > 0.9
    assert evaluate.detect(marked[:8], [(x, x) for x in covers[8:]], 2000, 0, steps=2, batch=2) == (0.5, 0.5)


def table(text):
    return {line[:16].strip(): line[16:].split() for line in text.splitlines()}


def test_the_command_on_a_folder(tmp_path, capsys):
    for part, first in (("a", 0), ("b", 10)):
        os.mkdir(tmp_path / part)
        for i in range(first, first + 3):
            soundfile.write(tmp_path / part / f"{i}.wav", 0.3 * voice(3.2, 16000, i), 16000)
    words = ["--data_dir", tmp_path / "a", "--model", INN, "--pairs", "2", "--rate", "8000", "--no_perceptual",
             "--snr", "50", "--attacks", "--csv", tmp_path / "t.csv", "--json", tmp_path / "t.json"]
    evaluate.main([str(word) for word in words])
    out = table(capsys.readouterr().out)
    with open(tmp_path / "t.json") as file:
        tables = json.load(file, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    methods = {row["method"]: row for row in tables["methods"]}
    assert list(methods) == [*(f"INN, {level} dB" for level in evaluate.INN_SNRS), "LSB, 4 bits", "LSB, 6 bits", "LSB, 8 bits", "frequency chop", "Opus, 20 kbit/s",
                             "Opus, 32 kbit/s", "Opus, 60 kbit/s", "bound, 50 dB"]
    assert all(row["pairs"] == 2 and row["failed"] == 0 for row in methods.values())
    for name in ("LSB, 4 bits", "LSB, 8 bits"):
        values = methods[name]["values"]
        assert all(x > 0 for x in values["below bound"]) and values["stego SNR"][0] != values["stego SNR"][1]
        assert out[name][0].startswith(f"{np.mean(values['stego SNR']):.1f}±")
    assert methods["LSB, 8 bits"]["scores"]["secret SNR"][0] > methods["LSB, 4 bits"]["scores"]["secret SNR"][0] + 20
    with open(tmp_path / "t.csv") as file:
        lines = {(line["table"], line["method"], line["score"]): line for line in csv.DictReader(file)}
    line = lines["methods", "LSB, 4 bits", "secret SNR"]
    assert float(line["mean"]) == pytest.approx(methods["LSB, 4 bits"]["scores"]["secret SNR"][0], rel=1e-4)
    assert line["pairs"] == "2" and ("attacks", "INN", "MP3 128 kb/s") in lines


def test_own_files_and_the_default_models(tmp_path, capsys):
    """Two files of unlike rate and length; the shipped models, and a picture where matplotlib is there."""
    soundfile.write(tmp_path / "a.wav", 0.3 * voice(0.5, 16000, 1), 16000)
    soundfile.write(tmp_path / "b.flac", np.stack([0.3 * voice(0.6, 24000, 2)] * 2, 1), 24000)
    words = ["--cover", tmp_path / "a.wav", "--secret", tmp_path / "b.flac", "--no_perceptual", "--snr", "50"]
    evaluate.main([str(word) for word in words])
    out = table(capsys.readouterr().out)
    assert abs(float(out["lattice, 50 dB"][0]) - 50) < 0.5 and float(out["INN, 46 dB"][2]) > 20
    assert float(out["lattice, 50 dB"][2]) > float(out["LSB, 6 bits"][2]) + 10
    assert {"lattice, 2 bits", "lattice, 4 bits", "bound, 50 dB"} <= set(out)
    assert "±" not in " ".join(out["INN, 46 dB"]), "one pair has no interval"
    soundfile.write(tmp_path / "silent.wav", np.zeros(16000), 16000)
    with pytest.raises(SystemExit, match="silent.wav is silent"):
        evaluate.main(["--cover", str(tmp_path / "a.wav"), "--secret", str(tmp_path / "silent.wav")])


def test_pictures(tmp_path, paths):
    pytest.importorskip("matplotlib")
    evaluate.plot_pair(tmp_path / "plot.png", evaluate.lsb(4), paths)
    rows = [evaluate.summary("LSB", "LSB", [evaluate.score_pair(evaluate.lsb(4), paths, False)])]
    evaluate.plot_curve(tmp_path / "curve.png", rows, [(40, 50), (50, 40)])
    for name in ("plot.png", "curve.png"):
        assert (tmp_path / name).read_bytes()[:4] == b"\x89PNG" and (tmp_path / name).stat().st_size > 10000


def test_speech_scores():
    pytest.importorskip("pesq")
    pytest.importorskip("pystoi")
    x = sound.from_pcm((soundfile.read(COVER, dtype="int16")[0])[:48000])
    same, noisy = (evaluate.speech_scores(x, y, 16000) for y in (x, noise.gaussian(x, torch.randn_like(x), 0)))
    assert same["PESQ"] > 4.5 and same["STOI"] > 0.99 and noisy["PESQ"] < 2 and noisy["STOI"] < 0.95
    assert math.isnan(evaluate.speech_scores(0 * x, x, 16000)["PESQ"])


def test_missing_extras_are_told_in_one_line(monkeypatch, paths):
    for name in ("pesq", "pystoi", "matplotlib", "matplotlib.figure"):
        monkeypatch.setitem(sys.modules, name, None)  # importing it fails
    for more in ([], ["--no_perceptual", "--plot", "x.png"], ["--no_perceptual", "--curve", "x.png"]):
        with pytest.raises(SystemExit, match="^[a-z]+ is not installed: pip install -r requirements-eval.txt"):
            evaluate.main(["--cover", paths["cover"], "--secret", paths["secret"], "--model", INN, *more])


def test_labels_of_models(tmp_path):
    other = str(tmp_path / "best.pt")
    os.symlink(INN, other)
    assert list(evaluate.load_models([INN, other])) == ["INN", other]
    assert list(evaluate.load_models(None))[:2] == ["INN", "lattice"]


def test_flags_that_do_not_go_together(tmp_path, capsys):
    for words in ([], ["--cover", "a.wav"], ["--data_dir", "x", "--cover", "a", "--secret", "b"],
                  ["--data_dir", str(tmp_path), "--steganalysis", str(tmp_path)], ["--data_dir", str(tmp_path), "--pairs", "0"],
                  ["--data_dir", str(tmp_path), "--csv", str(tmp_path / "none" / "t.csv")]):
        with pytest.raises(SystemExit) as caught:
            evaluate.main(words)
        assert caught.value.code == 2
