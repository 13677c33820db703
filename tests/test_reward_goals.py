"""The goals of VIPRewardTransform: what may be given, when, and whose it is."""

from functools import partial

import numpy as np
import pytest
import torch
from envs import (
    GAIN,
    LEVEL,
    MAKE,
    STEP,
    CountingEncoder,
    GoalEnv,
    GreyBatch,
    GreyEnv,
    NativeAutoresetEnv,
    NormEncoder,
    grey,
    reward_env,
    worker_env,
    z_of,
)
from PIL import Image
from tensordict import TensorDict
from torchrl.envs import (
    Compose,
    ObservationNorm,
    ParallelEnv,
    RenameTransform,
    SerialEnv,
    TransformedEnv,
)
from torchrl.envs.utils import check_env_specs

from torchrl_vip import VIPReward, VIPRewardTransform, VIPTransform
from torchrl_vip.goals import read_image

close = partial(torch.testing.assert_close, atol=1e-5, rtol=1e-4)


# -- in every form ---------------------------------------------------------------------------------


def test_goal_forms(tmp_path):
    Image.fromarray(np.full((30, 50, 3), 200, np.uint8)).save(tmp_path / "goal.png")
    Image.fromarray(np.full((30, 50), 200, np.uint8)).save(tmp_path / "grey.png")
    goals = [
        grey(200), grey(200, 3, 8, 8), grey(200, 31, 57, 3), grey(200).numpy(), grey(200) / 255,
        Image.open(tmp_path / "goal.png"), tmp_path / "goal.png", str(tmp_path / "grey.png"),
        z_of(200), [grey(190), grey(210)], [tmp_path / "goal.png", z_of(200)], {"pixels": grey(200)},
    ]  # fmt: skip
    for goal in goals:
        close(reward_env(goal=goal).rollout(1)["next", "reward"], torch.tensor([[GAIN]]))


def test_goal_images_of_any_layout_and_width(tmp_path):
    Image.new("RGB", (10, 8), (200, 200, 200)).save(tmp_path / "g.png")
    first = GreyEnv(channels_last=False)
    chain = Compose(
        VIPTransform(CountingEncoder(), channel_dim=-3),
        VIPRewardTransform(goal=tmp_path / "g.png"),
    )
    env = TransformedEnv(first, chain)
    close(env.rollout(2)["next", "reward"], torch.full((2, 1), GAIN))
    wide = reward_env(encoder=NormEncoder(dim=8).eval(), goal=torch.full((3, 8, 8), 0.8))  # D wide
    assert wide.reset()["goal_embedding"].shape == (8,)


def test_a_photo_is_turned_upright(tmp_path):
    photo = Image.fromarray(np.arange(8 * 4 * 3, dtype=np.uint8).reshape(4, 8, 3))
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held a quarter turn
    photo.save(tmp_path / "photo.png", exif=exif)
    turned = torch.from_numpy(np.rot90(np.array(photo), -1).copy())
    assert torch.equal(read_image(tmp_path / "photo.png"), turned)
    with Image.open(tmp_path / "photo.png") as image:
        assert torch.equal(read_image(image), turned)


def test_nearest_of_a_set():
    env = reward_env(goal=[grey(15), grey(200)], goal_reduction="nearest")
    check_env_specs(env)
    # levels 10, 20, 30: nearest goal 5, 5, then 15 levels away
    close(env.rollout(2)["next", "reward"].flatten(), torch.tensor([0.0, -10.0]) * LEVEL)


def test_one_goal_per_env():
    for goals in (torch.stack([grey(200), grey(5)]), torch.stack([z_of(200), z_of(5)])):
        env = reward_env(SerialEnv(2, MAKE), goal=goals)
        check_env_specs(env)
        close(env.rollout(2)["next", "reward"][:, 0], torch.tensor([[GAIN], [-GAIN]]))


def test_stacked_goals_go_to_the_environments_that_are_named():
    env = reward_env(SerialEnv(4, GreyEnv), goal=grey(200))
    env.reset()
    vip = env.transform[-1]
    for goals in (torch.stack([grey(111), grey(33)]), torch.stack([z_of(111), z_of(33)])):
        vip.set_goal(goals, env_ids=[3, 1])
        close(vip.goal, torch.stack([z_of(level) for level in (200, 33, 200, 111)]))
    vip.set_goal(grey(5), env_ids=torch.tensor([[True], [False], [False], [False]]))
    close(vip.goal[0], z_of(5))
    vip.set_goal(grey(77), env_ids=[])
    close(vip.goal, torch.stack([z_of(level) for level in (5, 33, 200, 111)]))
    with pytest.raises(ValueError, match="same for all"):
        vip.set_goal([torch.stack([z_of(1), z_of(2), z_of(3), z_of(4)])])
    for wrong in ([1, 1], [7]):
        with pytest.raises(ValueError, match="env_ids"):
            vip.set_goal(grey(5), env_ids=wrong)


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


def test_set_goal_at_any_time():
    env = reward_env(SerialEnv(2, MAKE), goal=grey(200))
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
    env = reward_env(SerialEnv(2, MAKE), goal=grey(200))
    env.reset()
    for bad in (torch.zeros(7), torch.zeros(8, 8, 2, dtype=torch.uint8), "nowhere.png"):
        with pytest.raises((ValueError, FileNotFoundError)):
            env.transform[-1].set_goal(bad)
    close(env.rollout(1)["next", "reward"], torch.full((2, 1, 1), GAIN))
    fresh = reward_env(SerialEnv(2, MAKE))
    with pytest.raises(ValueError, match="every environment a goal first"):
        fresh.transform[-1].set_goal(grey(5), env_ids=1)
    nearest = reward_env(goal=[grey(5), grey(9)], goal_reduction="nearest")
    nearest.reset()
    with pytest.raises(ValueError, match="a set of 1 goals where there were 2"):
        nearest.transform[-1].set_goal(grey(5))


def test_a_goal_edited_in_place_is_a_new_one():
    env = reward_env(SerialEnv(2, MAKE), goal=grey(200))
    carried = env.reset()
    carried["goal_embedding"][1] = z_of(5)
    close(env.reset(carried)["goal_embedding"], torch.stack([z_of(200), z_of(5)]))
    env = reward_env(SerialEnv(2, MAKE))
    carried = env.reset(TensorDict(goal_image=torch.stack([grey(200), grey(100)]), batch_size=[2]))
    carried["goal_image"][1] = grey(5)
    close(env.reset(carried)["goal_embedding"], torch.stack([z_of(200), z_of(5)]))


def test_a_goal_is_what_it_was_when_it_was_given():
    for goal in (np.full((8, 8, 3), 200, np.uint8), grey(200), z_of(200)):
        vip = VIPReward(goal=goal, encoder=CountingEncoder())
        goal[:] = 0
        close(vip.goal, z_of(200))


def test_a_clone_has_goals_of_its_own():
    env = reward_env(SerialEnv(2, MAKE), goal=grey(200))
    env.reset()
    other = TransformedEnv(SerialEnv(2, MAKE), env.transform.clone())
    other.transform[-1].set_goal(grey(5), env_ids=1)
    close(env.rollout(2)["next", "reward"], torch.full((2, 2, 1), GAIN))
    close(other.rollout(2)["next", "reward"][:, 0], torch.tensor([[GAIN], [-GAIN]]))


@pytest.mark.parametrize("reduction", ["mean", "nearest"])
def test_lists_of_lists_are_refused(reduction):
    with pytest.raises(ValueError, match="a list of lists"):
        reward_env(goal=[[grey(1)], [grey(2)]], goal_reduction=reduction).reset()


def test_a_png_of_16_bits_is_as_bright_as_it_is(tmp_path):
    Image.fromarray(np.full((8, 8), 100 * 257, np.uint16)).save(tmp_path / "deep.png")
    assert (read_image(tmp_path / "deep.png") == 100).all()
    with pytest.raises(ValueError, match="mode 'F'"):
        read_image(Image.fromarray(np.ones((8, 8), np.float32)))


def test_rows_of_a_buffer_take_the_goals_of_their_environments():
    env = reward_env(GreyBatch(2), goal=torch.stack([grey(200), grey(0)]))
    for steps in (2, 3):
        rollout = env.rollout(steps)
        expected = torch.tensor([GAIN, -GAIN]).reshape(2, 1, 1).expand(2, steps, 1)
        close(rollout["next", "reward"], expected)
        close(env.transform[1](rollout)["next", "reward"], expected)
        close(env.transform[1](rollout.exclude("goal_embedding"))["next", "reward"], expected)
    with pytest.raises(ValueError, match="goals for environments"):
        env.transform[1](rollout.exclude("goal_embedding")[:1])


class Free(GreyEnv):
    """Without a state of its own: it steps from the frames that it is given, of any batch size."""

    batch_locked = False

    def _reset(self, tensordict=None, **kwargs):
        batch = () if tensordict is None else tensordict.shape
        pixels = torch.full((*batch, *self.frame_shape), STEP, dtype=torch.uint8)
        return TensorDict({"pixels": pixels}, batch_size=batch)

    def _step(self, tensordict):
        pixels = tensordict["pixels"] + STEP
        done = torch.zeros(*pixels.shape[:-3], 1, dtype=torch.bool)
        out = {"pixels": pixels, "done": done, "terminated": done, "reward": done.float()}
        return TensorDict(out, batch_size=tensordict.batch_size)


def free_env(*behind, goal=None):
    chain = [VIPTransform(CountingEncoder(), del_keys=False), VIPRewardTransform(goal), *behind]
    return TransformedEnv(Free(), Compose(*chain))


def step(env, td):
    """One step of any batch: (what comes next, its reward)."""
    following = env.step(td.copy().set("action", torch.zeros(*td.batch_size, 1)))["next"]
    return following, following["reward"][..., 0]


def test_rows_of_an_environment_without_a_state_have_goals_of_their_own():
    env = free_env()
    rows = env.reset(TensorDict(goal_embedding=z_of(200))).expand(2, 3).clone()
    rows["goal_embedding"][0] = z_of(0)
    following, reward = step(env, rows)
    close(reward, torch.tensor([-GAIN, GAIN]).reshape(2, 1).expand(2, 3))
    close(following["goal_embedding"], rows["goal_embedding"])


def test_without_a_state_a_new_goal_counts_from_the_next_step_on():
    env = free_env(goal=grey(200))
    one = env.reset()
    three = env.reset(TensorDict(batch_size=[3]))
    three["goal_embedding"][1] = z_of(200) + 1  # a row with a goal of its own keeps it
    env.transform[1].set_goal(grey(0))
    one, reward = step(env, one)
    close(reward, torch.tensor(-GAIN))
    close(one["goal_embedding"], z_of(0))
    close(step(env, one)[1], torch.tensor(-GAIN))
    close(step(env, three)[1], torch.tensor([-GAIN, GAIN, -GAIN]))


def test_without_a_state_batches_of_any_size_take_turns():
    env = free_env(goal=grey(200))
    five, four = (env.reset(TensorDict(batch_size=[n])) for n in (5, 4))
    for _ in range(2):
        five, four = env.reset(five), env.reset(four)
        close(step(env, five)[1], torch.full((5,), GAIN))
        close(step(env, four)[1], torch.full((4,), GAIN))
        close(env.rollout(2)["next", "reward"], torch.full((2, 1), GAIN))
    for n in (5, 4):
        goals = z_of(0).expand(n, -1).clone()
        goals[0] = z_of(200)
        td = env.reset(TensorDict(goal_embedding=goals, batch_size=[n]))
        td, reward = step(env, td)
        close(reward, torch.tensor([GAIN] + [-GAIN] * (n - 1)))
        close(step(env, td)[1], reward)
    close(env.rollout(2)["next", "reward"], torch.full((2, 1), GAIN))
    close(env.transform[1].goal, z_of(200))
    env.reset(TensorDict(goal_embedding=z_of(5)))
    close(env.transform[1].goal, z_of(5))  # of the environment's own batch size


def test_without_a_state_what_changes_the_embedding_behind_it_is_refused():
    # it is read from the tensordict, where the next step would find something else
    norm = ObservationNorm(loc=1.0, scale=3.0, in_keys=["vip_vec"])
    with pytest.raises(ValueError, match="ObservationNorm changes .'vip_vec'.*other out_keys"):
        free_env(norm, goal=grey(200)).rollout(2)
    beside = ObservationNorm(loc=1.0, scale=3.0, in_keys=["vip_vec"], out_keys=["normed"])
    rollout = free_env(beside, goal=grey(200)).rollout(2)
    close(rollout["next", "reward"], torch.full((2, 1), GAIN))
    close(rollout["normed"], 3 * rollout["vip_vec"] + 1)
    with pytest.raises(RuntimeError, match="renames or drops"):
        free_env(RenameTransform(["vip_vec"], ["obs"]), goal=grey(200)).rollout(2)


# -- at resets -------------------------------------------------------------------------------------


def test_goals_at_reset_and_automatic_resets_keep_them():
    env = reward_env(SerialEnv(2, MAKE))
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


@pytest.mark.parametrize("inside", [True, False])
def test_a_reset_with_an_empty_tensordict_keeps_the_goal(inside):
    if inside:
        env = ParallelEnv(2, [partial(worker_env, make) for make in MAKE])
    else:
        env = reward_env(SerialEnv(2, MAKE), goal=grey(200))
    try:
        td = env.reset(TensorDict({}, batch_size=[2]))
        close(td["goal_embedding"], z_of(200).expand(2, 1))
    finally:
        env.close(raise_if_closed=False)


@pytest.mark.parametrize("bad", [torch.zeros(2, 3), torch.full((2, 1), torch.nan)])
def test_wrong_goal_embeddings_at_a_reset_are_refused(bad):
    for goal in (None, grey(200)):
        env = reward_env(SerialEnv(2, MAKE), goal=goal)
        with pytest.raises(ValueError, match="goal_embedding"):
            env.reset(TensorDict(goal_embedding=bad, batch_size=[2]))


def test_a_goal_image_of_another_size_at_a_reset_changes_nothing():
    env = reward_env(GreyEnv())
    env.reset(TensorDict({"goal_image": grey(200)}, []))
    with pytest.raises(ValueError, match=r"\(9, 9, 3\) at a reset; wanted \(8, 8, 3\).*set_goal"):
        env.reset(TensorDict({"goal_image": grey(5, 9, 9, 3)}, []))
    close(env.transform[-1].goal.flatten(), z_of(200))


def test_a_goal_that_is_set_replaces_the_image_of_the_one_before():
    env = reward_env(SerialEnv(2, MAKE))
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
    other = reward_env(goal=grey(9))
    env.transform[-1].load_state_dict(other.transform[-1].state_dict())
    carried = env.reset(carried)
    assert not carried["goal_image"].any()
    close(carried["goal_embedding"], z_of(9).expand(2, -1))


def test_a_declared_goal_image_beside_a_given_goal():
    env = reward_env(SerialEnv(2, MAKE), goal=grey(200), goal_image_shape=(16, 12, 3))
    check_env_specs(env)
    goals = torch.stack([grey(5, 16, 12, 3)] * 2)
    td = env.reset(TensorDict(goal_image=goals, batch_size=[2]))
    close(td["goal_embedding"], z_of(5).expand(2, 1))


def test_goal_embedding_at_reset_of_workers():
    env = ParallelEnv(2, [partial(worker_env, make) for make in MAKE])
    try:
        goals = torch.stack([z_of(200), z_of(5)])
        td = env.reset(TensorDict(goal_embedding=goals, batch_size=[2]))
        rollout = env.rollout(7, tensordict=td, auto_reset=False, break_when_any_done=False)
        close(rollout["next", "reward"][..., 0], torch.tensor([[GAIN], [-GAIN]]).expand(2, 7))
    finally:
        env.close(raise_if_closed=False)


def test_an_environment_that_shows_its_goal_sets_it_at_every_reset():
    """Two environments whose episodes last 2 and 3 steps; each one's second goal lies behind it."""
    makes = [partial(GoalEnv, length=n) for n in (2, 3)]
    env = reward_env(SerialEnv(2, makes))
    reward = env.rollout(6, break_when_any_done=False)["next", "reward"][..., 0]
    signs = torch.tensor([[1, 1, -1, -1, 1, 1], [1, 1, 1, -1, -1, -1]])
    close(reward, signs * GAIN)
    check_env_specs(env)
    # A goal given at construction is the user's word against the environment's.
    env = reward_env(SerialEnv(2, makes), goal=grey(200))
    reward = env.rollout(6, break_when_any_done=False)["next", "reward"]
    close(reward, torch.full((2, 6, 1), GAIN))


class NativeGoalEnv(NativeAutoresetEnv, GoalEnv):
    pass


def test_native_autoreset_takes_up_the_goal_that_is_shown():
    rollout = reward_env(NativeGoalEnv(length=3)).rollout(7, break_when_any_done=False)
    levels = [200, 200, 200, 5, 5, 5, 200]
    assert rollout["goal_image"][:, 0, 0, 0].tolist() == levels
    close(rollout["goal_embedding"], torch.stack([z_of(level) for level in levels]))
    expected = torch.tensor([1.0, 1, 0, -1, -1, 0, 1]) * GAIN
    close(rollout["next", "reward"].flatten(), expected)


def test_two_goals_of_an_environment_need_two_keys():
    def make(**options):
        env = TransformedEnv(GreyBatch(2), VIPTransform(CountingEncoder()))
        env.append_transform(VIPRewardTransform(grey(200), mode="keep", vip_reward_key="to_bright"))
        return env.append_transform(
            VIPRewardTransform(grey(0), mode="keep", vip_reward_key="to_dark", **options)
        )

    with pytest.raises(ValueError, match="two goals under 'goal_embedding'"):
        make().reset()
    env = make(goal_key="dark_embedding")
    check_env_specs(env)
    td = env.step(env.reset().set("action", torch.zeros(2, 1)))
    td = env.reset(env.step_mdp(td)).set("action", torch.zeros(2, 1))
    td = env.step(td)
    close(td["next", "to_bright"], torch.full((2, 1), GAIN))
    close(td["next", "to_dark"], torch.full((2, 1), -GAIN))


def test_one_goal_each_at_a_reset_where_sets_are_kept():
    env = reward_env(GreyBatch(2), goal=[grey(15), grey(200)], goal_reduction="nearest")
    goals = torch.stack([z_of(5), z_of(9)])
    td = env.reset(TensorDict(goal_embedding=goals, batch_size=[2]))
    close(td["goal_embedding"], goals.unsqueeze(1).expand(2, 2, 1))
