"""Fit a state dict to a module: match keys and shapes, and list the keys without a match on either side.

Training wraps modules, and each wrapper adds a prefix to every key: `module.` (DataParallel and
DistributedDataParallel), `_orig_mod.` (torch.compile), `_fsdp_wrapped_module.` (FSDP), `_checkpoint_wrapped_module.`
(activation checkpointing), `model.` (a Lightning module's attribute). They come in any nesting, and around parts of a
module too. Conversely, the module may wrap the one that was trained, which adds a prefix to its own names.
`prefix: auto` strips the prefixes of wrappers, or adds the name of one of the module's children, if more keys fit the
module that way.
"""

from __future__ import annotations

import re
from collections import Counter
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
_MAX_ROWS = 20  # of a table in an error message
_MAX_CANDIDATES = 1000  # among which a similar name is looked for
_MAX_WRAPPERS = 16  # around each other


@dataclass(frozen=True)
class Fit:
    """A state dict under the module's own names.

    `prefix` says what was stripped from the keys (`module.`) or added (`+net.`); `missing` and `unexpected` are the
    keys that the manifest allows to be; `downcast` lists the tensors that lost precision in the module's dtypes;
    `names` maps the module's names to those in the checkpoint.
    """

    state: Mapping[str, torch.Tensor]
    prefix: str
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    downcast: tuple[str, ...] = ()
    names: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Allowances:
    """The keys that may be missing or left over: if `strict`, only those that match the patterns."""

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
    """Rename the keys of a state dict to those of a module, whose state dict has these `shapes`.

    `prefix` is stripped from the keys; `auto` finds it. `allow_missing` and `allow_unexpected` are patterns as in
    fnmatch; with `strict=False` any key may be missing or left over. `tied` are groups of names that share one tensor:
    the checkpoint needs only one of them. Raises `StateDoesNotFit`, which lists missing and unexpected keys with the
    most similar names, and a table of the shapes that differ.
    """
    prefix_used, names = _rename_keys({name: name for name in state}, shapes, prefix, where)
    renamed = {name: state[saved_name] for name, saved_name in names.items()}
    _refuse_untied(renamed, tied, where)
    present = set(renamed)
    covered = {name for group in tied if group & present for name in group}
    missing = [name for name in shapes if name not in renamed and name not in covered]
    unexpected = [name for name in renamed if name not in shapes]
    mismatches = [
        (name, tuple(shapes[name]), tuple(tensor.shape))
        for name, tensor in renamed.items()
        if name in shapes and tuple(tensor.shape) != tuple(shapes[name])
    ]
    allowed = Allowances(strict, tuple(allow_missing), tuple(allow_unexpected))
    check_key_match(
        missing, unexpected, mismatches, allowed, checkpoint_names=list(renamed), module_names=list(shapes), where=where
    )
    fitting = {name: tensor for name, tensor in renamed.items() if name in shapes}
    return Fit(fitting, prefix_used, tuple(missing), tuple(unexpected), names=names)


def module_metadata(
    names: Mapping[str, str], saved: Mapping[str, Mapping[str, Any]], current: Mapping[str, Mapping[str, Any]]
) -> dict[str, dict[str, Any]]:
    """Return the metadata, such as the version, that `load_state_dict` passes to each module, by the module's path.

    `names` are those of `Fit`, `saved` is the checkpoint's `_metadata`, under its own paths, and `current` that of the
    module's state dict. A file without metadata, such as safetensors, counts as saved by the module as it is now,
    because some modules refuse to load without a version. The same goes for a module around the one that was trained.
    Any other module that is not in `saved` gets no metadata, as in torch.
    """
    if not saved:
        return {path: dict(metadata) for path, metadata in current.items()}
    saved_paths = _saved_module_paths(names)
    result = {}
    for path, metadata in current.items():
        parent = path
        while parent and parent not in saved_paths:  # a module without tensors is located by the module around it
            parent = parent.rpartition(".")[0]
        if parent not in saved_paths:
            result[path] = dict(metadata)
            continue
        below = path[len(parent) :].lstrip(".")
        saved_path = ".".join(part for part in (saved_paths[parent], below) if part)
        if saved_path in saved:
            result[path] = dict(saved[saved_path])
    return result


def _saved_module_paths(names: Mapping[str, str]) -> dict[str, str]:
    """Return the path in the checkpoint of each module that has tensors, and of those around it, by its own path."""
    paths: dict[str, str] = {}
    for name, saved_name in names.items():
        ours, theirs = name.split(".")[:-1], saved_name.split(".")[:-1]
        paths.setdefault(".".join(ours), ".".join(theirs))
        while ours and theirs:
            last = ours.pop()
            while last in theirs and theirs.pop() != last:
                pass  # the name of a wrapper, which only the checkpoint has
            paths.setdefault(".".join(ours), ".".join(theirs))
    return paths


def _refuse_untied(state: Mapping[str, torch.Tensor], tied: Sequence[frozenset[str]], where: str | None) -> None:
    """Refuse different values for names that share one tensor in the module, because one of them would be lost."""
    for group in tied:
        first, *others = [name for name in sorted(group) if name in state] or [""]
        differing = [name for name in others if not torch.equal(state[first], state[name])]
        if differing:
            why = f"{first} and {differing[0]} are one tensor in the module, and two in the checkpoint"
            raise StateDoesNotFit(where, why, "untie them in the module, or save the state dict of the tied module")


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
    """Refuse keys that are missing or left over, and mismatches of shape (name, the module's, the checkpoint's).

    Raises `StateDoesNotFit`.
    """
    refused_missing = [name for name in missing if allowances.strict and not _matches_any(name, allowances.missing)]
    refused_unexpected = [
        name for name in unexpected if allowances.strict and not _matches_any(name, allowances.unexpected)
    ]
    if refused_missing or refused_unexpected or shape_mismatches:
        # Only a name without a counterpart may be a misspelling of one on the other side.
        only_in_checkpoint = sorted(set(checkpoint_names) - set(module_names))
        only_in_module = sorted(set(module_names) - set(checkpoint_names))
        lines = [
            *_format_names("missing from the checkpoint", refused_missing, only_in_checkpoint, "the checkpoint has"),
            *_format_names("not in the module", refused_unexpected, only_in_module, "the module has"),
            *_format_shape_mismatches(shape_mismatches),
        ]
        raise StateDoesNotFit(where, "\n".join(lines), _suggest_fix(refused_missing, refused_unexpected))


def _rename_keys(
    state: Mapping[str, str], shapes: Mapping[str, Sequence[int]], prefix: str, where: str | None
) -> tuple[str, dict[str, str]]:
    """Return what was done to the keys, `module.` for stripped or `+net.` for added, and the values under new keys."""
    if prefix not in ("auto", ""):
        _check_prefix(state, prefix, where)
    if prefix != "auto":
        shorter = {key.removeprefix(prefix): value for key, value in state.items()}
        if len(shorter) < len(state):
            longer = next(key for key in state if key.startswith(prefix) and key.removeprefix(prefix) in state)
            why = f"without checkpoint.prefix {prefix!r}, {longer} and {longer.removeprefix(prefix)} are the same key"
            raise StateDoesNotFit(where, why, "remove one of them from the checkpoint")
        return prefix, shorter
    # A part of the module may be wrapped too, by torch.compile for one, which shows in its names.
    module_names = dict(zip(_strip_inner_names(dict.fromkeys(shapes), _RESERVED_WRAPPERS), shapes, strict=True))
    used, renamed = _strip_wrappers(state, module_names)
    return used, {module_names.get(key, key): value for key, value in renamed.items()}


def _strip_wrappers(state: Mapping[str, str], names: Collection[str]) -> tuple[str, dict[str, str]]:
    """Return the variant of the keys, and its description, that has the most names in common with the module."""
    # max() keeps one variant at a time. Of equals, stripping less is preferred, and adding comes last.
    _, _, used, variant = max(_iterate_variants(state, names), key=lambda candidate: candidate[:2])
    return used, variant


def _iterate_variants(
    state: Mapping[str, str], names: Collection[str]
) -> Iterator[tuple[int, tuple[int, ...], str, dict[str, str]]]:
    """Yield variants of the keys, each with how many fit, its rank among equals, and its description."""
    children: dict[str, list[str]] = {}  # of the module, by what they are followed by
    for name in names:
        child, _, rest = name.partition(".")
        if rest:
            children.setdefault(rest, []).append(f"{child}.")
    order = list(dict.fromkeys(name.partition(".")[0] + "." for name in names if "." in name))
    for index, (removed, outer) in enumerate(_iterate_stripped(state)):
        # `module.` inside a name: a part of the model was wrapped, or the module has a child of that name.
        inner = _strip_inner_names(outer, ("module.",))
        for kind, (used, variant) in enumerate([(removed, outer), (f"{removed}*.module.", inner)]):
            yield sum(key in names for key in variant), (-kind, -index), used, variant
            counts = Counter(child for key in variant for child in children.get(key, ()))
            child = max(order, key=counts.__getitem__, default="")
            if counts[child]:
                added = {child + key: value for key, value in variant.items()}
                yield counts[child], (-2, -kind, -index), f"{used}+{child}", added


def _iterate_stripped(state: Mapping[str, str]) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield the state as it is, and then with one wrapper after the other stripped; each with what was stripped."""
    # A part of the model may be wrapped too; a reserved name is stripped wherever it occurs.
    current = _strip_inner_names(state, _RESERVED_WRAPPERS)
    removed = ""
    yield removed, current
    for _ in range(_MAX_WRAPPERS):
        wrapper = next((prefix for prefix in WRAPPERS if any(key.startswith(prefix) for key in current)), None)
        if wrapper is None:
            return
        # Not every key has to start with it: a Lightning file holds metrics' buffers beside the model's keys.
        shorter = {key.removeprefix(wrapper): value for key, value in current.items()}
        if len(shorter) < len(current):
            return  # two keys would collide
        current, removed = shorter, removed + wrapper
        yield removed, current


def _strip_inner_names(state: Mapping[str, Value], names: Sequence[str]) -> dict[str, Value]:
    """Return the state without these names inside its keys; unchanged if two keys would collide."""
    inner = re.compile(rf"(?<=\.)(?:{'|'.join(re.escape(name) for name in names)})")
    shorter = {inner.sub("", key): value for key, value in state.items()}
    return shorter if len(shorter) == len(state) else dict(state)


def _check_prefix(state: Mapping[str, str], prefix: str, where: str | None) -> None:
    if state and not any(key.startswith(prefix) for key in state):
        prefixes = {key[: dot + 1] for key in state for dot, letter in enumerate(key) if letter == "."}
        similar = get_close_matches(prefix, sorted(prefixes), n=1)
        keys = ", ".join(list(state)[:5]) + (", …" if len(state) > 5 else "")
        why = f"no key starts with checkpoint.prefix {prefix!r}\nthe checkpoint has: {keys}"
        hint = f"did you mean {similar[0]!r}?" if similar else "prefix: auto finds the prefixes of wrappers"
        raise StateDoesNotFit(where, why, hint)


def _matches_any(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _format_names(title: str, names: Sequence[str], candidates: Sequence[str], owner: str) -> list[str]:
    if not names:
        return []
    lines = [f"{title} ({len(names)}):"]
    for name in names[:_MAX_ROWS]:
        similar = get_close_matches(name, candidates[:_MAX_CANDIDATES], n=1, cutoff=0.7)
        lines.append(f"  {name}" + (f"  ({owner} {similar[0]})" if similar else ""))
    return lines + _format_remainder(names)


def _format_shape_mismatches(mismatches: Sequence[tuple[str, tuple[int, ...], tuple[int, ...]]]) -> list[str]:
    rows = mismatches[:_MAX_ROWS]
    if not rows:
        return []
    width = max(len(name) for name, _, _ in rows)
    lines = ["shapes that differ:", f"  {'':{width}}  {'module':18}  checkpoint"]
    lines += [f"  {name:{width}}  {list(ours)!s:18}  {list(theirs)}" for name, ours, theirs in rows]
    return lines + _format_remainder(mismatches)


def _format_remainder(rows: Sequence[object]) -> list[str]:
    return [f"  and {len(rows) - _MAX_ROWS} more"] if len(rows) > _MAX_ROWS else []


def _suggest_fix(missing: Sequence[str], unexpected: Sequence[str]) -> str:
    if missing and unexpected:
        names = set(missing)
        splits = ((name, name.split(".", _MAX_WRAPPERS)) for name in unexpected)
        suffixes = ((name, ".".join(parts[skip:])) for name, parts in splits for skip in range(1, len(parts)))
        prefixes = {name.removesuffix(suffix) for name, suffix in suffixes if suffix in names}
        if len(prefixes) == 1:
            return f"checkpoint.prefix: {prefixes.pop()} strips that from each key; auto finds the prefixes of wrappers"
        return "set checkpoint.prefix if the keys differ by a prefix, or model.kwargs if the modules differ"
    if missing:
        return "checkpoint.allow_missing takes patterns of keys that may keep their initial value"
    if unexpected:
        return "checkpoint.allow_unexpected takes patterns of keys that may be left over"
    return "model.kwargs must be those that the checkpoint was trained with"
