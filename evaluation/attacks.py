"""Attacks: what is left of a secret after its stego was changed.

    attack_pair(model, our_system(model, "INN"), paths, seed)  # {attack: {"SNR": dB, "STOI": ...}}

Shapes: T samples. Signals are float tensors [T] in [-1, 1).
"""

import contextlib
import io
import subprocess
import sys
from shutil import which

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from tqdm import tqdm

import stego
from evaluation.baselines import System, decode_opus, encode_opus, is_lattice
from evaluation.scores import samples, signal, stoi
from files import sound
from files.command import StegoError
from files.resample import resample
from training.noise import gaussian, low_pass
from training.noise import resample as resample_and_back

NEW_RATES = {"44.1 kHz": 44100, "48 kHz": 48000}  # of stegos that are not resampled back
ATTACKS = {  # name -> function of a signal [T] and its rate in Hz
    "none": lambda x, rate: x,
    **{f"noise {snr} dB": lambda x, rate, snr=snr: gaussian(x, torch.randn_like(x), snr)
       for snr in (70, 60, 50, 40, 30, 20)},
    "8 bits": lambda x, rate: (x * 128).round() / 128,
    **{f"gain {gain}": lambda x, rate, gain=gain: gain * x for gain in (0.99, 0.9, 0.5)},
    "clipped by 3 dB": lambda x, rate: x.clamp(-x.abs().max() / 2 ** 0.5, x.abs().max() / 2 ** 0.5),
    "rate x 3/4": lambda x, rate: resample_and_back(x, "3/4"),
    **{name: lambda x, rate, new=new: resample(x, rate, new) for name, new in NEW_RATES.items()},
    "low-pass 3.4 kHz": lambda x, rate: low_pass(x, 3400 / rate),
    **{f"{codec} {kbps} kbit/s": lambda x, rate, codec=codec, kbps=kbps: coded(x, rate, codec, kbps)
       for codec in ("MP3", "AAC") for kbps in (128, 64)},
    "Opus 32 kbit/s": lambda x, rate: decode_opus(encode_opus(x.numpy(), rate, 32), rate, len(x)),
    "one sample": lambda x, rate: change_middle(x, 1000 / sound.FULL_SCALE),
    "one lost": lambda x, rate: change_middle(x, -x[len(x) // 2]),
    "first 100 ms cut": lambda x, rate: x[rate // 10:],
    "last 100 ms cut": lambda x, rate: x[:-(rate // 10)],
}


def unavailable_attacks() -> list[str]:
    """Names of the attacks that need ffmpeg, if it is not installed."""
    return [name for name in ATTACKS if name.startswith(("MP3", "AAC")) and not which("ffmpeg")]


def attack_pair(model, system: System, paths: dict[str, str], seed: int, perceptual: bool = True
                ) -> dict[str, dict]:
    """SNR in dB (and STOI, if `perceptual`) of the secret by attack, from 16-bit files; None if
    nothing can be revealed. {} if the system cannot hide this pair, or a codec has no such rate.

    A lattice reveals all or nothing. Other models reveal what is left, and are given the secret's
    length where the header is lost; a revealed secret that is too short is padded in front."""
    names = [name for name in ATTACKS if name not in unavailable_attacks()]
    try:
        system.hide(paths["cover"], paths["secret"], paths["stego"])
    except StegoError:
        return {name: {} for name in names}
    pcm, rate = samples(paths["stego"])
    hidden, secret, scores = sound.from_pcm(pcm), signal(paths["secret"]), {}
    attacked_path = paths["stego"] + ".attacked.wav"
    for name in names:
        torch.manual_seed(seed + list(ATTACKS).index(name))
        try:
            x = ATTACKS[name](hidden, rate)
        except (subprocess.CalledProcessError, StegoError) as error:
            tqdm.write(f"{name}, at {rate} Hz: {error}", file=sys.stderr)
            scores[name] = {}
            continue
        sound.write_audio(attacked_path, sound.to_pcm(x), NEW_RATES.get(name, rate))
        try:
            with contextlib.redirect_stderr(io.StringIO()):  # notes on what was cut
                stego.reveal(attacked_path, paths["revealed"], model, force=not is_lattice(model),
                             overwrite=True)
        except StegoError:
            scores[name] = {"SNR": None} | ({"STOI": None} if perceptual else {})
            continue
        pcm, found_rate = samples(paths["revealed"])
        revealed = resample(sound.from_pcm(pcm), found_rate, rate)
        missing = max(0, len(secret) - len(revealed))
        revealed = functional.pad(revealed, (missing, 0))[:len(secret)]
        scores[name] = {"SNR": sound.snr_of(secret, revealed)}
        if perceptual:
            scores[name]["STOI"] = stoi(secret, revealed, rate)
    return scores


def changed(system: System, name: str) -> System:
    """A system whose stegos are changed by this attack."""
    def hide(cover_path, secret_path, stego_path):
        system.hide(cover_path, secret_path, stego_path)
        pcm, rate = samples(stego_path)
        x = ATTACKS[name](sound.from_pcm(pcm), rate)
        sound.write_audio(stego_path, sound.to_pcm(x), NEW_RATES.get(name, rate))

    return System(f"{system.name}, {name}", hide, system.reveal)


def change_middle(x: Tensor, change: float | Tensor) -> Tensor:
    """A copy of a signal [T] with `change` added to its middle sample."""
    x = x.clone()
    x[len(x) // 2] += change
    return x


# ---------------------------------------------------------------- codecs

def coded(x: Tensor, rate: int, codec: str, kbps: int) -> Tensor:
    """A signal [T] after MP3 or AAC by ffmpeg, without the codec's delay."""
    def ffmpeg(content, *words):
        return subprocess.run(["ffmpeg", "-v", "fatal", *words, "-"], input=content, check=True,
                              stdout=subprocess.PIPE).stdout

    plain = "-f", "s16le", "-ar", str(rate), "-ac", "1"
    encoder, stream = {"MP3": ("libmp3lame", "mp3"), "AAC": ("aac", "adts")}[codec]
    content = ffmpeg(sound.to_pcm(x).tobytes(), *plain, "-i", "-", "-c:a", encoder,
                     "-b:a", f"{kbps}k", "-f", stream)
    decoded = np.frombuffer(ffmpeg(content, "-i", "-", *plain), np.int16)
    return aligned(x, sound.from_pcm(decoded))


def aligned(reference: Tensor, x: Tensor, most: int = 4096) -> Tensor:
    """A signal without its delay relative to a reference [T], at most `most` samples either way,
    found by cross-correlation; cut or padded to [T]."""
    size = 2 * max(len(reference), len(x))
    product = torch.fft.rfft(x, size) * torch.fft.rfft(reference, size).conj()
    correlation = torch.fft.irfft(product, size)
    delay = torch.cat([correlation[-most:], correlation[:most + 1]]).argmax().item() - most
    x = functional.pad(x, (-delay, 0))[:len(reference)]
    return functional.pad(x, (0, len(reference) - len(x)))
