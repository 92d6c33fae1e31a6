// Bytes on disk, bytes written, memory, and opening. What is about a process is measured in one of its own.
#include <fstream>
#include <iterator>

#include "fixtures.hpp"
#include "references.hpp"

namespace bench {

namespace {

using meter::Durability;
using meter::Meter;

constexpr double mebibyte = 1024 * 1024;

void measure_file_size(Fixtures& fixtures) {
    const std::int64_t events = fixtures.usual();
    const std::string ours = fixtures.log(events), theirs = fixtures.path("naive.db");
    const Workload workload(events);
    {
        Naive naive(theirs);
        for (std::int64_t at = 0; at < events; ++at) {
            if (at % 10'000 == 0) naive.begin();
            naive.insert(workload.sample(at));
            if ((at + 1) % 10'000 == 0 || at + 1 == events) naive.commit();
        }
    }
    const auto a = static_cast<double>(file_bytes(ours)), b = static_cast<double>(file_bytes(theirs)), number = static_cast<double>(events);
    say("file_size: meter %.0f bytes an event, naive layout %.0f\n", a / number, b / number);
    bar("file_size", a / b, Better::lower, 0.75);
    remove_database(theirs);
}

// Settings for a small device: what its process takes, and what it writes at 100 events a commit.
void measure_edge(const Fixtures& fixtures) {
    constexpr std::int64_t events = 200'000;
    const std::string path = fixtures.path("edge.db");
    auto found = run_child({"record", path, std::to_string(events)});
    say("edge: cache 256 KiB, pages of 1,024, chunks of 2,048, ids 512 KiB: peak %.1f MiB (%.1f before opening), %.0f bytes an event in write calls, "
        "%.0f to storage "
        "(/proc/self/io), %.0f on disk\n",
        found["peak"] / mebibyte, found["before"] / mebibyte, found["written"] / events, found["stored"] / events,
        static_cast<double>(file_bytes(path)) / events);
    bar("edge_memory_MiB", found["peak"] / mebibyte, Better::lower, 16);
    bar("edge_bytes_written", found["written"] / events, Better::lower, 600);
    remove_database(path);
}

void measure_open(Fixtures& fixtures, std::int64_t events) {
    const std::string path = fixtures.log(events);
    std::ifstream file(path, std::ios::binary);  // warm
    for (std::vector<char> buffer(1 << 20); file.read(buffer.data(), static_cast<std::streamsize>(buffer.size()));) {
    }
    std::vector<double> open, find, memory;
    for (int round = 0; round < fixtures.options.rounds; ++round) {
        auto found = run_child({"open", path, std::to_string(events)});
        open.push_back(found["open"]);
        find.push_back(found["find"]);
        memory.push_back(found["now"] / mebibyte);
    }
    say("open: %s events, warm: constructor %.1f ms, with the first event found by id %.1f ms; resident then %.1f MiB\n", size_name(events).c_str(),
        median(open), median(find), median(memory));
    bar("open_ms_" + size_name(events), median(find), Better::lower, 100);
    bar("open_memory_MiB_" + size_name(events), median(memory), Better::lower, 64);
}

void print(const char* key, double value) { say("%s %.6f\n", key, value); }

void child_record(const std::string& path, std::int64_t events) {
    print("before", process_memory()["now"]);
    const auto before = process_writes();
    const Workload workload(events);
    {
        Meter meter({.path = path,
                     .durability = Durability::process,
                     .cache_bytes = 256 * 1024,
                     .page_bytes = 1024,
                     .index_bytes = 512 * 1024,
                     .chunk_events = 2048});
        for (std::int64_t at = 0; at < events; at += 100) meter.record_json(workload.lines(at, 100));
    }
    for (const auto& [key, value] : process_writes()) print(key.c_str(), value - before.at(key));
    print("peak", process_memory()["peak"]);
}

// Opening loads what looking for ids needs only when the first is looked for, so that is part of it.
void child_open(const std::string& path, std::int64_t events) {
    const double begin = now();
    const Meter meter({.path = path});
    print("open", (now() - begin) * 1e3);
    const auto found = meter.find(Workload(events).sample(events / 2).id());
    print("find", found ? (now() - begin) * 1e3 : 1e9);
    print("now", process_memory()["now"]);
}

}  // namespace

int storage_child(const std::vector<std::string>& arguments) {
    if (arguments.size() != 3) return 2;
    const std::int64_t events = std::stoll(arguments[2]);
    if (arguments[0] == "record") {
        child_record(arguments[1], events);
    } else if (arguments[0] == "open") {
        child_open(arguments[1], events);
    } else {
        return 2;
    }
    return 0;
}

std::vector<Measurement> storage_measurements(Fixtures& fixtures) {
    std::vector<Measurement> found;
    found.push_back({"file_size", "bytes on disk beside the naive layout", [&fixtures] { measure_file_size(fixtures); }});
    found.push_back({"edge", "memory and bytes written with a small device's settings", [&fixtures] { measure_edge(fixtures); }});
    const std::int64_t largest = fixtures.options.sizes.back();
    found.push_back(
        {"open", "opening " + size_name(largest) + " events, and memory after it", [&fixtures, largest] { measure_open(fixtures, largest); }});
    return found;
}

}  // namespace bench
