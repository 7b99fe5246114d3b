// The socket that listens.
#pragma once

#include <string>

#include "http/descriptor.hpp"

namespace packager::http {

struct Listener {
    Descriptor socket;
    int port = 0;
};

// Throws Error (address-unusable).
Listener listen_on(const std::string& host, int port);

}  // namespace packager::http
