"""Whole pre-training runs: what they leave, killed and resumed, and that they learn."""

import csv
import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from torchvision.io import write_png

from torchrl_vip import load_vip
from torchrl_vip.pretrain.trainer import pretrain
from torchrl_vip.weights import CheckpointError

pytestmark = pytest.mark.slow

CONFIG = Path(__file__).resolve().parents[1] / "torchrl_vip" / "pretrain" / "config.yaml"
SMALL = ("image_size=32", "dim=8", "batch_size=4", "steps=24", "device=cpu", "progress=false")
SMALL += ("precision=float32", "checkpoint_every=2", "validate_every=12", "data.validation=[val]")


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six clips of a bright bar that crosses the picture; two are labelled "val", one is broken."""
    root = tmp_path_factory.mktemp("clips")
    for i in range(6):
        folder = root / f"{i}"
        folder.mkdir()
        for t in range(8):
            frame = torch.full((3, 48, 64), 20 * i, dtype=torch.uint8)
            frame[:, :, 8 + 6 * t : 14 + 6 * t] = 250
            write_png(frame, str(folder / f"{t}.png"))
    (root / "broken.mp4").write_text("no video")
    labels = [{"file": f"{i}", "group": "val" if i < 2 else f"g{i}"} for i in range(6)]
    (root / "index.json").write_text(json.dumps(labels))
    return root


def command(clips: Path, out: Path, *options: str) -> list[str]:
    where = (f"data.path={clips}", f"out_dir={out}")
    return [sys.executable, "-m", "torchrl_vip.pretrain", *where, *SMALL, *options]


def run(clips: Path, out: Path, *options: str) -> str:
    done = subprocess.run(command(clips, out, *options), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def config_of(clips: Path, out: Path, **changes) -> dict:
    """The defaults of config.yaml with the small run's values."""
    config = yaml.safe_load(CONFIG.read_text())
    config["data"] |= {"path": str(clips), "validation": ["val"]}
    small = [option.split("=") for option in SMALL if not option.startswith("data.")]
    config |= {key: yaml.safe_load(value) for key, value in small}
    return config | {"out_dir": str(out)} | changes


@pytest.fixture(scope="module")
def finished(clips: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder of an uninterrupted run, and what it printed."""
    out = tmp_path_factory.mktemp("finished") / "run"
    return out, run(clips, out)


def contents(run: Path) -> dict[str, bytes]:
    names = ("final/model.safetensors", "final/config.json", "metrics.csv")
    return {name: (run / name).read_bytes() for name in names}


def test_a_run_leaves_what_it_promises(finished: tuple[Path, str], clips: Path) -> None:
    out, said = finished
    assert {p.name for p in out.iterdir()} == {
        *("config.yaml", "metrics.csv", "curves.png", "checkpoints", "final", "frames")
    }
    config = yaml.safe_load((out / "config.yaml").read_text())
    assert config == config_of(clips, out)
    assert "skipped 1 of them" in said and "broken.mp4: not a readable video" in said
    assert "training: 4 clips, 32 frames" in said and "validation: 2 clips, 16 frames" in said
    assert said.strip().endswith(f'load_vip("{out}/final")')
    with open(out / "metrics.csv", newline="") as file:
        rows = [(int(r["step"]), r["metric"], float(r["value"])) for r in csv.DictReader(file)]
    assert {step for step, name, _ in rows if name == "loss"} == {10, 20, 24}
    assert {step for step, name, _ in rows if name == "validation/voc"} == {0, 12, 24}
    assert len({(step, name) for step, name, _ in rows}) == len(rows)
    assert (out / "curves.png").read_bytes()[:4] == b"\x89PNG"
    state = torch.load(out / "checkpoints" / "last.pt", weights_only=True)
    assert set(state) == {"step", "encoder", "optimizer", "schedule"} and state["step"] == 24
    vip = load_vip(out / "final")
    assert (vip.name, vip.dim, vip.image_size) == ("resnet18", 8, 32)
    assert vip.config["training_clips"] == 4 and vip.config["reward_scale"] > 0
    assert all(torch.equal(v, state["encoder"][k]) for k, v in vip.state_dict().items())


def test_a_finished_run_is_left_as_it_is(finished: tuple[Path, str], clips: Path) -> None:
    out, _ = finished
    before = contents(out)
    assert "resumed from step 24 of 24" in run(clips, out)
    assert contents(out) == before


def test_killed_at_any_moment_and_resumed_it_ends_with_the_same_bits(
    finished: tuple[Path, str], clips: Path, tmp_path: Path
) -> None:
    out, rng = tmp_path / "run", random.Random(time.time_ns())
    checkpoint, reached = out / "checkpoints" / "last.pt", []
    for _ in range(3):
        before = checkpoint.stat().st_mtime_ns if checkpoint.exists() else 0
        process = subprocess.Popen(command(clips, out), stdout=subprocess.DEVNULL)
        while process.poll() is None:
            if checkpoint.exists() and checkpoint.stat().st_mtime_ns != before:
                time.sleep(rng.uniform(0, 0.2))
                break
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        process.wait()
        reached.append(torch.load(checkpoint, weights_only=True)["step"])
    assert 0 < reached[0] < 24 and reached == sorted(reached)
    assert f"resumed from step {reached[-1]} of 24" in run(clips, out)
    assert (
        contents(out)["final/model.safetensors"] == contents(finished[0])["final/model.safetensors"]
    )
    assert contents(out)["metrics.csv"] == contents(finished[0])["metrics.csv"]


def test_resume_false_starts_again_and_another_network_is_refused(
    finished: tuple[Path, str], clips: Path, tmp_path: Path
) -> None:
    (tmp_path / "checkpoints").mkdir()
    checkpoint = tmp_path / "checkpoints" / "last.pt"
    checkpoint.write_bytes((finished[0] / "checkpoints" / "last.pt").read_bytes())
    with pytest.raises(CheckpointError, match="another network"):
        pretrain(config_of(clips, tmp_path, dim=4))
    pretrain(config_of(clips, tmp_path, dim=4, steps=1, resume=False))
    assert torch.load(checkpoint, weights_only=True)["step"] == 1
    tuned = config_of(clips, tmp_path / "tuned", encoder=str(tmp_path / "final"), steps=1)
    assert load_vip(pretrain(tuned)).dim == 4


def test_the_loss_falls_on_an_easy_set(clips: Path, tmp_path: Path) -> None:
    easy = {"steps": 80, "batch_size": 8, "lr": 1e-3, "crop_scale": [0.9, 1.0], "flip": 0.0}
    pretrain(config_of(clips, tmp_path, **easy, colour=0.0, validate_every=80))
    with open(tmp_path / "metrics.csv", newline="") as file:
        rows = {(int(r["step"]), r["metric"]): float(r["value"]) for r in csv.DictReader(file)}
    assert rows[80, "loss_vip"] < rows[10, "loss_vip"] - 0.2
