"""Load the bundle in a process without torch, and predict the digits that training never saw."""

import sys
from pathlib import Path

from data import split

import packager


def main(path: str) -> None:
    """Print a few predictions and the accuracy on the test images."""
    _, images, _, labels = split()
    names = (Path(path) / "assets/labels.txt").read_text().split()
    bundle = packager.load(path)
    predicted = bundle.run({"image": images[:256]})["logits"].argmax(1)
    for shown in range(5):
        verdict = "right" if predicted[shown] == labels[shown] else "wrong"
        print(f"image {shown}: {names[predicted[shown]]:<6} {verdict}")
    rest = bundle(image=images[256:])["logits"].argmax(1)
    right = int((predicted == labels[:256]).sum() + (rest == labels[256:]).sum())
    print(f"accuracy on {len(labels)} test images: {right / len(labels):.1%}")
    print(f"backend {bundle.backend}, torch imported: {'torch' in sys.modules}, {bundle.fingerprint}")


if __name__ == "__main__":
    main(sys.argv[1])
