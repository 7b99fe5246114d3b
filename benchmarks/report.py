"""Write the results of a benchmark into its part of a page, docs/benchmarks.md or docs/parity.md."""

import re
from pathlib import Path

DOCS = Path(__file__).resolve().parent.parent / "docs"


def put(name: str, text: str, file: str = "benchmarks.md") -> None:
    """Replace the part of a benchmark on a page, or append it if the page lacks one."""
    path = DOCS / file
    page = path.read_text(encoding="utf-8") if path.exists() else f"# {path.stem.capitalize()}\n"
    part = f"<!-- {name} -->\n{text.strip()}\n<!-- end of {name} -->\n"
    pattern = re.compile(rf"<!-- {name} -->\n.*?<!-- end of {name} -->\n", re.DOTALL)
    page = pattern.sub(lambda found: part, page) if pattern.search(page) else f"{page.rstrip()}\n\n{part}"
    path.write_text(page, encoding="utf-8")
