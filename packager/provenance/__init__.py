"""State a bundle's records in standard formats: in-toto attestations and a CycloneDX bill of materials.

The documents are a function of the records and of the digests of the other files. A build writes them, and
`package verify` computes them again and compares the bytes. So they belong to the schema of the bundle: a change to
the bytes that these functions return is a change of the schema.
"""
