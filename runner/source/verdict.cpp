#include "verdict.hpp"

#include <algorithm>
#include <cmath>
#include <optional>

#include "error.hpp"
#include "python_text.hpp"
#include "sanitize.hpp"

namespace packager {
namespace {

// The largest error over its limit, over all cases and outputs.
struct Worst {
    std::string case_name, output;
    ComparedElement element;
    double error_over_limit = 0;
};

struct Decisions {
    std::string output, rule;
    DecisionAgreement agreement;
};

// ` (batch=3 length=5)`, to show which dim a wrong shape does not follow
std::string describe_sizes(const ReferenceCase& reference) {
    std::string text;
    for (const auto& [name, size] : reference.sizes)
        text += (text.empty() ? "" : " ") + name + "=" + std::to_string(size);
    return text.empty() ? "" : " (" + text + ")";
}

std::string describe_worst(const std::optional<Worst>& worst) {
    if (!worst) return "no element was compared";
    std::string index;
    for (const std::size_t position : worst->element.index)
        index += (index.empty() ? "" : ", ") + std::to_string(position);
    std::string text = worst->output + "[" + index + "] in case " + worst->case_name + ": PyTorch gives " +
                       worst->element.expected + ", the artifact " + worst->element.actual;
    if (std::isfinite(worst->error_over_limit)) {
        text += ", " + format_general(worst->error_over_limit, 3) + " times the limit";
    }
    return text;
}

// Collects what the cases show.
class ParityCheck {
public:
    explicit ParityCheck(const Evidence& evidence) : evidence_(evidence) {}

    // Returns why the outputs do not have the names, dtypes or shapes of PyTorch's; empty if they do.
    std::string add(const ReferenceCase& reference, const Arrays& actual) {
        std::vector<std::string> names, expected_names;
        for (const auto& [name, array] : actual) names.push_back(name);
        for (const ReferenceOutput& output : reference.outputs) expected_names.push_back(output.name);
        if (names != expected_names) {
            return "case " + reference.name + ": outputs " + repr(names) + ", expected " + repr(expected_names);
        }
        for (std::size_t index = 0; index < actual.size(); ++index) {
            const ReferenceOutput& expected = reference.outputs[index];
            const std::string difference = describe_difference(expected.array, actual[index].second);
            if (!difference.empty()) {
                return "case " + reference.name + describe_sizes(reference) + ", output " + expected.name + ": " +
                       difference;
            }
            add_output(reference.name, expected, actual[index].second);
        }
        return "";
    }

    Verdict finish() const {
        if (!worst_ || !is_within_tolerance_) return {false, describe_worst(worst_)};
        std::string changed;
        for (const Decisions& decisions : decisions_) {
            const DecisionAgreement& agreement = decisions.agreement;
            if (agreement.changed() == 0) continue;
            changed += (changed.empty() ? "" : "; ") + decisions.output + ": " + std::to_string(agreement.changed()) +
                       " of " + std::to_string(agreement.compared) + " decisions (" + decisions.rule +
                       ") changed, not counting ties";
        }
        return {changed.empty(), changed};
    }

private:
    void add_output(const std::string& case_name, const ReferenceOutput& expected, const Array& actual) {
        const Comparison comparison = compare(expected.array, actual, expected.tolerance);
        is_within_tolerance_ = is_within_tolerance_ && comparison.is_within_tolerance();
        if (comparison.worst && (!worst_ || comparison.error_over_limit > worst_->error_over_limit)) {
            worst_ = Worst{case_name, expected.name, *comparison.worst, comparison.error_over_limit};
        }
        const auto rule = evidence_.decisions.find(expected.name);
        if (rule == evidence_.decisions.end()) return;
        find_decisions(expected.name, rule->second.rule)
            .agreement.add(compare_decisions(expected.array, actual, expected.tolerance, rule->second));
    }

    Decisions& find_decisions(const std::string& output, const std::string& rule) {
        for (Decisions& decisions : decisions_) {
            if (decisions.output == output) return decisions;
        }
        return decisions_.emplace_back(Decisions{output, rule, {}});
    }

    const Evidence& evidence_;
    bool is_within_tolerance_ = true;
    std::optional<Worst> worst_;
    std::vector<Decisions> decisions_;
};

}  // namespace

Verdict check_parity(const ModelRunner& run, const Evidence& evidence) {
    ParityCheck check(evidence);
    try {
        for (const ReferenceCase& reference : evidence.cases) {
            const std::string reason = check.add(reference, run(reference.inputs));
            if (!reason.empty()) return {false, reason};
        }
    } catch (const Error& error) {
        return {false, "onnxruntime: " + sanitize_message(error.why)};
    } catch (const AxisMissing& error) {
        return {false, "onnxruntime: " + error.message};
    }
    return check.finish();
}

}  // namespace packager
