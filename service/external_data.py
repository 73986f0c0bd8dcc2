"""Where the weights of a saved ONNX graph lie, read and changed in its bytes.

ONNX's own library would do it too, but serving needs it for nothing else: of the graph's protobuf only a
path of four nested messages has to be followed, and all else is copied as it is.
"""

from collections.abc import Callable, Mapping

INITIALIZERS = (7, 5)  # ModelProto.graph, GraphProto.initializer
ENTRIES = 13  # TensorProto.external_data, pairs of strings
KEY, VALUE = 1, 2
VARINT, EIGHT_BYTES, DELIMITED, FOUR_BYTES = 0, 1, 2, 5  # wire types

Entries = Mapping[str, str]


def move_weights(model: bytes, move: Callable[[Entries], Entries]) -> bytes:
    """Return a model in which every initializer outside of the file lies where `move` says.

    Args:
        model: an ONNX model's bytes.
        move: from such an initializer's entries (location, offset, length, and what ONNX Runtime has put to
            them) to the same entries with new values.
    """

    def change(tensor: bytes) -> bytes:
        entries: dict[str, str] = {}

        def collect(entry: bytes) -> bytes:
            key, value = _pair(entry)
            entries[key] = value
            return entry

        _rewrite(tensor, (ENTRIES,), collect)
        if not entries:
            return tensor
        moved = move(entries)
        return _rewrite(tensor, (ENTRIES,), lambda entry: _entry(_pair(entry)[0], moved[_pair(entry)[0]]))

    return _rewrite(model, INITIALIZERS, change)


def _rewrite(message: bytes, path: tuple[int, ...], change: Callable[[bytes], bytes]) -> bytes:
    """Return `message` with each field at `path`, field numbers from the outermost on, put through `change`."""
    parts: list[bytes] = []
    at = 0
    while at < len(message):
        begin = at
        tag, at = _varint(message, at)
        number, wire = tag >> 3, tag & 7
        if wire == DELIMITED:
            length, at = _varint(message, at)
            value, at = message[at : at + length], at + length
            if number == path[0]:
                parts.append(_field(number, _rewrite(value, path[1:], change) if path[1:] else change(value)))
                continue
        elif wire == VARINT:
            _, at = _varint(message, at)
        else:
            at += {EIGHT_BYTES: 8, FOUR_BYTES: 4}[wire]
        parts.append(message[begin:at])
    return b"".join(parts)


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """Return the number at `at`, and where it ends."""
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return value, at


def _field(number: int, value: bytes) -> bytes:
    return _encoded(number << 3 | DELIMITED) + _encoded(len(value)) + value


def _encoded(value: int) -> bytes:
    groups = [value & 127]
    while value := value >> 7:
        groups.append(value & 127)
    return bytes([*(group | 128 for group in groups[:-1]), groups[-1]])


def _pair(entry: bytes) -> tuple[str, str]:
    texts = {KEY: "", VALUE: ""}
    for field in texts:

        def keep(value: bytes, field: int = field) -> bytes:
            texts[field] = value.decode()
            return value

        _rewrite(entry, (field,), keep)
    return texts[KEY], texts[VALUE]


def _entry(key: str, value: str) -> bytes:
    return _field(KEY, key.encode()) + _field(VALUE, value.encode())
