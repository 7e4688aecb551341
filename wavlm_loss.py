"""The distance between WavLM's hidden states of two waveforms, as a loss.

    loss = WavLMLoss("bshall/knn-vc", sample_rate=24000, device="cuda")
    loss(reference, estimate).backward()

WavLM (Chen et al. 2022, arXiv 2110.13900) comes from torch.hub, which keeps what it has downloaded
in torch.hub.get_dir(), and stays frozen. Distances of its hidden states are in use elsewhere: L1
over all layers in StyleTTS 2 (Li et al. 2023, arXiv 2306.07691), cosine at layer 6 in kNN-VC (Baas
et al. 2023, arXiv 2305.18975).

Shapes: B batch, T samples, N frames of 20 ms, D dimensions of a hidden state.
"""

import inspect
import os
import re

import torch
from torch import Tensor, nn
from torch.nn import functional

from files.resample import resample

RATE = 16000  # Hz, of all WavLM models
SHORTEST = 400  # samples at this rate that make one frame
SILENCE = 1e-6  # mean square, -60 dBFS: layer norm would make noise of it, and enormous gradients
BUNDLES = ("WAVLM_BASE", "WAVLM_BASE_PLUS", "WAVLM_LARGE")
DISTANCES = {  # [B, N, D] x 2 -> [B]
    "l1": lambda a, b: (a - b).abs().mean((1, 2)),
    "l2": lambda a, b: (a - b).square().mean((1, 2)),
    "cosine": lambda a, b: 1 - functional.cosine_similarity(a, b, -1).mean(1),
}


def load_teacher(source: str, device: str) -> nn.Module:
    """The WavLM module of a source, as WavLMLoss takes it."""
    owner, _, name = source.partition("/")
    local = os.path.isdir(source)
    bundle = not local and owner == "torchaudio"
    if bundle and name not in BUNDLES:
        raise ValueError(f"{source}: torchaudio has {', '.join(BUNDLES)}")
    if not (local or re.fullmatch(r"[\w.-]+/[\w.-]+(:[\w./-]+)?", source)):
        raise ValueError(f"{source} is not a folder, not owner/repo or owner/repo:ref, and not "
                         "torchaudio/NAME")
    try:
        if bundle:
            import torchaudio
            options = dict(weights_only=True, map_location="cpu")
            return getattr(torchaudio.pipelines, name).get_model(dl_kwargs=options)
        return torch.hub.load(source, "wavlm_large", source="local" if local else "github",
                              trust_repo=True, pretrained=True, progress=True, device=str(device))
    except Exception as error:  # a hubconf.py may raise anything
        tried = ("torchaudio's weights" if bundle else
                 f"entry wavlm_large of the {'folder' if local else 'GitHub repository'}")
        raise RuntimeError(
            f"no WavLM from {source} ({tried}, with torch.hub's cache {torch.hub.get_dir()}): "
            f"{type(error).__name__}: {' '.join(str(error).split())}; run once with a network, "
            "point torch.hub.set_dir at a cache that has it, or give a folder whose hubconf.py has "
            "wavlm_large(pretrained, progress, device). torchaudio, where it is needed, must be "
            f"the one built for torch {torch.__version__}: pip install -r requirements.txt"
        ) from error


class WavLMLoss:
    """loss(reference [B, T], estimate [B, T]) -> scalar, 0 where WavLM hears no difference.

    source: "owner/repo" or "owner/repo:ref" on GitHub, or a folder, with an entry
        wavlm_large(pretrained, progress, device) in its hubconf.py that returns WavLM as in
        microsoft/unilm or torchaudio; or "torchaudio/" and a name from BUNDLES
    layers: numbers of the transformer's layers whose outputs are compared, from 1; by default all,
        or 6 for cosine
    distance: of two hidden states: "l1" or "l2", the mean absolute or squared difference; "cosine",
        1 less the cosine, 0 to 2
    sample_rate: of the waveforms in Hz
    device: of the waveforms

    Raises ValueError for an unknown source, distance or layer, RuntimeError where WavLM cannot be
    loaded. Not a module, so that it adds neither weights nor parameters to a model that holds it.
    """

    def __init__(self, source: str = "bshall/knn-vc", layers=None, distance: str = "l1",
                 sample_rate: int = RATE, device="cpu"):
        if distance not in DISTANCES:
            raise ValueError(f"there is no distance {distance!r}, only {', '.join(DISTANCES)}")
        self.distance, self.sample_rate = DISTANCES[distance], sample_rate
        teacher = load_teacher(source, device)
        if hasattr(teacher, "normalize_waveform"):  # torchaudio's wrapper: it normalises a batch
            teacher = teacher.model
        accepted = inspect.signature(getattr(teacher, "extract_features", lambda: None)).parameters
        self.unilm = "ret_layer_results" in accepted
        if not self.unilm and "num_layers" not in accepted:
            raise RuntimeError(f"{source} gave a {type(teacher).__name__}, not WavLM as in "
                               "microsoft/unilm or torchaudio")
        self.teacher = teacher.float().to(device).eval().requires_grad_(False)
        if hasattr(teacher.encoder, "pos_conv"):
            # x += pos_conv(x) would overwrite what the conv's backward needs
            teacher.encoder.pos_conv.register_forward_pre_hook(
                lambda module, inputs: (inputs[0].clone(),))
        teacher.feature_grad_mult = 1.0  # unilm's; pretraining damped the gradient we are after
        # Large was trained on waveforms of unit variance; Base on raw ones, and its first conv has
        # a group norm instead
        self.normalised = not any(isinstance(layer, nn.GroupNorm)
                                  for layer in teacher.feature_extractor.modules())

        count = len(getattr(teacher.encoder, "transformer", teacher.encoder).layers)
        if layers is None:
            layers = (min(6, count),) if distance == "cosine" else range(1, count + 1)
        self.layers = tuple(layers)
        if not self.layers or not set(self.layers) <= set(range(1, count + 1)):
            raise ValueError(f"WavLM from {source} has layers 1 to {count}, not "
                             f"{', '.join(map(str, self.layers)) or 'none'}")

    def hidden(self, x: Tensor) -> list[Tensor]:
        """x [B, T] at RATE -> the outputs of the layers, each [B, N, D]."""
        if self.normalised:
            x = functional.layer_norm(x, x.shape[1:])
        x = functional.pad(x, (0, max(0, SHORTEST - x.shape[1])))
        if self.unilm:
            (_, states), _ = self.teacher.extract_features(x, output_layer=max(self.layers),
                                                           ret_layer_results=True)
            # [N, B, D]; the first is what the first layer gets
            states = [state.transpose(0, 1) for state, _ in states[1:]]
        else:
            states, _ = self.teacher.extract_features(x, num_layers=max(self.layers))
        return [states[number - 1] for number in self.layers]

    def __call__(self, reference: Tensor, estimate: Tensor) -> Tensor:
        """reference, estimate [B, T] of any float type, full scale 1 -> the mean over layers and
        items, float32. Items of which either is silent don't count; where all are, the loss is 0.
        The gradient reaches the estimate only."""
        if reference.shape != estimate.shape or estimate.ndim != 2:
            raise ValueError(f"WavLMLoss takes two [B, T] of one shape, not "
                             f"{list(reference.shape)} and {list(estimate.shape)}")
        with torch.autocast(estimate.device.type, enabled=False):
            reference, estimate = (resample(x.float(), self.sample_rate, RATE)
                                   for x in (reference, estimate))
            quieter = torch.minimum(reference.square().mean(1), estimate.square().mean(1))
            heard = ~(quieter < SILENCE)  # NaN is heard, and shown
            # Something else is heard in the place of silence, and not counted: to pick items would
            # make the device wait for the host.
            tone = torch.sin(0.3 * torch.arange(reference.shape[1], device=reference.device))
            reference, estimate = (torch.where(heard[:, None], x, tone)
                                   for x in (reference, estimate))
            with torch.no_grad():
                targets = self.hidden(reference)
            distances = torch.stack(list(map(self.distance, targets, self.hidden(estimate))))
            count = heard.sum().clamp_min(1)
            return torch.where(heard, distances.mean(0), 0).sum() / count
