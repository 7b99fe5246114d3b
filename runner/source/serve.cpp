// `serve`: the model over HTTP with the Open Inference Protocol v2, as `package serve` answers.
#include <algorithm>

#include "bundle.hpp"
#include "commands.hpp"
#include "cores.hpp"
#include "http/server.hpp"
#include "session.hpp"

namespace packager {
namespace {

constexpr double mebibyte = 1024.0 * 1024.0;
constexpr int most_default_threads = 8;

http::Settings read_settings(const ServeOptions& options) {
    http::Settings settings;
    settings.max_request_bytes = static_cast<std::size_t>(std::min(options.request_limit * mebibyte, 1e15));
    settings.max_buffered_bytes = std::max(settings.max_buffered_bytes, 8 * settings.max_request_bytes);
    settings.max_queue = static_cast<std::size_t>(options.queue);
    settings.time_limit = options.time_limit;
    settings.drain = options.drain;
    const int threads = options.threads > 0 ? options.threads : std::min(count_usable_cores(), most_default_threads);
    settings.threads = static_cast<std::size_t>(threads);
    settings.access_log = options.access_log;
    return settings;
}

}  // namespace

int serve(const Executable& executable, LibraryCheck& library, const ServeOptions& options) {
    const Bundle bundle = open_bundle(executable);
    SessionSettings session_settings;
    session_settings.threads = 1;  // several requests use the cores better than one
    session_settings.is_shared = true;
    const Session session(executable, library, bundle, session_settings);
    return http::serve_model(bundle.config, session, read_settings(options), options.host, options.port);
}

}  // namespace packager
