// Recording and the file: what is accepted, what is refused and why, what is on disk afterwards, who may share it.
#include <algorithm>
#include <array>
#include <atomic>
#include <map>
#include <set>
#include <thread>

#include "../meter.hpp"
#include "support/catalogues.hpp"
#include "support/children.hpp"
#include "support/scratch.hpp"
#include "testing.hpp"

#ifdef METER_TEST_CHILDREN
#include <sys/resource.h>
#include <sys/stat.h>
#endif
#ifdef __linux__
#include <sys/mount.h>
#endif

using namespace meter;
using namespace meter_test;

namespace {

const Timestamp noon = Timestamp::parse("2026-03-01T12:00:00Z");

MeterOptions options_for(const std::string& path, std::int64_t chunk = 65536) {
    MeterOptions options;
    options.path = path;
    options.durability = Durability::process;
    options.busy_timeout = std::chrono::minutes(2);  // for slow machines
    options.chunk_events = chunk;
    options.clock = [] { return noon; };
    return options;
}

Event full_event() {
    Event event;
    event.id = "full";
    event.name = "api_call";
    event.customer = "acme";
    event.subscription = "sub_1";
    event.timestamp = Timestamp::parse("2026-02-03T04:05:06.789012Z");
    event.value = Decimal("12.50");
    event.precise_total_amount_cents = Decimal("99.125");
    event.source = "desktop";
    event.properties = {{"tokens", 512}, {"model", "large"}, {"nested", {{"deep", {1, 2, nullptr}}}}, {"on", true}};
    event.notice = Notice{"disk nearly full", Severity::warning, true};
    event.extensions = {{"polar", {{"parent_id", "p-1"}}}};
    return event;
}

void require_same(const Event& a, const Event& b) {
    CHECK(a.id == b.id);
    CHECK(a.name == b.name);
    CHECK(a.customer == b.customer);
    CHECK(a.subscription == b.subscription);
    CHECK(a.timestamp == b.timestamp);
    CHECK(a.value == b.value);
    CHECK(a.precise_total_amount_cents == b.precise_total_amount_cents);
    CHECK(a.source == b.source);
    CHECK(a.properties == b.properties);
    CHECK(a.notice == b.notice);
    CHECK(a.extensions == b.extensions);
}

std::vector<Event> numbered(const std::string& prefix, int from, int to) {
    std::vector<Event> events;
    for (int i = from; i < to; ++i) {
        Event& event = events.emplace_back();
        event.id = prefix + std::to_string(i);
        event.name = i % 3 == 0 ? "api_call" : "storage";
        event.customer = "c" + std::to_string(i % 7);
        event.timestamp = noon + std::chrono::seconds(i);
        event.properties = {{"n", i}, {"model", "m" + std::to_string(i % 5)}};
    }
    return events;
}

std::int64_t count_all(const Meter& meter) { return meter.list({.limit = 1, .count = true}).total.value(); }

// Waits for what the background thread does.
template <class Holds>
bool eventually(Holds&& holds) {
    const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(120);
    while (!holds()) {
        if (std::chrono::steady_clock::now() > deadline) return false;
        std::this_thread::sleep_for(std::chrono::milliseconds(5));
    }
    return true;
}

bool sealed_to(const std::string& path, std::int64_t sequence) {
    return eventually([&] { return PlainDatabase(path).integer("SELECT value FROM meta WHERE key = 'sealed'") >= sequence; });
}

bool is_uuid7(const std::string& id) {
    if (id.size() != 36 || id[14] != '7' || std::string("89ab").find(id[19]) == std::string::npos) return false;
    for (std::size_t i = 0; i < id.size(); ++i) {
        const bool dash = i == 8 || i == 13 || i == 18 || i == 23;
        if (dash != (id[i] == '-')) return false;
        if (!dash && std::string("0123456789abcdef").find(id[i]) == std::string::npos) return false;
    }
    return true;
}

}  // namespace

// ---- ids ----

TEST_CASE("An id that is missing is made: a UUID of version 7 that holds the clock's time") {
    Timestamp now = noon;
    MeterOptions options = options_for(":memory:");
    options.clock = [&now] { return now; };
    Meter m(options);
    const Receipt receipt = m.record({.name = "api_call"});
    CHECK(receipt.status == ReceiptStatus::stored);
    CHECK(receipt.sequence == 1);
    REQUIRE(is_uuid7(receipt.id));
    const std::string digits = receipt.id.substr(0, 8) + receipt.id.substr(9, 4);
    CHECK(std::stoll(digits, nullptr, 16) == noon.micros() / 1000);
    const auto found = m.find(receipt.id);
    REQUIRE(found);
    CHECK(found->id == receipt.id);
    CHECK(found->timestamp == noon);
    CHECK(found->recorded_at == noon);
}

TEST_CASE("Ids made are ordered as the events are: in a batch, at one instant, and when the clock is set back") {
    Timestamp now = noon;
    MeterOptions options = options_for(":memory:");
    options.clock = [&now] { return now; };
    Meter m(options);
    std::vector<std::string> ids;
    for (const Receipt& receipt : m.record(std::vector<Event>(1000, {.name = "a"}))) ids.push_back(receipt.id);
    for (int i = 0; i < 20; ++i) ids.push_back(m.record({.name = "a"}).id);
    now = now - std::chrono::seconds(3);
    for (int i = 0; i < 20; ++i) ids.push_back(m.record({.name = "a"}).id);
    now = now + std::chrono::hours(1);
    for (int i = 0; i < 20; ++i) ids.push_back(m.record({.name = "a"}).id);
    CHECK(std::all_of(ids.begin(), ids.end(), is_uuid7));
    CHECK(std::is_sorted(ids.begin(), ids.end()));
    CHECK(std::set<std::string>(ids.begin(), ids.end()).size() == ids.size());
}

TEST_CASE("Ids of any writing are kept as they are") {
    Scratch scratch;
    Meter m(options_for(scratch.path(), 64));
    const std::vector<std::string> ids{"x",
                                       "0190a1b2-c3d4-7e5f-8a6b-7c8d9e0f1a2b",
                                       "0190A1B2-C3D4-7E5F-8A6B-7C8D9E0F1A2B",
                                       "0190a1b2-c3d4-7e5f-8a6b-7c8d9e0f1a2",
                                       "0190a1b2c3d47e5f8a6b7c8d9e0f1a2b",
                                       "0190a1b2-c3d4-7e5f-8a6b-7c8d9e0f1a2g",
                                       "'; DROP TABLE log; --",
                                       "\xC3\xA9\xF0\x9F\x98\x80",
                                       std::string(limits::id_bytes, 'i'),
                                       "0123456789abcdef",
                                       " x"};
    for (int round = 0; round < 2; ++round) {
        for (const std::string& id : ids) {
            CAPTURE(id, round);
            const Receipt receipt = m.record({.id = id, .name = "a", .timestamp = noon});
            CHECK(receipt.status == (round == 0 ? ReceiptStatus::stored : ReceiptStatus::duplicate));
            CHECK(receipt.id == id);
            CHECK(m.find(id).value().id == id);
        }
        m.record(numbered("fill", 0, 200));
        REQUIRE(sealed_to(scratch.path(), 192));
    }
    CHECK_FALSE(m.find("y"));
    CHECK_FALSE(m.find(""));
    CHECK_FALSE(m.find(std::string(5000, 'x')));
}

// ---- what is recorded is on disk, whole ----

TEST_CASE("Every member of an event is read back as it was recorded") {
    Scratch scratch;
    const std::string path = GENERATE(as<std::string>(), ":memory:", "file");
    const std::string file = path == "file" ? scratch.path() : path;
    Meter m(options_for(file));
    const Event event = full_event();
    const Receipt receipt = m.record(event);
    CHECK(receipt.status == ReceiptStatus::stored);
    const Event found = m.find("full").value();
    require_same(found, event);
    CHECK(found.sequence == 1);
    CHECK(found.recorded_at == noon);
    require_same(m.list().events.at(0), event);
}

TEST_CASE("What record answered for is there for the next to open the file") {
    Scratch scratch;
    const Durability durability = GENERATE(Durability::full, Durability::process);
    MeterOptions options = options_for(scratch.path());
    options.durability = durability;
    {
        Meter m(options);
        m.record(full_event());
        CHECK(PlainDatabase(scratch.path()).integer("SELECT count(*) FROM events") == 1);
    }
    Meter again(options);
    require_same(again.find("full").value(), full_event());
    CHECK(again.record(full_event()).status == ReceiptStatus::duplicate);
    CHECK(again.record({.name = "b"}).sequence == 2);
}

TEST_CASE("A new database can be read by its owner alone") {
#ifdef METER_TEST_CHILDREN
    Scratch scratch;
    Meter m(options_for(scratch.path()));
    m.record({.name = "a"});
    for (const char* suffix : {"", "-wal", "-shm"}) {
        struct stat status {};
        REQUIRE(stat((scratch.path() + suffix).c_str(), &status) == 0);
        CHECK((status.st_mode & 0777) == 0600);
    }
#endif
}

// ---- duplicates and conflicts ----

namespace {

struct Change {
    const char* what;
    void (*change)(Event&);
};

const std::array<Change, 12> changes{{
    {"name", [](Event& e) { e.name = "other"; }},
    {"customer", [](Event& e) { e.customer = "other"; }},
    {"no customer", [](Event& e) { e.customer.clear(); }},
    {"subscription", [](Event& e) { e.subscription = "other"; }},
    {"timestamp", [](Event& e) { e.timestamp = *e.timestamp + std::chrono::microseconds(1); }},
    {"value", [](Event& e) { e.value = Decimal("12.51"); }},
    {"no value", [](Event& e) { e.value.reset(); }},
    {"cents", [](Event& e) { e.precise_total_amount_cents = Decimal("99.1251"); }},
    {"source", [](Event& e) { e.source = "Desktop"; }},
    {"properties", [](Event& e) { e.properties["tokens"] = "512"; }},
    {"notice", [](Event& e) { e.notice->severity = Severity::critical; }},
    {"extensions", [](Event& e) { e.extensions["polar"]["parent_id"] = "p-2"; }},
}};

// However the first event got into the log, the same again is a duplicate and anything else a conflict.
void check_again(Meter& m, std::int64_t sequence) {
    const Receipt same = m.record(full_event());
    CHECK(same.status == ReceiptStatus::duplicate);
    CHECK(same.sequence == sequence);
    CHECK(same.id == "full");
    for (const Change& change : changes) {
        CAPTURE(change.what);
        Event other = full_event();
        change.change(other);
        const Receipt receipt = m.record(other);
        CHECK(receipt.status == ReceiptStatus::conflict);
        CHECK(receipt.sequence == sequence);
        CHECK(receipt.field == "id");
        CHECK_FALSE(receipt.reason.empty());
    }
    require_same(m.find("full").value(), full_event());
}

}  // namespace

TEST_CASE("The same id with the same content is a duplicate, with other content a conflict; neither is stored") {
    Scratch scratch;
    const bool in_memory = GENERATE(false, true);
    Meter m(options_for(in_memory ? ":memory:" : scratch.path(), 64));
    REQUIRE(m.record(full_event()).sequence == 1);
    check_again(m, 1);
    CHECK(count_all(m) == 1);

    m.record(numbered("fill", 0, 2000));  // full chunks are sealed, runs of ids are merged
    if (!in_memory) REQUIRE(sealed_to(scratch.path(), 1984));
    check_again(m, 1);
    CHECK(count_all(m) == 2001);
}

TEST_CASE("What another Meter records is seen behind writes of our own that are no events") {
    Scratch scratch;
    Meter ours(options_for(scratch.path())), theirs(options_for(scratch.path()));
    const std::vector<Event> events = numbered("e", 0, 4);
    ours.record(events[0]);
    theirs.record(events[1]);
    ours.define({.code = "n", .event = "api_call"});
    CHECK(ours.record(events[1]).status == ReceiptStatus::duplicate);
    CHECK(ours.record(events[2]).sequence == 3);
    theirs.record(events[3]);
    ours.define({.code = "m", .event = "api_call"});
    CHECK(ours.find("e3"));
    CHECK(ours.record(events[3]).status == ReceiptStatus::duplicate);
    CHECK(theirs.record(events[2]).status == ReceiptStatus::duplicate);
}

TEST_CASE("Duplicates are found by another Meter on the same file, and after opening it again") {
    Scratch scratch;
    {
        Meter first(options_for(scratch.path(), 64)), second(options_for(scratch.path(), 64));
        first.record(full_event());
        check_again(second, 1);
        first.record(numbered("fill", 0, 1000));
        REQUIRE(sealed_to(scratch.path(), 960));
        check_again(second, 1);
        for (const Receipt& receipt : second.record(numbered("fill", 0, 1000))) CHECK(receipt.status == ReceiptStatus::duplicate);
        second.record({.id = "late", .name = "a", .timestamp = noon});
        CHECK(first.record({.id = "late", .name = "a", .timestamp = noon}).status == ReceiptStatus::duplicate);
    }
    Meter third(options_for(scratch.path(), 64));
    check_again(third, 1);
    CHECK(count_all(third) == 1002);
}

TEST_CASE("Within one batch the first of an id counts, and every event is answered for in order") {
    Meter m(options_for(":memory:"));
    Event first{.id = "x", .name = "a", .timestamp = noon}, other{.id = "x", .name = "b", .timestamp = noon};
    const auto receipts = m.record({first, first, other, {.name = ""}, {.id = "y", .name = "a"}, {.id = "z", .name = "a\xFF"}, first});
    const std::vector<ReceiptStatus> expected{ReceiptStatus::stored, ReceiptStatus::duplicate, ReceiptStatus::conflict, ReceiptStatus::refused,
                                              ReceiptStatus::stored, ReceiptStatus::refused,   ReceiptStatus::duplicate};
    REQUIRE(receipts.size() == expected.size());
    for (std::size_t i = 0; i < expected.size(); ++i) {
        CAPTURE(i);
        CHECK(receipts[i].status == expected[i]);
    }
    CHECK(receipts[1].sequence == 1);
    CHECK(receipts[2].sequence == 1);
    CHECK(receipts[3].sequence == 0);
    CHECK(receipts[3].field == "name");
    CHECK(receipts[4].sequence == 2);
    CHECK(receipts[5].field == "name");
    CHECK(count_all(m) == 2);
}

TEST_CASE("An event without a timestamp agrees with the one that was recorded under its id") {
    Meter m(options_for(":memory:"));
    Event event{.id = "x", .name = "a"};
    m.record(event);
    CHECK(m.record(event).status == ReceiptStatus::duplicate);
    event.timestamp = noon;
    CHECK(m.record(event).status == ReceiptStatus::duplicate);
    event.timestamp = noon + std::chrono::seconds(1);
    CHECK(m.record(event).status == ReceiptStatus::conflict);
}

TEST_CASE("Content is the same however JSON writes it") {
    Meter m(options_for(":memory:"));
    const auto status = [&](const std::string& properties) {
        return m.record_json(R"({"id":"x","name":"a","timestamp":1767225600,"properties":)" + properties + "}").at(0).status;
    };
    CHECK(status(R"({"a":1,"b":{"c":[1.50,"\u00e9"],"d":null}})") == ReceiptStatus::stored);
    CHECK(status(R"({ "b" : {"d":null,"c":[15e-1,"é"]}, "a":1.0 })") == ReceiptStatus::duplicate);
    CHECK(status(R"({"a":"1","b":{"c":[1.50,"é"],"d":null}})") == ReceiptStatus::conflict);
    CHECK(status(R"({"a":1,"b":{"c":["é",1.50],"d":null}})") == ReceiptStatus::conflict);
    CHECK(status(R"({"a":1,"b":{"c":[1.50,"é"]}})") == ReceiptStatus::conflict);
    CHECK(status(R"({"a":1,"b":{"c":[1.500000000000000000000000000001,"é"],"d":null}})") == ReceiptStatus::conflict);
    CHECK(status(R"({"a":true,"b":{"c":[1.50,"é"],"d":null}})") == ReceiptStatus::conflict);
}

TEST_CASE("Ids whose hashes agree are told apart by the ids themselves") {
    // Random ids by the thousand through many runs: what one says is new must be new, what it says is known must be.
    Scratch scratch;
    const std::uint64_t seed = test_seed();
    CAPTURE(seed);
    std::mt19937_64 random(seed);
    Meter m(options_for(scratch.path(), 64));
    std::map<std::string, std::int64_t> known;
    for (int round = 0; round < 60; ++round) {
        std::vector<Event> batch;
        for (int i = 0; i < 50; ++i) batch.push_back({.id = "id" + std::to_string(random() % 3000), .name = "a", .timestamp = noon});
        for (const Receipt& receipt : m.record(batch)) {
            const auto [place, fresh] = known.try_emplace(receipt.id, receipt.sequence);
            REQUIRE(receipt.status == (fresh ? ReceiptStatus::stored : ReceiptStatus::duplicate));
            REQUIRE(receipt.sequence == place->second);
        }
    }
    for (const auto& [id, sequence] : known) REQUIRE(m.find(id).value().sequence == sequence);
}

// ---- bad events ----

namespace {

struct BadEvent {
    const char* what;
    void (*spoil)(Event&);
    const char* field;
    ErrorCode code;
};

json nested(int depth) {
    json tree = json::object();
    for (int i = 1; i < depth; ++i) tree = {{"k", tree}};
    return tree;
}

const std::vector<BadEvent> bad_events{
    {"no name", [](Event& e) { e.name.clear(); }, "name", ErrorCode::bad_value},
    {"long id", [](Event& e) { e.id = std::string(limits::id_bytes + 1, 'x'); }, "id", ErrorCode::too_large},
    {"long name", [](Event& e) { e.name = std::string(limits::text_bytes + 1, 'x'); }, "name", ErrorCode::too_large},
    {"long customer", [](Event& e) { e.customer = std::string(limits::text_bytes + 1, 'x'); }, "customer", ErrorCode::too_large},
    {"long subscription", [](Event& e) { e.subscription = std::string(limits::text_bytes + 1, 'x'); }, "subscription", ErrorCode::too_large},
    {"long source", [](Event& e) { e.source = std::string(limits::text_bytes + 1, 'x'); }, "source", ErrorCode::too_large},
    {"NUL in id", [](Event& e) { e.id = std::string("a\0b", 3); }, "id", ErrorCode::bad_value},
    {"NUL in name", [](Event& e) { e.name = std::string("a\0b", 3); }, "name", ErrorCode::bad_value},
    {"NUL in customer", [](Event& e) { e.customer = std::string("\0", 1); }, "customer", ErrorCode::bad_value},
    {"bad UTF-8 in subscription", [](Event& e) { e.subscription = "\xC3"; }, "subscription", ErrorCode::bad_value},
    {"overlong UTF-8 in source", [](Event& e) { e.source = "\xC0\x80"; }, "source", ErrorCode::bad_value},
    {"surrogate in name", [](Event& e) { e.name = "\xED\xA0\x80"; }, "name", ErrorCode::bad_value},
    {"beyond Unicode in name", [](Event& e) { e.name = "\xF4\x90\x80\x80"; }, "name", ErrorCode::bad_value},
    {"properties a list", [](Event& e) { e.properties = json::array({1}); }, "properties", ErrorCode::bad_value},
    {"properties null", [](Event& e) { e.properties = nullptr; }, "properties", ErrorCode::bad_value},
    {"properties text", [](Event& e) { e.properties = "x"; }, "properties", ErrorCode::bad_value},
    {"NaN", [](Event& e) { e.properties["n"] = std::numeric_limits<double>::quiet_NaN(); }, "properties.n", ErrorCode::bad_value},
    {"infinity", [](Event& e) { e.properties["a"]["n"] = -std::numeric_limits<double>::infinity(); }, "properties.a.n", ErrorCode::bad_value},
    {"huge number",
     [](Event& e) {
         e.properties["l"] = {1, 1e300};
     },
     "properties.l.1", ErrorCode::bad_value},
    {"tiny number", [](Event& e) { e.properties["n"] = 5e-324; }, "properties.n", ErrorCode::bad_value},
    {"bad UTF-8 in a property", [](Event& e) { e.properties["t"] = "\xFF"; }, "properties.t", ErrorCode::bad_value},
    {"NUL in a property", [](Event& e) { e.properties["t"] = std::string("\0", 1); }, "properties.t", ErrorCode::bad_value},
    {"NUL in a key", [](Event& e) { e.properties[std::string("a\0", 2)] = 1; }, "properties", ErrorCode::bad_value},
    {"binary",
     [](Event& e) {
         e.properties["b"] = json::binary({1, 2});
     },
     "properties.b", ErrorCode::bad_value},
    {"too deep", [](Event& e) { e.properties = nested(static_cast<int>(limits::json_depth) + 1); }, nullptr, ErrorCode::bad_value},
    {"too large", [](Event& e) { e.properties["t"] = std::string(limits::properties_bytes, 'x'); }, "properties", ErrorCode::too_large},
    {"before the calendar", [](Event& e) { e.timestamp = Timestamp(Timestamp::min().micros() - 1); }, "timestamp", ErrorCode::bad_value},
    {"after the calendar", [](Event& e) { e.timestamp = Timestamp(Timestamp::max().micros() + 1); }, "timestamp", ErrorCode::bad_value},
    {"extensions a list", [](Event& e) { e.extensions = json::array(); }, "extensions", ErrorCode::bad_value},
    {"bad UTF-8 in the notice",
     [](Event& e) {
         e.notice = Notice{"\xFF", Severity::info, false};
     },
     "notice.body", ErrorCode::bad_value},
    {"NaN in extensions",
     [](Event& e) {
         e.extensions = {{"polar", {{"x", std::nan("")}}}};
     },
     "extensions.polar.x", ErrorCode::bad_value},
    {"long notice",
     [](Event& e) {
         e.notice = Notice{std::string(limits::extra_bytes + 1, 'x'), Severity::info, false};
     },
     "notice.body", ErrorCode::too_large},
    {"no such severity", [](Event& e) { e.notice = Notice{"b", Severity(7), false}; }, "notice.severity", ErrorCode::bad_value},
    {"extensions too deep", [](Event& e) { e.extensions = nested(static_cast<int>(limits::json_depth) + 1); }, nullptr, ErrorCode::bad_value},
};

}  // namespace

TEST_CASE("An event that cannot be stored is refused with its field and the reason, alone and in a batch") {
    Meter m(options_for(":memory:"));
    for (const BadEvent& bad : bad_events) {
        CAPTURE(bad.what);
        Event event{.id = "bad", .name = "a"};
        bad.spoil(event);
        const Error error = error_of([&] { m.record(event); });
        CHECK(error.code() == bad.code);
        CHECK_FALSE(error.field().empty());
        CHECK_FALSE(error.reason().empty());
        if (bad.field != nullptr) CHECK(error.field() == bad.field);
        const auto receipts = m.record({{.name = "good"}, event, {.name = "good"}});
        CHECK(receipts.at(0).status == ReceiptStatus::stored);
        CHECK(receipts.at(1).status == ReceiptStatus::refused);
        CHECK(receipts.at(1).field == error.field());
        CHECK(receipts.at(1).reason == error.reason());
        CHECK(receipts.at(1).sequence == 0);
        CHECK(receipts.at(2).status == ReceiptStatus::stored);
    }
    CHECK(count_all(m) == static_cast<std::int64_t>(2 * bad_events.size()));
}

TEST_CASE("What is just within the limits is stored, and can be listed and measured") {
    Scratch scratch;
    Meter m(options_for(scratch.path(), 64));
    Event event{.id = std::string(limits::id_bytes, 'i'), .name = std::string(limits::text_bytes, 'n')};
    event.customer = event.subscription = event.source = std::string(limits::text_bytes, 'c');
    event.properties = nested(static_cast<int>(limits::json_depth));
    event.timestamp = Timestamp::max();
    REQUIRE(m.record(event).status == ReceiptStatus::stored);
    Event big{.id = "big", .name = "big", .timestamp = Timestamp::min()};
    big.properties["t"] = std::string(limits::properties_bytes - 8, 'x');  // {"t":""} is 8
    big.extensions = {{"polar", nested(static_cast<int>(limits::json_depth) - 1)}};
    REQUIRE(m.record(big).status == ReceiptStatus::stored);
    REQUIRE(m.record(big).status == ReceiptStatus::duplicate);
    const auto line = [](int deep) { return json{{"id", "line"}, {"name", "a"}, {"properties", nested(deep)}, {"extensions", nested(deep)}}.dump(); };
    CHECK(m.record_json(line(static_cast<int>(limits::json_depth))).at(0).status == ReceiptStatus::stored);
    CHECK(m.record_json(line(static_cast<int>(limits::json_depth))).at(0).status == ReceiptStatus::duplicate);
    CHECK(m.record_json(line(static_cast<int>(limits::json_depth) + 1)).at(0).status == ReceiptStatus::refused);
    for (int round = 0; round < 2; ++round) {
        require_same(m.find(event.id).value(), event);
        require_same(m.find("big").value(), big);
        CHECK(m.aggregate({.code = "big"}).rows.at(0).value == 1);
        CHECK(m.aggregate({.code = event.name}, {.customer = event.customer, .group_by = {"k"}}).rows.at(0).events == 1);
        m.record(numbered("fill", 0, 100));
        REQUIRE(sealed_to(scratch.path(), 64));
    }
}

TEST_CASE("A call with more events than the limit stores none of them") {
    Meter m(options_for(":memory:"));
    const std::vector<Event> events(limits::batch_events + 1, {.name = "a"});
    CHECK(error_of([&] { m.record(events); }).code() == ErrorCode::too_large);
    std::string lines;
    for (std::size_t i = 0; i <= limits::batch_events; ++i) lines += "{\"name\":\"a\"}\n";
    CHECK(error_of([&] { m.record_json(lines); }).code() == ErrorCode::too_large);
    CHECK(count_all(m) == 0);
    CHECK(m.record(std::span<const Event>()).empty());
    CHECK(m.record_json("").empty());
    CHECK(m.record_json("\n \r\n\t\n").empty());
}

TEST_CASE("Apostrophes and SQL in every text field are text") {
    Scratch scratch;
    Meter m(options_for(scratch.path(), 64));
    const std::vector<std::string> texts{"O'Brien",
                                         "'; DROP TABLE log; --",
                                         "\" OR 1=1 --",
                                         "%_\\",
                                         "Robert'); DELETE FROM texts WHERE ('1'='1",
                                         "?1 :name @name $name",
                                         "\x01\x1F\x7F",
                                         "\n\r\t"};
    std::vector<Event> events;
    for (const std::string& text : texts) {
        Event& event = events.emplace_back();
        event.id = event.name = event.customer = event.subscription = event.source = text;
        event.properties = {{text, text}, {"nested", {{text, {text}}}}};
        event.notice = Notice{text, Severity::info, false};
        event.extensions = {{"polar", {{text, text}}}};
        event.timestamp = noon;
    }
    for (const Receipt& receipt : m.record(events)) REQUIRE(receipt.status == ReceiptStatus::stored);
    for (int round = 0; round < 2; ++round) {
        for (const Event& event : events) {
            const std::string& text = event.id;
            CAPTURE(text, round);
            require_same(m.find(text).value(), event);
            const ListQuery query{.customer = text,
                                  .subscription = text,
                                  .names = {text},
                                  .sources = {text},
                                  .ids = {text},
                                  .filter = Filter::all({Filter::equals("properties." + text, text), Filter::equals("id", text)}),
                                  .count = true};
            CHECK(m.list(query).total == 1);
            const Aggregate grouped = m.aggregate({.code = "m", .event = text}, {.customer = text, .group_by = {"properties." + text, "source"}});
            REQUIRE(grouped.rows.size() == 1);
            CHECK(grouped.rows[0].group == std::vector<std::optional<std::string>>{text, text});
            CHECK(m.list_names({.customer = text, .text = text}).rows.at(0).name == text);
            m.define({.code = text, .event = text});
            CHECK(m.aggregate({.metric = text}).rows.at(0).events == 1);
        }
        m.record(numbered("fill", 0, 100));
        REQUIRE(sealed_to(scratch.path(), 64));
    }
}

// ---- JSON Lines ----

TEST_CASE("A line of JSON becomes the event it says") {
    Meter m(options_for(":memory:"));
    const auto receipts = m.record_json(
        R"({"id":"full","name":"api_call","customer":"acme","subscription":"sub_1","timestamp":"2026-02-03T04:05:06.789012Z","value":12.50,)"
        R"("precise_total_amount_cents":"99.125","source":"desktop","properties":{"tokens":512,"model":"large","nested":{"deep":[1,2,null]},"on":true},)"
        R"("notice":{"body":"disk nearly full","severity":"warning","notify":true},"extensions":{"polar":{"parent_id":"p-1"}}})"
        "\r\n\n"
        R"(  {"id":"b","name":"\u00e9\ud83d\ude00\n","customer":null,"timestamp":1767225600.5}  )");
    REQUIRE(receipts.size() == 2);
    CHECK(receipts[0].status == ReceiptStatus::stored);
    CHECK(receipts[1].status == ReceiptStatus::stored);
    require_same(m.find("full").value(), full_event());
    CHECK(m.record(full_event()).status == ReceiptStatus::duplicate);
    const Event b = m.find("b").value();
    CHECK(b.name == "\xC3\xA9\xF0\x9F\x98\x80\n");
    CHECK(b.customer.empty());
    CHECK(b.timestamp == Timestamp::parse("2026-01-01T00:00:00.5Z"));
    CHECK(b.properties == json::object());
}

TEST_CASE("Times and numbers that a writer escaped are read as what they say") {  // .NET writes + as \u002B
    Meter m(options_for(":memory:"));
    const auto receipts = m.record_json(R"({"id":"a","name":"a","timestamp":"2026-01-01T02:00:00\u002B02:00","value":"\u002B5"})");
    REQUIRE(receipts.at(0).status == ReceiptStatus::stored);
    const Event a = m.find("a").value();
    CHECK(a.timestamp == Timestamp::parse("2026-01-01T00:00:00Z"));
    CHECK(a.value == Decimal(5));
}

namespace {

struct BadLine {
    std::string line;
    const char* field;  // nullptr: any that is not empty
};

const std::vector<BadLine> bad_lines{
    {"{", nullptr},
    {"}", nullptr},
    {"nonsense", nullptr},
    {"[]", nullptr},
    {"\"text\"", nullptr},
    {"null", nullptr},
    {"{\"name\":\"a\"} x", nullptr},
    {"{\"name\":\"a\"}{\"name\":\"b\"}", nullptr},
    {"{\"name\":\"a\",}", nullptr},
    {"{name:\"a\"}", nullptr},
    {"{'name':'a'}", nullptr},
    {"{\"name\":\"a\"", nullptr},
    {"{\"name\":\"a", nullptr},
    {"{\"name\":\"a\",\"name\":\"b\"}", nullptr},
    {"\xEF\xBB\xBF{\"name\":\"a\"}", nullptr},
    {"{}", "name"},
    {"{\"name\":\"\"}", "name"},
    {"{\"name\":null}", "name"},
    {"{\"name\":1}", "name"},
    {"{\"name\":\"a\",\"id\":7}", "id"},
    {"{\"name\":\"a\",\"customer\":[]}", "customer"},
    {"{\"name\":\"a\",\"subscription\":{}}", "subscription"},
    {"{\"name\":\"a\",\"source\":true}", "source"},
    {"{\"name\":\"a\",\"unknown\":1}", "unknown"},
    {"{\"name\":\"a\",\"properties\":[]}", "properties"},
    {"{\"name\":\"a\",\"properties\":\"{}\"}", "properties"},
    {"{\"name\":\"a\",\"properties\":{\"n\":1e400}}", "properties"},
    {"{\"name\":\"a\",\"properties\":{\"n\":-1E+400}}", "properties"},
    {"{\"name\":\"a\",\"properties\":{\"n\":NaN}}", "properties"},
    {"{\"name\":\"a\",\"properties\":{\"n\":Infinity}}", "properties"},
    {"{\"name\":\"a\",\"properties\":{\"n\":01}}", "properties"},
    {"{\"name\":\"a\",\"properties\":{\"n\":1.}}", "properties"},
    {"{\"name\":\"a\",\"properties\":{\"n\":.5}}", "properties"},
    {"{\"name\":\"a\",\"properties\":{\"n\":+1}}", "properties"},
    {"{\"name\":\"a\",\"properties\":{\"n\":1e}}", "properties"},
    {"{\"name\":\"a\",\"properties\":{\"n\":-}}", "properties"},
    {"{\"name\":\"a\",\"properties\":{\"n\":1234567890123456789012345678901234567890}}", "properties"},
    {"{\"name\":\"a\",\"properties\":{\"n\":\"\\u0000\"}}", "properties"},
    {"{\"name\":\"a\",\"properties\":{\"n\":\"\\ud800\"}}", "properties"},
    {"{\"name\":\"a\",\"properties\":{\"n\":\"\\x41\"}}", "properties"},
    {"{\"name\":\"a\",\"properties\":{\"n\":\"\xFF\"}}", "properties"},
    {"{\"name\":\"a\",\"properties\":{\"n\":\"\x01\"}}", "properties"},
    {"{\"name\":\"a\",\"properties\":{\"a\":1,\"a\":2}}", "properties"},
    {std::string("{\"name\":\"a\",\"properties\":{\"n\":\"\0\"}}", 36), "properties"},
    {"{\"name\":\"\xC3\x28\"}", "name"},
    {"{\"name\":\"a\\u0000\"}", "name"},
    {"{\"name\":\"a\",\"timestamp\":true}", "timestamp"},
    {"{\"name\":\"a\",\"timestamp\":\"yesterday\"}", "timestamp"},
    {"{\"name\":\"a\",\"timestamp\":\"2026-02-30T00:00:00Z\"}", "timestamp"},
    {"{\"name\":\"a\",\"timestamp\":\"2026-01-01T00:00:00\"}", "timestamp"},
    {"{\"name\":\"a\",\"timestamp\":\"0000-01-01T00:00:00Z\"}", "timestamp"},
    {"{\"name\":\"a\",\"timestamp\":253402300800}", "timestamp"},
    {"{\"name\":\"a\",\"timestamp\":-62135596801}", "timestamp"},
    {"{\"name\":\"a\",\"timestamp\":1e30}", "timestamp"},
    {"{\"name\":\"a\",\"value\":\"much\"}", "value"},
    {"{\"name\":\"a\",\"value\":{}}", "value"},
    {"{\"name\":\"a\",\"value\":1e400}", "value"},
    {"{\"name\":\"a\",\"value\":\"1e400\"}", "value"},
    {"{\"name\":\"a\",\"precise_total_amount_cents\":\"x\"}", "precise_total_amount_cents"},
    {"{\"name\":\"a\",\"notice\":\"x\"}", "notice"},
    {"{\"name\":\"a\",\"notice\":{\"severity\":\"fatal\"}}", "notice.severity"},
    {"{\"name\":\"a\",\"notice\":{\"notify\":1}}", "notice.notify"},
    {"{\"name\":\"a\",\"notice\":{\"other\":1}}", "notice.other"},
    {"{\"name\":\"a\",\"extensions\":[]}", "extensions"},
    {"{\"name\":\"a\",\"extensions\":{\"polar\":1e400}}", "extensions"},
};

}  // namespace

TEST_CASE("A line that cannot be stored is refused with its field and the reason, and does not hold up the others") {
    Meter m(options_for(":memory:"));
    for (const BadLine& bad : bad_lines) {
        CAPTURE(bad.line);
        const auto receipts = m.record_json("{\"name\":\"good\"}\n" + bad.line + "\n{\"name\":\"good\"}");
        REQUIRE(receipts.size() == 3);
        CHECK(receipts[0].status == ReceiptStatus::stored);
        CHECK(receipts[1].status == ReceiptStatus::refused);
        CHECK_FALSE(receipts[1].field.empty());
        CHECK_FALSE(receipts[1].reason.empty());
        if (bad.field != nullptr) CHECK(receipts[1].field == bad.field);
        CHECK(receipts[2].status == ReceiptStatus::stored);
    }
    std::string deep;
    for (std::size_t i = 0; i < 100000; ++i) deep += "{\"a\":";
    CHECK(m.record_json(deep).at(0).status == ReceiptStatus::refused);
    CHECK(m.record_json("{\"name\":\"a\",\"properties\":" + deep).at(0).status == ReceiptStatus::refused);
    CHECK(count_all(m) == static_cast<std::int64_t>(2 * bad_lines.size()));
}

TEST_CASE("A line as deep as the limit allows is stored, one deeper is not") {
    Meter m(options_for(":memory:"));
    // The line is the first level, properties the second.
    const auto line = [](std::size_t depth) { return "{\"name\":\"a\",\"properties\":" + nested(static_cast<int>(depth)).dump() + "}"; };
    CHECK(m.record_json(line(limits::json_depth - 1)).at(0).status == ReceiptStatus::stored);
    CHECK(m.record_json(line(limits::json_depth + 1)).at(0).status == ReceiptStatus::refused);
    CHECK(m.aggregate({.code = "a"}, {.group_by = {"k"}}).rows.at(0).events == 1);
}

TEST_CASE("Numbers keep every digit from the line to the file") {
    Scratch scratch;
    Meter m(options_for(scratch.path()));
    const std::string digits38 = "12345678901234567890123456789012345678";
    const std::string properties = "{\"n\":" + digits38 + ",\"f\":0.10000000000000000000000000000000000001,\"z\":-0,\"e\":1E2,\"t\":1.50}";
    REQUIRE(m.record_json("{\"id\":\"x\",\"name\":\"a\",\"value\":\"" + digits38 + "\",\"properties\":" + properties + "}").at(0).status ==
            ReceiptStatus::stored);
    CHECK(PlainDatabase(scratch.path()).text("SELECT properties FROM events") == properties);
    CHECK(m.find("x").value().value == Decimal(digits38));
    const auto sum = [&](const std::string& property) {
        return m.aggregate({.code = "a", .aggregation = Aggregation::sum, .property = property}).rows.at(0).value.to_string();
    };
    CHECK(sum("n") == digits38);
    CHECK(sum("f") == "0.10000000000000000000000000000000000001");
    CHECK(sum("z") == "0");
    CHECK(sum("e") == "100");
    CHECK(sum("t") == "1.5");
    CHECK(sum("value") == digits38);
}

TEST_CASE("A float in an Event enters by its shortest text") {
    Scratch scratch;
    Meter m(options_for(scratch.path()));
    Event event{.id = "x", .name = "a"};
    event.properties = {{"n", 0.1}, {"i", 3.0}, {"z", -0.0}, {"big", 1e22}, {"u", std::numeric_limits<std::uint64_t>::max()}};
    m.record(event);
    CHECK(json::parse(PlainDatabase(scratch.path()).text("SELECT properties FROM events")) == event.properties);
    CHECK(m.aggregate({.code = "a", .aggregation = Aggregation::sum, .property = "n"}).rows.at(0).value == Decimal("0.1"));
    CHECK(m.aggregate({.code = "a", .aggregation = Aggregation::sum, .property = "u"}).rows.at(0).value == Decimal("18446744073709551615"));
    CHECK(m.record(event).status == ReceiptStatus::duplicate);
}

// ---- opening ----

TEST_CASE("An option that cannot be is refused by name") {
    const auto field = [](auto change) {
        MeterOptions options = options_for(":memory:");
        change(options);
        return error_of([&] { Meter m(options); });
    };
    CHECK(field([](MeterOptions& o) { o.path.clear(); }).field() == "path");
    CHECK(field([](MeterOptions& o) { o.path = std::string("/tmp/a\0b", 8); }).field() == "path");
    CHECK(field([](MeterOptions& o) { o.chunk_events = 63; }).field() == "chunk_events");
    for (const std::size_t bytes : {0u, 256u, 1000u, 131072u}) CHECK(field([&](MeterOptions& o) { o.page_bytes = bytes; }).field() == "page_bytes");
    CHECK(field([](MeterOptions& o) { o.chunk_events = -1; }).field() == "chunk_events");
    CHECK(field([](MeterOptions& o) { o.chunk_events = std::int64_t{1} << 40; }).field() == "chunk_events");
    CHECK(field([](MeterOptions& o) { o.max_bytes = -1; }).field() == "max_bytes");
}

TEST_CASE("A file keeps the pages it was made with") {
    Scratch scratch;
    const auto open = [&](std::size_t page_bytes) {
        MeterOptions options = options_for(scratch.path(), 64);
        options.page_bytes = page_bytes;
        return Meter(options);
    };
    open(1024).record(numbered("e", 0, 1000));
    CHECK(PlainDatabase(scratch.path()).integer("PRAGMA page_size") == 1024);
    Meter m = open(4096);
    CHECK(PlainDatabase(scratch.path()).integer("PRAGMA page_size") == 1024);
    CHECK(m.record(numbered("e", 999, 1001)).at(0).status == ReceiptStatus::duplicate);
    CHECK(count_all(m) == 1001);
    CHECK(m.verify(false).empty());
}

TEST_CASE("An empty file becomes a database") {
    Scratch scratch;
    write_file(scratch.path(), "");
    Meter m(options_for(scratch.path()));
    m.record({.name = "a"});
    CHECK(count_all(m) == 1);
}

TEST_CASE("A file that is not a database is refused and left as it is") {
    Scratch scratch;
    for (const std::string& content : {std::string("hello\n"), std::string(100000, 'x'), std::string(4096, '\0') + "x"}) {
        write_file(scratch.path(), content);
        const Error error = error_of([&] { Meter m(options_for(scratch.path())); });
        CHECK(error.code() == ErrorCode::not_a_database);
        CHECK(error.field() == scratch.path());
        CHECK((read_file(scratch.path()) == content));
    }
}

TEST_CASE("A directory, a missing directory and a path through a file are refused") {
    Scratch scratch;
    std::filesystem::create_directory(scratch.path("folder"));
    write_file(scratch.path("file"), "x");
    for (const std::string& path : {scratch.path("folder"), scratch.path("missing/usage.db"), scratch.path("file/usage.db")}) {
        CAPTURE(path);
        const Error error = error_of([&] { Meter m(options_for(path)); });
        CHECK(error.code() == ErrorCode::io);
        CHECK(error.field() == path);
    }
    CHECK(std::filesystem::is_empty(scratch.path("folder")));
}

TEST_CASE("A newer schema is refused and left as it is") {
    Scratch scratch;
    { Meter m(options_for(scratch.path())); }
    const auto version = PlainDatabase(scratch.path()).integer("PRAGMA user_version");
    PlainDatabase(scratch.path()).run("PRAGMA user_version = " + std::to_string(version + 1));
    const std::string before = read_file(scratch.path());
    const Error error = error_of([&] { Meter m(options_for(scratch.path())); });
    CHECK(error.code() == ErrorCode::newer_schema);
    CHECK(error.field() == scratch.path());
    CHECK((read_file(scratch.path()) == before));
}

namespace {

// Takes a file back to schema 2, as releases before blobs had checksums made it.
void make_schema_2(const std::string& path) {
    PlainDatabase(path).run(
        "BEGIN; ALTER TABLE columns DROP COLUMN hash; ALTER TABLE run_blocks DROP COLUMN filter_hash; ALTER TABLE run_blocks DROP COLUMN "
        "entries_hash;"
        "PRAGMA user_version = 2; COMMIT");
}

// Takes a file back to schema 1, as releases before books had versions made it.
void make_schema_1(const std::string& path) {
    make_schema_2(path);
    PlainDatabase(path).run(
        "BEGIN; DROP TABLE metrics; DROP TABLE books; DELETE FROM meta WHERE key = 'books';"
        "CREATE TABLE metrics(code TEXT PRIMARY KEY, definition TEXT NOT NULL) WITHOUT ROWID;"
        "CREATE TABLE books(vendor TEXT, code TEXT, source TEXT NOT NULL, PRIMARY KEY(vendor, code)) WITHOUT ROWID;"
        "INSERT INTO metrics VALUES('n', '{\"event\":\"api_call\",\"aggregation\":\"sum\",\"property\":\"n\",\"filter\":{\"all\":[]}}');"
        "INSERT INTO books VALUES('lago', 'basic', '" +
        lago_plan("basic", "1").dump() + "'); PRAGMA user_version = 1; COMMIT");
}

}  // namespace

TEST_CASE("A file of schema 1 becomes one of today's when it is opened, with all that is in it") {
    Scratch scratch;
    { Meter(options_for(scratch.path(), 64)).record(numbered("x", 0, 100)); }
    make_schema_1(scratch.path());
    {
        Meter m(options_for(scratch.path(), 64));
        CHECK(PlainDatabase(scratch.path()).integer("PRAGMA user_version") == 3);
        REQUIRE(m.books().size() == 1);
        CHECK(m.books()[0].effective_from == Timestamp::min());
        CHECK(m.books()[0].book.source() == lago_plan("basic", "1"));
        CHECK(m.metrics().at(0).code == "n");
        CHECK(m.aggregate({.metric = "n"}).rows.at(0).value == 1683);  // python: sum(range(0, 100, 3))
        CHECK(count_all(m) == 100);
        m.load(Book::lago(lago_plan("basic", "2")), noon);
        CHECK(m.books().size() == 2);
        CHECK(m.record(numbered("x", 0, 1)).at(0).status == ReceiptStatus::duplicate);
        CHECK(m.verify() == std::vector<std::string>{});
    }
    Meter again(options_for(scratch.path(), 64));
    CHECK(again.books().size() == 2);
    again.remove_book("lago", "basic");
    CHECK(again.books().empty());
}

TEST_CASE("A file of schema 2 is read without checksums, and what is sealed then has them") {
    Scratch scratch;
    {
        Meter m(options_for(scratch.path(), 64));
        m.record(numbered("x", 0, 100));
        REQUIRE(sealed_to(scratch.path(), 64));
    }
    make_schema_2(scratch.path());
    Meter m(options_for(scratch.path(), 64));
    const PlainDatabase plain(scratch.path());
    const auto count = [&](const std::string& what) { return plain.integer("SELECT count(*) FROM " + what); };
    const std::int64_t old = count("columns WHERE hash IS NULL");
    CHECK(old > 0);
    CHECK(m.aggregate({.code = "api_call", .aggregation = Aggregation::sum, .property = "n"}).rows.at(0).value == 1683);
    m.record(numbered("x", 0, 200));
    REQUIRE(sealed_to(scratch.path(), 192));
    CHECK(count("columns WHERE hash IS NULL") == old);
    CHECK(count("columns WHERE hash IS NOT NULL") > 0);
    CHECK(count("run_blocks WHERE filter_hash IS NULL AND entries_hash IS NULL") == 1);
    CHECK(m.verify() == std::vector<std::string>{});
}

TEST_CASE("Many may open a file of schema 1 at once") {
    Scratch scratch;
    { Meter(options_for(scratch.path(), 64)).record(numbered("x", 0, 100)); }
    make_schema_1(scratch.path());
    std::atomic<int> good = 0;
    std::vector<std::thread> threads;
    for (int i = 0; i < 6; ++i) {
        threads.emplace_back([&] {
            const Meter m(options_for(scratch.path(), 64));
            if (m.books().size() == 1 && m.metrics().at(0).code == "n") ++good;
        });
    }
    for (std::thread& each : threads) each.join();
    CHECK(good == 6);
}

TEST_CASE("A schema that cannot be taken further is reported, and the file left as it is") {
    Scratch scratch;
    { Meter m(options_for(scratch.path())); }
    // What should be there is not: the step is undone as a whole.
    PlainDatabase(scratch.path()).run("DROP TABLE metrics; PRAGMA user_version = 1");
    const auto tables = [&] { return PlainDatabase(scratch.path()).text("SELECT group_concat(name || ifnull(sql, '')) FROM sqlite_master"); };
    const std::string before = tables();
    CHECK(error_of([&] { Meter m(options_for(scratch.path())); }).code() == ErrorCode::io);
    CHECK(tables() == before);
    CHECK(PlainDatabase(scratch.path()).integer("PRAGMA user_version") == 1);
    PlainDatabase(scratch.path()).run("PRAGMA user_version = 0");
    CHECK(error_of([&] { Meter m(options_for(scratch.path())); }).code() == ErrorCode::corrupt);
}

TEST_CASE("Another program's database is refused and left as it is") {
    Scratch scratch;
    const std::string sql = GENERATE(as<std::string>(), "CREATE TABLE log(a)", "PRAGMA application_id = 77; CREATE TABLE t(a)",
                                     "PRAGMA application_id = 77", "PRAGMA journal_mode = DELETE; CREATE VIEW events AS SELECT 1");
    sqlite3* made = nullptr;
    REQUIRE(sqlite3_open(scratch.path().c_str(), &made) == SQLITE_OK);
    REQUIRE(sqlite3_exec(made, sql.c_str(), nullptr, nullptr, nullptr) == SQLITE_OK);
    sqlite3_close(made);
    const std::string before = read_file(scratch.path());
    CHECK(error_of([&] { Meter m(options_for(scratch.path())); }).code() == ErrorCode::not_a_database);
    CHECK((read_file(scratch.path()) == before));
}

#ifdef METER_TEST_CHILDREN
namespace {

// As a user who is not root, in a child process: whether `f` throws read_only. 0 yes, 1 not, 2 could not be tried.
template <class F>
int read_only_for_nobody(F&& f) {
    const pid_t pid = fork();
    if (pid == 0) {
        if (geteuid() == 0 && (setgid(65534) != 0 || setuid(65534) != 0)) _exit(2);
        try {
            f();
        } catch (const Error& error) {
            _exit(error.code() == ErrorCode::read_only ? 0 : 1);
        } catch (...) {
            _exit(1);
        }
        _exit(1);
    }
    int status = 0;
    waitpid(pid, &status, 0);
    return WIFEXITED(status) ? WEXITSTATUS(status) : 1;
}

}  // namespace

TEST_CASE("A file that may not be written is read_only, and left as it is") {
    Scratch scratch;
    {
        Meter m(options_for(scratch.path()));
        m.record({.name = "a"});
    }
    const std::string before = read_file(scratch.path());
    using std::filesystem::perms;
    std::filesystem::permissions(scratch.path(), perms::owner_read | perms::group_read | perms::others_read);
    std::filesystem::permissions(std::filesystem::path(scratch.path()).parent_path(), perms::owner_all | perms::others_read | perms::others_exec);
    const int status = read_only_for_nobody([&] {
        Meter m(options_for(scratch.path()));
        m.record({.name = "b"});
    });
    if (status == 2)
        WARN("the user could not be changed, so nothing was tested");
    else
        CHECK(status == 0);
    CHECK((read_file(scratch.path()) == before));
}
#endif

TEST_CASE("A damaged file is reported and left as it is") {
    Scratch scratch;
    {
        Meter m(options_for(scratch.path(), 64));
        m.record(numbered("x", 0, 1000));
    }
    std::string bytes = read_file(scratch.path());
    const auto damage = GENERATE(0, 1);
    if (damage == 0) std::fill(bytes.begin() + 100, bytes.end(), '\x5A');  // everything but the header
    if (damage == 1) std::fill(bytes.begin() + 4096, bytes.begin() + 16384, '\xFF');
    write_file(scratch.path(), bytes);
    const Error error = error_of([&] {
        Meter m(options_for(scratch.path(), 64));
        m.list();
        m.aggregate({.code = "api_call"}, {.group_by = {"model"}});
        m.record(numbered("x", 0, 1000));
    });
    CHECK(error.code() == ErrorCode::corrupt);
    CHECK(error.field() == scratch.path());
}

// ---- no room ----

TEST_CASE("Over max_bytes record throws full and stores nothing, and what is there can still be read") {
    Scratch scratch;
    const bool in_memory = GENERATE(false, true);
    MeterOptions options = options_for(in_memory ? ":memory:" : scratch.path(), 64);
    options.max_bytes = 400 * 1024;
    Meter m(options);
    std::int64_t stored = 0;
    std::optional<Error> error;
    for (int i = 0; i < 200 && !error; ++i) {
        try {
            m.record(numbered("b" + std::to_string(i) + "-", 0, 50));
            stored += 50;
        } catch (const Error& fault) {
            error = fault;
        }
    }
    REQUIRE(error);
    CHECK(error->code() == ErrorCode::full);
    CHECK(stored > 100);
    CHECK(count_all(m) == stored);
    CHECK(m.aggregate({.code = "api_call"}).rows.at(0).events > 0);
    CHECK_FALSE(m.find("b" + std::to_string(stored / 50) + "-0"));
    CHECK(m.find("b0-0"));
    CHECK(m.record(numbered("b0-", 0, 1)).at(0).status == ReceiptStatus::duplicate);
    CHECK(count_all(m) == stored);
    if (!in_memory) CHECK(static_cast<std::int64_t>(std::filesystem::file_size(scratch.path())) <= options.max_bytes);
}

#ifdef __linux__
namespace {

// A small disk of its own, where the system lets us have one.
class SmallDisk {
public:
    explicit SmallDisk(std::string path) : path_(std::move(path)) {
        std::filesystem::create_directory(path_);
        mounted_ = mount("tmpfs", path_.c_str(), "tmpfs", 0, "size=1m") == 0;
    }
    SmallDisk(const SmallDisk&) = delete;
    SmallDisk& operator=(const SmallDisk&) = delete;
    ~SmallDisk() {
        if (mounted_) umount2(path_.c_str(), MNT_DETACH);
    }
    bool mounted() const { return mounted_; }

private:
    std::string path_;
    bool mounted_ = false;
};

}  // namespace

TEST_CASE("On a full disk record throws full and stores nothing; with room again it goes on") {
    Scratch scratch;
    const SmallDisk disk(scratch.path("disk"));
    if (!disk.mounted()) {
        WARN("no small disk could be mounted (it takes root), so nothing was tested");
        return;
    }
    const std::string path = scratch.path("disk/usage.db"), ballast = scratch.path("disk/ballast");
    write_file(ballast, std::string(300 * 1024, 'x'));
    Meter m(options_for(path, 64));
    std::int64_t stored = 0;
    int failures = 0;
    for (int i = 0; i < 200 && failures < 5; ++i) {
        try {
            m.record(numbered("b" + std::to_string(i) + "-", 0, 20));
            stored += 20;
        } catch (const Error& error) {
            CAPTURE(error.what());
            CHECK(error.code() == ErrorCode::full);
            ++failures;
        }
    }
    REQUIRE(failures == 5);
    CHECK(stored > 100);
    CHECK(count_all(m) == stored);
    std::filesystem::remove(ballast);
    CHECK(m.record(numbered("late", 0, 20)).at(19).status == ReceiptStatus::stored);
    for (const Receipt& receipt : m.record(numbered("b0-", 0, 20))) CHECK(receipt.status == ReceiptStatus::duplicate);
    CHECK(count_all(m) == stored + 20);
    CHECK(PlainDatabase(path).text("PRAGMA integrity_check") == "ok");
}

TEST_CASE("A database cannot be made on a full disk, and the error says so") {
    Scratch scratch;
    const SmallDisk disk(scratch.path("disk"));
    if (!disk.mounted()) return;
    std::ofstream ballast(scratch.path("disk/ballast"), std::ios::binary);
    for (const std::string block(4096, 'x'); ballast << block << std::flush;) {
    }
    const Error error = error_of([&] { Meter m(options_for(scratch.path("disk/usage.db"))); });
    CAPTURE(error.what());
    CHECK((error.code() == ErrorCode::full || error.code() == ErrorCode::io));
}
#endif

// ---- many at once ----

TEST_CASE("Sixteen threads record and read at once; every receipt holds and every event is there once") {
    Scratch scratch;
    const bool in_memory = GENERATE(false, true);
    MeterOptions options = options_for(in_memory ? ":memory:" : scratch.path(), 64);
    constexpr int threads = 16, rounds = 12;
    std::atomic<int> stored{0}, duplicates{0}, wrong{0};
    {
        Meter m(options);
        m.define({.code = "n", .event = "shared", .aggregation = Aggregation::sum, .property = "n"});
        std::vector<std::thread> workers;
        for (int t = 0; t < threads; ++t) {
            workers.emplace_back([&, t] {
                for (int i = 0; i < rounds; ++i) {
                    const std::string own = std::to_string(t) + "-" + std::to_string(i);
                    const auto receipts = m.record({{.id = own, .name = "own", .customer = "c" + std::to_string(t), .timestamp = noon},
                                                    {.id = "s" + std::to_string(i), .name = "shared", .timestamp = noon, .properties = {{"n", i}}}});
                    for (const Receipt& receipt : receipts) {
                        if (receipt.status == ReceiptStatus::stored)
                            ++stored;
                        else if (receipt.status == ReceiptStatus::duplicate)
                            ++duplicates;
                        else
                            ++wrong;
                    }
                    const auto found = m.find(own);
                    if (!found || found->sequence != receipts[0].sequence) ++wrong;
                    const auto page = m.list({.customer = "c" + std::to_string(t), .filter = Filter::equals("name", "own"), .count = true});
                    if (page.total != i + 1) ++wrong;
                    if (m.aggregate({.metric = "n"}).rows.at(0).events < i + 1) ++wrong;
                    if (m.list_names().total != 2) ++wrong;
                }
            });
        }
        for (std::thread& worker : workers) worker.join();
        CHECK(wrong == 0);
        CHECK(stored == threads * rounds + rounds);
        CHECK(duplicates == threads * rounds - rounds);
        CHECK(count_all(m) == stored);
        CHECK(m.aggregate({.metric = "n"}).rows.at(0).value == Decimal(rounds * (rounds - 1) / 2));
    }
    if (!in_memory) CHECK(PlainDatabase(scratch.path()).integer("SELECT count(DISTINCT id) = count(*) FROM log") == 1);
}

namespace {

// Commits in a write-ahead log: frames that carry the database's size (sqlite.org/fileformat2.html, 4.1).
int commits_in(const std::string& wal) {
    const std::string bytes = read_file(wal);
    const auto number = [&bytes](std::size_t at) {
        std::uint32_t value = 0;
        for (std::size_t i = 0; i < 4; ++i) value = value << 8 | static_cast<unsigned char>(bytes[at + i]);
        return value;
    };
    int commits = 0;
    for (std::size_t at = 32; at + 24 <= bytes.size() && number(at + 8) == number(16); at += 24 + number(8)) commits += number(at + 4) != 0 ? 1 : 0;
    return commits;
}

}  // namespace

TEST_CASE("Concurrent callers share commits") {
    Scratch scratch;
    Meter m(options_for(scratch.path()));
    m.record({.name = "first"});
    const PlainDatabase other(scratch.path());
    constexpr int threads = 16;
    // While someone else holds the file all sixteen come to wait; then a few commits must do for them. Nothing outside shows when all are in the
    // queue, so that a slow machine gets more time.
    int commits = threads, stored = 1;
    for (auto time = std::chrono::milliseconds(100); commits > threads / 2 && time < std::chrono::seconds(20); time *= 3) {
        other.run("PRAGMA wal_checkpoint(TRUNCATE)");
        other.run("BEGIN IMMEDIATE");
        std::atomic<int> ready{0}, more{0};
        std::vector<std::thread> workers;
        for (int t = 0; t < threads; ++t) {
            workers.emplace_back([&] {
                ++ready;
                if (m.record({.name = "a"}).status == ReceiptStatus::stored) ++more;
            });
        }
        while (ready < threads) std::this_thread::yield();
        std::this_thread::sleep_for(time);
        other.run("COMMIT");
        for (std::thread& worker : workers) worker.join();
        CHECK(more == threads);
        stored += more;
        commits = commits_in(scratch.path() + "-wal");
    }
    CHECK(commits >= 1);
    CHECK(commits <= threads / 2);
    CHECK(count_all(m) == stored);
}

TEST_CASE("Callers who share a commit wait for a lock together, not one after the other") {
    Scratch scratch;
    MeterOptions options = options_for(scratch.path());
    options.busy_timeout = std::chrono::seconds(1);
    Meter m(options);
    const PlainDatabase other(scratch.path());
    other.run("BEGIN IMMEDIATE");
    std::atomic<int> busy{0};
    std::vector<std::thread> workers;
    const auto start = std::chrono::steady_clock::now();
    for (int t = 0; t < 60; ++t) {
        workers.emplace_back([&] { busy += error_of([&] { m.record({.name = "a"}); }).code() == ErrorCode::busy ? 1 : 0; });
    }
    for (std::thread& worker : workers) worker.join();
    CHECK(std::chrono::steady_clock::now() - start < std::chrono::seconds(40));  // and not sixty
    CHECK(busy == 60);
    other.run("ROLLBACK");
    CHECK(m.record({.name = "a"}).status == ReceiptStatus::stored);
}

TEST_CASE("A caller whose part of a shared commit cannot be stored does not take the others down") {
    Scratch scratch;
    MeterOptions options = options_for(scratch.path());
    options.max_bytes = 600 * 1024;
    Meter m(options);
    Event large{.name = "large"};
    large.properties["t"] = std::string(60000, 'x');
    std::atomic<int> small_stored{0}, full{0};
    std::vector<std::thread> workers;
    for (int t = 0; t < 8; ++t) {
        workers.emplace_back([&, t] {
            for (int i = 0; i < 10; ++i) {
                try {
                    if (t % 2 == 0) {
                        m.record(std::vector<Event>(20, large));
                    } else if (m.record({.id = std::to_string(t) + "-" + std::to_string(i), .name = "small"}).status == ReceiptStatus::stored) {
                        ++small_stored;
                    }
                } catch (const Error& error) {
                    if (error.code() == ErrorCode::full) ++full;
                }
            }
        });
    }
    for (std::thread& worker : workers) worker.join();
    CHECK(full == 40);
    CHECK(small_stored == 40);
    CHECK(count_all(m) == 40);
}

TEST_CASE("Many may make and open one new file at once") {
    for (int round = 0; round < 5; ++round) {
        Scratch scratch;
        std::atomic<int> stored{0};
        std::vector<std::string> faults(6);
        std::vector<std::thread> workers;
        for (std::size_t t = 0; t < faults.size(); ++t) {
            workers.emplace_back([&, t] {
                try {
                    Meter m(options_for(scratch.path()));
                    if (m.record({.id = std::to_string(t), .name = "a"}).status == ReceiptStatus::stored) ++stored;
                } catch (const std::exception& fault) {
                    faults[t] = fault.what();
                }
            });
        }
        for (std::thread& worker : workers) worker.join();
        for (const std::string& fault : faults) CHECK(fault == "");
        CHECK(stored == 6);
        Meter m(options_for(scratch.path()));
        CHECK(count_all(m) == 6);
    }
}

#ifdef METER_TEST_CHILDREN

// Run by the test below in another process.
TEST_CASE("child: records its own and the shared events", "[.child]") {
    const char* path = std::getenv("METER_CHILD_PATH");
    if (path == nullptr) return;
    Meter m(options_for(path, 64));
    const std::string own = std::getenv("METER_CHILD_NAME");
    for (int i = 0; i < 20; ++i) {
        for (const Receipt& receipt : m.record(numbered(own, i * 25, i * 25 + 25))) REQUIRE(receipt.status == ReceiptStatus::stored);
        for (const Receipt& receipt : m.record(numbered("shared", i * 10, i * 10 + 10))) REQUIRE(receipt.status != ReceiptStatus::refused);
        for (const Receipt& receipt : m.record(numbered("shared", i * 10, i * 10 + 10))) REQUIRE(receipt.status == ReceiptStatus::duplicate);
        REQUIRE(m.find(own + std::to_string(i * 25)));
        REQUIRE(m.list({.limit = 1, .count = true}).total >= (i + 1) * 35);
    }
}

TEST_CASE("Several processes on one file see each other's events, and find each other's duplicates") {
    Scratch scratch;
    Meter m(options_for(scratch.path(), 64));
    {
        std::vector<Child> children;
        for (const char* name : {"one-", "two-", "three-"}) {
            children.emplace_back("child: records its own and the shared events",
                                  std::vector<std::string>{"METER_CHILD_PATH=" + scratch.path(), std::string("METER_CHILD_NAME=") + name});
        }
        for (int i = 0; i < 20; ++i) {
            for (const Receipt& receipt : m.record(numbered("shared", i * 10, i * 10 + 10))) CHECK(receipt.status != ReceiptStatus::refused);
        }
        for (Child& child : children) CHECK(child.wait() == 0);
    }
    CHECK(count_all(m) == 3 * 500 + 200);
    CHECK(m.find("two-499"));
    for (const char* name : {"one-", "two-", "three-", "shared"}) {
        const int count = std::string(name) == "shared" ? 200 : 500;
        for (const Receipt& receipt : m.record(numbered(name, 0, count))) REQUIRE(receipt.status == ReceiptStatus::duplicate);
    }
    const PlainDatabase plain(scratch.path());
    CHECK(plain.integer("SELECT count(DISTINCT id) = count(*) FROM log") == 1);
    // Sealed once: chunks follow each other without a gap or an overlap, and hold every row.
    CHECK(plain.integer("SELECT count(*) FROM chunks c WHERE first <> (SELECT ifnull(max(last), 0) FROM chunks WHERE id < c.id)") == 0);
    CHECK(plain.integer("SELECT sum(rows) = (SELECT value FROM meta WHERE key = 'sealed') FROM segments") == 1);
    CHECK(m.aggregate({.code = "api_call"}).rows.at(0).value == Decimal(plain.integer("SELECT count(*) FROM events WHERE name = 'api_call'")));
}

TEST_CASE("A file that another process holds is busy after the time allowed, and nothing was stored") {
    Scratch scratch;
    MeterOptions options = options_for(scratch.path());
    options.busy_timeout = std::chrono::milliseconds(50);
    Meter m(options);
    m.record({.name = "a"});
    const PlainDatabase other(scratch.path());
    other.run("BEGIN IMMEDIATE");
    const Error error = error_of([&] { m.record({.name = "b"}); });
    CHECK(error.code() == ErrorCode::busy);
    CHECK(count_all(m) == 1);  // readers do not wait
    other.run("ROLLBACK");
    CHECK(m.record({.name = "b"}).sequence == 2);
}

TEST_CASE("A file that is not in WAL mode and that another process holds is waited for, as long as allowed") {
    Scratch scratch;
    MeterOptions options = options_for(scratch.path());
    { const Meter made(options); }
    const PlainDatabase other(scratch.path());
    other.run("PRAGMA journal_mode = DELETE; BEGIN IMMEDIATE");
    options.busy_timeout = std::chrono::milliseconds(50);
    CHECK(error_of([&] { Meter m(options); }).code() == ErrorCode::busy);

    options.busy_timeout = std::chrono::seconds(60);
    std::thread holder([&] {
        std::this_thread::sleep_for(std::chrono::milliseconds(100));
        other.run("ROLLBACK");
    });
    std::optional<Meter> m;
    CHECK_NOTHROW(m.emplace(options));
    holder.join();
    if (m) CHECK(m->record({.name = "a"}).status == ReceiptStatus::stored);
}
#endif

// ---- the file without this library ----

TEST_CASE("The events view shows every event to anyone with SQLite") {
    Scratch scratch;
    Meter m(options_for(scratch.path(), 64));
    m.record(full_event());
    m.record({.id = "0190a1b2-c3d4-7e5f-8a6b-7c8d9e0f1a2b", .name = "bare", .timestamp = Timestamp::parse("1969-12-31T23:59:59.000001Z")});
    m.record({.id = "old", .name = "bare", .timestamp = Timestamp::min()});
    m.record({.id = "new", .name = "bare", .timestamp = Timestamp::max()});
    m.record(numbered("x", 0, 200));
    REQUIRE(sealed_to(scratch.path(), 192));
    const PlainDatabase plain(scratch.path());
    const auto full = plain
                          .rows(
                              "SELECT id, name, customer, subscription, source, timestamp, timestamp_us, recorded_at_us, value, properties, extra "
                              "FROM events WHERE sequence = 1")
                          .at(0);
    CHECK(full[0] == "full");
    CHECK(full[1] == "api_call");
    CHECK(full[2] == "acme");
    CHECK(full[3] == "sub_1");
    CHECK(full[4] == "desktop");
    CHECK(full[5] == "2026-02-03T04:05:06.789012Z");
    CHECK(full[6] == std::to_string(full_event().timestamp->micros()));
    CHECK(full[7] == std::to_string(noon.micros()));
    CHECK(full[8] == "12.5");
    CHECK(json::parse(*full[9]) == full_event().properties);
    const json extra = json::parse(*full[10]);
    CHECK(extra["notice"]["body"] == "disk nearly full");
    CHECK(extra["precise_total_amount_cents"] == "99.125");
    CHECK(extra["extensions"] == full_event().extensions);
    const auto bare = plain.rows("SELECT id, customer, value, extra, timestamp, properties FROM events WHERE name = 'bare' ORDER BY sequence");
    CHECK(bare[0][0] == "0190a1b2-c3d4-7e5f-8a6b-7c8d9e0f1a2b");
    CHECK(bare[0][1] == std::nullopt);
    CHECK(bare[0][2] == std::nullopt);
    CHECK(bare[0][3] == std::nullopt);
    CHECK(bare[0][4] == "1969-12-31T23:59:59.000001Z");
    CHECK(bare[0][5] == "{}");
    CHECK(bare[1][4] == "0001-01-01T00:00:00.000000Z");
    CHECK(bare[2][4] == "9999-12-31T23:59:59.999999Z");
    CHECK(plain.integer("SELECT count(*) FROM events") == 204);
    CHECK(plain.integer("SELECT sum(json_extract(properties, '$.n')) FROM events") == 199 * 200 / 2);
}

TEST_CASE("From the view alone every event can be recorded anew, and answers every question as before") {
    Scratch scratch;
    Meter m(options_for(scratch.path(), 64)), copy(options_for(":memory:"));
    m.record(full_event());
    m.record(numbered("x", 0, 300));
    const PlainDatabase plain(scratch.path());
    for (const auto& row : plain.rows("SELECT id, name, customer, subscription, source, timestamp, value, properties, extra FROM events")) {
        const std::array<const char*, 5> keys{"id", "name", "customer", "subscription", "source"};
        json line = row[8] ? json::parse(*row[8]) : json::object();
        for (std::size_t i = 0; i < keys.size(); ++i) line[keys[i]] = row[i] ? json(*row[i]) : json(nullptr);
        line["timestamp"] = *row[5];
        line["value"] = row[6] ? json(*row[6]) : json(nullptr);
        line["properties"] = json::parse(*row[7]);
        REQUIRE(copy.record_json(line.dump()).at(0).status == ReceiptStatus::stored);
    }
    const auto events = m.list({.limit = 1000}).events, copied = copy.list({.limit = 1000}).events;
    REQUIRE(events.size() == 301);
    REQUIRE(copied.size() == 301);
    for (std::size_t i = 0; i < events.size(); ++i) require_same(events[i], copied[i]);
}

TEST_CASE("What is packed can be thrown away and is made again from the log") {
    Scratch scratch;
    const auto answers = [](Meter& m) {
        std::vector<std::string> texts;
        const Metric sum{.code = "api_call", .aggregation = Aggregation::sum, .property = "n"};
        for (const AggregateRow& row : m.aggregate(sum, {.bin = Bin::hour, .group_by = {"model", "customer"}}).rows) {
            texts.push_back(row.bin->to_string() + row.group[0].value() + row.group[1].value() + row.value.to_string());
        }
        for (const Event& event : m.list({.limit = 1000}).events) texts.push_back(event.id);
        return texts;
    };
    std::vector<std::string> before;
    {
        Meter m(options_for(scratch.path(), 64));
        m.record(numbered("x", 0, 900));
        REQUIRE(sealed_to(scratch.path(), 896));
        before = answers(m);
    }
    PlainDatabase(scratch.path())
        .run(
            "BEGIN; DELETE FROM chunks; DELETE FROM layouts; DELETE FROM segments; DELETE FROM columns; DELETE FROM runs; DELETE FROM run_blocks;"
            "UPDATE meta SET value = 0 WHERE key = 'sealed'; UPDATE meta SET value = value + 1 WHERE key = 'generation'; COMMIT;");
    Meter m(options_for(scratch.path(), 64));
    CHECK(answers(m) == before);
    for (const Receipt& receipt : m.record(numbered("x", 0, 900))) REQUIRE(receipt.status == ReceiptStatus::duplicate);
    CHECK(sealed_to(scratch.path(), 896));
    CHECK(answers(m) == before);
    for (const Receipt& receipt : m.record(numbered("x", 0, 900))) REQUIRE(receipt.status == ReceiptStatus::duplicate);
}

// ---- retention, compaction, verification ----

TEST_CASE("Retention removes whole sealed chunks by age, and nothing else changes") {
    Scratch scratch;
    const bool in_memory = GENERATE(false, true);
    MeterOptions options = options_for(in_memory ? ":memory:" : scratch.path(), 64);
    std::atomic<std::int64_t> clock{noon.micros()};
    options.clock = [&clock] { return Timestamp(clock); };
    Meter m(options);
    for (int i = 0; i < 10; ++i) {
        clock = (noon + std::chrono::hours(i)).micros();
        m.record(numbered("h" + std::to_string(i) + "-", 0, 64));
    }
    m.record(numbered("tail", 0, 10));
    if (!in_memory) REQUIRE(sealed_to(scratch.path(), 640));
    CHECK(m.prune({}).events == 0);
    CHECK(m.prune({.recorded_before = noon + std::chrono::hours(3)}).events == 3 * 64);
    CHECK(m.prune({.recorded_before = noon + std::chrono::hours(3)}).events == 0);
    CHECK(count_all(m) == 650 - 192);
    CHECK_FALSE(m.find("h2-63"));
    CHECK(m.find("h3-0").value().sequence == 193);
    CHECK(m.list({.names = {"api_call", "storage"}, .ids = {"h0-1", "h5-1"}}).events.size() == 1);
    CHECK(m.aggregate({.code = "api_call"}).rows.at(0).value == Decimal(7 * 22 + 4));
    CHECK(m.list_names({.sort = {{"name"}}}).total == 2);
    CHECK(m.record(numbered("h3-", 0, 1)).at(0).status == ReceiptStatus::duplicate);
    CHECK(m.record(numbered("h0-", 0, 1)).at(0).status == ReceiptStatus::stored);  // forgotten with its event
    CHECK(m.record({.name = "next"}).sequence == 652);
    CHECK(m.verify() == std::vector<std::string>{});
    // Everything sealed may go; sequences go on where they were.
    CHECK(m.prune({.recorded_before = Timestamp::max()}).events == 7 * 64);
    CHECK(m.record({.name = "next"}).sequence == 653);
    CHECK(count_all(m) == 13);
    CHECK(m.verify() == std::vector<std::string>{});
    if (in_memory) return;
    CHECK(PlainDatabase(scratch.path()).integer("SELECT count(*) FROM events") == 13);
    CHECK(PlainDatabase(scratch.path()).integer("SELECT count(*) FROM segments") == 0);
}

TEST_CASE("Retention by size removes as much as is too much, and no more") {
    Scratch scratch;
    Meter m(options_for(scratch.path(), 64));
    for (int i = 0; i < 100; ++i) m.record(numbered(std::to_string(i) + "-", 0, 64));
    REQUIRE(sealed_to(scratch.path(), 6400));
    const PlainDatabase plain(scratch.path());
    const auto used = [&] {
        return (plain.integer("PRAGMA page_count") - plain.integer("PRAGMA freelist_count")) * plain.integer("PRAGMA page_size");
    };
    const std::int64_t before = used(), keep = before / 2;
    const std::int64_t gone = m.prune({.keep_bytes = keep}).events;
    CHECK(gone % 64 == 0);
    CHECK(used() <= keep);
    CHECK(used() > keep - before / 10);
    CHECK(count_all(m) == 6400 - gone);
    CHECK(m.prune({.keep_bytes = keep}).events == 0);
    CHECK(error_of([&] { m.prune({.keep_bytes = -1}); }).field() == "keep_bytes");
    for (const Receipt& receipt : m.record(numbered("99-", 0, 64))) REQUIRE(receipt.status == ReceiptStatus::duplicate);
}

TEST_CASE("Compaction gives room back to the disk, and says how far it is") {
    Scratch scratch;
    Meter m(options_for(scratch.path(), 64));
    for (int i = 0; i < 100; ++i) m.record(numbered(std::to_string(i) + "-", 0, 64));
    REQUIRE(sealed_to(scratch.path(), 6400));
    m.prune({.recorded_before = Timestamp::max()});
    m.compact();
    const auto size = std::filesystem::file_size(scratch.path());
    m.record(numbered("x", 0, 5000));
    REQUIRE(sealed_to(scratch.path(), 6400 + 4992));
    m.prune({.recorded_before = Timestamp::max()});
    std::vector<std::pair<std::int64_t, std::int64_t>> steps;
    m.compact([&](std::int64_t done, std::int64_t total) { steps.emplace_back(done, total); });
    REQUIRE_FALSE(steps.empty());
    CHECK(std::is_sorted(steps.begin(), steps.end()));
    CHECK(steps.back().first == steps.back().second);
    CHECK(std::filesystem::file_size(scratch.path()) < size + 300 * 1024);
    CHECK(std::filesystem::file_size(scratch.path() + "-wal") == 0);
    CHECK(count_all(m) == 8);
    CHECK(m.verify() == std::vector<std::string>{});
}

TEST_CASE("Verification finds what differs from the log, and makes it again when told to") {
    const std::vector<std::string> damages{
        "UPDATE columns SET data = zeroblob(length(data)) WHERE id = (SELECT max(id) FROM columns)",
        "UPDATE columns SET data = x'00' WHERE id = (SELECT min(id) FROM columns)",
        "UPDATE columns SET hash = hash + 1 WHERE id = (SELECT min(id) FROM columns)",
        "UPDATE columns SET data = zeroblob(length(data)), hash = NULL WHERE id = (SELECT max(id) FROM columns)",
        "UPDATE run_blocks SET filter = zeroblob(1024) WHERE id = (SELECT max(id) FROM run_blocks)",
        "UPDATE run_blocks SET filter = zeroblob(1024), filter_hash = NULL WHERE id = (SELECT max(id) FROM run_blocks)",
        "UPDATE run_blocks SET entries = zeroblob(length(entries)), entries_hash = NULL WHERE id = (SELECT max(id) FROM run_blocks)",
        "DELETE FROM columns WHERE id = (SELECT max(id) FROM columns)",
        "UPDATE segments SET rows = rows + 1 WHERE id = 2",
        "UPDATE segments SET last_time = 0 WHERE id = 3",
        "DELETE FROM segments WHERE id = 1",
        "INSERT INTO segments(chunk, name, layout, rows, first_time, last_time) SELECT chunk, name, layout, rows, first_time, last_time FROM "
        "segments "
        "WHERE id = 1",
        "UPDATE layouts SET keys = 'nonsense' WHERE id = 1",
        "DELETE FROM chunks WHERE id = 3",
        "UPDATE meta SET value = value - 64 WHERE key = 'sealed'",
        "DELETE FROM run_blocks WHERE id = (SELECT max(id) FROM run_blocks)",
        "UPDATE run_blocks SET entries = zeroblob(length(entries)) WHERE id = (SELECT max(id) FROM run_blocks)",
        "UPDATE run_blocks SET entries = x'0102'",
        "DELETE FROM runs",
    };
    for (const std::string& damage : damages) {
        CAPTURE(damage);
        Scratch one;
        {
            Meter m(options_for(one.path(), 64));
            m.record(numbered("x", 0, 300));
            REQUIRE(sealed_to(one.path(), 256));
            REQUIRE(m.verify() == std::vector<std::string>{});
        }
        PlainDatabase(one.path()).run(damage);
        Meter m(options_for(one.path(), 64));
        CHECK_FALSE(m.verify().empty());
        CHECK_FALSE(m.verify(true).empty());
        CHECK(m.verify() == std::vector<std::string>{});
        CHECK(count_all(m) == 300);
        for (const Receipt& receipt : m.record(numbered("x", 0, 300))) REQUIRE(receipt.status == ReceiptStatus::duplicate);
        CHECK(m.aggregate({.code = "api_call", .aggregation = Aggregation::sum, .property = "n"}).rows.at(0).value == Decimal(99 * 100 / 2 * 3));
    }
}

namespace {

// Flips one bit of a blob, so that SQLite itself notices nothing.
void flip_bit(const PlainDatabase& database, const std::string& table, const std::string& column, const std::string& id, std::size_t bit) {
    const std::string hex = database.text("SELECT hex(" + column + ") FROM " + table + " WHERE id = " + id);
    std::string changed = hex;
    constexpr std::string_view digits = "0123456789ABCDEF";
    char& digit = changed[bit / 4 % changed.size()];
    digit = digits[digits.find(digit) ^ (std::size_t{1} << bit % 4)];
    database.run("UPDATE " + table + " SET " + column + " = x'" + changed + "' WHERE id = " + id);
}

}  // namespace

TEST_CASE("A bit that flipped in what was sealed never becomes an answer") {
    Scratch scratch;
    {
        Meter m(options_for(scratch.path(), 64));
        m.record(numbered("x", 0, 64));
        REQUIRE(sealed_to(scratch.path(), 64));
    }
    const auto ask = [&] {
        const Meter m(options_for(scratch.path(), 64));
        return m.aggregate({.code = "storage", .aggregation = Aggregation::sum, .property = "n"}, {.group_by = {"customer", "model"}}).rows.size() +
               m.list({.customer = "c1", .count = true}).events.size();
    };
    const std::size_t right = ask();
    int refusals = 0;
    for (const auto& row : PlainDatabase(scratch.path()).rows("SELECT id, length(data) FROM columns")) {
        for (std::size_t bit = 0; bit < 8 * std::stoull(row[1].value()); bit += 61) {
            CAPTURE(row[0].value(), bit);
            flip_bit(PlainDatabase(scratch.path()), "columns", "data", row[0].value(), bit);
            std::size_t answer = right;  // where the column is not asked for
            std::string refused;
            try {
                answer = ask();
            } catch (const Error& error) {
                refused = error.what();
            }
            CHECK(answer == right);
            if (!refused.empty()) CHECK(refused == "columns: does not match its checksum; verify(true) makes it again from the log");
            refusals += refused.empty() ? 0 : 1;
            flip_bit(PlainDatabase(scratch.path()), "columns", "data", row[0].value(), bit);
        }
    }
    CHECK(refusals > 50);
    for (const std::string column : {"filter", "entries"}) {
        CAPTURE(column);
        flip_bit(PlainDatabase(scratch.path()), "run_blocks", column, "(SELECT max(id) FROM run_blocks)", 100);
        Meter m(options_for(scratch.path(), 64));
        CHECK(error_of([&] { m.record(numbered("x", 0, 64)); }).code() == ErrorCode::corrupt);
        CHECK_FALSE(m.verify(true).empty());
        for (const Receipt& receipt : m.record(numbered("x", 0, 64))) REQUIRE(receipt.status == ReceiptStatus::duplicate);
    }
    CHECK(ask() == right);
}

TEST_CASE("A repair in one Meter does not mislead another that is open on the file") {
    Scratch scratch;
    Meter first(options_for(scratch.path(), 64)), second(options_for(scratch.path(), 64));
    for (int round = 0; round < 6; ++round) {
        const std::string prefix = "r" + std::to_string(round) + "-";
        first.record(numbered(prefix, 0, 200));
        REQUIRE(sealed_to(scratch.path(), round * 200 + 128));
        CHECK(second.record(numbered(prefix, 100, 101)).at(0).status == ReceiptStatus::duplicate);  // second has its runs in memory now
        PlainDatabase(scratch.path()).run("DELETE FROM columns WHERE id = (SELECT max(id) FROM columns)");
        first.prune({.recorded_before = round == 3 ? Timestamp::max() : Timestamp::min()});
        first.verify(true);
        const std::int64_t kept = PlainDatabase(scratch.path()).integer("SELECT min(sequence) FROM log");
        for (const Event& event : first.list({.limit = 1000}).events) {
            REQUIRE(event.sequence >= kept);
            Event again = event;
            REQUIRE(second.record(again).status == ReceiptStatus::duplicate);
        }
    }
}

TEST_CASE("The write-ahead log stays small however much is recorded") {
    Scratch scratch;
    Meter m(options_for(scratch.path(), 1024));
    Event event{.name = "a", .timestamp = noon, .properties = {{"t", std::string(1000, 'x')}}};
    std::uintmax_t most = 0;
    for (int i = 0; i < 200; ++i) {
        m.record(std::vector<Event>(100, event));
        most = std::max(most, std::filesystem::file_size(scratch.path() + "-wal"));
    }
    CHECK(std::filesystem::file_size(scratch.path()) > 16 * 1024 * 1024);
    CHECK(most < 12 * 1024 * 1024);
}
