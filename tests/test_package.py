"""The wheel stands alone: installed outside the tree it opens its bundled checkpoint."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

OPEN_BUNDLED = """
from pathlib import Path
import torch
import torchrl_vip
from torchrl_vip import load_vip

folder = Path(torchrl_vip.__file__).resolve().parent
assert list(folder.glob("assets/*/model.safetensors")), "the wheel carries no checkpoint"
frames = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
with torch.no_grad():
    z = load_vip().eval()(frames)
assert z.ndim == 2 and z.shape[0] == 2, z.shape
assert torch.isfinite(z).all()
print(folder)
"""


def _run(*command: str, **kwargs) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, **kwargs)
    assert done.returncode == 0, f"{' '.join(command[:5])} failed:\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that holds the wheel of this tree, installed, and nothing else."""
    pytest.importorskip("hatchling", reason="the wheel's backend: pip install -e '.[dev]'")
    dist, target = tmp_path_factory.mktemp("dist"), tmp_path_factory.mktemp("site")
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check")
    wheel = ("wheel", "-q", "--no-deps", "--no-build-isolation", "-w", str(dist), str(ROOT))
    _run(*pip, *wheel)
    (built,) = dist.glob("torchrl_vip-*.whl")
    _run(*pip, "install", "-q", "--no-deps", "--no-index", "--target", str(target), str(built))
    return target


@pytest.mark.slow
def test_the_wheel_holds_the_package_and_all_its_data(installed: Path) -> None:
    """Every yaml, checkpoint and card of the tree is in the wheel; tests and examples are not."""
    package = ROOT / "torchrl_vip"
    kinds = {".py", ".yaml", ".json", ".md", ".safetensors", ".npz"}
    wanted = {str(p.relative_to(ROOT)) for p in package.rglob("*") if p.suffix in kinds}
    held = {str(p.relative_to(installed)) for p in installed.rglob("*") if p.suffix in kinds}
    assert wanted and wanted <= held, f"left out of the wheel: {sorted(wanted - held)}"
    top = {p.name for p in installed.iterdir()} - {"bin", "__pycache__"}
    assert {name for name in top if not name.endswith(".dist-info")} == {"torchrl_vip"}


@pytest.mark.slow
def test_the_installed_wheel_opens_its_checkpoint(installed: Path, tmp_path: Path) -> None:
    env = {**os.environ, "PYTHONPATH": str(installed)}
    out = _run(sys.executable, "-c", OPEN_BUNDLED, cwd=tmp_path, env=env)
    assert Path(out.strip().splitlines()[-1]) == (installed / "torchrl_vip").resolve()
