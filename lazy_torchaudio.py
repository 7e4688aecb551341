"""torchaudio, loaded when it is first needed, and resampling, which it is mostly needed for.

    from lazy_torchaudio import resample
    x = resample(x, 44100, 16000)

A torchaudio loads only beside the torch that it was built with. Where it does not, all that needs
none of it still works, and the rest ends with a line that says what to do.

Shapes: T samples.
"""

import functools
from importlib import metadata

import torch
from torch import Tensor


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
    return x if old_rate == new_rate else _resampler(old_rate, new_rate, x.device)(x)
