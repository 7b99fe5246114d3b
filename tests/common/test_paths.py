"""The package is located by one module, so that moving any other module changes nothing that is built or cached."""

import ast
import json
import shutil

from projects import ROOT, python

from packager.common.paths import PACKAGE, data_folder

MODULES = sorted((ROOT / "packager").rglob("*.py"))

UNNOTICED_CHANGES = """
import json, sys
sys.path.insert(0, sys.argv[1])
from packager.builder.incremental import environment

def digests():
    environment.digest_own_code.cache_clear()
    return environment.digest_own_code()["packager"], environment.digest_own_mtimes()

unnoticed, before = [], digests()
for name in json.loads(sys.argv[2]):
    with open(f"{sys.argv[1]}/{name}", "a") as stream:
        stream.write("# changed\\n")
    after = digests()
    if any(old == new for old, new in zip(before, after)):
        unnoticed.append(name)
    before = after
print(json.dumps([environment.__file__, unnoticed]))
"""


def test_the_package_and_its_data_are_found_in_a_checkout():
    assert PACKAGE == ROOT / "packager"
    assert (data_folder("schemas"), data_folder("templates")) == (ROOT / "schemas", ROOT / "templates")


def test_no_other_module_reads_its_own_path():
    modules = {
        path.relative_to(PACKAGE).as_posix()
        for path in MODULES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Name) and node.id == "__file__"
    }
    assert modules == {"common/paths.py"}


def test_a_change_to_any_module_changes_both_digests_of_the_code(tmp_path):
    shutil.copytree(ROOT / "packager", tmp_path / "packager", ignore=shutil.ignore_patterns("__pycache__"))
    names = [path.relative_to(ROOT).as_posix() for path in MODULES]
    assert len(names) > 100
    process = python(UNNOTICED_CHANGES, tmp_path, json.dumps(names))
    assert process.returncode == 0, process.stderr
    file, unnoticed = json.loads(process.stdout)
    assert file == str(tmp_path / "packager/builder/incremental/environment.py")
    assert unnoticed == []
