"""Logs as one JSON object a line, without images, options or keys."""

from __future__ import annotations

import json
import logging
import sys
import time
from typing import Any, TextIO

from ..text import printable

_LONGEST = 2000
REQUESTS = logging.getLogger("foveal.requests")


class JsonFormatter(logging.Formatter):
    """One JSON object for each record; what stands in ``extra={"facts": ...}`` are further keys."""

    def format(self, record: logging.LogRecord) -> str:
        moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z"
        content: dict[str, Any] = {"time": moment, "level": record.levelname.lower()}
        facts = getattr(record, "facts", None)
        content |= facts if facts is not None else {"logger": record.name}
        if message := record.getMessage():
            content["message"] = printable(message)[:_LONGEST]
        if record.exc_info:
            content["trace"] = self.formatException(record.exc_info)[-_LONGEST:]
        return json.dumps(content)


def start_logs(stream: TextIO | None = None, requests: bool = True) -> None:
    """Write all logs of this process as JSON lines.

    Args:
        stream: default: standard error.
        requests: whether every request gets a line.
    """
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(JsonFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.INFO)
    REQUESTS.setLevel(logging.INFO if requests else logging.WARNING)
    for name in ("uvicorn", "uvicorn.error", "uvicorn.access", "asyncio", "PIL"):
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.getLogger("uvicorn.error").addFilter(lambda record: record.getMessage() not in _EXPECTED)


#: What uvicorn warns of at each wrong request: the answer says it, and the metrics count it.
_EXPECTED = ("Invalid HTTP request received.", "Unsupported upgrade request.")
