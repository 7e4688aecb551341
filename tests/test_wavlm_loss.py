"""wavlm_loss.py with tiny teachers of both kinds, from a folder, from torchaudio's cache, and from
nowhere."""

import copy
import dataclasses
import socket

import pytest
import torch
from torch import nn

from files.resample import resample
from helpers import LARGE, TORCHAUDIO, voices
from wavlm_loss import WavLMLoss

torchaudio = pytest.importorskip("torchaudio")  # whose networks are the teachers

BASE = LARGE | dict(extractor_mode="group_norm", encoder_layer_norm_first=False)

UNILM = """
import torch
from torch import nn

class WavLM(nn.Module):
    def __init__(self, dims=16):
        super().__init__()
        self.feature_extractor = nn.Sequential(nn.Conv1d(1, 8, 400, 320, bias=False), nn.GELU())
        self.project = nn.Sequential(nn.LayerNorm(8), nn.Linear(8, dims))
        self.encoder = nn.Module()
        self.encoder.pos_conv = nn.Conv1d(dims, dims, 5, padding=2, groups=4)
        self.encoder.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(dims, 4, 2 * dims, 0.5) for _ in range(3))
        self.feature_grad_mult = 0.1

    def extract_features(self, source, padding_mask=None, output_layer=None,
                         ret_layer_results=False):
        features, share = self.feature_extractor(source[:, None]), self.feature_grad_mult
        features = share * features + (1 - share) * features.detach()
        x = self.project(features.transpose(1, 2))
        x += self.encoder.pos_conv(x.transpose(1, 2)).transpose(1, 2)
        x = x.transpose(0, 1)
        results = [(x, None)]
        for layer in self.encoder.layers[:output_layer]:
            results.append((layer(results[-1][0]), None))
        x = results[-1][0].transpose(0, 1)
        return ((x, results) if ret_layer_results else x), padding_mask

def wavlm_large(pretrained=True, progress=True, device="cuda"):
    torch.manual_seed(0)
    return WavLM().to(device).train()
"""


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """torch.hub's cache is an empty folder, and there is no network."""
    def fail(*args, **more):
        raise socket.gaierror("no network")
    monkeypatch.setattr(socket, "getaddrinfo", fail)
    before = torch.hub.get_dir()
    torch.hub.set_dir(tmp_path / "hub")
    yield tmp_path / "hub"
    torch.hub.set_dir(before)


@pytest.fixture(scope="module", autouse=True)
def folders(tmp_path_factory):
    """Folders as torch.hub takes them, by what their WavLM is."""
    folders = {}
    for name, text, config in (
            ("large", TORCHAUDIO, LARGE), ("base", TORCHAUDIO, BASE), ("unilm", UNILM, None)):
        folders[name] = tmp_path_factory.mktemp(name)
        (folders[name] / "hubconf.py").write_text(text.replace("{config}", repr(config)))
    return {name: str(folder) for name, folder in folders.items()}


@pytest.fixture(params=["large", "base", "unilm"])
def source(request, folders):
    return folders[request.param]


def pair(items=2, samples=3200, rate=16000):
    """A reference, and an estimate 10 dB above its noise that wants a gradient."""
    reference = voices(items, samples / rate, rate=rate)
    noise = torch.randn(reference.shape, generator=torch.Generator().manual_seed(1))
    return reference, (reference + 0.04 * noise).requires_grad_()


def gradient(loss, reference, estimate):
    return torch.autograd.grad(loss(reference, estimate), estimate)[0]


@pytest.mark.parametrize("distance", ["l1", "l2", "cosine"])
def test_value_and_gradient(source, distance):
    loss, (reference, estimate) = WavLMLoss(source, distance=distance), pair()
    assert loss(reference, estimate).dtype == torch.float32
    closer = (reference + estimate.detach()) / 2
    most = 2 if distance == "cosine" else 9
    assert 0 < loss(reference, closer) < loss(reference, estimate) < most
    assert loss(reference, reference).item() == pytest.approx(0, abs=1e-6)
    change = gradient(loss, reference, estimate)
    assert change.isfinite().all() and (change.abs().amax(1) > 0).all()
    direction = 0.003 * change / change.norm()
    with torch.no_grad():
        rise = loss(reference, estimate + direction) - loss(reference, estimate - direction)
    assert rise.item() / 0.006 == pytest.approx(change.norm().item(), rel=0.1), "its own gradient"
    reference.requires_grad_()
    loss(reference, estimate).backward()
    assert reference.grad is None


@pytest.mark.parametrize("name", ["large", "base", "unilm"])
def test_hidden_states_are_the_models_own(folders, name):
    x, _ = pair()
    states = WavLMLoss(folders[name]).hidden(x)
    if name != "base":  # which has no normalised input
        x = (x - x.mean(1, keepdim=True)) / (x.var(1, correction=0, keepdim=True) + 1e-5).sqrt()
    model = torch.hub.load(folders[name], "wavlm_large", source="local", device="cpu").eval()
    with torch.no_grad():
        if name == "unilm":
            expected = [model.extract_features(x, output_layer=number)[0] for number in (1, 2, 3)]
        else:
            expected = model.extract_features(x)[0]
    torch.testing.assert_close(states, expected, rtol=1e-4, atol=1e-4)


def test_layers(source):
    reference, estimate = pair(1)
    with torch.no_grad():
        single = [WavLMLoss(source, (number,))(reference, estimate).item() for number in (1, 2, 3)]
        for layers, expected in (((1, 2, 3), single), ([3, 1], single[::2])):
            value = WavLMLoss(source, layers)(reference, estimate).item()
            assert value == pytest.approx(sum(expected) / len(expected), rel=1e-5)
    assert len(set(single)) == 3
    assert WavLMLoss(source).layers == (1, 2, 3)
    assert WavLMLoss(source, distance="cosine").layers == (3,), "6 where there are 6"
    for layers in ((0,), (1, 4), ()):
        with pytest.raises(ValueError, match="has layers 1 to 3"):
            WavLMLoss(source, layers)


def test_silence(source):
    loss, (reference, estimate) = WavLMLoss(source), pair(3)
    alone = loss(reference[1:2], estimate[1:2]).item()
    estimate = estimate.detach().clone()
    reference[0] = 0  # one with a silent reference, one with a silent estimate
    estimate[2] *= 1e-5
    estimate.requires_grad_()
    assert loss(reference, estimate).item() == pytest.approx(alone, rel=1e-4)
    change = gradient(loss, reference, estimate)
    assert change.isfinite().all() and (change.abs().amax(1) > 0).tolist() == [False, True, False]
    silence = torch.zeros(2, 3200, requires_grad=True)
    assert loss(silence.detach(), silence).item() == 0
    assert not gradient(loss, silence.detach(), silence).any()
    assert loss(estimate, estimate + torch.nan).isnan(), "what is broken is not taken for silence"


@pytest.mark.parametrize("samples", [1, 150, 400])
def test_short_crops(source, samples):
    loss = WavLMLoss(source)
    reference, estimate = (x[:, 1000:1000 + samples] + 0.1 for x in pair(2, 5000))
    assert loss.hidden(estimate)[0].shape[:2] == (2, 1)
    change = gradient(loss, reference, estimate)
    assert change.shape == (2, samples) and change.isfinite().all()
    assert change.any() or samples == 1, "layer norm leaves nothing of one sample"


def test_another_rate(source):
    reference, estimate = pair(2, 6000, 24000)
    expected = WavLMLoss(source)(*(resample(x, 24000, 16000) for x in (reference, estimate))).item()
    assert expected != pytest.approx(WavLMLoss(source)(reference, estimate).item(), rel=1e-2)
    loss = WavLMLoss(source, sample_rate=24000)
    assert loss(reference, estimate).item() == pytest.approx(expected, rel=1e-4)
    assert (gradient(loss, reference, estimate).abs().amax(1) > 0).all()


def test_autocast_is_off_and_the_teacher_frozen(source):
    loss, (reference, estimate) = WavLMLoss(source), pair()
    holder = nn.Module()
    holder.loss = loss
    assert not list(holder.parameters()) and not holder.state_dict(), "it is no part of a network"
    holder.train()
    assert not any(module.training for module in loss.teacher.modules())
    before = copy.deepcopy(loss.teacher.state_dict())
    with torch.autocast("cpu", torch.bfloat16):
        inside = loss(reference, estimate)
    assert inside.equal(loss(reference, estimate))
    assert torch.autograd.grad(inside, estimate)[0].equal(gradient(loss, reference, estimate))
    assert loss(reference.bfloat16(), estimate.bfloat16()).dtype == torch.float32
    assert all(p.grad is None for p in loss.teacher.parameters())
    assert all(value.equal(before[name]) for name, value in loss.teacher.state_dict().items())


@pytest.mark.parametrize("name, config", [("WAVLM_BASE_PLUS", BASE), ("WAVLM_LARGE", LARGE)])
def test_torchaudio_bundles_from_the_cache(name, config, hub, folders, monkeypatch):
    """torchaudio's own loader, with a smaller network in its bundle and the weights in torch.hub's
    cache."""
    bundle = dataclasses.replace(getattr(torchaudio.pipelines, name), _params=config)
    monkeypatch.setattr(torchaudio.pipelines, name, bundle)
    own = WavLMLoss(folders["large" if config == LARGE else "base"])
    (hub / "checkpoints").mkdir(parents=True)
    torch.save(own.teacher.state_dict(), hub / "checkpoints" / f"{name.lower()}.pth")
    assert WavLMLoss(f"torchaudio/{name}")(*pair()).item() == pytest.approx(own(*pair()).item())


def test_repository_from_the_cache(hub, folders):
    """owner/repo:ref that torch.hub has downloaded before."""
    hub.mkdir()
    expected = WavLMLoss(folders["unilm"])(*pair()).item()
    for ref, more in (("v1", ["bshall/knn-vc:v1"]), ("main", [])):
        (hub / f"bshall_knn-vc_{ref}").symlink_to(folders["unilm"])
        assert WavLMLoss(*more)(*pair()).item() == expected


@pytest.mark.parametrize("source", ["bshall/knn-vc:v1", "torchaudio/WAVLM_BASE_PLUS"])
def test_without_a_network(source, hub, monkeypatch):
    # It is built before its weights are sought.
    small = dataclasses.replace(torchaudio.pipelines.WAVLM_BASE_PLUS, _params=BASE)
    monkeypatch.setattr(torchaudio.pipelines, "WAVLM_BASE_PLUS", small)
    with pytest.raises(RuntimeError, match=f"^.*{source}.*{hub}.*run once with a network.*torch.hub"
                                           ".set_dir.*hubconf.py has wavlm_large.*$"):
        WavLMLoss(source)


@pytest.mark.parametrize("text, part", [
    (None, "hubconf.py"), ("def other(): pass", "wavlm_large"),
    ("import not_installed_anywhere", "not_installed_anywhere"),
    ("raise ValueError('two\\nlines')", "two lines"), ("def wavlm_large(): pass", "pretrained"),
    ("import torch\ndef wavlm_large(**more): return torch.nn.Linear(1, 1)",
     "gave a Linear, not WavLM")])
def test_folders_that_will_not_do(tmp_path, text, part):
    if text:
        (tmp_path / "hubconf.py").write_text(text)
    with pytest.raises(RuntimeError, match=f"^.*{tmp_path}.*{part}.*$"):
        WavLMLoss(str(tmp_path))


def test_what_cannot_be_meant(folders):
    for source, more, message in (
            *((source, {}, "is not a folder, not owner/repo")
              for source in ("", "/no/such/folder", "knn-vc", "a/b/c")),
            ("torchaudio/HUBERT_BASE", {}, "torchaudio has WAVLM_BASE, WAVLM_BASE_PLUS, WAV"),
            (folders["base"], {"distance": "l3"}, "no distance 'l3', only l1, l2, cosine")):
        with pytest.raises(ValueError, match=message):
            WavLMLoss(source, **more)
    loss = WavLMLoss(folders["base"])
    for a, b in (((2, 800), (2, 801)), ((800,), (800,)), ((2, 1, 800), (2, 1, 800))):
        with pytest.raises(ValueError, match=r"takes two \[B, T\] of one shape"):
            loss(torch.zeros(a), torch.zeros(b))
