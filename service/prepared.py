"""Subgraphs as ONNX Runtime wants them on this machine: optimised, their weights packed, in files that are mapped.

A session made of such files copies no weights, so one more session costs little, and all processes of the
machine have the same pages. What is packed depends on the processor and on ONNX Runtime's version, so both name the
folder, and nothing of it belongs into a store. ONNX Runtime writes one file of weights for each graph; here they are
taken apart by content, since a block with an adapter before it has the weights of the block without.

    <folder>/<machine>/<subgraph>.json     which files below a subgraph needs
    <folder>/<machine>/<sha256>.onnx       its graph, with its small weights
    <folder>/<machine>/<sha256>.weights    one large weight, as it was and packed

Whatever is missing or damaged is made again. Processes share the folder without locks: files appear whole.
"""

import hashlib
import json
import logging
import os
import platform
import shutil
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from functools import cache
from pathlib import Path

import onnxruntime as ort

from models.files import make_folder, written_beside
from models.leftovers import drop_leftovers
from models.names import SubgraphId
from service.external_data import Entries, move_weights
from service.runtime import CPU, Runtime

FORMAT = 1
UNUSED_S = 30 * 24 * 3600.0  # after which a file goes; another server of this machine may still want it
PACKED = "prepacked_"  # ONNX Runtime's entries: a kernel's name, then place;length;checksum of each packed buffer

log = logging.getLogger("mu2net.prepared")


def prepared_graphs(cache: Path | None, runtime: Runtime) -> "PreparedGraphs | None":
    """Return the prepared graphs in a server's `cache`, None for the usual one; None where there can be none."""
    folder = (Path.home() / ".cache" / "mu2net" if cache is None else cache) / "prepared"
    if runtime.provider != CPU:
        return None
    if is_in_memory(folder):
        log.info("weights are copied instead of mapped: %s is in memory itself", folder)
        return None
    return PreparedGraphs(folder, runtime)


class PreparedGraphs:
    """The folder, for sessions on the CPU. Used from one thread at a time."""

    def __init__(self, folder: Path, runtime: Runtime) -> None:
        self._all = folder
        self._folder = folder / machine_name(runtime.version)
        self._runtime = runtime
        self._is_usable = True

    @property
    def folder(self) -> Path:
        """The folder of all machines' files."""
        return self._all

    def session(self, subgraph: SubgraphId, source: Path) -> ort.InferenceSession:
        """Return a session of the graph at `source`, which was checked, through prepared files where possible."""
        if not self._is_usable:
            return self._runtime.session(source)
        try:
            return self._runtime.session(self._kept(subgraph) or self._prepare(subgraph, source))
        except Exception as error:  # ONNX Runtime's have no common type; what is wrong with the graph itself
            session = self._runtime.session(source)  # is raised here
            self._is_usable = False
            log.warning("weights are copied instead of mapped: %s cannot be used: %s", self._folder, error)
            return session

    def _kept(self, subgraph: SubgraphId) -> Path | None:
        """Return the graph's file if all of it is there and right."""
        try:
            names: list[str] = json.loads((self._folder / f"{subgraph}.json").read_text())
        except (FileNotFoundError, ValueError, RecursionError):
            return None
        return self._folder / names[0] if all(map(self._is_whole, names)) else None

    def _is_whole(self, name: str) -> bool:
        """Tell whether a file is there and right; it counts as used from now on."""
        path = self._folder / name
        try:
            os.utime(path)
            return _digest(path.read_bytes()) == path.stem
        except FileNotFoundError:
            return False

    def _prepare(self, subgraph: SubgraphId, source: Path) -> Path:
        make_folder(self._folder)
        weights: dict[str, None] = {}
        with written_beside(self._folder / "graph", is_folder=True) as made:
            packed = self._runtime.save_prepared(source, made / "graph.onnx")

            def move(entries: Entries) -> Entries:
                begin, end = _extent(entries)
                name = self._keep(packed[begin:end], "weights")
                weights[name] = None
                return _moved(entries, name, -begin)

            graph = move_weights((made / "graph.onnx").read_bytes(), move)
        name = self._keep(graph, "onnx")
        self._replace(f"{subgraph}.json", json.dumps([name, *weights]).encode())
        return self._folder / name

    def _keep(self, data: bytes, suffix: str) -> str:
        """Store `data` under its digest. What is there already stays: others have it mapped and shall share it."""
        name = f"{_digest(data)}.{suffix}"
        if not self._is_whole(name):
            self._replace(name, data)
        return name

    def _replace(self, name: str, data: bytes) -> None:
        """Write a file that appears whole; a session that has the old one mapped keeps it."""
        with written_beside(self._folder / name) as temporary:
            temporary.write_bytes(data)
            os.replace(temporary, self._folder / name)

    def trim(self, in_use: Iterable[SubgraphId]) -> int:
        """Delete what no server of this machine has used for a month, of whatever version; return the bytes."""
        for subgraph in in_use:
            with suppress(OSError, ValueError):
                for name in [f"{subgraph}.json", *json.loads((self._folder / f"{subgraph}.json").read_text())]:
                    os.utime(self._folder / name)
        old = time.time() - UNUSED_S
        freed = drop_leftovers(self._all)
        for path in self._all.glob("*/*"):
            with suppress(OSError):  # another server trims too
                status = path.stat()
                if status.st_mtime < old:
                    shutil.rmtree(path) if path.is_dir() else path.unlink()
                    freed += status.st_size
        return freed


def _extent(entries: Entries) -> tuple[int, int]:
    """Return where a weight and what was packed of it begin and end in the file."""
    places = [(int(entries["offset"]), int(entries["length"]))]
    for key, value in entries.items():
        if key.startswith(PACKED):
            places += [(int(place), int(length)) for place, length, _ in _buffers(value)]
    return min(begin for begin, _ in places), max(begin + length for begin, length in places)


def _buffers(packed: str) -> list[list[str]]:
    return [buffer.split(";") for buffer in packed.split("|")[1:]]


def _moved(entries: Entries, location: str, by: int) -> Mapping[str, str]:
    """Return the entries of the same weight in another file, `by` bytes further on."""
    moved = {**entries, "location": location, "offset": str(int(entries["offset"]) + by)}
    for key, value in entries.items():
        if key.startswith(PACKED):
            buffers = [";".join([str(int(place) + by), *rest]) for place, *rest in _buffers(value)]
            moved[key] = "|".join([value.split("|")[0], *buffers])
    return moved


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def is_in_memory(folder: Path) -> bool:
    """Tell whether a folder's file system is memory itself, where a mapped file and its packed copy save nothing."""
    place = folder.absolute()
    try:
        mounts = [line.split()[1:3] for line in Path("/proc/mounts").read_text().splitlines()]
    except OSError:
        return False
    above = [(point, kind) for point, kind in mounts if place.is_relative_to(point)]
    return max(reversed(above), key=lambda mount: len(mount[0]), default=("", ""))[1] in {"tmpfs", "ramfs"}


@cache
def machine_name(version: str) -> str:
    """Return a name for what packed weights depend on: this processor and ONNX Runtime's `version`."""
    processor = {"": platform.processor()}
    with suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines()
        pairs = (line.split(":", 1) for line in lines if ":" in line)
        facts = {key.strip(): value.strip() for key, value in pairs}
        processor = {key: facts.get(key, "") for key in ("model name", "flags", "CPU part", "Features")}
    described = json.dumps([FORMAT, version, platform.machine(), processor], sort_keys=True)
    return hashlib.sha256(described.encode()).hexdigest()[:16]
