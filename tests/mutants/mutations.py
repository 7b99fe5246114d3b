"""The mutations: ways in which real tools and real mistakes make a graph wrong.

A mutation knows the places of a graph that it fits: a weight, a node, an output. `apply` yields mutants at a few of
them, spread over the depth of the graph; each is a copy in which that one place is changed. Some mutants are equivalent
to the original (ceil_mode if the sizes divide), so the effect of a mutant is measured (oracle.py) and not assumed.
"""

import wrong_constants
import wrong_operators
import wrong_signature
import wrong_weights

MUTATIONS = (
    *wrong_weights.MUTATIONS,
    *wrong_operators.MUTATIONS,
    *wrong_constants.MUTATIONS,
    *wrong_signature.MUTATIONS,
)
"""All mutations, each once, with unique names."""
