"""Pictures: the spectrograms of one pair, and the curve of secret quality over stego SNR.

matplotlib draws them: pip install -r requirements-eval.txt

Shapes: T samples, F frames. Signals are float tensors [T] in [-1, 1).
"""

import math

import numpy as np
import torch
from torch import Tensor

from evaluation.baselines import Method
from evaluation.scores import need, samples, signal
from files import sound
from files.checkpoint import replacing

FORMATS = ".png", ".svg", ".pdf"
# Okabe and Ito's colours, told apart by the colour-blind
COLOURS = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9"


def spectrogram(x: Tensor, rate: int, columns: int | None = None) -> Tensor:
    """Power in dB of a signal [T] in Hann frames of some 32 ms -> [bins, F], from 0 Hz up: about as
    many `columns`, or a frame every 4 ms."""
    size = 2 ** round(math.log2(0.032 * rate))
    hop = max(1, len(x) // columns) if columns else size // 8
    window = torch.hann_window(size)
    spectrum = torch.stft(x, size, hop, window=window, pad_mode="constant", return_complex=True)
    return 10 * spectrum.abs().square().clamp_min(1e-12).log10()


def plot_pair(path: str, method: Method, paths: dict[str, str]):
    """Spectrograms of cover, stego, their difference, secret and what is revealed, of a method on
    the files of `scores.write_pair`."""
    method.hide(paths["cover"], paths["secret"], paths["stego"])
    method.reveal(paths["stego"], paths["revealed"])
    cover, secret, hidden, revealed = (signal(file) for file in paths.values())
    rate = samples(paths["cover"])[1]
    panels = {
        "cover": cover,
        f"stego, SNR {sound.snr_of(cover, hidden):.1f} dB": hidden,
        "residual: stego − cover": hidden - cover,
        "secret": secret,
        f"revealed, SNR {sound.snr_of(secret, revealed):.1f} dB": revealed}
    power = [spectrogram(x, rate) for x in panels.values()]
    loudest = max(p.max() for p in power)
    figure = need("matplotlib.figure")[0].Figure(figsize=(8, 11), layout="constrained")
    axes = figure.subplots(len(panels), 1, sharex=True)
    for axis, title, p in zip(axes, panels, power):
        image = axis.imshow((p - loudest).numpy(), cmap="magma", vmin=-100, vmax=0, origin="lower",
                            extent=(0, len(cover) / rate, 0, rate / 2000), aspect="auto",
                            interpolation="nearest")
        axis.set_title(title, loc="left", fontsize=10)
        axis.set_ylabel("kHz")
    axes[-1].set_xlabel("seconds")
    figure.suptitle(method.name, fontsize=11)
    figure.colorbar(image, ax=axes, label="dB below the loudest", shrink=0.5)
    save(figure, path)


def plot_curve(path: str, summaries: list[dict], bounds: list[tuple[float, float]]):
    """Secret SNR and secret PESQ over stego SNR: a line a family of methods, and the bound
    [(stego SNR, secret SNR)]."""
    figure = need("matplotlib.figure")[0].Figure(figsize=(11, 4.5), layout="constrained")
    axes = figure.subplots(1, 2)
    families = list(dict.fromkeys(row["family"] for row in summaries if row["family"] != "bound"))
    for axis, score, unit in zip(axes, ("secret SNR", "secret PESQ"), (", dB", "")):
        for number, family in enumerate(families):
            rows = [row for row in summaries
                    if row["family"] == family and score in row["scores"]]
            points = sorted((row["scores"]["stego SNR"][0], *row["scores"][score]) for row in rows)
            points = [point for point in points if math.isfinite(point[1])]
            if not points:
                continue
            stego_snr, mean, half = np.array(points).T
            lossless = sum(row["lossless"].get(score, 0) for row in rows)
            axis.errorbar(stego_snr, mean, np.nan_to_num(half), capsize=2,
                          marker="osD^vP"[number % 6], color=COLOURS[number % 6],
                          label=family + (f" ({lossless} lossless left out)" if lossless else ""))
        if score == "secret SNR":
            axis.plot(*np.array(bounds).T, "k--", label="bound")
        axis.set_xlabel("stego SNR, dB")
        axis.set_ylabel(score + unit)
        axis.grid(alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].legend(fontsize=8)
    save(figure, path)


def save(figure, path: str):
    """Write a figure in the format that its name ends in, whole or not at all."""
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=130, format=str(path).rsplit(".", 1)[1].lower())
