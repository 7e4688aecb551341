"""Every mistake gets one line that names the file and the remedy, and leaves nothing behind."""

import contextlib
import os
import pickle
import pty
import random
import re
import shutil
import signal
import sys
import time

import numpy as np
import pytest
import soundfile
import torch

import stego
from files import checkpoint, sound
from files.container import SPARSE
from files.resample import resample
from helpers import HIDE, INN, LATTICE, ROOT, finish, launch, run_stego, voice
from wavinwav import Config, build


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Good files and bad ones."""
    folder = tmp_path_factory.mktemp("faults")

    def write(name, x, rate=16000, **more):
        soundfile.write(folder / name, x, rate, **more)

    cover, secret = 0.5 * voice(1, 16000, 1), voice(0.5, 16000, 2)
    write("cover.wav", cover)
    write("secret.wav", secret)
    write("cover2.wav", np.stack([cover, 0.5 * voice(1, 16000, 3)], 1))
    (folder / "text.wav").write_text("not audio")
    (folder / "empty.wav").write_bytes(b"")
    (folder / "picture.wav").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(1000))
    write("none.wav", np.zeros(0))
    for name in ("cover", "secret"):
        (folder / f"cut_{name}.wav").write_bytes((folder / f"{name}.wav").read_bytes()[:9000])
    (folder / "head.wav").write_bytes((folder / "cover.wav").read_bytes()[:44])
    write("flac.flac", cover)
    (folder / "cut.flac").write_bytes((folder / "flac.flac").read_bytes()[:12000])
    for name, value in (("nan", np.nan), ("inf", np.inf)):
        x = cover.copy()
        x[1000] = value
        write(f"{name}.wav", x, subtype="FLOAT")
    write("three.wav", np.stack([cover] * 3, 1))
    write("six.wav", np.stack([secret] * 6, 1))
    write("tiny.wav", cover[:600])
    write("small.wav", cover[:2560])
    write("one.wav", cover[:1])
    write("long.wav", voice(1.5, 16000, 4))
    write("slow.wav", voice(1.5, 8000, 4), 8000)
    (folder / "sub").mkdir()
    (folder / "precious.wav").write_text("precious")
    (folder / "key").write_text("open sesame\n")
    (folder / "wrong").write_text("open simsim\n")
    (folder / "blank").write_text("\n")
    # models
    good = open(LATTICE, "rb").read()
    (folder / "cut.pt").write_bytes(good[:10000])
    (folder / "empty.pt").write_bytes(b"")
    (folder / "text.pt").write_text("not a model")

    class Code:
        def __reduce__(self):
            return os.system, ("touch executed",)

    (folder / "code.pt").write_bytes(pickle.dumps({"wavinwav": 2, "config": Code()}))
    torch.save({"wavinwav": 2, "config": Code()}, folder / "code2.pt")
    content = torch.load(LATTICE, weights_only=True)
    torch.save(content | {"wavinwav": 3}, folder / "later.pt")
    torch.save(content | {"config": content["config"] | {"growth": 8}}, folder / "other_size.pt")
    torch.save(content | {"config": content["config"] | {"bands": -1}}, folder / "no_bands.pt")
    torch.save(content | {"config": content["config"] | {"colour": 1}}, folder / "colour.pt")
    torch.save(content["state_dict"], folder / "weights.pt")
    content = torch.load(INN, weights_only=True)
    growth = content["config"]["growth"] + 8
    for name, field in (("growth", {"growth": growth}), ("carriers", {"carriers": 65})):
        torch.save(content | {"config": content["config"] | field}, folder / f"{name}.pt")
    checkpoint.save(build(Config.paper(blocks=1, growth=2)), folder / "paper.pt")
    # stegos
    inn, lattice = stego.load_model(INN), stego.load_model(LATTICE)
    for name, cover_name, model, key in (
            ("good", "cover", inn, None), ("keyed", "cover", inn, b"open sesame"),
            ("lattice", "cover", lattice, None), ("stereo", "cover2", inn, None)):
        paths = [str(folder / f"{name}.wav") for name in (cover_name, "secret", name)]
        stego.hide(*paths, model, key=key)
    x = soundfile.read(folder / "good.wav", dtype="int16")[0]
    two = soundfile.read(folder / "stereo.wav", dtype="int16")[0]
    for place in (501, 600, 9000, 15990):
        y = x.copy()
        y[place] ^= 1
        write(f"changed{place}.wav", y)
    write("ends_early.wav", x[:-1])
    write("begins_late.wav", x[1:])
    write("appended.wav", np.append(x, x[:5]))
    write("header_only.wav", x[:SPARSE.header_samples])
    write("lattice_header.wav", soundfile.read(folder / "lattice.wav", dtype="int16")[0][:1560])
    write("relabelled.wav", x, 8000)
    write("scaled.wav", (0.99 * x).round().astype(np.int16))
    there_and_back = resample(resample(torch.from_numpy(x / 32768).float(), 4, 3), 3, 4)
    write("resampled.wav", there_and_back.numpy()[:len(x)])
    write("coarse.wav", (x / 256).round() / 128)
    write("doubled.wav", np.stack([x, x], 1))
    write("swapped.wav", two[:, ::-1])
    write("left.wav", two[:, 0])
    write("as_float.wav", x / 32768 + 1e-5, subtype="FLOAT")
    (folder / "truncated.wav").write_bytes((folder / "good.wav").read_bytes()[:-5000])
    if "MP3" in soundfile.available_formats():
        write("good.mp3", x, format="MP3")
    else:
        shutil.copy(folder / "resampled.wav", folder / "good.mp3")
    return folder


GONE = ("there is no secret of this version, or the key or the model is another, or the beginning "
        "was changed or cut off; give a file as hide wrote it, its key and its --model")


def hiding(cover="cover.wav", secret="secret.wav", *more):
    return "hide", cover, secret, "-o", "out.wav", *more


def revealing(name, *more):
    return "reveal", name, "-o", "out.wav", *more


FAULTS = [
    (hiding("missing.wav"), "missing.wav does not exist"),
    (hiding(secret="missing.wav"), "missing.wav does not exist"),
    (hiding("sub"), "sub is a folder, a pipe or a device; give a sound file"),
    (hiding(secret="sub"), "sub is a folder, a pipe or a device; give a sound file"),
    (hiding("empty.wav"), "empty.wav cannot be read as audio"),
    (hiding("none.wav"), "none.wav has no samples"),
    (hiding(secret="none.wav"), "none.wav has no samples"),
    (hiding("head.wav"), "head.wav has no samples"),
    (hiding("text.wav"), "text.wav cannot be read as audio"),
    (hiding("picture.wav"), "picture.wav cannot be read as audio"),
    (hiding("cut_cover.wav"),
     "cut_cover.wav is cut off: audio is missing at its end; get the whole file"),
    (hiding(secret="cut_secret.wav"), "cut_secret.wav is cut off"),
    (hiding("cut.flac"), "cut.flac (is cut|cannot be read)"),
    (hiding("nan.wav"), "nan.wav has samples that are NaN or infinite; repair or re-export it"),
    (hiding("inf.wav"), "inf.wav has samples that are NaN or infinite"),
    (hiding(secret="nan.wav"), "nan.wav has samples that are NaN or infinite"),
    (hiding(secret="inf.wav"), "inf.wav has samples that are NaN or infinite"),
    (hiding("three.wav"),
     "three.wav has 3 channels, and one or two can be used; mix it down first"),
    (hiding(secret="six.wav"), "six.wav has 6 channels"),
    (hiding("tiny.wav", "one.wav"),
     "tiny.wav has 600 samples, too short to hide anything in; a cover needs at least 2112"),
    (hiding("tiny.wav", "one.wav", "--model", LATTICE),
     "tiny.wav has 600 samples, too short to hide anything in; a cover needs at least 2492"),
    (hiding("one.wav", "one.wav"), "one.wav has 1 samples, too short"),
    (hiding("small.wav", "small.wav", "--snr", "90", "--model", LATTICE),
     "small.wav: the cover is too short for this secret; take a longer one, or a lower SNR"),
    (hiding(secret="long.wav"),
     "long.wav lasts 1.500 s, longer than its cover's 1.000 s by 8000 samples; cut it, or take a "
     "longer cover"),
    (hiding(secret="slow.wav"), "slow.wav lasts 1.500 s, longer than its cover's"),
    (hiding("-", "-"), "cover and secret cannot both be the standard input"),
    (hiding("-"), "- cannot be read as audio"),
    (("hide", "cover.wav", "secret.wav", "-o", "precious.wav"),
     "precious.wav exists; give another name, or --overwrite"),
    (("hide", "cover.wav", "secret.wav", "-o", "nowhere/out.wav"),
     "nowhere/out.wav cannot be written .No such file or directory"),
    (("hide", "cover.wav", "secret.wav", "-o", "out.mp3"),
     "out.mp3: only WAV and FLAC keep every sample as it is; give a name"),
    (("hide", "cover.wav", "secret.wav", "-o", "out"), "out: only WAV and FLAC"),
    (("hide", "cover.wav", "secret.wav", "-o", "sub"), "sub: only WAV and FLAC"),
    ((*HIDE, "--snr", "nan"), "--snr nan makes no sense; give a number from 0 to 120"),
    ((*HIDE, "--snr", "loud"),
     "argument --snr: invalid float value: 'loud'; see stego.py hide --help"),
    ((*HIDE, "--shaping", "2"), "--shaping 2.0 makes no sense; give a number from 0 to 1"),
    ((*HIDE, "--masking", "-1"), "--masking -1.0 makes no sense"),
    ((*HIDE, "--masking", "0.5"), "--masking has no effect on this model; leave it out, or give"),
    ((*HIDE, "--shaping", "0.5", "--model", "robust"), "--shaping has no effect on this model"),
    ((*HIDE, "--snr", "40", "--model", "paper.pt"), "--snr has no effect on this model"),
    ((*HIDE, "--model", "nosuch"), "nosuch cannot be read .No such file.*; give a model"),
    ((*HIDE, "--depth", "20"), "argument --depth: invalid choice"),
    ((*HIDE, "--key", "--key-file", "key"), "not allowed with argument"),
    ((*HIDE, "--key=open sesame"), "ignored explicit argument|unrecognized|expected"),
    ((*HIDE, "--key-file", "missing"), "missing cannot be read .* give a file with a passphrase"),
    ((*HIDE, "--key-file", "sub"), "sub cannot be read .* give a file with a passphrase"),
    ((*HIDE, "--key-file", "blank"), "blank is empty; write a passphrase into it"),
    ((*HIDE, "--key"), "there is nobody to ask for a key; give --key-file"),
    (("hide", "cover.wav", "secret.wav"), "the following arguments are required: -o/--output"),
    (("hide", "cover.wav", "-o", "out.wav"), "the following arguments are required: SECRET"),
    ((), "the following arguments are required: command"),
    (("seek", "cover.wav"), "invalid choice: 'seek'"),
    ((*HIDE, "--loud"), "unrecognized arguments: --loud"),
    ((*HIDE, "--model", "missing.pt"), "missing.pt cannot be read .* give a model with --model"),
    ((*HIDE, "--model", "sub"), "sub cannot be read .* give a model with --model"),
    ((*HIDE, "--model", "cover.wav"),
     "cover.wav is not a WavInWav model, or is damaged; give another one with --model"),
    ((*HIDE, "--model", "cut.pt"), "cut.pt is not a WavInWav model, or is damaged"),
    ((*HIDE, "--model", "empty.pt"), "empty.pt is not a WavInWav model, or is damaged"),
    ((*HIDE, "--model", "text.pt"), "text.pt is not a WavInWav model, or is damaged"),
    ((*HIDE, "--model", "code.pt"), "code.pt is not a WavInWav model, or is damaged"),
    ((*HIDE, "--model", "code2.pt"), "code2.pt is not a WavInWav model, or is damaged"),
    ((*HIDE, "--model", "weights.pt"), "weights.pt is not a WavInWav model of this version"),
    ((*HIDE, "--model", "later.pt"), "later.pt is not a WavInWav model of this version"),
    ((*HIDE, "--model", "other_size.pt"),
     "other_size.pt is not a lattice of this version"),
    ((*HIDE, "--model", "no_bands.pt"),
     "no_bands.pt is not a lattice of this version"),
    ((*HIDE, "--model", "colour.pt"),
     "colour.pt is not a lattice of this version"),
    ((*HIDE, "--model", "growth.pt"), "growth.pt is not a network of this version"),
    ((*HIDE, "--model", "carriers.pt"), "carriers.pt is not a network of this version"),
    (revealing("missing.wav"), "missing.wav does not exist"),
    (revealing("sub"), "sub is a folder"),
    (revealing("text.wav"), "text.wav cannot be read as audio"),
    (revealing("none.wav"), "none.wav has no samples"),
    (revealing("one.wav"), "one.wav: " + GONE),
    (revealing("cover.wav"), "cover.wav: " + GONE),
    (revealing("cover.wav", "--key-file", "key"), "cover.wav: " + GONE),
    (revealing("cover2.wav"), "cover2.wav: " + GONE),
    (revealing("cover.wav", "--model", LATTICE), "cover.wav: " + GONE),
    (revealing("cover.wav", "--force", "--model", LATTICE), "cover.wav: " + GONE),
    (revealing("keyed.wav"), "keyed.wav: " + GONE),
    (revealing("keyed.wav", "--force", "--model", LATTICE),
     "keyed.wav: " + GONE),
    (revealing("keyed.wav", "--key-file", "wrong"), "keyed.wav: " + GONE),
    (revealing("good.wav", "--key-file", "key"), "good.wav: " + GONE),
    (revealing("lattice.wav"),
     "lattice.wav: the secret was hidden with another model; give it with --model"),
    (revealing("good.wav", "--model", LATTICE),
     "good.wav: the secret was hidden with another model"),
    (revealing("changed600.wav"), "changed600.wav: " + GONE),
    (revealing("changed501.wav"),
     "changed501.wav: it was changed after it was made; .* reveal what is left with --force"),
    (revealing("changed9000.wav"), "changed9000.wav: it was changed after it was made"),
    (revealing("changed15990.wav"), "changed15990.wav: it was changed after it was made"),
    (revealing("appended.wav"), "appended.wav: it was changed after it was made"),
    (revealing("ends_early.wav"), "ends_early.wav: it was cut: 15999 of 16000 samples are left"),
    (revealing("truncated.wav"), "truncated.wav: it was cut: 13500 of 16000 samples are left"),
    (revealing("begins_late.wav"), "begins_late.wav: " + GONE),
    (revealing("header_only.wav"), "header_only.wav: it was cut: 1600 of 16000 samples are left"),
    (revealing("lattice_header.wav", "--model", LATTICE),
     "lattice_header.wav: it was cut: 1560 of 16000 samples are left"),
    (revealing("lattice_header.wav", "--force", "--model", LATTICE),
     "lattice_header.wav: the secret was changed or cut off; nothing is left of it"),
    (revealing("scaled.wav"), "scaled.wav: " + GONE),
    (revealing("resampled.wav"), "resampled.wav: " + GONE),
    (revealing("good.mp3"), "good.mp3: " + GONE),
    (revealing("coarse.wav"), "coarse.wav: " + GONE),
    (revealing("doubled.wav"), "doubled.wav: " + GONE),
    (revealing("swapped.wav"), "swapped.wav: " + GONE),
    (revealing("left.wav"), "left.wav: " + GONE),
    (revealing("as_float.wav"), "as_float.wav: " + GONE),
    (revealing("relabelled.wav"),
     "relabelled.wav: its rate, channels or bits were 16000 Hz, 1, 16, and are not now; get it"),
    (revealing("keyed.wav", "--key-file", "wrong", "--force"), "keyed.wav: " + GONE),
    (revealing("cover.wav", "--force"),
     "cover.wav: there is no header, and no trace of a secret without a key; give a file as hide"),
    (revealing("keyed.wav", "--force"), "keyed.wav: there is no header, and no trace of a secret"),
    (revealing("good.mp3", "--force"), "good.mp3: there is no header, and no trace of a secret"),
    (revealing("-"), "- cannot be read as audio"),
    (("reveal", "good.wav", "-o", "precious.wav"),
     "precious.wav exists; give another name, or --overwrite"),
    (("reveal", "good.wav", "-o", "out.mp3"), "out.mp3: only WAV and FLAC"),
    (("reveal", "good.wav", "-o", "nowhere/out.wav"),
     "nowhere/out.wav cannot be written .No such file or directory"),
]


def test_one_line_for_every_fault(folder, tmp_path):
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert len({words for words, _ in FAULTS}) >= 100
    wrong = []
    for words, expected in FAULTS:
        code, out, err = run_stego(folder, *words, temporary=str(tmp_path))
        told = len(err.splitlines()) == 1 and re.match(f"error: .*{expected}", err)
        if not (code in (1, 2) and out == "" and told):
            wrong.append((words, code, out, err))
    assert not wrong, "\n".join(map(str, wrong))
    after = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert after == before, "nothing new, nothing changed"
    assert not os.listdir(tmp_path), "nor anything that was temporary"


def test_a_typed_key_that_is_not_utf8(folder):
    pid, terminal = pty.fork()
    if not pid:
        os.chdir(folder)
        os.execv(sys.executable, [sys.executable, os.path.join(ROOT, "stego.py"), *HIDE, "--key"])
    text = b""
    with contextlib.suppress(OSError):  # at its end
        while part := os.read(terminal, 1000):
            text += part
            if text.endswith(b"key: "):
                os.write(terminal, b"\xff\xfe\n")
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 1
    assert text == (b"key: error: the key is not text in UTF-8; type another, or give "
                    b"--key-file\r\n")


@pytest.mark.slow
def test_no_room_on_the_disk(folder):
    """For the decoded cover, or (when all but the last bytes fit) for the stego."""
    size = (folder / "cover.wav").stat().st_size
    for largest, expected in ((5000, "temporary files cannot be written .*; set TMPDIR"),
                              (size - 40, "cannot be written|does not hold")):
        code, out, err = run_stego(folder, *HIDE, largest=largest)
        assert code == 1 and out == "" and len(err.splitlines()) == 1
        assert re.search(expected, err), err
    assert not [path for path in folder.iterdir() if path.name.startswith("out")]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read and write everything")
def test_no_permission(folder, tmp_path):
    shutil.copy(folder / "cover.wav", tmp_path / "closed.wav")
    os.chmod(tmp_path / "closed.wav", 0)
    (tmp_path / "closed").mkdir(mode=0o500)
    closed = str(tmp_path / "closed.wav"), str(tmp_path / "closed" / "out.wav")
    for words, expected in ((hiding(closed[0]), "closed.wav cannot be read"),
                            ((*HIDE[:-1], closed[1]), "out.wav cannot be written")):
        code, out, err = run_stego(folder, *words)
        assert code == 1 and out == "" and len(err.splitlines()) == 1 and expected in err


def test_force_reveals_what_is_left(folder):
    forced = "-o", "forced.wav", "--force", "--overwrite"
    for name in ("changed15990.wav", "appended.wav"):
        code, out, err = run_stego(folder, "reveal", name, *forced)
        assert code == 0 and "0.50 s revealed" in out and err == ""
        assert soundfile.info(folder / "forced.wav").frames == 8000
    code, out, _ = run_stego(folder, "reveal", "relabelled.wav", *forced)
    assert code == 0 and "1.00 s revealed" in out, "of another rate"
    code, out, err = run_stego(folder, "reveal", "scaled.wav", *forced)
    assert code == 0 and "1.00 s revealed" in out, "an INN needs no header"
    assert "scaled.wav has no header; a secret is assumed, since its samples cluster by" in err
    os.remove(folder / "forced.wav")


@pytest.mark.slow
def test_killed_while_writing(folder, tmp_path):
    """Stopped at any moment, the output is whole or not there, and nothing else is left."""
    x = voice(1, 16000, 5)
    soundfile.write(tmp_path / "cover.wav", np.tile(x, 600), 16000)
    soundfile.write(tmp_path / "secret.wav", np.tile(x, 600), 16000)
    (tmp_path / "tmp").mkdir()
    for number in (signal.SIGTERM, signal.SIGINT):
        pid, streams = launch(tmp_path, *HIDE, temporary=str(tmp_path / "tmp"))
        while len(os.listdir(tmp_path)) < 4 and not os.waitpid(pid, os.WNOHANG)[0]:
            time.sleep(0.001)  # until what becomes the output is there, seconds before it is whole
        os.kill(pid, number)
        code, _, err = finish(pid, streams)
        assert (code, err) == (1, "error: interrupted\n")
        assert not os.listdir(tmp_path / "tmp")
        names = sorted(path.name for path in tmp_path.iterdir())
        assert names == ["cover.wav", "secret.wav", "tmp"]


class Hang(BaseException):
    pass


@pytest.mark.slow
def test_fuzz(folder, tmp_path):
    """500 random mutations of stego files and of models: each works or is refused, in time."""
    def hang(*_):
        raise Hang

    rng, models = random.Random(0), [stego.load_model(LATTICE), stego.load_model(INN)]
    soundfile.write(tmp_path / "short.wav", soundfile.read(folder / "cover.wav")[0][:3000], 16000)
    soundfile.write(tmp_path / "flac.flac", soundfile.read(folder / "cover.wav")[0][:3000], 16000)
    sources = []
    for model in models:
        for cover, out in (("short.wav", "a.wav"), ("flac.flac", "b.flac")):
            paths = str(tmp_path / cover), str(folder / "one.wav"), str(tmp_path / out)
            stego.hide(*paths, model, overwrite=True)
            sources.append((model, os.path.splitext(out)[1], (tmp_path / out).read_bytes()))
    sources += [(None, ".pt", open(path, "rb").read()) for path in (LATTICE, LATTICE, INN)]
    before = signal.signal(signal.SIGALRM, hang)
    refused = 0
    try:
        for i in range(500):
            model, kind, content = sources[i % len(sources)]
            data = bytearray(content)
            for _ in range(rng.choice((1, 1, 2, 10))):
                place = rng.randrange(min(len(data), rng.choice((16, 64, 1000, len(data)))))
                what = rng.randrange(4)
                if what == 0:
                    data[place] ^= 1 << rng.randrange(8)
                elif what == 1:
                    data[place:place + rng.randrange(1, 8)] = rng.randbytes(rng.randrange(8))
                elif what == 2 and len(data) > 100:
                    del data[max(50, rng.randrange(len(data))):]
                else:
                    data[place:place + 4] = rng.choice((
                        b"\0\0\0\0", b"\xff\xff\xff\xff", b"\xff\xff\xff\x7f", b"\0\0\0\x80"))
            path = tmp_path / f"mutant{kind}"
            path.write_bytes(data)
            signal.alarm(20)
            try:
                if model is None:
                    stego.load_model(str(path))
                else:
                    stego.reveal(str(path), str(tmp_path / "out.wav"), model, force=bool(i & 8),
                                 overwrite=True)
            except sound.StegoError as error:
                refused += 1
                assert len(str(error).splitlines()) == 1 and str(path) in str(error)
            finally:
                signal.alarm(0)
    finally:
        signal.signal(signal.SIGALRM, before)
    assert refused > 250
