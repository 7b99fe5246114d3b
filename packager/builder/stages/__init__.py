"""The stages of a build that need torch or onnx, each a function from frozen values to a frozen result."""
