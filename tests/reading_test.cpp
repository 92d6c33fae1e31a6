// Find, list and names: every condition, the order, cursors, paging, and what is refused.
#include <algorithm>
#include <random>
#include <set>

#include "../meter.hpp"
#include "support/noon.hpp"
#include "support/scratch.hpp"
#include "testing.hpp"

using namespace meter;
using namespace meter_test;

namespace {

std::vector<std::string> ids_of(const Page& page) {
    std::vector<std::string> ids;
    for (const Event& event : page.events) ids.push_back(event.id);
    return ids;
}

using Ids = std::vector<std::string>;

/// Takes everything, as Lago answers.
struct Taking : Transport {
    HttpResponse exchange(const HttpRequest& request, std::chrono::milliseconds) override { return {.status = 200, .body = request.body}; }
};

Meter small_log() {
    Meter m(options_for());
    m.record(
        {{.id = "1", .name = "a", .customer = "acme", .subscription = "s1", .timestamp = noon, .source = "x", .properties = {{"k", 1}}},
         {.id = "2", .name = "b", .customer = "acme", .subscription = "s2", .timestamp = noon + std::chrono::seconds(1), .properties = {{"k", "1"}}},
         {.id = "3", .name = "a", .customer = "bolt", .subscription = "s1", .timestamp = noon - std::chrono::seconds(1), .source = "y"},
         {.id = "4", .name = "c", .timestamp = noon, .source = "x", .properties = {{"k", 2}}},
         {.id = "5", .name = "a", .customer = "acme", .timestamp = noon, .properties = {{"k", 1.0}}}});
    return m;
}

}  // namespace

TEST_CASE("A list meets each condition, and all of them together") {
    Meter m = small_log();
    for (int sealed = 0; sealed < 2; ++sealed) {
        CHECK(ids_of(m.list({.names = {"a", "b", "c"}})) == Ids{"2", "5", "4", "1", "3"});
        CHECK(ids_of(m.list({.names = {"a", "b", "c"}, .sort = {{"timestamp"}}})) == Ids{"3", "1", "4", "5", "2"});
        CHECK(ids_of(m.list({.customer = "acme"})) == Ids{"2", "5", "1"});
        CHECK(ids_of(m.list({.subscription = "s1"})) == Ids{"1", "3"});
        CHECK(ids_of(m.list({.customer = "acme", .subscription = "s1"})) == Ids{"1"});
        CHECK(ids_of(m.list({.names = {"a"}})) == Ids{"5", "1", "3"});
        CHECK(ids_of(m.list({.names = {"b", "c", "nothing"}})) == Ids{"2", "4"});
        CHECK(ids_of(m.list({.sources = {"x"}})) == Ids{"4", "1"});
        CHECK(ids_of(m.list({.sources = {"x", "y"}})) == Ids{"4", "1", "3"});
        CHECK(ids_of(m.list({.ids = {"5", "3", "nobody", "5"}})) == Ids{"5", "3"});
        CHECK(ids_of(m.list({.ids = {"nobody"}})).empty());
        CHECK(ids_of(m.list({.names = {"a"}, .ids = {"5", "2"}})) == Ids{"5"});
        CHECK(ids_of(m.list({.names = {"a", "b", "c"}, .period = {noon, noon + std::chrono::seconds(1)}})) == Ids{"5", "4", "1"});
        CHECK(ids_of(m.list({.filter = Filter::equals("k", 1)})) == Ids{"2", "5", "1"});
        CHECK(ids_of(m.list({.customer = "acme", .names = {"a"}, .filter = Filter::equals("k", 1)})) == Ids{"5", "1"});
        CHECK(ids_of(m.list({.customer = "bolt", .filter = Filter::equals("k", 1)})).empty());
        CHECK(ids_of(m.list({.customer = "nobody"})).empty());
        CHECK(ids_of(m.list({.names = {"nothing"}})).empty());
        m.record(std::vector<Event>(64, {.name = "filler", .timestamp = noon - std::chrono::hours(1)}));
    }
}

TEST_CASE("A page says how many match in all, when asked") {
    Meter m = small_log();
    CHECK_FALSE(m.list().total);
    CHECK(m.list({.count = true}).total == 5);
    CHECK(m.list({.customer = "acme", .limit = 1, .count = true}).total == 3);
    CHECK(m.list({.customer = "acme", .limit = 1, .offset = 2, .count = true}).total == 3);
    CHECK(m.list({.customer = "nobody", .count = true}).total == 0);
    const Page first = m.list({.customer = "acme", .limit = 2, .count = true});
    CHECK(m.list(first.next).total == 3);
}

TEST_CASE("Pages by offset, and a cursor from where they end") {
    Meter m = small_log();
    CHECK(ids_of(m.list({.limit = 2, .offset = 0})) == Ids{"2", "5"});
    CHECK(ids_of(m.list({.limit = 2, .offset = 2})) == Ids{"4", "1"});
    CHECK(ids_of(m.list({.limit = 2, .offset = 4})) == Ids{"3"});
    CHECK(ids_of(m.list({.limit = 2, .offset = 5})).empty());
    CHECK(ids_of(m.list({.limit = 2, .offset = std::numeric_limits<std::int64_t>::max()})).empty());
    CHECK(ids_of(m.list(m.list({.limit = 2, .offset = 1}).next)) == Ids{"1", "3"});
    CHECK_FALSE(m.list({.limit = 5}).next);
    CHECK_FALSE(m.list({.limit = 2, .offset = 4}).next);
    CHECK(m.list({.limit = 4}).next);
}

TEST_CASE("A cursor is good for another Meter on the same file, and holds the whole question") {
    Scratch scratch;
    Cursor cursor;
    {
        Meter m(options_for(scratch.path()));
        for (int i = 0; i < 10; ++i) {
            m.record({.id = std::to_string(i),
                      .name = "it's",
                      .customer = "\xC3\xA9",
                      .subscription = "s",
                      .timestamp = noon,
                      .source = "x",
                      .properties = {{"k", i % 2 == 0 ? "e\"v" : "odd"}}});
        }
        const ListQuery query{.customer = "\xC3\xA9",
                              .subscription = "s",
                              .names = {"it's", "other"},
                              .sources = {"x"},
                              .period = {noon, noon + std::chrono::seconds(1)},
                              .filter = Filter::equals("k", "e\"v"),
                              .sort = {{"timestamp"}},
                              .limit = 2};
        const Page page = m.list(query);
        CHECK(ids_of(page) == Ids{"0", "2"});
        cursor = page.next;
    }
    Meter m(options_for(scratch.path()));
    const Page page = m.list(cursor);
    CHECK(ids_of(page) == Ids{"4", "6"});
    CHECK(ids_of(m.list(page.next)) == Ids{"8"});
    CHECK_FALSE(m.list(page.next).next);
    CHECK(ids_of(m.list(cursor)) == Ids{"4", "6"});
}

TEST_CASE("Cursors neither skip nor repeat an event while others arrive") {
    const std::uint64_t seed = test_seed();
    CAPTURE(seed);
    std::mt19937_64 random(seed);
    for (int round = 0; round < 20; ++round) {
        CAPTURE(round);
        Meter m(options_for());
        int made = 0;
        const auto arrive = [&](int count) {
            std::vector<Event> events;
            for (int i = 0; i < count; ++i) {
                events.push_back({.id = std::to_string(made++),
                                  .name = random() % 3 == 0 ? "b" : "a",
                                  .customer = random() % 2 == 0 ? "c" : "d",
                                  .timestamp = noon + std::chrono::seconds(random() % 20)});
            }
            m.record(events);
        };
        arrive(static_cast<int>(random() % 300));
        const bool newest = random() % 2 == 0;
        ListQuery query{.sort = {{"timestamp", newest}}, .limit = 1 + static_cast<std::int64_t>(random() % 40)};
        if (random() % 2 == 0) query.names = {"a"};
        if (random() % 2 == 0) query.customer = "c";
        const auto fits = [&](const Event& event) {
            return (query.names.empty() || event.name == "a") && (query.customer.empty() || event.customer == "c");
        };
        std::set<std::string> present;
        for (int i = 0; i < made; ++i) {
            if (fits(m.find(std::to_string(i)).value())) present.insert(std::to_string(i));
        }
        std::set<std::string> seen;
        std::optional<std::pair<Timestamp, std::int64_t>> last;
        Page page = m.list(query);
        for (;;) {
            for (const Event& event : page.events) {
                const std::pair place(event.timestamp.value(), event.sequence);
                if (last) REQUIRE((newest ? place < *last : place > *last));
                last = place;
                REQUIRE(fits(event));
                REQUIRE(seen.insert(event.id).second);
            }
            if (!page.next) break;
            if (random() % 2 == 0 && made < 2000) arrive(static_cast<int>(random() % 60));
            page = m.list(page.next);
        }
        CHECK(std::includes(seen.begin(), seen.end(), present.begin(), present.end()));
    }
}

TEST_CASE("A property that is an object exists, and is otherwise as if it were missing") {
    Meter m(options_for());
    const auto record = [&](const std::string& id, const std::string& properties) {
        m.record_json("{\"id\":\"" + id + "\",\"name\":\"a\",\"timestamp\":\"2026-03-01T12:00:00Z\",\"properties\":" + properties + "}");
    };
    record("1", R"({"a":{"b":1}})");
    record("2", R"({"a":{"b":{"c":null}},"ab":1})");
    record("3", R"({"a":5})");
    record("4", R"({"a":null})");
    record("5", R"({"ab":{"b":1}})");
    record("6", R"({"a":{}})");
    const auto found = [&](const Filter& filter) {
        return ids_of(m.list({.filter = Filter::all({Filter::equals("name", "a"), filter}), .sort = {{"id"}}}));
    };
    const auto by = [&](const std::string& field, Operator op, const json& value) { return found(Filter::where(field, op, value)); };
    for (int sealed = 0; sealed < 2; ++sealed) {
        CHECK(by("a", Operator::exists, true) == Ids{"1", "2", "3", "6"});
        CHECK(by("a", Operator::exists, false) == Ids{"4", "5"});
        CHECK(by("properties.a", Operator::exists, true) == Ids{"1", "2", "3", "6"});
        CHECK(by("a.b", Operator::exists, true) == Ids{"1", "2"});
        CHECK(by("a.b.c", Operator::exists, true).empty());
        CHECK(by("ab", Operator::exists, true) == Ids{"2", "5"});
        CHECK(by("b", Operator::exists, true).empty());
        CHECK(by("a", Operator::ne, 5) == Ids{"1", "2", "4", "5", "6"});
        CHECK(by("a", Operator::not_contains, "b") == Ids{"1", "2", "3", "4", "5", "6"});
        CHECK(by("a", Operator::contains, "b").empty());
        CHECK(by("a", Operator::gte, 0) == Ids{"3"});
        std::vector<std::optional<std::string>> groups;
        for (const AggregateRow& row : m.aggregate({.code = "a"}, {.group_by = {"a"}}).rows) groups.push_back(row.group.at(0));
        CHECK(groups == std::vector<std::optional<std::string>>{std::nullopt, "5", "{}"});
        m.record(std::vector<Event>(64, {.name = "filler"}));
    }
    // As a selection of events to send sees it, too.
    Meter other(options_for());
    for (Event event : m.list({.names = {"a"}}).events) {
        event.subscription = "s";
        other.record(event);
    }
    other.connect(Upstream::lago({.api_key = "k", .transport = std::make_shared<Taking>(), .selection = Filter::where("a", Operator::exists, true)}));
    other.flush();
    CHECK(other.balance("lago").delivered == 4);
    CHECK(other.balance("lago").skipped == 2);
}

TEST_CASE("Limits, offsets, periods and texts that cannot be are refused by name") {
    Meter m = small_log();
    const auto error = [&](const ListQuery& query) { return error_of([&] { m.list(query); }); };
    CHECK(error({.limit = 0}).field() == "limit");
    CHECK(error({.limit = -1}).field() == "limit");
    CHECK(error({.limit = static_cast<std::int64_t>(limits::page_events) + 1}).field() == "limit");
    CHECK(error({.offset = -1}).field() == "offset");
    CHECK(error({.period = {noon, noon}}).field() == "period");
    CHECK(error({.period = {noon, noon - std::chrono::microseconds(1)}}).field() == "period");
    CHECK(error({.customer = "\xFF"}).field() == "customer");
    CHECK(error({.subscription = "\xFF"}).field() == "subscription");
    CHECK(error({.names = {"a", "\xFF"}}).field() == "names");
    CHECK(error({.sources = {std::string("\0", 1)}}).field() == "sources");
    CHECK(error({.ids = {"\xFF"}}).field() == "ids");
    CHECK_FALSE(error({.customer = "nobody", .filter = Filter::where("k", Operator::in, 1)}).field().empty());
    CHECK_FALSE(error({.filter = Filter::equals("", 1)}).field().empty());
    CHECK(error({.limit = 0}).code() == ErrorCode::bad_value);
    CHECK(ids_of(m.list({.limit = static_cast<std::int64_t>(limits::page_events)})).size() == 5);
}

TEST_CASE("A cursor that list() did not make is refused") {
    Meter m = small_log();
    const std::string good = m.list({.limit = 1}).next.text;
    std::vector<std::string> texts{"",     "x",  "!!!", "e30", "bnVsbA", "W10", std::string(100000, 'A'), good + "=", good.substr(0, good.size() / 2),
                                   "\xFF", "a b"};
    for (const std::string& text : texts) {
        CAPTURE(text);
        const Error error = error_of([&] { m.list(Cursor{text}); });
        CHECK(error.code() == ErrorCode::bad_cursor);
        CHECK(error.field() == "cursor");
    }
    const std::uint64_t seed = test_seed();
    CAPTURE(seed);
    std::mt19937_64 random(seed);
    for (int i = 0; i < 2000; ++i) {  // changed anywhere
        std::string text = good;
        text[random() % text.size()] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"[random() % 64];
        if (text != good) REQUIRE(error_of([&] { m.list(Cursor{text}); }).code() == ErrorCode::bad_cursor);
    }
}

TEST_CASE("A question goes on after a cursor of its own, not after another's") {
    Meter m = small_log();
    const ListQuery query{.customer = "acme", .sort = {{"name"}}, .limit = 1};
    const Cursor first = m.list(query).next;
    const auto after = [&](ListQuery next, const Cursor& cursor) {
        next.after = cursor;
        return m.list(next);
    };
    CHECK(ids_of(m.list(query)) == Ids{"1"});
    CHECK(ids_of(after(query, first)) == Ids{"5"});
    CHECK(ids_of(after(query, after(query, first).next)) == Ids{"2"});
    CHECK_FALSE(after(query, after(query, first).next).next);
    // The size of a page, the offset and the count may change on the way.
    ListQuery larger = query;
    larger.limit = 10;
    larger.count = true;
    CHECK(ids_of(after(larger, first)) == Ids{"5", "2"});
    CHECK(after(larger, first).total == 3);
    larger.offset = 1;
    CHECK(ids_of(after(larger, first)) == Ids{"2"});

    std::vector<ListQuery> others(9, query);
    others[0].customer = "bolt";
    others[1].subscription = "s1";
    others[2].names = {"a"};
    others[3].sources = {"x"};
    others[4].ids = {"1"};
    others[5].period = {noon, noon + std::chrono::seconds(9)};
    others[6].filter = Filter::equals("k", 1);
    others[7].sort = {{"name", true}};
    others[8].sort = {{"name"}, {"timestamp"}};
    for (const ListQuery& other : others) {
        const Error error = error_of([&] { after(other, first); });
        CHECK(error.code() == ErrorCode::bad_cursor);
        CHECK(error.field() == "cursor");
    }
}

TEST_CASE("Values of all kinds have one order, and its reverse") {
    Meter m(options_for());
    const std::vector<std::string> values{"null", "false",  "true",  "-2",    "0.5",   "3",          "1e3", "12345678901234567890123456789012345678",
                                          "\"\"", "\"10\"", "\"9\"", "\"B\"", "\"a\"", "\"\u00e9\"", "[1]", "[2]"};
    std::vector<std::size_t> arrival(values.size());
    for (std::size_t i = 0; i < arrival.size(); ++i) arrival[i] = i;
    const std::uint64_t seed = test_seed();
    CAPTURE(seed);
    std::mt19937_64 random(seed);
    std::shuffle(arrival.begin(), arrival.end(), random);
    for (const std::size_t i : arrival) {
        m.record_json("{\"id\":\"" + std::to_string(100 + i) + "\",\"name\":\"a\",\"properties\":{\"in\":{\"k\":" + values[i] + "}}}");
    }
    m.record({.id = "none", .name = "b"});
    m.record({.id = "object", .name = "b", .properties = {{"in", {{"k", {{"deep", 1}}}}}}});
    const Ids none{"none", "object"};  // and null: equal, so in the order of recording
    for (int sealed = 0; sealed < 2; ++sealed) {
        Ids up = ids_of(m.list({.names = {"a", "b"}, .sort = {{"in.k"}}}));
        REQUIRE(up.size() == values.size() + 2);
        CHECK(Ids(up.begin(), up.begin() + 3) == Ids{"100", "none", "object"});
        for (std::size_t i = 1; i < values.size(); ++i) CHECK(up[i + 2] == std::to_string(100 + i));
        Ids down = ids_of(m.list({.names = {"a", "b"}, .sort = {{"properties.in.k", true}}}));
        std::reverse(down.begin(), down.end());
        CHECK(down == up);
        m.record(std::vector<Event>(64, {.name = "filler"}));
    }
}

TEST_CASE("Several keys, each in its direction") {
    Meter m = small_log();
    const auto sorted = [&](std::vector<SortKey> sort) { return ids_of(m.list({.names = {"a", "b", "c"}, .sort = std::move(sort)})); };
    for (int sealed = 0; sealed < 2; ++sealed) {
        CHECK(sorted({{"customer"}, {"timestamp", true}}) == Ids{"4", "2", "5", "1", "3"});
        CHECK(sorted({{"customer", true}, {"timestamp"}}) == Ids{"3", "1", "5", "2", "4"});
        CHECK(sorted({{"timestamp", true}, {"id"}}) == Ids{"2", "1", "4", "5", "3"});
        CHECK(sorted({{"timestamp"}, {"id", true}}) == Ids{"3", "5", "4", "1", "2"});
        CHECK(sorted({{"id", true}}) == Ids{"5", "4", "3", "2", "1"});
        CHECK(sorted({{"source", true}, {"name"}, {"subscription", true}}) == Ids{"3", "1", "4", "5", "2"});
        CHECK(sorted({{"k", true}, {"name", true}, {"id"}}) == Ids{"2", "4", "1", "5", "3"});  // a text comes after numbers, whatever it holds
        CHECK(sorted({{"nothing"}}) == Ids{"1", "2", "3", "4", "5"});
        CHECK(sorted({{"nothing", true}}) == Ids{"5", "4", "3", "2", "1"});
        m.record(std::vector<Event>(64, {.name = "filler", .timestamp = noon - std::chrono::hours(1)}));
    }
}

TEST_CASE("Sorted pages neither skip nor repeat an event while others arrive") {
    const std::uint64_t seed = test_seed();
    CAPTURE(seed);
    std::mt19937_64 random(seed);
    const std::vector<std::string> fields{"k", "customer", "id", "timestamp", "nested.text", "name"};
    for (int round = 0; round < 20; ++round) {
        CAPTURE(round);
        Meter m(options_for());
        int made = 0;
        const auto arrive = [&](std::uint64_t count) {
            const std::vector<json> values{nullptr, true, 1, 2.5, "x", "y", json::array({1}), "1"};
            std::vector<Event> events;
            for (std::uint64_t i = 0; i < count; ++i) {
                events.push_back({.id = std::to_string(made++),
                                  .name = random() % 3 == 0 ? "b" : "a",
                                  .customer = random() % 2 == 0 ? "c" : "",
                                  .timestamp = noon + std::chrono::seconds(random() % 5),
                                  .properties = {{"k", values[random() % values.size()]}, {"nested", {{"text", values[random() % values.size()]}}}}});
            }
            m.record(events);
        };
        arrive(random() % 300);
        ListQuery query{.limit = 1 + static_cast<std::int64_t>(random() % 40)};
        for (std::uint64_t i = 1 + random() % 3; i > 0; --i) query.sort.push_back({fields[random() % fields.size()], random() % 2 == 0});
        std::set<std::string> present, seen;
        for (int i = 0; i < made; ++i) present.insert(std::to_string(i));
        for (Page page = m.list(query);; page = m.list(page.next)) {
            for (const Event& event : page.events) REQUIRE(seen.insert(event.id).second);
            if (!page.next) break;
            if (random() % 2 == 0 && made < 2000) arrive(random() % 60);
        }
        CHECK(std::includes(seen.begin(), seen.end(), present.begin(), present.end()));
    }
}

TEST_CASE("What a list cannot be sorted by is refused") {
    Meter m = small_log();
    const auto error = [&](std::vector<SortKey> sort) { return error_of([&] { m.list({.sort = std::move(sort)}); }); };
    for (const Error& fault : {error({{""}}), error({{"k"}, {"\xFF"}}), error(std::vector<SortKey>(limits::sort_keys + 1, {"k"}))}) {
        CHECK(fault.code() == ErrorCode::bad_value);
        CHECK(fault.field() == "sort");
    }
    CHECK(m.list({.sort = std::vector<SortKey>(limits::sort_keys, {"k"})}).events.size() == 5);
}

TEST_CASE("Names with how often, first and last, in every order") {
    Meter m(options_for());
    const auto add = [&](const std::string& name, const std::string& customer, std::vector<int> seconds) {
        for (const int s : seconds) m.record({.name = name, .customer = customer, .timestamp = noon + std::chrono::seconds(s)});
    };
    add("api_call", "acme", {5, 1, 9});
    add("Storage", "acme", {2, 3});
    add("storage", "bolt", {0, 20});
    add("ping", "bolt", {4});
    for (int sealed = 0; sealed < 2; ++sealed) {
        const auto names = [&](NamesQuery query) {
            query.period = {noon, Timestamp::max()};
            Ids found;
            for (const NameInfo& info : m.list_names(query).rows) found.push_back(info.name);
            return found;
        };
        CHECK(names({}) == Ids{"storage", "api_call", "ping", "Storage"});
        CHECK(names({.sort = {{"last_seen"}}}) == Ids{"Storage", "ping", "api_call", "storage"});
        CHECK(names({.sort = {{"name"}}}) == Ids{"Storage", "api_call", "ping", "storage"});
        CHECK(names({.sort = {{"name", true}}}) == Ids{"storage", "ping", "api_call", "Storage"});
        CHECK(names({.sort = {{"occurrences", true}}}) == Ids{"api_call", "Storage", "storage", "ping"});
        CHECK(names({.sort = {{"occurrences"}, {"name", true}}}) == Ids{"ping", "storage", "Storage", "api_call"});
        CHECK(names({.sort = {{"first_seen"}}}) == Ids{"storage", "api_call", "Storage", "ping"});
        CHECK(names({.text = "STOR"}) == Ids{"storage", "Storage"});
        CHECK(names({.text = "i_c"}) == Ids{"api_call"});
        CHECK(names({.text = "%"}).empty());
        CHECK(names({.customer = "bolt"}) == Ids{"storage", "ping"});
        CHECK(names({.customer = "nobody"}).empty());
        CHECK(names({.filter = Filter::where("customer", Operator::in, {"bolt", "nobody"})}) == Ids{"storage", "ping"});
        CHECK(names({.limit = 2}) == Ids{"storage", "api_call"});
        CHECK(names({.limit = 2, .offset = 2}) == Ids{"ping", "Storage"});
        CHECK(names({.limit = 2, .offset = 4}).empty());
        CHECK(m.list_names({.period = {noon, Timestamp::max()}, .limit = 1, .offset = 9}).total == 4);
        const auto infos = m.list_names({.customer = "acme", .text = "api", .period = {noon + std::chrono::seconds(2), Timestamp::max()}}).rows;
        REQUIRE(infos.size() == 1);
        CHECK(infos[0].occurrences == 2);
        CHECK(infos[0].first_seen == noon + std::chrono::seconds(5));
        CHECK(infos[0].last_seen == noon + std::chrono::seconds(9));
        m.record(std::vector<Event>(64, {.name = "filler", .timestamp = noon - std::chrono::hours(1)}));
    }
}

TEST_CASE("Sources, and names by source") {
    Meter m = small_log();
    for (int sealed = 0; sealed < 2; ++sealed) {
        const NamesQuery recent{.period = {noon - std::chrono::seconds(5), Timestamp::max()}};
        const NameList sources = m.list_sources(recent);
        CHECK(sources.total == 2);
        REQUIRE(sources.rows.size() == 2);
        CHECK(sources.rows[0].source == "x");
        CHECK(sources.rows[0].name.empty());
        CHECK(sources.rows[0].occurrences == 2);
        CHECK(sources.rows[0].first_seen == noon);
        CHECK(sources.rows[1].source == "y");
        CHECK(sources.rows[1].last_seen == noon - std::chrono::seconds(1));
        CHECK(m.list_sources({.text = "Y"}).rows.at(0).occurrences == 1);
        CHECK(m.list_sources({.customer = "bolt"}).total == 1);

        NamesQuery by_source = recent;
        by_source.by_source = true;
        by_source.sort = {{"name"}, {"source", true}};
        std::vector<std::pair<std::string, std::string>> rows;
        for (const NameInfo& row : m.list_names(by_source).rows) rows.emplace_back(row.name, row.source);
        CHECK(rows == std::vector<std::pair<std::string, std::string>>{{"a", "y"}, {"a", "x"}, {"a", ""}, {"b", ""}, {"c", "x"}});
        m.record(std::vector<Event>(64, {.name = "filler", .timestamp = noon - std::chrono::hours(1)}));
    }
}

TEST_CASE("What cannot be asked about names is refused") {
    Meter m = small_log();
    const std::vector<std::pair<NamesQuery, std::string>> wrong{{{.customer = "\xFF"}, "customer"},
                                                                {{.text = "\xFF"}, "text"},
                                                                {{.period = {noon, noon}}, "period"},
                                                                {{.period = {noon, noon - std::chrono::hours(1)}}, "period"},
                                                                {{.filter = Filter::equals("", 1)}, "filter.field"},
                                                                {{.sort = {{"timestamp"}}}, "sort"},
                                                                {{.sort = {{""}}}, "sort"},
                                                                {{.sort = std::vector<SortKey>(limits::sort_keys + 1, {"name"})}, "sort"},
                                                                {{.limit = 0}, "limit"},
                                                                {{.limit = 1001}, "limit"},
                                                                {{.offset = -1}, "offset"}};
    for (const auto& [query, field] : wrong) {
        CAPTURE(field);
        for (const Error& error : {error_of([&q = query, &m] { m.list_names(q); }), error_of([&q = query, &m] { m.list_sources(q); })}) {
            CHECK(error.code() == ErrorCode::bad_value);
            CHECK(error.field() == field);
        }
    }
}

TEST_CASE("Monitoring counts a period's events by window, of the last day when none is given") {
    Meter m(options_for());
    const auto at = [&](std::chrono::minutes before) { m.record({.name = before.count() % 2 == 0 ? "a" : "b", .timestamp = noon - before}); };
    for (const int minutes : {0, 1, 59, 60, 61, 24 * 60, 24 * 60 + 1}) at(std::chrono::minutes(minutes));
    for (int sealed = 0; sealed < 2; ++sealed) {
        const Monitoring day = m.monitoring();
        CHECK(day.period == Period{noon - std::chrono::hours(24), noon});
        CHECK(day.events == 5);
        CHECK(day.upstreams.empty());
        REQUIRE(day.windows.size() == 24);
        for (std::size_t i = 0; i < 24; ++i) {
            CHECK(day.windows[i].start == noon - std::chrono::hours(24 - static_cast<int>(i)));
            CHECK(day.windows[i].events == (i == 0 ? 1 : i == 22 ? 1 : i == 23 ? 3 : 0));
        }

        const Period two_days{noon - std::chrono::hours(30), noon + std::chrono::seconds(1)};
        const Monitoring days = m.monitoring({.period = two_days, .bin = Bin::day, .time_zone = "+01:00"});
        CHECK(days.events == 7);
        REQUIRE(days.windows.size() == 2);
        CHECK(days.windows[0].start == Timestamp::parse("2026-02-28T00:00:00+01:00"));
        CHECK(days.windows[0].events == 2);
        CHECK(days.windows[1].events == 5);

        const Monitoring total = m.monitoring({.period = two_days, .bin = Bin::none});
        CHECK(total.events == 7);
        CHECK(total.windows.empty());
        m.record(std::vector<Event>(64, {.name = "filler", .timestamp = noon + std::chrono::hours(1)}));
    }
}

TEST_CASE("A list is searched for texts in the properties") {
    Meter m(options_for());
    m.record({{.id = "1", .name = "a", .timestamp = noon, .properties = {{"model", "GPT-4"}, {"tier", "x"}}},
              {.id = "2", .name = "b", .timestamp = noon, .properties = {{"meta", {{"Model", "gpt-4"}}}}},
              {.id = "3", .name = "a", .timestamp = noon, .properties = {{"model", 4}, {"note", "the \"model\""}}},
              {.id = "4", .name = "a", .timestamp = noon, .properties = {{"model", "gpt-4o"}, {"tier", "x"}}},
              {.id = "5", .name = "a", .timestamp = noon}});
    const std::string model = R"("model":"gpt-4")";
    for (int sealed = 0; sealed < 2; ++sealed) {
        const auto found = [&](ListQuery query) { return ids_of(m.list(query)); };
        CHECK(found({.texts = {model}}) == Ids{"2", "1"});
        CHECK(found({.names = {"a"}, .texts = {model}}) == Ids{"1"});
        CHECK(found({.texts = {"gpt-4", R"("TIER":"x")"}}) == Ids{"4", "1"});
        CHECK(found({.texts = {R"(\"model\")"}}) == Ids{"3"});
        CHECK(found({.names = {"a"}, .texts = {"", "{}"}}) == Ids{"5"});
        CHECK(found({.texts = {"absent"}}).empty());
        CHECK(found({.ids = {"1", "3"}, .texts = {model}}) == Ids{"1"});
        ListQuery query{.texts = {"gpt-4"}, .limit = 1, .count = true};
        Page page = m.list(query);
        CHECK(page.total == 3);
        CHECK(ids_of(page) == Ids{"4"});
        CHECK(ids_of(m.list(page.next)) == Ids{"2"});
        query.after = page.next;
        query.texts = {"gpt"};
        CHECK(error_of([&] { m.list(query); }).code() == ErrorCode::bad_cursor);
        m.record(std::vector<Event>(64, {.name = "filler", .timestamp = noon}));
    }
    CHECK(error_of([&] { m.list({.texts = {std::string("\0", 1)}}); }).field() == "texts");
}

TEST_CASE("Monitoring knows what each upstream has had and waits for") {
    MeterOptions options = options_for();
    auto now = std::make_shared<Timestamp>(noon);
    options.clock = [now] { return *now; };
    Meter m(options);
    m.connect(Upstream::lago({.api_key = "k", .transport = std::make_shared<Taking>()}));
    m.connect(Upstream::polar({.api_key = "k", .transport = std::make_shared<Taking>()}));
    m.record({{.name = "a", .subscription = "s"}, {.name = "a", .subscription = "s"}});
    *now = *now + std::chrono::seconds(90);
    m.flush({.upstream = "lago"});
    m.record({.name = "a", .subscription = "s"});
    const Monitoring found = m.monitoring({.period = Period{}, .bin = Bin::none});
    CHECK(found.events == 3);
    REQUIRE(found.upstreams.size() == 2);
    const auto& [lago, polar] = std::tie(found.upstreams[0], found.upstreams[1]);
    CHECK(lago.status.name == "lago");
    CHECK(lago.balance == Balance{3, 2, 1, 0, 0});
    CHECK(lago.status.pending == 1);
    CHECK(lago.status.lag == std::chrono::seconds(0));
    CHECK(polar.balance == Balance{3, 0, 3, 0, 0});
    CHECK(polar.status.state == UpstreamState::pending);
    CHECK(polar.status.lag == std::chrono::seconds(90));
}

TEST_CASE("Periods, zones and windows that cannot be monitored are refused by name") {
    Meter m = small_log();
    const auto error = [&](const MonitoringQuery& query) { return error_of([&] { m.monitoring(query); }); };
    CHECK(error({.period = Period{noon, noon}}).field() == "period");
    CHECK(error({.period = Period{noon, noon - std::chrono::hours(1)}}).field() == "period");
    CHECK(error({.time_zone = "Nowhere/City"}).field() == "time_zone");
    CHECK(error({.time_zone = "Nowhere/City"}).code() == ErrorCode::bad_value);
    CHECK(error({.period = Period{}}).field() == "bin");
    CHECK(error({.period = Period{}}).code() == ErrorCode::too_large);
}

TEST_CASE("filters and orders know when an event was recorded, sealed or not") {
    Timestamp now = noon;
    Meter m({.chunk_events = 64, .clock = [&now] { return now; }});
    for (int i = 0; i < 150; ++i) {
        now = noon + std::chrono::seconds(i);
        const auto happened = noon - std::chrono::hours(i % 7);
        m.record(
            {.id = std::to_string(i), .name = "e", .customer = i % 2 ? "acme" : "bolt", .timestamp = happened, .properties = {{"recorded_at", 1}}});
    }
    const auto since = [](int seconds) { return Filter::where("recorded_at", Operator::gte, (noon + std::chrono::seconds(seconds)).to_string()); };
    for (const int seconds : {0, 1, 100, 149}) {
        CHECK(m.list({.filter = since(seconds), .limit = 1, .count = true}).total == 150 - seconds);
        CHECK(m.aggregate({.event = "e"}, {.filter = since(seconds)}).rows.at(0).value == 150 - seconds);
    }
    CHECK(m.aggregate({.event = "e"}, {.customer = "acme", .filter = since(100)}).rows.at(0).value == 25);
    CHECK(m.list({.filter = Filter::equals("recorded_at", (noon + std::chrono::seconds(70)).unix_seconds().to_int64().value())}).events.size() == 1);
    CHECK(m.list({.filter = Filter::equals("properties.recorded_at", 1), .limit = 1, .count = true}).total == 150);
    CHECK(ids_of(m.list({.sort = {{"recorded_at", true}}, .limit = 3})) == Ids{"149", "148", "147"});
}
