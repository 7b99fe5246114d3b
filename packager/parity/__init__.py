"""Proof that an artifact computes what the PyTorch module computes.

`reference` runs the user's module and measures its own noise, `compare` sets two arrays side by
side, `gate` judges an artifact over all cases, `report` is what is written down about it.
"""
