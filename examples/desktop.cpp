// desktop: an app that records what its user does at once and lets meter deliver in the background, so that no click ever waits for the
// network. At the end it gives delivery two seconds; what is left goes out at the next start. SPDX-License-Identifier: MIT
//
//     desktop usage.db KEY         each line typed is a feature used; an empty line shows today's counts, the end of input quits
#include <chrono>
#include <iostream>
#include <string>

#include "meter.hpp"

using namespace std::chrono_literals;

namespace {

void show_today(const meter::Meter& usage) {
    for (const auto& name : usage.list_names({.period = meter::last_days(1), .sort = {{"occurrences", true}}}).rows) {
        std::cout << name.occurrences << "  " << name.name << "\n";
    }
    const meter::Balance balance = usage.balance("lago");
    std::cout << balance.delivered << " delivered, " << balance.pending << " pending, " << balance.parked << " parked\n";
}

void run(meter::Meter& usage) {
    for (std::string feature; std::getline(std::cin, feature);) {
        if (feature.empty()) {
            show_today(usage);
        } else {
            usage.record({.name = feature, .subscription = "desktop"});
        }
    }
}

}  // namespace

int main(int argc, char** argv) {
    if (argc != 3) {
        std::cerr << "usage: desktop DATABASE API_KEY\n";
        return 2;
    }
    try {
        meter::Meter usage({.path = argv[1]});
        usage.connect(meter::Upstream::lago({.api_key = argv[2]}));
        usage.start({.age = 30s});  // sends after half a minute at the latest, or 100 events
        run(usage);
        usage.stop();
        usage.flush({.deadline = 2s});
        show_today(usage);
        return 0;
    } catch (const meter::Error& error) {
        std::cerr << "desktop: " << error.what() << "\n";
        return 1;
    }
}
