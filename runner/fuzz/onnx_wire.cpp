// The references to external weights in a model.
#include "onnx_wire.hpp"

#include "harness.hpp"

namespace {

constexpr std::uint64_t data_size = 48, shift = 65536;

void parse(packager::Span model) {
    using namespace packager;
    const auto tensors = find_external_tensors(model, "model.onnx_data", data_size);
    for (const ExternalTensor& tensor : tensors) {
        fuzz::require(tensor.offset <= data_size && tensor.length <= data_size - tensor.offset);
    }
    if (tensors.empty()) return;  // the model is used as it is then
    const std::string moved = move_tensors(model, "executable", shift);
    const auto again = find_external_tensors(fuzz::to_span(moved), "executable", shift + data_size);
    fuzz::require(again.size() == tensors.size());
    for (std::size_t index = 0; index < tensors.size(); ++index) {
        fuzz::require(again[index].name == tensors[index].name && again[index].shape == tensors[index].shape);
        fuzz::require(again[index].offset == tensors[index].offset + shift);
        fuzz::require(again[index].length == tensors[index].length);
    }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    using namespace packager;
    try {
        find_external_tensors(fuzz::to_span(data, size), std::nullopt, 0);
    } catch (const WeightsUnsafe& error) {
        fuzz::require(!error.message.empty());
    }
    try {
        parse(fuzz::to_span(data, size));
    } catch (const WeightsUnsafe& error) {
        fuzz::require(!error.message.empty());
    }
    return 0;
}
