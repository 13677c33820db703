"""Labelled copies of datasets in arrays, checked by those who read them: TorchRL, Minari, h5py."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import trained_encoder
from tensordict import TensorDict
from test_arrays import (
    create_minari,
    grey,
    minari_root,  # noqa: F401  (a fixture)
    save_buffer,
    steps,
    write_robomimic,
)
from torchrl.data import LazyMemmapStorage, SliceSampler, TensorDictReplayBuffer
from torchvision.io import write_png

from torchrl_vip import FrozenEncoder
from torchrl_vip.data.reading import read_frames
from torchrl_vip.data.sources import Clip, find_clips
from torchrl_vip.label.arrays import write_hdf5, write_tensordict, writer_of
from torchrl_vip.label.job import Labelled, Labeller, Settings
from torchrl_vip.label.rows import Rows, Summary, following

h5py = pytest.importorskip("h5py")


def label(clip: Clip) -> Labelled:
    """An episode's numbers by an encoder that is the grey and its negative; goal: the last frame.

    The distance to grey g of the end is |grey - g|, the reward of a step how much less it becomes.
    """
    summary = Summary(clip.name, 0, "", 0)
    if not clip.error:
        try:
            greys = [float(frame.float().mean()) for frame in read_frames(clip.path, clip.span)]
        except ValueError as error:
            clip = Clip(clip.path, clip.name, clip.labels, clip.span, str(error))
    if clip.error:
        summary.error = clip.error
        return Labelled(clip, summary, None)
    z = torch.tensor(greys)[:, None] * torch.tensor([1.0, -1.0])
    distance = (z[:, 0] - z[-1, 0]).abs()
    reward = (distance - following(distance[:, None])[:, 0]).numpy()
    return Labelled(clip, summary, Rows(distance.numpy(), distance.numpy(), reward, z.numpy()))


def labelled(source: Path) -> Iterator[Labelled]:
    return map(label, find_clips(source))


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


# --- TorchRL --------------------------------------------------------------------------------------


def test_a_labelled_buffer_is_loaded_and_sliced_by_episode_again(tmp_path: Path) -> None:
    # greys 10, 13 | 30, 32, 36 and one more each after the last step: 14 and 37
    data = steps([10, 13, 30, 32, 36], ends=[1, 4])
    data["next", "reward"] -= 7
    source = save_buffer(tmp_path / "rb", data)
    before = contents(source)
    write_tensordict(source, tmp_path / "new" / "rb", labelled(source), progress=False)
    assert contents(source) == before

    sampler = SliceSampler(num_slices=2, end_key=("next", "done"), strict_length=False)
    buffer = TensorDictReplayBuffer(storage=LazyMemmapStorage(100), sampler=sampler, batch_size=6)
    buffer.loads(tmp_path / "new" / "rb")
    assert len(buffer) == 5
    rows = buffer[:]
    assert rows["next", "reward"].dtype == torch.float32
    assert rows["next", "reward"].tolist() == [[3.0], [1.0], [2.0], [4.0], [1.0]]
    assert rows["vip_vec"].tolist() == [[g, -g] for g in (10.0, 13, 30, 32, 36)]
    assert rows["next", "vip_vec"].tolist() == [[g, -g] for g in (13.0, 14, 32, 36, 37)]
    for _ in range(20):
        slices = buffer.sample()
        greys = slices["pixels"][:, 0, 0, 0].tolist()
        returns = slices["next", "reward"][:, 0].tolist()
        assert sorted(zip(greys, returns, strict=True)) == sorted(
            (g, {10: 3, 13: 1, 30: 2, 32: 4, 36: 1}[g]) for g in greys
        )
        ends = slices["next", "truncated"][:, 0]
        assert ends.sum() == 2
    buffer.extend(rows.clone())
    assert len(buffer) == 10


def test_a_labelled_tensordict_of_several_environments_has_each_reward_in_its_place(
    tmp_path: Path,
) -> None:
    rollout = torch.stack([steps([10, 13, 20], ends=[1]), steps([30, 32, 36], ends=[])])
    rollout.memmap(tmp_path / "td")
    write_tensordict(
        tmp_path / "td", tmp_path / "out", labelled(tmp_path / "td"), embeddings="float16"
    )
    copy = TensorDict.load_memmap(tmp_path / "out")
    assert copy["next", "reward"][..., 0].tolist() == [[3, 1, 1], [2, 4, 1]]
    assert copy["vip_vec"].dtype == torch.float16
    assert copy["vip_vec"][..., 0].tolist() == [[10, 13, 20], [30, 32, 36]]
    assert torch.equal(copy["pixels"], rollout["pixels"])
    buffer = TensorDictReplayBuffer(storage=LazyMemmapStorage(100, ndim=2), batch_size=2)
    buffer.extend(rollout)  # [T, B]
    buffer.dumps(tmp_path / "rb")
    write_tensordict(tmp_path / "rb", tmp_path / "rb2", labelled(tmp_path / "rb"), embeddings=None)
    stored = TensorDict.load_memmap(tmp_path / "rb2/storage")
    assert stored["next", "reward"][:3, :, 0].T.tolist() == [[3, 1, 1], [2, 4, 1]]
    assert "vip_vec" not in stored


def test_without_next_frames_the_last_one_stays(tmp_path: Path) -> None:
    data = steps([10, 13, 15], ends=[]).select("pixels")
    data.memmap(tmp_path / "td")
    write_tensordict(tmp_path / "td", tmp_path / "out", labelled(tmp_path / "td"))
    copy = TensorDict.load_memmap(tmp_path / "out")
    assert copy["next", "reward"][:, 0].tolist() == [3, 2, 0]
    assert copy["next", "vip_vec"][:, 0].tolist() == [13, 15, 15]


@settings(max_examples=15, deadline=None)
@given(st.lists(st.booleans(), min_size=1, max_size=14), st.integers(1, 10))
def test_every_step_of_a_ring_gets_the_reward_of_its_own_episode(
    tmp_path_factory, ends, size
) -> None:
    """Greys rise by 1 a step and by 7 more from one trajectory to the next: wherever the ring was written
    last, each step comes 1 nearer to the end of its own episode."""
    folder = tmp_path_factory.mktemp("ring")
    begun = np.cumsum([0, *ends[:-1]])
    data = steps((np.arange(len(ends)) + 7 * begun).tolist(), ends=np.flatnonzero(ends).tolist())
    source = save_buffer(folder / "rb", *data.split(1), size=size)
    write_tensordict(source, folder / "out", labelled(source), progress=False)
    stored = TensorDict.load_memmap(folder / "out/storage")[: min(len(ends), size)]
    assert stored["next", "reward"].eq(1).all()
    assert stored["vip_vec"][:, 0].tolist() == stored["pixels"][:, 0, 0, 0].tolist()
    assert (stored["next", "vip_vec"] - stored["vip_vec"])[:, 0].eq(1).all()
    shutil.rmtree(folder)


def test_what_was_drawn_ahead_is_not_in_the_copy(tmp_path: Path) -> None:
    source = save_buffer(tmp_path / "rb", steps([10, 13], ends=[1]))
    assert (source / "prefetch.pkl").exists()
    write_tensordict(source, tmp_path / "out", labelled(source))
    assert not (tmp_path / "out/prefetch.pkl").exists()


def test_an_episode_that_cannot_be_read_has_nan_and_is_named(tmp_path: Path) -> None:
    source = save_buffer(tmp_path / "rb", steps([10, 13, 30, 32], ends=[1, 3]))

    def some() -> Iterator[Labelled]:
        for clip in find_clips(source):
            broken = "a disk error" if clip.labels["episode"] == 0 else None
            yield label(Clip(clip.path, clip.name, clip.labels, clip.span, broken))

    summaries = write_tensordict(source, tmp_path / "out", some())
    assert [s.error for s in summaries] == ["a disk error", ""]
    stored = TensorDict.load_memmap(tmp_path / "out/storage")
    assert stored["next", "reward"][:2].isnan().all() and stored["vip_vec"][:2].isnan().all()
    assert stored["next", "reward"][2:4, 0].tolist() == [2, 1]


# --- HDF5 -----------------------------------------------------------------------------------------


def test_a_labelled_file_has_new_rewards_and_the_old_ones_beside(tmp_path: Path) -> None:
    path = write_robomimic(tmp_path / "a.hdf5", {"demo_0": [1, 3, 7], "demo_1": [50, 40]})
    before = path.read_bytes()
    write_hdf5(path, tmp_path / "new.hdf5", labelled(path), embeddings="float16", progress=False)
    assert path.read_bytes() == before
    with h5py.File(tmp_path / "new.hdf5") as file:
        demo = file["data/demo_0"]
        assert demo["rewards"][:].tolist() == [2, 4] and demo["rewards"].dtype == np.float64
        assert demo["rewards_original"][:].tolist() == [0, 1]
        assert demo["obs/vip_vec"][:].tolist() == [[1, -1], [3, -3]]
        assert demo["next_obs/vip_vec"][:].tolist() == [[3, -3], [7, -7]]
        assert demo["obs/vip_vec"].dtype == np.float16
        assert file["data/demo_1/rewards"][:].tolist() == [10]
        assert file["data"].attrs["env_args"]
    again = tmp_path / "again.hdf5"
    write_hdf5(tmp_path / "new.hdf5", again, labelled(tmp_path / "new.hdf5"), embeddings="float32")
    with h5py.File(again) as file:
        assert file["data/demo_0/rewards_original"][:].tolist() == [0, 1]
        assert file["data/demo_0/obs/vip_vec"].dtype == np.float32


def test_episodes_in_one_array_get_their_rewards_where_they_lie(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "d4rl.hdf5", "w") as file:
        file["observations"] = grey([1, 2, 4, 10, 15])
        file["next_observations"] = grey([2, 5, 10, 15, 16])
        file["rewards"] = np.arange(5)
        file["terminals"] = np.array([0, 1, 0, 0, 1])
    source = tmp_path / "d4rl.hdf5"
    write_hdf5(source, tmp_path / "out.hdf5", labelled(source), embeddings="float32")
    with h5py.File(tmp_path / "out.hdf5") as file:
        assert file["rewards"][:].tolist() == [1, 3, 6, 5, 1]
        assert file["rewards"].dtype == np.float32
        assert file["rewards_original"][:].tolist() == [0, 1, 2, 3, 4]
        assert file["vip_vec"][:, 0].tolist() == [1, 2, 4, 10, 15]
        assert file["next_vip_vec"][:, 0].tolist() == [2, 5, 10, 15, 16]


def test_a_file_without_rewards_gets_some_for_each_action(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["traj_0/obs/sensors/rgb"] = grey([1, 2, 5])  # ManiSkill: a picture more than actions
        file["traj_0/actions"] = np.zeros((2, 3))
    write_hdf5(
        tmp_path / "a.h5", tmp_path / "b.h5", labelled(tmp_path / "a.h5"), embeddings="float32"
    )
    with h5py.File(tmp_path / "b.h5") as file:
        assert file["traj_0/rewards"][:].tolist() == [1, 3]
        assert file["traj_0/obs/vip_vec"][:, 0].tolist() == [1, 2, 5]


def test_episodes_that_cannot_be_read_or_do_not_fit_have_nan_and_are_named(tmp_path: Path) -> None:
    path = write_robomimic(
        tmp_path / "a.hdf5", {"demo_0": [1, 3], "demo_1": [1, 4], "demo_2": [1, 2, 3]}
    )
    with h5py.File(path, "a") as file:
        del file["data/demo_0/obs"], file["data/demo_0/next_obs"]
        del file["data/demo_2/rewards"]
        file["data/demo_2/rewards"] = np.zeros(9)
    summaries = write_hdf5(path, tmp_path / "b.hdf5", labelled(path), embeddings="float32")
    with h5py.File(tmp_path / "b.hdf5") as file:
        assert np.isnan(file["data/demo_0/rewards"][:]).all()
        assert file["data/demo_1/rewards"][:].tolist() == [3]
        assert np.isnan(file["data/demo_2/rewards"][:]).all()
    errors = [s.error for s in summaries]
    assert "has no picture" in errors[0] and not errors[1]
    assert "data/demo_2 has 9 steps and 3 pictures" in errors[2]


def test_a_folder_of_files_is_copied_with_each_file_labelled(tmp_path: Path) -> None:
    for number in range(2):
        write_robomimic(tmp_path / f"in/sub/t{number}.hdf5", {"demo_0": [number, 9]})
    (tmp_path / "in/broken.hdf5").write_bytes(b"nothing")
    summaries = write_hdf5(tmp_path / "in", tmp_path / "out", labelled(tmp_path / "in"))
    for number in range(2):
        with h5py.File(tmp_path / f"out/sub/t{number}.hdf5") as file:
            assert file["data/demo_0/rewards"][:].tolist() == [9 - number]
    assert (tmp_path / "out/broken.hdf5").read_bytes() == b"nothing"
    assert sum("not a readable HDF5 file" in s.error for s in summaries) == 1


# --- Minari ---------------------------------------------------------------------------------------

quiet = pytest.mark.filterwarnings("ignore:.*is set to None:UserWarning")


@quiet
@pytest.mark.parametrize("jpeg", [True, False])
def test_minari_loads_the_labelled_dataset(minari_root: Path, jpeg: bool) -> None:  # noqa: F811
    minari = pytest.importorskip("minari")
    create_minari("lab/push-v0", [[16, 64, 32], [64, 80]], jpeg=jpeg)
    source = minari_root / "lab/push-v0"
    before = contents(source)
    out = minari_root / "lab/push-vip-v0"
    write_hdf5(source, out, labelled(source), embeddings="float32", progress=False)
    assert contents(source) == before

    dataset = minari.load_dataset("lab/push-vip-v0")
    assert set(minari.list_local_datasets()) == {"lab/push-v0", "lab/push-vip-v0"}
    assert dataset.spec.dataset_id == "lab/push-vip-v0"
    assert (dataset.total_episodes, dataset.total_steps) == (2, 3)
    assert "ref_max_score" not in dataset.storage.metadata
    first, second = dataset.iterate_episodes()
    assert first.rewards.tolist() == [-16, 32] and second.rewards.tolist() == [16]
    assert first.infos["vip_vec"].tolist() == [[16, -16], [64, -64], [32, -32]]
    assert first.infos["success"].tolist() == [False, False, True]
    assert first.observations["front"].shape == (3, 32, 32, 3)
    episode = minari.data_collector.EpisodeBuffer(
        id=2,
        observations={"front": list(grey([1, 2])), "state": [np.zeros(2, np.float32)] * 2},
        actions=[np.zeros(1, np.float32)],
        rewards=[5.0],
        terminations=[False],
        truncations=[True],
        infos={"success": [False, True]},
    )
    dataset.update_dataset_from_buffer([episode])
    assert dataset[2].rewards.tolist() == [5.0]


@quiet
def test_statistics_of_minaris_rewards_are_those_of_the_new_ones(minari_root: Path) -> None:  # noqa: F811
    create_minari("push-v0", [[16, 64, 32]], jpeg=False)
    source = minari_root / "push-v0"
    with h5py.File(source / "data/main_data.hdf5", "a") as file:
        file["episode_0"].attrs["rewards_sum"] = 99.0
        file["episode_0"].attrs["rewards_min"] = 99.0
    write_hdf5(source / "data", minari_root / "other-v3", labelled(source))
    with h5py.File(minari_root / "other-v3/data/main_data.hdf5") as file:
        attributes = dict(file["episode_0"].attrs)
    assert attributes["rewards_sum"] == 16 and attributes["rewards_min"] == -16
    metadata = json.loads((minari_root / "other-v3/data/metadata.json").read_text())
    assert metadata["dataset_id"] == "other-v3"
    assert "rewards_original" in metadata["description"]


@quiet
def test_a_name_that_minari_does_not_take_is_refused_before_anything_is_written(
    minari_root: Path,  # noqa: F811
) -> None:
    create_minari("push-v0", [[16, 48]], jpeg=False)
    for name in ("labelled", "x-v", "a b-v0"):
        with pytest.raises(ValueError, match="wanted NAME-v0"):
            write_hdf5(minari_root / "push-v0", minari_root / name, labelled(minari_root))
    with pytest.raises(ValueError, match="holds Minari datasets: give one of them"):
        write_hdf5(minari_root, minari_root.parent / "x-v0", labelled(minari_root))
    assert [p.name for p in minari_root.iterdir()] == ["push-v0"]


# --- the labelling of everything else -------------------------------------------------------------


def test_the_same_frames_get_the_same_rewards_wherever_they_lie(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    episodes = [
        torch.randint(0, 256, (n, 3, 40, 48), dtype=torch.uint8, generator=generator)
        for n in (5, 3)
    ]
    with h5py.File(tmp_path / "a.hdf5", "w") as file:
        for number, frames in enumerate(episodes):
            file[f"demo_{number}/obs/front"] = frames.permute(0, 2, 3, 1).numpy()
            file[f"demo_{number}/actions"] = np.zeros((len(frames), 1))
    parts = []
    for number, frames in enumerate(episodes):
        size = len(frames) - 1
        rows = {"pixels": frames[:-1], "next": {"pixels": frames[1:]}}
        parts.append(TensorDict(rows | {"episode": torch.full((size,), number)}, [size]))
        for t, frame in enumerate(frames):
            (tmp_path / f"frames/{number}").mkdir(parents=True, exist_ok=True)
            write_png(frame, str(tmp_path / f"frames/{number}/{t}.png"))
    torch.cat(parts).memmap(tmp_path / "td")

    rewards = {}
    for source in ("frames", "a.hdf5", "td"):
        job = Settings(tmp_path / source, tmp_path / "results", goal="mean-last", scale=1.0)
        labeller = Labeller(job, FrozenEncoder(trained_encoder()))
        labeller.embed(show=False)
        found = list(labeller.labelled(labeller.goals()))
        rewards[source] = np.concatenate([one.rows.reward for one in found])
        write = writer_of(labeller.clips)
        if write:
            write(job.source, tmp_path / f"out_{source}", iter(found), progress=False)
    assert len(rewards["frames"]) == 8 and rewards["frames"].std() > 0
    assert np.array_equal(rewards["frames"], rewards["a.hdf5"])
    assert np.array_equal(rewards["frames"], rewards["td"])
    with h5py.File(tmp_path / "out_a.hdf5") as file:
        assert np.array_equal(file["demo_1/rewards"][:], rewards["frames"][5:])
    written = TensorDict.load_memmap(tmp_path / "out_td")["next", "reward"][:, 0].numpy()
    assert np.array_equal(written, rewards["frames"][[0, 1, 2, 3, 5, 6]])


# --- whole or not at all --------------------------------------------------------------------------


def sources(folder: Path) -> dict[str, Path]:
    file = write_robomimic(folder / "a.hdf5", {"demo_0": [1, 3], "demo_1": [1, 3]})
    write_robomimic(folder / "files/a.hdf5", {"demo_0": [1, 3], "demo_1": [1, 3]})
    buffer = save_buffer(folder / "rb", steps([10, 13, 30, 32], ends=[1, 3]))
    return {"file": file, "folder": folder / "files", "buffer": buffer}


@pytest.mark.parametrize("kind", ["file", "folder", "buffer"])
def test_a_writer_that_fails_leaves_nothing(tmp_path: Path, kind: str) -> None:
    source = sources(tmp_path)[kind]
    write = writer_of(find_clips(source))
    assert write is not None
    before = sorted(p.name for p in tmp_path.iterdir())

    def stopped() -> Iterator[Labelled]:
        yield next(labelled(source))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write(source, tmp_path / "out", stopped(), progress=False)
    assert sorted(p.name for p in tmp_path.iterdir()) == before
    (tmp_path / "out").mkdir()
    (tmp_path / "out/mine").touch()
    with pytest.raises(FileExistsError, match="out exists"):
        write(source, tmp_path / "out", labelled(source), progress=False)
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["mine"]


@pytest.mark.parametrize("kind", ["file", "folder", "buffer"])
def test_without_room_nothing_is_begun(tmp_path: Path, monkeypatch, kind: str) -> None:
    source = sources(tmp_path)[kind]
    write = writer_of(find_clips(source))
    assert write is not None
    usage = type(shutil.disk_usage("/"))(10**6, 10**6 - 100, 100)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(OSError, match=r"[\d,]+ bytes are needed at .* and 100 are free") as caught:
        write(source, tmp_path / "out", labelled(source), progress=False)
    assert caught.value.errno == 28
    assert not (tmp_path / "out").exists()


def test_a_copy_inside_of_its_source_is_refused(tmp_path: Path) -> None:
    source = sources(tmp_path)["buffer"]
    with pytest.raises(ValueError, match="of which it would be a copy"):
        write_tensordict(source, source / "labelled", labelled(source))


def test_only_arrays_have_a_writer(tmp_path: Path) -> None:
    kinds = sources(tmp_path)
    assert writer_of(find_clips(kinds["buffer"])) is write_tensordict
    assert writer_of(find_clips(kinds["folder"])) is write_hdf5
    assert writer_of([Clip(tmp_path / "a.mp4", "a.mp4")]) is None
