#include "http/listener.hpp"

#include <netdb.h>
#include <netinet/in.h>
#include <sys/socket.h>

#include <cerrno>
#include <cstring>
#include <memory>

#include "error.hpp"

namespace packager::http {
namespace {

constexpr int backlog = 2048;

Error address_unusable(const std::string& host, int port, std::string why) {
    Error error("address-unusable", "cannot listen on " + host + ", port " + std::to_string(port));
    error.why = std::move(why);
    error.hint = "choose a different --port, or an address of this machine";
    return error;
}

struct FreeAddress {
    void operator()(addrinfo* address) const { ::freeaddrinfo(address); }
};

int read_port(int socket) {
    sockaddr_storage address{};
    socklen_t size = sizeof address;
    if (::getsockname(socket, reinterpret_cast<sockaddr*>(&address), &size) < 0) return 0;
    if (address.ss_family == AF_INET6) return ntohs(reinterpret_cast<const sockaddr_in6*>(&address)->sin6_port);
    return ntohs(reinterpret_cast<const sockaddr_in*>(&address)->sin_port);
}

}  // namespace

Listener listen_on(const std::string& host, int port) {
    addrinfo hints{};
    hints.ai_socktype = SOCK_STREAM;
    addrinfo* addresses = nullptr;
    const int result = ::getaddrinfo(host.c_str(), std::to_string(port).c_str(), &hints, &addresses);
    if (result != 0) {
        throw address_unusable(host, port, result == EAI_SYSTEM ? std::strerror(errno) : ::gai_strerror(result));
    }
    const std::unique_ptr<addrinfo, FreeAddress> address(addresses);
    Descriptor socket(
        ::socket(address->ai_family, address->ai_socktype | SOCK_NONBLOCK | SOCK_CLOEXEC, address->ai_protocol));
    const int enabled = 1;
    const bool listens =
        socket.get() >= 0 && ::setsockopt(socket.get(), SOL_SOCKET, SO_REUSEADDR, &enabled, sizeof enabled) == 0 &&
        ::bind(socket.get(), address->ai_addr, address->ai_addrlen) == 0 && ::listen(socket.get(), backlog) == 0;
    if (!listens) throw address_unusable(host, port, std::strerror(errno));
    const int bound = read_port(socket.get());
    return {std::move(socket), bound};
}

}  // namespace packager::http
