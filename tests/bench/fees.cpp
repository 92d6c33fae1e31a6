// Pricing: fees a second under a book's charges, and an estimate over a log of the usual size.
#include "fixtures.hpp"
#include "references.hpp"

namespace bench {

namespace {

using meter::Book;
using meter::Decimal;
using meter::json;
using meter::Meter;

json charge(const char* code, const char* model, json properties) {
    return {
        {"code", code}, {"billable_metric_code", "calls"}, {"charge_model", model}, {"pay_in_advance", true}, {"properties", std::move(properties)}};
}

json ten_tiers() {
    auto ranges = json::array();
    for (int i = 0; i < 10; ++i) {
        ranges.push_back({{"from_value", i == 0 ? 0 : i * 100 + 1},
                          {"to_value", i == 9 ? json(nullptr) : json(i * 100 + 100)},
                          {"per_unit_amount", "0.0" + std::to_string(99 - i)},
                          {"flat_amount", "1.5"}});
    }
    return {{"graduated_ranges", std::move(ranges)}};
}

Book plan(const json& charges, const json& metric) {
    return Book::lago({{"plan", {{"code", "bench"}, {"amount_currency", "EUR"}, {"charges", charges}}}, {"billable_metrics", {metric}}});
}

// Fees a second of quantities up to 1,000 with two decimals.
double fees_per_second(const Book& book, const char* code) {
    constexpr int fees = 200'000;
    Decimal cents;
    const double seconds = timed([&] {
        for (int i = 0; i < fees; ++i) cents += book.price(code, Decimal::scaled(i % 100'000, 2)).amount_cents;
    });
    if (cents.is_zero()) say("nothing was priced\n");
    return fees / seconds;
}

void measure_prices(const Fixtures& fixtures) {
    const auto book = plan({charge("flat", "standard", {{"amount", "0.0123"}}), charge("tiers", "graduated", ten_tiers())},
                           {{"code", "calls"}, {"aggregation_type", "count_agg"}});
    std::vector<double> standard, tiers;
    for (int round = 0; round < fixtures.options.rounds; ++round) {
        standard.push_back(fees_per_second(book, "flat"));
        tiers.push_back(fees_per_second(book, "tiers"));
    }
    bar("fees_standard", median(standard), Better::higher, 1'000'000);
    bar("fees_ten_tiers", median(tiers), Better::higher, 300'000);
}

// Calls `use(meter, event)` for events of a sum in the current period, one of each of 200 customers with a subscription, on a log of that many events,
// and answers the median of the seconds that it takes.
template <class Use>
double seconds_in_log(const Fixtures& fixtures, std::int64_t events, Use&& use) {
    constexpr std::int64_t commit = 10'000;
    const Workload workload(events);
    const auto end = Workload::period().to;
    const auto path = fixtures.path("fees.db");
    std::vector<double> seconds;
    {
        Meter meter({.path = path, .durability = meter::Durability::process, .clock = [end] { return end - std::chrono::hours(1); }});
        std::vector<meter::Event> batch;
        for (std::int64_t at = 0; at < events; at += commit) {
            workload.fill(batch, at, static_cast<std::size_t>(std::min(commit, events - at)));
            for (auto& event : batch) event.subscription = event.customer;
            meter.record(batch);
        }
        meter.load(plan(
            {{{"billable_metric_code", name_text(7)}, {"charge_model", "standard"}, {"pay_in_advance", true}, {"properties", {{"amount", "0.01"}}}}},
            {{"code", name_text(7)}, {"aggregation_type", "sum_agg"}, {"field_name", "tokens"}}));
        for (int customer = 0; customer < 200; ++customer) {
            const meter::Event event{.name = name_text(7), .subscription = customer_text(customer), .properties = {{"tokens", 5}}};
            seconds.push_back(timed([&] { use(meter, event); }));
        }
    }
    remove_database(path);
    return median(std::move(seconds));
}

void measure_estimate(const Fixtures& fixtures) {
    const auto events = fixtures.usual();
    const auto estimate = [](Meter& meter, const meter::Event& event) { meter.estimate_fees(event); };
    const double tenth = seconds_in_log(fixtures, events / 10, estimate), whole = seconds_in_log(fixtures, events, estimate);
    say("fees_estimate: %.3f ms in a log of %s, %.3f ms in one of %s\n", tenth * 1000, size_name(events / 10).c_str(), whole * 1000,
        size_name(events).c_str());
    bar("fees_estimate_ms", whole * 1000, Better::lower, 1);
}

// The second of two events that are recorded within a limit: what the first finds out is kept.
void measure_limits(const Fixtures& fixtures) {
    const auto events = fixtures.usual();
    const meter::Limit units{.metric = name_text(7), .units = Decimal(1'000'000'000), .scope = meter::LimitScope::subscription},
        money{.cents = Decimal(1'000'000'000), .scope = meter::LimitScope::subscription};
    for (const auto& [what, limit] : {std::pair("units", units), std::pair("money", money)}) {
        std::vector<double> second;
        const auto record = [&, within = limit](Meter& meter, const meter::Event& event) {
            meter.record(event, within);
            second.push_back(timed([&] { meter.record(event, within); }));
        };
        seconds_in_log(fixtures, events / 10, record);
        const double tenth = median(std::exchange(second, {}));
        seconds_in_log(fixtures, events, record);
        const double whole = median(std::move(second));
        say("fees_limit: in %s %.3f ms in a log of %s, %.3f ms in one of %s\n", what, tenth * 1000, size_name(events / 10).c_str(), whole * 1000,
            size_name(events).c_str());
        bar(std::string("fees_limit_") + what + "_ms", whole * 1000, Better::lower, 1);
    }
}

}  // namespace

std::vector<Measurement> fee_measurements(Fixtures& fixtures) {
    return {{"fees", "fees a second, standard and of ten tiers", [&] { measure_prices(fixtures); }},
            {"fees_estimate", "an estimate in a log, all told", [&] { measure_estimate(fixtures); }},
            {"fees_limit", "recording within a limit in a log", [&] { measure_limits(fixtures); }}};
}

}  // namespace bench
