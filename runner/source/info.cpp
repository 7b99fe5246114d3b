// What the file holds, as `package inspect` prints it.
#include <cstdio>

#include "commands.hpp"
#include "error.hpp"
#include "tables.hpp"

namespace packager {
namespace {

using Rows = std::vector<std::pair<std::string, std::string>>;

void add_artifacts(Rows& rows, const json::Value& record) {
    bool has_fallback = false;
    for (const auto& [name, artifact] : record.at("artifacts").object()) {
        rows.emplace_back(name, artifact.is_null() ? "none" : artifact.at("path").text());
        has_fallback = has_fallback || (name != "onnx" && !artifact.is_null());
    }
    const json::Value* const left_out = record.find("left_out");
    if (left_out == nullptr || left_out->object().empty()) return;
    if (!has_fallback) rows.emplace_back("fallback", "none: the bundle runs only where ONNX loads");
    for (const auto& [kind, entry] : left_out->object()) {
        const std::string prefix = entry.at("verdict").text() == "fail" ? "wrong: " : "";
        rows.emplace_back(kind + " left out", prefix + entry.at("reason").text());
    }
}

std::string show(const Dim& dim) {
    if (const auto* const size = std::get_if<std::int64_t>(&dim)) return std::to_string(*size);
    if (const auto* const name = std::get_if<std::string>(&dim)) return *name;
    return "?";
}

void add_tensors(std::vector<std::vector<std::string>>& table, const std::string& kind,
                 const std::vector<TensorSpec>& tensors) {
    for (const TensorSpec& tensor : tensors) {
        std::string shape;
        for (const Dim& dim : tensor.shape) shape += (shape.empty() ? "" : ", ") + show(dim);
        table.push_back({kind, tensor.name, std::string(name_of(tensor.dtype)), "[" + shape + "]"});
    }
}

std::string describe_text(const Executable& executable, const Bundle& bundle) {
    const Config& config = bundle.config;
    Rows rows{{"bundle", config.name + " " + config.version}, {"fingerprint", bundle.seal.fingerprint}};
    add_artifacts(rows, config.record);
    rows.emplace_back("onnxruntime", executable.onnxruntime_version + ", sha256 " + executable.library_sha256);
    rows.emplace_back("runner", "sha256 " + executable.runner_sha256);
    std::vector<std::vector<std::string>> tensors{{"", "name", "dtype", "shape"}};
    add_tensors(tensors, "input", config.signature.inputs);
    add_tensors(tensors, "output", config.signature.outputs);
    std::vector<std::vector<std::string>> files{{"file", "bytes"}};
    for (const auto& [file, entry] : bundle.archive) files.push_back({file, std::to_string(entry.content.size)});
    return format_key_values(rows) + format_table(tensors) + format_table(files);
}

std::string describe_json(const Executable& executable, const Bundle& bundle) {
    json::Object files;
    for (const auto& [file, entry] : bundle.archive) {
        files.emplace_back(file, static_cast<std::int64_t>(entry.content.size));
    }
    const json::Object standalone{
        {"runner_sha256", executable.runner_sha256},
        {"library_sha256", executable.library_sha256},
        {"onnxruntime", executable.onnxruntime_version},
    };
    const json::Object description{
        {"kind", std::string("bundle")},  {"fingerprint", bundle.seal.fingerprint},
        {"config", bundle.config.record}, {"files", files},
        {"standalone", standalone},
    };
    return json::dump(description) + "\n";
}

}  // namespace

int info(const Executable& executable, bool as_json) {
    const Bundle bundle = open_bundle(executable);
    std::string text;
    try {
        text = as_json ? describe_json(executable, bundle) : describe_text(executable, bundle);
    } catch (const json::Malformed& error) {
        throw not_a_bundle(executable.path, "config.json is malformed: " + escape_unprintable(error.message));
    }
    std::fputs(text.c_str(), stdout);
    return 0;
}

}  // namespace packager
