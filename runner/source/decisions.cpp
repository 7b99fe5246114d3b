#include "decisions.hpp"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <limits>
#include <numeric>

#include "element.hpp"

namespace packager {
namespace {

constexpr double infinity = std::numeric_limits<double>::infinity();
constexpr std::string_view top = "top-", threshold = "threshold ";

bool starts_with(std::string_view text, std::string_view prefix) { return text.substr(0, prefix.size()) == prefix; }

bool take_digits(std::string_view& text) {
    const std::size_t count = std::min(text.find_first_not_of("0123456789"), text.size());
    text.remove_prefix(count);
    return count > 0;
}

bool take(std::string_view& text, std::string_view characters) {
    if (text.empty() || characters.find(text.front()) == std::string_view::npos) return false;
    text.remove_prefix(1);
    return true;
}

// -?[0-9]+(\.[0-9]+)?([eE][+-]?[0-9]+)?
bool is_decimal(std::string_view text) {
    take(text, "-");
    if (!take_digits(text)) return false;
    if (take(text, ".") && !take_digits(text)) return false;
    if (take(text, "eE")) {
        take(text, "+-");
        if (!take_digits(text)) return false;
    }
    return text.empty();
}

double compute_slack(double expected, const ElementTolerance& tolerance, double tie) {
    const double relative = tolerance.rtol * (std::isfinite(expected) ? std::abs(expected) : 0.0);
    const double limit = tolerance.atol + relative;
    return tie * limit;
}

DecisionAgreement compare_threshold(const Array& expected, const Array& actual, const ElementTolerance& tolerance,
                                    const DecisionRule& decision) {
    const double limit = std::strtod(decision.rule.substr(threshold.size()).c_str(), nullptr);
    DecisionAgreement agreement;
    const std::size_t size = expected.size();
    for (std::size_t index = 0; index < size; ++index) {
        const double left = read_number(expected, index), right = read_number(actual, index);
        if (std::isnan(left) || std::isnan(right)) continue;
        const bool is_same = (left > limit) == (right > limit);
        const bool is_tied = std::abs(left - limit) <= compute_slack(left, tolerance, decision.tie);
        agreement.add({1, is_same ? 1U : 0U, !is_same && is_tied ? 1U : 0U});
    }
    return agreement;
}

// The scores of one decision, on both sides, and the bounds of the expected ones.
struct Row {
    std::vector<double> left, right, low, high;

    void add(const Array& expected, const Array& actual, std::size_t index, const ElementTolerance& tolerance,
             double tie) {
        left.push_back(read_number(expected, index));
        right.push_back(read_number(actual, index));
        const double slack = compute_slack(left.back(), tolerance, tie);
        low.push_back(left.back() - slack);
        high.push_back(left.back() + slack);
    }
};

// How many elements the axes after this one have.
std::size_t count_after(const Shape& shape, std::size_t axis) {
    std::size_t count = 1;
    while (++axis < shape.size()) count *= static_cast<std::size_t>(shape[axis]);
    return count;
}

using Order = std::vector<std::size_t>;

// From the largest score to the smallest; of equal ones, the first comes first.
Order sort_scores(const std::vector<double>& scores) {
    Order order(scores.size());
    std::iota(order.begin(), order.end(), std::size_t{0});
    std::sort(order.begin(), order.end(), [&scores](std::size_t first, std::size_t second) {
        return scores[first] == scores[second] ? first < second : scores[first] > scores[second];
    });
    return order;
}

// Ties explain a different order if no score is followed by one that is larger by more than the slack of both.
bool is_tied_order(const Row& row, const Order& order) {
    double smallest_high = infinity;
    return std::all_of(order.begin(), order.end(), [&](std::size_t index) {
        smallest_high = std::min(smallest_high, row.high[index]);
        return row.low[index] <= smallest_high;
    });
}

DecisionAgreement compare_rank(const Row& row) {
    const Order order = sort_scores(row.right);
    const bool is_same = order == sort_scores(row.left);
    return {1, is_same ? 1U : 0U, !is_same && is_tied_order(row, order) ? 1U : 0U};
}

// The order among the first, and among the others, is no part of the decision.
DecisionAgreement compare_first(const Row& row, std::size_t count) {
    Order left = sort_scores(row.left), right = sort_scores(row.right);
    const auto end = static_cast<std::ptrdiff_t>(std::min(count, left.size()));
    std::sort(left.begin(), left.begin() + end);
    std::sort(right.begin(), right.begin() + end);
    if (std::equal(left.begin(), left.begin() + end, right.begin())) return {1, 1, 0};
    double smallest_first = infinity, largest_other = -infinity;
    for (auto index = right.begin(); index != right.begin() + end; ++index) {
        smallest_first = std::min(smallest_first, row.high[*index]);
    }
    for (auto index = right.begin() + end; index != right.end(); ++index) {
        largest_other = std::max(largest_other, row.low[*index]);
    }
    return {1, 0, largest_other <= smallest_first ? 1U : 0U};
}

DecisionAgreement compare_row(const Row& row, const std::string& rule) {
    const auto is_nan = [](double score) { return std::isnan(score); };
    if (std::any_of(row.left.begin(), row.left.end(), is_nan)) return {};
    if (std::any_of(row.right.begin(), row.right.end(), is_nan)) return {};
    if (rule == "rank") return compare_rank(row);
    return compare_first(row, rule == "argmax" ? 1 : std::strtoul(rule.substr(top.size()).c_str(), nullptr, 10));
}

}  // namespace

bool is_rule(const std::string& text) {
    if (text == "argmax" || text == "rank") return true;
    if (starts_with(text, threshold)) return is_decimal(std::string_view(text).substr(threshold.size()));
    if (!starts_with(text, top)) return false;
    const std::string_view count = std::string_view(text).substr(top.size());
    std::string_view rest = count;
    return take_digits(rest) && rest.empty() && count.size() <= 6 && count.front() != '0';
}

void DecisionAgreement::add(const DecisionAgreement& other) {
    compared += other.compared;
    agreed += other.agreed;
    ties += other.ties;
}

DecisionAgreement compare_decisions(const Array& expected, const Array& actual, const ElementTolerance& tolerance,
                                    const DecisionRule& decision) {
    if (starts_with(decision.rule, threshold)) return compare_threshold(expected, actual, tolerance, decision);
    const auto rank = static_cast<std::int64_t>(expected.shape.size());
    if (decision.axis < -rank || decision.axis >= rank) {
        throw AxisMissing("axis " + std::to_string(decision.axis) + " is out of range for an output of rank " +
                          std::to_string(rank));
    }
    DecisionAgreement agreement;
    if (expected.size() == 0) return agreement;
    const auto axis = static_cast<std::size_t>(decision.axis < 0 ? decision.axis + rank : decision.axis);
    const auto count = static_cast<std::size_t>(expected.shape[axis]);
    const std::size_t stride = count_after(expected.shape, axis);
    const std::size_t rows = expected.size() / count;
    for (std::size_t number = 0; number < rows; ++number) {
        const std::size_t start = number / stride * stride * count + number % stride;
        Row row;
        for (std::size_t position = 0; position < count; ++position) {
            row.add(expected, actual, start + position * stride, tolerance, decision.tie);
        }
        agreement.add(compare_row(row, decision.rule));
    }
    return agreement;
}

}  // namespace packager
