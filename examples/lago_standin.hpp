// A stand-in for Lago on a loopback socket, for examples and tests: it takes events as Lago's ingest endpoints do, with the limit on a
// batch, the refusals by index, the duplicates per (subscription, transaction_id) and the key. Everything or nothing of a batch is stored.
// POSIX sockets. SPDX-License-Identifier: MIT
#ifndef LAGO_STANDIN_HPP
#define LAGO_STANDIN_HPP

#include <arpa/inet.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cctype>
#include <cerrno>
#include <charconv>
#include <cstdio>
#include <fstream>
#include <map>
#include <mutex>
#include <set>
#include <string>
#include <string_view>
#include <system_error>
#include <thread>
#include <utility>
#include <vector>

#include "meter.hpp"

class LagoStandin {
public:
    using json = meter::json;

    /// Takes a free port, on which connections are refused until go_online(). With a file, what was stored is appended to it, one batch a
    /// line, and read back by the next stand-in of that file.
    explicit LagoStandin(std::string api_key, std::string file = "") : api_key_(std::move(api_key)), file_(std::move(file)) {
        load();
        listener_ = ::socket(AF_INET, SOCK_STREAM, 0);
        sockaddr_in address{};
        address.sin_family = AF_INET;
        address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
        socklen_t size = sizeof address;
        if (listener_ < 0 || ::bind(listener_, generic(address), size) != 0 || ::getsockname(listener_, generic(address), &size) != 0) fail("socket");
        port_ = ntohs(address.sin_port);
        if (::pipe(wake_) != 0) fail("pipe");
    }

    ~LagoStandin() {
        const char stop = 's';
        if (thread_.joinable() && ::write(wake_[1], &stop, 1) == 1) thread_.join();
        for (const int descriptor : {listener_, wake_[0], wake_[1]}) ::close(descriptor);
    }

    LagoStandin(const LagoStandin&) = delete;
    LagoStandin& operator=(const LagoStandin&) = delete;

    void go_online() {
        if (::listen(listener_, 16) != 0) fail("listen");
        thread_ = std::thread([this] { serve(); });
    }

    std::string url() const { return "http://127.0.0.1:" + std::to_string(port_); }

    std::size_t stored() const {
        const std::lock_guard lock(mutex_);
        return stored_;
    }

private:
    static constexpr std::size_t batch_limit = 100;
    static constexpr std::size_t head_limit = 64 * 1024, body_limit = 16 * 1024 * 1024;

    struct Answer {
        int status = 200;
        json body = {};
    };
    struct Request {
        std::string method, path;
        std::map<std::string, std::string> headers;  // names in lower case
        std::string body;
    };

    // --- Lago's rules ------------------------------------------------------------------------------

    Answer answer(const Request& request) {
        if (request.method != "POST" || !request.path.starts_with("/api/v1/events")) return {404, {{"status", 404}, {"error", "Not Found"}}};
        if (key_of(request) != api_key_) return {401, {{"status", 401}, {"error", "Unauthorized"}}};
        const json body = json::parse(request.body, nullptr, false);
        if (!body.is_object()) return bad_request("error occurred while parsing request parameters");
        if (request.path == "/api/v1/events/batch") return take_batch(body.value("events", json::array()));
        if (request.path == "/api/v1/events") return body.contains("event") ? take_one(body["event"]) : bad_request("param is missing: event");
        return {404, {{"status", 404}, {"error", "Not Found"}}};
    }

    /// The second word of "Authorization: Bearer <key>".
    static std::string key_of(const Request& request) {
        const auto header = request.headers.find("authorization");
        if (header == request.headers.end()) return {};
        const auto space = header->second.find(' ');
        return space == std::string::npos ? std::string() : header->second.substr(space + 1);
    }

    Answer take_one(const json& event) {
        const Answer batch = take_batch(json::array({event}));
        if (batch.status == 200) return {200, {{"event", batch.body["events"][0]}}};
        return unprocessable(batch.body["error_details"]["0"]);
    }

    Answer take_batch(const json& events) {
        if (!events.is_array() || events.empty()) return unprocessable({{"events", {"no_events"}}});
        if (events.size() > batch_limit) return unprocessable({{"events", {"too_many_events"}}});
        if (const json errors = invalid(events); !errors.empty()) return unprocessable(errors);
        const std::lock_guard lock(mutex_);
        if (const json errors = duplicates(events); !errors.empty()) return unprocessable(errors);
        store(events);
        json answers = json::array();
        for (const json& event : events) answers.push_back(shown(event));
        return {200, {{"events", answers}}};
    }

    /// First round: what an event lacks by itself.
    static json invalid(const json& events) {
        json errors = json::object();
        for (std::size_t i = 0; i < events.size(); ++i) {
            json wrong = json::object();
            for (const char* field : {"transaction_id", "code"}) {
                if (text(events[i], field).find_first_not_of(" \t\r\n") == std::string::npos) wrong[field] = {"value_is_mandatory"};
            }
            if (!is_unix_time(events[i])) wrong["timestamp"] = {"invalid_format"};
            if (!wrong.empty()) errors[std::to_string(i)] = std::move(wrong);
        }
        return errors;
    }

    /// Second round: what is there already, or comes twice in the batch; then the second one is to blame.
    json duplicates(const json& events) const {
        json errors = json::object();
        std::set<Key> here;
        for (std::size_t i = 0; i < events.size(); ++i) {
            const Key key = key_of(events[i]);
            if (!key.first.empty() && (keys_.contains(key) || !here.insert(key).second)) {
                errors[std::to_string(i)] = {{"transaction_id", {"value_already_exist"}}};
            }
        }
        return errors;
    }

    static Answer unprocessable(json details) {
        return {422, {{"status", 422}, {"error", "Unprocessable Entity"}, {"code", "validation_errors"}, {"error_details", std::move(details)}}};
    }
    static Answer bad_request(const std::string& why) { return {400, {{"status", 400}, {"error", "BadRequest: " + why}}}; }

    static json shown(const json& event) {
        return {{"transaction_id", event["transaction_id"]},
                {"code", event["code"]},
                {"timestamp", event.value("timestamp", json())},
                {"external_subscription_id", event.value("external_subscription_id", json())},
                {"precise_total_amount_cents", event.value("precise_total_amount_cents", json())},
                {"properties", event.value("properties", json::object())},
                {"lago_customer_id", nullptr},
                {"lago_subscription_id", nullptr}};
    }

    static std::string text(const json& event, const char* field) {
        if (!event.is_object() || !event.contains(field) || event[field].is_null()) return {};
        return event[field].is_string() ? event[field].get<std::string>() : event[field].dump();
    }

    /// Unix seconds as a number or its text; absent means the time of receipt.
    static bool is_unix_time(const json& event) {
        if (!event.is_object() || !event.contains("timestamp") || event["timestamp"].is_null()) return true;
        return meter::Decimal::parse(text(event, "timestamp")).has_value();
    }

    // --- what was stored ---------------------------------------------------------------------------

    using Key = std::pair<std::string, std::string>;  // subscription, transaction_id
    static Key key_of(const json& event) { return {text(event, "external_subscription_id"), text(event, "transaction_id")}; }

    void store(const json& events) {
        if (!file_.empty()) {
            std::ofstream out(file_, std::ios::app | std::ios::binary);
            if (!(out << events.dump() + "\n" << std::flush)) fail(file_.c_str());
        }
        remember(events);
    }

    void remember(const json& events) {
        for (const json& event : events) keys_.insert(key_of(event));
        stored_ += events.size();
    }

    /// A last line without its end was cut by a crash before it was answered: that batch was never stored.
    void load() {
        if (file_.empty()) return;
        std::ifstream in(file_, std::ios::binary);
        std::string whole;
        for (std::string line; std::getline(in, line) && !in.eof();) {
            remember(json::parse(line));
            whole += line + "\n";
        }
        in.close();
        std::ofstream(file_ + ".new", std::ios::binary) << whole;
        if (std::rename((file_ + ".new").c_str(), file_.c_str()) != 0) fail(file_.c_str());
    }

    // --- HTTP --------------------------------------------------------------------------------------

    void serve() {
        std::map<int, std::string> connections;  // descriptor -> what was read and not yet answered
        for (;;) {
            std::vector<pollfd> waiting{{wake_[0], POLLIN, 0}, {listener_, POLLIN, 0}};
            for (const auto& connection : connections) waiting.push_back({connection.first, POLLIN, 0});
            if (::poll(waiting.data(), static_cast<nfds_t>(waiting.size()), -1) < 0) continue;
            if (waiting[0].revents != 0) break;
            if (waiting[1].revents != 0) accept_into(connections);
            for (std::size_t i = 2; i < waiting.size(); ++i) {
                if (waiting[i].revents == 0 || converse(waiting[i].fd, connections[waiting[i].fd])) continue;
                ::close(waiting[i].fd);
                connections.erase(waiting[i].fd);
            }
        }
        for (const auto& connection : connections) ::close(connection.first);
    }

    void accept_into(std::map<int, std::string>& connections) const {
        const int connection = ::accept(listener_, nullptr, nullptr);
        if (connection >= 0) connections.emplace(connection, std::string());
    }

    /// Reads what has come and answers every whole request in it. False when the connection is over.
    bool converse(int connection, std::string& buffer) {
        char part[16 * 1024];
        const ssize_t count = ::recv(connection, part, sizeof part, 0);
        if (count <= 0) return false;
        buffer.append(part, static_cast<std::size_t>(count));
        for (;;) {
            const auto head = buffer.find("\r\n\r\n");
            if (head == std::string::npos) return buffer.size() <= head_limit;
            Request request = parse_head(std::string_view(buffer).substr(0, head));
            const std::size_t length = length_of(request), whole = head + 4 + length;
            if (length > body_limit) return send_answer(connection, {413, {{"status", 413}, {"error", "Payload Too Large"}}}) && false;
            if (buffer.size() < whole) {
                const bool asked = buffer.size() == head + 4 && request.headers.contains("expect");
                return !asked || send_text(connection, "HTTP/1.1 100 Continue\r\n\r\n");
            }
            request.body = buffer.substr(head + 4, length);
            buffer.erase(0, whole);
            if (!send_answer(connection, answer(request))) return false;
        }
    }

    static Request parse_head(std::string_view head) {
        Request request;
        const std::string_view first = head.substr(0, head.find("\r\n"));
        const auto one = first.find(' '), two = first.rfind(' ');
        if (one != std::string_view::npos && one < two) {
            request.method = first.substr(0, one);
            request.path = first.substr(one + 1, two - one - 1);
        }
        for (std::size_t at = first.size(); at < head.size();) {
            const std::size_t begin = at + 2, end = std::min(head.find("\r\n", begin), head.size());
            const std::string_view line = head.substr(begin, end - begin);
            at = end;
            const auto colon = line.find(':');
            if (colon == std::string_view::npos) continue;
            std::string name(line.substr(0, colon));
            for (char& c : name) c = static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
            const auto value = line.find_first_not_of(' ', colon + 1);
            request.headers[name] = value == std::string_view::npos ? std::string() : std::string(line.substr(value));
        }
        return request;
    }

    static std::size_t length_of(const Request& request) {
        const auto header = request.headers.find("content-length");
        std::size_t length = 0;
        if (header != request.headers.end()) std::from_chars(header->second.data(), header->second.data() + header->second.size(), length);
        return length;
    }

    static bool send_answer(int connection, const Answer& answer) {
        static const std::map<int, std::string> reasons{{200, "OK"},        {400, "Bad Request"},       {401, "Unauthorized"},
                                                        {404, "Not Found"}, {413, "Payload Too Large"}, {422, "Unprocessable Entity"}};
        const std::string body = answer.body.dump();
        return send_text(connection, "HTTP/1.1 " + std::to_string(answer.status) + " " + reasons.at(answer.status) +
                                         "\r\nContent-Type: application/json; charset=utf-8\r\nContent-Length: " + std::to_string(body.size()) +
                                         "\r\n\r\n" + body);
    }

    static bool send_text(int connection, std::string_view text) {
#ifdef MSG_NOSIGNAL
        const int flags = MSG_NOSIGNAL;
#else
        const int flags = 0;
#endif
        while (!text.empty()) {
            const ssize_t count = ::send(connection, text.data(), text.size(), flags);
            if (count <= 0) return false;
            text.remove_prefix(static_cast<std::size_t>(count));
        }
        return true;
    }

    static sockaddr* generic(sockaddr_in& address) { return reinterpret_cast<sockaddr*>(&address); }
    [[noreturn]] static void fail(const char* what) {
        throw std::system_error(errno, std::generic_category(), std::string("Lago stand-in: ") + what);
    }

    std::string api_key_, file_;
    int listener_ = -1, port_ = 0;
    int wake_[2] = {-1, -1};
    std::thread thread_;
    mutable std::mutex mutex_;
    std::set<Key> keys_;
    std::size_t stored_ = 0;
};

#endif  // LAGO_STANDIN_HPP
