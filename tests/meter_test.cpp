// The whole face at once: the same random events and questions put to a log that is never sealed, to one sealed all the time, to one
// opened again and again, and to a plain loop over a list.
#include <thread>

#include "../meter.hpp"
#include "support/scratch.hpp"
#include "support/workload.hpp"
#include "testing.hpp"

using namespace meter;
using namespace meter_test;

namespace {

MeterOptions options_for(const std::string& path, std::int64_t chunk) {
    MeterOptions options;
    options.path = path;
    options.durability = Durability::process;
    options.chunk_events = chunk;
    options.clock = [] { return Timestamp::parse("2026-03-01T00:00:00Z"); };
    return options;
}

std::vector<std::string> ids_of(const std::vector<Event>& events) {
    std::vector<std::string> ids;
    for (const Event& event : events) ids.push_back(event.id);
    return ids;
}

class Trial {
public:
    Trial(std::uint64_t seed, int extra_properties) : workload_(seed, extra_properties) {}

    void run(int rounds, int events_each, int questions_each) {
        Meter plain(options_for(scratch_.path("plain.db"), 1 << 20));
        Meter sealed(options_for(scratch_.path("sealed.db"), 64));
        Meter in_memory(options_for(":memory:", 100));
        for (int round = 0; round < rounds; ++round) {
            // One is opened anew each time, by turns with different chunks, and asked while its thread may be sealing.
            Meter reopened(options_for(scratch_.path("reopened.db"), round % 2 == 0 ? 64 : 128));
            const std::vector<const Meter*> meters{&plain, &sealed, &in_memory, &reopened};
            record({&plain, &sealed, &in_memory, &reopened}, events_each);
            for (int i = 0; i < questions_each; ++i) {
                aggregates(meters);
                lists(meters);
                names(meters);
                finds(meters);
            }
        }
        CHECK(PlainDatabase(scratch_.path("plain.db")).integer("SELECT count(*) FROM segments") == 0);
        CHECK(PlainDatabase(scratch_.path("sealed.db")).integer("SELECT count(*) FROM segments") > 0);
        for (Meter* meter : {&plain, &sealed, &in_memory}) CHECK(meter->verify() == std::vector<std::string>{});
    }

private:
    void record(const std::vector<Meter*>& meters, int count) {
        std::string lines;
        for (int i = 0; i < count; ++i) {
            events_.push_back(workload_.event());
            events_.back().sequence = static_cast<std::int64_t>(events_.size());
            lines += events_.back().line + "\n";
        }
        for (Meter* meter : meters) {
            const auto receipts = meter->record_json(lines);
            REQUIRE(receipts.size() == static_cast<std::size_t>(count));
            for (const Receipt& receipt : receipts) {
                CAPTURE(receipt.field, receipt.reason);
                REQUIRE(receipt.status == ReceiptStatus::stored);
            }
        }
    }

    void aggregates(const std::vector<const Meter*>& meters) {
        Metric metric{.code = workload_.among(workload_.names)};
        metric.aggregation = std::array{Aggregation::count, Aggregation::sum, Aggregation::unique_count}[workload_.pick(3)];
        if (metric.aggregation != Aggregation::count) metric.property = workload_.some_field();
        if (workload_.chance(30)) metric.filter = workload_.filter();
        AggregateQuery query;
        if (workload_.chance(40)) query.customer = workload_.among(workload_.customers);
        if (workload_.chance(25)) query.subscription = workload_.among(workload_.subscriptions);
        query.period = workload_.period();
        query.bin = std::array{Bin::none, Bin::hour, Bin::day, Bin::month}[workload_.pick(4)];
        for (std::size_t i = workload_.pick(3); i > 0; --i) query.group_by.push_back(workload_.some_field());
        if (workload_.chance(50)) query.filter = workload_.filter();
        const std::string expected = shown(plain_aggregate(events_, metric, query));
        CAPTURE(metric.code, static_cast<int>(metric.aggregation), metric.property, metric.filter.to_json().dump(), query.customer,
                query.subscription, query.group_by, query.filter.to_json().dump(), static_cast<int>(query.bin));
        for (std::size_t i = 0; i < meters.size(); ++i) {
            CAPTURE(i);
            REQUIRE(shown(meters[i]->aggregate(metric, query)) == expected);
        }
    }

    void lists(const std::vector<const Meter*>& meters) {
        ListQuery query;
        if (workload_.chance(40)) query.customer = workload_.among(workload_.customers);
        if (workload_.chance(25)) query.subscription = workload_.among(workload_.subscriptions);
        for (std::size_t i = workload_.chance(50) ? workload_.pick(3) : 0; i > 0; --i) query.names.push_back(workload_.among(workload_.names));
        if (workload_.chance(25)) query.sources = {workload_.among(workload_.sources)};
        if (workload_.chance(15)) {
            for (int i = 0; i < 5; ++i) query.ids.push_back(events_[workload_.pick(events_.size())].id);
            query.ids.emplace_back("nobody's");
        }
        query.period = workload_.period();
        if (workload_.chance(50)) query.filter = workload_.filter();
        if (workload_.chance(60)) query.sort = workload_.sort();
        query.limit = 1 + static_cast<std::int64_t>(workload_.pick(50));
        if (workload_.chance(30)) query.offset = static_cast<std::int64_t>(workload_.pick(30));
        query.count = workload_.chance(50);
        const auto found = plain_list(events_, query);
        std::vector<std::string> expected;
        for (std::size_t i = static_cast<std::size_t>(query.offset); i < found.size(); ++i) expected.push_back(found[i]->id);
        CAPTURE(query.customer, query.subscription, query.names, query.sources, query.ids, query.filter.to_json().dump(), shown(query.sort),
                query.limit, query.offset);
        for (std::size_t i = 0; i < meters.size(); ++i) {
            CAPTURE(i);
            Page page = meters[i]->list(query);
            std::vector<std::string> ids = ids_of(page.events);
            for (int pages = 0; page.next && pages < 3; ++pages) {
                page = meters[i]->list(page.next);
                for (const Event& event : page.events) ids.push_back(event.id);
                if (query.count) REQUIRE(page.total == static_cast<std::int64_t>(found.size()));
            }
            if (!page.next) REQUIRE(ids == expected);
            REQUIRE(std::equal(ids.begin(), ids.end(), expected.begin(), expected.begin() + static_cast<std::ptrdiff_t>(ids.size())));
            if (page.next) REQUIRE(ids.size() == static_cast<std::size_t>(query.limit) * 4);
        }
    }

    void names(const std::vector<const Meter*>& meters) {
        const bool sources = workload_.chance(30);
        NamesQuery query;
        if (workload_.chance(40)) query.customer = workload_.among(workload_.customers);
        if (workload_.chance(30)) query.text = workload_.among({"stor", "STOR", "i", "zz"});
        if (workload_.chance(30)) query.filter = workload_.filter();
        query.period = workload_.period();
        query.by_source = sources || workload_.chance(40);
        for (std::size_t i = workload_.pick(3); i > 0; --i)
            query.sort.push_back({workload_.among({"name", "source", "occurrences", "first_seen", "last_seen"}), workload_.chance(50)});
        const auto expected = plain_names(events_, query, !sources);
        CAPTURE(sources, query.customer, query.text, query.filter.to_json().dump(), query.by_source, shown(query.sort));
        for (std::size_t i = 0; i < meters.size(); ++i) {
            CAPTURE(i);
            const NameList found = sources ? meters[i]->list_sources(query) : meters[i]->list_names(query);
            REQUIRE(found.total == static_cast<std::int64_t>(expected.size()));
            REQUIRE(shown(found.rows) == shown(expected));
        }
    }

    void finds(const std::vector<const Meter*>& meters) {
        const ModelEvent& event = events_[workload_.pick(events_.size())];
        for (const Meter* meter : meters) {
            const auto found = meter->find(event.id);
            REQUIRE(found);
            REQUIRE(found->sequence == event.sequence);
            REQUIRE(found->timestamp == Timestamp(event.time));
            REQUIRE(found->value == event.value);
            REQUIRE(found->properties == json::parse(event.line).at("properties"));
            REQUIRE_FALSE(meter->find(event.id + "x"));
        }
    }

    Scratch scratch_;
    Workload workload_;
    std::vector<ModelEvent> events_;
};

}  // namespace

TEST_CASE("Every question has the same answer, sealed or not, and it is the plain loop's") {
    const std::uint64_t seed = test_seed();
    CAPTURE(seed);
    Trial(seed, 0).run(8, 150, 25);
}

TEST_CASE("So it has with more properties than a segment takes columns for") {
    const std::uint64_t seed = test_seed() + 1;
    CAPTURE(seed);
    Trial(seed, 3000).run(4, 150, 15);
}
