// A small HTTP/1.1 server on loopback that can misbehave in the ways real ones do. For tests only; POSIX.
// SPDX-License-Identifier: MIT
#ifndef METER_TESTS_SERVER_HPP
#define METER_TESTS_SERVER_HPP

#include <arpa/inet.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <functional>
#include <list>
#include <map>
#include <mutex>
#include <stdexcept>
#include <string>
#include <thread>
#include <utility>
#include <vector>

namespace support {

struct Request {
    std::string method = {}, path = {}, body = {};
    std::map<std::string, std::string> headers = {};  // names in lower case
};

enum class Fault {
    none,
    never_answer,    // until the client gives up
    close_silently,  // after reading the request, without a byte
    reset,           // the same, with a TCP reset
    half_body,       // status, headers and half of the body, then close
    reset_mid_body,  // the same, with a TCP reset
    slow,            // byte by byte, `pause` between them
};

struct Reply {
    int status = 200;
    std::string body = {};
    std::vector<std::pair<std::string, std::string>> headers = {};
    Fault fault = Fault::none;
    std::chrono::milliseconds pause{10};
    std::string raw = {};  // sent as it is, instead of all the above, then closed
};

inline sockaddr_in loopback(int port) {
    sockaddr_in address = {};
    address.sin_family = AF_INET;
    address.sin_port = htons(static_cast<std::uint16_t>(port));
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    return address;
}

// A port on which nothing listens, taken so that nothing else comes to.
class ClosedPort {
public:
    ClosedPort() {
        sockaddr_in address = loopback(0);
        socklen_t size = sizeof address;
        if (::bind(fd_, reinterpret_cast<sockaddr*>(&address), size) != 0) throw std::runtime_error("cannot bind to loopback");
        ::getsockname(fd_, reinterpret_cast<sockaddr*>(&address), &size);
        number_ = ntohs(address.sin_port);
    }
    ClosedPort(const ClosedPort&) = delete;
    ClosedPort& operator=(const ClosedPort&) = delete;
    ~ClosedPort() { ::close(fd_); }
    int number() const { return number_; }

private:
    int fd_ = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), number_ = 0;
};

class Server {
public:
    // The handler is called for one request at a time.
    explicit Server(std::function<Reply(const Request&)> handler, int port = 0) : handler_(std::move(handler)) {
        listener_ = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
        const int on = 1;
        ::setsockopt(listener_, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
        sockaddr_in address = loopback(port);
        socklen_t size = sizeof address;
        // A port that was given may for a moment be another's: of a connection that is made, for one.
        const auto taken = [&] { return ::bind(listener_, reinterpret_cast<sockaddr*>(&address), size) != 0 || ::listen(listener_, 64) != 0; };
        for (int tries = 1; taken(); ++tries) {
            if (port == 0 || tries == 1000) throw std::runtime_error("cannot listen on loopback");
            std::this_thread::sleep_for(std::chrono::milliseconds(20));
        }
        ::getsockname(listener_, reinterpret_cast<sockaddr*>(&address), &size);
        port_ = ntohs(address.sin_port);
        acceptor_ = std::thread([this] { accept_all(); });
    }
    Server(const Server&) = delete;
    Server& operator=(const Server&) = delete;
    ~Server() { stop(); }

    void stop() {
        if (stopping_.exchange(true)) return;
        if (acceptor_.joinable()) acceptor_.join();
        ::close(listener_);
        const auto take = [this] {
            const std::lock_guard lock(mutex_);
            for (const int fd : open_) ::shutdown(fd, SHUT_RDWR);
            return std::move(threads_);
        };
        for (std::thread& thread : take()) thread.join();
    }

    int port() const { return port_; }
    std::string url() const { return "http://127.0.0.1:" + std::to_string(port_); }
    std::vector<Request> requests() const {
        const std::lock_guard lock(mutex_);
        return requests_;
    }
    std::size_t count() const { return count_; }
    std::size_t connections() const { return connections_; }
    bool keep_requests = true;

private:
    bool readable(int fd) const {
        while (!stopping_) {
            pollfd waited{fd, POLLIN, 0};
            if (::poll(&waited, 1, 20) > 0) return true;
        }
        return false;
    }

    void accept_all() {
        while (readable(listener_)) {
            const int fd = ::accept4(listener_, nullptr, nullptr, SOCK_CLOEXEC);
            if (fd < 0) continue;
            ++connections_;
            const std::lock_guard lock(mutex_);
            open_.push_back(fd);
            threads_.emplace_back([this, fd] {
                serve(fd);
                const std::lock_guard done(mutex_);
                open_.remove(fd);
                ::close(fd);
            });
        }
    }

    void serve(int fd) {
        std::string buffer;
        Request request;
        while (read_request(fd, buffer, request)) {
            ++count_;
            const Reply reply = [&] {
                const std::lock_guard one(handling_);
                if (keep_requests) {
                    const std::lock_guard lock(mutex_);
                    requests_.push_back(request);
                }
                return handler_(request);
            }();
            if (!answer(fd, reply)) return;
        }
    }

    bool more(int fd, std::string& buffer) const {
        char bytes[65536];
        if (!readable(fd)) return false;
        const ssize_t got = ::recv(fd, bytes, sizeof bytes, 0);
        if (got <= 0) return false;
        buffer.append(bytes, static_cast<std::size_t>(got));
        return true;
    }

    bool read_request(int fd, std::string& buffer, Request& request) const {
        request = {};
        std::size_t end;
        while ((end = buffer.find("\r\n\r\n")) == std::string::npos)
            if (!more(fd, buffer)) return false;
        std::string head = buffer.substr(0, end + 2);
        buffer.erase(0, end + 4);
        std::size_t line = head.find("\r\n");
        const std::string first = head.substr(0, line);
        request.method = first.substr(0, first.find(' '));
        const std::size_t path = first.find(' ') + 1;
        request.path = first.substr(path, first.find(' ', path) - path);
        for (std::size_t from = line + 2; from < head.size(); from = line + 2) {
            line = head.find("\r\n", from);
            std::string name = head.substr(from, head.find(':', from) - from);
            for (char& c : name)
                if (c >= 'A' && c <= 'Z') c = static_cast<char>(c - 'A' + 'a');
            const std::size_t value = head.find_first_not_of(' ', from + name.size() + 1);
            request.headers[name] = value < line ? head.substr(value, line - value) : "";
        }
        const std::size_t length = request.headers.count("content-length") ? std::stoul(request.headers["content-length"]) : 0;
        while (buffer.size() < length)
            if (!more(fd, buffer)) return false;
        request.body = buffer.substr(0, length);
        buffer.erase(0, length);
        return true;
    }

    static bool send_all(int fd, std::string_view text) {
        while (!text.empty()) {
            const ssize_t sent = ::send(fd, text.data(), text.size(), MSG_NOSIGNAL);
            if (sent <= 0) return false;
            text.remove_prefix(static_cast<std::size_t>(sent));
        }
        return true;
    }

    static void reset(int fd) {
        const linger now{1, 0};
        ::setsockopt(fd, SOL_SOCKET, SO_LINGER, &now, sizeof now);
    }

    void wait_for_client(int fd) const {
        char byte;
        while (readable(fd) && ::recv(fd, &byte, 1, 0) > 0) {
        }
    }

    bool answer(int fd, const Reply& reply) const {
        if (!reply.raw.empty()) {
            send_all(fd, reply.raw);
            ::shutdown(fd, SHUT_WR);
            return false;
        }
        if (reply.fault == Fault::never_answer) wait_for_client(fd);
        if (reply.fault == Fault::reset) reset(fd);
        if (reply.fault == Fault::never_answer || reply.fault == Fault::reset || reply.fault == Fault::close_silently) return false;
        std::string text = "HTTP/1.1 " + std::to_string(reply.status) + " status\r\n";
        bool typed = false;
        for (const auto& [name, value] : reply.headers) {
            text += name + ": " + value + "\r\n";
            typed = typed || name == "Content-Type";
        }
        if (!typed && !reply.body.empty()) text += "Content-Type: application/json\r\n";
        if (reply.status != 204) text += "Content-Length: " + std::to_string(reply.body.size()) + "\r\n";
        text += "\r\n" + reply.body;
        if (reply.fault == Fault::half_body || reply.fault == Fault::reset_mid_body) {
            send_all(fd, std::string_view(text).substr(0, text.size() - reply.body.size() / 2 - 1));
            std::this_thread::sleep_for(std::chrono::milliseconds(20));
            if (reply.fault == Fault::reset_mid_body) reset(fd);
            return false;
        }
        if (reply.fault != Fault::slow) return send_all(fd, text);
        for (const char c : text) {
            if (stopping_ || !send_all(fd, std::string_view(&c, 1))) return false;
            std::this_thread::sleep_for(reply.pause);
        }
        return true;
    }

    std::function<Reply(const Request&)> handler_;
    int listener_ = -1, port_ = 0;
    std::atomic<bool> stopping_{false};
    std::atomic<std::size_t> count_{0}, connections_{0};
    std::thread acceptor_;
    mutable std::mutex mutex_;
    std::mutex handling_;
    std::list<int> open_;
    std::list<std::thread> threads_;
    std::vector<Request> requests_;
};

}  // namespace support

#endif
