"""Every error that parvae raises on purpose.

```
ParvaeError                exit code 1
├── InputError             exit code 2: bad usage or bad input; nothing was written
│   ├── ConfigError        a flag, a YAML key or a value in them
│   ├── DatasetError       a Parquet dataset: missing, empty, mixed schemas, corrupt files
│   ├── ModelError         a model folder: missing, unfinished, another version
│   ├── ArchiveError       an archive: missing, unfinished, damaged, another model
│   ├── OutputError        an output that exists, overlaps the input, or is in use
│   └── ResourceError      the cluster lacks the CPUs, GPUs or memory asked for
├── TrainingError          training stopped: non-finite loss, workers lost for good
└── JobError               a job failed while it ran; what is finished stays
    └── StoreError         an object store denies access, or does not answer for long
```

Messages name the file, column and value, say what was expected, and what to do.
"""

from __future__ import annotations


class ParvaeError(Exception):
    """Base of all errors that parvae raises on purpose."""

    exit_code = 1


class InputError(ParvaeError):
    """Bad usage or bad input, found before any work; nothing was written."""

    exit_code = 2


class ConfigError(InputError):
    """A flag, a configuration key or a value in them is wrong."""


class DatasetError(InputError):
    """A Parquet dataset is missing, empty, mixed or corrupt.

    Args:
        message: What is wrong.
        path: The one file that is to blame, relative to the dataset; "" if there is none.
    """

    def __init__(self, message: str, path: str = "") -> None:
        super().__init__(message)
        self.path = path


class ModelError(InputError):
    """A model folder is missing, unfinished, damaged or of another version."""


class ArchiveError(InputError):
    """An archive is missing, unfinished, damaged or belongs to another model."""


class OutputError(InputError):
    """An output exists already, overlaps the input or is in use."""


class ResourceError(InputError):
    """The cluster lacks the CPUs, GPUs or memory that were asked for."""


class TrainingError(ParvaeError):
    """Training stopped: a non-finite loss, or workers lost for good."""


class JobError(ParvaeError):
    """A job failed while it ran; finished units stay and a rerun continues."""


class StoreError(JobError):
    """An object store denies access, or has not answered for long; finished units stay and a rerun continues."""
