"""What several tests need: paths of models, sounds, and what their SNR is."""

import os
import re

import numpy as np
import soundfile
import torch

from evaluation import scores
from files.container import Header
from files.sound import snr_of as snr
from running import ROOT

COVER, SECRET = (os.path.join(ROOT, "examples", f"{name}.wav") for name in ("cover", "secret"))
LATTICE = os.path.join(ROOT, "lattice", "lattice.pt")
INN, ROBUST = (os.path.join(ROOT, "models", f"{name}.pt") for name in ("wavinwav", "robust"))

# WavLM-Large's networks with 8 channels and 3 layers, for torchaudio
LARGE = dict(
    extractor_mode="layer_norm", extractor_conv_bias=False,
    extractor_conv_layer_config=[(8, 10, 5), *4 * [(8, 3, 2)], *2 * [(8, 2, 2)]],
    encoder_embed_dim=32, encoder_projection_dropout=0.1, encoder_pos_conv_kernel=16,
    encoder_pos_conv_groups=4, encoder_num_layers=3, encoder_num_heads=4, encoder_max_distance=80,
    encoder_num_buckets=32, encoder_attention_dropout=0.1, encoder_ff_interm_features=64,
    encoder_ff_interm_dropout=0.1, encoder_dropout=0.1, encoder_layer_norm_first=True,
    encoder_layer_drop=0.1, aux_num_out=None)
TORCHAUDIO = """
import torch
from torchaudio.models import wavlm_model

def wavlm_large(pretrained=True, progress=True, device="cuda"):
    torch.manual_seed(0)
    return wavlm_model(**{config}).to(device).train()
"""


def voice(seconds, rate, seed):
    """A buzz with wandering pitch and formant-like colour: enough of speech for a training loop."""
    rng = np.random.default_rng(seed)
    n = int(seconds * rate)
    pitch = 120 + 80 * rng.random() + 20 * np.sin(np.arange(n) / rate * 3 + seed)
    phase = 2 * np.pi * np.cumsum(pitch) / rate
    x = sum(np.sin(k * phase) / k for k in range(1, 12))
    x = x * (1.1 + np.sin(np.arange(n) / rate * 9 + seed))
    return (0.1 * x + 0.002 * rng.standard_normal(n)).astype(np.float32)


def voices(count, seconds, seed=0, rate=16000):
    """[count, T]"""
    return torch.stack([torch.from_numpy(voice(seconds, rate, seed + i)) for i in range(count)])


def speechlike(*shape, seed=0):
    """Noise with the spectral slope and the loudness changes of speech, [..., T]."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(*shape, generator=generator, dtype=torch.float64)
    slope = 1 + torch.linspace(0, 20, shape[-1] // 2 + 1, dtype=torch.float64) ** 2
    x = torch.fft.irfft(torch.fft.rfft(x) / slope, n=shape[-1])
    x = x * (1.1 + torch.sin(torch.arange(shape[-1]) / 3000))
    return 0.5 * x / x.abs().amax(-1, keepdim=True).clamp_min(1e-9)


def pcm(*shape, seed=0):
    """The same on the grid of 16 bits, float32."""
    return ((speechlike(*shape, seed=seed) * 32768).round() / 32768).float()


def file_snr(reference, estimate):
    """In dB, of two sound files."""
    return snr(*(torch.from_numpy(soundfile.read(path)[0]) for path in (reference, estimate)))


def four(folder):
    """The names of a cover, a secret, a stego and a revealed secret."""
    return [str(folder / f"{name}.wav") for name in ("cover", "secret", "stego", "found")]


def likeness(a, b):
    """The inner product of two vectors over what it would be, root mean square, if the signs of one
    were coin tosses. Then it passes 6 in 2 exp(-6 ** 2 / 2), 3e-8, of all cases, whatever the sizes
    are (Hoeffding's inequality, given the sizes): a correlation has no such bound where a few large
    values decide it, as in what a wrong key decodes."""
    products = (a.double() - a.double().mean()) * (b.double() - b.double().mean())
    return abs(products.sum() / products.norm()).item()


def header_of(samples, *more):
    """Header.read of a stego [n]."""
    return Header.read(lambda start, stop: samples[start:stop], len(samples), *more)


def pair_files(folder, seconds=1.001, rate=16000):
    """A pair as evaluate.py writes it; at first its length is no multiple of a hop. {name: path}"""
    pair = (torch.from_numpy(0.3 * voice(seconds, rate, seed)) for seed in (1, 2))
    return scores.write_pair(folder, *pair, rate)


def printed_snrs(text):
    """Stego and secret SNR in dB, of what `hide` prints."""
    text = text.replace("secret lossless", "secret SNR inf dB")
    snrs = re.search(r"stego SNR (\S+) dB, secret SNR (\S+) dB", text).groups()
    return tuple(map(float, snrs))
