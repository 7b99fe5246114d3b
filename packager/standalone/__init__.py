"""Executables: one file that has a bundle, its evidence and its runtime in it, and runs without Python."""
