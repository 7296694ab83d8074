"""A file system like an object store, over a folder: nothing can be renamed, and listings come from a cache."""

from pathlib import Path
from typing import Any

import fsspec
from fsspec.implementations.local import LocalFileSystem


class NoRenameFileSystem(LocalFileSystem):
    """`norename:///folder` is that folder.

    Attributes:
        full_at: Files whose names end so take a first byte and no more.
        unreachable: Nothing can be looked at.
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
