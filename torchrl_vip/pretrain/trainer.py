"""The training loop.

Every random draw is a function of (seed, step), so that a run that was killed and resumed ends with
the very weights of one that was not.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import time
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torchrl.data import TensorDictReplayBuffer
from tqdm import tqdm

from torchrl_vip.backbones import load_imagenet
from torchrl_vip.data.sampler import VIPSampler, augment, generator_at
from torchrl_vip.data.sources import Clip, find_clips
from torchrl_vip.data.video import FrameTable, NoReadableClipError, decode_lazily, decode_once
from torchrl_vip.encoders import ENCODERS, VIPEncoder, native_bfloat16
from torchrl_vip.functional import resize_size
from torchrl_vip.losses import EmbeddingLoss, TCNLoss, TripletLoss, VIPLoss
from torchrl_vip.pretrain import processes
from torchrl_vip.pretrain.check import (
    check,
    check_new,
    check_resumed,
    check_split,
    pick_device,
    write_config,
    write_split,
)
from torchrl_vip.pretrain.features import embed_once
from torchrl_vip.pretrain.state import CHECKPOINT, Best, Checkpoints, MetricsLog, sole_run
from torchrl_vip.pretrain.validation import (
    marks_best,
    plot_curves,
    reward_calibration,
    validate,
)
from torchrl_vip.weights import load_vip, save_vip


def pretrain(config: dict[str, Any]) -> Path:
    """Train an encoder; see config.yaml for the fields.

    Returns:
        The folder of the final checkpoint, ``out_dir/final``.

    Raises:
        ValueError: a field that cannot be; no clip to train on; another run writes to ``out_dir``.
        FileNotFoundError: ``data.path`` is no folder.
        CheckpointError: the checkpoints in ``out_dir`` are damaged or of another network.
        OSError: the disk is full or not writable; the last checkpoint stays.
    """
    check(config)
    # Paths and pairs as config.yaml will have them.
    config = json.loads(json.dumps(config, default=str))
    split = choose_clips(config["data"])  # a wrong path is an error before anything is written
    device = pick_device(config["device"])
    shard = processes.start(device)
    out = Path(config["out_dir"])
    with sole_run(out) if shard[0] == 0 else nullcontext():
        return train(config, split, device, out, shard)


def train(
    config: dict[str, Any],
    split: tuple[list[Clip], list[Clip]],
    device: torch.device,
    out: Path,
    shard: tuple[int, int],
) -> Path:
    """:func:`pretrain` after its checks: this process's part of the run, begun or gone on with."""
    total, first_process = config["steps"], shard[0] == 0
    if config["resume"] and any((out / "checkpoints").glob(CHECKPOINT)):
        check_resumed(config, out / "config.yaml")
        check_split(split, out / "clips.json")
    elif first_process:
        check_new(out, resume=config["resume"])
    out.mkdir(parents=True, exist_ok=True)

    torch.manual_seed(config["seed"])
    encoder = make_encoder(config).to(device, memory_format=torch.channels_last)
    set_training = freeze(encoder, config["freeze_below"], config["freeze_batch_norm"])
    train_table, validation_table = load_data(split, encoder.image_size, config, first_process)
    bfloat16 = config["precision"] == "bfloat16" or (
        config["precision"] == "auto" and native_bfloat16(device)
    )
    dtype = torch.bfloat16 if bfloat16 else torch.float32
    if config["views"]:
        features = embed_once(
            train_table,
            encoder,
            config,
            Path(config["data"]["cache"] or out),
            dtype,
            progress=config["progress"] and first_process,
        )
        buffer = make_buffer(features, config | {"stride": 1}, shard)
    else:
        buffer = make_buffer(train_table, config, shard)
    objective = make_objective(encoder, config)
    parameters = [p for p in encoder.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(parameters, lr=config["lr"], weight_decay=config["weight_decay"])
    schedule = make_schedule(optimizer, config)
    averaged = AveragedModel(
        encoder, multi_avg_fn=get_ema_multi_avg_fn(config["ema"]), use_buffers=True
    )
    best = Best()
    checkpoints = Checkpoints(
        out / "checkpoints",
        config["keep_checkpoints"],
        encoder=encoder,
        averaged=averaged,
        optimizer=optimizer,
        schedule=schedule,
        best=best,
    )
    first = checkpoints.load(device) if config["resume"] else 0
    processes.wait()  # nobody deletes or writes before all have read
    if first > total:
        raise ValueError(f"steps={total}, but {out} is at step {first} already: give more.")
    measure = partial(
        validate, objective=objective, table=validation_table, config=config, dtype=dtype
    )
    metrics = measure(encoder) if first == 0 and first_process else {}
    if metrics:
        # A metric that is not there is an error before anything is cleared.
        marks_best(metrics, config["best"])
    if first_process:
        if first == 0:
            checkpoints.clear()
        else:
            print(f"resumed from step {first} of {total} ({checkpoints.path(first)})")
        write_config(config, out / "config.yaml")
        if first == 0:
            write_split(split, out / "clips.json")
    buffer.sampler.step = first
    log = MetricsLog(out / "metrics.csv", first, config["loggers"]) if first_process else None
    if log:
        log.write(0, metrics)

    steps = tqdm(
        range(first, total),
        initial=first,
        total=total,
        desc="training",
        disable=not (config["progress"] and first_process),
    )
    waited, since = 0.0, time.perf_counter()
    for step in steps:
        asked = time.perf_counter()
        batch = buffer.sample().reshape(-1, 4)
        waited += time.perf_counter() - asked
        batch = prepare(batch, step, device, config, shard)
        set_training()
        rate = optimizer.param_groups[0]["lr"]
        losses, loss, norm = update(objective, optimizer, batch, step, config, bfloat16)
        schedule.step()
        averaged.update_parameters(encoder)

        done, value = step + 1, loss
        if not (math.isfinite(value) and math.isfinite(norm)):
            raise ValueError(
                f"the loss is {value} and its gradient's norm {norm} at step {done}: begin anew "
                f"(resume=false) with a lower lr than {config['lr']}."
            )
        if not log:
            continue
        if done % 10 == 0 or done == total:
            row = {"loss": value, "gradient_norm": norm, "lr": rate}
            share = waited / (time.perf_counter() - since)
            waited, since = 0.0, time.perf_counter()
            row |= {key: metric.item() for key, metric in losses.items()}
            log.write(done, row, timing={"waiting_share": share})
            steps.set_postfix(loss=f"{value:.3f}", waiting=f"{share:.0%}")
        if done % config["validate_every"] == 0 or done == total:
            metrics = measure(averaged.module)
            log.write(done, metrics)
            plot_curves(out / "metrics.csv", out / "curves.png")
            if best.improved(marks_best(metrics, config["best"])):
                describe(averaged.module, config, train_table)
                save_vip(averaged.module, out / "best")
        if done % config["checkpoint_every"] == 0 or done == total:
            checkpoints.save(done)

    if first_process:
        describe(averaged.module.eval(), config, train_table)
        save_vip(averaged.module, out / "final")
        if math.isinf(best.value):  # nothing was validated: what is there is of a run before
            shutil.rmtree(out / "best", ignore_errors=True)
    processes.stop()
    return out / "final"


def prepare(
    batch: TensorDict,
    step: int,
    device: torch.device,
    config: dict[str, Any],
    shard: tuple[int, int] = (0, 1),
) -> TensorDict:
    """Augmented sub-clips ``[B]``: "pixels" float ``[B, 4, 3, S, S]`` and "reward" ``[B]``; or
    "features" float ``[B, 4, F]``, whose frames have been augmented before."""
    reward = batch.select("reward")[:, 0].to(device)
    if "features" in batch.keys():
        return reward.set("features", batch["features"].to(device).float())
    goal_view = config["goal_view"]
    if goal_view:  # not where o_t is the goal
        goal_view = goal_view * (batch["reward"][:, 0] < 0)
    crops = augment(
        batch["pixels"].to(device),
        generator_at(config["seed"], step, stream=1),
        scale=tuple(config["crop_scale"]),
        flip=config["flip"],
        colour=config["colour"],
        goal_view=goal_view,
        shard=shard,
    )
    return reward.set("pixels", crops)


def update(
    objective: EmbeddingLoss,
    optimizer: torch.optim.Optimizer,
    batch: TensorDict,
    step: int,
    config: dict[str, Any],
    bfloat16: bool,
) -> tuple[TensorDict, float, float]:
    """One optimizer step; returns the losses and metrics, the total loss, the gradient's norm."""
    if isinstance(objective, VIPLoss):  # the permutations of this step
        seed = generator_at(config["seed"], step, stream=2).initial_seed()
        objective.generator.manual_seed(seed)
    device = batch["reward"].device
    with torch.autocast(device.type, torch.bfloat16, enabled=bfloat16):
        losses = objective(batch)
    loss = sum(value for key, value in losses.items() if key.startswith("loss_"))
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    processes.average_gradients(parameters)
    norm = nn.utils.clip_grad_norm_(parameters, config["grad_clip"])
    optimizer.step()
    return losses, loss.item(), norm.item()


def freeze(encoder: VIPEncoder, below: str | None, batch_norm: bool) -> Callable[[], None]:
    """Take the backbone's children before ``below``, and batch statistics, out of training.

    ``below="head"`` is the whole backbone.

    Returns:
        What to call before every step: it puts the encoder in training mode, but for those.

    Raises:
        ValueError: the backbone has no such child.
    """
    still = []
    if below is not None:
        children = dict(encoder.backbone.named_children()) | {"head": encoder.head}
        if below not in children:
            raise ValueError(
                f"freeze_below={below}: the backbone's children are {', '.join(children)}."
            )
        still = list(children.values())[: list(children).index(below)]
        if below == "head":
            still.append(encoder.backbone)
        for module in still:
            module.requires_grad_(False)
    if batch_norm:
        still += [module for module in encoder.modules() if isinstance(module, _BatchNorm)]

    def set_training() -> None:
        encoder.train()  # validation may have left it in evaluation mode
        for module in still:
            module.eval()

    return set_training


def describe(encoder: VIPEncoder, config: dict[str, Any], table: FrameTable) -> None:
    """What config.json says of the weights: how they were made, and the reward's scale."""
    # No folder of this machine travels with the weights: of "encoder" only the network's name.
    training = {k: v for k, v in config.items() if k not in ("out_dir", "data", "progress")}
    began = {k: encoder.config[k] for k in ("licence", "training_data") if k in encoder.config}
    network = {"encoder": encoder.name, "image_size": encoder.image_size, "dim": encoder.dim}
    encoder.config = began | {
        "training": training | network,
        "training_clips": len(table.clips),
        "training_frames": int(table.length.sum()),
        **reward_calibration(encoder, table),
    }


def make_buffer(
    table: FrameTable, config: dict[str, Any], shard: tuple[int, int] = (0, 1)
) -> TensorDictReplayBuffer:
    """A replay buffer over the frames; "batch_size" clips over all processes."""
    return TensorDictReplayBuffer(
        storage=table.storage,
        sampler=VIPSampler(
            table.start,
            table.length,
            seed=config["seed"],
            self_transition=config["self_transition"],
            geometric=config["geometric"],
            cross_video=config["cross_video"],
            stride=config["stride"],
            copies=config["views"] or 1,
            goal_view=config["goal_view"],
            group=task_numbers(table.clips),
            shard=shard,
        ),
        batch_size=config["batch_size"] // shard[1],
        collate_fn=lambda batch: batch,  # the storage gives a whole TensorDict
        prefetch=1,  # one thread: several would reorder the draws
    )


def task_numbers(clips: list[Clip]) -> Tensor:
    """int64 ``[V]``: successes of the same :attr:`Clip.scene` have the same number; a failure has its
    own, as its end is nobody's goal."""
    names = [str((clip.success and clip.scene) or ("clip", i)) for i, clip in enumerate(clips)]
    number = {name: n for n, name in enumerate(dict.fromkeys(names))}
    return torch.tensor([number[name] for name in names])


def make_objective(encoder: VIPEncoder, config: dict[str, Any]) -> EmbeddingLoss:
    """The loss module of ``config["loss"]``, compiled where asked for: over the encoder, or with
    ``config["views"]`` over its head."""
    network = encoder.head if config["views"] else encoder
    network = torch.compile(network) if config["compile"] else network
    in_key = "features" if config["views"] else "pixels"
    options = {"l1": config["l1"], "l2": config["l2"], "in_key": in_key}
    if config["loss"] != "vip":
        return {"tcn": TCNLoss, "triplet": TripletLoss}[config["loss"]](network, **options)
    return VIPLoss(
        network,
        gamma=config["gamma"],
        num_negatives=config["num_negatives"],
        negatives=config["negatives"],
        clamp=config["clamp"],
        time_contrast=config["time_contrast"],
        generator=torch.Generator(),
        **options,
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
        encoder = VIPEncoder(config["encoder"], dim=config["dim"], image_size=config["image_size"])
        if config["imagenet"]:
            load_imagenet(encoder.backbone)
        return encoder
    return load_vip(None if config["encoder"] == "bundled" else config["encoder"])


def choose_clips(data: dict[str, Any]) -> tuple[list[Clip], list[Clip]]:
    """Training and validation clips of ``data.path``; nothing is decoded yet."""
    paths = data["path"] if isinstance(data["path"], list) else [data["path"]]
    clips = [clip for path in paths for clip in find_clips(path)]
    train, validation = split_clips(clips, data["validation"], data["hold_out"])
    if not train:
        raise ValueError(
            f"all {len(clips)} clips are held out or for validation: nothing to train on."
        )
    if data["validation"] and not validation:
        print(
            f"no validation: all {len(clips)} clips share one group; name a label's values by "
            'data.validation=[...], or give the clips a label "group".'
        )
    return train, validation


def load_data(
    split: tuple[list[Clip], list[Clip]],
    image_size: int,
    config: dict[str, Any],
    speak: bool = True,
) -> tuple[FrameTable, FrameTable | None]:
    """Training and validation clips in storages; says how many, and which could not be read."""
    data, tables = config["data"], []
    for kind, clips in zip(("training", "validation"), split, strict=True):
        if not clips:
            tables.append(None)
            continue
        options = {"workers": data["workers"], "progress": config["progress"] and speak}
        if data["decode"] == "lazily":
            decode = decode_lazily
        else:
            options["cache"] = data["cache"] or Path(config["out_dir"]) / "frames"
            decode = decode_once
        try:
            table = decode(clips, resize_size(image_size), **options)
        except NoReadableClipError as error:
            if kind == "training":
                raise
            print(f"no validation: {error}")
            table = None
        tables.append(table)
        if table is None:
            continue
        if not speak:
            continue
        print(f"{kind}: {len(table.clips)} clips, {int(table.length.sum())} frames")
        if table.skipped:
            print(f"skipped {len(table.skipped)} of them that could not be read:")
            print("\n".join(f"  {reason}" for reason in table.skipped.values()))
    return tables[0], tables[1]


def split_clips(
    clips: list[Clip], validation: float | list, hold_out: list
) -> tuple[list[Clip], list[Clip]]:
    """Training and validation clips; neighbours that share a group are never parted.

    A share above 0 chooses at least one group, and one below 1 leaves at least one, where there are two.

    Raises:
        ValueError: a value that no clip has as a label.
    """
    wanted = [*hold_out, *(validation if isinstance(validation, list) else [])]
    known = {str(value) for clip in clips for value in clip.labels.values()}
    if unknown := [value for value in wanted if str(value) not in known]:
        raise ValueError(f"data.hold_out or data.validation: no clip has a label {unknown}.")

    def labelled(clip: Clip, values: list) -> bool:
        return any(str(v) in {str(w) for w in values} for v in clip.labels.values())

    def draw(clip: Clip) -> float:
        """In [0, 1), the same for all clips of a group, whatever else there is."""
        labels = (clip.labels.get(key) for key in ("group", "lab", "task", "episode"))
        group = next((label for label in labels if label not in (None, "")), clip.name)
        return int(hashlib.sha256(os.fsencode(str(group))).hexdigest(), 16) % 10_000 / 10_000

    clips = [clip for clip in clips if not labelled(clip, hold_out)]
    if isinstance(validation, list):
        chosen = [labelled(clip, validation) for clip in clips]
    else:
        draws = [draw(clip) for clip in clips]
        if len(set(draws)) > 1 and validation > 0:
            validation = max(validation, min(draws) + 1e-9)
        if draws and validation < 1:
            validation = min(validation, max(draws))
        chosen = [drawn < validation for drawn in draws]
    pairs = list(zip(clips, chosen, strict=True))
    return [clip for clip, c in pairs if not c], [clip for clip, c in pairs if c]
