// SHA256SUMS, over files that agree with nothing.
#include "harness.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    using namespace packager;
    const Archive archive = {
        {"SHA256SUMS", fuzz::to_file(fuzz::to_span(data, size))},
        {"FINGERPRINT", fuzz::to_file(fuzz::to_span("h1:47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=\n"))},
        {"config.json", fuzz::to_file(fuzz::to_span("{}"))},
        {"assets/labels.txt", fuzz::to_file(fuzz::to_span("a\n"))},
    };
    try {
        const Seal seal = read_seal(archive, "x");
        static_cast<void>(check_integrity(archive, seal, "x").describe());
        check_names(archive, seal, "x");
    } catch (const Error& error) {
        fuzz::report(error);
    }
    return 0;
}
