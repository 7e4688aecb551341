"""torchaudio, loaded when it is first needed, and resampling, which it is mostly needed for.

    from files.resample import resample
    x = resample(x, 44100, 16000)

A torchaudio loads only beside the torch that it was built with. Where it does not, all that needs
none of it still works, and the rest ends with a line that says what to do.

Shapes: T samples.
"""

import functools
import math
from importlib import metadata

import torch
from torch import Tensor
from torch.nn import functional

LARGEST_KERNEL = 1 << 20  # numbers that are in memory at once for resampling
ROLLOFF, WIDTH = 0.99, 6  # of torchaudio's resampling: the pass band, zero crossings on each side


class TorchaudioError(RuntimeError):
    """torchaudio cannot be loaded: one line with both versions, the reason, and the remedy."""


def load():
    """The module torchaudio. Raises TorchaudioError, whatever its import raised."""
    try:
        import torchaudio
        return torchaudio
    except Exception as error:  # OSError, RuntimeError or ImportError, by what does not fit
        try:
            version = metadata.version("torchaudio")
        except metadata.PackageNotFoundError:
            version = "(none)"
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise TorchaudioError(
            f"torchaudio {version} cannot be loaded beside torch {torch.__version__} ({reason}); "
            "get two that were built together: pip install -r requirements.txt") from error


@functools.lru_cache
def _resampler(old_rate: int, new_rate: int, device: torch.device):
    return load().transforms.Resample(old_rate, new_rate).to(device)


def resample(x: Tensor, old_rate: int, new_rate: int) -> Tensor:
    """Bring a signal to another sample rate, by windowed sinc interpolation; differentiable.

    x [..., T] in float32 at old_rate Hz -> [..., ceil(T * new_rate / old_rate)] at new_rate Hz.
    Of equal rates it is x itself, without torchaudio. Raises TorchaudioError.
    """
    common = math.gcd(old_rate, new_rate)
    old, new = old_rate // common, new_rate // common
    if old == new:
        return x
    if old * new > LARGEST_KERNEL:
        return _resample_directly(x, old, new)
    return _resampler(old, new, x.device)(x)


def _resample_directly(x: Tensor, old: int, new: int) -> Tensor:
    """The same without a kernel for each of `new` phases, which take 8 GB from 44101 to 48000 Hz:
    the weights of each output are computed when they are needed. Slower, but as exact."""
    count = -(-x.shape[-1] * new // old)
    cutoff = ROLLOFF * min(1, new / old)
    reach = math.ceil(WIDTH / cutoff)
    taps = torch.arange(-reach, reach + 2, device=x.device)
    x = functional.pad(x, (reach, reach + 2))
    outputs = []
    for some in torch.arange(count, device=x.device).split(max(1, LARGEST_KERNEL // len(taps))):
        index = some * old // new  # the input before an output
        rest = (some * old % new).double() / new
        far = ((taps - rest[:, None]) * cutoff).clamp(-WIDTH, WIDTH)
        weights = cutoff * torch.sinc(far) * torch.cos(far * (math.pi / WIDTH / 2)) ** 2
        near = x[..., index[:, None] + taps + reach]
        outputs.append((near * weights.to(x.dtype)).sum(-1))
    return torch.cat(outputs, -1)
