"""Tensors of the Open Inference Protocol: images out of a request, and outputs into an answer.

Tensors are JSON or, by the protocol's binary-data extension, raw bytes behind the JSON, whose length a header
gives. A model takes two inputs, of which a request gives exactly one: `image`, encoded files, and `pixels`.
"""

import base64
import binascii
import math
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
from jaxtyping import Float
from pydantic import BaseModel, Field, ValidationError, model_validator

from models.errors import InvalidImage, InvalidInput, RequestTooLarge
from service.decoders import EncodedOrPixels

IMAGE, PIXELS, PROBABILITIES = "image", "pixels", "probabilities"
JSON_LENGTH_HEADER = "Inference-Header-Content-Length"
HOW_TO_ASK = (
    f"give exactly one input: {IMAGE!r}, BYTES of shape [images], encoded files (base64 in JSON), or {PIXELS!r}, "
    "UINT8 of shape [images, height, width, 3]"
)
MAX_CLASSES = 10_000
MAX_JSON_PARTS = 250_000  # numbers, lists and members: nested pixels of one image of 224 x 224 have 200,000

Probabilities = Float[np.ndarray, "images classes"]


class Message(BaseModel):
    """A part of a request; a field that is null counts as absent, as clients in other languages send it."""

    @model_validator(mode="before")
    @classmethod
    def without_nulls(cls, value: Any) -> Any:
        return {name: item for name, item in value.items() if item is not None} if isinstance(value, dict) else value


class TensorParameters(Message):
    binary_data_size: int | None = Field(default=None, ge=0, description="bytes of this tensor behind the JSON")


class InferenceInput(Message):
    name: str
    datatype: str
    shape: list[int] = Field(max_length=8)
    parameters: TensorParameters = TensorParameters()
    data: list[Any] | None = Field(default=None, description="row by row, flat or nested; leave it out for binary data")


class OutputParameters(Message):
    classification: int | None = Field(
        default=None, ge=1, le=MAX_CLASSES, description="name so many classes, best first"
    )
    binary_data: bool | None = Field(default=None, description="answer behind the JSON instead of in it")


class RequestedOutput(Message):
    name: str
    parameters: OutputParameters = OutputParameters()


class RequestParameters(Message):
    binary_data_output: bool = False


class InferenceRequest(Message):
    """What a model is asked; parameters that are unknown here are ignored, as the protocol wants."""

    id: str | None = Field(default=None, max_length=1000)
    parameters: RequestParameters = RequestParameters()
    inputs: list[InferenceInput] = Field(description=HOW_TO_ASK)
    outputs: list[RequestedOutput] | None = Field(default=None, max_length=1, description="'probabilities', if any")


class OutputTensor(BaseModel):
    name: str
    datatype: str = Field(description="FP32; BYTES for a classification, with texts 'probability:index:label'")
    shape: list[int]
    data: list[Any] | None = None
    parameters: TensorParameters | None = None


@dataclass(frozen=True, slots=True)
class Inference:
    """A request as it is understood. `num_labels` None asks for probabilities."""

    id: str | None
    images: Sequence[EncodedOrPixels]
    is_binary: bool
    num_labels: int | None


def read_inference(body: bytes, json_length: str | None, *, max_images: int, max_json_bytes: int) -> Inference:
    """Return what a request asks.

    Args:
        body: JSON, and behind it the binary data.
        json_length: the header that tells where one ends; None if all is JSON.
        max_images: of one request.
        max_json_bytes: of the JSON.

    Raises:
        InvalidInput: the request, a tensor's shape or its type is not what the model takes.
        InvalidImage: an image's base64 or length is broken.
        RequestTooLarge: more images or JSON than allowed.
    """
    end = len(body) if json_length is None else _length(json_length, len(body))
    _check_json(body, end, max_json_bytes)
    try:
        request = InferenceRequest.model_validate_json(body[:end])
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"])) or "the JSON"
        raise InvalidInput(f"the inference request is wrong in {where}: {first['msg']}; {HOW_TO_ASK}") from error
    output = _output(request)
    asked = output.parameters.binary_data
    return Inference(
        id=request.id,
        images=_images(request, body[end:], max_images),
        is_binary=request.parameters.binary_data_output if asked is None else asked,
        num_labels=output.parameters.classification,
    )


def _check_json(body: bytes, end: int, max_bytes: int) -> None:
    """Refuse JSON that would become too many objects: 60 MiB of empty lists took 2.5 GiB and 8.9 s (measured)."""
    if end > max_bytes:
        raise json_too_large(f"{end:,} bytes", f"{max_bytes:,} bytes")
    parts = sum(body.count(mark, 0, end) for mark in (b",", b"[", b"{"))  # within texts too, where few are
    if parts > MAX_JSON_PARTS:
        raise json_too_large(f"{parts:,} values, lists and members", f"{MAX_JSON_PARTS:,}")


def json_too_large(found: str, allowed: str) -> RequestTooLarge:
    return RequestTooLarge(
        f"the JSON has {found}; at most {allowed} are allowed: send tensors as binary data behind the JSON, with their "
        f"length as binary_data_size and the JSON's in the header {JSON_LENGTH_HEADER}"
    )


def _length(text: str, longest: int) -> int:
    if not text.isascii() or not text.isdigit() or len(text) > 12 or int(text) > longest:
        raise InvalidInput(f"header {JSON_LENGTH_HEADER} is {text[:80]!r}: give the bytes of JSON, at most {longest:,}")
    return int(text)


def _output(request: InferenceRequest) -> RequestedOutput:
    output = request.outputs[0] if request.outputs else RequestedOutput(name=PROBABILITIES)
    if output.name != PROBABILITIES:
        raise InvalidInput(f"there is no output {output.name[:80]!r}: the one output is {PROBABILITIES!r}")
    return output


def _images(request: InferenceRequest, binary: bytes, max_images: int) -> list[EncodedOrPixels]:
    if len(request.inputs) != 1:
        raise InvalidInput(f"the request has {len(request.inputs)} inputs: {HOW_TO_ASK}")
    (tensor,) = request.inputs
    kind = (tensor.name, tensor.datatype)
    if kind not in {(IMAGE, "BYTES"), (PIXELS, "UINT8")}:
        raise InvalidInput(f"input {tensor.name[:80]!r} of type {tensor.datatype[:80]!r} is not taken: {HOW_TO_ASK}")
    rest = tensor.shape[1:]
    fits = rest in ([], [1]) if tensor.name == IMAGE else len(rest) == 3 and min(rest) > 0 and rest[2] == 3
    if not tensor.shape or tensor.shape[0] < 1 or not fits:
        raise InvalidInput(f"input {tensor.name!r} cannot have shape {tensor.shape}: {HOW_TO_ASK}")
    if tensor.shape[0] > max_images:
        raise RequestTooLarge(
            f"the request has {tensor.shape[0]} images; at most {max_images} are allowed: send several requests"
        )
    if (tensor.data is None) != (tensor.parameters.binary_data_size == len(binary) > 0):
        raise InvalidInput(
            f"input {tensor.name!r} needs either data in the JSON or binary data behind it, whose binary_data_size is "
            f"{tensor.parameters.binary_data_size} and which has {len(binary)} bytes"
        )
    read = _encoded_images if tensor.name == IMAGE else _pixels
    return read(tensor, binary)


def _encoded_images(tensor: InferenceInput, binary: bytes) -> list[EncodedOrPixels]:
    found = list(_split(binary) if tensor.data is None else map(_from_base64, _flat(tensor.data)))
    if len(found) != tensor.shape[0]:
        raise InvalidInput(f"input {IMAGE!r} has {len(found)} elements, not {tensor.shape[0]} as its shape says")
    return list(found)


def _split(binary: bytes) -> Iterable[bytes]:
    """Yield the elements of BYTES, each with its length before it."""
    at = 0
    while at < len(binary):
        start = at + 4
        length = struct.unpack_from("<I", binary, at)[0] if start <= len(binary) else 0
        at = start + length
        if at > len(binary):
            raise InvalidImage(f"the binary data of {IMAGE!r} end within an element: each needs its length before it")
        yield binary[start:at]


def _from_base64(text: object) -> bytes:
    try:
        return base64.b64decode(text, validate=True)  # type: ignore[arg-type]  # of what is no text it says so
    except (binascii.Error, TypeError, ValueError) as error:
        raise InvalidImage(f"an element of {IMAGE!r} is not base64 ({error}): encode the file's bytes") from error


def _pixels(tensor: InferenceInput, binary: bytes) -> list[EncodedOrPixels]:
    if tensor.data is not None:
        try:
            binary = bytes(_flat(tensor.data))
        except (TypeError, ValueError) as error:
            raise InvalidInput(f"the data of {PIXELS!r} are not whole numbers of 0 to 255 ({error})") from error
    if len(binary) != math.prod(tensor.shape):
        raise InvalidInput(
            f"input {PIXELS!r} has {len(binary):,} elements, its shape {tensor.shape} wants {math.prod(tensor.shape):,}"
        )
    return list(np.frombuffer(binary, np.uint8).reshape(tensor.shape))


def _flat(data: list[Any]) -> list[Any]:
    while data and isinstance(data[0], list):
        if not all(isinstance(row, list) for row in data):
            raise InvalidInput("the data are nested unevenly: nest them as the shape says, or give them flat")
        data = list(chain.from_iterable(data))
    return data


def write_outputs(found: Probabilities, labels: Sequence[str], inference: Inference) -> tuple[OutputTensor, bytes]:
    """Return the output as the request wants it, and its binary data, empty if it is all in the JSON."""
    if inference.num_labels is None:
        values, datatype = found.astype("<f4"), "FP32"
        binary = values.tobytes()
        data: list[Any] = values.ravel().tolist()
    else:
        texts = [text for row in found for text in _classes(row, labels, inference.num_labels)]
        values, datatype = np.empty((len(found), min(inference.num_labels, len(labels)))), "BYTES"
        binary = b"".join(struct.pack("<I", len(text.encode())) + text.encode() for text in texts)
        data = list(texts)
    tensor = OutputTensor(name=PROBABILITIES, datatype=datatype, shape=list(values.shape))
    if inference.is_binary:
        return tensor.model_copy(update={"parameters": TensorParameters(binary_data_size=len(binary))}), binary
    return tensor.model_copy(update={"data": data}), b""


def _classes(row: Float[np.ndarray, " classes"], labels: Sequence[str], count: int) -> list[str]:
    order = np.argsort(-row, kind="stable")[:count]
    return [f"{row[index]:.6f}:{index}:{labels[index]}" for index in order]
