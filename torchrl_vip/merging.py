"""Several linear heads on one frozen backbone, such as training seeds, merged to one."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from torchrl_vip.encoders import VIPEncoder

# What scripts/bundle_checkpoint.py measures of one head and writes into its config.
MEASURED = (
    "success_threshold",
    "success_threshold_balanced_accuracy",
    "reward_correlation",
    "reward_scale_other",
)


def merge_heads(encoders: Sequence[VIPEncoder]) -> VIPEncoder:
    """One encoder of several whose linear heads stand on the same frozen backbone, such as training seeds.

    Its squared distances are the mean of theirs, each in parts of its own typical distance (see
    :func:`mean_metric`); it costs what one costs.

    Args:
        encoders: of one backbone, with its very weights, and heads of one size; their ``config`` has
            "typical_distance", as a training run writes it.

    Returns:
        A new encoder; its ``config`` is the first one's, "merged" counts the encoders, and what was
        measured on the first one alone (success threshold, reward correlation) is gone.
        "typical_distance" is the mean, a twentieth above what clips said of four heads (512 of 3776), as
        the weakest directions are cut: measure it where that counts.

    Raises:
        ValueError: no encoder, other backbones or image sizes, a head that is not linear or of another
            size, or no typical distance.
    """
    heads = _heads_of_one_backbone(encoders)
    first = encoders[0]
    try:
        typical = [float(e.config["typical_distance"]) for e in encoders]
    except KeyError as error:
        raise ValueError(
            'merge_heads wants "typical_distance" in every config: heads are averaged in parts of it.'
        ) from error
    scale = sum(typical) / len(typical)
    merged = copy.deepcopy(first)
    merged.head = head = copy.deepcopy(heads[0])
    with torch.no_grad():
        scaled = [h.weight * (scale / d) for h, d in zip(heads, typical, strict=True)]
        head.weight.copy_(mean_metric(scaled, first.dim))
        head.bias.zero_()  # no distance looks at it
    merged.config = {k: v for k, v in first.config.items() if k not in MEASURED}
    merged.config |= {"merged": len(encoders), "typical_distance": scale, "reward_scale": 1 / scale}
    return merged


def _heads_of_one_backbone(encoders: Sequence[VIPEncoder]) -> list[nn.Linear]:
    """The heads; ValueError unless they are linear, of one size, and on the same backbone."""
    first = encoders[0] if encoders else None
    heads = [e.head for e in encoders if isinstance(e.head, nn.Linear)]
    if (
        first is None
        or len(heads) < len(encoders)
        or any(e.dim != first.dim or e.image_size != first.image_size for e in encoders)
    ):
        raise ValueError(
            "merge_heads wants one encoder or more with linear heads of one size, at one image_size; got "
            f"{[(type(e.head).__name__, e.dim, e.image_size) for e in encoders]}."
        )
    weights = first.backbone.state_dict()
    for encoder in encoders[1:]:
        state = encoder.backbone.state_dict()
        if state.keys() != weights.keys() or not all(
            torch.equal(state[k], weights[k]) for k in weights
        ):
            raise ValueError("merge_heads wants one backbone under all heads; these have others.")
    return heads


def mean_metric(heads: Sequence[Tensor], dim: int) -> Tensor:
    """One linear head whose squared distances are the mean of several heads' squared distances.

    ``|W x|^2`` is a quadratic form of x, and so is a mean of such; of a larger rank than ``dim``, its
    ``dim`` strongest directions are kept, which is the nearest form of that rank. Heads that were begun
    from other random numbers differ in the directions that training has not touched: their mean is
    quieter than any of them, and costs what one costs.

    Args:
        heads: weights ``[D_i, F]``, of embeddings ``W x``, on one scale.
        dim: D, at most the sum of D_i, and F.

    Returns:
        ``[D, F]``, float32, rows orthogonal, the strongest first.

    Raises:
        ValueError: no head, other sizes of F, or a ``dim`` out of range.
    """
    shapes = [tuple(w.shape) for w in heads]
    most = min(sum(d for d, _ in shapes), shapes[0][1]) if shapes else 0
    if len({f for _, f in shapes}) != 1 or not 0 < dim <= most:
        raise ValueError(
            f"mean_metric of heads {shapes} with dim={dim}: wanted heads [D_i, F] of one F, and dim from 1 "
            f"to {most}."
        )
    stacked = torch.cat([w.detach().float() for w in heads]) / len(heads) ** 0.5
    _, strength, direction = torch.linalg.svd(stacked, full_matrices=False)
    # The sign of a direction is arbitrary: its largest number is positive.
    sign = direction.gather(1, direction.abs().argmax(1, keepdim=True)).sign()
    return (strength[:, None] * sign * direction)[:dim]
