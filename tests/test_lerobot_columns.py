"""LeRobot datasets with further columns: all that describes them is kept up, and nothing is lost."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from clips import film, near
from hypothesis import given, settings
from hypothesis import strategies as st

from torchrl_vip import files
from torchrl_vip.data.reading import read_frames
from torchrl_vip.data.sources import find_clips

pyarrow = pytest.importorskip("pyarrow")
pytest.importorskip("av")
from pyarrow import parquet  # noqa: E402

from torchrl_vip.data.lerobot import columns as lerobot_columns  # noqa: E402
from torchrl_vip.data.lerobot.columns import episode_rows, in_place, with_columns  # noqa: E402
from torchrl_vip.data.lerobot.progress import write_progress  # noqa: E402
from torchrl_vip.data.lerobot.writer import LeRobotWriter  # noqa: E402

TOP = "observation.images.top"
LENGTHS = [4, 3, 6]
DIM = 5


def columns(episode: int) -> dict[str, np.ndarray]:
    """What the tests add: a value tells its episode and frame."""
    frame = np.arange(LENGTHS[episode])
    vectors = 10 * episode + frame[:, None] + np.arange(DIM) / 10
    return {
        "next.reward": (episode + frame / 100).astype(np.float32),
        "observation.vip": vectors.astype(np.float32),
    }


def write_v3(root: Path, per_file: int | None = 2, lengths: list[int] = LENGTHS) -> Path:
    with LeRobotWriter(root, 10, episodes_per_file=per_file) as writer:
        for k, n in enumerate(lengths):
            frames = [np.full((16, 16, 3), 5 * (20 * k + i) % 250, np.uint8) for i in range(n)]
            writer.add_episode({TOP: frames}, {"action": np.ones((n, 2), np.float32) * k}, "push")
    (root / "README.md").write_text("mine")
    return root


def write_v2(root: Path, *, totals: bool = False) -> Path:
    """As v2.1 has it; ``totals``: as v2.0."""
    features = {TOP: {"dtype": "video", "shape": [16, 16, 3]}}
    features["action"] = {"dtype": "float32", "shape": [2], "names": None}
    for name in ("index", "episode_index", "frame_index"):
        features[name] = {"dtype": "int64", "shape": [1], "names": None}
    info = {"codebase_version": "v2.1", "fps": 10, "features": features, "total_episodes": 3}
    (root / "meta").mkdir(parents=True)
    (root / "meta/info.json").write_text(json.dumps(info))
    lines, stats, begin = [], [], 0
    for k, n in enumerate(LENGTHS):
        film(
            root / f"videos/chunk-000/{TOP}/episode_{k:06d}.mp4",
            [5 * (20 * k + i) for i in range(n)],
        )
        table = {"action": [[k, k]] * n, "frame_index": range(n), "episode_index": [k] * n}
        table["index"] = range(begin, begin + n)
        path = root / f"data/chunk-000/episode_{k:06d}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        parquet.write_table(pyarrow.table({a: list(b) for a, b in table.items()}), path)
        lines.append({"episode_index": k, "length": n, "tasks": ["push"]})
        stats.append({"episode_index": k, "stats": {"action": {"mean": [k, k], "count": [n]}}})
        begin += n
    (root / "meta/episodes.jsonl").write_text("\n".join(map(json.dumps, lines)))
    if totals:
        (root / "meta/stats.json").write_text(json.dumps({"action": {"mean": [1, 1]}}))
    else:
        (root / "meta/episodes_stats.jsonl").write_text("\n".join(map(json.dumps, stats)) + "\n")
    return root


def data(root: Path) -> dict[str, list]:
    tables = [parquet.read_table(path) for path in sorted((root / "data").rglob("*.parquet"))]
    return pyarrow.concat_tables(tables).to_pydict()


def digest(root: Path) -> dict[str, str]:
    """Contents of all files below a folder."""
    paths = sorted(path for path in root.rglob("*") if path.is_file())
    return {
        path.relative_to(root).as_posix(): hashlib.sha1(path.read_bytes()).hexdigest()
        for path in paths
    }


def check(root: Path, before: dict[str, list]) -> None:
    """The columns are there, the others are as they were, and info.json has them."""
    after = data(root)
    for name, values in before.items():
        assert after[name] == values, name
    wanted = [columns(k) for k in range(len(LENGTHS))]
    for name in ("next.reward", "observation.vip"):
        np.testing.assert_array_equal(after[name], np.concatenate([w[name] for w in wanted]))
    features = json.loads((root / "meta/info.json").read_text())["features"]
    assert features["next.reward"] == {"dtype": "float32", "shape": [1], "names": None}
    assert features["observation.vip"] == {"dtype": "float32", "shape": [DIM], "names": None}
    clips = find_clips(root)
    for k, clip in enumerate(clips):
        frames = torch.stack(list(read_frames(clip.path, clip.span)))
        assert near(frames) == [5 * (20 * k + i) for i in range(LENGTHS[k])]


# --- with_columns ---------------------------------------------------------------------------------


@pytest.mark.parametrize("per_file", [1, 2, None])
def test_v3_has_the_columns_everywhere(tmp_path: Path, per_file) -> None:
    source = write_v3(tmp_path / "set", per_file)
    untouched, before = digest(source), data(source)
    assert with_columns(source, tmp_path / "out", columns, progress=False) == tmp_path / "out"
    check(tmp_path / "out", before)
    assert digest(source) == untouched
    assert (tmp_path / "out/README.md").read_text() == "mine"
    stats = json.loads((tmp_path / "out/meta/stats.json").read_text())
    rewards = np.concatenate([columns(k)["next.reward"] for k in range(3)])
    assert stats["next.reward"]["mean"] == [pytest.approx(rewards.mean())]
    assert stats["next.reward"]["std"] == [pytest.approx(rewards.std())]
    assert stats["next.reward"]["count"] == [13] and "q99" in stats["observation.vip"]
    assert stats["action"]["max"] == [2, 2]  # as it was
    (listed,) = (tmp_path / "out/meta/episodes").rglob("*.parquet")
    rows = parquet.read_table(listed).to_pylist()
    assert [row["stats/next.reward/count"] for row in rows] == [[4], [3], [6]]
    assert rows[1]["stats/observation.vip/min"] == pytest.approx([10, 10.1, 10.2, 10.3, 10.4])
    assert rows[2]["stats/next.reward/q50"] == [pytest.approx(2.025)]
    schema = parquet.read_schema(tmp_path / "out/data/chunk-000/file-000.parquet")
    said = json.loads(schema.metadata[b"huggingface"])["info"]["features"]
    assert list(said) == schema.names
    assert said["next.reward"] == {"dtype": "float32", "_type": "Value"}
    assert said["observation.vip"]["length"] == DIM
    assert schema.field("observation.vip").type == pyarrow.list_(pyarrow.float32(), DIM)


@pytest.mark.parametrize("totals", [False, True])
def test_v2_has_the_columns_everywhere(tmp_path: Path, totals: bool) -> None:
    source = write_v2(tmp_path / "set", totals=totals)
    before = data(source)
    with_columns(source, tmp_path / "out", columns, progress=False)
    check(tmp_path / "out", before)
    schema = parquet.read_schema(tmp_path / "out/data/chunk-000/episode_000000.parquet")
    assert schema.metadata is None  # of "huggingface" there was nothing to keep up
    if totals:
        stats = json.loads((tmp_path / "out/meta/stats.json").read_text())
        assert stats["next.reward"]["count"] == [13] and "q99" not in stats["next.reward"]
        assert stats["action"] == {"mean": [1, 1]}
        return
    lines = (tmp_path / "out/meta/episodes_stats.jsonl").read_text().splitlines()
    stats = [json.loads(line)["stats"] for line in lines]
    assert [s["action"]["mean"] for s in stats] == [[0, 0], [1, 1], [2, 2]]
    assert [s["next.reward"]["count"] for s in stats] == [[4], [3], [6]]
    assert stats[1]["observation.vip"]["max"] == pytest.approx([12, 12.1, 12.2, 12.3, 12.4])
    assert set(stats[0]["next.reward"]) == {"min", "max", "mean", "std", "count"}


@settings(max_examples=8, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 6), min_size=1, max_size=5),
    size=st.integers(1, 4),
    dtype=st.sampled_from(["float16", "float32", "float64", "int64", "bool"]),
    group=st.integers(1, 7),
)
def test_any_rows_in_any_order(tmp_path_factory, lengths, size, dtype, group) -> None:
    """Rows of a data file may be mixed and cut into groups at will."""
    folder = tmp_path_factory.mktemp("columns")
    source = write_v3(folder / "set", None, lengths)
    (path,) = (source / "data").rglob("*.parquet")
    table = parquet.read_table(path)
    order = np.random.default_rng(0).permutation(table.num_rows)
    parquet.write_table(table.take(order), path, row_group_size=group, compression="zstd")

    def column(episode: int) -> dict[str, np.ndarray]:
        values = np.random.default_rng(episode).normal(size=(lengths[episode], size))
        return {"new": (values * 10).astype(dtype)}

    with_columns(source, folder / "out", column, progress=False)
    after = data(folder / "out")
    places = zip(after["episode_index"], after["frame_index"], strict=True)
    rows = dict(zip(places, after["new"], strict=True))
    for episode, length in enumerate(lengths):
        wanted = column(episode)["new"].reshape(length, size)
        found = [np.reshape(rows[(episode, i)], size) for i in range(length)]
        np.testing.assert_array_equal(found, wanted)
    (path,) = (folder / "out/data").rglob("*.parquet")
    metadata = parquet.read_metadata(path)
    assert metadata.row_group(0).num_rows == min(group, sum(lengths))
    assert metadata.row_group(0).column(0).compression == "ZSTD"


def test_frames_that_were_not_read_are_nan_and_leave_the_statistics_alone(tmp_path: Path) -> None:
    def reward(episode: int) -> dict[str, np.ndarray]:
        values = np.ones(LENGTHS[episode], np.float32)
        values[: 4 if episode == 0 else 1] = np.nan
        return {"next.reward": values}

    with_columns(write_v3(tmp_path / "set"), tmp_path / "out", reward, progress=False)
    stats = json.loads((tmp_path / "out/meta/stats.json").read_text())["next.reward"]
    assert (stats["mean"], stats["std"], stats["count"]) == ([1], [0], [7])


def test_columns_that_are_there_are_replaced_only_if_asked(tmp_path: Path) -> None:
    source = write_v3(tmp_path / "set")
    with_columns(source, tmp_path / "once", columns, progress=False)

    def other(episode: int) -> dict[str, np.ndarray]:
        return {"next.reward": np.full((LENGTHS[episode], 2), 7.0)}

    with pytest.raises(ValueError, match=r"has next\.reward already: overwrite=True replaces"):
        with_columns(tmp_path / "once", tmp_path / "twice", other, progress=False)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["once", "set"]
    with_columns(tmp_path / "once", tmp_path / "twice", other, overwrite=True, progress=False)
    assert data(tmp_path / "twice")["next.reward"] == [[7.0, 7.0]] * 13
    assert list(data(tmp_path / "twice")) == list(data(tmp_path / "once"))
    (listed,) = (tmp_path / "twice/meta/episodes").rglob("*.parquet")
    assert parquet.read_table(listed)["stats/next.reward/max"].to_pylist() == [[7, 7]] * 3


@pytest.mark.parametrize(
    "bad, said",
    [
        (
            lambda k: {"x": np.zeros(LENGTHS[k] + (k == 1))},
            r"episode 1 of 3 frames: given x float64 \[4",
        ),
        (
            lambda k: {"x": np.zeros((LENGTHS[k], 2 + (k == 1)))},
            r"given x float64 \[3, 3\]; wanted .*2",
        ),
        (lambda k: {"x": np.zeros(LENGTHS[k], int if k == 2 else float)}, "given x int64"),
        (lambda k: {"x" if k < 2 else "y": np.zeros(LENGTHS[k])}, "given y float64.*wanted x"),
        (lambda k: {}, "columns without a name"),
        (lambda k: {"frame_index": np.zeros(LENGTHS[k])}, "frame_index"),
        (lambda k: {TOP: np.zeros(LENGTHS[k])}, "none of the cameras"),
        (lambda k: {"a/b": np.zeros(LENGTHS[k])}, "without a slash"),
    ],
)
def test_columns_that_cannot_be_leave_nothing(tmp_path: Path, bad, said) -> None:
    source = write_v3(tmp_path / "set")
    before = digest(tmp_path)
    for write in (
        lambda: with_columns(source, tmp_path / "out", bad),
        lambda: in_place(source, bad),
    ):
        with pytest.raises(ValueError, match=said):
            write()
        assert digest(tmp_path) == before
        assert [path.name for path in tmp_path.iterdir()] == ["set"]


def test_sources_that_cannot_be(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no LeRobot dataset"):
        with_columns(tmp_path / "none", tmp_path / "out", columns)
    source = write_v3(tmp_path / "set")
    with pytest.raises(ValueError, match="outside"):
        with_columns(source, source / "out", columns)
    (tmp_path / "out").mkdir()
    (tmp_path / "out/mine").touch()
    with pytest.raises(FileExistsError, match="not empty"):
        with_columns(source, tmp_path / "out", columns)
    path = source / "data/chunk-000/file-001.parquet"
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n")
    with pytest.raises(ValueError, match="git lfs pull"):
        in_place(source, columns)
    shutil.rmtree(source / "data")
    with pytest.raises(ValueError, match="no parquet files in data/"):
        in_place(source, columns)


def test_no_room_is_said_before_anything_is_written(tmp_path: Path, monkeypatch) -> None:
    source = write_v3(tmp_path / "set")
    size = sum(path.stat().st_size for path in source.rglob("*") if path.is_file())
    needed = size + 13 * 4 * (1 + DIM)
    small = sum(path.stat().st_size for path in source.rglob("*.parquet"))
    for free, write in (
        (needed - 1, lambda: with_columns(source, tmp_path / "out", columns, progress=False)),
        (small, lambda: in_place(source, columns, progress=False)),
    ):
        usage = SimpleNamespace(free=free)
        monkeypatch.setattr(files.shutil, "disk_usage", lambda _, usage=usage: usage)
        with pytest.raises(OSError, match=f"bytes are needed at .* and {free:,} are free"):
            write()
        assert [path.name for path in tmp_path.iterdir()] == ["set"]
    monkeypatch.setattr(files.shutil, "disk_usage", lambda _: SimpleNamespace(free=needed))
    with_columns(source, tmp_path / "out", columns, progress=False)
    videos = sum(path.stat().st_size for path in source.rglob("*.mp4"))
    monkeypatch.setattr(files.shutil, "disk_usage", lambda _: SimpleNamespace(free=needed - videos))
    in_place(source, columns, progress=False)  # videos are linked


def test_a_disk_that_gives_back_something_else_is_noticed(tmp_path: Path, monkeypatch) -> None:
    source = write_v3(tmp_path / "set")
    monkeypatch.setattr(lerobot_columns, "put_column", lambda table, *_: table)
    with pytest.raises((ValueError, KeyError)):
        in_place(source, columns, progress=False)
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


# --- in place -------------------------------------------------------------------------------------


@pytest.mark.parametrize("links", [True, False])
@pytest.mark.parametrize("exchange", [True, False])
@pytest.mark.parametrize("write", [write_v3, write_v2])
def test_in_place_is_the_same_as_a_copy(tmp_path, monkeypatch, write, exchange, links) -> None:
    source = write(tmp_path / "set")
    with_columns(source, tmp_path / "out", columns, progress=False)
    wanted = digest(tmp_path / "out")
    shutil.rmtree(tmp_path / "out")
    (source / ".git").mkdir()
    (source / ".git/config").write_text("mine")
    if not exchange:
        monkeypatch.setattr(files, "_exchange", lambda *_: False)
    if not links:

        def refuse(*_) -> None:
            raise OSError(1, "Operation not permitted")

        monkeypatch.setattr(os, "link", refuse)
    (tmp_path / "link").symlink_to(source)
    assert in_place(tmp_path / "link", columns, progress=False) == tmp_path / "link"
    found = digest(source)
    assert found.pop(".git/config") and found == wanted
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "set"]


@pytest.mark.parametrize("write", [with_columns, in_place])
def test_a_dataset_of_links_as_in_the_hubs_cache(tmp_path: Path, write) -> None:
    blobs = write_v3(tmp_path / "blobs")
    before, kept = data(blobs), digest(blobs)
    for path in [path for path in blobs.rglob("*") if path.is_file()]:
        link = tmp_path / "snapshot" / path.relative_to(blobs)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(os.path.relpath(path, link.parent))
    if write is with_columns:
        with_columns(tmp_path / "snapshot", tmp_path / "out", columns, progress=False)
        check(tmp_path / "out", before)
    else:
        in_place(tmp_path / "snapshot", columns, progress=False)
        check(tmp_path / "snapshot", before)
    assert digest(blobs) == kept
    assert not [path for path in (tmp_path / "out").rglob("*") if path.is_symlink()]


KILLED = """
import os, shutil, signal, sys
from pathlib import Path
import pyarrow.dataset, pyarrow.parquet, tqdm  # once, not in each process
tqdm.tqdm.get_lock()
os.fsync = lambda _: None  # of a power cut; a killed process needs none
sys.path.insert(0, sys.argv[1])
from test_lerobot_columns import columns, digest, in_place, write_v3
from torchrl_vip import files
folder = Path(sys.argv[2])
if sys.argv[3] == "two steps":
    files._exchange = lambda *_: False
EVENTS = ("os.mkdir", "os.link", "os.rename", "os.remove", "os.rmdir", "open")

def run(limit):
    '''A process that dies at its event number ``limit``; True where it came to its end.'''
    if not (child := os.fork()):
        count = 0
        def hook(event, _):
            nonlocal count
            if event in EVENTS:
                count += 1
                if count == limit:
                    os.kill(os.getpid(), signal.SIGKILL)
        files.FOLDER_AGE = 0
        sys.addaudithook(hook)
        in_place(folder / "set", columns, overwrite=True, progress=False)
        (folder / "events").write_text(str(count))
        os._exit(0)
    return os.waitpid(child, 0)[1] == 0

write = os.fork() or (write_v3(folder / "origin"), os._exit(0))
os.waitpid(write, 0)
shutil.copytree(folder / "origin", folder / "set")
assert run(0)
old, new = digest(folder / "origin"), digest(folder / "set")
assert old != new
exchange, events = sys.argv[3] == "exchange", int((folder / "events").read_text())
limit, step, states = (1, 2, []) if exchange else (events - 40, 1, [])  # the renames are near the end
while True:
    shutil.rmtree(folder / "set")
    shutil.copytree(folder / "origin", folder / "set")
    done = run(limit)
    if not (folder / "set").exists():
        assert not exchange
        states.append("absent")
    else:
        states.append({str(old): "old", str(new): "new"}[str(digest(folder / "set"))])
    assert run(0) and digest(folder / "set") == new  # the next call ends it
    left = [path.name for path in folder.iterdir() if path.name[0] == "."]
    assert not left, left
    if done:
        break
    limit += step
print(len(states), *sorted(set(states)))
"""


@pytest.mark.slow
@pytest.mark.parametrize("steps", ["exchange", "two steps"])
def test_killed_at_any_moment_the_old_or_the_new_is_there(tmp_path: Path, steps: str) -> None:
    """Where two names cannot be exchanged the dataset may be absent, until the next call."""
    here = str(Path(__file__).parent)
    done = subprocess.run(
        [sys.executable, "-c", KILLED, here, str(tmp_path), steps], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    kills, *states = done.stdout.split()
    assert int(kills) > 20
    assert states == (["new", "old"] if steps == "exchange" else ["absent", "new", "old"])


# --- the sidecar ----------------------------------------------------------------------------------


def progress_rows(root: Path) -> dict[str, np.ndarray]:
    rows = list(episode_rows(root))
    return {
        "index": np.concatenate([r.index for r in rows]),
        "episode_index": np.concatenate([np.full(len(r.rows), r.episode) for r in rows]),
        "frame_index": np.concatenate([r.frame_index for r in rows]),
        "progress_sparse": np.concatenate([np.linspace(0, 1, len(r.rows)) for r in rows]),
    }


@pytest.mark.parametrize("write", [write_v3, write_v2])
def test_progress_is_written_as_ra_bc_reads_it(tmp_path: Path, write) -> None:
    root = write(tmp_path / "set")
    rows = progress_rows(root)
    rows["progress_sparse"][2] = np.nan
    shuffled = np.random.default_rng(0).permutation(13)
    given = {k: v[shuffled] for k, v in rows.items()} | {"distance": np.arange(13.0)[shuffled]}
    path = write_progress(root, given, encoder="tiny")
    assert path == root / "vip_progress.parquet"
    table = parquet.read_table(path)
    assert table.schema.metadata == {b"reward_model_path": b"tiny"}
    assert [(f.name, str(f.type)) for f in table.schema] == [
        ("index", "int64"),
        ("episode_index", "int64"),
        ("frame_index", "int64"),
        ("progress_sparse", "float"),
        ("distance", "double"),
    ]
    found = table.to_pydict()
    assert found["index"] == list(range(13)) and found["distance"] == list(range(13))
    assert found["frame_index"] == [0, 1, 2, 3, 0, 1, 2, 0, 1, 2, 3, 4, 5]
    assert np.isnan(found["progress_sparse"][2]) and found["progress_sparse"][3:5] == [1, 0]


@pytest.mark.parametrize(
    "name, value, said",
    [
        ("progress_sparse", 1.5, r"1\.5 in row 0: wanted \[0, 1\] or NaN"),
        ("progress_sparse", -0.1, "row 0"),
        ("progress_dense", None, "no column|wanted float32"),
        ("index", 1, "index 1 is there twice"),
        ("frame_index", 0.5, "frame_index is float64"),
    ],
)
def test_progress_that_cannot_be(tmp_path: Path, name: str, value, said: str) -> None:
    rows = progress_rows(write_v2(tmp_path / "set"))
    if value is None:
        rows[name] = np.arange(13)
    else:
        rows[name] = np.array([value, *rows[name][1:]])
    with pytest.raises(ValueError, match=said):
        write_progress(tmp_path / "set", rows, encoder="tiny")
    assert not (tmp_path / "set/vip_progress.parquet").exists()
    del rows["episode_index"]
    with pytest.raises(ValueError, match="no column episode_index"):
        write_progress(tmp_path / "set", rows, encoder="tiny")
    with pytest.raises(ValueError, match="several lengths"):
        write_progress(tmp_path / "set", rows | {"episode_index": np.zeros(3, int)}, encoder="tiny")
