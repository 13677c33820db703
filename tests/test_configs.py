"""The transforms in Hydra's ConfigStore, under names that a YAML file of TorchRL's trainers can give."""

from __future__ import annotations

import inspect
import pickle
import re
import sys
from pathlib import Path

import pytest
import torch
from envs import LEVEL, STEP, GreyEnv, grey
from PIL import Image
from torchrl.envs import RewardSum, TransformedEnv
from torchrl.envs.utils import check_env_specs

from torchrl_vip import MaskRobot, VIPRewardTransform, VIPTransform, register_configs

hydra = pytest.importorskip("hydra", reason="hydra-core")
from hydra.core.config_store import ConfigStore  # noqa: E402
from hydra.errors import InstantiationException  # noqa: E402
from hydra.utils import instantiate  # noqa: E402
from omegaconf import DictConfig  # noqa: E402
from omegaconf.errors import ConfigAttributeError  # noqa: E402

TRANSFORMS = {
    "torchrl_vip": VIPTransform,
    "torchrl_vip_reward": VIPRewardTransform,
    "torchrl_vip_mask_robot": MaskRobot,
}


@pytest.fixture(scope="module", autouse=True)
def _own_store():
    """What TorchRL and we register, such as its group "loss", would be options of our pre-training in the
    tests that follow in this process."""
    groups = ConfigStore.instance().repo
    before = {*groups, "hydra"}
    yield
    for group in groups.keys() - before:
        del groups[group]


def compose(*overrides: str) -> DictConfig:
    register_configs()
    with hydra.initialize(None, version_base=None):
        return hydra.compose(overrides=list(overrides))


def test_the_defaults_are_the_transforms_of_this_package() -> None:
    cfg = compose("+transform@embed=torchrl_vip", "+transform@reward=torchrl_vip_reward")
    vip, reward = instantiate(cfg.embed), instantiate(cfg.reward)
    assert type(vip) is VIPTransform and type(reward) is VIPRewardTransform
    assert vip.in_keys == ["pixels"] and vip.out_keys == ["vip_vec"]
    assert (reward.mode, reward.form, reward.scale) == ("replace", "difference", 1.0)


@pytest.mark.parametrize("name", TRANSFORMS)
def test_every_option_can_be_set_and_no_other(name: str) -> None:
    options = inspect.signature(TRANSFORMS[name]).parameters
    cfg = compose(f"+transform={name}").transform
    shown = {key: value for key, value in cfg.items() if not key.startswith("_")}
    assert shown == {key: option.default for key, option in options.items()}
    for key in options:
        cfg = compose(f"+transform={name}", f"transform.{key}=[1, 2]").transform
        assert cfg[key] == [1, 2]
    with pytest.raises(ConfigAttributeError):
        cfg.no_such_option = 1


CONFIG = """
defaults:
  - transform@embed: torchrl_vip
  - transform@nearer: torchrl_vip_reward
  - transform@total: reward_sum
  - env@env: transformed_env
  - transform@env.transform: compose
  - _self_
embed:
  encoder: {_target_: envs.CountingEncoder}
  in_keys: [[views, front]]
  out_keys: [z]
  dtype: float32
  size: 8
nearer:
  goal: ???
  in_keys: [z]
  reward_key: [own, reward]
  mode: keep
  vip_reward_key: [own, vip]
total: {in_keys: [[own, vip]], out_keys: [total]}
env:
  base_env: {_target_: test_configs.make_env}
  transform: {transforms: ["${embed}", "${nearer}", "${total}"]}
"""


def make_env() -> GreyEnv:
    return GreyEnv(cameras=[("views", "front")], reward_key=("own", "reward"))


def test_a_yaml_file_of_torchrl_names_them_in_an_environment(tmp_path: Path) -> None:
    """As those of TorchRL's trainers: an environment, its base and a list of transforms."""
    pytest.importorskip("torchrl.trainers.algorithms.configs")  # registers TorchRL's own
    register_configs()
    (tmp_path / "config.yaml").write_text(CONFIG)
    Image.fromarray(grey(50).numpy()).save(tmp_path / "goal.png")
    with hydra.initialize_config_dir(str(tmp_path), version_base=None):
        cfg = hydra.compose("config", [f"nearer.goal={tmp_path / 'goal.png'}"])
    env = instantiate(cfg.env)
    assert isinstance(env, TransformedEnv)
    assert [type(one) for one in env.transform] == [VIPTransform, VIPRewardTransform, RewardSum]
    check_env_specs(env)
    episode = env.rollout(3)["next"]
    torch.testing.assert_close(episode["own", "vip"], torch.full((3, 1), STEP * LEVEL))
    torch.testing.assert_close(episode["total"], STEP * LEVEL * torch.arange(1.0, 4.0)[:, None])


@pytest.mark.slow
def test_the_yaml_of_the_guide_makes_an_environment(tmp_path: Path) -> None:
    pytest.importorskip("metaworld")
    guide = Path(__file__).parents[1] / "docs/from-torchrl.md"
    (block,) = re.findall(r"```yaml\n(# config.yaml\n.*?)```", guide.read_text(), re.DOTALL)
    (tmp_path / "config.yaml").write_text(block)
    import torchrl.trainers.algorithms.configs  # noqa: F401 (registers TorchRL's own)

    register_configs()
    with hydra.initialize_config_dir(str(tmp_path), version_base=None):
        env = instantiate(hydra.compose("config").env)
    assert env.rollout(2)["next", "vip_reward"].shape == (2, 1)


def test_keys_and_dtypes_are_written_as_lists_and_names() -> None:
    name = "+transform=torchrl_vip"
    keys = "transform.in_keys=[[views, front], [views, side]]"
    cfg = compose(name, keys, "transform.encoder=tiny", "transform.dtype=torch.bfloat16")
    vip = instantiate(cfg.transform)
    assert vip.in_keys == [("views", "front"), ("views", "side")]
    assert vip.encoder.dtype is torch.bfloat16
    cfg.transform.dtype = "bfloat"
    with pytest.raises(InstantiationException, match="dtype=bfloat is invalid: wanted a name"):
        instantiate(cfg.transform)


def test_masks_of_one_camera_and_of_several_are_lists_and_lists_within() -> None:
    name = "+transform=torchrl_vip_mask_robot"
    assert instantiate(compose(name).transform).mask_keys == ["robot_mask"]
    one = compose(name, "transform.mask_key=[masks, front]").transform
    assert instantiate(one).mask_keys == [("masks", "front")]
    keys = "transform.in_keys=[[views, front], [views, side]]"
    two = compose(
        name, keys, "transform.mask_key=[[masks, front], side]", "transform.grow=2"
    ).transform
    assert instantiate(two).mask_keys == [("masks", "front"), "side"]


def test_a_second_call_and_a_copy_change_nothing() -> None:
    register_configs()
    before = dict(ConfigStore.instance().repo["transform"])
    register_configs()
    assert ConfigStore.instance().repo["transform"] == before
    cfg = compose("+transform=torchrl_vip_reward")
    assert pickle.loads(pickle.dumps(cfg)) == cfg  # a launcher sends it to other machines


def test_without_hydra_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "hydra.core.config_store", None)
    with pytest.raises(ImportError, match=r'pip install "hydra-core>=1.3"'):
        register_configs()
