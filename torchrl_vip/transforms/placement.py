"""What is where: the transforms around one of ours, in an environment or in a replay buffer.

All that is asked of TorchRL's classes, and that they have no public answer to, is asked here.
"""

from __future__ import annotations

from collections.abc import Iterable

from tensordict import NestedKey
from torchrl.envs import EnvBase, TransformedEnv
from torchrl.envs.transforms import (
    AutoResetTransform,
    Compose,
    ConditionalPolicySwitch,
    FrameSkipTransform,
    MultiAction,
    NoopResetEnv,
    Transform,
    VecGymEnvTransform,
)


def environment_of(transform: Transform) -> EnvBase | None:
    """The environment that a transform is part of; None in a replay buffer, or by itself."""
    try:
        return transform.container
    except ValueError:  # TorchRL raises where the container is no environment
        return None


def is_attached(transform: Transform) -> bool:
    """Whether a transform is part of an environment, or of what TorchRL takes for one."""
    try:
        return transform.container is not None
    except ValueError:
        return True


def chain_of(transform: Transform) -> list[Transform]:
    """All transforms of its environment, those of environments inside first; or of the Compose around it."""
    environment = environment_of(transform)
    if environment is not None:
        return environment_chain(environment)
    outermost = transform
    # A replay buffer's transforms are in a Compose; a transform has no public way to the one around it.
    while (around := outermost.__dict__.get("_container")) and isinstance(around(), Compose):
        outermost = around()
    return _flat(outermost)


def environment_chain(environment: EnvBase, *, nested: bool = True) -> list[Transform]:
    """All transforms of an environment in order; without ``nested`` not those of environments inside."""
    if not isinstance(environment, TransformedEnv):
        return []
    inside = environment_chain(environment.base_env) if nested else []
    return inside + _flat(environment.transform)


def _flat(transform: Transform | None) -> list[Transform]:
    if isinstance(transform, Compose):
        return [one for part in transform for one in _flat(part)]
    return [] if transform is None else [transform]


def transforms_before(transform: Transform) -> list[Transform]:
    """Those that run before this one; all where it is not among them, as a clone is not."""
    chain = chain_of(transform)
    return chain[: _position(transform, chain)]


def transforms_behind(transform: Transform) -> list[Transform]:
    """Those that run after this one; none where it is not among them."""
    chain = chain_of(transform)
    return chain[_position(transform, chain) + 1 :]


def _position(transform: Transform, chain: list[Transform]) -> int:
    return next((i for i, one in enumerate(chain) if one is transform), len(chain))


def check_order(transform: Transform, keys: Iterable[NestedKey]) -> None:
    """Refuse what would hide steps, resets or the embedding from ``transform``, which reads ``keys``.

    Raises:
        ValueError: behind it, a transform that steps or resets by itself, in a clone of what is before
            it; or, in an environment without a state of its own, one that changes ``keys``, from which the
            next step is measured. MultiAction in the same environment.
    """
    name, environment = type(transform).__name__, environment_of(transform)
    if environment is None:
        return
    if any(isinstance(one, MultiAction) for one in environment_chain(environment, nested=False)):
        # TorchRL skips all of the environment's transforms where an episode ends before its last action
        raise ValueError(
            f"MultiAction in one environment with {name} loses the last reward of an episode: give it one "
            "of its own, TransformedEnv(TransformedEnv(env, MultiAction(...)), "
            "Compose(VIPTransform(...), ...), auto_unwrap=False)."
        )
    for one in transforms_behind(transform):
        if isinstance(one, FrameSkipTransform | NoopResetEnv | ConditionalPolicySwitch):
            raise ValueError(
                f"{type(one).__name__} steps the environment by itself, which {name} would not see: put "
                "it before the VIPTransform."
            )
        changed = set(keys) & set(one.out_keys or ())
        if changed and not environment.batch_locked:
            raise ValueError(
                f"{type(one).__name__} changes {sorted(map(str, changed))} behind {name}, which in an "
                "environment with batch_locked=False steps from it: give it other out_keys."
            )


def last_frames_arrive(environment: EnvBase | None) -> bool:
    """Whether the last frame of an episode is seen.

    Environments that reset themselves return the next episode's first frame instead. TorchRL blanks it
    with ``auto_reset=True``, and in vectorised gymnasium environments with a dict of observations
    (``AutoresetMode.DISABLED`` keeps it).
    """
    if environment is None:
        return True
    if environment.__dict__.get("_torchrl_native_autoreset", False):
        return False
    for transform in environment_chain(environment):
        if isinstance(transform, AutoResetTransform):
            return False
        if isinstance(transform, VecGymEnvTransform):
            base = environment
            while isinstance(base, TransformedEnv):
                base = base.base_env
            space = getattr(getattr(base, "_env", None), "single_observation_space", None)
            return not (space is None or hasattr(space, "spaces"))
    return True
