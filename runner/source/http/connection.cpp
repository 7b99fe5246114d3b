#include "http/connection.hpp"

#include <sys/epoll.h>
#include <sys/socket.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <charconv>
#include <cstdio>
#include <cstring>

#include "http/access_log.hpp"
#include "http/loop.hpp"

namespace packager::http {
namespace {

constexpr std::int64_t keep_alive_time = 75 * second;
constexpr std::int64_t linger_time = 2 * second;
constexpr std::size_t max_buffered = std::size_t{64} << 10U;
constexpr std::size_t largest_held = std::size_t{8} << 10U;
constexpr std::int64_t longest_held_for = 100'000;  // nanoseconds that the request took
constexpr std::string_view connection_close = "connection: close\r\n";

// The method as metrics have it: clients make no new series.
std::string_view name_method(std::string_view method) {
    constexpr std::array<std::string_view, 9> methods{"CONNECT", "DELETE", "GET", "HEAD", "OPTIONS",
                                                      "PATCH",   "POST",   "PUT", "TRACE"};
    const auto* const entry = std::find(methods.begin(), methods.end(), method);
    return entry == methods.end() ? "_OTHER" : *entry;
}

std::string format_seconds(double seconds) {
    char text[32];
    std::snprintf(text, sizeof text, "%g", seconds);
    return text;
}

}  // namespace

// -- the connection ---------------------------------------------------------------------------

Connection::Connection(Loop& loop, Descriptor socket, std::uint64_t number)
    : loop_(loop), service_(loop.service()), socket_(std::move(socket)), number_(number) {}

void Connection::open(bool is_welcome) {
    interest_ = EPOLLIN;
    loop_.watch(*this, EPOLL_CTL_ADD, interest_);
    set_deadline(now_ns() + keep_alive_time);
    if (!is_welcome) {
        reject(Rejected(503, "too many connections; try again", "retry-after: 1\r\n"));
    }
    update_interest();
}

void Connection::handle_events(std::uint32_t events) {
    if ((events & (EPOLLERR | EPOLLHUP)) != 0) {
        close();
        return;
    }
    if ((events & EPOLLOUT) != 0) flush();
    if ((events & EPOLLIN) != 0 && !is_closed_) read_socket();
    update_interest();
}

void Connection::handle_job(const std::shared_ptr<Job>& job) {
    if (job_ != job) return;  // it was given up
    job_.reset();
    finish(job->response);
    process_input();
    update_interest();
}

void Connection::resume() {
    is_put_off_ = false;
    process_input();
    update_interest();
}

void Connection::check_deadline(std::int64_t now) {
    if (now < deadline_) return;
    if (is_closing_ || is_blocked_) {
        close();
        return;
    }
    if (is_busy_) {
        deadline_ = never;
        if (!job_ || !job_->claim()) return;  // its answer is on the way
        service_.model.statistics().count_timed_out();
        service_.workers.remove(*job_);
        job_.reset();
        Response& response = loop_.response();
        const std::string limit = format_seconds(service_.settings.time_limit);
        response.set_error(Rejected(504, "the request took longer than " + limit + " seconds"));
        finish(response);
        process_input();
    } else if (!has_head_ && input_.empty()) {
        close();
    } else {
        reject(Rejected(408, "the request did not arrive in time"));
    }
    update_interest();
}

void Connection::shut_down() {
    keep_alive_ = false;
    if (!is_busy_ && !is_blocked_ && !is_closing_ && input_.empty()) close();
}

void Connection::close() {
    if (is_closed_) return;
    is_closed_ = true;
    if (job_) {  // nobody gets its answer
        job_->claim();
        service_.workers.remove(*job_);
        job_.reset();
    }
    socket_.close();
    service_.connections.fetch_sub(1);
    loop_.bury(number_);
}

void Connection::set_deadline(std::int64_t deadline) {
    deadline_ = deadline;
    loop_.note_deadline(deadline);
}

void Connection::update_interest() {
    if (is_closed_) return;
    const bool is_full = input_.size() > max_buffered && (is_busy_ || is_blocked_ || is_put_off_);
    std::uint32_t interest = 0;
    if (!has_ended_ && !is_full) interest |= EPOLLIN;
    if (is_blocked_ && !is_held_) interest |= EPOLLOUT;
    if (interest == interest_) return;
    interest_ = interest;
    loop_.watch(*this, EPOLL_CTL_MOD, interest);
}

// -- answers ----------------------------------------------------------------------------------

// Writes the answer of the request that was started.
void Connection::finish(Response& response) {
    is_busy_ = false;
    const HeaderValue& trace = head_.traceparent;
    if (trace.given && is_traceparent(trace.value)) response.headers += "traceparent: " + trace.value + "\r\n";
    const std::int64_t now = now_ns();
    const double seconds = static_cast<double>(now - started_) / 1e9;
    service_.durations.record(name_method(head_.method), route_, response.status, seconds);
    const bool asks_to_close = response.status >= 400 && response.headers.find(connection_close) != std::string::npos;
    if (asks_to_close || !service_.is_ready.load(std::memory_order_relaxed)) keep_alive_ = false;
    if (response.status >= 500 || service_.settings.access_log) {
        log_request({head_, body_size_, response.status, seconds, response.error});
    }
    forget_request();
    set_deadline(now + keep_alive_time);
    write_head(response);
    if (!hold(response, now)) send(response);
    response.clear();  // the memory of its outputs is onnxruntime's
    if (!keep_alive_ && !is_closed_) close_after_answer();
}

void Connection::forget_request() {
    has_head_ = false;
    body_.clear();
    chunks_ = ChunkDecoder();
    reservation_.release();
}

// Answers a request that was not received whole, and closes: what follows is not known.
void Connection::reject(const Rejected& error) {
    keep_alive_ = false;
    forget_request();
    service_.durations.record("_OTHER", "", error.status, 0.0);
    Response& response = loop_.response();
    response.set_error(error);
    write_head(response);
    send(response);
    if (!is_closed_) close_after_answer();
}

// Writes the head of an answer to the text that the loop has for it.
void Connection::write_head(Response& response) {
    std::string& head = loop_.head_text();
    head = status_line(response.status);
    head += response.headers;
    head += loop_.date_line();
    if (!keep_alive_ && response.headers.find(connection_close) == std::string::npos) head += connection_close;
    head += "content-length: ";
    char digits[24];
    head.append(digits, std::to_chars(digits, digits + sizeof digits, response.body_size()).ptr);
    head += "\r\n\r\n";
    if (is_head_request_) {
        response.body.clear();
        response.tensors.clear();
    }
}

// Leaves a small answer to the loop, which sends those of all connections that had a request at the time: the client
// may be one that waits for all of them, and is woken once. Returns false if that could take long, or is the last
// answer.
bool Connection::hold(Response& response, std::int64_t now) {
    const std::string& head = loop_.head_text();
    const std::size_t size = head.size() + response.body_size();
    if (!keep_alive_ || size > largest_held || now - started_ > longest_held_for) return false;
    output_.head.reserve(size);
    output_.head.append(head).append(response.body);
    for (const TensorBytes& tensor : response.tensors) {
        output_.head.append(reinterpret_cast<const char*>(tensor.data), tensor.size);
    }
    is_blocked_ = is_held_ = true;
    loop_.hold(number_);
    return true;
}

void Connection::send(Response& response) {
    const std::string& head = loop_.head_text();
    std::size_t sent = 0;
    const Sent result = send_parts(socket(), head, response.body, response.tensors, sent);
    if (result == Sent::failed) {
        close();
        return;
    }
    if (result == Sent::whole) return;
    output_ = {head, std::move(response.body), std::move(response.tensors), sent};
    is_blocked_ = true;
    set_deadline(now_ns() + to_ns(service_.settings.time_limit));
}

void Connection::flush() {
    if (!is_blocked_) return;
    const bool was_held = std::exchange(is_held_, false);
    const Sent result = send_parts(socket(), output_.head, output_.body, output_.tensors, output_.sent);
    if (result == Sent::failed) {
        close();
        return;
    }
    if (result == Sent::part) {
        if (was_held) set_deadline(now_ns() + to_ns(service_.settings.time_limit));
        update_interest();
        return;
    }
    output_ = Output();
    is_blocked_ = false;
    if (is_closing_ || (!keep_alive_ && input_.empty())) {
        close_after_answer();
        return;
    }
    if (!was_held) set_deadline(now_ns() + keep_alive_time);
    process_input();
    update_interest();
}

// Closes when the answer is written. A client that still sends would lose it to a reset of the connection, so its bytes
// are read and dropped for a while.
void Connection::close_after_answer() {
    is_closing_ = true;
    if (is_blocked_) return;
    if (has_ended_) {
        close();
        return;
    }
    ::shutdown(socket(), SHUT_WR);
    set_deadline(now_ns() + linger_time);
}

}  // namespace packager::http
