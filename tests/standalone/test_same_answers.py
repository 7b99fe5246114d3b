"""An executable answers as Python does: one table of cases, asked of both and compared field by field."""

import contextlib
import io
import json
import shutil
import zipfile

import numpy as np
import pytest
import safetensors.numpy
from executables import ask, call, write_both
from projects import ANOTHER, project, reseal, update_digests

import packager
from packager.cli import console
from packager.cli.bundle import _format_report
from packager.errors import PackagerError, render_error
from packager.runtime.predict import predict

EVERY = """
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(50, 4)
        self.layer = nn.Linear(4, 3)

    def forward(self, ids, flags, scale, half, offset, small):
        rows = self.layer(self.table(ids).sum(1))
        return {
            "scores": rows * scale.float() + offset,
            "tokens": ids * 2,
            "flipped": ~flags,
            "halves": half * 0.1,
            "wide": half.double() / 3,
            "total": rows.sum(),
            "bytes": small + 1,
        }
"""

IDENTITY = """
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("one", torch.ones(1))

    def forward(self, x):
        y = x * self.one
        return {"argmax": y, "top": y + 0, "rank": y * 1, "threshold": y - 0}
"""

EVERY_INPUTS = {
    "ids": {"dtype": "int64", "shape": ["batch", "length"], "range": [0, 50]},
    "flags": {"dtype": "bool", "shape": ["batch"]},
    "scale": {"dtype": "bfloat16", "shape": [], "range": [-1, 1]},
    "half": {"dtype": "float16", "shape": ["batch", 2], "range": [-1, 1]},
    "offset": {"dtype": "float32", "shape": [3], "range": [-1, 1]},
    "small": {"dtype": "uint8", "shape": ["batch", 1], "range": [0, 200]},
}
EVERY_DIMS = {"batch": {"min": 1, "max": 8}, "length": {"min": 0, "max": 12}}


@pytest.fixture(scope="session")
def every(tmp_path_factory):
    """Return a bundle with inputs and outputs of many dtypes, of rank 0, of fixed and of dynamic size."""
    folder = tmp_path_factory.mktemp("every")
    manifest = project(
        folder, EVERY, inputs=EVERY_INPUTS, name="every", dims=EVERY_DIMS, torchscript={"method": "none"},
        parity={"effort": "quick"},
    )  # fmt: skip
    return packager.build(manifest, folder / "out").bundle


@pytest.fixture(scope="session")
def both_every(every, runner, tmp_path_factory):
    """Return that bundle as archive and as executable."""
    return write_both(runner, every, tmp_path_factory.mktemp("both") / "every")


@pytest.fixture(scope="session")
def both_identity(identity, runner, tmp_path_factory):
    """Return the bundle `identity` as archive and as executable."""
    return write_both(runner, identity, tmp_path_factory.mktemp("both") / "identity")


@pytest.fixture(scope="session")
def loaded_every(both_every):
    """Return that bundle loaded in Python."""
    return packager.load(both_every[0])


@pytest.fixture(scope="session")
def identity(tmp_path_factory):
    """Return a bundle whose outputs are its input, once for each rule of decisions."""
    folder = tmp_path_factory.mktemp("identity")
    inputs = {"x": {"dtype": "float32", "shape": ["batch", "classes"]}}
    manifest = project(
        folder, IDENTITY, inputs=inputs, name="identity", torchscript={"method": "none"}, parity={"effort": "quick"}
    )
    return packager.build(manifest, folder / "out").bundle


# -- predictions ----------------------------------------------------------------------------


def make_inputs(batch=2, length=3, **changes):
    """Return arrays that fit, but for `changes`; an input that is None is left out."""
    random = np.random.default_rng(0)
    arrays = {
        "ids": random.integers(0, 50, (batch, length)),
        "flags": random.integers(0, 2, batch) > 0,
        "scale": np.array(0.7, np.float32),
        "half": random.uniform(-1, 1, (batch, 2)).astype(np.float16),
        "offset": random.uniform(-1, 1, 3).astype(np.float32),
        "small": random.integers(0, 200, (batch, 1), np.uint8),
    }
    return {name: array for name, array in {**arrays, **changes}.items() if array is not None}


def save(path, arrays, write=np.savez):
    with path.open("wb") as stream:
        write(stream, **arrays)


def predict_both(both, loaded, source):
    """Return what Python and the executable print for the arrays of a file, on stdout and on stderr."""
    out, lines = io.StringIO(), []
    with contextlib.redirect_stdout(out):
        try:
            lines = predict(loaded, source, None)
            for line in lines:
                console.print_line(line)
            expected = (0, out.getvalue(), "")
        except PackagerError as error:
            expected = (error.exit_status, "", render_error(error) + "\n")
    answer = call(both[1], "run", "--input", source)
    return expected, (answer.returncode, answer.stdout, answer.stderr)


FITTING = {
    "of one row": make_inputs(batch=1),
    "of all rows": make_inputs(batch=8, length=12),
    "without tokens": make_inputs(length=0),
    "in the order of Fortran": make_inputs(ids=np.asfortranarray(make_inputs(length=5)["ids"][:, :4])),
    "that are not finite": make_inputs(
        offset=np.array([np.nan, np.inf, -np.inf], np.float32), half=np.array([[np.nan, np.inf], [0, -0.0]], np.float16)
    ),
    "of many magnitudes": make_inputs(offset=np.array([1e-30, 3e20, -7], np.float32), scale=np.array(-0.0, np.float32)),
    "outside of their range": make_inputs(scale=np.array(1e9, np.float32)),
}


@pytest.mark.parametrize("arrays", FITTING.values(), ids=FITTING)
def test_predictions_are_printed_alike(arrays, both_every, loaded_every, tmp_path):
    save(tmp_path / "x.npz", arrays)
    expected, actual = predict_both(both_every, loaded_every, tmp_path / "x.npz")
    assert actual == expected
    assert expected[0] == 0


def test_numbers_are_printed_with_the_digits_of_numpy(both_identity, tmp_path):
    """An output of the bundle `identity` is what it is given."""
    random = np.random.default_rng(0)
    loaded = packager.load(both_identity[0])
    for _ in range(40):
        x = random.normal(size=random.integers(1, 8, 2)) * 10.0 ** random.integers(-9, 9)
        x = np.round(x, random.integers(0, 9)) * 10.0 ** random.integers(-3, 3, x.shape)
        x[random.random(x.shape) < 0.1] = random.choice([np.nan, np.inf, -np.inf, 0, -0.0])
        save(tmp_path / "x.npz", {"x": x.astype(np.float32)})
        expected, actual = predict_both(both_identity, loaded, tmp_path / "x.npz")
        assert actual == expected
        assert expected[0] == 0


WRONG = {
    "no arrays": {},
    "an input is missing": make_inputs(half=None),
    "an input has a similar name": make_inputs(half=None, halt=np.zeros((2, 2), np.float16)),
    "an input has a different name": make_inputs(half=None, zzz=np.zeros((2, 2), np.float16)),
    "an input too many": make_inputs(more=np.zeros(1)),
    "a name with control characters": make_inputs(half=None, **{"ha\x1b[31mlf\u202e": np.zeros(1)}),
    "a rank too small": make_inputs(ids=np.zeros(2, np.int64)),
    "a rank too large": make_inputs(scale=np.zeros((1, 1), np.float32)),
    "a wrong fixed size": make_inputs(offset=np.zeros(4, np.float32)),
    "sizes that differ": make_inputs(flags=np.zeros(3, bool)),
    "a size too large": make_inputs(batch=9),
    "a size too small": make_inputs(batch=0),
    "a length too large": make_inputs(length=13),
    "an index outside of the table": make_inputs(ids=np.full((2, 3), 50)),
}


@pytest.mark.parametrize("arrays", WRONG.values(), ids=WRONG)
def test_wrong_inputs_are_refused_with_the_same_words(arrays, both_every, loaded_every, tmp_path):
    save(tmp_path / "x.npz", arrays)
    expected, actual = predict_both(both_every, loaded_every, tmp_path / "x.npz")
    assert actual == expected
    assert expected[0] == 2


@pytest.mark.parametrize("dtype", ["float64", "float16", "int32", "bool", "uint64"])
def test_a_wrong_dtype_is_refused_with_the_same_words_but_for_python_in_the_hint(
    dtype, both_every, loaded_every, tmp_path
):
    save(tmp_path / "x.npz", make_inputs(offset=np.zeros(3, dtype)))
    expected, actual = predict_both(both_every, loaded_every, tmp_path / "x.npz")
    assert expected[2].endswith("; cast=True does it if no value changes\n")
    assert (*actual[:2], actual[2].strip()) == (*expected[:2], expected[2].rpartition(";")[0])


@pytest.mark.parametrize(
    ("array", "dtype"),
    [
        (np.zeros(3, ">f4"), ">f4[3]"),
        (np.array(["a", "b", "c"]), "<U1[3]"),
        (np.zeros(3, complex), "complex128[3]"),
        (np.zeros(3, "S5"), "|S5[3]"),
    ],
)
def test_a_dtype_that_no_model_has_is_refused_by_name(array, dtype, both_every, loaded_every, tmp_path):
    save(tmp_path / "x.npz", make_inputs(offset=array))
    expected, actual = predict_both(both_every, loaded_every, tmp_path / "x.npz")
    for status, _, message in (expected, actual):
        assert status == 2
        assert " --> offset\n  it is " + dtype + "," in message


# -- files ----------------------------------------------------------------------------------


def npz(**arrays):
    stream = io.BytesIO()
    np.savez(stream, **arrays)
    return stream.getvalue()


def npy(array, version=None):
    stream = io.BytesIO()
    np.lib.format.write_array(stream, np.asarray(array), version=version)
    return stream.getvalue()


def zipped(entries, method=zipfile.ZIP_STORED):
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", method) as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    return stream.getvalue()


def as_safetensors(header, content=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + content


def flip(content, position):
    return content[:position] + bytes([content[position] ^ 1]) + content[position + 1 :]


class Unseekable(io.RawIOBase):
    """A pipe, into which zipfile writes sizes after the contents."""

    def __init__(self):
        self.content = b""

    def writable(self):
        return True

    def write(self, chunk):
        self.content += bytes(chunk)
        return len(chunk)


def piped(arrays, method):
    stream = Unseekable()
    with zipfile.ZipFile(stream, "w", method) as archive:
        for name, array in arrays.items():
            archive.writestr(f"{name}.npy", npy(array))
    return stream.content


X = np.arange(6, dtype=np.float32).reshape(2, 3)
TENSOR = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
BROKEN = {
    "empty.npz": b"",
    "text.npz": b"hello world",
    "start.npz": b"PK\3\4" + 50 * b"0",
    "truncated.npz": npz(x=X)[:-30],
    "crc.npz": flip(npz(x=X), 180),
    "object.npz": npz(x=np.array([None, {}], dtype=object)),
    "bomb.npz": lambda: zipped({"x.npy": npy(np.zeros((5000, 5000)))}, zipfile.ZIP_DEFLATED),
    "text-inside.npz": zipped({"x.npy": npy(X), "readme.txt": b"hello"}),
    "short.npz": zipped({"x.npy": npy(X)[:-4]}),
    "size.npz": zipped({"x.npy": npy(X).replace(b"(2, 3)", b"(2, 9)")}),
    "many.npz": lambda: zipped({f"{number}.npy": b"" for number in range(10_001)}),
    "empty.safetensors": b"",
    "short.safetensors": safetensors.numpy.save({"x": X})[:20],
    "truncated.safetensors": safetensors.numpy.save({"x": X})[:-1],
    "longer.safetensors": safetensors.numpy.save({"x": X}) + b"0",
    "huge.safetensors": 8 * b"\xff",
    "gap.safetensors": as_safetensors({"x": {**TENSOR, "data_offsets": [4, 8]}}, 8 * b"0"),
    "shape.safetensors": as_safetensors({"x": {**TENSOR, "shape": [2]}}, 4 * b"0"),
    "overflow.safetensors": as_safetensors({"x": {**TENSOR, "shape": [2**33, 2**33]}}, 4 * b"0"),
    "many.safetensors": as_safetensors({f"{number}": {} for number in range(10_001)}),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_file_is_refused_with_the_same_words(name, both_every, loaded_every, tmp_path):
    content = BROKEN[name]
    (tmp_path / name).write_bytes(content() if callable(content) else content)
    expected, actual = predict_both(both_every, loaded_every, tmp_path / name)
    assert actual == expected
    assert expected[0] == 2


def test_a_file_that_is_none_is_refused_with_the_same_words(both_every, loaded_every, tmp_path):
    for path in (tmp_path, tmp_path / "nothing.npz"):
        expected, actual = predict_both(both_every, loaded_every, path)
        assert actual == expected
        assert expected[0] == 2


@pytest.mark.parametrize(
    "name", ["header.npz", "swapped-name.npz", "json.safetensors", "dtype.safetensors", "twice.safetensors"]
)
def test_a_file_that_only_python_explains_in_its_own_words_is_refused_too(name, both_every, loaded_every, tmp_path):
    contents = {
        "header.npz": zipped({"x.npy": npy(X).replace(b"descr", b"dexcr")}),
        "swapped-name.npz": npz(x=X).replace(b"x.npy", b"y.npy", 1),
        "json.safetensors": as_safetensors(b'{"x": }'),
        "dtype.safetensors": as_safetensors({"x": {**TENSOR, "dtype": "F99"}}, 4 * b"0"),
        "twice.safetensors": as_safetensors(b'{"x": {"dtype": "F32"}, "x": {}}'),
    }
    (tmp_path / name).write_bytes(contents[name])
    expected, actual = predict_both(both_every, loaded_every, tmp_path / name)
    start = (
        f"error[data-does-not-fit]: the inputs do not match the signature\n --> {tmp_path / name}\n  {name} cannot be"
    )
    assert actual[:2] == expected[:2] == (2, "")
    assert actual[2].startswith(start)
    assert expected[2].startswith(start)


@pytest.mark.parametrize("kind", ["savez", "compressed", "safetensors", "piped", "piped and compressed"])
def test_every_format_of_python_is_read_alike(kind, both_every, loaded_every, tmp_path):
    arrays = make_inputs(batch=5, length=7)
    path = tmp_path / ("x.safetensors" if kind == "safetensors" else "x.npz")
    if kind == "safetensors":
        safetensors.numpy.save_file(arrays, path)
    elif kind.startswith("piped"):
        path.write_bytes(piped(arrays, zipfile.ZIP_STORED if kind == "piped" else zipfile.ZIP_DEFLATED))
    else:
        save(path, arrays, np.savez if kind == "savez" else np.savez_compressed)
    expected, actual = predict_both(both_every, loaded_every, path)
    assert actual == expected
    assert expected[0] == 0


def test_json_is_read_as_the_arrays_that_it_means(both_every, tmp_path):
    arrays = make_inputs(batch=5, length=7)
    save(tmp_path / "x.npz", arrays)
    (tmp_path / "x.json").write_text(json.dumps({name: array.tolist() for name, array in arrays.items()}))
    answers = [call(both_every[1], "run", "--input", tmp_path / name).stdout for name in ("x.npz", "x.json")]
    assert answers[0] == answers[1] != ""


@pytest.mark.parametrize("version", [(1, 0), (2, 0), (3, 0)])
@pytest.mark.parametrize("order", ["C", "F"])
def test_an_array_without_a_name_is_read_for_a_model_with_one_input(version, order, identity, both_identity, tmp_path):
    x = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)
    (tmp_path / "x.npy").write_bytes(npy(np.asarray(x, order=order), version))
    answer = call(both_identity[1], "run", "--input", tmp_path / "x.npy", "--output", tmp_path / "y.npz")
    assert answer.returncode == 0, answer.stderr
    np.testing.assert_array_equal(np.load(tmp_path / "y.npz")["argmax"], x)


def test_an_array_without_a_name_is_refused_for_a_model_with_several_inputs(both_every, loaded_every, tmp_path):
    (tmp_path / "x.npy").write_bytes(npy(X))
    expected, actual = predict_both(both_every, loaded_every, tmp_path / "x.npy")
    assert actual == expected


JSON_WRONG = {
    "not an object": ("[1]", "x.json cannot be read: it is not an object of arrays by name"),
    "no JSON": ("{", "x.json cannot be read: "),
    "a byte order mark": ("\ufeff{}", "x.json cannot be read: Unexpected UTF-8 BOM"),
    "a name twice": ('{"x": [[1]], "x": [[2]]}', "x.json cannot be read: 'x' appears twice"),
    "NaN": ('{"x": [[NaN]]}', "x.json cannot be read: "),
    "a number too large for any dtype": ('{"x": [[1e999]]}', "x.json cannot be read: "),
    "a number too large": ('{"x": [[1e39]]}', "it has a value that is not float32"),
    "a text": ('{"x": [["1"]]}', "it has a value that is not float32"),
    "true": ('{"x": [[true]]}', "it has a value that is not float32"),
    "null": ('{"x": [[null]]}', "it has a value that is not float32"),
    "lists of different length": ('{"x": [[1, 2], [3]]}', "its lists differ in length or depth"),
    "lists of different depth": ('{"x": [[1], 2]}', "its lists differ in length or depth"),
    "a deep list": ('{"x": ' + 99 * "[" + 99 * "]" + "}", "its lists differ in length or depth"),
    "a different name": ('{"y": [[1]]}', "the inputs are x; given: y"),
    "a wrong rank": ('{"x": [1]}', "it has the shape [1], expected [batch, classes]"),
}


@pytest.mark.parametrize(("text", "why"), JSON_WRONG.values(), ids=JSON_WRONG)
def test_json_that_does_not_fit_is_refused(text, why, both_identity, tmp_path):
    (tmp_path / "x.json").write_text(text)
    status, answer = ask(both_identity[1], "run", "--input", tmp_path / "x.json")
    assert status == 2
    assert answer["error"]["code"] == "data-does-not-fit"
    assert answer["error"]["message"].startswith("the inputs do not match the signature\n" + why)


@pytest.mark.parametrize(
    ("name", "value"),
    [("ids", [[1.0] * 3] * 2), ("ids", [[2**63] * 3] * 2), ("small", [[256]] * 2), ("small", [[-1]] * 2),
     ("flags", [1, 0]), ("half", [[65520, 0]] * 2)],
)  # fmt: skip
def test_json_numbers_that_the_dtype_lacks_are_refused(name, value, both_every, tmp_path):
    values = {key: array.tolist() for key, array in make_inputs().items()}
    (tmp_path / "x.json").write_text(json.dumps({**values, name: value}))
    status, answer = ask(both_every[1], "run", "--input", tmp_path / "x.json")
    assert (status, answer["error"]["where"]) == (2, name)
    assert "it has a value that is not" in answer["error"]["message"]


def test_outputs_are_written_as_python_writes_them(both_every, loaded_every, tmp_path):
    save(tmp_path / "x.npz", make_inputs())
    expected = loaded_every.run(make_inputs())
    for name in ("y.npz", "y.json"):
        assert call(both_every[1], "run", "--input", tmp_path / "x.npz", "--output", tmp_path / name).returncode == 0
    with np.load(tmp_path / "y.npz") as actual:
        assert list(actual) == list(expected)
        for name, array in expected.items():
            assert (actual[name].dtype, actual[name].shape) == (array.dtype, array.shape)
            assert actual[name].tobytes() == array.tobytes()
    listed = json.loads((tmp_path / "y.json").read_text())
    assert list(listed) == list(expected)
    for name, array in expected.items():
        np.testing.assert_array_equal(np.array(listed[name], array.dtype), array, strict=True)
    assert ask(both_every[1], "run", "--input", tmp_path / "x.npz") == (0, {"outputs": listed})


def test_outputs_that_json_lacks_are_refused(both_every, tmp_path):
    save(tmp_path / "x.npz", make_inputs(half=np.full((2, 2), np.nan, np.float16)))
    for arguments in (["--json"], ["--output", tmp_path / "y.json"]):
        answer = call(both_every[1], "run", "--input", tmp_path / "x.npz", *arguments)
        assert answer.returncode == 2
        assert "error[output-refused]" in answer.stderr
        assert "output 'halves' has NaN or infinite values, which JSON lacks" in answer.stderr
    assert not (tmp_path / "y.json").exists()


def test_a_folder_that_is_missing_is_named_alike(both_every, loaded_every, tmp_path):
    save(tmp_path / "x.npz", make_inputs())
    target = tmp_path / "nowhere" / "y.npz"
    with pytest.raises(PackagerError) as caught:
        predict(loaded_every, tmp_path / "x.npz", target)
    answer = call(both_every[1], "run", "--input", tmp_path / "x.npz", "--output", target)
    assert (answer.returncode, answer.stderr) == (2, render_error(caught.value) + "\n")


# -- verification ---------------------------------------------------------------------------

LEFT_TO_PYTHON = "structure: the schemas of the records, and the documents that follow from them, are checked by"
PROGRAM = "torchscript: not run: it is a program"


def normalize(record, path):
    """Return what either answers, with the same path, and the same reason why a program did not run.

    The executable has one more note: what it leaves to Python.
    """
    normalized = json.loads(json.dumps(record).replace(str(path), "<file>"))
    if "notes" in normalized:
        notes = [note for note in normalized["notes"] if not note.startswith(LEFT_TO_PYTHON)]
        normalized["notes"] = [PROGRAM if note.startswith(PROGRAM) else note for note in notes]
    return normalized


def verify_both(runner, folder, tmp_path, *, fingerprint=None, parity=True):
    """Return what Python says of a folder's archive, and what the executable says of itself: status and object."""
    archived, executable = write_both(runner, folder, tmp_path / "verified")
    try:
        report = packager.verify(archived, fingerprint=fingerprint, parity=parity)
        expected = (0 if report.ok else 1, report.as_json())
    except PackagerError as error:
        expected = (error.exit_status, {"error": error.as_json()})
    options = [*([] if fingerprint is None else ["--fingerprint", fingerprint]), *([] if parity else ["--no-parity"])]
    status, answer = ask(executable, "verify", *options)
    return (expected[0], normalize(expected[1], archived)), (status, normalize(answer, executable))


def edit(folder, name, change):
    """Change a record of a bundle in place."""
    record = json.loads((folder / name).read_text())
    change(record)
    (folder / name).write_text(json.dumps(record))


def edit_parity(change):
    def apply(folder):
        edit(folder, "evidence/parity.json", change)
        reseal(folder)

    return apply


def edit_config(change):
    def apply(folder):
        edit(folder, "config.json", change)
        reseal(folder)

    return apply


def edit_golden(change):
    """Change the tensors of the evidence by name, and seal the bundle again."""

    def apply(folder):
        path = folder / "evidence/golden.safetensors"
        tensors = {name: array.copy() for name, array in safetensors.numpy.load_file(path).items()}
        change(tensors)
        safetensors.numpy.save_file(tensors, path)
        reseal(folder)

    return apply


def write(name, content, *, sealed=True):
    def apply(folder):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(content)
        if sealed:
            reseal(folder)

    return apply


def change_text(name, old, new):
    def apply(folder):
        text = (folder / name).read_text()
        assert old in text
        (folder / name).write_text(text.replace(old, new, 1))

    return apply


def change_first(infix, change):
    """Change the first tensor of the evidence whose name has this infix and that has elements."""

    def apply(tensors):
        name = next(name for name in sorted(tensors) if infix in name and tensors[name].size)
        tensors[name] = change(tensors[name])

    return edit_golden(apply)


def put(value):
    def change(array):
        array = array.copy()
        array.reshape(-1)[-1] = value
        return array

    return change


def rename(old, new):
    def change(tensors):
        for name in list(tensors):
            if old in name:
                tensors[name.replace(old, new)] = tensors.pop(name)

    return change


def for_outputs(change):
    """Change the outputs of every case in parity.json."""

    def apply(record):
        for case in record["cases"]:
            for name, output in case["outputs"].items():
                change(name, output)

    return edit_parity(apply)


def set_limits(**limits):
    return for_outputs(lambda name, output: output.update(limits))


def reverse_outputs(record):
    for case in record["cases"]:
        case["outputs"] = dict(reversed(case["outputs"].items()))


def keep_no_golden(record):
    for case in record["cases"]:
        case["golden"] = False


def break_model(folder):
    (folder / "model.onnx").write_bytes(b"no model")
    update_digests(folder)


def remove_file(name):
    return lambda folder: (folder / name).unlink()


INTACT = {"as it was built": lambda folder: None}
DAMAGED = {
    "a changed model": lambda folder: write(
        "model.onnx", flip((folder / "model.onnx").read_bytes(), 100), sealed=False
    )(folder),
    "changed evidence": write("evidence/golden.safetensors", b"", sealed=False),
    "a changed config": write("config.json", b"{}", sealed=False),
    "a missing file": remove_file("README.md"),
    "an extra file": write("assets/extra.txt", b"x", sealed=False),
    "a changed fingerprint": write("FINGERPRINT", ANOTHER.encode() + b"\n", sealed=False),
    "a fingerprint with control characters": write("FINGERPRINT", b"\x1b[31mh1\n", sealed=False),
    "no fingerprint": remove_file("FINGERPRINT"),
    "no sums": remove_file("SHA256SUMS"),
    "no config": remove_file("config.json"),
    "sums without their last line break": lambda folder: (folder / "SHA256SUMS").write_bytes(
        (folder / "SHA256SUMS").read_bytes()[:-1]
    ),
    "sums with one space": change_text("SHA256SUMS", "  ", " "),
    "sums of a file outside": change_text("SHA256SUMS", "  README.md", "  ../README.md"),
}
FORGED = {
    "an unknown schema": edit_config(lambda config: config.update(schema=2)),
    "a config with a key twice": write("config.json", b'{"schema": 1, "schema": 1}'),
    "a config without a schema": write("config.json", b"[]"),
    "a different digest of the model": edit_config(lambda config: config["artifacts"]["onnx"].update(sha256=64 * "0")),
    "a file that does not belong": write("assets/extra.txt", b"x"),
    "a different verdict": edit_config(lambda config: config["parity"].update(onnx="not-checked")),
    "a model that does not load": break_model,
    "a different name of an input": edit_config(lambda config: config["inputs"][0].update(name="idz")),
    "a different name of an output": edit_config(lambda config: config["outputs"][0].update(name="score")),
    "a different dtype of an output": edit_config(lambda config: config["outputs"][0].update(dtype="float64")),
    "a different shape of an input": edit_config(lambda config: config["inputs"][0].update(shape=["batch"])),
    "a different shape of an output": edit_config(lambda config: config["outputs"][0].update(shape=["batch", 4])),
    "a size that config leaves open": edit_config(lambda config: config["outputs"][0].update(shape=["batch", None])),
    "a provider that is not here": edit_config(lambda config: config["providers"].append("CUDAExecutionProvider")),
    "no golden case": edit_parity(keep_no_golden),
    "outputs in a different order": edit_parity(reverse_outputs),
    "a limit of zero": set_limits(atol=0.0, rtol=0.0),
    "a limit that is too small": set_limits(atol=1e-12, rtol=1e-12),
    "a limit below zero": set_limits(atol=-1.0),
    "a wrong float": change_first("/output/scores", put(7.25)),
    "a float that is NaN": change_first("/output/scores", put(np.nan)),
    "a float that is infinite": change_first("/output/wide", put(-np.inf)),
    "a wrong half": change_first("/output/halves", put(3)),
    "a wrong integer": change_first("/output/tokens", put(-(2**62))),
    "a wrong byte": change_first("/output/bytes", put(255)),
    "a wrong bool": change_first("/output/flipped", lambda array: ~array),
    "a wrong scalar": change_first("/output/total", lambda array: np.asarray(array + 1)),
    "an index outside of the table": change_first("/input/ids", put(51)),
    "a missing output": edit_golden(lambda tensors: tensors.pop("000/output/scores")),
    "a missing input": edit_golden(lambda tensors: tensors.pop("000/input/ids")),
    "all inputs missing": edit_golden(rename("000/input/", "no-case/input/")),
    "an input of a different dtype": change_first("000/input/ids", lambda array: array.astype(np.int32)),
    "an output of a different dtype": change_first("000/output/scores", lambda array: array.astype(np.float64)),
    "an input of a different rank": change_first("000/input/ids", lambda array: array[0]),
    "an output of a different size": change_first("000/output/scores", lambda array: np.repeat(array, 2, axis=0)),
    "evidence that is none": write("evidence/golden.safetensors", b"none"),
    "evidence that is cut off": lambda folder: write(
        "evidence/golden.safetensors", (folder / "evidence/golden.safetensors").read_bytes()[:-1]
    )(folder),
}


@pytest.mark.parametrize(
    "change", [*INTACT.values(), *DAMAGED.values(), *FORGED.values()], ids=[*INTACT, *DAMAGED, *FORGED]
)
def test_verification_comes_to_the_same_answer(change, every, tmp_path, runner):
    folder = shutil.copytree(every, tmp_path / "copy" / every.name)
    change(folder)
    expected, actual = verify_both(runner, folder, tmp_path)
    assert actual == expected


@pytest.mark.parametrize("content", [b"{", b"\xef\xbb\xbf{}", b"\xff", 101 * b"[" + 101 * b"]"])
def test_a_record_that_is_no_json_is_refused_as_in_python_if_in_different_words(content, every, tmp_path, runner):
    for name in ("config.json", "evidence/parity.json"):
        folder = shutil.copytree(every, tmp_path / name.replace("/", "-") / every.name)
        write(name, content)(folder)
        (expected_status, expected), (status, actual) = verify_both(runner, folder, tmp_path)
        assert (status, expected_status) == (1, 1)
        if "error" in expected:
            assert actual["error"]["code"] == expected["error"]["code"] == "integrity-failed"
            assert actual["error"]["message"].startswith(
                "<file> is damaged or was modified\nconfig.json cannot be read:"
            )
        else:
            assert [len(record.pop("structure")) for record in (actual, expected)] == [1, 1]
            assert actual == expected


def test_a_bundle_with_a_program_is_verified_alike(built, tmp_path, runner):
    expected, actual = verify_both(runner, built.bundle, tmp_path)
    assert actual == expected
    assert expected[1]["notes"] == [PROGRAM]


@pytest.mark.parametrize("fingerprint", [None, ANOTHER, "", "nonsense", ANOTHER[:-1], ANOTHER + "\n"])
@pytest.mark.parametrize("parity", [True, False])
def test_the_options_are_judged_alike(fingerprint, parity, every, tmp_path, runner):
    expected, actual = verify_both(runner, every, tmp_path, fingerprint=fingerprint, parity=parity)
    assert actual == expected
    assert expected[0] == (0 if fingerprint is None else 1 if fingerprint == ANOTHER else 2)


def test_the_fingerprint_of_the_bundle_is_accepted(built, tmp_path, runner):
    expected, actual = verify_both(runner, built.bundle, tmp_path, fingerprint=built.fingerprint, parity=False)
    assert actual == expected
    assert expected[0] == 0


def test_the_shape_of_a_case_is_told_with_its_sizes(identity, tmp_path, runner):
    """The model declares no size here, so that the shapes differ only when it has run."""
    folder = shutil.copytree(identity, tmp_path / "copy" / identity.name)
    edit(folder, "config.json", lambda config: config["outputs"][0].update(shape=[None, None]))
    change_first("/output/argmax", lambda array: np.repeat(array, 2, axis=0))(folder)
    expected, actual = verify_both(runner, folder, tmp_path)
    assert actual == expected
    (note,) = [note for note in expected[1]["notes"] if note.startswith("onnx: case")]
    assert "(batch=" in note


@pytest.mark.parametrize("change", [*INTACT.values(), DAMAGED["an extra file"], FORGED["a wrong float"]])
def test_the_report_is_printed_alike(change, every, tmp_path, runner):
    folder = shutil.copytree(every, tmp_path / "copy" / every.name)
    change(folder)
    archived, executable = write_both(runner, folder, tmp_path / "verified")
    report = packager.verify(archived)
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        console.print_key_values(_format_report(report))
        for note in report.notes:
            console.print_line(f"note: {note}")
    end = "ok" if report.ok else "NOT ok"
    answer = call(executable, "verify")
    lines = [line for line in answer.stdout.splitlines() if LEFT_TO_PYTHON not in line]
    assert lines == [*out.getvalue().splitlines(), end]
    assert answer.returncode == (0 if report.ok else 1)


def test_an_unsigned_executable_says_nothing_of_a_signature_and_a_signed_one_that_it_is_not_checked(
    every, tmp_path, runner
):
    folder = shutil.copytree(every, tmp_path / "copy" / every.name)
    assert "signature" not in ask(write_both(runner, folder, tmp_path / "unsigned")[1], "verify", "--no-parity")[1]
    (folder / "model.sig").write_bytes(b"{}")
    status, answer = ask(write_both(runner, folder, tmp_path / "signed")[1], "verify", "--no-parity")
    assert (status, answer["signature"]["verdict"]) == (0, "not-checked")
    assert any(note.startswith("signature: not checked by the file itself") for note in answer["notes"])


def test_a_changed_library_is_named_before_it_is_loaded(every, tmp_path, runner):
    _, executable = write_both(runner, every, tmp_path / "verified")
    content = bytearray(executable.read_bytes())
    content[len(content) // 2] ^= 1  # the library is nearly all of it
    executable.write_bytes(content)
    status, answer = ask(executable, "verify")
    assert (status, answer["ok"], answer["integrity"]["changed"]) == (1, False, ["its library"])
    assert answer["parity"] == {"onnx": "not-checked", "torchscript": "not-checked"}


# -- decisions ------------------------------------------------------------------------------

RULES = {"argmax": "argmax", "top": "top-3", "rank": "rank", "threshold": "threshold 0.25"}


def make_scores(random, shape):
    """Return expected and actual scores with ties, near ties, and numbers that are not finite."""
    expected = np.round(random.normal(size=shape), 1).astype(np.float32)
    actual = expected + random.choice([0, 0.01, -0.01, 0.06, 0.3, -0.4], shape).astype(np.float32)
    for array in (expected, actual):
        array[random.random(shape) < 0.02] = random.choice([np.inf, -np.inf, np.nan])
    both = ~(np.isfinite(expected) & np.isfinite(actual))
    actual[both] = expected[both]  # else the values would fail, and decisions would not be reported
    return expected, actual


def forge_decisions(folder, random, *, axis, tie, cases=100):
    """Replace the evidence of `identity` by cases whose outputs differ from what the model computes."""
    tensors, records = {}, []
    for number in range(cases):
        shape = (int(random.integers(1, 5)), int(random.integers(1, 7)))
        expected, actual = make_scores(random, shape)
        tensors[f"{number}/input/x"] = actual
        outputs = {}
        for name in RULES:
            tensors[f"{number}/output/{name}"] = expected
            outputs[name] = {"dtype": "float32", "shape": list(shape), "atol": 0.5, "rtol": 0.01}
        sizes = {"batch": shape[0], "classes": shape[1]}
        records.append({"name": f"{number}", "sizes": sizes, "fill": "random", "golden": True, "outputs": outputs})

    def change(record):
        record["cases"] = records
        record["decisions"] = {name: {"rule": rule, "axis": axis, "tie": tie} for name, rule in RULES.items()}

    edit(folder, "evidence/parity.json", change)
    safetensors.numpy.save_file(tensors, folder / "evidence/golden.safetensors")
    reseal(folder)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("axis", "tie"), [(-1, 0.1), (0, 0.05), (1, 0.0), (-2, 0.2)])
def test_decisions_are_counted_alike(seed, axis, tie, identity, tmp_path, runner):
    folder = shutil.copytree(identity, tmp_path / "copy" / identity.name)
    forge_decisions(folder, np.random.default_rng([seed, axis % 2]), axis=axis, tie=tie)
    expected, actual = verify_both(runner, folder, tmp_path)
    assert actual == expected
    assert all(f"decisions ({rule}) changed" in expected[1]["notes"][0] for rule in RULES.values())


@pytest.mark.parametrize("axis", [2, -3])
def test_an_axis_that_the_output_lacks_fails_alike(axis, identity, tmp_path, runner):
    folder = shutil.copytree(identity, tmp_path / "copy" / identity.name)
    forge_decisions(folder, np.random.default_rng(0), axis=axis, tie=0.1)
    expected, actual = verify_both(runner, folder, tmp_path)
    assert actual == expected
    assert f"onnx: onnxruntime: axis {axis} is out of range for an output of rank 2" in expected[1]["notes"]
