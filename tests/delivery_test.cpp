// Delivery through the public face, against servers that misbehave. Each test ends with the same assertion: check_balance.
#include "support/delivery.hpp"

#include <sys/wait.h>

#include <fstream>

using namespace meter;
using namespace support;
using namespace std::chrono_literals;

namespace {

HttpResponse respond(int status, std::string body = "", std::vector<std::pair<std::string, std::string>> headers = {}) {
    return {.status = status, .headers = std::move(headers), .body = std::move(body)};
}

HttpResponse lago_ok(const HttpRequest& request) {
    const json body = json::parse(request.body);
    json made = json::array();
    for (const json& event : body["events"]) made.push_back({{"transaction_id", event["transaction_id"]}});
    return respond(200, json{{"events", made}}.dump());
}

UpstreamOptions through(std::shared_ptr<Transport> transport) {
    UpstreamOptions options;
    options.api_key = "k";
    options.transport = std::move(transport);
    return options;
}

const UpstreamReport& only(const FlushReport& report) {
    REQUIRE(report.upstreams.size() == 1);
    check_adds_up(report.upstreams[0]);
    return report.upstreams[0];
}

// Answers with one status, whatever is asked.
std::shared_ptr<ScriptedTransport> always(HttpResponse response) {
    return std::make_shared<ScriptedTransport>([response](const HttpRequest&) { return response; });
}

#ifdef METER_CURL

// ---- the way it should go ------------------------------------------------------------------------

TEST_CASE("delivery: everything recorded reaches Lago in batches of 100, once") {
    LagoServer server;
    Meter m;
    m.record(usage_events(250));
    m.connect(Upstream::lago(towards(server)));
    const UpstreamReport report = only(m.flush());
    CHECK(report.delivered == 250);
    CHECK(report.requests == 3);
    CHECK(report.pending == 0);
    CHECK(report.status.state == UpstreamState::idle);
    check_balance(m, "lago", server);

    const json first = server.event(event_id(7));
    CHECK(first["code"] == "api_call");
    CHECK(first["external_subscription_id"] == "sub_1");
    CHECK(first["timestamp"] == "1772362800.007");
    CHECK(first["properties"]["tokens"] == 7);
    const auto request = server.server().requests().at(0);
    CHECK(request.path == "/api/v1/events/batch");
    CHECK(request.headers.at("authorization") == "Bearer test-key");
    CHECK(request.headers.at("content-type") == "application/json");
    CHECK(json::parse(request.body)["events"].size() == 100);
}

TEST_CASE("delivery: what is delivered is not sent again, by this process or the next") {
    LagoServer server;
    TempFolder folder;
    {
        Meter m({.path = folder.file("usage.db")});
        m.record(usage_events(10));
        m.connect(Upstream::lago(towards(server)));
        CHECK(m.flush().complete());
        CHECK(m.flush().complete());
        CHECK(server.requests() == 1);
    }
    Meter m({.path = folder.file("usage.db")});
    m.connect(Upstream::lago(towards(server)));
    CHECK(only(m.flush()).requests == 0);
    m.record(usage_event(10));
    CHECK(only(m.flush()).delivered == 1);
    check_balance(m, "lago", server);
}

TEST_CASE("delivery: events that were there already count as delivered, the others go") {
    LagoServer server;
    Meter first, second;
    first.record(usage_events(30));
    first.connect(Upstream::lago(towards(server)));
    first.flush();
    second.record(usage_events(50));
    second.connect(Upstream::lago(towards(server)));
    const UpstreamReport report = only(second.flush());
    CHECK(report.delivered == 50);
    CHECK(report.duplicates == 30);
    CHECK(report.requests == 2);
    check_balance(second, "lago", server);
}

TEST_CASE("delivery: of a batch only the events a 422 names are parked, with the vendor's words") {
    LagoServer server;
    server.bad = {event_id(3), event_id(120)};
    Meter m;
    m.record(usage_events(150));
    m.connect(Upstream::lago(towards(server)));
    const UpstreamReport report = only(m.flush());
    CHECK(report.delivered == 148);
    CHECK(report.parked == 2);
    CHECK(report.requests == 4);
    REQUIRE(report.parked_by.size() == 1);
    CHECK(report.parked_by[0].first == "refused");
    const auto parked = m.parked("lago");
    REQUIRE(parked.size() == 2);
    CHECK(parked[0].event.id == event_id(3));
    CHECK(parked[0].event.properties["tokens"] == 3);
    CHECK(parked[0].status == 422);
    CHECK(parked[0].reason == "refused");
    CHECK(parked[0].text.find("invalid_format") != std::string::npos);
    CHECK(parked[1].event.id == event_id(120));
    CHECK(m.parked("lago", 100, parked[0].event.sequence).size() == 1);
    check_balance(m, "lago", server);

    SECTION("released, they are sent again and may be parked again") {
        server.bad = {event_id(120)};
        CHECK(m.release("lago") == 2);
        CHECK(m.balance("lago").pending == 2);
        CHECK(m.balance("lago").holds());
        const UpstreamReport again = only(m.flush());
        CHECK(again.delivered == 1);
        CHECK(again.parked == 1);
        CHECK(m.release("lago", std::vector<std::int64_t>{parked[0].event.sequence}) == 0);
        CHECK(m.release("lago", std::vector<std::int64_t>{parked[1].event.sequence}) == 1);
        check_balance(m, "lago", server);
    }
}

TEST_CASE("delivery: duplicates and refusals in one answer are told apart") {
    LagoServer server;
    Meter earlier, m;
    earlier.record(usage_events(5));
    earlier.connect(Upstream::lago(towards(server)));
    earlier.flush();
    server.bad = {event_id(7)};
    m.record(usage_events(10));
    m.connect(Upstream::lago(towards(server)));
    const UpstreamReport report = only(m.flush());
    CHECK(report.delivered == 9);
    CHECK(report.duplicates == 5);
    CHECK(report.parked == 1);
    check_balance(m, "lago", server);
}

TEST_CASE("delivery: a server with a smaller limit gets smaller batches") {
    LagoServer server;
    server.limit = 10;
    Meter m;
    m.record(usage_events(95));
    m.connect(Upstream::lago(towards(server)));
    CHECK(only(m.flush()).delivered == 95);
    CHECK(server.requests() < 25);
    check_balance(m, "lago", server);
}

TEST_CASE("delivery: 413 halves the batch until it fits, and parks an event that alone is too large") {
    LagoServer server;
    server.interfere = [](const Request& r, bool) -> std::optional<Reply> {
        if (r.body.size() > 2000) return Reply{.status = 413, .body = "<html>Request Entity Too Large</html>"};
        return std::nullopt;
    };
    Meter m;
    m.record(usage_events(60));
    Event large = usage_event(60);
    large.properties["text"] = std::string(5000, 'x');
    m.record(large);
    m.record(usage_event(61));
    m.connect(Upstream::lago(towards(server)));
    const UpstreamReport report = only(m.flush());
    CHECK(report.delivered == 61);
    CHECK(report.parked == 1);
    CHECK(m.parked("lago").at(0).reason == "too_large");
    check_balance(m, "lago", server);
}

// ---- the ways it can go wrong --------------------------------------------------------------------

TEST_CASE("delivery: nothing listens: everything stays, the wait is stored, coming online ends it") {
    TempFolder folder;
    LagoServer server;
    const UpstreamOptions there = towards(server);
    server.close();
    {
        Meter m({.path = folder.file("usage.db"), .random = [] { return ~std::uint64_t{0}; }});
        m.record(usage_events(120));
        m.connect(Upstream::lago(there));
        const UpstreamReport report = only(m.flush());
        CHECK(report.status.state == UpstreamState::waiting);
        CHECK(report.status.next_attempt.has_value());
        CHECK_FALSE(report.status.reason.empty());
        CHECK(report.pending == 120);
        check_balance(m, "lago", server);
    }
    server.open();
    Meter m({.path = folder.file("usage.db")});
    m.connect(Upstream::lago(there));
    m.record(usage_event(120));
    const std::size_t before = server.requests();
    CHECK(only(m.flush()).status.state == UpstreamState::waiting);  // neither the restart nor the new event ended it
    CHECK(server.requests() == before);
    m.set_online(true);
    CHECK(only(m.flush()).delivered == 121);
    check_balance(m, "lago", server);
}

TEST_CASE("delivery: whatever a broken server does, nothing is lost and nothing is doubled") {
    LagoServer server;
    const Fault fault = GENERATE(Fault::close_silently, Fault::reset, Fault::half_body, Fault::reset_mid_body, Fault::never_answer, Fault::slow);
    const bool stored = GENERATE(false, true);
    CAPTURE(static_cast<int>(fault), stored);
    ManualClock clock;
    int left = 1;
    server.interfere = [&](const Request&, bool after) -> std::optional<Reply> {
        if (after != stored || left == 0) return std::nullopt;
        --left;
        return Reply{.body = std::string(500, ' '), .fault = fault, .pause = 20ms};
    };
    Meter m({.clock = [&] { return clock.now(); }});
    m.record(usage_events(120));
    UpstreamOptions options = towards(server);
    options.request_timeout = 300ms;
    m.connect(Upstream::lago(options));
    const UpstreamReport report = only(m.flush());
    CHECK(report.pending == 120);
    CHECK(report.delivered == 0);
    CHECK(m.balance("lago").holds());
    clock.advance(10min);
    m.connect(Upstream::lago(towards(server)));  // with a patience that a slow machine does not end
    const UpstreamReport second = only(m.flush());
    CHECK(second.delivered == 120);
    CHECK(second.duplicates == (stored ? 100 : 0));
    check_balance(m, "lago", server);
}

TEST_CASE("delivery: a deadline holds against a server that never answers") {
    LagoServer server;
    server.interfere = [](const Request&, bool) { return std::optional(Reply{.fault = Fault::never_answer}); };
    Meter m;
    m.record(usage_events(10));
    m.connect(Upstream::lago(towards(server)));
    const auto start = std::chrono::steady_clock::now();
    const UpstreamReport report = only(m.flush({.deadline = 1s}));
    CHECK(std::chrono::steady_clock::now() - start < 20s);  // one request may take 30 s
    CHECK(report.delivered == 0);
    check_balance(m, "lago", server);
}

TEST_CASE("delivery: a certificate nobody signed pauses nothing and loses nothing") {
    LagoServer server;  // plain HTTP: to TLS it is a broken peer
    Meter m;
    m.record(usage_events(3));
    UpstreamOptions options = towards(server);
    options.base_url.replace(0, 4, "https");
    options.request_timeout = 500ms;
    m.connect(Upstream::lago(options));
    CHECK(only(m.flush()).status.state == UpstreamState::waiting);
    check_balance(m, "lago", server);
}

// ---- known failures of other libraries, each shown absent ----------------------------------------

TEST_CASE("known failure: after one success the server stops, and events are reported sent") {
    LagoServer server;
    server.interfere = [&](const Request&, bool stored) -> std::optional<Reply> {
        if (!stored && server.distinct() > 0) return Reply{.fault = Fault::close_silently};
        return std::nullopt;
    };
    Meter m;
    m.record(usage_events(300));
    m.connect(Upstream::lago(towards(server)));
    const UpstreamReport report = only(m.flush());
    CHECK(report.delivered == 100);
    CHECK(report.pending == 200);
    check_balance(m, "lago", server);
}

TEST_CASE("known failure: an apostrophe loses the event") {
    LagoServer server;
    Meter m;
    std::vector<Event> events;
    const std::string nasty = "O'Brien'); DROP TABLE log; -- \"\\ \xF0\x9F\x92\xA9 \t\n %s";
    for (std::size_t i = 0; i < 3; ++i) {
        Event event = usage_event(i);
        event.id = nasty + std::to_string(i);
        event.name = event.subscription = event.customer = event.source = nasty;
        event.properties = {{nasty, nasty}};
        events.push_back(event);
    }
    m.record(events);
    m.connect(Upstream::lago(towards(server)));
    CHECK(only(m.flush()).delivered == 3);
    CHECK(server.event(nasty + "1")["properties"][nasty] == nasty);
    CHECK(server.event(nasty + "1")["code"] == nasty);
    check_balance(m, "lago", server);
}

TEST_CASE("known failure: two senders produce duplicates, threads of one process") {
    LagoServer server;
    TempFolder folder;
    Meter m({.path = folder.file("usage.db"), .durability = Durability::process});
    m.record(usage_events(1000));
    UpstreamOptions options = towards(server);
    m.connect(Upstream::lago(options));
    std::vector<std::thread> threads;
    for (int i = 0; i < 4; ++i) threads.emplace_back([&] { m.flush(); });
    for (std::thread& thread : threads) thread.join();
    CHECK(server.requests() == 10);
    check_balance(m, "lago", server);
}

TEST_CASE("known failure: two senders produce duplicates, two meters on one file") {
    LagoServer server;
    TempFolder folder;
    Meter a({.path = folder.file("usage.db")}), b({.path = folder.file("usage.db")});
    a.record(usage_events(500));
    b.record(usage_events(500, 500));
    a.connect(Upstream::lago(towards(server)));
    b.connect(Upstream::lago(towards(server)));
    std::thread other([&] { b.flush(); });
    a.flush();
    other.join();
    CHECK(server.requests() == 10);
    check_balance(a, "lago", server);
    CHECK(a.balance("lago") == b.balance("lago"));
}

TEST_CASE("known failure: a lock held once loses all later events") {
    LagoServer server;
    TempFolder folder;
    Meter m({.path = folder.file("usage.db"), .busy_timeout = 50ms});
    m.connect(Upstream::lago(towards(server)));
    m.record(usage_events(5));
    sqlite3* other = nullptr;
    REQUIRE(sqlite3_open(folder.file("usage.db").c_str(), &other) == SQLITE_OK);
    REQUIRE(sqlite3_exec(other, "BEGIN IMMEDIATE", nullptr, nullptr, nullptr) == SQLITE_OK);
    try {
        m.flush();
        FAIL("the lock was not noticed");
    } catch (const Error& error) {
        CHECK(error.code() == ErrorCode::busy);
    }
    try {
        m.record(usage_event(5));
        FAIL("the lock was not noticed");
    } catch (const Error& error) {
        CHECK(error.code() == ErrorCode::busy);
    }
    sqlite3_exec(other, "COMMIT", nullptr, nullptr, nullptr);
    sqlite3_close(other);
    m.record(usage_events(5, 5));
    CHECK(only(m.flush()).delivered == 10);
    check_balance(m, "lago", server);
}

TEST_CASE("known failure: an expired key deletes the batch") {
    LagoServer server;
    bool expired = true;
    server.interfere = [&](const Request&, bool) -> std::optional<Reply> {
        if (expired) return Reply{.status = 401, .body = R"({"status":401,"error":"Unauthorized"})"};
        return std::nullopt;
    };
    Meter m;
    m.record(usage_events(10));
    m.connect(Upstream::lago(towards(server)));
    const UpstreamReport report = only(m.flush());
    CHECK(report.status.state == UpstreamState::paused);
    CHECK(report.status.reason == "HTTP 401: Unauthorized");
    CHECK(report.pending == 10);
    CHECK(only(m.flush()).requests == 0);
    CHECK(server.requests() == 1);
    check_balance(m, "lago", server);
    expired = false;
    SECTION("a new key ends the pause") { m.connect(Upstream::lago(towards(server))); }
    SECTION("resume() ends the pause") { m.resume("lago"); }
    CHECK(only(m.flush()).delivered == 10);
    check_balance(m, "lago", server);
}

TEST_CASE("known failure: a 202 deletes the batch") {
    LagoServer server;
    server.interfere = [&](const Request&, bool) { return std::optional(Reply{.status = 202, .body = R"({"message":"queued"})"}); };
    Meter m;
    m.record(usage_events(10));
    m.connect(Upstream::lago(towards(server)));
    CHECK(only(m.flush()).pending == 10);
    check_balance(m, "lago", server);
}

TEST_CASE("known failure: row ids used again after the table was emptied delete new rows") {
    LagoServer server;
    TempFolder folder;
    Meter m({.path = folder.file("usage.db")});
    m.connect(Upstream::lago(towards(server)));
    for (std::size_t round = 0; round < 5; ++round) {
        m.record(usage_events(20, round * 20));
        CHECK(only(m.flush()).delivered == 20);
        m.record(usage_event(1000 + round));  // recorded after an empty queue, never swept away with it
        CHECK(m.balance("lago").pending == 1);
        m.flush();
    }
    CHECK(m.balance("lago").recorded == 105);
    check_balance(m, "lago", server);
}

TEST_CASE("known failure: a restart over the size limit wipes unsent events") {
    LagoServer server;
    TempFolder folder;
    std::int64_t kept = 0;
    {
        Meter m({.path = folder.file("usage.db")});
        m.connect(Upstream::lago(towards(server)));
        m.record(usage_events(5000));
        kept = m.balance("lago").pending;
    }
    Meter m({.path = folder.file("usage.db"), .max_bytes = 65536});  // far less than it holds
    m.connect(Upstream::lago(towards(server)));
    CHECK(m.balance("lago").pending == kept);
    CHECK(kept == 5000);
    CHECK(only(m.flush()).delivered == 5000);
    check_balance(m, "lago", server);
}

#endif  // METER_CURL

TEST_CASE("known failure: new traffic ends the back-off") {
    const auto requests_in_ten_seconds = [](std::size_t events_a_step) {
        ManualClock clock;
        std::uint64_t state = 7;
        auto transport = always(respond(503, "busy"));
        Meter m({.clock = [&] { return clock.now(); }, .random = [&] { return state = state * 6364136223846793005u + 1442695040888963407u; }});
        m.connect(Upstream::lago(through(transport)));
        std::size_t made = 0;
        for (int step = 0; step < 1000; ++step) {  // 10 ms each
            m.record(usage_events(events_a_step, made));
            made += events_a_step;
            m.flush();
            clock.advance(10ms);
        }
        CHECK(m.balance("lago").holds());
        CHECK(m.balance("lago").pending == static_cast<std::int64_t>(made));
        return transport->count();
    };
    const std::size_t quiet = requests_in_ten_seconds(1), busy = requests_in_ten_seconds(20);
    CHECK(quiet == busy);
    CHECK(busy < 20);
}

// ---- statuses ------------------------------------------------------------------------------------

TEST_CASE("delivery: what each status does to the queue") {
    struct Row {
        int status;
        const char* body;
        UpstreamState state;
    };
    const Row row = GENERATE(Row{200, "<html>Welcome to the hotel</html>", UpstreamState::waiting}, Row{200, "", UpstreamState::waiting},
                             Row{200, "{\"events\":", UpstreamState::waiting}, Row{200, "{\"ok\":true}", UpstreamState::waiting},
                             Row{200, "{\"events\":[]}", UpstreamState::waiting}, Row{202, "{}", UpstreamState::waiting},
                             Row{204, "", UpstreamState::waiting}, Row{301, "", UpstreamState::paused}, Row{302, "", UpstreamState::paused},
                             Row{307, "", UpstreamState::paused}, Row{400, "{\"error\":\"BadRequest\"}", UpstreamState::paused},
                             Row{401, "", UpstreamState::paused}, Row{403, "{}", UpstreamState::paused}, Row{404, "<html>", UpstreamState::paused},
                             Row{405, "", UpstreamState::paused}, Row{407, "", UpstreamState::paused}, Row{408, "", UpstreamState::waiting},
                             Row{425, "", UpstreamState::waiting}, Row{429, "", UpstreamState::waiting}, Row{500, "", UpstreamState::waiting},
                             Row{502, "<html>", UpstreamState::waiting}, Row{503, "", UpstreamState::waiting}, Row{504, "", UpstreamState::waiting},
                             Row{599, "", UpstreamState::waiting}, Row{103, "", UpstreamState::paused}, Row{999, "", UpstreamState::waiting});
    CAPTURE(row.status, row.body);
    ManualClock clock;
    auto transport = always(respond(row.status, row.body));
    Meter m({.clock = [&] { return clock.now(); }, .random = [] { return ~std::uint64_t{0}; }});
    m.record(usage_events(3));
    m.connect(Upstream::lago(through(transport)));
    const UpstreamReport report = only(m.flush());
    CHECK(report.status.state == row.state);
    CHECK(report.delivered == 0);
    CHECK(report.parked == 0);
    CHECK(m.balance("lago").pending == 3);
    CHECK(m.balance("lago").holds());
    CHECK(transport->count() == 1);

    transport->answer(lago_ok);
    clock.advance(10min);
    m.resume("lago");
    CHECK(only(m.flush()).delivered == 3);
    CHECK(m.balance("lago") == Balance{3, 3, 0, 0, 0});
}

TEST_CASE("delivery: a 422 that names no event stands for one of them: halving finds it") {
    const char* body =
        GENERATE(R"({"error_details":"something is wrong"})", R"({"error_details":{"17":{"timestamp":["invalid_format"]}}})", "<html>", "{}");
    auto transport = std::make_shared<ScriptedTransport>([&](const HttpRequest& request) {
        if (request.body.find(event_id(11)) != std::string::npos) return respond(422, body);
        return lago_ok(request);
    });
    Meter m;
    m.record(usage_events(16));
    m.connect(Upstream::lago(through(transport)));
    const UpstreamReport report = only(m.flush());
    CHECK(report.delivered == 15);
    CHECK(report.parked == 1);
    CHECK(m.parked("lago").at(0).event.id == event_id(11));
    CHECK(report.requests <= 10);
    CHECK(m.balance("lago").holds());
}

TEST_CASE("delivery: a server that refuses every event ends with all of them parked, none lost") {
    auto transport = always(respond(422, "{}"));
    Meter m;
    m.record(usage_events(40));
    m.connect(Upstream::lago(through(transport)));
    CHECK(only(m.flush()).parked == 40);
    CHECK(m.balance("lago") == Balance{40, 0, 0, 40, 0});
    transport->answer(lago_ok);
    CHECK(m.release("lago") == 40);
    CHECK(only(m.flush()).delivered == 40);
    CHECK(m.balance("lago") == Balance{40, 40, 0, 0, 0});
}

// ---- waiting -------------------------------------------------------------------------------------

TEST_CASE("delivery: Retry-After is waited for, as seconds and as a date, and rate limit headers") {
    const auto header = GENERATE(
        std::vector<std::pair<std::string, std::string>>{{"Retry-After", "120"}},
        std::vector<std::pair<std::string, std::string>>{{"Date", "Sun, 01 Mar 2026 12:00:00 GMT"}, {"Retry-After", "Sun, 01 Mar 2026 12:02:00 GMT"}},
        std::vector<std::pair<std::string, std::string>>{{"X-RateLimit-Reset", "120"}, {"X-RateLimit-Remaining", "0"}},
        std::vector<std::pair<std::string, std::string>>{{"RateLimit-Reset", "120"}});
    ManualClock clock;
    auto transport = always(respond(429, "", header));
    Meter m({.clock = [&] { return clock.now(); }, .random = [] { return std::uint64_t{0}; }});
    m.record(usage_events(3));
    m.connect(Upstream::lago(through(transport)));
    CHECK(only(m.flush()).status.next_attempt == noon + std::chrono::seconds(120));
    clock.advance(119s);
    CHECK(only(m.flush()).requests == 0);
    m.set_online(true);  // the server asked for this wait, the network has no say in it
    CHECK(only(m.flush()).requests == 0);
    transport->answer(lago_ok);
    clock.advance(1s);
    CHECK(only(m.flush()).delivered == 3);
    CHECK(m.balance("lago").holds());
}

TEST_CASE("delivery: a Retry-After that makes no sense does not stop the upstream for ever") {
    const char* value = GENERATE("999999999999999", "-5", "soon", "", "99999999999999999999999999", "Sun, 01 Mar 9999 12:00:00 GMT");
    ManualClock clock;
    auto transport = always(respond(503, "", {{"Retry-After", value}, {"Date", "Sun, 01 Mar 2026 12:00:00 GMT"}}));
    Meter m({.clock = [&] { return clock.now(); }});
    m.record(usage_events(3));
    m.connect(Upstream::lago(through(transport)));
    m.flush();
    transport->answer(lago_ok);
    clock.advance(25h);
    CHECK(only(m.flush()).delivered == 3);
}

TEST_CASE("delivery: waits grow with failures up to the cap, spread by the random source") {
    ManualClock clock;
    std::uint64_t random = ~std::uint64_t{0};
    Meter m({.clock = [&] { return clock.now(); }, .random = [&] { return random; }});
    m.record(usage_event(0));
    m.connect(Upstream::lago(through(always(respond(500)))));
    std::chrono::microseconds longest{0};
    for (int i = 0; i < 15; ++i) {
        const auto status = only(m.flush()).status;
        if (!status.next_attempt) continue;
        longest = std::max(longest, *status.next_attempt - clock.now());
        CHECK(*status.next_attempt - clock.now() <= 300s);
        clock.set(*status.next_attempt);
    }
    CHECK(longest > 30s);
    random = 0;  // a wait of nothing does not make one flush ask for ever
    CHECK(only(m.flush()).requests == 1);
}

TEST_CASE("delivery: a clock set back does not make a wait longer than any wait is") {
    ManualClock clock;
    auto transport = always(respond(503));
    Meter m({.clock = [&] { return clock.now(); }, .random = [] { return std::uint64_t{999999}; }});
    m.record(usage_event(0));
    m.connect(Upstream::lago(through(transport)));
    m.flush();
    transport->answer(lago_ok);
    clock.set(noon - 24h * 365);
    CHECK(only(m.flush()).delivered == 1);
}

// ---- answers for the caller ----------------------------------------------------------------------

TEST_CASE("delivery: mistakes of the caller are errors that name the field") {
    Meter m;
    const auto fails = [](ErrorCode code, const char* field, auto&& f) {
        try {
            f();
            FAIL("no error for " << field);
        } catch (const Error& error) {
            CHECK(error.code() == code);
            CHECK(error.field() == field);
        }
    };
    const auto lago = [](UpstreamOptions options) { return Upstream::lago(std::move(options)); };
    fails(ErrorCode::bad_value, "api_key", [&] { lago({}); });
    fails(ErrorCode::bad_value, "api_key", [&] { lago({.api_key = "k\r\nX-Evil: 1"}); });
    fails(ErrorCode::bad_value, "base_url", [&] { lago({.api_key = "k", .base_url = "http://lago.example"}); });
    fails(ErrorCode::bad_value, "base_url", [&] { lago({.api_key = "k", .base_url = "http://127.0.0.1.evil.example"}); });
    fails(ErrorCode::bad_value, "base_url", [&] { lago({.api_key = "k", .base_url = "http://127.0.0.1@evil.example"}); });
    fails(ErrorCode::bad_value, "base_url", [&] { lago({.api_key = "k", .base_url = "ftp://lago.example"}); });
    fails(ErrorCode::bad_value, "base_url", [&] { lago({.api_key = "k", .base_url = "lago.example"}); });
    fails(ErrorCode::bad_value, "base_url", [&] { lago({.api_key = "k", .base_url = "https:///x"}); });
    fails(ErrorCode::bad_value, "base_url", [&] { Upstream::zyg({.api_key = "k"}); });
    fails(ErrorCode::bad_value, "request_timeout", [&] { lago({.api_key = "k", .request_timeout = 0ms}); });
    fails(ErrorCode::bad_value, "batch_events", [&] { lago({.api_key = "k", .batch_events = -1}); });
    CHECK_NOTHROW(lago({.api_key = "k", .base_url = "http://lago.example", .allow_http = true}));
    CHECK_NOTHROW(lago({.api_key = "k", .base_url = "http://[::1]:3000"}));

    fails(ErrorCode::not_found, "upstream", [&] { m.flush({.upstream = "lago"}); });
    fails(ErrorCode::not_found, "upstream", [&] { m.balance("lago"); });
    fails(ErrorCode::not_found, "upstream", [&] { m.parked("lago"); });
    fails(ErrorCode::not_found, "upstream", [&] { m.release("lago"); });
    fails(ErrorCode::not_found, "upstream", [&] { m.resume("lago"); });
    m.connect(lago(through(always(respond(500)))));
    fails(ErrorCode::bad_value, "limit", [&] { m.parked("lago", 0); });
    fails(ErrorCode::bad_value, "limit", [&] { m.parked("lago", 1001); });
    fails(ErrorCode::bad_value, "deadline", [&] { m.flush({.deadline = -1ms}); });
    UpstreamOptions taken = through(always(respond(500)));
    taken.name = "lago";
    fails(ErrorCode::bad_value, "name", [&] { m.connect(Upstream::polar(taken)); });
}

TEST_CASE("delivery: a base address may hold the vendor's version prefix or not") {
    const char* base = GENERATE("http://127.0.0.1:1", "http://127.0.0.1:1/", "http://127.0.0.1:1/api/v1", "http://127.0.0.1:1/api/v1/");
    auto transport = std::make_shared<ScriptedTransport>(lago_ok);
    UpstreamOptions options = through(transport);
    options.base_url = base;
    Meter m;
    m.record(usage_event(0));
    m.connect(Upstream::lago(options));
    m.flush();
    CHECK(transport->requests().at(0).url == "http://127.0.0.1:1/api/v1/events/batch");
}

TEST_CASE("delivery: flush without an upstream does nothing, with an empty log neither") {
    Meter m;
    CHECK(m.flush().upstreams.empty());
    CHECK(m.flush().complete());
    auto transport = std::make_shared<ScriptedTransport>(lago_ok);
    m.connect(Upstream::lago(through(transport)));
    CHECK(m.flush().complete());
    CHECK(transport->count() == 0);
    CHECK(m.balance("lago") == Balance{});
}

TEST_CASE("delivery: progress is told after each answer, the log never shows the key") {
    auto transport = std::make_shared<ScriptedTransport>(lago_ok);
    std::vector<std::string> lines;
    UpstreamOptions options = through(transport);
    options.api_key = "very-secret-key";
    options.log = [&](std::string_view line) { lines.emplace_back(line); };
    Meter m;
    m.record(usage_events(250));
    m.connect(Upstream::lago(options));
    std::vector<FlushProgress> seen;
    m.flush({.progress = [&](const FlushProgress& progress) { seen.push_back(progress); }});
    REQUIRE(seen.size() == 3);
    CHECK(seen[0].delivered == 100);
    CHECK(seen[0].pending == 150);
    CHECK(seen[2].pending == 0);
    CHECK(lines.size() == 3);
    for (const std::string& line : lines) CHECK(line.find("secret") == std::string::npos);
}

TEST_CASE("delivery: status shows state, reason, next attempt and lag") {
    ManualClock clock;
    Meter m({.clock = [&] { return clock.now(); }, .random = [] { return ~std::uint64_t{0}; }});
    m.record(usage_events(3));
    m.connect(Upstream::lago(through(always(respond(503, "down for maintenance")))));
    clock.advance(30s);
    UpstreamStatus status = m.upstreams().at(0);
    CHECK(status.state == UpstreamState::pending);
    CHECK(status.pending == 3);
    CHECK(status.lag == 30s);
    m.flush();
    status = m.upstreams().at(0);
    CHECK(status.state == UpstreamState::waiting);
    CHECK(status.reason == "HTTP 503: down for maintenance");
    CHECK(status.next_attempt > clock.now());
}

// ---- six vendors ---------------------------------------------------------------------------------

#ifdef METER_CURL

Event notice_event(std::size_t i) {
    Event event = usage_event(i);
    event.notice = Notice{"text of " + event.id, Severity::warning, true};
    return event;
}

TEST_CASE("vendors: the same log goes to six upstreams, each its own way, all in one flush") {
    LagoServer lago;
    FlexpriceServer flexprice;
    PolarServer polar;
    AutumnServer autumn;
    ZygServer zyg;
    OpenmeterServer openmeter;
    Meter m;
    std::vector<Event> events = usage_events(240);
    for (std::size_t i = 0; i < 10; ++i) events.push_back(notice_event(240 + i));
    m.record(events);
    m.connect(Upstream::lago(towards(lago)));
    m.connect(Upstream::flexprice(towards(flexprice)));
    m.connect(Upstream::polar(towards(polar)));
    m.connect(Upstream::autumn(towards(autumn)));
    m.connect(Upstream::zyg(towards(zyg)));
    m.connect(Upstream::openmeter(towards(openmeter)));
    const FlushReport report = m.flush();
    REQUIRE(report.upstreams.size() == 6);
    CHECK(report.complete());
    for (const UpstreamReport& upstream : report.upstreams) check_adds_up(upstream);
    for (const auto& [name, server] : std::initializer_list<std::pair<const char*, const VendorServer*>>{
             {"lago", &lago}, {"flexprice", &flexprice}, {"polar", &polar}, {"autumn", &autumn}, {"openmeter", &openmeter}, {"zyg", &zyg}}) {
        CAPTURE(name);
        CHECK(server->distinct() == (server == &zyg ? 10u : 250u));
        check_balance(m, name, *server);
    }
    CHECK(lago.requests() == 3);
    CHECK(flexprice.requests() == 1);
    CHECK(polar.requests() == 1);
    CHECK(autumn.requests() == 1);
    CHECK(zyg.requests() == 10);
    CHECK(openmeter.requests() == 3);
    CHECK(m.balance("zyg").recorded == 10);
    CHECK(m.balance("zyg").skipped == 240);
    CHECK(zyg.event("text of e0000240")["customer"]["externalId"] == "acme");
    CHECK(flexprice.server().requests().at(0).headers.at("x-api-key") == "test-key");
    CHECK(openmeter.server().requests().at(0).headers.at("content-type") == "application/cloudevents-batch+json");
    CHECK(autumn.server().requests().at(0).headers.at("x-api-version") == "2.1");
}

TEST_CASE("vendors: FlexPrice's 400 names no event: halving parks the bad ones, the others go once") {
    FlexpriceServer server;
    server.bad = {event_id(3), event_id(4), event_id(199)};
    Meter m;
    m.record(usage_events(200));
    m.connect(Upstream::flexprice(towards(server)));
    const UpstreamReport report = only(m.flush());
    CHECK(report.delivered == 197);
    CHECK(report.parked == 3);
    CHECK(report.requests < 40);
    check_balance(m, "flexprice", server);
}

TEST_CASE("vendors: OpenMeter stops midway without saying where") {
    OpenmeterServer server;
    server.bad = {event_id(50)};
    Meter m;
    m.record(usage_events(100));
    m.connect(Upstream::openmeter(towards(server)));
    CHECK(only(m.flush()).parked == 1);
    check_balance(m, "openmeter", server);
}

TEST_CASE("vendors: Polar's 422 parks by loc, its duplicates are counted") {
    PolarServer server;
    server.bad = {event_id(1), event_id(9)};
    Meter earlier, m;
    earlier.record(usage_events(1));
    earlier.connect(Upstream::polar(towards(server)));
    earlier.flush();
    m.record(usage_events(20));
    m.connect(Upstream::polar(towards(server)));
    const UpstreamReport report = only(m.flush());
    CHECK(report.delivered == 18);
    CHECK(report.duplicates == 1);
    CHECK(report.parked == 2);
    CHECK(report.requests == 2);
    CHECK(m.parked("polar").at(0).text.find("500 characters") != std::string::npos);
    check_balance(m, "polar", server);
}

TEST_CASE("vendors: Autumn refuses a batch for one event, by index or by feature") {
    AutumnServer server;
    server.bad = {event_id(7)};
    Meter m;
    std::vector<Event> events = usage_events(30);
    events[20].name = "nope";
    server.unknown_feature = {"nope"};
    m.record(events);
    m.connect(Upstream::autumn(towards(server)));
    const UpstreamReport report = only(m.flush());
    CHECK(report.delivered == 28);
    CHECK(report.parked == 2);
    CHECK(m.parked("autumn").at(1).status == 404);
    check_balance(m, "autumn", server);
}

TEST_CASE("vendors: Autumn's 409 on a resent batch means it arrived") {
    auto transport = std::make_shared<ScriptedTransport>([](const HttpRequest&) {
        return respond(409,
                       R"({"message":"Another request with idempotency key track:x has already been received","code":"duplicate_idempotency_key"})");
    });
    Meter m;
    m.record(usage_events(4));
    m.connect(Upstream::autumn(through(transport)));
    const UpstreamReport report = only(m.flush());
    CHECK(report.delivered == 4);
    CHECK(report.duplicates == 4);
    CHECK(m.balance("autumn").holds());
}

TEST_CASE("vendors: an event the vendor would lose in silence is parked unsent") {
    FlexpriceServer server;
    Meter m;
    std::vector<Event> events = usage_events(3);
    events[1].customer.clear();
    m.record(events);
    m.connect(Upstream::flexprice(towards(server)));
    const UpstreamReport report = only(m.flush());
    CHECK(report.delivered == 2);
    CHECK(report.unsent == 1);
    CHECK(m.parked("flexprice").at(0).reason == "unsendable");
    CHECK(m.parked("flexprice").at(0).text == "external_customer_id is required");
    check_balance(m, "flexprice", server);
}

// ---- selection and redaction ---------------------------------------------------------------------

TEST_CASE("selection: each upstream gets what was chosen for it, the balance is about that") {
    LagoServer large, rest;
    Meter m;
    m.record(usage_events(150));
    UpstreamOptions options = towards(large);
    options.name = "large";
    options.selection = Filter::equals("model", "large");
    m.connect(Upstream::lago(options));
    options = towards(rest);
    options.name = "rest";
    options.selection = Filter::where("model", Operator::ne, "large");
    m.connect(Upstream::lago(options));
    const FlushReport report = m.flush();
    REQUIRE(report.upstreams.size() == 2);
    for (const UpstreamReport& upstream : report.upstreams) check_adds_up(upstream);
    CHECK(m.balance("large") == Balance{75, 75, 0, 0, 75});
    CHECK(m.balance("rest") == Balance{75, 75, 0, 0, 75});
    CHECK(large.has(event_id(1)));
    CHECK(rest.has(event_id(2)));
    check_balance(m, "large", large);
    check_balance(m, "rest", rest);
}

TEST_CASE("selection: thousands of events passed over cost no request") {
    LagoServer server;
    Meter m;
    m.record(usage_events(12000));
    UpstreamOptions options = towards(server);
    options.selection = Filter::equals("tokens", 11999);
    m.connect(Upstream::lago(options));
    CHECK(only(m.flush()).delivered == 1);
    CHECK(server.requests() == 1);
    CHECK(m.balance("lago") == Balance{1, 1, 0, 0, 11999});
}

TEST_CASE("before_send: removes what it likes, but not what a metric needs; the log keeps all") {
    LagoServer server;
    Meter m;
    m.define(
        {.code = "tokens", .event = "api_call", .aggregation = Aggregation::sum, .property = "tokens", .filter = Filter::equals("tier.plan", "pro")});
    Event event = usage_event(1);
    event.properties = {{"tokens", 5}, {"email", "a@b.example"}, {"tier", {{"plan", "pro"}, {"secret", 1}}}, {"kept", true}};
    m.record(event);
    UpstreamOptions options = towards(server);
    options.pinned = {"kept"};
    options.before_send = [](Event& e) {
        e.properties = json::object();
        e.id = "forged";
        e.timestamp = Timestamp();
    };
    m.connect(Upstream::lago(options));
    m.flush();
    CHECK(server.event(event_id(1))["properties"] == json::parse(R"({"tokens":5,"tier":{"plan":"pro"},"kept":true})"));
    CHECK(m.find(event_id(1))->properties["email"] == "a@b.example");
    check_balance(m, "lago", server);
}

TEST_CASE("before_send: an event it throws for is parked with its words") {
    LagoServer server;
    Meter m;
    m.record(usage_events(3));
    UpstreamOptions options = towards(server);
    options.before_send = [](Event& e) {
        if (e.id == event_id(1)) throw std::runtime_error("no mapping");
    };
    m.connect(Upstream::lago(options));
    const UpstreamReport report = only(m.flush());
    CHECK(report.delivered == 2);
    CHECK(m.parked("lago").at(0).reason == "before_send");
    CHECK(m.parked("lago").at(0).text == "no mapping");
    SECTION("and goes after a fix of the mapping") {
        options.before_send = nullptr;
        m.connect(Upstream::lago(options));
        m.release("lago");
        CHECK(only(m.flush()).delivered == 1);
    }
    check_balance(m, "lago", server);
}

#endif

// ---- clocks --------------------------------------------------------------------------------------

HttpResponse polar_ok(const HttpRequest& request, Timestamp vendor_now) {
    static const char* const months[] = {"Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"};
    const std::string iso = vendor_now.to_string(0);  // 2026-03-01T12:00:00Z
    const std::string date =
        "Sun, " + iso.substr(8, 2) + " " + months[std::stoi(iso.substr(5, 2)) - 1] + " " + iso.substr(0, 4) + " " + iso.substr(11, 8) + " GMT";
    const json body = json::parse(request.body);
    json detail = json::array();
    for (std::size_t i = 0; i < body["events"].size(); ++i)
        if (Timestamp::parse(body["events"][i]["timestamp"].get<std::string>()) > vendor_now)
            detail.push_back({{"type", "value_error"},
                              {"loc", {"body", "events", i, "EventCreateExternalCustomer", "timestamp"}},
                              {"msg", "Value error, Timestamp must be in the past."}});
    if (!detail.empty()) return respond(422, json{{"error", "RequestValidationError"}, {"detail", detail}}.dump(), {{"Date", date}});
    return respond(200, json{{"inserted", body["events"].size()}, {"duplicates", 0}}.dump(), {{"Date", date}});
}

TEST_CASE("clocks: events of a device that runs ahead are held until the vendor's clock has passed them, and never altered") {
    ManualClock device, vendor;
    device.advance(10min);  // ahead of the vendor
    auto transport = std::make_shared<ScriptedTransport>([&](const HttpRequest& r) { return polar_ok(r, vendor.now()); });
    Meter m({.clock = [&] { return device.now(); }});
    std::vector<Event> events = usage_events(3);
    for (Event& event : events) event.timestamp = vendor.now() - 1min;
    events[1].timestamp = device.now();  // ten minutes ahead
    m.record(events);
    m.connect(Upstream::polar(through(transport)));
    UpstreamReport report = only(m.flush());
    CHECK(report.delivered == 2);
    CHECK(report.held == 1);
    CHECK(report.parked == 0);
    CHECK(report.status.held == 1);
    CHECK(report.status.state == UpstreamState::waiting);
    REQUIRE(report.status.skew);
    CHECK(*report.status.skew <= -9min);
    CHECK(m.balance("polar") == Balance{3, 2, 1, 0, 0});

    // Known now: the next one from the future is held without a request.
    Event later = usage_event(7);
    later.timestamp = device.now();
    m.record(later);
    const std::size_t before = transport->count();
    CHECK(only(m.flush()).held == 1);
    CHECK(transport->count() == before);

    device.advance(10min + 5s);
    vendor.advance(10min + 5s);
    report = only(m.flush());
    CHECK(report.delivered == 2);
    CHECK(m.balance("polar") == Balance{4, 4, 0, 0, 0});
    const json sent = json::parse(transport->requests().back().body)["events"];
    CHECK(sent[0]["external_id"] == event_id(1));
    CHECK(Timestamp::parse(sent[0]["timestamp"].get<std::string>()) == events[1].timestamp);
}

TEST_CASE("clocks: an event in the app's own future waits, the others do not wait for it") {
    ManualClock clock;
    auto transport = std::make_shared<ScriptedTransport>([&](const HttpRequest& r) { return polar_ok(r, clock.now()); });
    Meter m({.clock = [&] { return clock.now(); }});
    std::vector<Event> events = usage_events(3);
    events[0].timestamp = noon + 1h;
    m.record(events);
    m.connect(Upstream::polar(through(transport)));
    UpstreamReport report = only(m.flush());
    CHECK(report.delivered == 2);
    CHECK(report.status.next_attempt == noon + 1h);
    clock.advance(59min);
    CHECK(only(m.flush()).requests == 0);
    clock.advance(2min);
    CHECK(only(m.flush()).delivered == 1);
    CHECK(m.balance("polar").holds());
}

TEST_CASE("clocks: what vendors without a rule about the future take is not held") {
    auto transport = std::make_shared<ScriptedTransport>(lago_ok);
    Meter m;
    Event event = usage_event(0);
    event.timestamp = Timestamp::parse("2999-01-01T00:00:00Z");
    m.record(event);
    m.connect(Upstream::lago(through(transport)));
    CHECK(only(m.flush()).delivered == 1);
}

TEST_CASE("clocks: a wrong Date met once does not hold events for ever") {
    ManualClock clock;
    Timestamp vendor_now = noon - 24h * 365;
    auto transport = std::make_shared<ScriptedTransport>([&](const HttpRequest& r) { return polar_ok(r, vendor_now); });
    Meter m({.clock = [&] { return clock.now(); }});
    Event event = usage_event(0);
    event.timestamp = vendor_now - 1h;
    m.record(event);
    m.connect(Upstream::polar(through(transport)));
    m.flush();
    m.record(usage_event(1));
    CHECK(only(m.flush()).held == 1);
    vendor_now = noon + 25h;
    clock.advance(25h);
    CHECK(only(m.flush()).delivered == 1);
    CHECK(m.balance("polar").holds());
}

// ---- copies that may not be sent -----------------------------------------------------------------

TEST_CASE("windows: Zyg gets every event at most once; what became of an unanswered one is for a person") {
    for (const bool stored : {false, true}) {
        CAPTURE(stored);
        std::size_t arrived = 0;
        bool silent = true;
        auto transport = std::make_shared<ScriptedTransport>([&](const HttpRequest& request) {
            CHECK(request.once);
            if (silent) {
                arrived += stored ? 1 : 0;
                return HttpResponse{.error = "timeout"};
            }
            ++arrived;
            return respond(201, R"({"eventId":"e"})");
        });
        ManualClock clock;
        Meter m({.clock = [&] { return clock.now(); }});
        std::vector<Event> events = usage_events(3);
        for (Event& event : events) event.notice = Notice{"b", Severity::info, false};
        m.record(events);
        UpstreamOptions options = through(transport);
        options.base_url = "https://zyg.example";
        m.connect(Upstream::zyg(options));
        UpstreamReport report = only(m.flush());
        CHECK(report.parked == 1);
        CHECK(report.pending == 2);
        CHECK(m.parked("zyg").at(0).reason == "unknown");
        CHECK(m.parked("zyg").at(0).text == "timeout");
        silent = false;
        clock.advance(10min);
        CHECK(only(m.flush()).delivered == 2);
        CHECK(arrived == (stored ? 3u : 2u));
        CHECK(m.balance("zyg") == Balance{3, 2, 0, 1, 0});
        CHECK(m.release("zyg") == 1);  // a person knows better
        CHECK(only(m.flush()).delivered == 1);
        CHECK(m.balance("zyg").holds());
    }
}

TEST_CASE("windows: what certainly did not reach Zyg is sent again") {
    const HttpResponse failure = GENERATE(HttpResponse{.error = "refused", .sent = false}, respond(429), respond(503), respond(401));
    ManualClock clock;
    auto transport = always(failure);
    Meter m({.clock = [&] { return clock.now(); }});
    Event event = usage_event(0);
    event.notice = Notice{"b", Severity::info, false};
    m.record(event);
    UpstreamOptions options = through(transport);
    options.base_url = "https://zyg.example";
    m.connect(Upstream::zyg(options));
    CHECK(only(m.flush()).parked == 0);
    transport->answer([](const HttpRequest&) { return respond(201, R"({"eventId":"e"})"); });
    clock.advance(10min);
    m.resume("zyg");
    CHECK(only(m.flush()).delivered == 1);
}

TEST_CASE("windows: Autumn recognises a copy for 24 hours: within them it is sent again, after them it is parked") {
    for (const auto wait : {std::chrono::hours(23), std::chrono::hours(25)}) {
        ManualClock clock;
        auto transport = always(HttpResponse{.error = "timeout"});
        TempFolder folder;
        {
            Meter m({.path = folder.file("usage.db"), .clock = [&] { return clock.now(); }});
            m.record(usage_events(3));
            m.connect(Upstream::autumn(through(transport)));
            CHECK(only(m.flush()).pending == 3);
        }
        clock.advance(wait);
        transport->answer([](const HttpRequest&) { return respond(200, R"({"success":true})"); });
        Meter m({.path = folder.file("usage.db"), .clock = [&] { return clock.now(); }});
        m.connect(Upstream::autumn(through(transport)));
        m.record(usage_event(3));  // never sent: not to be mixed up with those that were
        const UpstreamReport report = only(m.flush());
        CHECK(report.delivered == (wait < 24h ? 4 : 1));
        CHECK(report.parked == (wait < 24h ? 0 : 3));
        CHECK(m.balance("autumn").holds());
        if (wait > 24h) {
            CHECK(m.parked("autumn").at(0).reason == "unknown");
            CHECK(report.unsent == 3);
            CHECK(m.release("autumn") == 3);
            CHECK(only(m.flush()).delivered == 3);
        }
    }
}

TEST_CASE("windows: a definite failure later does not make an earlier unknown outcome known") {
    ManualClock clock;
    auto transport = always(HttpResponse{.error = "timeout"});
    Meter m({.clock = [&] { return clock.now(); }});
    m.record(usage_events(3));
    m.connect(Upstream::autumn(through(transport)));
    m.flush();
    clock.advance(1h);
    transport->answer([](const HttpRequest&) { return HttpResponse{.error = "refused", .sent = false}; });
    m.flush();
    clock.advance(24h);
    transport->answer([](const HttpRequest&) { return respond(200, R"({"success":true})"); });
    CHECK(only(m.flush()).parked == 3);
}

TEST_CASE("windows: certain failures leave no mark, however long they last") {
    ManualClock clock;
    auto transport = always(HttpResponse{.error = "refused", .sent = false});
    Meter m({.clock = [&] { return clock.now(); }});
    m.record(usage_events(3));
    m.connect(Upstream::autumn(through(transport)));
    for (int day = 0; day < 5; ++day) {
        m.flush();
        clock.advance(24h);
    }
    transport->answer([](const HttpRequest&) { return respond(200, R"({"success":true})"); });
    CHECK(only(m.flush()).delivered == 3);
}

TEST_CASE("windows: Lago and Polar recognise a copy for ever") {
    ManualClock clock;
    auto transport = always(HttpResponse{.error = "timeout"});
    Meter m({.clock = [&] { return clock.now(); }});
    m.record(usage_events(3));
    m.connect(Upstream::lago(through(transport)));
    m.flush();
    clock.advance(24h * 365);
    transport->answer(lago_ok);
    CHECK(only(m.flush()).delivered == 3);
}

// ---- the background worker -----------------------------------------------------------------------

template <class Condition>
bool eventually(Condition condition) {
    const auto end = std::chrono::steady_clock::now() + 120s;
    while (!condition()) {
        if (std::chrono::steady_clock::now() > end) return false;
        std::this_thread::sleep_for(5ms);
    }
    return true;
}

TEST_CASE("worker: sends what was left at once, then by count, by bytes and by age") {
    auto transport = std::make_shared<ScriptedTransport>(lago_ok);
    Meter m;
    m.record(usage_events(3));
    m.connect(Upstream::lago(through(transport)));
    WorkerOptions options{.events = 10, .bytes = 5000, .age = 1h};
    SECTION("count") {
        m.start(options);
        CHECK(eventually([&] { return m.balance("lago").delivered == 3; }));
        m.record(usage_events(9, 10));
        std::this_thread::sleep_for(100ms);
        CHECK(m.balance("lago").delivered == 3);
        m.record(usage_event(99));
        CHECK(eventually([&] { return m.balance("lago").delivered == 13; }));
    }
    SECTION("bytes") {
        m.start(options);
        CHECK(eventually([&] { return m.balance("lago").delivered == 3; }));
        Event large = usage_event(100);
        large.properties["text"] = std::string(6000, 'x');
        m.record(large);
        CHECK(eventually([&] { return m.balance("lago").delivered == 4; }));
    }
    SECTION("age") {
        options.age = 100ms;
        m.start(options);
        CHECK(eventually([&] { return m.balance("lago").delivered == 3; }));
        m.record(usage_event(100));
        CHECK(eventually([&] { return m.balance("lago").delivered == 4; }));
    }
    m.stop();
    CHECK(m.balance("lago").holds());
}

TEST_CASE("worker: waits as long as it must, and no traffic hurries it") {
    std::mutex mutex;
    std::vector<Timestamp> sent;
    auto transport = std::make_shared<ScriptedTransport>([&](const HttpRequest&) {
        const std::lock_guard lock(mutex);
        sent.push_back(Timestamp::now());
        return respond(503, "", {{"Retry-After", "1"}});
    });
    Meter m({.random = [] { return std::uint64_t{0}; }});
    m.connect(Upstream::lago(through(transport)));
    m.start({.events = 1, .age = 5ms});
    std::size_t made = 0;
    REQUIRE(eventually([&] {
        m.record(usage_event(made++));
        return transport->count() == 3;
    }));
    {
        const std::lock_guard lock(mutex);
        for (std::size_t i = 1; i < sent.size(); ++i) CHECK(sent[i] - sent[i - 1] >= 1s);
    }
    transport->answer(lago_ok);
    CHECK(eventually([&] { return m.balance("lago").pending == 0; }));
    CHECK(m.balance("lago").delivered == static_cast<std::int64_t>(made));
}

TEST_CASE("worker: offline it is quiet, coming online wakes it") {
    auto transport = always(HttpResponse{.error = "no route", .sent = false});
    Meter m({.random = [] { return ~std::uint64_t{0}; }});
    m.connect(Upstream::lago(through(transport)));
    m.start({.events = 1, .age = 5ms});
    m.record(usage_event(0));
    CHECK(eventually([&] { return transport->count() >= 1; }));
    m.set_online(false);
    transport->answer(lago_ok);
    const std::size_t before = transport->count();
    m.record(usage_events(5, 1));
    std::this_thread::sleep_for(150ms);
    CHECK(transport->count() <= before + 1);
    m.set_online(true);
    CHECK(eventually([&] { return m.balance("lago").delivered == 6; }));
}

TEST_CASE("worker: wrong thresholds are errors, starting twice is not, stopping twice neither") {
    Meter m;
    for (const WorkerOptions& options : {WorkerOptions{.events = 0}, WorkerOptions{.bytes = 0}, WorkerOptions{.age = 0ms}})
        CHECK_THROWS_AS(m.start(options), Error);
    m.start();
    m.start({.events = 5});
    m.stop();
    m.stop();
    m.start();
}

#ifdef METER_CURL

TEST_CASE("worker: stops at once inside a stalled exchange, and loses nothing") {
    LagoServer server;
    server.interfere = [](const Request&, bool) { return std::optional(Reply{.fault = Fault::never_answer}); };
    Meter m;
    m.record(usage_events(10));
    m.connect(Upstream::lago(towards(server)));
    m.start();
    CHECK(eventually([&] { return server.requests() == 1; }));
    const auto start = std::chrono::steady_clock::now();
    SECTION("by stop()") { m.stop(); }
    SECTION("by the destructor") { m = Meter(); }
    CHECK(std::chrono::steady_clock::now() - start < 20s);  // the exchange would have taken 30
    if (m.upstreams().empty()) return;
    CHECK(m.balance("lago").pending == 10);
    CHECK(m.upstreams().at(0).state == UpstreamState::pending);  // being stopped is no failure of the vendor's
    server.behave();
    CHECK(only(m.flush()).delivered == 10);
    check_balance(m, "lago", server);
}

#endif

// ---- leases --------------------------------------------------------------------------------------

TEST_CASE("leases: while one flushes, another waits until its deadline and says busy") {
    std::atomic<bool> inside{false}, go{false};
    auto transport = std::make_shared<ScriptedTransport>([&](const HttpRequest& request) {
        inside = true;
        while (!go) std::this_thread::sleep_for(2ms);
        return lago_ok(request);
    });
    TempFolder folder;
    Meter m({.path = folder.file("usage.db")});
    m.record(usage_events(3));
    m.connect(Upstream::lago(through(transport)));
    std::thread first([&] { m.flush(); });
    CHECK(eventually([&] { return inside.load(); }));
    const UpstreamReport report = only(m.flush({.deadline = 100ms}));
    CHECK(report.status.state == UpstreamState::busy);
    CHECK(report.requests == 0);
    CHECK(report.pending == 3);
    go = true;
    first.join();
    CHECK(transport->count() == 1);
    CHECK(m.balance("lago").delivered == 3);
}

TEST_CASE("leases: a flusher that slept through its lease changes nothing when it wakes") {
    ManualClock clock;
    std::atomic<bool> inside{false}, go{false};
    auto slow = std::make_shared<ScriptedTransport>([&](const HttpRequest& request) {
        inside = true;
        while (!go) std::this_thread::sleep_for(2ms);
        return lago_ok(request);
    });
    auto quick = std::make_shared<ScriptedTransport>(lago_ok);
    TempFolder folder;
    Meter a({.path = folder.file("usage.db"), .clock = [&] { return clock.now(); }}),
        b({.path = folder.file("usage.db"), .clock = [&] { return clock.now(); }});
    a.record(usage_events(3));
    a.connect(Upstream::lago(through(slow)));
    b.connect(Upstream::lago(through(quick)));
    FlushReport late;
    std::thread sleeper([&] { late = a.flush(); });
    CHECK(eventually([&] { return inside.load(); }));
    clock.advance(2min);  // past the lease
    CHECK(only(b.flush()).delivered == 3);
    go = true;
    sleeper.join();
    CHECK(late.upstreams.at(0).status.state == UpstreamState::busy);
    CHECK(late.upstreams.at(0).delivered == 0);
    check_adds_up(late.upstreams.at(0));
    CHECK(b.balance("lago") == Balance{3, 3, 0, 0, 0});
}

TEST_CASE("leases: one left by a process that died is taken over at once") {
    TempFolder folder;
    auto transport = std::make_shared<ScriptedTransport>(lago_ok);
    Meter m({.path = folder.file("usage.db")});
    m.record(usage_events(3));
    m.connect(Upstream::lago(through(transport)));
    pid_t gone = ::fork();
    if (gone == 0) ::_exit(0);
    ::waitpid(gone, nullptr, 0);
    sqlite3* other = nullptr;
    REQUIRE(sqlite3_open(folder.file("usage.db").c_str(), &other) == SQLITE_OK);
    const std::string leave = "UPDATE upstreams SET lease_owner = '" + std::to_string(gone) +
                              ":1:1', fence = fence + 1, lease_until = " + std::to_string((Timestamp::now() + 30s).micros());
    REQUIRE(sqlite3_exec(other, leave.c_str(), nullptr, nullptr, nullptr) == SQLITE_OK);
    sqlite3_close(other);
    const auto start = std::chrono::steady_clock::now();
    CHECK(only(m.flush()).delivered == 3);
    CHECK(std::chrono::steady_clock::now() - start < 20s);  // its lease had 30 s left
}

// ---- read-back -----------------------------------------------------------------------------------

// A vendor in memory that takes events and lists them.
struct ListingVendor {
    std::string vendor;
    std::vector<json> held = {};
    std::size_t reads = 0;

    HttpResponse operator()(const HttpRequest& request) {
        const json body = json::parse(request.body, nullptr, false);
        if (request.method == "GET" || request.url.ends_with("query") || request.url.ends_with("events.list")) return list(request, body);
        const json& events = body.is_array() ? body : body["events"];
        for (const json& event : events) held.push_back(event);
        if (vendor == "lago") return respond(200, json{{"events", events}}.dump());
        if (vendor == "flexprice") return respond(202, R"({"message":"m"})");
        if (vendor == "polar") return respond(200, json{{"inserted", events.size()}}.dump());
        if (vendor == "autumn") return respond(200, R"({"success":true})");
        return respond(204);
    }

    HttpResponse list(const HttpRequest& request, const json& body) {
        ++reads;
        json rows = json::array();
        const std::size_t page =
            request.url.find("page=") == std::string::npos ? 0 : std::stoul(request.url.substr(request.url.rfind("page=") + 5)) - 1;
        const std::size_t limit = vendor == "autumn" || vendor == "flexprice" ? 1000 : 100;
        const std::size_t first = body.is_object() ? body["offset"].get<std::size_t>() : page * limit;
        for (std::size_t i = first; i < held.size() && rows.size() < limit; ++i) rows.push_back(shown(held[i]));
        const bool more = first + rows.size() < held.size();
        if (vendor == "lago") return respond(200, json{{"events", rows}, {"meta", {{"next_page", more ? json(page + 2) : json()}}}}.dump());
        if (vendor == "flexprice") return respond(200, json{{"events", rows}, {"has_more", more}}.dump());
        if (vendor == "polar") return respond(200, json{{"items", rows}, {"pagination", {{"total_count", held.size()}}}}.dump());
        if (vendor == "autumn") return respond(200, json{{"list", rows}, {"has_more", more}, {"total", rows.size()}}.dump());
        return respond(200, within(request, rows).dump());
    }

    // OpenMeter lists at most 100 of a period and says no more.
    json within(const HttpRequest& request, const json&) const {
        const auto bound = [&](const char* key) {
            std::string text = request.url.substr(request.url.find(key) + std::strlen(key));
            text = text.substr(0, text.find('&'));
            for (std::size_t at; (at = text.find("%3A")) != std::string::npos;) text.replace(at, 3, ":");
            return Timestamp::parse(text);
        };
        json rows = json::array();
        for (const json& event : held) {
            const Timestamp t = Timestamp::parse(event["time"].get<std::string>());
            if (t >= bound("?from=") && t <= bound("&to=") && rows.size() < 100)
                rows.push_back({{"event", event}, {"ingestedAt", "2026-03-01T12:00:00Z"}});
        }
        return rows;
    }

    json shown(json event) const {
        if (vendor == "lago") event["timestamp"] = Timestamp::from_unix(Decimal(event["timestamp"].get<std::string>())).to_string(3);
        if (vendor == "flexprice") event["id"] = event["event_id"];
        if (vendor == "polar") event.erase("external_id");
        if (vendor == "autumn") {
            event.erase("idempotency_key");
            if (!event.contains("value")) event["value"] = 1;  // autumn dossier 4.1
        }
        return event;
    }
};

Upstream upstream_of(const std::string& vendor, const UpstreamOptions& options) {
    if (vendor == "lago") return Upstream::lago(options);
    if (vendor == "flexprice") return Upstream::flexprice(options);
    if (vendor == "polar") return Upstream::polar(options);
    if (vendor == "autumn") return Upstream::autumn(options);
    return Upstream::openmeter(options);
}

TEST_CASE("confirm: what the vendor shows is compared with what was delivered, and the safe repair is offered") {
    const std::string name = GENERATE("lago", "flexprice", "polar", "autumn", "openmeter");
    CAPTURE(name);
    ListingVendor vendor{name};
    auto transport = std::make_shared<ScriptedTransport>([&](const HttpRequest& r) { return vendor(r); });
    ManualClock clock;
    Meter m({.clock = [&] { return clock.now(); }});
    std::vector<Event> events;
    for (std::size_t i = 0; i < 250; ++i) {
        events.push_back(usage_event(i));
        events.back().timestamp = noon - 2h + std::chrono::seconds(i);
    }
    m.record(events);
    m.connect(upstream_of(name, through(transport)));
    CHECK(only(m.flush()).delivered == 250);
    const Period period{noon - 3h, noon};
    Confirmation all = m.confirm(name, period);
    CHECK(all.matching == 250);
    CHECK(all.missing.empty());
    CHECK(all.extra.empty());
    CHECK(m.confirm(name, {noon - 2h + 10s, noon - 2h + 20s}).matching == 10);

    const json lost = vendor.held[100];
    vendor.held.erase(vendor.held.begin() + 100);
    json foreign = lost;
    for (const char* key : {"transaction_id", "event_id", "external_id", "id"})
        if (foreign.contains(key)) foreign[key] = "not ours";
    for (const char* key : {"code", "event_name", "name", "feature_id", "type"})
        if (foreign.contains(key)) foreign[key] = "other";
    vendor.held.push_back(foreign);
    json& changed = vendor.held[50];
    const bool by_id = name == "lago" || name == "flexprice" || name == "openmeter";
    if (by_id) changed[name == "lago" ? "code" : name == "flexprice" ? "event_name" : "type"] = "tampered";
    all = m.confirm(name, period);
    CHECK(all.missing == std::vector<std::int64_t>{101});
    CHECK(all.repairable == std::vector<std::int64_t>{101});
    CHECK(all.extra.size() == 1);
    CHECK(all.different == (by_id ? std::vector<std::int64_t>{51} : std::vector<std::int64_t>{}));
    CHECK(all.matching == (by_id ? 248 : 249));

    CHECK(m.resend(name, all.repairable) == 1);
    CHECK(m.resend(name, all.repairable) == 0);  // pending already
    CHECK(m.balance(name) == Balance{250, 249, 1, 0, 0});
    CHECK(only(m.flush()).delivered == 1);
    CHECK(m.confirm(name, period).missing.empty());
    CHECK(m.balance(name).holds());

    vendor.held.erase(vendor.held.begin() + 100);
    clock.advance(25h);
    CHECK(m.confirm(name, period).missing.size() == 1);
    CHECK(m.confirm(name, period).repairable.size() == (name == "autumn" ? 0u : 1u));
}

TEST_CASE("confirm: trouble and mistakes are errors") {
    Meter m;
    auto transport = always(respond(500, "oops"));
    m.connect(Upstream::lago(through(transport)));
    const auto code = [&](const std::string& upstream, const Period& period) {
        try {
            m.confirm(upstream, period);
        } catch (const Error& error) {
            return error.code();
        }
        FAIL("no error");
        return ErrorCode::io;
    };
    CHECK(code("lago", {noon, noon + 1h}) == ErrorCode::io);
    transport->answer([](const HttpRequest&) { return HttpResponse{.error = "no route"}; });
    CHECK(code("lago", {noon, noon + 1h}) == ErrorCode::io);
    for (const char* body :
         {"<html>", "{}", "{\"events\":17}", "{\"events\":[17]}", "{\"events\":[{}]}", "{\"events\":[{\"timestamp\":\"soon\"}]}"}) {
        transport->answer([body](const HttpRequest&) { return respond(200, body); });
        CHECK(code("lago", {noon, noon + 1h}) == ErrorCode::bad_value);
    }
    CHECK(code("lago", {noon, noon}) == ErrorCode::bad_value);
    CHECK(code("other", {noon, noon + 1h}) == ErrorCode::not_found);
    CHECK(code("", {noon, noon + 1h}) == ErrorCode::not_found);
    CHECK_THROWS_AS(Meter().confirm("", {noon, noon + 1h}), Error);
    UpstreamOptions options = through(transport);
    options.base_url = "https://zyg.example";
    m.connect(Upstream::zyg(options));
    CHECK(code("zyg", {noon, noon + 1h}) == ErrorCode::unsupported);
}

// ---- the air gap ---------------------------------------------------------------------------------

std::string file_text(const std::string& path) {
    std::ifstream file(path, std::ios::binary);
    return {std::istreambuf_iterator<char>(file), {}};
}

TEST_CASE("air gap: what is pending travels in a file and is delivered elsewhere, once") {
    TempFolder folder;
    auto nowhere = always(HttpResponse{.error = "no network", .sent = false});
    auto transport = std::make_shared<ScriptedTransport>(lago_ok);
    Meter device, gateway;
    std::vector<Event> events = usage_events(30);
    events[3].value = Decimal("12345678901234567890.123456789");
    events[3].precise_total_amount_cents = Decimal("1.5");
    events[3].notice = Notice{"it's \"quoted\"\n", Severity::critical, true};
    events[3].extensions = {{"polar", {{"parent_id", "p"}}}};
    events[3].source = "line\nbreak";
    device.record(events);
    device.record_json(R"({"id":"exact","name":"n","properties":{"amount":0.12345678901234567890123}})");
    device.connect(Upstream::lago(through(nowhere)));
    gateway.connect(Upstream::lago(through(transport)));

    const std::string first = folder.file("first.jsonl"), second = folder.file("second.jsonl");
    ExportReport report = device.export_pending("lago", first);
    CHECK(report.events == 31);
    CHECK(report.through == 31);
    CHECK(device.balance("lago").pending == 31);
    ImportReport import = gateway.import_events(first);
    CHECK(import.stored == 31);
    CHECK_FALSE(import.gap);
    import = gateway.import_events(first);
    CHECK(import.stored == 0);
    CHECK(import.duplicates == 31);
    const Event copy = *gateway.find(event_id(3)), original = *device.find(event_id(3));
    CHECK(copy.value == original.value);
    CHECK(copy.precise_total_amount_cents == original.precise_total_amount_cents);
    CHECK(copy.notice == original.notice);
    CHECK(copy.extensions == original.extensions);
    CHECK(copy.source == original.source);
    CHECK(copy.timestamp == original.timestamp);
    CHECK(copy.properties == original.properties);

    CHECK(device.acknowledge_export("lago", report.through) == 31);
    CHECK(device.balance("lago") == Balance{31, 31, 0, 0, 0});
    device.record(usage_events(5, 100));
    CHECK(device.export_pending("lago", second).events == 5);
    CHECK(gateway.import_events(second).stored == 5);
    CHECK(only(gateway.flush()).delivered == 36);
    CHECK(transport->requests().at(0).body.find("0.12345678901234567890123") != std::string::npos);  // every digit made the journey
    CHECK(gateway.balance("lago").holds());
}

TEST_CASE("air gap: a file that never arrived shows as a gap") {
    TempFolder folder;
    Meter device, gateway;
    device.connect(Upstream::lago(through(always(respond(500)))));
    for (std::size_t i = 0; i < 3; ++i) {
        device.record(usage_events(10, i * 10));
        const ExportReport report = device.export_pending("lago", folder.file(std::to_string(i)));
        device.acknowledge_export("lago", report.through);
    }
    CHECK_FALSE(gateway.import_events(folder.file("0")).gap);
    const ImportReport late = gateway.import_events(folder.file("2"));
    REQUIRE(late.gap);
    CHECK(*late.gap == std::pair<std::int64_t, std::int64_t>(11, 20));
}

TEST_CASE("air gap: selections and events set aside are respected") {
    TempFolder folder;
    ManualClock clock;
    auto transport = std::make_shared<ScriptedTransport>([&](const HttpRequest& r) { return polar_ok(r, clock.now()); });
    Meter device({.clock = [&] { return clock.now(); }});
    UpstreamOptions options = through(transport);
    options.selection = Filter::equals("model", "large");
    device.connect(Upstream::polar(options));
    std::vector<Event> events = usage_events(10);
    events[1].timestamp = noon + 1h;  // will be held
    device.record(events);
    CHECK(only(device.flush()).delivered == 4);
    device.record(usage_events(10, 10));
    const ExportReport report = device.export_pending("polar", folder.file("x"));
    CHECK(report.events == 6);
    CHECK(report.first == 2);
    CHECK(device.acknowledge_export("polar", report.through) == 6);
    CHECK(device.balance("polar") == Balance{10, 10, 0, 0, 10});
}

TEST_CASE("air gap: files that are not whole exports are refused before anything is stored") {
    TempFolder folder;
    Meter device, gateway;
    device.connect(Upstream::lago(through(always(respond(500)))));
    device.record(usage_events(5));
    const std::string path = folder.file("good");
    device.export_pending("lago", path);
    const std::string good = file_text(path);
    const auto refused = [&](const std::string& text) {
        const std::string bad = folder.file("bad");
        std::ofstream(bad, std::ios::binary) << text;
        try {
            gateway.import_events(bad);
        } catch (const Error& error) {
            return error.code();
        }
        FAIL("taken: " << text);
        return ErrorCode::io;
    };
    for (std::size_t cut = 0; cut + 1 < good.size(); cut += 37) CHECK(refused(good.substr(0, cut)) == ErrorCode::bad_value);
    CHECK(refused("") == ErrorCode::bad_value);
    CHECK(refused("{}\n") == ErrorCode::bad_value);
    CHECK(refused(std::string(1000, '\0')) == ErrorCode::bad_value);
    CHECK(refused(R"({"meter":"export","format":2,"device":"d","after":0,"through":1})") == ErrorCode::newer_schema);
    CHECK(refused(R"({"meter":"export","format":1,"device":"d","after":-1,"through":1})") == ErrorCode::bad_value);
    CHECK(gateway.list().events.empty());
    CHECK_THROWS_AS(gateway.import_events(folder.file("absent")), Error);
    CHECK_THROWS_AS(device.export_pending("lago", folder.file("no/such/folder")), Error);
    CHECK_THROWS_AS(device.acknowledge_export("lago", 6), Error);
}

}  // namespace
