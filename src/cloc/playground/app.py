"""The web application: the pages, the API, and what belongs to running a service. Nothing comes from another host."""

from collections.abc import Collection, Sequence
from functools import partial
from importlib.resources import files
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, PlainTextResponse
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp

from cloc import __version__
from cloc.errors import DataError
from cloc.evaluation.heatmap import legend
from cloc.evaluation.summary import reader_name
from cloc.pages import environment
from cloc.playground import limits
from cloc.playground.batching import Busy
from cloc.playground.guard import Guard
from cloc.playground.meters import Meters
from cloc.playground.routes import Service, make_router

_ABOUT = (
    "Regions of pictures by name, phrases by place, and a search over regions. Boxes are x1, y1, x2, y2 and points "
    "x, y, in shares of the picture. A picture is sent once and then named; a model encodes it once."
)
_SCRIPTS = ("page.js", "board.js", "results.js")
_METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_STALE = {"cache-control": "no-cache"}


def make_app(service: Service, *, meters: Meters, names: Collection[str] = ()) -> ASGIApp:
    """The application over a service.

    Args:
        service: what answers.
        meters: for /metrics.
        names: host names that are served beside localhost and plain addresses.
    """
    app = FastAPI(title="CLOC playground", description=_ABOUT, version=__version__, docs_url=None, redoc_url=None)
    app.include_router(make_router(service))
    _add_pages(app, service)
    _add_operation(app, service, meters)
    app.add_exception_handler(Busy, _busy)
    app.add_exception_handler(DataError, _broken_data)
    app.add_exception_handler(HTTPException, _refused)
    app.add_exception_handler(ClientDisconnect, _gone)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(Exception, _defect)
    indexer = service.indexer
    meters.watch(
        pictures=lambda: len(service.pictures),
        indexed={name: partial(indexer.done.__getitem__, name) for name in service.engines} if indexer else {},
    )
    return Guard(app, names=names, meters=meters)


def _add_pages(app: FastAPI, service: Service) -> None:
    templates = environment("cloc.playground")
    readers = {reader: reader_name(reader) for engine in service.engines.values() for reader in engine.model.readers}
    page = templates.get_template("page.html.j2").render(
        readers=readers, legend=legend(), limits=limits, version=__version__
    )
    style = templates.get_template("base.css").render() + templates.get_template("page.css").render()
    scripts = {name: files("cloc.playground").joinpath("static", name).read_text("utf-8") for name in _SCRIPTS}

    @app.get("/", include_in_schema=False)
    async def index() -> HTMLResponse:
        return HTMLResponse(page)

    @app.get("/page.css", include_in_schema=False)
    async def stylesheet() -> Response:
        return Response(style, media_type="text/css", headers=_STALE)

    @app.get("/scripts/{name}", include_in_schema=False)
    async def script(name: str) -> Response:
        if name not in scripts:
            raise HTTPException(404)
        return Response(scripts[name], media_type="text/javascript", headers=_STALE)

    @app.get("/docs", include_in_schema=False)
    async def documentation(request: Request) -> HTMLResponse:
        template = templates.get_template("docs.html.j2")
        return HTMLResponse(
            template.render(
                schema=app.openapi(), limits=limits, host=request.url.netloc, model=next(iter(service.engines))
            )
        )


def _add_operation(app: FastAPI, service: Service, meters: Meters) -> None:
    @app.get("/health", tags=["state"], summary="Whether requests are answered")
    async def health() -> dict[str, Any]:
        return {"status": "ok", "models": list(service.engines), "version": __version__}

    @app.get("/metrics", tags=["state"], summary="For Prometheus", response_class=PlainTextResponse)
    async def metrics() -> Response:
        return Response(meters.text(), headers={"content-type": _METRICS_TYPE})


async def _busy(request: Request, error: Exception) -> JSONResponse:
    return JSONResponse({"error": "too many requests wait; try again"}, 503, {"retry-after": "1"})


async def _broken_data(request: Request, error: Exception) -> JSONResponse:
    return JSONResponse({"error": str(error)}, 500)


async def _refused(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    return JSONResponse({"error": error.detail}, error.status_code, dict(error.headers or {}))


async def _gone(request: Request, error: Exception) -> JSONResponse:
    return JSONResponse({"error": "the client went away"}, 400)


async def _invalid(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    return JSONResponse({"error": _first(error.errors())}, 422)


async def _defect(request: Request, error: Exception) -> JSONResponse:
    return JSONResponse({"error": "a defect of the playground; the terminal shows it"}, 500)


def _first(found: Sequence[Any]) -> str:
    """What is wrong with a body, in one line: the first of it, without what the client wrote."""
    if found[0]["type"] in ("json_invalid", "model_attributes_type"):
        return "the body is no JSON object sent as application/json"
    place = ".".join(str(part) for part in found[0]["loc"] if part != "body")
    reason = str(found[0]["msg"]).removeprefix("Value error, ")
    more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
    return f"{place}: {reason}{more}" if place else f"{reason}{more}"
