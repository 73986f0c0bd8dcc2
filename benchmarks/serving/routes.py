"""The routes that are measured: random weights in a store, and the same weights as one ONNX model a task.

Speed and memory do not depend on what the weights are. A task has its own last blocks, norm and head;
the rest is the root's. The whole model is made of the route's own subgraphs, so it has the same nodes,
with the weights inside and turned as ONNX Runtime wants them, as an exporter would have written it.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import compose, numpy_helper

from evolve.network import assemble, build_part
from evolve.publish import create_store
from evolve.subgraphs import SubgraphWriter
from models.component import ComponentKind, ComponentRecord
from models.names import ComponentId, GoldenId, TaskName
from models.preprocess import scale_pixels
from models.root import load_root
from models.route import Quality, Route
from models.store import Store
from models.weights import Weights, deserialize, num_parameters, serialize

SEED = 0
NUM_CLASSES = 10


@dataclass(frozen=True, slots=True)
class Mix:
    """A root and how each task differs from it."""

    name: str
    root: str
    image_size: int
    own_blocks: int  # the last ones


FIXED = Mix("fixed", "random:embed_dim=192,depth=12,num_heads=3,patch_size=16,image_size=224", 224, 2)
HEAVY = Mix("heavy", "random:embed_dim=768,depth=12,num_heads=12,patch_size=16,image_size=224", 224, 0)
LIGHT = Mix("light", "random:embed_dim=192,depth=3,num_heads=3,patch_size=16,image_size=32", 32, 1)


def task_name(index: int) -> TaskName:
    return TaskName(f"task-{index:03d}")


def make_store(folder: Path, mix: Mix, tasks: int) -> Store:
    """Return the store of `mix` with so many tasks, made where it is missing."""
    location = folder / f"{mix.name}-{tasks}"
    if (location / "COMPLETE").exists():
        return Store.open(location)
    store = create_store(location, load_root(mix.root))
    routes = {task_name(index): store.put_route(_route(store, mix, index)) for index in range(tasks)}
    store.publish(lambda _: routes, reason="benchmark")
    (location / "COMPLETE").touch()
    return store


def _route(store: Store, mix: Mix, index: int) -> Route:
    rng = np.random.default_rng((SEED, index))
    root = store.root()
    components = list(root.components)
    first_own = len(components) - 1 - mix.own_blocks
    for place in range(first_own, len(components)):
        components[place] = _store(store, components[place].kind, _noisy(rng, _read(store, components[place])))
    width = root.network.embed_dim
    head = {"weight": rng.normal(size=(NUM_CLASSES, width), scale=width**-0.5), "bias": np.zeros(NUM_CLASSES)}
    components.append(_store(store, "head", {name: v.astype(np.float32) for name, v in head.items()}))
    stages = SubgraphWriter(store, root.network, root.preprocessing, mix.image_size).write_stages(components)
    route = replace(
        root,
        task=task_name(index),
        stages=stages,
        labels=tuple(f"class {number}" for number in range(NUM_CLASSES)),
        quality=Quality(0.1, 1, 0.1),
    )
    pixels = rng.integers(0, 256, (1, mix.image_size, mix.image_size, 3), dtype=np.uint8)
    golden = {"pixels": pixels, "logits": _torch_logits(store, route, pixels)}
    return replace(route, golden=GoldenId(store.put_object(serialize(golden), "safetensors")))


def _read(store: Store, component: ComponentRecord) -> Weights:
    return deserialize(store.read_object(component.id, "safetensors", needed_by="a benchmark"), component.id)


def _noisy(rng: np.random.Generator, weights: Weights) -> Weights:
    return {name: (v + 0.01 * rng.normal(size=v.shape)).astype(np.float32) for name, v in weights.items()}


def _torch_logits(store: Store, route: Route, pixels: np.ndarray) -> np.ndarray:
    kinds = [component.kind for component in route.components]
    parts = [build_part(c.kind, _read(store, c), route.network) for c in route.components]
    with torch.no_grad():
        logits: np.ndarray = assemble(kinds, parts)(torch.from_numpy(scale_pixels(pixels, route.preprocessing))).numpy()
    return logits


def _store(store: Store, kind: ComponentKind, weights: Weights) -> ComponentRecord:
    digest = store.put_object(serialize(weights), "safetensors")
    return ComponentRecord(kind, ComponentId(digest), num_parameters(weights))


def export_whole(store: Store, folder: Path, task: TaskName) -> Path:
    """Write a task's route as one ONNX file with its weights inside, where it is missing, and return its path."""
    path = folder / f"{store.folder.name}-{task}.onnx"
    if path.exists():
        return path
    route = store.routes(store.release())[task]
    whole: onnx.ModelProto | None = None
    for index, stage in enumerate(route.stages):
        graph = onnx.load(str(store.folder / "objects" / f"{stage.subgraph}.onnx"))
        graph = compose.add_prefix(graph, f"{index}.")
        if whole is None:
            whole = graph
        else:
            joint = [(whole.graph.output[0].name, graph.graph.input[0].name)]
            whole = compose.merge_models(whole, graph, io_map=joint)
    assert whole is not None, "a route has stages"
    _turn_weights(whole.graph)
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".part")
    onnx.save(whole, str(unfinished))
    unfinished.rename(path)
    return path


def _turn_weights(graph: onnx.GraphProto) -> None:
    """Replace each transposed weight by its turned copy, as exporters do."""
    initializers = {tensor.name: tensor for tensor in graph.initializer}
    turned = [node for node in graph.node if node.op_type == "Transpose" and node.input[0] in initializers]
    for node in turned:
        weight = numpy_helper.to_array(initializers[node.input[0]])
        graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(weight.T), node.output[0]))
        graph.initializer.remove(initializers[node.input[0]])
        graph.node.remove(node)
