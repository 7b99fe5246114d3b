// The evidence: parity.json and golden.safetensors, and the comparison with outputs that differ here and there. The
// input is the size of the record, the record, and the tensors.
#include "evidence.hpp"

#include <cstring>

#include "array_files.hpp"
#include "array_text.hpp"
#include "harness.hpp"
#include "little_endian.hpp"
#include "verdict.hpp"

namespace packager::fuzz {
namespace {

// The array, with every fifth byte changed.
Array change(const Array& array) {
    auto [copy, memory] = allocate(array.dtype, array.shape);
    if (array.bytes() > 0) std::memcpy(memory, array.data, array.bytes());
    for (std::size_t index = 4; index < array.bytes(); index += 5) memory[index] ^= std::byte{0x21};
    return copy;
}

void show(const Array& array) {
    if (array.size() <= 50) require(!print_array(array).empty());
    try {
        require(!format_json({{"x", array}}, "stdout").empty());
    } catch (const Error& error) {
        report(error);
    }
}

void compare_cases(const Evidence& evidence) {
    std::size_t next = 0;
    const Verdict verdict = check_parity(
        [&](const Arrays& inputs) {
            touch(inputs);
            const ReferenceCase& reference = evidence.cases[next++];
            Arrays outputs;
            for (const ReferenceOutput& output : reference.outputs) {
                show(output.array);
                outputs.emplace_back(output.name, next % 2 == 0 ? change(output.array) : output.array);
            }
            return outputs;
        },
        evidence);
    require(verdict.passed == verdict.reason.empty());
}

}  // namespace
}  // namespace packager::fuzz

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    using namespace packager;
    const std::string_view text = fuzz::to_span(data, size).text();
    if (text.size() < 4) return 0;
    const std::string_view record = text.substr(4, load<std::uint32_t>(text, 0));
    const std::string_view golden = text.substr(4 + record.size());
    try {
        fuzz::compare_cases(read_evidence(json::parse(record), fuzz::to_span(golden)));
    } catch (const json::Malformed& error) {
        fuzz::require(!error.message.empty());
    } catch (const EvidenceMalformed& error) {
        fuzz::require(!error.why.empty());
    }
    return 0;
}
