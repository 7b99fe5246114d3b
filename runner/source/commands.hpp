// The commands. Each prints its result on stdout and returns the exit status; errors are thrown.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "executable.hpp"
#include "pieces.hpp"

namespace packager {

struct RunOptions {
    std::string input;
    std::string output;  // empty: print
    bool as_json = false;
    int threads = 0;
};

struct ServeOptions {
    std::string host = "127.0.0.1";
    int port = 8000;
    int threads = 0;             // threads that run the model; 0: the cores, up to 8
    int queue = 256;
    double time_limit = 60.0;    // seconds
    double request_limit = 64.0; // MiB
    double drain = 1.0;          // seconds
    bool access_log = false;
};

int info(const Executable& executable, bool as_json);
// `fingerprint` is the one that the bundle must have; nothing accepts any, and an empty text none.
int verify(const Executable& executable, LibraryCheck& library, const std::optional<std::string>& fingerprint,
           bool parity, bool as_json);
int run(const Executable& executable, LibraryCheck& library, const RunOptions& options);
int serve(const Executable& executable, LibraryCheck& library, const ServeOptions& options);
int licenses(const Executable& executable);

}  // namespace packager
