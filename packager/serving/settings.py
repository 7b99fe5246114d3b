"""The settings of a server: its limits, and how it joins requests."""

from __future__ import annotations

from dataclasses import dataclass

from packager.common.hashing import count_usable_cores

MIB = 1 << 20


@dataclass(frozen=True)
class Settings:
    """The limits and options of a server; `package serve --help` has the same.

    - `max_request_bytes`: the largest request body, before and after decompression; a larger one is answered with 413.
    - `max_buffered_bytes`: the bodies of all requests that are received or waiting, together; beyond it, 503.
    - `max_connections`: connections at the same time; beyond it, 503. An ASGI server has a setting of its own.
    - `max_queue`: requests that may wait for a model; beyond it, 503.
    - `time_limit`: seconds that a request may wait and run, then 504; and that its body may take to arrive, then 408.
    - `batch_delay`: seconds that a request waits for others to join it; with 0, those that wait anyway are joined.
    - `max_batch`: the largest joined batch; None leaves it to the limit of the dim in the bundle. 1 joins nothing.
    - `instances`: runs of one model at the same time, each in a thread of its own. The default is one for each core,
      up to 8: several small runs use the cores better than one large run. 1 is best for a single client.
    - `threads`: threads that onnxruntime uses for one run. The default divides the cores among the instances.
    - `model_control`: let clients load and unload the bundles that the server was started with.
    - `shared_memory`: let clients register regions of this machine's shared memory, by any name (`/dev/shm`).
    - `access_log`: write a line of JSON for every request, not only for those that end with 500 or more.
    - `server_name`: the name in the server's metadata. Clients of Triton check it, so that is the default.
    """

    max_request_bytes: int = 64 * MIB
    max_buffered_bytes: int = 512 * MIB
    max_connections: int = 1000
    max_queue: int = 256
    time_limit: float = 60.0
    batch_delay: float = 0.0
    max_batch: int | None = None
    instances: int | None = None
    threads: int | None = None
    model_control: bool = False
    shared_memory: bool = False
    access_log: bool = False
    server_name: str = "triton"

    @property
    def instances_or_default(self) -> int:
        """The number of runs of one model at the same time."""
        return self.instances or min(count_usable_cores(), 8)

    @property
    def threads_or_default(self) -> int:
        """The number of threads of one run."""
        return self.threads or max(1, count_usable_cores() // self.instances_or_default)
