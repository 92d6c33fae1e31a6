// Many processes and threads open, use and close one file at once, from the moment it is made: no call may fail, nothing may be lost or doubled.
//
//     store_stress [--rounds N] [--processes N] [--turns N] [--seed S] [--folder DIRECTORY]
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <cstring>
#include <filesystem>
#include <iostream>
#include <random>
#include <thread>

#include "../../meter.hpp"

using namespace meter;

namespace {

struct Choices {
    int rounds = 3, processes = 4, turns = 12;
    std::uint64_t seed = std::random_device{}();
    std::filesystem::path folder = std::filesystem::temp_directory_path();
};

MeterOptions options_for(const std::string& path) {
    MeterOptions options;
    options.path = path;
    options.durability = Durability::process;
    options.busy_timeout = std::chrono::minutes(5);  // a machine may be slow; what SQLite answers without waiting is looked for here
    options.chunk_events = 64;
    return options;
}

class Accepting : public Transport {
public:
    HttpResponse exchange(const HttpRequest&, std::chrono::milliseconds) override { return {.status = 200, .body = "{}"}; }
};

Event event_of(const std::string& id) {
    return {.id = id, .name = "n" + std::to_string(id.size() % 3), .customer = id.substr(0, 2), .properties = {{"n", 1}}};
}

void expect(bool condition, const std::string& what) {
    if (!condition) throw std::runtime_error(what);
}

void do_something(Meter& m, std::uint64_t random) {
    switch (random % 8) {
        case 0:
            return expect(m.verify().empty(), "verify found something");
        case 1:
            return expect(m.verify(true).empty(), "verify found something");
        case 2:
            return m.compact();
        case 3:
            m.aggregate({.code = "n1", .aggregation = Aggregation::sum, .property = "n"}, {.group_by = {"customer"}});
            return;
        case 4:
            m.connect(Upstream::lago({.api_key = "k", .transport = std::make_shared<Accepting>()}));
            m.flush({.deadline = std::chrono::minutes(5)});
            return expect(m.balance("lago").holds(), "the balance does not hold");
        case 5:
            m.define({.code = "m", .event = "n1"});
            return;
        default:
            m.list({.limit = 20, .count = true});
    }
}

// One life after another of a Meter on the file. What it records is stored, once; what all record is stored by one of them.
void live(const std::string& path, const std::string& name, int turns, std::uint64_t seed) {
    std::mt19937_64 random(seed);
    for (int turn = 0; turn < turns; ++turn) {
        Meter m(options_for(path));
        for (int i = 0; i < 3; ++i) {
            std::vector<Event> events;
            for (int k = 0; k < 10; ++k)
                events.push_back(event_of(name + "-" + std::to_string(turn) + "-" + std::to_string(i) + "-" + std::to_string(k)));
            events.push_back(event_of("all-" + std::to_string(turn) + "-" + std::to_string(i)));
            const std::vector<Receipt> receipts = m.record(events);
            for (std::size_t k = 0; k < 10; ++k) expect(receipts[k].status == ReceiptStatus::stored, "not stored: " + receipts[k].reason);
            expect(receipts[10].status != ReceiptStatus::refused, "refused: " + receipts[10].reason);
            expect(m.find(events[0].id).has_value(), "recorded, and not found");
            do_something(m, random());
        }
    }
}

// Two threads with a Meter of their own each. What went wrong, if anything.
std::string work(const std::string& path, const std::string& name, const Choices& choices, std::uint64_t seed) {
    std::array<std::string, 2> faults;
    std::vector<std::thread> threads;
    for (std::size_t t = 0; t < faults.size(); ++t) {
        threads.emplace_back([&, t] {
            try {
                live(path, name + std::to_string(t), choices.turns, seed + t);
            } catch (const std::exception& fault) {
                faults[t] = fault.what();
            }
        });
    }
    for (std::thread& thread : threads) thread.join();
    return faults[0] + faults[1];
}

void one_round(const Choices& choices, std::uint64_t seed) {
    const auto folder = choices.folder / ("meter_stress_" + std::to_string(::getpid()) + "_" + std::to_string(seed));
    std::filesystem::create_directories(folder);
    const std::string path = (folder / "usage.db").string();
    std::vector<pid_t> children;
    for (int i = 0; i < choices.processes; ++i) {
        const pid_t child = ::fork();
        if (child == 0) {
            const std::string fault =
                work(path, std::string(1, static_cast<char>('a' + i)), choices, seed * 1000 + static_cast<std::uint64_t>(2 * i));
            if (!fault.empty()) std::cerr << "process " << i << ": " << fault << std::endl;
            ::_exit(fault.empty() ? 0 : 1);
        }
        children.push_back(child);
    }
    int failed = 0;
    for (const pid_t child : children) {
        int status = 0;
        ::waitpid(child, &status, 0);
        if (!WIFEXITED(status) || WEXITSTATUS(status) != 0) ++failed;
    }
    expect(failed == 0, std::to_string(failed) + " processes failed");
    Meter m(options_for(path));
    const std::vector<std::string> problems = m.verify();
    expect(problems.empty(), problems.empty() ? "" : problems[0]);
    const std::int64_t expected = std::int64_t{choices.turns} * 3 * (choices.processes * 2 * 10 + 1),
                       found = m.list({.limit = 1, .count = true}).total.value();
    expect(found == expected, std::to_string(found) + " events in the log, " + std::to_string(expected) + " recorded");
    std::filesystem::remove_all(folder);
}

}  // namespace

int main(int count, char** arguments) {
    Choices choices;
    for (int i = 1; i + 1 < count; i += 2) {
        const std::string option = arguments[i], value = arguments[i + 1];
        if (option == "--rounds") choices.rounds = std::stoi(value);
        if (option == "--processes") choices.processes = std::stoi(value);
        if (option == "--turns") choices.turns = std::stoi(value);
        if (option == "--seed") choices.seed = std::stoull(value);
        if (option == "--folder") choices.folder = value;
    }
    choices.seed %= 1'000'000'000;
    for (int round = 0; round < choices.rounds; ++round) {
        try {
            one_round(choices, choices.seed + static_cast<std::uint64_t>(round));
        } catch (const std::exception& fault) {
            std::cerr << "FAILED in round " << round << " of seed " << choices.seed << ": " << fault.what() << std::endl;
            return 1;
        }
    }
    std::cout << choices.rounds << " rounds of " << choices.processes << " processes passed (seed " << choices.seed << ")\n";
    return 0;
}
