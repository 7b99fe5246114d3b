"""Walking graphs and their subgraphs."""

import onnx

from packager.export.graph import walk


def test_the_nodes_of_subgraphs_count_and_constants_do_not():
    inner = onnx.helper.make_graph([onnx.helper.make_node("Neg", ["x"], ["y"])], "inner", [], [])
    constant = onnx.helper.make_node("Constant", [], ["c"], value_float=1.0)
    branch = onnx.helper.make_node("If", ["c"], ["z"], then_branch=inner, else_branch=inner)
    assert walk.count_nodes(onnx.helper.make_graph([constant, branch], "g", [], [])) == 3


def test_a_node_reads_what_its_subgraphs_read_and_not_what_they_compute_or_hold():
    helper = onnx.helper
    weight = helper.make_tensor("weight", onnx.TensorProto.FLOAT, [1], [2.0])
    innermost = helper.make_graph(
        [helper.make_node("Neg", ["deep"], ["n"])], "innermost", [], [onnx.ValueInfoProto(name="n")]
    )
    nodes = [
        helper.make_node("Mul", ["outer", "weight"], ["local"]),
        helper.make_node("If", ["local"], ["chosen"], then_branch=innermost, else_branch=innermost),
    ]
    results = [onnx.ValueInfoProto(name="chosen"), onnx.ValueInfoProto(name="handed on")]
    inner = helper.make_graph(nodes, "inner", [], results, [weight])
    branch = helper.make_node("If", ["condition", ""], ["z"], then_branch=inner)
    assert walk.list_read_names(branch) == ["condition", "outer", "deep", "deep", "handed on"]
    assert walk.list_graph_reads(helper.make_graph([branch], "g", [], [onnx.ValueInfoProto(name="z")])) == [
        *walk.list_read_names(branch),
        "z",
    ]
