"""Sources of clips: folders, Ego4D manifests, LeRobot datasets; and the two ways to store them."""

import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest
import torch
from clips import greys, ramp, write_folder

from torchrl_vip.data.sources import Clip, find_clips
from torchrl_vip.data.video import (
    decode_at,
    decode_lazily,
    decode_once,
    frame_files,
    read_clip,
    write_video,
)

# --- find_clips -----------------------------------------------------------------------------------


def test_videos_and_nested_folders_are_found_sorted_and_hidden_ones_are_not(tmp_path: Path) -> None:
    write_folder(tmp_path / "b" / "deep", 2)
    for name in ("a.mp4", "b/C.MP4", ".trash/x.mp4", "b/.x.mp4", "notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / ".trash" / "manifest.json").write_text("not json")
    assert [clip.name for clip in find_clips(tmp_path)] == ["a.mp4", "b/C.MP4", "b/deep"]


def test_pictures_beside_videos_are_no_clip(tmp_path: Path) -> None:
    write_folder(tmp_path / "source", 2)
    (tmp_path / "source" / "a.mp4").touch()
    write_folder(tmp_path / "source" / "frames", 2)
    assert [clip.name for clip in find_clips(tmp_path / "source")] == ["a.mp4", "frames"]


def test_a_cover_beside_frames_is_no_frame(tmp_path: Path) -> None:
    write_folder(tmp_path / "source/clip", 3)
    shutil.copy(tmp_path / "source/clip/0.png", tmp_path / "source/clip/cover.png")
    (clip,) = find_clips(tmp_path / "source")
    assert greys(read_clip(clip, 8)) == [0, 10, 20]


def test_frames_are_in_order_and_hidden_files_and_folders_are_none(tmp_path: Path) -> None:
    names = ["0.05", "0.1", "0.15", "0.2", "0.25", "10.5"]
    for name in ["._0.1", *names]:
        (tmp_path / f"{name}.png").touch()
    (tmp_path / "3.0.png").mkdir()
    assert [p.stem for p in frame_files(tmp_path)] == names
    for name in ("a9", "a10", "b2"):
        (tmp_path / f"{name}.png").touch()
    assert [p.stem for p in frame_files(tmp_path)][-3:] == ["a9", "a10", "b2"]


@pytest.mark.parametrize("inside", ["meta/info.json", "manifest.csv"])
def test_a_folder_of_datasets_is_not_read_as_plain_videos(tmp_path: Path, inside: str) -> None:
    for name in ("a", "b"):
        (tmp_path / name / inside).parent.mkdir(parents=True)
        (tmp_path / name / inside).touch()
        (tmp_path / name / "video.mp4").touch()
    with pytest.raises(ValueError, match=r"holds datasets: .*\[.*a,.*b\]"):
        find_clips(tmp_path)


def test_clips_behind_links_are_found_once_even_where_a_link_leads_back(tmp_path: Path) -> None:
    disk, source = tmp_path / "disk", tmp_path / "source"
    write_folder(disk / "lab" / "clip", 2)
    (disk / "a.mp4").touch()
    source.mkdir()
    (source / "videos").symlink_to(disk)
    (disk / "lab" / "up").symlink_to(source)
    assert [clip.name for clip in find_clips(source)] == ["videos/a.mp4", "videos/lab/clip"]


def test_labels_come_from_index_and_manifest_also_beside_a_clips_folder(tmp_path: Path) -> None:
    for name in ("one/clips/0.mp4", "two/x.mp4", "two/y.mp4"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "one/index.json").write_text('[{"file": "0.mp4", "lab": "L"}]')
    (tmp_path / "two/manifest.json").write_text('[{"file": "y.mp4", "success": false}]')
    labels = {clip.name: clip.labels for clip in find_clips(tmp_path)}
    assert labels == {"one/clips/0.mp4": {"lab": "L"}, "two/x.mp4": {}, "two/y.mp4": {"success": 0}}


@pytest.mark.parametrize("text", ['{"name": "a web manifest"}', '[{"task": "push"}]', "[{"])
def test_an_index_that_is_no_list_of_files_is_an_error_that_names_it(tmp_path, text) -> None:
    (tmp_path / "a.mp4").touch()
    (tmp_path / "index.json").write_text(text)
    with pytest.raises(ValueError, match=r"index\.json cannot be used.*\"file\""):
        find_clips(tmp_path)


def test_missing_and_empty_folders_are_errors_that_say_what_was_wanted(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere is no folder"):
        find_clips(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"holds no clip; wanted video files .*\.mp4.*numbered"):
        find_clips(tmp_path)


# --- Ego4D ----------------------------------------------------------------------------------------


def write_ego4d(folder: Path) -> Path:
    """Two clips as the official code names them; the second has more frames than its "len"."""
    for name, count, first in (("a", 3, 0), ("b", 5, 100)):
        clip = write_folder(folder / "frames" / name, count, first)
        for t in range(count):
            (clip / f"{t}.png").rename(clip / f"{t:06}.png")
    text = "path,len,txt\nframes/b/,4,opens a box\nframes/a/,3,cuts\n"
    (folder / "manifest.csv").write_text(text)
    return folder


def test_a_manifest_may_have_been_saved_by_a_spreadsheet(tmp_path: Path) -> None:
    (tmp_path / "manifest.csv").write_text("path,len\na,3\n", encoding="utf-8-sig")
    assert [clip.name for clip in find_clips(tmp_path)] == ["a"]


def test_an_ego4d_manifest_gives_its_clips_as_long_as_it_says(tmp_path: Path) -> None:
    folder = write_ego4d(tmp_path)
    for source in (folder, folder / "manifest.csv"):
        a, b = find_clips(source)
        assert (a.labels, b.labels) == ({"txt": "cuts"}, {"txt": "opens a box"})
        assert greys(read_clip(a, 8)) == [0, 10, 20]
        assert greys(read_clip(b, 8)) == [100, 110, 120, 130]


@pytest.mark.parametrize("no, yes", [("False", "true"), ("0", "1"), ("", "yes")])
def test_a_false_in_a_manifest_is_false(tmp_path: Path, no: str, yes: str) -> None:
    folder = write_ego4d(tmp_path)
    (folder / "manifest.csv").write_text(f"path,len,success\nframes/a/,3,{no}\nframes/b/,4,{yes}\n")
    assert [clip.success for clip in find_clips(folder)] == [False, True]


def test_a_success_that_nobody_judged_counts() -> None:
    assert Clip(Path("a"), "a", {"success": None}).success
    assert not Clip(Path("a"), "a", {"success": False}).success


def test_a_clip_of_negative_length_is_named_and_left_out(tmp_path: Path) -> None:
    folder = write_ego4d(tmp_path)
    (folder / "manifest.csv").write_text("path,len\nframes/a/,-2\nframes/b/,4\n")
    for decode in (partial(decode_once, cache=tmp_path / "cache"), decode_lazily):
        table = decode(find_clips(folder), 8, progress=False)
        assert [clip.name for clip in table.clips] == ["frames/b"]
        assert list(table.skipped) == ["frames/a"]


def test_labels_of_clips_that_are_not_there_are_told(tmp_path: Path) -> None:
    write_folder(tmp_path / "a", 2)
    entries = [{"file": "a", "task": "push"}, {"file": "b.mp4", "task": "pull"}]
    (tmp_path / "index.json").write_text(json.dumps(entries))
    with pytest.warns(UserWarning, match="1 of 2 entries .* name no clip there, such as .*b.mp4"):
        (clip,) = find_clips(tmp_path)
    assert clip.labels == {"task": "push"}


def test_a_scene_may_have_the_number_zero() -> None:
    def scene(**labels) -> str | None:
        return Clip(Path("a"), "a", labels).scene

    assert [scene(group=i, task="push") for i in (0, 1)] == ["0", "1"]
    assert scene(task=0) == "0" and scene(task=0, camera=0) == "0/0"
    assert scene(group="", task="push") == "push" and scene() is None
    assert Clip(Path("a"), "a").success


def test_pictures_without_a_number_are_no_clip(tmp_path: Path) -> None:
    write_folder(tmp_path / "source/clip", 3)
    for old, new in (("0.png", "cover.png"), ("1.png", "plot.png")):
        write_folder(tmp_path / "other", 2)
        (tmp_path / "other" / old).rename(tmp_path / "source" / new)
        shutil.rmtree(tmp_path / "other")
    assert [clip.name for clip in find_clips(tmp_path / "source")] == ["clip"]


@pytest.mark.parametrize("text", ["file,len\nx,3\n", "path,len\nx,three\n", "path,len\n", ""])
def test_a_manifest_without_its_columns_is_an_error_that_names_it(tmp_path, text) -> None:
    (tmp_path / "manifest.csv").write_text(text)
    with pytest.raises(ValueError, match="manifest.csv (cannot be used|lists no clip)"):
        find_clips(tmp_path)


def test_a_clip_that_the_manifest_lists_but_nobody_has_is_skipped_and_named(tmp_path) -> None:
    folder = write_ego4d(tmp_path)
    with open(folder / "manifest.csv", "a") as file:
        file.write("frames/gone/,9,x\n")
    for table in both(find_clips(folder), 8, tmp_path / "cache"):
        assert list(table.skipped) == ["frames/gone"] and len(table.clips) == 2


# --- LeRobot --------------------------------------------------------------------------------------

CAMERA = "observation.images.top"


def write_info(folder: Path, version: str, template: str) -> None:
    features = {CAMERA: {"dtype": "video"}, "action": {"dtype": "float32"}}
    info = {"codebase_version": version, "fps": 10, "video_path": template, "features": features}
    (folder / "meta").mkdir(parents=True, exist_ok=True)
    (folder / "meta" / "info.json").write_text(json.dumps(info | {"chunks_size": 1000}))


def write_lerobot_v2(folder: Path) -> Path:
    template = "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4"
    write_info(folder, "v2.1", template)
    rows = []
    for i, (count, task) in enumerate(((5, "push"), (7, "pull"))):
        path = folder / f"videos/chunk-000/{CAMERA}/episode_{i:06d}.mp4"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_video(path, ramp(count, first=100 * i), fps=10)
        rows.append({"episode_index": i, "length": count, "tasks": [task]})
    (folder / "meta" / "episodes.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    return folder


def write_lerobot_v3(folder: Path) -> Path:
    """Two episodes back to back in one file."""
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    template = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
    write_info(folder, "v3.0", template)
    path = folder / f"videos/{CAMERA}/chunk-000/file-000.mp4"
    path.parent.mkdir(parents=True)
    write_video(path, torch.cat([ramp(5), ramp(7, first=100)]), fps=10)
    rows, prefix = [], f"videos/{CAMERA}/"
    for i, (count, task, start) in enumerate(((5, "push", 0.0), (7, "pull", 0.5))):
        rows.append({"episode_index": i, "length": count, "tasks": [task]})
        rows[-1] |= {prefix + "chunk_index": 0, prefix + "file_index": 0}
        rows[-1] |= {prefix + "from_timestamp": start}
    (folder / "meta/episodes/chunk-000").mkdir(parents=True)
    table = pyarrow.Table.from_pylist(rows)
    parquet.write_table(table, folder / "meta/episodes/chunk-000/file-000.parquet")
    return folder


def both(clips, size: int, cache: Path):
    """The same clips decoded once and decoded at every read."""
    yield decode_once(clips, size, cache, progress=False)
    yield decode_lazily(clips, size, progress=False)


@pytest.mark.parametrize("write", [write_lerobot_v2, write_lerobot_v3])
def test_a_lerobot_episode_is_a_clip_with_its_task(tmp_path: Path, write) -> None:
    clips = find_clips(write(tmp_path / "dataset"))
    assert [clip.labels["task"] for clip in clips] == ["push", "pull"]
    assert {clip.labels["camera"] for clip in clips} == {CAMERA}
    for table in both(clips, 8, tmp_path / "cache"):
        assert table.skipped == {} and table.length.tolist() == [5, 7]
        for i in range(2):
            values = table.clip_frames(i).float().mean((1, 2, 3))
            want = 100.0 * i + 10 * torch.arange([5, 7][i])
            torch.testing.assert_close(values, want, atol=4, rtol=0)  # lossy


@pytest.mark.parametrize("write", [write_lerobot_v2, write_lerobot_v3])
def test_an_episode_whose_file_is_missing_is_skipped_and_named(tmp_path: Path, write) -> None:
    folder = write(tmp_path / "dataset")
    for path in sorted(folder.rglob("*.mp4"))[:1]:
        path.unlink()
    clips = find_clips(folder)
    if write is write_lerobot_v3:
        with pytest.raises(ValueError, match="none of 2 clips"):
            decode_once(clips, 8, tmp_path / "cache", progress=False)
    else:
        for table in both(clips, 8, tmp_path / "cache"):
            assert list(table.skipped) == [f"{CAMERA}/episode_000000"]


@pytest.mark.parametrize("info", ["{", "{}", '{"codebase_version": "v3.0"}'])
def test_a_foreign_info_json_is_an_error_that_names_the_folder(tmp_path: Path, info) -> None:
    (tmp_path / "meta").mkdir()
    (tmp_path / "meta" / "info.json").write_text(info)
    with pytest.raises(ValueError, match=f"{tmp_path} is no LeRobot dataset"):
        find_clips(tmp_path)


# --- decoding at every read -----------------------------------------------------------------------


def test_lazy_rows_are_the_frames_that_decoding_once_gives(tmp_path: Path) -> None:
    write_folder(tmp_path / "clips" / "folder", 12)
    write_video(tmp_path / "clips" / "small.mp4", ramp(9, 100))
    write_video(tmp_path / "clips" / "wide.mp4", ramp(6, 30, 32, 96))  # sizes may differ
    clips = find_clips(tmp_path / "clips")
    once, lazy = both(clips, 16, tmp_path / "cache")
    assert torch.equal(once.length, lazy.length)
    index = torch.tensor([26, 0, 13, 12, 26, 11, 20, 21])  # any order, one of them twice
    a, b = (t.storage.get(index)["pixels"] for t in (once, lazy))
    assert a.shape == b.shape == (8, 3, 16, 16) and b.dtype == torch.uint8
    torch.testing.assert_close(a.float(), b.float(), atol=4, rtol=0)  # two decoders round apart
    assert torch.equal(b[0], b[4])


def test_threads_may_read_one_file_at_once(tmp_path: Path) -> None:
    """Episodes of a LeRobot v3 file; without a lock the process dies of a segmentation fault."""
    path = write_video(tmp_path / "clip.mp4", ramp(20))
    index = [torch.tensor([i % 20, (7 * i) % 20]) for i in range(200)]
    with ThreadPoolExecutor(8) as pool:
        frames = list(pool.map(lambda rows: greys(decode_at(path, rows)), index))
    single = greys(decode_at(path, torch.arange(20)))
    assert frames == [[single[j] for j in rows.tolist()] for rows in index]


def test_lazily_opened_broken_clips_are_named(tmp_path: Path) -> None:
    write_folder(tmp_path / "good", 3)
    write_folder(tmp_path / "one_frame", 1)
    whole = write_video(tmp_path / "whole.mp4", ramp(9)).read_bytes()
    (tmp_path / "cut.mp4").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "text.mp4").write_text("Dear diary")
    table = decode_lazily(find_clips(tmp_path), 8, progress=False)
    assert set(table.skipped) == {"one_frame", "cut.mp4", "empty.mp4", "text.mp4"}
    with pytest.raises(ValueError, match="none of 1 clips"):
        decode_lazily(find_clips(tmp_path)[:1], 8, progress=False)
    with pytest.raises(TypeError, match="cannot be written"):
        table.storage.set(0, None)
    middle = tmp_path / "good" / "1.png"
    middle.write_bytes(middle.read_bytes()[:40])  # since the run began
    with pytest.raises(
        ValueError, match="1.png cannot be read.* Repair the clip good or take it out"
    ):
        table.clip_frames(0)
    (tmp_path / "good" / "2.png").write_bytes(b"")
    assert "2.png" in decode_lazily(find_clips(tmp_path), 8, progress=False).skipped["good"]
