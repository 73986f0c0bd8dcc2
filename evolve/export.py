"""ONNX subgraphs of a route, written node by node: no tracing, the same bytes for the same components.

torch's exporter takes 1.6 s a subgraph and copies the weights; a plain ViT has three kinds of stage, so
their graphs are spelt out here. Weights are external data at their offsets in the components' own
safetensors files. Opset 23, the first with an `Attention` node that ONNX Runtime does not take apart.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from models.network import LAYER_NORM_EPS, NetworkShape
from models.preprocess import Preprocessing, scale_constants
from models.route import StageKind
from models.weights import TensorSlot

OPSET = 23
IR_VERSION = 11  # the one that came with opset 23
FLOAT = TensorProto.FLOAT


@dataclass(frozen=True, slots=True)
class StoredComponent:
    """A component as a graph sees it: the file that holds it, and where its tensors lie in there."""

    file_name: str  # beside the graph
    slots: dict[str, TensorSlot]


class _GraphWriter:
    """Collects nodes and initializers of one graph; values are named by what they are."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[TensorProto] = []

    def node(self, op: str, inputs: Sequence[str], output: str, **attributes: float | int | list[int]) -> str:
        self.nodes.append(helper.make_node(op, list(inputs), [output], **attributes))  # type: ignore[arg-type]
        return output

    def constant(self, name: str, values: np.ndarray) -> str:
        self.initializers.append(numpy_helper.from_array(values, name))
        return name

    def weights(self, prefix: str, component: StoredComponent) -> None:
        """Declare all tensors of a component, their names below `prefix`."""
        for name, slot in sorted(component.slots.items()):
            tensor = TensorProto(name=f"{prefix}{name}", data_type=FLOAT, dims=slot.shape)
            tensor.data_location = TensorProto.EXTERNAL
            place = {"location": component.file_name, "offset": str(slot.offset), "length": str(slot.length)}
            for key, value in place.items():
                tensor.external_data.add(key=key, value=value)
            self.initializers.append(tensor)

    def linear(self, value: str, layer: str, output: str) -> str:
        """Apply a torch-laid-out linear layer, whose weight is [out, in]."""
        self.node("Transpose", [f"{layer}.weight"], f"{output}.transposed", perm=[1, 0])
        self.node("MatMul", [value, f"{output}.transposed"], f"{output}.product")
        return self.node("Add", [f"{output}.product", f"{layer}.bias"], output)

    def layer_norm(self, value: str, layer: str, output: str) -> str:
        scale, bias = f"{layer}.weight", f"{layer}.bias"
        return self.node("LayerNormalization", [value, scale, bias], output, epsilon=LAYER_NORM_EPS)

    def model(self, name: StageKind, value_in: onnx.ValueInfoProto, value_out: onnx.ValueInfoProto) -> bytes:
        graph = helper.make_graph(self.nodes, name, [value_in], [value_out], self.initializers)
        opsets = [helper.make_opsetid("", OPSET)]
        proto = helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION, producer_name="mu2net")
        return proto.SerializeToString(deterministic=True)  # type: ignore[no-any-return]


def embed_graph(
    patch_embed: StoredComponent,
    pos_embed: StoredComponent,
    network: NetworkShape,
    preprocessing: Preprocessing,
    image_size: int,
) -> bytes:
    """Return the graph from `pixels` uint8 [batch, size, size, 3] to `tokens` [batch, tokens, dim].

    Pixels are scaled inside, so a request carries bytes, and the scaling cannot differ from the route's.
    """
    graph = _GraphWriter()
    graph.weights("", patch_embed)
    graph.weights("", pos_embed)
    factor, offset = scale_constants(preprocessing)
    dim, patch, tokens = network.embed_dim, network.patch_size, network.num_tokens(image_size)
    graph.node("Cast", ["pixels"], "levels", to=FLOAT)
    graph.node("Mul", ["levels", graph.constant("factor", factor)], "stretched")
    graph.node("Add", ["stretched", graph.constant("offset", offset)], "scaled")
    graph.node("Transpose", ["scaled"], "images", perm=[0, 3, 1, 2])
    graph.node(
        "Conv",
        ["images", "proj.weight", "proj.bias"],
        "grid",
        kernel_shape=[patch, patch],
        strides=[patch, patch],
    )
    graph.node("Reshape", ["grid", graph.constant("flat", np.array([0, dim, tokens - 1], np.int64))], "columns")
    graph.node("Transpose", ["columns"], "patches", perm=[0, 2, 1])
    # The class token is one of the added places, so that no node asks for the batch's size: such nodes run on the CPU.
    front, behind = np.array([0, 1, 0, 0, 0, 0], np.int64), np.array([0, 0, 0, 0, tokens - 1, 0], np.int64)
    graph.node("Pad", ["cls_token", graph.constant("behind", behind)], "cls")
    graph.node("Add", ["pos_embed", "cls"], "places")
    graph.node("Pad", ["patches", graph.constant("front", front)], "unplaced")
    graph.node("Add", ["unplaced", "places"], "tokens")
    size = [image_size, image_size, 3]
    return graph.model(
        "embed",
        helper.make_tensor_value_info("pixels", TensorProto.UINT8, ["batch", *size]),
        helper.make_tensor_value_info("tokens", FLOAT, ["batch", tokens, dim]),
    )


def block_graph(block: StoredComponent, adapter: StoredComponent | None, network: NetworkShape) -> bytes:
    """Return the graph of a block, its adapter before it, from `tokens` to `out`, both [batch, length, dim].

    Batch and length are free, so routes of every image size share it.
    """
    graph = _GraphWriter()
    tokens = "tokens"
    if adapter is not None:
        graph.weights("adapter.", adapter)
        tokens = _write_adapter(graph, tokens)
    graph.weights("", block)
    graph.layer_norm(tokens, "norm1", "attn.in")
    graph.linear("attn.in", "attn.qkv", "qkv")
    graph.nodes.append(helper.make_node("Split", ["qkv"], ["query", "key", "value"], axis=2, num_outputs=3))
    heads = network.num_heads
    graph.node("Attention", ["query", "key", "value"], "mixed", q_num_heads=heads, kv_num_heads=heads)
    graph.node("Add", [tokens, graph.linear("mixed", "attn.proj", "attn.out")], "attended")
    graph.layer_norm("attended", "norm2", "mlp.in")
    graph.node("Gelu", [graph.linear("mlp.in", "mlp.fc1", "mlp.wide")], "mlp.active")
    graph.node("Add", ["attended", graph.linear("mlp.active", "mlp.fc2", "mlp.out")], "out")
    shape: list[str | int | None] = ["batch", "length", network.embed_dim]
    return graph.model(
        "block",
        helper.make_tensor_value_info("tokens", FLOAT, shape),
        helper.make_tensor_value_info("out", FLOAT, shape),
    )


def _write_adapter(graph: _GraphWriter, tokens: str) -> str:
    graph.layer_norm(tokens, "adapter.norm", "adapter.in")
    graph.node("Gelu", [graph.linear("adapter.in", "adapter.down", "adapter.narrow")], "adapter.active")
    return graph.node("Add", [tokens, graph.linear("adapter.active", "adapter.up", "adapter.wide")], "adapted")


def head_graph(norm: StoredComponent, head: StoredComponent | None, network: NetworkShape) -> bytes:
    """Return the graph from `tokens` [batch, length, dim] to `logits` [batch, classes].

    Without a head, as in a root that was trained without labels, `logits` are the normalised class token.
    """
    graph = _GraphWriter()
    graph.weights("norm.", norm)
    graph.node("Gather", ["tokens", graph.constant("first", np.array(0, np.int64))], "cls", axis=1)
    width = network.embed_dim
    if head is None:
        graph.layer_norm("cls", "norm", "logits")
    else:
        graph.weights("head.", head)
        graph.linear(graph.layer_norm("cls", "norm", "features"), "head", "logits")
        width = head.slots["weight"].shape[0]
    return graph.model(
        "head",
        helper.make_tensor_value_info("tokens", FLOAT, ["batch", "length", network.embed_dim]),
        helper.make_tensor_value_info("logits", FLOAT, ["batch", width]),
    )
