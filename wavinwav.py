"""WavInWav: hide a speech waveform inside another one of the same length, and get it back.

An invertible neural network (INN) runs forward to hide and backward to reveal:

    cover, secret  -- hide -->    stego, r          the stego sounds like the cover
    stego, z       -- reveal -->  cover^, secret^   z stands in for r, which is thrown away

After "WavInWav: Time-domain Speech Hiding via Invertible Neural Network" (arXiv 2510.02915).
To be copied into other projects: it imports torch and the standard library only.
Shapes: B batch, T samples, M bands of the lapped transform, F frames, P phases of frames.

    model = wavinwav.load("wavinwav.pt")
    stego, r = model.hide(cover, secret)      # float tensors [T] or [B, T] in [-1, 1)
    cover_, secret_ = model.reveal(stego)
"""

import copy
import functools
import math
from dataclasses import dataclass, fields

import torch
from torch import Tensor, nn
from torch.nn import functional

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

    def scale(self, cover: Tensor) -> Tensor | float:
        rho = self.rho(cover).to(cover.dtype) if self.rho is not nothing else None
        return 1.0 if rho is None else torch.exp(self.clamp * (2 * torch.sigmoid(rho) - 1))

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
    squeeze: int = 1  # samples that are channels of one step of the convs; the paper has 1
    robust: bool = False  # a second stack, trained to reveal from stegos that have changed


@dataclass
class LappedConfig(Config):
    preset: str = "lapped"
    sample_rate: int = 16000  # Hz, of the training audio; the network runs at any
    bands: int = 64  # of the lapped transform
    carriers: int = 64  # of these, the lowest ones carry the same of the secret
    growth: int = 8  # channels of the subnets that foresee the secret's level
    clamp: float = 6.0  # bound of the log-scale
    stego_snr: float = 48.0  # dB, of a stego unless another is asked for
    margin: float = 1.2  # LSB that are left empty at both edges of a cell
    reserve: float = 0.0  # of a cell's usual width, left empty there too, for noise


Config.paper, Config.lapped = PaperConfig, LappedConfig


class DenseSubnet(nn.Module):
    """Five convs, each reading the input and all outputs before it (as in HiNet). [B, T]."""

    def __init__(self, config: PaperConfig):
        super().__init__()
        self.squeeze = n = config.squeeze
        self.convs = nn.ModuleList(
            nn.Conv1d(n + i * config.growth, config.growth if i < 4 else n, config.kernel,
                      padding="same") for i in range(5))

    def forward(self, wave: Tensor) -> Tensor:
        x = functional.pad(wave, (0, -wave.shape[1] % self.squeeze))
        x = x.unflatten(1, (-1, self.squeeze)).mT
        for conv in self.convs[:-1]:
            x = torch.cat([x, functional.leaky_relu(conv(x), 0.2)], 1)
        return self.convs[-1](x).mT.flatten(1)[:, :wave.shape[1]]


def precise(method):
    """Runs a method without gradients and without autocast, under which nothing is exact."""
    @functools.wraps(method)
    def run(self, *args, **options):
        with torch.no_grad(), torch.autocast(next(self.parameters()).device.type, enabled=False):
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
        for block in self.blocks:
            cover, secret = block(cover, secret)
        return cover, secret

    def inverse(self, stego: Tensor, r: Tensor, robust: bool = False) -> Pair:
        """Inverse of `forward`, or what the stack that the robust stage trained makes of it."""
        for block in reversed(self.robust_blocks if robust else self.blocks):
            stego, r = block.inverse(stego, r)
        return stego, r

    @precise
    def hide(self, cover: Tensor, secret: Tensor) -> Pair:
        """cover, secret [T] or [B, T] in [-1, 1) -> stego, r, like them. Raises ValueError."""
        return tuple(x.view_as(cover) for x in self(*_rows(self, cover=cover, secret=secret)))

    @precise
    def reveal(self, stego: Tensor, z: Tensor | None = None) -> Pair:
        """stego [T] or [B, T] -> cover, secret: exactly where z is r, else with z of N(0, I)."""
        x, r = _rows(self, stego=stego, z=z)
        r = torch.randn_like(x) if z is None else r
        return tuple(y.view_as(stego) for y in self.inverse(x, r, z is None and self.config.robust))


ORDER = 0, 2, 1, 3  # in which frames are hidden, by their number modulo 4; its own inverse
FULL_SCALE, NARROWEST, NOMINAL = 32768, 8, 1500  # LSB: of 16 bits; a cell; a levelled secret
TAPS, STRETCH = 16, 1024  # of the filter that shapes rounding; samples that it runs through


class ScaleSubnet(nn.Module):
    """How loud a secret's next phase is, from those known. [B, P, F, M] -> [B, F, M]."""

    def __init__(self, phases: int, config: LappedConfig):
        super().__init__()
        self.first = nn.Conv2d(phases, config.growth, (3, 7), padding="same", bias=False)
        self.band = nn.Parameter(0.1 * torch.randn(config.growth, 1, config.carriers))
        self.last = nn.Conv2d(config.growth, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(0.2 * torch.log(x.square() + 1e-3)) + self.band
        return self.last(functional.leaky_relu(x, 0.2))[:, 0]


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
    The secret's phases are scaled by what subnets foresee from those before, and companded.
    """

    def __init__(self, config: LappedConfig):
        super().__init__()
        if config.carriers > config.bands:
            raise ValueError(f"Config.carriers must be at most the {config.bands} bands")
        self.config = config
        self.blocks = nn.ModuleList([AffineCoupling(eta=torch.neg),
                                     AffineCoupling(phi=wrap, eta=torch.round)])
        self.scales = nn.ModuleList(
            AffineCoupling(rho=ScaleSubnet(n, config), clamp=config.clamp) for n in (1, 2, 3))
        starts = [(3, 1), (5, 4), (1, 1)] if config.reserve else [(16, 2), (20, 12), (1, 1)]
        starts = torch.tensor(starts).log()[:, [0, 1, 1, 1], None, None]  # of phase 0, others
        self.log_slope, self.log_limit, self.log_cells = (
            nn.Parameter(start.repeat(1, 1, config.carriers)) for start in starts)
        self.register_buffer("level", torch.ones(config.carriers))  # LSB, of levelled speech

    def curve(self, known: list[Tensor]) -> tuple[Tensor | float, Tensor, Tensor, Tensor]:
        """Of the phase after those known: its scale, slope, limit, and asinh(slope limit)."""
        scale = self.scales[len(known) - 1].scale(torch.stack(known, 1)) if known else 1.0
        slope, limit = self.log_slope[len(known)].exp(), self.log_limit[len(known)].exp()
        return scale, slope, limit, torch.asinh(slope * limit)

    def compand(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """-> v = asinh(slope u) / asinh(slope limit), u = scale x; x within the limits; dx / dv."""
        known, companded, slopes = [], [], []
        for y in x.unbind(1):
            scale, slope, limit, top = self.curve(known)
            u = torch.minimum(torch.maximum(y * scale, -limit), limit)
            known.append(u / scale)
            root = (u ** 2 + slope ** -2).sqrt()
            companded.append((slope * (u.abs() + root)).log().copysign(u) / top)  # asinh
            slopes.append(top * root / scale)
        return torch.stack(companded, 1), torch.stack(known, 1), torch.stack(slopes, 1)

    def expand(self, v: Tensor) -> Tensor:
        """Inverse of `compand`; the farther noise took v beyond 1, the less it is believed."""
        known = []
        for y in v.unbind(1):
            scale, slope, _, top = self.curve(known)
            belief = 1 if self.training else (3 - 2 * y.abs()).clamp(0, 1)
            known.append(belief * torch.sinh(y.clamp(-1, 1) * top) / slope / scale)
        return torch.stack(known, 1)

    def cells(self, code: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Their widths in LSB, with and without gradient, the secret's room to each side of the
        centre [B, P, 1, M], and its gain. Where noise is expected, a width cannot tell a gain."""
        code = code[:, None, None, None]
        width, learned = NARROWEST * 2 ** (code / 256), self.log_cells.exp()
        gain = torch.ones_like(code) if self.config.reserve else 2 ** ((code % 16 - 8) / 2)
        edge = self.config.margin + self.config.reserve * width
        cells = (width * learned / learned.square().mean().sqrt()).clamp_min(NARROWEST)
        cells = torch.maximum(cells, 2.5 * edge)
        return cells, cells.detach(), 0.5 * cells - edge, gain

    def forward(self, cover: Tensor, secret: Tensor, code: Tensor, dither: Tensor | None = None,
                need_r: bool = True) -> tuple[Tensor, Tensor | None, Tensor]:
        """cover, secret [B, T] -> stego [B, T]; r [B, 2, T], what changes the cover and what the
        limits cut off the secret; how much errors in each coefficient change the secret [B, M, F].
        A dither, from -1/2 to 1/2 as `split` arranges it, is a one-time pad modulo the cell."""
        cells, unit, room, gain = self.cells(code)
        c, x = (self.split(lapped(FULL_SCALE * x, self.config.bands)) for x in (cover, secret))
        v, kept, slope = self.compand(x * gain / self.level)
        c, s = c / unit, v * room / unit
        s = s if dither is None else wrap(s + dither)
        for block in self.blocks:
            c, s = block(c, s)
        change = self.wave(s * unit + s.detach() * (cells - unit), cover)  # r alone moves cells
        slope = self.join((slope * self.level / gain / room).detach(), cover)
        rest = secret - self.wave(kept * self.level / gain, cover) if need_r else None
        return cover + change, torch.stack([change, rest], 1) if need_r else None, slope

    def inverse(self, stego: Tensor, r: Tensor | None, code: Tensor, dither: Tensor | None = None,
                need_cover: bool = True) -> tuple[Tensor | None, Tensor]:
        """Inverse of `forward`; without r, what the stego alone tells."""
        _, unit, room, gain = self.cells(code)
        c = x = self.split(lapped(FULL_SCALE * stego, self.config.bands)) / unit
        s = 0.0 if r is None else self.split(lapped(FULL_SCALE * r[:, 0], self.config.bands)) / unit
        for block in reversed(self.blocks):
            c, s = block.inverse(c, s)
        s = s if dither is None else wrap(s - dither)
        secret = self.wave(self.expand(s * unit / room) * self.level / gain, stego)
        cover = stego - self.wave((x - c) * unit, stego) if need_cover else None
        return cover, secret if r is None else secret + r[:, 1]

    def split(self, x: Tensor) -> Tensor:
        """[B, M, F] -> the carriers, phase by phase [B, P, F / P, carriers]; zeros at the end."""
        x = functional.pad(x.mT[..., :self.config.carriers], (0, 0, 0, -x.shape[2] % len(ORDER)))
        return torch.stack([x[:, index::len(ORDER)] for index in ORDER], 1)

    def join(self, x: Tensor, wave: Tensor) -> Tensor:
        """Inverse of `split`, for so long a wave; the bands that carry nothing are 0."""
        x = torch.stack([x[:, index] for index in ORDER], 2).flatten(1, 2)
        x = x[:, :math.ceil(wave.shape[1] / self.config.bands)]
        return functional.pad(x, (0, self.config.bands - self.config.carriers)).mT

    def wave(self, x: Tensor, like: Tensor) -> Tensor:
        """Coefficients in LSB, as `split` arranges them -> [B, T], as long as another."""
        return unlapped(self.join(x, like), like.shape[1]) / FULL_SCALE

    @precise
    def fit(self, cover: Tensor, secret: Tensor, snr: float | Tensor, dither: Tensor | None = None,
            rounds: int = 2) -> Tensor:
        """The code of cells by which stegos of [B, T] come close to an SNR in dB, after so many
        corrections. Integers [B]: widths 1/16 octave apart, times 16, plus gains 3 dB apart."""
        rms, level = (FULL_SCALE * x.square().mean(1).sqrt() for x in (cover, secret))
        gain = (2 * (NOMINAL / level.clamp_min(1)).log2()).round().clamp(-8, 7) + 8
        width = (12 * self.config.bands / self.config.carriers) ** 0.5 * rms * 10 ** (-snr / 20)
        while True:
            code = ((16 * (width / NARROWEST).log2()) - gain / 16).round().clamp(0, 255) * 16 + gain
            if not rounds:
                return code
            change = FULL_SCALE * (self(cover, secret, code, dither, need_r=False)[0] - cover)
            ratio = rms * 10 ** (-snr / 20) / change.square().mean(1).sqrt().clamp_min(1e-6)
            width, rounds = NARROWEST * 2 ** (code / 256) * ratio.clamp(1e-3, 1e3), rounds - 1

    @precise
    def hide(self, cover: Tensor, secret: Tensor, snr: float | None = None,
             dither: Tensor | None = None, depth: int = 16, code: Tensor | None = None,
             parity: Tensor | None = None, need_r: bool = True) -> Pair:
        """cover, secret [T] or [B, T] in [-1, 1) -> stego, like them, of `depth` bits and never
        clipped; r [4, T] or [B, 4, T] if needed. At an SNR in dB, the config's if None; with a
        dither as in `forward`. Lowest bits of every fourth of the first 48 samples tell `reveal`
        the code; or of all, what a parity [B, T] says, -1 for any, with a code. ValueError."""
        x, y = _rows(self, snr, depth, 45 if code is None else 1, cover=cover, secret=secret)
        step, snr = 2.0 ** (1 - depth), self.config.stego_snr if snr is None else snr
        code = self.fit(x, y, snr, dither) if code is None else code
        if parity is None:
            parity = torch.full_like(x, -1)
            parity[:, :48:4] = code.long()[:, None] >> torch.arange(12, device=code.device) & 1
        headroom = torch.zeros_like(x[:, :1])
        while headroom.max() < 0.5:
            limited = x.clamp(headroom - 1, 1 - step - headroom)
            exact, r, slope = self(limited, y, code, dither, need_r)
            stego = step * round_to_file(exact / step, slope, parity)
            over = torch.maximum(stego.amax(1) - 1 + step, -1 - stego.amin(1))[:, None]
            if over.max() <= 0:
                r = torch.stack([*r.unbind(1), exact - stego, x - limited], 1) if need_r else None
                return stego.view_as(cover), r if r is None else r.view(*cover.shape[:-1], 4, -1)
            headroom = headroom + (over + step) * (over > 0)
        raise ValueError("there is no room within full scale; ask for a higher SNR")

    @precise
    def reveal(self, stego: Tensor, z: Tensor | None = None, dither: Tensor | None = None,
               depth: int = 16, code: Tensor | None = None, need_cover: bool = True) -> Pair:
        """stego [T] or [B, T] -> cover (if needed), secret: exact if z is r. Raises ValueError."""
        x, = _rows(self, None, depth, stego=stego)
        if code is None:
            bits = (x[:, :48:4] * 2 ** (depth - 1)).round().long() & 1
            code = (bits << torch.arange(bits.shape[1], device=x.device)).sum(1).to(x)
        if z is None:
            cover, secret = self.inverse(x, None, code, dither, need_cover)
        elif getattr(z, "shape", None) == (*stego.shape[:-1], 4, stego.shape[-1]):
            z = z.to(x).view(len(x), 4, -1)
            cover, secret = self.inverse(x + z[:, 2], z, code, dither)
            cover = cover + z[:, 3]
        else:
            raise ValueError("z must be the r of such a stego, [4, T] or [B, 4, T]")
        return cover if cover is None else cover.view_as(stego), secret.view_as(stego)


def lapped(x: Tensor, bands: int) -> Tensor:
    """Orthonormal lapped transform (MDCT, Princen and Bradley 1986), circular, of two hops a frame.
    [B, T] -> [B, M, F]. A rest of T / M becomes a frame too, from a transform of its own."""
    whole, rest = x.tensor_split([x.shape[1] // bands * bands], 1)
    if count := rest.shape[1]:
        last = functional.pad(lapped(rest, count), (0, 0, 0, bands - count))
        return torch.cat([lapped(whole, bands), last], 2)
    hops, (first, second) = x.unflatten(1, (-1, bands)), _basis(bands, x)
    return (hops @ first + hops.roll(-1, 1) @ second).mT


def unlapped(x: Tensor, length: int = 0) -> Tensor:
    """Inverse of `lapped`. [B, M, F] -> [B, T], where T is M F if no length is given."""
    if rest := length % x.shape[1]:
        return torch.cat([unlapped(x[:, :, :-1]), unlapped(x[:, :rest, -1:])], 1)
    first, second = _basis(x.shape[1], x)
    return (x.mT @ first.T + x.mT.roll(1, 1) @ second.T).flatten(1)


def _basis(bands: int, like: Tensor) -> Pair:
    """Cosines under a sine window, for the two hops of a frame, [M, M] each."""
    n = torch.arange(2 * bands, dtype=torch.float64, device=like.device)[:, None] + 0.5
    waves = (math.pi / bands * (n + bands / 2) * n[:bands, 0]).cos_()
    return waves.mul_(math.sqrt(2 / bands) * torch.sin(math.pi / 2 / bands * n)).to(like).chunk(2)


def noise_weights(slope: Tensor) -> Tensor:
    """How much an error's power in each coefficient matters, from slopes [B, M, F]."""
    power = (own := slope.square()) + own.roll(1, 2) + own.roll(-1, 2)  # smooth in time
    return power / power.mean(1, keepdim=True) + 1e-3


def round_to_file(x: Tensor, slope: Tensor, parity: Tensor) -> Tensor:
    """Round x [B, T] to integers, by error feedback (Gerzon and Craven 1989) that gives the error
    the inverse of `noise_weights` for a spectrum. parity [B, T]: of the integers, -1 for any."""
    bands, weights = slope.shape[1], noise_weights(slope)
    weights = weights + weights.roll(1, 2)  # of a hop, which is in two frames
    hops = min(weights.shape[2], STRETCH // bands or 1)  # in a stretch; S go side by side
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
    wanted, parity = (functional.pad(y, (0, -y.shape[1] % (hops * bands)), value=-1)
                      .reshape(-1, hops * bands).T.contiguous() for y in (x, parity))  # [N, S]
    result, errors = torch.empty_like(wanted), x.new_zeros(TAPS + len(wanted), wanted.shape[1])
    for n, told in enumerate((parity >= 0).any(1).tolist()):
        target = wanted[n] + (taps[n // bands] * errors[n:n + TAPS]).sum(0)
        torch.round(target, out=result[n])
        if told:
            even = 2 * ((target - parity[n]) / 2).round() + parity[n]
            result[n] = torch.where(parity[n] < 0, result[n], even)
        torch.sub(result[n], target, out=errors[n + TAPS])
    return result.T.reshape(len(x), -1)[:, :x.shape[1]]


def build(config: dict | Config) -> PaperINN | LappedINN:
    """The network of a config, or its fields, untrained. Raises KeyError, TypeError, ValueError."""
    if isinstance(config, dict):
        config = {"paper": PaperConfig, "lapped": LappedConfig}[config["preset"]](**config)
    return (PaperINN if isinstance(config, PaperConfig) else LappedINN)(config)


def load(path: str, device: str | torch.device = "cpu") -> PaperINN | LappedINN:
    """The model in a file, ready for hide and reveal. Raises OSError, or ValueError naming it."""
    with open(path, "rb") as file:
        try:
            content = torch.load(file, map_location="cpu", weights_only=True)
            config, state = content["config"], content["state_dict"]
            wide = config["growth"] + config.get("squeeze", 1)
            least = config.get("blocks", 0) * config.get("kernel", 0) * wide ** 2
            model = build(config if least <= sum(x.numel() for x in state.values()) else {})
            model.load_state_dict(state)
            if not all(x.isfinite().all() for x in model.state_dict().values()):
                raise ValueError("a weight is not finite")
        except Exception as error:  # a damaged file raises one of half a dozen types
            raise ValueError(f"{path} is no INN of this version (or for lattice.load)") from error
    return model.to(device).eval()


def _rows(model: nn.Module, snr=None, depth=16, least=1, **waves: Tensor | None) -> list:
    """[T] or [B, T], all alike, as [B, T] of the model's type; z may be None. Raises ValueError."""
    dtype, shape = next(model.parameters()).dtype, getattr(next(iter(waves.values())), "shape", ())
    floats, fits = (torch.float32, torch.float64), len(shape) in (1, 2) and shape[-1] >= least
    if not ((snr is None or 0 <= snr <= 120) and depth in range(8, 25) and dtype in floats):
        raise ValueError("snr must be from 0 to 120 dB, depth from 8 to 24, the model float32")
    for name, x in waves.items():
        if not (isinstance(x, Tensor) and x.dtype in floats and fits and x.shape == shape
                and x.numel() and (x - x).sum() == 0 or x is None and name == "z"):
            raise ValueError(f"{name} must be finite float32, [T] or [B, T], T >= {least}, alike")
    return [x if x is None else x.to(dtype).view(-1, shape[-1]) for x in waves.values()]
