// FlexPrice's vectors of usage, analytics and metering: dossier sections 4 to 6. Each one's events are recorded, and the log is asked.
#pragma once

namespace golden::flexprice_reading {

namespace flexprice = meter::flexprice;
using meter::AggregateQuery;
using meter::Bin;
using meter::Event;
using meter::Filter;
using meter::Metric;
using meter::Timestamp;

Event event_of(const json& given) {
    Event event;
    event.id = given.value("event_id", "");
    event.name = given.value("event_name", "event");
    event.customer = given.value("external_customer_id", "");
    event.timestamp = Timestamp::parse(given.value("timestamp", "2026-01-01T00:00:00Z"));
    event.properties = given.value("properties", json::object());
    return event;
}

bool reads_events_table(const json& vector) {
    const auto endpoint = vector.at("query").at("endpoint").get<std::string>();
    return endpoint == "usage" || endpoint == "usage_meter";
}

/// The meter as the book reads it. The queries of the events table do not look at its filters (5.3).
Metric metric_of(const json& vector) {
    const auto& aggregation = vector.at("aggregation");
    json filters = json::array();
    const json given_filters = aggregation.value("meter_filters", json::object());
    for (const auto& [key, values] : given_filters.items()) filters.push_back({{"key", key}, {"values", values}});
    const bool filter_only = aggregation.at("type") == "FILTER";
    json given = {{"type", filter_only ? json("COUNT") : aggregation.at("type")}, {"field", aggregation.value("property_name", "")}};
    for (const char* key : {"multiplier", "bucket_size"}) {
        if (aggregation.contains(key)) given[key] = aggregation.at(key);
    }
    const json meter = {
        {"id", "meter"}, {"event_name", vector.at("events").at(0).value("event_name", "event")}, {"aggregation", given}, {"filters", filters}};
    auto metric = flexprice::read_meter(meter::Node(meter)).metric;
    if (reads_events_table(vector)) {
        metric.rules = "flexprice_events";
        metric.filter = {};
    }
    return metric;
}

AggregateQuery query_of(const json& query) {
    AggregateQuery asked;
    asked.customer = query.value("external_customer_id", "");
    if (query.contains("start_time"))
        asked.period = {Timestamp::parse(query.at("start_time").get<std::string>()), Timestamp::parse(query.at("end_time").get<std::string>())};
    const json filters = query.value("filters", query.value("property_filters", json::object()));
    for (const auto& [key, values] : filters.items())
        asked.filter.parts.push_back(Filter::where(meter::property_field(key), meter::Operator::in, values));
    return asked;
}

/// Copies of one id, of which a log keeps one: those that the queries of the events table count once become the last copy (5.6), others events of
/// their own. The table meter_usage counts one copy in each second but for counts (2.6).
std::vector<Event> recorded(const json& vector) {
    const auto type = vector.at("aggregation").at("type").get<std::string>();
    const bool once = reads_events_table(vector) ? type != "LATEST" && type != "COUNT_UNIQUE" && type != "WEIGHTED_SUM" : type == "COUNT";
    std::map<std::string, Event> by_id;
    for (const auto& given : vector.at("events")) {
        auto event = event_of(given);
        if (event.id.empty()) event.id = "event-" + std::to_string(by_id.size());
        if (!once) event.id += " " + event.timestamp->to_string(0);
        by_id[event.id] = event;
    }
    std::vector<Event> events;
    for (auto& [id, event] : by_id) events.push_back(std::move(event));
    return events;
}

json answer(const json& vector) {
    const auto& query = vector.at("query");
    const auto metric = metric_of(vector);
    const auto asked = query_of(query);
    auto by_window = asked, by_group = asked;
    by_window.bin = metric.bucket != Bin::none      ? metric.bucket
                    : query.contains("window_size") ? meter::Node(query).choice("window_size", flexprice::window_sizes)
                                                    : Bin::none;
    by_window.week_start = std::chrono::Sunday;
    by_group.group_by = query.value("group_by", std::vector<std::string>());
    Log log(recorded(vector));
    json results = json::array(), groups = json::array();
    log.ask([&](meter::UsageSource& usage) {
        if (by_window.bin != Bin::none) {
            for (const auto& row : usage.measure(metric, by_window))
                results.push_back({{"window_size", row.bin->to_string()}, {"value", text(row.value)}});
        }
        for (const auto& row : usage.measure(metric, by_group)) {
            json names = json::object();
            for (std::size_t i = 0; i < row.group.size(); ++i)
                names[by_group.group_by[i].substr(std::string_view("properties.").size())] = row.group[i].value_or("");
            groups.push_back({{"group", names}, {"value", text(row.value)}});
        }
    });
    return {{"value", text(log.value(metric, asked))}, {"results", results}, {"groups", groups}};
}

/// What is metered of one event; nothing for a meter that FlexPrice's API does not take, nor this book (5.13).
json quantity(const json& vector) {
    std::optional<Metric> metric;
    try {
        metric = metric_of(vector);
    } catch (const meter::Error&) {
        return {{"quantity", "0"}};
    }
    return {{"quantity", text(Log(recorded(vector)).value(*metric))}};
}

json measure(const json& vector) { return vector.at("query").at("endpoint") == "extract_quantity" ? quantity(vector) : answer(vector); }

json filter(const json& vector) { return {{"matches", Log(recorded(vector)).value(metric_of(vector)) == Decimal(1)}}; }

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
