// Section 8: how each vendor measures and prices.
#include "inside.hpp"

#include "golden/log.hpp"
#include "plain_usage.hpp"

using namespace meter;

namespace {

json catalogue(json charge, json metric = {{"code", "calls"}, {"aggregation_type", "count_agg"}}) {
    charge["billable_metric_code"] = metric["code"];
    return {{"plan", {{"code", "pro"}, {"amount_currency", "EUR"}, {"interval", "monthly"}, {"charges", {charge}}}}, {"billable_metrics", {metric}}};
}

const json tokens_metric{{"code", "tokens"}, {"name", "Tokens"}, {"aggregation_type", "sum_agg"}, {"field_name", "value"}};

Event event(std::string name, json properties, const char* time = "2026-03-05T00:00:00Z", std::string subscription = "sub_1") {
    return {
        .name = std::move(name), .subscription = std::move(subscription), .timestamp = Timestamp::parse(time), .properties = std::move(properties)};
}

const Timestamp march_10 = Timestamp::parse("2026-03-10T12:00:00Z");

std::string field_of(const json& book) {
    try {
        Book::lago(book);
    } catch (const Error& error) {
        return error.field() + ": " + error.reason();
    }
    return "accepted";
}

}  // namespace

TEST_CASE("a standard charge is estimated as Lago's estimate_fees would", "[lago]") {
    const auto book = Book::lago(catalogue({{"charge_model", "standard"}, {"pay_in_advance", true}, {"properties", {{"amount", "10"}}}}));
    PlainUsage usage;
    usage.events = {event("calls", {{"model", "large"}})};
    const auto fees = book.impl().estimate_fees(event("calls", json::object()), march_10, usage);
    REQUIRE(fees.fees.size() == 1);
    const auto& fee = fees.fees[0];
    CHECK(fee.units == 1);
    CHECK(fee.amount == 10);
    CHECK(fee.amount_cents == 1000);
    CHECK(fee.unit_amount == 10);
    CHECK(fee.events == 1);
    CHECK(fee.period == Period{Timestamp::parse("2026-03-01"), Timestamp::parse("2026-04-01")});
    CHECK(fees.amount_cents == 1000);
    CHECK(fee.vendor["amount_cents"] == 1000);
    CHECK(fee.vendor["units"] == "1.0");
    CHECK(fee.vendor["precise_amount"] == "10.0");
    CHECK(fee.vendor["amount_details"] == json::object());
    CHECK(fee.vendor["from_date"] == "2026-03-01T00:00:00Z");
    CHECK(fee.vendor["to_date"] == "2026-03-31T23:59:59Z");
    CHECK(fee.vendor["item"]["code"] == "calls");
}

TEST_CASE("estimates answer errors as Lago does, in its order", "[lago]") {
    auto source = catalogue({{"charge_model", "standard"}, {"properties", {{"amount", "10"}}}});
    source["subscriptions"] = {{{"external_id", "sub_1"}, {"started_at", "2026-01-01T00:00:00Z"}, {"terminated_at", "2026-02-01T00:00:00Z"}},
                               {{"external_id", "sub_2"}, {"started_at", "2026-01-01T00:00:00Z"}}};
    const auto book = Book::lago(source);
    PlainUsage usage;
    const auto reason = [&](const Event& asked) -> std::string {
        try {
            book.impl().estimate_fees(asked, march_10, usage);
        } catch (const Error& error) {
            return error.reason();
        }
        return "answered";
    };
    CHECK(reason(event("calls", {}, "2026-03-05T00:00:00Z", "")) == "subscription_not_found");
    CHECK(reason(event("calls", {}, "2026-03-05T00:00:00Z", "sub_1")) == "subscription_not_found");
    CHECK(reason(event("unknown", {}, "2026-03-05T00:00:00Z", "sub_2")) == "billable_metric_not_found");
    CHECK(reason(event("calls", {}, "2026-03-05T00:00:00Z", "sub_2")) == "does_not_match_an_instant_charge");
    source["billable_metrics"].push_back({{"code", "peak"}, {"aggregation_type", "max_agg"}, {"field_name", "value"}});
    const auto peak = Book::lago(source);
    CHECK_THROWS_WITH(peak.impl().estimate_fees(event("peak", {{"value", "x"}}, "2026-03-05T00:00:00Z", "sub_2"), march_10, usage),
                      "properties.value: value_is_not_valid_number");
    CHECK_THROWS_WITH(peak.impl().estimate_fees(event("peak", {{"value", "7"}}, "2026-03-05T00:00:00Z", "sub_2"), march_10, usage),
                      "name: does_not_match_an_instant_charge");
}

TEST_CASE("a sum's property must be a number when estimated", "[lago]") {
    const auto book =
        Book::lago(catalogue({{"charge_model", "standard"}, {"pay_in_advance", true}, {"properties", {{"amount", "0.001"}}}}, tokens_metric));
    PlainUsage usage;
    CHECK_THROWS_WITH(book.impl().estimate_fees(event("tokens", {{"value", "abc"}}), march_10, usage), "properties.value: value_is_not_valid_number");
    const auto fees = book.impl().estimate_fees(event("tokens", {{"value", 512}}), march_10, usage);
    CHECK(fees.fees[0].amount == Decimal("0.512"));
    CHECK(fees.fees[0].amount_cents == 51);
    CHECK(fees.fees[0].unit_amount == Decimal::divide_significant(Decimal("0.51"), 512, 32, Rounding::half_up));
}

TEST_CASE("an estimate asks for totals, not for every event, while nothing falls", "[lago]") {
    const auto book =
        Book::lago(catalogue({{"charge_model", "standard"}, {"pay_in_advance", true}, {"properties", {{"amount", "1"}}}}, tokens_metric));
    PlainUsage usage;
    usage.events = {event("tokens", {{"value", "10"}})};
    CHECK(book.impl().estimate_fees(event("tokens", {{"value", "3"}}), march_10, usage).amount_cents == 300);
    CHECK(usage.stepped == 0);
    usage.events.push_back(event("tokens", {{"value", "-4"}}));
    CHECK(book.impl().estimate_fees(event("tokens", {{"value", "8"}}), march_10, usage).amount_cents == 400);
    CHECK(usage.stepped == 1);
}

TEST_CASE("usage gives units and fees of the period, events outside it left out", "[lago]") {
    const auto book = Book::lago(catalogue({{"charge_model", "standard"}, {"properties", {{"amount", "0.005"}}}}, tokens_metric));
    PlainUsage usage;
    usage.events = {event("tokens", {{"value", "1"}}), event("tokens", {{"value", "2"}}, "2026-03-31T23:59:59Z"),
                    event("tokens", {{"value", "4"}}, "2026-04-01T00:00:00Z"), event("tokens", {{"value", "8"}}, "2026-03-05T00:00:00Z", "sub_2")};
    const auto fees = book.impl().usage({.subscription = "sub_1"}, march_10, usage);
    REQUIRE(fees.fees.size() == 1);
    CHECK(fees.fees[0].units == 3);
    CHECK(fees.fees[0].events == 2);
    CHECK(fees.fees[0].amount == Decimal("0.015"));
    CHECK(fees.fees[0].amount_cents == 2);
    CHECK(fees.to_json()["fees"][0]["lines"][0]["text"] == "3 x 0.005");
}

TEST_CASE("a plan that cannot be is refused with the path of the field", "[lago]") {
    CHECK(field_of(json::object()) == "plan: must be an object");
    CHECK(field_of(catalogue({{"charge_model", "standard"}, {"properties", {{"amount", 10}}}})) ==
          "plan.charges[0].properties.amount: invalid_amount");
    CHECK(field_of(catalogue({{"charge_model", "standard"}, {"properties", {{"amount", "-1"}}}})) ==
          "plan.charges[0].properties.amount: invalid_amount");
    CHECK(field_of(catalogue({{"charge_model", "magic"}})) == "plan.charges[0].charge_model: is not known: magic");
    CHECK(field_of(catalogue({{"charge_model", "standard"}}, {{"code", "calls"}, {"aggregation_type", "sum_agg"}})) ==
          "billable_metrics[0].field_name: is required");
    const json scripted{{"code", "script"}, {"aggregation_type", "custom_agg"}};
    auto unneeded = catalogue({{"charge_model", "standard"}});
    unneeded["billable_metrics"].push_back(scripted);
    CHECK(field_of(unneeded) == "accepted");
    CHECK(Book::lago(unneeded).metrics().size() == 1);
    CHECK(field_of(catalogue({{"charge_model", "standard"}}, scripted)) == "plan.charges[0].billable_metric_code: custom_agg is not measured here");
    CHECK(field_of(catalogue({{"charge_model", "standard"}, {"min_amount_cents", -1}})) == "plan.charges[0].min_amount_cents: value_is_out_of_range");
    CHECK(field_of(catalogue({{"charge_model", "standard"}, {"applied_pricing_unit", {{"code", "credits"}}}})) ==
          "plan.charges[0].applied_pricing_unit.conversion_rate: must be above zero");
    auto unknown = catalogue({{"charge_model", "standard"}});
    unknown["plan"]["charges"][0]["billable_metric_code"] = "nothing";
    CHECK(field_of(unknown) == "plan.charges[0].billable_metric_code: no such billable metric: nothing");
    CHECK(field_of(catalogue({{"charge_model", "standard"}, {"unknown_field", 1}})) == "accepted");
    for (const char* code : {"jpy", "EU", "E1R", ""}) {
        auto foreign = catalogue({{"charge_model", "standard"}});
        foreign["plan"]["amount_currency"] = code;
        CHECK(field_of(foreign).starts_with("plan.amount_currency: "));
    }
    const auto subscribed = [](json subscription) {
        auto all = catalogue({{"charge_model", "standard"}});
        subscription["external_id"] = "sub_1";
        all["subscriptions"] = json::array({subscription});
        return field_of(all);
    };
    CHECK(subscribed({{"billing_time", "anniversary"}}) == "accepted");
    CHECK(subscribed({{"billing_time", "odd"}}) == "subscriptions[0].billing_time: is not known: odd");
    CHECK(subscribed({{"started_at", "2026-03-01"}, {"terminated_at", "2026-03-01"}}) == "accepted");
    CHECK(subscribed({{"started_at", "2026-03-01"}, {"terminated_at", "2026-02-28"}}) == "subscriptions[0].terminated_at: is before started_at");
}

// --- Lago: filters, groups, periods ---

namespace {

std::vector<std::vector<std::pair<std::string, std::vector<std::string>>>> plain(const std::vector<lago::Values>& list) {
    std::vector<std::vector<std::pair<std::string, std::vector<std::string>>>> out;
    for (const auto& values : list) out.emplace_back(values.begin(), values.end());
    return out;
}

lago::Subscription anniversary(const char* at) { return {.id = "sub", .anniversary = true, .anchor = Timestamp::parse(at), .active = {}}; }

Fees usage_of(const json& source, const std::vector<Event>& events, UsageQuery query = {.subscription = "sub_1"}, Timestamp now = march_10) {
    PlainUsage usage;
    usage.events = events;
    return Book::lago(source).impl().usage(query, now, usage);
}

// A fee's lines must always explain it.
void check_lines(const Fees& fees) {
    Decimal cents;
    for (const auto& fee : fees.fees) {
        Decimal sum;
        for (const auto& line : fee.lines) sum += line.amount;
        CHECK(sum == fee.amount);
        cents += fee.amount_cents;
    }
    CHECK(cents == fees.amount_cents);
}

const json model_metric{{"code", "calls"},
                        {"aggregation_type", "sum_agg"},
                        {"field_name", "value"},
                        {"filters", {{{"key", "model"}, {"values", {"llama-1", "llama-2"}}}, {{"key", "size"}, {"values", {"512", "1024"}}}}}};

}  // namespace

TEST_CASE("a bucket leaves to more specific filters what is theirs", "[lago]") {
    const std::vector<std::string> steps{"25", "50", "75", "100"}, sizes{"512", "1024"};
    const std::vector<lago::Values> filters{{{"steps", {"25"}}, {"size", {"512"}}, {"model", {"llama-2"}}},
                                            {{"steps", {"25"}}, {"size", {"512"}}},
                                            {{"steps", steps}, {"size", sizes}},
                                            {{"size", sizes}},
                                            {{"size", {"512"}}}};
    CHECK(plain(lago::ignored_values(filters, 2)) == plain({filters[0], filters[1]}));
    CHECK(plain(lago::ignored_values(filters, 3)) == plain({filters[0], filters[1], filters[2], filters[4]}));
    CHECK(plain(lago::ignored_values(filters, 1)) == plain({filters[0], {{"steps", {"50", "75", "100"}}, {"size", {"1024"}}}}));
    const lago::Values same{{"size", {"512"}}, {"steps", {"25"}}};
    CHECK(lago::ignored_values({same, same, same}, 0).empty());
    CHECK(lago::ignored_values({same, same, same}, 2).size() == 2);
}

TEST_CASE("every event is priced by one filter of its charge, or by the charge itself", "[lago]") {
    const auto source = catalogue({{"charge_model", "standard"},
                                   {"properties", {{"amount", "1"}}},
                                   {"filters",
                                    {{{"invoice_display_name", "small"}, {"values", {{"size", {"512"}}}}, {"properties", {{"amount", "2"}}}},
                                     {{"values", {{"size", {"512"}}, {"model", {"__ALL_FILTER_VALUES__"}}}}, {"properties", {{"amount", "3"}}}}}}},
                                  model_metric);
    const auto fees = usage_of(source, {event("calls", {{"value", "1"}}), event("calls", {{"value", "10"}, {"size", "512"}}),
                                        event("calls", {{"value", "100"}, {"size", "512"}, {"model", "llama-1"}}),
                                        event("calls", {{"value", "1000"}, {"size", "512"}, {"model", "other"}})});
    REQUIRE(fees.fees.size() == 3);
    CHECK(fees.fees[0].filter == "small");
    CHECK(fees.fees[0].units == 1010);
    CHECK(fees.fees[0].amount == 2020);
    CHECK(fees.fees[1].units == 100);
    CHECK(fees.fees[1].amount == 300);
    CHECK(fees.fees[2].units == 1);
    CHECK(fees.amount_cents == 232100);
    check_lines(fees);
}

TEST_CASE("an estimate is priced by the filter with most keys", "[lago]") {
    const auto source = catalogue({{"charge_model", "standard"},
                                   {"pay_in_advance", true},
                                   {"properties", {{"amount", "1"}}},
                                   {"filters",
                                    {{{"values", {{"size", {"512"}}}}, {"properties", {{"amount", "2"}}}},
                                     {{"values", {{"size", {"512"}}, {"model", {"llama-1"}}}}, {"properties", {{"amount", "3"}}}}}}},
                                  model_metric);
    PlainUsage usage;
    const auto cents = [&](json properties) {
        properties["value"] = "1";
        return Book::lago(source).impl().estimate_fees(event("calls", properties), march_10, usage).amount_cents;
    };
    CHECK(cents({}) == 100);
    CHECK(cents({{"size", 512}}) == 200);
    CHECK(cents({{"size", "512"}, {"model", "llama-1"}}) == 300);
    CHECK(cents({{"size", "1024"}, {"model", "llama-1"}}) == 100);
}

TEST_CASE("a charge with group keys has a fee for each group", "[lago]") {
    const auto source = catalogue({{"charge_model", "package"},
                                   {"properties", {{"amount", "1"}, {"package_size", 10}, {"free_units", 0}, {"pricing_group_keys", {"region"}}}}});
    const auto fees = usage_of(source, {event("calls", {{"region", "eu"}}), event("calls", {{"region", "us"}}), event("calls", json::object())});
    REQUIRE(fees.fees.size() == 3);
    CHECK(fees.fees[0].group == lago::Group{{"region", std::nullopt}});
    CHECK(fees.fees[1].group == lago::Group{{"region", "eu"}});
    CHECK(fees.amount_cents == 300);
    const auto none = usage_of(source, {});
    REQUIRE(none.fees.size() == 1);
    CHECK(none.fees[0].group == lago::Group{{"region", std::nullopt}});
    CHECK(none.amount_cents.is_zero());
}

TEST_CASE("billing periods are calendar ones, or start from the subscription's day", "[lago]") {
    using lago::Interval;
    const lago::Subscription calendar{.id = "sub"};
    CHECK(lago::billing_period(Interval::monthly, calendar, march_10) == period("2026-03-01", "2026-04-01"));
    CHECK(lago::billing_period(Interval::weekly, calendar, march_10) == period("2026-03-09", "2026-03-16"));
    CHECK(lago::billing_period(Interval::quarterly, calendar, march_10) == period("2026-01-01", "2026-04-01"));
    CHECK(lago::billing_period(Interval::semiannual, calendar, march_10) == period("2026-01-01", "2026-07-01"));
    CHECK(lago::billing_period(Interval::yearly, calendar, march_10) == period("2026-01-01", "2027-01-01"));
    const auto late = anniversary("2025-01-31T10:00:00Z");
    CHECK(lago::billing_period(Interval::monthly, late, march_10) == period("2026-02-28", "2026-03-31"));
    CHECK(lago::billing_period(Interval::monthly, late, Timestamp::parse("2026-02-28")) == period("2026-02-28", "2026-03-31"));
    CHECK(lago::billing_period(Interval::yearly, late, march_10) == period("2026-01-31", "2027-01-31"));
    CHECK(lago::billing_period(Interval::weekly, anniversary("2026-01-01"), march_10) == period("2026-03-05", "2026-03-12"));
    lago::Subscription east{.id = "sub", .zone = Zone("+09:00")};
    CHECK(lago::billing_period(Interval::monthly, east, march_10) == period("2026-02-28T15:00:00Z", "2026-03-31T15:00:00Z"));
    CHECK(lago::billing_period(Interval::monthly, east, Timestamp::parse("2026-03-31T16:00:00Z")).from == Timestamp::parse("2026-03-31T15:00:00Z"));
    CHECK(lago::days_in(east, period("2026-02-28T15:00:00Z", "2026-03-31T15:00:00Z")) == 31);
    lago::Subscription started{.id = "sub"};
    started.active = period("2026-03-07T08:00:00Z", "2026-03-20T08:00:00Z");
    CHECK(lago::billing_period(Interval::monthly, started, march_10) == started.active);
}

// --- Lago: pay in advance, proration, minimums, pricing units ---

TEST_CASE("current usage of a charge paid in advance keeps the period's maximum", "[lago]") {
    const auto source = catalogue({{"charge_model", "standard"}, {"pay_in_advance", true}, {"properties", {{"amount", "1"}}}}, tokens_metric);
    const auto fees = usage_of(source, {event("tokens", {{"value", "10"}}), event("tokens", {{"value", "-4"}}, "2026-03-06T00:00:00Z")});
    CHECK(fees.fees[0].units == 6);
    CHECK(fees.amount_cents == 1000);
}

TEST_CASE("a prorated charge counts units for the days they are there", "[lago]") {
    auto metric = tokens_metric;
    metric["recurring"] = true;
    json charge{{"charge_model", "standard"}, {"prorated", true}, {"properties", {{"amount", "29"}}}};
    const UsageQuery february{.subscription = "sub_1", .period = period("2024-02-01", "2024-03-01")};
    const std::vector<Event> events{event("tokens", {{"value", "10"}}, "2024-02-06T10:00:00Z"),
                                    event("tokens", {{"value", "-5"}}, "2024-02-06T11:00:00Z")};
    const auto arrears = usage_of(catalogue(charge, metric), events, february);
    CHECK(arrears.fees[0].units == 5);
    CHECK(arrears.amount_cents == 12000);  // 5 x 24/29, up at 5 decimals, x 29
    check_lines(arrears);
    charge["pay_in_advance"] = true;
    const auto advance = usage_of(catalogue(charge, metric), events, february);
    CHECK(advance.fees[0].units == 5);
    CHECK(advance.amount_cents == 24000);
    auto later = february;
    later.period = period("2024-03-01", "2024-04-01");
    CHECK(usage_of(catalogue(charge, metric), events, later).amount_cents == 14500);  // carried over, for the whole of March
}

TEST_CASE("a prorated estimate pays the rest of the period", "[lago]") {
    auto metric = tokens_metric;
    metric["recurring"] = true;
    const auto source =
        catalogue({{"charge_model", "standard"}, {"prorated", true}, {"pay_in_advance", true}, {"properties", {{"amount", "10"}}}}, metric);
    PlainUsage usage;
    const auto fees = Book::lago(source).impl().estimate_fees(event("tokens", {{"value", 4}}), Timestamp::parse("2025-09-02"), usage);
    CHECK(fees.amount_cents == 3867);
    CHECK(fees.fees[0].units == 4);
}

TEST_CASE("a graduated prorated charge chooses tiers by full units", "[lago]") {
    auto metric = tokens_metric;
    metric["recurring"] = true;
    const auto source = catalogue({{"charge_model", "graduated"},
                                   {"prorated", true},
                                   {"properties",
                                    {{"graduated_ranges",
                                      {{{"from_value", 0}, {"to_value", 5}, {"per_unit_amount", "10"}, {"flat_amount", "100"}},
                                       {{"from_value", 6}, {"to_value", 15}, {"per_unit_amount", "5"}, {"flat_amount", "50"}},
                                       {{"from_value", 16}, {"to_value", nullptr}, {"per_unit_amount", "2"}, {"flat_amount", "0"}}}}}}},
                                  metric);
    const UsageQuery september{.subscription = "sub_1", .period = period("2023-09-01", "2023-10-01")};
    const auto fees = usage_of(
        source, {event("tokens", {{"value", 2}}, "2023-09-10T09:00:00Z"), event("tokens", {{"value", 5}}, "2023-09-16T09:00:00Z")}, september);
    CHECK(fees.amount_cents == 18400);
    CHECK(fees.fees[0].units == 7);
    check_lines(fees);
}

TEST_CASE("a minimum spending adds a fee when the period is closed", "[lago]") {
    auto source = catalogue({{"charge_model", "standard"}, {"min_amount_cents", 20000}, {"properties", {{"amount", "10"}}}});
    source["subscriptions"] = {{{"external_id", "sub_1"}, {"started_at", "2026-03-15T00:00:00Z"}}};
    const UsageQuery march{.subscription = "sub_1", .period = period("2026-03-01", "2026-04-01")};
    const std::vector<Event> events(6, event("calls", json::object(), "2026-03-20T00:00:00Z"));
    CHECK(usage_of(source, events, march).amount_cents == 6000);
    auto closing = march;
    closing.closing = true;
    const auto fees = usage_of(source, events, closing);
    REQUIRE(fees.fees.size() == 2);
    CHECK(fees.fees[1].amount_cents == 4968);  // 20000 x 17/31 - 6000
    CHECK(fees.fees[1].units == 1);
    check_lines(fees);
}

TEST_CASE("a pricing unit is rounded to its own hundredths, then converted", "[lago]") {
    const auto source = catalogue({{"charge_model", "standard"},
                                   {"properties", {{"amount", "0.005"}}},
                                   {"applied_pricing_unit", {{"conversion_rate", "2"}, {"code", "credits"}}}});
    const auto fees = usage_of(source, {event("calls", json::object())});
    CHECK(fees.amount_cents == 2);
    CHECK(fees.fees[0].vendor["pricing_unit_details"]["amount_cents"] == 1);
    check_lines(fees);
    CHECK(Book::lago(source).price("calls", 1).amount_cents == 2);
}

TEST_CASE("instant estimates price the event alone", "[lago]") {
    const auto source = catalogue({{"charge_model", "percentage"}, {"pay_in_advance", true}, {"properties", {{"rate", "10"}}}}, tokens_metric);
    auto asked = event("tokens", {{"value", 400}});
    asked.id = "t1";
    const auto fees = Book::lago(source).impl().estimate_instant_fees(asked, march_10);
    CHECK(fees.fees[0].vendor["amount_cents"] == "4000.0");
    CHECK(fees.fees[0].vendor["units"] == "400.0");
    CHECK(fees.fees[0].vendor["event_transaction_id"] == "t1");
}

namespace {

// A plan with a standard charge for calls, a percentage and a graduated one for tokens, all paid in advance, for the subscription "sub_1".
json instant_plan() {
    auto tokens = tokens_metric;
    tokens["rounding_function"] = "ceil";
    auto plan = catalogue({{"charge_model", "standard"}, {"pay_in_advance", true}, {"properties", {{"amount", "10"}}}});
    plan["billable_metrics"].push_back(tokens);
    plan["billable_metrics"].push_back({{"code", "spans"}, {"aggregation_type", "count_agg"}});
    plan["plan"]["charges"].push_back({{"billable_metric_code", "tokens"},
                                       {"charge_model", "percentage"},
                                       {"pay_in_advance", true},
                                       {"properties", {{"rate", "1"}, {"fixed_amount", "0.5"}, {"per_transaction_max_amount", "6"}}}});
    plan["plan"]["charges"].push_back({{"billable_metric_code", "spans"}, {"charge_model", "graduated"}, {"pay_in_advance", true}});
    plan["subscriptions"] = {{{"external_id", "sub_1"}, {"external_customer_id", "acme"}, {"started_at", "2026-01-01T00:00:00Z"}}};
    return plan;
}

MeterOptions at_march_10() {
    return {.clock = [] { return march_10; }};
}

// What `ask` throws, as code, field and reason.
template <class Ask>
std::string refusal(Ask&& ask) {
    try {
        ask();
    } catch (const Error& error) {
        const std::string code = error.code() == ErrorCode::not_found ? "not_found" : error.code() == ErrorCode::bad_value ? "bad_value" : "other";
        return code + " " + error.field() + ": " + error.reason();
    }
    return "answered";
}

}  // namespace

TEST_CASE("instant estimates leave the log out of account", "[lago][meter]") {
    Meter m(at_march_10());
    m.load(Book::lago(instant_plan()));
    const auto tokens = [&](const char* value) { return m.estimate_instant_fees(event("tokens", {{"value", value}})).fees.at(0); };
    const auto fee = tokens("99.2");
    CHECK(fee.units == 100);
    CHECK(fee.amount == Decimal("1.5"));
    CHECK(fee.amount_cents == 150);
    CHECK(fee.unit_amount == Decimal("0.015"));
    CHECK(fee.vendor["amount_cents"] == "150.0");
    CHECK(fee.vendor["precise_unit_amount"] == "1.5");
    CHECK(fee.customer == "acme");
    m.record(event("tokens", {{"value", 1000}}));
    CHECK(tokens("99.2").to_json() == fee.to_json());
    CHECK(tokens("1000").amount == 6);
    CHECK(tokens("0").amount == Decimal("0.5"));  // no units, but the fixed amount
    CHECK(tokens("-3").amount.is_zero());
    CHECK(tokens("-3").units.is_zero());
    CHECK(m.estimate_instant_fees(event("calls", json::object())).amount_cents == 1000);
}

TEST_CASE("instant estimates answer errors as Lago does", "[lago][meter]") {
    Meter m(at_march_10());
    const auto asked = [&](const Event& e) { return refusal([&] { m.estimate_instant_fees(e); }); };
    CHECK(asked(event("calls", json::object())) == "not_found subscription: no book that is loaded prices it");
    m.load(Book::lago(instant_plan()));
    CHECK(asked(event("calls", json::object(), "2026-03-05T00:00:00Z", "sub_2")) == "not_found subscription: no book that is loaded prices it");
    CHECK(asked(event("spans", json::object())) == "bad_value name: does_not_match_an_instant_charge");  // graduated
    CHECK(asked(event("nothing", json::object())) == "bad_value name: does_not_match_an_instant_charge");
    CHECK(asked(event("tokens", {{"value", "many"}})) == "bad_value properties.value: value_is_not_valid_number");
    CHECK(asked(event("", json::object())) == "bad_value name: is missing");
    CHECK(asked(event("calls", json::array())) == "bad_value properties: must be an object");
    Meter early({.clock = [] { return Timestamp::parse("2025-12-31"); }});
    early.load(Book::lago(instant_plan()));
    CHECK(refusal([&] { early.estimate_instant_fees(event("calls", json::object())); }) == "not_found subscription: subscription_not_found");
}

TEST_CASE("a batch of estimates prices each event on its own", "[lago][meter]") {
    Meter m(at_march_10());
    m.load(Book::lago(instant_plan()));
    m.record(event("tokens", {{"value", 10}}));
    const std::vector<Event> batch{event("tokens", {{"value", 100}}), event("calls", json::object()), event("tokens", {{"value", 100}})};
    for (const bool instantly : {false, true}) {
        CAPTURE(instantly);
        const auto fees = instantly ? m.estimate_instant_fees(batch) : m.estimate_fees(batch);
        REQUIRE(fees.size() == batch.size());
        for (std::size_t i = 0; i < batch.size(); ++i) {
            const auto alone = instantly ? m.estimate_instant_fees(batch[i]) : m.estimate_fees(batch[i]);
            CHECK(fees[i].to_json() == alone.to_json());
        }
    }
    CHECK(m.estimate_fees(std::span<const Event>()).empty());
    CHECK(m.list({.count = true}).total == 1);  // nothing was recorded
    const auto unmatched = m.estimate_instant_fees({batch[0], event("spans", json::object())});
    CHECK(unmatched.at(0).fees.size() == 1);
    CHECK(unmatched.at(1).fees.empty());
    const auto other = event("calls", json::object(), "2026-03-05T00:00:00Z", "sub_2");
    CHECK(refusal([&] { m.estimate_instant_fees({batch[0], other}); }) == "not_found events[1].subscription: no book that is loaded prices it");
    CHECK(refusal([&] { m.estimate_fees({batch[0], event("nothing", json::object())}); }) == "not_found events[1].name: billable_metric_not_found");
    CHECK(refusal([&] {
              m.estimate_fees({event("tokens", {{"value", "x"}}), batch[0]});
          }) == "bad_value events[0].properties.value: value_is_not_valid_number");
    const std::vector<Event> many(limits::batch_events + 1);
    CHECK_THROWS_AS(m.estimate_fees(many), Error);
    m.load(Book::autumn(
        {{"plan", {{"id", "pro"}, {"items", {{{"feature_id", "chat"}, {"price", {{"amount", 1}, {"billing_method", "usage_based"}}}}}}}}}));
    CHECK(refusal([&] { m.estimate_instant_fees({.name = "chat", .customer = "bob"}); }) == "other : autumn has no instant estimates");
}

namespace {

// A log of events at march_10, under a plan of one pay-in-advance charge.
Meter advance_log(json charge, json metric, std::vector<Event> events) {
    Meter m(at_march_10());
    charge["pay_in_advance"] = true;
    m.load(Book::lago(catalogue(std::move(charge), std::move(metric))));
    for (std::size_t i = 0; i < events.size(); ++i) events[i].id = "e" + std::to_string(i);
    m.record(events);
    return m;
}

// Units and cents of each.
std::vector<std::pair<Decimal, Decimal>> units_and_cents(const Fees& fees) {
    std::vector<std::pair<Decimal, Decimal>> list;
    for (const auto& fee : fees.fees) list.emplace_back(fee.units, fee.amount_cents);
    return list;
}
using Pairs = std::vector<std::pair<Decimal, Decimal>>;

const json standard_1{{"charge_model", "standard"}, {"properties", {{"amount", "1"}}}};

}  // namespace

TEST_CASE("a fee paid in advance follows the period's maximum", "[lago][meter]") {
    const auto m = advance_log(standard_1, tokens_metric,
                               {event("tokens", {{"value", 10}}), event("tokens", {{"value", -4}}, "2026-03-06T00:00:00Z"),
                                event("tokens", {{"value", 3}}, "2026-03-07T00:00:00Z"), event("tokens", {{"value", 3}}, "2026-03-08T00:00:00Z"),
                                event("tokens", json::object(), "2026-03-08T00:00:00Z"), event("tokens", {{"value", 3}}, "2026-02-08T00:00:00Z")});
    const auto fees = m.advance_fees({.subscription = "sub_1"});
    CHECK(units_and_cents(fees) == Pairs{{10, 1000}, {0, 0}, {3, 0}, {2, 200}});
    CHECK(fees.amount_cents == 1200);
    CHECK(fees.amount_cents == m.usage({.subscription = "sub_1"}).amount_cents);
    CHECK(fees.fees[3].event == "e3");
    CHECK(fees.fees[3].vendor["event_transaction_id"] == "e3");
    CHECK(fees.fees[3].period == period("2026-03-01", "2026-04-01"));
    for (const auto& fee : fees.fees) {
        const auto alone = m.advance_fees(fee.event);
        REQUIRE(alone.fees.size() == 1);
        CHECK(alone.fees[0].to_json() == fee.to_json());
        CHECK(alone.fees[0].vendor == fee.vendor);
    }
    CHECK(m.advance_fees("e4").fees.empty());  // lacks the property
    CHECK(units_and_cents(m.advance_fees({.subscription = "sub_1", .period = period("2026-02-01", "2026-03-06")})) == Pairs{{3, 300}, {10, 1000}});
    CHECK(units_and_cents(m.advance_fees({.subscription = "sub_1", .period = period("2026-03-07", "2026-03-08")})) == Pairs{{3, 0}});
}

TEST_CASE("a value added again in the period is shown, and free", "[lago][meter]") {
    const json users{{"code", "users"}, {"aggregation_type", "unique_count_agg"}, {"field_name", "user"}};
    const auto m = advance_log(standard_1, users,
                               {event("users", {{"user", "ann"}}), event("users", {{"user", "ann"}}), event("users", {{"user", "bob"}}),
                                event("users", {{"user", "ann"}, {"operation_type", "remove"}}), event("users", {{"user", "ann"}})});
    CHECK(units_and_cents(m.advance_fees({.subscription = "sub_1"})) == Pairs{{1, 100}, {0, 0}, {1, 100}, {0, 0}, {1, 0}});
}

TEST_CASE("events of one moment are billed in the order they were recorded", "[lago][meter]") {
    const json package{{"charge_model", "package"}, {"properties", {{"amount", "5"}, {"package_size", 2}, {"free_units", 1}}}};
    const auto m =
        advance_log(package, {{"code", "calls"}, {"aggregation_type", "count_agg"}}, std::vector<Event>(5, event("calls", json::object())));
    CHECK(units_and_cents(m.advance_fees({.subscription = "sub_1"})) == Pairs{{1, 0}, {1, 500}, {1, 0}, {1, 500}, {1, 0}});
    CHECK(units_and_cents(m.advance_fees("e3")) == Pairs{{1, 500}});
}

TEST_CASE("a fee paid in advance is priced in its group and by its filter", "[lago][meter]") {
    const json ranges{{{"from_value", 0}, {"to_value", 2}, {"per_unit_amount", "1"}, {"flat_amount", "0"}},
                      {{"from_value", 3}, {"to_value", nullptr}, {"per_unit_amount", "0.5"}, {"flat_amount", "0"}}};
    json charge{{"charge_model", "graduated"}, {"properties", {{"graduated_ranges", ranges}, {"pricing_group_keys", {"region"}}}}};
    charge["filters"] = {{{"invoice_display_name", "small"}, {"values", {{"size", {"512"}}}}, {"properties", {{"graduated_ranges", ranges}}}}};
    auto metric = model_metric;
    const auto call = [](int value, const char* region, const char* size) {
        return event("calls", {{"value", value}, {"region", region}, {"size", size}});
    };
    const auto m = advance_log(charge, metric,
                               {call(2, "eu", "1024"), call(2, "us", "1024"), call(2, "eu", "1024"), call(2, "eu", "512"), call(1, "", "1024"),
                                event("calls", {{"value", 2}})});
    const auto fees = m.advance_fees({.subscription = "sub_1"});
    CHECK(units_and_cents(fees) == Pairs{{2, 200}, {2, 200}, {2, 100}, {2, 200}, {1, 100}, {2, 150}});
    CHECK(fees.fees[3].filter == "small");
    CHECK(fees.fees[2].group == lago::Group{{"region", "eu"}});
    CHECK(fees.fees[5].group == lago::Group{{"region", std::nullopt}});
    CHECK(m.advance_fees("e5").to_json() == Fees{{fees.fees[5]}, "EUR", 100, 150}.to_json());
}

TEST_CASE("of filters with the same keys a narrower one bills its events itself", "[lago][meter]") {
    json charge{{"charge_model", "standard"}, {"properties", {{"amount", "1"}}}};
    charge["filters"] = {{{"values", {{"size", {"512", "1024"}}}}, {"properties", {{"amount", "2"}}}},
                         {{"values", {{"size", {"512"}}}}, {"properties", {{"amount", "3"}}}}};
    const auto m =
        advance_log(charge, model_metric, {event("calls", {{"value", 1}, {"size", "512"}}), event("calls", {{"value", 1}, {"size", "1024"}})});
    CHECK(units_and_cents(m.advance_fees({.subscription = "sub_1"})) == Pairs{{1, 300}, {1, 200}});
    CHECK(m.usage({.subscription = "sub_1"}).amount_cents == 500);
}

TEST_CASE("a prorated charge pays the rest of the period at each event", "[lago][meter]") {
    auto metric = tokens_metric;
    metric["recurring"] = true;
    json charge{{"charge_model", "standard"}, {"prorated", true}, {"properties", {{"amount", "31"}}}};
    const auto m = advance_log(charge, metric,
                               {event("tokens", {{"value", 2}}, "2026-02-20T00:00:00Z"), event("tokens", {{"value", 1}}, "2026-03-22T10:00:00Z")});
    CHECK(units_and_cents(m.advance_fees({.subscription = "sub_1"})) == Pairs{{1, 1000}});  // 10 of 31 days, 0.32259 x 31
}

TEST_CASE("a recurring metric is billed on from what it had come to before", "[lago][meter]") {
    auto metric = tokens_metric;
    metric["recurring"] = true;
    const json charge{{"charge_model", "graduated"},
                      {"properties",
                       {{"graduated_ranges",
                         {{{"from_value", 0}, {"to_value", 5}, {"per_unit_amount", "1"}, {"flat_amount", "0"}},
                          {{"from_value", 6}, {"to_value", nullptr}, {"per_unit_amount", "0.1"}, {"flat_amount", "0"}}}}}}};
    const auto m = advance_log(charge, metric, {event("tokens", {{"value", 4}}, "2026-02-20T00:00:00Z"), event("tokens", {{"value", 2}})});
    CHECK(units_and_cents(m.advance_fees({.subscription = "sub_1"})) == Pairs{{2, 110}});
    CHECK(units_and_cents(m.advance_fees("e0")) == Pairs{{4, 400}});
}

TEST_CASE("fees of single events answer errors", "[lago][meter]") {
    auto m = advance_log(standard_1, tokens_metric, {event("tokens", {{"value", 1}}), event("other", json::object())});
    CHECK(m.advance_fees("e1").fees.empty());  // no metric of that code
    CHECK(refusal([&] { m.advance_fees("nothing"); }) == "not_found id: \"nothing\" is not in the log");
    CHECK(refusal([&] { m.advance_fees(UsageQuery{}); }) == "bad_value subscription: a subscription or a customer is required");
    const Period all;
    CHECK(refusal([&] { m.advance_fees({.subscription = "sub_1", .period = all}); }) == "other period: has more than 1200 billing periods");
    auto listed = catalogue({{"charge_model", "standard"}, {"pay_in_advance", true}, {"properties", {{"amount", "1"}}}}, tokens_metric);
    listed["subscriptions"] = {{{"external_id", "sub_1"}, {"started_at", "2026-03-06T00:00:00Z"}}};
    m.load(Book::lago(listed));
    CHECK(refusal([&] { m.advance_fees("e0"); }) == "not_found subscription: subscription_not_found");  // not yet active
    CHECK(m.advance_fees({.subscription = "sub_1"}).fees.empty());
    std::vector<Event> many(limits::advance_fees, event("tokens", {{"value", 1}}, "2026-03-07T00:00:00Z"));
    m.record(many);
    CHECK(m.advance_fees({.subscription = "sub_1"}).fees.size() == limits::advance_fees);
    m.record(many[0]);
    CHECK(refusal([&] { m.advance_fees({.subscription = "sub_1"}); }) == "other period: has more than 10000 fees");
    Meter plain;
    plain.load(Book::autumn(
        {{"plan", {{"id", "pro"}, {"items", {{{"feature_id", "chat"}, {"price", {{"amount", 1}, {"billing_method", "usage_based"}}}}}}}}}));
    CHECK(refusal([&] { plain.advance_fees({.customer = "bob"}); }) == "other : autumn has no fees of single events");
}

TEST_CASE("Lago's metrics are measured as its aggregations are", "[lago][meter]") {
    const auto measured = [](json metric, const std::vector<Event>& events, UsageQuery query = {.subscription = "sub_1"}) {
        metric["code"] = "tokens";
        if (!metric.contains("field_name")) metric["field_name"] = "value";
        Meter m(at_march_10());
        m.load(Book::lago(catalogue({{"charge_model", "standard"}, {"properties", {{"amount", "1"}}}}, metric)));
        m.record(events);
        const auto fees = m.usage(query);
        check_lines(fees);
        return fees.fees.at(0);
    };
    const auto at = [](const char* time, json value) { return event("tokens", {{"value", std::move(value)}}, time); };
    const std::vector<Event> numbers{at("2026-02-20", 99), at("2026-03-01", -7), at("2026-03-02", "-2.5"), at("2026-03-03", "1e3"),
                                     at("2026-03-03", true)};
    const auto highest = measured({{"aggregation_type", "max_agg"}}, numbers);
    CHECK(highest.units.is_zero());  // shown and billed as zero, as it is negative
    CHECK(highest.vendor["total_aggregated_units"] == "-2.5");
    CHECK(highest.events == 2);
    CHECK(measured({{"aggregation_type", "latest_agg"}}, numbers).vendor["total_aggregated_units"] == "0.0");
    CHECK(measured({{"aggregation_type", "latest_agg"}}, {at("2026-03-02", 5), at("2026-03-04", 3)}).units == 3);

    // 31 from the beginning of 11 March is 21 of 31 days.
    json weighted{{"aggregation_type", "weighted_sum_agg"}, {"weighted_interval", "seconds"}};
    const std::vector<Event> standing{at("2026-02-20", 62), at("2026-03-11", 31), at("2026-04-01", 1000)};
    CHECK(measured(weighted, standing).units == 21);
    weighted["recurring"] = true;
    const auto carried = measured(weighted, standing);
    CHECK(carried.units == 83);
    CHECK(carried.events == 1);
    CHECK(carried.vendor["total_aggregated_units"] == "93.0");
    const auto part = measured(weighted, standing, {.subscription = "sub_1", .period = period("2026-03-21", "2026-04-01")});
    CHECK(part.units == 33);  // 93 for 11 of 31 days
    weighted["rounding_function"] = "floor";
    weighted["rounding_precision"] = -1;
    const auto tens = measured(weighted, standing);
    CHECK(tens.units == 80);
    CHECK(tens.amount == 80);

    json users{{"aggregation_type", "unique_count_agg"}};
    const std::vector<Event> added{at("2026-02-20", "ann"),
                                   at("2026-02-21", 1),
                                   at("2026-03-02", "1"),
                                   at("2026-03-03", "bob"),
                                   event("tokens", {{"value", "ann"}, {"operation_type", "remove"}}, "2026-03-04"),
                                   event("tokens", json::object())};
    CHECK(measured(users, added).units == 3);  // 1, bob, and nothing as one more
    users["recurring"] = true;
    CHECK(measured(users, added).units == 3);
    CHECK(measured(users, added).events == 3);
    CHECK(measured({{"aggregation_type", "sum_agg"}, {"recurring", true}}, numbers).units == Decimal("89.5"));
    CHECK(measured({{"aggregation_type", "sum_agg"}, {"rounding_function", "round"}}, numbers).vendor["total_aggregated_units"] == "-10.0");
}

TEST_CASE("a prorated unique count counts the days a value is there", "[lago][meter]") {
    const json users{{"code", "users"}, {"aggregation_type", "unique_count_agg"}, {"field_name", "user"}, {"recurring", true}};
    const auto at = [](const char* time, const char* user, const char* operation = "add") {
        return event("users", {{"user", user}, {"operation_type", operation}}, time);
    };
    const std::vector<Event> events{at("2026-02-10", "old"),
                                    at("2026-02-10", "gone"),
                                    at("2026-02-11", "gone", "remove"),
                                    at("2026-03-01T10:00:00Z", "ann"),
                                    at("2026-03-03T10:00:00Z", "ann", "remove"),  // and back the same day
                                    at("2026-03-03T11:00:00Z", "ann"),
                                    at("2026-03-05T10:00:00Z", "ann", "remove"),
                                    at("2026-03-31T23:00:00Z", "bob")};
    const auto fee = [&](json charge) {
        charge["prorated"] = true;
        Meter m(at_march_10());
        m.load(Book::lago(catalogue(std::move(charge), users)));
        m.record(events);
        const auto fees = m.usage({.subscription = "sub_1"});
        check_lines(fees);
        return fees.fees.at(0);
    };
    const auto standard = fee({{"charge_model", "standard"}, {"properties", {{"amount", "31"}}}});
    CHECK(standard.units == 2);                     // old and bob
    CHECK(standard.amount == Decimal("37.00005"));  // 31 + 5 + 1 days of 31, up at 5 decimals
    CHECK(standard.events == 2);
    const auto grouped = fee({{"charge_model", "standard"}, {"properties", {{"amount", "31"}, {"pricing_group_keys", {"region"}}}}});
    CHECK(grouped.amount == Decimal("38.00011"));  // "gone" has a day, as in Lago's grouped query
    const auto tiers = fee({{"charge_model", "graduated"},
                            {"properties",
                             {{"graduated_ranges",
                               {{{"from_value", 0}, {"to_value", 1}, {"per_unit_amount", "31"}, {"flat_amount", "0"}},
                                {{"from_value", 2}, {"to_value", nullptr}, {"per_unit_amount", "3.1"}, {"flat_amount", "0"}}}}}}});
    CHECK(tiers.amount_cents == 3160);  // old in the first tier, ann and bob in the second
    const auto volume = fee({{"charge_model", "volume"},
                             {"properties",
                              {{"volume_ranges",
                                {{{"from_value", 0}, {"to_value", 1}, {"per_unit_amount", "31"}, {"flat_amount", "0"}},
                                 {{"from_value", 2}, {"to_value", nullptr}, {"per_unit_amount", "3.1"}, {"flat_amount", "0"}}}}}}});
    CHECK(volume.amount_cents == 370);
}

TEST_CASE("a recurring value from before the period is not added again", "[lago][meter]") {
    const json users{{"code", "users"}, {"aggregation_type", "unique_count_agg"}, {"field_name", "user"}, {"recurring", true}};
    const auto m = advance_log(standard_1, users,
                               {event("users", {{"user", "ann"}}, "2026-02-10"), event("users", {{"user", "ann"}}, "2026-03-02"),
                                event("users", {{"user", "bob"}}, "2026-03-03")});
    CHECK(units_and_cents(m.advance_fees({.subscription = "sub_1"})) == Pairs{{0, 0}, {1, 100}});
    CHECK(m.estimate_fees(event("users", {{"user", "ann"}})).amount_cents.is_zero());
    CHECK(m.estimate_fees(event("users", {{"user", "cid"}})).amount_cents == 100);
    CHECK(m.usage({.subscription = "sub_1"}).fees[0].units == 2);
}

TEST_CASE("charge filters and groups compare texts, not numbers", "[lago][meter]") {
    json charge{{"charge_model", "standard"}, {"properties", {{"amount", "1"}, {"pricing_group_keys", {"size"}}}}};
    charge["filters"] = {{{"values", {{"size", {"512"}}}}, {"properties", {{"amount", "100"}}}}};
    const auto m = advance_log(charge, model_metric,
                               {event("calls", {{"value", 1}, {"size", "512"}}), event("calls", {{"value", 1}, {"size", 512}}),
                                event("calls", {{"value", 1}, {"size", "512.0"}})});
    CHECK(m.usage({.subscription = "sub_1"}).amount_cents == 20100);
    CHECK(m.advance_fees({.subscription = "sub_1"}).amount_cents == 20100);
}

TEST_CASE("what Lago's metrics cannot be is refused", "[lago]") {
    const auto refused = [](json charge, const char* kind, bool recurring = false) {
        return field_of(catalogue(std::move(charge), {{"code", "m"}, {"aggregation_type", kind}, {"field_name", "value"}, {"recurring", recurring}}));
    };
    for (const char* kind : {"count_agg", "max_agg", "latest_agg"}) {
        CHECK(refused(standard_1, kind, true) == "billable_metrics[0].recurring: not_compatible_with_aggregation_type");
    }
    auto prorated = standard_1;
    prorated["prorated"] = true;
    CHECK(refused(prorated, "weighted_sum_agg", true) == "plan.charges[0].prorated: invalid_billable_metric_or_charge_model");
    CHECK(refused(prorated, "unique_count_agg", true) == "accepted");
    const json bounded{{"charge_model", "percentage"}, {"properties", {{"rate", "1"}, {"per_transaction_min_amount", "1"}}}};
    CHECK(refused(bounded, "weighted_sum_agg") == "plan.charges[0].properties: bounds per transaction are not known for a weighted sum");
    CHECK(refused(bounded, "max_agg") == "accepted");
    auto unlicensed = catalogue(bounded, {{"code", "m"}, {"aggregation_type", "weighted_sum_agg"}, {"field_name", "value"}});
    unlicensed["premium"] = false;  // where bounds play no part
    CHECK(field_of(unlicensed) == "accepted");
    CHECK(refused({{"charge_model", "custom"}}, "sum_agg") == "plan.charges[0].charge_model: invalid_aggregation_type_or_charge_model");
}

TEST_CASE("of a maximum under bounds per transaction one event counts", "[lago][meter]") {
    const json peak{{"code", "calls"}, {"aggregation_type", "max_agg"}, {"field_name", "value"}};
    const json charge{{"charge_model", "percentage"}, {"properties", {{"rate", "10"}, {"per_transaction_max_amount", "3"}}}};
    Meter m(at_march_10());
    m.load(Book::lago(catalogue(charge, peak)));
    m.record({event("calls", {{"value", 10}}), event("calls", {{"value", 50}}), event("calls", {{"value", 50}})});
    CHECK(m.usage({.subscription = "sub_1"}).amount_cents == 300);
}

TEST_CASE("under bounds per transaction each event of a unique count is one", "[lago][meter]") {
    const json users{{"code", "users"}, {"aggregation_type", "unique_count_agg"}, {"field_name", "user"}};
    const json charge{{"charge_model", "percentage"}, {"properties", {{"rate", "10"}, {"per_transaction_min_amount", "2"}}}};
    Meter m(at_march_10());
    m.load(Book::lago(catalogue(charge, users)));
    m.record({event("users", {{"user", "ann"}}), event("users", {{"user", "ann"}, {"operation_type", "remove"}}), event("users", {{"user", "bob"}})});
    const auto fees = m.usage({.subscription = "sub_1"});
    CHECK(fees.fees[0].units == 1);
    CHECK(fees.amount_cents == 600);
    check_lines(fees);
}

TEST_CASE("what goes wrong with a charge names it", "[lago]") {
    const auto source = catalogue({{"charge_model", "standard"}, {"properties", {{"amount", "1.000000000000000000000000000001"}}}}, tokens_metric);
    const std::vector<Event> events{event("tokens", {{"value", "12345678901.3"}})};
    CHECK(refusal([&] { usage_of(source, events); }) == "other plan.charges[0]: the exact result needs more than 38 digits or 76 decimals");
}

TEST_CASE("what a charge in advance was paid for stands when its live units fall below zero", "[lago][meter]") {
    const auto m =
        advance_log(standard_1, tokens_metric, {event("tokens", {{"value", 10}}), event("tokens", {{"value", -15}}, "2026-03-06T00:00:00Z")});
    const auto fees = m.usage({.subscription = "sub_1"});
    CHECK(fees.fees[0].units.is_zero());
    CHECK(fees.amount_cents == 1000);
}

TEST_CASE("a prorated sum of long numbers is priced", "[lago][meter]") {
    auto metric = tokens_metric;
    metric["recurring"] = true;
    const auto charge = [](const char* model, json properties) {
        return json{{"charge_model", model}, {"prorated", true}, {"properties", std::move(properties)}};
    };
    const std::vector<Event> events{event("tokens", {{"value", "123456789.123456789"}}, "2026-02-02"),
                                    event("tokens", {{"value", "31000000000.000031"}}, "2026-03-11")};
    Meter m(at_march_10());
    m.load(Book::lago(catalogue(charge("standard", {{"amount", "1"}}), metric)));
    m.record(events);
    CHECK(m.usage({.subscription = "sub_1"}).fees[0].amount == Decimal("21123456789.12348"));
    const json range{{"from_value", 0}, {"to_value", 1000}, {"per_unit_amount", "0"}, {"flat_amount", "0"}};
    const json rest{{"from_value", 1001}, {"to_value", nullptr}, {"per_unit_amount", "0.001"}, {"flat_amount", "0"}};
    m.load(Book::lago(catalogue(charge("graduated", {{"graduated_ranges", {range, rest}}}), metric)));
    CHECK(m.usage({.subscription = "sub_1"}).amount_cents == 2112345579);
}

TEST_CASE("percentage charges ask for the values they need", "[lago]") {
    json charge{{"charge_model", "percentage"}, {"properties", {{"rate", "1"}, {"fixed_amount", "5"}, {"free_units_per_events", 3}}}};
    const std::vector<Event> events{event("tokens", {{"value", 10}}), event("tokens", {{"value", 10}}), event("tokens", {{"value", 10}}),
                                    event("tokens", {{"value", 10}})};
    CHECK(usage_of(catalogue(charge, tokens_metric), events).amount_cents == 510);
    charge["properties"] = {{"rate", "1"}, {"fixed_amount", "5"}, {"free_units_per_total_aggregation", "15.0"}};
    CHECK(usage_of(catalogue(charge, tokens_metric), events).amount_cents == 1525);
    charge["properties"] = {{"rate", "1"}, {"per_transaction_min_amount", "2"}};
    const auto bounded = usage_of(catalogue(charge, tokens_metric), events);
    CHECK(bounded.amount_cents == 800);
    check_lines(bounded);
}

TEST_CASE("impossible ranges and rules are refused where they stand", "[lago]") {
    const auto refused = [](json charge, json metric = {{"code", "calls"}, {"aggregation_type", "count_agg"}}) {
        return field_of(catalogue(std::move(charge), std::move(metric)));
    };
    const auto ranges = [](json list) { return json{{"charge_model", "graduated"}, {"properties", {{"graduated_ranges", std::move(list)}}}}; };
    const auto range = [](json from, json to) {
        return json{{"from_value", from}, {"to_value", to}, {"per_unit_amount", "1"}, {"flat_amount", "0"}};
    };
    const std::string wrong = "plan.charges[0].properties.graduated_ranges: invalid_graduated_ranges";
    CHECK(refused(ranges({range(0, 10), range(11, nullptr)})) == "accepted");
    CHECK(refused(ranges({range(0, 10), range(5, nullptr)})) == wrong);
    CHECK(refused(ranges({range(0, 10), range(13, nullptr)})) == wrong);
    CHECK(refused(ranges({range(0, 10), range(11, 20)})) == wrong);
    CHECK(refused(ranges(json::array({range(-1, nullptr)}))) == wrong);
    CHECK(refused(ranges(json::array())) == "plan.charges[0].properties.graduated_ranges: missing_graduated_ranges");
    auto number = range(0, nullptr);
    number["per_unit_amount"] = 1;
    CHECK(refused(ranges(json::array({number}))) == "plan.charges[0].properties.graduated_ranges[0].per_unit_amount: invalid_amount");
    CHECK(refused({{"charge_model", "volume"}, {"pay_in_advance", true}}) ==
          "plan.charges[0].pay_in_advance: invalid_aggregation_type_or_charge_model");
    const auto presented = [&](json keys) {
        return refused({{"charge_model", "standard"}, {"properties", {{"amount", "1"}, {"presentation_group_keys", std::move(keys)}}}});
    };
    const std::string shown = "plan.charges[0].properties.presentation_group_keys: ";
    CHECK(presented(json::array({{{"value", "region"}, {"options", {{"display_in_invoice", true}}}}, {{"value", "team"}}})) == "accepted");
    CHECK(presented(json::array({"region"})) == shown + "invalid_type");
    CHECK(presented(json::array({{{"value", "region"}, {"more", 1}}})) == shown + "invalid_type");
    CHECK(presented(json::array({{{"value", "a"}}, {{"value", "b"}}, {{"value", "c"}}})) == shown + "too_many_keys");
    CHECK(presented(json::array({{{"value", "a"}}, {{"value", "a"}}})) == shown + "value_is_duplicated");
    CHECK(refused({{"charge_model", "dynamic"}}) == "plan.charges[0].charge_model: invalid_aggregation_type_or_charge_model");
    CHECK(refused({{"charge_model", "standard"}, {"pay_in_advance", true}, {"min_amount_cents", 5}}) ==
          "plan.charges[0].min_amount_cents: not_compatible_with_pay_in_advance");
    CHECK(refused({{"charge_model", "standard"}, {"prorated", true}}) == "plan.charges[0].prorated: invalid_billable_metric_or_charge_model");
}

// --- FlexPrice, Polar, Autumn ---

namespace {

Event customer_event(std::string name, json properties, const char* time = "2026-03-05T00:00:00Z") {
    return {.name = std::move(name), .customer = "acme", .timestamp = Timestamp::parse(time), .properties = std::move(properties)};
}

Fees customer_usage(const Book& book, const std::vector<Event>& events) {
    const auto fees = golden::Log(events).ask([&](UsageSource& usage) { return book.impl().usage({.customer = "acme"}, march_10, usage); });
    check_lines(fees);
    return fees;
}

}  // namespace

TEST_CASE("FlexPrice prices meters through entitlement and commitment", "[flexprice]") {
    json price{{"id", "p1"},
               {"type", "USAGE"},
               {"meter_id", "m1"},
               {"currency", "usd"},
               {"billing_model", "TIERED"},
               {"tier_mode", "SLAB"},
               {"tiers", {{{"up_to", 10}, {"unit_amount", "0.1"}}, {{"up_to", nullptr}, {"unit_amount", "0.05"}}}}};
    json source{{"meters",
                 {{{"id", "m1"},
                   {"event_name", "call"},
                   {"aggregation", {{"type", "SUM"}, {"field", "n"}}},
                   {"filters", {{{"key", "region"}, {"values", {"eu"}}}}}}}},
                {"prices", {price}}};
    const std::vector<Event> events{customer_event("call", {{"n", 8}, {"region", "eu"}}), customer_event("call", {{"n", 7}, {"region", "eu"}}),
                                    customer_event("call", {{"n", 99}, {"region", "us"}})};
    CHECK(customer_usage(Book::flexprice(source), events).amount_cents == 125);
    source["prices"][0]["entitlement"] = {{"is_enabled", true}, {"usage_limit", 5}};
    CHECK(customer_usage(Book::flexprice(source), events).amount_cents == 100);
    source["prices"][0]["commitment"] = {{"type", "amount"}, {"amount", "3"}, {"overage_factor", "2"}, {"true_up_enabled", true}};
    CHECK(customer_usage(Book::flexprice(source), events).amount_cents == 300);
    source["prices"][0]["meter_id"] = "m2";
    CHECK_THROWS_WITH(Book::flexprice(source), "prices[0].meter_id: no such meter: m2");
}

TEST_CASE("FlexPrice refuses what its validation refuses", "[flexprice]") {
    const auto refused = [](json price) -> std::string {
        price["meter_id"] = "m1";
        price["currency"] = "usd";
        try {
            Book::flexprice({{"meters", {{{"id", "m1"}, {"event_name", "call"}, {"aggregation", {{"type", "COUNT"}}}}}}, {"prices", {price}}});
        } catch (const Error& error) {
            return error.what();
        }
        return "accepted";
    };
    CHECK(refused({{"billing_model", "FLAT_FEE"}, {"amount", "1"}}) == "accepted");
    CHECK(refused({{"billing_model", "FLAT_FEE"}}) == "prices[0].amount: is required");
    CHECK(refused({{"billing_model", "FLAT_FEE"}, {"amount", "-1"}}) == "prices[0].amount: must be at least 0");
    CHECK(refused({{"billing_model", "TIERED"}, {"tiers", json::array()}}) == "prices[0].tiers: is required");
    CHECK(refused({{"billing_model", "TIERED"}, {"tiers", {{{"up_to", nullptr}, {"unit_amount", "-2"}}}}}) ==
          "prices[0].tiers[0].unit_amount: must be at least 0");
    CHECK(refused({{"billing_model", "PACKAGE"}, {"amount", "1"}, {"transform_quantity", {{"divide_by", 0}}}}) ==
          "prices[0].transform_quantity.divide_by: must be at least 1");
    CHECK(refused({{"billing_model", "MAGIC"}}) == "prices[0].billing_model: is not known: MAGIC");
}

TEST_CASE("Polar prices meters less granted credits, and caps", "[polar]") {
    json source{
        {"product",
         {{"id", "pro"},
          {"prices", {{{"id", "p1"}, {"amount_type", "metered_unit"}, {"meter_id", "m1"}, {"unit_amount", "0.5"}, {"price_currency", "usd"}}}},
          {"benefits", {{{"type", "meter_credit"}, {"properties", {{"meter_id", "m1"}, {"units", 10}}}}}}}},
        {"meters",
         {{{"id", "m1"},
           {"filter", {{"conjunction", "and"}, {"clauses", {{{"property", "name"}, {"operator", "eq"}, {"value", "chat"}}}}}},
           {"aggregation", {{"func", "sum"}, {"property", "tokens"}}}}}}};
    const std::vector<Event> events{customer_event("chat", {{"tokens", 100}}), customer_event("chat", {{"tokens", 15}}),
                                    customer_event("other", {{"tokens", 7}})};
    const auto fees = customer_usage(Book::polar(source), events);
    CHECK(fees.fees[0].units == 115);
    CHECK(fees.amount_cents == 53);  // 105 x 0.5, half away from zero
    source["product"]["prices"][0]["cap_amount"] = 20;
    CHECK(customer_usage(Book::polar(source), events).amount_cents == 20);
    source["product"]["prices"][0]["unit_amount"] = "0";
    CHECK_THROWS_WITH(Book::polar(source), "product.prices[0].unit_amount: must be above 0");
}

namespace {

json polar_meter(const char* id, json aggregation, json filter = {{"conjunction", "and"}, {"clauses", json::array()}}) {
    return {{"id", id}, {"filter", std::move(filter)}, {"aggregation", std::move(aggregation)}};
}

json clause(const char* property, const char* op, json value) { return {{"property", property}, {"operator", op}, {"value", std::move(value)}}; }

json polar_price(const char* meter, const char* unit_amount) { return {{"id", meter}, {"meter_id", meter}, {"unit_amount", unit_amount}}; }

Book polar_book(const std::vector<json>& meters, const std::vector<json>& prices) {
    return Book::polar({{"product", {{"id", "pro"}, {"prices", prices}}}, {"meters", meters}});
}

Meter polar_log(const Book& book, const std::vector<Event>& events) {
    Meter m({.clock = [] { return march_10; }});
    m.load(book);
    for (const auto& receipt : m.record(events)) REQUIRE(receipt.status == ReceiptStatus::stored);
    return m;
}

const std::vector<const char*> polar_functions{"count", "sum", "max", "min", "avg", "unique"};

// A meter for each function over events of two names, at a cent a unit.
Book book_of_functions() {
    const json either{{"conjunction", "or"}, {"clauses", {clause("name", "eq", "chat"), clause("name", "like", "raw")}}};
    std::vector<json> meters, prices;
    for (const auto* function : polar_functions) {
        json aggregation{{"func", function}};
        if (aggregation["func"] != "count") aggregation["property"] = "metadata.size";
        meters.push_back(polar_meter(function, aggregation, either));
        prices.push_back(polar_price(function, "1"));
    }
    return polar_book(meters, prices);
}

}  // namespace

TEST_CASE("Polar's meters measure with every function, filters that name no event included", "[polar]") {
    Meter m = polar_log(book_of_functions(),
                        {customer_event("chat", {{"size", 10}}), customer_event("draw", {{"size", 20}}), customer_event("draw", {{"size", 30}}),
                         customer_event("chat", {{"size", 30}}), customer_event("other", {{"size", 99}}), customer_event("chat", {{"size", "40"}})});
    const auto fees = m.usage({.customer = "acme"});
    check_lines(fees);
    std::map<std::string, std::string> units;
    for (const auto& fee : fees.fees) units[fee.charge] = fee.units.to_string() + " of " + std::to_string(fee.events);
    CHECK(units == std::map<std::string, std::string>{
                       {"count", "5 of 5"}, {"sum", "90 of 4"}, {"max", "30 of 4"}, {"min", "10 of 4"}, {"avg", "22.5 of 4"}, {"unique", "4 of 5"}});
    CHECK(fees.fees[4].amount_cents == 23);
    CHECK(fees.fees[4].vendor.at("label") == "(22.5 consumed units) \u00d7 $0.01");
    const Metric sum = m.metrics().at(4);
    CHECK((sum.code == "polar:sum" && sum.every_event && sum.rules == "polar_billing"));
    CHECK(m.aggregate({.metric = "polar:sum"}).rows.at(0).value == 90);
}

TEST_CASE("an event costs what it adds to Polar's bill", "[polar]") {
    const std::uint64_t seed = std::random_device{}();
    CAPTURE(seed);
    std::mt19937_64 random(seed);
    Meter m = polar_log(book_of_functions(), {});
    const std::vector<json> sizes{1, 1.5, -2, "1", "x", true, "true", false, 0, 0.1, nullptr};
    std::map<std::string, Decimal> before, added;
    for (int i = 0; i < 120; ++i) {
        auto next = customer_event(random() % 4 == 0 ? "draw" : "chat", json::object());
        next.timestamp = *next.timestamp + std::chrono::seconds(i);
        if (const auto which = random() % (sizes.size() + 1); which < sizes.size()) next.properties["size"] = sizes[which];
        CAPTURE(next.properties.dump());
        added.clear();
        for (const auto& fee : m.estimate_fees(next).fees) added[fee.charge] = fee.units;
        m.record(next);
        for (const auto& fee : m.usage({.customer = "acme"}).fees) {
            CAPTURE(fee.charge, fee.units.to_string(), before[fee.charge].to_string());
            REQUIRE((before[fee.charge] + added[fee.charge] - fee.units).abs() < Decimal("0.00000000001"));
            before[fee.charge] = fee.units;
        }
    }
}

TEST_CASE("Polar adds doubles in the order of time", "[polar]") {
    const auto book = polar_book({polar_meter("m", {{"func", "sum"}, {"property", "n"}}), polar_meter("a", {{"func", "avg"}, {"property", "n"}})},
                                 {polar_price("m", "5"), polar_price("a", "5")});
    Meter m = polar_log(book, {customer_event("e", {{"n", 0.3}}, "2026-03-03T00:00:00Z"), customer_event("e", {{"n", 0.1}}, "2026-03-01T00:00:00Z"),
                               customer_event("e", {{"n", 0.2}}, "2026-03-02T00:00:00Z")});
    auto fees = m.usage({.customer = "acme"}).fees;
    CHECK(fees[0].units == Decimal("0.6000000000000001"));
    CHECK(fees[1].units == Decimal("0.20000000000000004"));
    m = polar_log(book, std::vector<Event>(3, customer_event("e", {{"n", 0.1}})));
    CHECK(m.usage({.customer = "acme"}).fees[0].amount_cents == 2);  // 0.30000000000000004 x 5; of 0.3, whose double is less, 1
    m = polar_log(book, {customer_event("e", {{"n", 9007199254740992}}), customer_event("e", {{"n", 1}}), customer_event("e", {{"n", 1}})});
    CHECK(m.usage({.customer = "acme"}).fees[0].units == Decimal("9007199254740992"));
}

TEST_CASE("Polar's sums and averages are those of doubles, in bins and groups, sealed or not", "[polar]") {
    const std::uint64_t seed = std::random_device{}();
    CAPTURE(seed);
    std::mt19937_64 random(seed);
    struct Seen {
        Timestamp time;
        std::string day, customer;
        double number;
    };
    std::vector<Seen> seen;
    Meter m({.chunk_events = 1024});
    for (int i = 0; i < 3000; ++i) {
        const auto hour = static_cast<std::int64_t>(random() % 240);
        const Timestamp time = Timestamp::from_civil(2026, 3, 1) + std::chrono::hours(hour) + std::chrono::microseconds(i);
        const json number = random() % 3 == 0 ? json(random() % 100) : json(static_cast<double>(random() % 1000000) / 1000);
        seen.push_back({time, time.to_string().substr(0, 10), "c" + std::to_string(random() % 3), number.get<double>()});
        m.record({.name = "e", .customer = seen.back().customer, .timestamp = time, .properties = {{"n", number}}});
    }
    std::sort(seen.begin(), seen.end(), [](const Seen& a, const Seen& b) { return a.time < b.time; });
    std::map<std::pair<std::string, std::string>, std::pair<double, int>> sums;
    for (const auto& each : seen) {
        auto& [sum, count] = sums[{each.day, each.customer}];
        sum += each.number, ++count;
    }
    const AggregateQuery query{.bin = Bin::day, .group_by = {"customer"}};
    for (const auto aggregation : {Aggregation::sum, Aggregation::average}) {
        const auto rows = m.aggregate({.event = "e", .aggregation = aggregation, .property = "n", .rules = "polar"}, query).rows;
        REQUIRE(rows.size() == sums.size());
        auto expected = sums.begin();
        for (const auto& row : rows) {
            const auto& [sum, count] = expected->second;
            CAPTURE(expected->first.first, expected->first.second);
            CHECK(row.value == Decimal::from_double(aggregation == Aggregation::sum ? sum : sum / count));
            ++expected;
        }
    }
}

TEST_CASE("Polar's values count by their JSON type", "[polar]") {
    Meter m = polar_log(polar_book({polar_meter("m", {{"func", "count"}})}, {polar_price("m", "1")}), {});
    const json values = json::parse(R"([1, 1.0, 1e0, "1", true, "true", "a", "A", null])");
    for (const auto& value : values) m.record(customer_event("e", {{"v", value}}));
    m.record(customer_event("e", json::object(), "2026-03-06T00:00:00.5Z"));
    for (const auto* rules : {"polar", "polar_billing"}) {
        const auto row = [&](Aggregation aggregation, const char* property) {
            return m.aggregate({.code = "x", .aggregation = aggregation, .property = property, .rules = rules, .every_event = true}, {}).rows.at(0);
        };
        CHECK(row(Aggregation::unique_count, "v").value == 7);
        CHECK(row(Aggregation::unique_count, "v").events == 10);
        CHECK(row(Aggregation::sum, "v").value == 3);
        CHECK(row(Aggregation::max, "timestamp").value == Timestamp::parse("2026-03-06T00:00:01Z").unix_seconds());
    }
    CHECK(m.aggregate({.aggregation = Aggregation::max, .property = "name", .rules = "polar"}, {}).rows.empty());
    CHECK(m.aggregate({.event = "e", .aggregation = Aggregation::max, .property = "name", .rules = "polar_billing"}, {}).rows.at(0).events == 10);
    CHECK(refusal([&] { m.aggregate({.event = "e", .every_event = true}, {}); }) ==
          "bad_value metric.event: has no meaning for a metric of every event");
}

TEST_CASE("Polar bills what users did, by the credits that are known", "[polar]") {
    const json user{{"clauses", {clause("source", "eq", "user")}}};
    const auto book = Book::polar({{"product",
                                    {{"id", "pro"},
                                     {"prices", {polar_price("m", "100"), polar_price("users", "100")}},
                                     {"benefits", {{{"type", "meter_credit"}, {"properties", {{"meter_id", "m"}, {"units", 1}}}}}}}},
                                   {"meters", {polar_meter("m", {{"func", "count"}}), polar_meter("users", {{"func", "count"}}, user)}}});
    Meter m = polar_log(book, {customer_event("a", json::object()), customer_event("b", json::object()), customer_event("c", json::object())});
    Event own = customer_event("meter.credited", {{"meter_id", "m"}, {"units", 2}});
    const auto amounts = [&] {
        const auto fees = m.usage({.customer = "acme"});
        check_lines(fees);
        return std::pair{fees.fees[0].amount_cents, fees.fees[1].amount_cents};
    };
    CHECK(amounts() == std::pair<Decimal, Decimal>{200, 300});
    own.source = "system";
    m.record(own);
    CHECK(amounts() == std::pair<Decimal, Decimal>{100, 300});
    own.properties["meter_id"] = "users";
    own.properties["units"] = 5;
    m.record(own);
    CHECK(amounts() == std::pair<Decimal, Decimal>{100, 0});
    CHECK(m.aggregate({.metric = "polar:m"}).rows.at(0).value == 5);
    CHECK(m.aggregate({.metric = "polar:users"}).rows.at(0).value == 3);
    CHECK(book.price("m", 3).amount_cents == 200);
    CHECK(refusal([&] { m.estimate_fees(own); }) == "not_found name: no price measures this event named \"meter.credited\"");
}

TEST_CASE("a customer's Polar meter stands since its last reset", "[polar]") {
    Timestamp now = Timestamp::parse("2026-03-01T00:00:00Z");
    Meter m({.clock = [&now] { return now; }});
    m.load(polar_book({polar_meter("m", {{"func", "sum"}, {"property", "n"}}), polar_meter("top", {{"func", "max"}, {"property", "a.b"}})},
                      {polar_price("m", "1"), polar_price("top", "1")}));
    const auto happens = [&](const char* name, const char* customer, json properties, std::chrono::minutes late = {}) {
        const bool own = std::string_view(name).starts_with("meter.");
        if (own && !properties.contains("meter_id")) properties["meter_id"] = "m";
        now = now + std::chrono::minutes(1);
        m.record({.name = name, .customer = customer, .timestamp = now - late, .source = own ? "system" : "", .properties = std::move(properties)});
    };
    const auto shown = [&](const std::vector<std::string>& customers) {
        const auto found = m.customer_meter("m", customers);
        return found.consumed.to_string() + " " + found.credited.to_string() + " " + found.balance.to_string() + " " + found.rollover.to_string();
    };
    CHECK(shown({"acme"}) == "0 0 0 0");
    happens("use", "acme", {{"n", 70}});
    happens("meter.credited", "acme", {{"units", 80}, {"rollover", false}});
    happens("meter.credited", "acme", {{"units", 60}, {"rollover", true}});
    happens("meter.credited", "acme", {{"units", 500}, {"meter_id", "other"}});
    happens("use", "7f3c", {{"n", 30.5}});
    CHECK(shown({"acme"}) == "70 140 70 60");
    CHECK(shown({"acme", "7f3c"}) == "100.5 140 39.5 39");
    happens("meter.reset", "acme", json::object());
    happens("meter.credited", "acme", {{"units", 39}, {"rollover", true}});
    happens("meter.credited", "acme", {{"units", -50}});
    happens("meter.credited", "acme", {{"units", 10}});
    happens("use", "acme", {{"n", 30}});
    CHECK(shown({"acme", "7f3c"}) == "30 10 -20 19");
    happens("use", "acme", {{"n", 2.25}, {"a", {{"b", 7}}}}, std::chrono::hours(24));  // what came late is of the time in which it came
    CHECK(shown({"acme", "7f3c"}) == "32.25 10 -22.25 16");
    happens("meter.reset", "acme", json::object(), std::chrono::minutes(1));
    CHECK(shown({"acme"}) == "2.25 0 -2.25 0");
    CHECK(m.customer_meter("top", {"acme"}).consumed == 7);
    CHECK(m.customer_meter("top", {"acme", "7f3c"}).consumed == 0);  // Polar's own defect (dossier 10.3)
    CHECK(shown({"nobody"}) == "0 0 0 0");
    CHECK(refusal([&] { m.customer_meter("m", {}); }) == "bad_value customers: is empty");
    CHECK(refusal([&] { m.customer_meter("x", {"acme"}); }) == "not_found meter: \"x\" is in no Polar book that is loaded");
}

TEST_CASE("Polar bills by the subscription's own periods, and what was bought of seats and units", "[polar]") {
    json source{
        {"product",
         {{"id", "pro"},
          {"prices",
           {polar_price("m", "100"),
            {{"amount_type", "fixed"}, {"price_amount", 900}},
            {{"amount_type", "seat_based"},
             {"seat_tiers",
              {{"tiers",
                {{{"min_seats", 1}, {"max_seats", 4}, {"price_per_seat", 1000}},
                 {{"min_seats", 5}, {"max_seats", nullptr}, {"price_per_seat", 900}}}}}}},
            {{"amount_type", "unit_based"},
             {"tiers", {{"type", "graduated"}, {"tiers", {{{"bound", 10}, {"unit_amount", "0"}}, {{"bound", nullptr}, {"unit_amount", "7"}}}}}}}}}}},
        {"meters", json::array({polar_meter("m", {{"func", "count"}})})},
        {"subscriptions",
         {{{"id", "s1"},
           {"customer", {{"external_id", "acme"}}},
           {"current_period_start", "2026-02-28T12:00:00Z"},
           {"current_period_end", "2026-03-31T12:00:00Z"},
           {"recurring_interval", "month"},
           {"started_at", "2026-01-31T12:00:00Z"},
           {"seats", 5},
           {"units", 12}}}}};
    const std::vector<Event> events{
        customer_event("e", json::object(), "2026-02-28T11:00:00Z"), customer_event("e", json::object(), "2026-02-28T12:00:00Z"),
        customer_event("e", json::object(), "2026-03-09T12:00:00Z"), customer_event("e", json::object(), "2026-03-31T12:00:00Z")};
    Meter m = polar_log(Book::polar(source), events);
    const auto fees = m.usage({.customer = "acme"});
    REQUIRE(fees.fees.size() == 3);
    CHECK(fees.fees[0].units == 2);
    CHECK((fees.fees[0].subscription == "s1" && fees.fees[0].period.to == Timestamp::parse("2026-03-31T12:00:00Z")));
    CHECK((fees.fees[1].charge == "seats" && fees.fees[1].amount_cents == 4500 && fees.fees[1].pay_in_advance));
    CHECK(fees.fees[2].amount_cents == 14);
    CHECK(fees.amount_cents == 200 + 4500 + 14);
    CHECK(m.usage({.subscription = "s1"}).amount_cents == fees.amount_cents);
    CHECK(m.estimate_fees(customer_event("e", json::object())).fees.at(0).amount_cents == 100);
    const auto book = Book::polar(source);
    CHECK(book.price("seats", 4).amount_cents == 4000);
    CHECK(refusal([&] { book.price("seats", Decimal("4.5")); }) == "bad_value quantity: must be a whole number");
    CHECK(refusal([&] { book.price("seats", -1); }) == "bad_value quantity: negative");
    json changed = source;
    changed["product"]["prices"][3]["tiers"]["tiers"][1]["unit_amount"] = "0.25";
    CHECK(Book::polar(changed).price("units", 14).amount_cents == 1);
    CHECK(refusal([&] { Book::polar(changed).price("units", 11); }) == "bad_value quantity: comes to a fraction of a cent: 0.25");
    changed["product"]["prices"].push_back(polar_price("m", "2"));
    CHECK(refusal([&] { Book::polar(changed); }) == "bad_value product.prices[4].meter_id: has another price, too");
    changed = source;
    changed["product"]["benefits"] = {{{"type", "meter_credit"}, {"properties", {{"meter_id", "m"}, {"units", 0}}}}};
    CHECK(refusal([&] { Book::polar(changed); }) == "bad_value product.benefits[0].properties.units: must be a whole number from 1 to 2147483647");
    CHECK(refusal([&] { m.usage({.customer = "other"}); }) == "not_found customer: no book that is loaded prices it");
    json trial = source;
    trial["subscriptions"][0]["trial_end"] = "2026-03-05T00:00:00.5Z";
    trial["product"]["prices"][2]["seat_tiers"]["tiers"] = {{{"min_seats", 5}, {"price_per_seat", 9}},
                                                            {{"min_seats", 1}, {"max_seats", 4}, {"price_per_seat", 10}}};
    CHECK(polar_log(Book::polar(trial), events).usage({.customer = "acme"}).fees.at(0).units == 1);
    CHECK(polar_log(Book::polar(trial), {}).estimate_fees(events[1]).amount_cents == 0);
    CHECK(polar_log(Book::polar(trial), {}).estimate_fees(events[2]).amount_cents == 100);
    CHECK(Book::polar(trial).price("seats", 5).amount_cents == 45);
    const auto refused = [&](const char* field, json value) {
        json wrong = source;
        wrong["subscriptions"][0][field] = std::move(value);
        return refusal([&] { Book::polar(wrong); });
    };
    CHECK(refused("current_period_start", nullptr) == "bad_value subscriptions[0].current_period_start: is required");
    CHECK(refused("current_period_end", "2026-02-28T12:00:00Z") == "bad_value subscriptions[0].current_period_end: ends before it begins");
    CHECK(refused("recurring_interval", "fortnight") == "bad_value subscriptions[0].recurring_interval: is not known: fortnight");
    CHECK(refused("recurring_interval_count", 0) == "bad_value subscriptions[0].recurring_interval_count: must be a whole number from 1 to 999");
    CHECK(refused("seats", 1.5) == "bad_value subscriptions[0].seats: must be a whole number from 0 to 2147483647");
    CHECK(refused("customer", {{"id", "x"}}) == "bad_value subscriptions[0].customer.external_id: is required");
    source["product"]["prices"][2]["seat_tiers"]["tiers"][1]["min_seats"] = 6;
    CHECK(refusal([&] { Book::polar(source); }) == "bad_value product.prices[2].seat_tiers.tiers[1].min_seats: gap");
    source["product"]["prices"].erase(2);
    auto& tiers = source["product"]["prices"][2]["tiers"]["tiers"];
    tiers[0].erase("unit_amount");
    CHECK(refusal([&] { Book::polar(source); }) == "bad_value product.prices[2].tiers.tiers[0].unit_amount: missing");
    tiers[0] = {{"bound", 1.5}, {"unit_amount", 1}};
    CHECK(refusal([&] { Book::polar(source); }) == "bad_value product.prices[2].tiers.tiers[0].bound: int_from_float");
}

TEST_CASE("Polar's fees show what is paid for, and the price as its meter's unit wants it", "[polar]") {
    json source{{"product",
                 {{"id", "pro"},
                  {"prices", {polar_price("m", "0.002")}},
                  {"benefits", {{{"type", "meter_credit"}, {"properties", {{"meter_id", "m"}, {"units", 1000}}}}}}}},
                {"meters", json::array({polar_meter("m", {{"func", "sum"}, {"property", "n"}})})}};
    auto& price = source["product"]["prices"][0];
    auto& meter = source["meters"][0];
    const auto shown = [&] {
        const auto fee = customer_usage(Book::polar(source), {customer_event("e", {{"n", 1235567.8915}})}).fees.at(0).vendor;
        return fee.at("label").get<std::string>() + ", " + fee.at("unit_price").get<std::string>();
    };
    CHECK(shown() == "(1,234,567.892 consumed units) \u00d7 $0.00002, $0.00002 / unit");
    meter["unit"] = "token";
    price["price_currency"] = "eur";
    CHECK(shown() == "(1,234,567.892 consumed units) \u00d7 \u20ac0.00002, \u20ac20.00 / 1M tokens");
    meter.update({{"unit", "custom"}, {"custom_label", "gigabyte"}, {"custom_multiplier", 1000}});
    price["price_currency"] = "CHF";
    CHECK(shown() == "(1,234,567.892 consumed units) \u00d7 CHF0.00002, CHF0.02 / gigabyte");
    price.update({{"price_currency", "jpy"}, {"cap_amount", 2000}});
    CHECK(shown() == "(1,234,567.892 consumed units) \u00d7 \u00a50.002 \u2014 Capped at \u00a52,000, \u00a52 / gigabyte");
    source["product"]["benefits"][0]["properties"]["units"] = 2000000;
    CHECK(shown() == "(0 consumed units) \u00d7 \u00a50.002, \u00a52 / gigabyte");
    meter["custom_multiplier"] = 0;
    CHECK(refusal(shown) == "bad_value meters[0].custom_multiplier: must be above 0");
    meter["unit"] = "byte";
    CHECK(refusal(shown) == "bad_value meters[0].unit: is not known: byte");
    price["price_currency"] = "euro";
    meter["unit"] = "token";
    CHECK(refusal(shown) == "bad_value product.prices[0].price_currency: must be a code of three letters");
}

TEST_CASE("Polar's periods go on by the subscription's interval, before and after the current one", "[polar]") {
    const auto period = [](const char* now) {
        const json at{
            {"id", "s"}, {"customer", {{"external_id", "c"}}}, {"current_period_start", "2026-01-15T00:00:00Z"}, {"recurring_interval_count", 2}};
        const auto found = polar::period_around(polar::read_subscription(Node(at)), Timestamp::parse(now));
        return found.from.to_string().substr(0, 10) + " " + found.to.to_string().substr(0, 10);
    };
    CHECK(period("2026-03-14T00:00:00Z") == "2026-01-15 2026-03-15");
    CHECK(period("2026-03-15T00:00:00Z") == "2026-03-15 2026-05-15");
    CHECK(period("2025-12-31T00:00:00Z") == "2025-11-15 2026-01-15");
}

TEST_CASE("meter quantities through the face", "[polar]") {
    const json chats{{"conjunction", "and"}, {"clauses", {clause("name", "eq", "chat")}}};
    Meter m = polar_log(
        polar_book({polar_meter("sum", {{"func", "sum"}, {"property", "n"}}, chats), polar_meter("avg", {{"func", "avg"}, {"property", "n"}})},
                   {polar_price("sum", "1")}),
        {});
    const auto chat = [&](const char* customer, const char* time, json properties) {
        m.record({.name = "chat", .customer = customer, .timestamp = Timestamp::parse(time), .properties = std::move(properties)});
    };
    chat("acme", "2026-02-28T23:30:00Z", {{"n", 100}});  // 1 March in Paris
    chat("acme", "2026-03-01T12:00:00Z", {{"n", 1}, {"model", "lite"}});
    chat("zeta", "2026-03-01T13:00:00Z", {{"n", 2.5}, {"model", "pro"}});
    chat("zeta", "2026-03-03T13:00:00Z", {{"n", 4}, {"model", 7}});
    const QuantitiesQuery days{.meter = "sum", .start = Timestamp::parse("2026-03-01T12:30:00Z"), .end = Timestamp::parse("2026-03-03T12:30:00Z")};
    const auto shown = [&](const QuantitiesQuery& query) {
        const auto found = m.quantities(query);
        std::string text;
        for (const auto& row : found.rows) text += row.quantity.to_string() + " ";
        return text + "= " + found.total.to_string();
    };
    const auto with = [&](auto&& change) {
        auto query = days;
        change(query);
        return query;
    };
    CHECK(shown(days) == "3.5 0 4 = 7.5");
    CHECK(m.quantities(days).rows[1].time == Timestamp::parse("2026-03-02T12:30:00Z"));
    CHECK(shown(with([](auto& q) { q.time_zone = "Europe/Paris"; })) == "103.5 0 4 = 107.5");
    CHECK(shown(with([](auto& q) { q.customers = {"zeta"}; })) == "2.5 0 4 = 6.5");
    CHECK(shown(with([](auto& q) { q.customers = {"zeta", "acme", "x"}; })) == "3.5 0 4 = 7.5");
    CHECK(shown(with([](auto& q) { q.metadata = {{"model", {"lite", "7"}}}; })) == "1 0 4 = 5");
    CHECK(shown(with([](auto& q) { q.metadata = {{"model", "pro"}}; })) == "2.5 0 0 = 2.5");
    CHECK(shown(with([](auto& q) { q.over_customers = Aggregation::max; })) == "2.5 0 4 = 6.5");
    CHECK(shown(with([](auto& q) { q.over_customers = Aggregation::count; })) == "2 0 1 = 3");
    CHECK(shown(with([](auto& q) { q.meter = "avg"; })) == "1.75 0 4 = 26.875");
    CHECK(shown(with([](auto& q) { q.end = q.start + std::chrono::hours(23); })) == "3.5 = 3.5");
    const auto own = m.quantities({.aggregation = Aggregation::max, .property = "n"}, days);
    CHECK((own.rows.at(0).quantity == Decimal("2.5") && own.total == 4));

    const auto refused = [&](auto&& change) { return refusal([&] { m.quantities(with(change)); }); };
    CHECK(refused([](auto& q) { q.interval = Bin::minute; }) == "bad_value interval: must be hour, day, week, month or year");
    CHECK(refused([](auto& q) { q.start = Timestamp::parse("2022-12-31T23:59:59Z"); }) == "bad_value start: must not be before 2023-01-01");
    CHECK(refused([](auto& q) { q.end = q.start - std::chrono::seconds(1); }) == "bad_value end: is before the start");
    CHECK(refused([](auto& q) { q.time_zone = "Mars/Base"; }).starts_with("bad_value time_zone: "));
    CHECK(refused([](auto& q) { q.metadata = "lite"; }) == "bad_value metadata: must be an object");
    CHECK(refused([](auto& q) { q.metadata = {{"model", {1}}}; }) == "bad_value metadata.model: must be a text or a list of texts");
    CHECK(refused([](auto& q) { q.over_customers = Aggregation::latest; }) == "bad_value over_customers: is not one of Polar's functions");
    CHECK(refused([](auto& q) { q.meter = "none"; }) == "not_found meter: \"none\" is in no Polar book that is loaded");
    CHECK(refusal([&] { m.quantities({.aggregation = Aggregation::latest, .property = "n"}, days); }) ==
          "bad_value meter: has an aggregation that Polar does not know");
}

TEST_CASE("rows of Polar's quantities step as PostgreSQL does where the clock changes", "[polar]") {
    Meter m;
    const auto rows = [&](const char* start, const char* zone) {
        const auto from = Timestamp::parse(start);
        std::string text;
        for (const auto& row : m.quantities(Metric{}, {.start = from, .end = from + std::chrono::hours(49), .time_zone = zone}).rows)
            text += row.time.to_string().substr(8, 8) + " ";
        return text;
    };
    CHECK(rows("2024-03-09T07:30:00Z", "America/New_York") == "09T07:30 10T07:30 11T07:30 ");  // 2:30 is skipped: 3:30, from there on
    CHECK(rows("2024-11-02T05:30:00Z", "America/New_York") == "02T05:30 03T06:30 04T06:30 ");  // 1:30 comes twice: the second
    CHECK(rows("2024-10-26T00:30:00Z", "Europe/Paris") == "26T00:30 27T01:30 28T01:30 ");
    CHECK(rows("2024-04-05T14:45:00Z", "Australia/Lord_Howe") == "05T14:45 06T15:15 07T15:15 ");
}

TEST_CASE("Polar's quantities span so many days at most", "[polar]") {
    Meter m;
    const auto accepted = [&](const char* end, Bin interval) {
        const auto from = Timestamp::from_civil(2024, 1, 1);
        return refusal([&] { m.quantities(Metric{}, {.start = from, .end = Timestamp::parse(end), .interval = interval}); }) == "answered";
    };
    for (const auto& [last, first_refused, interval] :
         {std::tuple{"2024-01-08", "2024-01-09", Bin::hour}, std::tuple{"2025-01-01", "2025-01-02", Bin::day},
          std::tuple{"2025-01-06", "2025-01-07", Bin::week}, std::tuple{"2027-12-31", "2028-01-01", Bin::month},
          std::tuple{"2033-12-29", "2033-12-30", Bin::year}}) {
        CAPTURE(first_refused);
        CHECK(accepted(last, interval));
        CHECK_FALSE(accepted(first_refused, interval));
    }
}

TEST_CASE("a list's filter compares by the rules of a vendor", "[polar]") {
    Meter m;
    int number = 0;
    for (const json& value : json::parse(R"([1, "1", true, 7, "x", null])"))
        m.record({.id = std::to_string(number++), .name = "e", .timestamp = Timestamp::from_civil(2026, 3, 1), .properties = {{"v", value}}});
    m.record({.id = "none", .name = "e", .timestamp = Timestamp::from_civil(2026, 3, 1)});
    const auto listed = [&](const char* rules, Operator op, json value) {
        ListQuery query{.filter = Filter::where("v", op, std::move(value)), .rules = rules, .sort = {{"id", false}}, .limit = 2, .count = true};
        std::string ids;
        for (Page page = m.list(query);; page = m.list(page.next)) {
            for (const auto& event : page.events) ids += event.id + " ";
            if (!page.next) return ids + "of " + std::to_string(*page.total);
        }
    };
    CHECK(listed("", Operator::eq, 1) == "0 1 of 2");
    CHECK(listed("polar", Operator::eq, 1) == "0 1 of 2");
    CHECK(listed("polar_billing", Operator::eq, 1) == "0 2 of 2");
    CHECK(listed("polar_events", Operator::ne, "x") == "0 1 2 3 5 none of 6");
    CHECK(listed("polar_billing", Operator::ne, "x") == "0 1 2 3 of 4");
    CHECK(listed("polar", Operator::ne, "x") == "1 of 1");
    CHECK(listed("polar_events", Operator::lt, 5) == "0 1 2 4 5 none of 6");
    ListQuery other{.filter = Filter::equals("v", 1), .rules = "polar", .limit = 1};
    other.after = m.list(other).next;
    other.rules = "polar_billing";
    CHECK(refusal([&] { m.list(other); }).find("belongs to another question") != std::string::npos);
    CHECK(refusal([&] { m.list({.rules = "polars"}); }) == "bad_value rules: \"polars\" are not known");
}

TEST_CASE("OpenMeter's meters are metrics under its rules", "[openmeter]") {
    const Timestamp start = Timestamp::parse("2026-03-28T22:30:00Z");  // the day of 23 hours begins in Paris half an hour later
    Meter m;
    const json values = json::parse(R"([1, "2.5", "1e1", true, "many", null, [1], {"a": 1}, "", "null", "true", -4])");
    for (std::size_t i = 0; i < values.size(); ++i) {
        const json group = i % 3 == 0 ? json("eu") : i % 3 == 1 ? json(nullptr) : json(true);
        m.record({.name = "prompt",
                  .customer = i < 10 ? "acme" : "zeta",
                  .timestamp = start + std::chrono::hours(i),
                  .properties = {{"usage", {{"n", values[i]}}}, {"region", group}}});
    }
    m.record({.name = "prompt", .customer = "acme", .timestamp = start + std::chrono::hours(12), .properties = json::object()});
    const auto asked = [&](Aggregation aggregation, AggregateQuery query) {
        std::string text;
        const Metric metric{
            .event = "prompt", .aggregation = aggregation, .property = aggregation == Aggregation::count ? "" : "usage.n", .rules = "openmeter"};
        for (const auto& row : m.aggregate(metric, query).rows) {
            for (const auto& group : row.group) text += group.value_or("-") + " ";
            text += row.value.to_string() + ", ";
        }
        return text;
    };
    CHECK(asked(Aggregation::count, {}) == "13, ");
    CHECK(asked(Aggregation::sum, {}) == "9.5, ");
    CHECK(asked(Aggregation::average, {}) == "2.375, ");
    CHECK(asked(Aggregation::min, {}) == "-4, ");
    CHECK(asked(Aggregation::max, {}) == "10, ");
    CHECK(asked(Aggregation::latest, {}) == "-4, ");
    CHECK(asked(Aggregation::unique_count, {}) == "7, ");  // 1, 2.5, 1e1, true, many, "" and -4
    CHECK(asked(Aggregation::unique_count, {.customer = "zeta"}) == "2, ");
    CHECK(asked(Aggregation::count, {.group_by = {"region"}}) == " 1, eu 4, null 4, true 4, ");
    CHECK(asked(Aggregation::sum, {.group_by = {"customer"}}) == "acme 13.5, zeta -4, ");
    CHECK(asked(Aggregation::count, {.bin = Bin::day, .time_zone = "Europe/Paris"}) == "1, 12, ");
    CHECK(asked(Aggregation::sum, {.period = {start, start + std::chrono::hours(2)}, .bin = Bin::hour}) == "1, 2.5, ");
    const auto only = [&](Operator op, json value) { return asked(Aggregation::count, {.filter = Filter::where("region", op, std::move(value))}); };
    CHECK(only(Operator::eq, "true") == "4, ");
    CHECK(only(Operator::ne, "eu") == "9, ");
    CHECK(only(Operator::in, {"eu", ""}) == "5, ");
    CHECK(only(Operator::eq, "null") == "4, ");
    CHECK(only(Operator::like, "_u") == "4, ");
    CHECK(only(Operator::not_like, "%u%") == "1, ");
}

TEST_CASE("Polar's doubles count at their exact value", "[polar]") {
    CHECK(polar::exact_amount(100, 1.005) == 100);
    CHECK(polar::exact_amount(100, 1.995) == 200);
    CHECK(polar::exact_amount(5, 0.1 + 0.1 + 0.1) == 2);
    CHECK(polar::exact_amount(Decimal("0.5"), 1) == 1);
    CHECK(polar::exact_amount(Decimal("99999.999999999999"), 0) == 0);
    CHECK(polar::exact_amount(100, 1e-300) == 0);
    CHECK(polar::exact_amount(1, 9007199254740994.0) == Decimal("9007199254740994"));
    CHECK(polar::exact_amount(1, 1e18) == Decimal("1000000000000000000"));
    CHECK(polar::exact_amount(Decimal("99999.999999999999"), 0.5) == 50000);
    CHECK_THROWS_AS(polar::exact_amount(1, 1e300), Error);
}

TEST_CASE("Autumn prices overage, and credits by what a feature costs", "[autumn]") {
    const json source{
        {"plan",
         {{"id", "pro"},
          {"items",
           {{{"feature_id", "credits"}, {"included", 100}, {"price", {{"amount", 1}, {"billing_units", 10}, {"billing_method", "usage_based"}}}}}}}},
        {"features", {{{"id", "credits"}, {"credit_schema", {{{"metered_feature_id", "chat"}, {"credit_cost", "0.2"}}}}}}}};
    const auto book = Book::autumn(source);
    auto valued = customer_event("chat", json::object());
    valued.value = 740;
    const std::vector<Event> events{valued, customer_event("chat", json::object()), customer_event("credits", json::object())};
    const auto fees = customer_usage(book, events);
    CHECK(fees.fees[0].units == Decimal("149.2"));
    CHECK(fees.amount_cents == 500);
    PlainUsage usage;
    usage.events = events;
    CHECK(book.impl().estimate_fees(customer_event("chat", json::object()), march_10, usage).amount_cents == 0);
    auto many = valued;
    many.value = 10;
    CHECK(book.impl().estimate_fees(many, march_10, usage).amount_cents == 100);
    const auto check = book.impl().check(many, march_10, usage);
    CHECK(check.allowed);
    CHECK(check.overage == Decimal("49.2"));
}

TEST_CASE("Autumn's check counts what is left", "[autumn]") {
    const json source{{"plan", {{"id", "free"}, {"items", {{{"feature_id", "chat"}, {"included", 3}}}}}}};
    const auto book = Book::autumn(source);
    PlainUsage usage;
    usage.events = {customer_event("chat", json::object()), customer_event("chat", json::object())};
    CHECK(book.impl().check(customer_event("chat", json::object()), march_10, usage).allowed);
    CHECK(book.impl().check(customer_event("chat", json::object()), march_10, usage).balance == 1);
    usage.events.push_back(customer_event("chat", json::object()));
    CHECK_FALSE(book.impl().check(customer_event("chat", json::object()), march_10, usage).allowed);
    CHECK_THROWS_WITH(book.impl().check(customer_event("image", json::object()), march_10, usage), "name: feature_not_found");
    CHECK(customer_usage(book, usage.events).amount_cents.is_zero());
}

TEST_CASE("Autumn refuses what its validation refuses", "[autumn]") {
    const auto refused = [](json price, json included = 0) -> std::string {
        price["billing_method"] = price.value("billing_method", "usage_based");
        try {
            Book::autumn({{"plan", {{"id", "pro"}, {"items", {{{"feature_id", "chat"}, {"included", included}, {"price", price}}}}}}});
        } catch (const Error& error) {
            return error.what();
        }
        return "accepted";
    };
    const auto tier = [](json to) { return json{{"to", to}, {"amount", 1}}; };
    const std::string at = "plan.items[0].price.";
    CHECK(refused({{"tiers", {tier(10), tier("inf")}}}) == "accepted");
    CHECK(refused({{"amount", 1}, {"tiers", {tier("inf")}}}) == at + "amount: exactly one of amount and tiers is required");
    CHECK(refused(json::object()) == at + "amount: exactly one of amount and tiers is required");
    CHECK(refused({{"tiers", {tier(10), tier("inf")}}}, 10) == at + "tiers[0].to: must be above included");
    CHECK(refused({{"tiers", {tier(10), tier(5), tier("inf")}}}) == at + "tiers[1].to: must be above the tier before");
    CHECK(refused({{"tiers", {tier(10), tier(20)}}}) == at + "tiers[1].to: only the last tier is open, with \"inf\"");
    CHECK(refused({{"tiers", {tier("inf")}}, {"tier_behavior", "volume"}}) == at + "tier_behavior: volume is for prepaid items only");
    CHECK(refused({{"amount", 1}, {"billing_units", 0}}) == at + "billing_units: must be above 0");
    CHECK(refused({{"tiers", {5}}}) == at + "tiers[0].to: is required");
    CHECK(refused({{"tiers", {{{"to", "inf"}}}}}) == at + "tiers[0].amount: is required");
    CHECK(refused({{"amount", 1}, {"currencies", {{"usd", {{"amonut", 2}}}}}}) == at + "currencies: have no amount in the book's currency");
    CHECK(refused({{"amount", 1}, {"currencies", {{"usd", {{"amount", 2}}}}}}) == "accepted");
    CHECK(refused({{"amount", 1}, {"currencies", 7}}) == at + "currencies: must be an object");
    CHECK(refused({{"amount", 1}, {"currencies", {{"usd", true}}}}) == at + "currencies.usd: must be an object");
}

// --- over the real log ---

TEST_CASE("books answer the same over the log as over a plain list", "[meter]") {
    const auto plan = catalogue({{"charge_model", "graduated"},
                                 {"pay_in_advance", true},
                                 {"properties",
                                  {{"pricing_group_keys", {"region"}},
                                   {"graduated_ranges",
                                    {{{"from_value", 0}, {"to_value", 10}, {"per_unit_amount", "1"}, {"flat_amount", "3"}},
                                     {{"from_value", 11}, {"to_value", nullptr}, {"per_unit_amount", "0.5"}, {"flat_amount", "0"}}}}}}},
                                tokens_metric);
    std::vector<Event> events;
    for (int i = 0; i < 40; ++i) {
        auto each = event("tokens", {{"value", i % 7 - 1}, {"region", i % 3 == 0 ? "eu" : "us"}});
        each.id = "e" + std::to_string(i);
        each.timestamp = *each.timestamp + std::chrono::minutes(i);
        each.customer = "acme";
        events.push_back(each);
    }
    Meter m({.clock = [] { return march_10; }});
    m.record(events);
    m.load(Book::lago(plan));
    PlainUsage usage;
    usage.events = events;
    const auto book = Book::lago(plan);
    CHECK(m.usage({.subscription = "sub_1"}).to_json() == book.impl().usage({.subscription = "sub_1"}, march_10, usage).to_json());
    const auto next = event("tokens", {{"value", 5}, {"region", "eu"}});
    CHECK(m.estimate_fees(next).to_json() == book.impl().estimate_fees(next, march_10, usage).to_json());
}

TEST_CASE("the books of all vendors read the log's fields", "[meter]") {
    const json flexprice{{"meters", {{{"id", "m1"}, {"event_name", "chat"}, {"aggregation", {{"type", "COUNT_UNIQUE"}, {"field", "user"}}}}}},
                         {"prices", {{{"meter_id", "m1"}, {"currency", "usd"}, {"billing_model", "FLAT_FEE"}, {"amount", "1"}}}}};
    const json polar{
        {"product", {{"id", "pro"}, {"prices", {{{"meter_id", "m1"}, {"unit_amount", "50"}}}}}},
        {"meters",
         {{{"id", "m1"},
           {"filter",
            {{"conjunction", "and"},
             {"clauses",
              {{{"property", "name"}, {"operator", "eq"}, {"value", "chat"}}, {{"property", "user"}, {"operator", "ne"}, {"value", "ann"}}}}}},
           {"aggregation", {{"func", "count"}}}}}}};
    const json autumn{
        {"plan", {{"id", "pro"}, {"items", {{{"feature_id", "chat"}, {"price", {{"amount", 1}, {"billing_method", "usage_based"}}}}}}}}};
    std::vector<Event> events{customer_event("chat", {{"user", "ann"}}), customer_event("chat", {{"user", "bob"}}),
                              customer_event("chat", {{"user", "ann"}}), customer_event("chat", json::object())};
    for (std::size_t i = 0; i < events.size(); ++i) events[i].id = std::to_string(i);
    events[1].value = 40;
    for (const auto& [book, cents] :
         {std::pair{Book::flexprice(flexprice), 200}, std::pair{Book::polar(polar), 50}, std::pair{Book::autumn(autumn), 4300}}) {
        CAPTURE(book.vendor());
        CHECK(customer_usage(book, events).amount_cents == cents);
        Meter m({.clock = [] { return march_10; }});
        m.record(events);
        m.load(book);
        CHECK(m.usage({.customer = "acme"}).amount_cents == cents);
        CHECK(m.books().at(0).book.vendor() == book.vendor());
    }
}

// --- Autumn's check, over the real log ---

namespace {

// A database in memory with one Autumn book, on 10 March 2026 at noon.
struct Checked {
    Meter m{{.clock = [] { return march_10; }}};
    explicit Checked(const json& catalogue) { m.load(Book::autumn(catalogue)); }

    void use(const char* time, const Decimal& value, const char* feature = "chat", const char* entity = "", json properties = json::object()) {
        m.record(Event{.name = feature,
                       .customer = "acme",
                       .subscription = entity,
                       .timestamp = Timestamp::parse(time),
                       .value = value,
                       .properties = std::move(properties)});
    }
    Check ask(const Decimal& units, const char* feature = "chat", const char* entity = "", json properties = json::object()) const {
        return m.check({.name = feature, .customer = "acme", .subscription = entity, .value = units, .properties = std::move(properties)});
    }
};

// What braces around one value would not be: a list.
json list_of(json value) { return json::array({std::move(value)}); }

json plan_of(const std::vector<json>& items, const std::vector<json>& features = {}, json rest = json::object()) {
    rest["plan"]["id"] = "pro";
    rest["plan"]["items"] = items;
    rest["features"] = features;
    return rest;
}

json monthly(const char* feature, int included) { return {{"feature_id", feature}, {"included", included}, {"reset", {{"interval", "month"}}}}; }

json overage_price(json more = json::object()) {
    json price{{"amount", 1}, {"interval", "month"}, {"billing_method", "usage_based"}};
    price.update(more);
    return price;
}

json subscribed(const char* since) { return {{"plan_id", "pro"}, {"started_at", Timestamp::parse(since).micros() / 1000}}; }

const char* const february = "2026-02-27T00:00:00Z";
const char* const march = "2026-03-01T08:00:00Z";

}  // namespace

TEST_CASE("A check counts what was used since the last reset", "[autumn][check]") {
    Checked calendar(plan_of({monthly("chat", 10)}));
    calendar.use(february, 9);
    calendar.use(march, 4);
    auto check = calendar.ask(6);
    CHECK(check.allowed);
    CHECK(check.reason.empty());
    CHECK(check.feature == "chat");
    CHECK(check.required == 6);
    CHECK(check.granted == 10);
    CHECK(check.usage == 4);
    CHECK(check.balance == 6);
    CHECK(check.overage.is_zero());
    CHECK_FALSE(check.unlimited);
    CHECK_FALSE(check.overage_allowed);
    CHECK(check.next_reset == Timestamp::parse("2026-04-01"));
    check = calendar.ask(Decimal("6.0000001"));
    CHECK_FALSE(check.allowed);
    CHECK(check.reason == "insufficient_balance");
    CHECK(calendar.ask(-1).allowed);
    CHECK(calendar.m.check({.name = "chat", .customer = "other"}).balance == 10);
    CHECK(check.to_json() == json{{"allowed", false},
                                  {"reason", "insufficient_balance"},
                                  {"feature", "chat"},
                                  {"required", "6.0000001"},
                                  {"flag", false},
                                  {"unlimited", false},
                                  {"overage_allowed", false},
                                  {"granted", "10"},
                                  {"usage", "4"},
                                  {"balance", "6"},
                                  {"overage", "0"},
                                  {"overage_limit", nullptr},
                                  {"usage_limit_left", nullptr},
                                  {"next_reset", "2026-04-01T00:00:00Z"}});

    // From a 31st on: since 28 February, until 31 March.
    Checked anchored(
        plan_of({monthly("chat", 10)}, {}, {{"customers", {{{"id", "acme"}, {"subscriptions", list_of(subscribed("2026-01-31T06:00:00Z"))}}}}}));
    anchored.use(february, 9);
    anchored.use("2026-02-28T05:59:59Z", 1);
    anchored.use("2026-02-28T06:00:00Z", 2);
    anchored.use(march, 4);
    CHECK(anchored.ask(1).usage == 6);
    CHECK(anchored.ask(1).next_reset == Timestamp::parse("2026-03-31T06:00:00Z"));
    CHECK_THROWS_WITH(anchored.m.check({.name = "chat", .customer = "other"}), "customer: no book that is loaded has it");
}

TEST_CASE("A subscription begins, ends, and moves its cycles", "[autumn][check]") {
    auto subscription = subscribed("2026-02-28T12:00:00Z");
    const auto checked = [&](json changes) {
        auto changed = subscription;
        changed.update(changes);
        Checked one(plan_of({monthly("chat", 10)}, {}, {{"customers", {{{"id", "acme"}, {"subscriptions", list_of(changed)}}}}}));
        one.use(february, 1);
        one.use(march, 2);
        one.use("2026-03-09T00:00:00Z", 4);
        return one.ask(1);
    };
    CHECK(checked(json::object()).usage == 6);
    CHECK(checked({{"quantity", 3}}).granted == 30);
    CHECK(checked({{"current_period_start", "2026-03-05T00:00:00Z"}}).usage == 4);
    CHECK(checked({{"current_period_start", "2026-03-05T00:00:00Z"}}).next_reset == Timestamp::parse("2026-04-05"));
    for (const json& change : {json{{"expires_at", "2026-03-10T12:00:00Z"}}, json{{"started_at", "2026-03-11T00:00:00Z"}}, json{{"plan_id", "other"}},
                               json{{"status", "scheduled"}}}) {
        const auto check = checked(change);
        CHECK_FALSE(check.allowed);
        CHECK(check.reason == "no_balance");
    }
}

TEST_CASE("Credits pay when a feature's own balance does not", "[autumn][check]") {
    const json system{{"id", "credits"}, {"type", "credit_system"}, {"credit_schema", {{{"metered_feature_id", "chat"}, {"credit_cost", "0.2"}}}}};
    Checked one(plan_of({monthly("chat", 10), monthly("credits", 4)}, {system}));
    CHECK(one.ask(10).feature == "chat");
    one.use(march, 25);  // 10 of its own, 15 x 0.2 credits
    CHECK(one.ask(1, "credits").balance == 1);
    auto check = one.ask(1);
    CHECK(check.allowed);
    CHECK(check.feature == "credits");
    CHECK(check.required == Decimal("0.2"));
    CHECK(check.balance == 1);
    CHECK(one.ask(5).allowed);  // which credit system answers is asked in units of the feature, the answer is in credits
    CHECK(one.ask(5).required == 1);
    CHECK(one.ask(6).reason == "insufficient_balance");
    CHECK(one.ask(1, "credits").usage == 3);
}

TEST_CASE("Overage goes on up to its limit", "[autumn][check]") {
    const json item{{"feature_id", "chat"}, {"included", 10}, {"price", overage_price({{"max_purchase", 5}})}};
    Checked one(plan_of({item}));
    one.use(march, 12);
    auto check = one.ask(3);
    CHECK(check.allowed);
    CHECK(check.overage_allowed);
    CHECK(check.balance.is_zero());
    CHECK(check.overage == 2);
    CHECK(check.usage == 12);
    CHECK(check.overage_limit == Decimal(5));
    CHECK_FALSE(one.ask(4).allowed);
    one.use(march, 12);  // 3 of them
    CHECK(one.ask(1).overage == 5);
    CHECK(one.m.usage({.customer = "acme"}).amount_cents == 500);

    auto unlimited = item;
    unlimited["price"]["max_purchase"] = 0;
    CHECK(Checked(plan_of({unlimited})).ask(1000).allowed);
    CHECK_FALSE(Checked(plan_of({unlimited})).ask(1).overage_limit);

    const auto limited = [&](json controls) {
        auto source = plan_of({unlimited});
        source["plan"]["billing_controls"] = std::move(controls);
        return Checked(source).ask(13).allowed;
    };
    const auto spend = [](bool enabled, int limit, const char* type = "absolute") {
        return json{{"spend_limits", {{{"feature_id", "chat"}, {"enabled", enabled}, {"overage_limit", limit}, {"limit_type", type}}}}};
    };
    CHECK_FALSE(limited(spend(true, 2)));
    CHECK(limited(spend(true, 3)));
    CHECK(limited(spend(false, 2)));
    CHECK_FALSE(limited(spend(true, 29, "usage_percentage")));
    CHECK(limited(spend(true, 30, "usage_percentage")));
    CHECK_FALSE(limited({{"overage_allowed", {{{"feature_id", "chat"}, {"enabled", false}}}}}));

    auto allowed = plan_of({monthly("chat", 10)});
    CHECK_FALSE(Checked(allowed).ask(13).allowed);
    allowed["plan"]["billing_controls"]["overage_allowed"] = {{{"feature_id", "chat"}, {"enabled", true}}};
    CHECK(Checked(allowed).ask(13).allowed);
}

TEST_CASE("Usage limits hold in their windows, for the events they name", "[autumn][check]") {
    const auto limit = [](json more) {
        json entry{{"feature_id", "chat"}, {"limit", 5}, {"interval", "day"}, {"anchor", "utc"}};
        entry.update(more);
        return json{{"usage_limits", list_of(entry)}};
    };
    const json customer{{"id", "acme"}, {"subscriptions", list_of(subscribed("2026-01-31T06:00:00Z"))}};
    const auto checked = [&](const json& controls, const Decimal& units, json properties = {{"model", "large"}}) {
        auto limited = customer;
        limited["billing_controls"] = controls;
        Checked one(plan_of({monthly("chat", 100)}, {}, {{"customers", list_of(limited)}}));
        one.use("2026-03-10T01:00:00Z", 2, "chat", "", {{"model", "large"}});
        one.use("2026-03-10T07:00:00Z", 1, "chat", "", {{"model", 5}});
        return one.ask(units, "chat", "", std::move(properties));
    };
    CHECK(checked(limit(json::object()), 2).allowed);
    CHECK(checked(limit(json::object()), 3).reason == "usage_limit");
    CHECK(checked(limit(json::object()), 3).usage_limit_left == Decimal(2));
    CHECK(checked(limit({{"anchor", "billing_cycle"}}), 4).allowed);  // days from 6:00
    CHECK(checked(limit({{"enabled", false}}), 50).allowed);
    CHECK(checked(limit({{"interval", "lifetime"}}), 3).reason == "usage_limit");
    const auto large = limit({{"filter", {{"properties", {{"model", "large"}}}}}});
    CHECK(checked(large, 3).allowed);
    CHECK(checked(large, 4).reason == "usage_limit");
    CHECK(checked(large, 4, {{"model", "small"}}).allowed);
    CHECK(checked(large, 4, json::object()).allowed);
    CHECK(checked(limit({{"filter", {{"properties", {{"model", "5"}}}}}}), 5, {{"model", 5}}).usage_limit_left == Decimal(4));
    CHECK(checked(limit({{"filter", {{"properties", {{"model", "5.0"}}}}}}), 5, {{"model", "5.0"}}).usage_limit_left == Decimal(5));
}

TEST_CASE("A credit system's check keeps to the limits of the feature, too", "[autumn][check]") {
    const json system{{"id", "credits"}, {"credit_schema", {{{"metered_feature_id", "chat"}, {"credit_cost", 2}}}}};
    auto source = plan_of({monthly("credits", 100)}, {system});
    source["plan"]["billing_controls"]["usage_limits"] = {{{"feature_id", "chat"}, {"limit", 7}, {"interval", "month"}},
                                                          {{"feature_id", "credits"}, {"limit", 30}, {"interval", "month"}}};
    Checked one(source);
    one.use(march, 3);
    auto check = one.ask(4);
    CHECK(check.allowed);
    CHECK(check.required == 8);
    CHECK(check.usage_limit_left == Decimal(8));  // 4 of chat x 2, less than 30 - 3 x 2 credits
    CHECK(one.ask(5).reason == "usage_limit");
    CHECK(one.ask(24, "credits").allowed);
    CHECK(one.ask(25, "credits").reason == "usage_limit");
}

TEST_CASE("Boolean and unlimited features are allowed where the plan has them", "[autumn][check]") {
    Checked one(plan_of({{{"feature_id", "sso"}}, {{"feature_id", "chat"}, {"unlimited", true}}},
                        {{{"id", "sso"}, {"type", "boolean"}}, {{"id", "audit"}, {"type", "boolean"}}, {{"id", "image"}, {"type", "metered"}}}));
    CHECK(one.ask(1, "sso").allowed);
    CHECK(one.ask(1, "sso").flag);
    CHECK_FALSE(one.ask(1, "audit").allowed);
    CHECK(one.ask(1, "image").reason == "no_balance");
    one.use(march, 1000);
    CHECK(one.ask(1000).allowed);
    CHECK(one.ask(1000).unlimited);
    CHECK(one.ask(1000).usage == 1000);
    CHECK(one.m.usage({.customer = "acme"}).fees.size() == 1);
}

TEST_CASE("What lasts pays after what is reset, month after month", "[autumn][check]") {
    const json packs{{"feature_id", "chat"},
                     {"quantity", 100},
                     {"price", {{"amount", 5}, {"interval", "one_off"}, {"billing_units", 50}, {"billing_method", "prepaid"}}}};
    Checked one(plan_of({packs, monthly("chat", 10)}));
    one.use("2026-01-05T00:00:00Z", 30);  // 20 beyond January's
    one.use("2026-02-05T00:00:00Z", 4);   // the rest of February's is lost
    one.use(march, 12);
    CHECK(one.ask(78).balance == 78);
    CHECK(one.ask(78).allowed);
    CHECK_FALSE(one.ask(79).allowed);
    CHECK(one.ask(1).next_reset == Timestamp::parse("2026-04-01"));
    CHECK(one.m.usage({.customer = "acme"}).amount_cents == 1000);  // two packs
}

TEST_CASE("The balances of several plans stand together", "[autumn][check]") {
    json packs{{"feature_id", "chat"}, {"included", 5}, {"reset", {{"interval", "month"}}}};
    const auto limit = [](int units, const char* interval) {
        return json{{"usage_limits", list_of({{"feature_id", "chat"}, {"limit", units}, {"interval", interval}})}};
    };
    json main{
        {"id", "pro"}, {"items", {{{"feature_id", "chat"}, {"included", 10}, {"price", overage_price()}}}}, {"billing_controls", limit(90, "month")}};
    json extra{{"id", "extra"}, {"add_on", true}, {"items", list_of(packs)}, {"billing_controls", limit(2, "day")}};
    json source{{"plans", {extra, main}}};
    Checked all(source);
    all.use(march, 12);
    CHECK(all.ask(1).granted == 15);
    CHECK(all.ask(1).balance == 3);
    CHECK(all.ask(2).usage_limit_left == Decimal(2));  // a day; 90 a month are 3
    CHECK(all.m.usage({.customer = "acme"}).fees.size() == 2);
    CHECK(all.m.usage({.customer = "acme"}).fees.at(0).units == 2);  // the main plan pays first
    CHECK(all.m.usage({.customer = "acme"}).amount_cents.is_zero());
    CHECK(all.m.books().at(0).book.code() == "extra");

    source["id"] = "both";
    source["customers"] = {{{"id", "acme"}, {"subscriptions", list_of(subscribed("2026-01-01"))}}};
    Checked one(source);
    one.use(march, 12);
    CHECK(one.ask(1).granted == 10);
    CHECK(one.ask(78).allowed);
    CHECK(one.ask(79).reason == "usage_limit");
    CHECK(one.m.books().at(0).book.code() == "both");
    source["plans"][1]["id"] = "extra";
    CHECK_THROWS_WITH(Book::autumn(source), "plans[1].id: is there twice");
}

TEST_CASE("A request's tokens cost what its model does, with a markup", "[autumn]") {
    const json models{{"acme",
                       {{"models",
                         {{"plain", {{"cost", {{"input", 10}, {"output", 20}}}}},
                          {"vendor/deep",
                           {{"cost",
                             {{"input", 1},
                              {"output", 2},
                              {"cache_read", "0.5"},
                              {"output_audio", 7},
                              {"reasoning", 9},
                              {"tiers",
                               {{{"input", 4}, {"output", 8}, {"tier", {{"size", 400000}}}},
                                {{"input", 2}, {"output", 4}, {"cache_read", 1}, {"tier", {{"size", 200000}}}}}}}}}},
                          {"free", {{"name", "without prices"}}},
                          {"wide", {{"cost", {{"input", 1}, {"output", 1}, {"context_over_200k", {{"input", 3}, {"output", 5}}}}}}}}}}}};
    json system{{"id", "ai"},
                {"type", "ai_credit_system"},
                {"model_markups", {{"custom/own", {{"input_cost", 1000}, {"output_cost", 2000}, {"markup", 50}}}, {"acme/plain", {{"markup", 0}}}}}};
    const auto cost = [&](const char* model, json request) {
        request["model_id"] = model;
        return Book::autumn(plan_of({monthly("ai", 10)}, {system}, {{"models", models}})).price_tokens(request).amount.to_string();
    };
    CHECK(cost("acme/plain", {{"input_tokens", 1000}, {"output_tokens", 500}}) == "0.02");
    CHECK(cost("acme/plain", {{"cache_read_tokens", 1000}, {"cache_write_tokens", 100}, {"reasoning_tokens", 10}, {"audio_output_tokens", 1}}) ==
          "0.01122");
    CHECK(cost("custom/own", {{"input_tokens", 1000}, {"output_tokens", 500}, {"reasoning_tokens", 99}}) == "3");
    const char* const deep = "acme/vendor/deep";
    CHECK(cost(deep, {{"input_tokens", 200000}, {"output_tokens", 10}}) == "0.20002");
    CHECK(cost(deep, {{"input_tokens", 199999}, {"cache_read_tokens", 2}}) == "0.4");
    CHECK(cost(deep, {{"input_tokens", 400001}, {"output_tokens", 1}, {"audio_output_tokens", 2}, {"reasoning_tokens", 3}}) == "1.600053");
    CHECK(cost("acme/wide", {{"input_tokens", 200001}}) == "0.600003");
    system["default_markup"] = 10;
    CHECK(cost("acme/wide", {{"input_tokens", 100}}) == "0.00011");
    system["config"] = {{"provider_markups", {{"acme", {{"markup", -100}}}}}};
    CHECK(cost("acme/wide", {{"input_tokens", 100}}) == "0");
    CHECK(cost("acme/plain", {{"input_tokens", 100}}) == "0.001");

    Meter m({.clock = [] { return march_10; }});
    const auto book = Book::autumn(plan_of({monthly("ai", 10)}, {system}, {{"models", models}}));
    m.load(book);
    const auto fee = book.price_tokens({{"model_id", "custom/own"}, {"input_tokens", 1000}, {"output_tokens", 500}});
    CHECK(fee.charge == "ai");
    REQUIRE(fee.lines.size() == 3);
    CHECK(fee.lines[0].amount + fee.lines[1].amount + fee.lines[2].amount == fee.amount);
    m.record(Event{.name = "ai", .customer = "acme", .value = fee.amount});
    CHECK(m.check({.name = "ai", .customer = "acme"}).balance == 7);

    const auto refused = [&](const Book& asked, const json& request) { return refusal([&] { asked.price_tokens(request); }); };
    CHECK(refused(book, {{"model_id", "acme/none"}}) == "bad_value model_id: invalid_request");
    CHECK(refused(book, {{"model_id", "acme/free"}}) == "bad_value model_id: invalid_request");
    CHECK(refused(book, {{"model_id", "custom/none"}}) == "bad_value model_id: invalid_request");
    CHECK(refused(book, json::object()) == "bad_value model_id: is required");
    CHECK(refused(book, {{"model_id", "acme/plain"}, {"input_tokens", 1.5}}) == "bad_value input_tokens: must be a whole number, and not negative");
    CHECK(refused(book, {{"model_id", "acme/plain"}, {"feature_id", "chat"}}) == "not_found feature_id: feature_not_found");
    const auto plain = Book::autumn(plan_of({monthly("chat", 10)}));
    CHECK(refused(plain, {{"model_id", "acme/plain"}}) == "not_found feature_id: feature_not_found");
    CHECK(refused(plain, {{"model_id", "acme/plain"}, {"feature_id", "chat"}}) == "bad_value feature_id: invalid_request");
    auto other = system;
    other["id"] = "more";
    CHECK(refused(Book::autumn(plan_of({monthly("ai", 10)}, {system, other})), {{"model_id", "acme/plain"}}) ==
          "bad_value feature_id: invalid_request");
}

TEST_CASE("An unlimited balance pays for all, and a unit of a credit system costs at least something", "[autumn][check]") {
    json endless = monthly("credits", 0);
    endless["unlimited"] = true;
    const json system{{"id", "credits"}, {"credit_schema", {{{"metered_feature_id", "chat"}, {"credit_cost", 0}}}}};
    Checked unlimited(plan_of({monthly("chat", 10), endless}, {system}));
    unlimited.use(march, 4);
    CHECK(unlimited.ask(1).balance == 10);
    Checked counted(plan_of({monthly("credits", 10)}, {system}));
    counted.use(march, 4);
    CHECK(counted.ask(1, "credits").balance == 6);
}

TEST_CASE("Balances of a feature share its spend limit", "[autumn][check]") {
    json source = plan_of({{{"feature_id", "chat"}, {"included", 2}, {"price", overage_price()}}});
    source["plan"]["billing_controls"] = {{"spend_limits", {{{"feature_id", "chat"}, {"enabled", true}, {"overage_limit", 5}}}}};
    source["plans"] = {source["plan"], {{"id", "more"}, {"add_on", true}, {"items", source["plan"]["items"]}}};
    source.erase("plan");
    Checked one(source);
    one.use(march, 7);
    CHECK(one.ask(2).allowed);
    CHECK_FALSE(one.ask(3).allowed);
    one.use("2026-03-02T00:00:00Z", 7);
    CHECK(one.ask(1).overage == 5);
    CHECK(one.ask(1).usage == 9);
    CHECK(one.m.usage({.customer = "acme"}).amount_cents == 500);
}

TEST_CASE("Of balances that are alike the older pays first", "[autumn]") {
    json source = plan_of({monthly("chat", 10)});
    source["plans"] = {source["plan"], {{"id", "old"}, {"items", {monthly("chat", 5)}}}};
    source.erase("plan");
    auto old = subscribed("2025-01-01");
    old["plan_id"] = "old";
    source["customers"] = {{{"id", "acme"}, {"subscriptions", {subscribed("2026-01-01"), old}}}};
    Checked one(source);
    one.use(march, 6);
    const auto fees = one.m.usage({.customer = "acme"}).fees;
    REQUIRE(fees.size() == 2);
    CHECK(fees[0].units == 1);
    CHECK(fees[1].units == 5);
}

TEST_CASE("Refunds give back what was taken, and no more", "[autumn][check]") {
    Checked one(plan_of({monthly("chat", 10)}));
    one.use("2026-03-01T00:00:00Z", -5);  // there is nothing to give back
    one.use("2026-03-02T00:00:00Z", 14);  // 4 are dropped
    one.use("2026-03-03T00:00:00Z", -3);
    CHECK(one.ask(1).balance == 3);
    CHECK(one.ask(1).usage == 7);
}

namespace {

// Three balances by hand: a month's units, units bought once, and a month's credits at 0.5 a unit with 3 credits of overage.
struct ByHand {
    Decimal month = 10, once = 40, credits = 8;

    void reset() { month = 10, credits = 8; }
    void use(Decimal units) {
        const auto take = [&](Decimal& balance, const Decimal& floor, const Decimal& cost) {
            const auto taken = std::clamp(balance - floor, Decimal(), units * cost);
            balance -= taken;
            units -= taken * (cost == 1 ? 1 : 2);
        };
        take(month, 0, 1);
        take(once, 0, 1);
        take(credits, 0, Decimal("0.5"));
        take(credits, -3, Decimal("0.5"));
    }
    void give(Decimal units) {
        const auto raise = [&](Decimal& balance, const Decimal& ceiling, const Decimal& cost) {
            const auto given = std::clamp(ceiling - balance, Decimal(), units * cost);
            balance += given;
            units -= given * (cost == 1 ? 1 : 2);
        };
        raise(credits, 0, Decimal("0.5"));
        raise(month, 10, 1);
        raise(once, 40, 1);
        raise(credits, 8, Decimal("0.5"));  // and what is still left is lost, though overage is allowed
    }
};

}  // namespace

TEST_CASE("Balances are what taking event by event leaves", "[autumn][check]") {
    const std::uint64_t seed = std::random_device{}();
    CAPTURE(seed);
    std::mt19937_64 random(seed);
    const json system{{"id", "credits"}, {"credit_schema", {{{"metered_feature_id", "chat"}, {"credit_cost", "0.5"}}}}};
    const json once{{"feature_id", "chat"}, {"quantity", 40}, {"price", {{"amount", 1}, {"interval", "one_off"}, {"billing_method", "prepaid"}}}};
    const json paid{{"feature_id", "credits"}, {"included", 8}, {"price", overage_price({{"max_purchase", 3}})}};
    for (int round = 0; round < 40; ++round) {
        Checked one(plan_of({paid, once, monthly("chat", 10)}, {system}));
        ByHand hand;
        Timestamp time = Timestamp::parse("2026-01-02");
        auto month = this_month(time);
        std::vector<Event> events;
        for (int i = 0; i < 30; ++i) {
            time = time + std::chrono::minutes(random() % 6000);
            if (time >= march_10) break;
            for (; time >= month.to; month = this_month(time)) hand.reset();
            Event used{.id = std::to_string(i), .name = "chat", .customer = "acme", .timestamp = time};
            const auto units = static_cast<int>(random() % 12) - 3;
            if (units != 0) used.value = units;  // without a value it is 1
            events.push_back(used);
            units < 0 ? hand.give(-units) : hand.use(units == 0 ? 1 : units);
        }
        if (month.to <= march_10) hand.reset();
        one.m.record(events);
        CAPTURE(round, events.size());
        const auto own = one.ask(0), credits = one.ask(0, "credits");
        REQUIRE(own.balance == hand.month + hand.once);
        REQUIRE(credits.balance == std::max(hand.credits, Decimal()));
        REQUIRE(credits.overage == std::max(-hand.credits, Decimal()));
    }
}

TEST_CASE("Entities have balances of their own where the plan or they say so", "[autumn][check]") {
    json seat_item = monthly("chat", 10);
    seat_item["entity_feature_id"] = "seats";
    Checked seats(plan_of({seat_item, monthly("image", 20)}));
    seats.use(march, 4, "chat", "ann");
    seats.use(march, 13, "chat", "bob");
    seats.use(march, 5, "image", "bob");
    CHECK(seats.ask(1, "chat", "ann").balance == 6);
    CHECK_FALSE(seats.ask(1, "chat", "bob").allowed);
    CHECK(seats.ask(1, "chat", "new").balance == 10);
    CHECK(seats.ask(1, "chat").balance == 6);  // all entities together
    CHECK(seats.ask(1, "chat").granted == 20);
    CHECK(seats.ask(1, "image", "ann").balance == 15);  // shared

    const json team{{"id", "acme"},
                    {"subscriptions", list_of(subscribed("2026-01-01"))},
                    {"entities", {{{"id", "ann"}, {"feature_id", "seats"}}, {{"id", "door"}, {"feature_id", "devices"}}, {{"id", "bob"}}}}};
    CHECK(Checked(plan_of({seat_item}, {}, {{"customers", list_of(team)}})).ask(1).granted == 20);  // a device is no seat

    const json pro = subscribed("2026-01-01");
    const json ann{
        {"id", "ann"}, {"subscriptions", list_of(pro)}, {"billing_controls", {{"overage_allowed", {{{"feature_id", "chat"}, {"enabled", true}}}}}}};
    const json customer{{"id", "acme"}, {"subscriptions", list_of(pro)}, {"entities", {ann, {{"id", "bob"}}}}};
    Checked own(plan_of({monthly("chat", 10)}, {}, {{"customers", list_of(customer)}}));
    own.use(march, 12, "chat", "ann");  // her own 10, then 2 that all share
    own.use(march, 1, "chat", "bob");
    CHECK(own.ask(1, "chat", "ann").balance == 7);
    CHECK(own.ask(100, "chat", "ann").allowed);
    CHECK(own.ask(7, "chat", "bob").allowed);
    CHECK_FALSE(own.ask(8, "chat", "bob").allowed);
}

TEST_CASE("Two thousand entities are followed in a moment", "[autumn][check]") {
    json item = monthly("chat", 10);
    item["entity_feature_id"] = "seats";
    Checked one(
        plan_of({item, monthly("credits", 50000)}, {{{"id", "credits"}, {"credit_schema", {{{"metered_feature_id", "chat"}, {"credit_cost", 2}}}}}}));
    std::vector<Event> events;
    for (int i = 0; i < 4000; ++i)
        events.push_back(
            {.name = "chat", .customer = "acme", .subscription = std::to_string(i / 2), .timestamp = Timestamp::parse(march), .value = 6});
    one.m.record(events);
    CHECK(one.ask(1).granted == 50000);  // of 10 each 6 and 4, and 2 x 2 credits
    CHECK(one.ask(1, "credits").balance == 50000 - 2000 * 4);
    CHECK(one.ask(1, "chat", "new").balance == 10);
}

TEST_CASE("Autumn's bills follow the subscription's cycle, and entities pay together", "[autumn]") {
    json item{{"feature_id", "chat"}, {"included", 10}, {"entity_feature_id", "seats"}, {"price", overage_price({{"billing_units", 10}})}};
    Checked one(plan_of({item}, {}, {{"customers", {{{"id", "acme"}, {"subscriptions", list_of(subscribed("2026-01-20T00:00:00Z"))}}}}}));
    one.use("2026-02-19T00:00:00Z", 1000);
    one.use("2026-02-20T00:00:00Z", 14, "chat", "ann");
    one.use(march, 13, "chat", "bob");
    const auto fees = one.m.usage({.customer = "acme"});
    REQUIRE(fees.fees.size() == 1);
    CHECK(fees.fees[0].period == Period{Timestamp::parse("2026-02-20"), Timestamp::parse("2026-03-20")});
    CHECK(fees.fees[0].units == 27);
    CHECK(fees.amount_cents == 100);  // 4 and 3 beyond: one package of 10
    CHECK(one.m.usage({.subscription = "ann", .customer = "acme"}).fees.at(0).units == 14);
    CHECK(one.m.usage({.customer = "acme", .period = Period{Timestamp::parse("2026-02-01"), march_10}}).fees.at(0).units == 1027);
    const Event more{.name = "chat", .customer = "acme", .subscription = "bob", .value = 4};
    CHECK(one.m.estimate_fees(more).amount_cents == 100);
    one.use(march, 3, "chat", "bob");
    CHECK(one.m.estimate_fees(more).amount_cents == 100);
    one.use(march, 1, "chat", "bob");
    CHECK(one.m.estimate_fees(more).amount_cents.is_zero());
}

TEST_CASE("An event name uses every feature that names it", "[autumn][check]") {
    Checked one(plan_of({monthly("chat", 10), monthly("calls", 3)},
                        {{{"id", "chat"}, {"event_names", {"message", "chat"}}}, {{"id", "calls"}, {"event_names", {"message"}}}}));
    one.use(march, 2, "message");
    one.use(march, 1, "chat");
    CHECK(one.ask(1).balance == 7);
    CHECK(one.ask(1, "calls").balance == 1);
    CHECK_THROWS_WITH(one.ask(1, "message"), "name: no book with balances knows the feature message");
}

TEST_CASE("A check without a book, a customer or a feature is an error", "[autumn][check]") {
    Meter m;
    CHECK_THROWS_WITH(m.check({.name = "chat"}), "customer: is required");
    CHECK_THROWS_WITH(m.check({.name = "chat", .customer = "acme"}), "customer: no book that is loaded has it");
    m.load(Book::polar({{"product", {{"id", "p"}, {"prices", {{{"meter_id", "m"}, {"unit_amount", "1"}}}}}},
                        {"meters",
                         {{{"id", "m"},
                           {"filter", {{"conjunction", "and"}, {"clauses", {{{"property", "name"}, {"operator", "eq"}, {"value", "chat"}}}}}},
                           {"aggregation", {{"func", "count"}}}}}}}));
    CHECK_THROWS_WITH(m.check({.name = "chat", .customer = "acme"}), "customer: is priced by a book of polar, which has no balances; Autumn's have");
    try {
        m.check({.name = "chat", .customer = "acme"});
    } catch (const Error& error) {
        CHECK(error.code() == ErrorCode::unsupported);
    }
    m.load(Book::autumn(plan_of({monthly("chat", 10)})));
    CHECK(m.check({.name = "chat", .customer = "acme"}).allowed);
    // Of two plans the one that has the feature, and allows it.
    auto other = plan_of({monthly("image", 1)});
    other["plan"]["id"] = "add_on";
    m.load(Book::autumn(other));
    CHECK(m.check({.name = "image", .customer = "acme"}).allowed);
    CHECK(m.check({.name = "chat", .customer = "acme"}).balance == 10);
}

TEST_CASE("Autumn's catalogues are refused where they cannot be", "[autumn][check]") {
    const auto refused = [](const json& source) -> std::string {
        try {
            Book::autumn(source);
        } catch (const Error& error) {
            return error.what();
        }
        return "accepted";
    };
    const auto item = [&](json changes) {
        auto changed = monthly("chat", 10);
        changed.update(changes);
        return refused(plan_of({changed}));
    };
    CHECK(item({{"reset", {{"interval", "fortnight"}}}}) == "plan.items[0].reset.interval: is not known: fortnight");
    CHECK(item({{"reset", {{"interval", "day"}, {"interval_count", 0}}}}) ==
          "plan.items[0].reset.interval_count: must be a whole number from 1 to 1000");
    CHECK(item({{"included", -1}}) == "plan.items[0].included: must be from 0 to 10^13");
    CHECK(item({{"included", 10000000000000}}) == "accepted");
    CHECK(item({{"quantity", -1}}) == "plan.items[0].quantity: must not be negative");
    CHECK(item({{"included", 10000000000001}}) == "plan.items[0].included: must be from 0 to 10^13");
    CHECK(item({{"price", overage_price({{"interval", "year"}})}}) ==
          "plan.items[0].price.interval: may differ from the reset's for prepaid items only");
    CHECK(item({{"price", overage_price({{"interval", "year"}, {"billing_method", "prepaid"}})}}) == "accepted");
    CHECK(item({{"price", overage_price()}, {"proration", {{"on_increase", "charge_immediately"}}}}) ==
          "plan.items[0].proration: is for prepaid items only");
    const auto schema = [&](json entry) { return refused(plan_of({monthly("ai", 1)}, {{{"id", "ai"}, {"credit_schema", list_of(entry)}}})); };
    CHECK(schema({{"metered_feature_id", "chat"}, {"credit_cost", -1}}) == "features[0].credit_schema[0].credit_cost: must not be negative");
    CHECK(schema({{"metered_feature_id", "chat"}, {"credit_amount", 1}, {"feature_amount", 0}}) ==
          "features[0].credit_schema[0].feature_amount: must be above 0");
    CHECK(schema({{"credit_cost", 1}}) == "features[0].credit_schema[0].metered_feature_id: is required");
    CHECK(item({{"price", overage_price({{"max_purchase", -1}})}}) == "plan.items[0].price.max_purchase: must not be negative");
    CHECK(refused(plan_of({})) == "plan: has no items");
    CHECK(refused(plan_of({monthly("chat", 1)}, {{{"id", "chat"}}, {{"id", "chat"}}})) == "features[1].id: is there twice");
    const auto customer = [&](json changes) {
        json one{{"id", "acme"}, {"subscriptions", list_of(subscribed("2026-01-01"))}};
        one.update(changes);
        return refused(plan_of({monthly("chat", 1)}, {}, {{"customers", list_of(one)}}));
    };
    CHECK(customer({{"id", ""}}) == "customers[0].id: is required");
    CHECK(customer({{"subscriptions", {{{"plan_id", "pro"}, {"started_at", -1}}}}}) ==
          "customers[0].subscriptions[0].started_at: must be milliseconds since 1970");
    CHECK(customer({{"subscriptions", {{{"plan_id", "pro"}, {"quantity", -1}}}}}) == "customers[0].subscriptions[0].quantity: must not be negative");
    const auto control = [&](const char* list, json entry) { return customer({{"billing_controls", {{list, list_of(entry)}}}}); };
    CHECK(customer({{"billing_controls", 7}}) == "customers[0].billing_controls: must be an object");
    const auto tokens = [&](json changes, json models = json::object()) {
        json system{{"id", "ai"}, {"type", "ai_credit_system"}};
        system.update(changes);
        return refused(plan_of({monthly("ai", 1)}, {system}, {{"models", models}}));
    };
    CHECK(tokens({{"default_markup", -101}}) == "features[0].default_markup: must not be below -100");
    CHECK(tokens({{"config", 7}}) == "features[0].config: must be an object");
    CHECK(tokens({{"model_markups", {{"custom/m", {{"input_cost", -1}}}}}}) == "features[0].model_markups.custom/m.input_cost: must not be negative");
    CHECK(tokens(json::object(), {{"acme", {{"models", {{"m", 7}}}}}}) == "models.acme.models.m.cost: must be an object");
    CHECK(tokens(json::object(), {{"acme", {{"models", {{"m", {{"cost", {{"input", 1}}}}}}}}}}) == "models.acme.models.m.cost.output: is required");
    const std::string at = "customers[0].billing_controls.";
    CHECK(control("usage_limits", {{"limit", 1}, {"interval", "day"}}) == at + "usage_limits[0].feature_id: is required");
    CHECK(control("usage_limits", {{"feature_id", "chat"}, {"interval", "day"}}) == at + "usage_limits[0].limit: must be a number, and not negative");
    CHECK(control("usage_limits", {{"feature_id", "chat"}, {"limit", 1}, {"interval", "eon"}}) == at + "usage_limits[0].interval: is not known: eon");
    CHECK(control("usage_limits", {{"feature_id", "chat"}, {"limit", 1}, {"interval", "day"}, {"filter", {{"properties", {{"a", {1}}}}}}}) ==
          at + "usage_limits[0].filter.properties.a: must be text, a number or a boolean");
    CHECK(control("spend_limits", {{"feature_id", "chat"}, {"overage_limit", -1}}) == at + "spend_limits[0].overage_limit: must not be negative");
    CHECK(control("overage_allowed", {{"feature_id", "chat"}, {"enabled", 1}}) == at + "overage_allowed[0].enabled: must be true or false");
}

// --- Autumn's analytics ---

namespace {

const json two_features = plan_of({monthly("chat", 10), monthly("image", 10)});

AnalyticsQuery autumn_query(AnalyticsQuery query) {
    query.metrics = {"autumn:chat", "autumn:image"};
    query.customer = "acme";
    query.rules = "autumn";
    return query;
}

/// What a point holds for each group name ("+" for the rest) in order, as "name=value".
std::vector<std::string> shown(const Analytics& answer, const std::string& metric, std::size_t bin) {
    std::vector<std::string> list;
    for (const auto& item : answer.items) {
        if (item.metric != metric) continue;
        const auto name = item.rest ? "+" : item.group.empty() ? "" : item.group[0].value();
        list.push_back(name + "=" + item.points.at(bin).usage.to_string());
    }
    return list;
}

}  // namespace

TEST_CASE("Autumn's analytics count by the hour, with a total that begins earlier", "[autumn][analytics]") {
    Checked one(two_features);
    one.use("2026-03-09T00:30:00Z", 1);
    one.use("2026-03-09T12:30:00Z", 2);  // an hour that begins after the range does
    one.use("2026-03-10T11:00:00Z", 4);
    const auto answer = one.m.analytics(autumn_query({.range = "24h", .bin = Bin::day}));
    REQUIRE(answer.items.size() == 2);
    CHECK(answer.items[0].metric == "autumn:chat");
    CHECK(answer.items[0].group.empty());
    REQUIRE(answer.items[0].points.size() == 2);
    CHECK(answer.items[0].points[0].start == Timestamp::parse("2026-03-09"));
    CHECK(shown(answer, "autumn:chat", 0) == std::vector<std::string>{"=2"});
    CHECK(shown(answer, "autumn:chat", 1) == std::vector<std::string>{"=4"});
    CHECK(shown(answer, "autumn:image", 1) == std::vector<std::string>{"=0"});
    CHECK(answer.items[0].usage == 6);
    CHECK(answer.items[0].events == 2);
    REQUIRE(answer.totals.size() == 1);
    CHECK(answer.totals[0].metric == "autumn:chat");
    CHECK(answer.totals[0].usage == 7);
    CHECK(answer.totals[0].events == 3);
    CHECK(answer.period.from == march_10 - std::chrono::hours(24));
    CHECK(one.m.analytics(autumn_query({.range = "24h", .bin = Bin::hour})).items[0].points.size() == 25);
    // Without a range it is a billing cycle, or a day when there is none.
    CHECK(one.m.analytics(autumn_query({})).items[0].points.size() == 2);
    const BillingCycle cycle{{Timestamp::parse("2026-03-05"), Timestamp::parse("2026-04-05")}};
    CHECK(one.m.analytics(autumn_query({.billing_cycle = cycle})).items[0].points.size() == 32);
}

TEST_CASE("Autumn's groups keep their names in the bins where they are among the greatest", "[autumn][analytics]") {
    Checked one(two_features);
    const auto use = [&](const char* time, int value, json region) { one.use(time, value, "chat", "", {{"region", std::move(region)}}); };
    use("2026-03-08T10:00:00Z", 5, "eu");
    use("2026-03-08T10:00:00Z", 3, "us");
    use("2026-03-08T10:00:00Z", 1, 7);
    use("2026-03-09T10:00:00Z", 2, "7");
    use("2026-03-09T10:00:00Z", 9, "");
    use("2026-03-09T10:00:00Z", 9, nullptr);
    const Period two_days{Timestamp::parse("2026-03-08"), Timestamp::parse("2026-03-10")};
    auto query = autumn_query({.period = two_days, .bin = Bin::day, .group_by = {"region"}, .top = 1});
    auto answer = one.m.analytics(query);
    CHECK(shown(answer, "autumn:chat", 0) == std::vector<std::string>{"7=0", "eu=5", "+=4"});
    CHECK(shown(answer, "autumn:chat", 1) == std::vector<std::string>{"7=2", "eu=0", "+=0"});
    CHECK(shown(answer, "autumn:image", 1) == std::vector<std::string>{"7=0", "eu=0", "+=0"});
    CHECK(answer.items.at(2).vendor == json{{"group", "AUTUMN_RESERVED"}});
    CHECK(answer.totals.at(0).usage == 29);
    query.filter = Filter::equals("region", "7");  // the number 7 is written so, too
    answer = one.m.analytics(query);
    CHECK(answer.totals.at(0).usage == 3);
    CHECK(answer.items.size() == 2);
    query.filter = Filter::equals("region", "7.0");
    CHECK(one.m.analytics(query).items.empty());
    CHECK(one.m.analytics(query).totals.empty());
}

TEST_CASE("Autumn's analytics are what a loop over the events makes of them", "[autumn][analytics]") {
    const std::uint64_t seed = std::random_device{}();
    CAPTURE(seed);
    std::mt19937_64 random(seed);
    const std::vector<std::pair<json, std::string>> groups{{"a", "a"}, {"b", "b"}, {5, "5"}, {true, "true"}, {"", ""}, {nullptr, ""}};
    const auto hours = [](std::int64_t count) { return std::chrono::hours(count); };
    Meter m({.chunk_events = 64, .clock = [] { return march_10; }});
    m.load(Book::autumn(two_features));
    const Timestamp monday = Timestamp::parse("2026-02-09");
    std::vector<std::pair<Event, std::string>> events;
    for (int i = 0; i < 400; ++i) {
        const auto& [value, name] = groups[random() % groups.size()];
        Event event{.id = std::to_string(i), .name = random() % 3 == 0 ? "image" : "chat", .customer = random() % 5 == 0 ? "other" : "acme"};
        event.timestamp = monday + std::chrono::minutes(random() % (28 * 24 * 60));
        if (random() % 4 != 0) event.value = Decimal::scaled(static_cast<std::int64_t>(random() % 1000) - 100, 2);
        event.properties = {{"k", value}};
        m.record(event);
        events.emplace_back(event, name);
    }
    for (int round = 0; round < 60; ++round) {
        const Timestamp from = monday + std::chrono::seconds(random() % (14 * 86400)), to = from + std::chrono::seconds(1 + random() % (16 * 86400));
        const auto choice = random() % 3;
        const Bin bin = std::array{Bin::hour, Bin::day, Bin::week}[choice];
        const int length = std::array{1, 24, 168}[choice];
        const bool grouped = random() % 3 != 0;
        const auto most = 1 + random() % 3;
        auto query = autumn_query({.period = Period{from, to + std::chrono::microseconds(1)}, .bin = bin});
        if (grouped) query.group_by = {"k"}, query.top = static_cast<std::int64_t>(most);
        const auto answer = m.analytics(query);
        const auto start_of = [&](Timestamp time) { return monday + hours((time - monday) / hours(length) * length); };
        const auto in_range = [&](const Event& event) {
            const Timestamp hour = monday + hours((*event.timestamp - monday) / hours(1));
            return event.customer == "acme" && from <= hour && hour <= to;
        };
        CAPTURE(round, from.to_string(), to.to_string(), length, grouped, most);
        for (const std::string feature : {"chat", "image"}) {
            std::map<Timestamp, std::map<std::string, Decimal>> sums;
            Decimal total;
            for (const auto& [event, name] : events) {
                if (event.name != feature || !in_range(event)) continue;
                total += event.value.value_or(1);
                if (!grouped || !name.empty()) sums[start_of(*event.timestamp)][grouped ? name : ""] += event.value.value_or(1);
            }
            for (const auto& each : answer.totals) {
                if (each.metric == "autumn:" + feature) REQUIRE(each.usage == total);
            }
            std::map<Timestamp, std::map<std::string, Decimal>> expected, got;
            for (const auto& [start, names] : sums) {
                std::vector<std::pair<std::string, Decimal>> order(names.begin(), names.end());
                std::stable_sort(order.begin(), order.end(), [](const auto& a, const auto& b) { return a.second > b.second; });
                for (std::size_t i = 0; i < order.size(); ++i) expected[start][i < most ? order[i].first : "+"] += order[i].second;
            }
            for (const auto& item : answer.items) {
                if (item.metric != "autumn:" + feature) continue;
                const auto name = item.rest ? "+" : grouped ? item.group.at(0).value() : "";
                REQUIRE(item.points.size() == static_cast<std::size_t>((start_of(to) - start_of(from)) / hours(length)) + 1);
                for (const auto& point : item.points) {
                    if (point.events > 0) got[point.start][name] = point.usage;
                    if (point.events == 0) REQUIRE(point.usage.is_zero());
                }
            }
            REQUIRE(got == expected);
        }
    }
}

TEST_CASE("What Autumn's analytics cannot be asked is refused by name", "[autumn][analytics]") {
    Checked one(two_features);
    const auto refused = [&](AnalyticsQuery query) -> std::string {
        try {
            one.m.analytics(autumn_query(std::move(query)));
        } catch (const Error& error) {
            return error.what();
        }
        return "answered";
    };
    const Period day{Timestamp::parse("2026-03-08"), Timestamp::parse("2026-03-09")};
    CHECK(refused({.period = day}) == "answered");
    CHECK(refused({.period = day, .range = "7d"}) == "range: does not go with a period");
    CHECK(refused({.range = "8d"}).starts_with("period: "));
    CHECK(refused({.period = Period{day.to, day.from}}) == "period: must end after it begins");
    CHECK(refused({.period = Period{}, .bin = Bin::hour}).starts_with("bin: the answer has more than"));
    CHECK(refused({.bin = Bin::minute}) == "bin: must be an hour, day, week or month");
    CHECK(refused({.group_by = {"a", "b"}}) == "group_by: must be one field");
    CHECK(refused({.top = 251}) == "top: must be from 1 to 250, or 0 for 9");
    CHECK(refused({.time_zone = "Europe/Paris"}) == "time_zone: must be UTC");
    CHECK(refused({.week_start = std::chrono::Sunday}) == "week_start: must be a Monday");
    CHECK(refused({.billing_anchor = march_10}) == "billing_anchor: is not known to these rules");
    auto unknown = autumn_query({});
    unknown.metrics = {"autumn:video"};
    CHECK_THROWS_AS(one.m.analytics(unknown), Error);
}

// --- what if, and bad input ---

TEST_CASE("a book prices any quantity without a log", "[books]") {
    const auto book = Book::lago(
        catalogue({{"charge_model", "package"}, {"code", "packs"}, {"properties", {{"amount", "5"}, {"package_size", 100}, {"free_units", 10}}}}));
    const auto fee = book.price("packs", 111);
    CHECK(fee.amount == 10);
    CHECK(fee.amount_cents == 1000);
    CHECK(fee.unit_amount == Decimal::divide_significant(10, 101, 32, Rounding::half_up));
    CHECK(book.price("packs", -1).amount.is_zero());
    CHECK_THROWS_AS(book.price("nothing", 1), Error);
    const auto percentage = Book::lago(catalogue(
        {{"charge_model", "percentage"}, {"code", "pct"}, {"properties", {{"rate", "1"}, {"fixed_amount", "2"}, {"free_units_per_events", 1}}}},
        tokens_metric));
    CHECK(percentage.price("pct", 400, 4).amount == 9);
    CHECK_THROWS_WITH(percentage.price("pct", 400, -1), "events: is out of range");
}

TEST_CASE("JSON of any shape is answered with an Error that names the place", "[books]") {
    const auto refused = [](std::string_view vendor, const char* text) -> std::string {
        try {
            Book::of(vendor, json::parse(text));
        } catch (const Error& error) {
            return error.field();
        }
        return "accepted";
    };
    for (const auto vendor : {"lago", "flexprice", "polar", "autumn"}) {
        for (const auto text : {"null", "[]", "1", "\"x\"", "{}", R"({"plan": 1, "product": [], "meters": {}, "prices": "x"})"}) {
            CAPTURE(vendor, text);
            CHECK(refused(vendor, text) != "accepted");
        }
    }
    CHECK(refused("lago", R"({"plan": {"code": "p", "amount_currency": "EUR"}, "billable_metrics": [1]})") == "billable_metrics[0].aggregation_type");
    CHECK(refused("lago", R"({"plan": {"code": "p", "amount_currency": "EUR"}, "billable_metrics": [{"code": "m", "aggregation_type": "count_agg",
                              "filters": [{"key": "k", "values": "x"}]}]})") == "billable_metrics[0].filters[0].values");
    CHECK(refused("lago", R"({"plan": {"code": "p", "amount_currency": "EUR"}, "billable_metrics": [{"code": "m", "aggregation_type": "count_agg",
                              "rounding_function": "round", "rounding_precision": 1e30}]})") == "billable_metrics[0].rounding_precision");
    CHECK(refused("flexprice",
                  R"({"meters": [{"id": "m", "event_name": "e", "aggregation": {"type": "COUNT"}, "filters": [{"key": "k", "values": [1]}]}]})") ==
          "meters[0].filters[0].values[0]");
    CHECK(refused("polar", R"({"product": {"id": "p"}, "meters": [{"id": "m", "aggregation": {"func": "median"}}]})") ==
          "meters[0].aggregation.func");
    CHECK(refused("autumn", R"({"plan": {"id": "p", "items": [7]}})") == "plan.items[0].feature_id");
    CHECK(refused("stripe", "{}") == "vendor");
    auto nested = catalogue({{"charge_model", "standard"}});
    nested["plan"]["unknown"] = json::parse(std::string(100000, '[') + std::string(100000, ']'));
    CHECK_THROWS_WITH(Book::lago(nested), "plan: nested more than 128 deep");
    json deep{{"property", "name"}, {"operator", "eq"}, {"value", "x"}};
    for (int i = 0; i < 100; ++i) deep = {{"conjunction", "and"}, {"clauses", {deep}}};
    CHECK_THROWS_AS(Book::polar({{"product", {{"id", "p"}}}, {"meters", {{{"id", "m"}, {"filter", deep}, {"aggregation", {{"func", "count"}}}}}}}),
                    Error);
}

// --- properties that hold for any plan ---

namespace {

json random_properties(const std::string& model, std::mt19937_64& random) {
    const auto amount = [&] { return Decimal::scaled(static_cast<std::int64_t>(random() % 10000), 3).to_string(); };
    if (model == "standard") return {{"amount", amount()}};
    if (model == "package") return {{"amount", amount()}, {"package_size", 1 + random() % 20}, {"free_units", random() % 10}};
    if (model == "percentage") return {{"rate", amount()}, {"fixed_amount", amount()}};
    auto ranges = json::array();
    std::uint64_t from = 0;
    for (int i = 0; i < 3; ++i) {
        const auto to = from + 1 + random() % 30;
        ranges.push_back({{"from_value", from},
                          {"to_value", i == 2 ? json(nullptr) : json(to)},
                          {"per_unit_amount", amount()},
                          {"rate", amount()},
                          {"flat_amount", amount()}});
        from = to + 1;
    }
    return {{model + "_ranges", ranges}};
}

}  // namespace

TEST_CASE("fees paid in advance, one by one, come to what the whole period costs", "[lago]") {
    const std::uint64_t seed = std::random_device{}();
    CAPTURE(seed);
    std::mt19937_64 random(seed);
    const json calls{{"code", "tokens"}, {"aggregation_type", "count_agg"}};
    const json users{{"code", "tokens"}, {"aggregation_type", "unique_count_agg"}, {"field_name", "user"}};
    for (const json& metric : {tokens_metric, calls, users}) {
        for (const std::string model : {"standard", "graduated", "graduated_percentage", "package", "percentage"}) {
            // An event that leaves no units, a removal, pays the first tier's flat part once more, and a fixed amount: no period has these.
            if (metric == users && model != "standard" && model != "package") continue;
            for (int round = 0; round < 4; ++round) {
                CAPTURE(model, round, metric.dump());
                const auto book = Book::lago(
                    catalogue({{"charge_model", model}, {"pay_in_advance", true}, {"properties", random_properties(model, random)}}, metric));
                PlainUsage usage;
                for (int i = 0; i < 12; ++i) {
                    usage.events.push_back(event("tokens", {{"value", Decimal::scaled(static_cast<std::int64_t>(random() % 1000 + 1), 2).to_string()},
                                                            {"user", random() % 4},
                                                            {"operation_type", random() % 3 == 0 ? "remove" : "add"}}));
                }
                const auto fees = book.impl().advance_fees({.subscription = "sub_1"}, march_10, usage);
                REQUIRE(fees.fees.size() == usage.events.size());
                check_lines(fees);
                Decimal paid;
                for (const auto& fee : fees.fees) paid += fee.amount;
                const auto whole = book.impl().usage({.subscription = "sub_1"}, march_10, usage);
                REQUIRE(paid == whole.fees.at(0).amount);
                check_lines(whole);
            }
        }
    }
}

namespace {

// A plan of one charge, and events that move what it counts, before the period and in it.
json random_plan(std::mt19937_64& random) {
    const std::vector<std::string> kinds{"count_agg", "sum_agg", "unique_count_agg", "max_agg", "latest_agg"};
    const std::vector<std::string> models{"standard", "graduated", "volume", "package", "percentage"};
    const auto kind = kinds[random() % kinds.size()];
    const bool carries = kind == "sum_agg" || kind == "unique_count_agg", countable = carries || kind == "count_agg";
    const bool recurring = carries && random() % 2 == 0, prorated = recurring && random() % 2 == 0;
    const bool advance = countable && random() % 2 == 0;
    auto model = models[random() % (prorated ? advance ? 1 : 3 : models.size())];
    if ((advance && model == "volume") || (kind == "latest_agg" && model == "percentage")) model = "standard";
    json metric{{"code", "calls"}, {"aggregation_type", kind}, {"field_name", "value"}, {"recurring", recurring}};
    if (random() % 3 == 0) metric["rounding_function"] = "ceil";
    auto properties = random_properties(model, random);
    if (random() % 2 == 0) properties["pricing_group_keys"] = {"region"};
    if (model == "percentage" && random() % 2 == 0) properties["free_units_per_events"] = 1 + random() % 4;
    if (model == "percentage" && random() % 2 == 0) properties["free_units_per_total_aggregation"] = "3.5";
    if (model == "percentage" && random() % 2 == 0) properties["per_transaction_min_amount"] = "1";
    json charge{{"charge_model", model}, {"pay_in_advance", advance}, {"prorated", prorated}, {"properties", properties}};
    if (random() % 2 == 0) charge["filters"] = {{{"values", {{"size", {"512"}}}}, {"properties", properties}}};
    return catalogue(charge, metric);
}

std::vector<Event> random_events(std::mt19937_64& random) {
    std::vector<Event> events;
    for (int i = 0; i < 30; ++i) {
        json properties{{"value", random() % 5}, {"region", random() % 2 == 0 ? "eu" : "us"}, {"size", random() % 3 == 0 ? "512" : "1024"}};
        if (random() % 4 == 0) properties["value"] = "-1.5";
        if (random() % 8 == 0) properties.erase("value");
        if (random() % 4 == 0) properties["operation_type"] = "remove";
        if (random() % 6 == 0) properties.erase("region");
        auto& each = events.emplace_back(event("calls", properties));
        each.id = "e" + std::to_string(i);
        each.timestamp = Timestamp::parse("2026-02-20T00:00:00Z") + std::chrono::hours(random() % 400);
    }
    return events;
}

}  // namespace

TEST_CASE("Lago's charges answer the same over the log as over a plain list, whatever they are", "[lago][meter]") {
    const std::uint64_t seed = std::random_device{}();
    CAPTURE(seed);
    std::mt19937_64 random(seed);
    int priced = 0;
    for (int round = 0; round < 80; ++round) {
        const auto plan = random_plan(random);
        CAPTURE(round, plan.dump());
        const auto book = Book::lago(plan);
        PlainUsage usage;
        usage.events = random_events(random);
        Meter m(at_march_10());
        m.load(book);
        m.record(usage.events);
        const auto answered = [&priced](auto&& ask) {
            try {
                auto text = ask().to_json().dump(1);
                ++priced;
                return text;
            } catch (const Error& error) {
                return std::string(error.what());
            }
        };
        const UsageQuery query{.subscription = "sub_1", .closing = true};
        CHECK(answered([&] { return m.usage(query); }) == answered([&] { return book.impl().usage(query, march_10, usage); }));
        CHECK(answered([&] { return m.advance_fees(query); }) == answered([&] { return book.impl().advance_fees(query, march_10, usage); }));
        const auto next = random_events(random).front();
        CHECK(answered([&] { return m.estimate_fees(next); }) == answered([&] { return book.impl().estimate_fees(next, march_10, usage); }));
    }
    CHECK(priced > 240);  // the rest are volumes below zero, and estimates for charges in arrears
}

namespace {

// Puts something else in place of one node of the tree, or takes a member away.
void disturb(json& tree, std::mt19937_64& random) {
    static const std::vector<json> others{nullptr, true, 0,      -1,    1e308,         1e-300,         18446744073709551615U, "",
                                          "x",     "-1", "1e99", "NaN", json::array(), json::object(), json::array({1}),      {{"x", 1}}};
    auto* at = &tree;
    while (at->is_structured() && !at->empty() && random() % 8 != 0) {
        auto next = at->begin();
        std::advance(next, static_cast<std::ptrdiff_t>(random() % at->size()));
        at = &*next;
    }
    *at = others[random() % others.size()];
}

}  // namespace

TEST_CASE("a disturbed catalogue is priced or refused, and nothing else", "[books]") {
    auto lago = catalogue({{"charge_model", "graduated"},
                           {"pay_in_advance", true},
                           {"properties",
                            {{"pricing_group_keys", {"region"}},
                             {"graduated_ranges",
                              {{{"from_value", 0}, {"to_value", 5}, {"per_unit_amount", "1"}, {"flat_amount", "1"}},
                               {{"from_value", 6}, {"to_value", nullptr}, {"per_unit_amount", "1"}, {"flat_amount", "1"}}}}}}},
                          model_metric);
    lago["plan"]["charges"][0]["filters"] = {{{"values", {{"size", {"512"}}}}, {"properties", lago["plan"]["charges"][0]["properties"]}}};
    lago["subscriptions"] = {{{"external_id", "sub_1"},
                              {"external_customer_id", "acme"},
                              {"started_at", "2026-01-01T00:00:00Z"},
                              {"timezone", "+01:00"},
                              {"billing_time", "anniversary"}}};
    const std::vector<std::pair<std::string, json>> catalogues{
        {"lago", lago},
        {"flexprice",
         {{"meters",
           {{{"id", "m"},
             {"event_name", "calls"},
             {"aggregation", {{"type", "SUM"}, {"field", "value"}}},
             {"filters", {{{"key", "size"}, {"values", {"512"}}}}}}}},
          {"prices",
           {{{"meter_id", "m"},
             {"currency", "usd"},
             {"billing_model", "TIERED"},
             {"tier_mode", "SLAB"},
             {"tiers", {{{"up_to", 5}, {"unit_amount", "1"}}, {{"up_to", nullptr}, {"unit_amount", "1"}}}},
             {"commitment", {{"type", "amount"}, {"amount", "1"}, {"overage_factor", "2"}}}}}}}},
        {"polar",
         {{"product",
           {{"id", "p"},
            {"prices", {{{"meter_id", "m"}, {"unit_amount", "1"}, {"cap_amount", 5}}}},
            {"benefits", {{{"type", "meter_credit"}, {"properties", {{"meter_id", "m"}, {"units", 1}}}}}}}},
          {"meters",
           {{{"id", "m"},
             {"filter", {{"conjunction", "and"}, {"clauses", {{{"property", "name"}, {"operator", "eq"}, {"value", "calls"}}}}}},
             {"aggregation", {{"func", "sum"}, {"property", "value"}}}}}}}},
        {"autumn",
         {{"plan",
           {{"id", "p"},
            {"items",
             {{{"feature_id", "calls"},
               {"included", 1},
               {"price",
                {{"tiers", {{{"to", 5}, {"amount", 1}}, {{"to", "inf"}, {"amount", 2}}}},
                 {"billing_units", 2},
                 {"billing_method", "usage_based"},
                 {"max_purchase", 4}}}}}}}},
          {"features", {{{"id", "calls"}, {"credit_schema", {{{"metered_feature_id", "other"}, {"credit_cost", 2}}}}}}},
          {"customers",
           {{{"id", "acme"},
             {"subscriptions", {{{"plan_id", "p"}, {"started_at", 1767225600000}, {"quantity", 2}}}},
             {"billing_controls",
              {{"usage_limits", {{{"feature_id", "calls"}, {"limit", 5}, {"interval", "week"}, {"filter", {{"properties", {{"region", "eu"}}}}}}}},
               {"spend_limits", {{{"feature_id", "calls"}, {"enabled", true}, {"overage_limit", 90}, {"limit_type", "usage_percentage"}}}},
               {"overage_allowed", {{{"feature_id", "calls"}, {"enabled", true}}}}}},
             {"entities", {{{"id", "sub_1"}, {"feature_id", "seats"}}}}}}}}}};
    const std::uint64_t seed = std::random_device{}();
    CAPTURE(seed);
    std::mt19937_64 random(seed);
    PlainUsage usage;
    auto known = event("calls", {{"value", 7}, {"size", "512"}, {"region", "eu"}});
    known.customer = "acme";
    usage.events = {known, known};
    int accepted = 0;
    for (int i = 0; i < 2000; ++i) {
        auto [vendor, tree] = catalogues[static_cast<std::size_t>(i) % catalogues.size()];
        const auto changes = i < 4 ? 0U : 1 + random() % 3;
        for (unsigned change = 0; change < changes; ++change) disturb(tree, random);
        CAPTURE(vendor, tree.dump());
        try {
            const auto book = Book::of(vendor, tree);
            const auto fees = book.impl().usage({.subscription = "sub_1", .customer = "acme"}, march_10, usage);
            Decimal cents;
            for (const auto& fee : fees.fees) cents += fee.amount_cents;
            REQUIRE(cents == fees.amount_cents);
            book.impl().estimate_fees(known, march_10, usage);
            if (vendor == "autumn") book.impl().check(known, march_10, usage);
            if (vendor == "lago") book.impl().advance_fees({.subscription = "sub_1"}, march_10, usage);
            ++accepted;
        } catch (const Error&) {
            REQUIRE(i >= 4);  // undisturbed, they are all priced
        }
    }
    CHECK(accepted > 50);
}
