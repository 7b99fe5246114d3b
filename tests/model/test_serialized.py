"""TorchScript archives and exported programs instead of an entry."""

import numpy as np
import pytest
import torch
from loading import load
from projects import manifest as write
from torch import nn

import packager
from packager.builder.vet import vet
from packager.errors import CheckpointNeedsCode, CheckpointUnreadable, WeightsNotFinite, render_error
from packager.project import manifest


@pytest.fixture
def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.ReLU(), nn.Linear(8, 3)).eval()


def saved(folder, net, form):
    """Save the module in this form, and write a manifest for it."""
    path = folder / ("net.pt2" if form == "exported" else "net.ts")
    if form == "scripted":
        torch.jit.script(net).save(path)
    elif form == "scripted in training":
        torch.jit.script(net.train()).save(path)
        net.eval()
    elif form == "traced":
        torch.jit.trace(net, torch.zeros(2, 4)).save(path)
    else:
        shapes = ({0: torch.export.Dim("batch", min=1, max=64)},)
        torch.export.save(torch.export.export(net, (torch.zeros(2, 4),), dynamic_shapes=shapes), path)
    dims = {"batch": {"max": 8}}
    return write(folder, model={}, checkpoint={"path": path.name, "trust_pickle": True}, dims=dims)


FORMS = ["scripted", "scripted in training", "traced", "exported"]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.filterwarnings("ignore")
def test_a_program_is_built_without_an_entry(tmp_path, net, form):
    result = packager.build(saved(tmp_path, net, form), tmp_path / "dist")
    assert result.parity == {"onnx": "pass", "torchscript": "pass"}
    x = np.random.default_rng(0).random((5, 4), dtype=np.float32)
    expected = net(torch.from_numpy(x)).detach().numpy()
    bundle = packager.load(result.bundle)
    assert np.allclose(bundle.run({"x": x})["output_0"], expected, atol=1e-6)
    architecture = "GraphModule" if form == "exported" else "Sequential"  # an exported program does not keep the class
    assert bundle.config["source"]["architecture"] == architecture


@pytest.mark.parametrize(("form", "kind"), [("traced", "TorchScript"), ("exported", "an exported program")])
@pytest.mark.filterwarnings("ignore")
def test_a_program_that_is_not_trusted_is_refused_before_any_of_it_is_read(tmp_path, net, form, kind, golden):
    path = saved(tmp_path, net, form)
    name = manifest.load_manifest(path).manifest.checkpoint.path
    path = write(tmp_path, model={}, checkpoint={"path": name})
    with pytest.raises(CheckpointNeedsCode) as caught:
        vet(path)
    golden(
        render_error(caught.value),
        "error[checkpoint-needs-code]",
        name,
        f"{path}:6: checkpoint.path",
        f"({kind})",
        "checkpoint.trust_pickle",
    )


@pytest.mark.filterwarnings("ignore")
def test_a_program_is_not_a_checkpoint_for_an_entry(tmp_path, net, golden):
    saved(tmp_path, net, "exported")
    (tmp_path / "model.py").write_text("from torch import nn\n\n\ndef make():\n    return nn.Linear(4, 3)\n")
    path = write(tmp_path, entry="model.py:make", checkpoint={"path": "net.pt2"})
    with pytest.raises(CheckpointUnreadable) as caught:
        vet(path)
    golden(caught.value.why, "(.pt2)")


@pytest.mark.parametrize("form", ["traced", "exported"])
@pytest.mark.filterwarnings("ignore")
def test_a_program_whose_weights_are_not_finite_is_refused(tmp_path, net, form):
    with torch.no_grad():
        net[0].weight[0, 0] = float("nan")
    path = saved(tmp_path, net, form)
    with pytest.raises(WeightsNotFinite):
        load(path)
