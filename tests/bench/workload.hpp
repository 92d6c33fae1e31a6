// The events that are recorded: a pure function of their number, about 205 bytes each, as a Meter takes them and as references do.
#ifndef METER_BENCH_WORKLOAD_HPP
#define METER_BENCH_WORKLOAD_HPP

#include <array>
#include <string>
#include <vector>

#include "meter.hpp"

namespace bench {

inline constexpr int names = 20, customers = 1000, users = 100'000;
inline constexpr std::array<const char*, 4> models{"small", "medium", "large", "vision"};
inline constexpr std::array<const char*, 8> regions{"eu-west-1",  "eu-north-1", "us-east-1", "us-west-2",
                                                    "ap-south-1", "ap-east-1",  "sa-east-1", "af-south-1"};
inline constexpr std::array<const char*, 3> statuses{"ok", "retried", "failed"};

std::string name_text(int name);
std::string customer_text(int customer);

struct Sample {
    std::uint64_t id_high = 0, id_low = 0;
    int name = 0, customer = 0, user = 0;
    std::int64_t time = 0;   // microseconds
    std::int64_t cents = 0;  // of the value
    std::int64_t tokens = 0;
    std::int64_t latency = 0;  // hundredths of a millisecond
    std::size_t model = 0, region = 0, status = 0;

    std::string id() const;  // a UUID of version 4
    std::string value() const;
    std::string properties() const;  // JSON text, keys in order as nlohmann/json writes them
    std::string line() const;        // of JSON Lines, without the line's end
    std::string user_text() const;
    std::string raw() const;  // all fields but the properties, as bytes
};

// A log of `events` events over 30 days, times mostly increasing: one in ten is up to an hour late. Numbers past the end go on.
class Workload {
public:
    explicit Workload(std::int64_t events) : events_(events) {}
    Sample sample(std::int64_t number) const;
    // Makes `batch` the events from `first` on, in place: strings and trees that are there are used again.
    void fill(std::vector<meter::Event>& batch, std::int64_t first, std::size_t count) const;
    std::string lines(std::int64_t first, std::int64_t count) const;

    static meter::Period period();
    std::int64_t events() const { return events_; }

private:
    std::int64_t events_;
};

}  // namespace bench

#endif
