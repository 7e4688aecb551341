"""coder.py: what is decoded is what was encoded, in as many bits as the tables say."""

import pytest
import torch

from lattice.coder import CLASSES, SYMBOLS, TABLES, Coder


@pytest.fixture(scope="module")
def coder():
    """Tables of Laplacian magnitudes at the scales of their classes."""
    coder = Coder()
    scale = 2 ** ((torch.arange(TABLES)[:, None] + 0.5) / 4 - 5)
    prior = torch.exp(-torch.arange(SYMBOLS) / scale)
    coder.set_tables(torch.zeros(TABLES, SYMBOLS), prior / prior.sum(1, keepdim=True))
    return coder


def test_tables_are_whole(coder):
    assert (coder.frequency.sum(1) == 1 << 14).all()
    assert (coder.frequency[:, -1] > 0).all(), "every table has an escape"
    counts = torch.zeros(TABLES, SYMBOLS)
    counts[5, 3] = 1e6
    other = Coder()
    other.set_tables(counts, torch.full((TABLES, SYMBOLS), 1 / SYMBOLS))
    assert other.frequency[5, 3] > 0.95 * (1 << 14), "what was counted weighs more than the prior"


@pytest.mark.parametrize("streams", [1, 5])
@pytest.mark.parametrize("lanes", [16, 32])
def test_round_trip(coder, streams, lanes):
    """Integers of all sizes, many of them far beyond what their class expects."""
    torch.manual_seed(streams)
    shape = 200, lanes, streams
    classes = torch.randint(CLASSES, shape)
    integers = (torch.randn(shape) * 2 ** (classes / 4 - 5)).round().int()
    surprises = torch.rand(shape) < 0.01
    large = torch.randint(-(1 << 30) + 1, 1 << 30, shape, dtype=torch.int32)
    integers[surprises] = large[surprises]
    words = coder.encode(classes.to(torch.uint8), integers)
    assert len(words) == streams and all(0 <= x.min() and x.max() < 1 << 32 for x in words)
    decode = coder.decoder(words, lanes)
    decoded = torch.cat([decode(some.flatten(0, 1)) for some in classes.split(3)]).view(shape)
    assert torch.equal(decoded.int(), integers)
    ends = streams * lanes * 64
    bits, cost = 32 * sum(map(len, words)), coder.cost(classes, integers).sum().item()
    assert cost < bits < 1.005 * cost + ends
