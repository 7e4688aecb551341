"""The lattice preset: what comes out is what went in, on any machine, with every weight randomised."""

import math
import os

import pytest
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
    streams = [torch.randint(1 << 32, (count,)) for count in (64, 1000, 333, 65)]
    words = wavinwav._place(streams, ends)
    assert all(torch.equal(a, b) for a, b in zip(streams, wavinwav._find(words, ends, 4), strict=True))
    words[3 * 4 + 100] ^= 1
    assert sum(stream is None for stream in wavinwav._find(words, ends, 4)) <= 1
    assert wavinwav._place([torch.zeros(ends[-1], dtype=torch.long)], ends) is None


@pytest.mark.parametrize("blocks", [1, 5])
def test_entropy_coder(model, blocks):
    """Integers of all sizes, many of them far beyond what their class expects."""
    torch.manual_seed(blocks)
    shape = 200, wavinwav.LANES, blocks
    classes = torch.randint(wavinwav.CLASSES, shape)
    integers = (torch.randn(shape) * 2 ** (classes / 4 - 5)).round().int()
    surprises = torch.rand(shape) < 0.01
    integers[surprises] = torch.randint(-(1 << 30) + 1, 1 << 30, shape, dtype=torch.int32)[surprises]
    streams = model.encode(classes.to(torch.uint8), integers)
    assert all(0 <= stream.min() and stream.max() < 1 << 32 for stream in streams)
    decode = model.decoder(streams)
    found = torch.cat([decode(part.flatten(0, 1)) for part in classes.split(3)]).view(shape)
    assert torch.equal(found.int(), integers)
    ends = blocks * wavinwav.LANES * 64
    bits = 32 * sum(map(len, streams))
    assert model.cost(classes, integers).sum().item() < bits < 1.005 * model.cost(classes, integers).sum().item() + ends


def test_scales_are_exact_integers():
    """The same in float64, where nothing rounds, and with operands rounded to bfloat16, as some hardware does."""
    model = randomised(3)
    net = model.scales[2]
    x = torch.randint(256, (29, 128, 50)).float()
    integers = net.integers(torch.arange(1, 256, 2), 40)
    result = net(integers, x)
    assert torch.equal(result, result.round()) and result.unique().numel() > 1000
    assert torch.equal(result.double(), net(tuple(w.double() for w in integers), x.double()))
    hidden, hidden_bias, direct, out, bias = integers
    narrow = hidden.bfloat16().float(), hidden_bias, direct.bfloat16().float(), out.bfloat16().float(), bias
    assert torch.equal(net(narrow, x.bfloat16().float()), result)


def test_same_stego_whatever_the_threads_and_the_matmul_precision(model, monkeypatch):
    cover, secret = pcm(7 * 16000, seed=1), pcm(7 * 16000, seed=2)  # two blocks
    stego, r = model.hide(cover, secret, snr=45)
    _, revealed = model.reveal(stego)
    threads = torch.get_num_threads()
    try:
        for count, batch, precision in ((1, 2, "medium"), (2, 1, "high")):
            torch.set_num_threads(count)
            torch.set_float32_matmul_precision(precision)
            monkeypatch.setattr(wavinwav, "THREADS", count)
            monkeypatch.setattr(wavinwav, "BATCH", batch)
            assert torch.equal(model.hide(cover, secret, snr=45)[0], stego)
            assert torch.equal(model.reveal(stego)[1], revealed)
    finally:
        torch.set_num_threads(threads)
        torch.set_float32_matmul_precision("highest")


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
    cover, secret = pcm(5 * 16000, seed=5), pcm(5 * 16000, seed=6)
    found = []
    for wanted in (45, 52, 60):
        stego, _ = model.hide(cover, secret, snr=wanted, shaping=0)
        assert abs(snr(cover, stego) - wanted) < 0.4
        found.append(snr(secret, model.reveal(stego)[1]))
    slopes = [(a - b) / step for a, b, step in zip(found, found[1:], (7, 8))]
    assert all(0.8 < slope < 1.5 for slope in slopes), (found, "what the stego gains, the secret loses")


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


@pytest.mark.parametrize("place", [0, 5, 100])  # in what tells the width of a segment's cells, and in a cell
def test_damage_stays_in_its_block(model, place):
    cover, secret = pcm(12 * 16000, seed=11), pcm(12 * 16000, seed=12)
    stego, _ = model.hide(cover, secret, snr=45)
    whole = model.reveal(stego)[1]
    middle = wavinwav.HEADER_SAMPLES + 190 * wavinwav.SEGMENT
    stego[middle + place] += 1 / 32768
    with pytest.warns(UserWarning, match="1 of 3 blocks"):
        damaged = model.reveal(stego)[1]
    frames, blocks = model.shape_of(len(secret), 256)
    changed = [not torch.equal(a, b) for a, b in zip(whole.split(frames * 256), damaged.split(frames * 256))]
    assert blocks == len(changed) == 3 and sum(changed) == 1
    assert not damaged.split(frames * 256)[changed.index(True)].any()


def test_what_was_cut_off_is_silent(model):
    cover, secret = pcm(12 * 16000, seed=21), pcm(12 * 16000, seed=22)
    stego, _ = model.hide(cover, secret, snr=45)
    whole = model.reveal(stego)[1]
    with pytest.warns(UserWarning, match="1 of 3 blocks"):
        cut = model.reveal(stego[:-2000])[1]
    assert torch.equal(cut[:8 * 16000], whole[:8 * 16000]) and not cut[9 * 16000:].any()
    for length in (wavinwav.HEADER_SAMPLES, wavinwav.HEADER_SAMPLES + 1, 1000, 2000, 5000):
        with pytest.raises(ValueError, match="cut off"):
            model.reveal(stego[:length])


def test_what_is_no_secret_is_refused(model):
    cover, secret = pcm(16000, seed=13), pcm(16000, seed=14)
    stego, _ = model.hide(cover, secret)
    for samples in (cover, torch.zeros(16000), stego[1:], stego[:100]):
        with pytest.raises(ValueError, match="no secret"):
            model.reveal(samples)
    for i in range(0, wavinwav.HEADER_SAMPLES, 7):
        changed = stego.clone()
        changed[i] += (1 if changed[i] < 0 else -1) / 32768
        with pytest.raises(ValueError, match="no secret"):
            model.reveal(changed)
    with pytest.raises(ValueError, match="another model"):
        randomised(1).reveal(stego)
    with pytest.raises(ValueError, match="too short"):
        model.hide(cover[:400], secret)
    with pytest.raises(ValueError, match=r"\[T\]"):
        model.hide(torch.zeros(2, 16000), torch.zeros(2, 16000))


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
