#include "cores.hpp"

#include <fcntl.h>
#include <sched.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <optional>
#include <string_view>
#include <vector>

namespace packager {
namespace {

int count_affinity() {
    // The set grows with the machine: the kernel refuses one that is too small.
    for (int capacity = 1024; capacity <= 1 << 20; capacity *= 2) {
        std::vector<unsigned long> set(static_cast<std::size_t>(capacity) / (8 * sizeof(unsigned long)));
        const std::size_t size = set.size() * sizeof(unsigned long);
        if (sched_getaffinity(0, size, reinterpret_cast<cpu_set_t*>(set.data())) == 0) {
            return CPU_COUNT_S(size, reinterpret_cast<cpu_set_t*>(set.data()));
        }
    }
    return count_cores();
}

// The text of a small file of the kernel; empty if there is none.
std::string read_text(const std::string& path) {
    const int descriptor = open(path.c_str(), O_RDONLY | O_CLOEXEC);
    if (descriptor < 0) return "";
    std::string text(8192, '\0');
    const ssize_t count = read(descriptor, text.data(), text.size());
    close(descriptor);
    text.resize(count > 0 ? static_cast<std::size_t>(count) : 0);
    return text;
}

// The cores of a quota in microseconds per period, rounded up; nothing if there is no quota ("max 100000").
std::optional<long long> parse_quota(const std::string& text) {
    char* end = nullptr;
    const long long quota = std::strtoll(text.c_str(), &end, 10);
    const char* const rest = end;
    const long long period = std::strtoll(rest, &end, 10);
    if (rest == text.c_str() || end == rest || quota <= 0 || period <= 0) return std::nullopt;
    return (quota - 1) / period + 1;
}

// The groups of this process and those above, of version 2.
std::vector<std::string> list_groups(const std::string& root) {
    const std::string mount = root + "/sys/fs/cgroup";
    std::vector<std::string> groups{mount};
    const std::string text = "\n" + read_text(root + "/proc/self/cgroup");
    const std::size_t line = text.find("\n0::/");
    if (line == std::string::npos) return groups;
    std::string group = text.substr(line + 4, text.find('\n', line + 1) - line - 4);
    for (; group.size() > 1; group.resize(group.rfind('/'))) groups.push_back(mount + group);
    return groups;
}

}  // namespace

int count_cores() { return static_cast<int>(std::max(1L, sysconf(_SC_NPROCESSORS_ONLN))); }

int count_usable_cores(const std::string& root) {
    long long cores = count_affinity();
    std::vector<std::string> quotas;
    for (const std::string& group : list_groups(root)) quotas.push_back(read_text(group + "/cpu.max"));
    const std::string version_1 = root + "/sys/fs/cgroup/cpu/cpu.cfs_";
    quotas.push_back(read_text(version_1 + "quota_us") + " " + read_text(version_1 + "period_us"));
    for (const std::string& quota : quotas) {
        if (const auto limit = parse_quota(quota)) cores = std::min(cores, *limit);
    }
    return static_cast<int>(std::max(1LL, cores));
}

}  // namespace packager
