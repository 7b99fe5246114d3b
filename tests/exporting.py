"""Export a project's module with one of torch's exporters, without the rest of a build."""

from functools import partial

from packager.export import exported_program, torchscript
from packager.export import onnx as exporters
from packager.export.graph import io
from packager.model import loader
from packager.model.inputs import bind_inputs
from packager.parity import reference
from packager.parity.cases import sample_grid, signature
from packager.project import manifest


def export(exporter, path, target):
    """The exported graph in one file, the module, and the names of its outputs."""
    loaded = manifest.load_manifest(path)
    with loader.open_model_loader(loaded) as load:
        model = load()
        grid = sample_grid.build_grid(loaded)
        outputs = reference.run_case(loaded, model, grid.example_case)
        example = bind_inputs(loaded, list(grid.example_case.inputs.values()))
        names = exporters.TensorNames(list(loaded.manifest.inputs), list(outputs))
        if exporter == "module":
            raw = exporters.export_from_module(loaded, model.module, names, example, target / "raw.onnx")
        elif exporter in ("torchscript", "script"):
            trace = partial(torchscript.trace, names=loaded.manifest.outputs, inputs=example)
            program = (torchscript.script if exporter == "script" else trace)(model.module, folder=loaded.folder)
            raw = exporters.export_from_torchscript(loaded, program, names, example, target / "raw.onnx")
        else:
            make_program = partial(exported_program.export, loaded, model.module, example)
            raw = exporters.export_with_torch_export(
                loaded, model.module, make_program, names, example, target / "raw.onnx"
            )
        io.write_graph(io.load_graph(raw), target, target / "whole.onnx")
        cases = {case.name: reference.run_case(loaded, model, case) for case in grid.cases}
        signed = signature.infer_output_specs(
            [(grid.example_case, outputs), (grid.probe_case, cases[grid.probe_case.name])]
        )
    return target / "whole.onnx", grid, cases, signed
