"""LeRobot datasets as they are found: rates that differ, rows with holes, images, depth, other layouts."""

import io
import json
from pathlib import Path

import pytest
import torch
from clips import film, near
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from torchrl_vip.data.clip import Moments
from torchrl_vip.data.lerobot import camera_kind
from torchrl_vip.data.reading import measure, read_frames
from torchrl_vip.data.sources import find_clips
from torchrl_vip.data.video import NoReadableClipError, decode_lazily, decode_once

pyarrow = pytest.importorskip("pyarrow")
from pyarrow import parquet  # noqa: E402

TOP = "observation.images.top"
VIDEO = f"videos/{TOP}/chunk-000/file-000.mp4"
V2_VIDEO = f"videos/chunk-000/{TOP}/episode_{{:06d}}.mp4"
V2_PATH = "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4"
V3_PATH = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
LFS = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n"


def greys(count: int, first: int = 0) -> list[int]:
    return [5 * ((first + i) % 50) for i in range(count)]


def write_info(folder: Path, **info) -> None:
    (folder / "meta").mkdir(parents=True, exist_ok=True)
    info = {"fps": 10, "features": {TOP: {"dtype": "video"}}} | info
    (folder / "meta/info.json").write_text(json.dumps(info))


def row(index, length, start, **more) -> dict:
    """An episode's row of v3."""
    prefix = f"videos/{TOP}/"
    entries = {"chunk_index": 0, "file_index": 0, "from_timestamp": start}
    entries = {prefix + k: v for k, v in (entries | {"to_timestamp": None} | more).items()}
    return {"episode_index": index, "length": length, "tasks": ["push"]} | entries


def write_v3(folder: Path, rows: list[dict], **info) -> Path:
    write_info(folder, **{"codebase_version": "v3.0", "video_path": V3_PATH} | info)
    path = folder / "meta/episodes/chunk-000/file-000.parquet"
    path.parent.mkdir(parents=True)
    parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    return folder


def write_v2(folder: Path, lines: list, **info) -> Path:
    write_info(folder, **{"codebase_version": "v2.1", "video_path": V2_PATH} | info)
    text = "\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines)
    (folder / "meta/episodes.jsonl").write_text(text)
    return folder


def read(folder: Path, cache: Path) -> tuple[dict, dict, dict]:
    """Greys of each episode's frames, why others are skipped, and notes; the same both ways."""
    clips = find_clips(folder)
    tables = (
        decode_once(clips, 8, cache, progress=False),
        decode_lazily(clips, 8, progress=False),
    )
    once, lazily = (
        (
            {c.name.split("/")[-1]: near(t.clip_frames(i)) for i, c in enumerate(t.clips)},
            {name.split("/")[-1]: reason for name, reason in t.skipped.items()},
            {name.split("/")[-1]: note for name, note in t.notes.items()},
        )
        for t in tables
    )
    assert once == lazily
    return once


# --- time, not index ------------------------------------------------------------------------------


@pytest.mark.parametrize("start, length", [(1.0, 11), (1.06, 10)])
def test_an_episode_may_end_a_frame_after_its_file(tmp_path: Path, start, length) -> None:
    folder = write_v3(tmp_path / "set", [row(0, 10, 0.0), row(1, length, start)])
    film(folder / VIDEO, greys(20))
    frames, skipped, notes = read(folder, tmp_path / "cache")
    assert frames["episode_000001"] == greys(10, 10) and skipped == {}
    if length == 11:
        assert "10 of 11 frames" in notes["episode_000001"]


@pytest.mark.parametrize("fps, video_fps", [(29, 30), (10, 30), (30, 10)])
def test_frames_are_those_shown_at_an_episodes_times(tmp_path: Path, fps, video_fps) -> None:
    rows = [row(k, fps, float(k), to_timestamp=k + 1.0) for k in range(3)]
    folder = write_v3(tmp_path / "set", rows, fps=fps)
    film(folder / VIDEO, greys(3 * video_fps), video_fps)
    frames, _, _ = read(folder, tmp_path / "cache")
    for k in range(3):
        shown = [int(i / fps * video_fps + 0.25) for i in range(fps)]
        want = [greys(1, k * video_fps + j)[0] for j in shown]
        assert frames[f"episode_{k:06d}"] == want


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 25), st.integers(2, 12), st.floats(-0.02, 0.02))
def test_any_part_of_a_file_begins_and_ends_where_its_times_say(film_of_40, first, count, jitter):
    part = Moments(max(first / 10 + jitter, 0.0), 10.0, count)
    frames = near(torch.stack(list(read_frames(film_of_40, part))))
    assert measure(film_of_40, part)[0] == len(frames) == count
    assert frames == greys(count, first)


@pytest.fixture(scope="module")
def film_of_40(tmp_path_factory) -> Path:
    return film(tmp_path_factory.mktemp("film") / "film.mp4", greys(40), gop_size=2)


def test_an_episode_beyond_its_file_is_skipped_with_both_times(tmp_path: Path) -> None:
    folder = write_v3(tmp_path / "set", [row(0, 10, 0.0), row(1, 10, 55.0), row(2, 10, 1.5)])
    film(folder / VIDEO, greys(20))
    frames, skipped, _ = read(folder, tmp_path / "cache")
    assert list(frames) == ["episode_000000"]
    assert "begins at 55.00 s, but the file ends at 2.00 s" in skipped["episode_000001"]
    assert "5 of 10 frames" in skipped["episode_000002"]


def test_times_that_are_too_short_for_the_rate_are_skipped_with_both_rates(tmp_path: Path) -> None:
    rows = [row(k, 30, float(k), to_timestamp=k + 1.0) for k in range(2)]
    film(write_v3(tmp_path / "set", rows, fps=10) / VIDEO, greys(60), 30)
    with pytest.raises(NoReadableClipError, match="10 frames a second.* has 30 frames a second"):
        decode_lazily(find_clips(tmp_path / "set"), 8, progress=False)


def test_a_file_of_one_episode_is_read_by_time_or_frame_by_frame(tmp_path: Path) -> None:
    lines = [{"episode_index": k, "length": 10} for k in range(4)]
    folder = write_v2(tmp_path / "set", lines)
    for k, (count, fps) in enumerate(((10, 10), (30, 30), (10, 30), (9, 10))):
        film(folder / V2_VIDEO.format(k), greys(count), fps)
    frames, skipped, notes = read(folder, tmp_path / "cache")
    assert frames["episode_000000"] == frames["episode_000002"] == greys(10)
    assert frames["episode_000001"] == greys(30)[::3] and skipped == {}
    assert list(notes) == ["episode_000003"] and "9 of 10 frames" in notes["episode_000003"]


def test_a_file_that_was_cut_short_keeps_the_episodes_before(tmp_path: Path) -> None:
    folder = write_v3(tmp_path / "set", [row(k, 10, float(k)) for k in range(4)])
    whole = film(folder / "whole.mkv", greys(40), gop_size=5, codec_options={"crf": "0"})
    data = whole.read_bytes()
    (folder / VIDEO).parent.mkdir(parents=True)
    (folder / VIDEO).write_bytes(data[: int(0.6 * len(data))])
    frames, skipped, _ = read(folder, tmp_path / "cache")
    assert frames["episode_000000"] == greys(10) and "file ends" in skipped["episode_000003"]


# --- one bad row ----------------------------------------------------------------------------------

BAD = [
    {"chunk_index": None},
    {"file_index": 0.5},
    {"from_timestamp": None},
    {"from_timestamp": float("nan")},
    {"from_timestamp": -5.0},
    {"to_timestamp": 0.0},
    {"to_timestamp": float("inf")},
    {"length": None},
    {"length": -1},
    {"episode_index": None},
    {"file_index": 7},
]


@pytest.mark.parametrize("bad", BAD, ids=str)
def test_one_bad_row_is_skipped_by_name_and_the_others_are_used(tmp_path: Path, bad) -> None:
    rows = [row(k, 10, float(k)) for k in range(3)]
    rows[1] |= {k if k in rows[1] else f"videos/{TOP}/{k}": v for k, v in bad.items()}
    film(write_v3(tmp_path / "set", rows) / VIDEO, greys(30))
    frames, skipped, _ = read(tmp_path / "set", tmp_path / "cache")
    assert list(frames) == ["episode_000000", "episode_000002"]
    (reason,) = skipped.values()
    assert any(name in reason for name in ("episode_000001", "episode 1", ".parquet:1"))


def test_bad_lines_of_an_older_table_are_skipped_by_name(tmp_path: Path) -> None:
    bad = [
        '{"episode_index": 1, "len',
        "[1]",
        '{"length": 3}',
        '{"episode_index": 4, "length": null}',
    ]
    good = [{"episode_index": k, "length": 10, "tasks": None} for k in (0, 5)]
    folder = write_v2(tmp_path / "set", [good[0], *bad, "", good[1]])
    for k in range(6):
        film(folder / V2_VIDEO.format(k), greys(10, k))
    frames, skipped, _ = read(folder, tmp_path / "cache")
    assert frames == {"episode_000000": greys(10), "episode_000005": greys(10, 5)}
    assert set(skipped) == {*(f"episodes.jsonl:{n}" for n in (2, 3, 4)), "episode_000004"}


def test_one_table_of_episodes_that_cannot_be_read_is_skipped_by_name(tmp_path: Path) -> None:
    folder = write_v3(tmp_path / "set", [row(0, 10, 0.0)])
    film(folder / VIDEO, greys(10))
    (folder / "meta/episodes/chunk-000/file-001.parquet").write_text(LFS)
    (folder / "meta/episodes/chunk-000/file-002.parquet").write_bytes(b"PAR1")
    frames, skipped, _ = read(folder, tmp_path / "cache")
    assert list(frames) == ["episode_000000"] and len(skipped) == 2
    assert "git lfs pull" in skipped["file-001.parquet"]


# --- layouts --------------------------------------------------------------------------------------


@pytest.mark.parametrize("info", [{}, {"codebase_version": None, "video_path": None}])
def test_the_layout_is_what_lies_there(tmp_path: Path, info) -> None:
    lies = info or {"codebase_version": "v2.1", "video_path": V2_PATH}
    film(write_v3(tmp_path / "3", [row(0, 10, 0.0)], **lies) / VIDEO, greys(10))
    assert list(read(tmp_path / "3", tmp_path / "cache")[0]) == ["episode_000000"]
    lies = info or {"codebase_version": "v3.0", "video_path": V3_PATH}
    folder = write_v2(tmp_path / "2", [{"episode_index": 0, "length": 10}], **lies)
    film(folder / V2_VIDEO.format(0), greys(10))
    assert list(read(folder, tmp_path / "cache")[0]) == ["episode_000000"]


@pytest.mark.parametrize("write", [write_v2, lambda folder, rows: write_info(folder)])
def test_a_dataset_without_episodes_says_so(tmp_path: Path, write) -> None:
    write(tmp_path / "set", [])
    with pytest.raises(ValueError, match="without episodes yet"):
        find_clips(tmp_path / "set")


@pytest.mark.parametrize("fps", [None, 0, -3, "fast"])
def test_a_rate_that_cannot_be_is_taken_from_the_camera_or_named(tmp_path: Path, fps) -> None:
    film(write_v3(tmp_path / "set", [row(0, 10, 0.0)], fps=fps) / VIDEO, greys(10))
    with pytest.raises(NoReadableClipError, match=f"fps={fps}"):
        decode_lazily(find_clips(tmp_path / "set"), 8, progress=False)
    features = {TOP: {"dtype": "video", "info": {"video.fps": 10}}}
    write_info(tmp_path / "set", fps=fps, features=features, video_path=V3_PATH)
    assert read(tmp_path / "set", tmp_path / "cache")[0] == {"episode_000000": greys(10)}


# --- cameras --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name, feature, kind",
    [
        (TOP, {"dtype": "video"}, "video"),
        (TOP, {"dtype": "image", "shape": [9, 9, 3], "names": ["h", "w", "c"]}, "image"),
        (TOP, {"dtype": "video", "info": {"video.is_depth_map": False}}, "video"),
        (TOP, {"dtype": "video", "info": {"video.is_depth_map": True}}, "depth"),
        (TOP, {"dtype": "video", "video_info": {"is_depth_map": "True"}}, "depth"),
        (TOP, {"dtype": "video", "is_depth_map": True}, "depth"),
        (TOP + "_depth", {"dtype": "video"}, "depth"),
        (
            TOP,
            {"dtype": "video", "shape": [9, 9, 1], "names": ["height", "width", "channel"]},
            "depth",
        ),
        (TOP, {"dtype": "image", "shape": [1, 9, 9]}, "depth"),
        (TOP, {"dtype": "image", "shape": [9, 9]}, "depth"),
        (TOP, {"dtype": "video", "info": {"video.channels": 1}}, "depth"),
        (TOP, {"dtype": "float32"}, ""),
        (TOP, None, ""),
    ],
)
def test_which_features_are_cameras(name: str, feature, kind: str) -> None:
    assert camera_kind(name, feature) == kind


def test_depth_is_left_out_and_said(tmp_path: Path) -> None:
    features = {TOP: {"dtype": "video"}, TOP + "_depth": {"dtype": "video"}}
    film(write_v3(tmp_path, [row(0, 10, 0.0)], features=features) / VIDEO, greys(10))
    with pytest.warns(UserWarning, match="left out as no camera: observation.images.top_depth"):
        (clip,) = find_clips(tmp_path)
    assert clip.labels["camera"] == TOP
    write_info(tmp_path, features={TOP + "_depth": {"dtype": "video"}})
    with pytest.raises(ValueError, match="holds no video episode.*left out: .*top_depth"):
        find_clips(tmp_path)


def encoded(grey: int, kind: str = "PNG") -> bytes:
    data = io.BytesIO()
    Image.new("RGB", (12, 12), (grey,) * 3).save(data, kind)
    return data.getvalue()


def image_set(folder: Path, cell, *, version: int, group: int = 4) -> Path:
    """Two episodes of ten frames, of which ``cell(episode, frame)`` is the value in the data."""
    features = {TOP: {"dtype": "image", "shape": [12, 12, 3]}}
    rows = [
        {TOP: cell(k, i), "episode_index": k, "frame_index": i} for k in range(2) for i in range(10)
    ]
    if version == 2:
        lines = [{"episode_index": k, "length": 10} for k in range(2)]
        write_v2(folder, lines, features=features, video_path=None)
        files = {f"data/chunk-000/episode_{k:06d}.parquet": rows[10 * k :][:10] for k in range(2)}
    else:
        place = {"data/chunk_index": 0, "data/file_index": 0, "length": 10}
        episodes = [{"episode_index": k} | place for k in range(2)]
        write_v3(folder, episodes, features=features, video_path=None)
        files = {"data/chunk-000/file-000.parquet": rows[::-1]}  # their order is in frame_index
    for name, lines in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        table = pyarrow.Table.from_pylist([line for line in lines if line[TOP] != "absent"])
        parquet.write_table(table, folder / name, row_group_size=group)
    return folder


WANTED = {"episode_000000": greys(10), "episode_000001": greys(10, 20)}


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "bare"])
def test_images_in_the_data_are_clips(tmp_path: Path, version: int, kind: str) -> None:
    def cell(k: int, i: int):
        data = encoded(5 * (20 * k + i), "PNG" if kind == "bare" else kind)
        return data if kind == "bare" else {"bytes": data, "path": "frame.png"}

    folder = image_set(tmp_path / "set", cell, version=version)
    assert read(folder, tmp_path / "cache") == (WANTED, {}, {})


@pytest.mark.parametrize("named", [True, False])
def test_images_in_files_are_clips(tmp_path: Path, named: bool) -> None:
    folder = tmp_path / "set"
    for k in range(2):
        for i in range(10):
            place = "pictures" if named else f"images/{TOP}/episode_{k:06d}"
            path = folder / place / (f"{k}_{i}.png" if named else f"frame_{i:06d}.png")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(encoded(5 * (20 * k + i)))
    cell = (lambda k, i: {"bytes": None, "path": f"pictures/{k}_{i}.png"}) if named else None
    image_set(folder, cell or (lambda k, i: 0), version=3)
    assert read(folder, tmp_path / "cache") == (WANTED, {}, {})


def test_images_that_are_missing_are_named(tmp_path: Path) -> None:
    def cell(k: int, i: int):
        return "absent" if k == 0 and i > 4 else encoded(5 * (20 * k + i))

    folder = image_set(tmp_path / "short", cell, version=3)
    frames, skipped, _ = read(folder, tmp_path / "cache")
    assert list(frames) == ["episode_000001"] and "5 of 10 frames" in skipped["episode_000000"]

    def hole(k: int, i: int):
        return {"bytes": None if (k, i) == (0, 4) else encoded(5 * i), "path": None}

    folder = image_set(tmp_path / "hole", hole, version=2)
    table = decode_once(find_clips(folder), 8, tmp_path / "cache", progress=False)
    assert "row 4 of" in table.skipped[f"{TOP}/episode_000000"] and len(table.clips) == 1
    for path in (folder / "data").rglob("*.parquet"):
        path.write_text(LFS)
    with pytest.raises(NoReadableClipError, match="git lfs pull"):
        decode_lazily(find_clips(folder), 8, progress=False)
