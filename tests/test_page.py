"""evaluation/page.py: the page is complete, and its scores are those of its files; spectrograms."""

import html.parser
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


class Tags(html.parser.HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.tags, self.open = [], []
        self.feed(text)
        assert not self.open, "every element is closed"

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def all(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]


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


@pytest.fixture(scope="module")
def tags(folder):
    return Tags((folder / "index.html").read_text())


def test_all_sounds_are_there(folder, tags):
    players = tags.all("audio")
    assert len(players) == 2 * 4 * 4, "pairs, systems, sounds"
    for player in players:
        info = soundfile.info(str(folder / player["src"]))
        assert (info.format, info.subtype) == ("FLAC", "PCM_16")
        assert (info.samplerate, info.channels, info.frames) == (16000, 1, 19200)
    assert len({player["aria-label"] for player in players}) == len(players), "distinct"
    files = {player["src"] for player in players}
    assert len(files) == 2 + 2 * 4 * 2, "the originals once"


def test_all_pictures_are_there(folder, tags):
    pictures = tags.all("img")
    assert len(pictures) == 2 * 4 * 4 and all(picture["alt"] for picture in pictures)
    for picture in pictures:
        with Image.open(folder / picture["src"]) as image:
            assert image.size == (page.COLUMNS, page.ROWS)
            pixels = np.asarray(image)
        assert pixels.std() > 20 and len(np.unique(pixels)) <= page.GREYS


def test_no_other_files_are_needed(folder, tags):
    used = {attributes[name] for _, attributes in tags.tags for name in ("src", "href")
            if name in attributes}
    assert {path.name for path in folder.iterdir()} == used | {"index.html"}
    assert not any("src" in script for script in tags.all("script"))
    assert "url(" not in (folder / "index.html").read_text()


def test_scores_match_the_files(folder):
    text = (folder / "index.html").read_text()
    row = text.split('<div class="row">')[1]
    cover, hidden, secret, revealed = (
        signal(str(folder / name)) for name in re.findall(r'src="([^"]+\.flac)"', row))
    stego_snr, secret_snr = (float(x) for x in re.findall(r"SNR ([\d.]+)", row))
    assert stego_snr == pytest.approx(sound.snr_of(cover, hidden), abs=0.051)
    assert secret_snr == pytest.approx(sound.snr_of(secret, revealed), abs=0.051)
    assert stego_snr > 20 and secret_snr > 20


def test_a_system_that_cannot_hide_has_no_players(tmp_path):
    voices = (torch.from_numpy(0.3 * voice(0.5, 8000, seed)) for seed in (1, 2))
    page.write_page(tmp_path, *voices, 8000, [opus(2), lsb(4)], perceptual=False)
    text = (tmp_path / "index.html").read_text()
    assert text.count("It cannot hide this secret.") == 2
    assert len(Tags(text).all("audio")) == 2 * 4


@pytest.mark.parametrize("name", ["plot.PNG", "plot.svg"])
def test_plot_pair(tmp_path, name):
    page.plot_pair(str(tmp_path / name), lsb(4), pair_files(tmp_path))
    content = (tmp_path / name).read_bytes()
    assert 20_000 < len(content) < 400_000
    if name.endswith("PNG"):
        with Image.open(tmp_path / name) as image:
            assert image.size == (800, 950) and len(image.getcolors()) > 40
