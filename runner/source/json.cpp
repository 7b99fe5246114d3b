#include "json.hpp"

#include <simdjson.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstdio>
#include <unordered_set>

#include "error.hpp"
#include "python_text.hpp"
#include "text.hpp"

namespace packager::json {

namespace {

constexpr int max_nesting = 100;
constexpr std::size_t free_values = 100'000;
constexpr std::size_t bytes_per_value = 64;
constexpr std::size_t few_keys = 16;

template <typename T>
const T& get(const Value& value, const char* expected) {
    const T* content = std::get_if<T>(&static_cast<const Value::variant&>(value));
    if (content == nullptr) {
        throw Malformed(std::string("a value is not ") + expected);
    }
    return *content;
}

// A megabyte of `[],[],…` would take a hundred times as much memory. Every value but the first follows one of three
// characters; these are counted in texts too, where they are few.
void check_cost(std::string_view text) {
    const auto separates = [](char character) { return character == ',' || character == '[' || character == '{'; };
    const std::size_t limit = free_values + text.size() / bytes_per_value;
    if (static_cast<std::size_t>(std::count_if(text.begin(), text.end(), separates)) > limit) {
        throw Malformed("it has more than " + std::to_string(limit) + " values");
    }
}

void check_duplicates(const Object& object) {
    if (object.size() <= few_keys) {
        for (std::size_t index = 1; index < object.size(); ++index) {
            for (std::size_t earlier = 0; earlier < index; ++earlier) {
                if (object[earlier].first == object[index].first) {
                    throw Malformed(repr(object[index].first) + " appears twice");
                }
            }
        }
        return;
    }
    std::unordered_set<std::string_view> names;
    for (const auto& [name, value] : object) {
        if (!names.insert(name).second) {
            throw Malformed(repr(name) + " appears twice");
        }
    }
}

Value convert(const simdjson::dom::element& element, int level) {
    if (level >= max_nesting) {
        throw Malformed("it is nested more than " + std::to_string(max_nesting) + " levels deep");
    }
    switch (element.type()) {
        case simdjson::dom::element_type::ARRAY: {
            List list;
            for (const simdjson::dom::element& item : simdjson::dom::array(element)) {
                list.push_back(convert(item, level + 1));
            }
            return list;
        }
        case simdjson::dom::element_type::OBJECT: {
            Object object;
            for (const simdjson::dom::key_value_pair& field : simdjson::dom::object(element)) {
                object.emplace_back(std::string(field.key), convert(field.value, level + 1));
            }
            check_duplicates(object);
            return object;
        }
        case simdjson::dom::element_type::INT64:
            return std::int64_t{element};
        case simdjson::dom::element_type::UINT64:
            return std::uint64_t{element};
        case simdjson::dom::element_type::DOUBLE:
            return double{element};
        case simdjson::dom::element_type::STRING:
            return std::string(std::string_view(element));
        case simdjson::dom::element_type::BOOL:
            return bool{element};
        case simdjson::dom::element_type::NULL_VALUE:
            break;
    }
    return nullptr;
}

void dump_to(std::string& text, const Value& value) {
    const Value::variant& content = value;
    if (const auto* boolean = std::get_if<bool>(&content)) {
        text += *boolean ? "true" : "false";
    } else if (const auto* integer = std::get_if<std::int64_t>(&content)) {
        text += std::to_string(*integer);
    } else if (const auto* natural = std::get_if<std::uint64_t>(&content)) {
        text += std::to_string(*natural);
    } else if (const auto* number = std::get_if<double>(&content)) {
        text += std::isnan(*number)   ? "NaN"
                : std::isinf(*number) ? (*number > 0 ? "Infinity" : "-Infinity")
                                      : format(*number);
    } else if (const auto* string = std::get_if<std::string>(&content)) {
        text += quote(*string);
    } else if (const auto* list = std::get_if<List>(&content)) {
        const char* separator = "[";
        for (const Value& item : *list) {
            text += separator;
            dump_to(text, item);
            separator = ", ";
        }
        text += list->empty() ? "[]" : "]";
    } else if (const auto* object = std::get_if<Object>(&content)) {
        const char* separator = "{";
        for (const auto& [name, item] : *object) {
            text += separator + quote(name) + ": ";
            dump_to(text, item);
            separator = ", ";
        }
        text += object->empty() ? "{}" : "}";
    } else {
        text += "null";
    }
}

void escape_code_unit(std::string& text, unsigned unit) {
    char buffer[8];
    std::snprintf(buffer, sizeof buffer, "\\u%04x", unit & 0xFFFFU);
    text += buffer;
}

void quote_ascii(std::string& text, char character) {
    switch (character) {
        case '"':
            text += "\\\"";
            break;
        case '\\':
            text += "\\\\";
            break;
        case '\n':
            text += "\\n";
            break;
        case '\r':
            text += "\\r";
            break;
        case '\t':
            text += "\\t";
            break;
        case '\f':
            text += "\\f";
            break;
        case '\b':
            text += "\\b";
            break;
        default:
            if (character < ' ' || character == '\x7f') {
                escape_code_unit(text, static_cast<unsigned char>(character));
            } else {
                text += character;
            }
    }
}

}  // namespace

Malformed::Malformed(std::string text) : message(std::move(text)) {}

const char* Malformed::what() const noexcept { return message.c_str(); }

const Object& Value::object() const { return get<Object>(*this, "an object"); }

const List& Value::list() const { return get<List>(*this, "a list"); }

const std::string& Value::text() const { return get<std::string>(*this, "a string"); }

bool Value::boolean() const { return get<bool>(*this, "true or false"); }

std::int64_t Value::integer() const { return get<std::int64_t>(*this, "an integer"); }

double Value::number() const {
    const variant& content = *this;
    if (const auto* integer = std::get_if<std::int64_t>(&content)) {
        return static_cast<double>(*integer);
    }
    if (const auto* natural = std::get_if<std::uint64_t>(&content)) {
        return static_cast<double>(*natural);
    }
    return get<double>(*this, "a number");
}

const Value& Value::at(std::string_view key) const {
    const Value* value = find(key);
    if (value == nullptr) {
        throw Malformed("there is no key " + repr(key));
    }
    return *value;
}

const Value* Value::find(std::string_view key) const {
    for (const auto& [name, value] : object()) {
        if (name == key) {
            return &value;
        }
    }
    return nullptr;
}

bool Value::is_null() const { return std::holds_alternative<std::nullptr_t>(static_cast<const variant&>(*this)); }

Value parse(std::string_view text) {
    if (text.substr(0, 3) == "\xEF\xBB\xBF") {  // simdjson would skip it
        throw Malformed("Unexpected UTF-8 BOM");
    }
    check_cost(text);
    simdjson::dom::parser parser;
    simdjson::dom::element element;
    const simdjson::error_code error = parser.parse(text.data(), text.size()).get(element);
    if (error != simdjson::SUCCESS) {
        throw Malformed(simdjson::error_message(error));
    }
    return convert(element, 0);
}

std::string dump(const Value& value) {
    std::string text;
    dump_to(text, value);
    return text;
}

std::string quote(std::string_view text) {
    std::string quoted = "\"";
    for (std::size_t position = 0; position < text.size();) {
        const Character character = read_character(text, position);
        // A byte that is not UTF-8 becomes half a surrogate pair, as in the names of files in Python.
        const std::uint32_t code = character.valid ? character.code : 0xDC00U + character.code;
        if (code < 0x80) {
            quote_ascii(quoted, text[position]);
        } else if (code > 0xFFFF) {
            escape_code_unit(quoted, 0xD800U + ((code - 0x10000U) >> 10U));
            escape_code_unit(quoted, 0xDC00U + ((code - 0x10000U) & 0x3FFU));
        } else {
            escape_code_unit(quoted, code);
        }
        position += character.size;
    }
    return quoted + "\"";
}

std::string format(double value) { return packager::repr(value); }

}  // namespace packager::json
