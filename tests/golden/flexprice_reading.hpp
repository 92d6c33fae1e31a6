// FlexPrice's vectors of usage, analytics and metering: dossier sections 4 to 6.
#pragma once

namespace golden::flexprice_reading {

namespace flexprice = meter::flexprice;
using meter::Event;
using meter::Timestamp;

Event event_of(const json& given, std::int64_t sequence) {
    Event event;
    event.id = given.value("event_id", "");
    event.name = given.value("event_name", "");
    event.customer = given.value("external_customer_id", "");
    if (given.contains("timestamp")) event.timestamp = Timestamp::parse(given.at("timestamp").get<std::string>());
    event.properties = given.value("properties", json::object());
    event.sequence = sequence;
    return event;
}

flexprice::Usage usage_of(const json& aggregation) {
    flexprice::Usage usage;
    for (const auto& [name, measure] : flexprice::measure_names) {
        if (name == aggregation.at("type").get<std::string>()) usage.measure = measure;
    }
    usage.property = aggregation.value("property_name", "");
    if (aggregation.contains("multiplier")) usage.multiplier = Decimal::from_json(aggregation.at("multiplier"));
    if (aggregation.contains("bucket_size")) usage.buckets = flexprice::event_windows(aggregation.at("bucket_size").get<std::string>(), {}, {});
    return usage;
}

std::vector<Event> chosen(const json& vector) {
    const auto& query = vector.at("query");
    const auto filters = query.value("filters", query.value("property_filters", json::object()));
    std::vector<Event> events;
    for (const auto& given : vector.at("events")) {
        auto event = event_of(given, static_cast<std::int64_t>(events.size()));
        const bool asked = !query.contains("external_customer_id") || query.at("external_customer_id") == event.customer;
        if (asked && flexprice::passes(flexprice::property_filter, filters, event)) events.push_back(std::move(event));
    }
    return events;
}

json answer(const json& vector) {
    const auto& query = vector.at("query");
    auto usage = usage_of(vector.at("aggregation"));
    usage.metered = query.at("endpoint") == "analytics";
    usage.period = {Timestamp::parse(query.at("start_time").get<std::string>()), Timestamp::parse(query.at("end_time").get<std::string>())};
    if (query.contains("window_size")) usage.windows = flexprice::event_windows(query.at("window_size").get<std::string>(), {}, {});
    const auto events = chosen(vector);
    const auto found = flexprice::answer(usage, events);
    json results = json::array(), groups = json::array();
    for (const auto& [start, value] : found.results) results.push_back({{"window_size", start.to_string()}, {"value", text(value)}});
    std::vector<std::string> keys;
    for (const auto& key : query.value("group_by", json::array()))
        keys.push_back(key.get<std::string>().substr(std::string_view("properties.").size()));
    for (const auto& [group, own] : flexprice::grouped_answers(usage, keys, events)) {
        json names = json::object();
        for (std::size_t i = 0; i < keys.size(); ++i) names[keys[i]] = group[i];
        groups.push_back({{"group", names}, {"value", text(own.value)}});
    }
    return {{"value", text(found.value)}, {"results", results}, {"groups", groups}};
}

json measure(const json& vector) {
    const auto endpoint = vector.at("query").at("endpoint").get<std::string>();
    if (endpoint != "extract_quantity") return answer(vector);
    return {{"quantity", text(flexprice::quantity_at_ingest(usage_of(vector.at("aggregation")), event_of(vector.at("events").at(0), 0)))}};
}

json filter(const json& vector) {
    return {{"matches",
             flexprice::passes(flexprice::meter_filter, vector.at("aggregation").at("meter_filters"), event_of(vector.at("events").at(0), 0))}};
}

}  // namespace golden::flexprice_reading

namespace golden {

inline Vendor flexprice_reads() {
    Vendor vendor{"flexprice", {{"aggregation FILTER", flexprice_reading::filter}}};
    for (const auto name : {"aggregation COUNT", "aggregation SUM", "aggregation AVG", "aggregation MAX", "aggregation SUM_WITH_MULTIPLIER",
                            "aggregation COUNT_UNIQUE", "aggregation LATEST", "aggregation WEIGHTED_SUM"}) {
        vendor.kinds.push_back({name, flexprice_reading::measure});
    }
    return vendor;
}

}  // namespace golden
