"""Logs as one JSON object a line, for machines: what happened, when, and for which request and release."""

import logging
import sys

from pythonjsonlogger.json import JsonFormatter

FIELDS = "{asctime}{levelname}{name}{message}"
RENAMED = {"asctime": "time", "levelname": "level", "name": "logger"}


def write_json_logs() -> None:
    """Have all loggers of the service write to stdout, from level INFO on."""
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(JsonFormatter(FIELDS, style="{", rename_fields=RENAMED, datefmt="%Y-%m-%dT%H:%M:%S%z"))
    logger = logging.getLogger("mu2net")
    logger.handlers = [handler]
    logger.propagate = False
    logger.setLevel(logging.INFO)
