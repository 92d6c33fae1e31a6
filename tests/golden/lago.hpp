// Lago's vectors: dossier section 10.2.
#pragma once

namespace golden::lago_vectors {

namespace lago = meter::lago;
using meter::Event;
using meter::Node;
using meter::Timestamp;

const lago::ModelRow& row_of(const json& vector) {
    const auto name = vector.at("model").get<std::string>();
    for (const auto& [key, row] : lago::models) {
        if (key == name) return row;
    }
    throw std::runtime_error("unknown model " + name);
}

/// The price that properties say; the vectors of some kinds leave out what a plan could not.
lago::Price price_of(const lago::ModelRow& row, const json& properties) {
    meter::Problems problems;
    return lago::read_price(row, Node(properties), {lago::Kind::sum, true, problems});
}

lago::Price price_of(const json& vector) { return price_of(row_of(vector), vector.at("properties")); }

meter::Currency currency_of(const json& input) { return lago::currency_of(input.value("currency", "EUR")); }

lago::Quantity quantity_of(const json& input, const lago::Price& price) {
    lago::Quantity quantity;
    quantity.units = number(input, "units");
    if (input.contains("full_units")) quantity.full_units = number(input, "full_units");
    quantity.prorated = input.value("prorated", false);
    quantity.events = integer(input, "events_count");
    Decimal before;
    for (const auto& total : numbers(input, "running_total")) {
        lago::run_on(price, quantity.running, total - before);
        before = total;
    }
    for (const auto& value : numbers(input, "events_values")) quantity.bounded.add(price, value);
    quantity.premium = input.value("premium", false);
    quantity.precise_amount = meter::quotient(number(input, "precise_total_amount_cents"), currency_of(input).subunits);
    if (input.contains("custom_aggregation")) quantity.precise_amount = number(input.at("custom_aggregation"), "amount");
    return quantity;
}

json charge_model(const json& vector) {
    const auto& row = row_of(vector);
    const auto price = price_of(vector);
    const auto quantity = quantity_of(vector.at("input"), price);
    const auto priced = row.price(price, quantity);
    return {{"amount", text(priced.amount)},
            {"unit_amount", text(lago::unit_amount(price, quantity, priced.amount))},
            {"amount_details", row.details(price, quantity, priced)}};
}

json prorated(const json& properties, const Decimal& units, const std::vector<lago::ProratedEvent>& events) {
    const auto price = price_of(lago::row_of(lago::Model::graduated), properties);
    const auto priced = lago::price_prorated_graduated(price.tiers, units, events);
    Decimal full;
    for (const auto& event : events) full += event.full;
    return {{"amount", text(priced.amount)},
            {"unit_amount", text(meter::quotient(priced.amount, full))},
            {"amount_cents", text(meter::to_cents(priced.amount, {}))},
            {"units", text(full)}};
}

json prorated_graduated(const json& vector) {
    const auto& input = vector.at("input");
    const auto full = numbers(input, "full_units_per_event"), shares = numbers(input, "prorated_units_per_event");
    std::vector<lago::ProratedEvent> events;
    for (std::size_t i = 0; i < full.size(); ++i) events.push_back({full[i], i < shares.size() ? shares[i] : Decimal()});
    return prorated(vector.at("properties"), number(input, "units"), events);
}

std::int64_t days_between(const std::string& from, const std::string& to) {
    return (Timestamp::parse(to) - Timestamp::parse(from)) / std::chrono::hours(24) + 1;
}

json prorated_graduated_scenario(const json& vector) {
    const auto& input = vector.at("input");
    const auto& period = input.at("period");
    const auto days = number(period, "days");
    std::vector<lago::ProratedEvent> events;
    const auto persisted = number(input, "persisted_units");
    if (!persisted.is_zero()) events.push_back({persisted, persisted});
    Decimal units;
    for (const auto& event : input.at("events")) {
        const auto value = number(event, "value");
        events.push_back({value, meter::quotient(value * days_between(event.at("date"), period.at("to")), days)});
    }
    for (const auto& event : events) units += event.prorated;
    return prorated(vector.at("properties"), units, events);
}

json range_detail(const json& vector) {
    const auto& range = vector.at("properties").at("range");
    const auto& input = vector.at("input");
    const bool as_percent = range.contains("rate");
    std::vector<meter::Tier> tiers(1);
    auto& tier = tiers.front();
    tier.from = number(range, "from_value");
    if (!range.at("to_value").is_null()) tier.up_to = number(range, "to_value");
    tier.rate = as_percent ? meter::percent(number(range, "rate")) : number(range, "per_unit_amount");
    tier.flat = number(range, "flat_amount");
    lago::set_lower_bounds(tiers, false);
    if (input.value("adjacent", false)) tier.above = tier.from;
    return lago::range_details(meter::graduated(tiers, number(input, "total_units")).lines.front(), as_percent);
}

json grouped(const json& vector) {
    auto groups = json::array();
    for (const auto& group : vector.at("input").at("groups")) {
        const auto price = price_of(vector);
        const auto quantity = quantity_of(group, price);
        const auto priced = lago::apply(price, quantity);
        groups.push_back({{"grouped_by", group.at("grouped_by")},
                          {"units", text(quantity.units)},
                          {"amount", text(priced.amount)},
                          {"unit_amount", text(lago::unit_amount(price, quantity, priced.amount))}});
    }
    return {{"groups", groups}};
}

json calculate_price(const json& vector) {
    const auto price = price_of(vector);
    const auto amount = lago::apply(price, quantity_of(vector.at("input"), price)).amount;
    return {{"charge_amount", text(amount)}, {"total", text(amount + number(vector.at("input"), "plan_amount_cents"))}};
}

/// The vectors have prices that no plan may have.
json estimate_instant(const json& vector) {
    const auto units = meter::at_least_zero(number(vector.at("input"), "units"));
    return {{"amount", text(lago::price_instant(price_of(vector), units).amount)}, {"units", text(units)}};
}

json difference(const json& vector) {
    const auto& input = vector.at("input");
    const auto currency = currency_of(input);
    meter::Fee fee;
    fee.units = number(input, "units");
    meter::Priced with, without;
    with.add({.amount = number(input, "amount_with_event")});
    without.add({.amount = number(input, "amount_without_event")});
    lago::set_amounts(fee, meter::difference(with, without), currency);
    return {{"amount_cents", text(fee.amount_cents)},
            {"precise_amount_cents", text(fee.amount * currency.subunits)},
            {"units", text(fee.units)},
            {"unit_amount", text(fee.unit_amount)}};
}

json amount_details_delta(const json& vector) {
    return lago::added_details(vector.at("input").at("with_event"), vector.at("input").at("without_event"));
}

// --- vectors with events ---

/// A plan of the vector's one charge, for the subscription "sub".
meter::Book book_of(const json& vector, bool prorated = false) {
    const auto& input = vector.at("input");
    json metric{{"code", "metric"},
                {"aggregation_type", input.value("aggregation_type", "sum_agg")},
                {"field_name", input.value("field_name", "amount")},
                {"recurring", prorated}};
    json charge{{"billable_metric_code", "metric"},
                {"charge_model", vector.at("model")},
                {"pay_in_advance", true},
                {"prorated", prorated},
                {"properties", vector.at("properties")}};
    return meter::Book::lago({{"plan", {{"code", "plan"}, {"amount_currency", input.value("currency", "EUR")}, {"charges", {charge}}}},
                              {"premium", input.value("premium", false)},
                              {"billable_metrics", {metric}}});
}

Event event_of(const json& source) {
    Event event{.name = "metric", .subscription = "sub", .timestamp = Timestamp::parse("2026-03-05"), .properties = source.at("properties")};
    if (source.contains("precise_total_amount_cents")) event.precise_total_amount_cents = number(source, "precise_total_amount_cents");
    return event;
}

/// A database of its own with the book and the events, at that time.
meter::Meter log_of(const json& vector, const json& events, bool prorated, Timestamp now) {
    meter::Meter log({.clock = [now] { return now; }});
    log.load(book_of(vector, prorated));
    std::vector<Event> list;
    for (const auto& source : events) {
        list.push_back(event_of(source));
        list.back().id = std::to_string(list.size());
    }
    log.record(list);
    return log;
}

json pay_in_advance_sequence(const json& vector) {
    const auto log = log_of(vector, vector.at("input").at("events"), false, Timestamp::parse("2026-03-10"));
    auto fees = json::array();
    for (const auto& fee : log.advance_fees({.subscription = "sub"}).fees) {
        fees.push_back({{"units", text(fee.units)},
                        {"amount_cents", text(fee.amount_cents)},
                        {"events_count", fee.events},
                        {"amount_details", fee.vendor.at("amount_details")}});
    }
    return {{"fees", fees}};
}

json estimated(const json& vector, bool prorated, Timestamp now) {
    const auto log = log_of(vector, vector.at("input").at("persisted_events"), prorated, now);
    const auto fees = log.estimate_fees(event_of(vector.at("input").at("estimated_event")));
    const auto& fee = fees.fees.at(0);
    return {{"units", text(fee.units)}, {"amount_cents", text(fee.amount_cents)}, {"events_count", fee.events}};
}

json estimate_fees(const json& vector) { return estimated(vector, false, Timestamp::parse("2026-03-10")); }

/// A day with that many days left, itself included, in a month of that many days.
Timestamp day_with_left(std::int64_t days_left, std::int64_t month_days) {
    const auto month = month_days == 28 ? "2026-02-01" : month_days == 29 ? "2024-02-01" : month_days == 30 ? "2026-04-01" : "2026-03-01";
    return Timestamp::parse(month) + std::chrono::hours(24 * (month_days - days_left));
}

json estimate_fees_prorated(const json& vector) {
    const auto& input = vector.at("input");
    if (!input.contains("days_to_period_end_inclusive") || !input.contains("period_days")) throw Unknown();
    return estimated(vector, true, day_with_left(integer(input, "days_to_period_end_inclusive"), integer(input, "period_days")));
}

json current_usage_pay_in_advance(const json& vector) {
    const auto& input = vector.at("input");
    const auto days = integer(input, "period_days");
    const auto now = day_with_left(1, days);
    auto log = log_of(vector, json::array(), input.value("prorated", false), now);
    auto steps = json::array();
    for (const auto& step : input.at("steps")) {
        auto event = event_of({{"properties", {{"amount", step.at("units_delta")}}}});
        event.timestamp = day_with_left(integer(step, "days_to_period_end_inclusive", days), days);
        log.record(event);
        const auto fees = log.usage({.subscription = "sub"});
        steps.push_back({{"amount_cents", text(fees.amount_cents)}, {"units", text(fees.fees.at(0).units)}});
    }
    return {{"after_each_step", steps}};
}

json estimate_instant_fee(const json& vector) {
    const auto log = log_of(vector, json::array(), false, Timestamp::parse("2026-03-10"));
    const auto fee = log.estimate_instant_fees(event_of({{"properties", {{"amount", vector.at("input").at("units")}}}})).fees.at(0);
    return {{"amount", text(fee.amount)}, {"units", text(fee.units)}, {"amount_cents", text(fee.amount_cents)}};
}

// --- cents ---

json fee(const json& vector) {
    const auto& row = row_of(vector);
    const auto price = price_of(vector);
    const auto& input = vector.at("input");
    const auto quantity = quantity_of(input, price);
    auto priced = row.price(price, quantity);
    const auto details = row.details(price, quantity, priced);
    auto units = quantity.full_units && !quantity.prorated ? *quantity.full_units : quantity.units;
    meter::lago::clamp(priced, units);
    auto figures = lago::figures(priced.amount, lago::unit_amount(price, quantity, priced.amount), currency_of(input));
    json out{{"units", text(units)}, {"amount_details", details}};
    if (input.contains("conversion_rate")) {
        out["pricing_unit_amount_cents"] = text(figures.cents);
        out["pricing_unit_precise_amount_cents"] = text(figures.precise_cents);
        out["pricing_unit_unit_amount_cents"] = text(figures.unit_cents);
        figures = lago::converted(figures, number(input, "conversion_rate"), currency_of(input));
    }
    out["amount_cents"] = text(figures.cents);
    out["precise_amount_cents"] = text(figures.precise_cents);
    out["unit_amount_cents"] = text(figures.unit_cents);
    out["precise_unit_amount"] = text(figures.unit_amount);
    return out;
}

json true_up(const json& vector) {
    const auto& input = vector.at("input");
    const auto cents = lago::true_up_cents(number(input, "min_amount_cents"), number(input, "used_amount_cents"),
                                           static_cast<int>(integer(input, "days")), static_cast<int>(integer(input, "period_days")));
    const auto currency = currency_of(input);
    return {{"amount_cents", text(meter::to_cents(meter::quotient(cents, currency.subunits), currency))}, {"precise_amount_cents", text(cents)}};
}

json to_cents(const json& vector) {
    const auto& input = vector.at("input");
    const auto cents = text(meter::to_cents(number(input, "amount"), currency_of(input)));
    return {{"amount_cents", cents}, {"cents", cents}};
}

json validation(const json& vector) {
    meter::Problems problems;
    const auto& input = vector.at("input");
    lago::Kind kind = lago::Kind::sum;
    for (const auto& [name, value] : lago::kinds) {
        if (input.value("aggregation_type", "sum_agg") == name) kind = value;
    }
    lago::read_price(row_of(vector), Node(vector.at("properties")), {kind, input.value("premium", true), problems});
    auto errors = json::object();
    for (const auto& problem : problems) {
        auto& codes = errors[problem.field];
        if (std::find(codes.begin(), codes.end(), json(problem.code)) == codes.end()) codes.push_back(problem.code);
    }
    return {{"valid", problems.empty()}, {"errors_include", errors}};
}

// --- filters, rounding and current usage, which books decide ---

/// A charge with the vector's filters, in order of creation.
lago::Charge filtered_charge(const json& aggregation) {
    lago::BillableMetric metric;
    for (const auto& [key, values] : aggregation.at("metric_filters").items()) metric.filters[key] = values.get<std::vector<std::string>>();
    lago::Charge charge;
    for (const auto& source : aggregation.at("charge_filters")) {
        charge.filters.push_back({lago::read_values(Node(source), "values", &metric), source.at("name"), {}, {}});
    }
    return charge;
}

json filter_event_match(const json& vector) {
    const auto charge = filtered_charge(vector.at("aggregation"));
    const auto* filter = lago::filter_of(charge, vector.at("events").at(0).at("properties"));
    return {{"charge_filter", filter ? json(filter->name) : json(nullptr)}};
}

json filter_matching_and_ignored(const json& vector) {
    const auto charge = filtered_charge(vector.at("aggregation"));
    std::vector<lago::Values> all;
    std::size_t current = 0;
    for (const auto& filter : charge.filters) {
        if (filter.name == vector.at("aggregation").at("current")) current = all.size();
        all.push_back(filter.values);
    }
    return {{"matching", all.at(current)}, {"ignored", lago::ignored_values(all, current)}};
}

json rounding(const json& vector) {
    json metric{{"code", "metric"}, {"aggregation_type", "count_agg"}};
    metric.update(vector.at("aggregation").at("type") == "rounding" ? vector.at("aggregation") : json::object());
    return {{"units", text(lago::rounded(lago::read_metric(Node(metric)), number(vector, "units")))}};
}

json current_usage(const json& vector) {
    const lago::AdvanceState state{number(vector.at("cached"), "current_aggregation"), number(vector.at("cached"), "max_aggregation")};
    return {{"aggregation", text(state.paid(number(vector, "total_aggregation")))}};
}

json current_usage_prorated(const json& vector) {
    const lago::ProratedAdvance advance{{number(vector.at("cached"), "current_aggregation"), Decimal()},
                                        number(vector.at("cached"), "max_aggregation_with_proration")};
    const auto& period = vector.at("period");
    const auto share = meter::quotient(days_between(period.at("from"), period.at("to")), number(period, "days"));
    const auto live = number(vector, "current_usage_units_raw");
    return {{"aggregation", text(advance.paid(live, share))}, {"current_usage_units", text(live)}};
}

}  // namespace golden::lago_vectors

namespace golden {

inline Vendor lago_pricing() {
    using namespace lago_vectors;
    return {"lago",
            {{"charge_model", charge_model},
             {"prorated_graduated", prorated_graduated},
             {"prorated_graduated_scenario", prorated_graduated_scenario},
             {"range_detail", range_detail},
             {"grouped", grouped},
             {"calculate_price", calculate_price},
             {"estimate_instant", estimate_instant},
             {"estimate_instant_fee", estimate_instant_fee},
             {"difference", difference},
             {"amount_details_delta", amount_details_delta},
             {"pay_in_advance_sequence", pay_in_advance_sequence},
             {"estimate_fees", estimate_fees},
             {"estimate_fees_prorated", estimate_fees_prorated},
             {"fee", fee},
             {"current_usage_pay_in_advance", current_usage_pay_in_advance},
             {"true_up", true_up},
             {"to_cents", to_cents},
             {"validation", validation},
             {"aggregation filter_event_match", filter_event_match},
             {"aggregation filter_matching_and_ignored", filter_matching_and_ignored},
             {"aggregation rounding", rounding},
             {"aggregation current_usage_pay_in_advance", current_usage},
             {"aggregation current_usage_prorated_pay_in_advance", current_usage_prorated}}};
}

}  // namespace golden
