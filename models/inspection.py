"""Labelled images looked at as a whole: all that can refuse them, before anything is kept or trained.

As a program, `python -m models.inspection FILE`, it does so in a process of its own, niced: a server has
uploads looked at beside its requests, and what an upload does to a decoder happens there.
"""

import asyncio
import hashlib
import json
import os
import sys
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from models.errors import ImageTooLarge, InvalidData, InvalidImage
from models.image_folder import ImageEntry, ImageFolder, find_unreadable, open_image_folder, unreadable

NICENESS = 15
TIME_LIMIT_S = 900.0


@dataclass(frozen=True, slots=True)
class Inspected:
    """Labelled images that can make a task."""

    images: int
    classes: int


def inspect_images(path: Path, *, shown_as: str) -> Inspected:
    """Look at every image of a folder or zip.

    Raises:
        InvalidData: they cannot make a task; the message says what to mend.
    """
    with open_image_folder(path, shown_as=shown_as) as folder:
        problems = find_unreadable(folder)
        if problems:
            raise unreadable(problems, len(folder.entries), shown_as)
        require_choice(image_digests(folder), shown_as)
        return Inspected(len(folder.entries), len(folder.labels))


def image_digests(folder: ImageFolder) -> dict[ImageEntry, str]:
    """Return the sha256 of each image file, or of why it cannot be read."""

    def digest(entry: ImageEntry) -> str:
        try:
            return hashlib.sha256(folder.read(entry)).hexdigest()
        except (InvalidImage, ImageTooLarge) as error:  # counted as unreadable elsewhere
            return hashlib.sha256(f"unreadable: {error}".encode()).hexdigest()

    return dict(zip(folder.entries, folder.map(digest, folder.entries), strict=True))


def require_choice(digests: Mapping[ImageEntry, str], shown_as: str) -> None:
    """Raise InvalidData if there is nothing to select on: no val, and no class with two different images."""
    if any(entry.split == "val" for entry in digests):
        return
    different: dict[int, set[str]] = defaultdict(set)
    for entry, digest in digests.items():
        if entry.split != "test":
            different[entry.label].add(digest)
    if all(len(found) < 2 for found in different.values()):
        raise InvalidData(f"{shown_as} has one image per class, none is left for validation: add more of each")


async def inspect_apart(path: Path, *, shown_as: str) -> Inspected:
    """Do what `inspect_images` does, in a process of its own.

    Raises:
        InvalidData: as there; also if the process dies or takes too long.
    """
    command = [sys.executable, "-m", "models.inspection", str(path), shown_as]
    process = await asyncio.create_subprocess_exec(
        *command, cwd=Path(__file__).parents[1], stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL
    )
    try:
        output, _ = await asyncio.wait_for(process.communicate(), TIME_LIMIT_S)
        told = json.loads(output)
    except (TimeoutError, ValueError) as error:
        raise InvalidData(
            f"{shown_as} cannot be looked at: decoding it took over {TIME_LIMIT_S:g} s or ended the decoder; send "
            "fewer or smaller images"
        ) from error
    finally:
        if process.returncode is None:
            process.kill()
    if "problem" in told:
        raise InvalidData(told["problem"])
    return Inspected(**told)


def main() -> None:
    """Print what was found, or `{"problem": ...}`, as JSON."""
    os.nice(NICENESS)
    path, shown_as = sys.argv[1:]
    try:
        told: dict[str, object] = asdict(inspect_images(Path(path), shown_as=shown_as))
    except InvalidData as error:
        told = {"problem": str(error)}
    print(json.dumps(told))


if __name__ == "__main__":
    main()
