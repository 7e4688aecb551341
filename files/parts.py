"""How each kind of model hides in files: an INN, the paper's network, a lattice.

A method gives the header of a stego and its samples, piece by piece, and inversely the samples of
a secret. Pieces are worked on by as many processes as there are cores.
"""

import math
import os
import random
import struct
import zlib
from dataclasses import asdict, replace

import numpy as np
import torch
from torch.nn import functional

import robust
import wavinwav
from files import checkpoint, container
from files.command import StegoError
from files.container import SPARSE, Cipher, Header, NoSecret, OtherModel
from files.processes import bar, in_order
from files.resample import resample
from files.sound import FULL_SCALE, decibel, energy, moved, note, resampled, to_pcm
from wavinwav import Setting, lapped

COVER_LEVEL, SECRET_LEVEL = -19, -11  # rms in dB of full scale, in the paper's network
EXCERPT, EXCERPTS = 8192, 16  # frames, and how many of them decide the width of the INN's cells
SEARCHED = 1 << 18  # frames in which cells are looked for, where the header is lost
RATES = 16000, 8000, 22050, 24000, 32000, 44100, 48000  # Hz, that a stego may have had
LEAST_SURE = 5  # standard deviations from chance that the found cells must be
MOST_SPOILED = 0.2  # from where on what would be revealed has an SNR of 2 dB at most


def load_model(name):
    """The model in a file, or a shipped one by its name, such as "robust": an INN or a Lattice.
    Raises StegoError."""
    path = checkpoint.model_path(name)
    try:
        config = checkpoint.read(path).get("config")
        if not isinstance(config, dict) or config.get("preset") != "lattice":
            return wavinwav.load(path)
        from lattice.parts import load
        return load(path)
    except ModuleNotFoundError as error:
        raise StegoError(f"{path} needs the folder lattice/ beside stego.py; get it, or give "
                         "another model with --model") from error
    except OSError as error:
        raise StegoError(f"{path} cannot be read ({error.strerror}); give a model with --model"
                         ) from error
    except ValueError as error:
        raise StegoError(f"{error}; give another one with --model") from error


def method_of(model):
    """How to hide in files with a model."""
    if model.config.preset == "lattice":
        from lattice.parts import LatticeMethod
        return LatticeMethod(model)
    methods = {"lapped": InnMethod, "robust": RobustMethod, "paper": PaperMethod}
    return methods[model.config.preset](model)


class NetworkMethod:
    """What the networks of wavinwav.py have in common. A subclass has `part`, the samples that it
    works on at once, at most, and `reveal_part`."""

    layout = SPARSE
    survives = 0  # frames from which on a stego is revealed even if it has changed; 0: never
    least_samples = SPARSE.header_samples + SPARSE.seal_samples
    options = ()  # flags of hide that have an effect

    def __init__(self, model):
        self.model = model
        self.usual_snr = getattr(model.config, "stego_snr", None)  # dB

    def fingerprint(self):
        """A checksum of the config and the weights."""
        config = zlib.crc32(repr(asdict(self.model.config)).encode())
        return config ^ container.fingerprint(self.model.state_dict().values())

    def header(self, cover, secret):
        return Header(cover.samples, secret.frames, self.fingerprint(), 0, secret.channels,
                      self.layout)

    def recover(self, decoded, key):
        """The stego as it was made, a Sound, its header, and the cipher of the rest, where the
        header is lost; None if nothing can be revealed then. `decoded` gives so many frames of it,
        or all. Raises NoSecret, OtherModel."""

    def parts(self, sound, frames=None):
        """(index, first frame, last) of what is worked on at once: one part, or an even number of
        nearly one size, of whole frames of the transform but for the last."""
        frames, bands = frames or sound.frames, self.model.config.bands
        samples = frames * sound.channels
        count = 2 * math.ceil(samples / (2 * self.part)) if samples > 0.4 * self.part else 1
        size = math.ceil(frames / count / bands) * bands
        starts = range(0, frames, size)
        return [(i, start, min(frames, start + size)) for i, start in enumerate(starts)]

    def read(self, sound, start, stop, count=None):
        """Frames of a Sound, float32 [channels, n] in [-1, 1), with zeros up to a count."""
        x = sound.read(start * sound.channels, stop * sound.channels).view(-1, sound.channels)
        x = x.T.float() / (1 << (sound.depth - 1))
        return functional.pad(x, (0, (count or x.shape[1]) - x.shape[1]))

    def measure(self, header, cipher, written, secret):
        """The energy of the error with which `reveal` will give the secret."""
        noise = start = 0
        for pcm in self.reveal(header, cipher, written):
            before = secret.read(start, start + pcm.size)
            noise += energy(before - torch.from_numpy(pcm.flatten().astype(np.int32)))
            start += pcm.size
        return noise

    def reveal(self, header, cipher, stego):
        """The secret's samples, int16 [n, channels], piece by piece; silent where the stego was
        cut off."""
        @torch.no_grad()
        def work(part):
            index, start, stop = part
            x = self.read(stego, start, stop, stop - start)
            y = self.reveal_part(header, cipher, part, x)
            y[:, max(0, stego.frames - start):] = 0
            y = self.unscrambled(y, cipher, index, stego.rate)
            y = y.mean(0, keepdim=True) if header.channels == 1 else y
            return to_pcm(y[:, :header.length - start].T)

        parts = self.parts(stego, header.samples // stego.channels)
        needed = [part for part in parts if part[1] < header.length]
        return in_order(work, needed, bar(header.length / stego.rate))

    def unscrambled(self, secret, cipher, index, rate):
        """A part's secret [channels, n], whose samples lie where the stego has them, in order."""
        return secret


class InnMethod(NetworkMethod):
    """Files with dirty-paper coding (`wavinwav.LappedINN`)."""

    part, options = 1 << 20, ("snr",)

    def hide(self, header, cipher, cover, secret, snr, shaping, masking):
        """The stego's samples, without header and seal, piece by piece; sets header.setting."""
        setting = self.fit(header, cipher, cover, secret, snr)
        header.setting = int(setting.pack())

        def work(part):
            index, start, stop = part
            x = self.read(cover, start, stop)
            y = self.read(secret, start, stop, x.shape[1]).expand_as(x)
            marks = self.layout.marks(b"" if index else header.pack(cipher), x.numel())
            marks = marks.view(-1, len(x)).T
            dither = self.dither(header, cipher, index, start, *x.shape)
            stego = self.model.embed(x, y, setting, marks, cover.depth, dither)
            stego = (stego * (1 << (cover.depth - 1))).round().T.flatten()
            return stego.numpy().astype(cover.dtype)

        return map(torch.from_numpy, in_order(work, self.parts(cover), bar(cover.seconds)))

    def reveal_part(self, header, cipher, part, x):
        """The secret of a part of a stego [channels, n]."""
        setting = Setting.unpack(torch.tensor([header.setting]).float())
        dither = self.dither(header, cipher, *part[:2], *x.shape)
        return self.model.inverse(x, setting, dither)[1]

    def fit(self, header, cipher, cover, secret, snr):
        """The `wavinwav.Setting` [1] that comes closest to a stego SNR in dB, by excerpts."""
        starts = range(0, cover.frames, EXCERPT)
        if len(starts) > EXCERPTS:
            starts = [cover.frames * i // EXCERPTS for i in range(EXCERPTS)]
        x = [self.read(cover, start, start + EXCERPT) for start in starts]
        y = [self.read(secret, start, start + EXCERPT, piece.shape[1]).expand_as(piece).flatten()
             for start, piece in zip(starts, x)]
        x, y = torch.cat([piece.flatten() for piece in x])[None], torch.cat(y)[None]
        power = cover.energy / cover.samples / (1 << (cover.depth - 1)) ** 2
        louder = x.square().mean().item() / power if power else 1
        snr = snr + 10 * math.log10(louder or 1)
        return self.model.fit(x, y, snr, self.dither(header, cipher, 0, 0, *x.shape))

    def dither(self, header, cipher, index, start, channels, length):
        """What is added to the secret in a part that begins with this frame, in cells
        [channels, P, F / P, bands]; None for nothing."""
        if not cipher.keyed:
            return None
        return self.model.split(self.numbers(cipher, index, channels, length).mT)

    def numbers(self, cipher, index, channels, length):
        """Keyed numbers for a part, one a sample, hop by hop [channels, F, M]."""
        x = cipher.uniform(b"dither %d\0" % index, channels * length).view(channels, length)
        bands = self.model.config.bands
        return functional.pad(x, (0, -length % bands)).unflatten(1, (-1, bands))

    def recover(self, decoded, key):
        """A secret as long as the stego, in the cells in which the samples seem to lie, if there
        is no key. Raises NoSecret if none fit."""
        if key is not None:
            return None
        setting, sure, spoiled = find_code(self.model, self.read(decoded(SEARCHED), 0, SEARCHED))
        if sure < LEAST_SURE:
            raise NoSecret("there is no header, and no trace of a secret without a key")
        if spoiled > MOST_SPOILED:
            raise NoSecret("there was a secret, but its header and too many samples were changed: "
                           "nothing is left of it")
        stego = decoded()
        note(f"{stego.name} has no header; a secret is assumed, since its samples cluster by "
             f"{sure:.0f} standard deviations more than chance (at least {LEAST_SURE})")
        header = Header(stego.samples, stego.frames, 0, setting, stego.channels, self.layout)
        return stego, header, Cipher()


def find_code(model, x):
    """Estimate the cells of a stego [B, T] whose header is lost, from how its coefficients cluster
    around their centres. Returns the packed setting; by how many standard deviations the cluster
    exceeds that of coefficients without cells; and how many coefficients of the lowest quarter of
    bands lie at the edges of their cells, where hiding puts none, from 0 to 1 for as many as by
    chance."""
    x = model.split(lapped(x * FULL_SCALE, model.config.bands)).transpose(0, 1).flatten(1, 2)
    x = x[:, x.square().sum((0, 2)).argsort(descending=True)]  # loud frames are the clearest

    def together(codes, frames, least=1.5):
        phase = x[:, :frames] / model.cells(Setting.unpack(codes))[0]
        far = (phase.abs() > least).float()  # others would lie around the centre of any cell
        waves = torch.cos(2 * math.pi * phase)
        return (waves * far).mean((1, 2, 3)).abs() / (far.mean((1, 2, 3)) + 0.125)

    likely = together(torch.arange(4096).float(), 12).topk(256).indices.float()
    best = likely[together(likely, 128).argmax()]  # few frames may fit cells of half the width
    wider = best + torch.tensor([0.0, 256, 512])
    scores = together(wider, 256)
    best = wider[scores >= 0.7 * scores[0]][-1]  # as the whole may
    for width in (2.0, 0.25):
        near = best + torch.linspace(-width, width, 65)
        best = near[together(near, 512, 3.5).argmax()]
    best = best.round()
    cells, room, _ = model.cells(Setting.unpack(best[None]))
    phase, room = x[:, :2048] / cells, room / cells
    far = phase.abs() > 3.5
    edge, low = ((phase - phase.round()).abs() > room) & far, model.config.bands // 4
    by_chance = ((1 - 2 * room) * far)[..., :low].sum()
    spoiled = edge[..., :low].sum() / by_chance.clamp_min(1e-9)
    waves = (torch.cos(2 * math.pi * phase) * far).sum((0, 1, 2))
    counts = far.sum((0, 1, 2))
    bands = (waves / (counts / 2).clamp_min(1).sqrt()).clamp(-3, 3)  # a tone is in few of them
    sure = bands.sum() / max(1, (counts > 0).sum()) ** 0.5
    return best.item(), sure.item(), spoiled.item()


class RobustMethod(InnMethod):
    """Files with `robust.RobustINN`, whose cells carry the header too. So a stego is found again
    after a change of its rate or its level, and without its beginning."""

    @property
    def survives(self):
        return robust.frames_for(8 * container.HEADER_BYTES) * self.model.config.bands

    def dither(self, header, cipher, index, start, channels, length):
        bands = self.model.config.bands
        if cipher.keyed:
            x = self.numbers(cipher, index, channels, length)
        else:
            x = torch.zeros(channels, math.ceil(length / bands), bands)
        return self.model.split(self.model.with_bits(x, start // bands, header.pack(cipher)).mT)

    def recover(self, decoded, key):
        bands = self.model.config.bands
        stego = searched = decoded(8 * SEARCHED)  # enough at 64 kHz, if it was made at 8
        for rate in dict.fromkeys([stego.rate, *RATES]):
            count = math.ceil((robust.SEARCHED + 2) * bands * stego.rate / rate)
            x = self.read(stego, 0, count)[0]
            if found := robust.find(self.model, resample(x, stego.rate, rate)):
                break
        else:
            return None
        content, agreeing = found.read(container.HEADER_BYTES)
        nonce = content[:container.NONCE_BYTES]
        cipher = Cipher(key, None if key is None else nonce)
        header = Header.unpack(content, cipher, self.layout)
        if header is None:
            raise NoSecret("there is a secret, but its key is another, or too little is left of it")
        if header.model != self.fingerprint():
            raise OtherModel("the secret was hidden with another model")
        frames = header.samples // stego.channels - found.start
        stego, changes = decoded(math.ceil(frames * stego.rate / rate)), []
        found = found._replace(width=found.width * stego.gain / searched.gain)
        if rate != stego.rate:
            changes.append(f"{stego.rate} Hz instead of {rate}")
            length = math.ceil(stego.frames * rate / stego.rate)
            stego = resampled(stego, rate, length, os.path.dirname(stego.path))
        if found.start:
            lacks = "lacks" if found.start > 0 else "has another"
            changes.append(f"it {lacks} {abs(found.start) / rate:.3f} s at its start")
            stego = moved(stego, found.start)
        setting = Setting.unpack(torch.tensor([header.setting]).float())
        stego.scale = self.model.cells(setting, keyed=True)[0].flatten()[-1].item() / found.width
        if abs(stego.scale - 1) > 0.005:
            changes.append(f"its level is {100 / stego.scale:.0f} %")
        note(f"{stego.name} was changed ({', '.join(changes) or 'in its samples'}); {agreeing:.0%} "
             "of its header's bits are as they were")
        return stego, header, cipher


class PaperMethod(NetworkMethod):
    """Files with the paper's network. A key permutes 20 ms segments, the paper's section III-D, in
    another order in each part: no listener understands them, but an analyst can put them in order.
    It enciphers only the header. The network works best at the level of its training, so
    header.setting holds a gain in dB of cover and secret."""

    part = 1 << 18

    def header(self, cover, secret):
        header = super().header(cover, secret)
        power, other = (sum(map(energy, sound.pieces())) / sound.samples / 4 ** (sound.depth - 1)
                        for sound in (cover, secret))
        gain = min(127, round(COVER_LEVEL - decibel(power, 1))) if power else 0
        level = SECRET_LEVEL + max(0, gain - 12) / 2  # rounding costs a quiet cover's secret most
        louder = min(127, round(level - decibel(other, 1))) if other else 0
        header.setting = int.from_bytes(struct.pack(">bb", gain, louder), "big")
        return header

    def gains(self, header):
        """Factors of cover and secret."""
        decibels = struct.unpack(">bb", header.setting.to_bytes(2, "big"))
        return [10 ** (gain / 20) for gain in decibels]

    def hide(self, header, cipher, cover, secret, snr, shaping, masking):
        """The stego's samples, without header and seal, piece by piece. The cover is turned down by
        as little as it takes for them to lie within full scale."""
        limit, gains = 1 << (cover.depth - 1), self.gains(header)

        def work(part):
            index, start, stop = part
            x = self.read(cover, start, stop)
            y = self.read(secret, start, stop, x.shape[1]).expand_as(x) * gains[1]
            y = scramble(y, cipher, index, cover.rate)
            stego = (self.model.hide(x * gains[0], y)[0] / gains[0] * limit).round()
            peak = max(stego.max().item() / (limit - 1), -stego.min().item() / limit)
            return stego.int().T.numpy(), peak

        path = os.path.join(os.path.dirname(cover.path), "stego.raw")
        for _ in range(6):
            highest = 0
            with open(path, "wb") as file:
                for samples, peak in in_order(work, self.parts(cover), bar(cover.seconds)):
                    samples.astype(cover.dtype).tofile(file)
                    highest = max(highest, peak)
            if highest <= 1:
                break
            cover.scale *= 0.9999 / highest
        else:
            raise StegoError(f"{cover.name} is too loud; turn it down")
        if cover.scale < 1:
            note(f"{cover.name} was turned down by {-20 * math.log10(cover.scale):.2f} dB, "
                 "so that nothing clips")
        stego = replace(cover, path=path, scale=1.0)
        first, last = self.layout.header_samples, cover.samples - self.layout.seal_samples
        yield stego.read(0, first)
        yield from stego.pieces(first, last)
        yield stego.read(last)

    def reveal_part(self, header, cipher, part, x):
        """The secret of a part of a stego [channels, n], still scrambled."""
        gains = self.gains(header)
        return self.model.reveal(x * gains[0])[1] / gains[1]

    def unscrambled(self, secret, cipher, index, rate):
        return scramble(secret, cipher, index, rate, invert=True)


def scramble(x, cipher, index, rate, invert=False):
    """Permute the 20 ms segments of a part [channels, n] by the key, if there is one, or back; a
    shorter rest stays in place."""
    size = max(1, round(0.02 * rate))
    order = list(range(x.shape[-1] // size if cipher.keyed else 0))
    key = cipher.stream(b"segments %d\0" % index, 32)
    random.Random(key).shuffle(order)  # the same in all versions of Python, and on all machines
    order = torch.tensor(order, dtype=torch.long)
    segments, rest = x.tensor_split([len(order) * size], -1)
    segments = segments.unflatten(-1, (len(order), size))
    segments = segments[..., order.argsort() if invert else order, :]
    return torch.cat([segments.flatten(-2), rest], -1)
