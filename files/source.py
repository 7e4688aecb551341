"""Sound files opened for reading, where libsndfile alone would misread them.

It guesses the length of MP3 files, reads a file that is cut off without an error, finds nothing in
a WAV file whose recording was interrupted, and lets libmpg123 print warnings. IRCAM, PAF, PVF and
XI store no length: there, a file that is cut off passes as whole.
"""

import contextlib
import io
import math
import os
import re
import stat
import threading

import numpy as np
import soundfile

from files import mp3
from files.command import StegoError

READ_AT_ONCE = 1 << 17  # samples
UNKNOWN = 1 << 62  # libsndfile's number of frames is larger where a FLAC header has none
LARGEST = 16  # magnitude of samples, 24 dB above full scale; larger ones are on another scale
_quiet_lock = threading.Lock()
_counted = {}  # frames of files, by what the system says of them


class Reader(soundfile.SoundFile):
    """A sound file, called `label` in messages. `head`: its first bytes; `cut`: whether it is an
    MP3 file that is cut off; `unfinished`: whether its header has no length because the recording
    was interrupted."""

    def __init__(self, raw, label, cut=False, unfinished=False):
        self.raw, self.label, self.cut, self.unfinished = raw, label, cut, unfinished
        self.head = raw.read(4096)
        raw.seek(0)
        with quiet():
            super().__init__(raw)

    def seekable(self):
        """No: else `read` would also seek, each time."""
        return False

    @contextlib.contextmanager
    def _reading(self):
        try:
            with quiet() if self.subtype.startswith("MPEG") else contextlib.nullcontext():
                yield
        except soundfile.LibsndfileError as error:
            raise StegoError(f"{self.label} cannot be read to its end ({error}); it may be damaged"
                             ) from error

    def seek(self, *args):
        with self._reading():
            return super().seek(*args)

    def read(self, *args, **kwargs):
        """Raises StegoError for what cannot be read, and for NaN, infinity, and samples so large
        that they must be on another scale."""
        with self._reading():
            x = super().read(*args, **kwargs)
        if x.dtype.kind == "f":
            peak = np.abs(x).max(initial=0)
            if not np.isfinite(peak):
                raise StegoError(f"{self.label} has samples that are NaN or infinite; repair or "
                                 "re-export it")
            if peak > LARGEST:
                raise StegoError(f"{self.label} has samples of {peak:.0f} times full scale; divide "
                                 "them so that full scale is 1")
        return x

    def pieces(self, dtype, most=math.inf):
        """The samples [n, channels], piece by piece, until there are `most`."""
        frames = 0
        while frames < most and len(x := self.read(READ_AT_ONCE, dtype, always_2d=True)):
            yield x
            frames += len(x)

    def close(self):
        super().close()
        self.raw.close()

    def detach(self):
        """Close this, but not the file object, which is returned at its beginning."""
        raw, self.raw = self.raw, io.BytesIO()
        self.close()
        raw.seek(0)
        return raw


def open_audio(source, name=None):
    """A Reader of a path or a binary file object, called `name` in messages. Raises StegoError if
    it is not a usable audio file."""
    name = name or source
    try:
        file = Reader(source if hasattr(source, "read") else _open(source, name), name)
        if file.subtype == "MPEG_LAYER_III":
            raw, cut = mp3.with_length(file.detach())
            file = Reader(raw, name, cut)
        elif file.format == "FLAC" and file.frames > UNKNOWN:
            count = _decoded_frames(file)
            at = file.head.index(b"fLaC") + 18  # of 28 bits of other fields, and 36 of the length
            field = int.from_bytes(file.head[at:at + 8], "big") + count
            head = file.head[:at] + field.to_bytes(8, "big")
            file = Reader(mp3.copied(head, file.detach(), at + 8), name)
        elif not file.frames and (at := file.head.find(b"data\0\0\0\0")) >= 0:
            head = file.head[:at + 4] + b"\xff\xff\xff\xff"  # up to the end
            file = Reader(mp3.copied(head, file.detach(), at + 8), name, unfinished=True)
    except FileNotFoundError as error:
        raise StegoError(f"{name} does not exist; give a sound file") from error
    except (soundfile.LibsndfileError, OSError) as error:
        reason = getattr(error, "error_string", None) or getattr(error, "strerror", None) or error
        raise StegoError(f"{name} cannot be read as audio ({reason}); "
                         "give a WAV, FLAC, OGG or MP3 file") from error
    except ValueError as error:
        raise StegoError(f"{name} {error}; convert it to WAV") from error
    if not file.frames:
        raise StegoError(f"{name} has no samples; give a file with sound in it")
    return file


def _open(path, name):
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise StegoError(f"{name} is a folder, a pipe or a device; give a sound file, or - for the "
                         "standard input")
    return open(os.open(path, os.O_RDONLY), "rb")  # without a name, whose end soundfile would heed


def _decoded_frames(file):
    """The frames of a Reader's file, decoded to its end, which is done once for each file."""
    try:
        system = os.fstat(file.raw.fileno())
    except io.UnsupportedOperation:  # it is in memory
        return sum(map(len, file.pieces("int16")))
    key = system.st_dev, system.st_ino, system.st_size, system.st_mtime_ns
    if key not in _counted:
        _counted[key] = sum(map(len, file.pieces("int16")))
    return _counted[key]


def check_whole(file):
    """Raises StegoError if audio is missing at the end of a Reader's file."""
    log = file.extra_info
    cut = file.cut or re.search("ile seems to be truncated|a truncated file", log)
    if file.format == "OGG":
        content = mp3.contents(file.raw)
        if len(re.findall(rb"OggS\0[\2\3\6\7]", content)) > 1:  # pages that begin a stream
            raise StegoError(f"{file.label} holds several recordings, one after the other, of "
                             "which only the first would be read; convert it to WAV")
        page = content[content.rfind(b"OggS"):].ljust(27, b"\0")
        cut = not page[5] & 4 or len(page) < 27 + page[26] + sum(page[27:27 + page[26]])
    pattern = r"^ *(?:data|SSND|BODY|riff|Data \w+) *:? (\d+) \(?should be (\d+)"  # riff: W64
    sizes = re.findall(pattern, log, re.M)
    claims = [(int(size), int(there)) for size, there in sizes]
    if file.format in ("AVR", "CAF", "MAT5", "MPC2K", "NIST", "RF64"):  # no log of NIST
        log += file.head[:1024].decode("latin-1")
        counts = re.findall(r"(?:(?:F|Valid f)rames +:|Cols :|sample_count -i) (\d+)", log)
        claims += [(int(count), file.frames) for count in counts]
    if file.format == "CAF":
        for align, size in re.findall(r"Bytes / packet +: (\d+)\n(?:.*\n)*?data : (\d+)", log):
            claims += [((int(size) - 4) // int(align), file.frames)] if int(align) else []
    for claim, there in claims:
        # Encoders that do not know the length write almost 2 ** 31 or 2 ** 32.
        cut = cut or claim > there and not 0x7FFFF000 <= claim < 1 << 32
    if cut:
        raise StegoError(f"{file.label} is cut off: audio is missing at its end; get the whole "
                         "file, or convert what is left to WAV")


@contextlib.contextmanager
def quiet():
    """Discard what libmpg123 prints on stderr."""
    with _quiet_lock:  # or one thread would restore the null device of another
        stderr = os.dup(2)
        try:
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, 2)
            os.close(null)
            yield
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)
