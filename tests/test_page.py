"""evaluation/page.py: the page is complete, and its scores are those of its files; spectrograms."""

import re

import numpy as np
import pytest
import soundfile
import torch

pytest.importorskip("PIL")
from PIL import Image

import evaluate
from evaluation import page
from evaluation.baselines import lsb, opus
from evaluation.scores import signal
from files import sound
from helpers import INN, LATTICE, pair_files, voice


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The page of two sounds with different rates and lengths."""
    folder = tmp_path_factory.mktemp("page")
    soundfile.write(folder / "a.wav", 0.3 * voice(1.2, 16000, 1), 16000)
    soundfile.write(folder / "b.wav", 0.3 * voice(1.5, 24000, 2), 24000)
    words = ["--page", folder / "listen", "--cover", folder / "a.wav", "--secret", folder / "b.wav",
             "--model", INN, LATTICE, "--no_perceptual"]
    evaluate.main([str(word) for word in words])
    return folder / "listen"


def test_every_element_is_closed(folder):
    still_open = []
    for end, tag in re.findall(r"<(/?)([a-z]\w*)", (folder / "index.html").read_text()):
        if end:
            assert still_open.pop() == tag
        elif tag not in ("meta", "img"):
            still_open.append(tag)
    assert not still_open


def test_all_sounds_and_pictures_are_there(folder):
    text = (folder / "index.html").read_text()
    players = re.findall(r'<audio .*src="([^"]+)" aria-label="([^"]+)"', text)
    assert len(players) == 2 * 4 * 4, "pairs, systems, sounds"
    sounds, labels = map(set, zip(*players))
    assert len(labels) == len(players), "distinct"
    assert len(sounds) == 2 + 2 * 4 * 2, "the originals once"
    for name in sounds:
        info = soundfile.info(str(folder / name))
        assert (info.format, info.subtype) == ("FLAC", "PCM_16")
        assert (info.samplerate, info.channels, info.frames) == (16000, 1, 19200)
    pictures = re.findall(r'<img src="([^"]+)" alt="[^"]+">', text)
    assert len(pictures) == len(players)
    for name in pictures:
        with Image.open(folder / name) as image:
            assert image.size == (page.COLUMNS, page.ROWS) and np.asarray(image).std() > 20
    assert {path.name for path in folder.iterdir()} == {*sounds, *pictures, "index.html"}
    row = text.split('<div class="row">')[1]
    cover, hidden, secret, revealed = (
        signal(str(folder / name)) for name in re.findall(r'src="([^"]+\.flac)"', row))
    expected = sound.snr_of(cover, hidden), sound.snr_of(secret, revealed)
    shown = [float(x) for x in re.findall(r"SNR ([\d.]+)", row)]
    assert shown == pytest.approx(expected, abs=0.051)


def test_a_system_that_cannot_hide_has_no_players(tmp_path):
    voices = (torch.from_numpy(0.3 * voice(0.5, 8000, seed)) for seed in (1, 2))
    page.write_page(tmp_path, *voices, 8000, [opus(2), lsb(4)], perceptual=False)
    text = (tmp_path / "index.html").read_text()
    assert text.count("It cannot hide this secret.") == 2
    assert text.count("<audio") == 2 * 4


@pytest.mark.parametrize("name", ["plot.PNG", "plot.svg"])
def test_plot_pair(tmp_path, name):
    page.plot_pair(str(tmp_path / name), lsb(4), pair_files(tmp_path))
    content = (tmp_path / name).read_bytes()
    assert 20_000 < len(content) < 400_000
    if name.endswith("PNG"):
        with Image.open(tmp_path / name) as image:
            assert image.size == (800, 950) and len(image.getcolors()) > 40
