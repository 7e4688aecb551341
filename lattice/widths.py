"""How wide the cells of each segment of a cover are: the wider, the more they hold and change.

    floors = noise_floors(samples, channels)                  # how noisy each segment is
    widths = choose_widths(floors, energy, masking, depth)    # indices into WIDTHS

A cell of width w is a run of w neighbouring sample values. Which of them the stego's sample has is
a digit in base w: log2(w) bits. Added noise is hardest to find where the cover has noise of its
own, so a segment's distortion follows its noise floor, as far as `masking` says.
"""

import torch
from torch import Tensor

SEGMENT = 512  # samples between header and seal that share one width
LABEL = 4  # of them state that width, as a number of four digits in base 3
WIDTHS = [1] + [round(2 ** (i / 4)) for i in range(4, 3 + 3 ** LABEL)]  # in quarter octaves
MASKING = 0.4  # default
CEILING = 6.0  # dB by which masking may raise quiet segments at the expense of the loudest
FRAME, BANDS = 256, 8  # samples and bands of the spectra from which noise floors are estimated
SAMPLES_AT_ONCE = 1 << 16  # about; more would not stay in the cache


def noise_floors(samples: Tensor, channels: int = 1) -> Tensor:
    """Estimate the noise that each segment of a cover has already: the mean square of white noise
    as strong as its weakest band at its weakest time. Samples [n], two channels interleaved ->
    [n // SEGMENT], float64."""
    samples = samples[:len(samples) // SEGMENT * SEGMENT]
    if not len(samples):  # of which some FFTs cannot take the spectrum
        return torch.zeros(0, dtype=torch.float64)
    size = FRAME // channels
    window = torch.hann_window(size)
    floors = []
    for piece in samples.split(SAMPLES_AT_ONCE):
        frames = piece.float().view(-1, SEGMENT // channels, channels).unfold(1, size, size // 2)
        power = torch.fft.rfft(frames * window)[..., 1:].abs().square_()
        bands = power.unflatten(-1, (BANDS, -1)).mean(-1) / window.square().sum()
        floors.append(bands.flatten(1).amin(1).double())
    return torch.cat(floors)


def choose_widths(floors: Tensor, energy: float, masking: float, depth: int) -> Tensor:
    """Choose the width of each segment's cells.

    Args:
        floors: from `noise_floors`, [segments].
        energy: at most this much distortion in all segments together, in squared sample units; but
            the cells hold one bit a sample on average even if that takes more.
        masking: a segment's distortion is proportional to its floor to this power.
        depth: bits of a sample, 16 to 24; bounds the widths.
    Returns:
        Indices into WIDTHS [segments].
    """
    error = energy / (SEGMENT * len(floors))  # of a sample
    # The error is uniform over the cell. An even width has no middle, which costs 3 / 12.
    distortion = torch.tensor([(width ** 2 + (-1 if width % 2 else 2)) / 12 for width in WIDTHS],
                              dtype=torch.float64)
    bits = torch.tensor(WIDTHS, dtype=torch.float64).log2()
    widest = min(len(WIDTHS) - 1, 4 * depth - 11)
    # Widths are rounded down or up in turn, so that their mean can have any value. Multiples of the
    # golden ratio modulo 1 are spread evenly.
    dither = torch.arange(len(floors), dtype=torch.float64) * 0.6180339887498949 % 1

    def rounded(wanted):
        """The widths [segments] whose distortions come closest to these."""
        quarter_octaves = 2 * torch.log2(12 * wanted + 1)
        return (quarter_octaves - 3 + dither).floor().clamp(0, widest).long()

    def largest(wanted, error):
        """wanted(x) for the largest x at which the mean distortion is at most `error`."""
        low, high = -60.0, 60.0  # log2 of x
        for _ in range(60):
            middle = (low + high) / 2
            chosen = rounded(wanted(2 ** middle))
            if distortion[chosen].mean() <= error or bits[chosen].mean() <= 1:
                low = middle
            else:
                high = middle
        return wanted(2 ** low)

    masked = (floors + 2 ** -20) ** masking  # not 0, so that an all-silent cover can be used too
    masked = largest(lambda scale: scale * masked, error * 10 ** (CEILING / 10))
    return rounded(largest(lambda limit: masked.clamp(max=limit), error))
