// Random faults on both sides of delivery: servers that break before or after storing, flushing processes killed at random points, two of
// them at a time on one file while a third records. Whatever happens, at the end every event is at the server exactly once, or parked.
//
//   flush_random [--runs N] [--seed S]      each run prints its seed; the same seed makes the same choices
#include <signal.h>
#include <sys/wait.h>

#include <cstdio>
#include <cstring>
#include <random>

#include "../support/vendors.hpp"
#include "meter.hpp"

using namespace meter;
using namespace std::chrono_literals;
using support::Fault;
using support::Reply;

namespace {

const std::vector<std::string> vendor_names = {"lago", "flexprice", "polar", "autumn", "openmeter", "zyg"};

Upstream make_upstream(const std::string& vendor, const std::string& url, std::chrono::milliseconds timeout = 400ms) {
    UpstreamOptions options;
    options.api_key = "k";
    options.base_url = url;
    options.request_timeout = timeout;
    if (vendor == "lago") return Upstream::lago(options);
    if (vendor == "flexprice") return Upstream::flexprice(options);
    if (vendor == "polar") return Upstream::polar(options);
    if (vendor == "autumn") return Upstream::autumn(options);
    if (vendor == "openmeter") return Upstream::openmeter(options);
    return Upstream::zyg(options);
}

MeterOptions file_options(const std::string& path) {
    return {.path = path, .durability = Durability::process, .busy_timeout = 2min, .random = [] { return std::uint64_t{0}; }};
}

// A process that flushes until it is killed, or for a while.
int flush_as_child(const std::string& path, const std::string& vendor, const std::string& url) {
    Meter m(file_options(path));
    m.connect(make_upstream(vendor, url));
    for (int i = 0; i < 40; ++i) {
        m.resume(vendor);
        m.flush({.deadline = 500ms});
    }
    return 0;
}

struct Run {
    explicit Run(std::uint64_t seed) : random(seed) {}
    std::mt19937_64 random;
    std::size_t below(std::size_t bound) { return random() % bound; }
    bool chance(std::size_t percent) { return below(100) < percent; }
};

Reply random_fault(Run& run, bool stored) {
    static const std::array connection = {Fault::close_silently, Fault::reset,        Fault::half_body,
                                          Fault::reset_mid_body, Fault::never_answer, Fault::slow};
    static const std::array unknown = {500, 502, 504, 408, 200};
    static const std::array refused = {503, 429, 401, 403, 404, 302};
    if (run.chance(50)) return {.body = std::string(200, ' '), .fault = connection[run.below(connection.size())], .pause = 3ms};
    const int status = stored || run.chance(40) ? unknown[run.below(unknown.size())] : refused[run.below(refused.size())];
    return {.status = status, .body = "<html>broken</html>", .headers = {{"Retry-After", "0"}}};
}

std::unique_ptr<support::VendorServer> make_server(const std::string& vendor, const std::set<std::string>& bad) {
    const auto with = [&](auto server) -> std::unique_ptr<support::VendorServer> {
        server->bad = bad;
        return server;
    };
    if (vendor == "lago") return with(std::make_unique<support::LagoServer>());
    if (vendor == "flexprice") return with(std::make_unique<support::FlexpriceServer>());
    if (vendor == "polar") return with(std::make_unique<support::PolarServer>());
    if (vendor == "autumn") return with(std::make_unique<support::AutumnServer>());
    if (vendor == "openmeter") return with(std::make_unique<support::OpenmeterServer>());
    return std::make_unique<support::ZygServer>();
}

pid_t spawn(const char* self, const std::string& path, const std::string& vendor, const std::string& url) {
    const pid_t child = ::fork();
    if (child != 0) return child;
    ::execl(self, self, "--child", path.c_str(), vendor.c_str(), url.c_str(), nullptr);
    ::_exit(127);
}

struct Failure : std::runtime_error {
    using std::runtime_error::runtime_error;
};

void expect(bool condition, const std::string& what) {
    if (!condition) throw Failure(what);
}

std::vector<Event> some_events(std::size_t from, std::size_t count) {
    std::vector<Event> events;
    for (std::size_t i = from; i < from + count; ++i) {
        Event event;
        event.id = "event " + std::to_string(i);
        event.name = "api_call";
        event.customer = "it's";
        event.timestamp = Timestamp::now() - 1h;
        event.properties = {{"n", i}};
        event.notice = Notice{event.id, Severity::info, false};
        events.push_back(std::move(event));
    }
    return events;
}

// Records in this process while two others flush the same file and are killed.
std::size_t rounds(Run& run, const char* self, Meter& m, const std::string& path, const std::string& vendor, support::VendorServer& server) {
    std::size_t made = 0;
    for (int round = 0; round < 6; ++round) {
        std::vector<pid_t> children;
        for (std::size_t i = 0; i <= run.below(2); ++i) children.push_back(spawn(self, path, vendor, server.url()));
        for (int i = 0; i < 4; ++i) {
            const std::size_t count = run.below(60);
            m.record(some_events(made, count));
            made += count;
            expect(m.balance(vendor).holds(), "the balance does not hold while others flush");
            std::this_thread::sleep_for(std::chrono::milliseconds(run.below(60)));
        }
        if (run.chance(25)) {
            server.close();
            server.open();
        }
        for (const pid_t child : children) {
            ::kill(child, SIGKILL);
            ::waitpid(child, nullptr, 0);
        }
        expect(m.balance(vendor).holds(), "the balance does not hold after a kill");
    }
    return made;
}

void one_run(const char* self, std::uint64_t seed) {
    Run run(seed);
    const std::string vendor = vendor_names[run.below(vendor_names.size())];
    const auto folder = std::filesystem::temp_directory_path() / ("meter_random_" + std::to_string(::getpid()) + "_" + std::to_string(seed));
    std::filesystem::create_directories(folder);
    const std::string path = (folder / "usage.db").string();
    std::set<std::string> bad;
    for (std::size_t i = run.below(6); i > 0; --i) bad.insert("event " + std::to_string(run.below(600)));
    const auto server = make_server(vendor, vendor == "zyg" ? std::set<std::string>() : bad);
    const std::size_t trouble = run.below(50);
    Run faults(seed + 1);  // on the server's thread
    server->keep_requests = false;
    server->interfere = [&](const support::Request&, bool stored) -> std::optional<Reply> {
        if (!faults.chance(trouble / 2)) return std::nullopt;
        return random_fault(faults, stored);
    };

    Meter m(file_options(path));
    m.connect(make_upstream(vendor, server->url()));
    const std::size_t made = rounds(run, self, m, path, vendor, *server);
    server->behave();
    m.connect(make_upstream(vendor, server->url(), 60s));
    for (int i = 0; i < 60 && m.balance(vendor).pending > 0; ++i) {
        m.resume(vendor);
        m.flush({.deadline = 60s});
    }

    const Balance b = m.balance(vendor);
    std::printf("  %-9s %2zu %% trouble: recorded %lld, delivered %lld, parked %lld, requests %zu\n", vendor.c_str(), trouble,
                static_cast<long long>(b.recorded), static_cast<long long>(b.delivered), static_cast<long long>(b.parked), server->requests());
    expect(b.holds(), "the balance does not hold");
    expect(b.pending == 0, "events are still pending");
    expect(b.recorded == static_cast<std::int64_t>(made), "events were lost from the log");
    expect(server->doubles() == 0, "an event is at the server twice");
    std::size_t parked_there = 0;
    std::set<std::string> parked;
    for (const Parked& event : m.parked(vendor, 1000)) {
        parked.insert(event.event.id);
        if (server->has(event.event.id)) ++parked_there;
        const bool expected = vendor == "zyg" ? event.reason == "unknown" : bad.count(event.event.id) == 1;
        expect(expected, "parked without cause: " + event.event.id + ": " + event.reason + ": " + event.text);
    }
    expect(server->distinct() == static_cast<std::size_t>(b.delivered) + parked_there, "the server's distinct ids are not those delivered");
    expect(vendor == "zyg" || parked_there == 0, "a parked event is at the server");
    for (std::size_t i = 0; i < made; ++i)
        expect(server->has("event " + std::to_string(i)) || parked.count("event " + std::to_string(i)) == 1, "lost: event " + std::to_string(i));
    std::filesystem::remove_all(folder);
}

}  // namespace

int main(int argc, char** argv) {
    if (argc == 5 && std::strcmp(argv[1], "--child") == 0) return flush_as_child(argv[2], argv[3], argv[4]);
    int runs = 2;
    std::uint64_t seed = std::random_device{}();
    for (int i = 1; i + 1 < argc; i += 2) {
        if (std::strcmp(argv[i], "--runs") == 0) runs = std::atoi(argv[i + 1]);
        if (std::strcmp(argv[i], "--seed") == 0) seed = std::strtoull(argv[i + 1], nullptr, 10);
    }
    for (int i = 0; i < runs; ++i, ++seed) {
        std::printf("seed %llu\n", static_cast<unsigned long long>(seed));
        std::fflush(stdout);
        try {
            one_run("/proc/self/exe", seed);
        } catch (const std::exception& error) {
            std::printf("FAILED with seed %llu: %s\n", static_cast<unsigned long long>(seed), error.what());
            return 1;
        }
    }
    std::printf("%d runs passed\n", runs);
    return 0;
}
