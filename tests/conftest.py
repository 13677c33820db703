"""What every test stands on: a renderer, an import order, the real clips, a tiny known encoder."""

import os
import sys
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def _renderer() -> str:
    """The backend that scripts/setup.sh saw working, else egl."""
    remembered = Path(sys.prefix) / "mujoco_gl"
    return (remembered.read_text().strip() if remembered.is_file() else "") or "egl"


os.environ.setdefault("MUJOCO_GL", _renderer())

# Before anything renders: torchrl imported after the first EGL or OSMesa frame segfaults.
import torchrl  # noqa: F401, I001  (imported for its order alone)

import pytest
import torch
from torch import nn

if "OMP_NUM_THREADS" not in os.environ:
    # more threads only fight: with ParallelEnv's workers, or with pytest's own
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", 1))
    threads = max(1, min(4, os.cpu_count() or 1) // workers)
    torch.set_num_threads(threads)
    if workers > 1:
        os.environ["OMP_NUM_THREADS"] = str(threads)  # of the processes that tests start


class TinyEncoder(nn.Module):
    """[N, 3, S, S] preprocessed frames -> [N, 3]: the mean over H and W of each channel."""

    def forward(self, frames: torch.Tensor) -> torch.Tensor:
        return frames.mean(dim=(-2, -1))


@pytest.fixture
def tiny_encoder() -> TinyEncoder:
    return TinyEncoder()


@pytest.fixture(scope="session")
def vip_data() -> Path:
    """The folder of real clips: $VIP_DATA, else ../shared/data beside the repository."""
    folder = Path(os.environ.get("VIP_DATA") or ROOT.parent / "shared" / "data")
    if not folder.is_dir():
        pytest.skip(f"no clips at {folder}; set VIP_DATA to the folder that holds them")
    return folder


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with the most slow tests first, so that none is left to one worker at the end.

    Within a file the fast tests come first; the order is otherwise kept.
    """
    slow = {item: item.get_closest_marker("slow") is not None for item in items}
    slow_tests = Counter(item.path for item in items if slow[item])
    items.sort(key=lambda item: (-slow_tests[item.path], item.path, slow[item]))
