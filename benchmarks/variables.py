"""Set the environment variables of measured commands."""

import os


def variables(**more: str) -> dict[str, str]:
    """Return the environment variables of this process and `more`, without PYTHONDONTWRITEBYTECODE.

    pip compiles the modules that it installs, so those of other tools are never compiled during a measurement. Ours
    run from a checkout, and are compiled in the round that only warms the disk cache.
    """
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    return {**kept, **more}
