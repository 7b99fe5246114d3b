#include "http/output.hpp"

#include <sys/socket.h>
#include <sys/uio.h>

#include <array>
#include <cerrno>

namespace packager::http {
namespace {

constexpr std::size_t max_parts = 16;

// The parts that are left, as many as fit; the end of the last one says whether there are more.
class Parts {
public:
    explicit Parts(std::size_t skipped) : skipped_(skipped) {}

    void add(const void* data, std::size_t size) {
        total_ += size;
        if (skipped_ >= size) {
            skipped_ -= size;
        } else if (count_ < max_parts) {
            auto* const bytes = static_cast<char*>(const_cast<void*>(data));  // sendmsg does not write to them
            parts_[count_++] = {bytes + skipped_, size - skipped_};
            skipped_ = 0;
        }
    }

    std::size_t total() const { return total_; }

    ssize_t send(int socket) {
        if (count_ == 1) return ::send(socket, parts_[0].iov_base, parts_[0].iov_len, MSG_NOSIGNAL);
        msghdr message{};
        message.msg_iov = parts_.data();
        message.msg_iovlen = count_;
        return ::sendmsg(socket, &message, MSG_NOSIGNAL);
    }

private:
    std::array<iovec, max_parts> parts_{};
    std::size_t count_ = 0, skipped_ = 0, total_ = 0;
};

}  // namespace

Sent send_parts(int socket, std::string_view head, std::string_view body, const std::vector<TensorBytes>& tensors,
                std::size_t& sent) {
    for (;;) {
        Parts parts(sent);
        parts.add(head.data(), head.size());
        parts.add(body.data(), body.size());
        for (const TensorBytes& tensor : tensors) parts.add(tensor.data, tensor.size);
        if (sent == parts.total()) return Sent::whole;
        const ssize_t count = parts.send(socket);
        if (count >= 0) {
            sent += static_cast<std::size_t>(count);
        } else if (errno == EAGAIN || errno == EWOULDBLOCK) {
            return Sent::part;
        } else if (errno != EINTR) {
            return Sent::failed;
        }
    }
}

}  // namespace packager::http
