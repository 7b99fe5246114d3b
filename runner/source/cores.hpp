// How many cores this process may use.
#pragma once

#include <string>

namespace packager {

// At least 1: those of its affinity, or of its container's quota, the smallest of its cgroup and those above, of
// version 2 or 1. `root` is where /sys and /proc are.
int count_usable_cores(const std::string& root = "");
// The cores of the machine that are online.
int count_cores();

}  // namespace packager
