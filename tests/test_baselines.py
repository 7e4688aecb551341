"""evaluation/baselines.py: each system against what is known of it."""

import math
import os

import numpy as np
import pytest
import soundfile
import torch

from evaluation import baselines, scores
from files import sound
from helpers import INN, pair_files
from wavinwav import lapped


def run(system, paths):
    """Samples of cover, secret, stego and revealed secret, read from their files."""
    system.hide(paths["cover"], paths["secret"], paths["stego"])
    system.reveal(paths["stego"], paths["revealed"])
    assert all(soundfile.info(path).subtype == "PCM_16" for path in paths.values())
    return [scores.samples(path)[0] for path in paths.values()]


@pytest.mark.parametrize("bits", [4, 6, 8])
def test_lsb(paths, bits):
    cover, secret, hidden, revealed = run(baselines.lsb(bits), paths)
    assert np.abs(hidden - cover).max() <= 2 ** bits / 2, "the nearest sample of those bits"
    assert np.abs(revealed - secret).max() <= 2 ** (16 - bits) / 2
    assert not revealed[np.abs(secret) < 2 ** (15 - bits)].any(), "mid-tread: silence is silence"
    for name in ("cover", "secret"):  # nothing wraps around at full scale
        soundfile.write(paths[name], np.array([32767, -32768] * 500, np.int16), 16000)
    _, secret, _, revealed = run(baselines.lsb(bits), paths)
    assert np.abs(secret - revealed).max() <= 2 ** (16 - bits)


def test_frequency_chop(paths):
    recordings = run(baselines.frequency_chop(), paths)
    cover, secret, hidden, revealed = (
        lapped(torch.from_numpy(x / 1)[None], 128)[0, :, :-1] for x in recordings)
    rounding = (hidden[:64] - cover[:64]).square().mean()
    assert rounding < 0.2, "the cover's lower half, but for rounding"
    rounding = (revealed[:64] - secret[:64]).square().mean()
    assert rounding < 0.4, "the secret's lower half, rounded twice"


@pytest.mark.parametrize("rate, kbps", [(16000, 20), (48000, 60), (11025, 32)])
def test_opus(tmp_path, rate, kbps):
    paths = pair_files(tmp_path, 2, rate)
    secret = soundfile.read(paths["secret"], dtype="float32")[0]
    size = len(baselines.encode_opus(secret, rate, kbps)) * 8 / 1000 / 2  # kbit/s
    assert 0.93 * kbps < size <= kbps, "all bytes of the file, closest from below"
    cover, secret, hidden, revealed = run(baselines.opus(kbps), paths)
    bits = math.ceil(kbps * 1000 / rate)
    assert np.abs(hidden - cover).max() == 2 ** (bits - 1), "the fewest bits that hold it"
    assert len(revealed) == len(secret)
    assert np.corrcoef(secret, revealed)[0, 1] > 0.9, "so that no pre-skip is left"


def test_opus_refuses(paths):
    with pytest.raises(sound.StegoError, match="needs more than 2 kbit/s"):
        run(baselines.opus(2), paths)
    with pytest.raises(sound.StegoError, match="no Ogg"):
        baselines.opus(20).reveal(paths["cover"], paths["revealed"])
    assert scores.score_pair(baselines.opus(2), paths, False) == {}


def test_bound_of_noise():
    noise, cover = 0.1 * torch.randn(2, 65536)
    power = sound.FULL_SCALE ** 2 * cover.square().mean().item()

    def at(bits, secret=noise):
        """The bound at the stego SNR at which just so many bits a sample fit into the cover."""
        snr = 10 * math.log10(power / ((4 ** bits - 1) / 12))
        return baselines.bound(cover, secret, snr)

    for bits in (1, 2, 4):  # 6.02 dB a bit; 15 squares find dents in its spectrum, worth a little
        assert 0 <= at(bits) - 6.02 * bits < 0.6
    assert abs(baselines.bound(cover, noise, 200)) < 0.6, "no room, no secret"
    # One half of the spectrum is empty: all bits go to the other, 12.04 dB a bit there.
    half = torch.fft.irfft(torch.cat([torch.fft.rfft(noise)[:16384], torch.zeros(16385)]))
    assert 23.5 < at(2, half) < 26.5


def test_labels_of_models(tmp_path):
    other = str(tmp_path / "best.pt")
    os.symlink(INN, other)
    assert list(baselines.load_models([INN, other])) == ["INN", other]
    assert list(baselines.load_models())[:2] == ["INN", "lattice"]
    assert list(baselines.load_models(["robust", "wavinwav"])) == ["robust", "INN"]
