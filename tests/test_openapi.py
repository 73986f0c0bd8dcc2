"""The one OpenAPI document: it has everything on the port, and the server keeps to it, as schemathesis finds."""

import re
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from models.store import Store
from service import schemas, v2
from service.examples import ANSWERS
from service.http import create_app
from tests.support.on_a_port import listening
from tests.support.stores import TaskPlan, make_store

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
]
EXAMPLES, MANY_EXAMPLES = 6, 80  # of each operation, always and in the slow test: some 8 seconds and some minutes


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return make_store(tmp_path_factory.mktemp("openapi") / "store", TaskPlan("first"), TaskPlan("second", seed=2))


@pytest.fixture(scope="module")
def url(store: Store) -> Iterator[str]:
    with listening(store.folder) as (url, _):
        yield url


def document() -> dict[str, Any]:
    found: dict[str, Any] = create_app().openapi()
    return found


schema = schemathesis.openapi.from_dict(document())


def test_it_has_every_route_and_bentomls_own() -> None:
    found = document()
    routes = {getattr(route, "path", "") for route in create_app().routes if getattr(route, "include_in_schema", False)}
    assert routes <= found["paths"].keys()
    assert {"/livez", "/readyz", "/metrics", "/v2", "/v1/classify"} <= found["paths"].keys()


def test_every_refusal_is_one_and_the_same_schema() -> None:
    answers = [
        content["schema"]
        for path in document()["paths"].values()
        for operation in path.values()
        for answer in operation["responses"].values()
        for kind, content in answer.get("content", {}).items()
        if kind == "application/problem+json"
    ]
    assert len(answers) > 50
    assert all(schema == {"$ref": "#/components/schemas/Problem"} for schema in answers)


def test_every_reference_leads_somewhere() -> None:
    found = document()
    for name in re.findall(r"'#/components/schemas/([^']+)'", str(found)):
        assert name in found["components"]["schemas"]


# livez and readyz are BentoML's; another release than this server's would be another server; a stream has no end
operations = schema.exclude(path_regex="^/(livez|readyz)$|/(activate|resume)$|^/v1/jobs/events$")
thorough = settings(
    deadline=None, derandomize=True, phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)  # fmt: skip


@operations.parametrize()
@settings(thorough, max_examples=EXAMPLES)
def test_the_server_keeps_to_it(case: Any, url: str) -> None:
    keep_to_it(case, url)


@pytest.mark.slow
@operations.parametrize()
@settings(thorough, max_examples=MANY_EXAMPLES)
def test_the_server_keeps_to_it_over_many_examples(case: Any, url: str) -> None:
    keep_to_it(case, url)


def keep_to_it(case: Any, url: str) -> None:
    case.call_and_validate(base_url=url, checks=CHECKS, headers={"host": httpx.URL(url).netloc.decode()})


def test_every_parameter_and_every_answer_has_an_example_that_fits() -> None:
    found = document()
    for path, methods in found["paths"].items():
        for operation in methods.values():
            for parameter in operation.get("parameters", ()):
                if parameter["in"] != "header":
                    assert "example" in parameter, (path, parameter["name"])
            for status, answer in operation["responses"].items():
                for content in answer.get("content", {}).values():
                    assert not status.startswith("2") or has_example(content.get("schema", {}), found), (path, status)
    types = {name: kind for module in (schemas, v2) for name, kind in vars(module).items()}
    for name, example in ANSWERS.items():
        types[name].model_validate(example, strict=True)


def has_example(schema: dict[str, Any], found: dict[str, Any]) -> bool:
    if "$ref" in schema:
        return "example" in found["components"]["schemas"][schema["$ref"].split("/")[-1]]
    return "items" not in schema or has_example(schema["items"], found)


def test_the_examples_work(url: str) -> None:
    found = document()
    body = found["paths"]["/v2/models/{model}/infer"]["post"]["requestBody"]["content"]["application/json"]["example"]
    answer = httpx.post(f"{url}/v2/models/first/infer", json=body)
    assert answer.json()["outputs"][0]["shape"] == [1, 3]
