"""Count the broken bundles found and the good bundles refused, by `package verify` and by the rules of other tools.

    python benchmarks/parity.py [--architectures bert,pyg-gat] [--resume] [--render] [--no-write]

The mutants are those of tests/mutants, and so is the oracle that decides which of them must be found. The good bundles
run with 1 and 2 threads, at every optimization level of onnxruntime, as TorchScript, and with the previous minor
version of onnxruntime, in a separate environment under benchmarks/work. The architectures are the small ones of
tests/architectures.py, and ten models of public libraries (benchmarks/models/mutated.py), which need the environment
of benchmarks/models/environment.py. benchmarks/work/parity keeps the results of each architecture, and the tables are
made of all that are there.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import pickle
import platform
import shutil
import subprocess
import sys
import tempfile
import venv
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path

import onnx
import onnxruntime
import torch
from onnxruntime import GraphOptimizationLevel as Level
from parity_results import CRASH, OURS, MutantResult, Results, RunResult, read, render
from peer_rules import RULES, Array, Arrays, Rule
from report import put

import packager
from packager.bundle import layout
from packager.bundle.evidence import read_reference_cases
from packager.common import output_tree
from packager.parity.numerics.verdict import check_parity
from packager.runtime.torchscript_backend import TorchScriptBackend

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
WORK = HERE / "work"
sys.path[:0] = [str(ROOT)]  # the folders of the tests are there since peer_rules was imported

import bundles  # noqa: E402 (the path comes first)
import zoo  # noqa: E402
from architectures import ARCHITECTURES, Architecture, construct  # noqa: E402
from mutations import MUTATIONS  # noqa: E402
from oracle import Effect, OnnxOracle, Session, read_onnx  # noqa: E402

LEVELS = (Level.ORT_DISABLE_ALL, Level.ORT_ENABLE_BASIC, Level.ORT_ENABLE_EXTENDED, Level.ORT_ENABLE_ALL)
NEEDED = ("numpy", "click", "pydantic", "pyyaml", "rich", "safetensors")
Run = Callable[[Arrays], Arrays]


@dataclass(frozen=True)
class Suite:
    """Architectures with a part of docs/parity.md.

    A mutation is tried at up to `locations` of a graph, and `rows` of inputs show its effect.
    """

    part: str
    title: str
    introduction: str
    architectures: Sequence[Architecture]
    locations: int
    rows: int


SUITES = (
    Suite(
        "parity", "Results: broken bundles found, good bundles refused", "The architectures are small ones, of "
        "tests/architectures.py.", ARCHITECTURES, locations=3, rows=320,
    ),
    Suite(
        "parity_models", "Results on models of public libraries", "The models were drawn from the catalogue of "
        "[models.md](models.md) before any of them was broken, by the rule in benchmarks/models/mutated.py. Each "
        "mutation is tried at one location of a graph, and its effect is measured on 64 rows.", zoo.ARCHITECTURES,
        locations=1, rows=64,
    ),
)  # fmt: skip


@dataclass(frozen=True)
class Subject:
    """A bundle, with the samples and the eager module's outputs for the rule of each tool, by name."""

    architecture: Architecture
    level: str
    bundle: Path
    expected: Mapping[str, Sequence[tuple[Arrays, Arrays]]]

    @property
    def name(self) -> str:
        """The name of the architecture and how its graph was built."""
        return f"{self.architecture.name}, {self.level}"


def main() -> None:
    """Measure, print, and write these parts of docs/parity.md."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--architectures", default="", help="comma-separated; the default is all")
    arguments.add_argument("--resume", action="store_true", help="leave out those with results of these versions")
    arguments.add_argument("--render", action="store_true", help="measure nothing, and write the tables")
    arguments.add_argument("--no-write", action="store_true", help="print, and leave docs/parity.md as it is")
    options = arguments.parse_args()
    names = [architecture.name for suite in SUITES for architecture in suite.architectures]
    wanted = options.architectures.split(",") if options.architectures else names
    if unknown := set(wanted) - set(names):
        raise SystemExit(f"no such architecture: {', '.join(sorted(unknown))}; choose from {', '.join(names)}")
    if not options.render:
        measure_all(wanted, resume=options.resume)
    for suite in SUITES:
        results = [read(path) for path in map(result_path, suite.architectures) if path.exists()]
        if results:
            text = render(suite.title, suite.introduction, results, [mutation.name for mutation in MUTATIONS])
            print(text)
            if not options.no_write:
                put(suite.part, text, "parity.md")


def measure_all(wanted: Sequence[str], *, resume: bool) -> None:
    """Measure these architectures, and write the results of each."""
    jobs = [
        (suite, architecture)
        for suite in SUITES
        for architecture in suite.architectures
        if architecture.name in wanted and not (resume and is_current(result_path(architecture)))
    ]
    if missing := zoo.libraries_missing(tuple(architecture.name for _, architecture in jobs)):
        raise SystemExit(
            f"this environment lacks {', '.join(missing)}. With all libraries:\n"
            "    python benchmarks/models/environment.py\n"
            "    benchmarks/work/models/venv/bin/python benchmarks/parity.py --resume\n"
            f"Without: --architectures {','.join(architecture.name for architecture in ARCHITECTURES)}"
        )
    for suite, architecture in jobs:
        with tempfile.TemporaryDirectory() as scratch:
            os.environ["PACKAGER_CACHE"] = f"{scratch}/cache"
            measure(architecture, suite, Path(scratch)).write(result_path(architecture))


def result_path(architecture: Architecture) -> Path:
    """Return where the results of an architecture are kept."""
    return WORK / "parity" / f"{architecture.name}.json"


def is_current(path: Path) -> bool:
    """Return whether there are results, and of these versions."""
    return path.exists() and read(path).versions == versions()


def versions() -> dict[str, str]:
    """Return the versions that the results depend on; packager's is the last commit that changed it."""
    command = ["git", "log", "-1", "--format=%h", "--", "packager"]
    commit = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
    return {
        "machine": platform.machine(),
        "packager": f"{version('torch-packager')} ({commit})",
        "torch": torch.__version__,
        "onnxruntime": onnxruntime.__version__,
    }


def measure(architecture: Architecture, suite: Suite, scratch: Path) -> Results:
    """Break and run the bundles of an architecture."""
    shipped, exported = (
        subject(architecture, level, scratch / level.replace(" ", "-")) for level in ("optimized", "as exported")
    )
    apart = Apart()
    mutants = [
        result for graph in (shipped, exported) for result in mutant_results(graph, scratch / "broken", suite, apart)
    ]
    effect = effect_of(shipped, exported, suite.rows)
    good, wrong = [shipped, exported], []
    if effect.must_be_found:
        good.remove(shipped)
        wrong.append(f"{shipped.name}: {effect.floors:.3g} noise floors from the exported graph, in {effect.where}")
    runs = [result for graph in good for result in run_results(graph)]
    return Results(architecture.name, versions(), mutants, [*runs, *with_older(good, scratch)], wrong)


def subject(architecture: Architecture, level: str, folder: Path) -> Subject:
    """Build a bundle, and run the eager module on the samples of the other tools."""
    bundle = bundles.build(architecture, level, folder)
    module = construct(architecture)
    module.load_state_dict(torch.load(folder / "project" / "best.pt", weights_only=True))
    module.eval()

    def eager(feed: Arrays) -> dict[str, Array]:
        with torch.inference_mode():
            value = module(*(torch.from_numpy(array) for array in feed.values()))
        named = output_tree.select_outputs(output_tree.flatten_outputs(value), list(architecture.outputs))
        return {name: tensor.numpy() for name, tensor in named.items()}

    expected = {rule.name: [(feed, eager(feed)) for feed in rule.feeds(architecture)] for rule in RULES}
    return Subject(architecture, level, bundle, expected)


def effect_of(shipped: Subject, exported: Subject, rows: int) -> Effect:
    """Measure how far the graph that ships is from the exported one."""
    oracle = OnnxOracle(exported.architecture, exported.bundle, rows).oracle
    return oracle.effect(Session(read_onnx(shipped.bundle)).run)


def refusing_peers(graph: Subject, run_at: Callable[[Level], Run]) -> list[str]:
    """Return the tools that refuse a model; `run_at` opens it at an optimization level."""
    return [rule.name for rule in RULES if refuses(rule, graph.expected[rule.name], run_at)]


def refuses(rule: Rule, pairs: Sequence[tuple[Arrays, Arrays]], run_at: Callable[[Level], Run]) -> bool:
    """Return whether a tool refuses a model: it differs on some sample, or does not run."""
    try:
        run = run_at(rule.level)
        return any(rule.refuses(expected, run(feed)) for feed, expected in pairs)
    except Exception:  # noqa: BLE001 (the user of a tool sees any error that stops it)
        return True


# -- broken bundles -------------------------------------------------------------------------


class Apart:
    """A process for mutants: some crash onnxruntime, and the users of a tool with it."""

    def __init__(self) -> None:
        self._process: ProcessPoolExecutor | None = None

    def call(self, function: Callable[..., bool], *arguments: object) -> bool | None:
        """Return what a function returns in the process, or None if the process crashes."""
        if self._process is None:
            self._process = ProcessPoolExecutor(1, mp_context=get_context("spawn"))
        try:
            return self._process.submit(function, *arguments).result()
        except BrokenProcessPool:
            self._process = None
            return None


def refuses_here(rule: int, content: bytes, pairs: Sequence[tuple[Arrays, Arrays]]) -> bool:
    """Apply a rule to a model, in the other process."""
    return refuses(RULES[rule], pairs, lambda level: Session(content, level).run)


def verify_refuses(bundle: Path) -> bool:
    """Return whether `package verify` refuses a bundle, in the other process."""
    return bundles.is_refused(packager.verify(bundle))


def mutant_results(graph: Subject, target: Path, suite: Suite, apart: Apart) -> Iterator[MutantResult]:
    """Yield every mutant of a bundle, with its effect and the rules that find it."""
    model = onnx.load(graph.bundle / layout.ONNX)
    oracle = OnnxOracle(graph.architecture, graph.bundle, suite.rows)
    shutil.rmtree(target, ignore_errors=True)
    copy = bundles.copy(graph.bundle, target, fallback=False)
    for mutation in MUTATIONS:
        for mutant in mutation.apply(model, graph.architecture.examples, suite.locations):
            print(f"{graph.name}: {mutant}", file=sys.stderr, flush=True)
            bundles.put(copy, mutant.model)
            content = mutant.model.SerializeToString()
            answers = {
                rule.name: apart.call(refuses_here, number, content, graph.expected[rule.name])
                for number, rule in enumerate(RULES)
            }
            answers[OURS] = apart.call(verify_refuses, copy)
            effect = Effect(math.inf, CRASH) if answers[OURS] is None else oracle.effect(mutant.model)
            refused_by = [name for name, refused in answers.items() if refused is not False]
            yield MutantResult(graph.name, mutant.mutation, mutant.location, effect.floors, effect.where, refused_by)


# -- good bundles ---------------------------------------------------------------------------


def run_results(graph: Subject) -> Iterator[RunResult]:
    """Run a good bundle with each number of threads and optimization level, and as TorchScript."""
    reference_cases = read_reference_cases(graph.bundle)
    content = read_onnx(graph.bundle)
    for threads in (1, 2):
        for level in LEVELS:
            run = Session(content, level, threads).run
            refused_by = refusing_peers(graph, lambda _, run=run: run)
            if not check_parity(run, reference_cases).passed:
                refused_by.append(OURS)
            yield RunResult(graph.name, f"{threads} threads, {level.name}", refused_by)
    if (graph.bundle / layout.TORCHSCRIPT).exists():
        yield torchscript_result(graph)


def torchscript_result(graph: Subject) -> RunResult:
    """Run the fallback of a good bundle."""
    config = json.loads((graph.bundle / layout.CONFIG).read_text())
    script = TorchScriptBackend(
        graph.bundle / layout.TORCHSCRIPT,
        inputs=[(spec["name"], spec["dtype"]) for spec in config["inputs"]],
        output_names=[spec["name"] for spec in config["outputs"]],
        optimize=config["artifacts"]["torchscript"]["optimize_for_inference"],
    )
    refused_by = refusing_peers(graph, lambda _: script.run)
    if packager.verify(graph.bundle, trust_program=True).parity["torchscript"] != "pass":
        refused_by.append(OURS)
    return RunResult(graph.name, "TorchScript", refused_by)


_RUN_ELSEWHERE = """
import pickle, sys
import onnxruntime
answers = []
for model, level, feeds in pickle.load(sys.stdin.buffer):
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel(level)
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    answers.append([dict(zip(names, session.run(None, feed))) for feed in feeds])
pickle.dump(answers, sys.stdout.buffer)
"""


def with_older(graphs: Sequence[Subject], scratch: Path) -> Iterator[RunResult]:
    """Run the good bundles with the previous minor version of onnxruntime."""
    python, how = older_environment()
    jobs = [
        (str(graph.bundle / layout.ONNX), int(rule.level), [feed for feed, _ in graph.expected[rule.name]])
        for graph in graphs
        for rule in RULES
    ]
    process = subprocess.run([python, "-c", _RUN_ELSEWHERE], input=pickle.dumps(jobs), check=True, capture_output=True)
    answers = iter(pickle.loads(process.stdout))
    for graph in graphs:
        refused_by = []
        for rule in RULES:
            actual = next(answers)
            expected = [outputs for _, outputs in graph.expected[rule.name]]
            if any(rule.refuses(*pair) for pair in zip(expected, actual, strict=True)):
                refused_by.append(rule.name)
        verify = [python, "-m", "packager", "verify", str(graph.bundle), "--json"]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        verified = subprocess.run(verify, env=environment, cwd=scratch, capture_output=True, text=True)
        if json.loads(verified.stdout)["parity"]["onnx"] != "pass":
            refused_by.append(OURS)
        yield RunResult(graph.name, how, refused_by)


def older_environment() -> tuple[str, str]:
    """Return the Python of an environment with the previous minor version of onnxruntime, and the name of the run."""
    major, minor = onnxruntime.__version__.split(".")[:2]
    folder = WORK / f"onnxruntime-{major}.{int(minor) - 1}"
    python = folder / "bin" / "python"
    if not (folder / "ready").exists():
        venv.create(folder, with_pip=True, clear=True)
        needed = [f"{name}=={version(name)}" for name in NEEDED]
        install = [str(python), "-m", "pip", "install", "--quiet", f"onnxruntime=={major}.{int(minor) - 1}.*", *needed]
        subprocess.run(install, check=True)
        (folder / "ready").touch()
    command = [str(python), "-c", "import onnxruntime; print(onnxruntime.__version__)"]
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return str(python), f"onnxruntime {printed.strip()}"


if __name__ == "__main__":
    main()
