"""The command ``torchrl-vip``: pretrain, label, render, curves, demo and weights, each also ``python -m``.

Nothing heavy is imported before a command is chosen, so that ``--help`` takes a moment.
"""

from __future__ import annotations

import argparse
import difflib
import importlib
import os
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import version
from types import ModuleType
from typing import NamedTuple

NAME = "torchrl-vip"
INTERRUPTED = 130
"""Exit code of a command that Ctrl-C ended, as shells have it."""
SHELLS = ("bash", "zsh", "fish")


class Command(NamedTuple):
    """Where a command is, and what a beginner wants to know.

    Attributes:
        module: has ``make_parser()``, for completion, and ``main(arguments)``, which returns the exit code.
        about: a line.
        example: a command line, without the program's name.
        extra: of the package, that the command needs.
        main: the name of that function, where it is another.
    """

    module: str
    about: str
    example: str
    extra: str | None = None
    main: str = "main"


COMMANDS = {
    "curves": Command(
        "torchrl_vip.curves.__main__",
        "look at the reward of a video: curve, film, what it looks at",
        "curves try.mp4 --goal done.png --out look",
        "curves",
    ),
    "demo": Command(
        "torchrl_vip.demo.__main__",
        "the same in the browser: drop a video, pick a goal",
        "demo",
        "page",
    ),
    "label": Command(
        "torchrl_vip.label.__main__",
        "write a reward for every frame of a dataset",
        "label my_dataset --goal mean-last",
        "label",
    ),
    "pretrain": Command(
        "torchrl_vip.pretrain.__main__",
        "train an encoder, or tune the bundled one to your scene",
        "pretrain data.path=clips out_dir=run preset=scene",
        "pretrain",
        "run",
    ),
    "render": Command(
        "torchrl_vip.demonstrations.render",
        "film successes, failures and idle robots in a simulator",
        "render --suite metaworld --episodes 2 --out clips",
        "metaworld",
    ),
    "weights": Command(
        "torchrl_vip.weights_command",
        "list encoders with licence and size; check or fetch one",
        "weights list",
    ),
    "completion": Command(
        "torchrl_vip.completion",
        "what makes your shell complete these commands",
        "completion bash",
        "cli",
    ),
}

_called: list[str] = []
"""The command that runs, where ``torchrl-vip`` has called it."""


def program(name: str, module: str | None = None) -> str:
    """How a command was called, for its usage: ``torchrl-vip NAME``, or ``python -m torchrl_vip.NAME``."""
    return f"{NAME} {name}" if name in _called else f"python -m torchrl_vip.{module or name}"


def make_parser() -> argparse.ArgumentParser:
    """Of the commands' names alone; what follows is the command's own."""
    width = max(map(len, COMMANDS))
    listed = "\n".join(
        f"  {name:{width}}  {c.about}\n  {'':{width}}    {NAME} {c.example}"
        for name, c in COMMANDS.items()
    )
    parser = argparse.ArgumentParser(
        prog=NAME,
        usage=f"{NAME} COMMAND ... ({NAME} COMMAND --help says more)",
        description="Rewards for robots from a goal image. An encoder embeds each camera frame; the\n"
        "distance to the embedding of the goal image becomes the reward.",
        epilog=f"commands, each with an example:\n{listed}\n\n"
        "Begin with curves, on a video of your task. Each command is also python -m torchrl_vip.COMMAND\n"
        "(render: torchrl_vip.demonstrations.render).\n"
        "exit codes: 0 done; 1 bad input; 2 wrong usage; 3 label left unreadable episodes out; 130 Ctrl-C.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--version", action="store_true", help="versions of this package and what it builds on"
    )
    parser.add_argument("command", nargs="?", metavar="COMMAND", help="see below")
    parser.add_argument("rest", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    return parser


def versions() -> str:
    """Of the package and of what it builds on."""
    packages = ("torchrl-vip", "torch", "torchrl", "tensordict")
    python = ".".join(map(str, sys.version_info[:3]))
    return ", ".join([*(f"{name} {version(name)}" for name in packages), f"Python {python}"])


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code."""
    parser = make_parser()
    args = parser.parse_args(arguments)
    if args.version:
        print(versions())
        return 0
    if args.command is None:
        parser.print_help(sys.stderr)
        return 2
    if args.command not in COMMANDS:
        near = difflib.get_close_matches(args.command, COMMANDS, 1)
        hint = f"did you mean {near[0]}?" if near else f"wanted one of {', '.join(COMMANDS)}."
        parser.error(f"there is no command {args.command!r}: {hint}")
    _called[:] = [args.command]
    sys.argv = [NAME, args.command, *args.rest]  # as commands write it down
    function = COMMANDS[args.command].main
    return guarded(lambda rest: getattr(load(args.command), function)(rest), args.rest)


def load(name: str) -> ModuleType:
    """A command's module.

    Raises:
        ImportError: a package that it needs is missing; says how to install it.
    """
    command = COMMANDS[name]
    try:
        return importlib.import_module(command.module)
    except ModuleNotFoundError as error:
        if command.extra is None or (error.name or "").startswith("torchrl_vip"):
            raise
        raise ImportError(
            f'{NAME} {name} needs {error.name}, which is not installed: pip install "{NAME}[{command.extra}]"'
        ) from error


def guarded(main: Callable[[list[str]], int | None], arguments: Sequence[str] | None = None) -> int:
    """Run a command's ``main`` and return its exit code: a user's mistake is a line, and so is Ctrl-C."""
    try:
        return main(list(sys.argv[1:] if arguments is None else arguments)) or 0
    except KeyboardInterrupt:
        print("\ninterrupted.", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # `torchrl-vip ... | head`: whoever reads has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        if not is_mistake(error):
            raise
        print(f"error: {error}", file=sys.stderr)
        return 1


def is_mistake(error: Exception) -> bool:
    """Whether the words of an error are meant for the user, who can mend it."""
    from torchrl_vip.weights import CheckpointError

    return isinstance(error, ValueError | OSError | ImportError | CheckpointError)


if __name__ == "__main__":
    sys.exit(main())
