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
from PIL import Image

from torchrl_vip.data.video import write_video

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = ROOT / "examples"

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
    Image.fromarray(frames[0]).save(tmp_path / "goal.png")
    flags = ["--video", "noise.mp4", "--goal", "goal.png", "--out", "out"]
    result = run(EXAMPLES / "demo.py", *flags, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "noise.mp4: 6 frames, goal image: goal.png" in result.stdout
    assert re.search(r"^The distance .*order -?\d\.\d\d, 1 is best", result.stdout, re.M)
    assert re.search(r"^\d+ % of steps lead towards the goal, \d+ %", result.stdout, re.M)


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
