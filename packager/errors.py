"""Every way in which the answer can be no, one class each.

An error knows its code (kebab-case, listed in docs/errors.md), the exit status it leads to, its
wording and its hint. It is raised where the fault is found, rendered by `render`, and turned
into an exit status in one place: `packager.cli.main`. Exit status 1 means the answer is no
(`Refused`), 2 means that the user must change something (`UserError`); whatever is not a
`PackagerError` is a bug of ours, keeps its traceback and ends with 3.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, ClassVar


@dataclass(frozen=True)
class Problem:
    """One of several findings under one error: where it is, what is wrong, what to do."""

    message: str
    where: str | None = None
    hint: str | None = None


class PackagerError(Exception):
    """Base of the tree. `where` reads `file:line: field`, `why` gives the facts behind the message."""

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
        """All that is known of it: what a service's log says where it is not caught."""
        return render_error(self)

    def __reduce__(self) -> tuple[Any, ...]:
        """How it goes to another process, where it is the same error."""
        return _rebuild_error, (type(self), self.__dict__)

    def replace_path(self, old: str, new: str) -> None:
        """Say `new` wherever `old` is named: for a temporary file, what the user knows it as."""
        self.message = self.message.replace(old, new)
        self.where = self.where and self.where.replace(old, new)
        self.why = self.why and self.why.replace(old, new)
        self.hint = self.hint and self.hint.replace(old, new)
        self.args = (self.message,)

    def as_json(self) -> dict[str, object]:
        """The object that `--json` prints under `error`."""
        found: dict[str, object] = {
            "code": self.code,
            "message": self.message if not self.why else f"{self.message}\n{self.why}",
            "where": self.where,
            "hint": self.hint,
        }
        if self.problems:
            found["problems"] = [
                {"message": one.message, "where": one.where, "hint": one.hint} for one in self.problems
            ]
        return found


def _rebuild_error(kind: type[PackagerError], facts: dict[str, Any]) -> PackagerError:
    error = kind.__new__(kind, facts["message"])
    error.__dict__.update(facts)
    return error


def render_error(error: PackagerError) -> str:
    """The error as plain text: `error[code]: …`, ` --> where`, why, each problem, `hint: …`."""
    lines = [f"error[{error.code}]: {error.message}"]
    if error.where:
        lines.append(f" --> {error.where}")
    if error.why:
        lines += [f"  {line}" for line in error.why.splitlines()]
    for problem in error.problems:
        if problem.where:
            lines.append(f" --> {problem.where}")
        lines += [f"  {line}" for line in problem.message.splitlines()]
        if problem.hint:
            lines.append(f"  hint: {problem.hint}")
    if error.hint:
        lines.append(f"hint: {error.hint}")
    return "\n".join(lines)


def did_you_mean(name: str, candidates: Sequence[str]) -> str | None:
    """The hint for a name that is not known: the nearest that is, or else all of them."""
    near = get_close_matches(name, candidates, n=1, cutoff=0.6)
    if near:
        return f"did you mean {near[0]!r}?"
    return f"known here: {', '.join(candidates)}" if candidates else None


class UserError(PackagerError):
    """The user must change something. Exit status 2."""

    exit_status = 2


class Refused(PackagerError):
    """The question was understood, and the answer is no. Exit status 1."""

    exit_status = 1


# -- the manifest ---------------------------------------------------------------------------


class ManifestNotFound(UserError):
    code = "manifest-not-found"

    def __init__(self, path: str, why: str | None = None) -> None:
        super().__init__(
            f"there is no manifest at {path}",
            why=why,
            hint="give the path of a package.yaml; README.md shows a first one",
        )


class ManifestUnreadable(UserError):
    code = "manifest-unreadable"

    def __init__(self, path: str, cause: str) -> None:
        super().__init__(f"{path} cannot be read: {cause}", hint="a manifest is a UTF-8 text file")


class ManifestEmpty(UserError):
    code = "manifest-empty"

    def __init__(self, path: str) -> None:
        super().__init__(
            f"{path} says nothing",
            hint="a manifest needs at least schema, name, version, model, checkpoint and inputs",
        )


class ManifestSyntax(UserError):
    code = "manifest-syntax"

    def __init__(self, where: str, cause: str) -> None:
        super().__init__("this is not YAML", where=where, why=cause)


class ManifestSchemaUnknown(UserError):
    code = "manifest-schema-unknown"

    def __init__(self, where: str, found: object) -> None:
        super().__init__(
            f"this packager reads manifests of schema 1, and this one says {found!r}",
            where=where,
            hint="upgrade packager, or set schema: 1",
        )


class ManifestInvalid(UserError):
    code = "manifest-invalid"

    def __init__(self, path: str, problems: Sequence[Problem]) -> None:
        count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        super().__init__(f"{count} in {path}", problems=problems, hint="`package schema manifest` prints every field")


# -- the module -----------------------------------------------------------------------------


class EntryNotFound(UserError):
    code = "entry-not-found"

    def __init__(self, entry: str, where: str, why: str, hint: str | None = None) -> None:
        super().__init__(f"model.entry {entry!r} leads nowhere", where=where, why=why, hint=hint)


class EntryImportFailed(UserError):
    code = "entry-import-failed"

    def __init__(self, entry: str, where: str, why: str) -> None:
        super().__init__(
            f"importing {entry!r} failed",
            where=where,
            why=why,
            hint="the file must import in a plain Python process, with its folder on the path",
        )


class EntryNotModule(UserError):
    code = "entry-not-a-module"

    def __init__(self, entry: str, where: str, found: str) -> None:
        super().__init__(
            f"{entry!r} gives no torch.nn.Module",
            where=where,
            why=f"found: {found}",
            hint="name a Module class, or a function that returns a Module",
        )


class ModelArgumentsWrong(UserError):
    code = "model-arguments"

    def __init__(self, entry: str, where: str, why: str, hint: str | None = None) -> None:
        super().__init__(f"{entry!r} does not take these kwargs", where=where, why=why, hint=hint)


class ModelConstructionFailed(UserError):
    code = "model-construction-failed"

    def __init__(self, entry: str, where: str, why: str) -> None:
        super().__init__(f"constructing {entry!r} failed", where=where, why=why)


class EntryNeeded(UserError):
    code = "entry-needed"

    def __init__(self, where: str, checkpoint: str) -> None:
        super().__init__(
            f"model.entry is missing, and {checkpoint} does not say what module it belongs to",
            where=where,
            hint="write entry: model.py:Net; a Hugging Face folder, TorchScript and .pt2 need none",
        )


class TransformersMissing(UserError):
    code = "transformers-missing"

    def __init__(self, where: str, checkpoint: str) -> None:
        super().__init__(
            f"{checkpoint} without a model.entry needs transformers, which is not installed",
            where=where,
            hint="pip install transformers, or name the module in model.entry",
        )


class InputsDoNotFit(UserError):
    code = "inputs-do-not-fit"

    def __init__(self, where: str, why: str, hint: str) -> None:
        super().__init__("forward() does not take these inputs", where=where, why=why, hint=hint)


class ForwardFailed(UserError):
    code = "forward-failed"

    def __init__(self, where: str, case: str, why: str) -> None:
        super().__init__(
            f"forward() fails on the sample {case}",
            where=where,
            why=why,
            hint="check dtype, shape and range of the inputs, and the limits of the dims; a size that must be a "
            "multiple, or below another, can only be given as a number",
        )


class OutputsUnsupported(UserError):
    code = "outputs-unsupported"

    def __init__(self, where: str, why: str, hint: str | None = None) -> None:
        super().__init__("forward() returns what a bundle cannot hold", where=where, why=why, hint=hint)


class DecisionDoesNotFit(UserError):
    code = "decision-does-not-fit"

    def __init__(self, where: str, why: str, hint: str | None) -> None:
        super().__init__("parity.decisions does not fit what forward() returns", where=where, why=why, hint=hint)


class NotRepeatable(UserError):
    code = "not-repeatable"

    def __init__(self, where: str, output: str, case: str) -> None:
        super().__init__(
            "forward() gives something else when it is run again",
            where=where,
            why=f"the output {output} of the case {case} differs between two calls with the same inputs",
            hint="forward() must not draw random numbers, as F.dropout without training=self.training does, "
            "nor keep what it computes from an input, as a first call may",
        )


class NoiseTooLarge(UserError):
    code = "noise-too-large"

    def __init__(self, where: str, output: str, relative: str, measured: str) -> None:
        super().__init__(
            "this module's own arithmetic is too inexact for a proof",
            where=where,
            why=f"the output {output} has a noise floor of {relative} of its own size, measured {measured}",
            hint="narrow the range of the inputs, compute more precisely, or set parity.tolerance",
        )


class DecidedByTies(UserError):
    code = "decided-by-ties"

    def __init__(self, where: str, example: str, steady: int, cases: int) -> None:
        super().__init__(
            "what this module gives hangs on ties, so no artifact could be held to it",
            where=where,
            why=f"inputs moved by a few roundings give something else on {cases - steady} of {cases} cases: {example}",
            hint="break ties in forward(), round what is ranked, or return the scores instead of their order",
        )


class DataDoesNotFit(UserError):
    code = "data-does-not-fit"

    def __init__(
        self, where: str, why: str, hint: str = "one array for each input, by its name, in its dtype and shape"
    ) -> None:
        super().__init__("the inputs do not fit the signature", where=where, why=why, hint=hint)


# -- the checkpoint -------------------------------------------------------------------------


class Usage(UserError):
    code = "usage"

    def __init__(self, message: str, command: str) -> None:
        super().__init__(message, hint=f"{command} --help says what there is")


class InferenceFailed(UserError):
    code = "inference-failed"

    def __init__(self, backend: str, error: Exception) -> None:
        super().__init__(
            f"the {backend} model cannot run on these values",
            why=" ".join(str(error).split()),
            hint="are they in the ranges that the manifest gave? config.json has shapes and dtypes, and no ranges",
        )


class CheckpointNotFound(UserError):
    code = "checkpoint-not-found"

    def __init__(self, path: str, where: str | None, why: str | None = None) -> None:
        super().__init__(
            f"there is no checkpoint at {path}",
            where=where,
            why=why,
            hint="paths are relative to the manifest's folder" if where else None,
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
        super().__init__(f"{path} is not a checkpoint that can be read", where=where, why=why, hint=hint)


class CheckpointNeedsCode(UserError):
    code = "checkpoint-needs-code"

    def __init__(self, path: str, where: str | None, names: Sequence[str]) -> None:
        super().__init__(
            f"{path} wants to run code while it is read; nothing of it was run",
            where=where,
            why="it asks for: " + ", ".join(names),
            hint="save a state dict instead, or set checkpoint.trust_pickle: true if you wrote this file",
        )


class CheckpointDigestWrong(UserError):
    code = "checkpoint-digest"

    def __init__(self, path: str, where: str | None, expected: str, found: str) -> None:
        super().__init__(
            f"{path} is not the checkpoint that the manifest pins",
            where=where,
            why=f"pinned: {expected}\nfound:  {found}",
            hint="restore the file, or pin the new digest",
        )


class WeightsNotFound(UserError):
    code = "weights-not-found"

    def __init__(self, weights: str, where: str | None, why: str, hint: str | None = None) -> None:
        super().__init__(f"checkpoint.weights: {weights} finds no state dict", where=where, why=why, hint=hint)


class StateDoesNotFit(UserError):
    code = "state-does-not-fit"

    def __init__(self, where: str | None, why: str, hint: str) -> None:
        super().__init__("the checkpoint does not fit the module", where=where, why=why, hint=hint)


class WeightsNotFinite(UserError):
    code = "weights-not-finite"

    def __init__(self, where: str | None, names: Sequence[str]) -> None:
        more = f"\nand {len(names) - 20} more" if len(names) > 20 else ""
        super().__init__(
            "the checkpoint holds weights that are not finite",
            where=where,
            why="NaN or infinity in: " + ", ".join(names[:20]) + more,
            hint="the training diverged before this checkpoint was written: take an earlier one",
        )


# -- a checkpoint's URL ---------------------------------------------------------------------


class UrlUnsupported(UserError):
    code = "url-unsupported"

    def __init__(self, url: str, where: str | None, why: str, hint: str) -> None:
        super().__init__(f"{url} cannot be opened", where=where, why=why, hint=hint)


class UrlNotFound(UserError):
    code = "url-not-found"

    def __init__(self, url: str, where: str | None, why: str) -> None:
        super().__init__(
            f"there is nothing at {url}",
            where=where,
            why=why,
            hint="check the host, the bucket and the name; some servers say so of what they do not let you see, too",
        )


class UrlRefused(UserError):
    code = "url-refused"

    def __init__(self, url: str, where: str | None, why: str, hint: str) -> None:
        super().__init__(f"{url} may not be read with the credentials that were found", where=where, why=why, hint=hint)


class UrlUnreachable(UserError):
    code = "url-unreachable"

    def __init__(self, url: str, where: str | None, why: str, hint: str) -> None:
        super().__init__(f"{url} could not be read", where=where, why=why, hint=hint)


class UrlNotAFile(UserError):
    code = "url-not-a-file"

    def __init__(self, url: str, where: str | None, why: str, hint: str) -> None:
        super().__init__(f"{url} is no file", where=where, why=why, hint=hint)


class DownloadRefused(UserError):
    code = "download-refused"

    def __init__(self, url: str, where: str | None, why: str, hint: str) -> None:
        super().__init__(f"{url} was not downloaded", where=where, why=why, hint=hint)


# -- the build ------------------------------------------------------------------------------


class ForwardChangesWeights(UserError):
    code = "forward-changes-weights"

    def __init__(self, where: str, names: Sequence[str]) -> None:
        super().__init__(
            "forward() writes to the module's weights",
            where=where,
            why=f"changed in place: {', '.join(names[:10])}"
            + (f" and {len(names) - 10} more" if len(names) > 10 else ""),
            hint="an artifact's weights are constants; nn.Embedding(max_norm=…) writes so: renormalize before you save",
        )


class ExportFailed(UserError):
    code = "export-failed"

    def __init__(self, where: str, causes: Sequence[Problem], hint: str) -> None:
        super().__init__("no exporter can express this model in ONNX", where=where, problems=causes, hint=hint)


class TorchScriptFailed(UserError):
    code = "torchscript-failed"

    def __init__(self, where: str, causes: Sequence[Problem]) -> None:
        super().__init__(
            "the module cannot be made into TorchScript",
            where=where,
            problems=causes,
            hint="torchscript.method: none ships ONNX alone",
        )


class ParityFailed(Refused):
    code = "parity-failed"

    def __init__(self, artifacts: Sequence[Problem], otherwise: str, *, frozen_branches: Sequence[str]) -> None:
        advice = "parity.tolerance sets explicit limits"
        if frozen_branches:
            lines = ", ".join(dict.fromkeys(frozen_branches))
            advice = f"at {lines}, torch.where keeps both sides of a branch, and arithmetic in integers a size"
        super().__init__(
            "the artifacts do not compute what the PyTorch module computes; no bundle was written",
            problems=artifacts,
            hint=f"{advice}; {otherwise}",
        )


class OutputRefused(UserError):
    code = "output-refused"

    def __init__(self, path: str, why: str, hint: str, *, what: str = "the bundle") -> None:
        super().__init__(f"{what} cannot be written to {path}", why=why, hint=hint)


class AssetNotFound(UserError):
    code = "asset-not-found"

    def __init__(self, path: str, where: str, why: str) -> None:
        super().__init__(f"the asset {path!r} cannot be bundled", where=where, why=why)


class ExtraMissing(UserError):
    code = "extra-missing"

    def __init__(self, module: str, what: str, hint: str = "pip install 'torch-packager[build]'") -> None:
        super().__init__(f"{what} needs {module}, which is not installed", hint=hint)


# -- the bundle -----------------------------------------------------------------------------


class NotABundle(UserError):
    code = "not-a-bundle"

    def __init__(self, path: str, why: str) -> None:
        super().__init__(f"{path} is not a bundle", why=why, hint="give a bundle's folder, or its archive, a .zip")


class FingerprintMalformed(UserError):
    code = "fingerprint-malformed"

    def __init__(self, given: str) -> None:
        super().__init__(
            f"{given!r} is no fingerprint",
            why="a bundle's is h1: and 44 characters of base64",
            hint="it stands in the bundle's FINGERPRINT where it was built, and `package build` prints it",
        )


class ArchiveRefused(UserError):
    code = "archive-refused"

    def __init__(self, path: str, why: str, hint: str) -> None:
        super().__init__(f"{path} cannot be unpacked", why=why, hint=hint)


class BundleSchemaUnknown(UserError):
    code = "bundle-schema-unknown"

    def __init__(self, path: str, found: object) -> None:
        super().__init__(
            f"{path} is a bundle of schema {found!r}, and this packager reads schema 1",
            hint="upgrade packager",
        )


class ModelUnreadable(UserError):
    code = "model-unreadable"

    def __init__(self, path: str, cause: str) -> None:
        super().__init__(
            f"{path} is no ONNX model that can be read",
            why=cause,
            hint="fetch the bundle again, or build it anew",
        )


class IntegrityFailed(Refused):
    code = "integrity-failed"

    def __init__(self, path: str, why: str) -> None:
        super().__init__(f"{path} is not what was built", why=why, hint="fetch the bundle again, or build it anew")


class FingerprintWrong(Refused):
    code = "fingerprint-wrong"

    def __init__(self, path: str, expected: str, found: str) -> None:
        super().__init__(
            f"{path} is another bundle than the one asked for",
            why=f"asked for: {expected}\nfound:     {found}",
        )


class BackendUnavailable(UserError):
    code = "backend-unavailable"

    def __init__(self, path: str, why: str, hint: str) -> None:
        super().__init__(f"{path} cannot be loaded", why=why, hint=hint)


class SelftestFailed(Refused):
    code = "selftest-failed"

    def __init__(self, path: str, why: str) -> None:
        super().__init__(
            f"{path} does not compute here what it computed when it was built",
            why=why,
            hint="`package verify` replays every case; compare the onnxruntime version with evidence/build.json",
        )


# -- the lock, and builds that must repeat ----------------------------------------------------


class LockMissing(UserError):
    code = "lock-missing"

    def __init__(self, path: str) -> None:
        super().__init__(f"there is no lock at {path}", hint="write it with `package build --lock`, and commit it")


class LockInvalid(UserError):
    code = "lock-invalid"

    def __init__(self, path: str, why: str) -> None:
        super().__init__(f"{path} is no lock", why=why, hint="write it anew with `package build --lock`")


class LockUnwritable(UserError):
    code = "lock-unwritable"

    def __init__(self, path: str, why: str) -> None:
        super().__init__(f"{path} cannot be written", why=why, hint="--lock writes it beside the manifest")


class LockSchemaUnknown(UserError):
    code = "lock-schema-unknown"

    def __init__(self, path: str, schema: int) -> None:
        super().__init__(
            f"{path} is of schema {schema}, and this packager reads schema 1", hint="upgrade packager, or write it anew"
        )


class LockDrifted(Refused):
    code = "lock-drifted"

    def __init__(self, path: str, differences: Sequence[str]) -> None:
        super().__init__(
            f"this build is not the one of {path}",
            why="\n".join(differences),
            hint="restore what changed, or accept it with `package build --lock`",
        )


class InputChanged(UserError):
    code = "input-changed"

    def __init__(self, what: str) -> None:
        super().__init__(f"{what} changed while the bundle was being built", hint="build again when it is finished")


class CacheUnusable(UserError):
    code = "cache-unusable"

    def __init__(self, why: str) -> None:
        super().__init__("the cache cannot be used", why=why, hint="point PACKAGER_CACHE to a folder of your own")


class CacheDiffers(Refused):
    code = "cache-differs"

    def __init__(self, stages: Sequence[str]) -> None:
        super().__init__(
            "built anew, these stages are not what the cache held",
            why="\n".join(stages),
            hint="the new outputs are kept; something that is no input of the stage decides about it",
        )


class RebuildFailed(UserError):
    code = "rebuild-failed"

    def __init__(self, output: str) -> None:
        super().__init__("the build in another process failed", why=output, hint="mend what it says, and ask again")


class BuildNotRepeatable(Refused):
    code = "build-not-repeatable"

    def __init__(self, differences: Sequence[str]) -> None:
        super().__init__(
            "a second build of the same input gave other bytes",
            why="\n".join(differences),
            hint="look for what the module takes from the process: time, paths, random numbers, the order of a set",
        )


# -- training: checkpoints written and resumed -----------------------------------------------


class RunSettingsWrong(UserError):
    code = "run-settings"

    def __init__(self, why: str) -> None:
        super().__init__("these are no settings for a run's checkpoints", why=why)


class StateNotExpressible(UserError):
    code = "state-not-expressible"

    def __init__(self, place: str, found: str) -> None:
        super().__init__(
            f"{place} cannot be saved without pickle",
            why=f"it is {found}",
            hint="a checkpoint holds tensors, arrays, numbers, text, and dicts, lists and tuples of them",
        )


class CheckpointNotSaved(UserError):
    code = "checkpoint-not-saved"

    def __init__(self, path: str, why: str) -> None:
        super().__init__(
            f"the checkpoint {path} was not saved",
            why=why,
            hint="the checkpoints saved before it are as they were",
        )


class RankFailed(UserError):
    code = "rank-failed"

    def __init__(self, message: str, why: str) -> None:
        super().__init__(message, why=why, hint="see what that rank said last")


class NoCheckpointYet(UserError):
    code = "no-checkpoint-yet"

    def __init__(self, folder: str, why: str) -> None:
        super().__init__(
            f"there is nothing to restore in {folder}",
            why=why,
            hint="start from the beginning where manager.latest() is None",
        )


class CheckpointDamaged(Refused):
    code = "checkpoint-damaged"

    def __init__(self, path: str, why: str) -> None:
        super().__init__(
            f"{path} is not what was saved",
            why=why,
            hint="restore another checkpoint of the run, or fetch this one again",
        )


class RunSchemaUnknown(UserError):
    code = "run-schema-unknown"

    def __init__(self, path: str, found: object) -> None:
        super().__init__(f"{path} is of schema {found!r}, and this packager reads schema 1", hint="upgrade packager")


class TrainingStateDiffers(UserError):
    code = "training-state-differs"

    def __init__(self, path: str, differences: Sequence[str]) -> None:
        super().__init__(
            f"{path} does not fit what it is restored into; nothing was changed",
            why="\n".join(differences),
            hint="build model, optimizer and scheduler as they were when it was saved",
        )


class HuggingFaceExportRefused(UserError):
    code = "huggingface-export"

    def __init__(self, folder: str, why: str, hint: str) -> None:
        super().__init__(f"nothing was exported to {folder}", why=why, hint=hint)
