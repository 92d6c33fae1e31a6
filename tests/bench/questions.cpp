// The same questions to meter and to DuckDB over the same events: answers compared first, then timed in turn.
#include <algorithm>
#include <filesystem>
#include <stdexcept>

#include "duckdb.hpp"
#include "fixtures.hpp"
#include "references.hpp"

namespace bench {

namespace {

using meter::Aggregate;
using meter::Aggregation;
using meter::Bin;
using meter::Filter;
using meter::Meter;
using meter::Metric;

// A question as both understand it. The answers agree row by row: bin in microseconds, groups, value, events.
struct Question {
    std::string name{};
    double target = 0;  // none when 0
    std::function<Aggregate(const Meter&)> ask{};
    std::string sql{};
};

Metric tokens(int name) { return {.code = "tokens", .event = name_text(name), .aggregation = Aggregation::sum, .property = "tokens"}; }

const std::string one = "FROM log WHERE name = '" + name_text(7) + "'";

// Of the log's promises.
std::vector<Question> store_questions() {
    const Metric latency{.code = "latency", .event = name_text(7), .aggregation = Aggregation::sum, .property = "latency_ms"};
    const Metric distinct{.code = "users", .event = name_text(7), .aggregation = Aggregation::unique_count, .property = "user"};
    const Metric all{.aggregation = Aggregation::sum, .property = "tokens"};
    return {
        {"customer_by_day", 10,
         [](const Meter& meter) {
             return meter.aggregate(tokens(7), {.customer = customer_text(42), .period = Workload::period(), .bin = Bin::day});
         },
         "SELECT epoch_us(date_trunc('day', time)), sum(tokens), count(tokens) " + one + " AND customer = '" + customer_text(42) + "' GROUP BY 1"},
        {"name_by_hour", 10, [](const Meter& meter) { return meter.aggregate(tokens(7), {.period = Workload::period(), .bin = Bin::hour}); },
         "SELECT epoch_us(date_trunc('hour', time)), sum(tokens), count(tokens) " + one + " GROUP BY 1"},
        {"name_by_property", 10, [latency](const Meter& meter) { return meter.aggregate(latency, {.group_by = {"region"}}); },
         "SELECT region, sum(latency_ms), count(latency_ms) " + one + " GROUP BY 1"},
        {"unique_count", 3, [distinct](const Meter& meter) { return meter.aggregate(distinct); },
         "SELECT count(DISTINCT user_id), count(user_id) " + one},
        {"filtered_sum", 5,
         [](const Meter& meter) { return meter.aggregate(tokens(7), {.filter = Filter::where("latency_ms", meter::Operator::gte, 1500)}); },
         "SELECT sum(tokens), count(tokens) " + one + " AND latency_ms >= 1500"},
        {"whole_log", 1.5,
         [all](const Meter& meter) {
             return meter.aggregate(all, {.group_by = {"name", "customer"}});
         },
         "SELECT name, customer, sum(tokens), count(tokens) FROM log GROUP BY 1, 2"},
    };
}

Metric of_one(Aggregation aggregation, const std::string& property) {
    return {.code = "one", .event = name_text(7), .aggregation = aggregation, .property = property};
}

// Of one name, all customers, over all of time unless said otherwise.
Question question_of(const std::string& name, double target, const Metric& metric, const meter::AggregateQuery& query, const std::string& sql) {
    return {name, target, [metric, query](const Meter& meter) { return meter.aggregate(metric, query); }, sql};
}

std::vector<Question> aggregation_questions() {
    const meter::AggregateQuery by_region{.group_by = {"region"}};
    const auto of_region = [](const std::string& value) { return "SELECT region, " + value + ", count(latency_ms) " + one + " GROUP BY 1"; };
    Metric average = of_one(Aggregation::average, "latency_ms"), weighted = of_one(Aggregation::weighted_sum, "tokens"),
           peaks = of_one(Aggregation::max, "latency_ms");
    average.rounding = meter::RoundTo{meter::Rounding::half_up, 6};  // DuckDB's is a double
    weighted.rounding = meter::RoundTo{meter::Rounding::floor, 0};
    peaks.bucket = Bin::hour;
    peaks.bucket_group = "region";
    const auto end = std::to_string(Workload::period().to.micros());
    const auto length = std::to_string((Workload::period().to - Workload::period().from).count());
    return {
        question_of("count", 5, of_one(Aggregation::count, ""), {}, "SELECT count(*), count(*) " + one),
        question_of("sum", 5, of_one(Aggregation::sum, "latency_ms"), by_region, of_region("sum(latency_ms)")),
        question_of("average", 5, average, by_region, of_region("round(avg(latency_ms), 6)::DECIMAL(18, 6)")),
        question_of("min", 5, of_one(Aggregation::min, "latency_ms"), by_region, of_region("min(latency_ms)")),
        question_of("max", 5, of_one(Aggregation::max, "latency_ms"), by_region, of_region("max(latency_ms)")),
        question_of("latest", 5, of_one(Aggregation::latest, "latency_ms"), by_region, of_region("arg_max(latency_ms, time)")),
        question_of("active_count", 0, of_one(Aggregation::active_count, "user"), {}, "SELECT count(DISTINCT user_id), count(user_id) " + one),
        question_of("weighted_sum", 0, weighted, {.period = Workload::period()},
                    "SELECT sum(tokens::HUGEINT * (" + end + " - epoch_us(time))) // " + length + ", count(tokens) " + one),
        question_of("bucketed", 0, peaks, {.bin = Bin::day},
                    "SELECT epoch_us(date_trunc('day', hour)), sum(most), sum(events) FROM (SELECT date_trunc('hour', time) AS hour, region, "
                    "max(latency_ms) AS most, count(latency_ms) AS events " +
                        one + " GROUP BY 1, 2) GROUP BY 1"),
    };
}

// Filters with "or", zones, groups.
std::vector<Question> shape_questions() {
    const Metric tokens = of_one(Aggregation::sum, "tokens"), latency = of_one(Aggregation::sum, "latency_ms");
    const Filter any =
        Filter::any({Filter::equals("model", "large"), Filter::equals("region", "eu-west-1"), Filter::where("latency_ms", meter::Operator::lt, 100)});
    const std::string local = "date_trunc('day', timezone('Europe/Paris', timezone('UTC', time)))";
    return {
        question_of("filter_or", 5, tokens, {.filter = any},
                    "SELECT sum(tokens), count(tokens) " + one + " AND (model = 'large' OR region = 'eu-west-1' OR latency_ms < 100)"),
        question_of("zone_days", 5, tokens, {.period = Workload::period(), .bin = Bin::day, .time_zone = "Europe/Paris"},
                    "SELECT epoch_us(timezone('Europe/Paris', " + local + ")), sum(tokens), count(tokens) " + one + " GROUP BY 1"),
        question_of("two_properties", 5, latency, {.group_by = {"model", "region"}},
                    "SELECT model, region, sum(latency_ms), count(latency_ms) " + one + " GROUP BY 1, 2"),
        question_of("top_customers", 5, tokens, {.group_by = {"customer"}, .top = 10},
                    "SELECT CASE WHEN place <= 10 THEN customer END, sum(value), sum(events) FROM (SELECT *, row_number() OVER (ORDER BY value DESC, "
                    "customer) AS place FROM (SELECT customer, sum(tokens) AS value, count(tokens) AS events " +
                        one + " GROUP BY 1)) GROUP BY 1"),
    };
}

std::vector<Question> questions() {
    std::vector<Question> all = store_questions();
    for (auto* more : {aggregation_questions, shape_questions}) {
        for (Question& question : more()) all.push_back(std::move(question));
    }
    return all;
}

std::string plain(const std::string& number) { return meter::Decimal(number).to_string(); }

std::vector<std::string> as_text(const Aggregate& answer) {
    std::vector<std::string> found;
    for (const meter::AggregateRow& row : answer.rows) {
        std::string text = row.bin ? std::to_string(row.bin->micros()) + "|" : "";
        for (const auto& group : row.group) text += group.value_or("") + "|";
        found.push_back(text + row.value.to_string() + "|" + std::to_string(row.events));
    }
    std::sort(found.begin(), found.end());
    return found;
}

std::vector<std::string> as_text(const std::vector<std::vector<std::string>>& rows) {
    std::vector<std::string> found;
    for (const auto& row : rows) {
        std::string text;
        for (std::size_t i = 0; i + 2 < row.size(); ++i) text += row[i] + "|";
        found.push_back(text + plain(row[row.size() - 2]) + "|" + row.back());
    }
    std::sort(found.begin(), found.end());
    return found;
}

void compare(const Question& question, const Meter& meter, DuckDb* duckdb, const std::string& name, int rounds) {
    const auto ask = [&] { return timed([&] { question.ask(meter); }) * 1e3; };
    const std::vector<std::string> ours = as_text(question.ask(meter));  // also warms it
    if (duckdb == nullptr) {
        std::vector<double> spent;
        for (int round = 0; round < rounds; ++round) spent.push_back(ask());
        say("%s: meter %.2f ms, %zu rows\n", name.c_str(), median(spent), ours.size());
        return skipped(name, "no DuckDB");
    }
    if (ours != as_text(duckdb->rows(question.sql))) throw std::runtime_error(name + ": meter and DuckDB do not agree");
    const Pairs pairs = alternate(rounds, ask, [&] { return timed([&] { duckdb->execute(question.sql); }) * 1e3; });
    say("%s: meter %.2f ms, DuckDB %.2f ms, %zu equal rows\n", name.c_str(), median(pairs.a), median(pairs.b), ours.size());
    if (question.target > 0)
        bar(name, pairs.ratio(), Better::higher, question.target);
    else
        say("%s: %.4g times as fast, without target\n", name.c_str(), pairs.ratio());
}

// Three meters of a FlexPrice book at once for a customer's month: usage, events and cost by property, and day by day. No target.
void measure_analytics(Fixtures& fixtures, std::int64_t events) {
    Meter meter({.path = fixtures.log(events)});
    nlohmann::json book{{"id", "bench"}};
    for (const char* property : {"tokens", "latency_ms", "value"}) {
        book["meters"].push_back({{"id", property}, {"event_name", name_text(7)}, {"aggregation", {{"type", "SUM"}, {"field", property}}}});
        book["prices"].push_back({{"id", property}, {"meter_id", property}, {"currency", "usd"}, {"billing_model", "FLAT_FEE"}, {"amount", "0.001"}});
    }
    meter.load(meter::Book::flexprice(book));
    const meter::AnalyticsQuery query{.metrics = {"flexprice:tokens", "flexprice:latency_ms", "flexprice:value"},
                                      .customer = customer_text(42),
                                      .period = Workload::period(),
                                      .bin = Bin::day,
                                      .group_by = {"properties.region"}};
    std::size_t points = 0;
    for (const auto& item : meter.analytics(query).items) points += item.points.size();
    std::vector<double> spent;
    for (int round = 0; round < 2 * fixtures.options.rounds + 1; ++round) spent.push_back(timed([&] { meter.analytics(query); }) * 1e3);
    say("analytics_%s: %.2f ms for three metrics, %zu points with their costs\n", size_name(events).c_str(), median(spent), points);
    meter.remove_book("flexprice", "bench");
}

void measure_questions(Fixtures& fixtures, std::int64_t events) {
    const std::string size = size_name(events), path = fixtures.path("duck.db");
    const Meter meter({.path = fixtures.log(events)});
    const Workload workload(events);
    std::unique_ptr<DuckDb> duckdb;
    if (std::filesystem::exists(fixtures.options.duckdb_library)) {
        duckdb = std::make_unique<DuckDb>(fixtures.options.duckdb_library, path);
        const double spent = timed([&] { duckdb->load(workload); });
        say("  (DuckDB %s took in %s events in %.1f s, %lld bytes an event)\n", duckdb->version().c_str(), size.c_str(), spent,
            static_cast<long long>(file_bytes(path) / events));
    }
    for (const Question& question : questions()) compare(question, meter, duckdb.get(), question.name + "_" + size, 2 * fixtures.options.rounds + 1);
    duckdb.reset();
    remove_database(path);
}

}  // namespace

std::vector<Measurement> question_measurements(Fixtures& fixtures) {
    std::vector<Measurement> found;
    for (const std::int64_t size : fixtures.options.sizes) {
        found.push_back({"questions_" + size_name(size), "aggregates over " + size_name(size) + " events beside DuckDB",
                         [&fixtures, size] { measure_questions(fixtures, size); }});
        found.push_back({"analytics_" + size_name(size), "three metrics with their costs over " + size_name(size) + " events",
                         [&fixtures, size] { measure_analytics(fixtures, size); }});
    }
    return found;
}

}  // namespace bench
