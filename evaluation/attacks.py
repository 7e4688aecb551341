"""Attacks: what is left of a secret after its stego was changed.

    attack_pair(model, our_system(model, "INN"), paths, seed)  # {attack: secret SNR in dB}

Shapes: T samples. Signals are float tensors [T] in [-1, 1).
"""

import io
import math

import soundfile
import torch
from torch import Tensor
from torch.nn import functional

import stego
from evaluation.baselines import System, is_lattice
from evaluation.scores import samples, signal
from files import sound
from files.command import StegoError
from training.noise import gaussian, low_pass
from training.noise import resample as resample_and_back


def white_noise(snr):
    return lambda x, rate: gaussian(x, torch.randn_like(x), snr)


ATTACKS = {  # signal [T] and its rate in Hz -> signal
    "none": lambda x, rate: x,
    **{f"noise {snr} dB": white_noise(snr) for snr in (70, 60, 50, 40, 30, 20)},
    "8 bits": lambda x, rate: (x * 128).round() / 128,
    "gain 0.99": lambda x, rate: 0.99 * x,
    "gain 0.9": lambda x, rate: 0.9 * x,
    "rate x 3/4": lambda x, rate: resample_and_back(x, "3/4"),
    "low-pass 3.4 kHz": lambda x, rate: low_pass(x, 3400 / rate),
    "MP3 128 kb/s": lambda x, rate: mp3(x, rate),
    "one sample": lambda x, rate: change_middle(x, lambda y: y + 1000 / sound.FULL_SCALE),
    "one lost": lambda x, rate: change_middle(x, torch.zeros_like),
    "cut 100 ms": lambda x, rate: x[rate // 10:],  # the first
}


def attack_pair(model, system: System, paths: dict[str, str], seed: int) -> dict:
    """Secret SNR in dB for each attack, from 16-bit files: None if nothing could be revealed, NaN
    if the attack is not possible here; {} if the system cannot hide this pair.

    A lattice reveals all or nothing. Other models reveal what is left, and are given the secret's
    length where the header is lost; a revealed secret that is too short is padded in front."""
    try:
        system.hide(paths["cover"], paths["secret"], paths["stego"])
    except StegoError:
        return {}
    hidden, rate = signal(paths["stego"]), samples(paths["stego"])[1]
    secret = signal(paths["secret"])
    attacked_path, scores = paths["stego"] + ".attacked.wav", {}
    for number, (name, attack) in enumerate(ATTACKS.items()):
        torch.manual_seed(seed + number)
        try:
            sound.write_audio(attacked_path, sound.to_pcm(attack(hidden, rate)), rate)
        except soundfile.LibsndfileError:  # without MP3
            scores[name] = math.nan
            continue
        try:
            stego.reveal(attacked_path, paths["revealed"], model,
                         force=not is_lattice(model), overwrite=True)
        except StegoError:
            scores[name] = None
            continue
        revealed = signal(paths["revealed"])
        missing = max(0, len(secret) - len(revealed))
        revealed = functional.pad(revealed, (missing, 0))[:len(secret)]
        scores[name] = sound.snr_of(secret, revealed)
    return scores


def change_middle(x: Tensor, change) -> Tensor:
    """A copy of a signal [T] with its middle sample changed."""
    x = x.clone()
    x[len(x) // 2] = change(x[len(x) // 2])
    return x


def mp3(x: Tensor, rate: int, kbps: int = 128) -> Tensor:
    """Encode a signal [T] as MP3 of constant bit rate (or the highest below it that the sample rate
    allows) and decode it, without the codec's delay. Raises LibsndfileError if soundfile cannot
    write MP3."""
    # kbit/s that libsndfile maps compression levels of 1 and 0 to
    low, high = (32, 320) if rate >= 32000 else (8, 160) if rate >= 16000 else (8, 64)
    level = min(0.999, max(0, (high - kbps) / (high - low)))
    file = io.BytesIO()
    soundfile.write(file, x.numpy(), rate, format="MP3", subtype="MPEG_LAYER_III",
                    bitrate_mode="CONSTANT", compression_level=level)
    file.seek(0)
    back = torch.from_numpy(soundfile.read(file, dtype="float32")[0])
    back = functional.pad(back, (-delay(x, back), 0))[:len(x)]
    return functional.pad(back, (0, len(x) - len(back)))


def delay(reference: Tensor, x: Tensor, most: int = 4096) -> int:
    """The delay of a signal relative to a reference in samples, up to `most`: the peak of their
    cross-correlation."""
    size = 2 * max(len(reference), len(x))
    product = torch.fft.rfft(x, size) * torch.fft.rfft(reference, size).conj()
    correlation = torch.fft.irfft(product, size)
    return torch.cat([correlation[-most:], correlation[:most + 1]]).argmax().item() - most
