#include "structure.hpp"

#include <iterator>
#include <set>
#include <utility>

namespace packager {
namespace {

constexpr const char* required_files[] = {
    "config.json",
    "README.md",
    "evidence/golden.safetensors",
    "evidence/parity.json",
    "evidence/build.json",
    "evidence/bom.cdx.json",
    "evidence/provenance.intoto.json",
    "evidence/parity.intoto.json",
};

// Path and digest of every file of an artifact.
std::vector<std::pair<std::string, std::string>> list_artifacts(const json::Value& config) {
    std::vector<std::pair<std::string, std::string>> files;
    const auto add = [&files](const json::Value& file) {
        files.emplace_back(file.at("path").text(), file.at("sha256").text());
    };
    const json::Value& artifacts = config.at("artifacts");
    for (const auto& [backend, artifact] : artifacts.object()) {
        if (!artifact.is_null()) add(artifact);
    }
    const json::Value& onnx = artifacts.at("onnx");
    const json::Value* const data = onnx.is_null() ? nullptr : onnx.find("data");
    if (data != nullptr && !data->is_null()) add(*data);
    return files;
}

bool is_present(const json::Value& record, std::string_view key) {
    const json::Value* const value = record.find(key);
    return value != nullptr && !value->is_null();
}

void check_verdicts(const json::Value& config, const json::Value& parity, std::vector<std::string>& problems) {
    const json::Value& backends = parity.at("backends");
    for (const auto& [name, verdict] : config.at("parity").object()) {
        const json::Value* const backend = backends.find(name);
        if (backend == nullptr || backend->at("verdict").text() != verdict.text()) {
            problems.push_back("config.json says " + name + ": " + verdict.text() +
                               ", and evidence/parity.json does not");
        }
    }
    if (is_present(config.at("artifacts"), "torch-export") != is_present(config.at("parity"), "torch-export")) {
        problems.emplace_back("config.json has torch-export in artifacts or in parity, and not in both");
    }
}

}  // namespace

std::vector<std::string> check_structure(const json::Value& config, const json::Value& parity, const Seal& seal) {
    std::vector<std::string> problems;
    std::set<std::string> expected(std::begin(required_files), std::end(required_files));
    for (const auto& [path, digest] : list_artifacts(config)) {
        expected.insert(path);
        const auto listed = seal.digests.find(path);
        if (listed == seal.digests.end() || listed->second != digest) {
            problems.push_back("config.json and SHA256SUMS have different digests for " + path);
        }
    }
    for (const json::Value& asset : config.at("assets").list()) expected.insert("assets/" + asset.text());
    for (const std::string& path : expected) {
        if (seal.digests.count(path) == 0) problems.push_back(path + " is missing from SHA256SUMS");
    }
    for (const auto& [path, digest] : seal.digests) {
        if (expected.count(path) == 0) problems.push_back(path + " does not belong in a bundle");
    }
    check_verdicts(config, parity, problems);
    return problems;
}

}  // namespace packager
