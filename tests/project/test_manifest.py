"""Load package.yaml as a validated manifest, or report all problems of the file at once."""

import hashlib
import os

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from messages import mentions

from packager.errors import ManifestInvalid, PackagerError, render_error
from packager.project.manifest import DimLimits, Manifest, load_manifest

GOOD = """\
schema: 1
name: digits-cnn
version: 1.0.0
model:
  entry: model.py:DigitsCNN
checkpoint:
  path: runs/best.pt
inputs:
  image: {dtype: float32, shape: [batch, 1, 8, 8], range: [0, 1]}
"""
DTYPES = (
    *("float16", "float32", "float64", "bfloat16", "int8", "int16", "int32", "int64"),
    *("uint8", "uint16", "uint32", "uint64", "bool"),
)


@pytest.fixture
def read(tmp_path, monkeypatch):
    """Load a text as package.yaml of the current folder."""
    monkeypatch.chdir(tmp_path)

    def load_text(text):
        (tmp_path / "package.yaml").write_text(text, encoding="utf-8", newline="")
        return load_manifest("package.yaml").manifest

    return load_text


@pytest.fixture
def refusal(read):
    """Return the rendered error for a text."""

    def load_text(text):
        with pytest.raises(PackagerError) as caught:
            read(text)
        return render_error(caught.value)

    return load_text


@pytest.fixture
def invalid(read, golden):
    """Assert that a text has these problems, each given by its location and facts, and how they read."""

    def check(text, *expected):
        with pytest.raises(ManifestInvalid) as caught:
            read(text)
        problems = caught.value.problems
        mentions(caught.value.message, "package.yaml", len(problems))
        assert [problem.where for problem in problems] == [where for where, *_ in expected]
        for problem, (_, *facts) in zip(problems, expected, strict=True):
            mentions(f"{problem.message}\n{problem.hint}", *facts)
        golden(caught.value)

    return check


def image(line):
    """Return the valid manifest with a different input."""
    return GOOD.replace("image: {dtype: float32, shape: [batch, 1, 8, 8], range: [0, 1]}", line)


# -- valid manifests ------------------------------------------------------------------------


def test_fields_that_are_absent_have_the_defaults_of_the_contract(read):
    assert read(GOOD).model_dump(by_alias=True) == {
        "schema": 1,
        "name": "digits-cnn",
        "version": "1.0.0",
        "description": "",
        "license": None,
        "authors": [],
        "metadata": {},
        "model": {"entry": "model.py:DigitsCNN", "kwargs": {}, "dtype": None},
        "checkpoint": {
            "path": "runs/best.pt",
            "weights": "auto",
            "prefix": "auto",
            "strict": True,
            "allow_missing": [],
            "allow_unexpected": [],
            "sha256": None,
            "trust_pickle": False,
        },
        "inputs": {"image": {"dtype": "float32", "shape": ["batch", 1, 8, 8], "range": [0, 1]}},
        "outputs": None,
        "dims": {},
        "export": {"opset": 20, "exporter": "auto", "required": True},
        "optimize": {"simplify": True, "level": "extended"},
        "torchscript": {"method": "auto"},
        "parity": {"effort": "standard", "samples": 8, "seed": 0, "tolerance": "auto", "data": None, "decisions": {}},
        "target": {"providers": ["CPUExecutionProvider"]},
        "assets": [],
    }


def test_inputs_keep_the_order_in_which_they_are_written(read):
    spec = "{dtype: float32, shape: []}"
    assert list(read(image(f"z: {spec}\n  a: {spec}\n  m: {spec}")).inputs) == ["z", "a", "m"]


def test_a_number_with_an_exponent_but_no_decimal_point_is_a_number(read):
    tolerance = read(GOOD + "parity: {tolerance: {atol: 1e-5, rtol: 1E-4}}").parity.tolerance
    assert (tolerance.atol, tolerance.rtol) == (1e-5, 1e-4)


def test_a_tolerance_may_be_an_integer(read):
    assert read(GOOD + "parity: {tolerance: {atol: 0, rtol: 1}}").parity.tolerance.rtol == 1.0


@pytest.mark.parametrize(
    "version",
    ["0.0.0", "1.2.3", "10.20.30", "1.0.0-rc.1", "1.0.0-0.3.7", "1.0.0-x-y-z.--", "1.0.0+21AF26D3", "1.0.0-a+b"],
)
def test_a_semantic_version_is_valid(read, version):
    assert read(GOOD.replace("1.0.0", version)).version == version


@pytest.mark.parametrize("name", ["a", "0", "digits-cnn", "bert.base_v2", "a" * 128])
def test_a_lowercase_name_is_valid(read, name):
    assert read(GOOD.replace("digits-cnn", f"'{name}'")).name == name


@pytest.mark.parametrize(
    "entry", ["model.py:Net", "src/nets/model.py:Net", "package.module:Net", "model.py:Outer.make"]
)
def test_an_entry_is_a_module_or_a_file_and_an_attribute(read, entry):
    assert read(GOOD.replace("model.py:DigitsCNN", entry)).model.entry == entry


@pytest.mark.parametrize(
    ("dtype", "low", "high"),
    [
        ("int8", -128, 128),
        ("uint8", 0, 256),
        ("int64", -(2**63), 2**63),
        ("uint64", 0, 2**64),
        ("uint16", 65535, 65536),
        ("int32", 0.0, 3e4),
        ("float16", -1e6, 1e6),
        ("float64", -1.7976931348623157e308, 1.7976931348623157e308),
    ],
)
def test_a_range_may_be_as_wide_as_the_dtype(read, dtype, low, high):
    assert read(image(f"x: {{dtype: {dtype}, shape: [], range: [{low}, {high}]}}")).inputs["x"].range == [low, high]


def test_a_bool_input_needs_no_range(read):
    assert read(image("mask: {dtype: bool, shape: [batch]}")).inputs["mask"].range is None


def test_every_named_dim_has_limits_in_the_order_of_the_inputs(read):
    inputs = "a: {dtype: float32, shape: [n, m]}\n  b: {dtype: float32, shape: [k, n, 3]}"
    limits = read(image(inputs) + "dims: {m: {min: 2, max: 9}, n: {max: 5}}").dim_limits()
    assert list(limits.items()) == [("n", DimLimits(max=5)), ("m", DimLimits(min=2, max=9)), ("k", DimLimits())]


def test_a_manifest_cannot_be_changed(read):
    manifest = read(GOOD)
    with pytest.raises(ValueError, match="frozen"):
        manifest.name = "other"
    assert manifest.name == "digits-cnn"


def test_a_project_has_a_folder_a_digest_and_line_numbers(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "package.yaml").write_text(GOOD)
    project = load_manifest("sub/package.yaml")
    assert project.folder == tmp_path / "sub"
    assert project.sha256 == hashlib.sha256(GOOD.encode()).hexdigest()
    assert project.field_location("inputs", "image", "dtype") == "sub/package.yaml:9: inputs.image.dtype"
    assert project.field_location("dims", "batch") == "sub/package.yaml:1: dims.batch"


def test_line_breaks_of_every_system_are_read(read):
    assert read(GOOD.replace("\n", "\r\n")) == read(GOOD) == read("\ufeff" + GOOD)


# -- files that are not a manifest ----------------------------------------------------------


def test_a_manifest_that_does_not_exist(tmp_path, monkeypatch, golden):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(PackagerError) as caught:
        load_manifest("package.yaml")
    golden(render_error(caught.value), "error[manifest-not-found]", "package.yaml")


def test_a_folder_is_not_a_manifest(tmp_path, monkeypatch, golden):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "package.yaml").mkdir()
    with pytest.raises(PackagerError) as caught:
        load_manifest("package.yaml")
    golden(render_error(caught.value), "error[manifest-not-found]", "package.yaml", ".yaml")
    for name in ("package.yaml", "other.yml", "code.py"):
        (tmp_path / "package.yaml" / name).touch()
    with pytest.raises(PackagerError) as caught:
        load_manifest("package.yaml")
    golden(caught.value.why, "package.yaml/other.yml", "package.yaml/package.yaml")


def test_a_pipe_is_not_a_manifest_and_is_not_waited_for(tmp_path, monkeypatch, golden):
    monkeypatch.chdir(tmp_path)
    os.mkfifo("package.yaml")
    with pytest.raises(PackagerError) as caught:
        load_manifest("package.yaml")
    golden(render_error(caught.value), "error[manifest-unreadable]", "package.yaml")


def test_a_manifest_of_megabytes_is_refused_unread(tmp_path, monkeypatch, golden):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "package.yaml").write_text(f"name: net\n# {'x' * (1 << 20)}\n")
    with pytest.raises(PackagerError) as caught:
        load_manifest("package.yaml")
    golden(render_error(caught.value), "error[manifest-unreadable]", "package.yaml")


def test_a_file_that_is_not_utf_8_is_not_a_manifest(tmp_path, monkeypatch, golden):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "package.yaml").write_bytes(b"name: caf\xe9\n")
    with pytest.raises(PackagerError) as caught:
        load_manifest("package.yaml")
    golden(render_error(caught.value), "error[manifest-unreadable]", "package.yaml", "utf-8", "0xe9", "9")


@pytest.mark.parametrize("text", ["", "\n\n", "# nothing yet\n", "---\n", "null\n"])
def test_an_empty_manifest(refusal, text, golden):
    golden(refusal(text), "error[manifest-empty]", "package.yaml")


def test_a_file_that_is_not_yaml(refusal, golden):
    golden(refusal(GOOD + "outputs: [logits\n"), "error[manifest-syntax]", "package.yaml:11", "]", "<stream end>")


def test_a_duplicate_key(refusal, golden):
    golden(refusal(GOOD + "name: other\n"), "error[manifest-syntax]", "package.yaml:10", "name")


@pytest.mark.parametrize("text", ["- name\n- version\n", "digits-cnn\n", "42\n"])
def test_a_manifest_that_is_not_a_mapping(refusal, text, golden):
    golden(refusal(text), "error[manifest-syntax]", "package.yaml:1", "name: digits-cnn")


@pytest.mark.parametrize(
    ("written", "found"), [("2", "2"), ("'1'", "'1'"), ("true", "True"), ("", "None"), ("[]", "[]")]
)
def test_an_unsupported_schema_is_reported_before_anything_else(refusal, written, found, golden):
    golden(
        refusal(f"nmae: x\nschema: {written}\n"), "error[manifest-schema-unknown]", "1", found, "package.yaml:2: schema"
    )


# -- problems in a manifest -----------------------------------------------------------------


def test_all_problems_are_reported_at_once_in_the_order_of_the_file(invalid):
    text = """\
schema: 1
name: Digits CNN
verison: 1.0.0
model:
  entry: model.py
  kwrags: {classes: 10}
checkpoint: {}
inputs:
  ids: {dtype: int64, shape: [batch, -1]}
  mask: {dtype: boool, shape: [batch], range: [0, 1]}
export:
  opset: 7
"""
    invalid(
        text,
        ("package.yaml:1: version", "version"),
        ("package.yaml:2: name", "Digits CNN", "^[a-z0-9][a-z0-9._-]*$"),
        ("package.yaml:3: verison", "verison", "version"),
        (
            "package.yaml:5: model.entry",
            "model.py",
            "^[^:]+:[A-Za-z_][A-Za-z0-9_.]*$",
            "module:attr",
            "FILE.py:attr",
            "model.py:DigitsCNN",
        ),
        ("package.yaml:6: model.kwrags", "kwrags", "kwargs"),
        ("package.yaml:7: checkpoint.path", "path"),
        ("package.yaml:9: inputs.ids.shape.1", "-1", "28"),
        ("package.yaml:10: inputs.mask.dtype", "boool", *DTYPES),
        ("package.yaml:12: export.opset", "7", "13"),
    )


def test_every_missing_field_is_named(invalid):
    missing = ("name", "version", "checkpoint", "inputs")
    invalid("schema: 1\n", *((f"package.yaml:1: {field}", field) for field in missing))
    invalid(GOOD.removeprefix("schema: 1\n"), ("package.yaml:1: schema",))


@pytest.mark.parametrize(
    ("text", "where", "field", "facts"),
    [
        ("asets: []", "asets", "asets", ("assets",)),
        (
            "zzz: 1", "zzz", "zzz",
            ("schema", "name", "inputs", "dims", "export", "torchscript", "parity", "assets"),
        ),
        ("export: {requird: false}", "export.requird", "requird", ("required",)),
        ("dims: {batch: {maximum: 9}}", "dims.batch.maximum", "maximum", ("max",)),
        ("parity: {tolerance: {atol: 1, rtol: 1, tol: 1}}", "parity.tolerance.tol", "tol", ("rtol",)),
        ("torchscript: {methods: auto}", "torchscript.methods", "methods", ("method",)),
    ],
)  # fmt: skip
def test_the_hint_for_an_unknown_field_is_the_closest_valid_one(invalid, text, where, field, facts):
    invalid(GOOD + text, (f"package.yaml:10: {where}", f"{field!r}", *facts))


def test_the_hint_for_an_unknown_field_of_an_input_is_the_closest_valid_one(invalid):
    invalid(image("image: {dtype: float32, shpae: [1], shape: [1]}"), ("package.yaml:9: inputs.image.shpae", "shape"))


def test_a_version_that_is_a_number_in_yaml(invalid):
    invalid(GOOD.replace("1.0.0", "1.0"), ("package.yaml:3: version", "1.0"))


@pytest.mark.parametrize("version", ["v1.0.0", "1.0", "1.0.0.0", "01.0.0", "1.0.0-01", "1.0.0-", "1.0.0 ", "1.1٣.0"])
def test_a_version_that_is_not_semantic(invalid, version):
    invalid(GOOD.replace("1.0.0", f"'{version}'"), ("package.yaml:3: version", repr(version), "1.0.0"))


@pytest.mark.parametrize(
    "name", ["Digits", "digits cnn", ".digits", "-digits", "digits/cnn", "../digits", "dïgits", ""]
)
def test_a_name_that_is_not_a_file_name_on_every_system(invalid, name):
    invalid(
        GOOD.replace("digits-cnn", f"'{name}'"),
        ("package.yaml:2: name", f"{name!r}", "^[a-z0-9][a-z0-9._-]*$"),
    )


def test_a_name_that_is_too_long(invalid):
    name = 129 * "a"
    invalid(GOOD.replace("digits-cnn", name), ("package.yaml:2: name", f"{name!r}", "128"))


@pytest.mark.parametrize(
    ("text", "where", "facts"),
    [
        ("description: 5", "description", ("5",)),
        ("description: true", "description", ()),
        ("authors: me", "authors", ("me",)),
        ("authors: [me, 7]", "authors.1", ("7",)),
        ("dims: {batch: 5}", "dims.batch", ("5",)),
        ("dims: []", "dims", ("[]",)),
        ("dims: {batch: {min: '1'}}", "dims.batch.min", ("1",)),
        ("dims: {batch: {min: -1}}", "dims.batch.min", ("-1", "0")),
        ("export:", "export", ()),
        ("export: {required: 1}", "export.required", ("1",)),
        ("export: {required: yes}", "export.required", ("yes",)),
        ("parity: {samples: 2.0}", "parity.samples", ("2.0",)),
        ("parity: {samples: 0}", "parity.samples", ("0", "1")),
        ("parity: {seed: true}", "parity.seed", ()),
        ("target: {providers: []}", "target.providers",
         ("[]", "1", "0")),
        ("outputs: []", "outputs", ("[]", "1", "0")),
        ("outputs: [a, b, a]", "outputs", ()),
        ("assets: [a.txt, a.txt]", "assets", ("a.txt",)),
        ("metadata: {a: !!binary aGk=}", "metadata.a", ("b'hi'",)),
    ],
)  # fmt: skip
def test_a_value_of_the_wrong_type(invalid, text, where, facts):
    invalid(GOOD + text, (f"package.yaml:10: {where}", *facts))


@pytest.mark.parametrize(
    ("text", "where", "facts"),
    [
        ("export: {exporter: torch_export}", "export.exporter",
         ("torch_export", "auto", "torch-export", "torchscript")),
        ("export: {exporter: {a: 1}}", "export.exporter",
         ("{'a': 1}", "auto", "torch-export", "torchscript")),
        ("optimize: {level: all}", "optimize.level",
         ("all", "none", "basic", "extended")),
        ("parity: {tolerance: atuo}", "parity.tolerance",
         ("atuo", "auto")),
        ("parity: {tolerance: 1.0e-5}", "parity.tolerance",
         ("1e-05", "auto", "atol", "rtol")),
    ],
)  # fmt: skip
def test_a_value_that_is_not_one_of_the_choices(invalid, text, where, facts):
    invalid(GOOD + text, (f"package.yaml:10: {where}", *facts))


@pytest.mark.parametrize(
    ("named", "meant"),
    [("float", "float32"), ("torch.double", "float64"), ("half", "float16"), ("int", "int32"), ("long", "int64"),
     ("torch.float32", "float32")],
)  # fmt: skip
def test_the_hint_for_a_dtype_alias_of_torch_is_the_dtype_that_torch_means(refusal, named, meant, golden):
    text = GOOD.replace("dtype: float32", f"dtype: {named}")
    assert text != GOOD
    golden(refusal(text).splitlines()[3], f"{meant!r}")


def test_the_problems_of_a_tolerance_mapping_are_those_of_its_fields(invalid):
    invalid(
        GOOD + "parity:\n  tolerance:\n    atol: -1\n    rtl: .inf\n",
        ("package.yaml:11: parity.tolerance.rtol", "rtol"),
        ("package.yaml:12: parity.tolerance.atol", "-1", "0"),
        ("package.yaml:13: parity.tolerance.rtl", "rtol"),
    )


@pytest.mark.parametrize(
    ("line", "where", "facts"),
    [
        ("ids: {dtype: int64, shape: [batch]}", "ids",
         ("int64", "[low, high]", "[0, 30522]")),
        ("x: {dtype: uint8, shape: [], range: [0, 257]}", "x", ("[0, 257]", "uint8", "[0, 256]")),
        ("x: {dtype: int8, shape: [], range: [-129, 0]}", "x",
         ("[-129, 0]", "int8", "[-128, 128]")),
        ("x: {dtype: uint64, shape: [], range: [0, 18446744073709551617]}", "x",
         ("[0, 18446744073709551617]", "uint64", "[0, 18446744073709551616]")),
        ("x: {dtype: int32, shape: [], range: [0, 1.5]}", "x",
         ("[0, 1.5]",)),
        ("x: {dtype: float32, shape: [], range: [1, 0]}", "x",
         ("[1, 0]",)),
        ("x: {dtype: int32, shape: [], range: [7, 7]}", "x",
         ("[7, 7]",)),
        ("x: {dtype: float32, shape: [], range: [0, .inf]}", "x",
         ("[0, inf]",)),
        ("x: {dtype: float32, shape: [], range: [.nan, 1]}", "x",
         ("[nan, 1]",)),
        (f"x: {{dtype: float32, shape: [], range: [0, {10**400}]}}", "x",
         (f"[0, {10 ** 400}]",)),
        ("x: {dtype: float16, shape: [], range: [70000, 80000]}", "x",
         ("[70000, 80000]", "float16")),
        ("x: {dtype: float32, shape: [], range: [1.00000001, 1.00000002]}", "x",
         ("[1.00000001, 1.00000002]", "float32")),
        ("x: {dtype: bool, shape: [], range: [0, 2]}", "x", ("bool",)),
        ("x: {dtype: float32, shape: [], range: [0]}", "x.range",
         ("[0]", "2", "1")),
        ("x: {dtype: float32, shape: [], range: [0, 1, 2]}", "x.range",
         ("[0, 1, 2]", "2", "3")),
        ("x: {dtype: float32, shape: [], range: [low, 1]}", "x.range.0", ("low",)),
        ("x: {dtype: float32, shape: [true]}", "x.shape.0",
         ("28", "batch")),
        ("x: {dtype: float32, shape: [1.5]}", "x.shape.0",
         ("1.5", "28", "batch")),
        ("x: {dtype: float32, shape: [2x]}", "x.shape.0",
         ("2x", "^[A-Za-z_][A-Za-z0-9_]*$", "_")),
        ("x: {dtype: float32, shape: 5}", "x.shape", ("5",)),
        ("shape: {dtype: float32, shape: 5}", "shape.shape", ("5",)),
        ("x.y: {dtype: float32, shape: []}", "x.y",
         ("x.y", "^[A-Za-z_][A-Za-z0-9_]*$", "_")),
        ("x: {dtype: {}, shape: []}", "x.dtype",
         DTYPES),
        ("x: float32", "x", ("float32",)),
    ],
)  # fmt: skip
def test_an_invalid_input(invalid, line, where, facts):
    invalid(image(line), (f"package.yaml:9: inputs.{where}", *facts))


def test_a_manifest_requires_an_input(invalid):
    invalid(image("").replace("inputs:", "inputs: {}"), ("package.yaml:8: inputs", "{}", "1", "0"))


def test_limits_in_the_wrong_order(invalid):
    invalid(GOOD + "dims:\n  batch: {min: 3, max: 2}", ("package.yaml:11: dims.batch", "3", "2", "min", "max"))


# -- fields that contradict each other ------------------------------------------------------


def test_dims_that_no_input_has(invalid):
    invalid(
        GOOD + "dims:\n  batsch: {max: 4}\n  time: {max: 4}",
        ("package.yaml:11: dims.batsch", "batch"),
        ("package.yaml:12: dims.time",),
    )


def test_an_output_named_like_an_input(invalid):
    invalid(GOOD + "outputs: [logits, image]", ("package.yaml:10: outputs", "image"))


def test_a_bundle_that_could_end_up_without_a_model(invalid, read):
    text = GOOD + "torchscript: {method: none}\nexport:\n  required: "
    invalid(text + "false", ("package.yaml:12: export.required", "torchscript.method", "export.required", "true"))
    assert read(text + "true").torchscript.method == "none"


def test_contradictions_are_reported_together(refusal):
    text = "outputs: [image]\ndims: {time: {}}\ntorchscript: {method: none}\nexport: {required: false}\n"
    mentions(refusal(GOOD + text), "error[manifest-invalid]", "3", "package.yaml")


# -- any manifest ---------------------------------------------------------------------------

NAMES = st.from_regex(r"[A-Za-z_][A-Za-z0-9_]{0,5}", fullmatch=True)
TEXT = st.text(st.characters(exclude_categories=("Cs",)), max_size=12)
WORDS = st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=12)
FINITE = st.floats(allow_nan=False, allow_infinity=False)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | FINITE | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=6,
)
LIMITS = st.integers(0, 9).flatmap(
    lambda low: st.fixed_dictionaries({"min": st.just(low)}, optional={"max": st.none() | st.integers(max(1, low), 99)})
)


@st.composite
def inputs(draw):
    kind = draw(st.sampled_from(["float16", "float32", "float64", "bfloat16", "int", "uint", "bool"]))
    dtype = kind + str(draw(st.sampled_from([8, 16, 32, 64]))) if kind in ("int", "uint") else kind
    spec = {"dtype": dtype, "shape": draw(st.lists(NAMES | st.integers(0, 512), max_size=4))}
    if kind in ("int", "uint"):
        bits = int(dtype.removeprefix(kind))
        least = 0 if kind == "uint" else -(2 ** (bits - 1))
        low = draw(st.integers(least, least + 2**bits - 1))
        spec["range"] = [low, draw(st.integers(low + 1, least + 2**bits))]
    elif kind != "bool":
        low = draw(st.integers(-500, 500) | st.floats(-500, 500))
        spec["range"] = draw(st.none() | st.just([low, low + draw(st.integers(1, 100))]))
    return spec


@st.composite
def manifests(draw):
    """Draw a valid manifest as plain data."""
    specs = draw(st.dictionaries(NAMES, inputs(), min_size=1, max_size=3))
    used = sorted({dim for spec in specs.values() for dim in spec["shape"] if isinstance(dim, str)})
    method = draw(st.sampled_from(["auto", "trace", "script", "none"]))
    required = st.just(True) if method == "none" else st.booleans()
    outputs = WORDS.filter(lambda name: name not in specs)
    sections = {
        "description": TEXT,
        "license": st.none() | TEXT,
        "authors": st.lists(TEXT, max_size=3),
        "metadata": st.dictionaries(TEXT, JSON, max_size=3),
        "outputs": st.none() | st.lists(outputs, min_size=1, max_size=3, unique=True),
        "dims": st.dictionaries(st.sampled_from(used), LIMITS) if used else st.just({}),
        "export": st.fixed_dictionaries(
            {"required": required},
            optional={
                "opset": st.integers(13, 30),
                "exporter": st.sampled_from(["auto", "torch-export", "torchscript"]),
            },
        ),
        "optimize": st.fixed_dictionaries(
            {}, optional={"simplify": st.booleans(), "level": st.sampled_from(["none", "basic", "extended"])}
        ),
        "parity": st.fixed_dictionaries(
            {},
            optional={
                "samples": st.integers(1, 1000),
                "seed": st.integers(0, 2**64),
                "tolerance": st.just("auto")
                | st.fixed_dictionaries({"atol": FINITE.map(abs), "rtol": FINITE.map(abs)}),
                "data": st.none() | TEXT,
            },
        ),
        "target": st.fixed_dictionaries({}, optional={"providers": st.lists(WORDS, min_size=1, max_size=2)}),
        "assets": st.lists(WORDS, max_size=3, unique=True),
    }
    checkpoint = {
        "weights": WORDS,
        "prefix": TEXT,
        "strict": st.booleans(),
        "allow_missing": st.lists(TEXT, max_size=2),
        "allow_unexpected": st.lists(TEXT, max_size=2),
        "sha256": st.none() | st.from_regex(r"[0-9a-f]{64}", fullmatch=True),
        "trust_pickle": st.booleans(),
    }
    return {
        "schema": 1,
        "name": draw(st.from_regex(r"[a-z0-9][a-z0-9._-]{0,9}", fullmatch=True)),
        "version": draw(st.from_regex(r"(0|[1-9][0-9]{0,3})\.(0|[1-9])\.(0|[1-9])(-rc\.[1-9])?", fullmatch=True)),
        "model": {"entry": "model.py:Net", "kwargs": draw(st.dictionaries(TEXT, JSON, max_size=3))},
        "checkpoint": draw(st.fixed_dictionaries({"path": WORDS}, optional=checkpoint)),
        "inputs": specs,
        "torchscript": {"method": method},
        **draw(st.fixed_dictionaries({"export": sections.pop("export")}, optional=sections)),
    }


class _Quoting(yaml.SafeDumper):
    """Write every text in quotes, so that every version of YAML reads it as text."""


_Quoting.add_representer(str, lambda dumper, text: dumper.represent_scalar("tag:yaml.org,2002:str", text, style='"'))


@given(data=manifests(), flow=st.booleans())
def test_any_manifest_written_as_yaml_is_read_as_the_same_manifest(tmp_path_factory, data, flow):
    expected = Manifest.model_validate(data)
    path = tmp_path_factory.mktemp("project") / "package.yaml"
    text = yaml.dump(expected.model_dump(by_alias=True), Dumper=_Quoting, sort_keys=False, default_flow_style=flow)
    path.write_text(text, encoding="utf-8")
    loaded = load_manifest(path).manifest
    assert loaded == expected
    assert list(loaded.inputs) == list(expected.inputs)
    assert loaded.model_dump() == expected.model_dump()


def test_similar_names_are_looked_for_only_for_the_first_dims_that_no_input_has(read, monkeypatch):
    """Thousands of dims, each compared with thousands, took hours."""
    compared = []
    monkeypatch.setattr("packager.project.manifest.did_you_mean", lambda name, _names: compared.append(name))
    dims = "".join(f"  d{number}: {{max: 4}}\n" for number in range(1000))
    with pytest.raises(ManifestInvalid) as caught:
        read(f"{GOOD}dims:\n{dims}")
    assert len(caught.value.problems) == 1000
    assert compared == [f"d{number}" for number in range(20)]
