"""Sound files as encoders leave them in pipes, as others join or cut them: what is read of them."""

import io
import struct

import numpy as np
import pytest
import soundfile

from files import mp3, source
from files.command import StegoError
from files.sound import decode, read_audio
from files.source import open_audio
from files.streams import private_folder
from helpers import voice
from training.data import find_audio

RATE = 22050  # MPEG-2: 576 samples in a frame


def tone(seconds, loudness):
    t = np.arange(int(seconds * RATE)) / RATE
    noise = np.random.default_rng(0).standard_normal(len(t))
    return loudness * (np.sin(2 * np.pi * 440 * t) + 0.3 * noise)


LOUD_END = np.concatenate([tone(4, 1e-4), tone(2, 0.3)])
SOFT_END = np.concatenate([tone(2, 0.3), tone(4, 1e-4), tone(0.2, 0.3)])


def encoded(x, rate=RATE):
    """An MP3 file of variable bitrate, with a Xing header, as a list of its frames."""
    file = io.BytesIO()
    soundfile.write(file, x, rate, "MPEG_LAYER_III", format="MP3", bitrate_mode="VARIABLE",
                    compression_level=0.3)
    content, frames = file.getvalue(), []
    while len(content) > 4:
        size = mp3._frame(content, 0)[0]
        frames.append(content[:size])
        content = content[size:]
    assert b"Xing" in frames[0] and len(frames) > 10
    return frames


def in_wav(content):
    """MP3 in a WAV file."""
    form = struct.pack("<HHIIHHHHIHHH", 0x55, 1, RATE, 4000, 1, 0, 12, 1, 2, 522, 1, 0)
    body = b"WAVEfmt " + struct.pack("<I", len(form)) + form
    body += b"data" + struct.pack("<I", len(content)) + content + bytes(len(content) % 2)
    return b"RIFF" + struct.pack("<I", len(body)) + body


def read(path):
    """What read_audio gives of one channel, and the number of frames that is known beforehand."""
    with open_audio(path) as file:
        return read_audio(path)[0][:, 0], file.frames


@pytest.mark.parametrize("x", [LOUD_END, SOFT_END], ids=["loud end", "soft end"])
@pytest.mark.parametrize("wrap", [bytes, in_wav], ids=["MP3", "WAV"])
def test_mp3_without_a_xing_header(tmp_path, x, wrap):
    path = tmp_path / "pipe"
    path.write_bytes(wrap(b"".join(encoded(x)[1:])))
    guess = soundfile.info(path).frames
    assert abs(guess - len(x)) > len(x) / 4, "else libsndfile would do"
    y, count = read(path)
    assert len(y) == count and len(x) - 576 <= count < len(x) + 4 * 576
    assert abs(np.std(y[-RATE // 8:]) / np.std(x[-RATE // 8:]) - 1) < 0.5, "the end is there"
    with open_audio(path) as file:
        file.seek(count - 3000)
        assert np.allclose(file.read(3000), y[-3000:], atol=1e-3)


def test_a_file_object(tmp_path):
    frames = encoded(LOUD_END)
    with open_audio(io.BytesIO(b"".join(frames[1:])), "item") as file:
        assert file.frames == (len(frames) - 1) * 576 - 529  # the decoder's delay


def test_joined_mp3_files_and_tags(tmp_path):
    """The first one's Xing header does not count the second one."""
    one = b"".join(encoded(LOUD_END))
    (tmp_path / "one").write_bytes(one)
    alone = read(tmp_path / "one")[0]
    assert len(alone) == len(LOUD_END)
    tag = b"ID3\4\0\0\0\0\1\0" + bytes(128)
    (tmp_path / "two").write_bytes(tag + one + tag + one + b"TAG" + bytes(125))
    both, count = read(tmp_path / "two")
    assert len(both) == count > 2 * len(alone)
    assert np.std(both[-RATE // 2:]) > 0.1


def test_a_xing_header_that_counts_itself(tmp_path):
    first, *rest = encoded(LOUD_END)
    place = first.index(b"Xing") + 8
    first = first[:place] + (len(rest) + 1).to_bytes(4, "big") + first[place + 4:]
    (tmp_path / "x.mp3").write_bytes(first + b"".join(rest))
    assert len(read(tmp_path / "x.mp3")[0]) >= len(LOUD_END) - 576


@pytest.mark.parametrize("first", [0, 1], ids=["Xing", "no Xing"])
@pytest.mark.parametrize("lacking", [1, 50, 70], ids=str)
def test_mp3_that_is_cut_off(tmp_path, first, lacking):
    content = b"".join(encoded(LOUD_END)[first:])
    (tmp_path / "cut.mp3").write_bytes(content[:-lacking])
    with pytest.raises(StegoError, match="cut.mp3 is cut off"):
        read(tmp_path / "cut.mp3")


def test_mp3_that_libsndfile_would_not_read_to_its_end(tmp_path):
    other = b"".join(encoded(LOUD_END[:RATE], 44100))
    (tmp_path / "x.mp3").write_bytes(b"".join(encoded(LOUD_END)) + other)
    with pytest.raises(StegoError, match="x.mp3 changes its sample rate .*; convert it to WAV"):
        read(tmp_path / "x.mp3")


def test_libmpg123_is_quiet(tmp_path, capfd):
    path = tmp_path / "x.mp3"
    path.write_bytes(b"".join(encoded(LOUD_END)[:-20]))
    soundfile.info(path)
    assert "Warning: Xing stream size" in capfd.readouterr().err, "else this shows nothing"
    with pytest.raises(StegoError):
        read(path)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("riff", [None, -8, 8, 1 << 20, 0], ids=str)
@pytest.mark.parametrize("behind", [b"", b"LIST" + struct.pack("<I", 500) + bytes(20)],
                         ids=["", "cut LIST"])
def test_sizes_that_are_wrong_where_no_audio_is_missing(tmp_path, riff, behind):
    """A RIFF size that is the file's size, or anything; the last chunk is cut."""
    x = voice(1, 16000, 1)
    file = io.BytesIO()
    soundfile.write(file, x, 16000, "PCM_16", format="WAV")
    content = bytearray(file.getvalue() + behind)
    size = len(content) - 8 if riff is None else len(content) + riff if riff else 0
    content[4:8] = struct.pack("<I", size)
    (tmp_path / "x.wav").write_bytes(content)
    assert len(read(tmp_path / "x.wav")[0]) == len(x)


def unknown_length(x, rate):
    """A FLAC as encoders write it into a pipe: its header has neither the length nor a checksum."""
    file = io.BytesIO()
    soundfile.write(file, x, rate, "PCM_16", format="FLAC")
    content = bytearray(file.getvalue())
    content[21] &= 0xF0
    content[22:42] = bytes(20)
    return bytes(content)


@pytest.mark.parametrize("seconds", [0.01, 1, 20])
def test_flac_of_unknown_length(tmp_path, monkeypatch, seconds):
    x = voice(seconds, 16000, 1)
    path = tmp_path / "pipe.flac"
    path.write_bytes(unknown_length(x, 16000))
    assert soundfile.info(path).frames > 1 << 62
    y, count = read(path)
    assert len(y) == count == len(x)
    assert find_audio(str(tmp_path)) == [(str(path), len(x), 16000)], "for training too"
    with open_audio(path) as file:
        file.seek(len(x) - 100)
        assert np.allclose(file.read(200), x[-100:], atol=1e-4)
    monkeypatch.setattr(source.Reader, "pieces", None)
    with open_audio(path) as file:  # decoded again only once it has changed
        assert file.frames == len(x)
    monkeypatch.undo()
    path.write_bytes(unknown_length(x, 16000)[:-30])
    with pytest.raises(StegoError, match="pipe.flac cannot be read to its end"):
        read_audio(path)


@pytest.mark.parametrize("form, subtype", [
    ("WAV", None), ("WAVEX", None), ("RF64", None), ("W64", None), ("AIFF", None), ("AU", None),
    ("W64", "MS_ADPCM"), ("W64", "GSM610"), ("CAF", None), ("CAF", "ALAC_16"), ("FLAC", None),
    ("OGG", "VORBIS"), ("OGG", "OPUS"), ("MP3", None),
    ("NIST", None), ("AVR", None), ("MAT5", None), ("MPC2K", None), ("PAF", "PCM_24"),
    ("WVE", None)])
def test_files_that_are_cut(tmp_path, form, subtype):
    """Be it by a byte, or by 40 percent."""
    file = io.BytesIO()
    soundfile.write(file, voice(3, 16000, 1)[:47997], 16000, subtype, format=form)
    content = file.getvalue()
    (tmp_path / "x").write_bytes(content)
    with private_folder() as folder:
        assert decode(tmp_path / "x", "x", folder).frames >= 47997
        for left in (len(content) * 6 // 10, len(content) - 2000, len(content) - 6,
                     len(content) - 1):
            (tmp_path / "x").write_bytes(content[:left])
            with pytest.raises(StegoError, match="is cut off|cannot be read"):
                decode(tmp_path / "x", "x", folder)


def test_joined_ogg_files_are_refused(tmp_path):
    file = io.BytesIO()
    soundfile.write(file, voice(1, 16000, 1), 16000, "VORBIS", format="OGG")
    (tmp_path / "x.ogg").write_bytes(2 * file.getvalue())
    with pytest.raises(StegoError, match="x.ogg holds several recordings"):
        read_audio(tmp_path / "x.ogg")
