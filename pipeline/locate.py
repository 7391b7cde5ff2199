"""What the user typed, as locations: checked before any work."""

from __future__ import annotations

import os
import posixpath
import re

from pipeline.errors import ConfigError, OutputError, StoreError
from pipeline.storage import Location

_JOB_DRIVER_VARIABLE = "RAY_JOB_CONFIG_JSON_ENV_VAR"
_CREDENTIALS = re.compile(r"(?<=://)[^/@:]*:(?!\d+/)[^@]*@")
"""A name and a password before the host; no host and port before a path that has an @."""
_SECONDS = 20.0
"""Seconds that a store has for its first answer: at the start of a job it is more likely misnamed than busy."""
_BUCKETS = frozenset({"s3", "s3a", "gs", "gcs", "abfs", "abfss", "az", "oss", "cos", "obs"})
"""Protocols whose first component must be there before anything is written."""


def locate(text: str, what: str) -> Location:
    """Turns what the user typed into a location.

    Args:
        text: A local path or an fsspec URI.
        what: Name of the argument, for messages ("DATA", "--model").

    Raises:
        ConfigError: If the protocol is unknown, the URI holds a password, an object store refuses or does not
            answer, or the path is relative inside a submitted Ray job, whose working directory is a copy that
            disappears.
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
    if _CREDENTIALS.search(text):
        raise ConfigError(
            f"{what} holds credentials ({_CREDENTIALS.sub('***@', text)}): take them out, and give them in the "
            "environment (AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY) or in fsspec's configuration"
        )
    if not text.partition("://")[2].strip("/"):
        raise ConfigError(f"{what} {text!r} names no file or folder, only a protocol")
    location = Location(text.rstrip("/"))
    try:
        _ = location.fs
    except (ValueError, ImportError) as error:
        raise ConfigError(f"{what} {location} cannot be opened: {error}") from error
    if location.is_local:
        return Location(location.path)
    _check_store(location, what)
    return location


def _check_store(location: Location, what: str) -> None:
    """Refuses a store that denies access or does not answer, and a bucket that is not there."""
    protocol, mark, path = location.uri.partition("://")
    bucket = Location(protocol + mark + path.partition("/")[0])
    try:
        if location.answers(_SECONDS) or protocol not in _BUCKETS or bucket == location:
            return
    except Exception as error:  # every store's library has exceptions of its own
        reason = str(error) if isinstance(error, StoreError) else " ".join(f"{type(error).__name__}: {error}".split())
        raise ConfigError(
            f"{what} {location}: the store refuses or does not answer ({reason}); check credentials, endpoint, bucket"
        ) from error
    try:
        there = bucket.answers(_SECONDS)
    except StoreError:  # allowed to use the bucket, but not to look at it
        return
    if not there:
        raise ConfigError(f"{what} {location}: there is no bucket {bucket}; create it, or name another one")


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
