"""scikit-learn's handwritten digits: 1,797 real 8 × 8 images, shipped inside the package."""

import numpy as np
from numpy.typing import NDArray
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split


def split() -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.int64], NDArray[np.int64]]:
    """Training images, test images, training labels, test labels; images [n, 1, 8, 8] in [0, 1]."""
    digits = load_digits()
    images = (digits.images / 16.0).astype(np.float32)[:, None]
    return tuple(train_test_split(images, digits.target, test_size=0.25, random_state=0, stratify=digits.target))
