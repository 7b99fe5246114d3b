// What config.json, parity.json and SHA256SUMS say about each other, as packager/runtime/verify.py. The schemas of the
// records, and the documents that follow from them, are left to `package verify`.
#pragma once

#include <string>
#include <vector>

#include "bundle.hpp"

namespace packager {

// Returns one line for each problem. Throws json::Malformed if a record lacks what is compared.
std::vector<std::string> check_structure(const json::Value& config, const json::Value& parity, const Seal& seal);

}  // namespace packager
