"""Define every error that packager reports, one class each.

An error knows its code (kebab-case, listed in docs/errors.md), the exit status it leads to, its wording and its
hint. It is raised where the problem is detected, rendered by `render_error`, and turned into an exit status in one
place: `packager.cli.main`. Exit status 1 means that the answer is no (`Refused`), and 2 that the user must change
something (`UserError`). Any other exception is a bug in packager: it keeps its traceback and ends with 3.

Messages state the fact first, in lower case and without a full stop; hints say what to do.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

_SUPPORTED_SCHEMA = "this version of packager supports schema 1"


@dataclass(frozen=True)
class Problem:
    """One of several problems that an error reports: what is wrong, where, and what to do about it."""

    message: str
    where: str | None = None
    hint: str | None = None


class PackagerError(Exception):
    """Base class of all errors.

    `message` states the fact. `where` reads `file:line: field`, `why` gives the details behind the message, one per
    line, and `hint` says what to do. `problems` lists the individual problems of an error that reports several.
    """

    code: ClassVar[str]
    exit_status: ClassVar[int]

    def __init__(
        self,
        message: str,
        *,
        where: str | None = None,
        why: str | None = None,
        hint: str | None = None,
        problems: Sequence[Problem] = (),
    ) -> None:
        super().__init__(message)
        self.message = message
        self.where = where
        self.why = why
        self.hint = hint
        self.problems = tuple(problems)

    def __str__(self) -> str:
        """Return the whole error as text, so that the log of a service that does not catch it shows everything."""
        return render_error(self)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the error, so that another process can raise the same one."""
        return _rebuild_error, (type(self), self.__dict__)

    def replace_path(self, old: str, new: str) -> None:
        """Replace a path in all texts, such as that of a temporary file by the name that the user gave."""
        self.message = self.message.replace(old, new)
        self.where = self.where and self.where.replace(old, new)
        self.why = self.why and self.why.replace(old, new)
        self.hint = self.hint and self.hint.replace(old, new)
        self.args = (self.message,)

    def as_json(self) -> dict[str, object]:
        """Return the object that `--json` prints under `error`; it has `problems` only if there are any."""
        record: dict[str, object] = {
            "code": self.code,
            "message": self.message if not self.why else f"{self.message}\n{self.why}",
            "where": self.where,
            "hint": self.hint,
        }
        if self.problems:
            record["problems"] = [asdict(problem) for problem in self.problems]
        return record


def _rebuild_error(error_class: type[PackagerError], attributes: dict[str, Any]) -> PackagerError:
    error = error_class.__new__(error_class, attributes["message"])
    error.__dict__.update(attributes)
    return error


def render_error(error: PackagerError) -> str:
    """Render an error as plain text: `error[code]: …`, ` --> where`, why, each problem, `hint: …`.

    Names and messages may come from hostile files: their control characters are escaped.
    """
    lines = [f"error[{error.code}]: {error.message}"]
    if error.where:
        lines.append(f" --> {error.where}")
    if error.why:
        lines += [f"  {line}" for line in error.why.rstrip("\n").split("\n")]
    for problem in error.problems:
        if problem.where:
            lines.append(f" --> {problem.where}")
        lines += [f"  {line}" for line in problem.message.rstrip("\n").split("\n")]
        if problem.hint:
            lines.append(f"  hint: {problem.hint}")
    if error.hint:
        lines.append(f"hint: {error.hint}")
    return escape_unprintable("\n".join(lines), keep_line_breaks=True)


def escape_unprintable(text: str, *, keep_line_breaks: bool = False) -> str:
    """Escape control characters and those that change the direction of text, so that it cannot fool a terminal."""
    if text.isprintable():
        return text
    kept = "\n" if keep_line_breaks else ""
    return "".join(
        character if character.isprintable() or character == kept else repr(character)[1:-1] for character in text
    )


def did_you_mean(name: str, candidates: Sequence[str]) -> str | None:
    """Return the hint for an unknown name: the closest candidate, otherwise all; None without candidates."""
    closest = find_close_name(name, candidates)
    if closest is not None:
        return closest
    return f"use one of: {', '.join(candidates)}" if candidates else None


def find_close_name(name: str, candidates: Sequence[str]) -> str | None:
    """Return the hint for an unknown name if a candidate is close to it, otherwise None."""
    from difflib import get_close_matches

    closest = get_close_matches(name, candidates, n=1, cutoff=0.6)
    return f"did you mean {closest[0]!r}?" if closest else None


def _join_names(names: Sequence[str], limit: int) -> str:
    rest = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + rest


class UserError(PackagerError):
    """The user must change something. Exit status 2."""

    exit_status = 2


class Refused(PackagerError):
    """The check ran, and the answer is no. Exit status 1."""

    exit_status = 1


# -- the manifest ---------------------------------------------------------------------------


class ManifestNotFound(UserError):
    code = "manifest-not-found"

    def __init__(self, path: str, why: str | None = None) -> None:
        super().__init__(
            f"no manifest found at {path}",
            why=why,
            hint="pass the path of a package.yaml; README.md has an example",
        )


class ManifestUnreadable(UserError):
    code = "manifest-unreadable"

    def __init__(self, path: str, cause: str) -> None:
        super().__init__(f"cannot read {path}: {cause}", hint="check its permissions, and save it as UTF-8 text")


class ManifestEmpty(UserError):
    code = "manifest-empty"

    def __init__(self, path: str) -> None:
        super().__init__(f"{path} is empty", hint="add at least schema, name, version, model, checkpoint and inputs")


class ManifestSyntax(UserError):
    code = "manifest-syntax"

    def __init__(self, where: str, cause: str) -> None:
        super().__init__("cannot parse the manifest", where=where, why=cause)


class ManifestSchemaUnknown(UserError):
    code = "manifest-schema-unknown"

    def __init__(self, where: str, schema: object) -> None:
        super().__init__(
            f"unsupported manifest schema {schema!r}: {_SUPPORTED_SCHEMA}",
            where=where,
            hint="upgrade packager, or set schema: 1",
        )


class ManifestInvalid(UserError):
    code = "manifest-invalid"

    def __init__(self, path: str, problems: Sequence[Problem]) -> None:
        count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        super().__init__(
            f"{count} in {path}", problems=problems, hint="run `package schema manifest` to see every field"
        )


# -- the module -----------------------------------------------------------------------------


class EntryNotFound(UserError):
    code = "entry-not-found"

    def __init__(self, entry: str, where: str, why: str, hint: str | None = None) -> None:
        super().__init__(f"cannot find model.entry {entry!r}", where=where, why=why, hint=hint)


class EntryImportFailed(UserError):
    code = "entry-import-failed"

    def __init__(self, entry: str, where: str, why: str) -> None:
        super().__init__(
            f"cannot import {entry!r}",
            where=where,
            why=why,
            hint="make sure that it can be imported in a plain Python process with its folder on sys.path",
        )


class EntryNotModule(UserError):
    code = "entry-not-a-module"

    def __init__(self, entry: str, where: str, why: str) -> None:
        super().__init__(
            f"{entry!r} does not provide a torch.nn.Module",
            where=where,
            why=why,
            hint="name a Module class, or a function that returns a Module",
        )


class ModelArgumentsWrong(UserError):
    code = "model-arguments"

    def __init__(self, entry: str, where: str, why: str, hint: str | None = None) -> None:
        super().__init__(f"{entry!r} does not accept model.kwargs", where=where, why=why, hint=hint)


class ModelConstructionFailed(UserError):
    code = "model-construction-failed"

    def __init__(self, entry: str, where: str, why: str) -> None:
        super().__init__(f"cannot construct {entry!r}", where=where, why=why)


class EntryNeeded(UserError):
    code = "entry-needed"

    def __init__(self, where: str, checkpoint: str) -> None:
        super().__init__(
            f"model.entry is missing, and {checkpoint} does not identify its module",
            where=where,
            hint="set model.entry, such as model.py:Net; only Hugging Face folders, TorchScript and .pt2 need none",
        )


class TransformersMissing(UserError):
    code = "transformers-missing"

    def __init__(self, where: str, checkpoint: str) -> None:
        super().__init__(
            f"loading {checkpoint} without a model.entry requires transformers, which is not installed",
            where=where,
            hint="pip install transformers, or add model.entry",
        )


class InputsDoNotFit(UserError):
    code = "inputs-do-not-fit"

    def __init__(self, where: str, why: str, hint: str) -> None:
        super().__init__("the inputs do not match the parameters of forward()", where=where, why=why, hint=hint)


class ForwardFailed(UserError):
    code = "forward-failed"

    def __init__(self, where: str, case: str, why: str, hint: str | None = None) -> None:
        super().__init__(
            f"forward() failed on test case {case}",
            where=where,
            why=why,
            hint=hint
            or "check the dtype, shape and range of each input and the limits of the dims; use a fixed number for a "
            "size that must be a multiple of something or less than another size",
        )


class OutputsUnsupported(UserError):
    code = "outputs-unsupported"

    def __init__(self, where: str, why: str, hint: str | None = None) -> None:
        super().__init__("a bundle cannot represent what forward() returns", where=where, why=why, hint=hint)


class DecisionDoesNotFit(UserError):
    code = "decision-does-not-fit"

    def __init__(self, where: str, why: str, hint: str | None) -> None:
        super().__init__("parity.decisions does not match the outputs of forward()", where=where, why=why, hint=hint)


class NotRepeatable(UserError):
    code = "not-repeatable"

    def __init__(self, where: str, output: str, case: str) -> None:
        super().__init__(
            "forward() returns different outputs when it is run again",
            where=where,
            why=f"output {output} differs between two calls with the same inputs, in test case {case}",
            hint="do not draw random numbers in forward() (F.dropout needs training=self.training), "
            "and do not keep anything computed from an input, even on the first call: a state belongs to the inputs "
            "and outputs",
        )


class NoiseTooLarge(UserError):
    code = "noise-too-large"

    def __init__(self, where: str, output: str, difference: str, evaluation: str, uncertain: int, cases: int) -> None:
        super().__init__(
            "the module's own rounding errors are too large to check parity",
            where=where,
            why=f"on {uncertain} of {cases} test cases, {output} changes by up to {difference} of its magnitude if "
            f"the module is evaluated in another way that is equal in mathematics ({evaluation})",
            hint="narrow the range of the inputs, compute in higher precision, or set parity.tolerance",
        )


class WeightsNotExercised(UserError):
    code = "weights-not-exercised"

    def __init__(self, where: str, channels: int, cases: int) -> None:
        super().__init__(
            "the test cases do not show any of the weights, so parity would prove nothing",
            where=where,
            why=f"none of the {channels:,} channels of the weights affects an output in any of {cases} test cases",
            hint="widen the range of the inputs (an integer range of [0, 1] holds 0 alone), or give real inputs in "
            "parity.data",
        )


class DecidedByTies(UserError):
    code = "decided-by-ties"

    def __init__(self, where: str, example: str, steady: int, cases: int) -> None:
        super().__init__(
            "the outputs depend on ties, so parity cannot be checked",
            where=where,
            why=f"changing the inputs by a few rounding errors changes the outputs of {cases - steady} of {cases} "
            f"test cases: {example}",
            hint="break ties in forward(), round the scores before they are ranked, or return the scores instead of "
            "their order",
        )


class OutputsNan(UserError):
    code = "outputs-nan"

    def __init__(self, where: str, example: str, steady: int, cases: int) -> None:
        super().__init__(
            "rounding errors decide whether the module's own outputs are NaN, so parity cannot be checked",
            where=where,
            why=f"changing the inputs by a few rounding errors changes the outputs of {cases - steady} of {cases} "
            f"test cases: {example}",
            hint="clamp the argument of acos, log, sqrt or a division in forward(), or narrow the range of the inputs",
        )


class DataDoesNotFit(UserError):
    code = "data-does-not-fit"

    def __init__(
        self, where: str, why: str, hint: str = "pass one array for each input, by name, with its dtype and shape"
    ) -> None:
        super().__init__("the inputs do not match the signature", where=where, why=why, hint=hint)


# -- the checkpoint -------------------------------------------------------------------------


class CheckpointNotFound(UserError):
    code = "checkpoint-not-found"

    def __init__(self, path: str, where: str | None, why: str | None = None) -> None:
        super().__init__(
            f"no checkpoint found at {path}",
            where=where,
            why=why,
            hint="give the path relative to the manifest's folder" if where else None,
        )


class CheckpointUnreadable(UserError):
    code = "checkpoint-unreadable"

    def __init__(
        self,
        path: str,
        where: str | None,
        why: str,
        hint: str | None = "save the weights again with torch.save(model.state_dict(), …) or safetensors",
    ) -> None:
        super().__init__(f"cannot read {path} as a checkpoint", where=where, why=why, hint=hint)


class CheckpointNeedsCode(UserError):
    code = "checkpoint-needs-code"

    def __init__(self, path: str, where: str | None, names: Sequence[str]) -> None:
        super().__init__(
            f"loading {path} would run code; nothing was run",
            where=where,
            why="it would run: " + ", ".join(names),
            hint="save a state dict instead, or set checkpoint.trust_pickle: true if you wrote this file",
        )


class CheckpointDigestWrong(UserError):
    code = "checkpoint-digest"

    def __init__(self, path: str, where: str | None, expected: str, actual: str) -> None:
        super().__init__(
            f"{path} does not match checkpoint.sha256",
            where=where,
            why=f"expected: {expected}\nactual:   {actual}",
            hint="restore the file, or update checkpoint.sha256",
        )


class WeightsNotFound(UserError):
    code = "weights-not-found"

    def __init__(self, weights: str, where: str | None, why: str, hint: str | None = None) -> None:
        super().__init__(f"no state dict found for checkpoint.weights: {weights}", where=where, why=why, hint=hint)


class StateDoesNotFit(UserError):
    code = "state-does-not-fit"

    def __init__(self, where: str | None, why: str, hint: str) -> None:
        super().__init__("the checkpoint does not match the module", where=where, why=why, hint=hint)


class WeightsNotFinite(UserError):
    code = "weights-not-finite"

    def __init__(self, where: str | None, names: Sequence[str]) -> None:
        super().__init__(
            "the checkpoint contains weights that are not finite",
            where=where,
            why=f"NaN or infinity in: {_join_names(names, 20)}",
            hint="use an earlier checkpoint: training diverged before this one was saved",
        )


# -- a checkpoint's URL ---------------------------------------------------------------------


class UrlUnsupported(UserError):
    code = "url-unsupported"

    def __init__(self, url: str, where: str | None, why: str, hint: str) -> None:
        super().__init__(f"cannot open {url}", where=where, why=why, hint=hint)


class UrlNotFound(UserError):
    code = "url-not-found"

    def __init__(self, url: str, where: str | None, why: str) -> None:
        super().__init__(
            f"nothing found at {url}",
            where=where,
            why=why,
            hint="check the host, the bucket and the name; some servers also answer this if access is denied",
        )


class UrlRefused(UserError):
    code = "url-refused"

    def __init__(self, url: str, where: str | None, why: str, hint: str) -> None:
        super().__init__(f"no access to {url} with the credentials found", where=where, why=why, hint=hint)


class UrlUnreachable(UserError):
    code = "url-unreachable"

    def __init__(self, url: str, where: str | None, why: str, hint: str) -> None:
        super().__init__(f"failed to fetch {url}", where=where, why=why, hint=hint)


class UrlNotAFile(UserError):
    code = "url-not-a-file"

    def __init__(self, url: str, where: str | None, why: str, hint: str) -> None:
        super().__init__(f"{url} is not a file", where=where, why=why, hint=hint)


class DownloadRefused(UserError):
    code = "download-refused"

    def __init__(self, url: str, where: str | None, why: str, hint: str) -> None:
        super().__init__(f"cannot download {url}", where=where, why=why, hint=hint)


# -- the build ------------------------------------------------------------------------------


class ForwardChangesWeights(UserError):
    code = "forward-changes-weights"

    def __init__(self, where: str, names: Sequence[str]) -> None:
        super().__init__(
            "forward() modifies the module's weights",
            where=where,
            why=f"modified in place: {_join_names(names, 10)}",
            hint="update the weights before you save them, because an artifact's weights are constants; "
            "nn.Embedding(max_norm=…), for example, updates its weights in forward()",
        )


class ExportFailed(UserError):
    code = "export-failed"

    def __init__(self, where: str, causes: Sequence[Problem], hint: str) -> None:
        super().__init__("no exporter can convert this model to ONNX", where=where, problems=causes, hint=hint)


class TorchScriptFailed(UserError):
    code = "torchscript-failed"

    def __init__(self, where: str, causes: Sequence[Problem]) -> None:
        super().__init__(
            "cannot convert the module to TorchScript",
            where=where,
            problems=causes,
            hint="torchscript.method: auto ships the best fallback that is proven, or ONNX alone",
        )


class ParityFailed(Refused):
    code = "parity-failed"

    def __init__(
        self,
        artifacts: Sequence[Problem],
        otherwise: str,
        *,
        frozen_branches: Sequence[str],
        fixed_sizes: Sequence[str] = (),
        rounded_sizes: Sequence[str] = (),
    ) -> None:
        lines = ", ".join(dict.fromkeys(frozen_branches))
        advice = []
        if fixed_sizes:
            sizes = " and ".join(fixed_sizes)
            where = f" (see {_join_names(list(dict.fromkeys(frozen_branches)), 4)})" if frozen_branches else ""
            advice.append(
                f"the graph is right where {sizes}, and wrong at other sizes: forward() uses that size as a number in "
                f"Python, as a loop over it does{where}, and every exporter fixes it; make the module scriptable "
                "(torchscript.method: script), or give the dim a fixed size in inputs"
            )
        elif frozen_branches:
            advice.append(
                f"if the control flow that was fixed at {lines} is the cause, use torch.where to keep both sides of a "
                "branch, and integer arithmetic for a size"
            )
        if rounded_sizes:
            lines = ", ".join(dict.fromkeys(rounded_sizes))
            advice.append(
                f"if a size computed at {lines} is the cause, compute it with integers: artifacts use float32"
            )
        advice = advice or ["set explicit limits in parity.tolerance"]
        super().__init__(
            "the artifacts do not match the PyTorch module; no bundle was written",
            problems=artifacts,
            hint="; ".join([*advice, otherwise]),
        )


class OutputRefused(UserError):
    code = "output-refused"

    def __init__(self, path: str, why: str, hint: str, *, what: str = "the bundle") -> None:
        super().__init__(f"cannot write {what} to {path}", why=why, hint=hint)


class AssetNotFound(UserError):
    code = "asset-not-found"

    def __init__(self, path: str, where: str, why: str, hint: str | None = None) -> None:
        super().__init__(f"cannot bundle the asset {path!r}", where=where, why=why, hint=hint)


class ExtraMissing(UserError):
    code = "extra-missing"

    def __init__(self, module: str, what: str, hint: str = "pip install 'torch-packager[build]'") -> None:
        super().__init__(f"{what} requires {module}, which is not installed", hint=hint)


# -- the bundle -----------------------------------------------------------------------------


class NotABundle(UserError):
    code = "not-a-bundle"

    def __init__(self, path: str, why: str) -> None:
        super().__init__(
            f"{path} is not a bundle",
            why=why,
            hint="pass the folder or .zip of a bundle, or an executable that is complete",
        )


class FingerprintMalformed(UserError):
    code = "fingerprint-malformed"

    def __init__(self, given: str) -> None:
        super().__init__(
            f"{given!r} is not a fingerprint",
            why="a fingerprint is h1: followed by 44 characters of base64",
            hint="copy it from the output of `package build`, or from the FINGERPRINT file where the bundle was built",
        )


class ArchiveRefused(UserError):
    code = "archive-refused"

    def __init__(self, path: str, why: str, hint: str) -> None:
        super().__init__(f"cannot read the archive {path}", why=why, hint=hint)


class StandaloneRefused(UserError):
    code = "standalone-refused"

    def __init__(self, path: str, why: str) -> None:
        super().__init__(
            f"cannot read the executable {path}", why=why, hint="fetch it again, or make it with `package standalone`"
        )


class BundleSchemaUnknown(UserError):
    code = "bundle-schema-unknown"

    def __init__(self, path: str, schema: object) -> None:
        super().__init__(
            f"unsupported bundle schema {schema!r} in {path}: {_SUPPORTED_SCHEMA}", hint="upgrade packager"
        )


class ModelUnreadable(UserError):
    code = "model-unreadable"

    def __init__(self, path: str, cause: str) -> None:
        super().__init__(
            f"cannot read {path} as an ONNX model",
            why=cause,
            hint="fetch the bundle again, or rebuild it",
        )


class IntegrityFailed(Refused):
    code = "integrity-failed"

    def __init__(self, path: str, why: str) -> None:
        super().__init__(f"{path} is damaged or was modified", why=why, hint="fetch the bundle again, or rebuild it")


class FingerprintWrong(Refused):
    code = "fingerprint-wrong"

    def __init__(self, path: str, expected: str, actual: str) -> None:
        super().__init__(
            f"the fingerprint of {path} does not match",
            why=f"expected: {expected}\nactual:   {actual}",
            hint="fetch the bundle with the expected fingerprint, or correct the fingerprint",
        )


class SignatureMissing(Refused):
    code = "signature-missing"

    def __init__(self, path: str) -> None:
        super().__init__(
            f"{path} is not signed",
            why="a signer was required, and there is no model.sig",
            hint="fetch the signed bundle, or ask its publisher to sign it with `package sign`",
        )


class SignatureWrong(Refused):
    code = "signature-wrong"

    def __init__(self, path: str, why: str) -> None:
        super().__init__(
            f"the signature of {path} is not valid",
            why=why,
            hint="do not use the bundle; fetch it again, and compare the key with that of its publisher",
        )


class CertificateRefused(Refused):
    code = "certificate-refused"

    def __init__(self, path: str, subject: str | None, why: str) -> None:
        super().__init__(
            f"the certificate that signed {path} is not accepted",
            why=f"{subject}: {why}" if subject else why,
            hint="ask the publisher for the root of its certificates, or for a signature with a valid certificate",
        )


class KeyUnusable(UserError):
    code = "key-unusable"

    def __init__(self, path: str, what: str, why: str, hint: str) -> None:
        super().__init__(f"cannot use {path} as {what}", why=why, hint=hint)


class BackendUnavailable(UserError):
    code = "backend-unavailable"

    def __init__(self, path: str, why: str, hint: str) -> None:
        super().__init__(f"cannot load {path}", why=why, hint=hint)


class ArgumentWrong(UserError):
    code = "argument-wrong"

    def __init__(self, argument: str, why: str, hint: str | None = None) -> None:
        super().__init__(f"the argument {argument} cannot be used", where=argument, why=why, hint=hint)


class ProgramNotTrusted(UserError):
    code = "program-not-trusted"

    def __init__(self, path: str, program: str, cause: str) -> None:
        super().__init__(
            f"cannot load {path}: all that is left is {program}, a program, and the bundle is not trusted",
            why=f"{cause}\n{program} can read and write files as you can, and its digest does not say who wrote it",
            hint="use an onnxruntime that loads the model; or pin the bundle with fingerprint='h1:…' or "
            "public_key='….pem', or trust its maker with trust_program=True; on the command line: --fingerprint, "
            "--public-key, --trust-program",
        )


class DeploymentUnsupported(UserError):
    code = "deployment-unsupported"

    def __init__(self, bundle: str, target: str, why: str, hint: str | None = None) -> None:
        super().__init__(f"cannot export {bundle} for {target}", why=why, hint=hint)


class SelftestFailed(Refused):
    code = "selftest-failed"

    def __init__(self, path: str, why: str) -> None:
        super().__init__(
            f"the outputs of {path} differ from those recorded when it was built",
            why=why,
            hint="run `package verify` to replay every test case, and compare the onnxruntime version with "
            "evidence/build.json",
        )


class InferenceFailed(UserError):
    code = "inference-failed"

    def __init__(self, backend: str, error: Exception) -> None:
        super().__init__(
            f"the {backend} model failed on these values",
            why=" ".join(str(error).split()),
            hint="keep the values within the ranges in config.json; check_values=True compares them first",
        )


# -- executables ----------------------------------------------------------------------------


class StandaloneUnsupported(UserError):
    code = "standalone-unsupported"

    def __init__(self, path: str, why: str, hint: str) -> None:
        super().__init__(f"cannot make an executable of {path}", why=why, hint=hint)


class RunnerUnavailable(UserError):
    code = "runner-unavailable"

    def __init__(self, target: str, why: str) -> None:
        super().__init__(
            f"there is no runner for {target}",
            why=why,
            hint="`make runners` in a checkout of this version builds their wheel; see docs/standalone.md",
        )


class LibraryUnavailable(UserError):
    code = "library-unavailable"

    def __init__(self, version: str, target: str, why: str, hint: str) -> None:
        super().__init__(f"cannot take the library of onnxruntime {version} for {target}", why=why, hint=hint)


# -- serving --------------------------------------------------------------------------------


class ModelServedTwice(UserError):
    code = "model-served-twice"

    def __init__(self, name: str, version: str, first: str, second: str) -> None:
        super().__init__(
            f"two bundles are {name} {version}",
            why=f"{first}\n{second}",
            hint="name each bundle once; bundles of one name need different versions",
        )


class AddressUnusable(UserError):
    code = "address-unusable"

    def __init__(self, host: str, port: int, why: str) -> None:
        super().__init__(
            f"cannot listen on {host}, port {port}",
            why=why,
            hint="choose a different --port, or an address of this machine",
        )


# -- the lockfile, the cache and repeated builds ---------------------------------------------


class LockMissing(UserError):
    code = "lock-missing"

    def __init__(self, path: str) -> None:
        super().__init__(f"no lockfile found at {path}", hint="write it with `package build --lock`, and commit it")


class LockInvalid(UserError):
    code = "lock-invalid"

    def __init__(self, path: str, why: str) -> None:
        super().__init__(f"{path} is not a lockfile", why=why, hint="rewrite it with `package build --lock`")


class LockUnwritable(UserError):
    code = "lock-unwritable"

    def __init__(self, path: str, why: str) -> None:
        super().__init__(f"cannot write {path}", why=why, hint="--lock needs write access to the manifest's folder")


class LockSchemaUnknown(UserError):
    code = "lock-schema-unknown"

    def __init__(self, path: str, schema: int) -> None:
        super().__init__(
            f"unsupported lockfile schema {schema} in {path}: {_SUPPORTED_SCHEMA}",
            hint="upgrade packager, or rewrite the lockfile with `package build --lock`",
        )


class LockDrifted(Refused):
    code = "lock-drifted"

    def __init__(self, path: str, differences: Sequence[str]) -> None:
        super().__init__(
            f"this build does not match {path}",
            why="\n".join(differences),
            hint="restore what changed, or accept the changes with `package build --lock`",
        )


class InputChanged(UserError):
    code = "input-changed"

    def __init__(self, what: str) -> None:
        super().__init__(f"{what} changed during the build", hint="build again when it is complete")


class CacheUnusable(UserError):
    code = "cache-unusable"

    def __init__(self, why: str) -> None:
        super().__init__("cannot use the cache", why=why, hint="set PACKAGER_CACHE to a folder of your own")


class CacheDiffers(Refused):
    code = "cache-differs"

    def __init__(self, stages: Sequence[str]) -> None:
        super().__init__(
            "stages that were rebuilt do not match the cache",
            why="\n".join(stages),
            hint="find what affects the outputs without being an input of the stage; the cache now has the new outputs",
        )


class RebuildFailed(UserError):
    code = "rebuild-failed"

    def __init__(self, output: str) -> None:
        super().__init__("the build in another process failed", why=output, hint="fix the error above, and try again")


class BuildNotRepeatable(Refused):
    code = "build-not-repeatable"

    def __init__(self, differences: Sequence[str]) -> None:
        super().__init__(
            "a second build of the same inputs produced different bytes",
            why="\n".join(differences),
            hint="check what the module takes from the process: time, paths, random numbers, the order of a set",
        )


# -- checkpoints of a training loop ----------------------------------------------------------


class RunSettingsWrong(UserError):
    code = "run-settings"

    def __init__(self, why: str) -> None:
        super().__init__("invalid settings for a run's checkpoints", why=why)


class StateNotExpressible(UserError):
    code = "state-not-expressible"

    def __init__(self, name: str, kind: str) -> None:
        super().__init__(
            f"cannot save {name} without pickle",
            why=f"it is {kind}",
            hint="save tensors, arrays, numbers, text, and dicts, lists and tuples of them",
        )


class CheckpointNotSaved(UserError):
    code = "checkpoint-not-saved"

    def __init__(self, path: str, why: str) -> None:
        super().__init__(
            f"cannot save the checkpoint {path}",
            why=why,
            hint="fix the cause, and save again; checkpoints saved earlier are intact",
        )


class RankFailed(UserError):
    code = "rank-failed"

    def __init__(self, message: str, why: str) -> None:
        super().__init__(message, why=why, hint="look at the last output of that rank")


class NoCheckpointYet(UserError):
    code = "no-checkpoint-yet"

    def __init__(self, folder: str, why: str) -> None:
        super().__init__(
            f"no checkpoint to restore in {folder}",
            why=why,
            hint="start from the beginning if manager.latest() is None",
        )


class CheckpointDamaged(Refused):
    code = "checkpoint-damaged"

    def __init__(self, path: str, why: str) -> None:
        super().__init__(
            f"{path} is damaged or was modified",
            why=why,
            hint="restore a different checkpoint of the run, or fetch this one again",
        )


class RunSchemaUnknown(UserError):
    code = "run-schema-unknown"

    def __init__(self, path: str, schema: object) -> None:
        super().__init__(f"unsupported schema {schema!r} in {path}: {_SUPPORTED_SCHEMA}", hint="upgrade packager")


class TrainingStateDiffers(UserError):
    code = "training-state-differs"

    def __init__(self, path: str, differences: Sequence[str]) -> None:
        super().__init__(
            f"{path} does not match the objects to restore; nothing was changed",
            why="\n".join(differences),
            hint="build the model, optimizer and scheduler as they were when the checkpoint was saved",
        )


class HuggingFaceExportRefused(UserError):
    code = "huggingface-export"

    def __init__(self, folder: str, why: str, hint: str) -> None:
        super().__init__(f"nothing was exported to {folder}", why=why, hint=hint)


# -- the command line -----------------------------------------------------------------------


class Usage(UserError):
    code = "usage"

    def __init__(self, message: str, command: str) -> None:
        super().__init__(message, hint=f"run `{command} --help` for usage")
