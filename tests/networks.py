"""Small networks and frames that the tests of encoders share."""

import functools

import torch
from torch import nn
from torchvision.models.resnet import BasicBlock, ResNet

from torchrl_vip import VIPEncoder

SIZE = 32  # small: what is tested here does not depend on it


def images(n: int = 5, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (n, 3, 40, 48), dtype=torch.uint8, generator=generator)


@functools.cache
def trained_encoder(block: type = BasicBlock) -> VIPEncoder:
    """A small ResNet whose batch norms have seen data, so that folding them has an effect."""
    torch.manual_seed(0)
    resnet = ResNet(block, [1, 1, 1, 1], num_classes=32)
    encoder = VIPEncoder(resnet, dim=16, image_size=SIZE).train()
    for module in encoder.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.2)
    with torch.no_grad():
        for seed in range(3):
            encoder(images(8, seed))
    return encoder.eval()


class Counting(nn.Module):
    """Mean colour, [N, 3]; counts the frames it is shown and the largest batch."""

    def __init__(self):
        super().__init__()
        self.frames, self.largest = 0, 0

    def forward(self, frames):
        self.frames += len(frames)
        self.largest = max(self.largest, len(frames))
        return frames.mean((-2, -1))


def tiny_resnet_encoder() -> VIPEncoder:
    """A small ResNet of its own, to be trained."""
    torch.manual_seed(0)
    return VIPEncoder(ResNet(BasicBlock, [1, 1, 1, 1], num_classes=32), dim=16, image_size=SIZE)
