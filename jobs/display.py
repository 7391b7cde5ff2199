"""What a command says on stderr: log lines, and how far the present stage is.

On a terminal the progress is one line, drawn again in place, below the log lines. Without one it is quiet: a line
when a stage ends, and one a minute while it lasts. As JSON it is told every few seconds. Warnings and errors always
appear.
"""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from typing import Any, TextIO

DRAW_SECONDS, JSON_SECONDS, TEXT_SECONDS = 0.5, 5.0, 60.0
"""Time between two signs of progress: on a terminal, as JSON, and otherwise."""
_CLEAR = "\r\x1b[K"


class Display(logging.StreamHandler[TextIO]):
    """Handler of all log records of a command.

    A record with an attribute `progress` (see `pipeline.progress.Progress`) begins or ends a stage; a thread looks
    at the stage in between.

    Args:
        stream: Where to write.
        as_json: Whether to write JSON lines.
        seconds: Time between two signs of progress; None: what suits the stream.
    """

    def __init__(self, stream: TextIO, as_json: bool = False, seconds: float | None = None) -> None:
        super().__init__(stream)
        self._json = as_json
        self._drawing = not as_json and stream.isatty() and os.environ.get("TERM") != "dumb"
        usual = JSON_SECONDS if as_json else DRAW_SECONDS if self._drawing else TEXT_SECONDS
        self._seconds = usual if seconds is None else seconds
        self._stage: Any = None
        self._told = 0.0
        self._drawn = False
        self._closed = threading.Event()
        self._thread: threading.Thread | None = None
        self.setFormatter(_JsonFormatter() if as_json else logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))

    def emit(self, record: logging.LogRecord) -> None:
        """Writes a log line above the progress, or begins or ends a stage."""
        stage = getattr(record, "progress", None)
        if stage is None:
            self._clear()
            super().emit(record)
            self._draw()
        elif stage.ended:
            self._clear()
            self._stage = None
            super().emit(record)
        elif not self._closed.is_set():
            self._begin(stage, record)

    def close(self) -> None:
        """Ends the progress; what an unfinished stage came to stays on the screen."""
        self._closed.set()
        if self._thread is not None:
            self._thread.join()
        self.acquire()
        try:
            stage, self._stage = self._stage, None
            self._clear()
            if stage is not None:
                super().emit(_record(stage))
        finally:
            self.release()
        super().close()

    def _begin(self, stage: Any, record: logging.LogRecord) -> None:
        self._clear()
        if self._stage is not None:
            super().emit(_record(self._stage))
        self._stage, self._told = stage, time.monotonic()
        if self._json:
            super().emit(record)
        self._draw()
        if self._thread is None:
            self._thread = threading.Thread(target=self._watch, daemon=True, name="display")
            self._thread.start()

    def _watch(self) -> None:
        """Tells how far the stage is, again and again."""
        while not self._closed.wait(min(self._seconds, DRAW_SECONDS)):
            self.acquire()
            try:
                self._tell()
            finally:
                self.release()

    def _tell(self) -> None:
        if self._stage is None or time.monotonic() - self._told < self._seconds:
            return
        self._told = time.monotonic()
        if self._drawing:
            self._draw()
        else:
            super().emit(_record(self._stage))

    def _draw(self) -> None:
        """Draws the stage in place, no longer than the terminal is wide."""
        if self._drawing and self._stage is not None:
            text = self.format(_record(self._stage))[: self._columns() - 1]
            self._write(f"{_CLEAR}{text}")
            self._drawn = True

    def _clear(self) -> None:
        if self._drawn:
            self._write(_CLEAR)
            self._drawn = False

    def _write(self, text: str) -> None:
        try:
            self.stream.write(text)
            self.flush()
        except (OSError, ValueError):  # nobody reads any more
            self._drawing = False

    def _columns(self) -> int:
        try:
            return max(20, os.get_terminal_size(self.stream.fileno()).columns or 80)
        except (OSError, ValueError):
            return 80


class _JsonFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        """One JSON object a line, with the figures of a stage if it tells one."""
        line = {"time": record.created, "level": record.levelname, "message": record.getMessage()}
        stage = getattr(record, "progress", None)
        return json.dumps(line if stage is None else {**line, **stage.state()})


def _record(stage: Any) -> logging.LogRecord:
    record = logging.LogRecord("parvae.progress", logging.INFO, "", 0, "%s", (stage.line(),), None)
    record.progress = stage
    return record
