// `FILE COMMAND [OPTIONS]`: arguments in, results on stdout, everything else on stderr, and the exit statuses of
// `package`: 0 yes, 1 the answer is no, 2 the user must change something, 3 a bug.
#include <fcntl.h>
#include <sys/auxv.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>
#include <cstdio>
#include <cstring>

#include "command_line.hpp"
#include "commands.hpp"
#include "error.hpp"
#include "json.hpp"
#include "version.hpp"

namespace {

using packager::Command;
using packager::Error;
using packager::Executable;
using packager::LibraryCheck;
using packager::Option;
using packager::Options;

// What each command takes; all have --help.
const std::vector<Command>& list_commands() {
    static const Option json_option{"--json", "", "Print one JSON object to stdout.", false};
    static const std::vector<Command> commands{
        {"info", "Show what this file contains.", {json_option}},
        {"verify",
         "Check the integrity of this file, and replay parity from the bundle's own evidence.",
         {{"--fingerprint", "h1:…", "Fail unless the bundle has this fingerprint.", false},
          {"--no-parity", "", "Do not replay the evidence.", false},
          json_option}},
        {"run",
         "Run one prediction.",
         {{"--input", "X", "Read the inputs from this .npz, .npy, .json or .safetensors. [required]", true},
          {"--output", "Y", "Write the outputs to this .npz or .json.", false},
          {"--threads", "N", "Threads for one run. [default: the cores]", false},
          json_option}},
        {"serve",
         "Serve the model over HTTP with the Open Inference Protocol v2.",
         {{"--host", "ADDRESS", "The address to listen on. [default: 127.0.0.1]", false},
          {"--port", "N", "0 takes a free one. [default: 8000]", false},
          {"--threads", "N", "Runs of the model at the same time. [default: the cores, up to 8]", false},
          {"--queue", "N", "Requests that may wait for the model. [default: 256]", false},
          {"--time-limit", "SECONDS", "Answer a request with an error after this time. [default: 60]", false},
          {"--request-limit", "MIB", "The largest body of a request. [default: 64]", false},
          {"--drain", "SECONDS", "Go on for this time after SIGTERM, no longer ready. [default: 1]", false},
          {"--access-log", "", "Log every request, as a line of JSON on stderr.", false}}},
        {"licenses", "Show the licences of everything in this file.", {}},
    };
    return commands;
}

std::string format_program_help(const std::string& program) {
    std::vector<std::pair<std::string, std::string>> rows;
    rows.reserve(list_commands().size());
    for (const Command& command : list_commands()) rows.emplace_back(command.name, command.help);
    return "Usage: " + program +
           " COMMAND [OPTIONS]\n\n  A model with its runtime and its evidence in one file.\n\nOptions:\n" +
           packager::format_rows(
               {{"--version", "Show the version and exit."}, {"-h, --help", "Show this message and exit."}}) +
           "\nCommands:\n" + packager::format_rows(rows);
}

int serve(const Executable& executable, LibraryCheck& library, const Options& given) {
    packager::ServeOptions options;
    options.host = given.text("--host", options.host);
    options.port = given.integer("--port", options.port, 0, 65535);
    options.threads = given.integer("--threads", options.threads, 1, 1024);
    options.queue = given.integer("--queue", options.queue, 1, std::nullopt);
    options.time_limit = given.number("--time-limit", options.time_limit, 0, true);
    options.request_limit = given.number("--request-limit", options.request_limit, 0, true);
    options.drain = given.number("--drain", options.drain, 0, false);
    options.access_log = given.has("--access-log");
    return packager::serve(executable, library, options);
}

int run(const Executable& executable, LibraryCheck& library, const Options& given) {
    packager::RunOptions options;
    options.input = given.text("--input", "");
    options.output = given.text("--output", "");
    options.threads = given.integer("--threads", 0, 1, 1024);
    options.as_json = given.has("--json");
    return packager::run(executable, library, options);
}

int run_command(const Command& command, const Options& options) {
    const Executable executable = packager::open_executable();
    const bool as_json = options.has("--json");
    if (command.name == "info" || command.name == "licenses") {
        packager::check_own_parts(executable);
        return command.name == "info" ? packager::info(executable, as_json) : packager::licenses(executable);
    }
    LibraryCheck library(executable);  // goes on while everything else is read
    packager::check_own_parts(executable);
    if (command.name == "run") return run(executable, library, options);
    if (command.name == "serve") return serve(executable, library, options);
    std::optional<std::string> fingerprint;
    if (options.has("--fingerprint")) fingerprint = options.text("--fingerprint", "");
    return packager::verify(executable, library, fingerprint, !options.has("--no-parity"), as_json);
}

int run_command_line(const std::string& program, const std::vector<std::string>& arguments) {
    if (arguments.empty() || arguments[0] == "--help" || arguments[0] == "-h") {
        std::fputs(format_program_help(program).c_str(), stdout);
        return 0;
    }
    if (arguments[0] == "--version") {
        std::printf("package, version %s\n", std::string(packager::packager_version).c_str());
        return 0;
    }
    const Command& command = packager::find_command(program, list_commands(), arguments[0]);
    const auto options = packager::parse_options(program, command, {arguments.begin() + 1, arguments.end()});
    if (options) return run_command(command, *options);
    std::fputs(packager::format_help(program, command).c_str(), stdout);
    return 0;
}

int report(const Error& error, bool as_json) {
    if (as_json) std::printf("{\"error\": %s}\n", packager::to_json(error).c_str());
    std::fprintf(stderr, "%s\n", packager::render(error).c_str());
    return error.exit_status;
}

int report_bug(const std::string& text, bool as_json) {
    Error error("bug", text, 3);
    error.hint = "please report it";
    if (as_json) std::printf("{\"error\": %s}\n", packager::to_json(error).c_str());
    std::fprintf(stderr,
                 "%s\nerror[bug]: this is a bug in packager, not in your model\n"
                 "hint: please report the message above, with the output of this command and of `info`\n",
                 packager::escape_unprintable(text, true).c_str());
    return 3;
}

// Returns the status, or 2 if stdout cannot be written; a closed pipe is no news.
int flush_stdout(int status) {
    if (std::fflush(stdout) == 0 && std::ferror(stdout) == 0) return status;
    if (errno == EPIPE) return 2;
    Error error = packager::output_refused("standard output", std::strerror(errno), "make room, or write elsewhere");
    error.message = "cannot write the result to standard output";
    return report(error, false);
}

// The next file opened would get the number of a closed stream, and be written to in its place.
void open_streams() {
    for (int number = 0; number <= 2; ++number) {
        if (fcntl(number, F_GETFD) < 0 && open("/dev/null", O_RDWR) < 0) _exit(2);
    }
    std::signal(SIGPIPE, SIG_IGN);
}

int run_safely(const std::string& program, const std::vector<std::string>& arguments) {
    bool as_json = false;
    for (const std::string& argument : arguments) as_json = as_json || argument == "--json";
    try {
        return run_command_line(program, arguments);
    } catch (const Error& error) {
        return report(error, as_json);
    } catch (const std::exception& error) {
        return report_bug(error.what(), as_json);
    } catch (...) {
        return report_bug("an exception of an unknown type", as_json);
    }
}

}  // namespace

int main(int count, char** arguments) {
    open_streams();
    const std::string program = count > 0 ? arguments[0] : "FILE";
    const int status = run_safely(program, {arguments + (count > 0 ? 1 : 0), arguments + count});
    const int flushed = flush_stdout(status);
    std::fflush(stderr);
    _exit(flushed);  // nothing is left to do, and tearing down onnxruntime takes time
}
