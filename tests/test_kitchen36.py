"""The kitchen benchmark and the planning example: they play, resume, and do not depend on processes."""

import functools
import json
import os
import subprocess
import sys
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("gymnasium_robotics", reason='pip install "torchrl-vip[robotics]"')

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "benchmarks"), str(ROOT / "examples")]

import kitchen36
import kitchen36_candidates as candidates
import kitchen36_episode as one
import kitchen36_report as report
import mppi
import scene_planning

from torchrl_vip.data.clip import Clip


@pytest.fixture(autouse=True)
def short(monkeypatch):
    monkeypatch.setattr(one, "STEPS", {"easy": 2, "hard": 2})
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)  # the benchmark takes one


def arguments(out: Path, *more: str) -> list[str]:
    small = "--encoder pixels --tasks light_on --cameras left_cam --trajectories 3"
    return [*small.split(), "--out", str(out), "--results", str(out), "--processes", "0", *more]


def episodes(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "episodes.jsonl").read_text().splitlines()]


def played(episode: dict) -> tuple:
    return episode["distance"], episode["reward"], episode["joint_error"]


def test_episodes_are_played_once_and_reported(tmp_path, capsys) -> None:
    kitchen36.main(arguments(tmp_path, "--encoder", "state"))
    assert (
        "- `python benchmarks/kitchen36.py --encoder pixels"
        in (tmp_path / "kitchen36.md").read_text()
    )
    assert str(tmp_path) not in (tmp_path / "episodes.jsonl").read_text()
    first = episodes(tmp_path)
    assert [e["row"] for e in first] == ["pixels", "state"]
    assert len(first[0]["distance"]) == len(first[0]["reward"]) == 2 and not first[1]["distance"]
    with open(tmp_path / "episodes.jsonl", "a") as file:
        file.write('{"row": "pix')  # killed while it wrote
    more = "--encoder state --setting easy hard --budgets 3 5".split()
    kitchen36.main(arguments(tmp_path, *more))
    both = episodes(tmp_path)
    assert both[:2] == first and len(both) == 8
    rewards = {(e["row"], e["setting"], e["trajectories"]): e["reward"] for e in both}
    assert len(rewards) == 8
    assert rewards["state", "easy", 3][0] > rewards["state", "hard", 3][0]  # it starts nearer
    table = (tmp_path / "kitchen36.md").read_text()
    assert "| easy | 3 | pixels | 1 |" in table and "| hard | 5 | state | 1 |" in table
    assert "hard, 5 trajectories, pixels minus state: 0%" in table
    assert (tmp_path / "kitchen36.png").stat().st_size > 5_000
    assert "2 of 8 are in" in capsys.readouterr().err


def test_several_cameras_are_one_score(tmp_path) -> None:
    more = "--cameras-summed --goals 2 --smoothness 0.1 --image-size 32 --without-robot 2".split()
    kitchen36.main(arguments(tmp_path, *more))
    (episode,) = episodes(tmp_path)
    assert episode["camera"] == "summed" and episode["first_distance"] == pytest.approx(1)
    name = "pixels, mean of 2 goals, cameras summed, 2 x without the robot, smoothness 0.1, drawn at 32²"
    assert f"| {name} | 1 |" in (tmp_path / "kitchen36.md").read_text()


def test_the_robot_is_hidden_in_one_goal_image(tmp_path, monkeypatch) -> None:
    found = []

    def find_robot(sim, goal, camera, seed, progress):
        found.append((goal.shape, camera, seed))
        return one.FoundRobot(np.zeros(goal.shape[:2], bool), sim.data.qpos.copy())

    monkeypatch.setattr(one, "find_robot", find_robot)
    more = "--beside-robot 1 --combine deviation --image-size 32".split()
    kitchen36.main(arguments(tmp_path, *more, "--encoder", "other=pixels"))
    assert found == [((32, 32, 3), "left_cam", 0)], "once for both encoders"
    name = "pixels, 1 x beside the robot, in deviations, drawn at 32²"
    assert f"| {name} | 1 |" in (tmp_path / "kitchen36.md").read_text()
    kitchen36.main(arguments(tmp_path, *"--read-goal --image-size 32".split()))
    assert len(found) == 1, "the one that is kept"
    *_, last = sorted(episodes(tmp_path), key=lambda episode: episode["read_goal"])
    assert last["read_joint"] and len(last["distance"]) == last["steps"]
    assert (
        "pixels, goal read from the image, drawn at 32²" in (tmp_path / "kitchen36.md").read_text()
    )
    for flags in (
        "--beside-robot 1 --goals 2",
        "--combine deviation --smoothness 1",
        "--read-goal --cameras-summed",
        "--read-goal --smoothness 1",
        "--max-steps -1",
        "--trajectories 0",
        "--encoder block99",
    ):
        with pytest.raises(SystemExit):
            kitchen36.main(arguments(tmp_path, *flags.split()))


def test_cem_tries_as_many_trajectories(tmp_path, monkeypatch) -> None:
    tried, rollout = [], one.rollout

    def counted(sim, state, actions, *args, **options):
        tried.append(len(actions))
        return rollout(sim, state, actions, *args, **options)

    monkeypatch.setattr(one, "rollout", counted)
    more = "--planner cem --image-size 32 --max-steps 1 --trajectories".split()
    kitchen36.main(arguments(tmp_path, *more, "32"))
    assert tried == [8, 8, 8, 8]
    assert "| pixels, CEM, drawn at 32²," in (tmp_path / "kitchen36.md").read_text()
    with pytest.raises(SystemExit):
        kitchen36.main(arguments(tmp_path, *more, "3"))


def test_what_has_not_moved_looks_as_it_did(tmp_path, monkeypatch) -> None:
    more = "--without-robot 1 --max-steps 2 --image-size 32".split()
    looks = []
    look = one.PlanningSim.look
    monkeypatch.setattr(one.PlanningSim, "look", lambda *args: looks.append(args[1]) or look(*args))
    results, drawn = [], []
    for still in (-1.0, one.STILL):  # each frame is drawn, and those that differ
        monkeypatch.setattr(one, "STILL", still)
        kitchen36.main(arguments(tmp_path / str(still), *more))
        results += episodes(tmp_path / str(still))
        drawn.append(sum(views == ["left_cam/no-robot"] for views in looks))
        looks.clear()
    assert drawn[0] == 6 > drawn[1], "two steps of three candidates"
    assert results[0]["distance"] == pytest.approx(results[1]["distance"], rel=1e-2)


def test_scores_by_hand() -> None:
    values = np.array([[-5.0, -4.0, -1.0], [-5.0, -3.0, -2.0]])
    np.testing.assert_array_equal(one.score(values[:, -1], "last"), [-1, -2])
    np.testing.assert_array_equal(one.score(values, "sum"), [-10, -10])
    np.testing.assert_array_equal(one.score(values, "difference"), [3, 1])


def test_a_judge_by_hand() -> None:
    def brightness(images: torch.Tensor) -> torch.Tensor:
        return images.float().mean((1, 2, 3))[:, None]

    def frames(*values: int) -> np.ndarray:
        return np.stack([np.full((4, 4, 3), value, np.uint8) for value in values])

    single = one.Judge(brightness, np.stack([frames(10), frames(20)]), frames(65))
    assert single.first == 50
    assert single(np.stack([frames(5), frames(15)])) == pytest.approx([-10, 0])
    two = one.Judge(brightness, frames(10, 100)[None], frames(60, 110))
    assert two.first == 1 and float(two(frames(35, 105))) == pytest.approx(-0.5)
    uneven = one.Judge(brightness, frames(10, 100)[None], frames(60, 110), [1.0, 3.0])
    assert uneven.first == 1 and float(uneven(frames(35, 100))) == pytest.approx(-0.125)
    candidates_seen = np.stack([frames(20, 100), frames(60, 102)])  # 10 and 50 off, 0 and 2 off
    assert two.compare(candidates_seen) == pytest.approx(two(candidates_seen))
    spread = one.Judge(brightness, frames(10, 100)[None], frames(60, 110), combine="deviation")
    assert spread.compare(candidates_seen) == pytest.approx([-0.5, -2.5 - 2])

    hidden = np.zeros((1, 4, 4), bool)
    hidden[0, :2] = True  # half of the picture shows the goal's pixels, whatever the frame
    half = one.Judge(brightness, frames(10)[None], frames(50), hidden=hidden)
    assert half.first == 20 and half(frames(10)[None]) == pytest.approx(0)


@pytest.mark.parametrize("setting", ["easy", "hard"])
def test_a_decoy_fools_who_sees_the_arm_only(setting, monkeypatch) -> None:
    arm, objects = slice(0, 7), slice(9, 23)
    sim = one.KitchenSim("light_on", image_size=16)
    episode = one.Episode("all", setting, "light_on", "left_cam", 0, 32, "last", 1)
    decoyed = {}
    for part in (arm, objects):

        def positions(_, qpos, views, part=part):
            return np.tile(qpos[:, None, None, None, part], (1, len(views), 1, 1, 1))

        monkeypatch.setattr(one, "pictures", positions)
        _, landmarks = one.begin(sim, episode, lambda frames: frames.flatten(1), Path())
        decoyed[part.start] = landmarks.decoyed
    sim.close()
    states = len(one.demonstrations("light_on")[0].qpos) - 12 * (setting == "easy")
    assert decoyed[arm.start] == pytest.approx(1 - 1 / states)  # the goal itself is not farther
    assert decoyed[objects.start] < 0.2  # the decoy's objects are those of the start, the farthest


@pytest.mark.slow
def test_processes_change_nothing(tmp_path) -> None:
    more = "--encoder state --encoder VIP= --cameras left_cam right_cam --max-steps 2".split()
    more.append("--processes")
    for count in "012":
        kitchen36.main(arguments(tmp_path / count, *more, count))
    none, one, two = (
        {(e["row"], e["camera"]): played(e) for e in episodes(tmp_path / count)} for count in "012"
    )
    assert len(none) == 5 and none == one == two
    assert "state, 2 steps at most" in (tmp_path / "2" / "kitchen36.md").read_text()


@pytest.mark.slow
def test_a_dead_worker_is_an_error_and_nothing_is_lost(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(kitchen36, "_play", functools.partial(die_at, "right_cam"))
    more = "--cameras left_cam right_cam --max-steps 1 --processes 1".split()
    with pytest.raises(BrokenProcessPool):
        kitchen36.main(arguments(tmp_path, *more))
    assert [e["camera"] for e in episodes(tmp_path)] == ["left_cam"]


def die_at(camera: str, episode: tuple) -> dict:
    if episode.camera == camera:
        os._exit(1)
    return kitchen36._player(episode)


@pytest.mark.slow
def test_score_forms(tmp_path) -> None:
    for form in ("last", "sum", "difference"):
        kitchen36.main(arguments(tmp_path, "--score", form))
    assert len({str(played(episode)) for episode in episodes(tmp_path)}) == 3


def test_other_weights_under_one_name_are_refused(tmp_path) -> None:
    episode = one.Episode("ours", "easy", "light_on", "left_cam", 0, 32, "last", 1)
    line = json.dumps(episode._asdict() | {"weights": "00000000"})
    (tmp_path / "episodes.jsonl").write_text(line + "\n")
    with pytest.raises(SystemExit, match="episodes of 'ours' with other weights"):
        kitchen36.main([*arguments(tmp_path), "--encoder", "ours=untrained"])
    with pytest.raises(SystemExit, match="episodes of 'ours' with other weights"):  # which has none
        kitchen36.main([*arguments(tmp_path), "--encoder", "ours=pixels"])
    with pytest.raises(SystemExit, match="'pixels' is given twice"):
        kitchen36.main([*arguments(tmp_path), "--encoder", "pixels=untrained"])


def test_a_setting_without_the_usual_budget_is_drawn(tmp_path) -> None:
    group = [
        {
            "success": 1.0,
            "task": "light_on",
            "camera": "left_cam",
            "seed": 0,
            "distance": [1.0],
            "first_distance": 2.0,
        }
    ]
    easy = {("easy", count, "pixels"): group for count in (8, 32)}
    report.plot(easy | {("hard", 128, "pixels"): group}, tmp_path / "picture.png")
    assert (tmp_path / "picture.png").stat().st_size > 5_000


def test_an_unknown_encoder_or_task_is_an_error(tmp_path, capsys) -> None:
    with pytest.raises(SystemExit, match="--encoder fly: .* neither a bundled checkpoint"):
        kitchen36.main([*arguments(tmp_path), "--encoder", "fly"])
    with pytest.raises(SystemExit):
        kitchen36.main([*arguments(tmp_path), "--tasks", "fly"])
    assert "unknown tasks ['fly']" in capsys.readouterr().err


def test_encoders_are_compared_on_what_both_played() -> None:
    def result(task: str, camera: str, success: bool, error: float, seed: int = 0) -> dict:
        distance = [] if camera == "state" else [1.0]
        return {"task": task, "camera": camera, "seed": seed, "distance": distance} | {
            "success": success,
            "joint_error": error,
        }

    ours = [result("a", "left", True, 0.1), result("a", "right", False, 0.9)]
    more = [result("b", "left", True, 0.3), result("a", "left", False, 0.8, seed=1)]
    groups = {
        ("easy", 32, "ours"): [*ours, *more],
        ("easy", 32, "theirs"): [result("a", "left", False, 0.6)],
        ("easy", 32, "summed"): [result("a", "summed", True, 0.0)],
        ("easy", 32, "state"): [result("a", "state", True, 0.0)],
        ("hard", 32, "theirs"): [result("a", "left", False, 0.6)],
    }
    lines = report.differences(groups, "ours")
    assert [line.split("minus ")[1] for line in lines] == [
        "state: -50% [-50%, -50%], joint error +0.50 [+0.50, +0.50]",  # by task: its mean of cameras
        "summed: -50% [-50%, -50%], joint error +0.50 [+0.50, +0.50]",
        "theirs: 100% [100%, 100%], joint error -0.50 [-0.50, -0.50]",  # left and seed 0 only
    ]


def test_gain_by_hand() -> None:
    reward = np.array([0.0, 0.0, 4.0, 4.0])
    assert candidates.gain(np.zeros(4), reward) == pytest.approx(0)
    assert candidates.gain(np.array([0.0, 0, 0, 9]), reward) == pytest.approx(1, abs=1e-4)
    assert candidates.gain(-reward, reward) == pytest.approx(-1, abs=1e-3)
    frames = np.zeros((4, 1, 2, 2, 3), np.uint8)
    actions = np.zeros((4, 12, 9))
    actions[2:] = 0.5
    decision = candidates.Decision(
        frames, frames, frames[0], reward, np.full(4, 0.3), actions, lambda a: a.mean()
    )
    found = candidates.measures(reward, decision)
    assert np.isnan(found["object"]) and found["rank"] == 1
    assert found["plan"] == pytest.approx(0.5, abs=1e-3)  # the mean of the better two


@pytest.mark.slow
def test_candidates_are_ranked(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(candidates, "CANDIDATES", 4)
    small = "--encoder pixels --encoder block4 --tasks light_on --image-size 32".split()
    candidates.main([*small, "--results", str(tmp_path)])
    rows = json.loads((tmp_path / "kitchen36_candidates.json").read_text())["rows"]
    assert [(r["encoder"], r["form"]) for r in rows] == [
        ("state", ""),
        *((e, form) for e in ("pixels", "block4") for form in candidates.FORMS),
    ]
    gains = [r["by task"]["gain"]["light_on"] for r in rows]
    assert [len(g) for g in gains] == [9, *2 * [27, 27, 27, 9, 9]]
    assert np.mean(gains[0]) > max(
        np.mean(g) for g in gains[1:]
    )  # nothing ranks better than the truth
    assert "| state | true reward | " in capsys.readouterr().out


@pytest.mark.slow
def test_the_example_runs_as_a_command(tmp_path) -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "examples/mppi.py", "--smoke", "--out", tmp_path],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "solved after 2 actions; distance" in done.stdout
    assert {p.suffix for p in tmp_path.iterdir()} == {".png", ".mp4"}


@pytest.mark.slow
@pytest.mark.parametrize(
    "suite",
    [
        ("--beside-robot",),
        ("--read-goal", "--task", "ldoor_close"),
        ("--suite", "fetch", "--task", "fetch-push", "--camera", "front+front/no-robot"),
        ("--suite", "adroit", "--task", "adroit-hammer"),
        ("--suite", "dm_manipulation", "--task", "lift_brick_vision"),
    ],
)
def test_the_example_plans_and_draws(suite, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(sys, "argv", ["mppi.py", "--smoke", "--out", str(tmp_path), *suite])
    mppi.main()
    assert "solved after 2 actions; distance" in capsys.readouterr().out
    assert {p.suffix for p in tmp_path.iterdir()} == {".png", ".mp4"}


@pytest.mark.parametrize(
    "flags, message",
    [
        ("--task fly", "unknown task 'fly'; kitchen has knob1_off"),
        ("--suite adroit --task fly", "unknown task 'fly'; adroit has adroit-door"),
        ("--frame-skip 0", "--frame-skip 0: wanted 1 or more"),
        ("--sigma nan", "--sigma nan: wanted 0 or more"),
        ("--read-goal --beside-robot", "no --beside-robot"),
        ("--read-goal --camera default/no-robot", "take one camera with the robot"),
    ],
)
def test_the_example_says_what_is_wanted(flags: str, message: str, monkeypatch, capsys) -> None:
    monkeypatch.setattr(sys, "argv", ["mppi.py", *flags.split()])
    with pytest.raises(SystemExit):
        mppi.main()
    assert message in capsys.readouterr().err


def test_idle_clips_show_what_the_opposite_task_begins_or_ends_with() -> None:
    clips = [
        Clip(Path(f"{task}{state}"), "", {"group": f"{task}/default", "idle_of": state})
        for task in ("micro_open", "micro_close")
        for state in ("start", "goal")
    ]
    opening = [(c.labels["group"], c.idle_of) for c in scene_planning.idle_for(clips, True)]
    # all that opens begins alike; a closed door is as opening finds it, an open one as it leaves it
    goal = ("micro_open/default", "goal")
    assert opening == [(None, "start"), goal, goal, (None, "start")]
    closing = [(c.labels["group"], c.idle_of) for c in scene_planning.idle_for(clips, False)]
    start, goal = ("micro_close/default", "start"), ("micro_close/default", "goal")
    assert closing == [goal, start, start, goal]
    assert scene_planning.opposite("knob1_off") == "knob1_on" and scene_planning.opens("light_on")


def test_what_planned_episodes_came_to_by_hand() -> None:
    episode = {
        "row": "after",
        "task": "light_on",
        "success": False,
        "joint": [1.0, 0.75],
        "hand_to_object": [0.5, 0.1, 0.2],
        "hand_to_goal_image": [0.4, 0.05],
        "distance": [8.0, 2.0],
        "decoyed": 0.5,
    }
    assert scene_planning.table([episode])[2] == (
        "| light_on | after | no | 0.25 | 0.25 | 0.50, 0.10, 0.20 | 0.40, 0.05 | 0.50 |"
    )
    two = [episode, episode | {"success": True, "joint": [1.0, 0.25]}]
    line = scene_planning.summary(two)[2]
    assert line.startswith("| after | 1 of 2 | 0.50 [0.25, 0.75] | 0.25 [0.25, 0.25] |")
