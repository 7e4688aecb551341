"""WavInWav: hide a speech waveform inside another one of the same length, and get it back.

An invertible neural network (INN) runs forward to hide and backward to reveal:

    cover, secret  -- hide -->    stego, r          the stego sounds like the cover
    stego, z       -- reveal -->  cover^, secret^   z stands in for r, which is thrown away

After "WavInWav: Time-domain Speech Hiding via Invertible Neural Network" (arXiv 2510.02915).
To be copied into other projects: it imports torch and the standard library only.

    model = wavinwav.load("wavinwav.pt")
    stego, r = model.hide(cover, secret)      # float tensors [T] or [B, T] in [-1, 1)
    cover_, secret_ = model.reveal(stego)

Shapes: B batch, T samples, M bands of the lapped transform, F frames, P phases of frames.
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

Pair = tuple[Tensor, Tensor]
nothing = torch.zeros_like  # a subnet that changes nothing


class AffineCoupling(nn.Module):
    """One invertible block, section III of the paper. Two tensors -> two of the same shapes.

    cover' = cover + phi(secret); secret' = secret * exp(a(rho(cover'))) + eta(cover').
    rho and eta read cover' in both directions, since that is what reveal has. Whatever phi, rho
    and eta are, the inverse is exact. The log-scale is bounded as in HiNet (Jing et al. 2021).
    """

    def __init__(self, phi=nothing, rho=nothing, eta=nothing, clamp: float = 2.0):
        super().__init__()
        self.phi, self.rho, self.eta, self.clamp = phi, rho, eta, clamp

    def scale(self, cover: Tensor) -> Tensor:
        return torch.exp(self.clamp * (2 * torch.sigmoid(self.rho(cover).to(cover.dtype)) - 1))

    def forward(self, cover: Tensor, secret: Tensor) -> Pair:
        cover = cover + self.phi(secret)
        secret = secret * self.scale(cover) + self.eta(cover)
        return cover, secret

    def inverse(self, cover: Tensor, secret: Tensor) -> Pair:
        secret = (secret - self.eta(cover)) / self.scale(cover)
        cover = cover - self.phi(secret)
        return cover, secret


class Config:
    """What defines a network: `Config.paper()` or `Config.lapped()`, with changes by keyword."""

    ranges = dict(
        preset=("lapped", "paper"), robust=(False, True), sample_rate=(1, 1e6), clamp=(0.01, 99),
        growth=(1, 9999), blocks=(1, 999), kernel=(1, 999), bands=(1, 4096), carriers=(1, 4096),
        stego_snr=(0, 120), follow=(0, 0.25), margin=(0.01, 3), reserve=(0, 0.4))

    def __post_init__(self):
        """Raises ValueError naming the field whose value is invalid."""
        for field in fields(self):
            value, (low, high) = getattr(self, field.name), self.ranges[field.name]
            types = (int, float) if field.type is float else (field.type,)
            if type(value) not in types or not low <= value <= high:
                raise ValueError(f"Config.{field.name} must be of type {field.type.__name__} and "
                                 f"from {low} to {high}, not {value!r}")


@dataclass
class PaperConfig(Config):
    """Kernel and growth are inferred from the 3.39 M parameters that the paper states."""

    preset: str = "paper"
    sample_rate: int = 16000  # Hz, of the training audio; the network runs at any
    blocks: int = 16  # affine couplings in the stack
    growth: int = 32  # channels that each inner conv of a dense subnet adds
    kernel: int = 11  # taps of these convs
    clamp: float = 2.0  # bound of the log-scale
    robust: bool = False  # a second stack, trained to reveal from stegos that have changed


@dataclass
class LappedConfig(Config):
    preset: str = "lapped"
    sample_rate: int = 16000  # Hz, of the training audio; the network runs at any
    bands: int = 64  # of the lapped transform
    carriers: int = 64  # of these, the lowest ones carry the same of the secret
    growth: int = 16  # channels of the subnets that foresee the secret's level
    clamp: float = 6.0  # bound of the log-scale
    stego_snr: float = 46.0  # dB, of a stego unless another is asked for
    follow: float = 0.125  # power of the stego's local power that the cells' widths follow
    margin: float = 1.2  # LSB that are left empty at both edges of a cell
    reserve: float = 0.0  # of a cell's usual width, left empty there too, for noise
    robust: bool = False  # a second conditioner, trained to reveal from stegos that have changed


Config.paper, Config.lapped = PaperConfig, LappedConfig


class DenseSubnet(nn.Module):
    """Five convs, each reading the input and all outputs before it (as in HiNet). [B, 1, T]."""

    recompute = False  # in training: keep the input only, and compute the rest again

    def __init__(self, config: PaperConfig):
        super().__init__()
        self.convs = nn.ModuleList(
            nn.Conv1d(1 + i * config.growth, config.growth if i < 4 else 1, config.kernel,
                      padding="same") for i in range(5))

    def compute(self, x: Tensor) -> Tensor:
        for conv in self.convs[:-1]:
            x = torch.cat([x, functional.leaky_relu(conv(x), 0.2)], 1)
        return self.convs[-1](x)

    def forward(self, x: Tensor) -> Tensor:
        if self.recompute and torch.is_grad_enabled():
            return checkpoint(self.compute, x, use_reentrant=False)
        return self.compute(x)


def precise(method):
    """Runs a method without gradients and without autocast, under which nothing is exact."""
    @functools.wraps(method)
    def run(self, *args, **options):
        device = next(self.parameters()).device.type
        with torch.no_grad(), torch.autocast(device, enabled=False):
            return method(self, *args, **options)
    return run


class PaperINN(nn.Module):
    """The paper's network: blocks of dense subnets on the waveform itself; z is N(0, I)."""

    def __init__(self, config: PaperConfig):
        super().__init__()
        self.config = config
        self.blocks = nn.ModuleList(
            AffineCoupling(*(DenseSubnet(config) for _ in range(3)), config.clamp)
            for _ in range(config.blocks))
        if config.robust:
            self.robust_blocks = copy.deepcopy(self.blocks)

    def forward(self, cover: Tensor, secret: Tensor) -> Pair:
        """cover, secret [B, T] -> stego, r [B, T]."""
        x = cover[:, None], secret[:, None]
        for block in self.blocks:
            x = block(*x)
        return x[0][:, 0], x[1][:, 0]

    def inverse(self, stego: Tensor, r: Tensor, robust: bool = False) -> Pair:
        """Inverse of `forward`, or what the stack that the robust stage trained makes of it."""
        x = stego[:, None], r[:, None]
        for block in reversed(self.robust_blocks if robust else self.blocks):
            x = block.inverse(*x)
        return x[0][:, 0], x[1][:, 0]

    @precise
    def hide(self, cover: Tensor, secret: Tensor) -> Pair:
        """cover, secret [T] or [B, T] in [-1, 1) -> stego, r, like them. Raises ValueError."""
        stego, r = self(*_rows(self, cover=cover, secret=secret))
        return stego.view_as(cover), r.view_as(cover)

    @precise
    def reveal(self, stego: Tensor, z: Tensor | None = None) -> Pair:
        """stego [T] or [B, T] -> cover, secret: exactly where z is r, else with z of N(0, I)."""
        x, r = _rows(self, stego=stego, z=z)
        r = torch.randn_like(x) if z is None else r
        cover, secret = self.inverse(x, r, robust=z is None and self.config.robust)
        return cover.view_as(stego), secret.view_as(stego)


# The preset `lapped`: the same block, on lapped-transform coefficients, with a sawtooth for phi.

FULL_SCALE = 32768  # LSB of 16-bit PCM
ORDER = 0, 2, 1, 3  # in which frames are hidden, by their number modulo 4; its own inverse
NARROWEST = 8  # LSB, of a cell
NOMINAL = 1500  # LSB, root mean square of a levelled secret
CODES = 1 << 12  # of settings: widths 1/256 octave apart, of which 16 in turn tell gains 3 dB apart
TAPS, STRETCH = 16, 4096  # of the filter that shapes rounding; samples that it runs through


class ScaleSubnet(nn.Module):
    """How loud a secret's next phase is, from those known. [B, P, M, F] -> [B, M, F]."""

    def __init__(self, phases: int, config: LappedConfig):
        super().__init__()
        self.first = nn.Conv2d(phases, config.growth, (7, 3), padding="same", bias=False)
        self.band = nn.Parameter(0.1 * torch.randn(config.growth, config.carriers, 1))
        self.second = nn.Conv2d(config.growth, config.growth, (3, 1), padding="same")
        self.last = nn.Conv2d(config.growth, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(0.2 * torch.log(x.square() + 1e-3)) + self.band
        x = self.second(functional.leaky_relu(x, 0.2))
        return self.last(functional.leaky_relu(x, 0.2))[:, 0]


class Conditioner(nn.Module):
    """Brings a secret's coefficients into [-1, 1], phase by phase: scales each by what a subnet
    foresees from those known, then compands it, v = asinh(slope u) / asinh(slope limit)."""

    def __init__(self, config: LappedConfig):
        super().__init__()
        self.contexts = nn.ModuleList(
            AffineCoupling(rho=ScaleSubnet(known, config), clamp=config.clamp)
            for known in range(1, len(ORDER)))
        self.log_slope = nn.Parameter(torch.full((len(ORDER), config.carriers, 1), math.log(4)))
        self.log_limit = nn.Parameter(torch.full((len(ORDER), config.carriers, 1), math.log(16)))

    def curve(self, known: list[Tensor]) -> tuple[Tensor | float, Tensor, Tensor, Tensor]:
        """Of the phase after those known: its scale, slope, limit, and asinh(slope limit)."""
        scale = self.contexts[len(known) - 1].scale(torch.stack(known, 1)) if known else 1.0
        slope, limit = self.log_slope[len(known)].exp(), self.log_limit[len(known)].exp()
        return scale, slope, limit, torch.asinh(slope * limit)

    def forward(self, x: Tensor, known: list[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """-> v, x within the limits, dx / dv."""
        scale, slope, limit, top = self.curve(known)
        u = torch.minimum(torch.maximum(x * scale, -limit), limit)
        return torch.asinh(slope * u) / top, u / scale, top * (u ** 2 + slope ** -2).sqrt() / scale

    def inverse(self, v: Tensor, known: list[Tensor]) -> Tensor:
        scale, slope, _, top = self.curve(known)
        return torch.sinh(v.clamp(-1, 1) * top) / slope / scale


def wrap(x: Tensor) -> Tensor:
    """A sawtooth: into the cell from -1/2 to 1/2."""
    return x - x.round()


class LappedINN(nn.Module):
    """Dirty-paper coding (Costa 1983) by two of the paper's blocks, with rho = 0. In units of a
    cell, for coefficients c of the cover and s of the secret, |s| < 1/2:

        block 1: eta(c) = -c                    s' = s - c
        block 2: phi = wrap, eta(c) = round(c)  c' = c + wrap(s - c), s'' = c' - c = r

    The stego c' is s modulo the cell, next to c: reveal with z = 0 finds s = wrap(c'), and loses
    only what rounding to a file takes. `round_to_file` makes this fall where the secret is loud.
    A setting is the cells' width in LSB and the gain that levels the secret, both [B, 1, 1].
    """

    def __init__(self, config: LappedConfig):
        super().__init__()
        if config.carriers > config.bands:
            raise ValueError(f"Config.carriers must be at most the {config.bands} bands")
        self.config = config
        self.blocks = nn.ModuleList([AffineCoupling(eta=torch.neg),
                                     AffineCoupling(phi=wrap, eta=torch.round)])
        self.conditioner = Conditioner(config)
        if config.robust:
            self.robust_conditioner = copy.deepcopy(self.conditioner)
        self.log_cells = nn.Parameter(torch.zeros(len(ORDER), config.carriers, 1))
        self.register_buffer("level", torch.ones(config.carriers, 1))  # LSB, of levelled speech

    def cells(self, stego: list[Tensor], width: Tensor) -> Pair:
        """Of the phase after these of the stego: widths in LSB, and the secret's room to each side.
        They follow but a small power of the stego's power, since rounding will change that."""
        learned, follow = self.log_cells.exp(), 0.06 ** self.config.follow
        if stego:
            power = torch.stack(stego).detach().square().mean(0)
            power = functional.avg_pool2d(power, (9, 3), 1, (4, 1), count_include_pad=False)
            usual = (30 * width * self.level / NOMINAL).square()
            follow = ((power + 256) / usual).pow(self.config.follow).clamp(0.1, 10)
        cells = width * learned[len(stego)] / learned.square().mean().sqrt() * follow
        edge = self.config.margin + self.config.reserve * width
        cells = torch.maximum(cells.clamp_min(NARROWEST), 2.5 * edge)
        return cells, 0.5 * cells - edge

    def forward(self, cover: Tensor, secret: Tensor, width: Tensor, gain: Tensor,
                dither: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """cover, secret [B, T], T a multiple of bands -> stego [B, T]; r [B, 2 M, F], changes in
        cells and what the limits cut off; and how much each carrier's errors change the secret,
        [B, carriers, F]. A dither [B, T], from -1/2 to 1/2, is a one-time pad modulo the cell."""
        cover, secret = (lapped(FULL_SCALE * x, self.config.bands) for x in (cover, secret))
        stegos, changes, rests, slopes, known = [], [], [], [], []
        for c, x, pad in zip(*map(self.phases, (cover, secret, dither))):
            x = x * gain / self.level
            v, kept, slope = self.conditioner(x, known)
            cells, room = self.cells(stegos, width)
            unit = cells.detach()
            c, s = c / unit, wrap(v * room / unit + pad)
            for block in self.blocks:
                c, s = block(c, s)
            known.append(kept)
            stegos.append(c * unit + s.detach() * (cells - unit))  # by r alone c depends on cells
            changes.append(s)
            rests.append((x - kept) * self.level / gain)
            slopes.append((slope * self.level / gain / room).detach())
        r = [self.frames(changes, torch.zeros_like(cover)), self.frames(rests, secret)]
        stego = unlapped(self.frames(stegos, cover)) / FULL_SCALE
        return stego, torch.cat(r, 1), self.frames(slopes, secret)[:, :self.config.carriers]

    def inverse(self, stego: Tensor, r: Tensor | None, width: Tensor, gain: Tensor,
                dither: Tensor | None = None, robust: bool = False) -> Pair:
        """Inverse of `forward`; without r, what the stego alone tells."""
        conditioner = self.robust_conditioner if robust else self.conditioner
        stego = lapped(FULL_SCALE * stego, self.config.bands)
        change, rest = stego.new_zeros(2, *stego.shape) if r is None else r.chunk(2, 1)
        stegos, covers, secrets, known = self.phases(stego), [], [], []
        for s, left, pad in zip(*map(self.phases, (change, rest, dither))):
            cells, room = self.cells(stegos[:len(known)], width)
            unit = cells.detach()
            c = stegos[len(known)] / unit
            for block in reversed(self.blocks):
                c, s = block.inverse(c, s)
            known.append(conditioner.inverse(wrap(s - pad) * unit / room, known))
            covers.append(c * unit)
            secrets.append(known[-1] * self.level / gain + left)
        cover, secret = self.frames(covers, stego), self.frames(secrets, rest)
        return unlapped(cover) / FULL_SCALE, unlapped(secret) / FULL_SCALE

    def phases(self, x: Tensor | None) -> list[Tensor] | list[float]:
        """Carriers of [B, M, F] or [B, T] -> P times [B, carriers, F / P], in order; None -> 0."""
        if x is None:
            return [0.0] * len(ORDER)
        x = x.reshape(len(x), self.config.bands, -1)[:, :self.config.carriers]
        x = functional.pad(x, (0, -x.shape[2] % len(ORDER))).unflatten(2, (-1, len(ORDER)))
        return [x[..., index] for index in ORDER]

    def frames(self, phases: list[Tensor], other: Tensor) -> Tensor:
        """Inverse of `phases`; the bands that carry nothing are those of `other`."""
        x = torch.stack([phases[index] for index in ORDER], 3).flatten(2)
        return torch.cat([x[:, :, :other.shape[2]], other[:, self.config.carriers:]], 1)

    def setting(self, cover: Tensor, secret: Tensor, snr: Tensor) -> Pair:
        """Cells about as wide as a stego SNR [B] in dB allows, and the gain."""
        rms, level = (FULL_SCALE * x.square().mean(1).sqrt() for x in (cover, secret))
        gain = (NOMINAL / level.clamp_min(1)).clamp(2 ** -4, 2 ** 3.5)
        gain = torch.ones_like(gain) if self.config.reserve else gain
        spread = 12 * self.config.bands / self.config.carriers
        return (spread ** 0.5 * rms * 10 ** (-snr / 20))[:, None, None], gain[:, None, None]

    def decode(self, code: Tensor) -> Pair:
        """The setting of codes [B]. Where noise is expected, a width cannot tell a gain."""
        gain = torch.ones_like(code) if self.config.reserve else 2 ** ((code % 16 - 8) / 2)
        return NARROWEST * 2 ** (code[:, None, None] / 256), gain[:, None, None]

    @precise
    def fit(self, cover: Tensor, secret: Tensor, snr: float, dither: Tensor | None = None
            ) -> Tensor:
        """The codes [B] by which stegos of [B, T] come closest to an SNR in dB."""
        width, gain = self.setting(cover, secret, torch.full_like(cover[:, 0], snr))
        last = (2 * gain.log2()).round().flatten() + 8  # its code modulo 16
        for _ in range(4):
            room = (2 * width / FULL_SCALE).clamp_max(0.4)[:, :, 0]  # as `embed` will need
            code = ((256 * (width / NARROWEST).log2().flatten() - last) / 16).round()
            code = 16 * code.clamp(0, CODES // 16 - 1) + last
            width, gain = self.decode(code)
            limited = cover.clamp(room - 1, 1 - room)
            change = self(limited, secret, width, gain, dither)[0] - cover
            ratio = cover.square().mean(1) / change.square().mean(1).clamp_min(1e-20)
            width = width * (10 ** (-snr / 20) * ratio.sqrt()).clamp(1e-3, 1e3)[:, None, None]
        return code

    def rest(self, cover: Tensor, width: Tensor, gain: Tensor, dither: Tensor | float,
             secret: Tensor | None = None) -> Tensor:
        """Of samples [B, n] that make no whole frame: the stego's, or the secret's from a stego."""
        cell, room = width[:, 0] / FULL_SCALE, 0.5 - self.config.margin / width[:, 0]
        slope = 4 * gain[:, 0] * FULL_SCALE / NOMINAL
        top = torch.asinh(slope)
        if secret is None:
            v = wrap(wrap(cover / cell) - dither) / room
            return torch.sinh(v.clamp(-1, 1) * top) / slope
        aim = torch.asinh(slope * secret) / top * room + dither
        stego = cover + cell * wrap(aim - cover / cell)
        return stego - cell * (stego >= 1 - 0.5 / FULL_SCALE) + cell * (stego < -1)

    @precise
    def embed(self, cover: Tensor, secret: Tensor, code: Tensor, dither: Tensor | None = None,
              depth: int = 16, parity: Tensor | None = None) -> Pair:
        """cover, secret [B, T] -> stego, rounded to `depth` bits and never clipped, and r [B, R].
        parity [B, n]: of the first samples, in steps of `depth`; -1 for any."""
        setting, step = self.decode(code), 2.0 ** (1 - depth)
        (x, x_end), (y, y_end), (pad, pad_end) = map(self.cut, (cover, secret, dither))
        rest = (self.rest(x_end, *setting, pad_end, y_end) / step).round() * step
        headroom = torch.zeros_like(x[:, :1])
        while headroom.max() < 0.5:
            limited = x.clamp(headroom - 1, 1 - step - headroom)
            exact, r, slope = self(limited, y, *setting, pad)
            rounded = step * round_to_file(exact / step, slope, self.config.bands, parity)
            stego = torch.cat([rounded, rest], 1)
            over = torch.maximum(stego.amax(1) - 1 + step, -1 - stego.amin(1))[:, None]
            if over.max() <= 0:
                r = [r.flatten(1), exact - rounded, x - limited, x_end, y_end]
                return stego, torch.cat(r, 1)
            headroom = headroom + (over + step) * (over > 0)
        raise ValueError("there is no room within full scale; ask for a higher SNR")

    @precise
    def extract(self, stego: Tensor, code: Tensor, dither: Tensor | None = None,
                r: Tensor | None = None) -> Pair:
        """Inverse of `embed`, exactly where r is given. stego [B, T] -> cover, secret."""
        setting = self.decode(code)
        (x, x_end), (pad, pad_end) = self.cut(stego), self.cut(dither)
        if r is None:
            cover, secret = self.inverse(x, None, *setting, pad, self.config.robust)
            y_end = self.rest(x_end, *setting, pad_end)
        else:
            sizes = [2 * x.shape[1], *[x.shape[1]] * 2, *[x_end.shape[1]] * 2]
            if r.shape != (len(x), sum(sizes)):
                raise ValueError(f"z must be an r of such a stego, with {sum(sizes)} values")
            r, rounding, limits, x_end, y_end = r.split(sizes, 1)
            r = r.unflatten(1, (2 * self.config.bands, -1))
            cover, secret = self.inverse(x + rounding, r, *setting, pad)
            cover = cover + limits
        return torch.cat([cover, x_end], 1), torch.cat([secret, y_end], 1)

    @precise
    def hide(self, cover: Tensor, secret: Tensor, snr: float | None = None,
             dither: Tensor | None = None, depth: int = 16) -> Pair:
        """cover, secret [T] or [B, T] in [-1, 1) -> stego, like them, of `depth` bits; r. At an SNR
        in dB, of the config if None; with a dither, like them, see `forward`. Raises ValueError.
        The lowest bit of every fourth of the first 48 samples tells the code."""
        x, y, pad = _rows(self, cover=cover, secret=secret, dither=dither)
        snr = self.config.stego_snr if snr is None else snr
        code = self.fit(self.cut(x)[0], self.cut(y)[0], snr, self.cut(pad)[0])
        bits = code.long()[:, None] >> torch.arange(12, device=code.device) & 1
        parity = functional.pad(bits[:, :, None], (0, 3), value=-1).flatten(1)
        stego, r = self.embed(x, y, code, pad, depth, parity)
        return stego.view_as(cover), r.view(*cover.shape[:-1], -1)

    @precise
    def reveal(self, stego: Tensor, z: Tensor | None = None, dither: Tensor | None = None,
               depth: int = 16) -> Pair:
        """stego [T] or [B, T] -> cover, secret, exactly where z is r. Raises ValueError."""
        x, pad = _rows(self, stego=stego, dither=dither)
        r, = _rows(self, z=z)
        bits = (x[:, :48:4] * 2 ** (depth - 1)).round().long() & 1
        code = (bits << torch.arange(bits.shape[1], device=x.device)).sum(1).to(x)
        cover, secret = self.extract(x, code, pad, r)
        return cover.view_as(stego), secret.view_as(stego)

    def cut(self, x: Tensor | None) -> tuple[Tensor | None, Tensor | float]:
        """[B, T] -> the part that makes whole frames, and the rest; None -> None and 0."""
        if x is None:
            return None, 0.0
        if x.shape[1] < max(48, self.config.bands):
            raise ValueError(f"{x.shape[1]} samples are too short to hide anything in")
        return x.tensor_split([x.shape[1] // self.config.bands * self.config.bands], 1)


def lapped(x: Tensor, bands: int) -> Tensor:
    """Orthonormal lapped transform (MDCT, Princen and Bradley 1986), circular, of two hops a frame.
    [B, T = M F] -> [B, M, F]."""
    hops = x.unflatten(1, (-1, bands))
    with torch.autocast(x.device.type, enabled=False):
        return (torch.cat([hops, hops.roll(-1, 1)], 2) @ _basis(bands, x)).mT


def unlapped(x: Tensor) -> Tensor:
    """Inverse of `lapped`. [B, M, F] -> [B, T = M F]."""
    with torch.autocast(x.device.type, enabled=False):
        first, second = (x.mT @ _basis(x.shape[1], x).T).chunk(2, 2)
    return (first + second.roll(1, 1)).flatten(1)


def _basis(bands: int, like: Tensor) -> Tensor:
    """Cosines under a sine window [2 M, M]."""
    n = torch.arange(2 * bands, dtype=torch.float64, device=like.device)[:, None] + 0.5
    waves = torch.cos(math.pi / bands * (n + bands / 2) * n[:bands, 0])
    return (math.sqrt(2 / bands) * torch.sin(math.pi / 2 / bands * n) * waves).to(like)


def noise_weights(slope: Tensor, bands: int) -> Tensor:
    """How much an error's power in each coefficient matters [B, M, F], from slopes of carriers."""
    power = functional.avg_pool2d(slope.square(), 3, 1, 1, count_include_pad=False)
    power = power / power.mean(1, keepdim=True) + 1e-3
    others = power.amin(1, keepdim=True).expand(-1, bands - power.shape[1], -1)
    return torch.cat([power, others], 1)


def round_to_file(x: Tensor, slope: Tensor, bands: int, parity: Tensor | None = None) -> Tensor:
    """Round x [B, T] to integers, by error feedback (Gerzon and Craven 1989) that gives the error
    the inverse of `noise_weights` for a spectrum. parity [B, n]: see `LappedINN.embed`."""
    weights = noise_weights(slope, bands)
    weights = weights + weights.roll(1, 2)  # of a hop, which is in two frames
    lags = torch.arange(TAPS + 1, device=x.device)[:, None]
    angles = lags * (torch.arange(bands, device=x.device) + 0.5) * (math.pi / bands)
    lag = (angles.cos().to(weights) @ weights).double()  # autocorrelation [B, TAPS + 1, F]
    taps, error = (lags == 0) * torch.ones_like(lag), 1.0001 * lag[:, :1]
    for i in range(1, TAPS + 1):  # Levinson and Durbin
        k = -(taps[:, :i] * lag[:, 1:i + 1].flip(1)).sum(1, keepdim=True) / error
        taps[:, 1:i + 1] += k * taps[:, :i].flip(1)
        error = error * (1 - k * k)
    hops = min(weights.shape[2], -(-STRETCH // bands))  # a stretch: all are rounded side by side
    fill = -weights.shape[2] % hops
    taps = functional.pad(taps[:, 1:].flip(1).to(x), (0, fill)).mT.reshape(-1, hops, 1, TAPS)
    taps = taps.transpose(0, 1).contiguous()
    wanted = functional.pad(x, (0, fill * bands)).view(-1, hops * bands).T.contiguous()
    told = 0 if parity is None else parity.shape[1]
    if told:
        parity = functional.pad(parity.to(x), (0, x.shape[1] + fill * bands - told), value=-1)
        parity = parity.view(-1, hops * bands).T[:, :, None, None]
    result, errors = torch.empty_like(wanted), x.new_zeros(taps.shape[1], TAPS + len(wanted), 1)
    for n, (target, rounded) in enumerate(zip(wanted[:, :, None, None], result[:, :, None, None])):
        target = torch.baddbmm(target, taps[n // bands], errors[:, n:n + TAPS])
        torch.round(target, out=rounded)
        if n < told:
            near = 2 * ((target - parity[n]) / 2).round() + parity[n]
            rounded.copy_(torch.where(parity[n] < 0, rounded, near))
        torch.sub(rounded, target, out=errors[:, n + TAPS:n + TAPS + 1])
    return result.T.reshape(len(x), -1)[:, :x.shape[1]]


def read_checkpoint(path: str | os.PathLike) -> dict:
    """What training wrote, on the CPU. Raises OSError, or ValueError naming the file."""
    with open(path, "rb") as file:
        try:
            content = torch.load(file, map_location="cpu", weights_only=True)
        except Exception as error:  # a damaged file raises one of half a dozen types
            raise ValueError(f"{path} is not a WavInWav model, or is damaged") from error
    if not isinstance(content, dict) or content.get("wavinwav") != 2:
        raise ValueError(f"{path} is not a WavInWav model of this version")
    return content


def build(config: dict | Config) -> PaperINN | LappedINN:
    """The network of a config, or its fields, untrained. Raises KeyError, TypeError, ValueError."""
    if isinstance(config, dict):
        config = {"paper": PaperConfig, "lapped": LappedConfig}[config["preset"]](**config)
    return (PaperINN if isinstance(config, PaperConfig) else LappedINN)(config)


def load(path: str | os.PathLike, device: str | torch.device = "cpu") -> PaperINN | LappedINN:
    """The model in a file, ready for hide and reveal. Raises OSError, or ValueError naming it."""
    content = read_checkpoint(path)
    if content.get("config", {}).get("preset") == "lattice":
        raise ValueError(f"{path} is a lattice model, which lattice.load reads")
    try:
        model = build(content["config"])
        model.load_state_dict(content["state_dict"])
    except (KeyError, TypeError, RuntimeError, ValueError) as error:
        raise ValueError(f"{path} holds a model that does not fit its own description") from error
    return model.to(device).eval()


def _rows(model: nn.Module, **waves: Tensor | None) -> list[Tensor | None]:
    """[T] or [B, T], all alike, as [B, T] of the model's type; a dither or z may be None. Raises
    ValueError naming what is invalid."""
    shape = getattr(next(iter(waves.values())), "shape", None)
    for name, x in waves.items():
        if x is None and name in ("dither", "z"):
            continue
        if not isinstance(x, Tensor) or x.dim() not in (1, 2) or not x.is_floating_point():
            raise ValueError(f"{name} must be a floating-point tensor [T] or [B, T]")
        if x.shape != shape or not x.numel() or not x.isfinite().all():
            raise ValueError(f"{name} must have finite samples only, and the shape {list(shape)}")
    dtype = next(model.parameters()).dtype
    return [x if x is None else x.to(dtype).view(-1, x.shape[-1]) for x in waves.values()]
