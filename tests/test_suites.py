"""Fetch, dm_control's manipulation, Adroit and the tabletop: environments, looks and scripts."""

import functools
import gc
import os
import subprocess
import sys
import weakref
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("gymnasium_robotics", reason='pip install "torchrl-vip[robotics]"')
pytest.importorskip("dm_control", reason='pip install "torchrl-vip[dm]"')

from torchrl.envs.utils import check_env_specs

from torchrl_vip.envs import environment, load_suite, metaworld, named, simulator
from torchrl_vip.envs.simulator import ends_solved, play

TASK = {
    "fetch": "fetch-push",
    "dm_manipulation": "lift_brick_vision",
    "adroit": "adroit-door",
    "tabletop": "push-bottle",
}
SUITE_TASKS = [(name, task) for name in TASK for task in load_suite(name).list_tasks()]
SCRIPTED = [(name, task) for name in TASK for task in load_suite(name).SCRIPTED_TASKS]


@pytest.fixture(params=[*TASK, "metaworld"])
def suite(request):
    """A suite's module and one of its tasks."""
    return load_suite(request.param), TASK.get(request.param, "drawer-open-v3")


def distance(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.abs(a.astype(int) - b).mean())


# --- every suite ----------------------------------------------------------------------------------


def test_specs_hold_and_an_episode_is_truncated(suite) -> None:
    module, task = suite
    env = module.make_env(task, image_size=32, seed=0, max_steps=3)
    check_env_specs(env)
    episode = env.rollout(10)
    assert episode["pixels"].shape == (3, 32, 32, 3) and episode["pixels"].dtype == torch.uint8
    assert episode["full_state"].shape == (3, env.sim.FULL_STATE_SIZE)
    assert episode["next", "truncated"].flatten().tolist() == [False, False, True]
    assert not episode["next", "terminated"].any()
    env.close()


def test_a_seed_gives_the_same_episode_whatever_came_before(suite) -> None:
    module, task = suite
    sim = module.SIMULATOR(task, image_size=48)

    def episode(seed: int) -> tuple[np.ndarray, np.ndarray]:
        rng = np.random.default_rng(0)
        first = (sim.reset(seed), sim.render().copy())[1]
        for _ in range(5):
            sim.step(rng.uniform(-1, 1, sim.ACTION_SIZE))
        return np.stack([first, sim.render()]), sim.full_state

    frames, state = episode(3)
    other, _ = episode(4)
    again, same = episode(3)
    sim.close()
    np.testing.assert_array_equal(frames, again)
    np.testing.assert_array_equal(state, same)
    assert distance(frames[0], other[0]) > 0.1


def test_looks_change_with_their_seed_and_come_back(suite) -> None:
    module, task = suite
    sim = module.SIMULATOR(task, image_size=48)
    sim.reset(0)
    shipped, pictures = sim.render().copy(), []
    for seed in (1, 2, 1):
        sim.randomize(sim.WIDE, seed)
        pictures.append(sim.render().copy())
    sim.randomize(None)
    np.testing.assert_array_equal(pictures[0], pictures[2])
    assert distance(pictures[0], pictures[1]) > 10
    np.testing.assert_array_equal(sim.render(), shipped)
    sim.close()


def test_wrong_names_are_errors_that_list_the_choices(suite) -> None:
    module, task = suite
    with pytest.raises(ValueError, match=f"unknown task 'fly'.*{task}"):
        module.make_env("fly")
    with pytest.raises(ValueError, match="unknown camera 'nowhere'"):
        module.make_env(task, cameras="nowhere")
    with pytest.raises(ValueError, match="unknown camera 'nowhere'"):
        module.make_env(task, cameras=[module.SIMULATOR.CAMERA, "nowhere"])


def test_numbers_that_cannot_be_are_errors_that_name_them(suite) -> None:
    module, task = suite
    camera = module.SIMULATOR.CAMERA
    for wrong, says in (
        ({"image_size": 0}, "image_size is 0; wanted a whole number"),
        ({"image_size": (64, 48)}, r"image_size is \(64, 48\); wanted a whole number"),
        ({"num_envs": 0}, "num_envs is 0; wanted 1 or more"),
        ({"max_steps": 0}, "max_steps is 0; wanted 1 or more"),
        ({"frame_skip": 0}, "frame_skip is 0; wanted a positive"),
        ({"cameras": []}, r"cameras are \[\]; wanted"),
        ({"cameras": [camera, camera]}, "cameras are .*; wanted a name, or different ones"),
    ):
        with pytest.raises(ValueError, match=says):
            module.make_env(task, **wrong)


def test_an_action_that_is_no_number_is_an_error_in_mid_episode(suite) -> None:
    module, task = suite
    env = module.make_env(task, image_size=16, seed=0)
    tensordict = env.rand_action(env.reset())
    tensordict["action"][-1] = float("nan")
    with pytest.raises(ValueError, match="the action is .*nan.*; wanted finite numbers"):
        env.step(tensordict)
    env.close()


@pytest.mark.parametrize("name, task", [*TASK.items(), ("metaworld", "drawer-open-v3")])
def test_a_camera_without_the_robot_sees_the_objects_alone(name: str, task: str) -> None:
    module = load_suite(name)
    sim = module.SIMULATOR(task, image_size=64)
    hidden = f"{sim.CAMERA}/no-robot"
    sim.reset(0)
    before = sim.look([sim.CAMERA, hidden])
    assert (before[0] != before[1]).any(-1).mean() > 0.01
    np.testing.assert_array_equal(sim.render(), before[0])  # and it comes back
    mask = sim.robot_mask()
    assert mask[(before[0] != before[1]).any(-1)].all()
    assert mask.mean() < 0.05 + (before[0] != before[1]).any(-1).mean()
    assert not sim.robot_mask(hidden).any()
    np.testing.assert_array_equal(sim.render(), before[0])
    (rest, far), (robot, near) = (sim.layer(sim.CAMERA, robot=alone) for alone in (False, True))
    np.testing.assert_array_equal(rest, before[1])
    nearer = np.where((near > far)[..., None], robot, rest)
    np.testing.assert_array_equal(nearer, before[0])
    np.testing.assert_array_equal(sim.render(), before[0])
    for _ in range(6):
        sim.step(np.full(sim.ACTION_SIZE, 0.5))
    moved = [distance(*pair) for pair in zip(sim.look([sim.CAMERA, hidden]), before, strict=True)]
    assert moved[0] > 0.5
    assert moved[1] < 0.25 * moved[0]
    sim.close()
    alone = module.make_env(task, cameras=hidden, image_size=64)  # as the only camera
    alone.sim.reset(0)
    np.testing.assert_array_equal(alone.sim.render(), before[1])
    alone.close()


def test_a_suite_without_a_known_robot_cannot_leave_it_out() -> None:
    class Robotless(metaworld.MetaWorldSim):
        ROBOT = ""

    with pytest.raises(ValueError, match="corner4/no-robot'.*no robot to leave out"):
        Robotless("reach-v3", camera="corner4/no-robot")
    with (
        closing(Robotless("reach-v3", image_size=16)) as sim,
        pytest.raises(ValueError, match="no robot to leave out"),
    ):
        sim.layer("corner4", robot=False)
    with pytest.raises(ValueError, match="robot_mask: Robotless knows no robot"):
        environment.make_env(Robotless, "reach-v3", image_size=16, robot_mask=True)


def test_masks_of_the_robot_are_an_observation() -> None:
    cameras = ["corner4", "topview/no-robot"]
    env = metaworld.make_env("reach-v3", cameras=cameras, image_size=32, robot_mask=True, seed=0)
    check_env_specs(env)
    rollout = env.rollout(2)
    covered = rollout["robot_mask", "corner4"].float().mean((-2, -1))
    assert ((covered > 0.02) & (covered < 0.6)).all()
    assert not rollout["robot_mask", "topview/no-robot"].any()
    env.close()
    one = metaworld.make_env("reach-v3", image_size=32, robot_mask=True, seed=0)
    mask = one.reset()["robot_mask"]
    np.testing.assert_array_equal(mask.numpy(), one.sim.robot_mask())
    assert 0.02 < mask.float().mean() < 0.6
    one.close()


@pytest.mark.slow
@pytest.mark.parametrize("tasks", [TASK, {"metaworld": "reach-v3"}])
def test_simulators_left_open_say_nothing_at_exit(tasks: dict[str, str]) -> None:
    code = (
        "from torchrl_vip.envs import load_suite, named\n"
        "sims = [load_suite(s).SIMULATOR(t, image_size=16) for s, t in tasks.items()]\n"
        "for sim in sims: sim.reset(0), sim.render()\n"
        "env = named.make_env('Ant-v5', image_size=16)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", f"tasks = {tasks}\n{code}"],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr


def test_several_cameras_have_keys_of_their_own(suite) -> None:
    module, task = suite
    sim = module.SIMULATOR(task, image_size=32)
    other = [sim.model.cam(i).name for i in range(sim.model.ncam)] + [*sim.VIEWS]
    names = [sim.CAMERA, next(name for name in other if name != sim.CAMERA)]
    sim.close()
    env = module.make_env(task, cameras=names, image_size=32, seed=0)
    check_env_specs(env)
    env.set_seed(0)  # the check has drawn starts
    seen = env.reset()
    one = module.make_env(task, cameras=names[1], image_size=32)
    one.set_seed(0)
    assert torch.equal(seen["pixels", names[1]], one.reset()["pixels"])
    assert not torch.equal(seen["pixels", names[0]], seen["pixels", names[1]])
    env.close(), one.close()
    with pytest.raises(ValueError, match="moves the one camera"):
        module.make_env(task, cameras=names, randomize=True)


def test_an_image_as_goal_is_written_at_every_reset(suite) -> None:
    module, task = suite
    goal = np.full((40, 48, 3), 7, np.uint8)
    env = module.make_env(task, image_size=32, seed=0, goal=goal)
    check_env_specs(env)
    assert torch.equal(env.reset()["goal_image"], torch.from_numpy(goal))
    env.reset()["goal_image"].zero_()  # the caller's own
    assert torch.equal(env.reset()["goal_image"], torch.from_numpy(goal))
    env.close()
    two = [module.SIMULATOR.CAMERA, "another"]
    wrong = [
        ("best", None, "'best'.*'solved'"),
        (goal[..., 0], None, "wanted an image"),
        (goal, two, r"\[2, H, W, 3\] \(one a camera\)"),
    ]
    for image, cameras, message in wrong:
        with pytest.raises(ValueError, match=message):
            module.make_env(task, goal=image, cameras=cameras)


@pytest.mark.slow
@pytest.mark.parametrize("name, task", SUITE_TASKS)
def test_every_task_resets_steps_and_shows_something(name: str, task: str) -> None:
    sim = load_suite(name).SIMULATOR(task, image_size=64)
    state = sim.reset(0)
    assert state.shape == (sim.FULL_STATE_SIZE,) and sim.state().shape == (sim.STATE_SIZE,)
    assert state.dtype == sim.state().dtype == np.float32
    before = sim.render().copy()
    rng = np.random.default_rng(0)
    for _ in range(10):
        state, reward, success = sim.step(rng.uniform(-1, 1, sim.ACTION_SIZE))
    assert np.isfinite(state).all() and np.isfinite(reward) and not success
    assert before.std() > 10 and distance(before, sim.render()) > 0.1
    sim.close()


@pytest.mark.slow
@pytest.mark.parametrize("name, task", SCRIPTED)
def test_the_script_solves_its_task_and_a_still_hand_does_not(name: str, task: str) -> None:
    sim = load_suite(name).SIMULATOR(task, image_size=32)
    for seed in range(5):
        played = play(sim, sim.script(), seed, stride=200)
        if ends_solved(played.success, 0):
            break
    else:
        pytest.fail("not solved from five seeds")
    still = play(
        sim, lambda state, t: np.zeros(sim.ACTION_SIZE), seed, steps=40, settle=None, stride=40
    )
    assert not still.success.any()
    sim.close()


@pytest.mark.parametrize(
    "task, state, options",
    [("cheetah-run", 17, {}), ("hopper-stand", 15, {"cameras": 1}), ("Reacher-v5", 10, {})],
)
def test_any_environment_by_name(task: str, state: int, options: dict) -> None:
    pytest.importorskip("gymnasium")
    make = functools.partial(named.make_env, task, image_size=48, max_steps=4, **options)
    env = make(seed=3)
    check_env_specs(env)
    env.set_seed(3)
    episode = env.rollout(9)
    assert task in named.list_tasks() and episode["pixels"].shape == (4, 48, 48, 3)
    assert episode["state"].shape == (4, state) and episode["state"].dtype == torch.float32
    again = make(seed=None)
    again.set_seed(3)
    assert torch.equal(again.reset()["state"], episode["state"][0])
    again.set_seed(4)
    assert not torch.equal(again.reset()["state"], episode["state"][0])
    env.close(), again.close()


def test_an_unknown_name_is_an_error_that_says_where_to_look() -> None:
    with pytest.raises(ValueError, match="unknown environment 'fly-v1'.*list_tasks"):
        named.make_env("fly-v1")
    with pytest.raises(ValueError, match=r"image_size is \(32, 32\); wanted a whole number"):
        named.make_env("Ant-v5", image_size=(32, 32))
    with pytest.raises(ValueError, match=r"cameras is \['a'\]; wanted one camera's name"):
        named.make_env("Ant-v5", cameras=["a"])


# --- one suite each -------------------------------------------------------------------------------


def test_fetch_draws_its_goal_where_it_is() -> None:
    sim = load_suite("fetch").FetchSim("fetch-reach", image_size=32)
    for seed in range(3):
        goal = sim.reset(seed)[25:28]
        np.testing.assert_allclose(sim.data.site("target0").xpos, goal, atol=1e-6)
    sim.close()


@pytest.mark.parametrize("task", ["fetch-pull", "fetch-lift"])
def test_fetch_goal_rules(task: str) -> None:
    fetch = load_suite("fetch")
    sim, rule = fetch.FetchSim(task, image_size=32), fetch.TASKS[task]
    low, high = np.array(rule.shift, float).T
    for seed in range(5):
        state = sim.reset(seed)
        shift = state[25:28] - state[3:6]
        assert (shift >= low - 1e-3).all() and (shift <= high + 1e-3).all()
    sim.close()


@pytest.mark.parametrize(
    "suite, task",
    [
        ("fetch", "fetch-pick-and-place"),
        ("fetch", "fetch-lift"),
        *[("adroit", f"adroit-{name}") for name in ("door", "hammer", "pen", "relocate")],
        ("dm_manipulation", "lift_brick_vision"),
        ("dm_manipulation", "stack_2_of_3_bricks_random_order_vision"),  # compiled at every reset
        *[("tabletop", task) for task in load_suite("tabletop").list_tasks()],
        ("metaworld", "drawer-open-v3"),
        ("metaworld", "bin-picking-v3"),  # whose reward remembers its first step
    ],
)
def test_it_goes_on_bit_for_bit_from_a_saved_state_in_another_simulator(suite, task) -> None:
    sims = [load_suite(suite).SIMULATOR(task, image_size=32) for _ in range(2)]
    actions = np.random.default_rng(0).uniform(-1, 1, (25, sims[0].ACTION_SIZE))
    sims[0].reset(3), sims[1].reset(8)
    for action in actions[:12]:
        sims[0].step(action)
    state, full_state, seen = (
        sims[0].get_state(),
        sims[0].full_state.copy(),
        sims[0].render().copy(),
    )
    ends = []
    for sim, restored in ((sims[0], False), (sims[0], True), (sims[1], True)):
        if restored:
            np.testing.assert_array_equal(sim.set_state(state), full_state)
            np.testing.assert_array_equal(sim.render(), seen)
        rewards = [sim.step(action)[1] for action in actions[12:]]
        ends.append((rewards, sim.get_state(), sim.render().copy()))
    for sim in sims:
        sim.close()
    for never_left, one, other in zip(*ends, strict=True):
        np.testing.assert_array_equal(never_left, one)
        np.testing.assert_array_equal(one, other)


def test_a_script_leaves_what_it_reads_alone() -> None:
    with closing(load_suite("metaworld").SIMULATOR("door-close-v3", image_size=16)) as sim:
        state = sim.reset(0)
        before, act = state.copy(), sim.script()
        for t in range(3):
            act(state, t)
        np.testing.assert_array_equal(state, before)


def test_a_closed_environment_has_freed_its_renderer() -> None:
    env = load_suite("fetch").make_env("fetch-reach", image_size=16)
    env.rollout(1)
    sim = env.sim
    assert sim in simulator._open
    env.close()
    assert sim not in simulator._open
    env.close()


class Counted:
    """Solved from step ``at`` on; counts its steps of standing still."""

    ACTION_SIZE = 1

    def __init__(self, at: int) -> None:
        self.at, self.t, self.stood = at, 0, 0

    def reset(self, seed: int) -> np.ndarray:
        return np.zeros(1)

    def render(self) -> np.ndarray:
        return np.zeros((1, 1, 3), np.uint8)

    def hold_still(self, action: np.ndarray) -> np.ndarray:
        self.stood += 1
        return action

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool]:
        self.t += 1
        return np.zeros(1), 0.0, self.t > self.at


@pytest.mark.parametrize("at", [0, 3, 12, 40])
def test_an_episode_settles_and_rests_however_early_it_is_solved(at: int) -> None:
    sim = Counted(at)
    played = simulator.play(sim, lambda state, t: np.ones(1), 0, settle=10, rest=20)
    assert len(played.success) - 1 - at == 30 and sim.stood == 20


def test_a_goal_stack_is_where_dm_control_builds_it_after_many_resets() -> None:
    suite = load_suite("dm_manipulation")
    with closing(suite.SIMULATOR("stack_3_bricks_vision", image_size=32)) as sim:
        frames = []
        for seed in (3, 9, 3):
            sim.reset(seed)
            frames.append(sim.render().copy())
        np.testing.assert_array_equal(frames[0], frames[2])
        bind = sim.env.physics.bind
        frame = suite._dm_control()[2].get_attachment_frame
        hints = [bind(frame(b.mjcf_model)).xpos for b in sim.env.task._goal_hint_bricks]
        np.testing.assert_allclose(hints, [[0.2, 0.1, 0.0192 * i] for i in range(3)], atol=1e-3)


def test_a_seed_repeats_the_picture_of_a_gymnasium_environment() -> None:
    frames = []
    for _ in range(3):
        env = named.make_env("Ant-v5", image_size=32, seed=0)
        frames.append(env.reset()["pixels"].int())
        env.close()
    assert all((frame - frames[0]).abs().max() < 3 for frame in frames)
    with pytest.raises(ValueError, match="unknown camera 'nope'.*track"):
        named.make_env("Ant-v5", cameras="nope", image_size=32)


APART = {
    "gymnasium": lambda: named.make_env("Ant-v5", image_size=32, seed=0),
    "suite": lambda: load_suite("metaworld").make_env("drawer-open-v3", image_size=32, seed=0),
}


@pytest.mark.parametrize("neighbour", APART)
@pytest.mark.parametrize("name", APART)
@pytest.mark.parametrize("closed", [True, False])
def test_two_environments_of_one_process_draw_apart(name, neighbour, closed) -> None:
    def look() -> torch.Tensor:
        env.set_seed(0)
        return env.reset()["pixels"].int()

    env, other = APART[name](), APART[neighbour]()
    seen = [look()]
    other.reset()
    seen += [look()]
    other.reset()
    if closed:
        other.close()
    del other
    gc.collect()
    seen += [look()]
    env.close()
    assert seen[0].float().std() > 5
    assert all((frame - seen[0]).abs().max() < 3 for frame in seen)


def test_an_action_is_held_for_frame_skip_steps() -> None:
    suite, action = load_suite("metaworld"), torch.tensor([1.0, 0.5, -0.5, 0.0])
    envs = [
        suite.make_env("drawer-open-v3", image_size=32, seed=0, max_steps=6, frame_skip=skip)
        for skip in (1, 3)
    ]
    ends = []
    for env, steps in zip(envs, (6, 2), strict=True):
        seen = env.rollout(steps, lambda td: td.set("action", action), break_when_any_done=False)
        assert seen["next", "done"].flatten().tolist() == [False] * (steps - 1) + [True]
        ends.append(seen["next"])
        env.close()
    torch.testing.assert_close(ends[0][2::3]["pixels"], ends[1]["pixels"], rtol=0, atol=0)
    three = ends[0]["reward"].reshape(2, 3).sum(1, keepdim=True)
    torch.testing.assert_close(ends[1]["reward"], three)
    with pytest.raises(ValueError, match="frame_skip is 0"):
        suite.make_env("drawer-open-v3", frame_skip=0)


def test_a_hand_that_is_held_up_feels_where_its_controller_pulls() -> None:
    with closing(
        load_suite("metaworld").SIMULATOR("button-press-topdown-v3", image_size=16)
    ) as sim:
        act, full_state = sim.script(), sim.reset(0)
        for t in range(90):
            full_state, _, pressed = sim.step(act(full_state, t))
        assert pressed
        states = []
        for _ in range(4):
            sim.step(np.array([0.0, 0.0, -1.0, 0.0]))
            states.append(sim.state())
        hand, pull = np.diff(states, axis=0)[:, 2], np.diff(states, axis=0)[:, 6]
        assert np.abs(hand).max() < 2e-3  # at the button's stop
        np.testing.assert_allclose(hand + pull, -0.01, atol=1e-5)  # m; where the actions add up


@pytest.mark.parametrize("name, things", [("fetch", 25), ("dm_manipulation", 30)])
def test_a_displaced_hand_leaves_the_objects_where_they_are(name: str, things: int) -> None:
    sim, offset = load_suite(name).SIMULATOR(TASK[name], image_size=32), np.array([0.1, 0, -0.05])
    state = sim.reset(0)
    moved = sim.displaced(state, offset)
    np.testing.assert_allclose(moved[:3] - state[:3], offset, atol=1e-6)
    np.testing.assert_array_equal(moved[things:], state[things:])
    sim.close()


def resident(pid: int | str = "self") -> float:
    """Memory of a process, MiB."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


@pytest.mark.slow
def test_300_resets_of_parallel_environments_leave_memory_flat() -> None:
    make_env = load_suite("metaworld").make_env
    env = make_env("reach-v3", image_size=32, seed=0, num_envs=2)
    try:
        memory = []
        for i in range(300):
            frames = env.reset()["pixels"]
            pids = ["self", *(worker.pid for worker in env._workers)]
            if i in (100, 299):
                memory.append([resident(pid) for pid in pids])
        assert frames.shape == (2, 32, 32, 3) and len(pids) == 3
        for before, after in zip(*memory, strict=True):
            assert after - before < 9, memory  # MiB: 45 kB a reset
    finally:
        env.close()


@pytest.mark.slow
def test_models_compiled_at_resets_leave_one_renderer_and_flat_memory() -> None:
    task = "stack_2_of_3_bricks_random_order_vision"
    sim, renderers, memory = load_suite("dm_manipulation").SIMULATOR(task, image_size=32), [], []
    for seed in range(50):
        sim.reset(seed)
        sim.render()
        renderers.append(weakref.ref(sim._renderer))
        memory.append(resident())
    gc.collect()
    assert len({id(r) for r in renderers}) == 50  # each reset compiled
    assert sum(r() is not None for r in renderers) == 1
    assert memory[-1] - memory[20] < 40
    sim.close()


@pytest.mark.slow
def test_a_shuffled_stack_does_not_depend_on_the_last_one() -> None:
    sim = load_suite("dm_manipulation").SIMULATOR(
        "reassemble_5_bricks_random_order_vision", image_size=32
    )
    states = [sim.reset(seed).copy() for seed in (3, 4, 3)]
    sim.close()
    np.testing.assert_array_equal(states[0], states[2])
    assert not np.array_equal(states[0], states[1])


@pytest.mark.slow
def test_workers_have_seeds_of_their_own() -> None:
    make_env = load_suite("dm_manipulation").make_env
    env = make_env("reach_duplo_vision", image_size=32, seed=0, num_envs=2, randomize=True)
    frames = env.reset()["pixels"]
    env.close()
    assert frames.shape == (2, 32, 32, 3) and not torch.equal(frames[0], frames[1])


def test_tasks_without_a_script_say_so() -> None:
    with pytest.raises(NotImplementedError, match="adroit-pen.*no scripted policy"):
        load_suite("adroit").SIMULATOR("adroit-pen", image_size=32).script()
    with pytest.raises(NotImplementedError, match="no script solves.*lift_brick"):
        sim = load_suite("dm_manipulation").SIMULATOR("stack_2_bricks_vision", image_size=32)
        sim.script()


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize(
    "name, task",
    [
        *(("adroit", f"adroit-{thing}") for thing in ("door", "hammer", "pen", "relocate")),
        ("fetch", "fetch-slide"),
        ("dm_manipulation", "lift_large_box_vision"),
        ("dm_manipulation", "stack_2_bricks_moveable_base_vision"),
        ("dm_manipulation", "stack_2_of_3_bricks_random_order_vision"),
        ("dm_manipulation", "reassemble_5_bricks_random_order_vision"),
    ],
)
def test_what_no_script_solves_is_put_where_it_is_wanted(name: str, task: str, seed: int) -> None:
    sim = load_suite(name).SIMULATOR(task, image_size=32)
    sim.reset(seed)
    before = sim.render().copy()
    goal = sim.solved_frame(seed)
    assert (goal != before).any() and np.array_equal(goal, sim.render())
    if name == "dm_manipulation":  # a box in the air has fallen after a step
        assert sim.env.task.get_reward(sim.env.physics) > 0.95
    else:
        still = np.zeros(sim.ACTION_SIZE)
        if name == "adroit":  # actions are positions
            still = (sim.data.qpos[: len(still)] - sim.env.act_mean) / sim.env.act_rng
        assert sim.step(still)[2]
    sim.close()
