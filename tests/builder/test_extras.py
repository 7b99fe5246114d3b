"""An import that only a build needs, and that is not installed."""

import sys

import pytest

from packager.builder.extras import build_extra
from packager.errors import ExtraMissing


def test_a_missing_module_names_itself_and_the_command():
    with pytest.raises(ExtraMissing) as caught, build_extra("package build"):
        import nowhere.at.all  # noqa: F401
    assert caught.value.exit_status == 2
    assert "nowhere" in str(caught.value) and "package build" in str(caught.value)
    assert caught.value.__suppress_context__


def test_a_module_that_is_disabled_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(ExtraMissing, match="torch"), build_extra("package vet"):
        import torch  # noqa: F401


def test_a_missing_module_of_packager_itself_is_a_bug_and_not_a_missing_extra():
    with pytest.raises(ModuleNotFoundError), build_extra("package build"):
        import packager.nowhere  # noqa: F401


@pytest.mark.parametrize("error", [ImportError("cannot import name 'x'"), ValueError("no")])
def test_other_errors_pass_through(error):
    with pytest.raises(type(error)) as caught, build_extra("package build"):
        raise error
    assert caught.value is error


def test_without_an_error_nothing_happens():
    with build_extra("package build"):
        import json
    assert json
