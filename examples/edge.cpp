// edge: a device with little memory, a small disk and a bad link. The database has a fixed budget; when it is full, new readings are refused
// with an error and what was recorded stays. Delivery gets a few seconds now and then. SPDX-License-Identifier: MIT
//
//     sensor | edge meter.db https://lago.example.com KEY         one reading a line: "<sensor> <kilowatt hours>"
#include <chrono>
#include <iostream>
#include <sstream>
#include <string>

#include "meter.hpp"

using namespace std::chrono_literals;

namespace {

constexpr std::int64_t disk_budget = 32 * 1024 * 1024;
constexpr std::size_t memory_budget = 256 * 1024;
constexpr int readings_between_deliveries = 60;

/// False when there is no room. The device goes on measuring, and room comes back only by a larger budget or disk.
bool record(meter::Meter& device, const std::string& line) {
    std::istringstream words(line);
    std::string sensor, energy;
    words >> sensor >> energy;
    try {
        device.record({.name = "energy", .subscription = sensor, .value = meter::Decimal(energy), .properties = {{"kwh", energy}}});
        return true;
    } catch (const meter::Error& error) {
        std::cerr << "not recorded: " << line << ": " << error.what() << "\n";
        return error.code() != meter::ErrorCode::full;
    }
}

void deliver(meter::Meter& device) {
    for (const auto& upstream : device.flush({.deadline = 5s}).upstreams) {
        std::cout << upstream.delivered << " delivered, " << upstream.pending << " pending";
        if (!upstream.status.reason.empty()) std::cout << " (" << upstream.status.reason << ")";
        std::cout << "\n";
    }
}

}  // namespace

int main(int argc, char** argv) {
    if (argc != 4) {
        std::cerr << "usage: edge DATABASE URL API_KEY    reads \"<sensor> <kilowatt hours>\" lines from standard input\n";
        return 2;
    }
    try {
        meter::Meter device({.path = argv[1], .max_bytes = disk_budget, .cache_bytes = memory_budget});
        device.connect(meter::Upstream::lago({.api_key = argv[3], .base_url = argv[2], .request_timeout = 5s}));
        int readings = 0;
        bool room = true;
        for (std::string line; std::getline(std::cin, line);) {
            room = record(device, line);
            if (++readings % readings_between_deliveries == 0) deliver(device);
        }
        deliver(device);
        return room ? 0 : 1;
    } catch (const meter::Error& error) {
        std::cerr << "edge: " << error.what() << "\n";
        return 1;
    }
}
