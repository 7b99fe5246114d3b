"""Check README.md, CONTRIBUTING.md and docs/ against the code: errors, commands, links, manifests, modules, tests."""

import importlib.util
import pkgutil
import re
import shlex
import xml.etree.ElementTree as ElementTree
from collections import Counter
from typing import get_args, get_origin

import click
import pytest
import yaml
from projects import ROOT
from pydantic import BaseModel

from packager import errors
from packager.cli.main import cli
from packager.errors import PackagerError, Refused, UserError
from packager.project import manifest

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md", *sorted((ROOT / "docs").glob("*.md"))]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
BASE = {
    "schema": 1,
    "name": "net",
    "version": "1.0.0",
    "checkpoint": {"path": "net.pt"},
    "inputs": {"x": {"dtype": "float32", "shape": ["batch", 4]}},
}


def relative(path):
    return path.relative_to(ROOT).as_posix()


def blocks(*languages):
    """Return every fenced block of these languages, with its page and line as the id."""
    return [
        pytest.param(block[2], id=f"{relative(page)}:{text.count(chr(10), 0, block.start()) + 1}")
        for page in PAGES
        for text in [page.read_text(encoding="utf-8")]
        for block in FENCE.finditer(text)
        if block[1] in languages
    ]


def prose(page):
    """Return the text of a page without fenced blocks, as they contain no links or headings."""
    return FENCE.sub("", page.read_text(encoding="utf-8"))


# -- docs/security.md -----------------------------------------------------------------------


def test_every_attack_names_a_test_that_exists():
    text = (ROOT / "docs/security.md").read_text(encoding="utf-8")
    table = text.partition("## Attacks, and the test of each")[2].partition("\n## ")[0]
    rows = [line for line in table.splitlines() if line.startswith("| ")][2:]
    tests = [re.search(r"`(test_\w+)` in (tests/\S+\.py) \|$", row) for row in rows]
    assert len(rows) > 20 and all(tests)
    missing = [test[1] for test in tests if f"def {test[1]}(" not in (ROOT / test[2]).read_text(encoding="utf-8")]
    assert missing == []


# -- docs/errors.md -------------------------------------------------------------------------


def statuses(base=PackagerError):
    """Map every code of the tree to its exit status; a bug has no class and is reported by `packager.cli`."""
    codes = {"bug": 3} if base is PackagerError else {}
    for error_class in base.__subclasses__():
        if error_class.__module__ != errors.__name__:
            continue  # made by a test
        if error_class not in (Refused, UserError):
            codes[error_class.code] = error_class.exit_status
        codes |= statuses(error_class)
    return codes


def documented_errors():
    return re.findall(
        r"^\| `([a-z-]+)` \| (\d) \|", (ROOT / "docs/errors.md").read_text(encoding="utf-8"), re.MULTILINE
    )


def test_every_error_code_has_one_row():
    rows = Counter(code for code, _ in documented_errors())
    assert rows == Counter(list(statuses()))


def test_every_error_row_has_the_exit_status_of_its_class():
    assert {code: int(status) for code, status in documented_errors()} == statuses()


def test_every_error_row_has_the_four_columns():
    lines = (ROOT / "docs/errors.md").read_text(encoding="utf-8").splitlines()
    rows = [re.split(r" (?<!\\)\| ", line.strip("| ")) for line in lines if re.match(r"\| `[a-z-]+` ", line)]
    assert [row[0] for row in rows if len(row) != 4 or not all(row)] == []


# -- the commands ---------------------------------------------------------------------------


def unknown_parts(words):
    """Return the commands and options of a command line, without `package`, that do not exist."""
    command, problems = cli, []
    for word in words:
        name = word.partition("=")[0]
        options = {option for parameter in command.params for option in parameter.opts + parameter.secondary_opts}
        if name.startswith("-") and name not in options | {"-h", "--help"}:
            problems.append(name)
        if isinstance(command, click.Group) and not name.startswith("-"):
            alternatives = [command.commands.get(alternative) for alternative in name.split("|")]
            problems += [name] if None in alternatives else []
            command = alternatives[0] or command
    return problems


def command_table():
    """Return the words of the command and every code span, for each row of README's command table."""
    rows = []
    for line in (ROOT / "README.md").read_text(encoding="utf-8").splitlines():
        if line.startswith("| `package "):
            spans = re.findall(r"`([^`]+)`", line.replace("\\|", "|"))
            rows.append((re.sub(r"[\[\]]", " ", spans[0]).split()[1:], spans))
    return rows


def test_every_command_and_option_of_the_readmes_table_exists():
    problems = [
        (words[0], problem)
        for words, spans in command_table()
        for span in spans
        for problem in unknown_parts(
            words if span is spans[0] else [words[0], *re.findall(r"(?<!\S)--?[a-z][a-z-]*", span)]
        )
    ]
    assert problems == []


def test_every_command_is_in_the_readmes_table():
    assert {words[0] for words, _ in command_table()} == set(cli.commands)


def test_choices_of_the_readmes_table_are_those_of_the_command():
    choices = {words[0]: words[1] for words, _ in command_table() if words[0] in ("cache", "schema")}
    schema_names = next(argument for argument in cli.commands["schema"].params if argument.name == "name").type.choices
    cache = cli.commands["cache"]
    assert isinstance(cache, click.Group)
    assert choices["schema"].split("|") == list(schema_names)
    assert sorted(choices["cache"].split("|")) == sorted(cache.commands)


@pytest.mark.parametrize("block", blocks("sh", "bash", "console"))
def test_every_command_line_shown_exists(block):
    problems = []
    for line in block.splitlines():
        words = shlex.split(line.removeprefix("$ "), comments=True)
        if "package" in words[:2]:
            problems += unknown_parts(
                [word for word in words[words.index("package") + 1 :] if word not in ("…", "...")]
            )
    assert problems == []


def test_every_target_of_make_that_is_named_exists():
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    texts = [page.read_text(encoding="utf-8") for page in PAGES]
    named = {target for text in texts for target in re.findall(r"(?:^|`)make ([a-z]+)", text, re.MULTILINE)}
    assert "test" in named
    assert named - targets == set()


# -- links ----------------------------------------------------------------------------------


def anchors(page):
    """Return the anchors that GitHub gives to the headings of a page."""
    headings = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=relative)
def test_every_relative_link_points_to_a_file_and_a_heading(page):
    broken = []
    for link in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        if re.match(r"[a-z]+:", link):
            continue
        if not target.exists() or (anchor and anchor not in anchors(target)):
            broken.append(link)
    assert broken == []


@pytest.mark.parametrize("page", PAGES, ids=relative)
def test_every_page_of_the_documentation_that_is_named_exists(page):
    named = re.findall(r"\b(?:docs|benchmarks|examples|tests)/[\w./-]*\.(?:md|py|svg|yaml)\b", prose(page))
    assert [path for path in named if not (ROOT / path).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=relative)
def test_every_test_that_is_named_exists(page):
    sources = [path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("test_*.py")]
    defined = {name for source in sources for name in re.findall(r"^def (test_\w+)", source, re.MULTILINE)}
    named = set(re.findall(r"`(test_\w+)`", prose(page)))
    assert sorted(named - defined) == []


# -- manifests ------------------------------------------------------------------------------


def is_whole(block):
    """Return whether a block is a whole manifest: one that begins with `schema`. Other mappings are parts of one."""
    return next(iter(yaml.safe_load(block))) == "schema"


def manifests():
    return [block for block in blocks("yaml") if isinstance(yaml.safe_load(block.values[0]), dict)]


@pytest.mark.parametrize("page", ["README.md", "docs/manifest.md"])
def test_a_page_that_explains_the_manifest_shows_a_whole_one(page):
    assert any(block.id.startswith(f"{page}:") and is_whole(block.values[0]) for block in manifests())


@pytest.mark.parametrize("block", manifests())
def test_every_manifest_and_part_of_one_shown_is_valid(block, tmp_path):
    missing = {} if is_whole(block) else {key: BASE[key] for key in BASE.keys() - yaml.safe_load(block).keys()}
    path = tmp_path / "package.yaml"
    path.write_text((yaml.safe_dump(missing) if missing else "") + block, encoding="utf-8")
    assert manifest.load_manifest(path).manifest.name


REQUIRED = "required"


def submodels(annotation):
    """The pydantic models in an annotation, and whether they are the values of a dict."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [(annotation, False)]
    in_dict = get_origin(annotation) is dict
    return [(model, nested or in_dict) for part in get_args(annotation) for model, nested in submodels(part)]


def fields(model=manifest.Manifest, prefix=""):
    """The default of every field of the manifest by its path, in which NAME stands for a key of the user's."""
    defaults = {}
    for name, field in model.model_fields.items():
        path = f"{prefix}{field.alias or name}"
        if submodels(field.annotation) != [(field.annotation, False)]:
            defaults[path] = REQUIRED if field.is_required() else field.default
        for submodel, in_dict in submodels(field.annotation):
            defaults |= fields(submodel, f"{path}.NAME." if in_dict else f"{path}.")
    return defaults


def test_the_page_on_the_manifest_has_every_field_with_its_default():
    text = (ROOT / "docs/manifest.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `([\w.]+)` \| (\S+) \| .+ \|$", text, re.MULTILINE)
    documented = {
        path: default if default == REQUIRED else yaml.safe_load(default.strip("`")) for path, default in rows
    }
    assert documented == fields()
    assert len(rows) == len(documented)


def test_the_manifest_that_is_shown_whole_has_every_field():
    shown = [yaml.safe_load(block.values[0]) for block in manifests() if block.id.startswith("docs/manifest.md:")]
    whole = max(shown, key=lambda sections: len(str(sections)))
    nested = {f"{section}.{field}" for section, value in whole.items() if isinstance(value, dict) for field in value}
    wanted = {path for path in fields() if "NAME" not in path and not path.startswith("parity.tolerance.")}
    assert wanted - whole.keys() - nested == set()


# -- docs/architecture.md -------------------------------------------------------------------


def rooms():
    """Every folder of the package that holds code, as docs/architecture.md names it."""
    return {f"{relative(path.parent)}/" for path in (ROOT / "packager").glob("*/**/__init__.py")}


def test_every_room_is_in_the_table_of_the_architecture():
    text = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
    assert set(re.findall(r"^\| `(packager/[\w/]+/)` \|", text, re.MULTILINE)) == rooms()


@pytest.mark.parametrize("page", PAGES, ids=relative)
def test_every_path_of_the_package_that_is_named_exists(page):
    named = re.findall(r"`(packager/[\w./]*)`", prose(page))
    assert [path for path in named if not (ROOT / path).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=relative)
def test_every_module_and_name_of_the_package_that_is_named_exists(page):
    missing = []
    for name in sorted(set(re.findall(r"`(packager(?:\.\w+)+)", prose(page)))):
        try:
            pkgutil.resolve_name(name)
        except (ImportError, AttributeError):
            missing.append(name)
    assert missing == []


# -- docs/api.md and docs/build.svg ---------------------------------------------------------


def test_the_page_on_the_api_is_what_its_generator_writes():
    spec = importlib.util.spec_from_file_location("generate_api", ROOT / "docs/generate_api.py")
    generator = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generator)
    assert generator.render() == generator.PAGE.read_text(encoding="utf-8"), "run `make api`"


def test_the_picture_of_a_build_shows_the_readmes_commands_and_no_folder_of_a_machine():
    root = ElementTree.parse(ROOT / "docs/build.svg").getroot()
    shown = " ".join("".join(root.itertext()).replace("\N{NO-BREAK SPACE}", " ").split())
    assert "$ package build package.yaml" in shown
    assert "$ package verify dist/digits-cnn-1.0.0" in shown
    assert "parity onnx pass" in shown
    assert not re.search(r"/(home|root|tmp|work|Users|var)\b", shown)
