"""The network is invertible, with every weight randomised: at its start it is nearly the identity and proves nothing."""

import pytest
import soundfile
import torch

import checkpoint
import wavinwav
from objective import AffineObjective
from wavinwav import Config, WavINN

CONFIGS = {
    "lapped": Config.lapped(),
    "lapped, robust": Config.lapped(robust=True, shift=40, growth=16, pilot=0.006),
    "lapped, plain subnets": Config.lapped(gated=False, swapped=0, turn_level=0.0, bands=32, growth=16),
    "paper": Config.paper(),  # slow on a CPU: its shape in time adds nothing to the small one's
    "paper, small": Config.paper(blocks=3, growth=8),
}
FAST = [name for name in CONFIGS if name != "paper"]
TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-10}


def randomised(config, dtype=torch.float32, seed=0):
    """A model whose every weight is random, of the size that default initialisation gives."""
    torch.manual_seed(seed)
    model = WavINN(config)
    with torch.no_grad():
        for parameter in model.parameters():
            bound = parameter[0].numel() ** -0.5 if parameter.dim() > 1 else 0.1
            parameter.uniform_(-bound, bound)
    return model.to(dtype).eval()


def speechlike(*shape, seed=0):
    """Noise with the spectral slope and the loudness changes of speech, peak below full scale, [..., T]."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(*shape, generator=generator, dtype=torch.float64)
    spectrum = torch.fft.rfft(x) / (1 + torch.linspace(0, 20, shape[-1] // 2 + 1, dtype=torch.float64) ** 2)
    x = torch.fft.irfft(spectrum, n=shape[-1]) * (1.1 + torch.sin(torch.arange(shape[-1]) / 3000))
    return 0.5 * x / x.abs().amax(-1, keepdim=True).clamp_min(1e-9)


def snr(reference, estimate):
    return (10 * torch.log10(reference.square().sum() / (reference - estimate).square().sum())).item()


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("name, shape", [("paper", (2, 501))] + [
    (name, shape) for name in FAST for shape in [(1,), (4096,), (3, 1001), (2, 127), (1, 128), (129,)]] + [
    ("lapped, robust", (2, 8010))], ids=str)
def test_reveal_with_r_is_exact(name, dtype, shape):
    model = randomised(CONFIGS[name], dtype)
    cover, secret = speechlike(*shape, seed=1).to(dtype), speechlike(*shape, seed=2).to(dtype)
    stego, r = model.hide(cover, secret)
    assert stego.shape == cover.shape and stego.dtype == r.dtype == dtype
    cover_, secret_ = model.reveal(stego, r)
    tolerance = TOLERANCE[dtype] * (100 if model.config.gated else 1)  # the log of small coefficients magnifies rounding
    assert (cover_ - cover).abs().max() <= tolerance
    assert (secret_ - secret).abs().max() <= tolerance
    if shape[-1] >= model.config.bands:
        assert (stego - cover).abs().max() > 1e-3, "a network that changes nothing would pass the rest"


@pytest.mark.parametrize("name", FAST)
def test_random_r_has_an_inverse_too(name):
    """Any stego and any r come from some cover and secret, but for the row of r that repeats what the cover tells."""
    model = randomised(CONFIGS[name], torch.float64)
    stego, r = speechlike(2, 1024, seed=3), torch.randn(2, 1024, dtype=torch.float64)
    if model.config.turn_level:
        turned = model.turned(model.transform(model.reveal(stego, torch.cat([r, torch.zeros(2, 8)], 1))[0]))
        assert not turned.any()
        r = torch.cat([r, torch.zeros(2, 8, dtype=torch.float64)], 1)
    stego_, r_ = model.hide(*model.reveal(stego, r))
    assert (stego_ - stego).abs().max() < 1e-7 and (r_ - r).abs().max() < 1e-7


@pytest.mark.parametrize("name", FAST)
def test_a_perturbed_z_changes_the_secret(name):
    model = randomised(CONFIGS[name])
    stego, r = model.hide(speechlike(2048).float(), speechlike(2048, seed=1).float())
    secret = model.reveal(stego, r)[1]
    assert (model.reveal(stego, r + 0.1)[1] - secret).abs().max() > 1e-3


def test_z_is_normal_in_the_paper_and_zero_in_lapped():
    stego = speechlike(4096).float()
    paper, lapped = randomised(CONFIGS["paper, small"]), randomised(CONFIGS["lapped"])
    assert not torch.equal(paper.reveal(stego)[1], paper.reveal(stego)[1])
    assert torch.equal(lapped.reveal(stego)[1], lapped.reveal(stego, torch.zeros(4096 + 4096 // 128))[1])
    z = paper.draw_z(torch.zeros(2, 50000))
    assert abs(z.mean()) < 0.02 and abs(z.std() - 1) < 0.02


@pytest.mark.parametrize("name", FAST)
def test_a_batch_is_its_items(name):
    model = randomised(CONFIGS[name], torch.float64)
    cover, secret = speechlike(3, 1500, seed=1), speechlike(3, 1500, seed=2)
    stego, _ = model.hide(cover, secret)
    for i in range(3):
        assert (model.hide(cover[i], secret[i])[0] - stego[i]).abs().max() < 1e-12


def test_hide_is_exact_under_autocast():
    model = randomised(CONFIGS["lapped"])
    cover, secret = speechlike(4096).float(), speechlike(4096, seed=1).float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cover_, secret_ = model.reveal(*model.hide(cover, secret))
    assert (cover_ - cover).abs().max() < 0.01 and (secret_ - secret).abs().max() < 0.01  # as above, gated; in bf16 0.05


@pytest.mark.parametrize("name", FAST)
def test_training_under_bf16_autocast_stays_close(name):
    """The subnets run in bf16 then, the couplings and the transform in float32."""
    model = randomised(CONFIGS[name])
    cover, secret = speechlike(1, 4096).float(), speechlike(1, 4096, seed=1).float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        stego, r = model(cover, secret)
        cover_, secret_ = model.inverse(stego, r)
    assert stego.dtype == r.dtype == torch.float32
    tolerance = 0.3 if model.config.gated else 0.03
    assert (cover_ - cover).abs().max() < tolerance and (secret_ - secret).abs().max() < tolerance


def test_swap_hides_and_reveals_before_any_training(tmp_path):
    model = WavINN(Config.lapped())
    cover, secret = speechlike(16000, seed=1).float(), speechlike(16000, seed=2).float()
    stego, _ = model.hide(cover, secret)
    soundfile.write(tmp_path / "stego.wav", (stego * 32768).round().short().numpy(), 16000, subtype="PCM_16")
    written = torch.from_numpy(soundfile.read(tmp_path / "stego.wav", dtype="int16")[0]) / 32768
    assert snr(cover, written) > 20
    assert snr(secret, model.reveal(written)[1]) > 12


@pytest.mark.parametrize("name", FAST)
def test_gradients_reach_every_parameter(name):
    model = randomised(CONFIGS[name]).train()
    cover, secret = speechlike(2, 2048, seed=1).float(), speechlike(2, 2048, seed=2).float()
    stego, r = model(cover, secret)
    cover_, secret_ = model.inverse(stego, torch.zeros_like(r))
    again = sum(x.square().mean() for x in model.inverse(stego, torch.zeros_like(r), model.revealing))
    ((stego - cover).square().mean() + (secret_ - secret).square().mean() + r.square().mean() + again).backward()
    for parameter_name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 0, parameter_name


def test_turned_frames_come_back():
    """A cover of loud hiss: its frames are turned, the secret goes where the hiss is not, and all comes back."""
    model = WavINN(Config.lapped())
    speech, secret = speechlike(32000, seed=1).float(), speechlike(32000, seed=2).float()
    spectrum = torch.fft.rfft(0.5 * torch.randn(32000, generator=torch.Generator().manual_seed(3)))
    spectrum[:10000] = 0  # nothing below 5 kHz
    hiss = torch.fft.irfft(spectrum)
    cover = torch.where(torch.arange(32000) % 8000 < 4000, speech, hiss)
    turned = model.turned(model.transform(cover[None]))
    assert 0.3 < turned.float().mean() < 0.7
    stego, r = model.hide(cover, secret)
    cover_, secret_ = model.reveal(stego, r)
    assert (cover_ - cover).abs().max() < 1e-4 and (secret_ - secret).abs().max() < 1e-4
    assert snr(secret, model.reveal(stego)[1]) > 10
    model.config.turn_level = 0.0
    assert snr(cover, stego) > snr(cover, model.hide(cover, secret)[0]) + 3


def test_training_leaves_the_swap():
    """At the swap itself what the last rho and eta do cancels out; two steps later every weight has its gradient."""
    model = WavINN(Config.lapped())
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-3)
    cover, secret = speechlike(2, 4096, seed=1).float(), speechlike(2, 4096, seed=2).float()
    for _ in range(3):
        optimiser.zero_grad()
        stego, r = model(cover, secret)
        _, secret_ = model.inverse(stego, torch.zeros_like(r))
        ((stego - cover).square().mean() + (secret_ - secret).square().mean()).backward()
        optimiser.step()
    still = [name for name, parameter in model.named_parameters() if not parameter.grad.any()]
    assert not still


@pytest.mark.parametrize("name", ["lapped", "paper, small"])
def test_recomputation_changes_no_gradient(name):
    model = randomised(CONFIGS[name], torch.float64)
    cover, secret = speechlike(1, 1024, seed=1), speechlike(1, 1024, seed=2)
    gradients = []
    for recompute in (False, True):
        model.recompute(recompute)
        model.zero_grad()
        stego, r = model(cover, secret)
        (model.inverse(stego, torch.zeros_like(r))[1] - secret).square().mean().backward()
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
    assert torch.allclose(*gradients, rtol=1e-9, atol=1e-15)


def test_parameters_of_the_paper():
    model = WavINN(Config.paper())
    assert sum(p.numel() for p in model.parameters()) == 3_385_920  # 6,192 of them biases


@pytest.mark.parametrize("name", FAST)
def test_pieces_are_the_whole(name, monkeypatch):
    model = randomised(CONFIGS[name], torch.float64)
    cover, secret = speechlike(2, 5000, seed=1), speechlike(2, 5000, seed=2)
    whole = model.hide(cover, secret)
    for frames in (1, 7, 16):
        monkeypatch.setattr(wavinwav, "PIECE_FRAMES", frames * (1 if model.config.bands > 1 else 100))
        for a, b in zip(model.hide(cover, secret), whole):
            assert (a - b).abs().max() < 1e-9


@pytest.mark.parametrize("bands", [1, 2, 64, 128])
@pytest.mark.parametrize("hops", [1, 2, 7])
def test_lapped_transform_is_orthonormal(bands, hops):
    identity = torch.eye(bands * hops, dtype=torch.float64)
    matrix = wavinwav.lapped(identity, bands).flatten(1)
    assert (matrix @ matrix.T - identity).abs().max() < 1e-12
    assert (wavinwav.unlapped(wavinwav.lapped(identity, bands)) - identity).abs().max() < 1e-12


@pytest.mark.parametrize("name", ["lapped", "paper, small"])
def test_save_and_load(name, tmp_path):
    model = randomised(CONFIGS[name])
    checkpoint.save(model, tmp_path / "model.pt")
    assert [path.name for path in tmp_path.iterdir()] == ["model.pt"]
    loaded = wavinwav.load(tmp_path / "model.pt")
    assert loaded.config == model.config
    cover, secret = speechlike(1000).float(), speechlike(1000, seed=1).float()
    assert torch.equal(loaded.hide(cover, secret)[0], model.hide(cover, secret)[0])


def test_load_refuses_what_is_no_model(tmp_path):
    with pytest.raises(FileNotFoundError):
        wavinwav.load(tmp_path / "missing.pt")
    checkpoint.save(WavINN(CONFIGS["paper, small"]), tmp_path / "whole.pt")
    contents = {"text.pt": b"hello", "empty.pt": b"", "cut.pt": (tmp_path / "whole.pt").read_bytes()[:5000]}
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    torch.save({"something": "else"}, tmp_path / "other.pt")
    torch.save(torch.nn.Linear(2, 2), tmp_path / "pickle.pt")
    content = wavinwav.read_checkpoint(tmp_path / "whole.pt")
    torch.save(content | {"config": content["config"] | {"blocks": 4}}, tmp_path / "blocks.pt")
    torch.save(content | {"config": content["config"] | {"new": 4}}, tmp_path / "field.pt")
    for name in (*contents, "other.pt", "pickle.pt", "blocks.pt", "field.pt"):
        with pytest.raises(ValueError, match=name):
            wavinwav.load(tmp_path / name)


@pytest.mark.parametrize("field, value", [
    ("blocks", 0), ("blocks", 1), ("bands", 0), ("kernel", 4), ("growth", -1), ("sample_rate", 0), ("swapped", 65),
    ("attenuation", 0.0), ("attenuation", 0.1), ("clamp", float("nan")), ("latent", "uniform"), ("blocks", 2.5),
    ("gated", "yes"), ("swapped", -1), ("shift", 49), ("shift", -1), ("pilot", -1.0)])
def test_invalid_config_names_the_field(field, value):
    with pytest.raises(ValueError, match=f"Config.{field} "):
        Config.lapped(**{field: value})


def test_invalid_tensors():
    model = randomised(CONFIGS["paper, small"])
    x = torch.zeros(100)
    for cover, secret in [(x, x[:50]), (x[:0], x[:0]), (x.long(), x.long()), (x[None, None], x[None, None]), ([0.0], [0.0])]:
        with pytest.raises(ValueError):
            model.hide(cover, secret)
    with pytest.raises(ValueError):
        model.reveal(x, x[:50])


def test_a_second_stack_changes_what_is_revealed_without_r_and_nothing_else():
    model = randomised(CONFIGS["lapped"])
    robust = AffineObjective.with_second_stack(model).eval()
    cover, secret = speechlike(2, 4000, seed=1).float(), speechlike(2, 4000, seed=2).float()
    stego, r = model.hide(cover, secret)
    assert torch.equal(robust.reveal(stego)[1], model.reveal(stego)[1]), "it begins as a copy"
    with torch.no_grad():
        for parameter in robust.robust_blocks.parameters():
            parameter.mul_(1.1)
    assert torch.equal(robust.hide(cover, secret)[0], stego)
    assert torch.equal(robust.reveal(stego, r)[1], model.reveal(stego, r)[1])
    assert not torch.allclose(robust.reveal(stego)[1], model.reveal(stego)[1], atol=1e-4)


def test_shift_sends_the_lowest_bands_of_the_secret_elsewhere():
    tone = 0.1 * torch.sin(2 * torch.pi * 100 / 16000 * torch.arange(16000))
    cover = speechlike(16000, seed=3).float()
    for shift, hertz in ((0, 8000), (40, 5500)):  # where the top of what is exchanged lies
        model = WavINN(Config.lapped(shift=shift)).eval()
        change = torch.fft.rfft(model.hide(cover, tone)[0] - model.hide(cover, 0 * tone)[0]).abs().square()
        assert change[hertz - 250:hertz + 1].sum() > 0.9 * change.sum()


def test_pilot_tells_the_gain():
    model = WavINN(Config.lapped(pilot=0.006)).double().eval()
    cover, secret = speechlike(2, 32000, seed=1), speechlike(2, 32000, seed=2)
    spectrum = torch.fft.rfft(cover)
    spectrum[:, :160] = 0  # a voice has nothing below 80 Hz
    cover = torch.fft.irfft(spectrum)
    stego, _ = model.hide(cover, secret)
    assert snr(WavINN(Config.lapped()).double().eval().hide(cover, secret)[0], stego) > 45
    stego = (stego * 32768).round() / 32768
    _, plain = model.reveal(stego)
    noise = 10 ** -1.5 * stego.square().mean().sqrt() * torch.randn(stego.shape, generator=torch.Generator().manual_seed(1))
    for gain in (0.75, 0.9, 1.1, 1.3):
        assert snr(plain, model.reveal(gain * stego)[1]) > 50, gain
        assert snr(model.reveal(stego + noise)[1], model.reveal(gain * (stego + noise))[1]) > 50
        assert abs(model.take_pilot(gain * (stego + noise)).norm() / stego.norm() - 1) < 0.06
    assert torch.equal(model.take_pilot(cover), cover - wavinwav.pilot_wave(wavinwav.pilot_weights(cover), cover)), "none there"
    silent = torch.zeros(16000, dtype=torch.float64)
    assert (model.reveal(*model.hide(silent, silent))[1] - silent).abs().max() < 1e-10 and model.reveal(silent)[1].isfinite().all()


def test_inputs_are_left_alone():
    model = randomised(CONFIGS["lapped"])
    cover, secret = speechlike(1000).float(), speechlike(1000, seed=1).float()
    before = cover.clone(), secret.clone()
    stego, r = model.hide(cover, secret)
    kept = stego.clone(), r.clone()
    model.reveal(stego, r)
    assert all(map(torch.equal, (cover, secret, stego, r), (*before, *kept)))
