"""The tabletop: its rules, its hand, its soft things, its demonstrators and their recording."""

from contextlib import closing

import numpy as np
import pytest
import torch
from tensordict import TensorDict

pytest.importorskip("gymnasium_robotics", reason='pip install "torchrl-vip[robotics]"')

import mujoco

from torchrl_vip.demonstrations import record, render
from torchrl_vip.envs.tabletop import TabletopSim, list_tasks
from torchrl_vip.envs.tabletop.shapes import half_disc

SOFT = ("pickplace-melon", "fold-towel")


@pytest.fixture(scope="module")
def sims():
    """One simulator of each task, shared: every test resets it."""
    sims = {task: TabletopSim(task, image_size=48) for task in list_tasks()}
    yield sims
    for sim in sims.values():
        sim.close()


def playing(sim: TabletopSim, steps: int, seed: int = 0):
    """Solved or not after each step of the script."""
    act = sim.script()
    sim.reset(seed)
    for t in range(steps):
        yield sim.step(act(sim.full_state, t))[2]


def look_again(sim: TabletopSim) -> bool:
    """Whether positions that a test has written are solved."""
    mujoco.mj_forward(sim.model, sim.data)
    return sim.success()


# --- a person's hand ----------------------------------------------------------------------------------


@pytest.mark.parametrize("task", list_tasks())
def test_a_displaced_thing_is_back_and_can_be_solved_again(sims, task: str) -> None:
    sim = sims[task]
    sim.reset(3)
    far, act = sim.thing.left(), sim.script()
    for t in range(60):
        sim.step(act(sim.full_state, t))
        if sim.thing.left() < far / 2:
            break
    before, stops, begun = sim.hand(), sim.stops, sim.get_state()
    sim.displace(5)
    assert sim.thing.left() > 0.6 * far and not sim.success() and not sim.grasp.holding
    assert not sim.data.qvel.any()
    moved = np.linalg.norm(sim.hand() - before)
    assert moved > 0.02 if task in ("close-drawer", "push-bottle") else moved < 1e-3
    after = sim.get_state()
    sim.set_state(begun)
    sim.displace(5)
    assert np.array_equal(sim.get_state(), after)  # the same seed, the same place
    act = sim.script()
    assert any(sim.step(act(sim.full_state, t))[2] for t in range(90))
    assert sim.stops == stops


# --- what counts as solved ---------------------------------------------------------------------------


@pytest.mark.parametrize("opening, solved", [(0.009, True), (0.011, False), (0.15, False)])
def test_a_drawer_within_a_centimetre_of_shut_is_shut(sims, opening: float, solved: bool) -> None:
    sim = sims["close-drawer"]
    sim.reset(0)
    sim.data.joint("drawer").qpos[0] = opening
    assert look_again(sim) is solved


@pytest.mark.parametrize(
    "x, y, lean, solved",
    [
        (0.62, -0.12, 0, True),
        (0.62, -0.075, 9, True),
        (0.68, -0.12, 0, False),
        (0.62, -0.12, 11, False),
    ],
)
def test_a_bottle_has_to_stand_in_the_zone(sims, x, y, lean, solved) -> None:
    sim = sims["push-bottle"]
    sim.reset(0)
    half = np.radians(lean) / 2
    sim.data.joint("bottle").qpos[:] = [x, y, 0.0, np.cos(half), np.sin(half), 0.0, 0.0]
    assert look_again(sim) is solved


def test_a_melon_has_to_lie_in_the_bowl_at_rest_and_let_go_of(sims) -> None:
    sim = sims["pickplace-melon"]
    sim.reset(0)
    x, y, _ = sim.data.body("bowl").xpos
    sim.thing.put(x + 0.04, y, 0.0)
    assert look_again(sim)
    sim.data.qvel[sim.thing.speeds] = 0.1
    assert not look_again(sim)
    sim.data.qvel[:] = 0.0
    sim.data.eq_active[sim.grasp.constraints[0]] = 1
    assert not look_again(sim)
    sim.data.eq_active[:] = 0
    sim.thing.put(x + 0.06, y, 0.0)
    assert not look_again(sim)
    sim.thing.put(x, y, 0.0)
    sim.data.qpos[sim.thing.slides][2::3] += 0.06  # above the bowl
    assert not look_again(sim)


@pytest.mark.parametrize("apart, solved", [(0.04, True), (0.06, False)])
def test_a_towel_is_folded_when_a_corner_lies_near_the_opposite_one(sims, apart, solved) -> None:
    sim = sims["fold-towel"]
    sim.reset(0)
    assert sim.thing.left() == pytest.approx(0.22 * np.sqrt(2), rel=0.02)  # the diagonal
    corner, partner = sim.thing.corners[:2]
    at = sim.thing.points()[partner] + [apart, 0.0, 0.0] - sim.thing.rest[corner]
    sim.data.qpos[sim.thing.first + 3 * corner :][:3] = at
    assert look_again(sim) is solved


# --- the hand ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("axis", range(3))
@pytest.mark.parametrize("sign", [-1.0, 1.0])
def test_an_action_of_one_moves_the_hand_by_three_centimetres(sims, axis: int, sign: float) -> None:
    sim = sims["push-bottle"]
    sim.reset(2)
    sim.data.joint("bottle").qpos[:2] = [0.7, 0.2]  # out of the way
    for _ in range(4):
        sim.step(np.array([1.0, 0.0, 0.0, 0.0]))
    for _ in range(15):
        sim.step(np.zeros(4))
    before = sim.hand()
    action = np.zeros(4)
    action[axis] = sign
    sim.step(action)
    for _ in range(15):
        sim.step(np.zeros(4))
    wanted = before + 0.03 * action[:3]
    np.testing.assert_allclose(sim.target(), wanted, atol=1e-3)
    np.testing.assert_allclose(sim.hand(), wanted, atol=2e-3)
    assert sim.data.site("pinch").xmat[8] == pytest.approx(-1.0, abs=1e-3)  # it points down


@pytest.mark.parametrize("corner", [(1, 1, -1), (1, -1, 1), (-1, 1, 1), (-1, -1, -1), (1, 0, 1)])
def test_the_target_stays_in_its_box_and_near_the_hand_which_points_down(sims, corner) -> None:
    sim = sims["close-drawer"]
    sim.reset(0)
    sim.data.mocap_pos[:] = [5.0, 0.0, 0.0]  # the cabinet is out of the way
    for _ in range(40):
        sim.step(np.array([*corner, 1.0]))
        assert np.linalg.norm(sim.target() - sim.hand()) < 0.07
        assert sim.data.site("pinch").xmat[8] < -0.99
    target, low, high = sim.target(), [0.28, -0.38, 0.008], [0.7, 0.2, 0.33]
    assert (target > np.array(low) - 2e-3).all() and (target < np.array(high) + 2e-3).all()
    assert np.linalg.norm(target[:2]) < 0.742
    np.testing.assert_allclose(target[2], [low, high][corner[2] > 0][2], atol=2e-3)


def test_fingers_that_close_on_nothing_hold_nothing(sims) -> None:
    sim = sims["pickplace-melon"]
    sim.reset(0)
    for _ in range(8):
        sim.step(np.array([0.0, 0.0, 1.0, -1.0]))
    assert not sim.grasp.holding
    assert sim.state()[6] < 0.005  # they are closed


def test_a_melon_is_squeezed_lifted_lost_when_it_pulls_too_hard_and_springs_back(sims) -> None:
    sim = sims["pickplace-melon"]
    held, thickness = [], []
    for _ in playing(sim, 50):
        held.append(sim.grasp.holding)
        across = np.abs(sim.thing.points()[:, None, :2] - sim.thing.points()[None, :, :2])
        thickness.append(np.linalg.norm(across, axis=-1).max())
    first, last = held.index(True), len(held) - 1 - held[::-1].index(True)
    assert all(held[first : last + 1]) and not any(held[last + 1 :])
    # distances between its points, at rest and now
    rest, points = sim.thing.rest, sim.thing.points()
    apart = [np.linalg.norm(p[:, None] - p[None], axis=-1) for p in (rest, points)]
    assert np.abs(apart[1] - apart[0]).max() < 0.006  # it has its shape again
    for t, _ in enumerate(playing(sim, last)):
        if t == first + 3:
            points = sim.thing.points()
            now = np.linalg.norm(points[:, None] - points[None], axis=-1)
            squeezed = (now[apart[0] > 0.04] / apart[0][apart[0] > 0.04]).min()
            assert 0.5 < squeezed < 0.92
            assert points[:, 2].mean() > 0.03 and sim.grasp.pull() > 0
            sim.grasp.strength = 0.01
        if t > first + 3:
            break
    sim.grasp.strength = sim.thing.STRENGTH
    assert not sim.grasp.holding


def test_a_towel_is_folded_over_itself(sims) -> None:
    sim = sims["fold-towel"]
    *_, solved = playing(sim, 50)
    points = sim.thing.points()
    corner, _, left, right = points[sim.thing.corners]
    assert solved
    assert np.linalg.norm(left - right) > 0.26  # the crease is still as long as the diagonal
    assert points[:, 2].max() < 0.06  # and it lies flat
    assert corner[2] > 0.005 and points[:, 2].min() > 0.0  # on itself, not in the table


# --- looks -------------------------------------------------------------------------------------------


def test_one_sees_through_the_bottle(sims) -> None:
    sim = sims["push-bottle"]
    sim.reset(0)
    sim.data.joint("bottle").qpos[:2] = [0.55, -0.2]
    look_again(sim)

    def seen() -> np.ndarray:
        return sim.render("front/no-robot").astype(int)

    with_bottle, table = seen(), sim.model.material("table")
    sim.data.joint("bottle").qpos[0] = -3.0  # behind the camera's view
    look_again(sim)
    bottle = np.abs(with_bottle - seen()).sum(-1) > 20
    sim.data.joint("bottle").qpos[0] = 0.55
    look_again(sim)
    shipped = table.rgba.copy()
    table.rgba[:3] = [1.0, 0.1, 0.1]
    reddened = seen()[bottle]
    table.rgba[:] = shipped
    assert bottle.sum() > 10
    assert np.abs(reddened - with_bottle[bottle]).max(-1).mean() > 30


def test_a_half_disc_has_its_volume_and_no_flat_tetrahedron() -> None:
    points, tetrahedra, picture = half_disc(1.0, 0.5, (3, 25, 9))
    edges = points[tetrahedra[:, 1:]] - points[tetrahedra[:, :1]]
    volumes = np.linalg.det(edges) / 6
    assert (volumes > 0.05 * volumes.mean()).all()
    assert volumes.sum() == pytest.approx(0.5 * np.pi / 2, rel=0.02)
    assert picture.min() >= 0 and picture.max() <= 1


# --- states ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", SOFT)
def test_it_goes_on_bit_for_bit_from_a_state_saved_while_it_holds(sims, task: str) -> None:
    sim, states = sims[task], []
    act = sim.script()
    sim.reset(1)
    for t in range(18):
        sim.step(act(sim.full_state, t))
    assert sim.grasp.holding
    saved, actions = sim.get_state(), np.random.default_rng(0).uniform(-1, 1, (6, 4))
    actions[:, 3] = -1.0
    with closing(TabletopSim(task, image_size=48)) as other:
        for one in (sim, other):
            one.set_state(saved)
            for action in actions:
                one.step(action)
            states.append((one.get_state(), one.render().copy()))
    assert sim.grasp.holding
    for one, other_one in zip(*states, strict=True):
        np.testing.assert_array_equal(one, other_one)


@pytest.mark.parametrize("task", list_tasks())
def test_random_actions_leave_everything_finite_and_on_the_table(sims, task: str) -> None:
    sim, rng = sims[task], np.random.default_rng(0)
    sim.reset(5)
    for _ in range(50):
        state, reward, _ = sim.step(rng.uniform(-1, 1, 4))
        assert np.isfinite(state).all() and np.isfinite(reward)
    assert np.abs(sim.data.qvel).max() < 30


def test_a_step_that_blows_up_is_taken_back_and_leaves_all_at_rest(sims) -> None:
    sim = sims["pickplace-melon"]
    sim.reset(0)
    stops, before = sim.stops, sim.thing.points().copy()
    sim.data.qvel[sim.thing.speeds.start] = 1e6
    state, _, _ = sim.step(np.array([1.0, 0.0, 0.0, 1.0]))
    assert sim.stops == stops + 1
    np.testing.assert_array_equal(sim.thing.points(), before)
    assert not sim.data.qvel.any() and np.isfinite(state).all()
    hand = sim.hand()
    for _ in range(5):
        sim.step(np.array([0.0, 0.0, 1.0, 1.0]))
    assert sim.hand()[2] > hand[2] + 0.05 and sim.stops == stops + 1  # and it goes on


# --- demonstrators -----------------------------------------------------------------------------------


@pytest.mark.parametrize("task", list_tasks())
def test_a_person_of_full_skill_solves_it_within_an_episode(sims, task: str) -> None:
    sim = sims[task]
    for seed in range(2 if task in SOFT else 5):
        act = sim.script(1.0, seed)
        sim.reset(seed)
        solved = [sim.step(act(sim.full_state, t))[2] for t in range(sim.MAX_STEPS)]
        assert solved[-1] and not solved[0]


def test_a_seed_draws_the_habits_and_skill_the_fumbles(sims) -> None:
    sim = sims["close-drawer"]

    def actions(skill: float, seed: int | None) -> np.ndarray:
        act = sim.script(skill, seed)
        sim.reset(0)
        played = []
        for t in range(30):
            played.append(act(sim.full_state, t))
            sim.step(played[-1])
        return np.stack(played)

    np.testing.assert_array_equal(actions(1.0, 3), actions(1.0, 3))
    assert not np.array_equal(actions(1.0, 3), actions(1.0, 4))
    assert not np.array_equal(actions(1.0, 3), actions(0.2, 3))
    np.testing.assert_array_equal(actions(1.0, None), actions(1.0, None))


def test_a_skill_that_cannot_be_is_refused(sims) -> None:
    sim = sims["close-drawer"]
    with pytest.raises(ValueError, match="skill is 1.5; wanted a number from 0 to 1"):
        sim.script(1.5, 0)
    with pytest.raises(ValueError, match="skill is 0.5: wanted a seed"):
        sim.script(0.5)


# --- recording ---------------------------------------------------------------------------------------


def test_recorded_episodes_are_good_and_bad_and_are_read_from_the_disk(tmp_path, capsys) -> None:
    arguments = "--task close-drawer --successes 1 --failures 1 --size 16 --out".split()
    record.main([*arguments, str(tmp_path)])
    steps = TensorDict.load_memmap(tmp_path / "close-drawer")
    assert steps.shape == (100,)
    assert steps["pixels"].shape == (100, 16, 16, 3) and steps["pixels"].dtype == torch.uint8
    assert steps["episode"].unique(return_counts=True)[1].tolist() == [50, 50]
    good, bad = steps[:50], steps[50:]
    assert good["good"].all() and good["next", "success"][-1]
    assert not bad["good"].any() and not bad["next", "success"].any()
    assert good["next", "done"].flatten().nonzero().tolist() == [[49]]
    for key in ("pixels", "state", "full_state"):
        assert torch.equal(good["next", key][:-1], good[key][1:])
    # the actions repeat the episode
    with closing(TabletopSim("close-drawer", image_size=16)) as sim:
        again = next(record.record("close-drawer", 1, 0, image_size=16))
        assert torch.equal(again["action"], good["action"]) and sim.ACTION_SIZE == 4
    record.main([*arguments, str(tmp_path)])
    assert "is there already: left alone" in capsys.readouterr().out


def test_a_recording_for_lerobot_has_the_same_steps(tmp_path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    pytest.importorskip("av")
    from torchrl_vip.data.sources import find_clips

    arguments = "--task close-drawer --successes 1 --failures 1 --size 16 --out".split()
    record.main([*arguments, str(tmp_path / "steps")])
    record.main([*arguments, str(tmp_path / "set"), "--format", "lerobot"])
    steps = TensorDict.load_memmap(tmp_path / "steps/close-drawer")
    table = parquet.read_table(tmp_path / "set/close-drawer/data").to_pydict()
    for name, key in (
        ("action", "action"),
        ("observation.state", "state"),
        ("next.task_reward", ("next", "reward")),
        ("next.success", ("next", "success")),
    ):
        assert torch.equal(torch.tensor(table[name]).squeeze(), steps[key].squeeze())
    clips = find_clips(tmp_path / "set/close-drawer")
    assert [(clip.labels["task"], clip.span.count) for clip in clips] == [("close-drawer", 50)] * 2


@pytest.mark.parametrize(
    "arguments, says",
    [
        ("--successes 0 --failures 0", "wanted 1 episode or more"),
        ("--successes -1", "--successes -1: wanted 0 or more"),
        ("--task fly", "invalid choice: 'fly'"),
    ],
)
def test_a_recording_that_cannot_be_is_refused(tmp_path, capsys, arguments, says) -> None:
    with pytest.raises(SystemExit):
        record.main([*arguments.split(), "--out", str(tmp_path)])
    assert says in capsys.readouterr().err


def test_its_tasks_are_never_trained_on(tmp_path, capsys) -> None:
    with pytest.raises(SystemExit):
        render.main(["--suite", "tabletop", "--split", "train", "--out", str(tmp_path)])
    assert "tabletop is never trained on; wanted --split heldout" in capsys.readouterr().err
