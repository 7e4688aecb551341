"""The lattice's learned part: it predicts the scale of each coefficient, and quantises it.

    classes, integers, steps = quantiser.quantise(coefficients, step, shaping)
    coefficients = quantiser.dequantise(classes, integers, steps)

An entropy coder needs to know how large an integer will be, roughly: its scale. A small network
predicts it from the sizes of the coefficients around it that are decoded already. Encoder and
decoder must predict exactly the same on every machine, so these networks compute with integers.
With `shaping`, louder places are quantised more coarsely, where the ear minds it less.

Shapes: N blocks of a secret; F frames in a block; M bands, config.bands at config.sample_rate and
in proportion at other rates; K bands of a group; bins of 16 bands. Units: sizes and steps are in
units of 16-bit PCM; a step s is the step size 2 ** (s / 64); a shaping counts in 1/256.
"""

import itertools
import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from lattice.coder import CLASSES, look_up
from wavinwav import lapped

# A frame is decoded in three groups: every fourth band, those half-way between, and the others.
GROUPS = (0, 4), (2, 4), (1, 2)  # first band and spacing
# A scale depends on these sizes: (frames ago, bands to each side), then bands of its own frame that
# lie in groups before its own.
HISTORY = (1, 5), (2, 3), (3, 1)
PRESENT = (), (-6, -2, 2, 6), (-7, -5, -3, -1, 1, 3, 5, 7)
EDGE = 8  # bands of padding at both ends of a frame, for these to reach into
BIN = 16  # neighbouring bands that share a step
BATCH = 8  # blocks, or frames of all blocks, in one operation; more would not stay in the cache
# With shaping, how far rounding favours larger magnitudes, by class: fewer holes in the spectrum.
FAVOUR = 0.3 - torch.arange(CLASSES).clamp(max=24) / 80
# Constants as tensors, see coder.WORD.
ONE, OCTAVE = torch.tensor(1.0), torch.tensor(20, dtype=torch.int32)
BIAS = torch.tensor(127 << 3, dtype=torch.int32)

# What `Quantiser.quantise` returns: classes (uint8) and integers (int32), both [8 F, M / 8, N] in
# the order of the stream, and the step sizes [F, 2, bins, 1, N] of group 0 and of the other two.
Quantised = tuple[Tensor, Tensor, Tensor]


class ScaleNet(nn.Module):
    """Predicts the scale of coefficients from the sizes of earlier ones, by one hidden layer.

    Weights and activations are integers of 8 bits. Every product and sum is exact in float32, in
    any order, even where the hardware multiplies in bfloat16, so all machines agree. Training
    rounds with a straight-through gradient.
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
        """The rounded weights, for bands [K] and steps [N] in eighths of an octave.

        Returns the weights of the inputs, first those that bypass the hidden layer
        [1 + hidden, inputs]; the biases of both [1 + hidden, K * N]; the weights of the hidden
        layer [1, hidden]. Weights are multiples of 1/128, biases of 1/1024. They come divided by 32
        for the hidden layer and by 256 for the result, which puts it in quarter octaves.
        """
        w = {}
        for name, p in self.named_parameters():
            unit, bound = (1024, 65536) if "bias" in name else (128, 127)
            w[name] = _straight_through(p * unit, (p * unit).round().clamp(-bound, bound))
        hidden_bias = (w["hidden_bias"][:, band] + w["hidden_step"] * step).flatten(1)
        bias = (w["bias"][band] + w["step"] * step).flatten()[None]
        return (torch.cat([w["direct"] / 256, w["hidden"] / 32]),
                torch.cat([bias / 256, hidden_bias / 32]), w["out"] / 256)

    def forward(self, integers: tuple[Tensor, Tensor, Tensor], x: Tensor) -> Tensor:
        """Log sizes x [inputs, K * N] in eighths of an octave -> log2 of the scale in quarter
        octaves [1, K * N]."""
        weights, bias, out = integers
        x = torch.addmm(bias, weights, x)
        h = x[1:]
        h = _straight_through(h, h.floor()) if h.requires_grad else h.floor_()
        return torch.addmm(x[:1], out, h.clamp_(0, 255))


class Quantiser(nn.Module):
    """Predicts scales, and quantises. `forward` is what training minimises."""

    def __init__(self, bands: int, hidden: int):
        super().__init__()
        self.bands = bands
        past = sum(2 * reach + 1 for _, reach in HISTORY)
        self.scales = nn.ModuleList(
            ScaleNet(past + len(present), hidden, bands) for present in PRESENT)
        # Training maximises the likelihood under a mixture of two Laplacians and a normal
        # distribution. Coding uses tables that are counted after it.
        self.weights = nn.Parameter(torch.zeros(3))
        self.spread = nn.Parameter(torch.tensor([0.0, 1.2, 0.0]))
        # 8 log2 of each band's long-term size, which stands for the frames before the first.
        self.register_buffer("level", torch.full((bands,), 48))
        # From a rounded magnitude to the mean of all that round to it, by class.
        self.register_buffer("shrink", torch.zeros(CLASSES))

    def quantise(self, coefficients: Tensor, step: int, shaping: int) -> Quantised:
        """Coefficients [F, M, N] -> classes and integers in the order of the stream, and steps."""
        frames, bands, blocks = coefficients.shape
        classes, integers = (torch.empty(frames, bands, blocks, dtype=dtype)
                             for dtype in (torch.uint8, torch.int32))
        bins = coefficients.view(frames, -1, BIN, blocks)
        groups = [bins[:, :, start::spacing].unbind() for start, spacing in GROUPS]

        def visit(frame, group, scale_classes, steps):
            values = (groups[group][frame] / steps).view(-1, blocks)
            if shaping:
                values.add_(look_up(FAVOUR, scale_classes).copysign_(values))
            return values.round_()

        steps = self.walk(classes, integers, step, shaping, visit)
        stream = -1, bands // 8, blocks
        return classes.view(stream), integers.view(stream), steps

    def dequantise(self, classes: Tensor, integers: Tensor, steps: Tensor, centred: bool = True
                   ) -> Tensor:
        """Inverse of `quantise`, up to rounding: coefficients [F, M, N]. `centred` gives the mean
        of all that round to an integer of a class, instead of the integer."""
        frames, _, bins, _, blocks = steps.shape
        bands = bins * BIN
        result = torch.empty(frames, bands, blocks)
        batches = (x.view(frames, -1, blocks).split(BATCH) for x in (classes, integers, result))
        for classes, integers, target, steps in zip(*batches, steps.split(BATCH)):
            values = integers.float()
            if centred:
                values.sub_(look_up(self.shrink, classes.int()).mul_(values.sign()))
            for group, coefficients in enumerate(values.split(group_sizes(bands), 1)):
                coefficients.view(len(steps), bins, -1, blocks).mul_(steps[:, min(group, 1)])
            target.copy_(self.order(values, bands))
        return result

    def walk(self, classes: Tensor, integers: Tensor, step: int, shaping: int,
             visit: Callable[[int, int, Tensor, Tensor], Tensor]) -> Tensor:
        """Go through the coefficients in the order of the stream, frame by frame and group by
        group, and fill in classes (uint8) and integers (int32), both [F, M, N].

        Encoder and decoder share this loop; they differ in `visit(frame, group, classes, steps)`.
        It gets the classes [K, N] and the step sizes [bins, 1, N] of a group, and returns the
        group's integers as float32 [K, N]: the encoder by rounding, the decoder from the stream.
        Returns the step sizes of group 0 and of the other two [F, 2, bins, 1, N].
        """
        frames, bands, blocks = integers.shape
        span, step_size = bands + 2 * EDGE, 2 ** (step / 64)
        # Log sizes of the last four frames, in turn: frame f is in row f % 4.
        window = torch.zeros(4 * span, blocks)
        rows = window.view(4, span, blocks)[:, EDGE:-EDGE]
        band = torch.arange(bands).clamp(max=self.bands - 1)
        rows.copy_((self.level[band] - step // 8).clamp(0, 255)[:, None])
        power = torch.tensor([2 ** (exponent / 8) for exponent in range(256)])
        steps = torch.full((frames, 2, bands // BIN, 1, blocks), step_size)
        unit = power[:1]  # without shaping
        nets = []  # by group: the network, its weights, what it reads and where sizes go, by row
        for net, (start, spacing) in zip(self.scales, GROUPS):
            eighths = torch.full((blocks,), step // 8)
            weights, bias, out = net.integers(band[start::spacing], eighths)
            bias[0] += 20  # class 0 is a scale of 1/32
            context = [torch.cat([(row - ago) % 4 * span + EDGE + offset
                                  + torch.arange(start, bands, spacing)
                                  for ago, offset in context_of(len(nets))]) for row in range(4)]
            nets.append((net, (weights, bias, out), context, rows[:, start::spacing].unbind()))
        # The steps of group 0 follow the frame before, those of the other two follow group 0.
        before = [rows[row - 1] for row in range(4)], rows[:, ::4].unbind()
        classes, integers = ([part.unbind() for part in x.split(group_sizes(bands), 1)]
                             for x in (classes, integers))
        for frame, row in zip(range(frames), itertools.cycle(range(4))):
            for group, (net, weights, context, sizes) in enumerate(nets):
                x = window.index_select(0, context[row]).view(weights[0].shape[1], -1)
                scale = net.forward(weights, x).view(bands // BIN, -1, blocks)
                if shaping:
                    if group < 2:
                        exponent = step_exponents(before[group][row], bands, shaping)[:, None]
                        unit, lower = look_up(power, exponent.long()), exponent / 2
                        torch.mul(unit, step_size, out=steps[frame, group])
                    scale.sub_(lower)  # a larger step makes the integer smaller
                scale_classes = scale.view(-1, blocks).clamp_(0, CLASSES - 1).long()
                values = visit(frame, group, scale_classes, steps[frame, min(group, 1)])
                classes[group][frame].copy_(scale_classes)
                integers[group][frame].copy_(values)
                magnitudes = values.abs_().view(bands // BIN, -1, blocks).mul_(unit)
                sizes[row].copy_(log_sizes(magnitudes).view(-1, blocks))
        return steps

    def order(self, x: Tensor, bands: int) -> Tensor:
        """From the order of the stream [8 F, M / 8, N] to that of bands [F, M, N]."""
        first, second, third = x.view(-1, bands, x.shape[-1]).split(group_sizes(bands), 1)
        return torch.stack([first, third[:, ::2], second, third[:, 1::2]], 2).flatten(1, 2)

    # ------------------------------------------------ training

    def forward(self, secret: Tensor, step: Tensor, shaping: Tensor) -> Tensor:
        """Bits a sample that coding takes, differentiable.

        Args:
            secret: [N, T] in units of 16-bit PCM, T a multiple of M.
            step, shaping: of each secret, integers [N].
        Returns:
            [N]. All frames are coded at once, so shaped steps follow the sizes of a first
            quantisation here, and not of the final one.
        """
        coefficients = lapped(secret, self.bands).permute(2, 1, 0)  # [F, M, N]
        frames, bands, blocks = coefficients.shape
        before = (self.level[:, None] - step // 8).clamp(0, 255).expand(3, -1, -1)
        sizes = log_sizes(coefficients.abs() / 2 ** (step / 64))
        for _ in range(2):
            decoded = torch.cat([before[:1], sizes[:-1]]), sizes[:, ::4]
            last, own = (step_exponents(x.transpose(0, 1).flatten(1), bands, shaping.repeat(frames))
                         .float().view(-1, frames, blocks).transpose(0, 1) for x in decoded)
            exponent = torch.stack([last, own, own, own], 2)[:, :, None]
            exponent = exponent.expand(-1, -1, BIN // 4, -1, -1).flatten(1, 3)
            unit = 2 ** (exponent / 8)
            magnitude = (coefficients / (2 ** (step / 64) * unit)).round().abs()
            sizes = log_sizes(magnitude * unit)
        sizes = functional.pad(torch.cat([before, sizes]), (0, 0, EDGE, EDGE))
        total = 0
        for group, (start, spacing) in enumerate(GROUPS):
            x = [sizes[3 - ago:3 - ago + frames, EDGE + start + band:EDGE + bands + band:spacing]
                 for ago, band in context_of(group)]
            x = torch.stack(x)[:, :, :bands // spacing].transpose(1, 2).flatten(1).float()
            net = self.scales[group]
            band = torch.arange(start, bands, spacing)
            log_scale = net(net.integers(band, (step // 8).repeat(frames)), x)
            log_scale = log_scale.view(-1, frames, blocks)
            log_scale = log_scale - exponent[:, start::spacing].transpose(0, 1) / 2
            own = magnitude[:, start::spacing].transpose(0, 1)
            likelihood = self.likelihood(own, (log_scale / 4).clamp(-6, 17) * math.log(2))
            magnitude_bits = -torch.log2(likelihood.clamp_min(1e-9))
            total = total + magnitude_bits.sum((0, 1)) + (own > 0).sum((0, 1))  # and the signs
        return total / (frames * bands)

    def likelihood(self, magnitude: Tensor, log_scale: Tensor) -> Tensor:
        """Probability of an integer's magnitude, with either sign, at a scale exp(log_scale)."""
        weights = self.weights.softmax(0)
        scales = [torch.exp(log_scale + spread) for spread in self.spread]
        inner, outer = (magnitude - 0.5).abs(), magnitude + 0.5
        zero = magnitude == 0
        total = 0
        for weight, scale in zip(weights, scales[:2]):
            below = torch.where(zero, 1, torch.exp(-inner / scale))
            total = total + weight * (below - torch.exp(-outer / scale))
        inner, outer = (torch.erf(x / scales[2] * 0.5 ** 0.5) for x in (inner, outer))
        return total + weights[2] * (outer - torch.where(zero, 0, inner))


def context_of(group: int) -> list[tuple[int, int]]:
    """(frames ago, bands away) of the sizes that a scale depends on."""
    past = [(ago, band) for ago, reach in HISTORY for band in range(-reach, reach + 1)]
    return past + [(0, band) for band in PRESENT[group]]


def group_sizes(bands: int) -> list[int]:
    return [bands // spacing for _, spacing in GROUPS]


def log_sizes(magnitude: Tensor) -> Tensor:
    """8 log2(1 + x), linear within octaves, rounded down, at most 255: read off a float32's
    exponent and first three bits of its fraction, so it is the same integer on every machine."""
    bits = (magnitude.float() + ONE).view(torch.int32)
    return bits.bitwise_right_shift_(OCTAVE).sub_(BIAS).clamp_(max=255)


def step_exponents(sizes: Tensor, bands: int, shaping: Tensor | int) -> Tensor:
    """By how much the step of each bin rises above the common one, from the log sizes decoded last
    [n, N]: 7/8 of it follows the frame's mean, 1/8 the bin's own. Eighths of an octave, whole
    numbers [bins, N] in float64."""
    sums = sizes.view(bands // BIN, -1, sizes.shape[-1]).sum(1).double()
    unit = 2048 * bands * (len(sizes) * BIN // bands)
    mixed = 7 * BIN * sums.sum(0) + bands * sums
    return mixed.mul_(shaping).div_(unit, rounding_mode="floor")


def _straight_through(x: Tensor, value: Tensor) -> Tensor:
    return x + (value - x).detach()
