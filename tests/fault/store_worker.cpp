// What store_kill runs and kills.
//
//     store_worker record DATABASE ACKS NAME [prune]   records batches until it is killed; each receipt becomes a line of ACKS
//     store_worker replay DATABASE ACKS                records all of ACKS again; prints how many were not duplicates
//     store_worker answers DATABASE                    prints what the library says about the log, as JSON
#include <atomic>
#include <fstream>
#include <iostream>
#include <random>
#include <thread>

#include "../../meter.hpp"

using namespace meter;

namespace {

MeterOptions options(const char* path) {
    MeterOptions made;
    made.path = path;
    made.durability = Durability::process;
    made.busy_timeout = std::chrono::milliseconds(30000);
    made.chunk_events = 64;
    return made;
}

// All of an event follows from its id, so that it can be recorded again.
Event event_of(const std::string& id) {
    const int n = std::stoi(id.substr(id.find('-') + 1));
    Event event{.id = id, .name = "name" + std::to_string(n % 3), .customer = "c" + std::to_string(n % 7)};
    event.timestamp = Timestamp::parse("2026-01-01") + std::chrono::seconds(n);
    event.properties = {{"n", n}, {"model", "m" + std::to_string(n % 5)}};
    return event;
}

int record(const char* path, const char* acks, const std::string& name, bool prune) {
    Meter m(options(path));
    std::ofstream out(acks, std::ios::app);
    std::mt19937 random(std::random_device{}());
    std::thread other([&m, prune] {  // killed with the rest
        for (;;) {
            m.aggregate({.code = "name0", .aggregation = Aggregation::sum, .property = "n"}, {.group_by = {"model"}});
            m.list({.customer = "c1", .limit = 10});
            if (!prune) continue;
            const Page middle = m.list({.sort = {{"timestamp"}}, .limit = 1, .offset = 300});
            if (!middle.events.empty()) m.prune({.recorded_before = middle.events[0].recorded_at.value()});
            m.compact();
        }
    });
    for (int n = 0;;) {
        std::vector<Event> batch;
        for (auto left = 1 + random() % 40; left > 0; --left) batch.push_back(event_of(name + "-" + std::to_string(n++)));
        std::string lines;
        for (const Receipt& receipt : m.record(batch)) {
            if (receipt.status != ReceiptStatus::stored) std::abort();
            lines += receipt.id + " " + std::to_string(receipt.sequence) + "\n";
        }
        out << lines << std::flush;
    }
}

int replay(const char* path, const char* acks) {
    Meter m(options(path));
    std::ifstream in(acks);
    int others = 0;
    std::vector<Event> batch;
    for (std::string id, sequence; in >> id >> sequence;) batch.push_back(event_of(id));
    for (std::size_t at = 0; at < batch.size(); at += 10000) {
        for (const Receipt& receipt : m.record(std::span(batch).subspan(at, std::min<std::size_t>(10000, batch.size() - at)))) {
            if (receipt.status != ReceiptStatus::duplicate) ++others;
        }
    }
    std::cout << others << "\n";
    return 0;
}

int answers(const char* path) {
    Meter m(options(path));
    json tree = {{"total", m.list({.limit = 1, .count = true}).total.value()}, {"groups", json::object()}, {"problems", m.verify()}};
    for (const NameInfo& name : m.list_names().rows) {
        tree["names"][name.name] = name.occurrences;
        const Metric metric{.code = name.name, .aggregation = Aggregation::sum, .property = "n"};
        for (const AggregateRow& row : m.aggregate(metric, {.group_by = {"model", "customer"}}).rows) {
            tree["groups"][name.name + " " + row.group[0].value() + " " + row.group[1].value()] = {row.value.to_string(), row.events};
        }
    }
    std::cout << tree.dump() << "\n";
    return 0;
}

}  // namespace

int main(int count, char** arguments) {
    const std::string what = count > 2 ? arguments[1] : "";
    try {
        if (what == "record" && count > 4) return record(arguments[2], arguments[3], arguments[4], count > 5);
        if (what == "replay" && count > 3) return replay(arguments[2], arguments[3]);
        if (what == "answers") return answers(arguments[2]);
    } catch (const std::exception& fault) {
        std::cerr << fault.what() << "\n";
        return 1;
    }
    std::cerr << "store_worker record|replay|answers DATABASE ...\n";
    return 2;
}
