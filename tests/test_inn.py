"""The shipped INN through files: its SNR, keys, and headers that are lost."""

import numpy as np
import pytest
import soundfile
import torch

import stego
import wavinwav
from evaluation.attacks import ATTACKS
from files.container import SPARSE
from files.sound import FULL_SCALE, StegoError
from helpers import INN, likeness, pcm, snr, voice

NAMES = "cover.wav", "secret.wav", "stego.wav", "found.wav"


@pytest.fixture(scope="module")
def model():
    return wavinwav.load(INN)


@pytest.fixture
def paths(tmp_path):
    """A pair of 3 s, and the names of what is to be made of it."""
    paths = [str(tmp_path / name) for name in NAMES]
    for seed in (0, 1):
        soundfile.write(paths[seed], 0.5 * voice(3, 16000, seed), 16000)
    return paths


def samples(path):
    samples = soundfile.read(path, dtype="int16", always_2d=True)[0]
    return torch.from_numpy(samples.T.astype(np.int32))


def signal(path):
    return samples(path).double() / FULL_SCALE


def coefficients(x):
    """Of whole frames of a signal [1, T], as one vector."""
    return wavinwav.lapped(x[:, :x.shape[1] // 64 * 64].double(), 64).flatten()


@pytest.mark.parametrize("key", [None, "open sesame"])
def test_the_snr_that_was_asked_for(model, paths, key, fixed_nonce):
    lost = []
    for wanted in (36, 46, 52):
        level, secret_snr = stego.hide(*paths[:3], model, snr=wanted, key=key, overwrite=True)
        assert level == pytest.approx(wanted, abs=0.5)
        lost.append(secret_snr)
    assert lost[0] > lost[1] > lost[2] > 25


# ---------------------------------------------------------------- keys

def test_two_files_of_one_key_share_nothing(model, paths):
    changes = []
    for seed in (6, 6, 7):
        soundfile.write(paths[0], 0.5 * voice(3, 16000, seed), 16000)
        stego.hide(*paths[:3], model, key="k", overwrite=True)
        changes.append(coefficients((samples(paths[2]) - samples(paths[0])).double()))
    secret = coefficients(signal(paths[1]))
    for other in (*changes[1:], secret):
        assert likeness(changes[0], other) < 6
    unkeyed = []
    for _ in range(2):
        stego.hide(*paths[:3], model, overwrite=True)
        unkeyed.append(coefficients((samples(paths[2]) - samples(paths[0])).double()))
    assert likeness(*unkeyed) > 12


# ---------------------------------------------------------------- what a stego shows with a key

def guess(model, stego, cover, setting, candidates):
    """The candidate [1, T] whose shaped rounding explains best how a stego differs from its cover:
    each coefficient is uniform in its cell, plus an error of the spectrum that
    `wavinwav.round_to_file` would give it for that secret."""
    change = wavinwav.lapped((stego - cover) * FULL_SCALE, 64)
    cell = model.join(model.cells(setting, True)[0].expand(1, 4, change.shape[2], 64), stego)
    scores = []
    for candidate in candidates:
        weights = wavinwav.noise_weights(model(cover, candidate, setting)[1])
        error = weights.log().mean(1, keepdim=True).exp() / weights / 12
        power = cell[..., :change.shape[2]] ** 2 / 12 + error
        scores.append(-(power.log() + change.square() / power).sum())
    return int(torch.stack(scores).argmax())


@torch.no_grad()
@pytest.mark.parametrize("known", ["silence in the cover", "the cover"])
def test_a_keyed_stego_does_not_name_its_secret(model, known, monkeypatch):
    """Ten candidates, each hidden once. Guessing at random names 5 or more of 10 in 0.16 % of all
    games; with rounding that follows the secret, the same guess names nearly all."""
    cover = (pcm(1, 24000, seed=50) * 3277).round() / FULL_SCALE
    if known.startswith("silence"):
        cover[:, :20032] = 0
    seen = slice(0, 19968 if known.startswith("silence") else 24000)
    candidates = []
    for seed in range(60, 70):  # each with syllables of its own
        rng = np.random.default_rng(seed)
        loud = np.interp(np.arange(24000), np.arange(0, 24001, 1500), rng.integers(0, 2, 17) + 0.01)
        x = torch.from_numpy(loud * voice(1.5, 16000, seed)).float()[None]
        candidates.append(0.05 * x / x.square().mean().sqrt())
    free, hits = torch.full_like(cover, -1), {}
    for kind in ("as shipped", "shaped by the secret"):
        hits[kind] = 0
        for i, secret in enumerate(candidates):
            dither = model.split(torch.rand(1, 64, 375) - 0.5)
            setting = model.fit(cover, secret, 48.0, dither)
            if kind == "shaped by the secret":
                own = model(cover, secret, setting)[1]
                shaped = wavinwav.round_to_file
                monkeypatch.setattr(wavinwav, "round_to_file", lambda x, _, m: shaped(x, own, m))
            stego = model.embed(cover, secret, setting, free, 16, dither)
            monkeypatch.undo()
            named = guess(model, stego[:, seen], cover[:, seen], setting,
                          [x[:, seen] for x in candidates])
            hits[kind] += named == i
    assert hits["as shipped"] < 5 and hits["shaped by the secret"] >= 8, hits


# ---------------------------------------------------------------- headers that are lost

@pytest.mark.parametrize("snr_asked", [40, 46, 52])
def test_force_finds_the_cells_where_the_header_is_lost(model, paths, snr_asked):
    stego.hide(*paths[:3], model, snr=snr_asked)
    x = samples(paths[2])[0].numpy().astype(np.int16)
    bits = np.random.default_rng(0).integers(0, 2, SPARSE.header_samples // SPARSE.spacing)
    x[:SPARSE.header_samples:SPARSE.spacing] ^= bits.astype(np.int16)
    soundfile.write(paths[2], x, 16000)
    with pytest.raises(StegoError, match="no secret"):
        stego.reveal(*paths[2:], model)
    stego.reveal(*paths[2:], model, force=True)
    secret, found = (signal(path)[:, 3000:] for path in (paths[1], paths[3]))
    assert snr(secret, found) > 25


def test_force_refuses_cells_of_which_nothing_is_left(model, paths):
    """Noise moves coefficients beyond the edges of their cells, though the cells show clearly. A
    low-pass destroys the high bands alone, without which speech is understood."""
    stego.hide(*paths[:3], model)
    x = samples(paths[2])[0].double() / FULL_SCALE
    changes = (x + 2e-5 * torch.randn(len(x)), 5), (ATTACKS["low-pass 3.4 kHz"](x, 16000), 1)
    for changed, least in changes:
        soundfile.write(paths[2], changed, 16000)
        stego.reveal(*paths[2:], model, force=True, overwrite=True)
        assert snr(signal(paths[1]), signal(paths[3])) > least
    soundfile.write(paths[2], x + 1.7e-4 * torch.randn(len(x)), 16000)
    with pytest.raises(StegoError, match="there was a secret, .* nothing is left of it"):
        stego.reveal(*paths[2:], model, force=True, overwrite=True)
