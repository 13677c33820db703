"""Pre-training's refusals and its pieces: the split, the schedule, checkpoints, the log."""

import json
import re
import runpy
import shutil
import sys
import time
import warnings
from pathlib import Path

import pytest
import torch
import yaml
from clips import greys, write_folder
from hydra.core.override_parser.overrides_parser import OverridesParser
from networks import Counting, tiny_resnet_encoder
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from torchrl_vip import VIPEncoder
from torchrl_vip.data.sources import Clip, find_clips
from torchrl_vip.data.video import decode_once
from torchrl_vip.encoders import with_fine_cells
from torchrl_vip.pretrain.build import freeze, make_schedule
from torchrl_vip.pretrain.clips import (
    check_split,
    load_clips,
    split_clips,
    task_numbers,
    write_split,
)
from torchrl_vip.pretrain.config import (
    DEFAULTS,
    RULES,
    check,
    check_resumed,
    command_line,
    quoted,
    translate,
)
from torchrl_vip.pretrain.features import embed_once
from torchrl_vip.pretrain.run import check_new
from torchrl_vip.pretrain.state import Best, Checkpoints, MetricsLog, verdict
from torchrl_vip.pretrain.trainer import train
from torchrl_vip.pretrain.validation import labelled_clips, marks_best, reward_calibration
from torchrl_vip.weights import CheckpointError

CONFIG = Path(__file__).resolve().parents[1] / "torchrl_vip" / "pretrain" / "config.yaml"


@pytest.fixture
def clips(tmp_path: Path) -> Path:
    """Seven files that are never opened."""
    folder = tmp_path / "clips"
    folder.mkdir()
    for i in range(7):
        (folder / f"{i}.mp4").touch()
    return folder


def refused(monkeypatch, capsys, *arguments: str) -> str:
    """What the command line, run inside this process, says as it exits with an error."""
    monkeypatch.setattr(sys, "argv", ["pretrain", *arguments])
    with pytest.raises(SystemExit) as exit:
        runpy.run_module("torchrl_vip.pretrain", run_name="__main__")
    assert exit.value.code not in (0, None)
    return f"{exit.value.code}\n{capsys.readouterr().err}"


# --- refusals -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "option, message",
    [
        ("stepz=3", r"error: unknown field stepz \(did you mean steps\?\)"),
        ("data.wokers=3", r"error: unknown field data.wokers \(did you mean data.workers.*\?\)"),
        ("presett=sim", r"error: unknown field presett \(did you mean preset"),
        ("preset=null", "error: .*Got NoneType"),
        ("encoder=${nope}", "error: Interpolation key 'nope' not found"),
        ("lr=[1", r"error: no viable alternative at input '\[1'"),
        ("+stepz=3", "error: unknown or missing fields stepz"),
        ("+data.wokers=3", "error: unknown or missing fields data.wokers"),
        ("steps=-1", "error: steps=-1 is invalid: wanted a whole number, 0 or more"),
        (
            "steps=0",
            "error: steps=0 trains nothing with depth=None and task_progress=0.0: give steps=300",
        ),
        ("steps=many", "error: steps=many is invalid: wanted "),
        ("steps=true", "error: steps=True is invalid: wanted "),
        ("batch_size=1", "error: batch_size=1 is invalid: wanted "),
        ("lr=-1", "error: lr=-1 is invalid: wanted "),
        ("lr=nan", "error: lr=nan is invalid: wanted "),
        ("gamma=1", r"error: gamma=1 is invalid: wanted a number in \(0, 1\)"),
        ("crop_scale=0.5", "error: crop_scale=0.5 is invalid: wanted "),
        ("crop_scale=[0.9,0.2]", r"error: crop_scale=\[0.9, 0.2\] is invalid: wanted "),
        ("schedule=cosin", "error: schedule=cosin is invalid: wanted "),
        ("data.workers=0", "error: data.workers=0 is invalid: wanted "),
        ("data.validation=2", "error: data.validation=2 is invalid: wanted "),
        ("device=abacus", "error: device=abacus cannot be used here"),
        ("encoder=resnet81", "error: encoder=resnet81 is neither one of resnet18, .* checkpoint"),
        ("loss=l2", "error: loss=l2 is invalid: wanted "),
        ("negatives=none", "error: negatives=none is invalid: wanted "),
        ("geometric=1", "error: geometric=1 is invalid: wanted "),
        ("cross_video=2", "error: cross_video=2 is invalid: wanted "),
        ("loggers=[paper]", r"error: loggers=\['paper'\] is invalid: wanted "),
        ("keep_checkpoints=0", "error: keep_checkpoints=0 is invalid: wanted "),
        ("clamp=1", "error: clamp=1 is invalid: wanted "),
        ("data.decode=never", "error: data.decode=never is invalid: wanted "),
        ("preset=robot", "error: unknown preset robot.*; there are .*finetune"),
        ("data.path=/no/where", "error: /no/where is no folder"),
        ("out_dir=", "error: out_dir is empty: give a path"),
        ("data.cache=2026", "error: data.cache=2026 is a number here, no path: write it as ./NAME"),
        (
            "preset=finetune imagenet=true",
            "error: imagenet=true begins .*encoder=bundled has weights",
        ),
        (
            "preset=scene freeze_below=block3",
            "error: depth=head and freeze_below=block3 both say what is trained: give one",
        ),
        ("depth=late views=2", "error: views=2 does not go with depth=late"),
        ("depth=deep", "error: depth=deep is invalid: wanted one of head, cells, late, all"),
        ("data.validation=some", "error: data.validation=some is invalid: wanted .* or each"),
        ("data.idle=/no/where", "error: /no/where is no folder"),
        ("data.also=2026", "error: data.also=2026 is a number here, no path"),
        ("data.also_share=1", r"error: data.also_share=1 is invalid: wanted a number in \[0, 1\)"),
        ("data.validation=1", "error: all 7 clips are held out or for validation"),
    ],
)
def test_a_wrong_field_is_one_line_and_nothing_is_written(
    option, message, clips, tmp_path, monkeypatch, capsys
) -> None:
    out = tmp_path / "run"
    text = refused(monkeypatch, capsys, f"data.path={clips}", f"out_dir={out}", *option.split())
    assert re.search(message, text), text
    assert not out.exists()
    if "error: " in message:
        assert len(text.split("error: ")[1].strip().splitlines()) == 1


@pytest.mark.parametrize("given, missing", [("out_dir=x", "data.path"), ("data.path=x", "out_dir")])
def test_a_missing_field_is_named(given, missing, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    assert f"missing {missing}=..." in refused(monkeypatch, capsys, given)
    assert not list(tmp_path.iterdir())


def test_the_docs_quote_the_loop() -> None:
    page = (CONFIG.parents[2] / "docs" / "pretraining.md").read_text()
    assert "literalinclude} ../torchrl_vip/pretrain/trainer.py" in page
    assert f":pyobject: {train.__name__}" in page


def test_help_prints_every_field_with_its_comment(monkeypatch, capsys) -> None:
    monkeypatch.setattr(sys, "argv", ["pretrain", "--help"])
    with pytest.raises(SystemExit) as exit:
        runpy.run_module("torchrl_vip.pretrain", run_name="__main__")
    assert not exit.value.code
    assert capsys.readouterr().out == CONFIG.read_text()
    fields = [line for line in CONFIG.read_text().splitlines() if ":" in line.split("#")[0]]
    assert len(fields) > 25 and any(f.startswith("gamma: 0.98  ") for f in fields)


def test_a_folder_that_is_a_file_is_refused(clips, tmp_path, monkeypatch, capsys) -> None:
    (tmp_path / "file").write_text("mine")
    for option in ("out_dir={}", "out_dir={}/run", "data.cache={}"):
        arguments = [f"data.path={clips}", f"out_dir={tmp_path / 'run'}"]
        option = option.format(tmp_path / "file")
        text = refused(monkeypatch, capsys, *arguments, option)
        assert f"error: {option} is invalid: {tmp_path / 'file'} is a file; give a folder." in text
    assert (tmp_path / "file").read_text() == "mine" and not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "steps, resume, message",
    [
        ([2, 40], "true", "the same command goes on from step 40 .*step_00000040.pt"),
        ([40], "false", "the same command without resume=false goes on from step 40"),
        ([], "true", "the same command goes on from the start"),
    ],
)
def test_an_interruption_is_one_line_that_says_how_it_goes_on(
    steps, resume, message, clips, tmp_path, monkeypatch, capsys
) -> None:
    def interrupted(config):
        raise KeyboardInterrupt

    monkeypatch.setattr("torchrl_vip.pretrain.trainer.pretrain", interrupted)
    (tmp_path / "checkpoints").mkdir()
    for step in steps:
        (tmp_path / f"checkpoints/step_{step:08d}.pt").touch()
    text = refused(
        monkeypatch, capsys, f"data.path={clips}", f"out_dir={tmp_path}", f"resume={resume}"
    )
    code, said = text.split("\n", 1)
    assert code == "130" and len(said.strip().splitlines()) == 1
    assert re.search(f"interrupted: {message}", said)


# --- fields and their old names -------------------------------------------------------------------


def defaults(**changes) -> dict:
    data = DEFAULTS["data"] | {"path": "clips"}
    return DEFAULTS | {"data": data, "out_dir": "run", "device": "cpu"} | changes


def test_every_field_has_its_rule_and_the_defaults_pass() -> None:
    config = defaults(crop_scale=(0.5, 1.0), out_dir=Path("run"))
    before = repr(config)
    checked = check(config)
    assert repr(config) == before
    assert (checked["crop_scale"], checked["out_dir"]) == ([0.5, 1.0], "run")  # as YAML has them
    fields = {*DEFAULTS, *(f"data.{field}" for field in DEFAULTS["data"])} - {"data"}
    assert fields == RULES.keys()


def test_old_names_are_translated_and_say_what_to_write() -> None:
    new = defaults(goal_augmentation=0.5, negatives="separate")
    before = {
        k: v for k, v in new.items() if k != "goal_augmentation"
    }  # as the version before had it
    before |= {"goal_view": 0.5, "negatives": "code"}
    with pytest.warns(DeprecationWarning, match="is deprecated: write") as said:
        assert check(before) == check(new)
        # on top of config.yaml, which has the new name at its default
        assert check(defaults(goal_view=0.5, negatives="code")) == check(new)
    assert [str(warning.message) for warning in said] == [
        "negatives=code is deprecated: write negatives=separate.",
        "goal_view=0.5 is deprecated: write goal_augmentation=0.5.",
    ] * 2
    with warnings.catch_warnings():
        warnings.simplefilter("error", DeprecationWarning)
        assert translate(before) == new  # an earlier run's
        check(new)
    with pytest.raises(
        ValueError, match="goal_view and goal_augmentation are one field, given twice"
    ):
        check(defaults(goal_view=0.5, goal_augmentation=0.5))


def test_old_names_on_the_command_line() -> None:
    with pytest.warns(DeprecationWarning, match="goal_view=0.5 is deprecated: write goal_aug"):
        assert command_line(["steps=3", "goal_view=0.5"]) == ["steps=3", "goal_augmentation=0.5"]
    with pytest.warns(DeprecationWarning, match="write negatives=joint"):
        given = command_line(["++negatives=paper", "+goal_view=1", "--help", "out_dir=a b"])
    assert given == ["++negatives=joint", "+goal_augmentation=1", "--help", "out_dir='a b'"]
    with pytest.raises(ValueError, match="given twice: write goal_augmentation alone"):
        command_line(["goal_view=0.5", "goal_augmentation=0.0"])


def test_old_names_in_a_preset_of_one_s_own(clips, tmp_path, monkeypatch, capsys) -> None:
    (tmp_path / "preset").mkdir()
    preset = "# @package _global_\ngoal_view: 0.5\nnegatives: code\n"
    (tmp_path / "preset" / "mine.yaml").write_text(preset)
    where = (f"data.path={clips}", f"out_dir={tmp_path / 'run'}", "preset=mine")
    where += (f"hydra.searchpath=['file://{tmp_path}']",)
    with pytest.warns(DeprecationWarning, match="goal_view=0.5 is deprecated") as said:
        text = refused(monkeypatch, capsys, *where, "steps=-1")
    assert "steps=-1 is invalid" in text and "unknown" not in text
    assert "write negatives=separate" in str([str(warning.message) for warning in said])
    assert any(Path(warning.filename).name == "__main__.py" for warning in said)  # so it is shown
    for value in ("0.25", "0.0"):  # the default too, as it was written
        text = refused(monkeypatch, capsys, *where, f"goal_augmentation={value}")
        assert "error: goal_view and goal_augmentation are one field, given twice" in text


# --- the pieces -----------------------------------------------------------------------------------


def labelled(n: int, key: str, groups: int) -> list[Clip]:
    return [Clip(Path(f"{i}.mp4"), f"{i}.mp4", {key: f"{key}{i % groups}"}) for i in range(n)]


@pytest.mark.parametrize("key", ["group", "lab", "task"])
def test_a_share_is_drawn_by_group_whatever_the_order(key: str) -> None:
    clips = labelled(300, key, 100)
    train, validation = split_clips(clips, 0.3, [])
    assert {c.labels[key] for c in train}.isdisjoint(c.labels[key] for c in validation)
    assert 0.15 < len(validation) / 300 < 0.45
    again = split_clips(clips[::-1], 0.3, [])
    assert {c.name for c in again[1]} == {c.name for c in validation}
    assert len(split_clips(clips, 0.0, [])[1]) == len(split_clips(clips, 1.0, [])[0]) == 0


def test_without_labels_the_clip_itself_is_the_group() -> None:
    train, validation = split_clips([Clip(Path(f"{i}"), f"{i}") for i in range(400)], 0.25, [])
    assert len(train) + len(validation) == 400 and 60 < len(validation) < 140


def test_a_small_share_of_few_clips_still_validates_on_one_group() -> None:
    train, validation = split_clips(labelled(6, "group", 3), 0.01, [])
    assert (len(train), len(validation)) == (4, 2)
    assert split_clips(labelled(2, "group", 1), 0.01, [])[1] == []


@pytest.mark.parametrize(
    "task", ["door", "pick", "push", "window"]
)  # some are drawn below any share
def test_a_share_leaves_a_group_to_train_on(task: str) -> None:
    clips = [Clip(Path(f"{i}.mp4"), f"{i}.mp4", {"task": task}) for i in range(6)]
    assert len(split_clips(clips, 0.2, [])[0]) == 6
    other = Clip(Path("a"), "a", {"task": "drawer"})
    train, validation = split_clips([*clips, other], 0.999, [])
    assert train and validation


@pytest.mark.parametrize("values", [(["lab9"], []), (0.1, ["lab1", "lab9"])])
def test_a_label_that_no_clip_has_is_an_error(values) -> None:
    with pytest.raises(ValueError, match=r"no clip has a label \['lab9'\]"):
        split_clips(labelled(8, "lab", 4), *values)


def test_the_end_of_a_failure_is_nobodys_goal() -> None:
    clips = [Clip(Path(f"{i}"), f"{i}", {"task": "a", "success": i != 1}) for i in range(3)]
    first, failure, second = task_numbers(clips).tolist()
    assert first == second != failure


def test_each_camera_of_an_episode_has_goals_of_its_own_and_none_is_parted() -> None:
    clips = [
        Clip(Path("x"), f"{camera}/{i}", {"task": task, "camera": camera, "episode": i})
        for camera in ("left", "wrist")
        for i, task in enumerate(("push", "push", "", ""))
    ]
    assert task_numbers(clips).tolist() == [0, 0, 1, 2, 3, 3, 4, 5]
    train, validation = split_clips(clips[2:4] + clips[6:], 0.5, [])
    episodes = [{clip.labels["episode"] for clip in part} for part in (train, validation)]
    assert all(episodes) and not episodes[0] & episodes[1]


def test_a_run_goes_on_with_the_settings_it_began_with(tmp_path: Path) -> None:
    began = tmp_path / "config.yaml"
    config = {"lr": 1e-3, "steps": 10, "out_dir": "x", "data": {"path": "a", "hold_out": []}}
    check_resumed(yaml.safe_dump(config), began)  # there is none yet
    began.write_text(yaml.safe_dump(config))
    other = config | {"steps": 20, "data": {"path": "b", "hold_out": []}, "new": 1}
    check_resumed(yaml.safe_dump(other), began)
    with pytest.raises(
        ValueError, match=r"began with data.hold_out=\[\], not data.hold_out=\['push'\]"
    ):
        other = config | {"data": {"path": "a", "hold_out": ["push"]}}
        check_resumed(yaml.safe_dump(other), began)
    with pytest.raises(ValueError, match="began with lr=0.001, not lr=1e-06: .*resume=false"):
        check_resumed(yaml.safe_dump(config | {"lr": 1e-6}), began)


def test_a_run_does_not_go_on_where_clips_have_changed_sides(tmp_path: Path, capsys) -> None:
    a, b, c, d = (Clip(tmp_path / name, name) for name in "abcd")
    began = tmp_path / "clips.json"
    check_split(([a], [b]), began)  # of an older version, which wrote none
    write_split(([a, b], [c]), began)
    check_split(([a, b], [c]), began)
    assert not capsys.readouterr().out
    check_split(([a, b, d], [c]), began)
    assert "have changed since the run began: 1 gone or new" in capsys.readouterr().out
    with pytest.raises(
        ValueError, match="validated on 1 clips, of which 1 are not .* and 1 are new"
    ):
        check_split(([a, c], [b]), began)
    with pytest.raises(
        ValueError, match="validated on 1 clips, of which 0 are not .* and 1 are new"
    ):
        check_split(([a], [b, c]), began)


def test_clips_that_could_not_be_read_are_on_no_side(tmp_path: Path, capsys) -> None:
    a, b, c, d = (Clip(tmp_path / name, name) for name in "abcd")
    began = tmp_path / "clips.json"
    write_split(([a], [c]), began, {"b": "b: not a readable video", "d": "one frame"})
    assert json.loads(began.read_text()) == {
        "training": ["a"],
        "validation": ["c"],
        "skipped": {"b": "b: not a readable video", "d": "one frame"},
    }
    check_split(([a, b], [c, d]), began)  # a split has them, readable or not
    check_split(([a], [c]), began)  # they were deleted meanwhile
    began.write_text('{"training": ["a", "b"], "validation": ["c", "d"]}')  # the version before
    check_split(([a, b], [c, d]), began)
    assert not capsys.readouterr().out
    with pytest.raises(ValueError, match="on 2 clips, of which 1 are not .* and 0 are new"):
        check_split(([a, b], [c]), began)


@pytest.mark.parametrize(
    "mine", ["config.yaml", "clips.json", "metrics.csv", "logs/a.txt", "best/a.txt"]
)
def test_a_run_does_not_begin_where_something_else_lies(tmp_path: Path, mine: str) -> None:
    check_new(tmp_path / "new", resume=True)
    (tmp_path / mine).parent.mkdir(exist_ok=True)
    (tmp_path / mine).write_text("mine: 1")
    with pytest.raises(ValueError, match="of no pre-training run"):
        check_new(tmp_path, resume=True)
    (tmp_path / "config.yaml").write_text("data: {}\nsteps: 1\nout_dir: x")
    check_new(tmp_path, resume=True)
    (tmp_path / "final").mkdir()
    with pytest.raises(ValueError, match="finished run .final. without its checkpoints"):
        check_new(tmp_path, resume=True)
    check_new(tmp_path, resume=False)


def test_checkpoints_of_another_project_are_neither_resumed_nor_deleted(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    (tmp_path / "config.yaml").write_text("model: policy")
    for name in ("step_1000.pt", "step_00001000.pt"):  # as they are called elsewhere, and as ours
        (folder / name).touch()
        for resume in (True, False):
            with pytest.raises(ValueError, match="holds config.yaml of no pre-training run"):
                check_new(tmp_path, resume=resume)
    with pytest.raises(ValueError, match="of no pre-training run, though there are checkpoints"):
        check_resumed("data: {}", tmp_path / "config.yaml")
    checkpoints = Checkpoints(folder, 1)
    assert checkpoints.steps() == [1000]
    checkpoints.clear()
    assert [path.name for path in folder.iterdir()] == ["step_1000.pt"]


def test_a_clip_that_changed_in_its_middle_is_embedded_anew(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "clips/a", 5)
    encoder = VIPEncoder("resnet18", dim=8, image_size=32).eval()

    def features() -> torch.Tensor:
        table = decode_once(find_clips(tmp_path / "clips"), 32, tmp_path, progress=False)
        table = embed_once(table, encoder, tmp_path, views=1, progress=False)
        start = int(table.start[0])
        return table.storage.get(slice(start, start + 5))["features"].clone()

    before = features()
    torch.testing.assert_close(features(), before, rtol=0, atol=0)
    shutil.copy(folder / "4.png", folder / "2.png")
    changed = features()
    torch.testing.assert_close(changed[[0, 1, 3, 4]], before[[0, 1, 3, 4]])
    torch.testing.assert_close(changed[2], before[4])


def test_features_of_finer_cells_are_not_taken_for_those_of_the_same_weights(
    tmp_path: Path,
) -> None:
    write_folder(tmp_path / "clips/a", 5)
    table = decode_once(find_clips(tmp_path / "clips"), 32, tmp_path, progress=False)
    coarse = VIPEncoder("tiny", dim=8, image_size=32).eval()
    fine, again = (
        embed_once(table, encoder, tmp_path, views=1, progress=False).storage.get(slice(0, 5))
        for encoder in (with_fine_cells(coarse), coarse)
    )
    width = again["features"].shape[1]
    assert fine["features"].shape[1] > width
    torch.testing.assert_close(again["features"], fine["features"][:, :width])


def test_a_name_that_is_no_unicode_has_its_side(tmp_path: Path) -> None:
    clips = [Clip(tmp_path / f"caf\udce9{i}.mp4", f"caf\udce9{i}.mp4") for i in range(4)]
    train, validation = split_clips(clips, 0.5, [])
    assert train and sorted(c.name for c in train + validation) == [c.name for c in clips]


@pytest.mark.parametrize(
    "path",
    [
        "/a/Küche",
        "/clips (1)",
        "it's",
        "a=b,c",
        "#1",
        "x[0]",
        "日本",
        "a\\b",
        "plain-1.x_y",
        "null",
    ],
)
def test_any_path_is_taken_by_the_command_line(path: str) -> None:
    given = OverridesParser.create().parse_override(quoted(f"out_dir={path}")).value()
    assert given == (None if path == "null" else path)
    if not {",", "'"} & set(path):
        several = OverridesParser.create().parse_override(quoted(f"data.path=[{path},b c]")).value()
        assert several == [None if path == "null" else path, "b c"]


def test_the_command_line_leaves_the_rest_alone() -> None:
    for argument in ("data.path=[a,b]", "steps=3", "out_dir='x y'", "--help", "preset=sim"):
        assert quoted(argument) == argument
    assert quoted("out_dir=~/a b") == f"out_dir='{Path.home()}/a b'"


def test_what_marks_the_best() -> None:
    own = {"validation/voc_own": 0.5, "validation/loss": 1.0}
    assert marks_best(own | {"validation/voc": 0.7}, "validation/voc") == 0.7
    assert marks_best(own, "validation/voc") == 0.5
    assert marks_best(own, "validation/loss") == 1.0
    assert marks_best({}, "validation/voc") is None
    with pytest.raises(ValueError, match="vocc: nothing of this name.*validation/loss"):
        marks_best(own, "validation/vocc")


def test_whole_groups_are_validated_on(tmp_path: Path) -> None:
    for i in range(12):
        write_folder(tmp_path / "clips" / f"{i:02d}", 3, first=i)
    clips = [
        Clip(clip.path, clip.name, {"task": f"task{i // 3}", "success": i % 3 > 0})
        for i, clip in enumerate(find_clips(tmp_path / "clips"))
    ]
    table = decode_once(clips, 8, tmp_path / "cache", progress=False)
    assert len(labelled_clips(table, 100)) == 12
    few = labelled_clips(table, 6)
    assert [clip.group for clip in few] == ["task0"] * 3 + ["task3"] * 3
    assert [clip.success for clip in few] == [False, True, True] * 2
    (first, *_) = labelled_clips(table, 100, ends=True)  # of the first success
    assert greys(first.frames) == [1, 21]
    table.clips = [Clip(c.path, c.name, c.labels | {"task": "one"}) for c in table.clips]
    assert [clip.success for clip in labelled_clips(table, 4)] == [False, True, True, True]
    assert [clip.success for clip in labelled_clips(table, 4, ends=True)] == [True] * 4


def colours(tmp_path: Path, *labels: dict, frames: int = 5):
    """An encoder to the mean colour, in the network's units, and a table of grey clips."""
    for i in range(len(labels)):
        write_folder(tmp_path / "clips" / f"{i}", frames, first=3 * i)
    clips = [
        Clip(clip.path, clip.name, label)
        for clip, label in zip(find_clips(tmp_path / "clips"), labels, strict=True)
    ]
    table = decode_once(clips, 8, tmp_path / "cache", progress=False)
    grey = sum((1 / 255 / std) ** 2 for std in (0.229, 0.224, 0.225)) ** 0.5
    return VIPEncoder(Counting(), dim=None, image_size=8).eval(), table, grey


def test_the_scales_of_the_reward_are_for_one_s_own_end_and_another_s(tmp_path: Path) -> None:
    encoder, table, grey = colours(tmp_path, {"task": "a"}, {"task": "a"})
    scales = reward_calibration(encoder, table)
    # From grey 0 to 40 and from 3 to 43: 40 to the own end; 43 - 3 and 37 - 3 to the other's.
    assert scales["typical_distance"] == pytest.approx(40 * grey, rel=1e-4)
    assert scales["reward_scale"] == pytest.approx(1 / (40 * grey), rel=1e-4)
    assert scales["reward_scale_other"] == pytest.approx(1 / (37 * grey), rel=1e-4)


def test_without_two_successes_of_a_scene_there_is_one_scale(tmp_path: Path) -> None:
    encoder, table, _ = colours(tmp_path, {"task": "a"}, {"task": "a", "success": False}, {})
    assert reward_calibration(encoder, table).keys() == {"typical_distance", "reward_scale"}


@pytest.mark.parametrize("noise", [0, 1])  # of a video's coding, grey levels
def test_clips_in_which_nothing_moves_give_no_scale(tmp_path: Path, noise: int) -> None:
    encoder, table, _ = colours(tmp_path, *[{"task": "a"}] * 4)
    pixels = table.storage.get(slice(0, None))["pixels"]
    for start, length in zip(table.start.tolist(), table.length.tolist(), strict=True):
        pixels[start + length - 1] = pixels[start] + noise
    with pytest.warns(UserWarning, match="no reward_scale: the typical clip's last frame is where"):
        assert reward_calibration(encoder, table) == {}


def test_successes_that_come_no_nearer_to_each_other_s_end_give_no_second_scale(tmp_path) -> None:
    encoder, table, _ = colours(tmp_path, {"task": "a"}, {"task": "a"})
    start, length = int(table.start[1]), int(table.length[1])
    pixels = table.storage.get(slice(0, None))["pixels"]
    pixels[start : start + length] = pixels[start : start + length].flip(0)  # it goes the other way
    with pytest.warns(
        UserWarning, match="no reward_scale_other: the typical success comes no near"
    ):
        assert reward_calibration(encoder, table).keys() == {"typical_distance", "reward_scale"}


@pytest.mark.parametrize(
    "values, words",
    [
        (
            (0.5, 0.7, 0.6),
            "training helped: voc was 0.500 at step 0, 0.600 at the end (step 2) and",
        ),
        ((0.5, 0.7, 0.4), "training helped at first and then hurt (take best/): voc was 0.500 at"),
        ((0.5, 0.4, 0.5), "training did not help: voc was 0.500 at step 0, 0.500 at the end"),
        ((), "whether training helped is not known: nothing was validated"),
    ],
)
def test_a_run_ends_with_whether_it_helped(values: tuple, words: str) -> None:
    said = verdict("voc", list(enumerate(values)))
    assert said.startswith(words)
    if values:
        step = 1 if values[1] > values[2] else 2
        assert said.endswith(f"{values[step]:.3f} at its best (step {step}).")


def test_unlabelled_clips_of_one_name_are_no_group(tmp_path: Path) -> None:
    for source in ("a", "b"):  # numbered folders, as in the official layout
        for i in range(2):
            write_folder(tmp_path / source / str(i), 3)
    clips = [clip for source in ("a", "b") for clip in find_clips(tmp_path / source)]
    table = decode_once(clips, 8, tmp_path / "cache", progress=False)
    assert len({clip.group for clip in labelled_clips(table, 9)}) == 4


def test_one_broken_validation_clip_is_no_end_of_a_run(tmp_path: Path, capsys) -> None:
    write_folder(tmp_path / "clips" / "good", 3)
    write_folder(tmp_path / "clips" / "one", 1)
    one, good = sorted(find_clips(tmp_path / "clips"), key=lambda clip: clip.name == "good")
    options = {"cache": tmp_path / "frames", "workers": 1, "progress": False}
    tables = load_clips(([good], [one]), 8, **options)
    assert len(tables.training.clips) == 1 and tables.validation is None
    assert tables.split == ([good], [])
    assert list(tables.skipped) == ["one"] and "two or more" in tables.skipped["one"]
    assert "no validation: none of 1 clips could be read" in capsys.readouterr().out
    with pytest.raises(ValueError, match="none of 1 clips"):
        load_clips(([one], []), 8, **options)


def test_held_out_clips_are_nowhere_and_a_list_chooses_the_validation() -> None:
    clips = labelled(40, "lab", 4)
    train, validation = split_clips(clips, ["lab1", "lab2"], ["lab2", "lab3"])
    assert {c.labels["lab"] for c in train} == {"lab0"}
    assert {c.labels["lab"] for c in validation} == {"lab1"}
    everything = [c for part in split_clips(clips, 0.5, ["lab0"]) for c in part]
    assert len(everything) == 30 and all(c.labels["lab"] != "lab0" for c in everything)


@pytest.mark.parametrize("name, rates", [("cosine", [1, 0.5, 0]), ("constant", [1, 1, 1])])
def test_the_schedule_at_start_half_way_and_end(name: str, rates: list[float]) -> None:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=2.0)
    decay = make_schedule(optimizer, name, 10).lr_lambdas[0]
    assert [decay(0), decay(5), decay(10)] == pytest.approx(rates)


CPU = torch.device("cpu")


def test_a_checkpoint_appears_whole_or_not_at_all(tmp_path: Path, monkeypatch) -> None:
    layer = torch.nn.Linear(2, 2)
    checkpoints = Checkpoints(tmp_path, 2, encoder=layer)
    assert checkpoints.load(CPU) == 0
    checkpoints.save(7)
    wanted = layer.weight.detach().clone()

    def dies(state, file):
        file.write(b"half")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(torch, "save", dies)
        checkpoints.save(8)
    torch.nn.init.zeros_(layer.weight)
    assert checkpoints.load(CPU) == 7
    assert torch.equal(layer.weight, wanted)
    assert [path.name for path in tmp_path.iterdir()] == ["step_00000007.pt"]  # the half is gone
    assert set(torch.load(checkpoints.path(7), weights_only=True)) == {"step", "encoder"}


def test_the_newest_k_are_kept_and_clear_deletes_all(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, 2, best=Best())
    for step in (5, 10, 100):
        checkpoints.save(step)
    assert checkpoints.steps() == [100, 10]
    checkpoints.clear()
    assert checkpoints.steps() == [] and checkpoints.load(CPU) == 0


def test_a_full_disk_says_so_and_keeps_the_last_checkpoint(tmp_path: Path, monkeypatch) -> None:
    layer = torch.nn.Linear(2, 2)
    checkpoints = Checkpoints(tmp_path, 1, encoder=layer)
    checkpoints.save(3)

    def full(state, file):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match="step 6 could not .*No space left.*step 3 is kept"):
        checkpoints.save(6)
    monkeypatch.undo()
    assert [path.name for path in tmp_path.iterdir()] == ["step_00000003.pt"]
    assert checkpoints.load(CPU) == 3


@pytest.mark.parametrize("content", [b"", b"half", b"\x80\x04]."])
def test_a_damaged_checkpoint_gives_way_to_the_one_before_or_is_an_error(
    tmp_path: Path, content: bytes, capsys
) -> None:
    layer = torch.nn.Linear(2, 2)
    checkpoints = Checkpoints(tmp_path, 2, encoder=layer)
    checkpoints.path(9).write_bytes(content)
    with pytest.raises(CheckpointError, match=r"step_00000009\.pt is no readable .*Delete it"):
        checkpoints.load(CPU)
    checkpoints.save(7)
    assert checkpoints.load(CPU) == 7
    assert "step_00000009.pt is damaged" in capsys.readouterr().err
    with pytest.raises(CheckpointError, match="step_00000007.pt has no best: .*another version"):
        Checkpoints(tmp_path, 2, encoder=layer, best=Best()).load(CPU)
    with pytest.raises(CheckpointError, match=r"step_00000007\.pt is of another network"):
        Checkpoints(tmp_path, 2, encoder=torch.nn.Linear(2, 3)).load(CPU)


def test_a_resumed_run_logs_no_step_twice(tmp_path: Path) -> None:
    for first, steps in ((0, (500, 740)), (500, (740, 1000))):
        log = MetricsLog(tmp_path / "metrics.csv", first, ["csv", "tensorboard"])
        for step in steps:
            log.write(step, {"loss": step / 1000, "validation/voc": step / 1000})
        log.file.close()
        log.loggers[1].experiment.close()
        written = [next((tmp_path / "logs").rglob(f"{name}.csv")) for name in ("loss", "voc")]
        if first == 0:  # killed as it wrote
            for file in written:
                file.write_text(file.read_text() + "7")
            # TensorBoard reads its files in the order of the seconds in their names
            time.sleep(1.1)
    for file in written:
        assert [row.split(",")[0] for row in file.read_text().splitlines()] == [
            "500",
            "740",
            "1000",
        ]
    board = EventAccumulator(str(next((tmp_path / "logs").rglob("events*")).parent)).Reload()
    assert [e.step for e in board.Scalars("loss")] == [500, 740, 1000]
    metrics = (tmp_path / "metrics.csv").read_text().splitlines()[1:]
    assert [row.split(",")[0] for row in metrics] == [
        s for s in ("500", "740", "1000") for _ in "lv"
    ]


def test_the_best_is_remembered() -> None:
    best, again = Best(), Best()
    values = (0.1, None, 0.3, 0.3, float("nan"), 0.2)
    assert [best.improved(value) for value in values] == [1, 0, 1, 0, 0, 0]
    again.load_state_dict(best.state_dict())
    assert not again.improved(0.3) and again.improved(0.4)


def test_freezing_below_a_layer_leaves_weights_and_statistics_there() -> None:
    encoder = tiny_resnet_encoder()
    set_training = freeze(encoder, "layer3", False)
    before = {k: v.clone() for k, v in encoder.state_dict().items()}
    set_training()
    optimizer = torch.optim.SGD([p for p in encoder.parameters() if p.requires_grad], lr=0.1)
    encoder(torch.rand(4, 3, 32, 32)).square().mean().backward()
    optimizer.step()
    changed = {k for k, v in encoder.state_dict().items() if not torch.equal(v, before[k])}
    assert changed and all(k.startswith(("backbone.layer3", "backbone.layer4", "backbone.fc", "head"))
                           for k in changed)  # fmt: skip
    assert "backbone.layer3.0.bn1.running_mean" in changed
    with pytest.raises(ValueError, match="freeze_below=layer9: .* conv1, .*layer4"):
        freeze(encoder, "layer9", False)
    freeze(tiny := tiny_resnet_encoder(), None, True)()
    assert tiny.training and not tiny.backbone.layer4[0].bn1.training
    assert all(p.requires_grad for p in tiny.parameters())


def test_clips_of_one_task_share_a_number() -> None:
    labels = [{"task": "a"}, {}, {"task": "a"}, {"group": "g", "task": "a"}, {}, {"group": "g"}]
    clips = [Clip(Path(f"{i}"), f"{i}", label) for i, label in enumerate(labels)]
    assert task_numbers(clips).tolist() == [0, 1, 0, 2, 3, 2]


def test_the_log_drops_a_lost_tail_and_keeps_the_rest(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    path.write_text("step,metric,value\n10,loss,0.5\n20,loss,0.25\n30,loss,0.2\n3")
    MetricsLog(path, 20).write(30, {"loss": 0.125})
    assert path.read_text() == "step,metric,value\n10,loss,0.5\n20,loss,0.25\n30,loss,0.125\n"
    MetricsLog(path, 0)
    assert path.read_text() == "step,metric,value\n"
