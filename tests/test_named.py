"""Any environment by its name: how observations become one state, and who is blamed for what fails."""

from __future__ import annotations

import importlib.util

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.error import DependencyNotInstalled
from torchrl.envs.utils import check_env_specs

from torchrl_vip.envs import named

BOX = spaces.Box(-1, 1, (2, 3), np.float64)


class Drawn(gymnasium.Env):
    """Shows ``frame`` and observes what its observation_space samples."""

    metadata = {"render_modes": ["rgb_array"]}

    def __init__(self, render_mode=None, observes=BOX, acts=None, frame=None) -> None:
        self.render_mode, self.observation_space = render_mode, observes
        self.action_space = spaces.Box(-1, 1, (2,)) if acts is None else acts
        self.frame = np.zeros((6, 8, 3), np.uint8)[::-1] if frame is None else frame

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.observation_space.seed(int(self.np_random.integers(1000)))
        self.last = self.observation_space.sample()
        return self.last, {}

    def step(self, action):
        assert self.action_space.contains(action)
        self.last = self.observation_space.sample()
        return self.last, 1.0, False, False, {}

    def render(self):
        return self.frame


class Levels(Drawn):
    """Has an argument of its own and no render_mode."""

    def __init__(self, level, seed=None) -> None:
        super().__init__(frame=np.full((4, 4, 3), level, np.uint8))
        self.constructed_with = seed


class Blind(Drawn):
    metadata = {"render_modes": ["ansi"]}
    render = gymnasium.Env.render


@pytest.fixture(autouse=True)
def _registered():
    """Three environments of this file."""
    for made in (Drawn, Levels, Blind):
        gymnasium.register(f"{made.__name__}-v0", made)
    yield
    for made in (Drawn, Levels, Blind):
        del gymnasium.registry[f"{made.__name__}-v0"]


@pytest.mark.parametrize(
    "observes, size",
    [
        (BOX, 6),
        (spaces.Discrete(5), 5),  # one-hot
        (spaces.Tuple((BOX, spaces.Box(0, 255, (4, 4, 3), np.uint8))), 54),
        (spaces.Dict(a=BOX, b=spaces.Dict(c=spaces.Discrete(3), d=spaces.Tuple((BOX,)))), 15),
        (spaces.Dict(observation=BOX, pixels=BOX, state=BOX), 18),  # names of our own
        (spaces.Box(-1, 1, (), np.float32), 1),
    ],
)
def test_every_observation_becomes_a_flat_state(observes: spaces.Space, size: int) -> None:
    env = named.make_env("Drawn-v0", seed=0, observes=observes)
    check_env_specs(env)
    steps = env.rollout(2)
    assert steps["pixels"].shape == (2, 6, 8, 3) and steps["pixels"].dtype == torch.uint8
    assert steps["state"].shape == (2, size) and steps["state"].dtype == torch.float32
    last = spaces.flatten(observes, env.base_env._env.unwrapped.last)
    np.testing.assert_allclose(steps["next", "state"][-1], last, rtol=1e-6)
    env.close()


def test_what_has_no_fixed_size_is_left_out_of_the_state_aloud() -> None:
    observes = spaces.Dict(a=BOX, b=spaces.Sequence(BOX))
    with pytest.warns(UserWarning, match="'Drawn-v0': b is not in the state"):
        env = named.make_env("Drawn-v0", observes=observes)
    assert env.rollout(2)["state"].shape == (2, 6)
    env.close()


@pytest.mark.parametrize(
    "acts",
    [
        spaces.Discrete(3),
        spaces.MultiDiscrete([2, 3]),
        spaces.Dict(a=spaces.Discrete(2), b=BOX),
        spaces.Tuple((BOX, BOX)),
    ],
)
def test_actions_arrive_as_the_environment_wants_them(acts: spaces.Space) -> None:
    env = named.make_env("Drawn-v0", acts=acts)
    env.rollout(2)  # which asserts it
    env.close()


@pytest.mark.parametrize(
    "acts",
    [
        spaces.Text(3),
        spaces.Tuple((BOX, spaces.Discrete(2))),
        spaces.Dict(a=spaces.Dict(b=BOX)),
        spaces.Discrete(3, start=-1),
    ],
)
def test_actions_that_cannot_arrive_are_refused(acts: spaces.Space) -> None:
    with pytest.raises(ValueError, match="'Drawn-v0' has actions that TorchRL does not write"):
        named.make_env("Drawn-v0", acts=acts)


@pytest.mark.parametrize(
    "options, says",
    [
        ({"observes": spaces.Sequence(BOX)}, "no flat state of one size holds: Sequence"),
        (
            {"observes": spaces.Dict(a=spaces.Sequence(BOX))},
            "no flat state of one size holds: Dict",
        ),
        ({"frame": np.zeros((6, 8, 3))}, r"render\(\) gives float64 \[6, 8, 3\], wanted uint8"),
        ({"frame": np.zeros((6, 8), np.uint8)}, r"render\(\) gives uint8 \[6, 8\]"),
        ({"frame": "a board"}, r"render\(\) gives a str"),
        ({"nope": 1}, "'Drawn-v0' takes no argument 'nope'"),
        ({"image_size": 32}, "'Drawn-v0' takes no camera and draws frames of its own size only"),
        ({"cameras": "top"}, "'Drawn-v0' takes no camera and draws frames of its own size only"),
    ],
)
def test_what_is_wrong_is_what_is_blamed(options: dict, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        named.make_env("Drawn-v0", **options)


def test_an_environment_without_frames_says_its_render_modes() -> None:
    with pytest.raises(ValueError, match=r"'Blind-v0' draws no frames.*nothing.*\['ansi'\]"):
        named.make_env("Blind-v0")


def test_arguments_are_passed_on_and_missing_ones_named() -> None:
    with pytest.raises(ValueError, match=r"wants arguments.*make_env\('Levels-v0', level=...\)"):
        named.make_env("Levels-v0")
    env = named.make_env("Levels-v0", level=7, seed=5)
    assert (env.reset()["pixels"] == 7).all()
    assert env.base_env._env.unwrapped.constructed_with == 5
    env.close()


@pytest.mark.slow
def test_workers_know_what_only_this_process_has_registered() -> None:
    env = named.make_env("Levels-v0", num_envs=2, seed=0, level=9)
    start = env.reset()
    assert (start["pixels"] == 9).all() and start["state"].shape == (2, 6)
    assert not torch.equal(*start["state"])
    env.close()


def test_an_id_may_name_its_module_and_leave_its_version_out(tmp_path, monkeypatch) -> None:
    (tmp_path / "toyland.py").write_text(
        "import gymnasium\nfrom test_named import Drawn\n"
        "for v in (2, 10, 9): gymnasium.register(f'Toy-v{v}', Drawn)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.syspath_prepend(str(importlib.util.find_spec(__name__).origin.rpartition("/")[0]))
    env = named.make_env("toyland:Toy")
    assert env.base_env._env.spec.id == "Toy-v10"
    env.close()
    with pytest.raises(DependencyNotInstalled, match="'nowhere:Toy-v2' wants the module 'nowhere'"):
        named.make_env("nowhere:Toy-v2")


def test_an_unknown_id_lists_the_nearest() -> None:
    with pytest.raises(ValueError, match="unknown environment 'Drawm-v0'.*'Drawn-v0'"):
        named.make_env("Drawm-v0")
    with pytest.raises(ValueError, match="unknown environment 'Drawn-v3'.*'Drawn-v0'"):
        named.make_env("Drawn-v3")


@pytest.mark.parametrize(
    "task, module, says",
    [
        ("CartPole-v1", "pygame", "'CartPole-v1' needs a package: pygame.*pip install"),
        ("Taxi-v4", "pygame", "'Taxi-v4' needs a package: pygame.*pip install"),
        ("LunarLander-v3", "Box2D", "'LunarLander-v3' needs a package: Box2D.*pip install"),
        ("phys2d/CartPole-v1", "jax", "'phys2d/CartPole-v1' needs a package: .*jax"),
        ("Ant-v2", "mujoco_py", "'Ant-v2' needs a package.*mujoco.*newest version is 'Ant-v"),
        ("ALE/Pong-v5", "ale_py", "ale_py has ids like this one.*pip install ale-py"),
        ("MiniGrid-Empty-5x5-v0", "minigrid", "minigrid has ids like this.*pip install minigrid"),
    ],
)
def test_a_missing_package_is_named(task: str, module: str, says: str) -> None:
    if importlib.util.find_spec(module) is not None:
        pytest.skip(f"{module} is installed")
    with pytest.raises(DependencyNotInstalled, match=says):
        named.make_env(task)


@pytest.mark.parametrize(
    "task, state",
    [
        ("FetchReach-v4", 16),
        ("HandReach-v3", 93),
        ("AntMaze_UMaze-v5", 109),
        ("PointMaze_Open-v3", 8),
    ],
)
def test_goal_environments_of_gymnasium_robotics(task: str, state: int) -> None:
    pytest.importorskip("gymnasium_robotics", reason='pip install "torchrl-vip[robotics]"')
    env = named.make_env(task, seed=3, image_size=32, max_steps=3)
    starts = [env.reset() for _ in range(2)]
    steps = env.rollout(9)
    env.set_seed(3)
    again = env.reset()
    env.close()
    assert steps["pixels"].shape == (3, 32, 32, 3) and steps["state"].shape == (3, state)
    assert torch.equal(again["state"], starts[0]["state"])
    assert (again["pixels"].int() - starts[0]["pixels"]).abs().max() < 3
    assert not torch.equal(starts[0]["state"], starts[1]["state"])
    assert starts[0]["pixels"].float().std() > 20  # an AntMaze can be seen from within a wall


def test_without_a_seed_no_two_environments_begin_alike() -> None:
    envs = [named.make_env("Ant-v5", image_size=16) for _ in range(2)]
    assert not torch.equal(*(env.reset()["state"] for env in envs))
    for env in envs:
        env.close()


def test_mujoco_cameras_are_those_of_the_model_whatever_the_constructor_takes() -> None:
    pytest.importorskip("gymnasium_robotics", reason='pip install "torchrl-vip[robotics]"')
    frames = []
    for camera in (None, "head_camera_rgb", 0):
        env = named.make_env("FetchReach-v4", seed=0, image_size=32, cameras=camera)
        frames.append(env.reset()["pixels"].float())
        env.close()
    assert (frames[0] - frames[1]).abs().mean() > 5
    for wrong in ("nowhere", 99):
        with pytest.raises(ValueError, match=f"unknown camera {wrong!r}.*head_camera_rgb"):
            named.make_env("FetchReach-v4", cameras=wrong)


def test_meta_world_by_its_gymnasium_ids() -> None:
    pytest.importorskip("metaworld", reason='pip install "torchrl-vip[metaworld]"')
    with pytest.raises(ValueError, match=r"make_env\('Meta-World/MT1', env_name=...\)"):
        named.make_env("Meta-World/MT1")
    with pytest.raises(ValueError, match="'Meta-World/MT10' opens as a vector"):
        named.make_env("Meta-World/MT10")
    env = named.make_env("Meta-World/MT1", env_name="reach-v3", image_size=32, seed=0)
    steps = env.rollout(2)
    assert steps["pixels"].shape == (2, 32, 32, 3) and steps["state"].shape == (2, 39)
    env.close()


def test_arguments_of_dm_control_are_passed_on() -> None:
    pytest.importorskip("dm_control", reason='pip install "torchrl-vip[dm]"')
    env = named.make_env("cartpole-swingup", image_size=16, task_kwargs={"time_limit": 0.03})
    assert len(env.rollout(9)) == 3
    env.close()
    with pytest.raises(ValueError, match="'cartpole-swingup' takes no argument 'nope'"):
        named.make_env("cartpole-swingup", nope=1)
    with pytest.raises(ValueError, match="unknown camera 'nowhere'; choose from .*'fixed'"):
        named.make_env("cartpole-swingup", cameras="nowhere")
