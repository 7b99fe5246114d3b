#include "http/loop.hpp"

#include <sys/epoll.h>
#include <sys/eventfd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <ctime>
#include <system_error>

namespace packager::http {
namespace {

constexpr std::size_t max_events = 64;
constexpr std::size_t max_held = 16;

Descriptor check(int number, const char* what) {
    if (number < 0) throw std::system_error(errno, std::generic_category(), what);
    return Descriptor(number);
}

std::string format_date(std::time_t time) {
    constexpr std::array<const char*, 7> days{"Sun", "Mon", "Tue", "Wed", "Thu", "Fri", "Sat"};
    constexpr std::array<const char*, 12> months{"Jan", "Feb", "Mar", "Apr", "May", "Jun",
                                                 "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"};
    std::tm parts{};
    gmtime_r(&time, &parts);
    char text[64];
    const std::size_t size = std::strftime(text, sizeof text, "%d ___ %Y %H:%M:%S GMT\r\n", &parts);
    std::string date(text, size);
    date.replace(3, 3, months[static_cast<std::size_t>(parts.tm_mon)]);
    return std::string("date: ") + days[static_cast<std::size_t>(parts.tm_wday)] + ", " + date;
}

}  // namespace

Loop::Loop(Service& service)
    : service_(service),
      epoll_(check(::epoll_create1(EPOLL_CLOEXEC), "epoll_create1")),
      event_(check(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK), "eventfd")),
      scratch_(scratch_size + padding),
      workspace_(std::make_unique<Workspace>(service.model.signature())) {
    epoll_event event{};
    event.events = EPOLLIN;
    if (::epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, event_.get(), &event) < 0) {
        throw std::system_error(errno, std::generic_category(), "epoll_ctl");
    }
}

void Loop::run() {
    while (!is_shutting_down_ || !connections_.empty()) {
        try {
            wait();
            resume_put_off();
            if (next_check_ <= now_ns()) check_deadlines();
            send_held();
        } catch (const std::exception& error) {  // no memory for a connection: the others go on
            log_bug("serving failed", error.what());
        }
        remove_dead();
    }
}

void Loop::add(Descriptor socket, bool is_welcome) {
    {
        const std::scoped_lock lock(mutex_);
        inbox_.sockets.push_back({std::move(socket), is_welcome});
    }
    wake();
}

void Loop::receive(std::shared_ptr<Job> job) {
    {
        const std::scoped_lock lock(mutex_);
        inbox_.jobs.push_back(std::move(job));
    }
    wake();
}

void Loop::shut_down() {
    {
        const std::scoped_lock lock(mutex_);
        inbox_.shut_down = true;
    }
    wake();
}

std::unique_ptr<Workspace> Loop::take_workspace() {
    return std::exchange(workspace_, std::make_unique<Workspace>(service_.model.signature()));
}

void Loop::give_workspace(std::unique_ptr<Workspace> workspace) {
    workspace->clear();
    workspace_ = std::move(workspace);
}

std::string_view Loop::date_line() {
    const std::time_t now = std::time(nullptr);
    if (now != date_ || date_line_.empty()) {
        date_ = now;
        date_line_ = format_date(now);
    }
    return date_line_;
}

void Loop::watch(Connection& connection, int operation, std::uint32_t events) {
    epoll_event event{};
    event.events = events;
    event.data.ptr = &connection;
    if (::epoll_ctl(epoll_.get(), operation, connection.socket(), &event) < 0) {
        throw std::system_error(errno, std::generic_category(), "epoll_ctl");
    }
}

void Loop::wake() {
    const std::uint64_t one = 1;
    static_cast<void>(::write(event_.get(), &one, sizeof one) < 0);  // it is full: the loop is awake
}

// In milliseconds, rounded up, so that a deadline has passed when the time is over.
int Loop::timeout() const {
    if (!put_off_.empty() || !held_.empty()) return 0;
    if (next_check_ == never) return -1;
    const std::int64_t left = next_check_ - now_ns();
    return left <= 0 ? 0 : static_cast<int>(std::min<std::int64_t>(left / 1'000'000 + 1, 60'000));
}

void Loop::wait() {
    std::array<epoll_event, max_events> events{};
    const int count = ::epoll_wait(epoll_.get(), events.data(), static_cast<int>(max_events), timeout());
    bool has_mail = false;
    for (int index = 0; index < count; ++index) {
        const epoll_event& event = events[static_cast<std::size_t>(index)];
        if (event.data.ptr == nullptr) {
            has_mail = true;
            continue;
        }
        auto& connection = *static_cast<Connection*>(event.data.ptr);  // it is freed after the last event
        guard(connection, [&] { connection.handle_events(event.events); });
        if (held_.size() >= max_held) send_held();
    }
    if (has_mail) empty_inbox();
}

void Loop::empty_inbox() {
    std::uint64_t count = 0;
    static_cast<void>(::read(event_.get(), &count, sizeof count) < 0);
    Inbox inbox;
    {
        const std::scoped_lock lock(mutex_);
        std::swap(inbox, inbox_);
    }
    for (Accepted& accepted : inbox.sockets) open(std::move(accepted));
    for (std::shared_ptr<Job>& job : inbox.jobs) {
        const auto entry = connections_.find(job->connection);
        if (entry != connections_.end()) {
            Connection& connection = *entry->second;
            guard(connection, [&] { connection.handle_job(job); });
        }
        if (job->workspace != nullptr) give_workspace(std::move(job->workspace));
    }
    if (!inbox.shut_down) return;
    is_shutting_down_ = true;
    for (const auto& [number, connection] : connections_) {
        Connection& each = *connection;
        guard(each, [&] { each.shut_down(); });
    }
}

void Loop::open(Accepted accepted) {
    const std::uint64_t number = ++last_number_;
    auto connection = std::make_unique<Connection>(*this, std::move(accepted.socket), number);
    Connection& added = *connection;
    connections_.emplace(number, std::move(connection));
    guard(added, [&] {
        added.open(accepted.is_welcome);
        if (is_shutting_down_) added.shut_down();
    });
}

void Loop::resume_put_off() {
    std::vector<std::uint64_t> numbers;
    std::swap(numbers, put_off_);
    for_each(numbers, [](Connection& connection) { connection.resume(); });
}

// A connection may go on with the next request in its buffer, and hold that answer: it is sent in the next turn.
void Loop::send_held() {
    std::vector<std::uint64_t> numbers;
    std::swap(numbers, held_);
    for_each(numbers, [](Connection& connection) { connection.flush(); });
}

void Loop::check_deadlines() {
    const std::int64_t now = now_ns();
    next_check_ = never;
    for (const auto& [number, entry] : connections_) {
        Connection& connection = *entry;
        guard(connection, [&] { connection.check_deadline(now); });
        if (!connection.is_closed()) note_deadline(connection.deadline());
    }
}

void Loop::remove_dead() {
    for (const std::uint64_t number : dead_) connections_.erase(number);
    dead_.clear();
}

// Calls a function with the connections of these numbers that are still there.
template <typename Function>
void Loop::for_each(const std::vector<std::uint64_t>& numbers, Function function) {
    for (const std::uint64_t number : numbers) {
        const auto entry = connections_.find(number);
        if (entry == connections_.end()) continue;
        Connection& connection = *entry->second;
        guard(connection, [&] { function(connection); });
    }
}

// Whatever goes wrong, such as the memory that is used up, ends one connection only.
template <typename Function>
void Loop::guard(Connection& connection, Function function) {
    if (connection.is_closed()) return;
    try {
        function();
    } catch (const std::exception& error) {
        log_bug("serving a connection failed", error.what());
        connection.close();
    }
}

}  // namespace packager::http
