"""One OpenAPI document for all that is served on the port, what BentoML serves itself included."""

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic.json_schema import models_json_schema

from service import errors
from service.examples import add_examples
from service.schemas import IndexRequest, Problem, Readiness
from service.tensors import JSON_LENGTH_HEADER, InferenceRequest

REF = "#/components/schemas/{model}"
EXAMPLE_INFERENCE = {
    "inputs": [{"name": "pixels", "datatype": "UINT8", "shape": [1, 1, 2, 3], "data": [255, 0, 0, 0, 0, 255]}],
    "outputs": [{"name": "probabilities", "parameters": {"classification": 3}}],
}


def install(app: FastAPI) -> None:
    """Have `app` tell the whole interface at /openapi.json; it is made once, when first asked for."""

    def document() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = _document(app)
        return app.openapi_schema

    app.openapi = document  # type: ignore[method-assign]  # FastAPI's documented way


def inference_body() -> dict[str, Any]:
    """Return for OpenAPI what the Open Inference Protocol's requests hold."""
    content = {
        "application/json": {"schema": _ref("InferenceRequest"), "example": EXAMPLE_INFERENCE},
        "application/octet-stream": {"schema": {"type": "string", "format": "binary"}},
    }
    length = {
        "name": JSON_LENGTH_HEADER,
        "in": "header",
        "description": "where binary data follow: the bytes of JSON before them",
        "schema": {"type": "string", "pattern": "^[0-9]{1,12}$"},
    }
    return {"requestBody": {"required": True, "content": content}, "parameters": [length]}


def index_body() -> dict[str, Any]:
    """Return for OpenAPI what the Open Inference Protocol's index of models takes."""
    return {"requestBody": {"required": False, "content": {"application/json": {"schema": _ref("IndexRequest")}}}}


def _document(app: FastAPI) -> dict[str, Any]:
    found = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
    _, models = models_json_schema(
        [
            (InferenceRequest, "validation"),
            (IndexRequest, "validation"),
            (Readiness, "serialization"),
            (Problem, "serialization"),
        ],
        ref_template=REF,
    )
    schemas = found.setdefault("components", {}).setdefault("schemas", {})
    for name, schema in models["$defs"].items():
        schemas.setdefault(name, schema)
    refusals = {str(status): answer for status, answer in errors.responses(401, 422, 429, 503).items()}
    for path in found["paths"].values():
        for operation in path.values():
            operation["responses"] |= refusals  # FastAPI itself tells of a 422 that is never sent
    found["paths"] |= _operators_paths()
    add_examples(found)
    return found


def _operators_paths() -> dict[str, Any]:
    text = {"200": {"description": "OK", "content": {"text/plain": {"schema": {"type": "string"}}}}}
    ready = {"200": {"description": "OK", "content": {"application/json": {"schema": _ref("Readiness")}}}}
    ready |= {str(status): answer for status, answer in errors.responses(503).items()}
    closed = errors.responses(401, 429, 503)
    return {
        "/livez": _get("Live", "Tell that the process runs; the body is empty.", text, security=[]),
        "/readyz": _get("Ready", "Tell which release answers, once one with a task does.", ready, security=[]),
        "/metrics": _get("Metrics", "Tell Prometheus what was counted; see docs/metrics.md.", text | closed),
    }


def _get(summary: str, description: str, responses: dict[Any, Any], **more: Any) -> dict[str, Any]:
    answers = {str(status): response for status, response in responses.items()}
    name = summary.lower()
    return {"get": {"summary": summary, "description": description, "operationId": name, "responses": answers, **more}}


def _ref(name: str) -> dict[str, str]:
    return {"$ref": REF.format(model=name)}
