#include "http/json_fields.hpp"

#include "error.hpp"
#include "http/messages.hpp"
#include "python_text.hpp"
#include "text.hpp"

namespace packager::http {
namespace {

using simdjson::dom::element;
using simdjson::dom::element_type;

constexpr std::size_t max_shown = 40;  // characters
constexpr std::size_t enough = 4 * max_shown;

void append_repr(std::string& text, const element& value);

void append_items(std::string& text, const element& value) {
    std::string_view separator;
    if (value.type() == element_type::ARRAY) {
        text += '[';
        for (const element& item : simdjson::dom::array(value)) {
            if (text.size() > enough) return;
            text += separator;
            append_repr(text, item);
            separator = ", ";
        }
        text += ']';
        return;
    }
    text += '{';
    for (const simdjson::dom::key_value_pair& field : simdjson::dom::object(value)) {
        if (text.size() > enough) return;
        text += separator;
        text += repr(field.key);
        text += ": ";
        append_repr(text, field.value);
        separator = ", ";
    }
    text += '}';
}

void append_repr(std::string& text, const element& value) {
    switch (value.type()) {
        case element_type::NULL_VALUE:
            text += "None";
            break;
        case element_type::BOOL:
            text += static_cast<bool>(value) ? "True" : "False";
            break;
        case element_type::INT64:
            text += std::to_string(static_cast<std::int64_t>(value));
            break;
        case element_type::UINT64:
            text += std::to_string(static_cast<std::uint64_t>(value));
            break;
        case element_type::DOUBLE:
            text += repr(static_cast<double>(value));
            break;
        case element_type::STRING:
            text += repr(static_cast<std::string_view>(value));
            break;
        default:
            append_items(text, value);
    }
}

}  // namespace

std::optional<element> find_field(const simdjson::dom::object& parent, std::string_view key) {
    element value;
    if (parent.at_key(key).get(value) != simdjson::SUCCESS) return std::nullopt;
    return value;
}

std::vector<simdjson::dom::object> read_objects(const simdjson::dom::object& parent, std::string_view key) {
    const std::string name(key);
    const std::optional<element> field = find_field(parent, key);
    if (!field) throw Rejected(400, "the request JSON lacks '" + name + "'");
    if (field->type() != element_type::ARRAY) throw Rejected(400, "'" + name + "' is not an array");
    std::vector<simdjson::dom::object> objects;
    for (const element& item : simdjson::dom::array(*field)) {
        if (item.type() != element_type::OBJECT) {
            throw Rejected(400, "'" + name + "' has an item that is not an object");
        }
        objects.push_back(simdjson::dom::object(item));
    }
    return objects;
}

std::string_view read_text(const std::optional<element>& field, std::string_view key, const std::string& owner) {
    if (!field || !field->is_string()) throw Rejected(400, owner + " lacks the string '" + std::string(key) + "'");
    return *field;
}

bool is_true(const element& value) {
    switch (value.type()) {
        case element_type::NULL_VALUE:
            return false;
        case element_type::BOOL:
            return static_cast<bool>(value);
        case element_type::INT64:
            return static_cast<std::int64_t>(value) != 0;
        case element_type::UINT64:
            return true;
        case element_type::DOUBLE:
            return static_cast<double>(value) < 0 || static_cast<double>(value) > 0;
        case element_type::STRING:
            return !static_cast<std::string_view>(value).empty();
        case element_type::ARRAY:
            return simdjson::dom::array(value).size() > 0;
        default:
            return simdjson::dom::object(value).size() > 0;
    }
}

std::string show(const element& value) {
    std::string text;
    append_repr(text, value);
    std::size_t end = 0;
    for (std::size_t count = 0; count < max_shown && end < text.size(); ++count) end += read_character(text, end).size;
    return text.substr(0, end);
}

Parameters::Parameters(const std::optional<element>& field) {
    if (!field || field->is_null()) return;
    if (field->type() != element_type::OBJECT) throw Rejected(400, "'parameters' is not an object");
    fields_ = simdjson::dom::object(*field);
}

std::optional<element> Parameters::find(std::string_view key) const {
    std::optional<element> value;
    if (!fields_) return value;
    for (const simdjson::dom::key_value_pair& field : *fields_) {
        if (field.key == key) value = field.value;
    }
    return value;
}

bool Parameters::read_flag(std::string_view key, bool absent) const {
    const std::optional<element> value = find(key);
    if (!value) return absent;
    if (value->type() != element_type::BOOL) {
        throw Rejected(400, "parameter '" + std::string(key) + "' is not a boolean");
    }
    return static_cast<bool>(*value);
}

}  // namespace packager::http
