#include "evidence.hpp"

#include <algorithm>

#include "array_parsing.hpp"
#include "error.hpp"

namespace packager {
namespace {

constexpr std::string_view input_infix = "/input/", output_infix = "/output/";

using Tensors = std::map<std::string, Array, std::less<>>;

// What safetensors says of bytes, where it says so of a file.
std::string describe(const std::string& why) {
    constexpr std::string_view of_file = "Error while deserializing header: ";
    if (why.compare(0, of_file.size(), of_file) != 0) return "ValueError: " + why;
    return "SafetensorError: Error while deserializing: " + why.substr(of_file.size());
}

Tensors read_tensors(Span golden) {
    Tensors tensors;
    try {
        for (auto& [name, array] : read_safetensors({golden, nullptr})) tensors.emplace(name, std::move(array));
    } catch (const ArrayFileMalformed& error) {
        throw EvidenceMalformed(describe(error.why));
    }
    return tensors;
}

// Inputs by case: `CASE/input/NAME`, in the order of their bytes.
std::map<std::string, Arrays, std::less<>> collect_inputs(const Tensors& tensors) {
    std::map<std::string, Arrays, std::less<>> inputs;
    for (const auto& [key, array] : tensors) {
        const std::size_t infix = key.find(input_infix);
        if (infix == std::string::npos) continue;
        inputs[key.substr(0, infix)].emplace_back(key.substr(infix + input_infix.size()), array);
    }
    return inputs;
}

ReferenceOutput read_output(const std::string& case_name, const std::string& name, const json::Value& record,
                            const Tensors& tensors) {
    const std::string key = case_name + std::string(output_infix) + name;
    const auto tensor = tensors.find(key);
    if (tensor == tensors.end()) throw EvidenceMalformed("KeyError: " + repr(key));
    return {name, tensor->second, {record.at("atol").number(), record.at("rtol").number()}};
}

std::map<std::string, DecisionRule, std::less<>> read_decisions(const json::Value& record) {
    std::map<std::string, DecisionRule, std::less<>> decisions;
    for (const auto& [name, rule] : record.object()) {
        const std::string& text = rule.at("rule").text();
        if (!is_rule(text)) throw json::Malformed("decisions: " + repr(text) + " is no rule");
        decisions[name] = {text, rule.at("axis").integer(), rule.at("tie").number()};
    }
    return decisions;
}

}  // namespace

Evidence read_evidence(const json::Value& parity, Span golden) {
    Evidence evidence;
    evidence.decisions = read_decisions(parity.at("decisions"));
    const Tensors tensors = read_tensors(golden);
    const auto inputs = collect_inputs(tensors);
    for (const json::Value& record : parity.at("cases").list()) {
        if (!record.at("golden").boolean()) continue;
        ReferenceCase reference;
        reference.name = record.at("name").text();
        if (const auto entry = inputs.find(reference.name); entry != inputs.end()) reference.inputs = entry->second;
        for (const auto& [name, output] : record.at("outputs").object()) {
            reference.outputs.push_back(read_output(reference.name, name, output, tensors));
        }
        for (const auto& [name, size] : record.at("sizes").object()) reference.sizes.emplace_back(name, size.integer());
        evidence.cases.push_back(std::move(reference));
    }
    return evidence;
}

}  // namespace packager
