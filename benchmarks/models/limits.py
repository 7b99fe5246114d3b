"""What models of the catalogue do that no artifact can hold, or no exporter can write, as their code shows.

docs/models.md gives these reasons beside the errors of the build. A model that is refused without one is a defect.
"""

from __future__ import annotations

from collections.abc import Mapping

_RANDOM = "draws random numbers in forward()"
_LOOP = "computes sizes in Python: a loop over the length, or over chunks of it"
_TIES = "chooses queries by the scores of untrained weights, which differ by less than rounding"
_EINX = "einx makes a number of each size"
_BRANCH = "takes one side of a branch for short inputs, and the other for long ones"

LIMITS: Mapping[str, str] = {
    "asteroid-dcunet": "a branch on a size stops torch.export, and the other exporter has no complex numbers",
    "denoiser-demucs": "computes the padded length with int() and max() of Python, which a trace makes numbers of",
    "encodec-24khz-decoder": _BRANCH,
    "kornia-loftr": "returns nothing with random weights: every output is empty, so there is nothing to compare",
    "neuralforecast-informer": _RANDOM,
    "neuralforecast-timesnet": "reshapes by periods that it finds in the data",
    "silero-vad": "keeps state from one call to the next",
    "speechbrain-xvector": _RANDOM,
    "transformers-canine": _LOOP,
    "transformers-d-fine": _TIES,
    "transformers-encodec-decoder": _BRANCH,
    "transformers-funnel": _LOOP,
    "transformers-informer-encoder": _RANDOM,
    "transformers-longformer": _LOOP,
    "transformers-mamba": _LOOP,
    "transformers-recurrent-gemma": _LOOP,
    "transformers-rt-detr": _TIES,
    "transformers-superpoint": "loops over the images of the batch, with a number of keypoints that depends on each",
    "transformers-switch": "loops over the experts that the data reaches",
    "transformers-vilt": _RANDOM,
    "transformers-vit-mae": _RANDOM,
    "x-transformers-alibi": _EINX,
    "x-transformers-continuous": _EINX,
    "x-transformers-relative": _EINX,
}
