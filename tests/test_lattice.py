"""The lattice: what comes out is what went in, on any machine, with every weight randomised."""

import pytest
import soundfile
import torch

import wavinwav
from files import checkpoint
from files.container import DENSE, Cipher, Damaged, Header, NoSecret, OtherModel, sealed
from helpers import INN, LATTICE, SECRET, likeness, pcm, snr, speechlike
from lattice import cells, coder, lattice, quantiser
from lattice.cells import SEGMENT, parts_of, read_words, telling
from lattice.lattice import Lattice, LatticeConfig


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


def test_same_secret_whatever_the_threads_and_the_matmul_precision(model, monkeypatch):
    """In what is hidden under one setting and revealed under another. (Stegos may differ: how
    finely a secret is quantised is found by arithmetic that rounds.)"""
    cover, secret = pcm(7 * 16000, seed=1), pcm(7 * 16000, seed=2)  # two blocks
    stego, _ = model.hide(cover, secret, snr=45)
    _, revealed = model.reveal(stego)
    others = []
    threads = torch.get_num_threads()
    try:
        for count, batch, precision in ((1, 2, "medium"), (2, 1, "high")):
            torch.set_num_threads(count)
            torch.set_float32_matmul_precision(precision)
            monkeypatch.setattr(quantiser, "BATCH", batch)
            monkeypatch.setattr(lattice, "BATCH", batch)
            assert torch.equal(model.reveal(stego)[1], revealed)
            other, _ = model.hide(cover, secret, snr=45)
            others.append((other, model.reveal(other)[1]))
    finally:
        torch.set_num_threads(threads)
        torch.set_float32_matmul_precision("highest")
    assert all(torch.equal(model.reveal(other)[1], there) for other, there in others)


@pytest.mark.parametrize("cover_length, length, rate", [
    (16000, 16000, 16000), (5000, 1, 16000), (4000, 3999, 8000), (40001, 30011, 44100),
    (30000, 100, 96000)])
def test_reveal_is_exact(model, cover_length, length, rate):
    cover, secret = pcm(cover_length, seed=3), pcm(length, seed=4)
    stego, r = model.hide(cover, secret, snr=40, sample_rate=rate)
    assert stego.shape == cover.shape and torch.equal((stego * 32768).round() / 32768, stego)
    cover_, revealed = model.reveal(stego)
    assert torch.equal(cover_, stego) and revealed.shape == secret.shape
    known = secret - r[cover_length:]
    assert (known - revealed).abs().max() < 1e-6, "hide knows what reveal makes of it"
    cover_, secret_ = model.reveal(stego, r)
    assert torch.equal(cover_, cover) and (secret_ - secret).abs().max() < 1e-6


def test_the_snr_that_was_asked_for(model):
    cover, secret = pcm(4 * 16000, seed=5), pcm(4 * 16000, seed=6)
    secret_snrs = []
    for wanted in (45, 60):
        stego, _ = model.hide(cover, secret, snr=wanted, shaping=0)
        assert abs(snr(cover, stego) - wanted) < 0.4
        secret_snrs.append(snr(secret, model.reveal(stego)[1]))
    lost = (secret_snrs[0] - secret_snrs[1]) / 15
    assert 0.8 < lost < 1.5, "what the stego gains, the secret loses"


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
    cover = pcm(cover_channels, 20000, seed=25).squeeze(0)
    secret = pcm(channels, 15000, seed=26).squeeze(0)
    if channels == 2:
        secret[1] = (0.9 * secret[0] * 32768).round() / 32768  # almost one channel
    stego, r = model.hide(cover, secret, snr=45)
    assert stego.shape == cover.shape and r.shape == (cover.numel() + secret.numel(),)
    assert abs(snr(cover.flatten(), stego.flatten()) - 45) < 0.5
    cover_, secret_ = model.reveal(stego, r)
    assert torch.equal(cover_, cover) and secret_.shape == secret.shape
    assert (secret_ - secret).abs().max() < 1e-6
    if cover_channels == channels == 2:
        other = pcm(2, 15000, seed=27)
        pairs = (other, model.hide(cover, other, snr=45)[0]), (secret, stego)
        apart, together = (snr(x.flatten(), model.reveal(y)[1].flatten()) for x, y in pairs)
        assert together > apart + 5, "what channels share costs bits once"


def test_parts_stand_alone(model, monkeypatch):
    """A recording of several parts, and what a part needs to know of the others: nothing."""
    monkeypatch.setattr(cells, "PART_SEGMENTS", 40)
    cover, secret = pcm(100_000, seed=23), pcm(90_000, seed=24)
    stego, r = model.hide(cover, secret, snr=45)
    revealed = model.reveal(stego)[1]
    assert (secret - r[len(cover):] - revealed).abs().max() < 1e-6 and snr(secret, revealed) > 20
    samples = (stego * 32768).int()
    header, cipher = Header.read(samples, None, model.fingerprint(), DENSE)
    parts = parts_of(header)
    assert len(parts) == 6 and parts[-1].secret.stop == len(secret)
    alone, _, lost = model.reveal_part(header, cipher, parts[3], samples[parts[3].samples])
    assert lost == 0 and torch.equal((alone[:, 0] / 32768).float(), revealed[parts[3].secret])
    stego, _ = model.hide(cover, secret[:3], snr=45)
    assert model.reveal(stego)[1].shape == (3,), "fewer samples than parts"


def test_words_that_end_too_soon_are_damage(model, monkeypatch):
    """A block of half its length, with all checksums right."""
    cover, secret = pcm(32000, seed=23), pcm(32000, seed=24)
    encode = coder.Coder.encode
    monkeypatch.setattr(coder.Coder, "encode",
                        lambda *x: [words[:len(words) // 2] for words in encode(*x)])
    stego, _ = model.hide(cover, secret, snr=40)
    with pytest.raises(Damaged, match="end before"):
        model.reveal(stego)


@pytest.mark.parametrize("bands", [0, 100, 65408])
def test_header_with_bands_that_no_lattice_has(model, bands):
    samples = (pcm(32000, seed=23) * 32768).int()
    header = Header(len(samples), 32000, model.fingerprint(), bands)
    stego, = sealed([samples], header, Cipher())
    with pytest.raises(Damaged, match="not of a lattice"):
        model.reveal(stego / 32768)


def changed(stego, place):
    stego = stego.clone()
    stego[place] += (1 if stego[place] < 0 else -1) / 32768
    return stego


@pytest.mark.parametrize("place", [0, 5, 100])  # in what tells a segment's width, and in a cell
def test_damage_stays_in_its_block(model, place):
    cover, secret = pcm(12 * 16000, seed=11), pcm(12 * 16000, seed=12)
    stego, _ = model.hide(cover, secret, snr=45)
    whole = model.reveal(stego)[1]
    first = telling(375, Cipher(), 0)[1][160].item()
    place = DENSE.header_samples + 160 * SEGMENT + (first + place) % SEGMENT
    damaged = changed(stego, place)
    with pytest.raises(Damaged, match="changed after it was made"):
        model.reveal(damaged)
    with pytest.warns(UserWarning, match="1 of 3 blocks"):
        forced = model.reveal(damaged, force=True)[1]
    frames, blocks = model.shape_of(len(secret), 256)
    size = frames * 256
    unlike = [not torch.equal(a, b) for a, b in zip(whole.split(size), forced.split(size))]
    assert blocks == len(unlike) == 3 and sum(unlike) == 1
    assert not forced.split(size)[unlike.index(True)].any()


def test_what_was_cut_off_is_silent(model):
    cover, secret = pcm(12 * 16000, seed=21), pcm(12 * 16000, seed=22)
    stego, _ = model.hide(cover, secret, snr=45)
    whole = model.reveal(stego)[1]
    with pytest.raises(Damaged, match="it was cut: 184000 of 192000 samples"):
        model.reveal(stego[:-8000])
    with pytest.raises(Damaged, match="changed"):
        model.reveal(torch.cat([stego, stego[:1]]))
    with pytest.warns(UserWarning, match="1 of 3 blocks"):
        cut = model.reveal(stego[:-8000], force=True)[1]
    assert torch.equal(cut[:8 * 16000], whole[:8 * 16000]) and not cut[9 * 16000:].any()
    for length in (DENSE.header_samples, DENSE.header_samples + 1, 2000, 5000):
        with pytest.raises(Damaged, match="cut off"):
            model.reveal(stego[:length], force=True)


def test_every_change_is_noticed(model):
    stego, _ = model.hide(pcm(16000, seed=13), pcm(16000, seed=14))
    generator = torch.Generator().manual_seed(0)
    inner = torch.randint(DENSE.header_samples, 16000, (20,), generator=generator).tolist()
    for place in [*inner, DENSE.header_samples, *range(16000 - DENSE.seal_samples, 16000, 9)]:
        with pytest.raises(Damaged):
            model.reveal(changed(stego, place))
    for place in range(0, DENSE.header_samples, 7):
        with pytest.raises((NoSecret, Damaged)):  # bits above the header's are under the seal
            model.reveal(changed(stego, place))


def test_what_is_no_secret_is_refused(model):
    cover, secret = pcm(16000, seed=13), pcm(16000, seed=14)
    stego, _ = model.hide(cover, secret)
    for samples in (cover, torch.zeros(16000), stego[1:], stego[:100]):
        with pytest.raises(NoSecret, match="no secret"):
            model.reveal(samples)
    with pytest.raises(OtherModel, match="another model"):
        randomised(1).reveal(stego)
    with pytest.raises(ValueError, match="too short"):
        model.hide(cover[:400], secret[:400])
    with pytest.raises(ValueError, match="longer"):
        model.hide(cover[:4000], secret)
    with pytest.raises(ValueError, match=r"\[T\]"):
        model.hide(torch.zeros(3, 16000), torch.zeros(3, 16000))


# ---------------------------------------------------------------- keys

def test_a_key_is_needed(model):
    cover, secret = pcm(32000, seed=30), pcm(32000, seed=31)
    plain, _ = model.hide(cover, secret, snr=45)
    stego, _ = model.hide(cover, secret, snr=45, key="open sesame")
    revealed = model.reveal(stego, key=b"open sesame")[1]
    cost = snr(secret, model.reveal(plain)[1]) - snr(secret, revealed)
    assert abs(cost) < 0.1, "a key costs nothing"
    # In cells that are filled at random the noise is a mean of 32,000 squares, each of a relative
    # standard deviation of 0.9: 0.022 dB in all, so that this is 9 of them.
    assert abs(snr(cover, stego) - snr(cover, plain)) < 0.2
    for key in (None, "open sesame ", "Open sesame"):
        with pytest.raises(NoSecret, match="key is another"):
            model.reveal(stego, key=key)
    with pytest.raises(NoSecret):
        model.reveal(plain, key="open sesame")
    assert torch.equal(model.hide(cover, secret, snr=45)[0], plain), "without a key, the same again"


@pytest.mark.parametrize("key", ["", b""], ids=repr)
def test_an_empty_key_is_an_error(model, key):
    cover, secret = pcm(8000, seed=30), pcm(8000, seed=31)
    with pytest.raises(ValueError, match="the key is empty"):
        model.hide(cover, secret, key=key)
    with pytest.raises(ValueError, match="the key is empty"):
        model.reveal(model.hide(cover, secret)[0], key=key)


@pytest.mark.parametrize("more, expected", [
    (dict(snr=float("nan")), "snr must be from 0 to 120, not nan"), (dict(snr=1e9), "snr must"),
    (dict(shaping=float("nan")), "shaping must be from 0 to 1"), (dict(masking=-1), "masking must"),
    (dict(depth=32), "depth must be from 16 to 24, not 32")], ids=str)
def test_numbers_out_of_range(model, more, expected):
    with pytest.raises(ValueError, match=expected):
        model.hide(pcm(8000), pcm(4000), **more)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_samples_that_are_no_numbers(model, value):
    bad = pcm(8000)
    bad[5] = value
    for pair, name in (((bad, pcm(4000)), "cover"), ((pcm(8000), bad), "secret")):
        with pytest.raises(ValueError, match=f"{name} has samples that are NaN or infinite"):
            model.hide(*pair)


def test_without_the_key_there_is_nothing(shipped, fixed_nonce):
    """Who is told where every word lies, and all that the words do not tell, decodes noise with
    another key."""
    length = 188 * 256  # a whole number of hops: then the signs below are those that were coded
    cover, secret = pcm(length, seed=32), pcm(length, seed=33)
    try:
        from pystoi import stoi
    except ImportError:
        stoi = None
    else:
        secret = torch.from_numpy(soundfile.read(SECRET)[0][:length]).float()
    stego, _ = shipped.hide(cover, secret, snr=50, key="right")
    samples = (stego * 32768).int()
    header, cipher = Header.read(samples, "right", shipped.fingerprint(), DENSE)
    part, = parts_of(header)
    words, starts = read_words(samples[part.samples], cipher, 0)
    mode, (stream,) = lattice.split_streams(words, starts, cipher, 0, 1, 64)
    enciphered = stream ^ cipher.words(b"words 0 1\0", len(stream))
    assert any(torch.equal(enciphered, piece) for piece in words.unfold(0, len(stream), 1)[:50])

    def decode(other):
        deciphered = enciphered ^ other.words(b"words 0 1\0", len(stream))
        more = torch.randint(1 << 32, (100_000,))  # noise may take more words than there are
        streams = [torch.cat([deciphered, more])]
        return shipped.decompress(streams, header.length, 1, header.setting, mode)[:, 0]

    others = [Cipher(), *(Cipher(f"wrong {i}", cipher.nonce) for i in range(11))]
    decoded = [decode(other) for other in (cipher, *others)]
    # The sign of a coefficient is a bit of its own in the stream, so under another key a coin toss.
    # Of 12 keys one passes 6 in 4e-7 of all runs; the right one comes to 15 and more.
    expected, right, *wrong = (
        wavinwav.lapped(x.double()[None], 256).flatten() for x in (secret, *decoded))
    assert likeness(right, expected) > 12
    assert all(x.abs().max() > 0 and likeness(x, expected) < 6 for x in wrong)
    if stoi:
        # Over nonces this mean has a standard deviation of 0.02 around 0.09: 0.22 is 6 of them.
        scores = [stoi(secret.numpy(), x.float().numpy(), 16000) for x in decoded[1:]]
        assert sum(scores) / len(scores) < 0.22, "nobody understands it: white noise comes to 0.34"


def test_two_files_of_one_key_share_nothing(shipped):
    secret = pcm(48000, seed=34)
    covers = [pcm(48000, seed=seed) for seed in (35, 35, 36)]
    residuals = [shipped.hide(cover, secret, snr=45, key="k")[1][:len(cover)] for cover in covers]
    # Digits that another key stream fills move a sample up or down alike. One of the three passes 6
    # in 1e-7 of all runs; a residual beside itself comes to 150.
    for other in (*residuals[1:], secret):
        assert likeness(residuals[0], other) < 6


@pytest.mark.parametrize("cover, secret", [
    (torch.zeros(16000), None), (None, torch.zeros(16000)), (torch.zeros(16000), torch.zeros(5)),
    (torch.full((16000,), -1.0), torch.full((16000,), 0.999)), (None, torch.full((9000,), 0.1))])
def test_silence_and_constants(shipped, cover, secret):
    cover = pcm(16000, seed=15) if cover is None else cover
    secret = pcm(16000, seed=16) if secret is None else secret
    stego, r = shipped.hide(cover, secret)
    assert stego.min() >= -1 and stego.max() < 1
    revealed = shipped.reveal(stego)[1]
    assert (secret - r[16000:] - revealed).abs().max() < 1e-6
    assert (secret - revealed).abs().max() < 0.5
    if not secret.any():
        assert not revealed.any()


def test_training_counts_the_bits_that_coding_takes(shipped):
    secrets = 32768 * pcm(3, 100 * 256, seed=17)
    for step, shaping in ((100, 0), (250, 150)):
        with torch.no_grad():
            settings = torch.full((3,), step), torch.full((3,), shaping)
            estimate = shipped(secrets, *settings).mean().item()
        coefficients = shipped.analyse(secrets, 256)
        classes, integers, _ = shipped.quantiser.quantise(coefficients, step, shaping)
        cost = shipped.coder.cost(classes, integers).mean().item()
        assert estimate == pytest.approx(cost, rel=0.05)


def test_file_round_trip(model, tmp_path):
    checkpoint.save(model, tmp_path / "model.pt")
    cover, secret = pcm(16000, seed=18), pcm(16000, seed=19)
    stego, _ = model.hide(cover, secret)
    loaded = lattice.load(tmp_path / "model.pt")
    assert loaded.config == model.config
    assert torch.equal(loaded.reveal(stego)[1], model.reveal(stego)[1])


def test_each_module_loads_its_own_models(tmp_path):
    with pytest.raises(ValueError, match="lattice.pt is not a network .* lattice.load"):
        wavinwav.load(LATTICE)
    message = "wavinwav.pt holds no lattice: load it with wavinwav.load"
    with pytest.raises(ValueError, match=message):
        lattice.load(INN)
    content = checkpoint.read(LATTICE)
    torch.save(content | {"config": content["config"] | {"growth": 8}}, tmp_path / "growth.pt")
    with pytest.raises(ValueError, match="growth.pt holds a model that does not fit"):
        lattice.load(tmp_path / "growth.pt")


@pytest.mark.parametrize("field, value", [("bands", 100), ("bands", 0), ("bands", 1024),
                                          ("growth", 0), ("sample_rate", 0.5),
                                          ("preset", "lapped")])
def test_invalid_config_names_the_field(field, value):
    with pytest.raises(ValueError, match=f"LatticeConfig.{field} must be"):
        LatticeConfig(**{field: value})
