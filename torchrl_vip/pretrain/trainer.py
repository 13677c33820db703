"""The training loop, its checkpoints and its log.

Every random draw is a function of (seed, step), so that a run that was killed and resumed ends with
the very weights of one that was not.
"""

from __future__ import annotations

import csv
import hashlib
import math
import os
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import nn
from torchrl.data import TensorDictReplayBuffer, TensorStorage
from tqdm import tqdm

from torchrl_vip.data.sampler import VIPSampler, augment, generator_at
from torchrl_vip.data.video import Clip, FrameTable, decode_once, find_clips
from torchrl_vip.encoders import ENCODERS, VIPEncoder, native_bfloat16
from torchrl_vip.functional import resize_size
from torchrl_vip.losses import VIPLoss
from torchrl_vip.pretrain.validation import plot_curves, reward_calibration, validate
from torchrl_vip.weights import load_vip, save_vip


def pretrain(config: dict[str, Any]) -> Path:
    """Train an encoder; see config.yaml for the fields.

    Returns:
        The folder of the final checkpoint, ``out_dir/final``.

    Raises:
        ValueError: a field that cannot be; no clip to train on.
        FileNotFoundError: ``data.path`` is no folder.
    """
    check(config)
    out = Path(config["out_dir"])
    (out / "checkpoints").mkdir(parents=True, exist_ok=True)
    (out / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))

    torch.manual_seed(config["seed"])
    device = pick_device(config["device"])
    bfloat16 = config["precision"] == "bfloat16" or (
        config["precision"] == "auto" and native_bfloat16(device)
    )
    encoder = make_encoder(config).to(device, memory_format=torch.channels_last)
    train_table, validation_table = load_data(config)
    sampler = VIPSampler(
        train_table.start,
        train_table.length,
        seed=config["seed"],
        self_transition=config["self_transition"],
    )
    buffer = TensorDictReplayBuffer(
        storage=TensorStorage(train_table.data),
        sampler=sampler,
        batch_size=config["batch_size"],
        prefetch=1,  # one thread: several would reorder the draws
    )
    negatives = torch.Generator()
    objective = VIPLoss(
        encoder,
        gamma=config["gamma"],
        num_negatives=config["num_negatives"],
        l1=config["l1"],
        l2=config["l2"],
        generator=negatives,
    )
    optimizer = torch.optim.Adam(
        encoder.parameters(), lr=config["lr"], weight_decay=config["weight_decay"]
    )
    total = config["steps"]
    decay = (lambda s: 0.5 * (1 + math.cos(math.pi * s / total))) if config["schedule"] == "cosine" else (lambda s: 1.0)  # noqa: E501 # fmt: skip
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, decay)

    checkpoint = out / "checkpoints" / "last.pt"
    first = 0
    if config["resume"] and checkpoint.exists():
        state = torch.load(checkpoint, map_location=device, weights_only=True)
        for name, part in (("encoder", encoder), ("optimizer", optimizer), ("schedule", schedule)):
            part.load_state_dict(state[name])
        first = state["step"]
        print(f"resumed from step {first} of {total} ({checkpoint})")
    sampler.step = first
    log = MetricsLog(out / "metrics.csv", first)
    if first == 0:
        log.write(0, validate(encoder, validation_table, config))

    bar = tqdm(range(first, total), initial=first, total=total, desc="training", disable=not config["progress"])  # noqa: E501 # fmt: skip
    for step in bar:
        batch = buffer.sample().reshape(-1, 4)
        crops = augment(
            batch["pixels"].to(device),
            generator_at(config["seed"], step, stream=1),
            scale=tuple(config["crop_scale"]),
            flip=config["flip"],
            colour=config["colour"],
        )
        negatives.manual_seed(generator_at(config["seed"], step, stream=2).initial_seed())
        encoder.train()
        with torch.autocast(device.type, torch.bfloat16, enabled=bfloat16):
            losses = objective(batch.select("reward")[:, 0].to(device).set("pixels", crops))
        loss = sum(value for key, value in losses.items() if key.startswith("loss_"))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(encoder.parameters(), config["grad_clip"])
        optimizer.step()
        schedule.step()

        if not math.isfinite(loss.item()):
            raise ValueError(
                f"the loss is {loss.item()} at step {step + 1}: lower lr ({config['lr']})."
            )
        done = step + 1
        if done % 10 == 0 or done == total:
            row = {
                "loss": loss.item(),
                "gradient_norm": norm.item(),
                "lr": schedule.get_last_lr()[0],
            }
            row |= {key: value.item() for key, value in losses.items()}
            log.write(done, row)
            bar.set_postfix(loss=f"{row['loss']:.3f}")
        if done % config["validate_every"] == 0 or done == total:
            log.write(done, validate(encoder, validation_table, config))
            plot_curves(out / "metrics.csv", out / "curves.png")
        if done % config["checkpoint_every"] == 0 or done == total:
            save_state(
                checkpoint, step=done, encoder=encoder, optimizer=optimizer, schedule=schedule
            )

    encoder.eval()
    encoder.config.update(
        training={
            key: value
            for key, value in config.items()
            if key not in ("out_dir", "data", "progress")
        },
        training_clips=len(train_table.clips),
        training_frames=int(train_table.length.sum()),
        **reward_calibration(encoder, train_table),
    )
    return save_vip(encoder, out / "final")


def check(config: dict[str, Any]) -> None:
    """Refuse impossible values before any work; ValueError names the field, value and wish."""
    number = (int, float)
    wishes = {
        "steps": lambda v: isinstance(v, int) and v > 0,
        "batch_size": lambda v: isinstance(v, int) and v > 1,
        "image_size": lambda v: isinstance(v, int) and v >= 8,
        "dim": lambda v: isinstance(v, int) and v > 0,
        "lr": lambda v: isinstance(v, number) and v > 0,
        "gamma": lambda v: isinstance(v, number) and 0 < v < 1,
        "num_negatives": lambda v: isinstance(v, int) and v >= 0,
        "self_transition": lambda v: isinstance(v, number) and 0 <= v <= 1,
        "flip": lambda v: isinstance(v, number) and 0 <= v <= 1,
        "colour": lambda v: isinstance(v, number) and 0 <= v < 1,
        "crop_scale": lambda v: len(v) == 2 and 0 < v[0] <= v[1] <= 1,
        "schedule": lambda v: v in ("cosine", "constant"),
        "precision": lambda v: v in ("auto", "bfloat16", "float32"),
        "checkpoint_every": lambda v: isinstance(v, int) and v > 0,
        "validate_every": lambda v: isinstance(v, int) and v > 0,
        "grad_clip": lambda v: isinstance(v, number) and v > 0,
    }
    for key, good in wishes.items():
        if not good(config[key]):
            raise ValueError(f"{key}={config[key]} cannot be; see its comment in config.yaml.")
    if config["encoder"] not in ENCODERS and not Path(config["encoder"]).exists():
        raise ValueError(
            f"encoder={config['encoder']} is neither one of {', '.join(ENCODERS)} nor a checkpoint."
        )


def pick_device(name: str) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)


def make_encoder(config: dict[str, Any]) -> VIPEncoder:
    if config["encoder"] in ENCODERS:
        return VIPEncoder(config["encoder"], dim=config["dim"], image_size=config["image_size"])
    return load_vip(config["encoder"])


def load_data(config: dict[str, Any]) -> tuple[FrameTable, FrameTable | None]:
    """Decode the clips and split them into training and validation, by group and deterministically."""
    data = config["data"]
    paths = data["path"] if isinstance(data["path"], list) else [data["path"]]
    clips = [clip for path in paths for clip in find_clips(path)]
    train, validation = split_clips(clips, data["validation"], data["hold_out"])
    if not train:
        raise ValueError(
            f"all {len(clips)} clips are held out or for validation: nothing to train on."
        )
    cache = data["cache"] or Path(config["out_dir"]) / "frames"
    size = resize_size(config["image_size"])
    options = dict(workers=data["workers"], progress=config["progress"])
    tables = [
        decode_once(part, size, cache, **options) if part else None for part in (train, validation)
    ]
    for kind, table in zip(("training", "validation"), tables, strict=True):
        if table is not None:
            print(f"{kind}: {len(table.clips)} clips, {int(table.length.sum())} frames")
            if table.skipped:
                print(f"skipped {len(table.skipped)} of them that could not be read:")
                print("\n".join(f"  {reason}" for reason in table.skipped.values()))
    return tables[0], tables[1]


def split_clips(
    clips: list[Clip], validation: float | list, hold_out: list
) -> tuple[list[Clip], list[Clip]]:
    """Training and validation clips; neighbours that share a group are never parted."""

    def labelled(clip: Clip, values: list) -> bool:
        return any(str(v) in {str(w) for w in values} for v in clip.labels.values())

    def chosen(clip: Clip) -> bool:
        if isinstance(validation, list):
            return labelled(clip, validation)
        group = (
            clip.labels.get("group")
            or clip.labels.get("lab")
            or clip.labels.get("task")
            or clip.name
        )
        return (
            int(hashlib.sha256(str(group).encode()).hexdigest(), 16) % 10_000 < validation * 10_000
        )

    clips = [c for c in clips if not labelled(c, hold_out)]
    return [c for c in clips if not chosen(c)], [c for c in clips if chosen(c)]


def save_state(path: Path, step: int, **parts) -> None:
    """Write a training checkpoint; a reader finds the old one or the new one, never a part."""
    temporary = path.with_suffix(".tmp")
    with open(temporary, "wb") as file:
        torch.save(
            {"step": step, **{name: part.state_dict() for name, part in parts.items()}}, file
        )
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


class MetricsLog:
    """metrics.csv in long form: step, metric, value. Rows after ``first`` (a lost tail) are dropped."""

    def __init__(self, path: Path, first: int):
        rows = []
        if path.exists() and first:
            with open(path, newline="") as file:
                rows = [r for r in csv.reader(file) if len(r) == 3 and r[0].isdigit() and int(r[0]) <= first]  # noqa: E501 # fmt: skip
        self.file = open(path, "w", newline="", buffering=1)
        self.writer = csv.writer(self.file)
        self.writer.writerow(["step", "metric", "value"])
        self.writer.writerows(rows)

    def write(self, step: int, metrics: dict[str, float]) -> None:
        self.writer.writerows([step, key, f"{value:.6g}"] for key, value in metrics.items())
