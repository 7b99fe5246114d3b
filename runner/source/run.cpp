// One prediction, from arrays in a file to a file or a printed summary, as packager/runtime/predict.py.
#include <cstdio>

#include "array_files.hpp"
#include "array_text.hpp"
#include "commands.hpp"
#include "error.hpp"
#include "input_checks.hpp"
#include "session.hpp"

namespace packager {
namespace {

constexpr std::size_t max_printed = 50;

std::string summarize(const std::string& name, const Array& array) {
    const std::string line = name + ": " + std::string(name_of(array.dtype)) + describe(array.shape);
    return array.size() <= max_printed ? line + " = " + print_array(array) : line;
}

}  // namespace

int run(const Executable& executable, LibraryCheck& library, const RunOptions& options) {
    const Bundle bundle = open_bundle(executable);
    SessionSettings settings;
    settings.threads = options.threads;
    const Session session(executable, library, bundle, settings);
    const Signature& signature = bundle.config.signature;
    const Arrays inputs = check_inputs(signature, read_array_file(options.input, signature));
    const Arrays outputs = session.run(inputs);
    std::string text;
    if (options.as_json) text = "{\"outputs\": " + format_json(outputs, "stdout") + "}\n";
    if (!options.output.empty()) write_array_file(options.output, outputs);
    if (!options.as_json) {
        for (const auto& [name, array] : outputs) text += escape_unprintable(summarize(name, array), true) + "\n";
    }
    std::fputs(text.c_str(), stdout);
    return 0;
}

}  // namespace packager
