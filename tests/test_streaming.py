"""Rewards outside TorchRL: a robot's own loop, gymnasium."""

import pytest
from envs import GAIN, LEVEL, CountingEncoder, Lamp, LampWithFrames, grey

from torchrl_vip import VIPReward, VIPRewardWrapper


def test_streaming():
    vip = VIPReward(grey(200), encoder=CountingEncoder())
    rewards = [vip.reward(grey(level).numpy()) for level in (10, 20, 40)]
    assert rewards == pytest.approx([0.0, 10 * LEVEL, 20 * LEVEL], abs=1e-5)
    assert vip.distance(grey(100)) == pytest.approx(100 * LEVEL, abs=1e-4)
    vip.set_goal([grey(0), grey(20)])
    assert vip.reward(grey(10)) == 0.0
    assert vip.reward(grey(30)) == pytest.approx(-20 * LEVEL, abs=1e-4)
    with pytest.raises(ValueError, match="no goal"):
        VIPReward(encoder=CountingEncoder()).reward(grey(1))
    with pytest.raises(ValueError, match="the camera gave no picture"):
        vip.reward(None)
    with pytest.raises(ValueError, match="one image"):
        vip.reward(grey(1, 2, 8, 8, 3))


def test_gymnasium_wrapper():
    env = VIPRewardWrapper(Lamp(), grey(200), encoder=CountingEncoder())
    for _ in range(2):
        env.reset(seed=0)
        _, reward, _, _, info = env.step(0)
        assert reward == pytest.approx(GAIN, abs=1e-5)
        assert info["env_reward"] == 1.0
        assert info["vip_distance"] == pytest.approx(180 * LEVEL, abs=1e-4)
    added = VIPRewardWrapper(Lamp(), grey(200), encoder=CountingEncoder(), mode="add")
    added.reset()
    assert added.step(0)[1] == pytest.approx(1 + GAIN, abs=1e-5)
    with pytest.raises(ValueError, match="render_mode"):
        VIPRewardWrapper(Lamp(render_mode=None), grey(200), encoder=CountingEncoder())


def test_the_wrapper_reads_frames_of_the_observation():
    env = VIPRewardWrapper(
        LampWithFrames(None), grey(200), encoder=CountingEncoder(), pixels="pixels"
    )
    env.reset()
    assert env.step(0)[1] == pytest.approx(GAIN, abs=1e-5)
    env.set_goal(grey(0))
    assert env.step(0)[1] == pytest.approx(-GAIN, abs=1e-5)
