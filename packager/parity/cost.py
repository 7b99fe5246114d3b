"""Estimate what a forward pass costs, in operations, so that the proof can be given a budget.

Operations are counted and not timed: the same module gets the same test cases in every build. One pass is counted,

    operations = floating-point operations of products, convolutions and attention (`torch.utils.flop_counter`)
               + 2**5 for every element that any operator returns      memory moves more slowly than a core computes
               + 2**19 for every operator that is called               the overhead of a call, about 10 µs
               + 2**10 for every element of an output                  which is kept, and compared in float64

and scaled to other test cases: the calls stay, the rest grows with the number of input elements. Attention grows faster
than that, and an operator without a formula is counted by its elements alone; a budget needs only the magnitude.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from packager.model.loader import LoadedModel
from packager.parity.cases.sample_grid import InputCase
from packager.parity.forward import bind_case, compile_nothing
from packager.project.manifest import Project

OPERATIONS = {"quick": 1 << 33, "standard": 1 << 36, "thorough": 1 << 40}
"""What one forward pass on every test case may cost together, by `parity.effort`: at the standard effort 69 billion
operations, which is seven images of a ResNet-50, or two seconds on two cores."""

NOISE_SHARE = 1 / 4
"""The share of it that the evaluations for the noise floor may cost, weighted by their own price."""

COVERAGE_SHARE = 1 / 4
"""The share of it that backward passes, and test cases added for coverage, may cost."""

OPERATIONS_PER_ELEMENT = 1 << 5
_OPERATIONS_PER_CALL = 1 << 19
_OPERATIONS_PER_OUTPUT_ELEMENT = 1 << 10
_FUSED_LAYERS = ("mkldnn_rnn_layer", "_transformer_encoder_layer_fwd", "_native_multi_head_attention")


@dataclass(frozen=True)
class ForwardCost:
    """What a forward pass costs, in operations: `fixed`, and `per_element` of all inputs together."""

    fixed: int
    per_element: float

    def estimate(self, case: InputCase) -> float:
        """Return the operations of one forward pass on a test case."""
        return self.fixed + self.per_element * case.element_count


def count_forward_cost(project: Project, model: LoadedModel, case: InputCase) -> ForwardCost:
    """Run the module on a test case and count its operations. Whatever forward() raises is passed on."""
    inputs = bind_case(project, case)
    # In inference mode, operators that consist of others would arrive as a whole.
    with compile_nothing(), torch.no_grad(), _OperationCounter() as counter:
        outputs = model.module(*inputs)
    output_elements = sum(tensor.numel() for tensor in _list_tensors(outputs))
    varying = counter.flops + OPERATIONS_PER_ELEMENT * counter.elements
    varying += _OPERATIONS_PER_OUTPUT_ELEMENT * output_elements
    return ForwardCost(_OPERATIONS_PER_CALL * counter.calls, varying / max(1, case.element_count))


class _OperationCounter(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch's stubs
    """While active, counts the operators that torch runs, the elements they return, and their FLOPs."""

    supports_higher_order_operators = True  # such as torch.cond, which runs as a whole

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch's stubs
        self.calls, self.elements, self.flops = 0, 0, 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operator and count it."""
        result = function(*args, **(kwargs or {}))
        if isinstance(function, torch._ops.OpOverload) and not function.is_view:
            self.calls += 1
            self.elements += sum(tensor.numel() for tensor in _list_tensors(result))
            packet = function.overloadpacket
            if packet in flop_registry:
                self.flops += flop_registry[packet](*args, **(kwargs or {}), out_val=result)
            elif packet.__name__ in _FUSED_LAYERS:
                self.flops += _count_layer_flops(_list_tensors(args))
        return result


def _list_tensors(value: Any) -> list[torch.Tensor]:
    """List the tensors in a value; nested tensors, whose sizes cannot be asked for, as the buffers they consist of."""
    tensors = [leaf for leaf in tree_leaves(value) if isinstance(leaf, torch.Tensor)]
    return [tensor.values() if tensor.is_nested else tensor for tensor in tensors]


def _count_layer_flops(tensors: list[torch.Tensor]) -> int:
    """Count the products of a fused layer: its input is the first tensor, its weights the matrices among the others."""
    rows = tensors[0].numel() // max(1, tensors[0].shape[-1])
    return 2 * rows * sum(tensor.numel() for tensor in tensors[1:] if tensor.dim() == 2)
