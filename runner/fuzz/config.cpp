// config.json, with the model's files beside it.
#include "harness.hpp"
#include "input_checks.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    using namespace packager;
    const Archive archive = {
        {"config.json", fuzz::to_file(fuzz::to_span(data, size))},
        {"model.onnx", fuzz::to_file({})},
        {"model.onnx_data", fuzz::to_file({})},
    };
    try {
        const Config config = read_config(archive, "x");
        Arrays arrays;
        for (const TensorSpec& tensor : config.signature.inputs) {
            arrays.emplace_back(tensor.name, allocate(tensor.passed_dtype(), {2, 1}).first);
        }
        check_inputs(config.signature, arrays);
    } catch (const Error& error) {
        fuzz::report(error);
    }
    return 0;
}
