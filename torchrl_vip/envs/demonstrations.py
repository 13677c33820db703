"""Moved: :mod:`torchrl_vip.demonstrations.store`, and the simulators to :mod:`torchrl_vip.envs.planned`."""

from torchrl_vip.moved import moved

__getattr__ = moved(__name__, "torchrl_vip.demonstrations.store")
