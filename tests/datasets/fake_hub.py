"""A hub that is a folder on this disk, with the faults that a real one has."""

from __future__ import annotations

import hashlib
from pathlib import Path

from cmrcnet.datasets.hub import RemoteFile
from cmrcnet.errors import DownloadFailed, MissingInput


class FolderHub:
    """Serves the files of a folder; keeps a list of what was fetched."""

    def __init__(self, root: Path, head: str = "c0ffee" + "0" * 34) -> None:
        self.root, self.head = root, head
        self.fetched: list[str] = []
        self.breaks_after: int | None = None
        self.damages: set[str] = set()
        self.withholds: set[str] = set()

    def commit(self, revision):
        return revision or self.head

    def describe(self, commit, paths):
        for path in paths:
            if not (self.root / path).is_file():
                raise MissingInput(f"hub/{path}", "The file", "it is not in the repository")
        return [self._describe(path) for path in paths]

    def _describe(self, path):
        content = (self.root / path).read_bytes()
        if path.endswith(".json"):
            name = hashlib.sha1(f"blob {len(content)}\0".encode() + content).hexdigest()
            return RemoteFile(path, len(content), "git", name)
        return RemoteFile(path, len(content), "sha256", hashlib.sha256(content).hexdigest())

    def download(self, commit, paths, folder):
        for path in paths:
            if self.breaks_after is not None and len(self.fetched) >= self.breaks_after:
                raise DownloadFailed(path, "the connection was lost")
            self.fetched.append(path)
            target = folder / path
            target.parent.mkdir(parents=True, exist_ok=True)
            content = bytearray((self.root / path).read_bytes())
            if path in self.damages:
                content[len(content) // 2] ^= 1
            if path not in self.withholds:
                target.write_bytes(content)
