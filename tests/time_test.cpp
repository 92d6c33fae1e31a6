// Section 2: timestamps and periods.
#include "../meter.hpp"
#include "testing.hpp"

using meter::Decimal;
using meter::Error;
using meter::ErrorCode;
using meter::Period;
using meter::Timestamp;

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
    CHECK_THROWS_AS(meter::last_days(-1, now), Error);
    CHECK(meter::this_month(now) == Period{Timestamp::from_civil(2026, 3, 1), Timestamp::from_civil(2026, 4, 1)});
    CHECK(meter::this_month(Timestamp::parse("2026-12-31T23:59:59.999999Z")).to == Timestamp::from_civil(2027, 1, 1));
    CHECK(meter::this_month(Timestamp::max()).to == Period{}.to);
    CHECK(Period{}.contains(Timestamp::max()));
    CHECK(Period{}.contains(Timestamp::min()));
}
