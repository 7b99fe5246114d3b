// What the server says about itself and its model, as Triton has it: JSON texts.
#pragma once

#include <string>

#include "http/statistics.hpp"
#include "http/wire.hpp"

namespace packager::http {

std::string describe_server();
std::string describe_model(const WireSignature& signature);
// Dims lack the batch where there is one.
std::string describe_configuration(const WireSignature& signature);
// Durations are in nanoseconds.
std::string describe_statistics(const WireSignature& signature, const Counts& counts);
std::string describe_index(const WireSignature& signature);

}  // namespace packager::http
