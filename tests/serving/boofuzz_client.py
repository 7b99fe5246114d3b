"""Send an infer request to a server with one part after another fuzzed by boofuzz, and check every answer.

python boofuzz_client.py HOST PORT STRIDE FOLDER

Of every STRIDE cases that boofuzz makes, the first few are sent; 1 sends all 13,682. It runs in the environment of
clients.txt, and prints how often each status was answered, as JSON. An answer has to have one of the expected statuses,
or the server closes the connection. After every case, a good request has to be answered.
"""

import itertools
import json
import re
import sys
from collections import Counter

import boofuzz
from boofuzz import Block, Bytes, Delim, Group, Request, Size, Static, String

HOST, PORT, STRIDE, FOLDER = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
WINDOW = 20
PATH = "/v2/models/simple/infer"
VALUES = ",".join(["1"] * 16)
EXPECTED = {200, 400, 404, 405, 408, 411, 413, 415, 417, 431, 501, 505}
GOOD = f"GET {PATH.removesuffix('/infer')}/ready HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode()


def tensor(number: int) -> list[object]:
    """Return the parts of an input of 16 integers."""
    name = f"tensor {number}"
    return [
        Static(name=f"{name}: start", default_value='{"name": "'),
        String(name=f"{name}: name", default_value=f"INPUT{number}", max_len=200),
        Static(name=f"{name}: datatype", default_value='", "datatype": "INT32", "shape": ['),
        String(name=f"{name}: shape", default_value="1, 16", max_len=200),
        Static(name=f"{name}: data", default_value='], "data": '),
        Delim(name=f"{name}: open", default_value="["),
        String(name=f"{name}: values", default_value=VALUES, max_len=2000),
        Delim(name=f"{name}: close", default_value="]"),
        Static(name=f"{name}: end", default_value="}"),
    ]


def infer_request() -> Request:
    """Return a request whose line, headers and body are fuzzed; Content-Length stays right unless it is fuzzed."""
    body = [
        Delim(name="open", default_value="{"),
        Static(name="inputs", default_value='"inputs": ['),
        *tensor(0),
        Delim(name="comma", default_value=","),
        *tensor(1),
        Static(name="end of inputs", default_value='], "id": "'),
        String(name="id", default_value="7", max_len=2000),
        Delim(name="quote", default_value='"'),
        Bytes(name="close", default_value=b"}"),
    ]
    head = [
        Group(name="method", values=["POST", "GET", "PUT", "HEAD", "OPTIONS", "TRACE"], default_value="POST"),
        Delim(name="space", default_value=" "),
        String(name="path", default_value=PATH, max_len=9000),
        Delim(name="second space", default_value=" "),
        String(name="version", default_value="HTTP/1.1", max_len=200),
        Static(name="line end", default_value="\r\nHost: x\r\nConnection: close\r\n"),
        String(name="header", default_value="Content-Type", max_len=9000),
        Delim(name="colon", default_value=":"),
        String(name="value", default_value=" application/json", max_len=9000),
        Static(name="length", default_value="\r\nContent-Length: "),
        Size(name="size", block_name="body", output_format="ascii", fuzzable=True),
        Static(name="head end", default_value="\r\n\r\n"),
    ]
    return Request("infer", children=(Block("head", children=head), Block("body", children=body)))


def main() -> None:
    """Fuzz, and print the statuses."""
    statuses: Counter[str] = Counter()
    problems: list[str] = []

    def check(target, fuzz_data_logger, session, *_, **__) -> None:
        answer = session.last_recv or b""
        status = re.match(rb"HTTP/1\.1 (\d{3}) ", answer)
        statuses[status[1].decode() if status else "closed"] += 1
        if (answer and status is None) or (status and int(status[1]) not in EXPECTED):
            problems.append(f"case {session.mutant_index}: {answer[:200]!r}")
        target.close()
        target.open()
        target.send(GOOD)
        if not target.recv(1000).startswith(b"HTTP/1.1 200 "):
            problems.append(f"after case {session.mutant_index}, a good request is not answered")

    request = infer_request()
    for start in range(1, request.get_num_mutations(), WINDOW * STRIDE):
        session = boofuzz.Session(
            target=boofuzz.Target(connection=boofuzz.TCPSocketConnection(HOST, PORT, recv_timeout=1)),
            post_test_case_callbacks=[check],
            receive_data_after_fuzz=True,
            check_data_received_each_request=False,
            ignore_connection_reset=True,
            ignore_connection_aborted=True,
            web_port=None,
            keep_web_open=False,
            db_filename=f"{FOLDER}/boofuzz-{start}.db",
            fuzz_loggers=[],
            index_start=start,
            index_end=start + WINDOW - 1,
            crash_threshold_request=10**9,
            crash_threshold_element=10**9,
        )
        session.connect(request)
        session.fuzz(max_depth=1)
    print(json.dumps({"statuses": statuses, "problems": list(itertools.islice(problems, 20))}))


if __name__ == "__main__":
    main()
