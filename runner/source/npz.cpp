// numpy's .npz: a ZIP of .npy files, stored or deflated, as np.savez and np.savez_compressed write it.
//
// The directory at the end says where everything is; what the local headers repeat is not trusted. The fields are those
// of PKWARE's APPNOTE.TXT.
#include <libdeflate.h>

#include <algorithm>
#include <limits>

#include "array_parsing.hpp"
#include "error.hpp"
#include "little_endian.hpp"

namespace packager {
namespace {

constexpr std::uint64_t free_bytes = 32'000'000, max_ratio = 2;
constexpr std::size_t local_size = 30, record_size = 46, end_size = 22, locator64_size = 20, end64_size = 56;
constexpr std::uint32_t local_magic = 0x04034b50, record_magic = 0x02014b50, end_magic = 0x06054b50;
constexpr std::uint32_t end64_magic = 0x06064b50, locator64_magic = 0x07064b50;
constexpr std::uint32_t absent = 0xFFFFFFFF;  // the number is in the ZIP64 field
constexpr std::uint16_t zip64_field = 1, encrypted = 1, stored = 0, deflated = 8;
constexpr std::string_view suffix = ".npy";

struct Entry {
    std::string_view name;
    std::uint16_t flags = 0, method = 0;
    std::uint32_t crc = 0;
    std::uint64_t packed_size = 0, size = 0, offset = 0;
};

struct Directory {
    std::uint64_t offset = 0, size = 0, count = 0;
};

ArrayFileMalformed not_a_zip() { return ArrayFileMalformed("File is not a zip file"); }

// Finds the directory from the record at the very end: numpy writes no comment after it.
Directory find_directory(std::string_view file) {
    if (file.size() < end_size || load<std::uint32_t>(file, file.size() - end_size) != end_magic) throw not_a_zip();
    const std::size_t end = file.size() - end_size;
    Directory directory{load<std::uint32_t>(file, end + 16), load<std::uint32_t>(file, end + 12),
                        load<std::uint16_t>(file, end + 10)};
    std::size_t directory_end = end;
    const bool has_locator =
        end >= locator64_size && load<std::uint32_t>(file, end - locator64_size) == locator64_magic;
    if (has_locator) {
        if (end < locator64_size + end64_size) throw not_a_zip();
        directory_end = end - locator64_size - end64_size;
        if (load<std::uint32_t>(file, directory_end) != end64_magic) throw not_a_zip();
        directory = {load<std::uint64_t>(file, directory_end + 48), load<std::uint64_t>(file, directory_end + 40),
                     load<std::uint64_t>(file, directory_end + 32)};
    }
    if (directory.size > directory_end || directory.offset != directory_end - directory.size) throw not_a_zip();
    return directory;
}

// Reads the numbers that do not fit into 32 bits; each is in the ZIP64 field only if its place says so.
void read_zip64(Entry& entry, std::string_view extra) {
    while (extra.size() >= 4) {
        const auto tag = load<std::uint16_t>(extra, 0);
        const std::size_t size = load<std::uint16_t>(extra, 2);
        if (size > extra.size() - 4) break;
        std::string_view field = extra.substr(4, size);
        extra.remove_prefix(4 + size);
        if (tag != zip64_field) continue;
        for (std::uint64_t* number : {&entry.size, &entry.packed_size, &entry.offset}) {
            if (*number != absent) continue;
            if (field.size() < 8) throw ArrayFileMalformed("Corrupt zip64 extra field");
            *number = load<std::uint64_t>(field, 0);
            field.remove_prefix(8);
        }
    }
}

std::vector<Entry> read_directory(std::string_view file) {
    const Directory directory = find_directory(file);
    if (directory.count > max_arrays) {
        throw ArrayFileMalformed("it has more than " + std::to_string(max_arrays) + " arrays");
    }
    std::string_view records = file.substr(directory.offset, directory.size);
    std::vector<Entry> entries;
    while (!records.empty()) {
        if (records.size() < record_size || load<std::uint32_t>(records, 0) != record_magic) throw not_a_zip();
        const std::size_t name_size = load<std::uint16_t>(records, 28);
        const std::size_t extra_size = load<std::uint16_t>(records, 30);
        const std::size_t size = record_size + name_size + extra_size + load<std::uint16_t>(records, 32);
        if (size > records.size() || entries.size() == directory.count) throw not_a_zip();
        Entry entry{records.substr(record_size, name_size), load<std::uint16_t>(records, 8),
                    load<std::uint16_t>(records, 10),       load<std::uint32_t>(records, 16),
                    load<std::uint32_t>(records, 20),       load<std::uint32_t>(records, 24),
                    load<std::uint32_t>(records, 42)};
        read_zip64(entry, records.substr(record_size + name_size, extra_size));
        entries.push_back(entry);
        records.remove_prefix(size);
    }
    if (entries.size() != directory.count) throw not_a_zip();
    return entries;
}

// A deflated entry may have a thousandth of its content's size: what they unpack to is limited.
void check_unpacked_size(const std::vector<Entry>& entries, std::uint64_t size, const std::string& where) {
    std::uint64_t unpacked = 0;
    for (const Entry& entry : entries) {
        if (__builtin_add_overflow(unpacked, entry.size, &unpacked)) {
            unpacked = std::numeric_limits<std::uint64_t>::max();
            break;
        }
    }
    if (unpacked > std::max(free_bytes, max_ratio * size)) {
        throw data_does_not_fit(where,
                                get_file_name(where) + " has " + std::to_string(size) + " bytes, and would take " +
                                    std::to_string(unpacked) + " once it is unpacked",
                                "write it uncompressed: np.savez(file, name=array)");
    }
}

// Returns the bytes of an entry as they are in the file.
std::string_view find_packed(std::string_view file, const Entry& entry) {
    constexpr const char* damaged = "Bad magic number for file header";
    if (file.size() < local_size || entry.offset > file.size() - local_size) throw ArrayFileMalformed(damaged);
    const std::string_view header = file.substr(entry.offset);
    if (load<std::uint32_t>(header, 0) != local_magic) throw ArrayFileMalformed(damaged);
    const std::size_t name_size = load<std::uint16_t>(header, 26);
    const std::size_t start = local_size + name_size + load<std::uint16_t>(header, 28);
    if (start > header.size() || entry.packed_size > header.size() - start) throw ArrayFileMalformed(damaged);
    if (header.substr(local_size, name_size) != entry.name) {
        throw ArrayFileMalformed("File name in directory " + repr(entry.name) + " and header " +
                                 repr(header.substr(local_size, name_size)) + " differ.");
    }
    return header.substr(start, entry.packed_size);
}

OwnedSpan inflate(std::string_view packed, const Entry& entry) {
    struct Free {
        void operator()(libdeflate_decompressor* decompressor) const { libdeflate_free_decompressor(decompressor); }
    };
    const std::unique_ptr<libdeflate_decompressor, Free> decompressor(libdeflate_alloc_decompressor());
    if (!decompressor) throw std::bad_alloc();
    auto [array, memory] = allocate(DType::uint8, {static_cast<std::int64_t>(entry.size)});
    std::size_t consumed = 0;
    const libdeflate_result result =
        libdeflate_deflate_decompress_ex(decompressor.get(), packed.data(), packed.size(), memory,
                                         static_cast<std::size_t>(entry.size), &consumed, nullptr);
    if (result != LIBDEFLATE_SUCCESS || consumed != packed.size()) {
        throw ArrayFileMalformed("Error -3 while decompressing data: " + repr(entry.name));
    }
    return {{memory, static_cast<std::size_t>(entry.size)}, array.owner};
}

OwnedSpan unpack(const OwnedSpan& file, const Entry& entry) {
    if ((entry.flags & encrypted) != 0) {
        throw ArrayFileMalformed("File " + repr(entry.name) + " is encrypted, password required for extraction");
    }
    const std::string_view packed = find_packed(file.content.text(), entry);
    OwnedSpan content;
    if (entry.method == stored && entry.packed_size == entry.size) {
        content = {{reinterpret_cast<const std::byte*>(packed.data()), packed.size()}, file.owner};
    } else if (entry.method == deflated) {
        content = inflate(packed, entry);
    } else {
        throw ArrayFileMalformed("That compression method is not supported");
    }
    if (libdeflate_crc32(0, content.content.data, content.content.size) != entry.crc) {
        throw ArrayFileMalformed("Bad CRC-32 for file " + repr(entry.name));
    }
    return content;
}

std::string get_array_name(std::string_view name) {
    const bool has_suffix = name.size() >= suffix.size() && name.substr(name.size() - suffix.size()) == suffix;
    return std::string(has_suffix ? name.substr(0, name.size() - suffix.size()) : name);
}

Arrays read_npz(const OwnedSpan& file, const std::string& where) {
    const std::vector<Entry> entries = read_directory(file.content.text());
    check_unpacked_size(entries, file.content.size, where);
    Arrays arrays;
    for (const Entry& entry : entries) {
        const std::string name = get_array_name(entry.name);
        const OwnedSpan content = unpack(file, entry);
        if (content.content.text().substr(0, npy_magic.size()) != npy_magic) {
            throw data_does_not_fit(where,
                                    get_file_name(where) + " contains " + repr(name) + ", which is not an array");
        }
        if (find(arrays, name) != nullptr) throw ArrayFileMalformed(repr(name) + " appears twice");
        arrays.emplace_back(name, read_npy(content, name));
    }
    return arrays;
}

}  // namespace

Arrays parse_npz(Span content, std::shared_ptr<const void> owner, const std::string& where) {
    try {
        return read_npz({content, std::move(owner)}, where);
    } catch (const ArrayFileMalformed& error) {
        throw data_does_not_fit(where, get_file_name(where) + " cannot be read: " + error.why);
    }
}

}  // namespace packager
