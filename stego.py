"""Hide one sound file in another, and reveal it.

    python stego.py hide COVER SECRET -o STEGO.wav               # --snr 60: a stego closer to the cover, a coarser secret
    python stego.py reveal STEGO.wav -o SECRET.wav
    python stego.py hide COVER SECRET -o STEGO.wav --model wavinwav-affine.pt    # for channels that add some noise

The stego file is 16-bit PCM WAV at the cover's rate and length. hide reads it back and prints how close the stego is
to the cover, and the revealed secret to the secret.
"""

import argparse
import math
import os
import struct
import sys
import warnings
import zlib

import numpy as np
import soundfile
import torch

import wavinwav

HERE = os.path.dirname(os.path.abspath(__file__))
FULL_SCALE = 32768  # of 16-bit PCM: a file's sample n is n / FULL_SCALE in the model


class StegoError(Exception):
    """Bad input, told in one line that names the file and the remedy."""


# ---------------------------------------------------------------- the affine models' header, in the first samples' lowest bits

HEADER = struct.Struct(">4sQI")  # magic, the secret's length in samples, CRC-32 of both
MAGIC = b"WIW1"
HEADER_SAMPLES = 8 * HEADER.size  # one bit a sample


def write_header(samples, secret_length):
    """Put the header into the least significant bits of the first samples of an int16 array, in place."""
    body = HEADER.pack(MAGIC, secret_length, 0)[:-4]
    bits = np.unpackbits(np.frombuffer(body + struct.pack(">I", zlib.crc32(body)), np.uint8))
    samples[:HEADER_SAMPLES] = samples[:HEADER_SAMPLES] & ~1 | bits


def read_header(samples):
    """The secret's length in samples, or None where the int16 array has no intact header."""
    if len(samples) < HEADER_SAMPLES:
        return None
    content = np.packbits((samples[:HEADER_SAMPLES] & 1).astype(np.uint8)).tobytes()
    magic, secret_length, crc = HEADER.unpack(content)
    if magic != MAGIC or crc != zlib.crc32(content[:-4]) or not 0 < secret_length <= len(samples):
        return None
    return secret_length


# ---------------------------------------------------------------- files

def read_audio(path, dtype="float32"):
    """Samples [T, channels] as numpy and the rate in Hz. Raises StegoError for what is no usable audio file."""
    if not os.path.exists(path):
        raise StegoError(f"{path} does not exist")
    try:
        samples, rate = soundfile.read(path, dtype=dtype, always_2d=True)
    except (soundfile.LibsndfileError, OSError) as error:
        raise StegoError(f"{path} cannot be read as audio ({error}); give a WAV, FLAC, OGG or MP3 file") from error
    if not len(samples):
        raise StegoError(f"{path} has no samples")
    if not np.isfinite(samples).all():
        raise StegoError(f"{path} has samples that are NaN or infinite; repair or re-export it")
    return samples, rate


def write_audio(path, samples, rate):
    """Write int16 samples [T] as 16-bit PCM WAV: to a temporary file first, so that a fault leaves nothing behind."""
    try:
        with wavinwav.replacing(path) as temporary:
            soundfile.write(temporary, samples, rate, subtype="PCM_16", format="WAV")
    except (soundfile.LibsndfileError, OSError) as error:
        raise StegoError(f"{path} cannot be written ({error})") from error


def to_pcm(x):
    """Float tensor [T] to int16, rounded and clipped."""
    return (x * FULL_SCALE).round().clamp(-FULL_SCALE, FULL_SCALE - 1).to(torch.int16).numpy()


def from_pcm(samples):
    """int16 array [T] to a float tensor in [-1, 1)."""
    return torch.from_numpy(samples.astype(np.float32)) / FULL_SCALE


def read_cover(path):
    """A mono cover as a float tensor [T], and its rate."""
    samples, rate = read_audio(path)
    if samples.shape[1] != 1:
        raise StegoError(f"{path} has {samples.shape[1]} channels, and a cover needs one; mix it down to mono first")
    if len(samples) < HEADER_SAMPLES:
        raise StegoError(f"{path} has {len(samples)} samples, too short to hide anything in; "
                         f"a cover needs at least {HEADER_SAMPLES}")
    return torch.from_numpy(samples[:, 0]), rate


def read_secret(path, length, rate):
    """A secret, mixed to mono, at `rate` Hz: a float tensor of at most `length` samples (the cover's)."""
    samples, own_rate = read_audio(path)
    if len(samples) / own_rate > length / rate:
        raise StegoError(f"{path} lasts {len(samples) / own_rate:.3f} s, longer than its cover's {length / rate:.3f} s; "
                         "cut it, or take a longer cover")
    secret = torch.from_numpy(samples.mean(1) if samples.shape[1] > 1 else samples[:, 0])
    if own_rate != rate:
        from torchaudio.functional import resample  # half a second to import, and seldom needed
        secret = resample(secret, own_rate, rate)[:length]
    return secret


def snr_of(reference, estimate):
    """Signal-to-noise ratio in dB of two float tensors [T]: infinite if they are equal, minus infinite for silence."""
    signal = noise = 0.0
    for a, b in zip(reference.split(1 << 16), estimate.split(1 << 16)):
        signal += a.double().square().sum().item()
        noise += (a - b).double().square().sum().item()
    return math.inf if not noise else 10 * math.log10(signal / noise) if signal else -math.inf


# ---------------------------------------------------------------- hide and reveal

def load_model(path):
    try:
        return wavinwav.load(path)
    except FileNotFoundError as error:
        raise StegoError(f"{path} does not exist; give a model with --model") from error
    except (ValueError, OSError) as error:
        raise StegoError(str(error)) from error


def hide(cover_path, secret_path, stego_path, model, snr=wavinwav.STEGO_SNR, shaping=None, masking=wavinwav.MASKING):
    """Hide a sound file in another one, and check the result on disk.

    `snr` (of the stego, in dB), `shaping` and `masking` are for lattice models, see `wavinwav.Lattice.hide`.
    Returns (stego SNR, secret SNR) in dB: of the file against the cover, and of what `reveal` gets out of it against
    the secret at the cover's rate. Raises StegoError.
    """
    cover, rate = read_cover(cover_path)
    secret = read_secret(secret_path, len(cover), rate)
    if isinstance(model, wavinwav.Lattice):
        secret = from_pcm(to_pcm(secret))
        try:
            stego, r = model.hide(cover, secret, snr, shaping, rate, masking=masking)
        except ValueError as error:
            raise StegoError(f"{cover_path}: {error}; take a longer cover, or a lower --snr") from error
        samples = to_pcm(stego)
        write_audio(stego_path, samples, rate)
        written = read_audio(stego_path, "int16")[0][:, 0]
        if not np.array_equal(written, samples):
            raise StegoError(f"{stego_path} does not hold what was written to it; the disk may be full or damaged")
        # the decoder is exact: what it makes of these samples is known
        return snr_of(cover, from_pcm(written)), snr_of(secret, from_pcm(to_pcm(secret - r[len(cover):])))
    padded = torch.nn.functional.pad(secret, (0, len(cover) - len(secret)))
    stego, _ = model.hide(cover, padded)
    clipped = int(((stego < -1) | (stego > 1 - 1 / FULL_SCALE)).sum())
    samples = to_pcm(stego)
    write_header(samples, len(secret))
    write_audio(stego_path, samples, rate)
    if clipped:
        print(f"warning: {stego_path}: {clipped} samples were clipped, which costs quality; a quieter cover avoids it",
              file=sys.stderr)

    written, _ = read_audio(stego_path, "int16")
    revealed = reveal_samples(written[:, 0], model)
    return snr_of(cover, from_pcm(written[:, 0])), snr_of(secret, from_pcm(revealed))


def reveal_samples(samples, model):
    """The secret in the int16 samples [T] of a stego file, as int16. Raises ValueError that says why there is none."""
    length = read_header(samples)
    if not isinstance(model, wavinwav.Lattice):
        if length is None:
            raise ValueError("there is no secret of an affine model, or it was damaged")
        return to_pcm(model.reveal(from_pcm(samples))[1][:length])
    if length is not None:
        raise ValueError("the secret was hidden with an affine model")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        secret = model.reveal(from_pcm(samples))[1]
    for warning in caught:
        print(f"warning: {warning.message}", file=sys.stderr)
    return to_pcm(secret)


def reveal(stego_path, secret_path, model):
    """Write the secret that a stego file carries as 16-bit PCM WAV. Returns its length in seconds. Raises StegoError."""
    samples, rate = read_audio(stego_path, "int16")
    if samples.shape[1] != 1:
        raise StegoError(f"{stego_path} has {samples.shape[1]} channels, and a stego file has one; give a file that hide wrote")
    try:
        secret = reveal_samples(samples[:, 0], model)
    except ValueError as error:
        raise StegoError(f"{stego_path}: {error}; give a file as hide wrote it, and its model with --model") from error
    write_audio(secret_path, secret, rate)
    return len(secret) / rate


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    hiding = commands.add_parser("hide", help="hide a secret in a cover")
    hiding.add_argument("cover", metavar="COVER", help="sound file, mono, of any rate; it is never resampled")
    hiding.add_argument("secret", metavar="SECRET",
                        help="sound file, no longer than the cover; brought to its rate, and to mono")
    hiding.add_argument("-o", "--output", required=True, metavar="STEGO.wav", help="the stego file to write")
    revealing = commands.add_parser("reveal", help="reveal the secret of a stego file")
    revealing.add_argument("stego", metavar="STEGO.wav", help="file that hide wrote")
    revealing.add_argument("-o", "--output", required=True, metavar="SECRET.wav", help="the file to write")
    hiding.add_argument("--snr", type=float, default=wavinwav.STEGO_SNR, metavar="DB",
                        help="stego SNR in dB, for lattice models: a higher one leaves the secret less quality "
                        f"(default: {wavinwav.STEGO_SNR:g})")
    hiding.add_argument("--shaping", type=float, metavar="X",
                        help="lattice models: 0 gives the secret the best SNR, up to 1 moves its noise to where it is loud, "
                        "for the ear (default: the more, the fewer bits there are)")
    hiding.add_argument("--masking", type=float, default=wavinwav.MASKING, metavar="X",
                        help="lattice models: 0 changes all of the cover alike, which gives the secret most; up to 1 follows the "
                        f"cover's level, for the ear (default: {wavinwav.MASKING})")
    for command in (hiding, revealing):
        command.add_argument("--model", default=os.path.join(HERE, "wavinwav.pt"), metavar="FILE",
                             help="the model, the same for hide and reveal (default: the wavinwav.pt beside this script)")
    args = parser.parse_args(argv)
    try:
        model = load_model(args.model)
        if args.command == "hide":
            stego_snr, secret_snr = hide(args.cover, args.secret, args.output, model, args.snr, args.shaping, args.masking)
            quality = "secret lossless" if secret_snr == math.inf else f"secret SNR {secret_snr:.2f} dB"
            print(f"{args.output}: stego SNR {stego_snr:.2f} dB, {quality}")
        else:
            seconds = reveal(args.stego, args.output, model)
            print(f"{args.output}: {seconds:.2f} s revealed")
    except StegoError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
