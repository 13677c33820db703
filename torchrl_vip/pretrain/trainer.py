"""The training loop.

Every random draw is a function of (seed, step), so that a run that was killed and resumed ends with
the very weights of one that was not.
"""

from __future__ import annotations

import hashlib
import math
from pathlib import Path
from typing import Any

import torch
import yaml
from tensordict import TensorDict
from torch import nn
from torchrl.data import TensorDictReplayBuffer, TensorStorage
from tqdm import tqdm

from torchrl_vip.data.sampler import VIPSampler, augment, generator_at
from torchrl_vip.data.video import Clip, FrameTable, decode_once, find_clips
from torchrl_vip.encoders import ENCODERS, VIPEncoder, native_bfloat16
from torchrl_vip.functional import resize_size
from torchrl_vip.losses import VIPLoss
from torchrl_vip.pretrain.check import check, pick_device
from torchrl_vip.pretrain.state import MetricsLog, load_state, save_state
from torchrl_vip.pretrain.validation import plot_curves, reward_calibration, validate
from torchrl_vip.weights import load_vip, save_vip


def pretrain(config: dict[str, Any]) -> Path:
    """Train an encoder; see config.yaml for the fields.

    Returns:
        The folder of the final checkpoint, ``out_dir/final``.

    Raises:
        ValueError: a field that cannot be; no clip to train on.
        FileNotFoundError: ``data.path`` is no folder.
        CheckpointError: the last checkpoint in ``out_dir`` is damaged or of another network.
    """
    check(config)
    split = choose_clips(config["data"])  # a wrong path is an error before anything is written
    out, total = Path(config["out_dir"]), config["steps"]
    (out / "checkpoints").mkdir(parents=True, exist_ok=True)
    (out / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))

    torch.manual_seed(config["seed"])
    device = pick_device(config["device"])
    encoder = make_encoder(config).to(device, memory_format=torch.channels_last)
    train_table, validation_table = load_data(split, encoder.image_size, config)
    buffer = make_buffer(train_table, config)
    objective = make_objective(encoder, config)
    optimizer = torch.optim.Adam(
        encoder.parameters(), lr=config["lr"], weight_decay=config["weight_decay"]
    )
    schedule = make_schedule(optimizer, config)
    parts = {"encoder": encoder, "optimizer": optimizer, "schedule": schedule}
    checkpoint = out / "checkpoints" / "last.pt"
    first = load_state(checkpoint, device, **parts) if config["resume"] else 0
    if first == 0:
        checkpoint.unlink(missing_ok=True)  # resume=false: never to be resumed by accident
    else:
        print(f"resumed from step {first} of {total} ({checkpoint})")
    buffer.sampler.step = first
    log = MetricsLog(out / "metrics.csv", first)
    if first == 0:
        log.write(0, validate(encoder, validation_table, config))

    steps = tqdm(
        range(first, total),
        initial=first,
        total=total,
        desc="training",
        disable=not config["progress"],
    )
    for step in steps:
        batch = draw_batch(buffer, step, device, config)
        losses = forward(objective, batch, step, config)
        loss = sum(value for key, value in losses.items() if key.startswith("loss_"))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(encoder.parameters(), config["grad_clip"])
        optimizer.step()
        schedule.step()

        done, value = step + 1, loss.item()
        if not math.isfinite(value):
            raise ValueError(f"the loss is {value} at step {done}: lower lr ({config['lr']}).")
        if done % 10 == 0 or done == total:
            row = {"loss": value, "gradient_norm": norm.item(), "lr": schedule.get_last_lr()[0]}
            log.write(done, row | {key: metric.item() for key, metric in losses.items()})
            steps.set_postfix(loss=f"{value:.3f}")
        if done % config["validate_every"] == 0 or done == total:
            log.write(done, validate(encoder, validation_table, config))
            plot_curves(out / "metrics.csv", out / "curves.png")
        if done % config["checkpoint_every"] == 0 or done == total:
            save_state(checkpoint, step=done, **parts)

    encoder.eval()
    encoder.config.update(
        # No folder of this machine travels with the weights: of "encoder" only the network's name.
        training={k: v for k, v in config.items() if k not in ("out_dir", "data", "progress")}
        | {"encoder": encoder.name},
        training_clips=len(train_table.clips),
        training_frames=int(train_table.length.sum()),
        **reward_calibration(encoder, train_table),
    )
    return save_vip(encoder, out / "final")


def draw_batch(
    buffer: TensorDictReplayBuffer, step: int, device: torch.device, config: dict[str, Any]
) -> TensorDict:
    """Augmented sub-clips ``[B]``: "pixels" float ``[B, 4, 3, S, S]`` and "reward" ``[B]``."""
    batch = buffer.sample().reshape(-1, 4)
    crops = augment(
        batch["pixels"].to(device),
        generator_at(config["seed"], step, stream=1),
        scale=tuple(config["crop_scale"]),
        flip=config["flip"],
        colour=config["colour"],
    )
    return batch.select("reward")[:, 0].to(device).set("pixels", crops)


def forward(objective: VIPLoss, batch: TensorDict, step: int, config: dict[str, Any]) -> TensorDict:
    """Losses and metrics of a batch, with the permutations of this step."""
    objective.generator.manual_seed(generator_at(config["seed"], step, stream=2).initial_seed())
    objective.encoder.train()  # validation may have left it in evaluation mode
    device = batch["pixels"].device
    bfloat16 = config["precision"] == "bfloat16" or (
        config["precision"] == "auto" and native_bfloat16(device)
    )
    with torch.autocast(device.type, torch.bfloat16, enabled=bfloat16):
        return objective(batch)


def make_buffer(table: FrameTable, config: dict[str, Any]) -> TensorDictReplayBuffer:
    return TensorDictReplayBuffer(
        storage=TensorStorage(table.data),
        sampler=VIPSampler(
            table.start,
            table.length,
            seed=config["seed"],
            self_transition=config["self_transition"],
        ),
        batch_size=config["batch_size"],
        prefetch=1,  # one thread: several would reorder the draws
    )


def make_objective(encoder: VIPEncoder, config: dict[str, Any]) -> VIPLoss:
    return VIPLoss(
        encoder,
        gamma=config["gamma"],
        num_negatives=config["num_negatives"],
        l1=config["l1"],
        l2=config["l2"],
        generator=torch.Generator(),
    )


def make_schedule(
    optimizer: torch.optim.Optimizer, config: dict[str, Any]
) -> torch.optim.lr_scheduler.LambdaLR:
    def cosine(step: int) -> float:
        return 0.5 * (1 + math.cos(math.pi * step / config["steps"]))

    decay = cosine if config["schedule"] == "cosine" else lambda step: 1.0
    return torch.optim.lr_scheduler.LambdaLR(optimizer, decay)


def make_encoder(config: dict[str, Any]) -> VIPEncoder:
    if config["encoder"] in ENCODERS:
        return VIPEncoder(config["encoder"], dim=config["dim"], image_size=config["image_size"])
    return load_vip(config["encoder"])


def choose_clips(data: dict[str, Any]) -> tuple[list[Clip], list[Clip]]:
    """Training and validation clips of ``data.path``; nothing is decoded yet."""
    paths = data["path"] if isinstance(data["path"], list) else [data["path"]]
    clips = [clip for path in paths for clip in find_clips(path)]
    train, validation = split_clips(clips, data["validation"], data["hold_out"])
    if not train:
        raise ValueError(
            f"all {len(clips)} clips are held out or for validation: nothing to train on."
        )
    return train, validation


def load_data(
    split: tuple[list[Clip], list[Clip]], image_size: int, config: dict[str, Any]
) -> tuple[FrameTable, FrameTable | None]:
    """Decoded training and validation clips; says how many, and which could not be read."""
    data, tables = config["data"], []
    for kind, clips in zip(("training", "validation"), split, strict=True):
        if not clips:
            tables.append(None)
            continue
        table = decode_once(
            clips,
            resize_size(image_size),
            data["cache"] or Path(config["out_dir"]) / "frames",
            workers=data["workers"],
            progress=config["progress"],
        )
        print(f"{kind}: {len(table.clips)} clips, {int(table.length.sum())} frames")
        if table.skipped:
            print(f"skipped {len(table.skipped)} of them that could not be read:")
            print("\n".join(f"  {reason}" for reason in table.skipped.values()))
        tables.append(table)
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
        labels = (clip.labels.get(key) for key in ("group", "lab", "task"))
        group = next((label for label in labels if label), clip.name)
        drawn = int(hashlib.sha256(str(group).encode()).hexdigest(), 16) % 10_000
        return drawn < validation * 10_000

    clips = [c for c in clips if not labelled(c, hold_out)]
    return [c for c in clips if not chosen(c)], [c for c in clips if chosen(c)]
