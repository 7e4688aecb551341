"""A secret as its cover can carry it: the cover's rate, its number of channels or one, 16 bits."""

from files.command import StegoError
from files.sound import decibel, decode, note, resampled

LEAST_LEFT, NOTED = 1, 10  # dB of the given secret: refused below, said below


def read_secret(path, name, folder, cover):
    """Returns the secret as a Sound, its energy as it was given, the energy of what it lost on the
    way, and what an energy of the Sound is in the same unit. Raises StegoError."""
    given = decode(path, name, folder)
    mono = given.channels > cover.channels
    excess = given.frames * cover.rate // given.rate - cover.frames  # parts of samples may be cut
    if excess > 0:
        raise StegoError(f"{name} lasts {given.seconds:.3f} s, longer than its cover's "
                         f"{cover.seconds:.3f} s by {excess} samples; cut it, or take a longer "
                         "cover")
    again = secret = given
    if mono or given.rate != cover.rate or given.depth != 16:
        again = secret = resampled(given, cover.rate, cover.frames, folder, mono)
    if given.rate != cover.rate:
        again = resampled(secret, given.rate, given.frames, folder)
    lost = given.distance(again)
    left = decibel(given.energy, lost)
    reasons = ["mixed to one channel"] * mono + (
        [f"brought to the {cover.rate} Hz of {cover.name}"] * (given.rate != cover.rate))
    if left < LEAST_LEFT and given.energy:
        raise StegoError(f"nothing is left of {name} once it is {' and '.join(reasons)}; take "
                         "another cover, or change the secret")
    if mono or left < NOTED and given.energy:
        leaves = f", which leaves an SNR of {left:.1f} dB" if lost else ""
        note(f"{name} was {' and '.join(reasons)}{leaves}")
    channels = given.channels / secret.channels
    return secret, given, lost, given.rate / cover.rate * channels * 4.0 ** (given.depth - 16)
