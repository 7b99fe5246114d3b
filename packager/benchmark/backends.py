"""Open a backend in a measuring process: the ONNX model, the fallback, or the eager module. Imports torch if needed.

ONNX is called through `Bundle.run`, and the fallback with the same checks, as a service calls them. The eager module
gets the same arrays, and gives arrays back.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from packager.benchmark.messages import OpenRequest
from packager.bundle.files import open_bundle
from packager.bundle.seal import check_intact
from packager.common.array_files import Array
from packager.runtime.input_checks import InputChecks
from packager.runtime.loader import Bundle, load
from packager.runtime.trust import check_pins

Run = Callable[[Mapping[str, Array]], object]


@dataclass(frozen=True)
class Backend:
    """An open backend; `with_threads` returns the function that predicts with a number of threads."""

    with_threads: Callable[[int], Run]
    notes: tuple[str, ...] = ()


@contextmanager
def open_backend(request: OpenRequest) -> Iterator[Backend]:
    """Open what a request asks for, and yield it.

    Raises what `packager.load` and the loader of a project raise, ImportError if torch is not installed, and whatever
    torch raises for a program that it cannot load.
    """
    if request.backend == "onnx":
        yield _open_onnx(request)
    elif request.backend == "eager":
        with _open_eager(request) as backend:
            yield backend
    else:
        yield _open_fallback(request)


def _open_onnx(request: OpenRequest) -> Backend:
    @functools.cache
    def open_session(threads: int) -> Bundle:
        return load(request.bundle, fingerprint=request.fingerprint, fallback=False, threads=threads)

    from packager.runtime.onnx_backend import describe_missing_providers

    bundle = open_session(request.threads[-1])
    missing = tuple(f"onnx: not measured on {text}" for text in describe_missing_providers(bundle.config["providers"]))
    return Backend(lambda threads: open_session(threads).run, notes=missing)


def _open_fallback(request: OpenRequest) -> Backend:
    import torch

    from packager.runtime.exported_program_backend import ExportedProgramBackend
    from packager.runtime.torchscript_backend import TorchScriptBackend

    config, artifact, content = _read_program(request)
    inputs, outputs = _list_signature(config)
    backend: TorchScriptBackend | ExportedProgramBackend
    if request.backend == "torchscript":
        optimize = artifact["optimize_for_inference"]
        backend = TorchScriptBackend(content, inputs=inputs, output_names=outputs, optimize=optimize)
    else:
        backend = ExportedProgramBackend(content, inputs=inputs, output_names=outputs)
    checks = InputChecks(config)

    def run(inputs: Mapping[str, Array]) -> object:
        return backend.run(checks.check(inputs, cast=False, check_values=False))

    def with_threads(threads: int) -> Run:
        torch.set_num_threads(threads)
        return run

    return Backend(with_threads)


def _read_program(request: OpenRequest) -> tuple[dict[str, Any], dict[str, Any], bytes]:
    """Return config.json, the fallback's entry there, and the program, all from the bundle that was checked."""
    with open_bundle(request.bundle) as files:
        config, seal = check_intact(files, models=True, evidence=False)
        check_pins(files, seal, request.fingerprint, None)
        artifact = config["artifacts"][request.backend]
        return config, artifact, files.read(artifact["path"])


@contextmanager
def _open_eager(request: OpenRequest) -> Iterator[Backend]:
    """Yield the eager module of a project, which must take the bundle's inputs.

    Raises `ExtraMissing` if torch is not installed, and what the loader of a project raises.
    """
    from packager.builder.extras import build_extra

    with build_extra("package bench --manifest"):
        import torch

        from packager.model.loader import open_model_loader
        from packager.runtime.torchscript_backend import call_program
    from packager.common.progress import StageReporter, ignore_event
    from packager.project import preflight
    from packager.project.manifest import load_manifest

    assert request.manifest is not None
    config = request.config
    inputs, outputs = _list_signature(config)
    with (
        preflight.fetch_checkpoint(load_manifest(request.manifest), StageReporter(ignore_event)) as project,
        open_model_loader(project) as load_model,
    ):
        loaded = load_model()
        if config["source"].get("dtype") is not None and loaded.conversion is None:
            loaded = loaded.in_float32()
        same = loaded.checkpoint_sha256 == config["source"]["checkpoint_sha256"]
        note = f"eager: the checkpoint of {request.manifest} is not the one that the bundle was built from"

        def run(arrays: Mapping[str, Array]) -> object:
            return call_program(loaded.module, arrays, inputs, outputs)

        def with_threads(threads: int) -> Run:
            torch.set_num_threads(threads)
            return run

        yield Backend(with_threads, notes=() if same else (note,))


def _list_signature(config: Mapping[str, Any]) -> tuple[list[tuple[str, str]], list[str]]:
    """Return name and dtype of each input, and the names of the outputs."""
    inputs = [(tensor["name"], tensor["dtype"]) for tensor in config["inputs"]]
    return inputs, [tensor["name"] for tensor in config["outputs"]]
