"""Write license_texts.cpp, which holds the texts of runner/licenses: `python embed_licenses.py FILE`."""

from __future__ import annotations

import sys
from pathlib import Path

LICENSES = Path(__file__).resolve().parent / "licenses"
COMPONENTS = {
    "simdjson": "simdjson (JSON), used under the MIT licence",
    "llhttp": "llhttp (HTTP)",
    "libdeflate": "libdeflate (compressed .npz)",
    "llvm": "libc++, libc++abi and libunwind (the C++ runtime)",
    "zig": "compiler-rt of Zig",
}


def join_texts() -> str:
    """Return the texts, each below the name of its component."""
    parts = []
    for name, title in COMPONENTS.items():
        text = (LICENSES / f"{name}.txt").read_text(encoding="utf-8").strip()
        parts.append(f"{title}\n{'-' * len(title)}\n\n{text}\n")
    return "\n".join(parts)


def main() -> None:
    """Write the C++ file."""
    literals = "\n".join(f'    R"text({line}\n)text"' for line in join_texts().split("\n")[:-1])
    Path(sys.argv[1]).write_text(
        '// Written by embed_licenses.py.\n#include "license_texts.hpp"\n\n'
        f"std::string_view packager::runner_licenses() {{\n    return\n{literals};\n}}\n",
        encoding="utf-8",
    )


if __name__ == "__main__":
    main()
