#include "executable.hpp"

#include <elf.h>
#include <fcntl.h>
#include <sys/auxv.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <optional>

#include "error.hpp"
#include "read_chunks.hpp"
#include "sha256.hpp"

namespace packager {
namespace {

constexpr std::uint64_t page = 65536, trailer_size = 256, signed_size = trailer_size - 32;
constexpr std::uint64_t end_size = 22, locator_size = 20, end64_size = 56;
constexpr std::string_view magic("torch-packager\0\1", 16);
constexpr std::uint64_t largest = std::uint64_t{1} << 62U;  // of an offset or size: sums cannot overflow
#ifdef __aarch64__
constexpr std::uint64_t machine = EM_AARCH64;
#else
constexpr std::uint64_t machine = EM_X86_64;
#endif

Error refuse(const std::string& path, std::string why) {
    Error error("standalone-refused", "cannot read the executable " + path);
    error.why = std::move(why);
    error.hint = "fetch it again, or make it with `package standalone`";
    return error;
}

std::uint64_t load(Span bytes, std::uint64_t position, std::size_t size = 8) {
    std::uint64_t number = 0;
    for (std::size_t index = 0; index < size; ++index) {
        number |= std::to_integer<std::uint64_t>(bytes.data[position + index]) << (8 * index);
    }
    return number;
}

Span slice(Span content, std::uint64_t offset, std::uint64_t size) { return {content.data + offset, size}; }

std::string load_digest(Span bytes, std::uint64_t position) {
    std::array<std::uint8_t, 32> digest{};
    std::memcpy(digest.data(), bytes.data + position, digest.size());
    return to_hex(digest);
}

std::uint64_t round_up(std::uint64_t number) { return (number + page - 1) / page * page; }

bool is_zero(Span bytes) {
    return std::all_of(bytes.data, bytes.data + bytes.size, [](std::byte byte) { return byte == std::byte{0}; });
}

// Where the ZIP at the end of the file starts, by its end record; nothing if there is none.
std::optional<std::uint64_t> find_archive(Span content) {
    if (content.size < end_size) return std::nullopt;
    const std::uint64_t end = content.size - end_size;
    if (slice(content, end, 4).text() != "PK\5\6") return std::nullopt;
    std::uint64_t size = load(content, end + 12, 4), offset = load(content, end + 16, 4), after = end_size;
    if (offset == 0xFFFFFFFF) {
        after += locator_size + end64_size;
        if (content.size < after) return std::nullopt;
        const std::uint64_t end64 = content.size - after;
        if (slice(content, end64, 4).text() != "PK\6\6") return std::nullopt;
        size = load(content, end64 + 40);
        offset = load(content, end64 + 48);
    }
    const std::uint64_t left = content.size - after;
    if (size > left || offset > left - size) return std::nullopt;
    return left - size - offset;
}

// The digests cover the trailer itself, so that what it says is either as it was written, or forged as a whole.
Executable read_trailer(Span content, std::uint64_t archive_offset, const std::string& path) {
    const Span trailer = slice(content, archive_offset - trailer_size, trailer_size);
    if (trailer.text().substr(0, magic.size()) != magic) throw refuse(path, "it has no trailer before its archive");
    if (sha256_hex(slice(trailer, 0, signed_size)) != load_digest(trailer, signed_size)) {
        throw integrity_failed(path, "changed: its trailer");
    }
    const std::uint64_t runner_size = load(trailer, 16), library_offset = load(trailer, 24);
    const std::uint64_t library_size = load(trailer, 32), notices_offset = load(trailer, 160);
    const std::uint64_t notices_size = load(trailer, 168);
    const bool is_sane = std::max({runner_size, library_size, notices_size}) < largest &&
                         library_offset == round_up(runner_size) && notices_offset == library_offset + library_size &&
                         archive_offset == round_up(notices_offset + notices_size + trailer_size) &&
                         load(trailer, 40) == archive_offset && load(trailer, 48) == content.size - archive_offset;
    const std::string_view version = trailer.text().substr(128, 32);
    const std::size_t version_size = std::min(version.find('\0'), version.size());
    if (!is_sane || load(trailer, 60, 4) != 0 || !is_zero(slice(trailer, 208, 16)) ||
        version.find_first_not_of('\0', version_size) != std::string_view::npos) {
        throw refuse(path, "its trailer does not describe this file");
    }
    if (load(trailer, 56, 4) != machine) throw refuse(path, "it was made for a different processor");
    Executable executable;
    executable.path = path;
    executable.content = content;
    executable.runner = slice(content, 0, runner_size);
    executable.library = slice(content, library_offset, library_size);
    executable.notices = slice(content, notices_offset, notices_size);
    executable.archive = slice(content, archive_offset, content.size - archive_offset);
    executable.library_offset = library_offset;
    executable.archive_offset = archive_offset;
    executable.runner_sha256 = load_digest(trailer, 64);
    executable.library_sha256 = load_digest(trailer, 96);
    executable.onnxruntime_version = version.substr(0, version_size);
    executable.notices_sha256 = load_digest(trailer, 176);
    return executable;
}

void check_padding(const Executable& executable) {
    const Span content = executable.content;
    const std::uint64_t runner_end = executable.runner.size;
    const std::uint64_t notices_end = executable.library_offset + executable.library.size + executable.notices.size;
    const std::uint64_t trailer_offset = executable.archive_offset - trailer_size;
    if (!is_zero(slice(content, runner_end, executable.library_offset - runner_end)) ||
        !is_zero(slice(content, notices_end, trailer_offset - notices_end))) {
        throw integrity_failed(executable.path, "changed: the zeros between its parts");
    }
}

void check_digest(const Executable& executable, Span content, const std::string& digest, const std::string& part) {
    if (sha256_hex(content) != digest) throw integrity_failed(executable.path, "changed: " + part);
}

Executable open_descriptor(int descriptor, const std::string& path) {
    struct stat status{};
    if (descriptor < 0 || fstat(descriptor, &status) != 0) throw refuse(path, std::strerror(errno));
    const auto size = static_cast<std::size_t>(status.st_size);
    if (size < trailer_size) throw refuse(path, "it has no bundle in it");
    const void* const mapping = mmap(nullptr, size, PROT_READ, MAP_PRIVATE, descriptor, 0);
    if (mapping == MAP_FAILED) throw refuse(path, std::strerror(errno));
    Executable executable = parse_executable({static_cast<const std::byte*>(mapping), size}, path);
    executable.descriptor = descriptor;
    return executable;
}

}  // namespace

Executable parse_executable(Span content, const std::string& path) {
    const auto offset = find_archive(content);
    if (!offset) throw refuse(path, "it has no bundle in it");
    if (*offset < trailer_size) throw refuse(path, "it has no trailer before its archive");
    const Executable executable = read_trailer(content, *offset, path);
    check_padding(executable);
    check_digest(executable, executable.runner, executable.runner_sha256, "its runner");
    check_digest(executable, executable.notices, executable.notices_sha256, "its notices");
    return executable;
}

Executable open_executable(const std::string& path) {
    return open_descriptor(open(path.c_str(), O_RDONLY | O_CLOEXEC), path);
}

Executable open_executable() {
    const auto* const name = reinterpret_cast<const char*>(getauxval(AT_EXECFN));  // NOLINT(performance-no-int-to-ptr)
    const std::string path = name != nullptr ? name : "this executable";
    const int descriptor = open("/proc/self/exe", O_RDONLY | O_CLOEXEC);
    return descriptor >= 0 ? open_descriptor(descriptor, path) : open_executable(path);
}

void check_library(const Executable& executable) {
    Sha256 sha256;
    const auto update = [&sha256](Span chunk) { sha256.update(chunk); };
    if (!read_chunks(executable.descriptor, executable.library_offset, executable.library.size, update)) {
        throw integrity_failed(executable.path, "its library cannot be read");
    }
    if (to_hex(sha256.digest()) != executable.library_sha256) {
        throw integrity_failed(executable.path, "changed: its library");
    }
}

Bundle open_bundle(const Executable& executable) {
    return open_bundle(executable.archive, executable.archive_offset, executable.path, executable.descriptor);
}

}  // namespace packager
