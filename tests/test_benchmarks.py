"""The benchmarks run, and a checkpoint's calibration says what it should."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from torchrl_vip import VIPEncoder
from torchrl_vip.data.video import write_video
from torchrl_vip.evaluation.calibration import (
    reward_correlation,
    success_threshold,
    typical_approach,
    typical_distance,
)
from torchrl_vip.evaluation.clips import LabelledClip

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))


def clip(group="a", success=True, frames=None):
    return LabelledClip(torch.zeros(2, 3, 8, 8) if frames is None else frames, group, success)


def test_threshold_separates_what_can_be_separated():
    clips = [clip(), clip(), clip(success=False), clip("b"), clip("b"), clip("b", False)]
    # Successes of a group end 1 apart; failures 3 or more from either.
    ends = [0.0, 1.0, 4.0, 10.0, 11.0, 14.0]
    z = [np.array([[e + 7.0], [e]]) for e in ends]
    threshold, accuracy = success_threshold(z, clips)
    assert threshold == 1.0 and accuracy == 1.0
    assert typical_distance(z, clips) == 7.0
    with pytest.raises(ValueError, match="two successes and a failure"):
        success_threshold(z[:2], clips[:2])


def test_the_typical_approach_is_to_the_end_of_another_success_of_the_group():
    clips = [clip(), clip(), clip(success=False), clip("b"), clip("c"), clip("c")]
    # First and last frames on a line. In "a" the ends are 1 apart: from 7 to 0 with the goal 1 is
    # |7 - 1| - |0 - 1| = 5, from 8 to 1 with the goal 0 is |8 - 0| - |1 - 0| = 7. In "c" the second
    # ends where it began, and the first goes away from where that is: 0 and |2 - 2| - |5 - 2| = -3.
    ends = [(7, 0), (8, 1), (50, 40), (9, 0), (2, 5), (2, 2)]
    z = [np.array([[first], [0.5], [last]], dtype=np.float32) for first, last in ends]
    assert typical_approach(z[:4], clips[:4]) == 6.0  # the median of 5 and 7
    assert typical_approach(z[4:], clips[4:]) == -1.5
    assert typical_approach(z, clips) == 2.5  # of 5, 7, 0, -3
    assert typical_approach(z[1:4], clips[1:4]) is None  # no group holds two successes


def test_returns_are_of_successes_towards_their_own_end_and_the_others(tmp_path):
    import return_scales

    labels = []
    for name, scene, success, greys in (
        ("a", "drawer", True, (50, 100)),
        ("b", "drawer", True, (60, 120)),
        ("c", "drawer", False, (0, 255)),
        ("d", "towel", True, (10, 30)),
    ):
        (tmp_path / name).mkdir()
        for t, grey in enumerate(greys):
            Image.new("RGB", (8, 8), (grey,) * 3).save(tmp_path / name / f"{t}.png")
        labels.append({"file": name, "group": scene, "success": success})
    (tmp_path / "index.json").write_text(json.dumps(labels))

    found = return_scales.approaches(lambda x: x.float().mean((1, 2, 3))[:, None], tmp_path)
    assert found["its own end"] == [50, 60, 20]
    # a to the end of b is |50 - 120| - |100 - 120|, b to that of a |60 - 100| - |120 - 100|
    assert found["another success's end"] == [50, 20]


def test_bands_of_order_count_the_scenes_whose_failures_are_told_apart():
    import order_bands

    scenes = [
        {"set": "kitchen", "voc": 0.7, "bumps": 0.25, "auc": 0.9},
        {"set": "kitchen", "voc": 1.0, "bumps": 0.75, "auc": 0.5},
        {"set": "clips", "voc": 0.8, "bumps": 0.5},  # a scene without failures
        {"set": "fetch", "voc": 0.3, "bumps": 0.5, "auc": 1.0},
        {"set": "fetch", "voc": -1.0, "bumps": 1.0, "auc": 0.0},
    ]
    assert order_bands.table(scenes, "order")[2:] == [
        "| -1 to 0.3 | 1 (fetch 1) | 1.00 | 1 | 0 | 0.00 |",
        "| 0.3 to 0.7 | 1 (fetch 1) | 0.50 | 1 | 1 | 1.00 |",
        "| 0.7 to 1 | 3 (kitchen 2, clips 1) | 0.50 | 2 | 1 | 0.70 |",
    ]
    shipped = (order_bands.RESULTS / "order_bands.md").read_text()
    for value in order_bands.BANDS:
        rows = order_bands.table(order_bands.read_scenes(order_bands.RESULTS, "bundled"), value)
        assert "\n".join(rows) in shipped, "run python benchmarks/order_bands.py"
    # Of three frames the six orders are 1, .5, .5, -.5, -.5, -1.
    assert order_bands.by_chance(3, (0.5, 0.9), draws=200) == "50% within ±0.50, 90% within ±1.00"
    with pytest.raises(SystemExit, match="no 'r3m' in metaworld; it has"):
        order_bands.read_scenes(order_bands.RESULTS, "r3m")


def test_reward_correlation_of_a_precision_with_itself_is_one():
    torch.manual_seed(0)
    encoder = VIPEncoder("resnet18", dim=8, image_size=32)
    frames = torch.randint(0, 255, (6, 3, 40, 40), dtype=torch.uint8)
    assert reward_correlation(encoder, [clip(frames=frames)], torch.float32) == pytest.approx(1)
    assert 0.5 < reward_correlation(encoder, [clip(frames=frames)], torch.bfloat16) < 1


@pytest.mark.slow
def test_reward_quality_runs_and_pixels_are_perfect_on_a_moving_bar(tmp_path):
    import reward_quality

    entries = []
    for number, (shift, success) in enumerate([(0, True), (1, True), (0, False)]):
        frames = np.zeros((10, 64, 64, 3), np.uint8)
        for t in range(10):
            # The failure never moves; a success widens its bar towards the goal's.
            frames[t, :, : 4 + shift + (5 * t if success else 0)] = 255
        write_video(tmp_path / f"{number}.mp4", frames)
        reward = [0.5 * t for t in range(1, 10)]
        labels = {"group": "bar", "success": success, "reward": reward}
        entries.append({"file": f"{number}.mp4", **labels})
    (tmp_path / "manifest.json").write_text(json.dumps(entries))
    reward_quality.main(["--clips", f"bars={tmp_path}", "--out", str(tmp_path / "out")])
    written = json.loads((tmp_path / "out/reward_quality.json").read_text())
    pixels = {m: v[0] for m, v in written["suites"]["bars"]["summary"]["raw pixels 32²"].items()}
    assert pixels["voc"] > 0.95 and pixels["auc"] == pixels["kendall"] == 1
    assert pixels["r_squared"] > 0.3 and pixels["epic"] < 0.6
    assert pixels["voc_reversed"] > 0.95 and abs(pixels["voc_shuffled"]) < 0.8
    assert "VIP (bundled)" in (tmp_path / "out/reward_quality.md").read_text()
    assert (tmp_path / "out/reward_quality_bars.png").exists()


@pytest.mark.slow
def test_scene_measures_clips_that_it_did_not_train_on(tmp_path, monkeypatch):
    import scene

    folders = {"clips": [], "idle": []}
    for group, row in (("a/x", 4), ("b/x", 40)):
        for number in range(3):
            frames = np.full((10, 64, 64, 3), 20 * number, np.uint8)
            for t in range(10):
                frames[t, row : row + 16, : 6 + 5 * t] = 250
            entry = {"file": f"{group[0]}{number}.mp4", "group": group}
            folders["clips"].append((entry, frames))
            folders["idle"].append((entry | {"idle_of": "start"}, frames[:4]))
    for name, clips in folders.items():
        (tmp_path / name).mkdir()
        for entry, frames in clips:
            write_video(tmp_path / name / entry["file"], frames)
        (tmp_path / name / "manifest.json").write_text(json.dumps([e for e, _ in clips]))
    monkeypatch.setattr(scene, "ROWS", {"before": None, "head": {"depth": "head", "steps": 2}})
    arguments = ["--suite", f"bars={tmp_path / 'clips'}", "--idle", str(tmp_path / "idle")]
    monkeypatch.setattr(
        sys, "argv", ["scene.py", *arguments, "--only", "/x", "--out", str(tmp_path)]
    )
    scene.main()
    rows = json.loads((tmp_path / "scene_bars.json").read_text())["rows"]
    assert list(rows) == ["before", "head"]
    for row in rows.values():
        assert set(row["groups"]) == {"a/x (0)", "b/x (0)"}
        assert row["groups"]["a/x (0)"]["voc"] > 0.9
        assert np.isfinite(row["groups"]["a/x (0)"]["decoy_share"])
    assert rows["head"]["minutes"] > 0 and "| head |" in (tmp_path / "scene_bars.md").read_text()


@pytest.mark.slow
def test_throughput_runs(tmp_path):
    result = subprocess.run(
        [
            *(sys.executable, str(ROOT / "benchmarks/throughput.py"), "--quick", "--sections"),
            *(
                "images",
                "--batches",
                "1",
                "--sizes",
                "84",
                "--seconds",
                "1",
                "--out",
                str(tmp_path),
            ),
        ],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr
    assert json.loads((tmp_path / "throughput-quick.json").read_text())["images"]


@pytest.mark.slow
def test_pretrain_measures_both_rivals_and_writes_its_table(tmp_path):
    (tmp_path / "clips").mkdir()
    frames = np.random.default_rng(0).integers(0, 255, (6, 12, 36, 48, 3), np.uint8)
    for i, video in enumerate(frames):
        write_video(tmp_path / f"clips/{i}.mp4", video)
    result = subprocess.run(
        [
            *(sys.executable, str(ROOT / "benchmarks/pretrain.py"), "--quick"),
            *("--clips", str(tmp_path / "clips"), "--scratch", str(tmp_path)),
            *("--out", str(tmp_path / "out")),
        ],
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert result.returncode == 0, result.stderr
    report = json.loads((tmp_path / "out/pretrain-quick.json").read_text())
    assert [row["case"].split(",")[0] for row in report["speed"]] == 2 * ["official way"] + 2 * [
        "ours"
    ]
    assert report["speed"][0]["against_official"] == 1
    assert all(row["flops"] > 0 for row in report["speed"]) and report["peak"]["bfloat16"] > 0
    assert [row["frames"] for row in report["growth"]] == [1_000, 10_000]
    assert "× the official way" in result.stdout
    assert (tmp_path / "out/pretrain-quick_growth.png").exists()


def test_other_seeds_of_a_row_stay(tmp_path):
    pytest.importorskip("metaworld")
    import online_rl

    def row(seed, camera="corner", value=0.5):
        return {
            "task": "reach-v3",
            "reward": "vip",
            "seeds": {seed: {"camera": camera, "curve": [[10, value]], "about": {"command": seed}}},
        }

    path = tmp_path / "online_rl.json"
    assert online_rl.merged(path, [row("0")]) == [row("0")]
    path.write_text(json.dumps({"rows": [row("2"), row("1", "hand")]}))
    both, hand = online_rl.merged(path, [row("0")])
    assert list(both["seeds"].items()) == [*row("0")["seeds"].items(), *row("2")["seeds"].items()]
    assert hand == row("1", "hand")
    assert online_rl.merged(path, [row("2", value=0.9)])[0] == row("2", value=0.9)  # played again
    tried = row("2", value=0.1)
    tried["seeds"]["2"]["curve"] = [[5, 0.1]]
    assert online_rl.merged(path, [tried])[0] == row("2"), "a shorter run replaces nothing"


@pytest.mark.parametrize(
    "flags, says",
    [
        ("--clips a={0} --clips a={0}", "'a' is given twice"),
        ("--clips a/b={0}", "is no name of a file"),
        ("--clips {0} --name a/b", "is no name of a file"),
        ("--clips {0} --only taks", "--only taks: wanted KEY=VALUE"),
        (
            "--clips {0} --group-by taks",
            "--group-by taks: no clip of .* has it; they have .*'group'",
        ),
        ("--clips {0} --max-frames 1", "--max-frames 1: wanted 2 or more"),
    ],
)
def test_reward_quality_refuses_before_it_works(flags, says, tmp_path, capsys):
    import reward_quality

    write_video(tmp_path / "0.mp4", np.zeros((4, 16, 16, 3), np.uint8))
    (tmp_path / "manifest.json").write_text(json.dumps([{"file": "0.mp4", "group": "a"}]))
    with pytest.raises(SystemExit):
        reward_quality.parse_args(flags.format(tmp_path).split())
    assert re.search(says, capsys.readouterr().err)


@pytest.mark.parametrize("labels", [{"reward": [0.0]}, {"start_frame": 3}])
def test_a_clip_whose_labels_do_not_fit_is_named(labels, tmp_path):
    import reward_quality

    write_video(tmp_path / "0.mp4", np.zeros((4, 16, 16, 3), np.uint8))
    (tmp_path / "manifest.json").write_text(json.dumps([{"file": "0.mp4", **labels}]))
    clips = reward_quality.find_clips(tmp_path)
    with pytest.raises(SystemExit, match="0.mp4: .* wanted"):
        reward_quality.load_clips(clips, None, 10)


def test_a_hill_by_hand():
    pytest.importorskip("metaworld")
    import success_curves

    assert success_curves.hill(np.array([1.0, 0.5, 0.75, 0.25, 0.375])) == 0.25
    assert success_curves.hill(np.array([1.0, 0.5, 0.0])) == 0


@pytest.mark.slow
def test_success_curves_are_drawn(tmp_path, monkeypatch, capsys):
    pytest.importorskip("metaworld")
    import success_curves

    flags = (
        "--tasks coffee-button-v3 --seeds 0 --stride 10 --cameras corner4 corner4+topview".split()
    )
    monkeypatch.setattr(sys, "argv", ["success_curves.py", *flags, "--out", str(tmp_path)])
    success_curves.main()
    rows = json.loads((tmp_path / "success_curves.json").read_text())["rows"]
    for row in rows:
        assert row["curve"][0] == 1 and row["curve"][-1] == 0
        assert 0 < row["first_success"] < len(row["curve"])
    assert "| coffee-button-v3 |" in capsys.readouterr().out
    assert (tmp_path / "success_curves.png").exists()


def test_scores_of_masked_frames_by_hand():
    pytest.importorskip("gymnasium_robotics")
    import robot_mask

    line = lambda *positions: torch.tensor([[float(p)] for p in positions])  # noqa: E731
    # goals 8 and 10: a goes 8 4 2 and b 10 12 2; the wandering 8 2 (6/6) and 10 4 (6/8)
    solved = [(line(0, 4, 10), line(10)[0]), (line(0, -2, 8), line(8)[0])]
    scores = robot_mask.score(solved, line(0, 6))
    assert scores["decoy_share"] == pytest.approx((1 + 0.75) / 2)
    assert scores["order"] == pytest.approx((1 + 0.5) / 2)
    assert scores["bumps"] == pytest.approx((0 + 0.5) / 2)
    # smoothed: 8 6 4 and 10 11 6.5; the wandering 8 5 and 10 7
    assert scores["decoy_share_smoothed"] == pytest.approx((3 / 4 + 3 / 3.5) / 2)


@pytest.mark.slow
def test_masked_frames_are_scored(tmp_path, monkeypatch, capsys):
    pytest.importorskip("gymnasium_robotics")
    import robot_mask

    flags = "--tasks micro_open --steps 40 --stride 40 --image-size 32 --encoder tiny".split()
    monkeypatch.setattr(sys, "argv", ["robot_mask.py", *flags, "--out", str(tmp_path)])
    robot_mask.main()
    result = json.loads((tmp_path / "robot_mask.json").read_text())
    assert 0.02 < result["covered"] < 0.5
    for scores in result["tasks"].values():
        assert 0 <= scores["micro_open"]["decoy_share"] <= 1
    assert "| masked, no background | without the robot |" in capsys.readouterr().out


def test_wilson_interval_by_hand():
    import sac_seeds

    low, high = sac_seeds.wilson(0.5, 4, z=2.0)  # z * z = n: half a width is sqrt(1 / 16 + 1 / 16)
    assert low == pytest.approx(0.5 - 0.125**0.5) and high == pytest.approx(0.5 + 0.125**0.5)
    assert sac_seeds.wilson(1.0, 4, z=2.0) == pytest.approx((0.5, 1.0))


@pytest.mark.slow
def test_sac_minimal_is_tabulated_and_only_read_again(tmp_path):
    pytest.importorskip("metaworld")
    command = [sys.executable, str(ROOT / "benchmarks/sac_seeds.py"), "--smoke", "--seeds", "3"]
    command += ["--rewards", "vip", "--runs", str(tmp_path / "runs"), "--out", str(tmp_path)]
    first = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert first.returncode == 0, first.stderr
    (row,) = json.loads((tmp_path / "sac_minimal.json").read_text())
    assert row["seed"] == 3 and [step for step, _ in row["curve"]] == [400]
    assert "python examples/sac_minimal.py --task button-press-v3" in row["about"]["command"]
    (success,) = (tmp_path / "runs").glob("*/success.csv")
    success.write_text("step,success\n400,0.5\n")  # not played again
    other = row | {"reward": "sparse"}
    (tmp_path / "sac_minimal.json").write_text(json.dumps([row, other]))
    again = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert again.returncode == 0, again.stderr
    table = (tmp_path / "sac_minimal.md").read_text()
    assert "25/50 = 0.50 [0.37, 0.63]" in table and "| sparse | 3 |" in table


@pytest.mark.slow
def test_online_rl_runs_and_is_only_read_again(tmp_path):
    pytest.importorskip("metaworld")
    command = [
        sys.executable,
        str(ROOT / "benchmarks/online_rl.py"),
        "--tasks",
        "reach-v3",
        "--seeds",
        "0",
        "--rewards",
        "vip",
        "hindsight",
        "--steps",
        "36",
        "--max-steps",
        "12",
        "--episodes",
        "1",
        "--jobs",
        "1",
        "--runs",
        str(tmp_path / "runs"),
        "--out",
        str(tmp_path / "results"),
        "--",
        "--smoke",
    ]
    first = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert first.returncode == 0, first.stderr
    assert "reach-v3_behindGripper_vip_0: begins" in first.stdout
    rows = json.loads((tmp_path / "results/online_rl.json").read_text())["rows"]
    assert [row["reward"] for row in rows] == ["random policy", "vip", "hindsight"]
    assert [row["seeds"]["0"]["final"]["step"] for row in rows[1:]] == [36, 36]
    assert (tmp_path / "results/online_rl.png").stat().st_size > 1_000
    kept = [dict(row, task="push-v3") for row in rows[:2]] + [dict(rows[1], reward="sparse")]
    (tmp_path / "results/online_rl.json").write_text(json.dumps({"rows": kept}))
    machine = tmp_path / "runs/reach-v3_behindGripper_vip_0/machine.json"
    machine.write_text(json.dumps(json.loads(machine.read_text()) | {"cpu": "where it was played"}))
    again = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert "reach-v3_behindGripper_vip_0: complete" in again.stdout
    both = json.loads((tmp_path / "results/online_rl.json").read_text())["rows"]
    assert [(row["task"], row["reward"]) for row in both] == [
        ("push-v3", "random policy"),
        ("push-v3", "vip"),
        ("reach-v3", "random policy"),
        ("reach-v3", "vip"),
        ("reach-v3", "hindsight"),
        ("reach-v3", "sparse"),
    ]
    table = (tmp_path / "results/online_rl.md").read_text()
    assert table.count("| push-v3") == 2
    repeat = next(
        line for line in table.splitlines() if line.startswith("- reach-v3, vip, seed 0: `")
    )
    assert "--seeds 0 --rewards vip --tasks reach-v3 --camera behindGripper --steps 36 " in repeat
    assert "--max-steps 12 --episodes 1 -- " in repeat and " --smoke" in repeat
    assert "where it was played" in repeat


@pytest.mark.slow
@pytest.mark.parametrize(
    "script, flags",
    [
        (
            "tabletop_bc",
            "--tasks close-drawer --demonstrations 2 --seeds 1 --steps 20 --rollouts 1",
        ),
        (
            "offline_rl",
            "--work WORK --tasks close-drawer --policies state-BC VIP-RWR scratch-BC "
            "--conditions plain displaced --demonstrations 2 --seeds 1 --steps 5 --rollouts 1 "
            "--length 5 --films 1",
        ),
        ("tabletop", "--tasks close-drawer --starts 1 --resets 2 --episodes 1 --workers 1"),
    ],
)
def test_benchmarks_of_the_tabletop(script, flags, tmp_path):
    pytest.importorskip("gymnasium_robotics")
    flags = flags.replace("WORK", str(tmp_path / "work"))
    command = [sys.executable, str(ROOT / f"benchmarks/{script}.py"), *flags.split()]
    subprocess.run([*command, "--out", str(tmp_path / "out")], check=True, capture_output=True)
    (table,) = (path for path in tmp_path.rglob("*.md") if path.name != "README.md")
    assert "| close-drawer |" in table.read_text()


@pytest.mark.slow
def test_label_speed(tmp_path):
    (tmp_path / "clips").mkdir()
    for i in range(2):
        frames = torch.randint(0, 256, (20, 64, 64, 3), dtype=torch.uint8)
        write_video(tmp_path / "clips" / f"{i}.mp4", frames)
    command = [sys.executable, str(ROOT / "benchmarks/label_speed.py"), str(tmp_path / "clips")]
    command += ["--encoder", "tiny", "--block", "16", "--batch-size", "8"]
    subprocess.run([*command, "--out", str(tmp_path / "out")], check=True, capture_output=True)
    report = json.loads((tmp_path / "out.json").read_text())
    assert report["blocks"][-1]["frames"] >= 32 and report["decode_alone"] > 0
    assert (tmp_path / "out.png").exists()
