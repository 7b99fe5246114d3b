// The server: a socket that listens, threads that answer, and a shutdown that lets what runs finish.
//
// A signal first makes the readiness fail, so that a load balancer sends nothing new, and the server goes on for a
// while. Then it closes its socket, finishes the requests that it has, and ends with status 0. A second signal skips
// the wait.
#pragma once

#include <string>

#include "bundle.hpp"
#include "http/settings.hpp"
#include "session.hpp"

namespace packager::http {

// Serves a model until a signal ends it. Prints the address when it listens; port 0 takes a free one. Throws Error
// (address-unusable).
int serve_model(const Config& config, const Session& session, const Settings& settings, const std::string& host,
                int port);

}  // namespace packager::http
