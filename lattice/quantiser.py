"""The lattice's learned part: coefficients become integers whose scales are predicted.

A coefficient's scale is predicted from the sizes of those decoded before it, by small networks of
integers, so that every machine finds the same. Steps of quantisation can follow the signal.

Shapes: N blocks of a secret, F frames in a block, M bands (config.bands at config.sample_rate, in
proportion at other rates), K bands of a group, bins of 16 bands. Sizes and steps count in PCM units
of 16 bits; steps are 2 ** (step / 64), and shapings count in 1/256.
"""

import functools
import itertools
import math
from typing import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from lattice.coder import CLASSES, look_up
from wavinwav import lapped

GROUPS = (0, 4), (2, 4), (1, 2)  # first band and spacing: a frame is decoded in groups of bands
HISTORY = (1, 5), (2, 3), (3, 1)  # frames ago, and bands to each side, that a scale depends on
PRESENT = (), (-6, -2, 2, 6), (-7, -5, -3, -1, 1, 3, 5, 7)  # and bands of its frame, by group
EDGE = 8  # empty bands at both ends of a frame for these to reach into
BIN = 16  # neighbouring bands that share a step
BATCH = 8  # blocks, or frames of all blocks, in one operation, so that they stay in the cache
# By how much rounding for the ear favours larger magnitudes, by class.
FAVOUR = 0.3 - torch.arange(CLASSES).clamp(max=24) / 80
# Tensors of one number, see coder.WORD.
ONE, OCTAVE = torch.tensor(1.0), torch.tensor(20, dtype=torch.int32)
BIAS = torch.tensor(127 << 3, dtype=torch.int32)

# What `Quantiser.quantise` gives: classes (uint8) and integers (int32), [8 F, M / 8, N] in the
# order of the stream, and steps, see `Quantiser.walk`.
Quantised = tuple[Tensor, Tensor, Tensor]


class ScaleNet(nn.Module):
    """Predicts the scale of coefficients from the sizes of those decoded before, by one hidden
    layer.

    Weights and activations are integers of 8 bits: every product and sum is exact in float32, in
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
        """For bands [K] and steps [N], in eighths of an octave: weights of the hidden layer, after
        those that lead past it [1 + hidden, inputs]; biases of both [1 + hidden, K * N]; weights of
        the result [1, hidden]. In 1/128, biases in 1/1024; then divided by 32 in the hidden layer
        and by 256 elsewhere, which makes the result one in quarter octaves."""
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
        if h.requires_grad:
            h = _straight_through(h, h.floor()).clamp(0, 255)
        else:
            h = h.floor_().clamp_(0, 255)
        return torch.addmm(x[:1], out, h)


class Quantiser(nn.Module):
    """Predicts scales, and quantises. `forward` is what training minimises."""

    def __init__(self, bands: int, hidden: int):
        super().__init__()
        self.bands = bands
        past = sum(2 * reach + 1 for _, reach in HISTORY)
        self.scales = nn.ModuleList(
            ScaleNet(past + len(present), hidden, bands) for present in PRESENT)
        # What training maximises is the likelihood under two Laplacians and a normal distribution.
        # Coding uses tables that are counted after it.
        self.weights = nn.Parameter(torch.zeros(3))
        self.spread = nn.Parameter(torch.tensor([0.0, 1.2, 0.0]))
        # 8 log2 of each band's long-term size, which is what stands before the first frame.
        self.register_buffer("level", torch.full((bands,), 48))
        # From a rounded magnitude to the mean of those that are rounded to it, by class.
        self.register_buffer("shrink", torch.zeros(CLASSES))

    def walk(self, classes: Tensor, integers: Tensor, step: int, shaping: int,
             visit: Callable[[int, int, Tensor, Tensor], Tensor]) -> Tensor:
        """Go through the coefficients in the order of the stream, group by group of each frame, and
        fill in classes (uint8) and integers (int32) [F, M, N]. Encoder and decoder share this.

        `visit(frame, group, classes, steps)` is given what is known of K coefficients, [K, N] and
        [bins, 1, N], and returns their integers (float32) [K, N].
        Returns the steps of group 0 and of the other two [F, 2, bins, 1, N].
        """
        frames, bands, blocks = integers.shape
        span, step_size = bands + 2 * EDGE, 2 ** (step / 64)
        window = torch.zeros(4 * span, blocks)  # log sizes of this frame and the three before
        rows = window.view(4, span, blocks)[:, EDGE:-EDGE]
        band = torch.arange(bands).clamp(max=self.bands - 1)
        rows.copy_((self.level[band] - step // 8).clamp(0, 255)[:, None])
        power = torch.tensor([2 ** (exponent / 8) for exponent in range(256)])
        steps = torch.full((frames, 2, bands // BIN, 1, blocks), step_size)
        unit = power[:1]  # without shaping
        nets = []
        for net, (start, spacing) in zip(self.scales, GROUPS):
            eighths = torch.full((blocks,), step // 8)
            weights, bias, out = net.integers(band[start::spacing], eighths)
            bias[0] += 20  # class 0 is a scale of 1/32
            context = [torch.cat([(row - ago) % 4 * span + EDGE + offset
                                  + torch.arange(start, bands, spacing)
                                  for ago, offset in context_of(len(nets))]) for row in range(4)]
            nets.append((net, (weights, bias, out), context, rows[:, start::spacing].unbind()))
        # The sizes that the steps of group 0 and of the other two follow.
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
                    scale.sub_(lower)
                scale_classes = scale.view(-1, blocks).clamp_(0, CLASSES - 1).long()
                values = visit(frame, group, scale_classes, steps[frame, min(group, 1)])
                classes[group][frame].copy_(scale_classes)
                integers[group][frame].copy_(values)
                magnitudes = values.abs_().view(bands // BIN, -1, blocks).mul_(unit)
                sizes[row].copy_(log_sizes(magnitudes).view(-1, blocks))
        return steps

    def quantise(self, coefficients: Tensor, step: int, shaping: int) -> Quantised:
        """Coefficients [F, M, N] -> classes and integers in the order of the stream, and steps."""
        frames, bands, blocks = coefficients.shape
        classes, integers = (torch.empty(frames, bands, blocks, dtype=dtype)
                             for dtype in (torch.uint8, torch.int32))
        bins = coefficients.view(frames, -1, BIN, blocks)
        groups = [bins[:, :, start::spacing].unbind() for start, spacing in GROUPS]

        def visit(frame, group, scale_classes, steps):
            values = (groups[group][frame] / steps).view(-1, blocks)
            if shaping:  # fewer holes in the spectrum, which the ear minds more than the SNR does
                values.add_(look_up(FAVOUR, scale_classes).copysign_(values))
            return values.round_()

        steps = self.walk(classes, integers, step, shaping, visit)
        stream = -1, bands // 8, blocks
        return classes.view(stream), integers.view(stream), steps

    def dequantise(self, classes: Tensor, integers: Tensor, steps: Tensor, centred: bool = True
                   ) -> Tensor:
        """What `quantise` or decoding gave -> coefficients [F, M, N]: the means of what is
        rounded to these integers in these classes, if `centred`."""
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

    def order(self, x: Tensor, bands: int) -> Tensor:
        """From the order of the stream [8 F, M / 8, N] to that of bands [F, M, N]."""
        first, second, third = x.view(-1, bands, x.shape[-1]).split(group_sizes(bands), 1)
        return torch.stack([first, third[:, ::2], second, third[:, 1::2]], 2).flatten(1, 2)

    def forward(self, secret: Tensor, step: Tensor, shaping: Tensor) -> Tensor:
        """Bits a sample of secrets [N, T] (PCM units of 16 bits, T a multiple of M), under steps
        and shapings [N], integers -> [N]. Steps follow the sizes before quantisation here: all
        frames at once."""
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
        """Probability of an integer's magnitude (with either sign) at a scale exp(log_scale)."""
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
    """(frames ago, bands away) of what the scale of a coefficient depends on."""
    past = [(ago, band) for ago, reach in HISTORY for band in range(-reach, reach + 1)]
    return past + [(0, band) for band in PRESENT[group]]


def group_sizes(bands: int) -> list[int]:
    return [bands // spacing for _, spacing in GROUPS]


def log_sizes(magnitude: Tensor) -> Tensor:
    """8 log2(1 + x), linear within octaves, rounded down, at most 255: the same integer on every
    machine, since it is what a float32's exponent and first three bits spell."""
    spelt = (magnitude.float() + ONE).view(torch.int32)
    return spelt.bitwise_right_shift_(OCTAVE).sub_(BIAS).clamp_(max=255)


@functools.lru_cache
def bin_shares(bands: int) -> Tensor:
    """By how much the sizes in each bin count for the steps of each, [bins, bins]."""
    return 7 * BIN + bands * torch.eye(bands // BIN, dtype=torch.float64)


def step_exponents(sizes: Tensor, bands: int, shaping: Tensor | int) -> Tensor:
    """How far the steps of each bin rise above the part's, in eighths of an octave, where the sizes
    decoded last [n, N] are large: 7/8 by the frame's mean log size, 1/8 by the bin's. -> whole
    numbers [bins, N], float64"""
    sums = sizes.view(bands // BIN, -1, sizes.shape[-1]).sum(1).double()
    unit = 2048 * bands * (len(sizes) * BIN // bands)
    return (bin_shares(bands) @ sums).mul_(shaping).div_(unit, rounding_mode="floor")


def _straight_through(x: Tensor, value: Tensor) -> Tensor:
    return x + (value - x).detach()
