"""MP3 files, whose length libsndfile guesses unless they have a Xing header with the right one."""

import io
import mmap
import shutil
import tempfile

KBPS = (  # by bitrate index: MPEG-2 and 2.5, MPEG-1
    (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
    (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320))


def with_length(raw):
    """A file object with the frames of an MP3 file object, behind a Xing header that has their
    number, and whether the file is cut off. If its own Xing header is right, it is returned itself.
    Raises OSError, and ValueError for a file that libsndfile would not read to its end."""
    content = contents(raw)
    count, start, kinds, partial = _frames(content)
    if len(kinds) != 1:
        raise ValueError("changes its sample rate or channels midway" if kinds else
                         "has no MP3 frames of a known bitrate")
    size, (bits, mpeg1, side_bytes) = _frame(content, start)
    tag, stored = content[start + 4 + side_bytes:start + 16 + side_bytes], None
    if tag[:4] in (b"Xing", b"Info") or content[start + 36:start + 40] == b"VBRI":
        count, start = count - 1, start + size
        if tag[:4] in (b"Xing", b"Info") and tag[7] & 1:
            stored = int.from_bytes(tag[8:], "big")
    cut = partial and stored != count or (stored or 0) > count + 1  # some count the Xing header
    if stored == count:
        raw.seek(0)
        return raw, cut
    header = bits | 1 << 16 | KBPS[mpeg1].index(64) << 12  # 64 kbit/s, without a checksum
    head = header.to_bytes(4, "big") + bytes(side_bytes)
    head += b"Xing\0\0\0\1" + count.to_bytes(4, "big")
    return copied(head.ljust(_frame(head, 0)[0], b"\0"), raw, start), cut


def _frames(content):
    """Of the bytes of an MP3 file: the number of frames, where the first one begins, their kinds,
    and whether the last one is incomplete."""
    count, start, end, last, kinds = 0, 0, 0, None, set()
    at = 0
    if content[:3] == b"ID3":  # a tag, with 7 bits of its length in a byte
        at = 10 + sum(byte << shift for byte, shift in zip(content[6:10], (21, 14, 7, 0)))
    while 0 <= at < len(content):
        size, kind = _frame(content, at)
        end = at + size
        if size and (kind == last or end == len(content) or kind == _frame(content, end)[1]):
            if end > len(content):
                return count, start, kinds, True
            start = start if count else at
            count, at, last = count + 1, end, kind
            kinds.add(kind)
        elif last and len(content) - at < 4 and content[at] == 0xFF:
            return count, start, kinds, True
        else:
            last, at = None, content.find(b"\xff", at + 1)
    return count, start, kinds, False


def _frame(content, at):
    """Bytes of the Layer III frame at a place in an MP3 file, or 0; and what all frames of the file
    have in common: bits of their headers, whether they are MPEG-1, and bytes between a header and a
    Xing tag."""
    header = int.from_bytes(content[at:at + 4], "big")
    version, bitrate, rate = header >> 19 & 3, header >> 12 & 15, header >> 10 & 3
    if header & 0xFFE60000 != 0xFFE20000 or version == 1 or bitrate in (0, 15) or rate == 3:
        return 0, None
    mpeg1, mono = version == 3, header >> 6 & 3 == 3
    hertz = (44100, 48000, 32000)[rate] >> (2, 0, 1, 0)[version]
    size = (144000 if mpeg1 else 72000) * KBPS[mpeg1][bitrate] // hertz + (header >> 9 & 1)
    side_bytes = (17 if mono else 32) if mpeg1 else (9 if mono else 17)
    return size, (header & 0xFFFE0C00 | 0xC0 * mono, mpeg1, side_bytes)


def contents(raw):
    """All bytes of a file object, without reading them."""
    try:
        return mmap.mmap(raw.fileno(), 0, access=mmap.ACCESS_READ)
    except io.UnsupportedOperation:
        return raw.getvalue()


def copied(head, raw, start):
    """A temporary file of some bytes, then those of a file object from `start` on."""
    copy = tempfile.TemporaryFile()
    copy.write(head)
    raw.seek(start)
    shutil.copyfileobj(raw, copy)
    raw.close()
    copy.seek(0)
    return copy
