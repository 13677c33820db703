"""MPPI and CEM against a problem whose optimum is known, and roll-outs in processes."""

import signal
import time
from contextlib import closing
from functools import partial

import numpy as np
import pytest
import torch
from tensordict import TensorDict
from torchrl.data import Bounded, Composite, Unbounded
from torchrl.envs import EnvBase
from torchrl.modules import CEMPlanner, MPPIPlanner, ValueOperator
from torchrl.objectives.value import TDLambdaEstimator

from torchrl_vip.planning import (
    CEM,
    MPPI,
    FoundRobot,
    Rollouts,
    filtered_noise,
    find_robot,
    in_deviations,
    last_reward,
    mppi_weights,
    read_goal,
    rollout,
)
from torchrl_vip.planning.registration import _kernel_ridge

DT, HORIZON = 0.2, 8
A = np.array([[1.0, DT], [0.0, 1.0]])
B = np.array([[0.0], [DT]])
Q, R = np.diag([1.0, 0.1]), np.array([[0.05]])


class PointMass:
    """A simulator of a linear-quadratic problem: position and velocity, a force, no renderer."""

    def __init__(self, broken: bool = False) -> None:
        if broken:
            raise ValueError("no such task")
        self.x = np.array([0.8, 0.0])

    def get_state(self) -> np.ndarray:
        return self.x.copy()

    def set_state(self, state: np.ndarray) -> None:
        self.x = state.copy()

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool]:
        self.x = A @ self.x + B @ action
        return self.x, -float(self.x @ Q @ self.x + action @ R @ action), False

    def close(self) -> None:
        pass


def position_and_velocity(sim: PointMass, reward: float) -> np.ndarray:
    return sim.x.copy()


def optimum(x: np.ndarray) -> tuple[np.ndarray, float]:
    """Actions and total reward of the best plan of HORIZON steps, by the Riccati recursion."""
    value, gains = np.zeros((2, 2)), []
    for _ in range(HORIZON):
        later = Q + value  # the cost is of the state arrived at
        gain = np.linalg.solve(R + B.T @ later @ B, B.T @ later @ A)
        value = A.T @ later @ (A - B @ gain)
        gains.append(gain)
    actions, total, sim = [], 0.0, PointMass()
    sim.set_state(x)
    for gain in reversed(gains):
        actions.append(-gain @ sim.x)
        total += sim.step(actions[-1])[1]
    np.testing.assert_allclose(total, -x @ value @ x)  # the recursion's own value
    return np.array(actions), total


@pytest.mark.parametrize(
    "planner, within",
    [
        (CEM(1, horizon=HORIZON, trajectories=200, iterations=20, elites=20), 0.005),
        (MPPI(1, horizon=HORIZON, trajectories=200, iterations=40, sigma=0.3, kappa=10), 0.01),
    ],
)
def test_planners_find_the_linear_quadratic_optimum(planner, within: float) -> None:
    sim, start = PointMass(), np.array([0.25, 0.0])
    best, total = optimum(start)
    assert np.abs(best).max() < 1  # the bounds play no part
    rollouts = Rollouts(PointMass, last_reward, last=HORIZON)
    mean = planner.improve(lambda actions: rollouts(start, actions).sum(1))
    reached = rollout(sim, start, mean[None], last=HORIZON).sum()
    assert total * (1 + within) <= reached <= total + 1e-12
    assert np.abs(mean - best)[:3].max() < 0.1


class PointMassEnv(EnvBase):
    """PointMass for TorchRL's planners, which step any batch of states in one environment."""

    def __init__(self, start: np.ndarray) -> None:
        super().__init__(batch_size=[])
        self._batch_locked = False
        self.start = torch.as_tensor(start, dtype=torch.float32)
        self.observation_spec = Composite(x=Unbounded((2,)))
        self.state_spec = Composite(x=Unbounded((2,)))
        self.action_spec = Bounded(-1, 1, (1,))
        self.reward_spec = Unbounded((1,))
        self.matrices = [torch.as_tensor(m, dtype=torch.float32) for m in (A, B, Q, R)]

    def _reset(self, tensordict=None, **_) -> TensorDict:
        return TensorDict(x=self.start)

    def _step(self, tensordict: TensorDict) -> TensorDict:
        a, b, q, r = self.matrices
        action = tensordict["action"]
        x = tensordict["x"] @ a.T + action @ b.T
        reward = -((x @ q) * x).sum(-1, keepdim=True) - action**2 @ r
        done = torch.zeros_like(reward, dtype=torch.bool)
        ends = {"done": done, "terminated": done.clone()}
        return TensorDict({"x": x, "reward": reward, **ends}, tensordict.batch_size)

    def _set_seed(self, seed) -> None:
        pass


def test_torchrls_planners_and_ours_agree_on_the_first_action() -> None:
    start = np.array([0.25, 0.0])
    best, _ = optimum(start)
    torch.manual_seed(0)
    env, size = PointMassEnv(start), {"planning_horizon": HORIZON, "num_candidates": 200}
    value = ValueOperator(torch.nn.Linear(2, 1), in_keys=["x"])
    torch.nn.init.zeros_(value.module.weight), torch.nn.init.zeros_(value.module.bias)
    summed = TDLambdaEstimator(gamma=1.0, lmbda=1.0, value_network=value)
    cem = CEMPlanner(env, optim_steps=20, top_k=20, **size)
    mppi = MPPIPlanner(env, summed, temperature=10.0, optim_steps=40, top_k=200, **size)
    theirs = [planner(env.reset())["action"].item() for planner in (cem, mppi)]
    rollouts = Rollouts(PointMass, last_reward, last=HORIZON)
    ours = [
        planner.plan(lambda actions: rollouts(start, actions).sum(1)).item()
        for planner in (
            CEM(1, horizon=HORIZON, trajectories=200, iterations=20, elites=20),
            MPPI(1, horizon=HORIZON, trajectories=200, iterations=40, sigma=0.3, kappa=10),
        )
    ]
    np.testing.assert_allclose([*theirs, *ours], best[0].item(), atol=0.1)


def test_receding_horizon_with_a_last_step_score_brings_the_mass_home() -> None:
    sim, planner = PointMass(), MPPI(1, horizon=HORIZON)
    with Rollouts(PointMass, position_and_velocity) as rollouts:
        for _ in range(60):
            state = sim.get_state()
            sim.step(planner.plan(lambda a, s=state: -np.abs(rollouts(s, a)).sum(1)))
    assert np.abs(sim.x).max() < 0.1  # it started at 0.8


def test_the_filter_by_hand() -> None:
    white = np.random.default_rng(3).normal(size=(2, 4, 1))
    noise = filtered_noise(np.random.default_rng(3), (2, 4, 1), (0.5, 0.25, 0.125))
    first = white[:, 0]
    second = 0.5 * white[:, 1] + 0.25 * first
    third = 0.5 * white[:, 2] + 0.25 * second + 0.125 * first
    np.testing.assert_allclose(noise[:, 0], first)
    np.testing.assert_allclose(noise[:, 1], second)
    np.testing.assert_allclose(noise[:, 2], third)


def test_weights_by_hand() -> None:
    scores = np.array([0.0, np.log(3.0)])
    np.testing.assert_allclose(mppi_weights(scores, 1.0, scale=False), [0.25, 0.75])
    np.testing.assert_allclose(mppi_weights(scores, 0.5), mppi_weights(7 * scores - 3, 0.5))
    np.testing.assert_allclose(mppi_weights(np.full(4, 2.0), 5.0), 0.25)  # nothing to choose


def test_views_in_deviations_by_hand() -> None:
    near, far = np.array([1.0, 3.0]), np.array([100.0, 140.0])  # deviations 1 and 20
    distances = np.stack([near, far], -1)
    np.testing.assert_allclose(in_deviations(distances), [1 + 5, 3 + 7])
    np.testing.assert_allclose(in_deviations(distances, [1.0, 2.0]), [1 + 10, 3 + 14])
    still = np.stack([near, np.array([100.0, 100.001])], -1)  # nothing moved in the second
    np.testing.assert_allclose(in_deviations(still), near)
    several_steps = np.stack([distances, distances], 1)
    np.testing.assert_allclose(in_deviations(several_steps), [[6, 6], [10, 10]])


@pytest.fixture(scope="module")
def kitchen():
    pytest.importorskip("gymnasium_robotics", reason='pip install "torchrl-vip[robotics]"')
    from torchrl_vip.envs.kitchen import KitchenSim

    sim = KitchenSim("knob1_off", image_size=64)
    yield sim
    sim.close()


def test_the_robot_is_found_in_a_goal_image(kitchen) -> None:
    from torchrl_vip.envs.kitchen import demonstrations

    demonstration = demonstrations("knob1_off")[0]
    kitchen.repeat(demonstration, 15)
    views = ["default", "default/no-robot"]
    state, start = kitchen.get_state(), kitchen.look(views)
    state_positions = kitchen.data.qpos.copy()
    kitchen.pose(demonstration.qpos[-1])  # the knob turned as well, which is not looked for
    goal = kitchen.look(views)
    kitchen.set_state(state)
    search = {"candidates": 64, "iterations": 4}
    found = find_robot(kitchen, goal[0], "default", **search)
    np.testing.assert_array_equal(kitchen.get_state(), state)

    def overlap(mask: np.ndarray) -> float:
        robot = (goal[0] != goal[1]).any(-1)
        return (mask & robot).sum() / (mask | robot).sum()

    pixels = found.pixels
    assert pixels.dtype == bool and pixels.shape == (64, 64)
    assert overlap(pixels) > 0.8 > 0.7 > overlap((start[0] != start[1]).any(-1))
    again = find_robot(kitchen, goal[0], "default", **search)
    np.testing.assert_array_equal(again.pixels, pixels)
    np.testing.assert_array_equal(again.qpos, found.qpos)
    np.testing.assert_array_equal(found.qpos[9:], state_positions[9:])  # all but the robot


@pytest.mark.parametrize("task", ["ldoor_close", "knob1_on"])  # the burner turns with the knob
def test_what_a_goal_image_shows_moved_and_where_it_is_touched(task) -> None:
    from torchrl_vip.envs.kitchen import KitchenSim, demonstrations

    with closing(KitchenSim(task, image_size=64)) as sim:
        demonstration = demonstrations(task)[0]
        sim.repeat(demonstration, 10)
        state, here = sim.get_state(), sim.data.qpos.copy()
        sim.pose(demonstration.qpos[-1])
        views = ["default", "default/no-robot"]
        goal, belongs = sim.look(views), sim.joint_error()
        robot = FoundRobot((goal[0] != goal[1]).any(-1), here.copy())
        robot.qpos[:9] = demonstration.qpos[-1][:9]

        def distance(frames):
            return np.abs(frames.astype(float) - goal[0]).mean((1, 2, 3))

        sim.set_state(state)
        reading = read_goal(sim, goal[0], "default", robot, distance)
        np.testing.assert_array_equal(sim.get_state(), state)
        assert reading.joint == sim.rule.joint and "finger" in sim.model.body(reading.part).name
        sim.data.joint(reading.joint).qpos[0] = reading.value
        assert abs(sim.joint_error() - belongs) < 0.1
        away = [reading.touch(sim.data)]
        for qpos in (here, demonstration.qpos[-1]):
            sim.pose(qpos)
            away.append(reading.touch(sim.data))
        assert away[1] > 0.1 > 0.05 > away[2], "it is touched in the goal"
        sim.pose(here)
        with pytest.raises(
            ValueError, match=r"goal of shape \(64, 64, 4\).*wanted uint8 \[64, 64, 3"
        ):
            read_goal(sim, np.zeros((64, 64, 4), np.uint8), "default", robot, distance)
        with pytest.raises(ValueError, match="values is 1; wanted 2"):
            read_goal(sim, goal[0], "default", robot, distance, values=1)
        nothing = read_goal(sim, sim.look(views)[1], "default", robot, lambda f: distance(f) * 0)
        assert nothing is None


def test_what_no_robot_can_be_found_in_is_an_error(kitchen, monkeypatch) -> None:
    with pytest.raises(ValueError, match=r"goal of shape \(32, 32, 3\), uint8; wanted uint8 \[64"):
        find_robot(kitchen, np.zeros((32, 32, 3), np.uint8), "default")
    with pytest.raises(ValueError, match="candidates is 4; wanted 8"):
        find_robot(kitchen, np.zeros((64, 64, 3), np.uint8), "default", candidates=4)
    from torchrl_vip.envs.metaworld import MetaWorldSim

    with closing(MetaWorldSim("reach-v3", image_size=64)) as sim:
        sim.reset(0)
        state, black = sim.get_state(), np.zeros((64, 64, 3), np.uint8)
        with pytest.raises(ValueError, match="'behindGripper' rides on the robot.*'corner4'"):
            find_robot(sim, black, "behindGripper", candidates=8, iterations=1)
        with pytest.raises(ValueError, match="unknown camera 'nowhere'"):
            find_robot(sim, black, "nowhere", candidates=8, iterations=1)
        np.testing.assert_array_equal(sim.get_state(), state)
    monkeypatch.setattr(type(kitchen), "ROBOT", "")
    with pytest.raises(ValueError, match="KitchenSim knows no robot to look for"):
        find_robot(kitchen, np.zeros((64, 64, 3), np.uint8), "default")


def test_a_regression_tells_poses_from_pictures_and_how_far_it_errs() -> None:
    rng, line = np.random.default_rng(0), np.linspace(-2, 2, 40)

    def pictures(
        poses: np.ndarray,
    ) -> np.ndarray:  # [N, 2] to [N, 40]: a wide bump and a narrow one
        bumps = np.exp(-np.square(line - poses[..., None]) / [[0.5], [0.1]])
        return bumps.sum(1)

    poses, wanted = rng.uniform(-1, 1, (400, 2)), np.array([0.5, -0.3])
    seen, image = pictures(poses), pictures(wanted[None])[0]
    pose, error = _kernel_ridge(seen, poses, image)
    assert (error < 0.1).all() and (np.abs(pose - wanted) < 3 * error).all()
    image[0] += 50  # something that no pose shows, where no pose shows anything
    again, _ = _kernel_ridge(seen, poses, image)
    np.testing.assert_allclose(again, pose, atol=0.05)
    same, _ = _kernel_ridge(np.ones_like(seen), poses, image)  # a camera that sees no robot
    np.testing.assert_allclose(same, poses.mean(0), atol=1e-3)
    _, hopeless = _kernel_ridge(seen, rng.permutation(poses), image)
    assert (hopeless > 0.4).all(), "a uniform pose in [-1, 1] deviates by 0.58"


def test_plans_repeat_by_seed_and_warm_start_by_a_shift() -> None:
    planner = MPPI(2, horizon=3, trajectories=8, rest=[0.5, -0.5])

    def score(actions: np.ndarray) -> np.ndarray:
        return -np.square(actions - 0.3).sum((1, 2))

    first, rest = planner.plan(score), planner.mean.copy()
    np.testing.assert_array_equal(rest[-1], [0.5, -0.5])
    planner.reset(0)
    np.testing.assert_array_equal(planner.mean, np.tile([0.5, -0.5], (3, 1)))
    mean = planner.improve(score)
    np.testing.assert_array_equal(first, mean[0])
    np.testing.assert_array_equal(rest[:-1], mean[1:])


def test_an_action_without_noise_stays_at_rest() -> None:
    for planner in (MPPI(2, sigma=[1, 0], rest=[0, -1]), CEM(2, sigma=[1, 0], rest=[0, -1])):
        assert planner.plan(lambda actions: actions.sum((1, 2)))[1] == pytest.approx(-1)


def test_scores_are_checked() -> None:
    planner = MPPI(1, trajectories=4)
    with pytest.raises(ValueError, match=r"shape \(4, 12\); wanted \(4,\)"):
        planner.plan(lambda actions: actions[..., 0])
    with pytest.raises(ValueError, match="no score is finite"):
        planner.plan(lambda actions: np.full(4, np.nan))
    assert np.isfinite(planner.plan(lambda actions: np.array([0, np.nan, -np.inf, 1]))).all()
    with pytest.raises(ValueError, match="elites is 9; wanted 1 to 4"):
        CEM(1, trajectories=4, elites=9)
    for name in ("horizon", "trajectories", "iterations"):
        with pytest.raises(ValueError, match=f"{name} is 0; wanted 1 or more"):
            MPPI(1, **{name: 0})
    for sigma in (np.nan, -1.0, [1.0, np.inf]):
        with pytest.raises(ValueError, match="sigma is .*; wanted 0 or more"):
            MPPI(2, sigma=sigma)


def test_processes_change_nothing() -> None:
    state = np.array([0.5, -0.1])
    actions = np.random.default_rng(0).uniform(-1, 1, (5, 3, 1))
    every = Rollouts(PointMass, last=3)(state, actions)
    here = Rollouts(PointMass, last=2)(state, actions)
    assert here.shape == (5, 2)
    np.testing.assert_array_equal(here, every[:, 1:])
    np.testing.assert_array_equal(Rollouts(PointMass)(state, actions), every[:, 2])
    with pytest.raises(ValueError, match="last is 4; wanted 1 to 3"):
        Rollouts(PointMass, last=4)(state, actions)
    with Rollouts(PointMass, last=2, processes=2) as rollouts:
        for _ in range(2):  # the workers stay
            np.testing.assert_array_equal(rollouts(state, actions), here)
        np.testing.assert_array_equal(rollouts(state, actions[:1]), here[:1])  # one has no work
    assert not rollouts._workers


def test_errors_of_a_worker_arrive() -> None:
    with pytest.raises(ValueError, match="no such task"):
        Rollouts(partial(PointMass, broken=True), processes=1)
    rollouts = Rollouts(PointMass, processes=1)
    rollouts._workers[0].terminate()
    with pytest.raises(RuntimeError, match="a rollout worker died"):
        rollouts(np.zeros(2), np.zeros((2, 3, 1)))
    with pytest.raises(RuntimeError, match="are closed"):
        rollouts(np.zeros(2), np.zeros((2, 3, 1)))
    with pytest.raises(ValueError, match="processes is -1"):
        Rollouts(PointMass, processes=-1)


def sleep_where_pushed(sim: PointMass, reward: float) -> float:
    time.sleep(3 if sim.x[1] > 0.5 else 0)
    return float(sim.x[1])


def test_answers_to_an_interrupted_plan_are_not_those_of_the_next() -> None:
    def interrupt(*_) -> None:
        raise TimeoutError("no more time")

    before = signal.signal(signal.SIGALRM, interrupt)
    rollouts = Rollouts(PointMass, sleep_where_pushed, processes=1)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.5)
        with pytest.raises(TimeoutError, match="no more time"):
            rollouts(np.zeros(2), np.ones((1, 3, 1)))
        with pytest.raises(RuntimeError, match="are closed.*interruption"):
            rollouts(np.zeros(2), np.zeros((1, 3, 1)))
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def refuse_force(sim: PointMass, reward: float) -> float:
    if sim.x[1] < 0:
        raise ValueError("pushed back")
    return reward


@pytest.mark.parametrize("second", [1.0, -1.0])
def test_the_others_end_quietly_when_a_worker_fails(second, capfd) -> None:
    actions = np.stack([np.full((3, 1), -1.0), np.full((3, 1), second)])  # the first worker fails
    with pytest.raises(ValueError, match="pushed back"):
        Rollouts(PointMass, refuse_force, processes=2)(np.zeros(2), actions)
    assert "Traceback" not in capfd.readouterr().err
