// Requests on a connection: received from its socket, and started.
#include <sys/socket.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "http/connection.hpp"
#include "http/loop.hpp"

namespace packager::http {
namespace {

constexpr std::size_t max_read = std::size_t{256} << 10U;
constexpr int requests_in_turn = 16;
constexpr std::size_t small_body = std::size_t{256} << 10U;    // is decoded at once, and a larger one by a worker,
constexpr std::size_t small_compressed = std::size_t{4} << 10U;  // because that takes longer than others should wait
constexpr std::size_t alignment = 64;

Span to_span(std::string_view bytes) { return {reinterpret_cast<const std::byte*>(bytes.data()), bytes.size()}; }

}  // namespace

void Connection::read_socket() {
    if (has_head_ && !head_.chunked && !body_.empty() && is_waiting()) {
        read_body();
        return;
    }
    const ssize_t count = ::recv(socket(), loop_.scratch(), Loop::scratch_size, 0);
    if (count > 0) {
        if (!is_closing_) take(loop_.scratch(), static_cast<std::size_t>(count));
    } else if (count == 0) {
        handle_end();
    } else if (errno != EAGAIN && errno != EINTR) {
        close();
    }
}

// Reads the rest of a body to where it stays.
void Connection::read_body() {
    const std::size_t missing = std::min<std::size_t>(head_.length - body_.size(), max_read);
    const ssize_t count = ::recv(socket(), body_.extend(missing), missing, 0);
    if (count == 0) {
        handle_end();
        return;
    }
    if (count < 0) {
        if (errno != EAGAIN && errno != EINTR) close();
        return;
    }
    try {
        reservation_.add(service_.budget, static_cast<std::size_t>(count));
        body_.add(static_cast<std::size_t>(count));
        if (body_.size() == head_.length) start(to_span({body_.data(), body_.size()}), true);
    } catch (const Rejected& error) {
        reject(error);
    }
    close_if_ended();
}

// The client sends no more; what was received is answered.
void Connection::handle_end() {
    has_ended_ = true;
    if (is_closing_ && !is_blocked_) {
        close();
        return;
    }
    close_if_ended();
}

void Connection::close_if_ended() {
    if (!has_ended_ || is_busy_ || is_put_off_ || is_closing_ || is_closed_) return;
    close_after_answer();
}

void Connection::take(const char* bytes, std::size_t size) {
    if (!input_.empty()) {
        input_.append({bytes, size});
        if (!is_put_off_) process_input();
        return;
    }
    const std::size_t used = is_put_off_ ? 0 : process(bytes, size);
    if (used < size && !is_closing_ && !is_closed_) input_.append({bytes + used, size - used});
}

// Starts the requests that the buffer has, one after the other.
void Connection::process_input() {
    if (!input_.empty() && is_waiting()) {
        const std::size_t used = process(input_.data(), input_.size());
        input_.remove_front(used);
    }
    if (is_closing_ || is_closed_) input_.clear();
    close_if_ended();
}

std::size_t Connection::process(const char* bytes, std::size_t size) {
    std::size_t position = 0;
    try {
        for (int count = 0; position < size && is_waiting(); ++count) {
            if (count == requests_in_turn) {  // others have their turn
                is_put_off_ = true;
                loop_.put_off(number_);
                break;
            }
            const Step step = receive({bytes + position, size - position});
            position += step.used;
            if (!step.is_complete) break;
        }
    } catch (const Rejected& error) {
        reject(error);
        position = size;
    }
    return position;
}

// Takes a request and starts it; the step is not complete if it has not arrived yet. Throws Rejected.
Connection::Step Connection::receive(std::string_view bytes) {
    std::size_t used = 0;
    if (!has_head_) {
        used = receive_head(bytes);
        if (!has_head_) return {used, false};
        bytes.remove_prefix(used);
    }
    Step step = receive_body(bytes);
    step.used += used;
    return step;
}

std::size_t Connection::receive_head(std::string_view bytes) {
    const std::size_t skipped = bytes.substr(0, 2) == "\r\n" ? 2 : 0;  // some clients end a body with one
    bytes.remove_prefix(skipped);
    const std::size_t end = bytes.substr(0, max_head_bytes).find("\r\n\r\n");
    const std::int64_t latest = now_ns() + to_ns(service_.settings.time_limit);
    if (end == std::string_view::npos) {
        if (bytes.size() >= max_head_bytes) {
            const std::string limit = std::to_string(max_head_bytes);
            throw Rejected(431, "the head of the request has more than " + limit + " bytes");
        }
        set_deadline(std::min(deadline_, latest));
        return skipped;
    }
    parse_head(bytes.substr(0, end + 4), head_);
    keep_alive_ = keep_alive_ && head_.keep_alive;
    is_head_request_ = head_.method == "HEAD";
    service_.budget.check_length(head_.length);
    has_head_ = true;
    const bool has_body = head_.chunked || head_.length > 0;
    if (has_body) set_deadline(std::min(deadline_, latest));
    if (head_.expects_continue && has_body && bytes.size() == end + 4) {
        constexpr std::string_view answer = "HTTP/1.1 100 Continue\r\n\r\n";
        static_cast<void>(::send(socket(), answer.data(), answer.size(), MSG_NOSIGNAL));
    }
    return skipped + end + 4;
}

Connection::Step Connection::receive_body(std::string_view bytes) {
    if (head_.chunked) {
        const std::size_t before = body_.size();
        const std::size_t used = chunks_.feed(bytes, body_);
        reservation_.add(service_.budget, body_.size() - before);
        if (!chunks_.is_complete()) return {used, false};
        start(to_span({body_.data(), body_.size()}), true);
        return {used, true};
    }
    if (body_.empty() && bytes.size() >= head_.length) {
        start(to_span(bytes.substr(0, head_.length)), false);
        return {static_cast<std::size_t>(head_.length), true};
    }
    const std::size_t used = std::min<std::size_t>(head_.length - body_.size(), bytes.size());
    reservation_.add(service_.budget, used);
    body_.append(bytes.substr(0, used));
    if (body_.size() < head_.length) return {used, false};
    start(to_span({body_.data(), body_.size()}), true);
    return {used, true};
}

// Answers a request, now or when a worker has run it. The body is in `body_`, or where it was read to.
void Connection::start(Span body, bool is_stored) {
    is_busy_ = true;
    deadline_ = never;
    started_ = now_ns();
    body_size_ = body.size;
    route_ = infer_route;
    if (service_.is_infer_path(head_.path) && head_.method == "POST") {
        infer(body, is_stored);
        return;
    }
    Response& response = loop_.response();
    response.clear();
    route_ = "";
    try {
        const Route route = find_route(head_.path);
        route_ = route.name;
        check_method(route, head_.method);
        if (route.kind == RouteKind::infer) {
            service_.check_model(route);
            infer(body, is_stored);
            return;
        }
        service_.answer(route, body.text(), response);
    } catch (const Rejected& error) {
        response.set_error(error);
    } catch (const std::exception& error) {
        log_bug("answering a request failed", error.what());
        response.set_error(Rejected(500, "internal error"));
    }
    finish(response);
}

void Connection::infer(Span body, bool is_stored) {
    Model& model = service_.model;
    Workspace& workspace = loop_.workspace();
    Response& response = loop_.response();
    try {
        const bool is_small = body.size <= (head_.infer.content_encoding.given ? small_compressed : small_body);
        if (is_small) model.decode(body, head_.infer, service_.budget, workspace);
        if (!is_small || !model.is_quick(workspace.request.count_elements())) {
            queue(body, is_stored, is_small);
            return;
        }
        model.run(workspace, head_.infer, now_ns(), [] { return true; }, response);
    } catch (const Rejected& error) {
        response.set_error(error);
    } catch (const std::exception& error) {
        log_bug("answering a request failed", error.what());
        response.set_error(Rejected(500, "internal error"));
    }
    loop_.workspace().clear();
    finish(response);
}

// Leaves a request to a worker. Throws Rejected, 503.
void Connection::queue(Span body, bool is_stored, bool is_decoded) {
    auto job = std::make_shared<Job>();
    job->receiver = &loop_;
    job->connection = number_;
    job->headers = head_.infer;
    job->is_decoded = is_decoded;
    if (is_stored) {
        job->memory = std::move(body_);
        job->reservation = std::move(reservation_);
        job->body = body;
    } else {
        job->reservation.add(service_.budget, body.size);
        char* const memory = job->memory.extend(body.size + alignment);
        const auto distance = reinterpret_cast<std::uintptr_t>(body.data) - reinterpret_cast<std::uintptr_t>(memory);
        job->body = {reinterpret_cast<std::byte*>(memory) + distance % alignment, body.size};
        if (body.size > 0) std::memcpy(memory + distance % alignment, body.data, body.size);
    }
    job->queued = now_ns();
    job->workspace = loop_.take_workspace();
    if (is_decoded) job->workspace->request.rebase(body, job->body.data);
    try {
        service_.workers.submit(job);
    } catch (const Rejected&) {
        loop_.give_workspace(std::move(job->workspace));
        throw;
    }
    set_deadline(job->queued + to_ns(service_.settings.time_limit));
    job_ = std::move(job);
}

}  // namespace packager::http
