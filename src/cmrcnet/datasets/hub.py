"""Files of a dataset repository on the Hugging Face Hub: which commit, how large, which checksum, and the download.

`huggingface_hub` (the extra `fetch`) is imported when a hub is made, not before.
"""

from __future__ import annotations

import errno
import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from cmrcnet.errors import DownloadFailed, MissingExtra, MissingInput
from cmrcnet.storage.hashing import file_checksum


@dataclass(frozen=True)
class RemoteFile:
    """Path in the repository, size in bytes and checksum of a file on the hub.

    The checksum is hexadecimal: the SHA-256 of the content (`kind` "sha256", large files) or git's blob hash ("git").
    """

    path: str
    size: int
    kind: str
    checksum: str

    def matches(self, file: Path) -> bool:
        """Whether a local file has this size and checksum."""
        if not file.is_file() or file.stat().st_size != self.size:
            return False
        if self.kind == "sha256":
            return file_checksum(file) == self.checksum
        # a git blob hash is the SHA-1 of a short header and the content
        begun = partial(hashlib.sha1, f"blob {self.size}\0".encode(), usedforsecurity=False)
        with file.open("rb") as content:
            return hashlib.file_digest(content, begun).hexdigest() == self.checksum


class HuggingFaceHub:
    """A dataset repository on the Hugging Face Hub, such as MahmoodLab/hest; raises `MissingExtra`."""

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
        """Size and checksum of each path, in this order; `MissingInput` when the repository lacks one."""
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

    def download(self, commit: str, paths: Sequence[str], folder: Path) -> None:
        """Fetch files to the same paths under `folder`; an interrupted download is resumed.

        Where the hub cannot be reached, the library may return without an error and without a file.
        """
        with self._translated_errors(paths[0]):
            self._library.snapshot_download(
                self.repository,
                repo_type="dataset",
                revision=commit,
                local_dir=str(folder),
                allow_patterns=list(paths),
            )

    @contextmanager
    def _translated_errors(self, what: str) -> Iterator[None]:
        """Translate the library's errors to `DownloadFailed`."""
        errors = self._library.errors
        no_access = (errors.GatedRepoError, errors.RepositoryNotFoundError, errors.LocalTokenNotFoundError)
        try:
            yield
        except errors.RevisionNotFoundError as error:
            raise DownloadFailed(what, "the repository has no such revision") from error
        except (errors.HfHubHTTPError, *no_access) as error:
            status = getattr(getattr(error, "response", None), "status_code", None)
            if isinstance(error, no_access) or status in (401, 403):
                page = f"https://huggingface.co/datasets/{self.repository}"
                raise DownloadFailed.access(self.repository, page) from error
            raise DownloadFailed(what, f"the hub answered with status {status}") from error
        except (errors.EntryNotFoundError, getattr(errors, "HTTPError", ConnectionError), OSError) as error:
            if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EACCES, errno.EROFS):
                raise  # from the local disk, not from the hub
            lines = str(error).splitlines()
            raise DownloadFailed(what, lines[0][:160].rstrip(".") if lines else "the hub was not reached") from error
