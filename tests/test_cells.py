"""cells.py: digits in samples, widths of cells, and words as digits."""

import math

import pytest
import torch

from files.container import Cipher
from lattice import cells
from lattice.widths import LABEL, SEGMENT, WIDTHS, choose_widths, noise_floors


@pytest.mark.parametrize("width", [2, 3, 7, 16, 100, 1001, 4096])
def test_samples_carry_digits_and_cost_what_they_should(width):
    generator = torch.Generator().manual_seed(width)
    cover = torch.randint(-32768, 32768, (50000,), generator=generator)
    cover[:100], cover[100:200] = -32768, 32767  # full scale
    digits = torch.randint(width, (50000,), generator=generator)
    stego = cells.congruent(cover, digits, width)
    assert -32768 <= stego.min() and stego.max() <= 32767
    assert torch.equal(stego % width, digits)
    change = (stego - cover)[cover.abs() < 32768 - width].double()
    assert change.abs().max() <= width // 2
    expected = (width ** 2 - 1 + 3 * (width % 2 == 0)) / 12
    assert change.square().mean().item() == pytest.approx(expected, rel=0.03)


@pytest.mark.parametrize("width", [WIDTHS[i] for i in (1, 2, 6, 18, 31, 64, 80)])
def test_words_and_digits(width):
    room, samples = cells.room_for(width), SEGMENT - LABEL
    assert room > 0.97 * samples * math.log2(width) / 32 - 1, "little is wasted"
    words = torch.randint(1 << 32, (9, room))
    digits = cells.digits_of(words, width)
    assert 0 <= digits.min() and digits.max() < width and digits.shape[1] <= samples
    unused = torch.randint(width, (9, samples - digits.shape[1]))
    assert torch.equal(cells.words_of(torch.cat([digits, unused], 1), width), words)


@pytest.mark.parametrize("width", [3, 7, 11])
def test_all_digits_are_equally_likely(width):
    """In every place, though the numbers that they spell are below a power of 2."""
    torch.manual_seed(0)
    widths = torch.full((4000,), WIDTHS.index(width))
    words = torch.randint(1 << 32, (int(cells.word_starts(widths)[-1]),))
    stego = cells.write_words(words, torch.zeros(4000 * SEGMENT).int(), widths, Cipher(), 0, 16)
    digits = stego.view(4000, SEGMENT) % width
    shares = torch.stack([(digits == digit).double().mean(0) for digit in range(width)])
    assert (shares - 1 / width).abs().max() < 0.05, "six standard deviations"


@pytest.mark.parametrize("depth, key", [(16, None), (24, "key")])
def test_words_in_samples(depth, key):
    torch.manual_seed(0)
    cover = torch.randint(-20000, 20000, (40 * SEGMENT,), dtype=torch.int32)
    widths, cipher = torch.randint(20, (40,)), Cipher(key)
    words = torch.randint(1 << 32, (int(0.6 * cells.word_starts(widths)[-1]),))
    stego = cells.write_words(words, cover, widths, cipher, 3, depth)
    assert torch.equal(stego[30 * SEGMENT:], cover[30 * SEGMENT:]), "what is not needed stays"
    words_, starts = cells.read_words(stego, cipher, 3)
    used = int(torch.searchsorted(cells.word_starts(widths), len(words)))
    assert torch.equal(starts[:used + 1], cells.word_starts(widths)[:used + 1])
    assert torch.equal(words_[:len(words)], words)
    rows = (stego != cover).view(-1, SEGMENT)[used:]
    assert not rows.any(), "nor does anything tell the width of cells that are not used"
    starts_ = cells.read_words(stego, cipher, 4)[1]
    assert not torch.equal(starts, starts_), "each part has widths of its own"


@pytest.mark.parametrize("channels", [1, 2])
def test_noise_floors(channels):
    """White noise is its own floor, nearly; a tone has none; the weakest time and band count."""
    generator = torch.Generator().manual_seed(0)
    samples = (100 * torch.randn(2000, SEGMENT, generator=generator)).round()
    samples[1000:] *= 3
    time = torch.arange(SEGMENT // channels).repeat_interleave(channels)
    tone = (8000 * torch.sin(0.5 * time)).round().repeat(100, 1)
    half = samples[:100].clone()
    half[:, SEGMENT // 2:] *= 0.01
    low = samples[:100].view(100, -1, channels)  # without the highest frequencies
    low = low + 3 * low.roll(1, 1) + 3 * low.roll(2, 1) + low.roll(3, 1)
    samples = torch.cat([samples, tone, half, low.view(100, -1)]).int().flatten()
    assert noise_floors(samples[:SEGMENT - 2], channels).shape == (0,)
    floors = noise_floors(torch.cat([samples, samples[:100]]), channels).sqrt()
    assert len(floors) == 2300, "a rest is no segment"
    white, loud, tone, half, low = floors.split([1000, 1000, 100, 100, 100])
    assert 50 < white.mean().item() < 85, "the least of its bands and times"
    assert loud.mean().item() == pytest.approx(3 * white.mean().item(), rel=0.05)
    assert tone.max() < 20 and half.max() < 20 and low.max() < 40


@pytest.mark.parametrize("error", [0.3, 1.5, 20.0, 1e4])
@pytest.mark.parametrize("masking", [0.0, 0.25, 1.0])
def test_widths_have_the_error_that_was_asked_for(error, masking):
    torch.manual_seed(0)
    decades = 6 * torch.rand(2000, dtype=torch.float64)
    floors = torch.rand(2000, dtype=torch.float64) * 10 ** decades
    chosen = choose_widths(floors, error * 2000 * SEGMENT, masking, 16)
    widths = torch.tensor(WIDTHS).double()[chosen]
    distortion = ((widths ** 2 + torch.where(widths % 2 == 0, 2, -1)) / 12).mean().item()
    least = widths.log2().mean() <= 1  # bit a sample
    assert error / 1.02 < distortion <= error or least
    if masking == 0 and error == 1.5:
        assert (widths == 4).all()


def test_what_is_quiet_is_left_alone():
    floors = torch.tensor([0.0, 1e-3, 1.0, 1e2, 1e4, 1e6]).double().repeat_interleave(500)
    chosen = choose_widths(floors, 100.0 * 3000 * SEGMENT, 1.0, 16)
    widths = torch.tensor(WIDTHS).double()[chosen].view(6, 500)
    assert (widths[:3] == 1).all(), "far below the others"
    assert 1 < widths[4].min() < widths[5].max() < 6 * widths[4].min(), "the loudest is cut off"
    silence = choose_widths(torch.zeros(500).double(), 5.0 * SEGMENT, 1.0, 16)
    assert torch.tensor(WIDTHS)[silence].double().log2().mean() > 0.99, "a bit a sample, at least"
