"""Clips are found, read exactly, and decoded once, whatever is broken or killed."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import weakref
from pathlib import Path

import pytest
import torch
from clips import greys, ramp, write_folder
from torchvision.io import write_png

from torchrl_vip.data import frame_table
from torchrl_vip.data.sources import Clip, find_clips
from torchrl_vip.data.video import decode_lazily, decode_once, read_clip, write_video


def decode(folder: Path, cache: Path, size: int = 8):
    return decode_once(find_clips(folder), size, cache, progress=False)


# --- read_clip ------------------------------------------------------------------------------------


def test_numbered_frames_are_read_exactly_and_in_numeric_order(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "clip", 12)  # 10.png and 11.png sort before 2.png as text
    assert greys(read_clip(Clip(folder, "clip"), 16)) == [10 * t for t in range(12)]


def test_a_video_is_read_in_order_resized_and_cropped_to_its_centre(tmp_path: Path) -> None:
    frames = ramp(9, first=40)
    frames[:, :, :8] = frames[:, :, -8:] = 255  # a 48 x 64 frame loses 8 columns on either side
    clip = read_clip(Clip(write_video(tmp_path / "v.mp4", frames), "v"), 24)
    assert clip.shape == (9, 3, 24, 24) and clip.dtype == torch.uint8
    centre = clip[..., 3:-3].float().mean((1, 2, 3))
    torch.testing.assert_close(centre, 40 + 10.0 * torch.arange(9), atol=3, rtol=0)  # lossy


def test_colours_keep_their_channels(tmp_path: Path) -> None:
    frames = torch.zeros(4, 32, 32, 3, dtype=torch.uint8)
    frames[..., 0] = 200  # red
    clip = Clip(write_video(tmp_path / "v.mp4", frames), "v")
    mean = read_clip(clip, 16).float().mean((0, 2, 3))
    torch.testing.assert_close(mean, torch.tensor([200.0, 0, 0]), atol=6, rtol=0)


def test_one_frame_is_no_clip(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"1 frame\(s\), a clip needs two"):
        read_clip(Clip(write_folder(tmp_path / "one", 1), "one"), 8)


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
    write_folder(source / "holes", 2)
    noise = torch.randint(256, (3, 64, 64), dtype=torch.uint8)
    write_png(noise, str(source / "holes" / "1.png"))  # an ending of zeros is no chunk of a PNG
    png = (source / "holes" / "1.png").read_bytes()
    (source / "holes" / "1.png").write_bytes(png[:200] + bytes(len(png) - 200))
    (source / "text.mp4").write_text("Dear diary")
    table = decode(source, tmp_path / "cache")
    bad = {"holes", "one_frame", "torn", "cut.mp4", "empty.mp4", "text.mp4"}
    assert set(table.skipped) == bad
    assert all(str(source / name) in reason for name, reason in table.skipped.items())
    assert [clip.name for clip in table.clips] == ["good"]
    assert greys(table.clip_frames(0)) == [50, 60, 70]
    assert set(decode(source, tmp_path / "cache").skipped) == bad


def test_what_failed_once_is_tried_again(tmp_path: Path, monkeypatch) -> None:
    write_folder(tmp_path / "clips" / "a", 3)
    write_folder(tmp_path / "clips" / "b", 3, first=100)
    read = frame_table.read_frames
    for broken, readable in (("a", ["b"]), ("", ["a", "b"])):

        def read_frames(path, span, broken=broken):
            frames = read(path, span)
            yield next(frames)
            if path.name == broken:
                raise OSError("disk")
            yield from frames

        monkeypatch.setattr(frame_table, "read_frames", read_frames)
        table = decode(tmp_path / "clips", tmp_path / "cache")
        assert [clip.name for clip in table.clips] == readable
    assert [greys(table.clip_frames(i)) for i in range(2)] == [[0, 10, 20], [100, 110, 120]]


def test_a_telephone_held_upright_films_upright(tmp_path: Path) -> None:
    """Once decoded by PyAV or lazily by torchcodec, the picture is turned as the file says."""
    ffmpeg = shutil.which("ffmpeg")
    if ffmpeg is None:
        pytest.skip("there is no ffmpeg to turn a video with")
    frames = torch.zeros(3, 64, 96, 3, dtype=torch.uint8)
    frames[:, :, :48] = 250  # the left half
    lying, source = write_video(tmp_path / "lying.mp4", frames), tmp_path / "clips"
    source.mkdir()
    for name, turn in (("quarter", "90"), ("half", "180"), ("back", "270")):
        turned = ["-c", "copy", "-metadata:s:v", f"rotate={turn}", str(source / f"{name}.mp4")]
        subprocess.run([ffmpeg, "-v", "error", "-i", str(lying), *turned], check=True)
    once = decode(source, tmp_path / "cache")
    lazily = decode_lazily(find_clips(source), 8, progress=False)
    for i in range(3):
        a, b = once.clip_frames(i)[0].float(), lazily.clip_frames(i)[0].float()
        assert (a - b).abs().mean() < 8, once.clips[i].name


def test_nothing_readable_is_an_error_with_every_reason(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").touch()
    (tmp_path / "b.mp4").touch()
    with pytest.raises(ValueError, match=r"none of 2 clips(.|\n)*a\.mp4(.|\n)*b\.mp4"):
        decode(tmp_path, tmp_path / "cache")


def test_only_new_and_changed_clips_are_decoded(tmp_path: Path, monkeypatch) -> None:
    decoded, read = [], frame_table.read_frames
    monkeypatch.setattr(
        frame_table,
        "read_frames",
        lambda path, span: decoded.append(path.name) or read(path, span),
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


def test_hours_of_video_are_decoded_frame_by_frame(tmp_path: Path, monkeypatch) -> None:
    alive, most = weakref.WeakSet(), 0

    def read_frames(path, span):
        nonlocal most
        for i in range(200):
            frame = torch.full((3, 8, 8), i, dtype=torch.uint8)
            alive.add(frame)
            most = max(most, len(alive))
            yield frame

    monkeypatch.setattr(frame_table, "read_frames", read_frames)
    monkeypatch.setattr(frame_table, "measure", lambda path, span: (200, ""))
    clips = [Clip(tmp_path / name, name) for name in "aab"]  # one of them twice
    table = decode_once(clips, 8, tmp_path, progress=False)
    assert [greys(table.clip_frames(i)) for i in range(3)] == [list(range(200))] * 3
    assert most < 10
    frames = table.clip_frames(1)
    assert frames.data_ptr() == table.clip_frames(1).data_ptr(), "a view of the file"


@pytest.mark.parametrize("damage", ["torn line", "long pixels", "torn line, no pixels after it"])
def test_an_interrupted_build_ends_with_the_same_content(tmp_path: Path, damage: str) -> None:
    source, cache = tmp_path / "clips", tmp_path / "cache"
    for i in range(4):
        write_folder(source / str(i), 2 + i, first=20 * i)
    want = [greys(decode(source, cache).clip_frames(i)) for i in range(4)]
    pixels, journal = cache / "8px" / "pixels.u8", cache / "8px" / "journal.jsonl"
    (cache / "8px" / "parts" / "2").write_bytes(b"half of a clip")
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
    assert not list((cache / "8px" / "parts").iterdir())


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
from torchrl_vip.data import frame_table
from torchrl_vip.data.sources import find_clips
read = frame_table.read_frames
frame_table.read_frames = lambda path, span: time.sleep(0.05) or read(path, span)
frame_table.decode_once(find_clips(sys.argv[1]), 8, sys.argv[2], workers=1, progress=False)
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
