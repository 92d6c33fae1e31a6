// Section 8: how each vendor measures and prices.
#include "../meter.cpp"
#include "plain_usage.hpp"
#include "testing.hpp"

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
    auto unknown = catalogue({{"charge_model", "standard"}});
    unknown["plan"]["charges"][0]["billable_metric_code"] = "nothing";
    CHECK(field_of(unknown) == "plan.charges[0].billable_metric_code: no such billable metric: nothing");
    CHECK(field_of(catalogue({{"charge_model", "standard"}, {"unknown_field", 1}})) == "accepted");
}
