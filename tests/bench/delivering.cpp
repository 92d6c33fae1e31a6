// Draining a log through libcurl to a server on loopback, beside the plainest loop that does the same, and the memory it takes.
#include "fixtures.hpp"
#include "references.hpp"

#ifdef METER_CURL
#include <curl/curl.h>
#include <sqlite3.h>

#include "../support/server.hpp"
#endif

namespace bench {

namespace {

#ifdef METER_CURL

using meter::Meter;
using meter::Upstream;

constexpr double mebibyte = 1024 * 1024;

// Takes what it is given, as Lago does: the answer holds as many events as the request.
support::Reply take(const support::Request& request) {
    constexpr std::string_view key = "\"transaction_id\"";
    std::size_t events = 0;
    for (std::size_t at = 0; (at = request.body.find(key, at)) != std::string::npos; at += key.size()) ++events;
    std::string body = "{\"events\":[";
    for (std::size_t i = 0; i < events; ++i) body += i == 0 ? "{}" : ",{}";
    return {.body = body + "]}"};
}

struct Sink {
    support::Server server{take};
    Sink() { server.keep_requests = false; }
};

// A queue as one would write it in an afternoon: a table of JSON texts; SELECT, POST, DELETE.
class Queue {
public:
    Queue(const std::string& path, std::int64_t events) {
        if (sqlite3_open(path.c_str(), &db_) != SQLITE_OK) throw std::runtime_error("cannot open " + path);
        run("PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL; CREATE TABLE queue(id INTEGER PRIMARY KEY, event TEXT); BEGIN");
        sqlite3_stmt* insert = prepare("INSERT INTO queue(event) VALUES(?)");
        const Workload workload(events);
        for (std::int64_t i = 0; i < events; ++i) {
            const Sample sample = workload.sample(i);
            const std::string text = "{\"transaction_id\":\"" + sample.id() + "\",\"code\":\"" + name_text(sample.name) +
                                     "\",\"timestamp\":\"1772362800.007\",\"properties\":" + sample.properties() + "}";
            sqlite3_bind_text(insert, 1, text.c_str(), -1, SQLITE_TRANSIENT);
            sqlite3_step(insert);
            sqlite3_reset(insert);
        }
        sqlite3_finalize(insert);
        run("COMMIT");
    }
    Queue(const Queue&) = delete;
    Queue& operator=(const Queue&) = delete;
    ~Queue() { sqlite3_close(db_); }

    void drain(const std::string& url, int batch) {
        sqlite3_stmt* select = prepare("SELECT id, event FROM queue ORDER BY id LIMIT ?");
        sqlite3_stmt* remove = prepare("DELETE FROM queue WHERE id <= ?");
        CURL* curl = curl_easy_init();
        curl_slist* headers = curl_slist_append(curl_slist_append(nullptr, "Content-Type: application/json"), "Expect:");
        for (std::int64_t last = -1; last != 0;) {
            last = 0;
            std::string body = "{\"events\":[", answer;
            sqlite3_bind_int(select, 1, batch);
            while (sqlite3_step(select) == SQLITE_ROW) {
                if (last != 0) body += ',';
                last = sqlite3_column_int64(select, 0);
                body += reinterpret_cast<const char*>(sqlite3_column_text(select, 1));
            }
            sqlite3_reset(select);
            if (last == 0) break;
            body += "]}";
            post(curl, headers, url, body, answer);
            sqlite3_bind_int64(remove, 1, last);
            sqlite3_step(remove);
            sqlite3_reset(remove);
        }
        curl_slist_free_all(headers);
        curl_easy_cleanup(curl);
        sqlite3_finalize(select);
        sqlite3_finalize(remove);
    }

private:
    static std::size_t keep(char* data, std::size_t size, std::size_t count, void* answer) {
        static_cast<std::string*>(answer)->append(data, size * count);
        return size * count;
    }
    static void post(CURL* curl, curl_slist* headers, const std::string& url, const std::string& body, std::string& answer) {
        curl_easy_setopt(curl, CURLOPT_URL, url.c_str());
        curl_easy_setopt(curl, CURLOPT_HTTPHEADER, headers);
        curl_easy_setopt(curl, CURLOPT_POSTFIELDS, body.data());
        curl_easy_setopt(curl, CURLOPT_POSTFIELDSIZE, static_cast<long>(body.size()));
        curl_easy_setopt(curl, CURLOPT_WRITEFUNCTION, keep);
        curl_easy_setopt(curl, CURLOPT_WRITEDATA, &answer);
        if (curl_easy_perform(curl) != CURLE_OK) throw std::runtime_error("the reference could not send");
    }
    void run(const char* sql) {
        if (sqlite3_exec(db_, sql, nullptr, nullptr, nullptr) != SQLITE_OK) throw std::runtime_error(sqlite3_errmsg(db_));
    }
    sqlite3_stmt* prepare(const char* sql) {
        sqlite3_stmt* statement = nullptr;
        if (sqlite3_prepare_v2(db_, sql, -1, &statement, nullptr) != SQLITE_OK) throw std::runtime_error(sqlite3_errmsg(db_));
        return statement;
    }
    sqlite3* db_ = nullptr;
};

void fill(Meter& meter, std::int64_t events) {
    constexpr std::int64_t commit = 10'000;
    const Workload workload(events);
    std::vector<meter::Event> batch;
    for (std::int64_t at = 0; at < events; at += commit) {
        workload.fill(batch, at, static_cast<std::size_t>(std::min(commit, events - at)));
        meter.record(batch);
    }
}

std::int64_t flush_all(Meter& meter, const std::string& url, int batch) {
    meter.connect(Upstream::lago({.api_key = "key", .base_url = url, .batch_events = batch}));
    return meter.flush({.deadline = std::chrono::minutes(30)}).upstreams.at(0).delivered;
}

void measure_drain(Fixtures& fixtures, int batch) {
    constexpr std::int64_t events = 100'000;
    const Sink sink;
    std::vector<double> ours_cpu, theirs_cpu;
    const auto clocked = [](std::vector<double>& cpu, auto&& work) {
        const double before = all_cpu(), took = timed(work);
        cpu.push_back(all_cpu() - before);
        return took;
    };
    const auto ours = [&] {
        const std::string path = fixtures.path("drain.db");
        double took = 0;
        {
            Meter meter({.path = path, .durability = meter::Durability::process});
            fill(meter, events);
            std::this_thread::sleep_for(std::chrono::seconds(1));  // for the sealing that recording left behind
            took = clocked(ours_cpu, [&] {
                if (flush_all(meter, sink.server.url(), batch) != events) throw std::runtime_error("not all were delivered");
            });
        }
        remove_database(path);
        return took;
    };
    const auto theirs = [&] {
        const std::string path = fixtures.path("queue.db");
        double took = 0;
        {
            Queue queue(path, events);
            took = clocked(theirs_cpu, [&] { queue.drain(sink.server.url() + "/api/v1/events/batch", batch); });
        }
        remove_database(path);
        return took;
    };
    const Pairs pairs = alternate(fixtures.options.rounds, ours, theirs);
    const double number = static_cast<double>(events);
    say("drain_%d: meter %.0f events/s (CPU %.2f us), select-post-delete %.0f events/s (CPU %.2f us, the server's included)\n", batch,
        number / median(pairs.a), median(ours_cpu) / number * 1e6, number / median(pairs.b), median(theirs_cpu) / number * 1e6);
    bar("drain_" + std::to_string(batch), pairs.ratio(), Better::higher, 0.5);
}

void measure_memory(Fixtures& fixtures) {
    constexpr std::int64_t events = 1'000'000;
    const Sink sink;
    auto found = run_child({"drain", fixtures.log(events), sink.server.url()});
    say("drain_memory: %.0f pending events, peak %.1f MiB (%.1f before opening)\n", found["delivered"], found["peak"] / mebibyte,
        found["before"] / mebibyte);
    if (found["delivered"] < static_cast<double>(events)) throw std::runtime_error("not all were delivered");
    bar("drain_memory_MiB", found["peak"] / mebibyte, Better::lower, 32);
}

#endif

}  // namespace

int delivery_child([[maybe_unused]] const std::vector<std::string>& arguments) {
#ifdef METER_CURL
    std::printf("before %.0f\n", process_memory()["now"]);
    Meter meter({.path = arguments.at(1)});
    const std::int64_t delivered = flush_all(meter, arguments.at(2), 0);
    std::printf("delivered %lld\npeak %.0f\n", static_cast<long long>(delivered), process_memory()["peak"]);
    return 0;
#else
    return 2;
#endif
}

std::vector<Measurement> delivery_measurements([[maybe_unused]] Fixtures& fixtures) {
#ifdef METER_CURL
    return {{"drain_100", "100,000 events to a loopback server, 100 in a request", [&fixtures] { measure_drain(fixtures, 100); }},
            {"drain_1000", "the same, 1,000 in a request", [&fixtures] { measure_drain(fixtures, 1000); }},
            {"drain_memory", "peak memory of a process that drains 1M events", [&fixtures] { measure_memory(fixtures); }}};
#else
    return {};
#endif
}

}  // namespace bench
