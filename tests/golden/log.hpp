// A real database in memory that holds a vector's events, so that vectors judge what users get. Include after meter.cpp.
#pragma once

namespace golden {

class Log {
public:
    /// Events without an id or time get one. Throws for an event that is not stored, unless it is a copy of one that is.
    explicit Log(std::vector<meter::Event> events) : store_(options()) {
        meter::Drafts drafts;
        for (std::size_t i = 0; i < events.size(); ++i) {
            if (events[i].id.empty()) events[i].id = "event-" + std::to_string(i);
            meter::add_draft(drafts, [&](meter::Draft& draft) { draft_event(drafts, draft, events[i]); });
        }
        if (!drafts.accepted.empty()) store_.append(drafts, meter::Timestamp());
        for (const auto& receipt : drafts.receipts) {
            if (receipt.status == meter::ReceiptStatus::refused) throw std::runtime_error(receipt.field + " " + receipt.reason);
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
