// One connection to a client, from the bytes of its socket to the routes.
//
// It is waiting for a request, receiving one, busy until it has an answer, blocked until that is written, or closing.
// Requests that arrive meanwhile (pipelining) wait in the buffer, and reading stops when it is large. A small request
// that arrives in one piece is answered where it was read to, without a copy.
#pragma once

#include <cstdint>
#include <memory>
#include <string_view>

#include "http/chunks.hpp"
#include "http/descriptor.hpp"
#include "http/head.hpp"
#include "http/job.hpp"
#include "http/output.hpp"
#include "http/service.hpp"

namespace packager::http {

class Loop;

class Connection {
public:
    Connection(Loop& loop, Descriptor socket, std::uint64_t number);

    std::uint64_t number() const { return number_; }
    int socket() const { return socket_.get(); }
    bool is_closed() const { return is_closed_; }
    std::int64_t deadline() const { return deadline_; }

    // Begins to wait for a request; those that are too many are not welcome, and turned away.
    void open(bool is_welcome);
    void handle_events(std::uint32_t events);
    // Takes the answer of a worker.
    void handle_job(const std::shared_ptr<Job>& job);
    // Goes on with pipelined requests that were put off for the sake of other connections.
    void resume();
    // Acts if the client or the answer has taken too long.
    void check_deadline(std::int64_t now);
    // Writes what is left of an answer, or one that was held.
    void flush();
    // Closes after the answer that the client waits for.
    void shut_down();
    void close();

private:
    struct Step {
        std::size_t used = 0;
        bool is_complete = false;
    };

    void read_socket();
    void read_body();
    void handle_end();
    void take(const char* bytes, std::size_t size);
    void process_input();
    std::size_t process(const char* bytes, std::size_t size);
    Step receive(std::string_view bytes);
    std::size_t receive_head(std::string_view bytes);
    Step receive_body(std::string_view bytes);
    void start(Span body, bool is_stored);
    void route(Span body);
    void infer(Span body, bool is_stored);
    void queue(Span body, bool is_stored, bool is_decoded);
    void finish(Response& response);
    void reject(const Rejected& error);
    void write_head(Response& response);
    bool hold(Response& response, std::int64_t now);
    void send(Response& response);
    void close_after_answer();
    void close_if_ended();
    void forget_request();
    void set_deadline(std::int64_t deadline);
    void update_interest();
    bool is_waiting() const { return !is_busy_ && !is_closing_ && !is_closed_ && !is_blocked_; }

    Loop& loop_;
    Service& service_;
    Descriptor socket_;
    std::uint64_t number_;
    std::int64_t deadline_ = never;
    std::uint32_t interest_ = 0;

    Buffer input_;
    Head head_;
    bool has_head_ = false;
    Buffer body_;
    ChunkDecoder chunks_;
    Reservation reservation_;

    std::shared_ptr<Job> job_;
    std::string_view route_;
    std::size_t body_size_ = 0;
    std::int64_t started_ = 0;
    Output output_;

    bool is_busy_ = false;     // until the request has its answer
    bool is_blocked_ = false;  // until the answer is written
    bool is_held_ = false;     // blocked until those of other connections are there, and not by the client
    bool is_closing_ = false;
    bool is_closed_ = false;
    bool has_ended_ = false;  // the client sends no more
    bool is_put_off_ = false;
    bool keep_alive_ = true;
    bool is_head_request_ = false;
};

}  // namespace packager::http
