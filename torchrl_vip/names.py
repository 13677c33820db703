"""The names of ``torchrl_vip`` itself, which it hands on."""

from torchrl_vip.configs import register_configs
from torchrl_vip.encoders import ENCODERS, FrozenEncoder, VIPEncoder
from torchrl_vip.functional import camera_weights, goal_distance, goal_reward, preprocess, vip_loss
from torchrl_vip.losses import VIPLoss
from torchrl_vip.masking import BehindRobot, mask_robot
from torchrl_vip.streaming import VIPReward, VIPRewardWrapper
from torchrl_vip.transforms import MaskRobot, VIPRewardTransform, VIPTransform
from torchrl_vip.weights import CheckpointError, load_vip, save_vip

__all__ = [
    "ENCODERS",
    "BehindRobot",
    "CheckpointError",
    "FrozenEncoder",
    "MaskRobot",
    "VIPEncoder",
    "VIPLoss",
    "VIPReward",
    "VIPRewardTransform",
    "VIPRewardWrapper",
    "VIPTransform",
    "camera_weights",
    "goal_distance",
    "goal_reward",
    "load_vip",
    "mask_robot",
    "preprocess",
    "register_configs",
    "save_vip",
    "vip_loss",
]
