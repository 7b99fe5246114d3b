// JSON: what is parsed is written, and reads back as the same text.
#include "json.hpp"

#include "harness.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    using namespace packager;
    try {
        const std::string text = json::dump(json::parse(fuzz::to_span(data, size).text()));
        fuzz::require(json::dump(json::parse(text)) == text);
    } catch (const json::Malformed& error) {
        fuzz::require(!error.message.empty());
    }
    return 0;
}
