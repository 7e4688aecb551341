"""The shipped network of the paper, through files: pieces, channels, loud covers and a key."""

import numpy as np
import pytest
import soundfile
import torch

import stego
from files import sound
from files.command import StegoError
from files.container import Cipher
from files.parts import PaperMethod
from helpers import COVER, SECRET, file_snr, four, header_of

EXAMPLES = COVER, SECRET


@pytest.fixture(scope="module")
def model():
    return stego.load_model("paper")


def test_pieces_channels_and_loud_covers(model, tmp_path, monkeypatch):
    cover, rate = soundfile.read(EXAMPLES[0])
    loud = np.stack([cover / np.abs(cover).max(), cover[::-1]], 1)[:40015]  # not whole frames
    paths = four(tmp_path)
    soundfile.write(paths[0], loud, rate)
    soundfile.write(paths[1], soundfile.read(EXAMPLES[1])[0][:40015], rate)
    alone = stego.hide(*paths[:3], model, overwrite=True)
    monkeypatch.setattr(PaperMethod, "part", 1 << 15)
    in_pieces = stego.hide(*paths[:3], model, overwrite=True)
    assert in_pieces == pytest.approx(alone, abs=1)
    assert np.abs(soundfile.read(paths[2], dtype="int16")[0].astype(int)).max() <= 32767
    stego.reveal(paths[2], paths[3], model)
    assert soundfile.info(paths[3]).frames == 40015
    assert file_snr(paths[1], paths[3]) == pytest.approx(in_pieces[1], abs=0.1)


@pytest.mark.parametrize(("cover_level", "secret_level", "least"),
                         [(-20, -40, 15), (-45, -20, 10), (-20, None, None)])
def test_quiet_files(model, tmp_path, cover_level, secret_level, least):
    """The network was trained with speech of about -20 dB of full scale."""
    paths = four(tmp_path)
    for path, example, level in zip(paths, EXAMPLES, (cover_level, secret_level)):
        x, rate = soundfile.read(example)
        x *= 10 ** (level / 20) / np.sqrt(np.square(x).mean()) if level else 0
        soundfile.write(path, x, rate)
    stego_snr, secret_snr = stego.hide(*paths[:3], model)
    assert stego_snr > 22
    stego.reveal(paths[2], paths[3], model)
    if least:
        assert secret_snr > least
        assert file_snr(paths[1], paths[3]) == pytest.approx(secret_snr, abs=0.1)


@pytest.mark.parametrize("key", [None, "open sesame"])
def test_examples(model, tmp_path, key):
    path, found = tmp_path / "stego.wav", tmp_path / "found.wav"
    stego_snr, secret_snr = stego.hide(*EXAMPLES, path, model, key=key)
    assert stego_snr > 22 and secret_snr > 11
    with pytest.raises(StegoError):
        stego.reveal(path, found, model, "open barley")
    stego.reveal(path, found, model, key)
    assert file_snr(EXAMPLES[1], found) == pytest.approx(secret_snr, abs=0.1)


def test_a_key_permutes_each_part_anew(model, tmp_path, monkeypatch):
    """What is in the place of each 20 ms segment, in two parts with one key, and with another."""
    monkeypatch.setattr(PaperMethod, "part", 1 << 15)
    method, path, orders = PaperMethod(model), tmp_path / "stego.wav", []
    secret = torch.from_numpy(soundfile.read(EXAMPLES[1])[0])
    for key in ("open sesame", "open barley"):
        stego.hide(*EXAMPLES, path, model, key=key, overwrite=True)
        written = sound.decode(path, path, tmp_path)
        header, _ = header_of(written.read(), key, method.fingerprint(), method.layout)
        found = np.concatenate(list(method.reveal(header, Cipher(), written)))[:, 0]
        for _, start, stop in method.parts(written)[:2]:
            stop -= (stop - start) % 320
            x, y = secret[start:stop].view(-1, 320), found[start:stop].reshape(-1, 320)
            likeness = torch.from_numpy(y.astype(np.float64)) @ x.T
            orders.append((likeness / x.norm(dim=1).clamp_min(1e-3)).argmax(1))
    for i, order in enumerate(orders):
        assert len(order.unique()) > 0.6 * len(order), "most segments are recognised"
        for other in (torch.arange(len(order)), *orders[:i]):
            assert (order == other).double().mean() < 0.2


def test_of_a_cut_stego_with_a_key_the_rest_is_silent(model, tmp_path):
    """Segments that were in the half that is lost, wherever they belong in the secret."""
    path, found, results = tmp_path / "stego.wav", tmp_path / "found.wav", []
    x, rate = soundfile.read(EXAMPLES[0], dtype="int16")
    soundfile.write(tmp_path / "cover.wav", x[:64000], rate)  # one part
    soundfile.write(tmp_path / "secret.wav", soundfile.read(EXAMPLES[1])[0][:64000], rate)
    stego.hide(tmp_path / "cover.wav", tmp_path / "secret.wav", path, model, key="open sesame")
    for left in 64000, 32000:
        soundfile.write(path, soundfile.read(path, left, dtype="int16")[0], rate)
        stego.reveal(path, found, model, "open sesame", force=left < 64000, overwrite=True)
        results.append(soundfile.read(found)[0].reshape(-1, 320))
    whole, half = results
    silent, same = (half == 0).all(1), np.abs(half - whole).max(1) < 0.01
    assert silent.mean() == pytest.approx(0.5, abs=0.05)
    assert 0.2 < silent[:100].mean() < 0.8
    assert (same | silent).mean() > 0.95
