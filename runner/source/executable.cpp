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
#include "pieces.hpp"
#include "sha256.hpp"

namespace packager {
namespace {

constexpr std::uint64_t page = 65536, digest_size = 32, trailer_size = 256, signed_size = trailer_size - digest_size;
constexpr std::uint64_t end_size = 22, locator_size = 20, end64_size = 56;
constexpr std::string_view magic("torch-packager\0\1", 16);
constexpr std::uint64_t largest = std::uint64_t{1} << 62U;  // of a size: sums cannot overflow
constexpr std::uint64_t largest_piece = std::uint64_t{1} << 24U;
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
    Digest digest{};
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
    const std::uint64_t runner_size = load(trailer, 16), library_size = load(trailer, 24);
    const std::uint64_t notices_size = load(trailer, 32), piece_size = load(trailer, 48);
    const std::uint64_t library_offset = round_up(runner_size), notices_offset = library_offset + library_size;
    const std::uint64_t pieces_end = notices_offset + notices_size;
    const std::string_view version = trailer.text().substr(128, 32);
    const std::size_t version_size = std::min(version.find('\0'), version.size());
    if (std::max({runner_size, library_size, notices_size}) >= largest || piece_size == 0 || piece_size % page != 0 ||
        piece_size > largest_piece || load(trailer, 40) != content.size - archive_offset || load(trailer, 60, 4) != 0 ||
        version.find_first_not_of('\0', version_size) != std::string_view::npos) {
        throw refuse(path, "its trailer does not describe this file");
    }
    const std::uint64_t digests_size = (pieces_end + piece_size - 1) / piece_size * digest_size;
    if (archive_offset != round_up(pieces_end + digests_size + trailer_size)) {
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
    executable.digests = slice(content, pieces_end, digests_size);
    executable.library_offset = library_offset;
    executable.archive_offset = archive_offset;
    executable.piece_size = piece_size;
    executable.pieces_end = pieces_end;
    executable.runner_sha256 = load_digest(trailer, 64);
    executable.library_sha256 = load_digest(trailer, 96);
    executable.onnxruntime_version = version.substr(0, version_size);
    if (sha256_hex(executable.digests) != load_digest(trailer, 192)) {
        throw integrity_failed(path, "changed: the digests of its pieces");
    }
    return executable;
}

void check_padding(const Executable& executable) {
    const Span content = executable.content;
    const std::uint64_t runner_end = executable.runner.size;
    const std::uint64_t digests_end = executable.pieces_end + executable.digests.size;
    const std::uint64_t trailer_offset = executable.archive_offset - trailer_size;
    if (!is_zero(slice(content, runner_end, executable.library_offset - runner_end)) ||
        !is_zero(slice(content, digests_end, trailer_offset - digests_end))) {
        throw integrity_failed(executable.path, "changed: the zeros between its parts");
    }
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
    Executable executable = read_trailer(content, *offset, path);
    check_padding(executable);
    return executable;
}

void check_own_parts(const Executable& executable) {
    for (const auto& [part, name] : {std::pair(executable.runner, "runner"), {executable.notices, "notices"}}) {
        if (!has_digests(executable, part))
            throw integrity_failed(executable.path, std::string("changed: its ") + name);
    }
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

Bundle open_bundle(const Executable& executable) {
    return open_bundle(executable.archive, executable.archive_offset, executable.path, executable.descriptor);
}

}  // namespace packager
