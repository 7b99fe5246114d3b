"""Load, run and verify bundles: the part of the package that an inference service uses, without torch and onnx."""
