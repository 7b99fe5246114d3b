"""The distribution has the same name wherever a reader or the program finds it."""

import re
from importlib import metadata

import pytest
from click.testing import CliRunner
from projects import ROOT

from packager import errors
from packager.builder.incremental import keys
from packager.cli.main import cli
from packager.common import installed_distributions

NAME = "torch-packager"
TEXTS = sorted(
    path
    for part in ("packager", "templates", "docs", "examples", "benchmarks", "README.md", "Makefile", "CHANGELOG.md")
    for path in ([ROOT / part] if (ROOT / part).is_file() else (ROOT / part).rglob("*"))
    if path.suffix in {".py", ".j2", ".md", ".txt", ".yaml", ""} and path.is_file()
    if ROOT / "benchmarks/work" not in path.parents  # what benchmarks install and write
)


def field(name):
    """A field of the [project] table; tomllib is not in Python 3.10."""
    return re.search(rf'^{name} = "(.+)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE).group(1)


def test_pyproject_and_the_installed_distribution_have_one_name():
    assert field("name") == installed_distributions.DISTRIBUTION == NAME
    assert metadata.distribution(NAME).version == field("version")
    assert f'"{NAME}[build,remote,serve,sign]"' in (ROOT / "pyproject.toml").read_text()


def test_no_text_says_to_install_the_unrelated_project_named_packager():
    assert {"README.md", "README.md.j2", "errors.py", "checkpoints.md"} <= {path.name for path in TEXTS}
    wrong = re.compile(r"""(?<![\w-])packager\[|pip install[^\n`]*?[\s'"]packager(?![\w.-])""")
    assert [path.name for path in TEXTS if wrong.search(path.read_text(encoding="utf-8"))] == []
    assert wrong.search("pip install packager") and wrong.search("pip install -q 'packager[build]'")
    assert wrong.search("needs `packager[remote]`") and not wrong.search(f"pip install '{NAME}[build]'")


@pytest.mark.parametrize("path", ["README.md", "templates/README.md.j2"])
def test_the_readmes_install_a_wheel_with_this_name(path):
    text = (ROOT / path).read_text(encoding="utf-8").replace('{{ version or "VERSION" }}', field("version"))
    wheels = re.findall(r"pip install '?(\S+?\.whl)", text)
    assert wheels and set(wheels) == {f"torch_packager-{field('version')}-py3-none-any.whl"}
    assert NAME in text


def test_the_template_of_the_bundles_readme_has_no_links():
    assert "://" not in (ROOT / "templates/README.md.j2").read_text(encoding="utf-8")


def test_the_hint_names_the_extra_of_this_distribution():
    assert errors.ExtraMissing("torch", "a build").hint == f"pip install '{NAME}[build]'"


def test_tool_versions_name_this_distribution_by_its_import_package():
    assert "packager" in keys.TOOLCHAIN
    assert installed_distributions.tool_version("packager") == metadata.version(NAME)
    assert installed_distributions.tool_version("numpy") == metadata.version("numpy")


def test_the_command_prints_the_version_of_the_distribution():
    assert CliRunner().invoke(cli, ["--version"]).output == f"package, version {field('version')}\n"
