"""Adroit: shipped demonstrations, the reward they were planned by, planning one."""

from contextlib import closing

import numpy as np
import pytest

pytest.importorskip("gymnasium_robotics", reason='pip install "torchrl-vip[robotics]"')

from torchrl_vip.data import render  # noqa: E402
from torchrl_vip.envs import adroit, load_suite  # noqa: E402
from torchrl_vip.envs.adroit import TASKS, AdroitSim  # noqa: E402
from torchrl_vip.envs.demonstrations import read_demonstrations  # noqa: E402
from torchrl_vip.planning import demonstrate  # noqa: E402


@pytest.mark.parametrize("task", sorted(TASKS))
def test_shipped_demonstrations_end_where_they_say(task: str) -> None:
    solved, failed = (adroit.demonstrations(task, success=s) for s in (True, False))
    assert len(solved) >= 4
    assert [len(d.qpos) for d in failed] == [len(d.qpos) for d in solved]
    with closing(AdroitSim(task, image_size=32)) as sim:
        for shown in solved + failed:
            sim.reset(5)  # another start, so another target
            state = sim.get_state()
            frames, success, reward = sim.replay(shown, stride=4)
            np.testing.assert_array_equal(sim.get_state(), state)
            assert len(frames) == len(success) == len(reward) == len(shown.qpos[::4])
            sim.repeat(shown, 0)
            np.testing.assert_allclose(shown.qpos[0], sim.data.qpos, atol=1e-6)
            sim.pose(shown.qpos[-1])
            assert sim.success() == shown.success
            assert shown.kind in ("success", "unsolved") or not success.any()
        shown = solved[0]
        sim.repeat(shown, 8)
        np.testing.assert_allclose(sim.data.qpos, shown.qpos[8], atol=2e-3)
        np.testing.assert_array_equal(sim.last_look(shown), sim.last_look(shown))
        sim.repeat(shown, 0)
        sim.pose(shown.qpos[-1])
        np.testing.assert_array_equal(sim.render(), sim.last_look(shown))


@pytest.mark.parametrize("task", sorted(TASKS))
def test_the_reward_is_highest_where_the_task_is_solved(task: str) -> None:
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
        sim.pose(qpos)
        at = sim.data.site_xpos
        way = np.linalg.norm(at[sim.env.grasp_site_id] - at[sim.env.handle_site_id])
        assert way > 0.1
        assert sim.reward() == pytest.approx(3 * 0.5 + 0.5 * 0.5 - way)
        arm = sim.model.joint("ARTz").qposadr[0]  # to the door
        before = sim.reward()
        sim.pose(np.where(np.arange(len(qpos)) == arm, qpos + 0.05, qpos))
        nearer = np.linalg.norm(at[sim.env.grasp_site_id] - at[sim.env.handle_site_id])
        assert nearer != pytest.approx(way) and sim.reward() - before == pytest.approx(way - nearer)


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


def test_unknown_tasks_are_errors_that_list_the_choices() -> None:
    with pytest.raises(ValueError, match="unknown task 'fly'.*adroit-pen"):
        adroit.demonstrations("fly")
    with pytest.raises(SystemExit):
        demonstrate.main(["--suite", "adroit", "--out", "x", "--tasks", "sdoor_open"])


def test_clips_are_what_is_shipped(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(load_suite("adroit"), "CAMERAS", ("vil_camera",))
    options = ["--out", str(tmp_path), "--suite", "adroit", "--split", "heldout", "--size", "32"]
    render.main([*options, "--tasks", "adroit-hammer"])
    clips = render.read_manifest(tmp_path)
    assert sum(clip["success"] for clip in clips.values()) * 2 == len(clips) >= 8
    for clip in clips.values():
        assert (
            clip["group"] == "adroit-hammer/vil_camera"
            and len(clip["reward"]) + 1 == clip["frames"]
        )
        if clip["success"]:
            assert max(clip["reward"]) == pytest.approx(clip["reward"][-1], abs=0.3)


@pytest.mark.slow
def test_a_nail_is_driven_in_by_the_command(tmp_path) -> None:
    demonstrate.main(
        ["--suite", "adroit", "--out", str(tmp_path), "--tasks", "adroit-hammer", "--episodes", "1"]
    )
    success, failure = read_demonstrations(tmp_path / "adroit-hammer.npz")
    assert success.success and not failure.success and success.seed // 1000 == 0
