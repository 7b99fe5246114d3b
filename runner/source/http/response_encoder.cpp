#include "http/response_encoder.hpp"

#include <charconv>
#include <cstring>
#include <stdexcept>

#include "http/compression.hpp"
#include "http/tensors.hpp"

namespace packager::http {
namespace {

void append_integer(std::string& text, std::int64_t value) {
    char digits[24];
    text.append(digits, std::to_chars(digits, digits + sizeof digits, value).ptr);
}

// The model may compute in bfloat16 what the signature has as float32.
Array widen(const Array& array) {
    auto [wide, memory] = allocate(DType::float32, array.shape);
    for (std::size_t index = 0; index < array.size(); ++index) {
        std::uint16_t bits = 0;
        std::memcpy(&bits, array.data + 2 * index, sizeof bits);
        const float value = bfloat16_to_float(bits);
        std::memcpy(memory + 4 * index, &value, sizeof value);
    }
    return std::move(wide);
}

// The output, or `converted` in its place.
const Array& find_output(const Arrays& outputs, const WireTensor& tensor, Array& converted) {
    const Array* array = find(outputs, tensor.name);
    if (array == nullptr) throw std::runtime_error("the model returned no output " + tensor.name);
    if (array->dtype == tensor.dtype) return *array;
    if (array->dtype == DType::bfloat16 && tensor.dtype == DType::float32) return converted = widen(*array);
    throw std::runtime_error("the output " + tensor.name + " has a different dtype than in config.json");
}

}  // namespace

ResponseEncoder::ResponseEncoder(const WireSignature& signature) : signature_(signature), names_("{\"model_name\":") {
    append_quoted(names_, signature.model);
    names_ += ",\"model_version\":";
    append_quoted(names_, signature.version);
    for (const WireTensor& tensor : signature.outputs) {
        std::string head = "{\"name\":";
        append_quoted(head, tensor.name);
        head += R"(,"datatype":")" + std::string(tensor.datatype) + R"(","shape":[)";
        heads_.push_back(std::move(head));
    }
}

void ResponseEncoder::encode(const InferRequest& request, const Arrays& outputs, Response& response) const {
    std::string& text = response.body;
    text += names_;
    if (request.has_id) {
        text += ",\"id\":";
        append_quoted(text, request.id);
    }
    text += ",\"outputs\":";
    char separator = '[';
    for (const RequestedOutput& output : request.outputs) {
        const WireTensor& tensor = signature_.outputs[output.index];
        Array converted;
        const Array& array = find_output(outputs, tensor, converted);
        text += separator;
        separator = ',';
        text += heads_[output.index];
        for (std::size_t axis = 0; axis < array.shape.size(); ++axis) {
            if (axis > 0) text += ',';
            append_integer(text, array.shape[axis]);
        }
        if (output.binary) {
            const std::size_t bytes = array.bytes();
            text += R"(],"parameters":{"binary_data_size":)";
            append_integer(text, static_cast<std::int64_t>(bytes));
            text += "}}";
            response.tensors.push_back({array.data, bytes, array.owner});
        } else {
            text += "],\"data\":";
            format_json_tensor(array, tensor, text);
            text += '}';
        }
    }
    text += "]}";
    response.set_json(200);
    if (!response.tensors.empty()) {
        response.headers = "content-type: application/octet-stream\r\ninference-header-content-length: ";
        append_integer(response.headers, static_cast<std::int64_t>(text.size()));
        response.headers += "\r\n";
    }
}

}  // namespace packager::http
