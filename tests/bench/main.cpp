// meter_bench: the bars of the store, measured in one run. See README.md beside this file.
#include <sqlite3.h>

#include <algorithm>
#include <array>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <filesystem>
#include <stdexcept>
#include <string_view>
#include <thread>

#include "fixtures.hpp"

namespace {

using namespace bench;

constexpr std::string_view usage = R"(meter_bench [--events N[,N]] [--rounds N] [--only NAME[,NAME]] [--directory DIR] [--duckdb FILE] [--list]
  --events     sizes of the logs: the usual one, then the large one (1M,10M); with one size alone nothing larger is measured
  --rounds     of each comparison; the medians are printed (5)
  --only       these measurements, of those that --list shows
  --directory  where databases are made, in a directory that is removed at the end (the current one)
  --duckdb     libduckdb.so (the one get_duckdb puts beside this program); without it the rows that need it are skipped
  --list       names the measurements and ends
Ends with 1 when a bar is short.
)";

std::int64_t parse_size(const std::string& text) {
    std::size_t end = 0;
    std::int64_t size = std::stoll(text, &end);
    if (end < text.size()) size *= text[end] == 'M' ? 1'000'000 : text[end] == 'k' ? 1000 : 0;
    if (size < 10'000) throw std::runtime_error("--events: sizes are from 10k");
    return size;
}

std::vector<std::string> split(const std::string& text) {
    std::vector<std::string> parts;
    for (std::size_t begin = 0; begin <= text.size();) {
        const std::size_t end = std::min(text.find(',', begin), text.size());
        parts.push_back(text.substr(begin, end - begin));
        begin = end + 1;
    }
    return parts;
}

struct Call {
    Options options{};
    bool help = false, list = false;
};

Call parse(const std::vector<std::string>& arguments) {
    namespace fs = std::filesystem;
    Call call;
    Options& options = call.options;
    options.duckdb_library =
        (fs::read_symlink("/proc/self/exe").parent_path() / "duckdb/node_modules/@duckdb/node-bindings-linux-x64/libduckdb.so").string();
    std::string parent = ".";
    for (std::size_t i = 0; i < arguments.size(); ++i) {
        const std::string& name = arguments[i];
        const auto value = [&]() -> const std::string& {
            if (i + 1 == arguments.size()) throw std::runtime_error(name + " needs a value");
            return arguments[++i];
        };
        if (name == "--events") {
            options.sizes.clear();
            for (const std::string& size : split(value())) options.sizes.push_back(parse_size(size));
        } else if (name == "--rounds") {
            options.rounds = std::max(1, std::stoi(value()));
        } else if (name == "--only") {
            options.only = split(value());
        } else if (name == "--directory") {
            parent = value();
        } else if (name == "--duckdb") {
            options.duckdb_library = value();
        } else if (name == "--list") {
            call.list = true;
        } else if (name == "--help" || name == "-h") {
            call.help = true;
        } else {
            throw std::runtime_error("unknown option " + name);
        }
    }
    const auto process = fs::read_symlink("/proc/self").string();
    options.directory = parent + "/meter_bench." + process;
    return call;
}

void print_surroundings(const Options& options) {
    double load = 0;
    getloadavg(&load, 1);
    say("meter %s, SQLite %s, %u processors, load %.1f, %d rounds\n", METER_VERSION, sqlite3_libversion(), std::thread::hardware_concurrency(), load,
        options.rounds);
    const Sample sample = Workload(options.sizes.front()).sample(1);
    say("an event: %zu bytes raw, %zu as a line: %s\n", sample.raw().size() + sample.properties().size(), sample.line().size(),
        sample.line().c_str());
#ifndef __OPTIMIZE__
    say("NOT OPTIMISED: these figures say nothing. Build with -O2.\n");
#endif
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
    say("WITH SANITIZERS: these figures say nothing.\n");
#endif
}

int run(const std::vector<std::string>& arguments) {
    if (arguments.size() > 1 && arguments[0] == "--child") {
        const std::vector<std::string> rest(arguments.begin() + 1, arguments.end());
        return rest[0] == "drain" ? delivery_child(rest) : storage_child(rest);
    }
    const Call call = parse(arguments);
    if (call.help) return std::printf("%s", usage.data()), 0;
    Fixtures fixtures(call.options);
    std::vector<Measurement> all;
    constexpr std::array parts{recording_measurements,   storage_measurements,  question_measurements, page_measurements,
                               acknowledge_measurements, delivery_measurements, fee_measurements};
    for (const auto& part : parts) {
        for (Measurement& measurement : part(fixtures)) all.push_back(std::move(measurement));
    }
    if (call.list) {
        for (const Measurement& measurement : all) say("%-20s %s\n", measurement.name.c_str(), measurement.what.c_str());
        return 0;
    }
    for (const std::string& name : call.options.only) {
        if (std::none_of(all.begin(), all.end(), [&](const Measurement& each) { return each.name == name; }))
            throw std::runtime_error("--only: there is no " + name + "; --list shows what there is");
    }
    print_surroundings(call.options);
    for (const Measurement& measurement : all) {
        if (call.options.asked_for(measurement.name)) measurement.run();
    }
    return shortfalls() == 0 ? 0 : 1;
}

}  // namespace

int main(int count, char** values) {
    try {
        return run({values + 1, values + count});
    } catch (const std::exception& error) {
        std::fprintf(stderr, "meter_bench: %s\n", error.what());
        return 2;
    }
}
