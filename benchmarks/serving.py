"""Measure `package serve` against MLServer, BentoML and mosec, and against plain onnxruntime on the same cores.

python benchmarks/serving.py [--seconds 8] [--rounds 3] [--only digits,minilm-16] [--digits DIR] [--minilm DIR]

All run the same ONNX model, that of a bundle of the examples (`make demo`, `make minilm`). 16 clients
(benchmarks/load.c, which needs a C compiler) send one row at a time and wait for the answer. In each round every server
has its turn, so that noise meets all alike; the medians go into docs/benchmarks.md. Each peer has an environment of its
own below benchmarks/work/serving, and runs with one and with as many workers as there are cores: its better figure
counts. packager runs as one process and as one for each core (`--reuse-port`), likewise.

JSON is measured against JSON, bytes against bytes. MLServer refuses binary tensors over HTTP (422), and BentoML takes
none but in files, so that only mosec is compared there. The share of onnxruntime is requests a second divided by the
rows a second of `session.run` at its best batch size and number of threads, with nothing else running.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from report import put

from packager.common.hashing import count_usable_cores

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
WORK = HERE / "work/serving"
PEERS = HERE / "serving_peers"
CLIENTS, REQUESTS = 16, 16
CORES = count_usable_cores()
PACKAGES = {
    "mlserver": ["mlserver==1.7.1", "uvloop<0.22"],  # its workers do not start with a newer one
    "bentoml": ["bentoml==1.4.*"],
    "mosec": ["mosec==0.9.*"],
}


@dataclass(frozen=True)
class Case:
    """A model with the shape of one row: the inputs, by name, that clients send."""

    name: str
    bundle: Path
    rows: list[dict[str, np.ndarray]]

    @property
    def config(self) -> dict:
        return json.loads((self.bundle / "config.json").read_text())


def make_cases(digits: Path, minilm: Path) -> list[Case]:
    random = np.random.default_rng(0)
    images = [{"image": random.random((1, 1, 8, 8), np.float32)} for _ in range(REQUESTS)]
    cases = [Case("digits", digits, images)]
    for length in (16, 128):
        ids = [random.integers(1000, 30000, (1, length)) for _ in range(REQUESTS)]
        rows = [{"input_ids": row, "attention_mask": np.ones_like(row)} for row in ids]
        cases.append(Case(f"minilm-{length}", minilm, rows))
    return cases


# -- requests -------------------------------------------------------------------------------

DATATYPES = {"float32": "FP32", "int64": "INT64"}


def describe(name: str, array: np.ndarray) -> dict:
    return {"name": name, "shape": list(array.shape), "datatype": DATATYPES[str(array.dtype)]}


def make_body(server: str, encoding: str, row: dict[str, np.ndarray]) -> tuple[bytes, str]:
    """Return the body of a request, and the headers that it needs."""
    if encoding == "json":
        if server in ("packager", "mlserver"):
            tensors = [{**describe(name, array), "data": array.ravel().tolist()} for name, array in row.items()]
            return json.dumps({"inputs": tensors}).encode(), ""
        return json.dumps({name: array.tolist() for name, array in row.items()}).encode(), ""
    content = b"".join(array.tobytes() for array in row.values())
    if server == "mosec":
        return content, ""
    sizes = [{**describe(name, array), "parameters": {"binary_data_size": array.nbytes}} for name, array in row.items()]
    text = json.dumps({"inputs": sizes, "parameters": {"binary_data_output": True}}).encode()
    return text + content, f"Inference-Header-Content-Length: {len(text)}\r\n"


def write_requests(server: str, encoding: str, case: Case, path: str) -> list[Path]:
    folder = WORK / "requests" / server / encoding / case.name
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for number, row in enumerate(case.rows):
        body, headers = make_body(server, encoding, row)
        kind = "application/json" if encoding == "json" else "application/octet-stream"
        head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: {kind}\r\n"
        head = f"{head}Content-Length: {len(body)}\r\n{headers}\r\n"
        files.append(folder / str(number))
        files[-1].write_bytes(head.encode() + body)
    return files


# -- servers --------------------------------------------------------------------------------


def environment(peer: str) -> Path:
    """Return the Python of a peer, in an environment of its own."""
    folder = WORK / peer
    if not (folder / ".ready").exists():
        subprocess.run([sys.executable, "-m", "venv", "--clear", folder], check=True)
        import onnxruntime

        packages = [*PACKAGES[peer], f"onnxruntime=={onnxruntime.__version__}"]
        subprocess.run([folder / "bin/python", "-m", "pip", "install", "--quiet", *packages], check=True)
        (folder / ".ready").touch()
    return folder / "bin/python"


def write_mlserver_settings(case: Case, port: int, workers: int) -> Path:
    folder = WORK / "mlserver-settings" / case.name
    folder.mkdir(parents=True, exist_ok=True)
    settings = {
        "host": "127.0.0.1", "http_port": port, "grpc_port": port + 1, "metrics_port": port + 2, "debug": False,
        "parallel_workers": workers if workers > 1 else 0, "use_structured_logging": False,
    }  # fmt: skip
    model = {
        "name": "model", "implementation": "mlserver_model.Model", "max_batch_size": 16, "max_batch_time": 0.001,
    }  # fmt: skip
    (folder / "settings.json").write_text(json.dumps(settings))
    (folder / "model-settings.json").write_text(json.dumps(model))
    return folder


def commands(server: str, case: Case, port: int, workers: int) -> list[list[str]]:
    """Return the command lines of the processes that a server consists of."""
    if server == "packager":
        command = [sys.executable, "-m", "packager", "serve", case.bundle, "--port", port]
        shared = ["--reuse-port", "--instances", 1, "--threads", 1] if workers > 1 else []
        return [list(map(str, [*command, *shared]))] * workers
    python = environment(server)
    if server == "mosec":
        return [[str(python), str(PEERS / "mosec_service.py"), "--port", str(port), "--log-level", "error"]]
    if server == "mlserver":
        return [[str(python.with_name("mlserver")), "start", str(write_mlserver_settings(case, port, workers))]]
    bento = str(python.with_name("bentoml"))
    return [[bento, "serve", "bentoml_service:Service", "--port", str(port), "--working-dir", str(PEERS), "-q"]]


PATHS = {"mosec": "/inference", "bentoml": "/predict", "mlserver": "/v2/models/model/infer"}
PORT = 18200


@contextlib.contextmanager
def running(server: str, encoding: str, case: Case, workers: int, files: list[Path]) -> Iterator[int]:
    """Run a server until it answers a request; yields its port."""
    global PORT
    PORT += 10
    port = PORT
    shape = next(iter(case.rows[0].values())).shape
    env = {
        **os.environ, "MODEL": str(case.bundle / "model.onnx"), "ENCODING": encoding, "WORKERS": str(workers),
        "THREADS": str(max(1, CORES // workers)), "SHAPE": json.dumps(shape), "PYTHONPATH": str(PEERS),
        "NAMES": ",".join(case.rows[0]), "BENTOML_DO_NOT_TRACK": "True", "BENTOML_HOME": str(WORK / "bentoml-home"),
    }  # fmt: skip
    log = (WORK / f"{server}.log").open("w")
    processes = [
        subprocess.Popen(command, env=env, stdout=log, stderr=log, start_new_session=True, cwd=WORK)
        for command in commands(server, case, port, workers)
    ]
    try:
        wait_for(port, files[0], processes)
        yield port
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def wait_for(port: int, request: Path, processes: list[subprocess.Popen]) -> None:
    head, _, body = request.read_bytes().partition(b"\r\n\r\n")
    lines = head.decode().split("\r\n")
    headers = dict(line.split(": ", 1) for line in lines[1:] if not line.startswith(("Host", "Content-Length")))
    deadline = time.monotonic() + 90
    url = f"http://127.0.0.1:{port}{lines[0].split()[1]}"
    error: Exception | None = None
    while time.monotonic() < deadline:
        if any(process.poll() is not None for process in processes):
            break
        try:
            with urllib.request.urlopen(urllib.request.Request(url, body, headers), timeout=10) as answer:
                assert answer.status == 200
                time.sleep(1.0)  # its other workers
                return
        except OSError as problem:
            error = problem
            time.sleep(0.2)
    raise RuntimeError(f"{url} does not answer: {error}")


# -- measuring ------------------------------------------------------------------------------


def build_load() -> Path:
    target = WORK / "load"
    subprocess.run(["cc", "-O2", "-o", target, HERE / "load.c"], check=True)
    return target


def measure(load: Path, port: int, seconds: float, files: list[Path]) -> dict[str, float]:
    for duration in (min(2.0, seconds), seconds):  # the first warms up
        command = [load, str(port), str(CLIENTS), str(duration), *files]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"{done.stdout}\n{done.stderr}")
    return json.loads(done.stdout)


def rows_per_second(case: Case) -> float:
    """Return what plain onnxruntime reaches in a process of its own, at its best batch size and number of threads."""
    code = """
import sys, json, time, numpy as np, onnxruntime
from concurrent.futures import ThreadPoolExecutor
model, cores, feeds = sys.argv[1], int(sys.argv[2]), np.load(sys.argv[3])
best = 0
for threads, runs in {(cores, 1), (1, cores)}:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    with ThreadPoolExecutor(runs) as pool:
        for batch in (1, 2, 4, 8, 16):
            feed = {name: np.concatenate([feeds[name]] * batch) for name in feeds.files}
            count, began = 0, time.perf_counter()
            while time.perf_counter() - began < 2:
                list(pool.map(lambda _: session.run(None, feed), range(runs)))
                count += runs * batch
            best = max(best, count / (time.perf_counter() - began))
print(best)
"""
    inputs = WORK / f"{case.name}.npz"
    np.savez(inputs, **case.rows[0])
    command = [sys.executable, "-c", code, case.bundle / "model.onnx", str(CORES), inputs]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


Key = tuple[str, str, str, int]  # case, encoding, server, workers


def contenders(encoding: str, chosen: str) -> list[tuple[str, int]]:
    servers = ["packager", "mosec"] if encoding == "binary" else ["packager", "mlserver", "bentoml", "mosec"]
    return [(server, workers) for server in servers if server in chosen.split(",") for workers in sorted({1, CORES})]


def run_round(
    load: Path, cases: list[Case], seconds: float, chosen: str, results: dict[Key, list[dict[str, float]]]
) -> None:
    for case in cases:
        for encoding in ("json", "binary"):
            for server, workers in contenders(encoding, chosen):
                path = PATHS.get(server, f"/v2/models/{case.config['name']}/infer")
                files = write_requests(server, encoding, case, path)
                try:
                    with running(server, encoding, case, workers, files) as port:
                        result = measure(load, port, seconds, files)
                except RuntimeError as error:
                    print(f"{case.name} {encoding} {server} {workers}: {error}", file=sys.stderr, flush=True)
                    continue
                results.setdefault((case.name, encoding, server, workers), []).append(result)
                print(case.name, encoding, server, workers, result, flush=True)


def summarize(results: dict[Key, list[dict[str, float]]], raw: dict[str, list[float]]) -> str:
    lines = [
        "| model | encoding | server | requests/s | p50 | p99 | packager / it | share of onnxruntime |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    medians = {
        key: {name: statistics.median(result[name] for result in runs) for name in ("per_second", "p50_ms", "p99_ms")}
        for key, runs in results.items()
    }
    for case, encoding in dict.fromkeys((key[0], key[1]) for key in results):
        best: dict[str, Key] = {}
        for key in (key for key in medians if key[:2] == (case, encoding)):
            if key[2] not in best or medians[key]["per_second"] > medians[best[key[2]]]["per_second"]:
                best[key[2]] = key
        ours = medians[best["packager"]]["per_second"] if "packager" in best else float("nan")
        for server, key in best.items():
            row = medians[key]
            share = row["per_second"] / statistics.median(raw[case])
            cells = [
                case, encoding, f"{server} × {key[3]}", f"{row['per_second']:.0f}", f"{row['p50_ms']:.2f} ms",
                f"{row['p99_ms']:.2f} ms", f"{ours / row['per_second']:.2f}", f"{share:.2f}",
            ]  # fmt: skip
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", default="digits,minilm-16,minilm-128")
    parser.add_argument("--servers", default="packager,mlserver,bentoml,mosec")
    parser.add_argument("--digits", type=Path, default=ROOT / "examples/digits/dist/digits-cnn-1.0.0")
    parser.add_argument("--minilm", type=Path, default=ROOT / "examples/minilm/dist/minilm-1.0.0")
    parser.add_argument("--no-report", action="store_true", help="leave docs/benchmarks.md as it is")
    arguments = parser.parse_args()
    WORK.mkdir(parents=True, exist_ok=True)
    load = build_load()
    cases = [case for case in make_cases(arguments.digits, arguments.minilm) if case.name in arguments.only.split(",")]
    results: dict[Key, list[dict[str, float]]] = {}
    raw: dict[str, list[float]] = {}
    for _ in range(arguments.rounds):
        for case in cases:
            raw.setdefault(case.name, []).append(rows_per_second(case))
            print(case.name, "onnxruntime alone", f"{raw[case.name][-1]:.0f} rows/s", flush=True)
        run_round(load, cases, arguments.seconds, arguments.servers, results)
    table = summarize(results, raw)
    print(table)
    if not arguments.no_report:
        setting = f"{CLIENTS} clients on {CORES} cores, which they share with the server"
        text = f"{setting}; medians of {arguments.rounds} rounds. `× N` is the number of processes or workers."
        put("serving", f"## Serving\n\n{text} See benchmarks/serving.py.\n\n{table}")


if __name__ == "__main__":
    main()
