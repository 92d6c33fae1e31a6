// Section 1: Decimal. The oracle of the property tests is Boost.Multiprecision (Debian: libboost-dev).
#include <boost/multiprecision/cpp_int.hpp>
#include <cstdlib>
#include <random>

#include "../meter.hpp"
#include "testing.hpp"

using meter::Decimal;
using meter::Error;
using meter::ErrorCode;
using meter::Rounding;

namespace {

/// The code a call throws, or nothing when it does not.
template <class Call>
std::optional<ErrorCode> error_of(Call&& call) {
    try {
        call();
    } catch (const Error& error) {
        return error.code();
    }
    return std::nullopt;
}

std::optional<ErrorCode> parse_error(std::string_view text) {
    const auto error = error_of([&] { Decimal{text}; });
    CHECK(Decimal::parse(text).has_value() != error.has_value());
    return error;
}

std::string printed(std::string_view text) { return Decimal(text).to_string(); }

const std::string nines(38, '9');

}  // namespace

TEST_CASE("Decimal reads and prints plain and exponent forms", "[decimal]") {
    CHECK(printed("0") == "0");
    CHECK(printed("-0") == "0");
    CHECK(printed("-0.000e5") == "0");
    CHECK(printed("+7") == "7");
    CHECK(printed("007.2500") == "7.25");
    CHECK(printed(".5") == "0.5");
    CHECK(printed("5.") == "5");
    CHECK(printed("-12.50") == "-12.5");
    CHECK(printed("1.25e3") == "1250");
    CHECK(printed("1.25E-3") == "0.00125");
    CHECK(printed("100e-2") == "1");
    CHECK(printed("0e999999999999999999999") == "0");
    CHECK(printed("18446744073709551615") == "18446744073709551615");
    CHECK(printed("18446744073709551616") == "18446744073709551616");
    CHECK(printed("34028236692093846346337460743176821145e-1") == "3402823669209384634633746074317682114.5");
    CHECK(printed(nines) == nines);
    CHECK(printed("-" + nines) == "-" + nines);
    CHECK(printed("1e37") == "1" + std::string(37, '0'));
    CHECK(printed("1e-76") == "0." + std::string(75, '0') + "1");
    CHECK(printed(std::string(500, '0') + "1." + std::string(500, '0')) == "1");
    CHECK(printed("1" + std::string(300, '0') + "e-300") == "1");
    CHECK(printed("0." + std::string(300, '0') + "1e301") == "1");
}

TEST_CASE("Decimal refuses what is not a number", "[decimal]") {
    for (const char* text : {"",     "+",   "-",     ".",   "-.",  "e5",    ".e5",   "1e",  "1e+", "1_0",      " 1",  "1 ", "1\n",
                             "0x10", "1,5", "1.2.3", "--1", "+-1", "1e5.0", "1e5e5", "NaN", "nan", "Infinity", "inf", "1f", "\xd9\xa1"}) {
        CAPTURE(text);
        CHECK(parse_error(text) == ErrorCode::bad_value);
    }
    CHECK(parse_error(std::string_view("1\0", 2)) == ErrorCode::bad_value);
}

TEST_CASE("Decimal refuses what does not fit", "[decimal]") {
    for (const std::string& text : {std::string("1e400"), std::string("-1e400"), std::string("1e-400"), std::string("1e999999999999"),
                                    std::string("1e-99999999999999999999999"), std::string("1e38"), std::string("1e-77"), nines + "9", nines + ".9",
                                    "0.1234567890123456789012345678901234567890" + std::string("1"), "1" + std::string(37, '0') + "1"}) {
        CAPTURE(text);
        CHECK(parse_error(text) == ErrorCode::overflow);
    }
}

TEST_CASE("Decimal is always in lowest terms", "[decimal]") {
    CHECK(Decimal("2.50").scale() == 1);
    CHECK(Decimal("2.50") == Decimal("2.5"));
    CHECK((Decimal("0.5") + Decimal("0.5")).scale() == 0);
    CHECK((Decimal("2.5") * Decimal("0.4")).scale() == 0);
    CHECK((Decimal("1.5") - Decimal("1.5")) == Decimal());
    CHECK_FALSE((-Decimal(0)).is_negative());
    CHECK(Decimal::scaled(-1200, 3) == Decimal("-1.2"));
    CHECK(Decimal::scaled(0, 76) == Decimal());
    CHECK(Decimal::scaled(std::numeric_limits<std::int64_t>::min(), 0).to_string() == "-9223372036854775808");
    CHECK(error_of([] { Decimal::scaled(1, 77); }) == ErrorCode::bad_value);
    CHECK(error_of([] { Decimal::scaled(1, -1); }) == ErrorCode::bad_value);
}

TEST_CASE("Decimal from integers, doubles and JSON", "[decimal]") {
    CHECK(Decimal(-5).to_string() == "-5");
    CHECK(Decimal(std::numeric_limits<std::int64_t>::min()).to_string() == "-9223372036854775808");
    CHECK(Decimal(std::numeric_limits<std::uint64_t>::max()).to_string() == "18446744073709551615");
    CHECK(Decimal::from_double(0.1).to_string() == "0.1");
    CHECK(Decimal::from_double(-0.0) == Decimal());
    CHECK(Decimal::from_double(1e21).to_string() == "1000000000000000000000");
    CHECK(Decimal::from_double(1.0 / 3).to_string() == "0.3333333333333333");
    CHECK(error_of([] { Decimal::from_double(std::numeric_limits<double>::quiet_NaN()); }) == ErrorCode::bad_value);
    CHECK(error_of([] { Decimal::from_double(std::numeric_limits<double>::infinity()); }) == ErrorCode::bad_value);
    CHECK(error_of([] { Decimal::from_double(1e300); }) == ErrorCode::overflow);
    CHECK(error_of([] { Decimal::from_double(5e-324); }) == ErrorCode::overflow);
    CHECK(Decimal::from_json(meter::json::parse("-12")) == Decimal(-12));
    CHECK(Decimal::from_json(meter::json::parse("18446744073709551615")).to_string() == "18446744073709551615");
    CHECK(Decimal::from_json(meter::json::parse("0.30")) == Decimal("0.3"));
    CHECK(Decimal::from_json("1.10") == Decimal("1.1"));
    for (const char* text : {"null", "true", "[]", "{}", "\"x\"", "\"\""}) {
        CAPTURE(text);
        CHECK(error_of([&] { Decimal::from_json(meter::json::parse(text)); }) == ErrorCode::bad_value);
    }
}

TEST_CASE("Decimal adds, subtracts and multiplies exactly", "[decimal]") {
    CHECK((Decimal("0.1") + Decimal("0.2")).to_string() == "0.3");
    CHECK((Decimal("18446744073709551615") + Decimal(1)).to_string() == "18446744073709551616");
    CHECK((Decimal("18446744073709551616") - Decimal(1)).to_string() == "18446744073709551615");
    CHECK((Decimal("9223372036854775807") + Decimal("9223372036854775807")).to_string() == "18446744073709551614");
    CHECK((Decimal(5) + Decimal("-7.25")).to_string() == "-2.25");
    CHECK((Decimal("4294967296") * Decimal("4294967296")).to_string() == "18446744073709551616");
    CHECK((Decimal("9999999999999999999") * Decimal("9999999999999999999")).to_string() == "99999999999999999980000000000000000001");
    CHECK((Decimal("-1.5") * Decimal("1.5")).to_string() == "-2.25");
    CHECK((Decimal("12345678901234567890.123") * Decimal(0)) == Decimal());
    Decimal total;
    for (int i = 0; i < 10; ++i) total += Decimal("0.1");
    CHECK(total == Decimal(1));
}

TEST_CASE("Decimal overflows as an error, and only when the result does not fit", "[decimal]") {
    const Decimal most(nines);
    CHECK(error_of([&] { most + Decimal(1); }) == ErrorCode::overflow);
    CHECK(error_of([&] { most + Decimal("0.1"); }) == ErrorCode::overflow);
    CHECK(error_of([&] { -most - Decimal(1); }) == ErrorCode::overflow);
    CHECK(error_of([&] { most* most; }) == ErrorCode::overflow);
    CHECK(error_of([] { Decimal("1e-40") * Decimal("1e-40"); }) == ErrorCode::overflow);
    CHECK(error_of([] { Decimal("1e37") + Decimal("1e-76"); }) == ErrorCode::overflow);
    CHECK(most - most == Decimal());
    CHECK((most + Decimal(-1)).to_string() == std::string(37, '9') + "8");
    CHECK((Decimal("1e37") - Decimal("0.1")).to_string() == std::string(37, '9') + ".9");
    const Decimal tenths(std::string(37, '9') + ".5");
    CHECK((tenths + tenths).to_string() == "1" + std::string(36, '9') + "9");
    CHECK(Decimal("1e37") * Decimal("1e-76") == Decimal("1e-39"));
    // 66 digits on the way, 16 in the result.
    CHECK(Decimal("1267650600228229401496703205376e-50") * Decimal("88817841970012523233890533447265625") == Decimal("1125899906842624"));
}

TEST_CASE("Decimal rounds in every mode", "[decimal]") {
    const auto rounded = [](const char* text, int scale, Rounding mode) { return Decimal(text).round(scale, mode).to_string(); };
    struct Row {
        const char *value, *half_up, *half_even, *up, *down, *ceil, *floor;
    };
    for (const Row& row :
         {Row{"0.4", "0", "0", "1", "0", "1", "0"}, Row{"0.5", "1", "0", "1", "0", "1", "0"}, Row{"1.5", "2", "2", "2", "1", "2", "1"},
          Row{"2.5", "3", "2", "3", "2", "3", "2"}, Row{"2.500001", "3", "3", "3", "2", "3", "2"}, Row{"-0.5", "-1", "0", "-1", "0", "0", "-1"},
          Row{"-2.5", "-3", "-2", "-3", "-2", "-2", "-3"}, Row{"-0.4", "0", "0", "-1", "0", "0", "-1"}, Row{"7", "7", "7", "7", "7", "7", "7"}}) {
        CAPTURE(row.value);
        CHECK(rounded(row.value, 0, Rounding::half_up) == row.half_up);
        CHECK(rounded(row.value, 0, Rounding::half_even) == row.half_even);
        CHECK(rounded(row.value, 0, Rounding::up) == row.up);
        CHECK(rounded(row.value, 0, Rounding::down) == row.down);
        CHECK(rounded(row.value, 0, Rounding::ceil) == row.ceil);
        CHECK(rounded(row.value, 0, Rounding::floor) == row.floor);
    }
    CHECK(rounded("12.345", 2, Rounding::half_up) == "12.35");
    CHECK(rounded("1250", -2, Rounding::half_even) == "1200");
    CHECK(rounded("1250", -2, Rounding::half_up) == "1300");
    CHECK(rounded("49", -2, Rounding::half_up) == "0");
    CHECK(rounded("1", -37, Rounding::up) == "1" + std::string(37, '0'));
    CHECK(rounded("1", -1000, Rounding::down) == "0");
    CHECK(rounded("5e37", -38, Rounding::half_even) == "0");
    CHECK(error_of([] { Decimal(1).round(-38, Rounding::up); }) == ErrorCode::overflow);
    CHECK(error_of([] { Decimal(1).round(-1000, Rounding::up); }) == ErrorCode::overflow);
    CHECK(rounded("1e-76", 75, Rounding::up) == "0." + std::string(74, '0') + "1");
    CHECK(Decimal(std::string(37, '9') + ".9").round(0, Rounding::half_up) == Decimal("1e37"));
}

TEST_CASE("Decimal divides to a scale and to significant digits", "[decimal]") {
    const auto divided = [](const char* a, const char* b, int scale, Rounding mode) {
        return Decimal::divide(Decimal(a), Decimal(b), scale, mode).to_string();
    };
    const auto significant = [](const char* a, const char* b, int digits) {
        return Decimal::divide_significant(Decimal(a), Decimal(b), digits, Rounding::half_even).to_string();
    };
    CHECK(divided("1", "3", 5, Rounding::half_up) == "0.33333");
    CHECK(divided("2", "3", 5, Rounding::half_up) == "0.66667");
    CHECK(divided("-2", "3", 5, Rounding::ceil) == "-0.66666");
    CHECK(divided("1", "8", 2, Rounding::half_even) == "0.12");
    CHECK(divided("1", "8", 2, Rounding::half_up) == "0.13");
    CHECK(divided("10", "4", 0, Rounding::down) == "2");
    CHECK(divided("1", "3", 38, Rounding::down) == "0." + std::string(38, '3'));
    CHECK(divided("1e37", "10", 20, Rounding::down) == "1" + std::string(36, '0'));
    CHECK(error_of([] { Decimal::divide(Decimal("1e37"), Decimal("0.1"), 20, Rounding::down); }) == ErrorCode::overflow);
    CHECK(divided(nines.c_str(), nines.c_str(), 76, Rounding::down) == "1");
    // The 50 decimals asked for end in zeros, so the rounded result fits.
    CHECK(divided("1", "9999999999999999999999999999999999999e1", 50, Rounding::half_up) == Decimal("1e-38").to_string());
    CHECK(error_of([] { Decimal::divide(1, 3, 39, Rounding::down); }) == ErrorCode::overflow);
    CHECK(error_of([] { Decimal::divide(1, 0, 2, Rounding::down); }) == ErrorCode::bad_value);
    CHECK(error_of([] { Decimal::divide(1, 3, 77, Rounding::down); }) == ErrorCode::bad_value);
    CHECK(error_of([] { Decimal::divide(1, 3, -1, Rounding::down); }) == ErrorCode::bad_value);
    CHECK(significant("1", "3", 4) == "0.3333");
    CHECK(significant("200", "3", 4) == "66.67");
    CHECK(significant("2", "3", 1) == "0.7");
    CHECK(significant("9995", "10", 3) == "1000");
    CHECK(significant("123456", "1", 2) == "120000");
    CHECK(significant("0", "7", 5) == "0");
    CHECK(significant("1e37", "3e-1", 38).size() == 38);
    CHECK(error_of([] { Decimal::divide_significant(1, 0, 5, Rounding::down); }) == ErrorCode::bad_value);
    CHECK(error_of([] { Decimal::divide_significant(1, 3, 0, Rounding::down); }) == ErrorCode::bad_value);
    CHECK(error_of([] { Decimal::divide_significant(1, 3, 39, Rounding::down); }) == ErrorCode::bad_value);
    CHECK(error_of([] { Decimal::divide_significant(Decimal("1e-76"), 3, 5, Rounding::down); }) == ErrorCode::overflow);
    CHECK(error_of([] { Decimal::divide_significant(Decimal("1e37"), Decimal("1e-76"), 5, Rounding::down); }) == ErrorCode::overflow);
}

TEST_CASE("Decimal compares by value", "[decimal]") {
    const std::vector<std::string> ascending{"-" + nines, "-1e37", "-1.5", "-1", "-0.1", "-1e-76", "0",    "1e-76", "2e-76",
                                             "0.09",      "0.1",   "0.11", "1",  "1.5",  "2",      "1e19", "1e37",  nines};
    for (std::size_t i = 0; i < ascending.size(); ++i) {
        for (std::size_t j = 0; j < ascending.size(); ++j) {
            CAPTURE(ascending[i], ascending[j]);
            CHECK((Decimal(ascending[i]) <=> Decimal(ascending[j])) == (i <=> j));
            CHECK((Decimal(ascending[i]) == Decimal(ascending[j])) == (i == j));
        }
    }
}

TEST_CASE("Decimal answers in other forms", "[decimal]") {
    CHECK(Decimal("12.5").to_fixed(2) == "12.50");
    CHECK(Decimal("12.345").to_fixed(2) == "12.35");
    CHECK(Decimal("-0.004").to_fixed(2) == "0.00");
    CHECK(Decimal(7).to_fixed(0) == "7");
    CHECK(Decimal(7).to_fixed(3) == "7.000");
    CHECK(Decimal(nines).to_fixed(2) == nines + ".00");
    CHECK(error_of([] { Decimal(7).to_fixed(-1); }) == ErrorCode::bad_value);
    CHECK(Decimal("0.1").to_double() == 0.1);
    CHECK(Decimal("-1e-76").to_double() == -1e-76);
    CHECK(Decimal(nines).to_double() == 1e38);
    CHECK(Decimal("-" + std::string(37, '1') + ".3").to_double() == -1111111111111111111111111111111111111.3);
    CHECK(Decimal("9223372036854775807").to_int64() == std::numeric_limits<std::int64_t>::max());
    CHECK(Decimal("-9223372036854775808").to_int64() == std::numeric_limits<std::int64_t>::min());
    CHECK_FALSE(Decimal("9223372036854775808").to_int64());
    CHECK_FALSE(Decimal("-9223372036854775809").to_int64());
    CHECK_FALSE(Decimal("0.5").to_int64());
    CHECK_FALSE(Decimal(nines).to_int64());
    CHECK(Decimal(0).digits() == 1);
    CHECK(Decimal("0.001").digits() == 1);
    CHECK(Decimal("1000").digits() == 4);
    CHECK(Decimal(nines).digits() == 38);
    CHECK(Decimal("-2.5").abs() == Decimal("2.5"));
    CHECK(-Decimal("2.5") == Decimal("-2.5"));
}

TEST_CASE("Errors about numbers are printable whatever the text", "[decimal]") {
    try {
        Decimal("\xff\x01 and quite a lot more text than an error needs");
        FAIL("no error");
    } catch (const Error& error) {
        CHECK(error.reason() == "\"?? and quite a lot more text than an err...\" is not a decimal number");
    }
}

// --- against an oracle: integers without a limit ------------------------------------------------

namespace {

using Integer = boost::multiprecision::cpp_int;

Integer ten_to(int exponent) { return boost::multiprecision::pow(Integer(10), static_cast<unsigned>(exponent)); }

/// numerator / denominator, the denominator above zero.
struct Fraction {
    Integer numerator, denominator = 1;
};

Integer floor_of(const Fraction& value) {
    const Integer quotient = value.numerator / value.denominator;
    return quotient * value.denominator > value.numerator ? Integer(quotient - 1) : quotient;
}

/// Each mode by its definition on floor(x), not by the remainder as the library does it.
Integer rounded(const Fraction& value, Rounding mode) {
    const Integer floor = floor_of(value);
    const bool exact = floor * value.denominator == value.numerator, negative = value.numerator < 0;
    const Integer ceil = exact ? floor : Integer(floor + 1);
    const Integer near = floor_of({value.numerator * 2 + value.denominator, value.denominator * 2});  // ties upwards
    const bool tie = !exact && (value.numerator * 2) % value.denominator == 0;
    switch (mode) {
        case Rounding::floor:
            return floor;
        case Rounding::ceil:
            return ceil;
        case Rounding::down:
            return negative ? ceil : floor;
        case Rounding::up:
            return negative ? floor : ceil;
        case Rounding::half_up:
            return tie && negative ? floor : near;
        case Rounding::half_even:
            return tie && floor % 2 == 0 ? floor : near;
    }
    return 0;
}

/// The plain form of coefficient x 10^-scale in lowest terms, or "overflow". The scale may be negative.
std::string plain(Integer coefficient, int scale) {
    if (scale < 0) coefficient *= ten_to(-scale);
    scale = std::max(scale, 0);
    while (scale > 0 && coefficient % 10 == 0) coefficient /= 10, --scale;
    if (coefficient >= ten_to(38) || coefficient <= -ten_to(38) || scale > 76) return "overflow";
    std::string digits = Integer(boost::multiprecision::abs(coefficient)).str();
    const auto decimals = static_cast<std::size_t>(scale);
    if (digits.size() <= decimals) digits.insert(0, decimals + 1 - digits.size(), '0');
    if (decimals > 0) digits.insert(digits.size() - decimals, ".");
    return (coefficient < 0 ? "-" : "") + digits;
}

struct Sample {
    Integer coefficient;
    int scale = 0;
    std::string text() const { return coefficient.str() + "e-" + std::to_string(scale); }
};

class Samples {
public:
    explicit Samples(std::uint64_t seed) : random_(seed) {}
    int between(int least, int most) { return std::uniform_int_distribution<int>(least, most)(random_); }

    /// Ordinary amounts, all lengths, and the neighbourhoods of powers of 2 and 10 where words and digits carry.
    Sample next() {
        Sample sample;
        sample.scale = between(0, 3) == 0 ? between(0, 76) : between(0, 6);
        switch (between(0, 4)) {
            case 0:
                sample.coefficient = between(0, 100000);
                break;
            case 1:
                sample.coefficient = (Integer(1) << between(0, 126)) + between(-2, 2);
                break;
            case 2:
                sample.coefficient = ten_to(between(0, 38)) + between(-2, 2);
                break;
            default:
                for (int digits = between(1, 38); digits > 0; --digits) sample.coefficient = sample.coefficient * 10 + between(0, 9);
        }
        sample.coefficient %= ten_to(38);
        if (between(0, 2) == 0) sample.coefficient = -sample.coefficient;
        return sample;
    }

private:
    std::mt19937_64 random_;
};

template <class Call>
std::string answer(Call&& call) {
    try {
        return call().to_string();
    } catch (const Error& error) {
        return error.code() == ErrorCode::overflow ? "overflow" : error.what();
    }
}

constexpr Rounding modes[] = {Rounding::half_up, Rounding::half_even, Rounding::up, Rounding::down, Rounding::ceil, Rounding::floor};

Fraction quotient(const Sample& a, const Sample& b, int scale) {
    const int shift = scale - a.scale + b.scale;
    Fraction value{shift > 0 ? Integer(a.coefficient * ten_to(shift)) : a.coefficient,
                   shift < 0 ? Integer(b.coefficient * ten_to(-shift)) : b.coefficient};
    if (value.denominator < 0) value.numerator = -value.numerator, value.denominator = -value.denominator;
    return value;
}

/// The scale at which a / b, cut, has that many digits.
int scale_for_digits(const Sample& a, const Sample& b, int digits) {
    int scale = -120;
    while (boost::multiprecision::abs(rounded(quotient(a, b, scale), Rounding::down)) < ten_to(digits - 1)) ++scale;
    return scale;
}

/// From METER_SEED, to repeat a failure or to look further than one run does.
std::uint64_t seed() {
    const char* text = std::getenv("METER_SEED");
    return text ? std::strtoull(text, nullptr, 10) : 20261121;
}

}  // namespace

TEST_CASE("Decimal agrees with an oracle on sums, products and order", "[decimal][property]") {
    Samples samples(seed());
    for (int i = 0; i < 20000; ++i) {
        const Sample a = samples.next(), b = samples.next();
        CAPTURE(seed(), i, a.text(), b.text());
        const Decimal x(a.text()), y(b.text());
        const int scale = std::max(a.scale, b.scale);
        const Integer left = a.coefficient * ten_to(scale - a.scale), right = b.coefficient * ten_to(scale - b.scale);
        REQUIRE(x.to_string() == plain(a.coefficient, a.scale));
        REQUIRE(Decimal(x.to_string()) == x);
        REQUIRE(answer([&] { return x + y; }) == plain(left + right, scale));
        REQUIRE(answer([&] { return x - y; }) == plain(left - right, scale));
        REQUIRE(answer([&] { return x * y; }) == plain(a.coefficient * b.coefficient, a.scale + b.scale));
        REQUIRE((x < y) == (left < right));
        REQUIRE((x == y) == (left == right));
        REQUIRE((x > y) == (left > right));
        REQUIRE(x.to_double() == std::strtod(x.to_string().c_str(), nullptr));
    }
}

TEST_CASE("Decimal agrees with an oracle on division and rounding", "[decimal][property]") {
    Samples samples(seed());
    for (int i = 0; i < 5000; ++i) {
        const Sample a = samples.next(), b = samples.next();
        const int scale = samples.between(0, 76), digits = samples.between(1, 38), round_scale = samples.between(-40, 76);
        CAPTURE(seed(), i, a.text(), b.text(), scale, digits, round_scale);
        const Decimal x(a.text()), y(b.text());
        for (const Rounding mode : modes) {
            CAPTURE(mode);
            REQUIRE(answer([&] { return x.round(round_scale, mode); }) ==
                    (round_scale >= x.scale() ? x.to_string() : plain(rounded(quotient(a, {1, 0}, round_scale), mode), round_scale)));
            if (y.is_zero()) continue;
            REQUIRE(answer([&] { return Decimal::divide(x, y, scale, mode); }) == plain(rounded(quotient(a, b, scale), mode), scale));
            if (x.is_zero()) continue;
            const int fitting = scale_for_digits(a, b, digits);
            REQUIRE(answer([&] { return Decimal::divide_significant(x, y, digits, mode); }) ==
                    plain(rounded(quotient(a, b, fitting), mode), fitting));
        }
    }
}

TEST_CASE("Doubles pass through Decimal unchanged", "[decimal][property]") {
    std::mt19937_64 random(seed());
    for (int i = 0; i < 20000; ++i) {
        const double value = std::ldexp(std::uniform_real_distribution<double>(-1, 1)(random), std::uniform_int_distribution<int>(-180, 120)(random));
        CAPTURE(seed(), i, value);
        REQUIRE(Decimal::from_double(value).to_double() == value);
    }
}
