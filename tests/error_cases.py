"""Define a realistic example of every error, in the order of packager/errors.py, and of each variant of its wording.

`CASES` maps the name of a golden file, tests/goldens/errors/NAME.txt, to the error in it. The name is the error's code,
followed by `--VARIANT` if one class has several wordings.
"""

from packager import errors
from packager.errors import Problem

INPUTS = "package.yaml:8: inputs"
CHECKPOINT = "package.yaml:7: checkpoint.path"
ENTRY = "package.yaml:5: model.entry"
URL = "https://models.example.org/best.pt"
FIRST, SECOND = "1f" * 32, "2e" * 32
FINGERPRINT, OTHER_FINGERPRINT = "h1:" + 43 * "A" + "=", "h1:" + 43 * "B" + "="
NAMES = tuple(f"layers.{number}.weight" for number in range(23))
BRANCH = Problem("onnx: output_0[3, 1] in case 002: PyTorch gives 1.5, the artifact -1.5", "model.py:13")

MANIFEST = {
    "manifest-not-found": errors.ManifestNotFound("package.yaml"),
    "manifest-not-found--folder": errors.ManifestNotFound("project", "it is a folder, with project/package.yaml in it"),
    "manifest-unreadable": errors.ManifestUnreadable("package.yaml", "Permission denied"),
    "manifest-empty": errors.ManifestEmpty("package.yaml"),
    "manifest-syntax": errors.ManifestSyntax("package.yaml:3", "duplicate key 'name'"),
    "manifest-schema-unknown": errors.ManifestSchemaUnknown("package.yaml:1: schema", 2),
    "manifest-invalid": errors.ManifestInvalid(
        "package.yaml", [Problem("missing field 'version'", "package.yaml:1: version")]
    ),
    "manifest-invalid--several": errors.ManifestInvalid(
        "package.yaml",
        [
            Problem("unknown field 'nmae'", "package.yaml:2: nmae", "did you mean 'name'?"),
            Problem("invalid value 7: it must be greater than or equal to 13", "package.yaml:9: export.opset"),
        ],
    ),
}

MODULE = {
    "entry-not-found": errors.EntryNotFound("model.py:Nett", ENTRY, "model.py has no 'Nett'"),
    "entry-not-found--hint": errors.EntryNotFound(
        "model.py:Nett", ENTRY, "model.py has no 'Nett'", "did you mean 'Net'?"
    ),
    "entry-import-failed": errors.EntryImportFailed(
        "model.py:Net", ENTRY, "model.py:1 in <module>\n  import timm\nModuleNotFoundError: No module named 'timm'"
    ),
    "entry-not-a-module": errors.EntryNotModule("model.py:make", ENTRY, "model.py:make returned a dict"),
    "model-arguments": errors.ModelArgumentsWrong(
        "model.py:Net", "package.yaml:6: model.kwargs", "got an unexpected keyword argument 'dept'"
    ),
    "model-arguments--hint": errors.ModelArgumentsWrong(
        "model.py:Net",
        "package.yaml:6: model.kwargs",
        "got an unexpected keyword argument 'dept'",
        "did you mean 'depth'?",
    ),
    "model-construction-failed": errors.ModelConstructionFailed(
        "model.py:Net", ENTRY, "model.py:9 in __init__\nValueError: size must be positive"
    ),
    "entry-needed": errors.EntryNeeded("package.yaml:4: model", "best.pt"),
    "transformers-missing": errors.TransformersMissing(CHECKPOINT, "bert"),
    "inputs-do-not-fit": errors.InputsDoNotFit(INPUTS, "forward() takes: x, scale", "add inputs"),
    "forward-failed": errors.ForwardFailed(
        INPUTS, "000 (x: float32[2, 4])", "model.py:13 in forward\nRuntimeError: shapes cannot be multiplied"
    ),
    "forward-failed--hint": errors.ForwardFailed(
        INPUTS,
        "001 (x: float32[1, 4])",
        "model.py:13 in forward\nValueError: Expected more than 1 value per channel",
        "set dims.batch.min: 2",
    ),
    "outputs-unsupported": errors.OutputsUnsupported(INPUTS, "output_1 is a int, not a tensor"),
    "outputs-unsupported--hint": errors.OutputsUnsupported(
        INPUTS, "output_1 is a int, not a tensor", "return tensors alone"
    ),
    "decision-does-not-fit": errors.DecisionDoesNotFit(
        "package.yaml:16: parity.decisions.logits", "there is no output 'logits'", None
    ),
    "decision-does-not-fit--hint": errors.DecisionDoesNotFit(
        "package.yaml:16: parity.decisions.logits", "there is no output 'logits'", "use one of: output_0"
    ),
    "not-repeatable": errors.NotRepeatable(INPUTS, "logits", "003"),
    "weights-not-exercised": errors.WeightsNotExercised(INPUTS, 20, 15),
    "noise-too-large": errors.NoiseTooLarge(INPUTS, "logits", "0.3", "float64", 7, 12),
    "decided-by-ties": errors.DecidedByTies(
        "package.yaml:9: parity", "004 (extremes), where a tie decides labels", 3, 8
    ),
    "outputs-nan": errors.OutputsNan(
        "package.yaml:1: parity",
        "004 (vanishing), where rounding errors decide whether PyTorch's own logits is NaN",
        3,
        8,
    ),
    "data-does-not-fit": errors.DataDoesNotFit("image", "it is a list, not a numpy array"),
    "data-does-not-fit--hint": errors.DataDoesNotFit("image", "batch is 0", "at least one row"),
}

CHECKPOINTS = {
    "checkpoint-not-found": errors.CheckpointNotFound("best.pt", CHECKPOINT, "beside it: last.pt"),
    "checkpoint-not-found--no-manifest": errors.CheckpointNotFound("runs/best.pt", None),
    "checkpoint-unreadable": errors.CheckpointUnreadable("best.pt", CHECKPOINT, "the file is empty"),
    "checkpoint-unreadable--hint": errors.CheckpointUnreadable("best.pt", None, "the file is empty", None),
    "checkpoint-needs-code": errors.CheckpointNeedsCode("best.pt", CHECKPOINT, ["posix.mkdir", "builtins.eval"]),
    "checkpoint-digest": errors.CheckpointDigestWrong("best.pt", "package.yaml:8: checkpoint.sha256", FIRST, SECOND),
    "weights-not-found": errors.WeightsNotFound("ema", CHECKPOINT, "looked for: ema, ema_state_dict"),
    "weights-not-found--hint": errors.WeightsNotFound(
        "run.studnet", None, "there is no 'studnet'", "did you mean 'student'?"
    ),
    "state-does-not-fit": errors.StateDoesNotFit(
        "package.yaml:6: checkpoint", "missing from the checkpoint (1):\n  head.weight", "set checkpoint.prefix"
    ),
    "weights-not-finite": errors.WeightsNotFinite("package.yaml:6: checkpoint", NAMES[:2]),
    "weights-not-finite--many": errors.WeightsNotFinite(None, NAMES),
}

URLS = {
    "url-unsupported": errors.UrlUnsupported("ftp2://host/m.pt", CHECKPOINT, "Protocol not known", "use https"),
    "url-not-found": errors.UrlNotFound(URL, CHECKPOINT, "the server answers 404"),
    "url-refused": errors.UrlRefused(URL, CHECKPOINT, "the server answers 403", "~/.netrc"),
    "url-unreachable": errors.UrlUnreachable(URL, CHECKPOINT, "tried 6 times", "check the network"),
    "url-not-a-file": errors.UrlNotAFile("s3://bucket/run", CHECKPOINT, "it is a run", "name one of its files"),
    "download-refused": errors.DownloadRefused(URL, CHECKPOINT, "no space is left", "make room"),
}

BUILD = {
    "forward-changes-weights": errors.ForwardChangesWeights(INPUTS, NAMES[:2]),
    "forward-changes-weights--many": errors.ForwardChangesWeights(INPUTS, NAMES),
    "export-failed": errors.ExportFailed(
        "package.yaml:9: export",
        [
            Problem("torchscript, from the trace: UnsupportedOperatorError", "model.py:14"),
            Problem("torch-export: DispatchError"),
        ],
        "export.required: false ships TorchScript alone",
    ),
    "torchscript-failed": errors.TorchScriptFailed(
        "package.yaml:9: torchscript", [Problem("script: RuntimeError", "model.py:15", "annotate the argument")]
    ),
    "parity-failed": errors.ParityFailed(
        [BRANCH], "export.required: false ships TorchScript alone", frozen_branches=()
    ),
    "parity-failed--branch": errors.ParityFailed(
        [BRANCH],
        "torchscript.method: none ships ONNX alone",
        frozen_branches=["model.py:13", "model.py:13", "model.py:20"],
    ),
    "parity-failed--rounded-size": errors.ParityFailed(
        [BRANCH],
        "export.required: false ships TorchScript alone",
        frozen_branches=(),
        rounded_sizes=["model.py:13", "model.py:13"],
    ),
    "parity-failed--fixed-dim": errors.ParityFailed(
        [BRANCH],
        "torchscript.method: none ships ONNX alone",
        frozen_branches=["model.py:13"],
        fixed_sizes=["length is 3"],
    ),
    "output-refused": errors.OutputRefused("dist/net-1.0.0", "No space left on device", "free some space"),
    "output-refused--outputs": errors.OutputRefused(
        "y.npz", "No such file or directory", "choose another file with --output", what="the outputs"
    ),
    "asset-not-found": errors.AssetNotFound("labels.txt", "package.yaml:12: assets.0", "there is no such file"),
    "extra-missing": errors.ExtraMissing("torch", "package build"),
    "extra-missing--hint": errors.ExtraMissing("s3fs", "reading s3://bucket/m.pt", "pip install s3fs"),
}

BUNDLE = {
    "not-a-bundle": errors.NotABundle("dist/net-1.0.0", "it has no SHA256SUMS"),
    "fingerprint-malformed": errors.FingerprintMalformed("h1:short"),
    "archive-refused": errors.ArchiveRefused("net-1.0.0.zip", "it is cut off", "fetch it again"),
    "bundle-schema-unknown": errors.BundleSchemaUnknown("dist/net-1.0.0", 2),
    "model-unreadable": errors.ModelUnreadable("dist/net-1.0.0/model.onnx", "ValueError: it holds no graph"),
    "integrity-failed": errors.IntegrityFailed("dist/net-1.0.0", "changed: model.onnx\nnot listed: extra"),
    "fingerprint-wrong": errors.FingerprintWrong("dist/net-1.0.0", FINGERPRINT, OTHER_FINGERPRINT),
    "signature-missing": errors.SignatureMissing("dist/net-1.0.0"),
    "signature-wrong": errors.SignatureWrong("dist/net-1.0.0", "it was made for other files\ndifferent: model.onnx"),
    "certificate-refused": errors.CertificateRefused("dist/net-1.0.0", "CN=Release", "it expired on 2020-01-01"),
    "certificate-refused--unreadable": errors.CertificateRefused("dist/net-1.0.0", None, "it cannot be read: ASN.1"),
    "key-unusable": errors.KeyUnusable(
        "release.pem", "a private key", "it is an RSA key", "openssl genpkey -algorithm EC makes one"
    ),
    "argument-wrong": errors.ArgumentWrong("threads", "it is '2'", "pass a whole number from 1, or None"),
    "backend-unavailable": errors.BackendUnavailable(
        "dist/net-1.0.0", "onnxruntime: Load model failed", "load with fallback=True"
    ),
    "program-not-trusted": errors.ProgramNotTrusted(
        "dist/net-1.0.0", "model.ts", "onnxruntime: model.onnx: Load model failed"
    ),
    "deployment-unsupported": errors.DeploymentUnsupported("net-1.0.0", "triton", "it has no ONNX model"),
    "deployment-unsupported--hint": errors.DeploymentUnsupported(
        "net-1.0.0", "huggingface", "its assets have no config.json of transformers", "add config.json to `assets`"
    ),
    "selftest-failed": errors.SelftestFailed("dist/net-1.0.0", "logits[0, 3] in case 000"),
    "inference-failed": errors.InferenceFailed("onnx", RuntimeError("idx=7 must be within\n  [-5, 4]")),
}

STANDALONE = {
    "standalone-refused": errors.StandaloneRefused("digits-cnn", "its trailer was changed"),
    "standalone-unsupported": errors.StandaloneUnsupported(
        "dist/net-1.0.0", "it has no ONNX model, and nothing else runs without PyTorch", "build it with export.required"
    ),
    "runner-unavailable": errors.RunnerUnavailable("linux-x64", "torch-packager-runners is not installed"),
    "library-unavailable": errors.LibraryUnavailable(
        "1.31.1",
        "linux-arm64",
        "the one at hand is for a different machine",
        "pip download --no-deps --only-binary=:all: --platform manylinux_2_28_aarch64 onnxruntime==1.31.1, "
        "and pass the file with --onnxruntime-wheel",
    ),
}

SERVING = {
    "model-served-twice": errors.ModelServedTwice("net", "1.0.0", "dist/net-1.0.0", "dist/net-1.0.0.zip"),
    "address-unusable": errors.AddressUnusable("127.0.0.1", 8000, "Address already in use"),
}

LOCKS_AND_CACHE = {
    "lock-missing": errors.LockMissing("package.lock"),
    "lock-invalid": errors.LockInvalid("package.lock", "name: Field required"),
    "lock-unwritable": errors.LockUnwritable("package.lock", "Permission denied"),
    "lock-schema-unknown": errors.LockSchemaUnknown("package.lock", 3),
    "lock-drifted": errors.LockDrifted("package.lock", ["version: 1.0.0 → 1.0.1", "toolchain torch: 2.7.0 → 2.8.0"]),
    "input-changed": errors.InputChanged("best.pt"),
    "cache-unusable": errors.CacheUnusable("/var/cache/packager belongs to another user"),
    "cache-differs": errors.CacheDiffers(["onnx: model.onnx", "reference: cases"]),
    "rebuild-failed": errors.RebuildFailed("error[manifest-empty]: package.yaml is empty"),
    "build-not-repeatable": errors.BuildNotRepeatable(["config.json description: a and b", "model.onnx byte 7"]),
}

TRAINING = {
    "run-settings": errors.RunSettingsWrong("top_k needs a metric"),
    "state-not-expressible": errors.StateNotExpressible("extra.callback", "a function"),
    "checkpoint-not-saved": errors.CheckpointNotSaved("runs/step-00000001", "File exists"),
    "rank-failed": errors.RankFailed("rank 1 did not save its part", "it ended with status 9"),
    "no-checkpoint-yet": errors.NoCheckpointYet("runs", "it holds no checkpoint"),
    "checkpoint-damaged": errors.CheckpointDamaged(
        "runs/step-00000001/model.safetensors", f"SHA-256 saved: {FIRST}\nSHA-256 found: {SECOND}"
    ),
    "run-schema-unknown": errors.RunSchemaUnknown("runs/run.json", 2),
    "training-state-differs": errors.TrainingStateDiffers(
        "runs/step-00000001", ["model: 1.weight: saved float32[3, 2], here float16[4, 2]", "scheduler: none"]
    ),
    "huggingface-export": errors.HuggingFaceExportRefused("out", "it holds thesis.tex", "give an empty folder"),
}

COMMAND_LINE = {"usage": errors.Usage("No such option '--no-pairty'.", "package verify")}

CASES = (
    MANIFEST
    | MODULE
    | CHECKPOINTS
    | URLS
    | BUILD
    | BUNDLE
    | STANDALONE
    | SERVING
    | LOCKS_AND_CACHE
    | TRAINING
    | COMMAND_LINE
)
