"""Clips are found, read exactly, and decoded once, whatever is broken or killed."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torchvision.io import write_png

from torchrl_vip.data.video import decode_once, find_clips, read_clip, write_video


def ramp(frames: int, first: int = 0, height: int = 48, width: int = 64) -> torch.Tensor:
    """uint8 [T, H, W, 3]: frame t is grey of value first + 10 t."""
    grey = first + 10 * torch.arange(frames, dtype=torch.uint8)
    return grey.view(-1, 1, 1, 1).expand(frames, height, width, 3).contiguous()


def write_folder(folder: Path, frames: int, first: int = 0) -> Path:
    folder.mkdir(parents=True)
    for t, frame in enumerate(ramp(frames, first)):
        write_png(frame.permute(2, 0, 1).contiguous(), str(folder / f"{t}.png"))
    return folder


def greys(frames: torch.Tensor) -> list[int]:
    """The value of each frame; they are all of one colour."""
    assert all(frame.unique().numel() == 1 for frame in frames)
    return frames[:, 0, 0, 0].tolist()


def decode(folder: Path, cache: Path, size: int = 8):
    return decode_once(find_clips(folder), size, cache, progress=False)


# --- find_clips -----------------------------------------------------------------------------------


def test_videos_and_nested_folders_are_found_sorted_and_hidden_ones_are_not(tmp_path: Path) -> None:
    write_folder(tmp_path / "b" / "deep", 2)
    for name in ("a.mp4", "b/C.MP4", ".trash/x.mp4", "b/.x.mp4", "notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / ".trash" / "manifest.json").write_text("not json")
    assert [clip.name for clip in find_clips(tmp_path)] == ["a.mp4", "b/C.MP4", "b/deep"]


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


# --- read_clip ------------------------------------------------------------------------------------


def test_numbered_frames_are_read_exactly_and_in_numeric_order(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "clip", 12)  # 10.png and 11.png sort before 2.png as text
    assert greys(read_clip(folder, 16)) == [10 * t for t in range(12)]


def test_a_video_is_read_in_order_resized_and_cropped_to_its_centre(tmp_path: Path) -> None:
    frames = ramp(9, first=40)
    frames[:, :, :8] = frames[:, :, -8:] = 255  # a 48 x 64 frame loses 8 columns on either side
    clip = read_clip(write_video(tmp_path / "v.mp4", frames), 24)
    assert clip.shape == (9, 3, 24, 24) and clip.dtype == torch.uint8
    centre = clip[..., 3:-3].float().mean((1, 2, 3))
    torch.testing.assert_close(centre, 40 + 10.0 * torch.arange(9), atol=3, rtol=0)  # lossy


def test_colours_keep_their_channels(tmp_path: Path) -> None:
    frames = torch.zeros(4, 32, 32, 3, dtype=torch.uint8)
    frames[..., 0] = 200  # red
    mean = read_clip(write_video(tmp_path / "v.mp4", frames), 16).float().mean((0, 2, 3))
    torch.testing.assert_close(mean, torch.tensor([200.0, 0, 0]), atol=6, rtol=0)


def test_one_frame_is_no_clip(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"1 frame\(s\), a clip needs two"):
        read_clip(write_folder(tmp_path / "one", 1), 8)


# --- decode_once ----------------------------------------------------------------------------------


def test_broken_clips_are_skipped_and_named_and_the_others_are_whole(tmp_path: Path) -> None:
    source = tmp_path / "clips"
    write_folder(source / "good", 3, first=50)
    write_folder(source / "one_frame", 1)
    write_folder(source / "torn", 3)
    (source / "torn" / "1.png").write_bytes((source / "torn" / "1.png").read_bytes()[:30])
    whole = write_video(tmp_path / "whole.mp4", ramp(9)).read_bytes()
    (source / "cut.mp4").write_bytes(whole[: len(whole) // 2])
    (source / "empty.mp4").touch()
    (source / "text.mp4").write_text("Dear diary")
    table = decode(source, tmp_path / "cache")
    bad = {"one_frame", "torn", "cut.mp4", "empty.mp4", "text.mp4"}
    assert set(table.skipped) == bad
    assert all(str(source / name) in reason for name, reason in table.skipped.items())
    assert [clip.name for clip in table.clips] == ["good"]
    assert greys(table.clip_frames(0)) == [50, 60, 70]
    assert set(decode(source, tmp_path / "cache").skipped) == bad  # remembered


def test_nothing_readable_is_an_error_with_every_reason(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").touch()
    (tmp_path / "b.mp4").touch()
    with pytest.raises(ValueError, match=r"none of 2 clips(.|\n)*a\.mp4(.|\n)*b\.mp4"):
        decode(tmp_path, tmp_path / "cache")


def test_only_new_and_changed_clips_are_decoded(tmp_path: Path, monkeypatch) -> None:
    from torchrl_vip.data import video

    decoded = []
    monkeypatch.setattr(
        video, "read_clip", lambda path, size: decoded.append(path.name) or read_clip(path, size)
    )
    source, cache = tmp_path / "clips", tmp_path / "cache"
    write_folder(source / "a", 2, first=0)
    write_folder(source / "b", 3, first=100)
    decode(source, cache)
    assert sorted(decoded) == ["a", "b"]
    decode(source, cache)
    assert sorted(decoded) == ["a", "b"]  # reopened
    write_folder(source / "c", 4, first=7)
    write_png(torch.full((3, 48, 64), 33, dtype=torch.uint8), str(source / "b" / "3.png"))
    table = decode(source, cache)
    assert sorted(decoded) == ["a", "b", "b", "c"]
    contents = [greys(table.clip_frames(i)) for i in range(3)]
    assert contents == [[0, 10], [100, 110, 120, 33], [7, 17, 27, 37]]


@pytest.mark.parametrize("damage", ["torn line", "long pixels", "torn line, no pixels after it"])
def test_an_interrupted_build_ends_with_the_same_content(tmp_path: Path, damage: str) -> None:
    source, cache = tmp_path / "clips", tmp_path / "cache"
    for i in range(4):
        write_folder(source / str(i), 2 + i, first=20 * i)
    want = [greys(decode(source, cache).clip_frames(i)) for i in range(4)]
    pixels, journal = cache / "8px" / "pixels.u8", cache / "8px" / "journal.jsonl"
    lines = journal.read_text().splitlines(keepends=True)
    if damage == "long pixels":
        pixels.write_bytes(pixels.read_bytes() + b"\x07" * 1000)
    else:
        journal.write_text("".join(lines[:2]) + lines[2][:15])
    if damage == "torn line, no pixels after it":
        os.truncate(pixels, 3 * 8 * 8 * (2 + 3))  # the two clips that the journal still lists
    table = decode(source, cache)
    assert [greys(table.clip_frames(i)) for i in range(4)] == want
    assert pixels.stat().st_size == 3 * 8 * 8 * (2 + 3 + 4 + 5)
    assert len(journal.read_text().splitlines()) == 4


@pytest.mark.parametrize("file, message", [("pixels.u8", "shorter"), ("journal.jsonl", "damaged")])
def test_a_damaged_cache_is_an_error_that_says_what_to_delete(tmp_path, file, message) -> None:
    write_folder(tmp_path / "clips" / "a", 2)
    decode(tmp_path / "clips", tmp_path / "cache")
    path = tmp_path / "cache" / "8px" / file
    path.write_bytes(b"\0\0\n")
    with pytest.raises(ValueError, match=f"{file} is {message}.*delete .*8px"):
        decode(tmp_path / "clips", tmp_path / "cache")


# Decodes 40 folders slowly, so that a signal or a second process meets it half way.
DECODE = """
import sys, time
from torchrl_vip.data import video
read = video.read_clip
video.read_clip = lambda path, size: time.sleep(0.05) or read(path, size)
video.decode_once(video.find_clips(sys.argv[1]), 8, sys.argv[2], workers=1, progress=False)
"""


def start_decoding(source: Path, cache: Path) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, "-c", DECODE, str(source), str(cache)])


def forty_clips(source: Path) -> list[list[int]]:
    for i in range(40):
        write_folder(source / f"{i:02d}", 2, first=i)
    return [[i, i + 10] for i in range(40)]


@pytest.mark.slow
def test_kill_9_while_decoding_then_again_gives_the_same_frames(tmp_path: Path) -> None:
    want = forty_clips(tmp_path / "clips")
    process = start_decoding(tmp_path / "clips", tmp_path / "cache")
    journal = tmp_path / "cache" / "8px" / "journal.jsonl"
    while not journal.exists() or len(journal.read_text().splitlines()) < 5:
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    kept = [json.loads(line)["name"] for line in journal.read_text().splitlines()]
    assert 5 <= len(kept) < 40
    table = decode(tmp_path / "clips", tmp_path / "cache")
    assert [greys(table.clip_frames(i)) for i in range(40)] == want
    assert [json.loads(line)["name"] for line in journal.open()][: len(kept)] == kept


@pytest.mark.slow
def test_two_processes_at_once_share_the_work(tmp_path: Path) -> None:
    want = forty_clips(tmp_path / "clips")
    both = [start_decoding(tmp_path / "clips", tmp_path / "cache") for _ in range(2)]
    assert [process.wait() for process in both] == [0, 0]
    assert len((tmp_path / "cache/8px/journal.jsonl").read_text().splitlines()) == 40
    table = decode(tmp_path / "clips", tmp_path / "cache")
    assert [greys(table.clip_frames(i)) for i in range(40)] == want
