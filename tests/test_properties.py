"""Whatever is hidden in whatever comes back as hide said, or one line says why not.

    EXAMPLES=2500 python -m pytest tests/test_properties.py    # 10,000 in all, others each time
"""

import contextlib
import io
import math
import os
import tempfile
from typing import NamedTuple

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

import stego
from files import checkpoint
from files.sound import decibel
from helpers import INN, LATTICE, ROBUST
from wavinwav import Config, build

EXAMPLES = int(os.environ.get("EXAMPLES", 40))  # of each of four models
RATES = (1, 11025, 16000, 44100, 44101, 48000, 192000, 516000, 655350, 655351, 1 << 31)
FORMS = {"WAV": "PCM_16 PCM_24 PCM_32 PCM_U8 FLOAT DOUBLE ULAW ALAW GSM610 IMA_ADPCM MS_ADPCM",
         "FLAC": "PCM_S8 PCM_16 PCM_24", "AIFF": "PCM_16 PCM_S8 FLOAT", "AU": "PCM_16 FLOAT ALAW",
         "CAF": "PCM_16 ALAC_16 ALAC_24 FLOAT", "W64": "PCM_16 PCM_24", "RF64": "PCM_16 FLOAT",
         "OGG": "VORBIS OPUS", "MP3": "MPEG_LAYER_III", "NIST": "PCM_16 PCM_24", "PAF": "PCM_16",
         "AVR": "PCM_16", "VOC": "PCM_16", "IRCAM": "PCM_16 FLOAT", "MAT5": "PCM_16 DOUBLE",
         "SVX": "PCM_16", "PVF": "PCM_16", "HTK": "PCM_16", "WAVEX": "PCM_16 PCM_24"}
CODED = [(form, subtype) for form in FORMS for subtype in FORMS[form].split()]
PLAIN = [("WAV", "PCM_16"), ("FLAC", "PCM_16"), ("WAV", "PCM_24"), ("WAV", "FLOAT")]


@st.composite
def often(draw, usual, others):
    """One of `usual` in most cases."""
    return draw(st.sampled_from(usual) if draw(st.integers(0, 3)) else others)


class Recording(NamedTuple):
    """What is in a sound file, and in what form."""

    form: str
    subtype: str
    rate: int  # Hz
    frames: int
    channels: int
    kind: str
    level: int  # dB
    spoiled: float | None  # one of its samples
    seed: int

    def samples(self):
        """float64 [n, channels]"""
        shape, rng = (self.frames, self.channels), np.random.default_rng(self.seed)
        noise, time = rng.standard_normal(shape), np.arange(self.frames)[:, None]
        x = {"noise": noise / 4, "tone": np.sin(time * (0.05 + np.arange(self.channels))),
             "silence": np.zeros(shape), "constant": np.ones(shape),
             "clipped": noise.cumsum(0).clip(-1, 1), "burst": noise * (time % 700 < 70),
             "click": (time == self.frames // 2) * np.ones(shape)}[self.kind]
        x = x * 10 ** (self.level / 20)
        if self.subtype not in ("FLOAT", "DOUBLE"):
            return x.clip(-1, 1)
        if self.spoiled is not None:
            x[self.frames // 3:][:1] = self.spoiled
        return x

    def write(self, path):
        """Whether libsndfile can write it, without a crash, which some rates bring about."""
        if self.form in ("OGG", "MP3") and self.rate > 192000:
            return False
        try:
            soundfile.write(path, self.samples(), self.rate, self.subtype, format=self.form)
            return True
        except (soundfile.LibsndfileError, OSError, TypeError, ValueError, AssertionError,
                OverflowError):
            return False


@st.composite
def recordings(draw, frames):
    return Recording(
        *draw(often(PLAIN, st.sampled_from(CODED))),
        draw(often([8000, 16000, 24000], st.sampled_from(RATES) | st.integers(1, 700000))),
        draw(frames),
        draw(often([1, 2], st.integers(1, 3))),
        draw(st.sampled_from("noise noise tone silence constant clipped click burst".split())),
        draw(often([-20, -10, 0], st.integers(-110, 6))),
        draw(often([None], often([None], st.sampled_from([math.nan, math.inf, 1e30])))),
        draw(st.integers(0, 99)))


@st.composite
def pairs(draw):
    """A cover, and a secret that is mostly no longer."""
    cover = draw(recordings(often([1500, 3000, 6000], st.integers(0, 6000))))
    secret = draw(recordings(st.integers(0, 6000)))
    if share := draw(often([0.3, 0.9, 1.0], st.sampled_from([None, 0.01, 0.9999, 1.0001]))):
        frames = round(share * cover.frames / cover.rate * secret.rate)
        secret = secret._replace(frames=min(50000, frames))
    return cover, secret


@st.composite
def flags(draw):
    """Of hide; and what reveal needs of them."""
    words, key = [], draw(often([None], st.sampled_from(["a", "b c", "ä" * 99])))
    rare = st.one_of(st.floats(0, 120), st.sampled_from(["nan", "1e9", -1]))
    snrs = often([None, 36, 48, 60], often([0, 20, 70, 90, 120], rare))
    if (snr := draw(snrs)) is not None:
        words += ["--snr", snr]
    for name in ("shaping", "masking"):
        if draw(st.integers(0, 5)) == 0:
            words += [f"--{name}", draw(often([0, 0.3, 0.7, 1], st.sampled_from([-1, "nan"])))]
    if depth := draw(st.sampled_from([None, None, 16, 24])):
        words += ["--depth", depth]
    return [str(word) for word in words], key


def run(*words):
    """(exit code or message, lines of stderr, stdout) of stego.py in this process."""
    err = io.StringIO()
    with contextlib.redirect_stderr(err), contextlib.redirect_stdout(io.StringIO()) as out:
        try:
            stego.main([str(word) for word in words])
            code = 0
        except SystemExit as stop:
            code = stop.code
    return code, err.getvalue().splitlines(), out.getvalue()


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    torch.manual_seed(0)
    paper = str(tmp_path_factory.mktemp("models") / "paper.pt")
    model = build(Config.paper(blocks=1, growth=2))
    for parameter in model.parameters():
        parameter.data *= 0.3
    checkpoint.save(model, paper)
    return {"INN": INN, "lattice": LATTICE, "robust": ROBUST, "paper": paper}


def decibels(signal, noise):
    """The SNR of two arrays."""
    return decibel(np.square(signal).sum(), np.square(noise).sum())


def integers(path):
    return soundfile.read(path, dtype="int16", always_2d=True)[0].astype(np.float64)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["INN", "lattice", "robust", "paper"])
@settings(max_examples=EXAMPLES, deadline=None, database=None, print_blob=True,
          derandomize="EXAMPLES" not in os.environ,
          suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(pair=pairs(), flags=flags(), ending=st.sampled_from([".wav", ".wav", ".flac"]))
def test_hide_then_reveal(models, name, pair, flags, ending):
    (cover, secret), (words, key) = pair, flags
    with tempfile.TemporaryDirectory() as folder:
        def place(file):
            return os.path.join(folder, file)

        if not (cover.write(place("cover")) and secret.write(place("secret"))):
            return
        before = sorted(os.listdir(folder))
        common = ["--model", models[name]]
        if key:
            with open(place("key"), "w") as file:
                file.write(key)
            common, before = common + ["--key-file", place("key")], sorted(os.listdir(folder))
        code, lines, out = run("hide", place("cover"), place("secret"), "-o",
                               place("stego" + ending), *common, *words)
        event("refused" if code else "hidden")
        if code:
            assert isinstance(code, str) and code.startswith("error: ") and "\n" not in code
            assert sorted(os.listdir(folder)) == before
            return
        assert all(line.startswith("note: ") for line in lines), lines
        code, lines, _ = run("reveal", place("stego" + ending), "-o", place("revealed.wav"),
                             *common)
        assert (code, lines) == (0, []), (code, lines)
        info, revealed, before, hidden = (soundfile.info(place(file)) for file in (
            "stego" + ending, "revealed.wav", "cover", "secret"))
        rate = before.samplerate  # some forms have only some rates
        assert info.samplerate == revealed.samplerate == rate
        assert info.channels == cover.channels >= revealed.channels
        assert info.frames == before.frames or cover.form == "MP3"
        deep = before.subtype in ("PCM_24", "PCM_32", "FLOAT", "DOUBLE", "ALAC_24")
        depth = words[words.index("--depth") + 1] if "--depth" in words else 24 if deep else 16
        assert info.subtype == f"PCM_{depth}"
        assert (secret.form in ("MP3", "OGG")
                or abs(revealed.frames / rate - hidden.frames / hidden.samplerate) < 1.01 / rate)
        if name == "paper":  # which may turn its cover down, and draws another z
            return
        words = out.rpartition(": ")[2].split()
        if secret.subtype == "PCM_16" and (rate, revealed.channels) == (
                hidden.samplerate, hidden.channels):
            wanted, given = (integers(place(file)) for file in ("secret", "revealed.wav"))
            told = math.inf if words[-1] == "lossless" else float(words[-2])
            assert decibels(wanted, wanted - given) == pytest.approx(told, abs=0.006)
        if cover.subtype == info.subtype == "PCM_16":
            wanted, given = (integers(place(file)) for file in ("cover", "stego" + ending))
            assert decibels(wanted, wanted - given) == pytest.approx(float(words[2]), abs=0.006)
