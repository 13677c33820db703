"""Command line of value-implicit pre-training; every field is in config.yaml beside this file."""

import argparse
import os
import sys
from pathlib import Path

try:
    import hydra
except ImportError:
    sys.exit('pre-training needs its extra packages: pip install "torchrl-vip[pretrain]"')

from typing import Any, cast

from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf

from torchrl_vip.cli import program

HYDRA = (
    *(
        "--help",
        "--hydra-help",
        "--version",
        "--cfg",
        "--resolve",
        "--package",
        "--run",
        "--multirun",
    ),
    *(
        "--shell-completion",
        "--config-path",
        "--config-name",
        "--config-dir",
        "--experimental-rerun",
    ),
    "--info",
)
"""Its own options."""


@hydra.main(version_base=None, config_path=".", config_name="config")
def main(config: DictConfig) -> None:
    from torchrl_vip.pretrain import processes
    from torchrl_vip.pretrain.config import check_spellings, explain
    from torchrl_vip.pretrain.trainer import pretrain
    from torchrl_vip.weights import CheckpointError

    try:
        missing = OmegaConf.missing_keys(config)
        if missing:
            sys.exit(f"missing {', '.join(f'{k}=...' for k in sorted(missing))}; see --help.")
        check_spellings(sys.argv[1:], old=config)
        settings = cast(dict[str, Any], OmegaConf.to_container(config, resolve=True))
    except ValueError as error:
        sys.exit(f"error: {explain(error)}")
    try:
        final = pretrain(settings)
    except (ValueError, OSError, ImportError, CheckpointError) as error:
        sys.exit(f"error: {error}")
    except RuntimeError as error:
        if not processes.lost(error):
            raise
        sys.exit(
            f"error: process {os.environ['RANK']} lost the others ({str(error).splitlines()[0]}). "
            "Run the same command again: it goes on from the last checkpoint."
        )
    except KeyboardInterrupt:
        interrupted(Path(config.out_dir), config.resume)
    if first_process():
        print(f'done: load_vip("{final}")')


def first_process() -> bool:
    return int(os.environ.get("RANK", 0)) == 0


def interrupted(out: Path, resume: bool) -> None:
    """Say how a run that was interrupted goes on, and exit as a program does after Ctrl-C."""
    from torchrl_vip.pretrain.state import Checkpoints

    again = "the same command" if resume else "the same command without resume=false"
    checkpoints = Checkpoints(out / "checkpoints", keep=1)
    steps = checkpoints.steps()
    where = f"from step {steps[0]} ({checkpoints.path(steps[0])})" if steps else "from the start"
    if first_process():
        print(f"\ninterrupted: {again} goes on {where}.", file=sys.stderr)
    sys.exit(130)


def command() -> None:
    """Translate the command line, run, and say in one line what Hydra says in several."""
    from torchrl_vip.pretrain.config import command_line, explain

    try:
        for given in sys.argv[1:]:
            if given.startswith("--") and given.partition("=")[0] not in HYDRA:
                raise ValueError(
                    f"{given}: fields are given as field=value, such as data.path=CLIPS."
                )
        sys.argv[1:] = command_line(sys.argv[1:])
    except ValueError as error:
        sys.exit(f"error: {error}")
    # The run writes its own config.yaml into out_dir: no folder of Hydra's beside it.
    sys.argv[1:1] = [
        "hydra.run.dir=.",
        "hydra.output_subdir=null",
        "hydra/job_logging=none",
        "hydra/hydra_logging=none",
    ]
    os.environ["HYDRA_FULL_ERROR"] = "1"  # it hands its errors over instead of printing them
    try:
        main()
    except (HydraException, ValueError) as error:  # those of pretrain end in main
        sys.exit(f"error: {explain(error)}")


def make_parser() -> argparse.ArgumentParser:
    """The fields that may be given, for a shell to complete; Hydra reads them."""
    folder = Path(__file__).parent
    presets = sorted(path.stem for path in (folder / "preset").glob("*.yaml"))
    loaded = OmegaConf.to_container(OmegaConf.load(folder / "config.yaml"))
    config = cast(dict[str, Any], loaded)
    fields = [
        f"{name}.{inner}=" if inner else f"{name}="
        for name, value in config.items()
        if name not in ("defaults", "hydra")
        for inner in (value if isinstance(value, dict) else [""])
    ]
    parser = argparse.ArgumentParser(prog=program("pretrain"))
    choices = [*(f"preset={preset}" for preset in presets), *fields]
    parser.add_argument(
        "fields", nargs="*", choices=choices, metavar="FIELD=VALUE", help="see --help"
    )
    return parser


def run(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit code, or raises SystemExit with it."""
    if arguments is not None:
        sys.argv[1:] = arguments  # where Hydra reads them
    if {"-h", "--help"} & set(sys.argv[1:]):  # Hydra's own help drops the comments
        text = Path(__file__).with_name("config.yaml").read_text()
        print(text.replace("python -m torchrl_vip.pretrain", program("pretrain")), end="")
        return 0
    try:
        command()
    except KeyboardInterrupt:  # before the run has begun
        print("\ninterrupted: nothing was written.", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(run())
