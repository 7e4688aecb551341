"""Find the finest quantisation of a secret with which it fits into a given number of words.

    mode, streams, decoded = fit(model, secret, bands, words)

The words that a quantisation takes are known only when it has been done, and that takes time. So a
cheap model of the cost gives the first step size, mostly within some percent, and a few trials of
the whole end the search. The constants here were found by trial on speech.

Shapes are those of lattice.py.
"""

import bisect
import math

import torch
from torch import Tensor

from lattice.lattice import COARSEST_STEP, FINEST_STEP, Lattice, Mode, cut_blocks, rotate

PROBED_BLOCKS, PROBED_FRAMES = 48, 24  # at most these are quantised for the first guess
PROBE_MARGIN = 0.991  # of the bits; the rest is for blocks that take more than those
COST_OF_SIZE, COST_OF_SQUARE = 2.2, -0.1  # first guess of a frame's bits, by its mean log2 size
SAVED_BY_SHAPING = 0.95  # of COST_OF_SIZE, by a shaping of 1: steps of loud frames are coarser
# With few bits, noise is better where the secret is loud: most shaping below 3.1 bits a
# coefficient. From 5 bits on nobody hears it, and the SNR counts.
SHAPING_AT_NO_BITS, SHAPING_LOST_BY_BIT, MOST_SHAPING = 2.35, 0.47, 0.9


def fit(model: Lattice, secret: Tensor, bands: int, words: int, shaping: float | None = None
        ) -> tuple[Mode, list[Tensor], Tensor]:
    """Compress a secret so that it and its table (see parts.py) fit into a number of words.

    Args:
        secret: [S, C] in units of 16-bit PCM.
        bands: of the lapped transform.
        shaping: how much steps follow the signal, from 0 to 1; None chooses by the bits there are.
    Returns:
        The mode; the words of each block; and what `decompress` will return, [S, C] in float64.
    Raises:
        ValueError: there is no room.
    """
    frames, blocks = model.shape_of(len(secret), bands)
    rotated = correlated(secret)
    padded = cut_blocks(secret, frames * bands, blocks)
    coefficients = model.analyse(rotate(padded) if rotated else padded, bands)
    blocks, total = len(padded), padded.numel()
    room = words - 1 - 3 * blocks
    lanes_ends = blocks * 3 * bands // 16  # in words: a lane's state takes 48 bits too many
    budget = 32 * (room - lanes_ends) / total  # bits a coefficient
    budget *= PROBE_MARGIN if 2 * blocks > PROBED_BLOCKS else 1
    if shaping is None:
        shaping = min(MOST_SHAPING, max(0.0, SHAPING_AT_NO_BITS - SHAPING_LOST_BY_BIT * budget))
    shaping = round(256 * shaping)
    step = guess_step(model, coefficients, budget, shaping)
    if step < 0 and torch.equal(secret, secret.round()):
        mode = Mode(0, 0, True, rotated)
        streams, _ = model.compress(secret, coefficients, mode)
        if sum(map(len, streams)) <= room:
            return mode, streams, secret.double()
    best = None
    for _ in range(20):
        mode = Mode(step, shaping, False, rotated)
        streams, quantised = model.compress(secret, coefficients, mode)
        excess = 32 * (sum(map(len, streams)) - room) / total  # bits a coefficient
        change = 64 * excess / (1 - 0.7 * shaping / 256)  # of the step, that saves about as much
        if excess <= 0:
            best = mode, streams, quantised
            if excess > -0.05 * budget or step <= FINEST_STEP:  # full enough
                break
            step = max(FINEST_STEP, step + min(-1, round(0.8 * change)))
        elif best or step == COARSEST_STEP:
            break
        else:
            step = min(COARSEST_STEP, step + 1 + round(1.25 * change))
    if not best:
        raise ValueError("the cover is too short for this secret; take a longer one, or a lower "
                         "SNR")
    mode, streams, quantised = best
    decoded = model.synthesise(model.quantiser.dequantise(*quantised))
    decoded = rotate(decoded) if rotated else decoded
    return mode, streams, decoded.view(secret.shape[1], -1)[:, :len(secret)].T


def guess_step(model: Lattice, coefficients: Tensor, budget: float, shaping: int) -> int:
    """The finest step at which coefficients [F, M, N] take about `budget` bits each.

    A frame's cost is nearly a function of its mean log size: a cubic, which is fitted to the costs
    of some blocks at the step that the cubic before it suggests for all. Two rounds mostly do.
    """
    frames, _, blocks = coefficients.shape
    thin = coefficients[::math.ceil(frames * blocks / 2048)]
    probe, settled = coefficients, slice(None)
    if 2 * blocks > PROBED_BLOCKS:
        some = torch.linspace(0, blocks - 1, min(blocks, PROBED_BLOCKS)).long()
        probe = coefficients[:PROBED_FRAMES, :, some]
        settled = slice(4, None)  # the first frames of a block cost more

    def powers_of_size(x, step):
        size = x.abs().mul_(2 ** (-step / 64)).add_(1).log2_().mean(1).double().flatten()
        return torch.stack([size, size ** 2, size ** 3], 1)

    guess = COST_OF_SIZE - SAVED_BY_SHAPING * shaping / 256, COST_OF_SQUARE, 0.0
    cubic, last = torch.tensor(guess, dtype=torch.float64), None
    for _ in range(4):
        def fits(step):
            return (powers_of_size(thin, step) @ cubic).mean().item() <= budget

        steps = range(FINEST_STEP, COARSEST_STEP)
        step = FINEST_STEP + bisect.bisect_left(steps, True, key=fits)
        if last is not None and abs(step - last) <= 3:
            break
        classes, integers, _ = model.quantiser.quantise(probe, step, shaping)
        costs = model.coder.cost(classes, integers).view(probe.shape).mean(1)[settled]
        costs = costs.flatten().to(cubic)[:, None]
        sizes = powers_of_size(probe[settled], step)
        cubic, last = torch.linalg.lstsq(sizes, costs).solution[:, 0], step
        cubic *= costs.mean() / (sizes @ cubic).mean().clamp_min(1e-9)
    return step


def correlated(secret: Tensor) -> bool:
    """Whether middle and side of a secret [S, 2] take fewer bits than left and right."""
    if secret.shape[1] != 2:
        return False
    (left, both), (_, right) = (secret.T @ secret / len(secret)).tolist()
    middle, side = (left + right) / 2 + both, (left + right) / 2 - both
    return (middle + 1) * (side + 1) < (left + 1) * (right + 1)
