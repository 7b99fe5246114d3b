// The seal of a bundle, as packager/bundle/seal.py and fingerprint.py: SHA256SUMS, and the FINGERPRINT that follows.
#include <libdeflate.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <exception>
#include <future>

#include "bundle.hpp"
#include "cores.hpp"
#include "error.hpp"
#include "read_chunks.hpp"
#include "sha256.hpp"

namespace packager {
namespace {

constexpr std::size_t max_files = 10'000, max_sums_bytes = std::size_t{4} << 20U, max_fingerprint_bytes = 1000;
constexpr std::size_t any_size = SIZE_MAX, large_bytes = std::size_t{4} << 20U;
constexpr const char *sums_file = "SHA256SUMS", *fingerprint_file = "FINGERPRINT", *signature_file = "model.sig";

std::string encode_base64(const Digest& digest) {
    constexpr std::string_view letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    std::string text;
    for (std::size_t start = 0; start < digest.size(); start += 3) {
        std::uint32_t bits = 0;
        for (std::size_t index = 0; index < 3; ++index) {
            bits = bits << 8U | (start + index < digest.size() ? digest[start + index] : 0U);
        }
        for (unsigned shift = 18;; shift -= 6) {
            text += letters[bits >> shift & 63U];
            if (shift == 0) break;
        }
    }
    text.back() = '=';  // 32 bytes are one short of a multiple of 3
    return text;
}

bool is_digest(std::string_view text) {
    return text.size() == 64 && text.find_first_not_of("0123456789abcdef") == std::string_view::npos;
}

bool is_unsealed(std::string_view file) {
    return file == sums_file || file == fingerprint_file || file == signature_file;
}

std::string join(const std::vector<std::string>& files) {
    std::string text;
    for (const std::string& file : files) text += (text.empty() ? "" : ", ") + escape_unprintable(file);
    return text;
}

struct SumsMalformed {
    std::string why;
};

// The digests by path. Throws SumsMalformed.
std::map<std::string, std::string, std::less<>> parse_sums(std::string_view text) {
    if (static_cast<std::size_t>(std::count(text.begin(), text.end(), '\n')) > max_files) {
        throw SumsMalformed{"there are more than " + std::to_string(max_files) + " files"};
    }
    std::map<std::string, std::string, std::less<>> digests;
    std::vector<std::string> files;
    std::size_t number = 0;
    for (std::size_t start = 0; start < text.size(); ++number) {
        const std::size_t end = text.find('\n', start);
        if (end == std::string_view::npos) throw SumsMalformed{"the lines are not sorted, or a path appears twice"};
        const std::string_view line = text.substr(start, end - start);
        const std::string at = "line " + std::to_string(number + 1);
        if (line.size() < 67 || !is_digest(line.substr(0, 64)) || line.substr(64, 2) != "  ") {
            throw SumsMalformed{at + " is not a digest and a path"};
        }
        std::string file(line.substr(66));
        if (const auto problem = describe_path_problem(file)) throw SumsMalformed{at + ": " + *problem};
        if (!files.empty() && file <= files.back()) {
            throw SumsMalformed{"the lines are not sorted, or a path appears twice"};
        }
        digests.emplace(file, line.substr(0, 64));
        files.push_back(std::move(file));
        start = end + 1;
    }
    if (const auto problem = describe_set_problem(files)) throw SumsMalformed{*problem};
    return digests;
}

Integrity compare_names(const Archive& archive, const Seal& seal, const std::string& path) {
    Integrity integrity;
    for (const auto& [file, digest] : seal.digests) {
        if (archive.count(file) == 0 || is_unsealed(file)) integrity.missing.push_back(file);
    }
    for (const auto& [file, entry] : archive) {
        if (seal.digests.count(file) == 0 && !is_unsealed(file)) integrity.extra.push_back(file);
    }
    if (archive.count(signature_file) > 0) read_file(archive, signature_file, max_record_bytes, path);
    return integrity;
}

void check_fingerprint(const Archive& archive, const Seal& seal, Integrity& integrity, const std::string& path) {
    if (archive.count(fingerprint_file) == 0) {
        integrity.missing.insert(integrity.missing.begin(), fingerprint_file);
        return;
    }
    std::string problem;
    try {
        const std::string recorded(read_file(archive, fingerprint_file, max_fingerprint_bytes, path).text());
        if (recorded == seal.fingerprint + "\n") return;
        problem = std::string(fingerprint_file) + " says " + escape_unprintable(join_words(recorded));
    } catch (const Error&) {
        problem = std::string(fingerprint_file) + " is unreadable";
    }
    integrity.changed.insert(integrity.changed.begin(), fingerprint_file);
    integrity.problems.push_back(problem + "; that of the files is " + seal.fingerprint);
}

// The digest of a large file, with its CRC, without making its pages resident. Throws Error (integrity-failed).
std::string hash_large(const BundleFile& entry, std::string_view file, const std::string& path) {
    Sha256 sha256;
    std::uint32_t crc = 0;
    const auto update = [&](Span chunk) {
        sha256.update(chunk);
        crc = libdeflate_crc32(crc, chunk.data, chunk.size);
    };
    if (!read_chunks(entry.descriptor, entry.offset, entry.content.size, update) || crc != entry.crc) {
        throw integrity_failed(path, "the content of " + repr(file) + " does not match its CRC");
    }
    return to_hex(sha256.digest());
}

bool has_digest(const Archive& archive, const Seal& seal, std::string_view file, const std::string& path) {
    const auto expected = seal.digests.find(file);
    const auto entry = archive.find(file);
    if (expected == seal.digests.end() || entry == archive.end()) return false;
    const bool is_large = entry->second.descriptor >= 0 && entry->second.content.size > large_bytes;
    const std::string digest =
        is_large ? hash_large(entry->second, file, path) : sha256_hex(read_file(archive, file, any_size, path));
    return digest == expected->second;
}

// Which of the files differ from their digest; the largest are begun first, on all usable cores.
std::vector<std::string> find_changed(const Archive& archive, const Seal& seal, std::vector<std::string> files,
                                      const std::string& path) {
    std::sort(files.begin(), files.end(), [&archive](const std::string& first, const std::string& second) {
        return archive.find(first)->second.content.size > archive.find(second)->second.content.size;
    });
    std::atomic<std::size_t> next{0};
    std::vector<char> is_changed(files.size());
    std::vector<std::exception_ptr> failures(files.size());
    const auto work = [&] {
        for (std::size_t index = next++; index < files.size(); index = next++) {
            try {
                is_changed[index] = has_digest(archive, seal, files[index], path) ? 0 : 1;
            } catch (...) {
                failures[index] = std::current_exception();
            }
        }
    };
    std::vector<std::future<void>> others;
    for (int count = count_usable_cores(); count > 1; --count) others.push_back(std::async(work));
    work();
    for (const std::future<void>& other : others) other.wait();
    std::vector<std::string> changed;
    for (std::size_t index = 0; index < files.size(); ++index) {
        if (failures[index]) std::rethrow_exception(failures[index]);
        if (is_changed[index] != 0) changed.push_back(files[index]);
    }
    std::sort(changed.begin(), changed.end());
    return changed;
}

}  // namespace

Seal read_seal(const Archive& archive, const std::string& path) {
    const Span content = read_file(archive, sums_file, max_sums_bytes, path);
    try {
        Sha256 sha256;
        sha256.update(content);
        return {parse_sums(content.text()), "h1:" + encode_base64(sha256.digest())};
    } catch (const SumsMalformed& error) {
        throw integrity_failed(path, std::string(sums_file) + ": " + error.why);
    }
}

std::string Integrity::describe() const {
    std::string text;
    const auto add = [&text](const std::string& line) { text += (text.empty() ? "" : "\n") + line; };
    if (!missing.empty()) add("missing: " + join(missing));
    if (!extra.empty()) add("not listed: " + join(extra));
    if (!changed.empty()) add("changed: " + join(changed));
    for (const std::string& problem : problems) add(problem);
    return text;
}

Integrity check_integrity(const Archive& archive, const Seal& seal, const std::string& path) {
    Integrity integrity = compare_names(archive, seal, path);
    std::vector<std::string> files;
    for (const auto& [file, digest] : seal.digests) {
        if (archive.count(file) > 0 && !is_unsealed(file)) files.push_back(file);
    }
    integrity.changed = find_changed(archive, seal, std::move(files), path);
    check_fingerprint(archive, seal, integrity, path);
    return integrity;
}

void check_names(const Archive& archive, const Seal& seal, const std::string& path) {
    Integrity integrity = compare_names(archive, seal, path);
    check_fingerprint(archive, seal, integrity, path);
    if (!integrity.intact()) throw integrity_failed(path, integrity.describe());
}

void check_file(const Archive& archive, const Seal& seal, std::string_view file, const std::string& path) {
    if (!has_digest(archive, seal, file, path)) throw integrity_failed(path, "changed: " + std::string(file));
}

}  // namespace packager
