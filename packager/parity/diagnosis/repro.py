"""What was found wrong, as a folder that shows it without the project, without PyTorch and without this tool.

subgraph.onnx   the part of the graph that is wrong, with the weights that it needs
values.npz      PyTorch's values where that part begins (input_0, …), what it should give, and the worst element
show.py         runs the one on the other and prints the difference; needs numpy and onnxruntime
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import numpy as np

from packager.export.graph import io
from packager.parity.diagnosis.localize import FaultyNode
from packager.parity.diagnosis.onnx_activations import GraphModel

SCRIPT_FILE, VALUES_FILE, SUBGRAPH_FILE = "show.py", "values.npz", "subgraph.onnx"
_SCRIPT = '''\
"""What onnxruntime computes from PyTorch's values, beside what PyTorch computes from them."""
from pathlib import Path

import numpy as np
import onnxruntime

values = np.load(Path(__file__).with_name("values.npz"))
session = onnxruntime.InferenceSession(Path(__file__).with_name("subgraph.onnx"))
feeds = {one.name: values[f"input_{place}"] for place, one in enumerate(session.get_inputs())}
expected, actual = values["expected"], session.run(None, feeds)[0]
print(f"PyTorch gives {expected.dtype}{list(expected.shape)}, onnxruntime {actual.dtype}{list(actual.shape)}")
if expected.shape == actual.shape:
    worst = tuple(values["worst"])
    print(f"at {[int(one) for one in worst]} PyTorch gives {expected[worst]}, onnxruntime {actual[worst]}")
'''


class NotAReproFolder(Exception):
    """Something that is no such folder is in its place."""


def write_repro(folder: Path, faulty: FaultyNode, graph: GraphModel) -> None:
    """Write the folder, in the place of an earlier one. Raises `NotOurs`, or OSError."""
    if folder.is_symlink() or (folder.exists() and not (folder / SCRIPT_FILE).is_file()):
        raise NotAReproFolder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as scratch:
        new = Path(scratch) / "new"
        new.mkdir()
        io.strip_metadata(faulty.subgraph)
        io.write_graph(faulty.subgraph, graph.folder, new / SUBGRAPH_FILE)
        worst = faulty.metrics.worst.index if faulty.metrics is not None and faulty.metrics.worst is not None else ()
        arrays = {f"input_{place}": array for place, array in enumerate(faulty.subgraph_inputs.values())}
        arrays |= {"expected": faulty.expected, "worst": np.array(worst, np.int64)}
        np.savez(new / VALUES_FILE, allow_pickle=False, **arrays)
        (new / SCRIPT_FILE).write_text(_SCRIPT, encoding="utf-8")
        if folder.exists():
            os.rename(folder, Path(scratch) / "old")
        os.rename(new, folder)
