"""Every mistake gets one line that names the file and the remedy, and leaves nothing behind."""

import contextlib
import os
import pickle
import pty
import re
import sys

import numpy as np
import pytest
import soundfile
import torch

import stego
from helpers import INN, LATTICE, voice
from running import HIDE, ROOT, run_stego


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
    (folder / "cut_cover.wav").write_bytes((folder / "cover.wav").read_bytes()[:9000])
    (folder / "head.wav").write_bytes((folder / "cover.wav").read_bytes()[:44])
    write("flac.flac", cover)
    (folder / "cut.flac").write_bytes((folder / "flac.flac").read_bytes()[:12000])
    write("three.wav", np.stack([cover] * 3, 1))
    write("tiny.wav", cover[:600])
    write("small.wav", cover[:2560])
    write("one.wav", cover[:1])
    write("65537.wav", secret, 65537)
    for name, value in (("nan", np.nan), ("inf", np.inf), ("20000", 20000)):
        write(f"{name}.wav", np.append(secret, value), subtype="FLOAT")
    write("long.wav", voice(1.5, 16000, 4))
    (folder / "sub").mkdir()
    (folder / "precious.wav").write_text("precious")
    (folder / "key").write_text("open sesame\n")
    (folder / "wrong").write_text("open simsim\n")
    (folder / "blank").write_bytes(b"\xef\xbb\xbf\r\n")
    (folder / "UTF-16").write_text("open sesame", "UTF-16")
    os.mkfifo(folder / "pipe.wav")
    # models
    good = open(LATTICE, "rb").read()
    (folder / "cut.pt").write_bytes(good[:10000])

    class Code:
        def __reduce__(self):
            return os.system, ("touch executed",)

    (folder / "code.pt").write_bytes(pickle.dumps({"wavinwav": 2, "config": Code()}))
    torch.save({"wavinwav": 2, "config": Code()}, folder / "code2.pt")
    content = torch.load(LATTICE, weights_only=True)
    torch.save(content | {"wavinwav": 3}, folder / "later.pt")
    torch.save(content["state_dict"], folder / "weights.pt")
    # stegos
    inn, lattice = stego.load_model(INN), stego.load_model(LATTICE)
    for name, cover_name, model, key in (
            ("good", "cover", inn, None), ("keyed", "cover", inn, b"open sesame"),
            ("lattice", "cover", lattice, None), ("stereo", "cover2", inn, None)):
        paths = [str(folder / f"{name}.wav") for name in (cover_name, "secret", name)]
        stego.hide(*paths, model, key=key)
    x = soundfile.read(folder / "good.wav", dtype="int16")[0]
    two = soundfile.read(folder / "stereo.wav", dtype="int16")[0]
    for place in (600, 9000, 15990):
        y = x.copy()
        y[place] ^= 1
        write(f"changed{place}.wav", y)
    write("begins_late.wav", x[1:])
    write("appended.wav", np.append(x, x[:5]))
    write("lattice_header.wav", soundfile.read(folder / "lattice.wav", dtype="int16")[0][:1560])
    write("relabelled.wav", x, 8000)
    write("scaled.wav", (0.99 * x).round().astype(np.int16))
    write("doubled.wav", np.stack([x, x], 1))
    write("swapped.wav", two[:, ::-1])
    write("as_float.wav", x / 32768 + 1e-5, subtype="FLOAT")
    (folder / "truncated.wav").write_bytes((folder / "good.wav").read_bytes()[:-5000])
    write("good.mp3", x, format="MP3")
    return folder


GONE = ("there is no secret of this version, or the key or the model is another, or the beginning "
        "was changed or cut off; give a file as hide wrote it, its key and its --model")


def hiding(cover="cover.wav", secret="secret.wav", *more):
    return "hide", cover, secret, "-o", "out.wav", *more


def revealing(name, *more):
    return "reveal", name, "-o", "out.wav", *more


FAULTS = [
    (hiding("missing.wav"), "missing.wav does not exist"),
    (hiding("sub"), "sub is a folder, a pipe or a device; give a sound file"),
    (hiding("pipe.wav"), "pipe.wav is a folder, a pipe or a device"),
    (hiding(secret="/dev/zero"), "/dev/zero is a folder, a pipe or a device"),
    ((*HIDE[:-1], "pipe.wav", "--overwrite"), "it is not a file"),
    (hiding("empty.wav"), "empty.wav cannot be read as audio"),
    (hiding("head.wav"), "head.wav has no samples"),
    (hiding("text.wav"), "text.wav cannot be read as audio"),
    (hiding("cut_cover.wav"), "cut_cover.wav is cut off: .*; get the whole file"),
    (hiding("cut.flac"), "cut.flac (is cut|cannot be read)"),
    (hiding("three.wav"), "three.wav has 3 channels, .* one or two .*; mix it down first"),
    (hiding("tiny.wav"), "tiny.wav has 600 samples, .*; a cover needs at least 2112"),
    (hiding("tiny.wav", "one.wav", "--model", LATTICE), "tiny.wav .* at least 2492"),
    (hiding("small.wav", "small.wav", "--snr", "90", "--model", LATTICE),
     "small.wav: the cover is too short for this secret; take a longer one, or a lower SNR"),
    (hiding(secret="long.wav"), "long.wav lasts 1.500 s, .* 1.000 s by 8000 samples; cut it, or"),
    *((hiding(*words), f"{name}.wav has samples {expected}") for name, expected in (
        ("nan", "that are NaN or inf"), ("inf", "that are NaN or inf"), ("20000", "of 20000 times"))
      for words in ((f"{name}.wav", "one.wav"), ("cover.wav", f"{name}.wav"))),
    (hiding("-", "-"), "cover and secret cannot both be the standard input"),
    (hiding("-"), "- cannot be read as audio"),
    ((*HIDE[:-1], "precious.wav"), "precious.wav exists; give another name, or --overwrite"),
    ((*HIDE[:-1], "nowhere/out.wav"), "out.wav cannot be written .No such file or directory"),
    ((*HIDE[:-1], "out.mp3"), "out.mp3: only WAV and FLAC keep every sample .*; give a name"),
    ((*HIDE[:-1], "out"), "out: only WAV and FLAC"),
    (("hide", "65537.wav", "65537.wav", "-o", "out.flac"), "FLAC has no rate of 65537 Hz"),
    ((*HIDE, "--snr", "nan"), "--snr nan makes no sense; give a number from 0 to 120"),
    ((*HIDE, "--snr", "loud"), "argument --snr: invalid .*; see stego.py hide --help"),
    ((*HIDE, "--shaping", "2"), "--shaping 2.0 makes no sense; give a number from 0 to 1"),
    ((*HIDE, "--masking", "0.5"), "--masking has no effect on this model; leave it out, or give"),
    ((*HIDE, "--shaping", "0.5", "--model", "robust"), "--shaping has no effect on this model"),
    ((*HIDE, "--snr", "40", "--model", "paper"), "--snr has no effect on this model"),
    ((*HIDE, "--model", "nosuch"), "nosuch cannot be read .No such file.*; give a model"),
    ((*HIDE, "--depth", "20"), "argument --depth: invalid choice"),
    ((*HIDE, "--key", "--key-file", "key"), "not allowed with argument"),
    ((*HIDE, "--key=open sesame"), "ignored explicit argument|unrecognized|expected"),
    ((*HIDE, "--key-file", "missing"), "missing cannot be read .* give a file with a passphrase"),
    ((*HIDE, "--key-file", ""), "--key-file '' cannot be read"),
    ((*HIDE, "--key-file", "blank"), "blank is empty; write a passphrase into it"),
    ((*HIDE, "--key-file", "UTF-16"), "UTF-16 is UTF-16; save it as UTF-8"),
    ((*HIDE, "--key-file", "/dev/zero"), "/dev/zero has more than 65536 bytes"),
    ((*HIDE, "--key"), "there is nobody to ask for a key; give --key-file"),
    (("hide", "cover.wav", "secret.wav"), "the following arguments are required: -o/--output"),
    ((), "the following arguments are required: command"),
    ((*HIDE, "--loud"), "unrecognized arguments: --loud"),
    ((*HIDE, "--model", "missing.pt"), "missing.pt cannot be read .* give a model with --model"),
    *(((*HIDE, "--model", name), f"{name} is not a WavInWav model.*; give another one with --model")
      for name in ("cover.wav", "cut.pt", "code.pt", "code2.pt", "weights.pt", "later.pt")),
    (revealing("missing.wav"), "missing.wav does not exist"),
    (revealing("text.wav"), "text.wav cannot be read as audio"),
    (revealing("cover.wav", "--force", "--model", LATTICE), "cover.wav: " + GONE),
    (revealing("keyed.wav", "--key-file", "wrong"), "keyed.wav: " + GONE),
    (revealing("good.wav", "--key-file", "key"), "good.wav: " + GONE),
    (revealing("lattice.wav"), "lattice.wav: .* with another model; give it with --model"),
    (revealing("changed9000.wav"), "changed9000.wav: it was changed .* is left with --force"),
    (revealing("changed15990.wav"), "changed15990.wav: it was changed after it was made"),
    (revealing("appended.wav"), "appended.wav: it was changed after it was made"),
    (revealing("truncated.wav"), "truncated.wav: it was cut: 13500 of 16000 samples are left"),
    (revealing("lattice_header.wav", "--force", "--model", LATTICE), "nothing is left of it"),
    *((revealing(name), f"{name}: {GONE}") for name in (
        "one.wav", "cover.wav", "keyed.wav", "changed600.wav", "begins_late.wav", "scaled.wav",
        "doubled.wav", "swapped.wav", "as_float.wav", "good.mp3")),
    (revealing("relabelled.wav"), "relabelled.wav: its rate, .* were 16000 Hz, 1, 16, and .* now"),
    (revealing("keyed.wav", "--key-file", "wrong", "--force"), "keyed.wav: " + GONE),
    *((revealing(name, "--force"), f"{name}: there is no header, and no trace of a secret")
      for name in ("cover.wav", "keyed.wav", "good.mp3")),
    (revealing("-"), "- cannot be read as audio"),
    (("reveal", "good.wav", "-o", "precious.wav"), "precious.wav exists; give another name, or"),
]


def test_one_line_for_every_fault(folder, tmp_path):
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    wrong = []
    for words, expected in FAULTS:
        code, out, err = run_stego(folder, *words, temporary=str(tmp_path))
        one_line = len(err.splitlines()) == 1 and re.match(f"error: .*{expected}", err)
        if not (code in (1, 2) and out == "" and one_line):
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
