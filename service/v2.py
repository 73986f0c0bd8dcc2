"""The Open Inference Protocol (V2) at /v2, so that existing clients work unchanged: a model is a task.

A model's versions are the resident releases that have the task. Same limits, queue, keys and errors as /v1.
https://github.com/kserve/open-inference-protocol
"""

from typing import Annotated

import numpy as np
from fastapi import FastAPI, Path, Request, Response
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from models.errors import InvalidInput, RequestTooLarge
from service import asking, errors, openapi, tensors, views
from service.access import allow, server_of
from service.release import LoadedRelease
from service.schemas import IndexRequest
from service.tensors import IMAGE, JSON_LENGTH_HEADER, PIXELS, PROBABILITIES
from service.upload import read_body

PLATFORM = "mu2net_onnxruntime"
EXTENSIONS = ("binary_tensor_data", "classification", "model_repository")
MODEL, VERSION = "/v2/models/{model}", "/v2/models/{model}/versions/{version}"

Version = Annotated[int, Path(ge=0, le=10**9, description="the number of a resident release")]


INDEX_BYTES = 2**10  # of a request for the index


class ServerMetadata(BaseModel):
    name: str
    version: str
    extensions: list[str]


class Live(BaseModel):
    live: bool


class Ready(BaseModel):
    ready: bool


class ModelReady(BaseModel):
    name: str
    ready: bool


class TensorMetadata(BaseModel):
    name: str
    datatype: str
    shape: list[int] = Field(description="-1 is any size")


class ModelMetadata(BaseModel):
    name: str
    versions: list[str] = Field(description="resident releases that have the task, the live one first")
    platform: str
    inputs: list[TensorMetadata] = Field(description="a request gives exactly one of them")
    outputs: list[TensorMetadata]


class IndexEntry(BaseModel):
    name: str
    version: str
    state: str
    reason: str


class InferenceResponse(BaseModel):
    model_config = ConfigDict(protected_namespaces=())

    model_name: str
    model_version: str = Field(description="the release that answered")
    id: str | None = Field(default=None, description="the request's")
    outputs: list[tensors.OutputTensor]


def add_routes(app: FastAPI) -> None:
    _add_health(app)
    _add_models(app)
    _add_inference(app)


def _add_health(app: FastAPI) -> None:
    @app.get("/v2", responses=errors.responses(401, 429, 503))
    async def server_metadata(request: Request) -> ServerMetadata:
        """Tell what this server is."""
        allow(request, "read")
        return ServerMetadata(name="mu2net", version=app.version, extensions=list(EXTENSIONS))

    @app.get("/v2/health/live")
    async def live() -> Live:
        """Tell that the process answers."""
        return Live(live=True)

    @app.get("/v2/health/ready", responses=errors.responses(503))
    async def ready(request: Request) -> Ready:
        """Tell whether a release with a task answers."""
        views.readiness(server_of(request))
        return Ready(ready=True)


def _add_models(app: FastAPI) -> None:
    problems = errors.responses(401, 404, 422, 429, 503)

    @app.get(MODEL, responses=problems)
    async def model_metadata(request: Request, model: str) -> ModelMetadata:
        """Describe a model's tensors."""
        return _metadata(request, model, None)

    @app.get(VERSION, responses=problems)
    async def version_metadata(request: Request, model: str, version: Version) -> ModelMetadata:
        """Describe a model's tensors, as a resident release has it."""
        return _metadata(request, model, version)

    @app.get(f"{MODEL}/ready", responses=problems)
    async def model_ready(request: Request, model: str) -> ModelReady:
        """Tell whether a model answers."""
        return ModelReady(name=_metadata(request, model, None).name, ready=True)

    @app.get(f"{VERSION}/ready", responses=problems)
    async def version_ready(request: Request, model: str, version: Version) -> ModelReady:
        """Tell whether a model answers from a resident release."""
        return ModelReady(name=_metadata(request, model, version).name, ready=True)

    @app.post(
        "/v2/repository/index",
        responses=errors.responses(400, 401, 408, 413, 415, 422, 429, 503),
        openapi_extra=openapi.index_body(),
    )
    async def repository_index(request: Request) -> list[IndexEntry]:
        """List the models of the live release."""
        caller = allow(request, "read")
        _require_index_request(await read_body(request, max_bytes=INDEX_BYTES))  # FastAPI would read without a limit
        release = server_of(request).predictor.loaded_release()
        version = str(release.number)
        return [IndexEntry(name=task, version=version, state="READY", reason="") for task in caller.visible(release)]


def _require_index_request(body: bytes) -> None:
    try:
        if body.strip():
            IndexRequest.model_validate_json(body)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]["msg"]
        raise InvalidInput(f'the index request is wrong: {first}; send {{"ready": true}}, or no body') from error


def _metadata(request: Request, model: str, version: int | None) -> ModelMetadata:
    caller = allow(request, "read")
    server = server_of(request)
    labels = caller.visible_route(server.predictor.ready_release(version), model).route.labels
    return ModelMetadata(
        name=model,
        versions=[str(held.number) for held in server.residents.held if model in caller.visible(held)],
        platform=PLATFORM,
        inputs=[
            TensorMetadata(name=IMAGE, datatype="BYTES", shape=[-1]),
            TensorMetadata(name=PIXELS, datatype="UINT8", shape=[-1, -1, -1, 3]),
        ],
        outputs=[TensorMetadata(name=PROBABILITIES, datatype="FP32", shape=[-1, len(labels)])],
    )


def _add_inference(app: FastAPI) -> None:
    problems = errors.responses(400, 401, 403, 404, 408, 413, 415, 422, 429, 503)
    body = openapi.inference_body()

    @app.post(f"{MODEL}/infer", responses=problems, response_model=InferenceResponse, openapi_extra=body)
    async def infer(request: Request, model: str) -> Response:
        """Classify images given as tensors: in JSON, or by the binary-data extension behind it."""
        return await _infer(request, model, None)

    @app.post(f"{VERSION}/infer", responses=problems, response_model=InferenceResponse, openapi_extra=body)
    async def version_infer(request: Request, model: str, version: Version) -> Response:
        """Classify with a resident release."""
        return await _infer(request, model, version)


async def _infer(request: Request, model: str, version: int | None) -> Response:
    caller, release = asking.begin(request, version)
    routes = asking.choose(request, caller, release, [model])
    server = server_of(request)
    json_length = request.headers.get(JSON_LENGTH_HEADER)
    inference = await server.decoders.beside(
        caller.client,
        tensors.read_inference,
        await _inference_body(request, is_json=json_length is None),
        json_length,
        max_images=server.settings.max_request_images,
        max_json_bytes=server.settings.max_json_bytes,
    )
    (answer,) = await asking.answer(request, inference.images, routes)
    found = np.stack([views.probabilities(logits) for logits in answer.logits])
    tensor, binary = tensors.write_outputs(found, answer.route.route.labels, inference)
    return _response(model, release, inference.id, tensor, binary)


async def _inference_body(request: Request, *, is_json: bool) -> bytes:
    """Return the whole body; of a body without binary data no more is read than JSON may have."""
    settings = server_of(request).settings
    if not is_json:
        return await read_body(request, max_bytes=settings.max_request_bytes)
    most = min(settings.max_json_bytes, settings.max_request_bytes)
    try:
        return await read_body(request, max_bytes=most)
    except RequestTooLarge:
        raise tensors.json_too_large(f"more than {most:,} bytes", f"{most:,} bytes") from None


def _response(
    model: str, release: LoadedRelease, request_id: str | None, tensor: tensors.OutputTensor, binary: bytes
) -> Response:
    told = InferenceResponse(model_name=model, model_version=str(release.number), id=request_id, outputs=[tensor])
    text = told.model_dump_json(exclude_none=True).encode()
    if tensor.parameters is None:
        return Response(text, media_type="application/json")
    return Response(text + binary, media_type="application/octet-stream", headers={JSON_LENGTH_HEADER: str(len(text))})
