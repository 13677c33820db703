"""Meta-World as an environment and as a source of clips."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("metaworld", reason='pip install "torchrl-vip[metaworld]"')

from torchrl.envs.utils import check_env_specs

from torchrl_vip.data.clip import Clip
from torchrl_vip.data.sources import find_clips
from torchrl_vip.data.video import read_clip
from torchrl_vip.demonstrations import idle, render
from torchrl_vip.envs import load_suite
from torchrl_vip.envs import metaworld as mw
from torchrl_vip.envs.simulator import ends_solved, play

TASK, IDLE_TASK = "drawer-open-v3", "dial-turn-v3"


@pytest.fixture(scope="module")
def sim():
    sim = mw.MetaWorldSim(TASK, image_size=64)
    yield sim
    sim.close()


# --- the environment ------------------------------------------------------------------------------


def test_specs_hold_and_an_episode_is_truncated() -> None:
    env = mw.make_env(TASK, image_size=32, seed=0, max_steps=3)
    check_env_specs(env)
    episode = env.rollout(10)
    assert episode.shape == (3,)
    assert episode["pixels"].shape == (3, 32, 32, 3) and episode["pixels"].dtype == torch.uint8
    assert torch.equal(episode["state"][:, :4], episode["full_state"][:, :4])  # the pull follows
    assert episode["next", "success"].shape == episode["next", "reward"].shape == (3, 1)
    assert episode["next", "truncated"].flatten().tolist() == [False, False, True]
    assert not episode["next", "terminated"].any()
    env.close()


def test_a_seed_gives_the_same_episode_and_another_seed_another() -> None:
    def first_frames(seed: int) -> torch.Tensor:
        env = mw.make_env(TASK, image_size=32, seed=seed, randomize=True)
        frames = torch.stack([env.reset()["pixels"], env.reset()["pixels"]])
        env.close()
        return frames

    a = first_frames(3)
    assert torch.equal(a, first_frames(3))
    assert not torch.equal(a, first_frames(4))
    assert not torch.equal(a[0], a[1])  # objects and looks move at each reset


def test_the_picture_is_upright(sim) -> None:
    """A hand that goes up moves pixels higher in the image than one that goes down."""

    def row_of_motion(direction: float) -> float:
        sim.reset(0)
        before = sim.render().astype(float)
        for _ in range(12):
            sim.step(np.array([0, 0, direction, 0]))
        sim_after = sim.render().astype(float)
        # where the hand is now: pixels that differ, minus where they were in the other motion
        changed = np.abs(sim_after - before).sum(-1)
        return float((changed.sum(1) * np.arange(64)).sum() / changed.sum())

    assert row_of_motion(1.0) < row_of_motion(-1.0) - 1


def test_the_train_split_has_no_held_out_task(tmp_path: Path, capsys) -> None:
    render.main(["--out", str(tmp_path), "--episodes", "0", "--workers", "1"])
    made = {path.name for path in tmp_path.iterdir() if path.is_dir()}
    assert made == set(mw.list_tasks()) - set(mw.HELD_OUT_TASKS)
    with pytest.raises(SystemExit):
        render.main(["--out", str(tmp_path / "no"), "--suite", "kitchen"])
    assert "never trained on" in capsys.readouterr().err


def test_distractors_are_drawn_and_leave_the_physics_alone(sim) -> None:
    looks = mw.MetaWorldSim.WIDE
    sim.reset(0)
    sim.randomize(looks, 3)
    bare, before = sim.render().copy(), sim.data.qpos.copy()
    sim.randomize(replace(looks, distractors=40), 3)
    assert len(sim.distractors) > 5
    crowded = sim.render().copy()
    assert 0.02 < (crowded != bare).any(-1).mean() < 0.9  # they are seen, and not alone
    np.testing.assert_array_equal(sim.data.qpos, before)
    sim.randomize(None)
    assert not sim.distractors


def test_wrong_names_are_errors_that_list_the_choices() -> None:
    with pytest.raises(ValueError, match="unknown suite 'meta'.*metaworld"):
        load_suite("meta")
    with pytest.raises(ValueError, match="unknown task 'drawer-v3'.*drawer-open-v3"):
        mw.make_env("drawer-v3")
    with pytest.raises(ValueError, match="unknown camera 'top'.*corner4"):
        mw.make_env(TASK, cameras="top")
    with pytest.raises(ValueError, match="'fast' or 'faithful'"):
        mw.make_env(TASK, render="best")


def test_held_out_tasks_are_tasks() -> None:
    assert len(mw.list_tasks()) == 50
    assert len(set(mw.HELD_OUT_TASKS)) == 10 and set(mw.HELD_OUT_TASKS) < set(mw.list_tasks())


def test_ends_solved_by_hand() -> None:
    def flags(text: str) -> np.ndarray:
        return np.array([c == "1" for c in text])

    assert ends_solved(flags("0000011"), 0)
    assert not ends_solved(flags("0000110"), 0)  # lost again
    assert not ends_solved(flags("0100011"), 0)  # solved before anything was done
    assert ends_solved(flags("00000111000"), 5) and not ends_solved(flags("000001100"), 5)


def test_a_goal_is_a_state_at_rest() -> None:
    """Coffee-button's script pushes past the button: ten steps after success it is about to be lost."""
    button = mw.MetaWorldSim("coffee-button-v3", image_size=32)
    try:
        lost = play(button, button.script(), 0, steps=500, stride=500, rest=20)
        assert lost.success.sum() > 10 and not lost.success[-1]
        assert len(lost.success) == np.flatnonzero(lost.success)[0] + 1 + 10 + 20
        goal = button.solved_frame(0)
        np.testing.assert_array_equal(goal, button.render())
        assert all(button.step(button.hold_still(np.zeros(4)))[2] for _ in range(30))
    finally:
        button.close()


@pytest.mark.parametrize("task", mw.REACHED_BY_FINGERS)
def test_a_goal_of_reaching_is_not_at_the_edge_of_what_counts(task) -> None:
    """Meta-World's own scripts end 4.5 of the 5 cm away that are allowed."""
    reach = mw.MetaWorldSim(task, image_size=32)
    try:
        assert reach.solved_frame(1) is not None
        assert np.linalg.norm(reach.env.tcp_center - reach.env._target_pos) < 0.025
    finally:
        reach.close()


@pytest.mark.slow
def test_the_script_solves_its_task_and_a_still_hand_does_not(sim) -> None:
    frames, success, reward = play(sim, sim.script(), 0, stride=10)
    assert ends_solved(success, 0) and len(success) == len(reward) < 200
    assert len(frames) == 1 + len(success) // 10
    assert reward[-1] > reward[0]
    still = play(sim, lambda state, t: np.zeros(4), 0, steps=60, settle=None, stride=60)
    assert len(still.success) == 60 and not still.success.any()


@pytest.mark.slow
def test_goal_images_show_another_state_than_the_start(sim) -> None:
    sim.reset(0)
    goal = mw.goal_image(TASK, image_size=64)
    assert goal.shape == (64, 64, 3) and goal.dtype == np.uint8
    assert np.abs(goal.astype(int) - sim.render()).mean() > 2


# --- the clips ------------------------------------------------------------------------------------


def cli(out: Path, *options: str) -> str:
    arguments = ("--out", str(out), "--size", "48", "--stride", "8", *options)
    command = (sys.executable, "-m", "torchrl_vip.demonstrations.render", *arguments)
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_clips_are_rendered_listed_and_not_rendered_twice(tmp_path: Path) -> None:
    options = ("--tasks", TASK, "--episodes", "1", "--workers", "1", "--split", "heldout")
    assert "2 clips" in cli(tmp_path, *options)
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert [e["file"] for e in manifest] == [f"{TASK}/{n}_0000.mp4" for n in ("failure", "success")]
    assert [e["success"] for e in manifest] == [False, True]
    assert manifest[0]["frames"] == manifest[1]["frames"]  # length tells nothing
    for clip, entry in zip(find_clips(tmp_path), manifest, strict=True):
        frames = read_clip(clip, 48).float()
        assert clip.labels["group"] == clip.labels["task"] == TASK
        assert len(frames) == entry["frames"] == len(entry["reward"]) + 1 >= 4
        assert frames.std() > 10 and (frames[0] - frames[-1]).abs().mean() > 1
    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*.mp4")}
    cli(tmp_path, *options)
    assert {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*.mp4")} == before
    cli(tmp_path, *options, "--seed", "1")  # other clips, so they are made
    again = json.loads((tmp_path / "manifest.json").read_text())
    assert [e["seed"] for e in again] != [e["seed"] for e in manifest]
    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*.mp4")}
    cli(tmp_path, *options, "--seed", "1", "--distractors", "3")  # looks otherwise
    assert all(p.stat().st_mtime_ns != before[p] for p in before)


@pytest.mark.slow
def test_an_idle_robot_moves_and_nothing_else_does(sim) -> None:
    sim.reset(3)
    things = sim.things()
    before, hand = sim.data.qpos[things].copy(), sim.full_state[:3].copy()
    frames = idle.wander(sim, sim.script(), np.random.default_rng(0), steps=60, stride=3)
    assert len(frames) == 21 and np.ptp(frames.astype(int), axis=0).max() > 50
    assert np.abs(sim.data.qpos[things] - before).max() <= idle.EFFECT
    assert np.linalg.norm(sim.full_state[:3] - hand) > 0.02


@pytest.mark.slow
def test_things_are_put_solved_and_the_hand_where_it_begins() -> None:
    sim = mw.MetaWorldSim(IDLE_TASK, image_size=16)
    hand = sim.reset(3)[:3].copy()
    before = sim.data.qpos[sim.things()].copy()
    assert idle.put_things_solved(sim, 3)
    assert np.abs(sim.data.qpos[sim.things()] - before).max() > 0.05
    assert np.linalg.norm(sim.full_state[:3] - hand) < 0.05
    sim.close()


@pytest.mark.slow
def test_idle_clips_are_listed_and_not_rendered_twice(tmp_path: Path, capsys) -> None:
    job = idle.IdleJob("metaworld", IDLE_TASK, None, number=0, seed=0, size=48, stride=8)
    rendered = idle.render_idle(job, tmp_path)
    assert [e["file"] for e in rendered] == job.files
    assert [e["idle_of"] for e in rendered] == ["start", "goal"]
    assert all(e["group"] == IDLE_TASK and e["success"] is None for e in rendered)
    render.write_manifest(tmp_path, {e["file"]: e for e in rendered})
    assert {c.idle_of for c in find_clips(tmp_path)} == {"goal", "start"}
    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*.mp4")}
    options = ["--out", str(tmp_path), "--size", "48", "--tasks", IDLE_TASK, "--split", "idle"]
    options += ["--episodes", "1", "--workers", "1", "--stride", "8"]
    render.main(options)
    assert "2 clips" in capsys.readouterr().out
    assert {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*.mp4")} == before
    with pytest.raises(SystemExit):
        render.main([*options, "1"])
    assert "--split idle takes one --stride" in capsys.readouterr().err


@pytest.mark.slow
def test_stored_demonstrations_are_added_view_by_view(tmp_path: Path) -> None:
    options = ["--out", str(tmp_path), "--suite", "kitchen", "--split", "heldout", "--size", "32"]
    options += ["--stride", "10", "--cameras", "default", "--tasks"]
    render.main([*options, "light_on"])
    first = render.read_manifest(tmp_path)
    assert {Path(file).parent.as_posix() for file in first} == {"light_on/default"}
    assert {entry["success"] for entry in first.values()} == {True, False}
    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*.mp4")}
    render.main([*options, "light_on", "micro_close"])
    both = render.read_manifest(tmp_path)
    assert first.items() < both.items() and "micro_close/default/success_0000.mp4" in both
    assert all(p.stat().st_mtime_ns == time for p, time in before.items())


@pytest.mark.slow
def test_clips_become_a_lerobot_dataset(tmp_path: Path, monkeypatch, capsys) -> None:
    pytest.importorskip("pyarrow")
    monkeypatch.setattr(load_suite("kitchen"), "CAMERAS", ("default",))
    out, dataset = tmp_path / "clips", tmp_path / "below" / "set"
    options = ["--out", str(out), "--suite", "kitchen", "--split", "heldout", "--size", "32"]
    options += ["--stride", "10", "--tasks", "light_on", "--lerobot", str(dataset)]
    render.main(options)
    entries = sorted(render.read_manifest(out).items())
    episodes = find_clips(dataset)
    for clip, (file, entry) in zip(episodes, entries, strict=True):
        assert clip.labels["task"] == "light_on"
        assert torch.equal(read_clip(clip, 32), read_clip(Clip(out / file, file), 32))
        assert len(read_clip(clip, 32)) == entry["frames"]
    from pyarrow import parquet

    rows = parquet.read_table(next((dataset / "data").rglob("*.parquet"))).to_pylist()
    assert sum(row["next.success"] for row in rows) == sum(e["success"] for _, e in entries)
    first = [row["next.reward"] for row in rows if row["episode_index"] == 0]
    assert first == pytest.approx([*entries[0][1]["reward"], 0])
    with pytest.raises(SystemExit):
        render.main(options)
    assert f"--lerobot {dataset} exists" in capsys.readouterr().err


def entry_of(file: str, seed: int, size: int = 128) -> dict:
    """As main writes it for --split train."""
    number = int(Path(file).stem[-4:])
    drawn = render.clip_seed(seed, TASK, "success", number, 0)
    about = {"kind": "success", "seed": drawn, "tries": 1, "size": size, "stride": 2}
    return {"file": file, "task": TASK, **about, "split": "train", "per_scene": 1, "distractors": 6}


@pytest.mark.parametrize("seed, size", [(1, 128), (0, 64)])
def test_clips_of_other_options_are_not_left_beside_new_ones(seed, size, tmp_path, capsys) -> None:
    files = [f"{TASK}/success_{i:04d}.mp4" for i in range(2)]
    render.write_manifest(tmp_path, {f: entry_of(f, seed, size) for f in files})
    before = (tmp_path / "manifest.json").read_bytes()
    with pytest.raises(SystemExit):
        render.main(["--out", str(tmp_path), "--tasks", TASK, "--episodes", "1"])
    assert "1 clips of these tasks by another --seed" in capsys.readouterr().err
    assert (tmp_path / "manifest.json").read_bytes() == before


def test_a_clip_is_not_listed_while_it_is_rendered_anew(tmp_path, monkeypatch) -> None:
    files = [f"{TASK}/success_{i:04d}.mp4" for i in range(2)]
    render.write_manifest(tmp_path, {f: entry_of(f, 0) for f in files})
    (tmp_path / TASK).mkdir()
    (tmp_path / files[0]).touch()  # the other one is missing

    class Killed(Exception):
        pass

    def pool(*_, **__):
        raise Killed

    monkeypatch.setattr(render, "ProcessPoolExecutor", pool)
    with pytest.raises(Killed):
        render.main(["--out", str(tmp_path), "--tasks", TASK, "--episodes", "2"])
    assert list(render.read_manifest(tmp_path)) == files[:1]


def test_a_damaged_manifest_is_named(tmp_path) -> None:
    (tmp_path / "manifest.json").write_text('[{"file": "a')
    with pytest.raises(SystemExit, match="manifest.json is damaged"):
        render.main(["--out", str(tmp_path), "--tasks", TASK])


@pytest.mark.parametrize(
    "option", [("--tasks", "fly-v3"), ("--size", "47"), ("--cameras", "front")]
)
def test_wrong_options_are_refused_before_anything_is_written(option, tmp_path, capsys) -> None:
    with pytest.raises(SystemExit):
        render.main(["--out", str(tmp_path / "out"), *option])
    assert option[1] in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_file_as_out_is_an_error_of_one_line(tmp_path, capsys) -> None:
    file = tmp_path / "clips.mp4"
    file.touch()
    for out in (file, file / "below"):
        with pytest.raises(SystemExit):
            render.main(["--out", str(out), "--tasks", TASK])
        assert f"argument --out: {file} is a file; wanted a folder" in capsys.readouterr().err


def test_a_seed_depends_on_the_names_alone() -> None:
    assert render.clip_seed(0, TASK, "looks", 1) == render.clip_seed(0, TASK, "looks", 1)
    assert len({render.clip_seed(0, TASK, "success", n) for n in range(1000)}) == 1000


@pytest.mark.parametrize("kind", render.FAILURES)
def test_failing_policies_act_within_their_meaning(sim, kind: str) -> None:
    state = np.zeros(39)
    state[:3], state[4:7] = (0, 0.6, 0.2), (0.1, 0.7, 0.1)
    act = render.failing(sim, kind, 100, np.random.default_rng(0))
    actions = np.stack([act(state, t) for t in range(100)])
    assert actions.shape == (100, 4) and np.isfinite(actions).all()
    if kind == "stops":  # somewhere between a fifth and three fifths
        still = (actions[:, :3] == 0).all(1)
        assert 20 <= np.argmax(still) <= 60 and still[np.argmax(still) :].all()
    elif kind == "misses":
        assert not np.allclose(actions[0], sim.script()(state, 0))
    elif kind == "random":
        assert actions.std(0).min() > 0.05
    else:
        assert (actions == 0).all()
