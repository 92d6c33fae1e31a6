// Aggregates one by one, where meter_test asks at random: exact numbers, bins, groups, filters, and what is refused.
#include <algorithm>
#include <array>
#include <map>
#include <random>

#include "../meter.hpp"
#include "support/noon.hpp"
#include "support/scratch.hpp"
#include "testing.hpp"

using namespace meter;
using namespace meter_test;

namespace {

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

TEST_CASE("_ in a pattern stands for one character, however many bytes it takes") {
    Meter m(options_for());
    for (const char* text : {"caf\u00e9", "cafe", "\u20ac5", "a\u00e9\u00e9b"}) m.record({.name = "a", .properties = {{"t", text}}});
    const auto count = [&](const char* pattern) { return m.list({.filter = Filter::where("t", Operator::like, pattern), .count = true}).total.value(); };
    CHECK(count("caf_") == 2);
    CHECK(count("caf__") == 0);
    CHECK(count("_5") == 1);
    CHECK(count("%_\u00e9b") == 1);
    CHECK(count("____") == 3);
    CHECK(count("%_____%") == 0);
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
    CHECK(error_of([&] { m.list({.filter = Filter::where("x", Operator(99), 1)}); }).field() == "filter.operator");
    CHECK(error_of([&] { m.list({.filter = {static_cast<Filter::Kind>(9)}}); }).field() == "filter.kind");
    CHECK(error_of([&] { m.list({.filter = Filter::where("recorded_at", Operator::gt, "noon")}); }).field() == "recorded_at.gt");
    CHECK(error_of([&] { Filter::from_json(json::parse(R"({"any":[{"field":"x","operator":"in","value":1}]})")); }).field() == "filter.any.0.value");
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

// ---- every aggregation over every kind of value ----

namespace {

constexpr std::array every_aggregation{Aggregation::count,        Aggregation::sum,    Aggregation::average,
                                       Aggregation::min,          Aggregation::max,    Aggregation::unique_count,
                                       Aggregation::active_count, Aggregation::latest, Aggregation::weighted_sum};

const Timestamp day_one = Timestamp::parse("2026-03-01T00:00:00Z");
const Period whole_day{day_one, day_one + std::chrono::hours(24)};

Metric metric_of(Aggregation aggregation, const std::string& property = "n", const std::string& event = "a") {
    return {.code = event, .aggregation = aggregation, .property = aggregation == Aggregation::count ? "" : property};
}

/// What each aggregation, in their order, makes of the day: "value of events".
std::vector<std::string> totals(const Meter& m, const std::string& rules = {}) {
    std::vector<std::string> found;
    for (const Aggregation aggregation : every_aggregation) {
        Metric metric = metric_of(aggregation);
        metric.rules = rules;
        found.push_back(total(m, metric, {.period = whole_day}));
    }
    return found;
}

/// An event an hour, from midnight on, with these values of "n"; "" is an event without it.
void record_hourly(Meter& m, const std::vector<std::string>& values, const std::string& more = {}) {
    std::string lines;
    for (std::size_t i = 0; i < values.size(); ++i) {
        const std::string property = values[i].empty() ? std::string() : R"("n":)" + values[i];
        lines += R"({"name":"a","timestamp":")" + (day_one + std::chrono::hours(i)).to_string() + R"(","properties":{)" + property + more + "}}\n";
    }
    for (const Receipt& receipt : m.record_json(lines)) REQUIRE(receipt.status == ReceiptStatus::stored);
}

/// The rows as lines: bin, groups, value, events.
std::vector<std::string> rows_of(const Meter& m, const Metric& metric, const AggregateQuery& query) {
    std::vector<std::string> found;
    for (const AggregateRow& row : m.aggregate(metric, query).rows) {
        std::string text = row.bin ? row.bin->to_string() + " " : "";
        for (const auto& group : row.group) text += (row.rest ? "*" : group.value_or("-")) + " ";
        found.push_back(text + row.value.to_string() + " of " + std::to_string(row.events));
    }
    return found;
}
using Lines = std::vector<std::string>;

}  // namespace

TEST_CASE("What is no number is invisible where one is wanted, and one value more where values are counted") {
    struct Row {
        const char* value;
        bool number, counts;
    };
    for (const Row& row : {Row{"", false, false}, Row{"null", false, false}, Row{"true", false, true}, Row{"\"many\"", false, true},
                           Row{"\"\"", false, true}, Row{"[3]", false, true}, Row{"{}", false, true}, Row{"3", true, true}, Row{"\"3\"", true, true},
                           Row{"3.00", true, true}, Row{"\"3.00\"", true, true}, Row{"\"3e0\"", false, true}, Row{"\"+3\"", false, true},
                           Row{"\" 3\"", false, true}, Row{"\"3.\"", false, true}, Row{"\".3\"", false, true}, Row{"0.3e1", true, true}}) {
        CAPTURE(row.value);
        Meter m(options_for());
        record_hourly(m, {row.value});
        const std::string number = row.number ? "3 of 1" : "none", counted = row.counts ? "1 of 1" : "none";
        const Lines expected{"1 of 1", number, number, number, number, counted, counted, number, number};
        CHECK(totals(m) == expected);
        seal_all(m);
        CHECK(totals(m) == expected);
    }
}

TEST_CASE("Every aggregation over numbers, sealed and not, of the same and of different size") {
    const std::string wide = "123456789012345678901234567890.5", tiny = "0.000000000000000000000000000001";
    struct Row {
        Lines values, expected;
    };
    const std::vector<Row> rows{
        {{"4", "-2.5", "10", "4"},
         {"4 of 4", "15.5 of 4", "3.875 of 4", "-2.5 of 4", "10 of 4", "3 of 4", "3 of 4", "4 of 4", "14.270833333333333333333333333333 of 4"}},
        {{"-7", "-7"},
         {"2 of 2", "-14 of 2", "-7 of 2", "-7 of 2", "-7 of 2", "1 of 2", "1 of 2", "-7 of 2", "-13.708333333333333333333333333333 of 2"}},
        {{"1", "1", "2"},
         {"3 of 3", "4 of 3", "1.3333333333333333333333333333333 of 3", "1 of 3", "2 of 3", "2 of 3", "2 of 3", "2 of 3",
          "3.7916666666666666666666666666667 of 3"}},
        {{"0", "0.0"}, {"2 of 2", "0 of 2", "0 of 2", "0 of 2", "0 of 2", "1 of 2", "1 of 2", "0 of 2", "0 of 2"}},
    };
    for (const Row& row : rows) {
        CAPTURE(row.values);
        Meter m(options_for());
        record_hourly(m, row.values);
        CHECK(totals(m) == row.expected);
        seal_all(m);
        CHECK(totals(m) == row.expected);
    }
    Meter m(options_for());
    record_hourly(m, {wide, "\"-0.5\"", tiny, wide, "7"});
    for (int sealed = 0; sealed < 2; ++sealed) {
        CHECK(total(m, metric_of(Aggregation::min)) == "-0.5 of 5");
        CHECK(total(m, metric_of(Aggregation::max)) == wide + " of 5");
        CHECK(total(m, metric_of(Aggregation::latest)) == "7 of 5");
        CHECK(total(m, metric_of(Aggregation::unique_count)) == "4 of 5");
        CHECK(error_of([&] { m.aggregate(sum_n); }).code() == ErrorCode::overflow);
        seal_all(m);
    }
}

TEST_CASE("Columns of different scale, and texts among them, are compared as what they are") {
    Meter m(options_for());
    record_hourly(m, Lines(64, "2"));            // a segment of integers
    record_hourly(m, Lines(64, "1.999999999"));  // one of nine decimals
    record_hourly(m, Lines(64, "\"2.0000000001\""));
    record_hourly(m, {"1.9999999999"});
    CHECK(total(m, metric_of(Aggregation::max)) == "2.0000000001 of 193");
    CHECK(total(m, metric_of(Aggregation::min)) == "1.999999999 of 193");
    CHECK(total(m, metric_of(Aggregation::unique_count)) == "4 of 193");
    CHECK(total(m, sum_n) == "385.9999999423 of 193");
}

TEST_CASE("The time of an event is a property too: Unix seconds, or a text as a group") {
    Meter m(options_for());
    m.record({{.name = "a", .timestamp = Timestamp(1'500'000)},
              {.name = "a", .timestamp = Timestamp(-250'000)},
              {.name = "a", .timestamp = Timestamp(1'500'000)}});
    for (int sealed = 0; sealed < 2; ++sealed) {
        CHECK(total(m, metric_of(Aggregation::max, "timestamp")) == "1.5 of 3");
        CHECK(total(m, metric_of(Aggregation::min, "timestamp")) == "-0.25 of 3");
        CHECK(total(m, metric_of(Aggregation::sum, "timestamp")) == "2.75 of 3");
        CHECK(total(m, metric_of(Aggregation::unique_count, "timestamp")) == "2 of 3");
        CHECK(rows_of(m, {.code = "a"}, {.group_by = {"timestamp"}}) == Lines{"1969-12-31T23:59:59.750Z 1 of 1", "1970-01-01T00:00:01.500Z 2 of 2"});
        seal_all(m);
    }
}

TEST_CASE("Of events of one moment the latest is the last recorded, whichever name, segment or group they are in") {
    Meter m(options_for());
    std::vector<Event> events;
    for (int i = 0; i < 150; ++i) events.push_back({.name = "a", .customer = i % 3 == 0 ? "z" : "b", .timestamp = noon, .properties = {{"n", i}}});
    events.push_back({.name = "a", .timestamp = noon - std::chrono::microseconds(1), .properties = {{"n", -1}}});
    m.record(events);
    const Metric latest = metric_of(Aggregation::latest);
    for (int sealed = 0; sealed < 2; ++sealed) {
        CHECK(total(m, latest) == "149 of 151");
        CHECK(rows_of(m, latest, {.group_by = {"customer"}}) == Lines{"- -1 of 1", "b 149 of 100", "z 147 of 50"});
        seal_all(m);
    }
}

TEST_CASE("Owners of one event, of some and of many are told apart, whichever segments they are in") {
    // Of each customer as many events in a row; the last two share a subscription with the first.
    const std::vector<std::pair<std::string, int>> owners{{"c1", 1}, {"c8", 8}, {"c9", 9}, {"c30", 30}, {"", 2}, {"c100", 100}, {"c2", 2}, {"c7", 7}};
    Meter m(options_for());
    std::vector<Event> events;
    std::map<std::string, std::int64_t> by_customer, by_subscription, first_day;
    for (const auto& [customer, count] : owners) {
        for (int i = 0; i < count; ++i) {
            const std::string subscription = customer == "c2" || customer == "c7" || customer == "c1" ? "shared" : i % 2 == 0 ? "s" + customer : "";
            events.push_back({.name = "a", .customer = customer, .subscription = subscription, .timestamp = noon + std::chrono::hours(i)});
            events.back().properties = {{"n", i + 1}};
            by_customer[customer] += i + 1;
            by_subscription[subscription] += i + 1;
            if (i < 12) first_day[customer] += i + 1;
        }
    }
    m.record(events);
    m.record({.name = "b", .customer = "c9", .timestamp = noon, .properties = {{"n", 5}}});
    const auto same = [&](const std::map<std::string, std::int64_t>& expected, const AggregateQuery& query) {
        std::map<std::string, std::int64_t> found;
        for (const AggregateRow& row : m.aggregate(sum_n, query).rows) found[row.group.back().value_or("")] = row.value.to_int64().value();
        return found == expected;
    };
    const Period first{noon, noon + std::chrono::hours(12)};
    for (int sealed = 0; sealed < 2; ++sealed) {
        CHECK(same(by_customer, {.group_by = {"customer"}}));
        CHECK(same(by_customer, {.group_by = {"name", "customer"}}));
        CHECK(same(by_subscription, {.group_by = {"subscription"}}));
        CHECK(same(first_day, {.period = first, .group_by = {"customer"}}));
        CHECK(same(first_day, {.period = {noon - std::chrono::hours(12), first.to}, .bin = Bin::day, .group_by = {"customer"}}));
        CHECK(same({{"c30", 30}, {"c100", 4615}}, {.group_by = {"customer"}, .filter = Filter::where("n", Operator::gte, 30)}));
        CHECK(same({}, {.group_by = {"customer"}, .filter = Filter::where("n", Operator::gt, 100)}));
        CHECK(same({{"c100", 5050}, {"c30", 465}, {"", 116}}, {.group_by = {"customer"}, .top = 2}));
        CHECK(same({{"c9", 45}}, {.customer = "c9", .group_by = {"customer"}}));
        CHECK(same({{"c1", 1}, {"c2", 3}, {"c7", 28}}, {.subscription = "shared", .group_by = {"customer"}}));
        CHECK(same({{"c7", 28}}, {.customer = "c7", .subscription = "shared", .group_by = {"customer"}}));
        CHECK(same({}, {.customer = "c7", .subscription = "sc9", .group_by = {"customer"}}));
        CHECK(rows_of(m, {.aggregation = Aggregation::sum, .property = "n"}, {.customer = "c9", .group_by = {"name", "customer"}}) ==
              Lines{"a c9 45 of 9", "b c9 5 of 1"});
        seal_all(m);
    }
}

TEST_CASE("Numbers of every width are read, of all customers and of each") {
    for (int width = 0; width <= 8; ++width) {
        CAPTURE(width);
        const std::int64_t span = width == 8 ? 999'999'999'999'999'999 : (std::int64_t{1} << (8 * width)) - 1, base = -40;
        Meter m(options_for());
        std::vector<Event> events;
        std::map<std::string, Decimal> sums;
        for (int i = 0; i < 64; ++i) {
            const std::string customer = "c" + std::to_string(i / 5);
            const std::int64_t n = width == 0 ? base : base + span / (i + 1);
            events.push_back({.name = "a", .customer = customer, .timestamp = Timestamp(-1'000'000LL * i), .properties = {{"n", n}}});
            sums[customer] += Decimal(n);
            sums[""] += Decimal(n);
        }
        m.record(events);
        for (int sealed = 0; sealed < 2; ++sealed) {
            for (const auto& [customer, sum] : sums) CHECK(m.aggregate(sum_n, {.customer = customer}).rows.at(0).value == sum);
            // 1970 began with the first event's second.
            CHECK(rows_of(m, {.code = "a"}, {.bin = Bin::minute}) ==
                  Lines{"1969-12-31T23:58:00Z 3 of 3", "1969-12-31T23:59:00Z 60 of 60", "1970-01-01T00:00:00Z 1 of 1"});
            seal_all(m);
        }
    }
}

// ---- what is done to a result ----

TEST_CASE("The multiplier comes before rounding, and both after everything else") {
    Meter m(options_for());
    record_values(m, {"1", "2", "2"});
    Metric average = metric_of(Aggregation::average);
    average.multiplier = Decimal("0.3");
    CHECK(total(m, average) == "0.50000000000000000000000000000001 of 3");
    average.rounding = RoundTo{Rounding::half_up, 0};
    CHECK(total(m, average) == "1 of 3");
    average.multiplier = Decimal(-1);
    CHECK(total(m, average) == "-2 of 3");
    average.multiplier = Decimal(0);
    CHECK(total(m, average) == "0 of 3");
    Metric large = sum_n;
    large.multiplier = Decimal(std::string(38, '9'));
    CHECK(error_of([&] { m.aggregate(large); }).code() == ErrorCode::overflow);
}

TEST_CASE("Results round in every mode, to decimals and to tens") {
    struct Row {
        const char *value, *rounded[6];  // half_up, half_even, up, down, ceil, floor
        int scale;
    };
    for (const Row& row : {Row{"2.5", {"3", "2", "3", "2", "3", "2"}, 0}, Row{"-2.5", {"-3", "-2", "-3", "-2", "-2", "-3"}, 0},
                           Row{"0.125", {"0.13", "0.12", "0.13", "0.12", "0.13", "0.12"}, 2},
                           Row{"1250", {"1300", "1200", "1300", "1200", "1300", "1200"}, -2}, Row{"-49", {"0", "0", "-100", "0", "0", "-100"}, -2},
                           Row{"7", {"7", "7", "7", "7", "7", "7"}, 38}, Row{"7", {"0", "0", "-", "0", "-", "0"}, -38}}) {
        Meter m(options_for());
        record_values(m, {row.value});
        for (int mode = 0; mode < 6; ++mode) {
            CAPTURE(row.value, row.scale, mode);
            Metric metric = sum_n;
            metric.rounding = RoundTo{static_cast<Rounding>(mode), row.scale};
            if (row.rounded[mode] == std::string("-"))
                CHECK(error_of([&] { m.aggregate(metric); }).code() == ErrorCode::overflow);  // 10^38 has one digit too many
            else
                CHECK(total(m, metric) == std::string(row.rounded[mode]) + " of 1");
        }
    }
}

// ---- recurring metrics ----

TEST_CASE("A recurring metric counts what came before, and shows in each bin what stands at its end") {
    Meter m(options_for());
    const auto at = [](int hours) { return day_one + std::chrono::hours(hours); };
    m.record({{.name = "a", .customer = "x", .timestamp = at(-100), .properties = {{"n", 5}}},
              {.name = "a", .customer = "x", .timestamp = at(25), .properties = {{"n", -2}}},
              {.name = "a", .customer = "y", .timestamp = at(26), .properties = {{"n", 40}}},
              {.name = "a", .customer = "x", .timestamp = at(72), .properties = {{"n", 1000}}}});
    Metric sum = sum_n;
    sum.recurring = true;
    const Period period{day_one, at(72)};
    for (int sealed = 0; sealed < 2; ++sealed) {
        CHECK(total(m, sum, {.period = period}) == "43 of 3");
        CHECK(total(m, sum, {.period = {at(1), at(2)}}) == "5 of 1");
        CHECK(total(m, sum, {.period = {at(-300), at(-200)}}) == "none");
        CHECK(total(m, sum) == "1043 of 4");
        CHECK(rows_of(m, sum, {.period = period, .bin = Bin::day}) ==
              Lines{"2026-03-01T00:00:00Z 5 of 1", "2026-03-02T00:00:00Z 43 of 3", "2026-03-03T00:00:00Z 43 of 3"});
        CHECK(rows_of(m, sum, {.period = period, .bin = Bin::day, .group_by = {"customer"}}) ==
              Lines{"2026-03-01T00:00:00Z x 5 of 1", "2026-03-02T00:00:00Z x 3 of 2", "2026-03-02T00:00:00Z y 40 of 1",
                    "2026-03-03T00:00:00Z x 3 of 2", "2026-03-03T00:00:00Z y 40 of 1"});
        // The first bin's end is that of the bin, the last one's that of the period.
        CHECK(rows_of(m, sum, {.period = {at(12), at(25)}, .bin = Bin::day}) == Lines{"2026-03-01T00:00:00Z 5 of 1", "2026-03-02T00:00:00Z 5 of 1"});
        CHECK(rows_of(m, sum, {.period = {at(-144), at(24)}, .bin = Bin::day, .fill = true}).front() == "2026-02-23T00:00:00Z 0 of 0");
        seal_all(m);
    }
}

TEST_CASE("Values are added and removed, within a period or over all of time") {
    Meter m(options_for());
    std::string lines;
    const auto note = [&](const char* time, const char* seat, const char* operation) {
        lines += std::string(R"({"name":"a","timestamp":"2026-03-)") + time + R"(:00:00Z","properties":{"n":")" + seat + "\"" + operation + "}}\n";
    };
    const char *add = R"(,"operation_type":"add")", *remove = R"(,"operation_type":"remove")", *other = R"(,"operation_type":"drop")";
    note("01T01", "ann", add);
    note("01T02", "ann", add);
    note("01T03", "bob", "");
    note("01T04", "cyd", remove);  // never added
    note("02T01", "ann", remove);
    note("02T02", "ann", remove);
    note("02T03", "bob", other);
    note("02T04", "bob", remove);
    note("03T01", "ann", R"(,"operation_type":null)");
    m.record_json(lines);
    Metric seats = metric_of(Aggregation::active_count);
    const Period days{day_one, day_one + std::chrono::hours(72)};
    const AggregateQuery by_day{.period = days, .bin = Bin::day};
    for (int sealed = 0; sealed < 2; ++sealed) {
        seats.recurring = false;
        CHECK(total(m, seats, {.period = days}) == "1 of 9");
        CHECK(rows_of(m, seats, by_day) == Lines{"2026-03-01T00:00:00Z 2 of 4", "2026-03-02T00:00:00Z 0 of 4", "2026-03-03T00:00:00Z 1 of 1"});
        seats.recurring = true;
        CHECK(rows_of(m, seats, by_day) == Lines{"2026-03-01T00:00:00Z 2 of 4", "2026-03-02T00:00:00Z 0 of 8", "2026-03-03T00:00:00Z 1 of 9"});
        // Lago takes one off for a word that follows another, also where neither is "add" (dossier 4.4).
        seats.rules = "lago";
        CHECK(total(m, seats, {.period = days}) == "0 of 9");
        seats.rules.clear();
        seal_all(m);
    }
}

// ---- weighted sums ----

TEST_CASE("A weighted sum's share is of the bin, of the question, or of the billing period") {
    Meter m(options_for());
    const auto at = [](int hours) { return day_one + std::chrono::hours(hours); };
    m.record({{.name = "a", .timestamp = at(0), .properties = {{"n", 12}}}, {.name = "a", .timestamp = at(36), .properties = {{"n", 12}}}});
    Metric seats = metric_of(Aggregation::weighted_sum);
    const Period two_days{day_one, at(48)};
    const std::optional<Period> four_days{{day_one, at(96)}};
    for (int sealed = 0; sealed < 2; ++sealed) {
        seats.recurring = false;
        CHECK(total(m, seats, {.period = two_days}) == "15 of 2");
        CHECK(total(m, seats, {.period = two_days, .billing_period = four_days}) == "7.5 of 2");
        CHECK(rows_of(m, seats, {.period = two_days, .bin = Bin::day}) == Lines{"2026-03-01T00:00:00Z 12 of 1", "2026-03-02T00:00:00Z 6 of 1"});
        CHECK(rows_of(m, seats, {.bin = Bin::day}) == Lines{"2026-03-01T00:00:00Z 12 of 1", "2026-03-02T00:00:00Z 6 of 1"});
        seats.recurring = true;
        CHECK(rows_of(m, seats, {.period = two_days, .bin = Bin::day}) == Lines{"2026-03-01T00:00:00Z 12 of 1", "2026-03-02T00:00:00Z 18 of 2"});
        CHECK(total(m, seats, {.period = {at(24), at(48)}}) == "18 of 2");
        seal_all(m);
    }
}

TEST_CASE("A weighted sum of thirds is exact, and so is one of microseconds") {
    Meter m(options_for());
    for (const int hour : {0, 8, 16}) m.record({.name = "a", .timestamp = day_one + std::chrono::hours(hour), .properties = {{"n", 1}}});
    const Metric seats = metric_of(Aggregation::weighted_sum);
    CHECK(total(m, seats, {.period = whole_day}) == "2 of 3");
    const Period four{noon, noon + std::chrono::microseconds(4)};
    m.record({.name = "a", .timestamp = noon + std::chrono::microseconds(1), .properties = {{"n", 8}}});
    CHECK(total(m, seats, {.period = four}) == "6 of 1");
    // A number whose product with the time is beyond 38 digits until it is divided.
    Meter large(options_for());
    record_values(large, {std::string(38, '9')});
    CHECK(error_of([&] { large.aggregate(seats, {.period = {noon, noon + std::chrono::hours(1)}}); }).code() == ErrorCode::overflow);
}

TEST_CASE("A weighted sum over the days when clocks are moved is of what elapses") {
    Meter m(options_for());
    // Paris: 29 March 2026 has 23 hours, 25 October 25. What comes at 12:00 stands for 12 of them.
    for (const char* noon_there : {"2026-03-29T10:00:00Z", "2026-10-25T11:00:00Z"})
        m.record({.name = "a", .timestamp = Timestamp::parse(noon_there), .properties = {{"n", 2300}}});
    const AggregateQuery days{.bin = Bin::day, .time_zone = "Europe/Paris"};
    CHECK(rows_of(m, metric_of(Aggregation::weighted_sum), days) == Lines{"2026-03-28T23:00:00Z 1200 of 1", "2026-10-24T22:00:00Z 1104 of 1"});
}

// ---- buckets ----

TEST_CASE("A bucketed metric is measured in each bucket, and these are added up") {
    Meter m(options_for());
    const auto note = [&](const char* time, int n, const char* host) {
        m.record(
            {.name = "a", .customer = host[0] == 'x' ? "x" : "y", .timestamp = Timestamp::parse(time), .properties = {{"n", n}, {"host", host}}});
    };
    note("2026-03-01T10:10:00Z", 5, "x1");
    note("2026-03-01T10:50:00Z", 7, "x2");
    note("2026-03-01T11:00:00Z", 1, "x1");
    note("2026-03-02T11:00:00Z", 4, "y1");
    note("2026-03-02T11:30:00Z", 2, "y1");
    Metric peaks = metric_of(Aggregation::max);
    peaks.bucket = Bin::hour;
    for (int sealed = 0; sealed < 2; ++sealed) {
        peaks.bucket_group.clear();
        CHECK(total(m, peaks) == "12 of 5");
        CHECK(rows_of(m, peaks, {.bin = Bin::day}) == Lines{"2026-03-01T00:00:00Z 8 of 3", "2026-03-02T00:00:00Z 4 of 2"});
        CHECK(rows_of(m, peaks, {.group_by = {"customer"}}) == Lines{"x 8 of 3", "y 4 of 2"});
        CHECK(rows_of(m, peaks, {.group_by = {"customer"}, .top = 1}) == Lines{"x 8 of 3", "* 4 of 2"});
        peaks.bucket_group = "host";
        CHECK(total(m, peaks) == "17 of 5");
        CHECK(rows_of(m, peaks, {.bin = Bin::day}) == Lines{"2026-03-01T00:00:00Z 13 of 3", "2026-03-02T00:00:00Z 4 of 2"});
        CHECK(rows_of(m, peaks, {.group_by = {"customer"}, .top = 1}) == Lines{"x 13 of 3", "* 4 of 2"});
        CHECK(rows_of(m, peaks, {.bin = Bin::day, .fill = true, .group_by = {"customer"}}) ==
              Lines{"2026-03-01T00:00:00Z x 13 of 3", "2026-03-01T00:00:00Z y 0 of 0", "2026-03-02T00:00:00Z x 0 of 0",
                    "2026-03-02T00:00:00Z y 4 of 2"});
        peaks.multiplier = Decimal("0.1");
        peaks.rounding = RoundTo{Rounding::half_up, 0};
        CHECK(total(m, peaks) == "2 of 5");  // once, of the sum
        peaks.multiplier.reset(), peaks.rounding.reset();
        seal_all(m);
    }
}

TEST_CASE("A bucket belongs to the bin in which it begins; buckets of months follow the billing anchor") {
    Meter m(options_for());
    for (const char* time : {"2026-01-30T12:00:00Z", "2026-01-31T12:00:00Z", "2026-02-27T12:00:00Z", "2026-03-05T00:00:00Z"})
        m.record({.name = "a", .timestamp = Timestamp::parse(time), .properties = {{"n", 1}}});
    Metric most = metric_of(Aggregation::max);
    most.bucket = Bin::week;  // from Monday: 26 January, 23 February and 2 March
    CHECK(rows_of(m, most, {.bin = Bin::month}) ==
          Lines{"2026-01-01T00:00:00Z 1 of 2", "2026-02-01T00:00:00Z 1 of 1", "2026-03-01T00:00:00Z 1 of 1"});
    most.bucket = Bin::month;
    CHECK(total(m, most) == "3 of 4");
    const Timestamp anchor = Timestamp::parse("2025-12-31T00:00:00Z");  // 31 January, 28 February
    CHECK(total(m, most, {.billing_anchor = anchor}) == "3 of 4");
    CHECK(rows_of(m, most, {.bin = Bin::month, .billing_anchor = anchor}) ==
          Lines{"2025-12-31T00:00:00Z 1 of 1", "2026-01-31T00:00:00Z 1 of 2", "2026-02-28T00:00:00Z 1 of 1"});
    most.bucket = Bin::day;
    CHECK(rows_of(m, most, {.bin = Bin::quarter, .billing_anchor = anchor}) == Lines{"2025-12-31T00:00:00Z 4 of 4"});
    most.rules = "flexprice";  // whose weeks begin on Sunday
    most.bucket = Bin::week;
    m.record({.name = "a", .timestamp = Timestamp::parse("2026-03-01T12:00:00Z"), .properties = {{"n", 1}}});
    CHECK(total(m, most) == "3 of 5");
    most.rules.clear();
    CHECK(total(m, most) == "3 of 5");
}

// ---- filled bins, top groups ----

TEST_CASE("Bins are filled from end to end of the period, or as far as there are events where it is open") {
    Meter m(options_for());
    const auto at = [](int hours) { return day_one + std::chrono::hours(hours); };
    CHECK(rows_of(m, {.code = "a"}, {.bin = Bin::day, .fill = true}).empty());
    CHECK(rows_of(m, {.code = "a"}, {.period = whole_day, .bin = Bin::hours_12, .fill = true}) ==
          Lines{"2026-03-01T00:00:00Z 0 of 0", "2026-03-01T12:00:00Z 0 of 0"});
    CHECK(rows_of(m, {.code = "a"}, {.period = whole_day, .bin = Bin::day, .fill = true, .group_by = {"customer"}}).empty());
    CHECK(
        rows_of(m, {.code = "a"},
                {.period = {Timestamp::min() + std::chrono::hours(1), Timestamp::max()}, .bin = Bin::minute, .fill = true, .group_by = {"customer"}})
            .empty());
    m.record({{.name = "a", .customer = "x", .timestamp = at(24)}, {.name = "a", .timestamp = at(73)}});
    for (int sealed = 0; sealed < 2; ++sealed) {
        const Lines open{"2026-03-02T00:00:00Z 1 of 1", "2026-03-03T00:00:00Z 0 of 0", "2026-03-04T00:00:00Z 1 of 1"};
        CHECK(rows_of(m, {.code = "a"}, {.bin = Bin::day, .fill = true}) == open);
        CHECK(rows_of(m, {.code = "a"}, {.period = {day_one, Period().to}, .bin = Bin::day, .fill = true}).size() == 4);
        CHECK(rows_of(m, {.code = "a"}, {.period = {Period().from, at(97)}, .bin = Bin::day, .fill = true}).size() == 4);
        CHECK(rows_of(m, {.code = "a"}, {.period = {at(12), at(49)}, .bin = Bin::day, .fill = true}) ==
              Lines{"2026-03-01T00:00:00Z 0 of 0", "2026-03-02T00:00:00Z 1 of 1", "2026-03-03T00:00:00Z 0 of 0"});
        CHECK(rows_of(m, {.code = "a"}, {.period = {at(24), at(72)}, .bin = Bin::day, .fill = true, .group_by = {"customer"}}) ==
              Lines{"2026-03-02T00:00:00Z x 1 of 1", "2026-03-03T00:00:00Z x 0 of 0"});
        CHECK(rows_of(m, {.code = "a"}, {.fill = true}) == Lines{"2 of 2"});  // there are no bins to fill
        seal_all(m);
    }
}

TEST_CASE("Bins of a zone are filled over the days when clocks are moved, each once") {
    Meter m(options_for());
    const auto filled = [&](const char* from, const char* to, Bin bin, const char* zone) {
        return rows_of(m, {.code = "a"}, {.period = {Timestamp::parse(from), Timestamp::parse(to)}, .bin = bin, .time_zone = zone, .fill = true});
    };
    CHECK(filled("2026-03-28T12:00:00Z", "2026-03-30T12:00:00Z", Bin::day, "Europe/Paris") ==
          Lines{"2026-03-27T23:00:00Z 0 of 0", "2026-03-28T23:00:00Z 0 of 0", "2026-03-29T22:00:00Z 0 of 0"});
    CHECK(filled("2026-10-24T22:00:00Z", "2026-10-25T23:00:00Z", Bin::hour, "Europe/Paris").size() == 25);
    CHECK(filled("2026-03-28T23:00:00Z", "2026-03-29T22:00:00Z", Bin::hour, "Europe/Paris").size() == 23);
    CHECK(filled("2026-04-04T13:00:00Z", "2026-04-05T13:30:00Z", Bin::day, "Australia/Lord_Howe").size() == 1);  // of 24.5 hours
    m.record({.name = "a", .timestamp = Timestamp::parse("2026-10-25T00:30:00Z")});                              // 2:30, the first time
    m.record({.name = "a", .timestamp = Timestamp::parse("2026-10-25T01:30:00Z")});                              // and the second
    CHECK(rows_of(m, {.code = "a"}, {.bin = Bin::hour, .time_zone = "Europe/Paris", .fill = true}) ==
          Lines{"2026-10-25T00:00:00Z 1 of 1", "2026-10-25T01:00:00Z 1 of 1"});
    CHECK(rows_of(m, {.code = "a"}, {.bin = Bin::hours_3, .time_zone = "Europe/Paris", .fill = true}) == Lines{"2026-10-24T22:00:00Z 2 of 2"});
}

TEST_CASE("A day that a zone left out has no bin, and those beside it are whole") {
    Meter m(options_for());
    for (const char* time : {"2011-12-30T09:59:59Z", "2011-12-30T10:00:00Z", "2011-12-31T09:59:59Z"})  // the 30th was left out
        m.record({.name = "a", .timestamp = Timestamp::parse(time)});
    CHECK(rows_of(m, {.code = "a"}, {.bin = Bin::day, .time_zone = "Pacific/Apia"}) ==
          Lines{"2011-12-29T10:00:00Z 1 of 1", "2011-12-30T10:00:00Z 2 of 2"});
}

TEST_CASE("The groups of greatest value keep their names; all others are measured together, not added up") {
    Meter m(options_for());
    const auto note = [&](const char* group, int n, int hour) {
        m.record({.name = "a", .timestamp = day_one + std::chrono::hours(hour), .properties = {{"n", n}, {"g", group}}});
    };
    note("a", 10, 0), note("a", 20, 1);
    note("b", 9, 0), note("b", 9, 30);
    note("c", 1, 0), note("c", 2, 1);
    note("d", 3, 30);
    m.record({.name = "a", .timestamp = day_one, .properties = {{"n", 3}}});
    const auto top = [&](Aggregation aggregation, std::int64_t most, Bin bin = Bin::none) {
        return rows_of(m, metric_of(aggregation), {.bin = bin, .group_by = {"g"}, .top = most});
    };
    for (int sealed = 0; sealed < 2; ++sealed) {
        CHECK(top(Aggregation::sum, 2) == Lines{"a 30 of 2", "b 18 of 2", "* 9 of 4"});
        CHECK(top(Aggregation::average, 2) == Lines{"a 15 of 2", "b 9 of 2", "* 2.25 of 4"});
        CHECK(top(Aggregation::unique_count, 2) == Lines{"a 2 of 2", "c 2 of 2", "* 2 of 4"});  // 9 and 3
        CHECK(top(Aggregation::max, 1) == Lines{"a 20 of 2", "* 9 of 6"});
        // Of "-", "c" and "d", all 3, the names decide, an absent one first.
        CHECK(top(Aggregation::sum, 3) == Lines{"- 3 of 1", "a 30 of 2", "b 18 of 2", "* 6 of 3"});
        CHECK(top(Aggregation::sum, 5) == top(Aggregation::sum, 0));
        CHECK(top(Aggregation::sum, 100) == top(Aggregation::sum, 0));
        // By the value over the whole period, not in a bin.
        CHECK(top(Aggregation::sum, 1, Bin::day) ==
              Lines{"2026-03-01T00:00:00Z a 30 of 2", "2026-03-01T00:00:00Z * 15 of 4", "2026-03-02T00:00:00Z * 12 of 2"});
        CHECK(rows_of(m, metric_of(Aggregation::sum), {.bin = Bin::day, .fill = true, .group_by = {"g"}, .top = 1}).size() == 4);
        CHECK(rows_of(m, metric_of(Aggregation::sum), {.top = 1}) == Lines{"57 of 8"});
        CHECK(rows_of(m, metric_of(Aggregation::sum), {.group_by = {"g", "n"}, .top = 1}) == Lines{"a 20 20 of 1", "* * 37 of 7"});
        seal_all(m);
    }
    Metric least = sum_n;
    least.multiplier = Decimal(-1);
    CHECK(rows_of(m, least, {.group_by = {"g"}, .top = 1}) == Lines{"- -3 of 1", "* -54 of 7"});
}

// ---- rules by name ----

TEST_CASE("Rules by name decide what a value counts as") {
    Meter m(options_for());
    record_hourly(m, {"4", "-1", "\"1e1\"", "\"x\"", "true", "null", ""});
    const auto sum_by = [&](const char* rules) {
        Metric metric = sum_n;
        metric.rules = rules;
        return total(m, metric);
    };
    const auto unique_by = [&](const char* rules) {
        Metric metric = unique_n;
        metric.rules = rules;
        return total(m, metric);
    };
    for (int sealed = 0; sealed < 2; ++sealed) {
        CHECK(sum_by("") == "3 of 2");
        CHECK(sum_by("lago") == "3 of 2");
        CHECK(sum_by("flexprice") == "14 of 7");  // texts that are numbers, -1 is 0, all else is 0 (dossier 5)
        CHECK(sum_by("flexprice_events") == "13 of 7");
        CHECK(sum_by("polar") == "3 of 2");   // JSON numbers alone
        CHECK(sum_by("autumn") == "4 of 3");  // what is missing is 1
        CHECK(sum_by("openmeter") == "13 of 3");
        CHECK(unique_by("") == "5 of 5");
        CHECK(unique_by("lago") == "6 of 7");       // one more for what is missing or null
        CHECK(unique_by("polar") == "6 of 7");      // null is a value; what is missing is none, but takes part (dossier 7)
        CHECK(unique_by("openmeter") == "6 of 7");  // null is none, what is missing is ""
        seal_all(m);
    }
    CHECK(error_of([&] { sum_by("stripe"); }).field() == "metric.rules");
    CHECK(error_of([&] { sum_by("stripe"); }).code() == ErrorCode::bad_value);
    CHECK(error_of([&] { m.define({.code = "m", .rules = "stripe"}); }).field() == "metric.rules");
    CHECK(error_of([&] { m.define({.code = "m", .rules = "\xFF"}); }).field() == "metric.rules");
}

// ---- metrics kept in the database ----

TEST_CASE("A metric is kept with every member") {
    Scratch scratch;
    std::vector<Metric> metrics;
    for (std::size_t i = 0; i < every_aggregation.size(); ++i) {
        Metric& metric = metrics.emplace_back(metric_of(every_aggregation[i], "a.b", "m" + std::to_string(i)));
        metric.event = "e";
        metric.filter = Filter::any({Filter::equals("x", 1), Filter::where("y", Operator::not_like, "%z")});
        metric.multiplier = Decimal("-0.0000001");
        metric.rounding = RoundTo{static_cast<Rounding>(i % 6), static_cast<int>(i * 9) - 38};
        metric.recurring = i % 2 == 0;
        if (!metric.recurring) metric.bucket = static_cast<Bin>(i + 1), metric.bucket_group = "h.i";
        metric.rules = i % 3 == 0 ? "" : i % 3 == 1 ? "lago" : "polar_billing";
    }
    for (int bin = 0; bin <= static_cast<int>(Bin::year); ++bin)
        metrics.push_back({.code = "n" + std::to_string(10 + bin), .bucket = static_cast<Bin>(bin)});
    {
        Meter m(options_for(scratch.path()));
        for (const Metric& metric : metrics) m.define(metric);
    }
    const auto kept = Meter(options_for(scratch.path())).metrics();
    REQUIRE(kept.size() == metrics.size());
    for (std::size_t i = 0; i < metrics.size(); ++i) {
        CAPTURE(i);
        CHECK(kept[i].code == metrics[i].code);
        CHECK(kept[i].event == metrics[i].event);
        CHECK(kept[i].aggregation == metrics[i].aggregation);
        CHECK(kept[i].property == metrics[i].property);
        CHECK(kept[i].filter.to_json() == metrics[i].filter.to_json());
        CHECK(kept[i].multiplier == metrics[i].multiplier);
        CHECK(kept[i].rounding == metrics[i].rounding);
        CHECK(kept[i].recurring == metrics[i].recurring);
        CHECK(kept[i].bucket == metrics[i].bucket);
        CHECK(kept[i].bucket_group == metrics[i].bucket_group);
        CHECK(kept[i].rules == metrics[i].rules);
    }
}

TEST_CASE("A definition of an older release lacks members; one that cannot be is reported as damage") {
    Scratch scratch;
    const auto put = [&](const std::string& definition) {
        PlainDatabase(scratch.path()).run("INSERT OR REPLACE INTO metrics(code, book, definition) VALUES('old', 0, '" + definition + "')");
    };
    Meter(options_for(scratch.path()));
    put(R"({"event":"a","aggregation":"sum","property":"n","filter":{"all":[]}})");
    {
        Meter m(options_for(scratch.path()));
        record_values(m, {"1", "2.5"});
        const Metric old = m.metrics().at(0);
        CHECK(old.bucket == Bin::none);
        CHECK_FALSE(old.recurring);
        CHECK_FALSE(old.multiplier);
        CHECK_FALSE(old.rounding);
        CHECK(old.rules.empty());
        CHECK(m.aggregate({.metric = "old"}).rows.at(0).value == Decimal("3.5"));
    }
    for (const char* bad :
         {"", "{}", "[]", R"({"event":"a","aggregation":"median","property":"n","filter":{"all":[]}})",
          R"({"event":"a","aggregation":"sum","property":"","filter":{"all":[]}})", R"({"event":"a","aggregation":"sum","property":"n","filter":{}})",
          R"({"event":"a","aggregation":"sum","property":"n","filter":{"all":[]},"bucket":"fortnight"})",
          R"({"event":"a","aggregation":"sum","property":"n","filter":{"all":[]},"bucket":7})",
          R"({"event":"a","aggregation":"sum","property":"n","filter":{"all":[]},"multiplier":"many"})",
          R"({"event":"a","aggregation":"sum","property":"n","filter":{"all":[]},"rounding":{"mode":"best","scale":0}})",
          R"({"event":"a","aggregation":"sum","property":"n","filter":{"all":[]},"rounding":{"mode":"up","scale":400}})"}) {
        CAPTURE(bad);
        put(bad);
        const Meter m(options_for(scratch.path()));
        CHECK(error_of([&] { m.metrics(); }).code() == ErrorCode::corrupt);
        CHECK(error_of([&] { m.aggregate({.metric = "old"}); }).code() == ErrorCode::corrupt);
    }
}

// ---- what is refused ----

TEST_CASE("Each thing that a metric or question cannot be is refused, naming its field") {
    Meter m(options_for());
    if (GENERATE(false, true)) record_values(m, {"1"});
    const auto field = [&](const Metric& metric, const AggregateQuery& query = {}) {
        const Error error = error_of([&] { m.aggregate(metric, query); });
        CHECK(error.code() == ErrorCode::bad_value);
        return error.field();
    };
    const auto changed = [](auto&& change) {
        Metric metric = sum_n;
        change(metric);
        return metric;
    };
    CHECK(field(changed([](Metric& x) { x.aggregation = static_cast<Aggregation>(99); })) == "metric.aggregation");
    CHECK(field(changed([](Metric& x) { x.bucket = static_cast<Bin>(99); })) == "metric.bucket");
    CHECK(field(changed([](Metric& x) { x.bucket = Bin::day, x.recurring = true; })) == "metric.bucket");
    CHECK(field(changed([](Metric& x) { x.bucket_group = "host"; })) == "metric.bucket_group");
    CHECK(field(changed([](Metric& x) { x.bucket = Bin::day, x.bucket_group = "\xFF"; })) == "metric.bucket_group");
    CHECK(field(changed([](Metric& x) { x.rounding = RoundTo{Rounding::up, 39}; })) == "metric.rounding");
    CHECK(field(changed([](Metric& x) { x.rounding = RoundTo{Rounding::up, -39}; })) == "metric.rounding");
    CHECK(field(changed([](Metric& x) { x.rounding = RoundTo{static_cast<Rounding>(6), 0}; })) == "metric.rounding");
    CHECK(field(changed([](Metric& x) { x.property = "\xFF"; })) == "metric.property");
    CHECK(field(sum_n, {.customer = "\xFF"}) == "customer");
    CHECK(field(sum_n, {.subscription = std::string("a\0b", 3)}) == "subscription");
    CHECK(field(sum_n, {.period = {noon, day_one}}) == "period");
    CHECK(field(sum_n, {.period = {Timestamp(INT64_MIN), Timestamp::min()}}) == "period");
    CHECK(field(sum_n, {.bin = static_cast<Bin>(99)}) == "bin");
    CHECK(field(sum_n, {.bin = Bin::day, .time_zone = "Mars/Base"}) == "time_zone");
    CHECK(field(sum_n, {.time_zone = "Mars/Base"}) == "time_zone");
    CHECK(field(sum_n, {.bin = Bin::week, .week_start = std::chrono::weekday(9)}) == "week_start");
    CHECK(field(sum_n, {.bin = Bin::day, .billing_anchor = noon}) == "billing_anchor");
    CHECK(field(sum_n, {.bin = Bin::month, .billing_anchor = Period().to}) == "billing_anchor");
    CHECK(field(sum_n, {.group_by = {"g", ""}}) == "group_by");
    CHECK(field(sum_n, {.group_by = {"\xFF"}}) == "group_by");
    CHECK(field(sum_n, {.group_by = {"g"}, .top = -1}) == "top");
    CHECK(field(sum_n, {.billing_period = Period{noon, noon}}) == "billing_period");
    CHECK(field(sum_n, {.billing_period = Period{}}) == "billing_period");
    Metric weighted = metric_of(Aggregation::weighted_sum);
    CHECK(field(weighted, {.period = {day_one, Period().to}}) == "period");
    CHECK(field(weighted, {.bin = Bin::day, .group_by = {"g"}, .top = 1}) == "period");
    weighted.rules = "flexprice_events";
    CHECK(field(weighted, {.bin = Bin::day}) == "period");
    CHECK(field(changed([](Metric& x) { x.recurring = true; }), {.period = {Period().from, noon}, .bin = Bin::day}) == "period");
    // What is beyond time is time's end.
    CHECK_NOTHROW(m.aggregate(sum_n, {.period = {Timestamp(INT64_MIN), Timestamp(INT64_MAX)}, .bin = Bin::year, .fill = true}));
}

TEST_CASE("More bins or groups than an answer may have are refused before they are made") {
    Meter m(options_for());
    m.record({{.name = "a", .customer = "x", .timestamp = day_one}, {.name = "a", .customer = "y", .timestamp = day_one}});
    const auto too_large = [&](const Metric& metric, const AggregateQuery& query) {
        const Error error = error_of([&] { m.aggregate(metric, query); });
        return error.code() == ErrorCode::too_large && error.field() == "bin";
    };
    Metric count{.code = "a"};
    const auto minutes = [](std::int64_t number) { return Period{day_one, day_one + std::chrono::minutes(number)}; };
    const auto most = static_cast<std::int64_t>(limits::aggregate_rows), carried = static_cast<std::int64_t>(limits::carried_bins);
    CHECK(too_large(count, {.period = minutes(most + 1), .bin = Bin::minute, .fill = true}));
    CHECK(too_large(count, {.period = minutes(most / 2 + 1), .bin = Bin::minute, .fill = true, .group_by = {"customer"}}));
    CHECK(too_large(count, {.period = {Timestamp::min(), Timestamp::max()}, .bin = Bin::hour, .time_zone = "Europe/Paris", .fill = true}));
    count.recurring = true;
    CHECK(too_large(count, {.period = minutes(carried + 1), .bin = Bin::minute}));
    CHECK(m.aggregate(count, {.period = minutes(carried), .bin = Bin::minute}).rows.size() == limits::carried_bins);
}
