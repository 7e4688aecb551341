"""The lattice preset: what comes out is what went in, on any machine, with every weight randomised."""

import math
import os

import pytest
import soundfile
import torch

import wavinwav
from test_invertibility import snr, speechlike
from wavinwav import Config, Lattice, LatticeCoupling


def randomised(seed=0):
    """A model with random weights, and tables that are counted under them, as after training."""
    torch.manual_seed(seed)
    model = Lattice(Config.lattice()).eval()
    with torch.no_grad():
        for name, p in model.scales.named_parameters():
            p.copy_(0.7 / len(p[0]) * torch.rand_like(p) if "direct" in name else 0.2 * torch.randn_like(p))
    secrets = 32768 * speechlike(4, 64 * 256, seed=seed).float()
    model.measure([(secrets, 100, 0), (secrets, 300, 100)])
    return model


@pytest.fixture(scope="module")
def model():
    return randomised()


@pytest.fixture(scope="module")
def shipped():
    return wavinwav.load(os.path.join(os.path.dirname(os.path.abspath(__file__)), "wavinwav.pt"))


def pcm(*shape, seed=0, bits=16):
    """Speech-like noise on the grid of 16 bits."""
    return ((speechlike(*shape, seed=seed) * (1 << bits - 1)).round() / (1 << bits - 1)).float()


@pytest.mark.parametrize("width", [2, 3, 7, 16, 100, 1001, 4096])
def test_coupling_is_exact_and_costs_what_it_should(width):
    generator = torch.Generator().manual_seed(width)
    cover = torch.randint(-32768, 32768, (50000,), generator=generator)
    cover[:100], cover[100:200] = -32768, 32767  # full scale
    secret = torch.randint(width, (50000,), generator=generator)
    coupling = LatticeCoupling()
    stego, r = coupling(cover, secret, width)
    assert -32768 <= stego.min() and stego.max() <= 32767
    cover_, secret_ = coupling.inverse(stego, r, width)
    assert torch.equal(cover, cover_) and torch.equal(secret, secret_)
    inside = r[cover.abs() < 32768 - width].double()
    assert inside.abs().max() <= width // 2
    assert inside.square().mean().item() == pytest.approx((width ** 2 - 1 + 3 * (width % 2 == 0)) / 12, rel=0.03)


@pytest.mark.parametrize("width", [wavinwav.WIDTHS[code] for code in (0, 1, 5, 17, 30, 63)])
def test_words_and_digits(width):
    room, samples = wavinwav._room(width), wavinwav.SEGMENT - wavinwav.CODES
    assert room > 0.97 * samples * math.log2(width) / 32 - 1, "little is wasted"
    words = torch.randint(1 << 32, (9, room))
    digits = wavinwav._digits(words, width)
    assert 0 <= digits.min() and digits.max() < width and digits.shape[1] <= samples
    symbols = torch.cat([digits, torch.randint(width, (9, samples - digits.shape[1]))], 1)
    assert torch.equal(wavinwav._words(symbols, width), words)


def test_blocks_find_their_place():
    ends = wavinwav._ends(torch.randint(20, (300,))).tolist()
    mode = dict(step=-5, shaping=256, lossless=False, rotated=True)
    streams = [torch.randint(1 << 32, (count,)) for count in (64, 1000, 333, 65)]
    cipher, part = wavinwav.Cipher(), wavinwav.Part(2, slice(0), slice(0), slice(0))
    words = wavinwav._place(mode, streams, ends, cipher, part)
    found, back = wavinwav._find(words, ends, cipher, part, 4, 64)
    assert found == mode and all(torch.equal(a, b) for a, b in zip(streams, back, strict=True))
    words[1 + 3 * 4 + 100] ^= 1
    assert sum(stream is None for stream in wavinwav._find(words, ends, cipher, part, 4, 64)[1]) == 1
    words[0] ^= 1
    assert wavinwav._find(words, ends, cipher, part, 4, 64)[1] == [None] * 4, "the mode is under every checksum"
    assert wavinwav._find(words[:5], ends, cipher, part, 4, 64)[1] == [None] * 4


@pytest.mark.parametrize("error", [0.3, 1.5, 20.0, 1e4])
@pytest.mark.parametrize("masking", [0.0, 0.25, 1.0])
def test_widths_have_the_error_that_was_asked_for(error, masking):
    torch.manual_seed(0)
    powers = torch.rand(2000, dtype=torch.float64) * 10 ** (6 * torch.rand(2000, dtype=torch.float64))
    codes = wavinwav.choose_widths(powers, error, masking, 16)
    widths = torch.tensor(wavinwav.WIDTHS).double()[codes]
    found = ((widths ** 2 + torch.where(widths % 2 == 0, 2, -1)) / 12).mean().item()
    assert error / 1.02 < found <= error or error < 0.5 and (codes == 0).all(), "one bit a sample is the least"
    if masking == 0 and error == 1.5:
        assert (widths == 4).all()


@pytest.mark.parametrize("blocks", [1, 5])
def test_entropy_coder(model, blocks):
    """Integers of all sizes, many of them far beyond what their class expects."""
    torch.manual_seed(blocks)
    shape = 200, 32, blocks
    classes = torch.randint(wavinwav.CLASSES, shape)
    integers = (torch.randn(shape) * 2 ** (classes / 4 - 5)).round().int()
    surprises = torch.rand(shape) < 0.01
    integers[surprises] = torch.randint(-(1 << 30) + 1, 1 << 30, shape, dtype=torch.int32)[surprises]
    streams = model.encode(classes.to(torch.uint8), integers)
    assert all(0 <= stream.min() and stream.max() < 1 << 32 for stream in streams)
    decode = model.decoder(streams, 32)
    found = torch.cat([decode(part.flatten(0, 1)) for part in classes.split(3)]).view(shape)
    assert torch.equal(found.int(), integers)
    ends = blocks * 32 * 64
    bits = 32 * sum(map(len, streams))
    assert model.cost(classes, integers).sum().item() < bits < 1.005 * model.cost(classes, integers).sum().item() + ends


def test_scales_are_exact_integers():
    """The same in float64, where nothing rounds, and with operands rounded to bfloat16, as some hardware does."""
    model = randomised(3)
    net = model.scales[2]
    x = torch.randint(256, (29, 128 * 50)).float()
    integers = net.integers(torch.arange(1, 256, 2), torch.full((50,), 40))
    result = net(integers, x)
    assert torch.equal(256 * result, (256 * result).round()) and result.unique().numel() > 1000
    assert torch.equal(result.double(), net(tuple(w.double() for w in integers), x.double()))
    weights, bias, out = integers
    narrow = weights.bfloat16().float(), bias, out.bfloat16().float()
    assert torch.equal(net(narrow, x.bfloat16().float()), result)


def test_same_secret_whatever_the_threads_and_the_matmul_precision(model, monkeypatch):
    """In what is hidden under one setting and revealed under another. (Stegos may differ: how finely
    a secret is quantised is found by arithmetic that rounds.)"""
    cover, secret = pcm(7 * 16000, seed=1), pcm(7 * 16000, seed=2)  # two blocks
    stego, _ = model.hide(cover, secret, snr=45)
    _, revealed = model.reveal(stego)
    others = []
    threads = torch.get_num_threads()
    try:
        for count, few, precision in ((1, 2, "medium"), (2, 1, "high")):
            torch.set_num_threads(count)
            torch.set_float32_matmul_precision(precision)
            monkeypatch.setattr(wavinwav, "FEW", few)
            assert torch.equal(model.reveal(stego)[1], revealed)
            other, _ = model.hide(cover, secret, snr=45)
            others.append((other, model.reveal(other)[1]))
    finally:
        torch.set_num_threads(threads)
        torch.set_float32_matmul_precision("highest")
    assert all(torch.equal(model.reveal(other)[1], there) for other, there in others)


@pytest.mark.parametrize("cover_length, length, rate", [
    (16000, 16000, 16000), (5000, 1, 16000), (4000, 3999, 8000), (40001, 30011, 44100), (30000, 100, 96000)])
def test_reveal_is_exact(model, cover_length, length, rate):
    cover, secret = pcm(cover_length, seed=3), pcm(length, seed=4)
    stego, r = model.hide(cover, secret, snr=40, sample_rate=rate)
    assert stego.shape == cover.shape and torch.equal((stego * 32768).round() / 32768, stego)
    cover_, revealed = model.reveal(stego)
    assert torch.equal(cover_, stego) and revealed.shape == secret.shape
    assert (secret - r[cover_length:] - revealed).abs().max() < 1e-6, "hide knows what reveal makes of it"
    cover_, secret_ = model.reveal(stego, r)
    assert torch.equal(cover_, cover) and (secret_ - secret).abs().max() < 1e-6


def test_the_snr_that_was_asked_for(model):
    cover, secret = pcm(4 * 16000, seed=5), pcm(4 * 16000, seed=6)
    found = []
    for wanted in (45, 60):
        stego, _ = model.hide(cover, secret, snr=wanted, shaping=0)
        assert abs(snr(cover, stego) - wanted) < 0.4
        found.append(snr(secret, model.reveal(stego)[1]))
    assert 0.8 < (found[0] - found[1]) / 15 < 1.5, (found, "what the stego gains, the secret loses")


def test_shaping_moves_noise_to_loud_places(model):
    secret = pcm(4 * 16000, seed=8)
    secret[:32000] *= 0.01
    noise = []
    for shaping in (0, 0.8):
        error = model.hide(pcm(4 * 16000, seed=7), secret, snr=55, shaping=shaping)[1][4 * 16000:]
        noise.append(error[2000:30000].square().mean().sqrt().item())
    assert noise[1] < 0.7 * noise[0]


def test_masking_moves_noise_to_where_the_cover_is_loud(model):
    cover, secret = pcm(4 * 16000, seed=7), pcm(4 * 16000, seed=8)
    cover[:32000] = (cover[:32000] * 0.01 * 32768).round() / 32768
    noise = []
    for masking in (0.0, 0.5):
        r = model.hide(cover, secret, snr=40, masking=masking)[1][:len(cover)]
        noise.append((r[2000:30000].square().mean() / r[34000:].square().mean()).sqrt().item())
    assert 0.8 < noise[0] < 1.2 and noise[1] < 0.3


def test_lossless_where_there_is_room(model):
    cover, secret = pcm(4 * 16000, seed=9), pcm(4 * 16000, seed=10)
    quiet = (secret / 50 * 32768).round() / 32768
    stego, r = model.hide(cover, quiet, snr=30)
    assert torch.equal(model.reveal(stego)[1], quiet) and not r[len(cover):].any()
    stego, _ = model.hide(cover, secret, snr=30, depth=24)
    assert torch.equal(model.reveal(stego, depth=24)[1], secret), "24 bits have room for 16"


@pytest.mark.parametrize("cover_channels, channels", [(2, 1), (2, 2), (1, 2)])
def test_two_channels(model, cover_channels, channels):
    cover, secret = pcm(cover_channels, 20000, seed=25).squeeze(0), pcm(channels, 15000, seed=26).squeeze(0)
    if channels == 2:
        secret[1] = (0.9 * secret[0] * 32768).round() / 32768  # almost one channel
    stego, r = model.hide(cover, secret, snr=45)
    assert stego.shape == cover.shape and r.shape == (cover.numel() + secret.numel(),)
    assert abs(snr(cover.flatten(), stego.flatten()) - 45) < 0.5
    cover_, secret_ = model.reveal(stego, r)
    assert torch.equal(cover_, cover) and secret_.shape == secret.shape and (secret_ - secret).abs().max() < 1e-6
    if cover_channels == channels == 2:
        other = pcm(2, 15000, seed=27)
        apart, together = (snr(x.flatten(), model.reveal(hidden)[1].flatten())
                           for x, hidden in ((other, model.hide(cover, other, snr=45)[0]), (secret, stego)))
        assert together > apart + 5, "what channels share costs bits once"


def test_parts_stand_alone(model, monkeypatch):
    """A recording of several parts, and what a part needs to know of the others: nothing."""
    monkeypatch.setattr(wavinwav, "PART", 40)
    cover, secret = pcm(100_000, seed=23), pcm(90_000, seed=24)
    stego, r = model.hide(cover, secret, snr=45)
    revealed = model.reveal(stego)[1]
    assert (secret - r[len(cover):] - revealed).abs().max() < 1e-6 and snr(secret, revealed) > 20
    samples = (stego * 32768).int()
    header, cipher = wavinwav.Header.read(samples, None, model.fingerprint())
    parts = header.parts()
    assert len(parts) == 6 and parts[-1].secret.stop == len(secret)
    assert [part.samples.stop for part in parts[:-1]] == [part.samples.start for part in parts[1:]]
    alone, _, lost = model.reveal_part(header, cipher, parts[3], samples[parts[3].samples])
    assert lost == 0 and torch.equal((alone[:, 0] / 32768).float(), revealed[parts[3].secret])
    stego, _ = model.hide(cover, secret[:3], snr=45)
    assert model.reveal(stego)[1].shape == (3,), "fewer samples than parts"


def test_words_that_end_too_soon_are_damage(model, monkeypatch):
    """A block of half its length, with all checksums right."""
    cover, secret = pcm(32000, seed=23), pcm(32000, seed=24)
    encode = wavinwav.Lattice.encode
    monkeypatch.setattr(wavinwav.Lattice, "encode", lambda *x: [words[:len(words) // 2] for words in encode(*x)])
    stego, _ = model.hide(cover, secret, snr=40)
    with pytest.raises(wavinwav.Damaged, match="end before"):
        model.reveal(stego)


def test_header_of_an_affine_model_with_the_right_fingerprint(model, monkeypatch):
    cover, secret = pcm(32000, seed=23), pcm(32000, seed=24)
    stego, _ = model.hide(cover, secret)
    samples = (stego * 32768).int()
    wavinwav.Header(len(samples), 32000, model.fingerprint(), 0).write(samples, wavinwav.Cipher())
    with pytest.raises(wavinwav.Damaged, match="affine"):
        model.reveal(samples / 32768)


def changed(stego, place):
    stego = stego.clone()
    stego[place] += (1 if stego[place] < 0 else -1) / 32768
    return stego


@pytest.mark.parametrize("place", [0, 5, 100])  # in what tells the width of a segment's cells, and in a cell
def test_damage_stays_in_its_block(model, place):
    cover, secret = pcm(12 * 16000, seed=11), pcm(12 * 16000, seed=12)
    stego, _ = model.hide(cover, secret, snr=45)
    whole = model.reveal(stego)[1]
    damaged = changed(stego, wavinwav.HEADER_SAMPLES + 160 * wavinwav.SEGMENT + place)
    with pytest.raises(wavinwav.Damaged, match="changed after it was made"):
        model.reveal(damaged)
    with pytest.warns(UserWarning, match="1 of 3 blocks"):
        found = model.reveal(damaged, force=True)[1]
    frames, blocks = model.shape_of(len(secret), 256)
    unlike = [not torch.equal(a, b) for a, b in zip(whole.split(frames * 256), found.split(frames * 256))]
    assert blocks == len(unlike) == 3 and sum(unlike) == 1
    assert not found.split(frames * 256)[unlike.index(True)].any()


def test_what_was_cut_off_is_silent(model):
    cover, secret = pcm(12 * 16000, seed=21), pcm(12 * 16000, seed=22)
    stego, _ = model.hide(cover, secret, snr=45)
    whole = model.reveal(stego)[1]
    with pytest.raises(wavinwav.Damaged, match="it was cut: 184000 of 192000 samples"):
        model.reveal(stego[:-8000])
    with pytest.raises(wavinwav.Damaged, match="changed"):
        model.reveal(torch.cat([stego, stego[:1]]))
    with pytest.warns(UserWarning, match="1 of 3 blocks"):
        cut = model.reveal(stego[:-8000], force=True)[1]
    assert torch.equal(cut[:8 * 16000], whole[:8 * 16000]) and not cut[9 * 16000:].any()
    for length in (wavinwav.HEADER_SAMPLES, wavinwav.HEADER_SAMPLES + 1, 1000, 2000, 5000):
        with pytest.raises(wavinwav.Damaged, match="cut off"):
            model.reveal(stego[:length], force=True)


def test_every_change_is_noticed(model):
    stego, _ = model.hide(pcm(16000, seed=13), pcm(16000, seed=14))
    generator = torch.Generator().manual_seed(0)
    inner = torch.randint(wavinwav.HEADER_SAMPLES, 16000, (20,), generator=generator).tolist()
    for place in [*inner, wavinwav.HEADER_SAMPLES, *range(16000 - wavinwav.SEAL_SAMPLES, 16000, 9)]:
        with pytest.raises(wavinwav.Damaged):
            model.reveal(changed(stego, place))
    for place in range(0, wavinwav.HEADER_SAMPLES, 7):
        with pytest.raises((wavinwav.NoSecret, wavinwav.Damaged)):  # bits above the header's are under the seal
            model.reveal(changed(stego, place))


def test_what_is_no_secret_is_refused(model):
    cover, secret = pcm(16000, seed=13), pcm(16000, seed=14)
    stego, _ = model.hide(cover, secret)
    for samples in (cover, torch.zeros(16000), stego[1:], stego[:100]):
        with pytest.raises(wavinwav.NoSecret, match="no secret"):
            model.reveal(samples)
    with pytest.raises(wavinwav.OtherModel, match="another model"):
        randomised(1).reveal(stego)
    with pytest.raises(ValueError, match="too short"):
        model.hide(cover[:400], secret[:400])
    with pytest.raises(ValueError, match="longer"):
        model.hide(cover[:4000], secret)
    with pytest.raises(ValueError, match=r"\[T\]"):
        model.hide(torch.zeros(3, 16000), torch.zeros(3, 16000))


# ---------------------------------------------------------------- keys

def likeness(a, b):
    """The inner product of two vectors over what it would be, root mean square, if the signs of one
    were coin tosses. Then it passes 6 in 2 exp(-6 ** 2 / 2), 3e-8, of all cases, whatever the sizes
    are (Hoeffding's inequality, given the sizes): a correlation has no such bound where a few large
    values decide it, as in what a wrong key decodes."""
    products = (a.double() - a.double().mean()) * (b.double() - b.double().mean())
    return abs(products.sum() / products.norm()).item()


def test_a_key_is_needed(model):
    cover, secret = pcm(32000, seed=30), pcm(32000, seed=31)
    plain, _ = model.hide(cover, secret, snr=45)
    stego, _ = model.hide(cover, secret, snr=45, key="open sesame")
    revealed = model.reveal(stego, key=b"open sesame")[1]
    assert abs(snr(secret, revealed) - snr(secret, model.reveal(plain)[1])) < 0.1, "a key costs nothing"
    # In cells that are filled at random the noise is a mean of 32,000 squares, each of a relative
    # standard deviation of 0.9: 0.022 dB in all, so that this is 9 of them.
    assert abs(snr(cover, stego) - snr(cover, plain)) < 0.2
    for key in (None, "", "open sesame ", "Open sesame"):
        with pytest.raises(wavinwav.NoSecret, match="key is another"):
            model.reveal(stego, key=key)
    with pytest.raises(wavinwav.NoSecret):
        model.reveal(plain, key="open sesame")
    assert torch.equal(model.hide(cover, secret, snr=45)[0], plain), "without a key, the same again"


def test_without_the_key_there_is_nothing(shipped, monkeypatch, fixed_nonce):
    """With all checks taken away, and with more told than anybody would know, another key decodes noise."""
    length = 188 * 256  # a whole number of hops, so that the signs below are those that were coded
    cover, secret = pcm(length, seed=32), pcm(length, seed=33)
    try:
        from pystoi import stoi
    except ImportError:
        with_stoi = False
    else:
        with_stoi = True
        speech, rate = soundfile.read(os.path.join(os.path.dirname(os.path.abspath(__file__)), "examples", "secret.wav"))
        secret = torch.from_numpy(speech[:length]).float()
    stego, _ = shipped.hide(cover, secret, snr=50, key="right")
    samples, find, told = (stego * 32768).int(), wavinwav._find, {}
    header, cipher = wavinwav.Header.read(samples, "right", shipped.fingerprint())

    def unchecked(words, ends, cipher, part, blocks, least):
        if not told:
            table = words[:4] ^ cipher.words(b"words 0 0\0", 4)
            told.update(mode=find(words, ends, cipher, part, blocks, least)[0], count=int(table[2]),
                        start=ends[table[1] >> 12] + int(table[1] & 0xFFF))
        stream = words[told["start"]:][:told["count"]]
        return told["mode"], [torch.cat([stream ^ cipher.words(b"words 0 1\0", len(stream)), torch.randint(1 << 32, (100_000,))])]

    monkeypatch.setattr(wavinwav, "_find", unchecked)
    part, = header.parts()
    others = [wavinwav.Cipher(), *(wavinwav.Cipher(f"wrong {i}", cipher.nonce) for i in range(11))]
    decoded = [shipped.reveal_part(header, x, part, samples[part.samples])[0][:, 0] for x in (cipher, *others)]
    # The sign of a coefficient is a bit of its own in the stream, so under another key a coin toss.
    # Of 12 keys one passes 6 in 4e-7 of all runs; the right one comes to 15 and more.
    expected, right, *wrong = (wavinwav.lapped(x.double()[None], 256).flatten() for x in (secret, *decoded))
    assert likeness(right, expected) > 12
    for found in wrong:
        assert found.abs().max() > 0 and likeness(found, expected) < 6
    if with_stoi:
        # Over nonces this mean has a standard deviation of 0.02 around 0.09: 0.22 is 6 of them.
        scores = [stoi(secret.numpy(), found.float().numpy(), 16000) for found in decoded[1:]]
        assert sum(scores) / len(scores) < 0.22, "nobody understands it: white noise comes to 0.34"


def test_two_files_of_one_key_share_nothing(shipped):
    secret = pcm(48000, seed=34)
    covers = [pcm(48000, seed=seed) for seed in (35, 35, 36)]
    residuals = [shipped.hide(cover, secret, snr=45, key="k")[1][:len(cover)] for cover in covers]
    # Digits that another key stream fills move a sample up or down alike. One of the three passes 6
    # in 1e-7 of all runs; a residual beside itself comes to 150.
    assert likeness(residuals[0], residuals[1]) < 6 and likeness(residuals[0], residuals[2]) < 6
    assert likeness(residuals[0], secret) < 6


def test_header_is_noise_without_the_key(model):
    header = model.header(4000, 2000)
    packed = torch.tensor([list(header.pack(wavinwav.Cipher("k"))) for _ in range(30)])
    bits = (packed[..., None] >> torch.arange(8) & 1).flatten(1).double().mean(0)
    # Of 344 fair bits in 30 headers, one is always the same in 344 * 2 / 2 ** 30, 6e-7, of all runs;
    # the standard deviation of the mean is 0.005.
    assert 0.46 < bits.mean() < 0.54 and 0 < bits.min() and bits.max() < 1, "no bit is always the same"


@pytest.mark.parametrize("cover, secret", [
    (torch.zeros(16000), None), (None, torch.zeros(16000)), (torch.zeros(16000), torch.zeros(5)),
    (torch.full((16000,), -1.0), torch.full((16000,), 0.999)), (None, torch.full((9000,), 0.1))])
def test_silence_and_constants(shipped, cover, secret):
    cover = pcm(16000, seed=15) if cover is None else cover
    secret = pcm(16000, seed=16) if secret is None else secret
    stego, r = shipped.hide(cover, secret)
    assert stego.min() >= -1 and stego.max() < 1
    revealed = shipped.reveal(stego)[1]
    assert (secret - r[16000:] - revealed).abs().max() < 1e-6 and (secret - revealed).abs().max() < 0.5
    if not secret.any():
        assert not revealed.any()


def test_training_counts_the_bits_that_coding_takes(shipped):
    secrets = 32768 * pcm(3, 100 * 256, seed=17)
    for step, shaping in ((100, 0), (250, 150)):
        with torch.no_grad():
            estimate = shipped(secrets, torch.full((3,), step), torch.full((3,), shaping)).mean().item()
        classes, integers, _ = shipped.quantise(wavinwav.lapped(secrets, 256).permute(2, 1, 0).contiguous(), step, shaping)
        assert estimate == pytest.approx(shipped.cost(classes, integers).mean().item(), rel=0.05)


def test_file_round_trip(model, tmp_path):
    model.save(tmp_path / "model.pt")
    cover, secret = pcm(16000, seed=18), pcm(16000, seed=19)
    stego, _ = model.hide(cover, secret)
    assert torch.equal(wavinwav.load(tmp_path / "model.pt").reveal(stego)[1], model.reveal(stego)[1])
