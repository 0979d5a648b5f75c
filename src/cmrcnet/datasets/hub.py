"""Files of a dataset repository on the Hugging Face Hub: which commit, how large, which checksum, and the download.

`huggingface_hub` (the extra `fetch`) is imported when a hub is made, not before.
"""

from __future__ import annotations

import errno
import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from cmrcnet.errors import DownloadFailed, MissingExtra, MissingInput

_AT_ONCE = 1 << 22


@dataclass(frozen=True)
class RemoteFile:
    """Size and checksum of a file on the hub.

    Parameters
    ----------
    path : str
        In the repository.
    size : int
        Bytes.
    kind : {"sha256", "git"}
        `checksum` is the SHA-256 of the content (large files) or git's blob hash (small ones).
    checksum : str
        Hexadecimal.
    """

    path: str
    size: int
    kind: str
    checksum: str

    def matches(self, file: Path) -> bool:
        """Whether a local file has this size and checksum."""
        return file.is_file() and file.stat().st_size == self.size and self._checksum_of(file) == self.checksum

    def _checksum_of(self, file: Path) -> str:
        if self.kind == "sha256":
            return sha256_of(file)
        # a git blob hash is the SHA-1 of a short header and the content
        return _digest(hashlib.sha1(f"blob {self.size}\0".encode(), usedforsecurity=False), file)


class Hub(Protocol):
    """Source of files."""

    def commit(self, revision: str | None) -> str:
        """The commit that a revision stands for; the newest when none is named."""
        ...

    def describe(self, commit: str, paths: Sequence[str]) -> list[RemoteFile]:
        """Size and checksum of each path, in this order."""
        ...

    def download(self, commit: str, path: str, folder: Path) -> None:
        """Fetch one file to the same path under `folder`."""
        ...


class HuggingFaceHub:
    """A dataset repository on the Hugging Face Hub.

    Parameters
    ----------
    repository : str
        Such as MahmoodLab/hest.

    Raises
    ------
    MissingExtra
    """

    def __init__(self, repository: str) -> None:
        try:
            import huggingface_hub
        except ImportError as error:
            raise MissingExtra("huggingface_hub", f"Fetching {repository}", "'cmrcnet[fetch]'") from error
        self.repository = repository
        self._library = huggingface_hub
        self._api = huggingface_hub.HfApi()

    def commit(self, revision: str | None) -> str:
        """The commit that a revision stands for; the newest when none is named."""
        with self._translated_errors(f"the list of {self.repository}"):
            return str(self._api.dataset_info(self.repository, revision=revision).sha)

    def describe(self, commit: str, paths: Sequence[str]) -> list[RemoteFile]:
        """Size and checksum of each path, in this order.

        Raises
        ------
        MissingInput, DownloadFailed
        """
        with self._translated_errors(f"the list of {self.repository}"):
            found = self._api.get_paths_info(self.repository, list(paths), revision=commit, repo_type="dataset")
        by_path = {file.path: file for file in found}
        missing = [path for path in paths if path not in by_path]
        if missing:
            raise MissingInput(
                f"{self.repository}/{missing[0]}", "The file", f"it is not in the repository at {commit[:12]}"
            )
        files = []
        for path in paths:
            file: Any = by_path[path]
            large = getattr(file, "lfs", None)
            kind, checksum = ("sha256", large.sha256) if large is not None else ("git", file.blob_id)
            files.append(RemoteFile(path, int(file.size), kind, str(checksum)))
        return files

    def download(self, commit: str, path: str, folder: Path) -> None:
        """Fetch one file to the same path under `folder`; an interrupted download is resumed.

        Raises
        ------
        DownloadFailed
        """
        with self._translated_errors(path):
            self._library.hf_hub_download(
                self.repository, path, repo_type="dataset", revision=commit, local_dir=str(folder)
            )

    @contextmanager
    def _translated_errors(self, what: str) -> Iterator[None]:
        """Translate the library's errors."""
        errors = self._library.errors
        try:
            yield
        except (errors.GatedRepoError, errors.RepositoryNotFoundError, errors.LocalTokenNotFoundError) as error:
            raise DownloadFailed.access(
                self.repository, f"https://huggingface.co/datasets/{self.repository}"
            ) from error
        except errors.RevisionNotFoundError as error:
            raise DownloadFailed(what, "the repository has no such revision") from error
        except errors.HfHubHTTPError as error:
            status = getattr(getattr(error, "response", None), "status_code", None)
            if status in (401, 403):
                raise DownloadFailed.access(
                    self.repository, f"https://huggingface.co/datasets/{self.repository}"
                ) from error
            raise DownloadFailed(what, f"the hub answered with status {status}") from error
        except (errors.EntryNotFoundError, getattr(errors, "HTTPError", ConnectionError), OSError) as error:
            if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EACCES, errno.EROFS):
                raise  # from the local disk, not from the hub
            lines = str(error).splitlines()
            raise DownloadFailed(what, lines[0][:160].rstrip(".") if lines else "the hub was not reached") from error


def sha256_of(file: Path) -> str:
    """SHA-256 of a file's content, hexadecimal."""
    return _digest(hashlib.sha256(), file)


def _digest(digest: hashlib._Hash, file: Path) -> str:
    with file.open("rb") as content:
        while block := content.read(_AT_ONCE):
            digest.update(block)
    return digest.hexdigest()
