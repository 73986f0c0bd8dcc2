"""The identifiers of the system, each a type of its own: they are all strings and easily mixed up."""

import re
from typing import NewType

from models.errors import InvalidName

TaskName = NewType("TaskName", str)
ComponentId = NewType("ComponentId", str)  # sha256 of objects/<id>.safetensors
LoweredId = NewType("LoweredId", str)  # sha256 of objects/<id>.safetensors holding a component in a lower precision
SubgraphId = NewType("SubgraphId", str)  # sha256 of objects/<id>.onnx
RouteId = NewType("RouteId", str)  # sha256 of objects/<id>.json
GoldenId = NewType("GoldenId", str)  # sha256 of objects/<id>.safetensors holding golden samples

# File names, URL segments and Prometheus labels all take this as it is; "all" means every task in a URL.
TASK_NAME_PATTERN = r"[a-z0-9][a-z0-9_.-]{0,63}"
RESERVED_TASK_NAMES = frozenset({"all"})


def parse_task_name(text: str) -> TaskName:
    """Return `text` as a task name.

    Raises:
        InvalidName: not 1 to 64 of a-z, 0-9, '_', '-', '.', beginning with a letter or digit; or reserved.
    """
    if not re.fullmatch(TASK_NAME_PATTERN, text):
        raise InvalidName(
            f"{text[:80]!r} is not a task name: use 1 to 64 of the characters a-z 0-9 _ - . "
            "beginning with a letter or a digit"
        )
    if text in RESERVED_TASK_NAMES:
        raise InvalidName(f"{text!r} is reserved and no task can have it as its name: choose another")
    return TaskName(text)


def short(digest: str) -> str:
    """Return the first twelve characters of a digest, enough for a person."""
    return digest[:12]
