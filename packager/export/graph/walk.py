"""Walk ONNX graphs, the subgraphs of control-flow nodes (If, Loop, Scan) included."""

from __future__ import annotations

from collections.abc import Iterator

import onnx


def iter_subgraphs(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    """Iterate over the graphs among a node's attributes, and not over those inside them."""
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield attribute.g
        yield from attribute.graphs


def count_nodes(graph: onnx.GraphProto) -> int:
    """Count a graph's nodes, subgraphs included; a Constant counts as the weight that it is, not as a node."""
    return sum(
        (node.op_type != "Constant") + sum(count_nodes(subgraph) for subgraph in iter_subgraphs(node))
        for node in graph.node
    )


def list_read_names(node: onnx.NodeProto) -> list[str]:
    """List the values that a node reads from the graph it stands in, in order; its subgraphs may read them too."""
    names = [name for name in node.input if name]
    for subgraph in iter_subgraphs(node):
        local = {name for inner in subgraph.node for name in inner.output}
        local |= {value.name for value in subgraph.input} | {tensor.name for tensor in subgraph.initializer}
        names += [name for name in list_graph_reads(subgraph) if name not in local]
    return names


def list_graph_reads(graph: onnx.GraphProto) -> list[str]:
    """List the values that a graph's nodes read, then its outputs; names may repeat."""
    reads = [name for node in graph.node for name in list_read_names(node)]
    return reads + [value.name for value in graph.output]
