"""Weights that candidates are made of: published ones from the store, unpublished ones from the run's folder.

Every set of weights has the sha256 of its content as its id, published or not, so a candidate is a list
of ids, and one that kept a component untouched says so by its id.
"""

import hashlib
from pathlib import Path

import numpy as np

from models.errors import MissingObject
from models.files import LocalFiles
from models.names import ComponentId
from models.store import Store
from models.weights import Weights, deserialize, num_parameters, serialize


class WeightPool:
    """Reads weights by id and takes new ones in. Nothing in it is ever changed in place.

    Without a store it has only what was put into it: on another machine of a cluster.
    """

    def __init__(self, store: Store | None, run_folder: Path) -> None:
        self._store = store
        self._files = LocalFiles(run_folder)

    @property
    def folder(self) -> Path:
        """The run's folder, for what can be computed again; gone when the run has ended."""
        return self._files.folder

    def put(self, weights: Weights) -> ComponentId:
        """Take weights in and return their id; those that the store has already are not written again."""
        data = serialize(weights)
        component = ComponentId(hashlib.sha256(data).hexdigest())
        is_stored = self._store is not None and self._store.has_object(component, "safetensors")
        if not is_stored and not self.has(component):
            self._files.replace(_name(component), data)
        return component

    def has(self, component: ComponentId) -> bool:
        """Whether the weights lie in the run's folder."""
        return self._files.exists(_name(component))

    def take(self, component: ComponentId, data: bytes) -> None:
        """Take in a safetensors file as `read` of another pool returned it."""
        self._files.replace(_name(component), data)

    def read(self, component: ComponentId) -> bytes:
        """Return the safetensors file of a component, checked against its id; StoreError if it cannot."""
        if not self.has(component) and self._store is not None:
            return self._store.read_object(component, "safetensors", needed_by="a candidate of this run")
        data = self._files.read(_name(component))
        if hashlib.sha256(data).hexdigest() != component:
            raise MissingObject(
                f"{self._files.path(_name(component))} is damaged: delete {self._files.folder} and evolve again"
            )
        return data

    def get(self, component: ComponentId) -> dict[str, np.ndarray]:
        return deserialize(self.read(component), component)

    def num_parameters(self, component: ComponentId) -> int:
        return num_parameters(self.get(component))


def _name(component: ComponentId) -> str:
    return f"weights/{component}.safetensors"
