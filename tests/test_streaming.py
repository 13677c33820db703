"""Rewards outside TorchRL: a robot's own loop, gymnasium."""

import gymnasium
import numpy as np
import pytest
from envs import GAIN, LEVEL, CountingEncoder, Lamp, LampWithFrames, grey
from gymnasium.utils.env_checker import check_env

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


def test_the_last_distance_costs_no_forward():
    encoder = CountingEncoder()
    vip = VIPReward(grey(200), encoder=encoder)
    assert vip.last_distance is None
    vip.reset(grey(10))
    vip.reward(grey(50))
    seen = encoder.frames
    assert vip.last_distance == pytest.approx(150 * LEVEL, abs=1e-4)
    assert encoder.frames == seen


def test_a_frame_that_is_none_is_called_a_frame():
    with pytest.raises(TypeError, match="a frame of type list; wanted an image"):
        VIPReward(grey(200), encoder=CountingEncoder()).reward([[1, 2, 3]])


class NamedLamp(Lamp):
    """Made by name, as gymnasium's checker and vector environments do."""


def test_gymnasiums_checker_passes_and_the_spec_makes_it_again():
    gymnasium.register("NamedLamp-v0", NamedLamp, max_episode_steps=50)
    try:
        lamp = gymnasium.make("NamedLamp-v0", render_mode="rgb_array")
        env = VIPRewardWrapper(lamp, grey(200), encoder=CountingEncoder())
        check_env(env, skip_render_check=True)
        again = gymnasium.make(env.spec)
        again.reset(seed=0)
        assert again.step(0)[1] == pytest.approx(GAIN, abs=1e-5)
    finally:
        del gymnasium.registry["NamedLamp-v0"]


class ResetsItself(gymnasium.Wrapper):
    """As Autoreset, by somebody else."""

    ended = False

    def step(self, action):
        if self.ended:
            observation, info = self.env.reset()
            self.ended = False
            return observation, 0.0, False, False, info
        out = self.env.step(action)
        self.ended = out[2] or out[3]
        return out


@pytest.mark.parametrize("wrap", [gymnasium.wrappers.Autoreset, ResetsItself])
@pytest.mark.parametrize("mode", ["replace", "add"])
def test_an_environment_that_resets_itself_begins_an_episode(wrap, mode):
    env = VIPRewardWrapper(wrap(Lamp()), grey(200), encoder=CountingEncoder(), mode=mode)
    env.reset(seed=0)
    steps = [env.step(0) for _ in range(10)]
    own = 1.0 if mode == "add" else 0.0
    expected = ([own + GAIN] * 4 + [0.0]) * 2  # levels 20 to 50, then 10 again
    assert [step[1] for step in steps] == pytest.approx(expected, abs=1e-5)
    assert steps[4][4]["vip_distance"] == pytest.approx(190 * LEVEL, abs=1e-4)


def test_frames_that_come_upside_down_or_bgr_are_turned():
    class Turned(Lamp):
        def render(self):
            frame = np.zeros((8, 8, 3), np.uint8)
            frame[0, :, 2] = 10 * self.level // 10
            return frame

    seen = []
    env = VIPRewardWrapper(
        Turned(), grey(200), encoder=CountingEncoder(), frames=lambda frame: frame[::-1, :, ::-1]
    )
    env.vip.reset = seen.append
    env.reset()
    assert seen[0][-1, 0].tolist() == [10, 0, 0] and not seen[0][0].any()
