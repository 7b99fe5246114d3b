"""MLServer with the ONNX model: its codecs for JSON, and its adaptive batching."""

from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceResponse
from onnx_model import OnnxModel


class Model(MLModel):
    async def load(self):
        self.model = OnnxModel()
        return True

    async def predict(self, payload):
        feed = {tensor.name: NumpyCodec.decode_input(tensor) for tensor in payload.inputs}
        feed = {name: feed[name].astype(dtype, copy=False) for name, dtype in self.model.inputs.items()}
        output = self.model.session.run(None, feed)[0]
        return InferenceResponse(model_name=self.name, outputs=[NumpyCodec.encode_output("output", output)])
