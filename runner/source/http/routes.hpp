// The routes of the protocol.
#pragma once

#include <optional>
#include <string>
#include <string_view>

namespace packager::http {

enum class RouteKind {
    server_metadata,
    live,
    ready,
    all_statistics,
    model_metadata,
    model_ready,
    model_statistics,
    model_configuration,
    infer,
    index,
    model_control,
    memory_status,
    memory_register,
    memory_unregister,
    metrics
};

struct Route {
    std::string_view name;  // in metrics
    std::string_view method;
    RouteKind kind = RouteKind::live;
    std::string model;
    std::optional<std::string> version;
};

constexpr std::string_view infer_route = "/v2/models/{model}/infer";

// Finds the route of a decoded path. Throws Rejected, 404.
Route find_route(std::string_view path);

}  // namespace packager::http
