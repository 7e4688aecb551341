"""robust.py, and files with it: what survives a change of the stego, with a key and without."""

import numpy as np
import pytest
import soundfile
import torch

import files.parts
import robust
import stego
import wavinwav
from files.resample import resample
from files.sound import snr_of as snr
from helpers import INN, ROBUST, file_snr, four, voice

CHANGES = {  # name -> what is done to a signal [T] of 16 kHz, and its new rate in Hz
    "nothing": (lambda x: x, 16000),
    "gain": (lambda x: 0.4 * x, 16000),
    "upside down": (lambda x: -x, 16000),
    "noise": (lambda x: x + 3e-4 * torch.randn_like(x), 16000),
    "10 bits": (lambda x: (x * 512).round() / 512, 16000),
    "cut, and silence before": (lambda x: torch.cat([torch.zeros(5001), x[7777:]]), 16000),
    "44.1 kHz": (lambda x: resample(x, 16000, 44100), 44100),
    "softer and late at 48 kHz": (
        lambda x: resample(torch.cat([torch.zeros(1001), 0.5 * x]), 16000, 48000), 48000),
}


@pytest.fixture(scope="module", params=[None, "open sesame"], ids=["no key", "key"])
def hidden(request, tmp_path_factory):
    """A folder with cover.wav, secret.wav, stego.wav and what is revealed of it; its key."""
    folder, key = tmp_path_factory.mktemp("robust"), request.param
    paths = [str(folder / f"{name}.wav") for name in ("cover", "secret", "stego", "found")]
    soundfile.write(paths[0], 0.5 * voice(4, 16000, 0), 16000)
    soundfile.write(paths[1], 0.5 * voice(3.5, 16000, 1), 16000)
    model = stego.load_model(ROBUST)
    assert stego.hide(*paths[:3], model, key=key)[0] == pytest.approx(model.config.stego_snr, abs=1)
    stego.reveal(*paths[2:], model, key=key)
    return model, paths, key


@pytest.mark.parametrize("name", CHANGES)
def test_the_secret_survives(hidden, name, tmp_path, capsys):
    model, paths, key = hidden
    change, rate = CHANGES[name]
    torch.manual_seed(0)
    x = change(torch.from_numpy(soundfile.read(paths[2], dtype="float32")[0]))
    changed, found = str(tmp_path / "changed.wav"), str(tmp_path / "found.wav")
    soundfile.write(changed, x, rate)
    stego.reveal(changed, found, model, key=key)
    usual, found = (soundfile.read(path)[0] for path in (paths[3], found))
    assert len(found) == len(usual) == soundfile.info(paths[1]).frames
    lost = 8192 if name.startswith("cut") else 0
    assert snr(torch.from_numpy(usual[lost:]), torch.from_numpy(found[lost:])) > 6
    assert ("was changed" in capsys.readouterr().err) == (name != "nothing")


def test_samples_beyond_full_scale_after_the_search(tmp_path, monkeypatch):
    """They turn the whole stego down, not only what comes after them."""
    monkeypatch.setattr(files.parts, "SEARCHED", 1 << 10)
    cover, secret, hidden, found = four(tmp_path)
    x = 2.5 * voice(12, 16000, 0)
    x[:9 * 16000] *= 0.5  # the first 131072 samples are searched
    assert 0.6 < abs(x).max() < 1
    soundfile.write(cover, x, 16000)
    soundfile.write(secret, 0.5 * voice(12, 16000, 1), 16000)
    model = stego.load_model(ROBUST)
    told = stego.hide(cover, secret, hidden, model)[1]
    soundfile.write(hidden, 2 * soundfile.read(hidden)[0], 16000, "FLOAT")
    stego.reveal(hidden, found, model)
    assert file_snr(secret, found) > told - 3


@pytest.mark.parametrize("change", ["nothing", "gain", "44.1 kHz"])
def test_another_key_or_model_is_refused(hidden, change, tmp_path):
    model, paths, key = hidden
    function, rate = CHANGES[change]
    changed, found = str(tmp_path / "changed.wav"), tmp_path / "found.wav"
    x = function(torch.from_numpy(soundfile.read(paths[2], dtype="float32")[0]))
    soundfile.write(changed, x, rate)
    with pytest.raises(stego.StegoError, match="its key is another"):
        stego.reveal(changed, str(found), model, key="open sesame!" if key else "a key")
    if key is None:
        with torch.no_grad():
            other = wavinwav.load(ROBUST)
            other.log_cells += 0.01
        with pytest.raises(stego.StegoError, match="with another model"):
            stego.reveal(changed, str(found), other)
    with pytest.raises(stego.StegoError):
        stego.reveal(changed, str(found), stego.load_model(INN), key=key and f"{key}!")
    assert not found.exists()


@pytest.mark.parametrize("kind", ["voice", "noise", "tone", "silence", "short"])
def test_no_secret_is_found_where_there_is_none(kind, tmp_path):
    t, normal = np.arange(48000) / 16000, np.random.default_rng(0).normal(size=48000)
    x = {"voice": 0.5 * voice(3, 16000, 5), "noise": 0.1 * normal, "silence": 0 * t,
         "tone": 0.5 * np.sin(2 * np.pi * 1000 * t), "short": 0.1 * normal[:3000]}[kind]
    soundfile.write(tmp_path / "x.wav", x, 16000)
    with pytest.raises(stego.StegoError, match="no secret|digital silence"):
        stego.reveal(str(tmp_path / "x.wav"), str(tmp_path / "found.wav"), stego.load_model(ROBUST))


@pytest.mark.parametrize("start", [0, 1, 4321, -4321, 64 * 1000])
def test_find(start):
    """With random weights and cells, anywhere, at any level, under noise."""
    torch.manual_seed(start)
    model = wavinwav.build(robust.RobustConfig(bands=64, carriers=9, levels=1)).eval()
    content, length = bytes(range(100, 150)), 64 * 2000
    cover, secret = (torch.from_numpy(0.5 * voice(8, 16000, seed))[None] for seed in (0, 1))
    dither = model.split(model.with_bits(torch.rand(1, 2000, 64) - 0.5, 0, content).mT)
    with torch.no_grad():
        setting = model.fit(cover, secret, 30.0, dither)
        x = 0.3 * model(cover, secret, setting, dither)[0][0]
    assert len(x) == length
    x = x[start:] if start >= 0 else torch.cat([torch.zeros(-start), x])
    found = robust.find(model, x + 2e-4 * torch.randn(len(x)))
    assert found.start == start
    assert found.read(len(content)) == (content, pytest.approx(1, abs=0.01))
    width = 0.3 * model.cells(setting, keyed=True)[0][0, 0, 0, -1].item()
    assert found.width == pytest.approx(width, rel=0.02)


def test_a_cover_that_is_too_short_to_survive(tmp_path, capsys):
    paths = [str(tmp_path / f"{name}.wav") for name in ("cover", "secret", "stego")]
    for seconds, short in ((1, True), (1.1, False)):
        for path in paths[:2]:
            soundfile.write(path, 0.5 * voice(seconds, 16000, 0), 16000)
        stego.hide(*paths, stego.load_model(ROBUST), overwrite=True)
        assert ("too short for the secret to survive" in capsys.readouterr().err) == short


def test_levels_of_the_bands_that_are_not_carried():
    torch.manual_seed(0)
    model = wavinwav.load(ROBUST)
    cover, secret = 0.1 * torch.randn(2, 1, 64 * 250)
    setting = model.fit(cover, secret, 30.0)
    with torch.no_grad():
        found = model.inverse(model(cover, secret, setting)[0], setting)[1]
        quiet = model.inverse(model(cover, 0 * secret, setting)[0], setting)[1]
    before, after, silent = (wavinwav.lapped(x, 64)[:, 20:].square().mean().sqrt()
                             for x in (secret, found, quiet))
    assert after / before == pytest.approx(robust.QUIETER, rel=0.1)
    assert silent < 0.01 * before
