// Fields of protobuf messages without its library, as packager/common/protobuf_wire.py.
#pragma once

#include <cstdint>
#include <exception>
#include <string>
#include <string_view>

namespace packager {

struct ProtobufMalformed : std::exception {
    std::string message;
    explicit ProtobufMalformed(std::string text) : message(std::move(text)) {}
    const char* what() const noexcept override { return message.c_str(); }
};

struct Field {
    std::uint32_t number = 0;
    bool is_varint = false, is_bytes = false;  // neither: 4 or 8 bytes
    std::uint64_t varint = 0;
    std::string_view bytes;
    std::size_t start = 0, end = 0;  // in its message
};

// Counts the fields of all messages that are read with it.
struct FieldBudget {
    std::size_t left = 2'000'000;
};

// Reads one message, field by field.
class FieldReader {
public:
    FieldReader(std::string_view message, FieldBudget& budget) : message_(message), budget_(&budget) {}
    // Returns false at the end. Throws ProtobufMalformed.
    bool next(Field& field);

private:
    std::string_view message_;
    FieldBudget* budget_;
    std::size_t position_ = 0;
};

// Reads a number of at most 10 bytes, and moves `position` behind it. Throws ProtobufMalformed.
std::uint64_t read_varint(std::string_view message, std::size_t& position);
// Appends the field with a string, bytes or a message in it.
void append_field(std::string& message, std::uint32_t number, std::string_view content);

}  // namespace packager
