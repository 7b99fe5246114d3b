#include "error.hpp"

#include <algorithm>
#include <array>
#include <cstdint>

#include "json.hpp"
#include "text.hpp"

namespace packager {
namespace {

std::string escape(const Character& character) {
    if (character.code == '\n') return "\\n";
    if (character.code == '\r') return "\\r";
    if (character.code == '\t') return "\\t";
    const std::size_t digits = character.code < 0x100 ? 2 : character.code < 0x10000 ? 4 : 8;
    std::string escaped = digits == 2 ? "\\x" : digits == 4 ? "\\u" : "\\U";
    for (std::size_t digit = digits; digit-- > 0;) {
        escaped += "0123456789abcdef"[(static_cast<std::uint32_t>(character.code) >> (4 * digit)) & 15U];
    }
    return escaped;
}

void append_lines(std::string& text, std::string_view lines) {
    while (!lines.empty() && lines.back() == '\n') lines.remove_suffix(1);
    for (std::size_t start = 0; start <= lines.size();) {
        const std::size_t end = std::min(lines.find('\n', start), lines.size());
        text += "\n  ";
        text += lines.substr(start, end - start);
        start = end + 1;
    }
}

std::string quote_or_null(const std::string& text) { return text.empty() ? "null" : json::quote(text); }

using Characters = std::vector<char32_t>;

struct Range {
    std::size_t first_start, first_end, second_start, second_end;
};

struct Match {
    std::size_t first = 0, second = 0, size = 0;
};

// The longest run that both have in common, the earliest in the first and then in the second of several.
Match find_longest_match(const Characters& first, const Characters& second, const Range& range) {
    Match best{range.first_start, range.second_start, 0};
    std::vector<std::size_t> lengths(second.size() + 1), previous(second.size() + 1);
    for (std::size_t row = range.first_start; row < range.first_end; ++row) {
        std::swap(lengths, previous);
        for (std::size_t column = range.second_start; column < range.second_end; ++column) {
            const bool same = first[row] == second[column];
            const std::size_t length = same ? (column > range.second_start ? previous[column] : 0) + 1 : 0;
            lengths[column + 1] = length;
            if (length > best.size) best = {row + 1 - length, column + 1 - length, length};
        }
    }
    return best;
}

// The ratio of Python's difflib.SequenceMatcher.
double compute_ratio(const Characters& first, const Characters& second) {
    if (first.empty() && second.empty()) return 1.0;
    std::vector<Range> pending{{0, first.size(), 0, second.size()}};
    std::size_t matches = 0;
    while (!pending.empty()) {
        const Range range = pending.back();
        pending.pop_back();
        const Match match = find_longest_match(first, second, range);
        if (match.size == 0) continue;
        matches += match.size;
        pending.push_back({range.first_start, match.first, range.second_start, match.second});
        pending.push_back({match.first + match.size, range.first_end, match.second + match.size, range.second_end});
    }
    return 2.0 * static_cast<double>(matches) / static_cast<double>(first.size() + second.size());
}

constexpr std::size_t longest_name = 200;  // longer ones are not compared: it takes the square of their lengths
constexpr double cutoff = 0.6;

// The closest of the candidates, and the last in the order of their characters of several; nullptr if none is close.
const std::string* find_close_name(std::string_view name, const std::vector<std::string>& candidates) {
    if (name.size() > longest_name) return nullptr;
    const Characters wanted = decode(name);
    const std::string* closest = nullptr;
    double best = 0;
    for (const std::string& candidate : candidates) {
        if (candidate.size() > longest_name) continue;
        const double ratio = compute_ratio(decode(candidate), wanted);
        if (ratio < cutoff || ratio < best || (ratio == best && closest != nullptr && candidate < *closest)) continue;
        closest = &candidate;
        best = ratio;
    }
    return closest;
}

}  // namespace

Error::Error(std::string error_code, std::string text, int status)
    : code(std::move(error_code)), message(std::move(text)), exit_status(status) {}

const char* Error::what() const noexcept { return message.c_str(); }

Error data_does_not_fit(std::string where, std::string why, std::string hint) {
    Error error("data-does-not-fit", "the inputs do not match the signature");
    error.where = std::move(where);
    error.why = std::move(why);
    error.hint = std::move(hint);
    return error;
}

Error integrity_failed(const std::string& path, std::string why) {
    Error error("integrity-failed", path + " is damaged or was modified", 1);
    error.why = std::move(why);
    error.hint = "fetch the bundle again, or rebuild it";
    return error;
}

Error not_a_bundle(const std::string& path, std::string why) {
    Error error("not-a-bundle", path + " is not a bundle");
    error.why = std::move(why);
    error.hint = "pass the folder or .zip of a bundle, or an executable that is complete";
    return error;
}

Error archive_refused(const std::string& path, std::string why) {
    Error error("archive-refused", "cannot read the archive " + path);
    error.why = std::move(why);
    error.hint = "fetch it again, or pass the folder of the bundle";
    return error;
}

Error bundle_schema_unknown(const std::string& path, const std::string& schema) {
    Error error("bundle-schema-unknown",
                "unsupported bundle schema " + schema + " in " + path + ": this version of packager supports schema 1");
    error.hint = "upgrade packager";
    return error;
}

Error backend_unavailable(const std::string& path, std::string why, std::string hint) {
    Error error("backend-unavailable", "cannot load " + path);
    error.why = std::move(why);
    error.hint = std::move(hint);
    return error;
}

Error inference_failed(std::string_view why) {
    Error error("inference-failed", "the onnx model failed on these values");
    error.why = join_words(why);
    error.hint = "keep the values within the ranges in config.json; check_values=True compares them first";
    return error;
}

Error output_refused(const std::string& path, std::string why, std::string hint) {
    Error error("output-refused", "cannot write the outputs to " + path);
    error.why = std::move(why);
    error.hint = std::move(hint);
    return error;
}

Error fingerprint_malformed(std::string_view given) {
    Error error("fingerprint-malformed", repr(given) + " is not a fingerprint");
    error.why = "a fingerprint is h1: followed by 44 characters of base64";
    error.hint = "copy it from the output of `package build`, or from the FINGERPRINT file where the bundle was built";
    return error;
}

Error usage(std::string message, const std::string& command) {
    Error error("usage", std::move(message));
    error.hint = "run `" + command + " --help` for usage";
    return error;
}

std::string render(const Error& error) {
    std::string text = "error[" + error.code + "]: " + error.message;
    if (!error.where.empty()) text += "\n --> " + error.where;
    if (!error.why.empty()) append_lines(text, error.why);
    if (!error.hint.empty()) text += "\nhint: " + error.hint;
    return escape_unprintable(text, true);
}

std::string to_json(const Error& error) {
    const std::string message = error.why.empty() ? error.message : error.message + "\n" + error.why;
    return "{\"code\": " + json::quote(error.code) + ", \"message\": " + json::quote(message) +
           ", \"where\": " + quote_or_null(error.where) + ", \"hint\": " + quote_or_null(error.hint) + "}";
}

std::string escape_unprintable(std::string_view text, bool keep_line_breaks) {
    std::string escaped;
    escaped.reserve(text.size());
    for (std::size_t position = 0; position < text.size();) {
        const Character character = read_character(text, position);
        const bool kept =
            (character.valid && is_printable(character.code)) || (keep_line_breaks && text[position] == '\n');
        if (kept) {
            escaped += text.substr(position, character.size);
        } else {
            escaped += escape(character);
        }
        position += character.size;
    }
    return escaped;
}

std::string repr(std::string_view text) {
    const bool has_apostrophe = text.find('\'') != std::string_view::npos;
    const char mark = has_apostrophe && text.find('"') == std::string_view::npos ? '"' : '\'';
    std::string quoted(1, mark);
    for (std::size_t position = 0; position < text.size();) {
        const Character character = read_character(text, position);
        const std::string_view bytes = text.substr(position, character.size);
        if (bytes.front() == mark || bytes.front() == '\\') quoted += '\\';
        quoted += character.valid && is_printable(character.code) ? std::string(bytes) : escape(character);
        position += character.size;
    }
    return quoted + mark;
}

std::string join_words(std::string_view text) {
    constexpr std::string_view white_space = " \t\n\r\v\f";
    std::string joined;
    for (std::size_t start = text.find_first_not_of(white_space); start != std::string_view::npos;) {
        const std::size_t end = std::min(text.find_first_of(white_space, start), text.size());
        if (!joined.empty()) joined += ' ';
        joined += text.substr(start, end - start);
        start = text.find_first_not_of(white_space, end);
    }
    return joined;
}

std::string did_you_mean(std::string_view name, const std::vector<std::string>& candidates) {
    if (const std::string* const closest = find_close_name(name, candidates)) {
        return "did you mean " + repr(*closest) + "?";
    }
    if (candidates.empty()) return "";
    std::string names;
    for (const std::string& candidate : candidates) names += (names.empty() ? "" : ", ") + candidate;
    return "use one of: " + names;
}

}  // namespace packager
