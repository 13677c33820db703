"""The mathematics of VIP, pure: tensors in, tensors out.

Shapes, once for the whole package: frames are ``[*B, 3, H, W]`` or ``[*B, H, W, 3]``, uint8 in
0-255 or floating point in [0, 1]; embeddings are ``[*B, D]``; distances are Euclidean, in embedding
units; rewards are ``[*B]`` here and ``[*B, 1]`` wherever a tensordict is involved.

Source: Ma et al., "VIP: Towards Universal Visual Reward and Representation via Value-Implicit
Pre-Training", ICLR 2023, arXiv 2210.00030.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence

import torch
from tensordict import TensorDictBase
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from torchrl_vip.moved import moved

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
REWARD_FORMS = ("difference", "distance", "potential", "sparse")

__getattr__ = moved(__name__, "torchrl_vip.merging", ["mean_metric"])


def resize_size(size: int) -> int:
    """Shorter side, in pixels, of the resized frame that is cropped to ``size`` (256 for 224)."""
    return round(size * 256 / 224)


def to_chw(images: Tensor, channel_dim: int | None = None) -> Tensor:
    """Frames with their channels first and without alpha; a view, values untouched.

    Args:
        images: ``[*B, C, H, W]`` or ``[*B, H, W, C]`` with C = 3, or 4 where the last is alpha.
        channel_dim: -3 or -1 says where C is; None reads it off the shape.

    Returns:
        ``[*B, 3, H, W]``.

    Raises:
        ValueError: not an RGB image, or the shape leaves both layouts open.
    """
    shape = tuple(images.shape)
    wanted = "wanted [*B, 3, H, W] or [*B, H, W, 3] (RGB; a fourth channel is taken for alpha)"
    if images.ndim < 3:
        raise ValueError(f"frames of shape {shape} are no images: {wanted}.")
    if channel_dim is None:
        # Three channels win over four, so that a 4-row RGB image is not taken for RGBA.
        for channels in (3, 4):
            found = [d for d in (-3, -1) if images.shape[d] == channels]
            if len(found) == 2:
                raise ValueError(
                    f"frames of shape {shape} could be channel-first or channel-last: "
                    "say which with channel_dim=-3 or channel_dim=-1."
                )
            if found:
                channel_dim = found[0]
                break
        else:
            raise ValueError(
                f"frames of shape {shape} have no dimension of 3 colour channels: {wanted}. "
                "Repeat a grey image three times: image.expand(..., 3, H, W)."
            )
    if channel_dim not in (-3, -1):
        raise ValueError(f"channel_dim is {channel_dim}; wanted -3 (first) or -1 (last).")
    if images.shape[channel_dim] not in (3, 4):
        raise ValueError(
            f"frames of shape {shape} have {images.shape[channel_dim]} channels in dimension "
            f"{channel_dim}: {wanted}."
        )
    images = images.narrow(channel_dim, 0, 3).movedim(channel_dim, -3)
    if 0 in images.shape[-2:]:
        raise ValueError(f"frames of shape {shape} have no pixels: {wanted}.")
    return images


def check_range(images: Tensor) -> None:
    """Refuse floating-point frames that are not in [0, 1]; the range is never guessed from values.

    Raises:
        TypeError: dtype is neither uint8 nor floating point.
        ValueError: NaN, infinite or out of [0, 1].
    """
    if images.dtype == torch.uint8:
        return
    if not images.is_floating_point():
        raise TypeError(
            f"frames have dtype {images.dtype}; wanted uint8 (0-255) or floating point in [0, 1]."
        )
    if images.numel() == 0 or torch.compiler.is_compiling():
        return  # reading a value back would break the graph
    low, high = (v.item() for v in torch.aminmax(images))
    # NaN fails every comparison. The margin forgives rounding in half precision.
    if not (low >= -1e-3 and high <= 1 + 1e-3):
        raise ValueError(
            f"floating-point frames lie in [{low:g}, {high:g}]; wanted [0, 1]. Pass uint8 frames "
            "as they are, divide 0-255 floats by 255, and look for NaN in what made them."
        )


def preprocess(images: Tensor, size: int = 224, *, channel_dim: int | None = None) -> Tensor:
    """The official preprocessing: shorter side to 256, centre crop 224, ImageNet statistics.

    Other sizes keep the proportion 256 : 224. Source: facebookresearch/vip, ``vip/models``
    (described there; nothing is copied).

    Args:
        images: ``[*B, 3, H, W]`` or ``[*B, H, W, 3]``, uint8 0-255 or floating point in [0, 1].
            The range is not checked here (see :func:`check_range`), so that this compiles whole.
        size: side of the square that is returned, in pixels.
        channel_dim: see :func:`to_chw`.

    Returns:
        float32 ``[*B, 3, size, size]``, ImageNet-normalised.
    """
    unit = 255.0 if images.dtype == torch.uint8 else 1.0
    images = to_chw(images, channel_dim)
    batch, (height, width) = images.shape[:-3], images.shape[-2:]
    frames = images.reshape(math.prod(batch), 3, height, width)
    # The antialiased resize takes half the time on contiguous planes, with the same result.
    frames = frames.to(torch.float32, memory_format=torch.contiguous_format)
    short = resize_size(size)
    if min(height, width) != short and frames.shape[0]:
        frames = F.resize(frames, [short], antialias=True)
    frames = F.center_crop(frames, [size, size])
    std = frames.new_tensor(IMAGENET_STD).view(3, 1, 1)
    offset = frames.new_tensor(IMAGENET_MEAN).view(3, 1, 1) / std
    return (frames * (1 / (unit * std)) - offset).reshape(*batch, 3, size, size)


def goal_distance(
    z: Tensor, z_goal: Tensor, weights: Sequence[float] | Tensor | None = None
) -> Tensor:
    """Euclidean distance to the goal, ``-S(o; g)`` of the paper.

    Args:
        z: ``[*B, D]``, in embedding space.
        z_goal: ``[*B, D]``, or any shape that broadcasts to it, such as ``[D]``. One dimension more
            than ``z``, ``[*B, G, D]``, is a set of G goals of which the nearest counts.
        weights: of K cameras, whose embeddings of ``D / K`` numbers stand one after another in ``z``.
            Each camera's distance is taken by itself, and their weighted sum is the result: else a
            camera that sees little change, such as one without the robot, drowns among the others.
            :func:`camera_weights` finds them.

    Returns:
        ``[*B]``, in embedding units (times the weights'), at least float32.

    Raises:
        ValueError: the embedding sizes differ, or D is not a multiple of the number of weights.
    """
    if weights is not None and (not len(weights) or z.shape[-1] % len(weights)):
        raise ValueError(
            f"embedding of size {z.shape[-1]}, {len(weights)} weights: wanted as many as there are "
            "cameras in it."
        )
    if z.shape[-1] != z_goal.shape[-1]:
        raise ValueError(
            f"embedding of size {z.shape[-1]} (shape {tuple(z.shape)}) against a goal of size "
            f"{z_goal.shape[-1]} (shape {tuple(z_goal.shape)}): embed both with the same encoder."
        )
    dtype = torch.promote_types(torch.promote_types(z.dtype, z_goal.dtype), torch.float32)
    is_set = z_goal.ndim == z.ndim + 1
    way = (z.unsqueeze(-2) if is_set else z).to(dtype) - z_goal.to(dtype)
    if weights is None:
        distance = torch.linalg.vector_norm(way, dim=-1)
    else:
        parts = torch.linalg.vector_norm(way.unflatten(-1, (len(weights), -1)), dim=-1)
        distance = (parts * torch.as_tensor(weights, dtype=dtype, device=parts.device)).sum(-1)
    return distance.amin(-1) if is_set else distance


def camera_weights(z: Tensor, z_goal: Tensor, cameras: int) -> Tensor:
    """Weights for :func:`goal_distance` with which K cameras count alike, each in parts of what its
    distance is where episodes begin, and the whole distance there is 1.

    Args:
        z: embeddings where episodes begin, ``[*B, D]``, the cameras' one after another.
        z_goal: of the same shape, or one that broadcasts.
        cameras: K.

    Returns:
        ``[K]``: ``1 / (K * mean distance)``.

    Raises:
        ValueError: D is not a multiple of K; or a camera sees (next to) no way to the goal, less than a
            hundredth of another's: one without the robot, in a task that moves nothing else.
    """
    if z.shape[-1] % cameras:
        raise ValueError(f"embedding of size {z.shape[-1]} is not of {cameras} cameras.")
    way = (z - z_goal).unflatten(-1, (cameras, -1))
    first = torch.linalg.vector_norm(way, dim=-1).reshape(-1, cameras).mean(0)
    if not (first > 0.01 * first.max()).all():
        raise ValueError(
            f"a camera sees no way to the goal (mean first distances {first.tolist()}): leave it out."
        )
    return 1 / (cameras * first)


def goal_reward(
    z: Tensor | TensorDictBase,
    z_next: Tensor | None = None,
    z_goal: Tensor | None = None,
    *,
    form: str = "difference",
    scale: float = 1.0,
    gamma: float = 0.98,
    threshold: float | None = None,
    weights: Sequence[float] | Tensor | None = None,
) -> Tensor:
    """Reward of the step from o to o' for the goal g, with S(o; g) = -distance.

    ========================  ========================================================
    form
    ========================  ========================================================
    ``"difference"``          S(o') - S(o), the paper's (its section 3)
    ``"distance"``            S(o')
    ``"potential"``           gamma S(o') - S(o), shaping that keeps the optimal policy
                              (Ng et al., ICML 1999)
    ``"sparse"``              1 where the distance of o' is at most ``threshold``, else 0
    ========================  ========================================================

    Args:
        z: embedding of o, ``[*B, D]``. Or a whole transition as a tensordict that holds
            "vip_vec", ("next", "vip_vec") and "goal_embedding": so this function is the
            ``reward_fn`` of :class:`torchrl.data.HERReplayBuffer` as it stands.
        z_next: embedding of o', ``[*B, D]``.
        z_goal: see :func:`goal_distance`.
        form: one of the table.
        scale: factor on the result (not on the 0 and 1 of ``"sparse"``).
        gamma: discount of ``"potential"``, in (0, 1].
        threshold: for ``"sparse"``, a distance in embedding units (times the weights').
        weights: of several cameras, see :func:`goal_distance`.

    Returns:
        ``[*B]`` from tensors, ``[*B, 1]`` from a tensordict.

    Raises:
        ValueError: unknown form, or ``"sparse"`` without a threshold; see :func:`goal_distance` too.
        TypeError: ``z`` is a tensor, and ``z_next`` or ``z_goal`` is missing.
    """
    if isinstance(z, TensorDictBase):
        reward = goal_reward(
            z["vip_vec"],
            z["next", "vip_vec"],
            z["goal_embedding"],
            form=form,
            scale=scale,
            gamma=gamma,
            threshold=threshold,
            weights=weights,
        )
        return reward.unsqueeze(-1)
    if z_next is None or z_goal is None:
        raise TypeError("goal_reward wants z, z_next and z_goal; or one tensordict with all three.")
    compares = form in ("difference", "potential")
    return reward_of_distances(
        goal_distance(z, z_goal, weights) if compares else None,
        goal_distance(z_next, z_goal, weights),
        form=form,
        scale=scale,
        gamma=gamma,
        threshold=threshold,
    )


def reward_of_distances(
    distance: Tensor | None,
    distance_next: Tensor,
    *,
    form: str = "difference",
    scale: float = 1.0,
    gamma: float = 0.98,
    threshold: float | None = None,
) -> Tensor:
    """:func:`goal_reward` of distances that are known, ``[*B]`` each: ``[*B]``.

    Args:
        distance: of o, which ``"distance"`` and ``"sparse"`` do not need.
        distance_next: of o'.
        form, scale, gamma, threshold: see :func:`goal_reward`.

    Raises:
        ValueError: as :func:`goal_reward`.
        TypeError: no ``distance``, for a form that compares.
    """
    check_form(form, threshold)
    if form == "sparse":
        assert threshold is not None  # check_form has seen to it
        return (distance_next <= threshold).to(distance_next.dtype)
    if form == "distance":
        return -scale * distance_next
    if distance is None:
        raise TypeError(f"form={form!r} compares two distances: give that of the first frame too.")
    discount = gamma if form == "potential" else 1.0
    return scale * (distance - discount * distance_next)


def check_form(form: str, threshold: float | None) -> None:
    """Raise ValueError for a reward form that :func:`goal_reward` cannot compute."""
    if form not in REWARD_FORMS:
        raise ValueError(f"reward form {form!r}; wanted one of {', '.join(REWARD_FORMS)}.")
    if form == "sparse" and threshold is None:
        raise ValueError(
            "form='sparse' needs threshold=, a distance in embedding units below which the goal "
            "counts as reached. The bundled checkpoint's config.json carries a calibrated one; "
            "this encoder has none."
        )


def check_smoothing(smoothing: float) -> None:
    """Raise ValueError for a factor that is not in [0, 1)."""
    if not 0 <= smoothing < 1:
        raise ValueError(
            f"smoothing={smoothing} is invalid: wanted the share of the past in the average, in [0, 1); "
            "0 is off."
        )


def log_mean_exp(x: Tensor) -> Tensor:
    """log mean exp over all elements, without overflow and without the floor of log(eps + ...)."""
    return torch.logsumexp(x.flatten(), 0) - math.log(x.numel())


OLD_NEGATIVES = {"code": "separate", "paper": "joint"}


def renamed_negatives(negatives: str) -> str:
    """``"joint"`` or ``"separate"``; an old name is translated, with a deprecation warning.

    Raises:
        ValueError: neither.
    """
    if negatives in OLD_NEGATIVES:
        new = OLD_NEGATIVES[negatives]
        message = f"negatives={negatives!r} is deprecated: write negatives={new!r}."
        warnings.warn(message, DeprecationWarning, stacklevel=3)
        return new
    if negatives not in ("joint", "separate"):
        raise ValueError(f"negatives is {negatives!r}; wanted 'joint' or 'separate'.")
    return negatives


def vip_loss(
    z_0: Tensor,
    z_t: Tensor,
    z_next: Tensor,
    z_goal: Tensor,
    *,
    reward: float | Tensor = -1.0,
    gamma: float = 0.98,
    num_negatives: int = 0,
    negatives: str = "separate",
    clamp: bool = False,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """The VIP objective, a dual of goal-conditioned RL, to be minimised.

    With V(o) = -||z(o) - z(g)||, over a batch of B sub-clips::

        L = (1 - gamma) mean(-V(o_0)) + log mean exp(-(r + gamma V(o_{t+1}) - V(o_t)))

    Each set of negatives adds one permutation of (o_t, o_{t+1}) against the goals, with r = -1: all
    of them together a second log-mean-exp, as in the official trainer, or inside the first one, as
    in the paper. Sources: paper, Algorithm 2 (Algorithm 1 prints the exponent the other way round,
    which does not learn); facebookresearch/vip, ``vip/trainer.py``.

    Args:
        z_0, z_t, z_next, z_goal: embeddings ``[B, D]`` of the first frame, of two consecutive
            ones and of the last one of each sub-clip. Half precision is computed in float32,
            float64 stays.
        reward: r, a number or ``[B]``: -1 each step, 0 where o_t is the goal.
        gamma: discount in (0, 1).
        num_negatives: permutations of the batch; the official trainer takes 3.
        negatives: ``"separate"`` for a term of their own, ``"joint"`` for one with the others; once
            called "code" and "paper".
        clamp: cut distances at 1 / (1 - gamma), as a step costs 1 and no goal is further than
            forever; with it the loss is bounded below.
        generator: CPU generator that draws the permutations.

    Returns:
        The scalar loss, and detached scalars: ``value_0``, ``value_t`` (mean V), ``td`` (mean
        r + gamma V' - V), ``negatives`` (their term, where there are any).

    Raises:
        ValueError: the shapes differ, are not ``[B, D]``, or B is 0; a reward of another shape; an
            unknown ``negatives``.
    """
    negatives = renamed_negatives(negatives)
    shapes = {
        "z_0": tuple(z_0.shape),
        "z_t": tuple(z_t.shape),
        "z_next": tuple(z_next.shape),
        "z_goal": tuple(z_goal.shape),
    }
    if len(set(shapes.values())) != 1 or z_0.ndim != 2 or z_0.shape[0] == 0:
        raise ValueError(
            f"vip_loss wants four embeddings of one shape [B, D], B > 0; got {shapes}."
        )
    if isinstance(reward, Tensor) and reward.shape not in ((), z_0.shape[:1]):
        # [B, 1] would broadcast to [B, B] without a word.
        raise ValueError(
            f"vip_loss wants a number or a reward of shape [B] = [{z_0.shape[0]}]; got "
            f"{tuple(reward.shape)}. Drop further dimensions: reward.squeeze(-1)."
        )

    def value(z: Tensor, goal: Tensor) -> Tensor:
        distance = goal_distance(z, goal)
        return -(distance.clamp(max=1 / (1 - gamma)) if clamp else distance)

    value_0, value_t, value_next = (value(z, z_goal) for z in (z_0, z_t, z_next))
    td = reward + gamma * value_next - value_t
    loss = (1 - gamma) * -value_0.mean()
    metrics = {
        "value_0": value_0.detach().mean(),
        "value_t": value_t.detach().mean(),
        "td": td.detach().mean(),
    }
    if not num_negatives:
        return loss + log_mean_exp(-td), metrics
    perm = torch.cat(
        [torch.randperm(len(z_t), generator=generator) for _ in range(num_negatives)]
    ).to(z_t.device)
    goals = z_goal.repeat(num_negatives, 1)
    td_negative = -1.0 + gamma * value(z_next[perm], goals) - value(z_t[perm], goals)
    term = log_mean_exp(-td_negative)
    metrics["negatives"] = term.detach()
    if negatives == "joint":
        return loss + log_mean_exp(-torch.cat([td, td_negative])), metrics
    return loss + log_mean_exp(-td) + term, metrics


def tcn_loss(z_0: Tensor, z_t: Tensor, z_goal: Tensor) -> Tensor:
    """Time-contrastive loss of R3M (Nair et al., 2022, arXiv 2203.12601, section 3.2).

    Of three frames in order, the near ones are more alike than the far ones and than frames of other
    videos; likeness is minus the Euclidean distance. With the ends in turn as anchor::

        -log exp S(anchor, o_t) / (exp S(anchor, o_t) + exp S(o_0, o_g) + exp S(anchor, o_other))

    Args:
        z_0, z_t, z_goal: embeddings ``[B, D]``, in order of time; o_other is the anchor of the next
            clip in the batch.

    Returns:
        The scalar loss.
    """
    far = -goal_distance(z_0, z_goal)
    loss = torch.zeros((), device=z_0.device, dtype=far.dtype)
    for anchor in (z_0, z_goal):
        near, other = -goal_distance(anchor, z_t), -goal_distance(anchor, anchor.roll(1, 0))
        loss = loss + (torch.stack([near, far, other]).logsumexp(0) - near).mean() / 2
    return loss


def ridge(x: Tensor, y: Tensor, weight: Tensor, penalty: float) -> tuple[Tensor, Tensor]:
    """Weighted ridge regression of a number on features, with a free constant.

    Minimises over w and b, with the weights made to sum to 1 and v the features' total weighted variance::

        sum_i weight_i (x_i w + b - y_i)^2 + penalty v |w|^2

    It is solved over rows, as there are fewer than features here: time grows with the cube of R.

    Args:
        x: ``[R, F]``.
        y: ``[R]``.
        weight: ``[R]``, above 0.
        penalty: above 0.

    Returns:
        w ``[F]`` and b, a scalar, float32.
    """
    share = weight / weight.sum()
    mean_x, mean_y = share @ x, share @ y
    rows = share.sqrt()[:, None] * (x - mean_x)
    kernel = (rows @ rows.T).double()
    kernel.diagonal().add_(penalty * kernel.trace().clamp(min=1e-12))
    dual = torch.linalg.solve(kernel, (share.sqrt() * (y - mean_y)).double())
    w = rows.T @ dual.float()
    return w, mean_y - mean_x @ w


def random_shift(frames: Tensor, pixels: int, generator: torch.Generator | None = None) -> Tensor:
    """Each frame moved by up to ``pixels`` both ways; edges are repeated.

    Source: Kostrikov et al., DrQ, ICLR 2021.

    Args:
        frames: ``[B, C, H, W]``, of any dtype.
        generator: of the shifts; None is torch's own.

    Returns:
        ``[B, C, H, W]``, of the same dtype.
    """
    wide = F.pad(frames, [pixels] * 4, padding_mode="edge")
    corners = torch.randint(0, 2 * pixels + 1, (len(frames), 2, 1), generator=generator)
    (height, width), device = frames.shape[-2:], frames.device
    rows = corners[:, 0].to(device) + torch.arange(height, device=device)  # [B, H]
    columns = corners[:, 1].to(device) + torch.arange(width, device=device)
    each = torch.arange(len(frames), device=device)[:, None, None]
    moved = wide[each, :, rows[:, :, None], columns[:, None, :]]
    return moved.permute(0, 3, 1, 2)  # indexing put the channels last


def decoy_loss(
    z_idle: Tensor,
    z_start: Tensor,
    z_end: Tensor,
    z_goal: Tensor,
    of_goal: Tensor,
    margin: float = 0.3,
) -> Tensor:
    """What a robot that moves without effect gains or loses, beyond what it may; to be minimised.

    With d the distance to a goal, in parts of where a demonstration starts, over idle frames::

        things as the task finds them    relu(d(start) - margin (d(start) - d(end)) - d(idle)) / d(start)
        things as the task leaves them   relu(d(idle) - d(end)) / d(start)

    So an arm that has changed nothing may come ``margin`` of a demonstration's way to the goal. With 0 its
    approach would pay nothing either, as an approaching arm has changed nothing yet.

    Args:
        z_idle: embeddings ``[B, D]`` of idle frames.
        z_start, z_end: of a demonstration's first and last frame.
        z_goal: of the goal, another demonstration's last frame; z_end itself where there is one alone.
        of_goal: bool ``[B]``, whether things are as the task leaves them.
        margin: in [0, 1].

    Returns:
        The scalar mean; 0 for B = 0.
    """
    idle, start, end = (goal_distance(z, z_goal) for z in (z_idle, z_start, z_end))
    too_near = start - margin * (start - end) - idle
    excess = torch.where(of_goal, idle - end, too_near).relu()
    return (excess / start.clamp(min=1e-6)).sum() / max(len(idle), 1)


def wrong_goal_loss(z_0: Tensor, z_t: Tensor, z_goal: Tensor, group: Tensor) -> Tensor:
    """What clips gain on the way towards goals of other tasks or scenes; to be minimised.

    Over all pairs of a clip and a goal of another group, with d the distance to it::

        relu(d(o_0) - d(o_t)) / d(o_0)

    An embedding that only pays for moving away from the start gains towards every goal. Here a goal has to
    be told from the others.

    Args:
        z_0, z_t, z_goal: embeddings ``[B, D]`` of the first, a later and the goal frame of each sub-clip.
        group: ``[B]``, equal for sub-clips of one task and scene; below 0 where that is not known, and such
            a sub-clip is in no pair.

    Returns:
        The scalar mean over pairs; 0 where there are none.
    """
    others = (group[:, None] != group) & (group[:, None] >= 0) & (group >= 0)
    first, later = torch.cdist(z_0, z_goal), torch.cdist(z_t, z_goal)
    gained = (first - later).relu() / first.clamp(min=1e-6)
    return (gained * others).sum() / others.sum().clamp(min=1)


def log_reward_weights(
    reward: Tensor, *, tau: float | None = None, temperature: float | None = None
) -> Tensor:
    """Logarithm of the weights of reward-weighted regression, up to a constant that all of them share.

    Args:
        reward: R, ``[N]``.
        tau: the paper's, weights exp(tau R) (its section 5.3: 0.1, or 1 for CloseDrawer). What it does
            depends on the reward's scale.
        temperature: weights exp(R / (temperature * std R)) instead, over these N: any reward's scale is
            taken out.

    Returns:
        ``[N]``.

    Raises:
        ValueError: not exactly one of the two; a temperature of 0 or less; rewards that are all alike, for a
            temperature.
    """
    if (tau is None) == (temperature is None):
        raise ValueError(f"tau={tau}, temperature={temperature}: wanted exactly one of them.")
    if tau is not None:
        return tau * reward
    assert temperature is not None
    if temperature <= 0:
        raise ValueError(f"temperature={temperature} is invalid: wanted a positive number.")
    deviation = reward.std(correction=0)
    if not deviation > 0:
        raise ValueError(
            f"all {len(reward)} rewards are {reward.flatten()[0]:.3g}: none is better than another, so "
            "that no weights follow. Is the goal image of this task?"
        )
    return reward / (temperature * deviation)


def normalised_weights(log_weights: Tensor, clip: float | None = None) -> Tensor:
    """exp of these, divided by its mean, so that a learning rate means the same as without weights.

    Args:
        log_weights: ``[N]``.
        clip: no weight is more than this many times the mean before clipping; the result has mean 1 again.

    Raises:
        ValueError: a clip below 1.
    """
    if clip is not None and clip < 1:
        raise ValueError(f"clip={clip} is invalid: wanted a number from 1 on.")
    weights = log_weights.softmax(0) * len(log_weights)
    if clip is not None:
        weights = weights.clamp_max(clip)
        weights = weights / weights.mean()
    return weights


def effective_sample_size(weights: Tensor) -> Tensor:
    """(Σw)² / Σw² of weights ``[N]``: that of 1 for all is N, that of one alone is 1."""
    return weights.sum().square() / weights.square().sum()
