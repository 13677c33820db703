"""preset=scene: decoys, leaving out in turn, and what it says of clips that will not do."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from networks import images
from tensordict import TensorDict
from torch import nn
from torchrl.data import TensorStorage

from torchrl_vip import ENCODERS, VIPEncoder, load_vip
from torchrl_vip.data.clip import Clip
from torchrl_vip.data.sampler import DecoySampler, VIPSampler
from torchrl_vip.data.video import FrameTable, decode_once, write_video
from torchrl_vip.encoders import with_fine_cells
from torchrl_vip.functional import decoy_loss, ridge, wrong_goal_loss
from torchrl_vip.losses import TCNLoss
from torchrl_vip.pretrain import progress, scene
from torchrl_vip.pretrain.clips import (
    ALSO,
    HELD_BACK,
    Split,
    decoyed_clips,
    draw_weights,
    find_and_split,
    scene_numbers,
    scene_only,
    task_numbers,
)

# --- the loss and its draws -----------------------------------------------------------------------


def at(*positions: float) -> torch.Tensor:
    """Embeddings [B, 2] on one axis; goals are at 0, so that a position is a distance."""
    return torch.tensor([[p, 0.0] for p in positions])


def decoys(idle, *, of_goal: bool, margin: float = 0.3) -> float:
    """A demonstration goes from 10 to 2."""
    start, end, goal = (at(*[p] * len(idle)) for p in (10.0, 2.0, 0.0))
    kind = torch.full((len(idle),), of_goal)
    return decoy_loss(at(*idle), start, end, goal, kind, margin).item()


def test_decoy_loss_by_hand() -> None:
    # the arm alone may come .3 of the way from 10 to 2: to 7.6
    assert decoys([7.6, 9, 12], of_goal=False) == 0
    assert decoys([5.6], of_goal=False) == pytest.approx(2 / 10)
    assert decoys([5.6, 8], of_goal=False) == pytest.approx((2 / 10 + 0) / 2)
    assert decoys([8], of_goal=False, margin=0) == pytest.approx(2 / 10)
    # with things as they are left, it may not be farther than the demonstration's end
    assert decoys([1, 2], of_goal=True) == 0
    assert decoys([5], of_goal=True) == pytest.approx(3 / 10)
    none = torch.zeros(0, 2)
    assert decoy_loss(none, none, none, none, torch.zeros(0, dtype=torch.bool)) == 0


def test_decoy_loss_pushes_the_idle_arm_away_and_knows_no_scale() -> None:
    idle, start, end, goal = at(5.0), at(10.0), at(2.0), at(0.0)
    idle.requires_grad_()
    loss = decoy_loss(idle, start, end, goal, torch.tensor([False]))
    loss.backward()
    assert idle.grad[0, 0] < 0  # away from the goal
    seven = decoy_loss(7 * idle, 7 * start, 7 * end, 7 * goal, torch.tensor([False]))
    assert seven.item() == pytest.approx(loss.item())
    where_it_is = at(3.0).requires_grad_()
    decoy_loss(*[where_it_is] * 4, torch.tensor([False])).backward()
    assert torch.isfinite(where_it_is.grad).all()


def test_decoys_are_a_loss_of_their_own_and_leave_the_others_as_they_are() -> None:
    torch.manual_seed(0)
    network, features = nn.Linear(2, 2, bias=False), torch.randn(5, 4, 2)
    features[3:] = torch.stack([at(10, 5.6, 2, 0), at(10, 5, 2, 0)])  # start, idle, end, goal
    with torch.no_grad():
        network.weight.copy_(torch.eye(2))
    kind = torch.tensor([0.0, 0, 0, 1, 2])
    loss = TCNLoss(network, in_key="features", decoy=3.0)
    out = loss(TensorDict({"features": features, "decoy": kind}, [5]))
    assert out["loss_decoy"].item() == pytest.approx(3 * (2 / 10 + 3 / 10) / 2)
    alone = loss(TensorDict({"features": features[:3]}, [3]))
    assert "loss_decoy" not in alone.keys()
    for name in ("loss_tcn", "loss_l1", "loss_l2"):
        assert out[name].item() == pytest.approx(alone[name].item())


def test_wrong_goal_loss_by_hand() -> None:
    # goals at 10 and -10; the first clip goes from 0 to 5, the second from 0 to 2, both to the right
    z_0, z_t, goal = at(0, 0), at(5, 2), at(10, -10)
    group = torch.tensor([0, 1])
    # towards the other's goal the first loses 5 (0), the second gains 2 of 10
    assert wrong_goal_loss(z_0, z_t, goal, group).item() == pytest.approx((0 + 0.2) / 2)
    same = torch.tensor([1, 1])
    unknown = torch.tensor([0, -1])
    assert wrong_goal_loss(z_0, z_t, goal, same) == 0 == wrong_goal_loss(z_0, z_t, goal, unknown)
    where_it_is = at(3, 3).requires_grad_()
    wrong_goal_loss(where_it_is, where_it_is, where_it_is, group).backward()
    assert torch.isfinite(where_it_is.grad).all()


def test_wrong_goals_are_those_of_sub_clips_not_of_decoys() -> None:
    features = torch.stack(
        [torch.stack([*at(0, 5, 5, 10)]), torch.stack([*at(0, 2, 2, -10)]), torch.zeros(4, 2)]
    )
    network = nn.Linear(2, 2, bias=False)
    nn.init.eye_(network.weight)
    batch = {"features": features, "decoy": torch.tensor([0.0, 0, 1])}
    batch["group"] = torch.tensor([0.0, 1, -1])
    out = TCNLoss(network, in_key="features", wrong_goals=7.0)(TensorDict(batch, [3]))
    assert out["loss_wrong_goals"].item() == pytest.approx(7 * 0.1)


def test_decoys_are_drawn_of_the_clips_that_they_belong_to() -> None:
    # rows: demonstrations 0-4, 5-9 of one task, 10-14 of another; idle 15-17 of the first, 18-19 of both
    length = torch.tensor([5, 5, 5, 3, 2])
    start = length.cumsum(0) - length
    sampler = DecoySampler(
        start,
        length,
        idle={3: [0, 1], 4: [0, 1, 2]},
        of_goal={4},
        share=0.25,
        group=torch.tensor([0, 0, 1, 2, 3]),
        weight=torch.tensor([1.0, 1, 1, 0, 0]),
        scene=torch.tensor([7, 7, 8, -1, -1]),
        copies=2,
    )
    index, info = sampler.sample(None, 400)
    rows, kind = index.view(400, 4), info["decoy"].view(400, 4)[:, 0]
    group = info["group"].view(400, 4)[:, 0]
    assert torch.equal(group[:300] == 8, index.view(400, 4)[:300, 0] % 20 >= 10)
    assert (group[300:] == -1).all() and (info["reward"][1200:] == -1).all()
    assert (kind[:300] == 0).all() and set(kind[300:].tolist()) == {1, 2}
    assert (rows[:300] % 20 < 15).all()  # no sub-clip of an idle clip
    copy, rows = rows[300:] // 20, rows[300:] % 20
    assert set(copy.flatten().tolist()) == {0, 1} and (copy == copy[:, :1]).all()
    found = {(*row, int(k)) for row, k in zip(rows.tolist(), kind[300:].tolist(), strict=True)}
    first = {(5, i, 9, 4, 1) for i in (15, 16, 17)} | {(0, i, 4, 9, 1) for i in (15, 16, 17)}
    both = {(5, i, 9, 4, 2) for i in (18, 19)} | {(0, i, 4, 9, 2) for i in (18, 19)}
    alone = {(10, i, 14, 14, 2) for i in (18, 19)}  # its own end is the goal
    assert found == first | both | alone
    again = sampler.sample(None, 400)[0]
    sampler.step = 0
    assert torch.equal(sampler.sample(None, 400)[0], index) and not torch.equal(again, index)
    with pytest.raises(ValueError, match="wants idle clips"):
        DecoySampler(start, length, idle={3: []})


def test_clips_are_drawn_by_their_weights() -> None:
    length = torch.tensor([4, 4, 4])
    sampler = VIPSampler(length.cumsum(0) - length, length, weight=torch.tensor([3.0, 0, 1]))
    clip = sampler.sample(None, 20_000)[0].view(-1, 4)[:, 0] // 4
    share = torch.bincount(clip, minlength=3) / 20_000
    torch.testing.assert_close(share, torch.tensor([0.75, 0, 0.25]), atol=0.02, rtol=0)
    with pytest.raises(ValueError, match="weight is"):
        VIPSampler(length.cumsum(0) - length, length, weight=torch.zeros(3))


# --- progress -------------------------------------------------------------------------------------


def test_ridge_finds_a_line_and_the_penalty_shrinks_it() -> None:
    x = torch.tensor([[0.0, 1], [1, 1], [2, 1], [9, 1]])
    y = torch.tensor([3.0, 5, 7, -50])
    weight = torch.tensor([1.0, 1, 1, 0])
    used = weight > 0
    w, b = ridge(x[used], y[used], weight[used], 1e-6)
    torch.testing.assert_close(
        w, torch.tensor([2.0, 0]), atol=1e-4, rtol=0
    )  # no use of what is constant
    assert b.item() == pytest.approx(3, abs=1e-4)
    # of y = 2 x about its mean, a penalty of the variance itself halves the slope
    w, _ = ridge(x[used], y[used], weight[used], 1.0)
    assert w[0].item() == pytest.approx(1)
    # a row of weight 3 is three rows
    thrice = torch.tensor([0, 1, 2, 2, 2])
    torch.testing.assert_close(
        ridge(x[:3], y[[0, 1, 3]], torch.tensor([1.0, 1, 3]), 0.1)[0],
        ridge(x[thrice], y[[0, 1, 3]][thrice], torch.ones(5), 0.1)[0],
    )


def test_what_each_frame_shows_of_a_tasks_progress() -> None:
    clips = [
        clip("0", task="a"),
        clip("1", task="b"),
        clip("2", task="a", success=False),
        clip("3", task="a", **{HELD_BACK: True}),
        clip("4", idle_of="start"),
        clip("5", idle_of="goal", task="a"),
        clip("6", idle_of="goal", task="b"),
        clip("7", **{ALSO: True}),
    ]
    lengths = [3, 12, 2, 2, 2, 2, 2, 3]
    target, weight = progress.targets(clips, lengths, "a")
    first = torch.tensor(lengths).cumsum(0) - torch.tensor(lengths)

    def of(x: torch.Tensor, i: int) -> list[float]:
        return x[first[i] : first[i] + lengths[i]].tolist()

    assert of(target, 0) == [0, 0.5, 1] and of(weight, 0) == pytest.approx([1 / 3] * 3)
    assert of(target, 4) == [0, 0] and of(target, 5) == [1, 1]
    assert of(weight, 4) == pytest.approx([0.5] * 2) and of(weight, 5) == pytest.approx([0.05] * 2)
    assert of(weight, 2) == of(weight, 3) == of(weight, 6) == [0, 0]
    # ends of other tasks and clips are at 0, each frame by its clip's share: 2 of 12 and 1 of 3
    assert (
        of(target, 1)[-2:] == [0, 0] and of(weight, 1)[:-2] == [0] * 10 and of(target, 7)[-1] == 0
    )
    ends = torch.tensor([1 / 12, 1 / 12, 1 / 3])
    assert [*of(weight, 1)[-2:], of(weight, 7)[-1]] == pytest.approx((ends / ends.sum()).tolist())
    _, alone = progress.targets(clips, lengths, "a", idle=False, wrong_goals=False)
    assert (alone > 0).nonzero().flatten().tolist() == [0, 1, 2]


def features(clips: list[Clip], rows: list[torch.Tensor]) -> FrameTable:
    length = torch.tensor([len(r) for r in rows])
    storage = TensorStorage(TensorDict({"features": torch.cat(rows)}, [int(length.sum())]))
    return FrameTable(storage, clips, length.cumsum(0) - length, length, {})


def test_progress_joins_the_embedding_and_the_arm_does_not_pass_for_it() -> None:
    torch.manual_seed(0)
    t = torch.linspace(0, 1, 21)
    still = torch.zeros(21)
    arm, noise = torch.rand(21), 0.01 * torch.randn(4, 21)
    # what the features are: the thing, the arm, something else
    rows = [
        torch.stack([t, t, noise[0]], 1),
        torch.stack([t, t, noise[1]], 1),
        torch.stack([still, arm, noise[2]], 1),
    ]
    clips = [clip("0", task="a"), clip("1", task="a"), clip("2", idle_of="start")]
    encoder = VIPEncoder(nn.Flatten(), dim=2, image_size=1)
    encoder.head = nn.Linear(3, 2)
    before = encoder.head(rows[0])
    progress.add_progress(encoder, features(clips, rows), 5.0)
    z = [encoder.head(r) for r in rows]
    assert encoder.dim == 3 and torch.allclose(z[0][:, :2], before)
    ways = torch.stack([(x[-1] - x[0])[:2].norm() for x in z[:2]])
    gone = (z[0][-1] - z[0][0])[2] / ways.mean()
    assert gone.item() == pytest.approx(5, rel=0.05)
    idle = (z[2][:, 2].max() - z[0][0, 2]) / (z[0][-1] - z[0][0])[2]
    assert idle < 0.1
    encoder.head = nn.Linear(3, 2)
    encoder.dim = 2
    progress.add_progress(encoder, features(clips, rows), 5.0, idle=False)
    z = [encoder.head(r) for r in rows]
    assert (z[2][:, 2].max() - z[0][0, 2]) / (z[0][-1] - z[0][0])[
        2
    ] > 0.3  # half of it is the arm's

    with pytest.raises(ValueError, match="wants a demonstration that is a success"):
        progress.add_progress(encoder, features(clips[2:], rows[2:]), 5.0)
    encoder.head = nn.Identity()
    with pytest.raises(ValueError, match="wants a linear head; got Identity"):
        progress.add_progress(encoder, features(clips, rows), 5.0)


# --- finer cells ----------------------------------------------------------------------------------


def test_finer_cells_begin_as_the_same_map_and_can_be_learnt() -> None:
    coarse = load_vip(Path(scene.__file__).parents[1] / "assets" / "tiny").eval()
    fine = with_fine_cells(coarse).eval()
    assert fine.name == "tiny_cells" in ENCODERS and fine.dim == coarse.dim
    torch.testing.assert_close(fine(images()), coarse(images()), atol=1e-4, rtol=1e-4)
    fine(images()).square().sum().backward()
    new = fine.head.weight.grad[:, coarse.head.in_features :]
    assert new.shape[1] == (80 + 112) * 25 and new.abs().sum() > 0
    assert with_fine_cells(fine) is fine
    with pytest.raises(
        ValueError, match="backbone 'resnet18'.*wanted one of efficientnet_lite0, tiny"
    ):
        with_fine_cells(VIPEncoder("resnet18", dim=4, image_size=32))


# --- clips ----------------------------------------------------------------------------------------


def clip(name: str, **labels: object) -> Clip:
    return Clip(Path(name), name, labels)


def test_clips_have_their_roles() -> None:
    clips = [
        clip("0", task="a"),
        clip("1", task="a", **{HELD_BACK: True}),
        clip("2", task="b"),
        clip("3", task="c", **{ALSO: True}),
        clip("4", idle_of="start", task="a"),
        clip("5", idle_of="goal"),
        clip("6", idle_of="start", **{HELD_BACK: True}),
        clip("7", idle_of="start", task="z"),
    ]
    assert decoyed_clips(clips) == {4: [0], 5: [0, 2]}
    expected = torch.tensor([0.4, 0, 0.4, 0.2, 0, 0, 0, 0])
    torch.testing.assert_close(draw_weights(clips, 0.2), expected)
    assert draw_weights(clips[:1], 0.2) is None
    assert scene_numbers(clips).tolist() == [0, 0, 1, 2, 0, -1, -1, 4]
    unlabelled = [clip("8", **{ALSO: True}), clip("9", **{ALSO: True}), clip("10")]
    assert scene_numbers(unlabelled).tolist() == [0, 1, -1]
    assert len(set(task_numbers(clips).tolist())) == len(clips)  # no goal of one that is held back


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three clips in which a bar grows, of two folders, and two idle ones."""
    for name in ("open/0", "open/1", "close/0"):
        write(tmp_path / "demos" / f"{name}.mp4", bar(grows=True, seed=len(name) + ord(name[-1])))
    for name in ("0", "goal/1"):
        write(tmp_path / "idle" / f"{name}.mp4", bar(grows=False, seed=5, frames=60))
    return tmp_path


def bar(*, grows: bool, seed: int = 0, frames: int = 16) -> np.ndarray:
    video = np.random.default_rng(seed).integers(0, 40, (frames, 48, 48, 3), np.uint8)
    for t in range(frames):
        video[t, :20, : 8 + (2 * t if grows else 0)] = 220
        video[t, 24 : 28 + 2 * (t % 8), 10:20] = 130
    return video


def write(path: Path, video: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_video(path, video)


def test_folders_say_what_labels_do_not(folder: Path, capsys) -> None:
    split = find_and_split(str(folder / "demos"), 0.0, [], idle=str(folder / "idle"))
    assert [c.idle_of for c in split.training] == [None, None, None, "start", "goal"]
    with pytest.raises(ValueError, match=r"1.mp4 shows the goal state, of which of 2 tasks"):
        scene.labelled(split.training)
    found = scene.labelled(split.training[:-1])
    assert [c.scene for c in found] == ["close", "open", "open", None]
    assert "3 clips are taken for 2 tasks, by their folders" in capsys.readouterr().out
    mixed = [replace(split.training[0], labels={"task": "close"}), *split.training[1:3]]
    with pytest.raises(ValueError, match='2 of 3 clips have no label "task" or "group"'):
        scene.labelled(mixed)
    with pytest.raises(ValueError, match="idle in shut, of which there is no demonstration"):
        scene.labelled([clip("0", task="open"), clip("1", task="shut", idle_of="start")])
    with pytest.raises(ValueError, match="idle_of=end is invalid"):
        (folder / "idle/manifest.json").write_text(
            json.dumps([{"file": "0.mp4", "idle_of": "end"}])
        )
        find_and_split(str(folder / "demos"), 0.0, [], idle=str(folder / "idle"))


def test_a_part_of_each_idle_clip_is_held_back(folder: Path) -> None:
    split = find_and_split(str(folder / "demos"), 0.0, [], idle=str(folder / "idle"))
    pieces = scene.in_pieces(split.training)
    assert [c.name for c in pieces[3:8]] == [f"0.mp4#{n}" for n in range(5)]
    assert [c.span for c in pieces[3:8]] == [(12 * n, 12 * n + 12) for n in range(5)]
    resting = {pieces[0], pieces[4]}
    held = scene.held_back(Split(pieces, []), resting).training
    assert [bool(c.labels.get(HELD_BACK)) for c in held] == [c in resting for c in pieces]


def test_parts_are_left_out_from_three_clips_on() -> None:
    clips = [clip(str(i)) for i in range(12)]
    assert scene.left_out(clips[:2]) == []
    assert scene.left_out(clips[:3]) == [[c] for c in clips[:3]]
    parts = scene.left_out(clips)
    assert len(parts) == 5 and sorted((c for part in parts for c in part), key=clips.index) == clips


@pytest.mark.parametrize(
    "videos, says",
    [
        ([bar(grows=True, frames=6), bar(grows=True)], "1 of 2 clips have fewer than 8 frames"),
        ([bar(grows=False)[:1].repeat(10, 0)] * 2, "nothing moves in any of the 2 clips"),
        ([bar(grows=True), None, None], "the 3 clips are copies of one"),
    ],
)
def test_clips_that_nothing_can_be_learnt_from_are_refused(videos, says, tmp_path: Path) -> None:
    for i, video in enumerate(videos):
        if video is None:
            shutil.copy(tmp_path / "clips/0.mp4", tmp_path / f"clips/{i}.mp4")
        else:
            write(tmp_path / f"clips/{i}.mp4", video)
    split = find_and_split(str(tmp_path / "clips"), 0.0, [])
    table = decode_once(split.training, 32, tmp_path / "cache", progress=False)
    with pytest.raises(ValueError, match=says):
        scene.check_clips(table)
    table.clips[:] = [replace(c, labels={"success": False}) for c in table.clips]
    with pytest.raises(ValueError, match="no clip is a success"):
        scene.check_clips(table)


def test_one_still_clip_is_named_and_used(tmp_path: Path, capsys) -> None:
    write(tmp_path / "clips/0.mp4", bar(grows=True))
    write(tmp_path / "clips/1.mp4", bar(grows=False)[:1].repeat(10, 0))
    split = find_and_split(str(tmp_path / "clips"), 0.0, [])
    table = decode_once(split.training, 32, tmp_path / "cache", progress=False)
    scene.check_clips(table)
    assert "nothing moves in 1.mp4" in capsys.readouterr().out
    assert len(scene_only(table).clips) == 2


# --- what it says ---------------------------------------------------------------------------------


def test_what_got_worse_is_said() -> None:
    better = {"voc": (0.4, 0.6, 5), "decoy_share": (0.8, 0.3, 5)}
    assert scene.verdict(better) == "no measure got worse on clips that were held back."
    bumps = scene.verdict(better | {"bumps": (0.3, 0.4, 5)})
    assert "WORSE" in bumps and "bumps 0.30 -> 0.40" in bumps and "Take" not in bumps
    both = scene.verdict({"voc": (0.6, 0.4, 5), "voc_specific": (0.5, 0.2, 5)})
    assert "order, goal of another clip 0.60 -> 0.40" in both and "Take the encoder" in both


@pytest.mark.slow
def test_a_scene_is_tuned_measured_and_resumed(folder: Path, capsys) -> None:
    from test_pretrain_runs import CONFIG, yaml

    from torchrl_vip.pretrain.trainer import pretrain

    config = yaml.safe_load(CONFIG.read_text())
    del config["defaults"]
    preset = yaml.safe_load((CONFIG.parent / "preset/scene.yaml").read_text())
    config["data"] |= preset.pop("data")
    idle = [{"file": "0.mp4"}, {"file": "goal/1.mp4", "group": "open"}]
    (folder / "idle/manifest.json").write_text(json.dumps(idle))
    config |= preset | {
        "encoder": str(Path(scene.__file__).parents[1] / "assets" / "tiny"),
        "out_dir": str(folder / "run"),
        "batch_size": 8,
        "progress": False,
        "precision": "float32",
    }
    config["data"] |= {"path": str(folder / "demos"), "idle": str(folder / "idle")}
    final = pretrain(config)
    said = capsys.readouterr().out
    assert "part 3 of 3 left out" in said and "held-back clips" in said
    told = json.loads((folder / "run/scene.json").read_text())
    assert told["parts"] == 3 and {"voc", "voc_specific", "decoy_share"} <= told["metrics"].keys()
    assert told["verdict"] in said and (folder / "run/scene.png").exists()
    head = load_vip(final).head.weight
    left_out = load_vip(folder / "run/held_back/0/final").head.weight
    assert not torch.equal(head, left_out)
    assert len(list((folder / "run/frames").glob("features_*.f16"))) == 1  # embedded once for all
    assert torch.equal(load_vip(pretrain(config)).head.weight, head)  # again, at once
    assert len(head) == 512 + 2  # the tasks open and close
    two = config | {"out_dir": str(folder / "two"), "depth": "cells", "steps": 6}
    two["data"] = config["data"] | {"path": str(folder / "demos/open"), "idle": None}
    assert load_vip(pretrain(two)).name == "tiny_cells"
    said = capsys.readouterr().out
    assert "nothing was measured: wanted 3 clips or more" in said
