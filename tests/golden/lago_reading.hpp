// Lago's vectors of aggregation: dossier sections 4, 7 and 10.3. Each vector's events are recorded, and a plan of one charge asks for them.
#pragma once

namespace golden::lago_reading {

namespace lago = meter::lago;
using meter::AggregateQuery;
using meter::Event;
using meter::Timestamp;
using meter::UsageSource;

using lago_vectors::given;

Timestamp time_at(const json& object, const char* key) { return Timestamp::parse(object.at(key).get<std::string>()); }

constexpr const char* name = "metric";
constexpr std::chrono::microseconds moment(1);

std::string text_of(const json& value) { return value.is_string() ? value.get<std::string>() : value.dump(); }

/// Lists of values by key, as texts.
lago::Values values_of(const json& object) {
    lago::Values values;
    for (const auto& [key, list] : object.items()) {
        values[key];
        for (const auto& value : list.is_array() ? list : json::array({list})) values[key].push_back(text_of(value));
    }
    return values;
}

Event event_of(const json& source) {
    Event event{.name = name, .subscription = "sub", .properties = source.value("properties", json::object())};
    if (event.properties.is_null()) event.properties = json::object();
    if (source.contains("timestamp")) event.timestamp = time_at(source, "timestamp");
    if (!source.value("precise_total_amount_cents", json()).is_null())
        event.precise_total_amount_cents = number(source, "precise_total_amount_cents");
    return event;
}

/// The vector's events in the order in which the server got them, and last the one in question, if it says one.
std::vector<json> events_of(const json& vector) {
    auto events = vector.at("events").get<std::vector<json>>();
    std::stable_sort(events.begin(), events.end(),
                     [](const json& a, const json& b) { return a.value("created_at", "") < b.value("created_at", ""); });
    if (!vector.contains("event")) return events;
    const auto same = [&](const json& each) {
        return each.value("timestamp", "") == vector.at("event").value("timestamp", "") &&
               each.at("properties") == vector.at("event").at("properties");
    };
    const auto asked = std::find_if(events.begin(), events.end(), same);
    if (asked != events.end()) events.erase(asked);
    events.push_back(vector.at("event"));
    return events;
}

/// What stands from before the period is an event before it, in its group.
void add_initial(const json& vector, const std::string& field, std::vector<Event>& events) {
    if (!vector.contains("initial")) return;
    const auto& initial = vector.at("initial");
    const json one = json::array({{{"value", initial}}});
    for (const auto& each : initial.is_array() ? initial : one) {
        auto properties = each.value("groups", json::object());
        properties[field] = each.at("value");
        events.push_back(event_of({{"properties", properties}}));
        events.back().timestamp = time_at(vector.at("period"), "from") - std::chrono::seconds(1);
    }
}

/// The metric that the vector says, or that the part of Lago is about where its number comes from.
std::string kind_asked_for(const json& vector) {
    for (const auto* key : {"aggregation_type", "metric_type", "metric", "of"}) {
        if (vector.at("aggregation").contains(key)) return vector.at("aggregation").at(key).get<std::string>();
    }
    for (const auto* kind : {"weighted_sum", "unique_count", "latest", "max", "sum", "count"}) {
        if (vector.value("source", "").find(std::string("/") + kind + "_") != std::string::npos) return std::string(kind) + "_agg";
    }
    return vector.at("aggregation").contains("field_name") ? "sum_agg" : "count_agg";
}

/// The helpers that are no kind of metric look at the events of one.
std::string type_of(const json& vector) {
    const auto type = vector.at("aggregation").at("type").get<std::string>();
    if (type == "per_event_aggregation") return kind_asked_for(vector);
    if (type == "events_in_scope" || type == "sum_precise_total_amount_cents") return "count_agg";
    if (type == "events_values" || type == "prorated_sum" || type == "prorated_events_values") return "sum_agg";
    if (type == "active_unique_property") return "unique_count_agg";
    return type == "last_value" ? "latest_agg" : type;
}

json properties_of(const json& vector) {
    auto properties = vector.value("options", json::object());
    properties["rate"] = properties["amount"] = "1";
    properties["pricing_group_keys"] = vector.value("group_by", json::array());
    return properties;
}

json catalogue_of(const json& vector) {
    const auto& aggregation = vector.at("aggregation");
    json metric{{"code", name}, {"aggregation_type", type_of(vector)}, {"field_name", given<std::string>(aggregation, "field_name", "value")}};
    metric["recurring"] = given(aggregation, "recurring", vector.contains("initial"));
    for (const auto* key : {"rounding_function", "rounding_precision", "expression"}) metric[key] = aggregation.value(key, json());
    json charge{{"billable_metric_code", name}, {"charge_model", vector.contains("options") ? "percentage" : "standard"}};
    charge["properties"] = properties_of(vector);
    charge["pay_in_advance"] = vector.at("expected").contains("pay_in_advance_aggregation");
    if (aggregation.contains("charge_filters")) {
        for (const auto& [key, values] : aggregation.at("metric_filters").items()) metric["filters"].push_back({{"key", key}, {"values", values}});
        for (const auto& filter : aggregation.at("charge_filters")) {
            charge["filters"].push_back(
                {{"invoice_display_name", filter.at("name")}, {"values", filter.at("values")}, {"properties", properties_of(vector)}});
        }
    }
    return {{"plan", {{"code", "plan"}, {"amount_currency", "EUR"}, {"charges", {charge}}}}, {"billable_metrics", {metric}}};
}

/// Periods of as many days as the vector's billing period has: of the calendar, or from one end of its period; months, if they can be.
lago::Subscription subscription_of(const meter::Period& period, int days, lago::Interval& interval) {
    lago::Subscription subscription{.id = "sub"};
    for (const auto each :
         {lago::Interval::monthly, lago::Interval::weekly, lago::Interval::quarterly, lago::Interval::semiannual, lago::Interval::yearly}) {
        for (const auto anchor : {Timestamp(), period.from, period.to - moment + std::chrono::seconds(1)}) {
            interval = each;
            subscription.anchor = anchor;
            subscription.anniversary = anchor != Timestamp();
            if (days == 0 || lago::period_days(interval, subscription, period.from) == days) return subscription;
        }
    }
    throw std::runtime_error("no billing period of that length");
}

/// A vector's events, and the one charge that counts them.
struct Case {
    explicit Case(const json& vector)
        : aggregation(vector.at("aggregation")),
          plan(dynamic_cast<const lago::Plan&>(meter::Book::lago(catalogue_of(vector)).impl())),
          period{time_at(vector.at("period"), "from"),
                 time_at(vector.at("period"), vector.at("period").contains("max_timestamp") ? "max_timestamp" : "to") + moment},
          subscription(subscription_of(period, static_cast<int>(integer(vector.at("period"), "days")), plan.charges_interval)),
          log(logged(vector)) {
        plan.charges[0].prorated = given(aggregation, "prorated", false);
        query = scope().query();
        if (!given(aggregation, "use_from_boundary", true) && !given(aggregation, "force_from", false)) query.period.from = Timestamp::min();
        if (vector.contains("filters")) restrict_to(vector.at("filters"));
        const auto wanted = given(vector, "grouped_by_values", json::object());
        for (const auto& [key, value] : wanted.items()) {
            query.filter.parts.push_back(lago::beside(key, value.is_null() ? std::nullopt : std::optional(text_of(value))));
        }
    }

    lago::Scope scope() const { return {plan, plan.charges[0], nullptr, subscription, period}; }

    const json& aggregation;
    lago::Plan plan;
    meter::Period period;
    lago::Subscription subscription;
    Log log;
    AggregateQuery query = {};

private:
    static std::vector<Event> logged(const json& vector) {
        std::vector<Event> events;
        for (const auto& source : events_of(vector)) events.push_back(event_of(source));
        add_initial(vector, vector.at("aggregation").value("field_name", "value"), events);
        return events;
    }
    void restrict_to(const json& filters) {
        for (const auto& [key, values] : values_of(given(filters, "matching", json::object()))) {
            query.filter.parts.push_back(meter::Filter::where(meter::property_field(key), meter::Operator::in, json(values)));
        }
        std::vector<lago::Values> ignored;
        for (const auto& entry : given(filters, "ignored", json::array())) ignored.push_back(values_of(entry));
        for (const auto& entry : lago::listed(ignored)) query.filter.parts.push_back(lago::excluding(entry));
    }
};

Decimal sum_of(const Case& one, const AggregateQuery& query, bool carried, UsageSource& usage) {
    auto sum = one.plan.billable_metrics[0].metric;
    sum.aggregation = meter::Aggregation::sum;
    sum.recurring = sum.recurring && carried;
    return usage.measure(sum, query).at(0).value;
}

/// Every number that a vector may expect of one group.
json figures(const Case& one, const lago::CountedGroup& group, UsageSource& usage) {
    const auto& metric = one.plan.billable_metrics[0];
    Decimal prorated;
    for (const auto& event : group.counted.prorated) prorated += event.prorated;
    json answer{{"aggregation", text(group.counted.quantity.units)},
                {"prorated_value", text(prorated)},
                {"value", text(group.measured.value)},
                {"events_count", group.counted.quantity.events},
                {"full_units", text(group.counted.quantity.full_units.value_or(group.counted.quantity.units))},
                {"precise_total_amount_cents", text(usage.precise_total_cents(metric.metric, group.query))},
                {"group", lago::group_json(group.group)}};
    if (metric.kind == lago::Kind::weighted_sum) {
        answer["variation"] = text(sum_of(one, group.query, false, usage));
        answer["total_aggregated_units"] = text(lago::total_units(one.scope(), group.query, group.measured.value, usage));
    }
    if (one.aggregation.at("type") != "last_value") return answer;
    const auto steps = usage.steps(metric.metric, group.query);
    answer["value"] = steps.empty() ? json() : json(text(steps.back().value));
    return answer;
}

/// In the order of the vector: Lago's answers have none.
json in_order_of(const json& expected, const json& list) {
    json ordered = json::array();
    for (const auto& row : expected) {
        for (const auto& own : list) {
            if (own.at("group") == row.at("group")) ordered.push_back(own);
        }
    }
    return ordered.size() == list.size() ? ordered : list;
}

json counted(const json& vector) {
    Case one(vector);
    return one.log.ask([&](UsageSource& usage) -> json {
        json list = json::array();
        for (const auto& group : lago::count_groups(one.scope(), one.query, usage)) list.push_back(figures(one, group, usage));
        if (vector.contains("group_by")) return {{"groups", in_order_of(vector.at("expected").at("groups"), list)}};
        list.at(0)["counts"] = json::array({list.at(0).at("events_count")});
        return list.at(0);
    });
}

/// What falls to each filter of a charge, and to none.
json buckets(const json& vector) {
    Case one(vector);
    const auto fees = one.log.ask([&](UsageSource& usage) { return one.plan.usage({.subscription = "sub", .period = one.period}, {}, usage); });
    json answer;
    for (const auto& fee : fees.fees) answer[fee.filter.empty() ? "default" : fee.filter] = text(fee.units);
    return {{"buckets", answer}};
}

/// What there is up to each event at the end of the period.
json counts(const json& vector) {
    Case one(vector);
    const auto scope = one.scope();
    json list = json::array();
    one.log.ask([&](UsageSource& usage) {
        lago::AdvanceWalk walk{scope};
        for (const auto& step : lago::period_steps(scope, one.query, usage)) {
            const auto units = walk.add(step, usage.event(step.sequence)).with.units;
            if (step.time == one.period.to - moment) list.push_back(text(units));
        }
        return 0;
    });
    return {{"counts", list}};
}

/// Running totals, with the estimated event if there is one.
json running_total(const json& vector) {
    Case one(vector);
    const auto scope = one.scope();
    auto answer = counted(vector);
    answer["running_total"] = json::array();
    if (scope.counts()) {
        const auto totals = lago::running_count(scope.price(), number(answer, "aggregation"));
        for (Decimal total = 1; total <= totals.length; total += 1) answer["running_total"].push_back(text(total));
        return answer;
    }
    lago::RunningTotal running;
    const auto run_on = [&](const Decimal& step) {
        lago::run_on(scope.price(), running, step);
        answer["running_total"].push_back(text(running.last));
    };
    for (const auto& step : one.log.ask([&](UsageSource& usage) { return lago::running_steps(scope, one.query, usage); })) run_on(step.value);
    if (vector.contains("estimated_event") && lago::runs_on(scope.price(), running)) {
        run_on(lago::summed(scope.metric(), event_of(vector.at("estimated_event"))));
    }
    return answer;
}

/// What the last event adds: what its fee is priced by, one unit costing 1, or what it does to the state that the vector says.
json advance(const json& vector) {
    Case one(vector);
    const auto scope = one.scope();
    return one.log.ask([&](UsageSource& usage) -> json {
        const auto events = events_of(vector).size();
        if (events == 0) return {{"pay_in_advance_aggregation", "0"}};
        const auto last = usage.event(static_cast<std::int64_t>(events));
        auto state = lago_vectors::cached_state(vector);
        if (!state.current) {
            Decimal added;
            for (const auto& fee : one.plan.advance_fees(last, usage).fees) added += fee.amount;
            return {{"pay_in_advance_aggregation", text(added)}};
        }
        const auto steps = lago::period_steps(scope, one.query, usage);
        const auto step = std::find_if(steps.begin(), steps.end(), [&](const auto& each) { return each.sequence == last.sequence; });
        const auto added = state.add(step == steps.end() ? Decimal() : step->value, lago::share_paid(scope, *last.timestamp)).priced;
        return {
            {"pay_in_advance_aggregation", text(added)}, {"current_aggregation", text(*state.current)}, {"max_aggregation", text(*state.maximum)}};
    });
}

/// The worth of each event by itself, and its share of the period.
json per_event(const json& vector) {
    auto as_charge = vector;
    const auto option = [&](const char* key) {
        return given(vector.at("aggregation"), key, given(vector.value("options", json::object()), key, false));
    };
    const bool shares = vector.at("aggregation").at("type") == "prorated_events_values";
    const bool prorated = shares || given(vector.at("aggregation"), "prorated", false);
    as_charge["aggregation"]["prorated"] = prorated;
    if (prorated) as_charge["aggregation"]["recurring"] = true;
    const auto asked = vector.value("event", vector.value("estimated_event", json::object()));
    if (option("include_event_value")) as_charge.erase("event");  // which is not in the log
    Case one(as_charge);
    const auto scope = one.scope();
    json full = json::array(), shared = json::array();
    one.log.ask([&](UsageSource& usage) {
        if (!prorated) {
            for (const auto& value : lago::event_values(scope, one.query, usage)) full.push_back(text(value));
            return 0;
        }
        const bool items = scope.metric().kind == lago::Kind::unique_count;
        const auto weigh = items ? lago::prorated_items : shares ? lago::prorated_numbers : lago::prorated_sum;
        for (const auto& event : weigh(scope, one.query, usage)) {
            full.push_back(text(event.full));
            shared.push_back(text(event.prorated));
        }
        return 0;
    });
    if (option("exclude_event") && !full.empty()) full.erase(full.size() - 1);
    if (option("include_event_value"))
        full.push_back(scope.metric().kind == lago::Kind::sum ? text(lago::summed(scope.metric(), event_of(asked))) : "1");
    json answer;
    for (const auto& [key, list] : vector.at("expected").items()) answer[key] = shares || key.find("prorated") != std::string::npos ? shared : full;
    return answer;
}

json aggregate(const json& vector) {
    if (vector.at("aggregation").contains("charge_filters")) return buckets(vector);
    if (vector.at("aggregation").value("boundary", "") == "each tied event in turn") return counts(vector);
    if (vector.at("expected").contains("pay_in_advance_aggregation")) return advance(vector);
    return vector.contains("options") ? running_total(vector) : counted(vector);
}

/// A recurring sum weighed by days: each event's from its own on; or, where the vector says for how many days all of it stood, the sum of what
/// came before a period of these.
json prorated_sum(const json& vector) {
    auto as_charge = vector;
    as_charge["aggregation"]["recurring"] = as_charge["aggregation"]["prorated"] = true;
    const auto days = integer(vector.at("aggregation"), "persisted_days");
    const auto end = meter::cut(time_at(vector.at("period"), "to"), meter::micros_per_day);
    if (days > 0) as_charge["period"]["from"] = (end - std::chrono::days(days - 1)).to_string();
    return counted(as_charge);
}

/// The property of each event that takes part.
json values(const json& vector) {
    Case one(vector);
    const auto limit = integer(vector.at("aggregation"), "limit", 1000);
    const auto field = given<std::string>(vector.at("aggregation"), "field_name", "value");
    json list = json::array();
    one.log.ask([&](UsageSource& usage) {
        for (const auto& step : usage.steps(one.plan.billable_metrics[0].metric, one.query, static_cast<std::size_t>(limit), {}))
            list.push_back(meter::property_text(usage.event(step.sequence).properties, field).value_or(""));
        return 0;
    });
    return {{"values", list}, {"events_count", list.size()}};
}

/// An add of an active value changes nothing.
json active(const json& vector) {
    Case one(vector);
    auto asked = event_of(vector.at("event"));
    asked.properties.erase("operation_type");
    const auto scope = one.scope();
    one.query.period.to = *asked.timestamp;
    const bool named = meter::property_text(asked.properties, lago::property_key(scope.metric())).has_value();
    const auto step = one.log.ask([&](UsageSource& usage) { return lago::unique_step(scope, asked, one.query, usage); });
    return {{"active", named && step.is_zero()}};
}

}  // namespace golden::lago_reading

namespace golden {

inline Vendor lago_reads() {
    using namespace lago_reading;
    Vendor vendor{"lago",
                  {{"aggregation prorated_sum", prorated_sum},
                   {"aggregation events_in_scope", values},
                   {"aggregation events_values", values},
                   {"aggregation active_unique_property", active},
                   {"aggregation per_event_aggregation", per_event},
                   {"aggregation prorated_events_values", per_event}}};
    for (const auto kind : {"aggregation count_agg", "aggregation sum_agg", "aggregation max_agg", "aggregation latest_agg", "aggregation last_value",
                            "aggregation unique_count_agg", "aggregation weighted_sum_agg", "aggregation sum_precise_total_amount_cents"}) {
        vendor.kinds.push_back({kind, aggregate});
    }
    return vendor;
}

}  // namespace golden
