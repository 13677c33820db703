"""Steps to learn from: what the labelling command wrote, as one tensordict with TorchRL's keys."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor

from torchrl_vip.data.lerobot.reading import read_info
from torchrl_vip.data.lerobot.torchrl import torchrl_columns

COLUMNS = {
    "embedding": "observation.vip",
    "state": "observation.state",
    "action": "action",
    "reward": "next.reward",
}
"""Names of a LeRobot dataset's columns, as the labelling command and LeRobot have them."""
EPISODE = "episode"
"""Of :func:`reward_to_come`: the whole episode."""
FEWEST = 2  # episodes, below which nothing can be learned


def read_steps(
    folder: str | Path,
    *,
    columns: dict[str, str] | None = None,
    state: bool = True,
    views: Tensor | None = None,
) -> TensorDict:
    """All N steps of a labelled dataset, in order, of all but each episode's last frame.

    Reads a LeRobot dataset (v2, v3), or a memory-mapped tensordict of steps, both as
    ``python -m torchrl_vip.label DATASET --out FOLDER`` writes them.

    Args:
        columns: other names of a LeRobot dataset's columns, see :data:`COLUMNS`.
        state: whether there is proprioception to read.
        views: of :func:`torchrl_vip.offline.shifted_views` of the same folder.

    Returns:
        ``[N]`` with "vip_vec" float32 ``[N, D]``, "state" ``[N, S]``, "action" ``[N, A]``, "episode" int64
        ``[N]``, with views "vip_views" ``[N, V, D]``, and under "next" "vip_vec", "state", "reward"
        ``[N, 1]``, "done" and "terminated" ``[N, 1]``. The last step of an episode is done; none is
        terminated. Steps with a NaN are left out.

    Raises:
        ValueError: no such dataset, a column that is not there, fewer than 2 episodes, no step without a NaN,
            or rewards that are all alike. The message says what is there and what to do.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"{folder} is no folder: wanted one that the labelling command wrote.")
    if (folder / "meta" / "info.json").is_file():
        frames = _of_lerobot(folder, {**COLUMNS, **(columns or {})}, state)
        steps = _following(_with_views(frames, views, folder))
    elif (folder / "meta.json").is_file():
        steps = _with_views(_of_memmap(folder, state), views, folder)
    else:
        raise ValueError(
            f"{folder} is neither a LeRobot dataset (meta/info.json) nor a memory-mapped tensordict "
            "(meta.json)."
        )
    steps = steps[_finite(steps)]
    _check(steps, folder)
    return steps


def _of_lerobot(folder: Path, names: dict[str, str], state: bool) -> TensorDict:
    """Its frames, ``[F]``, an episode after the other."""
    there = read_info(folder)["features"]
    wanted = [key for key in COLUMNS if state or key != "state"]
    if missing := [key for key in wanted if names[key] not in there]:
        raise ValueError(_missing(folder, {key: names[key] for key in missing}, there))
    columns = torchrl_columns(folder, videos=False)
    read = {{"embedding": "vip_vec"}.get(key, key): _as_rows(columns[names[key]]) for key in wanted}
    read["episode"] = columns["episode_index"].long()
    return TensorDict(read, [len(read["episode"])])


def _with_views(rows: TensorDict, views: Tensor | None, folder: Path) -> TensorDict:
    if views is None:
        return rows
    z = rows["vip_vec"]
    if len(views) != len(z):
        raise ValueError(
            f"{folder} has {len(z)} rows, and {len(views)} rows of views are given: they are another "
            "dataset's."
        )
    if views.shape[2] != z.shape[1] or not _is_nearer(views[:, 0], z):
        raise ValueError(
            f"{folder}: its shifted frames lie nowhere near its embeddings, so that another encoder made "
            "these: give --encoder as the labelling command had it."
        )
    return rows.set("vip_views", views)


def _is_nearer(views: Tensor, z: Tensor) -> bool:
    """Whether a frame's view is nearer to it than other frames are, by the median over frames ``[R, D]``."""
    there = z.isfinite().all(1) & views.isfinite().all(1)
    if not there.any():
        return True  # and nothing to learn from, as is said later
    views, z = views[there], z[there]
    others = z[torch.randperm(len(z), generator=torch.Generator().manual_seed(0))]
    own, other = (views - z).norm(dim=1), (others - z).norm(dim=1)
    return bool(own.median() <= other.median())


def _missing(folder: Path, missing: dict[str, str], there: dict[str, Any]) -> str:
    numbers = sorted(n for n, f in there.items() if f.get("dtype", "").startswith(("float", "int")))
    hints = [f"--{key} NAME says which column is the {key}" for key in missing]
    if {"embedding", "reward"} & missing.keys():
        hints.append(
            f"python -m torchrl_vip.label {folder} --goal mean-last --out LABELLED writes "
            f"{COLUMNS['reward']} and {COLUMNS['embedding']}"
        )
    if "state" in missing:
        hints.append("--no-state learns from the embedding alone")
    return (
        f"{folder} has no column {', '.join(missing.values())}; its columns of numbers are "
        f"{', '.join(numbers)}: {'; '.join(hints)}."
    )


def _as_rows(values: Tensor) -> Tensor:
    return values.float().reshape(len(values), -1)


def _following(frames: TensorDict) -> TensorDict:
    """Transitions of frames ``[F]``: a frame's reward is that of the step to the next one."""
    same = frames["episode"][1:] == frames["episode"][:-1]
    now, then = frames[:-1][same], frames[1:][same]
    steps = now.exclude("reward").clone()
    steps["next"] = then.select("vip_vec", "state", strict=False).clone()
    steps["next", "reward"] = now["reward"]
    return _with_ends(steps)


def _of_memmap(folder: Path, state: bool) -> TensorDict:
    steps = TensorDict.load_memmap(folder)
    wanted: list[Any] = ["vip_vec", "action", "episode", ("next", "vip_vec"), ("next", "reward")]
    wanted += ["state", ("next", "state")] if state else []
    there = steps.keys(include_nested=True, leaves_only=True)
    if missing := [key for key in wanted if key not in there]:
        raise ValueError(
            f"{folder} has no {missing}; it has {sorted(map(str, there))}. "
            f"python -m torchrl_vip.label {folder} --goal mean-last --out LABELLED writes them."
        )
    steps = steps.select(*wanted).to_tensordict().flatten()
    rows = {key: _as_rows(steps[key]) for key in wanted if key != "episode"}
    return _with_ends(steps.update(rows))


def _with_ends(steps: TensorDict) -> TensorDict:
    episode = steps["episode"]
    ends = torch.ones(len(episode), 1, dtype=torch.bool)
    ends[:-1, 0] = episode[1:] != episode[:-1]
    steps["next", "done"], steps["next", "terminated"] = ends, torch.zeros_like(ends)
    return steps


def _finite(steps: TensorDict) -> Tensor:
    """Which steps have no NaN, ``[N]``."""
    numbers = [value.flatten(1) for value in steps.values(True, True) if value.is_floating_point()]
    return torch.cat(numbers, 1).isfinite().all(1)


def _check(steps: TensorDict, folder: Path) -> None:
    if not len(steps):
        raise ValueError(f"{folder}: every step has a NaN, as where no frame was read.")
    if (count := len(steps["episode"].unique())) < FEWEST:
        raise ValueError(
            f"{folder} has {count} episode with labels; wanted {FEWEST} or more, and 20 are a good number."
        )
    reward = steps["next", "reward"]
    if reward.max() == reward.min():
        raise ValueError(
            f"{folder}: all {len(reward)} rewards are {reward[0].item():.3g}, so that no step is better than "
            "another. Label again, with the goal image of this task."
        )


def reward_to_come(reward: Tensor, episode: Tensor, horizon: int | str | None = 1) -> Tensor:
    """The sum of the rewards of the next ``horizon`` steps, or of all that follow in the episode.

    Args:
        reward: ``[N, 1]``, the steps of an episode one after another.
        episode: int64 ``[N]``.
        horizon: 1 is the reward itself, as in the paper; None goes to the episode's end; "episode" is the
            whole episode's return, the same for all its steps.

    Returns:
        ``[N, 1]``.

    Raises:
        ValueError: another horizon, or below 1.
    """
    if horizon not in (None, EPISODE) and not (isinstance(horizon, int) and horizon >= 1):
        raise ValueError(f"horizon={horizon!r} is invalid: wanted 1 or more, None, or {EPISODE!r}.")
    result = torch.empty_like(reward)
    for number in episode.unique():
        mine = (episode == number).nonzero()[:, 0]
        total = torch.cat([reward.new_zeros(1), reward[mine, 0].double().cumsum(0)])
        begin = torch.arange(len(mine)) * (horizon != EPISODE)
        ahead = horizon if isinstance(horizon, int) else len(mine)
        until = (begin + ahead).clamp_max(len(mine))
        result[mine, 0] = (total[until] - total[begin]).to(result.dtype)
    return result
