"""Change of sample rate by windowed sinc interpolation, in plain torch.

    y = resample(x, 44100, 16000)

The kernel is that of torchaudio.functional.resample with its defaults.

Shapes: T samples.
"""

import functools
import math

import torch
from torch import Tensor
from torch.nn import functional

ROLLOFF = 0.99  # cutoff, relative to the lower of the two Nyquist frequencies
ZEROS = 6  # zero crossings of the sinc on each side, under a Hann window
LARGEST_KERNEL = 1 << 20  # numbers in memory at once


def resample(x: Tensor, old_rate: int, new_rate: int) -> Tensor:
    """Bring a signal to another sample rate. Differentiable.

    x [..., T], floating point, at old_rate Hz -> [..., ceil(T * new_rate / old_rate)] at new_rate
    Hz. If the rates are equal, x itself is returned.
    """
    common = math.gcd(old_rate, new_rate)
    old, new = old_rate // common, new_rate // common
    if old == new:
        return x
    cutoff = ROLLOFF * min(1, new / old)  # relative to the old Nyquist frequency
    reach = math.ceil(ZEROS / cutoff)  # input samples on each side that an output depends on
    count = -(-x.shape[-1] * new // old)
    if new * (old + 2 * reach) > LARGEST_KERNEL:
        return _resample_directly(x, old, new, cutoff, reach, count)
    # `old` inputs become `new` outputs, one phase each: a strided convolution
    kernel = _polyphase_kernel(old, new, cutoff, reach, x.dtype, x.device)
    padded = functional.pad(x, (reach, reach + old))
    y = functional.conv1d(padded.reshape(-1, 1, padded.shape[-1]), kernel, stride=old)
    return y.mT.reshape(*x.shape[:-1], -1)[..., :count]


@functools.lru_cache(16)
def _polyphase_kernel(old, new, cutoff, reach, dtype, device) -> Tensor:
    """[new, 1, old + 2 * reach]"""
    taps = torch.arange(-reach, reach + old, dtype=torch.float64)
    phases = torch.arange(new, dtype=torch.float64)[:, None] * old / new
    return _windowed_sinc(taps - phases, cutoff)[:, None].to(device, dtype)


def _windowed_sinc(distance: Tensor, cutoff: float) -> Tensor:
    """The weight of an input at a distance, in input samples, from an output."""
    t = (distance * cutoff).clamp(-ZEROS, ZEROS)
    return cutoff * torch.sinc(t) * torch.cos(t * (math.pi / ZEROS / 2)) ** 2


def _resample_directly(x, old, new, cutoff, reach, count) -> Tensor:
    """The same result in bounded memory, but slower: weights are computed for each output. A
    kernel of all phases would take 8 GB from 44101 to 48000 Hz."""
    taps = torch.arange(-reach, reach + 2, device=x.device)
    padded = functional.pad(x, (reach, reach + 2))
    outputs = []
    for some in torch.arange(count, device=x.device).split(max(1, LARGEST_KERNEL // len(taps))):
        before = some * old // new  # the last input before each output
        fraction = (some * old % new).double() / new
        weights = _windowed_sinc(taps - fraction[:, None], cutoff).to(x.dtype)
        outputs.append((padded[..., before[:, None] + taps + reach] * weights).sum(-1))
    return torch.cat(outputs, -1) if outputs else x[..., :0]
