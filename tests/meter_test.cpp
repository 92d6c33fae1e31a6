// The whole face at once: the same random events and questions put to a log that is never sealed, to one sealed all the time, to one
// opened again and again, and to a plain loop over a list. Then what stands on several parts: books by version, limits, dry runs.
#include <atomic>
#include <cstdlib>
#include <map>
#include <random>
#include <thread>

#include "../meter.hpp"
#include "support/catalogues.hpp"
#include "support/children.hpp"
#include "support/scratch.hpp"
#include "support/workload.hpp"
#include "testing.hpp"

using namespace meter;
using namespace meter_test;

namespace {

MeterOptions options_for(const std::string& path, std::int64_t chunk) {
    MeterOptions options;
    options.path = path;
    options.durability = Durability::process;
    options.chunk_events = chunk;
    options.clock = [] { return Timestamp::parse("2026-03-01T00:00:00Z"); };
    return options;
}

std::vector<std::string> ids_of(const std::vector<Event>& events) {
    std::vector<std::string> ids;
    for (const Event& event : events) ids.push_back(event.id);
    return ids;
}

class Trial {
public:
    Trial(std::uint64_t seed, int extra_properties) : workload_(seed, extra_properties) {}

    void run(int rounds, int events_each, int questions_each) {
        Meter plain(options_for(scratch_.path("plain.db"), 1 << 20));
        Meter sealed(options_for(scratch_.path("sealed.db"), 64));
        Meter in_memory(options_for(":memory:", 100));
        for (int round = 0; round < rounds; ++round) {
            // One is opened anew each time, by turns with different chunks, and asked while its thread may be sealing.
            Meter reopened(options_for(scratch_.path("reopened.db"), round % 2 == 0 ? 64 : 128));
            const std::vector<const Meter*> meters{&plain, &sealed, &in_memory, &reopened};
            record({&plain, &sealed, &in_memory, &reopened}, events_each);
            for (int i = 0; i < questions_each; ++i) {
                aggregates(meters);
                lists(meters);
                names(meters);
                finds(meters);
            }
        }
        CHECK(PlainDatabase(scratch_.path("plain.db")).integer("SELECT count(*) FROM segments") == 0);
        CHECK(PlainDatabase(scratch_.path("sealed.db")).integer("SELECT count(*) FROM segments") > 0);
        for (Meter* meter : {&plain, &sealed, &in_memory}) CHECK(meter->verify() == std::vector<std::string>{});
    }

private:
    void record(const std::vector<Meter*>& meters, int count) {
        std::string lines;
        for (int i = 0; i < count; ++i) {
            events_.push_back(workload_.event());
            events_.back().sequence = static_cast<std::int64_t>(events_.size());
            lines += events_.back().line + "\n";
        }
        for (Meter* meter : meters) {
            const auto receipts = meter->record_json(lines);
            REQUIRE(receipts.size() == static_cast<std::size_t>(count));
            for (const Receipt& receipt : receipts) {
                CAPTURE(receipt.field, receipt.reason);
                REQUIRE(receipt.status == ReceiptStatus::stored);
            }
        }
    }

    void aggregates(const std::vector<const Meter*>& meters) {
        Metric metric{.code = workload_.among(workload_.names)};
        metric.aggregation = std::array{Aggregation::count, Aggregation::sum, Aggregation::unique_count}[workload_.pick(3)];
        if (metric.aggregation != Aggregation::count) metric.property = workload_.some_field();
        if (workload_.chance(30)) metric.filter = workload_.filter();
        AggregateQuery query;
        if (workload_.chance(40)) query.customer = workload_.among(workload_.customers);
        if (workload_.chance(25)) query.subscription = workload_.among(workload_.subscriptions);
        query.period = workload_.period();
        query.bin = std::array{Bin::none, Bin::hour, Bin::day, Bin::month}[workload_.pick(4)];
        for (std::size_t i = workload_.pick(3); i > 0; --i) query.group_by.push_back(workload_.some_field());
        if (workload_.chance(50)) query.filter = workload_.filter();
        const std::string expected = shown(plain_aggregate(events_, metric, query));
        CAPTURE(metric.code, static_cast<int>(metric.aggregation), metric.property, metric.filter.to_json().dump(), query.customer,
                query.subscription, query.group_by, query.filter.to_json().dump(), static_cast<int>(query.bin));
        for (std::size_t i = 0; i < meters.size(); ++i) {
            CAPTURE(i);
            REQUIRE(shown(meters[i]->aggregate(metric, query)) == expected);
        }
    }

    void lists(const std::vector<const Meter*>& meters) {
        ListQuery query;
        if (workload_.chance(40)) query.customer = workload_.among(workload_.customers);
        if (workload_.chance(25)) query.subscription = workload_.among(workload_.subscriptions);
        for (std::size_t i = workload_.chance(50) ? workload_.pick(3) : 0; i > 0; --i) query.names.push_back(workload_.among(workload_.names));
        if (workload_.chance(25)) query.sources = {workload_.among(workload_.sources)};
        if (workload_.chance(15)) {
            for (int i = 0; i < 5; ++i) query.ids.push_back(events_[workload_.pick(events_.size())].id);
            query.ids.emplace_back("nobody's");
        }
        query.period = workload_.period();
        if (workload_.chance(50)) query.filter = workload_.filter();
        if (workload_.chance(60)) query.sort = workload_.sort();
        query.limit = 1 + static_cast<std::int64_t>(workload_.pick(50));
        if (workload_.chance(30)) query.offset = static_cast<std::int64_t>(workload_.pick(30));
        query.count = workload_.chance(50);
        const auto found = plain_list(events_, query);
        std::vector<std::string> expected;
        for (std::size_t i = static_cast<std::size_t>(query.offset); i < found.size(); ++i) expected.push_back(found[i]->id);
        CAPTURE(query.customer, query.subscription, query.names, query.sources, query.ids, query.filter.to_json().dump(), shown(query.sort),
                query.limit, query.offset);
        for (std::size_t i = 0; i < meters.size(); ++i) {
            CAPTURE(i);
            Page page = meters[i]->list(query);
            std::vector<std::string> ids = ids_of(page.events);
            for (int pages = 0; page.next && pages < 3; ++pages) {
                page = meters[i]->list(page.next);
                for (const Event& event : page.events) ids.push_back(event.id);
                if (query.count) REQUIRE(page.total == static_cast<std::int64_t>(found.size()));
            }
            if (!page.next) REQUIRE(ids == expected);
            REQUIRE(std::equal(ids.begin(), ids.end(), expected.begin(), expected.begin() + static_cast<std::ptrdiff_t>(ids.size())));
            if (page.next) REQUIRE(ids.size() == static_cast<std::size_t>(query.limit) * 4);
        }
    }

    void names(const std::vector<const Meter*>& meters) {
        const bool sources = workload_.chance(30);
        NamesQuery query;
        if (workload_.chance(40)) query.customer = workload_.among(workload_.customers);
        if (workload_.chance(30)) query.text = workload_.among({"stor", "STOR", "i", "zz"});
        if (workload_.chance(30)) query.filter = workload_.filter();
        query.period = workload_.period();
        query.by_source = sources || workload_.chance(40);
        for (std::size_t i = workload_.pick(3); i > 0; --i)
            query.sort.push_back({workload_.among({"name", "source", "occurrences", "first_seen", "last_seen"}), workload_.chance(50)});
        const auto expected = plain_names(events_, query, !sources);
        CAPTURE(sources, query.customer, query.text, query.filter.to_json().dump(), query.by_source, shown(query.sort));
        for (std::size_t i = 0; i < meters.size(); ++i) {
            CAPTURE(i);
            const NameList found = sources ? meters[i]->list_sources(query) : meters[i]->list_names(query);
            REQUIRE(found.total == static_cast<std::int64_t>(expected.size()));
            REQUIRE(shown(found.rows) == shown(expected));
        }
    }

    void finds(const std::vector<const Meter*>& meters) {
        const ModelEvent& event = events_[workload_.pick(events_.size())];
        for (const Meter* meter : meters) {
            const auto found = meter->find(event.id);
            REQUIRE(found);
            REQUIRE(found->sequence == event.sequence);
            REQUIRE(found->timestamp == Timestamp(event.time));
            REQUIRE(found->value == event.value);
            REQUIRE(found->properties == json::parse(event.line).at("properties"));
            REQUIRE_FALSE(meter->find(event.id + "x"));
        }
    }

    Scratch scratch_;
    Workload workload_;
    std::vector<ModelEvent> events_;
};

}  // namespace

TEST_CASE("Every question has the same answer, sealed or not, and it is the plain loop's") {
    const std::uint64_t seed = test_seed();
    CAPTURE(seed);
    Trial(seed, 0).run(8, 150, 25);
}

TEST_CASE("So it has with more properties than a segment takes columns for") {
    const std::uint64_t seed = test_seed() + 1;
    CAPTURE(seed);
    Trial(seed, 3000).run(4, 150, 15);
}

// --- books by version ---

namespace {

Timestamp at(const std::string& text) { return Timestamp::parse(text); }

Period month(const std::string& first, const std::string& next) { return {at(first), at(next)}; }

// A Meter whose clock is set by hand.
struct Clocked {
    explicit Clocked(const std::string& now, const std::string& path = ":memory:", std::int64_t chunk = 65536)
        : time(std::make_shared<std::atomic<std::int64_t>>(at(now).micros())), meter(options(time, path, chunk)) {}
    void set(const std::string& now) const { *time = at(now).micros(); }
    static MeterOptions options(const std::shared_ptr<std::atomic<std::int64_t>>& time, const std::string& path, std::int64_t chunk) {
        MeterOptions options;
        options.path = path;
        options.durability = Durability::process;
        options.chunk_events = chunk;
        options.clock = [time] { return Timestamp(*time); };
        return options;
    }
    std::shared_ptr<std::atomic<std::int64_t>> time;
    Meter meter;
};

Event tokens(int count, const std::string& when, const std::string& subscription = "sub_1", const std::string& customer = "acme") {
    return {.name = "tokens", .customer = customer, .subscription = subscription, .timestamp = at(when), .properties = {{"tokens", count}}};
}

Decimal cents(const Meter& m, const UsageQuery& query) { return m.usage(query).amount_cents; }

std::string shown(const std::vector<BookVersion>& books) {
    std::string text;
    for (const BookVersion& each : books) {
        const bool always = each.effective_from == Timestamp::min();
        text += each.book.vendor() + "/" + each.book.code() + (always ? "" : "@" + each.effective_from.to_string()) + " ";
    }
    return text;
}

std::string codes(const Meter& m) {
    std::string text;
    for (const Metric& metric : m.metrics()) text += metric.code + ":" + metric.property + " ";
    return text;
}

}  // namespace

TEST_CASE("A billing period is priced by the version in effect when it begins") {
    Clocked c("2026-01-20T00:00:00Z");
    Meter& m = c.meter;
    m.load(Book::lago(lago_plan("basic", "1")));
    m.load(Book::lago(lago_plan("basic", "2")), at("2026-02-01T00:00:00Z"));
    m.load(Book::lago(lago_plan("basic", "3")), at("2026-03-15T00:00:00Z"));
    m.load(Book::lago(lago_plan("basic", "4")), at("2026-03-20T00:00:00Z"));
    for (const char* day : {"2026-01-05", "2026-02-05", "2026-03-05", "2026-03-25", "2026-04-05"})
        m.record(tokens(10, std::string(day) + "T00:00:00Z"));
    const UsageQuery now{.subscription = "sub_1"};
    const std::vector<std::pair<std::string, int>> expected{
        {"2026-01-20T00:00:00Z", 1000}, {"2026-01-31T23:59:59Z", 1000},        {"2026-02-01T00:00:00Z", 2000}, {"2026-03-01T00:00:00Z", 4000},
        {"2026-03-15T00:00:00Z", 4000}, {"2026-03-31T23:59:59.999999Z", 4000}, {"2026-04-01T00:00:00Z", 4000}};
    for (const auto& [time, amount] : expected) {
        c.set(time);
        CAPTURE(time);
        CHECK(cents(m, now) == amount);
    }
    c.set("2026-04-10T00:00:00Z");
    CHECK(m.usage(now).fees.at(0).amount == 40);  // 10 x 4: the third version never priced a period
    CHECK(cents(m, {.subscription = "sub_1", .period = month("2026-01-01T00:00:00Z", "2026-02-01T00:00:00Z")}) == 1000);
    CHECK(cents(m, {.subscription = "sub_1", .period = month("2026-02-01T00:00:00Z", "2026-03-01T00:00:00Z")}) == 2000);
    CHECK(cents(m, {.subscription = "sub_1", .period = month("2026-03-01T00:00:00Z", "2026-04-01T00:00:00Z")}) == 4000);
    CHECK(cents(m, {.subscription = "sub_1", .period = month("2026-03-16T00:00:00Z", "2026-04-01T00:00:00Z")}) == 2000);
}

TEST_CASE("The first version of a book has no say before it takes effect, and prices the rest of that period") {
    Clocked c("2026-03-20T00:00:00Z");
    Meter& m = c.meter;
    m.load(Book::lago(lago_plan("basic", "1")), at("2026-03-10T00:00:00Z"));
    m.record({tokens(10, "2026-03-05T00:00:00Z"), tokens(1, "2026-03-10T00:00:00Z"), tokens(2, "2026-03-20T00:00:00Z")});
    CHECK(cents(m, {.subscription = "sub_1"}) == 300);
    CHECK(m.usage({.subscription = "sub_1"}).fees.at(0).period == month("2026-03-10T00:00:00Z", "2026-04-01T00:00:00Z"));
    CHECK(cents(m, {.subscription = "sub_1", .period = month("2026-03-01T00:00:00Z", "2026-04-01T00:00:00Z")}) == 300);
    const auto early = error_of([&] { m.usage({.subscription = "sub_1", .period = month("2026-02-01T00:00:00Z", "2026-03-01T00:00:00Z")}); });
    CHECK(early.code() == ErrorCode::not_found);
    CHECK(early.field() == "book");
    c.set("2026-03-09T23:59:59Z");
    CHECK(error_of([&] { m.usage({.subscription = "sub_1"}); }).code() == ErrorCode::not_found);
    CHECK(error_of([&] { m.estimate_fees(tokens(1, "2026-03-09T00:00:00Z")); }).code() == ErrorCode::not_found);
}

TEST_CASE("Each subscription of a customer changes with its own billing period") {
    json first = lago_plan("basic", "1"), second = lago_plan("basic", "2");
    for (json* plan : {&first, &second}) {
        (*plan)["subscriptions"] = {{{"external_id", "on_5"},
                                     {"external_customer_id", "acme"},
                                     {"started_at", "2025-01-05T00:00:00Z"},
                                     {"subscription_at", "2025-01-05T00:00:00Z"},
                                     {"billing_time", "anniversary"}},
                                    {{"external_id", "on_25"},
                                     {"external_customer_id", "acme"},
                                     {"started_at", "2025-01-25T00:00:00Z"},
                                     {"subscription_at", "2025-01-25T00:00:00Z"},
                                     {"billing_time", "anniversary"}}};
    }
    Clocked c("2026-02-10T00:00:00Z");
    c.meter.load(Book::lago(first));
    c.meter.load(Book::lago(second), at("2026-02-01T00:00:00Z"));
    c.meter.record({tokens(1, "2026-02-09T00:00:00Z", "on_5"), tokens(100, "2026-02-09T00:00:00Z", "on_25")});
    // on_5 began a period on 5 February, on_25 is in that of 25 January.
    CHECK(cents(c.meter, {.subscription = "on_5"}) == 200);
    CHECK(cents(c.meter, {.subscription = "on_25"}) == 10000);
    CHECK(cents(c.meter, {.customer = "acme"}) == 10200);
    CHECK(c.meter.usage({.customer = "acme"}).fees.size() == 2);
}

TEST_CASE("A version with another interval begins when the period before it has ended") {
    Clocked c("2026-02-10T00:00:00Z");
    Meter& m = c.meter;
    m.load(Book::lago(lago_plan("basic", "1")));
    m.load(Book::lago(lago_plan("basic", "2", {{"interval", "yearly"}})), at("2026-01-20T00:00:00Z"));
    m.record({tokens(1, "2026-01-05T00:00:00Z"), tokens(1, "2026-02-05T00:00:00Z"), tokens(1, "2026-06-05T00:00:00Z")});
    c.set("2026-01-25T00:00:00Z");
    CHECK(cents(m, {.subscription = "sub_1"}) == 100);
    c.set("2026-06-10T00:00:00Z");
    CHECK(cents(m, {.subscription = "sub_1"}) == 400);  // the year without January, which is billed already
    CHECK(m.usage({.subscription = "sub_1"}).fees.at(0).period == month("2026-02-01T00:00:00Z", "2027-01-01T00:00:00Z"));
}

TEST_CASE("Books are listed, replaced and removed by version") {
    Clocked c("2026-03-20T00:00:00Z");
    Meter& m = c.meter;
    CHECK(m.books().empty());
    m.load(Book::lago(lago_plan("b", "1")), at("2026-02-01T00:00:00Z"));
    m.load(Book::lago(lago_plan("b", "1")));
    m.load(Book::lago(lago_plan("a", "1")));
    m.load(Book::flexprice(flexprice_prices("1")));
    CHECK(shown(m.books()) == "flexprice/flexprice lago/a lago/b lago/b@2026-02-01T00:00:00Z ");
    m.load(Book::lago(lago_plan("b", "7")), at("2026-02-01T00:00:00Z"));
    CHECK(m.books().size() == 4);
    CHECK(m.books()[3].book.source() == lago_plan("b", "7"));
    m.remove_book("lago", "b", Timestamp::min());
    CHECK(shown(m.books()) == "flexprice/flexprice lago/a lago/b@2026-02-01T00:00:00Z ");
    m.remove_book("lago", "b");
    CHECK(shown(m.books()) == "flexprice/flexprice lago/a ");
    for (const auto& [vendor, code, moment] : std::vector<std::tuple<std::string, std::string, std::optional<Timestamp>>>{
             {"lago", "b", {}}, {"polar", "a", {}}, {"lago", "", {}}, {"lago", "a", at("2026-01-01T00:00:00Z")}, {"lago", "a'--", {}}}) {
        const auto error = error_of([&, v = vendor, k = code, t = moment] { m.remove_book(v, k, t); });
        CHECK(error.code() == ErrorCode::not_found);
        CHECK(error.field() == "book");
    }
    CHECK(m.books().size() == 2);
    m.remove_book("lago", "a");
    m.remove_book("flexprice", "flexprice");
    CHECK(error_of([&] { m.usage({.subscription = "sub_1"}); }).code() == ErrorCode::not_found);
}

TEST_CASE("A book that cannot be loaded changes nothing") {
    Clocked c("2026-03-20T00:00:00Z");
    Meter& m = c.meter;
    m.load(Book::lago(lago_plan("basic", "1")));
    const auto before = shown(m.books()) + codes(m);
    json bad = lago_plan("other", "1");
    bad["note"] = "\xff";
    CHECK(error_of([&] { m.load(Book::lago(bad)); }).code() == ErrorCode::bad_value);
    for (const Timestamp moment : {Timestamp(Timestamp::min().micros() - 1), Timestamp(Timestamp::max().micros() + 1), Timestamp(INT64_MAX)}) {
        const auto error = error_of([&] { m.load(Book::lago(lago_plan("other", "1")), moment); });
        CHECK(error.code() == ErrorCode::bad_value);
        CHECK(error.field() == "effective_from");
    }
    CHECK(shown(m.books()) + codes(m) == before);
    m.load(Book::lago(lago_plan("basic", "9")), Timestamp::max());
    CHECK(cents(m, {.subscription = "sub_1"}) == 0);
    CHECK(m.books().size() == 2);
}

TEST_CASE("A book for which there is no room is not loaded in part") {
    Scratch scratch;
    MeterOptions options = Clocked::options(std::make_shared<std::atomic<std::int64_t>>(at("2026-03-20T00:00:00Z").micros()), scratch.path(), 65536);
    options.max_bytes = 1 << 20;
    Meter m(options);
    m.load(Book::lago(lago_plan("basic", "1")));
    json large = lago_plan("basic", "2");
    large["billable_metrics"].push_back({{"code", "more"}, {"aggregation_type", "count_agg"}});
    large["note"] = std::string(2 << 20, 'x');
    CHECK(error_of([&] { m.load(Book::lago(large)); }).code() == ErrorCode::full);
    REQUIRE(m.books().size() == 1);
    CHECK(m.books()[0].book.source() == lago_plan("basic", "1"));
    CHECK(codes(m) == "tokens:properties.tokens ");
    m.record(tokens(5, "2026-03-05T00:00:00Z"));
    CHECK(cents(m, {.subscription = "sub_1"}) == 500);
}

TEST_CASE("The metrics of a book come and go with it, and give back what they took the place of") {
    Clocked c("2026-03-20T00:00:00Z");
    Meter& m = c.meter;
    m.record(tokens(5, "2026-03-05T00:00:00Z"));
    m.define({.code = "tokens", .aggregation = Aggregation::count});
    json later = lago_plan("basic", "1");
    later["billable_metrics"][0]["field_name"] = "other";
    m.load(Book::lago(lago_plan("basic", "1")));
    m.load(Book::lago(later), at("2026-03-25T00:00:00Z"));
    CHECK(codes(m) == "tokens:properties.tokens ");
    CHECK(m.aggregate({.metric = "tokens"}).rows.at(0).value == 5);
    c.set("2026-03-25T00:00:00Z");
    CHECK(codes(m) == "tokens:properties.other ");
    m.remove_book("lago", "basic", at("2026-03-25T00:00:00Z"));
    CHECK(codes(m) == "tokens:properties.tokens ");
    m.define({.code = "tokens", .aggregation = Aggregation::max, .property = "n"});
    CHECK(codes(m) == "tokens:n ");
    m.load(Book::lago(lago_plan("basic", "1")));
    CHECK(codes(m) == "tokens:properties.tokens ");
    m.remove_book("lago", "basic");
    CHECK(codes(m) == "tokens:n ");
    m.load(Book::lago(later), at("2026-05-01T00:00:00Z"));  // to come: known where there is nothing else
    CHECK(codes(m) == "tokens:n ");
    json third = lago_plan("third", "1");
    third["billable_metrics"][0]["code"] = third["plan"]["charges"][0]["billable_metric_code"] = "calls";
    m.load(Book::lago(third), at("2026-05-01T00:00:00Z"));
    CHECK(codes(m) == "calls:properties.tokens tokens:n ");
}

TEST_CASE("A change of the books by another Meter counts at once, whoever asks from how many threads") {
    Scratch scratch;
    Clocked one("2026-03-20T00:00:00Z", scratch.path()), other("2026-03-20T00:00:00Z", scratch.path());
    one.meter.record(tokens(1, "2026-03-05T00:00:00Z"));
    std::atomic<bool> done = false;
    std::atomic<int> wrong = 0;
    one.meter.load(Book::lago(lago_plan("basic", "1")));
    std::vector<std::thread> readers;
    for (int i = 0; i < 3; ++i) {
        readers.emplace_back([&, i] {
            const Meter& m = i == 0 ? one.meter : other.meter;
            Decimal last = 100;
            while (!done) {
                const Decimal now = cents(m, {.subscription = "sub_1"});
                if (now < last) ++wrong;  // only ever dearer
                last = now;
            }
        });
    }
    for (int price = 2; price <= 40; ++price) {
        (price % 2 == 0 ? one : other).meter.load(Book::lago(lago_plan("basic", std::to_string(price))));
        CHECK(cents(one.meter, {.subscription = "sub_1"}) == price * 100);
        CHECK(cents(other.meter, {.subscription = "sub_1"}) == price * 100);
    }
    done = true;
    for (std::thread& each : readers) each.join();
    CHECK(wrong == 0);
}

// --- limits ---

namespace {

const std::string noon = "2026-03-20T12:00:00Z";
const Period march = month("2026-03-01T00:00:00Z", "2026-04-01T00:00:00Z");

struct Limited : Clocked {
    explicit Limited(const std::string& path = ":memory:", std::int64_t chunk = 65536) : Clocked(noon, path, chunk) {
        meter.define({.code = "tokens", .aggregation = Aggregation::sum, .property = "tokens"});
    }
};

std::string shown(const Receipt& receipt) {
    static const std::map<ReceiptStatus, std::string> words{{ReceiptStatus::stored, "stored"},
                                                            {ReceiptStatus::duplicate, "duplicate"},
                                                            {ReceiptStatus::conflict, "conflict"},
                                                            {ReceiptStatus::refused, "refused"},
                                                            {ReceiptStatus::over_limit, "over"}};
    std::string text = words.at(receipt.status);
    for (const LimitCheck& check : receipt.limits)
        text += " " + check.before.to_string() + "->" + check.after.to_string() + "/" + check.limit.to_string() + (check.over ? "!" : "");
    return text;
}

Event used(int count, const std::string& id = "") {
    Event event = tokens(count, noon);
    event.id = id;
    return event;
}

std::int64_t count_all(const Meter& m) { return *m.list({.limit = 1, .count = true}).total; }

}  // namespace

TEST_CASE("An event within the limit is stored, one over it is not, and the receipt says how much there was") {
    Limited c;
    Meter& m = c.meter;
    const Limit limit{.metric = "tokens", .units = 100};
    CHECK(shown(m.record(used(60), limit)) == "stored 0->60/100");
    const Receipt over = m.record(used(41, "over"), limit);
    CHECK(shown(over) == "over 60->101/100!");
    CHECK(over.sequence == 0);
    CHECK(over.id == "over");
    CHECK(over.field == "limits[0].units");
    CHECK(over.reason == "would be 101 of \"tokens\", and at most 100 may be");
    CHECK(over.limits.at(0).period == month("2026-03-01T00:00:00Z", "2026-04-01T00:00:00Z"));
    CHECK_FALSE(m.find("over"));
    const Receipt last = m.record(used(40), limit);
    CHECK(shown(last) == "stored 60->100/100");
    CHECK(last.sequence == 2);
    CHECK(shown(m.record(used(0), limit)) == "stored 100->100/100");
    CHECK(shown(m.record({.name = "other", .customer = "acme"}, limit)) == "stored 100->100/100");
    CHECK(shown(m.record(used(-5), limit)) == "stored 100->95/100");
    CHECK(shown(m.record(used(6), limit)) == "over 95->101/100!");
    CHECK(count_all(m) == 5);
    CHECK(m.verify() == std::vector<std::string>{});
    CHECK(shown(m.record(used(1000))) == "stored");  // without a limit
    CHECK(shown(m.record(used(1), limit)) == "over 1095->1096/100!");
    CHECK(shown(m.record(used(-1), limit)) == "stored 1095->1094/100");  // less than before is never over
}

TEST_CASE("A soft limit stores and says so") {
    Limited c;
    const Limit limit{.metric = "tokens", .units = 10, .soft = true};
    const Receipt receipt = c.meter.record(used(11), limit);
    CHECK(shown(receipt) == "stored 0->11/10!");
    CHECK(receipt.field.empty());
    CHECK(shown(c.meter.record(used(-2), limit)) == "stored 11->9/10");
    CHECK(count_all(c.meter) == 2);
}

TEST_CASE("An id that is in the log is answered as ever, whatever the limit") {
    Limited c;
    Meter& m = c.meter;
    const Limit limit{.metric = "tokens", .units = 100};
    m.record(used(100, "full"), limit);
    CHECK(shown(m.record(used(100, "full"), limit)) == "duplicate");
    CHECK(shown(m.record(used(1, "full"), limit)) == "conflict");
    CHECK(shown(m.record(used(1, "new"), limit)) == "over 100->101/100!");
    CHECK(shown(m.record(used(1, "new"), limit)) == "over 100->101/100!");
    CHECK(shown(m.record(used(1, "new"))) == "stored");  // what was not let in has left no trace
    CHECK(m.record(used(100, "full"), limit).sequence == 1);
}

TEST_CASE("Of a batch the first that fit are stored, each judged after those before it") {
    Limited c;
    Meter& m = c.meter;
    const std::vector<Limit> limits{{.metric = "tokens", .units = 100},
                                    {.metric = "tokens", .units = 30, .scope = LimitScope::subscription, .soft = true}};
    const std::vector<Event> events{used(60, "a"),
                                    used(60, "b"),
                                    used(20, "a"),
                                    used(40, "c"),
                                    used(1, "d"),
                                    {.name = "", .customer = "acme"},
                                    {.name = "tokens", .customer = "acme"}};
    std::vector<std::string> answers;
    for (const Receipt& receipt : m.record(events, limits)) answers.push_back(shown(receipt));
    CHECK(answers == std::vector<std::string>{"stored 0->60/100 0->60/30!", "over 60->120/100! 60->120/30!", "conflict",
                                              "stored 60->100/100 60->100/30!", "over 100->101/100! 100->101/30!", "refused", "refused"});
    CHECK(count_all(m) == 2);
    CHECK(m.record(std::span<const Event>(), limits).empty());
    CHECK(shown(m.record(std::span<const Event>(&events[4], 1), {}).at(0)) == "stored");
}

TEST_CASE("A limit counts what its scope says") {
    Limited c;
    Meter& m = c.meter;
    m.record({tokens(1, noon, "s1", "acme"), tokens(2, noon, "s2", "acme"), tokens(4, noon, "s1", "zeta"), tokens(8, noon, "", "")});
    const Event event = tokens(16, noon, "s1", "acme");
    Limit limit{.metric = "tokens", .units = 1000};
    CHECK(shown(m.record(event, limit)) == "stored 3->19/1000");
    limit.scope = LimitScope::subscription;
    CHECK(shown(m.record(event, limit)) == "stored 21->37/1000");
    limit.scope = LimitScope::all;
    CHECK(shown(m.record(event, limit)) == "stored 47->63/1000");
    CHECK(shown(m.record({.name = "tokens", .properties = {{"tokens", 1}}}, limit)) == "stored 63->64/1000");
}

TEST_CASE("The period of a limit is that of the event, or the one given") {
    Limited c;
    Meter& m = c.meter;
    const Limit limit{.metric = "tokens", .units = 10};
    CHECK(shown(m.record(tokens(10, noon), limit)) == "stored 0->10/10");
    CHECK(shown(m.record(tokens(10, "2026-02-28T23:59:59.999999Z"), limit)) == "stored 0->10/10");
    CHECK(shown(m.record(tokens(1, "2026-02-01T00:00:00Z"), limit)) == "over 10->11/10!");
    CHECK(shown(m.record(tokens(1, "2026-04-01T00:00:00Z"), limit)) == "stored 0->1/10");
    const Limit day{.metric = "tokens", .units = 10, .period = month("2026-03-21T00:00:00Z", "2026-03-22T00:00:00Z")};
    CHECK(shown(m.record(tokens(99, noon), day)) == "stored 0->0/10");  // not in it
    CHECK(shown(m.record(tokens(11, "2026-03-21T00:00:00Z"), day)) == "over 0->11/10!");
    // The plan's billing period, where one is loaded.
    json plan = lago_plan("basic", "1", {{"interval", "weekly"}});
    m.load(Book::lago(plan));
    const Receipt weekly = m.record(tokens(1, noon), {.metric = "tokens", .units = 1000, .scope = LimitScope::subscription});
    CHECK(weekly.limits.at(0).period == month("2026-03-16T00:00:00Z", "2026-03-23T00:00:00Z"));
}

TEST_CASE("A limit in money holds the fees of the period under a book") {
    Clocked c(noon);
    Meter& m = c.meter;
    json plan = lago_plan("tiers", "1");
    plan["plan"]["charges"][0] = {{"billable_metric_code", "tokens"},
                                  {"charge_model", "graduated"},
                                  {"properties",
                                   {{"graduated_ranges",
                                     {{{"from_value", 0}, {"to_value", 10}, {"per_unit_amount", "1"}, {"flat_amount", "0"}},
                                      {{"from_value", 11}, {"to_value", nullptr}, {"per_unit_amount", "0.5"}, {"flat_amount", "2"}}}}}}};
    m.load(Book::lago(plan));
    m.load(Book::flexprice(flexprice_prices("0.10")));
    const Limit lago{.cents = 1300, .scope = LimitScope::subscription, .book = "tiers"};
    CHECK(shown(m.record(used(10), lago)) == "stored 0->1000/1300");
    CHECK(shown(m.record(used(3), lago)) == "over 1000->1350/1300!");
    CHECK(shown(m.record(used(2), lago)) == "stored 1000->1300/1300");
    CHECK(cents(m, {.subscription = "sub_1", .customer = "acme"}) == 120);  // FlexPrice comes first; the limit named the other
    const Limit flexprice{.cents = 121};
    CHECK(shown(m.record(used(1), flexprice)) == "over 120->130/121!");
    CHECK(error_of([&] { m.record(used(1), {.metric = "tokens", .cents = 0}); }).what() == std::string("metric: \"tokens\" is not in the book"));
    CHECK(shown(m.record(used(1), {.metric = "tokens", .cents = 5000, .scope = LimitScope::subscription, .book = "tiers"})) ==
          "stored 1300->1350/5000");
    CHECK(shown(m.record(used(1), {.metric = "flexprice:m1", .cents = 140})) == "stored 130->140/140");
    CHECK(cents(m, {.customer = "acme"}) == 140);
    // Each version of the book prices its own periods.
    m.load(Book::flexprice(flexprice_prices("1")), at("2026-04-01T00:00:00Z"));
    CHECK(shown(m.record(tokens(1, "2026-03-31T23:00:00Z"), flexprice)) == "over 140->150/121!");
    CHECK(shown(m.record(tokens(1, "2026-04-01T00:00:00Z"), flexprice)) == "stored 0->100/121");
    CHECK(shown(m.record(tokens(1, "2026-04-02T00:00:00Z"), flexprice)) == "over 100->200/121!");
}

TEST_CASE("A limit in money holds under every vendor's book, whatever order the events come in") {
    const std::vector<Book> books{
        Book::lago(lago_plan("one", "0.1")), Book::flexprice(flexprice_prices("0.1")),
        Book::polar(
            {{"product",
              {{"id", "pro"},
               {"prices", {{{"id", "p1"}, {"amount_type", "metered_unit"}, {"meter_id", "m1"}, {"unit_amount", "10"}, {"price_currency", "eur"}}}}}},
             {"meters",
              {{{"id", "m1"},
                {"filter", {{"conjunction", "and"}, {"clauses", {{{"property", "name"}, {"operator", "eq"}, {"value", "tokens"}}}}}},
                {"aggregation", {{"func", "sum"}, {"property", "tokens"}}}}}}}),
        Book::autumn(
            {{"plan",
              {{"id", "pro"},
               {"items", {{{"feature_id", "tokens"}, {"price", {{"amount", "0.1"}, {"interval", "month"}, {"billing_method", "usage_based"}}}}}}}},
             {"features", {{{"id", "tokens"}, {"type", "metered"}, {"consumable", true}}}}})};
    for (const Book& book : books) {
        CAPTURE(book.vendor());
        Clocked c(noon);
        c.meter.load(book);
        const Limit limit{.cents = 100, .scope = book.vendor() == "lago" ? LimitScope::subscription : LimitScope::customer};
        const auto record = [&](const char* day, int count) {
            Event event = tokens(count, std::string("2026-03-") + day + "T12:00:00Z");
            event.value = count;
            return shown(c.meter.record(event, limit));
        };
        CHECK(record("20", 4) == "stored 0->40/100");
        CHECK(record("05", 4) == "stored 40->80/100");
        CHECK(record("10", 3) == "over 80->110/100!");
        CHECK(record("01", 2) == "stored 80->100/100");
        CHECK(record("31", 1) == "over 100->110/100!");
        Event april = tokens(10, "2026-04-01T00:00:00Z");
        april.value = 10;
        CHECK(shown(c.meter.record(april, limit)) == "stored 0->100/100");
        CHECK(cents(c.meter, {.subscription = book.vendor() == "lago" ? "sub_1" : "", .customer = "acme", .period = march}) == 100);
    }
}

TEST_CASE("A limit that cannot be is refused by name, and nothing is stored") {
    Limited c;
    Meter& m = c.meter;
    const Decimal minus(-1);
    const std::vector<std::pair<Limit, std::string>> bad{
        {{}, "limit: needs either units or cents"},
        {{.metric = "tokens"}, "limit: needs either units or cents"},
        {{.metric = "tokens", .units = 1, .cents = 1}, "limit: needs either units or cents"},
        {{.units = 1}, "limit.metric: is needed for a limit in units"},
        {{.metric = "tokens", .units = minus}, "limit.units: must not be negative"},
        {{.cents = minus}, "limit.cents: must not be negative"},
        {{.cents = 1, .scope = LimitScope::all}, "limit.scope: cannot be all for a fee: books price a subscription or a customer"},
        {{.metric = "tokens", .units = 1, .scope = static_cast<LimitScope>(9)}, "limit.scope: is not a scope of limits"},
        {{.metric = "tokens", .units = 1, .period = Period{at(noon), at(noon)}}, "limit.period: must end after it begins"},
        {{.metric = "nothing", .units = 1}, "metric: \"nothing\" is not defined"},
        {{.cents = 1}, "customer: no book that is loaded prices it"},
        {{.cents = 1, .scope = LimitScope::subscription}, "subscription: no book that is loaded prices it"},
        {{.metric = "tokens", .units = 1, .book = "gone"}, "book: there is no \"gone\" that prices this"},
    };
    for (const auto& [limit, words] : bad) {
        CAPTURE(words);
        CHECK(error_of([&, l = limit] { m.record(used(1), l); }).what() == words);
        CHECK(error_of([&, l = limit] {
                  m.record(std::vector<Event>{used(1)}, std::vector<Limit>{{.metric = "tokens", .units = 5}, l});
              }).what() == words);
    }
    for (const std::string& text : {std::string("a\0b", 3), std::string("\xff")}) {
        CHECK(error_of([&] { m.record(used(1), {.metric = text, .units = 1}); }).field() == "limit.metric");
        CHECK(error_of([&] { m.record(used(1), {.cents = 1, .book = text}); }).field() == "limit.book");
    }
    CHECK(error_of([&] { m.record({.name = "tokens"}, {.metric = "tokens", .units = 1}); }).field() == "customer");
    CHECK(error_of([&] { m.record({.name = "tokens", .customer = "acme"}, {.cents = 1, .scope = LimitScope::subscription}); }).field() ==
          "subscription");
    CHECK(error_of([&] { m.record({.name = "", .customer = "acme"}, {.metric = "tokens", .units = 1}); }).field() == "name");
    CHECK(count_all(m) == 0);
    // A sum that no longer fits is an error, and the event is not stored.
    const std::string huge(38, '9');
    const std::string line = R"({"name": "tokens", "customer": "acme", "timestamp": "2026-03-20T12:00:00Z", "properties": {"tokens": )" + huge + "}}";
    CHECK(m.record_json(line).at(0).status == ReceiptStatus::stored);
    CHECK(error_of([&] { m.record(used(1), {.metric = "tokens", .units = 1}); }).code() == ErrorCode::overflow);
    CHECK(count_all(m) == 1);
    CHECK(shown(m.record(used(-1), {.metric = "tokens", .units = 1})) == "stored " + huge + "->" + (Decimal(huge) - 1).to_string() + "/1");
}

TEST_CASE("What a limit sees is what aggregate() and usage() answer, whatever the metric, sealed or not, in one Meter or two") {
    const std::uint64_t seed = test_seed();
    CAPTURE(seed);
    std::mt19937_64 random(seed);
    const auto pick = [&](std::uint64_t n) { return static_cast<int>(random() % n); };
    Scratch scratch;
    Limited c(scratch.path(), 64);
    Clocked other(noon, scratch.path(), 64);
    const std::vector<Metric> metrics{
        {.code = "n", .event = "tokens"},
        {.code = "tokens", .aggregation = Aggregation::sum, .property = "tokens"},
        {.code = "double",
         .event = "tokens",
         .aggregation = Aggregation::sum,
         .property = "tokens",
         .filter = Filter::equals("model", "m1"),
         .multiplier = Decimal("2.5")},
        {.code = "most", .event = "tokens", .aggregation = Aggregation::max, .property = "tokens"},
        {.code = "least", .event = "tokens", .aggregation = Aggregation::min, .property = "tokens"},
        {.code = "kinds", .event = "tokens", .aggregation = Aggregation::unique_count, .property = "tokens"},
        {.code = "mean", .event = "tokens", .aggregation = Aggregation::average, .property = "tokens"},
        {.code = "last", .event = "tokens", .aggregation = Aggregation::latest, .property = "tokens"},
        {.code = "rounded", .event = "tokens", .aggregation = Aggregation::sum, .property = "tokens", .rounding = RoundTo{Rounding::half_up, -1}}};
    for (const Metric& metric : metrics) c.meter.define(metric);
    json plan = lago_plan("basic", "0.5");
    plan["plan"]["charges"][0]["properties"]["pricing_group_keys"] = {"model"};
    c.meter.load(Book::lago(plan));
    int stored = 0, over = 0;
    for (int round = 0; round < 600; ++round) {
        Meter& m = pick(4) == 0 ? other.meter : c.meter;
        Event event =
            tokens(pick(40) - 5, pick(6) == 0 ? "2026-02-10T00:00:00Z" : noon, "s" + std::to_string(pick(3)), "c" + std::to_string(pick(3)));
        event.properties["model"] = "m" + std::to_string(pick(3));
        if (pick(3) == 0) {
            m.record(event);
            continue;
        }
        const bool money = pick(4) == 0;
        const Metric& metric = metrics[static_cast<std::size_t>(pick(metrics.size()))];
        Limit limit{.scope = money || pick(2) == 0 ? LimitScope::subscription : LimitScope::customer};
        if (money) {
            limit.cents = pick(20000);
        } else {
            limit.metric = metric.code;
            limit.units = pick(metric.code == "n" ? 40 : 600);
        }
        const Period around = this_month(*event.timestamp);
        const auto now = [&]() -> Decimal {
            if (money) return m.usage({.subscription = event.subscription, .period = around}).amount_cents;
            AggregateQuery query{.metric = metric.code, .period = around};
            (limit.scope == LimitScope::customer ? query.customer : query.subscription) =
                limit.scope == LimitScope::customer ? event.customer : event.subscription;
            const auto rows = m.aggregate(query).rows;
            return rows.empty() ? Decimal() : rows[0].value;
        };
        const Decimal before = now();
        const Receipt receipt = m.record(event, limit);
        const LimitCheck& check = receipt.limits.at(0);
        CAPTURE(round, money, metric.code, shown(receipt));
        REQUIRE(check.before == before);
        REQUIRE(check.over == (check.after > check.limit && check.after > check.before));
        REQUIRE(receipt.status == (check.over ? ReceiptStatus::over_limit : ReceiptStatus::stored));
        if (check.over) {
            REQUIRE(now() == before);
            ++over;
            limit.soft = true;  // then let it in, to see that it would have been as said
            const Receipt again = m.record(event, limit);
            REQUIRE(again.status == ReceiptStatus::stored);
            REQUIRE(again.limits.at(0).after == check.after);
        }
        REQUIRE(now() == check.after);
        ++stored;
    }
    CHECK(stored > 300);
    CHECK(over > 50);
    CHECK(c.meter.verify() == std::vector<std::string>{});
    // Retention takes away from what a limit sees as it does from aggregate(). The calendar ignores what was recorded when.
    const Limit limit{.metric = "n", .units = 100000, .scope = LimitScope::all};
    const Decimal before = c.meter.record(used(1), limit).limits.at(0).after;
    CHECK(c.meter.prune({.recorded_before = at("2027-01-01T00:00:00Z")}).events > 0);
    const Decimal left = c.meter.aggregate({.metric = "n", .period = this_month(at(noon))}).rows.at(0).value;
    CHECK(left < before);
    CHECK(c.meter.record(used(1), limit).limits.at(0).before == left);
    CHECK(other.meter.record(used(1), limit).limits.at(0).before == left + 1);
}

TEST_CASE("A transaction that is rolled back leaves nothing behind in what limits count") {
    Scratch scratch;
    MeterOptions options = Clocked::options(std::make_shared<std::atomic<std::int64_t>>(at(noon).micros()), scratch.path(), 65536);
    options.max_bytes = 1 << 20;
    Meter m(options);
    m.define({.code = "tokens", .aggregation = Aggregation::sum, .property = "tokens"});
    const Limit limit{.metric = "tokens", .units = 1000000};
    Event large = used(1);
    large.properties["text"] = std::string(20000, 'x');
    int stored = 0;
    CHECK(error_of([&] {
              for (int i = 0; i < 1000; ++i) m.record(large, limit), ++stored;
          }).code() == ErrorCode::full);
    CHECK(stored > 10);
    const auto sum = [&] { return m.aggregate({.metric = "tokens"}).rows.at(0).value; };
    CHECK(sum() == stored);
    // Smaller ones may still fit, some of them in one commit with one that does not.
    std::atomic<int> more = 0;
    std::vector<std::thread> writers;
    for (int i = 0; i < 4; ++i) {
        writers.emplace_back([&, i] {
            for (int n = 0; n < 20; ++n) {
                try {
                    if (m.record(i == 0 ? large : used(1), limit).status == ReceiptStatus::stored) ++more;
                } catch (const Error&) {
                }
            }
        });
    }
    for (std::thread& each : writers) each.join();
    CHECK(sum() == stored + more);
    try {
        CHECK(m.record(used(1), {.metric = "tokens", .units = 0}).limits.at(0).before == stored + more);
    } catch (const Error& error) {
        CHECK(error.code() == ErrorCode::full);
    }
}

TEST_CASE("Threads cannot overrun a limit together, nor be stopped short of it") {
    Scratch scratch;
    for (const std::string& path : {std::string(":memory:"), scratch.path()}) {
        CAPTURE(path);
        Limited c(path, 64);
        Meter& m = c.meter;
        m.load(Book::flexprice(flexprice_prices("0.01")));
        std::atomic<int> stored = 0, over = 0, wrong = 0;
        std::vector<std::thread> threads;
        for (int i = 0; i < 8; ++i) {
            threads.emplace_back([&, i] {
                for (int n = 0; n < 60; ++n) {
                    if (n % 6 == 0) m.record({.name = "noise", .customer = "acme"});
                    const Limit units{.metric = "tokens", .units = 300}, money{.cents = 300};
                    const Receipt receipt = m.record(used(1), i % 2 == 0 ? units : money);
                    const LimitCheck& check = receipt.limits.at(0);
                    (receipt.status == ReceiptStatus::stored ? stored : over)++;
                    if (check.after != check.before + 1 || check.over != (check.after > 300)) ++wrong;
                }
            });
        }
        for (std::thread& each : threads) each.join();
        CHECK(stored == 300);
        CHECK(over == 180);
        CHECK(wrong == 0);
        CHECK(m.aggregate({.metric = "tokens"}).rows.at(0).value == 300);
    }
}

#ifdef METER_TEST_CHILDREN

// Run by the test below in another process.
TEST_CASE("child: records up to a limit", "[.child]") {
    const char* path = std::getenv("METER_CHILD_PATH");
    if (path == nullptr) return;
    Clocked c(noon, path, 64);
    for (int i = 0; i < 200; ++i) {
        const Receipt receipt = c.meter.record(used(1), {.metric = "tokens", .units = 400});
        REQUIRE((receipt.status == ReceiptStatus::stored) == (receipt.limits.at(0).after <= 400));
    }
}

TEST_CASE("Processes cannot overrun a limit together, nor be stopped short of it") {
    Scratch scratch;
    Limited c(scratch.path(), 64);
    {
        std::vector<Child> children;
        for (int i = 0; i < 3; ++i)
            children.emplace_back("child: records up to a limit", std::vector<std::string>{"METER_CHILD_PATH=" + scratch.path()});
        for (int i = 0; i < 50; ++i) c.meter.record(used(1), {.metric = "tokens", .units = 400});
        for (Child& child : children) CHECK(child.wait() == 0);
    }
    CHECK(c.meter.aggregate({.metric = "tokens"}).rows.at(0).value == 400);
    CHECK(shown(c.meter.record(used(1), {.metric = "tokens", .units = 400})) == "over 400->401/400!");
    CHECK(c.meter.verify() == std::vector<std::string>{});
}
#endif

// --- dry runs ---

namespace {

std::string shown(const std::optional<PricedMetric>& priced) {
    return priced ? priced->metric + " " + priced->units.to_string() + " " + priced->cents.to_string() : "-";
}

std::vector<std::string> shown(const Comparison& comparison) {
    const auto side = [](const ComparedFees& fees) { return fees.cents ? fees.cents->to_string() : fees.problem.empty() ? "-" : "?"; };
    std::vector<std::string> lines;
    for (const CustomerComparison& row : comparison.customers) {
        std::string line = row.customer + (row.subscription.empty() ? "" : "(" + row.subscription + ")") + ": " + side(row.a) + " | " + side(row.b);
        for (const MetricComparison& metric : row.metrics) line += " [" + shown(metric.a) + " | " + shown(metric.b) + "]";
        lines.push_back(line);
    }
    return lines;
}

}  // namespace

TEST_CASE("A dry run prices every customer with events under both books") {
    Clocked c(noon, ":memory:", 64);
    Meter& m = c.meter;
    for (int i = 0; i < 40; ++i) m.record({tokens(1, noon, "s1", "acme"), tokens(2, noon, "s2", "acme"), tokens(3, noon, "s3", "zeta")});
    m.record({tokens(7, noon, "lonely", ""),
              tokens(9, noon, "", "plain"),
              tokens(5, "2026-04-01T00:00:00Z", "s9", "later"),
              tokens(5, noon, "s1", ""),
              {.name = "other", .customer = "idle", .timestamp = at(noon)}});
    const Book lago = Book::lago(lago_plan("basic", "0.02")), flexprice = Book::flexprice(flexprice_prices("0.03"));
    const Comparison all = m.compare(lago, flexprice, march);
    CHECK(shown(all) == std::vector<std::string>{
                            "(lonely): 14 | - [tokens 7 14 | -]",
                            "acme: 250 | 360 [tokens 125 250 | flexprice:m1 120 360]",  // Lago counts a subscription's events whoever they name
                            "idle: - | 0 [- | flexprice:m1 0 0]",
                            "plain: - | 27 [- | flexprice:m1 9 27]",
                            "zeta: 240 | 360 [tokens 120 240 | flexprice:m1 120 360]",
                        });
    CHECK(all.a == 504);
    CHECK(all.b == 747);
    CHECK(all.difference() == 243);
    CHECK(all.problems == 0);
    CHECK(all.currency == "EUR");
    CHECK(all.period == march);
    CHECK(all.customers.at(1).difference() == 110);
    CHECK(all.customers.at(1).metrics.at(0).difference() == 110);
    CHECK(m.compare(flexprice, lago, march).difference() == -243);
    CHECK(m.compare(lago, lago, march).difference() == 0);
    CHECK(m.compare(lago, flexprice, month("2025-01-01T00:00:00Z", "2025-02-01T00:00:00Z")).customers.empty());
    CHECK(m.books().empty());
    // It is what usage() says once the books are loaded.
    m.load(flexprice);
    CHECK(cents(m, {.customer = "acme", .period = march}) == 360);
    m.remove_book("flexprice", "flexprice");
    m.load(lago);
    CHECK(cents(m, {.subscription = "s1", .period = march}) + cents(m, {.subscription = "s2", .period = march}) == 250);
}

TEST_CASE("A dry run says of everyone what usage() says, one by one") {
    const std::uint64_t seed = test_seed();
    CAPTURE(seed);
    std::mt19937_64 random(seed);
    const auto pick = [&](std::uint64_t n) { return static_cast<int>(random() % n); };
    Clocked c(noon, ":memory:", 64);
    Meter& m = c.meter;
    for (int i = 0; i < 400; ++i) {
        const std::string customer = std::to_string(pick(7));
        Event event = tokens(pick(30) - 3, noon, "s" + customer + std::to_string(pick(2)), "c" + customer);
        event.properties["model"] = "m" + std::to_string(pick(3));
        event.value = pick(9);
        m.record(event);
    }
    json plan = lago_plan("groups", "0.5", {{"charges", json::array()}});
    plan["billable_metrics"].push_back({{"code", "calls"}, {"aggregation_type", "count_agg"}});
    plan["plan"]["charges"] = {{{"billable_metric_code", "tokens"},
                                {"charge_model", "standard"},
                                {"pay_in_advance", true},
                                {"properties", {{"amount", "0.37"}, {"pricing_group_keys", {"model"}}}}},
                               {{"billable_metric_code", "tokens"},
                                {"charge_model", "percentage"},
                                {"properties", {{"rate", "1.5"}, {"fixed_amount", "0.1"}, {"free_units_per_events", 3}}}}};
    const Book lago = Book::lago(plan), flexprice = Book::flexprice(flexprice_prices("0.013"));
    const Comparison all = m.compare(lago, flexprice, march);
    REQUIRE(all.customers.size() == 7);
    CHECK(all.problems == 0);
    for (const CustomerComparison& row : all.customers) {
        CAPTURE(row.customer);
        const std::string number = row.customer.substr(1);
        m.load(lago);
        Decimal expected;
        for (const char* which : {"0", "1"}) expected += cents(m, {.subscription = "s" + number + which, .period = march});
        CHECK(row.a.cents == expected);
        m.remove_book("lago", "groups");
        m.load(flexprice);
        CHECK(row.b.cents == cents(m, {.customer = row.customer, .period = march}));
        m.remove_book("flexprice", "flexprice");
    }
}

TEST_CASE("A dry run counts values as usage() does, also those that are missing") {
    Clocked c(noon);
    Meter& m = c.meter;
    for (const char* customer : {"acme", "zeta"}) {
        m.record({{.name = "tokens", .customer = customer, .timestamp = at(noon), .properties = {{"tokens", "x"}}},
                  {.name = "tokens", .customer = customer, .timestamp = at(noon)}});
    }
    json unique = flexprice_prices("1");
    unique["meters"][0]["aggregation"]["type"] = "COUNT_UNIQUE";
    const Book book = Book::flexprice(unique);
    const Comparison all = m.compare(book, book, march);
    m.load(book);
    for (const CustomerComparison& row : all.customers) CHECK(row.a.cents == cents(m, {.customer = row.customer, .period = march}));
    CHECK(all.a == 200);
}

TEST_CASE("A dry run shows metrics that only one book prices, and a book's own list of subscriptions") {
    Clocked c(noon);
    Meter& m = c.meter;
    m.record({tokens(4, noon, "s1", "acme"),
              tokens(4, noon, "s2", "acme"),
              tokens(4, noon, "s3", "zeta"),
              {.name = "call", .customer = "acme", .subscription = "s1", .timestamp = at(noon)}});
    json one = lago_plan("one", "1"), two = lago_plan("two", "2");
    two["billable_metrics"].push_back({{"code", "calls"}, {"aggregation_type", "count_agg"}});
    two["billable_metrics"].push_back({{"code", "call"}, {"aggregation_type", "count_agg"}});
    two["plan"]["charges"].push_back({{"billable_metric_code", "call"}, {"charge_model", "standard"}, {"properties", {{"amount", "5"}}}});
    two["plan"]["charges"][0]["min_amount_cents"] = 2000;
    two["subscriptions"] = {{{"external_id", "s1"}, {"external_customer_id", "acme"}, {"started_at", "2025-01-01T00:00:00Z"}}};
    CHECK(shown(m.compare(Book::lago(one), Book::lago(two), march)) ==
          std::vector<std::string>{"acme: 800 | 1300 [tokens 8 800 | tokens 4 800] [- | call 1 500]", "zeta: 400 | - [tokens 4 400 | -]"});
    const auto closed = m.compare(Book::lago(one), Book::lago(two), march, true);
    CHECK(closed.customers.at(0).b.cents == 2500);  // lifted to the minimum
}

TEST_CASE("Fees that cannot be computed are named beside their customer and do not sink the answer") {
    Clocked c(noon);
    Meter& m = c.meter;
    m.record({tokens(4, noon, "s1", "acme"), tokens(6, noon, "s2", "zeta")});
    const std::string line =
        R"({"name": "tokens", "customer": "huge", "subscription": "s3", "timestamp": "2026-03-20T12:00:00Z", "properties": {"tokens": )" +
        std::string(38, '9') + "}}";
    REQUIRE(m.record_json(line + "\n" + line).at(1).status == ReceiptStatus::stored);
    const Comparison all = m.compare(Book::lago(lago_plan("one", "1")), Book::flexprice(flexprice_prices("2")), march);
    CHECK(shown(all) == std::vector<std::string>{"acme: 400 | 800 [tokens 4 400 | flexprice:m1 4 800]", "huge: ? | ?",
                                                 "zeta: 600 | 1200 [tokens 6 600 | flexprice:m1 6 1200]"});
    CHECK(all.problems == 1);
    CHECK_FALSE(all.customers.at(1).a.problem.empty());
    CHECK(all.a == 1000);
    CHECK(all.b == 2000);
}

TEST_CASE("Usage and fees in advance of a period that ends before it begins, or of no one, are refused") {
    Meter m;
    CHECK(error_of([&] { m.usage({}); }).code() == ErrorCode::bad_value);
    CHECK(error_of([&] { m.advance_fees(UsageQuery{}); }).code() == ErrorCode::bad_value);
    m.load(Book::lago(lago_plan("basic", "1")));
    const Period reversed = month("2026-03-01T00:00:00Z", "2026-02-01T00:00:00Z");
    CHECK(error_of([&] { m.usage({.subscription = "sub_1", .period = reversed}); }).field() == "period");
    CHECK(error_of([&] { m.advance_fees(UsageQuery{.subscription = "sub_1", .period = reversed}); }).field() == "period");
    CHECK(error_of([&] { m.usage({}); }).field() == "subscription");
}

TEST_CASE("A dry run over books in two currencies, or a period that ends before it begins, is refused") {
    Clocked c(noon);
    c.meter.record(tokens(4, noon));
    const Book lago = Book::lago(lago_plan("one", "1"));
    const auto currencies = error_of([&] { c.meter.compare(lago, Book::flexprice(flexprice_prices("2", "USD")), march); });
    CHECK(currencies.code() == ErrorCode::bad_value);
    CHECK(currencies.field() == "currency");
    CHECK(error_of([&] { c.meter.compare(lago, lago, {march.to, march.from}); }).field() == "period");
}

TEST_CASE("The lines of a fee add up to it, of large and small quantities and rates alike") {
    const json everything{{"conjunction", "and"}, {"clauses", json::array()}};
    const auto polar = [&](const char* rate) {
        const json price{{"id", "price"}, {"amount_type", "metered_unit"}, {"meter_id", "m"}, {"unit_amount", rate}, {"price_currency", "usd"}};
        const json metered{{"id", "m"}, {"filter", everything}, {"aggregation", {{"func", "sum"}, {"property", "n"}}}};
        return Book::polar({{"product", {{"id", "pro"}, {"prices", {price}}}}, {"meters", {metered}}});
    };
    for (const char* rate : {"99999.999999999999", "0.000000000001", "33"}) {
        for (const char* units : {"123456789012345680", "1", "0.3"}) {
            const Fee fee = polar(rate).price("price", Decimal(units));
            Decimal sum;
            for (const FeeLine& line : fee.lines) sum += line.amount;
            CHECK(sum == fee.amount);
        }
    }
}

TEST_CASE("A percentage of units that do not divide by their events is of all the units") {
    json plan = lago_plan("plan", "0");
    plan["plan"]["charges"][0]["charge_model"] = "percentage";
    plan["plan"]["charges"][0]["properties"] = {{"rate", "1.5"}};
    CHECK(Book::lago(plan).price("tokens", 1, 3).amount == Decimal("0.015"));
    CHECK(Book::lago(plan).price("tokens", 1, 3).amount_cents == 2);
    plan["premium"] = true;
    plan["plan"]["charges"][0]["properties"]["per_transaction_max_amount"] = "1000";
    CHECK(Book::lago(plan).price("tokens", 1, 3).amount == Decimal("0.015"));
    plan["plan"]["charges"][0]["properties"]["free_units_per_total_aggregation"] = "1";
    CHECK(Book::lago(plan).price("tokens", 1, 3).amount.is_zero());
}

TEST_CASE("What many units would cost under a percentage is what usage() says of as many, and what analytics() says they cost") {
    Meter m({.clock = [] { return at("2026-03-20T12:00:00Z"); }});
    for (const char* id : {"one", "two", "three", "four"})
        m.record({.id = id, .name = "tokens", .customer = "acme", .subscription = "sub_1", .properties = {{"tokens", 50}}});
    for (const json& terms : {json{}, json{{"fixed_amount", "2"}}, json{{"free_units_per_events", 3}}, json{{"free_units_per_total_aggregation", "120"}},
                              json{{"free_units_per_events", 1}, {"free_units_per_total_aggregation", "120"}}, json{{"per_transaction_min_amount", "3"}},
                              json{{"per_transaction_max_amount", "0.5"}, {"free_units_per_total_aggregation", "75"}}}) {
        for (const char* aggregation : {"sum_agg", "count_agg", "max_agg"}) {
            CAPTURE(terms.dump(), aggregation);
            json plan = lago_plan("plan", "0");
            plan["premium"] = true;
            plan["billable_metrics"][0]["aggregation_type"] = aggregation;
            plan["plan"]["charges"][0]["charge_model"] = "percentage";
            plan["plan"]["charges"][0]["properties"] = terms.is_null() ? json::object() : terms;
            plan["plan"]["charges"][0]["properties"]["rate"] = "1.5";
            m.load(Book::lago(plan));
            const Fee fee = m.usage({.subscription = "sub_1"}).fees.at(0);
            CHECK(Book::lago(plan).price("tokens", fee.units, fee.events).amount == fee.amount);
            CHECK(m.analytics({.subscription = "sub_1", .period = fee.period}).items.at(0).cost == fee.amount);
        }
    }
}

TEST_CASE("The longest waits that can be written are waits like others") {
    Scratch scratch;
    Meter m({.path = scratch.path(), .busy_timeout = std::chrono::milliseconds::max()});
    CHECK(m.record({.name = "a"}).status == ReceiptStatus::stored);
    CHECK(m.flush({.deadline = std::chrono::milliseconds::max()}).complete());
    m.start({.age = std::chrono::milliseconds::max()});
    m.stop();
}
