// Stand-ins for the vendors' ingest endpoints, with the rules that matter to a sender. For tests only.
// SPDX-License-Identifier: MIT
#ifndef METER_TESTS_VENDORS_HPP
#define METER_TESTS_VENDORS_HPP

#include <atomic>
#include <filesystem>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

#include "server.hpp"

namespace support {

using nlohmann::json;

// What every stand-in has: a store of ids, and a way to misbehave before or after storing.
class VendorServer {
public:
    // Answers instead of the vendor when it returns something; `stored` tells the two moments apart.
    std::function<std::optional<Reply>(const Request&, bool stored)> interfere = {};
    // No more of that; also while requests are under way.
    void behave() { behaves_ = true; }

    virtual ~VendorServer() = default;
    std::string url() const { return server_->url(); }
    std::size_t requests() const { return server_->count(); }
    const Server& server() const { return *server_; }
    void close() { server_->stop(); }
    // Same port again, as after a restart of the other side.
    void open() {
        const int port = server_ ? server_->port() : 0;
        server_.reset();
        server_ = std::make_unique<Server>([this](const Request& r) { return handle(r); }, port);
        server_->keep_requests = keep_requests;
    }
    std::size_t distinct() const {
        const std::lock_guard lock(mutex_);
        return stored_.size();
    }
    std::size_t doubles() const {
        const std::lock_guard lock(mutex_);
        std::size_t more = 0;
        for (const auto& [id, count] : stored_) more += count - 1;
        return more;
    }
    bool has(const std::string& id) const {
        const std::lock_guard lock(mutex_);
        return stored_.count(id) > 0;
    }
    json event(const std::string& id) const {
        const std::lock_guard lock(mutex_);
        return events_.at(id);
    }
    bool keep_requests = true;
    bool keep_events = true;

protected:
    VendorServer() = default;
    virtual Reply ingest(const json& body) = 0;
    void store(const std::string& id, const json& event) {
        const std::lock_guard lock(mutex_);
        ++stored_[id];
        if (keep_events) events_[id] = event;
    }

private:
    Reply handle(const Request& request) {
        if (auto reply = misbehave(request, false)) return *reply;
        const json body = json::parse(request.body, nullptr, false);
        Reply reply = body.is_discarded() ? Reply{.status = 400, .body = R"({"status":400,"error":"Bad Request"})"} : ingest(body);
        if (auto other = misbehave(request, true)) return *other;
        return reply;
    }
    std::optional<Reply> misbehave(const Request& request, bool stored) const {
        if (!interfere || behaves_) return std::nullopt;
        return interfere(request, stored);
    }

    std::unique_ptr<Server> server_;
    mutable std::mutex mutex_;
    std::map<std::string, std::size_t> stored_;
    std::map<std::string, json> events_;
    std::atomic<bool> behaves_{false};
};

// Lago on Postgres: 100 events, all or nothing, presence and format first, then duplicates, errors by index.
class LagoServer : public VendorServer {
public:
    std::set<std::string> bad = {};  // ids refused for their timestamp
    std::size_t limit = 100;
    LagoServer() { open(); }
    ~LagoServer() override { close(); }

private:
    static Reply unprocessable(json details) {
        return {.status = 422,
                .body = json{{"status", 422}, {"error", "Unprocessable Entity"}, {"code", "validation_errors"}, {"error_details", std::move(details)}}
                            .dump()};
    }
    Reply ingest(const json& body) override {
        if (!body.contains("events") || body["events"].empty()) return unprocessable({{"events", {"no_events"}}});
        const json& events = body["events"];
        if (events.size() > limit) return unprocessable({{"events", {"too_many_events"}}});
        json invalid = json::object(), exists = json::object(), made = json::array();
        std::set<std::string> here;
        for (std::size_t i = 0; i < events.size(); ++i) {
            const std::string id = events[i].value("transaction_id", "");
            if (id.empty()) invalid[std::to_string(i)] = {{"transaction_id", {"value_is_mandatory"}}};
            if (bad.count(id)) invalid[std::to_string(i)] = {{"timestamp", {"invalid_format"}}};
            if (has(id) || !here.insert(id).second) exists[std::to_string(i)] = {{"transaction_id", {"value_already_exist"}}};
            made.push_back({{"transaction_id", id}, {"code", events[i].value("code", "")}});
        }
        if (!invalid.empty()) return unprocessable(invalid);
        if (!exists.empty()) return unprocessable(exists);
        for (const json& event : events) store(event["transaction_id"], event);
        return {.status = 200, .body = json{{"events", made}}.dump()};
    }
};

// FlexPrice: 1000 events, stored one after the other until one is bad, which the 400 does not name.
class FlexpriceServer : public VendorServer {
public:
    std::set<std::string> bad = {};
    FlexpriceServer() { open(); }
    ~FlexpriceServer() override { close(); }

private:
    Reply ingest(const json& body) override {
        for (const json& event : body["events"]) {
            if (bad.count(event["event_id"]))
                return {.status = 400, .body = R"({"code":"validation_error","message":"Request validation failed","http_status_code":400})"};
            if (!has(event["event_id"])) store(event["event_id"], event);  // merged in storage by id and timestamp
        }
        return {.status = 202, .body = R"({"message":"Events accepted for processing"})"};
    }
};

// Polar: all or nothing, 422 by loc, duplicates counted and skipped, events after `now` refused.
class PolarServer : public VendorServer {
public:
    std::set<std::string> bad = {};
    std::string now = "9999";  // ISO text
    PolarServer() { open(); }
    ~PolarServer() override { close(); }

private:
    Reply ingest(const json& body) override {
        const json& events = body["events"];
        json detail = json::array();
        const auto refuse = [&](std::size_t i, const char* field, const char* message) {
            for (const char* shape : {"EventCreateCustomer", "EventCreateExternalCustomer"})
                detail.push_back({{"type", "value_error"}, {"loc", {"body", "events", i, shape, field}}, {"msg", message}, {"input", events[i]}});
            detail.push_back({{"type", "missing"}, {"loc", {"body", "events", i, "EventCreateCustomer", "customer_id"}}, {"msg", "Field required"}});
        };
        for (std::size_t i = 0; i < events.size(); ++i) {
            if (events[i]["timestamp"].get<std::string>() > now)
                refuse(i, "timestamp", "Value error, Timestamp must be in the past.");
            else if (bad.count(events[i]["external_id"]))
                refuse(i, "metadata", "String should have at most 500 characters");
        }
        if (!detail.empty()) return {.status = 422, .body = json{{"error", "RequestValidationError"}, {"detail", detail}}.dump()};
        std::size_t inserted = 0;
        for (const json& event : events) {
            if (has(event["external_id"])) continue;
            store(event["external_id"], event);
            ++inserted;
        }
        return {.status = 200, .body = json{{"inserted", inserted}, {"duplicates", events.size() - inserted}}.dump()};
    }
};

// Autumn: all or nothing, the index before the message, body keys claimed quietly.
class AutumnServer : public VendorServer {
public:
    std::set<std::string> bad = {};
    std::set<std::string> unknown_feature = {};
    std::int64_t now_ms = INT64_MAX;
    AutumnServer() { open(); }
    ~AutumnServer() override { close(); }

private:
    static Reply invalid(std::size_t index, const std::string& message) {
        return {.status = 400, .body = json{{"message", std::to_string(index) + message}, {"code", "invalid_inputs"}, {"env", "sandbox"}}.dump()};
    }
    Reply ingest(const json& body) override {
        for (std::size_t i = 0; i < body.size(); ++i) {
            if (bad.count(body[i]["idempotency_key"])) return invalid(i, ".value: Invalid input: expected number");
            if (body[i]["timestamp"].get<std::int64_t>() > now_ms) return invalid(i, ".timestamp: timestamp cannot be in the future");
        }
        for (const json& event : body)
            if (unknown_feature.count(event["feature_id"]))
                return {.status = 404, .body = R"({"message":"Feature not found","code":"feature_not_found","env":"sandbox"})"};
        for (const json& event : body)
            if (!has(event["idempotency_key"])) store(event["idempotency_key"], event);
        return {.status = 200, .body = R"({"success":true})"};
    }
};

// Zyg: one at a time, and every copy is a new event. Told apart here by the body text.
class ZygServer : public VendorServer {
public:
    ZygServer() { open(); }
    ~ZygServer() override { close(); }

private:
    Reply ingest(const json& event) override {
        store(event["body"], event);
        return {.status = 201, .body = R"({"eventId":"ev_1","message":"Event recorded successfully"})"};
    }
};

// OpenMeter: a loop that stops midway without saying so; copies are dropped silently.
class OpenmeterServer : public VendorServer {
public:
    std::set<std::string> bad = {};
    OpenmeterServer() { open(); }
    ~OpenmeterServer() override { close(); }

private:
    Reply ingest(const json& body) override {
        for (const json& event : body) {
            if (bad.count(event["id"]))
                return {.status = 400, .body = R"({"type":"about:blank","title":"Bad Request","status":400,"detail":"invalid event"})"};
            if (!has(event["id"])) store(event["id"], event);
        }
        return {.status = 204};
    }
};

}  // namespace support

#endif
