"""Digests of files and of their pieces."""

import hashlib

from hypothesis import given
from hypothesis import strategies as st

from packager.common import hashing


@given(content=st.binary(max_size=200), piece=st.integers(1, 50))
def test_the_pieces_of_a_file_have_the_digests_of_its_bytes(tmp_path_factory, content, piece):
    path = tmp_path_factory.getbasetemp() / "file"
    path.write_bytes(content)
    before, hashing.PIECE_BYTES = hashing.PIECE_BYTES, piece
    try:
        digests = hashing.sha256_pieces(path)
    finally:
        hashing.PIECE_BYTES = before
    parts = [content[start : start + piece] for start in range(0, len(content), piece)]
    assert digests == [hashlib.sha256(part).hexdigest() for part in parts]
    assert hashing.sha256_file(path) == hashlib.sha256(content).hexdigest()
