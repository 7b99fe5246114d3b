#include "onnx_wire.hpp"

#include <algorithm>
#include <array>
#include <set>

#include "error.hpp"
#include "protobuf_wire.hpp"
#include "text.hpp"

namespace packager {
namespace {

constexpr std::size_t max_nesting = 100, max_weights = 100'000, max_dims = 64, shown_bytes = 100;
constexpr std::uint64_t max_size = std::uint64_t{1} << 62U;
constexpr std::string_view location_key = "location";  // of the entry that every external tensor has

enum class Kind { none, model, training, graph, subgraph, function, node, attribute, sparse, initializer, tensor };

constexpr std::uint32_t graph_field = 7, initializer_field = 5;  // of ModelProto and of GraphProto
// Of TensorProto.
constexpr std::uint32_t dims_field = 1, data_type_field = 2, name_field = 8, external_field = 13, location_field = 14;

// The kind of message in a field that can lead to a tensor, by the kind of message that it is in. The numbers are those
// of onnx.proto3.
Kind find_inner(Kind kind, std::uint32_t field) {
    struct Row {
        Kind kind;
        std::uint32_t field;
        Kind inner;
    };
    static constexpr std::array<Row, 19> rows{{
        {Kind::model, 7, Kind::graph},         {Kind::model, 20, Kind::training},
        {Kind::model, 25, Kind::function},     {Kind::training, 1, Kind::subgraph},
        {Kind::training, 2, Kind::subgraph},   {Kind::graph, 1, Kind::node},
        {Kind::graph, 5, Kind::initializer},   {Kind::graph, 15, Kind::sparse},
        {Kind::subgraph, 1, Kind::node},       {Kind::subgraph, 5, Kind::tensor},
        {Kind::subgraph, 15, Kind::sparse},    {Kind::function, 7, Kind::node},
        {Kind::function, 11, Kind::attribute}, {Kind::node, 5, Kind::attribute},
        {Kind::attribute, 5, Kind::tensor},    {Kind::attribute, 6, Kind::subgraph},
        {Kind::attribute, 10, Kind::tensor},   {Kind::attribute, 11, Kind::subgraph},
        {Kind::sparse, 1, Kind::tensor},
    }};
    if (kind == Kind::attribute && (field == 22 || field == 23)) return Kind::sparse;
    if (kind == Kind::sparse && field == 2) return Kind::tensor;
    const auto* const row = std::find_if(rows.begin(), rows.end(), [kind, field](const Row& entry) {
        return entry.kind == kind && entry.field == field;
    });
    return row == rows.end() ? Kind::none : row->inner;
}

// The size of an element by TensorProto.DataType; 0 for dtypes that no bundle has.
std::uint64_t find_item_size(std::uint64_t data_type) {
    constexpr std::array<std::uint8_t, 17> sizes{0, 4, 1, 1, 2, 2, 4, 8, 0, 1, 2, 8, 4, 8, 0, 0, 2};
    return data_type < sizes.size() ? sizes[data_type] : 0;
}

using Entries = std::vector<std::pair<std::string, std::string>>;

const std::string* find_entry(const Entries& entries, std::string_view key) {
    const auto entry = std::find_if(entries.begin(), entries.end(), [key](auto& pair) { return pair.first == key; });
    return entry == entries.end() ? nullptr : &entry->second;
}

std::string read_text(std::string_view bytes) {
    if (!is_utf8(bytes)) throw WeightsUnsafe("the model contains text that is not UTF-8");
    return std::string(bytes);
}

// A StringStringEntryProto: a key and its value.
std::pair<std::string, std::string> read_entry(std::string_view message, FieldBudget& budget) {
    std::pair<std::string, std::string> entry;
    FieldReader reader(message, budget);
    for (Field field; reader.next(field);) {
        if (!field.is_bytes) continue;
        std::string text = read_text(field.bytes);
        if (field.number == 1)
            entry.first = std::move(text);
        else if (field.number == 2)
            entry.second = std::move(text);
    }
    return entry;
}

struct Tensor {
    std::string name;
    std::uint64_t data_type = 0, location = 0;
    std::vector<std::uint64_t> dims;
    Entries entries;
};

void read_dims(const Field& field, std::vector<std::uint64_t>& dims) {
    if (field.is_varint) dims.push_back(field.varint);
    for (std::size_t position = 0; position < field.bytes.size() && dims.size() <= max_dims;) {
        dims.push_back(read_varint(field.bytes, position));
    }
    if (dims.size() > max_dims) throw WeightsUnsafe("a weight has an impossible shape");
}

Tensor read_tensor(std::string_view message, FieldBudget& budget) {
    Tensor tensor;
    FieldReader reader(message, budget);
    for (Field field; reader.next(field);) {
        if (field.number == dims_field) read_dims(field, tensor.dims);
        if (field.number == data_type_field && field.is_varint) tensor.data_type = field.varint;
        if (field.number == location_field && field.is_varint) tensor.location = field.varint;
        if (field.number == name_field && field.is_bytes) tensor.name = read_text(field.bytes);
        if (field.number != external_field || !field.is_bytes) continue;
        auto entry = read_entry(field.bytes, budget);
        if (find_entry(tensor.entries, entry.first) != nullptr) {
            throw WeightsUnsafe(repr(tensor.name) + " has " + repr(entry.first) + " twice");
        }
        if (tensor.entries.size() > max_dims) throw WeightsUnsafe(repr(tensor.name) + " has too many entries");
        tensor.entries.push_back(std::move(entry));
    }
    return tensor;
}

std::string cut(std::string_view text) { return repr(text.substr(0, shown_bytes)); }

std::uint64_t read_number(const std::string& text, const std::string& shown) {
    if (text.empty() || text.size() >= 19 || text.find_first_not_of("0123456789") != std::string::npos) {
        throw WeightsUnsafe(shown + " has the offset or length " + cut(text));
    }
    return std::stoull(text);
}

// The bytes that a shape and dtype need. Throws WeightsUnsafe if no file has as many.
std::uint64_t count_bytes(const Tensor& tensor, std::uint64_t item_size, const std::string& shown) {
    const auto is_impossible = [](std::uint64_t dim) { return dim >= max_size; };  // a negative one is large
    std::uint64_t length = item_size;
    const bool is_empty = std::find(tensor.dims.begin(), tensor.dims.end(), 0U) != tensor.dims.end();
    if (std::any_of(tensor.dims.begin(), tensor.dims.end(), is_impossible)) {
        throw WeightsUnsafe(shown + " has an impossible shape");
    }
    for (const std::uint64_t dim : tensor.dims) {
        if (!is_empty && length > max_size / dim) throw WeightsUnsafe(shown + " has an impossible shape");
        length = is_empty ? 0 : length * dim;
    }
    return length;
}

ExternalTensor check_tensor(const Tensor& tensor, const std::optional<std::string>& data_name,
                            std::uint64_t data_size) {
    const std::string shown = "the weight " + cut(tensor.name);
    const std::string* const location = find_entry(tensor.entries, location_key);
    if (!data_name || location == nullptr || *location != *data_name) {
        throw WeightsUnsafe(shown + " is in the file " + cut(location != nullptr ? *location : "") +
                            ", which is not a file of this bundle");
    }
    const std::uint64_t item_size = find_item_size(tensor.data_type);
    if (item_size == 0) throw WeightsUnsafe(shown + " has the unsupported dtype " + std::to_string(tensor.data_type));
    const std::uint64_t length = count_bytes(tensor, item_size, shown);
    const std::string* const offset_text = find_entry(tensor.entries, "offset");
    const std::string* const length_text = find_entry(tensor.entries, "length");
    const std::uint64_t offset = offset_text != nullptr ? read_number(*offset_text, shown) : 0;
    if (length_text != nullptr && read_number(*length_text, shown) != length) {
        throw WeightsUnsafe(shown + " has " + *length_text + " bytes, and its shape and dtype need " +
                            std::to_string(length));
    }
    if (offset + length > data_size) {
        throw WeightsUnsafe(shown + " ends at byte " + std::to_string(offset + length) + " of " + *data_name +
                            ", which has " + std::to_string(data_size));
    }
    if (offset % item_size != 0) throw WeightsUnsafe(shown + " is not aligned to its dtype");
    return {tensor.name, static_cast<int>(tensor.data_type), Shape(tensor.dims.begin(), tensor.dims.end()), offset,
            length};
}

// Calls `visit` with every TensorProto that may have external data, and whether it is a weight of the main graph. Only
// one message of each level is open at a time.
template <typename Visit>
void visit_tensors(std::string_view model, FieldBudget& budget, Visit visit) {
    std::vector<std::pair<Kind, FieldReader>> pending{{Kind::model, FieldReader(model, budget)}};
    while (!pending.empty()) {
        Field field;
        if (!pending.back().second.next(field)) {
            pending.pop_back();
            continue;
        }
        const Kind inner = field.is_bytes ? find_inner(pending.back().first, field.number) : Kind::none;
        if (inner == Kind::initializer || inner == Kind::tensor) {
            visit(field.bytes, inner == Kind::initializer);
        } else if (inner != Kind::none &&
                   (inner != Kind::node || field.bytes.find(location_key) != std::string_view::npos)) {
            pending.emplace_back(inner, FieldReader(field.bytes, budget));
            if (pending.size() > max_nesting + 1) {
                throw WeightsUnsafe("the model is nested more than " + std::to_string(max_nesting) + " levels deep");
            }
        }
    }
}

// Copies a message with the messages in one of its fields replaced.
template <typename Replace>
std::string replace_field(std::string_view message, std::uint32_t number, Replace replace) {
    std::string copy;
    FieldBudget budget;
    FieldReader reader(message, budget);
    for (Field field; reader.next(field);) {
        if (field.number == number && field.is_bytes) {
            append_field(copy, number, replace(field.bytes));
        } else {
            copy += message.substr(field.start, field.end - field.start);
        }
    }
    return copy;
}

std::string move_tensor(std::string_view message, const std::string& location, std::uint64_t shift) {
    Entries entries;
    std::string moved;
    FieldBudget budget;
    FieldReader reader(message, budget);
    for (Field field; reader.next(field);) {
        if (field.number == external_field && field.is_bytes) {
            entries.push_back(read_entry(field.bytes, budget));
        } else {
            moved += message.substr(field.start, field.end - field.start);
        }
    }
    if (entries.empty()) return std::string(message);
    const std::string* const offset = find_entry(entries, "offset");
    const std::string shifted = std::to_string((offset != nullptr ? std::stoull(*offset) : 0) + shift);
    const auto is_replaced = [](const auto& entry) { return entry.first == location_key || entry.first == "offset"; };
    entries.erase(std::remove_if(entries.begin(), entries.end(), is_replaced), entries.end());
    entries.emplace_back(location_key, location);
    entries.emplace_back("offset", shifted);
    for (const auto& [key, value] : entries) {
        std::string entry;
        append_field(entry, 1, key);
        append_field(entry, 2, value);
        append_field(moved, external_field, entry);
    }
    return moved;
}

}  // namespace

std::vector<ExternalTensor> find_external_tensors(Span model, const std::optional<std::string>& data_name,
                                                  std::uint64_t data_size) {
    std::vector<ExternalTensor> tensors;
    if (model.text().find(location_key) == std::string_view::npos) return tensors;
    std::set<std::string> names;
    FieldBudget budget;
    const auto visit = [&](std::string_view message, bool is_weight) {
        const Tensor tensor = read_tensor(message, budget);
        if (tensor.location != 1 && tensor.entries.empty()) return;
        tensors.push_back(check_tensor(tensor, data_name, data_size));
        if (!is_weight) {
            throw WeightsUnsafe(repr(tensor.name) + " has external data, and is not a weight of the main graph");
        }
        if (!names.insert(tensor.name).second) throw WeightsUnsafe("there are two weights " + repr(tensor.name));
        if (tensors.size() > max_weights) {
            throw WeightsUnsafe("the model has more than " + std::to_string(max_weights) + " weights outside of it");
        }
    };
    try {
        visit_tensors(model.text(), budget, visit);
    } catch (const ProtobufMalformed& error) {
        throw WeightsUnsafe(error.message);
    }
    return tensors;
}

std::string move_tensors(Span model, const std::string& location, std::uint64_t shift) {
    return replace_field(model.text(), graph_field, [&](std::string_view graph) {
        return replace_field(graph, initializer_field,
                             [&](std::string_view tensor) { return move_tensor(tensor, location, shift); });
    });
}

}  // namespace packager
