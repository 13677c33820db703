"""VIP as TorchRL transforms: pixels to embeddings, distance to a goal to reward.

Shapes: frames ``[*B, 3, H, W]`` or ``[*B, H, W, 3]``, embeddings ``[*B, D]``, rewards ``[*B, 1]``,
where ``*B`` is the environment's (or the replay sample's) batch shape.
"""

from torchrl_vip.transforms.reward import VIPRewardTransform
from torchrl_vip.transforms.robot import MaskRobot
from torchrl_vip.transforms.vip import EncoderLike, VIPTransform

__all__ = ["EncoderLike", "MaskRobot", "VIPRewardTransform", "VIPTransform"]
