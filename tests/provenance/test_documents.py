"""The standard documents: valid in the formats' own libraries, and in agreement with the records."""

import json
from pathlib import Path

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from google.protobuf import json_format
from in_toto_attestation.predicates.provenance.v1.provenance_pb2 import Provenance
from in_toto_attestation.predicates.test_result.v0.test_result_pb2 import TestResult as ResultPredicate
from in_toto_attestation.v1 import statement_pb2
from in_toto_attestation.v1.resource_descriptor import ResourceDescriptor
from in_toto_attestation.v1.statement import Statement
from messages import GOLDENS, check_file
from packageurl import PackageURL
from projects import LINEAR, project

import packager
from packager.bundle import layout
from packager.bundle.fingerprint import read_sums
from packager.bundle.records import BuildRecord, BundleConfig, ParityRecord
from packager.provenance.bill_of_materials import SPDX_IDS
from packager.provenance.documents import make_documents

PREDICATES = {
    layout.PARITY_ATTESTATION: ("https://in-toto.io/attestation/test-result/v0.1", ResultPredicate),
    layout.PROVENANCE: ("https://slsa.dev/provenance/v1", Provenance),
}
DIGESTS = {
    path: f"{number:x}" * 64
    for number, path in enumerate(
        ["README.md", "assets/labels.txt", layout.CONFIG, layout.BUILD, layout.GOLDEN, layout.PARITY, "model.onnx",
         "model.weights", "model.pt2"]
    )
}  # fmt: skip
ERRORS = {
    "max_abs": 1e-7, "max_rel": "Infinity", "rms": 2.5e-8, "cosine": 1.0, "mismatched_nonfinite": 0, "of_limit": 0.25,
    "of_limit_float64": None,
}  # fmt: skip
BACKEND = {"verdict": "pass", "reason": "", "outputs": {"logits": ERRORS}, "decisions": {}, "worst": None}


def config(**changes):
    """Return a config.json with external weights and an exported program."""
    onnx = {"path": "model.onnx", "sha256": DIGESTS["model.onnx"], "opset": 20, "ir_version": 10, "domains": {}}
    onnx |= {"nodes": 4, "data": {"path": "model.weights", "sha256": DIGESTS["model.weights"]}}
    record = {
        "schema": 1, "name": "net", "version": "1.2.0", "description": "Handwritten digits", "license": "MIT",
        "authors": ["A. Author"],
        "inputs": [{"name": "image", "dtype": "float32", "shape": ["batch", 1, 8, 8]}],
        "outputs": [{"name": "logits", "dtype": "float32", "shape": ["batch", None]}],
        "dims": {"batch": {"min": 1, "max": None}},
        "artifacts": {
            "onnx": onnx, "torchscript": None, "torch-export": {"path": "model.pt2", "sha256": DIGESTS["model.pt2"]}
        },
        "providers": ["CPUExecutionProvider"], "assets": ["labels.txt"],
        "source": {
            "manifest_sha256": "a" * 64, "checkpoint_sha256": "b" * 64, "code_sha256": "c" * 64, "dtype": None,
            "architecture": "Net", "parameters": 1650,
            "toolchain": {
                "packager": "0.1.0", "torch": "2.13.0+cpu", "onnx_ir": "1.1.0", "onnxruntime": "1.31.1",
                "numpy": "2.4.6",
            },
        },
        "parity": {"onnx": "pass", "torchscript": "not-checked", "torch-export": "pass"},
        "metadata": {},
    }  # fmt: skip
    return BundleConfig.model_validate(record | changes)


def parity(not_checked=("the sizes batch=64",), torch_export=BACKEND):
    """Return a parity.json with two cases."""
    cases = [
        {"name": name, "sizes": {"batch": 1}, "fill": "random", "golden": True, "outputs": {}}
        for name in ("000", "001")
    ]
    absent = {"verdict": "not-checked", "reason": "", "outputs": {}, "decisions": {}, "worst": None}
    coverage = {"measured": "", "channels": 0, "exercised": 0, "silent": {}, "still": {}}
    return ParityRecord.model_validate(
        {
            "schema": 1, "verdict": "pass", "reference": "the module", "cases": cases, "not_checked": list(not_checked),
            "tolerance": {}, "decisions": {}, "coverage": coverage, "stages": [],
            "backends": {"onnx": BACKEND, "torchscript": absent, "torch-export": torch_export},
        }
    )  # fmt: skip


def build(**changes):
    """Return a build.json in which the digest of one tool is unknown."""
    digests = {name: f"{number}" * 64 for number, name in enumerate(("packager", "torch", "onnx_ir", "onnxruntime"))}
    record = {
        "schema": 1, "machine": "x86_64", "system": "Linux", "python": "3.11.7", "threads": 2, "capability": "AVX2",
        "toolchain_digests": digests, "steps": [],
    }  # fmt: skip
    return BuildRecord.model_validate(record | changes)


def source(**changes):
    """Return changes to the section `source` of config.json."""
    return {"source": config().model_dump(by_alias=True)["source"] | changes}


def parse_statement(path, content):
    """Parse a statement and its predicate strictly with in-toto's own library; return the predicate."""
    record = json.loads(content)
    predicate_type, predicate_class = PREDICATES[path]
    statement = json_format.ParseDict(record, statement_pb2.Statement())
    Statement.copy_from_pb(statement).validate()
    assert statement.predicate_type == predicate_type
    predicate = json_format.ParseDict(record["predicate"], predicate_class())
    for descriptor in descriptors_in(record):
        ResourceDescriptor.copy_from_pb(json_format.ParseDict(descriptor, ResourceDescriptor().pb)).validate()
        assert descriptor.get("digest") or descriptor["uri"]  # the specification is stricter than validate()
    return predicate


def descriptors_in(value):
    """Return every ResourceDescriptor in a statement."""
    if isinstance(value, dict) and "name" in value:
        return [value]
    items = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [descriptor for item in items for descriptor in descriptors_in(item)]


def check_bill(content):
    """Check a bill of materials with CycloneDX's own strict validator; return it."""
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(content.decode()) is None
    bill = json.loads(content)
    references = {part["bom-ref"] for part in parts_of(bill)}
    assert len(references) == len(parts_of(bill))
    for dependency in bill["dependencies"]:
        assert {dependency["ref"], *dependency["dependsOn"]} <= references
    return bill


def parts_of(bill):
    model = bill["metadata"]["component"]
    return [model, *model["components"], *bill["components"]]


def documents_of(bundle):
    return {path: (bundle / path).read_bytes() for path in layout.DOCUMENTS}


# -- the formats ----------------------------------------------------------------------------


@pytest.mark.parametrize("path", sorted(layout.DOCUMENTS))
def test_a_document_reads_as_its_golden_file(path, request):
    content = make_documents(config(), parity(), build(), DIGESTS)[path]
    golden = GOLDENS / "provenance" / Path(path).name
    check_file(golden, content.decode(), update=request.config.getoption("--update-goldens"))


BARE = {
    "description": "", "license": None, "authors": [], "assets": [], "parity": {"onnx": "pass", "torchscript": "pass"},
    "artifacts": {
        "onnx": None,
        "torchscript": {
            "path": "model.ts", "sha256": "f" * 64, "method": "trace", "optimize_for_inference": True
        },
    },
    **source(toolchain={"torch": ""}),
}  # fmt: skip


@pytest.mark.parametrize(
    "records",
    [
        (config(), parity(), build()),
        (config(**BARE), parity(not_checked=()), build(toolchain_digests={})),
        (config(license="ask us, première page"), parity(), build()),
    ],
    ids=["everything", "bare", "named license"],
)
def test_the_documents_are_valid_in_their_formats(records):
    documents = make_documents(*records, DIGESTS)
    assert set(documents) == layout.DOCUMENTS
    for path in PREDICATES:
        parse_statement(path, documents[path])
    check_bill(documents[layout.BILL_OF_MATERIALS])


def test_the_strict_parsers_refuse_an_unknown_field():
    documents = make_documents(config(), parity(), build(), DIGESTS)
    for path in PREDICATES:
        with pytest.raises(json_format.ParseError, match="builtOn"):
            parse_statement(path, documents[path].replace(b'"predicate": {', b'"predicate": {"builtOn": "today",'))
    with pytest.raises(AssertionError):
        check_bill(documents[layout.BILL_OF_MATERIALS].replace(b'"modelCard"', b'"modelKard"'))


@pytest.mark.parametrize("identifier", sorted(SPDX_IDS))
def test_a_license_with_an_spdx_identifier_is_written_as_one(identifier):
    bill = check_bill(make_documents(config(license=identifier), parity(), build(), DIGESTS)[layout.BILL_OF_MATERIALS])
    assert bill["metadata"]["component"]["licenses"] == [{"license": {"id": identifier}}]


# -- a real bundle --------------------------------------------------------------------------


def test_the_documents_of_a_bundle_are_valid_in_their_formats(built):
    documents = documents_of(built.bundle)
    for path in PREDICATES:
        parse_statement(path, documents[path])
    check_bill(documents[layout.BILL_OF_MATERIALS])


def test_the_parity_attestation_is_about_the_models_and_lists_every_comparison(built):
    content = (built.bundle / layout.PARITY_ATTESTATION).read_bytes()
    _, sums = read_sums(built.bundle)
    record, result = json.loads(content), parse_statement(layout.PARITY_ATTESTATION, content)
    subjects = {subject["name"]: subject["digest"] for subject in record["subject"]}
    assert subjects == {path: {"sha256": sums[path]} for path in ("model.onnx", "model.ts")}
    assert {item.name: dict(item.digest) for item in result.configuration} == {
        path: {"sha256": sums[path]} for path in (layout.PARITY, layout.GOLDEN, layout.BUILD)
    }
    cases = [case["name"] for case in json.loads((built.bundle / layout.PARITY).read_bytes())["cases"]]
    assert list(result.passed_tests) == [f"{backend}/{name}" for backend in ("onnx", "torchscript") for name in cases]
    assert (result.result, list(result.warned_tests), list(result.failed_tests), result.url) == ("PASSED", [], [], "")


def test_comparisons_that_were_left_out_are_warnings():
    documents = make_documents(config(), parity(not_checked=["the sizes batch=64"]), build(), DIGESTS)
    result = parse_statement(layout.PARITY_ATTESTATION, documents[layout.PARITY_ATTESTATION])
    assert (result.result, list(result.warned_tests)) == ("WARNED", ["not checked: the sizes batch=64"])
    bill = check_bill(documents[layout.BILL_OF_MATERIALS])
    card = bill["metadata"]["component"]["modelCard"]
    assert card["considerations"]["technicalLimitations"] == ["not compared: the sizes batch=64"]


def test_the_build_provenance_names_what_went_in_and_everything_that_came_out(built, digits):
    from packager.common.hashing import sha256_file

    content = (built.bundle / layout.PROVENANCE).read_bytes()
    _, sums = read_sums(built.bundle)
    record, provenance = json.loads(content), parse_statement(layout.PROVENANCE, content)
    subjects = {subject["name"]: subject["digest"]["sha256"] for subject in record["subject"]}
    assert subjects == {path: sha256 for path, sha256 in sums.items() if path not in layout.DOCUMENTS}
    dependencies = {item.name: item for item in provenance.build_definition.resolved_dependencies}
    assert dependencies["manifest"].digest["sha256"] == sha256_file(digits)
    assert dependencies["checkpoint"].digest["sha256"] == sha256_file(digits.parent / "best.pt")
    assert dependencies["assets/labels.txt"].digest["sha256"] == sha256_file(digits.parent / "labels.txt")
    source = json.loads((built.bundle / layout.CONFIG).read_bytes())["source"]
    assert dependencies["code"].digest["sha256"] == source["code_sha256"]
    for tool, version in source["toolchain"].items():
        url = PackageURL.from_string(dependencies[tool].uri)
        name = "torch-packager" if tool == "packager" else tool
        assert (url.type, url.name, url.version, url.to_string()) == ("pypi", name, version, dependencies[tool].uri)
        assert len(bytes.fromhex(dependencies[tool].digest["dirHash"])) == 32
    assert set(dependencies) == {"manifest", "checkpoint", "code", "assets/labels.txt", *source["toolchain"]}
    parameters = json_format.MessageToDict(provenance.build_definition.external_parameters)
    assert parameters["manifest"]["digest"]["sha256"] == sha256_file(digits)
    assert not provenance.run_details.metadata.HasField("started_on")
    assert not provenance.run_details.metadata.HasField("finished_on")
    assert provenance.run_details.builder.id == "pkg:pypi/torch-packager"


def test_the_bill_of_materials_describes_the_model(built):
    _, sums = read_sums(built.bundle)
    bill = check_bill((built.bundle / layout.BILL_OF_MATERIALS).read_bytes())
    model = bill["metadata"]["component"]
    assert (model["type"], model["name"], model["version"]) == ("machine-learning-model", "digits-cnn", "1.0.0")
    hashes = {part["name"]: part["hashes"] for part in model["components"]}
    assert hashes == {
        path: [{"alg": "SHA-256", "content": sums[path]}] for path in ("model.onnx", "model.ts", "assets/labels.txt")
    }
    card = model["modelCard"]
    assert card["modelParameters"] == {
        "modelArchitecture": "DigitsCNN",
        "inputs": [{"format": "image: float32[batch, 1, 8, 8]"}],
        "outputs": [{"format": "logits: float32[batch, 10]"}],
    }
    assert {"name": "packager:parameters", "value": "1650"} in card["properties"]
    measured = json.loads((built.bundle / layout.PARITY).read_bytes())["backends"]["onnx"]["outputs"]["logits"]
    metrics = {
        (metric["slice"], metric["type"]): metric["value"]
        for metric in card["quantitativeAnalysis"]["performanceMetrics"]
    }
    assert metrics["onnx/logits", "parity.max_abs"] == repr(measured["max_abs"])
    assert {(item["name"], item["scope"]) for item in bill["components"]} >= {
        ("onnxruntime", "required"), ("numpy", "required"), ("torch", "optional"), ("onnxsim", "excluded")
    }  # fmt: skip
    assert all(PackageURL.from_string(item["purl"]).to_string() == item["purl"] for item in bill["components"])
    needs = {dependency["ref"]: dependency["dependsOn"] for dependency in bill["dependencies"]}
    assert needs["model"] == ["model.onnx", "model.ts", "assets/labels.txt"]
    assert [PackageURL.from_string(url).name for url in needs["model.onnx"]] == ["onnxruntime", "numpy"]
    assert [PackageURL.from_string(url).name for url in needs["model.ts"]] == ["torch"]


# -- a function of the records --------------------------------------------------------------


@pytest.mark.slow
def test_two_builds_give_the_same_documents_and_other_weights_give_different_ones(tmp_path):
    import torch

    weights = {"layer.weight": torch.ones(3, 4), "layer.bias": torch.zeros(3)}
    fast = {"torchscript": {"method": "none"}, "optimize": {"simplify": False, "level": "none"}}
    manifests = [
        project(tmp_path / "here", LINEAR, **fast),
        project(tmp_path / "elsewhere/deep", LINEAR, **fast),
        project(tmp_path / "other", LINEAR, state=weights, **fast),
    ]
    first, second, other = (
        documents_of(packager.build(path, path.parent / "out", cache="off").bundle) for path in manifests
    )
    assert first == second
    assert [path for path in layout.DOCUMENTS if first[path] == other[path]] == []


RECORDS = {"config": config(), "parity": parity(), "build": build(), "digests": DIGESTS}
BOTH = {layout.PROVENANCE, layout.BILL_OF_MATERIALS}
MORE_NOISE = BACKEND | {"outputs": {"logits": ERRORS | {"rms": 1.0}}}
CHANGES = {
    "license": ({"config": config(license="Apache-2.0")}, {layout.BILL_OF_MATERIALS}),
    "parameters": ({"config": config(**source(parameters=7))}, {layout.BILL_OF_MATERIALS}),
    "architecture": ({"config": config(**source(architecture="Big"))}, {layout.BILL_OF_MATERIALS}),
    "checkpoint": ({"config": config(**source(checkpoint_sha256="0" * 64))}, BOTH),
    "manifest": ({"config": config(**source(manifest_sha256="0" * 64))}, {layout.PROVENANCE}),
    "code": ({"config": config(**source(code_sha256="0" * 64))}, {layout.PROVENANCE}),
    "versions of the tools": ({"config": config(**source(toolchain={"packager": "0.2.0"}))}, BOTH),
    "files of the tools": ({"build": build(toolchain_digests={})}, {layout.PROVENANCE}),
    "machine": ({"build": build(threads=64)}, {layout.PROVENANCE}),
    "comparisons": ({"parity": parity(not_checked=())}, {layout.PARITY_ATTESTATION, layout.BILL_OF_MATERIALS}),
    "errors": ({"parity": parity(torch_export=MORE_NOISE)}, {layout.BILL_OF_MATERIALS}),
    "asset": ({"digests": DIGESTS | {"assets/labels.txt": "0" * 64}}, BOTH),
    "evidence": ({"digests": DIGESTS | {layout.PARITY: "0" * 64}}, layout.DOCUMENTS),
    "documents": ({"digests": DIGESTS | dict.fromkeys(layout.DOCUMENTS, "0" * 64)}, set()),
}


@pytest.mark.parametrize(("change", "expected"), CHANGES.values(), ids=CHANGES)
def test_a_document_changes_when_what_it_states_does(change, expected):
    before, after = make_documents(**RECORDS), make_documents(**(RECORDS | change))
    assert {path for path in layout.DOCUMENTS if before[path] != after[path]} == expected


def test_the_order_of_the_digests_does_not_matter():
    assert make_documents(**RECORDS) == make_documents(**(RECORDS | {"digests": dict(reversed(DIGESTS.items()))}))
