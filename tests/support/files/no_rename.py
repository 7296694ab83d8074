"""File system over a folder that behaves like an object store: it cannot rename, and it caches listings."""

from pathlib import Path
from typing import Any

import fsspec
from fsspec.implementations.local import LocalFileSystem


class NoRenameFileSystem(LocalFileSystem):
    """File system in which the URL `norename:///folder` names the local folder `/folder`.

    Attributes:
        full_at: Ending of the names of files that accept only one byte.
        unreachable: True makes every look-up fail.
    """

    protocol = "norename"
    full_at: str | None = None
    unreachable = False

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.listings: dict[str, Any] = {}

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return str(path).removeprefix("norename://").rstrip("/")

    def open(self, path: str, mode: str = "rb", **kwargs: Any) -> Any:
        if mode == "wb" and self.full_at is not None and path.endswith(self.full_at):
            Path(self._strip_protocol(path)).write_bytes(b"{")
            return open("/dev/full", "wb", buffering=0)
        return open(self._strip_protocol(path), mode)

    def info(self, path: str, **kwargs: Any) -> dict[str, Any]:
        if self.unreachable:
            raise ConnectionError("no answer")
        return super().info(path, **kwargs)

    def ls(self, path: str, detail: bool = False, **kwargs: Any) -> Any:
        if path not in self.listings:
            self.listings[path] = super().ls(path, detail=False)
        return self.listings[path]

    def invalidate_cache(self, path: str | None = None) -> None:
        self.listings.clear()

    def mv(self, *args: Any, **kwargs: Any) -> None:
        raise NotImplementedError("there is no rename")

    mv_file = rename = move = mv


fsspec.register_implementation("norename", NoRenameFileSystem, clobber=True)
