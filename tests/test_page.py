"""page.py: the page that evaluate.py --page writes is complete, and says what its files hold."""

import html.parser
import re
import struct
import zlib

import pytest
import soundfile
import torch

import evaluate
from evaluation import page
from evaluation.baselines import lsb, opus
from evaluation.scores import signal
from files import sound
from helpers import INN, LATTICE, voice


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


def picture_size(path):
    """Columns, rows of a grey PNG, whose pixels are all there."""
    data = path.read_bytes()
    columns, rows = struct.unpack(">II", data[16:24])
    length = struct.unpack(">I", data[33:37])[0]
    assert data[:8] == b"\x89PNG\r\n\x1a\n" and data[37:41] == b"IDAT"
    assert len(zlib.decompress(data[41:41 + length])) == rows * (columns + 1)
    return columns, rows


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The page of two sounds of unlike rate and length."""
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


def test_all_that_can_be_heard_is_there(folder, tags):
    players = tags.all("audio")
    assert len(players) == 2 * 4 * 4, "pairs, methods, sounds"
    for player in players:
        info = soundfile.info(str(folder / player["src"]))
        assert (info.format, info.subtype) == ("FLAC", "PCM_16")
        assert (info.samplerate, info.channels, info.frames) == (16000, 1, 19200)
    assert len({player["aria-label"] for player in players}) == len(players), "told apart"
    files = {player["src"] for player in players}
    assert len(files) == 2 + 2 * 4 * 2, "the originals are there once"


def test_all_that_can_be_seen_is_there(folder, tags):
    pictures = tags.all("img")
    assert len(pictures) == 2 * 4 * 4 and all(picture["alt"] for picture in pictures)
    for picture in pictures:
        assert picture_size(folder / picture["src"]) == (page.COLUMNS, page.ROWS)


def test_nothing_comes_from_elsewhere(folder, tags):
    used = {attributes[name] for _, attributes in tags.tags for name in ("src", "href")
            if name in attributes}
    assert {path.name for path in folder.iterdir()} == used | {"index.html"}
    assert not any("src" in script for script in tags.all("script"))
    assert "url(" not in (folder / "index.html").read_text()


def test_scores_are_of_the_files_beside_them(folder):
    text = (folder / "index.html").read_text()
    row = text.split('<div class="row">')[1]
    cover, hidden, secret, revealed = (
        signal(str(folder / name)) for name in re.findall(r'src="([^"]+\.flac)"', row))
    stego_snr, secret_snr = (float(x) for x in re.findall(r"SNR ([\d.]+)", row))
    assert stego_snr == pytest.approx(sound.snr_of(cover, hidden), abs=0.051)
    assert secret_snr == pytest.approx(sound.snr_of(secret, revealed), abs=0.051)
    assert stego_snr > 20 and secret_snr > 20


def test_a_method_that_cannot_hide_is_named_without_players(tmp_path):
    voices = (torch.from_numpy(0.3 * voice(0.5, 8000, seed)) for seed in (1, 2))
    page.write_page(tmp_path, *voices, 8000, [opus(2), lsb(4)], perceptual=False)
    text = (tmp_path / "index.html").read_text()
    assert text.count("It cannot hide this secret.") == 2
    assert len(Tags(text).all("audio")) == 2 * 4
