#include "command_line.hpp"

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <cstdlib>
#include <limits>

#include "error.hpp"
#include "python_text.hpp"

namespace packager {
namespace {

constexpr const char* help_name = "--help";

std::vector<std::string> list_names(const Command& command) {
    std::vector<std::string> names{help_name};
    names.reserve(command.options.size() + 1);
    for (const Option& option : command.options) names.push_back(option.name);
    return names;
}

// " Did you mean 'x'?" if a candidate is close.
std::string suggest(const std::string& name, const std::vector<std::string>& candidates) {
    const std::string hint = did_you_mean(name, candidates);
    return hint.compare(0, 3, "did") == 0 ? " D" + hint.substr(1) : "";
}

const Option& find_option(const std::string& program, const Command& command, const std::string& name) {
    const auto option = std::find_if(command.options.begin(), command.options.end(),
                                     [&name](const Option& entry) { return entry.name == name; });
    if (option != command.options.end()) return *option;
    throw usage("No such option " + repr(name) + "." + suggest(name, list_names(command)), program);
}

Error refuse_value(const std::string& program, const std::string& name, const std::string& why) {
    return usage("Invalid value for " + repr(name) + ": " + why, program);
}

}  // namespace

std::string Options::text(const std::string& name, const std::string& fallback) const {
    const auto value = values_.find(name);
    return value == values_.end() ? fallback : value->second;
}

int Options::integer(const std::string& name, int fallback, int min, std::optional<int> max) const {
    if (!has(name)) return fallback;
    const std::string& given = values_.at(name);
    char* end = nullptr;
    errno = 0;
    const long long value = std::strtoll(given.c_str(), &end, 10);
    if (given.empty() || *end != '\0') {
        throw refuse_value(program_, name, repr(given) + " is not a valid integer range.");
    }
    const int largest = max.value_or(std::numeric_limits<int>::max());
    if (errno == 0 && value >= min && value <= largest) return static_cast<int>(value);
    const std::string range = max ? std::to_string(min) + "<=x<=" + std::to_string(*max) : "x>=" + std::to_string(min);
    throw refuse_value(program_, name, given + " is not in the range " + range + ".");
}

double Options::number(const std::string& name, double fallback, double min, bool is_exclusive) const {
    if (!has(name)) return fallback;
    const std::string& given = values_.at(name);
    char* end = nullptr;
    const double value = std::strtod(given.c_str(), &end);
    if (given.empty() || *end != '\0' || std::isnan(value)) {
        throw refuse_value(program_, name, repr(given) + " is not a valid float range.");
    }
    if (is_exclusive ? value > min : value >= min) return value;
    const std::string range = (is_exclusive ? "x>" : "x>=") + repr(min).substr(0, repr(min).find(".0"));
    throw refuse_value(program_, name, repr(value) + " is not in the range " + range + ".");
}

std::optional<Options> parse_options(const std::string& program, const Command& command,
                                     const std::vector<std::string>& arguments) {
    const std::string title = program + " " + command.name;
    std::map<std::string, std::string> values;
    for (std::size_t index = 0; index < arguments.size(); ++index) {
        const std::string& argument = arguments[index];
        if (argument == help_name || argument == "-h") return std::nullopt;
        if (argument.size() < 2 || argument[0] != '-') {
            throw usage("Got unexpected extra argument (" + argument + ")", title);
        }
        const std::size_t equals = argument.find('=');
        const Option& option = find_option(title, command, argument.substr(0, equals));
        std::string value;
        if (option.metavar.empty()) {
            if (equals != std::string::npos)
                throw usage("Option " + repr(option.name) + " does not take a value.", title);
        } else if (equals != std::string::npos) {
            value = argument.substr(equals + 1);
        } else if (index + 1 < arguments.size()) {
            value = arguments[++index];
        } else {
            throw usage("Option " + repr(option.name) + " requires an argument.", title);
        }
        values[option.name] = value;
    }
    for (const Option& option : command.options) {
        if (option.is_required && values.count(option.name) == 0) {
            throw usage("Missing option " + repr(option.name) + ".", title);
        }
    }
    return Options(title, std::move(values));
}

const Command& find_command(const std::string& program, const std::vector<Command>& commands, const std::string& name) {
    const auto command =
        std::find_if(commands.begin(), commands.end(), [&name](const Command& entry) { return entry.name == name; });
    if (command != commands.end()) return *command;
    if (!name.empty() && name[0] == '-') throw usage("No such option " + repr(name) + ".", program);
    std::vector<std::string> names;
    names.reserve(commands.size());
    for (const Command& entry : commands) names.push_back(entry.name);
    throw usage("No such command " + repr(name) + "." + suggest(name, names), program);
}

std::string format_rows(const std::vector<std::pair<std::string, std::string>>& rows) {
    std::size_t width = 0;
    for (const auto& [title, help] : rows) width = std::max(width, title.size());
    std::string text;
    for (const auto& [title, help] : rows) {
        text.append("  ").append(title).append(width - title.size() + 2, ' ').append(help).append("\n");
    }
    return text;
}

std::string format_help(const std::string& program, const Command& command) {
    std::vector<std::pair<std::string, std::string>> rows;
    rows.reserve(command.options.size() + 1);
    for (const Option& option : command.options) {
        rows.emplace_back(option.metavar.empty() ? option.name : option.name + " " + option.metavar, option.help);
    }
    rows.emplace_back(std::string("-h, ") + help_name, "Show this message and exit.");
    return "Usage: " + program + " " + command.name + " [OPTIONS]\n\n  " + command.help + "\n\nOptions:\n" +
           format_rows(rows);
}

}  // namespace packager
