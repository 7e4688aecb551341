"""A multi-scale STFT discriminator, and the adversary, which trains one beside the network.

    discriminator = MultiScaleSTFTDiscriminator()
    real_logits, real_maps = discriminator(real)
    fake_logits, fake_maps = discriminator(fake)
    discriminator_loss(real_logits, discriminator(fake.detach())[0])               # its own loss
    generator_loss(fake_logits) + 2 * feature_matching_loss(real_maps, fake_maps)  # the network's

The architecture and the hinge losses are those of EnCodec (Défossez et al. 2022, arXiv 2210.13438,
section 3.4; as in facebookresearch's encodec and audiocraft, MIT), written anew. The weights' names
are theirs too: a state dict of either loads here with strict=True. encodec's configuration is the
default; audiocraft's is n_ffts=(1024, 2048, 512, 256, 128), slope=0.3.

Shapes: B batch, C channels, T samples, N frames, F bins.
"""

from collections import OrderedDict

import torch
from torch import Tensor, distributed, nn
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils.parametrizations import weight_norm

Logits = list[Tensor]  # of each scale [B, 1, N, F / 8]
Maps = list[list[Tensor]]  # of each scale, after each activation [B, filters, N, F / 1 to 8]
FAKES = {"stego": "cover", "cover^": "cover", "secret^": "secret"}  # and the waves they imitate


def conv(inputs: int, outputs: int, kernel: tuple, stride: int = 1, dilation: int = 1,
         norm: bool = True) -> nn.Module:
    """A conv over (time, frequency) that keeps the shape, but for a stride in frequency; the
    dilation is in time. Its weights are named conv.*, as in the originals."""
    padding = (kernel[0] // 2 * dilation, kernel[1] // 2)
    layer = nn.Conv2d(inputs, outputs, kernel, (1, stride), padding, (dilation, 1))
    return nn.Sequential(OrderedDict(conv=weight_norm(layer) if norm else layer))


class STFTDiscriminator(nn.Module):
    """One scale: convs over the complex STFT, whose receptive field grows in time by dilation and
    in frequency by stride. The STFT, at hops of a quarter of its Hann window, is divided by the
    window's norm."""

    def __init__(self, n_fft: int, filters: int = 32, channels: int = 1, slope: float = 0.2):
        super().__init__()
        self.slope = slope
        self.spec_transform = nn.Module()  # the originals' place for the window
        self.spec_transform.register_buffer("window", torch.hann_window(n_fft))
        self.convs = nn.ModuleList([
            conv(2 * channels, filters, (3, 9), norm=False),
            *(conv(filters, filters, (3, 9), stride=2, dilation=dilation)
              for dilation in (1, 2, 4)),
            conv(filters, filters, (3, 3)),
        ])
        self.conv_post = conv(filters, 1, (3, 3))

    def forward(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        """x [B, C, T], T at least n_fft -> logits [B, 1, N, F / 8] and the 5 feature maps, in the
        precision of the autocast."""
        window = self.spec_transform.window
        with torch.autocast(x.device.type, enabled=False):  # half precision has too small a range
            spectrum = torch.stft(x.float().flatten(0, 1), len(window), len(window) // 4,
                                  window=window, center=False, return_complex=True)
            spectrum = (spectrum / window.norm()).unflatten(0, x.shape[:2]).transpose(2, 3)
        x = torch.cat([spectrum.real, spectrum.imag], 1)  # [B, 2C, N, F]
        maps = []
        for layer in self.convs:
            x = functional.leaky_relu(layer(x), self.slope)
            maps.append(x)
        return self.conv_post(x), maps


class MultiScaleSTFTDiscriminator(nn.Module):
    """One discriminator for each window length; hops are a quarter of it. At the default, 283,398
    parameters.

    n_ffts: window lengths in samples, each a multiple of 4
    filters: channels of each conv
    channels: of the waveform
    slope: of the leaky ReLUs below zero
    """

    def __init__(self, n_ffts=(1024, 2048, 512), filters: int = 32, channels: int = 1,
                 slope: float = 0.2):
        super().__init__()
        self.discriminators = nn.ModuleList(
            STFTDiscriminator(n_fft, filters, channels, slope) for n_fft in n_ffts)

    def forward(self, x: Tensor) -> tuple[Logits, Maps]:
        """x [B, C, T], T at least the longest window -> logits, above zero for what is taken for
        real, and feature maps."""
        scales = [scale(x) for scale in self.discriminators]
        return [logits for logits, _ in scales], [maps for _, maps in scales]


def mean(terms) -> Tensor:
    return torch.stack(list(terms)).mean()


def discriminator_loss(real_logits: Logits, fake_logits: Logits) -> Tensor:
    """Hinge loss, the mean over scales: 2 where it cannot tell, 0 where it is right with a margin
    of 1. The fakes must come from detached waveforms."""
    return mean(functional.relu(1 - real.float()).mean() + functional.relu(1 + fake.float()).mean()
                for real, fake in zip(real_logits, fake_logits))


def generator_loss(fake_logits: Logits) -> Tensor:
    """The mean over scales of -D(fake): unbounded, least where the discriminator is misled."""
    return mean(-fake.float().mean() for fake in fake_logits)


def feature_matching_loss(real_maps: Maps, fake_maps: Maps) -> Tensor:
    """Mean absolute difference of the feature maps, the mean over maps and scales; no gradient
    reaches the real side."""
    return mean((real.detach().float() - fake.float()).abs().mean()
                for scales in zip(real_maps, fake_maps) for real, fake in zip(*scales))


class Adversary:
    """The discriminator and what trains it. It learns before it judges, on fakes that are detached;
    while it judges, its weights are frozen.

    learning_rate: of its Adam
    clip: largest norm of its gradient
    amp: the context in which it runs, as torch.autocast
    fp16: whether that is half precision, whose gradients are scaled
    """

    def __init__(self, learning_rate: float, clip: float, device, amp, fp16: bool = False):
        self.clip, self.amp = clip, amp
        self.network = self.parallel = MultiScaleSTFTDiscriminator().to(device)
        if distributed.is_initialized():
            self.parallel = DistributedDataParallel(self.network, broadcast_buffers=False)
        self.optimiser = torch.optim.Adam(self.network.parameters(), learning_rate,
                                          betas=(0.5, 0.9), fused=True)
        self.scaler = torch.amp.GradScaler(torch.device(device).type, enabled=fp16)

    def look(self, waves: dict, names, network) -> tuple[Logits, Maps]:
        """Logits and maps of the named waves [B, T], in one batch. Each is divided by the rms of
        its true wave."""
        batch = []
        for name in names:
            rms = waves[FAKES.get(name, name)].square().mean(1, keepdim=True).sqrt()
            batch.append(waves[name] / rms.clamp_min(1e-3))
        with self.amp():
            return network(torch.cat(batch)[:, None])

    def learn(self, waves: dict) -> Tensor:
        """One step of the discriminator. -> its loss, before the step."""
        self.network.requires_grad_(True)
        self.optimiser.zero_grad()
        waves = {name: x.detach() for name, x in waves.items()}
        logits, _ = self.look(waves, ("cover", "secret", *FAKES), self.parallel)
        reals = 2 * len(waves["cover"])
        loss = discriminator_loss([scale[:reals] for scale in logits],
                                  [scale[reals:] for scale in logits])
        self.scaler.scale(loss).backward()
        self.scaler.unscale_(self.optimiser)
        norm = nn.utils.clip_grad_norm_(self.network.parameters(), self.clip)
        self.optimiser.found_inf = (~norm.isfinite()).float()  # skips the step, see train.py
        self.scaler.step(self.optimiser)
        self.scaler.update()
        return loss.detach()

    def judge(self, waves: dict) -> tuple[Tensor, Tensor]:
        """-> the generator's loss and feature matching, over all fakes."""
        self.network.requires_grad_(False)
        with torch.no_grad():
            _, real_maps = self.look(waves, FAKES.values(), self.network)
        logits, fake_maps = self.look(waves, FAKES, self.network)
        return generator_loss(logits), feature_matching_loss(real_maps, fake_maps)

    def state_dict(self) -> dict:
        return {name: getattr(self, name).state_dict()
                for name in ("network", "optimiser", "scaler")}

    def load_state_dict(self, state: dict):
        for name, value in state.items():
            getattr(self, name).load_state_dict(value)
