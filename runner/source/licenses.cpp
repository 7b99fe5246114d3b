// The licences of everything that is in the file: of the runner's own parts, and of onnxruntime.
#include <cstdio>

#include "commands.hpp"
#include "license_texts.hpp"

namespace packager {

int licenses(const Executable& executable) {
    const std::string_view runner = runner_licenses();
    std::fwrite(runner.data(), 1, runner.size(), stdout);
    std::fwrite(executable.notices.data, 1, executable.notices.size, stdout);
    return 0;
}

}  // namespace packager
