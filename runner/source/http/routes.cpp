#include "http/routes.hpp"

#include <algorithm>
#include <array>
#include <vector>

#include "http/messages.hpp"

namespace packager::http {
namespace {

using Parts = std::vector<std::string_view>;

struct ModelRoute {
    std::string_view action, name, versioned_name;
    RouteKind kind;
};

constexpr std::array<ModelRoute, 4> model_routes{{
    {"", "/v2/models/{model}", "/v2/models/{model}/versions/{version}", RouteKind::model_metadata},
    {"ready", "/v2/models/{model}/ready", "/v2/models/{model}/versions/{version}/ready", RouteKind::model_ready},
    {"stats", "/v2/models/{model}/stats", "/v2/models/{model}/versions/{version}/stats", RouteKind::model_statistics},
    {"config", "/v2/models/{model}/config", "/v2/models/{model}/versions/{version}/config",
     RouteKind::model_configuration},
}};

Parts split(std::string_view path) {
    const std::size_t start = std::min(path.find_first_not_of('/'), path.size());
    const std::size_t end = path.find_last_not_of('/');
    path = path.substr(start, end == std::string_view::npos ? 0 : end + 1 - start);
    Parts parts;
    for (std::size_t slash = path.find('/'); slash != std::string_view::npos; slash = path.find('/')) {
        parts.push_back(path.substr(0, slash));
        path.remove_prefix(slash + 1);
    }
    parts.push_back(path);
    return parts;
}

Rejected not_found() { return {404, "Not Found"}; }

Route find_model_route(std::string_view model, std::optional<std::string> version, std::string_view action) {
    if (action == "infer") return {infer_route, "POST", RouteKind::infer, std::string(model), std::move(version)};
    for (const ModelRoute& route : model_routes) {
        if (route.action != action) continue;
        const std::string_view name = version ? route.versioned_name : route.name;
        return {name, "GET", route.kind, std::string(model), std::move(version)};
    }
    throw not_found();
}

// An action after the model's name; a path that ends with its name has none.
Route find_model_route(const Parts& parts) {
    const bool has_version = parts.size() >= 5 && parts[3] == "versions";
    const std::size_t used = has_version ? 5 : 3;
    if (parts.size() > used + 1) throw not_found();
    const std::string_view action = parts.size() > used ? parts[used] : "";
    if (parts.size() > used && action.empty()) throw not_found();
    return find_model_route(parts[2], has_version ? std::optional<std::string>(parts[4]) : std::nullopt, action);
}

// Shared memory is off, and no region has a name.
Route find_memory_route(const Parts& parts) {
    const bool is_system = parts[1] == "systemsharedmemory";
    const std::string_view action = parts.size() > 2 ? parts.back() : "";
    const bool is_region = parts.size() == 5 && parts[2] == "region";
    if (!is_region && (parts.size() != 3 || action == "register")) throw not_found();
    if (action == "status") {
        if (is_system && is_region) {
            throw Rejected(400, "Unable to find system shared memory region: '" + std::string(parts[3]) + "'");
        }
        const std::string_view name = is_system   ? "/v2/systemsharedmemory/status"
                                      : is_region ? "/v2/cudasharedmemory/region/{region}/status"
                                                  : "/v2/cudasharedmemory/status";
        return {name, "GET", RouteKind::memory_status, "", std::nullopt};
    }
    if (action == "register" && is_system) {
        return {"/v2/systemsharedmemory/region/{region}/register", "POST", RouteKind::memory_register, "",
                std::nullopt};
    }
    if (action == "unregister") {
        const std::string_view system =
            is_region ? "/v2/systemsharedmemory/region/{region}/unregister" : "/v2/systemsharedmemory/unregister";
        const std::string_view cuda =
            is_region ? "/v2/cudasharedmemory/region/{region}/unregister" : "/v2/cudasharedmemory/unregister";
        return {is_system ? system : cuda, "POST", RouteKind::memory_unregister, "", std::nullopt};
    }
    throw Rejected(404, is_system ? "Not Found" : "GPUs are not supported");
}

Route find_repository_route(const Parts& parts) {
    if (parts == Parts{"v2", "repository", "index"}) {
        return {"/v2/repository/index", "POST", RouteKind::index, "", std::nullopt};
    }
    if (parts.size() == 5 && parts[2] == "models" && (parts[4] == "load" || parts[4] == "unload")) {
        const std::string_view name =
            parts[4] == "load" ? "/v2/repository/models/{model}/load" : "/v2/repository/models/{model}/unload";
        return {name, "POST", RouteKind::model_control, "", std::nullopt};
    }
    throw not_found();
}

}  // namespace

Route find_route(std::string_view path) {
    const Parts parts = split(path);
    if (parts == Parts{"metrics"}) return {"/metrics", "GET", RouteKind::metrics, "", std::nullopt};
    if (parts.front() != "v2") throw not_found();
    if (parts.size() == 1) return {"/v2", "GET", RouteKind::server_metadata, "", std::nullopt};
    if (parts == Parts{"v2", "health", "live"}) return {"/v2/health/live", "GET", RouteKind::live, "", std::nullopt};
    if (parts == Parts{"v2", "health", "ready"}) return {"/v2/health/ready", "GET", RouteKind::ready, "", std::nullopt};
    if (parts == Parts{"v2", "models", "stats"}) {
        return {"/v2/models/stats", "GET", RouteKind::all_statistics, "", std::nullopt};
    }
    if (parts[1] == "models" && parts.size() > 2) return find_model_route(parts);
    if (parts[1] == "repository") return find_repository_route(parts);
    if (parts[1] == "systemsharedmemory" || parts[1] == "cudasharedmemory") return find_memory_route(parts);
    throw not_found();
}

}  // namespace packager::http
