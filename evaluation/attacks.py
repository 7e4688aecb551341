"""What others do to a stego: they change it, knowingly or not.

    attack_pair(model, ours(model, "INN"), paths, seed)  # {attack: secret SNR in dB}

Shapes: T samples. Signals are float tensors [T] in [-1, 1).
"""

import io
import math

import soundfile
import torch
from torch import Tensor
from torch.nn import functional

import stego
from evaluation.baselines import Method
from evaluation.scores import samples, signal
from files import sound
from files.command import StegoError
from lattice.lattice import Lattice
from training import noise


def white_noise(snr):
    return lambda x, rate: noise.gaussian(x, torch.randn_like(x), snr)


ATTACKS = {  # signal [T] and its rate in Hz -> signal
    "none": lambda x, rate: x,
    **{f"noise {snr} dB": white_noise(snr) for snr in (70, 60, 50, 40, 30, 20)},
    "8 bits": lambda x, rate: (x * 128).round() / 128,
    "gain 0.99": lambda x, rate: 0.99 * x,
    "gain 0.9": lambda x, rate: 0.9 * x,
    "rate x 3/4": lambda x, rate: noise.resample(x, "3/4"),
    "low-pass 3.4 kHz": lambda x, rate: noise.low_pass(x, 3400 / rate),
    "MP3 128 kb/s": lambda x, rate: mp3(x, rate),
    "one sample": lambda x, rate: change_middle(x, lambda y: y + 1000 / sound.FULL_SCALE),
    "one lost": lambda x, rate: change_middle(x, torch.zeros_like),
    "cut 100 ms": lambda x, rate: x[rate // 10:],  # the first
}


def attack_pair(model, method: Method, paths: dict[str, str], seed: int) -> dict:
    """Secret SNR in dB by attack, from 16-bit files. None: lost, nothing could be revealed. NaN:
    not possible here. {}: the method cannot hide this pair.

    A lattice reveals all or nothing; other models reveal what is left, and are told the secret's
    length where the header is gone; what a shorter signal lacks is taken as cut off in front, and
    silent."""
    try:
        method.hide(paths["cover"], paths["secret"], paths["stego"])
    except StegoError:
        return {}
    hidden, rate = signal(paths["stego"]), samples(paths["stego"])[1]
    secret = signal(paths["secret"])
    attacked_path, scores = paths["stego"] + ".attacked.wav", {}
    for number, (name, attack) in enumerate(ATTACKS.items()):
        torch.manual_seed(seed + number)
        try:
            sound.write_audio(attacked_path, sound.to_pcm(attack(hidden, rate)), rate)
        except soundfile.LibsndfileError:  # no MP3 here
            scores[name] = math.nan
            continue
        try:
            stego.reveal(attacked_path, paths["revealed"], model,
                         force=not isinstance(model, Lattice), overwrite=True)
        except StegoError:
            scores[name] = None
            continue
        revealed = signal(paths["revealed"])
        missing = max(0, len(secret) - len(revealed))
        revealed = functional.pad(revealed, (missing, 0))[:len(secret)]
        scores[name] = sound.snr_of(secret, revealed)
    return scores


def change_middle(x: Tensor, change) -> Tensor:
    """A copy of a signal [T] in which the sample in the middle is another one."""
    x = x.clone()
    x[len(x) // 2] = change(x[len(x) // 2])
    return x


def mp3(x: Tensor, rate: int, kbps: int = 128) -> Tensor:
    """There and back through MP3 of constant bit rate (the highest that is no more, where a low
    rate has no such), with the codec's delay undone. Raises LibsndfileError where soundfile cannot
    write it."""
    # libsndfile's ends for a level of 1 and of 0, kbit/s
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
    """By how many samples a signal lags behind a reference, up to `most`: the peak of their
    cross-correlation."""
    size = 2 * max(len(reference), len(x))
    product = torch.fft.rfft(x, size) * torch.fft.rfft(reference, size).conj()
    correlation = torch.fft.irfft(product, size)
    return torch.cat([correlation[-most:], correlation[:most + 1]]).argmax().item() - most
