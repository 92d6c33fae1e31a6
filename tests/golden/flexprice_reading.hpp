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
    event.source = given.value("source", "");
    event.properties = given.value("properties", json());
    if (event.properties.is_null()) event.properties = json::object();
    return event;
}

bool reads_events_table(const json& vector) {
    const auto endpoint = vector.at("query").at("endpoint").get<std::string>();
    return endpoint == "usage" || endpoint == "usage_meter";
}

/// "properties.region" and "region" are one.
std::string property_name(const std::string& text) {
    const std::string_view prefix = "properties.";
    return text.starts_with(prefix) ? text.substr(prefix.size()) : text;
}

/// Of the meter, or of a query of the events table, where only the first property of the list counts (5.1).
std::string bucket_group(const json& vector) {
    const auto& aggregation = vector.at("aggregation");
    const json of_query = reads_events_table(vector) ? vector.at("query").value("group_by", json()) : json();
    const json given = aggregation.value("group_by", of_query);
    if (given.is_string()) return property_name(given.get<std::string>());
    return given.empty() ? "" : property_name(given.at(0).get<std::string>());
}

std::string event_name(const json& vector) {
    const auto& events = vector.at("events");
    const std::string first = events.empty() ? "event" : events.at(0).value("event_name", "event");
    return vector.at("query").value("event_name", vector.at("aggregation").value("event_name", first));
}

/// Also in small letters (5.1).
std::string type_of(const json& vector) {
    auto type = vector.at("aggregation").at("type").get<std::string>();
    std::transform(type.begin(), type.end(), type.begin(), [](unsigned char c) { return static_cast<char>(std::toupper(c)); });
    return type;
}

/// The meter as the book reads it. The queries of the events table do not look at its filters (5.3), and count where a property is not named (5.1).
Metric metric_of(const json& vector) {
    const auto& aggregation = vector.at("aggregation");
    const bool by_query = reads_events_table(vector);
    auto type = type_of(vector);
    const auto property = aggregation.value("property_name", "");
    if (type == "FILTER" || (by_query && property.empty())) type = "COUNT";
    json given = {{"type", type}, {"field", property}};
    for (const char* key : {"multiplier", "bucket_size", "expression"}) {
        if (aggregation.contains(key)) given[key] = aggregation.at(key);
    }
    if (by_query) given.erase("expression");
    if (by_query && type == "SUM_WITH_MULTIPLIER" && !given.contains("multiplier")) given["multiplier"] = 1;
    if (type != "MAX" && type != "SUM") given.erase("bucket_size");
    if (type == "MAX" && given.contains("bucket_size")) given["group_by"] = bucket_group(vector);
    json filters = json::array();
    const json given_filters = aggregation.value("meter_filters", json::object());
    for (const auto& [key, values] : given_filters.items()) filters.push_back({{"key", key}, {"values", values}});
    const json meter = {{"id", "meter"},
                        {"event_name", event_name(vector)},
                        {"aggregation", given},
                        {"filters", filters},
                        {"reset_usage", aggregation.value("reset_usage", "")}};
    auto metric = flexprice::read_meter(meter::Node(meter));
    if (by_query) {
        metric.rules = "flexprice_events";
        metric.filter = {};
    }
    return metric;
}

/// All keys must hold, any text of one does; a key without texts says nothing (4.1).
void add_filters(const json& filters, Filter& all) {
    for (const auto& [key, values] : filters.items()) {
        if (!values.empty()) all.parts.push_back(Filter::where(meter::property_field(key), meter::Operator::in, values));
    }
}

/// A zone that is not known is UTC (5.1).
std::string zone_named(const std::string& name) {
    try {
        meter::Zone{name};
    } catch (const meter::Error&) {
        return "";
    }
    return name;
}

AggregateQuery query_of(const json& query) {
    AggregateQuery asked;
    asked.customer = query.value("external_customer_id", "");
    const auto time = [&](const char* key, Timestamp& into) {
        if (query.value(key, json()).is_string()) into = Timestamp::parse(query.at(key).get<std::string>());
    };
    time("start_time", asked.period.from);
    time("end_time", asked.period.to);
    if (query.contains("billing_anchor")) time("billing_anchor", asked.billing_anchor.emplace());
    asked.time_zone = zone_named(query.value("timezone", ""));
    asked.week_start = std::chrono::Sunday;
    for (const char* key : {"filters", "property_filters"}) add_filters(query.value(key, json::object()), asked.filter);
    const auto sources = query.value("sources", std::vector<std::string>());
    if (!sources.empty()) asked.filter.parts.push_back(Filter::where("source", meter::Operator::in, sources));
    return asked;
}

/// Copies of one id, of which a log keeps one: those that the queries of the events table count once become the last copy (5.6), others events of
/// their own. The table meter_usage counts one copy in each second but for counts (2.6).
std::vector<Event> recorded(const json& vector) {
    const auto type = type_of(vector);
    const bool bucketed = vector.at("aggregation").contains("bucket_size");
    const bool once =
        reads_events_table(vector) ? !bucketed && type != "LATEST" && type != "COUNT_UNIQUE" && type != "WEIGHTED_SUM" : type == "COUNT";
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

/// The answers of the events table are float64 (5.6).
std::string number_text(const json& vector, const Decimal& value) {
    return text(reads_events_table(vector) ? Decimal::from_double(value.to_double()) : value);
}

/// Buckets, else windows; an unknown size is a day (5.1).
Bin window_of(const json& query, const Metric& metric) {
    if (metric.bucket != Bin::none) return metric.bucket;
    const auto name = query.value("window_size", "");
    if (name.empty()) return Bin::none;
    const auto& sizes = flexprice::window_sizes;
    const auto size = std::find_if(std::begin(sizes), std::end(sizes), [&](const auto& each) { return each.first == name; });
    return size == std::end(sizes) ? Bin::day : size->second;
}

/// Weeks and months are dates, written as midnight UTC; shorter windows begin when they begin (5.4).
std::string window_text(Timestamp start, const AggregateQuery& query) {
    const bool date = query.bin == Bin::week || query.bin == Bin::month;
    return (date ? Timestamp(meter::Zone(query.time_zone).to_local(start)) : start).to_string();
}

json rows_of(const json& vector, const Metric& metric, const AggregateQuery& query, meter::UsageSource& usage) {
    json rows = json::array();
    for (const auto& row : usage.measure(metric, query)) {
        json group = json::object();
        for (std::size_t i = 0; i < row.group.size(); ++i) group[property_name(query.group_by[i])] = row.group[i].value_or("");
        rows.push_back({{"group", group}, {"value", number_text(vector, row.value)}, {"event_count", row.events}});
        if (row.bin) rows.back()["window_size"] = window_text(*row.bin, query);
    }
    return rows;
}

json answer(const json& vector) {
    const auto& query = vector.at("query");
    const auto metric = metric_of(vector);
    const auto asked = query_of(query);
    auto by_window = asked, by_group = asked;
    by_window.bin = window_of(query, metric);
    if (!metric.bucket_group.empty()) by_window.group_by = {metric.bucket_group};
    if (!reads_events_table(vector)) by_group.group_by = query.value("group_by", std::vector<std::string>());
    Log log(recorded(vector));
    json out{{"results", json::array()}};
    log.ask([&](meter::UsageSource& usage) {
        if (by_window.bin != Bin::none) out["results"] = rows_of(vector, metric, by_window, usage);
        out["groups"] = rows_of(vector, metric, by_group, usage);
        out["event_count"] = usage.measure(metric, asked).at(0).events;
    });
    out["value"] = out["total_usage"] = number_text(vector, log.value(metric, asked));
    return out;
}

/// What a meter is read as that FlexPrice's API does not take, nor this book (5.13): one that measures nothing.
template <class Answer>
json unless_refused(const json& vector, json otherwise, Answer&& answer) {
    try {
        metric_of(vector);
    } catch (const meter::Error&) {
        return otherwise;
    }
    return answer();
}

json quantity(const json& vector) {
    return unless_refused(vector, {{"quantity", "0"}}, [&]() -> json {
        return {{"quantity", text(Log(recorded(vector)).value(metric_of(vector)))}};
    });
}

json filter(const json& vector) {
    return unless_refused(vector, {{"matches", false}}, [&]() -> json {
        return {{"matches", Log(recorded(vector)).value(metric_of(vector)) == Decimal(1)}};
    });
}

json measure(const json& vector) {
    const auto endpoint = vector.at("query").at("endpoint").get<std::string>();
    if (endpoint == "extract_quantity") return quantity(vector);
    return endpoint == "meter_filter" ? filter(vector) : answer(vector);
}

}  // namespace golden::flexprice_reading

namespace golden {

inline Vendor flexprice_reads() {
    Vendor vendor{"flexprice", {{"aggregation FILTER", flexprice_reading::filter}}};
    for (const auto name : {"aggregation *", "aggregation COUNT", "aggregation SUM", "aggregation AVG", "aggregation MAX",
                            "aggregation SUM_WITH_MULTIPLIER", "aggregation COUNT_UNIQUE", "aggregation LATEST", "aggregation WEIGHTED_SUM"}) {
        vendor.kinds.push_back({name, flexprice_reading::measure});
    }
    return vendor;
}

}  // namespace golden
