// What the parsers of array files share.
#pragma once

#include <exception>
#include <memory>
#include <string>
#include <string_view>

#include "array.hpp"
#include "array_files.hpp"

namespace packager {

// Why a file cannot be read, in words that follow "… cannot be read: ".
struct ArrayFileMalformed : std::exception {
    std::string why;
    explicit ArrayFileMalformed(std::string text) : why(std::move(text)) {}
    const char* what() const noexcept override { return why.c_str(); }
};

constexpr std::size_t max_arrays = 10'000;
constexpr std::string_view npy_magic{"\x93NUMPY", 6};

// Memory that somebody owns.
struct OwnedSpan {
    Span content;
    std::shared_ptr<const void> owner;
};

// Reads an array of numpy's format; `name` is for errors. Throws ArrayFileMalformed, or Error (data-does-not-fit) for a
// dtype that no model has.
Array read_npy(const OwnedSpan& file, const std::string& name);

// Reads the tensors of a safetensors file in the order of their data. Throws ArrayFileMalformed.
Arrays read_safetensors(const OwnedSpan& file);

// "x.npz": the last part of a path
std::string get_file_name(const std::string& path);

}  // namespace packager
