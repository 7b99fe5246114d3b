"""mosec with the ONNX model. JSON is mosec's own, json.loads and json.dumps; as bytes, numpy's."""

import os

from mosec import Server, Worker
from onnx_model import OnnxModel


class Json(Worker):
    def __init__(self):
        super().__init__()
        self.model = OnnxModel()

    def deserialize(self, data):
        return self.model.parse(super().deserialize(data))

    def forward(self, data):
        return self.model.run(data)

    def serialize(self, data):
        return super().serialize(data.tolist())


class Binary(Json):
    def deserialize(self, data):
        return self.model.view(data)

    def serialize(self, data):
        return data.tobytes()


if __name__ == "__main__":
    server = Server()
    worker = {"json": Json, "binary": Binary}[os.environ["ENCODING"]]
    server.append_worker(worker, num=int(os.environ["WORKERS"]), max_batch_size=16, max_wait_time=1)
    server.run()
