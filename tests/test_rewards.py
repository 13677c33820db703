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
    GAIN,
    LEVEL,
    MAKE,
    CountingEncoder,
    GreyAgents,
    GreyBatch,
    GreyEnv,
    Lamp,
    LampWithFrames,
    NativeAutoresetEnv,
    NormEncoder,
    grey,
    reward_env,
    worker_env,
    z_of,
)
from tensordict import TensorDict
from torchrl.collectors import Collector, MultiSyncCollector
from torchrl.data import HERReplayBuffer, LazyTensorStorage, TensorDictReplayBuffer
from torchrl.envs import (
    CatFrames,
    Compose,
    ConditionalPolicySwitch,
    FrameSkipTransform,
    GymWrapper,
    NoopResetEnv,
    ObservationNorm,
    ParallelEnv,
    RewardSum,
    SerialEnv,
    StepCounter,
    TransformedEnv,
)
from torchrl.envs.utils import check_env_specs

from torchrl_vip import VIPRewardTransform, VIPTransform, goal_reward

close = partial(torch.testing.assert_close, atol=1e-5, rtol=1e-4)


# -- the number, the shape, the spec ------------------------------------------------------------------


def test_single_env():
    env = reward_env(goal=grey(200))
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


@pytest.mark.parametrize(
    "after", [partial(ObservationNorm, loc=1.0, scale=3.0), partial(CatFrames, N=2, dim=-1)]
)
def test_transforms_after_it_do_not_change_what_is_compared(after):
    env = reward_env(GreyEnv(length=6), goal=grey(200)).append_transform(after(in_keys=["vip_vec"]))
    close(env.rollout(3)["next", "reward"], torch.full((3, 1), GAIN))


def test_the_encoder_is_found_in_nested_chains():
    nested = Compose(Compose(VIPTransform(CountingEncoder())), VIPRewardTransform(goal=grey(200)))
    inner = TransformedEnv(GreyEnv(), VIPTransform(CountingEncoder()))
    outer = TransformedEnv(inner, VIPRewardTransform(goal=grey(200)), auto_unwrap=False)
    for env in (TransformedEnv(GreyEnv(), nested), outer):
        close(env.rollout(2)["next", "reward"], torch.full((2, 1), GAIN))


def test_past_the_goal_the_reward_turns():
    rewards = reward_env(goal=grey(25)).rollout(3)["next", "reward"].flatten()
    # levels 10, 20, 30, 40 are 15, 5, 5, 15 from the goal
    close(rewards, torch.tensor([10.0, 0.0, -10.0]) * LEVEL)


@pytest.mark.parametrize("cls", [SerialEnv, ParallelEnv])
@pytest.mark.parametrize("inside", [True, False])
def test_two_envs_reset_at_different_steps(cls, inside):
    if inside:
        env = cls(2, [partial(worker_env, make) for make in MAKE])
    else:
        env = reward_env(cls(2, MAKE), goal=grey(200))
    try:
        check_env_specs(env)
        rollout = env.rollout(12, break_when_any_done=False)
        # An automatic reset darkens the frame by 20 or more levels: never seen in a reward.
        close(rollout["next", "reward"], torch.full((2, 12, 1), GAIN))
        assert rollout["next", "goal_embedding"].shape == (2, 12, 1)
        close(rollout["goal_embedding"], z_of(200).expand(2, 12, 1))
    finally:
        env.close(raise_if_closed=False)


def test_forms():
    levels = {"difference": GAIN, "distance": -180 * LEVEL, "potential": (190 - 0.9 * 180) * LEVEL}
    for form, value in levels.items():
        reward = reward_env(goal=grey(200), form=form, gamma=0.9).rollout(1)["next", "reward"]
        close(reward, torch.tensor([[value]]))
    sparse = reward_env(goal=grey(40), form="sparse", threshold=10.5 * LEVEL)
    close(sparse.rollout(3)["next", "reward"].flatten(), torch.tensor([0.0, 1.0, 1.0]))
    close(
        reward_env(goal=grey(200), scale=3.0).rollout(1)["next", "reward"],
        torch.tensor([[3 * GAIN]]),
    )


def test_modes_and_nested_reward_keys():
    key = ("agent", "score")
    add = reward_env(GreyEnv(reward_key=key), goal=grey(200), mode="add")
    check_env_specs(add)
    close(add.rollout(2)["next", "agent", "score"], torch.full((2, 1), 1 + GAIN))
    keep = reward_env(GreyEnv(reward_key=key), goal=grey(200), mode="keep")
    check_env_specs(keep)
    rollout = keep.rollout(2)
    close(rollout["next", "agent", "score"], torch.ones(2, 1))
    close(rollout["next", "agent", "vip_reward"], torch.full((2, 1), GAIN))
    replace = reward_env(GreyEnv(reward_key=key), goal=grey(200)).rollout(2)
    assert "reward" not in replace["next"].keys(), "no second reward beside the nested one"


def test_reward_sum_after_it():
    for base in (GreyEnv(length=3), SerialEnv(2, MAKE)):
        env = reward_env(base, goal=grey(200))
        env.append_transform(RewardSum())
        env.append_transform(StepCounter())
        check_env_specs(env)
        total = env.rollout(4, break_when_any_done=False)["next", "episode_reward"]
        first = total.reshape(-1, 4, 1)[0].flatten()
        close(first, torch.tensor([1.0, 2.0, 3.0, 1.0]) * GAIN)


# -- goals in every form ------------------------------------------------------------------------------


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
        reward_env(SerialEnv(2, MAKE), both, goal=grey(200)),
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


def with_vip(make):
    return TransformedEnv(make(), VIPTransform(CountingEncoder()))


# -- replay buffers -----------------------------------------------------------------------------------


def transitions(n=6):
    frames = torch.stack([grey(10 * (i + 1)) for i in range(n + 1)])
    return TensorDict(
        {"pixels": frames[:-1], "next": {"pixels": frames[1:], "reward": torch.zeros(n, 1)}},
        batch_size=[n],
    )


def buffer_of(*transforms):
    """Six transitions, through the transforms given whole or appended one by one."""
    buffer = TensorDictReplayBuffer(
        storage=LazyTensorStorage(6), batch_size=4, transform=transforms[0]
    )
    for transform in transforms[1:]:
        buffer.append_transform(transform)
    buffer.extend(transitions())
    return buffer


def test_replay_buffer_computes_rewards():
    encoder = CountingEncoder()
    for transforms in (
        [Compose(VIPTransform(encoder), VIPRewardTransform(z_of(200)))],
        [Compose(VIPTransform(encoder), VIPRewardTransform(grey(200), encoder=encoder))],
        [VIPRewardTransform(grey(200), encoder=encoder, in_keys=["pixels"])],
        [Compose(VIPTransform(encoder), VIPRewardTransform(grey(200)))],
        [VIPTransform(encoder), VIPRewardTransform(grey(200))],
        [Compose(Compose(VIPTransform(encoder)), Compose(VIPRewardTransform(grey(200))))],
    ):
        sample = buffer_of(*transforms).sample()
        close(sample["next", "reward"], torch.full((4, 1), GAIN))


@pytest.mark.parametrize("apart", [False, True])
@pytest.mark.parametrize("scale", ["auto", "auto-other"])
def test_a_replay_buffer_takes_the_scale_of_the_encoder_before(apart, scale):
    encoder = CountingEncoder()
    encoder.config = {"reward_scale": 3.0, "reward_scale_other": 5.0}
    transforms = [VIPTransform(encoder), VIPRewardTransform(grey(200), scale=scale)]
    buffer = buffer_of(*transforms) if apart else buffer_of(Compose(*transforms))
    gain = {"auto": 3.0, "auto-other": 5.0}[scale] * GAIN
    close(buffer.sample()["next", "reward"], torch.full((4, 1), gain))


def test_a_replay_buffer_of_embeddings_alone_says_what_a_goal_image_needs():
    rows = VIPTransform(CountingEncoder())(transitions())
    buffer = TensorDictReplayBuffer(
        storage=LazyTensorStorage(6), batch_size=4, transform=VIPRewardTransform(grey(200))
    )
    buffer.extend(rows)
    with pytest.raises(RuntimeError, match="replay buffer.*embedding, or pass encoder="):
        buffer.sample()


def test_an_unknown_next_embedding_is_no_reward_and_one_warning():
    rows = VIPTransform(CountingEncoder())(transitions())
    rows["next", "vip_vec"][[1, 4]] = torch.nan
    for form in ("difference", "distance"):
        with pytest.warns(UserWarning, match="of 2 of 6 rows is not known") as warned:
            reward = VIPRewardTransform(z_of(200), form=form)(rows)["next", "reward"].flatten()
        assert len(warned) == 1 and reward[[1, 4]].tolist() == [0, 0]
        assert reward[[0, 2, 3, 5]].isfinite().all() and reward[0] != 0
    rows["vip_vec"][2] = torch.nan
    with pytest.raises(ValueError, match="of 1 of 6 rows is not finite"):
        VIPRewardTransform(z_of(200))(rows)


def test_goals_of_the_sampled_rows():
    td = VIPTransform(CountingEncoder())(transitions(2))
    td["goal_embedding"] = torch.stack([z_of(200), z_of(5)])
    out = VIPRewardTransform()(td)
    close(out["next", "reward"], torch.tensor([[GAIN], [-GAIN]]))
    assert (td["next", "reward"] == 0).all(), "the caller's tensordict is untouched"


def test_hindsight_replay():
    rollout = reward_env(goal=grey(200)).rollout(4)
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
    return reward_env(GreyEnv(length=3), goal=grey(200))


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
    env = reward_env(goal=grey(200))
    env.reset()
    other = reward_env(goal=grey(5))
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
            reward_env(goal=goal).reset()
    with pytest.raises(ValueError, match="no goal.*set_goal"):
        reward_env().reset()
    with pytest.raises(ValueError, match="'dense'.*difference"):
        VIPRewardTransform(grey(1), form="dense")
    with pytest.raises(ValueError, match="threshold"):
        reward_env(goal=grey(1), form="sparse").rollout(1)
    with pytest.raises(ValueError, match="mode='both'"):
        VIPRewardTransform(grey(1), mode="both")
    with pytest.raises(KeyError, match="no 'vip_vec'.*VIPTransform before it"):
        check_env_specs(TransformedEnv(GreyEnv(), VIPRewardTransform(z_of(1))))
    with pytest.raises(ValueError, match="reward_scale"):
        reward_env(goal=grey(1), scale="auto").rollout(1)


# -- outside TorchRL ------------------------------------------------------------------------------------


# -- environments that reset themselves -----------------------------------------------------------------


def test_native_autoreset():
    env = reward_env(NativeAutoresetEnv(length=3), goal=grey(200))
    rollout = env.rollout(7, break_when_any_done=False)
    # The third and sixth frame belong to the next episode: no progress can be told from them.
    expected = torch.tensor([1.0, 1, 0, 1, 1, 0, 1]) * GAIN
    close(rollout["next", "reward"].flatten(), expected)
    close(rollout["goal_embedding"], z_of(200).expand(7, 1))


@pytest.mark.parametrize("mode", ["SAME_STEP", "DISABLED"])
def test_gymnasium_vector_env(mode):
    vector = gymnasium.vector.SyncVectorEnv(
        [LampWithFrames] * 2, autoreset_mode=getattr(gymnasium.vector.AutoresetMode, mode)
    )
    env = reward_env(GymWrapper(vector), goal=grey(200))
    rollout = env.rollout(9, break_when_any_done=False)
    assert rollout["next", "done"].sum() == 4  # two episodes of four steps each
    # With SAME_STEP TorchRL blanks the last frame of an episode: nothing is known of its step.
    known = torch.ones(9) if mode == "DISABLED" else torch.tensor([1.0, 1, 1, 0, 1, 1, 1, 0, 1])
    close(rollout["next", "reward"][..., 0], known.expand(2, 9) * GAIN)


# -- what stands beside it --------------------------------------------------------------------------


def test_normalising_before_it_is_refused_where_the_goal_is_an_image():
    env = TransformedEnv(GreyEnv(), VIPTransform(CountingEncoder()))
    env.append_transform(ObservationNorm(loc=1.0, scale=3.0, in_keys=["vip_vec"]))
    env.append_transform(VIPRewardTransform(goal=grey(40)))
    with pytest.raises(RuntimeError, match="ObservationNorm changes.*put it behind"):
        env.rollout(1)


@pytest.mark.parametrize(
    "steps",
    [
        partial(FrameSkipTransform, 2),
        partial(NoopResetEnv, 3, random=False),
        partial(ConditionalPolicySwitch, policy=lambda td: td, condition=lambda td: False),
    ],
)
def test_what_steps_by_itself_is_refused_after_it(steps):
    env = reward_env(GreyEnv(length=9), goal=grey(200)).append_transform(steps())
    with pytest.raises(ValueError, match="put it before the VIPTransform"):
        env.reset()


def test_an_automatic_reset_of_torchrls_shows_no_progress():
    class AutoReset(GreyEnv):
        def _step(self, tensordict):
            out = super()._step(tensordict)
            if out["done"].any():
                out.update(GreyEnv._reset(self))
            return out

        def _reset(self, tensordict=None, **kwargs):
            begun = tensordict is not None and "_reset" in tensordict.keys()
            return tensordict.copy() if begun else super()._reset()

    env = reward_env(AutoReset(length=3, auto_reset=True, auto_reset_replace=True), goal=grey(200))
    rollout = env.rollout(7, break_when_any_done=False)
    close(rollout["next", "reward"].flatten(), torch.tensor([1.0, 1, 0, 1, 1, 0, 1]) * GAIN)


def test_the_last_frame_of_a_box_counts():
    class Shown(Lamp):
        observation_space = gymnasium.spaces.Box(0, 255, (8, 8, 3), np.uint8)

        def reset(self, **kwargs):
            super().reset(**kwargs)
            return self.render(), {}

        def step(self, action):
            _, *rest = super().step(action)
            return self.render(), *rest

    vector = gymnasium.vector.SyncVectorEnv(
        [Shown] * 2, autoreset_mode=gymnasium.vector.AutoresetMode.SAME_STEP
    )
    env = TransformedEnv(
        GymWrapper(vector),
        Compose(
            VIPTransform(CountingEncoder(), in_keys=["observation"]), VIPRewardTransform(grey(200))
        ),
    )
    rollout = env.rollout(9, break_when_any_done=False)
    assert rollout["next", "done"].sum() == 4
    close(rollout["next", "reward"], torch.full((2, 9, 1), GAIN))


def test_agents_of_environments_that_reset_themselves():
    env = GreyBatch(4, length=2, agents=(3,))
    env._torchrl_native_autoreset = True
    env = reward_env(env, goal=grey(200))
    td = env.reset()
    for done in (False, True):
        td = env.step(td.set("action", torch.zeros(4, 1)))
        assert bool(td["next", "done"].all()) is done
        close(td["next", "reward"], torch.full((4, 3, 1), 0.0 if done else GAIN))
        td = env.step_mdp(td)


@pytest.mark.parametrize("cls", [SerialEnv, pytest.param(ParallelEnv, marks=pytest.mark.slow)])
@pytest.mark.parametrize("own_frames", [False, True])
def test_agents_that_are_reset_one_by_one(cls, own_frames):
    key, vip_key = ("agents", "pixels"), ("agents", "vip_vec")
    vip = VIPTransform(CountingEncoder(), in_keys=[key], out_keys=[vip_key])
    if own_frames:
        transform = VIPRewardTransform(grey(200), encoder=vip, in_keys=[key])
    else:
        transform = Compose(vip, VIPRewardTransform(grey(200), in_keys=[vip_key]))
    env = TransformedEnv(cls(2, GreyAgents), transform)
    try:
        check_env_specs(env)
        rollout = env.rollout(8, break_when_any_done=False)
    finally:
        env.close(raise_if_closed=False)
    expected = torch.tensor([1.0, 2.0]).expand(2, 8, 2) * LEVEL
    close(rollout["next", "agents", "reward"][..., 0], expected)
    # agent 0 ends after steps 3 and 6, agent 1 after step 5; each begins again at level 10
    levels = torch.tensor([[10, 11, 12, 10, 11, 12, 10, 11], [10, 12, 14, 16, 18, 10, 12, 14]])
    z = torch.stack([torch.stack([z_of(int(level)) for level in row]) for row in levels])
    close(rollout["agents", "vip_vec"], z.transpose(0, 1).expand(2, 8, 2, 1))


def test_agents_reset_alone_without_a_batch():
    key, vip_key = ("agents", "pixels"), ("agents", "vip_vec")
    vip = VIPTransform(CountingEncoder(), in_keys=[key], out_keys=[vip_key])
    env = TransformedEnv(
        GreyAgents(), Compose(vip, VIPRewardTransform(grey(200), in_keys=[vip_key]))
    )
    rollout = env.rollout(8, break_when_any_done=False)
    expected = torch.tensor([1.0, 2.0]).expand(8, 2) * LEVEL
    close(rollout["next", "agents", "reward"][..., 0], expected)


def test_moving_it_forgets_nothing():
    env = reward_env(GreyBatch(2), goal=grey(200))
    td = env.step(env.reset().set("action", torch.zeros(2, 1)))
    env.transform.to("cpu")
    td = env.reset(env.step_mdp(td).set("_reset", torch.tensor([[True], [False]])))
    close(env.step(td.set("action", torch.zeros(2, 1)))["next", "reward"], torch.full((2, 1), GAIN))
    env.transform[1].set_goal(grey(0))
    env.transform.to("cpu")
    td = env.reset(env.step_mdp(td.set("next", td.clone())))
    close(td["goal_embedding"], z_of(0).expand(2, 1))
