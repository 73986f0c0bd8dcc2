"""Logs as one JSON object a line, for machines: what happened, when, and for which request and release."""

import logging
import sys

from pythonjsonlogger.json import JsonFormatter

FIELDS = "{asctime}{levelname}{name}{message}"
RENAMED = {"asctime": "time", "levelname": "level", "name": "logger"}


def write_json_logs() -> None:
    """Have every logger of this process write to stdout: ours from level INFO on, those of libraries from WARNING on.

    Python's warnings are logged as well. What BentoML, uvicorn and circus have set up for themselves is replaced.
    """
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(JsonFormatter(FIELDS, style="{", rename_fields=RENAMED, datefmt="%Y-%m-%dT%H:%M:%S%z"))
    for name in list(logging.root.manager.loggerDict):
        logger = logging.getLogger(name)
        if logger.handlers:
            logger.handlers = []
            logger.propagate = True
    logging.root.handlers = [handler]
    logging.root.setLevel(logging.WARNING)
    for name in ("mu2net", "bentoml"):
        logging.getLogger(name).setLevel(logging.INFO)
    logging.captureWarnings(True)
