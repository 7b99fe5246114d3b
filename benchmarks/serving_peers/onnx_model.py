"""The ONNX model as every peer runs it: `MODEL` is its file, with one thread for a run, as several workers want it."""

import json
import os

import numpy as np
import onnxruntime

DTYPES = {"tensor(float)": np.float32, "tensor(int64)": np.int64}


class OnnxModel:
    def __init__(self):
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = int(os.environ["THREADS"])
        self.session = onnxruntime.InferenceSession(os.environ["MODEL"], options, providers=["CPUExecutionProvider"])
        self.inputs = {tensor.name: DTYPES[tensor.type] for tensor in self.session.get_inputs()}

    def run(self, rows):
        """Run a list of requests as one batch: dicts of arrays [1, …] in, a list of arrays out."""
        feed = {name: np.concatenate([row[name] for row in rows]) for name in self.inputs}
        return list(self.session.run(None, feed)[0])

    def parse(self, document):
        """Turn `{"NAME": nested lists}` into arrays."""
        return {name: np.asarray(document[name], dtype) for name, dtype in self.inputs.items()}

    def view(self, body):
        """Turn the bytes of all inputs, which have one shape and dtype, into arrays; `SHAPE` is that of one."""
        shape = json.loads(os.environ["SHAPE"])
        size = len(body) // len(self.inputs)
        parts = [body[start : start + size] for start in range(0, len(body), size)]
        return {
            name: np.frombuffer(part, dtype).reshape(shape)
            for (name, dtype), part in zip(self.inputs.items(), parts, strict=True)
        }
