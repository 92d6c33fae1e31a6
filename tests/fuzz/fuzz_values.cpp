// Texts that become values: decimals, timestamps, filters, cursors, expressions. What is accepted is the same after writing and reading it again.
#include "../../meter.hpp"
#include "fuzz.hpp"

using namespace meter;
using meter_fuzz::require;

std::vector<std::string> meter_fuzz::seeds() {
    Meter m;
    m.record({{.id = "1", .name = "a"}, {.id = "2", .name = "a", .customer = "c"}});
    return {
        "d0",
        "d-12.50",
        "d+.5e-3",
        "d99999999999999999999999999999999999999",
        "d1e37",
        "t2026-01-05T11:30:00.123456+01:00",
        "t2026-01-05",
        "t9999-12-31 23:59:59.999999999Z",
        "t0001-01-01T00:00-2359",
        R"(f{"all":[{"any":[]},{"field":"a.b","operator":"in","value":[1,"x",null,true]}]})",
        R"(f{"field":"timestamp","operator":"gte","value":"2026-01-01"})",
        R"(f{"field":"n","operator":"like","value":"%a_"})",
        "lCONCAT(event.properties.n, '-', round(event.timestamp / -3.50, 2))",
        "ln + least(event.properties.n, 2) * (1 - .5)",
        "xn > 1 && !(n == 2e3) ? pow(n, .5) : max(n / 3, -1)",
        "c" + m.list({.limit = 1}).next.text,
        "c" + m.list({.names = {"a"}, .sources = {}, .filter = Filter::where("id", Operator::exists, true), .sort = {{"timestamp"}}, .limit = 1})
                  .next.text,
    };
}

namespace {

void decimal(std::string_view text) {
    const auto value = Decimal::parse(text);
    if (!value) return;
    require(Decimal(value->to_string()) == *value, "a decimal is another after writing and reading it");
    require(value->digits() <= Decimal::max_digits && value->scale() <= Decimal::max_scale, "a decimal is out of its bounds");
    require(-(-*value) == *value && *value - *value == 0, "a decimal is not its own");
}

void timestamp(std::string_view text) {
    try {
        const Timestamp time = Timestamp::parse(text);
        require(time >= Timestamp::min() && time <= Timestamp::max(), "a timestamp is outside the calendar");
        require(Timestamp::parse(time.to_string()) == time, "a timestamp is another after writing and reading it");
        require(Timestamp::from_unix(time.unix_seconds()) == time, "a timestamp is another as Unix seconds");
    } catch (const Error& error) {
        require(error.code() == ErrorCode::bad_value, error.what());
    }
}

Meter& log() {
    static Meter m = [] {
        Meter made;
        made.record_json(R"({"id":"1","name":"a","customer":"c","value":1,"properties":{"n":5,"a":{"b":"x"},"l":[1]}}
{"id":"2","name":"a","source":"s","properties":{"n":"5.0","a":true}})");
        return made;
    }();
    return m;
}

void filter(std::string_view text) {
    const json tree = json::parse(text, nullptr, false);
    if (tree.is_discarded()) return;
    try {
        const Filter made = Filter::from_json(tree);
        require(Filter::from_json(made.to_json()).to_json() == made.to_json(), "a filter is another after writing and reading it");
        const auto listed = log().list({.filter = made, .count = true}).total;
        const auto rows = log().aggregate({.code = "a"}, {.filter = made}).rows;
        require(listed == (rows.empty() ? 0 : rows[0].events), "a list and an aggregate differ");
    } catch (const Error& error) {
        require(error.code() == ErrorCode::bad_value, error.what());
        require(!error.reason().empty(), "an error without a reason");
    }
}

void expression(std::string_view text, const std::string& rules) {
    if (text.empty()) return;  // no expression
    Metric metric{.code = "a", .aggregation = Aggregation::unique_count, .property = "made", .rules = rules};
    metric.expression = text;
    try {
        const auto groups = log().aggregate(metric, {.group_by = {"made"}}).rows;
        const auto rows = log().aggregate(metric).rows;
        require(groups.size() == (rows.empty() ? 0 : static_cast<std::size_t>(rows[0].value.to_int64().value())),
                "a group is no value that is counted");
        Meter other;
        other.define(metric);
        require(other.metrics().at(0).expression == text, "an expression is another after it was kept");
    } catch (const Error& error) {
        require(error.field() == "metric.expression" && !error.reason().empty(), error.what());
        require(error.code() != ErrorCode::io && error.code() != ErrorCode::corrupt, error.what());
    }
}

void cursor(std::string_view text) {
    try {
        log().list(Cursor{std::string(text)});
    } catch (const Error& error) {
        require(error.code() == ErrorCode::bad_cursor || error.code() == ErrorCode::bad_value, error.what());
    }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    const std::string_view text = meter_fuzz::text_of(data, size);
    if (text.empty()) return 0;
    switch (text[0]) {
        case 'd':
            decimal(text.substr(1));
            break;
        case 't':
            timestamp(text.substr(1));
            break;
        case 'f':
            filter(text.substr(1));
            break;
        case 'c':
            cursor(text.substr(1));
            break;
        case 'l':
            expression(text.substr(1), "lago");
            break;
        case 'x':
            expression(text.substr(1), "flexprice");
            break;
        default:
            decimal(text);
            timestamp(text);
    }
    return 0;
}
