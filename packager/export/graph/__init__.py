"""ONNX models as files and as protobuf, and the messages about them between the two processes of a build."""
