"""The paper's network, set by hand so that it hides without training.

    python fold.py fold.pt
    python stego.py hide examples/cover.wav examples/secret.wav -o stego.wav --model fold.pt

A convolution does not know where it is: what it can do to a waveform, but filter it, is bend its
amplitudes. To hide a secret below a cover that fills the same bands, they have to be folded:
dirty-paper coding of samples, as `wavinwav.LappedINN` does it to coefficients. With cells of width
D and fold(x) = x - D round(x / D), the paper's blocks do it in three groups:

    a third             rho: the secret s times a small gain g, so that |g s| < D / 2
    its last block      eta(c) = -c: s' = g s - c
    the block after     phi = fold: c' = c + fold(g s - c), which is g s + a multiple of D
    that and the rest   eta(c') = c' - fold(c'), rho: r = k (c' - c), a few times the size of z

Reveal folds the stego; z, divided by k, is small in a cell and does not matter. A dense subnet is
the sawtooth, of two teeth for each channel of its convs, since all of them read the input.
"""

import argparse
import math
import os

import torch
from torch import Tensor, nn

import checkpoint
import wavinwav
from command import Parser, interrupt_on_signals, mistakes_in_one_line, say, settle_streams
from wavinwav import DenseSubnet, PaperINN

LOUDEST = 0.8  # amplitude of a cover up to which a secret is revealed
STEEPNESS = 2000.0  # of a tooth's edge; steeper ones are lost to the rounding of float32
ROOM = 0.5  # amplitude of a secret of full scale, in cells
SPREAD = 0.1  # standard deviation of z, in cells
LEAK = 0.2  # slope of the subnets' rectifiers below 0


@torch.no_grad()
def fold(model: PaperINN):
    """Set what the network does. Raises ValueError for too few blocks."""
    blocks, cell = model.blocks, LOUDEST / model.config.growth
    start = len(blocks) // 3
    for block in blocks:
        for subnet in (block.phi, block.rho, block.eta):
            nn.init.zeros_(subnet.convs[-1].weight)
            nn.init.zeros_(subnet.convs[-1].bias)
    set_scale(blocks[:start], ROOM * cell)
    scale = set_scale(blocks[start:], 1 / (SPREAD * cell))
    middle(blocks[start - 1].eta.convs[-1])[0, 0] = -1
    set_staircase(blocks[start].phi, cell, -1)
    middle(blocks[start].phi.convs[-1])[0, 0] = 1
    set_staircase(blocks[start].eta, cell, scale)


def middle(conv: nn.Conv1d) -> Tensor:
    """The weights of the tap that sees the sample itself, [outputs, inputs]."""
    return conv.weight[:, :, conv.kernel_size[0] // 2]


def set_scale(blocks: nn.ModuleList, total: float) -> float:
    """Let blocks whose rho is 0 scale the secret, together; by how much each does. Raises
    ValueError for more than they can."""
    most = 0.99 * sum(block.clamp for block in blocks)
    if abs(math.log(total)) > most:
        raise ValueError("so few blocks cannot make a secret small enough for its cells; give more")
    log_scale = math.log(total) / len(blocks)
    for block in blocks:
        share = log_scale / block.clamp
        nn.init.constant_(block.rho.convs[-1].bias, math.log((1 + share) / (1 - share)))
    return math.exp(log_scale)


def set_staircase(subnet: DenseSubnet, cell: float, height: float):
    """Let a subnet whose last conv is 0 give height * cell * round(x / cell), |x| < LOUDEST.

    An edge is the difference of two rectifiers that begin on both sides of it, and look away from
    0: the fewer of them are large, the less float32 rounds.
    """
    *convs, last = subnet.convs
    growth, slope = len(convs[0].weight), math.sqrt(STEEPNESS)
    for i in range(4 * growth):
        conv, channel = convs[i // growth], i % growth
        edge, side = (i // 2 - growth + 0.5) * cell, 1 - 2 * (i % 2)
        away = math.copysign(1, edge)
        nn.init.zeros_(conv.weight[channel])
        middle(conv)[channel, 0] = away * slope
        conv.bias[channel] = slope * (side * cell / STEEPNESS / 2 - abs(edge))
        middle(last)[0, 1 + i] = away * side * height * slope / (1 - LEAK)


def main(argv=None):
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", metavar="MODEL.pt", help="the file to write")
    parser.add_argument("--blocks", type=int, default=16, help="of the network (default: 16)")
    parser.add_argument("--growth", type=int, default=32,
                        help="channels of its convs, and half of a subnet's teeth (default: 32)")
    parser.add_argument("--kernel", type=int, default=11,
                        help="taps of these, of which one is used (default: 11)")
    args = parser.parse_args(argv)
    with mistakes_in_one_line(ValueError):
        if os.path.exists(args.model):
            raise ValueError(f"{args.model} exists; give another name")
        model = wavinwav.build(wavinwav.Config.paper(
            blocks=args.blocks, growth=args.growth, kernel=args.kernel))
        fold(model)
        checkpoint.save(model, args.model)
        say(f"{args.model} is written")


if __name__ == "__main__":
    settle_streams()
    interrupt_on_signals()
    main()
