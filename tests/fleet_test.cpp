// A fleet of devices comes online in the same moment, at a server that takes far fewer. How their requests spread is worked out with the
// library's own functions: what an answer means, and how long to wait after it. `inside_tests "[fleet]" -s` shows it second by second.
#include "inside.hpp"

#include <iomanip>
#include <queue>

namespace meter {
namespace {

struct Outcome {
    std::vector<std::size_t> asked = {}, served = {};  // by second
    std::size_t requests = 0;
};

Outcome simulate(std::size_t devices, std::size_t capacity, const HttpResponse& refusal) {
    struct Turn {
        std::int64_t at;
        std::size_t device;
        std::int64_t failures;
        bool operator>(const Turn& other) const { return std::pair(at, device) > std::pair(other.at, other.device); }
    };
    std::mt19937_64 random(20260301);
    const Vendor& vendor = vendor_named("lago");
    const std::vector<std::string_view> ids = {"id"};
    std::priority_queue<Turn, std::vector<Turn>, std::greater<>> turns;
    for (std::size_t device = 0; device < devices; ++device) turns.push({static_cast<std::int64_t>(random() % 1000000), device, 0});
    Outcome outcome;
    while (!turns.empty()) {
        const Turn turn = turns.top();
        turns.pop();
        const auto second = static_cast<std::size_t>(turn.at / 1000000);
        if (second >= outcome.asked.size()) {
            outcome.asked.resize(second + 1);
            outcome.served.resize(second + 1);
        }
        ++outcome.asked[second];
        ++outcome.requests;
        if (outcome.served[second] < capacity) {
            ++outcome.served[second];
            continue;
        }
        const Answer answer = read_answer(vendor, refusal, ids);
        turns.push({turn.at + wait_after(answer, turn.failures + 1, random()).count(), turn.device, turn.failures + 1});
    }
    return outcome;
}

std::size_t most(const std::vector<std::size_t>& counts, std::size_t from, std::size_t to) {
    std::size_t largest = 0;
    for (std::size_t i = from; i < std::min(to, counts.size()); ++i) largest = std::max(largest, counts[i]);
    return largest;
}

std::string drawn(const Outcome& outcome, std::size_t devices) {
    std::ostringstream text;
    text << "   seconds        most asked   most served in one second\n";
    for (std::size_t from = 0, width = 1; from < outcome.asked.size(); from += width, width = from < 4 ? 1 : from) {
        const std::size_t asked = most(outcome.asked, from, from + width);
        text << std::setw(6) << from << " - " << std::left << std::setw(6) << from + width - 1 << std::right << std::setw(10) << asked
             << std::setw(12) << most(outcome.served, from, from + width) << "  "
             << std::string(std::min<std::size_t>(60, asked * 60 / devices + 1), '#') << "\n";
    }
    return text.str();
}

}  // namespace

TEST_CASE("A fleet that comes online at once spreads its requests", "[fleet]") {
    constexpr std::size_t devices = 10000, capacity = 100;
    const auto refusal = GENERATE(HttpResponse{.status = 503},                                      // without a word
                                  HttpResponse{.status = 429, .headers = {{"Retry-After", "10"}}},  // the same wait for everyone
                                  HttpResponse{.error = "refused", .sent = false});                 // no connection
    const Outcome outcome = simulate(devices, capacity, refusal);
    INFO("refused with status " << refusal.status << "\n" << drawn(outcome, devices));
    CHECK(most(outcome.asked, 60, outcome.asked.size()) <= devices / 20);  // after the first minute, in any second
    CHECK(outcome.requests < 10 * devices);
    CHECK(outcome.asked.size() < 5 * devices / capacity);  // five times what the server would need
}

}  // namespace meter
