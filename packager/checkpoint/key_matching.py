"""Fit a state dict to a module: names, shapes, and what is left over on either side.

Training wraps modules, and each wrapper leaves a prefix on every key: `module.` (DataParallel and
DistributedDataParallel), `_orig_mod.` (torch.compile), `_fsdp_wrapped_module.` (FSDP),
`_checkpoint_wrapped_module.` (activation checkpointing), `model.` (a Lightning module's attribute). They come
in any nesting, and around parts of a module too. And a module may wrap what was trained, which puts a prefix on
the module's side. `prefix: auto` strips the wrappers' prefixes, or adds the name of one of the module's
children, where more keys fit the module for it.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import Any, TypeVar

import torch

from packager.errors import StateDoesNotFit

Value = TypeVar("Value")
_RESERVED_WRAPPERS = ("_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.", "_forward_module.")
WRAPPERS = ("module.", *_RESERVED_WRAPPERS, "model.", "net.", "network.")
_MAX_ROWS = 20  # a table longer than this helps nobody


@dataclass(frozen=True)
class Fit:
    """The state under the module's own names, what was done to prefixes (`module.`, `+net.`), and what was forgiven.

    `narrowed` says which tensors have lost something on the way into the module's dtypes. `names` are the names in the
    checkpoint, by the module's.
    """

    state: Mapping[str, torch.Tensor]
    prefix: str
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    downcast: tuple[str, ...] = ()
    names: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Allowances:
    """What may be missing or left over: nothing where `strict`, but for the patterns."""

    strict: bool
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]


def fit(
    state: Mapping[str, torch.Tensor],
    shapes: Mapping[str, Sequence[int]],
    *,
    prefix: str = "auto",
    strict: bool = True,
    allow_missing: Sequence[str] = (),
    allow_unexpected: Sequence[str] = (),
    tied: Sequence[frozenset[str]] = (),
    where: str | None = None,
) -> Fit:
    """Rename a state dict's keys to a module's; `shapes` are those of the module's own state dict.

    `tied` are groups of names that share one tensor: one of them in the checkpoint is enough.
    Raises `StateDoesNotFit` that lists missing and unexpected keys with their nearest names, and a
    table of shapes that differ.
    """
    prefix_used, names = _rename_keys({name: name for name in state}, shapes, prefix, where)
    renamed = {name: state[in_file] for name, in_file in names.items()}
    _refuse_untied(renamed, tied, where)
    present = set(renamed)
    covered = {name for group in tied if group & present for name in group}
    missing = [name for name in shapes if name not in renamed and name not in covered]
    unexpected = [name for name in renamed if name not in shapes]
    wrong = [
        (name, tuple(shapes[name]), tuple(tensor.shape))
        for name, tensor in renamed.items()
        if name in shapes and tuple(tensor.shape) != tuple(shapes[name])
    ]
    forgiven = Allowances(strict, tuple(allow_missing), tuple(allow_unexpected))
    check_key_match(
        missing, unexpected, wrong, forgiven, checkpoint_names=list(renamed), module_names=list(shapes), where=where
    )
    kept = {name: tensor for name, tensor in renamed.items() if name in shapes}
    return Fit(kept, prefix_used, tuple(missing), tuple(unexpected), names=names)


def module_metadata(
    names: Mapping[str, str], saved: Mapping[str, Mapping[str, Any]], current: Mapping[str, Mapping[str, Any]]
) -> dict[str, dict[str, Any]]:
    """Return what `load_state_dict` tells each module of its saved state, by the module's path: its version above all.

    `names` are those of `Fit`, `saved` is the checkpoint's `_metadata`, under its own paths, and `current` that of the
    module's state dict. A file without metadata, as safetensors are, counts as saved by the module as it is now: a
    fresh state dict would say the same, and some modules refuse to load without a version. So does a module around
    what was trained, of which the file says nothing. Otherwise a module that is not in `saved` gets none, as in torch.
    """
    if not saved:
        return {path: dict(metadata) for path, metadata in current.items()}
    paths = _module_paths(names)
    found = {}
    for path, metadata in current.items():
        known = path
        while known and known not in paths:  # a module without tensors lies where the one around it does
            known = known.rpartition(".")[0]
        if known not in paths:
            found[path] = dict(metadata)
            continue
        below = path[len(known) :].lstrip(".")
        in_file = ".".join(part for part in (paths[known], below) if part)
        if in_file in saved:
            found[path] = dict(saved[in_file])
    return found


def _module_paths(names: Mapping[str, str]) -> dict[str, str]:
    """Return the path in the checkpoint of each module that has tensors, and of those around it, by its own path."""
    paths: dict[str, str] = {}
    for name, in_file in names.items():
        ours, theirs = name.split(".")[:-1], in_file.split(".")[:-1]
        paths.setdefault(".".join(ours), ".".join(theirs))
        while ours and theirs:
            last = ours.pop()
            while last in theirs and theirs.pop() != last:
                pass  # a wrapper's own name, which only the checkpoint has
            paths.setdefault(".".join(ours), ".".join(theirs))
    return paths


def _refuse_untied(
    state: Mapping[str, torch.Tensor], tied: Sequence[frozenset[str]], where: str | None
) -> None:  # fmt: skip
    """Names that share one tensor in the module must have one value in the checkpoint: else one of them is lost."""
    for group in tied:
        first, *others = [name for name in sorted(group) if name in state] or [""]
        differing = [name for name in others if not torch.equal(state[first], state[name])]
        if differing:
            why = f"{first} and {differing[0]} are one tensor in the module, and two in the checkpoint"
            raise StateDoesNotFit(where, why, "untie them in the module, or save what it really has")


def check_key_match(
    missing: Sequence[str],
    unexpected: Sequence[str],
    shape_mismatches: Sequence[tuple[str, tuple[int, ...], tuple[int, ...]]],
    allowances: Allowances,
    *,
    checkpoint_names: Sequence[str],
    module_names: Sequence[str],
    where: str | None,
) -> None:
    """Refuse what is missing, left over, or of another shape (name, the module's, the checkpoint's).

    Raises `StateDoesNotFit`.
    """
    refused_missing = [name for name in missing if allowances.strict and not _matches_any(name, allowances.missing)]
    refused_unexpected = [
        name for name in unexpected if allowances.strict and not _matches_any(name, allowances.unexpected)
    ]
    if refused_missing or refused_unexpected or shape_mismatches:
        # A name that fits is taken: only what has no counterpart may be another's.
        left_over = sorted(set(checkpoint_names) - set(module_names))
        without = sorted(set(module_names) - set(checkpoint_names))
        why = _format_mismatch(refused_missing, refused_unexpected, shape_mismatches, left_over, without)
        raise StateDoesNotFit(where, why, _suggest_fix(refused_missing, refused_unexpected))


def _rename_keys(
    state: Mapping[str, str], shapes: Mapping[str, Sequence[int]], prefix: str, where: str | None
) -> tuple[str, dict[str, str]]:
    """The state's values under new keys, and what was done to them: `module.` for stripped, `+net.` for added."""
    if prefix not in ("auto", ""):
        _check_prefix(state, prefix, where)
    if prefix != "auto":
        shorter = {key.removeprefix(prefix): value for key, value in state.items()}
        if len(shorter) < len(state):
            twice = next(key for key in state if key.startswith(prefix) and key.removeprefix(prefix) in state)
            why = f"without checkpoint.prefix {prefix!r}, {twice} and {twice.removeprefix(prefix)} are one key"
            raise StateDoesNotFit(where, why, "take one of them out of the checkpoint")
        return prefix, shorter
    own = dict(zip(_strip_inner_names(dict.fromkeys(shapes), _RESERVED_WRAPPERS), shapes, strict=True))
    used, renamed = _strip_wrappers(state, own)  # a part of the module may be compiled, and so in its names
    return used, {own.get(key, key): value for key, value in renamed.items()}


def _strip_wrappers(state: Mapping[str, str], names: Collection[str]) -> tuple[str, dict[str, str]]:
    stripped = list(_iterate_stripped(state))
    # `module.` in the middle of a name: a part of the model was wrapped, or the module has a child of that name.
    stripped += [(f"{removed}*.module.", _strip_inner_names(variant, ("module.",))) for removed, variant in stripped]
    children = dict.fromkeys(name.partition(".")[0] + "." for name in names if "." in name)
    added = [
        (f"{removed}+{child}", {child + key: value for key, value in variant.items()})
        for removed, variant in stripped
        for child in children
    ]
    # The first of the best: stripping less is preferred, and adding comes last.
    return max([*stripped, *added], key=lambda variant: sum(key in names for key in variant[1]))


def _iterate_stripped(state: Mapping[str, str]) -> Iterator[tuple[str, dict[str, str]]]:
    """The state as it is, and with one wrapper after the other taken off."""
    # A wrapper may sit on a part of the model too; a reserved name goes anywhere.
    current = _strip_inner_names(state, _RESERVED_WRAPPERS)
    removed = ""
    yield removed, current
    while wrapper := next((one for one in WRAPPERS if any(key.startswith(one) for key in current)), None):
        # Not every key need wear it: a Lightning file holds metrics' buffers beside the model's keys.
        shorter = {key.removeprefix(wrapper): value for key, value in current.items()}
        if len(shorter) < len(current):
            return  # two keys would become one
        current, removed = shorter, removed + wrapper
        yield removed, current


def _strip_inner_names(state: Mapping[str, Value], names: Sequence[str]) -> dict[str, Value]:
    """The state without these names in the middle of its keys; as it is where two keys would become one."""
    middle = re.compile(rf"(?<=\.)(?:{'|'.join(re.escape(name) for name in names)})")
    shorter = {middle.sub("", key): value for key, value in state.items()}
    return shorter if len(shorter) == len(state) else dict(state)


def _check_prefix(state: Mapping[str, str], prefix: str, where: str | None) -> None:
    if state and not any(key.startswith(prefix) for key in state):
        known = {key[: dot + 1] for key in state for dot, letter in enumerate(key) if letter == "."}
        near = get_close_matches(prefix, sorted(known), n=1)
        shown = ", ".join(list(state)[:5]) + (", …" if len(state) > 5 else "")
        why = f"no key starts with checkpoint.prefix {prefix!r}\nthe checkpoint has: {shown}"
        raise StateDoesNotFit(where, why, f"did you mean {near[0]!r}?" if near else "prefix: auto finds wrappers' own")


def _matches_any(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _format_mismatch(
    missing: Sequence[str],
    unexpected: Sequence[str],
    wrong: Sequence[tuple[str, tuple[int, ...], tuple[int, ...]]],
    left_over: Sequence[str],
    without: Sequence[str],
) -> str:
    lines = _format_names("missing from the checkpoint", missing, left_over, "the checkpoint has")
    lines += _format_names("not in the module", unexpected, without, "the module has")
    if wrong:
        width = max(len(name) for name, _, _ in wrong[:_MAX_ROWS])
        lines.append("shapes that differ:")
        lines.append(f"  {'':{width}}  {'module':18}  checkpoint")
        lines += [
            f"  {name:{width}}  {_format_shape(ours):18}  {_format_shape(theirs)}"
            for name, ours, theirs in wrong[:_MAX_ROWS]
        ]
        lines += [f"  and {len(wrong) - _MAX_ROWS} more"] if len(wrong) > _MAX_ROWS else []
    return "\n".join(lines)


def _format_shape(shape: Sequence[int]) -> str:
    return "[" + ", ".join(str(size) for size in shape) + "]"


def _format_names(title: str, names: Sequence[str], others: Sequence[str], owner: str) -> list[str]:
    if not names:
        return []
    lines = [f"{title} ({len(names)}):"]
    for name in names[:_MAX_ROWS]:
        near = get_close_matches(name, others, n=1, cutoff=0.7)
        lines.append(f"  {name}" + (f"  ({owner} {near[0]})" if near else ""))
    return lines + ([f"  and {len(names) - _MAX_ROWS} more"] if len(names) > _MAX_ROWS else [])


def _suggest_fix(missing: Sequence[str], unexpected: Sequence[str]) -> str:
    if missing and unexpected:
        prefixes = {
            theirs.removesuffix(ours) for theirs in unexpected for ours in missing if theirs.endswith(f".{ours}")
        }
        if len(prefixes) == 1:
            return f"checkpoint.prefix: {prefixes.pop()} takes that off each key; auto finds wrappers' own"
        return "set checkpoint.prefix if a prefix is in the way, or model.kwargs if the module is another one"
    if missing:
        return "checkpoint.allow_missing takes patterns of keys that may stay at their initial value"
    if unexpected:
        return "checkpoint.allow_unexpected takes patterns of keys that may be left over"
    return "model.kwargs must be those that the checkpoint was trained with"
