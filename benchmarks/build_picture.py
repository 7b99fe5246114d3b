"""docs/build.svg: a terminal in which examples/digits is built and its bundle is verified.

    python benchmarks/build_picture.py [PICTURE.svg]

Both commands run in a pseudo-terminal of a fixed width, in a temporary copy of the example with an empty build cache.
What they print is drawn by rich. If the new picture differs from the old one only in the seconds, the old one stays.
"""

import fcntl
import os
import pty
import re
import shutil
import struct
import subprocess
import sys
import tempfile
import termios
from pathlib import Path

from rich._export_format import CONSOLE_SVG_FORMAT
from rich.console import Console
from rich.terminal_theme import MONOKAI
from rich.text import Text

ROOT = Path(__file__).resolve().parent.parent
EXAMPLE = ROOT / "examples/digits"
COLUMNS, LINES = 92, 50
COMMANDS = (("package", "build", "package.yaml"), ("package", "verify", "dist/digits-cnn-1.0.0"))
CONTROL = re.compile(r"\r|\n|\x1b\[\??[\d;]*[A-Za-ln-z]")  # everything but colours, whose sequences end in m
FONT_FACE = re.compile(r"@font-face \{\{.*?\}\}\s*", re.DOTALL)  # a picture fetches nothing
SECONDS = re.compile(r"(?:&#160;|\s)*\d+\.\d&#160;s")


def run_in_terminal(command: tuple[str, ...], folder: Path, cache: Path) -> str:
    """Run a command of this environment in a pseudo-terminal, and return everything that it wrote there."""
    terminal, side = pty.openpty()
    fcntl.ioctl(side, termios.TIOCSWINSZ, struct.pack("HHHH", LINES, COLUMNS, 0, 0))
    environment = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "COLUMNS", "LINES")}
    environment |= {"TERM": "xterm-256color", "PACKAGER_CACHE": str(cache)}
    arguments = [sys.executable, "-m", "packager", *command[1:]]
    with subprocess.Popen(arguments, cwd=folder, env=environment, stdin=side, stdout=side, stderr=side) as process:
        os.close(side)
        output = b""
        try:
            while part := os.read(terminal, 1 << 16):
                output += part
        except OSError:  # Linux reports the end of a pseudo-terminal as an input/output error
            pass
    os.close(terminal)
    text = output.decode("utf-8")
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{text}")
    return text


def replay(output: str) -> list[str]:
    """Return the lines that remain on a terminal once a spinner has erased its own, colours included."""
    lines, row, position = [""], 0, 0
    for control in CONTROL.finditer(output):
        lines[row] += output[position : control.start()]
        position = control.end()
        if control[0] == "\n":
            row += 1
            lines += [""] * (row == len(lines))
        elif control[0].endswith("A"):
            row -= int(control[0][2:-1] or 1)
        elif control[0].endswith("K"):
            lines[row] = ""
    lines[row] += output[position:]
    return [line for line in lines if Text.from_ansi(line).plain.strip()]


def draw(transcripts: list[tuple[str, list[str]]]) -> str:
    """Return an SVG picture of a terminal with commands and their output."""
    with Path(os.devnull).open("w") as nowhere:
        console = Console(record=True, width=COLUMNS, file=nowhere, force_terminal=True, color_system="truecolor")
        for number, (command, lines) in enumerate(transcripts):
            if number:
                console.print()
            console.print(Text.assemble(("$ ", "bold green"), (command, "bold")))
            for line in lines:
                console.print(Text.from_ansi(line), soft_wrap=True)
    picture: str = console.export_svg(
        title="digits-cnn", theme=MONOKAI, code_format=FONT_FACE.sub("", CONSOLE_SVG_FORMAT), unique_id="build"
    )
    return "\n".join(line.rstrip() for line in picture.splitlines()) + "\n"


def main(path: Path) -> None:
    """Run the commands, and write the picture unless only the seconds changed."""
    if not (EXAMPLE / "runs").exists():
        raise SystemExit("train the example first: python examples/digits/train.py")
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch, "digits")
        shutil.copytree(EXAMPLE, folder, ignore=shutil.ignore_patterns("dist", "__pycache__"))
        cache = Path(scratch, "cache")
        transcripts = [(" ".join(one), replay(run_in_terminal(one, folder, cache))) for one in COMMANDS]
    picture = draw(transcripts)
    for private in (scratch, str(ROOT), str(Path.home())):
        if private in picture:
            raise SystemExit(f"the picture would show a path of this machine: {private}")
    if path.exists() and SECONDS.sub("", path.read_text(encoding="utf-8")) == SECONDS.sub("", picture):
        print(f"{path} is up to date")
        return
    path.write_text(picture, encoding="utf-8")
    print(f"{path} written")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "docs/build.svg")
