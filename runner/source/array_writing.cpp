// Writes arrays: an .npz of stored .npy files, as np.savez does, or JSON.
#include <fcntl.h>
#include <libdeflate.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <cstring>
#include <limits>

#include "array_files.hpp"
#include "array_parsing.hpp"
#include "element.hpp"
#include "error.hpp"
#include "json.hpp"
#include "little_endian.hpp"
#include "python_text.hpp"

namespace packager {
namespace {

constexpr std::uint64_t zip64_limit = 0xFFFFFFFF;
constexpr std::size_t npy_alignment = 64;

Error refuse(const std::string& path, int error) {
    return output_refused(path, std::strerror(error), "choose another file with --output");
}

// A file that is written from its start, and how much of it there is.
class Output {
public:
    explicit Output(const std::string& path)
        : path_(path), descriptor_(::open(path.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666)) {
        if (descriptor_ < 0) throw refuse(path_, errno);
    }
    ~Output() {
        if (descriptor_ >= 0) ::close(descriptor_);
    }
    Output(const Output&) = delete;
    Output(Output&&) = delete;
    Output& operator=(const Output&) = delete;
    Output& operator=(Output&&) = delete;

    void write(std::string_view bytes) {
        size_ += bytes.size();
        while (!bytes.empty()) {
            const ssize_t count = ::write(descriptor_, bytes.data(), bytes.size());
            if (count < 0 && errno == EINTR) continue;
            if (count < 0) throw refuse(path_, errno);
            bytes.remove_prefix(static_cast<std::size_t>(count));
        }
    }

    void close() {
        const int descriptor = std::exchange(descriptor_, -1);
        if (::close(descriptor) != 0) throw refuse(path_, errno);
    }

    std::uint64_t size() const { return size_; }

private:
    std::string path_;
    int descriptor_;
    std::uint64_t size_ = 0;
};

struct Entry {
    std::string name;
    std::uint32_t crc = 0;
    std::uint64_t size = 0, offset = 0;
};

std::string describe_dtype(DType dtype) {
    const std::string_view name = name_of(dtype);
    const std::size_t size = item_size(dtype);
    const char kind = dtype == DType::bfloat16 ? 'V' : name[0];  // numpy has no bfloat16: bytes without a meaning
    return (size == 1 ? "|" : "<") + std::string(1, kind) + std::to_string(size);
}

std::string describe_shape(const Shape& shape) {
    std::string text = describe(shape);
    text.front() = '(';
    text.back() = ')';
    return shape.size() == 1 ? text.insert(text.size() - 1, ",") : text;
}

std::string make_npy_header(const Array& array) {
    std::string text = "{'descr': '" + describe_dtype(array.dtype) +
                       "', 'fortran_order': False, 'shape': " + describe_shape(array.shape) + ", }";
    std::string header(npy_magic);
    const std::size_t size = npy_magic.size() + 4 + text.size() + 1;
    text.append((npy_alignment - size % npy_alignment) % npy_alignment, ' ');
    text += '\n';
    append<std::uint16_t>(header, 1);  // version 1.0
    append(header, static_cast<std::uint16_t>(text.size()));
    return header + text;
}

// The fields that a local header and a record of the directory share, from the version to the CRC.
void append_shared(std::string& header, const Entry& entry) {
    const bool is_ascii = std::all_of(entry.name.begin(), entry.name.end(), [](char letter) { return letter >= 0; });
    append<std::uint16_t>(header, 45);  // the version that reads ZIP64
    append<std::uint16_t>(header, is_ascii ? 0 : 1U << 11U);
    append<std::uint16_t>(header, 0);            // stored
    append<std::uint16_t>(header, 0);            // midnight
    append<std::uint16_t>(header, 1U << 5U | 1U);  // of 1980-01-01
    append(header, entry.crc);
}

std::string make_local_header(const Entry& entry) {
    std::string header;
    append<std::uint32_t>(header, 0x04034b50);
    append_shared(header, entry);
    append(header, static_cast<std::uint32_t>(zip64_limit));
    append(header, static_cast<std::uint32_t>(zip64_limit));
    append(header, static_cast<std::uint16_t>(entry.name.size()));
    append<std::uint16_t>(header, 20);
    header += entry.name;
    append<std::uint16_t>(header, 1);
    append<std::uint16_t>(header, 16);
    append(header, entry.size);
    append(header, entry.size);
    return header;
}

std::uint32_t shorten(std::uint64_t number) { return static_cast<std::uint32_t>(std::min(number, zip64_limit)); }

std::string make_record(const Entry& entry) {
    std::string extra;
    if (entry.size >= zip64_limit) {
        append(extra, entry.size);
        append(extra, entry.size);
    }
    if (entry.offset >= zip64_limit) append(extra, entry.offset);
    std::string record;
    append<std::uint32_t>(record, 0x02014b50);
    append<std::uint16_t>(record, 3U << 8U | 45U);  // made on Unix
    append_shared(record, entry);
    append(record, shorten(entry.size));
    append(record, shorten(entry.size));
    append(record, static_cast<std::uint16_t>(entry.name.size()));
    append(record, static_cast<std::uint16_t>(extra.empty() ? 0 : extra.size() + 4));
    append<std::uint16_t>(record, 0);  // no comment
    append<std::uint16_t>(record, 0);  // disk
    append<std::uint16_t>(record, 0);  // internal attributes
    append<std::uint32_t>(record, 0600U << 16U);
    append(record, shorten(entry.offset));
    record += entry.name;
    if (!extra.empty()) {
        append<std::uint16_t>(record, 1);
        append(record, static_cast<std::uint16_t>(extra.size()));
    }
    return record + extra;
}

std::string make_end(std::uint64_t offset, std::uint64_t size, std::size_t count) {
    std::string end;
    if (offset >= zip64_limit || size >= zip64_limit || count >= 0xFFFF) {
        append<std::uint32_t>(end, 0x06064b50);
        append<std::uint64_t>(end, 44);
        append<std::uint16_t>(end, 45);
        append<std::uint16_t>(end, 45);
        append<std::uint64_t>(end, 0);  // disks
        append<std::uint64_t>(end, count);
        append<std::uint64_t>(end, count);
        append(end, size);
        append(end, offset);
        append<std::uint32_t>(end, 0x07064b50);
        append<std::uint32_t>(end, 0);
        append<std::uint64_t>(end, offset + size);
        append<std::uint32_t>(end, 1);
    }
    append<std::uint32_t>(end, 0x06054b50);
    append<std::uint32_t>(end, 0);  // disks
    append(end, static_cast<std::uint16_t>(std::min<std::size_t>(count, 0xFFFF)));
    append(end, static_cast<std::uint16_t>(std::min<std::size_t>(count, 0xFFFF)));
    append(end, shorten(size));
    append(end, shorten(offset));
    append<std::uint16_t>(end, 0);
    return end;
}

void write_npz(Output& output, const Arrays& arrays) {
    std::string directory;
    for (const auto& [name, array] : arrays) {
        const std::string header = make_npy_header(array);
        const std::string_view values(reinterpret_cast<const char*>(array.data), array.bytes());
        const std::uint32_t crc = libdeflate_crc32(0, header.data(), header.size());
        const Entry entry{name + ".npy", libdeflate_crc32(crc, values.data(), values.size()),
                          header.size() + values.size(), output.size()};
        output.write(make_local_header(entry));
        output.write(header);
        output.write(values);
        directory += make_record(entry);
    }
    const std::uint64_t offset = output.size();
    output.write(directory);
    output.write(make_end(offset, directory.size(), arrays.size()));
}

std::string format_element(const Array& array, std::size_t index) {
    return visit_element(array, index, [](auto value) -> std::string {
        using T = decltype(value);
        if constexpr (std::is_same_v<T, bool>) {
            return value ? "true" : "false";
        } else if constexpr (std::is_floating_point_v<T>) {
            return std::isfinite(value) ? repr(value) : "";
        } else {
            return std::to_string(value);
        }
    });
}

// Appends nested lists from `axis` on, and advances `index`; false for a value that JSON lacks.
bool append_lists(std::string& text, const Array& array, std::size_t axis, std::size_t& index) {
    if (axis == array.shape.size()) {
        const std::string value = format_element(array, index++);
        text += value;
        return !value.empty();
    }
    text += '[';
    for (std::int64_t position = 0; position < array.shape[axis]; ++position) {
        if (position > 0) text += ", ";
        if (!append_lists(text, array, axis + 1, index)) return false;
    }
    text += ']';
    return true;
}

}  // namespace

void write_array_file(const std::string& path, const Arrays& arrays) {
    constexpr std::string_view json_suffix = ".json";
    const bool as_json = path.size() > json_suffix.size() &&
                         path.compare(path.size() - json_suffix.size(), std::string::npos, json_suffix) == 0;
    const std::string text = as_json ? format_json(arrays, path) + "\n" : "";
    Output output(path);
    if (as_json) {
        output.write(text);
    } else {
        write_npz(output, arrays);
    }
    output.close();
}

std::string format_json(const Arrays& arrays, const std::string& target) {
    std::string text = "{";
    for (const auto& [name, array] : arrays) {
        text += (text.size() == 1 ? "" : ", ") + json::quote(name) + ": ";
        std::size_t index = 0;
        if (!append_lists(text, array, 0, index)) {
            throw output_refused(target, "output " + repr(name) + " has NaN or infinite values, which JSON lacks",
                                 "write an .npz with --output");
        }
    }
    return text + "}";
}

}  // namespace packager
