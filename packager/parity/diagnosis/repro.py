"""Write a folder that reproduces a fault without the project, PyTorch or this package.

subgraph.onnx   the nodes at fault, with the weights that they need
values.npz      PyTorch's values at the inputs (input_0, …), the expected output, and the index of the worst element
show.py         runs the subgraph on the values and prints the difference; needs numpy and onnxruntime
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np

from packager.export.graph import io
from packager.parity.diagnosis.localize import FaultyNode
from packager.parity.diagnosis.onnx_activations import GraphModel

SCRIPT_FILE, VALUES_FILE, SUBGRAPH_FILE = "show.py", "values.npz", "subgraph.onnx"
_SCRIPT = '''\
"""Run subgraph.onnx on PyTorch's values, and compare its output with PyTorch's."""
from pathlib import Path

import numpy as np
import onnxruntime

values = np.load(Path(__file__).with_name("values.npz"))
session = onnxruntime.InferenceSession(Path(__file__).with_name("subgraph.onnx"))
feeds = {item.name: values[f"input_{index}"] for index, item in enumerate(session.get_inputs())}
expected, actual = values["expected"], session.run(None, feeds)[0]
print(f"PyTorch gives {expected.dtype}{list(expected.shape)}, onnxruntime {actual.dtype}{list(actual.shape)}")
if expected.shape == actual.shape:
    worst = tuple(values["worst"])
    print(f"at {values['worst'].tolist()} PyTorch gives {expected[worst]}, onnxruntime {actual[worst]}")
'''


class NotAReproFolder(Exception):
    """The path exists, and is not a folder that `write_repro` wrote."""


def write_repro(folder: Path, faulty: FaultyNode, graph: GraphModel) -> None:
    """Write the folder, in place of an earlier one. Raises `NotAReproFolder` or OSError."""
    if folder.is_symlink() or (folder.exists() and not (folder / SCRIPT_FILE).is_file()):
        raise NotAReproFolder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as temporary:
        scratch = Path(temporary)
        new = scratch / "new"
        new.mkdir()
        io.strip_metadata(faulty.subgraph)
        io.write_graph(faulty.subgraph, graph.folder, new / SUBGRAPH_FILE)
        worst = faulty.metrics.worst.index if faulty.metrics is not None and faulty.metrics.worst is not None else ()
        arrays = {f"input_{index}": array for index, array in enumerate(faulty.subgraph_inputs.values())}
        arrays |= {"expected": faulty.expected, "worst": np.array(worst, np.int64)}
        np.savez(new / VALUES_FILE, allow_pickle=False, **arrays)
        (new / SCRIPT_FILE).write_text(_SCRIPT, encoding="utf-8")
        if folder.exists():
            folder.rename(scratch / "old")
        new.rename(folder)
