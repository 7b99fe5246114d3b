"""Ways in which real tools, and real mistakes, make a graph wrong: each a function from a graph to a few mutants.

A mutation knows the places of a graph that it fits: a weight, a node, an output. `apply` gives mutants of a few
of them, spread over the depth of the graph, each a copy in which that one place is changed. Some mutants are
equivalent to the original (ceil_mode where the sizes divide): what a mutant does is measured (see oracle.py),
and not assumed.
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
"""All of them, each once, with names that are unique."""
