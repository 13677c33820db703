"""Encoders that there are, and what a checkpoint is: torchrl-vip weights list

list             the encoders that come with the package, and the official one, with licence and size
path NAME        the folder of one that comes with the package
check SOURCE     open a checkpoint (a folder, a model.pt, a repository of the Hugging Face Hub) and say
                 what it is, and what it lacks
download         fetch the official VIP weights: 94 MB, CC BY-NC 4.0, not for commercial use
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torchrl_vip.cli import guarded, program

GOOD_FOR = {
    "efficientnet_lite0": "the default: the best reward that comes with the package",
    "tiny": "control loops and small machines: two to three times as fast",
}
OFFICIAL = "official VIP (ResNet-50)"
MISSING = {
    "reward_scale": 'scale="auto" needs it',
    "reward_scale_other": 'scale="auto-other" needs it',
    "success_threshold": 'form="sparse" and suspected failures need it',
}
"""Numbers of config.json that a reward may want."""


def make_parser() -> argparse.ArgumentParser:
    """The options of the command line."""
    parser = argparse.ArgumentParser(
        prog=program("weights", "weights_command"),
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    actions.add_parser("list", help="encoders with licence, size and what they are good for")
    path = actions.add_parser("path", help="the folder of one")
    path.add_argument("name", help="a name of the list")
    check = actions.add_parser("check", help="open a checkpoint and say what it is")
    check.add_argument(
        "source", metavar="SOURCE", help="a folder, a model.pt, a name, or user/repo of the Hub"
    )
    download = actions.add_parser("download", help="fetch the official weights (CC BY-NC 4.0)")
    download.add_argument(
        "--out", type=Path, metavar="DIR", help="folder (default: torch.hub's cache)"
    )
    return parser


def describe_all() -> str:
    """The encoders that there are, for a terminal."""
    from torchrl_vip.weights import BUNDLED, DEFAULT, OFFICIAL_LICENCE

    paragraphs = []
    for name, folder in BUNDLED.items():
        config = json.loads((folder / "config.json").read_text())
        size = (folder / "model.safetensors").stat().st_size / 1e6
        facts = f"{size:.0f} MB, {config['dim']} numbers a frame, images of {config['image_size']} pixels"
        called = f"{name} (bundled)" if name == DEFAULT else name
        paragraphs.append(_paragraph(called, GOOD_FOR.get(name, ""), facts, config["licence"]))
    good_for = "comparing with the paper; torchrl-vip weights download"
    facts = "94 MB, 1024 numbers a frame, images of 224 pixels; not in the package"
    paragraphs.append(
        _paragraph(OFFICIAL, good_for, facts, f"{OFFICIAL_LICENCE}: not for commercial use")
    )
    return "\n\n".join(paragraphs)


def _paragraph(name: str, good_for: str, facts: str, licence: str) -> str:
    return f"{name}\n  good for  {good_for}\n  size      {facts}\n  licence   {licence}"


def path_of(name: str) -> Path:
    """Folder of a checkpoint that comes with the package.

    Raises:
        ValueError: there is none of that name.
    """
    from torchrl_vip.weights import BUNDLED, DEFAULT

    name = DEFAULT if name == "bundled" else name
    if name not in BUNDLED:
        raise ValueError(
            f"no weights named {name!r} come with the package; wanted {' or '.join(BUNDLED)}."
        )
    return BUNDLED[name]


def describe(source: str) -> str:
    """What a checkpoint is, for a terminal.

    Raises:
        ValueError, CheckpointError: as :func:`torchrl_vip.load_vip`.
    """
    from torchrl_vip.weights import load_vip

    encoder = load_vip(None if source == "bundled" else source)
    config: dict[str, Any] = encoder.config
    count = sum(weight.numel() for weight in encoder.parameters())
    facts = {
        "encoder": f"{encoder.name}, {count / 1e6:.1f} million weights",
        "embedding": f"{encoder.dim} numbers a frame",
        "images": f"{encoder.image_size} x {encoder.image_size} pixels",
        "licence": config.get("licence") or "not said: ask who made it",
        "training data": config.get("training_data") or "not said",
    }
    facts |= {
        key: f"{config[key]:.4g}" if config.get(key) else f"missing: {why}"
        for key, why in MISSING.items()
    }
    width = max(map(len, facts))
    lines = [f"  {key:{width}}  {value}" for key, value in facts.items()]
    return "\n".join([f"{source}: a VIP checkpoint, whole and readable", *lines])


def run(args: argparse.Namespace) -> int:
    """Do what was asked for; returns the exit code."""
    if args.action == "list":
        print(describe_all())
    elif args.action == "path":
        print(path_of(args.name))
    elif args.action == "check":
        print(describe(args.source))
    else:
        from torchrl_vip.weights import OFFICIAL_LICENCE, download_official

        path = download_official(args.out)
        print(f"{path}\nlicence: {OFFICIAL_LICENCE}, not for commercial use", file=sys.stderr)
        print(f'use: load_vip("{path}")')
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    args = make_parser().parse_args(arguments)
    return guarded(lambda _: run(args), [])


if __name__ == "__main__":
    sys.exit(main())
