// The archive of a bundle, as packager/common/deterministic_zip.py writes and reads it: each header follows from name,
// size, CRC and offset, so it is built from them and compared.
#include <libdeflate.h>

#include <algorithm>

#include "bundle.hpp"
#include "error.hpp"
#include "text.hpp"

namespace packager {
namespace {

constexpr std::size_t alignment = 64, max_entries = 10'000;
constexpr std::size_t header_size = 30, shown_bytes = 200;
constexpr std::uint64_t zip64_limit = 0xFFFFFFFF;
constexpr std::uint16_t version = 20, zip64_version = 45, made_by = 3U << 8U | zip64_version;
constexpr std::uint16_t encrypted = 1, has_descriptor = 1U << 3U, utf8_name = 1U << 11U;
constexpr std::uint16_t date = 1U << 5U | 1U;  // 1980-01-01
constexpr std::uint32_t mode = 0100644U << 16U;

struct Entry {
    std::string_view name;
    std::uint64_t size = 0;
    std::uint32_t crc = 0;
    std::uint64_t offset = 0;
};

struct Malformed {
    std::string why;
};

template <typename Number>
void append(std::string& bytes, Number number) {
    for (std::size_t index = 0; index < sizeof(Number); ++index) {
        bytes += static_cast<char>(static_cast<std::uint64_t>(number) >> (8 * index) & 0xFFU);
    }
}

template <typename Number>
Number load(std::string_view bytes, std::size_t position) {
    std::uint64_t number = 0;
    for (std::size_t index = 0; index < sizeof(Number); ++index) {
        number |= static_cast<std::uint64_t>(static_cast<unsigned char>(bytes[position + index])) << (8 * index);
    }
    return static_cast<Number>(number);
}

std::uint32_t shorten(std::uint64_t number) { return static_cast<std::uint32_t>(std::min(number, zip64_limit)); }

std::uint16_t choose_flags(std::string_view name) {
    const bool is_ascii = std::all_of(name.begin(), name.end(), [](char letter) { return (letter & 0x80) == 0; });
    return is_ascii ? 0 : utf8_name;
}

// A name that may not be UTF-8: such bytes are shown as \\xff, as Python's "backslashreplace" does.
std::string show(std::string_view name) {
    std::string text;
    const std::string_view cut = name.substr(0, shown_bytes);
    for (std::size_t position = 0; position < cut.size();) {
        const Character character = read_character(cut, position);
        const std::string_view bytes = cut.substr(position, character.size);
        text += character.valid ? std::string(bytes) : escape_unprintable(bytes);
        position += character.size;
    }
    return repr(text);
}

// The fields that a local header and a record of the directory share, from the version to the name's length.
void append_shared(std::string& header, const Entry& entry, bool is_large) {
    append<std::uint16_t>(header, is_large ? zip64_version : version);
    append<std::uint16_t>(header, choose_flags(entry.name));
    append<std::uint16_t>(header, 0);  // stored
    append<std::uint16_t>(header, 0);  // midnight
    append<std::uint16_t>(header, date);
    append<std::uint32_t>(header, entry.crc);
    append<std::uint32_t>(header, shorten(entry.size));
    append<std::uint32_t>(header, shorten(entry.size));
    append<std::uint16_t>(header, static_cast<std::uint16_t>(entry.name.size()));
}

std::string build_header(const Entry& entry) {
    const bool is_large = entry.size >= zip64_limit;
    std::string extra;
    if (is_large) {
        append<std::uint16_t>(extra, 1);
        append<std::uint16_t>(extra, 16);
        append<std::uint64_t>(extra, entry.size);
        append<std::uint64_t>(extra, entry.size);
    }
    const std::uint64_t unpadded = entry.offset + header_size + entry.name.size() + extra.size() + 4;
    const auto padding = static_cast<std::uint16_t>((alignment - unpadded % alignment) % alignment);
    extra += "FB";
    append<std::uint16_t>(extra, padding);
    extra.append(padding, '\0');
    std::string header = "PK\3\4";
    append_shared(header, entry, is_large);
    append<std::uint16_t>(header, static_cast<std::uint16_t>(extra.size()));
    return header.append(entry.name) + extra;
}

std::string build_record(const Entry& entry) {
    std::string numbers;
    if (entry.size >= zip64_limit) {
        append<std::uint64_t>(numbers, entry.size);
        append<std::uint64_t>(numbers, entry.size);
    }
    if (entry.offset >= zip64_limit) append<std::uint64_t>(numbers, entry.offset);
    std::string extra;
    if (!numbers.empty()) {
        append<std::uint16_t>(extra, 1);
        append<std::uint16_t>(extra, static_cast<std::uint16_t>(numbers.size()));
        extra += numbers;
    }
    std::string record = "PK\1\2";
    append<std::uint16_t>(record, made_by);
    append_shared(record, entry, !numbers.empty());
    append<std::uint16_t>(record, static_cast<std::uint16_t>(extra.size()));
    append<std::uint16_t>(record, 0);  // no comment
    append<std::uint16_t>(record, 0);  // the first disk
    append<std::uint16_t>(record, 0);
    append<std::uint32_t>(record, mode);
    append<std::uint32_t>(record, shorten(entry.offset));
    return record.append(entry.name) + extra;
}

std::string build_directory(const std::vector<Entry>& entries, std::uint64_t offset) {
    std::string directory;
    for (const Entry& entry : entries) directory += build_record(entry);
    const std::uint64_t size = directory.size(), count = entries.size();  // at most 10,000: never in ZIP64
    if (offset >= zip64_limit) {
        directory += "PK\6\6";
        append<std::uint64_t>(directory, 44);
        append<std::uint16_t>(directory, made_by);
        append<std::uint16_t>(directory, zip64_version);
        append<std::uint64_t>(directory, 0);
        append<std::uint64_t>(directory, count);
        append<std::uint64_t>(directory, count);
        append<std::uint64_t>(directory, size);
        append<std::uint64_t>(directory, offset);
        directory += "PK\6\7";
        append<std::uint32_t>(directory, 0);
        append<std::uint64_t>(directory, offset + size);
        append<std::uint32_t>(directory, 1);
    }
    directory += "PK\5\6";
    append<std::uint32_t>(directory, 0);
    append<std::uint16_t>(directory, static_cast<std::uint16_t>(count));
    append<std::uint16_t>(directory, static_cast<std::uint16_t>(count));
    append<std::uint32_t>(directory, static_cast<std::uint32_t>(size));
    append<std::uint32_t>(directory, shorten(offset));
    append<std::uint16_t>(directory, 0);
    return directory;
}

bool starts_with(std::string_view text, std::string_view start) { return text.substr(0, start.size()) == start; }

// Reads the entry whose header starts at `offset`, and moves `offset` to the content's end. Throws Malformed.
Entry read_entry(std::string_view archive, std::uint64_t& offset) {
    const std::string_view rest = archive.substr(offset);
    if (rest.size() < header_size || !starts_with(rest, "PK\3\4")) {
        throw Malformed{"byte " + std::to_string(offset) + " of " + std::to_string(archive.size()) +
                        " starts neither an entry of a ZIP nor its directory"};
    }
    const auto flags = load<std::uint16_t>(rest, 6), method = load<std::uint16_t>(rest, 8);
    const auto name_size = load<std::uint16_t>(rest, 26), extra_size = load<std::uint16_t>(rest, 28);
    const std::string_view name = rest.substr(header_size, name_size);
    const std::string_view extra = rest.substr(std::min<std::size_t>(header_size + name_size, rest.size()), extra_size);
    if ((flags & encrypted) != 0) throw Malformed{show(name) + " is encrypted"};
    if (method != 0) throw Malformed{show(name) + " is compressed; entries must be stored"};
    if ((flags & has_descriptor) != 0) throw Malformed{show(name) + " has its size in a data descriptor"};
    Entry entry{name, load<std::uint32_t>(rest, 18), load<std::uint32_t>(rest, 14), offset};
    if (entry.size == zip64_limit && extra.size() >= 12) entry.size = load<std::uint64_t>(extra, 4);
    const std::string header = build_header(entry);
    if (!starts_with(rest, header) || header.size() != header_size + name.size() + extra.size()) {
        throw Malformed{"the header of " + show(name) + " contains more than name, size and CRC, or is not aligned"};
    }
    const std::uint64_t left = rest.size() - header.size();
    if (entry.size > left) {
        throw Malformed{show(name) + " claims " + std::to_string(entry.size) + " bytes, and the archive has " +
                        std::to_string(left) + " left"};
    }
    offset += header.size() + entry.size;
    return entry;
}

void check_directory(std::string_view archive, std::uint64_t offset, const std::vector<Entry>& entries) {
    const std::string expected = build_directory(entries, offset);
    const std::string_view actual = archive.substr(offset);
    if (actual == expected) return;
    if (starts_with(actual, expected)) throw Malformed{"there are bytes after its end"};
    if (starts_with(expected, actual)) throw Malformed{"it is truncated in its directory"};
    throw Malformed{
        "its directory does not match its entries: different names, links, permissions, overlaps, or a comment"};
}

std::vector<Entry> index_archive(std::string_view archive) {
    std::vector<Entry> entries;
    std::uint64_t offset = 0;
    while (!starts_with(archive.substr(offset), "PK\1\2") && !starts_with(archive.substr(offset), "PK\5\6")) {
        const Entry entry = read_entry(archive, offset);
        if (!entries.empty() && entry.name <= entries.back().name) {
            throw Malformed{show(entry.name) + " appears twice or out of order"};
        }
        if (entries.size() == max_entries) {
            throw Malformed{"it has more than " + std::to_string(max_entries) + " entries"};
        }
        if (!is_utf8(entry.name)) throw Malformed{"the name " + show(entry.name) + " is not UTF-8"};
        entries.push_back(entry);
    }
    check_directory(archive, offset, entries);
    return entries;
}

Archive build_archive(std::string_view archive, std::uint64_t offset, int descriptor) {
    Archive files;
    std::vector<std::string> names;
    for (const Entry& entry : index_archive(archive)) {
        if (const auto problem = describe_path_problem(entry.name)) throw Malformed{*problem};
        const std::uint64_t start = entry.offset + build_header(entry).size();
        const auto* const content = reinterpret_cast<const std::byte*>(archive.data()) + start;
        const Span span{content, static_cast<std::size_t>(entry.size)};
        files.emplace(entry.name, BundleFile{span, offset + start, entry.crc, descriptor});
        names.emplace_back(entry.name);
    }
    if (const auto problem = describe_set_problem(names)) throw Malformed{*problem};
    return files;
}

}  // namespace

std::string_view Span::text() const { return {reinterpret_cast<const char*>(data), size}; }

Archive read_archive(Span archive, std::uint64_t offset, const std::string& path, int descriptor) {
    Archive files;
    try {
        files = build_archive(archive.text(), offset, descriptor);
    } catch (const Malformed& error) {
        throw archive_refused(path, error.why);
    }
    for (const std::string file : {"SHA256SUMS", "config.json"}) {
        if (files.count(file) > 0) continue;
        if (files.count("FINGERPRINT") > 0) throw integrity_failed(path, "it has no " + file);
        throw not_a_bundle(path, "it has no " + file);
    }
    return files;
}

Span read_file(const Archive& archive, std::string_view file, std::size_t limit, const std::string& path) {
    const auto entry = archive.find(file);
    if (entry == archive.end()) throw integrity_failed(path, std::string(file) + " is missing");
    const Span content = entry->second.content;
    if (content.size > limit) {
        throw integrity_failed(path, std::string(file) + " has " + std::to_string(content.size) + " bytes; at most " +
                                         std::to_string(limit) + " are read");
    }
    if (libdeflate_crc32(0, content.data, content.size) != entry->second.crc) {
        throw integrity_failed(path, "the content of " + repr(file) + " does not match its CRC");
    }
    return content;
}

}  // namespace packager
