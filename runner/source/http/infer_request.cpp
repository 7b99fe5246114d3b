#include "http/infer_request.hpp"

#include <algorithm>
#include <optional>

#include "error.hpp"
#include "http/json_fields.hpp"
#include "http/messages.hpp"

namespace packager::http {
namespace {

using simdjson::dom::element;
using simdjson::dom::element_type;

constexpr std::size_t memory_to_keep = std::size_t{256} << 10U;  // of texts: parsing takes a multiple of it
constexpr std::size_t max_dims = 64;
constexpr std::int64_t max_dim = std::int64_t{1} << 62U;

struct TensorFields {
    std::optional<element> name, datatype, shape, data, parameters;
};

// The first field of each name counts.
TensorFields read_fields(const simdjson::dom::object& tensor) {
    TensorFields fields;
    const auto set = [](std::optional<element>& field, const element& value) {
        if (!field) field = value;
    };
    for (const simdjson::dom::key_value_pair& field : tensor) {
        if (field.key == "name") set(fields.name, field.value);
        if (field.key == "datatype") set(fields.datatype, field.value);
        if (field.key == "shape") set(fields.shape, field.value);
        if (field.key == "data") set(fields.data, field.value);
        if (field.key == "parameters") set(fields.parameters, field.value);
    }
    return fields;
}

void read_shape(const std::optional<element>& field, const std::string& name, Shape& shape) {
    if (!field || field->type() != element_type::ARRAY) {
        throw Rejected(400, "input '" + name + "' lacks the array 'shape'");
    }
    const simdjson::dom::array dims(*field);
    const auto count = static_cast<std::size_t>(std::distance(dims.begin(), dims.end()));
    if (count > max_dims) {
        throw Rejected(400, "'shape' of input '" + name + "' has " + std::to_string(count) + " dims");
    }
    shape.clear();
    for (const element& dim : dims) {
        std::int64_t size = -1;
        if (dim.type() != element_type::INT64 || dim.get_int64().get(size) != simdjson::SUCCESS || size < 0 ||
            size > max_dim) {
            throw Rejected(400, "'shape' of input '" + name + "' has an invalid dim: " + show(dim));
        }
        shape.push_back(size);
    }
}

// Decodes one request.
class Decoder {
public:
    Decoder(const WireSignature& signature, InferRequest& request) : signature_(signature), request_(request) {
        request_.has_id = false;
        request_.order.clear();
        request_.outputs.clear();
        std::fill(request_.sizes.begin(), request_.sizes.end(), -1);
    }

    void decode(const element& document, std::size_t text_size, Span tail);
    void decode_raw(Span body);

private:
    void decode_input(const simdjson::dom::object& tensor, std::size_t text_size);
    void take_bytes(std::size_t index, const element& byte_size, bool has_data);
    std::size_t find_input(const TensorFields& fields) const;
    void decode_outputs(const std::vector<simdjson::dom::object>& tensors, bool binary_default);
    std::size_t find_output(const TensorFields& fields) const;
    void check_all_given() const;
    void ask_for_all(bool binary);

    const WireSignature& signature_;
    InferRequest& request_;
    Span tail_;
};

void Decoder::decode(const element& document, std::size_t text_size, Span tail) {
    if (document.type() != element_type::OBJECT) throw Rejected(400, "the request JSON is not an object");
    const simdjson::dom::object root(document);
    tail_ = tail;
    element id;
    if (root.at_key("id").get(id) == simdjson::SUCCESS && !id.is_null()) {
        if (!id.is_string()) throw Rejected(400, "'id' is not a string");
        request_.has_id = true;
        request_.id = std::string_view(id);
    }
    const Parameters parameters(find_field(root, "parameters"));
    for (const simdjson::dom::object& tensor : read_objects(root, "inputs")) decode_input(tensor, text_size);
    check_all_given();
    if (tail_.size > 0) {
        throw Rejected(400, "unexpected additional input data for model '" + signature_.model + "'");
    }
    const bool binary = parameters.read_flag("binary_data_output", false);
    std::vector<simdjson::dom::object> requested;
    if (find_field(root, "outputs")) requested = read_objects(root, "outputs");
    if (requested.empty()) {
        ask_for_all(binary);
    } else {
        decode_outputs(requested, binary);
    }
}

void Decoder::decode_input(const simdjson::dom::object& object, std::size_t text_size) {
    const TensorFields fields = read_fields(object);
    const std::size_t index = find_input(fields);
    const WireTensor& tensor = signature_.inputs[index];
    if (std::find(request_.order.begin(), request_.order.end(), index) != request_.order.end()) {
        throw Rejected(400, "input '" + tensor.name + "' is given twice for model '" + signature_.model + "'");
    }
    read_shape(fields.shape, tensor.name, request_.shape);
    signature_.check_shape(tensor, request_.shape, request_.sizes);
    const Parameters parameters(fields.parameters);
    const std::optional<element> byte_size = parameters.find("binary_data_size");
    if (parameters.find("shared_memory_region")) {
        throw Rejected(400, "shared memory is not enabled; the server's option --shared-memory enables it");
    }
    if (byte_size && !byte_size->is_null()) {
        take_bytes(index, *byte_size, fields.data.has_value());
    } else {
        parse_json_tensor(fields.data ? &*fields.data : nullptr, tensor, request_.shape, text_size,
                          request_.memory[index], request_.inputs[index].second);
    }
    request_.order.push_back(index);
}

void Decoder::take_bytes(std::size_t index, const element& byte_size, bool has_data) {
    const WireTensor& tensor = signature_.inputs[index];
    if (has_data) throw Rejected(400, "input '" + tensor.name + "' has both 'data' and 'binary_data_size'");
    std::int64_t size = -1;
    const bool is_size = byte_size.type() == element_type::INT64 &&
                         byte_size.get_int64().get(size) == simdjson::SUCCESS && size >= 0 &&
                         static_cast<std::uint64_t>(size) <= tail_.size;
    if (!is_size) {
        throw Rejected(400, "unexpected size for input '" + tensor.name + "': " + show(byte_size) + " bytes, and " +
                                std::to_string(tail_.size) + " are left for model '" + signature_.model + "'");
    }
    const auto count = static_cast<std::size_t>(size);
    view_tensor({tail_.data, count}, tensor, request_.shape, signature_.model, request_.memory[index],
                request_.inputs[index].second);
    tail_ = {tail_.data + count, tail_.size - count};
}

std::size_t Decoder::find_input(const TensorFields& fields) const {
    const std::string_view name = read_text(fields.name, "name", "an input");
    const auto entry = std::find_if(signature_.inputs.begin(), signature_.inputs.end(),
                                    [&](const WireTensor& tensor) { return tensor.name == name; });
    if (entry == signature_.inputs.end()) {
        throw Rejected(400,
                       "unexpected inference input '" + std::string(name) + "' for model '" + signature_.model + "'");
    }
    if (!fields.datatype || !fields.datatype->is_string() || std::string_view(*fields.datatype) != entry->datatype) {
        const std::string_view datatype = read_text(fields.datatype, "datatype", "input '" + entry->name + "'");
        throw Rejected(400, "inference input '" + entry->name + "' data-type is '" + std::string(datatype) +
                                "', but model '" + signature_.model + "' expects '" + std::string(entry->datatype) +
                                "'");
    }
    return static_cast<std::size_t>(entry - signature_.inputs.begin());
}

void Decoder::check_all_given() const {
    if (request_.order.size() == signature_.inputs.size()) return;
    std::string given, missing;
    for (const std::size_t index : request_.order) {
        given += (given.empty() ? "'" : ",'") + signature_.inputs[index].name + "'";
    }
    for (std::size_t index = 0; index < signature_.inputs.size(); ++index) {
        if (std::find(request_.order.begin(), request_.order.end(), index) != request_.order.end()) continue;
        missing += (missing.empty() ? "'" : ",'") + signature_.inputs[index].name + "'";
    }
    throw Rejected(400, "expected " + std::to_string(signature_.inputs.size()) + " inputs but got " +
                            std::to_string(request_.order.size()) + " inputs for model '" + signature_.model +
                            "'. Got input(s) [" + given + "], but missing required input(s) [" + missing +
                            "]. Please provide all required input(s).");
}

void Decoder::ask_for_all(bool binary) {
    for (std::size_t index = 0; index < signature_.outputs.size(); ++index) request_.outputs.push_back({index, binary});
}

void Decoder::decode_outputs(const std::vector<simdjson::dom::object>& tensors, bool binary_default) {
    for (const simdjson::dom::object& tensor : tensors) {
        const TensorFields fields = read_fields(tensor);
        const std::size_t index = find_output(fields);
        const std::string& name = signature_.outputs[index].name;
        const Parameters parameters(fields.parameters);
        const std::optional<element> classification = parameters.find("classification");
        if (classification && is_true(*classification)) {
            throw Rejected(400, "output '" + name + "' asks for a classification, which is not supported");
        }
        const bool binary = parameters.read_flag("binary_data", binary_default);
        if (parameters.find("shared_memory_region")) {
            throw Rejected(400, "shared memory is not enabled; the server's option --shared-memory enables it");
        }
        request_.outputs.push_back({index, binary});
    }
}

std::size_t Decoder::find_output(const TensorFields& fields) const {
    const std::string_view name = read_text(fields.name, "name", "an output");
    const auto entry = std::find_if(signature_.outputs.begin(), signature_.outputs.end(),
                                    [&](const WireTensor& tensor) { return tensor.name == name; });
    if (entry == signature_.outputs.end()) {
        throw Rejected(400,
                       "unexpected inference output '" + std::string(name) + "' for model '" + signature_.model + "'");
    }
    const auto index = static_cast<std::size_t>(entry - signature_.outputs.begin());
    for (const RequestedOutput& output : request_.outputs) {
        if (output.index == index) {
            throw Rejected(400, "output '" + entry->name + "' is requested twice for model '" + signature_.model + "'");
        }
    }
    return index;
}

// The body is the bytes of the only input; at most one of its dims may be unknown.
void Decoder::decode_raw(Span body) {
    if (signature_.inputs.size() != 1) {
        throw Rejected(400, "Raw request must only have 1 input (found 1) to be deduced but got " +
                                std::to_string(signature_.inputs.size()) + " inputs in '" + signature_.model +
                                "' model configuration");
    }
    const WireTensor& tensor = signature_.inputs.front();
    Shape shape = tensor.describe_shape();
    std::vector<std::size_t> dynamic;
    std::size_t rest = item_size(tensor.dtype);
    for (std::size_t axis = 0; axis < shape.size(); ++axis) {
        if (shape[axis] < 0) {
            dynamic.push_back(axis);
        } else if (__builtin_mul_overflow(rest, static_cast<std::size_t>(shape[axis]), &rest)) {
            throw Rejected(400, "the raw input '" + tensor.name + "' is too large");
        }
    }
    const bool has_batch = !shape.empty() && signature_.batch_dim && tensor.dims[0].kind == WireDim::Kind::named &&
                           tensor.dims[0].index == *signature_.batch_dim;
    if (dynamic.size() > 1 && has_batch) {
        shape[dynamic.front()] = 1;
        dynamic.erase(dynamic.begin());
    }
    if (dynamic.size() > 1) {
        throw Rejected(400, "The shape of the raw input '" + tensor.name +
                                "' can not be deduced because there are more than one variable-sized dimension");
    }
    if (!dynamic.empty()) shape[dynamic.front()] = rest == 0 ? 0 : static_cast<std::int64_t>(body.size / rest);
    signature_.check_shape(tensor, shape, request_.sizes);
    view_tensor(body, tensor, shape, signature_.model, request_.memory.front(), request_.inputs.front().second);
    request_.order.push_back(0);
    ask_for_all(true);
}

std::size_t read_inference_length(const HeaderValue& header, std::size_t body_size) {
    const std::string& text = header.value;
    const bool is_number =
        !text.empty() && text.size() < 12 && text.find_first_not_of("0123456789") == std::string::npos;
    std::size_t length = 0;
    if (is_number) {
        for (const char digit : text) length = 10 * length + static_cast<unsigned>(digit - '0');
    }
    if (is_number && length <= body_size) return length;
    std::string shown;  // from Latin-1
    for (const char character : text.substr(0, 40)) {
        const auto byte = static_cast<unsigned char>(character);
        if (byte >= 0x80) shown += static_cast<char>(0xC0U | byte >> 6U);
        shown += byte >= 0x80 ? static_cast<char>(0x80U | (byte & 0x3FU)) : character;
    }
    throw Rejected(400,
                   "inference header size should be in range (0, " + std::to_string(body_size) + "), got: " + shown);
}

}  // namespace

InferRequest::InferRequest(const WireSignature& signature)
    : memory(signature.inputs.size()), sizes(signature.dims.size(), -1) {
    for (const WireTensor& tensor : signature.inputs) inputs.emplace_back(tensor.name, Array{});
}

std::size_t InferRequest::count_elements() const {
    std::size_t count = 0;
    for (const auto& [name, array] : inputs) count += array.size();
    return count;
}

std::int64_t InferRequest::find_batch(const WireSignature& signature) const {
    return signature.batch_dim ? sizes[*signature.batch_dim] : 1;
}

void InferRequest::rebase(Span before, const std::byte* after) {
    for (auto& [name, array] : inputs) {
        const auto start = reinterpret_cast<std::uintptr_t>(before.data);
        const auto data = reinterpret_cast<std::uintptr_t>(array.data);
        if (data >= start && data < start + before.size) array.data = after + (data - start);
    }
}

void InferRequest::trim() {
    for (TensorMemory& tensor : memory) tensor.trim();
}

element JsonParser::parse(std::string_view text) {
    simdjson::dom::parser* parser = &parser_;
    if (text.size() > memory_to_keep) {
        large_parser_ = std::make_unique<simdjson::dom::parser>();
        parser = large_parser_.get();
    }
    element document;
    const simdjson::error_code error = parser->parse(text.data(), text.size(), false).get(document);
    if (error == simdjson::UTF8_ERROR) throw Rejected(400, "the request JSON is not valid UTF-8");
    if (error != simdjson::SUCCESS) {
        const std::string_view message = simdjson::error_message(error);
        throw Rejected(400, "failed to parse the request JSON: " + std::string(message.substr(0, message.find(':'))));
    }
    return document;
}

void JsonParser::trim() { large_parser_.reset(); }

void decode_request(const WireSignature& signature, Span body, const HeaderValue& inference_length, JsonParser& parser,
                    InferRequest& request) {
    Decoder decoder(signature, request);
    std::size_t length = body.size;
    if (inference_length.given) {
        length = read_inference_length(inference_length, body.size);
        if (length == 0) {
            decoder.decode_raw(body);
            return;
        }
    }
    const element document = parser.parse(body.text().substr(0, length));
    decoder.decode(document, length, {body.data + length, body.size - length});
}

}  // namespace packager::http
