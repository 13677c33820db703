"""A causal average of the distance: in environments, for a robot's own loop, of a curve.

Grey frames brighten by ten levels a step, and the goal is at level 200. With smoothing .5 the average is, in
levels, 190, 185, 177.5, 168.75: the gains are 5, 7.5, 8.75.
"""

import copy
import pickle

import numpy as np
import pytest
import torch
from envs import (
    LEVEL,
    MAKE,
    CountingEncoder,
    GreyAgents,
    GreyBatch,
    GreyEnv,
    Lamp,
    NativeAutoresetEnv,
    grey,
    reward_env,
    z_of,
)
from tensordict import TensorDict
from torchrl.envs import Compose, SerialEnv, TransformedEnv
from torchrl.envs.utils import check_env_specs

from torchrl_vip import VIPReward, VIPRewardTransform, VIPRewardWrapper, VIPTransform
from torchrl_vip.evaluation.metrics import smoothed


def smooth_env(base=None, smoothing=0.5, goal=None, **options):
    goal = grey(200) if goal is None else goal
    return reward_env(base, goal=goal, smoothing=smoothing, **options)


def levels(tensordict):
    reward = tensordict["next"]["reward"] if isinstance(tensordict, TensorDict) else tensordict
    return [round(r, 2) for r in (reward.flatten() / LEVEL).tolist()]


def step(env, tensordict):
    """One step and what comes after it, without a reset."""
    tensordict["action"] = torch.zeros(*tensordict.batch_size, 1)
    stepped = env.step(tensordict)
    return stepped, env.step_mdp(stepped)


# -- the numbers ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "form, wanted",
    [
        ("difference", [5, 7.5, 8.75]),
        ("distance", [-185, -177.5, -168.75]),
        ("potential", [190 - 0.9 * 185, 185 - 0.9 * 177.5, 177.5 - 0.9 * 168.75]),
    ],
)
def test_every_form_is_of_the_average(form, wanted):
    env = smooth_env(form=form, gamma=0.9)
    check_env_specs(env)
    assert levels(env.rollout(3)) == pytest.approx(wanted, abs=0.02)


def test_success_is_of_the_average():
    env = smooth_env(form="sparse", threshold=180 * LEVEL)
    got = env.rollout(3)["next", "reward"].flatten().tolist()
    assert got == [0, 1, 1], "the distance itself is 180 after the first step"


def test_off_by_default():
    assert VIPRewardTransform(grey(200)).smoothing == 0
    assert levels(smooth_env(smoothing=0).rollout(3)) == levels(
        reward_env(goal=grey(200)).rollout(3)
    )


@pytest.mark.parametrize("smoothing", [1, 1.5, -0.1, float("nan")])
def test_a_factor_out_of_range_is_refused(smoothing):
    with pytest.raises(ValueError, match=r"smoothing=.* in \[0, 1\); 0 is off"):
        VIPRewardTransform(grey(200), smoothing=smoothing)
    with pytest.raises(ValueError, match="smoothing="):
        VIPReward(grey(200), encoder=CountingEncoder(), smoothing=smoothing)
    with pytest.raises(ValueError, match="smoothing="):
        smoothed(np.ones(3), smoothing)


def test_of_a_curve():
    np.testing.assert_allclose(
        smoothed(np.array([190, 180, 170, 160]), 0.5), [190, 185, 177.5, 168.75]
    )
    np.testing.assert_allclose(smoothed(np.array([3.0, 1.0]), 0), [3, 1])
    np.testing.assert_allclose(smoothed(np.array([3.0]), 0.9), [3])


# -- where it starts --------------------------------------------------------------------------------


def test_an_automatic_reset_starts_the_average_of_its_own_environment():
    env = smooth_env(SerialEnv(2, MAKE))  # 3 and 5 steps long
    got = env.rollout(6, break_when_any_done=False)["next", "reward"]
    assert levels(got[0]) == [5, 7.5, 8.75, 5, 7.5, 8.75]
    assert levels(got[1]) == pytest.approx([5, 7.5, 8.75, 9.375, 9.6875, 5], abs=0.01)


def test_a_partial_reset_leaves_the_other_average():
    env = smooth_env(GreyBatch())
    stepped, tensordict = step(env, env.reset())
    assert levels(stepped) == [5, 5]
    tensordict = env.reset(tensordict.set("_reset", torch.tensor([[True], [False]])))
    assert levels(step(env, tensordict)[0]) == [5, 7.5]
    assert levels(step(env, env.reset())[0]) == [5, 5], "a whole reset starts all"


def test_agents_that_are_reset_alone_have_averages_of_their_own():
    frames, vip_key = ("agents", "pixels"), ("agents", "vip_vec")
    vip = VIPTransform(CountingEncoder(), in_keys=[frames], out_keys=[vip_key])
    reward = VIPRewardTransform(grey(200), in_keys=[vip_key], smoothing=0.5)
    env = TransformedEnv(GreyAgents(lengths=(2, 5)), Compose(vip, reward))
    got = env.rollout(6, break_when_any_done=False)["next", "agents", "reward"]
    assert levels(got[:, 0]) == [0.5, 0.75, 0.5, 0.75, 0.5, 0.75]
    assert levels(got[:, 1]) == pytest.approx([1, 1.5, 1.75, 1.875, 1.9375, 1], abs=0.01)


@pytest.mark.parametrize("form", ["difference", "distance"])
def test_where_the_last_frame_is_not_seen_the_average_stays(form):
    env = smooth_env(NativeAutoresetEnv(length=3), form=form)
    got = levels(env.rollout(6, break_when_any_done=False))
    assert got == ([5, 7.5, 0, 5, 7.5, 0] if form == "difference" else [-185, -177.5, -177.5] * 2)


def test_an_environment_that_does_not_step_keeps_its_average():
    env = smooth_env(SerialEnv(2, MAKE))
    _, tensordict = step(env, env.reset())
    tensordict.set("_step", torch.tensor([[True], [False]]))
    stepped, tensordict = step(env, tensordict)
    assert levels(stepped) == [7.5, 0]
    tensordict.pop("_step", None)
    assert levels(step(env, tensordict)[0]) == [8.75, 7.5]


# -- goals that change ------------------------------------------------------------------------------


def test_a_new_goal_starts_the_average_at_the_last_frame():
    env = smooth_env(SerialEnv(2, MAKE))
    _, tensordict = step(env, env.reset())  # at level 20
    env.transform[-1].set_goal(grey(0), env_ids=[1])
    stepped, tensordict = step(env, tensordict)
    assert levels(stepped) == [7.5, -5]
    env.transform[-1].set_goal(grey(0), env_ids=[1])  # the same: it goes on
    assert levels(step(env, tensordict)[0]) == [8.75, -7.5]


def test_sets_of_goals():
    goals = [grey(0), grey(200)]
    env = smooth_env(SerialEnv(2, MAKE), goal=goals, goal_reduction="nearest")
    _, tensordict = step(env, env.reset())  # distances to level 0: 10, 20; averages 10, 15
    env.transform[-1].set_goal([grey(0), grey(100)], env_ids=[1])
    assert levels(step(env, tensordict)[0]) == [-7.5, -5]


# -- copies and other places ------------------------------------------------------------------------


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda env: pickle.loads(pickle.dumps(env))])
def test_a_copy_in_mid_episode_carries_the_average(copied):
    env = smooth_env(GreyBatch())
    _, tensordict = step(env, env.reset())
    other = copied(env)
    for one in (env, other):
        assert levels(step(one, tensordict.clone())[0]) == [7.5, 7.5]


def test_a_clone_has_an_average_of_its_own():
    env = smooth_env()
    tensordict = env.step(env.reset().set("action", torch.zeros(1)))
    env.transform[-1].clone()._average.start()
    assert levels(step(env, env.step_mdp(tensordict))[0]) == [7.5]


def test_moving_it_forgets_nothing():
    env = smooth_env()
    _, tensordict = step(env, env.reset())
    env.transform.to("cpu")
    env.transform.to(torch.float64)
    assert levels(step(env, tensordict)[0]) == [7.5]


def test_a_replay_buffer_is_refused():
    rollout = reward_env(goal=grey(200)).rollout(3)
    with pytest.raises(ValueError, match="smoothing=0.5 outside of an environment.*in no order"):
        VIPRewardTransform(z_of(200), smoothing=0.5)(rollout)


class StatelessEnv(GreyEnv):
    batch_locked = False


def test_an_environment_without_a_state_is_refused():
    with pytest.raises(ValueError, match="smoothing=0.5 in an environment without a state"):
        smooth_env(StatelessEnv()).reset()


# -- a robot's own loop -----------------------------------------------------------------------------


def test_streaming():
    vip = VIPReward(grey(200), encoder=CountingEncoder(), smoothing=0.5)
    got = [vip.reward(grey(level)) / LEVEL for level in (10, 20, 30)]
    assert got == pytest.approx([0, 5, 7.5], abs=1e-3)
    assert vip.last_distance == pytest.approx(177.5 * LEVEL, abs=1e-4)
    assert vip.distance(grey(30)) == pytest.approx(170 * LEVEL, abs=1e-4)
    vip.set_goal(grey(0), restart=False)
    assert vip.last_distance == pytest.approx(30 * LEVEL, abs=1e-4)
    assert vip.reward(grey(40)) == pytest.approx(-5 * LEVEL, abs=1e-4)
    vip.reset(grey(10))
    assert vip.reward(grey(0)) == pytest.approx(5 * LEVEL, abs=1e-4)


def test_gymnasium_wrapper():
    env = VIPRewardWrapper(Lamp(), grey(200), encoder=CountingEncoder(), smoothing=0.5)
    for _ in range(2):
        env.reset(seed=0)
        assert env.step(0)[1] == pytest.approx(5 * LEVEL, abs=1e-4)
        _, reward, _, _, info = env.step(0)
        assert reward == pytest.approx(7.5 * LEVEL, abs=1e-4)
        assert info["vip_distance"] == pytest.approx(177.5 * LEVEL, abs=1e-4)
