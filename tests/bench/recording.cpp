// How fast events are stored, beside the barest insert of the same bytes.
#include <algorithm>
#include <filesystem>
#include <memory>
#include <thread>

#include "fixtures.hpp"
#include "references.hpp"

namespace bench {

namespace {

using meter::Durability;
using meter::Event;
using meter::Meter;

double rate(double events, double seconds) { return events / seconds; }

// Seconds of storing a log, closing included: as they passed, and of CPU; what the sealing thread took is apart.
struct Cost {
    double passed = 0, caller = 0, behind = 0;
};

// Records the usual log in commits of `commit`. What is recorded is made in between, outside of the caller's cost.
template <class Make, class Store, class Close>
Cost time_commits(std::int64_t events, std::int64_t commit, Make&& make, Store&& store, Close&& close) {
    Cost cost;
    const double all = all_cpu(), own = own_cpu();
    const auto count = [&cost](auto& work) {
        const double before = own_cpu();
        cost.passed += timed(work);
        cost.caller += own_cpu() - before;
    };
    for (std::int64_t at = 0; at < events; at += commit) {
        make(at, std::min(commit, events - at));
        count(store);
    }
    count(close);
    cost.behind = all_cpu() - all - (own_cpu() - own);
    return cost;
}

struct Bulk {
    std::string name{};
    std::int64_t events = 0, commit = 0;
    double target = 0;
};

void print_costs(const Bulk& bulk, const char* who, const std::vector<Cost>& costs) {
    const auto events = static_cast<double>(bulk.events);
    const auto micros = [&](double Cost::*part) {
        std::vector<double> found;
        for (const Cost& cost : costs) found.push_back(cost.*part / events * 1e6);
        return median(found);
    };
    say("%s: %s %.0f events/s: %.2f us, of CPU %.2f us, and %.2f us behind the caller\n", bulk.name.c_str(), who, 1e6 / micros(&Cost::passed),
        micros(&Cost::passed), micros(&Cost::caller), micros(&Cost::behind));
}

template <class A, class B>
void compare_bulk(const Bulk& bulk, int rounds, A&& a, B&& b) {
    std::vector<Cost> ours, theirs;
    const Pairs pairs = alternate(
        rounds, [&] { return ours.emplace_back(a()).passed; }, [&] { return theirs.emplace_back(b()).passed; });
    print_costs(bulk, "meter", ours);
    print_costs(bulk, "bare", theirs);
    bar(bulk.name, pairs.ratio(), Better::higher, bulk.target);
}

void measure_objects(const Fixtures& fixtures, std::int64_t commit) {
    const Bulk bulk{"objects_" + std::to_string(commit), fixtures.usual(), commit, 0.6};
    const Workload workload(bulk.events);
    const std::string path = fixtures.path("bulk.db");
    std::vector<Event> batch;
    const auto a = [&] {
        remove_database(path);
        auto meter = std::make_unique<Meter>(meter::MeterOptions{.path = path, .durability = Durability::process});
        return time_commits(
            bulk.events, commit, [&](std::int64_t at, std::int64_t count) { workload.fill(batch, at, static_cast<std::size_t>(count)); },
            [&] { meter->record(std::span<const Event>(batch)); }, [&] { meter.reset(); });
    };
    const auto b = [&] {
        remove_database(path);
        auto bare = std::make_unique<Bare>(path, Durability::process);
        std::vector<std::string> raw;
        const auto make = [&](std::int64_t at, std::int64_t count) {
            workload.fill(batch, at, static_cast<std::size_t>(count));
            raw.clear();
            for (std::int64_t i = 0; i < count; ++i) raw.push_back(workload.sample(at + i).raw());
        };
        const auto store = [&] {
            bare->begin();
            for (std::size_t i = 0; i < batch.size(); ++i) bare->insert(raw[i] += batch[i].properties.dump());
            bare->commit();
        };
        return time_commits(bulk.events, commit, make, store, [&] { bare.reset(); });
    };
    compare_bulk(bulk, fixtures.options.rounds, a, b);
    remove_database(path);
}

void measure_lines(const Fixtures& fixtures, std::int64_t commit) {
    const Bulk bulk{"lines_" + std::to_string(commit), fixtures.usual(), commit, 0.45};
    const Workload workload(bulk.events);
    const std::string path = fixtures.path("bulk.db");
    std::string text;
    const auto make = [&](std::int64_t at, std::int64_t count) { text = workload.lines(at, count); };
    const auto a = [&] {
        remove_database(path);
        auto meter = std::make_unique<Meter>(meter::MeterOptions{.path = path, .durability = Durability::process});
        return time_commits(
            bulk.events, commit, make, [&] { meter->record_json(text); }, [&] { meter.reset(); });
    };
    const auto b = [&] {
        remove_database(path);
        auto bare = std::make_unique<Bare>(path, Durability::process);
        const auto store = [&] {
            bare->begin();
            for (std::size_t begin = 0, end = 0; begin < text.size(); begin = end + 1) {
                end = text.find('\n', begin);
                bare->insert(std::string_view(text).substr(begin, end - begin));
            }
            bare->commit();
        };
        return time_commits(bulk.events, commit, make, store, [&] { bare.reset(); });
    };
    compare_bulk(bulk, fixtures.options.rounds, a, b);
    remove_database(path);
}

// The last tenth of a log against its first, in the same run.
void measure_growth(Fixtures& fixtures, std::int64_t events) {
    const Growth& growth = fixtures.growth(events);
    for (const auto& [kind, rates] : {std::pair{"objects", &growth.objects}, std::pair{"lines", &growth.lines}}) {
        const auto tenth = static_cast<std::ptrdiff_t>(std::max<std::size_t>(1, rates->size() / 10));
        const double first = median({rates->begin(), rates->begin() + tenth}), last = median({rates->end() - tenth, rates->end()});
        say("growth %s: first tenth %.0f events/s, last tenth %.0f events/s\n", kind, first, last);
        bar("growth_" + std::string(kind) + "_" + size_name(events), last / first, Better::higher, 0.9);
    }
}

std::vector<std::string> raw_texts(const Workload& workload, std::int64_t first, std::size_t count) {
    std::vector<std::string> texts(count);
    for (std::string& text : texts) {
        const Sample sample = workload.sample(first++);
        text = sample.raw() + sample.properties();
    }
    return texts;
}

void measure_single(Fixtures& fixtures, const std::string& name, Durability durability, std::size_t count, double target) {
    const Workload workload(fixtures.usual());
    const std::string path = fixtures.path("single.db"), bare_path = fixtures.path("bare.db");
    std::filesystem::copy_file(fixtures.log(fixtures.usual()), path);
    Meter meter({.path = path, .durability = durability});
    Bare bare(bare_path, durability);
    std::int64_t next = fixtures.usual();
    std::vector<Event> batch;
    const auto a = [&] {
        workload.fill(batch, next, count);
        next += static_cast<std::int64_t>(count);
        return timed([&] { std::for_each(batch.begin(), batch.end(), [&](const Event& event) { meter.record(event); }); });
    };
    const auto b = [&] {
        const std::vector<std::string> raw = raw_texts(workload, next, count);
        return timed([&] { std::for_each(raw.begin(), raw.end(), [&](const std::string& text) { bare.insert(text); }); });
    };
    a(), b();  // the first touch of each
    const Pairs pairs = alternate(fixtures.options.rounds, a, b);
    const auto number = static_cast<double>(count);
    say("%s: meter %.0f events/s (%.1f us), bare %.0f events/s (%.1f us)\n", name.c_str(), rate(number, median(pairs.a)),
        median(pairs.a) / number * 1e6, rate(number, median(pairs.b)), median(pairs.b) / number * 1e6);
    bar(name, pairs.ratio(), Better::higher, target);
    remove_database(path);
    remove_database(bare_path);
}

void measure_threads(Fixtures& fixtures) {
    constexpr std::size_t threads = 16, each = 250, alone = 1000;
    const Workload workload(fixtures.usual());
    const std::string path = fixtures.path("threads.db"), bare_path = fixtures.path("alone.db");
    Meter meter({.path = path, .durability = Durability::full});
    Bare bare(bare_path, Durability::full);
    std::int64_t next = 0;
    const auto a = [&] {
        std::vector<std::vector<Event>> batches(threads);
        for (auto& batch : batches) workload.fill(batch, next, each), next += static_cast<std::int64_t>(each);
        return timed([&] {
                   std::vector<std::jthread> running;
                   for (const auto& batch : batches) {
                       running.emplace_back([&meter, &batch] {
                           for (const Event& event : batch) meter.record(event);
                       });
                   }
               }) /
               (threads * each);
    };
    const auto b = [&] {
        const std::vector<std::string> raw = raw_texts(workload, next, alone);
        return timed([&] { std::for_each(raw.begin(), raw.end(), [&](const std::string& text) { bare.insert(text); }); }) / alone;
    };
    a(), b();
    const Pairs pairs = alternate(fixtures.options.rounds, a, b);
    say("threads_full: meter %.0f events/s from %zu threads, bare %.0f events/s from one\n", 1 / median(pairs.a), threads, 1 / median(pairs.b));
    bar("threads_full", pairs.ratio(), Better::higher, 2);
    remove_database(path);
    remove_database(bare_path);
}

// Every single record, while chunk after chunk is sealed behind it.
void measure_pause(Fixtures& fixtures) {
    constexpr std::int64_t step = 10'000;
    const std::int64_t events = std::min<std::int64_t>(fixtures.usual(), 300'000);
    const Workload workload(events);
    const std::string path = fixtures.path("pause.db");
    std::vector<double> spent;
    {
        Meter meter({.path = path, .durability = Durability::process});
        std::vector<Event> batch;
        for (std::int64_t at = 0; at < events; at += step) {
            workload.fill(batch, at, static_cast<std::size_t>(step));
            for (const Event& event : batch) spent.push_back(timed([&] { meter.record(event); }) * 1e3);
        }
    }
    say("pause: %zu records of one event, sealing each 65,536: p50 %.3f ms, p99 %.3f ms, p99.9 %.3f ms, longest %.1f ms\n", spent.size(),
        percentile(spent, 0.5), percentile(spent, 0.99), percentile(spent, 0.999), percentile(spent, 1));
    bar("pause_p99.9_ms", percentile(spent, 0.999), Better::lower, 50);
    remove_database(path);
}

}  // namespace

std::vector<Measurement> recording_measurements(Fixtures& fixtures) {
    std::vector<Measurement> found;
    for (const std::int64_t commit : {1000, 10'000}) {
        const std::string each = std::to_string(commit);
        found.push_back({"objects_" + each, "Event objects, " + each + " a commit", [&fixtures, commit] { measure_objects(fixtures, commit); }});
        found.push_back({"lines_" + each, "JSON Lines, " + each + " a commit", [&fixtures, commit] { measure_lines(fixtures, commit); }});
    }
    found.push_back({"single_process", "one event a call, process durability",
                     [&fixtures] { measure_single(fixtures, "single_process", Durability::process, 10'000, 0.75); }});
    found.push_back(
        {"single_full", "one event a call, full durability", [&fixtures] { measure_single(fixtures, "single_full", Durability::full, 1000, 0.9); }});
    found.push_back({"threads_full", "16 threads, full durability", [&fixtures] { measure_threads(fixtures); }});
    found.push_back({"pause", "the longest calls of record() while sealing goes on", [&fixtures] { measure_pause(fixtures); }});
    for (const std::int64_t size : fixtures.options.sizes) {
        if (size == fixtures.usual()) continue;
        found.push_back({"growth", "the last tenth of " + size_name(size), [&fixtures, size] { measure_growth(fixtures, size); }});
    }
    return found;
}

}  // namespace bench
