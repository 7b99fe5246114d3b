"""Why models of the catalogue are refused: what their code does that no artifact can hold, or no exporter can write.

docs/models.md gives these reasons beside the errors of the build. They were found by reading the code of the models.
"""

from __future__ import annotations

from collections.abc import Mapping

_RANDOM = "draws random numbers in forward()"
_LOOP = "computes sizes in Python: a loop over the length, or over chunks of it"
_LOOP_FIXED = f"{_LOOP}; with a fixed length, as the error advises, it is built and right"
_TIES = "chooses queries by the scores of untrained weights, which differ by less than rounding"
_EINX = "einx turns every size into a number; with fixed sizes, it is built and right"
_BRANCH = "takes one side of a branch for short inputs, and the other for long ones"

LIMITS: Mapping[str, str] = {
    "asteroid-dcunet": "a branch on a size stops torch.export, and the other exporter has no complex numbers",
    "denoiser-demucs": "computes the padded length with int() and max(), which a trace turns into constants; with a "
    "fixed length, it is built and right",
    "encodec-24khz-decoder": f"{_BRANCH}; with `frames: {{min: 20}}`, it is built and right",
    "kornia-loftr": "returns nothing with random weights: every output is empty, so there is nothing to compare",
    "neuralforecast-informer": _RANDOM,
    "neuralforecast-timesnet": "reshapes by periods that it finds in the data",
    "silero-vad": "keeps state from one call to the next",
    "speechbrain-xvector": _RANDOM,
    "transformers-canine": _LOOP_FIXED,
    "transformers-d-fine": _TIES,
    "transformers-encodec-decoder": f"{_BRANCH}; with `frames: {{min: 20}}`, it is built and right",
    "transformers-funnel": _LOOP_FIXED,
    "transformers-informer-encoder": _RANDOM,
    "transformers-longformer": _LOOP,
    "transformers-mamba": _LOOP_FIXED,
    "transformers-recurrent-gemma": _LOOP_FIXED,
    "transformers-rt-detr": _TIES,
    "transformers-superpoint": "loops over the images of the batch, with a number of keypoints that depends on each",
    "transformers-switch": "loops over the experts that the data reaches",
    "transformers-vilt": _RANDOM,
    "transformers-vit-mae": _RANDOM,
    "x-transformers-alibi": _EINX,
    "x-transformers-continuous": _EINX,
    "x-transformers-relative": _EINX,
}
