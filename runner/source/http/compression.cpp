#include "http/compression.hpp"

#include <libdeflate.h>

#include <algorithm>
#include <memory>
#include <new>

namespace packager::http {
namespace {

constexpr int level = 1;  // tensors shrink little, and more effort takes longer than the bytes on a network
constexpr std::size_t least_gzip_bytes = 18;

struct FreeDecompressor {
    void operator()(libdeflate_decompressor* pointer) const { libdeflate_free_decompressor(pointer); }
};
struct FreeCompressor {
    void operator()(libdeflate_compressor* pointer) const { libdeflate_free_compressor(pointer); }
};

std::string normalize(std::string_view text) {
    constexpr std::string_view blanks = " \t\r\n\v\f";
    const std::size_t start = text.find_first_not_of(blanks);
    if (start == std::string_view::npos) return "";
    std::string normalized(text.substr(start, text.find_last_not_of(blanks) + 1 - start));
    std::transform(normalized.begin(), normalized.end(), normalized.begin(), [](char character) {
        return character >= 'A' && character <= 'Z' ? static_cast<char>(character | 0x20) : character;
    });
    return normalized;
}

std::string name_of(Coding coding) { return coding == Coding::gzip ? "gzip" : "deflate"; }

// Whether the first bytes are those of the format, as far as there are any.
bool has_header(Span body, Coding coding) {
    const auto byte = [&](std::size_t index) { return static_cast<unsigned>(body.data[index]); };
    if (coding == Coding::gzip) return (body.size < 1 || byte(0) == 0x1F) && (body.size < 2 || byte(1) == 0x8B);
    return (body.size < 1 || (byte(0) & 15U) == 8) && (body.size < 2 || (byte(0) << 8U | byte(1)) % 31 == 0);
}

Rejected explain_bad_data(Span body, Coding coding) {
    const std::string name = name_of(coding);
    if (!has_header(body, coding)) {
        const std::string why = "Error -3 while decompressing data: incorrect header check";
        return {400, "the body is not valid " + name + ": " + why};
    }
    if (body.size < least_gzip_bytes) return {400, "the " + name + " body is cut off"};
    return {400, "the body is not valid " + name + ", or it is cut off"};
}

// How large the content may be: gzip says so at its end, but anything can stand there.
std::size_t guess_size(Span body, Coding coding, std::size_t limit) {
    std::size_t guess = 4 * body.size + 64;
    if (coding == Coding::gzip && body.size >= least_gzip_bytes) {
        std::size_t stated = 0;
        for (std::size_t index = 0; index < 4; ++index) {
            stated |= static_cast<std::size_t>(body.data[body.size - 4 + index]) << (8 * index);
        }
        if (stated / 1100 <= body.size) guess = stated;  // deflate reaches 1032 : 1
    }
    return std::min(std::max<std::size_t>(guess, 64), limit + 1);
}

}  // namespace

std::optional<Coding> read_coding(std::string_view content_encoding) {
    const std::string coding = normalize(content_encoding);
    if (coding.empty() || coding == "identity") return std::nullopt;
    if (coding == "gzip") return Coding::gzip;
    if (coding == "deflate") return Coding::deflate;
    throw Rejected(415, "the content encoding is neither gzip nor deflate", "accept-encoding: gzip, deflate\r\n");
}

Buffer decompress(Span body, Coding coding, std::size_t limit) {
    const std::unique_ptr<libdeflate_decompressor, FreeDecompressor> decompressor(libdeflate_alloc_decompressor());
    if (decompressor == nullptr) throw std::bad_alloc();
    Buffer content;
    for (std::size_t size = guess_size(body, coding, limit);; size = std::min(2 * size, limit + 1)) {
        content.clear();
        std::size_t used = 0, written = 0;
        const auto function = coding == Coding::gzip ? libdeflate_gzip_decompress_ex : libdeflate_zlib_decompress_ex;
        const libdeflate_result result =
            function(decompressor.get(), body.data, body.size, content.extend(size), size, &used, &written);
        if (result == LIBDEFLATE_SUCCESS && written <= limit) {
            if (used != body.size) {  // one more member of a gzip file: no client sends any, and a million take long
                throw Rejected(400, "the body has bytes after the end of its " + name_of(coding));
            }
            content.resize(written);
            return content;
        }
        if (result == LIBDEFLATE_BAD_DATA) throw explain_bad_data(body, coding);
        if (size > limit) {
            throw Rejected(413, "the decompressed body has more than " + std::to_string(limit) + " bytes");
        }
    }
}

std::optional<Coding> choose_coding(std::string_view accept_encoding) {
    const std::string accepted = normalize(accept_encoding);
    if (accepted == "gzip") return Coding::gzip;
    if (accepted == "deflate") return Coding::deflate;
    return std::nullopt;
}

void compress(Response& response, Coding coding) {
    const std::unique_ptr<libdeflate_compressor, FreeCompressor> compressor(libdeflate_alloc_compressor(level));
    if (compressor == nullptr) throw std::bad_alloc();
    std::string whole = std::move(response.body);
    for (const TensorBytes& tensor : response.tensors) {
        whole.append(reinterpret_cast<const char*>(tensor.data), tensor.size);
    }
    response.tensors.clear();
    const auto bound = coding == Coding::gzip ? libdeflate_gzip_compress_bound : libdeflate_zlib_compress_bound;
    const auto function = coding == Coding::gzip ? libdeflate_gzip_compress : libdeflate_zlib_compress;
    response.body.resize(bound(compressor.get(), whole.size()));
    response.body.resize(
        function(compressor.get(), whole.data(), whole.size(), response.body.data(), response.body.size()));
    response.headers += "content-encoding: " + name_of(coding) + "\r\nvary: accept-encoding\r\n";
}

}  // namespace packager::http
