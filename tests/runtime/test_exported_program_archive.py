"""An exported program that would run more than its operators is refused before torch reads it."""

import json
import zipfile

import pytest
import torch
from projects import FLOATS, manifest

from packager.common import deterministic_zip
from packager.export import exported_program
from packager.project.manifest import load_manifest
from packager.runtime.exported_program_archive import ArchiveUnsafe, check_archive
from packager.runtime.exported_program_backend import ExportedProgramBackend

PROGRAM = "models/model.json"
WEIGHTS = "data/weights/model_weights_config.json"


class Net(torch.nn.Module):
    """A net with operators that take text and containers, sizes that are computed, and a branch on data."""

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(4, 4)
        self.table = torch.arange(4.0)

    def forward(self, x):
        y = torch.einsum("bi,bj->bij", self.layer(x), x)
        y = torch.nn.functional.interpolate(y, scale_factor=1.5, mode="linear").sum(-1)
        with torch.no_grad():
            y = torch.cat([torch.div(y, 0.7, rounding_mode="floor") + self.table, x], -1)
        y = y.flatten()[: x.shape[0] // 2 * 2] * torch.sym_float(x.shape[0])
        return torch.cond(x.sum() > 0, lambda v: v * 2, lambda v: torch.nn.functional.gelu(v, approximate="tanh"), (y,))


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    project = load_manifest(manifest(folder, inputs=FLOATS, dims={"batch": {"min": 4}}))
    program = exported_program.export(project, Net().eval(), (torch.rand(4, 4),))
    exported_program.save(program, folder / "model.pt2", folder)
    return folder / "model.pt2"


def check(path):
    with path.open("rb") as stream:
        check_archive(stream)


def rewrite(saved, target, change):
    """Copy an archive whose entries, bytes by name without the folder, `change` has changed."""
    with zipfile.ZipFile(saved) as archive:
        entries = {name.partition("/")[2]: archive.read(name) for name in archive.namelist()}
    change(entries)
    with target.open("wb") as stream:
        files = ((f"model/{name}", len(content), [content]) for name, content in sorted(entries.items()))
        deterministic_zip.write_zip(stream, files)
    return target


def editing(name, edit):
    """Return a change that edits the JSON of one entry."""

    def change(entries):
        document = json.loads(entries[name])
        edit(document)
        entries[name] = json.dumps(document).encode()

    return change


def set_size(expression):
    """Return an edit that puts an expression where the size of a tensor is."""

    def edit(program):
        values = program["graph_module"]["graph"]["tensor_values"].values()
        size = next(size for value in values for size in value["sizes"] if "as_expr" in size)
        size["as_expr"]["expr_str"] = expression

    return edit


def set_target(target):
    return lambda program: program["graph_module"]["graph"]["nodes"][0].update(target=target)


def rename_input(name):
    """Return an edit that renames the input of the program everywhere, as a writer of such a file would."""

    def edit(program):
        text = json.dumps(program).replace('"inputs_0"', json.dumps(name))
        program.clear()
        program.update(json.loads(text))

    return edit


def test_a_program_that_the_build_saves_is_accepted(saved):
    check(saved)
    backend = ExportedProgramBackend(saved, inputs=[("x", "float32")], output_names=["y"])
    assert backend.run({"x": torch.rand(7, 4).numpy()})["y"].shape == (6,)


RUNS = "__import__('pathlib').Path('ran').touch()"
UNSAFE = {
    "a pickle of example inputs": lambda entries: entries.update({"data/sample_inputs/model.pt": b"x"}),
    "a custom object": lambda entries: entries.update({"data/constants/custom_obj_0": b"x"}),
    "an opaque object": lambda entries: entries.update({"data/constants/opaque_obj_0": b"x"}),
    "a native library": lambda entries: entries.update({"data/aotinductor/model/model.so": b"x"}),
    "a second program": lambda entries: entries.update({"models/other.json": entries[PROGRAM]}),
    "weights in the legacy format": lambda entries: entries.update({"data/weights/model.pt": b"x"}),
    "no JSON": lambda entries: entries.update({PROGRAM: b"{"}),
    "deep JSON": lambda entries: entries.update({PROGRAM: b"[" * 100_000}),
    "a pickled weight": editing(WEIGHTS, lambda config: next(iter(config["config"].values())).update(use_pickle=True)),
    "a path": editing(WEIGHTS, lambda config: next(iter(config["config"].values())).update(path_name="../x")),
    "guards": editing(PROGRAM, lambda program: program.update(guards_code=["True"])),
    "code as a size": editing(PROGRAM, set_size(RUNS)),
    "code in a symbol": editing(PROGRAM, set_size(f'Max(Integer(1), "{RUNS}")')),
    "another function as a size": editing(PROGRAM, set_size("exit()")),
    "an attribute as a size": editing(PROGRAM, set_size("Integer(1).__class__")),
    "a library as an operator": editing(PROGRAM, set_target("torch.ops.load_library")),
    "another function as an operator": editing(PROGRAM, set_target("torch.hub.load")),
    "an operator that opens files": editing(PROGRAM, set_target("torch.ops.aten.from_file.default")),
    "an operator that writes files": editing(PROGRAM, set_target("torch.ops.aten.save.default")),
    "an operator that calls": editing(PROGRAM, set_target("_operator.methodcaller")),
    "an attribute of an operator": editing(PROGRAM, set_target("torch.ops.aten.add.__init__")),
    "an operator of a library": editing(PROGRAM, set_target("torch.ops.custom.run.default")),
    "code as a name": editing(PROGRAM, rename_input(f"x={RUNS}")),
    "a class as a container": editing(
        PROGRAM,
        lambda program: program["graph_module"]["module_call_graph"][0]["signature"].update(
            in_spec=json.dumps([1, {"type": "collections.defaultdict", "context": "null", "children_spec": []}])
        ),
    ),
}


@pytest.mark.parametrize("change", UNSAFE.values(), ids=UNSAFE)
def test_an_archive_that_holds_more_than_a_program_is_refused(saved, tmp_path, monkeypatch, change):
    monkeypatch.chdir(tmp_path)
    path = rewrite(saved, tmp_path / "model.pt2", change)
    with pytest.raises(ArchiveUnsafe):
        check(path)
    with pytest.raises(ArchiveUnsafe):
        ExportedProgramBackend(path, inputs=[("x", "float32")], output_names=["y"])
    assert not (tmp_path / "ran").exists()


def test_torch_itself_runs_code_that_a_size_holds(saved, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = rewrite(saved, tmp_path / "model.pt2", UNSAFE["code as a size"])
    with pytest.raises(Exception):  # noqa: B017 (whatever torch makes of None; the code has run by then)
        torch.export.load(path)
    assert (tmp_path / "ran").exists()


def test_an_archive_in_another_form_is_refused(saved, tmp_path):
    with zipfile.ZipFile(saved) as archive, zipfile.ZipFile(tmp_path / "model.pt2", "w") as copy:
        for name in archive.namelist():
            copy.writestr(name, archive.read(name))
    with pytest.raises(ArchiveUnsafe, match="malformed"):
        check(tmp_path / "model.pt2")
    (tmp_path / "model.pt2").write_bytes(b"")
    with pytest.raises(ArchiveUnsafe, match="malformed"):
        check(tmp_path / "model.pt2")


@pytest.mark.parametrize(
    "expression", ["-" * 9000 + "1", "(" * 4000 + "1" + ")" * 4000, f"Add({'1, ' * 100_000})", "1" * 5000]
)
def test_a_size_that_costs_the_parser_much_is_refused(saved, tmp_path, expression):
    with pytest.raises(ArchiveUnsafe, match="not an arithmetic expression"):
        check(rewrite(saved, tmp_path / "model.pt2", editing(PROGRAM, set_size(expression))))
