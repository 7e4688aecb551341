"""Score methods of hiding speech on files: hide, write 16-bit WAV, read back, reveal, compare.

    python evaluate.py --data_dir DIR                      # 64 random pairs of 3 to 5 s, drawn with a seed: a table
    python evaluate.py --cover A --secret B --plot P.png   # your own two files, and their spectrograms
    python evaluate.py --data_dir DIR --rate 48000 --csv T.csv --json T.json --curve C.png
    python evaluate.py --data_dir DIR --attacks            # also the secret that is left after the stego is changed
    python evaluate.py --data_dir DIR --steganalysis DIR2  # also a detector, trained on DIR2's voices
    python evaluate.py --speed                             # audio seconds per second for ten minutes of audio
    python evaluate.py --memory                            # a training step of the paper preset, with and without --recompute

Folders are searched as train.py does. Methods: ours, LSB replacement, the frequency chop, Opus in the low bits, and what
no method can pass, `bound`. SNR and LSD in dB, PESQ wide band at 16 kHz, STOI; RTF is audio seconds per second of
processing, hide and reveal together. Extras: pip install -r requirements-eval.txt

Shapes: T samples, C bands, F frames. Samples are int16 arrays [T] (1 LSB = 1), signals float tensors [T] in [-1, 1).
"""

import argparse
import csv
import importlib
import io
import json
import math
import os
import random
import subprocess
import sys
import tempfile
import time
from collections import namedtuple

import numpy as np
import soundfile
import torch
from torch import nn
from torch.nn import functional
from tqdm import tqdm

import lazy_torchaudio
import noise
import sound
import stego
from cells import LatticeCoupling
from data import SILENCE, find_audio, read_crop
from lattice import STEGO_SNR
from lazy_torchaudio import TorchaudioError, resample
from methods import in_order
from sound import StegoError
from wavinwav import LappedINN, lapped, unlapped

HERE = os.path.dirname(os.path.abspath(__file__))
NAMES = "cover", "secret", "stego", "revealed"
INN_SNRS = 40, 43, 46, 50  # dB, of the INN's stegos in the table


# ---------------------------------------------------------------- pairs and files

def draw_pairs(files, count, seed, rate):
    """`count` pairs of different files of 3 s or more, both cut to the same 3 to 5 s at `rate` Hz, neither silent."""
    rng = random.Random(seed)
    files = [file for file in files if file[1] / file[2] >= 3]
    if len(files) < 2:
        sys.exit("there are fewer than 2 audio files of at least 3 s")

    def draw(seconds, other=None):
        for _ in range(1000):
            path, frames, own_rate = rng.choice(files)
            x = read_crop(path, rng, round(seconds * rate), rate)
            x = x[:math.ceil(frames * rate / own_rate)]  # without the zeros after a shorter file
            if path != other and x.square().mean() > SILENCE:
                return x, path
        sys.exit("there are fewer than 2 audio files that are not silent")

    for _ in range(count):
        seconds = rng.uniform(3, 5)
        cover, path = draw(seconds)
        secret, _ = draw(seconds, path)
        length = min(len(cover), len(secret))
        yield cover[:length], secret[:length]


def own_pair(cover_path, secret_path):
    """The user's two files as signals of one length, mono, at the cover's rate; and that rate in Hz."""
    (cover, rate), (secret, secret_rate) = (sound.read_audio(path) for path in (cover_path, secret_path))
    cover, secret = (torch.from_numpy(x.mean(1)) for x in (cover, secret))
    secret = resample(secret, secret_rate, rate)
    length = min(len(cover), len(secret))
    for path, x in ((cover_path, cover[:length]), (secret_path, secret[:length])):
        if not x.square().mean() > SILENCE:
            raise StegoError(f"{path} is silent; give a file with speech in the first {length / rate:.1f} s")
    return cover[:length], secret[:length], rate


def write_pair(folder, cover, secret, rate):
    """Write a pair as 16-bit WAV files. Returns the paths of these and of the stego and the secret to come."""
    paths = {name: os.path.join(folder, f"{name}.wav") for name in NAMES}
    for name, x in (("cover", cover), ("secret", secret)):
        sound.write_audio(paths[name], sound.to_pcm(x), rate)
    return paths


def samples(path):
    """The samples of a 16-bit mono file, int64 so that arithmetic does not overflow; and its rate in Hz."""
    x, rate = sound.read_audio(path, "int16")
    return x[:, 0].astype(np.int64), rate


def signal(path):
    return sound.from_pcm(samples(path)[0])


# ---------------------------------------------------------------- methods to compare with

Method = namedtuple("Method", "name family hide reveal")  # hide(cover, secret, stego), reveal(stego, secret): file paths


def on_files(name, family, hide, reveal):
    """A Method from hide(cover, secret, rate) and reveal(stego, rate) on samples."""
    def hide_file(cover_path, secret_path, stego_path):
        cover, rate = samples(cover_path)
        sound.write_audio(stego_path, hide(cover, samples(secret_path)[0], rate).astype(np.int16), rate)

    def reveal_file(stego_path, secret_path):
        hidden, rate = samples(stego_path)
        sound.write_audio(secret_path, reveal(hidden, rate).astype(np.int16), rate)

    return Method(name, family, hide_file, reveal_file)


def embed(cover, values, bits):
    """Samples congruent to `values` [T] (0 to 2^bits - 1) modulo 2^bits, each the nearest to the cover that int16 holds."""
    return LatticeCoupling()(torch.from_numpy(cover), torch.from_numpy(values), 1 << bits)[0].numpy()


def lsb(bits):
    """The secret's top `bits` bits, rounded, in the cover's low bits; revealed mid-tread, so that silence is silence."""
    step, half = 1 << 16 - bits, 1 << bits - 1

    def hide(cover, secret, rate):
        quantised = np.floor(secret / step + 0.5).astype(np.int64).clip(-half, half - 1)
        return embed(cover, quantised + half, bits)

    return on_files(f"LSB, {bits} bits", "LSB", hide, lambda hidden, rate: (hidden % (2 * half) - half) * step)


def frequency_chop():
    """The upper half of the cover's spectrum gives way to the lower half of the secret's, at its own level and in its own
    order: a baseline of Hide and Speak (Kreuk et al., arXiv 1902.03083). Theirs works on an STFT and keeps the phases;
    here it is the orthonormal MDCT of 128 bands, in which all that is written can be read. What makes no whole frame at
    the end (< 128 samples) stays the cover's and is revealed as silence."""
    def spectrum(x):
        whole = torch.from_numpy(x[:len(x) // 128 * 128].astype(np.float64))
        return lapped(whole[None], 128) if len(whole) else whole.new_zeros(1, 128, 0)

    def waveform(coefficients, tail):
        x = unlapped(coefficients)[0].numpy() if coefficients.shape[2] else np.zeros(0)
        return np.concatenate([x, tail]).round().clip(-32768, 32767)

    def hide(cover, secret, rate):
        mixed = torch.cat([spectrum(cover)[:, :64], spectrum(secret)[:, :64]], 1)
        return waveform(mixed, cover[len(cover) // 128 * 128:])

    def reveal(hidden, rate):
        low = spectrum(hidden)[:, 64:]
        return waveform(torch.cat([low, torch.zeros_like(low)], 1), np.zeros(len(hidden) % 128))

    return on_files("frequency chop", "frequency chop", hide, reveal)


def encode_opus(x, rate, kbps):
    """A signal [T] (numpy) as the bytes of an Ogg Opus file, all of them at most and close to `kbps` kbit/s."""
    budget = kbps * 1000 / 8 * len(x) / rate
    if rate not in (8000, 12000, 16000, 24000, 48000):
        x, rate = resample(torch.from_numpy(x), rate, 48000).numpy(), 48000

    def encode(level):  # soundfile knows no bit rate, only a level by which the size falls, almost in proportion
        file = io.BytesIO()
        soundfile.write(file, x, rate, format="OGG", subtype="OPUS", compression_level=level)
        return file.getvalue()

    low, high, large, small = 0.0, 1.0, encode(0.0), encode(1.0)
    if len(small) > budget:
        raise StegoError(f"Opus needs more than {kbps} kbit/s for {len(x) / rate:.1f} s")
    for _ in range(4):
        level = high - (high - low) * max(0, 0.998 * budget - len(small)) / max(1, len(large) - len(small))
        found = encode(max(0.0, level))
        low, high, large, small = (low, level, large, found) if len(found) <= budget else (level, high, found, small)
    return small


def opus(kbps):
    """An Ogg Opus file of the secret, its length in bytes before it (4 bytes), in the fewest low bits that hold it. The time
    it takes includes the search for the bit rate."""
    def hide(cover, secret, rate):
        content = encode_opus(secret.astype(np.float32) / sound.FULL_SCALE, rate, kbps)
        stream = np.unpackbits(np.frombuffer(len(content).to_bytes(4, "big") + content, np.uint8))
        bits = math.ceil(len(stream) / len(cover))
        if bits > 8:
            raise StegoError(f"Opus at {kbps} kbit/s needs more than 8 bits a sample")
        values = np.pad(stream, (0, -len(stream) % bits)).reshape(-1, bits) @ (1 << np.arange(bits))
        return np.append(embed(cover[:len(values)], values, bits), cover[len(values):])

    def reveal(hidden, rate):
        for bits in range(1, 9):
            stream = np.packbits((hidden[:, None] >> np.arange(bits) & 1).astype(np.uint8)).tobytes()
            if stream[4:8] == b"OggS":
                content = io.BytesIO(stream[4:4 + int.from_bytes(stream[:4], "big")])
                x, own_rate = soundfile.read(content, dtype="float32")
                x = resample(torch.from_numpy(x), own_rate, rate)[:len(hidden)]
                return sound.to_pcm(functional.pad(x, (0, len(hidden) - len(x))))
        raise StegoError("the file carries no Ogg file")

    return on_files(f"Opus, {kbps} kbit/s", "Opus in LSBs", hide, reveal)


# ---------------------------------------------------------------- ours, and what no method can pass

def is_lattice(model):
    return getattr(model.config, "preset", "") == "lattice"


def fixed_bits_snr(cover, bits):
    """The stego SNR in dB of `bits` bits a sample in the samples [T] of a cover: cells of 2^bits LSB, so that the error is
    uniform over the integers from -2^bits / 2 to 2^bits / 2 - 1, of power (4^bits + 2) / 12."""
    return 10 * math.log10(np.mean(cover.astype(np.float64) ** 2) / ((4 ** bits + 2) / 12))


def ours(model, label, snr=None, bits=None):
    """A model as a Method, at a stego SNR in dB or what it aims at itself; a lattice also at a number of bits in
    every sample."""
    def hide(cover_path, secret_path, stego_path):
        options = {} if snr is None else {"snr": float(snr)}
        if bits:
            options = {"snr": fixed_bits_snr(samples(cover_path)[0], bits) - 1e-6, "masking": 0}
        stego.hide(cover_path, secret_path, stego_path, model, overwrite=True, **options)

    def reveal(stego_path, secret_path):
        stego.reveal(stego_path, secret_path, model, overwrite=True)

    name = f"{label}, {bits} bits" if bits else label if snr is None else f"{label}, {snr:g} dB"
    return Method(name, label, hide, reveal)


def rate_of_snr(cover, stego_snr):
    """Bits a sample that a stego of this SNR (dB) can carry in a cover signal [T], see `bound`."""
    power = sound.FULL_SCALE ** 2 * cover.double().square().mean().item()
    return 0.5 * math.log2(1 + 12 * power * 10 ** (-stego_snr / 10))


def bound(cover, secret, stego_snr):
    """The secret SNR in dB that no method is expected to pass, of signals [T] at a stego SNR in dB.

    What fits: the stego differs from the cover by an error of power D = P_cover / 10^(stego_snr / 10), in LSB^2, and is
    then rounded to 16 bits, noise of power N = 1/12 LSB^2. Whoever hides knows the cover, so that it costs nothing (Costa,
    "Writing on dirty paper", 1983): R = 1/2 log2(1 + D / N) bits a sample. Cells of an odd width w have D = (w^2 - 1) / 12,
    and R is log2(w), exactly what they carry; even ones cost 3 / 12 more.
    What it takes: the secret is a Gaussian in each coefficient k of a circular MDCT of 256 bands, of variance v_k, the mean
    of squares of 3 frames x 5 bands around it; and the v_k are known for free. Reverse water-filling (Cover and Thomas,
    10.3.3): sum of max(0, 1/2 log2(v_k / w)) = R T gives the water level w, and the distortion is the mean of min(w, v_k).
    The revealed file is rounded too: another 1/12.
    A Gaussian is the hardest of its variance, and the v_k come from the secret itself; so this is what a model of this kind
    can reach, with its side information free, and no theorem about speech. A method may be lossless where R is large.
    """
    x = sound.FULL_SCALE * secret.double()
    squares = lapped(functional.pad(x, (0, -len(x) % 256))[None], 256).square()
    variance = functional.avg_pool2d(squares, (5, 3), 1, (2, 1), count_include_pad=False).flatten().clamp_min(1e-9)
    log_variance, bits = variance.log2(), rate_of_snr(cover, stego_snr) * len(x)
    low, high = log_variance.min().item() - 2 * bits / len(x), log_variance.max().item()
    for _ in range(40):
        level = (low + high) / 2
        low, high = (level, high) if 0.5 * (log_variance - level).clamp_min(0).sum() > bits else (low, level)
    distortion = variance.clamp_max(2 ** high).sum().item() / len(x)
    return 10 * math.log10(x.square().mean().item() / (distortion + 1 / 12))


# ---------------------------------------------------------------- scores

def lsd(reference, estimate):
    """Log-spectral distance in dB of two signals [T]: the root mean square over bins of the difference of log power, mean
    over frames (Gray and Markel, "Distance measures for speech processing", 1976), with the frames of the
    super-resolution literature: 2048 samples, every 512, Hann (Kuleshov et al., arXiv 1708.00853). Power counts from that
    of 16-bit rounding up, so that digital silence is not minus infinity."""
    window = torch.hann_window(2048)
    floor = window.square().sum() / 12 / sound.FULL_SCALE ** 2
    logs = [10 * torch.stft(functional.pad(x, (0, max(0, 2048 - len(x)))), 2048, 512, window=window, return_complex=True)
            .abs().square().add(floor).log10() for x in (reference, estimate)]  # [bins, F]
    return (logs[0] - logs[1]).square().mean(0).sqrt().mean().item()


def need(*names):
    """Import optional packages, or end with the one line that says how to get them."""
    try:
        return [importlib.import_module(name) for name in names]
    except ImportError as error:
        sys.exit(f"{error.name.split('.')[0]} is not installed: pip install -r requirements-eval.txt"
                 + (", or give --no_perceptual" if "pesq" in names else ""))


def speech_scores(reference, estimate, rate):
    """PESQ (wide band; NaN where it finds no speech) and STOI of two signals [T]."""
    pesq, pystoi = need("pesq", "pystoi")
    reference, estimate = (resample(x, rate, 16000).numpy() for x in (reference, estimate))
    try:
        quality = pesq.pesq(16000, reference, estimate, "wb")
    except pesq.PesqError:
        quality = math.nan
    return {"PESQ": quality, "STOI": float(pystoi.stoi(reference, estimate, 16000))}


def score_pair(method, paths, perceptual):
    """Scores of a method on the files of one pair, all on what it wrote; {} where it cannot hide."""
    start = time.perf_counter()
    try:
        method.hide(paths["cover"], paths["secret"], paths["stego"])
        method.reveal(paths["stego"], paths["revealed"])
    except StegoError as error:
        tqdm.write(f"{method.name}: {error}", file=sys.stderr)
        return {}
    seconds = time.perf_counter() - start
    x, rate = {name: signal(path) for name, path in paths.items()}, samples(paths["cover"])[1]
    scores = {}
    for name, reference, estimate in (("stego", "cover", "stego"), ("secret", "secret", "revealed")):
        values = {"SNR": sound.snr_of(x[reference], x[estimate]), "LSD": lsd(x[reference], x[estimate])}
        if perceptual:
            values |= speech_scores(x[reference], x[estimate], rate)
        scores |= {f"{name} {key}": value for key, value in values.items()}
    below = bound(x["cover"], x["secret"], scores["stego SNR"]) - scores["secret SNR"]
    return scores | {"below bound": below, "RTF": len(x["cover"]) / rate / seconds}


def mean_interval(values):
    """Mean, and half of its 95 % interval (normal, over pairs); lost (None) counts as 0, what is not finite is left out.
    NaN where there is none."""
    values = np.array([value or 0 for value in values if value is None or math.isfinite(value)])
    half = 1.96 * values.std(ddof=1) / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return (values.mean() if len(values) else math.nan), half


def summary(method, family, rows):
    """A method's scores over all pairs, from [{score: value}]: a finite value, infinity where the secret came back
    lossless, None where it is lost, NaN where there is none."""
    names = dict.fromkeys(name for row in rows for name in row)
    values = {name: [row.get(name, math.nan) for row in rows] for name in names}
    counts = {word: {name: column.count(mark) for name, column in values.items() if mark in column}
              for word, mark in (("lossless", math.inf), ("lost", None))}
    return {"method": method, "family": family, "pairs": len(rows), "failed": rows.count({}), **counts, "values": values,
            "scores": {name: mean_interval(column) for name, column in values.items()}}


COLUMNS = {**{f"{part} {score}": digits for part in ("stego", "secret") for score, digits in
              (("SNR", 1), ("LSD", 2), ("PESQ", 2), ("STOI", 3))}, "below bound": 1, "RTF": 1}


def cell(name, values, digits):
    """A mean over pairs as text, and what to note of the pairs that are not in it."""
    mean, half = mean_interval(values)
    counts = {"lossless": values.count(math.inf), "lost": values.count(None)}
    for word, count in counts.items():
        if count == len(values):
            return word, ""
    counts["without"] = sum(x is not None and math.isnan(x) for x in values)
    note = ", ".join(f"{count} {word}" for word, count in counts.items() if count)
    text = "-" if math.isnan(mean) else f"{mean:.{digits}f}"
    text += "" if math.isnan(half) or name == "RTF" else f"±{half:.{digits}f}"
    return text, note and f"{name}: {note}"


def print_table(summaries, columns):
    """One row a method, `columns` {score: digits}; notes on pairs that are not in a mean at the row's end."""
    columns = {name: digits for name, digits in columns.items() if any(name in row["scores"] for row in summaries)}
    width = max(len(row["method"]) for row in summaries) + 1
    heads = [name.split(" ", 1) if " " in name else ("", name) for name in columns]
    for i in (0, 1):
        print(f"{'':{width}s}" + "".join(f"{head[i]:>12s}" for head in heads))
    for row in summaries:
        if row["failed"] == row["pairs"]:
            print(f"{row['method']:{width}s}  failed, see above")
            continue
        cells = [cell(name, row["values"][name], digits) if name in row["values"] else ("-", "")
                 for name, digits in columns.items()]
        print(f"{row['method']:{width}s}" + "".join(f"{text:>12s}" for text, _ in cells),
              "; ".join(note for _, note in cells if note), sep="  ")


# ---------------------------------------------------------------- attacks

def delay(reference, x, most=4096):
    """By how many samples a signal lags behind a reference, up to `most`: the peak of their cross-correlation."""
    size = 2 * max(len(reference), len(x))
    product = torch.fft.irfft(torch.fft.rfft(x, size) * torch.fft.rfft(reference, size).conj(), size)
    return torch.cat([product[-most:], product[:most + 1]]).argmax().item() - most


def mp3(x, rate, kbps=128):
    """There and back through MP3 of constant bit rate (the highest that is no more, where a low rate has no such), with
    the codec's delay undone. LibsndfileError where soundfile cannot write it."""
    low, high = (32, 320) if rate >= 32000 else (8, 160) if rate >= 16000 else (8, 64)  # libsndfile's ends, kbit/s
    file = io.BytesIO()
    soundfile.write(file, x.numpy(), rate, format="MP3", subtype="MPEG_LAYER_III", bitrate_mode="CONSTANT",
                    compression_level=min(0.999, max(0, (high - kbps) / (high - low))))
    file.seek(0)
    back = torch.from_numpy(soundfile.read(file, dtype="float32")[0])
    lag = delay(x, back)
    back = functional.pad(back, (-lag, 0))[:len(x)]
    return functional.pad(back, (0, len(x) - len(back)))


def change_middle(x, change):
    """A copy of a signal [T] in which the sample in the middle is another one."""
    x = x.clone()
    x[len(x) // 2] = change(x[len(x) // 2])
    return x


ATTACKS = {  # signal [T] and its rate in Hz -> signal
    "none": lambda x, rate: x,
    **{f"noise {decibel} dB": lambda x, rate, decibel=decibel: noise.gaussian(x, torch.randn_like(x), decibel)
       for decibel in (70, 60, 50, 40, 30, 20)},
    "8 bits": lambda x, rate: (x * 128).round() / 128,
    "gain 0.99": lambda x, rate: 0.99 * x,
    "gain 0.9": lambda x, rate: 0.9 * x,
    "rate x 3/4": lambda x, rate: noise.resample(x, "3/4"),
    "low-pass 3.4 kHz": lambda x, rate: noise.low_pass(x, 3400 / rate),
    "MP3 128 kb/s": mp3,
    "one sample": lambda x, rate: change_middle(x, lambda sample: sample + 1000 / sound.FULL_SCALE),
    "one lost": lambda x, rate: change_middle(x, torch.zeros_like),
    "cut 100 ms": lambda x, rate: x[rate // 10:],  # the first
}


def attack_pair(model, method, paths, seed):
    """Secret SNR in dB by attack, from 16-bit files. None: lost, nothing could be revealed. NaN: not possible here.
    A lattice reveals all or nothing; other models reveal what is left, and are told the secret's length where the
    header is gone; what a shorter signal lacks is taken as cut off in front, and silent."""
    try:
        method.hide(paths["cover"], paths["secret"], paths["stego"])
    except StegoError:
        return {}
    hidden, rate, secret = signal(paths["stego"]), samples(paths["stego"])[1], signal(paths["secret"])
    attacked_path, scores = paths["stego"] + ".attacked.wav", {}
    for i, (name, attack) in enumerate(ATTACKS.items()):
        torch.manual_seed(seed + i)
        try:
            sound.write_audio(attacked_path, sound.to_pcm(attack(hidden, rate)), rate)
        except soundfile.LibsndfileError:
            scores[name] = math.nan
            continue
        try:
            stego.reveal(attacked_path, paths["revealed"], model, force=not is_lattice(model), overwrite=True)
        except StegoError:
            scores[name] = None
            continue
        revealed = signal(paths["revealed"])
        missing = max(0, len(secret) - len(revealed))
        scores[name] = sound.snr_of(secret, functional.pad(revealed, (missing, 0))[:len(secret)])
    return scores


# ---------------------------------------------------------------- steganalysis

class Detector(nn.Module):
    """Cover or stego? Samples [B, T] in LSB -> logits [B]. Fixed first, second and third differences, truncated at three
    levels (after the rich models' residuals: Fridrich and Kodovsky, 2012), then a small CNN; 26 k parameters."""

    def __init__(self):
        super().__init__()
        filters = [[0, 0, 1, -1], [0, 1, -2, 1], [1, -3, 3, -1]]
        self.register_buffer("filters", torch.tensor(filters, dtype=torch.float32)[:, None])
        widths = [9, 16, 32, 32, 48]
        self.layers = nn.Sequential(*(layer for i in range(4) for layer in (
            nn.Conv1d(widths[i], widths[i + 1], 8, stride=4, padding=4, bias=False), nn.BatchNorm1d(widths[i + 1]), nn.ReLU())))
        self.last = nn.Linear(widths[-1], 1)

    def forward(self, x):
        residual = functional.conv1d(x[:, None], self.filters)
        x = torch.cat([(residual / level).clamp(-1, 1) for level in (8, 64, 512)], 1)
        return self.last(self.layers(x).mean(2))[:, 0]


def auc(negative, positive):
    """Area under the ROC curve of two score arrays, exact: the chance that a positive ranks above a negative, ties half."""
    order = np.sort(negative)
    below, up_to = np.searchsorted(order, positive, "left"), np.searchsorted(order, positive, "right")
    return (below + up_to).mean() / 2 / len(negative)


def detect(train, test, rate, seed, steps=300, batch=16):
    """Train a Detector on `batch` crops of 1 s of (cover, stego) samples [T] and as many of their stegos at a time, and test
    it on all whole seconds of other pairs: (accuracy, AUC), 0.5 for guessing."""
    torch.manual_seed(seed)
    rng = random.Random(seed)
    model = Detector()
    optimiser = torch.optim.AdamW(model.parameters(), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 5e-3, total_steps=steps)
    labels = torch.arange(2.).repeat(batch)
    for _ in range(steps):
        crops = []
        for cover, hidden in rng.choices(train, k=batch):
            start = rng.randrange(len(cover) - rate + 1)
            crops += [cover[start:start + rate], hidden[start:start + rate]]
        loss = functional.binary_cross_entropy_with_logits(model(torch.tensor(np.stack(crops), dtype=torch.float32)), labels)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    model.eval()
    with torch.no_grad():
        logits = [np.concatenate([model(torch.tensor(pair[kind][:len(pair[kind]) // rate * rate].reshape(-1, rate),
                                                     dtype=torch.float32)).numpy() for pair in test]) for kind in (0, 1)]
    return ((logits[0] < 0).mean() + (logits[1] >= 0).mean()) / 2, auc(*logits)


def cover_and_stego(method, pairs, rate, folder):
    """[(cover, stego)] as samples, for the pairs that the method can hide."""
    found = []
    for cover, secret in pairs:
        paths = write_pair(folder, cover, secret, rate)
        try:
            method.hide(paths["cover"], paths["secret"], paths["stego"])
        except StegoError:
            continue
        found.append((samples(paths["cover"])[0], samples(paths["stego"])[0]))
    return found


def steganalysis(methods, train_pairs, test_pairs, rate, seed, folder, steps=300):
    """Accuracy and AUC of a Detector trained for each method, as summaries."""
    def work(i):
        own = tempfile.mkdtemp(dir=folder)
        train, test = (cover_and_stego(methods[i], pairs, rate, own) for pairs in (train_pairs, test_pairs))
        if not (train and test):
            return {}
        accuracy, area = detect(train, test, rate, seed, steps)
        levels = [sound.snr_of(sound.from_pcm(cover), sound.from_pcm(hidden)) for cover, hidden in test]
        return {"stego SNR": mean_interval(levels)[0], "accuracy": accuracy, "AUC": area}

    found = in_order(work, range(len(methods)), "detector")
    return [summary(method.name, method.family, [scores]) for method, scores in zip(methods, found)]


# ---------------------------------------------------------------- pictures and files

def plot_pair(path, method, paths):
    """Spectrograms of cover, stego, their difference, secret and what is revealed, dB below the loudest of all."""
    method.hide(paths["cover"], paths["secret"], paths["stego"])
    method.reveal(paths["stego"], paths["revealed"])
    x, rate = {name: signal(file) for name, file in paths.items()}, samples(paths["cover"])[1]
    panels = {"cover": x["cover"], f"stego, SNR {sound.snr_of(x['cover'], x['stego']):.1f} dB": x["stego"],
              "residual: stego − cover": x["stego"] - x["cover"], "secret": x["secret"],
              f"revealed, SNR {sound.snr_of(x['secret'], x['revealed']):.1f} dB": x["revealed"]}
    size = 2 ** round(math.log2(0.032 * rate))  # some 32 ms
    window = torch.hann_window(size)
    power = {name: torch.stft(y, size, size // 8, window=window, return_complex=True).abs().square()
             for name, y in panels.items()}
    top = max(p.max() for p in power.values())
    figure = need("matplotlib.figure")[0].Figure(figsize=(8, 11), layout="constrained")
    axes = figure.subplots(5, 1, sharex=True)
    for axis, (name, p) in zip(axes, power.items()):
        image = axis.imshow((10 * (p / top).clamp_min(1e-12).log10()).numpy(), cmap="magma", vmin=-100, vmax=0, origin="lower",
                            extent=(0, len(x["cover"]) / rate, 0, rate / 2000), aspect="auto", interpolation="nearest")
        axis.set_title(name, loc="left", fontsize=10)
        axis.set_ylabel("kHz")
    axes[-1].set_xlabel("seconds")
    figure.suptitle(method.name, fontsize=11)
    figure.colorbar(image, ax=axes, label="dB below the loudest", shrink=0.5)
    figure.savefig(path, dpi=130)


COLOURS = "#0072B2 #D55E00 #009E73 #CC79A7 #E69F00 #56B4E9".split()  # Okabe and Ito's, told apart by the colour-blind


def plot_curve(path, summaries, bounds):
    """Secret SNR and secret PESQ over stego SNR: a line a family of methods, and the bound [(stego SNR, secret SNR)]."""
    figure = need("matplotlib.figure")[0].Figure(figsize=(11, 4.5), layout="constrained")
    axes = figure.subplots(1, 2)
    families = list(dict.fromkeys(row["family"] for row in summaries if row["family"] != "bound"))
    for axis, score, unit in zip(axes, ("secret SNR", "secret PESQ"), (", dB", "")):
        for i, family in enumerate(families):
            rows = [row for row in summaries if row["family"] == family and score in row["scores"]]
            points = sorted((row["scores"]["stego SNR"][0], *row["scores"][score]) for row in rows)
            points = [point for point in points if math.isfinite(point[1])]
            if not points:
                continue
            level, mean, half = np.array(points).T
            lossless = sum(row["lossless"].get(score, 0) for row in rows)
            axis.errorbar(level, mean, np.nan_to_num(half), marker="osD^vP"[i % 6], color=COLOURS[i % 6], capsize=2,
                          label=family + (f" ({lossless} lossless left out)" if lossless else ""))
        if score == "secret SNR":
            axis.plot(*np.array(bounds).T, "k--", label="bound")
        axis.set_xlabel("stego SNR, dB")
        axis.set_ylabel(score + unit)
        axis.grid(alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].legend(fontsize=8)
    figure.savefig(path, dpi=130)


def plain(x):
    """For JSON: no NaN, no infinity (null), no numpy."""
    if isinstance(x, dict):
        return {key: plain(value) for key, value in x.items()}
    if isinstance(x, (list, tuple)):
        return [plain(value) for value in x]
    if isinstance(x, (float, np.floating)):
        return float(x) if math.isfinite(x) else None
    return int(x) if isinstance(x, np.integer) else x


def write_csv(path, tables):
    """A line a number: its mean over pairs, half of the 95 % interval, and how many pairs are what."""
    with open(path, "w", newline="") as file:
        lines = csv.writer(file)
        lines.writerow("table method score mean interval pairs lossless lost".split())
        for table, summaries in tables.items():
            for row in summaries:
                for name, values in row["values"].items():
                    numbers = ["" if math.isnan(x) else f"{x:.6g}" for x in row["scores"][name]]
                    finite = sum(x is None or math.isfinite(x) for x in values)
                    lines.writerow([table, row["method"], name, *numbers, finite, values.count(math.inf), values.count(None)])


# ---------------------------------------------------------------- speed and memory

PEAK = """
import resource, subprocess, sys
subprocess.run([sys.executable, *sys.argv[1:]], check=True, stdout=subprocess.DEVNULL)
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
"""  # of the largest process of a command; Linux adds what the parent has itself, so the parent must be small


def measure_speed(model_path, recordings=((10, 1), (60, 2))):
    """Audio seconds per second of the whole commands, start and model load included, and the memory of their largest process,
    for recordings of so many minutes and channels."""
    for minutes, channels in recordings:
        with tempfile.TemporaryDirectory() as folder:
            paths = {name: os.path.join(folder, f"{name}.wav") for name in ("cover", "secret", "stego", "revealed")}
            for name in ("cover", "secret"):
                speech, rate = sound.read_audio(os.path.join(HERE, "examples", f"{name}.wav"), "int16")
                speech = np.concatenate([speech[:, :1], speech[::-1, :1]], 1)[:, :channels]
                sound.write_audio(paths[name], np.resize(speech, (minutes * 60 * rate, channels)), rate)
            commands = {"hide": ["hide", paths["cover"], paths["secret"], "-o", paths["stego"]],
                        "reveal": ["reveal", paths["stego"], "-o", paths["revealed"]]}
            for name, words in commands.items():
                command = [sys.executable, "-c", PEAK, os.path.join(HERE, "stego.py"), *words, "--model", model_path]
                start = time.perf_counter()
                peak = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
                times = minutes * 60 / (time.perf_counter() - start)
                print(f"{name}: {times:.0f} times real time, {minutes} minutes of {'stereo' if channels == 2 else 'mono'} at "
                      f"{rate} Hz; the largest process had {int(peak) / 1024:.0f} MiB")  # Linux counts in KiB


MEMORY_STEP = """
import resource, sys, torch
from wavinwav import Config, DenseSubnet, PaperINN
model = PaperINN(Config.paper())
for module in model.modules():
    if isinstance(module, DenseSubnet):
        module.recompute = sys.argv[1] == "1"
optimiser = torch.optim.Adam(model.parameters())
cover, secret = 0.1 * torch.randn(2, 1, 32000)  # [B, T] each
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
stego, r = model(cover, secret)
cover_, secret_ = model.inverse(stego, torch.randn_like(r))
loss = sum((a - b).abs().mean() for a, b in ((cover, stego), (cover, cover_), (secret, secret_))) + r.square().mean()
loss.backward()
optimiser.step()
after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(before, after)
"""


def measure_memory():
    """Peak resident memory of one training step of the paper preset, batch 1, 2 s at 16 kHz, on the CPU."""
    peaks = {}
    for flag, name in (("0", "all activations"), ("1", "recomputed")):
        # glibc would keep large freed blocks in a heap that small ones fragment
        environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "1000000"}
        run = subprocess.run([sys.executable, "-c", MEMORY_STEP, flag], check=True, capture_output=True, text=True, cwd=HERE,
                             env=environment)
        before, peaks[name] = (int(word) / 1024 for word in run.stdout.split())  # Linux counts in KiB
        print(f"{name:16s} peak {peaks[name]:6.0f} MiB, of which {before:.0f} MiB before the step")
    print(f"ratio {peaks['all activations'] / peaks['recomputed']:.1f}")


# ---------------------------------------------------------------- the command

def label_of(model):
    """What the tables call a model: INN, lattice, robust (an INN with room for noise) or paper."""
    if isinstance(model, LappedINN):
        return "robust" if model.config.reserve else "INN"
    return model.config.preset


def load_models(paths):
    """{label: model}, or its path where an earlier model has that label. No paths: the shipped ones."""
    shipped = [os.path.join(HERE, name) for name in ("wavinwav.pt", "lattice.pt", "robust.pt")]
    models = {}
    for path in paths or filter(os.path.exists, shipped):
        model = stego.load_model(path)
        label = label_of(model)
        models[path if label in models else label] = model
    return models


def all_methods(models, snrs):
    """Every row of the table but the bound's: ours first."""
    methods = []
    for label, model in models.items():
        if is_lattice(model):
            methods += [ours(model, label, snr=snr) for snr in snrs] + [ours(model, label, bits=bits) for bits in (2, 3, 4)]
        elif label_of(model) == "INN":
            methods += [ours(model, label, snr=snr) for snr in INN_SNRS]
        else:
            methods.append(ours(model, label))
    return methods + [lsb(bits) for bits in (4, 6, 8)] + [frequency_chop()] + [opus(kbps) for kbps in (20, 32, 60)]


def evaluate(args, folder):
    """All that the flags of `main` ask for."""
    if args.cover:
        *pair, rate = own_pair(args.cover, args.secret)
        pairs = [pair]
    else:
        rate, pairs = args.rate, list(draw_pairs(find_audio(args.data_dir), args.pairs, args.seed, args.rate))
    models = load_models(args.model)
    methods = all_methods(models, args.snr)
    defaults = {label: ours(model, label, snr=STEGO_SNR if is_lattice(model) else None) for label, model in models.items()}
    if args.plot:
        plot_pair(args.plot, next(iter(defaults.values())), write_pair(folder, *pairs[0], rate))
    if not args.no_perceptual:
        need("pesq", "pystoi")  # before the work, not after it
    if args.curve:
        need("matplotlib.figure")
    if args.attacks:
        lazy_torchaudio.load()

    levels = sorted({*args.snr, *(range(16, 73, 4) if args.curve else ())})

    def work(i):
        paths = write_pair(tempfile.mkdtemp(dir=folder), *pairs[i], rate)
        rows = []
        for method in methods:
            torch.manual_seed(args.seed)
            rows.append(score_pair(method, paths, not args.no_perceptual))
        cover, secret = signal(paths["cover"]), signal(paths["secret"])
        attacked = [attack_pair(model, defaults[label], paths, args.seed + 1000 * i)
                    for label, model in (models.items() if args.attacks else ())]
        return rows, [bound(cover, secret, level) for level in levels], attacked

    found = list(in_order(work, range(len(pairs)), "pair"))
    rows = dict(zip(methods, zip(*(rows for rows, _, _ in found))))
    bounds = {level: [{"stego SNR": float(level), "secret SNR": found[i][1][k]} for i in range(len(pairs))]
              for k, level in enumerate(levels)}
    attacked = dict(zip(models, zip(*(scores for *_, scores in found))))

    summaries = [summary(method.name, method.family, scores) for method, scores in rows.items()]
    summaries += [summary(f"bound, {level:g} dB", "bound", bounds[level]) for level in args.snr]
    print(f"pairs: {len(pairs)}, at {rate} Hz, scored on 16-bit files; mean ± half of the 95 % interval")
    print_table(summaries, COLUMNS)
    tables = {"methods": summaries}
    if args.attacks:
        tables["attacks"] = [summary(label, label, scores) for label, scores in attacked.items()]
        print("\nsecret SNR in dB after the stego is changed; lost, where nothing can be revealed, counts as 0 dB")
        print_table(tables["attacks"], dict.fromkeys(ATTACKS, 1))
    if args.steganalysis:
        train = list(draw_pairs(find_audio(args.steganalysis), args.train_pairs, args.seed, rate))
        tables["steganalysis"] = steganalysis(methods, train, pairs, rate, args.seed, folder)
        print("\na small CNN, trained for each method on other voices, tells stego from cover by 1 s: 0.5 is guessing")
        print_table(tables["steganalysis"], {"stego SNR": 1, "accuracy": 3, "AUC": 3})
    if args.curve:
        curve = [(level, mean_interval([row["secret SNR"] for row in bounds[level]])[0]) for level in bounds]
        plot_curve(args.curve, summaries, curve)
    if args.csv:
        write_csv(args.csv, tables)
    if args.json:
        with open(args.json, "w") as file:
            json.dump(plain({"settings": vars(args) | {"rate": rate}} | tables), file, indent=1)


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_dir", metavar="DIR", help="folder of speech to draw pairs from")
    parser.add_argument("--cover", metavar="FILE", help="score this one pair: a cover, mixed to mono, at its own rate")
    parser.add_argument("--secret", metavar="FILE", help="and its secret, brought to that rate; the longer of the two is cut")
    parser.add_argument("--model", nargs="+", metavar="FILE", help="models to score (default: the shipped ones)")
    parser.add_argument("--snr", nargs="+", type=float, default=[36, 41, 46, 52, 58, 64], metavar="DB",
                        help="stego SNRs of lattice models, and of the bound (default: 36 41 46 52 58 64)")
    parser.add_argument("--pairs", type=int, default=64, help="number of pairs (default: 64)")
    parser.add_argument("--rate", type=int, default=16000, help="rate in Hz that pairs of DIR are brought to (default: 16000)")
    parser.add_argument("--seed", type=int, default=0, help="of the pairs, the noise and the detectors (default: 0)")
    parser.add_argument("--no_perceptual", action="store_true", help="leave out PESQ and STOI")
    parser.add_argument("--attacks", action="store_true", help="also change our stegos, and score the secret that is left")
    parser.add_argument("--steganalysis", metavar="DIR", help="also train detectors, on this folder's other voices")
    parser.add_argument("--train_pairs", type=int, default=256, help="number of pairs for detectors (default: 256)")
    parser.add_argument("--plot", metavar="FILE.png", help="spectrograms of the first pair, with the first model")
    parser.add_argument("--curve", metavar="FILE.png", help="secret SNR and PESQ over stego SNR, of all methods and the bound")
    parser.add_argument("--csv", metavar="FILE", help="write the tables, a line a number")
    parser.add_argument("--json", metavar="FILE", help="write the tables, the settings and every pair's scores")
    parser.add_argument("--speed", action="store_true", help="time hide and reveal of ten minutes and of an hour instead")
    parser.add_argument("--memory", action="store_true", help="measure a training step of the paper preset instead")
    args = parser.parse_args(argv)
    if args.memory:
        return measure_memory()
    if args.speed:
        return measure_speed(args.model[0] if args.model else os.path.join(HERE, "wavinwav.pt"))
    if bool(args.data_dir) == bool(args.cover) or bool(args.cover) != bool(args.secret):
        parser.error("give --data_dir, or --cover and --secret")
    if args.steganalysis and (args.cover or os.path.realpath(args.steganalysis) == os.path.realpath(args.data_dir)):
        parser.error("--steganalysis needs --data_dir, and another folder than that")
    if min(args.pairs, args.train_pairs, args.rate) < 1:
        parser.error("--pairs, --train_pairs and --rate must be at least 1")
    for path in (args.plot, args.curve, args.csv, args.json):  # told before the work, not after it
        if path and not os.path.isdir(os.path.dirname(os.path.abspath(path))):
            parser.error(f"the folder of {path} does not exist")
    try:
        with tempfile.TemporaryDirectory() as folder:
            evaluate(args, folder)
    except (StegoError, TorchaudioError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
