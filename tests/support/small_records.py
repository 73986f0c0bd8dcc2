"""Routes with real records and a few bytes of weights, torch-free: for tests of the store, which runs none of them."""

import numpy as np

from models.component import ComponentKind, ComponentRecord
from models.names import ComponentId, GoldenId, RouteId, SubgraphId, TaskName
from models.network import NetworkShape
from models.preprocess import Preprocessing
from models.release import Release
from models.route import Lineage, Quality, Route, Stage, StageKind
from models.store import Store
from models.weights import serialize

SHAPE = NetworkShape(embed_dim=4, depth=1, num_heads=1, patch_size=4, image_size=4, mlp_dim=16)
STAGES: tuple[tuple[StageKind, tuple[ComponentKind, ...]], ...] = (
    ("embed", ("patch_embed", "pos_embed")),
    ("block", ("block",)),
    ("head", ("norm", "head")),
)


def toy_store(location: str) -> Store:
    return Store.create(location, lambda store: toy_route(store, None, 0))


def toy_route(store: Store, task: str | None, seed: int) -> Route:
    """Store the objects of a route whose head, and nothing else, is its own; return its record."""

    def component(kind: ComponentKind) -> ComponentRecord:
        values = {"weight": np.full(4, seed if kind == "head" else -1, np.float32)}
        return ComponentRecord(kind, ComponentId(store.put_object(serialize(values), "safetensors")), 4)

    stages = []
    for stage, kinds in STAGES:
        graph = f"graph of {stage} {seed if stage == 'head' else ''}".encode()
        stages.append(Stage(stage, SubgraphId(store.put_object(graph, "onnx")), tuple(map(component, kinds))))
    sample = serialize({"pixels": np.full((1, 4, 4, 3), seed, np.uint8), "logits": np.zeros((1, 2), np.float32)})
    return Route(
        task=None if task is None else TaskName(task),
        stages=tuple(stages),
        network=SHAPE,
        image_size=4,
        preprocessing=Preprocessing((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
        labels=("a", "b"),
        hparams={},
        quality=None if task is None else Quality(0.5, 4, 0.5),
        lineage=Lineage(None, (), 0, f"by hand {seed}", 0),
        golden=None if task is None else GoldenId(store.put_object(sample, "safetensors")),
    )


def publish_toy(store: Store, task: str, seed: int) -> Release:
    """Store and publish a route of `task`."""
    route_id: RouteId = store.put_route(toy_route(store, task, seed))
    return store.publish(lambda tasks: {**tasks, TaskName(task): route_id}, reason=f"{task} {seed}")
