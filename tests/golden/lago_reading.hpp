// Lago's vectors of aggregation: dossier sections 4 and 10.3.
#pragma once

namespace golden::lago_reading {

namespace lago = meter::lago;
using meter::Event;
using meter::Timestamp;
using Scope = std::vector<const Event*>;
using Group = std::vector<std::optional<std::string>>;

Timestamp time_at(const json& object, const char* key) { return Timestamp::parse(object.at(key).get<std::string>()); }

std::vector<Event> events_of(const json& vector) {
    std::vector<Event> events;
    for (const auto& given : vector.at("events")) {
        Event event;
        event.name = given.value("code", "");
        if (given.contains("timestamp")) event.timestamp = time_at(given, "timestamp");
        event.properties = given.value("properties", json::object());
        if (given.contains("precise_total_amount_cents"))
            event.precise_total_amount_cents = Decimal::from_json(given.at("precise_total_amount_cents"));
        event.sequence = static_cast<std::int64_t>(events.size());
        events.push_back(std::move(event));
    }
    return events;
}

lago::Kind kind_of(const std::string& type) {
    for (const auto& [name, kind] : lago::kinds) {
        if (name == type) return kind;
    }
    return lago::Kind::count;
}

/// What this adapter does not read is not passed over in silence.
void refuse_unread(const json& vector) {
    for (const char* key : {"event", "cached", "options", "estimated_event"}) {
        if (vector.contains(key)) throw Unknown{};
    }
    if (vector.at("expected").contains("pay_in_advance_aggregation")) throw Unknown{};
}

lago::Question question_of(const json& vector) {
    const auto &aggregation = vector.at("aggregation"), &period = vector.at("period");
    lago::Question question;
    question.kind = kind_of(aggregation.at("type").get<std::string>());
    question.property = aggregation.value("field_name", "value");
    question.recurring = aggregation.value("recurring", false);
    question.prorated = aggregation.value("prorated", false);
    question.from = time_at(period, "from");
    question.to = time_at(period, period.contains("max_timestamp") ? "max_timestamp" : "to");
    question.days = period.value("days", 0);
    if (vector.contains("initial") && !vector.at("initial").is_array()) question.initial = Decimal::from_json(vector.at("initial"));
    if (!vector.contains("filters")) return question;
    const auto& filters = vector.at("filters");
    question.matching = filters.value("matching", lago::Values{});
    question.ignored = filters.value("ignored", std::vector<lago::Values>{});
    return question;
}

json texts(const Scope& scope, const std::string& property) {
    json list = json::array();
    for (const auto* event : scope) list.push_back(meter::property_text(event->properties, property).value_or(""));
    return list;
}

/// Every number that a vector may expect of one group.
json figures(const lago::Question& question, const json& aggregation, const Scope& scope) {
    const auto type = aggregation.at("type").get<std::string>();
    const bool counts = type == "count_agg" || type == "sum_precise_total_amount_cents";
    const auto value = lago::aggregated(question, scope);
    json answer{{"aggregation", text(value)}, {"events_count", scope.size()}};
    if (type == "unique_count_agg") answer["events_count"] = text(value);
    Decimal cents;
    for (const auto* event : scope) cents += event->precise_total_amount_cents.value_or(Decimal());
    answer["precise_total_amount_cents"] = text(cents);
    if (aggregation.contains("boundary")) answer["counts"] = {scope.size()};
    if (counts || type == "unique_count_agg") return answer;
    const auto fold = lago::folded(question, scope);
    answer["variation"] = answer["full_units"] = text(fold.sum());
    answer["total_aggregated_units"] = text(question.initial + fold.sum());
    if (type == "last_value") answer["value"] = text(fold.latest());
    if (type != "prorated_sum") return answer;
    answer["value"] = text(fold.sum());
    const auto persisted = integer(aggregation, "persisted_days");
    const auto unit_days = persisted > 0 ? fold.sum() * persisted : lago::unit_days(question, scope);
    answer["prorated_value"] = text(Decimal::divide(unit_days, question.days, 20, meter::Rounding::half_up));
    return answer;
}

/// Events of the groups that are asked for alone.
Scope in_groups(const json& vector, const Scope& scope) {
    Scope kept;
    const auto wanted = vector.value("grouped_by_values", json::object());
    for (const auto* event : scope) {
        const bool all = std::all_of(wanted.items().begin(), wanted.items().end(), [&](const auto& item) {
            const auto text = meter::property_text(event->properties, item.key()).value_or("");
            return item.value().is_null() ? text.empty() : item.value() == text;
        });
        if (all) kept.push_back(event);
    }
    return kept;
}

json groups(const json& vector, const lago::Question& question, const Scope& scope) {
    const auto keys = vector.at("group_by").get<std::vector<std::string>>();
    auto members = lago::by_group(keys, scope);
    std::map<Group, Decimal> initial;
    for (const auto& given : vector.value("initial", json::array())) {
        Group group;
        for (const auto& key : keys) {
            const auto& value = given.at("groups").at(key);
            group.push_back(value.is_null() ? std::nullopt : std::optional(value.get<std::string>()));
        }
        initial[group] = Decimal::from_json(given.at("value"));
    }
    if (!initial.empty() && scope.empty()) members.clear();
    for (const auto& [group, value] : initial) members.try_emplace(group);
    json list = json::array();
    for (const auto& [group, own] : members) {
        auto with_initial = question;
        if (initial.contains(group)) with_initial.initial = initial.at(group);
        auto row = figures(with_initial, vector.at("aggregation"), own);
        for (std::size_t i = 0; i < keys.size(); ++i) row["group"][keys[i]] = group[i] ? json(*group[i]) : json(nullptr);
        list.push_back(row);
    }
    return list;
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

lago::Charge charge_of(const json& aggregation) {
    lago::BillableMetric metric;
    metric.filters = aggregation.at("metric_filters").get<std::map<std::string, std::vector<std::string>>>();
    lago::Charge charge;
    for (const auto& given : aggregation.at("charge_filters")) {
        lago::ChargeFilter filter;
        filter.name = given.at("name").get<std::string>();
        filter.values = given.at("values").get<lago::Values>();
        for (auto& [key, values] : filter.values) {
            if (values == std::vector<std::string>{"__ALL_FILTER_VALUES__"}) values = metric.filters.at(key);
        }
        charge.filters.push_back(filter);
    }
    return charge;
}

std::vector<lago::Values> all_values(const lago::Charge& charge) {
    std::vector<lago::Values> all;
    for (const auto& filter : charge.filters) all.push_back(filter.values);
    return all;
}

/// What falls to each filter of a charge, and to none.
json buckets(const json& vector, const std::vector<Event>& events) {
    const auto charge = charge_of(vector.at("aggregation"));
    const auto all = all_values(charge);
    json answer;
    auto question = question_of(vector);
    for (std::size_t i = 0; i < all.size(); ++i) {
        question.matching = all[i];
        question.ignored = lago::ignored_values(all, i);
        answer[charge.filters[i].name] = text(lago::aggregated(question, lago::in_scope(question, events)));
    }
    question.matching = {};
    question.ignored = all;
    answer["default"] = text(lago::aggregated(question, lago::in_scope(question, events)));
    return {{"buckets", answer}};
}

/// How many events there are up to each of those at the end of the period; the vector has them in the order they were created.
json counts(const json& vector, const std::vector<Event>& events) {
    auto question = question_of(vector);
    json list = json::array();
    for (const auto& event : events) {
        if (event.timestamp != question.to) continue;
        question.last_sequence = event.sequence;
        list.push_back(lago::in_scope(question, events).size());
    }
    return {{"counts", list}};
}

json aggregate(const json& vector) {
    const auto& aggregation = vector.at("aggregation");
    refuse_unread(vector);
    const auto events = events_of(vector);
    if (aggregation.contains("charge_filters")) return buckets(vector, events);
    if (aggregation.value("boundary", "") == "each tied event in turn") return counts(vector, events);
    const auto question = question_of(vector);
    const auto scope = in_groups(vector, lago::in_scope(question, events));
    if (vector.contains("group_by")) return {{"groups", in_order_of(vector.at("expected").at("groups"), groups(vector, question, scope))}};
    return figures(question, aggregation, scope);
}

/// Helpers of sums, over the events that a sum takes.
json numeric_aggregate(const json& vector) {
    auto as_sum = vector;
    as_sum["aggregation"]["field_name"] = vector.at("aggregation").value("field_name", "value");
    const auto events = events_of(vector);
    auto question = question_of(as_sum);
    question.kind = lago::Kind::sum;
    const auto scope = lago::in_scope(question, events);
    if (vector.contains("group_by")) return {{"groups", in_order_of(vector.at("expected").at("groups"), groups(as_sum, question, scope))}};
    return figures(question, vector.at("aggregation"), scope);
}

json values(const json& vector) {
    const auto events = events_of(vector);
    auto question = question_of(vector);
    if (vector.at("aggregation").at("type") == "events_values") question.kind = lago::Kind::sum;
    auto list = texts(lago::in_scope(question, events), question.property);
    const auto limit = static_cast<std::size_t>(integer(vector.at("aggregation"), "limit", static_cast<std::int64_t>(list.size())));
    while (list.size() > limit) list.erase(list.size() - 1);
    return {{"values", list}};
}

json active(const json& vector) {
    const auto events = events_of(vector);
    auto question = question_of(vector);
    question.kind = lago::Kind::unique_count;
    question.to = time_at(vector.at("event"), "timestamp");
    const auto states = lago::active_values(question, lago::in_scope(question, events));
    const auto found = states.find(meter::property_text(vector.at("event").at("properties"), question.property));
    return {{"active", found != states.end() && found->second > 0}};
}

json rounding(const json& vector) {
    const auto& aggregation = vector.at("aggregation");
    lago::BillableMetric metric;
    metric.rounding = lago::read_rounding(meter::Node(aggregation));
    metric.precision = static_cast<int>(integer(aggregation, "rounding_precision"));
    return {{"units", text(lago::rounded(metric, number(vector, "units")))}};
}

json filter_event_match(const json& vector) {
    const auto charge = charge_of(vector.at("aggregation"));
    const auto* filter = lago::filter_of(charge, events_of(vector).at(0).properties);
    return {{"charge_filter", filter ? json(filter->name) : json(nullptr)}};
}

json filter_matching_and_ignored(const json& vector) {
    const auto charge = charge_of(vector.at("aggregation"));
    const auto all = all_values(charge);
    const auto current = vector.at("aggregation").at("current").get<std::string>();
    for (std::size_t i = 0; i < all.size(); ++i) {
        if (charge.filters[i].name == current) return {{"matching", all[i]}, {"ignored", lago::ignored_values(all, i)}};
    }
    throw std::runtime_error("no filter " + current);
}

}  // namespace golden::lago_reading

namespace golden {

inline Vendor lago_reads() {
    using namespace lago_reading;
    Vendor vendor{"lago",
                  {{"aggregation prorated_sum", numeric_aggregate},
                   {"aggregation last_value", numeric_aggregate},
                   {"aggregation events_in_scope", values},
                   {"aggregation events_values", values},
                   {"aggregation active_unique_property", active},
                   {"aggregation rounding", rounding},
                   {"aggregation filter_event_match", filter_event_match},
                   {"aggregation filter_matching_and_ignored", filter_matching_and_ignored}}};
    for (const auto name : {"aggregation count_agg", "aggregation sum_agg", "aggregation max_agg", "aggregation latest_agg",
                            "aggregation unique_count_agg", "aggregation weighted_sum_agg", "aggregation sum_precise_total_amount_cents"}) {
        vendor.kinds.push_back({name, aggregate});
    }
    return vendor;
}

}  // namespace golden
