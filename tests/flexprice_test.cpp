// FlexPrice as users meet it: what its meters count in the log, and what its prices, subscriptions and commitments make of that.
#include <array>
#include <random>

#include "../meter.hpp"

#include "testing.hpp"

using namespace meter;

namespace {

const Timestamp march_10 = Timestamp::parse("2026-03-10T12:00:00Z");

Timestamp at(const std::string& text) { return Timestamp::parse(text); }

Event use(json properties, const std::string& time = "2026-03-05T10:00:00Z", std::string customer = "acme") {
    if (properties.is_null()) properties = json::object();
    return {.name = "call", .customer = std::move(customer), .timestamp = at(time), .properties = std::move(properties)};
}

json meter_json(json aggregation, json more = json::object()) {
    more.update({{"id", "m"}, {"event_name", "call"}, {"aggregation", std::move(aggregation)}});
    return more;
}

json flat(json more = json::object(), const char* amount = "1") {
    json price{{"id", "p"}, {"type", "USAGE"}, {"meter_id", "m"}, {"currency", "usd"}, {"billing_model", "FLAT_FEE"}, {"amount", amount}};
    if (!more.is_null()) price.update(more);
    return price;
}

json catalogue(json meter, json price) { return {{"meters", {std::move(meter)}}, {"prices", {std::move(price)}}}; }

Meter with(const json& book, const std::vector<Event>& events, Timestamp now = march_10) {
    Meter m({.clock = [now] { return now; }});
    m.load(Book::flexprice(book));
    for (const auto& receipt : m.record(events)) REQUIRE(receipt.status == ReceiptStatus::stored);
    return m;
}

/// The fees' lines add up to their amounts.
Fees checked(Fees fees) {
    Decimal cents;
    for (const auto& fee : fees.fees) {
        Decimal amount;
        for (const auto& line : fee.lines) amount += line.amount;
        CHECK(amount == fee.amount);
        cents += fee.amount_cents;
    }
    CHECK(cents == fees.amount_cents);
    return fees;
}

Fees bill(const json& book, const std::vector<Event>& events, Timestamp now = march_10) {
    return checked(with(book, events, now).usage({.customer = "acme"}));
}

Decimal units(const json& meter, const std::vector<Event>& events) { return bill(catalogue(meter, flat()), events).fees.at(0).units; }

std::string refused(const json& book) {
    try {
        Book::flexprice(book);
    } catch (const Error& error) {
        return error.field() + ": " + error.reason();
    }
    return "accepted";
}

}  // namespace

TEST_CASE("a FlexPrice meter of every kind is measured from the log") {
    const std::vector<Event> events{use({{"n", 10}, {"user", "ann"}}, "2026-03-05T10:00:00.9Z"),
                                    use({{"n", "2.5"}, {"user", "bob"}}, "2026-03-05T10:30:00Z"),
                                    use({{"n", -4}, {"user", "ann"}}, "2026-03-05T11:00:00Z"),
                                    use({{"n", "abc"}, {"user", ""}}, "2026-03-06T10:00:00Z"),
                                    use({{"n", true}, {"user", nullptr}}, "2026-03-06T11:00:00Z"),
                                    use(json::object(), "2026-03-07T10:00:00Z"),
                                    use({{"n", "1e0"}}, "2026-03-08T10:00:00Z")};
    CHECK(units(meter_json({{"type", "COUNT"}}), events) == 7);
    CHECK(units(meter_json({{"type", "SUM"}, {"field", "n"}}), events) == Decimal("13.5"));
    CHECK(units(meter_json({{"type", "AVG"}, {"field", "n"}}), events) == Decimal::divide_significant(Decimal("13.5"), 7, 32, Rounding::half_even));
    CHECK(units(meter_json({{"type", "MAX"}, {"field", "n"}}), events) == 10);
    CHECK(units(meter_json({{"type", "LATEST"}, {"field", "n"}}), events) == 1);
    CHECK(units(meter_json({{"type", "WEIGHTED_SUM"}, {"field", "n"}}), events) == Decimal("13.5"));
    CHECK(units(meter_json({{"type", "COUNT_UNIQUE"}, {"field", "user"}}), events) == 2);
    CHECK(units(meter_json({{"type", "SUM_WITH_MULTIPLIER"}, {"field", "n"}, {"multiplier", "0.1"}}), events) == Decimal("1.35"));
    CHECK(units(meter_json({{"type", "SUM"}, {"field", "n"}, {"bucket_size", "HOUR"}}), events) == Decimal("13.5"));
    CHECK(units(meter_json({{"type", "MAX"}, {"field", "n"}, {"bucket_size", "HOUR"}}), events) == 11);
    CHECK(units(meter_json({{"type", "MAX"}, {"field", "n"}, {"bucket_size", "HOUR"}, {"group_by", "user"}}), events) == Decimal("13.5"));
    CHECK(units(meter_json({{"type", "MAX"}, {"field", "n"}, {"bucket_size", "MONTH"}}), events) == 10);
}

TEST_CASE("FlexPrice keeps 15 decimals of each event, after its multiplier") {
    const std::vector<Event> events{use({{"n", "0.0000000000000019"}}), use({{"n", "0.0000000000000019"}})};
    CHECK(units(meter_json({{"type", "SUM"}, {"field", "n"}}), events) == Decimal("0.000000000000002"));
    CHECK(units(meter_json({{"type", "SUM_WITH_MULTIPLIER"}, {"field", "n"}, {"multiplier", "10"}}), events) == Decimal("0.000000000000038"));
    CHECK(units(meter_json({{"type", "SUM_WITH_MULTIPLIER"}, {"field", "n"}, {"multiplier", "1e-50"}}), events) == 0);
    const std::vector<Event> whole{use({{"n", 7}}), use({{"n", 4000000000000000000}}), use({{"n", "3"}})};
    CHECK(units(meter_json({{"type", "SUM_WITH_MULTIPLIER"}, {"field", "n"}, {"multiplier", "1.25"}}), whole) == Decimal("5000000000000000012.5"));
}

TEST_CASE("a FlexPrice meter's filters compare texts as Go writes them") {
    const auto count = [](json properties, const char* value) {
        return units(meter_json({{"type", "COUNT"}}, {{"filters", {{{"key", "k"}, {"values", {value}}}}}}), {use({{"k", std::move(properties)}})});
    };
    CHECK(count(200, "200") == 1);
    CHECK(count(999999, "999999") == 1);
    CHECK(count(1000000, "1000000") == 0);
    CHECK(count(1000000, "1e+06") == 1);
    CHECK(count(-1234567.5, "-1.2345675e+06") == 1);
    CHECK(count(0.00001, "1e-05") == 1);
    CHECK(count("1000000", "1000000") == 1);
    CHECK(count(true, "true") == 1);
    CHECK(count("True", "true") == 0);
    CHECK(count(9.9e37, "9.9e+37") == 1);
    CHECK(count(1e-40, "1e-40") == 1);
    CHECK(count(0, "0") == 1);
    CHECK(count(nullptr, "") == 0);
}

TEST_CASE("FlexPrice's usage that is never reset counts what came before the period, but not in windows") {
    const auto before = use({{"n", 5}}, "2026-02-05T10:00:00Z"), now = use({{"n", 3}}), later = use({{"n", 4}}, "2026-03-06T10:00:00Z");
    const auto value = [&](const char* type, Bin bin = Bin::none) {
        const auto m = with(catalogue(meter_json({{"type", type}, {"field", "n"}}, {{"reset_usage", "NEVER"}}), flat()), {before, now, later});
        Decimal sum;
        for (const auto& row :
             m.aggregate({.metric = "flexprice:m", .customer = "acme", .period = {at("2026-03-01"), at("2026-04-01")}, .bin = bin}).rows)
            sum += row.value;
        return sum;
    };
    CHECK(value("SUM") == 12);
    CHECK(value("MAX") == 9);
    CHECK(value("COUNT") == 3);
    CHECK(value("SUM", Bin::day) == 7);
    const auto buckets = catalogue(meter_json({{"type", "MAX"}, {"field", "n"}, {"bucket_size", "DAY"}}, {{"reset_usage", "NEVER"}}), flat());
    const auto m = with(buckets, {before, now, later});
    CHECK(m.aggregate({.metric = "flexprice:m", .period = {at("2026-03-01"), at("2026-04-01")}}).rows.at(0).value == 12);
    CHECK(m.usage({.customer = "acme"}).fees.at(0).units == 7);  // bills are for their period
}

TEST_CASE("the rules of FlexPrice's usage queries differ from those of its bills") {
    Meter m;
    m.record(
        {use({{"n", 10}}, "2026-03-05T06:00:00.5Z"), use({{"n", "x"}}, "2026-03-05T12:00:00Z"), use({{"user", nullptr}}, "2026-03-05T18:00:00Z")});
    const Period day{at("2026-03-05T00:00:00.9Z"), at("2026-03-06T00:00:00.9Z")};
    const auto value = [&](Aggregation aggregation, const char* property, const char* rules) {
        const auto rows = m.aggregate({.event = "call", .aggregation = aggregation, .property = property, .rules = rules}, {.period = day}).rows;
        return rows.empty() ? Decimal() : rows[0].value;
    };
    CHECK(value(Aggregation::weighted_sum, "n", "flexprice") == 10);
    CHECK(value(Aggregation::weighted_sum, "n", "flexprice_events") == Decimal("7.5"));
    CHECK(value(Aggregation::unique_count, "user", "flexprice") == 0);
    CHECK(value(Aggregation::unique_count, "user", "flexprice_events") == 1);
    CHECK(value(Aggregation::average, "n", "flexprice_events") == Decimal::divide_significant(10, 3, 32, Rounding::half_even));
    // Months from the 31st run over into the next (dossier 5.5).
    const auto months =
        m.aggregate({.event = "call", .rules = "flexprice_events"}, {.bin = Bin::month, .billing_anchor = at("2026-01-31T15:00:00Z")});
    CHECK(months.rows.at(0).bin == at("2026-03-03"));
    // Both ends of a period are cut to their second.
    CHECK(m.aggregate({.event = "call", .rules = "flexprice"}, {.period = {at("2026-03-05T06:00:00.7Z"), day.to}}).rows.at(0).value == 3);
}

TEST_CASE("FlexPrice prices every bucket alone") {
    const json tiers{{"billing_model", "TIERED"},
                     {"tier_mode", "SLAB"},
                     {"tiers", {{{"up_to", 10}, {"unit_amount", "0.1"}, {"flat_amount", "1"}}, {{"up_to", nullptr}, {"unit_amount", "0.05"}}}}};
    const std::vector<Event> events{use({{"n", 8}}, "2026-03-05T10:00:00Z"), use({{"n", 3}}, "2026-03-05T10:30:00Z"),
                                    use({{"n", 12}}, "2026-03-05T11:00:00Z"), use({{"n", 0}}, "2026-03-05T12:00:00Z")};
    const auto fees = bill(catalogue(meter_json({{"type", "MAX"}, {"field", "n"}, {"bucket_size", "HOUR"}}), flat(tiers)), events);
    CHECK(fees.fees.at(0).units == 20);
    CHECK(fees.amount_cents == 180 + 210 + 100);  // 0.80 + 1, 1 + 1 + 0.10, and the flat part of a bucket of nothing
    const auto limited = bill(catalogue(meter_json({{"type", "MAX"}, {"field", "n"}, {"bucket_size", "HOUR"}}),
                                        flat({{"entitlement", {{"is_enabled", true}, {"usage_limit", 5}}}})),
                              events);
    CHECK(limited.amount_cents == 1500);
}

TEST_CASE("FlexPrice's entitlements begin anew by the day, the month, or never") {
    const json meter = meter_json({{"type", "SUM"}, {"field", "n"}});
    const auto left = [&](const char* reset, const char* billing, const std::vector<Event>& events) {
        json book = catalogue(
            meter, flat({{"billing_period", billing}, {"entitlement", {{"is_enabled", true}, {"usage_limit", 10}, {"usage_reset_period", reset}}}}));
        book["subscriptions"] = {
            {{"id", "s"}, {"external_customer_id", "acme"}, {"start_date", "2026-01-01T00:00:00Z"}, {"billing_period", billing}}};
        return bill(book, events).amount_cents;
    };
    const std::vector<Event> days{use({{"n", 15}}, "2026-03-05T00:00:00Z"), use({{"n", 3}}, "2026-03-06T23:59:59Z"),
                                  use({{"n", 12}}, "2026-03-07T12:00:00Z")};
    CHECK(left("DAILY", "MONTHLY", days) == 700);
    CHECK(left("MONTHLY", "MONTHLY", days) == 2000);
    CHECK(left("", "MONTHLY", days) == 2000);
    const std::vector<Event> months{use({{"n", 15}}, "2026-01-05T00:00:00Z"), use({{"n", 13}}, "2026-03-06T00:00:00Z")};
    CHECK(left("MONTHLY", "ANNUAL", months) == 800);
    CHECK(left("NEVER", "MONTHLY", months) == 300);
    CHECK(left("MONTHLY", "MONTHLY", months) == 300);
    CHECK(left("NEVER", "ANNUAL", months) == 1800);  // in the first of its billing periods
}

TEST_CASE("FlexPrice's grants leave what exceeds each of them") {
    const json meter = meter_json({{"type", "SUM"}, {"field", "n"}});
    const std::vector<Event> events{use({{"n", 15}}, "2026-03-02T00:00:00Z"), use({{"n", 30}}, "2026-03-08T00:00:00Z")};
    json grants{{{"measure", "quantity"}, {"quota", 10}, {"start_date", "2026-03-01T00:00:00Z"}, {"end_date", "2026-03-06T00:00:00Z"}},
                {{"measure", "quantity"}, {"quota", 10}, {"start_date", "2026-03-06T00:00:00Z"}, {"end_date", "2026-04-01T00:00:00Z"}}};
    CHECK(bill(catalogue(meter, flat({{"grants", grants}})), events).amount_cents == 2500);
    CHECK(bill(catalogue(meter, flat({{"grants", {{{"measure", "amount"}, {"quota", "40"}}}}})), events).amount_cents == 500);
    CHECK(refused(catalogue(meter, flat({{"grants", grants}, {"commitment", {{"type", "amount"}, {"amount", 1}}}}))) ==
          "prices[0].grants: do not go with a commitment");
    CHECK(refused(catalogue(meter_json({{"type", "MAX"}, {"field", "n"}}), flat({{"grants", grants}}))) ==
          "prices[0].grants: are not for MAX, AVG and LATEST meters");
    grants[0]["end_date"] = "2026-02-01T00:00:00Z";
    CHECK(refused(catalogue(meter, flat({{"grants", grants}}))) == "prices[0].grants[0].end_date: is not after start_date");
}

TEST_CASE("FlexPrice's subscriptions say for whom, from when and in what periods") {
    json book = catalogue(meter_json({{"type", "COUNT"}}), flat());
    const auto subscription = [](const char* id, json more) {
        more.update({{"id", id}, {"external_customer_id", "acme"}});
        return more;
    };
    const std::vector<Event> events{use({}, "2026-02-20T00:00:00Z"), use({}, "2026-03-04T00:00:00Z"), use({}, "2026-03-06T00:00:00Z"),
                                    use({}, "2026-03-09T00:00:00Z"), use({}, "2026-03-09T00:00:00Z", "other")};
    book["subscriptions"] = json::array({subscription("anniversary", {{"start_date", "2026-01-05T00:00:00Z"}, {"billing_period", "MONTHLY"}})});
    CHECK(bill(book, events).amount_cents == 200);
    CHECK(bill(book, events).fees.at(0).period == Period{at("2026-03-05"), at("2026-04-05")});
    CHECK(with(book, events).usage({.subscription = "anniversary", .period = Period{at("2026-01-01"), at("2026-04-01")}}).amount_cents == 400);
    CHECK_THROWS_AS(with(book, events).usage({.customer = "other"}), Error);
    book["subscriptions"] = json::array({subscription("short", {{"start_date", "2026-01-31T00:00:00Z"}, {"billing_period", "MONTHLY"}})});
    CHECK(bill(book, events, at("2026-03-01T00:00:00Z")).fees.at(0).period == Period{at("2026-02-28"), at("2026-03-31")});
    book["subscriptions"] =
        json::array({subscription("weeks", {{"start_date", "2026-03-02T00:00:00Z"}, {"billing_period", "WEEKLY"}, {"billing_period_count", 2}})});
    CHECK(bill(book, events).fees.at(0).period == Period{at("2026-03-02"), at("2026-03-16")});
    book["subscriptions"] = json::array(
        {subscription("gone",
                      {{"start_date", "2026-03-01T00:00:00Z"}, {"subscription_status", "cancelled"}, {"cancelled_at", "2026-03-05T00:00:00Z"}}),
         subscription("draft", {{"start_date", "2026-01-01T00:00:00Z"}, {"subscription_status", "draft"}}),
         subscription(
             "items",
             {{"start_date", "2026-03-01T00:00:00Z"},
              {"line_items", {{{"id", "li"}, {"price_id", "p"}, {"start_date", "2026-03-05T00:00:00Z"}, {"end_date", "2026-03-08T00:00:00Z"}}}}})});
    const auto fees = with(book, events).usage({.customer = "acme", .period = Period{at("2026-03-01"), at("2026-04-01")}});
    REQUIRE(fees.fees.size() == 2);
    CHECK(fees.fees[0].amount_cents == 100);
    CHECK(fees.fees[1].amount_cents == 100);
    CHECK(fees.fees[1].period == Period{at("2026-03-05"), at("2026-03-08")});
}

TEST_CASE("FlexPrice's windowed commitments charge every window, by the time of day") {
    json book = catalogue(meter_json({{"type", "SUM"}, {"field", "n"}, {"bucket_size", "HOUR"}}), flat());
    const std::vector<Event> events{use({{"n", 10}}, "2026-03-10T10:10:00Z"), use({{"n", 3}}, "2026-03-10T11:00:00Z")};
    book["prices"][0]["commitment"] = {{"type", "amount"}, {"amount", 5}, {"overage_factor", 2}, {"windowed", true}};
    CHECK(bill(book, events).amount_cents == 1500 + 300);
    book["prices"][0]["commitment"]["true_up_enabled"] = true;
    // 9 days and 12 hours have passed: 226 empty hours at 5, one of 5 + 5 x 2, one filled up to 5.
    CHECK(bill(book, events).amount_cents == 226 * 500 + 1500 + 500);
    book["prices"][0]["commitment"]["true_up_enabled"] = false;
    book["prices"][0]["commitment_time_buckets"] = {{{"id", "b"},
                                                     {"start", "10:00"},
                                                     {"end", "11:00"},
                                                     {"price", {{"billing_model", "FLAT_FEE"}, {"amount", "2"}, {"currency", "usd"}}},
                                                     {"commitment_type", "amount"},
                                                     {"commitment_value", "5"},
                                                     {"overage_factor", "2"}}};
    CHECK(bill(book, events).amount_cents == 500 + 15 * 200 + 300);
    // What is worth nothing is no commitment; months are from midnight of their first day.
    book["prices"][0].erase("commitment_time_buckets");
    book["prices"][0]["commitment"]["amount"] = 0;
    CHECK(bill(book, events).amount_cents == 1300);
    book["prices"][0]["commitment"].update({{"amount", 5}, {"true_up_enabled", true}});
    book["meters"][0]["aggregation"]["bucket_size"] = "MONTH";
    book["subscriptions"] = {{{"id", "s"}, {"external_customer_id", "acme"}, {"start_date", "2026-03-01T09:30:00Z"}}};
    CHECK(bill(book, events).amount_cents == 500 + 2 * 800);
    book["meters"][0]["aggregation"].erase("bucket_size");
    CHECK(refused(book) == "prices[0].commitment_windowed: needs a meter with buckets");
}

TEST_CASE("a FlexPrice subscription's commitment splits the charge it ends in, and is filled up") {
    json book = catalogue(meter_json({{"type", "COUNT"}}), flat({}, "2"));
    book["prices"].push_back(flat({{"id", "q"}, {"display_name", "second"}}, "3"));
    const auto with_commitment = [&](const char* amount, bool true_up) {
        book["subscriptions"] = {{{"id", "s"},
                                  {"external_customer_id", "acme"},
                                  {"start_date", "2026-03-01T00:00:00Z"},
                                  {"billing_period", "MONTHLY"},
                                  {"commitment_amount", amount},
                                  {"overage_factor", "1.5"},
                                  {"enable_true_up", true_up}}};
        return bill(book, {use({}), use({}), use({}), use({})});  // 8 and 12
    };
    CHECK(with_commitment("20", true).amount_cents == 2000);
    CHECK(with_commitment("25.5", true).amount_cents == 2550);
    CHECK(with_commitment("25.5", false).amount_cents == 2000);
    const auto split = with_commitment("15", true);  // 8, then 2 of 4 for 6, 2 for 6 x 1.5; 1 of the 15 stays unused
    REQUIRE(split.fees.size() == 3);
    CHECK(split.fees[1].units == 2);
    CHECK(split.amount_cents == 800 + 600 + 900);
    CHECK(with_commitment("8", true).amount_cents == 800 + 1800);
    book["subscriptions"][0]["start_date"] = "2026-01-01T00:00:00Z";
    book["subscriptions"][0]["commitment_duration"] = "ANNUAL";
    book["subscriptions"][0]["commitment_amount"] = "30";
    std::vector<Event> events{use({}, "2026-01-05T00:00:00Z"), use({}, "2026-02-05T00:00:00Z"), use({}, "2026-02-06T00:00:00Z")};
    for (int i = 0; i < 4; ++i) events.push_back(use({}));
    CHECK(bill(book, events).amount_cents == 1500 + 750);                             // 15 of the 30 are used, 20 come: 5 of them at 1.5
    CHECK(bill(book, {events[0]}, at("2026-12-10T00:00:00Z")).amount_cents == 2500);  // the last month makes up for 30
}

TEST_CASE("FlexPrice's fixed prices are billed when they fall due") {
    const auto fixed = [](const char* id, const char* amount, json more) {
        more.update({{"id", id}, {"type", "FIXED"}, {"currency", "usd"}, {"billing_model", "FLAT_FEE"}, {"amount", amount}});
        return more;
    };
    json book = catalogue(meter_json({{"type", "COUNT"}}), flat());
    book["prices"].push_back(fixed("seat", "20", {{"min_quantity", 2}}));
    book["prices"].push_back(fixed("base", "100", {{"invoice_cadence", "ADVANCE"}}));
    auto fees = bill(book, {use({})});
    REQUIRE(fees.fees.size() == 3);
    CHECK(fees.amount_cents == 100 + 4000 + 10000);
    CHECK(!fees.fees[1].pay_in_advance);
    CHECK(fees.fees[2].pay_in_advance);
    // The first days of a month owe what is paid in advance, the last ones what is not.
    const auto m = with(book, {});
    const auto owed = [](const Meter& meter, const char* from, const char* to) {
        return checked(meter.usage({.customer = "acme", .period = Period{at(from), at(to)}})).amount_cents;
    };
    CHECK(owed(m, "2026-03-01", "2026-03-10") == 10000);
    CHECK(owed(m, "2026-03-10", "2026-04-01") == 4000);
    CHECK(owed(m, "2026-01-01", "2026-04-01") == 3 * 14000);

    book["prices"].push_back(fixed("quarter", "50", {{"billing_period", "QUARTERLY"}}));
    book["prices"].push_back(fixed("setup", "7", {{"billing_period", "ONETIME"}}));
    book["subscriptions"] = {{{"id", "s"},
                              {"external_customer_id", "acme"},
                              {"start_date", "2026-01-01T00:00:00Z"},
                              {"billing_period", "MONTHLY"},
                              {"line_items",
                               {{{"price_id", "seat"}, {"quantity", "3"}, {"start_date", "2026-03-11T00:00:00Z"}},
                                {{"price_id", "quarter"}},
                                {{"price_id", "setup"}, {"start_date", "2026-03-05T00:00:00Z"}}}}}};
    fees = bill(book, {});
    REQUIRE(fees.fees.size() == 3);
    CHECK(fees.fees[0].amount_cents == 4065);  // 60 x 21 / 31
    CHECK(fees.fees[0].period == Period{at("2026-03-11"), at("2026-04-01")});
    CHECK(fees.fees[1].amount_cents == 5000);
    CHECK(fees.fees[1].period == Period{at("2026-01-01"), at("2026-04-01")});
    CHECK(fees.fees[2].amount_cents == 700);
    CHECK(owed(with(book, {}), "2026-04-01", "2026-05-01") == 6000);
    CHECK(owed(with(book, {}), "2026-02-01", "2026-03-01") == 0);
    book["prices"][3]["invoice_cadence"] = "ADVANCE";
    CHECK(owed(with(book, {}), "2026-04-01", "2026-05-01") == 6000 + 5000);
}

TEST_CASE("FlexPrice's coupons come off a bill: of each line, then of what is left") {
    json book = catalogue(meter_json({{"type", "COUNT"}}), flat({}, "10"));
    book["prices"].push_back(flat({{"id", "q"}, {"display_name", "second"}}, "3.333"));
    const auto coupon = [](const char* id, const char* line, json terms, const char* from = nullptr) {
        json association{{"id", id}, {"coupon", std::move(terms)}};
        if (*line != 0) association["subscription_line_item_id"] = line;
        if (from) association["start_date"] = from;
        return association;
    };
    const json tenth{{"type", "percentage"}, {"percentage_off", "10"}, {"cadence", "forever"}};
    const auto off = [&](const std::vector<json>& coupons, const Timestamp now = march_10) {
        book["subscriptions"] = {{{"id", "s"},
                                  {"external_customer_id", "acme"},
                                  {"start_date", "2026-02-01T00:00:00Z"},
                                  {"billing_period", "MONTHLY"},
                                  {"line_items", {{{"id", "li"}, {"price_id", "p"}}, {{"id", "lj"}, {"price_id", "q"}}}},
                                  {"coupon_associations", coupons}}};
        const auto time = now - std::chrono::hours(1);
        return bill(book, {use({}, time.to_string()), use({}, (time - std::chrono::minutes(1)).to_string())}, now).amount_cents;
    };
    CHECK(off({}) == 2667);  // 20 and 6.67
    CHECK(off({coupon("a", "li", tenth)}) == 2667 - 200);
    CHECK(off({coupon("a", "lj", tenth)}) == 2667 - 67);
    CHECK(off({coupon("a", "", tenth)}) == 2667 - 267);
    // Each of a line's of the whole line; each of the bill's of what the one before left, by their beginnings.
    CHECK(off({coupon("a", "li", tenth), coupon("b", "li", {{"type", "fixed"}, {"amount_off", "5"}})}) == 2667 - 200 - 500);
    CHECK(off({coupon("b", "", {{"type", "fixed"}, {"amount_off", "6.67"}}, "2026-02-02T00:00:00Z"), coupon("a", "", tenth)}) == 2667 - 267 - 667);
    CHECK(off({coupon("b", "", {{"type", "fixed"}, {"amount_off", "6.67"}}), coupon("a", "", tenth, "2026-02-02T00:00:00Z")}) == 2000 - 200);
    CHECK(off({coupon("a", "li", {{"type", "fixed"}, {"amount_off", "50"}})}) == 667);
    CHECK(off({coupon("a", "", {{"type", "fixed"}, {"amount_off", "50"}})}) == 0);
    // For a time, both ends in it, or on so many bills.
    CHECK(off({coupon("a", "", tenth, "2026-04-01T00:00:00Z")}) == 2667 - 267);
    CHECK(off({coupon("a", "", tenth, "2026-04-01T00:00:01Z")}) == 2667);
    json few = tenth;
    few["cadence"] = "once";
    CHECK(off({coupon("a", "", few)}) == 2667);
    CHECK(off({coupon("a", "", few)}, at("2026-02-10T00:00:00Z")) == 2667 - 267);
    CHECK(off({coupon("a", "", few, "2026-03-05T00:00:00Z")}) == 2667 - 267);
    few["cadence"] = "repeated", few["duration_in_periods"] = 2;
    CHECK(off({coupon("a", "", few)}) == 2667 - 267);
    CHECK(off({coupon("a", "", few)}, at("2026-04-10T00:00:00Z")) == 2667);
}

TEST_CASE("an estimate is what FlexPrice's bill grows by, whatever is measured") {
    const std::uint64_t seed = std::random_device{}();
    CAPTURE(seed);
    std::mt19937_64 random(seed);
    const auto any = [&random](auto... values) {
        const std::array list{json(values)...};
        return list[random() % list.size()];
    };
    const auto some_event = [&] {
        json properties{{"n", any(0, 1, 2, 7, "3", -2, "x")}, {"user", any("ann", "bob", "", nullptr)}, {"k", any("a", "b")}};
        if (random() % 5 == 0) properties.erase("n");
        return properties;
    };
    for (int i = 0; i < 300; ++i) {
        json aggregation{{"type", any("COUNT", "SUM", "AVG", "MAX", "LATEST", "WEIGHTED_SUM", "COUNT_UNIQUE", "SUM_WITH_MULTIPLIER")}};
        const bool unique = aggregation["type"] == "COUNT_UNIQUE";
        aggregation["field"] = unique ? "user" : "n";
        if (aggregation["type"] == "SUM_WITH_MULTIPLIER") aggregation["multiplier"] = 3;
        const bool buckets = aggregation["type"] == "SUM" || aggregation["type"] == "MAX";
        if (buckets && random() % 2 == 0) aggregation["bucket_size"] = any("HOUR", "DAY", "WEEK", "MONTH");
        if (aggregation["type"] == "MAX" && aggregation.contains("bucket_size") && random() % 2 == 0) aggregation["group_by"] = "user";
        json price = flat();
        if (random() % 2 == 0)
            price["entitlement"] = {{"is_enabled", true}, {"usage_limit", 2}, {"usage_reset_period", any("DAILY", "MONTHLY", "NEVER")}};
        if (random() % 3 == 0)
            price["commitment"] = {{"type", "amount"}, {"amount", 5}, {"overage_factor", 2}, {"true_up_enabled", any(true, false)}};
        const json book = catalogue(meter_json(aggregation, {{"filters", {{{"key", "k"}, {"values", {"a"}}}}}}), price);
        std::vector<Event> events;
        for (std::uint64_t count = random() % 6; count > 0; --count) {
            const auto time = at("2026-02-25T00:00:00Z") + std::chrono::hours(random() % (13 * 24));
            events.push_back(use(some_event(), time.to_string()));
        }
        CAPTURE(book.dump(), events.size());
        Meter m = with(book, events);
        auto next = use(some_event(), march_10.to_string());
        next.id = "next";
        CAPTURE(next.properties.dump());
        const auto before = m.usage({.customer = "acme"}).fees.at(0).amount_cents;
        std::optional<Decimal> estimate;
        if (next.properties["k"] == "a") estimate = checked(m.estimate_fees(next)).amount_cents;
        m.record(next);
        const auto grown = m.usage({.customer = "acme"}).fees.at(0).amount_cents - before;
        if (aggregation["type"] == "AVG")
            CHECK((estimate.value_or(0) - grown).abs() <= 1);  // bills are rounded, estimates are not
        else
            CHECK(estimate.value_or(0) == grown);
    }
}

TEST_CASE("a property whose name has a dot is estimated as it is measured") {
    const json book = catalogue(meter_json({{"type", "SUM"}, {"field", "a.b"}}, {{"filters", {{{"key", "k.l"}, {"values", {"x"}}}}}}), flat());
    const auto event = use({{"a.b", 5}, {"k.l", "x"}});
    CHECK(bill(book, {event}).fees.at(0).units == 5);
    CHECK(with(book, {}).estimate_fees(event).fees.at(0).units == 5);
}

TEST_CASE("inference costs price each event alone, in billionths") {
    json book = catalogue(meter_json({{"type", "SUM"}, {"field", "n"}}),
                          flat({{"billing_model", "TIERED"},
                                {"tier_mode", "SLAB"},
                                {"tiers", {{{"up_to", 5}, {"unit_amount", "0.000001"}}, {{"up_to", nullptr}, {"unit_amount", "0.0000005"}}}}}));
    auto first = use({{"n", 10}}), second = use({{"n", "4"}}), foreign = use({{"n", 4}}, "2026-03-05T00:00:00Z", ""), other = use({{"n", 1}});
    first.id = "first", second.id = "second", foreign.id = "foreign", other.id = "other";
    other.name = "else";
    Meter m = with(book, {first, second, foreign, other});
    CHECK(m.inference_costs({"second", "nothing", "first", "second", "foreign", "other"}) == std::vector<Decimal>{4000, 0, 7500, 4000, 0, 0});
    CHECK(m.inference_costs(std::vector<std::string>{}).empty());
    CHECK(m.estimate_instant_fees(use({{"n", 10}})).fees.at(0).amount == Decimal("0.0000075"));
    book["subscriptions"] = {
        {{"id", "s"}, {"external_customer_id", "acme"}, {"start_date", "2026-01-01T00:00:00Z"}, {"subscription_status", "paused"}}};
    CHECK(with(book, {first}).inference_costs({"first"}) == std::vector<Decimal>{0});
    CHECK(Meter().inference_costs({"x"}) == std::vector<Decimal>{0});
}

TEST_CASE("what if: a quantity under a FlexPrice price, used or fixed") {
    json book =
        catalogue(meter_json({{"type", "COUNT"}}),
                  flat({{"display_name", "calls"}, {"billing_model", "PACKAGE"}, {"amount", "3"}, {"transform_quantity", {{"divide_by", 100}}}}));
    book["prices"].push_back(
        {{"id", "seat"}, {"type", "FIXED"}, {"currency", "usd"}, {"billing_model", "FLAT_FEE"}, {"amount", "20"}, {"min_quantity", 2}});
    const auto made = Book::flexprice(book);
    CHECK(made.price("calls", 101).amount == 6);
    CHECK(made.price("calls", 101).vendor["effective_unit_cost"] == "0.0594059405940594");
    CHECK(made.price("seat", 0).amount == 40);
    CHECK(made.price("seat", 5).amount == 100);
    CHECK_THROWS_AS(made.price("nothing", 1), Error);
}

TEST_CASE("a FlexPrice price in a unit of its own is converted once") {
    const json meter = meter_json({{"type", "COUNT"}});
    json price = flat({{"price_unit_type", "CUSTOM"}, {"price_unit_config", {{"amount", "3"}, {"price_unit", "tok"}}}});
    price.erase("amount");
    json book = catalogue(meter, price);
    CHECK(refused(book) == "prices[0].price_unit_config.price_unit: no such price unit: tok");
    book["price_units"] = {{{"code", "tok"}, {"conversion_rate", "0.01"}}};
    CHECK(Book::flexprice(book).price("p", 10).amount == Decimal("0.3"));
    book["prices"][0].update({{"billing_model", "TIERED"}, {"tier_mode", "SLAB"}});
    book["prices"][0]["price_unit_config"] = {
        {"price_unit", "tok"},
        {"price_unit_tiers", {{{"up_to", 5}, {"unit_amount", "2"}, {"flat_amount", "7"}}, {{"up_to", nullptr}, {"unit_amount", "1"}}}}};
    CHECK(Book::flexprice(book).price("p", 10).amount == Decimal("0.22"));
    book["prices"][0]["tiers"] = {{{"up_to", nullptr}, {"unit_amount", "1"}}};  // as FlexPrice shows it, in money
    CHECK(Book::flexprice(book).price("p", 10).amount == 10);
    book["price_units"][0]["conversion_rate"] = "0";
    book["prices"][0].erase("tiers");
    CHECK(refused(book) == "price_units[0].conversion_rate: must be above 0");
}

TEST_CASE("impossible FlexPrice catalogues are refused by path and reason") {
    const auto tiers_refused = [](json tier) {
        tier["unit_amount"] = "1";
        return refused(catalogue(meter_json({{"type", "COUNT"}}), flat({{"billing_model", "TIERED"}, {"tiers", json::array({tier})}})));
    };
    CHECK(tiers_refused({{"up_to", "1.5"}}) == "prices[0].tiers[0].up_to: must be a whole number");
    CHECK(tiers_refused({{"up_to", -1}}) == "prices[0].tiers[0].up_to: must be at least 0");
    CHECK(tiers_refused({{"up_to", "18446744073709551615"}}) == "accepted");
    CHECK(refused(catalogue(meter_json({{"type", "COUNT"}}), flat({{"type", "CREDIT"}}))) == "prices[0].type: is not known: CREDIT");
    CHECK(refused(catalogue(meter_json({{"type", "COUNT"}}), flat({{"type", "FIXED"}, {"billing_period", "NOW"}}))) ==
          "prices[0].billing_period: is not known: NOW");
    const auto meter_refused = [](json aggregation, json more = json::object()) {
        return refused(catalogue(meter_json(std::move(aggregation), std::move(more)), flat()));
    };
    CHECK(meter_refused({{"type", "MEDIAN"}, {"field", "n"}}) == "meters[0].aggregation.type: is not known: MEDIAN");
    CHECK(meter_refused({{"type", "SUM"}}) == "meters[0].aggregation.field: is required");
    CHECK(meter_refused({{"type", "SUM"}, {"field", "n"}, {"bucket_size", "FORTNIGHT"}}) ==
          "meters[0].aggregation.bucket_size: is not known: FORTNIGHT");
    CHECK(meter_refused({{"type", "COUNT"}, {"bucket_size", "HOUR"}}) == "meters[0].aggregation.bucket_size: is for MAX and SUM only");
    CHECK(meter_refused({{"type", "SUM"}, {"field", "n"}, {"bucket_size", "HOUR"}, {"group_by", "k"}}) ==
          "meters[0].aggregation.group_by: is for MAX only");
    CHECK(meter_refused({{"type", "MAX"}, {"field", "n"}, {"group_by", "k"}}) == "meters[0].aggregation.group_by: is for MAX with buckets only");
    CHECK(meter_refused({{"type", "SUM_WITH_MULTIPLIER"}, {"field", "n"}}) == "meters[0].aggregation.multiplier: must be above 0");
    CHECK(meter_refused({{"type", "COUNT"}}, {{"reset_usage", "SOMETIMES"}}) == "meters[0].reset_usage: is not known: SOMETIMES");
    CHECK(meter_refused({{"type", "COUNT"}}, {{"filters", {{{"key", "k"}, {"values", json::array()}}}}}) ==
          "meters[0].filters[0].values: must not be empty");
    const auto subscription_refused = [](json subscription) {
        json book = catalogue(meter_json({{"type", "COUNT"}}), flat());
        book["subscriptions"] = json::array({std::move(subscription)});
        return refused(book);
    };
    CHECK(subscription_refused({{"external_customer_id", "acme"}}) == "subscriptions[0].id: is required");
    CHECK(subscription_refused({{"id", "s"}}) == "subscriptions[0].external_customer_id: is required");
    CHECK(subscription_refused({{"id", "s"}, {"external_customer_id", "acme"}, {"billing_period", "SOMETIMES"}}) ==
          "subscriptions[0].billing_period: is not known: SOMETIMES");
    CHECK(subscription_refused({{"id", "s"}, {"external_customer_id", "acme"}, {"line_items", {{{"price_id", "x"}}}}}) ==
          "subscriptions[0].line_items[0].price_id: no such price: x");
    CHECK(subscription_refused(
              {{"id", "s"}, {"external_customer_id", "acme"}, {"start_date", "2026-03-01T00:00:00Z"}, {"end_date", "2026-02-01T00:00:00Z"}}) ==
          "subscriptions[0].end_date: is before start_date");
    CHECK(refused({{"prices", json::array()}}) == "prices: must not be empty");
    CHECK(refused(catalogue(meter_json({{"type", "COUNT"}}),
                            flat({{"commitment", {{"type", "quantity"}, {"quantity", "1e30"}}}}, "12345678901234567"))) ==
          "prices[0].commitment.quantity: the exact result needs more than 38 digits or 76 decimals");
    json currencies = catalogue(meter_json({{"type", "COUNT"}}), flat());
    currencies["prices"].push_back(flat({{"id", "q"}, {"currency", "eur"}}));
    CHECK(refused(currencies) == "prices[1].currency: differs from that of the first price");
    json bucket = catalogue(meter_json({{"type", "SUM"}, {"field", "n"}, {"bucket_size", "HOUR"}}), flat());
    bucket["prices"][0]["commitment_time_buckets"] = {{{"start", "10:00"}, {"end", "9:00"}}};
    CHECK(refused(bucket) == "prices[0].commitment_time_buckets[0].end: must be a time of day like 09:30");
    bucket["prices"][0]["commitment_time_buckets"] = {{{"start", "10:00"}, {"end", "24:01"}}};
    CHECK(refused(bucket) == "prices[0].commitment_time_buckets[0].end: must be a time of day like 09:30");
    bucket["prices"][0]["commitment_time_buckets"] = {{{"start", "10:00"}, {"end", "24:00"}, {"price_id", "p"}}};
    CHECK(refused(bucket) == "prices[0].commitment_time_buckets[0].price: must be an object");
    bucket["prices"][0]["commitment_time_buckets"] = {{{"start", "10:00"}, {"end", "09:00"}}};
    CHECK(refused(bucket) == "prices[0].commitment_time_buckets[0].end: is not after start");
}
