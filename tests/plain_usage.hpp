// A book's questions answered from a plain list of events: the obvious way, for tests to hold the real one against.
// Include after meter.cpp.
#pragma once

#include <algorithm>
#include <map>
#include <set>

namespace meter {

class PlainUsage final : public UsageSource {
public:
    std::vector<Event> events;
    int measured = 0, stepped = 0;  ///< questions asked

    std::vector<Measured> measure(const Metric& metric, const AggregateQuery& query) override {
        ++measured;
        Bins bins({query.bin, query.time_zone, query.week_start, query.billing_anchor});
        std::map<std::pair<std::optional<Timestamp>, std::vector<std::optional<std::string>>>, std::vector<Event>> groups;
        if (query.group_by.empty() && query.bin == Bin::none) groups[{}];
        for (const auto& event : chosen(metric, query)) {
            const auto bin = query.bin == Bin::none ? std::nullopt : std::optional(bins.around(*event.timestamp).from);
            groups[{bin, group_of(event, query.group_by)}].push_back(event);
        }
        std::vector<Measured> rows;
        for (const auto& [place, members] : groups) {
            Measured row{place.first, place.second, {}, static_cast<std::int64_t>(members.size()), false, false};
            for (const auto& step : all_steps(metric, members)) {
                row.value += step.value;
                row.falls = row.falls || step.value.is_negative();
            }
            if (metric.aggregation == Aggregation::max || metric.aggregation == Aggregation::latest) row.value = one_number(metric, members);
            rows.push_back(row);
        }
        return rows;
    }

    using UsageSource::steps;
    std::vector<EventStep> steps(const Metric& metric, const AggregateQuery& query, std::size_t limit, const std::optional<Decimal>& until) override {
        ++stepped;
        std::vector<EventStep> list;
        Decimal sum;
        const auto members = chosen(metric, query);
        for (const auto& step : all_steps(metric, members)) {
            if (list.size() >= limit || (until && sum > *until)) break;
            list.push_back(step);
            sum += step.value;
        }
        return list;
    }

    Event event(std::int64_t sequence) override { return placed(static_cast<std::size_t>(sequence) - 1); }

    Decimal precise_total_cents(const Metric& metric, const AggregateQuery& query) override {
        Decimal sum;
        for (const auto& event : chosen(metric, query)) sum += event.precise_total_amount_cents.value_or(Decimal());
        return sum;
    }

private:
    Event placed(std::size_t index) const {
        auto event = events[index];
        event.sequence = static_cast<std::int64_t>(index) + 1;
        return event;
    }

    static std::optional<std::string> text_of(const Event& event, const std::string& field) {
        if (field == "name") return event.name;
        if (field == "subscription") return event.subscription.empty() ? std::nullopt : std::optional(event.subscription);
        if (field == "value") return event.value ? std::optional(event.value->to_string()) : std::nullopt;
        const std::string prefix = "properties.";
        const auto found = event.properties.find(field.rfind(prefix, 0) == 0 ? field.substr(prefix.size()) : field);
        if (found == event.properties.end() || found->is_null()) return {};
        return found->is_string() ? found->get<std::string>() : found->dump();
    }

    static std::optional<Decimal> number_of(const Metric& metric, const Event& event) {
        return Decimal::parse(text_of(event, metric.property).value_or(metric.rules == "autumn" ? "1" : ""));
    }

    static std::vector<std::optional<std::string>> group_of(const Event& event, const std::vector<std::string>& fields) {
        std::vector<std::optional<std::string>> group;
        for (const auto& field : fields) group.push_back(text_of(event, field));
        return group;
    }

    static bool holds(const Filter& filter, const Event& event) {
        const auto part = [&](const Filter& each) { return holds(each, event); };
        if (filter.kind == Filter::Kind::all) return std::all_of(filter.parts.begin(), filter.parts.end(), part);
        if (filter.kind == Filter::Kind::any) return std::any_of(filter.parts.begin(), filter.parts.end(), part);
        const auto text = text_of(event, filter.field);
        const auto among = [&] { return text && std::find(filter.value.begin(), filter.value.end(), *text) != filter.value.end(); };
        switch (filter.op) {
            case Operator::eq:
                return filter.value.is_null() ? !text : text && filter.value == *text;
            case Operator::ne:
                return !text || filter.value != *text;
            case Operator::in:
                return among();
            case Operator::not_in:
                return !among();
            case Operator::exists:
                return text.has_value() == filter.value.get<bool>();
            default:
                throw std::logic_error("operator not used by books");
        }
    }

    std::vector<Event> chosen(const Metric& metric, const AggregateQuery& query) const {
        std::vector<Event> list;
        for (std::size_t i = 0; i < events.size(); ++i) {
            const auto event = placed(i);
            const auto& name = metric.event.empty() ? metric.code : metric.event;
            const Period period{metric.recurring ? Timestamp::min() : query.period.from, query.period.to};
            if (event.name != name || !period.contains(event.timestamp.value())) continue;
            if (!query.subscription.empty() && event.subscription != query.subscription) continue;
            if (!query.customer.empty() && event.customer != query.customer) continue;
            if (!holds(metric.filter, event) || !holds(query.filter, event)) continue;
            if (of_numbers(metric) && !number_of(metric, event)) continue;
            if (metric.aggregation == Aggregation::unique_count && !text_of(event, metric.property)) continue;
            list.push_back(event);
        }
        std::stable_sort(list.begin(), list.end(), [](const Event& a, const Event& b) { return *a.timestamp < *b.timestamp; });
        return list;
    }

    static bool of_numbers(const Metric& metric) {
        return metric.aggregation == Aggregation::sum || metric.aggregation == Aggregation::max || metric.aggregation == Aggregation::latest;
    }

    static Decimal one_number(const Metric& metric, const std::vector<Event>& list) {
        std::vector<Decimal> numbers;
        for (const auto& step : all_steps(metric, list)) numbers.push_back(step.value);
        if (numbers.empty()) return {};
        return metric.aggregation == Aggregation::max ? *std::max_element(numbers.begin(), numbers.end()) : std::max(numbers.back(), Decimal());
    }

    static std::vector<EventStep> all_steps(const Metric& metric, const std::vector<Event>& list) {
        std::vector<EventStep> steps;
        std::map<std::string, std::uint32_t> items;
        std::set<std::uint32_t> active;
        const auto item_step = [&](const Event& event, std::uint32_t item) -> Decimal {
            if (metric.aggregation == Aggregation::unique_count || text_of(event, "operation_type").value_or("add") == "add") {
                return active.insert(item).second ? 1 : 0;
            }
            return active.erase(item) > 0 ? -1 : 0;
        };
        for (const auto& event : list) {
            EventStep step{*event.timestamp, event.sequence, 1, 0};
            if (of_numbers(metric)) {
                step.value = *number_of(metric, event);
            } else if (metric.aggregation != Aggregation::count) {
                const auto value = text_of(event, metric.property);
                if (value) step.item = items.try_emplace(*value, static_cast<std::uint32_t>(items.size() + 1)).first->second;
                step.value = item_step(event, step.item);
            }
            steps.push_back(step);
        }
        return steps;
    }
};

}  // namespace meter
