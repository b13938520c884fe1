"""The application: addresses, the page, and everything around them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from http import HTTPStatus
from importlib import metadata
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.responses import FileResponse, JSONResponse
from starlette.exceptions import HTTPException

from ..page import FOLDER, TYPES, page_files
from . import openapi
from .calls import Served
from .gate import Gate
from .inference_protocol import add_inference_protocol
from .models import CALLS, describe
from .replies import Answer, RefusalError
from .service import Service, Settings


def make_app(models: Mapping[str, Served], settings: Settings, page: Path = FOLDER) -> FastAPI:
    """Make the ASGI application of a service.

    Args:
        models: by name.
        settings: of the service.
        page: folder with the ``index.html`` that is served at ``/``.
    """
    service = Service(models, settings)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        service.end()

    app = FastAPI(
        title="Foveal",
        version=metadata.version("foveal"),
        description="Segment, classify, upscale and cut out objects in images.",
        docs_url=None,
        redoc_url=None,
        lifespan=lifespan,
    )
    app.state.service = service
    app.add_middleware(Gate, service=service)
    app.add_exception_handler(HTTPException, _http_error)
    _add_state(app, service)
    _add_calls(app, service)
    add_inference_protocol(app, service)
    _add_page(app, page)
    app.openapi = lambda: openapi.document(app, service)
    return app


def _add_state(app: FastAPI, service: Service) -> None:
    """Addresses that tell how the service is."""

    @app.get("/livez", summary="Whether the process answers", tags=["state"])
    async def livez() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/readyz", summary="Whether requests are taken", tags=["state"], responses=openapi.errors(503))
    async def readyz() -> dict[str, str]:
        if service.ending:
            raise RefusalError(503, "the service ends", "ending", {"Retry-After": "1"})
        return {"status": "ok"}

    @app.get("/metrics", summary="Metrics for Prometheus", tags=["state"], response_class=Response)
    async def metrics() -> Response:
        return Response(service.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    @app.get("/api/models", summary="Models, classes and limits", tags=["images"])
    async def models() -> dict[str, Any]:
        return describe(service.models, service.limits)


def _add_calls(app: FastAPI, service: Service) -> None:
    """One address for each call."""

    def add(name: str) -> None:
        async def endpoint(model: str, request: Request) -> Response:
            return response_of(await service.answer(model, name, request))

        app.add_api_route(
            f"/api/{{model}}/{name}",
            endpoint,
            methods=["POST"],
            name=name,
            tags=["images"],
            response_class=Response,
            **openapi.describe_call(name, CALLS),
        )

    for name in dict.fromkeys(name for calls in CALLS.values() for name in calls):
        add(name)


def _add_page(app: FastAPI, folder: Path) -> None:
    """One address for each file of the page: a name in a request never becomes a path."""

    def add(address: str, file: Path) -> None:
        async def endpoint(request: Request) -> Response:
            # Not from a browser's cache: after an update, old and new files would not fit each other.
            return FileResponse(file, media_type=TYPES[file.suffix], headers={"Cache-Control": "no-cache"})

        app.add_route(address, endpoint)

    for name, file in page_files(folder).items():
        add(f"/{name}", file)
    add("/", folder / "index.html")


def response_of(answer: Answer) -> Response:
    """The response with an answer."""
    return Response(answer.content, media_type=answer.media_type, headers=dict(answer.headers))


async def _http_error(request: Request, error: Exception) -> Response:
    """An address or method that does not exist."""
    assert isinstance(error, HTTPException)
    texts = {
        404: "no such address: see /api/models and /openapi.json",
        405: f"{request.method} is not for this address",
    }
    text = texts.get(error.status_code) or HTTPStatus(error.status_code).phrase
    return JSONResponse({"error": text}, error.status_code, headers=error.headers)
