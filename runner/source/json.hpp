// JSON: strict parsing with simdjson into a value tree, and writing.
//
// Strict means what packager.common.strict_json means: UTF-8, no duplicate keys, no NaN, limited depth.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

namespace packager::json {

struct Value;
using List = std::vector<Value>;
using Object = std::vector<std::pair<std::string, Value>>;  // in the order of the text

struct Value : std::variant<std::nullptr_t, bool, std::int64_t, std::uint64_t, double, std::string, List, Object> {
    using variant::variant;

    // Each throws Malformed if the value has a different type, or if there is no such key.
    const Object& object() const;
    const List& list() const;
    const std::string& text() const;
    bool boolean() const;
    std::int64_t integer() const;
    double number() const;                      // of an integer too
    const Value& at(std::string_view key) const;
    const Value* find(std::string_view key) const;  // nullptr if there is no such key
    bool is_null() const;
};

struct Malformed : std::exception {
    std::string message;
    explicit Malformed(std::string message);
    const char* what() const noexcept override;
};

// Parses a small text, such as a record. Throws Malformed.
Value parse(std::string_view text);

// Compact text with `, ` and `: ` as json.dumps writes it, ASCII only.
std::string dump(const Value& value);
std::string quote(std::string_view text);
// The shortest digits that read back as the same double, as Python's repr writes them: 1e-06, 0.1, 1.0.
std::string format(double value);

}  // namespace packager::json
