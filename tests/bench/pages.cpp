// Pages of a large log, and events by id.
#include <stdexcept>

#include "fixtures.hpp"

namespace bench {

namespace {

using meter::Meter;

void measure_pages(Fixtures& fixtures, std::int64_t events) {
    const Meter meter({.path = fixtures.log(events)});
    const Workload workload(events);
    const int rounds = fixtures.options.rounds * 4;
    const auto page = [&](const std::string& name, auto&& query, bool barred = true) {
        std::vector<double> spent;
        for (int round = 0; round <= rounds; ++round) {
            const meter::ListQuery asked = query(round);
            std::size_t found = 0;
            const double took = timed([&] { found = meter.list(asked).events.size(); });
            if (found == 0 || (found < 100 && events >= 1'000'000))
                throw std::runtime_error(name + ": " + std::to_string(found) + " events on a page of 100");
            if (round > 0) spent.push_back(took * 1e3);
        }
        say("%s: p50 %.2f ms, longest of %d %.2f ms\n", name.c_str(), median(spent), rounds, percentile(spent, 1));
        if (barred) bar(name + "_ms_" + size_name(events), median(spent), Better::lower, 5);
    };
    page("page_newest", [](int) { return meter::ListQuery{}; });
    page("page_customer", [](int round) { return meter::ListQuery{.customer = customer_text(round * 37 % customers)}; });
    page("page_name_period", [](int round) {
        const meter::Period all = Workload::period();
        const meter::Timestamp from = all.from + std::chrono::hours(24) * (round % 25);
        return meter::ListQuery{.names = {name_text(round % names)}, .period = {from, from + std::chrono::hours(48)}};
    });
    page("page_ids", [&](int round) {
        meter::ListQuery query;
        for (int i = 0; i < 100; ++i) query.ids.push_back(workload.sample((events / 100 * i + round * 7919) % events).id());
        return query;
    });
    // What is not sorted by time first is read whole: reported, without a bar.
    const meter::ListQuery by_number{.sort = {{"tokens", true}}}, by_texts{.sort = {{"customer"}, {"model"}, {"timestamp", true}}};
    page(
        "page_by_number", [&](int) { return by_number; }, false);
    page(
        "page_by_texts", [&](int) { return by_texts; }, false);
    std::vector<double> spent;
    for (int round = 0; round <= rounds; ++round) {
        const std::string id = workload.sample((events / 2 + round * 104'729) % events).id();
        spent.push_back(timed([&] {
                            if (!meter.find(id)) throw std::runtime_error("find: not there");
                        }) *
                        1e3);
    }
    say("find: one event by id, p50 %.3f ms\n", median(spent));
    bar("find_ms_" + size_name(events), median(spent), Better::lower, 5);
}

}  // namespace

std::vector<Measurement> page_measurements(Fixtures& fixtures) {
    const std::int64_t largest = fixtures.options.sizes.back();
    return {{"pages", "pages of 100 of " + size_name(largest) + " events, and 100 events by id",
             [&fixtures, largest] { measure_pages(fixtures, largest); }}};
}

}  // namespace bench
