"""Offline learning from a few labelled demonstrations, on frozen embeddings.

Reward-weighted regression, behaviour cloning, TD3+BC and IQL by one data path;
``python examples/offline_rl.py --help`` shows it whole.
"""

from torchrl_vip.offline.learner import METHODS, Learner, Settings, load_policy, save_policy
from torchrl_vip.offline.losses import RWRLoss
from torchrl_vip.offline.policies import make_actor
from torchrl_vip.offline.steps import read_steps, reward_to_come
from torchrl_vip.offline.views import shifted_views

__all__ = [
    "METHODS",
    "Learner",
    "RWRLoss",
    "Settings",
    "load_policy",
    "make_actor",
    "read_steps",
    "reward_to_come",
    "save_policy",
    "shifted_views",
]
