"""A static page to listen to two voices, hidden in each other by several systems; spectrograms.

    write_page("docs/listen", first, second, 16000, systems)
    plot_pair("pair.png", system, paths)

The page's folder is complete: index.html, the sounds that were scored as FLAC, their spectrograms
as PNG. matplotlib draws, and brings Pillow: pip install -r requirements-eval.txt

Shapes: T samples, F frames. Signals are float tensors [T] in [-1, 1).
"""

import html
import math
import os
import re
import shutil
import string
import tempfile

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from evaluation.baselines import System
from evaluation.scores import DIGITS, NAMES, cell, need, samples, score_pair, signal
from files import sound
from files.checkpoint import replacing

COLUMNS, ROWS = 320, 96  # pixels of a spectrogram
RANGE = 80  # dB from the loudest, which is black, to white
GREYS = 16  # few, so that files are small
PLOT_FORMATS = ".png", ".svg", ".pdf"
TEMPLATE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "page.html")
NOTES = {  # on systems, by the start of their name
    "INN": "The invertible network, the default model.",
    "lattice": "The entropy coder on an integer lattice.",
    "paper": "The paper's blocks with learned subnets.",
    "robust": "The network whose stego may be changed: by MP3 or noise, where it says so.",
    "LSB": "The secret's top bits take the place of the cover's low bits.",
    "Opus": "An Opus file of the secret in the cover's low bits.",
}


def write_page(folder: str, first: Tensor, second: Tensor, rate: int, systems: list[System],
               perceptual: bool = True) -> int:
    """Write the page of two voices, signals [T] of the same length at `rate` Hz, hidden in each
    other. Returns the size of all its files in bytes. Files of other names in the folder are kept.
    Raises StegoError; then nothing has been written."""
    voices, sections = {"A": first, "B": second}, []
    with tempfile.TemporaryDirectory() as work:
        for name, x in voices.items():
            sound.write_audio(os.path.join(work, f"{name}.flac"), sound.to_pcm(x), rate)
        for cover, secret in ("A", "B"), ("B", "A"):
            sections.append(f"<h2>Voice {secret} hidden in voice {cover}</h2>")
            for number, system in enumerate(systems, 1):
                sections.append(section(work, cover, secret, f"{number}-{secret}-in-{cover}",
                                        system, perceptual))
        loudest = max(spectrogram(x, rate, COLUMNS).max() for x in voices.values()).item()
        for name in os.listdir(work):
            path = os.path.join(work, name)
            write_picture(path.replace(".flac", ".png"),
                          spectrogram(signal(path), rate, COLUMNS) - loudest)
        with open(TEMPLATE, encoding="utf-8") as file:
            page = string.Template(file.read()).substitute(
                count=len(systems), seconds=f"{len(first) / rate:.1f}", rate=rate,
                top=f"{rate / 2000:g}", range=RANGE, sections="\n".join(sections))
        with open(os.path.join(work, "index.html"), "w", encoding="utf-8") as file:
            file.write(page)
        os.makedirs(folder, exist_ok=True)
        for name in sorted(os.listdir(work)):  # index.html comes last
            shutil.copyfile(os.path.join(work, name), os.path.join(folder, name))
        return sum(os.path.getsize(os.path.join(work, name)) for name in os.listdir(work))


def section(work: str, cover: str, secret: str, stem: str, system: System, perceptual: bool) -> str:
    """HTML of one system on one pair. Writes stego and revealed secret into the folder `work`, next
    to the voices, under names that begin with `stem`."""
    stem += "-" + re.sub("[^a-z0-9]+", "-", system.name.lower()).strip("-")
    files = {"cover": cover, "secret": secret, "stego": f"{stem}-stego",
             "revealed": f"{stem}-revealed"}
    paths = {name: os.path.join(work, f"{files[name]}.flac") for name in NAMES}
    scores = score_pair(system, paths, perceptual)
    note = NOTES.get(system.name.split(",")[0], "")
    lines = [f"<h3>{html.escape(system.name)}</h3>", f"<p>{note}</p>"]
    if not scores:
        return "\n".join([*lines, "<p>It cannot hide this secret.</p>"])
    captions = {"cover": f"Cover: {cover}", "stego": "Stego", "secret": f"Secret: {secret}",
                "revealed": "Revealed secret"}
    lines.append('<div class="row">')
    for name, caption in captions.items():
        part = {"stego": "stego", "revealed": "secret"}.get(name)
        values = [f"{score} {cell(score, [scores[f'{part} {score}']], DIGITS[score])[0]}"
                  for score in DIGITS if score != "LSD" and f"{part} {score}" in scores]
        spoken = html.escape(f"{caption}, {system.name}, {secret} in {cover}")
        lines += [
            f"<figure><figcaption>{caption}</figcaption>",
            f'<img src="{files[name]}.png" alt="Spectrogram: {spoken}">',
            '<audio controls controlslist="nodownload noplaybackrate" preload="metadata" '
            f'src="{files[name]}.flac" aria-label="{spoken}"></audio>',
            f'<div class="scores">{", ".join(values) or "original"}</div></figure>']
    return "\n".join([*lines, "</div>"])


# ---------------------------------------------------------------- spectrograms

def spectrogram(x: Tensor, rate: int, columns: int | None = None) -> Tensor:
    """Power in dB of a signal [T] in Hann frames of about 32 ms: [bins, F], from 0 Hz upwards;
    about as many `columns`, or one frame every 4 ms."""
    size = 2 ** round(math.log2(0.032 * rate))
    hop = max(1, len(x) // columns) if columns else size // 8
    window = torch.hann_window(size)
    spectrum = torch.stft(x, size, hop, window=window, pad_mode="constant", return_complex=True)
    return 10 * spectrum.abs().square().clamp_min(1e-12).log10()


def write_picture(path: str, decibels: Tensor):
    """Write a spectrogram [bins, F], in dB below the loudest, as a grey PNG of COLUMNS x ROWS."""
    pixels = functional.adaptive_avg_pool2d(decibels[None], (ROWS, COLUMNS))[0].flip(0)
    grey = (-pixels / RANGE).clamp(0, 1).mul(GREYS - 1).round() * (255 // (GREYS - 1))
    image, = need("PIL.Image")  # which matplotlib draws with
    image.fromarray(grey.numpy().astype(np.uint8)).save(path, optimize=True)


def plot_pair(path: str, system: System, paths: dict[str, str]):
    """Write spectrograms of cover, stego, their difference, secret and revealed secret, of a system
    on the files of `scores.write_pair`, in the format that the name ends in."""
    system.hide(paths["cover"], paths["secret"], paths["stego"])
    system.reveal(paths["stego"], paths["revealed"])
    cover, secret, stego, revealed = (signal(file) for file in paths.values())
    rate = samples(paths["cover"])[1]
    panels = {
        "cover": cover,
        f"stego, SNR {sound.snr_of(cover, stego):.1f} dB": stego,
        "residual: stego − cover": stego - cover,
        "secret": secret,
        f"revealed, SNR {sound.snr_of(secret, revealed):.1f} dB": revealed}
    power = [spectrogram(x, rate) for x in panels.values()]
    loudest = max(p.max() for p in power)
    matplotlib, figure, image = need("matplotlib", "matplotlib.figure", "PIL.Image")
    colours = matplotlib.colormaps["magma"].resampled(50)  # few, so that the file is small
    figure = figure.Figure(figsize=(8, 9.5), layout="constrained")
    axes = figure.subplots(len(panels), 1, sharex=True)
    for axis, title, p in zip(axes, panels, power):
        drawn = axis.imshow((p - loudest).numpy(), cmap=colours, vmin=-100, vmax=0, origin="lower",
                            extent=(0, len(cover) / rate, 0, rate / 2000), aspect="auto",
                            interpolation="nearest")
        axis.set_title(title, loc="left", fontsize=10)
        axis.set_ylabel("kHz")
    axes[-1].set_xlabel("seconds")
    figure.suptitle(system.name, fontsize=11)
    figure.colorbar(drawn, ax=axes, label="dB below the loudest", shrink=0.5)
    form = os.path.splitext(path)[1][1:].lower()
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=100, format=form)
        if form == "png":
            with image.open(temporary) as drawn:
                small = drawn.convert("RGB").quantize(dither=image.Dither.NONE)
            small.save(temporary, "PNG", optimize=True)
