"""The HTTP side: paths, and refusals as responses.

1. :class:`~moeapps.serve.guard.Guard` reads the whole body, and refuses a wrong token, a body that is too large, or one
   that comes too slowly.
2. FastAPI checks the body against the model's schema (:mod:`moeapps.serve.schema`).
3. :meth:`~moeapps.serve.batching.ModelServer.submit` answers or refuses it.
4. A refusal from any of these becomes JSON in :func:`~moeapps.serve.guard.respond`.
"""

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Annotated, Any

from fastapi import Depends, FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse, Response
from fastapi_offline import FastAPIOffline
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.exceptions import HTTPException

import moeapps
from moeapps.serve.batching import ModelServer
from moeapps.serve.drawing import grid, sample_content, wants_png
from moeapps.serve.faults import check_query, form_of, refuse_invalid, shortened
from moeapps.serve.guard import Guard, Json, respond
from moeapps.serve.keeping import add_kept, split_names, take_kept
from moeapps.serve.metrics import Metrics
from moeapps.serve.refusal import Refusal
from moeapps.serve.schema import learn_model, predict_model, recommend_model, rows_of, sample_model
from moeapps.serve.uploads import UPLOADS, Uploads

__all__ = ["make_app"]

MAX_KEY = 255
"""Characters of an idempotency key."""

Keep = Annotated[Sequence[str], Query(description="fields of a row to copy next to its prediction")]


def make_app(
    server: ModelServer,
    description: dict[str, Any],
    max_body: int = 1_048_576,
    token: str | None = None,
    reloaded: Callable[[], None] | None = None,
) -> FastAPI:
    """The application.

    Parameters
    ----------
    server : ModelServer
        What answers.
    description : dict
        Of the model, from the worker.
    max_body : int, default 1 MiB
        Bytes that a request may have.
    token : str, optional
        What clients have to send as ``Authorization: Bearer <token>``; none when None, the default.
    reloaded : callable, optional
        Called when a client has had the file loaded anew, so that other servers behind the same port follow.
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        await server.run()
        yield
        await server.close()

    app = FastAPIOffline(  # /docs shows its page from the package's own files
        title=f"moeapps: {description['model']}",
        version=moeapps.__version__,
        lifespan=lifespan,
        swagger_ui_parameters={"validatorUrl": None},
        dependencies=[Depends(check_query)],
    )
    counters = Metrics(server)
    server.observe = counters.observe
    _add_errors(app, description)
    _add_operations(app, server, description, counters)
    _add_reload(app, server, token, reloaded)
    _add_health(app, server)
    _add_pages(app, server, counters)
    counters.routes = frozenset(str(getattr(route, "path", "")) for route in app.routes)
    if description["kind"] == "images":
        app.add_middleware(Uploads)
    app.add_middleware(Guard, max_body=max_body, token=token, seconds=server.limits.timeout, metrics=counters)
    return app


def _add_operations(app: FastAPI, server: ModelServer, description: dict[str, Any], counters: Metrics) -> None:
    if description["kind"] == "generator":
        _add_sample(app, server, description)
    else:
        Predict: Any = predict_model(description)
        columns = description["columns"] if description["kind"] == "table" else None
        more = UPLOADS if description["kind"] == "images" else None

        @app.post("/predict", summary="Predict rows", openapi_extra=more)
        async def predict(body: Predict, request: Request, keep: Keep = ()) -> JSONResponse:
            content, names = body.model_dump(by_alias=True), split_names(keep)
            if names and "rows" not in content:
                raise Refusal(422, "invalid_request", "keep: only rows of tables and streams have fields to keep")
            kept = take_kept(content.get("rows", []), names, columns, description.get("unused", ()))
            if content.get("ids") is not None:  # they wait for their labels: kept like what is learned
                predictions = await _remember(server, content, request)
            else:
                content.pop("ids", None)
                predictions = await server.submit("predict", content, rows_of(content), _size(request))
            if (scenario := server.description.get("scenario")) is not None:  # of the model as it is now
                counters.count_scenarios(scenario, content["rows"])
            return Json({"predictions": add_kept(predictions, kept)})

    if "recommends" in description:
        Recommend: Any = recommend_model(description)

        @app.post("/recommend", summary="The best items of the catalogue for each user")
        async def recommend(body: Recommend, request: Request) -> JSONResponse:
            content = body.model_dump(by_alias=True)
            lists = await server.submit("recommend", content, rows_of(content), _size(request))
            return Json({"recommendations": lists})

    if server.learn_to is not None:
        Learn: Any = learn_model()

        @app.post("/learn", summary="Learn rows with their labels, in their order; at most once per Idempotency-Key")
        async def learn(body: Learn, request: Request) -> JSONResponse:
            key = _key(request)
            content = body.model_dump(by_alias=True)
            for row in content["rows"]:  # what was not given is not there, as before there were ids
                for name in [name for name in ("x", "id") if row[name] is None]:
                    del row[name]
            answer, repeated = await server.learn(content, rows_of(content), key, _size(request))
            return Json(answer, headers={"Idempotency-Replayed": "true"} if repeated else None)


def _add_reload(app: FastAPI, server: ModelServer, token: str | None, reloaded: Callable[[], None] | None) -> None:
    @app.post("/reload", summary="Serve what is in the model's file now; only with a token")
    async def reload() -> JSONResponse:
        if token is None:  # else everyone who reaches the server could keep it busy with loading
            raise Refusal(403, "reload_needs_token", "a server without a token is reloaded by SIGHUP only")
        now = await server.reload()
        if reloaded is not None:
            reloaded()
        return Json(now)


def _add_sample(app: FastAPI, server: ModelServer, description: dict[str, Any]) -> None:
    Sample: Any = sample_model(description, server.limits)
    answers: dict[int | str, dict[str, Any]] = {
        200: {"content": {"image/png": {}}, "description": "JSON, or one picture if image/png is accepted"}
    }

    @app.post("/sample", summary="Generate images; the same request gets the same images", responses=answers)
    async def sample(body: Sample, request: Request) -> Response:
        given = body.model_dump()
        picture = wants_png(request.headers.get("accept", ""))
        content = sample_content({**given, "form": "png"} if picture else given, description, server.limits)
        blocks = await server.submit("sample", content, content["blocks"], _size(request))
        images = [image for block in blocks for image in block]
        if picture:
            return Response(grid(images, given["columns"]), media_type="image/png")
        return Json({"images": images, **({"labels": content["labels"]} if content["labels"] is not None else {})})


async def _remember(server: ModelServer, content: dict[str, Any], request: Request) -> Any:
    """Predict rows whose labels will come by id."""
    if server.learn_to is None:
        raise Refusal(422, "invalid_request", "ids: this server does not learn; start it with --learn FILE")
    answer, _ = await server.learn(content, rows_of(content), _key(request), _size(request))
    return answer["predictions"]


def _size(request: Request) -> int:
    return int(request.scope.get("moeapps.body_bytes", 0))


def _key(request: Request) -> str | None:
    keys = request.headers.getlist("idempotency-key")
    if not keys:
        return None
    if len(keys) > 1 or not 1 <= len(keys[0]) <= MAX_KEY or not keys[0].isprintable():
        message = f"Idempotency-Key must be one header of 1 to {MAX_KEY} printable characters"
        raise Refusal(400, "invalid_key", message)
    return keys[0]


def _add_health(app: FastAPI, server: ModelServer) -> None:
    @app.get("/health/live", summary="200 as long as the server runs, also while it starts a model")
    async def live() -> JSONResponse:
        return Json({"live": server.live}, 200 if server.live else 503)

    async def ready() -> JSONResponse:
        why = server.why_not_ready
        return Json({"ready": True} if why is None else {"ready": False, "reason": why}, 200 if why is None else 503)

    app.get("/health/ready", summary="200 when requests are answered, 503 when not")(ready)
    app.get("/health", summary="The same as /health/ready")(ready)


def _add_pages(app: FastAPI, server: ModelServer, counters: Metrics) -> None:
    @app.get("/info", summary="The model, its schema, and the limits")
    async def info() -> JSONResponse:
        return Json(
            {
                **await server.described(),
                "source": server.source,
                "learns": server.learn_to is not None,
                "unsaved_requests": server.unsaved,
                "saved_at": server.saved_at,
                "restarts": server.restarts,
                "limits": vars(server.limits),
                "version": moeapps.__version__,
            }
        )

    @app.get("/metrics", summary="Numbers for Prometheus", response_class=PlainTextResponse)
    async def metrics() -> PlainTextResponse:
        return PlainTextResponse(counters.text(), media_type=CONTENT_TYPE_LATEST)


def _add_errors(app: FastAPI, description: dict[str, Any]) -> None:
    """Every error becomes a refusal."""

    @app.exception_handler(Refusal)
    async def refused(request: Request, error: Refusal) -> JSONResponse:
        return respond(error)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        form = form_of(request.url.path, description)
        body = getattr(getattr(request.scope.get("route"), "body_field", None), "field_info", None)
        kind = request.headers.get("content-type", "")
        return respond(refuse_invalid(error.errors(), kind, form, getattr(body, "annotation", None)))

    @app.exception_handler(HTTPException)
    async def http(request: Request, error: HTTPException) -> JSONResponse:
        code, message = "http_error", str(error.detail)
        path = shortened(request.url.path)
        if error.status_code == 400:  # FastAPI's, for a body that its parser gives up on
            code = "invalid_json"
        if error.status_code == 404:
            paths = ", ".join(sorted(path for path in app.openapi()["paths"]))
            code, message = "not_found", f"there is no {path}; there are {paths}"
        if error.status_code == 405:
            allowed = (error.headers or {}).get("Allow", "another method")
            code, message = "method_not_allowed", f"{path} takes {allowed}, not {shortened(request.method)}"
        return respond(Refusal(error.status_code, code, message, error.headers))

    @app.exception_handler(Exception)
    async def fault(request: Request, error: Exception) -> JSONResponse:
        return respond(Refusal(500, "server_failed", "the server failed with an error of its own; its log says more"))
