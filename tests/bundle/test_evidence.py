"""The golden evidence: what travels, and that it comes back as it was."""

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
    """A case of `size` bytes, or with these arrays."""
    inputs = {"x": np.zeros(size, np.uint8)} if inputs is None else inputs
    outputs = {"y": np.zeros(0, np.uint8)} if outputs is None else outputs
    limits = {output: ElementTolerance(number / 7, 1e-5 * number) for number, output in enumerate(outputs)}
    return ReferenceCase(name, inputs, outputs, limits)


def write(folder, expectations, golden, decisions=None):
    """The two files of a bundle that hold its evidence."""
    (folder / "evidence").mkdir(exist_ok=True)
    (folder / "evidence/golden.safetensors").write_bytes(serialize_golden_cases(expectations, golden))
    cases = [
        records.CaseRecord(
            name=one.name,
            sizes=dict(one.sizes),
            fill="random",
            golden=one.name in golden,
            outputs={
                name: records.CaseOutput(
                    dtype=str(array.dtype),
                    shape=list(array.shape),
                    atol=one.tolerances[name].atol,
                    rtol=one.tolerances[name].rtol,
                )
                for name, array in one.outputs.items()
            },
        )
        for one in expectations
    ]
    record = records.ParityRecord(
        schema_=1,
        verdict="pass",
        reference="",
        cases=cases,
        not_checked=[],
        tolerance={},
        decisions={
            name: records.DecisionRecord.model_validate(one, from_attributes=True)
            for name, one in (decisions or {}).items()
        },
        coverage=records.CoverageRecord(measured="", channels=0, exercised=0, silent={}, still={}),
        backends={},
        stages=[],
    )
    (folder / "evidence/parity.json").write_bytes(record.to_bytes())


def same(left, right):
    """Whether two expectations are the same to the last bit; in which order the inputs stand makes no difference."""
    return (left.name, left.tolerances, list(left.outputs)) == (
        right.name,
        right.tolerances,
        list(right.outputs),
    ) and all(
        mine.keys() == theirs.keys()
        and all(
            (mine[name].dtype, mine[name].shape, mine[name].tobytes())
            == (theirs[name].dtype, theirs[name].shape, theirs[name].tobytes())
            for name in mine
        )
        for mine, theirs in ((left.inputs, right.inputs), (left.outputs, right.outputs))
    )


# -- there and back -------------------------------------------------------------------------


def test_what_is_written_is_read_again(tmp_path):
    generator = np.random.default_rng(0)
    inputs = {f"x_{dtype}": generator.integers(0, 2, (3, 4)).astype(dtype) for dtype in DTYPES}
    outputs = {
        "z": np.array([np.nan, np.inf, -np.inf, -0.0, 5e-324]),
        "scalar": np.array(1.5, np.float32),
        "empty": np.zeros((0, 3), np.float16),
        "layers.0/attention": generator.standard_normal((2, 3)).astype(np.float32),
        "a": np.array([2**63 - 1]),
    }
    expectations = [case("000", inputs=inputs, outputs=outputs), case("data"), case("001", size=9)]
    write(tmp_path, expectations, frozenset({"000", "data", "001"}))
    found = read_reference_cases(tmp_path)
    assert [one.name for one in found] == ["000", "data", "001"]
    assert all(same(*pair) for pair in zip(found, expectations, strict=True))


def test_sizes_and_decisions_come_back_with_every_case(tmp_path):
    declared = {"y": DecisionRule("top-5", 1, 0.25)}
    written = [replace(case("000"), sizes={"batch": 3}), replace(case("001"), sizes={"batch": 1})]
    write(tmp_path, written, frozenset({"000", "001"}), declared)
    found = read_reference_cases(tmp_path)
    assert [(dict(one.sizes), dict(one.decisions)) for one in found] == [
        ({"batch": 3}, declared), ({"batch": 1}, declared)
    ]  # fmt: skip


def test_how_an_array_lies_in_memory_makes_no_difference(tmp_path):
    table = np.arange(24, dtype=np.float32).reshape(4, 6)
    strange = {
        "fortran": np.asfortranarray(table),
        "turned": table.T,
        "strided": table[::2, ::-3],
        "spread": np.broadcast_to(table[0], (3, 6)),
    }
    plain = {name: np.ascontiguousarray(array) for name, array in strange.items()}
    write(tmp_path, [case("000", inputs=strange, outputs={"y": table.T})], frozenset({"000"}))
    assert same(read_reference_cases(tmp_path)[0], case("000", inputs=plain, outputs={"y": table.T.copy()}))


def test_the_same_cases_give_the_same_bytes():
    expectations = [case("000", inputs={"b": np.ones(3), "a": np.ones(2, np.int64)}), case("001", size=7)]
    both = frozenset({"000", "001"})
    assert serialize_golden_cases(expectations, both) == serialize_golden_cases(
        expectations[::-1], frozenset(sorted(both)[::-1])
    )


def test_a_case_that_does_not_travel_is_not_in_the_file(tmp_path):
    expectations = [case("000"), case("001", size=1000), case("002")]
    write(tmp_path, expectations, frozenset({"000", "002"}))
    assert [one.name for one in read_reference_cases(tmp_path)] == ["000", "002"]
    assert (tmp_path / "evidence/golden.safetensors").stat().st_size < 1000


def test_the_first_alone_is_read_where_one_is_enough(tmp_path):
    write(tmp_path, [case("000", size=9), case("001"), case("002")], frozenset({"001", "002"}))
    assert [one.name for one in read_reference_cases(tmp_path, first_only=True)] == ["001"]


def test_cases_with_names_that_begin_alike_are_told_apart(tmp_path):
    expectations = [case("1", inputs={"x": np.ones(1)}), case("10", inputs={"x": np.zeros(1), "y": np.zeros(1)})]
    write(tmp_path, expectations, frozenset({"1", "10"}))
    assert [list(one.inputs) for one in read_reference_cases(tmp_path)] == [["x"], ["x", "y"]]


def test_what_comes_back_is_judged_as_what_was_written(tmp_path):
    expectation = case("000", inputs={"x": np.ones(2)}, outputs={"y": np.ones(2), "z": np.ones(2)})
    write(tmp_path, [expectation], frozenset({"000"}))
    found = read_reference_cases(tmp_path)
    assert check_parity(lambda inputs: {"y": inputs["x"], "z": inputs["x"] + 0.1}, found).passed
    assert not check_parity(lambda inputs: {"y": inputs["x"], "z": inputs["x"] + 0.2}, found).passed
    assert not check_parity(lambda inputs: {"y": inputs["x"] + 0.1, "z": inputs["x"]}, found).passed


# -- how much travels -----------------------------------------------------------------------

MB = 1_000_000


def test_cases_travel_up_to_ten_megabytes():
    cases = [case(f"{number:03}", size=MB) for number in range(15)]
    assert choose_golden_cases(cases, weight_bytes=0) == {f"{number:03}" for number in range(10)}
    assert choose_golden_cases(cases[:10], weight_bytes=0) == {f"{number:03}" for number in range(10)}


def test_more_travels_with_a_large_model():
    cases = [case(f"{number:03}", size=MB) for number in range(15)]
    assert len(choose_golden_cases(cases, weight_bytes=240 * MB)) == 12
    assert len(choose_golden_cases(cases, weight_bytes=199 * MB)) == 10


def test_the_smallest_case_travels_however_large_it_is():
    cases = [case("000", size=13 * MB), case("001", size=12 * MB), case("002", size=14 * MB)]
    assert choose_golden_cases(cases, weight_bytes=0) == {"001"}


def test_the_smallest_travel_first():
    cases = [case("000", size=9 * MB), case("001", size=2 * MB), case("002", size=3 * MB)]
    assert choose_golden_cases(cases, weight_bytes=0) == {"001", "002"}


def test_outputs_weigh_as_much_as_inputs():
    cases = [case("000", outputs={"y": np.zeros(11 * MB, np.uint8)}), case("001", size=2)]
    assert choose_golden_cases(cases, weight_bytes=0) == {"001"}


def test_without_a_case_nothing_travels():
    assert choose_golden_cases([], weight_bytes=MB) == frozenset()


# -- what is malformed ----------------------------------------------------------------------


@pytest.fixture
def evidence(tmp_path):
    """A folder with the evidence of one case."""
    write(tmp_path, [case("000", outputs={"y": np.ones(2)})], frozenset({"000"}))
    return tmp_path / "evidence"


@pytest.mark.parametrize("name", ["parity.json", "golden.safetensors"])
@pytest.mark.parametrize("content", [None, b"", b"{", b"[]", b"\xff\xfe", b"{}", bytes(64)], ids=repr)
def test_a_file_of_the_evidence_that_is_missing_or_broken(evidence, name, content):
    (evidence / name).unlink()
    if content is not None:
        (evidence / name).write_bytes(content)
    with pytest.raises(EvidenceMalformed) as caught:
        read_reference_cases(evidence.parent)
    assert ": " in str(caught.value)


def test_a_decision_that_is_malformed(evidence):
    record = json.loads((evidence / "parity.json").read_text())
    (evidence / "parity.json").write_text(json.dumps({**record, "decisions": {"y": {"rule": "argmax"}}}))
    with pytest.raises(EvidenceMalformed, match="'axis'"):
        read_reference_cases(evidence.parent)


@pytest.mark.parametrize(
    ("change", "cause"),
    [
        (lambda found: found.update(name="001"), "'001/output/y'"),
        (lambda found: found["outputs"].update(z=found["outputs"]["y"]), "'000/output/z'"),
        (lambda found: found["outputs"]["y"].pop("atol"), "'atol'"),
        (lambda found: found.pop("outputs"), "'outputs'"),
        (lambda found: found.update(outputs=["y"]), "has no attribute 'items'"),
    ],
)
def test_a_record_that_speaks_of_other_tensors(evidence, change, cause):
    record = json.loads((evidence / "parity.json").read_text())
    change(record["cases"][0])
    (evidence / "parity.json").write_text(json.dumps(record))
    with pytest.raises(EvidenceMalformed) as caught:
        read_reference_cases(evidence.parent)
    assert cause in str(caught.value)
