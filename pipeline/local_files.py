"""Files of the local disk: listing, and publishing in one step."""

from __future__ import annotations

import os
import posixpath
from collections.abc import Iterator

SPOOL_PREFIX = ".tmp-"
"""What names of files begin with that are being written."""


def walk(root: str, below: str = "", parents: tuple[str, ...] = ()) -> Iterator[tuple[str, int, str]]:
    """The files below a folder as (path, bytes, version).

    A link to a folder that it lies in is not entered again; what another process removes meanwhile is left out.
    """
    here = os.path.join(root, below)
    real = os.path.realpath(here)
    if real in parents or not os.path.isdir(here):
        return
    for name in _names(here):
        path = posixpath.join(below, name)
        whole = os.path.join(root, path)
        if os.path.isdir(whole):
            yield from walk(root, path, (*parents, real))
        elif os.path.isfile(whole) or os.path.islink(whole):
            try:
                found = stat(whole)
            except FileNotFoundError:
                continue
            yield path, *found


def _names(folder: str) -> list[str]:
    try:
        return os.listdir(folder)
    except FileNotFoundError:
        return []


def stat(path: str) -> tuple[int, str]:
    """Bytes and version of a file; a link that leads nowhere counts as an empty one."""
    try:
        info = os.stat(path)
    except FileNotFoundError:
        return 0, str(os.lstat(path).st_mtime_ns)
    return info.st_size, str(info.st_mtime_ns)


def publish(spool: str, path: str) -> None:
    """Gives a file that was written beside its folder its name, in one step that survives a power cut."""
    _settle(spool)
    os.replace(spool, path)


def publish_new(spool: str, path: str) -> bool:
    """As `publish`, unless the name is taken; says whether it was free."""
    _settle(spool)
    try:
        os.link(spool, path)
    except FileExistsError:
        return False
    except OSError:  # a filesystem without hard links
        try:
            os.close(os.open(path, os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            return False
        os.replace(spool, path)
    return True


def _settle(spool: str) -> None:
    umask = os.umask(0)
    os.umask(umask)
    os.chmod(spool, 0o666 & ~umask)
    with open(spool, "rb") as stream:
        os.fsync(stream.fileno())
