"""Read model.sig of a bundle."""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from pathlib import Path

from packager.bundle import layout
from packager.errors import SignatureWrong
from packager.signature.statement import size_limit


def read_signature(folder: Path, sums: Mapping[str, str]) -> bytes | None:
    """Read model.sig of the bundle in `folder`, None if there is no such file.

    `sums` are the digests in SHA256SUMS, which limit its size. Raises `SignatureWrong` if it is too large, cannot be
    read, or is not a regular file.
    """
    limit = size_limit(sums)
    try:
        descriptor = os.open(folder / layout.SIGNATURE, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise SignatureWrong(str(folder), f"{layout.SIGNATURE} cannot be read: {error.strerror}") from None
    with os.fdopen(descriptor, "rb") as stream:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise SignatureWrong(str(folder), f"{layout.SIGNATURE} is not a regular file")
        content = stream.read(limit + 1)
    if len(content) > limit:
        raise SignatureWrong(str(folder), f"{layout.SIGNATURE} is larger than any signature of these files")
    return content
