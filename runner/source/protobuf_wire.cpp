#include "protobuf_wire.hpp"

namespace packager {
namespace {

constexpr unsigned varint_type = 0, fixed64_type = 1, bytes_type = 2, fixed32_type = 5;
constexpr const char* invalid = "the model is not valid protobuf: ";

void append_varint(std::string& message, std::uint64_t number) {
    for (; number > 0x7F; number >>= 7U) message += static_cast<char>((number & 0x7FU) | 0x80U);
    message += static_cast<char>(number);
}

}  // namespace

std::uint64_t read_varint(std::string_view message, std::size_t& position) {
    std::uint64_t number = 0;
    for (unsigned shift = 0; shift < 70 && position < message.size(); shift += 7) {
        const auto byte = static_cast<std::uint64_t>(static_cast<unsigned char>(message[position++]));
        number |= (byte & 0x7FU) << shift;
        if (byte < 0x80) return number;
    }
    throw ProtobufMalformed(std::string(invalid) + "a number does not end");
}

bool FieldReader::next(Field& field) {
    if (position_ >= message_.size()) return false;
    if (budget_->left == 0) throw ProtobufMalformed("the model has more than 2000000 fields outside of its weights");
    --budget_->left;
    field = Field{};
    field.start = position_;
    const std::uint64_t tag = read_varint(message_, position_);
    const auto type = static_cast<unsigned>(tag & 7U);
    field.number = static_cast<std::uint32_t>(tag >> 3U);
    if (type == varint_type) {
        field.is_varint = true;
        field.varint = read_varint(message_, position_);
        field.end = position_;
        return true;
    }
    std::uint64_t length = type == fixed32_type ? 4 : 8;
    if (type == bytes_type) {
        length = read_varint(message_, position_);
    } else if (type != fixed32_type && type != fixed64_type) {
        throw ProtobufMalformed(std::string(invalid) + "it contains a group");
    }
    if (tag >> 3U == 0 || tag >> 35U != 0 || length > message_.size() - position_) {
        throw ProtobufMalformed(std::string(invalid) + "a field is longer than its message");
    }
    field.is_bytes = type == bytes_type;
    if (field.is_bytes) field.bytes = message_.substr(position_, length);
    position_ += length;
    field.end = position_;
    return true;
}

void append_field(std::string& message, std::uint32_t number, std::string_view content) {
    append_varint(message, static_cast<std::uint64_t>(number) << 3U | bytes_type);
    append_varint(message, content.size());
    message += content;
}

}  // namespace packager
