"""Pixel arrays as clips: HDF5 files, Minari datasets, saved replay buffers and TensorDicts."""

import io
import json
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from clips import greys
from PIL import Image
from tensordict import TensorDict
from torchrl.data import (
    FlatStorageCheckpointer,
    H5StorageCheckpointer,
    LazyMemmapStorage,
    LazyTensorStorage,
    SliceSampler,
    TensorDictReplayBuffer,
)

from torchrl_vip.data import hdf5
from torchrl_vip.data.clip import ArrayRows
from torchrl_vip.data.frame_table import decode_once, fingerprint
from torchrl_vip.data.lazy import decode_lazily
from torchrl_vip.data.reading import frames_at, measure, read_frames
from torchrl_vip.data.sources import Clip, find_clips

h5py = pytest.importorskip("h5py")


def grey(values: list[int], *, side: int = 32, first: bool = False) -> np.ndarray:
    """uint8 [T, side, side, 3], or [T, 3, side, side]: frame t is of grey ``values[t]``."""
    shape = (len(values), 3, side, side) if first else (len(values), side, side, 3)
    pictures = np.empty(shape, np.uint8)
    pictures[:] = np.array(values, np.uint8)[:, None, None, None]
    return pictures


def shown(clip: Clip) -> list[int]:
    """The greys of a clip's frames, read in order; read one by one they are the same."""
    frames = list(read_frames(clip.path, clip.span))
    assert all(frame.shape[0] == 3 and frame.dtype == torch.uint8 for frame in frames)
    count = measure(clip.path, clip.span)[0]
    assert count == len(frames)
    backwards = torch.arange(count - 1, -1, -1)
    values = greys(torch.stack(frames).permute(0, 2, 3, 1))
    assert [int(f[0, 0, 0]) for f in frames_at(clip.path, backwards, clip.span)] == values[::-1]
    return values


# --- HDF5 -----------------------------------------------------------------------------------------


def write_robomimic(path: Path, episodes: dict[str, list[int]]) -> Path:
    """A file of one camera, "front_image", whose T steps have T + 1 frames."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        data.attrs["env_args"] = json.dumps({"env_name": "Lift", "type": 1})
        for name, values in episodes.items():
            demo, steps = data.create_group(name), len(values) - 1
            demo.create_dataset("obs/front_image", data=grey(values[:-1]), chunks=True)
            demo.create_dataset("next_obs/front_image", data=grey(values[1:]), compression="gzip")
            demo.create_dataset("obs/eef", data=np.zeros((steps, 3)))
            demo.create_dataset("actions", data=np.zeros((steps, 7)))
            demo.create_dataset("rewards", data=np.arange(steps, dtype=np.float64))
            demo.create_dataset("dones", data=np.eye(1, steps, steps - 1)[0].astype(np.int64))
    return path


def test_a_robomimic_file_is_a_clip_an_episode_with_the_frame_after_its_last_step(tmp_path) -> None:
    path = write_robomimic(tmp_path / "image.hdf5", {"demo_10": [5, 6], "demo_2": [1, 2, 3, 4]})
    clips = find_clips(path)
    assert [clip.name for clip in clips] == ["front_image/demo_2", "front_image/demo_10"]
    assert clips[0].labels == {"camera": "front_image", "episode": 2, "task": "Lift"}
    assert [shown(clip) for clip in clips] == [[1, 2, 3, 4], [5, 6]]


def test_a_camera_is_known_by_its_shape_and_each_is_a_clip(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["traj_0/actions"] = np.zeros((1, 2))
        file["traj_0/obs/rgb"] = grey([1, 2])
        file["traj_0/obs/first"] = grey([3, 4], first=True)
        file["traj_0/obs/depth"] = np.zeros((2, 32, 32, 1), np.uint8)
        file["traj_0/obs/float"] = np.zeros((2, 32, 32, 3), np.float32)
        file["traj_0/success"] = np.array([False, True])
    clips = find_clips(tmp_path / "a.h5")
    assert [clip.name for clip in clips] == ["first/traj_0", "rgb/traj_0"]
    assert [shown(clip) for clip in clips] == [[3, 4], [1, 2]]
    assert all(clip.labels["success"] is True for clip in clips)


def encoded(values: list[int], side: int = 32) -> list[np.ndarray]:
    cells = []
    for picture in grey(values, side=side):
        buffer = io.BytesIO()
        Image.fromarray(picture).save(buffer, "JPEG")
        cells.append(np.frombuffer(buffer.getvalue(), np.uint8))
    return cells


@pytest.mark.parametrize("padded", [True, False])
def test_pictures_may_be_jpeg_files_of_any_length(tmp_path: Path, padded: bool) -> None:
    cells = encoded([16, 32]) + encoded([48], side=64)
    with h5py.File(tmp_path / "episode_7.hdf5", "w") as file:
        file["action"] = np.zeros((3, 14))
        if padded:  # ALOHA
            longest = max(map(len, cells))
            rows = np.stack([np.pad(cell, (0, longest - len(cell))) for cell in cells])
            file["observations/images/top"] = rows
        else:
            kind = h5py.vlen_dtype(np.uint8)
            array = file.create_dataset("observations/images/top", (3,), kind)
            for t, cell in enumerate(cells):
                array[t] = cell
    (clip,) = find_clips(tmp_path)
    assert clip.name == "images/top/episode_7.hdf5"
    assert clip.labels == {"camera": "images/top", "episode": 7}
    assert [int(f[0, 0, 0]) for f in read_frames(clip.path, clip.span)] == [16, 32, 48]


def test_episodes_that_follow_each_other_in_one_array_are_cut_where_they_end(tmp_path) -> None:
    with h5py.File(tmp_path / "d4rl.hdf5", "w") as file:
        file["observations"] = grey([1, 2, 3, 4, 5])
        file["next_observations"] = grey([2, 30, 4, 5, 60])
        file["terminals"] = np.array([0, 1, 0, 0, 0])
        file["timeouts"] = np.array([0, 0, 0, 0, 1])
    clips = find_clips(tmp_path / "d4rl.hdf5")
    assert [shown(clip) for clip in clips] == [[1, 2, 30], [3, 4, 5, 60]]
    assert [clip.labels["episode"] for clip in clips] == [0, 1]


def test_what_the_file_says_of_an_episode_are_its_labels(tmp_path: Path) -> None:
    path = write_robomimic(tmp_path / "a.hdf5", {"demo_0": [1, 2], "demo_1": [3, 4]})
    with h5py.File(path, "a") as file:
        file["data/demo_0"].attrs["ep_meta"] = json.dumps({"lang": "open the drawer"})
        file["data/demo_0"].attrs["success"] = False
        file["data/demo_1"].attrs["odd"] = h5py.Empty("f")
    first, second = find_clips(path)
    assert first.labels["task"] == "open the drawer" and not first.success
    assert second.labels["task"] == "Lift" and "success" not in second.labels


def test_an_episode_without_a_camera_that_others_have_is_named(tmp_path: Path) -> None:
    path = write_robomimic(tmp_path / "a.hdf5", {"demo_0": [1, 2], "demo_1": [3, 4]})
    with h5py.File(path, "a") as file:
        del file["data/demo_1/obs"]
        del file["data/demo_1/next_obs"]
    good, bad = find_clips(path)
    assert good.error is None
    assert bad.error and "data/demo_1 has no picture in obs/front_image" in bad.error


def test_a_folder_of_files_names_each_and_a_broken_one_is_a_clip_with_an_error(tmp_path) -> None:
    write_robomimic(tmp_path / "b/task.hdf5", {"demo_0": [1, 2]})
    whole = write_robomimic(tmp_path / "cut.hdf5", {"demo_0": [1, 2]}).read_bytes()
    (tmp_path / "cut.hdf5").write_bytes(whole[: len(whole) // 2])
    with h5py.File(tmp_path / "low_dim.hdf5", "w") as file:
        file["data/demo_0/actions"] = np.zeros((3, 7))
    with pytest.warns(UserWarning, match="1 files were left alone: .*low_dim.*data/demo_0/actions"):
        clips = find_clips(tmp_path)
    assert [clip.name for clip in clips] == ["b/task.hdf5/front_image/demo_0", "cut.hdf5"]
    assert clips[1].error and "not a readable HDF5 file" in clips[1].error
    table = decode_once(clips, 16, tmp_path / "cache", progress=False)
    assert greys(table.clip_frames(0).permute(0, 2, 3, 1)) == [1, 2]
    assert list(table.skipped) == ["cut.hdf5"]
    lazy = decode_lazily(clips, 16, progress=False)
    assert torch.equal(lazy.clip_frames(0), table.clip_frames(0))


@pytest.mark.parametrize(
    "content, message",
    [
        (b"", "not a readable HDF5 file"),
        (b"\x89HDF\r\n\x1a\n" + bytes(50), "not a readable HDF5 file"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
    ],
)
def test_a_foreign_file_is_an_error_that_names_it(tmp_path: Path, content, message) -> None:
    (tmp_path / "a.hdf5").write_bytes(content)
    with pytest.raises(ValueError, match=rf"a\.hdf5: .*{message}"):
        find_clips(tmp_path / "a.hdf5")


def test_pictures_in_other_files_are_not_followed(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(bytes(2 * 32 * 32 * 3))
    other = write_robomimic(tmp_path / "other.hdf5", {"demo_0": [1, 2]})
    with h5py.File(tmp_path / "a.hdf5", "w") as file:
        file["obs/link"] = h5py.ExternalLink(str(other), "data/demo_0/obs/front_image")
        file.create_dataset(
            "obs/raw", (2, 32, 32, 3), np.uint8, external=[(str(secret), 0, h5py.h5f.UNLIMITED)]
        )
        file["obs/loop"] = h5py.SoftLink("/obs")
    with pytest.raises(ValueError, match=r"a\.hdf5 holds no pictures"):
        find_clips(tmp_path / "a.hdf5")


def test_a_chunk_that_is_damaged_costs_its_clip_and_says_where(tmp_path: Path) -> None:
    path = tmp_path / "a.hdf5"
    with h5py.File(path, "w") as file:
        for number in range(2):
            demo = file.create_group(f"demo_{number}")
            demo["actions"] = np.zeros((4, 1))
            noise = np.random.default_rng(number).integers(0, 255, (4, 32, 32, 3), np.uint8)
            array = demo.create_dataset("obs/x", data=noise, compression="gzip")
        where = array.id.get_chunk_info(1).byte_offset
    content = bytearray(path.read_bytes())
    content[where : where + 40] = bytes(40)
    path.write_bytes(content)
    table = decode_once(find_clips(path), 16, tmp_path / "cache", progress=False)
    assert [clip.name for clip in table.clips] == ["x/demo_0"]
    assert "a.hdf5: not a readable HDF5 file" in table.skipped["x/demo_1"]


def test_a_cell_that_is_no_picture_is_named_by_its_row(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.hdf5", "w") as file:
        array = file.create_dataset("images", (2,), h5py.vlen_dtype(np.uint8))
        array[0], array[1] = encoded([5])[0], np.zeros(9, np.uint8)
    (clip,) = find_clips(tmp_path / "a.hdf5")
    with pytest.raises(ValueError, match=r"a\.hdf5: images, row 1: no readable picture"):
        list(read_frames(clip.path, clip.span))


def test_an_array_that_became_shorter_or_is_gone_is_an_error(tmp_path: Path) -> None:
    path = write_robomimic(tmp_path / "a.hdf5", {"demo_0": [1, 2, 3]})
    (clip,) = find_clips(path)
    before = fingerprint(clip)
    with h5py.File(path, "a") as file:
        del file["data/demo_0/obs/front_image"]
        file["data/demo_0/obs/front_image"] = grey([1])
    assert fingerprint(clip) != before
    with pytest.raises(ValueError, match="has 1 rows, wanted row 1"):
        measure(clip.path, clip.span)
    with h5py.File(path, "a") as file:
        del file["data/demo_0/obs/front_image"]
    with pytest.raises(ValueError, match="front_image: no such array"):
        measure(clip.path, clip.span)


@pytest.mark.parametrize("kind", ["hdf5", "memmap"])
def test_a_long_episode_is_read_a_few_frames_at_a_time(tmp_path, monkeypatch, kind: str) -> None:
    values = [t % 250 for t in range(400)]
    frame = 32 * 32 * 3
    if kind == "hdf5":
        monkeypatch.setattr(hdf5, "BLOCK", 10 * frame)
        with h5py.File(tmp_path / "a.hdf5", "w") as file:
            file.create_dataset("x", data=grey(values), chunks=(4, 32, 32, 3))
    else:
        pixels = torch.from_numpy(grey(values))
        TensorDict({"pixels": pixels}, [len(values)]).memmap(tmp_path / "a.hdf5")
    (clip,) = find_clips(tmp_path / "a.hdf5")
    tracemalloc.start()
    seen = [int(frame[0, 0, 0]) for frame in read_frames(clip.path, clip.span)]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert seen == values
    assert peak < 40 * frame


# --- Minari ---------------------------------------------------------------------------------------


@pytest.fixture
def minari_root(tmp_path: Path, monkeypatch) -> Path:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    return tmp_path / "minari"


def create_minari(name: str, episodes: list[list[int]], *, jpeg: bool, alone: bool = False) -> None:
    """A dataset by minari itself: T + 1 pictures and T steps an episode, beside a vector or alone."""
    minari = pytest.importorskip("minari")
    from gymnasium import spaces
    from minari.data_collector import EpisodeBuffer

    picture = spaces.Box(0, 255, (32, 32, 3), np.uint8)
    both = spaces.Dict({"front": picture, "state": spaces.Box(-1, 1, (2,))})
    buffers = []
    for number, values in enumerate(episodes):
        steps, seen = len(values) - 1, list(grey(values))
        state = [np.zeros(2, np.float32)] * len(values)
        buffers.append(
            EpisodeBuffer(
                id=number,
                seed=number,
                observations=seen if alone else {"front": seen, "state": state},
                actions=[np.zeros(1, np.float32)] * steps,
                rewards=[float(t) for t in range(steps)],
                terminations=[False] * steps,
                truncations=[t == steps - 1 for t in range(steps)],
                infos={"success": [t == steps for t in range(steps + 1)]},
            )
        )
    minari.create_dataset_from_buffers(
        name,
        buffers,
        observation_space=picture if alone else both,
        action_space=spaces.Box(-1, 1, (1,)),
        env="CartPole-v1",
        jpeg_encoding=jpeg,
        ref_min_score=0.0,
        ref_max_score=5.0,
    )


@pytest.mark.filterwarnings("ignore:.*is set to None:UserWarning")
@pytest.mark.parametrize("jpeg", [True, False])
def test_a_minari_dataset_is_a_clip_an_episode(minari_root: Path, jpeg: bool) -> None:
    create_minari("lab/push-v0", [[16, 32, 48], [64, 80]], jpeg=jpeg)
    for source in ("lab/push-v0", "lab/push-v0/data", "lab/push-v0/data/main_data.hdf5"):
        clips = find_clips(minari_root / source)
        assert [clip.name for clip in clips] == ["front/episode_0", "front/episode_1"]
    expected = {"camera": "front", "episode": 1, "task": "CartPole-v1", "success": True}
    assert clips[1].labels == expected
    assert [shown(clip) for clip in clips] == [[16, 32, 48], [64, 80]]


@pytest.mark.filterwarnings("ignore:.*is set to None:UserWarning")
@pytest.mark.parametrize("jpeg", [True, False])
def test_a_minari_dataset_may_have_nothing_but_pictures(minari_root: Path, jpeg: bool) -> None:
    create_minari("push-v0", [[16, 32]], jpeg=jpeg, alone=True)
    (clip,) = find_clips(minari_root / "push-v0")
    assert clip.labels["camera"] == "observations" and shown(clip) == [16, 32]


def test_a_minari_dataset_of_another_format_says_so(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data/metadata.json").write_text('{"data_format": "arrow"}')
    with pytest.raises(ValueError, match="data_format=arrow.*wanted hdf5"):
        find_clips(tmp_path)


# --- TorchRL --------------------------------------------------------------------------------------


def steps(values: list[int], ends: list[int], **extra) -> TensorDict:
    """A TensorDict [N]: step t shows grey values[t], then values[t] + 1; done after the steps ``ends``."""
    done = torch.zeros(len(values), 1, dtype=torch.bool)
    done[ends] = True
    pictures = torch.from_numpy(grey(values, side=8, first=True))
    after = {"pixels": pictures + 1, "done": done, "truncated": done.clone()}
    after["reward"] = torch.zeros(len(values), 1)
    return TensorDict({"pixels": pictures, "next": after, **extra}, [len(values)])


def save_buffer(folder: Path, *parts: TensorDict, size: int = 100, **options) -> Path:
    """A replay buffer's dumps."""
    storage = LazyMemmapStorage(size, **options)
    buffer = TensorDictReplayBuffer(storage=storage, batch_size=2, dim_extend=0)
    for part in parts:
        buffer.extend(part)
    buffer.dumps(folder)
    return folder


def test_a_saved_buffer_is_a_clip_a_trajectory_that_ends_with_its_last_next_frame(tmp_path) -> None:
    source = save_buffer(tmp_path / "rb", steps([10, 11, 12, 30, 31, 50], ends=[2, 4]))
    clips = find_clips(source)
    assert [clip.name for clip in clips] == [f"pixels/episode_{i:06d}" for i in range(3)]
    assert clips[1].labels == {"camera": "pixels", "episode": 1}
    assert [shown(clip) for clip in clips] == [[10, 11, 12, 13], [30, 31, 32], [50, 51]]


def test_trajectories_in_a_ring_go_on_at_its_first_row_and_are_cut_where_it_was_written_last(
    tmp_path: Path,
) -> None:
    data = steps([10, 11, 12, 30, 31, 32, 33, 50, 51, 52, 53, 70], ends=[2, 6, 10])
    storage = LazyMemmapStorage(10)
    buffer = TensorDictReplayBuffer(storage=storage, batch_size=2)
    buffer.extend(data[:8])
    buffer.extend(data[8:])  # rows 0 and 1 are 53 and 70 now, row 2 is the rest of the first
    buffer.dumps(tmp_path / "rb")
    clips = find_clips(tmp_path / "rb")
    assert [shown(c)[:-1] for c in clips] == [[12], [30, 31, 32, 33], [50, 51, 52, 53], [70]]
    sampler = SliceSampler(num_slices=1, end_key=("next", "done"))
    boundaries = sampler._get_stop_and_length(buffer._storage)
    assert sorted(boundaries[2].tolist()) == sorted(c.span.steps for c in clips)


def test_trajectories_are_told_apart_by_their_numbers_where_they_have_some(tmp_path: Path) -> None:
    numbers = {"collector": {"traj_ids": torch.tensor([4, 4, 7, 7, 7])}}
    data = steps([10, 11, 30, 31, 32], ends=[], **numbers)
    clips = find_clips(save_buffer(tmp_path / "a", data))
    assert [shown(clip) for clip in clips] == [[10, 11, 12], [30, 31, 32, 33]]
    data = steps([10, 11, 30, 31, 32], ends=[], episode=torch.tensor([0, 0, 0, 1, 1]))
    clips = find_clips(save_buffer(tmp_path / "b", data))
    assert [clip.span.steps for clip in clips] == [3, 2]


def test_environments_side_by_side_have_trajectories_of_their_own(tmp_path: Path) -> None:
    rollout = torch.stack([steps([10, 11, 12], ends=[1]), steps([30, 31, 32], ends=[])])
    expected = [[10, 11, 12], [12, 13], [30, 31, 32, 33]]
    rollout.memmap(tmp_path / "td")  # [B, T]
    assert [shown(clip) for clip in find_clips(tmp_path / "td")] == expected
    storage = LazyMemmapStorage(100, ndim=2)
    buffer = TensorDictReplayBuffer(storage=storage, batch_size=2)
    buffer.extend(rollout)  # stored [T, B]
    buffer.dumps(tmp_path / "rb")
    assert [shown(clip) for clip in find_clips(tmp_path / "rb")] == expected


def test_rows_of_a_ring_are_counted_with_the_environments_side_by_side() -> None:
    rows = ArrayRows("pixels", steps=3, first=4, ring=5, lane=1, lanes=2)
    assert rows.rows().tolist() == [9, 1, 3]  # steps 4, 0 and 1 of the second of two environments
    assert rows.count == 3


def test_without_next_frames_an_episode_has_a_frame_a_step(tmp_path: Path) -> None:
    data = steps([10, 11, 12], ends=[1]).exclude(("next", "pixels"))
    data["task"] = "push"
    data["next", "success"] = torch.tensor([[False], [True], [False]])
    data.memmap(tmp_path / "td")
    clips = find_clips(tmp_path / "td")
    assert [shown(clip) for clip in clips] == [[10, 11], [12]]
    assert [(c.labels["task"], c.labels["success"]) for c in clips] == [
        ("push", True),
        ("push", False),
    ]
    steps([10, 11], ends=[]).select("pixels").memmap(tmp_path / "plain")
    assert [shown(clip) for clip in find_clips(tmp_path / "plain")] == [[10, 11]]


def test_a_key_may_be_called_as_the_folder_of_a_buffer(tmp_path: Path) -> None:
    data = TensorDict({"storage": steps([10, 11], ends=[]).select("pixels")}, [2])
    data.memmap(tmp_path / "td")
    (clip,) = find_clips(tmp_path / "td")
    assert clip.labels["camera"] == "storage/pixels" and shown(clip) == [10, 11]


def test_cameras_may_be_nested_and_channels_last(tmp_path: Path) -> None:
    data = steps([10, 11], ends=[1])
    hwc = torch.from_numpy(grey([90, 91], side=8))
    data["observation", "wrist"], data["next", "observation", "wrist"] = hwc, hwc + 1
    data.memmap(tmp_path / "td")
    clips = find_clips(tmp_path / "td")
    assert [clip.labels["camera"] for clip in clips] == ["observation/wrist", "pixels"]
    assert [shown(clip) for clip in clips] == [[90, 91, 92], [10, 11, 12]]


def test_a_clip_is_another_where_its_frames_were_changed(tmp_path: Path) -> None:
    source = save_buffer(tmp_path / "rb", steps([10, 11, 30], ends=[1]))
    clips = find_clips(source)
    before = [fingerprint(clip) for clip in clips]
    assert len(set(before)) == 2
    file = source / "storage/next/pixels.memmap"
    content = bytearray(file.read_bytes())
    content[0] += 1
    file.write_bytes(content)
    assert fingerprint(clips[0]) != before[0]


class Trap:
    """Makes a folder where it is unpickled."""

    def __init__(self, folder: Path):
        self.folder = str(folder)

    def __reduce__(self):
        import os

        return os.mkdir, (self.folder,)


def test_nothing_is_unpickled_and_no_key_leads_out_of_the_folder(tmp_path: Path) -> None:
    import pickle

    source = save_buffer(tmp_path / "rb", steps([10, 11], ends=[1]))
    trap = pickle.dumps(Trap(tmp_path / "sprung"))
    (source / "prefetch.pkl").write_bytes(trap)
    (source / "transform.t").write_bytes(trap)
    meta = json.loads((source / "storage/meta.json").read_text())
    (source / "storage/odd").mkdir()
    (source / "storage/odd/other.pickle").write_bytes(trap)
    (source / "storage/odd/meta.json").write_text('{"_type": "x", "_is_non_tensor": true}')
    meta["odd"] = {"type": "NonTensorData"}
    meta["../../outside"] = meta["pixels"]
    (tmp_path / "outside.memmap").write_bytes(bytes(100 * 192))
    (source / "storage/meta.json").write_text(json.dumps(meta))
    assert [shown(clip) for clip in find_clips(source)] == [[10, 11, 12]]
    assert not (tmp_path / "sprung").exists()


def test_a_file_that_was_cut_short_is_named_and_not_made_longer(tmp_path: Path) -> None:
    source = save_buffer(tmp_path / "rb", steps([10, 11, 30], ends=[1]), size=3)
    file = source / "storage/pixels.memmap"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"pixels\.memmap is cut short: 575 bytes of 576"):
        decode_once(find_clips(source), 8, tmp_path / "cache", progress=False)
    assert file.stat().st_size == 575
    (source / "storage/next/done.memmap").write_bytes(b"\0")
    with pytest.raises(ValueError, match=r"done\.memmap: 1 values, wanted \[3, 1\]"):
        find_clips(source)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"shape": [2, 2, 2]}, r"batch size \[2, 2, 2\]: wanted a TensorDict \[N\]"),
        ({"shape": "x"}, "is no TensorDict's"),
        ({"_type": "<class 'tensordict._lazy.LazyStackedTensorDict'>"}, "holds a .*LazyStacked"),
        ({"pixels": None}, r"holds no pictures: wanted a key of uint8 \[2, 3, H, W\].*next/reward"),
    ],
)
def test_a_foreign_tensordict_is_an_error_that_names_it(tmp_path: Path, change, message) -> None:
    data = steps([10, 11], ends=[1])
    data.memmap(tmp_path / "td")
    meta = json.loads((tmp_path / "td/meta.json").read_text())
    (tmp_path / "td/meta.json").write_text(json.dumps(meta | change))
    with pytest.raises(ValueError, match=message):
        find_clips(tmp_path / "td")


def test_float_pictures_and_storages_of_other_kinds_say_what_was_wanted(tmp_path: Path) -> None:
    data = steps([10, 11], ends=[1])
    data["pixels"] = data["pixels"] / 255
    data.memmap(tmp_path / "td")
    with pytest.raises(ValueError, match=r"pixels float32 \[2, 3, 8, 8\]"):
        find_clips(tmp_path / "td")
    buffer = TensorDictReplayBuffer(storage=LazyTensorStorage(5), batch_size=2)
    buffer.extend(steps([10, 11], ends=[1]))
    buffer.dumps(tmp_path / "rb")
    stored = tmp_path / "rb/storage/storage_metadata.json"
    for text, message in [
        ('{"is_pytree": true, "len": 2}', "holds no TensorDict"),
        ('{"len": 9}', "len=9: wanted 1 to 5"),
        ("[", "storage_metadata.json cannot be read"),
    ]:
        stored.write_text(text)
        with pytest.raises(ValueError, match=message):
            find_clips(tmp_path / "rb")


@pytest.mark.parametrize("layout", [FlatStorageCheckpointer, H5StorageCheckpointer])
def test_a_buffer_saved_in_another_layout_says_so(tmp_path: Path, layout) -> None:
    data = steps([10, 11], ends=[1])
    data["next", "terminated"] = data["next", "done"]
    for key in ("done", "truncated", "terminated"):
        data[key] = torch.zeros(2, 1, dtype=torch.bool)
    storage = LazyMemmapStorage(5)
    buffer = TensorDictReplayBuffer(storage=storage, batch_size=2, checkpointer=layout())
    buffer.extend(data)
    buffer.dumps(tmp_path / "rb")
    with pytest.raises(ValueError, match="no memory-mapped TensorDict of steps"):
        find_clips(tmp_path / "rb")


def test_saved_buffers_below_a_folder_of_videos_are_not_read_as_such(tmp_path: Path) -> None:
    save_buffer(tmp_path / "rb", steps([10, 11], ends=[1]))
    with pytest.raises(ValueError, match=r"holds datasets: give these instead, .*\[.*rb\]"):
        find_clips(tmp_path)
