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

import copy
import functools
import math
import os
from dataclasses import dataclass, fields

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

PIECE_FRAMES = 2048  # what a subnet works on at a time when no gradient is asked for
PILOT_PERIOD = 400  # samples: 40 Hz at 16 kHz, where neither speech nor the ear has much
PILOT_LEAST = 20 * PILOT_PERIOD  # samples of a stego that a pilot is put into


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
def lapped_basis(bands: int, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """What makes an MDCT with a sine window: the window's two quarters [bands / 2], by which the halves of a hop are
    rotated, and a DCT-IV [bands, bands], computed in float64."""
    with torch.inference_mode(False):  # it will be used in training too
        n = torch.arange(bands, dtype=torch.float64) + 0.5
        angle = math.pi / (2 * bands) * n[:bands // 2]
        cosines = math.sqrt(2 / bands) * torch.cos(math.pi / bands * n[:, None] * n)
        cosines[:bands // 2] = -cosines[:bands // 2].flip(0)
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


def unlapped(coefficients: Tensor) -> Tensor:
    """Inverse of `lapped`. [B, C, F] -> [B, T = C * F]."""
    bands = coefficients.shape[1]
    if bands == 1:
        return coefficients[:, 0]
    sine, cosine, basis = lapped_basis(bands, coefficients.dtype, coefficients.device)
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


# ---------------------------------------------------------------- model files

def read_checkpoint(path: str | os.PathLike) -> dict:
    """What `checkpoint.save` wrote, on the CPU. Raises OSError if it cannot be
    read, ValueError naming the file if it is anything else."""
    with open(path, "rb") as file:
        try:
            content = torch.load(file, map_location="cpu", weights_only=True)
        except Exception as error:  # a damaged file raises one of half a dozen types
            raise ValueError(f"{path} is not a WavInWav model, or is damaged") from error
    if not isinstance(content, dict) or content.get("wavinwav") != 2:
        raise ValueError(f"{path} is not a WavInWav model of this version")
    return content


def load(path: str | os.PathLike, device: str | torch.device = "cpu") -> WavINN:
    """The model in a file that `checkpoint.save` wrote, ready for hide and reveal.

    Raises OSError if the file cannot be read, ValueError naming it if it holds no model, or a lattice.
    """
    content = read_checkpoint(path)
    config = content.get("config")
    if isinstance(config, dict) and config.get("preset") == "lattice":
        raise ValueError(f"{path} holds a lattice: load it with lattice.load")
    try:
        model = WavINN(Config(**config))
        model.load_state_dict(content["state_dict"])
    except (KeyError, TypeError, RuntimeError, ValueError) as error:
        raise ValueError(f"{path} holds a model that does not fit its own description") from error
    return model.to(device).eval()


def _batch(x: Tensor) -> Tensor:
    return x if x.dim() == 2 else x[None]


def _check(name: str, x: Tensor):
    if not isinstance(x, Tensor) or x.dim() not in (1, 2) or not x.is_floating_point():
        raise ValueError(f"{name} must be a floating-point tensor [T] or [B, T]")
    if x.shape[-1] < 1:
        raise ValueError(f"{name} must have at least one sample")
