"""Prints what makes a shell complete ``torchrl-vip``: commands, options and their values."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from torchrl_vip import cli

WHERE = {
    "bash": "~/.local/share/bash-completion/completions/torchrl-vip",
    "zsh": "a folder of $fpath, as _torchrl-vip, such as /usr/local/share/zsh/site-functions/_torchrl-vip",
    "fish": "~/.config/fish/completions/torchrl-vip.fish",
}
PATHS = (
    "videos",
    "dataset",
    "source",
    "out",
    "results",
    "folder",
    "goal",
    "encoder",
    "check",
    "lerobot",
)
"""Options and arguments whose value may be a file or folder."""


def make_parser() -> argparse.ArgumentParser:
    """The options of the command line."""
    places = "\n".join(f"  {shell:5} {place}" for shell, place in WHERE.items())
    parser = argparse.ArgumentParser(
        prog=cli.program("completion"),
        description="Print what makes your shell complete torchrl-vip. Put it where your shell looks:\n\n"
        f"{places}\n\nIn bash:\n\n"
        f"  mkdir -p ~/.local/share/bash-completion/completions\n"
        f"  torchrl-vip completion bash > {WHERE['bash']}\n\n"
        "In zsh:\n\n"
        "  mkdir -p ~/.zfunc && torchrl-vip completion zsh > ~/.zfunc/_torchrl-vip\n"
        "  echo 'fpath=(~/.zfunc $fpath); autoload -Uz compinit; compinit' >> ~/.zshrc\n\n"
        "and open a new terminal. Do it again after an update, for new options.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("shell", choices=cli.SHELLS)
    return parser


def whole_parser() -> argparse.ArgumentParser:
    """``torchrl-vip`` with the options of all its commands; those that are not installed have none."""
    import shtab

    parser = argparse.ArgumentParser(prog=cli.NAME)
    parser.add_argument("--version", action="store_true", help="versions")
    commands = parser.add_subparsers(dest="command")
    for name, command in cli.COMMANDS.items():
        options: dict[str, Any] = {"help": command.about, "description": command.about}
        try:
            own = getattr(cli.load(name), "make_parser", None)
        except (ImportError, SystemExit):
            own = None
        if own is not None:
            options |= {"parents": [own()], "add_help": False}
        made = commands.add_parser(name, **options)
        for action in made._actions:
            if action.dest in PATHS and not action.choices:
                action.complete = shtab.FILE  # type: ignore[attr-defined]  # shtab's way
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code.

    Raises:
        ImportError: shtab is not installed.
    """
    args = make_parser().parse_args(arguments)
    try:
        import shtab
    except ImportError as error:
        raise ImportError(f'completion needs shtab: pip install "{cli.NAME}[cli]"') from error
    print(shtab.complete(whole_parser(), args.shell))
    return 0
