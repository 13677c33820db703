"""The reward page: seconds from an upload to its first curve, and memory over many uploads.

    python benchmarks/page.py --out benchmarks/results

A clip of 5 s at 640 x 480, 30 frames a second, is uploaded by Chromium to a server of its own, each time
by a new visitor; then a small one many times by one visitor. Memory is the proportional set size of the
server and its process, which counts what they share once.
"""

from __future__ import annotations

import argparse
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from machine import about, in_words
from tqdm import tqdm

from torchrl_vip.data.video import write_video
from torchrl_vip.files import write_whole


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--visits", type=int, default=5, help="uploads timed (%(default)s)")
    parser.add_argument("--uploads", type=int, default=100, help="for the memory (%(default)s)")
    parser.add_argument("--out", type=Path, required=True, help="folder of page.md")
    args = parser.parse_args()
    if min(args.visits, args.uploads) < 1:
        parser.error("--visits and --uploads: wanted 1 or more")
    return args


def clip(path: Path, count: int, height: int, width: int, seed: int = 0) -> Path:
    """A square that wanders over noise, at 30 frames a second."""
    rng = np.random.default_rng(seed)
    ground = rng.integers(0, 120, (height // 8, width // 8, 3), np.uint8).repeat(8, 0).repeat(8, 1)
    frames = np.repeat(ground[None], count, 0)
    for t, frame in enumerate(frames):
        left = t * (width - 80) // count
        frame[height // 3 : height // 3 + 80, left : left + 80] = 230
    return write_video(path, frames, 30)


@contextmanager
def served() -> Iterator[tuple[subprocess.Popen, str]]:
    """The page, by its command."""
    command = [sys.executable, "-u", "-m", "torchrl_vip.demo", "--port", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        found = re.search(r"http://\S+:\d+", process.stdout.readline())
        yield process, found[0]
    finally:
        process.terminate()
        process.wait(120)


def memory_mb(process: int) -> float:
    """Of a process and its children."""
    children = Path(f"/proc/{process}/task/{process}/children").read_text().split()
    rollup = Path(f"/proc/{process}/smaps_rollup").read_text()
    own = int(re.search(r"^Pss: +(\d+) kB", rollup, re.MULTILINE)[1]) / 1000
    return own + sum(memory_mb(int(child)) for child in children)


def upload(page: Any, path: Path) -> float:
    """Seconds to the curve of a new upload."""
    before = page.evaluate("document.querySelector('#clip video')?.src ?? ''")
    clear = page.locator("#video button[aria-label=Clear]")
    if before:
        clear.first.click()
    start = time.perf_counter()
    page.set_input_files("#video input[type=file]", path)
    page.wait_for_function(
        """before => document.querySelector('#clip .vip-chart')
            && document.querySelector('#clip video').src !== before""",
        arg=before,
        timeout=300_000,
    )
    return time.perf_counter() - start


def measure(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    from playwright.sync_api import sync_playwright

    report = {"about": about(), "seconds": [], "memory": {}}
    long = clip(folder / "long.mp4", 150, 480, 640)
    short = [clip(folder / f"short_{i}.mp4", 20, 96, 128, seed=i) for i in range(2)]
    with served() as (process, url), sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox"]
        )

        def visit() -> Any:
            page = browser.new_page()
            page.goto(url)
            page.wait_for_selector("#clip .vip-hint", timeout=300_000)
            return page

        first = visit()
        report["first"] = upload(first, long)  # the encoder may still be loading
        first.close()
        for _ in tqdm(range(args.visits), desc="visits"):
            page = visit()
            report["seconds"].append(upload(page, long))
            page.close()
        page = visit()
        for number in tqdm(range(1, args.uploads + 1), desc="uploads"):
            upload(page, short[number % 2])
            if number in (10, args.uploads // 2, args.uploads):
                report["memory"][number] = memory_mb(process.pid)
        browser.close()
    return report


def markdown(report: dict[str, Any]) -> str:
    seconds = report["seconds"]
    rows = [
        "# The reward page: seconds and memory",
        "",
        in_words(report["about"]),
        "",
        "| upload to first curve, 5 s of 640 × 480 | s |",
        "|---|---|",
        f"| first visitor of a server that has just started | {report['first']:.1f} |",
        f"| later visitors, median of {len(seconds)} | {statistics.median(seconds):.1f} |",
        f"| the slowest of them | {max(seconds):.1f} |",
        "",
        "| uploads by one visitor | memory of the server and its process, MB |",
        "|---|---|",
        *(f"| {number} | {mb:.0f} |" for number, mb in report["memory"].items()),
    ]
    return "\n".join(rows) + "\n"


def main() -> None:
    args = parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        text = markdown(measure(args, Path(folder)))
    write_whole(args.out / "page.md", lambda part: part.write_text(text))
    print(text)


if __name__ == "__main__":
    main()
