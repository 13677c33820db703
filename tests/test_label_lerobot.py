"""Labels of LeRobot datasets: the sidecar, a new dataset, one in place."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from clips import film

from torchrl_vip.label.__main__ import main

pq = pytest.importorskip("pyarrow.parquet")
pytest.importorskip("av")
CAMERA = "observation.images.top"


def command(*arguments: object) -> int:
    return main([*map(str, arguments), "--encoder", "tiny"])


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    """Three episodes of 6, 4 and 5 frames, two tasks, two videos a file."""
    from torchrl_vip.data.lerobot.writer import LeRobotWriter

    root = tmp_path / "pushes"
    with LeRobotWriter(root, fps=10, episodes_per_file=2) as writer:
        for i, (frames, task) in enumerate([(6, "push"), (4, "push"), (5, "lift")]):
            greys = np.linspace(20, 200 - 20 * i, frames).astype(int).tolist()
            video = film(tmp_path / f"{i}.mp4", greys, side=64)
            writer.add_episode({CAMERA: video}, {"action": np.zeros((frames, 2), np.float32)}, task)
    return root


def held(root: Path) -> dict[str, bytes]:
    return {p.relative_to(root).as_posix(): p.read_bytes() for p in root.rglob("*") if p.is_file()}


def rows(path: Path) -> dict[str, list]:
    return pq.read_table(path).to_pydict()


def test_the_sidecar(dataset, tmp_path):
    before = held(dataset)
    assert command(dataset, "--goal", "mean-last") == 0
    after = held(dataset)
    assert after.keys() - before.keys() == {"vip_progress.parquet"}
    assert all(after[name] == data for name, data in before.items())
    table = pq.read_table(dataset / "vip_progress.parquet")
    kinds = {field.name: str(field.type) for field in table.schema}
    assert kinds == {
        **dict.fromkeys(("index", "episode_index", "frame_index"), "int64"),
        **dict.fromkeys(("progress_sparse", "progress", "distance", "reward"), "float"),
    }
    assert table.schema.metadata[b"reward_model_path"] == b"tiny"
    said = table.to_pydict()
    assert said["index"] == list(range(15))
    assert said["episode_index"] == [0] * 6 + [1] * 4 + [2] * 5
    assert said["frame_index"] == [*range(6), *range(4), *range(5)]
    frames = rows(tmp_path / "pushes_vip/rewards.parquet")
    for name, of in (("progress_sparse", "progress_clipped"), ("reward", "reward")):
        np.testing.assert_array_equal(said[name], frames[of])
    assert json.loads((tmp_path / "pushes_vip/report.json").read_text())["episodes"] == 3


def test_a_whole_dataset(dataset, tmp_path):
    before, out = held(dataset), tmp_path / "labelled"
    assert command(dataset, "--camera", "top", "--out", out) == 0
    assert held(dataset) == before
    info = json.loads((out / "meta/info.json").read_text())["features"]
    assert info["next.reward"]["dtype"] == "float32" and info["next.reward"]["shape"] == [1]
    assert info["observation.vip"]["shape"] == [512]
    stats = json.loads((out / "meta/stats.json").read_text())
    assert {"next.reward", "observation.vip"} <= stats.keys()
    said = [rows(path) for path in sorted(out.glob("data/**/*.parquet"))]
    reward = [value for table in said for value in table["next.reward"]]
    frames = rows(tmp_path / "pushes_vip/rewards.parquet")
    np.testing.assert_array_equal(reward, frames["reward"])
    z = torch.tensor(said[0]["observation.vip"])
    distance = (z[:6] - z[5]).norm(dim=-1)
    np.testing.assert_allclose(distance, frames["distance"][:6], rtol=1e-4, atol=1e-4)
    assert (out / "vip_progress.parquet").exists()
    # its own clips are read again: labelled twice it says the same
    assert command(out, "--results", tmp_path / "again") == 0
    again = rows(tmp_path / "again/rewards.parquet")
    np.testing.assert_array_equal(again["reward"], frames["reward"])


def test_in_place(dataset, tmp_path, capsys):
    assert command(dataset, "--in-place") == 0
    info = json.loads((dataset / "meta/info.json").read_text())["features"]
    assert "next.reward" in info and (dataset / "vip_progress.parquet").exists()
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []
    assert command(dataset, "--in-place") == 1
    assert "next.reward, observation.vip already" in capsys.readouterr().err
    assert command(dataset, "--in-place", "--overwrite", "--goal", "mean-last") == 0


def test_episodes_that_cannot_be_read_are_rows_of_nan(dataset, tmp_path, capsys):
    videos = sorted(dataset.glob("videos/**/*.mp4"))
    videos[1].unlink()  # of the third episode
    assert command(dataset, "--out", tmp_path / "labelled") == 3
    assert "1 episode(s) could not be read:" in capsys.readouterr().out
    said = rows(tmp_path / "labelled/vip_progress.parquet")
    assert len(said["index"]) == 15
    assert np.isnan(said["progress_sparse"][10:]).all() and np.isfinite(said["reward"][:10]).all()
    shutil.rmtree(dataset / "videos")
    assert command(dataset, "--results", tmp_path / "none") == 3
