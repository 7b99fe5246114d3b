"""The name of a bundle, as Kubernetes and Python allow names."""

from __future__ import annotations

import re

_MAX_LABEL = 63  # of a label of DNS


def make_resource_name(name: str) -> str:
    """Return a bundle's name as a label of DNS: `2d_net.` is model-2d-net.

    It has lowercase letters, digits and `-`, starts with a letter, and has at most 63 characters.
    """
    label = re.sub(r"[^a-z0-9]+", "-", name)
    label = label if label[0].isalpha() else f"model-{label.lstrip('-')}"
    return label[:_MAX_LABEL].rstrip("-")


def make_class_name(name: str) -> str:
    """Return a bundle's name as that of a class: `digits-cnn` is DigitsCnnService, `3d_net` Model3dNetService."""
    words = "".join(part.capitalize() for part in re.split(r"[^a-z0-9]+", name))
    return f"{words if words[:1].isalpha() else f'Model{words}'}Service"
