"""Frames without the robot: what was last seen behind it.

The robot is a white column at x = t, t steps after a reset. Behind it column x has level 10 x, and all
brightens by one level a step. So the column that it covers shows 10 t + t - 1, and after a reset the mean of
the others, 40.
"""

import copy
import pickle
import warnings

import pytest
import torch
from envs import CountingEncoder, grey
from tensordict import TensorDict
from torchrl.data import Bounded, Categorical, Composite, Unbounded
from torchrl.envs import Compose, EnvBase, SerialEnv, TransformedEnv
from torchrl.envs.utils import check_env_specs

from torchrl_vip import (
    BehindRobot,
    MaskRobot,
    VIPReward,
    VIPRewardTransform,
    VIPTransform,
    mask_robot,
    preprocess,
)

N = 8


def scene(t):
    """Levels ``[N, N]`` without the robot."""
    return (10 * torch.arange(N) + t).to(torch.uint8).expand(N, N)


def covered(t):
    return (torch.arange(N) == t).expand(N, N)


def with_robot(t):
    return torch.where(covered(t), 255, scene(t)).to(torch.uint8)


def unmasked(t):
    """What a frame shows without the robot, t steps after a reset."""
    behind = 40 if t == 0 else 10 * t + t - 1
    return torch.where(covered(t), behind, scene(t)).to(torch.uint8)


def rgb(levels, channels=-1):
    return torch.stack([levels] * 3, channels).clone()


class ArmEnv(EnvBase):
    """Of the batch shape ``batch``; environment i ends after ``length`` + i steps."""

    def __init__(self, batch=(), length=4, camera="pixels", dtype=torch.bool, channels=-1):
        super().__init__(device="cpu", batch_size=batch)
        self.length, self.camera, self.dtype, self.channels = length, camera, dtype, channels
        shape = (*batch, N, N, 3) if channels == -1 else (*batch, 3, N, N)
        mask = Bounded(0, 255, (*batch, N, N), dtype=dtype)
        if dtype == torch.bool:
            mask = Categorical(2, (*batch, N, N), dtype=dtype)
        self.observation_spec = Composite(
            {camera: Bounded(0, 255, shape, dtype=torch.uint8), "robot_mask": mask}, shape=batch
        )
        self.action_spec = Bounded(-1, 1, shape=(*batch, 1))
        self.reward_spec = Unbounded((*batch, 1))

    def _seen(self, **more):
        times = self.time.flatten().tolist()
        frames = torch.stack([rgb(with_robot(t), self.channels) for t in times])
        masks = torch.stack([covered(t) for t in times])
        if self.dtype == torch.uint8:
            masks = masks.to(torch.uint8) * 255
        done = self.time >= self.length + torch.arange(len(times)).reshape(self.batch_size)
        done = done.unsqueeze(-1)
        return TensorDict(
            {
                self.camera: frames.reshape(*self.batch_size, *frames.shape[1:]),
                "robot_mask": masks.reshape(*self.batch_size, N, N),
                "done": done,
                "terminated": done.clone(),
                **more,
            },
            self.batch_size,
        )

    def _reset(self, tensordict=None, **kwargs):
        rows = None if tensordict is None else tensordict.get("_reset", None)
        if rows is None:
            self.time = torch.zeros(self.batch_size, dtype=torch.int64)
        else:
            self.time = torch.where(rows.reshape(self.batch_size), 0, self.time)
        return self._seen()

    def _step(self, tensordict):
        self.time = self.time + 1
        return self._seen(reward=torch.zeros(*self.batch_size, 1))

    def _set_seed(self, seed):
        pass


class NativeArmEnv(ArmEnv):
    """Resets itself in ``step``: the frame after a finished episode is the next one's first."""

    def __init__(self, **options):
        super().__init__(**options)
        self._torchrl_native_autoreset = True

    def _step(self, tensordict):
        out = super()._step(tensordict)
        if out["done"].any():
            out.update(self._reset().exclude("done", "terminated"))
        return out


def arm_env(base=None, **options):
    return TransformedEnv(ArmEnv() if base is None else base, MaskRobot(**options))


def shown(tensordict):
    """Level ``[*B, N, N]`` of frames."""
    return tensordict["pixels"][..., 0]


def step(env, tensordict):
    tensordict["action"] = torch.zeros(*tensordict.batch_size, 1)
    return env.step_mdp(env.step(tensordict))


def at(*times):
    return torch.stack([unmasked(t) for t in times])


pytestmark = pytest.mark.filterwarnings("ignore:the robot covers")


# -- what is shown ----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8])
@pytest.mark.parametrize("channels", [-1, -3])
def test_masked_pixels_show_what_was_last_seen_there(channels, dtype):
    env = arm_env(ArmEnv(channels=channels, dtype=dtype))
    check_env_specs(env)
    rollout = env.rollout(3)
    for t in range(3):
        torch.testing.assert_close(rollout["pixels"][t], rgb(unmasked(t), channels))
    torch.testing.assert_close(rollout["next", "pixels"][-1], rgb(unmasked(3), channels))


@pytest.mark.parametrize("shape", [(N, N), (N, N, 1), (1, N, N)])
def test_floating_point_and_masks_with_a_channel(shape):
    behind = BehindRobot()
    for t in range(3):
        frame = rgb(with_robot(t)).float() / 255
        mask = covered(t).reshape(shape).numpy()
        got = behind.step(frame.numpy(), mask)  # the first step is a start
        torch.testing.assert_close(got, rgb(unmasked(t)).float() / 255)


def test_a_robot_that_rests_is_never_seen_behind():
    behind = BehindRobot()
    first = behind.start(rgb(with_robot(0)), covered(0))
    brighter = torch.where(covered(0), 255, scene(9)).to(torch.uint8)
    got = behind.step(rgb(brighter), covered(0))
    assert (got[:, 0] == first[:, 0]).all(), "the fill is that of the first frame"
    assert (got[:, 1:] == rgb(scene(9))[:, 1:]).all()


def test_a_frame_that_is_all_robot_is_grey():
    everywhere = torch.ones(N, N, dtype=torch.bool)
    assert (mask_robot(rgb(scene(0)), everywhere) == 128).all()
    assert (mask_robot(rgb(scene(0)).float() / 255, everywhere) == 0.5).all()


# -- resets -----------------------------------------------------------------------------------------


def test_automatic_resets_forget_in_their_own_environment_alone():
    env = arm_env(SerialEnv(2, [lambda: ArmEnv(length=3), lambda: ArmEnv(length=5)]))
    frames = shown(env.rollout(6, break_when_any_done=False))
    torch.testing.assert_close(frames[0], at(0, 1, 2, 0, 1, 2))
    torch.testing.assert_close(frames[1], at(0, 1, 2, 3, 4, 0))


def test_a_partial_reset_forgets_in_these_rows_alone():
    env = arm_env(ArmEnv(batch=(3,), length=9))
    tensordict = step(env, step(env, env.reset()))
    torch.testing.assert_close(shown(tensordict), at(2, 2, 2))
    rows = torch.tensor([[False], [True], [False]])
    tensordict = env.reset(tensordict.set("_reset", rows))
    torch.testing.assert_close(shown(tensordict), at(2, 0, 2))
    tensordict = step(env, tensordict)
    torch.testing.assert_close(shown(tensordict), at(3, 1, 3))
    torch.testing.assert_close(shown(env.reset()), at(0, 0, 0))


def test_the_first_frame_of_an_environment_that_resets_itself_is_a_start():
    env = arm_env(NativeArmEnv(length=3))
    frames = shown(env.rollout(6, break_when_any_done=False))
    torch.testing.assert_close(frames, at(0, 1, 2, 0, 1, 2))


def test_an_environment_that_does_not_step_is_shown_as_it_was():
    env = arm_env(SerialEnv(2, [ArmEnv, ArmEnv]))
    tensordict = step(env, env.reset()).set("_step", torch.tensor([[True], [False]]))
    tensordict = step(env, tensordict)
    torch.testing.assert_close(shown(tensordict), at(2, 1))
    tensordict.pop("_step", None)
    torch.testing.assert_close(shown(step(env, tensordict)), at(3, 2))


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda env: pickle.loads(pickle.dumps(env))])
def test_a_copy_in_mid_episode_has_seen_the_same(copied):
    env = arm_env()
    tensordict = step(env, env.reset())
    other = copied(env)
    torch.testing.assert_close(shown(step(other, tensordict.clone())), unmasked(2))
    env.transform.clone()._behind["pixels"].start(grey(0), covered(0))
    torch.testing.assert_close(shown(step(env, tensordict)), unmasked(2))


def test_whoever_edits_a_frame_in_place_changes_no_memory():
    env = arm_env()
    tensordict = env.reset()
    tensordict["pixels"].zero_()
    torch.testing.assert_close(shown(step(env, tensordict)), unmasked(1))


# -- with a reward ----------------------------------------------------------------------------------


def test_the_reward_is_of_the_frames_without_the_robot():
    chain = Compose(MaskRobot(), VIPTransform(CountingEncoder()), VIPRewardTransform(grey(200)))
    env = TransformedEnv(ArmEnv(batch=(2,), length=9), chain)
    tensordict = step(env, env.reset())
    tensordict = env.reset(tensordict.set("_reset", torch.tensor([[True], [False]])))
    tensordict["action"] = torch.zeros(2, 1)
    reward = env.step(tensordict)["next", "reward"][:, 0]
    z = [preprocess(rgb(unmasked(t))).mean() for t in range(3)]
    torch.testing.assert_close(
        reward, torch.stack([z[1] - z[0], z[2] - z[1]]), atol=1e-5, rtol=1e-4
    )


def test_in_a_robots_own_loop():
    vip, behind = VIPReward(grey(200), encoder=CountingEncoder()), BehindRobot()
    vip.reset(behind.start(rgb(with_robot(0)).numpy(), covered(0).numpy()))
    z = [preprocess(rgb(unmasked(t))).mean() for t in range(2)]
    got = vip.reward(behind.step(rgb(with_robot(1)).numpy(), covered(1).numpy()))
    assert got == pytest.approx(float(z[1] - z[0]), abs=1e-5)


# -- options ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("as_float", [False, True])
@pytest.mark.parametrize("channels", [-1, -3])
def test_what_was_never_seen_shows_the_background(as_float, channels, recwarn):
    picture = rgb(scene(0), channels)
    background = picture.float() / 255 if as_float else picture
    got = mask_robot(rgb(with_robot(0)), covered(0), background)
    torch.testing.assert_close(got, rgb(scene(0)))
    env = arm_env(background=background)
    torch.testing.assert_close(shown(env.reset()), scene(0))
    torch.testing.assert_close(shown(step(env, env.reset())), unmasked(1))
    assert not [w for w in recwarn if "robot covers" in str(w.message)]


def test_a_mask_grows():
    got = mask_robot(rgb(with_robot(3)), covered(3), grey(7), grow=1)
    assert (got[:, 2:5] == 7).all()
    assert (got[:, [1, 5]] == rgb(scene(3))[:, [1, 5]]).all()


@pytest.mark.filterwarnings("default:the robot covers")
def test_one_warning_says_that_something_was_never_seen():
    env = arm_env()
    with pytest.warns(UserWarning, match="the robot covers 12% of the first frame.*background="):
        env.reset()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        env.rollout(9, break_when_any_done=False)


def test_several_cameras():
    class TwoCameras(ArmEnv):
        """The second one never sees the robot."""

        def __init__(self):
            super().__init__()
            spec = self.observation_spec
            frames, masks = spec["pixels"].clone(), spec["robot_mask"].clone()
            spec["pixels"] = Composite(a=frames, b=frames.clone())
            spec["robot_mask"] = Composite(a=masks, b=masks.clone())

        def _seen(self, **more):
            seen = super()._seen(**more)
            frames, mask = seen["pixels"], seen["robot_mask"]
            seen["pixels"] = TensorDict(a=frames, b=torch.zeros_like(frames))
            seen["robot_mask"] = TensorDict(a=mask, b=torch.zeros_like(mask))
            return seen

    cameras = [("pixels", "a"), ("pixels", "b")]
    masks = [("robot_mask", "a"), ("robot_mask", "b")]
    env = arm_env(
        TwoCameras(), in_keys=cameras, mask_key=masks, background={("pixels", "a"): grey(3)}
    )
    check_env_specs(env)
    tensordict = env.reset()
    assert (tensordict["pixels", "a"][:, 0] == 3).all()
    assert (tensordict["pixels", "b"] == 0).all()


# -- errors -----------------------------------------------------------------------------------------


def test_errors_say_what_was_wanted():
    frame = rgb(scene(0))
    with pytest.raises(TypeError, match="a mask of dtype torch.float32; wanted bool"):
        mask_robot(frame, covered(0).float())
    with pytest.raises(
        ValueError, match=r"a mask of shape \(4, 4\) for frames of shape \(8, 8, 3\)"
    ):
        mask_robot(frame, covered(0)[:4, :4])
    with pytest.raises(ValueError, match=r"a background of \(4, 4\) pixels for frames of \(8, 8\)"):
        mask_robot(frame, covered(0), frame[:4, :4])
    with pytest.raises(ValueError, match="grow=-1 is invalid"):
        BehindRobot(grow=-1)
    with pytest.raises(KeyError, match="MaskRobot found no 'arm'.*mask_key="):
        arm_env(mask_key="arm").reset()
    with pytest.raises(ValueError, match="wanted one for each, as a list"):
        MaskRobot(in_keys=["a", "b"])
    with pytest.raises(KeyError, match="a background for .*wrist"):
        MaskRobot(background={"wrist": frame})
    with pytest.raises(ValueError, match="MaskRobot outside of an environment.*in no order"):
        MaskRobot()(ArmEnv().rollout(2))

    class Stateless(ArmEnv):
        batch_locked = False

    with pytest.raises(ValueError, match="without a state of its own"):
        arm_env(Stateless()).reset()
