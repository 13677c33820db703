"""Labelling a dataset: by hand for one episode, then goals, tables, what cannot be read, kills and shards."""

import csv
import functools
import json
import math
import os
import random
import re
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from clips import film, write_folder
from networks import Counting
from torchvision.io import write_png

from torchrl_vip import FrozenEncoder, load_vip
from torchrl_vip.data.clip import Clip
from torchrl_vip.functional import IMAGENET_STD
from torchrl_vip.label import cluster
from torchrl_vip.label.__main__ import main
from torchrl_vip.label.check import agreement, read_levels
from torchrl_vip.label.goals import gather_ends, goal_images, task_of
from torchrl_vip.label.job import Labeller, Settings, episodes_of
from torchrl_vip.label.report import ranked
from torchrl_vip.label.rows import Summary, progress
from torchrl_vip.label.stream import embed_stream

pq = pytest.importorskip("pyarrow.parquet")

UNIT = math.dist((0, 0, 0), [1 / (255 * s) for s in IMAGENET_STD])
"""Distance of mean colours, after preprocessing, for one step of grey."""


def write_greys(folder: Path, greys: list[int], side: int = 32) -> Path:
    folder.mkdir(parents=True)
    for t, grey in enumerate(greys):
        write_png(torch.full((3, side, side), grey, dtype=torch.uint8), str(folder / f"{t}.png"))
    return folder


def mean_colour() -> FrozenEncoder:
    return FrozenEncoder(Counting(), image_size=8)


def labeller(source: Path, results: Path, **options) -> Labeller:
    options = {"scale": 1.0, "batch_size": 4} | options
    return Labeller(Settings(source, results, **options), mean_colour())


def label(source: Path, results: Path, **options) -> dict:
    job = labeller(source, results, **options)
    job.embed(show=False)
    return {one.clip.name: one for one in job.labelled(job.goals())}


@pytest.fixture
def greys(tmp_path: Path) -> Path:
    source = tmp_path / "greys"
    write_greys(source / "push/a", [10, 20, 40, 30, 60])
    write_greys(source / "push/b", [10, 30, 80])
    write_greys(source / "lift/c", [200, 100, 100])
    return source


# -- the numbers -----------------------------------------------------------------------------------


def test_an_episode_by_hand(greys, tmp_path):
    one = label(greys, tmp_path / "out")["push/a"]
    distance = UNIT * np.array([50, 40, 20, 30, 0])
    np.testing.assert_allclose(one.rows.distance, distance, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(one.rows.progress, [0, 0.2, 0.6, 0.4, 1], atol=1e-5)
    np.testing.assert_allclose(one.rows.reward, UNIT * np.array([10, 20, -10, 30, 0]), atol=1e-4)
    summary = one.summary
    assert summary.total == pytest.approx(50 * UNIT, rel=1e-4)
    assert summary.bumps == 0.25 and summary.voc_own == pytest.approx(0.9)
    assert (summary.frames, summary.read, summary.task) == (5, 5, "push")
    # its end is 60, the only other one of its task ends at 80
    assert summary.end_distance == pytest.approx(20 * UNIT, rel=1e-4)
    assert summary.end_progress == pytest.approx(1 - 20 / 70, rel=1e-4)


def test_the_mean_of_last_frames_is_a_tasks_goal(greys, tmp_path):
    rows = label(greys, tmp_path / "out", goal="mean-last")
    np.testing.assert_allclose(rows["push/b"].rows.progress, [0, 20 / 60, 1 - 10 / 60], atol=1e-5)
    np.testing.assert_allclose(rows["lift/c"].rows.progress, [0, 1, 1], atol=1e-5)


def test_failures_are_no_goal(tmp_path):
    source = tmp_path / "clips"
    for name, end in (("good", 50), ("bad", 250)):
        write_greys(source / name, [0, end])
    said = [{"file": name, "task": "t", "success": name == "good"} for name in ("good", "bad")]
    (source / "manifest.json").write_text(json.dumps(said))
    rows = label(source, tmp_path / "out", goal="mean-last")
    np.testing.assert_allclose(rows["bad"].rows.progress, [0, 1 - 200 / 50], atol=1e-5)
    # without a success the failures' ends are all there is
    z = {"a": torch.ones(2), "b": torch.zeros(2)}
    clips = [Clip(Path(n), n, {"task": "t", "success": False}) for n in z]
    goals = gather_ends(clips, lambda clip: z[clip.name])
    assert goals.shared["t"].tolist() == [0.5, 0.5]


@pytest.mark.parametrize("form", ["difference", "distance", "potential", "sparse"])
def test_forms(form, greys, tmp_path):
    one = label(greys, tmp_path / "out", form=form, gamma=0.9, threshold=25 * UNIT, scale=2.0)
    d = UNIT * np.array([50, 40, 20, 30, 0])
    after = np.append(d[1:], d[-1])
    wanted = {
        "difference": 2 * (d - after),
        "distance": -2 * after,
        "potential": 2 * (d - 0.9 * after),
        "sparse": after <= 25 * UNIT,
    }[form]
    np.testing.assert_allclose(one["push/a"].rows.reward, wanted, atol=1e-3)


def test_an_episode_that_begins_at_its_goal_has_no_progress(tmp_path):
    write_greys(tmp_path / "clips/still", [90, 90, 90])
    one = label(tmp_path / "clips", tmp_path / "out")["still"]
    assert np.isnan(one.rows.progress).all() and "begins at its goal" in one.summary.note
    assert one.rows.reward.tolist() == [0, 0, 0]
    assert np.isnan(progress(np.array([0.01, 2.0]), usual=1.0)).all()
    assert progress(np.array([0.02, 0.04]), usual=1.0).tolist() == [0, -1]


def test_a_scale_that_the_checkpoint_lacks_is_said_before_any_work(greys, tmp_path):
    with pytest.raises(ValueError, match="no reward_scale; give a number"):
        labeller(greys, tmp_path / "out", scale="auto")


# -- batches ---------------------------------------------------------------------------------------


def test_batches_are_full_and_cross_the_borders_of_clips(tmp_path):
    lengths = [3, 1, 5, 2]
    clips = [
        Clip(write_folder(tmp_path / f"{i}", n, first=10 * i), f"{i}")
        for i, n in enumerate(lengths)
    ]
    sizes = []

    def embed(frames):
        sizes.append(len(frames))
        return frames.float().mean((-2, -1))

    found = {e.number: e for e in embed_stream(clips, embed, batch_size=4)}
    assert sizes == [4, 4, 4]
    for i, n in enumerate(lengths):
        assert found[i].z[:, 0].tolist() == [10 * i + 10 * t for t in range(n)]


def test_frames_of_another_size_begin_a_new_batch(tmp_path):
    clips = [
        Clip(write_greys(tmp_path / f"{side}", [side, 2], side), f"{side}") for side in (16, 32)
    ]
    shapes = []

    def embed(frames):
        shapes.append(tuple(frames.shape))
        return frames.float().mean((-2, -1))

    found = list(embed_stream(clips, embed, batch_size=3))
    assert shapes == [(3, 3, 16, 16), (3, 3, 32, 32)]
    assert [e.z[0, 0].item() for e in found] == [16, 32]


@pytest.mark.parametrize("encoder", ["tiny", "efficientnet_lite0"])
def test_an_embedding_does_not_depend_on_its_place_in_the_batch(encoder):
    frozen = FrozenEncoder(load_vip(encoder))
    frames = torch.randint(0, 256, (32, 3, 40, 48), dtype=torch.uint8)
    order = torch.randperm(32)
    z = frozen(frames, channel_dim=-3)
    assert torch.equal(frozen(frames[order], channel_dim=-3), z[order])
    frames[1:] = 0
    assert torch.equal(frozen(frames, channel_dim=-3)[0], z[0])


def test_a_stream_that_is_left_early_leaves_no_thread(tmp_path):
    import threading

    before = threading.active_count()
    clips = [Clip(write_folder(tmp_path / f"{i}", 20), f"{i}") for i in range(6)]
    stream = embed_stream(clips, lambda x: x.float().mean((-2, -1)), batch_size=1, threads=3)
    next(stream)
    stream.close()
    deadline = time.time() + 10
    while threading.active_count() > before:
        assert time.time() < deadline
        time.sleep(0.05)


# -- goals by images -------------------------------------------------------------------------------


def test_goal_images(greys, tmp_path):
    goal = write_greys(tmp_path / "goal", [110]) / "0.png"
    rows = label(greys, tmp_path / "out", goal=str(goal))
    np.testing.assert_allclose(rows["push/a"].rows.progress[-1], 0.5, atol=1e-5)
    assert rows["push/a"].summary.end_distance == pytest.approx(50 * UNIT, rel=1e-4)
    folder = tmp_path / "goals"
    write_greys(folder / "Push!", [60, 80])  # two images of one task
    (write_greys(tmp_path / "more", [100]) / "0.png").rename(folder / "lift.png")
    rows = label(greys, tmp_path / "out", goal=str(folder))
    np.testing.assert_allclose(rows["push/b"].rows.progress, [0, 1 / 3, 1 - 1 / 6], atol=1e-5)
    np.testing.assert_allclose(rows["lift/c"].rows.progress, [0, 1, 1], atol=1e-5)
    (folder / "lift.png").unlink()
    with pytest.raises(
        ValueError, match=r"images of 1 of 2 tasks; none is named 'lift'.*lift\.png"
    ):
        label(greys, tmp_path / "out", goal=str(folder))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"no \.png or \.jpg"):
        goal_images(tmp_path / "empty", ["push"])
    with pytest.raises(FileNotFoundError, match="wanted last, mean-last, an image"):
        label(greys, tmp_path / "out", goal="mean_last")


def test_tasks():
    assert task_of(Clip(Path("x"), "push/a.mp4")) == "push"
    assert task_of(Clip(Path("x"), "a.mp4")) == "."
    assert task_of(Clip(Path("x"), "a.mp4", {"task": "lift", "camera": "top"})) == "lift"
    assert task_of(Clip(Path("x"), "a.mp4", {"task": "lift", "group": "lift/3"})) == "lift/3"


# -- what is kept ----------------------------------------------------------------------------------


def test_what_was_embedded_is_not_embedded_again(greys, tmp_path):
    label(greys, tmp_path / "out")
    job = labeller(greys, tmp_path / "out", goal="mean-last", form="distance")
    assert job.missing() == []
    shutil.rmtree(greys / "lift/c")
    write_greys(greys / "lift/c", [200, 100])
    assert [job.clips[n].name for n in labeller(greys, tmp_path / "out").missing()] == ["lift/c"]
    other = FrozenEncoder(Counting(), image_size=16)
    settings = Settings(greys, tmp_path / "out", scale=1.0)
    assert len(Labeller(settings, other).missing()) == 3


def test_a_damaged_embedding_is_named_and_made_again(greys, tmp_path):
    job = labeller(greys, tmp_path / "out")
    job.embed(show=False)
    path = job.store.path(job.clips[0])
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(ValueError, match="is damaged.*run the same command again"):
        list(job.labelled(job.goals()))
    job.embed(show=False)
    assert len(list(job.labelled(job.goals()))) == 3


# -- the command -----------------------------------------------------------------------------------


def command(*arguments: object) -> int:
    return main([str(argument) for argument in arguments])


@pytest.fixture
def videos(tmp_path: Path) -> Path:
    pytest.importorskip("av")
    for name, end in (("open/a", 200), ("open/b", 180), ("shut/c", 90)):
        film(tmp_path / f"videos/{name}.mp4", np.linspace(20, end, 6).astype(int).tolist(), side=64)
    return tmp_path / "videos"


def test_the_command(videos, tmp_path, capsys):
    assert (
        command(videos, "--goal", "mean-last", "--encoder", "tiny", "--embeddings", "float16") == 0
    )
    said = capsys.readouterr().out
    assert "3 episodes, 18 of 18 frames read" in said and "embedded 18 frames" in said
    out = tmp_path / "videos_vip"
    table = pq.read_table(out / "rewards.parquet")
    assert table.column_names == [
        *("episode", "episode_index", "frame_index", "distance", "progress", "progress_clipped"),
        *("reward", "vip_vec"),
    ]
    assert table.num_rows == 18 and table["frame_index"].to_pylist() == [0, 1, 2, 3, 4, 5] * 3
    assert table.schema.metadata[b"encoder"] == b"tiny"
    assert str(table.schema.field("vip_vec").type) == "fixed_size_list<element: halffloat>[512]"
    rows = list(csv.DictReader((out / "episodes.csv").read_text().splitlines()))
    assert [row["episode"] for row in rows] == ["open/a.mp4", "open/b.mp4", "shut/c.mp4"]
    by_hand = sum(table["reward"].to_pylist()[:6])
    assert float(rows[0]["return"]) == pytest.approx(by_hand, abs=1e-6)
    assert (out / "csv/open_a.mp4.csv").read_text().count("\n") == 7
    report = json.loads((out / "report.json").read_text())
    assert report["goal"] == "mean-last" and report["unreadable"] == {}
    assert (out / "report.png").read_bytes().startswith(b"\x89PNG")
    # nothing is embedded a second time, and the tables are the same bits
    before = {path: path.read_bytes() for path in out.glob("*.[pc]*[tv]")}
    assert (
        command(videos, "--goal", "mean-last", "--encoder", "tiny", "--embeddings", "float16") == 0
    )
    assert "embedded" not in capsys.readouterr().out
    assert before and all(path.read_bytes() == held for path, held in before.items())


def test_what_cannot_be_read_is_named_and_in_the_exit_code(videos, tmp_path, capsys):
    (videos / "open/broken.mp4").write_bytes((videos / "open/a.mp4").read_bytes()[:700])
    assert command(videos, "--encoder", "tiny") == 3
    assert "1 episode(s) could not be read:" in (said := capsys.readouterr().out)
    assert "broken.mp4: not a readable video" in said
    table = (tmp_path / "videos_vip/episodes.csv").read_text().splitlines()
    rows = {row["episode"]: row for row in csv.DictReader(table)}
    assert "not a readable video" in rows["open/broken.mp4"]["error"]
    assert rows["open/broken.mp4"]["return"] == "nan" and rows["open/a.mp4"]["error"] == ""
    # mended, it is taken, and the others are not read again
    shutil.copy(videos / "open/a.mp4", videos / "open/broken.mp4")
    assert command(videos, "--encoder", "tiny") == 0
    assert "embedded 6 frames" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["nowhere"], "nowhere is no folder"),
        (["videos", "--goal", "end.png"], "--goal end.png does not exist"),
        (["videos", "--camera", "top"], "--camera top: .*videos names none"),
        (["videos", "--encoder", "no/such"], "no/such does not exist"),
        (["videos", "--batch-size", "0"], "--batch-size 0: wanted 1 or more"),
        (["videos", "--shard", "2/2"], "--shard 2/2: wanted I/N"),
        (["videos", "--shard", "0/2", "--merge"], "--shard and --merge: give one"),
        (["videos", "--merge"], "3 of 3 episodes are not embedded yet"),
        (["videos", "--results", "labels.txt/r"], r"--results labels.txt/r: Not a directory; give"),
        (["videos", "--in-place"], "--in-place is for LeRobot datasets"),
        (["videos", "--out", "new"], "--out writes a dataset of steps anew"),
        (["videos", "--check", "labels.csv"], "No such file or directory: 'labels.csv'"),
        (["videos", "--check", "labels.txt"], "labels.txt has the columns None; wanted episode"),
    ],
)
def test_a_mistake_is_a_line(arguments, message, videos, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("labels.txt").touch()
    if "--encoder" not in arguments:
        arguments += ["--encoder", "tiny"]
    assert command(*arguments) == 1
    (line,) = capsys.readouterr().err.strip().splitlines()[-1:]
    assert line.startswith("error: ")
    assert re.search(message, line), line


def test_cameras_are_listed_and_found_by_their_end(tmp_path, monkeypatch):
    from torchrl_vip.label import job

    names = ["observation.images.top", "observation.images.wrist"]
    clips = [Clip(Path("x"), f"{c}/0", {"camera": c}) for c in names]
    monkeypatch.setattr(job, "find_clips", lambda source: clips)
    assert episodes_of(tmp_path, "wrist") == [clips[1]] == episodes_of(tmp_path, names[1])
    with pytest.raises(ValueError, match=r"images\.top, .*images\.wrist: say which with --camera"):
        episodes_of(tmp_path)
    with pytest.raises(
        ValueError, match=r"--camera side: .* has the cameras observation\.images\.top"
    ):
        episodes_of(tmp_path, "side")


def test_shards_make_the_same_tables(videos, tmp_path, capsys):
    assert command(videos, "--encoder", "tiny", "--results", tmp_path / "one") == 0
    for part in ("0/2", "1/2"):
        assert (
            command(videos, "--encoder", "tiny", "--shard", part, "--results", tmp_path / "two")
            == 0
        )
    assert "3 of 3 episodes are done" in capsys.readouterr().out
    assert command(videos, "--encoder", "tiny", "--merge", "--results", tmp_path / "two") == 0
    for name in ("rewards.parquet", "episodes.csv"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    assert cluster.share([0, 1, 2, 3, 4], 1, 2) == [1, 3]


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1"}


@pytest.mark.slow
def test_killed_and_killed_again_it_ends_with_the_same_bits(tmp_path):
    pytest.importorskip("av")
    kills = int(os.environ.get("VIP_KILLS", "6"))
    source, rng = tmp_path / "videos", random.Random(0)
    for i in range(24):
        greys = [rng.randrange(256) for _ in range(rng.randrange(2, 60))]
        film(source / f"task{i % 3}/{i:02d}.mp4", greys, side=96)
    line = [sys.executable, "-m", "torchrl_vip.label", str(source), "--encoder", "tiny"]
    line += ["--batch-size", "8", "--goal", "mean-last"]

    def embedded(results: Path) -> int:
        return len(list(results.rglob("*.safetensors")))

    whole, cut = tmp_path / "whole", tmp_path / "cut"
    subprocess.run([*line, "--results", whole], check=True, env=environment(), capture_output=True)
    for _ in range(kills):
        before = embedded(cut)
        process = subprocess.Popen(
            [*line, "--results", cut], env=environment(), stderr=subprocess.DEVNULL
        )
        deadline = time.monotonic() + 120
        while process.poll() is None and embedded(cut) <= before:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        time.sleep(rng.uniform(0, 0.1))
        process.kill()
        process.wait()
    subprocess.run([*line, "--results", cut], check=True, env=environment(), capture_output=True)
    kept = sorted(p.relative_to(whole) for p in whole.rglob("*") if p.is_file())
    assert [p for p in kept if p.suffix == ".safetensors"] and len(kept) > 24
    for path in kept:
        if path.name not in ("report.json",):  # it has the date and the speed
            assert (whole / path).read_bytes() == (cut / path).read_bytes(), path


@pytest.mark.slow
def test_a_full_disk_keeps_what_was_written(videos, tmp_path):
    line = [sys.executable, "-m", "torchrl_vip.label", str(videos), "--encoder", "tiny"]
    line += ["--threads", "1", "--batch-size", "2"]
    film(videos / "shut/z.mp4", list(range(0, 240, 6)), side=64)  # 40 frames, 82 kB
    small = (20_000, 20_000)
    limit = functools.partial(resource.setrlimit, resource.RLIMIT_FSIZE, small)
    ended = subprocess.run(
        line, env=environment(), capture_output=True, text=True, preexec_fn=limit
    )
    assert ended.returncode == 1
    (said,) = [text for text in ended.stderr.splitlines() if text.startswith("error: ")]
    assert "File too large" in said and "are free there" in said
    kept = tmp_path / "videos_vip"
    assert len(list(kept.rglob("*.safetensors"))) == 3 and not list(kept.rglob("*.part"))
    ended = subprocess.run(line, env=environment(), capture_output=True, text=True)
    assert ended.returncode == 0 and "embedded 40 frames" in ended.stdout


def test_arrays_from_the_command(tmp_path, capsys):
    h5py = pytest.importorskip("h5py")
    source, copy = tmp_path / "demos.hdf5", tmp_path / "labelled.hdf5"
    frames = torch.stack([torch.full((32, 32, 3), g, dtype=torch.uint8) for g in (0, 90, 200)])
    with h5py.File(source, "w") as file:
        for name in ("demo_0", "demo_1"):
            demo = file.create_group(f"data/{name}")
            demo["obs/front_image"] = frames.numpy()
            demo["actions"], demo["rewards"] = np.zeros((3, 2)), np.array([7.0, 8.0, 9.0])
    assert command(source, "--encoder", "tiny", "--out", copy) == 0
    assert f"wrote {copy}" in capsys.readouterr().out
    rewards = pq.read_table(tmp_path / "demos_vip/rewards.parquet")["reward"].to_numpy()
    with h5py.File(copy) as file:
        demo = file["data/demo_1"]
        np.testing.assert_allclose(demo["rewards"][:], rewards[3:])
        assert demo["rewards_original"][:].tolist() == [7, 8, 9]
    assert command(source, "--encoder", "tiny", "--out", copy) == 1
    assert "labelled.hdf5 exists already" in capsys.readouterr().err


# -- against labels --------------------------------------------------------------------------------


def summaries(*ends: float, task: str = "t") -> list[Summary]:
    return [
        Summary(f"e{i}", i, task, 2, end_progress=end, voc_own=0.5) for i, end in enumerate(ends)
    ]


def episodes(*names: str) -> list[Clip]:
    return [Clip(Path(name), name) for name in names]


def test_agreement_by_hand():
    # success .9 and .2, partial .5, failure .4: pairs of other levels are right 3 times of 5
    found = agreement(summaries(0.9, 0.2, 0.5, 0.4), {0: 2, 1: 2, 2: 1, 3: 0})
    assert found["kendall"] == pytest.approx((3 - 2) / 5)
    assert found["auc"] == 0.5
    assert found["doubtful"] == [1, 2, 3] and found["wrong"][1] == 1.0
    assert found["levels"] == {"failure": 1, "partial": 1, "success": 2}


def test_labels_are_compared_within_a_task():
    rows = summaries(0.9, 0.8) + summaries(0.2, 0.1, task="u")
    found = agreement(rows, {0: 2, 1: 0, 2: 2, 3: 0})
    assert (found["kendall"], found["auc"], found["tasks"]) == (1.0, 1.0, 2)


@pytest.mark.parametrize(
    "text, message",
    [
        ("name,level\ne0,1\n", "wanted episode and level"),
        ("episode,level\ne7,1\n", "line 2: no episode 'e7'"),
        ("episode,level\ne0,1\n0,2\n", "line 3: episode '0' a second time"),
        ("episode,level\ne0,3\n", "line 2: level=3; wanted 0"),
        ("episode,level\ne0,\n", "line 2: level= is invalid"),
    ],
)
def test_bad_labels(text, message, tmp_path):
    (tmp_path / "labels.csv").write_text(text)
    with pytest.raises(ValueError, match=message):
        read_levels(tmp_path / "labels.csv", episodes("e0", "e1"))


def test_labels_by_name_or_index(tmp_path):
    (tmp_path / "labels.csv").write_text("\ufeffepisode,level,who\ne1,2,me\n0,0.0,me\n", "utf-8")
    assert read_levels(tmp_path / "labels.csv", episodes("e0", "e1")) == {1: 2, 0: 0}


def test_check_draws_the_doubtful(videos, tmp_path, capsys):
    (tmp_path / "labels.csv").write_text("episode,level\nopen/a.mp4,0\nopen/b.mp4,2\n")
    arguments = (
        videos,
        "--encoder",
        "tiny",
        "--goal",
        "mean-last",
        "--check",
        tmp_path / "labels.csv",
    )
    assert command(*arguments) == 0
    assert "labels: Kendall tau_a" in capsys.readouterr().out


def test_episodes_are_ranked_by_how_far_they_came():
    rows = summaries(0.2, math.nan, 0.9)
    assert ranked(rows) == [2, 0]
    rows[2].error = "unreadable"
    assert ranked(rows) == [0]
    assert ranked(summaries(math.nan, math.nan)) == [0, 1]
