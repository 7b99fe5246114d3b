// The version of packager that this runner belongs to: that of pyproject.toml, which a test compares.
#pragma once

#include <string_view>

namespace packager {

constexpr std::string_view packager_version = "0.1.0";

}  // namespace packager
