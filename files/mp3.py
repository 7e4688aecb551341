"""MP3 files, whose length libsndfile guesses unless they have a Xing header with the right one."""

import io
import mmap
import os

KBPS = (  # by bitrate index: MPEG-2 and 2.5, MPEG-1
    (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
    (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320))
VERSION, KIND = 0x180000, 0xFFFE0C00  # bits of a frame's header; KIND: sync, version, layer, rate


def with_length(raw):
    """A file object with the MP3 frames of a binary file object, behind a Xing header that has
    their number; and whether the file is cut off. If its own Xing header is right, the result is
    the file itself. Raises ValueError."""
    try:
        content = mmap.mmap(raw.fileno(), 0, access=mmap.ACCESS_READ)
    except io.UnsupportedOperation:
        content = raw.getvalue()
    count, start, stop, kinds, partial = _frames(content)
    if len(kinds) != 1:
        raise ValueError("changes its sample rate or channels midway" if kinds else
                         "has no MP3 frames of a known bitrate")
    kind = kinds.pop()
    silence = bytes(4 + _side_bytes(kind))
    tag, stored = content[start + len(silence):start + len(silence) + 12], None
    if tag[:4] in (b"Xing", b"Info") or content[start + 36:start + 40] == b"VBRI":
        start += _frame(content, start)[0]
        count -= 1
        if tag[:4] != b"VBRI" and tag[7:8] and tag[7] & 1:
            stored = int.from_bytes(tag[8:], "big")
    cut = partial and stored != count or (stored or 0) > count + 1  # some count the Xing header
    if stored == count:
        raw.seek(0)
        return raw, cut
    header = kind | 1 << 16 | KBPS[kind & VERSION == VERSION].index(64) << 12  # no checksum
    head = header.to_bytes(4, "big") + silence[4:] + b"Xing\0\0\0\1" + count.to_bytes(4, "big")
    return spliced(head.ljust(_frame(head, 0)[0], b"\0"), raw, start, stop), cut


def _frames(content):
    """Number of frames in the bytes of an MP3 file, where the first one begins and the last one
    ends, their kinds, and whether a part of another frame follows."""
    count = start = stop = at = 0
    kinds, last = set(), None
    if content[:3] == b"ID3":  # a tag, with 7 bits of its length in a byte
        at = 10 + sum(byte << shift for byte, shift in zip(content[6:10], (21, 14, 7, 0)))
    while 0 <= at < len(content):
        size, kind = _frame(content, at)
        if size and (kind == last or _two_more(content, at + size, kind)):
            if at + size > len(content):
                return count, start, stop, kinds, True
            start = start if count else at
            at = stop = at + size
            count, last = count + 1, kind
            kinds.add(kind)
        else:
            last, at = None, content.find(b"\xff", at + 1)
    rest = content[stop:stop + 4]
    return count, start, stop, kinds, 0 < len(rest) < 4 and rest[0] == 0xFF


def _frame(content, at):
    """Bytes of the Layer III frame at a place in an MP3 file, 0 if there is none, and its kind:
    the bits of its header that are the same in the whole file."""
    header = int.from_bytes(content[at:at + 4], "big")
    version, bitrate, rate = header >> 19 & 3, header >> 12 & 15, header >> 10 & 3
    if header & 0xFFE60000 != 0xFFE20000 or version == 1 or bitrate in (0, 15) or rate == 3:
        return 0, 0
    hertz = (44100, 48000, 32000)[rate] >> (2, 0, 1, 0)[version]
    size = (144000 if version == 3 else 72000) * KBPS[version == 3][bitrate] // hertz
    mono = header >> 6 & 3 == 3
    return size + (header >> 9 & 1), header & KIND | 0xC0 * mono


def _side_bytes(kind):
    """Bytes between a frame's header and its Xing tag."""
    mono = kind & 0xC0 != 0
    return (17 if mono else 32) if kind & VERSION == VERSION else (9 if mono else 17)


def _two_more(content, at, kind):
    """Whether two frames of a kind follow, or the file ends: tells frames from junk."""
    for _ in range(2):
        if at == len(content):
            break
        size, following = _frame(content, at)
        if following != kind:
            return False
        at += size
    return True


class _Spliced(io.RawIOBase):
    def __init__(self, head, raw, start, stop):
        self.head, self.raw, self.offset = head, raw, start - len(head)
        self.at, self.size = 0, stop - self.offset

    def readable(self):
        return True

    def seekable(self):
        return True

    def seek(self, offset, whence=os.SEEK_SET):
        self.at = offset + (0, self.at, self.size)[whence]
        return self.at

    def readinto(self, buffer):
        part = self.head[self.at:self.at + len(buffer)]
        if not part:
            self.raw.seek(self.at + self.offset)
            part = self.raw.read(max(0, min(len(buffer), self.size - self.at)))
        buffer[:len(part)] = part
        self.at += len(part)
        return len(part)

    def close(self):
        super().close()
        self.raw.close()


def spliced(head, raw, start, stop):
    """A file object of some bytes, then the bytes of another file object from `start` to `stop`."""
    return io.BufferedReader(_Spliced(head, raw, start, stop))
