// Text in columns, as packager/cli/console.py prints it.
#pragma once

#include <string>
#include <utility>
#include <vector>

namespace packager {

// Names and their values, in two columns; a value may have several lines.
std::string format_key_values(const std::vector<std::pair<std::string, std::string>>& rows);
// A header and rows; each column is as wide as its longest cell.
std::string format_table(const std::vector<std::vector<std::string>>& rows);

}  // namespace packager
