// Runs the model on the golden cases and compares every output, as packager/parity/numerics/verdict.py and
// packager/runtime/replay_process.py.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "evidence.hpp"
#include "session.hpp"

namespace packager {

// Returns one line for each difference between config.json and what the model declares.
std::vector<std::string> check_model(const Config& config, const Session& session);
// Returns one line for each difference between the cases and config.json. If there is none, it compares them with the
// sizes that the model declares; `session` is null if the model does not load.
std::vector<std::string> check_cases(const Config& config, const Session* session,
                                     const std::vector<ReferenceCase>& cases);

struct Verdict {
    bool passed = false;
    std::string reason;  // empty if it passed
};

// Runs a model on arrays by input name; throws Error.
using ModelRunner = std::function<Arrays(const Arrays&)>;

// Without a case, an output or an element there is no proof, so there is no pass.
Verdict check_parity(const ModelRunner& run, const Evidence& evidence);

}  // namespace packager
