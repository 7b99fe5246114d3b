// The trailer of an executable. The input is a trailer and a ZIP: the parts before them are put in front, and the
// trailer gets the digest of the pieces' digests and its own, because no mutation finds those.
#include "executable.hpp"

#include <algorithm>
#include <array>
#include <cstring>
#include <vector>

#include "harness.hpp"
#include "pieces.hpp"
#include "sha256.hpp"

namespace {

constexpr std::size_t page = 65536, trailer_size = 256, signed_size = 224;

// 64 bytes of runner; 32 of library, 16 of notices and the digests of two pieces at the next page; the trailer ends at
// the third.
std::vector<std::uint8_t> assemble(const std::uint8_t* data, std::size_t size) {
    std::vector<std::uint8_t> file(2 * page + size - trailer_size);
    std::fill_n(file.begin(), 64, std::uint8_t{'R'});
    std::fill_n(file.begin() + page, 48, std::uint8_t{'L'});
    std::uint8_t* const trailer = file.data() + 2 * page - trailer_size;
    std::memcpy(trailer, data, size);
    const auto put = [](const std::uint8_t* content, std::size_t length, std::uint8_t* target) {
        packager::Sha256 hash;
        hash.update(packager::fuzz::to_span(content, length));
        const auto digest = hash.digest();
        std::copy(digest.begin(), digest.end(), target);
    };
    std::uint8_t* const digests = file.data() + page + 48;
    put(file.data(), page, digests);
    put(file.data() + page, 48, digests + 32);
    put(digests, 64, trailer + 192);
    put(trailer, signed_size, trailer + signed_size);
    return file;
}

void parse(packager::Span content) {
    using namespace packager;
    try {
        const Executable executable = parse_executable(content, "x");
        for (const Span part : {executable.runner, executable.library, executable.notices, executable.archive}) {
            fuzz::touch(part);
        }
        if (!has_digests(executable, executable.library)) return;
        read_archive(executable.archive, executable.archive_offset, "x");
    } catch (const Error& error) {
        fuzz::report(error);
    }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    parse(packager::fuzz::to_span(data, size));
    if (size < trailer_size) return 0;
    const std::vector<std::uint8_t> file = assemble(data, size);
    parse(packager::fuzz::to_span(file.data(), file.size()));
    return 0;
}
