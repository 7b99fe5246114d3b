"""Stand in for Triton's onnxruntime backend, which is in no wheel: a Python-based backend of a real Triton.

Like that backend, it joins the requests that Triton's batcher gives it into one batch, runs it, and cuts the outputs.
The wheel's stub was compiled for numpy 1, so that arrays pass as DLPack.
"""

import json
import os
import sys

sys.path[:0] = ["<site-packages>"]

import numpy as np  # noqa: E402
import onnxruntime  # noqa: E402
import torch  # noqa: E402
import triton_python_backend_utils as triton  # noqa: E402


class TritonPythonModel:
    def initialize(self, args):
        config = json.loads(args["model_config"])
        path = os.path.join(args["model_repository"], args["model_version"], config["default_model_filename"])
        self.session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        self.is_batched = config["max_batch_size"] > 0
        self.inputs = {tensor["name"]: tensor for tensor in config["input"]}
        self.outputs = config["output"]

    def execute(self, requests):
        if not self.is_batched:
            return [self.respond(self.run(self.read(request))) for request in requests]
        parts = [self.read(request) for request in requests]
        outputs = self.run({name: np.concatenate([part[name] for part in parts]) for name in parts[0]})
        ends = np.cumsum([len(next(iter(part.values()))) for part in parts])[:-1]
        pieces = {name: np.split(array, ends) for name, array in outputs.items()}
        return [self.respond({name: piece[index] for name, piece in pieces.items()}) for index in range(len(parts))]

    def read(self, request):
        feed = {}
        for tensor in self.session.get_inputs():
            array = np.from_dlpack(triton.get_input_tensor_by_name(request, tensor.name))
            feed[tensor.name] = array.reshape(()) if tensor.shape == [] else array
        return feed

    def run(self, feed):
        names = [tensor["name"] for tensor in self.outputs]
        return dict(zip(names, self.session.run(names, feed), strict=True))

    def respond(self, outputs):
        tensors = []
        for tensor in self.outputs:
            array = outputs[tensor["name"]]
            array = array.reshape(tensor["dims"]) if array.shape == () else array
            packed = torch.utils.dlpack.to_dlpack(torch.from_numpy(np.ascontiguousarray(array)))
            tensors.append(triton.Tensor.from_dlpack(tensor["name"], packed))
        return triton.InferenceResponse(tensors)
