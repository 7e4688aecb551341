"""Round trips of the invertible networks, most of them with every weight randomised."""

import copy
import resource
from dataclasses import asdict

import pytest
import torch

import wavinwav
from wavinwav import NARROWEST, SHORTEST, Config, Setting, build

TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-10}
PAPER, LAPPED = Config.paper(blocks=3, growth=8), Config.lapped()
CONFIGS = [PAPER, Config.paper(blocks=3, growth=8, kernel=3, bands=8), LAPPED,
           Config.lapped(bands=48, carriers=40, reserve=0.1)]
for_each_config = pytest.mark.parametrize("config", CONFIGS,
                                          ids=["paper", "bands", "lapped", "reserve"])


def randomised(config, dtype=torch.float32):
    """A model with noise on every weight: as initialised it is too simple to prove much."""
    torch.manual_seed(0)
    model = build(config)
    for parameter in model.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    for level in model.buffers():
        level.uniform_(10, 300)
    return model.to(dtype).eval()


def levelled(**changes):
    """The lapped preset as initialised, with the level of `low_pass` noise."""
    model = build(Config.lapped(**changes)).double().eval()
    bands = wavinwav.lapped(low_pass(1, 64000, seed=9, rms=wavinwav.NOMINAL), 64)[0]
    model.level.copy_(bands.square().mean(1).sqrt())
    return model


def low_pass(*shape, seed=0, rms=0.05):
    """Noise with the spectral slope of speech."""
    x = torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    slope = 1 + torch.linspace(0, 20, shape[-1] // 2 + 1, dtype=torch.float64) ** 2
    x = torch.fft.irfft(torch.fft.rfft(x) / slope, n=shape[-1])
    return rms * x / x.square().mean(-1, keepdim=True).sqrt()


def snr(reference, estimate):
    return 20 * torch.log10(reference.norm() / (reference - estimate).norm())


@pytest.mark.parametrize("bands", [2, 63, 64])
@pytest.mark.parametrize("hops", [1, 2, 7])
def test_lapped_transform_is_orthonormal(bands, hops):
    identity = torch.eye(bands * hops, dtype=torch.float64)
    matrix = wavinwav.lapped(identity, bands).flatten(1)
    assert (matrix @ matrix.T - identity).abs().max() < 1e-12
    assert (wavinwav.unlapped(wavinwav.lapped(identity, bands)) - identity).abs().max() < 1e-12


def test_parameters_of_the_paper():
    assert sum(p.numel() for p in build(Config.paper()).parameters()) == 3_385_920


@for_each_config
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("shape", [(SHORTEST,), (128,), (2, 175), (2, 1500)], ids=str)
def test_reveal_with_r_is_exact(shape, dtype, config):
    cover, secret = low_pass(*shape).to(dtype), low_pass(*shape, seed=1).to(dtype)
    model = randomised(config, dtype)
    stego, r = model.hide(cover, secret)
    assert stego.shape == cover.shape and stego.dtype == r.dtype == dtype
    assert (stego - cover).abs().max() > 1e-5
    for x, x_ in zip((cover, secret), model.reveal(stego, r)):
        assert (x - x_).abs().max() <= TOLERANCE[dtype]


@pytest.mark.parametrize("asked", [30, 38, 46, 54, 62])
def test_secret_without_r(asked):
    """From covers of -60 to -13 dB, then from a square wave and noise that clip; 30 dB apart."""
    covers = 8 * [low_pass(8000)] + [low_pass(8000).sign(), low_pass(8000, rms=3)]
    for i, level in enumerate((-60, -50, -40, -30, -20, -13)):
        covers[i] = low_pass(8000, rms=10 ** (level / 20))
    covers = torch.stack(covers).clamp(-1, 1 - 2 ** -15)
    secrets, model = low_pass(10, 8000, seed=4), levelled()
    secrets[6:8] *= torch.tensor([[0.03], [4.0]])  # 42 dB apart
    stegos, _ = model.hide(covers, secrets, asked)
    assert -1 <= stegos.min() and stegos.max() < 1
    assert torch.equal(stegos * 32768, (stegos * 32768).round())
    assert all(map(lambda x, y: snr(x, y) > 20, secrets, model.reveal(stegos)[1]))
    for cover, stego in zip(covers[:8], stegos):  # kept from clipping, the others lose more
        cell = 12 ** 0.5 * 32768 * cover.square().mean().sqrt() * 10 ** (-asked / 20)
        assert abs(snr(cover, stego) - asked) < 0.7 or cell < 1.5 * NARROWEST


@pytest.mark.parametrize("width, gain", [(0, 0), (0, 15), (1, 0), (125, 0), (255, 15)])
def test_settings_are_found_again(width, gain, monkeypatch):
    model, cover = levelled(), low_pass(1, 1000, rms=1e-3)
    setting = Setting(torch.tensor([width]).double(), torch.tensor([gain]).double())
    monkeypatch.setattr(model, "fit", lambda *_: setting)
    if width == 255:  # such cells are wider than full scale
        with pytest.raises(ValueError, match="room"):
            model.hide(cover, cover)
    else:
        stego, _ = model.hide(cover, cover)
        found, other = model.reveal(stego)[1], setting._replace(width=setting.width + 1)
        assert torch.equal(found, model.inverse(stego, setting)[1])
        assert not torch.equal(found, model.inverse(stego, other)[1])


def test_reveal_refuses_samples_that_hide_did_not_return():
    model, cover, secret = levelled(), low_pass(2, 1000), low_pass(2, 1000, seed=1)
    stego, _ = model.hide(cover, secret)
    flipped = stego.clone()
    flipped[1, 4] += 2 ** -15
    for other in (cover, (cover * 32768).round() / 32768, 0 * cover, stego + 2 ** -16, flipped,
                  stego * 0.5, stego * 32768):
        with pytest.raises(ValueError, match="not what this model's hide returned"):
            model.reveal(other)


@for_each_config
def test_a_batch_is_its_items(config):
    model = randomised(config, torch.float64)
    cover, secret = low_pass(3, 1500), low_pass(3, 1500, seed=2)
    cover[2] /= cover[2].abs().max()  # only this one must be kept from clipping
    for i, results in enumerate(zip(*model.hide(cover, secret))):
        for x, alone in zip(results, model.hide(cover[i], secret[i])):
            assert (x - alone).abs().max() < 1e-7


def test_a_dither_makes_distortion_uniform_in_pauses():
    model, cover = levelled(), low_pass(1, 64000, rms=0.1)
    setting = Setting(16 * torch.tensor([100 / NARROWEST]).double().log2(),
                      torch.zeros(1).double())  # cells of 100 LSB
    dither = model.split(torch.rand(1, 64, 1000).double() - 0.5)
    stego = model(cover, 0 * cover, setting, dither)[0]
    change = wavinwav.lapped((stego - cover) * 32768, 64) / 100
    assert change.abs().max() <= 0.5 + 1e-9
    assert abs(12 * change.square().mean() - 1) < 8 / 64000 ** 0.5
    assert abs((change.abs() < 0.25).double().mean() - 0.5) < 4 / 64000 ** 0.5


@for_each_config
def test_autocast_and_other_types(config):
    model, cover, secret = randomised(config), low_pass(2, 1000), low_pass(2, 1000, seed=1)
    plain, _ = model.hide(cover, secret)
    assert plain.dtype == model.hide(cover.double(), secret)[0].dtype == torch.float32
    for dtype in (torch.float16, torch.bfloat16):  # in which the lowest bits are lost
        for samples in ((cover.to(dtype), secret), (cover, secret.to(dtype))):
            with pytest.raises(ValueError, match="must be a float32 tensor"):
                model.hide(*samples)
        with pytest.raises(ValueError, match="not ndarray"):
            model.hide(cover.numpy(), secret)
        for act in (lambda other: other.hide(cover, secret), lambda other: other.reveal(plain)):
            with pytest.raises(ValueError, match="the model must be float32"):
                act(copy.deepcopy(model).to(dtype))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        stego, r = model.hide(cover, secret)
        assert torch.equal(stego, plain)
        assert (model.reveal(stego, r)[1] - secret).abs().max() < 1e-4
    torch.set_default_dtype(torch.float64)
    try:
        other = build(config).eval()
        assert (other.reveal(*other.hide(cover, secret))[1] - secret).abs().max() < 1e-10
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("config, field, value", [
    (Config.paper, "blocks", 0), (Config.paper, "kernel", 2.5), (Config.paper, "robust", 1),
    (Config.paper, "clamp", float("nan")), (Config.lapped, "bands", 0),
    (Config.lapped, "reserve", -0.1), (Config.lapped, "stego_snr", "loud"),
    (lambda **fields: build(Config.lapped(**fields)), "carriers", 65)])
def test_invalid_config_names_the_field(config, field, value):
    with pytest.raises(ValueError, match=f"Config.{field} "):
        config(**{field: value})


@for_each_config
def test_invalid_tensors(config):
    """The message names the tensor and what is wrong with it."""
    model, x = randomised(config), torch.zeros(200)
    for invalid, message in (
            (x[:150], "must have the shape .200., not .150."), (x[:0], "the shape .200., not .0."),
            (x.long(), "float32 tensor, not torch.int64"), (x + torch.nan, "NaN or infinite"),
            (x[None, None], "must have the shape .200., not .1, 1, 200."),
            ([0.0], "float32 tensor, not list"), (None, "float32 tensor, not NoneType")):
        with pytest.raises(ValueError, match=f"secret .*{message}"):
            model.hide(x, invalid)
    stego, r = model.hide(x, x)
    for invalid in (r[..., :150], r[None], r.long(), r + torch.nan, [0.0]):
        with pytest.raises(ValueError, match="^z "):
            model.reveal(stego, invalid)
    for cover in (x[:0], x[None, None], x[0]):
        with pytest.raises(ValueError, match="cover must have the shape .T. or .B, T."):
            model.hide(cover, cover)


def test_what_a_lapped_network_cannot_use():
    model, x = randomised(LAPPED), 0.1 * torch.ones(SHORTEST)
    for snr in (float("nan"), float("inf"), 1e9, -4000):
        with pytest.raises(ValueError, match="snr must be from 0 to 120 dB"):
            model.hide(x, x, snr)
    with pytest.raises(ValueError, match="T >= 125, not .124."):
        model.hide(x[:-1], x[:-1])
    with pytest.raises(ValueError, match="divide PCM by its full scale"):
        model.hide(1000 * x, x)


def test_load_refuses_what_is_no_model(tmp_path):
    model, x, fields = randomised(PAPER), low_pass(2, 100), asdict(PAPER)
    whole = {"wavinwav": 2, "config": fields, "state_dict": model.state_dict()}
    for name, content in {"whole": whole, "pickle": torch.nn.Linear(2, 2), "other": {"a": 1},
                          "blocks": whole | {"config": fields | {"blocks": 4}}}.items():
        torch.save(content, tmp_path / name)
    (tmp_path / "cut").write_bytes((tmp_path / "whole").read_bytes()[:5000])
    assert torch.equal(wavinwav.load(tmp_path / "whole").hide(x[0], x[1])[0], model.hide(*x)[0])
    for name in ("pickle", "other", "blocks", "cut"):
        with pytest.raises(ValueError, match=f"{name} is not a network of this version"):
            wavinwav.load(tmp_path / name)
    with pytest.raises(FileNotFoundError):
        wavinwav.load(tmp_path / "missing")


def test_a_network_larger_than_its_file_takes_no_memory(tmp_path):
    model, fields = randomised(PAPER), asdict(PAPER)
    for name, field in (("blocks", 1000), ("blocks", 10 ** 6), ("growth", 1000), ("kernel", 1000)):
        torch.save({"config": fields | {name: field}, "state_dict": model.state_dict()},
                   tmp_path / "model.pt")
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        with pytest.raises(ValueError, match="not a network of this version"):
            wavinwav.load(tmp_path / "model.pt")
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < before + 200_000  # kB
