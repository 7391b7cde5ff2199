"""URIs, filesystems and atomic publishing.

A `Location` is a path on any fsspec filesystem: a local path, `s3://…`, or any other protocol. Writers never
append and never rename on an object store: a file is spooled on local disk and appears under its name in one
step, so that nothing half-written is ever seen under a final name.
"""

from __future__ import annotations

import contextlib
import json
import os
import posixpath
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, cast

import fsspec
from fsspec.core import has_magic
from fsspec.implementations.local import LocalFileSystem

from pipeline.errors import ConfigError, OutputError

SPOOL_PREFIX = ".tmp-"
_JOB_DRIVER_VARIABLE = "RAY_JOB_CONFIG_JSON_ENV_VAR"


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

    @cached_property
    def _resolved(self) -> tuple[fsspec.AbstractFileSystem, str]:
        filesystem, path = fsspec.core.url_to_fs(self.uri)
        return filesystem, str(path)

    def __getstate__(self) -> dict[str, Any]:
        return {"uri": self.uri}

    def __setstate__(self, state: dict[str, Any]) -> None:
        object.__setattr__(self, "uri", state["uri"])

    def __str__(self) -> str:
        return self.uri

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
        return bool(self.fs.exists(self.path))

    def is_file(self) -> bool:
        """Whether a file is there."""
        return bool(self.fs.isfile(self.path))

    def is_empty(self) -> bool:
        """Whether nothing is there, or a folder without any file in it."""
        self.fs.invalidate_cache()
        if not self.exists():
            return True
        return not self.is_file() and not self.files()

    def files(self) -> list[FileStat]:
        """Every file below this folder, sorted by path; symbolic links are followed."""
        if self.is_local:
            return sorted(_walk(self.path, "", ()), key=lambda stat: stat.path)
        self.fs.invalidate_cache()
        found = cast("dict[str, dict[str, Any]]", self.fs.find(self.path, detail=True))
        base = self.path.rstrip("/") + "/"
        stats = [
            FileStat(name.removeprefix(base), int(info["size"]), _version(info))
            for name, info in found.items()
            if info["type"] == "file"
        ]
        return sorted(stats, key=lambda stat: stat.path)

    def stat(self) -> FileStat:
        """Size and version of this file."""
        if self.is_local:
            return _stat_local(self.path, self.name)
        info = self.fs.info(self.path)
        return FileStat(self.name, int(info["size"]), _version(info))

    def open(self) -> Any:
        """Opens the file for random reads."""
        return self.fs.open(self.path, "rb")

    def read_bytes(self) -> bytes:
        """The whole file."""
        return cast("bytes", self.fs.cat_file(self.path))

    def read_json(self) -> Any:
        """The file parsed as JSON."""
        return json.loads(self.read_bytes())

    def write_bytes(self, data: bytes) -> None:
        """Publishes a small file in one step."""
        with self.publishing() as spool, open(spool, "wb") as stream:
            stream.write(data)

    def write_json(self, value: Any) -> None:
        """Publishes a value as JSON in one step."""
        self.write_bytes((json.dumps(value, indent=1, allow_nan=False) + "\n").encode())

    @contextlib.contextmanager
    def publishing(self) -> Iterator[str]:
        """Gives a local file to write; when the block ends well it appears here, whole, in one step.

        On a local filesystem the spool file lies beside its destination's folder (`.tmp-…`), so that the last
        step is an atomic rename; elsewhere it lies in the temporary folder and is uploaded.
        """
        if self.is_local:
            folder = os.path.dirname(self.path)
            os.makedirs(folder, exist_ok=True)
            handle, spool = tempfile.mkstemp(prefix=SPOOL_PREFIX, dir=folder)
        else:
            handle, spool = tempfile.mkstemp(prefix="parvae-")
        os.close(handle)
        try:
            yield spool
            if self.is_local:
                _publish_local(spool, self.path)
            else:
                self.fs.put_file(spool, self.path)
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(spool)

    def remove_spools(self) -> None:
        """Removes what killed runs left half-written below this folder (local disks only)."""
        if self.is_local:
            for stat in self.files():
                if posixpath.basename(stat.path).startswith(SPOOL_PREFIX):
                    self.join(stat.path).remove()

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
        names = self.fs.find(self.path)
        if names and not any(has_magic(name) for name in names):
            with contextlib.suppress(FileNotFoundError):
                self.fs.rm(names)
            return
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                self.fs.rm_file(name)


def locate(text: str, what: str) -> Location:
    """Turns what the user typed into a location.

    Args:
        text: A local path or an fsspec URI.
        what: Name of the argument, for messages ("DATA", "--model").

    Raises:
        ConfigError: If the protocol is unknown, an object store refuses or does not answer, or the path is
            relative inside a submitted Ray job, whose working directory is a copy that disappears.
    """
    if not text or text.isspace():
        raise ConfigError(f"{what} is empty; give a path or a URI")
    if "://" not in text:
        if not os.path.isabs(text) and _JOB_DRIVER_VARIABLE in os.environ:
            raise ConfigError(
                f"{what} is the relative path {text!r}, but a submitted job runs in a temporary copy of its "
                "working directory; give an absolute path or a URI such as s3://bucket/folder"
            )
        return Location(os.path.abspath(text))
    if not text.partition("://")[2].strip("/"):
        raise ConfigError(f"{what} {text!r} names no file or folder, only a protocol")
    location = Location(text.rstrip("/"))
    try:
        _ = location.fs
    except (ValueError, ImportError) as error:
        raise ConfigError(f"{what} {text!r} cannot be opened: {error}") from error
    if location.is_local:
        return Location(location.path)
    try:
        location.exists()
    except Exception as error:  # every store's library has exceptions of its own
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise ConfigError(
            f"{what} {text}: the store refuses or does not answer ({reason}); check credentials, endpoint and bucket"
        ) from error
    return location


def check_output(output: Location, what: str, inputs: dict[str, Location]) -> None:
    """Refuses an output that is, contains or lies inside an input.

    Raises:
        OutputError: If it overlaps.
    """
    for name, source in inputs.items():
        first, second = _comparable(output), _comparable(source)
        if first.startswith(second) or second.startswith(first):
            raise OutputError(f"{what} {output} overlaps {name} {source}; choose a folder outside of it")
    if output.is_local:
        place = output.path
        while not os.path.lexists(place):
            place = os.path.dirname(place)
        if not os.path.isdir(place):
            raise OutputError(f"{what} {output} cannot be a folder: {place} is a file; choose another place")
        if not os.access(place, os.W_OK | os.X_OK):
            raise OutputError(f"{what} {output} cannot be written: no permission in {place}; choose another place")


def _comparable(location: Location) -> str:
    """A text that is a prefix of that of everything inside the location."""
    if location.is_local:
        return os.path.realpath(location.path).rstrip("/") + "/"
    return f"{hash(location.fs)} {posixpath.normpath(location.path).rstrip('/')}/"


def _walk(root: str, below: str, parents: tuple[str, ...]) -> Iterator[FileStat]:
    """The files below a local folder; a link to a folder that it lies in is not entered again."""
    here = os.path.join(root, below)
    real = os.path.realpath(here)
    if real in parents or not os.path.isdir(here):
        return
    for name in os.listdir(here):
        path = posixpath.join(below, name)
        whole = os.path.join(root, path)
        if os.path.isdir(whole):
            yield from _walk(root, path, (*parents, real))
        elif os.path.isfile(whole) or os.path.islink(whole):
            yield _stat_local(whole, path)


def _stat_local(path: str, name: str) -> FileStat:
    """Size and version of a local file; a link that leads nowhere counts as an empty one."""
    try:
        info = os.stat(path)
    except FileNotFoundError:
        info = os.lstat(path)
        return FileStat(name, 0, str(info.st_mtime_ns))
    return FileStat(name, info.st_size, str(info.st_mtime_ns))


def _publish_local(spool: str, path: str) -> None:
    umask = os.umask(0)
    os.umask(umask)
    os.chmod(spool, 0o666 & ~umask)
    with open(spool, "rb") as stream:
        os.fsync(stream.fileno())
    os.replace(spool, path)


def _version(info: dict[str, Any]) -> str:
    for key in ("ETag", "etag", "mtime", "LastModified", "created"):
        if info.get(key) is not None:
            return str(info[key])
    return ""
