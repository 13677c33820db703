"""The transforms as configs of Hydra, so that a YAML file of TorchRL's trainers can name them.

Their fields are read from the signatures of the transforms: an option added there is one here.
"""

from __future__ import annotations

import inspect
from dataclasses import field, make_dataclass
from typing import Any

import torch

from torchrl_vip.transforms import MaskRobot, VIPRewardTransform, VIPTransform


def register_configs() -> None:
    """Add ``torchrl_vip``, ``torchrl_vip_reward`` and ``torchrl_vip_mask_robot`` to the group ``transform``
    of Hydra's ConfigStore.

    They build :class:`VIPTransform`, :class:`VIPRewardTransform` and :class:`MaskRobot` and take every option
    of these.
    TorchRL's own ``vip`` and ``vip_reward`` are other classes. Call it before Hydra composes a config; a
    second call changes nothing.

    In YAML a nested key is a list: ``reward_key: [agents, reward]``. In a list of keys it is a list within
    the list: ``in_keys: [[pixels, corner4]]``, and so it is in a ``mask_key`` of several cameras. A dtype is
    its name: ``dtype: bfloat16``. What YAML cannot write, a network or an image, is a node with a
    ``_target_`` of its own.

    Raises:
        ImportError: Hydra is not installed.

    Examples:
        >>> register_configs()  # doctest: +SKIP
        >>> with hydra.initialize(None):  # doctest: +SKIP
        ...     cfg = hydra.compose(overrides=["+transform=torchrl_vip", "transform.blur=1.5"])
        >>> hydra.utils.instantiate(cfg.transform)  # doctest: +SKIP
        VIPTransform(['pixels'] -> ['vip_vec'])
    """
    try:
        from hydra.core.config_store import ConfigStore
    except ImportError as error:
        raise ImportError(
            'register_configs needs Hydra, which is not installed: pip install "hydra-core>=1.3"'
        ) from error
    store = ConfigStore.instance()
    store.store(group="transform", name="torchrl_vip", node=VIPTransformConfig)
    store.store(group="transform", name="torchrl_vip_reward", node=VIPRewardTransformConfig)
    store.store(group="transform", name="torchrl_vip_mask_robot", node=MaskRobotConfig)


def vip_transform(**options: Any) -> VIPTransform:
    """A VIPTransform from what YAML can write, see :func:`register_configs`."""
    return VIPTransform(**_from_yaml(options))


def vip_reward_transform(**options: Any) -> VIPRewardTransform:
    """A VIPRewardTransform from what YAML can write, see :func:`register_configs`."""
    return VIPRewardTransform(**_from_yaml(options))


def mask_robot(**options: Any) -> MaskRobot:
    """A MaskRobot from what YAML can write, see :func:`register_configs`."""
    return MaskRobot(**_from_yaml(options))


def _from_yaml(options: dict[str, Any]) -> dict[str, Any]:
    """Options with nested keys as tuples and dtypes as torch's, where YAML has lists and names."""
    options = dict(options)
    for name, value in options.items():
        several = name.endswith("_keys") or name == "keys_in"
        if name == "mask_key" and isinstance(value, list):
            several = any(isinstance(key, list) for key in value)
        if isinstance(value, list) and name.endswith("_key") and not several:
            options[name] = tuple(value)
        elif isinstance(value, list) and several:
            options[name] = [tuple(key) if isinstance(key, list) else key for key in value]
        elif isinstance(value, str) and name == "dtype":
            options[name] = getattr(torch, value.removeprefix("torch."), None)
            if not isinstance(options[name], torch.dtype):
                raise ValueError(f"dtype={value} is invalid: wanted a name such as bfloat16.")
    return options


def _config_of(transform: type, build: Any) -> type:
    """A dataclass of the transform's options and their defaults, from which Hydra calls ``build``."""
    options = inspect.signature(transform).parameters.values()
    hydra = {"_target_": f"{__name__}.{build.__name__}", "_convert_": "all", "_partial_": False}
    fields: list[tuple[str, Any, Any]] = [
        (option.name, Any, field(default=option.default)) for option in options
    ]
    fields += [(name, type(value), field(default=value)) for name, value in hydra.items()]
    namespace = {"__module__": __name__}  # where pickle looks for it
    return make_dataclass(f"{transform.__name__}Config", fields, namespace=namespace)


VIPTransformConfig = _config_of(VIPTransform, vip_transform)
VIPRewardTransformConfig = _config_of(VIPRewardTransform, vip_reward_transform)
MaskRobotConfig = _config_of(MaskRobot, mask_robot)
