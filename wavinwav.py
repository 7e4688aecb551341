"""WavInWav: hide a speech waveform inside another one of the same length, and get it back.

An invertible neural network (INN) runs forward to hide and backward to reveal:

    cover, secret  -- hide -->    stego, r          the stego sounds like the cover; r is thrown away
    stego, z       -- reveal -->  cover^, secret^   z stands in for r

After "WavInWav: Time-domain Speech Hiding via Invertible Neural Network" (arXiv 2510.02915). This file imports
torch and the standard library only, so that it can be copied into other projects together with a trained model:

    import wavinwav
    model = wavinwav.load("wavinwav.pt")
    stego, r = model.hide(cover, secret)      # float tensors [T] or [B, T] in [-1, 1)
    cover_, secret_ = model.reveal(stego)

Shapes: B batch, T samples, C channels (bands of the lapped transform; 1 is the waveform itself), F frames (T / C).
"""

import bisect
import contextlib
import copy
import ctypes
import functools
import hashlib
import itertools
import math
import os
import random
import struct
import warnings
import zlib
from dataclasses import asdict, dataclass, fields, replace
from typing import Iterable, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

PIECE_FRAMES = 2048  # what a subnet works on at a time when no gradient is asked for
PILOT_PERIOD = 400  # samples: 40 Hz at 16 kHz, where neither speech nor the ear has much
PILOT_LEAST = 20 * PILOT_PERIOD  # samples of a stego that a pilot is put into
SEGMENT_SECONDS = 0.02  # what `scramble` permutes, section III-D of the paper


@dataclass
class Config:
    """Everything that defines a network. Start from `Config.lapped()` or `Config.paper()`.

    Raises ValueError naming the field whose value is invalid.
    """

    preset: str = "lapped"  # a label: where the other values came from
    sample_rate: int = 16000  # Hz, the rate of the training audio; the network runs at any
    bands: int = 128  # of the lapped transform, which are the couplings' channels; 1 is the waveform itself
    blocks: int = 3  # affine couplings in the stack
    growth: int = 32  # channels that each inner conv of a dense subnet adds
    kernel: int = 3  # taps of these convs, odd
    clamp: float = 2.0  # bound of the log-scale
    gated: bool = True  # gated subnets, see GatedSubnet
    swapped: int = 48  # bands exchanged by the swap initialisation; 0 leaves every subnet at random
    shift: int = 0  # by how many bands those exchanged are rotated: the secret's lowest go this far below the cover's highest
    attenuation: float = 0.2  # of the secret's bands in the swap, linear, between levelled bands
    turn_level: float = 1 / 64  # root mean square of the high bands above which a frame may be turned; 0 turns none
    latent: str = "zero"  # what reveal puts in the place of r: "zero", or "normal" for N(0, I)
    robust: bool = False  # a second stack, trained to reveal from stegos that have changed
    pilot: float = 0.0  # amplitude of a low tone by which reveal knows the stego's gain, relative to its level; 0 is none

    def __post_init__(self):
        for field in fields(self):
            value = getattr(self, field.name)
            if field.type is float and type(value) is int:
                setattr(self, field.name, value := float(value))
            self._require(type(value) is field.type, field.name, f"must be of type {field.type.__name__}")
        for name in ("sample_rate", "bands", "blocks", "growth", "kernel"):
            self._require(getattr(self, name) >= 1, name, "must be at least 1")
        self._require(self.bands == 1 or self.bands % 2 == 0, "bands", "must be 1 or even")
        self._require(self.kernel % 2 == 1, "kernel", "must be odd")
        self._require(0 < self.clamp < math.inf, "clamp", "must be positive and finite")
        self._require(0 <= self.swapped <= self.bands // 2, "swapped", f"must be from 0 to {self.bands // 2}, half the bands")
        self._require(0 <= self.shift <= self.swapped, "shift", "must be from 0 to the number of swapped bands")
        self._require(not self.swapped or self.gated, "swapped", "needs gated subnets")
        self._require(not self.swapped or self.blocks >= 2, "blocks", "must be at least 2 for a swap")
        self._require(0 <= self.pilot < 0.1, "pilot", "must be at least 0 and below 0.1")
        self._require(0 <= self.turn_level < math.inf, "turn_level", "must be at least 0 and finite")
        self._require(self.preset != "lattice" or self.bands % 128 == 0, "bands", "must be a multiple of 128 in a lattice")
        lowest = math.exp(-self.clamp)
        self._require(lowest < self.attenuation <= 1, "attenuation", f"must be above exp(-clamp) = {lowest:.3g} and at most 1")
        self._require(self.latent in ("zero", "normal"), "latent", 'must be "zero" or "normal"')

    def _require(self, condition: bool, name: str, rule: str):
        if not condition:
            raise ValueError(f"Config.{name} {rule}, not {getattr(self, name)!r}")

    @classmethod
    def lapped(cls, **changes) -> "Config":
        """Couplings on lapped-transform coefficients, swap-initialised: trains in minutes on a CPU."""
        return cls(**changes)

    @classmethod
    def lattice(cls, **changes) -> "Config":
        """A lattice coupling behind a learned coder, for files whose samples do not change. See `Lattice`."""
        return cls(**(dict(preset="lattice", bands=256, blocks=1, growth=16, kernel=1, gated=False, swapped=0,
                           turn_level=0.0) | changes))

    @classmethod
    def paper(cls, **changes) -> "Config":
        """The paper's network: 16 blocks on the waveform. Its kernel of 11 and its growth of 32 are inferred from the
        3.39 M parameters that the paper states."""
        return cls(**(dict(preset="paper", bands=1, blocks=16, growth=32, kernel=11, gated=False, swapped=0,
                           turn_level=0.0, latent="normal") | changes))


class DenseSubnet(nn.Module):
    """Five convs, each reading the input and the outputs of all before it (HiNet's dense block). [B, C, F] -> same."""

    recompute = False  # see WavINN

    def __init__(self, config: Config):
        super().__init__()
        conv = functools.partial(nn.Conv1d, kernel_size=config.kernel, padding=config.kernel // 2)
        widths = [config.bands + i * config.growth for i in range(5)]
        self.inner = nn.ModuleList(conv(width, config.growth) for width in widths[:4])
        self.last = conv(widths[4], config.bands)

    def compute(self, x: Tensor) -> Tensor:
        # Each feature goes once through its part of the weights of all convs that read it: fewer and larger ones, no copies.
        convs, first = [*self.inner, self.last], 0
        found = torch.cat([conv.bias for conv in convs])[:, None]
        for i, conv in enumerate(convs):
            weight = torch.cat([later.weight[:, first:first + x.shape[1]] for later in convs[i:]])
            found = found + functional.conv1d(x, weight, padding=conv.padding)
            first += x.shape[1]
            result, found = found[:, :conv.out_channels], found[:, conv.out_channels:]
            x = functional.leaky_relu(result, 0.2)
        return result

    def forward(self, x: Tensor) -> Tensor:
        if torch.is_grad_enabled():
            return checkpoint(self.compute, x, use_reentrant=False) if self.recompute else self.compute(x)
        # Piece by piece, each with the frames around it that the five convs see: the same result in a cache-sized space.
        halo = 5 * (self.last.kernel_size[0] // 2)
        pieces = []
        for start in range(0, x.shape[2], PIECE_FRAMES):
            left = min(halo, start)
            piece = self.compute(x[:, :, start - left:start + PIECE_FRAMES + halo])
            pieces.append(piece[:, :, left:left + PIECE_FRAMES])
        return torch.cat(pieces, 2)


class GatedSubnet(DenseSubnet):
    """A dense subnet for coefficients, whose signs are noise and whose sizes tell what is there: the convs see log
    power, and what they find scales a linear path from band to band, between 0 and 2 times. [B, C, F] -> same."""

    def __init__(self, config: Config):
        super().__init__(config)
        self.direct = nn.Conv1d(config.bands, config.bands, 1, bias=False)
        self.gate = nn.Conv1d(self.last.in_channels, config.bands, config.kernel, padding=config.kernel // 2)

    def compute(self, x: Tensor) -> Tensor:
        features = 0.2 * torch.log(x.square() + 1e-3)
        for conv in self.inner:
            features = torch.cat([features, functional.leaky_relu(conv(features), 0.2)], 1)
        return 2 * torch.sigmoid(self.gate(features)) * (self.direct(x) + self.last(features))


class AffineCoupling(nn.Module):
    """One invertible block, section III of the paper. [B, C, F] x 2 -> the same.

    cover' = cover + phi(secret); secret' = secret * exp(a(rho(cover'))) + eta(cover').
    rho and eta read cover' in both directions, since that is what reveal has.
    """

    def __init__(self, config: Config):
        super().__init__()
        self.clamp = config.clamp
        subnet = GatedSubnet if config.gated else DenseSubnet
        self.phi, self.rho, self.eta = subnet(config), subnet(config), subnet(config)

    def log_scale(self, cover: Tensor) -> Tensor:
        return self.clamp * (2 * torch.sigmoid(self.rho(cover).to(cover.dtype)) - 1)  # bounded as in HiNet

    def forward(self, cover: Tensor, secret: Tensor) -> tuple[Tensor, Tensor]:
        cover = cover + self.phi(secret)
        secret = secret * torch.exp(self.log_scale(cover)) + self.eta(cover)
        return cover, secret

    def inverse(self, cover: Tensor, secret: Tensor) -> tuple[Tensor, Tensor]:
        secret = (secret - self.eta(cover)) * torch.exp(-self.log_scale(cover))
        cover = cover - self.phi(secret)
        return cover, secret


@functools.lru_cache
def lapped_basis(bands: int, dtype: torch.dtype, device: torch.device, exact: bool = False) -> tuple[Tensor, Tensor, Tensor]:
    """What makes an MDCT with a sine window: the window's two quarters [bands / 2], by which the halves of a hop are
    rotated, and a DCT-IV [bands, bands], computed in float64. `exact` rounds the DCT so that sums of its multiples by
    integers below 2 ** 22 have no rounding error in float64."""
    with torch.inference_mode(False):  # it will be used in training too
        n = torch.arange(bands, dtype=torch.float64) + 0.5
        angle = math.pi / (2 * bands) * n[:bands // 2]
        cosines = math.sqrt(2 / bands) * torch.cos(math.pi / bands * n[:, None] * n)
        cosines[:bands // 2] = -cosines[:bands // 2].flip(0)
        if exact:
            cosines = (cosines * 2 ** 22).round() / 2 ** 22
        return tuple(x.to(device, dtype) for x in (angle.sin(), angle.cos(), cosines))


def lapped(x: Tensor, bands: int) -> Tensor:
    """Orthonormal lapped transform, circular over the signal: each frame takes the second part of a hop's window and the
    first part of the next one's. [B, T], T a multiple of bands (1, or even) -> [B, bands, F]."""
    if bands == 1:
        return x[:, None]
    sine, cosine, basis = lapped_basis(bands, x.dtype, x.device)
    left, right = x.unflatten(1, (-1, bands)).chunk(2, 2)
    right = right.flip(2)
    rising, falling = sine * left - cosine * right, cosine * left + sine * right
    return (torch.cat([falling.roll(-1, 1), rising], 2) @ basis).mT


def unlapped(coefficients: Tensor, exact: bool = False) -> Tensor:
    """Inverse of `lapped`, or nearly with an `exact` basis: the same on every machine for integers below 2 ** 22 in float64.
    [B, C, F] -> [B, T = C * F]."""
    bands = coefficients.shape[1]
    if bands == 1:
        return coefficients[:, 0]
    sine, cosine, basis = lapped_basis(bands, coefficients.dtype, coefficients.device, exact)
    falling, rising = (coefficients.mT @ basis.T).chunk(2, 2)
    falling = falling.roll(1, 1)
    left, right = sine * rising + cosine * falling, sine * falling - cosine * rising
    return torch.cat([left, right.flip(2)], 2).flatten(1)


def pilot_wave(weights: Tensor, like: Tensor) -> Tensor:
    """Cosine and sine of the pilot's frequency with these weights [B, 2] -> [B, T]."""
    angle = torch.arange(like.shape[1], dtype=torch.float64, device=like.device) * (2 * math.pi / PILOT_PERIOD)
    return (weights.double() @ torch.stack([angle.cos(), angle.sin()])).to(like.dtype)


def pilot_weights(x: Tensor) -> Tensor:
    """The weights [B, 2] by which `pilot_wave` comes nearest to x [B, T]."""
    basis = pilot_wave(torch.eye(2, device=x.device), x.double())
    return torch.linalg.solve(basis @ basis.T, basis @ x.double().T).T.to(x.dtype)


def power_of_two(x: Tensor) -> Tensor:
    """The nearest, on a scale of decibels; at least 2 ** -40."""
    return 2 ** x.clamp_min(2 ** -40).log2().round()


def turn(coefficients: Tensor, turned: Tensor) -> Tensor:
    """Reverse the bands of the frames that `turned` [B, 1, F] marks; its own inverse. [B, C, F] -> same."""
    return torch.where(turned, coefficients.flip(1), coefficients)


class WavINN(nn.Module):
    """The stack of couplings, behind a lapped transform where the config has more than one band.

    `hide` and `reveal` are for use, on any shape; `forward` and `inverse` are for training, on [B, T].
    `recompute(True)` trades a third more arithmetic in training for the memory of one subnet instead of all.
    """

    def __init__(self, config: Config):
        super().__init__()
        self.config = config
        self.blocks = nn.ModuleList(AffineCoupling(config) for _ in range(config.blocks))
        # The long-term level of each band, by which coefficients are divided. Speech falls by some 6 dB an octave;
        # training measures its own.
        hertz = (torch.arange(config.bands) + 0.5) * config.sample_rate / 2 / config.bands
        speech = 0.1 / (1 + (hertz / 500) ** 2) ** 0.5
        self.register_buffer("level", speech[:, None] if config.bands > 1 else torch.ones(1, 1))
        top = torch.arange(config.bands - config.swapped, config.bands).roll(config.shift)
        order = torch.cat([torch.arange(config.bands - config.swapped), top])  # in which the couplings see the cover's bands
        self.register_buffer("order", order, persistent=False)
        if config.swapped:
            self.init_swap()
        if config.robust:
            self.robust_blocks = copy.deepcopy(self.blocks)

    @property
    def revealing(self) -> nn.ModuleList:
        """The stack that reveals where r is not known: the same, or the copy that the paper's robust stage trains."""
        return self.robust_blocks if self.config.robust else self.blocks

    @torch.no_grad()
    def init_swap(self):
        """Start with the secret's low bands in the place of the cover's high ones, by linear subnets alone.

        In the last two blocks, per band: s = e s - c; then c = c + s = e s, and s = s - c = -c. All else starts at
        zero. From the identity or from random weights training has no gradient towards hiding; from here it has.
        """
        config = self.config
        for block in self.blocks:
            for subnet in (block.phi, block.rho, block.eta):
                for conv in (subnet.direct, subnet.last, subnet.gate):
                    for parameter in conv.parameters():
                        parameter.zero_()
        low = torch.arange(config.swapped)
        high = config.bands - 1 - low
        before, after = self.blocks[-2:]
        before.rho.last.bias[low] = 2 * math.atanh(math.log(config.attenuation) / config.clamp)
        before.eta.direct.weight[low, high] = -1
        after.phi.direct.weight[high, low] = 1
        after.eta.direct.weight[low, high] = -1

    def recompute(self, on: bool):
        """Keep only the subnets' inputs for the backward pass, and compute the rest of one subnet at a time again."""
        for block in [*self.blocks, *self.revealing]:
            block.phi.recompute = block.rho.recompute = block.eta.recompute = on

    def turned(self, coefficients: Tensor) -> Tensor:
        """Frames [B, 1, F] whose high bands are loud and louder than the low ones, as in an s: hiding in the low ones
        costs less there, so such frames pass the couplings with their bands in reverse order."""
        if not self.config.turn_level:
            return torch.zeros_like(coefficients[:, :1], dtype=torch.bool)
        count = max(1, self.config.bands // 3)
        low, high = (part.square().mean(1, keepdim=True) for part in (coefficients[:, :count], coefficients[:, -count:]))
        return high > low.clamp_min(self.config.turn_level ** 2)

    def transform(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            return lapped(x, self.config.bands)

    def untransform(self, coefficients: Tensor) -> Tensor:
        with torch.autocast(coefficients.device.type, enabled=False):
            return unlapped(coefficients)

    def forward(self, cover: Tensor, secret: Tensor) -> tuple[Tensor, Tensor]:
        """cover, secret [B, T], T a multiple of config.bands -> stego [B, T], r [B, bands (+ 1), F = T / bands].

        Where frames may be turned, r has a last row that tells which were; nearly always the stego tells it too.
        """
        cover, secret = self.transform(cover), self.transform(secret) / self.level
        turned = self.turned(cover)
        cover = (turn(cover, turned) / self.level)[:, self.order]
        for block in self.blocks:
            cover, secret = block(cover, secret)
        cover = turn(cover[:, self.order.argsort()] * self.level, turned)
        rows = [secret, turned.to(secret.dtype)] if self.config.turn_level else [secret]
        return self.untransform(cover), torch.cat(rows, 1)

    def inverse(self, stego: Tensor, r: Tensor, blocks: nn.ModuleList | None = None) -> tuple[Tensor, Tensor]:
        """Inverse of `forward`, or what `blocks`, such as `revealing`, make of it. Without the last row of r,
        [B, bands, F], the stego tells which frames were turned."""
        cover, secret, turned = self.transform(stego), *r.split([self.config.bands, r.shape[1] - self.config.bands], 1)
        turned = turned > 0.5 if turned.shape[1] else self.turned(cover)
        cover = (turn(cover, turned) / self.level)[:, self.order]
        for block in reversed(self.blocks if blocks is None else blocks):
            cover, secret = block.inverse(cover, secret)
        cover = turn(cover[:, self.order.argsort()] * self.level, turned)
        return self.untransform(cover), self.untransform(secret * self.level)

    def draw_z(self, stego: Tensor) -> Tensor:
        """What stands in for r, [B, bands, F], when nothing is known of it."""
        shape = len(stego), self.config.bands, stego.shape[1] // self.config.bands
        if self.config.latent == "normal":
            return torch.randn(shape, dtype=stego.dtype, device=stego.device)
        return stego.new_zeros(shape)

    @torch.no_grad()
    def hide(self, cover: Tensor, secret: Tensor) -> tuple[Tensor, Tensor]:
        """Hide a secret in a cover.

        Args:
            cover, secret: float waveforms of one shape, [T] or [B, T], any T >= 1, nominally in [-1, 1).
        Returns:
            stego: like cover; it can leave [-1, 1) where the cover comes close to it.
            r: what of cover and secret the stego does not hold, [R] or [B, R]. With it `reveal` is exact. R is T,
                or T + T // config.bands where frames may be turned.
            The last T % config.bands samples (less than a hop) make no whole frame: there stego is the cover, and r
            the secret. Where there is a pilot, r ends with what stego and cover had of its frequency.
        Raises:
            ValueError: shapes that differ or are neither [T] nor [B, T], T = 0, values that are not floating point.
        """
        _check("cover", cover)
        _check("secret", secret)
        if cover.shape != secret.shape:
            raise ValueError(f"cover {list(cover.shape)} and secret {list(secret.shape)} must have the same shape")
        whole = self._whole(cover)
        if not whole:
            return cover.clone(), secret.clone()
        x, tone = self.drop_tone(_batch(cover))  # first, or what the pilot replaces would be missed
        with torch.autocast(cover.device.type, enabled=False):
            stego, r = self(x[:, :whole], _batch(secret)[:, :whole])
        stego, own = self.add_pilot(torch.cat([stego, x[:, whole:]], 1))
        r = torch.cat([r.flatten(1), _batch(secret)[:, whole:], own, tone], 1)
        return stego.view_as(cover), r.view(*cover.shape[:-1], -1)

    @torch.no_grad()
    def reveal(self, stego: Tensor, z: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Reveal what `hide` hid.

        Args:
            stego: float waveform, [T] or [B, T], any T >= 1.
            z: in the place of r. r itself, [R] or [B, R], gives cover and secret exactly; None draws config.latent.
        Returns:
            cover, secret: like stego.
        Raises:
            ValueError: as `hide`.
        """
        _check("stego", stego)
        whole, x = self._whole(stego), _batch(stego)
        rows = self.config.bands + bool(self.config.turn_level)
        sizes = rows * (whole // self.config.bands), x.shape[1] - whole, *[2 * self.has_pilot(x)] * 2
        if z is None:
            x, tail, tone = self.take_pilot(x), torch.zeros_like(x[:, whole:]), None
        else:
            _check("z", z)
            if z.shape != (*stego.shape[:-1], sum(sizes)):
                raise ValueError(f"z {list(z.shape)} does not fit stego {list(stego.shape)}: its last size must be "
                                 f"{sum(sizes)}")
            r, tail, own, tone = _batch(z).split(sizes, 1)
            x = self.take_pilot(x, own)
        cover, secret = x[:, :0], tail[:, :0]
        if whole:
            r = self.draw_z(x[:, :whole]) if z is None else r.unflatten(1, (rows, -1))
            with torch.autocast(stego.device.type, enabled=False):
                cover, secret = self.inverse(x[:, :whole], r, self.revealing if z is None else self.blocks)
        cover = torch.cat([cover, x[:, whole:]], 1)
        if tone is not None and tone.shape[1]:
            cover = cover + pilot_wave(tone, cover)
        return cover.view_as(stego), torch.cat([secret, tail], 1).view_as(stego)

    # ------------------------------------------------ a pilot, from which reveal knows the stego's gain

    def has_pilot(self, x: Tensor) -> bool:
        return self.config.pilot > 0 and x.shape[1] >= PILOT_LEAST

    def drop_tone(self, cover: Tensor) -> tuple[Tensor, Tensor]:
        """Clear the pilot's frequency of a cover [B, T]. -> cover, what it had of it [B, 2]."""
        if not self.has_pilot(cover):
            return cover, cover[:, :0]
        tone = pilot_weights(cover)
        return cover - pilot_wave(tone, cover), tone

    def add_pilot(self, stego: Tensor) -> tuple[Tensor, Tensor]:
        """Put the pilot, whose amplitude is a power of 2, into the place of what a stego [B, T] has of its frequency.
        -> stego, that [B, 2]."""
        if not self.has_pilot(stego):
            return stego, stego[:, :0]
        own = pilot_weights(stego)
        pilot = power_of_two(self.config.pilot * stego.square().mean(1, keepdim=True).sqrt())
        return stego + pilot_wave(functional.pad(pilot, (0, 1)) - own, stego), own

    def take_pilot(self, stego: Tensor, own: Tensor | None = None) -> Tensor:
        """Inverse of `add_pilot`; or nearly, without `own`, and with a gain of up to 3 dB undone. A tone that is far below the
        level of a pilot is none."""
        if not self.has_pilot(stego):
            return stego
        found = pilot_weights(stego)
        size = found.norm(dim=1, keepdim=True)
        if own is not None:
            return stego + pilot_wave(own - functional.pad(power_of_two(size), (0, 1)), stego)
        level = self.config.pilot * stego.square().mean(1, keepdim=True).sqrt()
        gain = torch.where(size > 0.4 * level, size / power_of_two(size), 1)
        return (stego - pilot_wave(found, stego)) / gain

    def _whole(self, x: Tensor) -> int:
        return x.shape[-1] // self.config.bands * self.config.bands

    def fingerprint(self) -> int:
        """A checksum of the weights."""
        return fingerprint([x.detach().flatten().float() for x in self.state_dict().values()])

    def save(self, path: str | os.PathLike, **extra):
        """Write config and weights (and `extra`, of plain types) to a file that `load` reads. Never half-written."""
        with replacing(path) as temporary:
            torch.save({"wavinwav": 1, "config": asdict(self.config), "state_dict": self.state_dict()} | extra, temporary)


# ---------------------------------------------------------------- the header and the seal of a stego, for models of both kinds

FIELDS = struct.Struct(">4sQQIHB")  # a magic word, and what `Header` has
MAGIC = b"WIW4"  # changes with anything that a decoder must know, such as the size of parts
NONCE, CHECK, TAG = 12, 4, 16  # bytes
HEADER_SAMPLES = 4 * (NONCE + FIELDS.size + CHECK)  # the lowest two bits of the first samples
SEAL_SAMPLES = 4 * TAG  # and of the last


class NoSecret(ValueError):
    """There is no header that this key opens."""


class OtherModel(ValueError):
    """The secret was hidden with another model."""


class Damaged(ValueError):
    """The stego is not what `hide` made."""


class Cipher:
    """A stream cipher: SHAKE-256 over a key, which scrypt (RFC 7914) makes of a passphrase, and a nonce, which is new for
    every stego. Without a passphrase the key is public: then it hides nothing."""

    def __init__(self, key: str | bytes | None = None, nonce: bytes | None = None):
        key = key.encode() if isinstance(key, str) else key
        self.keyed = bool(key)
        self.nonce = nonce or (os.urandom(NONCE) if self.keyed else bytes(NONCE))
        self.root = b"WavInWav"
        if self.keyed:
            self.root = hashlib.scrypt(key, salt=self.nonce, n=1 << 15, r=8, p=1, maxmem=1 << 26, dklen=32)

    def stream(self, purpose: bytes, count: int) -> bytes:
        """`count` bytes, other ones for each purpose (bytes that end in 0, so that none begins as another one does)."""
        return hashlib.shake_256(self.root + self.nonce + purpose).digest(count)

    def words(self, purpose: bytes, count: int) -> Tensor:
        """`count` words of 32 bits."""
        stream = self.stream(purpose, 4 * count)
        return torch.frombuffer(bytearray(stream), dtype=torch.int32).long() & 0xFFFFFFFF if count else torch.zeros(0).long()

    def seal(self):
        """A keyed hash (BLAKE2b) with update(raw(samples)) for the samples of a stego, all in turn, of which the last
        SEAL_SAMPLES have zeros for the lowest two bits: its digest(), of TAG bytes, is what belongs there."""
        return hashlib.blake2b(key=self.stream(b"seal\0", 32), digest_size=TAG)

    def seal_of(self, pieces: Iterable[Tensor], last: Tensor) -> bytes:
        """The seal of a stego: of its samples, piece by piece, and of the last SEAL_SAMPLES, which hold it."""
        seal = self.seal()
        for piece in pieces:
            seal.update(raw(piece))
        seal.update(raw(last & ~3))
        return seal.digest()


def raw(samples: Tensor) -> memoryview:
    """Integers [n], on the CPU, as 4 bytes each."""
    samples = samples.to(torch.int32).contiguous()
    content = (ctypes.c_char * (4 * len(samples))).from_address(samples.data_ptr())
    content.owner = samples  # which keeps the memory
    return memoryview(content)


def write_bits(samples: Tensor, content: bytes):
    """Put bytes into the lowest two bits of samples, integers [4 len(content)], in place."""
    bits = torch.tensor(list(content))[:, None] >> torch.arange(0, 8, 2) & 3
    samples.copy_(samples & ~3 | bits.flatten().to(samples.dtype))


def read_bits(samples: Tensor) -> bytes:
    """Inverse of `write_bits`."""
    return bytes(((samples & 3).view(-1, 4) << torch.arange(0, 8, 2)).sum(1).tolist())


class Part(NamedTuple):
    """A part of a secret, and where it is hidden. Parts know nothing of each other."""
    index: int
    secret: slice  # of frames: samples in each channel
    samples: slice  # of the stego
    segments: slice  # the same, in segments


@dataclass
class Header:
    """What reveal needs to know of a stego before all else. Enciphered, with a checksum, in the first samples; the
    last ones hold the seal."""

    samples: int  # of the stego, in all channels together
    length: int  # of the secret, samples in each channel
    model: int  # its fingerprint
    bands: int = 0  # of a lattice's lapped transform; 0 is an affine model
    channels: int = 1  # of the secret

    def pack(self, cipher: Cipher) -> bytes:
        fields = FIELDS.pack(MAGIC, self.samples, self.length, self.model, self.bands, self.channels)
        fields += cipher.stream(b"check\0" + fields, CHECK)
        return cipher.nonce + _xor(fields, cipher.stream(b"header\0", len(fields)))

    @classmethod
    def read(cls, samples: Tensor, key: str | bytes | None, model: int) -> tuple["Header", Cipher]:
        """The header of a stego [n], integers, and the cipher of what comes after it. Raises NoSecret, OtherModel."""
        content = read_bits(functional.pad(samples[:HEADER_SAMPLES], (0, max(0, HEADER_SAMPLES - len(samples)))))
        cipher = Cipher(key, content[:NONCE])
        fields = _xor(content[NONCE:], cipher.stream(b"header\0", len(content) - NONCE))
        fields, check = fields[:-CHECK], fields[-CHECK:]
        magic, *values = FIELDS.unpack(fields)
        if magic != MAGIC or cipher.stream(b"check\0" + fields, CHECK) != check:
            raise NoSecret("there is no secret, or the key is another, or the beginning was changed or cut off")
        header = cls(*values)
        if header.model != model:
            raise OtherModel("the secret was hidden with another model")
        if not (0 < header.length <= header.samples and 1 <= header.channels <= 2 and header.bands % 128 == 0
                and header.bands <= 8192 and header.samples >= HEADER_SAMPLES + SEAL_SAMPLES):
            raise NoSecret("the header makes no sense")
        return header, cipher

    def write(self, samples: Tensor, cipher: Cipher):
        """Put the header and the seal into a whole stego [n], integers, in place."""
        write_bits(samples[:HEADER_SAMPLES], self.pack(cipher))
        write_bits(samples[-SEAL_SAMPLES:], cipher.seal_of(samples[:-SEAL_SAMPLES].split(CHUNK), samples[-SEAL_SAMPLES:]))

    def verify(self, count: int, seal: bytes, last: Tensor):
        """Raises Damaged if a stego of `count` samples, this seal and these last samples is not what was made."""
        if count < self.samples:
            raise Damaged(f"it was cut: {count} of {self.samples} samples are left")
        if count > self.samples or read_bits(last) != seal:
            raise Damaged("it was changed after it was made")

    def parts(self) -> list[Part]:
        """Where a lattice model hides the secret."""
        segments = (self.samples - HEADER_SAMPLES - SEAL_SAMPLES) // SEGMENT
        count = 2 * math.ceil(segments / PART / 2) if segments > 0.4 * PART else 1  # as many for each of two cores
        share = math.ceil(self.length / count)
        return [Part(i, slice(min(self.length, i * share), min(self.length, i * share + share)),
                     slice(HEADER_SAMPLES + first * SEGMENT, HEADER_SAMPLES + last * SEGMENT), slice(first, last))
                for i in range(count) for first, last in [(i * segments // count, (i + 1) * segments // count)]]


def _xor(a: bytes, b: bytes) -> bytes:
    return bytes(x ^ y for x, y in zip(a, b))


def fingerprint(tensors: list[Tensor]) -> int:
    """A checksum of tensors of 4 bytes an element, or of integers below 2 ** 31."""
    check = 0
    for x in tensors:
        check = zlib.crc32(raw(x.view(torch.int32) if x.dtype == torch.float32 else x), check)
    return check


# ---------------------------------------------------------------- the lattice preset, for files that stay what they are

BLOCK_FRAMES = 256  # about, in a block, which is decoded without the others: 4 seconds
GROUPS = (0, 4), (2, 4), (1, 2)  # first band and spacing: every frame is decoded in three groups of bands
HISTORY = (1, 5), (2, 3), (3, 1)  # frames ago, and the bands to each side in them, that a coefficient's scale depends on
PRESENT = (), (-6, -2, 2, 6), (-7, -5, -3, -1, 1, 3, 5, 7)  # bands of its own frame, in the groups decoded before its own
EDGE = 8  # empty bands at both ends of a frame for these to reach into
PROBE = 24  # blocks on which the step is searched: their first frames, where there are more
CHUNK = 1 << 16  # samples, about, that are worked on together
FEW = 8  # blocks that are transformed together
PIECE = 16  # steps of the coders whose tables are looked up together
BIN = 16  # neighbouring bands that share a step
PRECISION = 14  # bits of the coder's probabilities
SHAPES = 32  # distributions in its tables: quarter octaves of scale, from 1/32 to 8 steps
CLASSES = SHAPES + 64  # scales; above 8 steps, 1 to 16 low bits of a magnitude are coded as they are
SYMBOLS = 128  # magnitudes, without these low bits, in a table; the last one is an escape to any below 2 ** 30
LOWEST = 1 << 31  # a coder's state lies from here to 2 ** 63, and a word of 32 bits is moved to keep it there
RESIDUAL = 14  # the class of what is left over when a lossless block's samples have been rounded
# Numbers for operations on a few thousand elements, which take as long as making a tensor of a Python number does.
ONE, OCTAVE, BIAS = torch.tensor(1.0), torch.tensor(20, dtype=torch.int32), torch.tensor(127 << 3, dtype=torch.int32)
WORD = torch.tensor(32)  # bits
FAVOUR = 0.3 - torch.arange(CLASSES).clamp(max=24) / 80  # by how much rounding for the ear favours larger magnitudes, by class
SEGMENT = 512  # samples that share a width of cells, which the lowest two bits of the first three tell
CODES = 3
PART = 10240  # segments at most that hold a part of the secret, worked on at once and without the others: 5 minutes at 16 kHz
WIDTHS = [round(2 ** (code / 4)) for code in range(4, 4 + (1 << 2 * CODES))]  # from 2, in quarter octaves
LEAST_SAMPLES = HEADER_SAMPLES + SEAL_SAMPLES + SEGMENT  # of a cover
MASKING = 0.25  # the stego's noise power in a segment is proportional to this power of the cover's
STEGO_SNR = 52.0  # dB, of a lattice model's stego unless another is asked for


class LatticeCoupling(nn.Module):
    """Additive coupling on a lattice of integers: the secret takes the cover's place within a cell. Any shape.

    r = wrap(secret - cover); stego = cover + r. So stego = secret modulo the cell's width, the secret does not depend
    on r, and the distortion is (width ** 2 - 1) / 12 whatever the cover is: dirty-paper coding (Costa 1983) by
    quantisation index modulation (Chen and Wornell 2001). Where that leaves the range, the neighbouring cell is taken.
    """

    def forward(self, cover: Tensor, secret: Tensor, width: int, limit: int = 32768) -> tuple[Tensor, Tensor]:
        """cover in [-limit, limit), secret in [0, width) -> stego in [-limit, limit), r."""
        stego = cover + (secret - cover + width // 2) % width - width // 2
        stego = torch.where(stego < -limit, stego + width, torch.where(stego >= limit, stego - width, stego))
        return stego, stego - cover

    def inverse(self, stego: Tensor, r: Tensor, width: int) -> tuple[Tensor, Tensor]:
        return stego - r, stego % width


def _straight_through(x: Tensor, value: Tensor) -> Tensor:
    return x + (value - x).detach()


class ScaleNet(nn.Module):
    """Predicts the scale of coefficients from the sizes of those decoded before, by one hidden layer.

    Weights and activations are integers of 8 bits: every product and sum is exact in float32, in any order, even where
    the hardware multiplies in bfloat16, so all machines agree. Training rounds with a straight-through gradient.
    """

    def __init__(self, inputs: int, hidden: int, bands: int):
        super().__init__()
        self.hidden = nn.Parameter(0.15 * torch.randn(hidden, inputs))
        self.hidden_bias = nn.Parameter(0.3 * torch.randn(hidden, bands, 1))
        self.hidden_step = nn.Parameter(torch.zeros(hidden, 1, 1))
        self.direct = nn.Parameter(torch.full((1, inputs), 0.7 / inputs))
        self.out = nn.Parameter(0.1 * torch.randn(1, hidden))
        self.bias = nn.Parameter(torch.zeros(bands, 1))
        self.step = nn.Parameter(torch.zeros(1, 1))

    def integers(self, band: Tensor, step: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """For bands [K] and steps [N], in eighths of an octave: weights of the hidden layer, after those that lead past it [1 +
        hidden, inputs]; biases of both [1 + hidden, K * N]; weights of the result [1, hidden]. In 1/128, biases in 1/1024;
        then divided by 32 in the hidden layer and by 256 elsewhere, which makes the result one in quarter octaves."""
        w = {}
        for name, p in self.named_parameters():
            unit, bound = (1024, 65536) if "bias" in name else (128, 127)
            w[name] = _straight_through(p * unit, (p * unit).round().clamp(-bound, bound))
        hidden_bias = w["hidden_bias"][:, band] + w["hidden_step"] * step
        bias = (w["bias"][band] + w["step"] * step).flatten()
        return (torch.cat([w["direct"] / 256, w["hidden"] / 32]), torch.cat([bias[None] / 256, hidden_bias.flatten(1) / 32]),
                w["out"] / 256)

    def forward(self, integers: tuple[Tensor, Tensor, Tensor], x: Tensor) -> Tensor:
        """Log sizes x [inputs, K * N] in eighths of an octave, and `integers` -> log2 of the scale in quarter octaves [1, K *
        N]."""
        weights, bias, out = integers
        x = torch.addmm(bias, weights, x)
        h = x[1:]
        h = _straight_through(h, h.floor()).clamp(0, 255) if h.requires_grad else h.floor_().clamp_(0, 255)
        return torch.addmm(x[:1], out, h)


def _log_size(magnitude: Tensor) -> Tensor:
    """8 log2(1 + x), linear within octaves, rounded down, at most 255: the same integer on every machine, since it is
    what a float32's exponent and first three bits spell."""
    return (magnitude.float() + ONE).view(torch.int32).bitwise_right_shift_(OCTAVE).sub_(BIAS).clamp_(max=255)


@functools.lru_cache
def _neighbours(bands: int) -> Tensor:
    """By how much the sizes in each bin count for the steps of each, [bins, bins]."""
    return 5 * BIN + 3 * bands * torch.eye(bands // BIN, dtype=torch.float64)


def _step_exponent(sizes: Tensor, bands: int, shaping: Tensor | int) -> Tensor:
    """How far the steps of each bin of 16 bands rise above the file's, in eighths of an octave, where the sizes decoded
    last [n, N] are large: 5/8 by the frame's mean log size, 3/8 by the bin's. -> whole numbers [bins, N], float64"""
    bins = sizes.view(bands // BIN, -1, sizes.shape[-1]).sum(1).double()
    level = 2048 * bands * (len(sizes) * BIN // bands)
    return (_neighbours(bands) @ bins).mul_(shaping).div_(level, rounding_mode="floor")


class Lattice(nn.Module):
    """Hide in PCM samples that stay what they are, bit for bit, close to all that information theory lets them hold.

    The secret's lapped coefficients are quantised; their scales are predicted from those before them (`ScaleNet`); an
    entropy coder (interleaved range asymmetric numeral systems, Duda 2013) turns them into digits; `LatticeCoupling`
    puts a digit into each sample of the cover. An integer discrete flow (Hoogeboom et al. 2019), except for the
    quantisation of the secret, and lossless altogether where there is room. Runs on the CPU.

    Shapes: N blocks of about 4 s, F frames in a block, M bands (config.bands at config.sample_rate, and in proportion at
    other rates), K bands of a group, L = M / 8 coders that take turns in a block. Sizes and steps count in PCM units of
    16 bits.
    """

    def __init__(self, config: Config):
        super().__init__()
        self.config = config
        self.coupling = LatticeCoupling()
        past = sum(2 * reach + 1 for _, reach in HISTORY)
        self.scales = nn.ModuleList(ScaleNet(past + len(present), config.growth, config.bands) for present in PRESENT)
        # The distribution that training maximises: two Laplacians and a normal one. Coding uses tables counted after it.
        self.weights, self.spread = nn.Parameter(torch.zeros(3)), nn.Parameter(torch.tensor([0.0, 1.2, 0.0]))
        self.register_buffer("level", torch.full((config.bands,), 48))  # 8 log2 of the long-term size: before the first frame
        self.register_buffer("frequency", torch.zeros(SHAPES, SYMBOLS, dtype=torch.int32))  # of the symbols, in 1 / 2 ** 14
        self.register_buffer("shrink", torch.zeros(CLASSES))  # from a rounded magnitude to the mean of those rounded to it
        self.set_tables(torch.zeros(SHAPES, SYMBOLS))

    # ------------------------------------------------ training

    def likelihood(self, magnitude: Tensor, log_scale: Tensor) -> Tensor:
        """Probability of an integer's magnitude (with either sign) at a scale exp(log_scale)."""
        weights, scales = self.weights.softmax(0), [torch.exp(log_scale + spread) for spread in self.spread]
        inner, outer = (magnitude - 0.5).abs(), magnitude + 0.5
        zero = magnitude == 0
        total = 0
        for weight, scale in zip(weights, scales[:2]):
            below = torch.where(zero, 1, torch.exp(-inner / scale))
            total = total + weight * (below - torch.exp(-outer / scale))
        normal = torch.erf(outer / scales[2] * 0.5 ** 0.5) - torch.where(zero, 0, torch.erf(inner / scales[2] * 0.5 ** 0.5))
        return total + weights[2] * normal

    def forward(self, secret: Tensor, step: Tensor, shaping: Tensor) -> Tensor:
        """Bits a sample of secrets [N, T] (PCM units of 16 bits, T a multiple of M) under steps of 2 ** (step / 64) and
        shapings in 1/256, integers [N]. Steps follow the sizes before quantisation here: all frames at once. -> [N]"""
        coefficients = lapped(secret, self.config.bands).permute(2, 1, 0)  # [F, M, N]
        frames, bands, blocks = coefficients.shape
        before = (self.level[:, None] - step // 8).clamp(0, 255).expand(3, -1, -1)
        sizes = _log_size(coefficients.abs() / 2 ** (step / 64))
        for _ in range(2):
            decoded = torch.cat([before[:1], sizes[:-1]]), sizes[:, ::4]
            last, own = (_step_exponent(x.transpose(0, 1).flatten(1), bands, shaping.repeat(frames)).float()
                         .view(-1, frames, blocks).transpose(0, 1) for x in decoded)
            exponent = torch.stack([last, own, own, own], 2)[:, :, None].expand(-1, -1, BIN // 4, -1, -1).flatten(1, 3)
            unit = 2 ** (exponent / 8)
            magnitude = (coefficients / (2 ** (step / 64) * unit)).round().abs()
            sizes = _log_size(magnitude * unit)
        sizes = functional.pad(torch.cat([before, sizes]), (0, 0, EDGE, EDGE))
        total = 0
        for group, (start, spacing) in enumerate(GROUPS):
            x = [sizes[3 - ago:3 - ago + frames, EDGE + start + band:EDGE + bands + band:spacing]
                 for ago, band in _context(group)]
            x = torch.stack(x)[:, :, :bands // spacing].transpose(1, 2).flatten(1)
            net = self.scales[group]
            log_scale = net(net.integers(torch.arange(start, bands, spacing), (step // 8).repeat(frames)), x.float())
            log_scale = log_scale.view(-1, frames, blocks) - exponent[:, start::spacing].transpose(0, 1) / 2
            own = magnitude[:, start::spacing].transpose(0, 1)
            likelihood = self.likelihood(own, (log_scale / 4).clamp(-6, 17) * math.log(2))
            total = total - torch.log2(likelihood.clamp_min(1e-9)).sum((0, 1)) + (own > 0).sum((0, 1))
        return total / (frames * bands)

    @torch.no_grad()
    def measure(self, samples: list[tuple[Tensor, int, int]]):
        """Count the coder's tables, and how far magnitudes shrink, on (secrets [N, T], step, shaping) as in `forward`.
        To be called after training."""
        counts = torch.zeros(SHAPES * SYMBOLS)
        excess, number = torch.zeros(2, CLASSES)
        self.shrink.zero_()
        for secrets, step, shaping in samples:
            coefficients = self.analyse(secrets, self.config.bands)
            classes, integers, units = self.quantise(coefficients, step, shaping)
            decoded = self.dequantise(classes, integers, units)
            classes, magnitude = (self.order(x, decoded.shape[1]).long() for x in (classes, integers.abs()))
            low = _low_bits(classes)
            symbol = (magnitude >> low).clamp(max=SYMBOLS - 1)
            counts += ((classes - 4 * low) * SYMBOLS + symbol).flatten().bincount(minlength=len(counts))
            coded = magnitude > 0
            classes, magnitude = classes[coded], magnitude[coded]
            excess.index_add_(0, classes, magnitude * (1 - coefficients[coded].abs() / decoded[coded].abs()))
            number += classes.bincount(minlength=CLASSES)
        self.set_tables(counts.view(SHAPES, SYMBOLS))
        self.shrink.copy_(excess / (number + 100))

    @torch.no_grad()
    def set_tables(self, counts: Tensor):
        """Tables from counts [SHAPES, SYMBOLS], smoothed by what training maximised; rarer symbols are left to the escape."""
        log_scale = ((torch.arange(SHAPES) + 0.5) / 4 - 5) * math.log(2)
        prior = self.likelihood(torch.arange(SYMBOLS), log_scale[:, None]).clamp_min(0)
        share = counts.double() + 200 * prior
        share = share / share.sum(1, keepdim=True) * (1 << PRECISION)
        frequency = torch.where(share < 0.4, 0, share.round().clamp_min(1)).long()
        frequency[:, -1] = frequency[:, -1].clamp_min(1)
        most = frequency.argmax(1, keepdim=True)
        frequency.scatter_add_(1, most, (1 << PRECISION) - frequency.sum(1, keepdim=True))  # never all: the escape has one
        self.frequency.copy_(frequency)

    # ------------------------------------------------ quantisation and context

    def walk(self, classes: Tensor, integers: Tensor, step: int, shaping: int, code) -> Tensor:
        """Visit the coefficients in the order of the stream and fill in classes (uint8) and integers (int32) [F, M, N], each
        frame group by group. `code(frame, group, classes, steps)` is given what is known before it, [K, N] and [bins, 1, N],
        and returns integers (float32) [K, N]. Encoder and decoder share every line of this. -> the steps of group 0 and of
        the other two [F, 2, bins, 1, N]"""
        frames, bands, blocks = integers.shape
        span, step_size = bands + 2 * EDGE, 2 ** (step / 64)
        window = torch.zeros(4 * span, blocks)  # log sizes of this frame and the last three, in turns
        rows = window.view(4, span, blocks)[:, EDGE:-EDGE]
        band = torch.arange(bands).clamp(max=self.config.bands - 1)
        rows.copy_((self.level[band] - step // 8).clamp(0, 255)[:, None])
        power = torch.tensor([2 ** (exponent / 8) for exponent in range(256)])
        steps = torch.full((frames, 2, bands // BIN, 1, blocks), step_size)
        unit = power[:1]  # without shaping
        nets = []
        for net, (start, spacing) in zip(self.scales, GROUPS):
            weights, bias, out = net.integers(band[start::spacing], torch.full((blocks,), step // 8))
            bias[0] += 20  # class 0 is a scale of 1/32
            places = [torch.cat([(row - ago) % 4 * span + EDGE + offset + torch.arange(start, bands, spacing)
                                 for ago, offset in _context(len(nets))]) for row in range(4)]
            nets.append((net, (weights, bias, out), places, rows[:, start::spacing].unbind()))
        before = [rows[row - 1] for row in range(4)], rows[:, ::4].unbind()  # what the steps follow
        classes, integers = ([part.unbind() for part in x.split(_group_sizes(bands), 1)] for x in (classes, integers))
        for frame, row in zip(range(frames), itertools.cycle(range(4))):
            for group, (net, weights, places, sizes) in enumerate(nets):
                x = window.index_select(0, places[row])
                scale = net.forward(weights, x.view(weights[0].shape[1], -1)).view(bands // BIN, -1, blocks)
                if shaping:
                    if group < 2:
                        exponent = _step_exponent(before[group][row], bands, shaping)[:, None]
                        unit, lower = _look_up(power, exponent.long()), exponent / 2
                        torch.mul(unit, step_size, out=steps[frame, group])
                    scale.sub_(lower)
                found = scale.view(-1, blocks).clamp_(0, CLASSES - 1).long()
                values = code(frame, group, found, steps[frame, min(group, 1)])
                classes[group][frame].copy_(found)
                integers[group][frame].copy_(values)
                sizes[row].copy_(_log_size(values.abs_().view(bands // BIN, -1, blocks).mul_(unit)).view(-1, blocks))
        return steps

    def quantise(self, coefficients: Tensor, step: int, shaping: int) -> tuple[Tensor, Tensor, Tensor]:
        """Coefficients [F, M, N] -> classes (uint8) and integers (int32), [8 F, L, N] in the order of the stream, and the
        steps, see `walk`."""
        frames, bands, blocks = coefficients.shape
        classes, integers = (torch.empty(frames, bands, blocks, dtype=kind) for kind in (torch.uint8, torch.int32))
        bins = coefficients.view(frames, -1, BIN, blocks)
        groups = [bins[:, :, start::spacing].unbind() for start, spacing in GROUPS]

        def code(frame, group, found, steps):
            values = (groups[group][frame] / steps).view(-1, blocks)
            if shaping:  # fewer holes in the spectrum, which the ear minds more than the SNR does
                values.add_(_look_up(FAVOUR, found).copysign_(values))
            return values.round_()

        steps = self.walk(classes, integers, step, shaping, code)
        return classes.view(-1, bands // 8, blocks), integers.view(-1, bands // 8, blocks), steps

    def dequantise(self, classes: Tensor, integers: Tensor, steps: Tensor, centred: bool = True) -> Tensor:
        """What `quantise` or decoding gave -> coefficients [F, M, N]: the means of what is rounded to these integers in these
        classes, if `centred`."""
        frames, _, bins, _, blocks = steps.shape
        result = torch.empty(frames, bins * BIN, blocks)
        pieces = (x.view(frames, -1, blocks).split(FEW) for x in (classes, integers, result))
        for classes, integers, place, steps in zip(*pieces, steps.split(FEW)):
            values = integers.float()
            if centred:
                values.sub_(_look_up(self.shrink, classes.int()).mul_(values.sign()))
            for group, part in enumerate(values.split(_group_sizes(bins * BIN), 1)):
                part.view(len(steps), bins, -1, blocks).mul_(steps[:, min(group, 1)])
            place.copy_(self.order(values, bins * BIN))
        return result

    def order(self, x: Tensor, bands: int) -> Tensor:
        """From the order of the stream, [S, L, N], to [F, M, N]."""
        first, second, third = x.view(-1, bands, x.shape[-1]).split(_group_sizes(bands), 1)
        return torch.stack([first, third[:, ::2], second, third[:, 1::2]], 2).flatten(1, 2)

    # ------------------------------------------------ entropy coding

    def split(self, classes: Tensor, integers: Tensor) -> tuple[Tensor, Tensor]:
        """What codes an integer of a class: its place in the tables, and its number of low bits. Any shape, int32."""
        low = _low_bits(classes)
        symbol = (integers.abs() >> low).clamp_(max=SYMBOLS - 1)
        return symbol.add_(classes, alpha=SYMBOLS).add_(low, alpha=-4 * SYMBOLS), low

    def escapes(self) -> tuple[Tensor, Tensor]:
        """For each place in the tables, the one that codes it, and the least number of low bits: 30 for an escape."""
        place = torch.arange(SHAPES * SYMBOLS)
        escape = (self.frequency.flatten() == 0) | (place % SYMBOLS == SYMBOLS - 1)
        return torch.where(escape, place | SYMBOLS - 1, place), 30 * escape

    def cost(self, classes: Tensor, integers: Tensor) -> Tensor:
        """Bits that coding each of the integers takes, less the coders' ends. Any shape."""
        place, low = self.split(classes.int(), integers)
        coded, least = self.escapes()
        rarity = (PRECISION - self.frequency.flatten().clamp_min(1).log2())[coded]
        return rarity[place] + torch.maximum(low, least[place]) + (integers != 0)

    def encode(self, classes: Tensor, integers: Tensor) -> list[Tensor]:
        """[S, L, N] -> for each block, words of 32 bits: the coders' states, then what they need in turn."""
        coded, least = self.escapes()
        starts = self.frequency.cumsum(1) - self.frequency
        table = least | (self.frequency.flatten()[coded].long() << 16) | (starts.flatten()[coded] << 32)
        state = torch.full(classes.shape[1:], LOWEST)
        # Filled from the end: what is coded last is decoded first. Twice in a step where there is an escape.
        words, moved = (torch.empty(2 * len(classes), *state.shape, dtype=kind) for kind in (torch.int32, torch.bool))
        rows = list(zip(words, moved))

        def spill(most):
            place, full = rows.pop()
            place.copy_(state)  # the low 32 bits
            state.bitwise_right_shift_(torch.ge(state, most, out=full) * WORD)

        for classes, integers in zip(classes.split(PIECE)[::-1], integers.split(PIECE)[::-1]):
            place, low = self.split(classes.int(), integers)
            found = _look_up(table, place)
            least = found & 31
            low = torch.maximum(low, least.int())
            magnitude, beyond = integers.abs(), 1 << low
            raw = torch.where(integers < 0, beyond, 0).add_(magnitude & beyond - 1).long()  # the sign above the low bits
            width = magnitude.clamp_(max=1).add_(low).long()
            frequency, start = found >> 16 & 0xFFFF, found >> 32
            escapes = least.flatten(1).any(1).tolist()
            most = frequency << 63 - PRECISION - width  # what it needs room for
            if any(escapes):
                most = torch.where(least > 0, 1 << 63 - width, most)
            columns = most, width, raw, frequency, (1 << PRECISION) - frequency, start
            for place, columns in reversed(list(enumerate(zip(*columns)))):
                most, width, raw, frequency, rest, start = columns
                spill(most)
                state.bitwise_left_shift_(width).add_(raw)
                if escapes[place]:
                    spill(torch.where(least[place] > 0, frequency << 63 - PRECISION, 2 ** 63 - 1))  # which none reaches
                state.addcmul_(state.div(frequency, rounding_mode="trunc"), rest).add_(start)
        states, streams = torch.cat([state >> 32, state]).int().T, []
        for few in zip(*(x[len(rows):].permute(2, 0, 1).split(FEW) for x in (words, moved))):
            streams += [words[moved] for words, moved in zip(*(x.contiguous() for x in few))]
        return [torch.cat(pair).long() & 0xFFFFFFFF for pair in zip(states, streams)]

    def decoder(self, streams: list[Tensor], lanes: int):
        """Inverse of `encode`: a function from classes [S * L, N] to the integers that come next."""
        position = torch.tensor([0] + [len(stream) for stream in streams]).cumsum(0)[:-1] + 2 * lanes - 1
        stream = torch.cat([*streams, torch.zeros(lanes, dtype=torch.long)])
        high, lower = torch.stack([words[:2 * lanes] for words in streams], 1).split(lanes)
        state = (high << 32) + lower
        frequency = self.frequency.flatten().long()
        start = (self.frequency.cumsum(1) - self.frequency).flatten()
        place = torch.arange(len(frequency)).repeat_interleave(frequency)  # of each slot of each table
        slot = torch.arange(SHAPES << PRECISION) % (1 << PRECISION)
        low_bits = _low_bits(torch.arange(CLASSES))
        tables = torch.arange(CLASSES) - 4 * low_bits << PRECISION
        lookup = place % SYMBOLS << 32 | frequency[place] << 16 | slot - start[place]
        precision, slots, lowest, sixteen, below = map(
            torch.tensor, (PRECISION, (1 << PRECISION) - 1, LOWEST, 16, (1 << 16) - 1))  # as WORD

        def refill(lacking):
            nonlocal state, position
            rank = lacking.cumsum(0).add_(position)
            state = torch.where(lacking, (state << WORD).add_(_look_up(stream, rank)), state)
            position = rank[-1]

        def decode(classes):
            nonlocal state
            lows, starts = _look_up(low_bits, classes), _look_up(tables, classes)
            magnitudes, signs = [], []
            for low, table in zip(lows.split(lanes), starts.split(lanes)):
                found = _look_up(lookup, (state & slots).add_(table))
                symbol = found >> WORD
                offset = found & below
                state = (state >> precision).mul_(found.bitwise_right_shift_(sixteen).bitwise_and_(below)).add_(offset)
                if symbol.max().item() == SYMBOLS - 1:
                    escape = symbol == SYMBOLS - 1
                    refill(escape & (state < lowest))
                    symbol, low = symbol.masked_fill(escape, 0), low.masked_fill(escape, 30)
                rest = state >> low
                magnitude = symbol.sub_(rest).bitwise_left_shift_(low).add_(state)  # the low bits are those of the state
                signed = magnitude.clamp(max=1)
                magnitudes.append(magnitude)
                signs.append(rest & signed)
                state = rest.bitwise_right_shift_(signed)
                refill(state < lowest)
            negative = torch.cat(signs).neg_()
            return torch.cat(magnitudes).bitwise_xor_(negative).sub_(negative)

        return decode

    # ------------------------------------------------ a secret as words

    def shape_of(self, length: int, bands: int) -> tuple[int, int]:
        """Frames of a block, and blocks, for a secret of `length` samples."""
        frames = math.ceil(length / bands)
        blocks = max(1, round(frames / BLOCK_FRAMES))
        return math.ceil(frames / blocks), blocks

    def analyse(self, secret: Tensor, bands: int) -> Tensor:
        """Samples [N, T] -> coefficients [F, M, N]."""
        return torch.cat([lapped(x.double(), bands).float().permute(2, 1, 0) for x in secret.split(FEW)], 2)

    def synthesise(self, coefficients: Tensor, exact: bool = True) -> Tensor:
        """[F, M, N] -> samples [N, T] in float64, the same on every machine for integers below 2 ** 22; or faster, in float32,
        which is good enough to measure with."""
        kind = torch.float64 if exact else torch.float32
        return torch.cat([unlapped(x.to(kind).permute(2, 1, 0), exact=exact) for x in coefficients.split(FEW, 2)])

    def compress(self, secret: Tensor, coefficients: Tensor, step: int, shaping: int, lossless: bool, rotated: bool
                 ) -> tuple[list[Tensor], tuple[Tensor, Tensor, Tensor]]:
        """A secret [S, C], whose blocks have these coefficients, as the words of each block, and what `quantise` gave."""
        frames, bands, blocks = coefficients.shape
        classes, integers, steps = found = self.quantise(coefficients, step, shaping)
        if lossless:
            nearly = self.synthesise(self.dequantise(*found, centred=False))
            nearly = (_rotate(nearly) if rotated else nearly).round_()
            rest = (_blocks(secret, frames * bands, blocks // secret.shape[1]).double() - nearly).int().T
            rest = rest.reshape(-1, bands // 8, blocks)
            classes = torch.cat([classes, torch.full_like(rest, RESIDUAL, dtype=torch.uint8)])
            integers = torch.cat([integers, rest])
        return self.encode(classes, integers), found

    def decompress(self, streams: list[Tensor | None], length: int, channels: int, bands: int, step: int, shaping: int,
                   lossless: bool, rotated: bool) -> Tensor:
        """Inverse of `compress`: [S, C] in float64. A block without a stream comes out silent."""
        frames, blocks = self.shape_of(length, bands)
        secret = torch.zeros(channels * blocks, frames * bands, dtype=torch.float64)
        good = [block for block, stream in enumerate(streams) if stream is not None]
        rest = 0
        if good:
            decode = self.decoder([streams[block] for block in good], bands // 8)
            classes, integers = (torch.empty(frames, bands, len(good), dtype=kind) for kind in (torch.uint8, torch.int32))
            steps = self.walk(classes, integers, step, shaping, lambda frame, group, found, steps: decode(found).float())
            found = self.synthesise(self.dequantise(classes, integers, steps, centred=not lossless))
            secret = found if len(good) == len(streams) else secret.index_copy(0, torch.tensor(good), found)
            rest = decode(torch.full((frames * bands, len(good)), RESIDUAL)).T if lossless else 0
        secret = _rotate(secret) if rotated else secret
        if lossless:
            secret = secret.round_()
            secret[good] += rest
        return secret.view(channels, -1)[:, :length].T

    def fit(self, secret: Tensor, bands: int, words: int, shaping: int | None
            ) -> tuple[dict, list[Tensor], tuple[Tensor, Tensor, Tensor]]:
        """The finest form of a secret [S, C] that fits, with its table, into this number of words: what `decompress` needs to
        be told, and what `compress` gave. Without a given shaping, steps follow the signal the more, the fewer bits there are.
        Raises ValueError if there is no room."""
        frames, blocks = self.shape_of(len(secret), bands)
        rotated = _correlated(secret)
        padded = _blocks(secret, frames * bands, blocks)
        coefficients = self.analyse(_rotate(padded) if rotated else padded, bands)
        blocks, total = len(padded), padded.numel()
        room = words - 1 - 3 * blocks
        budget = 32 * (room - blocks * 3 * bands // 16) / total  # bits a coefficient; the coders' ends take 48 bits each
        budget *= 1 if blocks <= PROBE else 0.991  # a margin for what is not probed
        if shaping is None:
            shaping = round(256 * min(0.6, max(0.0, 1.12 - 0.19 * budget)))
        thin = coefficients[::math.ceil(frames * blocks / 2048)]
        probe = coefficients if blocks <= PROBE else coefficients[:40, :, torch.linspace(0, blocks - 1, PROBE).long()]
        settled = slice(0 if blocks <= PROBE else 4, None)  # what comes first in a block costs more

        def features(x, step):
            size = x.abs().mul_(2 ** (-step / 64)).add_(1).log2_().mean(1).double().flatten()
            return torch.stack([size, size ** 2, size ** 3], 1)

        # The cost of a frame is nearly a function of its mean log size. It is measured on the probe, at a step where the
        # function so far says that all frames, judged by the thin sample, fit; from a guess, mostly twice.
        function, last, highest = torch.tensor([2.2 - 0.95 * shaping / 256, -0.1, 0.0], dtype=torch.float64), None, 64 * 20
        for _ in range(4):
            def fits(step):
                return (features(thin, step) @ function).mean().item() <= budget

            step = bisect.bisect_left(range(-64, highest), True, key=fits) - 64
            if last is not None and abs(step - last) <= 3:
                break
            classes, integers, _ = self.quantise(probe, step, shaping)
            costs = self.cost(classes, integers).view(probe.shape).mean(1)[settled].flatten().to(function)
            function, last = torch.linalg.lstsq(features(probe[settled], step), costs[:, None]).solution[:, 0], step

        def attempt(step, shaping, lossless):
            mode = dict(step=step, shaping=shaping, lossless=lossless, rotated=rotated)
            return mode, *self.compress(secret, coefficients, **mode)

        def size(streams):
            return sum(map(len, streams))

        if step < 0 and torch.equal(secret, secret.round()):
            found = attempt(0, 0, True)
            if size(found[1]) <= room:
                return found
        best = None
        for _ in range(20):
            found = attempt(step, shaping, False)
            bits = 32 * (size(found[1]) - room) / total  # too many, in a coefficient
            if bits <= 0:
                best = found
                if bits > -0.05 * budget or step <= -64:  # full enough
                    return best
                step = max(-64, step - max(1, round(-50 * bits)))
            elif best or step == highest:
                break
            else:
                step = min(highest, step + 1 + round(80 * bits))
        if not best:
            raise ValueError("the cover is too short for this secret")
        return best

    # ------------------------------------------------ a secret in samples

    def header(self, samples: int, length: int, channels: int = 1, sample_rate: int | None = None) -> Header:
        """Of a stego of `samples` in all channels together, with a secret [channels, length]."""
        bands = self.config.bands * (sample_rate or self.config.sample_rate) / self.config.sample_rate
        return Header(samples, length, self.fingerprint(), 128 * max(1, round(bands / 128)), channels)

    @torch.inference_mode()
    def hide_part(self, header: Header, cipher: Cipher, part: Part, cover: Tensor, secret: Tensor, codes: Tensor,
                  shaping: float | None = None, depth: int = 16, exact: bool = True) -> tuple[Tensor, Tensor]:
        """Hide a part of a secret, in units of 16-bit PCM [S, C], in its part of the cover, integers of `depth` bits [n],
        in cells of the widths that `choose_widths` gave for all segments. -> stego, like cover; what `reveal_part` will
        give, to float32 if not `exact`, which is faster. Raises ValueError if there is no room."""
        stego = cover.clone()
        if not len(secret):
            return stego, secret.double()
        segments, changed, codes = cover.view(-1, SEGMENT), stego.view(-1, SEGMENT), codes[part.segments]
        ends = _ends(codes)
        shaping = None if shaping is None else round(256 * shaping)
        mode, streams, found = self.fit(secret, header.bands, int(ends[-1]), shaping)
        words = _place(mode, streams, ends.tolist(), cipher, part)
        used, limit = int(torch.searchsorted(ends, len(words))), 1 << depth - 1
        bits = _codes(cipher, part, codes)[:used, None] >> 2 * torch.arange(CODES) & 3
        changed[:used, :CODES] = self.coupling(segments[:used, :CODES], bits, 4, limit)[0]
        for code, chosen in _alike(codes[:used]):
            places = (ends[chosen, None] + torch.arange(_room(WIDTHS[code]))).clamp(max=len(words) - 1)
            digits = _digits(words[places], WIDTHS[code])
            cells = chosen[:, None], torch.arange(CODES, CODES + digits.shape[1])
            changed[cells] = self.coupling(segments[cells], digits, WIDTHS[code], limit)[0]
        if mode["lossless"]:
            return stego, secret.double()
        decoded = self.synthesise(self.dequantise(*found), exact)
        decoded = _rotate(decoded) if mode["rotated"] else decoded
        return stego, decoded.view(secret.shape[1], -1)[:, :len(secret)].T

    @torch.inference_mode()
    def reveal_part(self, header: Header, cipher: Cipher, part: Part, stego: Tensor) -> tuple[Tensor, int, int]:
        """Inverse of `hide_part`: -> the part of the secret, in units of 16-bit PCM [S, C], float64, in which what was
        damaged is silent; the number of its blocks, and of damaged ones. Raises Damaged for words that cannot be decoded."""
        length = part.secret.stop - part.secret.start
        if not length:
            return torch.zeros(0, header.channels, dtype=torch.float64), 0, 0
        if not header.bands:
            raise Damaged("its header is of an affine model")
        segments = stego.view(-1, SEGMENT)
        codes = _codes(cipher, part, ((segments[:, :CODES] & 3) << 2 * torch.arange(CODES)).sum(1))
        ends = _ends(codes)
        words = torch.zeros(int(ends[-1]), dtype=torch.long)
        for code, chosen in _alike(codes):
            symbols = self.coupling.inverse(segments[chosen, CODES:], 0, WIDTHS[code])[1]
            words[ends[chosen, None] + torch.arange(_room(WIDTHS[code]))] = _words(symbols, WIDTHS[code])
        blocks = header.channels * self.shape_of(length, header.bands)[1]
        mode, streams = _find(words, ends.tolist(), cipher, part, blocks, header.bands // 4)
        try:
            return self.decompress(streams, length, header.channels, header.bands, **mode), blocks, streams.count(None)
        except IndexError as error:  # checksums do not help against who makes them
            raise Damaged("its words end before the secret does") from error

    def hide(self, cover: Tensor, secret: Tensor, snr: float = STEGO_SNR, shaping: float | None = None,
             sample_rate: int | None = None, depth: int = 16, masking: float = MASKING, key: str | bytes | None = None
             ) -> tuple[Tensor, Tensor]:
        """Hide a secret in a cover.

        Args:
            cover: float waveform [T], or [2, T] of two channels, in [-1, 1), which will be rounded to `depth` bits.
            secret: float waveform [S] or [2, S] in [-1, 1), no longer than the cover.
            snr: of the stego, in dB. The secret gets all the quality that this leaves it. One bit a sample is the least:
                a very quiet cover is changed more.
            shaping: how much the secret's steps follow its envelope, 0 (for its SNR) to 1 (for the ear); None chooses by
                the bits there are.
            sample_rate: of both in Hz; None is config.sample_rate. It sets the width of a band, and is not stored.
            depth: bits of the samples, 16 to 24, which must reach `reveal` unchanged.
            masking: the stego's noise power follows this power of the cover's, in segments of 512 samples: 0 is white, for
                the secret's SNR, 1 everywhere as far below the cover.
            key: a passphrase that `reveal` will need.
        Returns:
            stego like cover, on the grid of `depth` bits and never clipped.
            r, flat: stego - cover, then what quantisation took from the secret.
        Raises:
            ValueError: tensors of other shapes, a cover too short for the secret.
        """
        cover, secret = _check_channels("cover", cover), _check_channels("secret", secret)
        if secret.shape[-1] > cover.shape[-1]:
            raise ValueError("the secret is longer than the cover")
        limit = 1 << depth - 1
        samples = (cover.float() * limit).round_().clamp_(-limit, limit - 1).int().movedim(-1, 0).flatten()
        pieces = 32768 * secret.float().movedim(-1, 0).reshape(secret.shape[-1], -1)
        header, cipher = self.header(len(samples), len(pieces), pieces.shape[1], sample_rate), Cipher(key)
        if len(samples) < LEAST_SAMPLES:
            raise ValueError("the cover is too short for any secret")
        error = samples.double().square().mean().item() / 10 ** (snr / 10)
        codes = choose_widths(segment_powers(samples[HEADER_SAMPLES:-SEAL_SAMPLES]), error, masking, depth)
        stego, decoded = samples.clone(), torch.zeros(pieces.shape, dtype=torch.float64)
        for part in header.parts():
            stego[part.samples], decoded[part.secret] = self.hide_part(
                header, cipher, part, samples[part.samples], pieces[part.secret], codes, shaping, depth)
        header.write(stego, cipher)
        r = torch.cat([(stego - samples) / limit, ((pieces - decoded) / 32768).flatten().to(cover.dtype)])
        return _like(stego / limit, cover), r

    def reveal(self, stego: Tensor, z: Tensor | None = None, depth: int = 16, key: str | bytes | None = None,
               force: bool = False) -> tuple[Tensor, Tensor]:
        """Reveal what `hide` hid in the samples [T] or [2, T], on the grid of `depth` bits.

        Returns cover, like stego, and secret, [S] or [2, S]: exactly with r in the place of z; without it the cover is the
        stego itself. With `force`, what is left of a changed or shortened stego: damaged blocks are silent, with a warning.
        Raises NoSecret, also with a wrong key; OtherModel; and Damaged, with `force` only if nothing is left.
        """
        limit = 1 << depth - 1
        samples = (_check_channels("stego", stego).float() * limit).round_().int().movedim(-1, 0).flatten()
        header, cipher = Header.read(samples, key, self.fingerprint())
        if not force:
            seal = cipher.seal_of(samples[:-SEAL_SAMPLES].split(CHUNK), samples[-SEAL_SAMPLES:])
            header.verify(len(samples), seal, samples[-SEAL_SAMPLES:])
        samples = functional.pad(samples, (0, header.samples - len(samples)))
        found = [self.reveal_part(header, cipher, part, samples[part.samples]) for part in header.parts()]
        report_damage(sum(blocks for _, blocks, _ in found), sum(lost for *_, lost in found))
        secret = (torch.cat([piece for piece, *_ in found]) / 32768).to(stego.dtype)
        if z is not None:
            stego, secret = stego - _like(z[:stego.numel()], stego), secret + z[stego.numel():].view(secret.shape)
        return stego, secret[:, 0] if header.channels == 1 else secret.T

    def fingerprint(self) -> int:
        """A checksum of all that decoding depends on."""
        band = torch.arange(self.config.bands)
        integers = [value for net in self.scales for value in net.integers(band, torch.arange(2))]
        return fingerprint([x.detach().flatten() for x in [*integers, self.level, self.frequency]])

    save = WavINN.save


def _context(group: int) -> list[tuple[int, int]]:
    """(frames ago, bands away) of what a coefficient's scale depends on."""
    past = [(ago, band) for ago, reach in HISTORY for band in range(-reach, reach + 1)]
    return past + [(0, band) for band in PRESENT[group]]


def _group_sizes(bands: int) -> list[int]:
    return [bands // spacing for _, spacing in GROUPS]


def _look_up(table: Tensor, places: Tensor) -> Tensor:
    """table[places], faster. Any shape."""
    return table.index_select(0, places.flatten()).view(places.shape)


def _low_bits(classes: Tensor) -> Tensor:
    return (classes - SHAPES + 4 >> 2).clamp_(min=0)


def _like(x: Tensor, other: Tensor) -> Tensor:
    """Interleaved samples [n] in the shape of [T] or [2, T]."""
    return x.view(-1, other.numel() // other.shape[-1]).T.reshape(other.shape).to(other.dtype)


def _blocks(secret: Tensor, size: int, count: int) -> Tensor:
    """[S, C] -> blocks, one channel after the other, [C * count, size], the last of each filled up with zeros."""
    return functional.pad(secret.T, (0, size * count - len(secret))).reshape(-1, size)


def _rotate(blocks: Tensor) -> Tensor:
    """Left and right to middle and side, and back: orthonormal, its own inverse. [2 N, T] -> same."""
    left, right = blocks.chunk(2)
    return torch.cat([left + right, left - right]) * 0.5 ** 0.5


def _correlated(secret: Tensor) -> bool:
    """Whether middle and side of a secret [S, 2] take fewer bits than left and right."""
    if secret.shape[1] != 2:
        return False
    (left, both), (_, right) = (secret.T @ secret / len(secret)).tolist()
    middle, side = (left + right) / 2 + both, (left + right) / 2 - both
    return (middle + 1) * (side + 1) < (left + 1) * (right + 1)


def report_damage(blocks: int, lost: int):
    """Warn that `lost` of `blocks` are silent; raise Damaged if all are."""
    if blocks == lost:
        raise Damaged("the secret was changed or cut off")
    if lost:
        warnings.warn(f"{lost} of {blocks} blocks of the secret were changed or cut off, and are silent")


def segment_powers(samples: Tensor) -> Tensor:
    """Mean square of each segment of a cover [n], integers, that is between its header and its seal."""
    samples = samples[:len(samples) // SEGMENT * SEGMENT]
    return torch.cat([part.view(-1, SEGMENT).double().square().mean(1) for part in samples.split(CHUNK)])


def choose_widths(powers: Tensor, error: float, masking: float, depth: int) -> Tensor:
    """Codes of the widths of cells in the segments of a cover, from `segment_powers`, so that the mean error has a power of
    `error`."""
    level = (powers + 1) ** masking
    cost = torch.tensor([(width ** 2 + (2 if width % 2 == 0 else -1)) / 12 for width in WIDTHS], dtype=torch.float64)
    widest = min(len(WIDTHS) - 1, 4 * depth - 12)
    dither = torch.arange(len(level), dtype=torch.float64) * 0.6180339887498949 % 1  # spreads out what rounding takes

    def codes(exponent):  # for errors of level * 2 ** exponent
        return (2 * torch.log2(12 * level * 2 ** exponent) - 4 + dither).floor().clamp(0, widest).long()

    low, high = -60.0, 60.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if cost[codes(middle)].mean() <= error else (low, middle)
    return codes(low)


def _codes(cipher: Cipher, part: Part, codes: Tensor) -> Tensor:
    """Encipher the codes of a part's segments, or decipher them."""
    stream = cipher.stream(b"widths %d\0" % part.index, len(codes))
    return codes ^ torch.tensor([byte & (1 << 2 * CODES) - 1 for byte in stream])


def _ends(codes: Tensor) -> Tensor:
    """Of segments of these widths: how many words all those before hold, [N + 1]."""
    return functional.pad(torch.tensor([_room(width) for width in WIDTHS])[codes].cumsum(0), (1, 0))


def _alike(codes: Tensor):
    """(code, indices of the segments that have it), some at a time."""
    for code in codes.unique().tolist():
        for chosen in (codes == code).nonzero()[:, 0].split(CHUNK // SEGMENT):
            yield code, chosen


def _checksum(words: Tensor, start: int) -> int:
    return zlib.crc32(raw(words), start)


def _place(mode: dict, streams: list[Tensor], ends: list[int], cipher: Cipher, part: Part) -> Tensor:
    """The words of a part, enciphered: a mode, a table of the blocks, and the blocks. The table tells of each block its
    first segment and its first word there, so that damage to one block does not move the next; its number of words; and
    their checksum, with the mode."""
    first = mode["step"] + 2048 | mode["shaping"] << 16 | mode["lossless"] << 30 | mode["rotated"] << 31
    table, filled = [first], 1 + 3 * len(streams)
    for stream in streams:
        segment = bisect.bisect(ends, filled) - 1
        table += [segment << 12 | filled - ends[segment], len(stream), _checksum(stream, first)]
        filled += len(stream)
    pieces = [torch.tensor(table), *streams]
    return torch.cat([piece ^ cipher.words(b"words %d %d\0" % (part.index, i), len(piece)) for i, piece in enumerate(pieces)])


def _find(words: Tensor, ends: list[int], cipher: Cipher, part: Part, blocks: int, least: int
          ) -> tuple[dict, list[Tensor | None]]:
    """Inverse of `_place`: the mode, and the words of each block, `least` at least, or None where they were changed."""
    size = 1 + 3 * blocks
    table = functional.pad(words[:size], (0, max(0, size - len(words)))) ^ cipher.words(b"words %d 0\0" % part.index, size)
    first, *table = table.tolist()
    streams = []
    for i, (place, count, check) in enumerate(zip(table[::3], table[1::3], table[2::3])):
        start = ends[min(place >> 12, len(ends) - 1)] + (place & 0xFFF)
        stream = words[start:start + count]
        stream = stream ^ cipher.words(b"words %d %d\0" % (part.index, i + 1), len(stream))
        streams.append(stream if len(stream) >= least and _checksum(stream, first) == check else None)
    return dict(step=(first & 0xFFFF) - 2048, shaping=first >> 16 & 0x3FFF, lossless=bool(first >> 30 & 1),
                rotated=bool(first >> 31)), streams


@functools.lru_cache
def _radix(width: int) -> tuple[int, int]:
    """Numbers of digits of a base, and of bits in their place: at most 62, with the least waste in a segment."""
    pairs = [(digits, (width ** digits).bit_length() - 1) for digits in range(1, 1 + int(62 / math.log2(width)))]
    return max(pairs, key=lambda pair: (SEGMENT - CODES) // pair[0] * pair[1])


def _room(width: int) -> int:
    """Words that a segment holds in cells of a width."""
    digits, bits = _radix(width)
    return (SEGMENT - CODES) // digits * bits // 32


def _recut(values: Tensor, old: int, new: int) -> Tensor:
    """Cut streams of `old`-bit integers [N, n], lowest bit first, into `new`-bit ones, both at most 62; the last is
    filled up."""
    start = torch.arange(math.ceil(values.shape[1] * old / new)) * new
    values = functional.pad(values, (0, new // old + 2))
    place, gone = start // old, start % old
    result = values[:, place] >> gone
    for i in range(1, new // old + 2):
        have = i * old - gone
        result |= torch.where(have < new, values[:, place + i] << have.clamp(max=new), 0)
    return result & (1 << new) - 1


def _digits(words: Tensor, width: int) -> Tensor:
    """Words of segments [N, _room(width)] as digits of a base [N, n], for as many samples as they take."""
    digits, bits = _radix(width)
    numbers = _recut(words, 32, bits)
    result = torch.empty(digits, *numbers.shape, dtype=torch.int32)
    for digit in result:
        quotient = numbers // width
        digit.copy_(numbers - quotient * width)
        numbers = quotient
    return result.permute(1, 2, 0).flatten(1)


def _words(symbols: Tensor, width: int) -> Tensor:
    """Inverse of `_digits`: the words that samples [N, SEGMENT - CODES] hold."""
    digits, bits = _radix(width)
    numbers = 0
    for digit in reversed(symbols[:, :symbols.shape[1] // digits * digits].unflatten(1, (-1, digits)).unbind(2)):
        numbers = numbers * width + digit.long()
    return _recut(numbers, bits, 32)[:, :_room(width)]


# ---------------------------------------------------------------- model files, and the paper's permutation

@contextlib.contextmanager
def replacing(path: str | os.PathLike):
    """The name of a temporary file beside `path` that takes its place at the end, or is removed after a fault."""
    temporary = f"{os.fspath(path)}.{os.getpid()}.tmp"
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        if os.path.exists(temporary):
            os.remove(temporary)


def read_checkpoint(path: str | os.PathLike) -> dict:
    """What `WavINN.save` wrote, on the CPU. Raises OSError if it cannot be
    read, ValueError naming the file if it is anything else."""
    with open(path, "rb") as file:
        try:
            content = torch.load(file, map_location="cpu", weights_only=True)
        except Exception as error:  # a damaged file raises one of half a dozen types
            raise ValueError(f"{path} is not a WavInWav model, or is damaged") from error
    if not isinstance(content, dict) or content.get("wavinwav") != 1:
        raise ValueError(f"{path} is not a WavInWav model of this version")
    return content


def build(config: Config) -> "WavINN | Lattice":
    """The network of a config, as it is before training."""
    return Lattice(config) if config.preset == "lattice" else WavINN(config)


def load(path: str | os.PathLike, device: str | torch.device = "cpu") -> "WavINN | Lattice":
    """The model in a file that `WavINN.save` or train.py wrote, ready for hide and reveal.

    Raises OSError if the file cannot be read, ValueError naming it if it holds no model.
    """
    content = read_checkpoint(path)
    try:
        model = build(Config(**content["config"]))
        model.load_state_dict(content["state_dict"])
    except (KeyError, TypeError, RuntimeError, ValueError) as error:
        raise ValueError(f"{path} holds a model that does not fit its own description") from error
    return model.to(device).eval()


def altered(model: "WavINN", **changes) -> "WavINN":
    """An affine model with its weights, and other values of `shift` or `robust` in its config: a new second stack begins as a
    copy of the first. Raises ValueError for values that make no sense, or a lattice model."""
    if isinstance(model, Lattice):
        raise ValueError("only an affine model can be altered")
    result, state = WavINN(replace(model.config, **changes)), model.state_dict()
    copies = {f"robust_{name}": value for name, value in state.items() if name.startswith("blocks.")}
    result.load_state_dict((copies if result.config.robust else {}) | state)
    return result


def scramble(x: Tensor, key: int | str | bytes, sample_rate: int = 16000) -> Tensor:
    """Permute the 20 ms segments of [..., T] by a key, section III-D of the paper; a shorter rest stays in place.

    The permutation hides what is said from a listener, not from an analyst: it is no cipher.
    """
    return _permute(x, key, sample_rate, invert=False)


def unscramble(x: Tensor, key: int | str | bytes, sample_rate: int = 16000) -> Tensor:
    """Inverse of `scramble` with the same key and rate."""
    return _permute(x, key, sample_rate, invert=True)


def _permute(x: Tensor, key: int | str | bytes, sample_rate: int, invert: bool) -> Tensor:
    size = max(1, round(SEGMENT_SECONDS * sample_rate))
    count = x.shape[-1] // size
    order = list(range(count))
    random.Random(key).shuffle(order)  # Python keeps the sequence of a seed stable across versions and machines
    order = torch.tensor(order, dtype=torch.long, device=x.device)
    if invert:
        order = order.argsort()
    segments, rest = x[..., :count * size].unflatten(-1, (count, size)), x[..., count * size:]
    return torch.cat([segments[..., order, :].flatten(-2), rest], -1)


def _batch(x: Tensor) -> Tensor:
    return x if x.dim() == 2 else x[None]


def _check_channels(name: str, x: Tensor) -> Tensor:
    _check(name, x)
    if x.dim() > 1 and len(x) != 2:
        raise ValueError(f"{name} must be a tensor [T], or [2, T] of two channels")
    return x


def _check(name: str, x: Tensor):
    if not isinstance(x, Tensor) or x.dim() not in (1, 2) or not x.is_floating_point():
        raise ValueError(f"{name} must be a floating-point tensor [T] or [B, T]")
    if x.shape[-1] < 1:
        raise ValueError(f"{name} must have at least one sample")
