// What it costs to remember that a batch has arrived, beside the update of one row.
#include <stdexcept>

#include "fixtures.hpp"
#include "references.hpp"

namespace bench {

namespace {

using meter::Durability;
using meter::HttpRequest;
using meter::HttpResponse;
using meter::Meter;
using meter::Upstream;

// A vendor that takes everything at once, and the moment at which it last answered.
class Instant : public meter::Transport {
public:
    HttpResponse exchange(const HttpRequest&, std::chrono::milliseconds) override {
        HttpResponse response{.status = 202, .body = R"({"message":"events queued"})"};
        answered = now();
        return response;
    }
    double answered = 0;
};

// From the vendor's answer to the call of `progress`: reading the answer, deciding, one transaction, and the balance that progress shows.
// The balance is measured by itself and taken off, for nobody needs it to acknowledge.
void measure_acknowledge(Fixtures& fixtures) {
    constexpr std::int64_t batch = 1000, batches = 40;
    const Workload workload(batch * batches);
    const std::string path = fixtures.path("delivery.db"), row_path = fixtures.path("row.db");
    const auto vendor = std::make_shared<Instant>();
    Pairs pairs;
    std::vector<double> balance;
    {
        Meter meter({.path = path, .durability = Durability::process});
        for (std::int64_t at = 0; at < workload.events(); at += batch) meter.record_json(workload.lines(at, batch));
        meter.connect(Upstream::flexprice({.name = "upstream", .api_key = "key", .transport = vendor, .batch_events = batch}));
        OneRow row(row_path, Durability::process);
        std::int64_t place = 0;
        const auto report = meter.flush({.deadline = std::chrono::seconds(60), .progress = [&](const meter::FlushProgress&) {
                                             pairs.b.push_back((now() - vendor->answered) * 1e6);
                                             meter.balance("upstream");  // brings the changed pages into its connection's cache
                                             balance.push_back(timed([&] { meter.balance("upstream"); }) * 1e6);
                                             pairs.a.push_back(timed([&] { row.update(++place); }) * 1e6);
                                         }});
        if (report.upstreams.at(0).delivered != workload.events()) throw std::runtime_error("acknowledge: not everything was delivered");
    }
    const double spent = median(pairs.b) - median(balance);
    say("acknowledge: %lld batches of %lld: %.1f us from the answer to progress(), of which the balance %.1f us; one-row update %.1f us\n",
        static_cast<long long>(batches), static_cast<long long>(batch), median(pairs.b), median(balance), median(pairs.a));
    bar("acknowledge", spent / median(pairs.a), Better::lower, 2);
    remove_database(path);
    remove_database(row_path);
}

}  // namespace

std::vector<Measurement> acknowledge_measurements(Fixtures& fixtures) {
    return {{"acknowledge", "a batch of 1,000 acknowledged, beside a one-row update", [&fixtures] { measure_acknowledge(fixtures); }}};
}

}  // namespace bench
