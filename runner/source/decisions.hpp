// Compares the decisions that two arrays of scores lead to, as packager/parity/numerics/decisions.py:
//
//     argmax         the index of the largest score
//     top-K          the set of the K largest
//     rank           the whole order
//     threshold T    which scores are above T
//
// A decision that changes counts, except at a tie: the scores that it depends on are closer to each other than their
// slack, which is `tie` times the tolerance of each.
#pragma once

#include <exception>
#include <string>

#include "compare.hpp"

namespace packager {

struct DecisionRule {
    std::string rule;
    std::int64_t axis = -1;
    double tie = 0;
};

// Whether the text is one of the four rules.
bool is_rule(const std::string& text);

struct DecisionAgreement {
    std::size_t compared = 0, agreed = 0, ties = 0;

    std::size_t changed() const { return compared - agreed - ties; }
    void add(const DecisionAgreement& other);
};

// The output lacks the axis along which the decision is taken.
struct AxisMissing : std::exception {
    std::string message;
    explicit AxisMissing(std::string text) : message(std::move(text)) {}
    const char* what() const noexcept override { return message.c_str(); }
};

// Compares arrays of the same shape. Decisions with a NaN among their scores are not counted. Throws AxisMissing.
DecisionAgreement compare_decisions(const Array& expected, const Array& actual, const ElementTolerance& tolerance,
                                    const DecisionRule& decision);

}  // namespace packager
