// A thread that waits for sockets, and answers what arrives.
#pragma once

#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "http/connection.hpp"
#include "http/descriptor.hpp"
#include "http/job.hpp"
#include "http/service.hpp"

namespace packager::http {

class Loop final : public JobReceiver {
public:
    explicit Loop(Service& service);

    // Waits and answers until it is asked to shut down, and the last connection is closed.
    void run();

    // From other threads.
    void add(Descriptor socket, bool is_welcome);
    void receive(std::shared_ptr<Job> job) override;
    void shut_down();

    // For its connections.
    Service& service() { return service_; }
    char* scratch() { return scratch_.data(); }
    Response& response() { return response_; }
    std::string& head_text() { return head_text_; }
    Workspace& workspace() { return *workspace_; }
    std::unique_ptr<Workspace> take_workspace();
    void give_workspace(std::unique_ptr<Workspace> workspace);
    std::string_view date_line();
    void note_deadline(std::int64_t deadline) { next_check_ = deadline < next_check_ ? deadline : next_check_; }
    void put_off(std::uint64_t connection) { put_off_.push_back(connection); }
    void hold(std::uint64_t connection) { held_.push_back(connection); }
    void bury(std::uint64_t connection) { dead_.push_back(connection); }
    void watch(Connection& connection, int operation, std::uint32_t events);

    static constexpr std::size_t scratch_size = std::size_t{64} << 10U;

private:
    struct Accepted {
        Descriptor socket;
        bool is_welcome = true;
    };
    struct Inbox {
        std::vector<Accepted> sockets;
        std::vector<std::shared_ptr<Job>> jobs;
        bool shut_down = false;
    };

    void wake();
    int timeout() const;
    void wait();
    void empty_inbox();
    void open(Accepted accepted);
    void resume_put_off();
    void send_held();
    void check_deadlines();
    void remove_dead();
    template <typename Function>
    void for_each(const std::vector<std::uint64_t>& numbers, Function function);
    template <typename Function>
    void guard(Connection& connection, Function function);

    Service& service_;
    Descriptor epoll_, event_;
    std::mutex mutex_;
    Inbox inbox_;
    std::unordered_map<std::uint64_t, std::unique_ptr<Connection>> connections_;
    std::uint64_t last_number_ = 0;
    std::vector<std::uint64_t> put_off_, held_, dead_;
    std::int64_t next_check_ = never;
    bool is_shutting_down_ = false;

    std::vector<char> scratch_;
    Response response_;
    std::string head_text_;
    std::unique_ptr<Workspace> workspace_;
    std::string date_line_;
    std::int64_t date_ = 0;
};

}  // namespace packager::http
