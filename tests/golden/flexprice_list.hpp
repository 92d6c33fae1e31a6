// FlexPrice's vectors of POST /events/query (dossier section 4), asked of a Meter: their request becomes a ListQuery, and the page their answer.
#pragma once

namespace golden::flexprice_list {

using meter::Event;
using meter::Filter;
using meter::ListQuery;
using meter::Meter;
using meter::Operator;
using meter::SortKey;
using meter::Timestamp;
using std::chrono::microseconds;

/// "<unix nanoseconds>::<event id>" (4.4).
struct Key {
    Timestamp time;
    std::string id;
};

std::string key_text(const Event& event) { return std::to_string(event.timestamp.value().micros() * 1000) + "::" + event.id; }

Key read_key(const std::string& text) {
    const auto split = text.find("::");
    if (split == std::string::npos || text.find("::", split + 2) != std::string::npos) throw std::runtime_error("Invalid cursor key format");
    return {Timestamp(Decimal(text.substr(0, split)).to_int64().value() / 1000), text.substr(split + 2)};
}

/// The rows on one side of a key, by timestamp, then id, whatever they are sorted by.
Filter beyond(const Key& key, Operator side) {
    const auto time = key.time.to_string(6);
    return Filter::any({Filter::where("timestamp", side, time), Filter::all({Filter::equals("timestamp", time), Filter::where("id", side, key.id)})});
}

/// A list of texts for each key: all keys must hold, any text of one does. "" is also what an event without the key has (4.8).
Filter property_filter(const json& wanted) {
    std::vector<Filter> keys;
    for (const auto& [key, texts] : wanted.items()) {
        if (texts.empty()) continue;
        const auto field = "properties." + key;
        std::vector<Filter> any{Filter::where(field, Operator::in, texts)};
        if (std::find(texts.begin(), texts.end(), "") != texts.end()) any.push_back(Filter::where(field, Operator::exists, false));
        keys.push_back(Filter::any(any));
    }
    return Filter::all(keys);
}

/// The question but for the cursor. Both ends of the period are in it; without them it is the seven days up to now.
ListQuery question_of(const json& query, Timestamp now) {
    const auto time = [&](const char* key, Timestamp otherwise) {
        return query.value(key, json()).is_string() ? Timestamp::parse(query.at(key).get<std::string>()) : otherwise;
    };
    const auto texts = [&](const char* key) {
        const auto text = query.value(key, "");
        return text.empty() ? std::vector<std::string>() : std::vector<std::string>{text};
    };
    const Timestamp to = time("end_time", now);
    ListQuery question;
    question.customer = query.value("external_customer_id", "");
    question.names = texts("event_name");
    question.ids = texts("event_id");
    question.sources = texts("source");
    question.period = {time("start_time", to - std::chrono::days(7)), to + microseconds(1)};
    question.filter = property_filter(query.value("property_filters", json::object()));
    for (const auto& [key, allowed] : {std::pair{"sort", std::pair{"timestamp", "event_name"}}, {"order", {"asc", "desc"}}}) {
        const auto given = query.value(key, allowed.first);
        if (given != allowed.first && given != allowed.second) throw std::runtime_error("Please check the request payload");
    }
    question.sort = {{query.value("sort", "timestamp") == "timestamp" ? "timestamp" : "name", query.value("order", "desc") == "desc"}, {"id", true}};
    const auto size = query.value("page_size", std::int64_t{0});
    question.limit = size <= 0 ? 50 : size;
    question.count = true;
    return question;
}

/// `total` counts the whole question, as the store of the vendor's tests does; the deployed one counts from the cursor on (4.7).
json answer(const Meter& meter, const json& query, Timestamp now) {
    auto question = question_of(query, now);
    const auto newer = query.value("iter_first_key", ""), older = query.value("iter_last_key", "");
    const bool by_cursor = !newer.empty() || !older.empty();
    json answer{{"event_ids", json::array()}, {"total_count", meter.list(question).total.value()}};
    if (by_cursor) {
        const auto side = newer.empty() ? beyond(read_key(older), Operator::lt) : beyond(read_key(newer), Operator::gt);
        question.filter = Filter::all({question.filter, side});
    } else {
        question.offset = std::max<std::int64_t>(0, query.value("offset", std::int64_t{0}));
        answer["offset"] = question.offset + question.limit;
    }
    const auto page = meter.list(question);
    for (const auto& event : page.events) answer["event_ids"].push_back(event.id);
    answer["has_more"] = bool(page.next);
    if (page.events.empty()) return answer;
    answer["iter_first_key"] = key_text(page.events.front());
    if (!by_cursor || page.next) answer["iter_last_key"] = key_text(page.events.back());
    return answer;
}

/// The vectors do not say when they were asked: as the last event happens.
json list(const json& vector) {
    Meter meter;
    Timestamp now = Timestamp::min();
    for (const auto& given : vector.at("events")) {
        const Event event = flexprice_reading::event_of(given);
        now = std::max(now, event.timestamp.value());
        meter.record(event);
    }
    return answer(meter, vector.at("query"), now);
}

}  // namespace golden::flexprice_list

namespace golden {

inline Vendor flexprice_lists() { return {"flexprice", {{"aggregation LIST", flexprice_list::list}}}; }

}  // namespace golden
