// .npz and .npy files.
#include "array_files.hpp"
#include "harness.hpp"
#include "input_checks.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    using namespace packager;
    try {
        const Arrays arrays = parse_npz(fuzz::to_span(data, size), nullptr, "x.npz");
        fuzz::touch(arrays);
        check_inputs(fuzz::make_signature(), arrays);
    } catch (const Error& error) {
        fuzz::report(error);
    }
    return 0;
}
