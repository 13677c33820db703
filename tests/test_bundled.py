"""The checkpoint that comes with the package: it opens, says what it is, and its reward means something."""

import json

import numpy as np
import torch

from torchrl_vip import FrozenEncoder, VIPReward, load_vip
from torchrl_vip.data.video import read_frames
from torchrl_vip.evaluation.metrics import voc
from torchrl_vip.weights import BUNDLED, DEFAULT


def test_it_opens_small_and_described():
    for folder in BUNDLED.values():
        assert (folder / "model.safetensors").stat().st_size <= 25_000_000
        config = json.loads((folder / "config.json").read_text())
        for key in ("training_data", "licence", "typical_distance", "success_threshold"):
            assert config[key], key
        assert config["reward_scale"] * config["typical_distance"] == 1 or np.isclose(
            config["reward_scale"] * config["typical_distance"], 1
        )
        assert 0.5 < config["reward_correlation"]["bfloat16"] <= 1
        card = (folder / "README.md").read_text()
        assert "DROID" in card and "CC BY 4.0" in card


def test_default_is_trained_and_deterministic():
    frame = torch.randint(0, 255, (120, 160, 3), dtype=torch.uint8)
    one, two = load_vip()(frame), load_vip(DEFAULT)(frame)
    assert torch.equal(one, two) and one.isfinite().all()
    difference = FrozenEncoder(load_vip(), dtype=torch.float32)(frame) - one
    assert difference.norm() < 1e-3 * one.norm()


def test_a_real_robot_clip_approaches_its_goal(vip_data):
    frames = list(read_frames(vip_data / "real_robot" / "close_drawer.mp4"))
    vip = VIPReward(frames[-1], scale="auto", dtype=torch.float32)
    distance = np.array([vip.distance(frame) for frame in frames[::4]])
    assert voc(distance) > 0.5
    vip.reset(frames[0])
    total = sum(vip.reward(frame) for frame in frames[1:])
    # The rewards of an episode add up to what was gained.
    gained = (distance[0] - vip.distance(frames[-1])) * load_vip().config["reward_scale"]
    assert np.isclose(total, gained, rtol=1e-3)


def test_tiny_is_tiny():
    assert (BUNDLED["tiny"] / "model.safetensors").stat().st_size <= 5_000_000
    frame = torch.randint(0, 255, (120, 160, 3), dtype=torch.uint8)
    assert load_vip("tiny")(frame).shape == (512,)
