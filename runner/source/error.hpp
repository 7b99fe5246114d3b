// The errors that a user sees. They have the codes, texts and exit statuses of packager/errors.py, because the file
// answers as `package` does.
#pragma once

#include <exception>
#include <string>
#include <string_view>
#include <vector>

namespace packager {

struct Error : std::exception {
    std::string code, message, where, why, hint;
    int exit_status = 2;  // 1: the answer is no; 2: the user must change something

    // NOLINTNEXTLINE(google-explicit-constructor): an error is made of its code and its message
    Error(std::string error_code, std::string text, int status = 2);
    const char* what() const noexcept override;
};

Error data_does_not_fit(std::string where, std::string why,
                        std::string hint = "pass one array for each input, by name, with its dtype and shape");
Error integrity_failed(const std::string& path, std::string why);
Error not_a_bundle(const std::string& path, std::string why);
Error archive_refused(const std::string& path, std::string why);
Error bundle_schema_unknown(const std::string& path, const std::string& schema);  // as Python's repr writes it
Error backend_unavailable(const std::string& path, std::string why, std::string hint);
Error inference_failed(std::string_view why);
Error output_refused(const std::string& path, std::string why, std::string hint);
Error fingerprint_malformed(std::string_view given);
Error usage(std::string message, const std::string& command);

// `error[code]: message`, ` --> where`, why, `hint: …`, with control characters escaped.
std::string render(const Error& error);
// The object that --json prints under "error".
std::string to_json(const Error& error);

// Escapes control characters, those that change the direction of text, and bytes that are not UTF-8.
std::string escape_unprintable(std::string_view text, bool keep_line_breaks = false);
// The text in quotes, as Python's repr writes a str.
std::string repr(std::string_view text);
// All white space, line breaks too, made single spaces: " ".join(text.split()).
std::string join_words(std::string_view text);
// "did you mean 'image'?", "use one of: …", or nothing without candidates.
std::string did_you_mean(std::string_view name, const std::vector<std::string>& candidates);

}  // namespace packager
