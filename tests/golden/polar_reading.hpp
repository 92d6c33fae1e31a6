// Polar's vectors of filters, aggregation and meter quantities: dossier sections 6 to 8.
#pragma once

namespace golden::polar_reading {

namespace polar = meter::polar;
using meter::Event;
using meter::Timestamp;

Event event_of(const json& given) {
    Event event;
    event.id = given.value("id", "");
    event.name = given.at("name").get<std::string>();
    event.source = given.value("source", "user");
    event.customer = given.value("customer_id", given.value("external_customer_id", ""));
    event.timestamp = Timestamp::parse(given.at("timestamp").get<std::string>());
    event.properties = given.value("metadata", json::object());
    return event;
}

meter::Filter filter_of(const json& given) { return polar::read_filter(meter::Node(given)); }

polar::Function function_named(const std::string& name) {
    for (const auto& [known, function] : polar::functions) {
        if (known == name) return function;
    }
    throw std::runtime_error("unknown function " + name);
}

polar::Measure measure_of(const json& aggregation) {
    return {function_named(aggregation.at("func").get<std::string>()), aggregation.value("property", "")};
}

std::vector<Event> matching(const polar::Evaluator& evaluator, const json& filter, const json& events) {
    std::vector<Event> list;
    for (const auto& each : events) {
        auto event = event_of(each);
        if (polar::matches(evaluator, filter_of(filter), event)) list.push_back(std::move(event));
    }
    return list;
}

json ids(const std::vector<Event>& events) {
    json list = json::array();
    for (const auto& event : events) list.push_back(event.id);
    return list;
}

json number_of(double value) { return Decimal::from_double(value).to_string(); }

json filter(const json& vector) {
    const auto sql = ids(matching(polar::postgres, vector.at("filter"), vector.at("events")));
    const auto billing = ids(matching(polar::billing, vector.at("filter"), vector.at("events")));
    json answer{{"matched_by", {{"sql", sql}, {"billing", billing}}}};
    if (sql == billing) answer["matched"] = sql;
    return answer;
}

json filter_parse(const json& vector) {
    try {
        auto clause = polar::read_clause(meter::Node(vector.at("clause")));
        while (!clause.parts.empty()) clause = meter::Filter(clause.parts.back());
        return {{"accepted", true}, {"property", clause.field.substr(meter::property_field("").size())}};
    } catch (const meter::Error&) {
        return {{"accepted", false}};
    }
}

json aggregation_summable(const json& vector) { return {{"summable", polar::is_summable(measure_of(vector.at("aggregation")).function)}}; }

json aggregation_matches(const json& vector) {
    const auto measure = measure_of(vector.at("aggregation"));
    const auto event = event_of(vector.at("event"));
    return {{"billing", polar::takes_part(measure, event, true)}, {"sql", polar::takes_part(measure, event, false)}};
}

json aggregate(const json& vector) {
    const auto& meter = vector.at("meter");
    const auto events = matching(polar::postgres, meter.at("filter"), vector.at("events"));
    return {{"value", number_of(polar::aggregated(measure_of(meter.at("aggregation")), events))}};
}

/// The customers asked for, each under both its ids.
std::vector<std::string> customers_of(const json& vector) {
    std::vector<std::string> asked;
    for (const char* key : {"customer_id", "external_customer_id"}) {
        for (const auto& id : vector.at("params").value(key, json::array())) asked.push_back(id.get<std::string>());
    }
    for (const auto& customer : vector.value("customers", json::array())) {
        const auto id = customer.at("id").get<std::string>(), external = customer.value("external_id", "");
        const auto has = [&](const std::string& each) { return std::find(asked.begin(), asked.end(), each) != asked.end(); };
        if (has(id) || has(external)) asked.insert(asked.end(), {id, external});
    }
    return asked;
}

json quantities(const json& vector) {
    const auto &params = vector.at("params"), &meter = vector.at("meter");
    const auto customers = customers_of(vector);
    std::vector<Event> events;
    for (auto& event : matching(polar::postgres, meter.at("filter"), vector.at("events"))) {
        const bool asked = customers.empty() || std::find(customers.begin(), customers.end(), event.customer) != customers.end();
        if (asked && polar::meets_parameter(params.value("metadata", json::object()), event)) events.push_back(std::move(event));
    }
    std::optional<polar::Function> over_customers;
    if (params.contains("customer_aggregation_function")) over_customers = function_named(params.at("customer_aggregation_function"));
    const auto time = [&](const char* key) { return Timestamp::parse(params.at(key).get<std::string>()); };
    const auto found = polar::quantities(measure_of(meter.at("aggregation")), over_customers, events, time("start_timestamp"), time("end_timestamp"),
                                         polar::interval_named(params.at("interval").get<std::string>()), params.value("timezone", "UTC"));
    json rows = json::array();
    for (const auto& [at, quantity] : found.rows) rows.push_back({{"timestamp", at.to_string()}, {"quantity", number_of(quantity)}});
    return {{"quantities", rows}, {"total", number_of(found.total)}};
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
             {"quantities", quantities}}};
}

}  // namespace golden
