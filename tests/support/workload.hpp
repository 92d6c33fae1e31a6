// Random events and random questions, and the answers worked out the obvious way: a loop over a plain list.
#pragma once

#include <algorithm>
#include <map>
#include <optional>
#include <random>
#include <set>
#include <string>
#include <tuple>
#include <vector>

#include "../../meter.hpp"

namespace meter_test {

using meter::Decimal;
using meter::Filter;
using meter::json;
using meter::Operator;
using meter::Timestamp;

/// One field's value as the model sees it.
struct Value {
    enum class Kind { missing, null, boolean, number, text, structure, object };  // object: with members
    Kind kind = Kind::missing;
    bool boolean = false;
    Decimal number{};
    std::string text{};  // of text; of a structure as it stands in the properties
    bool absent() const { return kind == Kind::missing || kind == Kind::null || kind == Kind::object; }
    /// What groups and text operators see.
    std::string shown() const {
        if (kind == Kind::boolean) return boolean ? "true" : "false";
        if (kind == Kind::number) return number.to_string();
        return text;
    }
    std::optional<Decimal> as_number() const {
        if (kind == Kind::number) return number;
        return kind == Kind::text ? Decimal::parse(text) : std::nullopt;
    }
};

struct ModelEvent {
    std::string id, name, customer, subscription, source;
    std::int64_t time = 0, sequence = 0;
    std::optional<Decimal> value;
    std::map<std::string, Value> properties;  // by path
    std::string line;                         // as record_json takes it

    Value field(const std::string& wanted) const {
        const std::map<std::string, const std::string*> texts{
            {"id", &id}, {"name", &name}, {"customer", &customer}, {"subscription", &subscription}, {"source", &source}};
        if (const auto known = texts.find(wanted); known != texts.end()) {
            if (known->second->empty()) return {};
            return {Value::Kind::text, false, {}, *known->second};
        }
        if (wanted == "value") return value ? Value{Value::Kind::number, false, *value, {}} : Value{};
        const std::string prefix = "properties.";
        const auto property = properties.find(wanted.compare(0, prefix.size(), prefix) == 0 ? wanted.substr(prefix.size()) : wanted);
        return property == properties.end() ? Value{} : property->second;
    }
};

/// Makes events with everything in them that is awkward: values of mixed kinds under one name, nested paths, texts that are numbers.
class Workload {
public:
    explicit Workload(std::uint64_t seed, int extra_properties = 0, Timestamp start = Timestamp::from_civil(2026, 1, 20), int days = 40)
        : random_(seed), extra_properties_(extra_properties), start_(start.micros()), quarter_hours_(static_cast<std::size_t>(days) * 24 * 4) {}

    std::size_t pick(std::size_t count) { return static_cast<std::size_t>(random_() % count); }
    bool chance(unsigned percent) { return random_() % 100 < percent; }
    const std::string& among(const std::vector<std::string>& list) { return list[pick(list.size())]; }

    ModelEvent event() {
        ModelEvent event;
        event.id = chance(80) ? uuid() : "e" + std::to_string(++made_);
        event.name = among(names);
        if (chance(85)) event.customer = among(customers);
        if (chance(60)) event.subscription = among(subscriptions);
        if (chance(50)) event.source = among(sources);
        event.time = time();
        json line = {{"id", event.id}, {"name", event.name}, {"timestamp", Timestamp(event.time).to_string(6)}};
        if (!event.customer.empty()) line["customer"] = event.customer;
        if (!event.subscription.empty()) line["subscription"] = event.subscription;
        if (!event.source.empty()) line["source"] = event.source;
        if (chance(40)) {
            const std::string text = number();
            event.value = Decimal(text);
            line["value"] = text;
        }
        const std::string properties = "{" + members(event) + "}", head = line.dump();
        event.line = head.substr(0, head.size() - 1) + ",\"properties\":" + properties + "}";
        return event;
    }

    Filter filter(int depth = 0) {
        if (depth < 3 && chance(depth == 0 ? 50 : 30)) {
            std::vector<Filter> parts;
            for (std::size_t i = pick(4); i > 0; --i) parts.push_back(filter(depth + 1));
            return chance(50) ? Filter::all(parts) : Filter::any(parts);
        }
        const std::string field = chance(10) ? "timestamp" : some_field();
        if (field == "timestamp") return time_clause();
        switch (pick(13)) {
            case 0:
            case 1:
                return Filter::where(field, chance(50) ? Operator::in : Operator::not_in, operands());
            case 2:
                return Filter::where(field, Operator::exists, chance(50));
            case 3:
                return Filter::where(field, Operator::contains, among({"a", "1", "", "mod", "rue"}));
            case 4:
                return Filter::where(field, Operator::not_contains, among({"a", "1", "r"}));
            case 5:
                return Filter::where(field, chance(50) ? Operator::like : Operator::not_like, among({"%", "m%", "%l_", "_", "%a%e%", "1%"}));
            case 6:
                return Filter::where(field, Operator::ne, operand());
            case 7:
                return Filter::where(field, Operator::gt, operand());
            case 8:
                return Filter::where(field, Operator::gte, operand());
            case 9:
                return Filter::where(field, Operator::lt, operand());
            case 10:
                return Filter::where(field, Operator::lte, operand());
            default:
                return Filter::where(field, Operator::eq, operand());
        }
    }

    std::string some_field() {
        if (extra_properties_ > 0 && chance(40)) return "p" + std::to_string(pick(static_cast<std::size_t>(extra_properties_)));
        return among({"model", "tokens", "nested.region", "nested.deep.n", "nested.deep", "nested", "mixed", "dotted.key", "list", "value",
                      "customer", "subscription", "source", "name", "properties.name", "absent"});
    }

    std::vector<meter::SortKey> sort() {
        std::vector<meter::SortKey> keys;
        for (std::size_t i = pick(4); i > 0; --i) keys.push_back({chance(25) ? "timestamp" : chance(15) ? "id" : some_field(), chance(50)});
        return keys;
    }

    meter::Period period() {
        if (chance(50)) return {};
        const std::int64_t a = time(), b = time();
        return {Timestamp(std::min(a, b)), Timestamp(std::max(a, b) + 1)};
    }

    const std::vector<std::string> names{"api_call", "storage", "Storage", "it's"};
    const std::vector<std::string> customers{"acme", "globex", "initech", "O'Brien", "7", "\xC3\xA9"};
    const std::vector<std::string> subscriptions{"s1", "s2", "s3"};
    const std::vector<std::string> sources{"desktop", "edge", "acme"};

private:
    std::string uuid() {
        constexpr const char* digits = "0123456789abcdef";
        std::string text = "00000000-0000-7000-8000-000000000000";
        for (std::size_t i = 0; i < text.size(); ++i) {
            if (text[i] == '0') text[i] = digits[random_() % 16];
        }
        return text;
    }
    // In steps coarse enough that some events share their time; a few long before 1970.
    std::int64_t time() {
        constexpr std::int64_t quarter_hour = 900'000'000;
        if (chance(2)) return Timestamp::parse("1950-06-30T23:59:59.999999Z").micros();
        return start_ + static_cast<std::int64_t>(pick(quarter_hours_)) * quarter_hour + (chance(20) ? 1 : 0);
    }
    std::string number() {
        switch (pick(9)) {
            case 0:
                return "0";
            case 1:
                return "-" + std::to_string(random_() % 50);
            case 2:
                return std::to_string(random_() % 1000) + ".50";
            case 3:
                return std::to_string(random_() % 10) + ".000" + std::to_string(random_() % 10);
            case 4:
                return std::to_string(random_() % 10) + "e" + std::to_string(random_() % 4);
            case 5:
                return chance(20) ? "1234567890123456789012." + std::to_string(random_() % 100000) : "0.0000000" + std::to_string(random_() % 9 + 1);
            default:
                return std::to_string(random_() % 100);
        }
    }
    // A member of the properties, as text, and its value into the model.
    std::string scalar(Value& value) {
        const std::size_t kind = pick(12);
        if (kind == 0) return value = {Value::Kind::null, false, {}, {}}, "null";
        if (kind == 1) return value = {Value::Kind::boolean, true, {}, {}}, "true";
        if (kind == 2) return value = {Value::Kind::boolean, false, {}, {}}, "false";
        if (kind == 3) return value = {Value::Kind::structure, false, {}, "[1,\"a\"]"}, value.text;
        if (kind <= 6) {
            value = {Value::Kind::text, false, {}, among({"", "12", "12.0", "-3", "1e2", " 7", "model", "true", "null", "\xF0\x9F\x98\x80"})};
            return json(value.text).dump(-1, ' ', chance(50));
        }
        const std::string text = number();
        value = {Value::Kind::number, false, Decimal(text), {}};
        return text;
    }
    void member(std::string& out, ModelEvent& event, const std::string& key, const std::string& path) {
        Value value;
        out += (out.empty() ? "\"" : ",\"") + key + "\":" + scalar(value);
        event.properties[path] = value;
    }
    std::string members(ModelEvent& event) {
        std::string out, inner, deep;
        if (chance(90)) {
            const std::string model = among({"large", "small", "mo\\u0064el", "it's", "7"});
            out += "\"model\":\"" + model + "\"";
            event.properties["model"] = {Value::Kind::text, false, {}, model == "mo\\u0064el" ? "model" : model};
        }
        if (chance(90)) {
            const std::string text = number();
            out += (out.empty() ? "" : ",") + ("\"tokens\":" + text);
            event.properties["tokens"] = {Value::Kind::number, false, Decimal(text), {}};
        }
        if (chance(70)) member(out, event, "mixed", "mixed");
        if (chance(20)) member(out, event, "name", "name");
        if (chance(20)) member(out, event, "dotted.key", "dotted.key");
        if (chance(20)) member(out, event, "list", "list");
        if (chance(40)) {
            const std::string word = among({"add", "remove", "remove", "Add"});
            out += (out.empty() ? "" : ",") + ("\"operation_type\":\"" + word + "\"");
            event.properties["operation_type"] = {Value::Kind::text, false, {}, word};
        }
        if (chance(60)) {
            if (chance(80)) member(inner, event, "region", "nested.region");
            if (chance(50)) {
                member(deep, event, "n", "nested.deep.n");
                inner += (inner.empty() ? "" : ",") + ("\"deep\":{" + deep + "}");
                event.properties["nested.deep"] = {Value::Kind::object, false, {}, {}};
            }
            event.properties["nested"] = {inner.empty() ? Value::Kind::structure : Value::Kind::object, false, {}, inner.empty() ? "{}" : ""};
            out += (out.empty() ? "" : ",") + ("\"nested\":{" + inner + "}");
        }
        for (int i = 0; i < std::min(extra_properties_, 25); ++i) {
            const std::string key = "p" + std::to_string(pick(static_cast<std::size_t>(extra_properties_)));
            if (!event.properties.contains(key)) member(out, event, key, key);
        }
        return out;
    }
    json operand() {
        switch (pick(6)) {
            case 0:
                return static_cast<int>(random_() % 100) - 20;
            case 1:
                return 12.5;
            case 2:
                return chance(50);
            case 3:
                return nullptr;
            default:
                return among({"large", "acme", "12", "12.0", "desktop", "api_call", "true", "", "model", "7", "s1"});
        }
    }
    json operands() {
        json list = json::array();
        for (std::size_t i = pick(4); i > 0; --i) list.push_back(operand());
        return list;
    }
    Filter time_clause() {
        const std::vector<Operator> ops{Operator::eq, Operator::ne, Operator::gt, Operator::gte, Operator::lt, Operator::lte};
        const Timestamp at(time() / 1'000'000 * 1'000'000);
        const json value = chance(50) ? json(at.to_string()) : json(at.micros() / 1'000'000);
        return Filter::where("timestamp", ops[pick(ops.size())], value);
    }

    std::mt19937_64 random_;
    int extra_properties_;
    std::int64_t start_;
    std::size_t quarter_hours_;
    int made_ = 0;
};

// ---- the model ----

inline bool like(const std::string& text, const std::string& pattern, std::size_t t = 0, std::size_t p = 0) {
    if (p == pattern.size()) return t == text.size();
    if (pattern[p] == '%') return like(text, pattern, t, p + 1) || (t < text.size() && like(text, pattern, t + 1, p));
    if (t == text.size()) return false;
    if (pattern[p] != '_') return pattern[p] == text[t] && like(text, pattern, t + 1, p + 1);
    do ++t;
    while (t < text.size() && (text[t] & 0xC0) == 0x80);  // to the next character of UTF-8
    return like(text, pattern, t, p + 1);
}

inline Value value_of(const json& operand) {
    if (operand.is_boolean()) return {Value::Kind::boolean, operand.get<bool>(), {}, {}};
    if (operand.is_number()) return {Value::Kind::number, false, Decimal::from_json(operand), {}};
    if (operand.is_string()) return {Value::Kind::text, false, {}, operand.get<std::string>()};
    return {Value::Kind::null, false, {}, {}};
}

// As Filter's comment says.
inline bool equal(const Value& value, const Value& operand) {
    if (value.absent() || operand.absent()) return value.absent() && operand.absent();
    const bool one_is_number = value.kind == Value::Kind::number || operand.kind == Value::Kind::number;
    if (one_is_number && value.as_number() && operand.as_number()) return value.as_number() == operand.as_number();
    return value.shown() == operand.shown();
}

inline std::optional<std::weak_ordering> ordered(const Value& value, const Value& operand) {
    if (operand.as_number()) {
        const auto number = value.as_number();
        return number ? std::optional<std::weak_ordering>(*number <=> *operand.as_number()) : std::nullopt;
    }
    if (value.kind != Value::Kind::text || operand.kind != Value::Kind::text) return std::nullopt;
    return value.text <=> operand.text;
}

inline bool holds(const ModelEvent& event, const Filter& filter) {
    const auto part = [&](const Filter& each) { return holds(event, each); };
    if (filter.kind == Filter::Kind::all) return std::all_of(filter.parts.begin(), filter.parts.end(), part);
    if (filter.kind == Filter::Kind::any) return std::any_of(filter.parts.begin(), filter.parts.end(), part);
    Value value = event.field(filter.field), operand = filter.value.is_array() ? Value{} : value_of(filter.value);
    if (filter.field == "timestamp") {
        value = {Value::Kind::number, false, event.time, {}};
        const Timestamp at = filter.value.is_string() ? Timestamp::parse(filter.value.get<std::string>()) : Timestamp::from_unix(operand.number);
        operand = {Value::Kind::number, false, at.micros(), {}};
    }
    const auto among = [&] {
        return std::any_of(filter.value.begin(), filter.value.end(), [&](const json& each) { return equal(value, value_of(each)); });
    };
    const auto order = ordered(value, operand);
    switch (filter.op) {
        case Operator::eq:
            return equal(value, operand);
        case Operator::ne:
            return !equal(value, operand);
        case Operator::in:
            return among();
        case Operator::not_in:
            return !among();
        case Operator::exists:
            return (!value.absent() || value.kind == Value::Kind::object) == filter.value.get<bool>();
        case Operator::contains:
            return !value.absent() && value.shown().find(operand.text) != std::string::npos;
        case Operator::not_contains:
            return value.absent() || value.shown().find(operand.text) == std::string::npos;
        case Operator::like:
            return !value.absent() && like(value.shown(), operand.text);
        case Operator::not_like:
            return value.absent() || !like(value.shown(), operand.text);
        case Operator::gt:
            return order && *order > 0;
        case Operator::gte:
            return order && *order >= 0;
        case Operator::lt:
            return order && *order < 0;
        case Operator::lte:
            return order && *order <= 0;
    }
    return false;
}

inline std::int64_t bin_of(std::int64_t time, meter::Bin bin) {
    const std::string text = Timestamp(time).to_string(6);
    if (bin == meter::Bin::hour) return Timestamp::parse(text.substr(0, 13) + ":00Z").micros();
    if (bin == meter::Bin::day) return Timestamp::parse(text.substr(0, 10)).micros();
    return Timestamp::parse(text.substr(0, 7) + "-01").micros();
}

/// Whether text counts as a number in a sum: -?digits[.digits].
inline bool plainly_written(const std::string& text) {
    const bool characters = text.find_first_not_of("-.0123456789") == std::string::npos && text.find('-', 1) == std::string::npos;
    return characters && Decimal::parse(text) && text.front() != '.' && text.back() != '.' && text.substr(0, 2) != "-.";
}

inline meter::Aggregate plain_aggregate(const std::vector<ModelEvent>& events, const meter::Metric& metric, const meter::AggregateQuery& query) {
    using Key = std::pair<std::optional<Timestamp>, std::vector<std::optional<std::string>>>;
    struct Slot {
        Decimal sum;
        std::int64_t events = 0;
        std::set<std::string> distinct;
    };
    std::map<Key, Slot> slots;
    for (const ModelEvent& event : events) {
        if (event.name != (metric.event.empty() ? metric.code : metric.event) || !query.period.contains(Timestamp(event.time))) continue;
        if (!query.customer.empty() && event.customer != query.customer) continue;
        if (!query.subscription.empty() && event.subscription != query.subscription) continue;
        if (!holds(event, query.filter) || !holds(event, metric.filter)) continue;
        Key key;
        if (query.bin != meter::Bin::none) key.first = Timestamp(bin_of(event.time, query.bin));
        for (const std::string& field : query.group_by) {
            const Value value = event.field(field);
            key.second.push_back(value.absent() ? std::nullopt : std::optional(value.shown()));
        }
        const Value value = metric.property.empty() ? Value{} : event.field(metric.property);
        Decimal step = 1;
        if (metric.aggregation == meter::Aggregation::sum) {
            const bool built_in =
                metric.property == "customer" || metric.property == "subscription" || metric.property == "source" || metric.property == "name";
            const bool counts = value.kind == Value::Kind::number || (value.kind == Value::Kind::text && !built_in && plainly_written(value.text));
            if (!counts) continue;
            step = *value.as_number();
        }
        if (metric.aggregation == meter::Aggregation::unique_count) {
            if (value.absent()) continue;
            step = slots[key].distinct.insert(value.shown()).second ? 1 : 0;
        }
        slots[key].sum += step;
        ++slots[key].events;
    }
    meter::Aggregate answer;
    for (const auto& [key, slot] : slots) answer.rows.push_back({key.first, key.second, slot.sum, slot.events, false});
    return answer;
}

/// A value in the order that lists are sorted by: its kind, then what it holds.
inline std::tuple<int, bool, Decimal, std::string> sort_value(const ModelEvent& event, const std::string& field) {
    if (field == "timestamp") return {2, false, event.time, ""};
    const Value value = event.field(field);
    switch (value.kind) {
        case Value::Kind::boolean:
            return {1, value.boolean, 0, ""};
        case Value::Kind::number:
            return {2, false, value.number, ""};
        case Value::Kind::text:
            return {3, false, 0, value.text};
        case Value::Kind::structure:
            return {4, false, 0, value.text};
        default:
            return {0, false, 0, ""};
    }
}

inline bool goes_before(const ModelEvent& a, const ModelEvent& b, std::vector<meter::SortKey> sort) {
    if (sort.empty()) sort = {{"timestamp", true}};
    for (const meter::SortKey& key : sort) {
        const auto left = sort_value(a, key.field), right = sort_value(b, key.field);
        if (left != right) return key.descending ? left > right : left < right;
    }
    return sort.back().descending ? a.sequence > b.sequence : a.sequence < b.sequence;
}

inline std::string shown(const std::vector<meter::SortKey>& sort) {
    std::string text;
    for (const meter::SortKey& key : sort) text += (key.descending ? "-" : "+") + key.field + " ";
    return text;
}

/// In the order of a list.
inline std::vector<const ModelEvent*> plain_list(const std::vector<ModelEvent>& events, const meter::ListQuery& query) {
    const auto one_of = [](const std::vector<std::string>& list, const std::string& text) {
        return list.empty() || std::find(list.begin(), list.end(), text) != list.end();
    };
    std::vector<const ModelEvent*> found;
    for (const ModelEvent& event : events) {
        const bool fits = (query.customer.empty() || event.customer == query.customer) &&
                          (query.subscription.empty() || event.subscription == query.subscription) && one_of(query.names, event.name) &&
                          one_of(query.sources, event.source) && one_of(query.ids, event.id) && query.period.contains(Timestamp(event.time));
        if (fits && holds(event, query.filter)) found.push_back(&event);
    }
    std::sort(found.begin(), found.end(), [&](const ModelEvent* a, const ModelEvent* b) { return goes_before(*a, *b, query.sort); });
    return found;
}

/// The rows of list_names(), or of list_sources().
inline std::vector<meter::NameInfo> plain_names(const std::vector<ModelEvent>& events, const meter::NamesQuery& query, bool names) {
    const auto lower = [](std::string text) {
        for (char& c : text) c = c >= 'A' && c <= 'Z' ? static_cast<char>(c + 32) : c;
        return text;
    };
    std::map<std::pair<std::string, std::string>, meter::NameInfo> rows;
    for (const ModelEvent* event : plain_list(events, {.customer = query.customer, .period = query.period, .filter = query.filter})) {
        const std::string name = names ? event->name : "", source = query.by_source ? event->source : "";
        if (!names && source.empty()) continue;
        if (lower(names ? name : source).find(lower(query.text)) == std::string::npos) continue;
        meter::NameInfo& row = rows.try_emplace({name, source}, meter::NameInfo{name, source, 0, Timestamp::max(), Timestamp::min()}).first->second;
        ++row.occurrences;
        row.first_seen = std::min(row.first_seen, Timestamp(event->time));
        row.last_seen = std::max(row.last_seen, Timestamp(event->time));
    }
    std::vector<meter::NameInfo> found;
    for (const auto& [key, row] : rows) found.push_back(row);
    auto sort = query.sort;
    if (sort.empty()) sort = {{"last_seen", true}};
    const auto value = [](const meter::NameInfo& row, const std::string& field) {
        return std::tuple(field == "name"     ? row.name
                          : field == "source" ? row.source
                                              : std::string(),
                          field == "occurrences"  ? row.occurrences
                          : field == "first_seen" ? row.first_seen.micros()
                          : field == "last_seen"  ? row.last_seen.micros()
                                                  : 0);
    };
    for (auto key = sort.rbegin(); key != sort.rend(); ++key) {
        std::stable_sort(found.begin(), found.end(), [&](const meter::NameInfo& a, const meter::NameInfo& b) {
            return key->descending ? value(b, key->field) < value(a, key->field) : value(a, key->field) < value(b, key->field);
        });
    }
    return found;
}

inline std::string shown(const std::vector<meter::NameInfo>& rows) {
    std::string text;
    for (const meter::NameInfo& row : rows)
        text += row.name + " from " + row.source + ": " + std::to_string(row.occurrences) + ", " + row.first_seen.to_string() + " to " +
                row.last_seen.to_string() + "\n";
    return text;
}

inline std::string shown(const meter::Aggregate& answer) {
    std::string text;
    for (const meter::AggregateRow& row : answer.rows) {
        text += row.bin ? row.bin->to_string() : "";
        for (const auto& group : row.group) text += " [" + group.value_or("-") + "]";
        text += " " + row.value.to_string() + " of " + std::to_string(row.events) + "\n";
    }
    return text;
}

}  // namespace meter_test
