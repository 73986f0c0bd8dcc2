"""Stores whose routes part and meet as a test wants: made from a random root by hand, without any training."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from onnx import TensorProto, helper, numpy_helper

from evolve.export import IR_VERSION, OPSET
from evolve.network import assemble, build_part
from evolve.onnx_route import OnnxRoute
from evolve.publish import create_store
from evolve.subgraphs import SubgraphWriter
from models.component import ComponentKind, ComponentRecord
from models.names import ComponentId, GoldenId, RouteId, SubgraphId, TaskName
from models.precision import Precision
from models.preprocess import scale_pixels
from models.records import encode
from models.release import Release
from models.root import load_root, resized_pos_embed
from models.route import Lineage, Quality, Route, Stage, Variant
from models.store import Current, Store, now, release_name
from models.weights import Weights, deserialize, num_parameters, serialize

# Why a server must refuse a release, and the kind of error that it then tells.
WRONG = {
    "golden mismatch": "export-mismatch",
    "damaged file": "damaged-object",
    "missing file": "missing-object",
    "unknown format": "unsupported-format",
    "out of memory": "out-of-memory",
}
ROOT = "random:embed_dim=16,depth=3,num_heads=2,patch_size=8,image_size=16"


@dataclass(frozen=True, slots=True)
class TaskPlan:
    """How a task's route differs from the root: what is its own, and where."""

    name: str
    own_blocks: Sequence[int] = ()
    adapters: Mapping[int, int] = field(default_factory=dict)  # before block -> width
    depth: int = 3
    image_size: int = 16
    num_classes: int = 3
    seed: int = 1
    golden_error: float = 0.0  # added to the stored logits, to make a release that must be refused
    nan: bool = False
    private: bool = False


def make_store(folder: Path, *plans: TaskPlan, root: str = ROOT) -> Store:
    store = create_store(folder, load_root(root))
    for plan in plans:
        add_task(store, plan)
    return store


def add_task(store: Store, plan: TaskPlan) -> Release:
    """Store a route made after `plan` and release it."""
    route_id = store_route(store, plan)
    return store.publish(lambda tasks: {**tasks, TaskName(plan.name): route_id}, reason=f"{plan.name} by hand")


def store_route(store: Store, plan: TaskPlan) -> RouteId:
    """Store a route made after `plan`, with all it needs, and release nothing."""
    return store.put_route(_route(store, plan))


def force_release(store: Store, changes: Mapping[str, RouteId]) -> Release:
    """Make a release with other routes active without any check, as no publisher would."""
    base = store.release()
    tasks = {**base.tasks, **{TaskName(name): route_id for name, route_id in changes.items()}}
    number = store.release_numbers()[-1] + 1
    release = base.successor(tasks, number=number, reason="not checked", created_at=now())
    store.files.create(release_name(number), encode(release))
    store.files.replace("CURRENT", encode(Current(number)))
    return release


def hungry_graph(embed_dim: int, seed: int) -> bytes:
    """Return a graph of one block's shape that asks for 64 TiB as soon as it runs; another one for each seed."""
    tokens = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", "tokens", embed_dim]) for name in "xy"]
    shape = numpy_helper.from_array(np.array([2**24, 2**20], np.int64), "shape")
    nodes = [
        helper.make_node("ReduceMax", ["x"], ["largest"], keepdims=0),
        helper.make_node("Expand", ["largest", "shape"], ["huge"]),
        helper.make_node("ReduceMax", ["huge"], ["again"], keepdims=0),
        helper.make_node("Add", ["x", "again"], ["y"]),
    ]
    graph = helper.make_graph(nodes, f"hungry {seed}", tokens[:1], tokens[1:], [shape])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
    data: bytes = model.SerializeToString()
    return data


def store_wrong_route(store: Store, plan: TaskPlan, kind: str) -> RouteId:
    """Store a route that no server may take up, for the reason `kind`; files are yet to be damaged."""
    route_id = store_route(store, replace(plan, golden_error=1.0 if kind == "golden mismatch" else 0.0))
    route = store.route(route_id, needed_by="a test")
    if kind == "unknown format":
        record = json.loads(encode(route)) | {"format_version": 9}
        return RouteId(store.put_object(json.dumps(record).encode(), "json"))
    if kind == "out of memory":
        embed, block, *rest = route.stages
        graph = SubgraphId(store.put_object(hungry_graph(route.network.embed_dim, plan.seed), "onnx"))
        return store.put_route(replace(route, stages=(embed, replace(block, subgraph=graph), *rest)))
    return route_id


def damage(store: Store, route_id: RouteId, kind: str) -> Callable[[], None]:
    """Damage or remove a graph of a route if `kind` says so; return what mends it."""
    route = store.route(route_id, needed_by="a test") if kind.endswith("file") else None
    if route is None:
        return lambda: None
    path = store.object_path(route.stages[1].subgraph, "onnx", needed_by="a test")
    content = path.read_bytes()
    if kind == "damaged file":
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    else:
        path.unlink()
    return lambda: store.local_files.replace(f"objects/{path.name}", content)


def torch_logits(store: Store, task: str, pixels: np.ndarray) -> np.ndarray:
    """Return what the offline evaluation, in torch, says of uint8 pixels [n, size, size, 3]."""
    return route_logits(store, store.routes(store.release())[TaskName(task)], pixels)


def route_logits(store: Store, route: Route, pixels: np.ndarray) -> np.ndarray:
    """Return the same of any stored route."""
    kinds = [component.kind for component in route.components]
    parts = [build_part(c.kind, _read(store, c.id), route.network) for c in route.components]
    with torch.no_grad():
        logits: np.ndarray = assemble(kinds, parts)(torch.from_numpy(scale_pixels(pixels, route.preprocessing))).numpy()
    return logits


def _route(store: Store, plan: TaskPlan) -> Route:
    rng = np.random.default_rng(plan.seed)
    root = store.root()
    parts: list[tuple[ComponentKind, Weights]] = []
    blocks = 0
    for component in (found for found in root.components if found.kind != "head"):
        if component.kind == "block" and blocks >= plan.depth:
            continue
        weights = _read(store, component.id)
        if component.kind == "pos_embed":
            weights = dict(resized_pos_embed(weights, plan.image_size, root.network.patch_size))
        if component.kind == "block":
            if blocks in plan.adapters:
                parts.append(("adapter", _adapter(rng, root.network.embed_dim, plan.adapters[blocks])))
            if blocks in plan.own_blocks:
                weights = _noisy(rng, weights)
            blocks += 1
        parts.append((component.kind, _noisy(rng, weights) if component.kind == "norm" else weights))
    head = {"weight": rng.normal(size=(plan.num_classes, root.network.embed_dim)), "bias": np.zeros(plan.num_classes)}
    parts.append(("head", {name: values.astype(np.float32) for name, values in head.items()}))
    pixels = rng.integers(0, 256, (2, plan.image_size, plan.image_size, 3), dtype=np.uint8)
    modules = [build_part(kind, weights, root.network) for kind, weights in parts]
    with torch.no_grad():
        network = assemble([kind for kind, _ in parts], modules)
        logits = network(torch.from_numpy(scale_pixels(pixels, root.preprocessing))).numpy() + np.float32(
            np.nan if plan.nan else plan.golden_error
        )
    golden = store.put_object(serialize({"pixels": pixels, "logits": logits}), "safetensors")
    return Route(
        task=TaskName(plan.name),
        stages=_stages(store, root, parts, plan.image_size),
        network=root.network,
        image_size=plan.image_size,
        preprocessing=root.preprocessing,
        labels=tuple(f"{plan.name} {index}" for index in range(plan.num_classes)),
        hparams={"learning_rate": 0.01},
        quality=Quality(validation_accuracy=0.5, validation_images=4, score=0.4),
        lineage=Lineage(store.release().root, ("by hand",), 1, plan.name, 0),
        golden=GoldenId(golden),
        private=plan.private,
    )


def _stages(
    store: Store, root: Route, parts: Sequence[tuple[ComponentKind, Weights]], image_size: int
) -> tuple[Stage, ...]:
    records = [
        ComponentRecord(kind, ComponentId(store.put_object(serialize(weights), "safetensors")), num_parameters(weights))
        for kind, weights in parts
    ]
    return SubgraphWriter(store, root.network, root.preprocessing, image_size).write_stages(records)


def lower_all(store: Store, precision: Precision) -> Release:
    """Release every task in a precision as well, whatever that costs in accuracy."""
    tasks = {}
    for task, route in store.routes(store.release()).items():
        writer = SubgraphWriter(store, route.network, route.preprocessing, route.image_size)
        stages = tuple(writer.write(stage.kind, stage.components, precision) for stage in route.stages)
        golden = deserialize(store.read_object(str(route.golden), "safetensors", needed_by="a test"), "golden samples")
        golden["logits"] = OnnxRoute(store, route.stages, stages).logits(golden["pixels"])
        golden_id = GoldenId(store.put_object(serialize(golden), "safetensors"))
        variants = {**route.variants, precision: Variant(stages, golden_id, 0.5, 0.5, 4)}
        tasks[task] = store.put_route(replace(route, variants=variants))
    return store.publish(lambda _: tasks, reason="lowered by hand", precisions={precision: 100.0})


def _noisy(rng: np.random.Generator, weights: Weights) -> dict[str, np.ndarray]:
    # In the order of the names: that of a read file is another one in each process.
    return {
        name: (values + 0.1 * rng.normal(size=values.shape)).astype(np.float32)
        for name, values in sorted(weights.items())
    }


def _adapter(rng: np.random.Generator, dim: int, width: int) -> dict[str, np.ndarray]:
    shapes = {
        "norm.weight": (dim,),
        "norm.bias": (dim,),
        "down.weight": (width, dim),
        "down.bias": (width,),
        "up.weight": (dim, width),
        "up.bias": (dim,),
    }
    return {name: rng.normal(size=shape, scale=0.3).astype(np.float32) for name, shape in shapes.items()}


def _read(store: Store, component: ComponentId) -> dict[str, np.ndarray]:
    return deserialize(store.read_object(component, "safetensors", needed_by="a test"), component)
