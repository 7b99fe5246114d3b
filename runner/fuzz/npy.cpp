// .npy files, whose header is a dictionary in Python's syntax.
#include "array_files.hpp"
#include "harness.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    using namespace packager;
    try {
        fuzz::touch({{"x", align(parse_npy(fuzz::to_span(data, size), nullptr, "x.npy"))}});
    } catch (const Error& error) {
        fuzz::report(error);
    }
    return 0;
}
