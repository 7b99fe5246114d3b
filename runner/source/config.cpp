// config.json of a bundle, as packager/bundle/config.py: what is used is read strictly; `package verify` compares the
// rest with its schema.
#include <algorithm>
#include <set>

#include "bundle.hpp"
#include "error.hpp"

namespace packager {
namespace {

constexpr std::size_t max_config_bytes = std::size_t{1} << 20U;
constexpr const char* config_file = "config.json";

// Thrown as the text of what is wrong.
[[noreturn]] void refuse(const std::string& problem) { throw json::Malformed(problem); }

Dim read_dim(const json::Value& value, const std::string& tensor) {
    if (value.is_null()) return AnySize{};
    if (const auto* const name = std::get_if<std::string>(&value)) return *name;
    const std::int64_t size = value.integer();
    if (size < 0) refuse(tensor + " has a negative size");
    return size;
}

TensorSpec read_tensor(const json::Value& value, const std::string& kind) {
    TensorSpec tensor;
    tensor.name = value.at("name").text();
    const std::string shown = kind + ": " + repr(tensor.name);
    const std::string& dtype = value.at("dtype").text();
    const auto known = find_dtype(dtype);
    if (!known) refuse(shown + " has the unknown dtype " + repr(dtype));
    tensor.dtype = *known;
    for (const json::Value& dim : value.at("shape").list()) tensor.shape.push_back(read_dim(dim, shown));
    const json::Value* const range = value.find("range");
    if (range != nullptr && !range->is_null()) {
        const json::List& limits = range->list();
        if (limits.size() != 2) refuse(shown + " has a range that is not two numbers");
        tensor.range = std::make_pair(limits[0].number(), limits[1].number());
    }
    return tensor;
}

std::vector<TensorSpec> read_tensors(const json::Value& record, const std::string& kind) {
    std::vector<TensorSpec> tensors;
    std::set<std::string> names;
    for (const json::Value& value : record.at(kind).list()) {
        tensors.push_back(read_tensor(value, kind));
        const std::string& name = tensors.back().name;
        if (!names.insert(name).second) refuse(kind + ": " + repr(name) + " appears twice");
    }
    return tensors;
}

DimLimits read_limits(const std::string& name, const json::Value& value) {
    DimLimits limits;
    limits.min = value.at("min").integer();
    if (const json::Value& max = value.at("max"); !max.is_null()) limits.max = max.integer();
    if (limits.min < 0 || (limits.max && *limits.max < limits.min)) refuse("dims." + name + " allows no size");
    return limits;
}

Signature read_signature(const json::Value& record) {
    Signature signature;
    signature.inputs = read_tensors(record, "inputs");
    signature.outputs = read_tensors(record, "outputs");
    for (const auto& [name, value] : record.at("dims").object()) signature.dims[name] = read_limits(name, value);
    for (const TensorSpec& tensor : signature.inputs) {
        for (const Dim& dim : tensor.shape) {
            const auto* const name = std::get_if<std::string>(&dim);
            const bool unknown =
                name != nullptr ? signature.dims.count(*name) == 0 : std::holds_alternative<AnySize>(dim);
            if (unknown) {
                refuse("inputs: " + repr(tensor.name) + " has the dim " + (name != nullptr ? repr(*name) : "None") +
                       ", which dims does not define");
            }
        }
    }
    return signature;
}

std::string read_path(const json::Value& artifact) {
    const std::string& path = artifact.at("path").text();
    if (path.find('/') != std::string::npos) refuse("artifacts: " + repr(path) + " is in a folder");
    return path;
}

// "1", "'1'", "None": as repr writes what may stand for a version of the schema.
std::string show_schema(const json::Value* value) {
    if (value == nullptr || value->is_null()) return "None";
    if (const auto* const text = std::get_if<std::string>(value)) return repr(*text);
    if (const auto* const flag = std::get_if<bool>(value)) return *flag ? "True" : "False";
    return json::dump(*value);
}

json::Value parse_record(const Archive& archive, const std::string& path) {
    const Span content = read_file(archive, config_file, max_config_bytes, path);
    json::Value record;
    try {
        record = json::parse(content.text());
    } catch (const json::Malformed& error) {
        const std::string why = std::string(config_file) + " cannot be read: " + escape_unprintable(error.message);
        throw archive.count("FINGERPRINT") > 0 ? integrity_failed(path, why) : not_a_bundle(path, why);
    }
    const json::Value* const schema = std::holds_alternative<json::Object>(record) ? record.find("schema") : nullptr;
    const auto* const version = schema != nullptr ? std::get_if<std::int64_t>(schema) : nullptr;
    if (version == nullptr || *version != 1) throw bundle_schema_unknown(path, show_schema(schema));
    return record;
}

bool names_cpu(const json::Value& record) {
    const json::List& providers = record.at("providers").list();
    return std::any_of(providers.begin(), providers.end(),
                       [](const json::Value& provider) { return provider.text() == "CPUExecutionProvider"; });
}

}  // namespace

DType TensorSpec::passed_dtype() const { return dtype == DType::bfloat16 ? DType::float32 : dtype; }

Config read_config(const Archive& archive, const std::string& path) {
    Config config;
    config.record = parse_record(archive, path);
    bool runs_on_cpu = false;
    try {
        const json::Value& record = config.record;
        config.name = record.at("name").text();
        config.version = record.at("version").text();
        config.signature = read_signature(record);
        runs_on_cpu = names_cpu(record);
        const json::Value& onnx = record.at("artifacts").at("onnx");
        if (!onnx.is_null()) {
            config.model = read_path(onnx);
            const json::Value* const data = onnx.find("data");
            if (data != nullptr && !data->is_null()) config.data = read_path(*data);
        }
    } catch (const json::Malformed& error) {
        throw not_a_bundle(path, std::string(config_file) + " is malformed: " + escape_unprintable(error.message));
    }
    if (config.model.empty()) {
        throw backend_unavailable(path, "the bundle has no ONNX model", "run its folder or archive with `package run`");
    }
    if (!runs_on_cpu) {
        throw backend_unavailable(path, "its manifest does not name CPUExecutionProvider",
                                  "run its folder or archive with `package run`");
    }
    return config;
}

Bundle open_bundle(Span archive, std::uint64_t offset, const std::string& path, int descriptor) {
    Bundle bundle;
    bundle.path = path;
    bundle.archive = read_archive(archive, offset, path, descriptor);
    bundle.seal = read_seal(bundle.archive, path);
    check_names(bundle.archive, bundle.seal, path);
    check_file(bundle.archive, bundle.seal, config_file, path);
    bundle.config = read_config(bundle.archive, path);
    for (const std::string& file : {bundle.config.model, bundle.config.data.value_or(bundle.config.model)}) {
        if (bundle.seal.digests.count(file) == 0) {
            std::string why = config_file;
            why.append(" names ").append(file).append(", which SHA256SUMS does not list");
            throw integrity_failed(path, why);
        }
    }
    return bundle;
}

}  // namespace packager
