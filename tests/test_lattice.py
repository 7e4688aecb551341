"""The lattice: what comes out is what went in, on any machine, with every weight randomised."""

import zlib

import pytest
import soundfile
import torch
from torch.nn import functional

import stego
import wavinwav
from files.command import StegoError
from files.container import DENSE, Cipher, Header, bytes_of, sealed
from helpers import INN, LATTICE, four, header_of, pcm, snr, speechlike
from lattice import lattice, parts, quantiser
from lattice.cells import random_numbers, read_words, word_starts, write_words
from lattice.lattice import Lattice, LatticeConfig, Mode
from lattice.widths import SEGMENT


def randomised(seed=0):
    """A model with random weights, and tables that are counted under them, as after training."""
    torch.manual_seed(seed)
    model = Lattice(LatticeConfig()).eval()
    with torch.no_grad():
        for name, p in model.quantiser.scales.named_parameters():
            direct = "direct" in name
            p.copy_(0.7 / len(p[0]) * torch.rand_like(p) if direct else 0.2 * torch.randn_like(p))
    secrets = 32768 * speechlike(4, 64 * 256, seed=seed).float()
    model.measure([(secrets, 100, 0), (secrets, 300, 100)])
    return model


@pytest.fixture(scope="module")
def model():
    return randomised()


@pytest.fixture(scope="module")
def shipped():
    return lattice.load(LATTICE)


class Files:
    """`stego.hide` and `stego.reveal` on waveforms [T] or [2, T] of 16 kHz and 16 bits."""

    def __init__(self, folder):
        self.paths = four(folder)

    def write(self, path, x):
        soundfile.write(path, (x.double() * 32768).clamp(max=32767).short().numpy().T, 16000)

    def hide(self, model, cover, secret, **options):
        """The stego, its SNR and the secret's in dB, as `stego.hide` returns them."""
        self.write(self.paths[0], cover)
        self.write(self.paths[1], secret)
        snrs = stego.hide(*self.paths[:3], model, overwrite=True, **options)
        return torch.tensor(soundfile.read(self.paths[2])[0].T), *snrs

    def reveal(self, model, samples, **options):
        self.write(self.paths[2], samples)
        stego.reveal(*self.paths[2:], model, overwrite=True, **options)
        return torch.tensor(soundfile.read(self.paths[3])[0].T)


@pytest.fixture
def files(tmp_path):
    return Files(tmp_path)


def test_scales_are_exact_integers():
    """The same in float64, where nothing rounds, and with operands rounded to bfloat16, as some
    hardware does."""
    model = randomised(3)
    net = model.quantiser.scales[2]
    x = torch.randint(256, (29, 128 * 50)).float()
    integers = net.integers(torch.arange(1, 256, 2), torch.full((50,), 40))
    result = net(integers, x)
    assert torch.equal(256 * result, (256 * result).round()) and result.unique().numel() > 1000
    assert torch.equal(result.double(), net(tuple(w.double() for w in integers), x.double()))
    weights, bias, out = integers
    narrow = weights.bfloat16().float(), bias, out.bfloat16().float()
    assert torch.equal(net(narrow, x.bfloat16().float()), result)


def test_threads_and_matmul_precision_do_not_matter(model, files, monkeypatch):
    """What is hidden under one setting is revealed under another. (Stegos may differ: how finely a
    secret is quantised is found by arithmetic that rounds.)"""
    cover, secret = pcm(7 * 16000, seed=1), pcm(7 * 16000, seed=2)  # two blocks
    hidden = [files.hide(model, cover, secret, snr=45)[0]]
    revealed = [files.reveal(model, hidden[0])]
    threads = torch.get_num_threads()
    try:
        for count, batch, precision in ((1, 2, "medium"), (2, 1, "high")):
            torch.set_num_threads(count)
            torch.set_float32_matmul_precision(precision)
            monkeypatch.setattr(quantiser, "BATCH", batch)
            monkeypatch.setattr(lattice, "BATCH", batch)
            assert torch.equal(files.reveal(model, hidden[0]), revealed[0])
            hidden.append(files.hide(model, cover, secret, snr=45)[0])
            revealed.append(files.reveal(model, hidden[-1]))
    finally:
        torch.set_num_threads(threads)
        torch.set_float32_matmul_precision("highest")
    assert all(torch.equal(files.reveal(model, x), y) for x, y in zip(hidden, revealed))


@pytest.mark.parametrize("option, side", [("shaping", 0), ("masking", 1)])
def test_options_move_noise_to_where_a_side_is_loud(shipped, files, option, side):
    """Shaping the noise of the secret by the secret, masking that of the cover by the cover."""
    pair = [pcm(4 * 16000, seed=seed) for seed in (8, 7)]
    pair[side][:32000] = (pair[side][:32000] * 0.01 * 32768).round() / 32768
    secret, cover = pair
    noise = []
    for strength in (0.0, 0.8):
        hidden, *_ = files.hide(shipped, cover, secret, snr=50, **{option: strength})
        error = hidden - cover if side else files.reveal(shipped, hidden) - secret
        quiet, loud = error[2000:30000], error[34000:]
        noise.append((quiet.square().mean() / loud.square().mean()).sqrt().item())
    assert noise[1] < 0.7 * noise[0]


def test_what_two_channels_share_costs_bits_once(model, files):
    cover, secret = pcm(2, 20000, seed=25), pcm(2, 15000, seed=26)
    apart = files.hide(model, cover, secret, snr=45)[2]
    secret[1] = (0.9 * secret[0] * 32768).round() / 32768
    hidden, stego_snr, together = files.hide(model, cover, secret, snr=45)
    assert abs(stego_snr - 45) < 0.5 and together > apart + 5
    assert snr(secret.double(), files.reveal(model, hidden)) == pytest.approx(together, abs=1e-6)


def test_parts_stand_alone(model, files, monkeypatch, capfd):
    """Of a recording of several parts, with one that is destroyed, all others are revealed."""
    monkeypatch.setattr(parts, "PART_SEGMENTS", 40)
    hidden, *_ = files.hide(model, pcm(100_000, seed=23), pcm(90_000, seed=24), snr=45)
    revealed = files.reveal(model, hidden)
    header = header_of((hidden * 32768).int(), None, model.fingerprint(), DENSE)[0]
    ranges = parts.parts_of(header)
    hidden[ranges[3].samples] = 0
    forced = files.reveal(model, hidden, force=True)
    assert "1 of 6 blocks" in capfd.readouterr().err
    alike = [torch.equal(forced[part.secret], revealed[part.secret]) for part in ranges]
    assert alike == [True] * 3 + [False] + [True] * 2


def crafted(model, words):
    """A stego [T] as anyone can make it, with these words in the only part of its 32000 samples."""
    samples, cipher = (pcm(32000, seed=23) * 32768).int(), Cipher()
    header = Header(len(samples), 32000, model.fingerprint(), 256, form=(16000, 1, 16))
    part, = parts.parts_of(header)
    widths = torch.full((part.segments.stop,), 20)
    samples[part.samples] = write_words(words, samples[part.samples], widths, cipher, 0, 16)
    return torch.cat(list(sealed([samples], header, cipher))) / 32768, word_starts(widths)


@pytest.mark.parametrize("where, expected", [
    ("apart", "words end before the secret does"), ("together", "its blocks overlap")])
def test_blocks_that_share_words_are_refused(model, files, monkeypatch, where, expected):
    """With all checksums right. Their copies would take any amount of memory."""
    monkeypatch.setattr(lattice, "BLOCK_FRAMES", 32)
    _, blocks = model.shape_of(32000, 256)
    starts = crafted(model, torch.arange(100))[1]
    first = Mode(0, 0, False, False).pack()
    table, words = [first], torch.randint(1 << 32, (400 * blocks + 100,))
    for i in range(blocks):
        start = 100 + (400 * i if where == "apart" else i)
        stream = words[start:start + 400] ^ Cipher().words(b"words 0 %d\0" % (i + 1), 400)
        segment = int((starts <= start).sum()) - 1
        check = zlib.crc32(bytes_of(stream), first)
        table += [(segment << 12) | (start - int(starts[segment])), 400, check]
    words[:len(table)] = torch.tensor(table) ^ Cipher().words(b"words 0 0\0", len(table))
    with pytest.raises(StegoError, match=expected):
        files.reveal(model, crafted(model, words)[0])


def test_damage_stays_in_its_block(model, files, capsys):
    """Be it changed in a segment's label or in one of two cells, or cut off."""
    cover, secret = pcm(12 * 16000, seed=11), pcm(12 * 16000, seed=12)
    hidden, *_ = files.hide(model, cover, secret, snr=45)
    whole = files.reveal(model, hidden)
    first = random_numbers(375, Cipher(), 0)[1][160].item()
    size = model.shape_of(len(secret), 256)[0] * 256
    cases = [(hidden[:-8000], "it was cut: 184000")]
    for place in (0, 5, 100):
        place = DENSE.header_samples + 160 * SEGMENT + (first + place) % SEGMENT
        changed = hidden.clone()
        changed[place] += (1 if hidden[place] < 0 else -1) / 32768
        cases.append((changed, "changed after it was made"))
    for damaged, message in cases:
        with pytest.raises(StegoError, match=message):
            files.reveal(model, damaged)
        forced = files.reveal(model, damaged, force=True)
        assert "1 of 3 blocks" in capsys.readouterr().err
        unlike = [not torch.equal(a, b) for a, b in zip(whole.split(size), forced.split(size))]
        assert len(unlike) == 3 and sum(unlike) == 1
        assert not forced.split(size)[unlike.index(True)].any()
    for length in (2000, 5000):
        with pytest.raises(StegoError, match="cut off"):
            files.reveal(model, hidden[:length], force=True)


# ---------------------------------------------------------------- keys

def test_a_key_is_needed(model, files):
    cover, secret = pcm(32000, seed=30), pcm(32000, seed=31)
    plain, plain_snr, plain_secret = files.hide(model, cover, secret, snr=45)
    hidden, keyed_snr, keyed_secret = files.hide(model, cover, secret, snr=45, key="open sesame")
    assert abs(plain_secret - keyed_secret) < 0.1, "a key costs nothing"
    # In cells that are filled at random the noise is a mean of 32,000 squares, each of a relative
    # standard deviation of 0.9: 0.022 dB in all, so that this is 9 of them.
    assert abs(plain_snr - keyed_snr) < 0.2
    assert files.reveal(model, hidden, key=b"open sesame").shape == secret.shape
    for samples, key in ((hidden, None), (hidden, "open sesame "), (plain, "open sesame")):
        with pytest.raises(StegoError, match="the key or the model is another"):
            files.reveal(model, samples, key=key)
    assert torch.equal(files.hide(model, cover, secret, snr=45)[0], plain), "deterministic"


def test_words_of_one_secret_share_nothing(shipped, files):
    """Even at the places that only the key tells. Without a key they are the same."""
    cover, secret = pcm(32000, seed=32), pcm(32000, seed=33)

    def words(key):
        hidden, *_ = files.hide(shipped, cover, secret, snr=50, key=key)
        samples = (hidden * 32768).int()
        header, cipher = header_of(samples, key, shipped.fingerprint(), DENSE)
        return read_words(samples[parts.parts_of(header)[0].samples], cipher, 0)[0][:500]

    assert torch.equal(words(None), words(None))
    equal = words("k") == words("k")  # by chance one in 2 ** 32
    assert not equal.any()


def test_a_key_hides_how_much_is_hidden(shipped, files):
    """Silence and speech change equally many segments, and samples. Without a key they do not."""
    cover = pcm(64000, seed=37)

    def changes(secret, **options):
        hidden, *_ = files.hide(shipped, cover, secret, **options)
        differ = (hidden != cover)[DENSE.header_samples:-DENSE.seal_samples]
        return sum(x.any().item() for x in differ.split(SEGMENT)), differ.sum().item()

    speech, silence = pcm(64000, seed=38), torch.zeros(20)
    segments, samples = zip(*(changes(x, key="k") for x in (speech, silence)))
    assert segments[0] == segments[1] == 121, "all of them"
    # Each sample changes or not, by chance: the difference has a deviation of at most 180.
    assert abs(samples[0] - samples[1]) < 6 * 180
    assert changes(silence)[0] < changes(speech)[0] / 4


@pytest.mark.parametrize("channels, key", [(1, None), (2, "k")])
def test_digital_silence_is_left_alone(shipped, files, channels, key):
    """At the beginning and the end, where header and seal would lie, and in between."""
    cover, secret = (pcm(channels, n, seed=39).squeeze(0) for n in (64000, 48000))
    silence = slice(0, 9001), slice(30000, 40000), slice(60000, None)
    for place in silence:
        cover[..., place] = 0
    hidden, *_ = files.hide(shipped, cover, secret, key=key)
    for place in (silence[0], slice(30000 + SEGMENT, 40000 - SEGMENT), silence[2]):
        assert not hidden[..., place].any()
    revealed = files.reveal(shipped, hidden, key=key)
    assert revealed.shape == secret.shape
    for place, step in ((3, 1), (3, 2), (63990, 1)):
        damaged = hidden.clone()
        damaged[..., place] += step / 32768
        with pytest.raises(StegoError, match="there is no secret|changed"):
            files.reveal(shipped, damaged, key=key)
    if not key:
        cut = files.reveal(shipped, hidden[..., 5000:62000], force=True)
        assert torch.equal(cut, revealed), "only silence is missing"


@pytest.mark.parametrize("channels, key, first", [(1, "k", 0), (2, None, 1)])
def test_a_header_after_much_silence(shipped, files, channels, key, first):
    """More than is read at once, of digital 0 or 1."""
    cover = functional.pad(pcm(channels, 150000, seed=3), (140001, 0), value=first / 32768)
    secret = pcm(channels, 20000, seed=4).squeeze(0)
    hidden, _, told = files.hide(shipped, cover.squeeze(0), secret, key=key)
    assert torch.equal(hidden.view(channels, -1)[:, :140000].float(), cover[:, :140000])
    revealed = files.reveal(shipped, hidden, key=key)
    assert snr(secret, revealed) == pytest.approx(told, abs=0.01)


def test_silence_that_must_be_used(shipped, files):
    """Where more than half of a cover is silent, it is not left alone."""
    cover = pcm(16000, seed=15)
    cover[:8500] = 0
    hidden, *_ = files.hide(shipped, cover, pcm(12000, seed=16))
    assert hidden[:8500].any() and len(files.reveal(shipped, hidden)) == 12000


# ---------------------------------------------------------------- training and model files

def test_training_counts_the_bits_that_coding_takes(shipped):
    secrets = 32768 * pcm(3, 100 * 256, seed=17)
    for step, shaping in ((100, 0), (250, 150)):
        with torch.no_grad():
            settings = torch.full((3,), step), torch.full((3,), shaping)
            estimate = shipped.quantiser(secrets, *settings).mean().item()
        coefficients = shipped.analyse(secrets, 256)
        classes, integers, _ = shipped.quantiser.quantise(coefficients, step, shaping)
        cost = shipped.coder.cost(classes, integers).mean().item()
        assert estimate == pytest.approx(cost, rel=0.05)


def test_each_module_loads_its_own_models():
    with pytest.raises(ValueError, match="lattice.pt is not a network .* lattice.load"):
        wavinwav.load(LATTICE)
    with pytest.raises(ValueError, match="wavinwav.pt is not a lattice .* wavinwav.load"):
        lattice.load(INN)
