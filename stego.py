"""Hide one sound file in another, and reveal it.

    python stego.py hide COVER SECRET -o STEGO.wav             # --snr 60: less change, less quality
    python stego.py reveal STEGO.wav -o SECRET.wav
    python stego.py hide COVER SECRET -o STEGO.wav --key       # asks; --key-file FILE reads one
    python stego.py hide COVER SECRET -o STEGO.wav --model lattice     # the highest quality
    python stego.py hide COVER SECRET -o STEGO.wav --model robust      # survives MP3, AAC

COVER and SECRET: WAV, FLAC, OGG, MP3 and what else libsndfile reads, one or two channels, any rate;
`-` is the standard input. STEGO: WAV or FLAC of the cover's rate, channels and length, of 16 bits,
or of 24 if the cover has more than 16; `-` is the standard output. hide reads the file back and
prints the SNR of the stego, and of the secret that will be revealed against the file that was
given. Length does not matter: both work part by part, on all cores.

A secret of two channels is mixed to one for a cover of one, with a note. Nothing ever clips: the
loudest samples of a cover are limited by as little as it takes.

With a key, the header and the secret are enciphered (SHAKE-256, keyed by scrypt and a new nonce for
each file), and the stego shows nothing of what is hidden; that something is hidden can be detected
all the same. The default model then rounds less well: the secret loses about 6 dB, and gains 14 in
a stego of 24 bits (--depth 24). The paper's network only permutes segments of 20 ms: no listener
understands them, but an analyst can put them in order.

A keyed hash covers every sample, so reveal refuses a stego that was changed or cut; --force reveals
what is left. The robust model reveals without --force what is left after MP3, AAC, faint noise,
another rate or level, or a cut, with a key too, and notes what was changed.
"""

import os
import sys

if __name__ == "__main__":
    import gc
    gc.disable()  # while torch creates its many objects, none of which is garbage
sys.path.insert(0, os.path.dirname(os.path.realpath(__file__)))  # also under python -P

import files.start  # noqa: F401

# isort: split
import argparse
import codecs
import getpass
import math
import warnings

import torch

from files import container
from files.command import (
    Parser,
    StegoError,
    interrupt_on_signals,
    mistakes_in_one_line,
    one_line,
    settle_streams,
    standard_output,
)
from files.container import DENSE, Cipher, Damaged, Header, NoSecret, OtherModel
from files.parts import load_model, method_of
from files.secret import read_secret
from files.sound import check_output, decibel, decode, note, placing, writing
from files.source import READ_AT_ONCE
from files.streams import standard_streams
from wavinwav import LappedConfig

MOST_LOST = 100  # how many times longer a stego may have been than what is left of it
MOST_KEY = 1 << 16  # bytes


def hide(cover_path, secret_path, stego_path, model, snr=None, shaping=None, masking=None,
         key=None, depth=None, overwrite=False):
    """Hide a sound file in another one, and check the result on disk.

    Args:
        cover_path, secret_path: sound files, or "-"; the secret lasts no longer.
        stego_path: WAV or FLAC file, or "-".
        model: from `load_model`.
        snr: of the stego in dB; None is the model's default. Not for the paper's network.
        shaping: for lattice models, how much the secret's quantisation follows its envelope, from
            0 (for its SNR) to 1 (for the ear); None chooses by the bits there are.
        masking: for lattice models, the power of the cover's noise floor that the stego's noise
            follows, from 0 (white, for the secret's SNR) to 1 (hard to find).
        key: passphrase, str or bytes, that `reveal` will need; None is none.
        depth: bits of the stego's samples, 16 or 24; None is 24 if the cover has more than 16.
        overwrite: whether stego_path may exist.
    Returns:
        stego SNR, secret SNR in dB: of the file against the cover, and of what `reveal` will write
        against the secret that was given; infinite if they are equal.
    Raises:
        StegoError. Then nothing has been written.
    """
    method = method_of(model)
    check_numbers(method, snr, shaping, masking, depth)
    if cover_path == secret_path == "-":
        raise StegoError("cover and secret cannot both be the standard input")
    check_output(stego_path, overwrite)
    cipher = Cipher(key)
    snr = method.usual_snr if snr is None else snr
    with standard_streams([cover_path, secret_path], stego_path) as (inputs, stego_file, folder):
        cover = decode(inputs[0], cover_path, folder, depth)
        if cover.samples < method.least_samples:
            raise StegoError(f"{cover_path} has {cover.samples} samples, too short to hide anything"
                             f" in; a cover needs at least {method.least_samples}")
        secret, given, lost, unit = read_secret(inputs[1], secret_path, folder, cover)
        for sound in cover, given:
            if sound.gain < 1:
                note(f"{sound.name} was turned down by {-20 * math.log10(sound.gain):.2f} dB, to "
                     "full scale")
        header = method.header(cover, secret)
        header.form = cover.rate, cover.channels, cover.depth
        pieces = method.hide(header, cipher, cover, secret, snr, shaping, masking)
        with placing(stego_file, overwrite) as temporary:
            with writing(temporary, stego_file, *header.form, cover.seconds) as put:
                try:
                    for samples in container.sealed(pieces, header, cipher):
                        put(samples)
                except ValueError as error:
                    raise StegoError(f"{cover_path}: {error}") from error
            written = decode(temporary, stego_path, folder, cover.depth)
            try:
                container.verify(written.read, written.samples, header, cipher)
            except Damaged as error:
                raise StegoError(f"{stego_path} does not hold what was written to it; the disk may "
                                 "be full or damaged") from error
            noise = method.measure(header, cipher, written, secret)
            stego_snr = decibel(cover.energy, cover.distance(written))
    if cover.frames < method.survives:
        note(f"{cover_path} is too short for the secret to survive a change of the stego; that "
             f"takes {method.survives / cover.rate:.1f} s")
    if snr is not None and stego_snr < snr - 1:
        note(f"{stego_path} misses the SNR of {snr:g} dB: {cover_path} is too quiet, too loud or "
             "too short for it")
    return stego_snr, decibel(given.energy, lost + unit * noise)


def check_numbers(method, snr, shaping, masking, depth):
    """None is the default of each. Raises StegoError for one that is out of range, or not for this
    model."""
    for name, value, most in (("snr", snr, 120), ("shaping", shaping, 1), ("masking", masking, 1)):
        if value is not None and not 0 <= value <= most:
            raise StegoError(f"--{name} {value} makes no sense; give a number from 0 to {most}")
        if value is not None and name not in method.options:
            raise StegoError(f"--{name} has no effect on this model; leave it out, or give another "
                             "model, such as --model lattice")
    if depth not in (None, 16, 24):
        raise StegoError(f"samples of {depth} bits cannot be written; give 16 or 24")


def reveal(stego_path, secret_path, model, key=None, force=False, overwrite=False):
    """Write the secret that a stego file carries as a 16-bit file of the stego's rate.

    Args:
        stego_path: a file that `hide` wrote, or "-".
        secret_path: WAV or FLAC file, or "-".
        model: from `load_model`, the one that hid it.
        key: the passphrase, str or bytes.
        force: reveal what is left in a file that was changed: blocks of a few seconds that are
            damaged come out silent. An INN without a key reveals even without a header, if it
            finds the cells: a secret as long as the stego. The robust model needs no force.
        overwrite: whether secret_path may exist.
    Returns:
        The secret's length in seconds.
    Raises:
        StegoError, with its cause: NoSecret (or another key), OtherModel, Damaged. Then nothing has
        been written.
    """
    key = None if key is None else container.key_bytes(key)
    check_output(secret_path, overwrite)
    method = method_of(model)
    with standard_streams([stego_path], secret_path) as ((stego_file,), secret_file, folder):
        try:
            stego, header, cipher = read_header(method, stego_file, stego_path, folder, key, force)
            seconds = header.length / stego.rate
            with (placing(secret_file, overwrite) as temporary,
                  writing(temporary, secret_file, stego.rate, header.channels, 16, seconds) as put):
                for samples in method.reveal(header, cipher, stego):
                    put(samples)
        except (NoSecret, OtherModel, Damaged) as error:
            left = "nothing is left of it" if force else (
                "get it as hide wrote it, or reveal what is left with --force")
            remedy = {NoSecret: "give a file as hide wrote it, its key and its --model",
                      OtherModel: "give it with --model", Damaged: left}
            raise StegoError(f"{stego_path}: {error}; {remedy[type(error)]}") from error
    if stego.samples < header.samples:
        note(f"{stego_path} was cut: {stego.samples} of {header.samples} samples are left, and the "
             "rest of the secret is silent")
    return seconds


def read_header(method, path, name, folder, key, force):
    """The stego as a Sound, its header, and the cipher of the rest. The header is read first, so
    that no more of a file is decoded than it says, and verified unless `force` is set. Raises
    NoSecret, OtherModel, Damaged."""
    def some(most=math.inf, **options):
        return decode(path, name, folder, whole=False, most=most, **options)

    # A lattice's header comes after digital silence, of which a small FLAC can have hours.
    first = some(READ_AT_ONCE + DENSE.header_samples, skip=method.layout == DENSE)
    try:
        if not first.frames:
            raise NoSecret("it is digital silence")
        header, cipher = Header.read(
            first.read, first.samples, key, method.fingerprint(), method.layout)
    except NoSecret:
        if (force or method.survives) and (found := method.recover(some, key)):
            return found
        raise
    skipped = first.skipped * first.channels
    header.start, header.stop = header.start + skipped, header.stop + skipped
    frames, rest = divmod(header.samples, first.channels)  # without a key anyone can write a header
    if rest or header.length > frames or header.channels > first.channels:
        raise Damaged("its header does not fit it")
    stego = some(frames + 1, depth=first.depth)
    if not force:
        try:
            if header.form != (stego.rate, stego.channels, stego.depth):
                raise Damaged("its rate, channels or bits were {} Hz, {}, {}, and are not now"
                              .format(*header.form))
            container.verify(stego.read, stego.samples, header, cipher)
        except Damaged as error:
            if not method.survives:
                raise
            if found := method.recover(lambda most=None: stego, key):
                return found
            note(f"{name}: {error}; what is left is revealed")
    if header.samples > MOST_LOST * stego.samples:
        raise Damaged(f"it was cut: {stego.samples} of {header.samples} samples are left")
    return stego, header, cipher


def read_key(args):
    """The passphrase that --key or --key-file gives, or None."""
    if args.key_file is not None:
        try:
            with open(args.key_file, "rb") as file:
                key = file.read(MOST_KEY + 1)
        except OSError as error:
            raise StegoError(f"--key-file {args.key_file or repr('')} cannot be read "
                             f"({error.strerror}); give a file with a passphrase") from error
        if len(key) > MOST_KEY:
            raise StegoError(f"{args.key_file} has more than {MOST_KEY} bytes; give a file with a "
                             "passphrase")
        if key.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            raise StegoError(f"{args.key_file} is UTF-16; save it as UTF-8")
        if not key.removeprefix(codecs.BOM_UTF8).strip(b"\r\n"):
            raise StegoError(f"{args.key_file} is empty; write a passphrase into it")
        return key
    if not args.key:
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", getpass.GetPassWarning)
            key = container.key_bytes(getpass.getpass("key: "))
            again = getpass.getpass("key, again: ") if args.command == "hide" else key
            if container.key_bytes(again) != key:
                raise StegoError("the keys differ; type the same one twice")
    except UnicodeError as error:
        raise StegoError(f"the key {container.NOT_TEXT}") from error
    except (EOFError, getpass.GetPassWarning) as error:
        raise StegoError("there is nobody to ask for a key; give --key-file") from error
    return key


def main(argv=None):
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    hiding = commands.add_parser("hide", help="hide a secret in a cover")
    hiding.add_argument("cover", metavar="COVER",
                        help="sound file of any rate, one or two channels; it is never resampled")
    hiding.add_argument("secret", metavar="SECRET",
                        help="sound file, no longer than the cover; brought to its rate, and to "
                             "one channel if it has one")
    revealing = commands.add_parser("reveal", help="reveal the secret of a stego file")
    revealing.add_argument("stego", metavar="STEGO.wav", help="file that hide wrote")
    hiding.add_argument("--snr", type=float, metavar="DB",
                        help="stego SNR in dB: a higher one leaves the secret less quality "
                             f"(default: {LappedConfig.stego_snr:g}, a lattice 52)")
    hiding.add_argument("--shaping", type=float, metavar="X",
                        help="lattice models: 0 gives the secret the best SNR, up to 1 moves its "
                             "noise to where it is loud, for the ear (default: the more, the fewer "
                             "bits there are)")
    hiding.add_argument("--masking", type=float, metavar="X",
                        help="lattice models: 0 changes all of the cover alike, which gives the "
                             "secret most; up to 1 follows the cover's own noise, which makes "
                             "it harder to find (default: 0.4)")
    hiding.add_argument("--depth", type=int, choices=(16, 24),
                        help="bits of the stego's samples: in 24 bits there is room for more "
                             "(default: 24 if the cover has more than 16)")
    revealing.add_argument("--force", action="store_true",
                           help="reveal what is left in a file that was changed")
    for command, output in (hiding, "STEGO.wav"), (revealing, "SECRET.wav"):
        command.add_argument("-o", "--output", required=True, metavar=output,
                             help="the file to write, WAV or FLAC")
        command.add_argument("--model", metavar="MODEL", default="wavinwav",
                             help="the model, the same for hide and reveal: wavinwav, lattice, "
                                  "paper, robust, or a file (default: wavinwav)")
        keys = command.add_mutually_exclusive_group()
        keys.add_argument("--key", action="store_true",
                          help="ask for a passphrase, without which nothing can be revealed")
        keys.add_argument("--key-file", metavar="FILE",
                          help="read the passphrase from a file, up to a newline at its end")
        command.add_argument("--overwrite", action="store_true",
                             help="replace the output file if it exists")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)  # the processes share the cores
    with mistakes_in_one_line():
        key, model = read_key(args), load_model(args.model)
        if args.command == "hide":
            stego_snr, secret_snr = hide(
                args.cover, args.secret, args.output, model, args.snr, args.shaping, args.masking,
                key, args.depth, args.overwrite)
            lossless = secret_snr == math.inf
            quality = "secret lossless" if lossless else f"secret SNR {secret_snr:.2f} dB"
            text = f"stego SNR {stego_snr:.2f} dB, {quality}"
        else:
            seconds = reveal(args.stego, args.output, model, key, args.force, args.overwrite)
            text = f"{seconds:.2f} s revealed"
        with standard_output(f"{args.output} is written ({text}), but "):
            print(f"{one_line(args.output)}: {text}", flush=True,
                  file=sys.stderr if args.output == "-" else sys.stdout)


if __name__ == "__main__":
    settle_streams()
    stopped = interrupt_on_signals()
    gc.freeze()
    gc.enable()
    try:
        main()
    except Exception:  # such as numpy's, for an exception that a signal raised inside of it
        if not stopped:
            raise
        sys.exit("error: interrupted")
    os._exit(0)  # without taking torch apart, another half second
