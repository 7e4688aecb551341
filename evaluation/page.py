"""A static page on which two voices, hidden in each other, can be heard as each method leaves them.

    write_page("docs/listen", first, second, 16000, methods)

The folder is complete: index.html, sounds in FLAC (what the methods wrote, and what was scored),
spectrograms in PNG. The originals are there once, however often the page plays them.

Shapes: T samples, F frames. Signals are float tensors [T] in [-1, 1).
"""

import html
import os
import re
import shutil
import struct
import tempfile
import zlib

import numpy as np
from torch import Tensor
from torch.nn import functional

from evaluation.baselines import Method
from evaluation.pictures import spectrogram
from evaluation.scores import DIGITS, NAMES, cell, score_pair, signal
from files import sound

COLUMNS, ROWS = 320, 96  # pixels of a spectrogram
RANGE = 80  # dB from the loudest, which is black, to white
GREYS = 16  # few, so that files are small


def write_page(folder: str, first: Tensor, second: Tensor, rate: int, methods: list[Method],
               perceptual: bool = True) -> int:
    """Write the page of two voices, signals [T] of one length at `rate` Hz, hidden in each other.
    Returns the bytes of all its files. What is in the folder from before stays, but for files of
    the same names. Raises StegoError; then nothing has been written."""
    voices, sections = {"A": first, "B": second}, []
    with tempfile.TemporaryDirectory() as work:
        for name, x in voices.items():
            sound.write_audio(os.path.join(work, f"{name}.flac"), sound.to_pcm(x), rate)
        for cover, secret in ("A", "B"), ("B", "A"):
            sections.append(f"<h2>Voice {secret} hidden in voice {cover}</h2>")
            for number, method in enumerate(methods, 1):
                sections.append(section(work, cover, secret, f"{number}-{secret}-in-{cover}",
                                        method, perceptual))
        loudest = max(spectrogram(x, rate, COLUMNS).max() for x in voices.values()).item()
        for name in os.listdir(work):
            path = os.path.join(work, name)
            write_picture(path.replace(".flac", ".png"),
                          spectrogram(signal(path), rate, COLUMNS) - loudest)
        with open(os.path.join(work, "index.html"), "w", encoding="utf-8") as file:
            file.write(PAGE.format(
                count=len(methods), seconds=len(first) / rate, rate=rate, top=rate / 2000,
                range=RANGE, sections="\n".join(sections)))
        os.makedirs(folder, exist_ok=True)
        for name in sorted(os.listdir(work)):  # index.html comes last
            shutil.copyfile(os.path.join(work, name), os.path.join(folder, name))
        return sum(os.path.getsize(os.path.join(work, name)) for name in os.listdir(work))


def section(work: str, cover: str, secret: str, stem: str, method: Method, perceptual: bool) -> str:
    """HTML of one method on one pair, whose stego and revealed secret it writes into the folder
    `work`, beside the voices, under names that begin with `stem`."""
    stem += "-" + re.sub("[^a-z0-9]+", "-", method.name.lower()).strip("-")
    files = {"cover": cover, "secret": secret, "stego": f"{stem}-stego",
             "revealed": f"{stem}-revealed"}
    paths = {name: os.path.join(work, f"{files[name]}.flac") for name in NAMES}
    scores = score_pair(method, paths, perceptual)
    lines = [f"<h3>{html.escape(method.name)}</h3>", f"<p>{NOTES.get(method.family, '')}</p>"]
    if not scores:
        return "\n".join([*lines, "<p>It cannot hide this secret.</p>"])
    captions = {"cover": f"Cover: {cover}", "stego": "Stego", "secret": f"Secret: {secret}",
                "revealed": "Revealed secret"}
    lines.append('<div class="row">')
    for name, caption in captions.items():
        part = {"stego": "stego", "revealed": "secret"}.get(name)
        values = [f"{score} {cell(score, [scores[f'{part} {score}']], DIGITS[score])[0]}"
                  for score in ("SNR", "PESQ", "STOI") if f"{part} {score}" in scores]
        spoken = html.escape(f"{caption}, {method.name}, {secret} in {cover}")
        lines += [
            f"<figure><figcaption>{caption}</figcaption>",
            f'<img src="{files[name]}.png" alt="Spectrogram: {spoken}">',
            '<audio controls controlslist="nodownload noplaybackrate" preload="metadata" '
            f'src="{files[name]}.flac" aria-label="{spoken}"></audio>',
            f'<div class="scores">{", ".join(values) or "original"}</div></figure>']
    return "\n".join([*lines, "</div>"])


def write_picture(path: str, decibels: Tensor):
    """Write a spectrogram [bins, F], in dB below the loudest, as a grey PNG of COLUMNS x ROWS."""
    pixels = functional.adaptive_avg_pool2d(decibels[None], (ROWS, COLUMNS))[0].flip(0)
    grey = (-pixels / RANGE).clamp(0, 1).mul(GREYS - 1).round() * (255 // (GREYS - 1))
    grey = grey.numpy().astype(np.uint8)
    lines = np.pad(grey, ((0, 0), (1, 0)))  # before each line a 0: it is not filtered
    header = struct.pack(">IIBBBBB", COLUMNS, ROWS, 8, 0, 0, 0, 0)
    with open(path, "wb") as file:
        file.write(b"\x89PNG\r\n\x1a\n")
        for kind, data in (b"IHDR", header), (b"IDAT", zlib.compress(lines, 9)), (b"IEND", b""):
            checksum = zlib.crc32(kind + data)
            file.write(struct.pack(">I", len(data)) + kind + data + struct.pack(">I", checksum))


NOTES = {  # on a method's family
    "INN": "The invertible network, the default model.",
    "robust": "The invertible network with wide cells, for stegos that will be changed.",
    "lattice": "The entropy coder on an integer lattice.",
    "LSB": "The secret's top bits take the place of the cover's low bits.",
    "Opus in LSBs": "An Opus file of the secret in the cover's low bits.",
}

PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>WavInWav: listen</title>
<style>
body {{ max-width: 80rem; margin: 0 auto; padding: 1rem; font: 1rem/1.5 system-ui, sans-serif;
  color: #1a1a1a; background: #fff }}
h2 {{ margin: 2.5rem 0 0; padding-top: 1rem; border-top: 2px solid #1a1a1a }}
h3 {{ margin: 1.75rem 0 0 }}
p {{ margin: .25rem 0 .75rem; max-width: 45rem }}
.row {{ display: grid; grid-template-columns: repeat(4, minmax(0, 1fr)); gap: 1rem }}
figure {{ margin: 0; min-width: 0 }}
figcaption {{ font-weight: 600 }}
img {{ display: block; width: 100%; height: 6rem; border: 1px solid #bbb;
  box-sizing: border-box }}
audio {{ display: block; width: 100%; height: 2.5rem; margin: .4rem 0 }}
.scores {{ font-size: .875rem; color: #444; font-variant-numeric: tabular-nums }}
@media (max-width: 60rem) {{ .row {{ grid-template-columns: repeat(2, minmax(0, 1fr)) }} }}
@media (max-width: 30rem) {{ .row {{ gap: 1rem .75rem }}
  /* the slider needs the room, and phones have keys for the volume */
  audio::-webkit-media-controls-mute-button,
  audio::-webkit-media-controls-time-remaining-display {{ display: none }} }}
</style>
</head>
<body>
<h1>WavInWav: listen</h1>
<p>A stego sounds like its cover, and carries a secret of the same length, which is revealed from
the stego alone. Here two voices, A and B, are hidden in each other by {count} methods, in
{seconds:.1f}&nbsp;s of 16-bit audio at {rate}&nbsp;Hz.</p>
<p>All sounds are the files that were scored, as FLAC, which loses nothing. SNR is in dB; PESQ goes
up to 4.64, STOI up to 1. Spectrograms go from 0 to {top:g}&nbsp;kHz and from the loudest, black, to
{range}&nbsp;dB below it, white.</p>
{sections}
<script>
document.addEventListener("play", event => {{
  for (const other of document.querySelectorAll("audio"))
    if (other !== event.target) other.pause();
}}, true);
</script>
</body>
</html>
"""
