// .safetensors files: inputs of `run`, and the evidence of a bundle.
#include "array_files.hpp"
#include "harness.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    using namespace packager;
    try {
        fuzz::touch(parse_safetensors(fuzz::to_span(data, size), nullptr, "x.safetensors"));
    } catch (const Error& error) {
        fuzz::report(error);
    }
    return 0;
}
