"""Keys of a time step and of the next one, and which rows of a batch a reset or a step concerns.

Rows are bool ``[*B]``, one for each environment; where the environments hold groups that are reset one by
one, such as agents, ``[*B, *N]``.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from tensordict import NestedKey, TensorDictBase, unravel_key
from torch import Tensor


def as_keys(keys: NestedKey | Sequence[NestedKey]) -> list[NestedKey]:
    """One key, or several, as a list."""
    return [keys] if isinstance(keys, str | tuple) else list(keys)


def now_key(key: NestedKey) -> NestedKey:
    """A key without its leading "next"."""
    return unravel_key(key[1:]) if is_next(key) else key


def is_next(key: NestedKey) -> bool:
    """Whether a key names something of the next time step."""
    return isinstance(key, tuple) and key[0] == "next"


def next_key(key: NestedKey) -> NestedKey:
    """The same key, of the next time step."""
    return unravel_key(("next", key))


def reset_rows(
    tensordict: TensorDictBase | None, batch: torch.Size, key: NestedKey | None = None
) -> Tensor | None:
    """Which rows a reset concerns, by its "_reset"; None is all of them.

    Args:
        tensordict: as given to ``env.reset``.
        batch: ``*B``.
        key: of an observation: its group's own rows. None asks for the environments in which anything
            is reset.
    """
    rows = None if tensordict is None else flagged_rows(tensordict, "_reset", batch, key)
    return None if rows is None or bool(rows.all()) else rows


def step_rows(tensordict: TensorDictBase, batch: torch.Size) -> Tensor | None:
    """Which environments a step concerns, by TorchRL's "_step"; None is all of them."""
    mask = tensordict.get("_step", None)
    return None if mask is None or bool(mask.all()) else mask.reshape(batch)


def flagged_rows(
    tensordict: TensorDictBase, name: str, batch: torch.Size, key: NestedKey | None = None
) -> Tensor | None:
    """The rows for which a flag such as "done" is set; None where there is no such flag.

    Args:
        tensordict: at its top or in its groups, flags ``[*B]`` or ``[*B, *N, 1]``.
        name: of the flag.
        batch: ``*B``.
        key: of an observation, whose rows are wanted: those of the group that it is in, if this has a flag
            of its own. A flag further up counts first, as in TorchRL.
    """
    found = {as_path(k): k for k in tensordict.keys(True, True) if as_path(k)[-1] == name}
    if not found:
        return None
    if key is not None:
        above = [path for path in found if path[:-1] == as_path(key)[: len(path) - 1]]
        if above and len(first := min(above, key=len)) > 1:
            mask = tensordict.get(found[first])
            return mask.squeeze(-1) if mask.ndim > len(batch) else mask
        found = {path: found[path] for path in above} or found
    masks = [tensordict.get(k).reshape(*batch, -1).any(-1) for k in found.values()]
    return torch.stack(masks).any(0)


def as_path(key: NestedKey) -> tuple[str, ...]:
    """A key as a tuple."""
    return (key,) if isinstance(key, str) else key


def broadcast_rows(rows: Tensor, values: Tensor) -> Tensor:
    """Rows ``[*B]`` made to broadcast against values ``[*B, *N]``."""
    return rows.reshape((*rows.shape, *[1] * (values.ndim - rows.ndim)))
