"""Array comparison: error metrics, tolerances, decisions, and the verdict on an artifact.

These modules import NumPy and the standard library only, so `package verify` and the runtime can repeat a parity check
where torch and onnx are not installed.
"""
