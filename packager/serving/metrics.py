"""The metrics of a server in Prometheus' text format: Triton's names, and OpenTelemetry's duration of HTTP requests.

Dashboards for Triton read the first, for any web service the second
(https://opentelemetry.io/docs/specs/semconv/http/http-metrics/).
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence
from itertools import accumulate

from packager.serving.models import Model

CONTENT_TYPE = b"text/plain; version=0.0.4; charset=utf-8"
_BOUNDS = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0)
"""In seconds, those that OpenTelemetry advises."""

_Read = Callable[[Model], float]
_COUNTERS: Sequence[tuple[str, str, _Read]] = (
    ("request_success", "Requests that were answered with outputs", lambda model: model.statistics.success),
    ("count", "Inferences: the batch of every successful request", lambda model: model.statistics.inferences),
    ("exec_count", "Runs of the model; a run may join several requests", lambda model: model.statistics.executions),
    ("request_duration_us", "From queueing to the result", lambda model: model.statistics.success_ns // 1000),
    ("queue_duration_us", "Waiting in the queue", lambda model: model.statistics.queue // 1000),
    ("compute_input_duration_us", "Joining inputs", lambda model: model.statistics.compute_input // 1000),
    ("compute_infer_duration_us", "Running the model", lambda model: model.statistics.compute_infer // 1000),
    ("compute_output_duration_us", "Splitting outputs", lambda model: model.statistics.compute_output // 1000),
)
_FAILURES: Sequence[tuple[str, _Read]] = (
    ("REJECTED", lambda model: model.statistics.rejected),
    ("CANCELED", lambda model: model.statistics.timed_out),
    ("BACKEND", lambda model: model.statistics.failures),
    ("OTHER", lambda model: model.statistics.invalid),
)


class HttpDurations:
    """A histogram of the durations of requests, by method, route and status."""

    def __init__(self) -> None:
        self._counts: dict[tuple[str, str, int], list[int]] = {}
        self._sums: dict[tuple[str, str, int], float] = {}

    def record(self, method: str, route: str, status: int, seconds: float) -> None:
        """Add a request; methods and routes are few, whatever clients send."""
        key = (method, route, status)
        counts = self._counts.get(key)
        if counts is None:
            counts = self._counts[key] = [0] * (len(_BOUNDS) + 1)
            self._sums[key] = 0.0
        counts[bisect_left(_BOUNDS, seconds)] += 1
        self._sums[key] += seconds

    def render(self) -> Iterable[str]:
        """Return the lines of the histogram."""
        name = "http_server_request_duration_seconds"
        yield f"# HELP {name} Duration of HTTP server requests."
        yield f"# TYPE {name} histogram"
        for (method, route, status), counts in self._counts.items():
            labels = f'http_request_method="{method}",http_response_status_code="{status}",http_route="{route}"'
            totals = list(accumulate(counts))
            for bound, total in zip([*map(str, _BOUNDS), "+Inf"], totals, strict=True):
                yield f'{name}_bucket{{{labels},le="{bound}"}} {total}'
            yield f"{name}_sum{{{labels}}} {self._sums[method, route, status]:.9f}"
            yield f"{name}_count{{{labels}}} {totals[-1]}"


def render_metrics(models: Sequence[Model], durations: HttpDurations) -> bytes:
    """Return all metrics as the text that Prometheus reads."""
    lines: list[str] = []
    for suffix, help_text, read in _COUNTERS:
        name = f"nv_inference_{suffix}"
        lines += [f"# HELP {name} {help_text}", f"# TYPE {name} counter"]
        lines += [f"{name}{{{_labels(model)}}} {read(model)}" for model in models]
    name = "nv_inference_request_failure"
    lines += [f"# HELP {name} Requests that failed, by reason", f"# TYPE {name} counter"]
    for model in models:
        lines += [f'{name}{{{_labels(model)},reason="{reason}"}} {read(model)}' for reason, read in _FAILURES]
    name = "nv_inference_pending_request_count"
    lines += [f"# HELP {name} Requests that wait or run", f"# TYPE {name} gauge"]
    lines += [f"{name}{{{_labels(model)}}} {model.batcher.pending}" for model in models]
    lines += durations.render()
    return ("\n".join(lines) + "\n").encode()


def _labels(model: Model) -> str:
    return f'model="{model.name}",version="{model.version}"'
