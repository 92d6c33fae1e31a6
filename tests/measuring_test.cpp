// Aggregates one by one, where meter_test asks at random: exact numbers, bins, groups, filters, and what is refused.
#include <algorithm>
#include <random>

#include "../meter.hpp"
#include "support/scratch.hpp"
#include "testing.hpp"

using namespace meter;
using namespace meter_test;

namespace {

const Timestamp noon = Timestamp::parse("2026-03-01T12:00:00Z");

MeterOptions options_for(const std::string& path = ":memory:", std::int64_t chunk = 64) {
    MeterOptions options;
    options.path = path;
    options.durability = Durability::process;
    options.chunk_events = chunk;
    options.clock = [] { return noon; };
    return options;
}

// One line for each value of the property, which is JSON as written.
void record_values(Meter& m, const std::vector<std::string>& values, const std::string& name = "a") {
    std::string lines;
    for (const std::string& value : values) lines += R"({"name":")" + name + R"(","properties":{"n":)" + value + "}}\n";
    for (const Receipt& receipt : m.record_json(lines)) {
        CAPTURE(receipt.reason);
        REQUIRE(receipt.status == ReceiptStatus::stored);
    }
}

// Enough of another name for everything before to be sealed.
void seal_all(Meter& m) { m.record(std::vector<Event>(64, {.name = "filler"})); }

const Metric sum_n{.code = "a", .aggregation = Aggregation::sum, .property = "n"};
const Metric unique_n{.code = "a", .aggregation = Aggregation::unique_count, .property = "n"};

std::string total(const Meter& m, const Metric& metric, const AggregateQuery& query = {}) {
    const Aggregate answer = m.aggregate(metric, query);
    if (answer.rows.empty()) return "none";
    REQUIRE(answer.rows.size() == 1);
    return answer.rows[0].value.to_string() + " of " + std::to_string(answer.rows[0].events);
}

// The same before and after sealing.
void check_total(Meter& m, const Metric& metric, const std::string& expected, const AggregateQuery& query = {}) {
    CHECK(total(m, metric, query) == expected);
    seal_all(m);
    CHECK(total(m, metric, query) == expected);
}

}  // namespace

TEST_CASE("Count, sum and unique count of a property of mixed kinds") {
    Meter m(options_for());
    record_values(m,
                  {"1", "1.0", "\"1\"", "2.5", "-4", "null", "true", "\"text\"", "[1]", "{}", "\"\"", "1e2", "\"1e2\"", "\" 1\"", "\"-0.5\"", "0"});
    m.record({.name = "a"});  // without the property
    CHECK(total(m, {.code = "a"}) == "17 of 17");
    // 1 + 1.0 + "1" + 2.5 - 4 + 1e2 + "-0.5" + 0; text must be written plainly
    check_total(m, sum_n, "101 of 8");
    // 1 (number or text), 2.5, -4, true, text, [1], {}, "", 100, 1e2 (text), " 1", -0.5, 0; null is like absent
    check_total(m, unique_n, "13 of 15");
}

TEST_CASE("A question about nothing has no rows") {
    Meter m(options_for());
    CHECK(total(m, sum_n) == "none");
    m.record({.name = "a", .customer = "acme", .subscription = "s", .timestamp = noon});
    CHECK(total(m, {.code = "b"}) == "none");
    CHECK(total(m, sum_n) == "none");
    CHECK(total(m, {.code = "a"}, {.customer = "nobody"}) == "none");
    CHECK(total(m, {.code = "a"}, {.subscription = "none"}) == "none");
    CHECK(total(m, {.code = "a"}, {.period = {noon + std::chrono::microseconds(1), Timestamp::max()}}) == "none");
    CHECK(total(m, {.code = "a"}, {.period = {noon, noon + std::chrono::microseconds(1)}}) == "1 of 1");
    CHECK(total(m, {.code = "a"}, {.period = {Timestamp::min(), noon}}) == "none");
    CHECK(total(m, {.code = "other", .event = "a"}) == "1 of 1");
}

TEST_CASE("A metric without code and event measures events of every name") {
    Meter m(options_for());
    record_values(m, {"1", "2"}, "a");
    record_values(m, {"4", "\"8\"", "null"}, "b");
    CHECK(total(m, {}) == "5 of 5");
    CHECK(total(m, {.aggregation = Aggregation::sum, .property = "n"}) == "15 of 4");
    const Aggregate by_name = m.aggregate(Metric{}, {.group_by = {"name"}});
    REQUIRE(by_name.rows.size() == 2);
    CHECK(by_name.rows[0].value == 2);
    CHECK(by_name.rows[1].value == 3);
    m.record(std::vector<Event>(64, {.name = "a"}));
    CHECK(total(m, {.aggregation = Aggregation::sum, .property = "n"}) == "15 of 4");
}

TEST_CASE("Sums are exact where 64 bits are too few") {
    Meter m(options_for());
    const std::string value = "999999999999999999";  // 18 digits, the most that a column keeps as an integer
    record_values(m, std::vector<std::string>(100, value));
    check_total(m, sum_n, "99999999999999999900 of 100");
    record_values(m, std::vector<std::string>(150, "-" + value));
    check_total(m, sum_n, "-49999999999999999950 of 250");
}

TEST_CASE("Numbers of very different size add up exactly in one column") {
    Meter m(options_for());
    record_values(
        m, {"900000000000000000", "0.000000000000000001", "-0.5", "12345678901234567890123456789.123456789", "\"98765432109876543210\"", "1e-17"});
    CHECK(total(m, {.code = "a", .aggregation = Aggregation::count}) == "6 of 6");
    // python: Decimal sum of the six needs 29 + 18 digits, more than there are
    CHECK(error_of([&] { m.aggregate(sum_n); }).code() == ErrorCode::overflow);
    Meter fits(options_for());
    record_values(fits, {"900000000000000000", "0.000000000000000001", "-0.5", "\"98765432109876543210\"", "1e-17"});
    check_total(fits, sum_n, "99665432109876543209.500000000000000011 of 5");
}

TEST_CASE("A sum does not depend on the order of its events") {
    const std::uint64_t seed = test_seed();
    CAPTURE(seed);
    std::mt19937_64 random(seed);
    const std::string most(38, '9');
    std::vector<std::string> values{most, most, "-" + most, "-" + most, "1e-38", "-1e-38", "\"" + most + "\"", "\"-" + most + "\"", "7", "0.25"};
    for (int round = 0; round < 10; ++round) {
        std::shuffle(values.begin(), values.end(), random);
        CAPTURE(values);
        Meter m(options_for());
        record_values(m, values);
        check_total(m, sum_n, "7.25 of 10");
    }
}

TEST_CASE("A sum of more than 38 digits is an error, not a rounded number") {
    Meter m(options_for());
    record_values(m, {std::string(38, '9'), "1"});
    CHECK(error_of([&] { m.aggregate(sum_n); }).code() == ErrorCode::overflow);
    CHECK(total(m, {.code = "a"}) == "2 of 2");
}

TEST_CASE("The value of the event can be summed, and a property of that name, too") {
    Meter m(options_for());
    m.record_json(R"({"name":"a","value":"12.50","properties":{"value":1}}
{"name":"a","value":0.25,"properties":{"value":2}}
{"name":"a"})");
    check_total(m, {.code = "a", .aggregation = Aggregation::sum, .property = "value"}, "12.75 of 2");
    check_total(m, {.code = "a", .aggregation = Aggregation::sum, .property = "properties.value"}, "3 of 2");
}

TEST_CASE("Bins begin at the hour, day and month in UTC; empty ones are absent; one before 1970 is no different") {
    Meter m(options_for());
    for (const char* time :
         {"2026-01-31T23:59:59.999999Z", "2026-02-01T00:00:00Z", "2026-02-01T00:59:59Z", "2026-02-28T23:00:00Z", "2026-03-01T00:00:00Z",
          "2024-02-29T12:00:00Z", "1969-12-31T23:59:59Z", "0001-01-01T00:00:00Z", "9999-12-31T23:59:59Z", "2026-01-31T00:00:00Z"}) {
        m.record({.name = "a", .timestamp = Timestamp::parse(time)});
    }
    const auto bins = [&](Bin bin) {
        std::vector<std::string> found;
        for (const AggregateRow& row : m.aggregate({.code = "a"}, {.bin = bin}).rows) {
            found.push_back(row.bin.value().to_string().substr(0, 13) + " " + row.value.to_string());
        }
        return found;
    };
    for (int sealed = 0; sealed < 2; ++sealed) {
        CHECK(bins(Bin::hour) == std::vector<std::string>{"0001-01-01T00 1", "1969-12-31T23 1", "2024-02-29T12 1", "2026-01-31T00 1",
                                                          "2026-01-31T23 1", "2026-02-01T00 2", "2026-02-28T23 1", "2026-03-01T00 1",
                                                          "9999-12-31T23 1"});
        CHECK(bins(Bin::day) == std::vector<std::string>{"0001-01-01T00 1", "1969-12-31T00 1", "2024-02-29T00 1", "2026-01-31T00 2",
                                                         "2026-02-01T00 2", "2026-02-28T00 1", "2026-03-01T00 1", "9999-12-31T00 1"});
        CHECK(bins(Bin::month) == std::vector<std::string>{"0001-01-01T00 1", "1969-12-01T00 1", "2024-02-01T00 1", "2026-01-01T00 2",
                                                           "2026-02-01T00 3", "2026-03-01T00 1", "9999-12-01T00 1"});
        seal_all(m);
    }
    CHECK_FALSE(m.aggregate({.code = "a"}).rows.at(0).bin);
}

TEST_CASE("Groups are of any field, several at once, in order with absent first") {
    Meter m(options_for());
    m.record_json(R"({"name":"a","customer":"acme","source":"x","properties":{"model":"large","n":1,"deep":{"region":"eu"}}}
{"name":"a","customer":"acme","properties":{"model":"small","n":2,"deep":{"region":"us"}}}
{"name":"a","properties":{"model":"large","n":4,"deep":{"region":"eu"}}}
{"name":"a","customer":"bolt","source":"x","properties":{"model":null,"n":8}}
{"name":"a","customer":"bolt","properties":{"n":16,"model":1.50}}
{"name":"a","customer":"bolt","properties":{"n":32,"model":"1.5"}}
{"name":"a","customer":"bolt","properties":{"n":64,"model":true}})");
    const auto groups = [&](const std::vector<std::string>& fields) {
        std::vector<std::string> found;
        for (const AggregateRow& row : m.aggregate(sum_n, {.group_by = fields}).rows) {
            std::string text;
            for (const auto& group : row.group) text += group.value_or("-") + " ";
            found.push_back(text + row.value.to_string());
        }
        return found;
    };
    for (int sealed = 0; sealed < 2; ++sealed) {
        CHECK(groups({"model"}) == std::vector<std::string>{"- 8", "1.5 48", "large 5", "small 2", "true 64"});
        CHECK(groups({"deep.region"}) == std::vector<std::string>{"- 120", "eu 5", "us 2"});
        CHECK(groups({"customer"}) == std::vector<std::string>{"- 4", "acme 3", "bolt 120"});
        CHECK(groups({"source", "customer"}) == std::vector<std::string>{"- - 4", "- acme 2", "- bolt 112", "x acme 1", "x bolt 8"});
        CHECK(groups({"name", "model", "name"}).at(0) == "a - a 8");
        CHECK(groups({"absent"}) == std::vector<std::string>{"- 127"});
        seal_all(m);
    }
}

TEST_CASE("Every operator, on every kind of value") {
    Meter m(options_for());
    record_values(m, {"5", "\"5\"", "5.0", "7", "\"abc\"", "\"abd\"", "true", "null", "[\"abc\"]"});
    m.record({.name = "a"});
    const auto count = [&](Operator op, const json& value) {
        const Aggregate answer = m.aggregate({.code = "a", .filter = Filter::where("n", op, value)});
        return answer.rows.empty() ? 0 : answer.rows[0].events;
    };
    for (int sealed = 0; sealed < 2; ++sealed) {
        CHECK(count(Operator::eq, 5) == 3);
        CHECK(count(Operator::eq, "5") == 3);
        CHECK(count(Operator::eq, "5.0") == 2);  // the numbers; text is equal to the same text
        CHECK(count(Operator::eq, "abc") == 1);
        CHECK(count(Operator::eq, true) == 1);
        CHECK(count(Operator::eq, nullptr) == 2);
        CHECK(count(Operator::ne, 5) == 7);
        CHECK(count(Operator::ne, nullptr) == 8);
        CHECK(count(Operator::gt, 5) == 1);
        CHECK(count(Operator::gte, 5) == 4);
        CHECK(count(Operator::lt, 7) == 3);
        CHECK(count(Operator::lte, "7") == 4);
        CHECK(count(Operator::gt, "abc") == 1);
        CHECK(count(Operator::in, {5, "abc", nullptr}) == 6);
        CHECK(count(Operator::in, json::array()) == 0);
        CHECK(count(Operator::not_in, {5, "abc"}) == 6);
        CHECK(count(Operator::not_in, json::array()) == 10);
        CHECK(count(Operator::contains, "ab") == 3);
        CHECK(count(Operator::contains, 5) == 3);
        CHECK(count(Operator::contains, true) == 1);
        CHECK(count(Operator::not_contains, "ab") == 7);
        CHECK(count(Operator::like, "ab_") == 2);
        CHECK(count(Operator::like, "%b%") == 3);
        CHECK(count(Operator::not_like, "ab%") == 8);
        CHECK(count(Operator::exists, true) == 8);
        CHECK(count(Operator::exists, false) == 2);
        seal_all(m);
    }
}

TEST_CASE("Filters combine, and meet fields of the event as well as properties") {
    Meter m(options_for());
    for (int i = 0; i < 100; ++i) {
        m.record({.id = "e" + std::to_string(i),
                  .name = "a",
                  .customer = i % 2 == 0 ? "even" : "odd",
                  .timestamp = noon + std::chrono::seconds(i),
                  .value = Decimal(i),
                  .properties = {{"i", i}, {"name", "p" + std::to_string(i % 3)}}});
    }
    const auto count = [&](const Filter& filter) {
        const Aggregate answer = m.aggregate({.code = "a", .filter = filter});
        return answer.rows.empty() ? 0 : answer.rows[0].events;
    };
    const Filter even = Filter::equals("customer", "even"), low = Filter::where("i", Operator::lt, 10);
    CHECK(count(Filter::all({})) == 100);
    CHECK(count(Filter::any({})) == 0);
    CHECK(count(Filter::all({even, low})) == 5);
    CHECK(count(Filter::any({even, low})) == 55);
    CHECK(count(Filter::all({Filter::any({even, low}), Filter::any({Filter::equals("i", 3), Filter::equals("i", 4), Filter::equals("i", 13)})})) ==
          2);
    CHECK(count(Filter::equals("properties.name", "p0")) == 34);
    CHECK(count(Filter::equals("name", "p0")) == 0);
    CHECK(count(Filter::equals("id", "e42")) == 1);
    CHECK(count(Filter::where("value", Operator::gte, "98.5")) == 1);
    CHECK(count(Filter::where("timestamp", Operator::lt, "2026-03-01T13:00:10+01:00")) == 10);
    CHECK(count(Filter::where("timestamp", Operator::gte, (noon.micros() + 90'000'000) / 1'000'000)) == 10);
    CHECK(count(Filter::where("timestamp", Operator::in, {noon.to_string(), "1999-01-01"})) == 1);
}

TEST_CASE("Filters are written as JSON and read back") {
    const Filter filter = Filter::any(
        {Filter::all({}), Filter::where("a.b", Operator::in, {1, "x", nullptr, true}), Filter::all({Filter::where("n", Operator::not_like, "%")})});
    CHECK(Filter::from_json(filter.to_json()).to_json() == filter.to_json());
    CHECK(Filter::from_json(json::parse(R"({"field":"n","operator":"eq"})")).value == nullptr);
}

namespace {

const std::vector<const char*> bad_filters{
    "null",
    "[]",
    "1",
    "{}",
    R"({"all":{}})",
    R"({"all":[],"any":[]})",
    R"({"all":[1]})",
    R"({"any":[{"field":"x"}]})",
    R"({"field":"","operator":"eq","value":1})",
    R"({"field":7,"operator":"eq","value":1})",
    R"({"operator":"eq","value":1})",
    R"({"field":"x","operator":"equals","value":1})",
    R"({"field":"x","operator":1,"value":1})",
    R"({"field":"x","operator":"in","value":1})",
    R"({"field":"x","operator":"in","value":[[1]]})",
    R"({"field":"x","operator":"eq","value":{}})",
    R"({"field":"x","operator":"eq","value":1e300})",
    R"({"field":"x","operator":"contains","value":null})",
    R"({"field":"x","operator":"like"})",
    R"({"field":"x","operator":"exists","value":"yes"})",
    R"({"field":"x","operator":"exists"})",
};

}  // namespace

TEST_CASE("A filter that cannot be is refused, naming where") {
    for (const char* text : bad_filters) {
        CAPTURE(text);
        const Error error = error_of([&] { Filter::from_json(json::parse(text)); });
        CHECK(error.code() == ErrorCode::bad_value);
        CHECK_FALSE(error.field().empty());
    }
    json deep = json::parse(R"({"field":"x","operator":"eq","value":1})");
    Filter built = Filter::equals("x", 1);
    for (int i = 0; i < 1000; ++i) deep = {{"all", {deep}}}, built = Filter::all({built});
    CHECK(error_of([&] { Filter::from_json(deep); }).code() == ErrorCode::bad_value);
    Meter m(options_for());
    m.record({.name = "a"});
    CHECK(error_of([&] { m.aggregate({.code = "a", .filter = built}); }).code() == ErrorCode::bad_value);
    CHECK(error_of([&] { m.list({.filter = built}); }).code() == ErrorCode::bad_value);
}

TEST_CASE("A metric that names no event measures them all") {
    Meter m(options_for());
    m.record({Event{.name = "a", .customer = "x", .properties = {{"n", 1}}}, Event{.name = "b", .customer = "x", .properties = {{"n", 2}}}});
    const Aggregate all = m.aggregate({.aggregation = Aggregation::sum, .property = "n"}, {.group_by = {"name", "customer"}});
    REQUIRE(all.rows.size() == 2);
    CHECK(all.rows[0].group == std::vector<std::optional<std::string>>{"a", "x"});
    CHECK(all.rows[1].value == Decimal(2));
}

TEST_CASE("A question that cannot be is refused by name, whether or not there is anything to ask about") {
    Meter m(options_for());
    const bool some = GENERATE(false, true);
    if (some) m.record({.name = "a"});
    const auto field = [&](const Metric& metric, const AggregateQuery& query) { return error_of([&] { m.aggregate(metric, query); }).field(); };
    CHECK(field({.code = "a", .aggregation = Aggregation::sum}, {}) == "metric.property");
    CHECK(field({.code = "a", .property = "n"}, {}) == "metric.property");
    CHECK(field({.code = "a"}, {.period = {noon, noon}}) == "period");
    CHECK(field({.code = "a"}, {.period = {noon, noon - std::chrono::seconds(1)}}) == "period");
    CHECK_FALSE(field({.code = "a"}, {.group_by = {""}}).empty());
    CHECK_FALSE(field({.code = "a"}, {.filter = Filter::where("x", Operator::in, 1)}).empty());
    CHECK_FALSE(field({.code = "a"}, {.filter = Filter::where("timestamp", Operator::eq, "yesterday")}).empty());
    CHECK_FALSE(field({.code = "a", .filter = Filter::where("x", Operator::exists, 1)}, {.customer = "nobody"}).empty());
    CHECK(error_of([&] { m.aggregate({.metric = "a"}); }).code() == ErrorCode::not_found);
    CHECK(error_of([&] { m.aggregate({.metric = ""}); }).code() == ErrorCode::not_found);
}

TEST_CASE("Metrics are kept, replaced and listed; a wrong one is refused") {
    Scratch scratch;
    const Metric metric{
        .code = "tokens", .event = "api_call", .aggregation = Aggregation::sum, .property = "n", .filter = Filter::equals("model", "large")};
    {
        Meter m(options_for(scratch.path()));
        m.define({.code = "tokens"});
        m.define(metric);
        m.define({.code = "calls", .event = "api_call"});
        m.record_json(R"({"name":"api_call","properties":{"n":3,"model":"large"}}
{"name":"api_call","properties":{"n":4,"model":"small"}})");
        CHECK(m.aggregate({.metric = "tokens"}).rows.at(0).value == 3);
    }
    Meter m(options_for(scratch.path()));
    REQUIRE(m.metrics().size() == 2);
    const Metric kept = m.metrics()[1];
    CHECK(kept.code == metric.code);
    CHECK(kept.event == metric.event);
    CHECK(kept.aggregation == metric.aggregation);
    CHECK(kept.property == metric.property);
    CHECK(kept.filter.to_json() == metric.filter.to_json());
    CHECK(m.aggregate({.metric = "calls"}).rows.at(0).value == 2);
    CHECK(error_of([&] { m.define({.event = "a"}); }).field() == "metric.code");
    CHECK(error_of([&] { m.define({.code = "\xFF"}); }).field() == "metric.code");
    CHECK(error_of([&] { m.define({.code = "x", .event = "\xFF"}); }).field() == "metric.event");
    CHECK(error_of([&] { m.define({.code = "x", .aggregation = Aggregation::sum}); }).field() == "metric.property");
    CHECK(error_of([&] { m.define({.code = "x", .filter = Filter::where("", Operator::eq, 1)}); }).code() == ErrorCode::bad_value);
    CHECK(error_of([&] { m.define({.code = "x", .filter = Filter::where("a", Operator::in, 1)}); }).code() == ErrorCode::bad_value);
    CHECK(error_of([&] { m.define({.code = "x", .filter = Filter::equals("a", "\xFF")}); }).code() == ErrorCode::bad_value);
    CHECK(m.metrics().size() == 2);
}

TEST_CASE("Texts of a property beyond those a segment has columns for are read again from the log") {
    Meter m(options_for());
    std::string lines;
    for (int i = 0; i < 64; ++i) {
        std::string properties = "\"n\":" + std::to_string(i);
        for (int k = 0; k < 40; ++k) properties += ",\"k" + std::to_string(i * 40 + k) + "\":\"t" + std::to_string(i) + "\"";
        lines += "{\"name\":\"a\",\"customer\":\"c" + std::to_string(i % 2) + "\",\"properties\":{" + properties + "}}\n";
    }
    m.record_json(lines);
    for (int sealed = 0; sealed < 2; ++sealed) {
        for (const char* key : {"k0", "k1000", "k2000", "k2559"}) {
            CAPTURE(key, sealed);
            const Aggregate answer = m.aggregate({.code = "a"}, {.group_by = {key}, .filter = Filter::where(key, Operator::exists, true)});
            REQUIRE(answer.rows.size() == 1);
            CHECK(answer.rows[0].group[0] == "t" + std::to_string(std::stoi(std::string(key).substr(1)) / 40));
            CHECK(m.list({.customer = "c1", .filter = Filter::where(key, Operator::contains, "t")}).events.size() <= 1);
        }
        CHECK(m.list({.filter = Filter::equals("k2559", "t63")}).events.size() == 1);
        seal_all(m);
    }
}

TEST_CASE("Many bins and groups are answered, too many are refused") {
    Meter m(options_for(":memory:", 1 << 20));
    std::vector<Event> events(20000, {.name = "a"});
    for (std::size_t i = 0; i < events.size(); ++i) {
        events[i].timestamp = noon + std::chrono::hours(i);
        events[i].properties = {{"n", i}};
    }
    m.record(events);
    const Aggregate answer = m.aggregate({.code = "a"}, {.bin = Bin::hour, .group_by = {"n"}});
    CHECK(answer.rows.size() == events.size());
    CHECK(std::is_sorted(answer.rows.begin(), answer.rows.end(), [](const AggregateRow& a, const AggregateRow& b) { return a.bin < b.bin; }));
}

TEST_CASE("Average, least, greatest and latest of a property") {
    Meter m(options_for());
    const auto at = [](int minute) { return noon - std::chrono::minutes(minute); };
    m.record({{.name = "a", .timestamp = at(1), .properties = {{"n", 4}}},
              {.name = "a", .timestamp = at(2), .properties = {{"n", "-2.5"}}},
              {.name = "a", .timestamp = at(3), .properties = {{"n", 10}}},
              {.name = "a", .timestamp = at(0), .properties = {{"n", "much"}}},
              {.name = "a", .timestamp = at(4)}});
    const auto with = [](Aggregation aggregation) { return Metric{.code = "a", .aggregation = aggregation, .property = "n"}; };
    for (int sealed = 0; sealed < 2; ++sealed) {
        CHECK(total(m, with(Aggregation::average)).substr(0, 6) == "3.8333");
        CHECK(total(m, with(Aggregation::min)) == "-2.5 of 3");
        CHECK(total(m, with(Aggregation::max)) == "10 of 3");
        CHECK(total(m, with(Aggregation::latest)) == "4 of 3");
        seal_all(m);
    }
}

TEST_CASE("A weighted sum is of what stands, by the share of the time it stands") {
    Meter m(options_for());
    const Timestamp day = Timestamp::parse("2026-03-01T00:00:00Z");
    const Metric seats{.code = "seats", .aggregation = Aggregation::weighted_sum, .property = "n"};
    m.record({{.name = "seats", .timestamp = day - std::chrono::hours(1), .properties = {{"n", 100}}},
              {.name = "seats", .timestamp = day, .properties = {{"n", 2}}},
              {.name = "seats", .timestamp = day + std::chrono::hours(12), .properties = {{"n", 10}}},
              {.name = "seats", .timestamp = day + std::chrono::hours(18), .properties = {{"n", -12}}}});
    const Period whole{day, day + std::chrono::hours(24)};
    check_total(m, seats, "4 of 3", {.period = whole});  // 2 for 12 hours, 12 for 6, nothing for 6
    Metric carried = seats;
    carried.recurring = true;
    check_total(m, carried, "104 of 4", {.period = whole});
    CHECK(error_of([&] { m.aggregate(seats); }).field() == "period");
}

TEST_CASE("The values that a count of values counts are listed, page by page") {
    Meter m(options_for());
    const auto at = [](int hour) { return Timestamp::parse("2026-03-01T00:00:00Z") + std::chrono::hours(hour); };
    const auto user = [&](json name, int hour, const char* operation = "add") {
        return Event{.name = "user",
                     .customer = hour < 2 ? "acme" : "zoo",
                     .timestamp = at(hour),
                     .properties = {{"user", std::move(name)}, {"operation_type", operation}}};
    };
    m.record({user("bob", 0), user("ann", 1), user("ann", 2), user("bob", 3, "remove"), user(7, 4), user("bob", 5), user("cid", 6, "remove")});
    m.record({.name = "user", .timestamp = at(7)});
    m.define({.code = "user", .aggregation = Aggregation::active_count, .property = "user"});
    const std::vector<ActiveValue> all{{"7", at(4)}, {"ann", at(1)}, {"bob", at(5)}};
    for (int sealed = 0; sealed < 2; ++sealed) {
        CAPTURE(sealed);
        const auto found = m.active_values({.metric = "user"});
        CHECK(found.values == all);
        CHECK(found.total == 3);
        CHECK(m.aggregate({.metric = "user"}).rows.at(0).value == 3);
        const auto second = m.active_values({.metric = "user", .limit = 1, .offset = 1});
        CHECK(second.values == std::vector<ActiveValue>{all[1]});
        CHECK(second.total == 3);
        CHECK(m.active_values({.metric = "user", .offset = 4}).values.empty());
        CHECK(m.active_values({.metric = "user", .limit = 1000, .offset = 2}).values == std::vector<ActiveValue>{all[2]});
        CHECK(m.active_values({.metric = "user", .period = {at(0), at(4)}}).values == std::vector<ActiveValue>{{"ann", at(1)}});
        CHECK(m.active_values({.metric = "user", .period = {at(2), at(4)}}).values == std::vector<ActiveValue>{{"ann", at(2)}});
        CHECK(m.active_values({.metric = "user", .customer = "acme"}).values == std::vector<ActiveValue>{{"ann", at(1)}, {"bob", at(0)}});
        CHECK(m.active_values({.metric = "user", .filter = Filter::equals("user", "bob")}).values == std::vector<ActiveValue>{all[2]});
        CHECK(m.active_values({.metric = "user", .customer = "nobody"}).values.empty());
        seal_all(m);
    }
    m.define(
        {.code = "recurring", .event = "user", .aggregation = Aggregation::active_count, .property = "user", .recurring = true, .rules = "lago"});
    const auto carried = m.active_values({.metric = "recurring", .period = {at(8), at(9)}});
    CHECK(carried.values == std::vector<ActiveValue>{{std::nullopt, at(7)}, all[0], all[1], all[2]});
    CHECK(m.aggregate({.metric = "recurring", .period = {at(8), at(9)}}).rows.at(0).value == carried.total);
    m.define({.code = "ever", .event = "user", .aggregation = Aggregation::unique_count, .property = "user", .rules = "polar"});
    CHECK(m.active_values({.metric = "ever"}).values == std::vector<ActiveValue>{{"7", at(4)}, {"ann", at(1)}, {"bob", at(0)}, {"cid", at(6)}});
}

TEST_CASE("A question about active values that cannot be is refused by name") {
    Meter m(options_for());
    m.define({.code = "users", .aggregation = Aggregation::active_count, .property = "user"});
    m.define(sum_n);
    CHECK(error_of([&] { m.active_values({.metric = "nothing"}); }).code() == ErrorCode::not_found);
    CHECK(error_of([&] { m.active_values({.metric = "a"}); }).field() == "metric");
    CHECK(error_of([&] { m.active_values({.metric = "users", .limit = 0}); }).field() == "limit");
    CHECK(error_of([&] { m.active_values({.metric = "users", .limit = 1001}); }).field() == "limit");
    CHECK(error_of([&] { m.active_values({.metric = "users", .offset = -1}); }).field() == "offset");
    CHECK(error_of([&] { m.active_values({.metric = "users", .period = {noon, noon}}); }).field() == "period");
    CHECK(error_of([&] { m.active_values({.metric = "users", .filter = Filter::where("n", Operator::in, 1)}); }).field() == "n.in");
    CHECK(error_of([&] { m.active_values({.metric = "users", .customer = "\xff"}); }).field() == "customer");
    CHECK(m.active_values({.metric = "users"}).values.empty());
}
