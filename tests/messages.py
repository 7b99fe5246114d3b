"""Check the wording of messages against golden files, and the facts in them against the tests.

goldens/errors/ has a file for each error class, checked by test_errors.py. Every other golden file holds the
messages of one test module, a section for each check:

    ==== test_name[case]
    error[code]: the whole message

`pytest --update-goldens` rewrites the files; review the diff. Facts are asserted in the tests (`golden(text, *facts)`,
`mentions(text, *facts)`), so they hold whatever the wording is.
"""

import difflib
import re
from pathlib import Path

GOLDENS = Path(__file__).parent / "goldens"
VARYING = {
    re.compile(r"h1:[A-Za-z0-9+/]{43}="): "<fingerprint>",
    re.compile(r"\b[0-9a-f]{64}\b"): "<sha256>",
    re.compile(r"127\.0\.0\.1:\d+"): "<server>",
}
HINT = "run pytest --update-goldens on this test, and review the diff"
HEADING = re.compile(r"^==== (.+)\n", re.MULTILINE)


def mentions(text, *facts):
    """Assert that a text, or the text of an error, contains every fact, in any wording."""
    text = str(text)
    missing = [str(fact) for fact in facts if not carries(text, str(fact))]
    assert not missing, f"{missing} not mentioned in:\n{text}"
    return True


def carries(text, fact):
    """Return whether a text contains a fact as a whole word or number, not just as part of a longer one."""
    before = r"(?<![A-Za-z0-9_])" if re.match(r"\w", fact) else ""
    after = r"(?![A-Za-z0-9_])" if re.search(r"\w$", fact) else ""
    return re.search(before + re.escape(fact) + after, text) is not None


def read_sections(path):
    """Return the sections of a golden file by their headings; a file that does not exist has no sections."""
    if not path.exists():
        return {}
    parts = HEADING.split(path.read_text(encoding="utf-8"))
    return {heading: body.removesuffix("\n") for heading, body in zip(parts[1::2], parts[2::2], strict=True)}


def write_sections(path, sections):
    """Write the sections of a golden file, sorted by their headings."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(f"==== {heading}\n{sections[heading]}\n" for heading in sorted(sections))
    path.write_text(text, encoding="utf-8")


class Golden:
    """Compare the messages of one test with the sections of its module's golden file."""

    def __init__(self, path, test, folders, *, update):
        self.path = path
        self.test = test
        self.folders = folders  # regular expression → replacement, for paths that differ between runs
        self.update = update
        self.checks = 0

    def __call__(self, message, *facts, **values):
        """Assert that a message contains its facts and values, and reads as in the golden file.

        `values` differ between machines or runs; the golden file has `<name>` instead.
        """
        text = str(message)
        mentions(text, *facts, *values.values())
        self.check(self.without_values(text, values))

    def without_values(self, text, values):
        """Replace everything that differs between runs by a name."""
        for name, value in values.items():
            text = text.replace(str(value), f"<{name}>")
        for pattern, replacement in {**self.folders, **VARYING}.items():
            text = re.sub(pattern, replacement, text)
        return text

    def check(self, text):
        """Compare a text with the next section of this test, or write that section."""
        assert not HEADING.search(text + "\n")
        self.checks += 1
        heading = self.test if self.checks == 1 else f"{self.test} {self.checks}"
        sections = read_sections(self.path)
        if self.update:
            write_sections(self.path, sections | {heading: text})
            return
        assert heading in sections, f"no section {heading!r} in {self.path}: {HINT}\n{text}"
        compare(self.path, sections[heading], text)


def compare(path, expected, text):
    """Assert that a message reads as in its golden file, and show the difference if it does not."""
    difference = difflib.unified_diff(expected.split("\n"), text.split("\n"), "golden", "now", lineterm="")
    assert expected == text, "\n".join([f"{path} reads differently: {HINT}", *difference])


def check_file(path, text, *, update):
    """Compare a text with a golden file of its own, or write that file."""
    if update:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        return
    assert path.exists(), f"there is no {path}: {HINT}\n{text}"
    compare(path, path.read_text(encoding="utf-8"), text)
