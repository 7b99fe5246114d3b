// Verifies this file: its integrity and structure, and parity replayed from the bundle's own evidence. The checks and
// the report are those of packager/runtime/verify.py and packager/cli/bundle.py; they stop at the first that fails.
#include <algorithm>
#include <cstdio>

#include "commands.hpp"
#include "error.hpp"
#include "evidence.hpp"
#include "pieces.hpp"
#include "sanitize.hpp"
#include "session.hpp"
#include "structure.hpp"
#include "verdict.hpp"

namespace packager {
namespace {

constexpr std::size_t any_size = SIZE_MAX, max_error_length = 400;
constexpr const char* parity_file = "evidence/parity.json";
constexpr const char* golden_file = "evidence/golden.safetensors";
constexpr const char* signature_file = "model.sig";
constexpr const char* available_providers[] = {"CPUExecutionProvider", "AzureExecutionProvider"};  // in the library

constexpr const char* wrong_files_note = "parity: not checked, because the files or their fingerprint are wrong";
constexpr const char* malformed_note = "parity: not checked, because the bundle is malformed";
constexpr const char* signature_note =
    "signature: not checked by the file itself; `package verify FILE --public-key KEY` checks it";
constexpr const char* records_note =
    "structure: the schemas of the records, and the documents that follow from them, are checked by `package verify "
    "FILE`";

struct Demands {
    std::optional<std::string> fingerprint;  // nothing: any
    bool parity = true;
};

struct Report {
    std::string fingerprint;
    Integrity integrity;
    std::vector<std::string> structure;
    std::vector<std::pair<std::string, std::string>> parity;  // verdicts by backend
    std::vector<std::string> notes;
    bool has_signature = false;

    bool has_intact_files() const {
        return integrity.missing.empty() && integrity.extra.empty() && integrity.changed.empty();
    }
    bool ok() const {
        const bool fails =
            std::any_of(parity.begin(), parity.end(), [](const auto& row) { return row.second == "fail"; });
        return has_intact_files() && structure.empty() && !fails;
    }
    void set_all(const std::string& verdict) {
        for (auto& row : parity) row.second = verdict;
    }
    // Ends the report with problems.
    void fail(std::vector<std::string> problems, const std::string& note) {
        structure = std::move(problems);
        notes.push_back(note);
    }
};

void check_fingerprint_syntax(const std::string& fingerprint) {
    constexpr std::size_t size = 47;
    constexpr std::string_view letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    const std::string_view text = fingerprint;
    const bool is_valid = text.size() == size && text.substr(0, 3) == "h1:" && text.back() == '=' &&
                          text.substr(3, size - 4).find_first_not_of(letters) == std::string_view::npos;
    if (!is_valid) throw fingerprint_malformed(fingerprint);
}

// The text of a library's error on one line.
std::string format_error(std::string_view text) {
    return escape_unprintable(truncate(join_words(text), max_error_length));
}

bool starts_with(std::string_view text, std::string_view prefix) { return text.substr(0, prefix.size()) == prefix; }

std::string remove_prefix(const std::string& text, const std::string& prefix) {
    return starts_with(text, prefix) ? text.substr(prefix.size()) : text;
}

// Compares everything with SHA256SUMS, and the library with the digests of its pieces; the rest of the file was
// compared when it was opened.
Integrity check_everything(const Executable& executable, LibraryCheck& library, const Archive& archive,
                           const Seal& seal) {
    Integrity integrity = check_integrity(archive, seal, executable.path);
    try {
        library.require_all();
    } catch (const Error& error) {
        integrity.changed.push_back(remove_prefix(error.why, "changed: "));
    }
    return integrity;
}

// config.json, if its digest is right, or why nothing in it may be relied on.
struct CheckedConfig {
    std::optional<Config> config;
    std::string problem;
};

CheckedConfig check_config(const Archive& archive, const Seal& seal, const std::string& path) {
    try {
        check_file(archive, seal, "config.json", path);
    } catch (const Error& error) {
        if (error.why == "changed: config.json") return {};
        throw;
    }
    try {
        return {read_config(archive, path), ""};
    } catch (const Error& error) {
        if (!starts_with(error.why, "config.json is malformed: ")) throw;
        return {std::nullopt, error.why};
    }
}

void set_backends(Report& report, const Config* config) {
    report.parity = {{"onnx", "not-checked"}, {"torchscript", "not-checked"}};
    const json::Value* const program =
        config == nullptr ? nullptr : config->record.at("artifacts").find("torch-export");
    if (program != nullptr && !program->is_null()) report.parity.emplace_back("torch-export", "not-checked");
}

json::Value parse_parity(const Archive& archive, const std::string& path) {
    try {
        return json::parse(read_file(archive, parity_file, max_record_bytes, path).text());
    } catch (const Error& error) {
        throw json::Malformed(error.why);
    }
}

// Why there is no verdict on a backend that this file cannot run.
std::string explain_absence(const Config& config, const std::string& backend) {
    const json::Value* const artifact = config.record.at("artifacts").find(backend);
    if (artifact != nullptr && !artifact->is_null())
        return "not run: it is a program, which needs torch; use `package verify`";
    const json::Value* const left_out = config.record.find("left_out");
    const json::Value* const entry = left_out == nullptr ? nullptr : left_out->find(backend);
    const bool has_reason = entry != nullptr && !entry->is_null();
    return "not in this bundle" + (has_reason ? ": " + entry->at("reason").text() : "");
}

void add_verdicts(Report& report, const Config& config, const Verdict& verdict) {
    std::vector<std::string> missing;
    for (const json::Value& provider : config.record.at("providers").list()) {
        const auto* const end = std::end(available_providers);
        if (std::find(std::begin(available_providers), end, provider.text()) == end) missing.push_back(provider.text());
    }
    std::sort(missing.begin(), missing.end());
    missing.erase(std::unique(missing.begin(), missing.end()), missing.end());
    for (auto& [backend, result] : report.parity) {
        if (backend != "onnx") {
            report.notes.push_back(backend + ": " + explain_absence(config, backend));
            continue;
        }
        result = verdict.passed ? "pass" : "fail";
        if (!verdict.reason.empty()) report.notes.push_back("onnx: " + verdict.reason);
        for (const std::string& provider : missing) {
            report.notes.push_back("onnx: not compared on " + provider + ", which is not available on this machine");
        }
    }
}

std::unique_ptr<Session> open_session(const Executable& executable, LibraryCheck& library, const Bundle& bundle,
                                      std::vector<std::string>& problems) {
    const std::string& model = bundle.config.model;
    const std::string of_model = "onnxruntime: " + model + ": ";
    try {
        auto session = std::make_unique<Session>(executable, library, bundle, SessionSettings{});
        problems = check_model(bundle.config, *session);
        return session;
    } catch (const Error& error) {
        if (!starts_with(error.why, of_model)) throw;  // the host, and not the model, lets the library not load
        problems = {model + " does not load: " + format_error(remove_prefix(error.why, of_model))};
        return nullptr;
    }
}

void replay(Report& report, const Executable& executable, LibraryCheck& library, const Bundle& bundle,
            const json::Value& parity) {
    std::vector<std::string> problems;
    const std::unique_ptr<Session> session = open_session(executable, library, bundle, problems);
    Evidence evidence;
    try {
        evidence = read_evidence(parity, read_file(bundle.archive, golden_file, any_size, bundle.path));
    } catch (const EvidenceMalformed& error) {
        report.set_all("fail");
        report.fail(std::move(problems), "evidence: " + format_error(error.why));
        return;
    }
    for (std::string& problem : check_cases(bundle.config, session.get(), evidence.cases)) {
        problems.push_back(std::move(problem));
    }
    if (!problems.empty()) {
        report.fail(std::move(problems), malformed_note);
        return;
    }
    const auto run = [&session](const Arrays& inputs) { return session->run(inputs); };
    add_verdicts(report, bundle.config, check_parity(run, evidence));
}

// Checks the records against each other, and then the model against the evidence.
void check_records(Report& report, const Executable& executable, LibraryCheck& library, const Bundle& bundle,
                   bool with_parity) {
    json::Value parity;
    try {
        parity = parse_parity(bundle.archive, bundle.path);
        std::vector<std::string> problems = check_structure(bundle.config.record, parity, bundle.seal);
        if (!problems.empty()) {
            report.fail(std::move(problems), malformed_note);
        } else if (!with_parity) {
            report.notes.emplace_back("parity: not requested");
        } else {
            replay(report, executable, library, bundle, parity);
        }
    } catch (const json::Malformed& error) {
        report.fail({std::string(parity_file) + " is malformed: " + format_error(error.message)}, malformed_note);
    }
}

Report make_report(const Executable& executable, LibraryCheck& library, const Demands& demands) {
    const std::string& path = executable.path;
    Report report;
    Bundle bundle;
    bundle.path = path;
    bundle.archive = read_archive(executable.archive, executable.archive_offset, path, executable.descriptor);
    report.has_signature = bundle.archive.count(signature_file) > 0;
    CheckedConfig checked;
    try {
        bundle.seal = read_seal(bundle.archive, path);
        checked = check_config(bundle.archive, bundle.seal, path);
        report.fingerprint = bundle.seal.fingerprint;
        report.integrity = check_everything(executable, library, bundle.archive, bundle.seal);
    } catch (const Error& error) {
        if (!starts_with(error.why, "SHA256SUMS:")) throw;
        report.integrity.changed = {"SHA256SUMS"};
        report.integrity.problems = {error.why};
    }
    set_backends(report, checked.config ? &*checked.config : nullptr);
    std::vector<std::string> problems = report.integrity.problems;
    if (demands.fingerprint && *demands.fingerprint != report.fingerprint) {
        problems.push_back("the fingerprint is " + report.fingerprint + ", expected " + *demands.fingerprint);
    }
    if (!report.integrity.intact() || !problems.empty()) {
        report.fail(std::move(problems), wrong_files_note);
    } else if (!checked.config) {
        report.fail({checked.problem}, malformed_note);
    } else {
        bundle.config = std::move(*checked.config);
        check_records(report, executable, library, bundle, demands.parity);
    }
    if (report.has_signature) report.notes.emplace_back(signature_note);
    report.notes.emplace_back(records_note);
    return report;
}

json::Value list(const std::vector<std::string>& texts) { return json::List(texts.begin(), texts.end()); }

std::string format_report_as_json(const Report& report) {
    const Integrity& integrity = report.integrity;
    json::Object parity;
    for (const auto& [backend, verdict] : report.parity) parity.emplace_back(backend, verdict);
    json::Object record{{"ok", report.ok()},
                        {"fingerprint", report.fingerprint},
                        {"integrity", json::Object{{"missing", list(integrity.missing)},
                                                   {"extra", list(integrity.extra)},
                                                   {"changed", list(integrity.changed)}}},
                        {"structure", list(report.structure)},
                        {"parity", std::move(parity)},
                        {"notes", list(report.notes)}};
    if (report.has_signature) {
        record.emplace_back("signature", json::Object{{"verdict", std::string("not-checked")},
                                                      {"key_id", nullptr},
                                                      {"subject", nullptr},
                                                      {"error", nullptr}});
    }
    return json::dump(record) + "\n";
}

std::string join(const std::vector<std::string>& texts, const char* separator) {
    std::string text;
    for (const std::string& item : texts) text += (text.empty() ? "" : separator) + item;
    return text;
}

std::vector<std::pair<std::string, std::string>> list_rows(const Report& report) {
    const Integrity& integrity = report.integrity;
    const bool is_intact = report.has_intact_files();
    std::vector<std::pair<std::string, std::string>> rows{
        {"fingerprint", report.fingerprint.empty() ? "unknown" : report.fingerprint},
        {"integrity", is_intact ? "pass" : "FAIL"}};
    if (!integrity.missing.empty()) rows.emplace_back("  missing", join(integrity.missing, ", "));
    if (!integrity.extra.empty()) rows.emplace_back("  not listed", join(integrity.extra, ", "));
    if (!integrity.changed.empty()) rows.emplace_back("  changed", join(integrity.changed, ", "));
    if (report.has_signature) rows.emplace_back("signature", "not-checked");
    const std::string structure = is_intact ? "pass" : "not-checked";
    rows.emplace_back("structure", report.structure.empty() ? structure : "FAIL: " + join(report.structure, "; "));
    for (const auto& [backend, verdict] : report.parity) {
        rows.emplace_back("parity " + backend, verdict == "fail" ? "FAIL" : verdict);
    }
    return rows;
}

std::string format_report(const Report& report) {
    const auto rows = list_rows(report);
    std::size_t width = 0;
    for (const auto& [name, value] : rows) width = std::max(width, name.size());
    std::string text;
    for (const auto& [name, value] : rows) {
        text += name + std::string(width - name.size() + 2, ' ');
        for (const char character : escape_unprintable(value, true)) {
            text += character;
            if (character == '\n') text.append(width + 2, ' ');
        }
        text += "\n";
    }
    for (const std::string& note : report.notes) text += "note: " + escape_unprintable(note, true) + "\n";
    return text + (report.ok() ? "ok\n" : "NOT ok\n");
}

}  // namespace

int verify(const Executable& executable, LibraryCheck& library, const std::optional<std::string>& fingerprint,
           bool parity, bool as_json) {
    if (fingerprint) check_fingerprint_syntax(*fingerprint);
    const Report report = make_report(executable, library, {fingerprint, parity});
    std::fputs((as_json ? format_report_as_json(report) : format_report(report)).c_str(), stdout);
    return report.ok() ? 0 : 1;
}

}  // namespace packager
