// Section 2: timestamps, periods, zones, cycles and bins. Zones need the system's zone files (Debian: tzdata).
#include "inside.hpp"

#include <cstdlib>
#include <ctime>
#include <random>


using meter::Bin;
using meter::BinGrid;
using meter::BinOptions;
using meter::Cycle;
using meter::Decimal;
using meter::Error;
using meter::ErrorCode;
using meter::MonthEnd;
using meter::Period;
using meter::Timestamp;
using meter::Zone;

namespace {

std::int64_t micros(std::string_view text) { return Timestamp::parse(text).micros(); }

bool refused(std::string_view text) {
    try {
        Timestamp::parse(text);
        return false;
    } catch (const Error& error) {
        return error.code() == ErrorCode::bad_value && error.field() == "timestamp";
    }
}

std::string from_unix(const char* seconds) { return Timestamp::from_unix(Decimal(seconds)).to_string(); }

}  // namespace

TEST_CASE("Timestamps in ISO 8601 and RFC 3339", "[time]") {
    CHECK(micros("1970-01-01") == 0);
    CHECK(micros("1970-01-01T00:00Z") == 0);
    CHECK(micros("1970-01-01 00:00:01z") == 1000000);
    CHECK(micros("1970-01-01t01:00:00+01") == 0);
    CHECK(micros("1970-01-01T01:30:00+0130") == 0);
    CHECK(micros("1969-12-31T18:30:00-05:30") == 0);
    CHECK(micros("1970-01-01T00:00:00.5Z") == 500000);
    CHECK(micros("1970-01-01T00:00:00.1234569999999999999999999999Z") == 123456);
    CHECK(micros("1969-12-31T23:59:59.9999999Z") == -1);
    CHECK(micros("2026-01-05T11:30:00.123456+01:00") == 1767609000123456);
    CHECK(micros("2000-01-01T23:59:00+23:59") == micros("2000-01-01T00:00:00Z"));
    CHECK(micros("2000-01-01T00:00:00-23:59") == micros("2000-01-01T23:59:00Z"));
    CHECK(micros("2024-02-29") == micros("2024-03-01") - 86400000000);
    CHECK(micros("2000-02-29T12:00Z") > 0);
    CHECK(Timestamp::parse("0001-01-01") == Timestamp::min());
    CHECK(Timestamp::parse("9999-12-31T23:59:59.999999Z") == Timestamp::max());
}

TEST_CASE("Timestamps that are refused", "[time]") {
    for (const char* text : {"",
                             "2026",
                             "2026-01",
                             "2026-1-05",
                             "26-01-05",
                             "2026/01/05",
                             "20260105",
                             "2026-01-05T",
                             "2026-01-05T11",
                             "2026-01-05T11:30",
                             "2026-01-05T11:30:00",
                             "2026-01-05T11:30:00.Z",
                             "2026-01-05T11:30:00,5Z",
                             "2026-01-05T11:30:00ZZ",
                             "2026-01-05T11:30:00Z ",
                             " 2026-01-05",
                             "2026-01-05  11:30Z",
                             "2026-01-05T11:30:00+1",
                             "2026-01-05T11:30:00+001",
                             "2026-01-05T11:30:00+00:0",
                             "2026-01-05T11:30:00+24:00",
                             "2026-01-05T11:30:00+00:60",
                             "2026-01-05T11:30:00+01:",
                             "2026-01-05T11:30:00+",
                             "2026-01-05T24:00:00Z",
                             "2026-01-05T23:60:00Z",
                             "2026-01-05T23:59:60Z",
                             "2026-02-29",
                             "2100-02-29",
                             "2026-04-31",
                             "2026-00-01",
                             "2026-13-01",
                             "2026-01-00",
                             "2026-01-32",
                             "0000-01-01",
                             "10000-01-01",
                             "-001-01-01",
                             "+2026-01-05",
                             "0001-01-01T00:00:00+00:01",
                             "9999-12-31T23:59:59-00:01",
                             "2026-01-05T11:30:00 Z",
                             "2026-01-05T11:30:00EST",
                             "1767609000",
                             "2026-01-05T1:30:00Z"}) {
        CAPTURE(text);
        CHECK(refused(text));
    }
    CHECK(refused(std::string_view("2026-01-05\0", 11)));
}

TEST_CASE("Timestamps from Unix counts are cut towards the past", "[time]") {
    CHECK(from_unix("0") == "1970-01-01T00:00:00Z");
    CHECK(from_unix("1767609000.5") == "2026-01-05T10:30:00.500Z");
    CHECK(from_unix("1767609000.1234567") == "2026-01-05T10:30:00.123456Z");
    CHECK(from_unix("-0.5") == "1969-12-31T23:59:59.500Z");
    CHECK(from_unix("-0.0000001") == "1969-12-31T23:59:59.999999Z");
    CHECK(Timestamp::from_unix_ms(Decimal("1767609000123.4567")).to_string() == "2026-01-05T10:30:00.123456Z");
    CHECK(Timestamp::from_unix_ms(Decimal("-1")).to_string() == "1969-12-31T23:59:59.999Z");
    CHECK(Timestamp::from_unix(Decimal("-62135596800")) == Timestamp::min());
    CHECK(Timestamp::from_unix(Decimal("253402300799.9999999")) == Timestamp::max());
    CHECK(Timestamp::from_unix_ms(Decimal("253402300799999.999")) == Timestamp::max());
    CHECK_THROWS_AS(Timestamp::from_unix(Decimal("253402300800")), Error);
    CHECK_THROWS_AS(Timestamp::from_unix(Decimal("-62135596800.0000001")), Error);
    CHECK_THROWS_AS(Timestamp::from_unix(Decimal("99999999999999999999999999999999999999")), Error);
    CHECK_THROWS_AS(Timestamp::from_unix_ms(Decimal("-99999999999999999999999999999999999999")), Error);
    CHECK_THROWS_AS(Timestamp::from_unix_ms(Decimal("253402300800000")), Error);
    CHECK(Timestamp::parse("2026-01-05T10:30:00.123456Z").unix_seconds() == Decimal("1767609000.123456"));
}

TEST_CASE("Timestamps print with as many decimals as needed or asked for", "[time]") {
    const Timestamp time = Timestamp::parse("2026-01-05T10:30:00.120456Z");
    CHECK(time.to_string() == "2026-01-05T10:30:00.120456Z");
    CHECK(time.to_string(0) == "2026-01-05T10:30:00Z");
    CHECK(time.to_string(2) == "2026-01-05T10:30:00.12Z");
    CHECK(time.to_string(3) == "2026-01-05T10:30:00.120Z");
    CHECK(Timestamp(-1).to_string() == "1969-12-31T23:59:59.999999Z");
    CHECK(Timestamp(-1).to_string(0) == "1969-12-31T23:59:59Z");
    CHECK(Timestamp::min().to_string() == "0001-01-01T00:00:00Z");
    CHECK(Timestamp::max().to_string() == "9999-12-31T23:59:59.999999Z");
    CHECK(Timestamp(std::numeric_limits<std::int64_t>::min()).to_string() == "0001-01-01T00:00:00Z");
    CHECK(Timestamp(std::numeric_limits<std::int64_t>::max()).to_string() == "10000-01-01T00:00:00Z");
    CHECK_THROWS_AS(time.to_string(7), Error);
    CHECK_THROWS_AS(time.to_string(-1), Error);
}

TEST_CASE("Timestamps from calendar parts", "[time]") {
    CHECK(Timestamp::from_civil(2026, 1, 5, 10, 30, 1).to_string() == "2026-01-05T10:30:01Z");
    CHECK(Timestamp::from_civil(1, 1, 1) == Timestamp::min());
    CHECK_THROWS_AS(Timestamp::from_civil(2026, 2, 29), Error);
    CHECK_THROWS_AS(Timestamp::from_civil(0, 1, 1), Error);
    CHECK_THROWS_AS(Timestamp::from_civil(10000, 1, 1), Error);
    CHECK_THROWS_AS(Timestamp::from_civil(100000, 1, 1), Error);
    CHECK_THROWS_AS(Timestamp::from_civil(2026, 257, 1), Error);
    CHECK_THROWS_AS(Timestamp::from_civil(2026, 1, 257), Error);
    CHECK_THROWS_AS(Timestamp::from_civil(2026, 1, 1, 24), Error);
    CHECK_THROWS_AS(Timestamp::from_civil(2026, 1, 1, 0, 60), Error);
    CHECK_THROWS_AS(Timestamp::from_civil(2026, 1, 1, 0, 0, 60), Error);
}

TEST_CASE("Periods are half-open", "[time]") {
    const Timestamp now = Timestamp::parse("2026-03-15T10:30:00Z");
    const Period week = meter::last_days(7, now);
    CHECK(week.from.to_string() == "2026-03-08T10:30:00Z");
    CHECK(week.contains(week.from));
    CHECK_FALSE(week.contains(now));
    CHECK(meter::last_days(std::numeric_limits<int>::max(), now).from == Timestamp::min());
    CHECK(meter::last_days(1, Timestamp(std::numeric_limits<std::int64_t>::max())).to == Period{}.to);
    CHECK(meter::last_days(1, Timestamp(std::numeric_limits<std::int64_t>::min())) == Period{Timestamp::min(), Timestamp::min()});
    CHECK_THROWS_AS(meter::last_days(-1, now), Error);
    CHECK(meter::this_month(now) == Period{Timestamp::from_civil(2026, 3, 1), Timestamp::from_civil(2026, 4, 1)});
    CHECK(meter::this_month(Timestamp::parse("2026-12-31T23:59:59.999999Z")).to == Timestamp::from_civil(2027, 1, 1));
    CHECK(meter::this_month(Timestamp::max()).to == Period{}.to);
    CHECK(Period{}.contains(Timestamp::max()));
    CHECK(Period{}.contains(Timestamp::min()));
}

// --- zones, cycles, bins ------------------------------------------------------------------------

namespace {

/// Where the bins begin, and where the last one ends.
std::vector<std::string> edges(const Period& period, const BinOptions& options) {
    const BinGrid grid(period, options);
    std::vector<std::string> list;
    for (std::int64_t i = 0; i <= grid.count(); ++i) list.push_back(grid.start(i).to_string());
    return list;
}

using Edges = std::vector<std::string>;

/// "code field" of what a call throws.
template <class Call>
std::string thrown(Call&& call) {
    try {
        call();
    } catch (const Error& error) {
        return std::to_string(static_cast<int>(error.code())) + " " + error.field();
    }
    return "nothing";
}

std::string bad(const char* field) { return std::to_string(static_cast<int>(ErrorCode::bad_value)) + " " + field; }

std::string zone_error(const char* name) {
    return thrown([&] { Zone{name}; });
}

std::vector<std::string> boundaries(const Cycle& cycle, const char* from, int count) {
    const auto first = cycle.index(Timestamp::parse(from));
    std::vector<std::string> list;
    for (int i = 0; i < count; ++i) list.push_back(cycle.boundary(first + i).to_string().substr(0, 10));
    return list;
}

}  // namespace

TEST_CASE("Zones are UTC, offsets and IANA names", "[time]") {
    const Timestamp summer = Timestamp::parse("2026-07-01T12:00Z");
    const auto local = [&](const char* zone) { return Timestamp(Zone(zone).to_local(summer)).to_string(); };
    CHECK(local("") == "2026-07-01T12:00:00Z");
    CHECK(local("UTC") == "2026-07-01T12:00:00Z");
    CHECK(local("+05:45") == "2026-07-01T17:45:00Z");
    CHECK(local("-0330") == "2026-07-01T08:30:00Z");
    CHECK(local("+02") == "2026-07-01T14:00:00Z");
    CHECK(local("Europe/Paris") == "2026-07-01T14:00:00Z");
    CHECK(local("America/New_York") == "2026-07-01T08:00:00Z");
    CHECK(local("US/Eastern") == "2026-07-01T08:00:00Z");
    for (const char* name :
         {"Europe/Atlantis", "europe/paris", "../../etc/passwd", "+2", "+25:00", "+02:00x", "-", "'; drop table events", "Europe/Paris\n"}) {
        CAPTURE(name);
        CHECK(zone_error(name) == bad("time_zone"));
    }
}

TEST_CASE("Local times that a clock skips or shows twice", "[time]") {
    const auto utc = [](const char* zone, const char* local) { return Zone(zone).to_utc(micros(local)).to_string(); };
    CHECK(utc("America/New_York", "2026-03-08T01:59:59Z") == "2026-03-08T06:59:59Z");
    CHECK(utc("America/New_York", "2026-03-08T02:30:00Z") == "2026-03-08T07:00:00Z");
    CHECK(utc("America/New_York", "2026-03-08T03:00:00Z") == "2026-03-08T07:00:00Z");
    CHECK(utc("America/New_York", "2026-11-01T01:30:00Z") == "2026-11-01T05:30:00Z");
    CHECK(utc("America/New_York", "2026-11-01T02:00:00Z") == "2026-11-01T07:00:00Z");
    CHECK(utc("America/Sao_Paulo", "2018-11-04T00:00:00Z") == "2018-11-04T03:00:00Z");
    CHECK(utc("America/Havana", "2026-11-01T00:00:00Z") == "2026-11-01T04:00:00Z");
    CHECK(utc("Pacific/Apia", "2011-12-30T12:00:00Z") == "2011-12-30T10:00:00Z");
    CHECK(utc("+14:00", "0001-01-01") == "0001-01-01T00:00:00Z");
}

TEST_CASE("Bins of a day in zones that change their clocks", "[time]") {
    const BinOptions day{.bin = Bin::day, .time_zone = "America/New_York"};
    CHECK(edges(period("2026-03-07T12:00Z", "2026-03-09T12:00Z"), day) ==
          Edges{"2026-03-07T05:00:00Z", "2026-03-08T05:00:00Z", "2026-03-09T04:00:00Z", "2026-03-10T04:00:00Z"});
    CHECK(edges(period("2026-11-01T04:00Z", "2026-11-02T05:00Z"), day) == Edges{"2026-11-01T04:00:00Z", "2026-11-02T05:00:00Z"});
    CHECK(edges(period("2018-11-03T12:00Z", "2018-11-04T12:00Z"), {.bin = Bin::day, .time_zone = "America/Sao_Paulo"}) ==
          Edges{"2018-11-03T03:00:00Z", "2018-11-04T03:00:00Z", "2018-11-05T02:00:00Z"});
    CHECK(edges(period("2011-12-29T12:00Z", "2011-12-30T12:00Z"), {.bin = Bin::day, .time_zone = "Pacific/Apia"}) ==
          Edges{"2011-12-29T10:00:00Z", "2011-12-30T10:00:00Z", "2011-12-31T10:00:00Z"});
    CHECK(edges(period("2026-03-08T05:00Z", "2026-03-08T13:00Z"), {.bin = Bin::hours_3, .time_zone = "America/New_York"}) ==
          Edges{"2026-03-08T05:00:00Z", "2026-03-08T07:00:00Z", "2026-03-08T10:00:00Z", "2026-03-08T13:00:00Z"});
}

TEST_CASE("Bins of hours and less follow the zone's clock and elapsed time", "[time]") {
    CHECK(edges(period("2026-11-01T04:30Z", "2026-11-01T07:00Z"), {.bin = Bin::hour, .time_zone = "America/New_York"}) ==
          Edges{"2026-11-01T04:00:00Z", "2026-11-01T05:00:00Z", "2026-11-01T06:00:00Z", "2026-11-01T07:00:00Z"});
    CHECK(edges(period("2026-01-01T00:00Z", "2026-01-01T01:00Z"), {.bin = Bin::hour, .time_zone = "Asia/Kolkata"}) ==
          Edges{"2025-12-31T23:30:00Z", "2026-01-01T00:30:00Z", "2026-01-01T01:30:00Z"});
    CHECK(edges(period("2026-01-01T00:00Z", "2026-01-01T00:30Z"), {.bin = Bin::minutes_15, .time_zone = "+00:10"}) ==
          Edges{"2025-12-31T23:50:00Z", "2026-01-01T00:05:00Z", "2026-01-01T00:20:00Z", "2026-01-01T00:35:00Z"});
    // Lord Howe goes from +11:00 to +10:30 at 2026-04-04T15:00Z, and back at 2026-10-03T15:30Z.
    const BinOptions hour{.bin = Bin::hour, .time_zone = "Australia/Lord_Howe"};
    CHECK(edges(period("2026-04-04T14:10Z", "2026-04-04T16:00Z"), hour) ==
          Edges{"2026-04-04T14:00:00Z", "2026-04-04T15:00:00Z", "2026-04-04T15:30:00Z", "2026-04-04T16:30:00Z"});
    CHECK(edges(period("2026-10-03T15:00Z", "2026-10-03T16:30Z"), hour) ==
          Edges{"2026-10-03T14:30:00Z", "2026-10-03T15:30:00Z", "2026-10-03T16:00:00Z", "2026-10-03T17:00:00Z"});
    CHECK(edges(period("2026-04-04T14:50Z", "2026-04-04T15:20Z"), {.bin = Bin::minutes_30, .time_zone = "Australia/Lord_Howe"}) ==
          Edges{"2026-04-04T14:30:00Z", "2026-04-04T15:00:00Z", "2026-04-04T15:30:00Z"});
}

TEST_CASE("Bins stay whole where a clock changes in their middle", "[time]") {
    // The Chatham Islands' clock goes from 03:45 (+13:45) back to 02:45 (+12:45) at 2028-04-01T14:00Z.
    const Period night = period("2028-04-01T12:30Z", "2028-04-01T15:00Z");
    CHECK(edges(night, {.bin = Bin::hour, .time_zone = "Pacific/Chatham"}) ==
          Edges{"2028-04-01T12:15:00Z", "2028-04-01T13:15:00Z", "2028-04-01T14:15:00Z", "2028-04-01T15:15:00Z"});
    CHECK(edges(night, {.bin = Bin::hours_3, .time_zone = "Pacific/Chatham"}) ==
          Edges{"2028-04-01T10:15:00Z", "2028-04-01T13:15:00Z", "2028-04-01T17:15:00Z"});
}

TEST_CASE("Bins of weeks, months, quarters and years", "[time]") {
    CHECK(edges(period("2026-01-07", "2026-01-13"), {.bin = Bin::week}) ==
          Edges{"2026-01-05T00:00:00Z", "2026-01-12T00:00:00Z", "2026-01-19T00:00:00Z"});
    CHECK(edges(period("2026-01-07", "2026-01-11"), {.bin = Bin::week, .week_start = std::chrono::Sunday}) ==
          Edges{"2026-01-04T00:00:00Z", "2026-01-11T00:00:00Z"});
    CHECK(edges(period("1969-12-31", "1970-01-01"), {.bin = Bin::week, .week_start = std::chrono::Thursday}) ==
          Edges{"1969-12-25T00:00:00Z", "1970-01-01T00:00:00Z"});
    CHECK(edges(period("2026-03-15", "2026-04-15"), {.bin = Bin::month, .time_zone = "Europe/Paris"}) ==
          Edges{"2026-02-28T23:00:00Z", "2026-03-31T22:00:00Z", "2026-04-30T22:00:00Z"});
    CHECK(edges(period("2026-02-15", "2026-04-01"), {.bin = Bin::quarter}) == Edges{"2026-01-01T00:00:00Z", "2026-04-01T00:00:00Z"});
    CHECK(edges(period("1969-02-15", "1970-02-01"), {.bin = Bin::year}) ==
          Edges{"1969-01-01T00:00:00Z", "1970-01-01T00:00:00Z", "1971-01-01T00:00:00Z"});
    CHECK(edges(period("2026-01-07T01:02Z", "2026-01-08T03:04Z"), {}) == Edges{"2026-01-07T01:02:00Z", "2026-01-08T03:04:00Z"});
}

TEST_CASE("Bins that begin on the day of billing", "[time]") {
    const auto anchored = [](const char* anchor, MonthEnd end) {
        return edges(period("2026-01-31", "2026-05-01"), {.bin = Bin::month, .anchor = Timestamp::parse(anchor), .month_end = end});
    };
    CHECK(anchored("2025-10-31", MonthEnd::clamp) ==
          Edges{"2026-01-31T00:00:00Z", "2026-02-28T00:00:00Z", "2026-03-31T00:00:00Z", "2026-04-30T00:00:00Z", "2026-05-31T00:00:00Z"});
    // FlexPrice's ClickHouse expression (aggregators.go:214).
    CHECK(anchored("2026-01-31", MonthEnd::overflow) ==
          Edges{"2026-01-31T00:00:00Z", "2026-03-03T00:00:00Z", "2026-03-31T00:00:00Z", "2026-05-01T00:00:00Z"});
    CHECK(anchored("2027-08-15T10:30Z", MonthEnd::clamp) ==
          Edges{"2026-01-15T10:30:00Z", "2026-02-15T10:30:00Z", "2026-03-15T10:30:00Z", "2026-04-15T10:30:00Z", "2026-05-15T10:30:00Z"});
    CHECK(edges(period("2026-01-31", "2026-05-01"), {.bin = Bin::quarter, .time_zone = "+01:00", .anchor = Timestamp::parse("2025-11-29T23:00Z")}) ==
          Edges{"2025-11-29T23:00:00Z", "2026-02-27T23:00:00Z", "2026-05-29T23:00:00Z"});
    CHECK(thrown([] { BinGrid({}, {.bin = Bin::day, .anchor = Timestamp()}); }) == bad("billing_anchor"));
    CHECK(thrown([] { BinGrid({}, {.bin = Bin::hour, .anchor = Timestamp()}); }) == bad("billing_anchor"));
    CHECK(thrown([] { BinGrid({}, {.bin = Bin::month, .anchor = Period{}.to}); }) == bad("billing_anchor"));
}

TEST_CASE("Bins at the edges", "[time]") {
    const Timestamp now = Timestamp::parse("2026-03-15T10:30:00Z");
    CHECK(BinGrid({now, now}, {.bin = Bin::day}).count() == 0);
    CHECK(BinGrid({now, Timestamp()}, {.bin = Bin::day}).count() == 0);
    CHECK(BinGrid({now, now + std::chrono::microseconds(1)}, {.bin = Bin::minute}).count() == 1);
    CHECK(thrown([] { BinGrid({}, {.bin = static_cast<Bin>(99)}); }) == bad("bin"));
    CHECK(thrown([] { BinGrid({}, {.bin = Bin::day, .time_zone = "Mars/Base"}); }) == bad("time_zone"));
    CHECK(thrown([] { BinGrid({}, {.bin = Bin::week, .week_start = std::chrono::weekday(9)}); }) == bad("week_start"));
    const std::string too_large = std::to_string(static_cast<int>(ErrorCode::too_large)) + " bin";
    CHECK(thrown([] { BinGrid({}, {.bin = Bin::hours_3, .time_zone = "Europe/Paris"}); }) == too_large);
    // All of time is no trouble where the grid is a formula, nor for months.
    const BinGrid minutes(Period{}, {.bin = Bin::minute}), months(Period{Timestamp(INT64_MIN), Timestamp(INT64_MAX)}, {.bin = Bin::month});
    std::int64_t hint = 0;
    CHECK(minutes.start(minutes.index(now, hint)) == now);
    CHECK(minutes.start(minutes.count()) == Period{}.to);
    CHECK(months.count() == 9999 * 12);
    CHECK(months.index(Timestamp::min(), hint) == 0);
    CHECK(months.index(Timestamp::max(), hint) == months.count() - 1);
}

TEST_CASE("Bins tell where a time belongs", "[time]") {
    const BinGrid grid(period("2026-01-01", "2027-01-01"), {.bin = Bin::month, .time_zone = "Europe/Paris"});
    std::int64_t hint = 0;
    for (const char* text :
         {"2026-06-15", "2026-06-16", "2026-01-01", "2026-12-31T23:59:59Z", "2026-03-31T21:59:59.999999Z", "2026-03-31T22:00:00Z", "2026-06-01"}) {
        const Timestamp time = Timestamp::parse(text);
        const auto index = grid.index(time, hint);
        CAPTURE(text, index);
        CHECK(grid.start(index) <= time);
        CHECK(time < grid.start(index + 1));
    }
}

TEST_CASE("Bins of all of time", "[time]") {
    meter::Bins weeks({.bin = Bin::week, .time_zone = "Europe/Paris"}), none({});
    CHECK(weeks.around(Timestamp::parse("2026-03-29T12:00Z")) == period("2026-03-22T23:00Z", "2026-03-29T22:00Z"));
    CHECK(weeks.around(Timestamp::parse("2026-03-29T22:00Z")) == period("2026-03-29T22:00Z", "2026-04-05T22:00Z"));
    CHECK(weeks.around(Timestamp::parse("9999-12-30T12:00Z")).from == Timestamp::parse("9999-12-26T23:00Z"));
    CHECK(weeks.around(Timestamp::min()).contains(Timestamp::min()));
    CHECK(weeks.around(Timestamp::max()).contains(Timestamp::max()));
    CHECK(none.around(Timestamp()) == Period{});
    // At the seams of the grids a bin is the same from both sides.
    for (std::int64_t era = -3; era <= 3; ++era) {
        const Timestamp seam(era * (std::int64_t{1} << 45));
        CHECK(weeks.around(seam) == weeks.around(seam - std::chrono::microseconds(1)));
    }
    CHECK(thrown([] { meter::Bins({.bin = Bin::day, .time_zone = "Mars/Base"}); }) == bad("time_zone"));
}

TEST_CASE("Cycles count from their anchor", "[time]") {
    const Zone utc("");
    const auto at = [](const char* text) { return micros(text); };
    CHECK(boundaries(Cycle({1, 0}, at("2024-01-31"), utc), "2024-01-31", 4) == Edges{"2024-01-31", "2024-02-29", "2024-03-31", "2024-04-30"});
    CHECK(boundaries(Cycle({1, 0}, at("2024-01-31"), utc), "2023-02-27", 3) == Edges{"2023-01-31", "2023-02-28", "2023-03-31"});
    CHECK(boundaries(Cycle({12, 0}, at("2024-02-29"), utc), "2024-03-01", 5) ==
          Edges{"2024-02-29", "2025-02-28", "2026-02-28", "2027-02-28", "2028-02-29"});
    CHECK(boundaries(Cycle({0, 7 * meter::micros_per_day}, at("2025-01-08"), utc), "2025-01-07", 2) == Edges{"2025-01-01", "2025-01-08"});
    const Cycle month({1, 0}, at("2026-01-31T12:00Z"), utc);
    CHECK(month.around(Timestamp::parse("2026-02-28T12:00Z")) == period("2026-02-28T12:00Z", "2026-03-31T12:00Z"));
    CHECK(month.around(Timestamp::parse("2026-02-28T11:59:59.999999Z")) == period("2026-01-31T12:00Z", "2026-02-28T12:00Z"));
    CHECK(thrown([] { meter::repeated({1, 0}, 0); }) == bad("interval_count"));
    CHECK(thrown([] { meter::repeated({1, 0}, 1001); }) == bad("interval_count"));
    CHECK(meter::repeated({3, 0}, 1000).months == 3000);
}

TEST_CASE("Ranges known by name", "[time]") {
    const Timestamp now = Timestamp::parse("2026-03-15T10:30:00Z");
    const meter::BillingCycle cycle{period("2026-03-10", "2026-04-10"), Timestamp::parse("2025-12-10")};
    CHECK(meter::named_period("24h", now) == Period{now - std::chrono::hours(24), now});
    CHECK(meter::named_period("90d", now, cycle) == meter::last_days(90, now));
    CHECK(meter::named_period("1bc", now, cycle) == meter::last_days(31, now));
    CHECK(meter::named_period("3bc", now, cycle) == meter::last_days(93, now));
    CHECK(meter::named_period("last_cycle", now, cycle) == period("2026-02-07", "2026-03-10"));
    CHECK(meter::named_period("last_cycle", now, meter::BillingCycle{cycle.current, cycle.current.from}) == cycle.current);
    CHECK(meter::named_period("3bc", now, meter::BillingCycle{}) == Period{Timestamp::min(), now});
    CHECK(thrown([&] { meter::named_period("1bc", now); }) == bad("period"));
    CHECK(thrown([&] { meter::named_period("31d", now, cycle); }) == bad("period"));
    CHECK(thrown([&] { meter::named_period("", now, cycle); }) == bad("period"));
    CHECK(thrown([&] { meter::named_period("1bc", now, meter::BillingCycle{{now, now}, now}); }) == bad("cycle"));
}

TEST_CASE("Aggregates in the bins of a zone", "[time]") {
    meter::Meter m;
    for (const char* time : {"2026-03-08T04:59:59Z", "2026-03-08T05:00Z", "2026-03-09T03:59:59Z", "2026-03-09T04:00Z", "2026-03-31T04:00Z"}) {
        m.record({.name = "call", .timestamp = Timestamp::parse(time)});
    }
    const auto counts = [&](const meter::AggregateQuery& query) {
        Edges list;
        for (const auto& row : m.aggregate({.code = "call"}, query).rows) list.push_back(row.bin->to_string() + " " + row.value.to_string());
        return list;
    };
    CHECK(counts({.bin = Bin::day, .time_zone = "America/New_York"}) ==
          Edges{"2026-03-07T05:00:00Z 1", "2026-03-08T05:00:00Z 2", "2026-03-09T04:00:00Z 1", "2026-03-31T04:00:00Z 1"});
    CHECK(counts({.bin = Bin::week, .week_start = std::chrono::Sunday}) == Edges{"2026-03-08T00:00:00Z 4", "2026-03-29T00:00:00Z 1"});
    CHECK(counts({.bin = Bin::month, .billing_anchor = Timestamp::parse("2025-12-31T04:00Z")}) ==
          Edges{"2026-02-28T04:00:00Z 4", "2026-03-31T04:00:00Z 1"});
    CHECK(thrown([&] { counts({.bin = Bin::day, .time_zone = "Mars/Base"}); }) == bad("time_zone"));
}

#ifndef _WIN32
// The oracle is the C library, with its own reader of zone files.
namespace {

std::tm c_local_time(std::int64_t seconds) {
    const std::time_t time = static_cast<std::time_t>(seconds);
    std::tm parts{};
    localtime_r(&time, &parts);
    return parts;
}

/// What all times of one bin have in common.
std::vector<int> bin_key(Bin bin, const std::tm& parts) {
    const int quarter = parts.tm_mon / 3, minutes = parts.tm_hour * 60 + parts.tm_min;
    const auto offset = static_cast<int>(parts.tm_gmtoff);
    switch (bin) {
        case Bin::minute:
            return {parts.tm_year, parts.tm_yday, minutes, offset};
        case Bin::minutes_15:
            return {parts.tm_year, parts.tm_yday, minutes / 15, offset};
        case Bin::minutes_30:
            return {parts.tm_year, parts.tm_yday, minutes / 30, offset};
        case Bin::hour:
            return {parts.tm_year, parts.tm_yday, parts.tm_hour, offset};
        case Bin::hours_3:
            return {parts.tm_year, parts.tm_yday, parts.tm_hour / 3};
        case Bin::hours_6:
            return {parts.tm_year, parts.tm_yday, parts.tm_hour / 6};
        case Bin::hours_12:
            return {parts.tm_year, parts.tm_yday, parts.tm_hour / 12};
        case Bin::day:
            return {parts.tm_year, parts.tm_yday};
        case Bin::month:
            return {parts.tm_year, parts.tm_mon};
        case Bin::quarter:
            return {parts.tm_year, quarter};
        default:
            return {parts.tm_year};
    }
}

constexpr Bin clock_bins[] = {Bin::minute,   Bin::minutes_15, Bin::minutes_30, Bin::hour,    Bin::hours_3, Bin::hours_6,
                              Bin::hours_12, Bin::day,        Bin::month,      Bin::quarter, Bin::year};

struct CZone {
    explicit CZone(const char* name) {
        setenv("TZ", name, 1);
        tzset();
    }
    ~CZone() {
        unsetenv("TZ");
        tzset();
    }
};

}  // namespace

TEST_CASE("Bins agree with the C library's clock", "[time][property]") {
    const char* const text = std::getenv("METER_SEED");
    const std::uint64_t seed = text ? std::strtoull(text, nullptr, 10) : 20261121;
    std::mt19937_64 random(seed);
    const auto between = [&](std::int64_t least, std::int64_t most) { return std::uniform_int_distribution<std::int64_t>(least, most)(random); };
    for (const char* zone :
         {"UTC", "Europe/Paris", "Europe/London", "America/New_York", "America/Sao_Paulo", "America/St_Johns", "Asia/Kolkata", "Asia/Kathmandu",
          "Asia/Tehran", "Australia/Lord_Howe", "Australia/Adelaide", "Pacific/Apia", "Africa/Casablanca", "Africa/Cairo"}) {
        const CZone clock(zone);
        for (int i = 0; i < 300; ++i) {
            const std::int64_t from = between(1325376000, 2082758400);  // 2012 to 2035
            const std::int64_t to = from + between(1, 400 * 86400);
            const Bin bin = clock_bins[static_cast<std::size_t>(between(0, std::size(clock_bins) - 1))];
            const BinGrid grid({Timestamp(from * 1000000), Timestamp(to * 1000000)}, {.bin = bin, .time_zone = zone});
            std::int64_t hint = 0;
            CAPTURE(seed, zone, i, from, to, static_cast<int>(bin));
            REQUIRE(grid.start(0).micros() <= from * 1000000);
            REQUIRE(grid.start(grid.count()).micros() >= to * 1000000);
            for (int j = 0; j < 20; ++j) {
                const std::int64_t time = between(from, to - 1);
                const auto index = grid.index(Timestamp(time * 1000000), hint);
                const std::int64_t start = grid.start(index).micros() / 1000000, end = grid.start(index + 1).micros() / 1000000;
                const auto key = bin_key(bin, c_local_time(time));
                CAPTURE(time, start, end);
                REQUIRE(start <= time);
                REQUIRE(time < end);
                REQUIRE(bin_key(bin, c_local_time(start)) == key);
                REQUIRE(bin_key(bin, c_local_time(end - 1)) == key);
                REQUIRE(bin_key(bin, c_local_time(start - 1)) != key);
                REQUIRE(bin_key(bin, c_local_time(end)) != key);
            }
        }
    }
}
#endif
