// Vectors about calendars: Autumn's cycles, windows, ranges and grids, FlexPrice's window grids.
#pragma once

namespace golden::time_vectors {

using meter::Bin;
using meter::Period;
using meter::Timestamp;

Timestamp from_ms(const json& value) { return Timestamp::from_unix_ms(Decimal::from_json(value)); }
json to_ms(Timestamp time) { return time.micros() / 1000; }
std::optional<Timestamp> optional_ms(const json& object, const char* key) {
    return object.contains(key) && !object.at(key).is_null() ? std::optional(from_ms(object.at(key))) : std::nullopt;
}

/// "2026-05-29 03:00:00", also with a T: a clock's time without its zone.
Timestamp from_clock(const json& text) {
    const auto clock = text.get<std::string>();
    return Timestamp::parse(clock.ends_with('Z') ? clock : clock + "Z");
}
json to_clock(Timestamp time, const meter::Zone& zone) {
    auto text = Timestamp(zone.to_local(time)).to_string(0);
    text.pop_back();
    text[10] = ' ';
    return text;
}

Bin bin_named(const std::string& name) {
    static const std::map<std::string, Bin> bins{{"hour", Bin::hour}, {"day", Bin::day}, {"week", Bin::week}, {"month", Bin::month}};
    return bins.at(name);
}

std::vector<Timestamp> starts(const meter::BinGrid& grid) {
    std::vector<Timestamp> list;
    for (std::int64_t i = 0; i < grid.count(); ++i) list.push_back(grid.start(i));
    return list;
}

Period cycle(const json& vector) {
    const auto& input = vector.at("input");
    const auto stride = meter::autumn::stride_of(input.at("interval").get<std::string>(), integer(input, "interval_count", 1));
    const auto floor = optional_ms(input, "floor_ms").value_or(Timestamp::min());
    return meter::autumn::cycle_around(from_ms(input.at("now_ms")), from_ms(input.at("anchor_ms")), stride, floor);
}

json cycle_start(const json& vector) { return {{"result_ms", to_ms(cycle(vector).from)}}; }
json cycle_end(const json& vector) { return {{"result_ms", to_ms(cycle(vector).to)}}; }

json usage_window(const json& vector) {
    const auto& input = vector.at("input");
    const auto window =
        meter::autumn::usage_window(input.at("interval").get<std::string>(), from_ms(input.at("now_ms")), optional_ms(input, "anchor_ms"));
    constexpr std::int64_t never = 9007199254740991;  // JavaScript's largest integer
    if (!window) return {{"window_start_ms", 0}, {"window_end_ms", never}};
    return {{"window_start_ms", to_ms(window->from)}, {"window_end_ms", to_ms(window->to)}};
}

/// The billing cycle of the vector's subscription, if it has one.
std::optional<meter::BillingCycle> billing_cycle(const json& input) {
    const auto billed = input.value("subscription", json());
    if (billed.is_null()) return {};
    const auto start = from_ms(billed.at("start"));
    return meter::BillingCycle{{start, from_ms(billed.at("end"))}, optional_ms(billed, "created").value_or(start)};
}

json range(const json& vector) {
    const auto& input = vector.at("input");
    const auto bin = bin_named(input.value("bin_size", "day"));
    const auto custom = input.value("custom_range", json());
    const auto ranges = custom.is_null()
                            ? meter::autumn::named_ranges(input.value("range", "1bc"), bin, from_ms(input.at("now_ms")), billing_cycle(input))
                            : meter::autumn::custom_ranges(from_ms(custom.at("start")), from_ms(custom.at("end")));
    return {{"list_start_ms", to_ms(ranges.list.from)},
            {"list_end_ms", to_ms(ranges.list.to)},
            {"total_start_ms", to_ms(ranges.total.from)},
            {"total_end_ms", to_ms(ranges.total.to)}};
}

json period_grid(const json& vector) {
    const auto& input = vector.at("input");
    const auto zone = input.value("timezone", "UTC");
    const auto range = meter::up_to(from_clock(input.at("start_utc")), from_clock(input.at("end_utc")));
    json periods = json::array();
    for (const auto start : starts(meter::BinGrid(range, {.bin = bin_named(input.value("bin_size", "day")), .time_zone = zone}))) {
        periods.push_back(to_clock(start, meter::Zone(zone)));
    }
    if (periods.empty()) return {{"periods", periods}};
    return {{"first", periods.front()}, {"last", periods.back()}, {"periods", periods}};
}

json contains_complete_utc_day(const json& vector) {
    const auto& input = vector.at("input");
    const Period period{from_clock(input.at("start")), from_clock(input.at("end"))};
    const meter::BinGrid days(period, {.bin = Bin::day});
    bool contains = false;
    for (std::int64_t i = 0; i < days.count(); ++i) contains = contains || (period.from <= days.start(i) && days.start(i + 1) <= period.to);
    return {{"contains", contains}};
}

Bin window_size(const json& vector) { return meter::Node(vector.at("aggregation")).choice("bucket_size", meter::flexprice::window_sizes); }

json bucket_starts(const json& vector) {
    const auto& query = vector.at("query");
    const auto time = [&](const char* key) { return Timestamp::parse(query.at(key).get<std::string>()); };
    const Period period{time("start_time"), time("end_time")};
    const auto anchor = query.value("billing_anchor", json()).is_string() ? std::optional(time("billing_anchor")) : std::nullopt;
    const auto windows = meter::flexprice::commitment_windows(window_size(vector), period, anchor);
    json list = json::array();
    for (const auto start : starts(meter::BinGrid(period, windows))) list.push_back(start.to_string());
    return {{"bucket_starts", list}};
}

/// That day of the month after the one of `from`.
json add_month_clamped(const json& vector) {
    const auto& query = vector.at("query");
    const auto from = Timestamp::parse(query.at("from").get<std::string>());
    const auto anchor = Timestamp::from_civil(2000, 1, static_cast<unsigned>(integer(query, "day")));
    const meter::Cycle months({1, 0}, anchor.micros() + from.micros() - meter::midnight(meter::date_of(from)).micros(), meter::Zone({}));
    return {{"next", months.around(meter::this_month(from).to - std::chrono::microseconds(1)).to.to_string()}};
}

/// The hours that a commitment charges: those with usage, and the empty ones that it makes up for.
json fill_commitment_windows(const json& vector) {
    using namespace meter::flexprice;
    const auto &query = vector.at("query"), &aggregation = vector.at("aggregation");
    const Period period{Timestamp::parse(query.at("start_time").get<std::string>()), Timestamp::parse(query.at("end_time").get<std::string>())};
    WindowedPrice terms{{}, Commitment{.amount = 1, .true_up = aggregation.value("line_item_true_up", false)}, {}};
    for (const auto& bucket : {aggregation.value("time_bucket", json())}) {
        if (!bucket.is_null()) terms.buckets.push_back(read_time_bucket(meter::Node(bucket), Price()));
    }
    for (const auto& bucket : aggregation.value("time_buckets", json::array()))
        terms.buckets.push_back(read_time_bucket(meter::Node(bucket), Price()));
    const auto grid = commitment_windows(window_size(vector), period, {});
    meter::Bins bins(grid);
    std::map<Timestamp, Decimal> used;
    for (const auto& event : vector.at("events")) {
        const auto start = bins.around(Timestamp::parse(event.at("timestamp").get<std::string>())).from;
        used[start] += number(event.value("properties", json::object()), "value");
    }
    std::vector<Part> windows;
    for (const auto& [start, units] : used) windows.push_back({.start = start, .units = units});
    json hours = json::array();
    for (const auto& window : terms.filled(windows, meter::BinGrid(period, grid))) hours.push_back(window.minute() / 60);
    return {{"window_hours", hours}};
}

json window(const json& vector) {
    const auto endpoint = vector.at("query").at("endpoint").get<std::string>();
    if (endpoint == "bucket_starts") return bucket_starts(vector);
    if (endpoint == "add_month_clamped") return add_month_clamped(vector);
    if (endpoint == "fill_commitment_windows") return fill_commitment_windows(vector);
    throw Unknown{};
}

}  // namespace golden::time_vectors

namespace golden {

inline Vendor autumn_time() {
    using namespace time_vectors;
    return {"autumn",
            {{"cycle_start", cycle_start},
             {"cycle_end", cycle_end},
             {"usage_window", usage_window},
             {"range", range},
             {"period_grid", period_grid},
             {"contains_complete_utc_day", contains_complete_utc_day}}};
}

inline Vendor flexprice_time() { return {"flexprice", {{"aggregation WINDOW", time_vectors::window}}}; }

}  // namespace golden
