"""Export: turn the eager PyTorch module into a TorchScript program and an ONNX graph, then optimize the graph.

torchscript, onnx   run torch's exporters
operators           what they lack, written with operators that they have
decompositions      put it in place while a module is traced
control_flow        report what a trace fixed: branches and numbers that depend on data
weights             write the weights beside an exported graph
graph               read, walk and write ONNX models, without torch
passes              clean, simplify, fuse and optimize a graph, in a process of its own
"""
