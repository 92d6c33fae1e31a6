// A real database in memory that holds a vector's events, so that vectors judge what users get. Include after meter.cpp.
#pragma once

namespace golden {

class Log {
public:
    /// Events without an id or time get one. Throws for an event that is not stored, unless it is a copy of one that is.
    explicit Log(std::vector<meter::Event> events) : store_(options()) {
        for (std::size_t i = 0; i < events.size(); ++i) {
            if (events[i].id.empty()) events[i].id = "event-" + std::to_string(i);
        }
        for (auto begin = events.begin(); begin != events.end();) {
            const auto end = std::find_if(begin, events.end(), [&](const meter::Event& event) { return event.recorded_at != begin->recorded_at; });
            record({begin, end}, begin->recorded_at.value_or(meter::Timestamp()));
            begin = end;
        }
    }

    /// ask(UsageSource&), from one snapshot.
    template <class Ask>
    auto ask(Ask&& ask) {
        return store_.scan([&](const meter::Reader& reader) {
            meter::StoreUsage usage(reader);
            return ask(usage);
        });
    }

    /// The value of a metric; 0 of nothing.
    meter::Decimal value(const meter::Metric& metric, const meter::AggregateQuery& query = {}) {
        return ask([&](meter::UsageSource& usage) { return usage.measure(metric, query).at(0).value; });
    }

private:
    void record(std::span<const meter::Event> events, meter::Timestamp now) {
        meter::Drafts drafts;
        for (const auto& event : events) meter::add_draft(drafts, [&](meter::Draft& draft) { draft_event(drafts, draft, event); });
        if (!drafts.accepted.empty()) store_.append(drafts, now);
        for (const auto& receipt : drafts.receipts) {
            if (receipt.status == meter::ReceiptStatus::refused) throw std::runtime_error(receipt.field + " " + receipt.reason);
        }
    }
    static meter::StoreOptions options() {
        meter::StoreOptions options;
        options.path = ":memory:";
        options.chunk_events = 65536;
        options.cache_bytes = options.index_bytes = 1024 * 1024;
        options.clock = [] { return meter::Timestamp(); };
        return options;
    }
    meter::Store store_;
};

}  // namespace golden
