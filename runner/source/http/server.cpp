#include "http/server.hpp"

#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/resource.h>
#include <sys/socket.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <optional>
#include <system_error>
#include <thread>
#include <vector>

#include "cores.hpp"
#include "http/clock.hpp"
#include "http/listener.hpp"
#include "http/loop.hpp"

namespace packager::http {
namespace {

constexpr std::int64_t shutdown_time = 30 * second;
constexpr std::size_t max_loops = 8;
constexpr int spare_descriptors = 64;  // besides those of connections
constexpr int accepted_in_turn = 64;

// The end of a pipe that the handler of signals writes to.
// NOLINTNEXTLINE(cppcoreguidelines-avoid-non-const-global-variables): a handler is given nothing but the signal.
volatile std::sig_atomic_t signal_pipe = -1;

extern "C" void pass_signal_on(int number) {
    const int saved = errno;
    const char byte = static_cast<char>(number);
    static_cast<void>(::write(static_cast<int>(signal_pipe), &byte, 1) < 0);
    errno = saved;
}

// SIGTERM and SIGINT as bytes that can be read.
class Signals {
public:
    Signals() {
        std::array<int, 2> ends{};
        if (::pipe2(ends.data(), O_CLOEXEC | O_NONBLOCK) < 0) {
            throw std::system_error(errno, std::generic_category(), "pipe2");
        }
        read_ = Descriptor(ends[0]);
        write_ = Descriptor(ends[1]);
        signal_pipe = ends[1];
        struct sigaction action{};
        action.sa_handler = pass_signal_on;
        action.sa_flags = SA_RESTART;
        ::sigaction(SIGTERM, &action, nullptr);
        ::sigaction(SIGINT, &action, nullptr);
    }

    int descriptor() const { return read_.get(); }
    std::optional<int> next() const {
        char byte = 0;
        if (::read(read_.get(), &byte, 1) != 1) return std::nullopt;
        return byte;
    }

private:
    Descriptor read_, write_;
};

void allow_descriptors(std::size_t connections) {
    rlimit limit{};
    const auto wanted = static_cast<rlim_t>(connections + spare_descriptors);
    if (::getrlimit(RLIMIT_NOFILE, &limit) < 0 || limit.rlim_cur >= wanted) return;
    limit.rlim_cur = std::min(wanted, limit.rlim_max);
    ::setrlimit(RLIMIT_NOFILE, &limit);  // without it, fewer connections are accepted
}

class Server {
public:
    Server(const Config& config, const Session& session, const Settings& settings, Listener listener)
        : service_(config, session, settings), listener_(std::move(listener)) {
        finished_ = Descriptor(::eventfd(0, EFD_CLOEXEC));
        const auto cores = static_cast<std::size_t>(count_usable_cores());
        const std::size_t count = std::min({settings.threads, cores, max_loops});
        for (std::size_t index = 0; index < std::max<std::size_t>(count, 1); ++index) {
            loops_.push_back(std::make_unique<Loop>(service_));
        }
    }

    // Answers until a signal asks to stop, and returns whether every thread has ended.
    bool run() {
        service_.workers.start();
        for (const std::unique_ptr<Loop>& loop : loops_) {
            threads_.emplace_back([this, &loop] {
                loop->run();
                const std::uint64_t one = 1;
                static_cast<void>(::write(finished_.get(), &one, sizeof one) < 0);
            });
        }
        accept_until_stopped();
        listener_.socket.close();
        for (const std::unique_ptr<Loop>& loop : loops_) loop->shut_down();
        return wait_for_loops() && service_.workers.stop();
    }

private:
    void accept_until_stopped() {
        while (!is_stopping_) {
            const bool is_accepting = accept_again_ <= now_ns();
            std::array<pollfd, 2> sources{
                {{signals_.descriptor(), POLLIN, 0}, {is_accepting ? listener_.socket.get() : -1, POLLIN, 0}}};
            ::poll(sources.data(), sources.size(), timeout());
            handle_signals();
            if (stop_at_ <= now_ns()) is_stopping_ = true;
            if (sources[1].revents != 0) accept_connections();
        }
    }

    int timeout() const {
        const std::int64_t now = now_ns();
        const std::int64_t next = std::min(stop_at_, accept_again_ <= now ? never : accept_again_);
        if (next == never) return -1;
        return static_cast<int>(std::clamp<std::int64_t>((next - now) / 1'000'000 + 1, 0, 60'000));
    }

    // The first SIGTERM lets the server go on for a while, no longer ready; Ctrl-C and a second signal do not.
    void handle_signals() {
        while (const std::optional<int> signal = signals_.next()) {
            service_.is_ready.store(false);
            if (stop_at_ == never && *signal != SIGINT) {
                stop_at_ = now_ns() + to_ns(service_.settings.drain);
            } else {
                is_forced_ = is_stopping_ && *signal == SIGINT;
                is_stopping_ = true;
            }
        }
    }

    // Each connection goes to the thread that is next: connections cost about the same, and all threads have some.
    void accept_connections() {
        for (int count = 0; count < accepted_in_turn; ++count) {
            Descriptor socket(::accept4(listener_.socket.get(), nullptr, nullptr, SOCK_NONBLOCK | SOCK_CLOEXEC));
            if (socket.get() < 0) {
                // Without descriptors or memory, the connection stays in the queue, and would be reported at once.
                if (errno != EAGAIN && errno != EINTR && errno != ECONNABORTED) accept_again_ = now_ns() + second / 10;
                return;
            }
            const int enabled = 1;
            ::setsockopt(socket.get(), IPPROTO_TCP, TCP_NODELAY, &enabled, sizeof enabled);
            const bool is_welcome = service_.connections.fetch_add(1) < service_.settings.max_connections;
            loops_[next_loop_++ % loops_.size()]->add(std::move(socket), is_welcome);
        }
    }

    bool wait_for_loops() {
        const std::int64_t deadline = now_ns() + shutdown_time;
        std::size_t finished = 0;
        while (finished < loops_.size()) {
            const std::int64_t left = deadline - now_ns();
            if (left <= 0 || is_forced_) return abandon_loops();
            std::array<pollfd, 2> sources{{{signals_.descriptor(), POLLIN, 0}, {finished_.get(), POLLIN, 0}}};
            ::poll(sources.data(), sources.size(), static_cast<int>(left / 1'000'000 + 1));
            handle_signals();
            std::uint64_t count = 0;
            if (sources[1].revents != 0 && ::read(finished_.get(), &count, sizeof count) > 0) finished += count;
        }
        for (std::thread& thread : threads_) thread.join();
        return true;
    }

    bool abandon_loops() {
        for (std::thread& thread : threads_) thread.detach();
        return false;
    }

    Signals signals_;
    Service service_;
    Listener listener_;
    Descriptor finished_;
    std::vector<std::unique_ptr<Loop>> loops_;
    std::vector<std::thread> threads_;
    std::size_t next_loop_ = 0;
    std::int64_t stop_at_ = never;
    std::int64_t accept_again_ = 0;
    bool is_stopping_ = false, is_forced_ = false;
};

void print_address(const std::string& host, int port) {
    const std::string address = host.find(':') == std::string::npos ? host : "[" + host + "]";
    std::printf("http://%s:%d\n", address.c_str(), port);
    std::fflush(stdout);
}

}  // namespace

int serve_model(const Config& config, const Session& session, const Settings& settings, const std::string& host,
                int port) {
    allow_descriptors(settings.max_connections);
    Listener listener = listen_on(host, port);
    const int bound = listener.port;
    Server server(config, session, settings, std::move(listener));
    print_address(host, bound);
    if (!server.run()) std::_Exit(0);  // a run cannot be stopped, and uses what would be freed here
    return 0;
}

}  // namespace packager::http
