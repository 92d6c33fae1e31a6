#include "bench.hpp"

#include <time.h>

#include <algorithm>
#include <cstdarg>
#include <cstdio>

namespace bench {

namespace {
int missed = 0;

double read_clock(clockid_t clock) {
    timespec time{};
    clock_gettime(clock, &time);
    return static_cast<double>(time.tv_sec) + static_cast<double>(time.tv_nsec) / 1e9;
}
}  // namespace

bool Options::asked_for(const std::string& name) const { return only.empty() || std::find(only.begin(), only.end(), name) != only.end(); }

double now() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

double own_cpu() { return read_clock(CLOCK_THREAD_CPUTIME_ID); }

double all_cpu() { return read_clock(CLOCK_PROCESS_CPUTIME_ID); }

double median(std::vector<double> values) { return percentile(std::move(values), 0.5); }

double percentile(std::vector<double> values, double share) {
    if (values.empty()) return 0;
    std::sort(values.begin(), values.end());
    return values[static_cast<std::size_t>(share * static_cast<double>(values.size() - 1) + 0.5)];
}

double Pairs::ratio() const {
    std::vector<double> ratios;
    for (std::size_t i = 0; i < a.size(); ++i) ratios.push_back(b[i] / a[i]);
    return median(std::move(ratios));
}

Pairs alternate(int rounds, const std::function<double()>& a, const std::function<double()>& b) {
    Pairs pairs;
    for (int round = 0; round < rounds; ++round) {
        pairs.a.push_back(a());
        pairs.b.push_back(b());
    }
    return pairs;
}

void say(const char* format, ...) {
    std::va_list values;
    va_start(values, format);
    std::vprintf(format, values);
    va_end(values);
    std::fflush(stdout);
}

void bar(const std::string& name, double measured, Better better, double target) {
    const bool met = better == Better::higher ? measured >= target : measured <= target;
    if (!met) ++missed;
    say("bar %s measured %.4g target %s%.4g %s\n", name.c_str(), measured, better == Better::higher ? ">=" : "<=", target, met ? "ok" : "short");
}

void skipped(const std::string& name, const std::string& reason) { say("bar %s skipped: %s\n", name.c_str(), reason.c_str()); }

int shortfalls() { return missed; }

std::string size_name(std::int64_t events) {
    if (events >= 1'000'000 && events % 1'000'000 == 0) return std::to_string(events / 1'000'000) + "M";
    if (events >= 1'000 && events % 1'000 == 0) return std::to_string(events / 1'000) + "k";
    return std::to_string(events);
}

}  // namespace bench
