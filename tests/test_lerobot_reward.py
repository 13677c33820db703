"""VIP in LeRobot's reward factory: against a stub of LeRobot 0.6, and LeRobot itself where it is there."""

import importlib
import importlib.util
import json
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from lerobot_stub import write_stub
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn

from torchrl_vip import CheckpointError, VIPEncoder, VIPReward, save_vip
from torchrl_vip.encoders import ENCODERS
from torchrl_vip.functional import IMAGENET_STD

KEY = "observation.images.top"
# The embedding of a frame of one grey value v is (v - mean) / std in each colour, so that the distance of two
# is their difference times this.
UNIT = torch.tensor(IMAGENET_STD).pow(-2).sum().sqrt().item()


class MeanColour(nn.Module):
    """[N, 3, S, S] to [N, 3], with a weight (1) and batch norm's dependence on its batch in training."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))
        self.norm = nn.BatchNorm1d(3, eps=1e-12)

    def forward(self, frames):
        return self.norm(frames.mean((-2, -1)) * self.weight)


def forget_lerobot() -> None:
    for name in list(sys.modules):
        if name.split(".")[0] == "lerobot" or name.startswith("torchrl_vip.lerobot"):
            del sys.modules[name]


def has_lerobot() -> bool:
    try:
        return importlib.util.find_spec("lerobot.rewards") is not None
    except ModuleNotFoundError:
        return False


STUB = "stub of LeRobot 0.6"


@pytest.fixture(scope="module", params=[STUB, *(["LeRobot itself"] if has_lerobot() else [])])
def lerobot(request, tmp_path_factory):
    """What a user imports."""
    forget_lerobot()
    with pytest.MonkeyPatch.context() as patch:
        if request.param == STUB:
            folder = tmp_path_factory.mktemp("stub")
            write_stub(folder)
            patch.syspath_prepend(folder)
        vip = importlib.import_module("torchrl_vip.lerobot")
        rewards = importlib.import_module("lerobot.rewards")
        configs = importlib.import_module("lerobot.configs.rewards")
        yield SimpleNamespace(vip=vip, rewards=rewards, Config=configs.RewardModelConfig)
    forget_lerobot()


@pytest.fixture(autouse=True)
def mean_colour(monkeypatch):
    monkeypatch.setitem(ENCODERS, "mean_colour", MeanColour)


@pytest.fixture
def checkpoint(tmp_path) -> str:
    config = {"reward_scale": 0.5, "success_threshold": 0.1 * UNIT}
    return str(save_vip(VIPEncoder("mean_colour", image_size=32, config=config), tmp_path / "vip"))


@pytest.fixture
def goal(tmp_path) -> str:
    return save_grey(tmp_path / "goal.png", 204)  # 0.8


def save_grey(path, value: int) -> str:
    Image.fromarray(np.full((40, 60, 3), value, np.uint8)).save(path)
    return str(path)


def grey(*values: float) -> torch.Tensor:
    return torch.tensor(values)[:, None, None, None].expand(-1, 3, 40, 60)


def model_of(lerobot, **options):
    config = lerobot.rewards.make_reward_model_config("vip", device="cpu", **options)
    return lerobot.rewards.make_reward_model(config)


# --- the factory -----------------------------------------------------------------------------------


def test_the_import_makes_vip_known_to_the_factory(lerobot):
    assert lerobot.Config.get_known_choices()["vip"] is lerobot.vip.VIPConfig
    assert lerobot.rewards.get_reward_model_class("vip") is lerobot.vip.VIPRewardModel
    assert lerobot.rewards.make_reward_model_config("vip").type == "vip"


def test_the_processors_of_the_factory_make_a_batch_of_a_single_frame(lerobot, checkpoint, goal):
    model = model_of(lerobot, encoder=checkpoint, goal=goal)
    before, _ = lerobot.rewards.make_reward_pre_post_processors(model.config, dataset_stats={})
    batch = before({KEY: grey(0.3)[0]})
    torch.testing.assert_close(model.compute_reward(batch), torch.tensor([-0.5 * UNIT]))


def test_what_the_factory_passes_on_is_not_in_the_way(lerobot, checkpoint):
    config = lerobot.vip.VIPConfig(encoder=checkpoint, device="cpu")
    assert lerobot.rewards.make_reward_model(config, dataset_stats={}, dataset_meta=None)


# --- the reward --------------------------------------------------------------------------------------


def test_the_distance_to_the_goal_is_the_reward_of_each_frame(lerobot, checkpoint, goal):
    model = model_of(lerobot, encoder=checkpoint, goal=goal)
    frames = grey(0.8, 0.4, 1.0)
    wanted = -UNIT * torch.tensor([0.0, 0.4, 0.2])
    for batch in (frames, (frames * 255).round().byte(), frames.movedim(1, -1)):
        reward = model.compute_reward({KEY: batch})
        assert reward.shape == (3,) and reward.dtype == torch.float32
        torch.testing.assert_close(reward, wanted, atol=2e-5 * UNIT, rtol=0)


def test_of_a_clip_the_last_frame_counts(lerobot, checkpoint, goal):
    model = model_of(lerobot, encoder=checkpoint, goal=goal)
    clips = torch.stack([grey(0.1, 0.2, 0.3), grey(0.8, 0.8, 0.6)])
    wanted = -UNIT * torch.tensor([0.5, 0.2])
    torch.testing.assert_close(model.compute_reward({KEY: clips}), wanted)


def test_the_difference_is_that_of_the_last_two_frames_and_of_a_repeated_one_0(
    lerobot, checkpoint, goal
):
    model = model_of(lerobot, encoder=checkpoint, goal=goal, form="difference", scale="auto")
    clips = torch.stack([grey(1.0, 0.3, 0.6), grey(0.9, 0.3, 0.1), grey(0.5, 0.2, 0.2)])
    wanted = 0.5 * UNIT * torch.tensor([0.3, -0.2, 0.0])
    torch.testing.assert_close(model.compute_reward({KEY: clips}), wanted)
    assert model.config.observation_delta_indices == [-1, 0]
    assert lerobot.vip.VIPConfig().observation_delta_indices is None


def test_it_is_the_reward_of_a_robots_loop(lerobot, checkpoint, goal):
    frames = grey(0.3, 0.6, 0.5)
    vip = VIPReward(goal, encoder=checkpoint, scale="auto", dtype=torch.float32)
    vip.reset(frames[0])
    wanted = [vip.reward(frame) for frame in frames[1:]]
    model = model_of(lerobot, encoder=checkpoint, goal=goal, form="difference", scale="auto")
    clips = torch.stack([frames[:2], frames[1:]])
    torch.testing.assert_close(model.compute_reward({KEY: clips}), torch.tensor(wanted))


def test_success_is_the_checkpoints_threshold(lerobot, checkpoint, goal):
    frames = {KEY: grey(0.71, 0.69)}  # 0.09 and 0.11 from the goal
    model = model_of(lerobot, encoder=checkpoint, goal=goal, form="sparse")
    assert model.compute_reward(frames).tolist() == [1, 0]
    model = model_of(lerobot, encoder=checkpoint, goal=goal, form="sparse", threshold=0.2 * UNIT)
    assert model.compute_reward(frames).tolist() == [1, 1]


def test_several_goals_are_their_mean_embedding(lerobot, checkpoint, goal, tmp_path):
    other = save_grey(tmp_path / "other.png", 102)  # 0.4; the mean is 0.6
    model = model_of(lerobot, encoder=checkpoint, goal=[goal, other])
    frames = {KEY: grey(0.6, 0.1)}
    wanted = -UNIT * torch.tensor([0.0, 0.5])
    torch.testing.assert_close(model.compute_reward(frames), wanted, atol=1e-5 * UNIT, rtol=0)
    embedding = model.goal.clone()
    model.set_goal(grey(0.1)[0])
    torch.testing.assert_close(model.compute_reward(frames)[0].item(), -0.5 * UNIT)
    model.set_goal(embedding)
    torch.testing.assert_close(model.compute_reward(frames), wanted, atol=1e-5 * UNIT, rtol=0)


def test_it_is_frozen_whatever_train_says(lerobot, checkpoint, goal):
    model = model_of(lerobot, encoder=checkpoint, goal=goal)
    alone = model.compute_reward({KEY: grey(0.3)})
    model.train()
    among_others = model.compute_reward({KEY: grey(0.3, 0.9, 0.1)})
    assert torch.equal(alone, among_others[:1]) and not among_others.requires_grad
    assert not any(weight.requires_grad for weight in model.parameters())
    assert not model.is_trainable


# --- saved and loaded ----------------------------------------------------------------------------------


@pytest.fixture
def saved(lerobot, checkpoint, goal, tmp_path):
    """A reward model's folder, the checkpoint and the goal image gone; and its rewards."""
    model = model_of(lerobot, encoder=checkpoint, goal=goal, scale="auto")
    model.encoder.backbone.weight.data.fill_(2.0)  # not what a new network has
    model.set_goal(goal)
    model.save_pretrained(tmp_path / "reward")
    for path in [*(tmp_path / "vip").iterdir(), tmp_path / "goal.png"]:
        path.unlink()
    return tmp_path / "reward", model.compute_reward({KEY: grey(0.3, 1.0)})


def test_a_saved_reward_model_stands_alone(lerobot, saved):
    folder, wanted = saved
    assert {path.name for path in folder.iterdir()} == {"config.json", "model.safetensors"}
    config = json.loads((folder / "config.json").read_text())
    assert config["type"] == "vip" and config["goal"] is None and config["encoder"] is None
    read = lerobot.Config.from_pretrained(folder)
    read.pretrained_path = str(folder)
    models = [
        lerobot.vip.VIPRewardModel.from_pretrained(folder),
        lerobot.rewards.make_reward_model(read),
    ]
    for model in models:
        assert torch.equal(model.compute_reward({KEY: grey(0.3, 1.0)}), wanted)
        assert model.encoder.config["reward_scale"] == 0.5


def test_a_goal_that_is_given_while_loading_replaces_the_saved_one(lerobot, saved, tmp_path):
    folder, _ = saved
    new = save_grey(tmp_path / "new.png", 51)  # 0.2
    config = lerobot.Config.from_pretrained(folder, cli_overrides=[f"--goal={new}"])
    model = lerobot.vip.VIPRewardModel.from_pretrained(folder, config=config)
    # the weight is 2, the scale 0.5
    reward = model.compute_reward({KEY: grey(0.2, 0.5)})
    torch.testing.assert_close(reward, -UNIT * torch.tensor([0.0, 0.3]), atol=1e-5 * UNIT, rtol=0)


def test_a_saved_configuration_without_its_weights_gives_no_reward(lerobot, saved):
    folder, _ = saved
    model = lerobot.rewards.make_reward_model(lerobot.Config.from_pretrained(folder))
    with pytest.raises(ValueError, match="has no goal.*from_pretrained"):
        model.compute_reward({KEY: grey(0.3)})
    with pytest.raises(ValueError, match="the encoder has no weights yet.*pretrained_path"):
        model.set_goal(grey(0.3)[0])


def test_weights_that_do_not_fit_the_configuration_are_refused(lerobot, saved):
    folder, _ = saved
    with pytest.raises(
        CheckpointError, match="does not fit a tiny of dim 512.*from the same folder"
    ):
        model_of(lerobot, encoder="tiny", pretrained_path=str(folder))


def test_weights_that_lack_a_tensor_are_refused(lerobot, saved):
    file = saved[0] / "model.safetensors"
    tensors = load_file(file)
    del tensors["encoder.backbone.weight"]
    save_file(tensors, file)
    with pytest.raises(CheckpointError, match=r"does not fit(.|\n)*encoder\.backbone\.weight"):
        lerobot.vip.VIPRewardModel.from_pretrained(saved[0])


def test_a_damaged_configuration_is_named(lerobot, saved):
    folder, _ = saved
    config = lerobot.Config.from_pretrained(folder)
    del config.network["dim"]
    with pytest.raises(CheckpointError, match="network cannot be built: 'dim'"):
        lerobot.vip.VIPRewardModel(config)


# --- what can be wrong ---------------------------------------------------------------------------------


WRONG_BATCHES = {
    "another camera": ({"observation.images.wrist": grey(0.1)}, KeyError, f"no '{KEY}'.*wrist"),
    "one frame": ({KEY: grey(0.1)[0]}, ValueError, r"\(3, 40, 60\); wanted \[B, C, H, W\]"),
    "out of range": ({KEY: 255 * grey(0.1)}, ValueError, r"wanted \[0, 1\]"),
}


@pytest.mark.parametrize("batch, error, says", WRONG_BATCHES.values(), ids=WRONG_BATCHES)
def test_a_wrong_batch_is_named(lerobot, checkpoint, goal, batch, error, says):
    model = model_of(lerobot, encoder=checkpoint, goal=goal)
    with pytest.raises(error, match=says):
        model.compute_reward(batch)


@pytest.mark.parametrize("frames", [grey(0.1), grey(0.1)[None]], ids=["frames", "clips of one"])
def test_a_comparing_form_wants_two_frames(lerobot, checkpoint, goal, frames):
    model = model_of(lerobot, encoder=checkpoint, goal=goal, form="difference")
    with pytest.raises(ValueError, match="compares two frames.*delta_timestamps=.*form='distance'"):
        model.compute_reward({KEY: frames})


@pytest.mark.parametrize("goal", [grey(0.1, 0.2), torch.zeros(1), torch.zeros(2, 3)])
def test_a_wrong_goal_is_named(lerobot, checkpoint, goal):
    model = model_of(lerobot, encoder=checkpoint)
    with pytest.raises(ValueError, match=r"wanted one image, or an embedding \[3\]"):
        model.set_goal(goal)


WRONG_OPTIONS = {
    "form": ({"form": "dense"}, "reward form 'dense'"),
    "scale": ({"scale": "big"}, "scale='big'; wanted a number"),
    "no calibrated scale": ({"scale": "auto-other"}, "config has no reward_scale_other"),
    "two encoders": ({"encoder": "tiny", "network": {"backbone": "x"}}, "encoder='tiny' for a"),
    "no goal image": ({"goal": "nowhere.png"}, "nowhere.png does not exist"),
    "no goals": ({"goal": []}, "an empty list of goals"),
}


@pytest.mark.parametrize("options, says", WRONG_OPTIONS.values(), ids=WRONG_OPTIONS)
def test_a_wrong_option_is_named(lerobot, checkpoint, options, says):
    with pytest.raises((ValueError, FileNotFoundError), match=says):
        lerobot.vip.VIPRewardModel(lerobot.vip.VIPConfig(**{"encoder": checkpoint} | options))


def test_without_lerobot_the_install_command_is_said(tmp_path, monkeypatch):
    forget_lerobot()
    monkeypatch.setitem(sys.modules, "lerobot", None)
    with pytest.raises(ImportError, match='on Python 3.12 or newer, pip install "lerobot>=0.6"'):
        importlib.import_module("torchrl_vip.lerobot")


def test_a_lerobot_without_reward_models_is_too_old(tmp_path, monkeypatch):
    forget_lerobot()
    (tmp_path / "lerobot/configs").mkdir(parents=True)
    for name in ("__init__.py", "configs/__init__.py"):
        (tmp_path / "lerobot" / name).write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ImportError, match=r"FeatureType.*pip install .lerobot>=0.6."):
        importlib.import_module("torchrl_vip.lerobot")
    forget_lerobot()
