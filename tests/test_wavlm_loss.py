"""wavlm_loss.py with tiny teachers of both kinds, from a folder, from torchaudio's cache, and from
nowhere."""

import copy
import dataclasses
import socket

import pytest
import torch
from torch import nn
from torch.nn import functional

from files.resample import resample
from helpers import CONVS, LARGE, TORCHAUDIO, buzz, same
from wavlm_loss import WavLMLoss

torchaudio = pytest.importorskip("torchaudio")  # whose networks are the teachers

BASE = LARGE | dict(extractor_mode="group_norm", encoder_layer_norm_first=False)

UNILM = """
import torch
from torch import nn

class Damp(torch.autograd.Function):
    @staticmethod
    def forward(context, x, factor):
        context.factor = factor
        return x * 1

    @staticmethod
    def backward(context, gradient):
        return gradient * context.factor, None

class Encoder(nn.Module):
    def __init__(self, dims):
        super().__init__()
        self.pos_conv = nn.Sequential(nn.Conv1d(dims, dims, 5, padding=2, groups=4), nn.GELU())
        layers = (nn.TransformerEncoderLayer(dims, 4, 2 * dims, 0.5) for _ in range(3))
        self.layers = nn.ModuleList(layers)

class WavLM(nn.Module):
    def __init__(self, convs, dims=16):
        super().__init__()
        self.feature_extractor = nn.Sequential()
        inputs = 1
        for outputs, kernel, stride in convs:
            conv = nn.Conv1d(inputs, outputs, kernel, stride, bias=False)
            self.feature_extractor.extend([conv, nn.GELU()])
            inputs = outputs
        self.project = nn.Sequential(nn.LayerNorm(inputs), nn.Linear(inputs, dims))
        self.encoder = Encoder(dims)
        self.feature_grad_mult = 0.1

    def extract_features(self, source, padding_mask=None, output_layer=None,
                         ret_layer_results=False):
        features = Damp.apply(self.feature_extractor(source[:, None]), self.feature_grad_mult)
        x = self.project(features.transpose(1, 2))
        x += self.encoder.pos_conv(x.transpose(1, 2)).transpose(1, 2)
        x = x.transpose(0, 1)
        results = [(x, None)]
        for layer in self.encoder.layers[:output_layer]:
            x = layer(x)
            results.append((x, None))
        x = x.transpose(0, 1)
        return ((x, results) if ret_layer_results else x), padding_mask

def wavlm_large(pretrained=True, progress=True, device="cuda"):
    torch.manual_seed(0)
    return WavLM({config}).to(device).train()
"""


@pytest.fixture
def hub(tmp_path):
    """torch.hub's cache is an empty folder."""
    before = torch.hub.get_dir()
    torch.hub.set_dir(tmp_path / "hub")
    yield tmp_path / "hub"
    torch.hub.set_dir(before)


@pytest.fixture
def no_network(monkeypatch):
    def fail(*args, **more):
        raise socket.gaierror("no network")
    monkeypatch.setattr(socket, "getaddrinfo", fail)


@pytest.fixture(scope="module", autouse=True)
def folders(tmp_path_factory):
    """Folders as torch.hub takes them, by what their WavLM is."""
    folders = {}
    for name, text, config in (
            ("large", TORCHAUDIO, LARGE), ("base", TORCHAUDIO, BASE), ("unilm", UNILM, CONVS)):
        folders[name] = tmp_path_factory.mktemp(name)
        (folders[name] / "hubconf.py").write_text(text.replace("{config}", repr(config)))
    return {name: str(folder) for name, folder in folders.items()}


@pytest.fixture(params=["large", "base", "unilm"])
def source(request, folders):
    return folders[request.param]


def pair(items=2, samples=3200, rate=16000):
    """A reference, and an estimate 10 dB above its noise that wants a gradient."""
    reference = buzz(items, samples, rate)
    noise = torch.randn(reference.shape, generator=torch.Generator().manual_seed(1))
    return reference, (reference + 0.04 * noise).requires_grad_()


def gradient(loss, reference, estimate):
    return torch.autograd.grad(loss(reference, estimate), estimate)[0]


@pytest.mark.parametrize("distance", ["l1", "l2", "cosine"])
def test_value_and_gradient(source, distance):
    loss = WavLMLoss(source, distance=distance)
    reference, estimate = pair()
    assert loss(reference, estimate).dtype == torch.float32
    closer = (reference + estimate.detach()) / 2
    most = 2 if distance == "cosine" else 9
    assert 0 < loss(reference, closer) < loss(reference, estimate) < most
    assert loss(reference, reference).item() == pytest.approx(0, abs=1e-6)
    change = gradient(loss, reference, estimate)
    assert change.isfinite().all() and (change.abs().amax(1) > 0).all()
    direction = change / change.norm()
    with torch.no_grad():
        beyond, before = (loss(reference, estimate + x * direction) for x in (0.003, -0.003))
    slope = (beyond - before).item() / 0.006
    assert slope == pytest.approx(change.norm().item(), rel=0.1), "the gradient is the loss's own"
    reference.requires_grad_()
    loss(reference, estimate).backward()
    assert reference.grad is None


def test_hidden_states_are_the_models_own(folders):
    x, _ = pair()
    unit = (x - x.mean(1, keepdim=True)) / (x.var(1, correction=0, keepdim=True) + 1e-5).sqrt()
    for name, heard in (("large", unit), ("base", x)):
        states = WavLMLoss(folders[name]).hidden(x)
        model = torch.hub.load(folders[name], "wavlm_large", source="local", device="cpu").eval()
        expected, _ = model.extract_features(heard)
        assert len(states) == 3
        same(states, expected)
    states = WavLMLoss(folders["unilm"]).hidden(x)
    model = torch.hub.load(folders["unilm"], "wavlm_large", source="local", device="cpu").eval()
    with torch.no_grad():
        same(states, [model.extract_features(unit, output_layer=number)[0] for number in (1, 2, 3)])


def test_gradient_through_the_addition_in_place(folders):
    """The model as it comes cannot be differentiated; with the hook its values stay the same to the
    last bit."""
    _, x = pair()
    model = torch.hub.load(folders["unilm"], "wavlm_large", source="local", device="cpu")
    model.eval().requires_grad_(False)
    (_, raw), _ = model.extract_features(x, output_layer=3, ret_layer_results=True)
    with pytest.raises(RuntimeError, match="inplace operation"):
        raw[3][0].sum().backward()
    teacher = WavLMLoss(folders["unilm"]).teacher
    (_, hooked), _ = teacher.extract_features(x, output_layer=3, ret_layer_results=True)
    assert all(a.equal(b) for (a, _), (b, _) in zip(raw, hooked))
    hooked[3][0].sum().backward()
    assert x.grad.isfinite().all() and x.grad.abs().max() > 0


def test_layers(source):
    reference, estimate = pair(1)
    with torch.no_grad():
        single = [WavLMLoss(source, (number,))(reference, estimate).item() for number in (1, 2, 3)]
        assert len(set(single)) == 3
        all_layers = WavLMLoss(source)(reference, estimate).item()
        assert all_layers == pytest.approx(sum(single) / 3, rel=1e-5)
        two_layers = WavLMLoss(source, [3, 1])(reference, estimate).item()
        assert two_layers == pytest.approx((single[0] + single[2]) / 2, rel=1e-5)
    assert WavLMLoss(source, distance="cosine").layers == (3,), "6 where there are 6"
    for layers in ((0,), (1, 4), ()):
        with pytest.raises(ValueError, match="has layers 1 to 3"):
            WavLMLoss(source, layers)


def test_level_of_large_does_not_matter_and_items_are_independent(folders):
    for name in ("large", "unilm"):
        loss = WavLMLoss(folders[name])
        reference, estimate = pair()
        with torch.no_grad():
            value = loss(reference, estimate).item()
            level = torch.tensor([[4.0], [0.5]])
            other = loss(level * reference, level * estimate).item()
            assert other == pytest.approx(value, rel=0.02)
            alone = [loss(reference[i:i + 1], estimate[i:i + 1]).item() for i in range(2)]
            assert sum(alone) / 2 == pytest.approx(value, rel=1e-4)


def test_silence(source):
    loss = WavLMLoss(source)
    reference, estimate = pair(3)
    alone = loss(reference[1:2], estimate[1:2]).item()
    estimate = estimate.detach().clone()
    reference[0] = 0  # one with a silent reference, one with a silent estimate
    estimate[2] = 1e-5 * estimate[2]
    estimate.requires_grad_()
    assert loss(reference, estimate).item() == pytest.approx(alone, rel=1e-4)
    change = gradient(loss, reference, estimate)
    assert change.isfinite().all() and (change.abs().amax(1) > 0).tolist() == [False, True, False]
    silence = torch.zeros(2, 3200, requires_grad=True)
    assert loss(silence.detach(), silence).item() == 0
    assert gradient(loss, silence.detach(), silence).equal(torch.zeros(2, 3200))
    broken = estimate.detach().clone()
    broken[0, 0] = torch.nan
    assert loss(broken, broken).isnan(), "what is broken is not taken for silence"


@pytest.mark.parametrize("samples", [1, 150, 399, 400])
def test_short_crops(source, samples):
    loss = WavLMLoss(source)
    reference, estimate = pair(2, 5000)
    reference, estimate = (x[:, 1000:1000 + samples] + 0.1 for x in (reference, estimate))
    assert loss.hidden(estimate)[0].shape[:2] == (2, 1)
    assert loss(reference, estimate).isfinite()
    change = gradient(loss, reference, estimate)
    assert change.shape == (2, samples) and change.isfinite().all()
    if samples > 1:  # layer norm leaves nothing of one sample
        assert change.abs().max() > 0


@pytest.mark.parametrize("rate", [24000, 8000])
def test_other_rates(source, rate):
    reference, estimate = pair(2, rate // 4, rate)
    loss = WavLMLoss(source, sample_rate=rate)
    expected = WavLMLoss(source)(resample(reference, rate, 16000), resample(estimate, rate, 16000))
    assert loss(reference, estimate).item() == pytest.approx(expected.item(), rel=1e-4)
    assert expected.item() != pytest.approx(WavLMLoss(source)(reference, estimate).item(), rel=1e-2)
    change = gradient(loss, reference, estimate)
    assert change.shape == estimate.shape
    assert change.isfinite().all() and (change.abs().amax(1) > 0).all()


def test_autocast_is_off_inside(source):
    loss = WavLMLoss(source)
    reference, estimate = pair()
    with torch.autocast("cpu", torch.bfloat16):
        inside = loss(reference, estimate)
    assert inside.equal(loss(reference, estimate))
    assert torch.autograd.grad(inside, estimate)[0].equal(gradient(loss, reference, estimate))
    assert loss(reference.bfloat16(), estimate.bfloat16()).dtype == torch.float32


def test_teacher_is_frozen_and_no_part_of_what_holds_it(source):
    loss = WavLMLoss(source)
    holder = nn.Module()
    holder.loss = loss
    assert not list(holder.parameters()) and not holder.state_dict()
    holder.train()
    assert not any(module.training for module in loss.teacher.modules())
    assert not any(p.requires_grad or p.dtype != torch.float32 for p in loss.teacher.parameters())
    before = copy.deepcopy(loss.teacher.state_dict())
    reference, estimate = pair()
    loss(reference, estimate).backward()
    assert all(p.grad is None for p in loss.teacher.parameters())
    assert all(value.equal(before[name]) for name, value in loss.teacher.state_dict().items())


@pytest.mark.parametrize("name, config", [
    ("WAVLM_BASE_PLUS", BASE), ("WAVLM_BASE", BASE), ("WAVLM_LARGE", LARGE)])
def test_torchaudio_bundles_from_the_cache(name, config, hub, no_network, monkeypatch):
    """torchaudio's own loader, with a smaller network in its bundle and the weights in torch.hub's
    cache."""
    bundle = getattr(torchaudio.pipelines, name)
    large = name == "WAVLM_LARGE"
    monkeypatch.setattr(torchaudio.pipelines, name, dataclasses.replace(bundle, _params=config))
    torch.manual_seed(1)
    model = torchaudio.models.wavlm_model(**config).eval()
    (hub / "checkpoints").mkdir(parents=True)
    torch.save(model.state_dict(), hub / "checkpoints" / f"{name.lower()}.pth")

    loss = WavLMLoss(f"torchaudio/{name}")
    reference, estimate = pair()
    with torch.no_grad():
        inputs = (functional.layer_norm(x, x.shape[1:]) if large else x
                  for x in (reference, estimate))
        states = [model.extract_features(x)[0] for x in inputs]
    expected = sum((a - b).abs().mean() for a, b in zip(*states)) / 3
    assert loss(reference, estimate).item() == pytest.approx(expected.item(), rel=1e-4)
    assert gradient(loss, reference, estimate).abs().max() > 0


def test_repository_from_the_cache(hub, no_network, folders):
    """owner/repo:ref that torch.hub has downloaded before."""
    hub.mkdir()
    (hub / "bshall_knn-vc_v1").symlink_to(folders["unilm"])
    expected = WavLMLoss(folders["unilm"])(*pair()).item()
    assert WavLMLoss("bshall/knn-vc:v1")(*pair()).item() == expected
    (hub / "bshall_knn-vc_main").symlink_to(folders["unilm"])
    assert WavLMLoss()(*pair()).item() == expected


def one_line(error, *parts):
    message = str(error.value)
    assert "\n" not in message and all(part in message for part in parts), message


@pytest.mark.parametrize("source", [
    "bshall/knn-vc", "bshall/knn-vc:v1", "torchaudio/WAVLM_BASE_PLUS"])
def test_without_a_network(source, hub, no_network, monkeypatch):
    # It is built before its weights are sought.
    small = dataclasses.replace(torchaudio.pipelines.WAVLM_BASE_PLUS, _params=BASE)
    monkeypatch.setattr(torchaudio.pipelines, "WAVLM_BASE_PLUS", small)
    with pytest.raises(RuntimeError) as error:
        WavLMLoss(source)
    one_line(error, source, str(hub), "run once with a network", "torch.hub.set_dir",
             "hubconf.py has wavlm_large")


def test_folders_that_will_not_do(tmp_path):
    with pytest.raises(RuntimeError) as error:
        WavLMLoss(str(tmp_path))
    one_line(error, f"no WavLM from {tmp_path}", "hubconf.py")
    for text, part in (
            ("def other(): pass", "wavlm_large"),
            ("import not_installed_anywhere", "not_installed_anywhere"),
            ("raise ValueError('two\\nlines')", "two lines"),
            ("def wavlm_large(): pass", "pretrained"),
            ("import torch\ndef wavlm_large(**more): return torch.nn.Linear(1, 1)",
             "gave a Linear, not WavLM")):
        (tmp_path / "hubconf.py").write_text(text)
        with pytest.raises(RuntimeError) as error:
            WavLMLoss(str(tmp_path))
        one_line(error, str(tmp_path), part)


def test_what_cannot_be_meant(folders):
    for source in ("", "/no/such/folder", "knn-vc", "a/b/c"):
        with pytest.raises(ValueError, match="is not a folder, not owner/repo"):
            WavLMLoss(source)
    with pytest.raises(ValueError, match="torchaudio has WAVLM_BASE, WAVLM_BASE_PLUS, WAVLM_LARGE"):
        WavLMLoss("torchaudio/HUBERT_BASE")
    with pytest.raises(ValueError, match="no distance 'l3', only l1, l2, cosine"):
        WavLMLoss(folders["base"], distance="l3")
    loss = WavLMLoss(folders["base"])
    for a, b in (((2, 800), (2, 801)), ((800,), (800,)), ((2, 1, 800), (2, 1, 800))):
        with pytest.raises(ValueError, match=r"takes two \[B, T\] of one shape"):
            loss(torch.zeros(a), torch.zeros(b))
