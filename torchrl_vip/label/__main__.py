"""Rewards for the episodes of a dataset: python -m torchrl_vip.label DATASET --goal mean-last

DATASET is a LeRobot folder (v2 or v3), a folder of videos or of folders of frames, a manifest, an HDF5
file, a Minari dataset, or a saved TorchRL replay buffer or TensorDict. Results lie in DATASET_vip:

  rewards.parquet   a row a frame: distance, progress, progress_clipped, reward
  episodes.csv      a row an episode: return, order (voc), bumps, final progress, suspected failure
  report.png        all curves, the best and worst episodes with frames; report.json has the numbers
  csv/              videos and frames: a table a clip
  embeddings/       what the encoder made; another --goal, --form or --scale takes seconds

A LeRobot dataset also gets vip_progress.parquet, which LeRobot's RA-BC reads. --out writes a whole new
dataset of the same kind with rewards and embeddings; the original is not touched.

The same command goes on where a run was stopped. Exit code: 0, or 3 where episodes could not be read.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.metadata
import os
import shlex
import sys
from collections.abc import Collection, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torchrl_vip.cli import INTERRUPTED, guarded, program

if TYPE_CHECKING:
    from torchrl_vip.label.job import Labeller, Settings
    from torchrl_vip.label.rows import Summary
    from torchrl_vip.label.stream import Meter

UNREADABLE = 3  # exit code of a run that left episodes out


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=program("label"),
        description=__doc__.replace("python -m torchrl_vip.label", program("label")),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("dataset", type=Path, help="folder of the dataset, or its manifest.csv")
    goals = "last: an episode's own last frame; mean-last: the mean of its task's successful "
    goals += "episodes' last frames; or an image; or a folder of images named as the tasks"
    add("--goal", default="last", help=goals + " (default: last)")
    add("--camera", help="which, of a dataset with several; the end of its name is enough")
    add("--encoder", help="a checkpoint's name or folder (default: the bundled one)")

    reward = parser.add_argument_group("the reward")
    add = reward.add_argument
    forms = ("difference", "distance", "potential", "sparse")
    add("--form", choices=forms, default="difference", help="(default: difference)")
    scales = (
        "a number, or auto: an episode returns about 1 against its own last frame; or auto-other, "
    )
    add("--scale", type=_scale, default="auto", help=scales + "against another's (default: auto)")
    add("--gamma", type=float, default=0.98, help="of --form potential")
    add("--threshold", type=float, help="of --form sparse (default: the checkpoint's)")
    failure = "distance of a last frame beyond which an episode is a suspected failure"
    add("--success-threshold", type=float, help=failure + " (default: the checkpoint's)")
    add("--blur", type=float, default=0.0, help="pixels; 1.5 suits rendered frames (default: 0)")

    output = parser.add_argument_group("what is written")
    add = output.add_argument
    add("--results", type=Path, help="folder of tables, pictures and embeddings (DATASET_vip)")
    add("--out", type=Path, help="a new dataset, the same with rewards and embeddings")
    add("--in-place", action="store_true", help="put that new dataset in the old one's place")
    replaced = "replace rewards and embeddings that the dataset has already"
    add("--overwrite", action="store_true", help=f"--out, --in-place: {replaced}")
    kinds = ("float16", "float32")
    add("--embeddings", choices=kinds, help="a column vip_vec in rewards.parquet too")
    labels = (
        "columns episode, level (0 failure, 1 partial, 2 success): does the distance order them?"
    )
    add("--check", type=Path, metavar="LABELS.csv", help=labels)

    machine = parser.add_argument_group("the machine, or many")
    add = machine.add_argument
    add("--device", default="auto", help="auto, cpu, cuda, cuda:1, ...")
    add("--dtype", choices=("auto", "float32", "bfloat16", "float16"), default="auto")
    add("--batch-size", type=int, default=64, help="frames of one forward (default: 64)")
    add("--threads", type=int, default=2, help="episodes decoded at a time (default: 2)")
    add("--shard", metavar="I/N", help="embed a share of the episodes only, from 0/N to N-1/N")
    add("--merge", action="store_true", help="make the tables of what the shards embedded")
    address = "embed by Ray: on this machine, or of the cluster at this address (auto)"
    add("--ray", nargs="?", const="", metavar="ADDRESS", help=address)
    add("--workers", type=int, default=2, help="of --ray (default: 2)")
    add("--gpus-per-worker", type=float, default=0.0, help="of --ray (default: 0)")
    return parser


def _scale(text: str) -> float | str:
    if text in ("auto", "auto-other"):
        return text
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text}: wanted a number, auto or auto-other") from None


def read_settings(args: argparse.Namespace) -> Settings:
    """The settings of a command line.

    Raises:
        ValueError: numbers or options that cannot be.
    """
    from torchrl_vip.label.job import Settings

    for name in ("batch_size", "threads", "workers"):
        if (value := getattr(args, name)) < 1:
            raise ValueError(f"--{name.replace('_', '-')} {value}: wanted 1 or more.")
    apart = [
        f"--{name}"
        for name in ("shard", "merge", "ray")
        if getattr(args, name) not in (None, False)
    ]
    if len(apart) > 1:
        raise ValueError(f"{' and '.join(apart)}: give one of them.")
    if args.out and args.in_place:
        raise ValueError("--out and --in-place: give one of them.")
    source: Path = args.dataset
    names = {field.name for field in dataclasses.fields(Settings)} - {"source", "results"}
    options = {name: getattr(args, name) for name in names}
    return Settings(source, args.results or default_results(source), **options)


def default_results(source: Path) -> Path:
    """``DATASET_vip`` beside a dataset; of a manifest, beside the folder that it lies in."""
    source = source.absolute()
    if source.suffix == ".csv":
        return source.parent.with_name(f"{source.parent.name}_vip")
    return source.with_name(f"{source.name if source.is_dir() else source.stem}_vip")


def run(args: argparse.Namespace) -> int:
    """Label; returns the exit code."""
    from torchrl_vip.data.lerobot.schema import need_pyarrow
    from torchrl_vip.label.check import read_levels
    from torchrl_vip.label.cluster import parse_shard
    from torchrl_vip.label.job import Labeller
    from torchrl_vip.label.outputs import check_outputs

    settings = read_settings(args)
    shard = parse_shard(args.shard) if args.shard else None
    need_pyarrow()
    labeller = Labeller(settings)
    check_outputs(labeller, args.out, args.in_place, args.overwrite)
    levels = read_levels(args.check, labeller.clips) if args.check else None
    try:
        settings.results.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = f"--results {settings.results}: {error.strerror}; give another folder."
        raise OSError(reason) from error
    meter = embed(args, labeller, shard)
    if shard:
        done = sum(map(labeller.is_done, range(len(labeller.clips))))
        print(f"{done} of {len(labeller.clips)} episodes are done; when all are, run with --merge")
        return 0
    return finish(args, labeller, meter, levels)


def embed(
    args: argparse.Namespace, labeller: Labeller, shard: tuple[int, int] | None
) -> Meter | None:
    """Embed what is missing, here or by Ray; with --merge, see that nothing is."""
    from torchrl_vip.label import cluster

    everything = list(range(len(labeller.clips)))
    if args.merge:
        if left := [n for n in everything if not labeller.is_done(n)]:
            raise ValueError(
                f"{len(left)} of {len(everything)} episodes are not embedded yet, such as "
                f"{labeller.clips[left[0]].name}: run their shards, or the same command without --merge."
            )
        return None
    if args.ray is not None:
        return cluster.embed_on_ray(
            labeller, args.ray or None, args.workers, gpus=args.gpus_per_worker
        )
    return labeller.embed(cluster.share(everything, *shard) if shard else everything)


def finish(
    args: argparse.Namespace,
    labeller: Labeller,
    meter: Meter | None,
    levels: dict[int, int] | None,
) -> int:
    """Tables, pictures, datasets; returns the exit code."""
    from torchrl_vip.label.outputs import write_dataset
    from torchrl_vip.label.report import write_report
    from torchrl_vip.label.tables import columns_of, write_tables

    settings, goals = labeller.settings, labeller.goals()
    made_by = describe(labeller)
    summaries = write_tables(
        labeller.labelled(goals),
        settings.results,
        {key: str(value) for key, value in made_by.items()},
        dim=labeller.vip.dim,
        embeddings=args.embeddings,
        per_clip=not any("episode" in clip.labels for clip in labeller.clips),
    )
    said = write_report(
        settings.results,
        labeller.clips,
        summaries,
        lambda n: columns_of(labeller.label(n, goals))["progress"],
        made_by | describe_run(meter),
    )
    tell(said, settings.results, meter)
    if levels is not None:
        tell_agreement(levels, labeller, summaries)
    names = ("out", "in_place", "overwrite", "embeddings")
    written = write_dataset(labeller, goals, **{name: getattr(args, name) for name in names})
    for path in written.paths:
        print(f"wrote {path}")
    list_reasons(written.errors.keys() - said["unreadable"], written.errors, "could not be written")
    return UNREADABLE if said["unreadable"] or written.errors else 0


def describe(labeller: Labeller) -> dict[str, Any]:
    """What the numbers were made with."""
    from torchrl_vip.weights import DEFAULT

    settings = labeller.settings
    return {
        "dataset": str(settings.source),
        "goal": settings.goal,
        "camera": settings.camera,
        "encoder": settings.encoder or DEFAULT,
        "form": settings.form,
        "scale": settings.scale,
        "success_threshold": labeller.threshold,
        "torchrl_vip": importlib.metadata.version("torchrl-vip"),
    }


def describe_run(meter: Meter | None) -> dict[str, Any]:
    """The command, its date and its speed."""
    about: dict[str, Any] = {
        "command": shlex.join(sys.argv),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }
    if meter is not None and meter.frames:
        about["embedded_frames"] = meter.frames
        about["seconds_encoding"] = round(meter.encoding, 2)
        about["seconds_waiting_for_frames"] = round(meter.waiting, 2)
    return about


def tell(said: dict[str, Any], results: Path, meter: Meter | None) -> None:
    """Print what was found."""
    if meter is not None and meter.frames:
        seconds = meter.encoding + meter.waiting
        print(
            f"embedded {meter.frames:,} frames, {meter.frames / seconds:.0f} a second; the encoder waited "
            f"for frames {meter.waiting_share:.0%} of the time"
        )
    print(f"{said['episodes']} episodes, {said['frames_read']:,} of {said['frames']:,} frames read")
    for name, title in (
        ("return", "return"),
        ("voc_own", "order, own last frame"),
        ("voc_shared", "order, shared goal"),
        ("bumps", "steps that lead away"),
    ):
        if spread := said[name]:
            print(
                f"{title:22} median {spread['median']:6.2f}   5 to 95 %: {spread['p5']:.2f} to "
                f"{spread['p95']:.2f}"
            )
    failed = said["suspected_failures"]
    if failed:
        print(f"{len(failed)} suspected failure(s), such as {failed[0]}")
    if len(failed) > 0.5 * said["episodes"]:
        print(
            "  more than half: the checkpoint's success_threshold is of other scenes. Rank by end_progress "
            "in episodes.csv, or give --success-threshold."
        )
    list_reasons(said["unreadable"], said["unreadable"], "could not be read")
    list_reasons(said["notes"], said["notes"], "were noted")
    print(f"wrote {results}: rewards.parquet, episodes.csv, report.json, report.png")


def list_reasons(episodes: Collection[str], reasons: dict[str, str], title: str) -> None:
    """Print why, of the first ten episodes."""
    if episodes:
        print(f"{len(episodes)} episode(s) {title}:")
        print("\n".join(f"  {reasons[name]}" for name in sorted(episodes)[:10]))
    if len(episodes) > 10:
        print(f"  and {len(episodes) - 10} more, in report.json")


def tell_agreement(
    levels: dict[int, int], labeller: Labeller, summaries: Sequence[Summary]
) -> None:
    """Print how the distance agrees with labels, and draw where it does not."""
    from torchrl_vip.label.check import agreement, draw_doubtful

    found = agreement(summaries, levels)
    print(
        f"labels: Kendall tau_a {found['kendall']:.2f} over {found['tasks']} task(s), AUC of success over "
        f"failure {found['auc']:.2f}, {found['episodes']} episodes ({found['levels']})"
    )
    if found["doubtful"]:
        sheet = labeller.settings.results / "doubtful.png"
        draw_doubtful(sheet, labeller.clips, summaries, levels, found)
        print(
            f"wrote {sheet}: {len(found['doubtful'])} episodes where label and distance disagree most"
        )


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit code."""
    args = make_parser().parse_args(arguments)

    def work(_: list[str]) -> int:
        try:
            return run(args)
        except KeyboardInterrupt:
            print("\ninterrupted: the same command goes on.", file=sys.stderr)
            sys.stderr.flush()
            os._exit(INTERRUPTED)  # decoding threads are not waited for

    return guarded(work, [])


if __name__ == "__main__":
    sys.exit(main())
