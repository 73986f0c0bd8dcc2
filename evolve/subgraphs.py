"""The subgraphs of a route, written into the store from its stored components, in float32 or a lower precision."""

from collections.abc import Sequence
from dataclasses import dataclass

from evolve.export import StoredComponent, block_graph, embed_graph, head_graph
from models.component import ComponentRecord
from models.names import LoweredId, SubgraphId
from models.network import NetworkShape
from models.precision import Precision, lower
from models.preprocess import Preprocessing
from models.route import LoweredStage, Stage, StageKind
from models.store import Store
from models.weights import deserialize, serialize, tensor_slots


@dataclass(frozen=True, slots=True)
class SubgraphWriter:
    """Writes subgraphs for routes of one network, preprocessing and image size."""

    store: Store
    network: NetworkShape
    preprocessing: Preprocessing
    image_size: int

    def write_stages(self, components: Sequence[ComponentRecord]) -> tuple[Stage, ...]:
        """Write the float32 subgraphs of a route, and return its stages."""
        patch_embed, pos_embed, *middle = components
        head = [middle.pop()] if middle[-1].kind == "head" else []
        norm = middle.pop()
        stages = [self._stage("embed", (patch_embed, pos_embed))]
        before: tuple[ComponentRecord, ...] = ()
        for component in middle:
            if component.kind == "adapter":
                before = (component,)
                continue
            stages.append(self._stage("block", (*before, component)))
            before = ()
        return (*stages, self._stage("head", (norm, *head)))

    def _stage(self, kind: StageKind, components: tuple[ComponentRecord, ...]) -> Stage:
        return Stage(kind, self.write(kind, components, None).subgraph, components)

    def write(
        self, kind: StageKind, components: Sequence[ComponentRecord], precision: Precision | None
    ) -> LoweredStage:
        """Write one subgraph, None is float32, with the lowered weights that it reads."""
        stored = [self._stored(component, precision) for component in components]
        if kind == "embed":
            patch_embed, pos_embed = stored
            data = embed_graph(patch_embed, pos_embed, self.network, self.preprocessing, self.image_size)
        elif kind == "block":
            adapter = stored[0] if len(stored) > 1 else None
            data = block_graph(stored[-1], adapter, self.network)
        else:
            data = head_graph(stored[0], stored[1] if len(stored) > 1 else None, self.network)
        weights = [component.lowered.file_name for component in stored if component.lowered]
        return LoweredStage(
            SubgraphId(self.store.put_object(data, "onnx")),
            tuple(LoweredId(name.removesuffix(".safetensors")) for name in weights),
        )

    def _stored(self, component: ComponentRecord, precision: Precision | None) -> StoredComponent:
        data = self.store.read_object(component.id, "safetensors", needed_by="a route that is being published")
        weights = lower(component.kind, deserialize(data, component.id), precision) if precision else None
        lowered = None
        if weights is not None:
            lowered_data = serialize(weights)
            name = f"{self.store.put_object(lowered_data, 'safetensors')}.safetensors"
            lowered = StoredComponent(name, tensor_slots(lowered_data))
        return StoredComponent(f"{component.id}.safetensors", tensor_slots(data), lowered)
