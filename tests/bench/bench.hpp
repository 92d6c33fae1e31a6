// What every file of meter_bench uses: options, clocks, medians, and the printing of bars.
#ifndef METER_BENCH_HPP
#define METER_BENCH_HPP

#include <chrono>
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

namespace bench {

struct Options {
    std::vector<std::int64_t> sizes{1'000'000, 10'000'000};  // of the logs measured: the usual one, and the large one unless left out
    int rounds = 5;
    std::vector<std::string> only{};
    std::string directory{};       // for databases; made, and removed at the end
    std::string duckdb_library{};  // may not exist
    bool asked_for(const std::string& name) const;
};

// Seconds since some moment.
double now();
// CPU time, of this thread and of the whole process.
double own_cpu();
double all_cpu();
double median(std::vector<double> values);
// The value that `share` (0 to 1) of the values do not exceed.
double percentile(std::vector<double> values, double share);

// Seconds that `work` takes.
template <class Work>
double timed(Work&& work) {
    const double begin = now();
    work();
    return now() - begin;
}

// A and B in turn, so that both meet the same weather.
struct Pairs {
    std::vector<double> a{}, b{};
    double ratio() const;  // median of b / a, pair by pair: how many times faster a is
};
Pairs alternate(int rounds, const std::function<double()>& a, const std::function<double()>& b);

enum class Better { higher, lower };

// printf to stdout, at once.
[[gnu::format(printf, 1, 2)]] void say(const char* format, ...);
// One row of the table. The target is met when the value is at least (higher) or at most (lower) that.
void bar(const std::string& name, double measured, Better better, double target);
void skipped(const std::string& name, const std::string& reason);
// Ends with 0 when no bar was short.
int shortfalls();

std::string size_name(std::int64_t events);  // "1M", "200k", "12345"

// One entry of the program: it measures and prints one or more bars whose names begin with its own.
struct Measurement {
    std::string name{};
    std::string what{};
    std::function<void()> run{};
};

}  // namespace bench

#endif
