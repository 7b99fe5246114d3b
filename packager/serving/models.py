"""The models that are served: bundles by name and version, loaded and unloaded while requests run.

A model that is loaded again takes the place of the one before in one step. Requests that run or wait keep the version
that they were given, and its memory is freed after the last of them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from packager.errors import ModelServedTwice
from packager.runtime.loader import Bundle, load
from packager.serving.batching import Batcher
from packager.serving.decoding import InferRequest, RequestDecoder
from packager.serving.encoding import ResponseEncoder
from packager.serving.jobs import Done, Job
from packager.serving.messages import Rejected
from packager.serving.row_independence import rows_are_independent
from packager.serving.settings import Settings
from packager.serving.shared_memory import SharedMemory
from packager.serving.signature import Signature, read_signature
from packager.serving.statistics import Statistics

_VERSION = re.compile(r"(\d+)\.(\d+)\.(\d+)(?:-([0-9A-Za-z.-]+))?")


@dataclass(frozen=True)
class Source:
    """Where a served bundle comes from, and what it has to be to be loaded: see `packager.load`."""

    path: Path
    fingerprint: str | None = None
    public_key: Path | None = None
    trust_program: bool = False

    def load(self, threads: int) -> Bundle:
        """Load the bundle. Raises what `packager.load` raises."""
        return load(
            self.path,
            fingerprint=self.fingerprint,
            public_key=self.public_key,
            trust_program=self.trust_program,
            threads=threads,
            session_options={"session.intra_op.allow_spinning": "0"},  # idle threads would take the other runs' cores
        )


class Model:
    """One version of a model: a loaded bundle with its queue and counters."""

    def __init__(self, bundle: Bundle, settings: Settings, shared_memory: SharedMemory) -> None:
        self.bundle = bundle
        self.name = bundle.name
        self.version = bundle.version
        self.signature: Signature = read_signature(bundle.config)
        self.decoder = RequestDecoder(self.signature, shared_memory)
        self.encoder = ResponseEncoder(self.signature, bundle.version)
        self.statistics = Statistics()
        self.platform = {"onnx": "onnxruntime_onnx"}.get(bundle.backend, "pytorch_libtorch")
        largest = self._find_largest_batch(bundle, settings)
        self.joins = largest is None or largest > 1
        self.batcher = Batcher(bundle.run, settings, self.statistics, largest=largest)

    def _find_largest_batch(self, bundle: Bundle, settings: Settings) -> int | None:
        """Return the largest batch that requests may be joined to: 1 where they may not, None without a limit."""
        dim = self.signature.batch_dim
        if dim is None or settings.max_batch == 1 or not rows_are_independent(bundle, dim):
            return 1
        sizes = [size for size in (self.signature.dims[dim].largest, settings.max_batch) if size is not None]
        return min(sizes, default=None)

    def submit(self, request: InferRequest, done: Done) -> None:
        """Run a request when its turn comes, and pass the outputs or an exception to `done`.

        Raises `Rejected` if too many wait.
        """
        if not self.joins:
            self.batcher.submit(Job(request.inputs, self._batch_of(request), None, done))
            return
        arrays = request.inputs.values()
        key = tuple([array.shape[1:] for array in arrays])
        self.batcher.submit(Job(request.inputs, self._batch_of(request), key, done))

    def _batch_of(self, request: InferRequest) -> int:
        """Return the batch of a request, which statistics count; 1 for a model without a batch dim."""
        if self.signature.batch_dim is None:
            return 1
        return int(next(iter(request.inputs.values())).shape[0])


class Models:
    """The served models. `sources` are the bundles that can be loaded; all of them are at first."""

    def __init__(self, sources: Sequence[Source], settings: Settings, loaded: Iterable[Bundle] = ()) -> None:
        self._settings = settings
        self.shared_memory = SharedMemory(enabled=settings.shared_memory)
        self._sources: dict[tuple[str, str], Source] = {}
        self._models: dict[tuple[str, str], Model] = {}
        bundles = [(source, source.load(settings.threads_or_default)) for source in sources]
        for source, bundle in [*bundles, *((Source(bundle.path), bundle) for bundle in loaded)]:
            key = (bundle.name, bundle.version)
            if key in self._sources:
                raise ModelServedTwice(bundle.name, bundle.version, str(self._sources[key].path), str(source.path))
            self._sources[key] = source
            self._models[key] = Model(bundle, settings, self.shared_memory)

    def get(self, name: str, version: str | None = None) -> Model:
        """Return a model by name, and by version or the highest one. Raises `Rejected`, 404."""
        if version is not None:
            model = self._models.get((name, version))
            if model is None:
                raise Rejected(404, f"Request for unknown model: '{name}' version {version} is not found")
            return model
        versions = self.versions(name)
        if not versions:
            raise Rejected(404, f"Request for unknown model: '{name}' is not found")
        return versions[-1]

    def versions(self, name: str) -> list[Model]:
        """Return the loaded versions of a model, the highest last."""
        models = [model for key, model in self._models.items() if key[0] == name]
        return sorted(models, key=lambda model: version_order(model.version))

    def all(self) -> list[Model]:
        """Return all loaded versions of all models."""
        return list(self._models.values())

    def index(self) -> list[Mapping[str, str]]:
        """List every version that is or can be loaded, with its state as Triton has it."""
        states = {key: ("READY", "") if key in self._models else ("UNAVAILABLE", "unloaded") for key in self._sources}
        return [
            {"name": name, "version": version, "state": state, "reason": reason}
            for (name, version), (state, reason) in states.items()
        ]

    def read(self, name: str) -> list[tuple[str, Model]]:
        """Read all versions of a model from where they came from, in any thread. Raises `Rejected`, 400 or 404.

        Returns each with the version that it replaces; `put` makes them those that are served.
        """
        keys = [key for key in self._sources if key[0] == name]
        if not keys:
            raise Rejected(404, f"failed to load '{name}', no version is available")
        models = []
        for key in keys:
            model = Model(
                self._sources[key].load(self._settings.threads_or_default), self._settings, self.shared_memory
            )
            if model.name != name:
                raise Rejected(400, f"failed to load '{name}': {self._sources[key].path} holds '{model.name}' now")
            models.append((key[1], model))
        return models

    def put(self, models: Iterable[tuple[str, Model]]) -> None:
        """Serve these models in the place of the versions that they replace."""
        for version, model in models:
            self._models.pop((model.name, version), None)
            source = self._sources.pop((model.name, version))
            self._sources[model.name, model.version] = source
            self._models[model.name, model.version] = model

    def unload(self, name: str) -> None:
        """Stop serving all versions of a model; requests that wait or run still end. Raises `Rejected`, 404."""
        if all(key[0] != name for key in self._sources):
            raise Rejected(404, f"failed to unload '{name}', unknown model")
        self._models = {key: model for key, model in self._models.items() if key[0] != name}


def version_order(version: str) -> tuple[object, ...]:
    """Return a sort key for semantic versions (semver.org, 11): a pre-release comes before its release."""
    match = _VERSION.match(version)
    if match is None:
        return ((0, 0, 0), 0, ())
    numbers = tuple(int(number) for number in match.groups()[:3])
    if match[4] is None:
        return (numbers, 1, ())
    parts = match[4].split(".")
    return (numbers, 0, tuple((0, int(part), "") if part.isdigit() else (1, 0, part) for part in parts))
