"""Mutate the seeds of every target, and report what its parser does: `python -m fuzz.run`, or `make fuzz`.

The mutations follow from `--seed` alone. A find is kept in `--keep`, as the bytes that cause it.
"""

import argparse
import faulthandler
import hashlib
import logging
import random
import resource
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from fuzz.mutations import mutate
from fuzz.targets import DOCUMENTED, Target, World

MAX_SECONDS = 2.0
"""Of processor time for one input: it does not depend on what else the machine does."""
MAX_MEGABYTES = 256
"""By which one input may raise the peak of the process; the seeds have less than 1 MB."""
HANG_SECONDS = 120  # then the process ends with a traceback
MAX_FINDS = 20


@dataclass
class Report:
    """What the mutations of one target led to: counts by the class of the error, or "accepted"."""

    outcomes: Counter[str] = field(default_factory=Counter)
    slowest_seconds: float = 0.0
    finds: list[tuple[bytes, str]] = field(default_factory=list)

    def describe(self, name: str) -> str:
        """Return one line."""
        outcomes = ", ".join(f"{outcome} {count}" for outcome, count in self.outcomes.most_common())
        count = self.outcomes.total()
        return f"{name:17}{count:7} mutations  {1000 * self.slowest_seconds:6.0f} ms at most  {outcomes}"


def check_once(target: Target, world: World, content: bytes, report: Report) -> None:
    """Run a target on one input, and add the outcome to the report."""
    faulthandler.dump_traceback_later(HANG_SECONDS, exit=True)
    peak, start = _peak_megabytes(), time.process_time()
    problem = None
    try:
        target.check(world, content)
        outcome = "accepted"
    except DOCUMENTED as error:
        outcome = type(error).__name__
        str(error)
    except Exception as error:  # noqa: BLE001 (any other exception is a find)
        outcome = f"FIND {type(error).__name__}"
        problem = traceback.format_exc()
    finally:
        faulthandler.cancel_dump_traceback_later()
    seconds, megabytes = time.process_time() - start, _peak_megabytes() - peak
    if problem is None and (seconds > MAX_SECONDS or megabytes > MAX_MEGABYTES):
        problem = f"{outcome} after {seconds:.1f} s and {megabytes:.0f} MB"
        outcome = "FIND slow or large"
    report.outcomes[outcome] += 1
    report.slowest_seconds = max(report.slowest_seconds, seconds)
    if problem is not None:
        report.finds.append((content, problem))


def check_seeds(target: Target, world: World) -> None:
    """Check that every seed is accepted: nothing is learned from mutations of what was refused anyway."""
    for content in target.seeds:
        target.check(world, content)


def fuzz(target: Target, world: World, count: int, seed: int) -> Report:
    """Run a target on mutations of its seeds, and of mutations that were accepted."""
    generator = random.Random(f"{seed} {target.name}")
    report = Report()
    for _ in range(count):
        check_once(target, world, mutate(generator.choice(target.seeds), generator, target.seeds), report)
        if len(report.finds) == MAX_FINDS:
            break
    return report


def main(arguments: list[str] | None = None) -> int:
    """Fuzz the targets, and print one line for each. Returns 1 if there is a find."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mutations", type=int, default=50_000, help="of all targets together")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--target", action="append", help="the name of a target; all by default")
    parser.add_argument("--keep", type=Path, default=Path("build/fuzz"), help="the folder for finds")
    options = parser.parse_args(arguments)
    silence()
    from fuzz import seeds

    finds = 0
    with tempfile.TemporaryDirectory() as folder:
        world = seeds.make_world(Path(folder))
        chosen = [target for target in seeds.make_targets(world) if target.name in (options.target or [target.name])]
        for target in chosen:
            check_seeds(target, world)
            report = fuzz(target, world, -(-options.mutations // len(chosen)), options.seed)
            print(report.describe(target.name), flush=True)
            for content, problem in report.finds:
                _keep(options.keep, target.name, content, problem)
            finds += len(report.finds)
    print(f"{finds} finds")
    return 1 if finds else 0


def silence() -> None:
    """Keep the warnings of parsers about hostile input from drowning the report."""
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")


def _keep(folder: Path, name: str, content: bytes, problem: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}-{hashlib.sha256(content).hexdigest()[:12]}"
    path.write_bytes(content)
    print(f"{path}:\n{problem}", file=sys.stderr)


def _peak_megabytes() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1 << (10 if sys.platform == "linux" else 20))


if __name__ == "__main__":
    sys.exit(main())
