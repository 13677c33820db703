"""Checkpoints: a folder of ``model.safetensors`` and ``config.json``; the official weights.

Nothing is unpickled from outside except with ``weights_only=True``, and a file that is damaged,
foreign or of other shapes is an error that names it, never a half-loaded network.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import uuid
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from torchrl_vip import hub
from torchrl_vip.encoders import ENCODERS, VIPEncoder
from torchrl_vip.files import write_whole

ASSETS = Path(__file__).parent / "assets"
# Name -> folder under assets/ of a checkpoint that comes with the package.
BUNDLED = {name: ASSETS / name for name in ("efficientnet_lite0", "tiny")}
DEFAULT = "efficientnet_lite0"
FILES = ("model.safetensors", "config.json")
"""Of a checkpoint. Neither can hold code, so that they may come from a stranger."""

# The published ResNet-50, as TorchRL's VIPTransform downloads it.
OFFICIAL_URL = "https://pytorch.s3.amazonaws.com/models/rl/vip/model.pt"
OFFICIAL_LICENCE = "CC BY-NC 4.0 (Meta Platforms, facebookresearch/vip)"
_licence_said = False

# Larger ones are a mistake, or an attack on the machine's memory.
LIMITS = {"dim": 16_384, "image_size": 2_048, "config.json": 10_000_000}
"""Numbers of the embedding, pixels, bytes."""
CALIBRATED = ("reward_scale", "reward_scale_other", "success_threshold", "typical_distance")
"""Entries of config.json that rewards are computed with."""


class CheckpointError(RuntimeError):
    """A checkpoint that cannot be opened; the message names the file and the reason."""


def load_vip(
    source: str | os.PathLike | None = None,
    *,
    revision: str | None = None,
    download: bool = False,
    download_path: str | os.PathLike | None = None,
    weights: str | None = None,
) -> VIPEncoder:
    """Open a VIP encoder, in evaluation mode, on the CPU.

    Args:
        source: a bundled checkpoint's name, the folder of one (``model.safetensors`` and
            ``config.json``), an official ``model.pt``, or a repository of the Hugging Face Hub,
            ``"user/repo"``, where no such path exists. None is the bundled default, or with
            ``download=True`` the official ResNet-50.
        revision: of a repository of the Hub: a branch, a tag or a commit. None is its main branch.
        download: fetch the official weights (94 MB, ResNet-50, CC BY-NC 4.0) unless cached.
        download_path: folder of that cache; by default torch.hub's.
        weights: ``"random"`` gives the named backbone untrained; there is no other way to random
            weights.

    Returns:
        A :class:`VIPEncoder`; what is known of the weights is in its ``config``.

    Raises:
        ValueError: a name without weights; the message lists the choices. A ``revision`` of what is no
            repository.
        CheckpointError: a missing, damaged, foreign or mis-sized file; a repository that the Hub does not
            have, or that cannot be reached.

    Examples:
        >>> vip = load_vip()
        >>> vip(torch.zeros(120, 160, 3, dtype=torch.uint8)).shape
        torch.Size([512])
    """
    if weights not in (None, "random"):
        raise ValueError(f"weights is {weights!r}; wanted None (trained ones) or 'random'.")
    on_hub = hub.is_repository(source) and not Path(str(source)).exists()
    if revision is not None and not on_hub:
        raise ValueError(
            f"revision={revision!r} goes with a repository of the Hub, 'user/repo'; got {source!r}, and "
            "a name of the package or a path that exists wins."
        )
    if weights == "random":
        if download:
            raise ValueError("weights='random' and download=True: give one of them.")
        return VIPEncoder(DEFAULT if source is None else str(source)).eval()
    if download:
        if source not in (None, "resnet50"):
            raise ValueError(
                f"download=True fetches the official ResNet-50 only, not {source!r}: "
                "pass 'resnet50', or leave download out to open a local checkpoint."
            )
        return load_official(download_official(download_path))
    if source in ENCODERS and source not in BUNDLED:
        raise ValueError(
            f"no weights for {source!r} come with the package (bundled: {', '.join(BUNDLED)}). "
            "Pass a checkpoint's path; or 'resnet50' with download=True for the official weights "
            "(CC BY-NC 4.0); or weights='random' for an untrained network."
        )
    if on_hub:
        return _load_from_hub(str(source), revision)
    if source is None or source in BUNDLED:
        return _load_folder(BUNDLED[source or DEFAULT])
    return _load_path(source)


def _load_path(source: str | os.PathLike) -> VIPEncoder:
    path = Path(source)
    if path.is_dir():
        return _load_folder(path)
    if path.is_file() and path.suffix in (".pt", ".pth"):
        return load_official(path)
    if path.is_file() and path.name == "model.safetensors":
        return _load_folder(path.parent)
    if path.suffix or path.name != str(source):  # a path, no name
        raise CheckpointError(
            f"{path} {'is no checkpoint' if path.exists() else 'does not exist'}: wanted a folder "
            "(model.safetensors and config.json) or an official model.pt."
        )
    raise ValueError(
        f"{str(source)!r} is neither a bundled checkpoint ({', '.join(BUNDLED)}), nor a checkpoint "
        "folder (model.safetensors and config.json), nor an official model.pt. Other choices: "
        "'resnet50' with download=True; a repository of the Hub, 'user/repo'; a name of "
        f"{', '.join(ENCODERS)} with weights='random'."
    )


def _load_from_hub(repository: str, revision: str | None) -> VIPEncoder:
    try:
        folder = hub.download(repository, FILES, revision)
    except ImportError as error:
        raise CheckpointError(
            f"{repository} does not exist here. To open it as a repository of the Hugging Face Hub: "
            f"{hub.INSTALL}. Or elsewhere: {hub.command(repository)}, and give that folder."
        ) from error
    except hub.HubError as error:
        raise CheckpointError(f"{repository} does not exist here, and {error}.") from error
    return _load_folder(folder)


def save_vip(
    encoder: VIPEncoder,
    path: str | os.PathLike,
    *,
    dtype: torch.dtype | None = None,
    push_to: str | None = None,
    private: bool | None = None,
) -> Path:
    """Write an encoder as a checkpoint folder; each file appears whole or not at all.

    Args:
        encoder: with a backbone named in ``ENCODERS``.
        path: the folder, made if need be.
        dtype: of the stored floating-point weights, e.g. ``torch.float16``; None keeps theirs.
        push_to: a repository of the Hugging Face Hub, ``"user/repo"``, to upload the folder's checkpoint
            to, with its README.md (the model card) where there is one. It is made if need be.
        private: whether a repository that ``push_to`` makes is; None is the Hub's default, which is public
            unless your organisation says otherwise.

    Returns:
        The folder.

    Raises:
        ValueError: a backbone without a name, which could not be rebuilt from config.json; values that are
            not finite, in this dtype; a ``push_to`` that is no "user/repo".
        CheckpointError: a config that no checkpoint may have, such as a negative ``reward_scale``; an
            upload that failed, when the folder is written.
        ImportError: ``push_to`` without huggingface_hub; nothing is written.
        TypeError: no VIPEncoder, such as a FrozenEncoder, which lacks the batch norm it has folded.
        OSError: no room; the checkpoint of before stays.
    """
    if not isinstance(encoder, VIPEncoder):
        raise TypeError(
            f"save_vip of a {type(encoder).__name__}; wanted the VIPEncoder, as trained or loaded."
        )
    if push_to is not None:
        if not hub.is_repository(push_to):
            raise ValueError(f"push_to={push_to!r}; wanted a repository of the Hub, 'user/repo'.")
        hub.require_hub()
    config = config_of(encoder)
    state = {
        k: (v.to(dtype) if dtype and v.is_floating_point() else v).contiguous().cpu()
        for k, v in encoder.state_dict().items()
    }
    for name, value in state.items():
        if not value.isfinite().all():
            raise ValueError(f"{name} has values that are not finite as {value.dtype}.")
    path = Path(path)
    # Before anything is written: a config that cannot be leaves the old checkpoint alone.
    try:
        _check_config(config)
    except ValueError as error:
        raise CheckpointError(f"{path} is not written: {error}.") from error
    text = json.dumps(config, indent=2) + "\n"
    path.mkdir(parents=True, exist_ok=True)
    write_whole(path / "model.safetensors", lambda part: save_file(state, part))
    write_whole(path / "config.json", lambda part: part.write_text(text))
    if push_to is not None:
        _push(path, push_to, private)
    return path


def _push(path: Path, repository: str, private: bool | None) -> None:
    try:
        hub.upload(path, repository, [*FILES, "README.md"], private=private)
    except hub.HubError as error:
        raise CheckpointError(
            f"the checkpoint is saved in {path}, but not uploaded: {error}. Later: hf upload {repository} "
            f"{path}"
        ) from error


def config_of(encoder: VIPEncoder) -> dict[str, Any]:
    """What a checkpoint's config.json says of an encoder; :func:`build_encoder` is the way back.

    Raises:
        ValueError: a backbone without a name, which could not be rebuilt.
    """
    if encoder.name is None:
        raise ValueError(
            "a checkpoint needs a backbone named in ENCODERS, which load_vip can rebuild; got "
            f"{type(encoder.backbone).__name__}. Add its factory to torchrl_vip.ENCODERS."
        )
    shape = {
        "backbone": encoder.name,
        "dim": encoder.dim,
        "head": not isinstance(encoder.head, nn.Identity),
        "image_size": encoder.image_size,
    }
    return shape | encoder.config | shape  # the shape's entries first, and the encoder's own


def build_encoder(config: Mapping[str, Any]) -> VIPEncoder:
    """An encoder by a checkpoint's config.json, in evaluation mode, its weights yet to be loaded.

    Raises:
        KeyError: an entry that is missing.
        ValueError, TypeError: an unknown backbone, or sizes and numbers that no checkpoint can have.
    """
    shape = ("backbone", "dim", "head", "image_size")
    name, dim, head, size = (config[k] for k in shape)
    if name not in ENCODERS:
        raise ValueError(f"backbone {name!r} is none of {', '.join(ENCODERS)}")
    _check_config(config)
    extra = {k: v for k, v in config.items() if k not in shape}
    return VIPEncoder(name, dim=dim if head else None, image_size=size, config=extra).eval()


def weights_digest(network: nn.Module, *also: object) -> str:
    """SHA-256, in hexadecimal, of a network's weights in their order (as float32) and of ``also``."""
    sha = hashlib.sha256("".join(map(repr, also)).encode())
    for weight in network.state_dict().values():
        sha.update(weight.float().cpu().numpy().tobytes())
    return sha.hexdigest()


def _load_folder(path: Path) -> VIPEncoder:
    model_file, config_file = path / "model.safetensors", path / "config.json"
    for file in (model_file, config_file):
        if not file.is_file():
            raise CheckpointError(
                f"{file} is missing: a checkpoint folder holds model.safetensors and config.json."
            )
    try:
        if (length := config_file.stat().st_size) > LIMITS["config.json"]:
            raise ValueError(f"{length} bytes; wanted {LIMITS['config.json']} at most")
        encoder = build_encoder(json.loads(config_file.read_text()))
    except KeyError as error:
        raise CheckpointError(
            f"{config_file} has no entry {error}: not a VIP checkpoint."
        ) from error
    except RecursionError as error:
        raise CheckpointError(f"{config_file} cannot be used: it is nested too deeply.") from error
    except (ValueError, TypeError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{config_file} cannot be used: {error}.") from error
    try:
        state = load_file(model_file)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{model_file} is no readable safetensors file (damaged or cut short?): {error}."
        ) from error
    return _load_state(encoder, state, model_file)


def _check_config(config: Mapping[str, Any]) -> None:
    """ValueError for sizes and calibrated numbers that no checkpoint can have."""
    for key in ("dim", "image_size"):
        value = config[key]
        if type(value) is not int or value < 1:
            raise ValueError(f"{key} is {value!r}; wanted a positive integer")
        if value > LIMITS[key]:
            raise ValueError(f"{key} is {value}; wanted {LIMITS[key]} at most")
    for key in CALIBRATED:
        value = config.get(key)
        if value is None:
            continue
        if type(value) not in (int, float) or not (math.isfinite(value) and value > 0):
            raise ValueError(
                f"{key} is {value!r}; wanted a finite number above 0, or no such entry"
            )


def _load_state(encoder: VIPEncoder, state: dict[str, Tensor], file: Path) -> VIPEncoder:
    """Fill ``encoder`` only when every name, shape and value fits."""
    expected = encoder.state_dict()
    reasons = [f"lacks {k}" for k in expected if k not in state]
    reasons += [f"has an unknown {k}" for k in state if k not in expected]
    reasons += [
        f"has {k} of shape {tuple(v.shape)} where {tuple(expected[k].shape)} is wanted"
        for k, v in state.items()
        if k in expected and v.shape != expected[k].shape
    ]
    reasons += [
        f"has values in {k} that are not finite"
        for k, v in state.items()
        if v.is_floating_point() and not v.isfinite().all()
    ]
    if reasons:
        more = f" (and {len(reasons) - 3} more)" if len(reasons) > 3 else ""
        raise CheckpointError(
            f"{file} does not fit a {encoder.name} of dim {encoder.dim}: it "
            + ", ".join(reasons[:3])
            + more
            + "."
        )
    encoder.load_state_dict({k: v.to(expected[k].dtype) for k, v in state.items()})
    return encoder.eval()


def load_official(path: str | os.PathLike) -> VIPEncoder:
    """Open the official ``model.pt``: ``{"vip": state dict}`` with names ``module.convnet.*``.

    Raises:
        CheckpointError: missing, damaged or of another layout.
    """
    path = Path(path)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises many types for a bad file
        raise CheckpointError(
            f"{path} cannot be opened as an official VIP model.pt (damaged, cut short or "
            f"foreign?): {str(error).splitlines()[0] if str(error) else type(error).__name__}"
        ) from error
    state = content.get("vip") if isinstance(content, dict) else None
    if not isinstance(state, dict):
        raise CheckpointError(f"{path} has no 'vip' state dict: not an official VIP model.pt.")
    prefix, converted = "module.convnet.", {}
    for key, value in state.items():
        if isinstance(value, Tensor) and str(key).startswith(prefix):
            key = key.removeprefix(prefix)
            converted[f"head.{key[3:]}" if key.startswith("fc.") else f"backbone.{key}"] = value
    encoder = VIPEncoder(
        "resnet50",
        dim=1024,
        image_size=224,
        config={"training_data": "Ego4D", "licence": OFFICIAL_LICENCE, "source": OFFICIAL_URL},
    )
    _load_state(encoder, converted, path)
    _say_licence()
    return encoder


def _say_licence() -> None:
    global _licence_said
    if not _licence_said:
        _licence_said = True
        warnings.warn(
            f"the official VIP weights are licensed {OFFICIAL_LICENCE}: not for commercial use.",
            stacklevel=4,
        )


def download_official(folder: str | os.PathLike | None = None, *, url: str | None = None) -> Path:
    """Path of the official model.pt, downloaded with a progress bar unless it is there.

    The file appears whole or not at all, also when several processes download at once: each writes
    a temporary file of its own and renames it.

    Raises:
        CheckpointError: it could not be downloaded; the message says how to go on without.
    """
    url = url or OFFICIAL_URL
    folder = Path(folder) if folder else Path(torch.hub.get_dir()) / "checkpoints"
    path = folder / "vip_resnet50.pt"
    if path.is_file():
        return path
    temporary = folder / f".{path.name}.{uuid.uuid4().hex}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(url, str(temporary), progress=True)
        # A connection that closed early leaves half a file and no error: see that it opens.
        torch.load(temporary, map_location="cpu", weights_only=True)
        os.replace(temporary, path)
    except Exception as error:  # URLError, and what torch.load raises for a bad file
        raise CheckpointError(
            f"could not download the official VIP weights from {url} to {path}: "
            f"{str(error).splitlines()[0] if str(error) else type(error).__name__}. Without "
            "the internet: use the bundled checkpoint (leave download out), or fetch model.pt on "
            f"another machine, put it at {path}, and call again; or pass its path."
        ) from error
    finally:
        temporary.unlink(missing_ok=True)
    return path
