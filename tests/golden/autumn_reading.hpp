// Autumn's vectors of events.aggregate: dossier section 3.
#pragma once

namespace golden::autumn_reading {

namespace autumn = meter::autumn;
using meter::Event;

/// A text member; empty when it is missing or null.
std::string text_at(const json& object, const char* key, const char* fallback = "") {
    const auto found = object.find(key);
    return found == object.end() || found->is_null() ? fallback : found->get<std::string>();
}

/// An event is stored under the name that it was tracked by (3.10).
Event event_of(const json& given) {
    Event event;
    event.name = text_at(given, given.contains("event_name") ? "event_name" : "feature_id");
    event.customer = text_at(given, "customer_id", "cus_1");
    event.subscription = text_at(given, "entity_id");
    event.timestamp = given.contains("timestamp") ? time_vectors::from_ms(given.at("timestamp")) : meter::Timestamp();
    if (const auto value = given.value("value", json()); !value.is_null()) event.value = Decimal::from_json(value);
    if (const auto properties = given.value("properties", json()); !properties.is_null()) event.properties = properties;
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
    question.now = time_vectors::optional_ms(input, "now_ms").value_or(meter::Timestamp());
    question.features = features.is_array() ? features.get<std::vector<std::string>>() : std::vector<std::string>{features.get<std::string>()};
    for (const auto& feature : question.features) question.query.metrics.push_back(autumn::feature_metric(feature).code);
    question.query.customer = text_at(query, "customer_id");
    question.query.subscription = text_at(query, "entity_id");
    if (query.contains("group_by")) question.query.group_by = {field_of(query.at("group_by"))};
    const auto filter_by = query.value("filter_by", json::object());
    for (const auto& [path, text] : filter_by.items())
        question.query.filter.parts.push_back(meter::Filter::equals(meter::property_field(path), text));
    question.query.top = integer(query, "max_groups");
    if (query.contains("bin_size")) question.query.bin = time_vectors::bin_named(query.at("bin_size"));
    question.query.range = text_at(query, "range");
    question.query.billing_cycle = time_vectors::billing_cycle(input);
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

/// A plan that grants these balances, and the credit systems among them.
meter::Book book_of(const json& balances) {
    json items = json::array(), features = json::array();
    for (const auto& balance : balances) {
        const auto& feature = balance.at("feature_id");
        items.push_back(
            {{"feature_id", feature}, {"included", balance.value("remaining", json())}, {"unlimited", balance.value("unlimited", false)}});
        json schema = json::array();
        const auto costs = balance.value("credit_cost", json::object());
        for (const auto& [member, cost] : costs.items()) schema.push_back({{"metered_feature_id", member}, {"credit_cost", cost}});
        features.push_back({{"id", feature}, {"credit_schema", schema}});
    }
    return meter::Book::autumn({{"plan", {{"id", "plan"}, {"items", items}}}, {"features", features}});
}

/// What the events took from each balance is the use in the plan's bill; what an entity's took, that in the entity's.
json deducted(const json& vector) {
    const auto& input = vector.at("input");
    const auto book = book_of(input.at("balances"));
    const auto events = events_of(input);
    meter::Timestamp now;
    std::set<std::string> entities;
    for (const auto& event : events) {
        now = std::max(now, event.timestamp.value());
        if (!event.subscription.empty()) entities.insert(event.subscription);
    }
    Log log(events);
    const auto usage_of = [&](const std::string& entity) {
        const meter::UsageQuery asked{.subscription = entity, .customer = text_at(input.at("query"), "customer_id", "cus_1")};
        return log.ask([&](meter::UsageSource& usage) { return book.impl().usage(asked, now, usage); });
    };
    json taken = json::object(), total = json::object();
    for (const auto& fee : usage_of("").fees) {
        const auto& balance = *std::find_if(input.at("balances").begin(), input.at("balances").end(),
                                            [&](const json& each) { return each.at("feature_id") == fee.charge; });
        const auto costs = balance.value("credit_cost", json::object());
        taken[fee.charge] = {{"feature_type", costs.empty() ? "metered" : "credit_system"},
                             {"deducted", text(fee.units)},
                             {"events", fee.events},
                             {"credit_cost", costs.empty() ? json(nullptr) : *costs.begin()}};
    }
    for (const auto& entity : entities) {
        for (const auto& fee : usage_of(entity).fees) taken[fee.charge]["grouped_values"][entity] = {{"deducted", text(fee.units)}};
    }
    const auto feature = input.at("query").at("feature_id").get<std::string>();
    const auto sum = log.value(autumn::feature_metric(feature));
    if (!sum.is_zero()) total[feature] = {{"sum", text(sum)}};
    return {{"total", total}, {"deductions", taken}};
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
