// A fleet of devices comes online in the same moment, at a server that takes far fewer. Shows how their requests spread, from the library's
// own functions: what an answer means, and how long to wait after it.
//
//   flush_fleet [--devices N] [--capacity N a second]
#include <cstdio>
#include <queue>

#include "../../meter.cpp"

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

bool report(const char* title, std::size_t devices, std::size_t capacity, const HttpResponse& refusal) {
    const Outcome outcome = simulate(devices, capacity, refusal);
    std::printf("%s: %zu devices, %zu requests a second are served\n   seconds        most asked   most served in one second\n", title, devices,
                capacity);
    for (std::size_t from = 0, width = 1; from < outcome.asked.size(); from += width, width = from < 4 ? 1 : from) {
        const std::size_t asked = most(outcome.asked, from, from + width);
        std::printf("%6zu - %-6zu %9zu %11zu  %s\n", from, from + width - 1, asked, most(outcome.served, from, from + width),
                    std::string(std::min<std::size_t>(60, asked * 60 / devices + 1), '#').c_str());
    }
    const double each = static_cast<double>(outcome.requests) / static_cast<double>(devices);
    std::printf("  all served after %zu seconds, %.1f requests a device\n\n", outcome.asked.size(), each);
    const bool spread = most(outcome.asked, 60, outcome.asked.size()) <= devices / 20;
    const bool cheap = each < 10, quick = outcome.asked.size() < 5 * devices / capacity;
    if (!spread) std::printf("FAILED: after the first minute more than a twentieth of the fleet asks in one second\n");
    if (!cheap) std::printf("FAILED: more than ten requests a device\n");
    if (!quick) std::printf("FAILED: five times as long as the server would need\n");
    return spread && cheap && quick;
}

}  // namespace
}  // namespace meter

int main(int argc, char** argv) {
    std::size_t devices = 10000, capacity = 100;
    for (int i = 1; i + 1 < argc; i += 2) {
        if (std::strcmp(argv[i], "--devices") == 0) devices = std::strtoul(argv[i + 1], nullptr, 10);
        if (std::strcmp(argv[i], "--capacity") == 0) capacity = std::strtoul(argv[i + 1], nullptr, 10);
    }
    using meter::HttpResponse;
    bool good = meter::report("503 without a word", devices, capacity, HttpResponse{.status = 503});
    good =
        meter::report("429 with Retry-After: 10 for everyone", devices, capacity, HttpResponse{.status = 429, .headers = {{"Retry-After", "10"}}}) &&
        good;
    good = meter::report("connections refused", devices, capacity, HttpResponse{.error = "refused", .sent = false}) && good;
    return good ? 0 : 1;
}
