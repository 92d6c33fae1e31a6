// meter_golden FILE...: runs vector files, numbers that the vendors' own tests assert. Prints a line for each vector that fails,
// the kinds that were skipped, and "N passed, N failed, N skipped"; ends with an error when any failed or a file is not what it should be.
#include "../../meter.cpp"

#include "../plain_usage.hpp"
#include "golden.hpp"
#include "log.hpp"

#include "autumn.hpp"
#include "flexprice.hpp"
#include "flexprice_reading.hpp"
#include "lago.hpp"
#include "lago_reading.hpp"
#include "polar.hpp"
#include "polar_reading.hpp"
#include "time.hpp"

#include "autumn_reading.hpp"

#include "autumn_list.hpp"
#include "flexprice_list.hpp"

#include <cstdio>
#include <fstream>
#include <iostream>
#include <map>

namespace golden {

/// The tables of all adapters.
const std::vector<Vendor>& vendors() {
    static const std::vector<Vendor> all{lago_pricing(), flexprice_pricing(), polar_pricing(), autumn_pricing(), autumn_time(),  flexprice_time(),
                                         polar_reads(),  flexprice_reads(),   lago_reads(),    autumn_reads(),   autumn_lists(), flexprice_lists()};
    return all;
}

struct Tally {
    int passed = 0, failed = 0;
    std::map<std::string, int> skipped;
};

std::string text_of(const json& value) { return value.is_string() ? value.get<std::string>() : value.dump(); }

/// Numbers count by value, however they are written.
bool same_value(const json& expected, const json& got) {
    if (expected.type() == got.type() && expected == got) return true;
    if (expected.is_structured() || got.is_structured() || expected.is_null() || got.is_null()) return false;
    const auto a = Decimal::parse(text_of(expected)), b = Decimal::parse(text_of(got));
    return a && b && *a == *b;
}

/// The number under a rule of `compare`: how near it must be, or what to do with ours first. Of a list each.
bool agrees(const json& expected, const json& got, const json& rule) {
    if (expected.is_array() && got.is_array()) {
        return std::equal(expected.begin(), expected.end(), got.begin(), got.end(),
                          [&](const json& theirs, const json& ours) { return agrees(theirs, ours, rule); });
    }
    const auto a = Decimal::parse(text_of(expected)), b = Decimal::parse(text_of(got));
    if (!a || !b) return same_value(expected, got);
    if (rule.contains("tolerance")) return (*a - *b).abs() <= Decimal::from_json(rule.at("tolerance"));
    if (!rule.contains("round")) return *a == *b;
    const auto mode = rule.value("mode", "half_up") == "ceil" ? meter::Rounding::ceil : meter::Rounding::half_up;
    return *a == b->round(rule.at("round").get<int>(), mode);
}

/// Every member that is expected is there and equal; lists are equal in length too.
bool matches(const json& expected, const json& got, const json& compare) {
    if (expected.is_object() && got.is_object()) {
        return std::all_of(expected.items().begin(), expected.items().end(), [&](const auto& member) {
            if (!got.contains(member.key())) return false;
            const auto& ours = got.at(member.key());
            return compare.contains(member.key()) ? agrees(member.value(), ours, compare.at(member.key())) : matches(member.value(), ours, compare);
        });
    }
    if (expected.is_array() && got.is_array()) {
        return std::equal(expected.begin(), expected.end(), got.begin(), got.end(),
                          [&](const json& ours, const json& theirs) { return matches(ours, theirs, compare); });
    }
    return same_value(expected, got);
}

/// Where a vendor's documents disagree with its code, the vector says what the code does beside it, and the code is the judge.
json judged(json expected) {
    constexpr std::string_view suffix = "_by_code";
    json by_code = json::object();
    for (const auto& [key, value] : expected.items()) {
        if (key.ends_with(suffix)) by_code[key] = value;
    }
    for (const auto& [key, value] : by_code.items()) {
        expected[key.substr(0, key.size() - suffix.size())] = value;
        expected.erase(key);
    }
    return expected;
}

std::string kind_of(const json& vector) {
    if (vector.contains("kind")) return vector.at("kind").get<std::string>();
    if (vector.contains("aggregation")) return "aggregation " + vector.at("aggregation").at("type").get<std::string>();
    return vector.at("model").get<std::string>();
}

/// That of the name, else the vendor's for any other name.
const Kind* find_kind(const std::string& system, const std::string& name) {
    const std::string_view any = name.starts_with("aggregation ") ? "aggregation *" : "*";
    for (const std::string_view wanted : {std::string_view(name), any}) {
        for (const auto& vendor : vendors()) {
            if (vendor.system != system) continue;
            for (const auto& kind : vendor.kinds) {
                if (kind.name == wanted) return &kind;
            }
        }
    }
    return nullptr;
}

json run(const Kind& kind, const json& vector) {
    try {
        return kind.run(vector);
    } catch (const meter::Error& error) {
        return {{"error", error.what()}, {"field", error.field()}, {"reason", error.reason()}};
    } catch (const std::exception& error) {
        return {{"unreadable", error.what()}};
    }
}

void judge(const Kind& kind, const json& vector, Tally& tally) {
    const auto got = run(kind, vector);
    const auto expected = judged(vector.at("expected"));
    if (matches(expected, got, vector.value("compare", json::object()))) {
        ++tally.passed;
        return;
    }
    ++tally.failed;
    std::cout << vector.at("id").get<std::string>() << ": expected " << expected.dump() << ", got " << got.dump() << "\n";
}

void run_vector(const json& vector, const std::string& system, Tally& tally) {
    const auto name = kind_of(vector);
    const auto* kind = find_kind(system, name);
    try {
        if (kind) return judge(*kind, vector, tally);
    } catch (const Unknown&) {
        // skipped, as is a kind without an adapter
    }
    ++tally.skipped[system + " " + name];
}

/// A vector without `system` has it at the beginning of its id.
void run_file(const std::string& path, Tally& tally) {
    std::ifstream file(path);
    if (!file) throw std::runtime_error("cannot be read");
    const auto vectors = json::parse(file);
    if (!vectors.is_array()) throw std::runtime_error("is not a list of vectors");
    for (const auto& vector : vectors) {
        const auto id = vector.at("id").get<std::string>();
        run_vector(vector, vector.value("system", id.substr(0, id.find_first_of("-."))), tally);
    }
}

int run_files(const std::vector<std::string>& paths) {
    Tally tally;
    bool broken = paths.empty();
    if (paths.empty()) std::cerr << "usage: meter_golden FILE...\n";
    for (const auto& path : paths) {
        try {
            run_file(path, tally);
        } catch (const std::exception& error) {
            std::cerr << path << ": " << error.what() << "\n";
            broken = true;
        }
    }
    int skipped = 0;
    for (const auto& [kind, count] : tally.skipped) {
        std::cout << "skipped " << kind << ": " << count << "\n";
        skipped += count;
    }
    std::cout << tally.passed << " passed, " << tally.failed << " failed, " << skipped << " skipped\n";
    return broken || tally.failed > 0 ? 1 : 0;
}

}  // namespace golden

int main(int count, char** arguments) { return golden::run_files({arguments + 1, arguments + count}); }
