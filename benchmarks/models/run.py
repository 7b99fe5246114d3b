"""Build every model of the catalogue, hold it against PyTorch, and take the same steps by hand.

    python -m benchmarks.models.run [PATTERN …] [--sample] [--resume] [--enforce] [--limit SECONDS] [--memory MB]

A PATTERN is a glob of names or libraries. Each model takes four processes: its project is written, built, and packaged
by hand, and the artifacts are compared with the eager module on inputs that no build saw. benchmarks/work/models has
the projects, and one JSON object for each model in results.jsonl; benchmarks/models/report.py makes docs/models.md of
it. `--executable` holds the executable of each bundle against Python as well. `--enforce` exits with status 1 if a
model is wrong, or refused unexpectedly.
"""

from __future__ import annotations

import argparse
import fnmatch
import importlib.metadata
import json
import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.models.catalogue import ZooModel, all_models
from benchmarks.models.measure import Run, measure
from benchmarks.models.project import CANNOT_BE_CONSTRUCTED
from benchmarks.models.sample import SAMPLE

ROOT = Path(__file__).resolve().parents[2]
WORK = ROOT / "benchmarks" / "work" / "models"
ACCEPTED = ("right", "cannot be constructed")


def main() -> int:
    """Run the chosen models, append their results, and return the exit status."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("patterns", nargs="*")
    arguments.add_argument("--sample", action="store_true", help="the small models that run in CI")
    arguments.add_argument(
        "--resume",
        action="store_true",
        help="leave out models that results.jsonl has, with this version of their library",
    )
    arguments.add_argument("--enforce", action="store_true", help="exit with status 1 unless all are right")
    arguments.add_argument("--limit", type=float, default=300.0, help="seconds for each process")
    arguments.add_argument("--memory", type=float, default=10_000.0, help="MB for each process tree")
    arguments.add_argument("--by-hand", choices=("always", "failures", "never"), default="always")
    arguments.add_argument(
        "--executable", action="store_true", help="hold the executable of each bundle against Python"
    )
    arguments.add_argument("--keep", action="store_true", help="keep checkpoints and artifacts")
    arguments.add_argument("--results", type=Path, default=WORK / "results.jsonl")
    options = arguments.parse_args()
    options.results.parent.mkdir(parents=True, exist_ok=True)
    finished = read_finished(options.results) if options.resume else set()
    models = choose(all_models(), options.patterns, SAMPLE if options.sample else None)
    failures = []
    for model in models:
        if (model.name, version(model.library)) in finished:
            continue
        result = run_model(model, options)
        with options.results.open("a", encoding="utf-8") as file:
            file.write(json.dumps(result) + "\n")
        print(summary(result), flush=True)
        if is_failure(model, result):
            failures.append(model.name)
    print(f"{len(failures)} not right: {', '.join(failures)}" if failures else "all right")
    return 1 if failures and options.enforce else 0


def is_failure(model: ZooModel, result: Mapping[str, Any]) -> bool:
    """Return whether a model is neither right nor refused with the code that its entry expects."""
    expected = model.expected_refusal is not None and result.get("code") == model.expected_refusal
    return result["outcome"] not in ACCEPTED and not expected


def choose(models: Sequence[ZooModel], patterns: Sequence[str], sample: Sequence[str] | None) -> list[ZooModel]:
    """Return the models of the sample, or those that match a pattern in the order of patterns; without either, all."""
    if sample is not None:
        return [model for model in models if model.name in sample]
    if not patterns:
        return list(models)
    chosen: dict[str, ZooModel] = {}
    for pattern in patterns:
        matches = [
            model for model in models
            if fnmatch.fnmatch(model.name, pattern) or fnmatch.fnmatch(model.library, pattern)
        ]  # fmt: skip
        if not matches:
            raise SystemExit(f"no model or library matches {pattern!r}")
        chosen.update({model.name: model for model in matches})
    return list(chosen.values())


def run_model(model: ZooModel, options: argparse.Namespace) -> dict[str, Any]:
    """Run the processes of one model; returns its line of results.jsonl."""
    folder = WORK / model.name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)

    def python(step: str, *arguments: str, module: bool = True) -> Run:
        prefix = [sys.executable, "-m", f"benchmarks.models.{step}"] if module else [sys.executable, "-m", step]
        return measure([*prefix, *arguments], ROOT, folder / step, variables(), options.limit, options.memory)

    result: dict[str, Any] = {"name": model.name, "library": model.library, "version": version(model.library)}
    result["toolchain"] = toolchain()
    written = python("project", model.name, str(folder))
    if written.status != 0:
        reason = written.stdout if written.status == CANNOT_BE_CONSTRUCTED else written.killed or written.stderr[-1500:]
        return {**result, "outcome": "cannot be constructed", "message": reason}
    result["parameters"] = int(written.stdout.split()[-1])
    build = python(
        "packager",
        "build",
        str(folder / "package.yaml"),
        "-o",
        str(folder / "dist"),
        "--json",
        "--no-cache",
        module=False,
    )
    result |= build_result(build)
    bundle, by_hand = folder / "dist" / f"{model.name}-1.0.0", folder / "by-hand"
    if build.status == 0:
        result |= artifacts(bundle)
    wanted = options.by_hand == "always" or (options.by_hand == "failures" and "outcome" in result)
    steps = python("by_hand", str(folder), str(by_hand)) if wanted else None
    compared = python("compare", str(folder), str(bundle), str(by_hand))
    comparison = _json(compared.stdout) or {"failed": compared.killed or compared.stderr[-1500:]}
    result |= outcome(result, comparison)
    if options.executable and result["outcome"] == "right":
        answered = python("executable", str(bundle))
        result["executable"] = _json(answered.stdout) or {"differences": [answered.killed or answered.stderr[-1500:]]}
        if result["executable"]["differences"]:
            result |= {"outcome": "executable differs", "message": result["executable"]["differences"][0]}
    if steps is not None:
        result["by_hand"] = by_hand_result(steps, comparison)
    if not options.keep:
        remove_large(folder)
    return result


def variables() -> dict[str, str]:
    """Return the environment of every measured process."""
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    return {**kept, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "2"}


def toolchain() -> str:
    """Return the versions that a result depends on beside that of the library."""
    python = ".".join(map(str, sys.version_info[:2]))
    return f"torch {version('torch')}, onnxruntime {version('onnxruntime')} and Python {python}"


def version(library: str) -> str | None:
    """Return the version of the library's distribution."""
    try:
        return importlib.metadata.version(library)
    except importlib.metadata.PackageNotFoundError:
        return None


def build_result(build: Run) -> dict[str, Any]:
    """Return the fields that the build process gives; `outcome` is set unless the build succeeded."""
    fields: dict[str, Any] = {"seconds": round(build.seconds, 2), "peak_mb": round(build.peak_mb)}
    printed = _json(build.stdout) or {}
    if build.killed:
        return {**fields, "outcome": build.killed, "message": build.stderr[-1500:]}
    if build.status == 0:
        stages = {stage["name"]: stage["seconds"] for stage in printed["stages"]}
        return {**fields, "stages": stages}
    error = printed.get("error") or {"code": "crashed", "message": build.stderr[-3000:]}
    refused = "crashed" if build.status not in (1, 2) else "refused"
    problems = [" ".join(str(part) for part in problem.values() if part) for problem in error.get("problems", [])]
    if refused == "crashed":
        problems.append(build.stderr[-3000:])
    message = "\n".join([error["message"], *problems])[:8000]
    return {**fields, "outcome": refused, "code": error["code"], "message": message, "hint": error.get("hint")}


def artifacts(bundle: Path) -> dict[str, Any]:
    """Return the exporter and the fallback of a bundle, and what was left unchecked."""
    config = json.loads((bundle / "config.json").read_text())
    parity = json.loads((bundle / "evidence" / "parity.json").read_text())
    exporters = [stage["name"] for stage in parity["stages"] if stage["name"].startswith("export: ") and stage["kept"]]
    torchscript = config["artifacts"]["torchscript"]
    return {
        "exporter": exporters[0].removeprefix("export: ") if exporters else None,
        "fallback": torchscript["method"] if torchscript else None,
        "onnx": config["artifacts"]["onnx"] is not None,
        "not_checked": parity["not_checked"],
    }


def outcome(result: dict[str, Any], comparison: dict[str, Any]) -> dict[str, Any]:
    """Return the outcome of a model that was built, with the details of the comparison."""
    if "outcome" in result:
        return {"eager_problems": comparison.get("eager_problems", [])}
    parts = [comparison[name] for name in ("onnx", "fallback") if name in comparison]
    if not parts:
        return {"outcome": "not compared", "message": comparison.get("failed", "no artifact")}
    wrong = [part for part in parts if part["outcome"] != "right"]
    return {
        "outcome": wrong[0]["outcome"] if wrong else "right",
        "comparison": {name: comparison[name] for name in ("onnx", "fallback") if name in comparison},
        "cases": comparison["cases"],
        "eager_problems": comparison["eager_problems"],
        **({"message": wrong[0]["reason"]} if wrong else {}),
    }


def by_hand_result(steps: Run, comparison: dict[str, Any]) -> dict[str, Any]:
    """Return the outcome of the steps by hand, held to the same rule."""
    outcomes = _json(steps.stdout) or {}
    onnx = comparison.get("by_hand_onnx")
    failed = {name: reason for name, reason in outcomes.items() if reason != "ok"}
    if not outcomes:
        failed = {"process": steps.killed or steps.stderr[-800:]}
    return {
        "outcome": onnx["outcome"] if onnx else "failed",
        "seconds": round(steps.seconds, 2),
        "peak_mb": round(steps.peak_mb),
        "failed_steps": failed,
        "onnx": onnx,
        "torchscript": comparison.get("by_hand_torchscript"),
    }


def remove_large(folder: Path) -> None:
    """Remove checkpoints and artifacts; the project, the logs and the evidence stay."""
    for path in folder.rglob("*"):
        if path.is_file() and path.stat().st_size > 1 << 20:
            path.unlink()


def summary(result: dict[str, Any]) -> str:
    """Return one line about a result."""
    by_hand = result.get("by_hand", {})
    error = result.get("comparison", {}).get("onnx", {}).get("error")
    return (
        f"{result['name']}: {result['outcome']} {result.get('code', '')} {result.get('seconds', '')} s, "
        f"error {error}, by hand {by_hand.get('outcome')} {by_hand.get('seconds')} s"
    )


def read_finished(results: Path) -> set[tuple[str, str | None]]:
    """Return the names of the models that have a result, each with the version of its library."""
    if not results.exists():
        return set()
    lines = results.read_text(encoding="utf-8").splitlines()
    return {(result["name"], result["version"]) for result in map(json.loads, filter(None, lines))}


def _json(printed: str) -> dict[str, Any] | None:
    """Return the JSON object in the last line, if it is one: libraries print on import."""
    lines = printed.strip().splitlines()
    try:
        value = json.loads(lines[-1]) if lines else None
    except json.JSONDecodeError:
        return None
    return value if isinstance(value, dict) else None


if __name__ == "__main__":
    raise SystemExit(main())
