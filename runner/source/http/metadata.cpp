#include "http/metadata.hpp"

#include <vector>

#include "http/messages.hpp"
#include "version.hpp"

namespace packager::http {
namespace {

// The JSON of an object, written field by field.
class ObjectText {
public:
    ObjectText& add_text(std::string_view name, std::string_view value) {
        start(name);
        append_quoted(text_, value);
        return *this;
    }
    ObjectText& add_number(std::string_view name, std::int64_t value) { return add_json(name, std::to_string(value)); }
    ObjectText& add_json(std::string_view name, const std::string& json) {
        start(name);
        text_ += json;
        return *this;
    }
    std::string end() const { return text_ + '}'; }

private:
    void start(std::string_view name) {
        if (text_.size() > 1) text_ += ',';
        append_quoted(text_, name);
        text_ += ':';
    }
    std::string text_ = "{";
};

std::string to_list(const std::vector<std::string>& items) {
    std::string text = "[";
    for (const std::string& item : items) text += (text.size() > 1 ? "," : "") + item;
    return text + ']';
}

std::string to_list(const Shape& shape) {
    std::vector<std::string> sizes;
    for (const std::int64_t size : shape) sizes.push_back(std::to_string(size));
    return to_list(sizes);
}

std::string quote(std::string_view text) {
    std::string quoted;
    append_quoted(quoted, text);
    return quoted;
}

std::string describe_tensors(const std::vector<WireTensor>& tensors) {
    std::vector<std::string> items;
    for (const WireTensor& tensor : tensors) {
        ObjectText item;
        item.add_text("name", tensor.name).add_text("datatype", tensor.datatype);
        items.push_back(item.add_json("shape", to_list(tensor.describe_shape())).end());
    }
    return to_list(items);
}

std::string configure_tensors(const std::vector<WireTensor>& tensors, bool has_batch) {
    std::vector<std::string> items;
    for (const WireTensor& tensor : tensors) {
        Shape shape = tensor.describe_shape();
        if (has_batch) shape.erase(shape.begin());
        ObjectText item;
        item.add_text("name", tensor.name).add_text("data_type", "TYPE_" + std::string(tensor.datatype));
        items.push_back(item.add_json("dims", to_list(shape)).end());
    }
    return to_list(items);
}

std::string describe_duration(std::uint64_t count, std::int64_t nanoseconds) {
    return ObjectText().add_number("count", static_cast<std::int64_t>(count)).add_number("ns", nanoseconds).end();
}

std::string describe_batches(const Counts& counts) {
    std::vector<std::string> items;
    for (const auto& [size, runs] : counts.runs_by_size) {
        const auto count = static_cast<std::uint64_t>(runs.count);
        ObjectText item;
        item.add_number("batch_size", size).add_json("compute_input", describe_duration(count, 0));
        item.add_json("compute_infer", describe_duration(count, runs.compute_infer));
        items.push_back(item.add_json("compute_output", describe_duration(count, 0)).end());
    }
    return to_list(items);
}

std::string describe_durations(const Counts& counts) {
    const std::uint64_t failed = counts.failures + counts.rejected + counts.timed_out + counts.invalid;
    ObjectText durations;
    durations.add_json("success", describe_duration(counts.success, counts.success_ns));
    durations.add_json("fail", describe_duration(failed, counts.fail_ns));
    durations.add_json("queue", describe_duration(counts.success, counts.queue));
    durations.add_json("compute_input", describe_duration(counts.success, 0));
    durations.add_json("compute_infer", describe_duration(counts.success, counts.compute_infer));
    durations.add_json("compute_output", describe_duration(counts.success, 0));
    durations.add_json("cache_hit", describe_duration(0, 0));
    return durations.add_json("cache_miss", describe_duration(0, 0)).end();
}

}  // namespace

std::string describe_server() {
    std::vector<std::string> extensions;
    for (const char* name : {"binary_tensor_data", "model_configuration", "model_repository", "statistics"}) {
        extensions.push_back(quote(name));
    }
    ObjectText server;
    server.add_text("name", "triton");  // clients of Triton check it
    server.add_text("version", "packager " + std::string(packager_version));
    return server.add_json("extensions", to_list(extensions)).end();
}

std::string describe_model(const WireSignature& signature) {
    ObjectText model;
    model.add_text("name", signature.model).add_json("versions", to_list({quote(signature.version)}));
    model.add_text("platform", "onnxruntime_onnx").add_json("inputs", describe_tensors(signature.inputs));
    return model.add_json("outputs", describe_tensors(signature.outputs)).end();
}

std::string describe_configuration(const WireSignature& signature) {
    std::int64_t largest = 0;
    if (signature.batch_dim) {
        largest = signature.dims[*signature.batch_dim].max.value_or(0);
        if (largest == 0) largest = 0x7FFFFFFF;
    }
    ObjectText model;
    model.add_text("name", signature.model).add_text("platform", "onnxruntime_onnx");
    model.add_text("backend", "onnxruntime").add_number("max_batch_size", largest);
    model.add_json("input", configure_tensors(signature.inputs, largest > 0));
    return model.add_json("output", configure_tensors(signature.outputs, largest > 0)).end();
}

std::string describe_statistics(const WireSignature& signature, const Counts& counts) {
    ObjectText model;
    model.add_text("name", signature.model).add_text("version", signature.version);
    model.add_number("last_inference", counts.last_inference);
    model.add_number("inference_count", counts.inferences).add_number("execution_count", counts.executions);
    model.add_json("inference_stats", describe_durations(counts)).add_json("batch_stats", describe_batches(counts));
    model.add_json("memory_usage", "[]");
    return ObjectText().add_json("model_stats", to_list({model.end()})).end();
}

std::string describe_index(const WireSignature& signature) {
    ObjectText model;
    model.add_text("name", signature.model).add_text("version", signature.version);
    return to_list({model.add_text("state", "READY").add_text("reason", "").end()});
}

}  // namespace packager::http
