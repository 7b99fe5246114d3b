"""Mutations of inputs, outputs and shapes: mixed up, lost, renamed or fixed."""

from collections.abc import Iterator, Sequence
from functools import partial

import numpy as np
import onnx
import onnxruntime
from mutation import Edit, Mutation, Sites, Sizes, View, label
from onnx import ModelProto, NodeProto, TensorProto, helper


def _signature(value: onnx.ValueInfoProto) -> tuple[int, tuple[str | int, ...]]:
    tensor = value.type.tensor_type
    return tensor.elem_type, tuple(dim.dim_param or dim.dim_value for dim in tensor.shape.dim)


def _inputs_swapped(view: View) -> Iterator[tuple[str, Edit]]:
    values = list(view.graph.input)
    for number, first in enumerate(values):
        for second in values[number + 1 :]:
            if _signature(first) == _signature(second):
                exchanged = {first.name: second.name, second.name: first.name}

                def edit(copy: View, exchanged: dict[str, str] = exchanged) -> None:
                    for node in copy.nodes:
                        node.input[:] = [exchanged.get(name, name) for name in node.input]

                yield f"{first.name} and {second.name}", edit


def _input_ignored(view: View) -> Iterator[tuple[str, Edit]]:
    for value in view.graph.input:
        if _signature(value)[0] == TensorProto.BOOL:
            made = helper.make_node("Xor", [value.name, value.name], [f"{value.name}_ignored"])
        else:
            made = helper.make_node("Sub", [value.name, value.name], [f"{value.name}_ignored"])

        def edit(copy: View, name: str = value.name, made: NodeProto = made) -> None:
            for node in copy.nodes:
                node.input[:] = [f"{name}_ignored" if other == name else other for other in node.input]
            copy.graph.node.insert(0, made)

        yield value.name, edit


def _dims_fixed(side: str) -> Sites:
    def sites(view: View) -> Iterator[tuple[str, Edit]]:
        sizes = view.examples[0]
        for number, value in enumerate(getattr(view.graph, side)):
            for axis, dim in enumerate(value.type.tensor_type.shape.dim):
                if dim.dim_param:

                    def edit(
                        copy: View, number: int = number, axis: int = axis, size: int = sizes.get(dim.dim_param, 3)
                    ) -> None:
                        getattr(copy.graph, side)[number].type.tensor_type.shape.dim[axis].dim_value = size

                    yield f"{dim.dim_param} of {value.name}", edit

    return sites


def _baked(view: View) -> Iterator[tuple[str, Edit]]:
    """Replace shapes that follow from the inputs by the constants that they are for one example."""
    kinds = {"Reshape": 1, "Expand": 1, "Resize": 3}
    wanted = {
        index: (node.output[0], kinds[node.op_type])
        for index, node in enumerate(view.graph.node)
        if node.op_type in kinds
    }
    if not wanted:
        return
    names = [name for name, _ in wanted.values()]
    first, second = (_shapes(view.model, names, sizes) for sizes in view.examples)
    for index, (name, position) in wanted.items():
        if first[name] != second[name]:
            shape = np.array(first[name], np.int64)

            def edit(copy: View, index: int = index, position: int = position, shape: np.ndarray = shape) -> None:
                copy.set_input(index, position, shape)  # the outer graph's nodes come first
                if copy.nodes[index].op_type == "Resize":
                    copy.nodes[index].input[2] = ""

            yield f"{first[name]} in {label(view.nodes[index])}", edit


def _shapes(model: ModelProto, names: Sequence[str], sizes: Sizes) -> dict[str, tuple[int, ...]]:
    """Return the shapes that these tensors have if the named dims have these sizes."""
    probe = ModelProto()
    probe.CopyFrom(model)
    probe.graph.output.extend(
        onnx.ValueInfoProto(name=name) for name in names if name not in {value.name for value in model.graph.output}
    )
    feed = {
        value.name: np.ones([sizes.get(dim, dim) for dim in shape], helper.tensor_dtype_to_np_dtype(kind))
        for value in model.graph.input
        for kind, shape in [_signature(value)]
    }
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    arrays = onnxruntime.InferenceSession(probe.SerializeToString(), options).run(list(names), feed)
    return {name: array.shape for name, array in zip(names, arrays, strict=True)}


def _output_dropped(view: View) -> Iterator[tuple[str, Edit]]:
    for number, value in enumerate(view.graph.output):
        if len(view.graph.output) > 1:

            def edit(copy: View, number: int = number) -> None:
                del copy.graph.output[number]

            yield value.name, edit


def _through(copy: View, number: int, node: NodeProto) -> None:
    """Pass an output through an additional node."""
    copy.graph.node.append(node)
    copy.graph.output[number].name = node.output[0]


def _output_renamed(view: View) -> Iterator[tuple[str, Edit]]:
    for number, value in enumerate(view.graph.output):
        made = helper.make_node("Identity", [value.name], [f"{value.name}_1"])
        yield value.name, partial(_through, number=number, node=made)


def _output_dtype(view: View) -> Iterator[tuple[str, Edit]]:
    for number, value in enumerate(view.graph.output):
        if _signature(value)[0] == TensorProto.FLOAT:

            def edit(copy: View, number: int = number, name: str = value.name) -> None:
                _rename(copy, {name: f"{name}_narrow"})
                _through(copy, number, helper.make_node("Cast", [f"{name}_narrow"], [name], to=TensorProto.DOUBLE))
                copy.graph.output[number].type.tensor_type.elem_type = TensorProto.DOUBLE

            yield value.name, edit


def _outputs_swapped(view: View) -> Iterator[tuple[str, Edit]]:
    values = list(view.graph.output)
    for number, first in enumerate(values):
        for second in values[number + 1 :]:

            def edit(copy: View, left: str = first.name, right: str = second.name) -> None:
                _rename(copy, {left: right, right: left})
                types = {value.name: value.SerializeToString() for value in copy.graph.output}
                for value in copy.graph.output:
                    if value.name in (left, right):
                        name = value.name
                        value.ParseFromString(types[right if name == left else left])
                        value.name = name

            yield f"{first.name} and {second.name}", edit


def _rename(copy: View, names: dict[str, str]) -> None:
    for node in copy.nodes:
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names.get(name, name) for name in node.output]


MUTATIONS = (
    Mutation("inputs swapped", _inputs_swapped),
    Mutation("an input ignored", _input_ignored),
    Mutation("an input's dim fixed", _dims_fixed("input")),
    Mutation("an output's dim fixed", _dims_fixed("output")),
    Mutation("an example's shape baked in", _baked),
    Mutation("an output dropped", _output_dropped),
    Mutation("an output renamed", _output_renamed),
    Mutation("an output of another dtype", _output_dtype),
    Mutation("two outputs swapped", _outputs_swapped),
)
