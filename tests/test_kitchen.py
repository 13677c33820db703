"""FrankaKitchen: exact restore, goals, cameras, shipped demonstrations, planning them."""

from functools import partial

import numpy as np
import pytest

pytest.importorskip("gymnasium_robotics", reason='pip install "torchrl-vip[robotics]"')

from torchrl.envs.utils import check_env_specs

from torchrl_vip.demonstrations import plan
from torchrl_vip.demonstrations.store import (
    SHIPPED,
    Demonstration,
    read_demonstrations,
)
from torchrl_vip.envs import kitchen, load_suite, meshes
from torchrl_vip.envs.kitchen import CAMERAS, TASKS, KitchenSim
from torchrl_vip.planning import Rollouts, last_frame, rollout

SHIPPED_TASKS = sorted(path.stem for path in (SHIPPED / "kitchen").glob("*.npz"))


@pytest.fixture
def sim():
    made = KitchenSim("sdoor_open", image_size=48)
    yield made
    made.close()


def smooth(steps: int, seed: int = 0, size: tuple[int, ...] = ()) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-1, 1, (*size, steps, 9))


def move(sim: KitchenSim, actions: np.ndarray) -> np.ndarray:
    positions = []
    for action in actions:
        sim.step(action)
        positions.append(sim.data.qpos.copy())
    return np.stack(positions)


def test_the_suite_has_twelve_tasks_and_holds_its_specs() -> None:
    suite = load_suite("kitchen")
    assert len(suite.list_tasks()) == 12 and suite.SIMULATOR is KitchenSim
    env = suite.make_env("knob1_off", image_size=32, seed=0, max_steps=3)
    check_env_specs(env)
    episode = env.rollout(10)
    assert episode["pixels"].shape == (3, 32, 32, 3) and episode["state"].shape == (3, 9)
    assert episode["full_state"].shape == (3, 59)
    assert episode["next", "truncated"].flatten().tolist() == [False, False, True]
    env.close()


def test_a_restored_state_goes_on_bit_for_bit(sim) -> None:
    sim.reset(0)
    move(sim, smooth(5))
    state = sim.get_state()
    first = move(sim, smooth(10, seed=1))
    after = sim.get_state()
    move(sim, smooth(3, seed=2))
    sim.set_state(state)
    np.testing.assert_array_equal(sim.get_state(), state)
    np.testing.assert_array_equal(move(sim, smooth(10, seed=1)), first)
    np.testing.assert_array_equal(sim.get_state(), after)


def test_resets_differ_a_little_by_seed_and_repeat(sim) -> None:
    first, other, again = (sim.reset(seed).copy() for seed in (3, 4, 3))
    np.testing.assert_array_equal(first, again)
    assert 0 < np.abs(first - other)[:7].max() < 0.15
    np.testing.assert_array_equal(first[7:], other[7:])  # only the arm


@pytest.mark.parametrize("task", sorted(TASKS))
def test_success_is_the_target_with_all_else_in_place(task: str) -> None:
    sim, rule = KitchenSim(task, image_size=32), TASKS[task]
    sim.reset(0)
    np.testing.assert_allclose(sim.data.joint(rule.joint).qpos[0], rule.start, atol=0.01)
    assert not sim.success() and sim.joint_error() > 0.5
    unsolved = sim.reward()
    start = sim.data.qpos.copy()
    sim.data.qpos[9:23] = sim._goal
    assert sim.success() and sim.joint_error() == 0 and sim.reward() > unsolved
    sim.data.joint("slide_cabinet").qpos[0] += 0.1 if sim._goal[10] < 0.2 else -0.1
    assert not sim.success()  # another door was moved, or this one missed
    sim.data.qpos[:] = start
    sim.data.qpos[9:23] = sim._goal
    sim.data.qpos[23] += 0.2
    assert not sim.success()  # the kettle was pushed
    sim.close()


@pytest.mark.parametrize("camera", CAMERAS)
def test_goals_are_seen_and_nothing_else_is_changed_by_a_replay(camera: str) -> None:
    sim = KitchenSim("rdoor_open", camera=camera, image_size=64)
    sim.reset(0)
    state, before = sim.get_state(), sim.render().copy()
    qpos = np.stack([sim.data.qpos, sim.data.qpos])
    qpos[1, 9:23] = sim._goal
    shown = Demonstration(qpos, np.zeros((1, 9)), 7, True, "success")
    frames, success, reward = sim.replay(shown)
    np.testing.assert_array_equal(frames[0], before)
    assert success.tolist() == [False, True] and reward[1] > reward[0]
    assert np.abs(frames[1].astype(int) - before).mean() > 1
    np.testing.assert_array_equal(sim.get_state(), state)
    sim.close()


class WholeSim(KitchenSim):
    MESH_CELL = 0.0


def test_fewer_faces_give_the_same_picture_and_the_same_physics(sim) -> None:
    whole = WholeSim("sdoor_open", image_size=48)
    for simulator in (sim, whole):
        simulator.reset(0)
    few, many = sim.model.mesh_facenum, whole.model.mesh_facenum
    assert few.sum() < 0.3 * many.sum()
    small = many <= meshes.LARGE
    np.testing.assert_array_equal(few[small], many[small])
    np.testing.assert_array_equal(move(sim, smooth(8)), move(whole, smooth(8)))
    seen = sim.render().copy()
    difference = np.abs(seen.astype(int) - whole.render()).max(-1)
    assert 0 < (difference > 40).mean() < 0.02  # pixels along the arm's edges
    whole.close()
    faithful = KitchenSim("sdoor_open", image_size=48, render="faithful")
    np.testing.assert_array_equal(faithful.model.mesh_facenum, many)
    faithful.close()


def test_wrong_names_are_errors_that_list_the_choices() -> None:
    with pytest.raises(ValueError, match="unknown task 'fly'.*sdoor_open"):
        KitchenSim("fly")
    with pytest.raises(ValueError, match="unknown camera 'nowhere'.*right_cam"):
        KitchenSim("sdoor_open", camera="nowhere")
    with pytest.raises(ValueError, match="unknown task 'fly'"):
        kitchen.demonstrations("fly")


def test_rollouts_in_a_process_give_the_same_frames(sim) -> None:
    sim.reset(0)
    state, actions = sim.get_state(), smooth(2, size=(2,))
    make = partial(KitchenSim, "sdoor_open", image_size=48)
    with Rollouts(make, last_frame, processes=1) as rollouts:
        frames = rollouts(state, actions)
    assert frames.shape == (2, 48, 48, 3) and frames.dtype == np.uint8
    np.testing.assert_array_equal(frames, rollout(sim, state, actions, last_frame))


@pytest.mark.parametrize("task", SHIPPED_TASKS)
def test_shipped_demonstrations_end_where_they_say(task: str) -> None:
    solved, failed = (kitchen.demonstrations(task, success=s) for s in (True, False))
    assert len(solved) >= 3 and len(failed) >= 3
    assert [len(d.qpos) for d in failed[: len(solved)]] == [len(d.qpos) for d in solved]
    sim = KitchenSim(task, image_size=32)
    for demonstration in solved + failed:
        assert demonstration.qpos.shape == (len(demonstration.actions) + 1, 30)
        sim.reset(demonstration.seed)
        np.testing.assert_allclose(demonstration.qpos[0], sim.data.qpos, atol=1e-6)
        sim.data.qpos[:] = demonstration.qpos[-1]
        assert sim.success() == demonstration.success
    sim.close()


def test_a_goal_image_and_a_start_within_a_demonstration() -> None:
    goals = [kitchen.goal_image("sdoor_open", seed=i, image_size=48) for i in (0, 1)]
    assert goals[0].shape == (48, 48, 3) and (goals[0] != goals[1]).any()
    demonstration = kitchen.demonstrations("sdoor_open")[0]
    sim = KitchenSim("sdoor_open", image_size=32)
    state = sim.repeat(demonstration, 5)
    np.testing.assert_allclose(state[:30], demonstration.qpos[5], atol=1e-3)
    sim.close()


def test_a_goal_has_an_image_of_each_camera_and_the_state_stays(sim) -> None:
    sim.reset(3)
    state = sim.get_state()
    seen = sim.solved_frame(1, cameras=CAMERAS)
    np.testing.assert_array_equal(sim.get_state(), state)
    assert seen.shape == (3, 48, 48, 3)
    np.testing.assert_array_equal(seen[0], sim.solved_frame(1))
    np.testing.assert_array_equal(
        seen[2], kitchen.goal_image("sdoor_open", camera="right_cam", seed=1, image_size=48)
    )
    env = kitchen.make_env("sdoor_open", cameras=CAMERAS, goal="solved", image_size=32)
    check_env_specs(env)
    assert env.reset()["goal_image"].shape == (3, 32, 32, 3)
    env.close()


def test_demonstrating_resumes_and_makes_failures_as_long(tmp_path, monkeypatch) -> None:
    planned = []  # by shipped episodes: a plan takes a minute

    def plan_episode(sim, rollouts, planner, recipe, seed, guide, progress):
        planned.append(seed)
        shipped = kitchen.demonstrations("sdoor_open")[0]
        if seed == 0:
            return shipped._replace(seed=0, success=False, kind="unsolved")
        return shipped._replace(seed=seed)

    monkeypatch.setattr(plan, "plan_episode", plan_episode)
    path = tmp_path / "sdoor_open.npz"
    first = plan.demonstrate("sdoor_open", path, episodes=1, attempts=1)
    assert planned == [0] and [d.kind for d in first] == ["unsolved"]
    both = plan.demonstrate("sdoor_open", path, episodes=2, attempts=9)
    assert planned == [0, 1, 2]
    assert [d.kind for d in both] == ["success", "success", "unsolved", "random"]
    assert len({len(d.qpos) for d in both}) == 1
    plan.demonstrate("sdoor_open", path, episodes=2, attempts=9)
    assert planned == [0, 1, 2]  # nothing left to do


@pytest.mark.slow
def test_a_door_is_slid_open_by_the_command(tmp_path) -> None:
    plan.main(
        ["--out", str(tmp_path), "--tasks", "sdoor_open", "--episodes", "1", "--attempts", "2"]
    )
    success, failure = read_demonstrations(tmp_path / "sdoor_open.npz")
    assert success.success and not failure.success


def test_a_picture_without_the_robot_is_of_objects_alone() -> None:
    sim = kitchen.KitchenSim("sdoor_open", image_size=48)
    sim.reset(0)
    start = sim.data.qpos.copy()
    with_arm, without = sim.render().copy(), sim.render("default/no-robot").copy()
    assert (with_arm != without).any(-1).mean() > 0.05
    moved = start.copy()
    moved[:9] += 0.3
    sim.pose(moved)
    assert (sim.render() != with_arm).any()
    # a pixel where two surfaces meet may go to the other one
    assert (sim.render("default/no-robot") != without).any(-1).mean() < 0.002
    sim.pose(start)
    np.testing.assert_array_equal(sim.render(), with_arm)  # and it comes back
    sim.close()
