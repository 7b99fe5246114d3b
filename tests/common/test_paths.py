"""Where the package is found: by one module, so that moving any other one changes nothing that is built or cached."""

import ast
import json
import shutil

from projects import ROOT, python

from packager.common.paths import PACKAGE, data_folder

MODULES = sorted((ROOT / "packager").rglob("*.py"))

MISSED = """
import json, sys
sys.path.insert(0, sys.argv[1])
from packager import actions

def digests():
    actions.own.cache_clear()
    return actions.own()["packager"], actions.own_times()

missed, before = [], digests()
for name in json.loads(sys.argv[2]):
    with open(f"{sys.argv[1]}/{name}", "a") as stream:
        stream.write("# changed\\n")
    now = digests()
    if any(one == other for one, other in zip(before, now)):
        missed.append(name)
    before = now
print(json.dumps([actions.__file__, missed]))
"""


def test_the_package_and_its_data_are_found_in_a_checkout():
    assert PACKAGE == ROOT / "packager"
    assert (data_folder("schemas"), data_folder("templates")) == (ROOT / "schemas", ROOT / "templates")


def test_no_other_module_asks_where_it_lies():
    named = {
        path.relative_to(PACKAGE).as_posix()
        for path in MODULES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Name) and node.id == "__file__"
    }
    assert named == {"common/paths.py"}


def test_a_change_of_any_module_changes_both_digests_of_the_code(tmp_path):
    shutil.copytree(ROOT / "packager", tmp_path / "packager", ignore=shutil.ignore_patterns("__pycache__"))
    names = [path.relative_to(ROOT).as_posix() for path in MODULES]
    assert len(names) > 100
    answer = python(MISSED, tmp_path, json.dumps(names))
    assert answer.returncode == 0, answer.stderr
    file, missed = json.loads(answer.stdout)
    assert file == str(tmp_path / "packager/actions.py")
    assert missed == []
