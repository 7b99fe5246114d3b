"""The ONNX worker, from the child's side: answer pickled jobs from stdin on stdout, one after the other.

The child imports neither torch nor the user's code. It dies with its parent, whose end closes the pipe.
"""

from __future__ import annotations

import logging
import os
import pickle
import sys

from packager.common import process_memory
from packager.export.graph.messages import JobFailed, PassStarted


def serve() -> None:
    """Answer jobs until stdin closes, then end the process. Each answer is an `OptimizeResult` or a `JobFailed`.

    Before an answer come `PassStarted` messages, so that after a crash the parent knows which pass it was.
    """
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what libraries print goes to stderr, not between the answers
    logging.disable(logging.WARNING)
    import_libraries()
    from packager.export.passes import runner

    process_memory.freeze_garbage_collector()  # collections would look at all that was imported, 0.1 s each

    def send(message: object) -> None:
        pickle.dump(message, answers, pickle.HIGHEST_PROTOCOL)
        answers.flush()

    while True:
        try:
            job = pickle.load(sys.stdin.buffer)
        except EOFError:
            os._exit(0)  # without any clean-up, as the parent waits
        os.chdir(job.exported.path.parent)  # some passes leave temporary files in the working directory
        try:
            send(runner.run_passes(job, lambda name: send(PassStarted(name))))
        except Exception as error:  # noqa: BLE001 (handed to the parent, which raises it there)
            send(JobFailed(error))


def import_libraries() -> None:
    """Import everything that the passes need."""
    with process_memory.pause_garbage_collection():
        _import_onnxsim()
        from packager.export.passes import runner  # noqa: F401


def _import_onnxsim() -> None:
    """Import onnxsim without torch and sympy, while the parent still imports torch.

    None in `sys.modules` makes an import fail as if the package were not installed. onnxsim and
    onnxruntime.transformers import torch where they can (2 s, 200 MB), for features that are not used here. onnxsim
    describes models with sympy (0.3 s, 35 MB), which nobody asks for here; the fusions infer shapes with it, and
    import it when they have something to fuse.
    """
    sys.modules["torch"] = None  # type: ignore[assignment]  # Python's own way to forbid an import
    descriptive = ("sympy", "onnx_ir")
    sys.modules.update(dict.fromkeys(descriptive))  # type: ignore[arg-type]  # None, likewise
    import onnxsim  # noqa: F401

    for name in descriptive:
        del sys.modules[name]
