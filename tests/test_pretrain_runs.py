"""Whole pre-training runs: what they leave, killed and resumed, and that they learn."""

import contextlib
import csv
import functools
import json
import random
import re
import shlex
import shutil
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from clips import ramp
from torchvision.io import write_png

from torchrl_vip import load_vip
from torchrl_vip.data.video import write_video
from torchrl_vip.pretrain import features
from torchrl_vip.pretrain.config import check
from torchrl_vip.pretrain.run import sole_run
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
    del config["defaults"]
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
        *("config.yaml", "clips.json", "metrics.csv", "curves.png", "checkpoints", "final", "best"),
        *("frames", "logs", ".lock"),
    }
    config = yaml.safe_load((out / "config.yaml").read_text())
    assert config == config_of(clips, out)
    assert "skipped 1 of them" in said and "broken.mp4: not a readable video" in said
    assert "training: 4 clips, 32 frames" in said and "validation: 2 clips, 16 frames" in said
    assert said.strip().endswith(f'load_vip("{out}/final")')
    assert re.search(
        r"training (helped|did not help).*: validation/voc was 0.\d+ at step 0, 0.*24", said
    )
    sides = json.loads((out / "clips.json").read_text())
    assert (sides["training"], sides["validation"]) == (["2", "3", "4", "5"], ["0", "1"])
    assert sides["skipped"].keys() == {"broken.mp4"}
    assert "not a readable video" in sides["skipped"]["broken.mp4"]
    with open(out / "metrics.csv", newline="") as file:
        rows = [(int(r["step"]), r["metric"], float(r["value"])) for r in csv.DictReader(file)]
    assert {step for step, name, _ in rows if name == "loss"} == {10, 20, 24}
    assert {step for step, name, _ in rows if name == "validation/voc"} == {0, 12, 24}
    assert len({(step, name) for step, name, _ in rows}) == len(rows)
    assert (out / "curves.png").read_bytes()[:4] == b"\x89PNG"
    parts = {"encoder", "averaged", "optimizer", "schedule", "best"}
    checkpoints = sorted((out / "checkpoints").iterdir())
    assert [path.stem for path in checkpoints] == ["step_00000022", "step_00000024"]
    state = torch.load(checkpoints[-1], weights_only=True)
    assert set(state) == {"step", *parts} and state["step"] == 24
    names = {"loss", "voc", "voc_own", "bumps", "embedding_norm", "effective_rank"}
    assert {f"validation/{name}" for name in names} <= {name for _, name, _ in rows}
    best = max(v for step, name, v in rows if name == "validation/voc" and step)
    assert state["best"]["value"] == pytest.approx(best, rel=1e-4)
    assert list((out / "logs" / "tensorboard").rglob("events.*"))
    assert list((out / "logs" / "csv").rglob("loss_vip.csv"))
    vip = load_vip(out / "final")
    assert (vip.name, vip.dim, vip.image_size) == ("resnet18", 8, 32)
    assert vip.config["training_clips"] == 4 and vip.config["reward_scale"] > 0
    averaged = state["averaged"]
    assert all(torch.equal(v, averaged[f"module.{k}"]) for k, v in vip.state_dict().items())
    assert load_vip(out / "best").dim == 8
    assert not list(out.rglob(".*.part"))


def test_a_folder_is_one_run_s_at_a_time(clips: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    with sole_run(out), pytest.raises(ValueError, match=f"another run writes to {out}: wait"):
        pretrain(config_of(clips, out))
    assert [path.name for path in out.iterdir()] == [".lock"]
    pretrain(config_of(clips, out, steps=2))


def test_a_finished_run_is_left_as_it_is(finished: tuple[Path, str], clips: Path) -> None:
    out, _ = finished
    before = contents(out)
    assert "resumed from step 24 of 24" in run(clips, out)
    assert contents(out) == before


def test_killed_twenty_times_and_resumed_it_ends_with_the_same_bits(
    finished: tuple[Path, str], clips: Path, tmp_path: Path
) -> None:
    """Some kills before the first checkpoint, most after, some while one is being written."""
    out, rng = tmp_path / "run", random.Random(time.time_ns())
    folder, reached, while_writing = out / "checkpoints", [], 0
    for kill in range(20):
        before = newest(folder)
        begun = time.time()
        process = subprocess.Popen(
            command(clips, out, *SLOWLY),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        deadline = time.monotonic() + (rng.uniform(0, 6) if kill < 2 else 120)
        aim_at_writing = kill % 3 == 2
        while process.poll() is None and time.monotonic() < deadline:
            if aim_at_writing and writes(folder, begun):
                break
            if not aim_at_writing and kill >= 2 and newest(folder) > before:
                time.sleep(rng.uniform(0, 0.3))
                break
        process.send_signal(signal.SIGKILL)
        while_writing += writes(folder, begun)
        said = process.communicate()[0]
        assert process.returncode == -signal.SIGKILL, said
        if before and "resumed" in said:
            assert f"resumed from step {before} of 200" in said
        reached.append(newest(folder))
    assert reached == sorted(reached) and reached[-1] < 200
    assert sum(step > 0 for step in reached) >= 15 and while_writing >= 3
    whole = tmp_path / "whole"
    run(clips, whole, *SLOWLY)
    assert f"resumed from step {reached[-1]} of 200" in run(clips, out, *SLOWLY)
    assert contents(out) == contents(whole)


SLOWLY = ("steps=200", "checkpoint_every=2", "validate_every=100")


def writes(folder: Path, since: float) -> bool:
    """Whether a checkpoint is being written; what an earlier kill left is older."""
    with contextlib.suppress(FileNotFoundError):  # renamed meanwhile
        return any(path.stat().st_mtime > since for path in folder.glob(".*.part"))
    return False


def newest(folder: Path) -> int:
    return max((int(p.stem[5:]) for p in folder.glob("step_*.pt")), default=0)


def test_what_kills_left_behind_is_deleted(
    finished: tuple[Path, str], clips: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    shutil.copytree(finished[0], out)
    left = [
        "best/.model.safetensors.0a1b2c3d.part",
        "final/.config.json.0a1b2c3d.part",
        "checkpoints/.step_00000026.pt.0a1b2c3d.part",
        ".metrics.csv.0a1b2c3d.part",
        # of the version before
        *("best/.model.safetensors.x7_qw2e8", "checkpoints/step_00000026.tmp", "config.tmp"),
    ]
    mine = ["best/.gitattributes", "notes.tmp", ".hidden"]
    for name in left + mine:
        (out / name).write_text("half")
    pretrain(config_of(clips, out))
    assert not [name for name in left if (out / name).exists()]
    assert all((out / name).exists() for name in mine)


@pytest.mark.parametrize("spelling", ["new", "old"])
def test_a_run_of_the_version_before_goes_on_under_either_spelling(
    spelling: str, clips: Path, tmp_path: Path
) -> None:
    options = {"schedule": "constant", "goal_augmentation": 0.5, "loggers": []}
    whole, out = tmp_path / "whole", tmp_path / "run"
    pretrain(config_of(clips, whole, steps=8, **options))
    pretrain(config_of(clips, out, steps=4, **options))
    config = yaml.safe_load((out / "config.yaml").read_text())
    before = {k: v for k, v in config.items() if k != "goal_augmentation"}
    before |= {"negatives": "paper", "goal_view": 0.5}
    (out / "config.yaml").write_text(yaml.safe_dump(before, sort_keys=False))
    sides = {"training": ["2", "3", "4", "5", "broken.mp4"], "validation": ["0", "1"]}
    (out / "clips.json").write_text(json.dumps(sides))

    given = config if spelling == "new" else before
    other = given | {"goal_augmentation" if spelling == "new" else "goal_view": 0.25}
    warned = (
        contextlib.nullcontext
        if spelling == "new"
        else functools.partial(pytest.warns, DeprecationWarning, match="goal_view")
    )
    with warned(), pytest.raises(ValueError, match="began with goal_augmentation=0.5, not"):
        pretrain(other | {"steps": 8})
    with warned():
        pretrain(given | {"steps": 8})
    assert yaml.safe_load((out / "config.yaml").read_text()) == config | {"steps": 8}
    for name in ("final/model.safetensors", "metrics.csv"):
        first = (out / name).read_bytes(), (whole / name).read_bytes()
        if name == "metrics.csv":  # a run of 4 steps logs and validates at its end too
            first = [{r for r in rows.splitlines() if not r.startswith(b"4,")} for rows in first]
        assert first[0] == first[1]


def test_clips_in_which_nothing_moves_train_without_a_scale(tmp_path: Path) -> None:
    for i in range(4):
        (tmp_path / f"clips/{i}").mkdir(parents=True)
        for t in range(4):
            frame = torch.full((3, 48, 64), 40 * i, dtype=torch.uint8)
            write_png(frame, str(tmp_path / f"clips/{i}/{t}.png"))
    config = config_of(tmp_path / "clips", tmp_path / "run", steps=2)
    config["data"]["validation"] = 0.0
    with pytest.warns(UserWarning, match="no reward_scale"):
        final = pretrain(config)
    assert (
        not {"reward_scale", "reward_scale_other", "typical_distance"}
        & load_vip(final).config.keys()
    )


def test_an_interruption_says_where_the_run_goes_on(clips: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    process = subprocess.Popen(
        command(clips, out, "steps=100000", "loggers=[]"),
        stderr=subprocess.PIPE,
        text=True,
        # not ignored, as it is in what a shell starts in the background
        preexec_fn=functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
    )
    try:
        while not newest(out / "checkpoints"):
            assert process.poll() is None
            time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        said = process.communicate(timeout=120)[1]
    finally:
        process.kill()
    assert process.returncode == 130 and "Traceback" not in said
    step = newest(out / "checkpoints")
    assert f"interrupted: the same command goes on from step {step} (" in said
    assert "resumed from step" in run(clips, out, f"steps={step + 2}", "loggers=[]")


def test_resume_false_starts_again_and_another_network_is_refused(
    finished: tuple[Path, str], clips: Path, tmp_path: Path
) -> None:
    shutil.copytree(finished[0] / "checkpoints", tmp_path / "checkpoints")
    with pytest.raises(CheckpointError, match="another network"):
        pretrain(config_of(clips, tmp_path, dim=4))
    with pytest.raises(ValueError, match="freeze_below=feet"):  # refused before it began
        pretrain(config_of(clips, tmp_path, resume=False, freeze_below="feet"))
    assert newest(tmp_path / "checkpoints") == 24 and not (tmp_path / "config.yaml").exists()
    (tmp_path / "best").mkdir()  # of another run: this one validates on nothing
    data = config_of(clips, tmp_path)["data"] | {"validation": 0.0}
    pretrain(config_of(clips, tmp_path, dim=4, steps=2, resume=False, data=data))
    assert newest(tmp_path / "checkpoints") == 2 and not (tmp_path / "best").exists()
    with pytest.raises(ValueError, match="steps=1, but .* is at step 2 already"):
        pretrain(config_of(clips, tmp_path, dim=4, steps=1, data=data))
    tuned = config_of(clips, tmp_path / "tuned", encoder=str(tmp_path / "final"), steps=1)
    assert load_vip(pretrain(tuned)).dim == 4


def test_decoding_at_every_draw_trains_the_same_weights(
    finished: tuple[Path, str], clips: Path, tmp_path: Path
) -> None:
    # In a process of its own: an earlier test's ParallelEnv leaves this one with fewer threads, and
    # with them another order of summation.
    run(clips, tmp_path, "data.decode=lazily")
    assert not (tmp_path / "frames").exists()
    name = "final/model.safetensors"
    assert (tmp_path / name).read_bytes() == contents(finished[0])[name]


@pytest.mark.parametrize("loss", ["tcn", "triplet"])
def test_the_rivals_train_and_presets_compose(clips: Path, tmp_path: Path, loss: str) -> None:
    out = tmp_path / "run"
    run(
        clips,
        out,
        f"loss={loss}",
        "steps=2",
        "preset=sim",
        "geometric=0.9",
        "goal_augmentation=0.5",
        "loggers=[]",
    )
    config = yaml.safe_load((out / "config.yaml").read_text())
    assert (config["loss"], config["cross_video"], config["steps"]) == (loss, 0.3, 2)
    with open(out / "metrics.csv", newline="") as file:
        names = {row["metric"] for row in csv.DictReader(file)}
    assert f"loss_{loss}" in names and "loss_vip" not in names


def test_fine_tuning_the_bundled_encoder_moves_its_head_only(clips, tmp_path: Path) -> None:
    out = tmp_path / "run"
    run(clips, out, "preset=finetune", "steps=2", "loggers=[]")
    before, after = load_vip().state_dict(), load_vip(out / "final").state_dict()
    changed = {key for key in before if not torch.equal(before[key], after[key])}
    assert changed == {"head.weight", "head.bias"}
    assert "reward_correlation" not in load_vip(out / "final").config


@pytest.mark.parametrize("name", ["ego4d", "small"])
def test_the_published_presets_are_accepted(clips: Path, tmp_path: Path, name: str) -> None:
    preset = yaml.safe_load((CONFIG.parent / "preset" / f"{name}.yaml").read_text())
    config = config_of(clips, tmp_path)
    config["data"] |= preset.pop("data", {})
    check(config | preset)


def test_a_full_disk_stops_the_run_and_what_was_saved_stays(clips: Path, tmp_path: Path) -> None:
    """A limit on the size of files stands for the full disk: checkpoints are the largest here."""
    out = tmp_path / "run"
    run(clips, out, "steps=2", "encoder=resnet18")
    size = next((out / "checkpoints").iterdir()).stat().st_size
    limited = f"ulimit -f {size // 2048}; exec " + shlex.join(command(clips, out, "steps=6"))
    done = subprocess.run(["bash", "-c", limited], capture_output=True, text=True)
    assert done.returncode == 1
    assert "error: the checkpoint of step 4 could not be written" in done.stderr
    assert "step 2 is kept" in done.stderr and "Traceback" not in done.stderr
    assert [path.stem for path in (out / "checkpoints").iterdir()] == ["step_00000002"]
    assert "resumed from step 2 of 6" in run(clips, out, "steps=6")


def test_of_200_videos_20_broken_ones_are_named_and_the_run_finishes(tmp_path: Path) -> None:
    folder = tmp_path / "clips"
    folder.mkdir()
    good = write_video(tmp_path / "good.mp4", ramp(8)).read_bytes()
    one = write_video(tmp_path / "one.mp4", ramp(1)).read_bytes()
    index = good.rindex(b"moov")
    kinds = (
        b"",
        good[: len(good) // 2],
        b"Dear diary, no video today.",
        one,
        good[:index] + bytes(len(good) - index),  # a broken index
    )
    for i in range(200):
        data = kinds[i // 10 % 5] if i % 10 == 3 else good
        (folder / f"{i:03d}.mp4").write_bytes(data)
    write_video(folder / "004.mp4", ramp(8, height=34, width=50))  # an odd resolution is fine
    for decode in ("once", "lazily"):
        said = run(folder, tmp_path / decode, "steps=2", f"data.decode={decode}", "loggers=[]",
                   "data.validation=0")  # fmt: skip
        assert "training: 180 clips" in said and "skipped 20 of them" in said
        assert all(f"{i:03d}.mp4" in said for i in range(3, 200, 10))


def test_the_loss_falls_on_an_easy_set(clips: Path, tmp_path: Path) -> None:
    easy = {"steps": 80, "batch_size": 8, "lr": 1e-3, "crop_scale": [0.9, 1.0], "flip": 0.0}
    pretrain(config_of(clips, tmp_path, **easy, colour=0.0, validate_every=80))
    with open(tmp_path / "metrics.csv", newline="") as file:
        rows = {(int(r["step"]), r["metric"]): float(r["value"]) for r in csv.DictReader(file)}
    loss = [rows[step, "loss_vip"] for step in range(10, 90, 10)]  # of one batch each: noisy
    assert statistics.median(loss[4:]) < statistics.median(loss[:3]) - 0.2


def test_a_head_trains_on_stored_features_as_on_frames(clips: Path, tmp_path: Path) -> None:
    plain = {"freeze_below": "head", "crop_scale": [1.0, 1.0], "flip": 0.0, "colour": 0.0}
    folders = [tmp_path / "frames", tmp_path / "features"]
    for folder, views in zip(folders, (0, 1), strict=True):
        pretrain(config_of(clips, folder, steps=12, views=views, **plain))
    frames, trained = (load_vip(folder / "final").state_dict() for folder in folders)
    for name, weight in trained.items():
        torch.testing.assert_close(weight, frames[name], atol=2e-4, rtol=1e-2)
    stored = next(folders[1].glob("features_*.f16")).stat().st_size
    assert stored == 4 * 8 * 512 * 2  # clips, frames, features of ResNet-18, bytes


def test_embedding_goes_on_where_it_was_cut_short(clips: Path, tmp_path: Path) -> None:
    config = config_of(clips, tmp_path / "a", steps=4, views=3, stride=2, freeze_below="head")
    config |= {"goal_augmentation": 0.5, "flip": 0.0}
    pretrain(config)
    stored = next((tmp_path / "a").glob("features_*.f16"))
    whole, (first, *_) = stored.read_bytes(), load_vip(tmp_path / "a" / "final").head.weight
    assert len(whole) == 3 * 4 * 4 * 512 * 2  # views, clips, every second frame
    stored.write_bytes(whole[: len(whole) // 2 + 3])
    pretrain(config | {"resume": False})
    assert stored.read_bytes() == whole
    torch.testing.assert_close(load_vip(tmp_path / "a" / "final").head.weight[0], first)


def test_long_clips_are_embedded_in_parts_that_look_alike(
    clips: Path, tmp_path: Path, monkeypatch
) -> None:
    stored = []
    for chunk in (512, 3):
        monkeypatch.setattr(features, "CHUNK", chunk)
        folder = tmp_path / str(chunk)
        pretrain(config_of(clips, folder, steps=2, views=2, freeze_below="head", colour=0.0))
        path = next(folder.glob("features_*.f16"))
        stored.append(torch.from_numpy(np.fromfile(path, np.float16)).float())
    torch.testing.assert_close(*stored, atol=2e-3, rtol=1e-2)


def test_stored_features_want_a_frozen_backbone(clips: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="views=2 wants freeze_below=head"):
        check(config_of(clips, tmp_path, views=2))
    with pytest.raises(
        ValueError, match=r"goal_augmentation=0.5 with views=2 wants flip=0 and two views"
    ):
        check(
            config_of(
                clips, tmp_path, views=2, freeze_below="head", goal_augmentation=0.5, flip=0.5
            )
        )
