// Databases that several measurements share, made when first asked for, in a directory that is removed at the end.
#ifndef METER_BENCH_FIXTURES_HPP
#define METER_BENCH_FIXTURES_HPP

#include <map>
#include <string>
#include <vector>

#include "bench.hpp"
#include "workload.hpp"

namespace bench {

// Events per second of each piece of a growing log: pieces of 100,000, recorded as Event objects and as JSON Lines in turn.
struct Growth {
    static constexpr std::int64_t piece = 100'000, commit = 10'000;
    std::vector<double> objects{}, lines{};
};

class Fixtures {
public:
    explicit Fixtures(Options given);
    ~Fixtures();
    Fixtures(const Fixtures&) = delete;
    Fixtures& operator=(const Fixtures&) = delete;

    std::string path(const std::string& name) const { return options.directory + "/" + name; }
    // A closed log of that many events, recorded piece by piece, and how fast that went.
    std::string log(std::int64_t events);
    const Growth& growth(std::int64_t events);
    std::int64_t usual() const { return options.sizes.front(); }

    const Options options;

private:
    std::map<std::int64_t, Growth> logs_;
};

// Runs this program again for one thing alone, and answers the numbers it prints as "key value" lines.
std::map<std::string, double> run_child(const std::vector<std::string>& arguments);
// The children's side: the process's own figures, in bytes.
std::map<std::string, double> process_memory();  // now, peak
std::map<std::string, double> process_writes();  // write calls, storage

// The measurements of each file.
std::vector<Measurement> recording_measurements(Fixtures& fixtures);
std::vector<Measurement> storage_measurements(Fixtures& fixtures);
std::vector<Measurement> question_measurements(Fixtures& fixtures);
std::vector<Measurement> page_measurements(Fixtures& fixtures);
std::vector<Measurement> acknowledge_measurements(Fixtures& fixtures);
std::vector<Measurement> delivery_measurements(Fixtures& fixtures);
std::vector<Measurement> fee_measurements(Fixtures& fixtures);
// What run_child may be asked to do; 0 when done.
int storage_child(const std::vector<std::string>& arguments);
int delivery_child(const std::vector<std::string>& arguments);

}  // namespace bench

#endif
