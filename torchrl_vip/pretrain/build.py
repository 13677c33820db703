"""From the configuration to what a run is made of; beside config.py nothing else reads its fields."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
import yaml
from tensordict import TensorDict
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import Adam, Optimizer
from torch.optim.lr_scheduler import LambdaLR
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torchrl.data import TensorDictReplayBuffer

from torchrl_vip.backbones import LATE, load_imagenet
from torchrl_vip.data.sampler import DecoySampler, VIPSampler, augment, generator_at
from torchrl_vip.data.video import FrameTable
from torchrl_vip.encoders import ENCODERS, VIPEncoder, native_bfloat16, with_fine_cells
from torchrl_vip.functional import resize_size
from torchrl_vip.losses import EmbeddingLoss, TCNLoss, TripletLoss, VIPLoss
from torchrl_vip.pretrain.clips import (
    Split,
    Tables,
    decoyed_clips,
    draw_weights,
    find_and_split,
    load_clips,
    scene_numbers,
    scene_only,
    task_numbers,
)
from torchrl_vip.pretrain.config import pick_device
from torchrl_vip.pretrain.features import embed_once
from torchrl_vip.pretrain.progress import add_progress
from torchrl_vip.pretrain.run import Run
from torchrl_vip.pretrain.validation import reward_calibration, validate
from torchrl_vip.weights import load_vip

Config = dict[str, Any]
"""The fields of config.yaml, as config.check returns them."""
Shard = tuple[int, int]
"""(rank, number of processes)."""


@dataclass
class Parts:
    """What a training step needs, and what a run measures and stores.

    Attributes:
        tables: the clips.
        encoder: is trained.
        set_training: puts the encoder in training mode, its frozen parts excepted.
        buffer: samples sub-clips, flat ``[4 B]``.
        augment: (sub-clips, step) to a batch ``[B]``.
        objective: (batch, step) to losses.
        average: the encoder's moving average, which is validated and saved.
        measure: encoder to metrics on validation clips.
        describe: encoder to its config.json.
    """

    device: torch.device
    tables: Tables
    encoder: VIPEncoder
    set_training: Callable[[], None]
    buffer: TensorDictReplayBuffer
    augment: Augment
    objective: Objective
    optimizer: Optimizer
    grad_clip: float
    schedule: LambdaLR
    average: AveragedModel
    measure: Callable[[VIPEncoder], dict[str, float]]
    describe: Callable[[VIPEncoder], dict[str, Any]]

    @property
    def stored(self) -> dict[str, Any]:
        """What a checkpoint holds, by the names in its file."""
        return {
            "encoder": self.encoder,
            "averaged": self.average,
            "optimizer": self.optimizer,
            "schedule": self.schedule,
        }


def build_split(config: Config) -> Split:
    data = config["data"]
    share = 0.0 if data["validation"] == "each" else data["validation"]
    return find_and_split(
        data["path"], share, data["hold_out"], also=data["also"], idle=data["idle"]
    )


def build_device(config: Config) -> torch.device:
    return pick_device(config["device"])


def build_run(config: Config, split: Split, shard: Shard) -> Run:
    return Run(
        Path(config["out_dir"]),
        settings=yaml.safe_dump(config, sort_keys=False),
        split=split,
        total=config["steps"],
        every={
            "log": 10,
            "validate": config["validate_every"],
            "checkpoint": config["checkpoint_every"],
        },
        metric=config["best"],
        keep=config["keep_checkpoints"],
        loggers=config["loggers"],
        resume=config["resume"],
        progress=config["progress"],
        first_process=shard[0] == 0,
        judged=config["data"]["validation"] == "each",
    )


def build_parts(config: Config, split: Split, device: torch.device, shard: Shard) -> Parts:
    """Everything that is trained, from the seed; clips are decoded and embedded where they are not yet."""
    torch.manual_seed(config["seed"])
    encoder = make_encoder(config).to(device)
    config = config | at_depth(config["depth"], config["views"], encoder)
    encoder = encoder.to(memory_format=torch.channels_last)
    set_training = freeze(encoder, config["freeze_below"], config["freeze_batch_norm"])
    tables = make_tables(config, split, encoder.image_size, shard)
    dtype = precision(config["precision"], device)
    frames = stored_frames(config, tables.training, encoder, dtype, shard)
    if config["task_progress"]:
        one_view = config | {"views": config["views"] or 1}
        add_progress(
            encoder,
            stored_frames(one_view, tables.training, encoder, dtype, shard),
            config["task_progress"],
            idle=config["decoy"] > 0,
            wrong_goals=config["wrong_goals"] > 0,
        )
    objective = make_objective(encoder, config, dtype)
    trained = [p for p in encoder.parameters() if p.requires_grad]
    optimizer = Adam(trained, lr=config["lr"], weight_decay=config["weight_decay"])
    return Parts(
        device=device,
        tables=tables,
        encoder=encoder,
        set_training=set_training,
        buffer=make_buffer(frames, config, shard),
        augment=make_augment(config, device, shard),
        objective=objective,
        optimizer=optimizer,
        grad_clip=config["grad_clip"],
        schedule=make_schedule(optimizer, config["schedule"], config["steps"]),
        average=AveragedModel(
            encoder, multi_avg_fn=get_ema_multi_avg_fn(config["ema"]), use_buffers=True
        ),
        measure=partial(
            validate,
            objective=objective.loss,
            table=tables.validation,
            clips=config["validation_clips"],
            self_transition=config["self_transition"],
            stride=config["stride"],
            dtype=dtype,
        ),
        describe=partial(
            describe,
            made=provenance(config, encoder, tables.training),
            table=scene_only(tables.training),
        ),
    )


# --- encoder --------------------------------------------------------------------------------------


def make_encoder(config: Config) -> VIPEncoder:
    if config["encoder"] in ENCODERS:
        encoder = VIPEncoder(config["encoder"], dim=config["dim"], image_size=config["image_size"])
        if config["imagenet"]:
            load_imagenet(encoder.backbone)
    else:
        encoder = load_vip(None if config["encoder"] == "bundled" else config["encoder"])
    return with_fine_cells(encoder) if config["depth"] == "cells" else encoder


def at_depth(depth: str | None, views: int, encoder: VIPEncoder) -> Config:
    """The fields that ``depth`` sets.

    Raises:
        ValueError: "late" of a backbone whose late blocks are not known.
    """
    if depth is None:
        return {}
    if depth in ("head", "cells"):
        return {"freeze_below": "head", "views": views or 1}
    if depth == "late" and encoder.name not in LATE:
        raise ValueError(
            f"depth=late of backbone {encoder.name}: known are {', '.join(LATE)}. Give "
            "freeze_below=CHILD and depth=null."
        )
    return {"freeze_below": LATE[str(encoder.name)] if depth == "late" else None}


def freeze(encoder: VIPEncoder, below: str | None, batch_norm: bool) -> Callable[[], None]:
    """Take the backbone's children before ``below``, and batch statistics, out of training.

    ``below="head"`` is the whole backbone.

    Returns:
        What to call before every step: it puts the encoder in training mode, but for those.

    Raises:
        ValueError: the backbone has no such child.
    """
    frozen = []
    if below is not None:
        children = dict(encoder.backbone.named_children()) | {"head": encoder.head}
        if below not in children:
            raise ValueError(
                f"freeze_below={below}: the backbone's children are {', '.join(children)}."
            )
        frozen = list(children.values())[: list(children).index(below)]
        if below == "head":
            frozen.append(encoder.backbone)
        for module in frozen:
            module.requires_grad_(False)
    if batch_norm:
        frozen += [module for module in encoder.modules() if isinstance(module, _BatchNorm)]

    def set_training() -> None:
        encoder.train()
        for module in frozen:
            module.eval()

    return set_training


def precision(name: str, device: torch.device) -> torch.dtype:
    """Of the network's arithmetic in training."""
    bfloat16 = name == "bfloat16" or (name == "auto" and native_bfloat16(device))
    return torch.bfloat16 if bfloat16 else torch.float32


def provenance(config: Config, encoder: VIPEncoder, table: FrameTable) -> dict[str, Any]:
    """What config.json says of how weights were made. No folder of this machine travels with them: of
    "encoder" only the network's name."""
    training = {k: v for k, v in config.items() if k not in ("out_dir", "data", "progress")}
    began = {k: encoder.config[k] for k in ("licence", "training_data") if k in encoder.config}
    network = {"encoder": encoder.name, "image_size": encoder.image_size, "dim": encoder.dim}
    return began | {
        "training": training | network,
        "training_clips": len(table.clips),
        "training_frames": int(table.length.sum()),
    }


def describe(encoder: VIPEncoder, *, made: dict[str, Any], table: FrameTable) -> dict[str, Any]:
    """What config.json says of an encoder: how it was made, and the scale of its reward."""
    return made | reward_calibration(encoder, table)


# --- data -----------------------------------------------------------------------------------------


def make_tables(config: Config, split: Split, image_size: int, shard: Shard) -> Tables:
    data, first_process = config["data"], shard[0] == 0
    return load_clips(
        split,
        resize_size(image_size),
        cache=Path(data["cache"] or Path(config["out_dir"]) / "frames"),
        lazily=data["decode"] == "lazily",
        workers=data["workers"],
        progress=config["progress"] and first_process,
        speak=first_process,
    )


def stored_frames(
    config: Config, table: FrameTable, encoder: VIPEncoder, dtype: torch.dtype, shard: Shard
) -> FrameTable:
    """The frames themselves, or with ``views`` their features under the frozen backbone."""
    if not config["views"]:
        return table
    return embed_once(
        table,
        encoder,
        Path(config["data"]["cache"] or config["out_dir"]),
        views=config["views"],
        stride=config["stride"],
        crop_scale=config["crop_scale"],
        flip=config["flip"],
        colour=config["colour"],
        dtype=dtype,
        progress=config["progress"] and shard[0] == 0,
    )


def make_buffer(table: FrameTable, config: Config, shard: Shard = (0, 1)) -> TensorDictReplayBuffer:
    """A replay buffer over frames or stored features; "batch_size" clips over all processes."""
    return TensorDictReplayBuffer(
        storage=table.storage,
        sampler=make_sampler(table, config, shard),
        batch_size=config["batch_size"] // shard[1],
        collate_fn=lambda batch: batch,  # the storage gives a whole TensorDict
        prefetch=1,  # one thread: several would reorder the draws
    )


def make_sampler(table: FrameTable, config: Config, shard: Shard) -> VIPSampler:
    """Of sub-clips; of decoys too, where there are idle clips."""
    options: dict[str, Any] = {
        "seed": config["seed"],
        "self_transition": config["self_transition"],
        "geometric": config["geometric"],
        "cross_video": config["cross_video"],
        # stored features are of every stride-th frame
        "stride": 1 if config["views"] else config["stride"],
        "copies": config["views"] or 1,
        "goal_augmentation": config["goal_augmentation"],
        "group": task_numbers(table.clips),
        "scene": scene_numbers(table.clips) if config["wrong_goals"] else None,
        "weight": draw_weights(table.clips, config["data"]["also_share"]),
        "shard": shard,
    }
    decoys = decoyed_clips(table.clips)
    if not (decoys and config["decoy"]):
        return VIPSampler(table.start, table.length, **options)
    of_goal = {i for i in decoys if table.clips[i].idle_of == "goal"}
    return DecoySampler(
        table.start,
        table.length,
        idle=decoys,
        of_goal=of_goal,
        share=config["decoy_share"],
        **options,
    )


@dataclass
class Augment:
    """Sub-clips ``[4 B]`` of the buffer to a batch ``[B]``, on the device.

    The batch has "reward" ``[B]``, and "pixels" float ``[B, 4, 3, S, S]`` or "features" float
    ``[B, 4, F]``, whose frames have been augmented before. For the fields see
    :func:`torchrl_vip.data.sampler.augment`.
    """

    device: torch.device
    seed: int
    scale: tuple[float, float]
    flip: float
    colour: float
    goal_augmentation: float
    shard: Shard = (0, 1)

    def __call__(self, batch: TensorDict, step: int) -> TensorDict:
        batch = batch.reshape(-1, 4)
        out = batch.select("reward", "decoy", "group", strict=False)[:, 0].to(self.device)
        if "features" in batch.keys():
            return out.set("features", batch["features"].to(self.device).float())
        goals = self.goal_augmentation
        if goals:  # not where o_t is the goal
            goals = goals * (batch["reward"][:, 0] < 0)
        pixels = augment(
            batch["pixels"].to(self.device),
            generator_at(self.seed, step, stream=1),
            scale=self.scale,
            flip=self.flip,
            colour=self.colour,
            goal_augmentation=goals,
            shard=self.shard,
        )
        return out.set("pixels", pixels)


def make_augment(config: Config, device: torch.device, shard: Shard = (0, 1)) -> Augment:
    return Augment(
        device,
        seed=config["seed"],
        scale=tuple(config["crop_scale"]),
        flip=config["flip"],
        colour=config["colour"],
        goal_augmentation=config["goal_augmentation"],
        shard=shard,
    )


# --- objective and schedule -----------------------------------------------------------------------


@dataclass
class Objective:
    """Losses and metrics of a batch, and their total as "loss"; a function of (seed, step).

    Attributes:
        loss: the loss module.
        seed: of the in-batch permutations.
        dtype: bfloat16 is by autocast.
    """

    loss: EmbeddingLoss
    seed: int
    dtype: torch.dtype

    def __call__(self, batch: TensorDict, step: int) -> TensorDict:
        if isinstance(self.loss, VIPLoss):  # the permutations of this step
            self.loss.generator = generator_at(self.seed, step, stream=2)
        bfloat16 = self.dtype == torch.bfloat16
        with torch.autocast(batch["reward"].device.type, torch.bfloat16, enabled=bfloat16):
            losses = self.loss(batch)
        return losses.set("loss", sum(v for k, v in losses.items() if k.startswith("loss_")))


def make_objective(encoder: VIPEncoder, config: Config, dtype: torch.dtype) -> Objective:
    """The loss of ``config["loss"]``, compiled where asked for: over the encoder, or with
    ``config["views"]`` over its head."""
    network: nn.Module = encoder.head if config["views"] else encoder
    if config["compile"]:
        network = cast(nn.Module, torch.compile(network))
    in_key = "features" if config["views"] else "pixels"
    options = {name: config[name] for name in ("l1", "l2", "decoy", "decoy_margin", "wrong_goals")}
    options["in_key"] = in_key
    if config["loss"] == "vip":
        loss: EmbeddingLoss = VIPLoss(
            network,
            gamma=config["gamma"],
            num_negatives=config["num_negatives"],
            negatives=config["negatives"],
            clamp=config["clamp"],
            time_contrast=config["time_contrast"],
            **options,
        )
    else:
        loss = {"tcn": TCNLoss, "triplet": TripletLoss}[config["loss"]](network, **options)
    return Objective(loss, config["seed"], dtype)


def make_schedule(optimizer: Optimizer, name: str, steps: int) -> LambdaLR:
    """The rate over training: "cosine" to 0 at the last step, or "constant"."""

    def cosine(step: int) -> float:
        return 0.5 * (1 + math.cos(math.pi * step / max(steps, 1)))

    return LambdaLR(optimizer, cosine if name == "cosine" else lambda step: 1.0)
