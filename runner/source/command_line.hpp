// Arguments → options, with the messages of click, which `package` uses.
#pragma once

#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace packager {

struct Option {
    std::string name;     // "--port"
    std::string metavar;  // "N"; empty for a flag
    std::string help;
    bool is_required = false;
};

struct Command {
    std::string name;
    std::string help;
    std::vector<Option> options;
};

// The values of options by name; a flag that was given has an empty one.
class Options {
public:
    Options(std::string program, std::map<std::string, std::string> values)
        : program_(std::move(program)), values_(std::move(values)) {}

    bool has(const std::string& name) const { return values_.count(name) > 0; }
    std::string text(const std::string& name, const std::string& fallback) const;
    // Each throws Error (usage) unless the value is a number in the range; an exclusive one is above `min`.
    int integer(const std::string& name, int fallback, int min, std::optional<int> max) const;
    double number(const std::string& name, double fallback, double min, bool is_exclusive) const;

private:
    std::string program_;  // with the command, for the hint
    std::map<std::string, std::string> values_;
};

// Reads what follows the command. Throws Error (usage). Returns nothing if help is asked for.
std::optional<Options> parse_options(const std::string& program, const Command& command,
                                     const std::vector<std::string>& arguments);
// Throws Error (usage) if there is no such command.
const Command& find_command(const std::string& program, const std::vector<Command>& commands, const std::string& name);

std::string format_help(const std::string& program, const Command& command);
// Two columns.
std::string format_rows(const std::vector<std::pair<std::string, std::string>>& rows);

}  // namespace packager
