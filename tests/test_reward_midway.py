"""Rewards in the middle of an episode: only some environments step, a copy goes on, somebody edits what
it was given, precision changes."""

import copy
import pickle
from functools import partial

import numpy as np
import pytest
import torch
from envs import GAIN, MAKE, CountingEncoder, GreyEnv, NormEncoder, grey, reward_env, z_of
from tensordict import TensorDict
from torch.testing import assert_close as close
from torchrl.envs import Compose, SerialEnv, TransformedEnv
from torchrl.envs.transforms import (
    ConditionalSkip,
    MultiAction,
    MultiStepTransform,
    ObservationNorm,
)
from torchrl.envs.utils import check_env_specs

from torchrl_vip import VIPReward, VIPRewardTransform, VIPTransform
from torchrl_vip.goals import Goals


def two(**options) -> TransformedEnv:
    return reward_env(SerialEnv(2, MAKE), goal=grey(200), **options)


def act(tensordict: TensorDict) -> TensorDict:
    return tensordict.set("action", torch.zeros(*tensordict.batch_size, 1))


def gains(tensordict: TensorDict) -> list[float]:
    return [round(r, 4) for r in (tensordict["next", "reward"].flatten() / GAIN).tolist()]


# -- some of the environments ------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["difference", "distance", "potential", "sparse"])
def test_an_environment_that_does_not_step_is_paid_nothing(form):
    options = {"threshold": 0.5} if form == "sparse" else {}
    env = two(form=form, **options)
    both, one = env.reset(), env.reset()
    stepped = env.step(act(both))["next", "reward"][0]
    env.reset()
    one = env.step(act(one).set("_step", torch.tensor([[True], [False]])))
    close(one["next", "reward"], torch.stack([stepped, torch.zeros(1)]))
    close(one["next", "vip_vec"][1], one["vip_vec"][1])
    again = env.step_mdp(one)
    again.pop("_step", None)
    if form == "difference":
        assert gains(env.step(act(again))) == [1, 1]


def test_steps_that_a_condition_skips_are_paid_nothing():
    env = two().append_transform(ConditionalSkip(lambda td: torch.tensor([True, False])))
    rollout = env.rollout(3, break_when_any_done=False)
    close(rollout["next", "reward"][0, :, 0], torch.zeros(3))
    close(rollout["next", "reward"][1, :, 0], torch.ones(3) * GAIN)


def test_several_actions_at_once_are_an_environment_of_their_own():
    chunks = MultiAction(stack_rewards=False)
    reward = Compose(VIPTransform(CountingEncoder()), VIPRewardTransform(grey(200)))
    env = TransformedEnv(TransformedEnv(GreyEnv(length=3), chunks), reward, auto_unwrap=False)
    tensordict, got = env.reset(), []
    for _ in range(2):
        tensordict["action"] = torch.zeros(2, 1)
        stepped, tensordict = env.step_and_maybe_reset(tensordict)
        got += gains(stepped)
    assert got == [2, 1], "the episode ends in the middle of the second chunk"
    together = TransformedEnv(
        GreyEnv(length=3),
        Compose(
            MultiAction(stack_rewards=False),
            VIPTransform(CountingEncoder()),
            VIPRewardTransform(grey(200)),
        ),
    )
    with pytest.raises(ValueError, match="MultiAction in one environment with.*auto_unwrap=False"):
        together.reset()


def test_rows_that_lead_several_steps_ahead_are_refused():
    env = TransformedEnv(GreyEnv(), VIPTransform(CountingEncoder()))
    rollout = env.rollout(4)
    reward = VIPRewardTransform(z_of(200))
    several = partial(MultiStepTransform, n_steps=3, gamma=0.5)
    summed = several().inv(reward(rollout.clone()))
    close(summed["next", "reward"][0, 0], 1.75 * torch.tensor(GAIN))
    with pytest.raises(ValueError, match="MultiStepTransform lead several steps ahead"):
        reward(several().inv(rollout))


# -- copies ------------------------------------------------------------------------------------------


def test_pickled_transforms_keep_where_they_are():
    env = two()
    tensordict = env.step_mdp(env.step(act(env.reset())))
    vip, reward = pickle.loads(pickle.dumps(list(env.transform.transforms)))
    close(vip._last["vip_vec"], tensordict["vip_vec"])
    close(reward._last, tensordict["vip_vec"])


def test_a_copy_in_mid_episode_pays_as_the_original():
    env = reward_env(goal=grey(200))
    env.append_transform(ObservationNorm(in_keys=["vip_vec"], loc=1.0, scale=3.0))
    tensordict = act(env.reset())
    other = copy.deepcopy(env)
    assert gains(env.step(tensordict.clone())) == gains(other.step(tensordict.clone())) == [1]


def test_a_copy_resets_a_part_as_the_original():
    env = two()
    tensordict = env.step_mdp(env.step(act(env.reset())))
    for one in (env, copy.deepcopy(env)):
        partly = tensordict.clone().set("_reset", torch.tensor([[True], [False]]))
        assert gains(one.step(act(one.reset(partly)))) == [1, 1]


def test_a_goal_that_is_set_in_a_copy_wins_over_the_one_carried_along():
    env = two()
    tensordict = env.reset()
    other = copy.deepcopy(env)
    other.transform[-1].set_goal(grey(0))
    close(other.reset(tensordict.clone())["goal_embedding"], z_of(0).expand(2, -1))


# -- what was given away -----------------------------------------------------------------------------


def test_whoever_edits_an_embedding_in_place_changes_no_reward():
    env = two()
    tensordict = env.reset()
    tensordict["vip_vec"].mul_(0.1)
    stepped = env.step(act(tensordict))
    assert gains(stepped) == [1, 1]
    stepped["next", "vip_vec"].mul_(0.1)
    assert gains(env.step(act(env.step_mdp(stepped)))) == [1, 1]


def test_goal_images_from_inference_mode_can_be_changed_outside():
    goals, all_rows = Goals(as_sets=False), torch.ones(2, dtype=torch.bool)
    images = torch.stack([grey(200), grey(5)])
    embed = lambda frames: frames.float().mean((-3, -2, -1))[:, None]  # noqa: E731
    with torch.inference_mode():
        goals.take_images(images, all_rows, embed)
    images = torch.stack([grey(0), grey(5)])
    goals.take_images(images, all_rows, embed)
    close(goals.images, images)
    close(goals.embedding, torch.tensor([[0.0], [5.0]]))


def test_a_drivers_read_only_frames_are_taken_without_a_warning(recwarn):
    frame = np.frombuffer(bytes(8 * 8 * 3), np.uint8).reshape(8, 8, 3)
    reward = VIPReward(goal=frame, encoder=CountingEncoder())
    reward.reset(frame)
    assert reward.reward(frame) == 0
    assert not [w for w in recwarn if "writable" in str(w.message)]


# -- precision ---------------------------------------------------------------------------------------


def test_a_trainable_encoder_of_any_precision_embeds_in_single():
    frames = torch.zeros(1, 3, 32, 32, dtype=torch.uint8)
    for dtype in (torch.float64, torch.bfloat16):
        vip = VIPTransform(NormEncoder(), freeze=False).to(dtype)
        env = TransformedEnv(GreyEnv(), vip)
        check_env_specs(env)
        assert vip.embed(frames).dtype == dtype
        assert env.reset()["vip_vec"].dtype == torch.float32


def test_no_frames_are_single_precision_too():
    frozen = VIPTransform(CountingEncoder())
    torch.set_default_dtype(torch.float64)
    try:
        assert frozen.embed(torch.zeros(0, 3, 8, 8, dtype=torch.uint8)).dtype == torch.float32
    finally:
        torch.set_default_dtype(torch.float32)
