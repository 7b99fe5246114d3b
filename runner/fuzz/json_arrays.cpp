// Arrays as nested lists in JSON, with the dtypes of a signature.
#include "array_files.hpp"
#include "harness.hpp"
#include "input_checks.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    using namespace packager;
    const Signature signature = fuzz::make_signature();
    try {
        const Arrays arrays = parse_json_arrays(fuzz::to_span(data, size), signature, "x.json");
        fuzz::touch(arrays);
        check_inputs(signature, arrays);
    } catch (const Error& error) {
        fuzz::report(error);
    }
    return 0;
}
