"""Look at a reward before you train with it: python -m torchrl_vip.curves VIDEO... --out DIR

    python -m torchrl_vip.curves try.mp4 --out look                       # its own last frame as the goal
    python -m torchrl_vip.curves try1.mp4 try2.mp4 --goal done.png --out look
    python -m torchrl_vip.curves try.mp4 --encoder bundled tiny pixels --out look

VIDEO is a video file or a folder of numbered frames. DIR gets:

  VIDEO/curve.png      frames, and below them the distance to the goal and the reward of each step
  VIDEO/film.mp4       the video beside its curve, with a cursor that moves along; film.gif is smaller
  VIDEO/path.png       the way through the embedding to the goal, in two principal components
  VIDEO/saliency.png   what the distance looks at: each part of a frame is hidden in turn
  rewards.png          histogram of the rewards of all steps (Fig. 5 of the VIP paper)
  smoothness.png       table: order, bumps, bump size, share of steps that lead towards the goal
  attempts.png         several videos against one goal image: which came nearest?
  curves.json          all numbers

Against its own last frame almost any encoder orders a video well. Give --goal the end of another episode, and
--encoder pixels beside your encoder: raw pixels are what it should beat.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torchrl_vip.cli import guarded, program

if TYPE_CHECKING:
    from torchrl_vip.files import NewFolder

FIGURES = ("curve", "film", "path", "saliency", "rewards", "smoothness", "attempts")


NUMBERS = "curves.json"


def make_parser() -> argparse.ArgumentParser:
    """The options of the command line."""
    parser = argparse.ArgumentParser(
        prog=program("curves"),
        description=__doc__.replace("python -m torchrl_vip.curves", program("curves")),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("videos", nargs="+", type=Path, metavar="VIDEO", help="video files or folders of frames")
    add("--out", type=Path, required=True, metavar="DIR", help="folder of the pictures, a new one")
    again = "replace DIR, where this command has made it before"
    add("--overwrite", action="store_true", help=again)
    goal = "last: each video's own last frame; a number: that frame of each, 0 is the first; or an image"
    add("--goal", default="last", metavar="IMAGE|last|FRAME", help=goal + " (default: last)")
    encoder = (
        "one or several to compare: bundled, tiny, pixels (the baseline), a checkpoint's folder, "
    )
    encoder += "an official model.pt or a repository of the Hugging Face Hub"
    add(
        "--encoder",
        nargs="+",
        default=["bundled"],
        metavar="NAME",
        help=f"{encoder} (default: bundled)",
    )
    smooth = "share of the past in an average of the distance, in [0, 1), as VIPRewardTransform(smoothing=)"
    add("--smoothing", type=float, default=0.0, help=f"{smooth} (default: 0)")
    add("--blur", type=float, default=0.0, help="pixels; 1.5 suits rendered frames (default: 0)")
    only = f"make these pictures alone, of {', '.join(FIGURES)}"
    add("--only", nargs="+", choices=FIGURES, default=FIGURES, metavar="PICTURE", help=only)
    moments = "frames whose saliency is drawn, from the first to the last (default: 3)"
    add("--saliency-frames", type=int, default=3, metavar="N", help=moments)
    add("--device", default="cpu", help="cpu, cuda, cuda:1, ... (default: cpu)")
    return parser


def check_options(args: argparse.Namespace) -> None:
    """Raise ValueError for numbers and names that cannot be."""
    if args.saliency_frames < 1:
        raise ValueError(f"--saliency-frames {args.saliency_frames}: wanted 1 or more.")
    if args.blur < 0:
        raise ValueError(f"--blur {args.blur}: wanted 0 or more pixels.")
    if not 0 <= args.smoothing < 1:
        raise ValueError(f"--smoothing {args.smoothing}: wanted a share in [0, 1); 0 is off.")
    if len(set(args.encoder)) < len(args.encoder):
        raise ValueError(f"--encoder {' '.join(args.encoder)}: one is named twice.")


def read_goal(text: str) -> Any:
    """What ``--goal`` says: None (last), a frame's number, or an image uint8 ``[H, W, 3]``.

    Raises:
        ValueError: no readable image, and no number.
    """
    from torchrl_vip.goals import read_image

    if text == "last":
        return None
    if text.removeprefix("-").isdecimal():
        return int(text)
    if not Path(text).exists():
        raise ValueError(
            f"--goal {text} is no file; wanted an image, a frame's number, or last (the last frame)."
        )
    return read_image(text)


def new_folder(out: Path, overwrite: bool) -> NewFolder:
    """The folder of ``--out``, which appears when all is done.

    Raises:
        OSError: there is something that is not to be replaced, or it cannot be made.
    """
    from torchrl_vip.files import NewFolder

    ours = (out / NUMBERS).is_file()
    if out.is_dir() and any(out.iterdir()) and not (overwrite and ours):
        hint = "add --overwrite, or give another folder" if ours else "give another folder"
        raise FileExistsError(f"--out {out} exists and is not empty: {hint}.")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        return NewFolder(out, replace=overwrite and ours)
    except OSError as error:
        reason = error.strerror or error
        raise OSError(f"--out {out}: {reason}; wanted a folder that can be made.") from error


def run(args: argparse.Namespace) -> int:
    """Measure, draw, write; returns the exit code."""
    from torchrl_vip.curves import job

    check_options(args)
    job.need_extra()
    clips = job.name_videos(args.videos)
    goal = read_goal(args.goal)
    encoders = {name: job.encoder_on(name, args.blur, args.device) for name in args.encoder}
    with new_folder(args.out, args.overwrite) as folder:
        videos = [
            job.look(path, name, goal, encoders, smoothing=args.smoothing)
            for name, path in clips.items()
        ]
        about = {
            "command": shlex.join(sys.argv),
            "torchrl_vip": version("torchrl-vip"),
            "goal": args.goal,
        }
        goal_name = "" if goal is None else Path(args.goal).name
        job.write(
            folder.part,
            videos,
            encoders,
            about,
            only=args.only,
            goal_name=goal_name,
            is_shared=not (goal is None or isinstance(goal, int)),
            moments=args.saliency_frames,
        )
    job.tell(videos)
    print(f"wrote {args.out}: {', '.join(sorted(p.name for p in args.out.iterdir()))}")
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    args = make_parser().parse_args(arguments)
    return guarded(lambda _: run(args), [])


if __name__ == "__main__":
    sys.exit(main())
