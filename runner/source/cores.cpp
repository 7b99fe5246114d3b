#include "cores.hpp"

#include <sched.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <fstream>
#include <optional>
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

std::optional<long long> parse_number(const std::string& text) {
    char* end = nullptr;
    const long long number = std::strtoll(text.c_str(), &end, 10);
    if (text.empty() || *end != '\0') return std::nullopt;
    return number;
}

// The cores of a quota in microseconds per period, rounded up; nothing if there is no quota ("max 100000").
std::optional<long long> divide(const std::string& quota, const std::string& period) {
    const auto quota_time = parse_number(quota), period_time = parse_number(period);
    if (!quota_time || !period_time || *quota_time <= 0 || *period_time <= 0) return std::nullopt;
    return (*quota_time - 1) / *period_time + 1;
}

std::vector<std::string> list_groups(const std::string& root) {
    const std::string mount = root + "/sys/fs/cgroup";
    std::vector<std::string> groups{mount};
    std::ifstream file(root + "/proc/self/cgroup");
    for (std::string line; std::getline(file, line);) {
        if (line.compare(0, 4, "0::/") != 0) continue;  // of version 2
        for (std::string group = line.substr(3); group.size() > 1; group.resize(group.rfind('/'))) {
            groups.push_back(mount + group);
            if (group.rfind('/') == 0) break;
        }
    }
    return groups;
}

}  // namespace

int count_cores() { return static_cast<int>(std::max(1L, sysconf(_SC_NPROCESSORS_ONLN))); }

int count_usable_cores(const std::string& root) {
    long long cores = count_affinity();
    for (const std::string& group : list_groups(root)) {
        std::ifstream file(group + "/cpu.max");
        std::string quota, period;
        if (!(file >> quota >> period)) continue;
        if (const auto limit = divide(quota, period)) cores = std::min(cores, *limit);
    }
    std::ifstream quota_file(root + "/sys/fs/cgroup/cpu/cpu.cfs_quota_us");
    std::ifstream period_file(root + "/sys/fs/cgroup/cpu/cpu.cfs_period_us");
    std::string quota, period;
    if (quota_file >> quota && period_file >> period) {
        if (const auto limit = divide(quota, period)) cores = std::min(cores, *limit);
    }
    return static_cast<int>(std::max(1LL, cores));
}

}  // namespace packager
