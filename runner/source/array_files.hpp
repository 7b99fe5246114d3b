// Arrays in files: .npz and .npy as numpy writes them, and JSON. Every parser takes untrusted bytes.
#pragma once

#include <string>

#include "array.hpp"
#include "bundle.hpp"

namespace packager {

// Reads the arrays of a file by name. An .npy has no names, and is for a model with one input; JSON is an object of
// nested lists by name, read with the dtypes of the signature. Throws Error (data-does-not-fit).
Arrays read_array_file(const std::string& path, const Signature& signature);

// The parsers, for tests and fuzzing. `owner` keeps `content` alive. They throw Error (data-does-not-fit).
Arrays parse_npz(Span content, std::shared_ptr<const void> owner, const std::string& where);
Array parse_npy(Span content, std::shared_ptr<const void> owner, const std::string& where);
Arrays parse_json_arrays(Span content, const Signature& signature, const std::string& where);
Arrays parse_safetensors(Span content, std::shared_ptr<const void> owner, const std::string& where);

// Writes an .npz as np.savez does, or for a name in .json an object of nested lists. Throws Error (output-refused).
void write_array_file(const std::string& path, const Arrays& arrays);

// An object of nested lists by name. Throws Error (output-refused), with `target`, for NaN and infinite values.
std::string format_json(const Arrays& arrays, const std::string& target);

}  // namespace packager
