"""LeRobot datasets in TorchRL's replay buffer."""

from pathlib import Path

import pytest
import torch

pytest.importorskip("pyarrow")
pytest.importorskip("av")
pytest.importorskip("torchcodec")

from test_lerobot_columns import DIM, LENGTHS, columns, write_v2, write_v3
from torchrl.data.datasets import LeRobotExperienceReplay

from torchrl_vip.data.lerobot.columns import with_columns
from torchrl_vip.data.lerobot.torchrl import torchrl_columns


@pytest.mark.parametrize("write", [write_v3, write_v2])
def test_rewards_embeddings_and_frames_come_from_the_same_rows(tmp_path: Path, write) -> None:
    with_columns(write(tmp_path / "set"), tmp_path / "out", columns, progress=False)
    buffer = LeRobotExperienceReplay.from_columns(
        torchrl_columns(tmp_path / "out"),
        key_map={"observation.vip": ("observation", "vip_vec")},
        slice_len=2,
        batch_size=16,
        rehydrate=True,
    )
    torch.manual_seed(0)
    sample = buffer.sample()
    episode, frame = sample["episode"].flatten(), sample["frame"].flatten()
    assert {0, 1, 2} == set(episode.tolist())
    assert sample["next", "reward"].shape == (16, 1) and sample["observation", "vip_vec"].shape == (
        16,
        DIM,
    )
    torch.testing.assert_close(sample["next", "reward"].flatten(), episode + frame / 100)
    torch.testing.assert_close(sample["observation", "vip_vec"][:, 0], 10.0 * episode + frame)
    grey = sample["observation", "image", "top"].float().mean(dim=(1, 2, 3))
    torch.testing.assert_close(grey, 5.0 * (20 * episode + frame), atol=2, rtol=0)
    begins = torch.arange(16) % 2 == 0
    vectors, following = sample["observation", "vip_vec"], sample["next", "observation", "vip_vec"]
    assert torch.equal(following[begins], vectors[~begins])
    assert list(sample["language_instruction"]) == ["push"] * 16


def test_without_videos_and_with_frames_missing(tmp_path: Path) -> None:
    source = write_v3(tmp_path / "set", 1)
    found = torchrl_columns(source, videos=False)
    assert found["action"].shape == (sum(LENGTHS), 2)
    assert found["index"].tolist() == list(range(sum(LENGTHS)))
    (source / "videos/observation.images.top/chunk-000/file-001.mp4").unlink()
    with pytest.raises(ValueError, match=r"file-001\.mp4"):
        torchrl_columns(source)
