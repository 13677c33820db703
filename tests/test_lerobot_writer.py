"""LeRobotWriter: what it writes is read back frame by frame, and appears whole or not at all."""

import json
import os
import signal
import subprocess
import sys
import time
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from clips import film, near, write_folder
from hypothesis import given, settings
from hypothesis import strategies as st

from torchrl_vip.data.lerobot.stats import PictureStats, column_stats, merge_stats
from torchrl_vip.data.reading import measure, read_frames
from torchrl_vip.data.sources import find_clips

pyarrow = pytest.importorskip("pyarrow")
av = pytest.importorskip("av")
from pyarrow import parquet  # noqa: E402

from torchrl_vip.data.lerobot.writer import LeRobotWriter  # noqa: E402

TOP, SIDE = "observation.images.top", "observation.images.side"


def pictures(greys: list[int], side: int = 32) -> list[np.ndarray]:
    return [np.full((side, side, 3), grey, np.uint8) for grey in greys]


def greys(count: int, first: int) -> list[int]:
    return [5 * ((first + i) % 50) for i in range(count)]


def read(folder: Path) -> dict[str, list[int]]:
    """Greys of each episode of each camera."""
    clips = find_clips(folder)
    assert all(measure(clip.path, clip.span)[1] == "" for clip in clips)  # no note
    return {clip.name: near(torch.stack(list(read_frames(clip.path, clip.span)))) for clip in clips}


def data(folder: Path) -> dict[str, list]:
    return pyarrow.concat_tables(
        [parquet.read_table(path) for path in sorted((folder / "data").rglob("*.parquet"))]
    ).to_pydict()


def listed(folder: Path) -> list[dict]:
    paths = sorted((folder / "meta/episodes").rglob("*.parquet"))
    return [row for path in paths for row in parquet.read_table(path).to_pylist()]


# --- what is read back ----------------------------------------------------------------------------


@settings(max_examples=8, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 14), min_size=1, max_size=5),
    per_file=st.sampled_from([None, 1, 2, 3]),
    size=st.integers(1, 3),
    fps=st.sampled_from([10, 30, 29.97, Fraction(30000, 1001)]),
)
def test_what_was_written_is_read_back(tmp_path_factory, lengths, per_file, size, fps) -> None:
    root = tmp_path_factory.mktemp("writer") / "set"
    rng = np.random.default_rng(0)
    actions = [rng.normal(size=(n, size)).astype(np.float32) for n in lengths]
    with LeRobotWriter(root, fps, episodes_per_file=per_file) as writer:
        for k, (n, action) in enumerate(zip(lengths, actions, strict=True)):
            cameras = {TOP: pictures(greys(n, 3 * k)), SIDE: pictures(greys(n, 20 + k))}
            assert writer.add_episode(cameras, {"action": action}, f"task {k % 2}") == k
    for camera, first in ((TOP, lambda k: 3 * k), (SIDE, lambda k: 20 + k)):
        wanted = {f"{camera}/episode_{k:06d}": greys(n, first(k)) for k, n in enumerate(lengths)}
        assert wanted.items() <= read(root).items()
    ends = {
        row[f"videos/{TOP}/file_index"]: row[f"videos/{TOP}/to_timestamp"] for row in listed(root)
    }
    for file, end in ends.items():
        with av.open(str(root / f"videos/{TOP}/chunk-000/file-{file:03d}.mp4")) as container:
            stream = container.streams.video[0]  # LeRobot's merging of datasets relies on it
            assert float(stream.duration * stream.time_base) == pytest.approx(end, abs=1e-9)
    stored = data(root)
    assert stored["index"] == list(range(sum(lengths)))
    assert stored["frame_index"] == [i for n in lengths for i in range(n)]
    assert stored["episode_index"] == [k for k, n in enumerate(lengths) for _ in range(n)]
    flat = np.concatenate(actions)
    np.testing.assert_array_equal(stored["action"], flat[:, 0] if size == 1 else flat)
    files = -(-len(lengths) // per_file) if per_file else 1
    assert len(list((root / "videos" / TOP).rglob("*.mp4"))) == files


def test_the_layout_by_hand(tmp_path: Path) -> None:
    with LeRobotWriter(
        tmp_path / "set", 10, robot_type="arm", names={"state": ["x", "y"]}
    ) as writer:
        for n in (3, 2):
            columns = {"state": np.ones((n, 2)), "next.done": np.arange(n) == n - 1}
            columns["note"] = ["a"] * n
            columns = dict(sorted(columns.items(), reverse=n == 2))  # their order does not matter
            writer.add_episode({TOP: pictures(greys(n, 0))}, columns, "push")
        assert not (tmp_path / "set").exists()
    info = json.loads((tmp_path / "set/meta/info.json").read_text())
    assert (info["codebase_version"], info["fps"], info["robot_type"]) == ("v3.0", 10, "arm")
    assert (info["total_episodes"], info["total_frames"], info["total_tasks"]) == (2, 5, 1)
    features = info["features"]
    assert features["state"] == {"dtype": "float64", "shape": [2], "names": ["x", "y"]}
    assert features["next.done"] == {"dtype": "bool", "shape": [1], "names": None}
    assert features["note"]["dtype"] == "string"
    assert features[TOP]["shape"] == [32, 32, 3] and features[TOP]["dtype"] == "video"
    first, second = listed(tmp_path / "set")
    assert first["tasks"] == second["tasks"] == ["push"]
    assert (second["dataset_from_index"], second["dataset_to_index"], second["length"]) == (3, 5, 2)
    assert second[f"videos/{TOP}/from_timestamp"] == pytest.approx(0.3)
    assert second[f"videos/{TOP}/to_timestamp"] == pytest.approx(0.5)
    assert second["stats/index/mean"] == [3.5] and second["stats/index/count"] == [2]
    assert second[f"stats/{TOP}/max"] == [[[pytest.approx(5 / 255, abs=2 / 255)]]] * 3
    stats = json.loads((tmp_path / "set/meta/stats.json").read_text())
    assert stats["frame_index"]["mean"] == [pytest.approx(0.8)] and stats["index"]["max"] == [4]
    assert stats["next.done"]["mean"] == [pytest.approx(0.4)] and "note" not in stats
    tasks = parquet.read_table(tmp_path / "set/meta/tasks.parquet")
    assert tasks.to_pydict() == {"task_index": [0], "task": ["push"]}
    assert json.loads(tasks.schema.metadata[b"pandas"])["index_columns"] == ["task"]
    schema = parquet.read_schema(tmp_path / "set/data/chunk-000/file-000.parquet")
    said = json.loads(schema.metadata[b"huggingface"])["info"]["features"]
    assert said["state"]["length"] == 2 and said["next.done"] == {"dtype": "bool", "_type": "Value"}
    assert list(said) == schema.names


def test_video_files_are_taken_over_as_they_are(tmp_path: Path) -> None:
    """Of x264's frames out of order, of frames in order, of another codec."""
    films = [
        film(tmp_path / "b.mp4", greys(9, 0)),
        film(tmp_path / "plain.mp4", greys(6, 9), max_b_frames=0),
        film(tmp_path / "mpeg4.mp4", greys(7, 15), codec="mpeg4"),
        film(tmp_path / "again.mp4", greys(8, 22)),
        film(tmp_path / "more.mp4", greys(8, 27)),
    ]
    with LeRobotWriter(tmp_path / "set", 10) as writer:
        for path in films:
            writer.add_episode({TOP: path})
    clips = find_clips(tmp_path / "set")
    for clip, path in zip(clips, films, strict=True):
        for a, b in zip(read_frames(clip.path, clip.span), read_frames(path), strict=True):
            assert torch.equal(a, b)
    assert clips[3].path == clips[4].path  # of one coding


@pytest.mark.parametrize(
    "name, options, tolerance",
    [
        ("fast.mp4", {"fps": 25}, 2),
        ("clip.gif", {"codec": "gif", "pix_fmt": "rgb8"}, 20),
        ("clip.webm", {"codec": "libvpx"}, 6),
    ],
)
def test_other_video_files_are_coded_again(tmp_path: Path, name, options, tolerance) -> None:
    source = film(tmp_path / name, greys(9, 3), **options)
    with LeRobotWriter(tmp_path / "set", 10) as writer:
        for path in (source, film(tmp_path / "plain.mp4", greys(4, 0)), source):
            writer.add_episode({TOP: path})
    found = list(read(tmp_path / "set").values())
    for frames, wanted in zip(found, (greys(9, 3), greys(4, 0), greys(9, 3)), strict=True):
        assert np.abs(np.subtract(frames, wanted)).max() <= tolerance


def test_folders_of_frames_are_taken_too(tmp_path: Path) -> None:
    with LeRobotWriter(tmp_path / "set", 10) as writer:
        writer.add_episode({TOP: write_folder(tmp_path / "frames", 6)})
    assert list(read(tmp_path / "set").values()) == [[0, 10, 20, 30, 40, 50]]


def test_a_file_that_is_full_is_followed_by_another(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("torchrl_vip.data.lerobot.writer.VIDEO_MB", 1e-4)
    monkeypatch.setattr("torchrl_vip.data.lerobot.writer.CHUNK_FILES", 2)
    noise = np.random.default_rng(0).integers(0, 256, (3, 4, 64, 64, 3), np.uint8)
    with LeRobotWriter(tmp_path / "set", 10) as writer:
        for frames in noise:
            writer.add_episode({TOP: frames})
    places = [
        (row[f"videos/{TOP}/chunk_index"], row[f"videos/{TOP}/file_index"])
        for row in listed(tmp_path / "set")
    ]
    assert places == [(0, 0), (0, 1), (1, 0)]
    assert [len(frames) for frames in read(tmp_path / "set").values()] == [4, 4, 4]


def test_many_episodes_are_listed_in_parts(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("torchrl_vip.data.lerobot.writer.ROWS", 3)
    with LeRobotWriter(tmp_path / "set", 5) as writer:
        for k in range(8):
            writer.add_episode({}, {"action": np.arange(k + 1)})
    assert [row["length"] for row in listed(tmp_path / "set")] == list(range(1, 9))


# --- what is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "cameras, columns, said",
    [
        ({TOP: pictures([0, 5])}, {"action": np.zeros((3, 2))}, r"action 3, .*top 2; wanted one"),
        (
            {TOP: pictures([0] * 3)},
            {"action": np.zeros((3, 4))},
            r"action \(float64 \[4\]\).*\[2\]",
        ),
        ({TOP: pictures([0] * 3)}, {"action": np.zeros((3, 2), int)}, "int64"),
        ({TOP: pictures([0] * 3, side=16)}, {"action": np.zeros((3, 2))}, r"\[16, 16, 3\]"),
        ({SIDE: pictures([0] * 3)}, {"action": np.zeros((3, 2))}, "wanted what the first one has"),
        ({TOP: pictures([0] * 3)}, {"action": np.zeros((3, 2, 2))}, r"wanted \[T\] or \[T, D\]"),
        ({TOP: pictures([0]) + pictures([0], 16)}, {}, "all of one size"),
        ({TOP: []}, {"action": np.zeros((0, 2))}, "no frames"),
        ({TOP: "missing.mp4"}, {"action": np.zeros((3, 2))}, "not a readable video"),
        ({}, {}, "wanted one number, 1 or more"),
    ],
)
def test_an_episode_that_does_not_fit_leaves_the_others(tmp_path, cameras, columns, said) -> None:
    with LeRobotWriter(tmp_path / "set", 10) as writer:
        writer.add_episode({TOP: pictures(greys(3, 0))}, {"action": np.zeros((3, 2))})
        with pytest.raises(ValueError, match=said):
            writer.add_episode(cameras, columns)
        writer.add_episode({TOP: pictures(greys(4, 3))}, {"action": np.zeros((4, 2))})
    assert list(read(tmp_path / "set").values()) == [greys(3, 0), greys(4, 3)]


@pytest.mark.parametrize("name", ["a/b", "index", "", "{x}"])
def test_names_that_no_feature_can_have(tmp_path: Path, name: str) -> None:
    with (
        pytest.raises(ValueError, match="wanted names"),
        LeRobotWriter(tmp_path / "set", 10) as writer,
    ):
        writer.add_episode({}, {name: np.zeros(3)})
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_there_is_refused(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    (tmp_path / "set/mine").touch()
    with pytest.raises(FileExistsError, match="exists and is not empty"):
        LeRobotWriter(tmp_path / "set", 10)
    (tmp_path / "set/mine").unlink()
    writer = LeRobotWriter(tmp_path / "set", 10)  # an empty one is no dataset
    writer.add_episode({}, {"action": np.zeros(3)})
    (tmp_path / "set/mine").touch()
    with pytest.raises(FileExistsError, match="exists and is not empty"):
        writer.close()
    assert [path.name for path in tmp_path.rglob("*")] == ["set", "mine"]


def test_no_episode_is_no_dataset(tmp_path: Path) -> None:
    with (
        pytest.raises(ValueError, match="no episode was added"),
        LeRobotWriter(tmp_path / "set", 10),
    ):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_block_that_raises_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(KeyError), LeRobotWriter(tmp_path / "set", 10) as writer:
        writer.add_episode({TOP: pictures([0, 5])})
        raise KeyError
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_is_full_leaves_nothing(tmp_path: Path, monkeypatch) -> None:
    with pytest.raises(OSError, match="No space"), LeRobotWriter(tmp_path / "set", 10) as writer:
        writer.add_episode({}, {"action": np.zeros(3)})

        def full(*_) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr("torchrl_vip.data.lerobot.writer.arrow_column", full)
        with pytest.raises(OSError, match="No space"):
            writer.add_episode({}, {"action": np.zeros(3)})
        with pytest.raises(ValueError, match="writing failed before"):
            writer.add_episode({}, {"action": np.zeros(3)})
        raise OSError(28, "No space left on device")
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_writer_left_goes_with_the_next(tmp_path: Path) -> None:
    script = (
        "import sys, time, numpy as np\n"
        "from torchrl_vip.data.lerobot.writer import LeRobotWriter\n"
        "writer = LeRobotWriter(sys.argv[1], 10)\n"
        "writer.add_episode({}, {'action': np.zeros(3)})\n"
        "print('ready', flush=True)\n"
        "time.sleep(60)\n"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "set")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout.readline() == "ready\n"
        (left,) = tmp_path.iterdir()
        long_ago = time.time() - 1000
        os.utime(left, (long_ago, long_ago))
        other = LeRobotWriter(tmp_path / "set", 10)  # the first one is alive and keeps its own
        assert left.exists()
        other.discard()
        child.send_signal(signal.SIGKILL)
    os.utime(left, (long_ago, long_ago))
    with LeRobotWriter(tmp_path / "set", 10) as writer:
        writer.add_episode({}, {"action": np.zeros(3)})
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


# --- statistics -----------------------------------------------------------------------------------


def test_statistics_by_hand() -> None:
    stats = column_stats(np.array([[1.0, 10], [3, 10], [np.nan, 0]]))
    assert {k: stats[k].tolist() for k in ("min", "max", "mean", "std", "count")} == {
        "min": [1, 10],
        "max": [3, 10],
        "mean": [2, 10],
        "std": [1, 0],
        "count": [2],
    }
    assert stats["q50"].tolist() == [2, 10]
    nothing = column_stats(np.array([np.nan, np.inf]))
    assert nothing["count"] == [0] and np.isnan(nothing["mean"]).all()
    assert merge_stats(nothing, stats) is stats and merge_stats(stats, nothing) is stats


@settings(max_examples=30, deadline=None)
@given(st.lists(st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=9), min_size=2, max_size=4))
def test_merged_statistics_are_those_of_all(parts: list[list[float]]) -> None:
    merged = column_stats(np.array(parts[0]))
    for part in parts[1:]:
        merged = merge_stats(merged, column_stats(np.array(part)))
    wanted = column_stats(np.concatenate(parts))
    for name in ("min", "max", "mean", "std", "count"):
        np.testing.assert_allclose(merged[name], wanted[name], atol=1e-6)


def test_statistics_of_pictures_are_those_of_their_values() -> None:
    frames = np.random.default_rng(0).integers(0, 200, (5, 20, 30, 3), np.uint8)
    frames[..., 1] //= 2
    stats = PictureStats()
    for frame in frames:
        stats.update(frame)
    found, flat = stats.result(), frames.reshape(-1, 3) / 255
    for name, wanted in (
        ("min", flat.min(0)),
        ("max", flat.max(0)),
        ("mean", flat.mean(0)),
        ("std", flat.std(0)),
        ("q10", np.quantile(flat, 0.1, axis=0, method="inverted_cdf")),
        ("q99", np.quantile(flat, 0.99, axis=0, method="inverted_cdf")),
    ):
        np.testing.assert_allclose(found[name].reshape(3), wanted, err_msg=name)
        assert found[name].shape == (3, 1, 1)
    assert found["count"].tolist() == [5]
