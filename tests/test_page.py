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


def test_a_visit_that_is_not_used_ends(visits: Visits) -> None:
    for name in ("alice", "bob"):
        visits.place(name, "video").take(upload(visits, name))
    visits.of("alice").used -= uploads.IDLE + 1
    visits.sweep()
    assert set(visits._of) == {"bob"} and files(visits) == ["a.mp4", "upload_0.mp4"]


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
    "arguments, message",
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


# -- the process that works -----------------------------------------------------------------------------


@pytest.mark.slow
def test_a_crash_costs_one_answer_and_what_runs_can_be_ended() -> None:
    worker = Worker("test")
    try:
        with pytest.raises(WorkerError, match="crash"):
            worker.call(os._exit, 1)
        assert worker.call(os.path.join, "a", "b") == "a/b"
        with pytest.raises(ZeroDivisionError):
            worker.call(divmod, 1, 0)
        with pytest.raises(WorkerError, match="more than 0 s"):
            worker.call(time.sleep, 60, seconds=0.2)
        counting = worker.stream(range, 10**9)
        assert next(counting) == 0
        counting.close()
        assert worker.call(len, "abc") == 3
    finally:
        worker.close()
    with pytest.raises(WorkerError, match="is being stopped"):  # and no new process
        worker.call(len, "abc")


# -- the page in a browser ------------------------------------------------------------------------------


def chromium_or_skip() -> str:
    """Where Debian's Chromium is; in CI it must be there."""
    program = shutil.which("chromium") or shutil.which("chromium-browser")
    if program is None:
        message = "no Chromium: make setup installs Debian's (sudo apt-get install -y chromium)"
        (pytest.fail if os.environ.get("CI") else pytest.skip)(message)
    return program


class Server:
    """The page as a user starts it, in a folder for temporary files of its own."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.process = subprocess.Popen(
            [sys.executable, "-m", "torchrl_vip.demo", "--port", "0"],
            env={**os.environ, "TMPDIR": str(folder), "PYTHONUNBUFFERED": "1"},
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        found = re.search(r"http://127\.0\.0\.1:\d+", line)
        assert found, f"the server said {line!r}"
        self.url = found[0]

    def files(self) -> list[str]:
        """What lies on disk of its visitors."""
        return sorted(
            str(path.relative_to(self.folder))
            for path in self.folder.rglob("*")
            if path.is_file() and path.suffix != ".lock"
        )

    def stop(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(60)


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> Server:
    chromium_or_skip()
    pytest.importorskip("gradio", reason="the extra page")
    served = Server(tmp_path_factory.mktemp("tmp"))
    yield served
    served.stop()
    assert served.files() == []
    assert [path.name for path in served.folder.glob("torchrl_vip_page_*")] == []


@pytest.fixture(scope="module")
def browser(server: Server):
    """Chromium, for which no other machine has a name."""
    library = pytest.importorskip("playwright.sync_api", reason="the extra dev")
    offline = "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"
    with library.sync_playwright() as started:
        opened = started.chromium.launch(
            executable_path=chromium_or_skip(), args=[offline, "--no-sandbox"]
        )
        yield opened
        opened.close()


@pytest.fixture
def visit(server: Server, browser):
    """Opens the page as a new visitor; nothing that it asks for may be elsewhere."""
    asked: list[str] = []
    contexts = []

    def open_page(width: int = 1280, height: int = 900):
        context = browser.new_context(
            viewport={"width": width, "height": height}, accept_downloads=True
        )
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(90_000)
        page.on("request", lambda request: asked.append(request.url))
        page.goto(server.url)
        page.wait_for_selector("#clip .vip-hint")
        return page

    yield open_page
    for context in contexts:
        context.close()
    ours = (server.url, "data:", "blob:")
    assert asked and [url for url in asked if not url.startswith(ours)] == []


@pytest.fixture(scope="module")
def clips(tmp_path_factory) -> dict[str, Path]:
    """Small videos and a picture to upload."""
    folder, frames = tmp_path_factory.mktemp("clips"), moving(24, 96, 128)
    written = {
        name: write_video(folder / f"{name}.mp4", frames[:count], fps=12)
        for name, count in (("whole", 24), ("most", 20), ("half", 12))
    }
    Image.fromarray(frames[-1]).save(folder / "end.png")
    (folder / "fake.mp4").write_bytes(os.urandom(4000))
    (folder / "huge.png").write_bytes(png_header(30_000, 30_000))
    with open(folder / "large.mp4", "wb") as file:
        file.truncate(2 * 10**9)
    others = {path.stem: path for path in folder.iterdir()}
    return {**others, **written}


def drop(page, where: str, *paths: Path) -> None:
    page.set_input_files(f"{where} input[type=file]", list(map(str, paths)))


def says(page, selector: str, text: str) -> None:
    """Wait until an element holds a text."""
    page.wait_for_function(
        "([selector, text]) => document.querySelector(selector)?.textContent.includes(text)",
        arg=[selector, text],
    )


@pytest.mark.slow
def test_a_video_is_measured_at_once_and_its_goal_and_encoders_change(visit, clips) -> None:
    page = visit()
    drop(page, "#video", clips["whole"])
    page.wait_for_selector("#clip .vip-chart")
    says(page, "#clip .vip-words", "of steps lead towards the goal")
    says(page, "#clip .vip-hint", "All 24 frames are measured.")
    page.wait_for_function("document.querySelector('#clip video').currentTime > 0.2")  # it plays
    before = page.get_attribute("#clip .vip-cursor", "x1")
    page.wait_for_function(
        "before => document.querySelector('#clip .vip-cursor').getAttribute('x1') !== before",
        arg=before,
    )
    # a click upon the curve goes to that moment
    box = page.locator("#clip .vip-chart").first.bounding_box()
    page.mouse.click(box["x"] + box["width"] * 0.6, box["y"] + 60)
    at = page.eval_on_selector("#clip video", "video => [video.paused, video.currentTime]")
    assert at[0] and 0.9 < at[1] < 1.4

    page.get_by_label("another frame").check()
    slider = page.locator("#frame input[type=range]")
    slider.wait_for()
    assert slider.get_attribute("max") == "23"
    slider.evaluate(
        """slider => {
            slider.value = 12;
            for (const name of ["input", "change", "pointerup"])
                slider.dispatchEvent(new Event(name, {bubbles: true}));
        }"""
    )
    says(page, "#clip .vip-goal", "its frame at 1.0 s")
    says(page, "#clip .vip-code", "goal=frames[12]")

    page.get_by_label("a picture").check()
    says(page, "#clip .vip-refusal", "Drop a picture")
    drop(page, "#picture", clips["end"])
    says(page, "#clip .vip-goal", "goal: end.png")
    page.locator("#encoders").get_by_label("raw pixels").check()
    says(page, "#clip .vip-words", "raw pixels: ")
    assert page.locator("#clip .vip-chart").first.locator(".vip-line").count() == 2


@pytest.mark.slow
def test_picture_numbers_and_film_are_downloaded(visit, clips) -> None:
    page = visit()
    drop(page, "#video", clips["half"])
    page.wait_for_selector("#clip .vip-chart")
    kinds = {"curve.png": b"\x89PNG", "curve.csv": b"frame,seconds", "curve.mp4": b"ftyp"}
    for file, begin in kinds.items():
        with page.expect_download() as download:
            page.click(f"[data-file='{file}']")
        assert download.value.suggested_filename == f"half_{file}"
        assert begin in Path(download.value.path()).read_bytes()[:20]


@pytest.mark.slow
def test_a_broken_upload_is_refused_in_words_and_the_page_goes_on(server, visit, clips) -> None:
    page = visit()
    drop(page, "#video", clips["fake"])
    says(page, "#clip .vip-refusal", "This cannot be read as a video")
    before = server.files()
    page.locator("#video").get_by_label("Clear").or_(page.locator("#video button")).first.click()
    drop(page, "#video", clips["large"])
    page.get_by_text("exceed the maximum allowed size").first.wait_for()
    assert len(server.files()) <= len(before)  # nothing of the 2 GB was written
    page.reload()
    page.wait_for_selector("#clip .vip-hint")
    drop(page, "#video", clips["half"])
    page.wait_for_selector("#clip .vip-chart")
    page.get_by_label("a picture").check()
    drop(page, "#picture", clips["huge"])
    says(page, "#clip .vip-refusal", "pixels; wanted at most 50 million")
    page.get_by_label("its last frame").check()
    page.wait_for_selector("#clip .vip-chart")


@pytest.mark.slow
def test_two_visitors_get_their_own_and_nothing_of_them_is_left(server, visit, clips) -> None:
    pages = {name: visit() for name in ("whole", "most")}
    for name, page in pages.items():  # at once
        drop(page, "#video", clips[name])
    frames = {"whole": "All 24 frames", "most": "All 20 frames"}
    sources = {}
    for name, page in pages.items():
        says(page, "#clip .vip-hint", frames[name])
        says(page, "#clip .vip-code", f"{name}.mp4")
        sources[name] = page.get_attribute("#clip video", "src")
    one, other = (sources[name].split("/visit/")[1].split("/") for name in pages)
    assert one[0] != other[0]
    ask = pages["whole"].request
    assert ask.get(sources["whole"]).ok
    for address in (f"{one[0]}/{other[1]}", f"x/{one[1]}", f"{one[0]}/{one[1]}/.."):
        assert ask.get(f"{server.url}/visit/{address}/played.mp4").status == 404
    assert ask.get(f"{server.url}/visit/{one[0]}/{one[1]}/upload_0.mp4").status == 404
    assert server.files()
    for page in pages.values():
        page.context.close()
    until = time.monotonic() + 60
    while server.files() and time.monotonic() < until:
        time.sleep(0.5)
    assert server.files() == []


@pytest.mark.slow
def test_attempts_are_ranked_and_nothing_overflows_on_a_phone(visit, clips) -> None:
    page = visit(390, 844)
    page.get_by_role("tab", name="Attempts").click()
    drop(page, "#attempts_videos", clips["whole"], clips["half"], clips["most"])
    page.wait_for_selector("#attempts .vip-chart")
    names = page.locator("#attempts .vip-name").all_inner_texts()
    assert sorted(names) == ["half.mp4", "most.mp4", "whole.mp4"] and names[-1] == "whole.mp4"
    says(page, "#attempts .vip-verdict", "ended nearest to the goal")
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    page.get_by_role("tab", name="One video").click()
    drop(page, "#video", clips["half"])
    page.wait_for_selector("#clip .vip-chart")
    assert page.evaluate("document.documentElement.scrollWidth") <= 390


@pytest.mark.slow
def test_an_environment_shows_its_reward_live_until_it_is_stopped(visit) -> None:
    pytest.importorskip("metaworld")
    page = visit()
    page.get_by_role("tab", name="Environment").click()
    page.wait_for_function("document.querySelector('#task input').value === 'drawer-open-v3'")
    page.locator("#policy").get_by_label("random actions").check()
    page.click("#start")
    page.wait_for_selector("#episode .vip-chart")
    page.wait_for_function(
        "/step ([5-9]|[1-9][0-9])/.test(document.querySelector('#episode .vip-verdict').textContent)"
    )
    page.click("#stop")
    says(page, "#episode .vip-verdict", "stopped")
    assert page.locator("#episode img").first.evaluate("image => image.naturalWidth") == 192
