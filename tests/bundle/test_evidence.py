"""The golden evidence: which cases are included, and that they come back as they were written."""

import json
from dataclasses import replace

import numpy as np
import pytest

from packager.bundle import records
from packager.bundle.evidence import (
    EvidenceMalformed,
    choose_golden_cases,
    read_reference_cases,
    serialize_golden_cases,
)
from packager.parity.numerics.compare import ElementTolerance
from packager.parity.numerics.decisions import DecisionRule
from packager.parity.numerics.verdict import ReferenceCase, check_parity

DTYPES = [
    "float16", "float32", "float64", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "bool"
]  # fmt: skip


def case(name, *, inputs=None, outputs=None, size=1):
    """Make a case of `size` bytes, or with these arrays."""
    inputs = {"x": np.zeros(size, np.uint8)} if inputs is None else inputs
    outputs = {"y": np.zeros(0, np.uint8)} if outputs is None else outputs
    tolerances = {output: ElementTolerance(number / 7, 1e-5 * number) for number, output in enumerate(outputs)}
    return ReferenceCase(name, inputs, outputs, tolerances)


def write(folder, reference_cases, golden, decisions=None):
    """Write the two files of a bundle that contain its evidence."""
    (folder / "evidence").mkdir(exist_ok=True)
    (folder / "evidence/golden.safetensors").write_bytes(serialize_golden_cases(reference_cases, golden))
    cases = [
        records.CaseRecord(
            name=reference_case.name,
            sizes=dict(reference_case.sizes),
            fill="random",
            golden=reference_case.name in golden,
            outputs={
                name: records.CaseOutput(
                    dtype=str(array.dtype),
                    shape=list(array.shape),
                    atol=reference_case.tolerances[name].atol,
                    rtol=reference_case.tolerances[name].rtol,
                )
                for name, array in reference_case.outputs.items()
            },
        )
        for reference_case in reference_cases
    ]
    record = records.ParityRecord(
        schema_=1,
        verdict="pass",
        reference="",
        cases=cases,
        not_checked=[],
        tolerance={},
        decisions={
            name: records.DecisionRecord.model_validate(rule, from_attributes=True)
            for name, rule in (decisions or {}).items()
        },
        coverage=records.CoverageRecord(measured="", channels=0, exercised=0, silent={}, still={}),
        backends={},
        stages=[],
    )
    (folder / "evidence/parity.json").write_bytes(record.to_bytes())


def same(left, right):
    """Return whether two cases are the same to the last bit, whatever the order of their inputs."""

    def content(case):
        arrays = {("input", name): array for name, array in case.inputs.items()}
        arrays |= {("output", name): array for name, array in case.outputs.items()}
        bits = {name: (array.dtype, array.shape, array.tobytes()) for name, array in arrays.items()}
        return case.name, case.tolerances, list(case.outputs), bits

    return content(left) == content(right)


# -- round trips ----------------------------------------------------------------------------


def test_cases_come_back_as_they_were_written(tmp_path):
    generator = np.random.default_rng(0)
    inputs = {f"x_{dtype}": generator.integers(0, 2, (3, 4)).astype(dtype) for dtype in DTYPES}
    outputs = {
        "z": np.array([np.nan, np.inf, -np.inf, -0.0, 5e-324]),
        "scalar": np.array(1.5, np.float32),
        "empty": np.zeros((0, 3), np.float16),
        "layers.0/attention": generator.standard_normal((2, 3)).astype(np.float32),
        "a": np.array([2**63 - 1]),
    }
    written = [case("000", inputs=inputs, outputs=outputs), case("data"), case("001", size=9)]
    write(tmp_path, written, frozenset({"000", "data", "001"}))
    cases = read_reference_cases(tmp_path)
    assert [case.name for case in cases] == ["000", "data", "001"]
    assert all(same(*pair) for pair in zip(cases, written, strict=True))


def test_sizes_and_decisions_come_back_with_every_case(tmp_path):
    declared = {"y": DecisionRule("top-5", 1, 0.25)}
    written = [replace(case("000"), sizes={"batch": 3}), replace(case("001"), sizes={"batch": 1})]
    write(tmp_path, written, frozenset({"000", "001"}), declared)
    cases = read_reference_cases(tmp_path)
    assert [dict(case.sizes) for case in cases] == [{"batch": 3}, {"batch": 1}]
    assert [dict(case.decisions) for case in cases] == [declared, declared]


def test_the_memory_layout_of_an_array_makes_no_difference(tmp_path):
    table = np.arange(24, dtype=np.float32).reshape(4, 6)
    unusual = {
        "fortran": np.asfortranarray(table),
        "transposed": table.T,
        "strided": table[::2, ::-3],
        "broadcast": np.broadcast_to(table[0], (3, 6)),
    }
    plain = {name: np.ascontiguousarray(array) for name, array in unusual.items()}
    write(tmp_path, [case("000", inputs=unusual, outputs={"y": table.T})], frozenset({"000"}))
    assert same(read_reference_cases(tmp_path)[0], case("000", inputs=plain, outputs={"y": table.T.copy()}))


def test_the_same_cases_give_the_same_bytes():
    cases = [case("000", inputs={"b": np.ones(3), "a": np.ones(2, np.int64)}), case("001", size=7)]
    content = serialize_golden_cases(cases, frozenset(["000", "001"]))
    assert content == serialize_golden_cases(cases[::-1], frozenset(["001", "000"]))


def test_a_case_that_is_not_golden_is_not_in_the_file(tmp_path):
    write(tmp_path, [case("000"), case("001", size=1000), case("002")], frozenset({"000", "002"}))
    assert [case.name for case in read_reference_cases(tmp_path)] == ["000", "002"]
    assert (tmp_path / "evidence/golden.safetensors").stat().st_size < 1000


def test_only_the_first_case_is_read_on_request(tmp_path):
    write(tmp_path, [case("000", size=9), case("001"), case("002")], frozenset({"001", "002"}))
    assert [case.name for case in read_reference_cases(tmp_path, first_only=True)] == ["001"]


def test_cases_whose_names_share_a_prefix_are_kept_apart(tmp_path):
    cases = [case("1", inputs={"x": np.ones(1)}), case("10", inputs={"x": np.zeros(1), "y": np.zeros(1)})]
    write(tmp_path, cases, frozenset({"1", "10"}))
    assert [list(case.inputs) for case in read_reference_cases(tmp_path)] == [["x"], ["x", "y"]]


def test_tolerances_apply_to_cases_that_were_read_back(tmp_path):
    written = case("000", inputs={"x": np.ones(2)}, outputs={"y": np.ones(2), "z": np.ones(2)})
    write(tmp_path, [written], frozenset({"000"}))
    cases = read_reference_cases(tmp_path)
    assert check_parity(lambda inputs: {"y": inputs["x"], "z": inputs["x"] + 0.1}, cases).passed
    assert not check_parity(lambda inputs: {"y": inputs["x"], "z": inputs["x"] + 0.2}, cases).passed
    assert not check_parity(lambda inputs: {"y": inputs["x"] + 0.1, "z": inputs["x"]}, cases).passed


# -- how much is included -------------------------------------------------------------------

MB = 1_000_000


def test_cases_are_included_up_to_ten_megabytes():
    cases = [case(f"{number:03}", size=MB) for number in range(15)]
    assert choose_golden_cases(cases, weight_bytes=0) == {f"{number:03}" for number in range(10)}
    assert choose_golden_cases(cases[:10], weight_bytes=0) == {f"{number:03}" for number in range(10)}


def test_a_large_model_includes_more_cases():
    cases = [case(f"{number:03}", size=MB) for number in range(15)]
    assert len(choose_golden_cases(cases, weight_bytes=240 * MB)) == 12
    assert len(choose_golden_cases(cases, weight_bytes=199 * MB)) == 10


def test_the_smallest_case_is_included_however_large_it_is():
    cases = [case("000", size=13 * MB), case("001", size=12 * MB), case("002", size=14 * MB)]
    assert choose_golden_cases(cases, weight_bytes=0) == {"001"}


def test_the_smallest_cases_are_included_first():
    cases = [case("000", size=9 * MB), case("001", size=2 * MB), case("002", size=3 * MB)]
    assert choose_golden_cases(cases, weight_bytes=0) == {"001", "002"}


def test_outputs_count_as_much_as_inputs():
    cases = [case("000", outputs={"y": np.zeros(11 * MB, np.uint8)}), case("001", size=2)]
    assert choose_golden_cases(cases, weight_bytes=0) == {"001"}


def test_without_cases_nothing_is_included():
    assert choose_golden_cases([], weight_bytes=MB) == frozenset()


def test_the_cases_with_the_ends_of_an_input_come_before_smaller_ones():
    def tokens(name, *ids, size):
        return case(name, inputs={"ids": np.array(ids)}, outputs={"y": np.zeros(size, np.uint8)})

    cases = [
        tokens("smallest", 5, size=MB),
        tokens("small", 6, size=2 * MB),
        tokens("first row", 0, size=3 * MB),
        tokens("last row", 9, 8, size=4 * MB),
        tokens("last row again", 9, size=5 * MB),
        case("empty", inputs={"ids": np.zeros(0, np.int64)}, outputs={"y": np.zeros(6 * MB, np.uint8)}),
    ]
    assert choose_golden_cases(cases, weight_bytes=0) == {"smallest", "first row", "last row"}


# -- malformed evidence ---------------------------------------------------------------------


@pytest.fixture
def evidence(tmp_path):
    """Write the evidence of one case, and return its folder."""
    write(tmp_path, [case("000", outputs={"y": np.ones(2)})], frozenset({"000"}))
    return tmp_path / "evidence"


@pytest.mark.parametrize("name", ["parity.json", "golden.safetensors"])
@pytest.mark.parametrize("content", [None, b"", b"{", b"[]", b"\xff\xfe", b"{}", bytes(64)], ids=repr)
def test_a_missing_or_broken_file_is_malformed_evidence(evidence, name, content):
    (evidence / name).unlink()
    if content is not None:
        (evidence / name).write_bytes(content)
    with pytest.raises(EvidenceMalformed) as caught:
        read_reference_cases(evidence.parent)
    assert ": " in str(caught.value)


def test_a_malformed_decision_is_malformed_evidence(evidence):
    record = json.loads((evidence / "parity.json").read_text())
    (evidence / "parity.json").write_text(json.dumps({**record, "decisions": {"y": {"rule": "argmax"}}}))
    with pytest.raises(EvidenceMalformed, match="'axis'"):
        read_reference_cases(evidence.parent)


@pytest.mark.parametrize(
    ("change", "cause"),
    [
        (lambda record: record.update(name="001"), "'001/output/y'"),
        (lambda record: record["outputs"].update(z=record["outputs"]["y"]), "'000/output/z'"),
        (lambda record: record["outputs"]["y"].pop("atol"), "'atol'"),
        (lambda record: record.pop("outputs"), "'outputs'"),
        (lambda record: record.update(outputs=["y"]), "has no attribute 'items'"),
    ],
)
def test_a_record_that_does_not_match_the_tensors_is_malformed_evidence(evidence, change, cause):
    record = json.loads((evidence / "parity.json").read_text())
    change(record["cases"][0])
    (evidence / "parity.json").write_text(json.dumps(record))
    with pytest.raises(EvidenceMalformed) as caught:
        read_reference_cases(evidence.parent)
    assert cause in str(caught.value)


def test_a_case_gets_its_own_inputs_alone(tmp_path):
    names = ["0", "00", "a case/with a slash"]
    written = [case(name, inputs={f"x{number}": np.full(2, number)}) for number, name in enumerate(names)]
    write(tmp_path, written, frozenset(names))
    cases = read_reference_cases(tmp_path)
    assert [list(case.inputs) for case in cases] == [["x0"], ["x1"], ["x2"]]


def test_golden_files_of_too_many_tensors_are_refused_unread(tmp_path, monkeypatch):
    written = [case(f"{number}", size=0) for number in range(5001)]
    write(tmp_path, written, frozenset(case.name for case in written))
    monkeypatch.setattr("safetensors.numpy.load", None)
    with pytest.raises(EvidenceMalformed, match="more than 10000"):
        read_reference_cases(tmp_path)


def test_thousands_of_cases_are_not_compared_with_all_tensors(tmp_path):
    """5,000 cases are looked up in 5,000 names: comparing them took 25 million steps."""
    written = [case(f"{number}", size=1) for number in range(4999)]
    write(tmp_path, written, frozenset(case.name for case in written))
    lookups = []

    class Name(str):
        def startswith(self, *arguments):
            lookups.append(self)
            return super().startswith(*arguments)

    tensors = {Name(f"{number}/input/x"): np.zeros(1) for number in range(4999)}
    outputs = {f"{number}/output/y": np.zeros(1) for number in range(4999)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("safetensors.numpy.load", lambda _content: {**tensors, **outputs})
        assert len(read_reference_cases(tmp_path)) == 4999
    assert not lookups
