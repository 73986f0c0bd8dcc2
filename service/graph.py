"""Which ONNX graphs a server runs: those of the operators that `evolve/export.py` writes, and nothing that loops.

A graph is a program, and whoever writes the store chooses it. So before ONNX Runtime sees one, its protobuf is read
here: operators of an allow-list only, no graph inside a graph (`Loop`, `If`, `Scan`), no functions, weights only from
the files that the route names and that were checked against their digests. ONNX's own library would read it too, but
serving needs it for nothing else.
"""

from collections.abc import Collection, Iterator
from dataclasses import dataclass

from models.errors import InvalidRoute

# Derived from real exports by tests/test_service_graph.py: an operator that is exported and not here fails it.
OPERATORS: frozenset[tuple[str, str]] = frozenset(
    {("com.microsoft", "MatMulIntegerToFloat")}
    | {
        ("", name)
        for name in (
            "Add", "Attention", "Cast", "Concat", "Conv", "Expand", "Gather", "Gelu", "LayerNormalization", "MatMul",
            "Max", "Mul", "Pad", "QuantizeLinear", "ReduceMax", "ReduceMin", "Reshape", "Shape", "Split", "Transpose",
            "Unsqueeze",
        )
    }
)  # fmt: skip
DOMAINS = {"": "", "ai.onnx": ""}  # two names of the same operators
FLOATS = {1, 10}  # TensorProto's float32 and float16: a Cast to integers would let values of pixels become sizes
MAX_NODES = 1000
MAX_DIMENSIONS = 8
MAX_ELEMENTS = 2**31  # of one tensor, declared or stored
ATTRIBUTE_GRAPH, ATTRIBUTE_GRAPHS = 6, 11

# Field numbers of onnx.proto3.
MODEL_GRAPH, MODEL_TRAINING, MODEL_FUNCTIONS = 7, 20, 25
GRAPH_NODE, GRAPH_INITIALIZER, GRAPH_INPUT, GRAPH_OUTPUT, GRAPH_SPARSE = 1, 5, 11, 12, 15
NODE_OPERATOR, NODE_ATTRIBUTE, NODE_DOMAIN = 4, 5, 7
ATTRIBUTE_NAME, ATTRIBUTE_INT, ATTRIBUTE_TENSOR, ATTRIBUTE_TENSORS, ATTRIBUTE_SPARSE = 1, 3, 5, 10, (22, 23)
TENSOR_DIMS, TENSOR_TYPE, TENSOR_NAME, TENSOR_EXTERNAL = 1, 2, 8, 13
ENTRY_KEY, ENTRY_VALUE = 1, 2

Value = int | bytes
VARINT, EIGHT_BYTES, DELIMITED, FOUR_BYTES = 0, 1, 2, 5  # wire types


@dataclass(frozen=True, slots=True)
class _Message:
    """The fields of one protobuf message, in order."""

    fields: tuple[tuple[int, Value], ...]

    def messages(self, number: int) -> Iterator["_Message"]:
        return (read(value) for found, value in self.fields if found == number and isinstance(value, bytes))

    def texts(self, number: int) -> list[str]:
        return [value.decode() for found, value in self.fields if found == number and isinstance(value, bytes)]

    def text(self, number: int) -> str:
        return (self.texts(number) or [""])[-1]

    def numbers(self, number: int) -> list[int]:
        """Return a repeated integer, packed or not."""
        found: list[int] = []
        for field, value in self.fields:
            if field == number:
                found += [value] if isinstance(value, int) else _packed(value)
        return found

    def has(self, *numbers: int) -> bool:
        return any(field in numbers for field, _ in self.fields)


def check_graph(data: bytes, *, files: Collection[str], shown: str) -> None:
    """Check that a graph does nothing that no export of ours does.

    Args:
        data: the ONNX model.
        files: names of the files, beside the graph, that its weights may lie in.
        shown: the graph, for error messages.

    Raises:
        InvalidRoute: it does; the message says what.
    """
    try:
        _check_model(read(data), files)
    except _NotAllowed as error:
        raise InvalidRoute(
            f"{shown} {error}: no release of this software has such a graph; publish the task again, or go back"
        ) from None
    except (ValueError, IndexError) as error:
        raise InvalidRoute(f"{shown} is no ONNX graph that can be read ({error}): publish the task again") from error


class _NotAllowed(Exception):
    """What a graph has that it must not have."""


def _check_model(model: _Message, files: Collection[str]) -> None:
    if model.has(MODEL_TRAINING, MODEL_FUNCTIONS):
        raise _NotAllowed("has functions of its own")
    graphs = list(model.messages(MODEL_GRAPH))
    if len(graphs) != 1:
        raise _NotAllowed(f"has {len(graphs)} graphs instead of 1")
    graph = graphs[0]
    if graph.has(GRAPH_SPARSE):
        raise _NotAllowed("has sparse weights")
    nodes = list(graph.messages(GRAPH_NODE))
    if len(nodes) > MAX_NODES:
        raise _NotAllowed(f"has {len(nodes)} nodes; at most {MAX_NODES} are allowed")
    for node in nodes:
        _check_node(node)
    for tensor in graph.messages(GRAPH_INITIALIZER):
        _check_tensor(tensor, files)
    for number in (GRAPH_INPUT, GRAPH_OUTPUT):
        count = len(list(graph.messages(number)))
        if count != 1:
            raise _NotAllowed(f"has {count} {'inputs' if number == GRAPH_INPUT else 'outputs'} instead of 1")


def _check_node(node: _Message) -> None:
    operator, domain = node.text(NODE_OPERATOR), node.text(NODE_DOMAIN)
    if (DOMAINS.get(domain, domain), operator) not in OPERATORS:
        named = f"{domain}.{operator}" if domain else operator
        raise _NotAllowed(f"has the operator {named[:80]!r}, which is not among the {len(OPERATORS)} allowed ones")
    for attribute in node.messages(NODE_ATTRIBUTE):
        if attribute.has(ATTRIBUTE_GRAPH, ATTRIBUTE_GRAPHS):
            raise _NotAllowed(f"has a graph inside of its operator {operator!r}")
        if attribute.has(ATTRIBUTE_TENSOR, ATTRIBUTE_TENSORS, *ATTRIBUTE_SPARSE):
            raise _NotAllowed(f"has a tensor as an attribute of its operator {operator!r}")
        is_target = operator == "Cast" and attribute.text(ATTRIBUTE_NAME) == "to"
        if is_target and not FLOATS.issuperset(attribute.numbers(ATTRIBUTE_INT)):
            raise _NotAllowed("casts to something else than float32 or float16")


def _check_tensor(tensor: _Message, files: Collection[str]) -> None:
    name = tensor.text(TENSOR_NAME)[:80]
    dims = tensor.numbers(TENSOR_DIMS)
    elements = 1
    for dim in dims:
        elements *= dim
    if len(dims) > MAX_DIMENSIONS or elements > MAX_ELEMENTS:
        raise _NotAllowed(f"has a tensor {name!r} of shape {dims[:MAX_DIMENSIONS]}, too large for one")
    for entry in tensor.messages(TENSOR_EXTERNAL):
        if entry.text(ENTRY_KEY) == "location" and entry.text(ENTRY_VALUE) not in files:
            raise _NotAllowed(
                f"reads the weights {name!r} from {entry.text(ENTRY_VALUE)[:100]!r}, a file that is not its stage's"
            )


def read(data: bytes) -> _Message:
    """Return the fields of a protobuf message; ValueError or IndexError if it is none."""
    fields: list[tuple[int, Value]] = []
    at = 0
    while at < len(data):
        tag, at = _varint(data, at)
        number, wire = tag >> 3, tag & 7
        value: Value
        if wire == VARINT:
            value, at = _varint(data, at)
        elif wire == DELIMITED:
            length, at = _varint(data, at)
            value, at = data[at : at + length], at + length
        elif wire in (EIGHT_BYTES, FOUR_BYTES):
            width = 8 if wire == EIGHT_BYTES else 4
            value, at = data[at : at + width], at + width
        else:
            raise ValueError(f"wire type {wire} at byte {at}")
        if at > len(data):
            raise ValueError("it is cut off")
        fields.append((number, value))
    return _Message(tuple(fields))


def _packed(data: bytes) -> list[int]:
    found: list[int] = []
    at = 0
    while at < len(data):
        value, at = _varint(data, at)
        found.append(value)
    return found


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """Return the number at `at`, and where it ends."""
    value = shift = 0
    while shift < 70:
        byte = data[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return value, at
    raise ValueError("a number of more than ten bytes")
