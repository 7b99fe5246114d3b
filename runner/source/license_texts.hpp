// The licences of what the runner itself is made of: runner/licenses, written into it by embed_licenses.py.
// Those of onnxruntime travel with its library.
#pragma once

#include <string_view>

namespace packager {

// The texts, each below a line with the name of its component.
std::string_view runner_licenses();

}  // namespace packager
