"""Make the virtual environment that `make models` runs in, with all libraries of the catalogue.

    python benchmarks/models/environment.py

The versions are those of constraints.txt and benchmarks/models/requirements.txt. The index has torchvision and
torchaudio with compiled operators for CUDA alone, which do not load beside a torch for the CPU: they are taken out.
The models of both are Python, and work without them; non-maximum suppression does not.
"""

from __future__ import annotations

import subprocess
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "benchmarks" / "work" / "models" / "venv"
OLDER = FOLDER.parent / "transformers4"  # a folder for PYTHONPATH: the models of transformers run with both versions


def main() -> None:
    """Create and fill the environment, unless it is there."""
    ready = FOLDER / ".ready"
    if ready.exists():
        return
    venv.create(FOLDER, with_pip=True, clear=True)
    install("torch", "setuptools<81", "hatchling", "editables")
    install("--no-deps", "-r", str(ROOT / "benchmarks" / "models" / "requirements.txt"))
    install("--no-build-isolation", "-e", f"{ROOT}[build]")
    for package in FOLDER.glob("lib/python*/site-packages"):
        repair(package)
    older = ("transformers==4.57.6", "huggingface_hub==0.36.2", "tokenizers==0.22.2")
    install("--no-deps", "--target", str(OLDER), *older, constrained=False)
    ready.touch()


def install(*arguments: str, constrained: bool = True) -> None:
    """Run pip in the environment, with the versions of constraints.txt if `constrained`."""
    pip = [str(FOLDER / "bin" / "python"), "-m", "pip", "install", "--quiet", "--no-compile"]
    constraints = ["-c", str(ROOT / "constraints.txt")] if constrained else []
    subprocess.run([*pip, *constraints, *arguments], check=True)


def repair(packages: Path) -> None:
    """Remove the compiled operators of torchaudio and torchvision that do not load."""
    if not imports("torchaudio"):
        for library in (packages / "torchaudio" / "lib").glob("*.so"):
            library.unlink()
    if not imports("torchvision"):
        (packages / "torchvision" / "_meta_registrations.py").write_text("")  # it registers for these operators
    for name in ("torchaudio", "torchvision"):
        if not imports(name):
            raise SystemExit(f"{name} cannot be imported in {FOLDER}")


def imports(name: str) -> bool:
    """Return whether the environment's Python can import a module."""
    command = [str(FOLDER / "bin" / "python"), "-c", f"import {name}"]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


if __name__ == "__main__":
    main()
