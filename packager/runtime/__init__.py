"""What an inference service needs: load a bundle and run it. Imports neither torch nor onnx."""
