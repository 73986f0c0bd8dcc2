"""ONNX subgraphs of a route, written node by node: no tracing, the same bytes for the same components.

torch's exporter takes 1.6 s a subgraph and copies the weights; a plain ViT has three kinds of stage, so
their graphs are spelt out here. Weights are external data at their offsets in the components' own
safetensors files. Opset 23, the first with an `Attention` node that ONNX Runtime does not take apart.

Every subgraph takes and gives float32 tokens, whatever it computes in, so those of different precisions follow
each other freely. Which precision that is follows from the weights it is given, see `models.precision`.
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
FLOAT, HALF = TensorProto.FLOAT, TensorProto.FLOAT16
DATA_TYPES = {"F32": FLOAT, "F16": HALF, "I8": TensorProto.INT8}
CONTRIB = "com.microsoft"  # ONNX Runtime's own operators
# Activations are uint8, which is what processors multiply with int8 weights at once, around a level for 0.
LEVELS = 256
EVEN_ZERO = 128
GELU_ZERO = 32  # GELU is never below -0.17: a finer step wherever a token has values above 0.7
SMALLEST_SCALE = 1e-12  # of a token that is all zeros


@dataclass(frozen=True, slots=True)
class StoredComponent:
    """A component as a graph sees it: the file that holds it, and where its tensors lie in there."""

    file_name: str  # beside the graph
    slots: dict[str, TensorSlot]
    lowered: "StoredComponent | None" = None  # tensors that take the place of those of the same name


class _GraphWriter:
    """Collects nodes and initializers of one graph; values are named by what they are."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[TensorProto] = []
        self.data_types: dict[str, int] = {}  # of weights

    def node(self, op: str, inputs: Sequence[str], output: str, **attributes: float | int | str | list[int]) -> str:
        self.nodes.append(helper.make_node(op, list(inputs), [output], **attributes))  # type: ignore[arg-type]
        return output

    def constant(self, name: str, values: np.ndarray) -> str:
        self.initializers.append(numpy_helper.from_array(values, name))
        return name

    def weights(self, prefix: str, component: StoredComponent) -> None:
        """Declare all tensors of a component, their names below `prefix`, lowered ones where it has them."""
        lowered = component.lowered
        taken = lowered.slots.keys() if lowered else set()
        places = [(name, slot, component) for name, slot in component.slots.items() if name not in taken]
        if lowered:
            places += [(name, slot, lowered) for name, slot in lowered.slots.items()]
        for name, slot, holder in sorted(places, key=lambda place: place[0]):
            data_type = DATA_TYPES[slot.dtype]
            self.data_types[f"{prefix}{name}"] = data_type
            tensor = TensorProto(name=f"{prefix}{name}", data_type=data_type, dims=slot.shape)
            tensor.data_location = TensorProto.EXTERNAL
            place = {"location": holder.file_name, "offset": str(slot.offset), "length": str(slot.length)}
            for key, value in place.items():
                tensor.external_data.add(key=key, value=value)
            self.initializers.append(tensor)

    def linear(self, value: str, layer: str, output: str) -> str:
        """Apply a linear layer to float32 or, as its weights are, float16 values: weight [out, in], bias [out]."""
        self.node("Transpose", [f"{layer}.weight"], f"{output}.transposed", perm=[1, 0])
        self.node("MatMul", [value, f"{output}.transposed"], f"{output}.product")
        return self.node("Add", [f"{output}.product", f"{layer}.bias"], output)

    def int8_linear(self, value: str, layer: str, output: str, *, zero: int = EVEN_ZERO) -> str:
        """Apply a linear layer of int8 weights [in, out] to float32 rows [n, in], each row scaled by itself.

        `zero` is the level, of 0 to 255, that stands for 0: below it is room for what is negative.
        """
        axes = self.shared("last", np.array([-1], np.int64))
        self.node("ReduceMax", [value, axes], f"{output}.max", keepdims=0)
        self.node("ReduceMin", [value, axes], f"{output}.min", keepdims=0)
        above = self.shared(f"above.{zero}", np.array(1 / (LEVELS - 1 - zero), np.float32))
        below = self.shared(f"below.{zero}", np.array(-1 / zero, np.float32))
        self.node("Mul", [f"{output}.max", above], f"{output}.upwards")
        self.node("Mul", [f"{output}.min", below], f"{output}.downwards")
        smallest = self.shared("smallest", np.array(SMALLEST_SCALE, np.float32))
        self.node("Max", [f"{output}.upwards", f"{output}.downwards", smallest], f"{output}.scale")  # (n,)
        self.node("QuantizeLinear", [value, f"{output}.scale", self.zeros(zero)], f"{output}.levels", axis=0)
        one, level = self.shared("one", np.array(1, np.float32)), self.shared(f"zero.{zero}", np.array(zero, np.uint8))
        operands = [f"{output}.levels", f"{layer}.weight", one, f"{layer}.scale", level]
        self.node("MatMulIntegerToFloat", operands, f"{output}.product", domain=CONTRIB)
        self.node("Unsqueeze", [f"{output}.scale", axes], f"{output}.row_scale")
        self.node("Mul", [f"{output}.product", f"{output}.row_scale"], f"{output}.scaled")
        return self.node("Add", [f"{output}.scaled", f"{layer}.bias"], output)

    def zeros(self, zero: int) -> str:
        """Return as many zero points as there are `rows`."""
        name = f"zeros.{zero}"
        if not any(name in node.output for node in self.nodes):
            self.node("Expand", [self.shared(f"zero.{zero}", np.array(zero, np.uint8)), "num_rows"], name)
        return name

    def shared(self, name: str, values: np.ndarray) -> str:
        """Return a constant that several nodes use."""
        return name if any(tensor.name == name for tensor in self.initializers) else self.constant(name, values)

    def layer_norm(self, value: str, layer: str, output: str) -> str:
        scale, bias = f"{layer}.weight", f"{layer}.bias"
        return self.node("LayerNormalization", [value, scale, bias], output, epsilon=LAYER_NORM_EPS)

    def model(self, name: StageKind, value_in: onnx.ValueInfoProto, value_out: onnx.ValueInfoProto) -> bytes:
        graph = helper.make_graph(self.nodes, name, [value_in], [value_out], self.initializers)
        opsets = [helper.make_opsetid("", OPSET)]
        if any(node.domain == CONTRIB for node in self.nodes):
            opsets.append(helper.make_opsetid(CONTRIB, 1))
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
    is_half = graph.data_types["proj.weight"] == HALF
    images = graph.node("Cast", ["images"], "half.images", to=HALF) if is_half else "images"
    graph.node(
        "Conv",
        [images, "proj.weight", "proj.bias"],
        "half.grid" if is_half else "grid",
        kernel_shape=[patch, patch],
        strides=[patch, patch],
    )
    if is_half:
        graph.node("Cast", ["half.grid"], "grid", to=FLOAT)
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
    write = _write_int8_block if graph.data_types["attn.qkv.weight"] == TensorProto.INT8 else _write_block
    write(graph, tokens, network)
    shape: list[str | int | None] = ["batch", "length", network.embed_dim]
    return graph.model(
        "block",
        helper.make_tensor_value_info("tokens", FLOAT, shape),
        helper.make_tensor_value_info("out", FLOAT, shape),
    )


def _write_block(graph: _GraphWriter, tokens: str, network: NetworkShape) -> None:
    """Write a block in float32; in float16 its matrix products and what lies between them."""
    is_half = graph.data_types["attn.qkv.weight"] == HALF
    attn_in = _cast(graph, graph.layer_norm(tokens, "norm1", "attn.in"), HALF, is_half)
    mixed = _write_attention(graph, graph.linear(attn_in, "attn.qkv", "qkv"), network)
    attn_out = _cast(graph, graph.linear(mixed, "attn.proj", "attn.out"), FLOAT, is_half)
    graph.node("Add", [tokens, attn_out], "attended")
    mlp_in = _cast(graph, graph.layer_norm("attended", "norm2", "mlp.in"), HALF, is_half)
    graph.node("Gelu", [graph.linear(mlp_in, "mlp.fc1", "mlp.wide")], "mlp.active")
    mlp_out = _cast(graph, graph.linear("mlp.active", "mlp.fc2", "mlp.out"), FLOAT, is_half)
    graph.node("Add", ["attended", mlp_out], "out")


def _write_int8_block(graph: _GraphWriter, tokens: str, network: NetworkShape) -> None:
    """Write a block whose matrices are int8. All but the attention sees tokens as rows [batch * length, dim]."""
    dim = network.embed_dim
    graph.node("Shape", [tokens], "places", start=0, end=2)
    graph.node("Reshape", [tokens, graph.constant("rows_shape", np.array([-1, dim], np.int64))], "rows")
    graph.node("Shape", ["rows"], "num_rows", start=0, end=1)
    graph.int8_linear(graph.layer_norm("rows", "norm1", "attn.in"), "attn.qkv", "qkv.rows")
    graph.node("Concat", ["places", graph.constant("qkv_width", np.array([3 * dim], np.int64))], "qkv_shape", axis=0)
    mixed = _write_attention(graph, graph.node("Reshape", ["qkv.rows", "qkv_shape"], "qkv"), network)
    graph.node("Reshape", [mixed, "rows_shape"], "mixed.rows")
    graph.node("Add", ["rows", graph.int8_linear("mixed.rows", "attn.proj", "attn.out")], "attended")
    graph.int8_linear(graph.layer_norm("attended", "norm2", "mlp.in"), "mlp.fc1", "mlp.wide")
    graph.node("Gelu", ["mlp.wide"], "mlp.active")
    graph.node("Add", ["attended", graph.int8_linear("mlp.active", "mlp.fc2", "mlp.out", zero=GELU_ZERO)], "out.rows")
    graph.node("Concat", ["places", graph.constant("width", np.array([dim], np.int64))], "out_shape", axis=0)
    graph.node("Reshape", ["out.rows", "out_shape"], "out")


def _write_attention(graph: _GraphWriter, qkv: str, network: NetworkShape) -> str:
    graph.nodes.append(helper.make_node("Split", [qkv], ["query", "key", "value"], axis=2, num_outputs=3))
    heads = network.num_heads
    return graph.node("Attention", ["query", "key", "value"], "mixed", q_num_heads=heads, kv_num_heads=heads)


def _write_adapter(graph: _GraphWriter, tokens: str) -> str:
    is_half = graph.data_types["adapter.down.weight"] == HALF
    inside = _cast(graph, graph.layer_norm(tokens, "adapter.norm", "adapter.in"), HALF, is_half)
    graph.node("Gelu", [graph.linear(inside, "adapter.down", "adapter.narrow")], "adapter.active")
    wide = _cast(graph, graph.linear("adapter.active", "adapter.up", "adapter.wide"), FLOAT, is_half)
    return graph.node("Add", [tokens, wide], "adapted")


def _cast(graph: _GraphWriter, value: str, data_type: int, is_needed: bool) -> str:
    return graph.node("Cast", [value], f"{value}.cast", to=data_type) if is_needed else value


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
