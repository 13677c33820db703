"""Checkpoints on the Hugging Face Hub: which names are repositories, reading one, writing one.

The work is huggingface_hub's, an optional package that is imported where it is needed.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

INSTALL = 'pip install "torchrl-vip[hub]"'
LIBRARY = "torchrl_vip"
"""What the Hub is told that the request comes from."""
FILE_ENDINGS = (".bin", ".ckpt", ".json", ".pt", ".pth", ".safetensors")
"""A name that ends so is a file's: "runs/model.pt" is no repository."""


class HubError(RuntimeError):
    """A repository that could not be read or written; the message says why, and what to do."""


def is_repository(source: object) -> bool:
    """Whether ``source`` reads as "user/repo". A ``Path``, "./folder" or "a/b/c" does not."""
    return (
        isinstance(source, str)
        and re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", source) is not None
        and not source.endswith(FILE_ENDINGS)
    )


def command(repository: str) -> str:
    """What downloads a repository to a folder, on a machine that can."""
    return f"hf download {repository} --local-dir {repository.split('/')[1]}"


def require_hub() -> None:
    """Raise ImportError, with the install command, unless huggingface_hub is installed."""
    try:
        import huggingface_hub  # noqa: F401
    except ImportError as error:
        raise ImportError(f"the Hugging Face Hub needs huggingface_hub: {INSTALL}") from error


def download(repository: str, files: Sequence[str], revision: str | None = None) -> Path:
    """Folder of some files of a repository, all of one commit, in the cache of huggingface_hub.

    Args:
        repository: "user/repo".
        files: their names; nothing else is downloaded.
        revision: a branch, a tag or a commit; None is the main branch.

    Raises:
        ImportError: huggingface_hub is not installed.
        HubError: no such repository, revision or file, no access, or no connection and not in the cache.
    """
    require_hub()
    from huggingface_hub import snapshot_download

    try:
        folder = snapshot_download(
            repository, revision=revision, allow_patterns=list(files), library_name=LIBRARY
        )
    except Exception as error:  # errors of HTTP, of the file system, of names: of many types
        raise HubError(_reason(error, repository, revision)) from error
    if missing := [name for name in files if not (Path(folder) / name).is_file()]:
        raise HubError(
            f"the Hub's {_named(repository, revision)} has no {' and no '.join(missing)}. Only "
            f"{' and '.join(files)} are read from the Hub, as neither can hold code"
        )
    return Path(folder)


def upload(
    folder: str | os.PathLike, repository: str, files: Sequence[str], *, private: bool | None = None
) -> None:
    """Write some files of a folder to a repository, in one commit.

    Args:
        folder: where the files are; one that is missing there is left out.
        repository: "user/repo", made if need be.
        files: their names.
        private: whether a new repository is; None is public, unless the organisation says otherwise.

    Raises:
        ImportError: huggingface_hub is not installed.
        HubError: no right to write there, or no connection.
    """
    require_hub()
    from huggingface_hub import HfApi

    api = HfApi(library_name=LIBRARY)
    try:
        api.create_repo(repository, private=private, exist_ok=True)
        api.upload_folder(
            repo_id=repository,
            folder_path=Path(folder),
            allow_patterns=list(files),
            commit_message="Upload a VIP checkpoint",
        )
    except Exception as error:  # as in download
        raise HubError(_reason(error, repository)) from error


def _named(repository: str, revision: str | None) -> str:
    return repository if revision is None else f"{repository} at revision {revision!r}"


def _reason(error: Exception, repository: str, revision: str | None = None) -> str:
    """What an error of huggingface_hub means, and what to do."""
    from huggingface_hub import errors

    status = getattr(getattr(error, "response", None), "status_code", None)
    log_in = "log in (hf auth login, or a token in HF_TOKEN)"
    if isinstance(error, errors.GatedRepoError):
        return f"{repository} is gated on the Hub: ask for access on its page there, and {log_in}"
    if isinstance(error, errors.RevisionNotFoundError):
        return (
            f"the Hub's {repository} has no revision {revision!r}: give a branch, a tag or a commit"
        )
    if isinstance(error, errors.RepositoryNotFoundError):  # the Hub's answer is the same for both
        return (
            f"the Hub has no repository {repository}, or it is private: check the name, and "
            f"{log_in} if it is"
        )
    if status in (401, 403):
        return f"the Hub refuses access to {repository} ({_first_line(error)}): {log_in}"
    if isinstance(error, errors.LocalEntryNotFoundError):
        return (
            f"the Hub cannot be reached ({_first_line(error.__cause__ or error)}), nor is "
            f"{_named(repository, revision)} in the cache: connect, unset HF_HUB_OFFLINE, or elsewhere "
            f"{command(repository)}, and give that folder"
        )
    return f"the Hub's {_named(repository, revision)} cannot be used: {_first_line(error)}"


def _first_line(error: BaseException) -> str:
    lines = (getattr(error, "server_message", None) or str(error)).strip().splitlines()
    return lines[0].rstrip(". ") if lines else type(error).__name__
