"""What others do to a stego: they change it, knowingly or not, or look for a secret in it.

    attack_pair(model, ours(model, "INN"), paths, seed)  # {attack: secret SNR in dB}
    steganalysis(methods, train_pairs, test_pairs, ...)  # how well a small CNN tells stegos

Shapes: B batch, T samples. Samples are integer arrays [T] (1 LSB = 1), signals float tensors [T] in
[-1, 1).
"""

import io
import math
import random
import tempfile

import numpy as np
import soundfile
import torch
from torch import Tensor, nn
from torch.nn import functional

import noise
import sound
import stego
from baselines import Method
from command import StegoError
from lattice import Lattice
from methods import in_order
from scores import mean_interval, samples, signal, summary, write_pair


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


# ---------------------------------------------------------------- steganalysis

class Detector(nn.Module):
    """Cover or stego? Samples [B, T] in LSB -> logits [B]. Fixed first, second and third
    differences, truncated at three levels (after the rich models' residuals: Fridrich and Kodovsky,
    2012), then a small CNN; 26 k parameters."""

    def __init__(self):
        super().__init__()
        filters = [[0, 0, 1, -1], [0, 1, -2, 1], [1, -3, 3, -1]]
        self.register_buffer("filters", torch.tensor(filters, dtype=torch.float32)[:, None])
        layers, widths = [], [9, 16, 32, 32, 48]
        for inputs, outputs in zip(widths, widths[1:]):
            layers += [nn.Conv1d(inputs, outputs, 8, stride=4, padding=4, bias=False),
                       nn.BatchNorm1d(outputs), nn.ReLU()]
        self.layers = nn.Sequential(*layers)
        self.last = nn.Linear(widths[-1], 1)

    def forward(self, x: Tensor) -> Tensor:
        residual = functional.conv1d(x[:, None], self.filters)
        x = torch.cat([(residual / level).clamp(-1, 1) for level in (8, 64, 512)], 1)
        return self.last(self.layers(x).mean(2))[:, 0]


def steganalysis(methods: list[Method], train_pairs: list, test_pairs: list, rate: int, seed: int,
                 folder: str, steps: int = 300) -> list[dict]:
    """Accuracy and AUC of a Detector trained for each method, as summaries. Pairs are (cover,
    secret) signals; files are written into `folder`."""
    def work(index):
        own_folder = tempfile.mkdtemp(dir=folder)
        train, test = (cover_and_stego(methods[index], pairs, rate, own_folder)
                       for pairs in (train_pairs, test_pairs))
        if not (train and test):
            return {}
        accuracy, area = detect(train, test, rate, seed, steps)
        snrs = [sound.snr_of(sound.from_pcm(cover), sound.from_pcm(hidden))
                for cover, hidden in test]
        return {"stego SNR": mean_interval(snrs)[0], "accuracy": accuracy, "AUC": area}

    results = in_order(work, range(len(methods)), "detector")
    return [summary(method.name, method.family, [scores])
            for method, scores in zip(methods, results)]


def cover_and_stego(method: Method, pairs: list, rate: int, folder: str) -> list[tuple]:
    """[(cover, stego)] as samples, for the pairs (cover, secret) that the method can hide."""
    hidden = []
    for cover, secret in pairs:
        paths = write_pair(folder, cover, secret, rate)
        try:
            method.hide(paths["cover"], paths["secret"], paths["stego"])
        except StegoError:
            continue
        hidden.append((samples(paths["cover"])[0], samples(paths["stego"])[0]))
    return hidden


def detect(train: list[tuple], test: list[tuple], rate: int, seed: int, steps: int = 300,
           batch: int = 16) -> tuple[float, float]:
    """Train a Detector on `batch` crops of 1 s of (cover, stego) samples [T] and as many of their
    stegos at a time, and test it on all whole seconds of other pairs: (accuracy, AUC), 0.5 for
    guessing."""
    torch.manual_seed(seed)
    rng = random.Random(seed)
    model = Detector()
    optimiser = torch.optim.AdamW(model.parameters(), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 5e-3, total_steps=steps)
    labels = torch.arange(2.).repeat(batch)  # cover, stego, cover, ...
    for _ in range(steps):
        crops = []
        for cover, hidden in rng.choices(train, k=batch):
            start = rng.randrange(len(cover) - rate + 1)
            crops += [cover[start:start + rate], hidden[start:start + rate]]
        logits = model(torch.tensor(np.stack(crops), dtype=torch.float32))
        loss = functional.binary_cross_entropy_with_logits(logits, labels)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    model.eval()

    @torch.no_grad()
    def logits_of(recordings):
        seconds = [x[:len(x) // rate * rate].reshape(-1, rate) for x in recordings]
        return torch.cat([model(torch.tensor(x, dtype=torch.float32)) for x in seconds]).numpy()

    covers, stegos = (logits_of(recordings) for recordings in zip(*test))
    return ((covers < 0).mean() + (stegos >= 0).mean()) / 2, auc(covers, stegos)


def auc(negative: np.ndarray, positive: np.ndarray) -> float:
    """Area under the ROC curve of two score arrays, exact: the chance that a positive ranks above a
    negative, ties half."""
    order = np.sort(negative)
    below = np.searchsorted(order, positive, "left")
    up_to = np.searchsorted(order, positive, "right")
    return (below + up_to).mean() / 2 / len(negative)
