"""Every example and every snippet of the README runs."""

import json
import re
import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import pytest

from torchrl_vip.data.video import write_video

ROOT = Path(__file__).resolve().parents[1]


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


def snippets(file: Path) -> list[str]:
    return re.findall(r"```python\n(.*?)```", file.read_text(), re.DOTALL)


PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in PAGES if snippets(page)], ids=lambda p: p.name)
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


def test_demo_says_what_is_wrong(tmp_path):
    (tmp_path / "text.mp4").write_text("no video")
    result = run(ROOT / "examples/demo.py", "--video", "text.mp4", cwd=tmp_path)
    assert result.returncode == 1
    assert "text.mp4: not a readable video" in result.stderr
    assert "Traceback" not in result.stderr
