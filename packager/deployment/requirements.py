"""requirements.txt of an export: what the bundle needs to run, in the versions that it was proven with."""

from __future__ import annotations

from collections.abc import Sequence

from packager.common.installed_distributions import DISTRIBUTION, tool_version
from packager.deployment.source import BundleSource

_CPU = "CPUExecutionProvider"


def describe_other_providers(source: BundleSource) -> tuple[str, ...]:
    """Return a note if the bundle was built for other execution providers than the onnxruntime of the requirements."""
    others = [provider for provider in source.config["providers"] if provider != _CPU]
    if not others:
        return ()
    return (f"requirements.txt has onnxruntime for the CPU, and the bundle was built for {', '.join(others)}",)


def format_requirements(source: BundleSource, *, extra: str = "", others: Sequence[str] = ()) -> bytes:
    """Return requirements.txt: torch-packager with an extra, the backend, and `others` as they are.

    torch-packager is the one that exports, whose API the texts use. onnxruntime and numpy are pinned to the versions
    that parity was proven with; a bundle that has no ONNX model also needs its torch.
    """
    tools = ["onnxruntime", "numpy"]
    if source.config["artifacts"]["onnx"] is None:
        tools.append("torch")
    version = tool_version("packager")
    packager = DISTRIBUTION + (f"[{extra}]" if extra else "") + (f"=={version}" if version else "")
    lines = [
        f"# For {source.title}: the versions that its parity was proven with.",
        packager,
        *map(source.get_pin, tools),
        *others,
    ]
    return "".join(f"{line}\n" for line in lines).encode()
