// analytics(): usage, events and cost of several metrics at once, by group, source and time, under any vendor's book.
#include "../meter.hpp"
#include "testing.hpp"

using namespace meter;

namespace {

Timestamp at(const std::string& text) { return Timestamp::parse(text); }

const Timestamp march_10 = at("2026-03-10T12:00:00Z");
const Period march{at("2026-03-01"), at("2026-04-01")};

Event use(std::string name, json properties, const char* time, std::string source = "web", std::string customer = "acme") {
    return {.name = std::move(name),
            .customer = std::move(customer),
            .timestamp = at(time),
            .source = std::move(source),
            .properties = std::move(properties)};
}

const std::vector<Event> events{use("chat", {{"n", 8}, {"model", "large"}}, "2026-03-05T10:10:00Z"),
                                use("chat", {{"n", 4}, {"model", "small"}}, "2026-03-05T10:50:00Z", "app"),
                                use("chat", {{"n", 10}, {"model", "large"}}, "2026-03-05T15:00:00Z"),
                                use("chat", {{"n", 1}}, "2026-03-08T15:00:00Z"),
                                use("image", json::object(), "2026-03-06T00:00:00Z", "app"),
                                use("chat", {{"n", 100}}, "2026-03-06T00:00:00Z", "web", "other"),
                                use("chat", {{"n", 50}}, "2026-02-20T00:00:00Z")};

const json tiers{{"billing_model", "TIERED"},
                 {"tier_mode", "SLAB"},
                 {"tiers", {{{"up_to", 10}, {"unit_amount", "0.1"}}, {{"up_to", nullptr}, {"unit_amount", "0.05"}}}}};

json flexprice_book() {
    json price{{"id", "p1"}, {"type", "USAGE"}, {"meter_id", "chat"}, {"currency", "usd"}};
    price.update(tiers);
    return {{"meters",
             {{{"id", "chat"}, {"event_name", "chat"}, {"aggregation", {{"type", "SUM"}, {"field", "n"}}}},
              {{"id", "image"}, {"event_name", "image"}, {"aggregation", {{"type", "COUNT"}}}},
              {{"id", "none"}, {"event_name", "none"}, {"aggregation", {{"type", "COUNT"}}}}}},
            {"prices",
             {price,
              {{"id", "p2"}, {"type", "USAGE"}, {"meter_id", "image"}, {"currency", "usd"}, {"billing_model", "FLAT_FEE"}, {"amount", "0.015"}},
              {{"id", "p3"}, {"type", "USAGE"}, {"meter_id", "none"}, {"currency", "usd"}, {"billing_model", "FLAT_FEE"}, {"amount", "1"}}}}};
}

Meter with(const Book& book) {
    Meter m({.clock = [] { return march_10; }});
    m.record(events);
    m.load(book);
    return m;
}

Analytics asked(const json& book, AnalyticsQuery query) {
    if (query.customer.empty()) query.customer = "acme";
    if (!query.period && query.range.empty()) query.period = march;
    if (query.rules.empty()) query.rules = "flexprice";
    return with(Book::flexprice(book)).analytics(query);
}

std::string refused(const Meter& m, const AnalyticsQuery& query) {
    try {
        m.analytics(query);
    } catch (const Error& error) {
        return error.field();
    }
    return "accepted";
}

}  // namespace

TEST_CASE("analytics shows usage, events and cost of every metric, and drops what FlexPrice drops") {
    const auto answer = asked(flexprice_book(), {});
    REQUIRE(answer.items.size() == 2);
    CHECK(answer.items[0].metric == "flexprice:chat");
    CHECK(answer.items[0].charge == "p1");
    CHECK(answer.items[0].usage == 23);
    CHECK(answer.items[0].events == 4);
    CHECK(answer.items[0].cost == Decimal("1.65"));
    CHECK(answer.items[0].points.empty());
    CHECK(answer.items[1].cost == Decimal("0.015"));  // not rounded
    CHECK(answer.cost == Decimal("1.665"));
    CHECK(answer.currency == "usd");
    REQUIRE(answer.totals.size() == 3);
    CHECK(answer.totals[0].usage == 23);
    CHECK(answer.totals[2].events == 0);
    CHECK(answer.period == march);
    CHECK(with(Book::flexprice(flexprice_book())).analytics({.customer = "acme", .period = march}).items.size() == 3);
    CHECK(asked(flexprice_book(), {.range = "7d"}).totals[0].usage == 23);
    CHECK(asked(flexprice_book(), {.range = "24h"}).totals[0].usage == 0);
}

TEST_CASE("the points of analytics are priced alone, so that tiers begin in each") {
    const auto answer = asked(flexprice_book(), {.metrics = {"flexprice:chat"}, .bin = Bin::day});
    REQUIRE(answer.items.size() == 1);
    const auto& points = answer.items[0].points;
    REQUIRE(points.size() == 2);
    CHECK(points[0].start == at("2026-03-05"));
    CHECK(points[0].usage == 22);
    CHECK(points[0].events == 3);
    CHECK(points[0].cost == Decimal("1.6"));
    CHECK(points[1].cost == Decimal("0.1"));
    CHECK(answer.items[0].cost == Decimal("1.65"));
    CHECK(asked(flexprice_book(), {.metrics = {"flexprice:chat"}, .bin = Bin::week}).items[0].points[0].start == at("2026-03-01"));  // a Sunday
    CHECK(with(Book::flexprice(flexprice_book()))
              .analytics({.metrics = {"flexprice:chat"}, .customer = "acme", .period = march, .bin = Bin::week})
              .items[0]
              .points[0]
              .start == at("2026-03-02"));
    CHECK(asked(flexprice_book(), {.metrics = {"flexprice:chat"}, .bin = Bin::day, .fill = true}).items[0].points.size() == 31);
}

TEST_CASE("analytics groups by several fields at once, sources among them") {
    const auto answer = asked(flexprice_book(), {.metrics = {"flexprice:chat"}, .bin = Bin::day, .group_by = {"source", "properties.model"}});
    REQUIRE(answer.items.size() == 3);
    CHECK(answer.items[0].group == std::vector<std::optional<std::string>>{"app", "small"});
    CHECK(answer.items[0].usage == 4);
    CHECK(answer.items[0].cost == Decimal("0.4"));
    CHECK(answer.items[1].group == std::vector<std::optional<std::string>>{"web", ""});
    CHECK(answer.items[2].group == std::vector<std::optional<std::string>>{"web", "large"});
    CHECK(answer.items[2].usage == 18);
    CHECK(answer.items[2].points.size() == 1);
    CHECK(answer.totals[0].usage == 23);
    const auto app = asked(flexprice_book(), {.sources = {"app"}});
    REQUIRE(app.items.size() == 2);
    CHECK(app.items[0].usage == 4);
    CHECK(app.items[1].events == 1);
    const auto top = asked(flexprice_book(), {.metrics = {"flexprice:chat"}, .group_by = {"properties.model"}, .top = 1});
    REQUIRE(top.items.size() == 2);
    CHECK(top.items[0].group[0] == "large");
    CHECK(top.items[1].rest);
    CHECK(top.items[1].usage == 5);
}

TEST_CASE("a commitment shows in analytics of all usage, not of a part") {
    json book = flexprice_book();
    book["prices"][0]["commitment"] = {{"type", "amount"}, {"amount", "2"}, {"overage_factor", "3"}, {"true_up_enabled", true}};
    const auto whole = asked(book, {.metrics = {"flexprice:chat"}});
    CHECK(whole.items[0].cost == 2);
    CHECK(whole.items[0].vendor["commitment_info"]["computed_true_up_amount"] == "0.35");
    CHECK(asked(book, {.metrics = {"flexprice:chat"}, .sources = {"web"}}).items[0].cost == Decimal("1.45"));
    CHECK(asked(book, {.metrics = {"flexprice:chat"}, .group_by = {"source"}}).items[1].cost == Decimal("1.45"));
    CHECK(asked(book, {.metrics = {"flexprice:chat"}, .filter = Filter::equals("properties.model", "large")}).items[0].cost == Decimal("1.4"));
    // An item with a commitment is shown without any usage.
    CHECK(asked(book, {.metrics = {"flexprice:chat"}, .period = Period{at("2026-01-01"), at("2026-02-01")}}).items.at(0).cost == 2);
}

TEST_CASE("bucketed meters in analytics: each bucket alone, put together in wider windows") {
    json book = flexprice_book();
    book["meters"][0]["aggregation"] = {{"type", "MAX"}, {"field", "n"}, {"bucket_size", "HOUR"}};
    const auto days = asked(book, {.metrics = {"flexprice:chat"}, .bin = Bin::day});
    REQUIRE(days.items.size() == 1);
    CHECK(days.items[0].usage == 19);
    CHECK(days.items[0].cost == Decimal("1.9"));
    REQUIRE(days.items[0].points.size() == 2);
    CHECK(days.items[0].points[0].usage == 10);
    CHECK(days.items[0].points[0].cost == Decimal("1.8"));
    CHECK(days.items[0].points[0].events == 3);
    const auto minutes = asked(book, {.metrics = {"flexprice:chat"}, .bin = Bin::minute});
    REQUIRE(minutes.items[0].points.size() == 3);
    CHECK(minutes.items[0].points[0].start == at("2026-03-05T10:00:00Z"));
    const auto groups = asked(book, {.metrics = {"flexprice:chat"}, .group_by = {"properties.model"}});
    REQUIRE(groups.items.size() == 3);
    CHECK(groups.items[1].usage == 18);
    book["meters"][0]["aggregation"]["group_by"] = "model";
    CHECK(asked(book, {.metrics = {"flexprice:chat"}}).items[0].usage == 23);
    book["meters"][0]["aggregation"] = {{"type", "SUM"}, {"field", "n"}, {"bucket_size", "HOUR"}};
    book["prices"][0]["commitment"] = {{"type", "amount"}, {"amount", "1"}, {"overage_factor", "2"}, {"windowed", true}};
    const auto windowed = asked(book, {.metrics = {"flexprice:chat"}, .bin = Bin::day});
    CHECK(windowed.items[0].points[0].usage == 22);
    CHECK(windowed.items[0].points[0].cost == Decimal("2.2"));  // 1.1 of 12 units: 1 + 0.1 x 2; 1 of 10
    CHECK(windowed.items[0].cost == Decimal("2.3"));
}

TEST_CASE("FlexPrice's subscriptions and coupons in analytics") {
    json book = flexprice_book();
    const json percent{{"type", "percentage"}, {"percentage_off", "10"}, {"cadence", "forever"}};
    book["subscriptions"] = {{{"id", "s1"},
                              {"external_customer_id", "acme"},
                              {"start_date", "2026-03-05T12:00:00Z"},
                              {"coupon_associations", {{{"coupon", percent}, {"start_date", "2026-03-07T00:00:00Z"}}}}},
                             {{"id", "s2"},
                              {"external_customer_id", "acme"},
                              {"start_date", "2026-01-01T00:00:00Z"},
                              {"line_items", {{{"id", "li"}, {"price_id", "p1"}, {"end_date", "2026-03-05T12:00:00Z"}}}}}};
    const auto answer = asked(book, {.metrics = {"flexprice:chat"}});
    REQUIRE(answer.items.size() == 2);
    CHECK(answer.items[0].usage == 11);
    CHECK(answer.items[0].cost == Decimal("1.05"));
    CHECK(answer.items[0].discount == Decimal("0.11"));
    CHECK(answer.items[1].usage == 12);
    CHECK(answer.items[1].discount == 0);
    CHECK(answer.discount == Decimal("0.11"));
    const auto points = asked(book, {.metrics = {"flexprice:chat"}, .bin = Bin::day});
    CHECK(points.items[0].points.at(0).discount == 0);
    CHECK(points.items[0].points.at(1).discount == Decimal("0.01"));
    CHECK(points.items[0].discount == Decimal("0.01"));
    // Without a subscription there is usage, and no price.
    const auto other = asked(book, {.metrics = {"flexprice:chat"}, .customer = "other"});
    CHECK(other.items.at(0).usage == 100);
    CHECK(other.items.at(0).charge.empty());
    CHECK(other.cost == 0);
    CHECK(other.currency.empty());
}

TEST_CASE("other vendors' books price analytics as they price any quantity") {
    const json lago{{"plan",
                     {{"code", "pro"},
                      {"amount_currency", "EUR"},
                      {"interval", "monthly"},
                      {"charges",
                       {{{"code", "packs"},
                         {"billable_metric_code", "chat"},
                         {"charge_model", "package"},
                         {"properties", {{"amount", "2"}, {"package_size", 10}, {"free_units", 0}}}}}}}},
                    {"billable_metrics", {{{"code", "chat"}, {"aggregation_type", "sum_agg"}, {"field_name", "n"}}}}};
    Meter m = with(Book::lago(lago));
    m.define({.code = "images", .event = "image"});
    const auto answer = m.analytics({.customer = "acme", .period = march, .bin = Bin::day});
    REQUIRE(answer.items.size() == 2);
    CHECK(answer.items[0].charge == "packs");
    CHECK(answer.items[0].cost == Book::lago(lago).price("packs", 23).amount);
    CHECK(answer.items[0].cost == 6);
    CHECK(answer.items[0].points.at(0).cost == 6);
    CHECK(answer.items[1].metric == "images");
    CHECK(answer.items[1].charge.empty());
    CHECK(answer.items[1].points.at(0).start == at("2026-03-06"));
    CHECK(answer.currency == "EUR");
    CHECK(m.analytics({.metrics = {"images"}}).items.at(0).usage == 1);
    CHECK(m.analytics({.metrics = {"chat"}}).totals.at(0).usage == 173);
    const json polar{{"product", {{"id", "pro"}, {"prices", {{{"id", "per"}, {"meter_id", "m1"}, {"unit_amount", "50"}}}}}},
                     {"meters",
                      {{{"id", "m1"},
                        {"filter", {{"conjunction", "and"}, {"clauses", {{{"property", "name"}, {"operator", "eq"}, {"value", "chat"}}}}}},
                        {"aggregation", {{"func", "count"}}}}}}};
    CHECK(with(Book::polar(polar)).analytics({.customer = "acme", .period = march}).cost == 2);
    const json autumn{
        {"plan", {{"id", "pro"}, {"items", {{{"feature_id", "image"}, {"price", {{"amount", 3}, {"billing_method", "usage_based"}}}}}}}}};
    CHECK(with(Book::autumn(autumn)).analytics({.customer = "acme", .period = march}).cost == 3);
}

TEST_CASE("analytics answers of several metrics are of one moment") {
    Meter m({.clock = [] { return march_10; }});
    m.define({.code = "a", .event = "chat"});
    m.define({.code = "b", .event = "chat"});
    CHECK(m.analytics({}).totals.size() == 2);
    CHECK(m.analytics({}).items.at(0).usage == 0);
    CHECK(m.analytics({.bin = Bin::day}).items.at(0).points.empty());
    CHECK(m.analytics({.group_by = {"source"}}).items.empty());
}

TEST_CASE("what analytics cannot be asked is refused by its field") {
    Meter m = with(Book::flexprice(flexprice_book()));
    CHECK(refused(m, {.metrics = {"nothing"}}) == "metric");
    CHECK(refused(m, {.rules = "stripe"}) == "rules");
    CHECK(refused(m, {.period = march, .range = "7d"}) == "range");
    CHECK(refused(m, {.range = "8d"}) == "period");
    CHECK(refused(m, {.range = "1bc"}) == "period");
    CHECK(refused(m, {.period = Period{march.to, march.from}}) == "period");
    CHECK(refused(m, {.period = march, .bin = Bin::day, .time_zone = "Mars/Phobos"}) == "time_zone");
    CHECK(refused(m, {.group_by = {""}}) == "group_by");
    CHECK(refused(m, {.top = -1}) == "top");
    CHECK(refused(m, {.filter = Filter::where("n", Operator::in, 5)}) == "n.in");
    json book = flexprice_book();
    book["meters"][0]["aggregation"] = {{"type", "MAX"}, {"field", "n"}, {"bucket_size", "HOUR"}};
    CHECK(refused(with(Book::flexprice(book)), {.customer = "acme", .period = march, .group_by = {"source"}, .top = 1}) == "top");
}
