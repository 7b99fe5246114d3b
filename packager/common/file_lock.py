"""Advisory locks on open files, with flock(2), between processes of one machine.

Where there are no locks, as on Windows and on some network file systems, a lock is granted at once.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import IO

try:
    import fcntl
except ImportError:
    LOCKS_SUPPORTED = False
else:
    LOCKS_SUPPORTED = True


def lock_file(stream: IO[bytes], *, shared: bool, wait: bool = True) -> bool:
    """Lock an open file until it is closed, and tell whether the lock was granted.

    Readers share a lock (`shared`), a writer has it alone. Without `wait` a lock that is taken is not granted.
    """
    if not LOCKS_SUPPORTED:
        return True
    kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    try:
        fcntl.flock(stream, kind if wait else kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.EOPNOTSUPP):
            raise
    return True


def is_same_file(stream: IO[bytes], path: Path) -> bool:
    """Tell whether a path still leads to the file that was opened as `stream`."""
    try:
        return os.path.samestat(os.fstat(stream.fileno()), path.stat())
    except FileNotFoundError:
        return False
