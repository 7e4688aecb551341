"""evaluation/baselines.py: each system against what is known of it, the bound against formulas."""

import math
import os

import numpy as np
import pytest
import soundfile
import torch
from torch.nn import functional

from evaluation import baselines, scores
from evaluation.attacks import delay
from files import sound
from helpers import INN, pair_files, voice
from wavinwav import lapped


def run(system, paths):
    """Samples of cover, secret, stego and revealed secret, read from their files."""
    system.hide(paths["cover"], paths["secret"], paths["stego"])
    system.reveal(paths["stego"], paths["revealed"])
    assert all(soundfile.info(path).subtype == "PCM_16" for path in paths.values())
    return [scores.samples(path)[0] for path in paths.values()]


@pytest.mark.parametrize("bits", [1, 4, 8])
def test_embed_takes_the_nearest_congruent_sample(bits):
    rng = np.random.default_rng(0)
    cover = np.concatenate([rng.integers(-32768, 32768, 300), [-32768] * 50, [32767] * 50])
    values = rng.integers(0, 2 ** bits, 400)
    hidden = baselines.embed(cover, values, bits)
    candidates = np.arange(-32768, 32768)
    for x, value, y in zip(cover, values, hidden):
        fitting = candidates[candidates % 2 ** bits == value]
        assert y in fitting and abs(y - x) == np.abs(fitting - x).min()


@pytest.mark.parametrize("bits", [4, 6, 8])
def test_lsb(paths, bits):
    cover, secret, hidden, revealed = run(baselines.lsb(bits), paths)
    assert np.abs(hidden - cover).max() <= 2 ** bits / 2
    assert np.abs(revealed - secret).max() <= 2 ** (16 - bits) / 2
    assert not revealed[np.abs(secret) < 2 ** (15 - bits)].any(), "mid-tread: silence is silence"
    for name in ("cover", "secret"):  # nothing wraps around at full scale
        soundfile.write(paths[name], np.array([32767, -32768] * 500, np.int16), 16000)
    _, secret, _, revealed = run(baselines.lsb(bits), paths)
    assert np.abs(secret - revealed).max() <= 2 ** (16 - bits)


def test_frequency_chop(paths):
    recordings = run(baselines.frequency_chop(), paths)
    whole = len(recordings[0]) // 128 * 128
    cover, secret, hidden, revealed = (
        lapped(torch.from_numpy(x[:whole] / 1)[None], 128)[0] for x in recordings)
    rounding = (hidden[:64] - cover[:64]).square().mean()
    assert rounding < 0.2, "the cover's lower half, but for rounding"
    rounding = (revealed[:64] - secret[:64]).square().mean()
    assert rounding < 0.4, "the secret's lower half, rounded twice"
    cover, _, hidden, revealed = recordings
    assert np.array_equal(hidden[whole:], cover[whole:]) and not revealed[whole:].any()


@pytest.mark.parametrize("rate, kbps", [(16000, 20), (48000, 60), (11025, 32)])
def test_opus(tmp_path, rate, kbps):
    paths = pair_files(tmp_path, 2, rate)
    secret = soundfile.read(paths["secret"], dtype="float32")[0]
    size = len(baselines.encode_opus(secret, rate, kbps)) * 8 / 1000 / 2  # kbit/s
    assert 0.93 * kbps < size <= kbps, "all bytes of the file, closest from below"
    cover, secret, hidden, revealed = run(baselines.opus(kbps), paths)
    bits = math.ceil(kbps * 1000 / rate)
    assert np.abs(hidden - cover).max() == 2 ** (bits - 1), "the fewest bits that hold it"
    lag = delay(*(torch.from_numpy(x / 32768) for x in (secret, revealed)))
    assert abs(lag) <= 1, "no pre-skip is left"
    assert len(revealed) == len(secret) and np.corrcoef(secret, revealed)[0, 1] > 0.9


def test_opus_refuses(paths):
    with pytest.raises(sound.StegoError, match="needs more than 2 kbit/s"):
        run(baselines.opus(2), paths)
    with pytest.raises(sound.StegoError, match="no Ogg"):
        baselines.opus(20).reveal(paths["cover"], paths["revealed"])
    assert scores.score_pair(baselines.opus(2), paths, False) == {}


def test_cells_of_odd_width_carry_what_fits():
    cover = sound.from_pcm((3000 * voice(1, 16000, 1)).astype(np.int16))
    for width in (3, 5, 15):
        power = sound.FULL_SCALE ** 2 * cover.square().mean().item()
        snr = 10 * math.log10(power / ((width ** 2 - 1) / 12))
        assert abs(baselines.rate_of_snr(cover, snr) - math.log2(width)) < 1e-4


def snr_of_rate(cover, bits):
    """The stego SNR in dB at which just so many bits a sample fit into a cover signal."""
    power = sound.FULL_SCALE ** 2 * cover.square().mean().item()
    return 10 * math.log10(power / ((4 ** bits - 1) / 12))


def test_bound_of_noise():
    noise, cover = 0.1 * torch.randn(2, 65536)
    for bits in (1, 2, 4):  # 6.02 dB a bit; 15 squares find dents in its spectrum, worth a little
        gain = baselines.bound(cover, noise, snr_of_rate(cover, bits)) - 6.02 * bits
        assert 0 <= gain < 0.6
    assert abs(baselines.bound(cover, noise, 200)) < 0.6, "no room, no secret"
    rounded = 10 * math.log10(12 * 3277 ** 2)
    assert baselines.bound(cover, noise, -20) < rounded + 0.1, "the revealed file is rounded"
    # One half of the spectrum is empty: all bits go to the other, 12.04 dB a bit there.
    half = torch.fft.irfft(torch.cat([torch.fft.rfft(noise)[:16384], torch.zeros(16385)]))
    assert 23.5 < baselines.bound(cover, half, snr_of_rate(cover, 2)) < 26.5


def test_bound_is_water_filling():
    cover = 0.1 * torch.randn(65536)
    x = 32768 * torch.from_numpy(voice(4.096, 16000, 3)).double()
    squares = lapped(x[None], 256).square()
    variance = functional.avg_pool2d(squares, (5, 3), 1, (2, 1), count_include_pad=False)
    variance = variance.flatten().sort(descending=True)[0]
    counts = torch.arange(1, len(variance) + 1)
    levels = (variance.log2().cumsum(0) - 2 * 2 * len(x)) / counts  # 2 bits a sample
    water = 2 ** levels[(levels < variance.log2()).nonzero()[-1]]
    distortion = variance.minimum(water).mean() + 1 / 12
    expected = 10 * torch.log10(x.square().mean() / distortion)
    found = baselines.bound(cover, x.float() / 32768, snr_of_rate(cover, 2))
    assert abs(found - expected) < 0.01


def test_labels_of_models(tmp_path):
    other = str(tmp_path / "best.pt")
    os.symlink(INN, other)
    assert list(baselines.load_models([INN, other])) == ["INN", other]
    assert list(baselines.load_models())[:2] == ["INN", "lattice"]
    assert list(baselines.load_models(["robust", "wavinwav"])) == ["robust", "INN"]
