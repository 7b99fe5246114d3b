"""The wheel, outside of the checkout."""

import json
import os
import shutil
import subprocess
import sys
import zipfile

import pytest
from projects import LINEAR, ROOT, project, python

import packager
from packager.builder.toolchain import digest_toolchain

pytestmark = pytest.mark.slow


def run(*arguments, **settings):
    done = subprocess.run([*map(str, arguments)], capture_output=True, text=True, **settings)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    # From a copy, as hatchling writes beside the sources.
    parts = ("packager", "schemas", "templates", "README.md", "pyproject.toml", "LICENSE")
    source = folder / "source"
    source.mkdir()
    for part in parts:
        if (ROOT / part).is_dir():
            shutil.copytree(ROOT / part, source / part, ignore=shutil.ignore_patterns("__pycache__"))
        elif (ROOT / part).exists():
            shutil.copy(ROOT / part, source / part)
    run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder / "dist", source)
    return next((folder / "dist").glob("*.whl"))


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """A folder with the wheel's content, and an environment in which it is the only packager."""
    target = tmp_path_factory.mktemp("site")
    run(sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-index", "--target", target, wheel)
    return target, {**os.environ, "PYTHONPATH": str(target), "PYTHONSAFEPATH": "1"}


def test_the_wheel_installs_only_packager(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    assert {name.split("/")[0] for name in names} == {"packager", f"torch_packager-{_version()}.dist-info"}
    for part in ("manifest", "config", "parity"):
        assert f"packager/schemas/{part}.schema.json" in names
    templates = {path.name for path in (ROOT / "templates").iterdir()}
    assert {"README.md.j2", "Dockerfile.tmpl"} < templates
    assert {f"packager/templates/{name}" for name in templates} < set(names)
    assert not [name for name in names if name.endswith(".pyc") or "/tests/" in name]


def test_the_provenance_has_the_dirhash_of_the_wheel(wheel, tmp_path):
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path)
    shell = (
        "find . -type f -not -path './*.dist-info/*' | cut -c3- | LC_ALL=C sort | xargs -r sha256sum | sha256sum"
        " | cut -f1 -d' '"
    )
    assert run("sh", "-c", shell, cwd=tmp_path).strip() == digest_toolchain()["packager"]


def _version():
    from importlib import metadata

    return metadata.version("torch-packager")


def test_the_installed_package_is_complete_and_imports_itself(installed):
    target, environment = installed
    code = (
        "import json, packager, packager.common.paths as paths\n"
        "print(json.dumps([packager.__file__, str(paths.data_folder('schemas'))]))"
    )
    done = python(code, cwd="/", env=environment)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [str(target / "packager/__init__.py"), str(target / "packager/schemas")]
    assert not (target / "schemas").exists()
    assert not (target / "templates").exists()


def test_the_installed_command_builds_a_bundle_in_a_different_folder(installed, tmp_path):
    target, environment = installed
    project(tmp_path / "project", LINEAR)
    command = [sys.executable, target / "bin" / "package"]
    out = run(*command, "build", "package.yaml", "--json", cwd=tmp_path / "project", env=environment)
    built = json.loads(out)
    assert built["bundle"] == "dist/net-1.0.0"
    run(*command, "verify", "dist/net-1.0.0", cwd=tmp_path / "project", env=environment)
    text = (tmp_path / "project/dist/net-1.0.0/README.md").read_text()
    assert text.startswith("# net 1.0.0\n")
    assert packager.verify(tmp_path / "project/dist/net-1.0.0", fingerprint=built["fingerprint"]).ok
