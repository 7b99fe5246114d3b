"""The results of benchmarks/parity.py: what was measured, as JSON and as Markdown."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from peer_rules import RULES

OURS = "package verify"
NAMES = (OURS, *(rule.name for rule in RULES))
CRASH = "onnxruntime crashes"
MUST = 10.0  # noise floors, as in tests/mutants/oracle.py


@dataclass(frozen=True)
class MutantResult:
    """One mutant: its graph, mutation and location, its effect in noise floors, and the rules that refuse it."""

    graph: str
    mutation: str
    location: str
    floors: float
    where: str
    refused_by: Sequence[str]

    @property
    def must_be_found(self) -> bool:
        """Whether no check may miss it."""
        return self.floors > MUST


@dataclass(frozen=True)
class RunResult:
    """One run of a good bundle: its graph, how it was run, and the rules that refuse it."""

    graph: str
    how: str
    refused_by: Sequence[str]


@dataclass(frozen=True)
class Results:
    """All results of one architecture, with the versions that they depend on; `wrong` bundles have no good runs."""

    architecture: str
    versions: Mapping[str, str]
    mutants: Sequence[MutantResult]
    runs: Sequence[RunResult]
    wrong: Sequence[str]

    def write(self, path: Path) -> None:
        """Write the results as JSON."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(asdict(self), indent=1, ensure_ascii=False), encoding="utf-8")


def read(path: Path) -> Results:
    """Return the results that `Results.write` wrote."""
    record = json.loads(path.read_text(encoding="utf-8"))
    record["mutants"] = [MutantResult(**mutant) for mutant in record["mutants"]]
    record["runs"] = [RunResult(**run) for run in record["runs"]]
    return Results(**record)


def render(title: str, introduction: str, results: Sequence[Results], mutations: Sequence[str]) -> str:
    """Return a part of docs/parity.md; `mutations` are the names of all, in the order of the table."""
    mutants = [mutant for result in results for mutant in result.mutants]
    runs = [run for result in results for run in result.runs]
    names = ", ".join(result.architecture for result in results)
    must = [mutant for mutant in mutants if mutant.must_be_found]
    wrong = [line for result in results for line in result.wrong]
    missed = [mutant for mutant in must if OURS not in mutant.refused_by]
    lines = [
        f"## {title}", "",
        f"Measured by benchmarks/parity.py on {_versions(results)}. {introduction} {len(mutants)} mutants of "
        f"{len({mutant.graph for mutant in mutants})} graphs of {len(results)} architectures: {names}. "
        f"{len(must)} of them must be found: they move some output by more than ten noise floors on some valid input, "
        f"or change its name, dtype or shape. {_crashes(must)}There are {len(runs)} runs of good bundles.", "",
        *_summary_table(must, runs), "", *(f"* {rule.name}: {rule.source}." for rule in RULES), "",
        *(f"Excluded from the good runs, because it is wrong: {line}.\n" for line in wrong),
        "### Good runs refused", "", *_refusal_table(runs), "",
        "### By mutation", "", *_mutation_table(must, mutations), "",
        "### Missed by package verify", "", *(_location_table(missed) if missed else ["None."]), "",
        "### Mutants that need not be found", "", *_rest(mutants),
    ]  # fmt: skip
    return "\n".join(lines) + "\n"


def _versions(results: Sequence[Results]) -> str:
    texts = [
        "an {machine} machine with packager {packager}, torch {torch} and onnxruntime {onnxruntime}".format_map(
            versions
        )
        for versions in (result.versions for result in results)
    ]
    return "; ".join(dict.fromkeys(texts))


def _crashes(mutants: Sequence[MutantResult]) -> str:
    count = sum(mutant.where == CRASH for mutant in mutants)
    return f"{count} of them crash onnxruntime, and the process of every rule with it: found. " if count else ""


def _summary_table(must: Sequence[MutantResult], runs: Sequence[RunResult]) -> list[str]:
    lines = [
        "| rule | mutants found | of those that must be found | good runs refused | of all good runs |",
        "| --- | --- | --- | --- | --- |",
    ]
    for name in NAMES:
        detections, refusals = _count(name, must), _count(name, runs)
        shares = [f"{detections / len(must):.1%}" if must else "", f"{refusals / len(runs):.1%}" if runs else ""]
        lines.append(f"| {name} | {detections} | {shares[0]} | {refusals} | {shares[1]} |")
    return lines


def _count(name: str, results: Sequence[MutantResult] | Sequence[RunResult]) -> int:
    """Return how many of these a rule refuses."""
    return sum(name in result.refused_by for result in results)


def _refusal_table(runs: Sequence[RunResult]) -> list[str]:
    """Return a table of the refusals by how the bundle was run."""
    lines = [f"| run | runs | {' | '.join(NAMES)} |", "| --- |" + " --- |" * (1 + len(NAMES))]
    for how in dict.fromkeys(run.how for run in runs):
        chosen = [run for run in runs if run.how == how]
        lines.append(f"| {how} | {len(chosen)} | {' | '.join(str(_count(name, chosen)) for name in NAMES)} |")
    return lines


def _mutation_table(must: Sequence[MutantResult], mutations: Sequence[str]) -> list[str]:
    """Return a table of the mutants found by mutation."""
    lines = [f"| mutation | mutants | {' | '.join(NAMES)} |", "| --- |" + " --- |" * (1 + len(NAMES))]
    counts = Counter(mutant.mutation for mutant in must)
    for mutation in (name for name in mutations if counts[name]):
        chosen = [mutant for mutant in must if mutant.mutation == mutation]
        lines.append(f"| {mutation} | {len(chosen)} | {' | '.join(str(_count(name, chosen)) for name in NAMES)} |")
    return lines


def _location_table(mutants: Sequence[MutantResult]) -> list[str]:
    """Return a table with a row for every mutant."""
    rows = [
        f"| {mutant.graph} | {mutant.mutation} | {mutant.location} | {mutant.floors:.3g} | {mutant.where} |"
        for mutant in mutants
    ]
    return ["| graph | mutation | location | noise floors | largest change |", "| --- | --- | --- | --- | --- |", *rows]


def _rest(mutants: Sequence[MutantResult]) -> list[str]:
    """Return the text on the mutants that need not be found."""
    rest = [mutant for mutant in mutants if not mutant.must_be_found]
    passing = [mutant for mutant in rest if OURS not in mutant.refused_by]
    unchanged = sum(mutant.floors == 0 for mutant in passing)
    return [
        f"{len(rest)} mutants stay below ten noise floors on all valid inputs that were tried. package verify refuses "
        f"{len(rest) - len(passing)} of them anyway. Of those that pass, {unchanged} change nothing on any input. On "
        "valid inputs they compute the same function: a bound is never reached, a row lies beyond the largest size, or "
        "a channel is never active. The others change the result by less than ten times the effect of float32 "
        "arithmetic.", "",
        "<details><summary>All mutants that pass</summary>", "", *_location_table(passing), "", "</details>",
    ]  # fmt: skip
