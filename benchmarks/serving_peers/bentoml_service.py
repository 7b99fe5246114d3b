"""BentoML with the ONNX model: arrays in JSON, and its adaptive batching."""

import os

import bentoml
import numpy as np
from onnx_model import OnnxModel

WORKERS = int(os.environ["WORKERS"])
NAMES = os.environ["NAMES"].split(",")


@bentoml.service(workers=WORKERS, traffic={"timeout": 60}, logging={"access": {"enabled": False}})
class Service:
    def __init__(self):
        self.model = OnnxModel()

    if len(NAMES) == 1:

        @bentoml.api(batchable=True, max_batch_size=16, max_latency_ms=1000, input_spec=None)
        def predict(self, image: np.ndarray) -> np.ndarray:
            return self.model.session.run(None, {NAMES[0]: image.astype(np.float32, copy=False)})[0]

    else:

        @bentoml.api
        def predict(self, input_ids: np.ndarray, attention_mask: np.ndarray) -> np.ndarray:
            return self.model.session.run(None, self.model.parse(
                {"input_ids": input_ids, "attention_mask": attention_mask}
            ))[0]  # fmt: skip
