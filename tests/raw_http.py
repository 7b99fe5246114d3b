"""Raw requests on a socket of their own, and everything that a server answers to them."""

import json
import socket
from dataclasses import dataclass

PATH = "/v2/models/simple/infer"


@dataclass(frozen=True)
class Answer:
    """An answer: its headers in lower case, without those that differ from one moment to the next."""

    status: int
    headers: dict[str, str]
    body: object  # bytes, or what its JSON means, with the bytes after it if there are any


def request(content=b"", *headers, method="POST", path=PATH, version="1.1"):
    """Return the bytes of a request whose connection is closed after its answer."""
    lines = [f"{method} {path} HTTP/{version}", "Host: test", f"Content-Length: {len(content)}", "Connection: close"]
    return "\r\n".join([*lines, *headers, "", ""]).encode("latin-1") + content


def exchange(port, content, *, ends=True, is_head=False):
    """Send bytes, and return the answers up to the end of the connection. With `ends`, nothing more is sent then."""
    with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
        connection.sendall(content)
        if ends:
            connection.shutdown(socket.SHUT_WR)
        received = b""
        try:
            while piece := connection.recv(1 << 16):
                received += piece
        except ConnectionResetError:
            pass
    return parse_answers(received, is_head=is_head)


def parse_answers(received, *, is_head=False):
    """Return the answers that the bytes of a connection hold."""
    answers = []
    while received:
        head, _, received = received.partition(b"\r\n\r\n")
        lines = head.decode("latin-1").split("\r\n")
        headers = dict(line.lower().split(": ", 1) if ": " in line else (line.lower(), "") for line in lines[1:])
        size = 0 if is_head else int(headers.pop("content-length", 0))
        body, received = received[:size], received[size:]
        assert len(body) == size
        headers.pop("date", None)
        headers.pop("content-length", None)
        meaning = body
        if body and "content-encoding" not in headers:
            if "inference-header-content-length" in headers:
                size = int(headers.pop("inference-header-content-length"))
                meaning = json.loads(body[:size]), body[size:]
            elif headers.get("content-type") == "application/json":
                meaning = json.loads(body)
        answers.append(Answer(int(lines[0].split()[1]), headers, meaning))
    return answers
