"""Change bytes as accidents and attackers do: at random bytes, in slices, and inside of JSON, safetensors and YAML.

A mutation is drawn from a `random.Random`, so that a seed reproduces it.
"""

import copy
import json
import struct

import yaml

NUMBERS = (0, 1, -1, 127, 128, 255, 256, 32767, 65535, 65536, 2**31 - 1, 2**31, 2**32 - 1, 2**62, 2**63 - 1, 2**63)
VALUES = (
    None, True, False, 0, -1, 1, 2**31, 2**63, 2**70, -(2**63), 0.5, 1e308, "", "../x", "/etc/passwd", "a\x1b[2J",
    "\u202e", "config.json", "x" * 5000, [], {}, [[]], [0], [-1], [2**62, 2**62], [None], {"": 0}, {"path": []},
)  # fmt: skip
RUNS = (b"[", b'{"a":', b"(", b"\x00", b"\xff", b"A", b"\n", b"- ", b"\x80\x02")


def mutate(content, random, others=()):
    """Return a change of some bytes; `others` are contents of the same kind, from which slices are taken."""
    if random.random() < 0.5:
        changed = _mutate_structure(content, random)
        if changed is not None and random.random() < 0.8:
            return changed
        content = content if changed is None else changed
    for _ in range(random.choice((1, 1, 1, 2, 4, 16))):
        content = random.choice(_OPERATORS)(content, random, others)
    return content


def _flip(content, random, _others):
    changed = bytearray(content or b"\0")
    changed[random.randrange(len(changed))] ^= 1 << random.randrange(8)
    return bytes(changed)


def _truncate(content, random, _others):
    return content[: random.randrange(len(content) + 1)]


def _remove(content, random, _others):
    start, end = _slice(content, random)
    return content[:start] + content[end:]


def _insert(content, random, _others):
    position = random.randrange(len(content) + 1)
    return content[:position] + random.randbytes(random.randint(1, 16)) + content[position:]


def _insert_run(content, random, _others):
    position = random.randrange(len(content) + 1)
    return content[:position] + random.choice(RUNS) * random.choice((2, 100, 5000)) + content[position:]


def _duplicate(content, random, _others):
    start, end = _slice(content, random)
    return content[:end] + content[start:]


def _swap(content, random, _others):
    first, second = sorted((_slice(content, random), _slice(content, random)))
    if first[1] > second[0]:
        return _duplicate(content, random, ())
    parts = content[second[0] : second[1]], content[first[1] : second[0]], content[first[0] : first[1]]
    return content[: first[0]] + b"".join(parts) + content[second[1] :]


def _splice(content, random, others):
    other = random.choice(others) if others else content
    start, end = _slice(other, random)
    position = random.randrange(len(content) + 1)
    return content[:position] + other[start:end] + content[position + random.choice((0, end - start)) :]


def _overwrite_number(content, random, _others):
    kind = random.choice(("<I", "<Q", ">I", ">Q"))
    size = struct.calcsize(kind)
    if len(content) < size:
        return content + b"\xff"
    position = random.randrange(len(content) - size + 1)
    number = random.choice(NUMBERS) % (1 << 8 * size)
    return content[:position] + struct.pack(kind, number) + content[position + size :]


def _slice(content, random):
    """Draw a slice, mostly a short one."""
    start = random.randrange(len(content) + 1)
    return start, min(len(content), start + random.choice((1, 4, 16, 64, 1024, len(content))))


_OPERATORS = (
    _flip, _flip, _truncate, _remove, _insert, _insert_run, _duplicate, _swap, _splice, _overwrite_number,
    _overwrite_number,
)  # fmt: skip


def _mutate_structure(content, random):
    """Change a value inside of JSON, the header of safetensors, or YAML; None for any other content.

    A first line that is a path, as in the seeds of whole folders, stays as it is.
    """
    line, newline, rest = content.partition(b"\n")
    try:
        if content[:1] in b"{[":
            return _dump(_mutate_value(json.loads(content), random))
        if content[8:9] == b"{":
            size = int.from_bytes(content[:8], "little")
            header = _dump(_mutate_value(json.loads(content[8 : 8 + size]), random))
            return len(header).to_bytes(8, "little") + header + content[8 + size :]
        if rest[:1] == b"{" and line.endswith(b"json"):
            return line + newline + _dump(_mutate_value(json.loads(rest), random))
        if content.startswith(b"schema:"):
            return yaml.safe_dump(_mutate_value(yaml.safe_load(content), random), sort_keys=False).encode()
    except (ValueError, RecursionError, yaml.YAMLError):
        pass  # it was mutated before
    return None


def _dump(value):
    return json.dumps(value, separators=(",", ":")).encode()


def _mutate_value(value, random):
    """Return a deep copy of plain data in which one value is replaced, removed, renamed or moved."""
    root = [copy.deepcopy(value)]
    places = list(_iter_places(root))
    container, key = random.choice(places)
    change = random.choice(("replace", "replace", "copy", "remove", "rename"))
    if change == "copy":
        source, source_key = random.choice(places)
        container[key] = copy.deepcopy(source[source_key])
    elif change == "remove" and container is not root:
        del container[key]
    elif change == "rename" and isinstance(container, dict):
        container[random.choice(("", "x", "schema", "../x"))] = container.pop(key)
    else:
        container[key] = copy.deepcopy(random.choice(VALUES))
    return root[0]


def _iter_places(container):
    """Yield every container in plain data with each of its keys or indexes."""
    for key in list(container) if isinstance(container, dict) else range(len(container)):
        yield container, key
        if isinstance(container[key], (dict, list)):
            yield from _iter_places(container[key])
