// What aggregate() should answer, worked out the obvious way: a loop over a plain list of events for every row. Bins come from the C
// library's idea of a zone; nothing of meter's but Decimal and the kinds of question is used.
#pragma once

#include <time.h>

#include <algorithm>
#include <cstdlib>
#include <functional>
#include <map>
#include <set>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "workload.hpp"

namespace meter_test {

using meter::Aggregate;
using meter::AggregateQuery;
using meter::AggregateRow;
using meter::Aggregation;
using meter::Bin;
using meter::Metric;
using meter::Period;

inline constexpr std::int64_t second = 1'000'000, minute = 60 * second, hour = 60 * minute, day = 24 * hour;

inline std::int64_t floor_to(std::int64_t value, std::int64_t step) {
    const std::int64_t rest = value % step;
    return value - (rest < 0 ? rest + step : rest);
}

/// A zone's clock as the C library tells it, looked at six-hourly from 1949 to 2028.
class PlainZone {
public:
    static const PlainZone& named(const std::string& name) {
        static std::map<std::string, PlainZone> zones;
        return zones.try_emplace(name, name).first->second;
    }
    explicit PlainZone(const std::string& name) {
        if (!name.empty() && (name[0] == '+' || name[0] == '-')) {
            const std::int64_t size = std::stoll(name.substr(1, 2)) * hour + std::stoll(name.substr(4, 2)) * minute;
            spans_ = {{INT64_MIN, name[0] == '-' ? -size : size}};
            return;
        }
        setenv("TZ", name.empty() ? "UTC" : name.c_str(), 1);
        tzset();
        spans_ = {{INT64_MIN, offset(year(1949))}};
        look(year(1949), year(2028));
    }
    std::int64_t local(std::int64_t time) const { return time + std::prev(after(time))->offset; }
    /// When the clock first shows `local` or more.
    std::int64_t first_at(std::int64_t local) const {
        for (auto span = spans_.begin();; ++span) {
            const std::int64_t at = std::max(span->from, local - span->offset);
            if (std::next(span) == spans_.end() || at < std::next(span)->from) return at;
        }
    }
    /// The beginning of the stretch of `length` on the clock that holds `time`. It is cut where the clock is moved by something else.
    std::int64_t aligned(std::int64_t time, std::int64_t length) const {
        const auto span = std::prev(after(time));
        const std::int64_t begin = floor_to(time + span->offset, length) - span->offset;
        const bool cut = span != spans_.begin() && (span->offset - std::prev(span)->offset) % length != 0;
        return cut ? std::max(begin, span->from) : begin;
    }
    std::int64_t aligned_end(std::int64_t begin, std::int64_t length) const {
        const auto next = after(begin);
        const std::int64_t end = floor_to(begin + std::prev(next)->offset, length) + length - std::prev(next)->offset;
        const bool cut = next != spans_.end() && (next->offset - std::prev(next)->offset) % length != 0;
        return cut ? std::min(end, next->from) : end;
    }

private:
    struct Span {
        std::int64_t from, offset;
    };
    static std::int64_t year(int number) { return static_cast<std::int64_t>(number - 1970) * 365 * day + (number - 1969) / 4 * day; }
    static std::int64_t offset(std::int64_t time) {
        const time_t at = static_cast<time_t>(floor_to(time, second) / second);
        tm parts{};
        localtime_r(&at, &parts);
        return parts.tm_gmtoff * second;
    }
    void look(std::int64_t from, std::int64_t to) {
        for (std::int64_t time = from; time < to; time += 6 * hour) {
            std::int64_t low = time, high = time + 6 * hour;
            if (offset(high) == spans_.back().offset) continue;
            while (high - low > second) {
                const std::int64_t middle = low + (high - low) / second / 2 * second;
                (offset(middle) == spans_.back().offset ? low : high) = middle;
            }
            spans_.push_back({high, offset(high)});
        }
    }
    std::vector<Span>::const_iterator after(std::int64_t time) const {
        return std::upper_bound(spans_.begin(), spans_.end(), time, [](std::int64_t at, const Span& span) { return at < span.from; });
    }
    std::vector<Span> spans_;
};

/// The bins of a question.
class PlainBins {
public:
    PlainBins(Bin bin, const PlainZone& zone, unsigned week_start = 1, std::optional<Timestamp> anchor = {}) : bin_(bin), zone_(zone) {
        switch (bin) {
            case Bin::none:
                break;
            case Bin::minute:
                length_ = minute;
                break;
            case Bin::minutes_15:
                length_ = 15 * minute;
                break;
            case Bin::minutes_30:
                length_ = 30 * minute;
                break;
            case Bin::hour:
                length_ = hour;
                break;
            case Bin::hours_3:
                length_ = 3 * hour;
                break;
            case Bin::hours_6:
                length_ = 6 * hour;
                break;
            case Bin::hours_12:
                length_ = 12 * hour;
                break;
            case Bin::day:
                length_ = day;
                break;
            case Bin::week:
                length_ = 7 * day;
                first_ = (static_cast<std::int64_t>(week_start) - 4) * day;  // 1970 began on a Thursday
                break;
            case Bin::month:
                months_ = 1;
                break;
            case Bin::quarter:
                months_ = 3;
                break;
            case Bin::year:
                months_ = 12;
                break;
        }
        if (months_ > 0 && anchor) first_ = zone.local(anchor->micros());
    }
    Period around(std::int64_t time) const {
        if (bin_ == Bin::none) return {};
        const auto after = known_.upper_bound(time);
        if (after != known_.begin() && std::prev(after)->second > time)
            return {Timestamp(std::prev(after)->first), Timestamp(std::prev(after)->second)};
        const std::int64_t from = begin(time);
        return {Timestamp(from), Timestamp(known_[from] = end(time))};
    }

private:
    std::int64_t begin(std::int64_t time) const { return length_ > 0 && length_ <= hour ? zone_.aligned(time, length_) : start(step_at(time)); }
    std::int64_t end(std::int64_t time) const {
        return length_ > 0 && length_ <= hour ? zone_.aligned_end(begin(time), length_) : start(step_at(time) + 1);
    }
    std::int64_t start(std::int64_t step) const { return zone_.first_at(edge(step)); }
    std::int64_t step_at(std::int64_t time) const {
        std::int64_t step = (time - first_) / (months_ > 0 ? months_ * 30 * day : length_);
        while (start(step) > time) --step;
        while (start(step + 1) <= time) ++step;
        return step;
    }
    std::int64_t edge(std::int64_t step) const {
        if (months_ == 0) return first_ + step * length_;
        const std::int64_t days = floor_to(first_, day) / day;
        const std::string date = Timestamp(days * day).to_string();
        const std::int64_t number = std::stoll(date.substr(0, 4)) * 12 + std::stoll(date.substr(5, 2)) - 1 + step * months_;
        const int year = static_cast<int>(number / 12);
        const unsigned month = static_cast<unsigned>(number % 12) + 1, wanted = static_cast<unsigned>(std::stoul(date.substr(8, 2)));
        const bool leap = (year % 4 == 0 && year % 100 != 0) || year % 400 == 0;
        const unsigned last = month == 2 ? (leap ? 29 : 28) : month == 4 || month == 6 || month == 9 || month == 11 ? 30 : 31;
        return Timestamp::from_civil(year, month, std::min(wanted, last)).micros() + (first_ - days * day);
    }
    Bin bin_;
    const PlainZone& zone_;
    std::int64_t length_ = 0, months_ = 0, first_ = 0;
    mutable std::map<std::int64_t, std::int64_t> known_;
};

// ---- what one row comes to ----

using PlainGroup = std::vector<std::optional<std::string>>;
using Events = std::vector<const ModelEvent*>;

struct PlainValue {
    Decimal value{};
    std::int64_t events = 0;
};

/// By meter's own rules: numbers, and text properties that are plainly numbers; a time is Unix seconds.
inline std::optional<Decimal> number_of(const ModelEvent& event, const std::string& property) {
    if (property == "timestamp") return Decimal::scaled(event.time, 6);
    const Value value = event.field(property);
    const bool built_in = property == "customer" || property == "subscription" || property == "source" || property == "name";
    if (value.kind == Value::Kind::number) return value.number;
    if (value.kind == Value::Kind::text && !built_in && plainly_written(value.text)) return Decimal(value.text);
    return std::nullopt;
}

inline Decimal weighted(const Events& events, const std::string& property, const Period& stretch, const Period& whole) {
    Decimal sum;
    for (const ModelEvent* event : events) {
        const std::int64_t since = std::max(event->time, stretch.from.micros());
        sum += *number_of(*event, property) * Decimal(stretch.to.micros() - since);
    }
    return Decimal::divide_significant(sum, whole.to.micros() - whole.from.micros(), 32, meter::Rounding::half_even);
}

/// The events are in order of time, then sequence.
inline PlainValue plain_value(const Metric& metric, const Events& all, const Period& stretch, const Period& whole) {
    Events events;
    const bool items = metric.aggregation == Aggregation::unique_count || metric.aggregation == Aggregation::active_count;
    for (const ModelEvent* event : all) {
        const bool counts =
            metric.aggregation == Aggregation::count ||
            (items ? metric.property == "timestamp" || !event->field(metric.property).absent() : number_of(*event, metric.property).has_value());
        if (counts) events.push_back(event);
    }
    PlainValue answer{{}, static_cast<std::int64_t>(events.size())};
    if (events.empty()) return answer;
    if (metric.aggregation == Aggregation::count) answer.value = answer.events;
    if (items) {
        std::map<std::string, bool> active;
        for (const ModelEvent* event : events) {
            const std::string item = metric.property == "timestamp" ? std::to_string(event->time) : event->field(metric.property).shown();
            const Value operation = event->field("operation_type");
            active[item] = metric.aggregation == Aggregation::unique_count || operation.absent() || operation.shown() == "add";
        }
        for (const auto& [item, is_active] : active) answer.value += is_active ? 1 : 0;
        return answer;
    }
    if (metric.aggregation == Aggregation::latest) answer.value = *number_of(*events.back(), metric.property);
    if (metric.aggregation == Aggregation::weighted_sum) answer.value = weighted(events, metric.property, stretch, whole);
    const auto numbers = [&](const std::function<void(const Decimal&)>& use) {
        for (const ModelEvent* event : events) use(*number_of(*event, metric.property));
    };
    if (metric.aggregation == Aggregation::sum || metric.aggregation == Aggregation::average)
        numbers([&](const Decimal& number) { answer.value += number; });
    if (metric.aggregation == Aggregation::average)
        answer.value = Decimal::divide_significant(answer.value, answer.events, 32, meter::Rounding::half_even);
    if (metric.aggregation == Aggregation::min || metric.aggregation == Aggregation::max) {
        answer.value = *number_of(*events[0], metric.property);
        numbers([&](const Decimal& number) {
            answer.value = metric.aggregation == Aggregation::min ? std::min(answer.value, number) : std::max(answer.value, number);
        });
    }
    return answer;
}

// ---- the rows of an answer ----

class PlainMeasure {
public:
    PlainMeasure(const std::vector<ModelEvent>& events, const Metric& metric, const AggregateQuery& query)
        : metric_(metric),
          query_(query),
          zone_(PlainZone::named(query.time_zone)),
          bins_(query.bin, zone_, query.week_start.iso_encoding(), query.billing_anchor) {
        for (const ModelEvent& event : events) {
            if (takes_part(event)) events_.push_back(&event);
        }
        std::sort(events_.begin(), events_.end(),
                  [](const ModelEvent* a, const ModelEvent* b) { return std::tie(a->time, a->sequence) < std::tie(b->time, b->sequence); });
    }

    Aggregate answer() {
        if (query_.top > 0 && !query_.group_by.empty()) find_named();
        auto rows = measured(query_.bin != Bin::none);
        if (query_.fill && query_.bin != Bin::none) fill(rows);
        Aggregate answer;
        for (const auto& [key, value] : rows) {
            const auto& [bin, rest, group] = key;
            answer.rows.push_back({bin, group, value.value, value.events, rest});
        }
        return answer;
    }

private:
    using Key = std::tuple<std::optional<Timestamp>, bool, PlainGroup>;  // sorts as the rows of an answer do

    bool takes_part(const ModelEvent& event) const {
        const std::string& name = metric_.event.empty() ? metric_.code : metric_.event;
        return (name.empty() || event.name == name) && Timestamp(event.time) < query_.period.to &&
               (metric_.recurring || Timestamp(event.time) >= query_.period.from) && (query_.customer.empty() || event.customer == query_.customer) &&
               (query_.subscription.empty() || event.subscription == query_.subscription) && holds(event, query_.filter) &&
               holds(event, metric_.filter);
    }
    static std::optional<std::string> shown_group(const ModelEvent& event, const std::string& field) {
        if (field == "timestamp") return Timestamp(event.time).to_string();
        const Value value = event.field(field);
        return value.absent() ? std::nullopt : std::optional(value.shown());
    }
    std::pair<bool, PlainGroup> group_of(const ModelEvent& event) const {
        PlainGroup group;
        for (const std::string& field : query_.group_by) group.push_back(shown_group(event, field));
        if (!named_ || named_->contains(group)) return {false, group};
        return {true, PlainGroup(group.size())};
    }
    Decimal finished(Decimal value) const {
        if (metric_.multiplier) value *= *metric_.multiplier;
        return metric_.rounding ? value.round(metric_.rounding->scale, metric_.rounding->mode) : value;
    }
    static Period overlap(const Period& a, const Period& b) { return {std::max(a.from, b.from), std::min(a.to, b.to)}; }

    std::map<Key, PlainValue> measured(bool binned) const {
        auto rows = metric_.bucket != Bin::none ? bucketed(binned) : metric_.recurring && binned ? carried() : simple(binned);
        for (auto& [key, row] : rows) row.value = finished(row.value);
        return rows;
    }
    std::map<Key, PlainValue> simple(bool binned) const {
        std::map<Key, Events> sorted;
        for (const ModelEvent* event : events_) {
            const auto [rest, group] = group_of(*event);
            sorted[{binned ? std::optional(bins_.around(event->time).from) : std::nullopt, rest, group}].push_back(event);
        }
        std::map<Key, PlainValue> rows;
        for (const auto& [key, events] : sorted) {
            const auto& bin = std::get<0>(key);
            const Period stretch = overlap(bin ? bins_.around(bin->micros()) : Period(), query_.period);
            put(rows, key, plain_value(metric_, events, stretch, query_.billing_period.value_or(stretch)));
        }
        return rows;
    }
    std::map<Key, PlainValue> carried() const {
        std::map<Key, PlainValue> rows;
        for (const Period& bin : bins_of(query_.period)) {
            const Period stretch = overlap(bin, query_.period);
            std::map<Key, Events> sorted;
            for (const ModelEvent* event : events_) {
                if (event->time >= stretch.to.micros()) continue;
                const auto [rest, group] = group_of(*event);
                sorted[{bin.from, rest, group}].push_back(event);
            }
            for (const auto& [key, events] : sorted) put(rows, key, plain_value(metric_, events, stretch, query_.billing_period.value_or(stretch)));
        }
        return rows;
    }
    std::map<Key, PlainValue> bucketed(bool binned) const {
        const bool of_months = metric_.bucket == Bin::month || metric_.bucket == Bin::quarter || metric_.bucket == Bin::year;
        const PlainBins buckets(metric_.bucket, zone_, 1, of_months ? query_.billing_anchor : std::nullopt);
        std::map<std::tuple<Timestamp, bool, PlainGroup, std::optional<std::string>>, Events> sorted;
        for (const ModelEvent* event : events_) {
            const auto [rest, group] = group_of(*event);
            const auto within = metric_.bucket_group.empty() ? std::nullopt : shown_group(*event, metric_.bucket_group);
            sorted[{buckets.around(event->time).from, rest, group, within}].push_back(event);
        }
        std::map<Key, PlainValue> rows;
        for (const auto& [bucket, events] : sorted) {
            const auto& [from, rest, group, within] = bucket;
            const Period stretch = overlap(buckets.around(from.micros()), query_.period);
            const PlainValue value = plain_value(metric_, events, stretch, query_.billing_period.value_or(stretch));
            if (value.events == 0) continue;
            PlainValue& row = rows[{binned ? std::optional(bins_.around(from.micros()).from) : std::nullopt, rest, group}];
            row.value += value.value;
            row.events += value.events;
        }
        return rows;
    }
    static void put(std::map<Key, PlainValue>& rows, const Key& key, const PlainValue& value) {
        if (value.events > 0) rows[key] = value;
    }
    std::vector<Period> bins_of(const Period& period) const {
        std::vector<Period> bins;
        for (Period bin = bins_.around(period.from.micros()); bin.from < period.to; bin = bins_.around(bin.to.micros())) bins.push_back(bin);
        return bins;
    }
    void fill(std::map<Key, PlainValue>& rows) const {
        Period period = query_.period;
        if (rows.empty() && (period.from == Period().from || period.to == Period().to)) return;
        if (period.from == Period().from) period.from = *std::get<0>(rows.begin()->first);
        if (period.to == Period().to) period.to = *std::get<0>(rows.rbegin()->first) + std::chrono::microseconds(1);
        std::set<std::pair<bool, PlainGroup>> groups;
        if (query_.group_by.empty()) groups.insert({false, {}});
        for (const auto& [key, value] : rows) groups.insert({std::get<1>(key), std::get<2>(key)});
        for (const Period& bin : bins_of(period)) {
            for (const auto& [rest, group] : groups) rows.try_emplace(Key{bin.from, rest, group});
        }
    }
    void find_named() {
        std::vector<std::pair<Decimal, PlainGroup>> totals;
        for (const auto& [key, value] : measured(false)) totals.emplace_back(value.value, std::get<2>(key));
        std::sort(totals.begin(), totals.end(),
                  [](const auto& a, const auto& b) { return a.first != b.first ? a.first > b.first : a.second < b.second; });
        if (totals.size() > static_cast<std::size_t>(query_.top)) totals.resize(static_cast<std::size_t>(query_.top));
        named_.emplace();
        for (auto& total : totals) named_->insert(std::move(total.second));
    }

    const Metric& metric_;
    const AggregateQuery& query_;
    const PlainZone& zone_;
    PlainBins bins_;
    Events events_;
    std::optional<std::set<PlainGroup>> named_;
};

}  // namespace meter_test
