"""Every example and every snippet of the README and the docs runs."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from pages import PAGES, name, snippets

from torchrl_vip.data.video import write_video

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = ROOT / "examples"
sys.path.insert(0, str(EXAMPLES))

import demo  # noqa: E402
import figures  # noqa: E402

# Runs snippets in turn, each as a __main__ of its own: starting Python for each takes most of the time.
RUN_ALL = """
import json, sys, types
for code in json.load(sys.stdin):
    print(code, file=sys.stderr)
    sys.modules["__main__"] = module = types.ModuleType("__main__")
    exec(code, vars(module))
"""


def run(*command, cwd, input=None):
    return subprocess.run(
        [sys.executable, *map(str, command)],
        cwd=cwd,
        input=input,
        capture_output=True,
        text=True,
        timeout=600,
    )


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in PAGES if snippets(page)], ids=name)
def test_snippets_run(page, tmp_path):
    result = run("-c", RUN_ALL, cwd=tmp_path, input=json.dumps(snippets(page)))
    assert result.returncode == 0, result.stderr  # ends with the snippet that failed


def test_readme_has_snippets_and_its_files_exist():
    text = (ROOT / "README.md").read_text()
    assert len(snippets(ROOT / "README.md")) >= 2
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", text):
        assert (ROOT / target).exists(), f"README links to {target}, which is not there"


@pytest.mark.slow
def test_demo_in_the_simulator(tmp_path):
    result = run(
        ROOT / "examples/demo.py", "--seeds", 2, "--steps", 100, "--out", tmp_path, cwd=tmp_path
    )
    assert result.returncode == 0, result.stderr
    assert re.search(r"out-returned the failure in \d of \d seeds", result.stdout)
    assert (tmp_path / "demo.png").stat().st_size > 50_000
    with av.open(str(tmp_path / "demo.mp4")) as video:
        shown = [f.to_ndarray(format="rgb24") for f in video.decode(video=0)]
    assert len(shown) > 10 and np.abs(shown[0].astype(int) - shown[-1]).max() > 50


def test_demo_on_a_video(tmp_path):
    ramp = np.zeros((12, 48, 64, 3), np.uint8)
    for t in range(12):
        ramp[t, :, 5 * t : 5 * t + 8] = 255
    write_video(tmp_path / "ramp.mp4", ramp)
    result = run(ROOT / "examples/demo.py", "--video", "ramp.mp4", "--out", "out", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "12 frames" in result.stdout and (tmp_path / "out/ramp.png").exists()


def test_demo_on_a_video_with_a_goal_image(tmp_path):
    frames = np.random.default_rng(0).integers(0, 256, (6, 48, 64, 3), np.uint8)
    write_video(tmp_path / "noise.mp4", frames)
    figures.plt.imsave(tmp_path / "goal.png", frames[0])
    flags = ["--video", "noise.mp4", "--goal", "goal.png", "--out", "out"]
    result = run(EXAMPLES / "demo.py", *flags, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "noise.mp4: 6 frames, goal image: goal.png" in result.stdout
    assert re.search(r"^The distance .*order -?\d\.\d\d, 1 is best", result.stdout, re.M)
    assert re.search(r"^\d+% of the steps .* lead towards the goal, \d+%", result.stdout, re.M)


@pytest.mark.parametrize("shape", [(40, 240), (48, 64), (160, 40)])
@pytest.mark.parametrize("rate", [25.0, None])
def test_the_picture_of_a_video_explains_itself(shape, rate, tmp_path, monkeypatch):
    saved = []
    monkeypatch.setattr(figures, "_save", lambda figure, path: saved.append(figure))
    shown = {n: np.full((*shape, 3), n, np.uint8) for n in range(0, 51, 2)}
    goal = np.full((30, 30, 3), 255, np.uint8)
    distance = np.linspace(9.0, 6.0, 51)
    figures.draw_video(
        shown,
        distance,
        goal,
        tmp_path / "picture.png",
        title="How far is $clip$.mp4 from the goal image goal.png?",
        goal_name="goal.png",
        sentences=["a sentence " * 40],
        rate=rate,
    )
    (figure,) = saved
    figure.canvas.draw()
    assert "clip" in figure.get_suptitle() and "goal.png" in figure.get_suptitle()
    images = [axis.images[0].get_array() for axis in figure.axes if axis.images]
    assert np.array_equal(images[-1], goal)  # beside the frames
    numbers = [int(image.flat[0]) for image in images[:-1]]
    assert numbers[0] == 0 and numbers[-1] == 50 and numbers == sorted(set(numbers))
    (plot,) = [axis for axis in figure.axes if axis.lines]
    assert plot.get_ylim()[0] == 0 and plot.get_ylim()[1] > 9
    assert plot.get_xlabel() == ("time in the video (s)" if rate else "frame of the video")
    assert "embedding units" in plot.get_ylabel()
    # each frame is above its time
    dots = plot.lines[1].get_xdata()
    assert dots[-1] == pytest.approx(50 / rate if rate else 50)
    middles = [axis.get_window_extent() for axis in figure.axes if axis.images][:-1]
    at = plot.transData.transform(np.stack([dots, np.zeros(len(dots))], 1))[:, 0]
    width = middles[1].x0 - middles[0].x0
    for box, x in zip(middles, at, strict=True):
        assert abs((box.x0 + box.x1) / 2 - x) < 0.25 * width


def test_an_order_is_said_in_words():
    falls = np.linspace(5, 1, 101)
    assert "falls as time goes on (order 1.00" in figures.order_sentence(falls)
    assert "grows with time (order -1.00" in figures.order_sentence(falls[::-1])
    hardly = figures.order_sentence(np.abs(np.linspace(-1, 1.05, 101)))
    assert "hardly follows time" in hardly and "does not work for this video. Try" in hardly
    assert "the same in every frame" in figures.order_sentence(np.ones(4))
    assert figures.steps_sentence(np.array([5.0, 4, 3, 2, 3, 2])).startswith(
        "80% of the steps from frame to frame lead towards the goal, 20% lead away"
    )
    assert "comes 80% of the way" in figures.way_sentence(falls)
    assert "ends farther" in figures.way_sentence(falls[::-1])


def test_a_long_video_leaves_few_pictures_in_memory(monkeypatch):
    frames = (torch.full((3, 8, 8), n % 256, dtype=torch.uint8) for n in range(1_001))
    monkeypatch.setattr(demo, "read_frames", lambda video: frames)
    z, images = demo.look_through("long.mp4", lambda frame: frame.float().mean((1, 2)))
    assert z.shape == (1_001, 3)
    assert len(images) <= demo.KEPT + 1 and {0, 1_000} <= set(images)
    assert all(image[0, 0, 0] == number % 256 for number, image in images.items())


@pytest.mark.parametrize(
    "script, flags",
    [
        ("demo", ("--video", "text.mp4")),
        ("mppi", ("--suite", "metaworld", "--task", "door-close-v3")),
        ("sac", ()),
    ],
)
@pytest.mark.parametrize("out", ["file", "file/below"])
def test_an_out_that_is_a_file_is_a_line(script, flags, out, tmp_path):
    if script != "demo":
        pytest.importorskip("metaworld")
    (tmp_path / "file").write_text("mine")
    result = run(EXAMPLES / f"{script}.py", *flags, "--out", out, cwd=tmp_path)
    assert result.returncode == 1
    (line,) = result.stderr.strip().splitlines()
    assert line.startswith(f"error: --out {out}")
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("script", ["demo", "mppi", "sac", "drq", "goal_switching"])
def test_ctrl_c_during_the_imports_is_a_line(script, tmp_path):
    for module in ("numpy", "torch", "matplotlib"):  # the first of them is where it comes
        (tmp_path / f"{module}.py").write_text("raise KeyboardInterrupt")
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}:{ROOT}"}
    result = subprocess.run(
        [sys.executable, EXAMPLES / f"{script}.py"], capture_output=True, text=True, env=environment
    )
    assert result.returncode == 130
    assert result.stderr.strip() == "stopped by Ctrl-C"


def test_demo_says_what_is_wrong(tmp_path):
    (tmp_path / "text.mp4").write_text("no video")
    result = run(ROOT / "examples/demo.py", "--video", "text.mp4", cwd=tmp_path)
    assert result.returncode == 1
    assert "text.mp4: not a readable video" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize("reward", ["vip", pytest.param("sparse", marks=pytest.mark.slow)])
def test_sac_minimal(tmp_path, reward):
    pytest.importorskip("metaworld")
    script = ROOT / "examples/sac_minimal.py"
    result = run(script, "--smoke", "--reward", reward, "--out", "out", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    header, *rows = (tmp_path / "out/success.csv").read_text().splitlines()
    assert header == "step,success" and [row.split(",")[0] for row in rows] == ["400"]
    assert "2 unseen starts" in result.stdout
    policy = torch.load(tmp_path / "out/policy.pt", weights_only=True)
    assert all(tensor.isfinite().all() for tensor in policy.values())
    assert any(name.endswith("state_scale") for name in policy)  # it scales its inputs by itself


def test_sac_minimal_says_what_is_wrong(tmp_path):
    result = run(ROOT / "examples/sac_minimal.py", "--steps", 1000, cwd=tmp_path)
    assert result.returncode == 2 and not list(tmp_path.iterdir())
    assert "--steps 1000 is invalid: wanted more than the 1000 of random actions." in result.stderr


def test_sac_minimal_is_short_and_stands_alone():
    text = (ROOT / "examples/sac_minimal.py").read_text()
    assert len(text.splitlines()) <= 120
    others = [path.stem for path in (ROOT / "examples").glob("*.py")]
    assert not re.search(rf"^(?:from|import) (?:{'|'.join(others)})\b", text, re.MULTILINE)
