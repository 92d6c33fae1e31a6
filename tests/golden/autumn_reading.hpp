// Autumn's vectors of events.aggregate: dossier section 3.
#pragma once

namespace golden::autumn_reading {

namespace autumn = meter::autumn;
using meter::Event;
using Groups = std::map<std::string, std::map<std::string, Decimal>>;

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

autumn::AnalyticsQuestion question_of(const json& input) {
    const auto& query = input.at("query");
    autumn::AnalyticsQuestion question;
    const auto& features = query.at("feature_id");
    question.customer = query.value("customer_id", "");
    question.features = features.is_array() ? features.get<std::vector<std::string>>() : std::vector<std::string>{features.get<std::string>()};
    question.group_by = query.value("group_by", "");
    const auto filter_by = query.value("filter_by", json::object());
    for (const auto& [path, text] : filter_by.items()) question.filter.parts.push_back(meter::Filter::equals(meter::property_field(path), text));
    question.max_groups = query.value("max_groups", question.max_groups);
    question.bin = time_vectors::bin_named(query.value("bin_size", "day"));
    question.now = time_vectors::from_ms(input.at("now_ms"));
    if (query.contains("custom_range")) {
        const auto& range = query.at("custom_range");
        question.ranges = autumn::custom_ranges(time_vectors::from_ms(range.at("start")), time_vectors::from_ms(range.at("end")));
    } else {
        question.ranges = autumn::named_ranges(query.value("range", "1bc"), question.bin, question.now, {});
    }
    return question;
}

json texts_of(const std::map<std::string, Decimal>& values) {
    json object = json::object();
    for (const auto& [name, value] : values) object[name] = text(value);
    return object;
}

json aggregate(const json& vector) {
    const auto& input = vector.at("input");
    const auto question = question_of(input);
    const auto found = Log(events_of(input)).ask([&](meter::UsageSource& usage) { return autumn::analytics(question, usage); });
    json list = json::array(), total = json::object();
    std::map<std::string, Decimal> sums;
    for (const auto& bin : found.list) {
        json row{{"period", time_vectors::to_ms(bin.start)}, {"values", texts_of(bin.values)}};
        for (const auto& [feature, groups] : bin.grouped) {
            row["grouped_values"][feature] = texts_of(groups);
            for (const auto& [group, value] : groups) sums[group] += value;
        }
        list.push_back(row);
    }
    for (const auto& [feature, each] : found.totals) total[feature] = {{"count", each.count}, {"sum", text(each.sum)}};
    return {{"list", list}, {"total", total}, {"group_sums", texts_of(sums)}};
}

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

json grouped_values(const json& vector) {
    json values = json::array();
    std::map<std::string, Decimal> totals;
    for (const auto& bin : vector.at("input").at("grouped_values")) {
        Groups groups;
        for (const auto& [feature, members] : bin.items()) {
            for (const auto& [group, value] : members.items()) groups[feature][group] = Decimal::from_json(value);
        }
        const auto sums = autumn::sums_of_groups(groups);
        values.push_back(texts_of(sums));
        for (const auto& [feature, sum] : sums) totals[feature] += sum;
    }
    return {{"values", values}, {"total_sums", texts_of(totals)}};
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
