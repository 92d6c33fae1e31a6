// Autumn's vectors of events.aggregate: dossier section 3.
#pragma once

namespace golden::autumn_reading {

namespace autumn = meter::autumn;
using meter::Event;

std::vector<Event> events_of(const json& input) {
    std::vector<Event> events;
    for (const auto& given : input.at("events")) {
        if (input.at("query").value("customer_id", given.at("customer_id")) != given.at("customer_id")) continue;
        Event event;
        event.name = given.at("feature_id").get<std::string>();
        event.timestamp = time_vectors::from_ms(given.at("timestamp"));
        if (!given.at("value").is_null()) event.value = Decimal::from_json(given.at("value"));
        event.properties = given.at("properties");
        events.push_back(std::move(event));
    }
    return events;
}

autumn::AnalyticsQuestion question_of(const json& input) {
    const auto& query = input.at("query");
    autumn::AnalyticsQuestion question;
    const auto& features = query.at("feature_id");
    question.features = features.is_array() ? features.get<std::vector<std::string>>() : std::vector<std::string>{features.get<std::string>()};
    question.group_by = query.value("group_by", "");
    if (!question.group_by.empty()) question.group_by.erase(0, std::string_view("properties.").size());
    question.filter_by = query.value("filter_by", json::object());
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
    const auto found = autumn::analytics(question_of(input), events_of(input));
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

}  // namespace golden::autumn_reading

namespace golden {

inline Vendor autumn_reads() { return {"autumn", {{"aggregate", autumn_reading::aggregate}, {"aggregate_group_sums", autumn_reading::aggregate}}}; }

}  // namespace golden
