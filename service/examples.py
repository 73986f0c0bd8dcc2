"""Examples in the OpenAPI document: what goes into each parameter, and what each answer may look like."""

from collections.abc import Mapping
from typing import Any

# By name, wherever a path or a query has such a parameter.
PARAMETERS: Mapping[str, Any] = {
    "task": "flowers",
    "model": "flowers",
    "tasks": ["flowers,birds"],
    "top_k": 3,
    "logits": False,
    "limit": 20,
    "number": 3,
    "version": 4,
    "before": 3,
    "after": 4,
    "job": "01J9Z3K8Q4",
    "delete_data": True,
    "MU2NET-Release": 4,
}

FORM_FIELDS: Mapping[str, Any] = {
    "tasks": "flowers,birds",
    "name": "birds",
    "budget": "5m",
    "private": "false",
    "parents": "flowers",
}

_ROUTE = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"
_CLASSIFICATION = {
    "task": "flowers",
    "release": 4,
    "route": _ROUTE,
    "results": [
        {"predictions": [{"label": "rose", "probability": 0.93}, {"label": "tulip", "probability": 0.05}]},
    ],
}
_TASK = {
    "task": "flowers",
    "release": 4,
    "route": _ROUTE,
    "is_private": False,
    "num_classes": 2,
    "image_size": 64,
    "quality": {
        "validation_accuracy": 0.95,
        "validation_images": 400,
        "score": 0.94,
        "test_accuracy": 0.94,
        "test_images": 800,
    },
    "parameters": 2_800_000,
    "parameters_added": 450_000,
    "accounted_parameters": 910_000.5,
    "flops": 95_000_000,
    "root_flops": 370_000_000,
}
_JOB = {
    "id": "01J9Z3K8Q4",
    "task": "birds",
    "kind": "add",
    "state": "running",
    "phase": "training",
    "generation": 2,
    "generations": None,
    "candidates": 8,
    "best_quality": 0.88,
    "release": 5,
    "seconds": 61.5,
    "seconds_left": 238.5,
    "created": "2026-01-31T12:00:00+00:00",
    "key": "3f2a91c0",
    "error": None,
}
_POINTER = {"active": 3, "held": True, "pending": [5], "serving": 4}
_OUTPUT = {"name": "probabilities", "datatype": "FP32", "shape": [1, 2], "data": [0.93, 0.07]}

# By the name of the answer's type, see service/schemas.py and service/v2.py.
ANSWERS: Mapping[str, Any] = {
    "Problem": {
        "type": "urn:mu2net:unknown-task",
        "title": "Unknown task",
        "status": 404,
        "detail": "no route for task 'flower'; known tasks: birds, flowers",
        "error": "no route for task 'flower'; known tasks: birds, flowers",
    },
    "Classification": _CLASSIFICATION,
    "ManyClassifications": {"release": 4, "answers": [_CLASSIFICATION]},
    "TaskList": {"release": 4, "tasks": [_TASK]},
    "TaskDetail": {
        **_TASK,
        "precision": "int8",
        "variants": {
            "int8": {
                "validation_accuracy": 0.936,
                "float32_accuracy": 0.938,
                "validation_images": 500,
                "points_lost": 0.2,
            }
        },
        "labels": ["rose", "tulip"],
        "hparams": {"learning_rate": 0.02, "schedule": "cosine"},
        "lineage": {
            "parent": None,
            "mutations": ["clone block 3", "adapter before block 2"],
            "iteration": 1,
            "candidate": "0007",
            "trained_images": 12_000,
        },
        "stages": [
            {
                "kind": "head",
                "subgraph": _ROUTE,
                "components": [
                    {"kind": "head", "id": _ROUTE, "parameters": 386, "of_root": False, "shared_with": []},
                ],
            }
        ],
    },
    "ReleaseList": {
        "serving": 4,
        "active": 4,
        "held": False,
        "pending": [],
        "resident": [4, 3],
        "last_reload": None,
        "failure": None,
        "engine": {"provider": "CPUExecutionProvider", "threads": 2, "onnxruntime": "1.31.0", "precision": "int8"},
        "releases": [
            {
                "release": 4,
                "parent": 3,
                "reason": "task 'flowers', iteration 1",
                "created_at": "2026-01-31T12:00:00+00:00",
                "tasks": 2,
            }
        ],
    },
    "ReleaseDiff": {
        "before": 3,
        "after": 4,
        "changes": [
            {
                "task": "flowers",
                "what": "added",
                "route_before": None,
                "route_after": _ROUTE,
                "validation_before": None,
                "validation_after": 0.95,
                "is_private": False,
                "new_parameters": 450_000,
            }
        ],
    },
    "Pointer": _POINTER,
    "Readiness": {"release": 4, "active": 4, "skewed": False, "failure": None},
    "JobView": _JOB,
    "JobAnswer": {"job": _JOB},
    "JobList": {"jobs": [_JOB]},
    "Removed": {"task": "birds", "release": 6, "uploads_deleted": 1, "cancelled": []},
    "ServerMetadata": {"name": "mu2net", "version": "1", "extensions": ["binary_tensor_data", "classification"]},
    "Live": {"live": True},
    "Ready": {"ready": True},
    "ModelReady": {"name": "flowers", "ready": True},
    "ModelMetadata": {
        "name": "flowers",
        "versions": ["4", "3"],
        "platform": "mu2net_onnxruntime",
        "inputs": [
            {"name": "image", "datatype": "BYTES", "shape": [-1]},
            {"name": "pixels", "datatype": "UINT8", "shape": [-1, -1, -1, 3]},
        ],
        "outputs": [{"name": "probabilities", "datatype": "FP32", "shape": [-1, 2]}],
    },
    "IndexEntry": {"name": "flowers", "version": "4", "state": "READY", "reason": ""},
    "InferenceResponse": {"model_name": "flowers", "model_version": "4", "id": "7", "outputs": [_OUTPUT]},
}


def add_examples(document: dict[str, Any]) -> None:
    """Put the examples into an OpenAPI document."""
    for name, example in ANSWERS.items():
        document["components"]["schemas"][name]["example"] = example
    for operation in (operation for path in document["paths"].values() for operation in path.values()):
        for parameter in operation.get("parameters", ()):
            if parameter["name"] in PARAMETERS:
                parameter["example"] = PARAMETERS[parameter["name"]]
        for content in operation.get("requestBody", {}).get("content", {}).values():
            for name, field in content["schema"].get("properties", {}).items():
                if name in FORM_FIELDS:
                    field["example"] = FORM_FIELDS[name]
