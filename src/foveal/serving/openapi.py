"""The OpenAPI document: bodies in three forms, formats of answers, examples."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from fastapi.openapi.utils import get_openapi

from .calls import Call

if TYPE_CHECKING:
    from fastapi import FastAPI

    from .service import Service

_BINARY = {"type": "string", "format": "binary"}
_ERROR = {"type": "object", "required": ["error"], "properties": {"error": {"type": "string"}}}
_REASONS = {
    400: "The request cannot be read.",
    401: "The key is missing or wrong.",
    403: "The header Host has no name of this service.",
    404: "No such model, call or embedding.",
    405: "Another method.",
    408: "The request came too slowly.",
    413: "The body or the image is too large.",
    414: "The address is too long.",
    415: "Another content type.",
    422: "The image or an option cannot be used.",
    431: "Too many headers.",
    500: "The service failed.",
    501: "An optional library is not installed.",
    503: "Busy; Retry-After has the seconds.",
    504: "Not done before the deadline.",
}
_OF_CALLS = (400, 401, 403, 404, 408, 413, 414, 415, 422, 431, 500, 501, 503, 504)
_FILE = "/9j/4AAQSkZJRg=="  # the beginning of a JPEG file in base64
_EXAMPLES: dict[str, dict[str, Any]] = {
    "predict": {"image": _FILE, "timeout": 10},
    "encode": {"image": _FILE},
    "prompt": {"embedding": "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08", "points": [[420, 310]]},
    "everything": {"image": _FILE, "fast": True, "max_side": 1024},
}
_ANSWERS: dict[str, dict[str, Any]] = {
    "predict": {
        "model": "efficientvit_b0.camvid",
        "width": 960,
        "height": 720,
        "classes": [{"index": 3, "name": "road", "share": 0.41, "confidence": 0.98, "colour": [128, 64, 128]}],
    },
    "encode": {
        "model": "tf_efficientnet_lite0.sam",
        "embedding": "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
        "width": 960,
        "height": 720,
        "cached": False,
    },
    "prompt": {
        "model": "tf_efficientnet_lite0.sam",
        "embedding": "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
        "width": 4,
        "height": 2,
        "best": 0,
        "masks": [{"iou": 0.93, "area": 3, "bbox": [1, 0, 2, 2], "rle": {"size": [2, 4], "counts": [2, 3, 3]}}],
    },
    "everything": {"model": "tf_efficientnet_lite0.sam", "width": 960, "height": 720, "prompts": 210, "masks": []},
}


def errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Descriptions of refusals, by status."""
    return {
        status: {"description": _REASONS[status], "content": {"application/json": {"schema": _ERROR}}}
        for status in statuses
    }


def describe_call(name: str, calls: Mapping[str, Mapping[str, Call]]) -> dict[str, Any]:
    """Arguments of ``FastAPI.add_api_route`` that describe a call of several tasks.

    Args:
        name: of the call.
        calls: by task, then by name.
    """
    of_tasks = {task: each[name] for task, each in calls.items() if name in each}
    properties: dict[str, Any] = {}
    for call in of_tasks.values():
        properties |= {
            key: _without_titles(value) for key, value in call.options.model_json_schema()["properties"].items()
        }
    formats = list(dict.fromkeys(form for call in of_tasks.values() for form in call.formats))
    properties["format"] = {"type": "string", "enum": formats, "description": "Of the answer."}
    sources: dict[str, Any] = {"image": {"type": "string", "format": "byte", "description": "The file in base64."}}
    sources["url"] = {"type": "string", "description": "Address of the image, if the service allows its host."}
    if any(call.takes_embeddings for call in of_tasks.values()):
        sources["embedding"] = {"type": "string", "description": "In the place of an image that was encoded before."}
    words = "; ".join(f"{call.words} ({task})" for task, call in of_tasks.items())
    form = {**properties, "image": _BINARY}
    body = {
        "required": True,
        "content": {
            "application/json": {
                "schema": {"type": "object", "properties": {**sources, **properties}},
                "example": _EXAMPLES[name],
            },
            "multipart/form-data": {"schema": {"type": "object", "properties": form}},
            "application/octet-stream": {"schema": _BINARY},
            "image/jpeg": {"schema": _BINARY},
            "image/png": {"schema": _BINARY},
        },
    }
    scalars = [
        {"name": key, "in": "query", "required": False, "schema": _in_query(value)}
        for key, value in properties.items()
        if not _is_list(value)
    ]
    content: dict[str, Any] = {"application/json": {"schema": {"type": "object"}, "example": _ANSWERS[name]}}
    media = {"png": "image/png", "overlay": "image/jpeg", "logits": "application/octet-stream"}
    content |= {media[form]: {"schema": _BINARY} for form in formats if form in media}
    content |= {"application/geo+json": {"schema": {"type": "object"}}} if "polygons" in formats else {}
    return {
        "summary": words[:1].upper() + words[1:],
        "openapi_extra": {"requestBody": body, "parameters": scalars},
        "responses": {200: {"description": "The answer.", "content": content}, **errors(*_OF_CALLS)},
    }


def _without_titles(schema: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in schema.items() if key != "title"}


def _in_query(schema: dict[str, Any]) -> dict[str, Any]:
    """A schema without null, which a query cannot hold."""
    options = [part for part in schema.get("anyOf", ()) if part.get("type") != "null"]
    return {**{key: value for key, value in schema.items() if key != "anyOf"}, **(options[0] if options else {})}


def describe_infer() -> dict[str, Any]:
    """Arguments of ``FastAPI.add_api_route`` that describe an inference of protocol v2."""
    tensor = {
        "type": "object",
        "required": ["name", "datatype", "shape"],
        "properties": {
            "name": {"type": "string"},
            "datatype": {"type": "string"},
            "shape": {"type": "array", "items": {"type": "integer"}},
            "data": {"type": "array", "items": {}},
            "parameters": {"type": "object"},
        },
    }
    request = {
        "type": "object",
        "required": ["inputs"],
        "properties": {
            "id": {"type": "string"},
            "inputs": {"type": "array", "items": tensor},
            "outputs": {"type": "array", "items": {"type": "object", "properties": {"name": {"type": "string"}}}},
        },
    }
    response = {"type": "object", "properties": {"outputs": {"type": "array", "items": tensor}}}
    example = {"inputs": [{"name": "image", "datatype": "BYTES", "shape": [1], "data": [_FILE]}]}
    content = {"application/json": {"schema": request, "example": example}}
    answers = {"application/json": {"schema": response}, "application/octet-stream": {"schema": _BINARY}}
    return {
        "openapi_extra": {"requestBody": {"required": True, "content": content}},
        "responses": {200: {"description": "The tensors.", "content": answers}, **errors(*_OF_CALLS)},
    }


def _is_list(schema: dict[str, Any]) -> bool:
    return any(part.get("type") == "array" for part in (schema, *schema.get("anyOf", ())))


def document(app: FastAPI, service: Service) -> dict[str, Any]:
    """The OpenAPI document of a service, with the names of its models; made once."""
    if app.openapi_schema is None:
        schema = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
        schema["components"] = schema.get("components", {})
        schema["components"].pop("schemas", None)
        if service.settings.keys:
            schema["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
            schema["security"] = [{"key": []}]
        for path, methods in schema["paths"].items():
            for operation in methods.values():
                for parameter in operation.get("parameters", ()):
                    if parameter["name"] == "model" and path.startswith("/api/"):
                        parameter["example"] = next(iter(service.models))
                responses = operation["responses"]
                if responses.get("422", {}).get("content", {}).get("application/json", {}).get("schema") != _ERROR:
                    responses.pop("422", None)
        app.openapi_schema = schema
    return app.openapi_schema
