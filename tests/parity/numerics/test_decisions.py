"""The comparison of decisions, checked against definitions that are written out."""

import json
import re
import shutil

import hypothesis.extra.numpy as npst
import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from projects import LINEAR, project, reseal

import packager
from packager.builder.vet import vet
from packager.common.hashing import sha256_file
from packager.errors import DecisionDoesNotFit, ManifestInvalid, render_error
from packager.parity import reference
from packager.parity.numerics.compare import ElementTolerance
from packager.parity.numerics.decisions import (
    RULE_PATTERN,
    AxisMissing,
    DecisionAgreement,
    DecisionRule,
    compare_decisions,
)
from packager.parity.numerics.verdict import ReferenceCase, check_parity
from packager.project.manifest import load_manifest

EXACT = ElementTolerance(0.0, 0.0)
# Sums of eighths, and products with powers of two, are exact, so a definition needs no rounding.
EIGHTHS = st.integers(-16, 16).map(lambda eighths: eighths / 8)
SCORES = EIGHTHS | st.sampled_from([np.nan, np.inf, -np.inf, -0.0])
LIMITS = st.tuples(st.sampled_from([0.0, 0.125, 0.25, 1.0]), st.sampled_from([0.0, 0.5, 1.0]))


@st.composite
def pairs(draw, elements=SCORES):
    """Draw two arrays of scores, which agree in some elements, and an axis."""
    shape = draw(npst.array_shapes(min_dims=1, max_dims=3, min_side=1, max_side=4))
    left = draw(npst.arrays("float32", shape, elements=elements))
    near = draw(npst.arrays("float32", shape, elements=elements))
    agree = draw(npst.arrays(np.bool_, shape))
    return left, np.where(agree, left, near), draw(st.integers(-len(shape), len(shape) - 1))


def rows(array, axis):
    return np.moveaxis(array, axis, -1).reshape(-1, array.shape[axis]).astype(float).tolist()


def order(scores):
    """Return the indices in the order of the scores, the largest first; of equal scores, the first comes first."""
    return sorted(range(len(scores)), key=lambda index: (-scores[index], index))


def slack(score, limit, tie):
    return tie * (limit.atol + limit.rtol * (abs(score) if np.isfinite(score) else 0.0))


def by_definition(left, right, limit, decision):
    """Compare row by row: the decision is the set of the first K, or the order.

    It is tied if no score that the second order puts behind is larger by more than the slack of both.
    """
    compared = agreed = ties = 0
    for ours, theirs in zip(rows(left, decision.axis), rows(right, decision.axis), strict=True):
        if any(map(np.isnan, ours + theirs)):
            continue
        high = [score + slack(score, limit, decision.tie) for score in ours]
        low = [score - slack(score, limit, decision.tie) for score in ours]
        put = order(theirs)
        if decision.rule == "rank":
            same = order(ours) == put
            tied = all(low[behind] <= high[before] for at, behind in enumerate(put) for before in put[:at])
        else:
            count = 1 if decision.rule == "argmax" else int(decision.rule.removeprefix("top-"))
            same = set(order(ours)[:count]) == set(put[:count])
            tied = all(low[behind] <= high[before] for behind in put[count:] for before in put[:count])
        compared, agreed, ties = compared + 1, agreed + same, ties + (tied and not same)
    return DecisionAgreement(decision.rule, compared, agreed, ties)


@given(pairs(), st.sampled_from(["argmax", "top-1", "top-2", "top-9", "rank"]), LIMITS, st.sampled_from([0.25, 1]))
def test_an_order_is_compared_as_defined(pair, rule, limit, tie):
    left, right, axis = pair
    decision = DecisionRule(rule, axis, tie)
    assert compare_decisions(left, right, ElementTolerance(*limit), decision) == by_definition(
        left, right, ElementTolerance(*limit), decision
    )


@given(pairs(), EIGHTHS, LIMITS, st.sampled_from([0.25, 1]))
def test_a_threshold_is_compared_as_defined(pair, threshold, limit, tie):
    left, right, _ = pair
    found = compare_decisions(left, right, ElementTolerance(*limit), DecisionRule(f"threshold {threshold}", 0, tie))
    comparable = [
        (one, other)
        for one, other in zip(left.ravel().tolist(), right.ravel().tolist(), strict=True)
        if not np.isnan(one) and not np.isnan(other)
    ]
    changed = [one for one, other in comparable if (one > threshold) != (other > threshold)]
    ties = sum(abs(one - threshold) <= slack(one, ElementTolerance(*limit), tie) for one in changed)
    assert found == DecisionAgreement(f"threshold {threshold}", len(comparable), len(comparable) - len(changed), ties)


@given(pairs(), st.sampled_from(["argmax", "top-2", "rank", "threshold 0.5"]))
def test_scores_agree_with_themselves(pair, rule):
    found = compare_decisions(pair[0], pair[0].copy(), EXACT, DecisionRule(rule, pair[2], 0.25))
    assert (found.agreed, found.ties, found.changed) == (found.compared, 0, 0)


@given(pairs(EIGHTHS), st.sampled_from(["argmax", "top-2", "rank", "threshold 0.5"]), st.sampled_from([0.125, 0.5]))
def test_if_every_score_is_within_the_slack_no_decision_counts_as_changed(pair, rule, limit):
    """A decision that changes then can only be a tie, so noise never counts against an artifact."""
    left, right, axis = pair
    near = left + np.clip(right - left, -limit, limit)
    assert compare_decisions(left, near, ElementTolerance(limit, 0.0), DecisionRule(rule, axis, 1.0)).changed == 0


def test_a_swap_beyond_the_slack_counts_and_a_swap_within_it_is_a_tie():
    limit, decision = ElementTolerance(0.25, 0.0), DecisionRule("argmax", -1, 0.5)  # a slack of an eighth for each
    scores = np.array([[1.0, 1.25], [1.0, 1.375]])
    assert compare_decisions(scores, scores[:, ::-1], limit, decision) == DecisionAgreement("argmax", 2, 0, 1)
    assert compare_decisions(scores, scores[:, ::-1], EXACT, decision).changed == 2


def test_decisions_are_taken_along_the_axis():
    scores = np.array([[[1.0, 5.0], [2.0, 3.0], [0.0, 4.0]]])
    other = scores[:, [1, 0, 2]]
    assert compare_decisions(scores, other, EXACT, DecisionRule("argmax", 2, 0.25)) == DecisionAgreement(
        "argmax", 3, 3, 0
    )
    assert compare_decisions(scores, other, EXACT, DecisionRule("argmax", 1, 0.25)) == DecisionAgreement(
        "argmax", 2, 0, 0
    )
    assert compare_decisions(scores, other, EXACT, DecisionRule("argmax", -2, 0.25)).changed == 2


@pytest.mark.parametrize("axis", [1, -2, 7])
def test_a_missing_axis_is_named(axis, golden):
    with pytest.raises(AxisMissing) as caught:
        compare_decisions(np.ones(3), np.ones(3), EXACT, DecisionRule("argmax", axis, 0.25))
    golden(str(caught.value), "1", axis, "axis")


@pytest.mark.parametrize("shape", [(0,), (2, 0), (0, 2)])
@pytest.mark.parametrize("rule", ["argmax", "top-2", "rank", "threshold 0"])
def test_empty_arrays_have_no_decisions(shape, rule):
    empty = np.zeros(shape, np.float32)
    assert compare_decisions(empty, empty, EXACT, DecisionRule(rule, -1, 0.25)) == DecisionAgreement(rule, 0, 0, 0)


def test_agreements_of_several_cases_add_up():
    assert DecisionAgreement("rank", 5, 3, 1).merge(DecisionAgreement("rank", 4, 4, 0)) == DecisionAgreement(
        "rank", 9, 7, 1
    )


@pytest.mark.parametrize(
    ("rule", "right"),
    [("argmax", True), ("rank", True), ("top-5", True), ("threshold 0.5", True), ("threshold -1e-3", True),
     ("top-0", False), ("top-", False), ("top-5 ", False), ("argmin", False), ("threshold", False),
     ("threshold x", False), ("threshold 0.5\n", False)],
)  # fmt: skip
def test_a_rule_is_argmax_rank_top_k_or_a_threshold(rule, right):
    assert bool(re.search(RULE_PATTERN.replace("$", r"\Z"), rule)) == right


# -- in the verdict -------------------------------------------------------------------------


def scores(case, *values):
    array = np.array(values, np.float32)
    return ReferenceCase(
        case,
        {"y": array},
        {"y": array},
        {"y": ElementTolerance(1.0, 0.0)},
        decisions={"y": DecisionRule("argmax", -1, 0.25)},
    )


def test_a_decision_that_changes_within_the_tolerance_fails(golden):
    cases = [scores("000", [1.0, 1.9], [5.0, 0.0]), scores("001", [1.0, 1.4])]
    result = check_parity(lambda inputs: {"y": inputs["y"] + np.array([0.5, -0.5], np.float32)}, cases)
    assert not result.passed
    golden(result.reason, "1", "3", "(argmax)")
    assert result.decisions == {"y": DecisionAgreement("argmax", 3, 1, 1)}
    assert result.worst is not None and result.worst.error_over_limit == 0.5


def test_decisions_that_ties_explain_pass_and_are_counted():
    result = check_parity(lambda inputs: {"y": inputs["y"][:, ::-1].copy()}, [scores("000", [1.0, 1.25])])
    assert (result.passed, result.reason) == (True, "")
    assert result.decisions == {"y": DecisionAgreement("argmax", 1, 0, 1)}


# -- in the manifest ------------------------------------------------------------------------


def test_a_decision_with_unknown_fields_is_a_problem_in_the_manifest(tmp_path, monkeypatch, golden):
    path = project(tmp_path, LINEAR)
    path.write_text(path.read_text() + "parity:\n  decisions:\n    y: {axes: 1}\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ManifestInvalid) as caught:
        load_manifest("package.yaml")
    golden(
        render_error(caught.value),
        "error[manifest-invalid]",
        "2",
        "package.yaml",
        "package.yaml:16: parity.decisions.y.rule",
        "rule",
        "package.yaml:16: parity.decisions.y.axes",
        "axis",
        "package schema manifest",
    )


@pytest.mark.parametrize(
    ("decision", "line"),
    [("best", "parity.decisions.y"), ("top-0", "parity.decisions.y"), ("{rule: best}", "parity.decisions.y.rule")],
)
def test_an_unknown_rule_is_a_problem_in_the_manifest(tmp_path, monkeypatch, decision, line, golden):
    path = project(tmp_path, LINEAR)
    path.write_text(path.read_text() + f"parity:\n  decisions:\n    y: {decision}\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ManifestInvalid) as caught:
        load_manifest("package.yaml")
    found = "top-0" if decision == "top-0" else "best"
    golden(
        render_error(caught.value),
        "error[manifest-invalid]",
        "1",
        "package.yaml",
        f"package.yaml:16: {line}",
        f"{found!r}",
        RULE_PATTERN,
        "top-5",
        "0.5",
        "package schema manifest",
    )


@pytest.mark.parametrize(
    ("text", "decisions", "field", "facts", "hint_facts"),
    [
        ("y", {"logits": "argmax"}, "logits", ("logits",), ("output_0",)),
        ("y", {"output_1": "argmax"}, "output_1", ("output_1",), ("output_0",)),
        ("y.argmax(1)", {"output_0": "argmax"}, "output_0", ("output_0", "int64"), ()),
        ("y", {"output_0": {"rule": "top-2", "axis": 2}}, "output_0", ("output_0", "2", "axis"),
         ("0", "-1", "axis")),
        ("y.sum()", {"output_0": "rank"}, "output_0", ("output_0", "0", "-1", "axis"),
         ("0", "-1", "axis")),
    ],
    ids=["unknown", "nearly known", "integers", "axis", "a scalar"],
)  # fmt: skip
def test_decisions_that_do_not_fit_the_outputs_are_refused(
    opened, tmp_path, text, decisions, field, facts, hint_facts, golden
):
    loaded, source, grid = opened(
        LINEAR.replace("return self.layer(x)", f"y = self.layer(x)\n        return {text}"),
        parity={"decisions": decisions},
    )
    found = reference.run_case(loaded, source, grid.example_case)
    with pytest.raises(DecisionDoesNotFit) as caught:
        reference.resolve_decisions(loaded, found)
    golden(caught.value.why, *facts)
    golden(caught.value.hint, *hint_facts)
    assert re.fullmatch(rf"{tmp_path}/package\.yaml:\d+: parity\.decisions\.{field}", caught.value.where)


def test_vet_and_build_refuse_decisions_that_do_not_fit_before_anything_is_exported(tmp_path, monkeypatch, golden):
    path = project(tmp_path, LINEAR, parity={"decisions": {"logits": "argmax"}})
    monkeypatch.chdir(tmp_path)
    events = []
    for refuse in (vet, packager.build):
        with pytest.raises(DecisionDoesNotFit) as caught:
            refuse("package.yaml", listener=events.append)
        line = path.read_text().splitlines().index("    logits: argmax") + 1
        golden(
            render_error(caught.value),
            "error[decision-does-not-fit]",
            "parity.decisions",
            "forward()",
            f"package.yaml:{line}: parity.decisions.logits",
            "output_0",
        )
    assert not any("noise" in str(event) for event in events)


# -- from end to end ------------------------------------------------------------------------

WIDE = {"tolerance": {"atol": 0.4, "rtol": 0.0}, "decisions": {"output_0": "argmax"}}


@pytest.fixture(scope="module")
def declared(tmp_path_factory):
    """A bundle whose manifest declares a decision and a large explicit tolerance."""
    folder = tmp_path_factory.mktemp("declared")
    return packager.build(project(folder / "project", LINEAR, parity=WIDE), folder / "out").bundle


def test_decisions_are_in_the_evidence_and_in_the_readme(declared):
    record = json.loads((declared / "evidence/parity.json").read_text())
    assert record["decisions"] == {"output_0": {"rule": "argmax", "axis": -1, "tie": 0.25}}
    rows_compared = sum(case["sizes"]["batch"] for case in record["cases"])
    agreements = [backend["decisions"]["output_0"] for backend in record["backends"].values()]
    assert [agreement["compared"] for agreement in agreements] == [rows_compared] * 2
    assert all(agreement["agreed"] + agreement["ties"] == agreement["compared"] for agreement in agreements)
    assert (
        f"| onnx | `output_0` | argmax | {rows_compared} | {agreements[0]['agreed']} |"
        in (declared / "README.md").read_text()
    )
    assert packager.verify(declared, trust_program=True).ok


def test_a_decision_that_changes_fails_although_the_numbers_pass(declared, tmp_path):
    bundle = shutil.copytree(declared, tmp_path / declared.name)
    model = onnx.load(bundle / "model.onnx")
    bias = next(tensor for tensor in model.graph.initializer if list(tensor.dims) == [3])
    bias.CopyFrom(
        onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(bias) + np.float32([0.39, -0.39, 0.0]), bias.name)
    )
    onnx.save(model, bundle / "model.onnx")
    config = json.loads((bundle / "config.json").read_text())
    config["artifacts"]["onnx"]["sha256"] = sha256_file(bundle / "model.onnx")
    (bundle / "config.json").write_text(json.dumps(config))
    reseal(bundle)
    report = packager.verify(bundle, trust_program=True)
    assert report.structure == ()
    assert report.parity == {"onnx": "fail", "torchscript": "pass"}
    assert re.fullmatch(r"onnx: output_0\b\D*\d+\D+\d+\D*\(argmax\).*", report.notes[0])
