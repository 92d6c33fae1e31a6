// unit_test: how an app's own tests use meter. The real library on a database in memory, a clock that stands still, and a transport that
// keeps what was sent: no files, no network, no mocks of meter. SPDX-License-Identifier: MIT
#define CATCH_CONFIG_MAIN
#if __has_include(<catch2/catch_all.hpp>)
#include <catch2/catch_all.hpp>
#else
#include <catch2/catch.hpp>
#endif

#include "meter.hpp"

using meter::Aggregation;
using meter::Decimal;
using meter::Timestamp;

namespace {

/// The app's code under test: it bills a translation by its characters.
class Translator {
public:
    explicit Translator(meter::Meter& usage) : usage_(usage) {}

    std::string translate(const std::string& job, const std::string& customer, const std::string& text) {
        usage_.record(
            {.id = job, .name = "translation", .customer = customer, .subscription = "sub_" + customer, .properties = {{"characters", text.size()}}});
        return std::string(text.rbegin(), text.rend());
    }

private:
    meter::Meter& usage_;
};

/// Accepts everything, as Lago does with the events it was sent, and remembers it.
struct RecordingTransport : meter::Transport {
    std::vector<meter::HttpRequest> requests;
    meter::HttpResponse exchange(const meter::HttpRequest& request, std::chrono::milliseconds) override {
        requests.push_back(request);
        return {.status = 200, .body = request.body};
    }
};

meter::Meter meter_at(std::string_view moment) {
    return meter::Meter({.clock = [now = Timestamp::parse(moment)] { return now; }});
}

}  // namespace

TEST_CASE("a translation is billed by its characters") {
    meter::Meter usage = meter_at("2026-01-05T11:30:00Z");
    Translator translator(usage);
    translator.translate("job-1", "acme", "hello");
    translator.translate("job-2", "acme", "good morning");

    const auto total = usage.aggregate({.code = "characters", .event = "translation", .aggregation = Aggregation::sum, .property = "characters"});
    REQUIRE(total.rows.size() == 1);
    CHECK(total.rows[0].value == Decimal(17));
    CHECK(usage.find("job-1")->timestamp == Timestamp::parse("2026-01-05T11:30:00Z"));
}

TEST_CASE("a job that is run again is billed once") {
    meter::Meter usage = meter_at("2026-01-05T11:30:00Z");
    Translator translator(usage);
    translator.translate("job-1", "acme", "hello");
    translator.translate("job-1", "acme", "hello");
    CHECK(usage.list({.count = true}).total == 1);
}

TEST_CASE("usage reaches Lago in one batch") {
    meter::Meter usage = meter_at("2026-01-05T11:30:00Z");
    const auto transport = std::make_shared<RecordingTransport>();
    usage.connect(meter::Upstream::lago({.api_key = "key", .transport = transport}));
    Translator translator(usage);
    translator.translate("job-1", "acme", "hello");
    translator.translate("job-2", "acme", "good morning");

    CHECK(usage.flush().complete());
    REQUIRE(transport->requests.size() == 1);
    const auto events = meter::json::parse(transport->requests[0].body).at("events");
    REQUIRE(events.size() == 2);
    CHECK(events[0].at("transaction_id") == "job-1");
    CHECK(events[0].at("external_subscription_id") == "sub_acme");
    CHECK(usage.balance("lago") == meter::Balance{.recorded = 2, .delivered = 2});
}
