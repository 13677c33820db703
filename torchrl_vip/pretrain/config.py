"""Refuses settings that cannot be, before anything is written."""

from __future__ import annotations

import importlib.util
import json
import math
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import yaml

from torchrl_vip.data.sources import Clip
from torchrl_vip.encoders import ENCODERS
from torchrl_vip.pretrain.state import CHECKPOINT


def check(config: dict[str, Any]) -> None:
    """Refuse impossible values before any work; ValueError names the field, value and wish."""
    known = yaml.safe_load(Path(__file__).with_name("config.yaml").read_text())
    del known["defaults"]
    for got, wanted, prefix in ((config, known, ""), (config["data"], known["data"], "data.")):
        if wrong := sorted(prefix + key for key in set(got) ^ set(wanted)):
            raise ValueError(f"unknown or missing fields {', '.join(wrong)}; see config.yaml.")

    def whole(v: Any, least: int) -> bool:
        return type(v) is int and v >= least  # True is no number here

    def real(v: Any, low: float, high: float = math.inf) -> bool:
        return type(v) in (int, float) and low <= v <= high and math.isfinite(v)

    def pair(v: Any) -> bool:
        return isinstance(v, list | tuple) and len(v) == 2 and all(real(x, 0, 1) for x in v)

    data, tiny = config["data"], 1e-30
    good = {
        "steps": whole(config["steps"], 1),
        "batch_size": whole(config["batch_size"], 2),
        "image_size": whole(config["image_size"], 8),
        "dim": whole(config["dim"], 1),
        "seed": whole(config["seed"], 0),
        "lr": real(config["lr"], tiny),
        "weight_decay": real(config["weight_decay"], 0),
        "time_contrast": real(config["time_contrast"], 0),
        "l1": real(config["l1"], 0),
        "l2": real(config["l2"], 0),
        "gamma": real(config["gamma"], tiny, 1 - 1e-12),
        "num_negatives": whole(config["num_negatives"], 0),
        "ema": real(config["ema"], 0, 1) and config["ema"] < 1,
        "loss": config["loss"] in ("vip", "tcn", "triplet"),
        "negatives": config["negatives"] in ("code", "paper"),
        "geometric": config["geometric"] is None
        or (real(config["geometric"], tiny, 1) and config["geometric"] < 1),
        "cross_video": real(config["cross_video"], 0, 1),
        "goal_view": real(config["goal_view"], 0, 1),
        "stride": whole(config["stride"], 1),
        "views": whole(config["views"], 0),
        "keep_checkpoints": whole(config["keep_checkpoints"], 1),
        "loggers": isinstance(config["loggers"], list)
        and set(config["loggers"]) <= {"csv", "tensorboard", "wandb", "mlflow", "trackio"},
        **{
            flag: isinstance(config[flag], bool)
            for flag in ("clamp", "compile", "freeze_batch_norm", "imagenet", "resume", "progress")
        },
        "data.decode": data["decode"] in ("once", "lazily"),
        "self_transition": real(config["self_transition"], 0, 1),
        "flip": real(config["flip"], 0, 1),
        "colour": real(config["colour"], 0, 1) and config["colour"] < 1,
        "crop_scale": pair(config["crop_scale"])
        and 0 < config["crop_scale"][0] <= config["crop_scale"][1],
        "schedule": config["schedule"] in ("cosine", "constant"),
        "precision": config["precision"] in ("auto", "bfloat16", "float32"),
        "checkpoint_every": whole(config["checkpoint_every"], 1),
        "validate_every": whole(config["validate_every"], 1),
        "validation_clips": whole(config["validation_clips"], 1),
        "grad_clip": real(config["grad_clip"], tiny),
        "data.workers": whole(data["workers"], 1),
        "data.validation": isinstance(data["validation"], list) or real(data["validation"], 0, 1),
        "data.hold_out": isinstance(data["hold_out"], list),
    }
    for key, is_good in good.items():
        if not is_good:
            value = data[key[5:]] if key.startswith("data.") else config[key]
            raise ValueError(f"{key}={value} cannot be; see its comment in config.yaml.")
    for kind in config["loggers"]:
        if kind != "csv" and importlib.util.find_spec(kind) is None:
            raise ValueError(f"loggers: {kind} is not installed: pip install {kind}")
    if config["views"] and config["freeze_below"] != "head":
        raise ValueError(
            f"views={config['views']} wants freeze_below=head: features are stored once, so the "
            f"backbone cannot be trained (freeze_below={config['freeze_below']})."
        )
    if config["goal_view"] and config["views"] and (config["flip"] or config["views"] < 2):
        raise ValueError(
            f"goal_view={config['goal_view']} with views={config['views']} wants flip=0 and two views or "
            f"more: a stored view has a mirror image of its own (flip={config['flip']})."
        )
    if config["imagenet"] and config["encoder"] not in ENCODERS:
        raise ValueError(
            f"imagenet=true begins a network of {', '.join(ENCODERS)} with ImageNet's weights; "
            f"encoder={config['encoder']} has weights of its own."
        )
    paths = data["path"] if isinstance(data["path"], list) else [data["path"]]
    for key, path in (
        ("out_dir", config["out_dir"]),
        ("data.cache", data["cache"] or "none"),
        *(("data.path", path) for path in paths),
    ):
        if path == "":
            raise ValueError(f"{key} is empty: give a path, ./ for this folder.")
        if not isinstance(path, str | os.PathLike):
            raise ValueError(
                f"{key}={path!r} is a number here, no path: write it as ./NAME on the command line."
            )
    processes = int(os.environ.get("WORLD_SIZE", 1))
    if config["batch_size"] % processes:
        raise ValueError(
            f"batch_size={config['batch_size']} does not divide over {processes} processes."
        )
    if (
        config["encoder"] not in (*ENCODERS, "bundled")
        and not Path(str(config["encoder"])).exists()
    ):
        raise ValueError(
            f"encoder={config['encoder']} is neither one of {', '.join(ENCODERS)}, nor bundled, "
            "nor a checkpoint."
        )
    pick_device(config["device"])


PLAIN = re.compile(r"[\w./+-]*", re.ASCII)
"""What Hydra's grammar takes for a word."""


def quoted(argument: str) -> str:
    """A path, or list of paths, on the command line as Hydra takes it, be there brackets, umlauts or a ``~``
    in it."""
    field, equals, value = argument.partition("=")
    a_path = field in ("data.path", "data.cache", "out_dir", "encoder")
    if not (equals and a_path) or value[:1] in ("'", '"', "$") or value == "???":
        return argument
    if value[:1] != "[":
        return f"{field}={_quoted(value)}"
    if value[-1:] != "]" or {"'", '"', "$"} & set(value):
        return argument
    return f"{field}=[{','.join(_quoted(path.strip()) for path in value[1:-1].split(','))}]"


def _quoted(path: str) -> str:
    path = os.path.expanduser(path)
    return path if PLAIN.fullmatch(path) else "'" + path.replace("'", r"\'") + "'"


FREE = frozenset(
    "data.path data.decode data.cache data.workers out_dir steps device precision compile resume "
    "checkpoint_every keep_checkpoints validate_every validation_clips loggers progress".split()
)
"""Fields that may change when a run goes on: the clips may have moved, not changed sides."""


def check_resumed(config: dict[str, Any], began: Path) -> None:
    """Refuse to go on with other settings than a run began with: ValueError names them.

    Args:
        began: the config.yaml of the run.
    """
    if not began.exists():
        return
    old = _read_run(began)
    if old is None:
        raise ValueError(
            f"{began} is of no pre-training run, though there are checkpoints: give another out_dir."
        )
    old, config = _flat(old), _flat(config)
    changed = [k for k in config if k in old and k not in FREE and old[k] != config[k]]
    if changed:
        raise ValueError(
            f"{began.parent} began with {', '.join(f'{k}={old[k]}' for k in changed)}, not "
            f"{', '.join(f'{k}={config[k]}' for k in changed)}: give those, or another out_dir, or "
            "resume=false to begin anew."
        )


def check_split(split: tuple[Sequence[Clip], Sequence[Clip]], began: Path) -> None:
    """Refuse to go on where clips have changed sides: ValueError says how many.

    Args:
        split: training and validation clips.
        began: what :func:`write_split` wrote when the run began.
    """
    if not began.exists():
        return
    old = json.loads(began.read_text())
    training, validation = ([clip.name for clip in clips] for clips in split)
    now, then = set(validation), set(old["validation"])
    if now != then:
        raise ValueError(
            f"{began.parent} was validated on {len(then)} clips, of which {len(then - now)} are not among "
            f"those for validation now, and {len(now - then)} are new: give data.path as it was (names count "
            "from there) and the same clips, or resume=false to begin anew."
        )
    if gone_or_new := set(training) ^ set(old["training"]):
        print(f"training clips have changed since the run began: {len(gone_or_new)} gone or new")


def write_split(split: tuple[Sequence[Clip], Sequence[Clip]], path: Path) -> None:
    """Write the names of the clips on each side, whole or not at all."""
    training, validation = ([clip.name for clip in clips] for clips in split)
    part = path.with_suffix(".tmp")
    part.write_text(json.dumps({"training": training, "validation": validation}, indent=1))
    os.replace(part, path)


WRITTEN = ("config.yaml", "clips.json", "metrics.csv", "curves.png", "logs", "best", "final")
"""What a run writes into its folder, beside its checkpoints."""


def check_new(out: Path, *, resume: bool) -> None:
    """Refuse to begin a run in a folder with files that it would take for an earlier run's, and replace:
    ValueError names them. So too, unless ``resume`` is false, where a finished run has lost its checkpoints.
    """
    began = out / "config.yaml"
    checkpoints = any((out / "checkpoints").glob(CHECKPOINT))
    if _read_run(began) is not None:
        if resume and not checkpoints and (out / "final").exists():
            raise ValueError(
                f"{out} holds a finished run (final) without its checkpoints, so it cannot go on: give "
                "another out_dir, or resume=false to begin anew and replace it."
            )
        return
    if checkpoints and not began.exists():
        return  # lost, or of a version that wrote none
    taken = [name for name in WRITTEN if (out / name).exists()]
    if taken:
        raise ValueError(
            f"{out} holds {', '.join(taken)} of no pre-training run: give another out_dir."
        )


def _read_run(began: Path) -> dict[str, Any] | None:
    """A run's config.yaml; None where there is none, or something else."""
    try:
        old = yaml.safe_load(began.read_text())
    except (OSError, ValueError, yaml.YAMLError):
        return None
    ours = isinstance(old, dict) and {"data", "steps", "out_dir"} <= old.keys()
    return old if ours and isinstance(old["data"], dict) else None


def write_config(config: dict[str, Any], path: Path) -> None:
    """Write a run's config.yaml, whole or not at all."""
    part = path.with_suffix(".tmp")
    part.write_text(yaml.safe_dump(config, sort_keys=False))
    os.replace(part, path)


def _flat(config: dict[str, Any]) -> dict[str, Any]:
    """With the fields of "data" beside the others, as "data.path" and so on."""
    data = {f"data.{key}": value for key, value in config["data"].items()}
    return {key: value for key, value in config.items() if key != "data"} | data


def pick_device(name: str) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    # of torchrun's processes each has its own
    device = f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if name == "cuda" else name
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, TypeError) as error:  # AssertionError: torch without CUDA
        reason = str(error).splitlines()[0]
        raise ValueError(f"device={name} cannot be used here: {reason}") from error
    return torch.device(device)
