"""Find the dims that an exporter fixed: an exported graph that is right at one of their sizes, and wrong at all others.

That is what becomes of a loop over a size in Python, and of other numbers that forward() takes from sizes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from packager.export.graph import io
from packager.export.graph.messages import ExportedGraph
from packager.parity.numerics.verdict import ParityResult, ReferenceCase
from packager.runtime.check import check_onnx_session, open_onnx_session


def find_fixed_dims(
    exported: ExportedGraph, reference_cases: Sequence[ReferenceCase], providers: Sequence[str]
) -> Mapping[str, int]:
    """Run an exported graph on every case; return the sizes, by the dim's name, at which it is right.

    Empty if it is wrong for a different reason: at these sizes it must be right on every case, on most others wrong.
    """
    path = exported.path.with_name("fixed_dims.onnx")
    path.write_bytes(io.load_graph(exported).SerializeToString())  # its weights stay where they are
    session = open_onnx_session(path, providers)
    if isinstance(session, ParityResult):
        return {}
    right: list[Mapping[str, int]] = []
    wrong: list[Mapping[str, int]] = []
    for case in reference_cases:
        passed = check_onnx_session(session, [case], path.parent).passed
        (right if passed else wrong).append(case.sizes)
    shared = {dim: size for dim, size in (right[0].items() if right else ()) if _all_equal(right, dim)}
    varied = {dim: size for dim, size in shared.items() if any(sizes[dim] != size for sizes in wrong)}
    singles = [{dim: size} for sizes in right for dim, size in sizes.items()]
    return next((fixed for fixed in (varied, *singles) if fixed and _explains(fixed, right, wrong)), {})


def _all_equal(cases: Sequence[Mapping[str, int]], dim: str) -> bool:
    return len({sizes[dim] for sizes in cases}) == 1


def _explains(fixed: Mapping[str, int], right: Sequence[Mapping[str, int]], wrong: Sequence[Mapping[str, int]]) -> bool:
    """Tell whether every case of these sizes is right, and most of the others are wrong."""
    inside = [sizes for sizes in right if fixed.items() <= sizes.items()]
    missed = [sizes for sizes in wrong if fixed.items() <= sizes.items()]
    return len(inside) > 1 and not missed and len(wrong) > 2 * (len(right) - len(inside))
