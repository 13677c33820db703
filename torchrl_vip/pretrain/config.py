"""What config.yaml's fields may be, and what they were called before.

The configuration is a dict with the fields of config.yaml. :func:`check` refuses what cannot be before
any work; build.py reads the result, and nothing changes it on its way.
"""

from __future__ import annotations

import difflib
import importlib.util
import json
import math
import os
import re
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import torch
import yaml

from torchrl_vip.encoders import ENCODERS
from torchrl_vip.functional import OLD_NEGATIVES

DEFAULTS = yaml.safe_load(Path(__file__).with_name("config.yaml").read_text())
del DEFAULTS["defaults"]  # Hydra's
PRESETS = sorted(path.stem for path in Path(__file__).with_name("preset").glob("*.yaml"))

# --- rules ----------------------------------------------------------------------------------------


class Rule(NamedTuple):
    """What is wanted of a field, in words, and whether a value is that."""

    wanted: str
    accepts: Callable[[Any], bool]

    def or_null(self) -> Rule:
        return Rule(f"{self.wanted}, or null", lambda v: v is None or self.accepts(v))


def whole(least: int) -> Rule:
    def accepts(v: Any) -> bool:
        return type(v) is int and v >= least  # True is no number here

    return Rule(f"a whole number, {least} or more", accepts)


def number(interval: str) -> Rule:
    """A finite number in an interval such as "[0, 1)"."""
    low, high = map(float, interval[1:-1].split(","))

    def accepts(v: Any) -> bool:
        return (
            type(v) in (int, float)
            and math.isfinite(v)
            and (low < v or (low == v and interval[0] == "["))
            and (v < high or (v == high and interval[-1] == "]"))
        )

    return Rule(
        "a positive number" if interval == "(0, inf)" else f"a number in {interval}", accepts
    )


def one_of(*choices: str) -> Rule:
    return Rule(f"one of {', '.join(choices)}", lambda v: isinstance(v, str) and v in choices)


def _crop_scale(v: Any) -> bool:
    share = number("(0, 1]").accepts
    return isinstance(v, list | tuple) and len(v) == 2 and all(map(share, v)) and v[0] <= v[1]


FLAG = Rule("true or false", lambda v: isinstance(v, bool))
SHARE = number("[0, 1]")
TEXT = Rule("a word", lambda v: isinstance(v, str))
LABELS = Rule("a list of label values", lambda v: isinstance(v, list))
LOGGERS = ("csv", "tensorboard", "wandb", "mlflow", "trackio")
ANY = Rule("", lambda v: True)  # a rule of its own below

DEPTHS = ("head", "cells", "late", "all")

RULES = {
    "data.path": ANY,
    "data.also": ANY,
    "data.also_share": number("[0, 1)"),
    "data.idle": ANY,
    "data.decode": one_of("once", "lazily"),
    "data.cache": ANY,
    "data.validation": Rule(
        f"{SHARE.wanted}, {LABELS.wanted}, or each",
        lambda v: SHARE.accepts(v) or LABELS.accepts(v) or v == "each",
    ),
    "data.hold_out": LABELS,
    "data.workers": whole(1),
    "out_dir": ANY,
    "encoder": ANY,
    "imagenet": FLAG,
    "dim": whole(1),
    "image_size": whole(8),
    "depth": one_of(*DEPTHS).or_null(),
    "freeze_below": TEXT.or_null(),
    "views": whole(0),
    "freeze_batch_norm": FLAG,
    "loss": one_of("vip", "tcn", "triplet"),
    "gamma": number("(0, 1)"),
    "num_negatives": whole(0),
    "negatives": one_of("joint", "separate"),
    "clamp": FLAG,
    "time_contrast": number("[0, inf)"),
    "decoy": number("[0, inf)"),
    "wrong_goals": number("[0, inf)"),
    "decoy_margin": SHARE,
    "task_progress": number("[0, inf)"),
    "decoy_share": number("[0, 1)"),
    "l1": number("[0, inf)"),
    "l2": number("[0, inf)"),
    "self_transition": SHARE,
    "geometric": number("(0, 1)").or_null(),
    "cross_video": SHARE,
    "goal_augmentation": SHARE,
    "stride": whole(1),
    "crop_scale": Rule("a pair of numbers in (0, 1], the smaller one first", _crop_scale),
    "flip": SHARE,
    "colour": number("[0, 1)"),
    "steps": whole(0),
    "batch_size": whole(2),
    "lr": number("(0, inf)"),
    "schedule": one_of("cosine", "constant"),
    "weight_decay": number("[0, inf)"),
    "grad_clip": number("(0, inf)"),
    "ema": number("[0, 1)"),
    "seed": whole(0),
    "device": ANY,
    "precision": one_of("auto", "bfloat16", "float32"),
    "compile": FLAG,
    "resume": FLAG,
    "checkpoint_every": whole(1),
    "keep_checkpoints": whole(1),
    "best": TEXT,
    "validate_every": whole(1),
    "validation_clips": whole(1),
    "loggers": Rule(
        f"a list of {', '.join(LOGGERS)}",
        lambda v: isinstance(v, list) and all(kind in LOGGERS for kind in v),
    ),
    "progress": FLAG,
}


def check(config: dict[str, Any]) -> dict[str, Any]:
    """Refuse values that cannot be, before any work.

    Returns:
        The configuration as config.yaml will have it, under the fields' present names; ``config`` is
        left as it is.

    Raises:
        ValueError: it names the field, the value and what was wanted.
    """
    config = translate(config, stacklevel=4)
    data = config.get("data")
    if not isinstance(data, dict):
        raise ValueError(
            f"data={data} is invalid: wanted the fields {', '.join(DEFAULTS['data'])}."
        )
    values = _flat(config)
    if wrong := sorted(values.keys() ^ RULES.keys()):
        near = [nearest(field, RULES) for field in wrong if field in values]
        raise ValueError(
            f"unknown or missing fields {', '.join(wrong)}{''.join(near)}; see config.yaml."
        )
    for field, rule in RULES.items():
        if not rule.accepts(values[field]):
            raise ValueError(f"{field}={values[field]} is invalid: wanted {rule.wanted}.")
    _check_paths(values)
    _check_together(config)
    for kind in config["loggers"]:
        if kind != "csv" and importlib.util.find_spec(kind) is None:
            raise ValueError(f"loggers: {kind} is not installed: pip install {kind}")
    pick_device(config["device"])
    # Paths and pairs as YAML has them.
    return json.loads(json.dumps(config, default=str))


def _check_paths(values: dict[str, Any]) -> None:
    paths = []
    for field in ("data.path", "data.also", "data.idle"):
        given = values[field]
        if field == "data.path" or given is not None:
            paths += [(field, path) for path in (given if isinstance(given, list) else [given])]
    folders = [("out_dir", values["out_dir"])]
    if values["data.cache"] is not None:
        folders.append(("data.cache", values["data.cache"]))
    for field, path in folders + paths:
        if path == "":
            raise ValueError(f"{field} is empty: give a path, ./ for this folder.")
        if not isinstance(path, str | os.PathLike):
            raise ValueError(
                f"{field}={path!r} is a number here, no path: write it as ./NAME on the command line."
            )
    for field, path in folders:
        for place in (Path(path), *Path(path).parents):
            if place.exists() and not place.is_dir():
                raise ValueError(f"{field}={path} is invalid: {place} is a file; give a folder.")


def _check_together(config: dict[str, Any]) -> None:
    """Refuse fields that do not go together."""
    encoder, views, goals = config["encoder"], config["views"], config["goal_augmentation"]
    if encoder not in (*ENCODERS, "bundled") and not Path(str(encoder)).exists():
        raise ValueError(
            f"encoder={encoder} is neither one of {', '.join(ENCODERS)}, nor bundled, nor a checkpoint."
        )
    if config["imagenet"] and encoder not in ENCODERS:
        raise ValueError(
            f"imagenet=true begins a network of {', '.join(ENCODERS)} with ImageNet's weights; "
            f"encoder={encoder} has weights of its own."
        )
    depth, below = config["depth"], config["freeze_below"]
    if depth and below:
        raise ValueError(
            f"depth={depth} and freeze_below={below} both say what is trained: give one of them, depth=null "
            "beside freeze_below."
        )
    if depth in ("late", "all") and views:
        raise ValueError(
            f"views={views} does not go with depth={depth}: features are stored once, so the backbone cannot "
            "be trained. Give views=0, or depth=head or cells."
        )
    if views and not depth and below != "head":
        raise ValueError(
            f"views={views} wants freeze_below=head: features are stored once, so the backbone "
            f"cannot be trained (freeze_below={config['freeze_below']})."
        )
    only_head = depth in ("head", "cells") or below == "head"
    if not config["steps"] and not (config["task_progress"] and only_head):
        raise ValueError(
            f"steps=0 trains nothing with depth={depth} and task_progress={config['task_progress']}: "
            "give steps=300, or task_progress=3 with depth=head or cells."
        )
    if goals and views and (config["flip"] or views < 2):
        raise ValueError(
            f"goal_augmentation={goals} with views={views} wants flip=0 and two views or more: a "
            f"stored view has a mirror image of its own (flip={config['flip']})."
        )
    processes = int(os.environ.get("WORLD_SIZE", 1))
    if processes > 1 and config["data"]["validation"] == "each":
        raise ValueError(
            f"data.validation=each runs in one process; there are {processes}. Name the clips to validate on "
            "instead, or start it without torchrun."
        )
    if config["batch_size"] % processes:
        raise ValueError(
            f"batch_size={config['batch_size']} does not divide over {processes} processes."
        )


def pick_device(name: str) -> torch.device:
    """The device of a name; of torchrun's processes each has its own GPU.

    Raises:
        ValueError: it cannot be used here.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    device = f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if name == "cuda" else name
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, TypeError) as error:  # AssertionError: torch without CUDA
        reason = str(error).splitlines()[0]
        raise ValueError(f"device={name} cannot be used here: {reason}") from error
    return torch.device(device)


def nearest(name: str, known: Iterable[str]) -> str:
    """The known names that are like this one, as a question in brackets; empty where none is."""
    found = difflib.get_close_matches(name, known, n=3)
    return f" (did you mean {', '.join(found)}?)" if found else ""


def _flat(config: dict[str, Any]) -> dict[str, Any]:
    """With the fields of "data" as "data.path" and so on."""
    data = {f"data.{key}": value for key, value in config["data"].items()}
    return {key: value for key, value in config.items() if key != "data"} | data


# --- old names ------------------------------------------------------------------------------------

RENAMED = {"goal_view": "goal_augmentation"}
RENAMED_VALUES = {"negatives": OLD_NEGATIVES}


def _current(field: str, value: Any) -> tuple[str, Any]:
    """A field and its value as they are called now."""
    field = RENAMED.get(field, field)
    values = RENAMED_VALUES.get(field, {})
    return field, values.get(value, value) if isinstance(value, str) else value


def _deprecated(old: str, new: str, stacklevel: int) -> None:
    message = f"{old} is deprecated: write {new}."
    warnings.warn(message, DeprecationWarning, stacklevel=stacklevel + 1)


def _given_twice(old: str, new: str) -> ValueError:
    return ValueError(f"{old} and {new} are one field, given twice: write {new} alone.")


def translate(config: dict[str, Any], *, stacklevel: int | None = None) -> dict[str, Any]:
    """A configuration under the fields' present names.

    Args:
        stacklevel: of the deprecation warnings; None gives none, as for what an earlier run wrote.

    Raises:
        ValueError: a field under both of its names. The new one at its default is none that was given:
            a user's preset stands on config.yaml, which has every field.
    """
    out = {}
    for field, value in config.items():
        new, now = _current(field, value)
        if field == new and any(RENAMED[old] == new for old in RENAMED.keys() & config.keys()):
            continue  # at its default, or an error under the old name
        if field != new and config.get(new, DEFAULTS[new]) != DEFAULTS[new]:
            raise _given_twice(field, new)
        if stacklevel and (field, value) != (new, now):
            _deprecated(f"{field}={value}", f"{new}={now}", stacklevel)
        out[new] = now
    return out


# --- the command line -----------------------------------------------------------------------------

PLAIN = re.compile(r"[\w./+-]*", re.ASCII)
"""What Hydra's grammar takes for a word."""


def command_line(arguments: list[str]) -> list[str]:
    """Arguments as Hydra takes them: paths quoted, fields under their present names.

    Raises:
        ValueError: a field under both of its names.
    """
    check_spellings(arguments, arguments)
    return list(map(quoted, map(_renamed, arguments)))


def check_spellings(arguments: list[str], old: Iterable[str]) -> None:
    """Refuse a field that the command line gives, and ``old``, a preset or the command line too, under
    its old name: ValueError."""
    given, before = ({name.partition("=")[0].lstrip("+") for name in x} for x in (arguments, old))
    for name, new in RENAMED.items():
        if new in given and name in before:
            raise _given_twice(name, new)


def _renamed(argument: str) -> str:
    field, equals, value = argument.partition("=")
    bare = field.lstrip("+")
    new, now = _current(bare, value)
    if not equals or (new, now) == (bare, value):
        return argument
    _deprecated(f"{bare}={value}", f"{new}={now}", stacklevel=3)
    return f"{field.removesuffix(bare)}{new}={now}"


def quoted(argument: str) -> str:
    """A path, or list of paths, on the command line as Hydra takes it, be there brackets, umlauts or a
    ``~`` in it."""
    field, equals, value = argument.partition("=")
    paths = ("data.path", "data.also", "data.idle", "data.cache", "out_dir", "encoder")
    a_path = field in paths
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


def explain(error: Exception) -> str:
    """One line of what Hydra says of a command line in several.

    Args:
        error: of composing the configuration.
    """
    said = str(error)
    if match := re.match(r"Could not override '(.+)'", said):
        field = match[1]
        return f"unknown field {field}{nearest(field, [*RULES, 'preset'])}; --help lists all."
    if match := re.search(r"Could not find 'preset/(.+)'", said):
        name = match[1]
        return f"unknown preset {name}{nearest(name, PRESETS)}; there are {', '.join(PRESETS)}."
    lines = said.partition("\n\n")[0].splitlines()  # then come Hydra's search path and options
    return " ".join(line.strip() for line in lines if not line.startswith("See https://"))


# --- a run's own config.yaml ----------------------------------------------------------------------

FREE = frozenset(
    "data.path data.also data.idle data.decode data.cache data.workers out_dir steps device precision "
    "compile resume checkpoint_every keep_checkpoints validate_every validation_clips loggers "
    "progress".split()
)
"""Fields that may change when a run goes on: the clips may have moved, not changed sides."""


def check_resumed(settings: str, began: Path) -> None:
    """Refuse to go on with other settings than a run began with: ValueError names them.

    Args:
        settings: YAML of the configuration.
        began: the config.yaml of the run, which may have the fields' old names.
    """
    if not began.exists():
        return
    old = read_settings(began)
    if old is None:
        raise ValueError(
            f"{began} is of no pre-training run, though there are checkpoints: give another out_dir."
        )
    old, new = _flat(translate(old)), _flat(yaml.safe_load(settings))
    changed = [k for k in new if k in old and k not in FREE and old[k] != new[k]]
    if changed:
        raise ValueError(
            f"{began.parent} began with {', '.join(f'{k}={old[k]}' for k in changed)}, not "
            f"{', '.join(f'{k}={new[k]}' for k in changed)}: give those, or another out_dir, or "
            "resume=false to begin anew."
        )


def read_settings(began: Path) -> dict[str, Any] | None:
    """A run's config.yaml; None where there is none, or something else."""
    try:
        old = yaml.safe_load(began.read_text())
    except (OSError, ValueError, yaml.YAMLError):
        return None
    ours = isinstance(old, dict) and {"data", "steps", "out_dir"} <= old.keys()
    return old if ours and isinstance(old["data"], dict) else None
