// numpy's .npy, versions 1 to 3: a header, which is a literal of Python, and the values.
//
// https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html
#include <algorithm>
#include <cstring>
#include <limits>

#include "array_parsing.hpp"
#include "error.hpp"
#include "little_endian.hpp"

namespace packager {
namespace {

constexpr std::size_t max_header_size = 10'000;
constexpr std::size_t max_rank = 64;

struct Header {
    std::string descr;
    bool is_fortran = false;
    Shape shape;
    std::size_t end = 0;  // where the values start
};

// Reads {'descr': '<f4', 'fortran_order': False, 'shape': (3, 4), }: the keys in any order, each of them once.
class HeaderParser {
public:
    explicit HeaderParser(std::string_view text) : text_(text) {}

    Header parse() {
        Header header;
        unsigned seen = 0;
        expect('{');
        while (!take('}')) {
            const unsigned key = parse_item(header);
            if ((seen & key) != 0) fail();
            seen |= key;
            if (!take(',')) {
                expect('}');
                break;
            }
        }
        skip_space();
        if (position_ != text_.size()) fail();
        if (seen != (descr_key | order_key | shape_key)) fail();
        return header;
    }

private:
    static constexpr unsigned descr_key = 1, order_key = 2, shape_key = 4;

    [[noreturn]] void fail() const { throw ArrayFileMalformed("Cannot parse header: " + repr(text_.substr(0, 200))); }

    void skip_space() { position_ = std::min(text_.find_first_not_of(" \t\n\r", position_), text_.size()); }

    bool take(char character) {
        skip_space();
        if (position_ == text_.size() || text_[position_] != character) return false;
        ++position_;
        return true;
    }

    void expect(char character) {
        if (!take(character)) fail();
    }

    unsigned parse_item(Header& header) {
        const std::string key = parse_text();
        expect(':');
        if (key == "descr") {
            skip_space();
            if (position_ < text_.size() && text_[position_] == '[') {
                throw ArrayFileMalformed("its values are records of several fields");
            }
            header.descr = parse_text();
            return descr_key;
        }
        if (key == "fortran_order") {
            header.is_fortran = parse_bool();
            return order_key;
        }
        if (key != "shape") fail();
        header.shape = parse_shape();
        return shape_key;
    }

    std::string parse_text() {
        skip_space();
        if (position_ == text_.size()) fail();
        const char quote = text_[position_];
        const std::size_t end = text_.find(quote, position_ + 1);
        if ((quote != '\'' && quote != '"') || end == std::string_view::npos) fail();
        const std::string_view content = text_.substr(position_ + 1, end - position_ - 1);
        if (content.find('\\') != std::string_view::npos) fail();
        position_ = end + 1;
        return std::string(content);
    }

    bool parse_bool() {
        skip_space();
        for (const std::string_view word : {"True", "False"}) {
            if (text_.substr(position_, word.size()) == word) {
                position_ += word.size();
                return word == "True";
            }
        }
        fail();
    }

    Shape parse_shape() {
        Shape shape;
        expect('(');
        while (!take(')')) {
            if (shape.size() == max_rank) fail();
            shape.push_back(parse_size());
            if (take(',')) continue;
            if (shape.size() == 1) fail();  // (3) is a number, and (3,) a shape
            expect(')');
            break;
        }
        return shape;
    }

    std::int64_t parse_size() {
        skip_space();
        std::int64_t size = 0;
        const std::size_t start = position_;
        for (; position_ < text_.size() && text_[position_] >= '0' && text_[position_] <= '9'; ++position_) {
            if (__builtin_mul_overflow(size, 10, &size) ||
                __builtin_add_overflow(size, text_[position_] - '0', &size)) {
                fail();
            }
        }
        if (position_ == start) fail();
        return size;
    }

    std::string_view text_;
    std::size_t position_ = 0;
};

Header read_header(std::string_view file) {
    if (file.size() < npy_magic.size() + 2 || file.substr(0, npy_magic.size()) != npy_magic) {
        throw ArrayFileMalformed("the magic string is not correct");
    }
    const auto major = load<std::uint8_t>(file, npy_magic.size());
    if (major < 1 || major > 3 || file[npy_magic.size() + 1] != 0) {
        throw ArrayFileMalformed("we only support format version (1,0), (2,0), and (3,0), not (" +
                                 std::to_string(major) + ", " +
                                 std::to_string(load<std::uint8_t>(file, npy_magic.size() + 1)) + ")");
    }
    const std::size_t start = npy_magic.size() + 2 + (major == 1 ? 2 : 4);
    if (file.size() < start) throw ArrayFileMalformed("EOF: reading array header length");
    const std::size_t size = major == 1 ? load<std::uint16_t>(file, start - 2) : load<std::uint32_t>(file, start - 4);
    if (size > file.size() - start) throw ArrayFileMalformed("EOF: reading array header");
    if (size > max_header_size) throw ArrayFileMalformed("Header info length (" + std::to_string(size) + ") is large");
    Header header = HeaderParser(file.substr(start, size)).parse();
    header.end = start + size;
    return header;
}

// numpy's names of dtypes: order, kind and size, such as <f4.
std::optional<DType> find_descr(std::string_view descr) {
    constexpr std::string_view kinds = "bfiu";
    constexpr std::string_view names[] = {"bool", "float", "int", "uint"};
    if (descr.size() != 3) return std::nullopt;
    const std::size_t kind = kinds.find(descr[1]);
    if (kind == std::string_view::npos || descr[2] < '1' || descr[2] > '8') return std::nullopt;
    const int size = descr[2] - '0';
    const bool is_native = descr[0] == '<' || descr[0] == '=' || descr[0] == '|' || size == 1;
    if (!is_native) return std::nullopt;
    if (kind == 0) return size == 1 ? std::optional(DType::boolean) : std::nullopt;
    return find_dtype(std::string(names[kind]) + std::to_string(8 * size));
}

Error refuse_dtype(const std::string& name, const Header& header) {
    if (header.descr.find('O') != std::string::npos) {
        throw ArrayFileMalformed("Object arrays cannot be loaded when allow_pickle=False");
    }
    const std::string dtype = header.descr == "<c8"    ? "complex64"
                              : header.descr == "<c16" ? "complex128"
                                                       : header.descr;
    const bool is_swapped = !dtype.empty() && dtype[0] == '>';
    return data_does_not_fit(name,
                             "it is " + dtype + describe(header.shape) + ", which is no dtype of a model" +
                                 (is_swapped ? " because its bytes are swapped" : ""),
                             is_swapped ? "convert it: x.astype(x.dtype.newbyteorder('='))"
                                        : "convert it to the dtype of the input with x.astype");
}

// Copies values in the order of Fortran, where the first index changes fastest, into the order of C.
void transpose(const std::byte* source, std::byte* target, const Shape& shape, std::size_t size) {
    std::vector<std::size_t> strides(shape.size(), size), index(shape.size(), 0);
    for (std::size_t axis = shape.size() - 1; axis-- > 0;) {
        strides[axis] = strides[axis + 1] * static_cast<std::size_t>(shape[axis + 1]);
    }
    std::size_t position = 0;
    std::size_t remaining = count_elements(shape).value_or(0);
    while (remaining-- > 0) {
        std::memcpy(target + position, source, size);
        source += size;
        for (std::size_t axis = 0; axis < shape.size(); ++axis) {
            position += strides[axis];
            if (++index[axis] < static_cast<std::size_t>(shape[axis])) break;
            position -= strides[axis] * index[axis];
            index[axis] = 0;
        }
    }
}

}  // namespace

Array read_npy(const OwnedSpan& file, const std::string& name) {
    const Header header = read_header(file.content.text());
    const std::optional<DType> dtype = find_descr(header.descr);
    if (!dtype) throw refuse_dtype(name, header);
    const std::size_t size = file.content.size - header.end;
    const std::optional<std::size_t> count = count_elements(header.shape);
    if (!count || *count > std::numeric_limits<std::size_t>::max() / item_size(*dtype)) {
        throw ArrayFileMalformed("its shape " + describe(header.shape) + " is too large");
    }
    const std::size_t expected = *count * item_size(*dtype);
    if (expected > size) {
        throw ArrayFileMalformed("EOF: reading array data, expected " + std::to_string(expected) + " bytes got " +
                                 std::to_string(size));
    }
    if (expected < size) throw ArrayFileMalformed("there are bytes after its values");
    const std::byte* values = file.content.data + header.end;
    if (!header.is_fortran || header.shape.size() < 2) {
        return align(Array{*dtype, header.shape, values, file.owner});
    }
    auto [array, memory] = allocate(*dtype, header.shape);
    transpose(values, memory, header.shape, item_size(*dtype));
    return std::move(array);
}

}  // namespace packager
