"""Proof that an artifact computes the same as the PyTorch module it was exported from.

Read the package in the order of the proof:

    cases/          the test inputs: every size of every dim, every kind of values
    reference       what the module returns for each test case, and the tolerance of each output
    noise*, ties    how far float32 itself is from the truth, and where a tie decides the outputs
    coverage        which channels of the weights the test cases exercise
    numerics/       how two arrays are compared, and the verdict on an artifact
    diagnosis/      where in the graph an artifact that fails goes wrong

docs/parity.md describes the method for users.
"""
