"""data.py: which files are found, which crops they give, and to which process."""

import os
import random

import numpy as np
import pytest
import soundfile
import torch

from helpers import voice
from training import data


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("voices")
    (folder / "deep").mkdir()
    for i in range(3):
        soundfile.write(folder / f"{i}.wav", voice(1, 16000, i), 16000)
        soundfile.write(folder / "deep" / f"{i}.flac", voice(1, 48000, i), 48000)
    return folder


def test_links_do_not_multiply_the_data(folder, tmp_path):
    speech = tmp_path / "speech"
    (speech / "a").mkdir(parents=True)
    soundfile.write(speech / "a" / "0.wav", voice(1, 16000, 0), 16000)
    try:
        os.symlink(speech, speech / "a" / "loop", target_is_directory=True)
        os.symlink(folder, speech / "twice", target_is_directory=True)
        os.symlink(folder, speech / "a" / "thrice", target_is_directory=True)
    except OSError:
        pytest.skip("no links here")
    files = data.find_audio(str(speech))
    assert len(files) == 7
    assert len({os.path.realpath(path) for path, _, _ in files}) == 7
    assert files == data.find_audio(str(speech)) and files == sorted(files)


def test_crops_are_what_the_file_has(folder):
    x, _ = soundfile.read(folder / "1.wav", dtype="float32")
    crop = data.read_crop(folder / "1.wav", random.Random(0), 4000, 16000).numpy()
    places = [n for n in range(len(x) - 4000 + 1) if x[n] == crop[0]]
    assert any(np.array_equal(x[n:n + 4000], crop) for n in places)
    longer = data.read_crop(folder / "1.wav", random.Random(0), 20000, 16000).numpy()
    assert np.array_equal(longer[:16000], x) and not longer[16000:].any()
    tone = torch.sin(torch.arange(48000) / 10)
    soundfile.write(folder.parent / "tone.wav", tone.numpy(), 48000)
    down = data.read_crop(folder.parent / "tone.wav", random.Random(0), 20000, 16000)
    assert down.shape == (20000,) and not down[16000:].any()
    assert (down[100:15900] - tone[::3][100:15900]).abs().max() < 0.01
    stereo = folder.parent / "stereo.wav"
    soundfile.write(stereo, np.stack([x, -x], 1), 16000)
    assert data.read_crop(stereo, random.Random(0), 4000, 16000).abs().max() < 1e-4
    with pytest.raises(data.Unusable):
        data.read_crop(folder / "missing.wav", random.Random(0), 4000, 16000)


def test_pairs_depend_on_seed_and_number_alone(folder):
    files = data.find_audio(str(folder))
    pairs, again, other = (data.Pairs(files, 16000, 4000, seed) for seed in ("a", "a", "b"))
    for n in (5, 0):
        cover, secret, number, *_ = pairs[n]
        assert number == n and not torch.equal(cover, secret)
        assert torch.equal(cover, again[n][0]) and torch.equal(secret, again[n][1])
        assert not torch.equal(cover, other[n][0])
    assert len(data.sample(pairs, 21).unique(dim=0)) == 21
    louder = data.Pairs(files, 16000, 4000, "a", gain=12.0)
    changes = []
    for n in range(20):
        for x, y in zip(pairs[n][:2], louder[n][:2]):
            changes.append(20 * (y.norm() / x.norm()).log10())
            assert torch.allclose(y / y.norm(), x / x.norm(), atol=1e-6), "only its level"
    assert max(changes) < 12.01 and min(changes) > -12.01
    assert max(changes) > 8 and min(changes) < -8


def test_shares_do_not_overlap():
    """Of 3 steps of 2 accumulations, on 3 processes."""
    shares = [list(data.share(10, 6, 4, rank, 3)) for rank in range(3)]
    assert sorted(sum(shares, [])) == list(range(10, 10 + 3 * 6 * 4))
    assert shares[1][:4] == [14, 15, 16, 17]
