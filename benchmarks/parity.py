"""Count the broken bundles found and the good bundles refused, by `package verify` and by the rules of other tools.

    python benchmarks/parity.py [--architectures bert,unet] [--no-write]

The mutants are those of tests/mutants, and so is the oracle that decides which of them must be found. The good bundles
run with 1 and 2 threads, at every optimization level of onnxruntime, as TorchScript, and with the previous minor
version of onnxruntime, in a separate environment under benchmarks/work.
"""

from __future__ import annotations

import argparse
import json
import os
import pickle
import platform
import shutil
import subprocess
import sys
import tempfile
import venv
from collections import Counter
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
from peer_rules import RULES, TESTS, Array, Arrays, Rule
from report import put

import packager
from packager.bundle import layout
from packager.bundle.evidence import read_reference_cases
from packager.common import output_tree
from packager.parity.numerics.verdict import check_parity
from packager.runtime.torchscript_backend import TorchScriptBackend

sys.path[:0] = [str(TESTS), str(TESTS / "mutants")]

import bundles  # noqa: E402 (the path comes first)
from architectures import ARCHITECTURES, Architecture  # noqa: E402
from mutations import MUTATIONS  # noqa: E402
from oracle import Effect, OnnxOracle, Session  # noqa: E402

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
WORK = HERE / "work"
OURS = "package verify"
NAMES = (OURS, *(rule.name for rule in RULES))
LEVELS = (Level.ORT_DISABLE_ALL, Level.ORT_ENABLE_BASIC, Level.ORT_ENABLE_EXTENDED, Level.ORT_ENABLE_ALL)
NEEDED = ("numpy", "click", "pydantic", "pyyaml", "rich", "safetensors")
Run = Callable[[Arrays], Arrays]


@dataclass(frozen=True)
class Broken:
    """One mutant: the bundle, the mutation and its location, its effect, and the rules that refuse it."""

    bundle: str
    mutation: str
    place: str
    effect: Effect
    found: frozenset[str]


@dataclass(frozen=True)
class Good:
    """One run of a good bundle: how it was run, and the rules that refuse it."""

    bundle: str
    how: str
    refused: frozenset[str]


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
    """Measure, print, and write this part of docs/parity.md."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--architectures", default="", help="comma-separated; the default is all")
    arguments.add_argument("--places", type=int, default=3, help="the most mutants of one mutation in one graph")
    arguments.add_argument("--no-write", action="store_true", help="print, and leave docs/parity.md as it is")
    options = arguments.parse_args()
    wanted = options.architectures.split(",") if options.architectures else [one.name for one in ARCHITECTURES]
    text = detection([one for one in ARCHITECTURES if one.name in wanted], options.places)
    print(text)
    if not options.no_write:
        put("parity", text, "parity.md")


def detection(chosen: Sequence[Architecture], places: int) -> str:
    """Break and run the bundles of these architectures, and return the results as Markdown."""
    broken: list[Broken] = []
    good: list[Good] = []
    wrong: list[str] = []
    with tempfile.TemporaryDirectory() as scratch:
        os.environ["PACKAGER_CACHE"] = f"{scratch}/cache"
        subjects = [
            subject(architecture, level, Path(scratch) / f"{level}-{architecture.name}")
            for architecture in chosen
            for level in bundles.LEVELS
        ]
        apart = Apart()
        for one in subjects:
            print(f"{one.name} …", file=sys.stderr)
            broken += mutants(one, Path(scratch) / "broken", places, apart)
            original = next(other for other in subjects if other.architecture == one.architecture and other != one)
            exported, shipped = (one, original) if one.level == "as exported" else (original, one)
            effect = effect_of(shipped, exported)
            if one is shipped and effect.must_be_found:
                wrong.append(f"{one.name}: {effect.floors:.3g} noise floors from what was exported, in {effect.where}")
            else:
                good += runs(one)
        good += with_older(subjects, [one.split(":")[0] for one in wrong], Path(scratch))
    return render(broken, good, wrong)


def subject(architecture: Architecture, level: str, folder: Path) -> Subject:
    """Build a bundle, and run the eager module on the samples of the other tools."""
    bundle = bundles.build(architecture, level, folder)
    namespace: dict[str, object] = {"__name__": "model"}
    exec(architecture.source, namespace)
    module = namespace[architecture.entry](**architecture.kwargs)  # type: ignore[operator]  # a class of the source
    module.load_state_dict(torch.load(folder / "project" / "best.pt", weights_only=True))
    module.eval()

    def eager(feed: Arrays) -> dict[str, Array]:
        with torch.inference_mode():
            value = module(*(torch.from_numpy(array) for array in feed.values()))
        named = output_tree.select_outputs(output_tree.flatten_outputs(value), list(architecture.outputs))
        return {name: tensor.numpy() for name, tensor in named.items()}

    expected = {rule.name: [(feed, eager(feed)) for feed in rule.feeds(architecture)] for rule in RULES}
    return Subject(architecture, level, bundle, expected)


def effect_of(shipped: Subject, exported: Subject) -> Effect:
    """Measure how far the graph that ships is from the exported one."""
    oracle = OnnxOracle(exported.architecture, exported.bundle).oracle
    return oracle.effect(Session((shipped.bundle / layout.ONNX).read_bytes()).run)


def peers(one: Subject, run_at: Callable[[Level], Run]) -> set[str]:
    """Return the tools that refuse a model; `run_at` opens it at an optimization level."""
    return {rule.name for rule in RULES if refused(rule, one.expected[rule.name], run_at)}


def refused(rule: Rule, pairs: Sequence[tuple[Arrays, Arrays]], run_at: Callable[[Level], Run]) -> bool:
    """Return whether a tool refuses a model: it differs on some sample, or does not run."""
    try:
        run = run_at(rule.level)
        return any(rule.refuses(expected, run(feed)) for feed, expected in pairs)
    except Exception:  # noqa: BLE001 (the user of a tool sees any error that stops it)
        return True


# -- broken bundles -------------------------------------------------------------------------


class Apart:
    """A process for the rules of other tools: some mutants crash onnxruntime on their samples, which users see too."""

    def __init__(self) -> None:
        self._process: ProcessPoolExecutor | None = None

    def refused(self, rule: int, content: bytes, pairs: Sequence[tuple[Arrays, Arrays]]) -> bool:
        """Return whether a rule refuses a model, or the process crashes on it."""
        if self._process is None:
            self._process = ProcessPoolExecutor(1, mp_context=get_context("spawn"))
        try:
            return self._process.submit(refused_here, rule, content, pairs).result()
        except BrokenProcessPool:
            self._process = None
            return True


def refused_here(rule: int, content: bytes, pairs: Sequence[tuple[Arrays, Arrays]]) -> bool:
    """Apply a rule to a model, in the other process."""
    return refused(RULES[rule], pairs, lambda level: Session(content, level).run)


def mutants(one: Subject, target: Path, places: int, apart: Apart) -> Iterator[Broken]:
    """Yield every mutant of a bundle, with its effect and the rules that find it."""
    model = onnx.load(one.bundle / layout.ONNX)
    oracle = OnnxOracle(one.architecture, one.bundle)
    shutil.rmtree(target, ignore_errors=True)
    copy = bundles.copy(one.bundle, target, torchscript=False)
    for mutation in MUTATIONS:
        for mutant in mutation.apply(model, places):
            bundles.put(copy, mutant.model)
            content = mutant.model.SerializeToString()
            found = {
                rule.name
                for number, rule in enumerate(RULES)
                if apart.refused(number, content, one.expected[rule.name])
            }
            if bundles.found(packager.verify(copy)):
                found.add(OURS)
            yield Broken(one.name, mutant.mutation, mutant.place, oracle.effect(mutant.model), frozenset(found))


# -- good bundles ---------------------------------------------------------------------------


def runs(one: Subject) -> Iterator[Good]:
    """Run a good bundle with each number of threads and optimization level, and as TorchScript."""
    reference_cases = read_reference_cases(one.bundle)
    content = (one.bundle / layout.ONNX).read_bytes()
    for threads in (1, 2):
        for level in LEVELS:
            run = Session(content, level, threads).run
            found = peers(one, lambda _, run=run: run)
            if not check_parity(run, reference_cases).passed:
                found.add(OURS)
            yield Good(one.name, f"{threads} threads, {level.name}", frozenset(found))
    config = json.loads((one.bundle / layout.CONFIG).read_text())
    script = TorchScriptBackend(
        one.bundle / layout.TORCHSCRIPT,
        inputs=[(spec["name"], spec["dtype"]) for spec in config["inputs"]],
        output_names=[spec["name"] for spec in config["outputs"]],
        optimize=config["artifacts"]["torchscript"]["optimize_for_inference"],
    )
    found = peers(one, lambda _: script.run)
    if packager.verify(one.bundle, trust_program=True).parity["torchscript"] != "pass":
        found.add(OURS)
    yield Good(one.name, "TorchScript", frozenset(found))


_RUN_ELSEWHERE = """
import pickle, sys
import onnxruntime
answers = []
for model, level, feeds in pickle.load(sys.stdin.buffer):
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel(level)
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    names = [one.name for one in session.get_outputs()]
    answers.append([dict(zip(names, session.run(None, feed))) for feed in feeds])
pickle.dump(answers, sys.stdout.buffer)
"""


def with_older(subjects: Sequence[Subject], wrong: Sequence[str], scratch: Path) -> Iterator[Good]:
    """Run the good bundles with the previous minor version of onnxruntime."""
    python, how = older_environment()
    chosen = [one for one in subjects if one.name not in wrong]
    jobs = [
        (str(one.bundle / layout.ONNX), int(rule.level), [feed for feed, _ in one.expected[rule.name]])
        for one in chosen
        for rule in RULES
    ]
    asked = subprocess.run([python, "-c", _RUN_ELSEWHERE], input=pickle.dumps(jobs), check=True, capture_output=True)
    answers = iter(pickle.loads(asked.stdout))
    for one in chosen:
        found = set()
        for rule in RULES:
            actual = next(answers)
            expected = [outputs for _, outputs in one.expected[rule.name]]
            if any(rule.refuses(*pair) for pair in zip(expected, actual, strict=True)):
                found.add(rule.name)
        verify = [python, "-m", "packager", "verify", str(one.bundle), "--json"]
        done = subprocess.run(
            verify, env={**os.environ, "PYTHONPATH": str(ROOT)}, cwd=scratch, capture_output=True, text=True
        )
        if json.loads(done.stdout)["parity"]["onnx"] != "pass":
            found.add(OURS)
        yield Good(one.name, how, frozenset(found))


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
    asked = [str(python), "-c", "import onnxruntime; print(onnxruntime.__version__)"]
    return str(
        python
    ), f"onnxruntime {subprocess.run(asked, check=True, capture_output=True, text=True).stdout.strip()}"


# -- results --------------------------------------------------------------------------------


def render(broken: Sequence[Broken], good: Sequence[Good], wrong: Sequence[str]) -> str:
    """Return this part of docs/parity.md."""
    must = [one for one in broken if one.effect.must_be_found]
    rest = [one for one in broken if not one.effect.must_be_found]
    lines = [
        "## Results: broken bundles found, good bundles refused", "",
        f"Measured by benchmarks/parity.py on an {platform.machine()} machine with torch {torch.__version__} and "
        f"onnxruntime {onnxruntime.__version__}. {len(broken)} mutants of {len({one.bundle for one in broken})} graphs "
        f"of {len({one.bundle.split(',')[0] for one in broken})} architectures. {len(must)} of them must be found: "
        "they move some output by more than ten noise floors on some valid input, or change its name, dtype or shape. "
        f"There are {len(good)} runs of good bundles.", "",
        "| rule | mutants found | of those that must be found | good runs refused | of all good runs |",
        "| --- | --- | --- | --- | --- |",
    ]  # fmt: skip
    for name in NAMES:
        found, refusals = sum(name in one.found for one in must), sum(name in one.refused for one in good)
        shares = [f"{found / len(must):.1%}" if must else "", f"{refusals / len(good):.1%}" if good else ""]
        lines.append(f"| {name} | {found} | {shares[0]} | {refusals} | {shares[1]} |")
    lines += ["", *(f"* {rule.name}: {rule.source}." for rule in RULES)]
    lines += ["", *(f"Excluded from the good runs, because it is wrong: {one}.\n" for one in wrong)]
    lines += ["### Good runs refused", "", *refusal_table(good), "", "### By mutation", "", *mutation_table(must)]
    missed = [one for one in must if OURS not in one.found]
    lines += ["", "### Missed by package verify", "", *(place_table(missed) if missed else ["None."])]
    passing = [one for one in rest if OURS not in one.found]
    none = sum(one.effect.floors == 0 for one in passing)
    lines += [
        "", "### Mutants that need not be found", "",
        f"{len(rest)} mutants stay below ten noise floors on all valid inputs that were tried. package verify refuses "
        f"{len(rest) - len(passing)} of them anyway. Of those that pass, {none} change nothing on any input. On valid "
        "inputs they compute the same function: a bound is never reached, a row lies beyond the largest size, or a "
        "channel is never active. The others change the result by less than ten times the effect of float32 "
        "arithmetic.", "",
        "<details><summary>All mutants that pass</summary>", "", *place_table(passing), "", "</details>",
    ]  # fmt: skip
    return "\n".join(lines) + "\n"


def refusal_table(good: Sequence[Good]) -> list[str]:
    """Return a table of the refusals by how the bundle was run."""
    lines = [f"| run | runs | {' | '.join(NAMES)} |", "| --- |" + " --- |" * (1 + len(NAMES))]
    for how in dict.fromkeys(one.how for one in good):
        chosen = [one for one in good if one.how == how]
        cells = " | ".join(str(sum(name in one.refused for one in chosen)) for name in NAMES)
        lines.append(f"| {how} | {len(chosen)} | {cells} |")
    return lines


def mutation_table(must: Sequence[Broken]) -> list[str]:
    """Return a table of the mutants found by mutation."""
    lines = [f"| mutation | mutants | {' | '.join(NAMES)} |", "| --- |" + " --- |" * (1 + len(NAMES))]
    counts = Counter(one.mutation for one in must)
    for mutation in (one.name for one in MUTATIONS if counts[one.name]):
        chosen = [one for one in must if one.mutation == mutation]
        cells = " | ".join(str(sum(name in one.found for one in chosen)) for name in NAMES)
        lines.append(f"| {mutation} | {len(chosen)} | {cells} |")
    return lines


def place_table(chosen: Sequence[Broken]) -> list[str]:
    """Return a table with a row for every mutant."""
    rows = [
        f"| {one.bundle} | {one.mutation} | {one.place} | {one.effect.floors:.3g} | {one.effect.where} |"
        for one in chosen
    ]
    return ["| graph | mutation | location | noise floors | largest change |", "| --- | --- | --- | --- | --- |", *rows]


if __name__ == "__main__":
    main()
