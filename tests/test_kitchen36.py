"""The kitchen benchmark and the planning example: they play, resume, and do not depend on processes."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("gymnasium_robotics", reason='pip install "torchrl-vip[robotics]"')

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))

import kitchen36  # noqa: E402


@pytest.fixture(autouse=True)
def short(monkeypatch) -> None:
    monkeypatch.setattr(kitchen36, "STEPS", {"easy": 2, "hard": 2})


def arguments(out: Path, *more: str) -> list[str]:
    small = "--row pixels --tasks light_on --cameras left_cam --trajectories 3 --image-size 32"
    return [*small.split(), "--out", str(out), "--results", str(out), "--processes", "0", *more]


def episodes(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "episodes.jsonl").read_text().splitlines()]


def played(episode: dict) -> tuple:
    return episode["distance"], episode["reward"], episode["joint_error"]


def test_episodes_are_played_once_and_reported(tmp_path, capsys) -> None:
    kitchen36.main(arguments(tmp_path, "--row", "state"))
    first = episodes(tmp_path)
    assert [e["row"] for e in first] == ["pixels", "state"]
    assert len(first[0]["distance"]) == len(first[0]["reward"]) == 2 and not first[1]["distance"]
    with open(tmp_path / "episodes.jsonl", "a") as file:
        file.write('{"row": "pix')  # killed while it wrote
    kitchen36.main(arguments(tmp_path, "--row", "state", "--setting", "easy", "hard"))
    both = episodes(tmp_path)
    assert both[:2] == first and [e["setting"] for e in both] == ["easy", "easy", "hard", "hard"]
    table = (tmp_path / "kitchen36.md").read_text()
    assert "| easy | 3 | pixels | 1 |" in table and "| hard | 3 | state | 1 |" in table
    assert (tmp_path / "kitchen36.png").stat().st_size > 5_000
    assert "2 of 4 episodes are in" in capsys.readouterr().err


def test_easy_starts_nearer_to_the_goal_than_hard(tmp_path) -> None:
    kitchen36.main(arguments(tmp_path, "--setting", "easy", "hard"))
    easy, hard = episodes(tmp_path)
    assert easy["reward"][0] > hard["reward"][0]


@pytest.mark.slow
def test_processes_and_score_forms(tmp_path) -> None:
    for name, more in {
        "none": [],
        "two": ["--processes", "2"],
        "sum": ["--score", "sum", "--goals", "2"],
        "difference": ["--score", "difference"],
    }.items():
        kitchen36.main(arguments(tmp_path / name, *more))
    runs = {p.name: episodes(p)[0] for p in tmp_path.iterdir()}
    assert played(runs["none"]) == played(runs["two"])
    assert len({str(played(run)) for run in runs.values()}) == 3


def test_an_unknown_row_or_task_is_an_error(tmp_path, capsys) -> None:
    with pytest.raises(SystemExit, match="--row fly: wanted NAME=CHECKPOINT"):
        kitchen36.main([*arguments(tmp_path), "--row", "fly"])
    with pytest.raises(SystemExit):
        kitchen36.main([*arguments(tmp_path), "--tasks", "fly"])
    assert "unknown tasks ['fly']" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("suite", [(), ("--suite", "fetch", "--task", "fetch-push")])
def test_the_example_plans_and_draws(suite, tmp_path) -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "examples/mppi.py", "--smoke", "--out", tmp_path, *suite],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "solved after 2 steps; distance" in done.stdout
    assert {p.suffix for p in tmp_path.iterdir()} == {".png", ".mp4"}
