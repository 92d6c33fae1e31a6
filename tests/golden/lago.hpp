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

/// The member, unless it is missing or null.
template <class T>
T given(const json& object, const char* key, T fallback) {
    const auto found = object.find(key);
    return found == object.end() || found->is_null() ? fallback : found->get<T>();
}

/// The price that properties say; the vectors of some kinds leave out what a plan could not.
lago::Price price_of(const lago::ModelRow& row, const json& properties) {
    lago::Problems problems;
    return lago::read_price(row, Node(properties), {lago::Kind::sum, true, problems});
}

lago::Price price_of(const json& vector) { return price_of(row_of(vector), vector.at("properties")); }

std::string currency_code(const json& input) { return given<std::string>(input, "currency", "EUR"); }

meter::Currency currency_of(const json& input) { return meter::currency_in(lago::currencies, currency_code(input)); }

lago::Quantity quantity_of(const json& input, const lago::Price& price) {
    lago::Quantity quantity;
    quantity.units = number(input, "units");
    if (!input.value("full_units", json()).is_null()) quantity.full_units = number(input, "full_units");
    quantity.prorated = given(input, "prorated", false);
    quantity.events = integer(input, "events_count");
    Decimal before;
    for (const auto& total : numbers(input, "running_total")) {
        lago::run_on(price, quantity.running, total - before);
        before = total;
    }
    for (const auto& value : numbers(input, "events_values")) quantity.bounded.add(price, value);
    quantity.premium = given(input, "premium", false);
    quantity.precise_amount = meter::quotient(number(input, "precise_total_amount_cents"), currency_of(input).subunits);
    if (!input.value("custom_aggregation", json()).is_null()) quantity.precise_amount = number(input.at("custom_aggregation"), "amount");
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
    if (!range.value("to_value", json()).is_null()) tier.up_to = number(range, "to_value");
    tier.rate = as_percent ? meter::percent(number(range, "rate")) : number(range, "per_unit_amount");
    tier.flat = number(range, "flat_amount");
    lago::set_lower_bounds(tiers, false);
    if (given(input, "adjacent", false)) tier.above = tier.from;
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
    const auto units = number(vector.at("input"), "units");
    return {{"amount", text(lago::price_instant(price_of(vector), units).amount)}, {"units", text(meter::at_least_zero(units))}};
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

const char* const time_keys[] = {"timestamp", "date", "at", "now", "estimated_at", "current_time"};
const char* const left_keys[] = {"days_to_period_end_inclusive", "days_to_period_end", "days_left", "remaining_days", "prorated_days"};

/// The first day of a month of that many days.
Timestamp month_of(std::int64_t days) {
    return Timestamp::parse(days == 28 ? "2026-02-01" : days == 29 ? "2024-02-01" : days == 30 ? "2026-04-01" : "2026-03-01");
}

/// The vector's metric and its one charge, paid in advance, for the subscription "sub".
struct Case {
    explicit Case(const json& whole) : vector(whole), input(whole.at("input")), days(integer(period(), "days", integer(input, "period_days", 31))) {
        prorated = given(input, "prorated", false);
        field = given<std::string>(input, "field_name", "amount");
    }

    meter::Book book() const {
        json metric{{"code", "metric"},
                    {"aggregation_type", given<std::string>(input, "aggregation_type", "sum_agg")},
                    {"field_name", field},
                    {"recurring", given(input, "recurring", prorated)}};
        for (const auto* key : {"rounding_function", "rounding_precision"}) metric[key] = input.value(key, json());
        json charge{{"billable_metric_code", "metric"},
                    {"charge_model", vector.at("model")},
                    {"pay_in_advance", given(input, "pay_in_advance", true)},
                    {"prorated", prorated},
                    {"properties", vector.at("properties")}};
        return meter::Book::lago({{"plan", {{"code", "plan"}, {"amount_currency", currency_code(input)}, {"charges", {charge}}}},
                                  {"premium", given(input, "premium", false)},
                                  {"billable_metrics", {metric}}});
    }

    /// The moment that the object says, itself or by the days left in the period, the day included; else the fifth day of the period.
    Timestamp time_in(const json& object) const {
        for (const auto* key : time_keys) {
            if (object.contains(key) && object.at(key).is_string()) return Timestamp::parse(object.at(key).get<std::string>());
        }
        for (const auto* key : left_keys) {
            if (object.contains(key)) return first_day() + std::chrono::hours(24 * (days - integer(object, key)));
        }
        return first_day() + std::chrono::hours(24 * 4);
    }

    Event event(const json& source) const {
        Event event{.name = "metric", .subscription = "sub", .timestamp = time_in(source)};
        event.properties =
            source.contains("properties") ? source.at("properties") : json{{field, source.value("units_delta", source.value("value", json()))}};
        if (!source.value("precise_total_amount_cents", json()).is_null())
            event.precise_total_amount_cents = number(source, "precise_total_amount_cents");
        return event;
    }

    /// A database of its own with the book and the events, at that time.
    meter::Meter log(const json& events, Timestamp now) const {
        meter::Meter log({.clock = [now] { return now; }});
        log.load(book());
        std::vector<Event> list;
        for (const auto& source : events) {
            list.push_back(event(source));
            list.back().id = std::to_string(list.size());
        }
        log.record(list);
        return log;
    }

    Timestamp first_day() const { return period().contains("from") ? Timestamp::parse(period().at("from").get<std::string>()) : month_of(days); }
    Timestamp last_day() const { return first_day() + std::chrono::hours(24 * (days - 1)); }

    const json& vector;
    const json& input;
    std::int64_t days;
    bool prorated = false;
    std::string field;

private:
    json period() const { return input.value("period", json()).is_object() ? input.at("period") : json::object(); }
};

json fee_figures(const meter::Fee& fee) {
    return {{"units", text(fee.units)},
            {"amount", text(fee.amount)},
            {"amount_cents", text(fee.amount_cents)},
            {"unit_amount", text(fee.unit_amount)},
            {"precise_unit_amount", text(fee.unit_amount)},
            {"events_count", fee.events},
            {"amount_details", fee.vendor.at("amount_details")}};
}

json pay_in_advance_sequence(const json& vector) {
    const Case one(vector);
    auto last = one.last_day(), first = one.first_day();
    for (const auto& event : one.input.at("events")) {
        first = std::min(first, one.time_in(event));
        last = std::max(last, one.time_in(event));
    }
    const auto log = one.log(one.input.at("events"), last);
    auto fees = json::array();
    const meter::Period period{first, last + std::chrono::microseconds(1)};
    for (const auto& fee : log.advance_fees({.subscription = "sub", .period = period}).fees) fees.push_back(fee_figures(fee));
    return {{"fees", fees}};
}

json estimated(const Case& one, Timestamp now) {
    const auto log = one.log(one.input.value("persisted_events", json::array()), now);
    return fee_figures(log.estimate_fees(one.event(one.input.at("estimated_event"))).fees.at(0));
}

/// Made at the time that the vector says, or its event; else on the last day, which all events come before.
json estimate_fees(const json& vector) {
    const Case one(vector);
    const auto silent = one.time_in(json::object());
    for (const auto* at : {&one.input, &one.input.at("estimated_event")}) {
        if (one.time_in(*at) != silent) return estimated(one, one.time_in(*at));
    }
    return estimated(one, one.prorated ? silent : one.last_day());
}

json estimate_fees_prorated(const json& vector) {
    auto prorated = vector;
    prorated["input"]["prorated"] = true;
    return estimate_fees(prorated);
}

json current_usage_pay_in_advance(const json& vector) {
    const Case one(vector);
    auto log = one.log(json::array(), one.last_day());
    auto steps = json::array();
    for (auto step : one.input.at("steps")) {
        if (one.prorated && one.time_in(step) == one.time_in(json::object())) step["days_left"] = one.days;
        log.record(one.event(step));
        const auto fees = log.usage({.subscription = "sub"});
        steps.push_back({{"amount_cents", text(fees.amount_cents)}, {"units", text(fees.fees.at(0).units)}});
    }
    return {{"after_each_step", steps}};
}

json estimate_instant_fee(const json& vector) {
    const Case one(vector);
    return fee_figures(one.log(json::array(), one.last_day()).estimate_instant_fees(one.event({{"value", one.input.at("units")}})).fees.at(0));
}

// --- cents ---

json fee(const json& vector) {
    const auto& row = row_of(vector);
    const auto price = price_of(vector);
    const auto& input = vector.at("input");
    const auto quantity = quantity_of(input, price);
    auto priced = row.price(price, quantity);
    const auto details = row.details(price, quantity, priced);
    auto units = quantity.prorated ? quantity.full_units.value_or(quantity.units) : quantity.units;
    meter::lago::clamp(priced, quantity.units, units);
    const bool converts = !input.value("conversion_rate", json()).is_null();
    auto figures = lago::figures(priced.amount, lago::unit_amount(price, quantity, priced.amount), converts ? meter::Currency() : currency_of(input));
    json out{{"units", text(units)}, {"events_count", quantity.events}, {"amount_details", details}};
    if (converts) {
        out["pricing_unit_amount_cents"] = text(figures.cents);
        out["pricing_unit_precise_amount_cents"] = text(figures.precise_cents);
        out["pricing_unit_unit_amount_cents"] = text(figures.unit_cents);
        out["pricing_unit_precise_unit_amount"] = text(figures.unit_amount);
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
    const auto whole = static_cast<int>(integer(input, "period_days", 1));
    const auto cents = lago::true_up_cents(number(input, "min_amount_cents"), number(input, "used_amount_cents"),
                                           static_cast<int>(integer(input, "days", whole)), whole);
    const auto currency = currency_of(input);
    return {{"amount_cents", text(meter::to_cents(meter::quotient(cents, currency.subunits), currency))},
            {"precise_amount_cents", text(cents)},
            {"units", cents.is_zero() ? "0" : "1"}};
}

json to_cents(const json& vector) {
    const auto& input = vector.at("input");
    Decimal amount;
    for (const auto& [key, value] : input.items()) {
        if (const auto given = Decimal::parse(value.is_string() ? value.get<std::string>() : value.dump())) amount = *given;
    }
    const auto figures = lago::figures(amount, amount, currency_of(input));
    json answer;
    for (const auto& [key, value] : vector.at("expected").items()) {
        answer[key] = text(key.find("precise") != std::string::npos ? figures.precise_cents : figures.cents);
    }
    return answer;
}

json validation(const json& vector) {
    lago::Problems problems;
    const auto& input = vector.at("input");
    const auto metric = lago::read_metric(Node(json{{"code", "metric"},
                                                    {"aggregation_type", given<std::string>(input, "aggregation_type", "sum_agg")},
                                                    {"field_name", "value"},
                                                    {"recurring", given(input, "recurring", false)}}));
    const lago::Checking checking{metric.kind, given(input, "premium", true), problems};
    lago::Charge charge;
    charge.price = lago::read_price(row_of(vector), Node(vector.at("properties")), checking);
    charge.pay_in_advance = given(input, "pay_in_advance", false);
    charge.prorated = given(input, "prorated", false);
    charge.minimum_cents = number(input, "min_amount_cents");
    lago::check_charge(Node(input), charge, metric, checking);
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
        charge.filters.push_back({lago::read_values(Node(source), metric), source.at("name"), {}, {}});
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
    std::optional<std::size_t> current;
    for (const auto& filter : charge.filters) {
        if (filter.name == vector.at("aggregation").value("current", json())) current = all.size();
        all.push_back(filter.values);
    }
    if (!current) return {{"matching", json::object()}, {"ignored", all}};  // the charge's own bucket
    return {{"matching", all.at(*current)}, {"ignored", lago::ignored_values(all, *current)}};
}

json rounding(const json& vector) {
    json metric{{"code", "metric"}, {"aggregation_type", "count_agg"}};
    metric.update(vector.at("aggregation").at("type") == "rounding" ? vector.at("aggregation") : json::object());
    return {{"units", text(lago::rounded(lago::read_metric(Node(metric)), number(vector, "units")))}};
}

/// The state of the last event that was paid, when there was one.
lago::AdvanceState cached_state(const json& vector) {
    const auto cached = vector.value("cached", json());
    if (!cached.is_object() || cached.empty()) return {};
    const auto current = number(cached, "current_aggregation");
    return {current, number(cached, "max_aggregation", current), number(cached, "max_aggregation_with_proration")};
}

json current_usage(const json& vector) {
    const auto live = number(vector, "total_aggregation");
    return {{"aggregation", text(cached_state(vector).paid(live, {}))}, {"current_usage_units", text(meter::at_least_zero(live))}};
}

json current_usage_prorated(const json& vector) {
    const auto& period = vector.at("period");
    const auto share = meter::quotient(days_between(period.at("from"), period.at("to")), number(period, "days"));
    const auto live = number(vector, "current_usage_units_raw", number(vector, "total_aggregation"));
    return {{"aggregation", text(cached_state(vector).paid(live, share))}, {"current_usage_units", text(meter::at_least_zero(live))}};
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
