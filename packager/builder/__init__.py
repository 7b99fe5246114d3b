"""Build a bundle: the order of the stages, what the cache has of them, and what follows when all are done.

`api` is the entry, `pipeline` reads from top to bottom, `stages` has the work of each stage, and `incremental` decides
what need not be done again. `context` and `results` are the values that travel between them.
"""
