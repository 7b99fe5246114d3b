"""State dicts ↔ tensors and JSON: exact for what it takes, and a refusal by name for the rest."""

import enum
import json
import math
from collections import Counter, OrderedDict, defaultdict, namedtuple

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st

from packager.checkpoint import state_tree_file
from packager.checkpoint.state_tree import SAFETENSORS_DTYPES, EncodedTree, decode_tree, encode_tree
from packager.errors import CheckpointDamaged, StateNotExpressible, render_error

DTYPE_NAMES = sorted(str(dtype).removeprefix("torch.") for dtype in SAFETENSORS_DTYPES)


def there_and_back(tree):
    """Through the codec and through JSON as text."""
    encoded = encode_tree(tree)
    return decode_tree(EncodedTree(encoded.tensors, json.loads(json.dumps(encoded.document, allow_nan=False))))


def same(first, second):
    """Types, order, bits: what == is too lenient or too strict for."""
    if type(first) is not type(second):
        return False
    if isinstance(first, dict):
        pairs = zip(first.items(), second.items(), strict=True) if len(first) == len(second) else [(0, 1)]
        return all(same(left, right) for left, right in pairs)
    if isinstance(first, (list, tuple)):
        return len(first) == len(second) and all(same(*pair) for pair in zip(first, second, strict=True))
    if isinstance(first, torch.Tensor):
        return first.dtype == second.dtype and first.shape == second.shape and bits(first) == bits(second)
    if isinstance(first, (np.ndarray, np.generic)):
        return first.dtype == second.dtype and first.shape == second.shape and first.tobytes() == second.tobytes()
    if isinstance(first, float):
        return np.float64(first).tobytes() == np.float64(second).tobytes()
    if isinstance(first, complex):
        return same((first.real, first.imag), (second.real, second.imag))
    return first == second


def bits(tensor):
    if tensor.numel() == 0:
        return []
    plain = torch.view_as_real(tensor) if tensor.is_complex() else tensor
    return plain.contiguous().reshape(-1).view(torch.uint8).tolist()


@st.composite
def tensors(draw):
    shape = draw(st.lists(st.integers(0, 3), max_size=3))
    dtype = getattr(torch, draw(st.sampled_from(DTYPE_NAMES)))
    count = math.prod(shape) * torch.empty(0, dtype=dtype).element_size()
    content = torch.tensor(list(draw(st.binary(min_size=count, max_size=count))), dtype=torch.uint8)
    if dtype is torch.bool:
        content %= 2
    return content.view(dtype).reshape(shape)


texts = st.text(st.characters(exclude_categories=["Cs"]))
keys = st.one_of(texts, st.integers(), st.sampled_from(["tensor", "tuple", "dict", "__metadata__", "a.b", ""]))
leaves = st.one_of(
    st.none(), st.booleans(), st.integers(), st.integers(-(2**200), 2**200), st.floats(), texts, st.binary(),
    st.complex_numbers(), tensors(), st.sampled_from([torch.float16, torch.Size([2, 0]), torch.device("cpu")]),
    st.floats().map(np.float64), st.integers(0, 255).map(np.uint8),
    st.lists(st.floats(width=32)).map(lambda numbers: np.array(numbers, np.float32)),
)  # fmt: skip
trees = st.recursive(
    leaves,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.lists(inner, max_size=4).map(tuple),
        st.dictionaries(keys, inner, max_size=4),
        st.dictionaries(keys, inner, max_size=4).map(OrderedDict),
    ),
    max_leaves=12,
)


@given(trees)
def test_a_tree_is_restored_exactly(tree):
    assert same(there_and_back(tree), tree)


@given(trees)
def test_a_file_restores_its_tree_and_any_reader_finds_its_tensors(tmp_path_factory, tree):
    path = tmp_path_factory.mktemp("tree") / "tree.safetensors"
    encoded = encode_tree(tree)
    sha256 = state_tree_file.write_tree(path, encoded)
    assert same(state_tree_file.read_tree(path, sha256), tree)
    assert same(dict(sorted(safetensors.torch.load_file(path).items())), dict(sorted(encoded.tensors.items())))


@pytest.mark.parametrize("value", [math.nan, -math.nan, math.inf, -math.inf, -0.0, 5e-324, 2**53, -(2**53), 2**4000])
def test_a_number_keeps_its_bits(value):
    assert same(there_and_back(value), value)


def test_an_array_of_any_rank_is_restored():
    tree = {"rows": np.arange(6).reshape(2, 3)[:, ::-1], "one": np.array(1.5), "none": np.zeros((0, 2), bool)}
    assert same(there_and_back(tree), tree)


def test_a_counter_of_milestones_is_restored():
    assert same(there_and_back(Counter({30: 1, 80: 2})), Counter({30: 1, 80: 2}))


@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128])
def test_a_complex_tensor_is_restored(dtype):
    tensor = torch.randn(3, 2, dtype=dtype)
    assert same(there_and_back(tensor.conj()), tensor.conj().resolve_conj())


def test_a_shared_tensor_is_stored_once_and_shared_again():
    tensor = torch.randn(3)
    encoded = encode_tree({"a": tensor, "b": [tensor, tensor.clone(), tensor[1:]]})
    assert sorted(encoded.tensors) == ["a", "b.1", "b.2"]
    back = decode_tree(encoded)
    assert back["a"] is back["b"][0] and back["a"] is not back["b"][1]
    assert same(back["b"][2], tensor[1:])


def test_two_tensors_whose_paths_read_the_same_stay_separate():
    tree = {"a.b": torch.zeros(1), "a": {"b": torch.ones(1)}, "__metadata__": torch.full((1,), 2.0)}
    assert sorted(encode_tree(tree).tensors) == ["__metadata__#2", "a.b", "a.b#2"]
    assert same(there_and_back(tree), tree)


@pytest.mark.parametrize("order", [(0, 3, 1, 2), (1, 0, 2, 3), (3, 2, 1, 0)])
def test_the_order_of_dimensions_in_memory_is_kept_without_a_copy(order):
    tensor = torch.randn(2, 3, 4, 5).permute(order)
    encoded = encode_tree(tensor)
    assert encoded.tensors["value"].data_ptr() == tensor.data_ptr()
    assert decode_tree(encoded).stride() == tensor.stride()
    assert same(decode_tree(encoded), tensor)


def test_a_strided_tensor_is_restored_with_its_values():
    for tensor in (torch.randn(3, 1).expand(3, 4), torch.randn(8)[::2], torch.nn.Parameter(torch.randn(2))):
        assert same(there_and_back(tensor), tensor.detach())


class Colour(enum.IntEnum):
    RED = 1


@pytest.mark.parametrize(
    ("tree", "path", "description"),
    [
        ({"a": [1, object()]}, "a.1", "a object"),
        ({"a": {2: {3, 4}}}, "a.2", "a set"),
        ({"schedule": len}, "schedule", "a builtin_function_or_method"),
        ({"a": Colour.RED}, "a", "a tests.checkpoint.test_state_tree.Colour"),
        ({"a": defaultdict(dict)}, "a", "a collections.defaultdict"),
        ({"a": namedtuple("Pair", "x y")(1, 2)}, "a", "a tests.checkpoint.test_state_tree.Pair"),
        ({"a": {(1, 2): 3}}, "a", "a dict with the key (1, 2), a tuple"),
        ({"a": {True: 3}}, "a", "a dict with the key True, a bool"),
        ({"a": "\ud800"}, "a", "a str that UTF-8 cannot encode"),
        ({"a": torch.eye(2).to_sparse()}, "a", "a torch.Tensor of layout torch.sparse_coo"),
        ({"a": torch.empty(2, device="meta")}, "a", "a tensor on the meta device, without values"),
        ({"a": np.array(["x"])}, "a", "a numpy.ndarray of <U1"),
        ({"a": np.array([None])}, "a", "a numpy.ndarray of object"),
        ({"a": np.ma.masked_array([1])}, "a", "a numpy.ma.MaskedArray of int64"),
    ],
)
def test_a_value_that_cannot_be_expressed_is_refused_with_its_path_and_class(tree, path, description, golden):
    with pytest.raises(StateNotExpressible) as caught:
        encode_tree(tree, "extra")
    golden(render_error(caught.value), "error[state-not-expressible]", f"extra.{path}", description)


def test_a_tree_that_contains_itself_is_refused(golden):
    tree = []
    tree.append(tree)
    with pytest.raises(StateNotExpressible) as caught:
        encode_tree(tree, "extra")
    golden(caught.value, "extra")


@given(st.data())
def test_a_file_with_one_flipped_bit_is_refused(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("tree") / "tree.safetensors"
    sha256 = state_tree_file.write_tree(path, encode_tree({"a": torch.arange(5), "b": [1.5]}))
    content = bytearray(path.read_bytes())
    content[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    path.write_bytes(content)
    with pytest.raises(CheckpointDamaged):
        state_tree_file.read_tree(path, sha256)


@pytest.mark.parametrize("content", [b"", b"\0" * 8, b"\x02" + b"\0" * 7 + b"{}", b"\xff" * 20])
def test_a_file_without_a_tree_is_refused_even_with_the_right_digest(tmp_path, content):
    import hashlib

    path = tmp_path / "tree.safetensors"
    path.write_bytes(content)
    with pytest.raises(CheckpointDamaged):
        state_tree_file.read_tree(path, hashlib.sha256(content).hexdigest())
