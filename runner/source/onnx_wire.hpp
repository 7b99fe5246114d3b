// The external weights of a serialized ONNX model, found and moved in protobuf's wire format, as
// packager/bundle/onnx_wire.py: a model refers to no other file than the bundle's own.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "array.hpp"
#include "bundle.hpp"

namespace packager {

// The model refers to weights outside of its bundle, or is not valid protobuf.
struct WeightsUnsafe : std::exception {
    std::string message;
    explicit WeightsUnsafe(std::string text) : message(std::move(text)) {}
    const char* what() const noexcept override { return message.c_str(); }
};

// A weight in the data file: its TensorProto.DataType, and its bytes from `offset` on.
struct ExternalTensor {
    std::string name;
    int data_type = 0;
    Shape shape;
    std::uint64_t offset = 0, length = 0;
};

// Finds the weights that a model keeps in the file `data_name` of `data_size` bytes; nothing if there is no such file.
// Throws WeightsUnsafe for a weight anywhere else, or that is not an initializer of the main graph.
std::vector<ExternalTensor> find_external_tensors(Span model, const std::optional<std::string>& data_name,
                                                  std::uint64_t data_size);

// Returns a model whose external weights are in the file `location`, each `shift` bytes later than before.
// `find_external_tensors` must have accepted the model.
std::string move_tensors(Span model, const std::string& location, std::uint64_t shift);

}  // namespace packager
