"""VIPTransform: pixels to embeddings, in any TorchRL environment or replay buffer."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import torch
from tensordict import NestedKey, TensorDictBase, unravel_key
from torch import Tensor, nn
from torchrl.data.tensor_specs import Composite, Unbounded
from torchrl.envs.transforms import Transform

from torchrl_vip.encoders import FrozenEncoder, VIPEncoder
from torchrl_vip.functional import to_chw
from torchrl_vip.serving import EncoderClient
from torchrl_vip.transforms.keys import (
    as_keys,
    is_next,
    next_key,
    now_key,
    reset_rows,
    step_rows,
)
from torchrl_vip.transforms.placement import is_attached
from torchrl_vip.weights import load_vip

if TYPE_CHECKING:
    from typing_extensions import Self  # typing's own from Python 3.11 on

EncoderLike = str | os.PathLike | nn.Module | None
Encoder = VIPEncoder | FrozenEncoder | EncoderClient
_Rows = Mapping[NestedKey, Tensor | None]
"""Which rows of a key's frames are embedded, bool ``[*B]``; without an entry, or with None, all of them."""
_ALL_ROWS: _Rows = MappingProxyType({})


class VIPTransform(Transform):
    """Replace frames with embeddings of a VIP encoder.

    Frozen by default: evaluation mode whatever ``.train()`` says, no gradient, no parameter for an
    optimizer to see, nothing in ``env.state_dict()``. In ``TransformedEnv(ParallelEnv(n, ...), ...)``
    one forward serves all n environments, and a partial reset encodes only the rows being reset.
    Inside a replay buffer it embeds the sampled frames, a key and its ("next", key) in one batch.

    Args:
        encoder: a bundled checkpoint's name, a checkpoint's path, a :class:`VIPEncoder`, or any
            module from preprocessed frames (float ``[N, 3, S, S]``, ImageNet-normalised) to
            ``[N, D]``; or an :class:`torchrl_vip.serving.EncoderServer`'s client, so that many
            workers share one encoder. None is the bundled default.

    Keyword Args:
        in_keys: frames to read, uint8 0-255 or floating point in [0, 1]; one per camera.
        out_keys: embeddings to write. By default "vip_vec", or "vip_vec_0", "vip_vec_1", ... with
            ``stack_images=False``.
        stack_images: concatenate the cameras of one time step in one embedding ``[*B, K * D]``;
            else each has its own.
        size: side S of the square that the network sees; None is the encoder's own.
        del_keys: remove the frames, so that only embeddings are stored.
        tensor_pixels_keys: keys under which to keep the untouched frames, one per camera.
        freeze: False registers the encoder as a trainable submodule and lets gradients through. A
            VIPRewardTransform embeds its goal once: give it again (``set_goal``) after updates.
        save_encoder: put a frozen encoder's weights in ``state_dict()`` after all.
        blur, dtype, channels_last, compile, chunk_size: see :class:`FrozenEncoder`.
        channel_dim: -3 or -1 where the frames' shape leaves their layout open.
        weights, download, download_path: see :func:`load_vip`. ``weights="random"`` is the only way
            to an untrained network.
        model_name, keys_in: the names of ``encoder`` and ``in_keys`` in earlier interfaces.

    Raises:
        KeyError: a frame's key is absent.
        ValueError, TypeError: frames of wrong shape, dtype or range; an encoder of wrong rank; an
            encoder's name without weights; an option of :class:`FrozenEncoder` for an encoder that is
            not frozen here.

    Examples:
        >>> from torchrl.envs import GymEnv, TransformedEnv
        >>> env = GymEnv("CartPole-v1", from_pixels=True, pixels_only=True)  # doctest: +SKIP
        >>> env = TransformedEnv(env, VIPTransform())  # doctest: +SKIP
        >>> env.rollout(3)["next", "vip_vec"].shape  # doctest: +SKIP
        torch.Size([3, 512])
    """

    encoder: Encoder
    dim: int

    def __init__(
        self,
        encoder: EncoderLike = None,
        *,
        in_keys: Sequence[NestedKey] | None = None,
        out_keys: Sequence[NestedKey] | None = None,
        stack_images: bool = True,
        size: int | None = None,
        del_keys: bool = True,
        tensor_pixels_keys: Sequence[NestedKey] | None = None,
        freeze: bool = True,
        save_encoder: bool = False,
        blur: float = 0.0,
        dtype: torch.dtype | None = None,
        channels_last: bool = True,
        compile: bool = False,
        chunk_size: int | None = None,
        channel_dim: int | None = None,
        weights: str | None = None,
        download: bool = False,
        download_path: str | os.PathLike | None = None,
        model_name: str | None = None,
        keys_in: Sequence[NestedKey] | None = None,
    ):
        encoder, in_keys = _from_old_names(encoder, in_keys, model_name, keys_in)
        super().__init__(in_keys=as_keys(in_keys))
        self.stack_images = stack_images
        # A key and its ("next", key) are one camera at two times.
        self.cameras = list(dict.fromkeys(now_key(k) for k in self.in_keys))
        self.embedding_keys = self._name_embeddings(out_keys)
        written = [(key, self.embedding_key(now_key(key))) for key in self.in_keys]
        self.out_keys = list(
            dict.fromkeys(next_key(out) if is_next(key) else out for key, out in written)
        )
        self.del_keys = del_keys
        self.tensor_pixels_keys = [unravel_key(k) for k in tensor_pixels_keys or []]
        if self.tensor_pixels_keys and len(self.tensor_pixels_keys) != len(self.cameras):
            raise ValueError(
                f"tensor_pixels_keys={self.tensor_pixels_keys} for the cameras {self.cameras}: "
                "wanted one for each."
            )
        self.channel_dim = channel_dim
        self.freeze = freeze
        self.save_encoder = save_encoder
        where = {"weights": weights, "download": download, "download_path": download_path}
        frozen = {"blur": blur, "dtype": dtype, "compile": compile, "chunk_size": chunk_size}
        encoder = _make_encoder(encoder, where, freeze, size, channels_last, frozen)
        if freeze:  # past nn.Module's registration: neither parameters() nor state_dict() sees it
            self.__dict__["encoder"] = encoder
        else:
            self.encoder = encoder
        self.dim = self.encoder.dim
        self.__dict__["_last"] = {}  # embedding key -> [*B, D], for the rows a partial reset leaves
        self.shares_encoder = False  # with the transform that it is a clone of

    def _name_embeddings(self, out_keys: Sequence[NestedKey] | None) -> list[NestedKey]:
        """One out key per camera, or one for all; those given may name the ("next", key) too."""
        wanted = 1 if self.stack_images else len(self.cameras)
        if not out_keys:
            return ["vip_vec"] if self.stack_images else [f"vip_vec_{i}" for i in range(wanted)]
        keys = list(dict.fromkeys(now_key(unravel_key(k)) for k in as_keys(out_keys)))
        if len(keys) != wanted:
            raise ValueError(
                f"out_keys={keys} for the cameras {self.cameras} with stack_images="
                f"{self.stack_images}: wanted {wanted} key(s)."
            )
        return keys

    def embedding_key(self, camera: NestedKey) -> NestedKey:
        """The key under which the embedding of a camera is written, by itself or joined with others."""
        return self.embedding_keys[0 if self.stack_images else self.cameras.index(camera)]

    def embed(self, images: Tensor) -> Tensor:
        """Frames of one camera to embeddings: ``[*B, 3, H, W]`` or ``[*B, H, W, 3]`` to ``[*B, D]``."""
        return self.encoder(images, channel_dim=self.channel_dim)

    def _embed_all(self, images: list[Tensor]) -> list[Tensor]:
        """Embed frames of several keys, those of one size in one batch."""
        images = [to_chw(x, self.channel_dim) for x in images]
        embedded: dict[int, Tensor] = {}
        kinds: dict[tuple, list[int]] = {}
        for i, x in enumerate(images):
            kinds.setdefault((x.shape[-3:], x.dtype), []).append(i)
        for members in kinds.values():
            flat = [images[i].reshape(-1, *images[i].shape[-3:]) for i in members]
            z = self.encoder(flat[0] if len(flat) == 1 else torch.cat(flat), channel_dim=-3)
            for i, part in zip(members, z.split([len(x) for x in flat]), strict=True):
                z_i = part.reshape(*images[i].shape[:-3], self.dim)
                embedded[i] = z_i.to(torch.float32)
        return [embedded[i] for i in range(len(images))]

    def _embed_keys(
        self, tensordict: TensorDictBase, keys: Sequence[NestedKey], rows: _Rows = _ALL_ROWS
    ) -> None:
        """Write the embeddings of the frames under ``keys`` into the tensordict.

        ``rows`` of a key limits the encoding; the other rows, which were not reset or not stepped, get
        their last embedding.
        """
        frames = [self._frames(tensordict, key) for key in keys]
        chosen = [rows.get(key) for key in keys]
        z_of_key = self._embed_all(
            [x if r is None else x[r] for x, r in zip(frames, chosen, strict=True)]
        )
        joined: dict[NestedKey, list[Tensor]] = {}
        rows_of_out: dict[NestedKey, Tensor | None] = {}
        for key, z, r in zip(keys, z_of_key, chosen, strict=True):
            out = self.embedding_key(now_key(key))
            out = next_key(out) if is_next(key) else out
            joined.setdefault(out, []).append(z)
            rows_of_out[out] = r
        for out, parts in joined.items():
            z = parts[0] if len(parts) == 1 else torch.cat(parts, -1)
            z = self._with_last(out, z, rows_of_out[out])
            if not is_next(out):
                self._last[out] = z.detach().clone()  # whoever gets it may edit it in place
            tensordict.set(out, z)
        self._keep_frames(tensordict, keys)
        if self.del_keys:
            kept = {*self.tensor_pixels_keys, *map(next_key, self.tensor_pixels_keys)}
            tensordict.exclude(*({*keys} - {*joined} - kept), inplace=True)

    def _frames(self, tensordict: TensorDictBase, key: NestedKey) -> Tensor:
        frames = tensordict.get(key, None)
        if frames is None:
            raise KeyError(
                f"{type(self).__name__} found no frames under {key!r}; the tensordict has "
                f"{sorted(map(str, tensordict.keys(True, True)))}. Name the key with in_keys=, "
                "and build the environment with from_pixels=True where it does not render."
            )
        return frames

    def _with_last(self, out: NestedKey, z: Tensor, rows: Tensor | None) -> Tensor:
        """Embeddings ``[n, D]`` of the n rows, and the last ones of the others: ``[*B, D]``."""
        if rows is None:
            return z
        full = z.new_zeros(*rows.shape, *z.shape[1:])
        last = self._last.get(out)
        if last is not None and last.shape == full.shape:
            full.copy_(last)
        full[rows] = z
        return full

    def _keep_frames(self, tensordict: TensorDictBase, keys: Sequence[NestedKey]) -> None:
        """Copy the frames to ``tensor_pixels_keys``."""
        for camera, kept in zip(self.cameras, self.tensor_pixels_keys, strict=False):
            for key in keys:
                if now_key(key) == camera:
                    tensordict.set(next_key(kept) if is_next(key) else kept, tensordict.get(key))

    # -- in an environment: the tensordict is already that of one time step ---------------------

    def embed_reset(
        self, tensordict: TensorDictBase, tensordict_reset: TensorDictBase
    ) -> TensorDictBase:
        """Embed the first frames of the rows being reset; ``tensordict`` is what the reset was given."""
        batch = tensordict_reset.batch_size
        rows = {camera: reset_rows(tensordict, batch, camera) for camera in self.cameras}
        self._embed_keys(tensordict_reset, self.cameras, rows)
        return tensordict_reset

    def embed_step(
        self, tensordict: TensorDictBase, next_tensordict: TensorDictBase
    ) -> TensorDictBase:
        """Embed the frames of the rows that were stepped; ``tensordict`` is the step's input."""
        rows = step_rows(tensordict, next_tensordict.batch_size)
        return self._call(next_tensordict, dict.fromkeys(self.cameras, rows))

    def _call(self, next_tensordict: TensorDictBase, rows: _Rows = _ALL_ROWS) -> TensorDictBase:
        keys = self.cameras
        if self.missing_tolerance:
            keys = [k for k in keys if k in next_tensordict.keys(True)]
        if keys:
            self._embed_keys(next_tensordict, keys, rows)
        return next_tensordict

    def _step(self, tensordict: TensorDictBase, next_tensordict: TensorDictBase) -> TensorDictBase:
        return self.embed_step(tensordict, next_tensordict)

    def _reset(
        self, tensordict: TensorDictBase, tensordict_reset: TensorDictBase
    ) -> TensorDictBase:
        return self.embed_reset(tensordict, tensordict_reset)

    def _reset_on_native_autoreset(
        self, tensordict: TensorDictBase, tensordict_reset: TensorDictBase
    ) -> TensorDictBase:
        # The step that ended the episode has embedded the first frame of the next one.
        for key in self.embedding_keys:
            self._last[key] = tensordict_reset.get(key).clone()
        return tensordict_reset

    def transform_observation_spec(self, observation_spec: Composite) -> Composite:
        observation_spec = observation_spec.clone()
        frames = {}
        for camera in self.cameras:
            spec = observation_spec.get(camera, None)
            if spec is None:
                raise KeyError(
                    f"{type(self).__name__}: the environment has no observation {camera!r}; it has "
                    f"{sorted(map(str, observation_spec.keys(True, True)))}. Name the frames with "
                    "in_keys=, or build it with from_pixels=True."
                )
            frames[camera] = spec
        if self.del_keys:
            for camera in frames:
                del observation_spec[camera]
        for camera, kept in zip(self.cameras, self.tensor_pixels_keys, strict=False):
            observation_spec[kept] = frames[camera].clone()
        for camera, spec in frames.items():
            count = len(self.cameras) if self.stack_images else 1
            observation_spec[self.embedding_key(camera)] = Unbounded(
                shape=(*spec.shape[:-3], count * self.dim), device=spec.device, dtype=torch.float32
            )
        return observation_spec

    # -- in a replay buffer, or called on a tensordict --------------------------------------------

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Embed frames in a copy of the tensordict, those of ("next", key) too where there are any."""
        tensordict = tensordict.copy()
        keys = list(self.in_keys)
        if not any(map(is_next, keys)):
            present = set(tensordict.keys(True, True))
            keys += [next_key(k) for k in keys if next_key(k) in present]
        self._embed_keys(tensordict, keys)
        return tensordict

    # -- where the frozen weights live ------------------------------------------------------------

    def clone(self) -> Self:
        """Shares the encoder, and leaves it where it is, whatever ``.to()`` is told, until it is part of an
        environment: TorchRL makes a clone for every look at a transform's ``parent``, and moves it to the
        device of the environment that it puts it into."""
        clone = super().clone()
        clone.__dict__["_last"] = {}
        clone.shares_encoder = True
        return clone

    def _apply(self, fn: Callable, recurse: bool = True) -> Self:
        moves = not self.shares_encoder or is_attached(self)
        super()._apply(fn, recurse and moves)
        if self.freeze and moves:
            self.encoder._apply(fn)
        self.__dict__["_last"] = {key: fn(z).to(z.dtype) for key, z in self._last.items()}
        return self

    def share_memory(self) -> Self:
        """Put the weights in memory shared between processes."""
        if self.freeze:
            self.encoder.share_memory()
        return super().share_memory()

    def get_extra_state(self) -> dict[str, Any]:
        return self.encoder.state_dict() if self.freeze and self.save_encoder else {}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        if state:
            self.encoder.load_state_dict(state)

    def state_dict(
        self, *args: Any, destination: Any = None, prefix: str = "", keep_vars: bool = False
    ) -> dict[str, Any]:
        state = super().state_dict(
            *args, destination=destination, prefix=prefix, keep_vars=keep_vars
        )
        if not (self.freeze and self.save_encoder):
            state.pop(f"{prefix}_extra_state", None)  # empty: no key at all
        return state

    def _load_from_state_dict(
        self, state_dict: dict, prefix: str, metadata: dict, strict: bool, missing: list, *rest: Any
    ) -> None:
        super()._load_from_state_dict(state_dict, prefix, metadata, strict, missing, *rest)
        key = f"{prefix}_extra_state"
        if key in missing:
            missing.remove(key)

    def __getstate__(self) -> dict:
        last = {key: z.clone() for key, z in self._last.items()}  # a copy in mid-episode goes on
        return {**super().__getstate__(), "_last": last}

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.in_keys} -> {self.out_keys})"


def _from_old_names(
    encoder: EncoderLike,
    in_keys: NestedKey | Sequence[NestedKey] | None,
    model_name: str | None,
    keys_in: Sequence[NestedKey] | None,
) -> tuple[EncoderLike, NestedKey | Sequence[NestedKey]]:
    """``encoder`` and ``in_keys``, also where earlier interfaces' names were used."""
    if keys_in is not None:
        in_keys = [k.removeprefix("next_") if isinstance(k, str) else k for k in keys_in]
        warnings.warn(
            f"keys_in={list(keys_in)} is deprecated: write in_keys={in_keys}.",
            DeprecationWarning,
            stacklevel=3,
        )
    if model_name is not None:
        if encoder is not None:
            raise ValueError(f"both encoder={encoder!r} and model_name={model_name!r}: give one.")
        encoder = model_name
    return encoder, ["pixels"] if in_keys is None else in_keys


def _make_encoder(
    encoder: EncoderLike,
    where: dict[str, Any],
    freeze: bool,
    size: int | None,
    channels_last: bool,
    frozen_options: dict[str, Any],
) -> Encoder:
    """The encoder of a VIPTransform; ``where`` has :func:`load_vip`'s options for a name or path."""
    if not isinstance(encoder, nn.Module):
        encoder = load_vip(encoder, **where)
    elif any(where.values()):
        raise ValueError(
            f"{', '.join(where)} are for names and paths; encoder is a {type(encoder).__name__}."
        )
    _check_unused(encoder, freeze, size, frozen_options)
    if freeze:
        if isinstance(encoder, FrozenEncoder | EncoderClient):
            return encoder
        return FrozenEncoder(
            encoder, image_size=size, channels_last=channels_last, **frozen_options
        )
    if not isinstance(encoder, VIPEncoder):
        encoder = VIPEncoder(encoder, image_size=size or 224)
    if size and size != encoder.image_size:
        raise ValueError(f"size={size} for an encoder of {encoder.image_size} pixels.")
    return encoder


def _check_unused(
    encoder: nn.Module, freeze: bool, size: int | None, frozen_options: dict[str, Any]
) -> None:
    """ValueError for options that this encoder would not follow."""
    frozen_elsewhere = isinstance(encoder, FrozenEncoder | EncoderClient)
    if frozen_elsewhere and not freeze:
        raise ValueError(
            f"freeze=False for a {type(encoder).__name__}, which is frozen: give its network."
        )
    unused = []
    if frozen_elsewhere or not freeze:
        unused += [f"{name}={value}" for name, value in frozen_options.items() if value]
    if frozen_elsewhere and size and size != encoder.image_size:
        unused.append(f"size={size}")
    if unused:
        raise ValueError(
            f"{', '.join(unused)} goes with an encoder that is frozen here: give it to the "
            "FrozenEncoder or EncoderServer, or leave freeze=True."
        )
