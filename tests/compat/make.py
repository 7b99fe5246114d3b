"""Write the bundles of this version into tests/compat/VERSION: `python tests/compat/make.py`, once for each release.

They are never written again: later versions must verify and load what this one made. One has a TorchScript fallback, an
asset and a signature; one has an exported program; one is ONNX alone, with whole numbers as its input.
"""

import shutil
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

import pki  # noqa: E402 (the path comes first)
from projects import LINEAR, SAVED_AS_PROGRAM, project  # noqa: E402

import packager  # noqa: E402

TOKENS = """
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(11, 4)

    def forward(self, tokens):
        return self.table(tokens)
"""


def main() -> None:
    """Build the bundles as archives, and sign one. The private key is not kept."""
    target = HERE / version("torch-packager")
    target.mkdir()
    with tempfile.TemporaryDirectory() as scratch:
        work = Path(scratch)
        tokens = {"tokens": {"dtype": "int64", "shape": ["batch", "length"], "range": [0, 11]}}
        (work / "torchscript").mkdir()
        (work / "torchscript/labels.txt").write_text("a\nb\nc\n")
        manifests = {
            "torchscript": project(work / "torchscript", LINEAR, name="torchscript", assets=["labels.txt"]),
            "exported-program": project(work / "exported-program", SAVED_AS_PROGRAM, name="exported-program"),
            "onnx": project(work / "onnx", TOKENS, name="onnx", inputs=tokens, torchscript={"method": "none"}),
        }
        for name, manifest in manifests.items():
            packager.build(manifest, work / "out", archive=True)
            shutil.copy(work / f"out/{name}-1.0.0.zip", target / f"{name}.zip")
        private, public = pki.write_key(work)
        packager.sign(target / "torchscript.zip", key=private)
        shutil.copy(public, target / "signer.pub.pem")


if __name__ == "__main__":
    main()
