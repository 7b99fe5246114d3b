"""JSON that would take many times its size in memory is refused before it is parsed."""

import json

import pytest

from packager.common import strict_json
from packager.common.strict_json import parse_strict_json, read_strict_json

BOMBS = {
    "lists": b'{"a":[' + b"[]," * 400_000 + b"0]}",
    "objects": b"[" + b'{"a":0},' * 150_000 + b"0]",
    "numbers": b"[" + b"0," * 600_000 + b"0]",
    "names": b"{" + b",".join(b'"%06d":0' % number for number in range(150_000)) + b"}",
}


@pytest.mark.parametrize("name", BOMBS)
def test_too_many_values_are_refused_unparsed(name, monkeypatch, tmp_path):
    monkeypatch.setattr(strict_json.json, "loads", None)
    with pytest.raises(ValueError, match=r"more than 1\d\d\d\d\d values"):
        parse_strict_json(BOMBS[name])
    (tmp_path / "bomb.json").write_bytes(BOMBS[name])
    with pytest.raises(ValueError, match=r"more than 1\d\d\d\d\d values"):
        read_strict_json(tmp_path / "bomb.json")


@pytest.mark.parametrize("character", ["\U0001f600", "\u4f60", r"\ud83d\ude00", r"\\\u4f60"])
def test_a_long_text_that_one_character_widens_is_refused_unparsed(character, monkeypatch):
    content = f'{{"a":"{character}{"a" * 5_000_000}"}}'.encode()
    assert parse_strict_json(content.replace(b"aa", b"")) is not None
    monkeypatch.setattr(strict_json.json, "loads", None)
    with pytest.raises(ValueError, match=r"U\+00FF"):
        parse_strict_json(content)


def test_the_index_of_a_model_of_150_000_tensors_is_read():
    weight_map = {
        f"model.layers.{n // 1000}.mlp.experts.{n}.down_proj.weight": f"model-{n // 1000:05d}-of-00150.safetensors"
        for n in range(150_000)
    }
    assert parse_strict_json(json.dumps({"weight_map": weight_map}).encode()) == {"weight_map": weight_map}


def test_as_many_values_as_the_caller_allows_are_read():
    content = json.dumps(list(range(200_000))).encode()
    assert len(parse_strict_json(content, 200_000)) == 200_000
    with pytest.raises(ValueError, match="more than 199999 values"):
        parse_strict_json(content, 199_999)


@pytest.mark.parametrize("text", ["\u00e9", r"\u00e9", r"\\u4f60"])
def test_a_long_text_that_stays_narrow_is_read(text):
    content = f'{{"a":"{text}{"a" * 5_000_000}"}}'.encode()
    assert parse_strict_json(content)["a"].startswith(json.loads(f'"{text}"'))
