"""A real HTTP server on loopback, with knobs for what servers do: no ranges, broken connections, lies."""

import hashlib
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass(frozen=True)
class Answered:
    """One request that was answered: what was asked for, with what status, and how many bytes of content were sent."""

    path: str
    range: str | None
    status: int
    sent: int


@dataclass
class Server:
    """What is served, by path without the query, and how."""

    files: dict[str, bytes]
    address: str = ""
    ranges: bool = True
    etag: str | None = "strong"  # or weak, or None
    conditions: bool = True  # whether If-None-Match and If-Range are heeded
    length: int | None = 0  # added to the length that is announced; None: chunked, without one
    drops: list[int] = field(default_factory=list)  # so many bytes of content, and the connection breaks
    statuses: list[int] = field(default_factory=list)  # these are answered first
    redirects: dict[str, str] = field(default_factory=dict)
    headers: dict[str, str] = field(default_factory=dict)
    password: str | None = None  # the Authorization header that is asked for
    part_of: bytes | None = None  # parts are of this content, under the other's ETag
    then: list = field(default_factory=list)  # called after each answer, one after the other
    seconds: float = 0.0  # before each piece of content
    answering: int = 0
    changed: threading.Condition = field(default_factory=threading.Condition)
    answered: list[Answered] = field(default_factory=list)

    @property
    def log(self):
        """Every answer, in order. Who has read an answer to its end may be here before the server has noted it."""
        with self.changed:
            assert self.changed.wait_for(lambda: self.answering == 0, timeout=30)
        return self.answered

    def url(self, path, user=""):
        return f"http://{user}{self.address}/{path}"

    @property
    def sent(self):
        """Bytes of content that were sent."""
        return sum(one.sent for one in self.log)


def etag_of(content):
    return f'"{hashlib.sha256(content).hexdigest()[:16]}"'


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        server = self.server.knobs
        path = self.path.partition("?")[0].lstrip("/")
        with server.changed:
            server.answering += 1
        status, sent = self.answer(server, path)
        self.close_connection = True
        with server.changed:
            server.answering -= 1
            server.answered.append(Answered(path, self.headers.get("Range"), status, sent))
            server.changed.notify_all()
        if server.then:
            server.then.pop(0)()

    def answer(self, server, path):
        if server.statuses:
            return self.plain(server.statuses.pop(0))
        if server.password is not None and self.headers.get("Authorization") != server.password:
            return self.plain(401)
        if path in server.redirects:
            return self.plain(302, {"Location": server.redirects[path]})
        if path not in server.files:
            return self.plain(404)
        return self.content(server, server.files[path])

    def plain(self, status, headers=()):
        self.send_response(status)
        for name, value in dict(headers).items():
            self.send_header(name, value)
        self.send_header("Content-Length", "0")
        self.end_headers()
        return status, 0

    def content(self, server, content):
        tag = {"strong": etag_of(content), "weak": f"W/{etag_of(content)}", None: None}[server.etag]
        if server.conditions and tag is not None and self.headers.get("If-None-Match") == tag:
            return self.plain(304, {"ETag": tag})
        status, start, asked = 200, 0, self.headers.get("Range")
        end = len(content)
        if asked and server.ranges and (not server.conditions or self.headers.get("If-Range", tag) == tag):
            first, _, last = asked.removeprefix("bytes=").partition("-")
            start, end = int(first), min(int(last) + 1, end) if last else end
            if start >= len(content):
                return self.plain(416)
            status = 206
        body = (server.part_of or content)[start:end] if status == 206 else content
        self.send_response(status)
        if status == 206:
            self.send_header("Content-Range", f"bytes {start}-{end - 1}/{len(content)}")
        if tag is not None:
            self.send_header("ETag", tag)
        for name, value in server.headers.items():
            self.send_header(name, value)
        if server.length is None:
            self.send_header("Transfer-Encoding", "chunked")
        else:
            self.send_header("Content-Length", str(len(body) + server.length))
        self.end_headers()
        return status, self.send_body(server, body) if self.command == "GET" else 0

    def send_body(self, server, body):
        most = server.drops.pop(0) if server.drops else len(body)
        sent = 0
        try:
            for at in range(0, min(most, len(body)), 1 << 16):
                piece = body[at : min(at + (1 << 16), most)]
                time.sleep(server.seconds)
                self.wfile.write(piece if server.length is not None else b"%x\r\n%s\r\n" % (len(piece), piece))
                sent += len(piece)
            if server.length is None and most >= len(body):
                self.wfile.write(b"0\r\n\r\n")
            self.wfile.flush()
            if 0 < most < len(body):
                time.sleep(0.1)  # who asked has it all by then: what is on the way when a connection breaks is lost
        except OSError:
            pass  # whoever asked has gone
        return sent


@contextmanager
def serving(files, **knobs):
    """A server on loopback; `stop()` on what is yielded ends it early."""
    listening = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    listening.daemon_threads = True
    server = Server(dict(files), address=f"127.0.0.1:{listening.server_port}", **knobs)
    listening.knobs = server
    thread = threading.Thread(target=listening.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()

    def stop():
        listening.shutdown()
        thread.join()
        listening.server_close()

    server.stop = stop
    try:
        yield server
    finally:
        if thread.is_alive():
            stop()
