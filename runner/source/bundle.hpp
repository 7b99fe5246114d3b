// The bundle inside the file: the strict archive, its seal, and its config.json.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#include "array.hpp"
#include "json.hpp"

namespace packager {

struct Span {
    const std::byte* data = nullptr;
    std::size_t size = 0;
    std::string_view text() const;
};

// A file of the bundle: its content in the mapped executable, and where it starts in that file.
struct BundleFile {
    Span content;
    std::uint64_t offset = 0;
    std::uint32_t crc = 0;  // as the archive has it
    int descriptor = -1;    // of the executable, if it is open
};

// The files by path. As packager.common.deterministic_zip, it accepts only what `package pack` writes.
using Archive = std::map<std::string, BundleFile, std::less<>>;

// Reads the archive that starts at `offset` of the executable, which is open as `descriptor`, or -1. Throws Error
// (archive-refused, and not-a-bundle or integrity-failed if it has no SHA256SUMS or config.json).
Archive read_archive(Span archive, std::uint64_t offset, const std::string& path, int descriptor = -1);
// The content of a file, whose CRC was compared. Throws Error (integrity-failed), also if it has more than `limit`
// bytes or is missing.
Span read_file(const Archive& archive, std::string_view file, std::size_t limit, const std::string& path);
// Says why a bundle may not have such a file or such files together; nothing if it may. Of names beyond ASCII, neither
// Unicode's normal form nor case is compared here: nothing is unpacked, and `package verify` compares them.
std::optional<std::string> describe_path_problem(std::string_view file);
std::optional<std::string> describe_set_problem(const std::vector<std::string>& files);

constexpr std::size_t max_record_bytes = std::size_t{16} << 20U;  // of parity.json, build.json and model.sig

// SHA256SUMS: the digests by path, and the h1: fingerprint of its text.
struct Seal {
    std::map<std::string, std::string, std::less<>> digests;
    std::string fingerprint;
};
// Throws Error (integrity-failed) if SHA256SUMS is malformed.
Seal read_seal(const Archive& archive, const std::string& path);

// What differs between the files and SHA256SUMS, as `integrity` of `package verify --json`; `problems` are lines for
// its `structure`.
struct Integrity {
    std::vector<std::string> missing, extra, changed, problems;
    bool intact() const { return missing.empty() && extra.empty() && changed.empty() && problems.empty(); }
    std::string describe() const;  // a line for each kind of difference
};
// Compares everything, on all usable cores. Throws Error (integrity-failed) if a CRC is wrong.
Integrity check_integrity(const Archive& archive, const Seal& seal, const std::string& path);
// Each throws Error (integrity-failed): unless the names agree with the seal, and unless this file has its digest.
void check_names(const Archive& archive, const Seal& seal, const std::string& path);
void check_file(const Archive& archive, const Seal& seal, std::string_view file, const std::string& path);

struct AnySize {};
// A dim is a fixed size, the name of a dim, or of any size.
using Dim = std::variant<std::int64_t, std::string, AnySize>;

struct DimLimits {
    std::int64_t min = 1;
    std::optional<std::int64_t> max;
};

struct TensorSpec {
    std::string name;
    DType dtype = DType::float32;  // as declared: a bfloat16 input is passed as float32
    std::vector<Dim> shape;
    std::optional<std::pair<double, double>> range;  // low ≤ x < high
    DType passed_dtype() const;  // float32 for bfloat16
};

struct Signature {
    std::vector<TensorSpec> inputs, outputs;
    std::map<std::string, DimLimits, std::less<>> dims;
};

struct Config {
    json::Value record;  // config.json as it is
    std::string name, version;
    Signature signature;
    std::string model;                // "model.onnx"
    std::optional<std::string> data;  // "model.onnx_data"
};
// Throws Error (integrity-failed, bundle-schema-unknown, backend-unavailable where there is no ONNX model).
Config read_config(const Archive& archive, const std::string& path);

// A bundle whose files have the names of its seal, and whose config.json has its digest; the digest of every other
// file is compared when it is used.
struct Bundle {
    Archive archive;
    Seal seal;
    Config config;
    std::string path;
};
// Reads the archive that starts at `offset` of the executable. Throws what the functions above throw.
Bundle open_bundle(Span archive, std::uint64_t offset, const std::string& path, int descriptor = -1);

}  // namespace packager
