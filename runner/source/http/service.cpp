#include "http/service.hpp"

#include <simdjson.h>

#include "http/metadata.hpp"

namespace packager::http {
namespace {

constexpr std::size_t max_small_bytes = std::size_t{1} << 16U;

// Parses the JSON of a request that has no tensors. Throws Rejected, 400.
simdjson::dom::element parse_small(simdjson::dom::parser& parser, std::string_view body) {
    simdjson::dom::element document;
    body = body.substr(0, max_small_bytes);
    if (parser.parse(body.data(), body.size()).get(document) != simdjson::SUCCESS) {
        throw Rejected(400, "failed to parse the request JSON");
    }
    return document;
}

// Throws Rejected, 400, for a body of an index request that is neither empty nor as it should be.
void check_index_request(std::string_view body) {
    if (body.find_first_not_of(" \t\r\n\v\f") == std::string_view::npos) return;
    simdjson::dom::parser parser;
    const simdjson::dom::element document = parse_small(parser, body);
    bool is_valid = document.is_object();
    if (is_valid) {
        for (const simdjson::dom::key_value_pair& field : simdjson::dom::object(document)) {
            if (field.key == "ready") is_valid = field.value.is_bool();
        }
    }
    if (!is_valid) throw Rejected(400, "Invalid value for 'ready': expected a boolean");
}

bool is_of_model(RouteKind kind) {
    return kind == RouteKind::model_metadata || kind == RouteKind::model_ready || kind == RouteKind::model_statistics ||
           kind == RouteKind::model_configuration;
}

void set_json(Response& response, std::string body) {
    response.set_json(200);
    response.body = std::move(body);
}

}  // namespace

Service::Service(const Config& config, const Session& session, const Settings& limits)
    : settings(limits),
      model(config, session),
      budget(settings),
      workers(model, budget, settings),
      infer_path_("/v2/models/" + config.name + "/infer") {}

void Service::answer(const Route& route, std::string_view body, Response& response) {
    const WireSignature& signature = model.signature();
    if (is_of_model(route.kind)) check_model(route);
    switch (route.kind) {
        case RouteKind::server_metadata:
            set_json(response, describe_server());
            return;
        case RouteKind::live:
            set_json(response, "{\"live\":true}");
            return;
        case RouteKind::ready:
            answer_readiness("", response);
            return;
        case RouteKind::model_ready:
            answer_readiness(signature.model, response);
            return;
        case RouteKind::model_metadata:
            set_json(response, describe_model(signature));
            return;
        case RouteKind::model_configuration:
            set_json(response, describe_configuration(signature));
            return;
        case RouteKind::all_statistics:
        case RouteKind::model_statistics:
            set_json(response, describe_statistics(signature, model.statistics().read()));
            return;
        case RouteKind::index:
            check_index_request(body);
            set_json(response, describe_index(signature));
            return;
        case RouteKind::model_control:
            throw Rejected(403, "explicit model load / unload is not allowed; the option --model-control allows it");
        case RouteKind::memory_status:
            set_json(response, "[]");
            return;
        case RouteKind::memory_register: {
            simdjson::dom::parser parser;
            parse_small(parser, body);
            throw Rejected(403, "shared memory is not enabled; the server's option --shared-memory enables it");
        }
        case RouteKind::memory_unregister:
            return;
        case RouteKind::metrics:
            response.headers = "content-type: text/plain; version=0.0.4; charset=utf-8\r\n";
            response.body = render_metrics(signature, model.statistics().read(), workers.pending(), durations);
            return;
        case RouteKind::infer:
            break;
    }
    throw Rejected(500, "internal error");
}

void Service::check_model(const Route& route) const {
    const WireSignature& signature = model.signature();
    if (route.version && (route.model != signature.model || *route.version != signature.version)) {
        throw Rejected(404,
                       "Request for unknown model: '" + route.model + "' version " + *route.version + " is not found");
    }
    if (route.model != signature.model)
        throw Rejected(404, "Request for unknown model: '" + route.model + "' is not found");
}

void Service::answer_readiness(std::string_view model_name, Response& response) const {
    std::string text = "{";
    if (!model_name.empty()) {
        text += "\"name\":";
        append_quoted(text, model_name);
        text += ',';
    }
    if (is_ready.load()) {
        set_json(response, text + "\"ready\":true}");
    } else {
        set_json(response, text + R"("ready":false,"error":"the server is stopping"})");
        response.status = 503;
    }
}

void check_method(const Route& route, std::string_view method) {
    if (route.method == method || (route.method == "GET" && method == "HEAD")) return;
    throw Rejected(405, "Method Not Allowed", "allow: " + std::string(route.method) + "\r\n");
}

}  // namespace packager::http
