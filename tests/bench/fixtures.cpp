#include "fixtures.hpp"

#include <algorithm>
#include <array>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <memory>
#include <stdexcept>

#include "references.hpp"

namespace bench {

Fixtures::Fixtures(Options given) : options(std::move(given)) { std::filesystem::create_directories(options.directory); }

Fixtures::~Fixtures() {
    std::error_code ignored;
    std::filesystem::remove_all(options.directory, ignored);
}

std::string Fixtures::log(std::int64_t events) {
    growth(events);
    return path("log-" + size_name(events) + ".db");
}

const Growth& Fixtures::growth(std::int64_t events) {
    if (const auto known = logs_.find(events); known != logs_.end()) return known->second;
    const Workload workload(events);
    const std::string file = path("log-" + size_name(events) + ".db");
    Growth growth;
    std::vector<meter::Event> batch;
    const double begin = now();
    {
        meter::Meter meter({.path = file, .durability = meter::Durability::process});
        for (std::int64_t at = 0; at < events;) {
            const std::int64_t end = std::min(events, at + Growth::piece), size = end - at;
            const bool objects = at / Growth::piece % 2 == 0;
            double spent = 0;
            while (at < end) {
                const std::int64_t count = std::min(Growth::commit, end - at);
                std::string text;
                objects ? workload.fill(batch, at, static_cast<std::size_t>(count)) : void(text = workload.lines(at, count));
                spent += timed([&] { objects ? meter.record(std::span<const meter::Event>(batch)) : meter.record_json(text); });
                at += count;
            }
            (objects ? growth.objects : growth.lines).push_back(static_cast<double>(size) / spent);
        }
    }
    say("  (made a log of %s events in %.1f s, %lld bytes an event)\n", size_name(events).c_str(), now() - begin,
        static_cast<long long>(file_bytes(file) / events));
    return logs_[events] = growth;
}

std::map<std::string, double> run_child(const std::vector<std::string>& arguments) {
    std::string command;
    const auto add = [&command](const std::string& word) { command.append("'").append(word).append("' "); };
    add(std::filesystem::read_symlink("/proc/self/exe").string());
    add("--child");
    std::for_each(arguments.begin(), arguments.end(), add);
    const std::unique_ptr<FILE, int (*)(FILE*)> pipe(popen(command.c_str(), "r"), pclose);
    if (!pipe) throw std::runtime_error("cannot start " + command);
    std::map<std::string, double> found;
    std::array<char, 64> key{};
    double value = 0;
    while (std::fscanf(pipe.get(), "%63s %lf", key.data(), &value) == 2) found[key.data()] = value;
    if (found.empty()) throw std::runtime_error("no figures from " + command);
    return found;
}

namespace {

// Lines "Key: number ..." of a file of /proc.
std::map<std::string, double> proc_numbers(const char* file) {
    std::map<std::string, double> found;
    std::ifstream lines(file);
    for (std::string line; std::getline(lines, line);) {
        const std::size_t colon = line.find(':');
        if (colon == std::string::npos) continue;
        found[line.substr(0, colon)] = std::strtod(line.c_str() + colon + 1, nullptr);
    }
    return found;
}

}  // namespace

std::map<std::string, double> process_memory() {
    auto found = proc_numbers("/proc/self/status");
    return {{"now", found["VmRSS"] * 1024}, {"peak", found["VmHWM"] * 1024}};
}

std::map<std::string, double> process_writes() {
    auto found = proc_numbers("/proc/self/io");
    return {{"written", found["wchar"]}, {"stored", found["write_bytes"]}};
}

}  // namespace bench
