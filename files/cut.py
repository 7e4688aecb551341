"""Sound files that are shorter than their headers say, which libsndfile reads without a word.

Those of IRCAM, PVF, XI, and PAF of 8 or 16 bits say nothing: what is cut passes as whole.
"""

import math
import os
import re
import shutil
import tempfile

import soundfile


def unfinished(path):
    """The soundfile.SoundFile of a recording that was interrupted, in whose WAV header the length
    is still 0, with all that is there; or None."""
    with open(path, "rb") as source, tempfile.TemporaryFile() as copy:
        chunk = source.read(4096).find(b"data\0\0\0\0")
        if chunk < 0:
            return None
        source.seek(0)
        shutil.copyfileobj(source, copy)
        copy.seek(chunk + 4)
        copy.write(b"\xff\xff\xff\xff")  # up to the end
        copy.seek(0)
        file = soundfile.SoundFile(os.dup(copy.fileno()))
        file.unfinished = True
        return file


def missing_bytes(file):
    """How many bytes a soundfile.SoundFile of an open file's number lacks, as libsndfile logs it,
    at least; and whether samples are among them: all but a last byte that pads the file.

    Writers to pipes, who do not know the length, put almost 2 ** 31 or 2 ** 32 into the header."""
    log = file.extra_info
    if re.search("[Ff]ile seems to be truncated|a truncated file|lacks an end-of-stream", log):
        return math.inf, True
    claims = re.findall(r"^ *(\w+|Riff size|Data \w+) *:? (\d+) \(?should be (\d+)", log, re.M)
    if file.format in ("AVR", "MAT5", "MPC2K", "NIST"):  # of NIST, the log has nothing
        text = log + os.pread(file.name, 1024, 0).decode("latin-1")
        claims += [("frames", claim, file.frames) for claim in
                   re.findall(r"(?:Frames +:|Cols :|sample_count -i) (\d+)", text)]
    missing, chunks = 0, set()
    for chunk, claim, there in claims:
        chunks.add(chunk)
        if not 0x7FFFF000 <= int(claim) < 1 << 32:
            missing = max(missing, int(claim) - int(there))
    return missing, missing > 1 or not chunks <= {"RIFF", "FORM"}
