"""Curves of a video: numbers, words and pictures."""

import itertools
import json
import math

import numpy as np
import pytest
import torch
from clips import film, ramp, write_folder
from PIL import Image

from torchrl_vip import VIPReward
from torchrl_vip.curves import (
    Curve,
    RawPixels,
    Thumbnails,
    charts,
    code_to_reproduce,
    draw_curve,
    measure,
    open_encoder,
)
from torchrl_vip.curves.__main__ import main
from torchrl_vip.curves.curve import BATCH, KEPT
from torchrl_vip.curves.film import film_frames, write_film
from torchrl_vip.curves.saliency import saliency
from torchrl_vip.functional import IMAGENET_STD

pytest.importorskip("matplotlib")
pytest.importorskip("scipy")

# tiny_encoder is the mean colour: from grey a to grey b, 0-255, are |a - b| of these
UNIT = math.sqrt(sum(1 / std**2 for std in IMAGENET_STD)) / 255


def curve(*distance) -> Curve:
    """A curve of these distances: an embedding of one number, the goal at 0."""
    return Curve(np.array(distance, np.float32)[:, None], np.zeros(1, np.float32))


# -- numbers ----------------------------------------------------------------------------------------


def test_the_distance_is_to_the_last_frame_and_the_reward_is_what_a_step_came_nearer(tiny_encoder):
    found = measure(ramp(5).numpy(), encoder=tiny_encoder)
    assert found.distance == pytest.approx(
        [40 * UNIT, 30 * UNIT, 20 * UNIT, 10 * UNIT, 0], abs=1e-5
    )
    assert found.reward == pytest.approx([10 * UNIT] * 4, abs=1e-5)
    assert (found.order, found.towards, found.bumps, found.bump_size) == pytest.approx((1, 1, 0, 0))
    assert found.covered == 1 and found.embedding.shape == (5, 3)


@pytest.mark.parametrize("goal", [1, -4, np.int64(1), "image", "file", "embedding"])
def test_a_goal_is_a_frame_number_an_image_a_file_or_an_embedding(goal, tiny_encoder, tmp_path):
    frames = ramp(5)
    if goal == "image":
        goal = frames[1].numpy()
    elif goal == "file":
        goal = tmp_path / "goal.png"
        Image.fromarray(frames[1].numpy()).save(goal)
    elif goal == "embedding":
        goal = open_encoder(tiny_encoder)(frames[1])
    found = measure(frames, goal, tiny_encoder)
    assert found.distance == pytest.approx(
        [10 * UNIT, 0, 10 * UNIT, 20 * UNIT, 30 * UNIT], abs=1e-5
    )


def test_the_reward_is_that_of_the_package_smoothed_too():
    frames = torch.randint(0, 256, (6, 3, 48, 64), dtype=torch.uint8)
    for smoothing in (0.0, 0.5):
        vip = VIPReward(goal=frames[-1], encoder="tiny", smoothing=smoothing)
        paid = [vip.reward(frame) for frame in frames][1:]
        found = measure(frames, -1, "tiny", smoothing=smoothing)
        assert found.reward == pytest.approx(paid, abs=1e-4)


@pytest.mark.parametrize("encoder", ["tiny", "pixels"])
def test_the_five_lines_of_code_reproduce_the_reward(encoder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    film(tmp_path / "clip.mp4", [0, 80, 120, 255], side=64)
    code, names = code_to_reproduce("clip.mp4", 2, encoder), {}
    exec(code, names)
    assert measure("clip.mp4", 2, encoder).reward == pytest.approx(names["rewards"], abs=1e-4)
    assert len(code.splitlines()) == 5 + (encoder == "pixels")
    assert "encoder" not in code_to_reproduce("clip.mp4", "goal.png", "bundled")


def test_a_video_is_read_once_a_batch_at_a_time(tiny_encoder):
    from networks import Counting

    alive = []

    def frames():
        for n in range(3 * BATCH + 1):
            alive.append(n)
            yield ramp(1, n)[0]

    counting = Counting()
    assert len(measure(frames(), None, counting)) == 3 * BATCH + 1
    assert counting.largest == BATCH and alive == list(range(3 * BATCH + 1))
    large = torch.zeros(4, 2_200, 2_200, 3, dtype=torch.uint8)
    counting.largest = 0
    measure(large, None, counting)
    assert counting.largest == 2  # of 15 MB each


def test_frames_of_a_folder_may_differ_in_size(tiny_encoder):
    frames = [ramp(1, 10 * n, height=40 + 8 * (n // 2), width=64)[0] for n in range(5)]
    assert measure(frames, None, tiny_encoder).order == pytest.approx(1)


def test_raw_pixels_are_the_frame_itself():
    encoder = open_encoder("pixels")
    z = encoder(torch.full((40, 60, 3), 51, dtype=torch.uint8))
    assert z.shape == (RawPixels.dim,) and torch.allclose(z, torch.tensor(0.2), atol=1e-3)


@pytest.mark.parametrize(
    "frames, goal, message",
    [
        (ramp(1), None, r"^1 frame\(s\); wanted a video of two or more"),
        (ramp(0), None, r"^0 frame\(s\)"),
        (ramp(3), 3, r"^goal 3: the video has frames 0 to 2"),
        (ramp(3), torch.zeros(4), r"a goal embedding of 4 numbers; wanted 3"),
        (ramp(3), ramp(2), r"a goal of shape \[2, 48, 64, 3\]; wanted one image"),
    ],
)
def test_what_cannot_be_measured_is_said(frames, goal, message, tiny_encoder):
    with pytest.raises(ValueError, match=message):
        measure(frames, goal, tiny_encoder)


def test_a_bad_goal_is_said_before_a_frame_is_read(tmp_path):
    def frames():
        raise AssertionError("read")
        yield

    with pytest.raises(FileNotFoundError, match="nowhere.png does not exist"):
        measure(frames(), tmp_path / "nowhere.png", "tiny")


def test_a_long_video_leaves_few_pictures_in_memory():
    frames = (torch.full((3, 8, 8), n % 256, dtype=torch.uint8) for n in range(1_002))
    shown = Thumbnails(frames)
    assert sum(1 for _ in shown) == 1_002
    assert len(shown.images) <= KEPT + 1 and {0, 1_001} <= set(shown.images)
    assert all(image[0, 0, 0] == number % 256 for number, image in shown.images.items())


def test_thumbnails_keep_the_shape_of_a_video():
    shown = Thumbnails([torch.zeros(3, 800, 400, dtype=torch.uint8)] * 2)
    list(shown)
    assert {image.shape for image in shown.images.values()} == {(400, 200, 3)}


# -- words ------------------------------------------------------------------------------------------


def test_an_order_is_said_in_words():
    falls = np.linspace(5, 1, 101)
    assert "falls as time goes on (order 1.00" in curve(*falls).in_words()
    assert "grows with time (order -1.00" in curve(*falls[::-1]).in_words()
    hardly = curve(*np.abs(np.linspace(-1, 1.05, 101))).in_words()
    assert "hardly follows time" in hardly and "does not work for this video. Try" in hardly
    assert "the same in every frame" in curve(1, 1, 1).in_words()


def test_steps_and_the_way_are_said_in_words():
    said = curve(5, 4, 3, 2, 3, 2).in_words()
    assert said.startswith(
        "80 % of steps lead towards the goal, 20 % lead away from it (bumps 0.20)."
    )
    assert "It comes 60 % of the way" in said
    assert "ends farther" in curve(1, 2).in_words()
    assert curve(1, 1, 2, 1).in_words().startswith("33 % of steps lead towards the goal, 33 %")


def test_numbers_are_of_json_also_where_the_video_begins_at_its_goal():
    numbers = json.loads(json.dumps(curve(0, 2, 1).numbers(), allow_nan=False))
    assert numbers["bump_size"] is None and numbers["covered"] is None
    assert numbers["distance"] == [0, 2, 1] and numbers["reward"] == [-2, 1]


# -- pictures ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(40, 240), (48, 64), (160, 40)])
@pytest.mark.parametrize("rate", [25.0, None])
def test_the_picture_of_a_video_explains_itself(shape, rate):
    shown = {n: np.full((*shape, 3), n, np.uint8) for n in range(0, 51, 2)}
    goal = np.full((30, 30, 3), 255, np.uint8)
    figure = draw_curve(
        curve(*np.linspace(9.0, 6.0, 51)),
        shown,
        goal,
        times=np.arange(51) / rate if rate else None,
        title="How far is $clip$.mp4 from the goal image goal.png?",
        goal_name="goal.png",
        sentences=["a sentence " * 40],
    )
    figure.canvas.draw()
    assert "clip" in figure.get_suptitle() and "goal.png" in figure.get_suptitle()
    images = [axis.images[0].get_array() for axis in figure.axes if axis.images]
    assert np.array_equal(images[-1], goal)  # beside the frames
    numbers = [int(image.flat[0]) for image in images[:-1]]
    assert numbers[0] == 0 and numbers[-1] == 50 and numbers == sorted(set(numbers))
    above, below = [axis for axis in figure.axes if axis.lines]
    assert above.get_ylim()[0] == 0 and above.get_ylim()[1] > 9
    assert below.get_xlabel() == ("time in the video (s)" if rate else "frame of the video")
    assert "embedding units" in above.get_ylabel() and "reward" in below.get_ylabel()
    # each frame is above its time
    dots = above.lines[1].get_xdata()
    assert dots[-1] == pytest.approx(50 / rate if rate else 50)
    boxes = [axis.get_window_extent() for axis in figure.axes if axis.images][:-1]
    at = above.transData.transform(np.stack([dots, np.zeros(len(dots))], 1))[:, 0]
    width = boxes[1].x0 - boxes[0].x0
    for box, x in zip(boxes, at, strict=True):
        assert abs((box.x0 + box.x1) / 2 - x) < 0.25 * width


def test_encoders_are_compared_in_parts_of_their_first_distance():
    figure = draw_curve(
        {"large": curve(40, 20, 0), "small": curve(4, 1, 0), "there": curve(0, 0, 0)}
    )
    above, below = figure.axes
    assert [list(line.get_ydata()) for line in above.lines] == [
        [1, 0.5, 0],
        [1, 0.25, 0],
        [0, 0, 0],
    ]
    assert [text.get_text() for text in above.get_legend().get_texts()] == [
        "large",
        "small",
        "there",
    ]
    assert "first frame's = 1" in above.get_ylabel()
    assert list(below.lines[1].get_ydata()[:2]) == [0.75, 0.25]


def test_rewards_of_all_videos_are_counted_each_in_parts_of_its_first_distance():
    curves = {"a": {"x": curve(10, 5, 6)}, "b": {"x": curve(2, 1)}}
    assert charts.step_rewards(curves, "x") == pytest.approx([0.5, -0.1, 0.5])
    (axis,) = charts.draw_rewards(curves).axes
    counts = {round(bar.get_x() + bar.get_width() / 2, 2): bar.get_height() for bar in axis.patches}
    assert sum(counts.values()) == 3
    assert sum(n for x, n in counts.items() if x > 0) == 2  # none of both signs in a bar
    assert {text.get_text() for text in axis.texts} == {"away: 33 %", "towards: 67 %"}


def test_the_table_has_every_video_and_the_means_and_marks_the_best():
    curves = {
        "a": {"good": curve(4, 2, 1, 0), "bad": curve(4, 5, 3, 4)},
        "b": {"good": curve(0, 1), "bad": curve(2, 1)},  # begins at its goal: no bump size
    }
    text = charts.smoothness_text(curves)
    lines = [line.split() for line in text.splitlines()]
    assert lines[1] == ["a", "good", "1.00", "0.00", "0.00", "1.00"]
    assert lines[3] == ["b", "good", "-1.00", "1.00", "–", "0.00"]
    assert lines[-2] == ["mean", "of", "2", "good", "0.00", "0.50", "0.00", "0.50"]
    (table,) = charts.draw_smoothness(curves).axes[0].tables
    bold = {at for at, cell in table.get_celld().items() if cell.get_text().get_weight() == "bold"}
    assert {(1, column) for column in range(2, 6)} <= bold and (2, 2) not in bold and (4, 2) in bold


def test_a_path_keeps_distances_and_says_how_far_the_goal_is_from_its_plane():
    z = np.array([[0, 0, 0], [3, 0, 0], [3, 1, 0]], np.float32)
    path, goal, share = charts.project(Curve(z, np.array([3, 1, 7], np.float32)))
    assert np.linalg.norm(path[0] - path[2]) == pytest.approx(math.sqrt(10))
    assert goal[:2] == pytest.approx(path[2]) and goal[2] == pytest.approx(7)
    assert share.sum() == pytest.approx(1) and share[0] > share[1]
    assert charts.project(curve(1, 1))[0].shape == (2, 2)  # a point


def test_attempts_are_ranked_by_where_they_end():
    figure = charts.draw_attempts({"far": curve(5, 4), "near": curve(9, 1)}, threshold=2.0)
    names = [text.get_text() for text in figure.axes[1].get_legend().get_texts()]
    assert names == ["near: ends at 1.0", "far: ends at 4.0"]


class LeftHalf(torch.nn.Module):
    """The mean of the left half of a frame, in [0, 1]; sees nothing else."""

    image_size, dim = 32, 1

    def forward(self, frames):
        return (frames[..., :16] * 0.225 + 0.45).mean((-3, -2, -1))[:, None]


def test_saliency_is_where_hiding_changes_the_distance_and_has_its_sign():
    frame = np.zeros((40, 64, 3), np.uint8)
    frame[10:30, 16:26] = 255  # white, in the left half of the square that the encoder sees
    frame[10:30, 40:50] = 255  # and in the right one
    encoder = open_encoder(LeftHalf())
    dark = saliency(frame, np.zeros(1, np.float32), encoder, cells=8, patch=0.1)
    bright = saliency(frame, np.ones(1, np.float32), encoder, cells=8, patch=0.1)
    assert dark.shape == (8, 13)
    assert np.unravel_index(dark.argmin(), dark.shape)[1] in (3, 4, 5)  # without it, it is darker
    assert dark.min() < -0.01 and bright.max() > 0.01
    assert np.abs(dark[:, 8:]).max() < 0.1 * np.abs(dark).max()
    draw = charts.draw_saliency({"now": frame}, {"left": [dark]}, title="t")
    draw.canvas.draw()


def test_a_film_shows_the_frame_and_fades_the_curve_to_come():
    frames = [np.full((60, 90, 3), 10 * t, np.uint8) for t in range(11)]
    falls = curve(*np.linspace(1, 0, 11))
    pictures = list(film_frames(frames, falls, title="a $ b"))
    assert len(pictures) == 11 and len({picture.shape for picture in pictures}) == 1
    height, width, _ = pictures[0].shape
    assert height % 2 == width % 2 == 0
    assert abs(int(pictures[7][height // 2, 100].mean()) - 70) < 5
    ink = [(255 - picture[:, -500:].astype(int)).sum() for picture in pictures]
    assert all(earlier < later for earlier, later in itertools.pairwise(ink))


def test_a_film_lasts_as_long_as_its_video(tmp_path):
    import av

    frames = [np.full((90, 50, 3), 2 * t, np.uint8) for t in range(100)]
    times = np.arange(100) / 25
    mp4, gif = write_film(tmp_path, frames, curve(*np.linspace(1, 0, 100)), times=times)
    with av.open(str(mp4)) as video:
        assert float(video.duration / 1e6) == pytest.approx(4, abs=0.1)
    with Image.open(gif) as moving:
        assert 40 <= moving.n_frames <= 80
        shown = 0
        for number in range(moving.n_frames):
            moving.seek(number)
            shown += moving.info["duration"]
    assert shown == pytest.approx(5_000, abs=300)  # and a second at the end


# -- the command ------------------------------------------------------------------------------------


def test_the_command_writes_every_picture_and_all_numbers(tmp_path, capsys):
    film(tmp_path / "try.mp4", [0, 40, 80, 120, 255], side=64)
    write_folder(tmp_path / "frames", 3)
    Image.fromarray(np.full((64, 64, 3), 255, np.uint8)).save(tmp_path / "done.png")
    videos = [tmp_path / "try.mp4", tmp_path / "frames", tmp_path / "try.mp4"]
    flags = ["--goal", tmp_path / "done.png", "--encoder", "pixels", "--out", tmp_path / "look"]
    assert main([*map(str, videos), *map(str, flags)]) == 0
    written = {
        str(path.relative_to(tmp_path / "look")) for path in (tmp_path / "look").rglob("*.*")
    }
    each = {"curve.png", "film.mp4", "film.gif", "path.png", "saliency.png"}
    together = {"rewards.png", "smoothness.png", "attempts.png", "curves.json"}
    names = ("try", "frames", "try_2")
    assert written == together | {f"{name}/{file}" for name in names for file in each}
    numbers = json.loads((tmp_path / "look/curves.json").read_text())["videos"]
    measured = measure(tmp_path / "try.mp4", tmp_path / "done.png", "pixels")
    assert numbers["try"]["encoders"]["pixels"]["distance"] == pytest.approx(
        measured.distance.tolist()
    )
    assert set(numbers["try"]["encoders"]["pixels"]["saliency"]) == {"0", "2", "4"}
    assert numbers["frames"]["seconds"] is None and len(numbers["try"]["seconds"]) == 5
    said = capsys.readouterr().out
    assert "try, pixels: 100 % of steps lead towards the goal" in said and "mean of 3" in said


def test_a_folder_that_is_there_is_kept_but_for_one_of_this_command(tmp_path, capsys):
    video = film(tmp_path / "try.mp4", [0, 255], side=64)
    line = [str(video), "--encoder", "pixels", "--only", "rewards", "--out", str(tmp_path / "look")]
    (tmp_path / "look").mkdir()
    (tmp_path / "look/mine").write_text("mine")
    assert main([*line, "--overwrite"]) == 1
    assert "exists and is not empty: give another folder" in capsys.readouterr().err
    (tmp_path / "look/mine").unlink()
    assert main(line) == 0 and main(line) == 1
    assert "add --overwrite" in capsys.readouterr().err
    assert main([*line, "--overwrite"]) == 0
    assert {path.name for path in (tmp_path / "look").iterdir()} == {"rewards.png", "curves.json"}
    assert main([*line[:-1], str(video / "below")]) == 1
    assert "wanted a folder that can be made" in capsys.readouterr().err


@pytest.mark.parametrize(
    "flags, message",
    [
        (["nowhere.mp4"], "nowhere.mp4"),
        (["text.mp4"], "text.mp4: not a readable video"),
        (["one.mp4"], "one.mp4: 1 frame(s); wanted a video of two or more"),
        (["try.mp4", "--goal", "nowhere.png"], "--goal nowhere.png is no file; wanted an image"),
        (["try.mp4", "--goal", "7"], "try.mp4: goal 7: the video has frames 0 to 1"),
        (["try.mp4", "--goal", "text.mp4"], "text.mp4 cannot be read; wanted a PNG"),
        (["try.mp4", "--encoder", "huge"], "'huge' is neither a bundled checkpoint"),
        (["try.mp4", "--encoder", "tiny", "tiny"], "one is named twice"),
        (["try.mp4", "--smoothing", "1"], "--smoothing 1.0: wanted a share in [0, 1)"),
        (["try.mp4", "--saliency-frames", "0"], "wanted 1 or more"),
        (["try.mp4", "--device", "cuda:77"], "--device cuda:77: "),
    ],
)
def test_a_mistake_is_a_line_and_leaves_nothing(flags, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    film(tmp_path / "try.mp4", [0, 255], side=64)
    film(tmp_path / "one.mp4", [0], side=64)
    (tmp_path / "text.mp4").write_text("no video")
    if "--encoder" not in flags:
        flags = [*flags, "--encoder", "pixels"]
    assert main([*flags, "--out", "look"]) == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("error: ") and message in last
    assert not [path for path in tmp_path.iterdir() if "look" in path.name]
