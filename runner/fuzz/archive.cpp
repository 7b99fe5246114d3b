// The ZIP of a bundle, its seal and its config.json.
#include "harness.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    using namespace packager;
    try {
        const Archive archive = read_archive(fuzz::to_span(data, size), 65536, "x");
        for (const auto& [name, file] : archive) {
            fuzz::touch(file.content);
            const auto end = reinterpret_cast<std::uintptr_t>(file.content.data + file.content.size);
            fuzz::require(end <= reinterpret_cast<std::uintptr_t>(data + size));
        }
        const Seal seal = read_seal(archive, "x");
        static_cast<void>(check_integrity(archive, seal, "x").describe());
        check_names(archive, seal, "x");
        read_config(archive, "x");
    } catch (const Error& error) {
        fuzz::report(error);
    }
    return 0;
}
