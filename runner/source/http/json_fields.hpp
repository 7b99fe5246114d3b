// The fields of a request's JSON, with the words of packager.serving.decoding where one is missing or wrong.
#pragma once

#include <simdjson.h>

#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace packager::http {

// The first field of this name.
std::optional<simdjson::dom::element> find_field(const simdjson::dom::object& parent, std::string_view key);

// Throws Rejected, 400, unless it is an array of objects.
std::vector<simdjson::dom::object> read_objects(const simdjson::dom::object& parent, std::string_view key);

// Throws Rejected, 400, unless it is a string.
std::string_view read_text(const std::optional<simdjson::dom::element>& field, std::string_view key,
                           const std::string& owner);

// What Python's bool() says.
bool is_true(const simdjson::dom::element& value);

// The beginning of what Python's repr() shows.
std::string show(const simdjson::dom::element& value);

// The parameters of a request or tensor; the last of one name counts, as in a dict.
class Parameters {
public:
    // Throws Rejected, 400, unless it is absent, null or an object.
    explicit Parameters(const std::optional<simdjson::dom::element>& field);

    std::optional<simdjson::dom::element> find(std::string_view key) const;
    // Throws Rejected, 400, unless it is absent, true or false.
    bool read_flag(std::string_view key, bool absent) const;

private:
    std::optional<simdjson::dom::object> fields_;
};

}  // namespace packager::http
