"""Adroit: shipped demonstrations, the reward they were planned by, planning one."""

from contextlib import closing

import numpy as np
import pytest

pytest.importorskip("gymnasium_robotics", reason='pip install "torchrl-vip[robotics]"')

from torchrl_vip.demonstrations import plan, render
from torchrl_vip.demonstrations.store import (
    SHIPPED,
    read_demonstrations,
    write_demonstrations,
)
from torchrl_vip.envs import adroit, load_suite
from torchrl_vip.envs.adroit import TASKS, AdroitSim


@pytest.mark.parametrize("task", sorted(TASKS))
def test_shipped_demonstrations_end_where_they_say(task: str) -> None:
    solved, failed = (adroit.demonstrations(task, success=s) for s in (True, False))
    assert len(solved) >= 4
    assert [len(d.qpos) for d in failed] == [len(d.qpos) for d in solved]
    with closing(AdroitSim(task, image_size=32)) as sim:
        for shown in solved + failed:
            sim.reset(5)  # another start, so another target
            state, seen = sim.get_state(), sim.render().copy()
            played = sim.replay(shown)
            np.testing.assert_array_equal(sim.get_state(), state)
            np.testing.assert_array_equal(sim.render(), seen)
            assert len(played.frames) == len(played.reward) == len(shown.qpos)
            if shown.success:
                assert played.success[-5:].all() and not played.success[:5].any()
            else:
                assert not played.success.any()
            sim.repeat(shown, 0)
            np.testing.assert_allclose(shown.qpos[0], sim.data.qpos, atol=1e-6)
        sim.repeat(shown, 8)
        np.testing.assert_allclose(sim.data.qpos, shown.qpos[8], atol=2e-3)
        np.testing.assert_array_equal(played.frames[-1], sim.last_look(shown))


def test_another_start_is_there_again_where_a_replay_fails(monkeypatch) -> None:
    with closing(AdroitSim("adroit-door", image_size=32)) as sim:
        sim.reset(5)
        state = sim.get_state()
        monkeypatch.setattr(sim, "render", None)
        with pytest.raises(TypeError):
            sim.replay(adroit.demonstrations("adroit-door")[0])
        np.testing.assert_array_equal(sim.get_state(), state)


@pytest.mark.parametrize("task", sorted(TASKS))
def test_the_reward_is_higher_where_the_task_is_solved(task: str) -> None:
    with closing(AdroitSim(task, image_size=32)) as sim:
        sim.reset(1)
        start = sim.reward()
        assert not sim.success()
        sim.put_solved()
        assert sim.success() and sim.reward() > start


def test_the_hand_is_paid_for_coming_near() -> None:
    with closing(AdroitSim("adroit-door", image_size=32)) as sim:
        sim.reset(0)
        qpos = sim.data.qpos.copy()
        qpos[sim.model.joint("door_hinge").qposadr[0]] = 0.5
        qpos[sim.model.joint("latch").qposadr[0]] = 0.9
        at, arm = sim.data.site_xpos, sim.model.joint("ARTz").qposadr[0]
        ways, rewards = [], []
        for reach in (0.0, 0.05):  # m, towards the door
            qpos[arm] += reach
            sim.pose(qpos)
            ways.append(np.linalg.norm(at[sim.env.grasp_site_id] - at[sim.env.handle_site_id]))
            rewards.append(sim.reward())
        assert ways[0] - 0.05 <= ways[1] < ways[0] - 0.02
        assert rewards == pytest.approx([3 * 0.5 + 0.5 * 0.5 - way for way in ways])


def test_a_pen_is_judged_by_place_and_direction() -> None:
    with closing(AdroitSim("adroit-pen", image_size=32)) as sim:
        sim.reset(2)
        sim.put_solved()
        off, along = sim._pen_error()
        assert along == pytest.approx(1.0, abs=1e-3) and off < 0.075
        assert sim.reward() == pytest.approx(along - 5 * off)
        qpos = sim.data.qpos.copy()
        before = sim.data.xpos[sim.env.obj_body_id].copy()
        qpos[sim.model.joint("OBJTx").qposadr[0]] += 0.2  # which points down: dropped
        sim.pose(qpos)
        now = sim.data.xpos[sim.env.obj_body_id]
        np.testing.assert_allclose(now - before, [0, 0, -0.2], atol=1e-3)
        assert not sim.success()
        assert sim.reward() == pytest.approx(1.0 - 5 * 0.2 - 5.0, abs=0.02)


def test_wrong_arguments_are_errors_that_say_what_is_wanted(tmp_path, capsys) -> None:
    with pytest.raises(ValueError, match="unknown task 'fly'.*adroit-pen"):
        adroit.demonstrations("fly")
    options = ["--suite", "adroit", "--out", str(tmp_path)]
    for wrong, message in (
        (["--tasks", "sdoor_open"], "unknown tasks ['sdoor_open']; choose from ['adroit-door'"),
        (["--episodes", "4", "--attempts", "3"], "--attempts 3: wanted --episodes to 500"),
        (["--episodes", "0"], "--episodes 0: wanted 1 or more"),
        (["--seed", "-1"], "--seed -1: wanted 0 or more"),
    ):
        with pytest.raises(SystemExit):
            plan.main([*options, *wrong])
        assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_another_seed_wants_another_file(tmp_path) -> None:
    shipped = (SHIPPED / "adroit" / "adroit-hammer.npz").read_bytes()
    (tmp_path / "adroit-hammer.npz").write_bytes(shipped)
    options = ["--suite", "adroit", "--out", str(tmp_path), "--tasks", "adroit-hammer"]
    with pytest.raises(SystemExit, match="has demonstrations of seed 0: give another --out"):
        plan.main([*options, "--episodes", "5", "--seed", "7"])
    assert (tmp_path / "adroit-hammer.npz").read_bytes() == shipped


def test_a_run_that_was_killed_before_its_failures_makes_them(tmp_path) -> None:
    path, solved = tmp_path / "adroit-hammer.npz", adroit.demonstrations("adroit-hammer")[:2]
    long = solved[0]._replace(
        qpos=np.repeat(solved[0].qpos[:1], 101, axis=0),
        actions=np.zeros((100, 26), np.float32),
        success=False,
    )
    # not among the failures: it was solved for a while
    planned = [*solved, long._replace(kind="lost", seed=8), long._replace(kind="unsolved", seed=9)]
    write_demonstrations(path, planned)
    options = ["--suite", "adroit", "--out", str(tmp_path), "--tasks", "adroit-hammer"]
    plan.main([*options, "--episodes", "2"])
    first, second, unsolved, other = read_demonstrations(path)
    assert [d.seed for d in (first, second)] == [d.seed for d in solved]
    assert (unsolved.kind, unsolved.seed, other.kind, other.seed) == ("unsolved", 9, "random", 501)
    assert [len(d.actions) for d in (unsolved, other)] == [len(d.actions) for d in solved]
    whole = path.read_bytes()
    plan.main([*options, "--episodes", "2"])
    assert path.read_bytes() == whole


def test_clips_are_what_is_shipped(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(load_suite("adroit"), "CAMERAS", ("vil_camera",))
    options = ["--out", str(tmp_path), "--suite", "adroit", "--split", "heldout", "--size", "32"]
    render.main([*options, "--tasks", "adroit-hammer"])
    clips = render.read_manifest(tmp_path)
    shown = {(d.kind, d.seed): d for d in adroit.demonstrations("adroit-hammer", success=None)}
    assert {(clip["kind"], clip["seed"]) for clip in clips.values()} == shown.keys()
    for clip in clips.values():
        demonstration = shown[clip["kind"], clip["seed"]]
        assert clip["group"] == "adroit-hammer/vil_camera"
        assert clip["success"] == demonstration.success
        assert clip["frames"] == len(demonstration.qpos[::2]) == len(clip["reward"]) + 1
    ends = {True: [], False: []}
    for clip in clips.values():
        ends[clip["success"]].append(clip["reward"][-1])
    assert min(ends[True]) > max(ends[False])
    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*.mp4")}
    render.main([*options, "--tasks", "adroit-hammer"])
    assert {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*.mp4")} == before


@pytest.mark.slow
def test_a_nail_is_driven_in_by_the_command(tmp_path) -> None:
    plan.main(
        ["--suite", "adroit", "--out", str(tmp_path), "--tasks", "adroit-hammer", "--episodes", "1"]
    )
    success, failure = read_demonstrations(tmp_path / "adroit-hammer.npz")
    assert success.success and not failure.success
