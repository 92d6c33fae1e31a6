// Polar's vectors of filters, aggregation, meter quantities and customer meters: dossier sections 6 to 8 and 10.
#pragma once

namespace golden::polar_reading {

namespace polar = meter::polar;
using meter::Event;
using meter::Metric;
using meter::Node;
using meter::Timestamp;

/// The member, also in place of a null.
json member(const json& object, const char* key, json fallback) {
    return object.contains(key) && !object.at(key).is_null() ? object.at(key) : std::move(fallback);
}

Event event_of(const json& given) {
    Event event;
    event.id = member(given, "id", "");
    event.name = given.at("name").get<std::string>();
    event.source = member(given, "source", "user");
    event.customer = member(given, "customer_id", member(given, "external_customer_id", ""));
    event.timestamp = Timestamp::parse(given.at("timestamp").get<std::string>());
    event.recorded_at = Timestamp::parse(member(given, "ingested_at", given.at("timestamp")).get<std::string>());
    event.properties = member(given, "metadata", json::object());
    return event;
}

Log log_of(const json& events) {
    std::vector<Event> list;
    for (const auto& each : events) list.push_back(event_of(each));
    return Log(std::move(list));
}

/// A meter as its book reads it, under the rules of one evaluator.
Metric metric_of(const json& aggregation, const json& filter, std::string rules) {
    auto metric = polar::read_metric(Node(aggregation), polar::read_filter(Node(filter)), "m");
    metric.rules = std::move(rules);
    return metric;
}

Metric metric_of(const json& meter) { return metric_of(meter.at("aggregation"), member(meter, "filter", json::object()), "polar"); }

/// Ids of the events that the filter counts, in the order of the vector.
json matching(const json& vector, const char* rules) {
    meter::AggregateQuery by_id;
    by_id.group_by = {"id"};
    std::set<std::string> found;
    const auto metric = metric_of({{"func", "count"}}, vector.at("filter"), rules);
    for (const auto& row : log_of(vector.at("events")).ask([&](meter::UsageSource& usage) { return usage.measure(metric, by_id); }))
        found.insert(row.group.at(0).value());
    json ids = json::array();
    for (const auto& event : vector.at("events")) {
        if (found.contains(event.at("id"))) ids.push_back(event.at("id"));
    }
    return ids;
}

json filter(const json& vector) {
    const auto sql = matching(vector, "polar"), billing = matching(vector, "polar_billing");
    json answer{{"matched_by", {{"sql", sql}, {"billing", billing}}}};
    if (sql == billing) answer["matched"] = sql;
    return answer;
}

json filter_parse(const json& vector) {
    try {
        const auto clause = polar::read_clause(Node(vector.at("clause")));
        const auto prefix = meter::property_field("");
        return {{"accepted", true}, {"property", clause.field.starts_with(prefix) ? clause.field.substr(prefix.size()) : clause.field}};
    } catch (const meter::Error&) {
        return {{"accepted", false}};
    }
}

json aggregation_summable(const json& vector) {
    return {{"summable", polar::is_summable(Node(vector.at("aggregation")).choice("func", polar::functions))}};
}

json aggregation_matches(const json& vector) {
    auto log = log_of(json::array({vector.at("event")}));
    const auto takes_part = [&](const char* rules) {
        const auto metric = metric_of(vector.at("aggregation"), {{"conjunction", "and"}, {"clauses", json::array()}}, rules);
        return log.ask([&](meter::UsageSource& usage) { return usage.measure(metric, {}).at(0).events > 0; });
    };
    return {{"billing", takes_part("polar_billing")}, {"sql", takes_part("polar")}};
}

json aggregate(const json& vector) { return {{"value", text(log_of(vector.at("events")).value(metric_of(vector.at("meter"))))}}; }

/// The customers asked for, each under both its ids.
std::vector<std::string> customers_of(const json& vector) {
    std::vector<std::string> asked;
    for (const char* key : {"customer_id", "external_customer_id"}) {
        const json ids = member(vector.at("params"), key, json::array());
        for (const auto& id : ids.is_array() ? ids : json::array({ids})) asked.push_back(id.get<std::string>());
    }
    for (const auto& customer : member(vector, "customers", json::array())) {
        const std::string id = member(customer, "id", ""), external = member(customer, "external_id", "");
        const auto has = [&](const std::string& each) { return std::find(asked.begin(), asked.end(), each) != asked.end(); };
        if (has(id) || has(external)) asked.insert(asked.end(), {id, external});
    }
    return asked;
}

json quantities(const json& vector) {
    static const std::map<std::string, meter::Bin> intervals{
        {"hour", meter::Bin::hour}, {"day", meter::Bin::day}, {"week", meter::Bin::week}, {"month", meter::Bin::month}, {"year", meter::Bin::year}};
    const auto& params = vector.at("params");
    const auto time = [&](const char* key) { return Timestamp::parse(params.at(key).get<std::string>()); };
    meter::QuantitiesQuery query{.customers = customers_of(vector), .start = time("start_timestamp"), .end = time("end_timestamp")};
    query.interval = intervals.at(params.at("interval"));
    query.time_zone = member(params, "timezone", "UTC");
    query.metadata = member(params, "metadata", json::object());
    if (!member(params, "customer_aggregation_function", nullptr).is_null())
        query.over_customers = Node(params).choice("customer_aggregation_function", polar::functions);
    const auto metric = metric_of(vector.at("meter"));
    const auto found = log_of(vector.at("events")).ask([&](meter::UsageSource& usage) { return polar::quantities(metric, query, usage); });
    json rows = json::array();
    for (const auto& [at, quantity] : found.rows) rows.push_back({{"timestamp", at.to_string()}, {"quantity", text(quantity)}});
    return {{"quantities", rows}, {"total", text(found.total)}};
}

/// The meter of the vectors is called M.
meter::CustomerMeter customer_meter(const Metric& metric, const std::vector<std::string>& customers, Log log) {
    return log.ask([&](meter::UsageSource& usage) { return polar::customer_meter("M", metric, customers, usage); });
}

json balance(const json& vector) {
    std::vector<std::string> customers{vector.at("customer").at("id")};
    const json external = member(vector.at("customer"), "external_id", nullptr);
    if (!external.is_null()) customers.push_back(external);
    const auto found = customer_meter(metric_of(vector.at("meter")), customers, log_of(vector.at("events")));
    return {{"consumed_units", text(found.consumed)},
            {"credited_units", text(found.credited)},
            {"balance", text(found.balance)},
            {"rollover_units", text(found.rollover)}};
}

/// Credits and a use, one after the other, of a meter that sums "n" of events named "use".
meter::CustomerMeter after(const std::vector<json>& credits, const json& usage) {
    std::vector<Event> events;
    const auto add = [&](const char* name, const char* source, json properties) {
        const auto time = Timestamp::from_civil(2024, 1, 1) + std::chrono::seconds(events.size());
        events.push_back({.name = name, .customer = "c1", .timestamp = time, .source = source, .properties = std::move(properties)});
    };
    for (auto credit : credits) {
        credit["meter_id"] = "M";
        add("meter.credited", "system", credit);
    }
    add("use", "", {{"n", usage}});
    return customer_meter(metric_of({{"filter", {{"clauses", {{{"property", "name"}, {"operator", "eq"}, {"value", "use"}}}}}},
                                     {"aggregation", {{"func", "sum"}, {"property", "n"}}}}),
                          {"c1"}, Log(std::move(events)));
}

json credits_running_sum(const json& vector) {
    std::vector<json> credits;
    for (const auto& units : vector.at("units")) credits.push_back({{"units", units}});
    return {{"credited_units", text(after(credits, 0).credited)}};
}

json rollover(const json& vector) {
    const std::vector<json> credits(vector.at("credits").begin(), vector.at("credits").end());
    return {{"rollover_units", text(after(credits, json::parse(vector.at("usage_units").get<std::string>())).rollover)}};
}

}  // namespace golden::polar_reading

namespace golden {

inline Vendor polar_reads() {
    using namespace polar_reading;
    return {"polar",
            {{"filter", filter},
             {"filter_parse", filter_parse},
             {"aggregation_summable", aggregation_summable},
             {"aggregation_matches", aggregation_matches},
             {"aggregate", aggregate},
             {"quantities", quantities},
             {"customer_meter", balance},
             {"credits_running_sum", credits_running_sum},
             {"rollover", rollover}}};
}

}  // namespace golden
