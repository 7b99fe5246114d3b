"""Send good and bad requests of every sort to `package serve` for a long time, and check every answer value by value.

python benchmarks/soak.py [--minutes 30] [--clients 8] [--bundle DIR]

The bundle is that of examples/digits (`make demo`). Clients send images in JSON and as bytes, compressed or not, in
pieces or pipelined, with and without ids; they send requests that do not fit, that are no JSON, no HTTP or too large;
they leave in the middle, and load the model again while others run it. An answer with values has to have those of
`packager.load` for its own image, and its own id; every other one has to have the status that the request deserves.

Every second, the resident memory of the server is read. The report goes to stdout and into docs/serving.md: requests by
kind, memory after the first fifth of the time and at the end. The exit status is 1 if an answer was wrong or lost, the
server died, or its memory grew by more than 2 %.
"""

from __future__ import annotations

import argparse
import contextlib
import gzip
import http.client
import json
import random
import socket
import statistics
import subprocess
import sys
import threading
import time
import zlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from report import put

import packager

ROOT = Path(__file__).resolve().parent.parent
IMAGES = 64


@dataclass
class Log:
    """What happened: requests by kind, and what was wrong."""

    counts: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, kind: str, problem: str | None) -> None:
        with self.lock:
            self.counts[kind] += 1
            if problem is not None:
                self.problems.append(f"{kind}: {problem}")


class Client:
    """One client: it draws kinds of requests at random, and checks the answers."""

    def __init__(self, port: int, images: np.ndarray, expected: np.ndarray, seed: int) -> None:
        self.port, self.images, self.expected = port, images, expected
        self.random = random.Random(seed)
        self.connection: http.client.HTTPConnection | None = None
        self.kinds: list[tuple[int, Callable[[], str | None]]] = [
            (30, self.json), (30, self.binary), (6, self.compressed), (6, self.pipelined), (4, self.in_pieces),
            (4, self.chunked), (3, self.wrong_shape), (3, self.wrong_dtype), (3, self.not_json), (2, self.wrong_size),
            (2, self.unknown_model), (2, self.unknown_output), (1, self.not_http), (1, self.leave_early),
            (1, self.too_large), (1, self.bomb), (2, self.metadata), (1, self.metrics),
        ]  # fmt: skip

    def step(self) -> tuple[str, str | None]:
        """Send one request; returns its kind, and what was wrong about the answer."""
        (kind,) = self.random.choices([call for _, call in self.kinds], [weight for weight, _ in self.kinds])
        try:
            return kind.__name__, kind()
        except (OSError, http.client.HTTPException, ValueError, KeyError, AssertionError) as error:
            self.close()
            return kind.__name__, f"{type(error).__name__}: {error}"

    def close(self) -> None:
        if self.connection is not None:
            self.connection.close()
            self.connection = None

    def ask(self, method: str, path: str, body: object = None, headers: dict[str, str] | None = None) -> tuple:
        if self.connection is None:
            self.connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        self.connection.request(method, path, body, headers or {})
        answer = self.connection.getresponse()
        content = answer.read()
        if answer.will_close:
            self.close()
        return answer.status, answer.headers, content

    def infer(self, body: object, headers: dict[str, str] | None = None) -> tuple:
        return self.ask("POST", "/v2/models/digits-cnn/infer", body, headers)

    # -- good requests ----------------------------------------------------------------------

    def draw(self) -> tuple[np.ndarray, np.ndarray]:
        """Return a batch of images and the outputs that they must have."""
        rows = [self.random.randrange(IMAGES) for _ in range(self.random.choice([1, 1, 1, 1, 2, 3, 7]))]
        return self.images[rows], self.expected[rows]

    def json_body(self, images: np.ndarray, request_id: str) -> bytes:
        data = images.tolist() if self.random.random() < 0.5 else images.ravel().tolist()
        tensor = {"name": "image", "shape": list(images.shape), "datatype": "FP32", "data": data}
        return json.dumps({"id": request_id, "inputs": [tensor]}).encode()

    def binary_body(self, images: np.ndarray, request_id: str | None = None) -> tuple[bytes, dict[str, str]]:
        parameters = {"binary_data_size": images.nbytes}
        tensor = {"name": "image", "shape": list(images.shape), "datatype": "FP32", "parameters": parameters}
        document = {"inputs": [tensor], "parameters": {"binary_data_output": True}}
        if request_id is not None:
            document["id"] = request_id
        text = json.dumps(document).encode()
        return text + images.tobytes(), {"Inference-Header-Content-Length": str(len(text))}

    def check_json(self, answer: tuple, expected: np.ndarray, request_id: str | None) -> str | None:
        status, _, content = answer
        if status != 200:
            return f"{status} {content[:200]!r}"
        document = json.loads(content)
        (output,) = document["outputs"]
        return self.check(np.array(output["data"]).reshape(output["shape"]), expected, document.get("id"), request_id)

    def check_binary(self, answer: tuple, expected: np.ndarray, request_id: str | None) -> str | None:
        status, headers, content = answer
        if status != 200:
            return f"{status} {content[:200]!r}"
        length = int(headers["Inference-Header-Content-Length"])
        document = json.loads(content[:length])
        (output,) = document["outputs"]
        values = np.frombuffer(content[length:], np.float32).reshape(output["shape"])
        return self.check(values, expected, document.get("id"), request_id)

    def check(self, values: np.ndarray, expected: np.ndarray, actual_id: object, request_id: object) -> str | None:
        if actual_id != request_id:
            return f"the answer to {request_id!r} has the id {actual_id!r}"
        if values.shape != expected.shape or not np.allclose(values, expected, rtol=1e-4, atol=1e-4):
            return f"wrong values: {values.ravel()[:5]}, expected {expected.ravel()[:5]}"
        return None

    def new_id(self) -> str:
        return f"{self.random.getrandbits(64):x}"

    def json(self) -> str | None:
        images, expected = self.draw()
        request_id = self.new_id()
        return self.check_json(self.infer(self.json_body(images, request_id)), expected, request_id)

    def binary(self) -> str | None:
        images, expected = self.draw()
        request_id = self.new_id() if self.random.random() < 0.5 else None
        return self.check_binary(self.infer(*self.binary_body(images, request_id)), expected, request_id)

    def compressed(self) -> str | None:
        images, expected = self.draw()
        body, headers = self.binary_body(images)
        coding, squeeze, expand = self.random.choice(
            [("gzip", gzip.compress, gzip.decompress), ("deflate", zlib.compress, zlib.decompress)]
        )
        headers |= {"Content-Encoding": coding, "Accept-Encoding": coding}
        status, headers, content = self.infer(squeeze(body), headers)
        return self.check_binary((status, headers, expand(content) if status == 200 else content), expected, None)

    def pipelined(self) -> str | None:
        requests = [(*self.draw(), self.new_id()) for _ in range(5)]
        with self.raw() as (send, receive):
            send(b"".join(self.raw_request(self.json_body(images, request_id)) for images, _, request_id in requests))
            for _, expected, request_id in requests:
                problem = self.check_json(receive(), expected, request_id)
                if problem is not None:
                    return problem
        return None

    def in_pieces(self) -> str | None:
        images, expected = self.draw()
        request_id = self.new_id()
        content = self.raw_request(self.json_body(images, request_id))
        with self.raw() as (send, receive):
            start = 0
            while start < len(content):
                end = start + self.random.randint(1, 2000)
                send(content[start:end])
                start = end
            return self.check_json(receive(), expected, request_id)

    def chunked(self) -> str | None:
        images, expected = self.draw()
        request_id = self.new_id()
        body = self.json_body(images, request_id)
        pieces = [body[start : start + 500] for start in range(0, len(body), 500)]
        return self.check_json(self.infer(iter(pieces)), expected, request_id)

    # -- bad requests -----------------------------------------------------------------------

    def refused(self, answer: tuple, status: int) -> str | None:
        actual, _, content = answer
        message = json.loads(content).get("error")
        if actual != status or not message or "Traceback" in message:
            return f"{actual} {content[:200]!r}, expected {status}"
        return None

    def wrong_shape(self) -> str | None:
        return self.refused(self.infer(self.json_body(np.zeros((1, 1, 8, 7), np.float32), "x")), 400)

    def wrong_dtype(self) -> str | None:
        body, headers = self.binary_body(np.zeros((1, 1, 8, 8), np.float32))
        return self.refused(self.infer(body.replace(b"FP32", b"FP64"), headers), 400)

    def not_json(self) -> str | None:
        body = bytes(self.random.randrange(256) for _ in range(self.random.randrange(200)))
        return self.refused(self.infer(b"{" + body), 400)

    def wrong_size(self) -> str | None:
        body, headers = self.binary_body(np.zeros((1, 1, 8, 8), np.float32))
        return self.refused(self.infer(body[:-4], headers), 400)

    def unknown_model(self) -> str | None:
        return self.refused(self.ask("POST", f"/v2/models/{self.new_id()}/infer", b"{}"), 404)

    def unknown_output(self) -> str | None:
        images, _ = self.draw()
        document = json.loads(self.json_body(images, "x"))
        return self.refused(self.infer(json.dumps({**document, "outputs": [{"name": "none"}]})), 400)

    def not_http(self) -> str | None:
        with self.raw() as (send, receive):
            send(bytes(self.random.randrange(128, 256) for _ in range(100)) + b"\r\n\r\n")
            return self.refused(receive(), 400)

    def leave_early(self) -> str | None:
        content = self.raw_request(self.json_body(self.draw()[0], "x"))
        with self.raw() as (send, _):
            send(content[: self.random.randrange(len(content) + 1)])
        return None

    def too_large(self) -> str | None:
        with self.raw() as (send, receive):
            send(b"POST /v2/models/digits-cnn/infer HTTP/1.1\r\nHost: x\r\nContent-Length: 10000000000\r\n\r\n")
            return self.refused(receive(), 413)

    def bomb(self) -> str | None:
        return self.refused(self.infer(gzip.compress(bytes(9 << 20)), {"Content-Encoding": "gzip"}), 413)

    # -- everything else --------------------------------------------------------------------

    def metadata(self) -> str | None:
        path = self.random.choice(["/v2", "/v2/health/ready", "/v2/models/digits-cnn", "/v2/models/digits-cnn/stats"])
        status, _, content = self.ask("GET", path)
        return None if status == 200 and json.loads(content) else f"{status} {content[:200]!r}"

    def metrics(self) -> str | None:
        status, _, content = self.ask("GET", "/metrics")
        return None if status == 200 and b"nv_inference_count" in content else f"{status} {content[:200]!r}"

    def reload(self) -> str | None:
        status, _, content = self.ask("POST", "/v2/repository/models/digits-cnn/load")
        return None if status == 200 else f"{status} {content[:200]!r}"

    def raw_request(self, body: bytes) -> bytes:
        head = f"POST /v2/models/digits-cnn/infer HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
        return head.encode() + body

    @contextlib.contextmanager
    def raw(self):
        """Open a socket; yields a function that sends bytes, and one that reads an answer."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=60) as client:
            stream = client.makefile("rb")

            def receive() -> tuple:
                status = int(stream.readline().split()[1])
                headers = http.client.parse_headers(stream)
                return status, headers, stream.read(int(headers["Content-Length"]))

            yield client.sendall, receive


def resident_bytes(pid: int) -> int:
    text = Path(f"/proc/{pid}/status").read_text()
    return int(text.partition("VmRSS:")[2].split()[0]) * 1024


def soak(port: int, pid: int, bundle: packager.Bundle, minutes: float, clients: int) -> tuple[Log, list[int]]:
    """Send requests for some minutes; returns what happened, and the memory of the server for every second."""
    images = np.random.default_rng(0).random((IMAGES, 1, 8, 8), np.float32)
    expected = bundle.run({"image": images})["logits"]
    log, memory = Log(), []
    end = time.monotonic() + minutes * 60

    def send(seed: int) -> None:
        client = Client(port, images, expected, seed)
        while time.monotonic() < end:
            log.add(*client.step())
        client.close()

    def reload() -> None:
        client = Client(port, images, expected, -1)
        while time.monotonic() < end - 5:
            time.sleep(5)
            log.add("reload", client.reload())

    threads = [threading.Thread(target=send, args=(seed,)) for seed in range(clients)]
    threads.append(threading.Thread(target=reload))
    for thread in threads:
        thread.start()
    while time.monotonic() < end:
        time.sleep(1)
        with contextlib.suppress(OSError, IndexError):
            memory.append(resident_bytes(pid))
    for thread in threads:
        thread.join(120)
    return log, memory


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--bundle", type=Path, default=ROOT / "examples/digits/dist/digits-cnn-1.0.0")
    parser.add_argument("--no-report", action="store_true", help="leave docs/serving.md as it is")
    arguments = parser.parse_args()
    command = [sys.executable, "-m", "packager", "serve", arguments.bundle, "--port", "0", "--request-limit", "8"]
    server = subprocess.Popen(list(map(str, command)), stdout=subprocess.PIPE, text=True)
    try:
        port = int(server.stdout.readline().rpartition(":")[2])
        bundle = packager.load(arguments.bundle)
        log, memory = soak(port, server.pid, bundle, arguments.minutes, arguments.clients)
        died = server.poll() is not None
    finally:
        server.terminate()
        status = server.wait(60)
    warm = memory[len(memory) // 5 :]  # by then, all buffers have had their largest request
    tenth = max(1, len(warm) // 10)
    begin, finish = statistics.median(warm[:tenth]), statistics.median(warm[-tenth:])
    growth = finish / begin - 1
    kinds = ", ".join(f"{kind} {count:,}" for kind, count in sorted(log.counts.items()))
    text = (
        f"The last soak: {arguments.minutes:g} minutes, {arguments.clients} clients, {sum(log.counts.values()):,} "
        f"requests ({kinds}). Wrong or lost answers: {len(log.problems)}. Resident memory: {begin / 1e6:.1f} MB after "
        f"a fifth of the time, {finish / 1e6:.1f} MB at the end ({growth:+.1%}). Exit status of the server: {status}."
    )
    print(text)
    for problem in log.problems[:20]:
        print(problem, file=sys.stderr)
    if not arguments.no_report:
        put("soak", text, "serving.md")
    raise SystemExit(1 if log.problems or died or status != 0 or growth > 0.02 else 0)


if __name__ == "__main__":
    main()
