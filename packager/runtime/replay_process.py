"""Replay a bundle's evidence, from the child's side: open its models, run them on the golden cases, and answer.

The child gets the files of the bundle as descriptors, and a `ReplayRequest` on stdin; its answers go to stdout, one
JSON object per line (`packager.runtime.replay_messages`). It ends with its parent.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from packager.bundle import layout
from packager.bundle.files import BundleFiles, Location, adopt_files
from packager.common.process_memory import pause_garbage_collection
from packager.errors import IntegrityFailed, PackagerError, escape_unprintable
from packager.runtime.replay_messages import BackendVerdict, ReplayAnswer, ReplayFailed, Step

if TYPE_CHECKING:
    from packager.parity.numerics.verdict import ParityResult, ReferenceCase
    from packager.runtime.onnx_backend import OnnxBackend

Message = Step | ReplayAnswer | ReplayFailed
Send = Callable[[Message], None]

_PR_SET_PDEATHSIG = 1  # prctl(2)


def main() -> None:
    """Answer the request on stdin, and end the process."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Python's handler would wait for the model
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what libraries print must not get between the answers
    request = json.loads(sys.stdin.buffer.readline())
    _end_with_parent(request["parent"])

    def send(message: Message) -> None:
        answers.write(json.dumps(asdict(message)).encode() + b"\n")
        answers.flush()

    try:
        locations = {path: Location(**location) for path, location in request["locations"].items()}
        with pause_garbage_collection():  # it took a fifth of the time that importing torch takes
            replay(request["config"], adopt_files(locations, request["digests"]), send)
    except Exception as error:  # noqa: BLE001 (the parent reports it, as a check that failed)
        frame = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{Path(frame.filename).name}:{frame.lineno}"
        send(ReplayFailed(f"{type(error).__name__}: {_format_error(error)} ({where})"))
    os._exit(0)  # without any clean-up, as the parent waits


def replay(config: Mapping[str, Any], files: BundleFiles, send: Send) -> None:
    """Open the models that config.json names, run them on the golden cases, and send what comes of it.

    The first problem of the model's signature or of the evidence ends the replay, and then nothing has run.
    """
    from packager.bundle.evidence import EvidenceMalformed, parse_reference_cases

    session, problems = _open_session(files, config, send)
    send(Step("evidence", "when it was read"))
    try:
        cases = parse_reference_cases(files.read(layout.PARITY), files.read(layout.GOLDEN))
    except (EvidenceMalformed, IntegrityFailed) as error:
        send(ReplayAnswer(tuple(problems), _format_error(error), complete=True))
        return
    problems += _check_case_signatures(cases, config) or _check_declared_shapes(session, cases)
    answer = ReplayAnswer(tuple(problems))
    if not problems:
        for backend, verdict in _replay_models(files, config, session, cases, send):
            answer = replace(answer, backends={**answer.backends, backend: verdict})
            send(answer)
    send(replace(answer, complete=True))


def _end_with_parent(parent: int) -> None:
    """End this process when its parent ends: at once on Linux, and where stdin closes elsewhere."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it ended before
            os._exit(1)

    def wait() -> None:
        sys.stdin.buffer.read()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def _open_session(files: BundleFiles, config: Mapping[str, Any], send: Send) -> tuple[OnnxBackend | None, list[str]]:
    """Open the ONNX model, and compare its signature with config.json. Returns one line per difference."""
    artifact = config["artifacts"]["onnx"]
    if artifact is None:
        return None, []
    send(Step("onnx", "when the model was opened"))
    from packager.runtime.bundled_onnx import open_bundled_onnx
    from packager.runtime.onnx_backend import find_available_providers
    from packager.runtime.session_settings import SessionSettings

    path = artifact["path"]
    try:
        usable = find_available_providers(config["providers"]) or ["CPUExecutionProvider"]
        settings = SessionSettings(providers=tuple(usable))
        backend = open_bundled_onnx(files, artifact, config["providers"], settings)
    except Exception as error:  # noqa: BLE001 (onnxruntime raises a dozen unrelated classes; each means: does not load)
        return None, [f"{path} does not load: {_format_error(error)}"]
    finally:
        files.release(path)
    problems = []
    for kind, tensors in (("inputs", backend.inputs), ("outputs", backend.outputs)):
        specs = config[kind]
        names, expected = [name for name, _, _ in tensors], [spec["name"] for spec in specs]
        if names != expected:
            problems.append(f"{path} has the {kind} {names}, and {layout.CONFIG} has {expected}")
            continue
        problems += [
            f"{path} has {name} as {dtype}{list(shape)}, and {layout.CONFIG} as {spec['dtype']}{spec['shape']}"
            for spec, (name, dtype, shape) in zip(specs, tensors, strict=True)
            if dtype != spec["dtype"] or not _shapes_agree(spec["shape"], shape)
        ]
    return backend, problems


def _shapes_agree(declared: Sequence[int | str | None], actual: Sequence[int | str | None]) -> bool:
    """Return whether two shapes have the same rank, and the same dims wherever both declare one."""
    return len(declared) == len(actual) and all(
        dim == size or dim is None or (not isinstance(size, int) and not isinstance(dim, str))
        for dim, size in zip(declared, actual, strict=True)
    )


def _check_case_signatures(cases: Sequence[ReferenceCase], config: Mapping[str, Any]) -> list[str]:
    """Check the golden cases against the signature in config.json. Returns one line per difference."""
    problems = []
    for case in cases:
        sizes: dict[str, int] = {}
        for specs, arrays in ((config["inputs"], case.inputs), (config["outputs"], case.outputs)):
            if {spec["name"] for spec in specs} != set(arrays):
                problems.append(f"evidence: case {case.name} has {', '.join(arrays)}")
                continue
            for spec in specs:
                array = arrays[spec["name"]]
                dtype = "float32" if spec["dtype"] == "bfloat16" else spec["dtype"]
                shape = _resolve_dims(spec["shape"], array.shape, sizes)
                if str(array.dtype) != dtype or not _shapes_agree(shape, array.shape):
                    problems.append(
                        f"evidence: case {case.name} has {spec['name']} as {array.dtype}{list(array.shape)}, "
                        f"and {layout.CONFIG} as {spec['dtype']}{spec['shape']}"
                    )
    return problems


def _check_declared_shapes(session: OnnxBackend | None, cases: Sequence[ReferenceCase]) -> list[str]:
    """Check the output sizes that the model declares against the golden cases; config.json may leave them open."""
    problems = []
    for name, _, declared in session.outputs if session is not None else ():
        for case in cases:
            shape = case.outputs[name].shape if name in case.outputs else ()
            if any(isinstance(dim, int) and dim != size for dim, size in zip(declared, shape, strict=False)):
                problems.append(
                    f"the model declares {name} as {list(declared)}, and case {case.name} has {list(shape)}"
                )
                break
    return problems


def _resolve_dims(
    shape: Sequence[int | str | None], actual: Sequence[int], sizes: dict[str, int]
) -> list[int | str | None]:
    """Replace the named dims of a shape by sizes; the first tensor with a name adds its size to `sizes`."""
    if len(shape) != len(actual):
        return list(shape)
    return [
        sizes.setdefault(dim, size) if isinstance(dim, str) else dim for dim, size in zip(shape, actual, strict=True)
    ]


def _replay_models(
    files: BundleFiles,
    config: Mapping[str, Any],
    session: OnnxBackend | None,
    cases: Sequence[ReferenceCase],
    send: Send,
) -> Iterator[tuple[str, BackendVerdict]]:
    """Run every model on the golden cases, one after the other. Yields the backend and its verdict."""
    from packager.runtime.check import check_onnx_session

    def announce(backend: str) -> Iterator[ReferenceCase]:
        for case in cases:
            send(Step(backend, f"on case {case.name}"))
            yield case

    if session is not None:
        from packager.runtime.onnx_backend import describe_missing_providers

        verdict = _make_verdict("onnx", check_onnx_session(session, announce("onnx")))
        session.close()  # two models at once would take twice the memory
        missing = [f"onnx: not compared on {provider}" for provider in describe_missing_providers(config["providers"])]
        yield "onnx", replace(verdict, notes=(*verdict.notes, *missing))
    for backend in ("torchscript", "torch-export"):
        artifact = config["artifacts"].get(backend)
        if artifact is not None:
            send(Step(backend, "when the program was opened"))
            yield backend, _replay_program(files, config, backend, artifact, announce(backend))


def _replay_program(
    files: BundleFiles,
    config: Mapping[str, Any],
    backend: str,
    artifact: Mapping[str, Any],
    cases: Iterator[ReferenceCase],
) -> BackendVerdict:
    """Run a program of torch on the golden cases; it is not checked where torch is not installed."""
    from packager.runtime.check import check_exported_program, check_torchscript

    outputs = [spec["name"] for spec in config["outputs"]]
    inputs = [(spec["name"], spec["dtype"]) for spec in config["inputs"]]
    try:
        program = files.read(artifact["path"])
        if backend == "torch-export":
            result = check_exported_program(program, cases, inputs=inputs, outputs=outputs)
        else:
            optimize = artifact["optimize_for_inference"]
            result = check_torchscript(program, cases, inputs=inputs, outputs=outputs, optimize=optimize)
    except IntegrityFailed as error:
        return BackendVerdict("fail", (f"{backend}: {error.why}",))
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        return BackendVerdict("not-checked", (f"{backend}: torch is not installed",))
    return _make_verdict(backend, result)


def _make_verdict(backend: str, result: ParityResult) -> BackendVerdict:
    notes = (f"{backend}: {result.reason}",) if result.reason else ()
    return BackendVerdict("pass" if result.passed else "fail", notes)


def _format_error(error: Exception) -> str:
    """Return the text of a library's error on one line."""
    text = error.why if isinstance(error, PackagerError) else str(error)
    return escape_unprintable(" ".join(str(text).split())[:400])
