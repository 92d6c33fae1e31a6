// Autumn's vectors of events.aggregate: dossier section 3.
#pragma once

namespace golden::autumn_reading {

namespace autumn = meter::autumn;
using meter::Event;

Event event_of(const json& given) {
    Event event;
    event.name = given.at("feature_id").get<std::string>();
    event.customer = given.value("customer_id", "cus_1");
    event.timestamp = given.contains("timestamp") ? time_vectors::from_ms(given.at("timestamp")) : meter::Timestamp();
    if (const auto& value = given.at("value"); !value.is_null()) event.value = Decimal::from_json(value);
    event.properties = given.at("properties");
    return event;
}

std::vector<Event> events_of(const json& input) {
    std::vector<Event> events;
    for (const auto& given : input.at("events")) events.push_back(event_of(given));
    return events;
}

struct Question {
    std::vector<std::string> features = {};
    meter::AnalyticsQuery query = {.rules = "autumn"};
    meter::Timestamp now = {};
};

/// "$customer_id" and "$entity_id" are fields of the event.
std::string field_of(const std::string& group_by) {
    return group_by == "$customer_id" ? "customer" : group_by == "$entity_id" ? "subscription" : group_by;
}

Question question_of(const json& input) {
    const auto& query = input.at("query");
    const auto& features = query.at("feature_id");
    Question question;
    question.now = time_vectors::from_ms(input.at("now_ms"));
    question.features = features.is_array() ? features.get<std::vector<std::string>>() : std::vector<std::string>{features.get<std::string>()};
    for (const auto& feature : question.features) question.query.metrics.push_back(autumn::feature_metric(feature).code);
    question.query.customer = query.value("customer_id", "");
    if (query.contains("group_by")) question.query.group_by = {field_of(query.at("group_by"))};
    const auto filter_by = query.value("filter_by", json::object());
    for (const auto& [path, text] : filter_by.items())
        question.query.filter.parts.push_back(meter::Filter::equals(meter::property_field(path), text));
    question.query.top = query.value("max_groups", 0);
    if (query.contains("bin_size")) question.query.bin = time_vectors::bin_named(query.at("bin_size"));
    question.query.range = query.value("range", "");
    if (query.contains("custom_range")) {
        const auto& range = query.at("custom_range");
        question.query.period = {time_vectors::from_ms(range.at("start")), time_vectors::from_ms(range.at("end")) + std::chrono::microseconds(1)};
    }
    return question;
}

meter::Analytics answer_to(const Question& question, const std::vector<Event>& events) {
    std::vector<meter::Metric> metrics;
    for (const auto& feature : question.features) metrics.push_back(autumn::feature_metric(feature));
    return Log(events).ask([&](meter::UsageSource& usage) { return meter::analytics(question.query, {metrics, {}, question.now, usage}); });
}

/// A metric's code without its book.
std::string feature_of(const std::string& code) { return code.substr(code.find(':') + 1); }

/// The answer in the vendor's shape.
json shown(const meter::Analytics& answer) {
    std::map<std::int64_t, json> bins;
    std::map<std::string, Decimal> sums;
    for (const auto& item : answer.items) {
        for (const auto& point : item.points) {
            auto& row = bins[point.start.micros() / 1000];
            auto& value = row["values"][feature_of(item.metric)];
            value = text((value.is_null() ? Decimal() : Decimal::from_json(value)) + point.usage);
            if (item.group.empty()) continue;
            const auto group = item.rest ? item.vendor.at("group").get<std::string>() : item.group[0].value();
            row["grouped_values"][feature_of(item.metric)][group] = text(point.usage);
            sums[group] += point.usage;
        }
    }
    json list = json::array(), total = json::object(), groups = json::object();
    for (auto& [period, row] : bins) {
        row["period"] = period;
        list.push_back(row);
    }
    for (const auto& each : answer.totals) total[feature_of(each.metric)] = {{"count", each.events}, {"sum", text(each.usage)}};
    for (const auto& [group, sum] : sums) groups[group] = text(sum);
    return {{"list", list}, {"total", total}, {"group_sums", groups}};
}

json aggregate(const json& vector) { return shown(answer_to(question_of(vector.at("input")), events_of(vector.at("input")))); }

// What the events took from each balance is the use in the bill of a plan that grants these balances.
json deducted(const json& vector) {
    const auto& input = vector.at("input");
    json items = json::array(), features = json::array(), taken = json::object();
    for (const auto& balance : input.at("balances")) {
        const auto& feature = balance.at("feature_id");
        items.push_back({{"feature_id", feature}, {"included", balance.at("remaining")}});
        json schema = json::array();
        const auto costs = balance.value("credit_cost", json::object());
        for (const auto& [member, cost] : costs.items()) schema.push_back({{"metered_feature_id", member}, {"credit_cost", cost}});
        features.push_back({{"id", feature}, {"credit_schema", schema}});
    }
    const auto book = meter::Book::autumn({{"plan", {{"id", "plan"}, {"items", items}}}, {"features", features}});
    const auto events = events_of(input);
    Log log(events);
    const auto fees = log.ask([&](meter::UsageSource& usage) { return book.impl().usage({.customer = "cus_1"}, meter::Timestamp(), usage); });
    for (std::size_t i = 0; i < fees.fees.size(); ++i) {
        const auto& schema = features[i].at("credit_schema");
        taken[fees.fees[i].charge] = {{"feature_type", schema.empty() ? "metered" : "credit_system"},
                                      {"deducted", text(fees.fees[i].units)},
                                      {"events", fees.fees[i].events},
                                      {"credit_cost", schema.empty() ? json(nullptr) : schema[0].at("credit_cost")}};
    }
    const auto feature = input.at("query").at("feature_id").get<std::string>();
    return {{"total", {{feature, {{"sum", text(log.value(autumn::feature_metric(feature)))}}}}}, {"deductions", taken}};
}

/// A day for each bin of the vector, and in it an event for each of its numbers.
json grouped_values(const json& vector) {
    std::set<std::string> features;
    std::vector<Event> events;
    meter::Timestamp day;
    for (const auto& bin : vector.at("input").at("grouped_values")) {
        for (const auto& [feature, groups] : bin.items()) {
            features.insert(feature);
            for (const auto& [group, value] : groups.items())
                events.push_back({.name = feature, .timestamp = day, .value = Decimal::from_json(value), .properties = {{"group", group}}});
        }
        day = day + std::chrono::hours(24);
    }
    Question question{.features = {features.begin(), features.end()}, .now = day};
    for (const auto& feature : features) question.query.metrics.push_back(autumn::feature_metric(feature).code);
    question.query.group_by = {"properties.group"};
    question.query.period = meter::Period{{}, day};
    const auto answer = shown(answer_to(question, events));
    json values = json::array(), totals = json::object();
    for (const auto& row : answer.at("list")) values.push_back(row.at("values"));
    for (const auto& feature : features) totals[feature] = answer.at("total").at(feature).at("sum");
    return {{"values", values}, {"total_sums", totals}};
}

}  // namespace golden::autumn_reading

namespace golden {

inline Vendor autumn_reads() {
    return {"autumn",
            {{"aggregate", autumn_reading::aggregate},
             {"aggregate_group_sums", autumn_reading::aggregate},
             {"aggregate_deducted", autumn_reading::deducted},
             {"grouped_values_to_values", autumn_reading::grouped_values}}};
}

}  // namespace golden
