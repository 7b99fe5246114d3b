#include "tables.hpp"

#include <algorithm>

#include "error.hpp"
#include "text.hpp"

namespace packager {
namespace {

std::string pad(const std::string& text, std::size_t width) {
    const std::size_t size = decode(text).size();
    return size < width ? text + std::string(width - size, ' ') : text;
}

}  // namespace

std::string format_key_values(const std::vector<std::pair<std::string, std::string>>& rows) {
    std::size_t width = 0;
    for (const auto& [name, value] : rows) width = std::max(width, decode(escape_unprintable(name)).size());
    std::string text;
    for (const auto& [name, value] : rows) {
        std::string shown = escape_unprintable(value, true);
        for (std::size_t end = shown.find('\n'); end != std::string::npos; end = shown.find('\n', end + 1)) {
            shown.insert(end + 1, width + 2, ' ');
        }
        text += pad(escape_unprintable(name), width) + "  " + shown + "\n";
    }
    return text;
}

std::string format_table(const std::vector<std::vector<std::string>>& rows) {
    std::vector<std::size_t> widths;
    for (const auto& row : rows) {
        widths.resize(std::max(widths.size(), row.size()));
        for (std::size_t column = 0; column < row.size(); ++column) {
            widths[column] = std::max(widths[column], decode(escape_unprintable(row[column])).size());
        }
    }
    std::string text;
    for (const auto& row : rows) {
        std::string line;
        for (std::size_t column = 0; column < row.size(); ++column) {
            line += (column > 0 ? "  " : "") + pad(escape_unprintable(row[column]), widths[column]);
        }
        text += line.substr(0, line.find_last_not_of(' ') + 1) + "\n";
    }
    return text;
}

}  // namespace packager
