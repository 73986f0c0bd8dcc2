"""The Open Inference Protocol, asked by an unmodified tritonclient of a real server, and by hand where it is wrong."""

import base64
import io
import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.http as triton
from fastapi.testclient import TestClient
from PIL import Image
from tritonclient.utils import InferenceServerException

from models.names import TaskName
from models.preprocess import load_pixels
from models.store import Store
from service.keys import add_key, new_key
from tests.support.images import picture
from tests.support.in_process import LIMITS, problem, served
from tests.support.on_a_port import listening
from tests.support.stores import TaskPlan, make_store, torch_logits

PLANS = (TaskPlan("first", seed=1), TaskPlan("second", image_size=32, seed=2, num_classes=5))
INFER = "/v2/models/second/infer"


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return make_store(tmp_path_factory.mktemp("v2") / "store", *PLANS)


@pytest.fixture(scope="module")
def asked(store: Store) -> Iterator[triton.InferenceServerClient]:
    with listening(store.folder) as (url, _), triton.InferenceServerClient(url.removeprefix("http://")) as found:
        yield found


@pytest.fixture(scope="module")
def client(store: Store) -> Iterator[TestClient]:
    with served(store.folder, **LIMITS) as (client, _):
        yield client


def expected(store: Store, task: str, images: list[bytes]) -> np.ndarray:
    size = store.routes(store.release())[TaskName(task)].image_size
    logits = torch_logits(store, task, np.stack([load_pixels(image, size) for image in images]))
    powers = np.exp(logits)
    found: np.ndarray = powers / powers.sum(1, keepdims=True)
    return found


def test_the_server_and_its_models_describe_themselves(asked: triton.InferenceServerClient) -> None:
    assert asked.is_server_live()
    assert asked.is_server_ready()
    metadata = asked.get_server_metadata()
    assert (metadata["name"], "binary_tensor_data" in metadata["extensions"]) == ("mu2net", True)
    assert asked.get_model_repository_index() == [
        {"name": task, "version": "2", "state": "READY", "reason": ""} for task in ("first", "second")
    ]
    assert asked.get_model_metadata("second") == {
        "name": "second",
        "versions": ["2"],
        "platform": "mu2net_onnxruntime",
        "inputs": [
            {"name": "image", "datatype": "BYTES", "shape": [-1]},
            {"name": "pixels", "datatype": "UINT8", "shape": [-1, -1, -1, 3]},
        ],
        "outputs": [{"name": "probabilities", "datatype": "FP32", "shape": [-1, 5]}],
    }
    assert asked.is_model_ready("first")
    assert asked.is_model_ready("first", "2")
    assert not asked.is_model_ready("third")
    assert not asked.is_model_ready("first", "1")


@pytest.mark.parametrize("binary_input", [True, False], ids=["binary-input", "json-input"])
@pytest.mark.parametrize("binary_output", [True, False], ids=["binary-output", "json-output"])
@pytest.mark.parametrize("name", ["image", "pixels"])
def test_probabilities_equal_the_offline_evaluation(
    asked: triton.InferenceServerClient, store: Store, name: str, binary_input: bool, binary_output: bool
) -> None:
    images = [picture(seed, size=40) for seed in range(3)]
    if name == "pixels":
        values = np.stack([np.asarray(Image.open(io.BytesIO(image))) for image in images])
    else:
        values = np.array([image if binary_input else base64.b64encode(image) for image in images], dtype=np.object_)
    given = triton.InferInput(name, list(values.shape), "UINT8" if name == "pixels" else "BYTES")
    given.set_data_from_numpy(values, binary_data=binary_input)
    wanted = triton.InferRequestedOutput("probabilities", binary_data=binary_output)
    answer = asked.infer("second", [given], outputs=[wanted], request_id="seven")
    found = answer.as_numpy("probabilities")
    assert (found.dtype, found.shape) == (np.float32, (3, 5))
    np.testing.assert_allclose(found, expected(store, "second", images), atol=1e-4)
    about = answer.get_response()
    assert (about["model_name"], about["model_version"], about["id"]) == ("second", "2", "seven")


def test_labels_come_by_the_classification_extension(asked: triton.InferenceServerClient, store: Store) -> None:
    images = [picture(1), picture(2)]
    given = triton.InferInput("image", [2, 1], "BYTES")
    given.set_data_from_numpy(np.array(images, dtype=np.object_).reshape(2, 1))
    wanted = triton.InferRequestedOutput("probabilities", class_count=2)
    found = asked.infer("second", [given], model_version="2", outputs=[wanted]).as_numpy("probabilities")
    assert found.shape == (2, 2)
    for row, probabilities in zip(found, expected(store, "second", images), strict=True):
        best = np.argsort(-probabilities)[:2]
        values, indexes, labels = zip(*(text.decode().split(":") for text in row), strict=True)
        assert [int(index) for index in indexes] == best.tolist()
        assert list(labels) == [f"second {index}" for index in best]
        np.testing.assert_allclose([float(value) for value in values], probabilities[best], atol=1e-4)


def test_without_a_wish_the_probabilities_come_as_bytes(asked: triton.InferenceServerClient) -> None:
    given = triton.InferInput("image", [1], "BYTES")
    given.set_data_from_numpy(np.array([picture()], dtype=np.object_))
    assert asked.infer("first", [given]).as_numpy("probabilities").shape == (1, 3)


def test_the_client_tells_our_errors(asked: triton.InferenceServerClient) -> None:
    given = triton.InferInput("image", [1], "BYTES")
    given.set_data_from_numpy(np.array([b"no image"], dtype=np.object_))
    with pytest.raises(InferenceServerException, match="the 8 bytes are not a readable image"):
        asked.infer("first", [given])
    with pytest.raises(InferenceServerException, match="no route for task 'third'; known tasks: first, second"):
        asked.infer("third", [given])


IMAGE_INPUT = {"name": "image", "datatype": "BYTES", "shape": [1], "data": [base64.b64encode(picture()).decode()]}
PIXELS_INPUT = {"name": "pixels", "datatype": "UINT8", "shape": [1, 1, 2, 3], "data": [1, 2, 3, 4, 5, 6]}


def test_null_counts_as_absent(client: TestClient) -> None:
    tensor = {"name": "pixels", "datatype": "UINT8", "shape": [1, 1, 1, 3], "data": [1, 2, 3]}
    plain = client.post(INFER, json={"inputs": [tensor]})
    nulls = {
        "id": None,
        "parameters": None,
        "inputs": [tensor | {"parameters": {"binary_data_size": None}}],
        "outputs": [{"name": "probabilities", "parameters": None}],
    }
    assert plain.status_code == 200
    for request in (nulls, nulls | {"outputs": None, "parameters": {"binary_data_output": None}}):
        assert client.post(INFER, json=request).json() == plain.json()


@pytest.mark.parametrize(
    ("request_json", "status", "kind", "message"),
    [
        ([], 422, "invalid-input", "the inference request is wrong in the JSON: Input should be an object"),
        ({"inputs": []}, 422, "invalid-input", "the request has 0 inputs: give exactly one input: 'image', BYTES of"),
        ({"inputs": [IMAGE_INPUT, PIXELS_INPUT]}, 422, "invalid-input", "the request has 2 inputs: give exactly one"),
        ({"inputs": [IMAGE_INPUT | {"name": "x"}]}, 422, "invalid-input", "input 'x' of type 'BYTES' is not taken"),
        ({"inputs": [IMAGE_INPUT | {"datatype": "FP32"}]}, 422, "invalid-input", "input 'image' of type 'FP32' is not"),
        ({"inputs": [IMAGE_INPUT | {"shape": [2]}]}, 422, "invalid-input",
         "input 'image' has 1 elements, not 2 as its shape says"),
        ({"inputs": [IMAGE_INPUT | {"shape": [4]}]}, 413, "request-too-large",
         "the request has 4 images; at most 3 are allowed"),
        ({"inputs": [IMAGE_INPUT | {"data": ["%"]}]}, 400, "invalid-image", "an element of 'image' is not base64 ("),
        ({"inputs": [IMAGE_INPUT | {"data": [7]}]}, 400, "invalid-image", "an element of 'image' is not base64 ("),
        ({"inputs": [IMAGE_INPUT | {"data": None}]}, 422, "invalid-input",
         "input 'image' needs either data in the JSON or binary data behind it"),
        ({"inputs": [PIXELS_INPUT | {"shape": [1, 2, 2, 3]}]}, 422, "invalid-input",
         "input 'pixels' has 6 elements, its shape [1, 2, 2, 3] wants 12"),
        ({"inputs": [PIXELS_INPUT | {"shape": [1, 0, 2, 3]}]}, 422, "invalid-input", "input 'pixels' cannot have"),
        ({"inputs": [PIXELS_INPUT | {"shape": [1, 101, 100, 3], "data": [0] * 30_300}]}, 413, "image-too-large",
         "the image has 100 x 101 pixels; at most 10,000 in all are allowed"),
        ({"inputs": [PIXELS_INPUT | {"data": [1, 2, 3, 4, 5, 256]}]}, 422, "invalid-input",
         "the data of 'pixels' are not whole numbers of 0 to 255 ("),
        ({"inputs": [PIXELS_INPUT | {"data": [1, 2, 3, 4, 5, "6"]}]}, 422, "invalid-input",
         "the data of 'pixels' are not whole numbers of 0 to 255 ("),
        ({"inputs": [PIXELS_INPUT | {"data": [[1, 2, 3], 4, 5, 6]}]}, 422, "invalid-input",
         "the data are nested unevenly"),
        ({"inputs": [IMAGE_INPUT], "outputs": [{"name": "logits"}]}, 422, "invalid-input",
         "there is no output 'logits': the one output is 'probabilities'"),
    ],
)  # fmt: skip
def test_a_wrong_request_is_refused(
    client: TestClient, request_json: object, status: int, kind: str, message: str
) -> None:
    refused = client.post(INFER, json=request_json)
    assert problem(refused, status, kind).startswith(message)
    assert refused.json()["error"] == refused.json()["detail"]


def test_nested_json_pixels_are_taken(client: TestClient) -> None:
    flat = client.post(INFER, json={"inputs": [PIXELS_INPUT]})
    nested = client.post(INFER, json={"inputs": [PIXELS_INPUT | {"data": [[[[1, 2, 3], [4, 5, 6]]]]}]})
    assert flat.status_code == 200
    assert flat.json() == nested.json()


def binary_request(elements: bytes, size: int | None = None) -> bytes:
    tensor: dict[str, Any] = {"name": "image", "datatype": "BYTES", "shape": [1]}
    tensor["parameters"] = {"binary_data_size": len(elements) if size is None else size}
    return json.dumps({"inputs": [tensor]}).encode()


@pytest.mark.parametrize(
    ("elements", "header", "status", "message"),
    [
        (struct.pack("<I", 9) + b"short", None, 400, "the binary data of 'image' end within an element"),
        (b"\x01", None, 400, "the binary data of 'image' end within an element"),
        (b"", None, 422, "input 'image' needs either data in the JSON or binary data behind it"),
        (b"abcd", "99999", 422, "header Inference-Header-Content-Length is '99999': give the bytes of JSON, at most"),
        (b"abcd", "-1", 422, "header Inference-Header-Content-Length is '-1': give the bytes of JSON, at most"),
        (b"abcd", "3", 422, "the inference request is wrong in the JSON: Invalid JSON: EOF while parsing"),
    ],
)
def test_wrong_binary_data_are_refused(
    client: TestClient, elements: bytes, header: str | None, status: int, message: str
) -> None:
    text = binary_request(elements)
    headers = {"inference-header-content-length": str(len(text)) if header is None else header}
    refused = client.post(INFER, content=text + elements, headers=headers)
    assert (refused.status_code, refused.json()["detail"][: len(message)]) == (status, message)


def test_a_compressed_body_is_refused(client: TestClient) -> None:
    refused = client.post(INFER, content=b"x", headers={"content-encoding": "gzip"})
    assert (
        problem(refused, 415, "unsupported-media") == "content encoding 'gzip' is not supported: send the body as it is"
    )


def test_keys_and_limits_hold_here_too(tmp_path: Path) -> None:
    store = make_store(tmp_path / "store", *PLANS, TaskPlan("secret", private=True))
    key, token = new_key("a test", classify=("first",), manages=(), rate=None)
    add_key(store.files, key)
    with served(store.folder, max_request_bytes=2000) as (client, _):
        assert client.get("/v2/health/ready").status_code == 200
        for path in ("/v2", "/v2/models/first", "/v2/models/first/ready"):
            assert client.get(path).status_code == 401
        client.headers["authorization"] = f"Bearer {token}"
        assert "secret" not in client.post("/v2/repository/index").text
        assert client.get("/v2/models/secret/ready").status_code == 404
        assert client.post("/v2/models/secret/infer", json={"inputs": [PIXELS_INPUT]}).status_code == 404
        assert client.post("/v2/models/second/infer", json={"inputs": [PIXELS_INPUT]}).status_code == 403
        assert client.post("/v2/models/first/infer", json={"inputs": [PIXELS_INPUT]}).status_code == 200
        assert client.post("/v2/models/first/infer", content=bytes(2001)).status_code == 413


def json_of(parts: int) -> bytes:
    """A request whose data are `parts` empty lists."""
    data = b",".join([b"[]"] * parts)
    return b'{"inputs":[{"name":"pixels","datatype":"UINT8","shape":[1,1,1,3],"data":[' + data + b"]}]}"


@pytest.mark.parametrize(
    ("settings", "parts", "told"),
    [
        ({}, 125_001, "the JSON has 250,012 values, lists and members; at most 250,000 are allowed: send tensors as"),
        ({"max_json_bytes": 2000}, 1000, "the JSON has more than 2,000 bytes; at most 2,000 bytes are allowed: send t"),
    ],
    ids=["parts", "bytes"],
)
def test_json_is_refused_before_it_becomes_objects(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any], parts: int, told: str
) -> None:
    def parse(text: bytes) -> None:
        raise AssertionError(f"{len(text)} bytes were parsed")

    monkeypatch.setattr("service.tensors.InferenceRequest.model_validate_json", parse)
    store = make_store(tmp_path / "store", TaskPlan("first"))
    with served(store.folder, **settings) as (client, _):
        answer = client.post("/v2/models/first/infer", content=json_of(parts))
        assert problem(answer, 413, "request-too-large").startswith(told)


def test_binary_data_do_not_count_as_json_but_the_json_before_them_does(tmp_path: Path) -> None:
    store = make_store(tmp_path / "store", TaskPlan("first"))
    with served(store.folder, max_json_bytes=1024) as (client, _):
        pixels = bytes(40 * 40 * 3)
        for padding, status in ((0, 200), (1024, 413)):
            tensor = {"name": "pixels", "datatype": "UINT8", "shape": [1, 40, 40, 3]}
            told = {"inputs": [tensor | {"parameters": {"binary_data_size": len(pixels)}}], "id": "x" * padding}
            text = json.dumps(told).encode()
            headers = {"inference-header-content-length": str(len(text))}
            assert client.post("/v2/models/first/infer", content=text + pixels, headers=headers).status_code == status
