"""WavInWav: hide a speech waveform inside another one, and get it back (arXiv 2510.02915).

An invertible neural network (INN) runs forward to hide and backward to reveal:

    cover, secret  -- hide -->    stego, r          the stego sounds like the cover
    stego, z       -- reveal -->  cover^, secret^   z replaces r, which is thrown away

This file needs torch only, so it can be copied into other projects.
Shapes: B batch, T samples, M bands of the lapped transform, F frames, P phases of frames.

    model = wavinwav.load("wavinwav.pt")
    stego, r = model.hide(cover, secret)      # float tensors [T] or [B, T] in [-1, 1]
    cover_, secret_ = model.reveal(stego)     # or model.reveal(stego, r), which is exact
"""

import copy
import functools
import math
from dataclasses import dataclass, fields
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

Pair = tuple[Tensor, Tensor]
FLOATS = torch.float32, torch.float64  # in which the inverse is exact


def zero(x: Tensor) -> Tensor:  # a subnet that changes nothing
    return x.new_zeros(())


def bounded_exp(x: Tensor, clamp: float) -> Tensor:  # between exp(-clamp) and exp(clamp)
    return torch.exp(clamp * (2 * torch.sigmoid(x) - 1))


class AffineCoupling(nn.Module):
    """One invertible block, section III of the paper. Two tensors -> two of the same shapes.

    cover' = cover + phi(secret); secret' = secret * exp(a(rho(cover'))) + eta(cover').
    rho and eta read cover' in both directions, since reveal has no other cover. The inverse is
    exact whatever phi, rho and eta are. a bounds the log-scale, as in HiNet (Jing et al. 2021)."""

    def __init__(self, phi=zero, rho=zero, eta=zero, clamp: float = 2.0):
        super().__init__()
        self.phi, self.rho, self.eta, self.clamp = phi, rho, eta, clamp

    def scale(self, cover: Tensor) -> Tensor:
        return bounded_exp(self.rho(cover).to(cover.dtype), self.clamp)

    def forward(self, cover: Tensor, secret: Tensor) -> Pair:
        cover = cover + self.phi(secret)
        return cover, secret * self.scale(cover) + self.eta(cover)

    def inverse(self, cover: Tensor, secret: Tensor) -> Pair:
        secret = (secret - self.eta(cover)) / self.scale(cover)
        return cover - self.phi(secret), secret


class Config:
    """What defines a network: `Config.paper()` or `Config.lapped()`. Raises ValueError."""

    def __post_init__(self):
        for field in fields(self):
            value, low = getattr(self, field.name), 1 if field.type is int else 0
            high = 1_000_000 if field.name == "sample_rate" else 1000
            types = (int, float) if field.type is float else (field.type,)
            if type(value) not in types or field.type is not str and not low <= value <= high:
                raise ValueError(f"Config.{field.name} must be of type {field.type.__name__} and "
                                 f"from {low} to {high}, not {value!r}")


@dataclass
class PaperConfig(Config):
    preset: str = "paper"
    sample_rate: int = 16000  # Hz, of the training audio; the network runs at any
    blocks: int = 16  # affine couplings in the stack
    growth: int = 32  # channels that each inner conv of a dense subnet adds, and
    kernel: int = 11  # its taps: inferred from the 3.39 M parameters that the paper states
    clamp: float = 2.0  # bound of the log-scale
    bands: int = 1  # of the lapped transform, as channels of the convs; the paper has samples: 1
    robust: bool = False  # a second stack, trained to reveal from stegos that have changed


class DenseSubnet(nn.Module):
    """Five convs, each reading the input and all outputs before it (as in HiNet). [B, M, F]."""

    def __init__(self, config: PaperConfig):
        super().__init__()
        n, growth = config.bands, config.growth
        self.convs = nn.ModuleList(
            nn.Conv1d(n + i * growth, growth if i < 4 else n, config.kernel, padding="same")
            for i in range(5))

    def forward(self, x: Tensor) -> Tensor:
        for conv in self.convs[:-1]:
            x = torch.cat([x, functional.leaky_relu(conv(x), 0.2)], 1)
        return self.convs[-1](x)


def precise(method):
    """Run a method without gradients and without autocast, in which the inverse is not exact."""
    @functools.wraps(method)
    def run(self, *args, **options):
        with torch.no_grad(), torch.autocast(next(self.parameters()).device.type, enabled=False):
            return method(self, *args, **options)
    return run


class PaperINN(nn.Module):
    """The paper's network: blocks of dense subnets, on samples or on bands; z is 0, the mode of
    N(0, I). A rest of T / M samples stays as it is, with nothing hidden in it."""

    def __init__(self, config: PaperConfig):
        super().__init__()
        self.config = config
        self.blocks = nn.ModuleList(
            AffineCoupling(*(DenseSubnet(config) for _ in range(3)), config.clamp)
            for _ in range(config.blocks))
        if config.robust:
            self.robust_blocks = copy.deepcopy(self.blocks)
        self.register_buffer("level", torch.ones(config.bands, 1))  # by which bands are divided

    def split(self, wave: Tensor) -> Tensor:
        """[B, T] -> [B, M, F], without the rest."""
        bands = self.config.bands
        x = wave[:, :wave.shape[1] // bands * bands]
        return (lapped(x, bands) if bands > 1 else x[:, None]) / self.level

    def join(self, x: Tensor, wave: Tensor) -> Tensor:
        """Inverse of `split`; the rest is that of a wave [B, T]."""
        x = x * self.level
        x = unlapped(x) if self.config.bands > 1 else x[:, 0]
        return torch.cat([x, wave[:, x.shape[1]:]], 1)

    def forward(self, cover: Tensor, secret: Tensor) -> Pair:
        """cover, secret [B, T] -> stego, r [B, T]."""
        x, y = self.split(cover), self.split(secret)
        for block in self.blocks:
            x, y = block(x, y)
        return self.join(x, cover), self.join(y, secret)

    def inverse(self, stego: Tensor, r: Tensor, robust: bool = False) -> Pair:
        """Inverse of `forward`. `robust` runs the second stack instead, which only approximates
        the inverse, but also where the stego has changed."""
        x, y = self.split(stego), self.split(r)
        for block in reversed(self.robust_blocks if robust else self.blocks):
            x, y = block.inverse(x, y)
        return self.join(x, stego), self.join(y, r)

    @precise
    def hide(self, cover: Tensor, secret: Tensor) -> Pair:
        """cover, secret [T] or [B, T] in [-1, 1] -> stego, r, like them. Raises ValueError.

        Without gradients, as `reveal`. With them, and [B, T]:

            stego, r = model(cover, secret)
            cover_, secret_ = model.inverse(stego, torch.zeros_like(r))
        """
        pair = self(*_rows(self, self.config.bands, cover=cover, secret=secret))
        return tuple(x.view_as(cover) for x in pair)

    @precise
    def reveal(self, stego: Tensor, z: Tensor | None = None) -> Pair:
        """stego [T] or [B, T] -> cover, secret: exactly where z is r, else with z = 0."""
        x, r = _rows(self, self.config.bands, stego=stego,
                     z=torch.zeros_like(stego) if z is None else z)
        pair = self.inverse(x, r, z is None and self.config.robust)
        return tuple(x.view_as(stego) for x in pair)


ORDER = 0, 2, 1, 3  # in which frames are hidden, by their number modulo 4; its own inverse
FULL_SCALE, NARROWEST, NOMINAL = 32768, 8, 1500  # LSB of 16 bits: -, a cell, a levelled secret
TAPS, STRETCH = 16, 1024  # of the filter that shapes rounding; samples that it runs through
MARKED = 4  # every so many samples have a bit of the mark, by which `reveal` knows the setting
SHORTEST = 31 * MARKED + 1  # samples that the mark needs


@dataclass
class LappedConfig(Config):
    preset: str = "lapped"
    sample_rate: int = 16000  # Hz, of the training audio; the network runs at any
    bands: int = 64  # of the lapped transform
    carriers: int = 64  # the lowest of these, in the cover, carry the same bands of the secret
    growth: int = 8  # channels of the subnets that predict the secret's level
    clamp: float = 6.0  # bound of the log-scale
    stego_snr: float = 48.0  # dB, of a stego unless another is asked for
    margin: float = 1.2  # LSB that are left empty at both edges of a cell
    reserve: float = 0.0  # of a cell's usual width, left empty there too, for noise


Config.paper, Config.lapped = PaperConfig, LappedConfig


class Setting(NamedTuple):
    """What `reveal` must know besides the stego: whole numbers, as floats [B]."""

    width: Tensor  # of the cells: 16 steps an octave, 0 to 255
    gain: Tensor  # of the secret: steps of 3 dB, 0 to 15; 8 is none

    def octaves(self, keyed: bool = False) -> Tensor:
        """By which cells are wider than the narrowest one: also, by up to 1/16, by the gain. So an
        exact width, estimated from a stego alone, implies the gain; with a key it must not."""
        return self.width / 16 + (0 if keyed else self.gain / 256)

    def pack(self) -> Tensor:
        """As one number of 12 bits."""
        return 16 * self.width + self.gain

    @classmethod
    def unpack(cls, code: Tensor) -> "Setting":
        return cls((code / 16).floor(), code % 16)


class ScaleSubnet(nn.Module):
    """The scale of a secret's next phase, from those known. [B, P, F, M] -> [B, F, M]."""

    def __init__(self, phases: int, config: LappedConfig):
        super().__init__()
        self.clamp = config.clamp
        self.first = nn.Conv2d(phases, config.growth, (3, 7), padding="same", bias=False)
        self.band = nn.Parameter(torch.randn(config.growth, 1, config.carriers).mul_(0.1))
        self.last = nn.Conv2d(config.growth, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(0.2 * torch.log(x.square() + 1e-3)) + self.band
        return bounded_exp(self.last(functional.leaky_relu(x, 0.2))[:, 0], self.clamp)


def wrap(x: Tensor) -> Tensor:
    """A sawtooth: into the cell from -1/2 to 1/2."""
    return x - x.round()


class LappedINN(nn.Module):
    """Dirty-paper coding (Costa 1983) by two of the paper's blocks, with rho = 0. In units of a
    cell, for coefficients c of the cover and s of the secret, |s| < 1/2:

        block 1: eta(c) = -c                    s' = s - c
        block 2: phi = wrap, eta(c) = round(c)  c' = c + wrap(s - c), s'' = c' - c = r

    The stego c' is the value next to c that equals s modulo the cell. Reveal with z = 0 gives
    s = wrap(c') and the stego itself for the cover, so the secret lacks only what rounding to a
    file takes; `round_to_file` keeps this error from where the secret is sensitive to it.

    Before that, s is made to fill its cell: subnets predict the level of each phase of frames
    (frames modulo 4) from the phases before, and a learned curve compresses what remains."""

    def __init__(self, config: LappedConfig):
        super().__init__()
        if config.carriers > config.bands:
            raise ValueError(f"Config.carriers must be at most the {config.bands} bands")
        self.config, self.used = config, config.carriers  # bands of the cover that are used
        self.blocks = nn.ModuleList([AffineCoupling(eta=torch.neg),
                                     AffineCoupling(phi=wrap, eta=torch.round)])
        self.scales = nn.ModuleList(ScaleSubnet(n, config) for n in (1, 2, 3))
        starts = [(3, 1), (5, 4), (1, 1)] if config.reserve else [(16, 2), (20, 12), (1, 1)]
        starts = torch.tensor(starts).log()[:, [0, 1, 1, 1], None, None]  # of phase 0, others
        self.log_slope, self.log_limit, self.log_cells = (
            nn.Parameter(start.repeat(1, 1, config.carriers)) for start in starts)
        self.register_buffer("level", torch.ones(config.carriers))  # LSB, of levelled speech

    def curve(self, known: list[Tensor]) -> tuple[Tensor | float, Tensor, Tensor, Tensor]:
        """Of the phase after those known: its scale, slope, limit, and asinh(slope limit)."""
        scale = self.scales[len(known) - 1](torch.stack(known, 1)) if known else 1.0
        slope, limit = self.log_slope[len(known)].exp(), self.log_limit[len(known)].exp()
        return scale, slope, limit, torch.asinh(slope * limit)

    def compand(self, x: Tensor) -> Pair:
        """x -> v = asinh(slope u) / asinh(slope limit), where u is scale x within the limits, and
        dx / dv. All [B, P, F, M]."""
        known, companded, slopes = [], [], []
        for y in x.unbind(1):
            scale, slope, limit, top = self.curve(known)
            u = torch.minimum(torch.maximum(y * scale, -limit), limit)
            known.append(u / scale)
            root = (u ** 2 + slope ** -2).sqrt()
            companded.append((slope * (u.abs() + root)).log().copysign(u) / top)  # asinh
            slopes.append(top * root / scale)
        return torch.stack(companded, 1), torch.stack(slopes, 1)

    def expand(self, v: Tensor) -> Tensor:
        """Inverse of `compand`. Only noise takes v beyond +-1: such values fade to zero."""
        known = []
        for y in v.unbind(1):
            scale, slope, _, top = self.curve(known)
            belief = 1 if self.training else (3 - 2 * y.abs()).clamp(0, 1)
            known.append(belief * torch.sinh(y.clamp(-1, 1) * top) / slope / scale)
        return torch.stack(known, 1)

    def encode(self, secret: Tensor, gain: Tensor, keyed: bool) -> Pair:
        """A secret's coefficients in LSB [B, M, F] -> numbers in [-1, 1], and how much the secret
        changes with them [B, P, F, M]: with a key, in the mean over all secrets, since the spectrum
        of the rounding error must not show where this one is loud."""
        x = self.split(secret)[..., :self.config.carriers]
        v, slope = self.compand(x * gain / self.level)
        return v, (torch.ones_like(slope) if keyed else slope) * self.level / gain

    def decode(self, v: Tensor, gain: Tensor, like: Tensor) -> Tensor:
        """Inverse of `encode`, for a wave [B, T]."""
        return self.join(self.expand(v) * self.level / gain, like)

    def profile(self) -> Tensor:
        """The cells' widths relative to each other [P, 1, M]."""
        return self.log_cells.exp()

    def cells(self, setting: Setting, keyed: bool = False) -> tuple[Tensor, Tensor, Tensor]:
        """The cells' widths in LSB [B, P, 1, M]; the room for the secret to each side of their
        centre; and the gain of the secret [B, 1, 1, 1]."""
        width = NARROWEST * 2 ** setting.octaves(keyed)[:, None, None, None]
        gain = 2 ** ((setting.gain[:, None, None, None] - 8) / 2)
        learned = self.profile()
        cells = (width * learned / learned.square().mean().sqrt()).clamp_min(NARROWEST)
        edge = self.config.margin + self.config.reserve * width
        cells = torch.maximum(cells, 2.5 * edge)
        return cells, 0.5 * cells - edge, gain

    def forward(self, cover: Tensor, secret: Tensor, setting: Setting,
                dither: Tensor | None = None) -> Pair:
        """cover, secret [B, T] -> stego [B, T], not rounded; how much the secret changes by an
        error in each coefficient of it [B, M, F]. A dither in [-1/2, 1/2), [B, P, F, M], is
        added to the secret modulo the cell: a one-time pad."""
        cells, room, gain = self.cells(setting, dither is not None)
        unit = cells.detach()
        c, y = (lapped(FULL_SCALE * wave, self.config.bands) for wave in (cover, secret))
        v, slope = self.encode(y, gain, dither is not None)
        c, s = self.split(c) / unit, v * room / unit
        s = s if dither is None else wrap(s + dither)
        for block in self.blocks:
            c, s = block(c, s)
        # The value is s * unit. For the gradient, a wider cell scales r, which is uniform in it
        # whatever the weights are.
        r = s * unit + s.detach() * (cells - unit)
        r = self.wave(self.join(r, cover), cover)
        return cover + r, self.join((slope / room).detach(), cover)

    def inverse(self, stego: Tensor, setting: Setting, dither: Tensor | None = None) -> Pair:
        """stego [B, T] -> cover, secret: the inverse of `forward`, with z = 0 in the place of r,
        for which the cover is the stego itself."""
        cells, room, gain = self.cells(setting, dither is not None)
        unit = cells.detach()
        c = self.split(lapped(FULL_SCALE * stego, self.config.bands)) / unit
        s = torch.zeros_like(c)
        for block in reversed(self.blocks):
            c, s = block.inverse(c, s)
        s = s if dither is None else wrap(s - dither)
        return stego, self.wave(self.decode(s * unit / room, gain, stego), stego)

    def split(self, x: Tensor) -> Tensor:
        """[B, M, F] -> the carriers, phase by phase [B, P, F / P, carriers]; zeros at the end."""
        x = functional.pad(x.mT[..., :self.used], (0, 0, 0, -x.shape[2] % len(ORDER)))
        return torch.stack([x[:, index::len(ORDER)] for index in ORDER], 1)

    def join(self, x: Tensor, like: Tensor) -> Tensor:
        """Inverse of `split`, for a wave [B, T]; bands that carry nothing are 0."""
        x = torch.stack([x[:, index] for index in ORDER], 2).flatten(1, 2)
        x = x[:, :math.ceil(like.shape[1] / self.config.bands)]
        return functional.pad(x, (0, self.config.bands - x.shape[2])).mT

    def wave(self, x: Tensor, like: Tensor) -> Tensor:
        """Coefficients in LSB [B, M, F] -> a wave as long as another, [B, T]."""
        return unlapped(x, like.shape[1]) / FULL_SCALE

    @precise
    def fit(self, cover: Tensor, secret: Tensor, snr: float | Tensor, dither: Tensor | None = None,
            rounds: int = 2) -> Setting:
        """The setting with which stegos of [B, T] come close to an SNR in dB: a first guess from
        the cover's level, corrected `rounds` times by what `forward` changes."""
        rms, level = (FULL_SCALE * x.square().mean(1).sqrt() for x in (cover, secret))
        gain = (2 * (NOMINAL / level.clamp_min(1)).log2()).round().clamp(-8, 7) + 8
        width = (12 * self.config.bands / self.used) ** 0.5 * rms * 10 ** (-snr / 20)
        while True:
            steps = 16 * (width / NARROWEST).log2() - (gain / 16 if dither is None else 0)
            setting = Setting(steps.round().clamp(0, 255), gain)
            if not rounds:
                return setting
            change = FULL_SCALE * (self(cover, secret, setting, dither)[0] - cover)
            ratio = rms * 10 ** (-snr / 20) / change.square().mean(1).sqrt().clamp_min(1e-6)
            width = NARROWEST * 2 ** setting.octaves(dither is not None) * ratio.clamp(1e-3, 1e3)
            rounds -= 1

    @precise
    def embed(self, cover: Tensor, secret: Tensor, setting: Setting, marks: Tensor,
              depth: int = 16, dither: Tensor | None = None) -> Tensor:
        """The lower-level `hide`, for files: cover, secret [B, T] -> stego [B, T], multiples of
        2 ** (1 - depth) within full scale. `inverse` reveals it.

        marks [B, T]: the lowest bit that each sample of the stego must have; -1 leaves it free.
        Where the stego would clip, the cover is limited first, by as little as it takes. Raises
        ValueError if the cells are too wide for that."""
        step, headroom = 2.0 ** (1 - depth), torch.zeros_like(cover[:, :1])
        while headroom.max() < 0.5:
            limited = cover.clamp(headroom - 1, 1 - step - headroom)
            stego, slope = self(limited, secret, setting, dither)
            stego = step * round_to_file(stego / step, slope, marks)
            over = torch.maximum(stego.amax(1) - 1 + step, -1 - stego.amin(1))[:, None]
            if over.max() <= 0:
                return stego
            headroom = headroom + (over + step) * (over > 0)
        raise ValueError("there is no room within full scale; ask for a higher SNR")

    @precise
    def hide(self, cover: Tensor, secret: Tensor, snr: float | None = None) -> Pair:
        """Hide a secret.

        cover, secret: [T] or [B, T] in [-1, 1]; snr: of the stego in dB, 0 to 120, the config's
        if None. Returns stego, like cover, multiples of 1 / 32768 that do not clip; and r,
        [2, T] or [B, 2, T]: what `reveal` lacks of cover and secret without it. The lowest bits
        of a few samples at the start hold the setting. Raises ValueError.

        Without gradients, as `reveal`. With them, and [B, T], not rounded:

            setting = model.fit(cover, secret, snr)
            stego, _ = model(cover, secret, setting)
            cover_, secret_ = model.inverse(stego, setting)
        """
        x, y = _rows(self, SHORTEST, cover=cover, secret=secret)
        snr = self.config.stego_snr if snr is None else snr
        if not 0 <= snr <= 120:
            raise ValueError(f"snr must be from 0 to 120 dB, not {snr}")
        if max(x.abs().max(), y.abs().max()) > 1:
            raise ValueError("cover and secret must lie in [-1, 1]: divide PCM by its full scale")
        setting = self.fit(x, y, snr)
        marks = torch.full_like(x, -1)
        marks[:, :SHORTEST:MARKED] = _mark(setting)
        stego = self.embed(x, y, setting, marks)
        cover_, secret_ = self.inverse(stego, setting)
        r = torch.stack([x - cover_, y - secret_], 1)
        return stego.view_as(cover), r.view(*cover.shape[:-1], *r.shape[1:])

    @precise
    def reveal(self, stego: Tensor, z: Tensor | None = None) -> Pair:
        """stego [T] or [B, T], as `hide` made it -> cover, secret, like it. Without z (or with
        zeros) the cover is the stego itself; with r they are exact to float32's last bits.
        Raises ValueError, also for samples that have changed or come from another source."""
        x, = _rows(self, SHORTEST, stego=stego)
        lsb = (FULL_SCALE * x).round()
        bits = lsb[:, :SHORTEST:MARKED].long() & 1
        code = (bits[:, :12] << torch.arange(12, device=x.device)).sum(1)
        setting = Setting.unpack(code.to(x))
        if not (torch.equal(lsb, FULL_SCALE * x) and torch.equal(_mark(setting), bits)):
            raise ValueError("stego is not what this model's hide returned, sample for sample; a "
                             "file that stego.py wrote is revealed by stego.reveal")
        cover, secret = self.inverse(x, setting)
        if z is not None:
            shape = [*stego.shape[:-1], 2, stego.shape[-1]]
            if list(getattr(z, "shape", ())) != shape:
                raise ValueError(f"z must be r, or zeros, of the shape {shape}")
            r, = _rows(self, z=z.flatten(0, -2))
            cover, secret = cover + r[::2], secret + r[1::2]
        return cover.view_as(stego), secret.view_as(stego)


def _mark(setting: Setting) -> Tensor:
    """A setting as bits [B, 32]: 12 of its own, and 20 that depend on them, as a checksum."""
    code = setting.pack().long()
    word = code | (40503 * code + 0x5A5A5) % (1 << 20) << 12
    return word[:, None] >> torch.arange(32, device=code.device) & 1


def lapped(x: Tensor, bands: int) -> Tensor:
    """Orthonormal lapped transform (MDCT, Princen and Bradley 1986), circular, of two hops a frame.
    [B, T] -> [B, M, F]. A rest of T / M becomes a frame too, from a transform of its own."""
    whole, rest = x.tensor_split([x.shape[1] // bands * bands], 1)
    if count := rest.shape[1]:
        last = functional.pad(lapped(rest, count), (0, 0, 0, bands - count))
        return torch.cat([lapped(whole, bands), last], 2)
    hops, (first, second) = x.unflatten(1, (-1, bands)), basis(bands, x)
    return (hops @ first + hops.roll(-1, 1) @ second).mT


def unlapped(x: Tensor, length: int = 0) -> Tensor:
    """Inverse of `lapped`. [B, M, F] -> [B, T], where T is M F if no length is given."""
    if rest := length % x.shape[1]:
        return torch.cat([unlapped(x[:, :, :-1]), unlapped(x[:, :rest, -1:])], 1)
    first, second = basis(x.shape[1], x)
    return (x.mT @ first.T + x.mT.roll(1, 1) @ second.T).flatten(1)


def basis(bands: int, like: Tensor) -> Pair:
    """Cosines under a sine window, for the two hops of a frame, [M, M] each."""
    n = torch.arange(2 * bands, dtype=torch.float64, device=like.device)[:, None] + 0.5
    waves = (math.pi / bands * (n + bands / 2) * n[:bands, 0]).cos_()
    return waves.mul_(math.sqrt(2 / bands) * torch.sin(math.pi / 2 / bands * n)).to(like).chunk(2)


def noise_weights(slope: Tensor) -> Tensor:
    """How much an error's power in each coefficient matters, from slopes [B, M, F]."""
    power = (own := slope.square()) + own.roll(1, 2) + own.roll(-1, 2)  # smooth in time
    return power / power.mean(1, keepdim=True) + 1e-3


def round_to_file(x: Tensor, slope: Tensor, marks: Tensor) -> Tensor:
    """Round x [B, T] to integers whose lowest bits are the marks [B, T], or any where these are -1.

    Each sample's error is fed back into the samples after it (Gerzon and Craven 1989), so that its
    spectrum is the inverse of `noise_weights`. The filter is the one that linear prediction finds
    for a signal with the spectrum of the weights, since that whitens it. Stretches of about 1024
    samples have no feedback into each other: all are rounded side by side, sample by sample."""
    bands, weights = slope.shape[1], noise_weights(slope)
    weights = weights + weights.roll(1, 2)  # of a hop, which is in two frames
    hops = min(weights.shape[2], STRETCH // bands or 1)  # in a stretch; S are rounded together
    weights = functional.pad(weights, (0, -weights.shape[2] % hops), value=1.0)
    lags = torch.arange(TAPS + 1, device=x.device)[:, None]
    angles = lags * (torch.arange(bands, device=x.device) + 0.5) * (math.pi / bands)
    lag = angles.cos().to(weights) @ weights  # autocorrelation [B, TAPS + 1, F]
    taps, error = (lags == 0) * torch.ones_like(lag), 1.0001 * lag[:, :1]
    for i in range(1, TAPS + 1):  # Levinson and Durbin
        k = -(taps[:, :i] * lag[:, 1:i + 1].flip(1)).sum(1, keepdim=True) / error
        taps[:, 1:i + 1] += k * taps[:, :i].flip(1)
        error = error * (1 - k * k)
    taps = taps[:, 1:].flip(1).unflatten(2, (-1, hops)).permute(3, 1, 0, 2).flatten(2).contiguous()
    wanted, marks = (functional.pad(y, (0, -y.shape[1] % (hops * bands)), value=-1)
                     .reshape(-1, hops * bands).T.contiguous() for y in (x, marks))  # [N, S]
    result, errors = torch.empty_like(wanted), x.new_zeros(TAPS + len(wanted), wanted.shape[1])
    for n, marked in enumerate((marks >= 0).any(1).tolist()):
        target = wanted[n] + (taps[n // bands] * errors[n:n + TAPS]).sum(0)
        torch.round(target, out=result[n])
        if marked:
            even = 2 * ((target - marks[n]) / 2).round() + marks[n]
            result[n] = torch.where(marks[n] < 0, result[n], even)
        torch.sub(result[n], target, out=errors[n + TAPS])
    return result.T.reshape(len(x), -1)[:, :x.shape[1]]


def build(config: dict | Config) -> PaperINN | LappedINN:
    """The network of a config, or of its fields, untrained. Raises KeyError, TypeError,
    ValueError."""
    networks = {"paper": (PaperConfig, PaperINN), "lapped": (LappedConfig, LappedINN)}
    preset = config["preset"] if isinstance(config, dict) else config.preset
    if preset == "robust":
        import robust  # the file beside this one
        networks["robust"] = robust.RobustConfig, robust.RobustINN
    make_config, network = networks[preset]
    return network(make_config(**config) if isinstance(config, dict) else config)


def load(path: str, device: str | torch.device = "cpu") -> PaperINN | LappedINN:
    """The model in a file, ready for hide and reveal. Raises OSError, or ValueError naming it."""
    with open(path, "rb") as file:
        try:
            content = torch.load(file, map_location="cpu", weights_only=True)
            config, state = content["config"], content["state_dict"]
            wide = config["growth"] + config["bands"]
            least = config.get("blocks", 0) * config.get("kernel", 0) * wide ** 2
            if not least <= sum(x.numel() for x in state.values()) <= file.seek(0, 2):
                raise ValueError("a crafted config or tensor would fill the memory")
            if not all(x.dtype in FLOATS and x.isfinite().all() for x in state.values()):
                raise ValueError("a weight is not a finite number")
            model = build(config)
            model.load_state_dict(state)
        except Exception as error:  # a damaged file raises one of half a dozen types
            raise ValueError(f"{path} is not a network of this version (a lattice is for "
                             f"lattice.load), or is damaged") from error
    return model.to(device).eval()


def _rows(model: nn.Module, shortest: int = 1, **waves: Tensor) -> list[Tensor]:
    """Waves, [T] or [B, T] and all alike, as [B, T] of the model's type. Raises ValueError."""
    (first, wave), *_ = waves.items()
    shape = list(getattr(wave, "shape", ()))
    for name, x in waves.items():
        if not isinstance(x, Tensor) or x.dtype not in FLOATS:
            kind = x.dtype if isinstance(x, Tensor) else type(x).__name__
            raise ValueError(f"{name} must be a float32 tensor, not {kind}")
        if list(x.shape) != shape:
            raise ValueError(f"{name} must have the shape {shape}, not {list(x.shape)}")
        if not x.isfinite().all():
            raise ValueError(f"{name} has samples that are NaN or infinite")
    if len(shape) not in (1, 2) or not wave.numel() or shape[-1] < shortest:
        raise ValueError(f"{first} must have the shape [T] or [B, T], T >= {shortest}, not {shape}")
    if (dtype := next(model.parameters()).dtype) not in FLOATS:
        raise ValueError(f"the model must be float32, not {dtype}, in which nothing is exact")
    return [x.to(dtype).view(-1, shape[-1]) for x in waves.values()]
