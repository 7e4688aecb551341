"""Sound files with a lattice: part by part, on all cores."""

import sys

import numpy as np
import torch
from torch.nn import functional

from files.container import DENSE
from files.parts import bar, in_order
from files.sound import FULL_SCALE, READ_AT_ONCE, energy, to_pcm
from lattice import lattice
from lattice.cells import LEAST_SAMPLES, MASKING, choose_widths, noise_floors, parts_of


class LatticeMethod:
    """Files with a lattice: part by part, on all cores."""

    layout, least_samples = DENSE, LEAST_SAMPLES

    def __init__(self, model):
        self.model = model
        self.secret_noise = 0  # energy of what hiding took from the secret

    def fingerprint(self):
        return self.model.fingerprint()

    def header(self, cover, secret):
        return self.model.header(cover.samples, secret.frames, secret.channels, cover.rate)

    def hide(self, header, cipher, cover, secret, snr, shaping, masking):
        """The stego's samples, without header and seal, piece by piece."""
        snr = lattice.STEGO_SNR if snr is None else snr
        masking = MASKING if masking is None else masking
        first, last = self.layout.header_samples, cover.samples - self.layout.seal_samples
        # as numbers: small tensors that stay between freed pieces keep the heap from shrinking
        floors = torch.tensor(
            [floor for piece in cover.pieces(first, last)
             for floor in noise_floors(piece, cover.channels).tolist()], dtype=torch.double)
        widths = choose_widths(floors, cover.energy / 10 ** (snr / 10), masking, cover.depth)
        parts = parts_of(header)

        def work(part):
            before = cover.read(part.samples.start, part.samples.stop)
            pcm = secret.read(part.secret.start * secret.channels,
                              part.secret.stop * secret.channels).view(-1, secret.channels).float()
            stego, decoded = self.model.hide_part(
                header, cipher, part, before, pcm, widths, shaping, cover.depth)
            lost = sum(energy(x.round().clamp(-FULL_SCALE, FULL_SCALE - 1) - y) for x, y in zip(
                decoded.split(READ_AT_ONCE), pcm.split(READ_AT_ONCE)))
            return stego.numpy().astype(cover.dtype), lost

        yield cover.read(0, first)
        for stego, lost in in_order(work, parts, bar(cover.seconds)):
            self.secret_noise += lost
            yield torch.from_numpy(stego)
        yield cover.read(parts[-1].samples.stop)

    def measure(self, header, cipher, written, secret):
        """The energy of what `reveal` will lack of a secret: decoding is exact, so it is known."""
        return self.secret_noise

    def assumed_header(self, stego):
        """What to go by where there is no header: nothing."""

    def reveal(self, header, cipher, stego):
        """The secret's samples, int16 [n, channels], piece by piece. Raises Damaged."""
        def work(part):
            samples = stego.read(part.samples.start, part.samples.stop)
            missing = part.samples.stop - part.samples.start - len(samples)
            secret, blocks, lost = self.model.reveal_part(
                header, cipher, part, functional.pad(samples, (0, missing)))
            pieces = secret.split(READ_AT_ONCE)  # which stay in the cache
            return np.concatenate([to_pcm(x / FULL_SCALE) for x in pieces]), blocks, lost

        blocks = lost = 0
        for pcm, more_blocks, more_lost in in_order(work, parts_of(header), bar(stego.seconds)):
            yield pcm
            blocks, lost = blocks + more_blocks, lost + more_lost
        damage = lattice.tell_damage(blocks, lost)
        if damage:
            print(f"warning: {stego.name}: {damage}", file=sys.stderr)
