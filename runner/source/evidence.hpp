// The golden evidence: test inputs with PyTorch's outputs and their tolerances, as packager/bundle/evidence.py.
#pragma once

#include <exception>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "array.hpp"
#include "bundle.hpp"
#include "compare.hpp"
#include "decisions.hpp"

namespace packager {

// golden.safetensors cannot be read, or does not belong to parity.json. The text starts with the class of Python's
// error, as there.
struct EvidenceMalformed : std::exception {
    std::string why;
    explicit EvidenceMalformed(std::string text) : why(std::move(text)) {}
    const char* what() const noexcept override { return why.c_str(); }
};

// An output of a case: PyTorch's array, and how close it must be matched.
struct ReferenceOutput {
    std::string name;
    Array array;
    ElementTolerance tolerance;
};

struct ReferenceCase {
    std::string name;
    Arrays inputs;
    std::vector<ReferenceOutput> outputs;
    std::vector<std::pair<std::string, std::int64_t>> sizes;  // of the named dims
};

struct Evidence {
    std::vector<ReferenceCase> cases;
    std::map<std::string, DecisionRule, std::less<>> decisions;  // by output
};

// Takes the record in parity.json, and the bytes of golden.safetensors, which must outlive the result. Throws
// EvidenceMalformed, and json::Malformed if the record lacks what is read from it.
Evidence read_evidence(const json::Value& parity, Span golden);

}  // namespace packager
