"""Networks that embed frames: preprocessing, backbone, linear head.

``VIPEncoder`` is what is trained and saved; ``FrozenEncoder`` is the same map made fast for use.
"""

from __future__ import annotations

import copy
import math
import os
import shutil
import warnings
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torchvision.transforms.v2.functional import gaussian_blur

from torchrl_vip.backbones import ENCODERS, fold_batch_norm, foldable
from torchrl_vip.functional import check_range, preprocess, to_chw
from torchrl_vip.moved import moved

CPU_CHUNK = 16  # frames
__getattr__ = moved(__name__, "torchrl_vip.merging", ["merge_heads"])


class VIPEncoder(nn.Module):
    """Images to embeddings: preprocessing, backbone and a linear head.

    Weights are random until something loads or trains them; :func:`torchrl_vip.load_vip` opens
    trained ones.

    Args:
        backbone: a name in ``ENCODERS``, or any module that maps preprocessed frames (float
            ``[N, 3, S, S]``, ImageNet-normalised) to ``[N, F]``.
        dim: size D of the embedding, made by a linear head; None leaves the head out (D = F).
        image_size: side S of the frames that the backbone sees, in pixels.
        config: what is known of the weights (training data, licence, ``reward_scale``,
            ``success_threshold``, ...): the further entries of a checkpoint's config.json.

    Raises:
        ValueError: a name that is not in ``ENCODERS``, or a backbone that does not return
            ``[N, F]``.

    Examples:
        >>> encoder = VIPEncoder("resnet18", dim=64, image_size=112).eval()
        >>> encoder(torch.zeros(2, 120, 160, 3, dtype=torch.uint8)).shape
        torch.Size([2, 64])
    """

    def __init__(
        self,
        backbone: str | nn.Module = "resnet18",
        *,
        dim: int | None = None,
        image_size: int = 224,
        config: dict | None = None,
    ):
        super().__init__()
        self.name = backbone if isinstance(backbone, str) else None
        if isinstance(backbone, str):
            if backbone not in ENCODERS:
                raise ValueError(
                    f"unknown backbone {backbone!r}; wanted one of {', '.join(ENCODERS)}, "
                    "or an nn.Module."
                )
            backbone = ENCODERS[backbone]()
        self.backbone = backbone
        known = self.name and getattr(backbone, "out_features", None)
        features = known or embedding_dim(backbone, image_size)
        self.head = nn.Identity() if dim is None else nn.Linear(features, dim)
        self.dim = dim or features
        self.image_size = image_size
        self.config = dict(config or {})

    def embed(self, frames: Tensor) -> Tensor:
        """Preprocessed frames, float ``[N, 3, S, S]``, to ``[N, D]``."""
        frozen = not any(p.requires_grad for p in self.backbone.parameters())
        if frozen and not self.backbone.training and not torch.compiler.is_compiling():
            # On a CPU a few frames at a time stay in its cache: 2.6 times as fast for Lite0 at 160².
            size = CPU_CHUNK if frames.device.type == "cpu" else max(len(frames), 1)
            return self.head(torch.cat([self.backbone(part) for part in frames.split(size)]))
        return self.head(self.backbone(frames))

    def forward(self, images: Tensor, *, channel_dim: int | None = None) -> Tensor:
        """Embed images.

        Args:
            images: ``[*B, 3, H, W]`` or ``[*B, H, W, 3]``, uint8 0-255 or floating point in [0, 1].
            channel_dim: -3 or -1 where the shape leaves the layout open.

        Returns:
            ``[*B, D]``, in the weights' dtype (or what autocast makes of it).

        Raises:
            ValueError, TypeError: see ``functional.to_chw`` and ``functional.check_range``.
        """
        check_range(images)
        frames = preprocess(images, self.image_size, channel_dim=channel_dim)
        if not torch.is_autocast_enabled(frames.device.type):
            weights = (p for p in self.backbone.parameters() if p.is_floating_point())
            frames = frames.to(next(weights, frames).dtype)
        batch = frames.shape[:-3]
        return self.embed(frames.flatten(0, -4) if batch else frames[None]).reshape(
            *batch, self.dim
        )


def with_fine_cells(encoder: VIPEncoder) -> VIPEncoder:
    """The same map by a backbone that sees finer cells too, which its head makes nothing of yet.

    Args:
        encoder: with a backbone NAME for which there is a NAME_cells, and a linear head.

    Returns:
        A new encoder, whose head has zeros for the new features; one that sees them already as it is.

    Raises:
        ValueError: another backbone, or no linear head.
    """
    name = str(encoder.name)
    if name.endswith("_cells"):
        return encoder
    old = encoder.head
    if f"{name}_cells" not in ENCODERS or not isinstance(old, nn.Linear):
        known = ", ".join(n.removesuffix("_cells") for n in ENCODERS if n.endswith("_cells"))
        raise ValueError(
            f"finer cells of backbone {name!r}, head {type(old).__name__}: wanted one of {known} "
            "with a linear head."
        )
    fine = VIPEncoder(
        f"{name}_cells", dim=encoder.dim, image_size=encoder.image_size, config=encoder.config
    )
    fine.backbone.load_state_dict(encoder.backbone.state_dict())
    head = fine.head
    assert isinstance(head, nn.Linear)  # as a dim was given
    with torch.no_grad():
        head.weight.zero_()
        head.weight[:, : old.in_features] = old.weight
        head.bias.copy_(old.bias)
    return fine


def embedding_dim(network: nn.Module, image_size: int) -> int:
    """D of a module that maps ``[N, 3, S, S]`` to ``[N, D]``: its ``dim``, or else by trying.

    Raises:
        ValueError: it returns something of another rank.
    """
    dim = getattr(network, "dim", None)
    if isinstance(dim, int):
        return dim
    reference = next((p for p in network.parameters() if p.is_floating_point()), torch.empty(0))
    side = (3, image_size, image_size)
    modes = [(module, module.training) for module in network.modules()]  # may be mixed
    network.eval()
    try:
        with torch.no_grad():
            try:  # No frame at all, so that a network that counts its frames is not misled.
                z = network(reference.new_zeros(0, *side))
                check_embedding(z, 0)
            except Exception:  # many modules refuse an empty batch; a real fault shows again below
                z = network(reference.new_zeros(1, *side))
    finally:
        for module, training in modes:
            module.training = training
    check_embedding(z, len(z) if isinstance(z, Tensor) and z.ndim else 1)
    return z.shape[-1]


def check_embedding(z: Tensor, n: int) -> None:
    """Raise ValueError unless ``z`` is ``[n, D]``."""
    if not isinstance(z, Tensor):
        raise ValueError(f"the encoder returned {type(z).__name__}; wanted a tensor [N, D].")
    if z.ndim != 2 or z.shape[0] != n:
        raise ValueError(
            f"the encoder returned shape {tuple(z.shape)} for {n} frames; "
            f"wanted [N, D] = [{n}, D]. Flatten or pool its spatial dimensions."
        )


def inference_dtype(config: dict, device: torch.device) -> torch.dtype:
    """The fastest precision whose per-step reward on real roll-outs follows float32's.

    bfloat16 where the checkpoint's config.json records a reward correlation of at least 0.99 with
    float32 and the device computes it natively; float32 everywhere else.
    """
    if not config.get("reward_correlation", {}).get("bfloat16", 0.0) >= 0.99:  # NaN is none
        return torch.float32
    return torch.bfloat16 if native_bfloat16(device) else torch.float32


def native_bfloat16(device: torch.device) -> bool:
    """Whether the device computes bfloat16 in hardware; elsewhere it is slower than float32."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    return device.type == "cpu" and bool(torch.cpu.get_capabilities().get("avx512_bf16", False))


class FrozenEncoder(nn.Module):
    """An encoder made ready for use: evaluation mode, no gradient, fast.

    Batch norm is folded into the convolutions of the backbones in ``ENCODERS`` (in a copy; every other
    module is called as it is), weights are cast and laid out channels-last, batches are cut by
    ``chunk_size``. One image's embedding never depends on the rest of its batch.

    Args:
        encoder: a VIPEncoder, or a module from preprocessed frames ``[N, 3, S, S]`` to ``[N, D]``.
        image_size: S; None is the VIPEncoder's own, or 224.
        blur: standard deviation of a Gaussian over the preprocessed frames, in pixels of S; 0 is none.
            For rendered frames: to a network with strides a jagged edge that moves by a fraction
            of a pixel is another edge (Zhang, 2019, arXiv 1904.11486), and that noise hides the last
            centimetres before a goal. 1.5 suits the bundled encoders in simulation.
        dtype: of the network's arithmetic. None picks per device at run time, see
            :func:`inference_dtype`; torch.float32 keeps single precision. Modules that are called as
            they are run under autocast.
        channels_last: memory format of frames and folded weights.
        compile: ``torch.compile`` the network. Without a C++ compiler it falls back and says so.
        chunk_size: at most so many frames in one forward. None is all on a GPU and where ``compile`` is
            set, and 16 on a CPU, in whose cache they stay: for 64 frames 1.0 to 1.5 times as fast (Lite0
            and ResNet-50, 2 cores with AMX).

    Raises:
        ValueError: ``chunk_size`` below 1, ``blur`` below 0, or an encoder that does not return
            ``[N, D]``.
    """

    compile: bool  # type: ignore[assignment]  # the option, in place of nn.Module's method

    def __init__(
        self,
        encoder: nn.Module,
        *,
        image_size: int | None = None,
        blur: float = 0.0,
        dtype: torch.dtype | None = None,
        channels_last: bool = True,
        compile: bool = False,
        chunk_size: int | None = None,
    ):
        super().__init__()
        if blur < 0:
            raise ValueError(f"blur is {blur}; wanted 0 or a number of pixels.")
        if chunk_size is not None and chunk_size < 1:
            raise ValueError(f"chunk_size is {chunk_size}; wanted a positive number or None.")
        self.image_size = image_size or getattr(encoder, "image_size", None) or 224
        self.dim = embedding_dim(encoder, self.image_size)
        config = getattr(encoder, "config", {})
        self.config = dict(config) if isinstance(config, Mapping) else {}  # others' are objects
        self.foldable = isinstance(encoder, VIPEncoder) and foldable(encoder.backbone)
        self.head: nn.Module
        if not isinstance(encoder, VIPEncoder):
            self.backbone, self.head = encoder, nn.Identity()
        elif self.foldable:
            self.backbone = fold_batch_norm(encoder.backbone)
            self.head = copy.deepcopy(encoder.head).eval().requires_grad_(False)
        else:  # frames come preprocessed: past its forward
            self.backbone, self.head = encoder.backbone, encoder.head
        self.blur = blur
        self.dtype = dtype
        self.channels_last = channels_last
        self.compile = compile
        self.chunk_size = chunk_size
        self._network: Callable[[Tensor], Tensor] | None = None  # made at first use
        if dtype is not None and self.foldable:
            self.backbone.to(dtype)
        self.eval()

    @property
    def device(self) -> torch.device | None:
        """Where the weights are; None for an encoder without weights."""
        return next((p.device for p in self.parameters()), None)

    def forward(self, images: Tensor, *, channel_dim: int | None = None) -> Tensor:
        """Embed ``[*B, 3, H, W]`` or ``[*B, H, W, 3]`` images.

        They are moved to the weights' device and the result comes back to theirs.

        Returns:
            float32 ``[*B, D]``.

        Raises:
            ValueError, TypeError: as :meth:`VIPEncoder.forward`, and for an encoder that returns
                the wrong rank.
        """
        check_range(images)
        images = to_chw(images, channel_dim)
        batch = images.shape[:-3]
        frames = images.reshape(batch.numel(), *images.shape[-3:])
        if not len(frames):
            return torch.zeros(*batch, self.dim, device=images.device, dtype=torch.float32)
        device, size = self.device or images.device, self.chunk_size or len(frames)
        if self.chunk_size is None and not self.compile and device.type == "cpu":
            size = CPU_CHUNK
        chunks = [self._embed(chunk, device) for chunk in frames.split(size)]
        z = chunks[0] if len(chunks) == 1 else torch.cat(chunks)
        return z.to(images.device).reshape(*batch, self.dim)

    @torch.no_grad()
    def _embed(self, images: Tensor, device: torch.device) -> Tensor:
        if self.backbone.training:
            self.backbone.eval()
        network = self._prepare(device) if self._network is None else self._network
        frames = preprocess(images.to(device), self.image_size, channel_dim=-3)
        weight = next((p for p in self.backbone.parameters() if p.is_floating_point()), frames)
        layout = torch.channels_last if self.channels_last else torch.contiguous_format
        if self.blur:
            # Before the cast, and an axis at a time: a bfloat16 convolution of 17 pixels or more, in
            # channels_last, does not come back on CPUs with AMX (PyTorch 2.14).
            frames = frames.contiguous(memory_format=layout)
            side = 2 * math.ceil(2.5 * self.blur) + 1
            for kernel in ([side, 1], [1, side]):
                frames = gaussian_blur(frames, kernel, [self.blur, self.blur])
        frames = frames.to(weight.dtype, memory_format=layout)  # both in one pass
        autocast = not self.foldable and self.dtype in (torch.bfloat16, torch.float16)
        with torch.autocast(device.type, self.dtype if autocast else None, enabled=autocast):
            z = network(frames)
        check_embedding(z, len(frames))
        if isinstance(self.head, nn.Identity) and z.shape[-1] != self.dim:
            raise ValueError(
                f"the encoder returned embeddings of size {z.shape[-1]}, but its dim is {self.dim}."
            )
        weight = next(self.head.parameters(), z.new_empty(0, dtype=torch.float32))
        return self.head(z.to(weight.dtype)).to(torch.float32)

    def _prepare(self, device: torch.device) -> Callable[[Tensor], Tensor]:
        if self.foldable:
            if self.dtype is None:
                self.backbone.to(inference_dtype(self.config, device))
            if self.channels_last:
                self.backbone.to(memory_format=torch.channels_last)
        network: Callable[[Tensor], Tensor] = self.backbone
        if self.compile:
            if device.type == "cpu" and not _cxx_compiler():
                warnings.warn(
                    "compile=True needs a C++ compiler (g++ or clang++, or $CXX) and found none: "
                    "running without torch.compile.",
                    stacklevel=2,
                )
            else:
                # Frozen weights are constants to the compiler, which lays them out beforehand.
                network = torch.compile(self.backbone, options={"freezing": True})
        # Past nn.Module's registration: the backbone is not listed twice in state_dict().
        self.__dict__["_network"] = network
        return network

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> FrozenEncoder:
        self._network = None  # weights move or change type: lay out and compile anew
        before = [p.dtype for p in self.parameters()]
        super()._apply(fn, recurse)
        after = [p.dtype for p in self.parameters()]
        if after != before:
            self.dtype = after[0]  # asked for by .to(dtype), .half(), ...: no longer the policy's
        return self

    def share_memory(self) -> FrozenEncoder:
        """Put the weights, in their final precision, in memory shared between processes."""
        self._prepare(self.device or torch.device("cpu"))
        return super().share_memory()

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_network": None}  # a compiled function cannot be pickled


def _cxx_compiler() -> str | None:
    names = (os.environ.get("CXX", ""), "g++", "clang++", "c++")
    return next((found for name in names if name and (found := shutil.which(name))), None)
