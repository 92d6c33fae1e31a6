// Autumn's vectors of events.list (dossier section 2, the form with an offset), asked of a Meter: their request becomes a ListQuery, and the
// page their answer.
#pragma once

namespace golden::autumn_list {

using meter::Event;
using meter::ListQuery;
using meter::Meter;
using meter::Period;
using meter::Timestamp;

/// A bound is cut to whole seconds and in the period itself; 0 is none (2.2).
std::optional<Timestamp> bound(const json& range, const char* key) {
    if (number(range, key).is_zero()) return std::nullopt;
    const auto seconds = time_vectors::from_ms(range.at(key)).unix_seconds().round(0, meter::Rounding::floor);
    return Timestamp::from_unix(seconds);
}

Period period_of(const json& query) {
    const auto range = query.value("custom_range", json::object());
    Period period;
    if (const auto start = bound(range, "start")) period.from = *start;
    if (const auto end = bound(range, "end")) period.to = *end + std::chrono::microseconds(1);
    return period;
}

ListQuery question_of(const json& query) {
    ListQuery question;
    question.customer = query.value("customer_id", "");
    question.subscription = query.value("entity_id", "");
    if (query.contains("feature_id")) {
        const auto& features = query.at("feature_id");
        question.names = features.is_array() ? features.get<std::vector<std::string>>() : std::vector<std::string>{features.get<std::string>()};
    }
    // A pair is searched as it would stand in the properties' text (2.2).
    const auto pairs = query.value("filter_by", json::object());
    for (const auto& [key, value] : pairs.items()) question.texts.push_back(json(key).dump() + ":" + value.dump());
    question.period = period_of(query);
    question.sort = {{"timestamp", true}, {"id", true}};
    question.limit = integer(query, "limit", 100);
    question.offset = integer(query, "offset");
    return question;
}

/// `total` is the number of items on the page, not of all that match (2.3); a range that ends before it starts has none.
json answer(const Meter& meter, const json& query) {
    const auto question = question_of(query);
    const auto page = question.period.from < question.period.to ? meter.list(question) : meter::Page();
    json ids = json::array();
    for (const auto& event : page.events) ids.push_back(event.id);
    return {{"ids", ids}, {"has_more", bool(page.next)}, {"total", page.events.size()}, {"offset", question.offset}, {"limit", question.limit}};
}

json list(const json& vector) {
    Meter meter;
    for (const auto& given : vector.at("input").at("events")) {
        auto event = autumn_reading::event_of(given);
        event.id = given.value("id", "");
        meter.record(event);
    }
    return answer(meter, vector.at("input").value("query", json::object()));
}

}  // namespace golden::autumn_list

namespace golden {

inline Vendor autumn_lists() { return {"autumn", {{"list", autumn_list::list}}}; }

}  // namespace golden
