"""The routes of the protocol: a request in, an answer out, whatever server is in front.

`Service.handle` takes a request with its whole body and a function that takes the answer, once: at once, or when the
model has run. All of it happens in the thread of the event loop.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import NamedTuple

import orjson

from packager.errors import DataDoesNotFit, InferenceFailed, PackagerError
from packager.serving import metadata
from packager.serving.access_log import is_traceparent, log_request
from packager.serving.compression import choose_coding, compress, decompress
from packager.serving.decoding import INFERENCE_HEADER, InferRequest
from packager.serving.jobs import Arrays
from packager.serving.messages import Rejected, Request, Respond, Response, error_response, json_response
from packager.serving.metrics import CONTENT_TYPE, HttpDurations, render_metrics
from packager.serving.models import Model, Models
from packager.serving.settings import Settings

_INFER_JSON = ((b"content-type", b"application/json"),)
_MAX_SMALL_BYTES = 1 << 16
_OK = Response(200, (), ())
_log = logging.getLogger("packager.serving")


class Exchange:
    """A request that is being answered."""

    __slots__ = ("request", "respond", "route", "service", "started")

    def __init__(self, service: Service, request: Request, respond: Respond, route: str) -> None:
        self.service = service
        self.request = request
        self.respond = respond
        self.route = route
        self.started = time.perf_counter()

    def answer(self, response: Response, error: str | None = None) -> None:
        """Send the answer, and count it; `error` is for the log."""
        traceparent = self.request.headers.get(b"traceparent")
        if traceparent is not None and is_traceparent(traceparent):
            response = response._replace(headers=(*response.headers, (b"traceparent", traceparent)))
        self.respond(response)
        seconds = time.perf_counter() - self.started
        method = self.request.method if self.request.method in _METHODS else "_OTHER"
        self.service.durations.record(method, self.route, response.status, seconds)
        if response.status >= 500 or self.service.settings.access_log:
            level = logging.WARNING if response.status >= 500 else logging.INFO
            log_request(self.request, response.status, seconds, level, error)

    def reject(self, error: Rejected) -> None:
        """Answer with an error."""
        self.answer(error_response(error), error.message)

    def report_bug(self) -> None:
        """Log the exception that is being handled, and answer without its details."""
        _log.exception("a bug in packager: %s %.200r", self.request.method, self.request.path)
        self.reject(Rejected(500, "internal error"))


class Route(NamedTuple):
    """A route: its name in metrics, its method, and what answers it."""

    template: str
    method: str
    handler: Callable[[Exchange], None]


_METHODS = frozenset({"CONNECT", "DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT", "TRACE"})


class Service:
    """The models with their routes. `is_ready` is false as soon as the server is asked to stop."""

    def __init__(self, models: Models, settings: Settings) -> None:
        self.models = models
        self.settings = settings
        self.durations = HttpDurations()
        self.is_ready = True
        self._is_loading = False
        self._loader = ThreadPoolExecutor(1, thread_name_prefix="packager-loading")
        self._infer_models: dict[str, Model] = {}
        """Models by the path of their infer route: what was looked up since the last load or unload."""

    def handle(self, request: Request, respond: Respond) -> None:
        """Answer a request: call `respond` once, now or later. Nothing is raised."""
        exchange = Exchange(self, request, respond, _INFER)
        try:
            model = self._infer_models.get(request.path)
            if model is not None and request.method == "POST":
                self._infer(model, exchange)
                return
            exchange.route = ""
            route = self._find_route(request.path)
            exchange.route = route.template
            if route.method != request.method and (route.method, request.method) != ("GET", "HEAD"):
                raise Rejected(405, "Method Not Allowed", ((b"allow", route.method.encode()),))
            route.handler(exchange)
        except Rejected as error:
            exchange.reject(error)
        except Exception:  # noqa: BLE001 (a server goes on; the traceback is in its log)
            exchange.report_bug()

    def count_refused(self, status: int) -> None:
        """Count a request that a server refused before it was complete."""
        self.durations.record("_OTHER", "", status, 0.0)

    # -- routes -----------------------------------------------------------------------------

    def _find_route(self, path: str) -> Route:
        """Find the route of a path. Raises `Rejected`, 404."""
        match path.strip("/").split("/"):
            case ["v2"]:
                return Route("/v2", "GET", self._server_metadata)
            case ["v2", "health", "live"]:
                return Route("/v2/health/live", "GET", _answer_live)
            case ["v2", "health", "ready"]:
                return Route("/v2/health/ready", "GET", self._server_ready)
            case ["v2", "models", "stats"]:
                return Route("/v2/models/stats", "GET", partial(self._statistics, None, None))
            case ["v2", "models", name, "versions", version, *rest] if len(rest) < 2:
                return self._find_model_route(name, version, rest)
            case ["v2", "models", name, *rest] if len(rest) < 2:
                return self._find_model_route(name, None, rest)
            case ["v2", "repository", "index"]:
                return Route("/v2/repository/index", "POST", self._repository_index)
            case ["v2", "repository", "models", name, "load"]:
                return Route("/v2/repository/models/{model}/load", "POST", partial(self._load, name))
            case ["v2", "repository", "models", name, "unload"]:
                return Route("/v2/repository/models/{model}/unload", "POST", partial(self._unload, name))
            case ["v2", "systemsharedmemory" | "cudasharedmemory" as kind, *rest]:
                return self._find_memory_route(kind, rest)
            case ["metrics"]:
                return Route("/metrics", "GET", self._metrics)
        raise Rejected(404, "Not Found")

    def _find_model_route(self, name: str, version: str | None, rest: list[str]) -> Route:
        template = "/v2/models/{model}" + ("/versions/{version}" if version is not None else "")
        match rest:
            case []:
                return Route(template, "GET", partial(self._model_metadata, name, version))
            case ["ready"]:
                return Route(f"{template}/ready", "GET", partial(self._model_ready, name, version))
            case ["stats"]:
                return Route(f"{template}/stats", "GET", partial(self._statistics, name, version))
            case ["config"]:
                return Route(f"{template}/config", "GET", partial(self._configuration, name, version))
            case ["infer"]:
                return Route(_INFER, "POST", partial(self._find_and_infer, name, version))
        raise Rejected(404, "Not Found")

    def _find_memory_route(self, kind: str, rest: list[str]) -> Route:
        name, action = None, rest[-1] if rest else ""
        if len(rest) == 3 and rest[0] == "region":
            name = rest[1]
        elif len(rest) != 1 or action == "register":
            raise Rejected(404, "Not Found")
        template = f"/v2/{kind}{'' if name is None else '/region/{region}'}/{action}"
        match kind, action:
            case _, "status":
                regions = self.models.shared_memory.describe(name) if kind == "systemsharedmemory" else []
                return Route(template, "GET", lambda exchange: exchange.answer(json_response(200, regions)))
            case "systemsharedmemory", "register" if name is not None:
                return Route(template, "POST", partial(self._register_memory, name))
            case "systemsharedmemory", "unregister":
                return Route(template, "POST", partial(self._unregister_memory, name))
            case "cudasharedmemory", "unregister":  # there is none
                return Route(template, "POST", lambda exchange: exchange.answer(_OK))
        raise Rejected(404, "Not Found" if kind == "systemsharedmemory" else "GPUs are not supported")

    def _register_memory(self, name: str, exchange: Exchange) -> None:
        self.models.shared_memory.register(name, _parse_small(exchange.request.body))
        exchange.answer(_OK)

    def _unregister_memory(self, name: str | None, exchange: Exchange) -> None:
        self.models.shared_memory.unregister(name)
        exchange.answer(_OK)

    # -- infer ------------------------------------------------------------------------------

    def _find_and_infer(self, name: str, version: str | None, exchange: Exchange) -> None:
        model = self.models.get(name, version)
        if len(self._infer_models) < 10_000:  # several paths may lead to one model
            self._infer_models[exchange.request.path] = model
        self._infer(model, exchange)

    def _infer(self, model: Model, exchange: Exchange) -> None:
        request = exchange.request
        headers, body = request.headers, request.body
        try:
            coding = headers.get(b"content-encoding")
            if coding is not None:
                body = decompress(body, coding, self.settings.max_request_bytes)
            infer_request = model.decoder.decode(body, headers.get(INFERENCE_HEADER))
        except Rejected as error:
            model.statistics.invalid += 1
            exchange.reject(error)
            return
        try:
            model.submit(infer_request, partial(_answer_infer, model, infer_request, exchange))
        except Rejected as error:
            exchange.reject(error)

    # -- the server -------------------------------------------------------------------------

    def _server_metadata(self, exchange: Exchange) -> None:
        exchange.answer(json_response(200, metadata.describe_server(self.settings)))

    def _server_ready(self, exchange: Exchange) -> None:
        exchange.answer(self._readiness({}))

    def _readiness(self, name: dict[str, str]) -> Response:
        if self.is_ready:
            return json_response(200, {**name, "ready": True})
        return json_response(503, {**name, "ready": False, "error": "the server is stopping"})

    def _metrics(self, exchange: Exchange) -> None:
        body = render_metrics(self.models.all(), self.durations)
        exchange.answer(Response(200, ((b"content-type", CONTENT_TYPE),), (body,)))

    # -- a model ----------------------------------------------------------------------------

    def _model_metadata(self, name: str, version: str | None, exchange: Exchange) -> None:
        model = self.models.get(name, version)
        exchange.answer(json_response(200, metadata.describe_model(model, self.models.versions(name))))

    def _model_ready(self, name: str, version: str | None, exchange: Exchange) -> None:
        self.models.get(name, version)
        exchange.answer(self._readiness({"name": name}))

    def _configuration(self, name: str, version: str | None, exchange: Exchange) -> None:
        exchange.answer(json_response(200, metadata.describe_configuration(self.models.get(name, version))))

    def _statistics(self, name: str | None, version: str | None, exchange: Exchange) -> None:
        models = self.models.all() if name is None else [self.models.get(name, version)]
        if name is not None and version is None:
            models = self.models.versions(name)
        statistics = [metadata.describe_statistics(model) for model in models]
        exchange.answer(json_response(200, {"model_stats": statistics}))

    # -- the repository ---------------------------------------------------------------------

    def _repository_index(self, exchange: Exchange) -> None:
        index = self.models.index()
        if _wants_ready_only(exchange.request.body):
            index = [entry for entry in index if entry["state"] == "READY"]
        exchange.answer(json_response(200, index))

    def _load(self, name: str, exchange: Exchange) -> None:
        """Load all versions of a model again, in a thread, and answer when they are served."""
        self._check_control()
        if exchange.request.body.strip():
            document = _parse_small(exchange.request.body)
            parameters = document.get("parameters") if isinstance(document, dict) else None
            if not isinstance(document, dict) or parameters:
                raise Rejected(400, f"failed to load '{name}': a bundle is loaded as it is, without parameters")
        if self._is_loading:
            raise Rejected(503, "a model is being loaded; try again", ((b"retry-after", b"1"),))
        self._is_loading = True
        future = asyncio.get_running_loop().run_in_executor(self._loader, self.models.read, name)
        future.add_done_callback(partial(self._finish_load, name, exchange))

    def _finish_load(self, name: str, exchange: Exchange, future: asyncio.Future[list[tuple[str, Model]]]) -> None:
        self._is_loading = False
        try:
            self.models.put(future.result())
        except Rejected as error:
            exchange.reject(error)
        except PackagerError as error:
            exchange.reject(Rejected(400, f"failed to load '{name}': {error.message}"))
        except Exception:  # noqa: BLE001 (likewise)
            exchange.report_bug()
        else:
            self._infer_models.clear()
            exchange.answer(_OK)

    def _unload(self, name: str, exchange: Exchange) -> None:
        self._check_control()
        self.models.unload(name)
        self._infer_models.clear()
        exchange.answer(_OK)

    def _check_control(self) -> None:
        if not self.settings.model_control:
            raise Rejected(403, "explicit model load / unload is not allowed; the option --model-control allows it")


def _answer_live(exchange: Exchange) -> None:
    exchange.answer(json_response(200, {"live": True}))


_INFER = "/v2/models/{model}/infer"


def _answer_infer(model: Model, request: InferRequest, exchange: Exchange, result: Arrays | Exception) -> None:
    """Answer an infer request with its outputs, or with the exception of its run."""
    if isinstance(result, Exception):
        exchange.reject(_explain_failure(model, result))
        return
    try:
        parts, json_length = model.encoder.encode(request, result)
    except Rejected as error:
        exchange.reject(error)
        return
    except Exception:  # noqa: BLE001 (the other requests of the batch get their answers)
        exchange.report_bug()
        return
    headers: tuple[tuple[bytes, bytes], ...] = _INFER_JSON
    if json_length is not None:
        length = b"%d" % json_length
        headers = ((b"content-type", b"application/octet-stream"), (INFERENCE_HEADER, length))
    accepted = exchange.request.headers.get(b"accept-encoding")
    coding = None if accepted is None else choose_coding(accepted)
    if coding is not None:
        parts = (compress(parts, coding),)
        headers = (*headers, (b"content-encoding", coding), (b"vary", b"accept-encoding"))
    exchange.answer(Response(200, headers, parts))


def _explain_failure(model: Model, error: Exception) -> Rejected:
    """Return the answer to a request whose run failed: 400 if its values are the cause, else 500."""
    if isinstance(error, Rejected):
        return error
    if isinstance(error, DataDoesNotFit):
        return Rejected(400, f"{error.where}: {error.why}")
    if isinstance(error, InferenceFailed):
        # onnxruntime's InvalidArgument and torch's IndexError: an index outside its table, for example.
        of_values = type(error.__cause__).__name__ in ("InvalidArgument", "IndexError")
        return Rejected(400 if of_values else 500, f"{error.message}: {error.why}"[:1000])
    _log.error("running %s %s failed", model.name, model.version, exc_info=error)
    return Rejected(500, "internal error")


def _wants_ready_only(body: bytes | bytearray) -> bool:
    """Read `ready` from the body of a repository index request, which may be empty. Raises `Rejected`, 400."""
    if not body.strip():
        return False
    document = _parse_small(body)
    ready = document.get("ready", False) if isinstance(document, dict) else None
    if not isinstance(ready, bool):
        raise Rejected(400, "Invalid value for 'ready': expected a boolean")
    return ready


def _parse_small(body: bytes | bytearray) -> object:
    """Parse the JSON of a request that has no tensors. Raises `Rejected`, 400."""
    try:
        return orjson.loads(body[:_MAX_SMALL_BYTES])
    except ValueError:
        raise Rejected(400, "failed to parse the request JSON") from None
