// What the delivery tests share: events, clocks, a scripted transport, and the one assertion that closes every test.
// SPDX-License-Identifier: MIT
#ifndef METER_TESTS_DELIVERY_HPP
#define METER_TESTS_DELIVERY_HPP

#include <sqlite3.h>

#include <filesystem>
#include <mutex>
#include <string>
#include <vector>

#include "../testing.hpp"
#include "meter.hpp"
#include "vendors.hpp"

namespace support {

using meter::Balance;
using meter::Event;
using meter::HttpRequest;
using meter::HttpResponse;
using meter::Meter;
using meter::Timestamp;

inline const Timestamp noon = Timestamp::parse("2026-03-01T12:00:00Z");

// Time stands still until it is moved.
class ManualClock {
public:
    explicit ManualClock(Timestamp start = noon) : micros_(start.micros()) {}
    Timestamp now() const { return Timestamp(micros_); }
    void advance(std::chrono::microseconds by) { micros_ += by.count(); }
    void set(Timestamp t) { micros_ = t.micros(); }

private:
    std::atomic<std::int64_t> micros_;
};

inline std::string event_id(std::size_t i) {
    std::string digits = std::to_string(i);
    return "e" + std::string(7 - std::min<std::size_t>(7, digits.size()), '0') + digits;
}

inline Event usage_event(std::size_t i, Timestamp at = noon) {
    Event event;
    event.id = event_id(i);
    event.name = "api_call";
    event.customer = "acme";
    event.subscription = "sub_1";
    event.timestamp = at - std::chrono::seconds(3600) + std::chrono::milliseconds(i);
    event.properties = {{"tokens", i}, {"model", i % 2 ? "large" : "small"}};
    return event;
}

inline std::vector<Event> usage_events(std::size_t count, std::size_t from = 0) {
    std::vector<Event> events;
    for (std::size_t i = 0; i < count; ++i) events.push_back(usage_event(from + i));
    return events;
}

// An app's own transport: answers from a function, keeps what was asked.
class ScriptedTransport : public meter::Transport {
public:
    using Script = std::function<HttpResponse(const HttpRequest&)>;
    explicit ScriptedTransport(Script script) : script_(std::move(script)) {}
    // From now on.
    void answer(Script script) {
        const std::lock_guard lock(mutex_);
        script_ = std::move(script);
    }
    HttpResponse exchange(const HttpRequest& request, std::chrono::milliseconds) override { return next(request)(request); }
    std::vector<HttpRequest> requests() const {
        const std::lock_guard lock(mutex_);
        return requests_;
    }
    std::size_t count() const { return requests().size(); }

private:
    Script next(const HttpRequest& request) {
        const std::lock_guard lock(mutex_);
        requests_.push_back(request);
        return script_;
    }
    mutable std::mutex mutex_;
    Script script_;
    std::vector<HttpRequest> requests_;
};

inline meter::UpstreamOptions towards(const VendorServer& server) {
    meter::UpstreamOptions options;
    options.api_key = "test-key";
    options.base_url = server.url();
    return options;
}

// recorded = delivered + pending + parked, and the other side has each delivered event once.
inline void check_balance(const Meter& m, const std::string& upstream, const VendorServer& server) {
    const Balance b = m.balance(upstream);
    INFO("recorded " << b.recorded << " delivered " << b.delivered << " pending " << b.pending << " parked " << b.parked << ", at the server "
                     << server.distinct());
    CHECK(b.holds());
    CHECK(static_cast<std::int64_t>(server.distinct()) == b.delivered);
    CHECK(server.doubles() == 0);
}

inline void check_adds_up(const meter::UpstreamReport& r) {
    INFO("sent " << r.sent << " unsent " << r.unsent << " delivered " << r.delivered << " parked " << r.parked << " returned " << r.returned);
    CHECK(r.sent + r.unsent == r.delivered + r.parked + r.returned);
    std::int64_t by_reason = 0;
    for (const auto& [reason, count] : r.parked_by) by_reason += count;
    CHECK(by_reason == r.parked);
}

// A folder of its own, removed at the end.
class TempFolder {
public:
    TempFolder()
        : path_(std::filesystem::temp_directory_path() / ("meter_delivery_" + std::to_string(::getpid()) + "_" + std::to_string(counter()++))) {
        std::filesystem::create_directories(path_);
    }
    TempFolder(const TempFolder&) = delete;
    TempFolder& operator=(const TempFolder&) = delete;
    ~TempFolder() {
        std::error_code ignored;
        std::filesystem::remove_all(path_, ignored);
    }
    std::string file(const std::string& name) const { return (path_ / name).string(); }

private:
    static int& counter() {
        static int count = 0;
        return count;
    }
    std::filesystem::path path_;
};

}  // namespace support

#endif
