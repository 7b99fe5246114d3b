"""Parse YAML text into data and the line of every field."""

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from packager.project.yaml_source import YamlError, parse_yaml

# Text that YAML allows without escapes: no control characters, surrogates or line separators.
TEXT = st.text(st.characters(exclude_categories=("Cc", "Cs", "Cn", "Zl", "Zp")), max_size=20)
SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT
DATA = st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4))
KEYS = st.text("abcdefgh", min_size=1, max_size=3)
NESTED = st.recursive(st.integers(0, 9), lambda inner: st.dictionaries(KEYS, inner, min_size=1, max_size=4))


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-5", 1e-5),
        ("1E+5", 1e5),
        ("1e5", 1e5),
        (".5", 0.5),
        ("1.", 1.0),
        ("-.inf", -math.inf),
        ("+12", 12),
        ("010", 10),
        ("08", 8),
        ("0o17", 15),
        ("0x1F", 31),
        ("true", True),
        ("FALSE", False),
        ("~", None),
        ("null", None),
        ("", None),
        ("yes", "yes"),
        ("on", "on"),
        ("off", "off"),
        ("12:30", "12:30"),
        ("1_000", "1_000"),
        ("2024-01-01", "2024-01-01"),
        ("1.0.0", "1.0.0"),
        ("0o9", "0o9"),
        ("=", "="),
        ("'1'", "1"),
        ("!!str 1", "1"),
        ("!!float 1", 1.0),
    ],
)
def test_scalars_follow_the_core_schema_of_yaml_1_2(text, value):
    parsed = parse_yaml(f"field: {text}").data["field"]
    assert (parsed, type(parsed)) == (value, type(value))


def test_nan_is_a_number_of_the_core_schema():
    assert math.isnan(parse_yaml("field: .nan").data["field"])


def test_keys_are_always_text():
    assert parse_yaml("1: a\ntrue: b\nnull: c\n1.5: d").data == {"1": "a", "true": "b", "null": "c", "1.5": "d"}


def test_a_merge_key_of_yaml_1_1_is_an_ordinary_key():
    assert parse_yaml("<<: {a: 1}\nb: 2").data == {"<<": {"a": 1}, "b": 2}


def test_every_field_and_item_has_its_line():
    document = parse_yaml(
        "# a comment\nname: x\n\ninputs:\n  image:\n    shape: [batch,\n      3]\nassets:\n  - a\n  - b\n"
    )
    assert document.lines == {
        (): 2,
        ("name",): 2,
        ("inputs",): 4,
        ("inputs", "image"): 5,
        ("inputs", "image", "shape"): 6,
        ("inputs", "image", "shape", 0): 6,
        ("inputs", "image", "shape", 1): 7,
        ("assets",): 8,
        ("assets", 0): 9,
        ("assets", 1): 10,
    }


def test_a_missing_field_has_the_line_of_the_closest_field_around_it():
    document = parse_yaml("\nname: x\ninputs:\n  image: 1\n")
    assert document.line_of(("inputs", "image", "dtype")) == 4
    assert document.line_of(("inputs", "mask")) == 3
    assert document.line_of(("version",)) == 2
    assert parse_yaml("").line_of(("version",)) == 1


def test_a_field_that_repeats_an_anchor_has_a_line_of_its_own():
    document = parse_yaml("a: &x\n  b: 1\nc: *x\n")
    assert document.data == {"a": {"b": 1}, "c": {"b": 1}}
    assert document.line_of(("c",)) == 3


@pytest.mark.parametrize("text", ["", "# only a comment\n", "---\n", "---\n...\n", "\n\n"])
def test_an_empty_document_is_none(text):
    assert parse_yaml(text).data is None


def test_a_byte_order_mark_is_not_part_of_the_first_key():
    assert parse_yaml("\ufeffname: x").data == {"name": "x"}


@pytest.mark.parametrize(
    ("text", "line", "facts"),
    [
        ("a: 1\nb: 2\na: 3", 3, ("a",)),
        ("x:\n  a: 1\n  'a': 3", 3, ("a",)),
        ("1: a\n'1': b", 2, ("1",)),
        ("a: 1\n? [b]\n: 2", 2, ()),
        ("a: [1,\nb", 2, ("]", "<stream end>")),
        (
            "a: 1\n\tb: 2",
            2,
            ("\\t",),
        ),
        ("a: 1\n---\nb: 2", 2, ()),
        ("a: *nothing", 1, ("nothing",)),
        ("a: b\nc: d\0", 2, ("U+0000",)),
        ("a: !!timestamp 2020-99-99", 1, ("2020-99-99", "timestamp")),
        ("a: !!timestamp soon", 1, ("soon", "timestamp")),
        ("a: !!bool maybe", 1, ("maybe",)),
        ("a: !!int ''", 1, ("int",)),
        ("a: " + 5000 * "9", 1, (40 * '9', "int")),
        ("a:\n- !!python/name:os.system x", 2, ("tag:yaml.org,2002:python/name:os.system",)),
        ("a: &x [*x]", 1, ()),
        (10_000 * "[", 1, ()),
    ],
)  # fmt: skip
def test_invalid_yaml_is_refused_with_its_line(text, line, facts, golden):
    with pytest.raises(YamlError) as caught:
        parse_yaml(text)
    assert caught.value.line == line
    golden(caught.value.message, *facts)


@given(DATA)
def test_json_is_yaml_with_the_same_meaning(data):
    assert parse_yaml(json.dumps(data, ensure_ascii=False)).data == data
    assert parse_yaml(json.dumps(data, ensure_ascii=False, indent=2)).data == data


@given(st.dictionaries(KEYS, NESTED, min_size=1, max_size=4))
def test_the_line_of_a_field_is_where_it_was_written(data):
    written, lines = [], {}

    def write(value, path):
        for key, item in value.items():
            field = (*path, key)
            nested = isinstance(item, dict)
            written.append(f"{len(path) * '  '}{key}:{'' if nested else f' {item}'}")
            lines[field] = len(written)
            if nested:
                write(item, field)

    write(data, ())
    document = parse_yaml("\n".join(written))
    assert document.data == data
    assert {path: document.line_of(path) for path in lines} == lines


@given(st.text(max_size=60))
def test_any_text_is_parsed_or_refused_with_one_of_its_lines(text):
    try:
        line = parse_yaml(text).line_of(())
    except YamlError as error:
        line = error.line
    assert 1 <= line <= len(text.splitlines()) + 1


def test_aliases_that_expand_to_billions_of_values_are_refused(golden):
    levels = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    levels += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 10)]
    with pytest.raises(YamlError) as refused:
        parse_yaml("\n".join(levels))
    golden(refused.value.message, "5000")


@pytest.mark.parametrize(
    "text",
    [
        "a: [" + 20_000 * "x," + "]",
        "".join(f"k{number}: 1\n" for number in range(20_000)),
        "a: &a '" + "x" * 10_000 + "'\nb: [" + 4000 * "*a," + "]",
        "a: " + 150 * "[" + 150 * "]",
        "".join(" " * depth + "a:\n" for depth in range(150)),
        "a: 0x" + 5000 * "f",
    ],
    ids=["values", "keys", "a long text repeated by aliases", "lists in lists", "mappings in mappings", "digits"],
)
def test_text_that_expands_to_more_than_a_manifest_holds_is_refused(text, golden):
    with pytest.raises(YamlError) as refused:
        parse_yaml(text)
    golden(refused.value.message)


def test_many_values_are_refused_before_the_rest_is_read():
    """PyYAML takes half a minute for a million values, and reads them all before it returns any."""
    text = "a: [" + 400_000 * "x," + "\nb: ["
    with pytest.raises(YamlError) as refused:
        parse_yaml(text)
    assert refused.value.message.startswith("more than")  # and not that the list has no end


@pytest.mark.parametrize("text", ['a: 1\nb: "\\ud800"', 'a: 1\n"\\ud800": 2'])
def test_half_of_a_surrogate_pair_is_refused_with_its_line(text, golden):
    with pytest.raises(YamlError) as refused:
        parse_yaml(text)
    assert refused.value.line == 2
    golden(refused.value.message, "U+D800")
