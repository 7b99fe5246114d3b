#include "array_files.hpp"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstring>
#include <new>

#include "array_parsing.hpp"
#include "error.hpp"

namespace packager {
namespace {

constexpr const char* format_hint = "write one with np.savez(file, name=array); a .safetensors file works too";

class Descriptor {
public:
    explicit Descriptor(int number) : number_(number) {}
    ~Descriptor() {
        if (number_ >= 0) ::close(number_);
    }
    Descriptor(const Descriptor&) = delete;
    Descriptor(Descriptor&&) = delete;
    Descriptor& operator=(const Descriptor&) = delete;
    Descriptor& operator=(Descriptor&&) = delete;
    int number() const { return number_; }

private:
    int number_;
};

Error cannot_be_read(const std::string& path, const std::string& why) {
    return data_does_not_fit(path, get_file_name(path) + " cannot be read: " + why);
}

bool ends_with(std::string_view text, std::string_view suffix) {
    return text.size() > suffix.size() && text.substr(text.size() - suffix.size()) == suffix;
}

// Returns whether a file of this size may be what its name says.
bool has_plausible_head(const std::string& path, Span head, std::size_t size) {
    if (ends_with(path, ".json")) return true;
    if (ends_with(path, ".safetensors")) {
        std::uint64_t header_size = 0;
        for (std::size_t index = 0; index < head.size; ++index) {
            header_size |= std::to_integer<std::uint64_t>(head.data[index]) << (8 * index);
        }
        return header_size != 0 && header_size < size;
    }
    return head.text().substr(0, 2) == "PK" || head.text().substr(0, npy_magic.size()) == npy_magic;
}

// Reads a regular file as a whole: of a mapped one, the end could vanish while it is parsed.
OwnedSpan read_file(const std::string& path) {
    struct stat status{};
    if (::stat(path.c_str(), &status) != 0 || !S_ISREG(status.st_mode)) {
        throw data_does_not_fit(path, "there is no file " + path, format_hint);
    }
    const Descriptor file(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK));
    if (file.number() < 0 || ::fstat(file.number(), &status) != 0 || !S_ISREG(status.st_mode)) {
        throw cannot_be_read(path, std::strerror(errno));
    }
    std::array<std::byte, 8> head{};
    const ssize_t head_size = ::pread(file.number(), head.data(), head.size(), 0);
    const bool is_plausible =
        head_size < 0 || has_plausible_head(path, {head.data(), static_cast<std::size_t>(head_size)},
                                            static_cast<std::size_t>(status.st_size));
    // The parser says what is wrong with the head; the rest of a wrong file may be larger than the memory.
    const auto size = is_plausible ? static_cast<std::size_t>(status.st_size) : static_cast<std::size_t>(head_size);
    auto [array, memory] = allocate(DType::uint8, {static_cast<std::int64_t>(size)});
    std::size_t position = 0;
    while (position < size) {
        const ssize_t count = ::read(file.number(), memory + position, size - position);
        if (count < 0 && errno == EINTR) continue;
        if (count < 0) throw cannot_be_read(path, std::strerror(errno));
        if (count == 0) break;
        position += static_cast<std::size_t>(count);
    }
    return {{memory, position}, array.owner};
}

Arrays name_single_array(Array array, const Signature& signature, const std::string& path) {
    if (signature.inputs.size() != 1) {
        throw data_does_not_fit(path, get_file_name(path) + " is a single array without a name, not an .npz",
                                format_hint);
    }
    return {{signature.inputs.front().name, std::move(array)}};
}

}  // namespace

std::string get_file_name(const std::string& path) {
    const std::size_t end = path.find_last_not_of('/');
    if (end == std::string::npos) return "";
    const std::size_t slash = path.find_last_of('/', end);
    const std::size_t start = slash == std::string::npos ? 0 : slash + 1;
    return path.substr(start, end + 1 - start);
}

Arrays read_array_file(const std::string& path, const Signature& signature) try {
    const OwnedSpan file = read_file(path);
    const std::string_view text = file.content.text();
    const std::string name = get_file_name(path);
    if (ends_with(name, ".safetensors")) return parse_safetensors(file.content, file.owner, path);
    if (ends_with(name, ".json")) return parse_json_arrays(file.content, signature, path);
    if (text.substr(0, npy_magic.size()) == npy_magic) {
        return name_single_array(parse_npy(file.content, file.owner, path), signature, path);
    }
    if (text.substr(0, 2) != "PK")
        throw data_does_not_fit(path, name + " does not start like an .npz file", format_hint);
    return parse_npz(file.content, file.owner, path);
} catch (const std::bad_alloc&) {
    throw cannot_be_read(path, "there is not enough memory");
}

Array parse_npy(Span content, std::shared_ptr<const void> owner, const std::string& where) {
    try {
        return read_npy({content, std::move(owner)}, where);
    } catch (const ArrayFileMalformed& error) {
        throw cannot_be_read(where, error.why);
    }
}

}  // namespace packager
