// The names that a file of a bundle may have, as packager/bundle/names.py.
#include <algorithm>
#include <map>
#include <set>

#include "bundle.hpp"
#include "error.hpp"
#include "text.hpp"

namespace packager {
namespace {

constexpr std::size_t max_files = 10'000, max_depth = 32, max_part_bytes = 255, shown_bytes = 200;

std::vector<std::string_view> split(std::string_view file) {
    std::vector<std::string_view> parts;
    for (std::size_t start = 0; start <= file.size();) {
        const std::size_t end = std::min(file.find('/', start), file.size());
        parts.push_back(file.substr(start, end - start));
        start = end + 1;
    }
    return parts;
}

std::string lower(std::string_view text) {
    std::string lowered(text);
    for (char& letter : lowered) {
        if (letter >= 'A' && letter <= 'Z') letter = static_cast<char>(letter - 'A' + 'a');
    }
    return lowered;
}

bool is_control(char32_t code) {
    return code < 0x20 || (code >= 0x7F && code <= 0x9F) || (code >= 0x2028 && code <= 0x202E) ||
           (code >= 0x2066 && code <= 0x2069);
}

// A device such as "con", "com1" or "lpt²", with or without an extension.
bool is_device(std::string_view part) {
    const std::string name = lower(part);
    std::size_t size = 0;
    for (const std::string_view device : {"con", "prn", "aux", "nul", "conin$", "conout$"}) {
        if (name.compare(0, device.size(), device) == 0) size = std::max(size, device.size());
    }
    if (name.compare(0, 3, "com") == 0 || name.compare(0, 3, "lpt") == 0) {
        const std::string_view rest = std::string_view(name).substr(3);
        if (!rest.empty() && rest[0] >= '0' && rest[0] <= '9') size = 4;
        for (const std::string_view superscript : {"¹", "²", "³"}) {
            if (rest.substr(0, superscript.size()) == superscript) size = 3 + superscript.size();
        }
    }
    if (size == 0) return false;
    const std::size_t end = name.find_first_not_of(' ', size);
    return name.size() == size || (end != std::string::npos && name[end] == '.');
}

std::string show(std::string_view file) { return repr(file.substr(0, shown_bytes)); }

}  // namespace

std::optional<std::string> describe_path_problem(std::string_view file) {
    const std::vector<std::string_view> parts = split(file);
    const auto any_part = [&parts](auto is_wrong) { return std::any_of(parts.begin(), parts.end(), is_wrong); };
    if (any_part([](auto part) { return part.empty() || part == "." || part == ".."; })) {
        return show(file) + " is not a path inside a bundle";
    }
    if (!is_utf8(file)) return show(file) + " is not UTF-8";
    const std::vector<char32_t> codes = decode(file);
    if (file.find('\\') != std::string_view::npos || std::any_of(codes.begin(), codes.end(), is_control)) {
        return "a path in a bundle may not contain line breaks, control characters or backslashes: " + show(file);
    }
    if (parts.size() > max_depth + 1) {
        return show(file) + " is more than " + std::to_string(max_depth) + " folders deep";
    }
    if (any_part([](auto part) { return part.size() > max_part_bytes; })) {
        return show(file) + " has a name of more than " + std::to_string(max_part_bytes) + " bytes";
    }
    const auto means_something_else = [](auto part) {
        return part.find(':') != std::string_view::npos || part.back() == '.' || part.back() == ' ' || is_device(part);
    };
    if (any_part(means_something_else)) return show(file) + " means something else on Windows";
    return std::nullopt;
}

std::optional<std::string> describe_set_problem(const std::vector<std::string>& files) {
    std::map<std::string, std::string> spellings;  // of a file or folder, by its path in lower case
    std::set<std::string> lowered_files;
    for (const std::string& file : files) {
        const std::string lowered = lower(file);
        for (std::size_t end = 0; end < file.size(); ++end) {
            end = std::min(file.find('/', end), file.size());
            const std::string spelling = file.substr(0, end), key = lowered.substr(0, end);
            const auto [entry, is_new] = spellings.emplace(key, spelling);
            if (spellings.size() > max_files) {
                return "there are more than " + std::to_string(max_files) + " files and folders";
            }
            if (entry->second != spelling) return show(file) + " differs from " + show(entry->second) + " in case only";
            const bool is_file = end == file.size();
            if (lowered_files.count(key) > 0 || (is_file && !is_new)) {
                return show(file) + " takes the place of another file";
            }
        }
        lowered_files.insert(lowered);
    }
    return std::nullopt;
}

}  // namespace packager
