"""VIPRewardTransform against hand-computed rewards.

GreyEnv brightens by ten levels a step and CountingEncoder's embedding is linear in the level, so
that distances are LEVEL times a difference of levels.
"""

import pickle
from functools import partial

import gymnasium
import numpy as np
import pytest
import torch
from envs import (
    LEVEL,
    STEP,
    CountingEncoder,
    GoalEnv,
    GreyEnv,
    NativeAutoresetEnv,
    NormEncoder,
    grey,
)
from PIL import Image
from tensordict import TensorDict
from torchrl.collectors import Collector, MultiSyncCollector
from torchrl.data import HERReplayBuffer, LazyTensorStorage, TensorDictReplayBuffer
from torchrl.envs import (
    CatFrames,
    Compose,
    GymWrapper,
    ObservationNorm,
    ParallelEnv,
    RewardSum,
    SerialEnv,
    StepCounter,
    TransformedEnv,
)
from torchrl.envs.utils import check_env_specs

from torchrl_vip import (
    VIPReward,
    VIPRewardTransform,
    VIPRewardWrapper,
    VIPTransform,
    goal_reward,
    preprocess,
)
from torchrl_vip.goals import read_image

GAIN = STEP * LEVEL  # reward of a step towards a bright goal
MAKE = [partial(GreyEnv, length=3), partial(GreyEnv, length=5)]
close = partial(torch.testing.assert_close, atol=1e-5, rtol=1e-4)


def z_of(level):
    return preprocess(grey(level)).mean().reshape(1)


def make_env(base=None, encoder=None, **kwargs):
    encoder = CountingEncoder() if encoder is None else encoder
    return TransformedEnv(
        base or GreyEnv(), Compose(VIPTransform(encoder), VIPRewardTransform(**kwargs))
    )


# -- the number, the shape, the spec ------------------------------------------------------------------


def test_single_env():
    env = make_env(goal=grey(200))
    check_env_specs(env)
    rollout = env.rollout(9, break_when_any_done=False)
    close(rollout["next", "reward"], torch.full((9, 1), GAIN))
    assert env.reward_spec.shape == (1,) and env.reward_spec.is_in(torch.tensor([-100.0]))


@pytest.mark.parametrize("own", [False, True])
def test_a_look_at_the_parent_leaves_the_encoder_where_it_is(own):
    encoder = NormEncoder()
    env = TransformedEnv(GreyEnv(), VIPTransform(encoder))
    options = {"encoder": encoder, "in_keys": ["vip_vec"]} if own else {}
    env.append_transform(VIPRewardTransform(torch.zeros(4), **options)).append_transform(
        RewardSum()
    )
    env.transform.to("meta")  # as to another device
    # For these TorchRL makes clones, and moves them to the environment's device.
    assert env.transform[1].parent is not None and env.transform[2].parent is not None
    assert env.transform[0].encoder.device.type == "meta"
    assert not own or env.transform[1].embedder.encoder.device.type == "meta"


def test_an_unwrapped_environment_still_moves_its_encoder():
    env = TransformedEnv(TransformedEnv(GreyEnv(), VIPTransform(NormEncoder())), RewardSum())
    env.transform.to("meta")
    assert env.transform[0].encoder.device.type == "meta"


@pytest.mark.parametrize("give", ["reset", "set_goal", "rollout"])
def test_no_vip_transform_before_it_is_an_error_that_says_so(give):
    env = TransformedEnv(GreyEnv(), VIPRewardTransform(goal=grey(200)))
    calls = {"reset": env.reset, "rollout": partial(env.rollout, 1)}
    calls["set_goal"] = partial(env.transform.set_goal, grey(1))
    with pytest.raises(KeyError, match="Put a VIPTransform before it, or pass"):
        calls[give]()


def test_calibration_holds_for_cameras_that_are_joined():
    encoder = CountingEncoder()
    encoder.config = {"reward_scale": 3.0, "success_threshold": 10.5 * LEVEL}
    env = GreyEnv(cameras=["a", "b"])
    goal = {"a": grey(40), "b": grey(41)}
    env = TransformedEnv(env, VIPTransform(encoder, in_keys=["a", "b"]))
    env.append_transform(VIPRewardTransform(goal, scale="auto", mode="keep"))
    sparse = VIPRewardTransform(
        goal, form="sparse", mode="keep", vip_reward_key="near", reward_key="reward"
    )
    rollout = env.append_transform(sparse).rollout(3)  # levels 20, 30, 40, alike in both cameras
    close(rollout["next", "vip_reward"].flatten(), torch.full((3,), 3 * GAIN))
    assert rollout["next", "near"].flatten().tolist() == [0, 1, 1]


@pytest.mark.parametrize("options", [{"scale": "auto"}, {"form": "sparse"}])
def test_calibration_without_an_encoder_says_what_to_give(options):
    rows = TensorDict({"vip_vec": torch.zeros(2, 1), ("next", "vip_vec"): torch.ones(2, 1)}, [2])
    with pytest.raises(ValueError, match="no encoder is in reach here: pass encoder=, or numbers"):
        VIPRewardTransform(torch.ones(1), **options)(rows)


def test_a_goal_image_of_another_size_at_a_reset_changes_nothing():
    env = make_env(GreyEnv())
    env.reset(TensorDict({"goal_image": grey(200)}, []))
    with pytest.raises(ValueError, match=r"\(9, 9, 3\) at a reset; wanted \(8, 8, 3\).*set_goal"):
        env.reset(TensorDict({"goal_image": grey(5, 9, 9, 3)}, []))
    close(env.transform[-1].goal.flatten(), z_of(200))


def test_a_clone_has_goals_of_its_own():
    env = make_env(SerialEnv(2, MAKE), goal=grey(200))
    env.reset()
    other = TransformedEnv(SerialEnv(2, MAKE), env.transform.clone())
    other.transform[-1].set_goal(grey(5), env_ids=1)
    close(env.rollout(2)["next", "reward"], torch.full((2, 2, 1), GAIN))
    close(other.rollout(2)["next", "reward"][:, 0], torch.tensor([[GAIN], [-GAIN]]))


@pytest.mark.parametrize(
    "after", [partial(ObservationNorm, loc=1.0, scale=3.0), partial(CatFrames, N=2, dim=-1)]
)
def test_transforms_after_it_do_not_change_what_is_compared(after):
    env = make_env(GreyEnv(length=6), goal=grey(200)).append_transform(after(in_keys=["vip_vec"]))
    close(env.rollout(3)["next", "reward"], torch.full((3, 1), GAIN))


def test_stacked_goals_go_to_the_environments_that_are_named():
    env = make_env(SerialEnv(4, GreyEnv), goal=grey(200))
    env.reset()
    vip = env.transform[-1]
    for goals in (torch.stack([grey(111), grey(33)]), torch.stack([z_of(111), z_of(33)])):
        vip.set_goal(goals, env_ids=[3, 1])
        close(vip.goal, torch.stack([z_of(level) for level in (200, 33, 200, 111)]))
    vip.set_goal(grey(5), env_ids=torch.tensor([[True], [False], [False], [False]]))
    close(vip.goal[0], z_of(5))
    for wrong in ([1, 1], [7]):
        with pytest.raises(ValueError, match="env_ids"):
            vip.set_goal(grey(5), env_ids=wrong)


def test_a_goal_edited_in_place_is_a_new_one():
    env = make_env(SerialEnv(2, MAKE), goal=grey(200))
    carried = env.reset()
    carried["goal_embedding"][1] = z_of(5)
    close(env.reset(carried)["goal_embedding"], torch.stack([z_of(200), z_of(5)]))
    env = make_env(SerialEnv(2, MAKE))
    carried = env.reset(TensorDict(goal_image=torch.stack([grey(200), grey(100)]), batch_size=[2]))
    carried["goal_image"][1] = grey(5)
    close(env.reset(carried)["goal_embedding"], torch.stack([z_of(200), z_of(5)]))


def test_a_goal_is_what_it_was_when_it_was_given():
    for goal in (np.full((8, 8, 3), 200, np.uint8), grey(200), z_of(200)):
        vip = VIPReward(goal=goal, encoder=CountingEncoder())
        goal[:] = 0
        close(vip.goal, z_of(200))


@pytest.mark.parametrize("bad", [torch.zeros(2, 3), torch.full((2, 1), torch.nan)])
def test_wrong_goal_embeddings_at_a_reset_are_refused(bad):
    for goal in (None, grey(200)):
        env = make_env(SerialEnv(2, MAKE), goal=goal)
        with pytest.raises(ValueError, match="goal_embedding"):
            env.reset(TensorDict(goal_embedding=bad, batch_size=[2]))


def test_goal_images_of_any_layout_and_width(tmp_path):
    Image.new("RGB", (10, 8), (200, 200, 200)).save(tmp_path / "g.png")
    first = GreyEnv(channels_last=False)
    chain = Compose(
        VIPTransform(CountingEncoder(), channel_dim=-3),
        VIPRewardTransform(goal=tmp_path / "g.png"),
    )
    env = TransformedEnv(first, chain)
    close(env.rollout(2)["next", "reward"], torch.full((2, 1), GAIN))
    wide = make_env(encoder=NormEncoder(dim=8).eval(), goal=torch.full((3, 8, 8), 0.8))  # D wide
    assert wide.reset()["goal_embedding"].shape == (8,)


def test_the_encoder_is_found_in_nested_chains():
    nested = Compose(Compose(VIPTransform(CountingEncoder())), VIPRewardTransform(goal=grey(200)))
    inner = TransformedEnv(GreyEnv(), VIPTransform(CountingEncoder()))
    outer = TransformedEnv(inner, VIPRewardTransform(goal=grey(200)), auto_unwrap=False)
    for env in (TransformedEnv(GreyEnv(), nested), outer):
        close(env.rollout(2)["next", "reward"], torch.full((2, 1), GAIN))


def test_a_goal_of_several_cameras_is_in_their_order_not_the_dicts():
    frames = TensorDict(left=grey(20), right=grey(200))
    frames["next"] = TensorDict(left=grey(30), right=grey(190))
    rewards = []
    for order in (["left", "right"], ["right", "left"]):
        vip = VIPRewardTransform(
            {camera: grey({"left": 20, "right": 200}[camera]) for camera in order},
            encoder=CountingEncoder(),
            in_keys=["left", "right"],
        )
        vip.state_dict()  # resolves the goal before any frame was seen
        rewards.append(vip(frames)["next", "reward"])
    close(*rewards)
    close(rewards[0], torch.tensor([-(2**0.5) * GAIN]))


def test_past_the_goal_the_reward_turns():
    rewards = make_env(goal=grey(25)).rollout(3)["next", "reward"].flatten()
    # levels 10, 20, 30, 40 are 15, 5, 5, 15 from the goal
    close(rewards, torch.tensor([10.0, 0.0, -10.0]) * LEVEL)


@pytest.mark.parametrize("cls", [SerialEnv, ParallelEnv])
@pytest.mark.parametrize("inside", [True, False])
def test_two_envs_reset_at_different_steps(cls, inside):
    if inside:
        env = cls(2, [partial(make_inside, make) for make in MAKE])
    else:
        env = make_env(cls(2, MAKE), goal=grey(200))
    try:
        check_env_specs(env)
        rollout = env.rollout(12, break_when_any_done=False)
        # An automatic reset darkens the frame by 20 or more levels: never seen in a reward.
        close(rollout["next", "reward"], torch.full((2, 12, 1), GAIN))
        assert rollout["next", "goal_embedding"].shape == (2, 12, 1)
        close(rollout["goal_embedding"], z_of(200).expand(2, 12, 1))
    finally:
        env.close(raise_if_closed=False)


def make_inside(make):
    return make_env(make(), goal=grey(200))


def test_forms():
    levels = {"difference": GAIN, "distance": -180 * LEVEL, "potential": (190 - 0.9 * 180) * LEVEL}
    for form, value in levels.items():
        reward = make_env(goal=grey(200), form=form, gamma=0.9).rollout(1)["next", "reward"]
        close(reward, torch.tensor([[value]]))
    sparse = make_env(goal=grey(40), form="sparse", threshold=10.5 * LEVEL)
    close(sparse.rollout(3)["next", "reward"].flatten(), torch.tensor([0.0, 1.0, 1.0]))
    close(
        make_env(goal=grey(200), scale=3.0).rollout(1)["next", "reward"], torch.tensor([[3 * GAIN]])
    )


def test_modes_and_nested_reward_keys():
    key = ("agent", "score")
    add = make_env(GreyEnv(reward_key=key), goal=grey(200), mode="add")
    check_env_specs(add)
    close(add.rollout(2)["next", "agent", "score"], torch.full((2, 1), 1 + GAIN))
    keep = make_env(GreyEnv(reward_key=key), goal=grey(200), mode="keep")
    check_env_specs(keep)
    rollout = keep.rollout(2)
    close(rollout["next", "agent", "score"], torch.ones(2, 1))
    close(rollout["next", "agent", "vip_reward"], torch.full((2, 1), GAIN))
    replace = make_env(GreyEnv(reward_key=key), goal=grey(200)).rollout(2)
    assert "reward" not in replace["next"].keys(), "no second reward beside the nested one"


def test_reward_sum_after_it():
    for base in (GreyEnv(length=3), SerialEnv(2, MAKE)):
        env = make_env(base, goal=grey(200))
        env.append_transform(RewardSum())
        env.append_transform(StepCounter())
        check_env_specs(env)
        total = env.rollout(4, break_when_any_done=False)["next", "episode_reward"]
        first = total.reshape(-1, 4, 1)[0].flatten()
        close(first, torch.tensor([1.0, 2.0, 3.0, 1.0]) * GAIN)


# -- goals in every form ------------------------------------------------------------------------------


def test_goal_forms(tmp_path):
    Image.fromarray(np.full((30, 50, 3), 200, np.uint8)).save(tmp_path / "goal.png")
    Image.fromarray(np.full((30, 50), 200, np.uint8)).save(tmp_path / "grey.png")
    goals = [
        grey(200), grey(200, 3, 8, 8), grey(200, 31, 57, 3), grey(200).numpy(), grey(200) / 255,
        Image.open(tmp_path / "goal.png"), tmp_path / "goal.png", str(tmp_path / "grey.png"),
        z_of(200), [grey(190), grey(210)], [tmp_path / "goal.png", z_of(200)], {"pixels": grey(200)},
    ]  # fmt: skip
    for goal in goals:
        close(make_env(goal=goal).rollout(1)["next", "reward"], torch.tensor([[GAIN]]))


def test_nearest_of_a_set():
    env = make_env(goal=[grey(15), grey(200)], goal_reduction="nearest")
    check_env_specs(env)
    # levels 10, 20, 30: nearest goal 5, 5, then 15 levels away
    close(env.rollout(2)["next", "reward"].flatten(), torch.tensor([0.0, -10.0]) * LEVEL)


def test_one_goal_per_env():
    for goals in (torch.stack([grey(200), grey(5)]), torch.stack([z_of(200), z_of(5)])):
        env = make_env(SerialEnv(2, MAKE), goal=goals)
        check_env_specs(env)
        close(env.rollout(2)["next", "reward"][:, 0], torch.tensor([[GAIN], [-GAIN]]))


def test_set_goal_at_any_time():
    env = make_env(SerialEnv(2, MAKE), goal=grey(200))
    td = env.reset()
    env.transform[-1].set_goal(grey(5), env_ids=1)
    td, carried = env.step_and_maybe_reset(env.rand_action(td))
    close(td["next", "reward"], torch.tensor([[GAIN], [-GAIN]]))
    close(td["next", "goal_embedding"], torch.stack([z_of(200), z_of(5)]))
    env.transform[-1].set_goal(grey(5))
    td, carried = env.step_and_maybe_reset(env.rand_action(carried))
    close(td["next", "reward"], torch.full((2, 1), -GAIN))
    # A reset with the tensordict of before set_goal keeps the new goal, not the carried one.
    env.transform[-1].set_goal(grey(200))
    close(env.reset(carried.clone())["goal_embedding"], z_of(200).expand(2, 1))


def test_a_bad_goal_changes_nothing():
    env = make_env(SerialEnv(2, MAKE), goal=grey(200))
    env.reset()
    for bad in (torch.zeros(7), torch.zeros(8, 8, 2, dtype=torch.uint8), "nowhere.png"):
        with pytest.raises((ValueError, FileNotFoundError)):
            env.transform[-1].set_goal(bad)
    close(env.rollout(1)["next", "reward"], torch.full((2, 1, 1), GAIN))
    fresh = make_env(SerialEnv(2, MAKE))
    with pytest.raises(ValueError, match="every environment a goal first"):
        fresh.transform[-1].set_goal(grey(5), env_ids=1)
    nearest = make_env(goal=[grey(5), grey(9)], goal_reduction="nearest")
    nearest.reset()
    with pytest.raises(ValueError, match="a set of 1 goals where there were 2"):
        nearest.transform[-1].set_goal(grey(5))


def test_a_goal_that_is_set_replaces_the_image_of_the_one_before():
    env = make_env(SerialEnv(2, MAKE))
    carried = env.reset(TensorDict(goal_image=torch.stack([grey(200), grey(5)]), batch_size=[2]))
    env.transform[-1].set_goal(grey(100), env_ids=1)
    # Of both environments first, then of the other, which still carries its old image.
    for rows in ([True, False], [False, True], [True, True]):
        carried["_reset"] = torch.tensor(rows)[:, None]
        carried = env.reset(carried)
        close(env.transform[-1].goal, torch.stack([z_of(200), z_of(100)]))
    assert torch.equal(carried["goal_image"], torch.stack([grey(200), grey(0)]))  # none is known
    env.transform[-1].set_goal(grey(100))
    assert not env.reset(carried.exclude("_reset"))["goal_image"].any()
    carried = env.reset(TensorDict(goal_image=torch.stack([grey(200), grey(5)]), batch_size=[2]))
    other = make_env(goal=grey(9))
    env.transform[-1].load_state_dict(other.transform[-1].state_dict())
    carried = env.reset(carried)
    assert not carried["goal_image"].any()
    close(carried["goal_embedding"], z_of(9).expand(2, -1))


def test_a_photo_is_turned_upright(tmp_path):
    photo = Image.fromarray(np.arange(8 * 4 * 3, dtype=np.uint8).reshape(4, 8, 3))
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held a quarter turn
    photo.save(tmp_path / "photo.png", exif=exif)
    turned = torch.from_numpy(np.rot90(np.array(photo), -1).copy())
    assert torch.equal(read_image(tmp_path / "photo.png"), turned)
    with Image.open(tmp_path / "photo.png") as image:
        assert torch.equal(read_image(image), turned)


def test_goals_at_reset_and_automatic_resets_keep_them():
    env = make_env(SerialEnv(2, MAKE))
    images = torch.stack([grey(200), grey(5)])
    td = env.reset(TensorDict(goal_image=images, batch_size=[2]))
    rollout = env.rollout(8, tensordict=td, auto_reset=False, break_when_any_done=False)
    close(rollout["next", "reward"][..., 0], torch.tensor([[GAIN], [-GAIN]]).expand(2, 8))
    # Partial: only the second environment starts again, with another goal.
    td = rollout[:, -1]["next"].exclude("reward")
    td["_reset"] = torch.tensor([[False], [True]])
    td["goal_embedding"] = torch.stack([z_of(1), z_of(100)])
    td = env.reset(td)
    close(td["goal_embedding"][1], z_of(100))
    td = env.step(env.rand_action(td))
    close(td["next", "reward"], torch.full((2, 1), GAIN))
    close(td["next", "goal_embedding"], torch.stack([z_of(200), z_of(100)]))
    check_env_specs(env)


def test_an_environment_that_shows_its_goal_sets_it_at_every_reset():
    """Two environments whose episodes last 2 and 3 steps; each one's second goal lies behind it."""
    makes = [partial(GoalEnv, length=n) for n in (2, 3)]
    env = make_env(SerialEnv(2, makes))
    reward = env.rollout(6, break_when_any_done=False)["next", "reward"][..., 0]
    signs = torch.tensor([[1, 1, -1, -1, 1, 1], [1, 1, 1, -1, -1, -1]])
    close(reward, signs * GAIN)
    check_env_specs(env)
    # A goal given at construction is the user's word against the environment's.
    env = make_env(SerialEnv(2, makes), goal=grey(200))
    reward = env.rollout(6, break_when_any_done=False)["next", "reward"]
    close(reward, torch.full((2, 6, 1), GAIN))


def test_goal_embedding_at_reset_of_workers():
    env = ParallelEnv(2, [partial(make_inside, make) for make in MAKE])
    try:
        goals = torch.stack([z_of(200), z_of(5)])
        td = env.reset(TensorDict(goal_embedding=goals, batch_size=[2]))
        rollout = env.rollout(7, tensordict=td, auto_reset=False, break_when_any_done=False)
        close(rollout["next", "reward"][..., 0], torch.tensor([[GAIN], [-GAIN]]).expand(2, 7))
    finally:
        env.close(raise_if_closed=False)


def test_cameras():
    cameras = ["left", "right"]
    base = GreyEnv(cameras=cameras)
    joined = TransformedEnv(
        base,
        Compose(
            VIPTransform(CountingEncoder(), in_keys=cameras),
            VIPRewardTransform(goal={"left": grey(200), "right": grey(201)}),
        ),
    )
    check_env_specs(joined)
    close(joined.rollout(1)["next", "reward"], torch.tensor([[GAIN * 2**0.5]]))
    apart = TransformedEnv(
        GreyEnv(cameras=cameras),
        Compose(
            VIPTransform(CountingEncoder(), in_keys=cameras, stack_images=False),
            VIPRewardTransform(goal=grey(26), in_keys=["vip_vec_1"]),
        ),
    )
    close(apart.rollout(2)["next", "reward"].flatten(), torch.tensor([10.0, 0.0]) * LEVEL)
    added = VIPRewardTransform(goal={"left": grey(26), "right": grey(200)}, weights=[2.0, 0.5])
    env = TransformedEnv(
        GreyEnv(cameras=cameras), Compose(VIPTransform(CountingEncoder(), in_keys=cameras), added)
    )
    close(env.rollout(1)["next", "reward"], torch.tensor([[2.0 * GAIN + 0.5 * GAIN]]))
    with pytest.raises(ValueError, match="3 weights for the cameras"):
        env = TransformedEnv(
            GreyEnv(cameras=cameras), VIPTransform(CountingEncoder(), in_keys=cameras)
        )
        env.append_transform(VIPRewardTransform(weights=[1.0, 1.0, 1.0])).observation_spec  # noqa: B018
    for wrong in ({"scale": "auto"}, {"form": "sparse"}):
        with pytest.raises(ValueError, match="give numbers"):
            VIPRewardTransform(weights=[1.0, 1.0], **wrong)
    with pytest.raises(ValueError, match="dict"):
        TransformedEnv(
            GreyEnv(cameras=cameras),
            Compose(
                VIPTransform(CountingEncoder(), in_keys=cameras), VIPRewardTransform(goal=grey(1))
            ),
        ).reset()


# -- each frame is encoded once -----------------------------------------------------------------------


def test_embeds_by_itself_and_counts():
    both, alone = CountingEncoder(), CountingEncoder()
    envs = [
        make_env(SerialEnv(2, MAKE), both, goal=grey(200)),
        TransformedEnv(
            SerialEnv(2, MAKE), VIPRewardTransform(grey(200), encoder=alone, in_keys=["pixels"])
        ),
    ]
    for env, encoder in zip(envs, (both, alone), strict=True):
        check_env_specs(env)
        td = env.reset()
        before, calls = encoder.frames, encoder.calls
        for _ in range(2):
            td = env.step(env.rand_action(td))["next"]
        assert (encoder.frames - before, encoder.calls - calls) == (4, 2)
    assert "pixels" in td.keys() and "vip_vec" in td.keys()


def test_encoder_for_goals_only_outside_the_workers():
    workers, outside = [partial(with_vip, make) for make in MAKE], CountingEncoder()
    env = TransformedEnv(SerialEnv(2, workers), VIPRewardTransform(grey(200), encoder=outside))
    check_env_specs(env)
    close(env.rollout(2)["next", "reward"], torch.full((2, 2, 1), GAIN))
    assert outside.frames == 1
    without = TransformedEnv(SerialEnv(2, workers), VIPRewardTransform(z_of(200)))
    check_env_specs(without)
    with pytest.raises(RuntimeError, match="inside the workers.*embedding, or pass encoder="):
        TransformedEnv(SerialEnv(2, workers), VIPRewardTransform(grey(200))).reset()
    env = TransformedEnv(SerialEnv(2, workers), VIPRewardTransform(encoder=CountingEncoder()))
    td = env.reset(TensorDict(goal_image=torch.stack([grey(200), grey(5)]), batch_size=[2]))
    close(td["goal_embedding"], torch.stack([z_of(200), z_of(5)]))


def test_a_declared_goal_image_beside_a_given_goal():
    env = make_env(SerialEnv(2, MAKE), goal=grey(200), goal_image_shape=(16, 12, 3))
    check_env_specs(env)
    goals = torch.stack([grey(5, 16, 12, 3)] * 2)
    td = env.reset(TensorDict(goal_image=goals, batch_size=[2]))
    close(td["goal_embedding"], z_of(5).expand(2, 1))


def with_vip(make):
    return TransformedEnv(make(), VIPTransform(CountingEncoder()))


# -- replay buffers -----------------------------------------------------------------------------------


def transitions(n=6):
    frames = torch.stack([grey(10 * (i + 1)) for i in range(n + 1)])
    return TensorDict(
        {"pixels": frames[:-1], "next": {"pixels": frames[1:], "reward": torch.zeros(n, 1)}},
        batch_size=[n],
    )


def test_replay_buffer_computes_rewards():
    encoder = CountingEncoder()
    for transform in (
        Compose(VIPTransform(encoder), VIPRewardTransform(z_of(200))),
        Compose(VIPTransform(encoder), VIPRewardTransform(grey(200), encoder=encoder)),
        VIPRewardTransform(grey(200), encoder=encoder, in_keys=["pixels"]),
    ):
        buffer = TensorDictReplayBuffer(
            storage=LazyTensorStorage(6), batch_size=4, transform=transform
        )
        buffer.extend(transitions())
        close(buffer.sample()["next", "reward"], torch.full((4, 1), GAIN))
    with pytest.raises(RuntimeError, match="replay buffer.*embedding, or pass encoder="):
        bad = Compose(VIPTransform(encoder), VIPRewardTransform(grey(200)))
        buffer = TensorDictReplayBuffer(storage=LazyTensorStorage(6), batch_size=4, transform=bad)
        buffer.extend(transitions())
        buffer.sample()


def test_goals_of_the_sampled_rows():
    td = VIPTransform(CountingEncoder())(transitions(2))
    td["goal_embedding"] = torch.stack([z_of(200), z_of(5)])
    out = VIPRewardTransform()(td)
    close(out["next", "reward"], torch.tensor([[GAIN], [-GAIN]]))
    assert (td["next", "reward"] == 0).all(), "the caller's tensordict is untouched"


def test_hindsight_replay():
    rollout = make_env(goal=grey(200)).rollout(4)
    buffer = HERReplayBuffer(
        partial(goal_reward, form="distance"),
        her_ratio=1.0,
        strategy="final",
        goal_key="goal_embedding",
        achieved_goal_key=("next", "vip_vec"),
        storage=LazyTensorStorage(4),
        batch_size=16,
    )
    buffer.extend(rollout)
    sample = buffer.sample()
    close(sample["goal_embedding"], z_of(50).expand(16, 1))
    expected = -(z_of(50) - sample["next", "vip_vec"]).norm(dim=-1, keepdim=True)
    close(sample["next", "reward"], expected)


# -- collectors, state, pickling ----------------------------------------------------------------------


def make_collector_env():
    return make_env(GreyEnv(length=3), goal=grey(200))


@pytest.mark.parametrize(
    "cls", [Collector, pytest.param(MultiSyncCollector, marks=pytest.mark.slow)]
)
def test_collectors_over_several_episodes(cls):
    factory = make_collector_env if cls is Collector else [make_collector_env] * 2
    collector = cls(factory, policy=None, frames_per_batch=20, total_frames=40)
    try:
        for batch in collector:
            close(batch["next", "reward"].flatten(), torch.full((20,), GAIN))
            assert batch["next", "done"].sum() >= 6
    finally:
        collector.shutdown()


def test_state_dict_and_pickle():
    env = make_env(goal=grey(200))
    env.reset()
    other = make_env(goal=grey(5))
    other.load_state_dict(env.state_dict())
    close(other.rollout(1)["next", "reward"], torch.tensor([[GAIN]]))
    transform = pickle.loads(pickle.dumps(VIPRewardTransform(grey(200), encoder=CountingEncoder())))
    close(transform.goal, z_of(200))


# -- bad input ------------------------------------------------------------------------------------------


def test_errors(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere.png"):
        VIPRewardTransform("nowhere.png")
    (tmp_path / "bad.png").write_text("text")
    with pytest.raises(ValueError, match="bad.png cannot be read"):
        VIPRewardTransform(tmp_path / "bad.png")
    with pytest.raises(TypeError, match="int"):
        VIPRewardTransform(3)
    for goal, message in (
        (torch.zeros(8, 8, 2, dtype=torch.uint8), "goal image.*colour"),
        (torch.full((8, 8, 3), 255.0), "goal image.*wanted \\[0, 1\\]"),
        (torch.full((8, 8, 3), float("nan")), "goal image.*nan"),
        (torch.zeros(7), "goal embedding of shape \\(7,\\)"),
        (torch.tensor([float("nan")]), "not finite"),
        (torch.stack([grey(1), grey(2)]), "A set of goals is a list"),
        ([], "empty list"),
    ):
        with pytest.raises(ValueError, match=message):
            make_env(goal=goal).reset()
    with pytest.raises(ValueError, match="no goal.*set_goal"):
        make_env().reset()
    with pytest.raises(ValueError, match="'dense'.*difference"):
        VIPRewardTransform(grey(1), form="dense")
    with pytest.raises(ValueError, match="threshold"):
        make_env(goal=grey(1), form="sparse").rollout(1)
    with pytest.raises(ValueError, match="mode='both'"):
        VIPRewardTransform(grey(1), mode="both")
    with pytest.raises(KeyError, match="no 'vip_vec'.*VIPTransform before it"):
        check_env_specs(TransformedEnv(GreyEnv(), VIPRewardTransform(z_of(1))))
    with pytest.raises(ValueError, match="reward_scale"):
        make_env(goal=grey(1), scale="auto").rollout(1)


# -- outside TorchRL ------------------------------------------------------------------------------------


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


class Lamp(gymnasium.Env):
    """Brightens by ten levels a step; renders 8 x 8."""

    action_space = gymnasium.spaces.Discrete(2)
    observation_space = gymnasium.spaces.Box(0, 255, (1,))

    def __init__(self, render_mode="rgb_array"):
        self.render_mode, self.level = render_mode, 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.level = 10
        return np.array([10.0], np.float32), {}

    def step(self, action):
        self.level += 10
        return np.array([self.level], np.float32), 1.0, self.level >= 50, False, {}

    def render(self):
        return np.full((8, 8, 3), self.level, np.uint8)


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


# -- environments that reset themselves -----------------------------------------------------------------


def test_native_autoreset():
    env = make_env(NativeAutoresetEnv(length=3), goal=grey(200))
    rollout = env.rollout(7, break_when_any_done=False)
    # The third and sixth frame belong to the next episode: no progress can be told from them.
    expected = torch.tensor([1.0, 1, 0, 1, 1, 0, 1]) * GAIN
    close(rollout["next", "reward"].flatten(), expected)
    close(rollout["goal_embedding"], z_of(200).expand(7, 1))


class NativeGoalEnv(NativeAutoresetEnv, GoalEnv):
    pass


def test_native_autoreset_takes_up_the_goal_that_is_shown():
    rollout = make_env(NativeGoalEnv(length=3)).rollout(7, break_when_any_done=False)
    levels = [200, 200, 200, 5, 5, 5, 200]
    assert rollout["goal_image"][:, 0, 0, 0].tolist() == levels
    close(rollout["goal_embedding"], torch.stack([z_of(level) for level in levels]))
    expected = torch.tensor([1.0, 1, 0, -1, -1, 0, 1]) * GAIN
    close(rollout["next", "reward"].flatten(), expected)


class LampWithFrames(Lamp):
    observation_space = gymnasium.spaces.Dict(
        pixels=gymnasium.spaces.Box(0, 255, (8, 8, 3), np.uint8)
    )

    def reset(self, **kwargs):
        super().reset(**kwargs)
        return {"pixels": self.render()}, {}

    def step(self, action):
        _, *rest = super().step(action)
        return {"pixels": self.render()}, *rest


def test_the_wrapper_reads_frames_of_the_observation():
    env = VIPRewardWrapper(
        LampWithFrames(None), grey(200), encoder=CountingEncoder(), pixels="pixels"
    )
    env.reset()
    assert env.step(0)[1] == pytest.approx(GAIN, abs=1e-5)
    env.set_goal(grey(0))
    assert env.step(0)[1] == pytest.approx(-GAIN, abs=1e-5)


@pytest.mark.parametrize("mode", ["SAME_STEP", "DISABLED"])
def test_gymnasium_vector_env(mode):
    vector = gymnasium.vector.SyncVectorEnv(
        [LampWithFrames] * 2, autoreset_mode=getattr(gymnasium.vector.AutoresetMode, mode)
    )
    env = make_env(GymWrapper(vector), goal=grey(200))
    rollout = env.rollout(9, break_when_any_done=False)
    assert rollout["next", "done"].sum() == 4  # two episodes of four steps each
    # With SAME_STEP TorchRL blanks the last frame of an episode: nothing is known of its step.
    known = torch.ones(9) if mode == "DISABLED" else torch.tensor([1.0, 1, 1, 0, 1, 1, 1, 0, 1])
    close(rollout["next", "reward"][..., 0], known.expand(2, 9) * GAIN)


@pytest.mark.parametrize("inside", [True, False])
def test_a_reset_with_an_empty_tensordict_keeps_the_goal(inside):
    if inside:
        env = ParallelEnv(2, [partial(make_inside, make) for make in MAKE])
    else:
        env = make_env(SerialEnv(2, MAKE), goal=grey(200))
    try:
        td = env.reset(TensorDict({}, batch_size=[2]))
        close(td["goal_embedding"], z_of(200).expand(2, 1))
    finally:
        env.close(raise_if_closed=False)
