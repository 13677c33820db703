"""A stub of LeRobot 0.6's reward models: the names, signatures and files that torchrl_vip.lerobot meets.

It is no LeRobot: no robots, no datasets, no draccus. tests/test_lerobot_reward.py runs against both where
LeRobot itself is installed.
"""

from __future__ import annotations

from pathlib import Path

FILES = {
    "__init__.py": '__version__ = "0.6 (a stub)"\n',
    "utils/__init__.py": "",
    "utils/constants.py": """
OBS_IMAGES = "observation.images"
POLICY_PREPROCESSOR_DEFAULT_NAME = "policy_preprocessor"
POLICY_POSTPROCESSOR_DEFAULT_NAME = "policy_postprocessor"
""",
    "configs/__init__.py": """
from dataclasses import dataclass
from enum import Enum


class FeatureType(str, Enum):
    VISUAL = "VISUAL"
    REWARD = "REWARD"


@dataclass
class PolicyFeature:
    type: FeatureType
    shape: tuple
""",
    "configs/rewards.py": """
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

import yaml

from lerobot.configs import PolicyFeature

CHOICES = {}


@dataclass
class RewardModelConfig:
    input_features: dict = field(default_factory=dict)
    output_features: dict = field(default_factory=dict)
    device: str | None = None
    pretrained_path: str | None = None
    pretrained_revision: str | None = None

    def __post_init__(self):
        self.device = self.device or "cpu"

    @classmethod
    def register_subclass(cls, name):
        return lambda subclass: CHOICES.setdefault(name, subclass)

    @classmethod
    def get_known_choices(cls):
        return dict(CHOICES)

    @property
    def type(self):
        return next(name for name, cls in CHOICES.items() if cls is type(self))

    @property
    def observation_delta_indices(self):
        return None

    def _save_pretrained(self, save_directory):
        text = json.dumps({"type": self.type, **asdict(self)})
        (Path(save_directory) / "config.json").write_text(text)

    @classmethod
    def from_pretrained(cls, folder, *, cli_overrides=(), **hub_options):
        fields = json.loads((Path(folder) / "config.json").read_text())
        for option in cli_overrides:
            name, value = option.removeprefix("--").split("=")
            fields[name] = yaml.safe_load(value)
        for features in (fields["input_features"], fields["output_features"]):
            features.update({k: PolicyFeature(**v) for k, v in features.items()})
        return CHOICES[fields.pop("type")](**fields)
""",
    "processor/__init__.py": """
class PolicyProcessorPipeline:
    def __init__(self, steps=(), name="", to_transition=None, to_output=None):
        self.steps, self.name = list(steps), name

    def __call__(self, batch):
        for step in self.steps:
            batch = step(batch)
        return batch


class AddBatchDimensionProcessorStep:
    def __call__(self, batch):
        return {k: v.unsqueeze(0) if v.ndim == 3 else v for k, v in batch.items()}


class DeviceProcessorStep:
    def __init__(self, device="cpu"):
        self.device = device

    def __call__(self, batch):
        return {k: v.to(self.device) for k, v in batch.items()}


def policy_action_to_transition(action):
    return {"action": action}
""",
    "rewards/pretrained.py": """
from pathlib import Path

from safetensors.torch import load_model, save_model
from torch import nn

from lerobot.configs.rewards import RewardModelConfig


class PreTrainedRewardModel(nn.Module):
    config_class = None
    name = None

    def __init__(self, config, *inputs, **kwargs):
        super().__init__()
        assert isinstance(config, RewardModelConfig)
        self.config = config

    def save_pretrained(self, save_directory):
        Path(save_directory).mkdir(parents=True, exist_ok=True)
        self._save_pretrained(Path(save_directory))

    def _save_pretrained(self, save_directory):
        self.config._save_pretrained(save_directory)
        save_model(self, str(save_directory / "model.safetensors"))

    @classmethod
    def from_pretrained(cls, pretrained_name_or_path, *, config=None, revision=None, strict=False, **kwargs):
        if config is None:
            config = RewardModelConfig.from_pretrained(pretrained_name_or_path)
        file = str(Path(pretrained_name_or_path) / "model.safetensors")
        model = cls._load_as_safetensor(cls(config, **kwargs), file, config.device, strict)
        return model.to(config.device).eval()

    @classmethod
    def _load_as_safetensor(cls, model, model_file, map_location, strict):
        load_model(model, model_file, strict=strict, device=map_location)
        return model

    def forward(self, batch):
        raise NotImplementedError

    @property
    def is_trainable(self):
        return type(self).forward is not PreTrainedRewardModel.forward
""",
    "rewards/__init__.py": """
import importlib

from lerobot.configs.rewards import CHOICES


def get_reward_model_class(name):
    config = CHOICES[name]
    module = importlib.import_module(config.__module__.replace("configuration_", "modeling_"))
    return getattr(module, config.__name__.removesuffix("Config") + "RewardModel")


def make_reward_model_config(reward_type, **kwargs):
    return CHOICES[reward_type](**kwargs)


def make_reward_model(cfg, **kwargs):
    cls = get_reward_model_class(cfg.type)
    if cfg.pretrained_path:
        where = {"pretrained_name_or_path": cfg.pretrained_path, "revision": cfg.pretrained_revision}
        return cls.from_pretrained(config=cfg, **where, **kwargs).to(cfg.device)
    return cls(config=cfg, **kwargs).to(cfg.device)


def make_reward_pre_post_processors(reward_cfg, **kwargs):
    module = type(reward_cfg).__module__.replace("configuration_", "processor_")
    make = getattr(importlib.import_module(module), f"make_{reward_cfg.type}_pre_post_processors")
    return make(reward_cfg, dataset_stats=kwargs.get("dataset_stats"))
""",
}


def write_stub(folder: Path) -> None:
    """The package ``lerobot`` in a folder, to be put on the path."""
    for name, source in FILES.items():
        file = folder / "lerobot" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(source)
