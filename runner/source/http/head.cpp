#include "http/head.hpp"

#include <llhttp.h>

#include <algorithm>
#include <utility>

#include "http/messages.hpp"

namespace packager::http {
namespace {

// What llhttp finds in one head. It is kept by a thread, so that its texts keep their memory.
struct Collected {
    Head* head = nullptr;
    std::string url, name, value;
    std::string content_length, transfer_encoding, expect;
    bool has_name = false, has_value = false;
    bool has_length = false, has_coding = false, has_host = false;
    bool is_complete = false, keep_alive = false;

    void start(Head& destination) {
        head = &destination;
        url.clear();
        has_name = has_value = has_length = has_coding = has_host = is_complete = false;
        expect.clear();
        for (HeaderValue* header : {&destination.infer.content_encoding, &destination.infer.accept_encoding,
                                    &destination.infer.inference_length, &destination.traceparent}) {
            header->given = false;
        }
    }
};

void to_lower(std::string& text) {
    std::transform(text.begin(), text.end(), text.begin(), [](char character) {
        return character >= 'A' && character <= 'Z' ? static_cast<char>(character | 0x20) : character;
    });
}

bool set_once(bool& is_set) { return !std::exchange(is_set, true); }

void set(HeaderValue& header, const std::string& value) {
    header.value = value;
    header.given = true;
}

// Takes a header that is complete; returns false for a second one where there may be one.
bool finish_header(Collected& collected) {
    if (!collected.has_value) return true;
    collected.has_name = collected.has_value = false;
    to_lower(collected.name);
    const std::string& name = collected.name;
    if (name == "content-length") {
        collected.content_length = collected.value;
        return set_once(collected.has_length);
    }
    if (name == "transfer-encoding") {
        collected.transfer_encoding = collected.value;
        return set_once(collected.has_coding);
    }
    if (name == "host") return set_once(collected.has_host);
    if (name == "expect") collected.expect = collected.value;
    if (name == "content-encoding") set(collected.head->infer.content_encoding, collected.value);
    if (name == "accept-encoding") set(collected.head->infer.accept_encoding, collected.value);
    if (name == "inference-header-content-length") set(collected.head->infer.inference_length, collected.value);
    if (name == "traceparent") set(collected.head->traceparent, collected.value);
    return true;
}

Collected& collected_by(llhttp_t* parser) { return *static_cast<Collected*>(parser->data); }

int on_url(llhttp_t* parser, const char* text, std::size_t size) {
    collected_by(parser).url.append(text, size);
    return 0;
}

int on_header_field(llhttp_t* parser, const char* text, std::size_t size) {
    Collected& collected = collected_by(parser);
    if (!finish_header(collected)) return HPE_USER;
    if (!std::exchange(collected.has_name, true)) collected.name.clear();
    collected.name.append(text, size);
    return 0;
}

int on_header_value(llhttp_t* parser, const char* text, std::size_t size) {
    Collected& collected = collected_by(parser);
    if (!std::exchange(collected.has_value, true)) collected.value.clear();
    collected.value.append(text, size);
    return 0;
}

int on_headers_complete(llhttp_t* parser) {
    Collected& collected = collected_by(parser);
    if (!finish_header(collected)) return HPE_USER;
    collected.is_complete = true;
    collected.keep_alive =
        llhttp_should_keep_alive(parser) != 0;  // forgotten at the end of a message: here, if it has no body
    return parser->upgrade != 0 ? 1 : 0;
}

llhttp_settings_t make_settings() {
    llhttp_settings_t settings;
    llhttp_settings_init(&settings);
    settings.on_url = on_url;
    settings.on_header_field = on_header_field;
    settings.on_header_value = on_header_value;
    settings.on_headers_complete = on_headers_complete;
    return settings;
}

void feed(llhttp_t& parser, std::string_view content) {
    const llhttp_errno_t error = llhttp_execute(&parser, content.data(), content.size());
    if (error == HPE_PAUSED_UPGRADE && parser.upgrade == 1) {
        throw Rejected(501, "protocols other than HTTP/1.1 are not supported");
    }
    if (error != HPE_OK) throw Rejected(400, "the request is not valid HTTP");
}

void read_length(Collected& collected, Head& head) {
    head.chunked = collected.has_coding;
    head.length = 0;
    if (collected.has_coding) {
        to_lower(collected.transfer_encoding);
        if (collected.transfer_encoding != "chunked" || collected.has_length) {
            throw Rejected(400, "Transfer-Encoding is not chunked alone");
        }
        return;
    }
    if (!collected.has_length) return;
    const std::string& text = collected.content_length;
    if (text.empty() || text.size() > 18 || text.find_first_not_of("0123456789") != std::string::npos) {
        throw Rejected(400, "Content-Length is not a number");
    }
    for (const char digit : text) head.length = 10 * head.length + static_cast<unsigned>(digit - '0');
}

}  // namespace

void parse_head(std::string_view content, Head& head) {
    static const llhttp_settings_t settings = make_settings();
    thread_local Collected collected;
    collected.start(head);
    llhttp_t parser;
    llhttp_init(&parser, HTTP_REQUEST, &settings);
    parser.data = &collected;
    feed(parser, content.substr(0, content.size() - 1));
    const bool ended_early = collected.is_complete;
    feed(parser, content.substr(content.size() - 1));
    const std::optional<std::string_view> path = find_path(collected.url);
    // Where this parser sees the end of a head, and where one in front of this server does, must not differ.
    if (ended_early || !collected.is_complete || !path) throw Rejected(400, "the request is not valid HTTP");
    if (parser.http_major != 1 || parser.http_minor > 1) {
        throw Rejected(505, "only HTTP/1.1 and 1.0 are supported");
    }
    head.method = llhttp_method_name(static_cast<llhttp_method_t>(parser.method));
    unquote(*path, head.path);
    read_length(collected, head);
    head.keep_alive = parser.http_minor == 1 && collected.keep_alive;
    to_lower(collected.expect);
    head.expects_continue = collected.expect == "100-continue";
}

}  // namespace packager::http
