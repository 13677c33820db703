"""Video files as people have them: turned, wide, with covers and sound, cut short, of any container."""

import pickle
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from clips import film, greys, near, write_folder
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from torchrl_vip.data import frame_table
from torchrl_vip.data.container import pixel_aspect
from torchrl_vip.data.reading import decode_at, read_frames
from torchrl_vip.data.sources import find_clips
from torchrl_vip.data.video import NoReadableClipError, decode_lazily, decode_once, read_clip
from torchrl_vip.data.video_file import probe
from torchrl_vip.goals import read_image

av = pytest.importorskip("av")

LFS = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n"
RAMP = [5 * i for i in range(40)]


def both(folder: Path, cache: Path, size: int = 8):
    """Clips decoded once and lazily."""
    clips = find_clips(folder)
    yield decode_once(clips, size, cache, progress=False)
    yield decode_lazily(clips, size, progress=False)


def ffmpeg(*arguments) -> None:
    program = shutil.which("ffmpeg")
    if program is None:
        pytest.skip("there is no ffmpeg to make such a file with")
    subprocess.run([program, "-v", "error", "-y", *map(str, arguments)], check=True)


# --- which containers -----------------------------------------------------------------------------

CODECS = {"mpg": "mpeg2video", "mpeg": "mpeg1video", "vob": "mpeg2video", "wmv": "wmv2"}
CONTAINERS = "mp4 m4v mov 3gp mkv avi flv ts mts m2ts mpg mpeg vob wmv".split()


@pytest.mark.parametrize("kind", CONTAINERS)
def test_every_container_gives_the_same_frames_both_ways(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "clips" / f"a.{kind}"
    codec = CODECS.get(kind, "libx264")
    film(path, RAMP, 25, side=64, gop_size=8, codec=codec, bit_rate=10**6)
    for table in both(tmp_path / "clips", tmp_path / "cache"):
        assert near(table.clip_frames(0)) == pytest.approx(RAMP, abs=5)
        assert table.skipped == {} and table.notes == {}
    rows = torch.tensor([39, 3, 3, 17, 0, 38])
    got = near(decode_at(path, rows))
    assert got == pytest.approx([RAMP[i] for i in rows.tolist()], abs=5)


@pytest.fixture(scope="module")
def films(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("films")
    return {kind: film(folder / f"a.{kind}", RAMP, gop_size=6) for kind in ("mp4", "ts", "avi")}


@settings(max_examples=40, deadline=None)
@given(
    kind=st.sampled_from(["mp4", "ts", "avi"]),
    rows=st.lists(st.integers(0, 39), min_size=1, max_size=6),
    torchcodec=st.booleans(),
)
def test_any_frames_in_any_order_are_those_of_the_whole_film(films, kind, rows, torchcodec) -> None:
    file = probe(films[kind])
    with pytest.MonkeyPatch.context() as patch:
        if not torchcodec:
            patch.setitem(vars(file), "in_torchcodec", False)
        assert near(file.at(torch.tensor(rows))) == [RAMP[i] for i in rows]


def test_files_of_other_kinds_are_counted_aloud(tmp_path: Path) -> None:
    film(tmp_path / "a.mp4", [0, 10])
    for name in ("x.txt", "y.TXT", "z.npz", "README", "index.json", ".hidden"):
        (tmp_path / name).write_text("[]")
    with pytest.warns(UserWarning, match=r"4 file\(s\) of other kinds .*\.txt 2.*no suffix 1"):
        (clip,) = find_clips(tmp_path)
    assert clip.name == "a.mp4"


@pytest.mark.parametrize(
    "source",
    [
        "lerobot/pusht",
        "hf://datasets/lerobot/pusht",
        "https://huggingface.co/datasets/lerobot/pusht/tree/main",
    ],
)
def test_the_id_of_a_data_set_gets_the_command_that_downloads_it(source: str) -> None:
    with pytest.raises(
        FileNotFoundError, match="local.*hf download lerobot/pusht --repo-type data"
    ):
        find_clips(source)


def test_a_manifest_of_liv_is_read_with_its_text_as_task(tmp_path: Path) -> None:
    for k in range(2):
        write_folder(tmp_path / f"clips/{k}", 5, 100 * k)
    lines = [
        "0,clips/0,5,open",
        "1,clips/1/,4.0,",
        "2,clips/2,x,shut",
        "3,,3,shut",
        "4,clips/1,40,a",
    ]
    (tmp_path / "manifest.csv").write_text("\n".join([",directory,num_frames,text", *lines]))
    assert [clip.labels.get("task") for clip in find_clips(tmp_path)][:1] == ["open"]
    for table in both(tmp_path, tmp_path / "cache"):
        frames = [greys(table.clip_frames(i)) for i in range(2)]
        assert frames == [[0, 10, 20, 30, 40], [100, 110, 120, 130]]
        reasons = "\n".join(table.skipped.values())
        assert len(table.skipped) == 3 and "num_frames=x" in reasons and "row 4" in reasons
        assert "5 of 40 frames" in reasons


# --- which stream, and which way up ---------------------------------------------------------------


def test_a_cover_is_no_video_and_the_default_stream_is(tmp_path: Path) -> None:
    clips = tmp_path / "clips"
    clips.mkdir()
    good, other = film(tmp_path / "good.mp4", RAMP), film(tmp_path / "o.mp4", [250] * 40, side=96)
    ffmpeg("-i", good, "-frames:v", 1, tmp_path / "cover.png")
    copy = ("-map", 0, "-map", 1, "-c", "copy")
    first, second = ("-disposition:v:0", "-disposition:v:1")
    cover = (first, "attached_pic", second, "default", clips / "cover.mp4")
    ffmpeg("-i", tmp_path / "cover.png", "-i", good, *copy, *cover)
    ffmpeg("-i", other, "-i", good, *copy, first, 0, second, "default", clips / "second.mkv")
    ffmpeg("-i", good, "-i", other, *copy, first, "default", second, 0, clips / "first.mkv")
    for table in both(clips, tmp_path / "cache"):
        assert [near(table.clip_frames(i)) for i in range(3)] == [RAMP] * 3


def test_sound_is_no_video(tmp_path: Path) -> None:
    film(tmp_path / "clips/a.mp4", [0, 10, 20])
    with av.open(str(tmp_path / "clips/take.mp4"), "w") as out:
        sound = out.add_stream("aac", rate=44100)
        silence = np.zeros((1, 1024), np.float32)
        frame = av.AudioFrame.from_ndarray(silence, format="fltp", layout="mono")
        frame.rate = 44100
        out.mux(sound.encode(frame))
        out.mux(sound.encode())
    for table in both(tmp_path / "clips", tmp_path / "cache"):
        assert "no video stream, only audio" in table.skipped["take.mp4"]


CORNER = np.array([[250, 120], [60, 0]], np.uint8).repeat(32, 0).repeat(32, 1)
"""A picture that looks different whichever way it is turned."""
TURNS = {
    (1, 0, 0, 1): lambda p: p,
    (0, 1, -1, 0): lambda p: np.rot90(p, -1),
    (-1, 0, 0, -1): lambda p: np.rot90(p, 2),
    (0, -1, 1, 0): lambda p: np.rot90(p, 1),
    (-1, 0, 0, 1): lambda p: p[:, ::-1],
    (1, 0, 0, -1): lambda p: p[::-1],
    (0, 1, 1, 0): lambda p: p.T,
    (0, -1, -1, 0): lambda p: np.rot90(p, 2).T,
}


@pytest.mark.parametrize("matrix", TURNS, ids=str)
def test_pictures_are_turned_and_mirrored_as_the_file_says(tmp_path: Path, matrix) -> None:
    path = tmp_path / "clips/a.mp4"
    path.parent.mkdir()
    with av.open(str(path), "w") as out:
        stream = out.add_stream("libx264", rate=10)
        stream.width = stream.height = 64
        stream.pix_fmt = "yuv420p"
        for _ in range(3):
            frame = av.VideoFrame.from_ndarray(np.stack([CORNER] * 3, -1), format="rgb24")
            out.mux(stream.encode(frame))
        out.mux(stream.encode())
    a, b, c, d = (65536 * v for v in matrix)
    data = bytearray(path.read_bytes())
    track = data.index(
        struct.pack(">9i", 65536, 0, 0, 0, 65536, 0, 0, 0, 1 << 30), data.index(b"tkhd")
    )
    data[track : track + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(data)
    want = torch.from_numpy(TURNS[matrix](CORNER)[8::16, 8::16].copy()).float()
    for table in both(path.parent, tmp_path / "cache", 64):
        got = table.clip_frames(0)[0, 0, 8::16, 8::16].float()
        torch.testing.assert_close(got, want, atol=8, rtol=0)


@pytest.mark.parametrize("aspect, shape", [("2", (64, 128)), ("1/2", (128, 64)), ("0", (64, 64))])
def test_pixels_that_are_not_square_are_shown_as_a_player_does(tmp_path, aspect, shape) -> None:
    source = film(tmp_path / "source.mp4", RAMP, side=64)
    path = tmp_path / "clips/a.mp4"
    path.parent.mkdir()
    ffmpeg("-i", source, "-vf", f"setsar={aspect}", path)
    assert next(read_frames(path)).shape == (3, *shape)
    assert decode_at(path, torch.tensor([3, 0])).shape == (2, 3, *shape)
    once, lazily = both(path.parent, tmp_path / "cache", 16)
    a, b = once.clip_frames(0).float(), lazily.clip_frames(0).float()
    torch.testing.assert_close(a, b, atol=6, rtol=0)


@pytest.mark.parametrize("aspect", [None, 0, 1, 1000])
def test_an_aspect_that_cannot_be_is_none(aspect) -> None:
    class Stream:
        sample_aspect_ratio = aspect

        class codec_context:
            width = height = 64

    assert pixel_aspect(Stream()) == 1


@pytest.mark.parametrize(
    "codec, pix_fmt", [("ffv1", "gray16le"), ("ffv1", "gbrp16le"), ("libx264", "yuv420p10le")]
)
def test_wide_pixels_are_scaled_and_not_cut(tmp_path: Path, codec: str, pix_fmt: str) -> None:
    film(tmp_path / "clips/a.mkv", RAMP, codec=codec, pix_fmt=pix_fmt)
    for table in both(tmp_path / "clips", tmp_path / "cache"):
        assert near(table.clip_frames(0)) == RAMP


def test_frames_of_sixteen_bits_are_scaled_and_not_cut(tmp_path: Path) -> None:
    (tmp_path / "clips/a").mkdir(parents=True)
    for i in range(4):
        image = np.full((8, 8), 257 * 50 * i, np.uint16)
        Image.fromarray(image).save(tmp_path / f"clips/a/{i}.png")
    assert greys(read_clip(find_clips(tmp_path / "clips")[0], 8)) == [0, 50, 100, 150]


# --- announced against decoded --------------------------------------------------------------------


def cut_short(path: Path, kind: str, share: float) -> None:
    """A file with its index in front, of which only the beginning is there."""
    greys = [5 * (i % 50) for i in range(200)]
    whole = film(path.parent.parent / f"whole.{kind}", greys, 25, side=64, gop_size=10)
    if kind in ("mp4", "mov"):
        front = whole.with_name(f"front.{kind}")
        ffmpeg("-i", whole, "-c", "copy", "-movflags", "faststart", front)
        whole = front
    path.write_bytes(whole.read_bytes()[: int(share * whole.stat().st_size)])


@pytest.mark.parametrize("kind", ["mp4", "mov", "mkv", "avi", "flv"])
def test_a_file_cut_short_is_skipped_with_both_numbers(tmp_path: Path, kind: str) -> None:
    film(tmp_path / "clips/good.mp4", RAMP)
    cut_short(tmp_path / f"clips/cut.{kind}", kind, 0.5)
    for table in both(tmp_path / "clips", tmp_path / "cache"):
        reason = table.skipped[f"cut.{kind}"]
        assert "cut short" in reason and ("of 200 frames" in reason or "of 19" in reason)
    with pytest.raises(ValueError, match="cut short"):
        next(read_frames(tmp_path / f"clips/cut.{kind}"))


def test_a_file_that_lacks_its_last_frames_is_used_with_a_note(tmp_path: Path) -> None:
    (tmp_path / "clips").mkdir()
    cut_short(tmp_path / "clips/cut.mp4", "mp4", 0.997)
    notes = []
    with pytest.warns(UserWarning, match="1 of 1 clips lack a few of the frames"):
        for table in both(tmp_path / "clips", tmp_path / "cache"):
            assert 196 <= int(table.length) < 200 and near(table.clip_frames(0))[:3] == [0, 5, 10]
            notes.append(table.notes["cut.mp4"])
    assert f"{int(table.length)} of 200 frames" in notes[0] and notes[0] == notes[1]


def test_a_file_that_begins_midway_or_was_trimmed_is_whole(tmp_path: Path) -> None:
    source = film(tmp_path / "a.mp4", RAMP * 3, 25, gop_size=10)
    clips = tmp_path / "clips"
    clips.mkdir()
    ffmpeg("-ss", 1, "-i", source, "-c", "copy", clips / "trimmed.mp4")
    ffmpeg("-i", source, "-c", "copy", "-f", "mpegts", tmp_path / "whole.ts")
    (clips / "midway.ts").write_bytes((tmp_path / "whole.ts").read_bytes()[188 * 20 :])
    once, lazily = both(clips, tmp_path / "cache")
    assert once.skipped == {} and once.notes == {} and len(once.clips) == 2
    assert torch.equal(once.length, lazily.length)
    for i in range(2):
        assert near(once.clip_frames(i)) == near(lazily.clip_frames(i))


def test_a_manifest_that_announces_too_many_frames_is_skipped_or_noted(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_folder(tmp_path / name, 5)
    (tmp_path / "manifest.csv").write_text("path,len\na,6\nb,9\n")
    for table in both(tmp_path, tmp_path / "cache"):
        assert "5 of 6 frames" in table.notes["a"] and "5 of 9 frames" in table.skipped["b"]


# --- what is not there ----------------------------------------------------------------------------


def test_a_pointer_of_git_lfs_and_a_link_to_nothing_are_named(tmp_path: Path) -> None:
    clips = tmp_path / "clips"
    film(clips / "good.mp4", RAMP)
    (clips / "pointer.mp4").write_text(LFS)
    (clips / "annex.mp4").symlink_to(tmp_path / "nowhere.mp4")
    (clips / "frames").mkdir()
    for i in range(3):
        (clips / f"frames/{i}.png").write_text(LFS)
    for table in both(clips, tmp_path / "cache"):
        assert "git lfs pull" in table.skipped["pointer.mp4"]
        assert "git lfs pull" in table.skipped["frames"]
        assert "a link to" in table.skipped["annex.mp4"]


def test_a_thousand_reasons_are_not_all_said(tmp_path: Path) -> None:
    for i in range(60):
        (tmp_path / f"{i}.mp4").write_text(LFS)
    with pytest.raises(NoReadableClipError, match=r"(?s)none of 60 clips.*and 10 more$") as raised:
        decode_lazily(find_clips(tmp_path), 8, progress=False)
    assert raised.value.skipped.keys() == {f"{i}.mp4" for i in range(60)}
    again = pickle.loads(pickle.dumps(raised.value))  # as from another process
    assert (str(again), again.skipped) == (str(raised.value), raised.value.skipped)


STUB = "raise RuntimeError('Could not load libtorchcodec: FFmpeg is not properly installed')"
READ = """
import sys, warnings
warnings.simplefilter("always")
from torchrl_vip.data.sources import find_clips
from torchrl_vip.data.video import decode_lazily
table = decode_lazily(find_clips(sys.argv[1]), 8, progress=False)
assert len(table.clips) == 2, table.skipped
print([round(float(f.float().mean())) for f in table.clip_frames(1)])
"""


def test_pyav_reads_where_torchcodec_does_not_load_and_it_is_said_once(tmp_path: Path) -> None:
    for name in "ab":
        film(tmp_path / f"clips/{name}.mp4", [0, 50, 100])
    (tmp_path / "stub/torchcodec").mkdir(parents=True)
    (tmp_path / "stub/torchcodec/__init__.py").write_text(STUB)
    program = f"import sys; sys.path.insert(0, {str(tmp_path / 'stub')!r})\n{READ}"
    run = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "clips")], capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    assert run.stderr.count("PyAV reads the videos") == 1
    assert "pip install torchcodec" in run.stderr and "apt install ffmpeg" in run.stderr
    assert eval(run.stdout) == pytest.approx([0, 50, 100], abs=4)


def test_without_pyav_the_error_says_how_to_get_it(tmp_path: Path, monkeypatch) -> None:
    path = film(tmp_path / "a.mp4", RAMP)
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(ImportError, match=r'FFmpeg: pip install "torchrl-vip\[video\]"'):
        next(read_frames(path))


# --- caches of the version before -----------------------------------------------------------------


def test_an_older_cache_is_kept_and_only_what_would_differ_is_decoded_again(
    tmp_path: Path, monkeypatch
) -> None:
    clips, cache = tmp_path / "clips", tmp_path / "cache"
    film(clips / "plain.mp4", RAMP)
    write_folder(clips / "folder", 5)
    ffmpeg("-i", clips / "plain.mp4", "-vf", "setsar=2", clips / "wide.mp4")
    decode_once(find_clips(clips), 8, cache, progress=False)
    journal = cache / "8px/journal.jsonl"
    journal.write_text(journal.read_text().replace(f', "version": {frame_table.VERSION}', ""))
    decoded, read = [], frame_table.read_frames
    monkeypatch.setattr(
        frame_table, "read_frames", lambda path, span: decoded.append(path.name) or read(path, span)
    )
    with pytest.warns(UserWarning, match="1 clips in .* are decoded again"):
        table = decode_once(find_clips(clips), 8, cache, progress=False)
    assert decoded == ["wide.mp4"] and table.length.tolist() == [5, 40, 40]
    assert near(table.clip_frames(1)) == near(table.clip_frames(2)) == RAMP
    decode_once(find_clips(clips), 8, cache, progress=False)
    assert decoded == ["wide.mp4"]


# --- large goals ----------------------------------------------------------------------------------


def test_a_goal_of_too_many_pixels_is_refused_with_its_size_and_the_limit(tmp_path: Path) -> None:
    path = tmp_path / "large.png"
    Image.new("1", (8100, 8000)).save(path)
    with pytest.raises(ValueError, match="8100 x 8000 pixels, the limit is 64 million: resize it"):
        read_image(path)
    with Image.open(path) as image, pytest.raises(ValueError, match="limit is 64 million"):
        read_image(image)


def test_a_jpeg_of_too_many_pixels_is_decoded_at_a_reduced_size(tmp_path: Path) -> None:
    path = tmp_path / "large.jpg"
    Image.new("L", (8100, 8000), 90).save(path)
    image = read_image(path)
    assert 2000 <= image.shape[0] < 4100 and image.shape[2] == 3
    assert abs(float(image.float().mean()) - 90) < 2
