"""Fuzz one parser with coverage guidance: `python -m fuzz.atheris_targets NAME [FOLDER] [libFuzzer's options]`.

Needs the group `fuzz`: `pip install --group fuzz`. The seeds are written to FOLDER, where libFuzzer adds what it finds,
or to a temporary folder. The laws are those of `make fuzz`.
"""

import contextlib
import os
import sys
import tempfile
from pathlib import Path

import atheris

# packager is instrumented while it is imported; torch and onnx are not, which would take minutes.
with atheris.instrument_imports(include=["packager"]):
    from fuzz import seeds, targets
from fuzz.run import check_seeds, silence


def main() -> None:
    """Fuzz the target that the command line names, until there is a find or libFuzzer's options end it."""
    name, *options = sys.argv[1:]
    silence()
    with tempfile.TemporaryDirectory() as folder:
        world = seeds.make_world(Path(folder))
        by_name = {target.name: target for target in seeds.make_targets(world)}
        if name not in by_name:
            sys.exit(f"there is no target {name!r}; choose one of {', '.join(by_name)}")
        target = by_name[name]
        check_seeds(target, world)
        corpus = Path(options.pop(0)) if options and not options[0].startswith("-") else Path(folder) / "corpus"
        corpus.mkdir(parents=True, exist_ok=True)
        for number, content in enumerate(target.seeds):
            (corpus / f"seed-{number}").write_bytes(content)

        def check(content: bytes) -> None:
            with contextlib.suppress(targets.DOCUMENTED):
                target.check(world, content)

        atheris.Setup([sys.argv[0], os.fspath(corpus), "-timeout=10", *options], check)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
