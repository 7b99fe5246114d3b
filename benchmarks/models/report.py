"""Make docs/models.md of results.jsonl.

    python -m benchmarks.models.report [RESULTS] [--busy]

`--busy` leaves the timings out: they were taken beside other work.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.models.catalogue import all_models
from benchmarks.models.limits import LIMITS

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "work" / "models" / "results.jsonl"
PAGE = ROOT / "docs" / "models.md"
Result = Mapping[str, Any]

NOT_A_MODEL = "cannot be constructed"
PARTIAL_SHARE = 0.9  # of the catalogue: a few models cannot be constructed
_INTRODUCTION = """# Models of public libraries

Does `package build` take your model? This page has what it did with models that nobody wrote for packager: timm,
transformers, segmentation-models-pytorch, torchvision, PyTorch Geometric, speech, tables, time series, detectors. They
were chosen before any of them was built, and none was taken out because it failed. Each has its usual size, and random
weights with seed 0 or the weights that its package ships. The batch is dynamic, and so is the length of text and audio.

- **right** means that the bundle's ONNX model and its fallback agree with PyTorch at sizes and values that the build
  never saw: other primes, other seeds, other distributions. An error may be 16 times that of PyTorch's own float32
  against float64 on the same input, or 1e-5 of the largest element, whichever is more.
- **refused** means that the build stopped with an error, and no bundle was written. The reasons are below.
- **error** is the largest one, relative to the largest element of the output.
"""
_TIMINGS = """- **seconds** are of `package build --no-cache`, from the start of the process. **by hand** are the same
  steps with the libraries alone: export, simplify, optimize, trace, freeze, one comparison
  (benchmarks/models/by_hand.py), in the same minute. They are given for models that were packaged by hand as well.
"""
_REPEAT = """## Repeat it

```sh
make models          # all of them; takes hours
make models-sample   # a small part, as in CI
```

The catalogue is benchmarks/models/catalogue/: one line or a few for each model, with the source that a user would
write.
"""


def main() -> None:
    """Write docs/models.md."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("results", nargs="?", type=Path, default=RESULTS)
    arguments.add_argument("--busy", action="store_true", help="leave the timings out")
    options = arguments.parse_args()
    results = read_results(options.results.read_text(encoding="utf-8").splitlines())
    PAGE.write_text(render(results, len(all_models()), processor(), timings=not options.busy), encoding="utf-8")


def read_results(lines: Iterable[str]) -> list[dict[str, Any]]:
    """Return the last result of each model and major version of its library, in the order of libraries and names."""
    results = [json.loads(line) for line in lines if line.strip()]
    latest = {(result["name"], major(result)): result for result in results}
    return sorted(latest.values(), key=lambda result: (result["library"].lower(), major(result), result["name"]))


def major(result: Result) -> str:
    """Return the library with the major version of its distribution, such as "transformers 5"."""
    return f"{result['library']} {(result.get('version') or '').partition('.')[0]}".strip()


def processor() -> str:
    """Return the name of this machine's processor."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return "an unknown processor"


def render(results: Sequence[Result], catalogue_size: int, machine: str, *, timings: bool) -> str:
    """Return the page."""
    models = [result for result in results if result["outcome"] != NOT_A_MODEL]
    parts = [_INTRODUCTION + (_TIMINGS if timings else ""), summarize(models, catalogue_size, machine, timings=timings)]
    parts += [refusals(models), "## Every model\n"]
    for library in sorted({major(result) for result in models}, key=str.lower):
        parts.append(render_library([result for result in models if major(result) == library], timings))
    left_out = [result for result in results if result["outcome"] == NOT_A_MODEL]
    if left_out:
        parts.append("## Not counted\n\nThe library does not construct these with the versions of this run:\n")
        parts.append("\n".join(f"- {result['name']}: {one_line(result['message'])}" for result in left_out) + "\n")
    return "\n".join([*parts, _REPEAT])


def summarize(models: Sequence[Result], catalogue_size: int, machine: str, *, timings: bool) -> str:
    """Return the summary: counts, and the ratios of build to by hand."""
    right = [result for result in models if result["outcome"] == "right"]
    wrong = [result for result in models if result["outcome"] == "wrong"]
    share = f"{len(right) / len(models):.1%}" if models else "0 %"
    lines = [
        "## Summary\n",
        f"{len(models)} models of a catalogue of {catalogue_size}; **{len(right)} ({share}) built and right**, "
        f"{len(wrong)} wrong, {len(models) - len(right) - len(wrong)} without a bundle. Run on {machine}.\n",
    ]
    toolchains = Counter(result["toolchain"] for result in models if "toolchain" in result)
    if toolchains:
        lines.append("; ".join(f"{count} with {name}" for name, count in toolchains.most_common()) + ".\n")
    if len({result["name"] for result in models}) < PARTIAL_SHARE * catalogue_size:
        lines.append(
            "**The run is partial.** Its models were drawn at random from the catalogue before any of them was built. "
            "Seconds are given where a model was packaged by hand too, alone on the machine.\n"
        )
    by_hand = [result["by_hand"]["outcome"] for result in models if result.get("by_hand")]
    if by_hand:
        lines.append(f"By hand, {by_hand.count('right')} of the {len(by_hand)} that were tried are right.\n")
    ratios = [ratio for result in right if (ratio := time_ratio(result)) is not None]
    if timings and ratios:
        lines.append(
            f"Seconds against by hand: median {statistics.median(ratios):.2f} ×, largest {max(ratios):.2f} ×, over "
            f"{len(ratios)} models that both got right.\n"
        )
    return "\n".join(lines)


def refusals(models: Sequence[Result]) -> str:
    """Return the list of models that are not right, with the reason of each and whether it worked by hand."""
    failed = [result for result in models if result["outcome"] != "right"]
    if not failed:
        return ""
    lines = [
        "## Not built, or not right\n",
        "The last column comes from reading the model's code. It is empty where the code shows no such cause.",
        "",
        "| model | outcome | reason | by hand | what the model does |",
        "| --- | --- | --- | --- | --- |",
    ]
    for result in failed:
        outcome = f"`{result['code']}`" if result.get("code") else result["outcome"]
        by_hand = (result.get("by_hand") or {}).get("outcome", "")
        limit = LIMITS.get(result["name"], "")
        lines.append(f"| {result['name']} | {outcome} | {reason(result)} | {by_hand} | {limit} |")
    return "\n".join(lines) + "\n"


def reason(result: Result) -> str:
    """Return why a model is not right, in one line."""
    if result["outcome"] in ("timeout", "memory"):
        return {"timeout": "the limit of seconds was reached", "memory": "the limit of memory was reached"}[
            result["outcome"]
        ]
    lines = [line for line in str(result.get("message", "")).splitlines() if line.strip()]
    detail = lines[1] if len(lines) > 1 and result["outcome"] == "refused" else (lines or [""])[0]
    return one_line(detail)


def one_line(message: str, length: int = 220) -> str:
    """Return the first sentence or line of a message, safe in a Markdown table."""
    line = " ".join(message.split()).replace("|", "\\|").replace("<", "&lt;")
    return line if len(line) <= length else line[: length - 1].rstrip() + "…"


def render_library(results: Sequence[Result], timings: bool) -> str:
    """Return the table of one library."""
    right = sum(result["outcome"] == "right" for result in results)
    library, version = results[0]["library"], results[-1].get("version")
    titles = ["model", "outcome", "exporter", "fallback", "error"] + (
        ["seconds", "by hand", "ratio"] if timings else []
    )
    lines = [
        f"### {library} {version or ''}".rstrip(),
        f"\n{right} of {len(results)} built and right.\n",
        f"| {' | '.join(titles)} |",
        f"|{' --- |' * len(titles)}",
    ]
    for result in results:
        cells = [result["name"], result.get("code") or result["outcome"], result.get("exporter") or "",
                 result.get("fallback") or "", format_error(result)]  # fmt: skip
        if timings:
            ratio = time_ratio(result)
            by_hand = (result.get("by_hand") or {}).get("seconds")
            cells += [f"{result['seconds']:.1f}" if by_hand and "seconds" in result else "",
                      f"{by_hand:.1f}" if by_hand else "", f"{ratio:.2f}" if ratio else ""]  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def format_error(result: Result) -> str:
    """Return the larger error of the two artifacts, relative to the output's scale."""
    errors = [float(part["error"]) for part in result.get("comparison", {}).values() if "error" in part]
    if not errors:
        return ""
    return "0" if max(errors) == 0 else f"{max(errors):.1g}" if math.isfinite(max(errors)) else "not comparable"


def time_ratio(result: Result) -> float | None:
    """Return seconds over seconds by hand, if both built the model."""
    by_hand = result.get("by_hand") or {}
    if result["outcome"] != "right" or by_hand.get("outcome") != "right" or "seconds" not in by_hand:
        return None
    return float(result["seconds"] / by_hand["seconds"])


if __name__ == "__main__":
    main()
