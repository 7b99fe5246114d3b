"""Test inputs, drawn from the manifest's input specs and its seed: which sizes, which values, which output shapes."""
