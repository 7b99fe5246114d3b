"""docs/benchmarks.md: one page, of which every benchmark writes its own part."""

import re
from pathlib import Path

PAGE = Path(__file__).resolve().parent.parent / "docs" / "benchmarks.md"


def put(name: str, text: str) -> None:
    """Put a benchmark's part in its place on the page, or at the end where it has none yet."""
    page = PAGE.read_text(encoding="utf-8") if PAGE.exists() else "# Benchmarks\n"
    part = f"<!-- {name} -->\n{text.strip()}\n<!-- end of {name} -->\n"
    pattern = re.compile(rf"<!-- {name} -->\n.*?<!-- end of {name} -->\n", re.DOTALL)
    page = pattern.sub(lambda found: part, page) if pattern.search(page) else f"{page.rstrip()}\n\n{part}"
    PAGE.write_text(page, encoding="utf-8")
