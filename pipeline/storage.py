"""URIs, filesystems and atomic publishing.

A `Location` is a path on any fsspec filesystem: a local path, `s3://…`, or any other protocol. Writers never
append and never rename on an object store: a file is spooled on local disk and appears under its name in one
step, so that nothing half-written is ever seen under a final name.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import json
import os
import posixpath
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import fsspec
from fsspec.core import has_magic
from fsspec.implementations.local import LocalFileSystem

from pipeline.errors import ConfigError, JobError
from pipeline.local_files import SPOOL_PREFIX, publish, publish_new, stat, walk
from pipeline.retry import PersistentReader, persistently

READ_AHEAD = 4 << 20
"""Bytes that a file of an object store reads ahead, so that neighbouring column chunks come in one request."""
Result = TypeVar("Result")
_USER = re.compile(r"(?<=://)[^/@]*@")


@dataclass(frozen=True)
class FileStat:
    """One listed file.

    Attributes:
        path: Path relative to the listed folder, with `/`.
        size: Bytes.
        version: What changes when the file's content does: an ETag, or the modification time.
    """

    path: str
    size: int
    version: str


@dataclass(frozen=True)
class Location:
    """A file or folder on an fsspec filesystem.

    Attributes:
        uri: Absolute local path, or `protocol://…`, without a trailing slash.
    """

    uri: str

    @functools.cached_property
    def _resolved(self) -> tuple[fsspec.AbstractFileSystem, str]:
        # a listing that is remembered hides what other processes write
        remote = {"use_listings_cache": False} if "://" in self.uri else {}
        filesystem, path = fsspec.core.url_to_fs(self.uri, **remote)
        return filesystem, str(path)

    def __getstate__(self) -> dict[str, Any]:
        return {"uri": self.uri}

    def __setstate__(self, state: dict[str, Any]) -> None:
        object.__setattr__(self, "uri", state["uri"])

    def __str__(self) -> str:
        return _USER.sub("***@", self.uri)

    def __repr__(self) -> str:
        return f"Location({str(self)!r})"

    @property
    def fs(self) -> fsspec.AbstractFileSystem:
        """The filesystem."""
        return self._resolved[0]

    @property
    def path(self) -> str:
        """The path on the filesystem, without the protocol."""
        return self._resolved[1]

    @property
    def is_local(self) -> bool:
        """Whether this is a path of the local disk."""
        return isinstance(self.fs, LocalFileSystem)

    @property
    def name(self) -> str:
        """The last component."""
        return posixpath.basename(self.uri)

    @property
    def parent(self) -> Location:
        """The folder that holds this file or folder."""
        protocol, mark, path = self.uri.rpartition("://")
        return Location(protocol + mark + posixpath.dirname(path))

    def join(self, *parts: str) -> Location:
        """The location of something inside this folder.

        Raises:
            ConfigError: If a part is empty, absolute or climbs out with `..`.
        """
        for part in parts:
            if not part or part.startswith("/") or "\\" in part or ".." in part.split("/") or "\0" in part:
                raise ConfigError(f"{part!r} is not a path inside {self.uri}")
        base = self.uri if self.uri.endswith("://") else self.uri.rstrip("/") + "/"
        return Location(base + "/".join(parts))

    def exists(self) -> bool:
        """Whether a file or folder is there."""
        return os.path.exists(self.path) if self.is_local else self._info() is not None

    def answers(self, seconds: float) -> bool:
        """Whether a file or folder is there, asked at most for so long.

        Raises:
            StoreError: If an object store denies it, or does not answer in time.
        """
        return os.path.exists(self.path) if self.is_local else self._info(seconds) is not None

    def is_file(self) -> bool:
        """Whether a file is there."""
        if self.is_local:
            return os.path.isfile(self.path)
        info = self._info()
        return info is not None and info["type"] == "file"

    def is_empty(self) -> bool:
        """Whether nothing is there, or a folder without any file in it."""
        if not self.exists():
            return True
        return not self.is_file() and not self.files()

    def files(self) -> list[FileStat]:
        """Every file below this folder, sorted by path; symbolic links are followed."""
        if self.is_local:
            return sorted((FileStat(*found) for found in walk(self.path)), key=lambda stat: stat.path)
        found = self._persistently("listing", lambda fs: cast("dict[str, Any]", fs.find(self.path, detail=True)))
        base = self.path.rstrip("/") + "/"
        stats = [
            FileStat(name.removeprefix(base), int(info["size"]), _version(info))
            for name, info in found.items()
            if info["type"] == "file"
        ]
        return sorted(stats, key=lambda stat: stat.path)

    def stat(self) -> FileStat:
        """Size and version of this file.

        Raises:
            FileNotFoundError: If there is none.
        """
        if self.is_local:
            return FileStat(self.name, *stat(self.path))
        info = self._info()
        if info is None:
            raise FileNotFoundError(errno.ENOENT, "no such file", str(self))
        return FileStat(self.name, int(info["size"]), _version(info))

    def open(self) -> Any:
        """Opens the file for random reads."""
        if self.is_local:
            return open(self.path, "rb")
        options = {"block_size": READ_AHEAD, "cache_type": "readahead"}
        stream = self._persistently("opening", lambda fs: fs.open(self.path, "rb", **options))
        return PersistentReader(stream, str(self))

    def read_bytes(self) -> bytes:
        """The whole file."""
        return self._persistently("reading", lambda fs: cast("bytes", fs.cat_file(self.path)))

    def read_json(self) -> Any:
        """The file parsed as JSON."""
        return json.loads(self.read_bytes())

    def write_bytes(self, data: bytes) -> None:
        """Publishes a small file in one step."""
        with self.publishing() as spool, open(spool, "wb") as stream:
            stream.write(data)

    def create_bytes(self, data: bytes) -> bool:
        """Publishes a small file in one step if there is none yet; says whether there was none.

        Local disks and stores with conditional writes (S3's `If-None-Match`) decide that in one step; on others
        two writers at the same moment may both be told that they were first.

        Args:
            data: What nobody else would write, for a store's answer may be lost after it obeyed.
        """
        if self.is_local:
            with self._spool() as spool:
                with open(spool, "wb") as stream:
                    stream.write(data)
                return publish_new(spool, self.path)
        try:
            self._persistently("writing", lambda fs: fs.pipe_file(self.path, data, mode="create"))
        except (FileExistsError, OSError) as error:
            if not isinstance(error, FileExistsError) and error.errno not in (errno.EINVAL, errno.EBUSY):
                raise
            return self.exists() and self.read_bytes() == data
        return True

    def write_json(self, value: Any) -> None:
        """Publishes a value as JSON in one step."""
        self.write_bytes((json.dumps(value, indent=1, allow_nan=False) + "\n").encode())

    @contextlib.contextmanager
    def publishing(self) -> Iterator[str]:
        """Gives a local file to write; when the block ends well it appears here, whole, in one step.

        On a local filesystem the spool file lies beside its destination's folder (`.tmp-…`), so that the last
        step is an atomic rename; elsewhere it lies in the temporary folder and is uploaded.
        """
        with self._spool() as spool:
            yield spool
            if self.is_local:
                publish(spool, self.path)
            else:
                self._persistently("writing", lambda fs: fs.put_file(spool, self.path))

    @contextlib.contextmanager
    def _spool(self) -> Iterator[str]:
        """A local file that is gone at the end.

        Raises:
            JobError: If its disk is full.
        """
        folder = os.path.dirname(self.path) if self.is_local else tempfile.gettempdir()
        try:
            os.makedirs(folder, exist_ok=True)
            handle, spool = tempfile.mkstemp(prefix=SPOOL_PREFIX if self.is_local else "parvae-", dir=folder)
            os.close(handle)
            try:
                yield spool
            finally:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(spool)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise JobError(
                f"{self}: {os.strerror(error.errno)} in {folder}; make room and run the same command again"
            ) from error

    def _info(self, seconds: float | None = None) -> dict[str, Any] | None:
        """What a store knows of this file or folder; None if there is none."""
        try:
            return self._persistently("looking up", lambda fs: cast("dict[str, Any]", fs.info(self.path)), seconds)
        except FileNotFoundError:
            return None

    def _persistently(
        self, what: str, action: Callable[[fsspec.AbstractFileSystem], Result], seconds: float | None = None
    ) -> Result:
        """Does something with an object store, again while it fails for the moment."""
        return persistently(lambda: action(self.fs), what, str(self), seconds)

    def remove_spools(self) -> None:
        """Removes what killed runs left half-written below this folder (local disks only)."""
        if self.is_local:
            for stat in self.files():
                if posixpath.basename(stat.path).startswith(SPOOL_PREFIX):
                    self.join(stat.path).remove()

    def remove_empty_folders(self) -> None:
        """Removes folders below this one that hold no file (local disks only)."""
        if self.is_local:
            for folder, _, _ in os.walk(self.path, topdown=False):
                if folder != self.path:
                    with contextlib.suppress(OSError):
                        os.rmdir(folder)

    def remove(self) -> None:
        """Removes a file or a whole folder; nothing happens if there is none."""
        if self.is_local:
            if os.path.isdir(self.path) and not os.path.islink(self.path):
                shutil.rmtree(self.path)
            else:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(self.path)
        else:
            self._remove_objects()

    def _remove_objects(self) -> None:
        """Removes by exact names: fsspec takes `*`, `?` and `[` in what `rm` is given for patterns."""
        names = self._persistently("listing", lambda fs: cast("list[str]", fs.find(self.path)))
        if names and not any(has_magic(name) for name in names):
            with contextlib.suppress(FileNotFoundError):
                self._persistently("removing", lambda fs: fs.rm(names))
            return
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                self._persistently("removing", functools.partial(_remove_object, name=name))


def _remove_object(fs: fsspec.AbstractFileSystem, name: str) -> None:
    fs.rm_file(name)


def _version(info: dict[str, Any]) -> str:
    for key in ("ETag", "etag", "mtime", "LastModified", "created"):
        if info.get(key) is not None:
            return str(info[key])
    return ""
