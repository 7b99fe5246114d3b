"""The environment variables that every measured command gets."""

import os


def variables(**more: str) -> dict[str, str]:
    """Those of this process and `more`, and Python keeps the bytecode of what it imports.

    pip compiles what it installs, so a peer's modules are never compiled again. Ours are measured in a
    checkout: they are compiled in the round that only warms the disk's cache.
    """
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    return {**kept, **more}
