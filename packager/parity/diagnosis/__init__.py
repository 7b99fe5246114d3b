"""Diagnosis: name the first operation that an ONNX graph computes differently from PyTorch, and write a repro of it."""
