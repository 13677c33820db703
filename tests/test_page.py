"""The reward page: what it takes and refuses, whose files are whose, and the whole of it in a browser."""

import asyncio
import os
import re
import shutil
import signal
import struct
import subprocess
import sys
import time
import zlib
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from clips import film
from PIL import Image

from torchrl_vip.data.video import write_video
from torchrl_vip.demo import __main__ as command
from torchrl_vip.demo import comparing, measuring, uploads
from torchrl_vip.demo.comparing import Attempt, compare
from torchrl_vip.demo.measuring import Wish, measure, sample
from torchrl_vip.demo.server import Guard
from torchrl_vip.demo.uploads import Refused, Visits, check_picture, check_video
from torchrl_vip.demo.worker import Worker, WorkerError

av = pytest.importorskip("av")

# -- what is taken and what is refused ----------------------------------------------------------------


def moving(count: int = 12, height: int = 48, width: int = 64) -> np.ndarray:
    """A white square that goes from left to right, uint8 ``[count, height, width, 3]``."""
    frames = np.zeros((count, height, width, 3), np.uint8)
    for t, frame in enumerate(frames):
        left = t * (width - 16) // max(count - 1, 1)
        frame[8:24, left : left + 16] = 255
    return frames


def png_header(width: int, height: int) -> bytes:
    """The beginning of a PNG of that size: what is read before its pixels are."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 99))


def test_a_small_video_is_taken(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", moving(), fps=10)
    assert len(check_video(path)) == 12


@pytest.mark.parametrize(
    "content",
    [b"", b"no video at all\n" * 100, os.urandom(5000), b"\0\0\0\x18ftypmp42" + b"\0" * 99],
)
def test_a_fake_mp4_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "fake.mp4"
    path.write_bytes(content)
    with pytest.raises(Refused, match="cannot be read as a video|is empty") as refusal:
        check_video(path)
    assert str(tmp_path) not in str(refusal.value)  # nobody learns where files lie


def test_a_video_cut_short_is_refused(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", moving(60), fps=10)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(Refused, match="cannot be read as a video"):
        check_video(path)


def test_a_video_of_ten_hours_is_refused_by_its_header(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", moving(3), fps=Fraction(1, 12_000))
    with pytest.raises(Refused, match=r"lasts 10\.0 hours"):
        check_video(path)


def test_a_video_that_needs_too_much_decoding_is_refused(tmp_path: Path, monkeypatch) -> None:
    path = write_video(tmp_path / "a.mp4", moving(), fps=10)
    monkeypatch.setattr(uploads, "PIXELS", 12 * 48 * 64 - 1)
    with pytest.raises(Refused, match="12 frames of 64 × 48 pixels"):
        check_video(path)
    monkeypatch.setattr(uploads, "FRAMES", 10)
    with pytest.raises(Refused, match="more than 10 frames"):
        check_video(path)


def test_a_file_that_is_too_large_is_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    with open(path, "wb") as file:
        file.truncate(2 * 10**9)
    with pytest.raises(Refused, match="2000 MB; wanted at most 200 MB"):
        check_video(path)


def test_a_picture_of_30000_by_30000_pixels_is_refused_by_its_header(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(png_header(30_000, 30_000))
    with pytest.raises(Refused, match="pixels; wanted at most 50 million"):
        check_picture(path)
    path.write_bytes(png_header(12_000, 12_000))  # below the bound at which Pillow stops
    with pytest.raises(Refused, match="12000 × 12000 pixels"):
        check_picture(path)


def test_what_is_no_picture_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(b"GIF89a, they say")
    with pytest.raises(Refused, match="not a picture"):
        check_picture(path)


# -- measuring ----------------------------------------------------------------------------------------


def test_a_long_video_is_measured_evenly_to_its_last_frame(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(measuring, "MEASURED", 5)
    path = write_video(tmp_path / "a.mp4", moving(12), fps=10)
    sampled = sample(path)
    assert sampled.rows.tolist() == [2, 5, 8, 11] and sampled.stride == 3
    wish = Wish(tmp_path, path, "a.mp4", encoders=("pixels",))
    shown = measure(wish)
    assert shown["note"].startswith("Every 3rd of 12 frames is measured, 4 in all (at most 5).")
    assert shown["times"] == pytest.approx([0.2, 0.5, 0.8, 1.1])
    assert len(list(tmp_path.glob("frame_*.jpg"))) == 4


@pytest.mark.parametrize("measured", [240, 5])
def test_the_lines_of_code_make_the_rewards_that_the_page_shows(
    tmp_path: Path, monkeypatch, measured: int
) -> None:
    monkeypatch.setattr(measuring, "MEASURED", measured)
    monkeypatch.chdir(tmp_path)
    path = write_video(tmp_path / "a.mp4", moving(12), fps=10)
    shown = measure(Wish(tmp_path, path, "a.mp4", goal=3, encoders=("tiny",)))
    names: dict = {}
    exec(shown["code"], names)
    assert names["rewards"] == pytest.approx(shown["curves"][0]["reward"], abs=1e-4)


def test_another_goal_needs_no_second_look_at_the_video(tmp_path: Path, monkeypatch) -> None:
    path = write_video(tmp_path / "a.mp4", moving(12), fps=10)
    wish = Wish(tmp_path, path, "a.mp4", encoders=("pixels",))
    last = measure(wish)["curves"][0]["distance"]
    monkeypatch.setattr(measuring, "_batches", lambda frames: pytest.fail("decoded again"))
    first = measure(wish._replace(goal=0))["curves"][0]["distance"]
    assert last[-1] == 0 == first[0] and first[-1] > 0
    Image.fromarray(moving(12)[0]).save(tmp_path / "goal.png")
    near = measure(wish._replace(goal=tmp_path / "goal.png", goal_name="goal.png"))
    assert near["curves"][0]["distance"] == pytest.approx(first, abs=1.0)
    assert near["goal"] is None and near["goal_name"] == "goal.png"


@pytest.mark.parametrize("codec", ["libx264", "mpeg4"])
def test_a_video_that_browsers_do_not_play_is_written_anew(tmp_path: Path, codec: str) -> None:
    source = tmp_path / "clip.mp4"
    film(source, [5 * i for i in range(20)], 10, side=65 if codec == "mpeg4" else 64, codec=codec)
    wish = Wish(tmp_path, source, "clip.mp4", encoders=("pixels",))
    measure(wish)
    made = measuring.make(wish, "played.mp4")
    assert (made.read_bytes() == source.read_bytes()) == (codec == "libx264")
    assert measuring.playable(made)
    assert check_video(made).end == pytest.approx(2.0, abs=0.11)


def test_downloads_show_what_is_on_the_page(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", moving(12), fps=10)
    wish = Wish(tmp_path, path, "a.mp4", encoders=("pixels", "tiny"))
    shown = measure(wish)
    lines = measuring.make(wish, "curve.csv").read_text().splitlines()
    assert lines[0].startswith("frame,seconds,distance (VIP (tiny)),") or "raw pixels" in lines[0]
    assert len(lines) == 13
    assert float(lines[1].split(",")[2]) == pytest.approx(
        shown["curves"][0]["distance"][0], abs=1e-3
    )
    with Image.open(measuring.make(wish, "curve.png")) as picture:
        assert picture.width > 800
    assert len(check_video(measuring.make(wish, "curve.mp4"))) == 12


def test_the_attempt_that_ends_nearest_is_first_and_a_broken_one_stops_no_other(
    tmp_path: Path,
) -> None:
    frames = moving(24)
    attempts = []
    for name, count in (("goal", 24), ("half", 12), ("most", 20)):
        folder = tmp_path / name
        folder.mkdir()
        source = write_video(tmp_path / f"{name}.mp4", frames[:count], fps=10)
        attempts.append(Attempt(folder, source, f"{name}.mp4"))
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"x" * 99)
    (tmp_path / "broken").mkdir()
    attempts.append(Attempt(tmp_path / "broken", broken, "broken.mp4"))
    shown = compare(attempts, 0, "the end of goal.mp4", "tiny", tmp_path)
    assert [(one["name"], one.get("rank")) for one in shown["attempts"]] == [
        ("most.mp4", 1),
        ("half.mp4", 2),
        ("goal.mp4", None),
    ]
    assert shown["verdict"].startswith("most.mp4 ended nearest to the goal")
    assert len(shown["refusals"]) == 1 and shown["refusals"][0].startswith(
        "broken.mp4: This cannot"
    )
    assert (tmp_path / "goal.jpg").exists()


def test_ends_that_are_close_are_said_to_be() -> None:
    shown = [
        {"name": name, "distance": [9, end], "is_goal": False}
        for name, end in (("a", 2), ("b", 2.1))
    ]
    assert "b is close behind" in comparing.verdict(shown)


# -- whose files are whose ------------------------------------------------------------------------------


def upload(visits: Visits, content: str, name: str = "a.mp4") -> Path:
    """As Gradio writes it: in a folder named after its content."""
    folder = visits.uploaded / f"{zlib.crc32(content.encode()):x}"
    folder.mkdir(exist_ok=True)
    path = folder / name
    path.write_text(content)
    return path


@pytest.fixture
def visits(tmp_path: Path) -> Visits:
    (tmp_path / "root").mkdir()
    return Visits(tmp_path / "root")


def files(visits: Visits) -> list[str]:
    return sorted(path.name for path in visits.root.rglob("*") if path.is_file())


def test_nothing_is_left_of_a_visitor_who_leaves(visits: Visits) -> None:
    place = visits.place("alice", "video")
    own = place.take(upload(visits, "alice's"))
    (place.folder / "frame_0000.jpg").write_text("x")
    assert own.read_text() == "alice's" and len(files(visits)) == 3
    stop = visits.of("alice").stop
    visits.leave("alice")
    assert files(visits) == [] and stop.is_set()
    assert [path.name for path in visits.root.iterdir()] == ["uploaded"]


def test_a_new_upload_replaces_the_one_before(visits: Visits) -> None:
    first = visits.place("alice", "video")
    first.take(upload(visits, "one"))
    second = visits.place("alice", "video")
    second.take(upload(visits, "two"))
    goal = visits.place("alice", "goal")
    goal.take(upload(visits, "goal", "g.png"))
    assert not first.folder.exists()
    assert files(visits) == ["a.mp4", "g.png", "upload_0.mp4", "upload_0.png"]


def test_two_visitors_with_the_same_file_have_it_each(visits: Visits) -> None:
    theirs = {}
    for name in ("alice", "bob"):
        theirs[name] = visits.place(name, "video").take(upload(visits, "the same"))
    visits.leave("alice")
    assert not theirs["alice"].exists() and theirs["bob"].read_text() == "the same"
    assert upload(visits, "the same").exists()
    visits.leave("bob")
    assert files(visits) == []


def test_only_the_token_leads_to_a_visitors_files(visits: Visits) -> None:
    place = visits.place("alice", "video")
    visits.place("bob", "video")
    token, other = visits.of("alice").token, visits.of("bob").token
    assert token != other and len(token) >= 32
    assert visits.find(token, place.folder.name) is place
    assert visits.find(other, place.folder.name) is None
    assert visits.find("", place.folder.name) is None and visits.find(token, "..") is None


def test_uploads_that_broke_off_are_swept_away(visits: Visits) -> None:
    kept = upload(visits, "kept")
    visits.place("alice", "video").take(kept)
    stale, fresh = upload(visits, "stale"), upload(visits, "fresh")
    for path in (kept, stale):
        os.utime(path, (0, 0))
    visits.sweep()
    assert kept.exists() and fresh.exists() and not stale.exists()


def test_the_visit_used_least_recently_makes_room(visits: Visits, monkeypatch) -> None:
    monkeypatch.setattr(uploads, "VISITS", 3)
    for name in "abc":
        visits.place(name, "video")
    visits.of("a")
    visits.of("d")
    assert len(visits) == 3
    assert len([path for path in visits.root.iterdir() if path.name != "uploaded"]) == 3
    assert set(visits._of) == {"a", "c", "d"}


def answer(guard: Guard, **headers: str) -> int:
    """The status that a request with these headers gets; 0 where the application behind is asked."""
    status = []

    async def send(message: dict) -> None:
        if "status" in message:
            status.append(message["status"])

    pairs = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    asyncio.run(guard({"type": "http", "headers": pairs}, None, send))
    return status[0] if status else 0


def test_two_gigabytes_are_refused_before_they_are_read(tmp_path: Path) -> None:
    async def behind(*_: object) -> None:
        return None

    guard = Guard(behind, tmp_path, hosts=("127.0.0.1", "localhost"))
    assert answer(guard, host="127.0.0.1:7860", content_length="2000000000") == 413
    assert answer(guard, host="127.0.0.1:7860", content_length="2000000") == 0
    assert answer(guard, host="elsewhere.example:7860") == 421  # a name that was made to lead here


# -- the command ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [("--port 99999", "wanted 0 to 65535"), ("--checkpoint nowhere", "not there")],
)
def test_a_wrong_argument_is_said(capsys, arguments: str, message: str) -> None:
    with pytest.raises(SystemExit) as exit:
        command.main(arguments.split())
    assert exit.value.code == 2 and message in capsys.readouterr().err


def test_the_page_is_served_to_this_machine_only_unless_asked() -> None:
    assert all(map(command.is_loopback, ("127.0.0.1", "localhost", "::1")))
    assert not any(map(command.is_loopback, ("0.0.0.0", "::", "192.168.1.5", "robot.local")))


def test_without_gradio_the_error_says_how_to_install_it(monkeypatch, capsys) -> None:
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert command.main([]) == 1
    assert 'pip install "torchrl-vip[page]"' in capsys.readouterr().err
