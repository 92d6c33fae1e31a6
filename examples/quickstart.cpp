// quickstart: one round of an app's life with meter. Usage events are recorded while nothing listens at the other end, totalled and priced
// from the local database, and delivered when the link returns. SPDX-License-Identifier: MIT
//
//     quickstart                                        a month of sample events, delivered to a stand-in for Lago in this program
//     quickstart my.jsonl --url https://api.getlago.com --api-key KEY
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <fstream>
#include <iostream>
#include <map>
#include <optional>
#include <sstream>
#include <string>
#include <string_view>
#include <vector>

#include "lago_standin.hpp"
#include "meter.hpp"

#ifndef QUICKSTART_DATA
#define QUICKSTART_DATA "examples/data"
#endif

using namespace meter;
using namespace std::chrono_literals;

namespace {

// --- options ---------------------------------------------------------------------------------------

constexpr std::string_view help = R"(usage: quickstart [options] [FILE]

Records the usage events of FILE without a network, shows daily totals and what they
cost, then delivers them. FILE holds one JSON object a line, "-" is standard input:
  {"name": "api_call", "customer": "acme", "subscription": "sub_1",
   "timestamp": "2026-01-05T11:30:00Z", "id": "any-unique-text", "properties": {"tokens": 512}}
Only the name is required. Without FILE a month of sample events is used.

  --database FILE    where events are kept              (default: quickstart.db)
  --plan FILE        prices, as Lago's API shows a plan (default: the sample's)
  --url URL          a real Lago, https://api.getlago.com for example;
                     without it, a stand-in inside this program
  --api-key KEY      the key for it                     (default: $LAGO_API_KEY)
  --standin FILE     where the stand-in keeps what it receives (default: in memory)
  --help             this text

Exit status: 0 when every event was delivered, 1 when something is left to do, 2 for a wrong call.
)";

constexpr const char* standin_key = "the-key-of-the-stand-in";

struct Options {
    std::string events = QUICKSTART_DATA "/usage.jsonl";
    std::string plan = QUICKSTART_DATA "/plan.json";
    std::string database = "quickstart.db";
    std::string url, api_key, standin;
    bool help = false;
};

/// Something the person at the keyboard has to change; the text says what.
struct WrongCall {
    std::string text;
};

Options parse(const std::vector<std::string>& arguments) {
    Options options;
    if (const char* key = std::getenv("LAGO_API_KEY")) options.api_key = key;
    const std::map<std::string, std::string*> named{{"--database", &options.database},
                                                    {"--plan", &options.plan},
                                                    {"--url", &options.url},
                                                    {"--api-key", &options.api_key},
                                                    {"--standin", &options.standin}};
    int files = 0;
    for (std::size_t i = 0; i < arguments.size(); ++i) {
        const std::string& argument = arguments[i];
        if (const auto option = named.find(argument); option != named.end()) {
            if (++i == arguments.size()) throw WrongCall{argument + " needs a value after it"};
            *option->second = arguments[i];
        } else if (argument == "--help" || argument == "-h") {
            options.help = true;
        } else if (argument.starts_with("-") && argument != "-") {
            throw WrongCall{"there is no option " + argument};
        } else if (++files > 1) {
            throw WrongCall{"one FILE at most, but there is also " + argument};
        } else {
            options.events = argument;
        }
    }
    if (!options.url.empty() && options.api_key.empty()) throw WrongCall{"--url needs --api-key KEY (or LAGO_API_KEY in the environment)"};
    return options;
}

// --- recording -------------------------------------------------------------------------------------

struct Recorded {
    std::size_t stored = 0, known = 0, refused = 0;
    std::size_t all() const { return stored + known + refused; }
};

/// Lines of the input, a few hundred at a time: each chunk is one transaction, and on disk before the next is read.
class Recorder {
public:
    Recorder(Meter& meter, std::string source) : meter_(meter), source_(std::move(source)) {}

    void add(std::size_t number, const std::string& line) {
        if (line.find_first_not_of(" \t\r") == std::string::npos) return;
        text_ += line + "\n";
        numbers_.push_back(number);
        if (numbers_.size() == 250) store();
    }

    Recorded finish() {
        store();
        return recorded_;
    }

private:
    void store() {
        const std::vector<Receipt> receipts = meter_.record_json(text_);
        for (std::size_t i = 0; i < receipts.size(); ++i) count(receipts[i], numbers_.at(i));
        text_.clear();
        numbers_.clear();
    }

    void count(const Receipt& receipt, std::size_t number) {
        switch (receipt.status) {
            case ReceiptStatus::stored:
                ++recorded_.stored;
                return;
            case ReceiptStatus::duplicate:
                ++recorded_.known;
                return;
            case ReceiptStatus::conflict:
            case ReceiptStatus::refused:
            case ReceiptStatus::over_limit:
                break;
        }
        ++recorded_.refused;
        std::cerr << source_ << ":" << number << ": not recorded: " << (receipt.field.empty() ? "" : receipt.field + ": ") << receipt.reason << "\n";
    }

    Meter& meter_;
    std::string source_, text_;
    std::vector<std::size_t> numbers_;
    Recorded recorded_;
};

Recorded record(Meter& meter, const std::string& path) {
    std::ifstream file;
    if (path != "-") file.open(path, std::ios::binary);
    std::istream& in = path == "-" ? std::cin : file;
    Recorder recorder(meter, path == "-" ? "standard input" : path);
    std::size_t number = 0;
    for (std::string line; std::getline(in, line);) recorder.add(++number, line);
    if (!in.eof()) throw WrongCall{path + " cannot be read; give a file of usage events, or - for standard input"};
    const Recorded recorded = recorder.finish();
    if (recorded.all() == 0) throw WrongCall{path + " holds no events; it should have one JSON object a line"};
    return recorded;
}

// --- totals ----------------------------------------------------------------------------------------

std::string right(const std::string& text, std::size_t width) { return std::string(width - std::min(width, text.size()), ' ') + text; }

/// The book's metric for events of that name, or a plain count.
Metric metric_for(const std::string& name, const std::vector<Metric>& known) {
    const auto same = [&](const Metric& metric) { return (metric.event.empty() ? metric.code : metric.event) == name; };
    const auto found = std::find_if(known.begin(), known.end(), same);
    return found == known.end() ? Metric{.code = name} : *found;
}

std::string title(const Metric& metric) {
    const std::size_t path = metric.property.starts_with("properties.") ? std::string_view("properties.").size() : 0;
    return metric.code + " (" + (metric.property.empty() ? "count" : metric.property.substr(path)) + ")";
}

/// A column for each of the most frequent names, a row a day, and the first column drawn as bars.
void print_daily_totals(const Meter& meter) {
    std::vector<Metric> columns;
    for (const NameInfo& info : meter.list_names({.sort = {{"occurrences", true}}, .limit = 4}).rows)
        columns.push_back(metric_for(info.name, meter.metrics()));
    std::map<Timestamp, std::vector<Decimal>> days;
    for (std::size_t i = 0; i < columns.size(); ++i) {
        for (const AggregateRow& row : meter.aggregate(columns[i], {.bin = Bin::day}).rows) {
            auto& values = days[row.bin.value()];
            values.resize(columns.size());
            values[i] = row.value;
        }
    }
    if (days.empty()) return;
    while (days.size() > 31) days.erase(days.begin());

    const auto less = [](const auto& a, const auto& b) { return a.second.front() < b.second.front(); };
    const double highest = std::max_element(days.begin(), days.end(), less)->second.front().to_double();
    std::cout << "\nDaily totals (UTC), " << columns.front().code << " as bars\n\n" << right("day", 10);
    for (const Metric& column : columns) std::cout << "  " << right(title(column), 18);
    std::cout << "\n";
    for (const auto& [day, values] : days) {
        std::cout << day.to_string().substr(0, 10);
        for (const Decimal& value : values) std::cout << "  " << right(value.to_string(), 18);
        const double share = highest > 0 ? std::max(0.0, values.front().to_double() / highest) : 0;
        std::cout << "  " << std::string(static_cast<std::size_t>(share * 40 + 0.5), '#') << "\n";
    }
}

// --- prices ----------------------------------------------------------------------------------------

Book read_plan(const std::string& path) {
    std::ifstream file(path);
    std::ostringstream text;
    if (!(text << file.rdbuf())) throw WrongCall{path + " cannot be read; give a plan with --plan FILE"};
    try {
        return Book::lago(json::parse(text.str()));
    } catch (const json::parse_error& error) {
        throw WrongCall{path + " is not JSON: " + error.what()};
    } catch (const Error& error) {
        throw WrongCall{path + " is not a plan of Lago's: " + error.what()};
    }
}

/// The subscription's bill for the month of its latest event, and what one more event like it would cost.
void print_prices(const Meter& meter) {
    for (const NameInfo& info : meter.list_names({.sort = {{"occurrences", true}}, .limit = 1}).rows) {
        const Event latest = meter.list({.names = {info.name}, .limit = 1}).events.at(0);
        const Period month = this_month(latest.timestamp.value());
        try {
            std::cout << "\n"
                      << (latest.subscription.empty() ? "no subscription" : latest.subscription) << ", " << month.from.to_string().substr(0, 7)
                      << "\n\n";
            std::cout << meter.usage({.subscription = latest.subscription, .period = month}).to_text();
            std::cout << "\nOne more " << latest.name << " like the latest, " << latest.properties.dump() << "\n\n";
            std::cout << meter.estimate_fees(latest).to_text();
        } catch (const Error& error) {
            std::cout << "No price: " << error.what() << ". The plan may not know this subscription or event; give yours with --plan FILE.\n";
        }
    }
}

// --- delivery --------------------------------------------------------------------------------------

std::string describe(const UpstreamStatus& status) {
    switch (status.state) {
        case UpstreamState::idle:
            return "nothing is pending";
        case UpstreamState::pending:
            return "more can be sent; run again";
        case UpstreamState::busy:
            return "another process is delivering";
        case UpstreamState::paused:
            return "paused: " + status.reason + "; check --url and --api-key, then run again";
        case UpstreamState::waiting:
            break;
    }
    return "waiting: " + status.reason + (status.next_attempt ? "; next attempt " + status.next_attempt->to_string(0) : "");
}

void print_progress(const FlushProgress& progress) {
    const std::int64_t done = progress.delivered + progress.parked, all = done + progress.pending;
    const auto filled = static_cast<std::size_t>(all > 0 ? done * 40 / all : 40);
    std::cout << "\r[" << std::string(filled, '#') << std::string(40 - filled, ' ') << "] " << done << " of " << all << std::flush;
}

FlushReport deliver(Meter& meter) {
    const bool terminal = ::isatty(STDOUT_FILENO) == 1;
    FlushReport report = meter.flush({.deadline = 60s, .progress = terminal ? print_progress : nullptr});
    if (terminal) std::cout << "\n";
    return report;
}

void print_report(const FlushReport& report) {
    for (const UpstreamReport& upstream : report.upstreams) {
        std::cout << upstream.status.name << ": " << upstream.delivered << " delivered (" << upstream.duplicates << " were there already), "
                  << upstream.parked << " parked, " << upstream.pending << " pending; " << upstream.requests << " requests, " << upstream.bytes
                  << " bytes, " << upstream.duration.count() << " ms; " << describe(upstream.status) << "\n";
    }
}

/// Every recorded event has exactly one of three names. Answers whether all is delivered.
bool print_balance(const Meter& meter, const std::string& upstream) {
    for (const Parked& parked : meter.parked(upstream, 10)) {
        std::cout << "parked " << parked.event.id << ": " << parked.reason << " (" << parked.status << " " << parked.text << ")\n";
    }
    const Balance balance = meter.balance(upstream);
    std::cout << "recorded " << balance.recorded << " = delivered " << balance.delivered << " + pending " << balance.pending << " + parked "
              << balance.parked << (balance.holds() ? "" : "   DOES NOT HOLD") << "\n";
    return balance.holds() && balance.delivered == balance.recorded;
}

// --- main ------------------------------------------------------------------------------------------

void connect(Meter& meter, const Options& options, const std::optional<LagoStandin>& standin) {
    if (standin) {
        meter.connect(Upstream::lago({.api_key = standin_key, .base_url = standin->url()}));
        return;
    }
    try {
        meter.connect(Upstream::lago({.api_key = options.api_key, .base_url = options.url}));
    } catch (const Error& error) {
        if (error.code() != ErrorCode::bad_value) throw;
        throw WrongCall{"--url " + options.url + " " + error.reason()};
    }
}

int run(const Options& options) {
    std::optional<LagoStandin> standin;
    if (options.url.empty()) standin.emplace(standin_key, options.standin);

    Meter meter({.path = options.database});
    meter.load(read_plan(options.plan));
    connect(meter, options, standin);

    const Recorded recorded = record(meter, options.events);
    std::cout << options.events << ": " << recorded.stored << " events stored, " << recorded.known << " known already, " << recorded.refused
              << " refused; kept in " << options.database << "\n";
    if (standin) {
        std::cout << "\nNothing listens yet:\n";
        print_report(meter.flush());
    }
    print_daily_totals(meter);
    print_prices(meter);

    if (standin) {
        std::cout << "\nThe link is back:\n";
        standin->go_online();
        meter.resume("lago");  // an app with time to spare lets the wait run out instead
    } else {
        std::cout << "\nDelivering to " << options.url << ":\n";
    }
    print_report(deliver(meter));
    const bool all_delivered = print_balance(meter, "lago");
    if (standin) std::cout << "the stand-in holds " << standin->stored() << " events\n";
    return all_delivered && recorded.refused == 0 ? 0 : 1;
}

/// What to do about it, where that is not plain from the error itself.
std::string advice(const Error& error) {
    switch (error.code()) {
        case ErrorCode::not_a_database:
        case ErrorCode::newer_schema:
        case ErrorCode::corrupt:
        case ErrorCode::read_only:
            return "; choose another file with --database";
        case ErrorCode::full:
            return "; make room on the disk, then run again: what was stored stays stored";
        case ErrorCode::busy:
            return "; another program holds the database, run again when it is done";
        case ErrorCode::unsupported:
            return "; install libcurl's development files and build again with METER_CURL=ON";
        default:
            return "";
    }
}

}  // namespace

int main(int argc, char** argv) {
    try {
        const Options options = parse(std::vector<std::string>(argv + 1, argv + argc));
        if (options.help) {
            std::cout << help;
            return 0;
        }
        return run(options);
    } catch (const WrongCall& wrong) {
        std::cerr << "quickstart: " << wrong.text << "\nquickstart --help shows what it takes.\n";
        return 2;
    } catch (const Error& error) {
        std::cerr << "quickstart: " << error.what() << advice(error) << "\n";
    } catch (const std::exception& error) {
        std::cerr << "quickstart: " << error.what() << "\n";
    }
    return 1;
}
