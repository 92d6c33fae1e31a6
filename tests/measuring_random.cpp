// aggregate() against a plain loop over all events: random events, metrics and questions. What fails is made as small as can be and
// printed with its seed.
#include <array>
#include <cstdio>
#include <cstdlib>
#include <iostream>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "support/plain_measure.hpp"
#include "support/scratch.hpp"

using namespace meter_test;
using meter::Error;
using meter::ErrorCode;
using meter::Meter;
using meter::MeterOptions;
using meter::Rounding;
using meter::RoundTo;

namespace {

constexpr std::int64_t chunk = 64;
constexpr std::array all_bins{Bin::minute,   Bin::minutes_15, Bin::minutes_30, Bin::hour,  Bin::hours_3, Bin::hours_6,
                              Bin::hours_12, Bin::day,        Bin::week,       Bin::month, Bin::quarter, Bin::year};

struct Case {
    Metric metric{};
    AggregateQuery query{};
};

// ---- cases as texts ----

std::string shown(const Period& period) {
    const auto end = [](Timestamp time, Timestamp open) { return time == open ? std::string("...") : time.to_string(); };
    return end(period.from, Period().from) + " to " + end(period.to, Period().to);
}

/// The members that say something.
std::string shown(const Case& test) {
    const auto& [metric, query] = test;
    json tree{{"aggregation", static_cast<int>(metric.aggregation)}};
    const auto note = [&](const char* name, bool says, const json& value) {
        if (says) tree[name] = value;
    };
    note("event", !metric.event.empty(), metric.event);
    note("property", !metric.property.empty(), metric.property);
    note("metric.filter", !metric.filter.empty(), metric.filter.to_json());
    note("multiplier", metric.multiplier.has_value(), metric.multiplier.value_or(Decimal()).to_string());
    const RoundTo rounding = metric.rounding.value_or(RoundTo());
    note("rounding", metric.rounding.has_value(), {static_cast<int>(rounding.mode), rounding.scale});
    note("recurring", metric.recurring, true);
    note("bucket", metric.bucket != Bin::none, static_cast<int>(metric.bucket));
    note("bucket_group", !metric.bucket_group.empty(), metric.bucket_group);
    note("customer", !query.customer.empty(), query.customer);
    note("subscription", !query.subscription.empty(), query.subscription);
    note("period", query.period != Period(), shown(query.period));
    note("bin", query.bin != Bin::none, static_cast<int>(query.bin));
    note("time_zone", !query.time_zone.empty(), query.time_zone);
    note("week_start", query.week_start != std::chrono::Monday, query.week_start.iso_encoding());
    note("billing_anchor", query.billing_anchor.has_value(), query.billing_anchor.value_or(Timestamp()).to_string());
    note("fill", query.fill, true);
    note("group_by", !query.group_by.empty(), query.group_by);
    note("top", query.top != 0, query.top);
    note("filter", !query.filter.empty(), query.filter.to_json());
    note("billing_period", query.billing_period.has_value(), shown(query.billing_period.value_or(Period())));
    return tree.dump(2);
}

// ---- two answers to a case ----

template <class Ask>
std::string answer_of(Ask&& ask) {
    try {
        return meter_test::shown(ask());
    } catch (const Error& error) {
        return error.code() == ErrorCode::overflow ? "overflow" : error.what();
    }
}

std::string plain_answer(const std::vector<ModelEvent>& events, const Case& test) {
    return answer_of([&] { return PlainMeasure(events, test.metric, test.query).answer(); });
}

std::string real_answer(const Meter& meter, const Case& test) {
    return answer_of([&] { return meter.aggregate(test.metric, test.query); });
}

// ---- random cases ----

class Cases {
public:
    Cases(std::uint64_t seed, Workload& workload) : random_(seed), workload_(workload) {}

    Case next() {
        Case made{metric(), query()};
        Metric& metric = made.metric;
        AggregateQuery& query = made.query;
        const bool weighted = metric.aggregation == Aggregation::weighted_sum;
        const bool needs_ends =
            (weighted && (query.bin == Bin::none || query.top > 0) && metric.bucket == Bin::none) || (metric.recurring && query.bin != Bin::none);
        if (needs_ends || pick(2) == 0) query.period = period();
        if (weighted && pick(4) == 0) query.billing_period = Period{Timestamp::from_civil(2026, 2, 1), Timestamp::from_civil(2026, 6, 1)};
        keep_few_bins(metric, query);
        return made;
    }

private:
    std::size_t pick(std::size_t count) { return static_cast<std::size_t>(random_() % count); }
    bool chance(unsigned percent) { return pick(100) < percent; }

    Metric metric() {
        Metric metric{.code = chance(90) ? workload_.among(workload_.names) : std::string()};
        metric.aggregation = static_cast<Aggregation>(pick(9));
        if (chance(20)) metric.event = workload_.among(workload_.names);
        if (metric.aggregation != Aggregation::count) metric.property = chance(50) ? "tokens" : chance(5) ? "timestamp" : workload_.some_field();
        if (chance(20)) metric.filter = workload_.filter();
        if (chance(15)) metric.multiplier = Decimal(workload_.among({"2", "-1", "0", "0.001", "2.5"}));
        if (chance(15)) metric.rounding = RoundTo{static_cast<Rounding>(pick(6)), static_cast<int>(pick(6)) - 2};
        if (chance(20))
            metric.recurring = true;
        else if (chance(20))
            metric.bucket = all_bins[pick(all_bins.size())];
        if (metric.bucket != Bin::none && chance(40)) metric.bucket_group = workload_.some_field();
        return metric;
    }
    AggregateQuery query() {
        AggregateQuery query;
        if (chance(30)) query.customer = workload_.among(workload_.customers);
        if (chance(15)) query.subscription = workload_.among(workload_.subscriptions);
        if (chance(70)) query.bin = all_bins[pick(all_bins.size())];
        if (chance(70))
            query.time_zone =
                workload_.among({"UTC", "Europe/Paris", "America/New_York", "Australia/Lord_Howe", "Asia/Kathmandu", "+05:30", "-09:00"});
        if (chance(30)) query.week_start = std::chrono::weekday(static_cast<unsigned>(pick(7)));
        if (query.bin >= Bin::month && chance(40))
            query.billing_anchor = Timestamp::from_civil(2025, 1 + static_cast<unsigned>(pick(12)), 28, static_cast<unsigned>(pick(24)), 30) +
                                   std::chrono::hours(24 * pick(4));
        query.fill = chance(30);
        for (std::size_t i = chance(60) ? pick(4) : 0; i > 0; --i) query.group_by.push_back(chance(3) ? "timestamp" : workload_.some_field());
        if (chance(15)) query.group_by = {workload_.among({"customer", "subscription"}), "name"};
        if (chance(25)) query.top = 1 + static_cast<std::int64_t>(pick(4));
        if (chance(40)) query.filter = workload_.filter();
        return query;
    }
    Period period() {
        Period period;
        do period = workload_.period();
        while (period == Period());
        if (chance(20)) period.to = period.to - std::chrono::microseconds(pick(1'000'000));
        return period.from < period.to ? period : Period{period.from, period.from + std::chrono::microseconds(1)};
    }
    // What a plain loop can do in the time there is; the limits have tests of their own.
    static void keep_few_bins(const Metric& metric, AggregateQuery& query) {
        const bool carried = metric.recurring && query.bin != Bin::none;
        if (query.bin >= Bin::month || !(query.fill || carried)) return;
        Period& period = query.period;
        if (period.from == Period().from) {
            query.fill = false;  // from 1950 on
            return;
        }
        if (period.from < Timestamp()) period.from = Timestamp::from_civil(2026, 3, 1);
        const auto most = (query.bin <= Bin::minutes_30 ? std::chrono::hours(2)
                           : query.bin < Bin::day       ? std::chrono::hours(72)
                                                        : std::chrono::hours(2000)) *
                          (carried ? 1 : 4);
        if (period.to - period.from > most || period.to <= period.from) period.to = period.from + most;
    }

    std::mt19937_64 random_;
    Workload& workload_;
};

// ---- small cases ----

class Smaller {
public:
    Smaller(std::vector<ModelEvent> events, Case test) : events_(std::move(events)), test_(std::move(test)) {}

    void print() {
        if (!fails(events_, test_)) {
            std::printf("(in memory, never sealed, it does not fail)\n%s\n", shown(test_).c_str());
            return;
        }
        drop_events();
        drop_members();
        drop_events();
        std::printf("%s\n", shown(test_).c_str());
        for (const ModelEvent& event : events_) std::printf("%s\n", event.line.c_str());
        std::printf("-- plainly:\n%s-- meter:\n%s", plain_answer(events_, test_).c_str(), real(events_, test_).c_str());
    }

private:
    static std::string real(const std::vector<ModelEvent>& events, const Case& test) {
        const Meter meter;
        std::string lines;
        for (const ModelEvent& event : events) lines += event.line + "\n";
        const_cast<Meter&>(meter).record_json(lines);
        return real_answer(meter, test);
    }
    static bool fails(const std::vector<ModelEvent>& events, const Case& test) {
        const std::string plain = plain_answer(events, test);
        return plain != "overflow" && plain != real(events, test);
    }

    void drop_events() {
        for (std::size_t size = events_.size(); size > 0; size /= 2) {
            for (std::size_t at = 0; at < events_.size();) {
                std::vector<ModelEvent> fewer = events_;
                fewer.erase(fewer.begin() + static_cast<std::ptrdiff_t>(at),
                            fewer.begin() + static_cast<std::ptrdiff_t>(std::min(fewer.size(), at + size)));
                if (fails(fewer, test_))
                    events_ = std::move(fewer);
                else
                    at += size;
            }
        }
    }
    void drop_members() {
        const std::vector<std::function<void(Case&)>> cuts{
            [](Case& c) { c.query.filter = {}; },         [](Case& c) { c.metric.filter = {}; },       [](Case& c) { c.query.customer = {}; },
            [](Case& c) { c.query.subscription = {}; },   [](Case& c) { c.query.period = {}; },        [](Case& c) { c.query.top = 0; },
            [](Case& c) { c.query.fill = false; },        [](Case& c) { c.query.time_zone = {}; },     [](Case& c) { c.query.billing_anchor = {}; },
            [](Case& c) { c.query.billing_period = {}; }, [](Case& c) { c.query.group_by = {}; },      [](Case& c) { c.query.bin = Bin::none; },
            [](Case& c) { c.metric.multiplier = {}; },    [](Case& c) { c.metric.rounding = {}; },     [](Case& c) { c.metric.recurring = false; },
            [](Case& c) { c.metric.bucket_group = {}; },  [](Case& c) { c.metric.bucket = Bin::none; }};
        for (const auto& cut : cuts) {
            Case fewer = test_;
            cut(fewer);
            const bool lists_bins = fewer.query.fill || fewer.metric.recurring;  // of a period that must not become open
            if (lists_bins && fewer.query.period != test_.query.period) continue;
            const std::string meters = real(events_, fewer);
            const bool refused = meters.find("must") != std::string::npos || meters.find("needs") != std::string::npos;
            const std::string plain = refused ? meters : plain_answer(events_, fewer);
            if (plain != meters && plain != "overflow") test_ = std::move(fewer);
        }
    }

    std::vector<ModelEvent> events_;
    Case test_;
};

// ---- databases ----

MeterOptions options_for(const std::string& path, std::int64_t chunk_events) {
    MeterOptions options;
    options.path = path;
    options.durability = meter::Durability::process;
    options.chunk_events = chunk_events;
    return options;
}

void wait_for_sealing(const std::string& path, std::int64_t events) {
    const PlainDatabase plain(path);
    for (int i = 0; i < 12000; ++i) {
        if (plain.integer("SELECT value FROM meta WHERE key = 'sealed'") >= events / chunk * chunk) return;
        std::this_thread::sleep_for(std::chrono::milliseconds(10));
    }
    throw std::runtime_error("nothing is sealed");
}

/// The same events in two logs: one in memory that is never sealed, one in a file that was opened again half-way and is sealed but for its end.
class Logs {
public:
    Logs(const std::vector<ModelEvent>& events, std::size_t half) : unsealed_(options_for(":memory:", 1 << 20)) {
        record(unsealed_, events, 0, events.size());
        {
            Meter first(options_for(scratch_.path(), chunk));
            record(first, events, 0, half);
        }
        sealed_.emplace(options_for(scratch_.path(), chunk));
        record(*sealed_, events, half, events.size());
        wait_for_sealing(scratch_.path(), static_cast<std::int64_t>(events.size()));
    }
    std::array<Meter*, 2> both() { return {&unsealed_, &*sealed_}; }

private:
    static void record(Meter& meter, const std::vector<ModelEvent>& events, std::size_t from, std::size_t to) {
        std::string lines;
        for (std::size_t i = from; i < to; ++i) lines += events[i].line + "\n";
        for (const auto& receipt : meter.record_json(lines)) {
            if (receipt.status != meter::ReceiptStatus::stored) throw std::runtime_error(receipt.field + " " + receipt.reason);
        }
    }
    Scratch scratch_;
    Meter unsealed_;
    std::optional<Meter> sealed_;
};

/// Whether every answer was the plain one.
bool run(std::uint64_t seed, int cases) {
    // Around the days when clocks are moved. One database in eight has more properties than a segment takes columns for.
    Workload workload(seed, seed % 8 == 0 ? 3000 : 0, Timestamp::from_civil(2026, 3, 1), 45);
    std::vector<ModelEvent> events;
    for (std::size_t count = 30 + workload.pick(220); count > 0; --count) {
        events.push_back(workload.event());
        events.back().sequence = static_cast<std::int64_t>(events.size());
    }
    Logs logs(events, workload.pick(events.size()));
    for (int i = 0; i < cases; ++i) {
        Cases generator(seed * 1'000'000 + static_cast<std::uint64_t>(i), workload);
        Case test = generator.next();
        const std::string plain = plain_answer(events, test);
        for (Meter* meter : logs.both()) {
            const std::string real = real_answer(*meter, test);
            if (real == plain || plain == "overflow") continue;  // the plain loop goes through larger numbers
            std::printf("seed %llu, case %d, %s: not as a plain loop answers\n", static_cast<unsigned long long>(seed), i,
                        meter == logs.both()[0] ? "in memory" : "sealed");
            Smaller(events, test).print();
            return false;
        }
    }
    return true;
}

}  // namespace

/// measuring_random [--seed N] [--databases N] [--cases N]: so many cases to each database, whose seeds are N, N + 1, ...
int main(int count, char** values) {
    std::setvbuf(stdout, nullptr, _IOLBF, 0);
    std::uint64_t seed = test_seed();
    int databases = 50, cases = 200;
    for (int i = 1; i + 1 < count; i += 2) {
        const std::string name = values[i];
        if (name == "--seed") seed = std::strtoull(values[i + 1], nullptr, 10);
        if (name == "--databases") databases = std::atoi(values[i + 1]);
        if (name == "--cases") cases = std::atoi(values[i + 1]);
    }
    std::printf("seeds %llu to %llu, %d cases each\n", static_cast<unsigned long long>(seed),
                static_cast<unsigned long long>(seed) + static_cast<unsigned long long>(databases) - 1, cases);
    int failed = 0;
    for (int i = 0; i < databases; ++i) failed += run(seed + static_cast<std::uint64_t>(i), cases) ? 0 : 1;
    std::printf("%d of %d databases failed\n", failed, databases);
    return failed == 0 ? 0 : 1;
}
