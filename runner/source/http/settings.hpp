// The limits of the server: those of packager.serving.settings, without batches, versions and shared memory.
#pragma once

#include <cstddef>

namespace packager::http {

struct Settings {
    std::size_t max_request_bytes = std::size_t{64} << 20U;    // of a body, before and after decompression
    std::size_t max_buffered_bytes = std::size_t{512} << 20U;  // of all bodies together
    std::size_t max_connections = 1000;
    std::size_t max_queue = 256;  // requests that wait for a worker
    double time_limit = 60.0;     // seconds for a request to arrive, and for its answer
    double drain = 1.0;           // seconds between the end of the readiness and that of the sockets
    std::size_t threads = 1;      // runs of the model at the same time
    bool access_log = false;
};

}  // namespace packager::http
