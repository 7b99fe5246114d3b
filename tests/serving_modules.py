"""The modules of tests/serving for the tests of a different server: their tables, helpers and tests are used again."""

import importlib.util
import sys
from functools import cache
from pathlib import Path

FOLDER = Path(__file__).parent / "serving"


@cache
def load_module(name):
    """Import a module of tests/serving a second time, so that what is set in it changes nothing there."""
    spec = importlib.util.spec_from_file_location(f"again_{name}", FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def read_table(module, test):
    """Return the cases that a test of a module is parametrized with, each as a tuple."""
    (mark,) = (mark for mark in getattr(module, test).pytestmark if mark.name == "parametrize")
    names, values = mark.args
    is_single = isinstance(names, str) and "," not in names
    return [(value,) if is_single else tuple(value) for value in values]
