// meter: see meter.hpp for what it does. This file is one room with twelve corners, in order of dependency; a section uses only those
// above it. Pure in the middle (1-3, 7-9: no database, clock, socket or thread), effects at the edge. SQL stands only in 4-6 and 10,
// a vendor's name only in 8 and 9.
// SPDX-License-Identifier: MIT
//
//    1 decimal    exact numbers                       7 fees        from units to amounts
//    2 time       timestamps, periods, bins           8 books       how each vendor measures and prices
//    3 values     JSON text, filters, expressions     9 wire        requests, answers and rules of each vendor
//    4 store      SQLite: schema, log, segments      10 delivery    cursors, batches, waiting, parking
//    5 reading    find, list, names, rates           11 transport   libcurl (optional)
//    6 measuring  scan, aggregate                    12 Meter       the facade: locks, threads, wiring

#include "meter.hpp"

#include <SQLiteCpp/SQLiteCpp.h>
#include <sqlite3.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <bit>
#include <charconv>
#include <cmath>
#include <condition_variable>
#include <cstring>
#include <deque>
#include <filesystem>
#include <forward_list>
#include <fstream>
#include <iterator>
#include <limits>
#include <map>
#include <mutex>
#include <numeric>
#include <random>
#include <set>
#include <thread>
#include <unordered_map>
#include <unordered_set>

#ifdef METER_CURL
#include <curl/curl.h>
#endif

// The one use of POSIX: asking whether another process is alive (section 10, leases).
#if defined(__unix__) || defined(__APPLE__)
#define METER_POSIX 1
#include <signal.h>
#include <unistd.h>
#else
#define METER_POSIX 0
#endif

// IANA time zones: Howard Hinnant's date when METER_TZ_DATE asks for it (link date-tz), else the standard library's where it has them.
#if defined(METER_TZ_DATE)
#include <date/tz.h>
#define METER_TZ_NAMESPACE date
#elif (defined(__cpp_lib_chrono) && __cpp_lib_chrono >= 201907L) || (defined(_GLIBCXX_RELEASE) && _GLIBCXX_RELEASE >= 13)
#define METER_TZ_NAMESPACE std::chrono
#endif

namespace meter {

Error::Error(ErrorCode code, std::string field, std::string reason)
    : std::runtime_error(field.empty() ? reason : field + ": " + reason), code_(code), field_(std::move(field)), reason_(std::move(reason)) {}

// =============================================================================================
// 1 decimal: exact numbers. A sign, a 128-bit coefficient in two words, a scale. Uses nothing.
// =============================================================================================

namespace {

// An unsigned 128-bit integer; the members' order makes the defaulted comparison the numeric one.
struct Words {
    std::uint64_t high = 0, low = 0;
    friend constexpr auto operator<=>(const Words&, const Words&) noexcept = default;
};

// An unsigned integer for what lies between exact operands and an exact result: at most 10^190, the numerator of a division
// (10^38 moved by both scales). Little-endian; no zero limb at `size - 1`.
struct Wide {
    static constexpr int capacity = 24;
    std::array<std::uint32_t, capacity> limbs{};
    int size = 0;
    std::uint32_t& at(int i) noexcept { return limbs[static_cast<std::size_t>(i)]; }
    std::uint32_t at(int i) const noexcept { return limbs[static_cast<std::size_t>(i)]; }
    bool is_zero() const noexcept { return size == 0; }
    bool is_odd() const noexcept { return (limbs[0] & 1) != 0; }
    void trim() noexcept {
        while (size > 0 && at(size - 1) == 0) --size;
    }
};

constexpr std::uint32_t low_half(std::uint64_t word) noexcept { return static_cast<std::uint32_t>(word); }
constexpr std::uint32_t high_half(std::uint64_t word) noexcept { return static_cast<std::uint32_t>(word >> 32); }
constexpr std::uint64_t join(std::uint32_t high, std::uint32_t low) noexcept { return (std::uint64_t{high} << 32) | low; }

constexpr Words multiply(std::uint64_t a, std::uint64_t b) noexcept {
    const std::uint64_t low = std::uint64_t{low_half(a)} * low_half(b), left = std::uint64_t{high_half(a)} * low_half(b);
    const std::uint64_t right = std::uint64_t{low_half(a)} * high_half(b), high = std::uint64_t{high_half(a)} * high_half(b);
    const std::uint64_t middle = std::uint64_t{high_half(low)} + low_half(left) + low_half(right);
    return {high + high_half(left) + high_half(right) + high_half(middle), join(low_half(middle), low_half(low))};
}

constexpr int max_power64 = 19, max_power128 = 38;

constexpr std::array<std::uint64_t, max_power64 + 1> powers64 = [] {
    std::array<std::uint64_t, max_power64 + 1> powers{1};
    for (std::size_t i = 1; i < powers.size(); ++i) powers[i] = powers[i - 1] * 10;
    return powers;
}();

constexpr std::array<Words, max_power128 + 1> powers128 = [] {
    std::array<Words, max_power128 + 1> powers{};
    for (std::size_t i = 0; i < powers.size(); ++i) {
        const std::size_t most = max_power64;
        powers[i] = i <= most ? Words{0, powers64[i]} : multiply(powers64[most], powers64[i - most]);
    }
    return powers;
}();

constexpr std::uint64_t power64(int exponent) noexcept { return powers64[static_cast<std::size_t>(exponent)]; }
constexpr Words power128(int exponent) noexcept { return powers128[static_cast<std::size_t>(exponent)]; }
constexpr Words coefficient_limit = power128(Decimal::max_digits);

// False, and a value without meaning, when the product needs more than 128 bits.
bool multiply_by(Words& value, std::uint64_t factor) noexcept {
    const Words low = multiply(value.low, factor), high = multiply(value.high, factor);
    value = {low.high + high.low, low.low};
    return high.high == 0 && value.high >= low.high;
}

bool multiply_by_power(Words& value, int exponent) noexcept {
    if (value == Words{}) return true;
    for (; exponent > max_power64; exponent -= max_power64) {
        if (!multiply_by(value, power64(max_power64))) return false;
    }
    return multiply_by(value, power64(exponent));
}

Words add(Words a, Words b) noexcept {
    const std::uint64_t low = a.low + b.low;
    return {a.high + b.high + (low < a.low ? 1U : 0U), low};
}

Words subtract(Words a, Words b) noexcept { return {a.high - b.high - (a.low < b.low ? 1U : 0U), a.low - b.low}; }

// Divides in place and answers the remainder.
std::uint32_t divide_by(Words& value, std::uint32_t divisor) noexcept {
    std::uint64_t remainder = 0;
    const auto step = [&](std::uint32_t half) {
        const std::uint64_t part = (remainder << 32) | half;
        remainder = part % divisor;
        return static_cast<std::uint32_t>(part / divisor);
    };
    const std::uint32_t a = step(high_half(value.high)), b = step(low_half(value.high));
    const std::uint32_t c = step(high_half(value.low)), d = step(low_half(value.low));
    value = {join(a, b), join(c, d)};
    return static_cast<std::uint32_t>(remainder);
}

int count_digits(Words value) noexcept {
    const int bits = value.high != 0 ? 128 - std::countl_zero(value.high) : 64 - std::countl_zero(value.low);
    const int least = bits * 30103 / 100000;  // log10(2)
    return std::max(1, least + (value >= power128(least) ? 1 : 0));
}

void strip_zeros(std::uint64_t& value, int& scale) noexcept {
    for (; scale > 0 && value % 10 == 0; --scale) value /= 10;
}

void strip_zeros(Words& value, int& scale) noexcept {
    while (scale > 0 && value.high != 0) {
        Words tenth = value;
        if (divide_by(tenth, 10) != 0) return;
        value = tenth;
        --scale;
    }
    if (value.high == 0) strip_zeros(value.low, scale);
}

Wide widen(Words value) noexcept {
    Wide wide;
    wide.limbs[0] = low_half(value.low), wide.limbs[1] = high_half(value.low);
    wide.limbs[2] = low_half(value.high), wide.limbs[3] = high_half(value.high);
    wide.size = 4;
    wide.trim();
    return wide;
}

// Of a number of at most four limbs.
Words narrow(const Wide& wide) noexcept { return {join(wide.limbs[3], wide.limbs[2]), join(wide.limbs[1], wide.limbs[0])}; }

void multiply_add(Wide& value, std::uint32_t factor, std::uint32_t carry = 0) noexcept {
    for (int i = 0; i < value.size; ++i) {
        const std::uint64_t part = std::uint64_t{value.at(i)} * factor + carry;
        value.at(i) = low_half(part);
        carry = high_half(part);
    }
    if (carry != 0) value.at(value.size++) = carry;
}

void multiply_by_power(Wide& value, int exponent) noexcept {
    for (; exponent > 9; exponent -= 9) multiply_add(value, 1000000000);
    multiply_add(value, static_cast<std::uint32_t>(power64(exponent)));
}

Wide multiply(const Wide& a, const Wide& b) noexcept {
    Wide product;
    product.size = a.size + b.size;
    for (int i = 0; i < a.size; ++i) {
        std::uint32_t carry = 0;
        for (int j = 0; j < b.size; ++j) {
            const std::uint64_t part = std::uint64_t{a.at(i)} * b.at(j) + product.at(i + j) + carry;
            product.at(i + j) = low_half(part);
            carry = high_half(part);
        }
        product.at(i + b.size) = carry;
    }
    product.trim();
    return product;
}

std::uint32_t divide_by(Wide& value, std::uint32_t divisor) noexcept {
    std::uint64_t remainder = 0;
    for (int i = value.size - 1; i >= 0; --i) {
        const std::uint64_t part = (remainder << 32) | value.at(i);
        value.at(i) = static_cast<std::uint32_t>(part / divisor);
        remainder = part % divisor;
    }
    value.trim();
    return static_cast<std::uint32_t>(remainder);
}

std::strong_ordering compare(const Wide& a, const Wide& b) noexcept {
    if (a.size != b.size) return a.size <=> b.size;
    for (int i = a.size - 1; i >= 0; --i) {
        if (a.at(i) != b.at(i)) return a.at(i) <=> b.at(i);
    }
    return std::strong_ordering::equal;
}

// value -= factor * other * 2^(32 * shift), limb by limb; true when that went below zero (the value is then 2^32-complemented).
bool subtract_multiple(Wide& value, const Wide& other, std::uint32_t factor, int shift) noexcept {
    std::uint64_t carry = 0, borrow = 0;
    for (int i = 0; i <= other.size; ++i) {
        const std::uint64_t part = std::uint64_t{i < other.size ? other.at(i) : 0} * factor + carry;
        carry = high_half(part);
        const std::uint64_t difference = std::uint64_t{value.at(i + shift)} - low_half(part) - borrow;
        value.at(i + shift) = low_half(difference);
        borrow = high_half(difference) & 1;
    }
    return borrow != 0;
}

void add_back(Wide& value, const Wide& other, int shift) noexcept {
    std::uint64_t carry = 0;
    for (int i = 0; i <= other.size; ++i) {
        const std::uint64_t part = std::uint64_t{value.at(i + shift)} + (i < other.size ? other.at(i) : 0) + carry;
        value.at(i + shift) = low_half(part);
        carry = high_half(part);
    }
}

struct Quotient {
    Wide value, remainder;
};

// Schoolbook division (Knuth, The Art of Computer Programming, volume 2, 4.3.1, algorithm D). The divisor is not zero.
Quotient divide(Wide numerator, Wide divisor) noexcept {
    Quotient result;
    if (compare(numerator, divisor) < 0) return {{}, numerator};
    if (divisor.size == 1) {
        const Wide rest = widen({0, divide_by(numerator, divisor.limbs[0])});
        return {numerator, rest};
    }
    // The divisor's leading bit must be set for the estimate below to be at most two too large.
    const std::uint32_t normal = std::uint32_t{1} << std::countl_zero(divisor.at(divisor.size - 1));
    multiply_add(numerator, normal);
    multiply_add(divisor, normal);
    const std::uint64_t first = divisor.at(divisor.size - 1), second = divisor.at(divisor.size - 2);
    result.value.size = numerator.size - divisor.size + 1;
    for (int i = result.value.size - 1; i >= 0; --i) {
        const int top = i + divisor.size;
        const std::uint64_t part = join(numerator.at(top), numerator.at(top - 1));
        std::uint64_t digit = part / first, rest = part % first;
        while (high_half(digit) != 0 || digit * second > join(low_half(rest), numerator.at(top - 2))) {
            --digit;
            rest += first;
            if (high_half(rest) != 0) break;
        }
        if (subtract_multiple(numerator, divisor, low_half(digit), i)) {
            --digit;
            add_back(numerator, divisor, i);
        }
        result.value.at(i) = low_half(digit);
    }
    result.value.trim();
    numerator.trim();
    divide_by(numerator, normal);
    result.remainder = numerator;
    return result;
}

// Whether a quotient cut towards zero moves one step away from zero. `half` compares the remainder with half of the divisor.
bool rounds_away(Rounding mode, bool negative, bool odd, bool exact, std::strong_ordering half) noexcept {
    if (exact) return false;
    switch (mode) {
        case Rounding::half_up:
            return half >= 0;
        case Rounding::half_even:
            return half > 0 || (half == 0 && odd);
        case Rounding::up:
            return true;
        case Rounding::down:
            return false;
        case Rounding::ceil:
            return !negative;
        case Rounding::floor:
            return negative;
    }
    return false;
}

Wide divide_rounded(const Wide& numerator, const Wide& divisor, Rounding mode, bool negative) noexcept {
    Quotient quotient = divide(numerator, divisor);
    const bool exact = quotient.remainder.is_zero();
    multiply_add(quotient.remainder, 2);
    if (rounds_away(mode, negative, quotient.value.is_odd(), exact, compare(quotient.remainder, divisor))) multiply_add(quotient.value, 1, 1);
    return quotient.value;
}

std::uint64_t divide_rounded(std::uint64_t numerator, std::uint64_t divisor, Rounding mode, bool negative) noexcept {
    const std::uint64_t quotient = numerator / divisor, remainder = numerator % divisor;
    return quotient + (rounds_away(mode, negative, quotient % 2 != 0, remainder == 0, remainder <=> divisor - remainder) ? 1 : 0);
}

// True when a * b < 2^63 for certain, so that another such number can be added.
bool product_is_small(std::uint64_t a, std::uint64_t b) noexcept { return std::countl_zero(a) + std::countl_zero(b) > 64; }

constexpr bool is_digit(char c) noexcept { return c >= '0' && c <= '9'; }

[[noreturn]] void throw_overflow() { throw Error(ErrorCode::overflow, "", "the exact result needs more than 38 digits or 76 decimals"); }

// Text from outside for an error's reason: its beginning, in printable ASCII.
std::string quote(std::string_view text) {
    constexpr std::size_t shown = 40;
    std::string quoted = "\"";
    for (const char c : text.substr(0, shown)) quoted += c >= ' ' && c <= '~' ? c : '?';
    return quoted + (text.size() <= shown ? "\"" : "...\"");
}

}  // namespace

// What the functions of this section need of Decimal's inside.
struct DecimalParts {
    static Words coefficient(const Decimal& value) noexcept { return {value.high_, value.low_}; }
    static bool is_small(const Decimal& value) noexcept { return value.high_ == 0; }

    // From a number in lowest terms that fits.
    static Decimal assemble(Words coefficient, int scale, bool negative) noexcept {
        Decimal result;
        result.high_ = coefficient.high;
        result.low_ = coefficient.low;
        result.scale_ = static_cast<std::int16_t>(scale);
        result.negative_ = negative && coefficient != Words{};
        return result;
    }

    static Decimal make(std::uint64_t coefficient, int scale, bool negative) {
        strip_zeros(coefficient, scale);
        if (scale > Decimal::max_scale) throw_overflow();
        return assemble({0, coefficient}, scale, negative);
    }

    static Decimal make(Words coefficient, int scale, bool negative) {
        strip_zeros(coefficient, scale);
        if (scale > Decimal::max_scale || coefficient >= coefficient_limit) throw_overflow();
        return assemble(coefficient, scale, negative);
    }

    // A negative scale stands for zeros before the point.
    static Decimal make(Wide coefficient, int scale, bool negative) {
        if (coefficient.is_zero()) return {};
        if (scale < 0) multiply_by_power(coefficient, -scale);
        scale = std::max(scale, 0);
        while (coefficient.size > 4 && scale > 0) {
            Wide tenth = coefficient;
            if (divide_by(tenth, 10) != 0) break;
            coefficient = tenth;
            --scale;
        }
        if (coefficient.size > 4) throw_overflow();
        return make(narrow(coefficient), scale, negative);
    }

    enum class Outcome { ok, malformed, overflow };
    static Outcome parse(std::string_view text, Decimal& result) noexcept;
    static Decimal divide(const Decimal& a, const Decimal& b, int scale, Rounding mode);
    static bool add_small(const Decimal& a, const Decimal& b, Decimal& sum) noexcept;
    static Decimal add(const Decimal& a, const Decimal& b);
    static std::strong_ordering compare_magnitude(const Decimal& a, const Decimal& b) noexcept;
};

namespace {

// Appends `zeros` zeros and one digit. False when that is more digits than a Decimal holds.
bool append_digits(Words& coefficient, std::int64_t zeros, char digit) noexcept {
    const auto value = static_cast<std::uint64_t>(digit - '0');
    if (zeros == 0 && coefficient.high == 0 && coefficient.low < power64(max_power64 - 1)) {
        coefficient.low = coefficient.low * 10 + value;
        return true;
    }
    if (coefficient == Words{}) zeros = 0;
    if (zeros >= Decimal::max_digits || !multiply_by_power(coefficient, static_cast<int>(zeros) + 1)) return false;
    coefficient = add(coefficient, {0, value});
    return coefficient < coefficient_limit;
}

// Reads "e", a sign and digits to the end of the text; nothing when it is something else. Saturates far outside of what fits.
std::optional<std::int64_t> parse_exponent(std::string_view text) noexcept {
    if (text.empty()) return 0;
    if (text.front() != 'e' && text.front() != 'E') return std::nullopt;
    text.remove_prefix(1);
    const bool negative = !text.empty() && text.front() == '-';
    if (!text.empty() && (text.front() == '-' || text.front() == '+')) text.remove_prefix(1);
    if (text.empty() || !std::all_of(text.begin(), text.end(), is_digit)) return std::nullopt;
    constexpr std::int64_t most = 100000000000000000;
    std::int64_t exponent = 0;
    for (const char c : text) exponent = std::min(most, exponent * 10 + (c - '0'));
    return negative ? -exponent : exponent;
}

}  // namespace

DecimalParts::Outcome DecimalParts::parse(std::string_view text, Decimal& result) noexcept {
    const bool negative = !text.empty() && text.front() == '-';
    if (!text.empty() && (text.front() == '-' || text.front() == '+')) text.remove_prefix(1);
    Words coefficient;
    std::int64_t zeros = 0, decimals = 0;  // zeros wait until a digit follows, so that the coefficient ends in none
    bool any = false, point = false, fits = true;
    std::size_t at = 0;
    for (; at < text.size(); ++at) {
        const char c = text[at];
        if (c == '.' && !point) {
            point = true;
        } else if (is_digit(c)) {
            any = true;
            decimals += point ? 1 : 0;
            if (c != '0') fits = fits && append_digits(coefficient, zeros, c);
            zeros = c == '0' ? zeros + 1 : 0;
        } else {
            break;
        }
    }
    const auto exponent = parse_exponent(text.substr(at));
    if (!any || !exponent) return Outcome::malformed;
    if (!fits) return Outcome::overflow;
    result = {};
    if (coefficient == Words{}) return Outcome::ok;
    const std::int64_t power = *exponent - decimals + zeros;
    if (power > Decimal::max_digits || power < -Decimal::max_scale) return Outcome::overflow;
    if (power > 0 && (!multiply_by_power(coefficient, static_cast<int>(power)) || coefficient >= coefficient_limit)) return Outcome::overflow;
    result = assemble(coefficient, power < 0 ? static_cast<int>(-power) : 0, negative);
    return Outcome::ok;
}

Decimal Decimal::from_integer(std::uint64_t value, bool negative) noexcept {
    return DecimalParts::assemble({0, negative ? 0 - value : value}, 0, negative);
}

Decimal::Decimal(std::string_view text) {
    switch (DecimalParts::parse(text, *this)) {
        case DecimalParts::Outcome::ok:
            return;
        case DecimalParts::Outcome::malformed:
            throw Error(ErrorCode::bad_value, "", quote(text) + " is not a decimal number");
        case DecimalParts::Outcome::overflow:
            throw Error(ErrorCode::overflow, "", quote(text) + " needs more than 38 digits or 76 decimals");
    }
}

std::optional<Decimal> Decimal::parse(std::string_view text) noexcept {
    Decimal result;
    if (DecimalParts::parse(text, result) != DecimalParts::Outcome::ok) return std::nullopt;
    return result;
}

Decimal Decimal::scaled(std::int64_t coefficient, int scale) {
    if (scale < 0 || scale > max_scale) throw Error(ErrorCode::bad_value, "scale", "must be from 0 to 76");
    const bool negative = coefficient < 0;
    const auto bits = static_cast<std::uint64_t>(coefficient);
    return DecimalParts::make(negative ? 0 - bits : bits, scale, negative);
}

Decimal Decimal::from_double(double value) {
    if (!std::isfinite(value)) throw Error(ErrorCode::bad_value, "", "NaN and infinity are not decimal numbers");
    std::array<char, 32> text{};
    const auto end = std::to_chars(text.data(), text.data() + text.size(), value, std::chars_format::scientific).ptr;
    return Decimal(std::string_view(text.data(), static_cast<std::size_t>(end - text.data())));
}

Decimal Decimal::from_json(const json& value) {
    switch (value.type()) {
        case json::value_t::number_integer:
            return Decimal(value.get<std::int64_t>());
        case json::value_t::number_unsigned:
            return Decimal(value.get<std::uint64_t>());
        case json::value_t::number_float:
            return from_double(value.get<double>());
        case json::value_t::string:
            return Decimal(std::string_view(value.get_ref<const std::string&>()));
        default:
            throw Error(ErrorCode::bad_value, "", std::string("must be a number or a text holding one, not ") + value.type_name());
    }
}

std::string Decimal::to_string() const {
    std::array<char, max_scale + 4> text{};  // at most "-0." and 76 decimals, or "-" and 38 digits
    char* const end = text.data() + text.size();
    char* at = end;
    Words rest = DecimalParts::coefficient(*this);
    for (int decimals = scale_; rest != Words{} || decimals >= 0; --decimals) {
        if (decimals == 0 && scale_ != 0) *--at = '.';
        *--at = static_cast<char>('0' + divide_by(rest, 10));
    }
    if (negative_) *--at = '-';
    return {at, end};
}

std::string Decimal::to_fixed(int scale) const {
    if (scale < 0 || scale > max_scale) throw Error(ErrorCode::bad_value, "scale", "must be from 0 to 76");
    const Decimal rounded = round(scale, Rounding::half_up);
    std::string text = rounded.to_string();
    if (scale > 0 && rounded.scale_ == 0) text += '.';
    return text.append(static_cast<std::size_t>(scale - rounded.scale_), '0');
}

double Decimal::to_double() const noexcept {
    // Digits and an exponent, without a point: strtod rounds correctly and reads this the same in every locale.
    std::array<char, max_digits + 8> text{};
    char* const end = text.data() + max_digits + 1;
    char* at = end;
    Words rest = DecimalParts::coefficient(*this);
    do *--at = static_cast<char>('0' + divide_by(rest, 10));
    while (rest != Words{});
    if (negative_) *--at = '-';
    *end = 'e';
    std::to_chars(end + 1, text.data() + text.size(), -scale_);
    return std::strtod(at, nullptr);
}

std::optional<std::int64_t> Decimal::to_int64() const noexcept {
    constexpr auto most = static_cast<std::uint64_t>(std::numeric_limits<std::int64_t>::max());
    if (scale_ != 0 || high_ != 0 || low_ > most + (negative_ ? 1 : 0)) return std::nullopt;
    return static_cast<std::int64_t>(negative_ ? 0 - low_ : low_);
}

int Decimal::digits() const noexcept { return count_digits({high_, low_}); }

Decimal Decimal::abs() const noexcept { return DecimalParts::assemble({high_, low_}, scale_, false); }

Decimal Decimal::operator-() const noexcept { return DecimalParts::assemble({high_, low_}, scale_, !negative_); }

// The ordinary case, all in 64 bits; false, and nothing done, in any other. `sum` may be `a`: a running total is then updated in
// place, three times as fast as through a temporary (its 16-byte copy would have to wait for two 8-byte stores).
bool DecimalParts::add_small(const Decimal& a, const Decimal& b, Decimal& sum) noexcept {
    const bool first_is_coarse = a.scale_ <= b.scale_;
    const Decimal& coarse = first_is_coarse ? a : b;
    const Decimal& fine = first_is_coarse ? b : a;
    int scale = fine.scale_;
    const int shift = scale - coarse.scale_;
    if (!is_small(a) || !is_small(b) || shift > max_power64) return false;
    if (!product_is_small(coarse.low_, power64(shift)) || !product_is_small(fine.low_, 1)) return false;
    const std::uint64_t left = coarse.low_ * power64(shift), right = fine.low_;
    const bool same_sign = coarse.negative_ == fine.negative_;
    std::uint64_t total = same_sign ? left + right : left >= right ? left - right : right - left;
    const bool negative = same_sign || left >= right ? coarse.negative_ : fine.negative_;
    strip_zeros(total, scale);
    sum.low_ = total;
    sum.high_ = 0;
    sum.scale_ = static_cast<std::int16_t>(scale);
    sum.negative_ = negative && total != 0;
    return true;
}

Decimal DecimalParts::add(const Decimal& a, const Decimal& b) {
    const Decimal& coarse = a.scale_ <= b.scale_ ? a : b;
    const Decimal& fine = a.scale_ <= b.scale_ ? b : a;
    // Where the scales differ, fine's last digit is the sum's too. So when the sum fits, so does coarse in fine's decimals (it is under
    // 10^38 + 10^38 < 2^128).
    Words left = coefficient(coarse);
    const Words right = coefficient(fine);
    if (!multiply_by_power(left, fine.scale_ - coarse.scale_)) throw_overflow();
    if (coarse.negative_ != fine.negative_) {
        return left >= right ? make(subtract(left, right), fine.scale_, coarse.negative_) : make(subtract(right, left), fine.scale_, fine.negative_);
    }
    const Words sum = meter::add(left, right);
    if (sum < left) throw_overflow();
    return make(sum, fine.scale_, fine.negative_);
}

Decimal operator+(const Decimal& a, const Decimal& b) {
    Decimal sum;
    return DecimalParts::add_small(a, b, sum) ? sum : DecimalParts::add(a, b);
}

Decimal& Decimal::operator+=(const Decimal& other) {
    if (!DecimalParts::add_small(*this, other, *this)) *this = DecimalParts::add(*this, other);
    return *this;
}

Decimal operator*(const Decimal& a, const Decimal& b) {
    const bool negative = a.negative_ != b.negative_;
    const int scale = a.scale_ + b.scale_;
    if (DecimalParts::is_small(a) && DecimalParts::is_small(b)) {
        if (product_is_small(a.low_, b.low_)) return DecimalParts::make(a.low_ * b.low_, scale, negative);
        return DecimalParts::make(multiply(a.low_, b.low_), scale, negative);
    }
    return DecimalParts::make(multiply(widen({a.high_, a.low_}), widen({b.high_, b.low_})), scale, negative);
}

// The scale may be negative here: to tens, hundreds, ...
Decimal DecimalParts::divide(const Decimal& a, const Decimal& b, int scale, Rounding mode) {
    const bool negative = a.negative_ != b.negative_;
    const int shift = scale - a.scale_ + b.scale_;
    if (shift >= 0 && shift <= max_power64 && scale >= 0 && is_small(a) && is_small(b) && product_is_small(a.low_, power64(shift))) {
        return make(divide_rounded(a.low_ * power64(shift), b.low_, mode, negative), scale, negative);
    }
    Wide numerator = widen(coefficient(a)), divisor = widen(coefficient(b));
    multiply_by_power(shift >= 0 ? numerator : divisor, std::abs(shift));
    return make(divide_rounded(numerator, divisor, mode, negative), scale, negative);
}

Decimal Decimal::divide(const Decimal& a, const Decimal& b, int scale, Rounding mode) {
    if (scale < 0 || scale > max_scale) throw Error(ErrorCode::bad_value, "scale", "must be from 0 to 76");
    if (b.is_zero()) throw Error(ErrorCode::bad_value, "", "division by zero");
    return DecimalParts::divide(a, b, scale, mode);
}

Decimal Decimal::divide_significant(const Decimal& a, const Decimal& b, int digits, Rounding mode) {
    if (digits < 1 || digits > max_digits) throw Error(ErrorCode::bad_value, "digits", "must be from 1 to 38");
    if (b.is_zero()) throw Error(ErrorCode::bad_value, "", "division by zero");
    if (a.is_zero()) return {};
    // a / b has as many digits before the point as a's magnitude is above b's, and one more when a's digits are the greater.
    const int a_digits = a.digits(), b_digits = b.digits();
    Words left{a.high_, a.low_}, right{b.high_, b.low_};
    multiply_by_power(left, std::max(0, b_digits - a_digits));
    multiply_by_power(right, std::max(0, a_digits - b_digits));
    const int before_point = (a_digits - a.scale_) - (b_digits - b.scale_) + (left >= right ? 1 : 0);
    return DecimalParts::divide(a, b, digits - before_point, mode);
}

Decimal Decimal::round(int scale, Rounding mode) const {
    if (scale >= scale_) return *this;
    scale = std::max(scale, -max_digits - 1);  // further left everything is nothing, or too large
    const int cut = scale_ - scale;
    if (high_ == 0 && cut <= max_power64 && scale >= 0) {
        return DecimalParts::make(divide_rounded(low_, power64(cut), mode, negative_), scale, negative_);
    }
    return DecimalParts::divide(*this, Decimal(1), scale, mode);
}

std::strong_ordering DecimalParts::compare_magnitude(const Decimal& a, const Decimal& b) noexcept {
    Words left = coefficient(a), right = coefficient(b);
    if (a.scale_ != b.scale_ && !a.is_zero() && !b.is_zero()) {
        const int a_magnitude = count_digits(left) - a.scale_, b_magnitude = count_digits(right) - b.scale_;
        if (a_magnitude != b_magnitude) return a_magnitude <=> b_magnitude;
        multiply_by_power(left, std::max(0, b.scale_ - a.scale_));  // to as many digits as the other: it fits
        multiply_by_power(right, std::max(0, a.scale_ - b.scale_));
    }
    return left <=> right;
}

std::strong_ordering operator<=>(const Decimal& a, const Decimal& b) noexcept {
    if (a.negative_ != b.negative_) return b.negative_ <=> a.negative_;
    return a.negative_ ? DecimalParts::compare_magnitude(b, a) : DecimalParts::compare_magnitude(a, b);
}

// =============================================================================================
// 2 time: timestamps, periods, bins. Pure; the only clock is Timestamp::now(). Uses 1.
// =============================================================================================

namespace {

constexpr std::int64_t micros_per_second = 1000000, micros_per_day = 86400 * micros_per_second;

constexpr std::int64_t floor_divide(std::int64_t a, std::int64_t b) noexcept { return a / b - (a % b < 0 ? 1 : 0); }

constexpr std::int64_t round_up(std::int64_t a, std::int64_t b) noexcept { return -floor_divide(-a, b) * b; }

[[noreturn]] void throw_bad_time(std::string_view text, const char* why) {
    throw Error(ErrorCode::bad_value, "timestamp", (text.empty() ? "" : quote(text) + " ") + why);
}

constexpr const char* not_a_date = "is not a date of the years 1 to 9999";

std::int64_t days_of(int year, unsigned month, unsigned day, std::string_view text) {
    using namespace std::chrono;
    const year_month_day date{std::chrono::year(year), std::chrono::month(month), std::chrono::day(day)};
    const bool in_range = year >= 1 && year <= 9999 && month <= 12 && day <= 31;  // chrono's types would wrap
    if (!in_range || !date.ok()) throw_bad_time(text, not_a_date);
    return sys_days(date).time_since_epoch().count();
}

// Reads a timestamp from left to right; every function throws when the text goes on in another way.
class TimeReader {
public:
    explicit TimeReader(std::string_view text) noexcept : text_(text) {}
    bool at_end() const noexcept { return at_ == text_.size(); }

    bool take(std::string_view any_of) noexcept {
        if (at_end() || any_of.find(text_[at_]) == std::string_view::npos) return false;
        ++at_;
        return true;
    }
    void expect(std::string_view any_of) {
        if (!take(any_of)) fail();
    }
    int number(int digits, int most) {
        int value = 0;
        for (; digits > 0; --digits) value = value * 10 + digit();
        if (value > most) throw_bad_time(text_, "has a part out of range");
        return value;
    }
    // The digits after a point, cut to microseconds.
    std::int64_t fraction() {
        std::int64_t micros = 0, unit = micros_per_second / 10;
        do {
            micros += digit() * unit;
            unit /= 10;
        } while (!at_end() && is_digit(text_[at_]));
        return micros;
    }
    // Minutes east of UTC.
    int offset() {
        if (take("Zz")) return 0;
        const bool west = take("-");
        if (!west) expect("+");
        int minutes = number(2, 23) * 60;
        if (!at_end()) {
            take(":");
            minutes += number(2, 59);
        }
        return west ? -minutes : minutes;
    }
    [[noreturn]] void fail() const { throw_bad_time(text_, "is not an ISO 8601 date, or date, time and offset"); }

private:
    int digit() {
        if (at_end() || !is_digit(text_[at_])) fail();
        return text_[at_++] - '0';
    }
    std::string_view text_;
    std::size_t at_ = 0;
};

Timestamp checked(std::int64_t micros, std::string_view text) {
    if (micros < Timestamp::min().micros() || micros > Timestamp::max().micros()) throw_bad_time(text, not_a_date);
    return Timestamp(micros);
}

// `value` in units of 10^-decimals microseconds' worth: 6 for seconds, 3 for milliseconds.
Timestamp from_count(const Decimal& value, int decimals) {
    const Decimal unit(static_cast<std::int64_t>(power64(decimals)));
    const Decimal past_end(floor_divide(Timestamp::max().micros(), unit.to_int64().value()) + 1);
    if (value < -past_end || value >= past_end) throw_bad_time(value.to_string(), not_a_date);
    return checked((value.round(decimals, Rounding::floor) * unit).to_int64().value(), value.to_string());
}

void append_padded(std::string& text, std::int64_t value, std::size_t width) {
    const std::string digits = std::to_string(value);
    text.append(width - std::min(width, digits.size()), '0') += digits;
}

Timestamp cut(Timestamp time, std::int64_t unit) { return Timestamp(floor_divide(time.micros(), unit) * unit); }

std::chrono::year_month_day date_of(Timestamp time) noexcept {
    return std::chrono::sys_days(std::chrono::days(floor_divide(time.micros(), micros_per_day)));
}

Timestamp midnight(std::chrono::year_month_day date) noexcept {
    return Timestamp(std::chrono::sys_days(date).time_since_epoch().count() * micros_per_day);
}

}  // namespace

Timestamp Timestamp::now() noexcept {
    return Timestamp(std::chrono::floor<std::chrono::microseconds>(std::chrono::system_clock::now().time_since_epoch()).count());
}

Timestamp Timestamp::parse(std::string_view text) {
    TimeReader reader(text);
    const int year = reader.number(4, 9999);
    reader.expect("-");
    const int month = reader.number(2, 12);
    reader.expect("-");
    const int day = reader.number(2, 31);
    std::int64_t micros = days_of(year, static_cast<unsigned>(month), static_cast<unsigned>(day), text) * micros_per_day;
    if (reader.at_end()) return Timestamp(micros);

    reader.expect("Tt ");
    std::int64_t seconds = reader.number(2, 23) * 3600;
    reader.expect(":");
    seconds += reader.number(2, 59) * 60;
    if (reader.take(":")) {
        seconds += reader.number(2, 59);
        if (reader.take(".")) micros += reader.fraction();
    }
    seconds -= reader.offset() * 60;
    if (!reader.at_end()) reader.fail();
    return checked(micros + seconds * micros_per_second, text);
}

Timestamp Timestamp::from_unix(const Decimal& seconds) { return from_count(seconds, 6); }

Timestamp Timestamp::from_unix_ms(const Decimal& milliseconds) { return from_count(milliseconds, 3); }

Timestamp Timestamp::from_civil(int year, unsigned month, unsigned day, unsigned hour, unsigned minute, unsigned second) {
    const std::int64_t days = days_of(year, month, day, {});
    if (hour > 23 || minute > 59 || second > 59) throw_bad_time({}, "has an hour, minute or second out of range");
    return Timestamp(days * micros_per_day + (std::int64_t{hour} * 3600 + minute * 60 + second) * micros_per_second);
}

Decimal Timestamp::unix_seconds() const { return Decimal::scaled(micros_, 6); }

std::string Timestamp::to_string() const {
    const std::int64_t micros = std::clamp(*this, min(), Period{}.to).micros_;
    return to_string(micros % micros_per_second == 0 ? 0 : micros % 1000 == 0 ? 3 : 6);
}

std::string Timestamp::to_string(int decimals) const {
    if (decimals < 0 || decimals > 6) throw Error(ErrorCode::bad_value, "decimals", "must be from 0 to 6");
    const Timestamp time = std::clamp(*this, min(), Period{}.to);  // the calendar ends there
    const auto date = date_of(time);
    std::int64_t rest = time.micros_ - midnight(date).micros_;
    std::string text;
    append_padded(text, int(date.year()), 4);
    append_padded(text += '-', unsigned(date.month()), 2);
    append_padded(text += '-', unsigned(date.day()), 2);
    append_padded(text += 'T', rest / (3600 * micros_per_second), 2);
    append_padded(text += ':', rest / (60 * micros_per_second) % 60, 2);
    append_padded(text += ':', rest / micros_per_second % 60, 2);
    rest %= micros_per_second;
    if (decimals > 0) append_padded(text += '.', rest / static_cast<std::int64_t>(power64(6 - decimals)), static_cast<std::size_t>(decimals));
    return text += 'Z';
}

Period last_days(int days, Timestamp now) {
    if (days < 0) throw Error(ErrorCode::bad_value, "days", "must not be negative");
    now = std::clamp(now, Timestamp::min(), Period{}.to);
    const std::int64_t known = (now.micros() - Timestamp::min().micros()) / micros_per_day;
    return {days <= known ? Timestamp(now.micros() - days * micros_per_day) : Timestamp::min(), now};
}

Period this_month(Timestamp now) {
    using namespace std::chrono;
    const auto date = date_of(now);
    const year_month_day first = date.year() / date.month() / day(1);
    return {midnight(first), midnight(first + months(1))};
}

Period named_period(std::string_view name, Timestamp now, const std::optional<BillingCycle>& cycle) {
    struct Range {
        std::string_view name;
        int days, cycles;  // neither: the last cycle
    };
    static constexpr Range ranges[] = {{"24h", 1, 0}, {"7d", 7, 0},  {"30d", 30, 0},      {"90d", 90, 0},
                                       {"1bc", 0, 1}, {"3bc", 0, 3}, {"last_cycle", 0, 0}};
    const auto range = std::find_if(std::begin(ranges), std::end(ranges), [&](const Range& each) { return each.name == name; });
    if (range == std::end(ranges)) throw Error(ErrorCode::bad_value, "period", quote(name) + " is not the name of a range");
    if (range->days > 0) return last_days(range->days, now);
    if (!cycle) throw Error(ErrorCode::bad_value, "period", quote(name) + " needs a billing cycle");
    const auto [from, to] = cycle->current;
    if (from < Timestamp::min() || to > Period{}.to || to <= from) throw Error(ErrorCode::bad_value, "cycle", "must end after it starts");
    now = std::clamp(now, Timestamp::min(), Period{}.to);
    const auto back = [length = to - from](Timestamp end, int times) { return Period{std::max(Timestamp::min(), end - length * times), end}; };
    if (range->cycles > 0) return back(now, range->cycles);
    return cycle->subscribed_at >= from ? cycle->current : back(from, 1);
}

namespace {

// --- zones ------------------------------------------------------------------------------------

#ifdef METER_TZ_NAMESPACE
namespace tz = METER_TZ_NAMESPACE;

// date misreads zone files in zic's "slim" form (HowardHinnant/date#614): after the last listed change it sees no other. London
// changed its clock twice in 2010, and has done so since 1996 by a rule that a slim file does not list.
bool zone_files_are_whole() {
    const auto* london = tz::locate_zone("Europe/London");
    const auto hours = [&](int month) {
        using namespace std::chrono;
        return floor<std::chrono::hours>(london->get_info(sys_seconds(sys_days(year(2010) / month / 1))).offset).count();
    };
    return hours(1) == 0 && hours(7) == 1;
}

const tz::time_zone* find_zone(std::string_view name) {
    static const bool usable = [] {
        try {
            return zone_files_are_whole();
        } catch (const std::exception&) {
            return false;  // no zone files on this system
        }
    }();
    if (!usable) throw Error(ErrorCode::unsupported, "time_zone", "this system has no time-zone files that can be read");
    try {
        return tz::locate_zone(name);
    } catch (const std::exception&) {
        throw Error(ErrorCode::bad_value, "time_zone", quote(name) + " is not a time zone");
    }
}
#endif

// From `from` until `to` a zone's clock is `offset` ahead of UTC; all in microseconds.
struct ZoneSpan {
    std::int64_t from = std::numeric_limits<std::int64_t>::min(), to = std::numeric_limits<std::int64_t>::max();
    std::int64_t offset = 0;
};

// UTC, a fixed offset ("+02:00") or an IANA zone. Local times are microseconds since 1970-01-01 00:00 on the zone's clock.
class Zone {
public:
    // UTC when the name is empty. Throws bad_value for a name that is unknown, unsupported for one that this build or system cannot know.
    explicit Zone(std::string_view name) {
        if (name.empty() || name == "UTC" || name == "Etc/UTC" || name == "Z") return;
        if (name.front() == '+' || name.front() == '-') {
            fixed_ = read_offset(name);
            return;
        }
#ifdef METER_TZ_NAMESPACE
        zone_ = find_zone(name);
#else
        throw Error(ErrorCode::unsupported, "time_zone", "this build knows only UTC and offsets like +02:00");
#endif
    }

    ZoneSpan span_at(std::int64_t micros) const {
#ifdef METER_TZ_NAMESPACE
        if (zone_) {
            using namespace std::chrono;
            const auto info = zone_->get_info(sys_seconds(seconds(floor_divide(micros, micros_per_second))));
            return {in_micros(info.begin), in_micros(info.end), microseconds(info.offset).count()};
        }
#endif
        ZoneSpan span;
        span.offset = fixed_;
        static_cast<void>(micros);
        return span;
    }

    std::int64_t to_local(Timestamp time) const { return time.micros() + span_at(time.micros()).offset; }

    // A local time that the clock shows twice is the first of the two; one that it skips is the moment of the skip.
    Timestamp to_utc(std::int64_t local) const {
        constexpr std::int64_t most_offset = 26 * 3600 * micros_per_second;
        ZoneSpan span = span_at(local - most_offset);
        while (local - span.offset >= span.to) span = span_at(span.to);
        return Timestamp(std::max(local - span.offset, span.from));
    }

private:
    static std::int64_t read_offset(std::string_view name) {
        try {
            TimeReader reader(name);
            const int minutes = reader.offset();
            if (reader.at_end()) return minutes * 60 * micros_per_second;
        } catch (const Error&) {
        }
        throw Error(ErrorCode::bad_value, "time_zone", quote(name) + " is not an offset like +02:00");
    }

    std::int64_t fixed_ = 0;
#ifdef METER_TZ_NAMESPACE
    // The libraries' first and last moments do not fit microseconds.
    static std::int64_t in_micros(std::chrono::sys_seconds time) {
        constexpr std::int64_t most = std::numeric_limits<std::int64_t>::max() / micros_per_second;
        return std::clamp<std::int64_t>(time.time_since_epoch().count(), -most, most) * micros_per_second;
    }
    const tz::time_zone* zone_ = nullptr;
#endif
};

// --- cycles and bins --------------------------------------------------------------------------

// A stretch of the calendar: months, or microseconds on a zone's clock. One of the two is above zero.
struct Stride {
    int months = 0;
    std::int64_t micros = 0;

    auto operator<=>(const Stride&) const = default;  // months are longer than weeks
};

// Throws bad_value for a count that is not from 1 to 1000.
Stride repeated(Stride stride, std::int64_t count) {
    if (count < 1 || count > 1000) throw Error(ErrorCode::bad_value, "interval_count", "must be from 1 to 1000");
    return {stride.months * static_cast<int>(count), stride.micros * count};
}

// Where a day stands that a month does not have: on its last, or as many days into the next (31 February is 3 March).
enum class MonthEnd { clamp, overflow };

// An endless row of moments, anchor + k steps on a zone's clock. Each is counted from the anchor itself, so that a 31st that was moved to
// 28 February is the 31st again in March.
class Cycle {
public:
    Cycle(Stride stride, std::int64_t local_anchor, Zone zone, MonthEnd month_end = MonthEnd::clamp)
        : zone_(zone), stride_(stride), month_end_(month_end), anchor_(local_anchor) {
        const std::int64_t days = floor_divide(local_anchor, micros_per_day);
        const std::chrono::year_month_day date = std::chrono::sys_days(std::chrono::days(days));
        month_ = date.year() / date.month();
        day_ = date.day();
        time_of_day_ = local_anchor - days * micros_per_day;
    }

    Timestamp boundary(std::int64_t k) const { return zone_.to_utc(stride_.months > 0 ? month_boundary(k) : anchor_ + k * stride_.micros); }

    // The k for which boundary(k) <= time < boundary(k + 1).
    std::int64_t index(Timestamp time) const {
        std::int64_t k = estimate(zone_.to_local(time));
        while (boundary(k) > time) --k;
        while (boundary(k + 1) <= time) ++k;
        return k;
    }

    Period around(Timestamp time) const {
        const std::int64_t k = index(time);
        return {boundary(k), boundary(k + 1)};
    }

private:
    std::int64_t month_boundary(std::int64_t k) const {
        using namespace std::chrono;
        const year_month month = month_ + months(k * stride_.months);
        const sys_days clamped = month / std::min(day_, (month / last).day()), overflown = sys_days(month / 1) + (day_ - day(1));
        return (month_end_ == MonthEnd::clamp ? clamped : overflown).time_since_epoch().count() * micros_per_day + time_of_day_;
    }

    std::int64_t estimate(std::int64_t local) const {
        if (stride_.months == 0) return floor_divide(local - anchor_, stride_.micros);
        const auto date = date_of(Timestamp(local));
        return floor_divide((date.year() / date.month() - month_).count(), stride_.months);
    }

    Zone zone_;
    Stride stride_;
    MonthEnd month_end_;
    std::int64_t anchor_, time_of_day_ = 0;
    std::chrono::year_month month_;
    std::chrono::day day_{1};
};

struct BinOptions {
    Bin bin = Bin::none;
    std::string time_zone = {};
    std::chrono::weekday week_start = std::chrono::Monday;
    std::optional<Timestamp> anchor = {};  // of months, quarters and years: they begin on its day and at its time, not on the first
    MonthEnd month_end = MonthEnd::clamp;
};

struct BinRow {
    Bin bin;
    Stride stride;
};

constexpr std::int64_t micros_per_minute = 60 * micros_per_second, micros_per_hour = 60 * micros_per_minute;

constexpr BinRow bin_rows[] = {
    {Bin::minute, {0, micros_per_minute}},
    {Bin::minutes_15, {0, 15 * micros_per_minute}},
    {Bin::minutes_30, {0, 30 * micros_per_minute}},
    {Bin::hour, {0, micros_per_hour}},
    {Bin::hours_3, {0, 3 * micros_per_hour}},
    {Bin::hours_6, {0, 6 * micros_per_hour}},
    {Bin::hours_12, {0, 12 * micros_per_hour}},
    {Bin::day, {0, micros_per_day}},
    {Bin::week, {0, 7 * micros_per_day}},
    {Bin::month, {1, 0}},
    {Bin::quarter, {3, 0}},
    {Bin::year, {12, 0}},
};

Stride stride_of(Bin bin) {
    const auto row = std::find_if(std::begin(bin_rows), std::end(bin_rows), [&](const BinRow& each) { return each.bin == bin; });
    if (row == std::end(bin_rows)) throw Error(ErrorCode::bad_value, "bin", "is not one of the bins");
    return row->stride;
}

// The bins that cover a period, ascending. The first may begin before it and the last end after it: they are whole.
// Where all are equally long the grid is a formula; else it is a list, of at most limits::aggregate_rows bins (too_large), so give a
// period no longer than there are events. A bin begins at the first moment that the zone's clock shows its beginning, also when the
// clock is set back to before it (St. John's until 2011, at 00:01).
class BinGrid {
public:
    // Throws bad_value for a zone, anchor or bin that cannot be.
    BinGrid(Period period, const BinOptions& options) {
        period = {std::max(period.from, Timestamp::min()), std::min(period.to, Period{}.to)};
        if (options.anchor && (*options.anchor < Timestamp::min() || *options.anchor > Timestamp::max())) throw_bad_anchor("is out of range");
        if (!options.week_start.ok()) throw Error(ErrorCode::bad_value, "week_start", "is not a day of the week");
        const Zone zone(options.time_zone);
        if (period.from >= period.to) return;
        if (options.bin == Bin::none) {
            edges_ = {period.from.micros(), period.to.micros()};
        } else {
            const Stride stride = stride_of(options.bin);
            const std::int64_t anchor = local_anchor(stride, zone, options);
            const bool by_length = stride.months == 0 && stride.micros <= micros_per_hour;
            if (by_length)
                cut_by_length(period, stride.micros, zone);
            else
                cut_by_calendar(period, Cycle(stride, anchor, zone, options.month_end), stride.micros, zone);
        }
        if (length_ == 0) count_ = static_cast<std::int64_t>(edges_.size()) - 1;
    }

    std::int64_t count() const noexcept { return count_; }

    // Of bin 0 to count(); that of count() is where the last one ends.
    Timestamp start(std::int64_t index) const noexcept {
        return Timestamp(length_ > 0 ? first_ + index * length_ : edges_[static_cast<std::size_t>(index)]);
    }

    // The bin of a time in the period. `hint` is the caller's, 0 at first: near times are found at once.
    std::int64_t index(Timestamp time, std::int64_t& hint) const noexcept {
        const std::int64_t micros = time.micros();
        if (length_ > 0) return (micros - first_) / length_;
        const auto at = static_cast<std::size_t>(hint);
        if (edges_[at] <= micros && micros < edges_[at + 1]) return hint;
        return hint = std::upper_bound(edges_.begin(), edges_.end(), micros) - edges_.begin() - 1;
    }

private:
    [[noreturn]] static void throw_bad_anchor(const char* why) { throw Error(ErrorCode::bad_value, "billing_anchor", why); }

    void cut_evenly(std::int64_t first, std::int64_t length, std::int64_t end) {
        first_ = first;
        length_ = length;
        count_ = (end - first) / length;
    }

    void add_edge(std::int64_t edge) {
        if (!edges_.empty() && edges_.back() == edge) return;  // a day that the zone skipped altogether
        if (edges_.size() > limits::aggregate_rows) {
            throw Error(ErrorCode::too_large, "bin", "the period has more than " + std::to_string(limits::aggregate_rows) + " bins");
        }
        edges_.push_back(edge);
    }

    void cut_by_length(Period period, std::int64_t length, const Zone& zone) {
        const std::int64_t from = period.from.micros(), to = period.to.micros();
        const auto aligned = [length](std::int64_t time, const ZoneSpan& span) {
            return floor_divide(time + span.offset, length) * length - span.offset;
        };
        const ZoneSpan here = zone.span_at(from);
        const std::int64_t first = aligned(from, here), end = first + round_up(to - first, length);
        ZoneSpan span = zone.span_at(first);
        const auto fits = [&] { return (span.offset - here.offset) % length == 0; };
        while (span.to < end && fits()) span = zone.span_at(span.to);
        if (fits()) return cut_evenly(first, length, end);

        // Clocks that move by less than a bin (Lord Howe by half an hour, everyone before time zones): a bin ends where the clock moves.
        add_edge(std::max(first, here.from));
        for (span = here; edges_.back() < to; span = zone.span_at(span.to)) {
            for (std::int64_t edge = aligned(edges_.back(), span) + length; edge < std::min(span.to, to + length); edge += length) add_edge(edge);
            if (edges_.back() < to) add_edge(span.to);
        }
    }

    static std::int64_t local_anchor(Stride stride, const Zone& zone, const BinOptions& options) {
        constexpr unsigned a_monday = 4;  // 5 January 1970
        if (options.anchor && stride.months == 0) throw_bad_anchor("is only for months, quarters and years");
        if (options.anchor) return zone.to_local(*options.anchor);
        return options.bin == Bin::week ? (a_monday + options.week_start.iso_encoding() - 1) * micros_per_day : 0;
    }

    // `length` is 0 for months.
    void cut_by_calendar(Period period, const Cycle& cycle, std::int64_t length, const Zone& zone) {
        const std::int64_t to = period.to.micros();
        std::int64_t k = cycle.index(period.from);
        const std::int64_t first = cycle.boundary(k).micros();
        if (length > 0) {
            const std::int64_t end = first + round_up(to - first, length);
            const bool whole = cycle.boundary(k + 1).micros() - first == length;  // not so where the clock skipped the beginning
            if (whole && zone.span_at(first).to >= end) return cut_evenly(first, length, end);
        }
        add_edge(first);
        while (edges_.back() < to) add_edge(cycle.boundary(++k).micros());
    }

    std::int64_t first_ = 0, length_ = 0, count_ = 0;
    std::vector<std::int64_t> edges_;
};

// The bins of all of time, found when they are asked for: a grid for each stretch of 407 days in which a time fell.
class Bins {
public:
    // Throws as BinGrid.
    explicit Bins(BinOptions options) : options_(std::move(options)) { grid_of(0); }
    Bins(const Bins&) = delete;
    Bins& operator=(const Bins&) = delete;

    // The bin that holds the time; all of time without bins.
    Period around(Timestamp time) {
        if (options_.bin == Bin::none) return {};
        time = std::clamp(time, Timestamp::min(), Timestamp::max());
        const std::int64_t era = time.micros() >> era_bits;
        if (era != last_era_) last_grid_ = &grid_of(era), last_era_ = era, hint_ = 0;
        const std::int64_t index = last_grid_->index(time, hint_);
        return {last_grid_->start(index), last_grid_->start(index + 1)};
    }

private:
    static constexpr int era_bits = 45;

    const BinGrid& grid_of(std::int64_t era) {
        const auto known = grids_.find(era);
        if (known != grids_.end()) return known->second;
        const Timestamp from(era * (std::int64_t{1} << era_bits));
        return grids_.try_emplace(era, Period{from, from + std::chrono::microseconds(std::int64_t{1} << era_bits)}, options_).first->second;
    }

    BinOptions options_;
    std::unordered_map<std::int64_t, BinGrid> grids_;
    const BinGrid* last_grid_ = nullptr;
    std::int64_t last_era_ = std::numeric_limits<std::int64_t>::min(), hint_ = 0;
};

}  // namespace

// =============================================================================================
// 3 values: JSON text (scanner, writer, canonical form), property paths, filters, expressions. Pure. Uses 1, 2.
// =============================================================================================

namespace {

[[noreturn]] void refuse(std::string field, std::string reason) { throw Error(ErrorCode::bad_value, std::move(field), std::move(reason)); }

// The length of the UTF-8 sequence at `at`, 0 when there is none that Unicode allows (Unicode 15, table 3-7).
std::size_t utf8_length(std::string_view text, std::size_t at) noexcept {
    const auto byte = [&](std::size_t i) { return i < text.size() ? static_cast<unsigned char>(text[i]) : 0U; };
    const auto follows = [&](std::size_t i, unsigned low = 0x80, unsigned high = 0xBF) { return byte(i) >= low && byte(i) <= high; };
    const unsigned first = byte(at);
    if (first < 0x80) return 1;
    if (first >= 0xC2 && first <= 0xDF) return follows(at + 1) ? 2 : 0;
    if (first >= 0xE0 && first <= 0xEF) {
        const bool second = follows(at + 1, first == 0xE0 ? 0xA0 : 0x80, first == 0xED ? 0x9F : 0xBF);
        return second && follows(at + 2) ? 3 : 0;
    }
    if (first >= 0xF0 && first <= 0xF4) {
        const bool second = follows(at + 1, first == 0xF0 ? 0x90 : 0x80, first == 0xF4 ? 0x8F : 0xBF);
        return second && follows(at + 2) && follows(at + 3) ? 4 : 0;
    }
    return 0;
}

// How many of the first bytes are plain: ASCII from space on, without quotation mark and backslash. Eight bytes at a time: (word - n x ones)
// & ~word has the high bit of the lowest byte that is below n, and none below it (Hacker's Delight, 6-1).
std::size_t plain_run(std::string_view text) noexcept {
    constexpr std::uint64_t ones = 0x0101010101010101ULL, highs = 0x8080808080808080ULL;
    const auto below = [](std::uint64_t word, std::uint64_t bound) { return (word - ones * bound) & ~word; };
    std::size_t at = 0;
    if constexpr (std::endian::native == std::endian::little) {
        for (; at + 8 <= text.size(); at += 8) {
            std::uint64_t word = 0;
            std::memcpy(&word, text.data() + at, 8);
            const std::uint64_t stops = (word | below(word, ' ') | below(word ^ ones * '"', 1) | below(word ^ ones * '\\', 1)) & highs;
            if (stops != 0) return at + static_cast<std::size_t>(std::countr_zero(stops)) / 8;
        }
    }
    while (at < text.size() && text[at] >= ' ' && text[at] != '"' && text[at] != '\\' && static_cast<unsigned char>(text[at]) < 0x80) ++at;
    return at;
}

// Why a text cannot be stored, or nothing. NUL is refused because SQLite's text functions and PostgreSQL's jsonb end at it.
const char* text_fault(std::string_view text) noexcept {
    for (std::size_t at = plain_run(text); at < text.size();) {
        if (text[at] == '\0') return "contains a NUL character";
        const std::size_t length = utf8_length(text, at);
        if (length == 0) return "is not valid UTF-8";
        at += length;
    }
    return nullptr;
}

void append_utf8(std::string& out, std::uint32_t code) {
    const auto put = [&](std::uint32_t byte) { out.push_back(static_cast<char>(byte)); };
    if (code < 0x80) return put(code);
    if (code < 0x800) {
        put(0xC0 | code >> 6);
        return put(0x80 | (code & 0x3F));
    }
    if (code < 0x10000) {
        put(0xE0 | code >> 12);
    } else {
        put(0xF0 | code >> 18);
        put(0x80 | (code >> 12 & 0x3F));
    }
    put(0x80 | (code >> 6 & 0x3F));
    put(0x80 | (code & 0x3F));
}

// Runs `read`; an error that names no field gets this one.
template <class Read>
auto naming(std::string_view field, Read&& read) {
    try {
        return read();
    } catch (const Error& error) {
        if (!error.field().empty()) throw;
        throw Error(error.code(), std::string(field), error.reason());
    }
}

// Runs `read`; the field that an error names is one of `place`.
template <class Read>
auto beneath(const std::string& place, Read&& read) {
    try {
        return read();
    } catch (const Error& error) {
        throw Error(error.code(), error.field().empty() ? place : place + "." + error.field(), error.reason());
    }
}

// Numbers that Decimal cannot hold are refused on the way in, so that whatever is stored can be measured exactly.
const char* number_fault(std::string_view text, bool exponent) noexcept {
    if (text.size() <= 18 && !exponent) return nullptr;
    return Decimal::parse(text) ? nullptr : "is a number of more than 38 digits, or too large or small";
}

struct JsonToken {
    enum class Kind : std::uint8_t { null, boolean, number, text, array, object };
    Kind kind = Kind::null;
    bool escaped = false;    // a text with backslashes in it
    std::string_view raw{};  // as it stands; a text without its quotes
};

// Reads one JSON text (RFC 8259, strictly) from front to back, without building a tree. Throws Error(bad_value) with the place.
class JsonScanner {
public:
    enum class Keys { compared, trusted };  // whether to look for keys that stand twice in one object
    explicit JsonScanner(std::string_view text, Keys keys = Keys::compared) noexcept
        : begin_(text.data()), at_(text.data()), end_(text.data() + text.size()), compared_keys_(keys == Keys::compared ? max_compared_keys : 0) {}

    // The first character of the next value; NUL at the end.
    char peek() noexcept {
        while (at_ != end_ && static_cast<unsigned char>(*at_) <= ' ' && (*at_ == ' ' || *at_ == '\t' || *at_ == '\n' || *at_ == '\r')) ++at_;
        return at_ == end_ ? '\0' : *at_;
    }

    // Reads an object; `member(key)` must read exactly one value. The key is decoded and lives until the next call.
    template <class Member>
    void object(Member&& member) {
        open('{');
        std::array<std::string_view, max_compared_keys> keys;
        std::size_t count = 0;
        if (!close('}')) {
            do {
                const JsonToken key = string();
                for (std::size_t i = 0; i < count; ++i) {
                    if (keys[i] == key.raw) fail("the key \"" + std::string(key.raw) + "\" stands twice");
                }
                if (count < compared_keys_) keys[count++] = key.raw;
                expect(':');
                if (key.escaped) {
                    const std::string decoded = decode(key);
                    member(std::string_view(decoded));
                } else {
                    member(key.raw);
                }
            } while (more('}'));
        }
        --depth_;
    }

    // Reads an array; `element()` must read exactly one value.
    template <class Element>
    void array(Element&& element) {
        open('[');
        if (!close(']')) {
            do element();
            while (more(']'));
        }
        --depth_;
    }

    // Reads any value; containers are checked and passed over.
    JsonToken value() {
        switch (peek()) {
            case '{':
                return container(JsonToken::Kind::object, [this] { object([this](std::string_view) { value(); }); });
            case '[':
                return container(JsonToken::Kind::array, [this] { array([this] { value(); }); });
            case '"':
                return string();
            case 't':
                return word("true", JsonToken::Kind::boolean);
            case 'f':
                return word("false", JsonToken::Kind::boolean);
            case 'n':
                return word("null", JsonToken::Kind::null);
            default:
                return number();
        }
    }

    const char* position() const noexcept { return at_; }

    void end() {
        if (peek() != '\0' || at_ != end_) fail("something follows the value");
    }

    std::string decode(const JsonToken& token) const {
        std::string out;
        out.reserve(token.raw.size());
        for (std::size_t i = 0; i < token.raw.size(); ++i) {
            if (token.raw[i] != '\\') {
                out.push_back(token.raw[i]);
                continue;
            }
            const char kind = token.raw[++i];
            if (kind != 'u') {
                out.push_back(escapes.second[escapes.first.find(kind)]);
                continue;
            }
            std::uint32_t code = hex(token.raw.data() + i + 1);
            i += 4;
            if (code >= 0xD800 && code < 0xDC00) {
                code = 0x10000 + ((code - 0xD800) << 10) + (hex(token.raw.data() + i + 3) - 0xDC00);
                i += 6;
            }
            append_utf8(out, code);
        }
        return out;
    }

    [[noreturn]] void fail(const std::string& reason) const {
        throw Error(ErrorCode::bad_value, "", reason + " (byte " + std::to_string(at_ - begin_) + ")");
    }

private:
    // Beyond so many keys in one object a repeated key is not noticed; the last one counts.
    static constexpr std::size_t max_compared_keys = 32;
    static constexpr std::pair<std::string_view, std::string_view> escapes{"\"\\/bfnrt", "\"\\/\b\f\n\r\t"};

    void expect(char c) {
        if (peek() != c || at_ == end_) missing(c);
        ++at_;
    }
    [[noreturn]] void missing(char c) const { fail(std::string("'") + c + "' expected"); }
    void open(char c) {  // properties and extensions are one level down: in their event's line, or in what the log keeps beside them
        expect(c);
        if (++depth_ > limits::json_depth + 1) fail("nested more than " + std::to_string(limits::json_depth) + " deep");
    }
    bool close(char c) {
        if (peek() != c) return false;
        ++at_;
        return true;
    }
    bool more(char closing) {
        if (close(closing)) return false;
        expect(',');
        return true;
    }
    template <class Read>
    JsonToken container(JsonToken::Kind kind, Read&& read) {
        const char* start = at_;
        read();
        return {kind, false, span(start)};
    }
    JsonToken word(std::string_view text, JsonToken::Kind kind) {
        const char* start = at_;
        if (static_cast<std::size_t>(end_ - at_) < text.size() || std::string_view(at_, text.size()) != text) fail("not a JSON value");
        at_ += text.size();
        return {kind, false, span(start)};
    }
    JsonToken number() {
        const char* start = at_;
        const auto digits = [this] {
            const char* first = at_;
            while (at_ != end_ && *at_ >= '0' && *at_ <= '9') ++at_;
            if (at_ == first) fail(at_ == end_ ? "the text ends in the middle" : "not a JSON value");
        };
        const auto skip = [this](char a, char b) { return at_ != end_ && (*at_ == a || *at_ == b) && (++at_, true); };
        skip('-', '-');
        if (!skip('0', '0')) digits();
        if (skip('.', '.')) digits();
        const bool exponent = skip('e', 'E');
        if (exponent) {
            skip('+', '-');
            digits();
        }
        if (const char* fault = number_fault(span(start), exponent)) fail(fault);
        return {JsonToken::Kind::number, false, span(start)};
    }
    JsonToken string() {
        expect('"');
        const char* start = at_;
        bool escaped = false;
        for (;;) {
            at_ += plain_run({at_, static_cast<std::size_t>(end_ - at_)});
            if (at_ == end_) fail("the text ends in the middle of a string");
            if (*at_ == '"') break;
            if (*at_ == '\\') {
                escape();
                escaped = true;
            } else {
                rare_character();
            }
        }
        const JsonToken token{JsonToken::Kind::text, escaped, span(start)};
        ++at_;
        return token;
    }
    void rare_character() {
        if (static_cast<unsigned char>(*at_) < 0x20) fail("a control character in a string");
        const std::size_t length = utf8_length(std::string_view(at_, static_cast<std::size_t>(end_ - at_)), 0);
        if (length == 0) fail("not valid UTF-8");
        at_ += length;
    }
    void escape() {
        if (end_ - at_ < 2) fail("the text ends in the middle of a string");
        if (at_[1] != 'u') {
            if (escapes.first.find(at_[1]) == std::string_view::npos) fail("an unknown escape");
            at_ += 2;
            return;
        }
        const std::uint32_t code = escaped_unit();
        if (code == 0) fail("a NUL character in a string");
        if (code >= 0xDC00 && code < 0xE000) fail("half of a surrogate pair");
        if (code >= 0xD800 && code < 0xDC00) {
            const bool pair = end_ - at_ >= 2 && at_[0] == '\\' && at_[1] == 'u';
            const std::uint32_t low = pair ? escaped_unit() : 0;
            if (low < 0xDC00 || low > 0xDFFF) fail("half of a surrogate pair");
        }
    }
    std::uint32_t escaped_unit() {
        if (end_ - at_ < 6) fail("the text ends in the middle of a string");
        for (int i = 2; i < 6; ++i) {
            const char c = at_[i];
            if (!((c >= '0' && c <= '9') || (c >= 'a' && c <= 'f') || (c >= 'A' && c <= 'F'))) fail("an unknown escape");
        }
        const std::uint32_t code = hex(at_ + 2);
        at_ += 6;
        return code;
    }
    static std::uint32_t hex(const char* digits) noexcept {
        std::uint32_t code = 0;
        std::from_chars(digits, digits + 4, code, 16);
        return code;
    }
    std::string_view span(const char* start) const noexcept { return {start, static_cast<std::size_t>(at_ - start)}; }

    const char *begin_, *at_, *end_;
    std::size_t compared_keys_, depth_ = 0;
};

// Where in a tree we are, for the field of an error; costs nothing until it is needed.
struct JsonPath {
    const JsonPath* parent = nullptr;
    std::string_view key{};
    std::string text() const { return parent && !parent->key.empty() ? parent->text() + "." + std::string(key) : std::string(key); }
};

void append_json_text(std::string& out, std::string_view text) {
    constexpr std::string_view digits = "0123456789abcdef";
    out.push_back('"');
    std::size_t copied = 0;
    for (std::size_t at = plain_run(text); at < text.size(); ++at) {
        const char c = text[at];
        if (static_cast<unsigned char>(c) >= 0x20 && c != '"' && c != '\\') continue;
        out.append(text, copied, at - copied);
        copied = at + 1;
        switch (c) {
            case '"':
                out += "\\\"";
                break;
            case '\\':
                out += "\\\\";
                break;
            case '\n':
                out += "\\n";
                break;
            case '\t':
                out += "\\t";
                break;
            case '\r':
                out += "\\r";
                break;
            default:
                out += "\\u00";
                out += digits[static_cast<unsigned char>(c) >> 4];
                out += digits[c & 15];
        }
    }
    out.append(text, copied);
    out.push_back('"');
}

template <class Number>
void append_json_number(std::string& out, Number number, const JsonPath& path) {
    std::array<char, 32> digits{};
    const auto [end, fault] = std::to_chars(digits.data(), digits.data() + digits.size(), number);
    std::string_view text(digits.data(), static_cast<std::size_t>(end - digits.data()));
    if (fault != std::errc() || text.find_first_of("nN") != std::string_view::npos) refuse(path.text(), "is not a finite number");
    if (const char* reason = number_fault(text, text.find('e') != std::string_view::npos)) refuse(path.text(), reason);
    out += text;
    if constexpr (std::is_floating_point_v<Number>) {
        if (text.find_first_of(".e") == std::string_view::npos) out += ".0";  // so that it is read back as the float it was
    }
}

// Writes what an app handed us as compact JSON text, refusing what cannot be stored. The depth bound also bounds the recursion.
void append_json(std::string& out, const json& value, const JsonPath& path, std::size_t depth = 1) {
    if (value.is_structured() && depth > limits::json_depth) refuse(path.text(), "nested more than " + std::to_string(limits::json_depth) + " deep");
    const auto text = [&](std::string_view content) {
        if (const char* fault = text_fault(content)) refuse(path.text(), fault);
        append_json_text(out, content);
    };
    switch (value.type()) {
        case json::value_t::null:
            out += "null";
            break;
        case json::value_t::boolean:
            out += value.get<bool>() ? "true" : "false";
            break;
        case json::value_t::number_integer:
            append_json_number(out, value.get<std::int64_t>(), path);
            break;
        case json::value_t::number_unsigned:
            append_json_number(out, value.get<std::uint64_t>(), path);
            break;
        case json::value_t::number_float:
            append_json_number(out, value.get<double>(), path);
            break;
        case json::value_t::string:
            text(value.get_ref<const std::string&>());
            break;
        case json::value_t::array: {
            out.push_back('[');
            for (std::size_t i = 0; i < value.size(); ++i) {
                if (i != 0) out.push_back(',');
                append_json(out, value[i], {&path, std::to_string(i)}, depth + 1);
            }
            out.push_back(']');
            break;
        }
        case json::value_t::object: {
            out.push_back('{');
            bool first = true;
            for (const auto& [key, member] : value.get_ref<const json::object_t&>()) {
                if (!first) out.push_back(',');
                first = false;
                text(key);
                out.push_back(':');
                append_json(out, member, {&path, key}, depth + 1);
            }
            out.push_back('}');
            break;
        }
        default:
            refuse(path.text(), "is not a JSON value");
    }
}

json canonical_json(JsonScanner& scanner) {
    if (scanner.peek() == '{') {
        json object = json::object();
        scanner.object([&](std::string_view key) { object[std::string(key)] = canonical_json(scanner); });
        return object;
    }
    if (scanner.peek() == '[') {
        json elements = json::array();
        scanner.array([&] { elements.push_back(canonical_json(scanner)); });
        return elements;
    }
    const JsonToken token = scanner.value();
    switch (token.kind) {
        case JsonToken::Kind::null:
            return nullptr;
        case JsonToken::Kind::boolean:
            return token.raw == "true";
        case JsonToken::Kind::text:
            return scanner.decode(token);
        case JsonToken::Kind::number: {
            // As bytes, which no JSON text can hold: a number then never equals a text, and keeps all its digits.
            const std::string digits = Decimal(token.raw).to_string();
            return json::binary({digits.begin(), digits.end()});
        }
        default:
            return nullptr;  // containers were read above
    }
}

// Whether two JSON texts mean the same: order of keys, white space and the writing of numbers do not count.
bool same_json(std::string_view a, std::string_view b) {
    if (a == b) return true;
    JsonScanner left(a), right(b);
    return canonical_json(left) == canonical_json(right);
}

// The leaves of a JSON object under their paths, each key after a dot: {"a": {"b": 1}} gives (".a.b", 1). An array, and an object without
// members, is a leaf. `leaf(path, token, scanner)` is called in the order of the text; of two equal paths the later one counts.
template <class Leaf>
void flatten_json(JsonScanner& scanner, std::string& path, Leaf&& leaf) {
    const std::size_t prefix = path.size();
    bool empty = true;
    const char* start = scanner.position();
    scanner.object([&](std::string_view key) {
        empty = false;
        path.resize(prefix);
        path.push_back('.');
        path += key;
        if (scanner.peek() == '{') return flatten_json(scanner, path, leaf);
        const JsonToken token = scanner.value();
        leaf(std::as_const(path), token, scanner);
    });
    path.resize(prefix);
    if (empty && prefix != 0) {
        const JsonToken token{JsonToken::Kind::object, false, {start, static_cast<std::size_t>(scanner.position() - start)}};
        leaf(std::as_const(path), token, scanner);
    }
}

// ---- filters ----

// One value of a field, as filters and groups see it.
struct Scalar {
    enum class Kind : std::uint8_t { missing, null, boolean, number, text, json, object };  // object: with members; it exists, no more is known
    Kind kind = Kind::missing;
    bool boolean = false;
    Decimal number{};
    std::string_view text{};
    bool absent() const noexcept { return kind == Kind::missing || kind == Kind::null || kind == Kind::object; }
    bool exists() const noexcept { return !absent() || kind == Kind::object; }
};

constexpr std::array<std::pair<std::string_view, Operator>, 13> operators{{
    {"eq", Operator::eq},
    {"ne", Operator::ne},
    {"gt", Operator::gt},
    {"gte", Operator::gte},
    {"lt", Operator::lt},
    {"lte", Operator::lte},
    {"in", Operator::in},
    {"not_in", Operator::not_in},
    {"contains", Operator::contains},
    {"not_contains", Operator::not_contains},
    {"like", Operator::like},
    {"not_like", Operator::not_like},
    {"exists", Operator::exists},
}};

std::string_view operator_name(Operator op) {
    const auto known = std::find_if(operators.begin(), operators.end(), [op](const auto& row) { return row.second == op; });
    if (known == operators.end()) refuse("filter.operator", "is not an operator");
    return known->first;
}

// Text for people and for group keys: a number by its shortest form, a boolean as JSON writes it.
std::string scalar_text(const Scalar& value) {
    switch (value.kind) {
        case Scalar::Kind::boolean:
            return value.boolean ? "true" : "false";
        case Scalar::Kind::number:
            return value.number.to_string();
        case Scalar::Kind::text:
        case Scalar::Kind::json:
            return std::string(value.text);
        default:
            return {};
    }
}

std::optional<Decimal> scalar_number(const Scalar& value) {
    if (value.kind == Scalar::Kind::number) return value.number;
    if (value.kind == Scalar::Kind::text) return Decimal::parse(value.text);
    return std::nullopt;
}

// The value a clause compares with, prepared once.
struct Operand {
    Scalar::Kind kind = Scalar::Kind::null;
    bool boolean = false;
    std::optional<Decimal> number{};
    std::string text{};
};

Operand make_operand(const json& value, const std::string& field) {
    switch (value.type()) {
        case json::value_t::null:
            return {};
        case json::value_t::boolean:
            return {Scalar::Kind::boolean, value.get<bool>(), {}, value.get<bool>() ? "true" : "false"};
        case json::value_t::string: {
            const auto& text = value.get_ref<const std::string&>();
            if (const char* fault = text_fault(text)) refuse(field, fault);
            return {Scalar::Kind::text, false, Decimal::parse(text), text};
        }
        case json::value_t::number_integer:
        case json::value_t::number_unsigned:
        case json::value_t::number_float: {
            const auto number = Decimal::parse(value.dump());
            if (!number) refuse(field, "a filter compares with numbers of at most 38 digits");
            return {Scalar::Kind::number, false, number, number->to_string()};
        }
        default:
            refuse(field, "a filter compares with text, numbers, booleans or null");
    }
}

std::weak_ordering compare(const Scalar& value, const Operand& operand) {
    if (operand.number) {
        if (const auto number = scalar_number(value)) return *number <=> *operand.number;
    }
    return scalar_text(value) <=> operand.text;
}

// SQL's LIKE: % is any text, _ one character; letters as they are.
bool like(std::string_view text, std::string_view pattern) {
    const auto continues = [](char c) { return (static_cast<unsigned char>(c) & 0xC0) == 0x80; };  // a UTF-8 character
    std::size_t t = 0, p = 0, star = std::string_view::npos, resume = 0;
    while (t < text.size()) {
        if (p < pattern.size() && pattern[p] == '%') {
            star = p++;
            resume = t;
        } else if (p < pattern.size() && pattern[p] == '_' && !continues(text[t])) {
            for (++p, ++t; t < text.size() && continues(text[t]); ++t) {
            }
        } else if (p < pattern.size() && pattern[p] == text[t]) {
            ++p, ++t;
        } else if (star != std::string_view::npos) {
            p = star + 1;
            t = ++resume;
        } else {
            return false;
        }
    }
    return pattern.find_first_not_of('%', p) == std::string_view::npos;
}

// A comparison with one number, on integers that stand for numbers at some scale: what holds below, at and above `edge`. Where the number
// itself lies between two integers, none is at it, and `edge` is the last one below.
struct NumberBound {
    std::int64_t edge = 0;
    bool below = false, at = false, above = false;
    // Without a branch, so that a loop over cells is one over vectors of them.
    bool holds(std::int64_t cell) const noexcept { return ((cell < edge) & below) | ((cell == edge) & at) | ((cell > edge) & above); }
};

// A clause made ready to meet many values.
struct Clause {
    Operator op = Operator::eq;
    std::vector<Operand> operands{};

    bool holds(const Scalar& value) const {
        switch (op) {
            case Operator::exists:
                return value.exists() == operands[0].boolean;
            case Operator::ne:
            case Operator::not_in:
                return !among(value);
            case Operator::not_contains:
                return value.absent() || scalar_text(value).find(operands[0].text) == std::string::npos;
            case Operator::not_like:
                return value.absent() || !like(scalar_text(value), operands[0].text);
            default:
                break;
        }
        if (op == Operator::eq || op == Operator::in) return among(value);
        if (value.absent()) return false;
        switch (op) {
            case Operator::gt:
                return ordered(value) && compare(value, operands[0]) > 0;
            case Operator::gte:
                return ordered(value) && compare(value, operands[0]) >= 0;
            case Operator::lt:
                return ordered(value) && compare(value, operands[0]) < 0;
            case Operator::lte:
                return ordered(value) && compare(value, operands[0]) <= 0;
            case Operator::contains:
                return scalar_text(value).find(operands[0].text) != std::string::npos;
            case Operator::like:
                return like(scalar_text(value), operands[0].text);
            default:
                return false;
        }
    }

    // The clause for integers at a scale; nothing when it is not a comparison with one number, or that is out of their range.
    std::optional<NumberBound> bound(int scale) const {
        const bool ordering =
            op == Operator::eq || op == Operator::ne || op == Operator::gt || op == Operator::gte || op == Operator::lt || op == Operator::lte;
        if (!ordering || !operands[0].number) return std::nullopt;
        const Decimal& number = *operands[0].number;
        const Decimal floor = number.round(scale, Rounding::floor);
        if (floor.digits() > 18 || scale > 18) return std::nullopt;
        const auto edge = (floor * Decimal(power64(scale))).to_int64();
        if (!edge) return std::nullopt;
        const bool less = op == Operator::lt || op == Operator::lte || op == Operator::ne,
                   more = op == Operator::gt || op == Operator::gte || op == Operator::ne;
        const bool equal = op == Operator::eq || op == Operator::gte || op == Operator::lte;
        return NumberBound{*edge, less, floor == number ? equal : less, more};
    }

private:
    bool among(const Scalar& value) const {
        return std::any_of(operands.begin(), operands.end(), [&](const Operand& operand) {
            if (value.absent() || operand.kind == Scalar::Kind::null) return value.absent() && operand.kind == Scalar::Kind::null;
            if (value.kind == Scalar::Kind::text && operand.kind == Scalar::Kind::text) return value.text == operand.text;
            return compare(value, operand) == 0;
        });
    }
    // Greater and less make sense between two numbers or two texts, not across.
    bool ordered(const Scalar& value) const {
        if (operands[0].number) return scalar_number(value).has_value();
        return value.kind == Scalar::Kind::text && operands[0].kind == Scalar::Kind::text;
    }
};

// Faults are named by `where`.
Clause make_clause(const Filter& filter, const std::string& where) {
    Clause clause{filter.op, {}};
    if (filter.op == Operator::in || filter.op == Operator::not_in) {
        if (!filter.value.is_array()) refuse(where, "takes a list of values");
        for (const json& value : filter.value) clause.operands.push_back(make_operand(value, where));
        return clause;
    }
    if (filter.op == Operator::exists && !filter.value.is_boolean()) refuse(where, "takes true or false");
    clause.operands.push_back(make_operand(filter.value, where));
    const Scalar::Kind kind = clause.operands[0].kind;
    const bool searches = filter.op == Operator::contains || filter.op == Operator::not_contains;
    const bool matches = filter.op == Operator::like || filter.op == Operator::not_like;
    if (matches && kind != Scalar::Kind::text) refuse(where, "takes a text");
    if (searches && kind == Scalar::Kind::null) refuse(where, "takes a text, number or boolean");
    return clause;
}

Clause make_clause(const Filter& filter) { return make_clause(filter, filter.field + "." + std::string(operator_name(filter.op))); }

// Of a filter that did not come from JSON: that it can be asked, and written as JSON.
void check_filter(const Filter& filter, std::size_t depth = 1) {
    if (depth > limits::json_depth) refuse("filter", "nested too deep");
    for (const Filter& part : filter.parts) check_filter(part, depth + 1);
    if (filter.kind == Filter::Kind::all || filter.kind == Filter::Kind::any) return;
    if (filter.kind != Filter::Kind::clause) refuse("filter.kind", "is not a kind of filter");
    if (filter.field.empty()) refuse("filter.field", "is empty");
    if (const char* fault = text_fault(filter.field)) refuse("filter.field", fault);
    make_clause(filter);
}

// ---- coercion: what vendors do where the value and what it is compared with differ in type ----

enum class Meeting : std::uint8_t {
    never,   // no operator holds, not even ne
    differ,  // they are unequal and have no order
    number,  // compared as numbers, a boolean as 0 or 1
    text,    // compared as texts
    zero,    // the value counts as 0
    empty,   // the value counts as ""
};

// One evaluator's rules as a table: what is stored meets a boolean, a number, a text.
struct Coercion {
    struct Row {
        std::array<Meeting, 3> compared{}, searched{};  // searched: by contains and like
    };
    Row missing{}, boolean{}, number{}, text{}, structure{};
    std::string_view null{};  // the text that null is; missing when empty
    std::array<std::string_view, 2> stored_booleans{"false", "true"}, asked_booleans{"false", "true"};
    std::string (*stored_number)(const Decimal&) = nullptr;  // its text, where that is not the plain one

    const Row& row(Scalar::Kind kind) const {
        switch (kind) {
            case Scalar::Kind::boolean:
                return boolean;
            case Scalar::Kind::number:
                return number;
            case Scalar::Kind::text:
                return text;
            case Scalar::Kind::json:
                return structure;
            default:
                return missing;
        }
    }
};

// Of whatever type it is compared with.
constexpr std::array<Meeting, 3> never_any{Meeting::never, Meeting::never, Meeting::never}, text_any{Meeting::text, Meeting::text, Meeting::text},
    empty_any{Meeting::empty, Meeting::empty, Meeting::empty}, differ_any{Meeting::differ, Meeting::differ, Meeting::differ},
    as_written{Meeting::text, Meeting::number, Meeting::text};

// How an evaluator reads the fields of an event in a filter; where it has no table the rules of Filter hold.
struct FilterRules {
    const Coercion* properties = nullptr;
    const Coercion* fields = nullptr;
    std::optional<Rounding> seconds{};  // times are compared as whole Unix seconds
};

bool satisfies(Operator op, std::strong_ordering order) {
    switch (op) {
        case Operator::eq:
            return order == 0;
        case Operator::ne:
            return order != 0;
        case Operator::gt:
            return order > 0;
        case Operator::gte:
            return order >= 0;
        case Operator::lt:
            return order < 0;
        case Operator::lte:
            return order <= 0;
        default:
            return false;
    }
}

// One value against another, by an evaluator's rules. Not for in, not_in and exists.
bool meets(const Coercion& rules, Operator op, const Scalar& value, const Operand& asked) {
    const bool matched = op == Operator::like || op == Operator::not_like;
    const bool searched = matched || op == Operator::contains || op == Operator::not_contains;
    const std::size_t column = asked.kind == Scalar::Kind::boolean ? 0 : asked.kind == Scalar::Kind::number ? 1 : 2;
    if (value.kind == Scalar::Kind::null && !rules.null.empty()) return meets(rules, op, {Scalar::Kind::text, false, {}, rules.null}, asked);
    const Coercion::Row& row = rules.row(value.kind);
    const Meeting meeting = (searched ? row.searched : row.compared)[column];
    const auto number_of = [](bool is_boolean, bool boolean, const Decimal& number) { return is_boolean ? Decimal(boolean ? 1 : 0) : number; };
    switch (meeting) {
        case Meeting::never:
            return false;
        case Meeting::differ:
            return op == Operator::ne;
        case Meeting::number:
        case Meeting::zero: {
            const Decimal zero, stored = number_of(value.kind == Scalar::Kind::boolean, value.boolean, value.number);
            return satisfies(op, (meeting == Meeting::zero ? zero : stored) <=> number_of(column == 0, asked.boolean, asked.number.value_or(zero)));
        }
        case Meeting::text:
        case Meeting::empty:
            break;
    }
    const std::string wanted = column == 0 ? std::string(rules.asked_booleans[asked.boolean ? 1 : 0]) : asked.text;
    const std::string written = value.kind == Scalar::Kind::boolean ? std::string(rules.stored_booleans[value.boolean ? 1 : 0])
                                : value.kind == Scalar::Kind::number && rules.stored_number ? rules.stored_number(value.number)
                                                                                            : scalar_text(value);
    const std::string stored = meeting == Meeting::empty ? "" : written;
    if (!searched) return satisfies(op, stored <=> wanted);
    const bool found = matched ? like(stored, wanted) : stored.find(wanted) != std::string::npos;
    return found == (op == Operator::like || op == Operator::contains);
}

// A clause against one value: in and not_in are eq and ne to each of a list.
bool meets(const Coercion& rules, const Clause& clause, const Scalar& value) {
    const auto each = [&](Operator op) { return [&rules, &value, op](const Operand& asked) { return meets(rules, op, value, asked); }; };
    const auto& asked = clause.operands;
    if (clause.op == Operator::exists) return value.absent() != asked[0].boolean;
    if (clause.op == Operator::in) return std::any_of(asked.begin(), asked.end(), each(Operator::eq));
    if (clause.op == Operator::not_in) return std::all_of(asked.begin(), asked.end(), each(Operator::ne));
    return meets(rules, clause.op, value, asked[0]);
}

// A JSON value as a scalar. The text of a list or object stays in `keep`.
Scalar scalar_of(const json& value, std::string& keep) {
    switch (value.type()) {
        case json::value_t::null:
            return {Scalar::Kind::null, false, {}, {}};
        case json::value_t::boolean:
            return {Scalar::Kind::boolean, value.get<bool>(), {}, {}};
        case json::value_t::string:
            return {Scalar::Kind::text, false, {}, value.get_ref<const std::string&>()};
        case json::value_t::array:
        case json::value_t::object:
            keep = value.dump();
            return {Scalar::Kind::json, false, {}, keep};
        default:
            return {Scalar::Kind::number, false, Decimal::from_json(value), {}};
    }
}

Scalar scalar_of_member(const json& object, std::string_view key, std::string& keep) {
    const auto found = object.find(std::string(key));
    return found == object.end() ? Scalar{} : scalar_of(*found, keep);
}

// The value at a path of keys, or of the key that is written like the path.
Scalar scalar_at(const json& tree, std::string_view path, std::string& keep) {
    const std::size_t dot = path.find('.');
    if (dot == std::string_view::npos || tree.contains(std::string(path))) return scalar_of_member(tree, path, keep);
    const auto found = tree.find(std::string(path.substr(0, dot)));
    return found == tree.end() || !found->is_object() ? Scalar{} : scalar_at(*found, path.substr(dot + 1), keep);
}

Filter filter_from(const json& tree, const std::string& path, std::size_t depth) {
    if (depth > limits::json_depth) refuse(path, "nested too deep");
    if (!tree.is_object()) refuse(path, "a filter is an object");
    for (const auto& [word, kind] : {std::pair{"all", Filter::Kind::all}, std::pair{"any", Filter::Kind::any}}) {
        if (!tree.contains(word)) continue;
        const json& parts = tree.at(word);
        if (!parts.is_array() || tree.size() != 1) refuse(path + "." + word, "takes a list of filters and stands alone");
        Filter filter{kind, {}, {}, Operator::eq, nullptr};
        for (std::size_t i = 0; i < parts.size(); ++i)
            filter.parts.push_back(filter_from(parts[i], path + "." + word + "." + std::to_string(i), depth + 1));
        return filter;
    }
    const auto field = tree.find("field"), op = tree.find("operator"), value = tree.find("value");
    if (field == tree.end() || !field->is_string() || field->get_ref<const std::string&>().empty()) refuse(path + ".field", "names no field");
    if (op == tree.end() || !op->is_string()) refuse(path + ".operator", "is missing");
    const auto known =
        std::find_if(operators.begin(), operators.end(), [&](const auto& row) { return row.first == op->get_ref<const std::string&>(); });
    if (known == operators.end()) refuse(path + ".operator", "\"" + op->get<std::string>() + "\" is not an operator");
    Filter filter = Filter::where(field->get<std::string>(), known->second, value == tree.end() ? json(nullptr) : *value);
    make_clause(filter, path + ".value");
    return filter;
}

}  // namespace

json Filter::to_json() const {
    if (kind == Kind::clause) return {{"field", field}, {"operator", operator_name(op)}, {"value", value}};
    json list = json::array();
    for (const Filter& part : parts) list.push_back(part.to_json());
    return {{kind == Kind::all ? "all" : "any", std::move(list)}};
}

Filter Filter::from_json(const json& tree) { return filter_from(tree, "filter", 1); }

namespace {

// ---- events as JSON ----

constexpr std::array<std::pair<std::string_view, Severity>, 3> severities{
    {{"info", Severity::info}, {"warning", Severity::warning}, {"critical", Severity::critical}}};

std::string_view severity_name(Severity severity) {
    const auto known = std::find_if(severities.begin(), severities.end(), [severity](const auto& row) { return row.second == severity; });
    if (known == severities.end()) refuse("notice.severity", "must be info, warning or critical");
    return known->first;
}

// What the log keeps of an event beside its columns.
struct Extra {
    std::optional<Decimal> cents{};
    std::optional<Notice> notice{};
    json extensions = nullptr;
};

void check_size(std::string_view field, std::size_t size, std::size_t limit) {
    if (size > limit) throw Error(ErrorCode::too_large, std::string(field), "is longer than " + std::to_string(limit) + " bytes");
}

// As JSON text; empty when there is nothing.
void append_extra(std::string& out, const Extra& extra) {
    if (!extra.cents && !extra.notice && extra.extensions.empty()) return;
    json tree = json::object();
    if (extra.cents) tree["precise_total_amount_cents"] = extra.cents->to_string();
    if (extra.notice) {
        check_size("notice.body", extra.notice->body.size(), limits::extra_bytes);
        tree["notice"] = {{"body", extra.notice->body}, {"severity", severity_name(extra.notice->severity)}, {"notify", extra.notice->notify}};
    }
    if (!extra.extensions.empty()) tree["extensions"] = extra.extensions;
    append_json(out, tree, {}, 0);
}

Notice read_notice(const json& tree) {
    if (!tree.is_object()) refuse("notice", "must be an object");
    Notice notice;
    for (const auto& item : tree.items()) {
        const std::string& key = item.key();
        const json& value = item.value();
        const std::string field = "notice." + key;
        if (key == "body" && value.is_string()) {
            notice.body = value.get<std::string>();
        } else if (key == "notify" && value.is_boolean()) {
            notice.notify = value.get<bool>();
        } else if (key == "severity" && value.is_string()) {
            const auto known =
                std::find_if(severities.begin(), severities.end(), [&](const auto& row) { return row.first == value.get_ref<const std::string&>(); });
            if (known == severities.end()) refuse(field, "must be info, warning or critical");
            notice.severity = known->second;
        } else {
            refuse(field, "must be one of body (text), severity (text), notify (true or false)");
        }
    }
    return notice;
}

void read_extra(Event& event, std::string_view text) {
    const json extra = json::parse(text);
    if (const auto cents = extra.find("precise_total_amount_cents"); cents != extra.end())
        event.precise_total_amount_cents = Decimal::from_json(*cents);
    if (const auto notice = extra.find("notice"); notice != extra.end()) event.notice = read_notice(*notice);
    if (const auto extensions = extra.find("extensions"); extensions != extra.end()) event.extensions = *extensions;
}

// Text is ISO 8601, a number Unix seconds.
Timestamp read_timestamp(const JsonToken& token) {
    if (token.kind == JsonToken::Kind::text) return Timestamp::parse(token.raw);
    if (token.kind == JsonToken::Kind::number) return Timestamp::from_unix(Decimal(token.raw));
    refuse("timestamp", "must be ISO 8601 text or Unix seconds");
}

// ---- drafts: events checked and made ready to be stored ----

// An event on its way into the log. The views live in the caller's event or text, or in the batch.
struct Draft {
    std::string_view id{}, name{}, customer{}, subscription{}, source{};
    std::optional<Timestamp> timestamp{};
    std::string value{};
    std::size_t properties_at = 0, extra_at = 0, end = 0;  // in Drafts::json_text
    std::size_t receipt = 0;
};

struct Drafts {
    std::vector<Draft> accepted{};
    std::vector<Receipt> receipts{};           // one for every event, refused ones included
    ErrorCode refusal = ErrorCode::bad_value;  // of the last one refused
    std::string json_text{};                   // properties and extra of each draft, one after the other
    std::forward_list<std::string> texts{};    // ids that were made, texts that had escapes
    std::string_view properties(const Draft& draft) const {
        return std::string_view(json_text).substr(draft.properties_at, draft.extra_at - draft.properties_at);
    }
    std::string_view extra(const Draft& draft) const { return std::string_view(json_text).substr(draft.extra_at, draft.end - draft.extra_at); }
};

void check_draft(const Drafts& drafts, const Draft& draft) {
    if (draft.name.empty()) refuse("name", "is missing");
    check_size("id", draft.id.size(), limits::id_bytes);
    check_size("name", draft.name.size(), limits::text_bytes);
    check_size("customer", draft.customer.size(), limits::text_bytes);
    check_size("subscription", draft.subscription.size(), limits::text_bytes);
    check_size("source", draft.source.size(), limits::text_bytes);
    check_size("properties", drafts.properties(draft).size(), limits::properties_bytes);
    check_size("extensions", drafts.extra(draft).size(), limits::extra_bytes);
    if (draft.timestamp && (*draft.timestamp < Timestamp::min() || *draft.timestamp > Timestamp::max()))
        refuse("timestamp", "is outside the years 1 to 9999");
}

// Runs `fill(draft)` and keeps the draft with a receipt to come, or takes down why it was refused.
template <class Fill>
void add_draft(Drafts& drafts, Fill&& fill) {
    Draft draft;
    draft.properties_at = drafts.json_text.size();
    draft.receipt = drafts.receipts.size();
    Receipt& receipt = drafts.receipts.emplace_back();
    try {
        fill(draft);
        draft.end = drafts.json_text.size();
        check_draft(drafts, draft);
        receipt.id = draft.id;
        drafts.accepted.push_back(std::move(draft));
    } catch (const Error& error) {
        drafts.json_text.resize(draft.properties_at);
        drafts.refusal = error.code();
        receipt.field = error.field();
        receipt.reason = error.reason();
    }
}

// Of an event from the app. Its texts are checked here; those of a line were, as it was read.
void draft_event(Drafts& drafts, Draft& draft, const Event& event) {
    const std::array<std::pair<std::string_view, std::string_view>, 5> texts{
        {{"id", event.id}, {"name", event.name}, {"customer", event.customer}, {"subscription", event.subscription}, {"source", event.source}}};
    for (const auto& [field, text] : texts) {
        if (const char* fault = text_fault(text)) refuse(std::string(field), fault);
    }
    draft.id = event.id;
    draft.name = event.name;
    draft.customer = event.customer;
    draft.subscription = event.subscription;
    draft.source = event.source;
    draft.timestamp = event.timestamp;
    if (event.value) draft.value = event.value->to_string();
    if (!event.properties.is_object()) refuse("properties", "must be an object");
    if (!event.extensions.is_object()) refuse("extensions", "must be an object");
    append_json(drafts.json_text, event.properties, {nullptr, "properties"});
    draft.extra_at = drafts.json_text.size();
    if (event.precise_total_amount_cents || event.notice || !event.extensions.empty()) {
        append_extra(drafts.json_text, {event.precise_total_amount_cents, event.notice, event.extensions});
    }
}

// The members of a line that are plain text.
constexpr std::array<std::pair<std::string_view, std::string_view Draft::*>, 5> text_members{
    {{"id", &Draft::id}, {"name", &Draft::name}, {"customer", &Draft::customer}, {"subscription", &Draft::subscription}, {"source", &Draft::source}}};

Decimal read_number(const JsonToken& token, std::string_view field) {
    const auto number = token.kind == JsonToken::Kind::number || token.kind == JsonToken::Kind::text ? Decimal::parse(token.raw) : std::nullopt;
    if (!number) refuse(std::string(field), "is not a number");
    return *number;
}

void draft_member(Drafts& drafts, Draft& draft, Extra& extra, std::string_view& properties, JsonScanner& scanner, std::string_view key) {
    const auto text = std::find_if(text_members.begin(), text_members.end(), [&](const auto& row) { return row.first == key; });
    JsonToken token = naming(key, [&] { return scanner.value(); });
    if (token.kind == JsonToken::Kind::null) return;  // as if it were absent
    if (token.escaped) token.raw = drafts.texts.emplace_front(scanner.decode(token));
    if (text != text_members.end()) {
        if (token.kind != JsonToken::Kind::text) refuse(std::string(key), "must be text");
        draft.*(text->second) = token.raw;
    } else if (key == "timestamp") {
        draft.timestamp = read_timestamp(token);
    } else if (key == "value") {
        draft.value = read_number(token, key).to_string();
    } else if (key == "precise_total_amount_cents") {
        extra.cents = read_number(token, key);
    } else if (key == "properties" || key == "extensions" || key == "notice") {
        if (token.kind != JsonToken::Kind::object) refuse(std::string(key), "must be an object");
        if (key == "properties") properties = token.raw;
        if (key == "extensions") extra.extensions = json::parse(token.raw);
        if (key == "notice") extra.notice = read_notice(json::parse(token.raw));
    } else {
        refuse(std::string(key), "is not a member of an event");
    }
}

// The one event; throws when it cannot be stored.
Drafts draft_one(const Event& event) {
    Drafts drafts;
    add_draft(drafts, [&](Draft& draft) { draft_event(drafts, draft, event); });
    if (drafts.accepted.empty()) throw Error(drafts.refusal, drafts.receipts[0].field, drafts.receipts[0].reason);
    return drafts;
}

// One line of JSON. Properties are kept as they stand, after a check, so that no digit changes.
void draft_line(Drafts& drafts, Draft& draft, std::string_view line) {
    JsonScanner scanner(line);
    Extra extra;
    std::string_view properties = "{}";
    naming("line", [&] {
        scanner.object([&](std::string_view key) { draft_member(drafts, draft, extra, properties, scanner, key); });
        scanner.end();
    });
    drafts.json_text += properties;
    draft.extra_at = drafts.json_text.size();
    append_extra(drafts.json_text, extra);
}

// ---- expressions: what an event comes to, as a vendor lets one write it ----
//
// An expression is compiled once, to postfix form, and run over a stack for each event. What its words and signs mean stands in the tables of a
// dialect: CEL's below, a vendor's own with its book (8.2).

// What is computed with: a number in decimal or, where the vendor computes so, in binary (a boolean is 0 or 1 there), or a text; or nothing, with
// the reason as its text.
struct Term {
    enum class Type : std::uint8_t { any, number, boolean, text, nothing };
    Type type = Type::number;
    Decimal number{};
    int decimals = 0;  // as written, with zeros at the end
    double real = 0;
    std::string text{};
};

using Arguments = std::span<Term>;

// An operator or function. What it comes to takes the place of the first argument; it throws when it comes to nothing.
struct Operation {
    enum class Form : std::uint8_t { call, infix, prefix };
    Form form;
    std::string_view name;
    int precedence;           // of infix ones, from 1
    std::size_t least, most;  // arguments
    Term::Type takes, gives;
    void (*apply)(Arguments);
};

struct Dialect {
    std::span<const Operation> operations;
    std::string_view spaces;
    std::string_view property_prefix;           // of words that name a property, as are all where there is none
    std::string_view time_word{}, name_word{};  // the event's time in whole seconds, and its name
    std::span<const std::string_view> reserved{};
    std::string_view beyond{};     // signs of the vendor's language that are not known here
    bool spellings = false;        // functions are also written in capitals, and with one
    bool texts = false;            // 'in quotes'
    bool exponents = false;        // 1e3, .5
    bool repeated_prefix = false;  // --a
    bool typed = false;            // a ? b : c, true and false; types are known beforehand, and it comes to a number
    bool needs_property = false;
    std::optional<Term> (*literal)(std::string_view number);       // nothing of one that is too long
    Term (*property)(std::string_view name, const Scalar& value);  // nothing for what the vendor refuses
    std::string (*result)(const Term&);                            // a number where the dialect is typed
};

struct Expression {
    struct Instruction {
        enum class Kind : std::uint8_t { constant, variable, operation };
        Kind kind;
        std::size_t index;  // of the constant or variable; how many arguments
        void (*apply)(Arguments) = nullptr;
    };
    struct Variable {
        enum class Source : std::uint8_t { property, time, name };
        Source source = Source::property;
        std::string name{};  // of the property
        friend bool operator==(const Variable&, const Variable&) = default;
    };
    const Dialect* dialect = nullptr;
    std::vector<Instruction> code{};
    std::vector<Term> constants{};
    std::vector<Variable> variables{};

    // What it comes to, with read(variable's index) -> Term. Nothing when a variable is nothing, which is then the last of the stack; where an
    // operation comes to nothing, an Error that names no field is thrown.
    template <class Read>
    std::optional<std::string> run(std::vector<Term>& stack, Read&& read) const {
        stack.clear();
        for (const Instruction& each : code) {
            if (each.kind == Instruction::Kind::operation) {
                each.apply(Arguments(stack).last(each.index));
                stack.resize(stack.size() - each.index + 1);
            } else if (each.kind == Instruction::Kind::variable) {
                stack.push_back(read(each.index));
                if (stack.back().type == Term::Type::nothing) return {};
            } else {
                stack.push_back(constants[each.index]);
            }
        }
        return dialect->result(stack.back());
    }
};

// By descent, to a bounded depth.
class ExpressionCompiler {
public:
    ExpressionCompiler(std::string_view text, const Dialect& dialect, std::string field) : text_(text), dialect_(dialect), field_(std::move(field)) {
        made_.dialect = &dialect;
    }
    Expression compile() {
        if (text_.size() > limits::expression_bytes)
            throw Error(ErrorCode::too_large, field_, "is longer than " + std::to_string(limits::expression_bytes) + " bytes");
        if (const char* fault = text_fault(text_)) refuse(field_, fault);
        next();
        const Type type = whole(0);
        if (!token_.empty()) unexpected();
        const auto is_property = [](const Variable& each) { return each.source == Variable::Source::property; };
        if (dialect_.typed && type != Type::number) throw Error(ErrorCode::bad_value, field_, "does not come to a number");
        if (dialect_.needs_property && std::none_of(made_.variables.begin(), made_.variables.end(), is_property))
            throw Error(ErrorCode::bad_value, field_, "names no property");
        return std::move(made_);
    }

private:
    using Type = Term::Type;
    using Form = Operation::Form;
    using Variable = Expression::Variable;
    static constexpr std::size_t max_depth = 100;

    [[noreturn]] void refuse_at(std::size_t at, const std::string& reason, ErrorCode code = ErrorCode::bad_value) const {
        throw Error(code, field_, "at " + std::to_string(at + 1) + ": " + reason);
    }
    [[noreturn]] void unexpected() const {
        if (token_.empty()) refuse_at(at_, "ends too early");
        const bool beyond = dialect_.beyond.find(token_[0]) != std::string_view::npos;
        refuse_at(at_, quote(token_) + (beyond ? " is not known here" : " is not expected"), beyond ? ErrorCode::unsupported : ErrorCode::bad_value);
    }

    // ---- tokens: numbers, words, texts with their quotes, signs; an empty one at the end ----

    static bool is_letter(char c) noexcept { return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_'; }
    bool digit_at(std::size_t at) const noexcept { return at < text_.size() && is_digit(text_[at]); }
    bool starts_number() const noexcept { return !token_.empty() && (is_digit(token_[0]) || (token_[0] == '.' && token_.size() > 1)); }
    bool starts_word() const noexcept { return !token_.empty() && is_letter(token_[0]); }
    std::size_t digits_end(std::size_t at) const noexcept {
        while (digit_at(at)) ++at;
        return at;
    }
    std::size_t number_end(std::size_t at) const noexcept {
        at = digits_end(at);
        if (at < text_.size() && text_[at] == '.' && digit_at(at + 1)) at = digits_end(at + 1);
        if (!dialect_.exponents || at == text_.size() || (text_[at] != 'e' && text_[at] != 'E')) return at;
        const std::size_t sign = at + 1 < text_.size() && (text_[at + 1] == '+' || text_[at + 1] == '-') ? 1 : 0;
        return digit_at(at + 1 + sign) ? digits_end(at + 1 + sign) : at;
    }
    std::size_t word_end(std::size_t at) const noexcept {
        const bool dots = !dialect_.property_prefix.empty();
        while (at < text_.size() && (is_letter(text_[at]) || is_digit(text_[at]) || (dots && text_[at] == '.'))) ++at;
        return at;
    }
    std::size_t sign_end(std::size_t at) const noexcept {
        constexpr std::string_view doubled[] = {"<=", ">=", "==", "!=", "&&", "||"};
        return at + (std::find(std::begin(doubled), std::end(doubled), text_.substr(at, 2)) == std::end(doubled) ? 1 : 2);
    }
    void next() {
        at_ = std::min(text_.find_first_not_of(dialect_.spaces, at_ + token_.size()), text_.size());
        token_ = {};
        if (at_ == text_.size()) return;
        std::size_t end = at_;
        if (digit_at(at_) || (dialect_.exponents && text_[at_] == '.' && digit_at(at_ + 1))) {
            end = number_end(at_);
        } else if (is_letter(text_[at_])) {
            end = word_end(at_);
        } else if (dialect_.texts && text_[at_] == '\'') {
            end = text_.find('\'', at_ + 1);
            if (end == std::string_view::npos) refuse_at(at_, "has no second quote");
            ++end;
        } else {
            end = sign_end(at_);
        }
        token_ = text_.substr(at_, end - at_);
    }
    void take(std::string_view sign) {
        if (token_ != sign) unexpected();
        next();
    }

    // ---- grammar; each part appends its code and answers what type it comes to ----

    // A condition and what follows from it, or anything else.
    Type whole(std::size_t depth) {
        const Type type = infix(1, depth);
        if (!dialect_.typed || token_ != "?") return type;
        static constexpr auto choose = [](Arguments all) { all[0] = all[0].real != 0 ? all[1] : all[2]; };
        if (type != Type::boolean) refuse_at(at_, "needs a condition before it");
        next();
        const Type yes = infix(1, deeper(depth));
        take(":");
        const std::size_t at = at_;
        if (whole(deeper(depth)) != yes) refuse_at(at, "must be of the type before the colon");
        made_.code.push_back({Expression::Instruction::Kind::operation, 3, choose});
        return yes;
    }
    Type infix(int lowest, std::size_t depth) {
        Type left = prefixed(depth);
        while (const Operation* found = find(Form::infix, token_)) {
            if (found->precedence < lowest) break;
            const std::size_t at = at_;
            next();
            const std::array types{left, infix(found->precedence + 1, deeper(depth))};
            left = emit(*found, types, at);
        }
        return left;
    }
    Type prefixed(std::size_t depth) {
        const std::size_t at = at_;
        const Operation* const found = find(Form::prefix, token_);
        if (found == nullptr) return primary(depth);
        std::size_t times = 0;
        do next(), ++times;
        while (dialect_.repeated_prefix && token_ == found->name);
        Type type = primary(depth);
        while (times-- > 0) type = emit(*found, std::span(&type, 1), at);
        return type;
    }
    Type primary(std::size_t depth) {
        if (starts_number()) return number();
        if (starts_word()) return word(depth);
        if (dialect_.texts && token_.starts_with('\''))
            return constant({.type = Type::text, .text = std::string(token_.substr(1, token_.size() - 2))});
        take("(");
        const Type type = whole(deeper(depth));
        take(")");
        return type;
    }
    Type word(std::size_t depth) {
        const std::string_view word = token_;
        const std::size_t at = at_;
        if (dialect_.typed && (word == "true" || word == "false")) return constant({.type = Type::boolean, .real = word == "true" ? 1.0 : 0.0});
        if (std::find(dialect_.reserved.begin(), dialect_.reserved.end(), word) != dialect_.reserved.end())
            refuse_at(at, quote(word) + " is a reserved word");
        next();
        if (token_ != "(") return variable(word, at);
        const Operation* const found = find(Form::call, word);
        if (found == nullptr) refuse_at(at, quote(word) + " is not a function known here", ErrorCode::unsupported);
        std::vector<Type> types;
        do {
            next();
            types.push_back(whole(deeper(depth)));
        } while (token_ == ",");
        take(")");
        return emit(*found, types, at);
    }
    Type number() {
        auto value = dialect_.literal(token_);
        if (!value) refuse_at(at_, "has more than 38 digits", ErrorCode::overflow);
        return constant(std::move(*value));
    }
    Type variable(std::string_view word, std::size_t at) {
        Variable made;
        if (word == dialect_.time_word) {
            made.source = Variable::Source::time;
        } else if (word == dialect_.name_word) {
            made.source = Variable::Source::name;
        } else {
            made.name = word.starts_with(dialect_.property_prefix) ? word.substr(dialect_.property_prefix.size()) : "";
            const bool begins = !made.name.empty() && is_letter(made.name[0]) && (made.name[0] != '_' || dialect_.property_prefix.empty());
            if (!begins || made.name.find('.') != std::string::npos) refuse_at(at, quote(word) + " is not the name of a property");
        }
        const auto known = std::find(made_.variables.begin(), made_.variables.end(), made);
        made_.code.push_back({Expression::Instruction::Kind::variable, static_cast<std::size_t>(known - made_.variables.begin())});
        if (known == made_.variables.end()) made_.variables.push_back(std::move(made));
        return dialect_.typed ? Type::number : Type::any;
    }
    Type constant(Term value) {
        const Type type = value.type;
        made_.code.push_back({Expression::Instruction::Kind::constant, made_.constants.size()});
        made_.constants.push_back(std::move(value));
        next();
        return type;
    }

    // ---- operations ----

    bool is_named(const Operation& each, std::string_view word) const {
        if (each.name == word) return true;
        if (!dialect_.spellings || each.form != Form::call || each.name.size() != word.size()) return false;
        const auto capital = [](char small, char c) { return c == small - 'a' + 'A'; };
        const bool rest_small = word.substr(1) == each.name.substr(1);
        return capital(each.name[0], word[0]) && (rest_small || std::equal(each.name.begin(), each.name.end(), word.begin(), capital));
    }
    const Operation* find(Form form, std::string_view word) const {
        const auto fits = [&](const Operation& each) { return each.form == form && is_named(each, word); };
        const auto found = std::find_if(dialect_.operations.begin(), dialect_.operations.end(), fits);
        return found == dialect_.operations.end() ? nullptr : &*found;
    }
    // Types that are known beforehand are the operation's or, where it takes any, the same.
    Type emit(const Operation& operation, std::span<const Type> types, std::size_t at) {
        if (types.size() < operation.least || types.size() > operation.most)
            refuse_at(at, quote(operation.name) + " takes another number of arguments");
        const Type wanted = operation.takes == Type::any ? types[0] : operation.takes;
        if (dialect_.typed && std::any_of(types.begin(), types.end(), [&](Type type) { return type != wanted; }))
            refuse_at(at, quote(operation.name) + " is not for operands of these types");
        made_.code.push_back({Expression::Instruction::Kind::operation, types.size(), operation.apply});
        return operation.gives;
    }
    std::size_t deeper(std::size_t depth) const {
        if (depth == max_depth) refuse_at(at_, "is nested too deep");
        return depth + 1;
    }

    std::string_view text_, token_{};
    const Dialect& dialect_;
    std::string field_;
    std::size_t at_ = 0;
    Expression made_{};
};

Term name_term(const std::string& name) { return {.type = Term::Type::text, .text = name}; }
Term time_term(Timestamp time) { return {.number = floor_divide(time.micros(), micros_per_second)}; }

// What the expression comes to for the event, at that time. Throws an Error without a field when it comes to nothing.
std::string evaluate(const Expression& expression, const Event& event, Timestamp time) {
    std::vector<Term> stack;
    auto result = expression.run(stack, [&](std::size_t index) -> Term {
        const Expression::Variable& variable = expression.variables[index];
        std::string keep;
        if (variable.source == Expression::Variable::Source::property)
            return expression.dialect->property(variable.name, scalar_of_member(event.properties, variable.name, keep));
        return variable.source == Expression::Variable::Source::name ? name_term(event.name) : time_term(time);
    });
    if (!result) throw Error(ErrorCode::bad_value, "", stack.back().text);
    return std::move(*result);
}

// ---- CEL, the Common Expression Language, over numbers, all of them binary (cel-spec; which functions: internal/expression/cel_evaluator.go) ----

namespace cel {

// Where one of both is no number, neither is greater.
double extreme(const Arguments& all, bool greatest) {
    const double a = all[0].real, b = all[1].real;
    return std::isnan(a) || std::isnan(b) ? std::nan("") : greatest ? std::max(a, b) : std::min(a, b);
}

constexpr auto infix = Operation::Form::infix, prefix = Operation::Form::prefix, call = Operation::Form::call;
constexpr auto real = Term::Type::number, truth = Term::Type::boolean, alike = Term::Type::any;
constexpr Operation operations[] = {
    {infix, "||", 1, 2, 2, truth, truth, [](Arguments all) { all[0].real = all[0].real != 0 || all[1].real != 0; }},
    {infix, "&&", 2, 2, 2, truth, truth, [](Arguments all) { all[0].real = all[0].real != 0 && all[1].real != 0; }},
    {infix, "<", 3, 2, 2, real, truth, [](Arguments all) { all[0].real = all[0].real < all[1].real; }},
    {infix, "<=", 3, 2, 2, real, truth, [](Arguments all) { all[0].real = all[0].real <= all[1].real; }},
    {infix, ">", 3, 2, 2, real, truth, [](Arguments all) { all[0].real = all[0].real > all[1].real; }},
    {infix, ">=", 3, 2, 2, real, truth, [](Arguments all) { all[0].real = all[0].real >= all[1].real; }},
    {infix, "==", 3, 2, 2, alike, truth, [](Arguments all) { all[0].real = all[0].real == all[1].real; }},
    {infix, "!=", 3, 2, 2, alike, truth, [](Arguments all) { all[0].real = all[0].real != all[1].real; }},
    {infix, "+", 4, 2, 2, real, real, [](Arguments all) { all[0].real += all[1].real; }},
    {infix, "-", 4, 2, 2, real, real, [](Arguments all) { all[0].real -= all[1].real; }},
    {infix, "*", 5, 2, 2, real, real, [](Arguments all) { all[0].real *= all[1].real; }},
    {infix, "/", 5, 2, 2, real, real, [](Arguments all) { all[0].real /= all[1].real; }},
    {prefix, "-", 0, 1, 1, real, real, [](Arguments all) { all[0].real = -all[0].real; }},
    {prefix, "!", 0, 1, 1, truth, truth, [](Arguments all) { all[0].real = all[0].real == 0; }},
    {call, "max", 0, 2, 2, real, real, [](Arguments all) { all[0].real = extreme(all, true); }},
    {call, "min", 0, 2, 2, real, real, [](Arguments all) { all[0].real = extreme(all, false); }},
    {call, "pow", 0, 2, 2, real, real, [](Arguments all) { all[0].real = std::pow(all[0].real, all[1].real); }},
    {call, "abs", 0, 1, 1, real, real, [](Arguments all) { all[0].real = std::fabs(all[0].real); }},
    {call, "ceil", 0, 1, 1, real, real, [](Arguments all) { all[0].real = std::ceil(all[0].real); }},
    {call, "floor", 0, 1, 1, real, real, [](Arguments all) { all[0].real = std::floor(all[0].real); }},
    {call, "round", 0, 1, 1, real, real, [](Arguments all) { all[0].real = std::round(all[0].real); }},
    {call, "sqrt", 0, 1, 1, real, real, [](Arguments all) { all[0].real = std::sqrt(all[0].real); }},
    {call, "log", 0, 1, 1, real, real, [](Arguments all) { all[0].real = std::log(all[0].real); }},
    {call, "double", 0, 1, 1, real, real, [](Arguments) {}},
};

constexpr std::string_view reserved[] = {"as",  "break", "const", "continue",  "else",    "false",  "for",  "function", "if",   "import", "in",
                                         "let", "loop",  "null",  "namespace", "package", "return", "true", "var",      "void", "while"};

std::string trimmed(std::string_view text) {
    constexpr std::string_view blanks = " \t\r\n\v\f";
    const std::size_t first = std::min(text.find_first_not_of(blanks), text.size());
    return std::string(text.substr(first, text.find_last_not_of(blanks) + 1 - first));
}

std::optional<Term> read_number(std::string_view text) {
    const auto read = Decimal::parse(text);
    return read ? std::optional(Term{.real = read->to_double()}) : std::nullopt;
}

// What is missing is 0; what is there and no number, nor a text of one, is refused.
Term property_term(std::string_view name, const Scalar& value) {
    if (value.kind == Scalar::Kind::missing || value.kind == Scalar::Kind::object) return {};
    if (value.kind == Scalar::Kind::number) return {.real = value.number.to_double()};
    const auto read = value.kind == Scalar::Kind::text ? read_number(trimmed(value.text)) : std::nullopt;
    return read.value_or(Term{.type = Term::Type::nothing, .text = "property " + quote(name) + " is not a number"});
}

// Nothing of what is not finite. What is too small to be written is nothing beside 15 decimals.
std::string result_text(const Term& term) {
    constexpr double smallest = 1e-50;
    return std::fabs(term.real) < smallest ? "0" : Decimal::from_double(term.real).to_string();
}

constexpr Dialect expressions{.operations = operations,
                              .spaces = " \t\r\n\f",
                              .property_prefix = "",
                              .reserved = reserved,
                              .beyond = ".[{\"'%",
                              .exponents = true,
                              .repeated_prefix = true,
                              .typed = true,
                              .needs_property = true,
                              .literal = read_number,
                              .property = property_term,
                              .result = result_text};

}  // namespace cel

}  // namespace

// =============================================================================================
// 4 store: the SQLite file: connections, transactions, the event log, the index of ids, sealed segments. Uses 1-3.
// docs: FORMAT.md describes every table and blob written here.
// =============================================================================================

namespace {

// ---- connections and errors ----

[[noreturn]] void rethrow(const SQLite::Exception& fault, const std::string& path) {
    const std::string text = fault.what();
    switch (fault.getErrorCode()) {
        case SQLITE_FULL:
            throw Error(ErrorCode::full, path, "no room left: " + text);
        case SQLITE_BUSY:
        case SQLITE_LOCKED:
        case SQLITE_PROTOCOL:
            throw Error(ErrorCode::busy, path, "held by another process: " + text);
        case SQLITE_READONLY:
        case SQLITE_PERM:
            throw Error(ErrorCode::read_only, path, "cannot be written: " + text);
        case SQLITE_NOTADB:
            throw Error(ErrorCode::not_a_database, path, "is not a database; it was left as it is");
        case SQLITE_CORRUPT:
            throw Error(ErrorCode::corrupt, path, "is damaged: " + text);
        default:
            throw Error(ErrorCode::io, path, text);
    }
}

// A statement of a connection's cache, for one use: reset when it goes out of scope. SQLite's own functions stand here because SQLiteCpp's
// statement neither binds a part of a text without a copy nor gives out its handle.
class Prepared {
public:
    explicit Prepared(sqlite3_stmt* statement) noexcept : statement_(statement) {}
    Prepared(Prepared&& other) noexcept : statement_(std::exchange(other.statement_, nullptr)) {}
    Prepared& operator=(Prepared&&) = delete;
    ~Prepared() {
        sqlite3_reset(statement_);
        sqlite3_clear_bindings(statement_);
    }

    // Binds the values in order and runs the statement to its end. What they refer to must live until then.
    template <class... Values>
    void run(const Values&... values) const {
        bind(values...);
        while (row()) {
        }
        sqlite3_reset(statement_);
    }
    // An integer, text, bytes, an optional of these, or nullopt for each parameter, in order.
    template <class... Values>
    void bind(const Values&... values) const {
        int index = 0;
        (check(bind_one(++index, values)), ...);
    }
    // Goes to the next row; false when there is none.
    bool row() const {
        const int code = sqlite3_step(statement_);
        if (code != SQLITE_ROW && code != SQLITE_DONE) check(code);
        return code == SQLITE_ROW;
    }
    std::int64_t integer(int column) const { return sqlite3_column_int64(statement_, column); }
    bool null(int column) const { return sqlite3_column_type(statement_, column) == SQLITE_NULL; }
    // Text or bytes, until the next row.
    std::string_view text(int column) const {
        const auto* bytes = static_cast<const char*>(sqlite3_column_blob(statement_, column));
        return bytes == nullptr ? std::string_view() : std::string_view(bytes, static_cast<std::size_t>(sqlite3_column_bytes(statement_, column)));
    }

private:
    template <class Value>
    int bind_one(int index, const Value& value) const {
        if constexpr (std::is_same_v<Value, std::nullopt_t>) {
            return sqlite3_bind_null(statement_, index);
        } else if constexpr (std::is_integral_v<Value>) {
            return sqlite3_bind_int64(statement_, index, static_cast<sqlite3_int64>(value));
        } else if constexpr (std::is_convertible_v<const Value&, std::string_view>) {
            const std::string_view text(value);
            return sqlite3_bind_text64(statement_, index, text.empty() ? "" : text.data(), text.size(), SQLITE_STATIC, SQLITE_UTF8);
        } else if constexpr (std::is_convertible_v<const Value&, std::span<const std::uint8_t>>) {
            const std::span<const std::uint8_t> bytes(value);
            return sqlite3_bind_blob64(statement_, index, bytes.empty() ? reinterpret_cast<const std::uint8_t*>("") : bytes.data(), bytes.size(),
                                       SQLITE_STATIC);
        } else {
            return value ? bind_one(index, *value) : sqlite3_bind_null(statement_, index);
        }
    }
    void check(int code) const {
        if (code != SQLITE_OK) throw SQLite::Exception(sqlite3_db_handle(statement_), code);
    }
    sqlite3_stmt* statement_;
};

// A wait of any length, as what every clock here can count.
std::chrono::milliseconds countable(std::chrono::milliseconds wait) { return std::min<std::chrono::milliseconds>(wait, std::chrono::hours(24 * 20)); }

// One SQLite connection with the statements prepared on it. Used by one thread at a time.
class Connection {
public:
    Connection(const std::string& path, std::chrono::milliseconds busy_timeout)
        : db(path, SQLite::OPEN_READWRITE | SQLite::OPEN_CREATE | SQLite::OPEN_NOMUTEX), busy_timeout_(countable(busy_timeout)) {
        sqlite3_busy_handler(db.getHandle(), wait_a_moment, this);
    }
    Connection(const Connection&) = delete;
    Connection& operator=(const Connection&) = delete;

    // `sql` must be a literal, and not be in use already.
    Prepared prepared(const char* sql) {
        auto& statement = statements_[sql];
        if (!statement) {
            sqlite3_stmt* made = nullptr;
            const int code = sqlite3_prepare_v3(db.getHandle(), sql, -1, SQLITE_PREPARE_PERSISTENT, &made, nullptr);
            statement.reset(made);
            if (code != SQLITE_OK) throw SQLite::Exception(db.getHandle(), code);
        }
        return Prepared(statement.get());
    }
    // The one integer that a query answers; 0 when it answers nothing.
    template <class... Values>
    std::int64_t integer(const char* sql, const Values&... values) {
        const Prepared query = prepared(sql);
        query.bind(values...);
        return query.row() ? query.integer(0) : 0;
    }
    std::int64_t last_rowid() const noexcept { return db.getLastInsertRowid(); }
    std::int64_t changes() const noexcept { return sqlite3_changes(db.getHandle()); }
    // Another number after each commit of this connection, and in a transaction that sees what others have committed.
    std::uint32_t data_version() const noexcept {
        std::uint32_t version = 0;
        sqlite3_file_control(db.getHandle(), "main", SQLITE_FCNTL_DATA_VERSION, &version);
        return version;
    }

    SQLite::Database db;

private:
    struct Finalize {
        void operator()(sqlite3_stmt* statement) const noexcept { sqlite3_finalize(statement); }
    };
    // What SQLite calls while another holds a lock. Its own handler looks less often the longer it waits, so that where many write without a
    // pause those who came last go first, and some never.
    static int wait_a_moment(void* connection, int times) noexcept {
        Connection& self = *static_cast<Connection*>(connection);
        const auto now = std::chrono::steady_clock::now();
        if (times == 0) self.waits_since_ = now;
        if (now - self.waits_since_ >= self.busy_timeout_) return 0;
        std::this_thread::sleep_for(std::chrono::milliseconds(1));
        return 1;
    }
    std::unordered_map<const void*, std::unique_ptr<sqlite3_stmt, Finalize>> statements_;  // by the address of the literal
    std::chrono::milliseconds busy_timeout_;
    std::chrono::steady_clock::time_point waits_since_{};
};

class Transaction {
public:
    Transaction(Connection& connection, const char* begin) : connection_(connection) { connection_.prepared(begin).run(); }
    Transaction(const Transaction&) = delete;
    Transaction& operator=(const Transaction&) = delete;
    ~Transaction() {
        if (!open_) return;
        try {
            connection_.prepared("ROLLBACK").run();
        } catch (const SQLite::Exception&) {  // SQLite has rolled back already, for instance on a full disk
        }
    }
    void commit() {
        connection_.prepared("COMMIT").run();
        open_ = false;
    }

private:
    Connection& connection_;
    bool open_ = true;
};

// ---- schema ----

constexpr std::int32_t application_id = 0x6D657472;  // "metr"
constexpr std::int32_t schema_version = 3;

constexpr const char* log_schema = R"sql(
CREATE TABLE meta(key TEXT PRIMARY KEY, value) WITHOUT ROWID;
CREATE TABLE texts(id INTEGER PRIMARY KEY, text TEXT NOT NULL UNIQUE);
CREATE TABLE log(
    sequence INTEGER PRIMARY KEY,
    id NOT NULL,                -- 16 bytes when a lower-case UUID, else text
    timestamp INTEGER NOT NULL, -- microseconds since 1970, UTC
    delay INTEGER NOT NULL,     -- recorded at: microseconds after timestamp
    name INTEGER NOT NULL,      -- texts.id, as customer, subscription, source
    customer INTEGER, subscription INTEGER, source INTEGER,
    value TEXT,                 -- decimal
    properties TEXT NOT NULL,   -- JSON object
    extra TEXT);                -- JSON object: precise_total_amount_cents, notice, extensions
CREATE TABLE metrics(
    id INTEGER PRIMARY KEY, code TEXT NOT NULL,
    book INTEGER NOT NULL,      -- books.id; 0 when the app defined it
    definition TEXT NOT NULL, UNIQUE(code, book));
CREATE TABLE books(
    id INTEGER PRIMARY KEY AUTOINCREMENT, vendor TEXT NOT NULL, code TEXT NOT NULL,
    effective INTEGER NOT NULL, -- from when on; the year 1 for always
    source TEXT NOT NULL, UNIQUE(vendor, code, effective));
CREATE TABLE chunks(id INTEGER PRIMARY KEY, first INTEGER NOT NULL, last INTEGER NOT NULL, recorded INTEGER NOT NULL);
CREATE TABLE layouts(id INTEGER PRIMARY KEY, keys TEXT NOT NULL UNIQUE);
CREATE TABLE segments(
    id INTEGER PRIMARY KEY, chunk INTEGER NOT NULL, name INTEGER NOT NULL, layout INTEGER NOT NULL,
    rows INTEGER NOT NULL, first_time INTEGER NOT NULL, last_time INTEGER NOT NULL);
CREATE TABLE columns(id INTEGER PRIMARY KEY, data BLOB NOT NULL, hash INTEGER);
CREATE TABLE runs(
    id INTEGER PRIMARY KEY, level INTEGER NOT NULL, first INTEGER NOT NULL, last INTEGER NOT NULL,
    bits INTEGER NOT NULL, state TEXT NOT NULL, owner INTEGER NOT NULL, touched INTEGER NOT NULL);
CREATE TABLE run_blocks(
    id INTEGER PRIMARY KEY, filter BLOB NOT NULL, entries BLOB NOT NULL, filter_hash INTEGER, entries_hash INTEGER);
CREATE VIEW events AS SELECT l.sequence,
    CASE typeof(l.id) WHEN 'blob' THEN lower(substr(hex(l.id), 1, 8) || '-' || substr(hex(l.id), 9, 4) || '-' || substr(hex(l.id), 13, 4)
        || '-' || substr(hex(l.id), 17, 4) || '-' || substr(hex(l.id), 21)) ELSE l.id END AS id,
    n.text AS name, c.text AS customer, b.text AS subscription, o.text AS source,
    strftime('%Y-%m-%dT%H:%M:%S', (l.timestamp - ((l.timestamp % 1000000) + 1000000) % 1000000) / 1000000, 'unixepoch')
        || printf('.%06dZ', ((l.timestamp % 1000000) + 1000000) % 1000000) AS timestamp,
    l.timestamp AS timestamp_us, l.timestamp + l.delay AS recorded_at_us, l.value, l.properties, l.extra
    FROM log l JOIN texts n ON n.id = l.name LEFT JOIN texts c ON c.id = l.customer
    LEFT JOIN texts b ON b.id = l.subscription LEFT JOIN texts o ON o.id = l.source
    WHERE l.sequence > (SELECT value FROM meta WHERE key = 'pruned');
INSERT INTO meta VALUES('pruned', 0), ('sealed', 0), ('generation', 0), ('books', 0);
)sql";

// migrations[i] takes a file from version i + 1 to the next. Whose the metrics of a file of version 1 are is not known: they count as the app's.
constexpr const char* migrations[] = {R"sql(
ALTER TABLE metrics RENAME TO old_metrics;
ALTER TABLE books RENAME TO old_books;
CREATE TABLE metrics(
    id INTEGER PRIMARY KEY, code TEXT NOT NULL, book INTEGER NOT NULL, definition TEXT NOT NULL, UNIQUE(code, book));
CREATE TABLE books(
    id INTEGER PRIMARY KEY AUTOINCREMENT, vendor TEXT NOT NULL, code TEXT NOT NULL, effective INTEGER NOT NULL,
    source TEXT NOT NULL, UNIQUE(vendor, code, effective));
INSERT INTO metrics(code, book, definition) SELECT code, 0, definition FROM old_metrics;
INSERT INTO books(vendor, code, effective, source) SELECT vendor, code, -62135596800000000, source FROM old_books;
DROP TABLE old_metrics;
DROP TABLE old_books;
INSERT INTO meta VALUES('books', 0);
)sql",
                                      R"sql(
ALTER TABLE columns ADD COLUMN hash INTEGER;
ALTER TABLE run_blocks ADD COLUMN filter_hash INTEGER;
ALTER TABLE run_blocks ADD COLUMN entries_hash INTEGER;
)sql"};
static_assert(std::size(migrations) == schema_version - 1);

std::int64_t meta(Connection& db, std::string_view key) { return db.integer("SELECT value FROM meta WHERE key = ?", key); }
void set_meta(Connection& db, std::string_view key, std::int64_t value) { db.prepared("UPDATE meta SET value = ? WHERE key = ?").run(value, key); }

// ---- ids ----

std::uint64_t mix(std::uint64_t h) noexcept {  // MurmurHash3's finalizer
    h = (h ^ h >> 33) * 0xFF51AFD7ED558CCDULL;
    h = (h ^ h >> 33) * 0xC4CEB9FE1A85EC53ULL;
    return h ^ h >> 33;
}

// FNV-1a over the bytes, then mixed. Part of the file format.
std::uint64_t hash_bytes(std::string_view bytes) noexcept {
    std::uint64_t h = 0xCBF29CE484222325ULL;
    for (const char c : bytes) h = (h ^ static_cast<unsigned char>(c)) * 0x100000001B3ULL;
    return mix(h);
}

// An id as the log keeps it: 16 bytes when it is a UUID in its usual lower-case writing, else the text itself.
struct PackedId {
    std::array<char, 16> uuid{};
    std::string_view text{};  // of ids that are not UUIDs; lives as long as the id it was made from
    bool is_uuid = false;
    std::string_view bytes() const noexcept { return is_uuid ? std::string_view(uuid.data(), uuid.size()) : text; }
};

constexpr bool uuid_dash(std::size_t at) noexcept { return at == 8 || at == 13 || at == 18 || at == 23; }

// What a lower-case hexadecimal digit stands for; 16 for every other character.
constexpr std::array<std::uint8_t, 256> hex_values = [] {
    std::array<std::uint8_t, 256> values{};
    values.fill(16);
    for (std::uint8_t i = 0; i < 16; ++i) values[static_cast<unsigned char>("0123456789abcdef"[i])] = i;
    return values;
}();

PackedId pack_id(std::string_view id) noexcept {
    PackedId packed{{}, id, id.size() == 36 && id[8] == '-' && id[13] == '-' && id[18] == '-' && id[23] == '-'};
    if (!packed.is_uuid) return packed;
    unsigned seen = 0;
    for (std::size_t byte = 0, at = 0; byte < 16; ++byte, at += 2) {
        if (uuid_dash(at)) ++at;
        const unsigned high = hex_values[static_cast<unsigned char>(id[at])], low = hex_values[static_cast<unsigned char>(id[at + 1])];
        packed.uuid[byte] = static_cast<char>(high << 4 | low);
        seen |= high | low;
    }
    packed.is_uuid = seen < 16;
    return packed;
}

std::string unpack_uuid(std::string_view bytes) {
    constexpr std::string_view digits = "0123456789abcdef";
    std::string text;
    text.reserve(36);
    for (const char c : bytes) {
        if (uuid_dash(text.size())) text.push_back('-');
        text.push_back(digits[static_cast<unsigned char>(c) >> 4]);
        text.push_back(digits[static_cast<unsigned char>(c) & 15]);
    }
    return text;
}

// The time of a UUID of version 7 (RFC 9562, 6.2, method 3): 48 bits of milliseconds, 12 bits of their fraction.
std::uint64_t uuid_moment(Timestamp now) noexcept {
    const auto micros = static_cast<std::uint64_t>(std::max<std::int64_t>(now.micros(), 0));
    return micros / 1000 << 12 | micros % 1000 * 4096 / 1000;
}

// Then 62 random bits.
std::string make_uuid(std::uint64_t moment, std::uint64_t random) {
    const std::uint64_t high = moment >> 12 << 16 | 0x7000 | (moment & 0xFFF);
    const std::uint64_t low = (random & 0x3FFFFFFFFFFFFFFFULL) | 0x8000000000000000ULL;
    std::string bytes(16, '\0');
    for (std::size_t i = 0; i < 8; ++i) {
        bytes[i] = static_cast<char>(high >> (56 - 8 * i));
        bytes[8 + i] = static_cast<char>(low >> (56 - 8 * i));
    }
    return unpack_uuid(bytes);
}

// ---- little-endian bytes of the packed formats ----

using Bytes = std::vector<std::uint8_t>;

void put_bytes(Bytes& out, std::uint64_t value, std::size_t width) {
    for (std::size_t i = 0; i < width; ++i) out.push_back(static_cast<std::uint8_t>(value >> (8 * i)));
}

std::uint64_t get_bytes(const std::uint8_t* at, std::size_t width) noexcept {
    std::uint64_t value = 0;
    for (std::size_t i = 0; i < width; ++i) value |= static_cast<std::uint64_t>(at[i]) << (8 * i);
    return value;
}

// As above for 1, 2, 4 or 8 bytes; what the compiler makes one load of, and loops of such loads vectors.
template <class Whole>
std::uint64_t get_whole(const std::uint8_t* at) noexcept {
    if constexpr (std::endian::native != std::endian::little) return get_bytes(at, sizeof(Whole));
    Whole value;
    std::memcpy(&value, at, sizeof value);
    return value;
}

[[noreturn]] void damaged(const char* what) { throw Error(ErrorCode::corrupt, what, "does not have the form it was written in"); }

// Runs `read` on what a file holds: whatever it finds wrong is damage.
template <class Read>
auto from_file(const char* what, Read&& read) {
    try {
        return read();
    } catch (const Error&) {
        damaged(what);
    } catch (const json::exception&) {
        damaged(what);
    }
}

// The checksum of a blob: four streams of words, each as in FNV-1a, then mixed, so that a word that is another always gives another sum. Part of
// the file format.
std::int64_t checksum(std::string_view bytes) noexcept {
    constexpr std::size_t word = sizeof(std::uint64_t);
    const auto* at = reinterpret_cast<const std::uint8_t*>(bytes.data());
    const auto take = [](std::uint64_t& stream, std::uint64_t next) { stream = (stream ^ next) * 0x9E3779B97F4A7C15ULL; };
    std::uint64_t a = 1, b = 2, c = 3, d = 4;
    std::size_t left = bytes.size();
    for (; left >= 4 * word; left -= 4 * word, at += 4 * word) {
        take(a, get_whole<std::uint64_t>(at));
        take(b, get_whole<std::uint64_t>(at + word));
        take(c, get_whole<std::uint64_t>(at + 2 * word));
        take(d, get_whole<std::uint64_t>(at + 3 * word));
    }
    for (std::uint64_t* const stream : {&a, &b, &c, &d}) {
        const std::size_t width = std::min(left, word);
        if (width > 0) take(*stream, get_bytes(at, width));
        at += width, left -= width;
    }
    return static_cast<std::int64_t>(mix(mix(mix(mix(bytes.size() ^ a) ^ b) ^ c) ^ d));
}

std::int64_t checksum(std::span<const std::uint8_t> bytes) noexcept {
    return checksum(std::string_view(reinterpret_cast<const char*>(bytes.data()), bytes.size()));
}

// A blob of what is derived from the log, as it was written: what a disk has altered must not become an answer. Blobs of files of older
// schemas have no checksum.
std::string_view checked_blob(const Prepared& row, int data, int hash, const char* what) {
    const std::string_view bytes = row.text(data);
    if (!row.null(hash) && row.integer(hash) != checksum(bytes))
        throw Error(ErrorCode::corrupt, what, "does not match its checksum; verify(true) makes it again from the log");
    return bytes;
}

std::int64_t checked_time(std::int64_t micros, const char* what) {
    if (micros < Timestamp::min().micros() || micros > Timestamp::max().micros()) damaged(what);
    return micros;
}

// ---- the index of ids: is this id in the log, and where? ----
//
// A hash finds candidates, the id in the log decides. Hashes of the newest events are in a table in memory; those of sealed chunks are in
// sorted runs, partitioned into 2^bits blocks by the hash's top bits, each block with a filter (16 bits an entry) that is kept in memory.
// Sixteen runs of a level merge into one of the next, so that their number grows with the logarithm of the log.

constexpr int hash_bits = 48;
constexpr std::size_t entry_bytes = 10;     // 48 bits of hash, then 32 bits of sequence - run.first
constexpr std::size_t filter_bytes = 1024;  // a block's filter: 16 lines of 512 bits
constexpr std::size_t block_entries = 512;  // at most, on average: two pages to read for a look
constexpr int merge_width = 16;             // runs of a level that become one of the next
constexpr int max_level = 3;
constexpr std::int64_t max_blocks = 1 << 20;  // of one run: block ids are run * max_blocks + block

std::uint64_t id_hash(const PackedId& id) noexcept { return hash_bytes(id.bytes()) >> (64 - hash_bits); }

struct RunEntry {
    std::uint64_t hash = 0;
    std::int64_t sequence = 0;
    friend auto operator<=>(const RunEntry&, const RunEntry&) = default;
};

struct Run {
    std::int64_t id = 0;
    int level = 0;
    std::int64_t first = 0, last = 0;  // sequences covered
    int bits = 0;
    Bytes filters{};  // all blocks', one after the other; empty when they are more than the memory allowed
    std::size_t blocks() const noexcept { return std::size_t{1} << bits; }
    std::size_t block_of(std::uint64_t hash) const noexcept { return static_cast<std::size_t>(hash >> (hash_bits - bits)); }
    // Ids are given again once all runs are gone.
    bool same_as(const Run& other) const noexcept { return id == other.id && first == other.first && last == other.last && bits == other.bits; }
    std::int64_t block_id(std::size_t block) const noexcept { return id * max_blocks + static_cast<std::int64_t>(block); }
};

int run_bits(std::size_t entries) noexcept { return entries == 0 ? 0 : static_cast<int>(std::bit_width((entries - 1) / block_entries)); }

// The six bits that stand for a hash in a block's filter: all in one line of 64 bytes, so that a look costs one memory access.
// Answers whether `bit(byte, mask)` held for all of them.
template <class Bit>
bool each_filter_bit(std::uint64_t hash, Bit&& bit) {
    std::uint64_t spread = mix(hash);
    const std::size_t line = static_cast<std::size_t>(spread & 15) * 64;
    for (int i = 0; i < 6; ++i) {
        spread >>= 9;
        if (!bit(line + (spread >> 3 & 63), static_cast<std::uint8_t>(1U << (spread & 7)))) return false;
    }
    return true;
}

// One block as it is stored.
struct Block {
    Bytes filter, entries;
};

// The entries are those of the block, in order.
Block make_block(const Run& run, std::span<const RunEntry> entries) {
    Block block{Bytes(filter_bytes), {}};
    block.entries.reserve(entries.size() * entry_bytes);
    const auto set = [&](std::size_t byte, std::uint8_t mask) {
        block.filter[byte] = static_cast<std::uint8_t>(block.filter[byte] | mask);
        return true;
    };
    for (const RunEntry& entry : entries) {
        each_filter_bit(entry.hash, set);
        put_bytes(block.entries, entry.hash, 6);
        put_bytes(block.entries, static_cast<std::uint64_t>(entry.sequence - run.first), 4);
    }
    return block;
}

// The blocks from `first` to `last` of a run, from their entries in order.
std::vector<Block> make_blocks(const Run& run, std::size_t first, std::size_t last, std::span<const RunEntry> entries) {
    std::vector<Block> blocks;
    blocks.reserve(last - first);
    std::size_t begin = 0;
    for (std::size_t block = first; block < last; ++block) {
        std::size_t end = begin;
        while (end < entries.size() && run.block_of(entries[end].hash) == block) ++end;
        blocks.push_back(make_block(run, entries.subspan(begin, end - begin)));
        begin = end;
    }
    return blocks;
}

void write_blocks(Connection& db, const Run& run, std::size_t first, std::span<const Block> blocks) {
    for (const Block& block : blocks)
        db.prepared("INSERT INTO run_blocks(id, filter, entries, filter_hash, entries_hash) VALUES(?, ?, ?, ?, ?)")
            .run(run.block_id(first++), block.filter, block.entries, checksum(block.filter), checksum(block.entries));
}

// The entries of a block whose hashes are from `low` to `high`, in order.
template <class Found>
void read_block(Connection& db, const Run& run, std::size_t block, std::uint64_t low, std::uint64_t high, Found&& found) {
    const Prepared query = db.prepared("SELECT entries, entries_hash FROM run_blocks WHERE id = ?");
    query.bind(run.block_id(block));
    if (!query.row()) damaged("run_blocks");
    const std::string_view data = checked_blob(query, 0, 1, "run_blocks.entries");
    if (data.size() % entry_bytes != 0) damaged("run_blocks.entries");
    const auto* bytes = reinterpret_cast<const std::uint8_t*>(data.data());
    const std::size_t count = data.size() / entry_bytes;
    const auto hash_at = [bytes](std::size_t i) { return get_bytes(bytes + i * entry_bytes, 6); };
    std::size_t begin = 0;
    for (std::size_t end = count; begin < end;) {
        const std::size_t middle = begin + (end - begin) / 2;
        if (hash_at(middle) < low) {
            begin = middle + 1;
        } else {
            end = middle;
        }
    }
    for (std::size_t i = begin; i < count && hash_at(i) <= high; ++i) {
        found(RunEntry{hash_at(i), run.first + static_cast<std::int64_t>(get_bytes(bytes + i * entry_bytes + 6, 4))});
    }
}

std::vector<Run> live_runs(Connection& db) {
    std::vector<Run> runs;
    const Prepared query = db.prepared("SELECT id, level, first, last, bits FROM runs WHERE state = 'live' ORDER BY first");
    while (query.row()) {
        const auto bits = query.integer(4);
        if (bits < 0 || bits > 20) damaged("runs.bits");
        runs.push_back({query.integer(0), static_cast<int>(query.integer(1)), query.integer(2), query.integer(3), static_cast<int>(bits), {}});
    }
    return runs;
}

// Hash -> sequences, open addressing. Equal hashes lie in one unbroken stretch.
class HashTable {
public:
    void insert(std::uint64_t hash, std::int64_t sequence) {
        if ((size_ + 1) * 10 > slots_.size() * 7) grow();
        std::size_t at = place(hash);
        while (slots_[at].sequence != 0) at = (at + 1) & (slots_.size() - 1);
        slots_[at] = {hash, sequence};
        ++size_;
    }
    // Calls `found(sequence)` until it answers true.
    template <class Found>
    bool look(std::uint64_t hash, Found&& found) const {
        if (slots_.empty()) return false;
        for (std::size_t at = place(hash); slots_[at].sequence != 0; at = (at + 1) & (slots_.size() - 1)) {
            if (slots_[at].hash == hash && found(slots_[at].sequence)) return true;
        }
        return false;
    }
    void keep_after(std::int64_t sequence) {
        std::vector<RunEntry> old = std::exchange(slots_, {});
        size_ = 0;
        for (const RunEntry& entry : old) {
            if (entry.sequence > sequence) insert(entry.hash, entry.sequence);
        }
    }
    void clear() { *this = {}; }

private:
    std::size_t place(std::uint64_t hash) const noexcept { return static_cast<std::size_t>(hash) & (slots_.size() - 1); }
    void grow() {
        std::vector<RunEntry> old = std::exchange(slots_, std::vector<RunEntry>(std::max<std::size_t>(1024, slots_.size() * 2)));
        size_ = 0;
        for (const RunEntry& entry : old) {
            if (entry.sequence != 0) insert(entry.hash, entry.sequence);
        }
    }
    std::vector<RunEntry> slots_;
    std::size_t size_ = 0;
};

class IdIndex {
public:
    explicit IdIndex(std::size_t memory) : memory_(memory) {}

    // Takes in what has happened to the file since the last call: new rows, sealed chunks, merged runs.
    void refresh(Connection& db) {
        if (const std::int64_t generation = meta(db, "generation"); generation != generation_) {
            load_runs(db);
            pruned_ = meta(db, "pruned");
            sealed_ = meta(db, "sealed");
            tail_.keep_after(sealed_);
            through_ = std::max(through_, sealed_);
            generation_ = generation;
        }
        const Prepared rows = db.prepared("SELECT sequence, id, typeof(id) = 'blob' FROM log WHERE sequence > ? ORDER BY sequence");
        rows.bind(through_);
        while (rows.row()) {
            through_ = rows.integer(0);
            tail_.insert(hash_bytes(rows.text(1)) >> (64 - hash_bits), through_);
        }
    }

    std::int64_t find(Connection& db, const PackedId& id, std::uint64_t hash) const {
        std::int64_t found = 0;
        const auto same = [&](std::int64_t sequence) { return sequence > pruned_ && is_id(db, sequence, id) && (found = sequence, true); };
        if (tail_.look(hash, same)) return found;
        for (const Run& run : runs_) {
            if (!may_hold(run, hash)) continue;
            read_block(db, run, run.block_of(hash), hash, hash, [&](const RunEntry& entry) { found == 0 && same(entry.sequence); });
            if (found != 0) return found;
        }
        return 0;
    }

    void add(std::uint64_t hash, std::int64_t sequence) {
        tail_.insert(hash, sequence);
        through_ = sequence;
    }

    // The last sequence that runs cover, as of the last refresh.
    std::int64_t sealed() const noexcept { return sealed_; }

    // After a rollback: neither what was added nor what was sealed or merged may be in the file.
    void forget() {
        tail_.clear();
        runs_.clear();
        generation_ = -1;
        pruned_ = sealed_ = through_ = 0;
    }

private:
    static bool may_hold(const Run& run, std::uint64_t hash) {
        if (run.filters.empty()) return true;
        const std::uint8_t* filter = run.filters.data() + run.block_of(hash) * filter_bytes;
        return each_filter_bit(hash, [filter](std::size_t byte, std::uint8_t mask) { return (filter[byte] & mask) != 0; });
    }
    static bool is_id(Connection& db, std::int64_t sequence, const PackedId& id) {
        const Prepared row = db.prepared("SELECT id, typeof(id) = 'blob' FROM log WHERE sequence = ?");
        row.bind(sequence);
        return row.row() && (row.integer(1) != 0) == id.is_uuid && row.text(0) == id.bytes();
    }
    // The newest runs keep their filters in memory, as far as the memory goes.
    void load_runs(Connection& db) {
        std::vector<Run> runs = live_runs(db);
        std::size_t room = memory_;
        for (auto run = runs.rbegin(); run != runs.rend() && run->blocks() * filter_bytes <= room; ++run) {
            room -= run->blocks() * filter_bytes;
            const auto known = std::find_if(runs_.begin(), runs_.end(), [&](const Run& old) { return old.same_as(*run); });
            run->filters = known != runs_.end() && !known->filters.empty() ? std::move(known->filters) : load_filters(db, *run);
        }
        runs_ = std::move(runs);
    }
    static Bytes load_filters(Connection& db, const Run& run) {
        Bytes filters;
        filters.reserve(run.blocks() * filter_bytes);
        const Prepared query = db.prepared("SELECT filter, filter_hash FROM run_blocks WHERE id >= ? AND id < ? ORDER BY id");
        query.bind(run.block_id(0), run.block_id(run.blocks()));
        while (query.row()) {
            const std::string_view filter = checked_blob(query, 0, 1, "run_blocks.filter");
            if (filter.size() != filter_bytes) damaged("run_blocks.filter");
            filters.insert(filters.end(), filter.begin(), filter.end());
        }
        if (filters.size() != run.blocks() * filter_bytes) damaged("run_blocks");
        return filters;
    }

    std::size_t memory_;
    std::int64_t generation_ = -1, pruned_ = 0, sealed_ = 0, through_ = 0;
    HashTable tail_;
    std::vector<Run> runs_;
};

// ---- the log ----

// Text -> texts.id, with a bounded memory of the answers.
class Interner {
public:
    std::int64_t intern(Connection& db, std::string_view text) {
        if (const auto known = ids_.find(text); known != ids_.end()) return known->second;
        std::int64_t id = db.integer("SELECT id FROM texts WHERE text = ?", text);
        if (id == 0) {
            db.prepared("INSERT INTO texts(text) VALUES(?)").run(text);
            id = db.last_rowid();
        }
        if (ids_.size() >= max_remembered) ids_.clear();
        ids_.emplace(text, id);
        return id;
    }
    void forget() { ids_.clear(); }
    std::size_t size() const noexcept { return ids_.size(); }

private:
    static constexpr std::size_t max_remembered = 32768;
    struct Hash {
        using is_transparent = void;
        std::size_t operator()(std::string_view text) const noexcept { return std::hash<std::string_view>()(text); }
    };
    std::unordered_map<std::string, std::int64_t, Hash, std::equal_to<>> ids_;
};

std::int64_t last_sequence(Connection& db) {
    return std::max(db.integer("SELECT sequence FROM log ORDER BY sequence DESC LIMIT 1"), meta(db, "pruned"));
}

std::int64_t first_sequence(Connection& db) { return meta(db, "pruned") + 1; }

#define METER_EVENT_COLUMNS                                                                                              \
    "SELECT l.sequence, l.id, typeof(l.id) = 'blob', l.timestamp, l.delay, (SELECT text FROM texts WHERE id = l.name), " \
    "(SELECT text FROM texts WHERE id = l.customer), (SELECT text FROM texts WHERE id = l.subscription), "               \
    "(SELECT text FROM texts WHERE id = l.source), l.value, l.properties, l.extra FROM log l "

std::string read_id(std::string_view id, bool is_uuid) { return is_uuid ? unpack_uuid(id) : std::string(id); }

// Empty when there is no such event.
std::string id_at(Connection& db, std::int64_t sequence) {
    const Prepared row = db.prepared("SELECT id, typeof(id) = 'blob' FROM log WHERE sequence = ?");
    row.bind(sequence);
    return row.row() ? read_id(row.text(0), row.integer(1) != 0) : std::string();
}

// All of an event but its properties, which are text in column 10.
Event read_plain_event(const Prepared& row) {
    return from_file("log", [&row] {
        Event event;
        event.sequence = row.integer(0);
        event.id = read_id(row.text(1), row.integer(2) != 0);
        event.timestamp = Timestamp(checked_time(row.integer(3), "log"));
        const std::int64_t delay = row.integer(4), most = Timestamp::max().micros() - Timestamp::min().micros();
        if (delay < -most || delay > most) damaged("log");
        event.recorded_at = *event.timestamp + std::chrono::microseconds(delay);
        event.name = row.text(5);
        event.customer = row.text(6);
        event.subscription = row.text(7);
        event.source = row.text(8);
        if (!row.null(9)) event.value = Decimal(row.text(9));
        if (!row.null(11)) read_extra(event, row.text(11));
        return event;
    });
}

Event read_event(const Prepared& row) {
    Event event = read_plain_event(row);
    event.properties = from_file("log", [&row] { return json::parse(row.text(10)); });
    return event;
}

std::optional<Event> event_at(Connection& db, std::int64_t sequence) {
    const Prepared row = db.prepared(METER_EVENT_COLUMNS "WHERE l.sequence = ?");
    row.bind(sequence);
    return row.row() ? std::optional(read_event(row)) : std::nullopt;
}

std::vector<Event> events_after(Connection& db, std::int64_t sequence, std::int64_t limit) {
    std::vector<Event> events;
    const Prepared row = db.prepared(METER_EVENT_COLUMNS "WHERE l.sequence > ? ORDER BY l.sequence LIMIT ?");
    row.bind(sequence, limit);
    while (row.row()) events.push_back(read_event(row));
    return events;
}

// Whether the log's row says the same as the draft. A draft without a timestamp agrees with any: it was made "now", then as now.
bool same_content(const Prepared& row, const Drafts& drafts, const Draft& draft) {
    const std::array<std::string_view, 4> texts{draft.name, draft.customer, draft.subscription, draft.source};
    for (int i = 0; i < 4; ++i) {
        if (row.text(5 + i) != texts[static_cast<std::size_t>(i)]) return false;
    }
    const std::string_view extra = drafts.extra(draft);
    return (!draft.timestamp || draft.timestamp->micros() == row.integer(3)) && row.text(9) == draft.value &&
           same_json(row.text(10), drafts.properties(draft)) && (row.null(11) ? extra.empty() : !extra.empty() && same_json(row.text(11), extra));
}

// What the writing side remembers between transactions. `forget` after a rollback.
struct LogMemory {
    explicit LogMemory(std::size_t index_bytes) : ids(index_bytes) {}
    Interner texts{};
    IdIndex ids;
    std::int64_t last = 0;        // sequence
    std::uint64_t rollbacks = 0;  // how often what was remembered had to be forgotten
    void forget() {
        texts.forget();
        ids.forget();
        known_ = false;
        ++rollbacks;
    }
    // Called when a transaction has begun and has read: what other connections have written since the last one is not known.
    void begun(Connection& db) {
        if (db.data_version() != version_) known_ = false;
    }
    // Called when it has been committed: what it wrote itself is known.
    void ended(Connection& db) { version_ = db.data_version(); }
    // Inside of a transaction: takes in what is not known.
    void refresh(Connection& db) {
        if (known_) return;
        ids.refresh(db);
        last = last_sequence(db);
        known_ = true;
    }
    // After we have sealed or merged something ourselves.
    void touch() { known_ = false; }

private:
    bool known_ = false;
    std::uint32_t version_ = 0;
};

// Decides whether a new event may stay in the log, and writes into its receipt what it found.
class Gate {
public:
    virtual ~Gate() = default;
    // Before the event is inserted; `last` is the end of the log.
    virtual void before(const Draft& draft, Timestamp time, std::int64_t last, Receipt& receipt) = 0;
    // With the event inserted behind `last`.
    virtual bool stays(Receipt& receipt) = 0;
};

// Undoes what was done since, unless it is kept. Inside a transaction.
class Savepoint {
public:
    explicit Savepoint(Connection& db) : db_(db) { db_.prepared("SAVEPOINT event").run(); }
    Savepoint(const Savepoint&) = delete;
    Savepoint& operator=(const Savepoint&) = delete;
    ~Savepoint() {
        if (!open_) return;
        try {
            db_.prepared("ROLLBACK TO event").run();
            db_.prepared("RELEASE event").run();
        } catch (const SQLite::Exception&) {  // then the transaction is gone, too
        }
    }
    void keep() {
        db_.prepared("RELEASE event").run();
        open_ = false;
    }

private:
    Connection& db_;
    bool open_ = true;
};

// Stores the accepted drafts, each unless its id is in the log already or the gate does not let it stay, and completes the receipts. Inside a
// transaction.
class LogAppend {
public:
    LogAppend(Connection& db, LogMemory& memory, Drafts& drafts, Timestamp now, Gate* gate = nullptr)
        : db_(db),
          memory_(memory),
          drafts_(drafts),
          now_(now),
          gate_(gate),
          insert_(db.prepared("INSERT INTO log VALUES(?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)")) {}

    void run() {
        memory_.refresh(db_);
        for (const Draft& draft : drafts_.accepted) {
            Receipt& receipt = drafts_.receipts[draft.receipt];
            receipt.field.clear(), receipt.reason.clear(), receipt.limits.clear();  // of an attempt that was rolled back
            const PackedId id = pack_id(draft.id);
            const std::uint64_t hash = id_hash(id);
            if (const std::int64_t earlier = memory_.ids.find(db_, id, hash); earlier != 0) {
                compare(draft, earlier, receipt);
                continue;
            }
            if (gate_ != nullptr && !insert_through_gate(draft, id, receipt)) continue;
            if (gate_ == nullptr) insert(draft, id);
            receipt.sequence = memory_.last;
            receipt.status = ReceiptStatus::stored;
            memory_.ids.add(hash, memory_.last);
        }
    }

private:
    void compare(const Draft& draft, std::int64_t earlier, Receipt& receipt) {
        const Prepared row = db_.prepared(METER_EVENT_COLUMNS "WHERE l.sequence = ?");
        row.bind(earlier);
        const bool same = row.row() && same_content(row, drafts_, draft);
        receipt.status = same ? ReceiptStatus::duplicate : ReceiptStatus::conflict;
        receipt.sequence = earlier;
        if (!same) receipt.field = "id", receipt.reason = "is in the log with other content";
    }
    bool insert_through_gate(const Draft& draft, const PackedId& id, Receipt& receipt) {
        gate_->before(draft, draft.timestamp.value_or(now_), memory_.last, receipt);
        const std::size_t texts = memory_.texts.size();
        Savepoint savepoint(db_);
        insert(draft, id);
        const bool stays = gate_->stays(receipt);
        if (stays) {
            savepoint.keep();
        } else {
            receipt.status = ReceiptStatus::over_limit;
            receipt.sequence = 0;
            --memory_.last;
            if (memory_.texts.size() != texts) memory_.texts.forget();
        }
        return stays;
    }
    void insert(const Draft& draft, const PackedId& id) {
        ++memory_.last;
        const std::int64_t time = draft.timestamp.value_or(now_).micros();
        const std::int64_t name = memory_.texts.intern(db_, draft.name);
        const auto customer = intern(draft.customer), subscription = intern(draft.subscription), source = intern(draft.source);
        const auto row = [&](const auto& stored_id) {
            insert_.run(memory_.last, stored_id, time, now_.micros() - time, name, customer, subscription, source, stored(draft.value),
                        drafts_.properties(draft), stored(drafts_.extra(draft)));
        };
        if (id.is_uuid) {
            row(std::span(reinterpret_cast<const std::uint8_t*>(id.uuid.data()), id.uuid.size()));
        } else {
            row(id.text);
        }
    }
    // What an event does not have is stored as NULL.
    std::optional<std::int64_t> intern(std::string_view text) { return text.empty() ? std::nullopt : std::optional(memory_.texts.intern(db_, text)); }
    static std::optional<std::string_view> stored(std::string_view text) { return text.empty() ? std::nullopt : std::optional(text); }

    Connection& db_;
    LogMemory& memory_;
    Drafts& drafts_;
    Timestamp now_;
    Gate* gate_;
    Prepared insert_;
};

// ---- columns ----
//
// A column holds one field of many events of one name: for every row a kind and an integer. A number is the integer at the column's
// scale; a text, a JSON value and a number too long for that are places in the column's dictionary; an interned text is a texts.id.

enum class CellKind : std::uint8_t { missing, null, boolean, number, wide, text, json, interned };

constexpr bool in_dictionary(CellKind kind) noexcept { return kind == CellKind::wide || kind == CellKind::text || kind == CellKind::json; }

struct Column {
    std::vector<CellKind> kinds{};  // one for all rows, or one a row
    std::vector<std::int64_t> cells{};
    int scale = 0;
    std::vector<std::string_view> words{};  // the dictionary; its texts live in `text`
    std::vector<char> text{};               // a vector, because moving one does not move the texts
    CellKind kind(std::size_t row) const noexcept { return kinds.size() == 1 ? kinds[0] : kinds[row]; }
    bool all(CellKind kind) const noexcept { return kinds.size() == 1 && kinds[0] == kind; }
    std::string_view word(std::size_t row) const noexcept { return words[static_cast<std::size_t>(cells[row])]; }
};

struct SmallNumber {
    std::int64_t coefficient = 0;
    int scale = 0;
};

// The number as a 64-bit integer and a scale, without trailing zeros; nothing when it has more than 18 digits or decimals.
std::optional<SmallNumber> small_number(std::string_view text) {
    std::int64_t coefficient = 0;
    int digits = 0, scale = -1;
    const bool negative = !text.empty() && text[0] == '-';
    for (std::size_t i = negative ? 1 : 0; i < text.size(); ++i) {
        if (text[i] == '.' && scale < 0) {
            scale = 0;
            continue;
        }
        if (text[i] < '0' || text[i] > '9' || ++digits > 18) return std::nullopt;
        coefficient = coefficient * 10 + (text[i] - '0');
        if (scale >= 0) ++scale;
    }
    if (digits == 0) return std::nullopt;
    for (; scale > 0 && coefficient % 10 == 0; --scale) coefficient /= 10;
    return SmallNumber{negative ? -coefficient : coefficient, std::max(scale, 0)};
}

constexpr std::array<std::int64_t, 19> powers_of_ten = [] {
    std::array<std::int64_t, 19> powers{1};
    for (std::size_t i = 1; i < powers.size(); ++i) powers[i] = powers[i - 1] * 10;
    return powers;
}();

// A number's integer at a column's scale, when it fits in 62 bits.
std::optional<std::int64_t> at_scale(SmallNumber number, int scale) noexcept {
    if (scale < number.scale || scale - number.scale > 18) return std::nullopt;
    const std::int64_t factor = powers_of_ten[static_cast<std::size_t>(scale - number.scale)];
    const std::int64_t limit = (std::int64_t{1} << 62) / factor;
    if (number.coefficient > limit || number.coefficient < -limit) return std::nullopt;
    return number.coefficient * factor;
}

class ColumnBuilder {
public:
    ColumnBuilder() = default;
    ColumnBuilder(const ColumnBuilder&) = delete;  // places_ refers into texts_
    ColumnBuilder& operator=(const ColumnBuilder&) = delete;

    void add(std::size_t row, const JsonToken& token, const JsonScanner& scanner) {
        switch (token.kind) {
            case JsonToken::Kind::null:
                return put(row, CellKind::null, 0);
            case JsonToken::Kind::boolean:
                return put(row, CellKind::boolean, token.raw == "true" ? 1 : 0);
            case JsonToken::Kind::number:
                return add_number(row, token.raw);
            case JsonToken::Kind::text:
                return token.escaped ? put_word(row, CellKind::text, scanner.decode(token)) : put_word(row, CellKind::text, token.raw);
            default:
                return put_word(row, CellKind::json, token.raw);
        }
    }
    void add_number(std::size_t row, std::string_view text) {
        auto number = small_number(text);
        std::string plain;
        if (!number) {
            plain = Decimal(text).to_string();
            number = small_number(plain);
        }
        if (!number) return put_word(row, CellKind::wide, plain);
        put(row, CellKind::number, number->coefficient);
        scales_.resize(cells_.size());
        scales_.back() = static_cast<std::uint8_t>(number->scale);
        scale_ = std::max(scale_, number->scale);
    }
    void add_interned(std::size_t row, std::int64_t id) { put(row, id == 0 ? CellKind::missing : CellKind::interned, id); }
    void add_integer(std::size_t row, std::int64_t value) { put(row, CellKind::number, value); }
    void add_text(std::size_t row, std::string_view text) { put_word(row, CellKind::text, text); }

    // The column with rows in the given order. Rows never added are missing.
    Column finish(std::span<const std::uint32_t> order) const {
        Column column;
        column.scale = scale_;
        column.words.assign(words_.begin(), words_.end());
        column.kinds.reserve(order.size());
        column.cells.reserve(order.size());
        for (const std::uint32_t row : order) {
            CellKind kind = row < cells_.size() ? kinds_[row] : CellKind::missing;
            std::int64_t cell = row < cells_.size() ? cells_[row] : 0;
            if (kind == CellKind::number) {
                const SmallNumber number{cell, row < scales_.size() ? scales_[row] : 0};
                if (const auto scaled = at_scale(number, scale_)) {
                    cell = *scaled;
                } else {
                    kind = CellKind::wide;
                    cell = -1 - static_cast<std::int64_t>(row);  // resolved below, when no more texts move
                }
            }
            column.kinds.push_back(kind);
            column.cells.push_back(cell);
        }
        add_wide(column);
        if (std::all_of(column.kinds.begin(), column.kinds.end(), [&](CellKind kind) { return kind == column.kinds[0]; }))
            column.kinds.resize(std::min<std::size_t>(1, column.kinds.size()));
        return column;
    }

private:
    void put(std::size_t row, CellKind kind, std::int64_t cell) {
        kinds_.resize(row + 1, CellKind::missing);
        cells_.resize(row + 1, 0);
        kinds_[row] = kind;
        cells_[row] = cell;
    }
    void put_word(std::size_t row, CellKind kind, std::string_view text) {
        auto known = places_.find(text);
        if (known == places_.end()) {
            const std::string_view kept = texts_.emplace_back(text);
            known = places_.emplace(kept, words_.size()).first;
            words_.push_back(kept);
        }
        put(row, kind, static_cast<std::int64_t>(known->second));
    }
    // Numbers that do not fit at the common scale go to the dictionary as text.
    void add_wide(Column& column) const {
        std::vector<std::size_t> rows, ends;
        for (std::size_t i = 0; i < column.cells.size(); ++i) {
            if (column.kinds[i] != CellKind::wide || column.cells[i] >= 0) continue;
            const auto row = static_cast<std::size_t>(-1 - column.cells[i]);
            const std::string text = Decimal::scaled(cells_[row], scales_[row]).to_string();
            column.text.insert(column.text.end(), text.begin(), text.end());
            rows.push_back(i);
            ends.push_back(column.text.size());
        }
        std::size_t begin = 0;
        for (std::size_t i = 0; i < rows.size(); begin = ends[i++]) {
            column.cells[rows[i]] = static_cast<std::int64_t>(column.words.size());
            column.words.emplace_back(column.text.data() + begin, ends[i] - begin);
        }
    }

    std::vector<CellKind> kinds_;
    std::vector<std::int64_t> cells_;
    std::vector<std::uint8_t> scales_;  // of numbers; shorter than cells_ when the last ones have none
    int scale_ = 0;
    std::deque<std::string> texts_;
    std::vector<std::string_view> words_;
    std::unordered_map<std::string_view, std::size_t> places_;
};

// ---- columns as bytes (FORMAT.md, "columns") ----

// How many bytes hold every difference up to `span`: 0 to 8.
std::size_t byte_width(std::uint64_t span) noexcept { return (static_cast<std::size_t>(std::bit_width(span)) + 7) / 8; }

void pack_integers(Bytes& out, std::span<const std::int64_t> values) {
    const auto [low, high] = std::minmax_element(values.begin(), values.end());
    const std::int64_t base = values.empty() ? 0 : *low;
    const std::size_t width = values.empty() ? 0 : byte_width(static_cast<std::uint64_t>(*high) - static_cast<std::uint64_t>(base));
    put_bytes(out, width, 1);
    put_bytes(out, static_cast<std::uint64_t>(base), 8);
    out.reserve(out.size() + values.size() * width);
    for (const std::int64_t value : values) put_bytes(out, static_cast<std::uint64_t>(value) - static_cast<std::uint64_t>(base), width);
}

Bytes pack_column(const Column& column) {
    Bytes out;
    put_bytes(out, static_cast<std::uint64_t>(column.scale), 1);
    put_bytes(out, column.kinds.size() == 1 ? static_cast<std::uint64_t>(column.kinds[0]) : 0xFF, 1);
    pack_integers(out, column.cells);
    if (column.kinds.size() > 1) {
        for (const CellKind kind : column.kinds) put_bytes(out, static_cast<std::uint64_t>(kind), 1);
    }
    if (column.words.empty()) return out;
    std::vector<std::int64_t> lengths;
    for (const std::string_view word : column.words) lengths.push_back(static_cast<std::int64_t>(word.size()));
    put_bytes(out, lengths.size(), 4);
    pack_integers(out, lengths);
    for (const std::string_view word : column.words) out.insert(out.end(), word.begin(), word.end());
    return out;
}

// Integers as pack_integers() writes them, unpacked as they are looked at.
struct PackedIntegers {
    std::uint64_t base = 0;
    std::size_t width = 0;                      // 0 to 8
    std::span<const std::uint8_t> packed = {};  // and what comes after them
    std::int64_t operator[](std::size_t i) const { return static_cast<std::int64_t>(base + get_bytes(packed.data() + i * width, width)); }

    // Those from `first` to `last`.
    void unpack(std::vector<std::int64_t>& out, std::size_t first, std::size_t last) const {
        out.resize(last - first);
        switch (width) {
            case 0:
                return std::fill(out.begin(), out.end(), static_cast<std::int64_t>(base));
            case 1:
                return spread<1, std::uint8_t>(out, first);
            case 2:
                return spread<2, std::uint16_t>(out, first);
            case 3:
                return spread<3, std::uint32_t>(out, first);
            case 4:
                return spread<4, std::uint32_t>(out, first);
            case 5:
                return spread<5, std::uint64_t>(out, first);
            case 6:
                return spread<6, std::uint64_t>(out, first);
            case 7:
                return spread<7, std::uint64_t>(out, first);
            default:
                return spread<8, std::uint64_t>(out, first);
        }
    }

private:
    // The width as a constant lets the compiler unroll and vectorise the loop that every aggregate spends its time in. An odd width is read as
    // part of a wider integer, but for the last rows, where the bytes may end before it.
    template <std::size_t size, class Whole>
    void spread(std::vector<std::int64_t>& out, std::size_t first) const {
        constexpr std::uint64_t mask = ~std::uint64_t{0} >> (64 - 8 * size);
        const std::uint8_t* data = packed.data() + first * size;
        const std::size_t whole = packed.size() < sizeof(Whole) ? 0 : (packed.size() - sizeof(Whole)) / size + 1;
        const std::size_t rows = out.size(), wide = std::min(rows, whole - std::min(whole, first));
        std::int64_t* to = out.data();
        for (std::size_t i = 0; i < wide; ++i) to[i] = static_cast<std::int64_t>(base + (get_whole<Whole>(data + i * size) & mask));
        for (std::size_t i = wide; i < rows; ++i) to[i] = static_cast<std::int64_t>(base + get_bytes(data + i * size, size));
    }
};

// Reads packed bytes from front to back and never past the end.
class Unpacker {
public:
    explicit Unpacker(std::string_view bytes) noexcept : at_(reinterpret_cast<const std::uint8_t*>(bytes.data())), left_(bytes.size()) {}
    std::uint64_t bytes(std::size_t width) { return get_bytes(take(width), width); }
    const std::uint8_t* take(std::size_t size) {
        if (size > left_) damaged("columns");
        left_ -= size;
        return std::exchange(at_, at_ + size);
    }
    std::size_t left() const noexcept { return left_; }
    PackedIntegers integers(std::size_t count) {
        const auto width = static_cast<std::size_t>(bytes(1));
        if (width > 8) damaged("columns");
        const std::uint64_t base = bytes(8);
        if (width != 0 && count > left_ / width) damaged("columns");
        const std::size_t readable = left_;
        return {base, width, {take(count * width), readable}};
    }

private:
    const std::uint8_t* at_;
    std::size_t left_;
};

// Every cell that is a place in the dictionary is one of its `count`, so that Column::word need not look.
void check_places(const Column& column, std::size_t count) {
    const auto within = [count](std::int64_t cell) { return static_cast<std::uint64_t>(cell) < count; };
    if (column.kinds.size() == 1) {
        if (in_dictionary(column.kinds[0]) && !std::all_of(column.cells.begin(), column.cells.end(), within)) damaged("columns.dictionary");
        return;
    }
    for (std::size_t row = 0; row < column.kinds.size(); ++row) {
        if (in_dictionary(column.kinds[row]) && !within(column.cells[row])) damaged("columns.dictionary");
    }
}

// Rows `first` to `last` of a packed column of `rows` rows.
Column unpack_column(std::string_view data, std::size_t rows, std::size_t first, std::size_t last) {
    Unpacker in(data);
    Column column;
    column.scale = static_cast<int>(in.bytes(1));
    if (column.scale > 18) damaged("columns.scale");
    const std::uint64_t kind = in.bytes(1);
    in.integers(rows).unpack(column.cells, first, last);
    const auto checked = [](std::uint64_t value) {
        if (value > static_cast<std::uint64_t>(CellKind::interned)) damaged("columns.kind");
        return static_cast<CellKind>(value);
    };
    if (kind != 0xFF) {
        column.kinds = {checked(kind)};
    } else {
        const std::uint8_t* kinds = in.take(rows);
        for (std::size_t i = first; i < last; ++i) column.kinds.push_back(checked(kinds[i]));
    }
    const auto count = in.left() == 0 ? 0 : static_cast<std::size_t>(in.bytes(4));
    check_places(column, count);
    if (count == 0) return column;
    std::vector<std::int64_t> lengths;
    if (count > data.size()) damaged("columns.dictionary");
    in.integers(count).unpack(lengths, 0, count);
    const std::size_t size = in.left();
    const std::uint8_t* text = in.take(size);
    column.text.assign(text, text + size);
    std::size_t at = 0;
    for (const std::int64_t length : lengths) {
        if (length < 0 || static_cast<std::uint64_t>(length) > column.text.size() - at) damaged("columns.dictionary");
        column.words.emplace_back(column.text.data() + at, static_cast<std::size_t>(length));
        at += static_cast<std::size_t>(length);
    }
    return column;
}

// ---- building columns from the log ----

// The fields of an event that are not properties, as columns know them. Properties are known as "." and their path.
namespace fields {
constexpr std::string_view id = "id", name = "name", time = "time", sequence = "sequence", customer = "customer", subscription = "subscription",
                           source = "source", value = "value", cents = "precise_total_amount_cents", recorded = "recorded_at";
// Moments are microseconds.
bool is_moment(std::string_view key) { return key == time || key == recorded; }
bool is_owner(std::string_view key) { return key == name || key == customer || key == subscription; }
}  // namespace fields

constexpr std::size_t max_segment_columns = 1000;
constexpr std::int64_t min_chunk_events = 64, max_segment_rows = 1 << 22;

// The key of what is no column of its own: whether a property is there, be it as an object with members, which have columns only of their own.
std::string presence_key(const std::string& key) { return key.starts_with('.') ? "?" + key : key; }
bool is_presence(std::string_view key) { return key.starts_with('?'); }

// Whether the column has a part in what a scan asks for by this key.
bool serves(std::string_view column, std::string_view key) {
    if (!is_presence(key)) return column == key;
    key.remove_prefix(1);
    return column.starts_with(key) && (column.size() == key.size() || column[key.size()] == '.');
}

// All events of one name in a stretch of the log, in its order, taken apart into columns.
class Part {
public:
    // Takes all properties, up to a limit, or those of the given keys.
    explicit Part(std::vector<std::string> only = {}) : only_(std::move(only)) {}

    void add(std::int64_t sequence, std::int64_t time, std::int64_t customer, std::int64_t subscription, std::int64_t source, std::string_view value,
             std::string_view properties, std::string_view extra) {
        const std::size_t row = times_.size();
        sequences_.push_back(sequence);
        times_.push_back(checked_time(time, "log"));
        first_time_ = std::min(first_time_, time);
        last_time_ = std::max(last_time_, time);
        customers_.push_back(customer);
        subscriptions_.push_back(subscription);
        if (source != 0) column(fields::source).add_interned(row, source);
        if (!value.empty()) column(fields::value).add_number(row, value);
        if (!extra.empty()) {
            Event event;
            from_file("log", [&] { read_extra(event, extra); });
            if (event.precise_total_amount_cents) column(fields::cents).add_number(row, event.precise_total_amount_cents->to_string());
        }
        JsonScanner scanner(properties, JsonScanner::Keys::trusted);  // checked when they were recorded
        path_.clear();
        flatten_json(scanner, path_, [&](const std::string& path, const JsonToken& token, const JsonScanner& at) {
            if (ColumnBuilder* to = property(path)) to->add(row, token, at);
        });
    }
    std::size_t rows() const noexcept { return times_.size(); }
    const std::vector<std::int64_t>& times() const noexcept { return times_; }
    std::int64_t first_time() const noexcept { return first_time_; }
    std::int64_t last_time() const noexcept { return last_time_; }
    const std::vector<std::int64_t>& sequences() const noexcept { return sequences_; }
    const std::vector<std::int64_t>& customers() const noexcept { return customers_; }
    const std::vector<std::int64_t>& subscriptions() const noexcept { return subscriptions_; }
    // Whether some property got no column, because there were too many.
    bool partial() const noexcept { return partial_; }
    struct Named {
        std::string key{};
        ColumnBuilder builder{};
    };
    const std::deque<Named>& columns() const noexcept { return columns_; }
    const ColumnBuilder* find(std::string_view key) const {
        const auto known = places_.find(std::string(key));
        return known == places_.end() ? nullptr : &columns_[known->second].builder;
    }

private:
    ColumnBuilder* property(const std::string& key) {
        // Events of one name mostly have the same properties in the same order: try the one after the last.
        if (next_ < columns_.size() && columns_[next_].key == key) return &columns_[next_++].builder;
        if (!only_.empty())
            return std::any_of(only_.begin(), only_.end(), [&](const std::string& one) { return serves(key, one); }) ? &column(key) : nullptr;
        if (columns_.size() >= max_segment_columns && !places_.contains(key)) {
            partial_ = true;
            return nullptr;
        }
        ColumnBuilder& found = column(key);
        next_ = static_cast<std::size_t>(places_.find(key)->second) + 1;
        return &found;
    }
    ColumnBuilder& column(std::string_view key) {
        const auto [place, fresh] = places_.try_emplace(std::string(key), columns_.size());
        if (fresh) columns_.emplace_back().key = key;
        return columns_[place->second].builder;
    }

    std::vector<std::string> only_;
    std::vector<std::int64_t> times_, sequences_, customers_, subscriptions_;
    std::int64_t first_time_ = std::numeric_limits<std::int64_t>::max(), last_time_ = std::numeric_limits<std::int64_t>::min();
    std::deque<Named> columns_;
    std::unordered_map<std::string, std::size_t> places_;
    std::size_t next_ = 0;
    bool partial_ = false;
    std::string path_;
};

using Parts = std::map<std::int64_t, Part>;  // by name

// The events after `first` up to `last`, or those of them that are wanted, taken apart.
struct Stretch {
    std::int64_t first = 0, last = 0;
    Parts parts{};
};

// Calls `use(row)` for each row that the query answers; what is wrong with a row is told with its sequence. Columns: sequence, timestamp, name,
// customer, subscription, source, value, properties, extra, id, timestamp + delay.
#define METER_LOG_ROWS                                                                                                            \
    "SELECT sequence, timestamp, name, customer, subscription, source, value, properties, extra, id, timestamp + delay FROM log " \
    "WHERE sequence > ?1 AND sequence <= ?2 "

template <class Use>
void each_row_of(const Prepared& row, Use&& use) {
    while (row.row()) {
        try {
            use(row);
        } catch (const Error& error) {
            throw Error(ErrorCode::corrupt, "log row " + std::to_string(row.integer(0)), error.reason());
        }
    }
}

// The rows after `first` up to `last`, in order.
template <class Use>
void each_log_row(Connection& db, std::int64_t first, std::int64_t last, Use&& use) {
    const Prepared row = db.prepared(METER_LOG_ROWS "ORDER BY sequence");
    row.bind(first, last);
    each_row_of(row, use);
}

void add_row(Part& part, const Prepared& row) {
    part.add(row.integer(0), row.integer(1), row.integer(3), row.integer(4), row.integer(5), row.text(6), row.text(7), row.text(8));
}

// Takes the events after `first` up to `last` apart; of all names, or of one; all their properties, or those of the given keys.
void read_parts(Connection& db, std::int64_t first, std::int64_t last, std::optional<std::int64_t> name, Parts& parts,
                const std::vector<std::string>& only = {}) {
    each_log_row(db, first, last, [&](const Prepared& row) {
        if (!name || row.integer(2) == *name) add_row(parts.try_emplace(row.integer(2), only).first->second, row);
    });
}

// Takes those of one customer and subscription apart; of all, where there is none.
Stretch read_stretch(Connection& db, std::int64_t first, std::int64_t last, std::optional<std::int64_t> customer,
                     std::optional<std::int64_t> subscription) {
    Stretch stretch{first, last, {}};
    const Prepared row = db.prepared(METER_LOG_ROWS "AND (?3 IS NULL OR customer = ?3) AND (?4 IS NULL OR subscription = ?4) ORDER BY sequence");
    row.bind(first, last, customer, subscription);
    each_row_of(row, [&](const Prepared& each) { add_row(stretch.parts[each.integer(2)], each); });
    return stretch;
}

// ---- sealed segments ----

// A part in its lasting form: rows by customer, subscription, time and sequence; each column packed.
struct Segment {
    std::int64_t name = 0, rows = 0, first_time = 0, last_time = 0;
    std::vector<std::string> keys{};
    std::vector<Bytes> columns{};
};

// Where the rows of each customer and subscription begin: count, customers, subscriptions, first rows.
Bytes pack_directory(const Part& part, std::span<const std::uint32_t> order) {
    std::vector<std::int64_t> customers, subscriptions, starts;
    for (std::size_t i = 0; i < order.size(); ++i) {
        const std::int64_t customer = part.customers()[order[i]], subscription = part.subscriptions()[order[i]];
        if (!starts.empty() && customers.back() == customer && subscriptions.back() == subscription) continue;
        customers.push_back(customer);
        subscriptions.push_back(subscription);
        starts.push_back(static_cast<std::int64_t>(i));
    }
    Bytes out;
    put_bytes(out, starts.size(), 4);
    pack_integers(out, customers);
    pack_integers(out, subscriptions);
    pack_integers(out, starts);
    return out;
}

Bytes pack_ordered(std::span<const std::int64_t> values, std::span<const std::uint32_t> order) {
    Column column{{CellKind::number}, {}, 0, {}, {}};
    for (const std::uint32_t row : order) column.cells.push_back(values[row]);
    return pack_column(column);
}

Segment seal_part(std::int64_t name, const Part& part) {
    std::vector<std::uint32_t> order(part.rows());
    std::iota(order.begin(), order.end(), 0U);
    const auto key = [&](std::uint32_t row) {
        return std::tuple(part.customers()[row], part.subscriptions()[row], part.times()[row], part.sequences()[row]);
    };
    std::sort(order.begin(), order.end(), [&](std::uint32_t a, std::uint32_t b) { return key(a) < key(b); });
    Segment segment{name, static_cast<std::int64_t>(part.rows()), part.first_time(), part.last_time(), {}, {}};
    const auto add = [&](std::string_view column, Bytes bytes) {
        segment.keys.emplace_back(column);
        segment.columns.push_back(std::move(bytes));
    };
    add(fields::customer, pack_directory(part, order));
    add(fields::time, pack_ordered(part.times(), order));
    add(fields::sequence, pack_ordered(part.sequences(), order));
    for (const auto& [column, builder] : part.columns()) {
        if (const Column finished = builder.finish(order); !finished.all(CellKind::missing)) add(column, pack_column(finished));
    }
    return segment;
}

constexpr std::int64_t max_columns = 4096;  // column ids are segment * max_columns + place in the layout
constexpr const char* partial_mark = "*";   // last key of a layout that lacks some properties

std::int64_t layout_id(Connection& db, const json& keys) {
    const std::string text = keys.dump();
    if (const std::int64_t known = db.integer("SELECT id FROM layouts WHERE keys = ?", text)) return known;
    db.prepared("INSERT INTO layouts(keys) VALUES(?)").run(text);
    return db.last_rowid();
}

void write_segment(Connection& db, std::int64_t chunk, const Segment& segment) {
    db.prepared("INSERT INTO segments(chunk, name, layout, rows, first_time, last_time) VALUES(?, ?, ?, ?, ?, ?)")
        .run(chunk, segment.name, layout_id(db, segment.keys), segment.rows, segment.first_time, segment.last_time);
    const std::int64_t id = db.last_rowid();
    for (std::size_t i = 0; i < segment.columns.size(); ++i) {
        const Bytes& data = segment.columns[i];
        db.prepared("INSERT INTO columns(id, data, hash) VALUES(?, ?, ?)").run(id * max_columns + static_cast<std::int64_t>(i), data, checksum(data));
    }
}

// A stretch of the log in its lasting form, made outside of any transaction.
struct Chunk {
    std::int64_t first = 0, last = 0;  // sequences after `first` up to `last`
    std::int64_t recorded = 0;         // when the latest of them was recorded
    std::vector<Segment> segments{};
    Run ids{};
    std::vector<Block> blocks{};  // of the ids
};

Chunk make_chunk(Connection& db, std::int64_t first, std::int64_t last) {
    Chunk chunk{first, last, std::numeric_limits<std::int64_t>::min(), {}, {}, {}};
    std::vector<RunEntry> ids;
    ids.reserve(static_cast<std::size_t>(last - first));
    Parts parts;
    each_log_row(db, first, last, [&](const Prepared& row) {
        add_row(parts[row.integer(2)], row);
        ids.push_back({hash_bytes(row.text(9)) >> (64 - hash_bits), row.integer(0)});
        chunk.recorded = std::max(chunk.recorded, row.integer(10));
    });
    for (const auto& [name, part] : parts) {
        Segment& segment = chunk.segments.emplace_back(seal_part(name, part));
        if (part.partial()) segment.keys.emplace_back(partial_mark);
    }
    std::sort(ids.begin(), ids.end());
    chunk.ids = {0, 0, first, last, run_bits(ids.size()), {}};
    chunk.blocks = make_blocks(chunk.ids, 0, chunk.ids.blocks(), ids);
    return chunk;
}

void changed(Connection& db) { set_meta(db, "generation", meta(db, "generation") + 1); }

// Stores a sealed chunk, unless another process was first. Inside a transaction; all or nothing.
bool write_chunk(Connection& db, const Chunk& chunk) {
    if (meta(db, "sealed") != chunk.first) return false;
    db.prepared("INSERT INTO chunks(first, last, recorded) VALUES(?, ?, ?)").run(chunk.first, chunk.last, chunk.recorded);
    const std::int64_t id = db.last_rowid();
    for (const Segment& segment : chunk.segments) write_segment(db, id, segment);
    Run run = chunk.ids;
    db.prepared("INSERT INTO runs(level, first, last, bits, state, owner, touched) VALUES(0, ?, ?, ?, 'live', 0, 0)")
        .run(run.first, run.last, run.bits);
    run.id = db.last_rowid();
    write_blocks(db, run, 0, chunk.blocks);
    set_meta(db, "sealed", chunk.last);
    changed(db);
    return true;
}

// ---- the scan: the columns a question needs, whatever they are read from ----

struct Layout {
    std::unordered_map<std::string, std::int64_t> places{};
    bool partial = false;
};

struct SegmentInfo {
    std::int64_t id = 0, name = 0, rows = 0, first_time = 0, last_time = 0, chunk_first = 0, chunk_last = 0;
    const Layout* layout = nullptr;
    mutable std::vector<bool> sound{};  // by place: whose checksum was right when it was first read
    // Ids are given again after a repair.
    bool same_as(const SegmentInfo& other) const noexcept {
        return id == other.id && name == other.name && rows == other.rows && chunk_first == other.chunk_first && chunk_last == other.chunk_last;
    }
};

// What a scan reads: events of some names, of one customer or subscription or all, in a period, and of those the given columns.
struct ScanQuestion {
    std::optional<std::vector<std::int64_t>> names{};  // texts.id; all when absent
    std::optional<std::int64_t> customer{}, subscription{};
    std::int64_t from = std::numeric_limits<std::int64_t>::min(), to = std::numeric_limits<std::int64_t>::max();  // microseconds, half-open
    std::vector<std::string> keys{};
    std::vector<std::string> owner_keys{};  // name, customer, subscription: what Batch::owners tells

    std::size_t key(std::string_view wanted) { return place_in(keys, wanted); }
    std::size_t owner_key(std::string_view wanted) { return place_in(owner_keys, wanted); }
    bool wants(std::int64_t name, std::int64_t first, std::int64_t last) const {
        if (last < from || first >= to) return false;
        return !names || std::find(names->begin(), names->end(), name) != names->end();
    }

private:
    static std::size_t place_in(std::vector<std::string>& keys, std::string_view wanted) {
        const auto known = std::find(keys.begin(), keys.end(), wanted);
        if (known != keys.end()) return static_cast<std::size_t>(known - keys.begin());
        keys.emplace_back(wanted);
        return keys.size() - 1;
    }
};

// `mask` tells which rows belong to the answer; all of them when it is empty.
struct Table {
    std::size_t rows = 0;
    std::vector<Column> columns{};
    std::vector<std::uint8_t> mask{};
};

// Rows of one name, with the columns of ScanQuestion::keys.
struct Batch : Table {
    explicit Batch(std::int64_t of_name) noexcept : name(of_name) {}
    std::int64_t name;
    Table owners{};                     // a row for each stretch of rows that have the same owner, with the columns of ScanQuestion::owner_keys
    std::vector<std::uint32_t> ends{};  // where each of those stretches ends
    Parts rebuilt{};                    // where the columns' texts live when they were read again from the log
};

// Calls use(row) for the rows that belong to the answer.
template <class Use>
void each_row(const Table& table, Use&& use) {
    const std::uint8_t* mask = table.mask.empty() ? nullptr : table.mask.data();
    for (std::size_t row = 0; row < table.rows; ++row) {
        if (mask == nullptr || mask[row] != 0) use(row);
    }
}

std::int64_t matching_rows(const Batch& batch) {
    return batch.mask.empty() ? static_cast<std::int64_t>(batch.rows)
                              : std::count_if(batch.mask.begin(), batch.mask.end(), [](auto m) { return m != 0; });
}

// One place that rows come from: a sealed segment, or the part of the unsealed tail with one name.
struct Source {
    std::int64_t name = 0, rows = 0, first_time = 0, last_time = 0;
    const SegmentInfo* segment = nullptr;
    const Part* part = nullptr;
    std::int64_t first = 0, last = 0;  // where in the log the part comes from
};

// What the reading side remembers between snapshots: the list of segments, and the unsealed tail taken apart.
class ScanMemory {
public:
    // Up to `through`, of what is in the log.
    void refresh(Connection& db, std::int64_t through = std::numeric_limits<std::int64_t>::max()) {
        if (const std::int64_t generation = meta(db, "generation"); generation != generation_) {
            load_segments(db);
            if (const std::int64_t sealed = meta(db, "sealed"); sealed != tail_first_) {
                tail_.clear();
                tail_first_ = tail_last_ = sealed;
            }
            generation_ = generation;
        }
        const std::int64_t last = std::min(last_sequence(db), through);
        if (last < tail_last_) {  // rows taken in were rolled back since, as only a memory database can show them
            tail_.clear();
            tail_last_ = tail_first_;
        }
        if (last == tail_last_) return;
        const std::int64_t known = std::exchange(tail_last_, tail_first_);  // a read that breaks off leaves the tail half taken in
        Parts taken = std::move(tail_);
        tail_.clear();
        read_parts(db, known, last, std::nullopt, taken);
        tail_ = std::move(taken);
        tail_last_ = last;
    }
    const std::vector<SegmentInfo>& segments() const noexcept { return segments_; }
    const Parts& tail() const noexcept { return tail_; }
    std::int64_t tail_first() const noexcept { return tail_first_; }
    std::int64_t tail_last() const noexcept { return tail_last_; }

private:
    void load_segments(Connection& db) {
        layouts_.clear();
        std::vector<SegmentInfo> old = std::exchange(segments_, {});
        auto known = old.begin();
        const Prepared layout = db.prepared("SELECT id, keys FROM layouts");
        while (layout.row()) {
            const auto keys = from_file("layouts", [&] { return json::parse(layout.text(1)).get<std::vector<std::string>>(); });
            Layout& made = layouts_[layout.integer(0)];
            for (std::size_t i = 0; i < keys.size(); ++i) made.places[keys[i]] = static_cast<std::int64_t>(i);
            made.partial = made.places.erase(partial_mark) != 0;
        }
        const Prepared row = db.prepared(
            "SELECT s.id, s.name, s.rows, s.first_time, s.last_time, c.first, c.last, s.layout FROM segments s JOIN chunks c ON c.id = s.chunk ORDER "
            "BY s.id");
        while (row.row()) {
            const auto found = layouts_.find(row.integer(7));
            if (found == layouts_.end() || row.integer(2) < 1 || row.integer(2) > max_segment_rows) damaged("segments");
            SegmentInfo& segment = segments_.emplace_back(SegmentInfo{
                row.integer(0), row.integer(1), row.integer(2), row.integer(3), row.integer(4), row.integer(5), row.integer(6), &found->second, {}});
            while (known != old.end() && known->id < segment.id) ++known;
            if (known != old.end() && known->same_as(segment)) segment.sound = std::move(known->sound);
        }
    }
    std::int64_t generation_ = -1, tail_first_ = 0, tail_last_ = 0;
    std::map<std::int64_t, Layout> layouts_;
    std::vector<SegmentInfo> segments_;
    Parts tail_;
};

// A snapshot to read from: the connection, and what is remembered of earlier ones.
struct Reader {
    Connection& db;
    ScanMemory& memory;
    const Stretch* more = nullptr;  // events beyond what is remembered
    operator Connection&() const noexcept { return db; }
};

std::int64_t text_id(Connection& db, std::string_view text) { return db.integer("SELECT id FROM texts WHERE text = ?", text); }

std::string text_of(Connection& db, std::int64_t id) {
    const Prepared row = db.prepared("SELECT text FROM texts WHERE id = ?");
    row.bind(id);
    return row.row() ? std::string(row.text(0)) : std::string();
}

// Calls use(id, text) for each of the ids, which are in order; for one that is not there with no text.
template <class Use>
void each_text(Connection& db, const std::vector<std::int64_t>& ids, Use&& use) {
    constexpr std::int64_t near = 16;  // so many rows are stepped over as quickly as one is looked for
    for (auto id = ids.begin(); id != ids.end();) {
        const auto gap = std::adjacent_find(id, ids.end(), [](std::int64_t a, std::int64_t b) { return b - a > near; });
        const auto end = gap == ids.end() ? gap : gap + 1;
        const Prepared row = db.prepared("SELECT id, text FROM texts WHERE id BETWEEN ? AND ? ORDER BY id");
        row.bind(*id, end[-1]);
        for (std::int64_t at = -1; id != end; ++id) {
            while (at < *id) at = row.row() ? row.integer(0) : std::numeric_limits<std::int64_t>::max();
            use(*id, at == *id ? row.text(1) : std::string_view());
        }
    }
}

std::vector<Source> part_sources(const Parts& parts, const ScanQuestion& question, std::int64_t sequence_first = 0, std::int64_t sequence_last = 0) {
    std::vector<Source> found;
    for (const auto& [name, part] : parts) {
        if (question.wants(name, part.first_time(), part.last_time()))
            found.push_back(
                {name, static_cast<std::int64_t>(part.rows()), part.first_time(), part.last_time(), nullptr, &part, sequence_first, sequence_last});
    }
    return found;
}

// Segments first: what is numbered as it is met then comes in their order.
std::vector<Source> sources(const Reader& reader, const ScanQuestion& question) {
    std::vector<Source> found;
    for (const SegmentInfo& segment : reader.memory.segments()) {
        if (question.wants(segment.name, segment.first_time, segment.last_time)) {
            found.push_back({segment.name, segment.rows, segment.first_time, segment.last_time, &segment, nullptr, 0, 0});
        }
    }
    for (const Source& source : part_sources(reader.memory.tail(), question, reader.memory.tail_first(), reader.memory.tail_last()))
        found.push_back(source);
    if (reader.more != nullptr) {
        for (const Source& source : part_sources(reader.more->parts, question, reader.more->first, reader.more->last)) found.push_back(source);
    }
    return found;
}

Column constant_column(CellKind kind, std::int64_t cell, std::size_t rows) { return {{kind}, std::vector<std::int64_t>(rows, cell), 0, {}, {}}; }

Column integer_column(std::vector<std::int64_t> values) { return {{CellKind::number}, std::move(values), 0, {}, {}}; }

// Ids are not kept in columns; the few questions that ask for one as a field read them from the log.
Column id_column(Connection& db, const Column& sequence) {
    Column column{{CellKind::text}, {}, 0, {}, {}};
    std::vector<std::size_t> ends;
    for (const std::int64_t at : sequence.cells) {
        const std::string id = id_at(db, at);
        column.text.insert(column.text.end(), id.begin(), id.end());
        ends.push_back(column.text.size());
    }
    std::size_t begin = 0;
    for (const std::size_t end : ends) {
        column.cells.push_back(static_cast<std::int64_t>(column.words.size()));
        column.words.emplace_back(column.text.data() + begin, end - begin);
        begin = end;
    }
    return column;
}

Column interned_column(std::vector<std::int64_t> ids) {
    Column column{{CellKind::interned}, std::move(ids), 0, {}, {}};
    if (std::find(column.cells.begin(), column.cells.end(), 0) == column.cells.end()) return column;
    column.kinds.resize(column.cells.size());
    std::transform(column.cells.begin(), column.cells.end(), column.kinds.begin(),
                   [](std::int64_t id) { return id == 0 ? CellKind::missing : CellKind::interned; });
    return column;
}

// Who the rows belong to: for each stretch of rows of one customer and subscription these, and where it ends.
struct Owners {
    std::vector<std::int64_t> customers{}, subscriptions{};
    std::vector<std::uint32_t> ends{};
    const std::vector<std::int64_t>& ids(std::string_view key) const { return key == fields::customer ? customers : subscriptions; }
};

// For each row what is given once for each stretch. Most stretches are short: it costs less to write beyond the end, which the next ones then
// write over, than to guess it.
template <class Value>
void spread(const std::vector<Value>& values, const std::vector<std::uint32_t>& ends, std::vector<Value>& rows) {
    constexpr std::size_t at_once = 8;
    const std::size_t count = ends.empty() ? 0 : ends.back();
    rows.resize(count + at_once);
    Value* to = rows.data();
    for (std::size_t i = 0; i < ends.size(); ++i) {
        const Value value = values[i];
        Value* const end = rows.data() + ends[i];
        std::fill_n(to, at_once, value);
        if (end - to > static_cast<std::ptrdiff_t>(at_once)) std::fill(to + at_once, end, value);
        to = end;
    }
    rows.resize(count);
}

// A sealed segment opened for reading, or the stretch of it in which one customer's or subscription's rows lie.
class SegmentReader {
public:
    SegmentReader(Connection& db, const SegmentInfo& info, const ScanQuestion& question)
        : db_(db), info_(info), last_(static_cast<std::size_t>(info.rows)) {
        if (question.customer || question.subscription) find_stretch(question);
    }
    std::size_t rows() const noexcept { return last_ - first_; }
    // Whether the stretch holds nothing else.
    bool exact() const noexcept { return exact_; }

    Owners owners() const {
        const Directory all = directory();
        std::vector<std::int64_t> starts;
        all.starts.unpack(starts, 0, all.size);
        starts.push_back(info_.rows);
        if (starts[0] != 0 || !std::is_sorted(starts.begin(), starts.end())) damaged("columns.customer");
        const auto row = [](std::int64_t start) { return static_cast<std::size_t>(start); };
        const auto first = std::upper_bound(starts.begin(), starts.end(), static_cast<std::int64_t>(first_)) - starts.begin() - 1;
        const auto last = std::lower_bound(starts.begin(), starts.end(), static_cast<std::int64_t>(last_)) - starts.begin();
        Owners found;
        all.customers.unpack(found.customers, row(first), row(last));
        all.subscriptions.unpack(found.subscriptions, row(first), row(last));
        for (auto end = first + 1; end <= last; ++end)
            found.ends.push_back(static_cast<std::uint32_t>(std::min(row(starts[row(end)]), last_) - first_));
        return found;
    }
    Column column(const std::string& key) const {
        if (key == fields::customer || key == fields::subscription) return spread_owners(key);
        const auto place = info_.layout->places.find(key);
        if (place == info_.layout->places.end()) return constant_column(CellKind::missing, 0, rows());
        const Prepared row = blob(place->second);
        return unpack_column(row.text(0), static_cast<std::size_t>(info_.rows), first_, last_);
    }

private:
    struct Directory {
        Prepared row;  // where the lists are
        std::size_t size = 0;
        PackedIntegers customers{}, subscriptions{}, starts{};
    };

    Prepared blob(std::int64_t place) const {
        Prepared row = db_.prepared("SELECT data, hash FROM columns WHERE id = ?");
        row.bind(info_.id * max_columns + place);
        if (!row.row()) damaged("columns");
        const auto at = static_cast<std::size_t>(place);
        if (at >= info_.sound.size() || !info_.sound[at]) {
            checked_blob(row, 0, 1, "columns");
            info_.sound.resize(std::max(info_.sound.size(), at + 1));
            info_.sound[at] = true;
        }
        return row;
    }
    Directory directory() const {
        Directory found{blob(0)};
        Unpacker in(found.row.text(0));
        found.size = static_cast<std::size_t>(in.bytes(4));
        if (found.size == 0 || found.size > static_cast<std::size_t>(info_.rows)) damaged("columns.customer");
        for (auto* list : {&found.customers, &found.subscriptions, &found.starts}) *list = in.integers(found.size);
        return found;
    }
    Column spread_owners(std::string_view key) const {
        const Owners found = owners();
        std::vector<std::int64_t> cells;
        spread(found.ids(key), found.ends, cells);
        return interned_column(std::move(cells));
    }
    // Owners are in order of customer, then subscription.
    void find_stretch(const ScanQuestion& question) {
        const Directory all = directory();
        std::size_t first = 0, last = all.size;
        if (question.customer) std::tie(first, last) = equal_range(all.customers, first, last, *question.customer);
        if (question.subscription && question.customer) {
            std::tie(first, last) = equal_range(all.subscriptions, first, last, *question.subscription);
        } else if (question.subscription) {
            std::tie(first, last) = around(all, *question.subscription);
        }
        const std::int64_t begin = first < last ? all.starts[first] : 0, end = first == last ? 0 : last < all.size ? all.starts[last] : info_.rows;
        if (begin < 0 || end < begin || end > info_.rows) damaged("columns.customer");
        first_ = static_cast<std::size_t>(begin);
        last_ = static_cast<std::size_t>(end);
    }
    static std::pair<std::size_t, std::size_t> equal_range(const PackedIntegers& list, std::size_t first, std::size_t last, std::int64_t id) {
        const auto first_not = [&](auto&& before) {
            std::size_t low = first, high = last;
            while (low < high) {
                const std::size_t middle = (low + high) / 2;
                if (before(list[middle]))
                    low = middle + 1;
                else
                    high = middle;
            }
            return low;
        };
        return {first_not([id](std::int64_t each) { return each < id; }), first_not([id](std::int64_t each) { return each <= id; })};
    }
    // From the first to the last of the subscription, whose customers may have others.
    std::pair<std::size_t, std::size_t> around(const Directory& all, std::int64_t subscription) {
        std::vector<std::int64_t> ids;
        all.subscriptions.unpack(ids, 0, all.size);
        const auto first = std::find(ids.begin(), ids.end(), subscription);
        const auto last = std::find(ids.rbegin(), std::make_reverse_iterator(first), subscription).base();
        exact_ = std::all_of(first, last, [&](std::int64_t id) { return id == subscription; });
        return {static_cast<std::size_t>(first - ids.begin()), static_cast<std::size_t>(last - ids.begin())};
    }

    Connection& db_;
    const SegmentInfo& info_;
    std::size_t first_ = 0, last_;
    bool exact_ = true;
};

// Nor is when an event was recorded.
Column recorded_column(Connection& db, const Column& sequence) {
    Column column{{CellKind::number}, {}, 0, {}, {}};
    for (const std::int64_t at : sequence.cells) column.cells.push_back(db.integer("SELECT timestamp + delay FROM log WHERE sequence = ?", at));
    return column;
}

// The rows of a part that is held in memory, those of the customer and subscription that are asked for.
std::vector<std::uint32_t> part_rows(const Part& part, const ScanQuestion& question) {
    std::vector<std::uint32_t> rows;
    rows.reserve(question.customer || question.subscription ? 0 : part.rows());
    for (std::uint32_t row = 0; row < part.rows(); ++row) {
        if (question.customer && part.customers()[row] != *question.customer) continue;
        if (question.subscription && part.subscriptions()[row] != *question.subscription) continue;
        rows.push_back(row);
    }
    return rows;
}

std::vector<std::int64_t> at_rows(const std::vector<std::int64_t>& values, const std::vector<std::uint32_t>& rows) {
    std::vector<std::int64_t> found(rows.size());
    std::transform(rows.begin(), rows.end(), found.begin(), [&](std::uint32_t row) { return values[row]; });
    return found;
}

// Their columns.
Column part_column(const Part& part, const std::string& key, const std::vector<std::uint32_t>& rows) {
    if (key == fields::time) return integer_column(at_rows(part.times(), rows));
    if (key == fields::sequence) return integer_column(at_rows(part.sequences(), rows));
    if (key == fields::customer) return interned_column(at_rows(part.customers(), rows));
    if (key == fields::subscription) return interned_column(at_rows(part.subscriptions(), rows));
    const ColumnBuilder* builder = part.find(key);
    return builder == nullptr ? constant_column(CellKind::missing, 0, rows.size()) : builder->finish(rows);
}

// In a part they come one by one.
Owners part_owners(const Part& part, const std::vector<std::uint32_t>& rows) {
    Owners found{at_rows(part.customers(), rows), at_rows(part.subscriptions(), rows), std::vector<std::uint32_t>(rows.size())};
    std::iota(found.ends.begin(), found.ends.end(), 1U);
    return found;
}

void add_owners(Batch& batch, Owners owners, const std::vector<std::string>& keys) {
    batch.owners.rows = owners.ends.size();
    for (const std::string& key : keys) {
        batch.owners.columns.push_back(key == fields::name ? constant_column(CellKind::interned, batch.name, batch.owners.rows)
                                                           : interned_column(owners.ids(key)));
    }
    batch.ends = std::move(owners.ends);
}

// An owner none of whose rows belongs to the answer does not either.
void mask_owners(Batch& batch) {
    if (batch.mask.empty()) return;
    batch.owners.mask.assign(batch.owners.rows, 0);
    std::size_t row = 0;
    for (std::size_t i = 0; i < batch.ends.size(); ++i) {
        for (; row < batch.ends[i]; ++row) batch.owners.mask[i] |= batch.mask[row];
    }
}

template <class Keep>
void mask_out(Batch& batch, const Column& column, Keep&& keep) {
    if (batch.mask.empty()) batch.mask.assign(batch.rows, 1);
    for (std::size_t row = 0; row < batch.rows; ++row) batch.mask[row] &= static_cast<std::uint8_t>(keep(column.cells[row]));
}

// What there are columns for; of a part when that is read in place of the source's segment.
std::vector<std::string> column_keys(const Source& source, const Part* part) {
    std::vector<std::string> keys;
    if (part) {
        for (const auto& [key, builder] : part->columns()) keys.push_back(key);
    } else {
        for (const auto& [key, place] : source.segment->layout->places) keys.push_back(key);
    }
    return keys;
}

// Which rows have a property, from its own column and those below it.
template <class Read>
Column presence_column(const std::string& key, const std::vector<std::string>& columns, std::size_t rows, Read&& read) {
    Column found{std::vector<CellKind>(rows, CellKind::missing), std::vector<std::int64_t>(rows, 1), 0, {}, {}};
    for (const std::string& column : columns) {
        if (!serves(column, key)) continue;
        const Column values = read(column);
        const bool own = column.size() + 1 == key.size();  // an own null is as good as nothing
        for (std::size_t row = 0; row < rows; ++row) {
            const CellKind kind = values.kind(row);
            if (kind != CellKind::missing && !(own && kind == CellKind::null)) found.kinds[row] = CellKind::boolean;
        }
    }
    return found;
}

// Reads one source. No rows may be left; then the columns are not there either.
Batch load(const Reader& reader, const Source& source, const ScanQuestion& question) {
    Batch batch(source.name);
    std::optional<SegmentReader> segment;
    const Part* part = source.part;
    const auto rebuild = [&] {  // what could not take all properties, again from the log, with those asked for
        const std::int64_t first = source.segment ? source.segment->chunk_first : source.first;
        const std::int64_t last = source.segment ? source.segment->chunk_last : source.last;
        read_parts(reader.db, first, last, source.name, batch.rebuilt, question.keys);
        part = &batch.rebuilt.at(source.name);
    };
    const auto lacks = [&](const std::string& key) {
        if (is_presence(key)) return true;
        return key[0] == '.' && !(part ? part->find(key) != nullptr : source.segment->layout->places.contains(key));
    };
    const auto lacking = [&] { return std::any_of(question.keys.begin(), question.keys.end(), lacks); };
    if (part ? part->partial() && lacking() : source.segment->layout->partial && lacking()) rebuild();
    if (part == nullptr) segment.emplace(reader.db, *source.segment, question);
    const auto rows = part ? part_rows(*part, question) : std::vector<std::uint32_t>();
    batch.rows = part ? rows.size() : segment->rows();
    if (batch.rows == 0) return batch;
    const auto column = [&](const std::string& key) { return part ? part_column(*part, key, rows) : segment->column(key); };
    for (const std::string& key : question.keys) {
        if (key == fields::name) {
            batch.columns.push_back(constant_column(CellKind::interned, source.name, batch.rows));
        } else if (key == fields::id) {
            batch.columns.push_back(id_column(reader.db, column(std::string(fields::sequence))));
        } else if (key == fields::recorded) {
            batch.columns.push_back(recorded_column(reader.db, column(std::string(fields::sequence))));
        } else if (is_presence(key)) {
            batch.columns.push_back(presence_column(key, column_keys(source, part), batch.rows, column));
        } else {
            batch.columns.push_back(column(key));
        }
    }
    if (!question.owner_keys.empty()) add_owners(batch, part ? part_owners(*part, rows) : segment->owners(), question.owner_keys);
    if (source.first_time < question.from || source.last_time >= question.to) {
        mask_out(batch, column(std::string(fields::time)),
                 [from = question.from, to = question.to](std::int64_t time) { return (time >= from) & (time < to); });
    }
    if (segment && !segment->exact())
        mask_out(batch, column(std::string(fields::subscription)), [id = *question.subscription](std::int64_t cell) { return cell == id; });
    return batch;
}

// ---- filters over columns ----

// Field names as a person writes them to columns as the scan knows them.
std::string column_key(const std::string& field) {
    if (field.empty()) refuse("field", "is empty");
    for (const std::string_view known :
         {fields::id, fields::name, fields::source, fields::customer, fields::subscription, fields::value, fields::cents, fields::recorded}) {
        if (field == known) return field;
    }
    if (field == "timestamp") return std::string(fields::time);
    constexpr std::string_view prefix = "properties.";
    if (field.starts_with(prefix) && field.size() > prefix.size()) return "." + field.substr(prefix.size());
    return "." + field;
}

// The value of a row as filters and groups see it.
Scalar cell_scalar(const Column& column, std::size_t row) {
    switch (column.kind(row)) {
        case CellKind::missing:
            return {};
        case CellKind::null:
            return {Scalar::Kind::null, false, {}, {}};
        case CellKind::boolean:
            return {Scalar::Kind::boolean, column.cells[row] != 0, {}, {}};
        case CellKind::number:
            return {Scalar::Kind::number, false, Decimal::scaled(column.cells[row], column.scale), {}};
        case CellKind::wide:
            return {Scalar::Kind::number, false, from_file("columns", [&] { return Decimal(column.word(row)); }), {}};
        case CellKind::text:
            return {Scalar::Kind::text, false, {}, column.word(row)};
        case CellKind::json:
            return {Scalar::Kind::json, false, {}, column.word(row)};
        default:
            damaged("columns");
    }
}

// Times are compared as microseconds.
Filter in_micros(Filter filter) {
    const auto convert = [&](json& value) {
        try {
            if (value.is_string())
                value = Timestamp::parse(value.get_ref<const std::string&>()).micros();
            else if (value.is_number())
                value = Timestamp::from_unix(Decimal::from_json(value)).micros();
        } catch (const Error& error) {
            refuse(filter.field + "." + std::string(operator_name(filter.op)), error.reason());
        }
    };
    if (!filter.value.is_array())
        convert(filter.value);
    else
        for (json& value : filter.value) convert(value);
    return filter;
}

// A filter with its fields found among a scan's columns and its values prepared.
class Condition {
public:
    Condition(const Filter& filter, ScanQuestion& question, const FilterRules& rules = {}) : kind_(filter.kind) {
        if (kind_ != Filter::Kind::clause) {
            for (const Filter& part : filter.parts) parts_.emplace_back(part, question, rules);
            return;
        }
        const std::string key = column_key(filter.field);
        column_ = question.key(filter.op == Operator::exists ? presence_key(key) : key);
        coercion_ = key[0] == '.' ? rules.properties : rules.fields;
        if (key == fields::time) seconds_ = rules.seconds;
        if (key == fields::recorded) coercion_ = nullptr;
        clause_ = make_clause(fields::is_moment(key) && !seconds_ ? in_micros(filter) : filter);
    }

    // Clears the mask of rows that do not meet the condition.
    void apply(Connection& db, Batch& batch) const {
        if (kind_ == Filter::Kind::all && parts_.empty()) return;
        Mask met = rows(db, batch);
        if (batch.mask.empty())
            batch.mask = std::move(met);
        else
            std::transform(met.begin(), met.end(), batch.mask.begin(), batch.mask.begin(), std::bit_and<std::uint8_t>());
    }

private:
    using Mask = std::vector<std::uint8_t>;

    Mask rows(Connection& db, const Batch& batch) const {
        if (kind_ == Filter::Kind::clause) return clause_rows(db, batch.columns[column_], batch.rows);
        Mask met(batch.rows, kind_ == Filter::Kind::all ? 1 : 0);
        for (const Condition& part : parts_) {
            const Mask one = part.rows(db, batch);
            if (kind_ == Filter::Kind::all)
                std::transform(one.begin(), one.end(), met.begin(), met.begin(), std::bit_and<std::uint8_t>());
            else
                std::transform(one.begin(), one.end(), met.begin(), met.begin(), std::bit_or<std::uint8_t>());
        }
        return met;
    }

    bool holds(Scalar value) const {
        if (seconds_) value.number = Decimal::scaled(value.number.to_int64().value(), 6).round(0, *seconds_);
        return coercion_ ? meets(*coercion_, clause_, value) : clause_.holds(value);
    }

    // Every distinct text is looked at once; a row then costs one table access.
    Mask clause_rows(Connection& db, const Column& column, std::size_t count) const {
        const auto found = coercion_ || seconds_ ? std::nullopt : clause_.bound(column.scale);
        const bool bounded = found.has_value();
        const NumberBound bound = found.value_or(NumberBound());
        Mask met(count);
        if (bounded && column.all(CellKind::number)) {
            std::transform(column.cells.begin(), column.cells.end(), met.begin(), [bound](std::int64_t cell) { return bound.holds(cell); });
            return met;
        }
        std::unordered_map<std::int64_t, bool> interned;
        std::vector<std::int8_t> words(column.words.size(), -1);
        for (std::size_t row = 0; row < count; ++row) {
            const CellKind kind = column.kind(row);
            if (kind == CellKind::text) {
                std::int8_t& known = words[static_cast<std::size_t>(column.cells[row])];
                if (known < 0) known = holds(cell_scalar(column, row)) ? 1 : 0;
                met[row] = static_cast<std::uint8_t>(known);
            } else if (kind == CellKind::number && bounded) {
                met[row] = bound.holds(column.cells[row]);
            } else if (kind == CellKind::interned) {
                const auto [known, fresh] = interned.try_emplace(column.cells[row]);
                if (fresh) {
                    const std::string text = text_of(db, column.cells[row]);
                    known->second = holds({Scalar::Kind::text, false, {}, text});
                }
                met[row] = known->second;
            } else {
                met[row] = holds(cell_scalar(column, row)) ? 1 : 0;
            }
        }
        return met;
    }

    Filter::Kind kind_;
    std::vector<Condition> parts_{};
    std::size_t column_ = 0;
    const Coercion* coercion_ = nullptr;
    std::optional<Rounding> seconds_{};
    Clause clause_{};
};

// Bytes of the file that hold something.
std::int64_t used_bytes(Connection& db) {
    return (db.integer("PRAGMA page_count") - db.integer("PRAGMA freelist_count")) * db.integer("PRAGMA page_size");
}

// ---- retention: whole chunks, the oldest first ----

struct ChunkInfo {
    std::int64_t id = 0, first = 0, last = 0, recorded = 0;
};

std::vector<ChunkInfo> all_chunks(Connection& db) {
    std::vector<ChunkInfo> chunks;
    const Prepared row = db.prepared("SELECT id, first, last, recorded FROM chunks ORDER BY first");
    while (row.row()) chunks.push_back({row.integer(0), row.integer(1), row.integer(2), row.integer(3)});
    return chunks;
}

void drop_segments(Connection& db, std::int64_t chunk) {
    db.prepared(
          "DELETE FROM columns WHERE id IN (SELECT c.id FROM segments s JOIN columns c ON c.id >= s.id * ?1 AND c.id < (s.id + 1) * ?1 WHERE s.chunk "
          "= ?2)")
        .run(max_columns, chunk);
    db.prepared("DELETE FROM segments WHERE chunk = ?").run(chunk);
    db.prepared("DELETE FROM chunks WHERE id = ?").run(chunk);
}

// Takes the chunk out of every answer; its rows are deleted later. Inside a transaction. False when another process was first.
bool prune_chunk(Connection& db, const ChunkInfo& chunk) {
    if (meta(db, "pruned") != chunk.first) return false;
    drop_segments(db, chunk.id);
    db.prepared("UPDATE runs SET state = 'dead' WHERE state = 'live' AND last <= ?").run(chunk.last);
    set_meta(db, "pruned", chunk.last);
    changed(db);
    return true;
}

// Rows of pruned chunks, a few at a time. How many were deleted.
std::int64_t delete_pruned(Connection& db) {
    constexpr std::int64_t step = 4096;
    const std::int64_t first = db.integer("SELECT sequence FROM log ORDER BY sequence LIMIT 1");
    if (first == 0) return 0;
    db.prepared("DELETE FROM log WHERE sequence < ? AND sequence <= (SELECT value FROM meta WHERE key = 'pruned')").run(first + step);
    return db.changes();
}

// Everything that can be made again from the log. Inside a transaction.
void drop_derived(Connection& db) {
    for (const char* sql :
         {"DELETE FROM columns", "DELETE FROM segments", "DELETE FROM chunks", "DELETE FROM layouts", "DELETE FROM run_blocks", "DELETE FROM runs"}) {
        db.db.exec(sql);
    }
    set_meta(db, "sealed", meta(db, "pruned"));
    changed(db);
}

// ---- checking: the derived against the log ----

// What a sealed chunk holds against what the log would give now.
void verify_chunk(Connection& db, const ChunkInfo& info, std::vector<std::string>& problems) {
    const std::string where = "chunk " + std::to_string(info.id);
    const Chunk expected = make_chunk(db, info.first, info.last);
    std::size_t at = 0;
    const Prepared segment = db.prepared(
        "SELECT s.id, s.name, s.rows, s.first_time, s.last_time, l.keys FROM segments s JOIN layouts l ON l.id = s.layout WHERE s.chunk = ? ORDER BY "
        "s.id");
    segment.bind(info.id);
    bool more = segment.row();
    for (; more && at < expected.segments.size(); ++at, more = segment.row()) {
        const Segment& want = expected.segments[at];
        const bool head = segment.integer(1) == want.name && segment.integer(2) == want.rows && segment.integer(3) == want.first_time &&
                          segment.integer(4) == want.last_time && segment.text(5) == json(want.keys).dump();
        if (!head) problems.push_back(where + ": segment " + std::to_string(segment.integer(0)) + " differs from the log");
        for (std::size_t i = 0; head && i < want.columns.size(); ++i) {
            const Prepared column = db.prepared("SELECT data, hash FROM columns WHERE id = ?");
            column.bind(segment.integer(0) * max_columns + static_cast<std::int64_t>(i));
            const std::string_view bytes(reinterpret_cast<const char*>(want.columns[i].data()), want.columns[i].size());
            const bool same = column.row() && checked_blob(column, 0, 1, "columns") == bytes;
            if (!same) problems.push_back(where + ": column " + want.keys[i] + " differs from the log");
        }
    }
    if (more || at != expected.segments.size()) problems.push_back(where + ": has not the segments the log gives");
}

// Whether the filters of a run are those of its entries.
void verify_filters(Connection& db, const Run& run, std::vector<std::string>& problems) {
    for (std::size_t block = 0; block < run.blocks(); ++block) {
        std::vector<RunEntry> entries;
        read_block(db, run, block, 0, ~std::uint64_t{0}, [&](const RunEntry& entry) { entries.push_back(entry); });
        const Block expected = make_block(run, entries);
        const Prepared row = db.prepared("SELECT filter, filter_hash FROM run_blocks WHERE id = ?");
        row.bind(run.block_id(block));
        const std::string_view bytes(reinterpret_cast<const char*>(expected.filter.data()), expected.filter.size());
        if (!row.row() || checked_blob(row, 0, 1, "run_blocks.filter") != bytes)
            problems.push_back("run " + std::to_string(run.id) + ": a filter does not match its entries");
    }
}

// Whether every id of the sealed log is in the runs, where it belongs.
void verify_ids(Connection& db, std::vector<std::string>& problems) {
    const std::vector<Run> runs = live_runs(db);
    for (const Run& run : runs) verify_filters(db, run, problems);
    const Prepared row = db.prepared(
        "SELECT sequence, id FROM log WHERE sequence > (SELECT value FROM meta WHERE key = 'pruned') AND sequence <= (SELECT value FROM meta WHERE "
        "key = 'sealed')");
    while (row.row()) {
        const std::int64_t sequence = row.integer(0);
        const std::uint64_t hash = hash_bytes(row.text(1)) >> (64 - hash_bits);
        const auto run = std::find_if(runs.begin(), runs.end(), [sequence](const Run& one) { return one.first < sequence && sequence <= one.last; });
        bool found = false;
        if (run != runs.end())
            read_block(db, *run, run->block_of(hash), hash, hash, [&](const RunEntry& entry) { found = found || entry.sequence == sequence; });
        if (!found) problems.push_back("the id of event " + std::to_string(sequence) + " is not in the index");
        if (problems.size() > 100) return;
    }
}

// Runs `check`; what cannot even be read is a problem like any other.
template <class Check>
void note_damage(const std::string& where, std::vector<std::string>& problems, Check&& check) {
    try {
        check();
    } catch (const Error& error) {
        problems.push_back(where + ": " + error.what());
    } catch (const SQLite::Exception& fault) {
        if (fault.getErrorCode() != SQLITE_CORRUPT) throw;
        problems.push_back(where + ": " + fault.what());
    }
}

void verify_database(Connection& db, std::vector<std::string>& problems) {
    const Prepared check = db.prepared("PRAGMA integrity_check(20)");
    while (check.row()) {
        if (check.text(0) != "ok") problems.emplace_back(check.text(0));
    }
    const std::int64_t rows = db.integer("SELECT count(*) FROM log WHERE sequence > (SELECT value FROM meta WHERE key = 'pruned')");
    if (rows != last_sequence(db) - meta(db, "pruned"))
        problems.emplace_back("the log has gaps: " + std::to_string(rows) + " rows of " + std::to_string(last_sequence(db) - meta(db, "pruned")));
    std::int64_t through = meta(db, "pruned");
    for (const ChunkInfo& chunk : all_chunks(db)) {
        if (chunk.first != through) problems.push_back("chunk " + std::to_string(chunk.id) + " does not follow the one before");
        note_damage("chunk " + std::to_string(chunk.id), problems, [&] { verify_chunk(db, chunk, problems); });
        through = chunk.last;
    }
    if (through != meta(db, "sealed")) problems.emplace_back("the chunks do not reach as far as is sealed");
    note_damage("the index of ids", problems, [&] { verify_ids(db, problems); });
}

// ---- books: kept as the JSON they were made from ----

struct StoredBook {
    std::string vendor{}, source{};
    Timestamp effective{};
};

// What `meta.books` says is never said again, also not after a rollback: whoever holds books in memory sees by it that they are others now.
std::int64_t books_mark(Connection& db) { return meta(db, "books"); }

// Removes the version of that moment, or all, with the metrics that came with them. How many there were. Inside a transaction.
std::int64_t drop_books(Connection& db, std::string_view vendor, std::string_view code, std::optional<Timestamp> effective) {
    const std::int64_t from = effective ? effective->micros() : std::numeric_limits<std::int64_t>::min();
    const std::int64_t to = effective ? effective->micros() : std::numeric_limits<std::int64_t>::max();
    db.prepared("DELETE FROM metrics WHERE book IN (SELECT id FROM books WHERE vendor = ?1 AND code = ?2 AND effective BETWEEN ?3 AND ?4)")
        .run(vendor, code, from, to);
    db.prepared("DELETE FROM books WHERE vendor = ?1 AND code = ?2 AND effective BETWEEN ?3 AND ?4").run(vendor, code, from, to);
    const std::int64_t dropped = db.changes();
    db.prepared("UPDATE meta SET value = random() WHERE key = 'books'").run();
    return dropped;
}

// In place of the version of the same moment. Answers its id. Inside a transaction.
std::int64_t put_book(Connection& db, std::string_view vendor, std::string_view code, Timestamp effective, std::string_view source) {
    drop_books(db, vendor, code, effective);
    db.prepared("INSERT INTO books(vendor, code, effective, source) VALUES(?, ?, ?, ?)").run(vendor, code, effective.micros(), source);
    return db.last_rowid();
}

std::vector<StoredBook> stored_books(Connection& db) {
    std::vector<StoredBook> books;
    const Prepared row = db.prepared("SELECT vendor, source, effective FROM books ORDER BY vendor, code, effective");
    while (row.row()) {
        const Timestamp effective(checked_time(row.integer(2), "books.effective"));
        books.push_back({std::string(row.text(0)), std::string(row.text(1)), effective});
    }
    return books;
}

// ---- the store: who may write when, and what is done behind the caller's back ----

// A write waiting for its commit. The function may run twice: alone, after the commit it shared has failed.
struct Job {
    const std::function<void(Connection&)>& run;
    std::exception_ptr error{};
    bool done = false;
};

struct StoreOptions {
    std::string path{};
    bool sync_full = true;
    std::chrono::milliseconds busy_timeout{};
    std::int64_t max_bytes = 0;
    std::size_t cache_bytes = 0, index_bytes = 0, page_bytes = 0;
    std::int64_t chunk_events = 0;
    bool background = true;
    std::function<Timestamp()> clock{};
    std::vector<const char*> schemas{};  // tables of other sections, made together with the log's
};

class Store {
public:
    explicit Store(StoreOptions options) : options_(std::move(options)), in_memory_(options_.path == ":memory:"), memory_(options_.index_bytes) {
        try {
            writer_ = open();
            if (!in_memory_) reader_ = open();
        } catch (const SQLite::Exception& fault) {
            rethrow(fault, options_.path);
        }
        if (!in_memory_ && options_.background) worker_ = std::thread([this] { work(); });
    }
    Store(const Store&) = delete;
    Store& operator=(const Store&) = delete;
    ~Store() {
        {
            const std::lock_guard lock(work_mutex_);
            stopping_ = true;
        }
        work_wanted_.notify_all();
        if (worker_.joinable()) worker_.join();
    }

    // Runs `f(Connection&)` in a write transaction; what it throws rolls the transaction back. Concurrent calls share one commit.
    template <class F>
    auto write(F&& f) {
        using Result = std::invoke_result_t<F&, Connection&>;
        if constexpr (std::is_void_v<Result>) {
            commit([&f](Connection& db) { f(db); });
        } else {
            std::optional<Result> result;
            commit([&](Connection& db) { result = f(db); });
            return std::move(*result);
        }
    }

    // Runs `f(Reader&)`, or `f(Connection&)`, on one snapshot.
    template <class F>
    auto read(F&& f) const {
        const std::lock_guard lock(in_memory_ ? writer_mutex_ : reader_mutex_);
        Reader reader{in_memory_ ? *writer_ : *reader_, scanned_};
        try {
            const Transaction snapshot(reader.db, "BEGIN");
            return f(reader);
        } catch (const SQLite::Exception& fault) {
            rethrow(fault, options_.path);
        }
    }

    // As read(), for questions over columns.
    template <class F>
    auto scan(F&& f) const {
        return read([&f](const Reader& reader) {
            reader.memory.refresh(reader.db);
            return f(reader);
        });
    }

    void append(Drafts& drafts, Timestamp now) {
        append_by([&](Connection& db) { LogAppend(db, memory_, drafts, now).run(); });
    }

    // As above, each event through a gate: `with_gate(db, columns, rollbacks, append)` makes one and calls append(gate). The columns are those of
    // the log as this transaction sees it, not refreshed yet; what is known of the log from before another number of rollbacks is not so.
    template <class WithGate>
    void append(Drafts& drafts, Timestamp now, WithGate&& with_gate) {
        append_by([&](Connection& db) {
            with_gate(db, written_, memory_.rollbacks, [&](Gate& gate) { LogAppend(db, memory_, drafts, now, &gate).run(); });
        });
    }

    // The sequence of an id, 0 when it is not in the log.
    std::int64_t locate(std::string_view id) {
        const std::lock_guard lock(writer_mutex_);
        try {
            const Transaction snapshot(*writer_, "BEGIN");
            last_sequence(*writer_);  // a transaction sees what it sees from its first reading on
            memory_.begun(*writer_);
            memory_.refresh(*writer_);
            memory_.ended(*writer_);
            const PackedId packed = pack_id(id);
            return memory_.ids.find(*writer_, packed, id_hash(packed));
        } catch (const SQLite::Exception& fault) {
            rethrow(fault, options_.path);
        }
    }

    // Drops the oldest chunks as far as `may_go(chunk)` allows. How many events went.
    template <class MayGo>
    std::int64_t prune(MayGo&& may_go) {
        std::int64_t events = 0;
        for (const ChunkInfo& chunk : read([](Connection& db) { return all_chunks(db); })) {
            const bool gone = write([&](Connection& db) {
                memory_.touch();
                return may_go(db, chunk) && prune_chunk(db, chunk);
            });
            if (!gone) break;
            events += chunk.last - chunk.first;
            delete_rest();  // now, because `may_go` may look at how much there is
        }
        delete_rest();  // also what an earlier call was interrupted in
        return events;
    }

    // Rows and runs that no answer needs.
    void delete_rest() {
        while (write(delete_pruned) > 0) {
        }
        drop_dead_runs();
    }

    // Gives free pages back to the disk, a few at a time; `progress(done, total)` in pages.
    void compact(const std::function<void(std::int64_t, std::int64_t)>& progress) {
        const std::int64_t total = write([](Connection& db) { return db.integer("PRAGMA freelist_count"); });
        for (std::int64_t left = total; left > 0;) {
            const std::int64_t now = write([](Connection& db) {
                db.prepared("PRAGMA incremental_vacuum(512)").run();
                return db.integer("PRAGMA freelist_count");
            });
            if (progress) progress(total - now, total);
            if (now >= left) break;
            left = now;
        }
        const std::lock_guard lock(writer_mutex_);
        try {
            writer_->prepared("PRAGMA wal_checkpoint(TRUNCATE)").run();
        } catch (const SQLite::Exception& fault) {
            rethrow(fault, options_.path);
        }
    }

    std::vector<std::string> verify(bool repair) {
        std::vector<std::string> problems;
        read([&](Connection& db) { verify_database(db, problems); });
        if (!repair || problems.empty()) return problems;
        write([this](Connection& db) {
            drop_derived(db);
            memory_.touch();
        });
        housekeep();
        return problems;
    }

    // Seals what is full and merges what has become many, now.
    void housekeep() {
        const std::lock_guard lock(housekeeping_mutex_);
        try {
            if (!keeper_ && !in_memory_) keeper_ = open();
            while (!stopping_ && seal_one()) {
            }
            while (!stopping_ && merge_one()) {
            }
        } catch (const SQLite::Exception& fault) {
            rethrow(fault, options_.path);
        }
    }

private:
    template <class Append>
    void append_by(Append&& append) {
        const std::int64_t unsealed = write([&](Connection& db) {
            append(db);
            return memory_.last - memory_.ids.sealed();
        });
        if (unsealed >= options_.chunk_events) wake();
    }
    std::unique_ptr<Connection> open() const;
    void prepare(Connection& db) const;
    void write_ahead(Connection& db) const;
    void migrate(Connection& db) const;
    void commit(const std::function<void(Connection&)>& run);
    void run_group(std::span<Job* const> group);
    void run_transaction(std::span<Job* const> group, bool& begun);
    void wake();
    void work();
    void tidy() noexcept;
    bool seal_one();
    bool merge_one();
    bool write_merged(const Run& merged, std::int64_t owner, std::span<const Run> sources);
    void drop_dead_runs();
    // Reading for housekeeping: by its own connection, so that nobody waits.
    template <class F>
    auto keep(F&& f) const {
        if (in_memory_) return read([&](Connection& db) { return f(db); });
        const Transaction snapshot(*keeper_, "BEGIN");
        return f(*keeper_);
    }

    StoreOptions options_;
    bool in_memory_;
    mutable std::mutex writer_mutex_, reader_mutex_;
    std::unique_ptr<Connection> writer_, reader_, keeper_;
    LogMemory memory_;  // under writer_mutex_, as what it wrote is
    ScanMemory written_;
    mutable ScanMemory scanned_;  // under the reader's mutex

    std::mutex queue_mutex_;
    std::condition_variable queue_moved_;
    std::deque<Job*> queue_;

    std::mutex housekeeping_mutex_, work_mutex_;
    std::condition_variable work_wanted_;
    bool wanted_ = false;
    std::atomic<bool> stopping_ = false;
    std::thread worker_;
};

// An empty file, readable by the owner alone from its first byte, where there is none. It is opened to append, since another process may have
// made a database of it in between, and by one thread at a time, since closing a file ends all locks that the process has on it.
void make_file(const std::string& path) {
    namespace fs = std::filesystem;
    static std::mutex one_at_a_time;
    const std::lock_guard lock(one_at_a_time);
    std::error_code ignored;
    if (fs::exists(path, ignored)) return;
    std::ofstream(path, std::ios::app).close();
    fs::permissions(path, fs::perms::owner_read | fs::perms::owner_write, ignored);
}

std::unique_ptr<Connection> Store::open() const {
    namespace fs = std::filesystem;
    if (!in_memory_) {
        std::error_code ignored;
        if (fs::is_directory(options_.path, ignored)) throw Error(ErrorCode::io, options_.path, "is a directory, not a file");
        const fs::path parent = fs::path(options_.path).parent_path();
        if (!parent.empty() && !fs::is_directory(parent, ignored)) throw Error(ErrorCode::io, options_.path, "its directory does not exist");
        make_file(options_.path);
    }
    auto db = std::make_unique<Connection>(options_.path, options_.busy_timeout);
    if (sqlite3_db_readonly(db->db.getHandle(), "main") == 1) throw Error(ErrorCode::read_only, options_.path, "cannot be written");
    prepare(*db);
    return db;
}

void Store::prepare(Connection& db) const {
    const auto found = [&](const char* pragma) { return db.db.execAndGet(pragma).getInt64(); };
    const bool fresh = found("SELECT count(*) FROM sqlite_master") == 0;
    if (const auto owner = found("PRAGMA application_id"); owner != application_id && !(fresh && owner == 0)) {
        throw Error(ErrorCode::not_a_database, options_.path, "is another program's database; it was left as it is");
    }
    if (const auto version = found("PRAGMA user_version"); version > schema_version) {
        throw Error(ErrorCode::newer_schema, options_.path,
                    "was written by a newer release (schema " + std::to_string(version) + ", known are up to " + std::to_string(schema_version) +
                        "); it was left as it is");
    }
    if (fresh) db.db.exec("PRAGMA page_size = " + std::to_string(options_.page_bytes) + "; PRAGMA auto_vacuum = INCREMENTAL");
    write_ahead(db);
    db.db.exec(options_.sync_full ? "PRAGMA synchronous = FULL" : "PRAGMA synchronous = NORMAL");
    db.db.exec("PRAGMA temp_store = MEMORY; PRAGMA journal_size_limit = 4194304");
    db.db.exec("PRAGMA wal_autocheckpoint = " + std::to_string(4'096'000 / found("PRAGMA page_size")));
    db.db.exec("PRAGMA cache_size = -" + std::to_string(options_.cache_bytes / 1024));
    if (options_.max_bytes > 0) {
        db.db.exec("PRAGMA max_page_count = " + std::to_string(std::max<std::int64_t>(1, options_.max_bytes / found("PRAGMA page_size"))));
    }
    if (!fresh && found("PRAGMA user_version") >= schema_version) return;
    Transaction transaction(db, "BEGIN IMMEDIATE");
    if (found("SELECT count(*) FROM sqlite_master") == 0) {  // else another process was first
        db.db.exec(log_schema);
        for (const char* schema : options_.schemas) db.db.exec(schema);
        db.db.exec("PRAGMA application_id = " + std::to_string(application_id));
        db.db.exec("PRAGMA user_version = " + std::to_string(schema_version));
    }
    migrate(db);
    transaction.commit();
}

// A file that several make at once is not in WAL mode yet, and SQLite does not wait for a lock that it needs while it reads: it answers busy
// at once, lest two wait for each other.
void Store::write_ahead(Connection& db) const {
    const auto deadline = std::chrono::steady_clock::now() + countable(options_.busy_timeout);
    for (;;) {
        const int code = db.db.tryExec("PRAGMA journal_mode = WAL");
        if (code == SQLITE_OK) return;
        if (code != SQLITE_BUSY || std::chrono::steady_clock::now() >= deadline) throw SQLite::Exception(db.db.getHandle(), code);
        std::this_thread::sleep_for(std::chrono::milliseconds(2));
    }
}

// Inside a transaction.
void Store::migrate(Connection& db) const {
    for (auto version = db.db.execAndGet("PRAGMA user_version").getInt64(); version < schema_version; ++version) {
        if (version < 1) throw Error(ErrorCode::corrupt, options_.path, "says no version of its schema");
        db.db.exec(migrations[version - 1]);
        db.db.exec("PRAGMA user_version = " + std::to_string(version + 1));
    }
}

// Group commit: the first in the queue commits for all who wait behind it.
void Store::commit(const std::function<void(Connection&)>& run) {
    Job job{run};
    std::unique_lock lock(queue_mutex_);
    queue_.push_back(&job);
    queue_moved_.wait(lock, [&] { return job.done || queue_.front() == &job; });
    if (!job.done) {
        const std::vector<Job*> group(queue_.begin(), queue_.end());
        lock.unlock();
        run_group(group);
        lock.lock();
        for (Job* member : group) member->done = true;
        queue_.erase(queue_.begin(), queue_.begin() + static_cast<std::ptrdiff_t>(group.size()));
        queue_moved_.notify_all();
    }
    lock.unlock();
    if (job.error) std::rethrow_exception(job.error);
}

// What is being handled, as an object that no other thread has.
std::exception_ptr own_exception() {
    try {
        throw;
    } catch (const Error& error) {
        return std::make_exception_ptr(error);
    } catch (...) {
        return std::current_exception();
    }
}

void Store::run_group(std::span<Job* const> group) {
    const std::lock_guard lock(writer_mutex_);
    // False when the jobs have to be tried one by one.
    const auto attempt = [this](std::span<Job* const> jobs) {
        bool begun = false;
        try {
            run_transaction(jobs, begun);
            return true;
        } catch (...) {
            memory_.forget();
            written_ = {};
            if (begun && jobs.size() > 1) return false;
            for (Job* job : jobs) job->error = own_exception();  // where a lock was not to be had, each would wait as long again
            return true;
        }
    };
    if (attempt(group)) return;
    for (std::size_t i = 0; i < group.size(); ++i) attempt(group.subspan(i, 1));
}

void Store::run_transaction(std::span<Job* const> group, bool& begun) {
    try {
        Transaction transaction(*writer_, "BEGIN IMMEDIATE");
        begun = true;
        memory_.begun(*writer_);
        for (Job* job : group) job->run(*writer_);
        transaction.commit();
        memory_.ended(*writer_);
    } catch (const SQLite::Exception& fault) {
        rethrow(fault, options_.path);
    }
}

void Store::wake() {
    if (!worker_.joinable()) return tidy();
    {
        const std::lock_guard lock(work_mutex_);
        wanted_ = true;
    }
    work_wanted_.notify_one();
}

// The background thread.
void Store::work() {
    for (;;) {
        {
            std::unique_lock lock(work_mutex_);
            work_wanted_.wait(lock, [this] { return wanted_ || stopping_; });
            if (stopping_) return;
            wanted_ = false;
        }
        tidy();
    }
}

// What fails here is tried again at the next full chunk: sealing makes questions fast, it holds nothing that the log does not.
void Store::tidy() noexcept {
    try {
        housekeep();
    } catch (const std::exception&) {
    }
}

bool Store::seal_one() {
    const Chunk chunk = keep([this](Connection& db) {
        const std::int64_t first = meta(db, "sealed"), last = first + options_.chunk_events;
        return last <= last_sequence(db) ? make_chunk(db, first, last) : Chunk{};
    });
    if (chunk.last == 0) return false;
    return write([&](Connection& db) {
        memory_.touch();
        return write_chunk(db, chunk);
    });
}

// Merges the oldest sixteen runs of some level that has as many; says whether there may be more to do.
bool Store::merge_one() {
    drop_dead_runs();
    const std::vector<Run> runs = keep(live_runs);
    for (int level = 0; level < max_level; ++level) {
        std::vector<Run> sources;
        for (const Run& run : runs) {
            if (run.level == level && sources.size() < merge_width) sources.push_back(run);
        }
        if (sources.size() < merge_width) continue;
        Run merged{0, level + 1, sources.front().first, sources.back().last, 0, {}};
        merged.bits = run_bits(static_cast<std::size_t>(merged.last - merged.first));
        const std::int64_t owner = write([&](Connection& db) {
            db.prepared("INSERT INTO runs(level, first, last, bits, state, owner, touched) VALUES(?, ?, ?, ?, 'building', random(), ?)")
                .run(merged.level, merged.first, merged.last, merged.bits, options_.clock().micros());
            merged.id = db.last_rowid();
            return db.integer("SELECT owner FROM runs WHERE id = ?", merged.id);
        });
        return write_merged(merged, owner, sources);
    }
    return false;
}

// False when it is another process's now: that takes a run long in the making for abandoned, for instance after this one slept, deletes it, and
// may give its id to a run of its own; or it has taken the sources away.
bool Store::write_merged(const Run& merged, std::int64_t owner, std::span<const Run> sources) {
    constexpr std::size_t step = 32;  // blocks of a transaction
    const std::uint64_t width = std::uint64_t{1} << (hash_bits - merged.bits);
    for (std::size_t block = 0; block < merged.blocks(); block += step) {
        const std::size_t end = std::min(block + step, merged.blocks());
        const std::uint64_t low = block * width, high = end * width - 1;
        bool whole = true;
        std::vector<RunEntry> entries = keep([&](Connection& db) {
            std::vector<RunEntry> gathered;
            const std::int64_t pruned = meta(db, "pruned");
            for (const Run& source : sources) {
                whole = whole && db.integer("SELECT count(*) FROM runs WHERE id = ? AND first = ? AND state = 'live'", source.id, source.first) == 1;
                if (!whole) break;
                for (std::size_t from = source.block_of(low); from <= source.block_of(high); ++from) {
                    read_block(db, source, from, low, high, [&](const RunEntry& entry) {
                        if (entry.sequence > pruned) gathered.push_back(entry);
                    });
                }
            }
            return gathered;
        });
        if (!whole) return false;
        std::sort(entries.begin(), entries.end());
        const std::vector<Block> blocks = make_blocks(merged, block, end, entries);
        const bool mine = write([&](Connection& db) {
            db.prepared("UPDATE runs SET touched = ? WHERE id = ? AND owner = ? AND state = 'building'")
                .run(options_.clock().micros(), merged.id, owner);
            if (db.changes() == 0) return false;
            write_blocks(db, merged, block, blocks);
            return true;
        });
        if (!mine) return false;
    }
    return write([&](Connection& db) {
        for (const Run& source : sources) {
            if (db.integer("SELECT count(*) FROM runs WHERE id = ? AND first = ? AND state = 'live'", source.id, source.first) == 0) return false;
        }
        db.prepared("UPDATE runs SET state = 'live' WHERE id = ? AND owner = ? AND state = 'building'").run(merged.id, owner);
        if (db.changes() == 0) return false;
        for (const Run& source : sources) db.prepared("UPDATE runs SET state = 'dead' WHERE id = ?").run(source.id);
        changed(db);
        memory_.touch();
        return true;
    });
}

// Blocks of runs that a merge has replaced, or whose making was interrupted, a few at a time.
void Store::drop_dead_runs() {
    constexpr std::int64_t step = 64, patience = 60'000'000;
    for (bool more = true; more;) {
        more = write([&](Connection& db) {
            db.prepared("UPDATE runs SET state = 'dead' WHERE state = 'building' AND touched < ?").run(options_.clock().micros() - patience);
            const std::int64_t id = db.integer("SELECT id FROM runs WHERE state = 'dead' LIMIT 1");
            if (id == 0) return false;
            db.prepared("DELETE FROM run_blocks WHERE id IN (SELECT id FROM run_blocks WHERE id >= ? AND id < ? LIMIT ?)")
                .run(id * max_blocks, (id + 1) * max_blocks, step);
            if (db.changes() == 0) db.prepared("DELETE FROM runs WHERE id = ?").run(id);
            return true;
        });
    }
}

}  // namespace

// =============================================================================================
// 5 reading: find, list, names and sources, rates. Uses 1-4.
// =============================================================================================

namespace {

void check_period(const Period& period) {
    if (period.from >= period.to) refuse("period", "must end after it begins");
}

void check_paging(std::int64_t limit, std::int64_t offset) {
    const auto most = static_cast<std::int64_t>(limits::page_events);
    if (limit < 1 || limit > most) refuse("limit", "must be from 1 to " + std::to_string(most));
    if (offset < 0) refuse("offset", "must not be negative");
}

void check_question(std::string_view field, std::string_view text) {
    if (const char* fault = text_fault(text)) refuse(std::string(field), fault);
}

// An offset or limit as a number of things in memory, also where there is room for less.
std::size_t count_of(std::int64_t things) {
    return static_cast<std::size_t>(std::min<std::int64_t>(things, std::numeric_limits<std::ptrdiff_t>::max() / 2));
}

[[noreturn]] void bad_cursor(const char* reason = "was not made by list()") { throw Error(ErrorCode::bad_cursor, "cursor", reason); }

void check_sort(const std::vector<SortKey>& sort) {
    if (sort.size() > limits::sort_keys) refuse("sort", "has more than " + std::to_string(limits::sort_keys) + " keys");
    for (const SortKey& key : sort) {
        if (key.field.empty()) refuse("sort", "names no field");
        check_question("sort", key.field);
    }
}

void check_list(const ListQuery& query) {
    check_paging(query.limit, query.offset);
    check_period(query.period);
    check_filter(query.filter);
    check_question("customer", query.customer);
    check_question("subscription", query.subscription);
    for (const auto& [field, texts] :
         {std::pair{"names", &query.names}, std::pair{"sources", &query.sources}, std::pair{"ids", &query.ids}, std::pair{"texts", &query.texts}}) {
        for (const std::string& text : *texts) check_question(field, text);
    }
    check_sort(query.sort);
}

// The question's conditions on names and the customer as the scan takes them; nothing when one of them is not in the log at all.
std::optional<ScanQuestion> scan_question(Connection& db, std::span<const std::string> names, const std::string& customer,
                                          const std::string& subscription, const Period& period) {
    ScanQuestion question;
    question.from = period.from.micros();
    question.to = period.to.micros();
    if (!names.empty()) question.names.emplace();
    for (const std::string& name : names) {
        if (const std::int64_t id = text_id(db, name)) question.names->push_back(id);
    }
    if (!customer.empty()) question.customer = text_id(db, customer);
    if (!subscription.empty()) question.subscription = text_id(db, subscription);
    if ((question.names && question.names->empty()) || question.customer == 0 || question.subscription == 0) return std::nullopt;
    return question;
}

// The filter of a list, with what ListQuery spells as a member.
Filter list_filter(const ListQuery& query) {
    if (query.sources.empty()) return query.filter;
    return Filter::all({query.filter, Filter::where("source", Operator::in, query.sources)});
}

// ---- the order of a list ----

// An event's place in time; sequences differ, so that no two are equal.
struct Place {
    std::int64_t time = 0, sequence = 0;
    friend auto operator<=>(const Place&, const Place&) = default;
};

enum class SortKind : std::uint8_t { missing, boolean, time, number, text, json };  // in the order of SortKey

// A value as lists are sorted by it.
template <class Text>
struct SortCell {
    SortKind kind = SortKind::missing;
    std::int64_t integer = 0;  // of a boolean or a time
    Decimal number{};
    Text text{};
};

template <class A, class B>
std::strong_ordering order_of(const SortCell<A>& a, const SortCell<B>& b) {
    if (a.kind != b.kind) return a.kind <=> b.kind;
    switch (a.kind) {
        case SortKind::missing:
            return std::strong_ordering::equal;
        case SortKind::boolean:
        case SortKind::time:
            return a.integer <=> b.integer;
        case SortKind::number:
            return a.number <=> b.number;
        default:
            return std::string_view(a.text).compare(std::string_view(b.text)) <=> 0;
    }
}

// An event's place in a list. `time` stands for the first key where that is the timestamp, so that the usual list compares integers.
struct Rank {
    std::int64_t time = 0;
    std::vector<SortCell<std::string>> cells{};  // of the other keys
    std::int64_t sequence = 0;
    const SortCell<std::string>& cell(std::size_t key) const { return cells[key]; }
};

// The keys of a list, found among a scan's columns.
class ListOrder {
public:
    ListOrder(Connection& db, std::vector<SortKey> sort, ScanQuestion& question) : db_(db), sequence_(question.key(fields::sequence)) {
        if (sort.empty()) sort.push_back({"timestamp", true});
        newest_first_ = last_descends_ = sort.back().descending;
        auto key = sort.begin();
        if (column_key(key->field) == fields::time) {
            newest_first_ = key++->descending;
            time_ = question.key(fields::time);
        }
        for (; key != sort.end(); ++key) {
            const std::string column = column_key(key->field);
            const Source source = column == fields::id ? Source::id : column == fields::time ? Source::time : Source::column;
            keys_.push_back({source, source == Source::id ? sequence_ : question.key(column), key->descending});
        }
    }
    bool by_time() const noexcept { return time_.has_value(); }
    bool newest_first() const noexcept { return newest_first_; }
    std::size_t cells() const noexcept { return keys_.size(); }

    // A row of a batch: its values are read as far as it takes to tell which of two goes first.
    struct Row {
        ListOrder& order;
        const Batch& batch;
        std::size_t row;
        std::int64_t time, sequence;
        SortCell<std::string_view> cell(std::size_t key) const { return order.cell(order.keys_[key], batch, row); }
    };
    Row row(const Batch& batch, std::size_t row) {
        return {*this, batch, row, time_ ? batch.columns[*time_].cells[row] : 0, batch.columns[sequence_].cells[row]};
    }
    Rank rank(const Row& row) const {
        Rank rank{row.time, {}, row.sequence};
        for (std::size_t key = 0; key < keys_.size(); ++key) {
            const auto cell = row.cell(key);
            rank.cells.push_back({cell.kind, cell.integer, cell.number, std::string(cell.text)});
        }
        return rank;
    }
    template <class A>
    bool before(const A& a, const Rank& b) const {
        if (a.time != b.time) return (a.time > b.time) == newest_first_;
        for (std::size_t key = 0; key < keys_.size(); ++key) {
            const auto order = order_of(a.cell(key), b.cells[key]);
            if (order != 0) return (order > 0) == keys_[key].descending;
        }
        return a.sequence != b.sequence && (a.sequence > b.sequence) == last_descends_;
    }

private:
    enum class Source { column, time, id };  // ids are in no column: one is read where the keys before it are equal
    struct Key {
        Source source;
        std::size_t column;
        bool descending;
    };

    SortCell<std::string_view> cell(const Key& key, const Batch& batch, std::size_t row) {
        const Column& column = batch.columns[key.column];
        if (key.source == Source::time) return {SortKind::time, column.cells[row], {}, {}};
        if (key.source == Source::id) return {SortKind::text, 0, {}, id_ = id_at(db_, column.cells[row])};
        if (column.kind(row) == CellKind::interned) return {SortKind::text, 0, {}, interned(column.cells[row])};
        const Scalar value = cell_scalar(column, row);
        switch (value.kind) {
            case Scalar::Kind::boolean:
                return {SortKind::boolean, value.boolean ? 1 : 0, {}, {}};
            case Scalar::Kind::number:
                return {SortKind::number, 0, value.number, {}};
            case Scalar::Kind::text:
                return {SortKind::text, 0, {}, value.text};
            case Scalar::Kind::json:
                return {SortKind::json, 0, {}, value.text};
            default:
                return {};
        }
    }
    std::string_view interned(std::int64_t id) {
        const auto [known, fresh] = texts_.try_emplace(id);
        if (fresh) known->second = text_of(db_, id);
        return known->second;
    }

    Connection& db_;
    std::size_t sequence_;
    std::optional<std::size_t> time_{};
    bool newest_first_, last_descends_;
    std::vector<Key> keys_{};
    std::unordered_map<std::int64_t, std::string> texts_{};
    std::string id_{};
};

// ---- lists ----

// Collects the first `keep` rows in a list's order, after `start` if there is one.
class TopRanks {
    auto before() const {
        return [this](const Rank& a, const Rank& b) { return order_.before(a, b); };
    }
    bool full() const { return heap_.size() >= keep_; }

public:
    TopRanks(const ListOrder& order, std::size_t keep, const std::optional<Rank>& start) : order_(order), keep_(keep), start_(start) {}
    void add(const ListOrder::Row& row) {
        if (start_ && (row.sequence == start_->sequence || order_.before(row, *start_))) return;
        if (full() && !order_.before(row, heap_.front())) return;
        heap_.push_back(order_.rank(row));
        std::push_heap(heap_.begin(), heap_.end(), before());
        if (heap_.size() > keep_) {
            std::pop_heap(heap_.begin(), heap_.end(), before());
            heap_.pop_back();
        }
    }
    // Whether nothing from `first` to `last` (times) can belong to what is kept.
    bool excludes(std::int64_t first, std::int64_t last) const {
        if (!order_.by_time()) return false;
        const bool newest = order_.newest_first();
        if (start_ && (newest ? first > start_->time : last < start_->time)) return true;
        return full() && (newest ? last < heap_.front().time : first > heap_.front().time);
    }
    std::vector<Rank> sorted() && {
        std::sort_heap(heap_.begin(), heap_.end(), before());
        return std::move(heap_);
    }

private:
    const ListOrder& order_;
    std::size_t keep_;
    const std::optional<Rank>& start_;
    std::vector<Rank> heap_{};
};

char lower_ascii(char c) noexcept { return c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c; }

bool contains_folded(std::string_view text, std::string_view part) {
    const auto same = [](char a, char b) { return lower_ascii(a) == lower_ascii(b); };
    return std::search(text.begin(), text.end(), part.begin(), part.end(), same) != text.end();
}

// Leaves only the rows whose properties contain all of the texts.
void search_properties(const Reader& reader, const std::vector<std::string>& texts, std::size_t sequence, Batch& batch) {
    if (texts.empty()) return;
    if (batch.mask.empty()) batch.mask.assign(batch.rows, 1);
    each_row(batch, [&](std::size_t row) {
        const auto event = event_at(reader, batch.columns[sequence].cells[row]);
        const std::string properties = event ? event->properties.dump() : "";
        const bool all = std::all_of(texts.begin(), texts.end(), [&](const std::string& text) { return contains_folded(properties, text); });
        batch.mask[row] = all ? 1 : 0;
    });
}

struct Listing {
    std::vector<Rank> ranks{};
    std::int64_t total = 0;
};

// The ranks of up to `keep` rows that match, in order; of the given rows when the question names ids, else of the whole log.
Listing list_ranks(const Reader& reader, const ListQuery& query, const FilterRules& rules, const std::vector<std::int64_t>* rows, std::size_t keep,
                   const std::optional<Rank>& start) {
    Listing listing;
    auto question = scan_question(reader, query.names, query.customer, query.subscription, query.period);
    if (!question) return listing;
    const Condition condition(list_filter(query), *question, rules);
    const std::size_t sequence = query.texts.empty() ? 0 : question->key(fields::sequence);
    const ScanQuestion counted = *question;  // of what can only be counted, columns to sort by need not be read
    ListOrder order(reader, query.sort, *question);
    if (start && start->cells.size() != order.cells()) bad_cursor();
    Parts parts;
    for (const std::int64_t row : rows ? *rows : std::vector<std::int64_t>()) read_parts(reader, row - 1, row, {}, parts, question->keys);
    std::vector<Source> found = rows ? part_sources(parts, *question) : sources(reader, *question);
    std::sort(found.begin(), found.end(), [newest = order.newest_first()](const Source& a, const Source& b) {
        return newest ? a.last_time > b.last_time : a.first_time < b.first_time;
    });
    TopRanks top(order, keep, start);
    for (const Source& source : found) {
        const bool excluded = top.excludes(source.first_time, source.last_time);
        if (excluded && !query.count) continue;
        Batch batch = load(reader, source, excluded ? counted : *question);
        if (batch.rows == 0) continue;
        condition.apply(reader, batch);
        search_properties(reader, query.texts, sequence, batch);
        listing.total += matching_rows(batch);
        if (excluded) continue;
        each_row(batch, [&](std::size_t row) { top.add(order.row(batch, row)); });
    }
    listing.ranks = std::move(top).sorted();
    return listing;
}

// ---- cursors: the whole question and the last place seen, as base64url of a checksum and JSON ----

constexpr std::string_view base64_digits = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";

std::string to_base64(std::string_view bytes) {
    std::string text;
    std::uint32_t bits = 0;
    int held = 0;
    for (const char c : bytes) {
        bits = bits << 8 | static_cast<unsigned char>(c);
        for (held += 8; held >= 6;) text.push_back(base64_digits[bits >> (held -= 6) & 63]);
    }
    if (held > 0) text.push_back(base64_digits[bits << (6 - held) & 63]);
    return text;
}

std::string from_base64(std::string_view text) {
    std::string bytes;
    std::uint32_t bits = 0;
    int held = 0;
    for (const char c : text) {
        const std::size_t digit = base64_digits.find(c);
        if (digit == std::string_view::npos) bad_cursor();
        bits = bits << 6 | static_cast<std::uint32_t>(digit);
        held += 6;
        if (held >= 8) bytes.push_back(static_cast<char>(bits >> (held -= 8) & 0xFF));
    }
    return bytes;
}

std::string checksum_of(std::string_view text) {
    Bytes bytes;
    put_bytes(bytes, hash_bytes(text), 8);
    return {bytes.begin(), bytes.end()};
}

json cell_json(const SortCell<std::string>& cell) {
    switch (cell.kind) {
        case SortKind::missing:
            return nullptr;
        case SortKind::boolean:
            return cell.integer != 0;
        case SortKind::time:
            return cell.integer;
        case SortKind::number:
            return {{"number", cell.number.to_string()}};
        case SortKind::text:
            return cell.text;
        default:
            return {{"json", cell.text}};
    }
}

SortCell<std::string> cell_from(const json& tree) {
    if (tree.is_null()) return {};
    if (tree.is_boolean()) return {SortKind::boolean, tree.get<bool>() ? 1 : 0, {}, {}};
    if (tree.is_number_integer()) return {SortKind::time, tree.get<std::int64_t>(), {}, {}};
    if (tree.is_string()) return {SortKind::text, 0, {}, tree.get<std::string>()};
    if (tree.contains("number")) return {SortKind::number, 0, Decimal(tree.at("number").get<std::string>()), {}};
    return {SortKind::json, 0, {}, tree.at("json").get<std::string>()};
}

// What must be the same for a cursor to be good.
json question_json(const ListQuery& query) {
    json sort = json::array();
    for (const SortKey& key : query.sort) sort.push_back({key.field, key.descending});
    return {{"customer", query.customer},
            {"subscription", query.subscription},
            {"names", query.names},
            {"sources", query.sources},
            {"ids", query.ids},
            {"texts", query.texts},
            {"from", query.period.from.micros()},
            {"to", query.period.to.micros()},
            {"filter", query.filter.to_json()},
            {"rules", query.rules},
            {"sort", std::move(sort)}};
}

ListQuery question_from(const json& tree) {
    ListQuery query;
    query.customer = tree.at("customer").get<std::string>();
    query.subscription = tree.at("subscription").get<std::string>();
    query.names = tree.at("names").get<std::vector<std::string>>();
    query.sources = tree.at("sources").get<std::vector<std::string>>();
    query.ids = tree.at("ids").get<std::vector<std::string>>();
    query.texts = tree.at("texts").get<std::vector<std::string>>();
    query.period = {Timestamp(tree.at("from").get<std::int64_t>()), Timestamp(tree.at("to").get<std::int64_t>())};
    query.filter = Filter::from_json(tree.at("filter"));
    query.rules = tree.at("rules").get<std::string>();
    for (const json& key : tree.at("sort")) query.sort.push_back({key.at(0).get<std::string>(), key.at(1).get<bool>()});
    return query;
}

Cursor make_cursor(const ListQuery& query, const Rank& last) {
    json cells = json::array();
    for (const auto& cell : last.cells) cells.push_back(cell_json(cell));
    const json tree = {{"question", question_json(query)}, {"limit", query.limit},     {"count", query.count}, {"time", last.time},
                       {"cells", std::move(cells)},        {"sequence", last.sequence}};
    const std::string text = tree.dump();
    return {to_base64(checksum_of(text) + text)};
}

// What a cursor holds, read by `read`; whatever is wrong with it is a bad cursor.
template <class Read>
auto read_cursor(const Cursor& cursor, Read&& read) {
    constexpr std::size_t checksum_bytes = 8;
    const std::string bytes = from_base64(cursor.text);
    const std::string_view text = std::string_view(bytes).substr(std::min(checksum_bytes, bytes.size()));
    if (to_base64(bytes) != cursor.text || !bytes.starts_with(checksum_of(text))) bad_cursor();
    try {
        return read(json::parse(text));
    } catch (const json::exception&) {
        bad_cursor();
    } catch (const Error& error) {
        if (error.code() == ErrorCode::bad_cursor) throw;
        bad_cursor();
    }
}

// The question that the page before answered, to go on after it.
ListQuery cursor_query(const Cursor& cursor) {
    return read_cursor(cursor, [&cursor](const json& tree) {
        ListQuery query = question_from(tree.at("question"));
        query.limit = tree.at("limit").get<std::int64_t>();
        query.count = tree.at("count").get<bool>();
        check_list(query);
        query.after = cursor;
        return query;
    });
}

// Where the page before ended.
std::optional<Rank> list_start(const ListQuery& query) {
    if (!query.after) return std::nullopt;
    return read_cursor(query.after, [&query](const json& tree) {
        if (tree.at("question") != question_json(query)) bad_cursor("belongs to another question");
        Rank rank{tree.at("time").get<std::int64_t>(), {}, tree.at("sequence").get<std::int64_t>()};
        for (const json& cell : tree.at("cells")) rank.cells.push_back(cell_from(cell));
        return std::optional(rank);
    });
}

Page list_page(const Reader& reader, const ListQuery& query, const FilterRules& rules, const std::vector<std::int64_t>* rows) {
    // One more than the page holds tells whether there is a next one.
    const std::size_t offset = count_of(query.offset), limit = count_of(query.limit);
    Listing listing = list_ranks(reader, query, rules, rows, offset + limit + 1, list_start(query));
    Page page;
    if (query.count) page.total = listing.total;
    for (std::size_t i = offset; i < listing.ranks.size() && page.events.size() < limit; ++i) {
        if (auto event = event_at(reader, listing.ranks[i].sequence)) page.events.push_back(std::move(*event));
    }
    if (listing.ranks.size() > offset + limit) page.next = make_cursor(query, listing.ranks[offset + limit - 1]);
    return page;
}

// ---- names ----

// What rows of names tell apart.
struct NameKeys {
    bool names = true, sources = false;
};

using NameCounts = std::map<std::pair<std::int64_t, std::int64_t>, NameInfo>;  // by name and source, as texts.id; 0 for neither

void count_name(NameCounts& counts, std::int64_t name, std::int64_t source, std::int64_t rows, std::int64_t first, std::int64_t last) {
    NameInfo& info = counts.try_emplace({name, source}, NameInfo{{}, {}, 0, Timestamp(first), Timestamp(last)}).first->second;
    info.occurrences += rows;
    info.first_seen = std::min(info.first_seen, Timestamp(first));
    info.last_seen = std::max(info.last_seen, Timestamp(last));
}

NameCounts count_names(const Reader& reader, ScanQuestion question, const Filter& filter, NameKeys keys) {
    NameCounts counts;
    const std::size_t time = question.key(fields::time), sender = keys.sources ? question.key(fields::source) : time;
    const Condition condition(filter, question);
    const bool every_row = !keys.sources && !question.customer && filter.empty();
    for (const Source& source : sources(reader, question)) {
        if (every_row && source.first_time >= question.from && source.last_time < question.to) {
            count_name(counts, source.name, 0, source.rows, source.first_time, source.last_time);
            continue;
        }
        Batch batch = load(reader, source, question);
        if (batch.rows == 0) continue;
        condition.apply(reader, batch);
        each_row(batch, [&](std::size_t row) {
            const std::int64_t at = batch.columns[time].cells[row];
            count_name(counts, keys.names ? source.name : 0, keys.sources ? batch.columns[sender].cells[row] : 0, 1, at, at);
        });
    }
    return counts;
}

std::strong_ordering order_by(const std::string& field, const NameInfo& a, const NameInfo& b) {
    if (field == "occurrences") return a.occurrences <=> b.occurrences;
    if (field == "first_seen") return a.first_seen <=> b.first_seen;
    if (field == "last_seen") return a.last_seen <=> b.last_seen;
    return field == "source" ? a.source <=> b.source : a.name <=> b.name;
}

void check_names(const NamesQuery& query) {
    check_paging(query.limit, query.offset);
    check_period(query.period);
    check_filter(query.filter);
    check_question("customer", query.customer);
    check_question("text", query.text);
    check_sort(query.sort);
    for (const SortKey& key : query.sort) {
        constexpr std::array<std::string_view, 5> known{"name", "source", "occurrences", "first_seen", "last_seen"};
        if (std::find(known.begin(), known.end(), key.field) == known.end()) refuse("sort", "names are not sorted by \"" + key.field + "\"");
    }
}

std::vector<NameInfo> found_names(const Reader& reader, const NamesQuery& query, NameKeys keys) {
    std::vector<NameInfo> found;
    const auto question = scan_question(reader, {}, query.customer, {}, query.period);
    if (!question) return found;
    for (auto& [ids, info] : count_names(reader, *question, query.filter, keys)) {
        info.name = text_of(reader, ids.first);
        info.source = text_of(reader, ids.second);
        const bool listed = keys.names || !info.source.empty();
        if (listed && contains_folded(keys.names ? info.name : info.source, query.text)) found.push_back(std::move(info));
    }
    return found;
}

NameList names_page(const Reader& reader, const NamesQuery& query, NameKeys keys) {
    std::vector<NameInfo> found = found_names(reader, query, keys);
    std::vector<SortKey> sort = query.sort;
    if (sort.empty()) sort = {{"last_seen", true}};
    std::sort(found.begin(), found.end(), [&sort](const NameInfo& a, const NameInfo& b) {
        for (const SortKey& key : sort) {
            if (const auto order = order_by(key.field, a, b); order != 0) return (order > 0) == key.descending;
        }
        return std::tie(a.name, a.source) < std::tie(b.name, b.source);
    });
    const std::size_t begin = std::min(found.size(), count_of(query.offset)), end = std::min(found.size(), begin + count_of(query.limit));
    NameList list{{}, static_cast<std::int64_t>(found.size())};
    std::move(found.begin() + static_cast<std::ptrdiff_t>(begin), found.begin() + static_cast<std::ptrdiff_t>(end), std::back_inserter(list.rows));
    return list;
}

// ---- rates ----

// The events of a period, and of each bin of it.
Monitoring count_windows(const Reader& reader, const Period& period, const BinOptions& options) {
    Monitoring answer;
    answer.period = period;
    const BinGrid grid(period, options);
    if (grid.count() > static_cast<std::int64_t>(limits::aggregate_rows))
        throw Error(ErrorCode::too_large, "bin", "the period has more than " + std::to_string(limits::aggregate_rows) + " windows");
    if (options.bin != Bin::none) {
        for (std::int64_t i = 0; i < grid.count(); ++i) answer.windows.push_back({grid.start(i), 0});
    }
    ScanQuestion question;
    question.from = period.from.micros();
    question.to = period.to.micros();
    const std::size_t time = question.key(fields::time);
    std::int64_t hint = 0;
    for (const Source& source : sources(reader, question)) {
        const Batch batch = load(reader, source, question);
        for (std::size_t row = 0; row < batch.rows; ++row) {
            if (!batch.mask.empty() && !batch.mask[row]) continue;
            ++answer.events;
            if (answer.windows.empty()) continue;
            const Timestamp at(checked_time(batch.columns[time].cells[row], "columns.time"));
            if (!period.contains(at)) damaged("columns.time");  // the segment says that all are
            ++answer.windows[static_cast<std::size_t>(grid.index(at, hint))].events;
        }
    }
    return answer;
}

}  // namespace

// =============================================================================================
// 6 measuring: aggregates over the scan. Uses 1-5.
// =============================================================================================

namespace {

// ---- rules: what a vendor makes of values ----

// What a property counts as where a number is wanted.
struct NumberRules {
    enum class Text : std::uint8_t { none, plain, number };  // texts that are numbers: none, those written -?digits[.digits], or all of Decimal's
    Text text = Text::plain;
    bool zero = false;                         // what is no number counts as 0; else the event takes no part
    bool text_fields_zero = false;             // likewise for an event's name and source alone
    std::optional<std::int64_t> missing = {};  // what a missing one counts as, when not as other things that are no number
    bool not_negative = false;                 // numbers below 0 count as 0, one by one
    std::optional<Rounding> seconds = {};      // times are whole Unix seconds
    std::optional<int> decimals = {};          // finer ones are cut off, one by one
};

// What becomes of a text of no characters, and of a value that is not there.
enum class Blank : std::uint8_t {
    apart,    // "" is a text like others
    missing,  // "" is as good as missing
    text,     // what is missing is ""
    written,  // likewise, and so are lists and objects; null is "null"
};

// To 32 significant digits, more than any vendor keeps.
Decimal exact_share(const Decimal& a, const Decimal& b) { return Decimal::divide_significant(a, b, 32, Rounding::half_even); }

enum class Weighting : std::uint8_t {
    standing,   // what stands, for the time it stands
    pieces,     // likewise, but each piece of time is divided by itself, and a stretch ends with the second (Lago)
    remaining,  // each number for the time that was left from it to the end of the question, in whole seconds
    none,       // a weighted sum is a sum
};

// What a recurring metric makes of the time before the period.
enum class Carrying : std::uint8_t {
    measured,  // it is measured with the period, and each bin shows what stands at its end
    added,     // it is measured alone and added, but not to bins
};

struct Rules {
    std::string_view name{};
    FilterRules filter{};                       // of metrics
    std::optional<FilterRules> asked_filter{};  // of questions, where they differ
    NumberRules numbers{};
    Blank groups = Blank::apart, values = Blank::apart;  // of group_by; of what is counted by unique_count and active_count
    std::optional<Blank> values_in_parts{};              // likewise, in answers with bins or groups
    std::string_view uncounted{};                        // a text that is none of those counted
    bool counts_absent = false;                          // an absent value is one more, too
    bool keeps_absent = false;                           // an absent value is none, but its event takes part
    bool typed_values = false;                           // the text "1" and the number 1 are two values, null is one
    bool words_apart = false;                            // any word but "add" takes one off whenever another stood before it, also a word like it
    bool not_negative = false;                           // no result is below 0; those of buckets neither
    bool latest_not_negative = false;                    // nor is a latest number
    bool multiplied_each = false;                        // a multiplier is for each number, not for the result
    bool whole_seconds = false;                          // both ends of a period are cut to their second
    Weighting weighting = Weighting::standing;
    Carrying carrying = Carrying::measured;
    Decimal (*quotient)(const Decimal&, const Decimal&) = exact_share;  // of averages and weighted sums
    Decimal (*add)(const Decimal&, const Decimal&) = nullptr;           // of sums and averages, by time, then sequence; exactly when absent
    std::optional<RoundTo> weighted_rounding{};
    std::chrono::weekday week_start = std::chrono::Monday;  // of buckets
    MonthEnd month_end = MonthEnd::clamp;  // of months that have a billing anchor; where they run over, its time of day has no meaning
    const Dialect* dialect = nullptr;      // of expressions, where there are any
};

// Keys -> 0, 1, 2, ... in the order they are met. Open addressing; groups, rows of an answer and distinct values are all numbered by it.
class Numbering {
public:
    std::uint32_t number(std::uint64_t key) {
        if ((keys_.size() + 1) * 2 > slots_.size()) grow();
        std::size_t at = place(key);
        for (; slots_[at].number != empty; at = (at + 1) & (slots_.size() - 1)) {
            if (slots_[at].key == key) return slots_[at].number;
        }
        slots_[at] = {key, append(key)};
        return slots_[at].number;
    }
    // For a key that is new, before any call of number().
    std::uint32_t append(std::uint64_t key) {
        keys_.push_back(key);
        return static_cast<std::uint32_t>(keys_.size() - 1);
    }
    const std::vector<std::uint64_t>& keys() const noexcept { return keys_; }

private:
    static constexpr std::uint32_t empty = 0xFFFFFFFF;
    struct Slot {
        std::uint64_t key = 0;
        std::uint32_t number = empty;
    };
    std::size_t place(std::uint64_t key) const noexcept { return static_cast<std::size_t>(key * 0x9E3779B97F4A7C15ULL >> 32) & (slots_.size() - 1); }
    void grow() {
        slots_.assign(std::bit_ceil(std::max<std::size_t>(64, keys_.size() * 4)), Slot());
        for (std::size_t i = 0; i < keys_.size(); ++i) {
            std::size_t at = place(keys_[i]);
            while (slots_[at].number != empty) at = (at + 1) & (slots_.size() - 1);
            slots_[at] = {keys_[i], static_cast<std::uint32_t>(i)};
        }
    }
    std::vector<Slot> slots_;
    std::vector<std::uint64_t> keys_;
};

constexpr std::uint64_t pair_key(std::uint32_t a, std::uint32_t b) noexcept { return std::uint64_t{a} << 32 | b; }

// As Numbering, for pairs of numbers that begin at 0 themselves: found in a table of all pairs while that is small.
class PairNumbering {
public:
    std::uint32_t number(std::uint32_t a, std::uint32_t b) {
        if (a < rows_ && b < width_) {
            const std::uint32_t known = table_[a * width_ + b];
            if (known != empty) return known;
        }
        return add(a, b);
    }
    // Of every row (a, b), in place of a.
    void number(const Table& table, std::vector<std::uint32_t>& a, const std::vector<std::uint32_t>& b) {
        each_row(table, [&, firsts = a.data(), seconds = b.data()](std::size_t row) { firsts[row] = number(firsts[row], seconds[row]); });
    }
    std::size_t size() const noexcept { return numbers_.keys().size(); }
    std::uint32_t first(std::size_t number) const { return static_cast<std::uint32_t>(numbers_.keys()[number] >> 32); }
    std::uint32_t second(std::size_t number) const { return static_cast<std::uint32_t>(numbers_.keys()[number]); }

private:
    static constexpr std::uint32_t empty = 0xFFFFFFFF;
    static constexpr std::size_t most_cells = 1 << 20;
    static std::size_t grown(std::size_t size, std::uint32_t place) { return std::max(size, std::bit_ceil(place + std::size_t{1})); }

    std::uint32_t add(std::uint32_t a, std::uint32_t b) {
        const std::uint64_t key = pair_key(a, b);
        const std::size_t rows = grown(rows_, a), width = grown(width_, b);
        overflowed_ = overflowed_ || rows > most_cells / width;
        if (overflowed_) return numbers_.number(key);
        if (rows > rows_ || width > width_) {
            rows_ = rows, width_ = width;
            table_.assign(rows_ * width_, empty);
            for (std::size_t i = 0; i < size(); ++i) table_[first(i) * width_ + second(i)] = static_cast<std::uint32_t>(i);
        }
        return table_[a * width_ + b] = numbers_.append(key);
    }
    std::size_t rows_ = 0, width_ = 0;
    bool overflowed_ = false;  // what is in the table stays there
    std::vector<std::uint32_t> table_;
    Numbering numbers_;
};

// As Numbering, for texts, which it keeps.
class TextNumbering {
public:
    std::uint32_t number(std::string_view text) {
        if ((ends_.size() + 1) * 10 > slots_.size() * 7) grow();
        const auto hash = static_cast<std::uint32_t>(std::hash<std::string_view>()(text));
        std::size_t at = hash & (slots_.size() - 1);
        for (; slots_[at].number != empty; at = (at + 1) & (slots_.size() - 1)) {
            if (slots_[at].hash == hash && (*this)[slots_[at].number] == text) return slots_[at].number;
        }
        slots_[at] = {hash, static_cast<std::uint32_t>(ends_.size())};
        bytes_ += text;
        ends_.push_back(bytes_.size());
        return slots_[at].number;
    }
    std::size_t size() const noexcept { return ends_.size(); }
    std::string_view operator[](std::uint32_t number) const {
        const std::size_t begin = number == 0 ? 0 : ends_[number - 1];
        return std::string_view(bytes_).substr(begin, ends_[number] - begin);
    }

private:
    static constexpr std::uint32_t empty = 0xFFFFFFFF;
    struct Slot {
        std::uint32_t hash = 0, number = empty;
    };
    void grow() {
        std::vector<Slot> old = std::exchange(slots_, std::vector<Slot>(std::max<std::size_t>(64, slots_.size() * 2)));
        for (const Slot& slot : old) {
            if (slot.number == empty) continue;
            std::size_t at = slot.hash & (slots_.size() - 1);
            while (slots_[at].number != empty) at = (at + 1) & (slots_.size() - 1);
            slots_[at] = slot;
        }
    }
    std::vector<Slot> slots_;
    std::vector<std::size_t> ends_;
    std::string bytes_;
};

// For each of `count` numbers, from 0 on, its place among them in order.
template <class Less>
std::vector<std::uint32_t> ranks_of(std::size_t count, Less&& less) {
    std::vector<std::uint32_t> order(count), ranks(count);
    std::iota(order.begin(), order.end(), 0U);
    std::sort(order.begin(), order.end(), less);
    for (std::size_t i = 0; i < count; ++i) ranks[order[i]] = static_cast<std::uint32_t>(i);
    return ranks;
}

// Puts items in the order of their numbers' ranks; what has the same number stays as it was.
template <class NumberOf>
void order_by(std::vector<std::size_t>& items, const std::vector<std::uint32_t>& ranks, NumberOf&& number_of) {
    std::vector<std::size_t> places(ranks.size() + 1), ordered(items.size());
    for (const std::size_t item : items) ++places[ranks[number_of(item)] + std::size_t{1}];
    std::partial_sum(places.begin(), places.end(), places.begin());
    for (const std::size_t item : items) ordered[places[ranks[number_of(item)]]++] = item;
    items.swap(ordered);
}

// ---- values as small integers ----

constexpr std::uint32_t no_value = 0;  // the row lacks the field

// The values that a column takes, as text, numbered from 1 over all batches of a question.
class Values {
public:
    explicit Values(Blank blank = Blank::apart, bool times = false) : blank_(blank), times_(times) {}
    Values(const Rules& rules, Blank blank) : blank_(blank), typed_(rules.typed_values), uncounted_(rules.uncounted) {}

    // The number of every row's value.
    const std::vector<std::uint32_t>& number(Connection& db, const Column& column, const Table& table) {
        rows_.resize(table.rows);
        words_.assign(column.words.size(), unknown);
        if (column.all(CellKind::interned)) {
            number_interned(db, column, table);
        } else if (column.all(CellKind::text)) {
            each_row(table, [&](std::size_t row) { rows_[row] = word(column, row); });
        } else {
            each_row(table, [&](std::size_t row) { rows_[row] = any(db, column, row); });
        }
        return rows_;
    }
    // How many numbers there are, that of no value with them; their order, no value first.
    std::size_t size() const noexcept { return texts_.size() + 1; }
    std::vector<std::uint32_t> ranks() const {
        return ranks_of(size(), [&](std::uint32_t a, std::uint32_t b) {
            return a == no_value || b == no_value ? b != no_value && a == no_value : texts_[a - 1] < texts_[b - 1];
        });
    }
    std::optional<std::string> name(std::uint32_t number) const {
        if (number == no_value) return std::nullopt;
        return std::string(texts_[number - 1].substr(typed_ ? 1 : 0));
    }

    std::uint32_t text(std::string_view value) {
        const bool none = value.empty() ? blank_ == Blank::missing : value == uncounted_;
        return none ? no_value : texts_.number(value) + 1;
    }

private:
    static constexpr std::uint32_t unknown = 0xFFFFFFFF;
    static std::string marked(CellKind kind, std::string_view value) {
        return static_cast<char>('a' + static_cast<int>(kind == CellKind::wide ? CellKind::number : kind)) + std::string(value);
    }
    // Ids are numbered first, so that the texts of new ones are read together. The same id comes many times in a row.
    void number_interned(Connection& db, const Column& column, const Table& table) {
        std::vector<std::int64_t> fresh;
        std::uint32_t last = 0;
        each_row(table, [&, id = static_cast<const std::int64_t*>(nullptr), out = rows_.data(), ids = column.cells.data()](std::size_t row) mutable {
            if (id == nullptr || *id != ids[row]) {
                last = place_of(ids[row]);
                if (last == interned_texts_.size()) interned_texts_.push_back(unknown), fresh.push_back(ids[row]);
            }
            id = ids + row;
            out[row] = last;
        });
        std::sort(fresh.begin(), fresh.end());
        each_text(db, fresh, [this](std::int64_t id, std::string_view value) { interned_texts_[place_of(id)] = text(value); });
        each_row(table, [texts = interned_texts_.data(), out = rows_.data()](std::size_t row) { out[row] = texts[out[row]]; });
    }
    std::uint32_t interned(Connection& db, std::int64_t id) {
        const std::uint32_t at = place_of(id);
        if (at == interned_texts_.size()) interned_texts_.push_back(text(text_of(db, id)));
        return interned_texts_[at];
    }
    std::uint32_t place_of(std::int64_t id) {
        if (id < 0 || id > std::numeric_limits<std::uint32_t>::max()) damaged("columns");
        return interned_.number(0, static_cast<std::uint32_t>(id));
    }
    std::uint32_t word(const Column& column, std::size_t row) {
        std::uint32_t& known = words_[static_cast<std::size_t>(column.cells[row])];
        if (known == unknown) known = typed_ ? text(marked(CellKind::text, column.word(row))) : text(column.word(row));
        return known;
    }
    std::uint32_t any(Connection& db, const Column& column, std::size_t row) {
        const bool written = blank_ == Blank::written;
        const CellKind kind = column.kind(row);
        if (kind == CellKind::missing || (kind == CellKind::null && !typed_ && !written) || (kind == CellKind::json && written))
            return written || blank_ == Blank::text ? text("") : no_value;
        if (kind == CellKind::interned) return interned(db, column.cells[row]);
        if (kind == CellKind::text) return word(column, row);
        const std::string value = kind == CellKind::null && written ? "null"
                                  : times_                          ? Timestamp(column.cells[row]).to_string()
                                                                    : scalar_text(cell_scalar(column, row));
        return text(typed_ ? marked(kind, value) : value);
    }
    Blank blank_;
    bool typed_ = false, times_ = false;
    std::string_view uncounted_{};
    TextNumbering texts_;
    PairNumbering interned_;  // texts.id
    std::vector<std::uint32_t> interned_texts_, rows_, words_;
};

// ---- from rows to the rows of an answer ----

// A row of an answer, as the library measures it.
struct Measured {
    std::optional<Timestamp> bin{};
    std::vector<std::optional<std::string>> group{};
    Decimal value{};
    std::int64_t events = 0;
    bool rest = false;
    bool falls = true;  // some event may have lowered the value: a negative number, a removal. True when not known
};

using Group = std::vector<std::optional<std::string>>;

// What rows are told apart by, beside their bins.
struct Grouping {
    std::vector<std::string> fields{};
    Blank blank = Blank::apart;
    const std::set<Group>* named = nullptr;  // the groups that keep their names, all others being the rest; all when absent
    std::string within{};                    // one more field, which is not part of the group; none when empty
};

// Times -> the numbers of their bins. Rows are in order of customer, so that times jump: they are looked up by cells of time so short that
// one bin ends in each at most.
class BinNumbering {
public:
    explicit BinNumbering(const BinOptions& bins) : calendar_(bins) {
        if (bins.bin == Bin::none) return;
        const Stride stride = stride_of(bins.bin);
        const std::int64_t shortest = stride.micros + stride.months * 28 * micros_per_day;
        cell_bits_ = static_cast<int>(std::bit_width(static_cast<std::uint64_t>(shortest))) - 2;
        cells_.resize(cell_count);
    }
    // Of every row.
    void number(const Batch& batch, const std::vector<std::int64_t>& times, std::vector<std::uint32_t>& bins) {
        bins.resize(batch.rows);
        each_row(batch, [this, out = bins.data(), in = times.data(), cells = cells_.data(), bits = cell_bits_](std::size_t row) {
            const std::int64_t time = in[row], key = time >> bits;
            Cell& cell = cells[static_cast<std::size_t>(key) % cell_count];
            if (cell.key != key) cell = cell_of(key, time);
            out[row] = time < cell.edge ? cell.before : cell.after;
        });
    }
    // Of the bins that have numbers; some may have no rows.
    std::size_t size() const noexcept { return starts_.keys().size(); }
    std::vector<std::uint32_t> ranks() const {
        return ranks_of(size(), [this](std::uint32_t a, std::uint32_t b) { return start(a) < start(b); });
    }
    Timestamp start(std::uint32_t bin) const { return Timestamp(static_cast<std::int64_t>(starts_.keys()[bin])); }
    // All of time without bins.
    Period around(Timestamp time) { return calendar_.around(time); }

private:
    static constexpr std::size_t cell_count = 4096;
    static constexpr std::int64_t no_key = std::numeric_limits<std::int64_t>::min(), never = std::numeric_limits<std::int64_t>::max();
    struct Cell {
        std::int64_t key = no_key, edge = never;
        std::uint32_t before = 0, after = 0;
    };

    Cell cell_of(std::int64_t key, std::int64_t time) {
        checked_time(time, "columns.time");
        const std::int64_t begin = key << cell_bits_, end = begin + (std::int64_t{1} << cell_bits_);
        const Period first = around(Timestamp(begin));
        if (first.to.micros() >= end) return {key, never, number_of(first), 0};
        const Period second = around(first.to);
        if (second.to.micros() >= end) return {key, first.to.micros(), number_of(first), number_of(second)};
        return {no_key, never, number_of(around(Timestamp(time))), 0};  // as where a zone left out a day: looked up each time
    }
    std::uint32_t number_of(const Period& bin) { return starts_.number(static_cast<std::uint64_t>(bin.from.micros())); }

    Bins calendar_;
    int cell_bits_ = 0;
    std::vector<Cell> cells_;
    Numbering starts_;
};

// Gives every row of a batch the number of the answer's row it belongs to: one for each bin and combination of group values met.
class Slots {
public:
    Slots(const BinOptions& bins, const Grouping& grouping, ScanQuestion& question)
        : binned_(bins.bin != Bin::none), bins_(bins), width_(grouping.fields.size()), named_(grouping.named) {
        if (binned_) time_ = question.key(fields::time);
        std::vector<std::string> keys;
        for (const std::string& field : grouping.fields) keys.push_back(column_key(field));
        if (!grouping.within.empty()) keys.push_back(column_key(grouping.within));
        by_owner_ = !keys.empty() && std::all_of(keys.begin(), keys.end(), fields::is_owner);
        for (const std::string& key : keys)
            fields_.push_back({by_owner_ ? question.owner_key(key) : question.key(key), Values(grouping.blank, fields::is_moment(key))});
    }

    const std::vector<std::uint32_t>& place(Connection& db, const Batch& batch) {
        if (fields_.empty() && !binned_) slot_.assign(batch.rows, 0);
        const Table& table = by_owner_ ? batch.owners : batch;
        combine(0, width_, db, table);
        if (named_) put_rest_together(table);
        combine(width_, fields_.size(), db, table);
        if (by_owner_) {
            spread(slot_, batch.ends, spread_);
            slot_.swap(spread_);
        }
        if (binned_) bins_.number(batch, batch.columns[time_].cells, fields_.empty() ? slot_ : bin_);
        if (binned_ && !fields_.empty()) in_bins_.number(batch, slot_, bin_);
        size_ = count();
        if (size_ > 4 * limits::aggregate_rows) throw_too_many_rows();
        return slot_;
    }

    // Of the batches so far. Some slots may have no rows.
    std::size_t size() const noexcept { return size_; }

    // The bin and group of a slot, without a value.
    Measured row(std::size_t slot) const {
        Measured row;
        if (binned_) row.bin = bins_.start(bin_of(slot));
        row.group.resize(width_);
        row.rest = is_rest(slot);
        for (std::size_t i = 0; i < width_ && !row.rest; ++i) row.group[i] = fields_[i].values.name(value_of(slot, i));
        return row;
    }

    // In the order of their rows: by bin, then group, the rest last.
    void sort(std::vector<std::size_t>& slots) const {
        for (std::size_t i = width_; i-- > 0;) {
            order_by(slots, fields_[i].values.ranks(), [&](std::size_t slot) { return is_rest(slot) ? no_value : value_of(slot, i); });
        }
        if (named_) order_by(slots, {0, 1}, [&](std::size_t slot) { return is_rest(slot) ? 1U : 0U; });
        if (binned_) order_by(slots, bins_.ranks(), [&](std::size_t slot) { return bin_of(slot); });
    }

    // The bin of a row; all of time without bins.
    Period bin(const Measured& row) { return row.bin ? bins_.around(*row.bin) : Period(); }

    [[noreturn]] static void throw_too_many_rows() {
        throw Error(ErrorCode::too_large, "bin", "the answer has more than " + std::to_string(limits::aggregate_rows) + " rows");
    }

private:
    static constexpr std::uint32_t rest = 0xFFFFFFFF, unknown = 0xFFFFFFFE;

    struct Field {
        std::size_t column;
        Values values;
        PairNumbering combinations{};  // of the fields before it and this one; not of the first
    };

    std::size_t count() const {
        if (fields_.empty()) return binned_ ? bins_.size() : 1;
        if (binned_) return in_bins_.size();
        if (named_ && fields_.size() == width_) return kept_.size();
        return fields_.size() == 1 ? fields_[0].values.size() : fields_.back().combinations.size();
    }
    std::uint32_t bin_of(std::size_t slot) const { return fields_.empty() ? static_cast<std::uint32_t>(slot) : in_bins_.second(slot); }
    std::uint32_t group_of(std::size_t slot) const {
        const auto group = binned_ ? in_bins_.first(slot) : static_cast<std::uint32_t>(slot);
        return fields_.size() > width_ ? fields_[width_].combinations.first(group) : group;
    }
    bool is_rest(std::size_t slot) const { return named_ && kept_[group_of(slot)] == rest; }
    // The number of a group's, or slot's, value of a field. That of the rest has none.
    std::uint32_t value_in(std::uint32_t group, std::size_t field) const {
        for (std::size_t i = width_ - 1; i > field; --i) group = fields_[i].combinations.first(group);
        return field == 0 ? group : fields_[field].combinations.second(group);
    }
    std::uint32_t value_of(std::size_t slot, std::size_t field) const { return value_in(named_ ? kept_[group_of(slot)] : group_of(slot), field); }
    Group names(std::uint32_t group) const {
        Group names(width_);
        for (std::size_t i = 0; i < width_; ++i) names[i] = fields_[i].values.name(value_in(group, i));
        return names;
    }
    // Each group that keeps its name gets a number of its own, all others one together.
    void put_rest_together(const Table& table) {
        each_row(table, [&](std::size_t row) {
            const std::uint32_t group = slot_[row];
            if (group >= places_.size()) places_.resize(group + std::size_t{1}, unknown);
            std::uint32_t& place = places_[group];
            if (place == unknown) place = named_->contains(names(group)) ? keep(group) : 0;
            slot_[row] = place;
        });
    }
    std::uint32_t keep(std::uint32_t group) {
        kept_.push_back(group);
        return static_cast<std::uint32_t>(kept_.size() - 1);
    }
    // slot_ so far, with some more fields.
    void combine(std::size_t first, std::size_t last, Connection& db, const Table& table) {
        for (std::size_t i = first; i < last; ++i) {
            const auto& values = fields_[i].values.number(db, table.columns[fields_[i].column], table);
            if (i == 0)
                slot_ = values;
            else
                fields_[i].combinations.number(table, slot_, values);
        }
    }
    bool binned_, by_owner_ = false;  // by_owner_: all fields are the same in each stretch of Batch::owners
    BinNumbering bins_;
    std::size_t time_ = 0, width_, size_ = 0;
    std::vector<Field> fields_;  // the first `width_` of them are the group
    const std::set<Group>* named_;
    std::vector<std::uint32_t> places_, kept_{rest};  // for each group its place in `kept_`, where its own number is, or that of the rest
    PairNumbering in_bins_;                           // of groups and bins, where there are both
    std::vector<std::uint32_t> slot_, spread_, bin_;  // of each row, while they are found out
};

// ---- numbers of a column ----

// -?digits[.digits], as lago-api wants it (postgres_store.rb:508).
bool plain_number(std::string_view text) noexcept {
    const auto digits = [&text] {
        const std::size_t size = std::min(text.find_first_not_of("0123456789"), text.size());
        text.remove_prefix(size);
        return size > 0;
    };
    if (text.starts_with('-')) text.remove_prefix(1);
    if (!digits()) return false;
    if (!text.starts_with('.')) return text.empty();
    text.remove_prefix(1);
    return digits() && text.empty();
}

// What a column's cells count as, batch after batch.
class Numbers {
public:
    Numbers(const std::string& property, const NumberRules& rules, ScanQuestion& question, const std::optional<Decimal>& multiplier = {})
        : rules_(rules), multiplier_(multiplier), is_time_(fields::is_moment(column_key(property))), column_(question.key(column_key(property))) {
        if (rules.text_fields_zero && (property == fields::name || property == fields::source)) rules_.zero = true;
        if (!multiplier_) return;
        const Words digits = DecimalParts::coefficient(*multiplier_);
        constexpr std::int64_t most = std::numeric_limits<std::int64_t>::max();
        if (multiplier_->is_negative() || digits.high != 0 || digits.low == 0 || digits.low > static_cast<std::uint64_t>(most)) return;
        factor_ = static_cast<std::int64_t>(digits.low);
        most_ = most / factor_;
    }

    // Decimals of what small() is told; times are Unix seconds.
    int scale(const Batch& batch) const { return column_scale(batch) + (multiplier_ ? multiplier_->scale() : 0); }

    // Calls small(row, cell) for numbers at the column's scale, other(row, number) for other ones, nothing for what does not count.
    template <class Small, class Other>
    void each(const Batch& batch, Small&& small, Other&& other) {
        const Column& column = batch.columns[column_];
        if (column.all(CellKind::missing) && !rules_.zero && !rules_.missing) return;
        words_.assign(column.words.size(), std::nullopt);
        const bool cut_off = rules_.decimals && scale(batch) > *rules_.decimals;
        const bool as_it_stands = !multiplier_ && !cut_off && !rules_.not_negative && !(is_time_ && rules_.seconds);
        if (as_it_stands && column.all(CellKind::number))
            return each_row(batch, [&, cells = column.cells.data()](std::size_t row) { small(row, cells[row]); });
        each_row(batch, [&](std::size_t row) {
            if (column.kind(row) == CellKind::number && !cut_off && within(cell_of(column, row))) {
                const std::int64_t cell = cell_of(column, row) * factor_;
                small(row, rules_.not_negative ? std::max<std::int64_t>(0, cell) : cell);
            } else if (column.kind(row) == CellKind::number) {
                other(row, counted(Decimal::scaled(cell_of(column, row), column_scale(batch))));
            } else if (const auto number = other_number(column, row)) {
                other(row, counted(*number));
            } else if (column.kind(row) == CellKind::missing && rules_.missing) {
                other(row, Decimal(*rules_.missing));
            } else if (rules_.zero) {
                small(row, 0);
            }
        });
    }

private:
    int column_scale(const Batch& batch) const { return !is_time_ ? batch.columns[column_].scale : rules_.seconds ? 0 : 6; }
    std::int64_t cell_of(const Column& column, std::size_t row) const {
        return is_time_ && rules_.seconds ? whole_seconds(column.cells[row]) : column.cells[row];
    }
    // Whether the cell times the factor is a cell.
    bool within(std::int64_t cell) const { return !multiplier_ || (cell <= most_ && cell >= -most_); }
    Decimal counted(Decimal number) const {
        if (multiplier_) number *= *multiplier_;
        if (rules_.decimals) number = number.round(*rules_.decimals, Rounding::down);
        return rules_.not_negative ? std::max(Decimal(), number) : number;
    }
    // Texts and wide numbers; each distinct one is parsed once.
    std::optional<Decimal> other_number(const Column& column, std::size_t row) {
        if (column.kind(row) != CellKind::text && column.kind(row) != CellKind::wide) return std::nullopt;
        const std::string_view text = column.word(row);
        auto& known = words_[static_cast<std::size_t>(column.cells[row])];
        if (!known) known = column.kind(row) == CellKind::wide || counts(text) ? Decimal::parse(text) : std::nullopt;
        return *known;
    }
    std::int64_t whole_seconds(std::int64_t micros) const { return Decimal::scaled(micros, 6).round(0, *rules_.seconds).to_int64().value(); }
    bool counts(std::string_view text) const {
        return rules_.text == NumberRules::Text::number || (rules_.text == NumberRules::Text::plain && plain_number(text));
    }
    NumberRules rules_;
    std::optional<Decimal> multiplier_;    // of each
    std::int64_t factor_ = 1, most_ = -1;  // the multiplier's digits, and the greatest cell that may be multiplied by them; -1: none
    bool is_time_;
    std::size_t column_;
    std::vector<std::optional<std::optional<Decimal>>> words_;
};

// ---- accumulators: what becomes of the rows of a slot ----

constexpr std::uint64_t magnitude(std::int64_t value) noexcept {
    return value < 0 ? 0 - static_cast<std::uint64_t>(value) : static_cast<std::uint64_t>(value);
}

// A sum of 64-bit integers in 128 bits, two's complement: no order of adding overflows it.
struct WideSum {
    std::uint64_t low = 0, high = 0;
    void add_product(std::int64_t a, std::int64_t b) noexcept {
        const Words sum{high, low}, product = multiply(magnitude(a), magnitude(b));
        const Words result = (a < 0) == (b < 0) ? meter::add(sum, product) : subtract(sum, product);
        high = result.high, low = result.low;
    }
    void add(std::int64_t value) noexcept {
        const auto bits = static_cast<std::uint64_t>(value);
        low += bits;
        high += (value < 0 ? ~std::uint64_t{0} : 0) + (low < bits ? 1 : 0);
    }
    Decimal at_scale(int scale) const {
        const bool negative = high >> 63 != 0;
        const Words magnitude = negative ? subtract({}, {high, low}) : Words{high, low};
        return DecimalParts::make(magnitude, scale, negative);
    }
};

// A sum of any decimals in any order: what was added and what was taken away, in units of 10^-76, of which Wide holds 10^80 times the
// largest Decimal. Small numbers are added by themselves as long as their sum is small.
class ExactSum {
public:
    void add(const Decimal& value, std::int64_t times = 1) {
        if (times == 1 && DecimalParts::add_small(small_, value, small_)) return;
        add_wide(value, times);
    }
    // Throws overflow when the sum is not a Decimal.
    Decimal result() const {
        if (given_.is_zero() && taken_.is_zero()) return small_;
        ExactSum all = *this;
        all.add_wide(small_, 1);
        const bool negative = meter::compare(all.given_, all.taken_) < 0;
        Wide sum = negative ? all.taken_ : all.given_, other = negative ? all.given_ : all.taken_;
        other.size = sum.size;
        subtract_multiple(sum, other, 1, 0);
        sum.trim();
        return DecimalParts::make(sum, Decimal::max_scale, negative);
    }

private:
    void add_wide(const Decimal& value, std::int64_t times) {
        Wide units = widen(DecimalParts::coefficient(value));
        multiply_by_power(units, Decimal::max_scale - value.scale());
        if (times != 1) units = multiply(units, widen({0, magnitude(times)}));
        add_to(value.is_negative() == (times < 0) ? given_ : taken_, units);
    }
    static void add_to(Wide& sum, const Wide& units) noexcept {
        std::uint64_t carry = 0;
        for (int i = 0; i < units.size || carry != 0; ++i) {
            const std::uint64_t part = std::uint64_t{sum.at(i)} + units.at(i) + carry;
            sum.at(i) = low_half(part);
            carry = high_half(part);
            sum.size = std::max(sum.size, i + 1);
        }
    }
    Decimal small_{};
    Wide given_{}, taken_{};
};

class Accumulator {
public:
    virtual ~Accumulator() = default;
    // Takes a batch's rows, each for its slot, and knows then of `count` slots.
    void add(Connection& db, const Batch& batch, const std::vector<std::uint32_t>& slots, std::size_t count) {
        events_.resize(std::max(count, events_.size()));
        take(db, batch, slots, events_.size());
    }
    virtual void finish() {}  // after the last batch
    // What the slot's rows come to. `stretch` is its part of the question's period.
    virtual Decimal value(std::size_t slot, const Period& stretch) const = 0;
    virtual bool falls(std::size_t) const { return false; }                // whether an event may have lowered the value
    virtual bool exact_in_binary() const { return true; }                  // whether sums of doubles, in any order, come to the same
    std::int64_t events(std::size_t slot) const { return events_[slot]; }  // how many took part

protected:
    virtual void take(Connection& db, const Batch& batch, const std::vector<std::uint32_t>& slots, std::size_t count) = 0;
    std::vector<std::int64_t> events_;
};

class CountAccumulator final : public Accumulator {
public:
    Decimal value(std::size_t slot, const Period&) const override { return events_[slot]; }

private:
    void take(Connection&, const Batch& batch, const std::vector<std::uint32_t>& slots, std::size_t) override {
        each_row(batch, [&](std::size_t row) { ++events_[slots[row]]; });
    }
};

class SumAccumulator : public Accumulator {
public:
    explicit SumAccumulator(Numbers numbers) : numbers_(std::move(numbers)) {}
    Decimal value(std::size_t slot, const Period&) const override {
        const auto other = others_.find(slot);
        // A billion integers of 62 bits at these scales add up to less than 38 digits, whatever the order.
        constexpr int safe_scale = 9;
        const bool safe = other == others_.end() && (sums_.empty() || sums_.rbegin()->first <= safe_scale);
        ExactSum exact = other == others_.end() ? ExactSum() : other->second.amount;
        Decimal sum;
        for (const auto& [scale, sums] : sums_) {
            if (slot >= sums.size()) continue;
            if (safe) {
                sum += sums[slot].amount.at_scale(scale);
            } else {
                exact.add(sums[slot].amount.at_scale(scale));
            }
        }
        return safe ? sum : exact.result();
    }
    bool falls(std::size_t slot) const override {
        const auto other = others_.find(slot);
        return (other != others_.end() && other->second.falls) ||
               std::any_of(sums_.begin(), sums_.end(), [&](const auto& each) { return slot < each.second.size() && each.second[slot].signs < 0; });
    }
    bool exact_in_binary() const override {
        constexpr std::int64_t largest = std::int64_t{1} << 53;
        if (!others_.empty() || (!sums_.empty() && sums_.rbegin()->first > 0)) return false;
        for (std::size_t slot = 0; slot < events_.size(); ++slot) {
            if (falls(slot) || SumAccumulator::value(slot, {}) > largest) return false;
        }
        return true;
    }

private:
    void take(Connection&, const Batch& batch, const std::vector<std::uint32_t>& slots, std::size_t count) override {
        std::vector<Sum>& sums = sums_[numbers_.scale(batch)];
        sums.resize(std::max(count, sums.size()));
        numbers_.each(
            batch,
            [at = slots.data(), to = sums.data(), events = events_.data()](std::size_t row, std::int64_t cell) {
                const std::uint32_t slot = at[row];
                to[slot].amount.add(cell);
                to[slot].signs |= cell;
                ++events[slot];
            },
            [&](std::size_t row, const Decimal& number) {
                Other& other = others_[slots[row]];
                other.amount.add(number);
                other.falls = other.falls || number.is_negative();
                ++events_[slots[row]];
            });
    }
    struct Sum {
        WideSum amount{};
        std::int64_t signs = 0;  // below 0 when some number was
    };
    struct Other {
        ExactSum amount{};
        bool falls = false;
    };
    Numbers numbers_;
    std::map<int, std::vector<Sum>> sums_;           // by scale, so that adding needs no multiplication
    std::unordered_map<std::size_t, Other> others_;  // of texts and wide numbers, few in most logs
};

class AverageAccumulator final : public SumAccumulator {
public:
    AverageAccumulator(Numbers numbers, const Rules& rules) : SumAccumulator(std::move(numbers)), rules_(rules) {}
    Decimal value(std::size_t slot, const Period& stretch) const override {
        return events_[slot] == 0 ? Decimal() : rules_.quotient(SumAccumulator::value(slot, stretch), events_[slot]);
    }
    bool falls(std::size_t) const override { return true; }

private:
    const Rules& rules_;
};

// Numbers kept one for each slot, as integers at a scale while they are small.
class KeptNumbers {
public:
    void resize(std::size_t count) { kept_.resize(std::max(count, kept_.size())); }
    bool has(std::size_t slot) const { return kept_[slot].scale != nothing; }
    Decimal at(std::size_t slot) const {
        const Kept& kept = kept_[slot];
        if (kept.scale == nothing) return {};
        return kept.scale == wide ? wides_[static_cast<std::size_t>(kept.cell)] : Decimal::scaled(kept.cell, kept.scale);
    }
    void put(std::size_t slot, std::int64_t cell, int scale) { kept_[slot] = {cell, scale}; }
    void put(std::size_t slot, const Decimal& number) {
        if (kept_[slot].scale != wide) kept_[slot] = {static_cast<std::int64_t>(wides_.size()), wide}, wides_.emplace_back();
        wides_[static_cast<std::size_t>(kept_[slot].cell)] = number;
    }
    // Where a small number stands beside the kept one.
    std::strong_ordering compare(std::int64_t cell, int scale, std::size_t slot) const {
        const Kept& kept = kept_[slot];
        if (kept.scale == scale) return cell <=> kept.cell;
        if (kept.scale != wide) {
            const int finer = std::max(scale, kept.scale);
            const auto mine = at_scale({cell, scale}, finer), other = at_scale({kept.cell, kept.scale}, finer);
            if (mine && other) return *mine <=> *other;
        }
        return Decimal::scaled(cell, scale) <=> at(slot);
    }

private:
    static constexpr int nothing = -1, wide = -2;
    struct Kept {
        std::int64_t cell = 0;
        int scale = nothing;
    };
    std::vector<Kept> kept_;
    std::vector<Decimal> wides_;
};

class ExtremeAccumulator final : public Accumulator {
public:
    ExtremeAccumulator(Numbers numbers, bool greatest) : numbers_(std::move(numbers)), greatest_(greatest) {}
    Decimal value(std::size_t slot, const Period&) const override { return best_.at(slot); }
    bool falls(std::size_t) const override { return !greatest_; }

private:
    bool better(std::strong_ordering order) const { return greatest_ ? order > 0 : order < 0; }
    void take(Connection&, const Batch& batch, const std::vector<std::uint32_t>& slots, std::size_t count) override {
        best_.resize(count);
        const int scale = numbers_.scale(batch);
        numbers_.each(
            batch,
            [&](std::size_t row, std::int64_t cell) {
                const std::uint32_t slot = slots[row];
                ++events_[slot];
                if (!best_.has(slot) || better(best_.compare(cell, scale, slot))) best_.put(slot, cell, scale);
            },
            [&](std::size_t row, const Decimal& number) {
                const std::uint32_t slot = slots[row];
                ++events_[slot];
                if (!best_.has(slot) || better(number <=> best_.at(slot))) best_.put(slot, number);
            });
    }
    Numbers numbers_;
    bool greatest_;
    KeptNumbers best_;
};

class LatestAccumulator final : public Accumulator {
public:
    LatestAccumulator(Numbers numbers, ScanQuestion& question)
        : numbers_(std::move(numbers)), time_(question.key(fields::time)), sequence_(question.key(fields::sequence)) {}
    Decimal value(std::size_t slot, const Period&) const override { return last_.at(slot); }
    bool falls(std::size_t) const override { return true; }

private:
    void take(Connection&, const Batch& batch, const std::vector<std::uint32_t>& slots, std::size_t count) override {
        last_.resize(count);
        places_.resize(std::max(count, places_.size()));
        const int scale = numbers_.scale(batch);
        const auto later = [&](std::size_t row) {
            const std::uint32_t slot = slots[row];
            const Place place{batch.columns[time_].cells[row], batch.columns[sequence_].cells[row]};
            ++events_[slot];
            if (last_.has(slot) && place < places_[slot]) return false;
            places_[slot] = place;
            return true;
        };
        numbers_.each(
            batch,
            [&](std::size_t row, std::int64_t cell) {
                if (later(row)) last_.put(slots[row], cell, scale);
            },
            [&](std::size_t row, const Decimal& number) {
                if (later(row)) last_.put(slots[row], number);
            });
    }
    Numbers numbers_;
    std::size_t time_, sequence_;
    KeptNumbers last_;
    std::vector<Place> places_;
};

// Distinct values.
class UniqueAccumulator final : public Accumulator {
public:
    UniqueAccumulator(std::size_t column, const Rules& rules, Blank values)
        : column_(column), counts_absent_(rules.counts_absent), keeps_absent_(rules.keeps_absent), values_(rules, values) {}
    Decimal value(std::size_t slot, const Period&) const override { return slot < counts_.size() ? counts_[slot] : 0; }

private:
    void take(Connection& db, const Batch& batch, const std::vector<std::uint32_t>& slots, std::size_t count) override {
        counts_.resize(count);
        const std::vector<std::uint32_t>& values = values_.number(db, batch.columns[column_], batch);
        each_row(batch, [&](std::size_t row) {
            const bool counts = values[row] != no_value || counts_absent_;
            if (counts || keeps_absent_) ++events_[slots[row]];
            if (!counts) return;
            const std::size_t before = seen_.size();
            if (seen_.number(slots[row], values[row]) == before) ++counts_[slots[row]];
        });
    }
    std::size_t column_;
    bool counts_absent_, keeps_absent_;
    Values values_;
    PairNumbering seen_;
    std::vector<std::int64_t> counts_;
};

// Numbers by the time from when they came to an end, in shares of the whole: their sum x the end - the sum of number x time. `standing` are
// microseconds of the slot's stretch, what came before which counts from its beginning on; `remaining` are whole seconds of the question
// (FlexPrice, aggregators.go:866).
class WeightedAccumulator final : public Accumulator {
public:
    WeightedAccumulator(Numbers numbers, const Rules& rules, const AggregateQuery& query, ScanQuestion& question)
        : numbers_(std::move(numbers)),
          rules_(rules),
          remaining_(rules.weighting == Weighting::remaining),
          whole_(query.billing_period),
          time_(question.key(fields::time)) {
        if (remaining_ && !whole_) whole_ = query.period;
        if (!remaining_) first_ = query.period.from.micros();
    }
    Decimal value(std::size_t slot, const Period& stretch) const override {
        const Period whole = whole_.value_or(stretch);
        const std::int64_t end = units((remaining_ ? whole : stretch).to.micros()), length = units(whole.to.micros()) - units(whole.from.micros());
        if (length <= 0) return {};
        const auto other = others_.find(slot);
        ExactSum sum = other == others_.end() ? ExactSum() : other->second.negative_moment;
        if (other != others_.end()) sum.add(other->second.amount.result(), end);
        for (const auto& [scale, sums] : sums_) {
            if (slot >= sums.size()) continue;
            sum.add(sums[slot].amount.at_scale(scale), end);
            sum.add(sums[slot].high_moment.at_scale(scale), -(std::int64_t{1} << 32));
            sum.add(sums[slot].low_moment.at_scale(scale), -1);
        }
        return rules_.quotient(sum.result(), length);
    }
    bool falls(std::size_t) const override { return true; }

private:
    std::int64_t units(std::int64_t micros) const { return remaining_ ? floor_divide(micros, micros_per_second) : micros; }
    void take(Connection&, const Batch& batch, const std::vector<std::uint32_t>& slots, std::size_t count) override {
        std::vector<Sums>& sums = sums_[numbers_.scale(batch)];
        sums.resize(std::max(count, sums.size()));
        const auto time_of = [&](std::size_t row) {
            ++events_[slots[row]];
            return units(std::max(batch.columns[time_].cells[row], first_));
        };
        numbers_.each(
            batch,
            [&](std::size_t row, std::int64_t cell) {
                const std::int64_t time = time_of(row);
                sums[slots[row]].amount.add(cell);
                sums[slots[row]].high_moment.add_product(cell, time >> 32);
                sums[slots[row]].low_moment.add_product(cell, time & 0xFFFFFFFF);
            },
            [&](std::size_t row, const Decimal& number) {
                Others& others = others_[slots[row]];
                others.amount.add(number);
                others.negative_moment.add(number, -time_of(row));
            });
    }
    // The time's halves apart, so that 128 bits hold the sum of a billion products.
    struct Sums {
        WideSum amount{}, high_moment{}, low_moment{};
    };
    struct Others {
        ExactSum amount{}, negative_moment{};
    };
    Numbers numbers_;
    const Rules& rules_;
    bool remaining_;
    std::optional<Period> whole_;
    std::int64_t first_ = std::numeric_limits<std::int64_t>::min();
    std::size_t time_;
    std::map<int, std::vector<Sums>> sums_;  // as in SumAccumulator
    std::unordered_map<std::size_t, Others> others_;
};

// ---- steps: what each event adds to a metric, where their order counts ----

struct Step {
    Place place{};
    std::uint32_t slot = 0;
    Decimal value{};
    std::uint32_t item = 0, action = 0;  // of what is added and removed: the value, and what is done to it
};

// A value's first add counts 1, a repeated action nothing, whatever follows an add -1; each value begins as removed
// (lago-api, unique_count_query.rb:12-37).
void count_items(std::vector<Step>& steps, std::uint32_t add, std::uint32_t remove) {
    PairNumbering items;
    std::vector<std::uint32_t> last;
    for (Step& step : steps) {
        const std::uint32_t item = items.number(step.slot, step.item);
        if (item == last.size()) last.push_back(remove);
        std::uint32_t& before = last[item];
        step.value = step.action == before ? 0 : step.action == add ? 1 : -1;
        before = step.action;
    }
}

// Keeps every event that takes part, until all are known. A unique count's values are never removed.
class StepAccumulator : public Accumulator {
public:
    StepAccumulator(const Metric& metric, const Rules& rules, ScanQuestion& question)
        : items_counted_(metric.aggregation == Aggregation::active_count || metric.aggregation == Aggregation::unique_count),
          counts_absent_(rules.counts_absent),
          words_apart_(rules.words_apart),
          time_(question.key(fields::time)),
          sequence_(question.key(fields::sequence)),
          items_(rules, rules.values) {
        if (metric.aggregation == Aggregation::active_count) action_ = question.key(".operation_type");
        if (items_counted_)
            item_ = question.key(column_key(metric.property));
        else if (metric.aggregation != Aggregation::count)
            numbers_.emplace(metric.property, rules.numbers, question);
    }

    // By time; of equal times by sequence.
    const std::vector<Step>& steps() const { return steps_; }
    std::optional<std::string> item_name(std::uint32_t item) const { return items_.name(item); }

    void finish() override {
        std::sort(steps_.begin(), steps_.end(), [](const Step& a, const Step& b) { return a.place < b.place; });
        if (items_counted_) count_items(steps_, add_, remove_);
        sums_.resize(events_.size());
        for (const Step& step : steps_) {
            sums_[step.slot] += step.value;
            if (step.value.is_negative()) falls_.insert(step.slot);
        }
    }
    Decimal value(std::size_t slot, const Period&) const override { return sums_[slot]; }
    bool falls(std::size_t slot) const override { return falls_.contains(slot); }

private:
    void take(Connection& db, const Batch& batch, const std::vector<std::uint32_t>& slots, std::size_t) override {
        const auto step = [&](std::size_t row, const Decimal& value) -> Step& {
            ++events_[slots[row]];
            return steps_.emplace_back(Step{{batch.columns[time_].cells[row], batch.columns[sequence_].cells[row]}, slots[row], value, 0, 0});
        };
        if (items_counted_) return take_items(db, batch, step);
        if (!numbers_) return each_row(batch, [&](std::size_t row) { step(row, 1); });
        const int scale = numbers_->scale(batch);
        numbers_->each(
            batch, [&](std::size_t row, std::int64_t cell) { step(row, Decimal::scaled(cell, scale)); }, step);
    }
    template <class MakeStep>
    void take_items(Connection& db, const Batch& batch, MakeStep&& make) {
        const auto& item = items_.number(db, batch.columns[item_], batch);
        const auto* action = action_ ? &actions_.number(db, batch.columns[*action_], batch) : nullptr;
        each_row(batch, [&](std::size_t row) {
            if (item[row] == no_value && !counts_absent_) return;
            Step& step = make(row, {});
            step.item = item[row];
            const std::uint32_t word = action && (*action)[row] != no_value ? (*action)[row] : add_;
            step.action = word == add_ || words_apart_ ? word : remove_;
        });
    }
    bool items_counted_, counts_absent_, words_apart_;
    std::size_t time_, sequence_, item_ = 0;
    std::optional<std::size_t> action_;
    std::optional<Numbers> numbers_;
    Values items_, actions_;
    std::uint32_t add_ = actions_.text("add"), remove_ = actions_.text("remove");
    std::vector<Step> steps_;
    std::vector<Decimal> sums_;
    std::unordered_set<std::size_t> falls_;
};

// Sums and averages by rules that add in their own way, event after event.
class OrderedSumAccumulator final : public StepAccumulator {
public:
    OrderedSumAccumulator(const Metric& metric, const Rules& rules, ScanQuestion& question)
        : StepAccumulator(metric, rules, question), averages_(metric.aggregation == Aggregation::average), rules_(rules) {}
    void finish() override {
        StepAccumulator::finish();
        ordered_.resize(events_.size());
        for (const Step& step : steps()) ordered_[step.slot] = rules_.add(ordered_[step.slot], step.value);
    }
    Decimal value(std::size_t slot, const Period&) const override {
        return averages_ ? rules_.quotient(ordered_[slot], events_[slot]) : ordered_[slot];
    }

private:
    bool averages_;
    const Rules& rules_;
    std::vector<Decimal> ordered_;
};

// What stands, for the time it stands, each piece of time as a share of the whole by itself; a stretch ends with the second. What came before
// it stands from its beginning on (lago-api, weighted_sum_query.rb:12).
class PiecesAccumulator final : public StepAccumulator {
public:
    PiecesAccumulator(const Metric& metric, const Rules& rules, const std::optional<Period>& whole, ScanQuestion& question)
        : StepAccumulator(metric, rules, question), rules_(rules), whole_(whole) {}
    void finish() override {
        StepAccumulator::finish();
        by_slot_.resize(events_.size());
        for (const Step& step : steps()) by_slot_[step.slot].push_back(&step);
    }
    Decimal value(std::size_t slot, const Period& stretch) const override {
        const Period whole = whole_.value_or(stretch);
        const Decimal length = seconds(end_of(whole) - whole.from);
        Decimal standing, total;
        Timestamp since = stretch.from;
        const auto stand_until = [&](Timestamp time) {
            if (time <= since) return;
            total += rules_.quotient(standing * seconds(time - since), length);
            since = time;
        };
        for (const Step* step : by_slot_[slot]) {
            stand_until(Timestamp(step->place.time));
            standing += step->value;
        }
        stand_until(end_of(stretch));
        return rules_.weighted_rounding ? total.round(rules_.weighted_rounding->scale, rules_.weighted_rounding->mode) : total;
    }
    bool falls(std::size_t) const override { return true; }

private:
    static Decimal seconds(std::chrono::microseconds time) { return Decimal::scaled(time.count(), 6); }
    static Timestamp end_of(const Period& period) { return Timestamp(round_up(period.to.micros() - 1, micros_per_second)); }
    const Rules& rules_;
    std::optional<Period> whole_;
    std::vector<std::vector<const Step*>> by_slot_;
};

// ---- metrics kept in the database ----

// The words by which a definition is written.
constexpr std::array<std::pair<std::string_view, Aggregation>, 9> aggregations{{
    {"count", Aggregation::count},
    {"sum", Aggregation::sum},
    {"average", Aggregation::average},
    {"min", Aggregation::min},
    {"max", Aggregation::max},
    {"unique_count", Aggregation::unique_count},
    {"active_count", Aggregation::active_count},
    {"latest", Aggregation::latest},
    {"weighted_sum", Aggregation::weighted_sum},
}};
constexpr std::array<std::pair<std::string_view, Rounding>, 6> roundings{{
    {"half_up", Rounding::half_up},
    {"half_even", Rounding::half_even},
    {"up", Rounding::up},
    {"down", Rounding::down},
    {"ceil", Rounding::ceil},
    {"floor", Rounding::floor},
}};
constexpr std::array<std::pair<std::string_view, Bin>, 13> bin_words{{
    {"none", Bin::none},
    {"minute", Bin::minute},
    {"minutes_15", Bin::minutes_15},
    {"minutes_30", Bin::minutes_30},
    {"hour", Bin::hour},
    {"hours_3", Bin::hours_3},
    {"hours_6", Bin::hours_6},
    {"hours_12", Bin::hours_12},
    {"day", Bin::day},
    {"week", Bin::week},
    {"month", Bin::month},
    {"quarter", Bin::quarter},
    {"year", Bin::year},
}};

// Throws bad_value for a value that no word stands for.
template <class Words, class Value>
std::string_view word_of(const Words& words, Value value, const char* field) {
    for (const auto& [word, meaning] : words) {
        if (meaning == value) return word;
    }
    refuse(field, "is none of its values");
}

template <class Words>
auto meaning_of(const Words& words, std::string_view word) {
    for (const auto& [known, meaning] : words) {
        if (known == word) return meaning;
    }
    damaged("metrics");
}

// Where the result of an expression stands; nowhere when empty.
const std::string& computed_field(const Metric& metric) { return metric.computed.empty() ? metric.property : metric.computed; }

void check_metric(const Metric& metric) {
    word_of(aggregations, metric.aggregation, "metric.aggregation");
    word_of(bin_words, metric.bucket, "metric.bucket");
    if (metric.aggregation != Aggregation::count && metric.property.empty()) refuse("metric.property", "is needed for this aggregation");
    if (metric.aggregation == Aggregation::count && !metric.property.empty()) refuse("metric.property", "has no meaning for a count");
    if (metric.rounding) word_of(roundings, metric.rounding->mode, "metric.rounding");
    if (metric.rounding && (metric.rounding->scale < -Decimal::max_digits || metric.rounding->scale > Decimal::max_digits))
        refuse("metric.rounding", "must be from -38 to 38 decimals");
    if (metric.every_event && !metric.event.empty()) refuse("metric.event", "has no meaning for a metric of every event");
    if (metric.bucket == Bin::none && !metric.bucket_group.empty()) refuse("metric.bucket_group", "needs a bucket");
    if (metric.expression.empty() && !metric.computed.empty()) refuse("metric.computed", "needs an expression");
    if (!metric.expression.empty() && !computed_field(metric).empty() && column_key(computed_field(metric))[0] != '.')
        refuse(metric.computed.empty() ? "metric.property" : "metric.computed", "must be a property, for the result of the expression to stand in");
    check_question("metric.code", metric.code);
    check_question("metric.event", metric.event);
    check_question("metric.property", metric.property);
    check_question("metric.bucket_group", metric.bucket_group);
    check_question("metric.rules", metric.rules);
    check_question("metric.computed", metric.computed);
    check_filter(metric.filter);
}

// Members that say nothing are not written.
json metric_definition(const Metric& metric) {
    json definition = {{"event", metric.event},
                       {"aggregation", word_of(aggregations, metric.aggregation, "metric.aggregation")},
                       {"property", metric.property},
                       {"filter", metric.filter.to_json()}};
    if (metric.multiplier) definition["multiplier"] = metric.multiplier->to_string();
    if (metric.rounding)
        definition["rounding"] = {{"mode", word_of(roundings, metric.rounding->mode, "metric.rounding")}, {"scale", metric.rounding->scale}};
    if (metric.every_event) definition["every_event"] = true;
    if (metric.recurring) definition["recurring"] = true;
    if (metric.bucket != Bin::none) definition["bucket"] = word_of(bin_words, metric.bucket, "metric.bucket");
    if (!metric.bucket_group.empty()) definition["bucket_group"] = metric.bucket_group;
    if (!metric.expression.empty()) definition["expression"] = metric.expression;
    if (!metric.computed.empty()) definition["computed"] = metric.computed;
    if (!metric.rules.empty()) definition["rules"] = metric.rules;
    return definition;
}

Metric defined_metric(std::string_view code, const json& tree) {
    Metric metric{.code = std::string(code), .event = tree.at("event").get<std::string>()};
    metric.aggregation = meaning_of(aggregations, tree.at("aggregation").get<std::string>());
    metric.property = tree.at("property").get<std::string>();
    metric.filter = Filter::from_json(tree.at("filter"));
    if (tree.contains("multiplier")) metric.multiplier = Decimal(tree.at("multiplier").get<std::string>());
    if (const auto rounding = tree.find("rounding"); rounding != tree.end())
        metric.rounding = RoundTo{meaning_of(roundings, rounding->at("mode").get<std::string>()), rounding->at("scale").get<int>()};
    metric.every_event = tree.value("every_event", false);
    metric.recurring = tree.value("recurring", false);
    metric.bucket = meaning_of(bin_words, tree.value("bucket", "none"));
    metric.bucket_group = tree.value("bucket_group", "");
    metric.expression = tree.value("expression", "");
    metric.computed = tree.value("computed", "");
    metric.rules = tree.value("rules", "");
    check_metric(metric);
    return metric;
}

// Of the book with that id, or of the app (0). Of one code the metric stored last is in force, as long as its book is.
void store_metric(Connection& db, const Metric& metric, std::int64_t book = 0) {
    db.prepared("INSERT OR REPLACE INTO metrics(code, book, definition) VALUES(?, ?, ?)").run(metric.code, book, metric_definition(metric).dump());
}

Metric read_metric(std::string_view code, std::string_view definition) {
    return from_file("metrics", [&] { return defined_metric(code, json::parse(definition)); });
}

// Those in force, one of each code, or that of one code. A version of a book that another has followed is not; one that is still to come
// serves where there is nothing else.
std::vector<Metric> metrics_at(Connection& db, Timestamp now, const std::optional<std::string>& code = {}) {
    std::vector<Metric> metrics;
    const Prepared row = db.prepared(
        "SELECT m.code, m.definition FROM metrics m LEFT JOIN books b ON b.id = m.book WHERE ifnull(m.code = ?1, 1) AND NOT EXISTS (SELECT 1 FROM "
        "books l WHERE l.vendor = b.vendor AND l.code = b.code AND l.effective > b.effective AND l.effective <= ?2) ORDER BY m.code, "
        "ifnull(b.effective > ?2, 0), m.id DESC");
    row.bind(code, now.micros());
    while (row.row()) {
        if (metrics.empty() || metrics.back().code != row.text(0)) metrics.push_back(read_metric(row.text(0), row.text(1)));
    }
    return metrics;
}

Metric find_metric(Connection& db, const std::string& code, Timestamp now) {
    std::vector<Metric> found = metrics_at(db, now, code);
    if (found.empty()) throw Error(ErrorCode::not_found, "metric", "\"" + code + "\" is not defined");
    return std::move(found[0]);
}

// In force or not.
std::vector<Metric> all_metrics(Connection& db) {
    std::vector<Metric> metrics;
    const Prepared row = db.prepared("SELECT code, definition FROM metrics ORDER BY id");
    while (row.row()) metrics.push_back(read_metric(row.text(0), row.text(1)));
    return metrics;
}

// ---- questions about a metric ----

// A metric, with whose rules it is read, and what is asked about it.
struct Question {
    const Metric& metric;
    const Rules& rules;
    AggregateQuery query{};
    BinOptions bins{};
    const std::set<Group>* named = nullptr;  // the groups that keep their names; all when absent
};

// The metric's expression, by the field that it comes from.
Expression expression_of(const Metric& metric, const Dialect& dialect, std::string field = "metric.expression") {
    return ExpressionCompiler(metric.expression, dialect, std::move(field)).compile();
}

Expression compiled(const Metric& metric, const Rules& rules) {
    if (rules.dialect == nullptr) refuse("metric.expression", "has no meaning by these rules");
    return expression_of(metric, *rules.dialect);
}

// What depends on the rules.
void check_ruled(const Metric& metric, const Rules& rules) {
    if (metric.recurring && metric.bucket != Bin::none && rules.carrying == Carrying::measured)
        refuse("metric.bucket", "has no meaning for a recurring metric");
    if (!metric.expression.empty()) compiled(metric, rules);
}

Period overlap(const Period& a, const Period& b) { return {std::max(a.from, b.from), std::min(a.to, b.to)}; }

bool has_two_ends(const Period& period) { return period.from > Period().from && period.to < Period().to; }

// Where months run over, no other bins look at the anchor.
BinOptions bins_of(const AggregateQuery& query, const Rules& rules) {
    auto anchor = query.billing_anchor;
    if (rules.month_end == MonthEnd::overflow && query.bin != Bin::month) anchor.reset();
    if (rules.month_end == MonthEnd::overflow && anchor) anchor = Zone(query.time_zone).to_utc(midnight(date_of(*anchor)).micros());
    return {query.bin, query.time_zone, query.week_start, anchor, rules.month_end};
}

void check_aggregate(const Metric& metric, const Rules& rules, const AggregateQuery& query) {
    check_ruled(metric, rules);
    check_period(overlap(query.period, Period()));
    check_filter(query.filter);
    check_question("customer", query.customer);
    check_question("subscription", query.subscription);
    for (const std::string& field : query.group_by) {
        if (field.empty()) refuse("group_by", "names no field");
        check_question("group_by", field);
    }
    if (query.top < 0) refuse("top", "must not be negative");
    const auto& billing = query.billing_period;
    if (billing && billing->from >= billing->to) refuse("billing_period", "must end after it begins");
    if (billing && !has_two_ends(*billing)) refuse("billing_period", "must have two ends");
    if (has_two_ends(query.period)) return;
    const bool in_bins = query.bin != Bin::none;
    if (metric.recurring && rules.carrying == Carrying::measured && in_bins)
        refuse("period", "must have two ends for the bins of a recurring metric");
    if (metric.aggregation != Aggregation::weighted_sum || rules.weighting == Weighting::none) return;
    const bool of_bins = (in_bins && query.top == 0) || metric.bucket != Bin::none;
    const bool of_billing = rules.weighting == Weighting::remaining && billing;
    if (!(rules.weighting == Weighting::remaining ? of_billing : of_bins)) refuse("period", "must have two ends for a weighted sum");
}

// The result of a metric's expression, in place of the property in which it stands. Where it comes to nothing, the event takes no part.
class ComputedColumn {
public:
    ComputedColumn(const Metric& metric, const Rules& rules, ScanQuestion& question) : expression_(compiled(metric, rules)) {
        for (const Expression::Variable& each : expression_.variables) columns_.push_back(question.key(key_of(each)));
        if (computed_field(metric).empty()) return;
        const std::string key = column_key(computed_field(metric));
        result_ = question.key(key);
        presence_ = presence_key(key);
    }
    // The column's texts live in `made`.
    void put(Connection& db, const ScanQuestion& question, Batch& batch, ColumnBuilder& made) const {
        const std::string name = text_of(db, batch.name);
        std::vector<std::uint8_t> mask(batch.rows);
        std::vector<Term> stack;
        each_row(batch, [&](std::size_t row) {
            try {
                const auto result = expression_.run(stack, [&](std::size_t index) { return variable(batch, name, index, row); });
                if (!result) return;
                mask[row] = 1;
                if (expression_.dialect->typed)
                    made.add_number(row, *result);
                else
                    made.add_text(row, *result);
            } catch (const Error& error) {
                if (!error.field().empty()) throw;
            }
        });
        batch.mask = std::move(mask);
        if (!result_) return;
        std::vector<std::uint32_t> rows(batch.rows);
        std::iota(rows.begin(), rows.end(), 0);
        batch.columns[*result_] = made.finish(rows);
        const auto present = std::find(question.keys.begin(), question.keys.end(), presence_);
        if (present != question.keys.end()) {
            Column& column = batch.columns[static_cast<std::size_t>(present - question.keys.begin())];
            column.kinds.assign(1, CellKind::boolean);
        }
    }

private:
    static std::string key_of(const Expression::Variable& variable) {
        if (variable.source == Expression::Variable::Source::property) return "." + variable.name;
        return std::string(variable.source == Expression::Variable::Source::time ? fields::time : fields::name);
    }
    Term variable(const Batch& batch, const std::string& name, std::size_t index, std::size_t row) const {
        const Expression::Variable& variable = expression_.variables[index];
        const Column& column = batch.columns[columns_[index]];
        if (variable.source == Expression::Variable::Source::property) return expression_.dialect->property(variable.name, cell_scalar(column, row));
        if (variable.source == Expression::Variable::Source::name) return name_term(name);
        return time_term(Timestamp(column.cells[row]));
    }
    Expression expression_;
    std::vector<std::size_t> columns_{};
    std::optional<std::size_t> result_{};
    std::string presence_{};
};

// The scan that a question comes down to.
class MetricScan {
public:
    // Nothing is found when the log knows no such name, customer or subscription.
    MetricScan(const Reader& reader, const Question& asked) : reader_(reader) {
        const Metric& metric = asked.metric;
        const std::string& name = metric.every_event ? std::string() : metric.event.empty() ? metric.code : metric.event;
        const Period period{metric.recurring ? Period().from : asked.query.period.from, asked.query.period.to};
        auto found = scan_question(reader, std::span(&name, name.empty() ? 0 : 1), asked.query.customer, asked.query.subscription, period);
        empty_ = !found;
        if (found) question = std::move(*found);
        conditions_.emplace_back(asked.query.filter, question, asked.rules.asked_filter.value_or(asked.rules.filter));
        conditions_.emplace_back(metric.filter, question, asked.rules.filter);
        if (!metric.expression.empty()) computed_.emplace(metric, asked.rules, question);
    }
    template <class Use>
    void each(Use&& use) const {
        if (empty_) return;
        for (const Source& source : sources(reader_, question)) {
            Batch batch = load(reader_, source, question);
            if (batch.rows == 0) continue;
            std::optional<ColumnBuilder> made;
            if (computed_) computed_->put(reader_, question, batch, made.emplace());
            for (const Condition& condition : conditions_) condition.apply(reader_, batch);
            mask_owners(batch);
            use(batch);
        }
    }
    ScanQuestion question{};

private:
    const Reader& reader_;
    bool empty_ = false;
    std::vector<Condition> conditions_{};
    std::optional<ComputedColumn> computed_{};
};

// Else the multiplier is the result's.
bool multiplied_each(const Metric& metric, const Rules& rules) {
    const auto counts = {Aggregation::count, Aggregation::unique_count, Aggregation::active_count};
    return rules.multiplied_each && std::find(counts.begin(), counts.end(), metric.aggregation) == counts.end();
}

std::unique_ptr<Accumulator> make_accumulator(const Question& asked, ScanQuestion& question) {
    const auto& [metric, rules, query, bins, named] = asked;
    const auto multiplier = multiplied_each(asked.metric, asked.rules) ? asked.metric.multiplier : std::nullopt;
    const auto numbers = [&] { return Numbers(asked.metric.property, asked.rules.numbers, question, multiplier); };
    const bool in_parts = asked.bins.bin != Bin::none || !asked.query.group_by.empty();
    switch (metric.aggregation) {
        case Aggregation::count:
            return std::make_unique<CountAccumulator>();
        case Aggregation::sum:
            return std::make_unique<SumAccumulator>(numbers());
        case Aggregation::average:
            return std::make_unique<AverageAccumulator>(numbers(), rules);
        case Aggregation::min:
        case Aggregation::max:
            return std::make_unique<ExtremeAccumulator>(numbers(), metric.aggregation == Aggregation::max);
        case Aggregation::unique_count:
            return std::make_unique<UniqueAccumulator>(question.key(column_key(metric.property)), rules,
                                                       in_parts ? asked.rules.values_in_parts.value_or(asked.rules.values) : asked.rules.values);
        case Aggregation::active_count:
            return std::make_unique<StepAccumulator>(metric, rules, question);
        case Aggregation::latest:
            return std::make_unique<LatestAccumulator>(numbers(), question);
        case Aggregation::weighted_sum:
            if (rules.weighting == Weighting::none) return std::make_unique<SumAccumulator>(numbers());
            if (rules.weighting == Weighting::pieces) return std::make_unique<PiecesAccumulator>(metric, rules, query.billing_period, question);
            return std::make_unique<WeightedAccumulator>(numbers(), rules, query, question);
    }
    refuse("metric.aggregation", "is not one of the aggregations");
}

// Rules that add in their own way are asked, `ordered`, only when exact sums are not the same.
std::vector<Measured> scanned_rows(const Reader& reader, const Question& asked, bool ordered = false) {
    MetricScan scan(reader, asked);
    Slots slots(asked.bins, {asked.query.group_by, asked.rules.groups, asked.named, asked.metric.bucket_group}, scan.question);
    const std::unique_ptr<Accumulator> accumulator =
        ordered ? std::make_unique<OrderedSumAccumulator>(asked.metric, asked.rules, scan.question) : make_accumulator(asked, scan.question);
    scan.each([&](const Batch& batch) {
        const auto& places = slots.place(reader, batch);
        accumulator->add(reader, batch, places, slots.size());
    });
    accumulator->finish();
    if (asked.rules.add && !ordered && !accumulator->exact_in_binary()) return scanned_rows(reader, asked, true);
    std::vector<std::size_t> met;
    for (std::size_t slot = 0; slot < slots.size(); ++slot) {
        if (accumulator->events(slot) > 0) met.push_back(slot);
    }
    if (met.size() > limits::aggregate_rows) Slots::throw_too_many_rows();
    slots.sort(met);
    std::vector<Measured> rows;
    rows.reserve(met.size());
    for (const std::size_t slot : met) {
        Measured& row = rows.emplace_back(slots.row(slot));
        row.value = accumulator->value(slot, overlap(slots.bin(row), asked.query.period));
        const bool latest = asked.metric.aggregation == Aggregation::latest;
        if (asked.rules.not_negative || (latest && asked.rules.latest_not_negative)) row.value = std::max(row.value, Decimal());
        row.events = accumulator->events(slot);
        row.falls = accumulator->falls(slot);
    }
    return rows;
}

using RowKey = std::tuple<std::optional<Timestamp>, bool, Group>;
RowKey key_of(const Measured& row) { return {row.bin, row.rest, row.group}; }

void sort_rows(std::vector<Measured>& rows) {
    std::sort(rows.begin(), rows.end(),
              [](const Measured& a, const Measured& b) { return std::tie(a.bin, a.rest, a.group) < std::tie(b.bin, b.rest, b.group); });
}

// Adds up what is measured in each bucket, and for each value of its group.
std::vector<Measured> bucketed_rows(const Reader& reader, Question asked) {
    const Metric& metric = asked.metric;
    const bool binned = asked.bins.bin != Bin::none, of_months = stride_of(metric.bucket).months > 0;
    Bins outer(asked.bins);
    AggregateQuery inner = asked.query;
    inner.bin = metric.bucket;
    inner.week_start = asked.rules.week_start;
    if (!of_months) inner.billing_anchor.reset();
    asked.bins = bins_of(inner, asked.rules);
    std::map<RowKey, Measured> sums;
    for (Measured& bucket : scanned_rows(reader, asked)) {
        bucket.bin = binned ? std::optional(outer.around(*bucket.bin).from) : std::nullopt;
        Measured& sum = sums.try_emplace(key_of(bucket), Measured{bucket.bin, bucket.group, {}, 0, bucket.rest, false}).first->second;
        sum.value += bucket.value;
        sum.events += bucket.events;
        sum.falls = sum.falls || bucket.falls || metric.aggregation != Aggregation::sum;
    }
    std::vector<Measured> rows;
    for (auto& [key, row] : sums) rows.push_back(std::move(row));
    return rows;
}

// Each bin as a question of its own, about all that came before its end.
std::vector<Measured> carried_rows(const Reader& reader, Question asked) {
    const Period period = asked.query.period;
    const BinGrid grid(period, asked.bins);
    if (grid.count() > static_cast<std::int64_t>(limits::carried_bins))
        throw Error(ErrorCode::too_large, "bin", "the period has more than " + std::to_string(limits::carried_bins) + " bins of a recurring metric");
    asked.bins = {};
    std::vector<Measured> rows;
    for (std::int64_t i = 0; i < grid.count(); ++i) {
        asked.query.period = overlap({grid.start(i), grid.start(i + 1)}, period);
        for (Measured& row : scanned_rows(reader, asked)) {
            row.bin = grid.start(i);
            rows.push_back(std::move(row));
        }
        if (rows.size() > limits::aggregate_rows) Slots::throw_too_many_rows();
    }
    return rows;
}

// What the period comes to, and what all that came before it does, added.
std::vector<Measured> added_rows(const Reader& reader, Question asked) {
    Metric metric = asked.metric;
    metric.recurring = false;
    const Question now{metric, asked.rules, asked.query, asked.bins, asked.named};
    const auto measured = [&](const Question& question) {
        return metric.bucket != Bin::none ? bucketed_rows(reader, question) : scanned_rows(reader, question);
    };
    auto rows = measured(now);
    if (asked.bins.bin != Bin::none || asked.query.period.from == Period().from) return rows;
    Question before = now;
    before.query.period = {Period().from, asked.query.period.from};
    for (Measured& row : measured(before)) {
        const auto same = std::find_if(rows.begin(), rows.end(), [&](const Measured& each) { return key_of(each) == key_of(row); });
        if (same == rows.end()) {
            rows.push_back(std::move(row));
        } else {
            same->value += row.value;
            same->events += row.events;
            same->falls = same->falls || row.falls;
        }
    }
    sort_rows(rows);
    return rows;
}

// What the question asks for, in order of bin, then group.
std::vector<Measured> rows_of(const Reader& reader, const Question& asked) {
    const Metric& metric = asked.metric;
    const bool added = metric.recurring && asked.rules.carrying == Carrying::added;
    auto rows = added                                             ? added_rows(reader, asked)
                : metric.bucket != Bin::none                      ? bucketed_rows(reader, asked)
                : metric.recurring && asked.bins.bin != Bin::none ? carried_rows(reader, asked)
                                                                  : scanned_rows(reader, asked);
    for (Measured& row : rows) {
        if (metric.multiplier && !multiplied_each(metric, asked.rules)) row.value *= *metric.multiplier;
        if (metric.rounding) row.value = row.value.round(metric.rounding->scale, metric.rounding->mode);
    }
    return rows;
}

// Without bins, those of the `top` greatest values first, in order.
std::vector<Measured> ranked_rows(const Reader& reader, Question asked) {
    asked.bins = {};
    auto rows = rows_of(reader, asked);
    const auto most = static_cast<std::ptrdiff_t>(std::min(rows.size(), static_cast<std::size_t>(asked.query.top)));
    std::partial_sort(rows.begin(), rows.begin() + most, rows.end(),
                      [](const Measured& a, const Measured& b) { return a.value != b.value ? a.value > b.value : a.group < b.group; });
    return rows;
}

// Whether events measured together come to what their parts come to, added up.
bool adds_up(const Metric& metric, const Rules& rules) {
    const bool sums = metric.aggregation == Aggregation::count || metric.aggregation == Aggregation::sum;
    return sums && !metric.rounding && !rules.not_negative && rules.add == nullptr;
}

// The rows after the first `top` as one.
void add_up_rest(std::vector<Measured>& rows, std::size_t top) {
    if (rows.size() <= top) return;
    Measured rest{{}, Group(rows[0].group.size()), {}, 0, true, false};
    ExactSum sum;
    for (std::size_t i = top; i < rows.size(); ++i) {
        sum.add(rows[i].value);
        rest.events += rows[i].events;
        rest.falls = rest.falls || rows[i].falls;
    }
    rest.value = sum.result();
    rows.resize(top);
    rows.push_back(std::move(rest));
}

// The question's rows with all groups but the greatest as the rest.
std::vector<Measured> top_rows(const Reader& reader, Question asked) {
    auto rows = ranked_rows(reader, asked);
    const auto top = static_cast<std::size_t>(asked.query.top);
    if (asked.bins.bin == Bin::none && adds_up(asked.metric, asked.rules)) {
        add_up_rest(rows, top);
        sort_rows(rows);
        return rows;
    }
    std::set<Group> named;
    for (std::size_t i = 0; i < std::min(top, rows.size()); ++i) named.insert(std::move(rows[i].group));
    asked.named = &named;
    return rows_of(reader, asked);
}

// Adds the bins that have no events.
void fill_bins(std::vector<Measured>& rows, const AggregateQuery& query, const BinOptions& bins) {
    Period period = query.period;
    const auto [first, last] = std::minmax_element(rows.begin(), rows.end(), [](const Measured& a, const Measured& b) { return a.bin < b.bin; });
    if (rows.empty() && (period.from == Period().from || period.to == Period().to)) return;
    if (period.from == Period().from) period.from = *first->bin;
    if (period.to == Period().to) period.to = *last->bin + std::chrono::microseconds(1);
    const BinGrid grid(period, bins);
    std::set<std::pair<bool, Group>> groups;
    if (query.group_by.empty()) groups.emplace(false, Group());
    for (const Measured& row : rows) groups.emplace(row.rest, row.group);
    if (groups.empty()) return;
    if (grid.count() > static_cast<std::int64_t>(limits::aggregate_rows / groups.size())) Slots::throw_too_many_rows();
    std::set<RowKey> known;
    for (const Measured& row : rows) known.insert(key_of(row));
    for (std::int64_t i = 0; i < grid.count(); ++i) {
        for (const auto& [rest, group] : groups) {
            if (!known.contains({grid.start(i), rest, group})) rows.push_back({grid.start(i), group, {}, 0, rest, false});
        }
    }
    sort_rows(rows);
}

// Rows in order of bin, then group, the rest last.
std::vector<Measured> measure(const Reader& reader, const Metric& metric, const Rules& rules, AggregateQuery query) {
    check_aggregate(metric, rules, query);
    query.period = overlap(query.period, Period());
    if (rules.whole_seconds) query.period = {cut(query.period.from, micros_per_second), cut(query.period.to, micros_per_second)};
    const Question asked{metric, rules, query, bins_of(query, rules), nullptr};
    auto rows = query.top > 0 && !query.group_by.empty() ? top_rows(reader, asked) : rows_of(reader, asked);
    if (query.fill && query.bin != Bin::none) fill_bins(rows, query, asked.bins);
    return rows;
}

// What each event adds to the value: a count's 1, a sum's number, what a count of values rises or falls by.
StepAccumulator stepped(const Reader& reader, const Question& asked) {
    MetricScan scan(reader, asked);
    Slots slots({}, {}, scan.question);
    StepAccumulator accumulator(asked.metric, asked.rules, scan.question);
    scan.each([&](const Batch& batch) {
        const auto& places = slots.place(reader, batch);
        accumulator.add(reader, batch, places, slots.size());
    });
    accumulator.finish();
    return accumulator;
}

// ---- values that stand ----

// In order of the value, that of no value first.
std::vector<ActiveValue> active_values(const Reader& reader, const Question& asked) {
    struct Standing {
        Decimal count;
        Timestamp since;
    };
    const StepAccumulator accumulator = stepped(reader, asked);
    std::unordered_map<std::uint32_t, Standing> items;
    for (const Step& step : accumulator.steps()) {
        Standing& item = items[step.item];
        item.count += step.value;
        if (step.value > 0) item.since = Timestamp(step.place.time);
    }
    std::vector<ActiveValue> values;
    for (const auto& [item, standing] : items) {
        if (standing.count > 0) values.push_back({accumulator.item_name(item), standing.since});
    }
    std::sort(values.begin(), values.end(), [](const ActiveValue& a, const ActiveValue& b) { return a.value < b.value; });
    return values;
}

ActiveValues active_page(const Reader& reader, const Metric& metric, const Rules& rules, const ActiveQuery& query) {
    AggregateQuery about{.customer = query.customer, .subscription = query.subscription, .period = query.period, .filter = query.filter};
    auto values = active_values(reader, {metric, rules, std::move(about)});
    const auto total = static_cast<std::int64_t>(values.size());
    const std::int64_t first = std::min(query.offset, total), last = first + std::min(query.limit, total - first);
    const auto at = [&](std::int64_t place) { return std::make_move_iterator(values.begin() + static_cast<std::ptrdiff_t>(place)); };
    return {{at(first), at(last)}, total};
}

void check_active(const Metric& metric, const ActiveQuery& query) {
    if (metric.aggregation != Aggregation::active_count && metric.aggregation != Aggregation::unique_count) refuse("metric", "does not count values");
    check_paging(query.limit, query.offset);
    check_period(query.period);
    check_filter(query.filter);
    check_question("customer", query.customer);
    check_question("subscription", query.subscription);
}

// ---- running totals: answers that are kept up with the log, for those who ask at every event ----

// The log as a transaction sees it up to `last`, and after that the one event that is being decided about, if any.
class GrowingLog {
public:
    GrowingLog(Connection& connection, ScanMemory& memory, std::uint64_t rolled_back) : db(connection), rollbacks(rolled_back), memory_(memory) {}
    void move_to(std::int64_t end) {
        last = end;
        event_ = {};
    }
    void add_event() { event_ = read_stretch(db, last, last + 1, {}, {}); }
    bool has_event() const noexcept { return !event_.parts.empty(); }
    // All of it; what is before the event; the event.
    Reader whole() { return {db, refreshed(), &event_}; }
    Reader before() { return {db, refreshed(), nullptr}; }
    Reader event() { return {db, nothing_, &event_}; }
    // Some of what is before the event, alone.
    Reader part(const Stretch& stretch) { return {db, nothing_, &stretch}; }

    Connection& db;
    const std::uint64_t rollbacks;
    std::int64_t last = 0;

private:
    ScanMemory& refreshed() {
        memory_.refresh(db, last);
        return memory_;
    }
    ScanMemory& memory_;
    ScanMemory nothing_{};
    Stretch event_{};
};

// Equal for equal questions alone.
std::string question_key(const Metric& metric, const AggregateQuery& query) {
    const auto ends = [](const Period& period) { return json{period.from.micros(), period.to.micros()}; };
    return json{{metric.code, metric_definition(metric)},
                {query.customer, query.subscription, ends(query.period), query.group_by, query.filter.to_json(), query.top, query.fill},
                {query.bin, query.time_zone, query.week_start.c_encoding(), query.billing_anchor.value_or(Timestamp::min()).micros()},
                query.billing_period ? ends(*query.billing_period) : json()}
        .dump();
}

// How the values of two sets of events make that of both; nothing where it takes the events themselves.
using Join = Decimal (*)(const Decimal&, const Decimal&);

Join join_of(const Metric& metric, const Rules& rules, const AggregateQuery& query) {
    if (metric.bucket != Bin::none || metric.rounding || rules.not_negative || query.bin != Bin::none || query.top != 0) return nullptr;
    switch (metric.aggregation) {
        case Aggregation::sum:
            if (rules.add) return nullptr;
            [[fallthrough]];
        case Aggregation::count:
            return [](const Decimal& a, const Decimal& b) { return a + b; };
        case Aggregation::min:
            return metric.multiplier ? nullptr : Join([](const Decimal& a, const Decimal& b) { return std::min(a, b); });
        case Aggregation::max:
            return metric.multiplier ? nullptr : Join([](const Decimal& a, const Decimal& b) { return std::max(a, b); });
        default:
            return nullptr;
    }
}

void join_rows(std::vector<Measured>& rows, std::vector<Measured> more, Join join) {
    for (Measured& row : more) {
        const auto place =
            std::lower_bound(rows.begin(), rows.end(), row.group, [](const Measured& each, const Group& group) { return each.group < group; });
        if (place == rows.end() || place->group != row.group) {
            rows.insert(place, std::move(row));
            continue;
        }
        place->value = join(place->value, row.value);
        place->events += row.events;
        place->falls = place->falls || row.falls;
    }
}

// What was measured up to some place of the log is joined with what has come since: that costs the same however long the log is. What cannot be
// joined is measured anew. Used by one thread at a time.
class RunningTotals {
public:
    std::vector<Measured> measure(GrowingLog& log, const Metric& metric, const Rules& rules, const AggregateQuery& query) {
        const Join join = join_of(metric, rules, query);
        if (join == nullptr) return meter::measure(log.whole(), metric, rules, query);
        std::vector<Measured> rows = current(log, metric, rules, query, join);
        if (log.has_event()) join_rows(rows, meter::measure(log.event(), metric, rules, query), join);
        return rows;
    }

private:
    static constexpr std::size_t most_totals = 16384, most_rows = 256;  // kept; of one of them
    static constexpr std::int64_t most_events = 16384;                  // that are joined: reading columns is quicker for more
    struct Total {
        std::int64_t through = 0;
        std::vector<Measured> rows{};
    };

    // As of log.last.
    std::vector<Measured> current(GrowingLog& log, const Metric& metric, const Rules& rules, const AggregateQuery& query, Join join) {
        forget_if_changed(log);
        const std::string key = question_key(metric, query);
        const auto known = totals_.find(key);
        Total total = known == totals_.end() || log.last - known->second.through > most_events ? Total{} : std::move(known->second);
        if (total.through == 0) {
            total.rows = meter::measure(log.before(), metric, rules, query);
        } else if (total.through < log.last) {
            const Stretch& stretch = since(log, total.through, query);
            if (!stretch.parts.empty()) join_rows(total.rows, meter::measure(log.part(stretch), metric, rules, query), join);
        }
        total.through = log.last;
        std::vector<Measured> rows = total.rows;
        if (rows.size() > most_rows || totals_.size() >= most_totals) totals_.clear();
        if (rows.size() <= most_rows) totals_[key] = std::move(total);
        return rows;
    }
    // A rollback takes back what was counted, retention what was there.
    void forget_if_changed(GrowingLog& log) {
        const std::int64_t pruned = meta(log.db, "pruned");
        if (log.rollbacks == rollbacks_ && pruned == pruned_) return;
        totals_.clear();
        since_.reset();
        rollbacks_ = log.rollbacks;
        pruned_ = pruned;
    }
    // The events since that may belong to the question; questions that come one after the other mostly need the same.
    const Stretch& since(GrowingLog& log, std::int64_t through, const AggregateQuery& query) {
        const std::array<std::int64_t, 2> range{through, log.last};
        if (!since_ || since_->range != range || since_->customer != query.customer || since_->subscription != query.subscription) {
            const auto id = [&](const std::string& text) { return text.empty() ? std::nullopt : std::optional(text_id(log.db, text)); };
            since_ =
                Since{range, query.customer, query.subscription, read_stretch(log.db, through, log.last, id(query.customer), id(query.subscription))};
        }
        return since_->stretch;
    }

    struct Since {
        std::array<std::int64_t, 2> range{};
        std::string customer{}, subscription{};
        Stretch stretch{};
    };
    std::unordered_map<std::string, Total> totals_;
    std::optional<Since> since_;
    std::uint64_t rollbacks_ = 0;
    std::int64_t pruned_ = 0;
};

}  // namespace

// =============================================================================================
// 7 fees: tiers, packages, percentages, rounding to a currency. Pure. Uses 1-3.
// =============================================================================================

namespace {

// The units beyond `above` up to and including `up_to` (all of them when absent), at `rate` each, and `flat` once.
struct Tier {
    Decimal above;
    std::optional<Decimal> up_to;
    Decimal rate, flat;
    Decimal from;  // the lower bound as the vendor writes it
};

// An amount in currency units and the lines that add up to it.
struct Priced {
    Decimal amount;
    std::vector<FeeLine> lines;

    void add(FeeLine line) {
        amount += line.amount;
        lines.push_back(std::move(line));
    }
    void append(Priced more) {
        for (auto& line : more.lines) add(std::move(line));
    }
};

Priced only(FeeLine line) {
    Priced priced;
    priced.add(std::move(line));
    return priced;
}

// a / b to 32 significant digits; 0 when b is 0.
Decimal quotient(const Decimal& a, const Decimal& b) { return b.is_zero() ? Decimal() : Decimal::divide_significant(a, b, 32, Rounding::half_up); }

Decimal percent(const Decimal& rate) { return rate * Decimal::scaled(1, 2); }

Decimal smaller(const Decimal& a, const std::optional<Decimal>& b) { return b && *b < a ? *b : a; }

Decimal at_least_zero(const Decimal& value) { return value.is_negative() ? Decimal() : value; }

FeeLine units_line(const Decimal& units, const Decimal& rate) { return {.units = units, .rate = rate, .amount = units * rate}; }

FeeLine free_line(const Decimal& units) { return {.step = FeeLine::Step::free, .units = units}; }

// The units that cost nothing come before the others.
Priced after_free(const Decimal& units, Priced priced) {
    if (!units.is_zero()) priced.lines.insert(priced.lines.begin(), free_line(units));
    return priced;
}

FeeLine tier_line(const Tier& tier, const Decimal& units) {
    return {.step = FeeLine::Step::tier,
            .from = tier.from,
            .to = tier.up_to,
            .units = units,
            .rate = tier.rate,
            .flat = tier.flat,
            .amount = units * tier.rate + tier.flat};
}

// Graduated: every tier prices the units that fall into it, up to the first tier that reaches `units`. That includes the first tier
// for no units at all, or less.
Priced graduated(std::span<const Tier> tiers, const Decimal& units) {
    Priced priced;
    priced.lines.reserve(tiers.size());
    for (const auto& tier : tiers) {
        priced.add(tier_line(tier, smaller(units, tier.up_to) - tier.above));
        if (!tier.up_to || *tier.up_to >= units) break;
    }
    return priced;
}

// In order of their limits, the open one last; each begins where the one before it ends.
void stack(std::vector<Tier>& tiers) {
    std::stable_sort(tiers.begin(), tiers.end(), [](const Tier& a, const Tier& b) { return a.up_to && (!b.up_to || *a.up_to < *b.up_to); });
    for (std::size_t i = 1; i < tiers.size(); ++i) tiers[i].above = tiers[i].from = tiers[i - 1].up_to.value_or(Decimal());
}

// The first tier that reaches the units, its limit included.
const Tier* tier_reaching(std::span<const Tier> tiers, const Decimal& units) {
    const auto found = std::find_if(tiers.begin(), tiers.end(), [&](const Tier& tier) { return !tier.up_to || units <= *tier.up_to; });
    return found == tiers.end() ? nullptr : &*found;
}

// How many packages of `size` are begun by `units`.
Decimal begun_packages(const Decimal& units, const Decimal& size) { return Decimal::divide(units, size, 0, Rounding::ceil); }

// Packages: each begun one is paid whole.
Priced packages(const Decimal& units, const Decimal& size, const Decimal& rate) {
    return only({.step = FeeLine::Step::package, .units = units, .rate = rate, .per = size, .amount = begun_packages(units, size) * rate});
}

FeeLine percentage_line(const Decimal& units, const Decimal& rate_percent) {
    const auto rate = percent(rate_percent);
    return {.step = FeeLine::Step::percentage, .units = units, .rate = rate, .amount = units * rate};
}

FeeLine fixed_line(const Decimal& times, const Decimal& amount) {
    return {.step = FeeLine::Step::fixed, .units = times, .rate = amount, .amount = times * amount};
}

// What brings the amount to at least `minimum`, or nothing.
void raise_to(Priced& priced, const Decimal& minimum) {
    if (priced.amount < minimum) priced.add({.step = FeeLine::Step::minimum, .amount = minimum - priced.amount});
}

void lower_to(Priced& priced, const Decimal& maximum) {
    if (priced.amount > maximum) priced.add({.step = FeeLine::Step::maximum, .amount = maximum - priced.amount});
}

// `with` less `without`, line by line: lines of the same step and bounds are subtracted from each other, what is equal in both vanishes.
Priced difference(const Priced& with, const Priced& without) {
    Priced result;
    auto lines = with.lines;
    for (const auto& line : without.lines) {
        const auto same = std::find_if(lines.begin(), lines.end(), [&](const FeeLine& other) {
            return other.step == line.step && other.from == line.from && other.rate == line.rate;
        });
        if (same == lines.end()) {
            lines.push_back({.step = FeeLine::Step::advance, .amount = -line.amount});
            continue;
        }
        same->units -= line.units;
        same->flat -= line.flat;
        same->amount -= line.amount;
    }
    for (auto& line : lines) {
        if (!line.amount.is_zero() || !line.units.is_zero()) result.add(std::move(line));
    }
    return result;
}

void round_to(Priced& priced, const Decimal& rounded) {
    if (rounded != priced.amount) priced.add({.step = FeeLine::Step::rounding, .amount = rounded - priced.amount});
}

// What makes the amount that in another unit.
void convert_to(Priced& priced, const Decimal& amount, const Decimal& rate) {
    priced.add({.step = FeeLine::Step::conversion, .rate = rate, .amount = amount - priced.amount});
}

// A currency's smallest unit: amounts are rounded to `decimals` and counted in units of 1 / `subunits`.
struct Currency {
    int decimals = 2;
    int subunits = 100;
};

// Those of a vendor's currencies, of which a list of codes names some, that do not have 2 decimals.
struct CurrencyRow {
    std::string_view codes;
    Currency currency;
};

Currency currency_in(std::span<const CurrencyRow> rows, std::string_view code) {
    for (const auto& row : rows) {
        const auto at = row.codes.find(code);
        if (code.size() == 3 && at != std::string_view::npos && at % 4 == 0) return row.currency;
    }
    return {};
}

// Half up; a count of smallest units is whole (what MRO's fifths leave over is cut).
Decimal to_cents(const Decimal& amount, Currency currency) {
    return (amount.round(currency.decimals, Rounding::half_up) * Decimal(currency.subunits)).round(0, Rounding::down);
}

// --- fees as texts ---------------------------------------------------------------------------

std::string_view step_name(FeeLine::Step step) {
    static constexpr std::array<std::string_view, 14> names{"units",   "tier",    "package", "percentage", "fixed",      "free",     "given",
                                                            "minimum", "maximum", "advance", "discount",   "conversion", "rounding", "overage"};
    return names[static_cast<std::size_t>(step)];
}

std::string tier_text(const FeeLine& line) {
    auto text = "tier " + (line.from ? line.from->to_string() : "0") + (line.to ? " to " + line.to->to_string() : " and up");
    text += ": " + line.units.to_string() + " x " + line.rate.to_string();
    if (!line.flat.is_zero()) text += " + " + line.flat.to_string();
    return text;
}

json optional_text(const std::optional<Decimal>& value) { return value ? json(value->to_string()) : json(nullptr); }

json filled_text(const std::string& text) { return text.empty() ? json(nullptr) : json(text); }

json group_json(const std::vector<std::pair<std::string, std::optional<std::string>>>& group) {
    auto object = json::object();
    for (const auto& [key, value] : group) object[key] = value ? json(*value) : json(nullptr);
    return object;
}

json line_json(const FeeLine& line) {
    return {{"step", step_name(line.step)},     {"text", line.text()},           {"from", optional_text(line.from)}, {"to", optional_text(line.to)},
            {"units", line.units.to_string()},  {"rate", line.rate.to_string()}, {"flat", line.flat.to_string()},    {"per", line.per.to_string()},
            {"amount", line.amount.to_string()}};
}

std::string padded(std::string text, std::size_t width) {
    if (text.size() < width) text.insert(0, width - text.size(), ' ');
    return text;
}

std::string text_row(std::string label, const std::string& amount) {
    label.resize(std::max<std::size_t>(label.size(), 60), ' ');
    return label + padded(amount, 16) + "\n";
}

std::string cents_text(const Decimal& cents, int subunits) {
    return quotient(cents, Decimal(subunits)).to_fixed(subunits == 1 ? 0 : Decimal(subunits).digits() - 1);
}

}  // namespace

std::string FeeLine::text() const {
    switch (step) {
        case Step::units:
            return units.to_string() + " x " + rate.to_string();
        case Step::tier:
            return tier_text(*this);
        case Step::package:
            return units.to_string() + " in packages of " + per.to_string() + " x " + rate.to_string();
        case Step::percentage:
            return units.to_string() + " x " + (rate * 100).to_string() + " %";
        case Step::fixed:
            return units.to_string() + " times " + rate.to_string();
        case Step::free:
            return units.to_string() + " free";
        case Step::given:
            return "given with the events";
        case Step::minimum:
            return "up to the minimum";
        case Step::maximum:
            return "down to the maximum";
        case Step::overage:
            return units.to_string() + " beyond the commitment x " + rate.to_string();
        case Step::advance:
            return "paid before";
        case Step::discount:
            return "discount";
        case Step::conversion:
            return "converted at " + rate.to_string();
        case Step::rounding:
            return "rounded";
    }
    return {};
}

json Fee::to_json() const {
    auto steps = json::array();
    for (const auto& line : lines) steps.push_back(line_json(line));
    return {{"charge", charge},
            {"metric", metric},
            {"customer", customer},
            {"subscription", subscription},
            {"event", filled_text(event)},
            {"group", group_json(group)},
            {"filter", filter},
            {"currency", currency},
            {"units", units.to_string()},
            {"events", events},
            {"amount", amount.to_string()},
            {"amount_cents", amount_cents.to_string()},
            {"unit_amount", unit_amount.to_string()},
            {"pay_in_advance", pay_in_advance},
            {"from", period == Period() ? json(nullptr) : json(period.from.to_string())},
            {"to", period == Period() ? json(nullptr) : json(period.to.to_string())},
            {"lines", std::move(steps)}};
}

json Fees::to_json() const {
    auto list = json::array();
    for (const auto& fee : fees) list.push_back(fee.to_json());
    return {{"currency", currency}, {"amount_cents", amount_cents.to_string()}, {"fees", std::move(list)}};
}

json Check::to_json() const {
    return {{"allowed", allowed},
            {"reason", reason},
            {"feature", feature},
            {"required", optional_text(required)},
            {"flag", flag},
            {"unlimited", unlimited},
            {"overage_allowed", overage_allowed},
            {"granted", optional_text(granted)},
            {"usage", optional_text(usage)},
            {"balance", optional_text(balance)},
            {"overage", optional_text(overage)},
            {"overage_limit", optional_text(overage_limit)},
            {"usage_limit_left", optional_text(usage_limit_left)},
            {"next_reset", next_reset ? json(next_reset->to_string()) : json(nullptr)}};
}

std::string Fees::to_text() const {
    std::string text;
    for (const auto& fee : fees) {
        auto title = fee.charge;
        if (!fee.filter.empty()) title += " (" + fee.filter + ")";
        for (const auto& [key, value] : fee.group) title += ", " + key + " " + value.value_or("-");
        text += text_row(title + ": " + fee.units.to_string() + " units", cents_text(fee.amount_cents, subunits));
        for (const auto& line : fee.lines) text += text_row("    " + line.text(), line.amount.to_string());
    }
    return text + text_row("total " + currency, cents_text(amount_cents, subunits));
}

// =============================================================================================
// 8 books: how each vendor measures and prices, from its own JSON. Pure. Uses 1-3, the questions and rules of 6, 7.
// Each vendor's room has the same order: words and numbers, prices, the catalogue, the account, measuring, fees, operations (which are all that
// others see of it); answers of a kind that it alone gives come last.
// (Numbers in brackets, as in "dossier 6.3" or "(6.3)", are sections of the project's notes on that vendor; file names are the vendor's own.)
// =============================================================================================

// ---------------------------------------------------------------------------------------------
// 8.1 What all books share
// ---------------------------------------------------------------------------------------------

// ---- what a book asks, and what it can do ----

// What one event adds to a value: a count's 1, the number of a sum (or maximum), a unique count's 1, 0 or -1.
struct EventStep {
    Timestamp time = {};
    std::int64_t sequence = 0;
    Decimal value = {};
    std::uint32_t item = 0;  // of a unique count: events with the same are about the same value; 0 without the property
};

// What a book asks of the log. Which events: those of the metric and the query, as in Meter::aggregate.
class UsageSource {
public:
    virtual ~UsageSource() = default;
    // One row for each bin and group, in order; without either exactly one, also when there are no events.
    virtual std::vector<Measured> measure(const Metric& metric, const AggregateQuery& query) = 0;
    // The step of each event, by time, then sequence. Ends after `limit` events, or with the one that brings the sum over `until`.
    virtual std::vector<EventStep> steps(const Metric& metric, const AggregateQuery& query, std::size_t limit,
                                         const std::optional<Decimal>& until) = 0;
    std::vector<EventStep> steps(const Metric& metric, const AggregateQuery& query) {
        return steps(metric, query, std::numeric_limits<std::size_t>::max(), {});
    }
    // The event of a step.
    virtual Event event(std::int64_t sequence) = 0;
    // Sum of precise_total_amount_cents of the events that take part.
    virtual Decimal precise_total_cents(const Metric& metric, const AggregateQuery& query) = 0;
};

// What every vendor's book can do. An answer depends on nothing but the arguments and the source.
struct Book::Impl {
    std::string vendor, code;
    json source;
    std::vector<Metric> metrics;
    std::string currency_code;  // of all its fees
    Currency currency;

    virtual ~Impl() = default;
    // Whether the book prices this subscription or, where the vendor has none, this customer.
    virtual bool serves(const std::string& subscription, const std::string& customer) const = 0;
    // The period around a moment whose usage is billed together, of the first that the question is about.
    virtual Period period_around(const UsageQuery&, Timestamp at) const { return this_month(at); }
    // The subscriptions that the question is about, each of which has a period of its own; an empty one stands for all.
    virtual std::vector<std::string> subscriptions_of(const UsageQuery& query, Timestamp) const { return {query.subscription}; }
    // Whether it can price a customer as a whole, though events name subscriptions.
    virtual bool prices_customer(const std::string& customer) const { return serves({}, customer); }
    virtual Fees estimate_fees(const Event& event, Timestamp now, UsageSource& usage) const = 0;
    // The event priced alone, without what came before it; no fees when it meets no charge that is priced so.
    virtual Fees estimate_instant_fees(const Event&, Timestamp) const {
        throw Error(ErrorCode::unsupported, "", vendor + " has no instant estimates");
    }
    // The fees that an event of the log brought about, and those of all events of a period.
    virtual Fees advance_fees(const Event&, UsageSource&) const { throw Error(ErrorCode::unsupported, "", vendor + " has no fees of single events"); }
    virtual Fees advance_fees(const UsageQuery&, Timestamp, UsageSource&) const {
        throw Error(ErrorCode::unsupported, "", vendor + " has no fees of single events");
    }
    virtual Fees usage(const UsageQuery& query, Timestamp now, UsageSource& usage) const = 0;
    virtual Fee price(std::string_view charge, const Decimal& units, std::int64_t events) const = 0;
    // What the tokens of a request to a model cost.
    virtual Fee price_tokens(const json&) const { throw Error(ErrorCode::unsupported, "", vendor + " does not price tokens"); }
    // Whether the vendor has balances, which check() answers for, and whether the book knows such a feature.
    virtual bool has_balances() const { return false; }
    virtual bool knows_feature(const std::string&) const { return false; }
    // The names under which price() knows what it asks for a metric.
    virtual std::vector<std::string> charge_names(const std::string&) const { return {}; }
    // Its part of an analytics answer; nothing when it does not price the metric. By default what price() says of each charge.
    virtual std::optional<std::vector<AnalyticsItem>> analytics(const Metric& metric, const AnalyticsQuery& query, Timestamp now,
                                                                UsageSource& usage) const;
    // Each event priced alone; nothing for those it does not price.
    virtual std::vector<std::optional<Decimal>> event_costs(std::span<const std::optional<Event>> events) const {
        return std::vector<std::optional<Decimal>>(events.size());
    }
    // Whether the event's units may be used now.
    virtual Check check(const Event&, Timestamp, UsageSource&) const {
        throw Error(ErrorCode::unsupported, "customer", "is priced by a book of " + vendor + ", which has no balances");
    }

    Fees sum_up(std::vector<Fee> list) const {
        Fees fees{.fees = std::move(list), .currency = currency_code, .subunits = currency.subunits, .amount_cents = {}};
        for (const auto& fee : fees.fees) fees.amount_cents += fee.amount_cents;
        return fees;
    }
    // What so many units come to.
    Fee priced_fee(const Decimal& units, Priced priced) const {
        return {.currency = currency_code,
                .units = units,
                .amount = priced.amount,
                .amount_cents = to_cents(priced.amount, currency),
                .unit_amount = quotient(priced.amount, units),
                .lines = std::move(priced.lines)};
    }
};

namespace {

// ---- reading a catalogue ----

[[noreturn]] void not_found(const char* field, std::string reason) { throw Error(ErrorCode::not_found, field, std::move(reason)); }

// The element of the list that has the value there, if there is one.
template <class List, class Member, class Value>
auto* find_by(List& list, Member member, const Value& value) {
    const auto found = std::find_if(std::begin(list), std::end(list), [&](const auto& each) { return std::invoke(member, each) == value; });
    return found == std::end(list) ? nullptr : &*found;
}

constexpr auto row_name = [](const auto& row) { return row.first; };  // of a table of pairs

// What a map has under the key, if anything.
template <class Map>
auto* value_at(Map& map, const typename Map::key_type& key) {
    const auto found = map.find(key);
    return found == map.end() ? nullptr : &found->second;
}

// A place in a vendor's JSON with the path that leads to it, for reading with errors that name it.
class Node {
public:
    explicit Node(const json& value, std::string path = {}) : value_(&value), path_(std::move(path)) {}

    const json& value() const { return *value_; }
    const std::string& path() const { return path_; }
    std::string path(std::string_view key) const { return path_.empty() ? std::string(key) : path_ + "." + std::string(key); }
    [[noreturn]] void refuse(std::string reason) const { throw Error(ErrorCode::bad_value, path_, std::move(reason)); }
    [[noreturn]] void refuse(std::string_view key, std::string reason) const { throw Error(ErrorCode::bad_value, path(key), std::move(reason)); }

    // The member, unless it is missing or null.
    std::optional<Node> find(std::string_view key) const {
        if (!value_->is_object()) return {};
        const auto found = value_->find(std::string(key));
        if (found == value_->end() || found->is_null()) return {};
        return Node(*found, path(key));
    }

    Node object(std::string_view key) const {
        const auto found = find(key);
        if (!found || !found->value().is_object()) refuse(key, "must be an object");
        return *found;
    }

    // The elements of a list; none when it is missing.
    std::vector<Node> list(std::string_view key) const {
        const auto found = find(key);
        if (!found) return {};
        if (!found->value().is_array()) found->refuse("must be a list");
        std::vector<Node> elements;
        for (std::size_t i = 0; i < found->value().size(); ++i)
            elements.emplace_back(found->value()[i], found->path() + "[" + std::to_string(i) + "]");
        return elements;
    }

    // The members of an object; none when it is missing.
    std::vector<std::pair<std::string, Node>> members(std::string_view key) const {
        std::vector<std::pair<std::string, Node>> all;
        if (!find(key)) return all;
        const auto at = object(key);
        for (const auto& [name, value] : at.value().items()) all.emplace_back(name, Node(value, at.path(name)));
        return all;
    }

    std::string text(std::string_view key, std::string fallback = {}) const {
        const auto found = find(key);
        if (!found) return fallback;
        if (!found->value().is_string()) found->refuse("must be text");
        return found->value().get<std::string>();
    }

    std::string required_text(std::string_view key) const {
        auto found = text(key);
        if (found.empty()) refuse(key, "is required");
        return found;
    }

    // A list of texts; none when it is missing.
    std::vector<std::string> texts(std::string_view key) const {
        std::vector<std::string> values;
        for (const auto& element : list(key)) {
            if (!element.value().is_string()) element.refuse("must be text");
            values.push_back(element.value().get<std::string>());
        }
        return values;
    }

    // The member as it is; null when it is missing.
    json raw(std::string_view key) const {
        const auto found = find(key);
        return found ? found->value() : json();
    }

    bool flag(std::string_view key, bool fallback = false) const {
        const auto found = find(key);
        if (!found) return fallback;
        if (!found->value().is_boolean()) found->refuse("must be true or false");
        return found->value().get<bool>();
    }

    // What `make` makes of the member; what is wrong in it is wrong with the member.
    template <class Make>
    auto made(std::string_view key, Make&& make) const {
        try {
            return make();
        } catch (const Error& error) {
            throw Error(error.code(), path(key), error.reason());
        }
    }

    std::optional<Decimal> decimal(std::string_view key) const {
        const auto found = find(key);
        if (!found) return {};
        return made(key, [&] { return Decimal::from_json(found->value()); });
    }

    Decimal number(std::string_view key, const Decimal& fallback = {}) const { return decimal(key).value_or(fallback); }

    // A number, if there is one, of at least that much.
    std::optional<Decimal> at_least(std::string_view key, const Decimal& least) const {
        auto number = decimal(key);
        if (number && *number < least) refuse(key, "must be at least " + least.to_string());
        return number;
    }

    Decimal above_zero(std::string_view key, const Decimal& fallback = {}) const {
        const auto found = number(key, fallback);
        if (found <= 0) refuse(key, "must be above 0");
        return found;
    }

    // A whole number, if there is one; 1.0 is one, too.
    std::optional<std::int64_t> whole(std::string_view key, std::int64_t least, std::int64_t most) const {
        const auto number = decimal(key);
        if (!number) return {};
        const auto whole = number->to_int64();
        if (!whole || *whole < least || *whole > most)
            refuse(key, "must be a whole number from " + std::to_string(least) + " to " + std::to_string(most));
        return whole;
    }

    std::optional<Timestamp> time(std::string_view key) const {
        const auto found = find(key);
        if (!found) return {};
        if (!found->value().is_string()) found->refuse("must be an ISO 8601 time");
        return made(key, [&] { return Timestamp::parse(found->value().get<std::string>()); });
    }

    // The value of the table's row whose first member is the text under `key`.
    template <typename Table>
    auto choice(std::string_view key, const Table& table, std::string fallback = {}) const {
        const auto name = text(key, std::move(fallback));
        if (const auto* row = find_by(table, row_name, name)) return row->second;
        refuse(key, name.empty() ? "is required" : "is not known: " + name);
    }

    // The element of the list that has the text under `key` there.
    template <class List, class Member>
    const auto& one_of(const List& list, Member member, std::string_view key, const char* what) const {
        const auto name = required_text(key);
        if (const auto* found = find_by(list, member, name)) return *found;
        refuse(key, std::string("no such ") + what + ": " + name);
    }

private:
    const json* value_;
    std::string path_;
};

// ---- properties and times ----

// A JSON value as the text a vendor compares: text as it is, numbers and booleans as JSON writes them; nothing for null and what is missing.
std::optional<std::string> property_text(const json& properties, const std::string& key) {
    const auto found = properties.find(key);
    if (found == properties.end() || found->is_null()) return {};
    return found->is_string() ? found->get<std::string>() : found->dump();
}

// How Filter, Metric and AggregateQuery name the property of that key.
std::string property_field(const std::string& key) { return "properties." + key; }

// How often bills are written, as vendors' words mean it.
constexpr Stride every_day{0, micros_per_day}, every_week{0, 7 * micros_per_day}, every_month{1, 0}, every_quarter{3, 0}, every_half_year{6, 0},
    every_year{12, 0};

Cycle utc_cycle(Stride stride, Timestamp anchor) { return Cycle(stride, anchor.micros(), Zone({})); }

std::string lowercase(std::string text) {
    std::transform(text.begin(), text.end(), text.begin(), [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
    return text;
}

// The time up to a moment, which is in it.
Period up_to(Timestamp from, Timestamp last) { return {from, last + std::chrono::microseconds(1)}; }
Timestamp last_moment(const Period& period) { return period.to - std::chrono::microseconds(1); }

// around(time) of every cycle that meets the period.
template <class Around>
std::vector<Period> cycles_of(const Period& period, Around&& around) {
    constexpr std::size_t most = 1200;
    std::vector<Period> cycles;
    for (auto at = period.from; at < period.to; at = cycles.back().to) {
        if (cycles.size() == most) throw Error(ErrorCode::too_large, "period", "has more than " + std::to_string(most) + " billing periods");
        cycles.push_back(around(at));
    }
    return cycles;
}

// ---- analytics: what every vendor's answer is made of ----

// An AnalyticsQuery always has a period and a first day of the week from here on.
AggregateQuery aggregate_query(const AnalyticsQuery& asked) {
    AggregateQuery query;
    query.customer = asked.customer;
    query.subscription = asked.subscription;
    query.period = asked.period.value();
    query.time_zone = asked.time_zone;
    query.week_start = asked.week_start.value();
    query.billing_anchor = asked.billing_anchor;
    query.fill = asked.fill;
    query.group_by = asked.group_by;
    query.top = asked.top;
    query.filter = asked.filter;
    if (!asked.sources.empty()) query.filter = Filter::all({asked.filter, Filter::where("source", Operator::in, asked.sources)});
    return query;
}

using GroupKey = std::pair<bool, Group>;

// One for each group that has events, in order, with its points; without groups there is always one. Nothing of them is priced yet.
std::vector<AnalyticsItem> measured_items(const Metric& metric, const AnalyticsQuery& asked, UsageSource& usage) {
    auto query = aggregate_query(asked);
    std::vector<AnalyticsItem> items;
    std::map<GroupKey, std::size_t> places;
    for (const auto& row : usage.measure(metric, query)) {
        places[{row.rest, row.group}] = items.size();
        items.push_back({.metric = metric.code, .group = row.group, .rest = row.rest, .usage = row.value, .events = row.events});
    }
    query.bin = asked.bin;
    if (query.bin == Bin::none) return items;
    for (const auto& row : usage.measure(metric, query)) {
        if (const auto* place = value_at(places, {row.rest, row.group}))
            items[*place].points.push_back({.start = row.bin.value(), .usage = row.value, .events = row.events});
    }
    return items;
}

}  // namespace

std::optional<std::vector<AnalyticsItem>> Book::Impl::analytics(const Metric& metric, const AnalyticsQuery& query, Timestamp,
                                                                UsageSource& usage) const {
    const auto names = charge_names(metric.code);
    if (names.empty()) return std::nullopt;
    std::vector<AnalyticsItem> list;
    const auto items = measured_items(metric, query, usage);
    for (const auto& name : names) {
        for (auto item : items) {
            const auto fee = price(name, item.usage, item.events);
            item.charge = name;
            item.cost = fee.amount;
            item.currency = fee.currency;
            for (auto& point : item.points) point.cost = price(name, point.usage, point.events).amount;
            list.push_back(std::move(item));
        }
    }
    return list;
}

namespace {

AnalyticsTotal measured_total(const Metric& metric, const AnalyticsQuery& asked, UsageSource& usage) {
    auto query = aggregate_query(asked);
    query.group_by.clear();
    query.top = 0;
    const auto row = usage.measure(metric, query).front();
    return {metric.code, row.value, row.events};
}

// ---------------------------------------------------------------------------------------------
// 8.2 Lago: dossier sections 3 to 9
// ---------------------------------------------------------------------------------------------

namespace lago {

// ---- words and numbers ----

// A division as PostgreSQL's numeric does it: with at least 16 significant digits, counted in groups of four.
Decimal postgres_quotient(const Decimal& a, const Decimal& b) {
    if (a.is_zero()) return {};
    const auto weight = [](const Decimal& value) { return static_cast<int>(floor_divide(value.digits() - value.scale() - 1, 4)); };
    const auto first_group = [&](const Decimal& value) {
        const int group = weight(value);
        const Decimal unit(group >= 0 ? "1e" + std::to_string(4 * group) : "1e-" + std::to_string(-4 * group));
        return Decimal::divide(value.abs(), unit, 0, Rounding::down);
    };
    const int difference = weight(a) - weight(b) - (first_group(a) <= first_group(b) ? 1 : 0);
    return Decimal::divide(a, b, std::clamp(16 - 4 * difference, std::max(a.scale(), b.scale()), Decimal::max_scale), Rounding::half_up);
}

// A division that Lago leaves to floating point: as many digits as that has for certain.
Decimal ratio(const Decimal& a, const Decimal& b) { return b.is_zero() ? Decimal() : Decimal::divide_significant(a, b, 16, Rounding::half_up); }

using Step = FeeLine::Step;

// Exponents are those of the money gem, not of ISO 4217 (dossier 6.1).
constexpr CurrencyRow currencies[] = {{"BIF CLP DJF GNF HUF ISK JPY KMF KRW MGA PYG RWF UGX VND VUV XAF XOF XPF", {0, 1}},
                                      {"MRO", {1, 5}},
                                      {"BHD JOD KWD", {3, 1000}},
                                      {"CLF", {4, 10000}}};

// BigDecimal's text: always with a point.
std::string ruby_text(const Decimal& value) {
    auto text = value.to_string();
    return text.find('.') == std::string::npos ? text + ".0" : text;
}

// ---- expressions of billable metrics (dossier 4.3; lago-expression: grammar.pest, evaluate.rs) ----

// BigDecimal's numbers have no end; here they have 37 digits where the exact result has more.
Decimal nearest_sum(const Decimal& a, const Decimal& b) {
    const auto before_point = [](const Decimal& each) { return each.digits() - each.scale(); };
    const int scale = Decimal::max_digits - 1 - std::max(before_point(a), before_point(b));
    return a.round(scale, Rounding::half_even) + b.round(scale, Rounding::half_even);
}

Decimal nearest_product(const Decimal& a, const Decimal& b) {
    const int scale = a.scale() + b.scale(), cut = std::max(a.digits() + b.digits() - Decimal::max_digits, scale - Decimal::max_scale);
    if (cut <= 0) return a * b;
    const bool negative = a.is_negative() != b.is_negative();
    Wide divisor = widen({0, 1});
    multiply_by_power(divisor, cut);
    const Wide product = multiply(widen(DecimalParts::coefficient(a)), widen(DecimalParts::coefficient(b)));
    return DecimalParts::make(divide_rounded(product, divisor, Rounding::half_even, negative), scale - cut, negative);
}

[[noreturn]] void fail(std::string reason) { throw Error(ErrorCode::bad_value, "", std::move(reason)); }

const Decimal& number_of(const Term& term) {
    if (term.type != Term::Type::number) fail("Expected a decimal");
    return term.number;
}

int written_decimals(std::int64_t decimals) { return static_cast<int>(std::clamp<std::int64_t>(decimals, -Decimal::max_digits, Decimal::max_scale)); }

// As BigDecimal reads it, which passes over underscores between digits.
std::optional<Term> decimal_in(std::string_view text) {
    const std::size_t mark = std::min(text.find_first_of("eE"), text.size());
    std::string base(text.substr(0, mark));
    const std::size_t first = base.find_first_not_of("+-.");
    if (first != std::string::npos && base[first] != '_') std::erase(base, '_');
    const auto number = Decimal::parse(base + std::string(text.substr(mark)));
    if (!number) return {};
    const std::size_t point = std::min(base.find('.') + 1, base.size());
    const auto decimals = base.find('.') == std::string::npos ? 0 : static_cast<std::int64_t>(base.size() - point);
    const auto power = mark == text.size() ? Decimal() : Decimal::parse(text.substr(mark + 1)).value_or(Decimal());
    return Term{.number = *number, .decimals = written_decimals(decimals - written_decimals(power.to_int64().value_or(0)))};
}

// As BigDecimal writes it: with its decimals, those of zero too, and with an exponent after more than five zeros (impl_fmt.rs).
std::string written(const Term& term) {
    if (term.type == Term::Type::text) return term.text;
    const std::string plain = term.decimals > term.number.scale() ? term.number.to_fixed(term.decimals) : term.number.to_string();
    const std::size_t point = plain.find('.'), digit = std::min(plain.find_first_not_of("-0."), plain.size() - 1);
    if (point == std::string::npos || digit < point + 7) return plain;
    const std::string more = plain.substr(digit + 1);
    return plain.substr(0, plain.find('0')) + plain[digit] + (more.empty() ? "" : "." + more) + "E-" + std::to_string(digit - point);
}

void divide(Arguments all) {
    const Decimal &a = number_of(all[0]), &b = number_of(all[1]);
    if (b.is_zero()) fail("Division by zero");
    if (a.is_zero() || b == 1) return;
    all[0].number = Decimal::divide_significant(a, b, Decimal::max_digits, Rounding::half_up);
    all[0].decimals = std::max(all[0].decimals - all[1].decimals, all[0].number.scale());
}

template <Rounding mode>
void round_term(Arguments all) {
    const auto asked = all.size() == 1 ? Decimal() : number_of(all[1]).round(0, Rounding::down);
    const auto decimals = asked.to_int64();
    if (!decimals) fail("Expected a decimal");
    all[0].decimals = written_decimals(*decimals);
    all[0].number = number_of(all[0]).round(all[0].decimals, mode);
}

template <bool greatest>
void choose(Arguments all) {
    for (const Term& each : all) number_of(each);
    const auto less = [](const Term& a, const Term& b) { return a.number < b.number; };
    all[0] = Term(greatest ? *std::max_element(all.begin(), all.end(), less) : *std::min_element(all.begin(), all.end(), less));
}

void concatenate(Arguments all) {
    std::string text;
    for (const Term& each : all) text += written(each);
    all[0] = {.type = Term::Type::text, .text = std::move(text)};
}

template <Decimal (*operation)(const Decimal&, const Decimal&), bool product>
void combine(Arguments all) {
    all[0].number = operation(number_of(all[0]), number_of(all[1]));
    all[0].decimals = product ? written_decimals(all[0].decimals + all[1].decimals) : std::max(all[0].decimals, all[1].decimals);
}

Decimal nearest_difference(const Decimal& a, const Decimal& b) { return nearest_sum(a, -b); }

constexpr std::size_t any_number = limits::expression_bytes;
constexpr Operation operations[] = {
    {Operation::Form::infix, "+", 1, 2, 2, Term::Type::any, Term::Type::any, combine<nearest_sum, false>},
    {Operation::Form::infix, "-", 1, 2, 2, Term::Type::any, Term::Type::any, combine<nearest_difference, false>},
    {Operation::Form::infix, "*", 2, 2, 2, Term::Type::any, Term::Type::any, combine<nearest_product, true>},
    {Operation::Form::infix, "/", 2, 2, 2, Term::Type::any, Term::Type::any, divide},
    {Operation::Form::prefix, "-", 0, 1, 1, Term::Type::any, Term::Type::any, [](Arguments all) { all[0].number = -number_of(all[0]); }},
    {Operation::Form::call, "round", 0, 1, 2, Term::Type::any, Term::Type::any, round_term<Rounding::half_up>},
    {Operation::Form::call, "ceil", 0, 1, 2, Term::Type::any, Term::Type::any, round_term<Rounding::ceil>},
    {Operation::Form::call, "floor", 0, 1, 2, Term::Type::any, Term::Type::any, round_term<Rounding::floor>},
    {Operation::Form::call, "least", 0, 1, any_number, Term::Type::any, Term::Type::any, choose<false>},
    {Operation::Form::call, "greatest", 0, 1, any_number, Term::Type::any, Term::Type::any, choose<true>},
    {Operation::Form::call, "concat", 0, 1, any_number, Term::Type::any, Term::Type::any, concatenate},
};

// Texts that are numbers are numbers; null is a text without characters.
Term property_term(std::string_view name, const Scalar& value) {
    if (value.kind == Scalar::Kind::missing || value.kind == Scalar::Kind::object)
        return {.type = Term::Type::nothing, .text = "Variable: " + std::string(name) + " not found"};
    if (value.kind == Scalar::Kind::number) return {.number = value.number, .decimals = value.number.scale()};
    const Term text{.type = Term::Type::text, .text = scalar_text(value)};
    return value.kind == Scalar::Kind::text ? decimal_in(value.text).value_or(text) : text;
}

// What is written into the property: always a text (calculate_expression_service.rb:13).
std::string result_text(const Term& term) { return term.type == Term::Type::text ? term.text : ruby_text(term.number); }

constexpr Dialect expressions{.operations = operations,
                              .spaces = " ",
                              .property_prefix = "event.properties.",
                              .time_word = "event.timestamp",
                              .name_word = "event.code",
                              .spellings = true,
                              .texts = true,
                              .literal = decimal_in,
                              .property = property_term,
                              .result = result_text};

enum class Kind { count, sum, max, unique_count, weighted_sum, latest, custom };

// ---- prices ----

enum class Model { standard, graduated, graduated_percentage, package, percentage, volume, dynamic, custom };

// Properties of a charge or of one of its filters; which of them count depends on the model.
struct Price {
    Model model = Model::standard;
    Decimal amount = {}, package_size = 1, free_units = {};
    Decimal rate = {}, fixed_amount = {}, free_total = {}, free_events = {};
    std::optional<Decimal> minimum = {}, maximum = {};
    std::vector<Tier> tiers = {};
    std::vector<std::string> group_keys = {};
};

// --- reading and refusing (dossier 9) ---

// A rule of Lago's that a field breaks, in its own word.
struct Problem {
    std::string path, field, code;
};
using Problems = std::vector<Problem>;

struct Checking {
    Kind kind = Kind::sum;
    bool premium = true;
    Problems& problems;

    void report(const Node& at, std::string_view field, std::string code) const {
        problems.push_back({at.path(field), std::string(field), std::move(code)});
    }
};

// Money and rates are texts holding a decimal that is not negative; a JSON number is refused (decimal_amount_service.rb:17).
Decimal amount(const Node& at, std::string_view field, const char* code, const Checking& checking, bool optional = false) {
    const auto found = at.find(field);
    if (!found && optional) return {};
    const auto value = found && found->value().is_string() ? Decimal::parse(found->value().get_ref<const std::string&>()) : std::nullopt;
    if (value && !value->is_negative()) return *value;
    checking.report(at, field, code);
    return {};
}

// How a model's ranges join, and what a range costs.
struct RangeRule {
    std::string_view list;
    std::string_view rate;  // the field of the rate
    const char* rate_code;
    bool as_percent;  // the rate is in percent
    bool may_touch;   // ranges whose `from` is the previous `to` are read as touching, when all of them are so
    int gap;          // `from` is the previous `to` + gap, or one more (range_bounds_validator.rb:5)
    bool sorted;
};
constexpr RangeRule graduated_rule{"graduated_ranges", "per_unit_amount", "invalid_amount", false, true, 0, false};
constexpr RangeRule graduated_percentage_rule{"graduated_percentage_ranges", "rate", "invalid_rate", true, false, 0, false};
constexpr RangeRule volume_rule{"volume_ranges", "per_unit_amount", "invalid_amount", false, false, 1, true};

std::optional<Decimal> bound(const Node& range, std::string_view field) {
    const auto found = range.find(field);
    return found && found->value().is_number() ? range.decimal(field) : std::nullopt;
}

// Whether each range starts where the one before ended, and only the last is open.
bool ranges_join(const std::vector<Node>& ranges, int gap) {
    Decimal start;
    for (std::size_t i = 0; i < ranges.size(); ++i) {
        const auto from = bound(ranges[i], "from_value"), to = bound(ranges[i], "to_value");
        if (!from || (*from != start && *from != start + 1)) return false;
        const bool last = i + 1 == ranges.size();
        if (last == ranges[i].find("to_value").has_value()) return false;
        if (last) return true;
        if (!to || *to <= *from) return false;
        start = *to + gap;
    }
    return false;
}

// Whether the ranges are written 0-10, 10-20 rather than 0-10, 11-20 (graduated_service.rb:31).
bool ranges_touch(const std::vector<Tier>& tiers) {
    if (tiers.size() < 2) return false;
    for (std::size_t i = 1; i < tiers.size(); ++i) {
        if (!tiers[i - 1].up_to || tiers[i].from != *tiers[i - 1].up_to) return false;
    }
    return true;
}

// A range from 11 holds what is above 10, unless it touches the one before.
void set_lower_bounds(std::vector<Tier>& tiers, bool may_touch) {
    const bool touch = may_touch && ranges_touch(tiers);
    for (auto& tier : tiers) tier.above = tier.from.is_zero() || touch ? tier.from : tier.from - 1;
}

std::vector<Tier> read_ranges(const Node& properties, const RangeRule& rule, const Checking& checking) {
    const std::string name(rule.list);
    const auto found = properties.find(rule.list);
    if (!found || !found->value().is_array() || found->value().empty()) {
        checking.report(properties, rule.list, "missing_" + name);
        return {};
    }
    const auto ranges = properties.list(rule.list);
    if (!ranges_join(ranges, rule.gap)) checking.report(properties, rule.list, "invalid_" + name);
    std::vector<Tier> tiers;
    for (const auto& range : ranges) {
        Tier tier{.above = {}, .up_to = bound(range, "to_value"), .rate = {}, .flat = {}, .from = bound(range, "from_value").value_or(Decimal())};
        tier.rate = amount(range, rule.rate, rule.rate_code, checking);
        if (rule.as_percent) tier.rate = percent(tier.rate);
        tier.flat = amount(range, "flat_amount", "invalid_amount", checking);
        tiers.push_back(std::move(tier));
    }
    if (rule.sorted) std::ranges::stable_sort(tiers, {}, &Tier::from);
    set_lower_bounds(tiers, rule.may_touch);
    return tiers;
}

// A field of a model: money or a rate, or a whole number of at least so many.
struct Field {
    std::string_view name;
    const char* code;
    Decimal Price::*value;
    bool optional = false;
    std::optional<std::int64_t> least = {};
};
constexpr std::array<Field, 1> standard_fields{{{"amount", "invalid_amount", &Price::amount}}};
constexpr std::array<Field, 3> package_fields{{{"amount", "invalid_amount", &Price::amount},
                                               {"package_size", "invalid_package_size", &Price::package_size, false, 1},
                                               {"free_units", "invalid_free_units", &Price::free_units, false, 0}}};
constexpr std::array<Field, 4> percentage_fields{
    {{"rate", "invalid_rate", &Price::rate},
     {"fixed_amount", "invalid_fixed_amount", &Price::fixed_amount, true},
     {"free_units_per_events", "invalid_free_units_per_events", &Price::free_events, true, 1},
     {"free_units_per_total_aggregation", "invalid_free_units_per_total_aggregation", &Price::free_total, true}}};

Decimal read_field(const Node& at, const Field& field, const Checking& checking) {
    if (!field.least) return amount(at, field.name, field.code, checking, field.optional);
    const auto found = at.find(field.name);
    if (!found && field.optional) return {};
    if (found && found->value().is_number_integer()) {
        const auto value = Decimal::from_json(found->value());
        if (value >= *field.least) return value;
    }
    checking.report(at, field.name, field.code);
    return *field.least;
}

bool is_filled_text(const json& value) {
    return value.is_string() && value.get_ref<const std::string&>().find_first_not_of(" \t\r\n") != std::string::npos;
}

// What Rails takes for nothing.
bool is_blank(const json& value) {
    if (value.is_structured()) return value.empty();
    return value.is_string() ? !is_filled_text(value) : value.is_null() || value == false;
}

void check_not_latest(const Node& properties, const Checking& checking) {
    if (checking.kind == Kind::latest) checking.report(properties, "billable_metric", "invalid_value");
}

void read_bounds(const Node& properties, Price& price, const Checking& checking) {
    check_not_latest(properties, checking);
    if (!checking.premium) return;  // bounds per transaction are a premium feature: neither checked nor applied without
    const auto read_bound = [&](std::string_view field) -> std::optional<Decimal> {
        const auto found = properties.find(field);
        if (!found || is_blank(found->value())) return {};
        return amount(properties, field, "invalid_amount", checking);
    };
    price.minimum = read_bound("per_transaction_min_amount");
    price.maximum = read_bound("per_transaction_max_amount");
    if (price.minimum && price.maximum && *price.maximum < *price.minimum) {
        checking.report(properties, "per_transaction_max_amount", "per_transaction_max_lower_than_per_transaction_min");
    }
}

void check_licence(const Node& properties, Price&, const Checking& checking) {
    check_not_latest(properties, checking);
    if (!checking.premium) checking.report(properties, "charge_model", "graduated_percentage_requires_premium_license");
}

std::vector<std::string> read_group_keys(const Node& properties, const Checking& checking) {
    const auto field = properties.find("pricing_group_keys") ? "pricing_group_keys" : "grouped_by";
    const auto found = properties.find(field);
    if (!found) return {};
    std::vector<std::string> keys;
    for (const auto& key : found->value()) {
        if (is_filled_text(key)) keys.push_back(key.get<std::string>());
    }
    if (!found->value().is_array() || keys.size() != found->value().size()) checking.report(properties, field, "invalid_type");
    return keys;
}

bool is_presentation_key(const json& key) {
    if (!key.is_object() || !key.contains("value") || !is_filled_text(key["value"])) return false;
    if (!key.contains("options")) return key.size() == 1;
    const auto& options = key["options"];
    return key.size() == 2 && options.is_object() && options.size() == 1 && options.contains("display_in_invoice") &&
           options["display_in_invoice"].is_boolean();
}

// Keys that only split what is shown: at most two, none twice; they play no part in prices.
void check_presentation_keys(const Node& properties, const Checking& checking) {
    const auto field = "presentation_group_keys";
    const auto found = properties.find(field);
    if (!found || is_blank(found->value())) return;
    const auto& keys = found->value();
    if (!keys.is_array() || !std::all_of(keys.begin(), keys.end(), is_presentation_key)) checking.report(properties, field, "invalid_type");
    if (!keys.is_array()) return;
    if (keys.size() > 2) checking.report(properties, field, "too_many_keys");
    std::vector<json> values;
    for (const auto& key : keys) {
        if (!key.is_object() || !key.contains("value") || !is_filled_text(key["value"])) continue;
        if (std::ranges::find(values, key["value"]) != values.end()) return checking.report(properties, field, "value_is_duplicated");
        values.push_back(key["value"]);
    }
}

// --- from units to amounts (dossier 5) ---

// Running totals of a percentage charge (dossier 4.6), as far as the model looks at them.
struct RunningTotal {
    Decimal length, last;
    Decimal at_free_events;  // after the last free event; counts only when `length` exceeds the free events
    Decimal below_free;      // how many are below the free total
};

// What the events come to under a percentage charge with bounds per transaction, each held between them (percentage_service.rb:142-179).
struct BoundedTotal {
    std::int64_t events = 0;
    Decimal free_used;
    bool all_used = false;  // of the free events and the free total
    Decimal amount;

    // A free event starts the sum anew, as it does there.
    void add(const Price& price, Decimal value) {
        const auto free_events = all_used ? Decimal() : price.free_events - events;
        const auto free_total = all_used ? Decimal() : price.free_total - free_used;
        ++events;
        if (free_events > 0 || free_total > 0) {
            if (free_total <= 0 || free_total > value) {
                if (free_total > 0) free_used += value;
                amount = {};
                return;
            }
            value -= free_total;
            all_used = true;
        }
        auto own = value * percent(price.rate) + price.fixed_amount;
        if (price.minimum && own < *price.minimum) {
            own = *price.minimum;
        } else if (price.maximum && own > *price.maximum) {
            own = *price.maximum;
        }
        amount += own;
    }
};

// What is priced.
struct Quantity {
    Decimal units;
    std::optional<Decimal> full_units = {};  // before proration
    bool prorated = false;
    std::int64_t events = 0;
    RunningTotal running = {};
    BoundedTotal bounded = {};    // over each event's value, in time order; only where there are bounds per transaction
    Decimal precise_amount = {};  // sum of the events' own amounts, currency units
    bool without_event = false;   // the side of a difference that lacks the event
    bool premium = true;
};

Priced price_standard(const Price& price, const Quantity& quantity) { return only(units_line(quantity.units, price.amount)); }

// Without the event, no units owe no flat part (graduated_service.rb:31).
Priced price_graduated(const Price& price, const Quantity& quantity) {
    if (quantity.without_event && quantity.units.is_zero()) return {};
    return graduated(price.tiers, quantity.units);
}

// The first range that holds the units; one is chosen by full units and priced by prorated ones.
const Tier& volume_tier(const Price& price, const Decimal& units) {
    const auto ceiling = units.round(0, Rounding::ceil);
    for (const auto& tier : price.tiers) {
        if (tier.from <= ceiling && (!tier.up_to || units <= *tier.up_to)) return tier;
    }
    refuse("volume_ranges", "no range holds " + units.to_string() + " units");
}

const Decimal& counted_units(const Quantity& quantity) { return quantity.prorated && quantity.full_units ? *quantity.full_units : quantity.units; }

Priced price_volume(const Price& price, const Quantity& quantity) {
    return only(tier_line(volume_tier(price, counted_units(quantity)), quantity.units));
}

Priced price_package(const Price& price, const Quantity& quantity) {
    const auto paid = quantity.units - price.free_units;
    if (paid.is_negative()) return only(free_line(quantity.units));
    return after_free(price.free_units, packages(paid, price.package_size, price.amount));
}

Decimal percentage_free_units(const Price& price, const RunningTotal& running) {
    if (running.last.is_zero()) return {};
    if (price.free_events > 0 && price.free_events < running.length) return running.at_free_events;
    if (price.free_total.is_zero() || running.last <= price.free_total) return running.last;
    return price.free_total;
}

Decimal percentage_free_events(const Price& price, const RunningTotal& running) {
    if (price.free_events.is_zero() || running.below_free.is_zero()) return std::max(price.free_events, running.below_free);
    return std::min(price.free_events, running.below_free);
}

bool has_bounds(const Price& price, const Quantity& quantity) { return quantity.premium && (price.minimum || price.maximum); }

Priced price_percentage(const Price& price, const Quantity& quantity) {
    const auto free_units = percentage_free_units(price, quantity.running);
    const auto paid = free_units > quantity.units ? Decimal() : quantity.units - free_units;
    auto priced = after_free(free_units, only(percentage_line(paid, price.rate)));
    const auto paid_events = quantity.events - percentage_free_events(price, quantity.running);
    if (!quantity.units.is_zero() && paid_events > 0 && !price.fixed_amount.is_zero()) priced.add(fixed_line(paid_events, price.fixed_amount));
    if (!has_bounds(price, quantity)) return priced;
    raise_to(priced, quantity.bounded.amount);
    lower_to(priced, quantity.bounded.amount);
    return priced;
}

// A custom metric's script brings the amount.
Priced price_custom(const Price&, const Quantity& quantity) {
    return only({.step = Step::given, .units = quantity.units, .amount = quantity.precise_amount});
}

// The events bring their own amounts; none for no units (dossier 5.7).
Priced price_dynamic(const Price& price, const Quantity& quantity) { return quantity.units.is_zero() ? Priced() : price_custom(price, quantity); }

// --- prorated graduated (dossier 5.9): full units choose the tier, prorated ones are paid ---

struct ProratedEvent {
    Decimal full, prorated;

    Decimal share() const { return ratio(prorated, full); }
};

// The tier that the running total has come to (prorated_graduated_service.rb). What overflows a tier upwards stands at the next
// tier's first unit; a total resting on a tier's top moves on when units follow.
std::size_t tier_reached(const std::vector<Tier>& tiers, const Decimal& total, const Decimal& overflow, bool rises) {
    if (total <= 0) return 0;
    const auto units = overflow.is_zero() ? total : overflow > 0 ? total - overflow + 1 : total + overflow;
    for (std::size_t i = 0; i < tiers.size(); ++i) {
        if (tiers[i].up_to && units == *tiers[i].up_to) return rises && i + 1 < tiers.size() ? i + 1 : i;
        if (units >= tiers[i].from && (!tiers[i].up_to || units < *tiers[i].up_to)) return i;
    }
    return 0;
}

bool stays_in(const Tier& tier, const Decimal& total) { return tier.up_to ? total < *tier.up_to && total >= tier.from : total >= tier.from - 1; }

// How far the total is beyond the tier, above or below.
Decimal overflow_of(const Tier& tier, const Decimal& total) {
    return tier.up_to && total >= *tier.up_to ? total - *tier.up_to : total - tier.from + 1;
}

// An added unit that was removed before the period weighs nothing and counts nothing, nor does its removal.
bool is_void(const ProratedEvent& event, const Decimal& total) {
    return event.prorated.is_zero() && (event.full > 0 || (total + event.full).is_negative());
}

// Prorated units that each tier has, and how high the running total went.
struct ProratedTiers {
    std::vector<Decimal> units;
    Decimal total, peak;
};

ProratedTiers walk_prorated(const std::vector<Tier>& tiers, const std::vector<ProratedEvent>& events) {
    ProratedTiers result{.units = std::vector<Decimal>(tiers.size()), .total = {}, .peak = {}};
    Decimal overflow, pending;
    std::size_t next = 0, reached = 0, turns = 0;
    const auto settle = [&](const ProratedEvent& event) {
        pending -= overflow * event.share();
        result.units[reached] += pending;
        pending = {};
    };
    while (next < events.size() || !overflow.is_zero()) {
        if (++turns > (events.size() + 1) * (tiers.size() + 2)) refuse("graduated_ranges", "cannot be prorated");
        reached = tier_reached(tiers, result.total, overflow, next < events.size() && events[next].full > 0);
        const auto& tier = tiers[reached];
        if (!overflow.is_zero()) {
            pending += overflow * events[next - 1].share();
            if (tier.up_to && result.total >= *tier.up_to) {
                overflow = result.total - *tier.up_to;
                settle(events[next - 1]);
                continue;
            }
            overflow = {};
        }
        if (next == events.size()) break;
        const auto& event = events[next++];
        if (is_void(event, result.total)) continue;
        result.total += event.full;
        result.peak = std::max(result.peak, result.total);
        pending += event.prorated;
        if (stays_in(tier, result.total)) continue;
        overflow = overflow_of(tier, result.total);
        settle(event);
    }
    result.units[reached] += pending;
    return result;
}

Priced price_prorated_graduated(const std::vector<Tier>& tiers, const Decimal& units, const std::vector<ProratedEvent>& events) {
    const auto walked = units.is_zero() ? ProratedTiers{std::vector<Decimal>(tiers.size()), {}, {}} : walk_prorated(tiers, events);
    Priced priced;
    if (walked.total.is_negative()) return priced;
    for (std::size_t i = 0; i < tiers.size(); ++i) {
        auto line = tier_line(tiers[i], walked.units[i]);
        line.amount -= line.flat;
        line.flat = {};
        priced.add(std::move(line));
    }
    raise_to(priced, {});
    for (const auto& tier : tiers) {
        priced.add(fixed_line(1, tier.flat));
        if (!tier.up_to || walked.peak <= *tier.up_to) break;
    }
    return priced;
}

// --- without history (estimate_instant_fees, dossier 3.4) ---

// The fixed amount is due also for no units, but nothing for less; free units and licences play no part.
Priced price_instant(const Price& price, const Decimal& units) {
    if (units.is_negative()) return {};
    if (price.model == Model::standard) return price_standard(price, {.units = units});
    auto priced = only(percentage_line(units, price.rate));
    if (!price.fixed_amount.is_zero()) priced.add(fixed_line(1, price.fixed_amount));
    if (price.minimum) raise_to(priced, *price.minimum);
    if (price.maximum) lower_to(priced, *price.maximum);
    return priced;
}

// --- what Lago calls amount_details: the same figures under its names ---

json range_details(const FeeLine& line, bool as_percent) {
    json details{{"from_value", line.from->to_string()},
                 {"to_value", optional_text(line.to)},
                 {"units", line.units.to_string()},
                 {"flat_unit_amount", line.flat.to_string()},
                 {"per_unit_total_amount", (line.units * line.rate).to_string()},
                 {"total_with_flat_amount", line.amount.to_string()}};
    if (as_percent) {
        details["rate"] = (line.rate * 100).to_string();
    } else {
        details["per_unit_amount"] = line.units.is_zero() ? "0" : line.rate.to_string();
    }
    return details;
}

json details_none(const Price&, const Quantity&, const Priced&) { return json::object(); }

json details_tiers(const Price& price, const Quantity&, const Priced& priced) {
    const auto& rule = price.model == Model::graduated ? graduated_rule : graduated_percentage_rule;
    auto ranges = json::array();
    for (const auto& line : priced.lines) {
        if (line.step == Step::tier) ranges.push_back(range_details(line, rule.as_percent));
    }
    return {{std::string(rule.list), std::move(ranges)}};
}

json details_volume(const Price&, const Quantity& quantity, const Priced& priced) {
    const auto& line = priced.lines.front();
    const auto total = line.units * line.rate;
    return {{"flat_unit_amount", line.flat.to_string()},
            {"per_unit_amount", quotient(total, counted_units(quantity)).to_string()},
            {"per_unit_total_amount", total.to_string()}};
}

json details_package(const Price& price, const Quantity& quantity, const Priced&) {
    const bool none = quantity.units.is_zero();
    return {{"free_units", none ? "0" : price.free_units.to_string()},
            {"paid_units", none ? "0" : at_least_zero(quantity.units - price.free_units).to_string()},
            {"per_package_size", none ? "0" : price.package_size.to_string()},
            {"per_package_unit_amount", none ? "0" : price.amount.to_string()}};
}

json details_percentage(const Price& price, const Quantity& quantity, const Priced& priced) {
    const auto free_units = percentage_free_units(price, quantity.running);
    const auto free_events = std::min(percentage_free_events(price, quantity.running), Decimal(quantity.events));
    const auto paid_events = quantity.events - free_events;
    Decimal by_rate, fixed, bounds;
    for (const auto& line : priced.lines) (line.step == Step::percentage ? by_rate : line.step == Step::fixed ? fixed : bounds) += line.amount;
    return {{"units", quantity.units.to_string()},
            {"free_units", free_units.to_string()},
            {"free_events", free_events.to_int64().value()},
            {"paid_units", at_least_zero(quantity.units - free_units).to_string()},
            {"rate", price.rate.to_string()},
            {"per_unit_total_amount", by_rate.to_string()},
            {"paid_events", paid_events.to_int64().value()},
            {"fixed_fee_unit_amount", paid_events > 0 ? price.fixed_amount.to_string() : "0"},
            {"fixed_fee_total_amount", fixed.to_string()},
            {"min_max_adjustment_total_amount", bounds.to_string()}};
}

// --- the models ---

struct ModelRow {
    Model model;
    std::span<const Field> fields;
    const RangeRule* ranges;
    void (*check)(const Node& properties, Price& price, const Checking& checking);  // what else it has, or must be
    Priced (*price)(const Price& price, const Quantity& quantity);
    json (*details)(const Price& price, const Quantity& quantity, const Priced& priced);
    const char* defaults;  // properties when they are left out (build_default_properties_service.rb:26)
};
constexpr const char* default_ranges = R"({"graduated_ranges": [{"from_value": 0, "per_unit_amount": "0", "flat_amount": "0"}],
    "volume_ranges": [{"from_value": 0, "per_unit_amount": "0", "flat_amount": "0"}],
    "graduated_percentage_ranges": [{"from_value": 0, "rate": "0", "flat_amount": "0"}]})";

constexpr std::pair<std::string_view, ModelRow> models[] = {
    {"standard", {Model::standard, standard_fields, nullptr, nullptr, price_standard, details_none, R"({"amount": "0"})"}},
    {"graduated", {Model::graduated, {}, &graduated_rule, nullptr, price_graduated, details_tiers, default_ranges}},
    {"graduated_percentage",
     {Model::graduated_percentage, {}, &graduated_percentage_rule, check_licence, price_graduated, details_tiers, default_ranges}},
    {"package",
     {Model::package, package_fields, nullptr, nullptr, price_package, details_package, R"({"package_size": 1, "free_units": 0, "amount": "0"})"}},
    {"percentage", {Model::percentage, percentage_fields, nullptr, read_bounds, price_percentage, details_percentage, R"({"rate": "0"})"}},
    {"volume", {Model::volume, {}, &volume_rule, nullptr, price_volume, details_volume, default_ranges}},
    {"dynamic", {Model::dynamic, {}, nullptr, nullptr, price_dynamic, details_none, "{}"}},
    {"custom", {Model::custom, {}, nullptr, nullptr, price_custom, details_none, "{}"}},
};

const ModelRow& row_of(Model model) {
    return find_by(
               models, [](const auto& row) { return row.second.model; }, model)
        ->second;
}

Price read_price(const ModelRow& row, const Node& properties, const Checking& checking) {
    Price price{.model = row.model};
    for (const auto& field : row.fields) price.*field.value = read_field(properties, field, checking);
    if (row.ranges) price.tiers = read_ranges(properties, *row.ranges, checking);
    if (row.check) row.check(properties, price, checking);
    price.group_keys = read_group_keys(properties, checking);
    check_presentation_keys(properties, checking);
    return price;
}

Priced apply(const Price& price, const Quantity& quantity) { return row_of(price.model).price(price, quantity); }

// Per full unit; a package's by paid units (package_service.rb), a volume's by those that chose the range.
Decimal unit_amount(const Price& price, const Quantity& quantity, const Decimal& amount) {
    if (price.model == Model::package) return quotient(amount, at_least_zero(quantity.units - price.free_units));
    if (price.model == Model::volume) return quotient(amount, counted_units(quantity));
    return quotient(amount, quantity.full_units.value_or(quantity.units));
}

// ---- the catalogue ----

// What a kind of metric can be (billable_metric.rb:28-125). A custom one is measured by a script of the server's.
struct KindRow {
    Kind kind;
    std::optional<Aggregation> aggregation;
    bool of_property, may_recur, may_be_paid_in_advance;
};
constexpr std::pair<std::string_view, KindRow> kinds[] = {
    {"count_agg", {Kind::count, Aggregation::count, false, false, true}},
    {"sum_agg", {Kind::sum, Aggregation::sum, true, true, true}},
    {"max_agg", {Kind::max, Aggregation::max, true, false, false}},
    {"unique_count_agg", {Kind::unique_count, Aggregation::active_count, true, true, true}},
    {"weighted_sum_agg", {Kind::weighted_sum, Aggregation::weighted_sum, true, true, false}},
    {"latest_agg", {Kind::latest, Aggregation::latest, true, false, false}},
    {"custom_agg", {Kind::custom, std::nullopt, false, true, true}},
};

struct BillableMetric {
    Kind kind = Kind::count;
    Metric metric;  // not rounded: fees of single events are not
    std::string id, name, description;
    std::optional<RoundTo> rounding;
    std::string obstacle;  // to measuring it here; a plan may list such metrics as long as no charge needs them
    bool may_be_paid_in_advance = true;
    std::map<std::string, std::vector<std::string>> filters;  // allowed values by key

    const std::string& code() const { return metric.code; }
};

// As questions see it.
Metric rounded(const BillableMetric& metric) {
    auto whole = metric.metric;
    whole.rounding = metric.rounding;
    return whole;
}

// Without what a recurring one carries over.
Metric in_period(const BillableMetric& metric) {
    auto period = metric.metric;
    period.recurring = false;
    return period;
}

// The key of the property that is measured.
std::string property_key(const BillableMetric& metric) { return metric.metric.property.substr(property_field("").size()); }

Decimal rounded(const BillableMetric& metric, const Decimal& value) {
    return metric.rounding ? value.round(metric.rounding->scale, metric.rounding->mode) : value;
}

using Values = std::map<std::string, std::vector<std::string>>;  // by key

struct ChargeFilter {
    Values values;
    std::string name;
    json id;
    Price price;
};

struct Charge {
    json id;
    std::string code, name;
    std::size_t metric = 0;
    Price price;
    std::vector<ChargeFilter> filters;
    bool pay_in_advance = false, invoiceable = true, prorated = false;
    Decimal minimum_cents = {};
    std::optional<Decimal> conversion_rate = {};  // from a pricing unit to the plan's currency
    std::string pricing_unit = {};
};

constexpr std::pair<std::string_view, Stride> intervals[] = {
    {"weekly", every_week}, {"monthly", every_month}, {"quarterly", every_quarter}, {"semiannual", every_half_year}, {"yearly", every_year}};

struct Subscription {
    std::string id = {}, customer = {};
    json lago_id = nullptr, lago_customer_id = nullptr;
    bool anniversary = false;
    Timestamp anchor = Timestamp::min();  // subscription_at: where anniversary periods start
    Period active = {};
    Zone zone = Zone("");  // the customer's, whose days count
};

// The special value stands for all that the metric declares, not for anything (charge_filter.rb:72).
Values read_values(const Node& at, const BillableMetric& metric) {
    Values values;
    const auto found = at.find("values");
    if (!found) return values;
    if (!found->value().is_object()) found->refuse("must be an object of lists");
    for (const auto& [key, list] : found->value().items()) {
        values[key] = found->texts(key);
        if (values[key] != std::vector<std::string>{"__ALL_FILTER_VALUES__"}) continue;
        const auto* all = value_at(metric.filters, key);
        if (!all) found->refuse(key, "is not a filter of the metric");
        values[key] = *all;
    }
    return values;
}

std::optional<RoundTo> read_rounding(const Node& at) {
    static constexpr std::pair<std::string_view, Rounding> functions[] = {
        {"round", Rounding::half_up}, {"ceil", Rounding::ceil}, {"floor", Rounding::floor}};
    if (!at.find("rounding_function")) return {};
    const auto precision = at.number("rounding_precision");
    if (precision.abs() > Decimal::max_digits || precision.scale() > 0) at.refuse("rounding_precision", "is out of range");
    return RoundTo{at.choice("rounding_function", functions), static_cast<int>(precision.to_int64().value())};
}

BillableMetric read_metric(const Node& at) {
    const auto row = at.choice("aggregation_type", kinds);
    BillableMetric metric;
    metric.kind = row.kind;
    if (!row.aggregation) metric.obstacle = "custom_agg is not measured here";
    metric.may_be_paid_in_advance = row.may_be_paid_in_advance;
    metric.metric.code = at.required_text("code");
    metric.metric.rules = "lago";
    metric.metric.aggregation = row.aggregation.value_or(Aggregation::count);
    if (row.of_property) metric.metric.property = property_field(at.required_text("field_name"));
    metric.metric.expression = at.text("expression");
    if (!metric.metric.expression.empty()) expression_of(metric.metric, expressions, at.path("expression"));
    metric.metric.recurring = at.flag("recurring");
    if (metric.metric.recurring && !row.may_recur) at.refuse("recurring", "not_compatible_with_aggregation_type");
    metric.id = at.text("lago_id");
    metric.name = at.text("name", metric.metric.code);
    metric.description = at.text("description");
    metric.rounding = read_rounding(at);
    for (const auto& filter : at.list("filters")) metric.filters[filter.required_text("key")] = filter.texts("values");
    return metric;
}

// Rules between a charge and its metric (charge.rb:118-180).
void check_charge(const Node& at, const Charge& charge, const BillableMetric& metric, const Checking& checking) {
    const auto model = charge.price.model;
    if (charge.pay_in_advance && (model == Model::volume || !metric.may_be_paid_in_advance)) {
        checking.report(at, "pay_in_advance", "invalid_aggregation_type_or_charge_model");
    }
    const bool carries = metric.metric.recurring && metric.kind != Kind::weighted_sum;  // whose value is a share of the period already
    const bool prorates = model == Model::standard || (!charge.pay_in_advance && (model == Model::volume || model == Model::graduated));
    if (charge.prorated && !(carries && prorates)) checking.report(at, "prorated", "invalid_billable_metric_or_charge_model");
    if ((model == Model::dynamic && metric.kind != Kind::sum) || (model == Model::custom && metric.kind != Kind::custom)) {
        checking.report(at, "charge_model", "invalid_aggregation_type_or_charge_model");
    }
    if (charge.minimum_cents.is_negative()) checking.report(at, "min_amount_cents", "value_is_out_of_range");
    if (charge.pay_in_advance && !charge.minimum_cents.is_zero()) checking.report(at, "min_amount_cents", "not_compatible_with_pay_in_advance");
}

// What cannot be priced: a metric of a script, and bounds per transaction of a sum that has no values of single events, on which Lago itself fails.
void check_measured(const Node& at, const Charge& charge, const BillableMetric& metric, bool premium) {
    const auto bounded = [](const Price& price) { return price.minimum || price.maximum; };
    if (!metric.obstacle.empty()) throw Error(ErrorCode::unsupported, at.path("billable_metric_code"), metric.obstacle);
    if (metric.kind != Kind::weighted_sum || !premium) return;
    if (bounded(charge.price) || std::ranges::any_of(charge.filters, [&](const auto& each) { return bounded(each.price); }))
        throw Error(ErrorCode::unsupported, at.path("properties"), "bounds per transaction are not known for a weighted sum");
}

Price read_properties(const Node& at, const ModelRow& row, const Checking& checking) {
    if (at.find("properties")) return read_price(row, at.object("properties"), checking);
    const auto defaults = json::parse(row.defaults);
    return read_price(row, Node(defaults, at.path("properties")), checking);
}

ChargeFilter read_filter(const Node& at, const ModelRow& row, const BillableMetric& metric, const Checking& checking) {
    ChargeFilter filter;
    filter.values = read_values(at, metric);
    filter.name = at.text("invoice_display_name");
    filter.id = at.raw("lago_id");
    filter.price = read_properties(at, row, checking);
    return filter;
}

std::size_t find_metric(const Node& at, const std::vector<BillableMetric>& metrics) {
    const auto code = at.text("billable_metric_code"), id = at.text("lago_billable_metric_id");
    for (std::size_t i = 0; i < metrics.size(); ++i) {
        if (code.empty() ? !id.empty() && metrics[i].id == id : metrics[i].metric.code == code) return i;
    }
    at.refuse("billable_metric_code", "no such billable metric: " + (code.empty() ? id : code));
}

// A plan that exists was made under a licence that allowed it; which licence prices it is Catalogue::premium.
Charge read_charge(const Node& at, const std::vector<BillableMetric>& metrics, bool premium) {
    Problems problems;
    Charge charge;
    charge.metric = find_metric(at, metrics);
    const auto& metric = metrics[charge.metric];
    const Checking checking{metric.kind, true, problems};
    const auto row = at.choice("charge_model", models);
    charge.id = at.raw("lago_id");
    charge.code = at.text("code", metric.metric.code);
    charge.name = at.text("invoice_display_name");
    charge.pay_in_advance = at.flag("pay_in_advance");
    charge.invoiceable = at.flag("invoiceable", true);
    charge.prorated = at.flag("prorated");
    charge.minimum_cents = at.number("min_amount_cents");
    if (at.find("applied_pricing_unit")) {
        const auto unit = at.object("applied_pricing_unit");
        charge.conversion_rate = unit.above_zero("conversion_rate");
        charge.pricing_unit = unit.text("code");
    }
    charge.price = read_properties(at, row, checking);
    for (const auto& filter : at.list("filters")) charge.filters.push_back(read_filter(filter, row, metric, checking));
    check_charge(at, charge, metric, checking);
    if (!problems.empty()) throw Error(ErrorCode::bad_value, problems.front().path, problems.front().code);
    check_measured(at, charge, metric, premium);
    return charge;
}

Subscription read_subscription(const Node& at) {
    Subscription subscription;
    subscription.id = at.required_text("external_id");
    subscription.customer = at.text("external_customer_id");
    subscription.lago_id = at.raw("lago_id");
    subscription.lago_customer_id = at.raw("lago_customer_id");
    static constexpr std::pair<std::string_view, bool> times[] = {{"calendar", false}, {"anniversary", true}};
    subscription.anniversary = at.choice("billing_time", times, "calendar");
    subscription.zone = at.made("timezone", [&] { return Zone(at.text("timezone")); });
    if (const auto started = at.time("started_at")) subscription.active.from = *started;
    if (const auto ended = at.time("terminated_at")) subscription.active.to = *ended + std::chrono::microseconds(1);
    if (subscription.active.to <= subscription.active.from) at.refuse("terminated_at", "is before started_at");
    subscription.anchor = at.time("subscription_at").value_or(subscription.active.from);
    return subscription;
}

// --- the whole ---

// What a plan and its subscriptions say.
struct Catalogue : Book::Impl {
    Stride charges_interval = every_month;
    bool premium = true;
    std::vector<BillableMetric> billable_metrics;
    std::vector<Charge> charges;
    std::vector<Subscription> subscriptions;
    bool lists_subscriptions = false;

    // Asks about each charge; what goes wrong with one names it.
    template <class Ask>
    void ask_about_charges(Ask&& ask) const {
        for (std::size_t i = 0; i < charges.size(); ++i) {
            try {
                ask(charges[i]);
            } catch (const Error& error) {
                if (!error.field().empty()) throw;
                throw Error(error.code(), "plan.charges[" + std::to_string(i) + "]", error.reason());
            }
        }
    }
    const std::string& metric_code(const Charge& charge) const { return billable_metrics[charge.metric].metric.code; }
};

void read(const Node& root, Catalogue& book) {
    const auto at = root.object("plan");
    book.code = at.required_text("code");
    book.currency_code = at.required_text("amount_currency");
    const bool capitals = std::ranges::all_of(book.currency_code, [](char c) { return c >= 'A' && c <= 'Z'; });
    if (book.currency_code.size() != 3 || !capitals) at.refuse("amount_currency", "must be a currency's three capital letters");
    book.currency = currency_in(currencies, book.currency_code);
    book.charges_interval = at.choice("interval", intervals, "monthly");
    if (at.flag("bill_charges_monthly")) book.charges_interval = every_month;
    book.premium = root.flag("premium", true);
    for (const auto& metric : root.list("billable_metrics")) {
        book.billable_metrics.push_back(read_metric(metric));
        if (book.billable_metrics.back().obstacle.empty()) book.metrics.push_back(rounded(book.billable_metrics.back()));
    }
    for (const auto& charge : at.list("charges")) book.charges.push_back(read_charge(charge, book.billable_metrics, book.premium));
    book.lists_subscriptions = root.find("subscriptions").has_value();
    for (const auto& each : root.list("subscriptions")) book.subscriptions.push_back(read_subscription(each));
}

// ---- the account: subscriptions and their billing periods (dossier 4.2) ----

// The date on the customer's calendar.
std::chrono::year_month_day local_date(const Subscription& subscription, Timestamp time) {
    return date_of(Timestamp(subscription.zone.to_local(time)));
}

// Weeks from Monday and months from January's first day, or both from the anchor's day, which a short month clips.
Period billing_period(Stride interval, const Subscription& subscription, Timestamp now) {
    using namespace std::chrono;
    const auto first =
        subscription.anniversary ? local_date(subscription, subscription.anchor) : year(1970) / January / (interval.months > 0 ? 1 : 5);
    return overlap(Cycle(interval, midnight(first).micros(), subscription.zone).around(now), subscription.active);
}

// Days on the customer's calendar, the first and the last included.
int days_in(const Subscription& subscription, const Period& period) {
    const std::chrono::sys_days first(local_date(subscription, period.from)), last(local_date(subscription, last_moment(period)));
    return static_cast<int>((last - first).count()) + 1;
}

// Days of the whole billing period at that time, also when the subscription covers a part of it.
int period_days(Stride interval, Subscription subscription, Timestamp time) {
    subscription.active = {};
    return days_in(subscription, billing_period(interval, subscription, time));
}

bool is_about(const UsageQuery& query, const Subscription& subscription) {
    return (query.subscription.empty() || subscription.id == query.subscription) &&
           (query.customer.empty() || subscription.customer == query.customer);
}

// The subscriptions a question is about, each with the period asked about, as far as it was active.
std::vector<std::pair<Subscription, Period>> asked_about(const Catalogue& book, const UsageQuery& query, Timestamp now) {
    std::vector<Subscription> asked;
    for (const auto& each : book.subscriptions) {
        if (is_about(query, each) && (query.period || each.active.contains(now))) asked.push_back(each);
    }
    if (!book.lists_subscriptions && !query.subscription.empty()) asked.push_back({.id = query.subscription, .customer = query.customer});
    if (query.subscription.empty() && query.customer.empty()) refuse("subscription", "a subscription or a customer is required");
    if (asked.empty()) not_found("subscription", "no_active_subscription");
    std::vector<std::pair<Subscription, Period>> periods;
    for (const auto& each : asked) {
        const auto period = query.period.value_or(billing_period(book.charges_interval, each, now));
        const auto active = overlap(period, each.active);
        if (active.from < active.to) periods.emplace_back(each, active);
    }
    return periods;
}

// The subscription active at that time, under the plan; of several one without an end (event.rb:43). A plan without a list of subscriptions
// takes any, on calendar periods.
Subscription subscription_at(const Catalogue& book, const std::string& id, Timestamp time) {
    if (id.empty()) not_found("subscription", "subscription_not_found");
    if (!book.lists_subscriptions) return {.id = id, .active = {}};
    const Subscription* found = nullptr;
    for (const auto& each : book.subscriptions) {
        if (each.id == id && each.active.contains(time) && (!found || found->active.to < each.active.to)) found = &each;
    }
    if (!found) not_found("subscription", "subscription_not_found");
    return *found;
}

// ---- measuring ----

// --- charge filters (dossier 4.5) ---

// Properties meet the values of filters and groups as texts (postgres_store.rb:461-500).
constexpr Coercion text_filter{.missing = {differ_any, differ_any},
                               .boolean = {text_any, text_any},
                               .number = {as_written, text_any},
                               .text = {text_any, text_any},
                               .structure = {text_any, text_any}};

constexpr Rules rules{.name = "lago",
                      .filter = {.properties = &text_filter},
                      .counts_absent = true,
                      .words_apart = true,
                      .latest_not_negative = true,  // latest_service.rb
                      .weighting = Weighting::pieces,
                      .quotient = postgres_quotient,
                      .weighted_rounding = RoundTo{Rounding::ceil, 20},
                      .dialect = &expressions};

bool holds(const std::vector<std::string>& list, const std::string& value) { return std::ranges::find(list, value) != list.end(); }

bool matches(const Values& values, const json& properties) {
    return std::ranges::all_of(values, [&](const auto& entry) {
        const auto text = property_text(properties, entry.first);
        return text && holds(entry.second, *text);
    });
}

// The filter that prices an event: of those that match, the first with the most keys; none: the charge's own price.
const ChargeFilter* filter_of(const Charge& charge, const json& properties) {
    const ChargeFilter* best = nullptr;
    for (const auto& filter : charge.filters) {
        if (matches(filter.values, properties) && (!best || filter.values.size() > best->values.size())) best = &filter;
    }
    return best;
}

bool same_keys(const Values& a, const Values& b) {
    return std::equal(a.begin(), a.end(), b.begin(), b.end(), [](const auto& x, const auto& y) { return x.first == y.first; });
}

// Whether `other` has each key of `filter` with a value in common.
bool overlaps(const Values& filter, const Values& other) {
    return std::ranges::all_of(filter, [&](const auto& entry) {
        const auto* found = value_at(other, entry.first);
        return found && std::ranges::any_of(entry.second, [&](const auto& value) { return holds(*found, value); });
    });
}

std::vector<std::string> without(const std::vector<std::string>& values, const std::vector<std::string>& others) {
    std::vector<std::string> rest;
    std::ranges::copy_if(values, std::back_inserter(rest), [&](const auto& value) { return !holds(others, value); });
    return rest;
}

// Whether all values of `part` are in `whole`, which has the same keys.
bool within(const Values& part, const Values& whole) {
    return std::ranges::all_of(part, [&](const auto& entry) { return without(entry.second, whole.at(entry.first)).empty(); });
}

// What the bucket of `charge.filters[index]` leaves to other filters (matching_and_ignored_service.rb:72-130). The filters are in order
// of creation.
std::vector<Values> ignored_values(const std::vector<Values>& filters, std::size_t index) {
    std::vector<Values> ignored;
    const auto& own = filters[index];
    for (std::size_t i = 0; i < filters.size(); ++i) {
        if (i == index || !overlaps(own, filters[i])) continue;
        auto other = filters[i];
        if (same_keys(own, other)) {
            const bool inside = within(other, own);
            if (inside && within(own, other) && i > index) continue;  // of equal filters the oldest counts
            if (!inside) {
                for (auto& [key, values] : other) values = without(values, own.at(key));
            }
        }
        ignored.push_back(std::move(other));
    }
    return ignored;
}

// Without empty lists, which count for nothing, and without entries of nothing else, which ignore nothing (an_event_store.rb).
std::vector<Values> listed(std::vector<Values> entries) {
    for (auto& entry : entries) std::erase_if(entry, [](const auto& each) { return each.second.empty(); });
    std::erase_if(entries, [](const Values& entry) { return entry.empty(); });
    return entries;
}

// What falls to other filters than this one, or to any when there is none.
std::vector<Values> left_by(const Charge& charge, const ChargeFilter* filter) {
    std::vector<Values> all;
    for (const auto& each : charge.filters) all.push_back(each.values);
    return listed(filter ? ignored_values(all, static_cast<std::size_t>(filter - charge.filters.data())) : all);
}

// Whether the filter's bucket has the event.
bool takes(const Charge& charge, const ChargeFilter& filter, const json& properties) {
    const auto left = left_by(charge, &filter);
    return matches(filter.values, properties) && std::ranges::none_of(left, [&](const Values& entry) { return matches(entry, properties); });
}

// The filter in whose bucket an event is billed: the one that prices it, unless that leaves the event to a narrower one of the same keys.
const ChargeFilter* billing_filter(const Charge& charge, const json& properties) {
    const auto* priced = filter_of(charge, properties);
    if (!priced || takes(charge, *priced, properties)) return priced;
    const auto found = std::ranges::find_if(charge.filters, [&](const auto& each) { return takes(charge, each, properties); });
    return found == charge.filters.end() ? nullptr : &*found;
}

// Keeps the events that do not match the entry.
Filter excluding(const Values& entry) {
    auto misses = Filter::any({});
    for (const auto& [key, values] : entry) misses.parts.push_back(Filter::where(property_field(key), Operator::not_in, json(values)));
    return misses;
}

// The events priced by the filter, or by the charge itself when there is none.
Filter bucket(const Charge& charge, const ChargeFilter* filter) {
    auto result = Filter::all({});
    for (const auto& [key, values] : filter ? filter->values : Values()) {
        result.parts.push_back(Filter::where(property_field(key), Operator::in, json(values)));
    }
    for (const auto& entry : left_by(charge, filter)) result.parts.push_back(excluding(entry));
    return result;
}

// The events whose property has the value, or has none.
Filter in_group(const std::string& key, const std::optional<std::string>& value) {
    const auto field = property_field(key);
    return value ? Filter::equals(field, *value) : Filter::where(field, Operator::exists, false);
}

// The group of an event, to which a missing property and an empty one are the same (postgres_store.rb:488).
Filter beside(const std::string& key, const std::optional<std::string>& value) {
    if (value && !value->empty()) return in_group(key, value);
    return Filter::any({in_group(key, std::nullopt), in_group(key, "")});
}

// --- what is counted ---

// One question about one charge: where its units are counted, and how they are priced.
struct Scope {
    const Catalogue& book;
    const Charge& charge;
    const ChargeFilter* filter;
    const Subscription& subscription;
    Period period;

    Scope within(const ChargeFilter& part) const { return {book, charge, &part, subscription, period}; }
    const Price& price() const { return filter ? filter->price : charge.price; }
    const BillableMetric& metric() const { return book.billable_metrics[charge.metric]; }
    // Whether events count as one each, whatever they hold.
    bool counts() const { return metric().kind == Kind::count || metric().kind == Kind::unique_count; }
    // The lower end is cut to milliseconds (base_store.rb:178).
    AggregateQuery query() const {
        constexpr std::int64_t millisecond = 1000;
        AggregateQuery query;
        query.subscription = subscription.id;
        query.period = {cut(period.from, millisecond), period.to};
        query.filter = bucket(charge, filter);
        query.billing_period = {period.from, period.from + std::chrono::days(whole_days())};  // what a weighted sum is a share of
        return query;
    }
    int whole_days() const { return period_days(book.charges_interval, subscription, period.from); }
};

using Group = std::vector<std::pair<std::string, std::optional<std::string>>>;

// A missing and an empty value are shown alike (base_store.rb:295).
Group group_of(const Scope& scope, const std::vector<std::optional<std::string>>& values) {
    Group group;
    for (std::size_t i = 0; i < values.size(); ++i) {
        group.emplace_back(scope.price().group_keys[i], values[i] && values[i]->empty() ? std::nullopt : values[i]);
    }
    return group;
}

Group group_of(const Scope& scope, const Event& event) {
    std::vector<std::optional<std::string>> values;
    for (const auto& key : scope.price().group_keys) values.push_back(property_text(event.properties, key));
    return group_of(scope, values);
}

std::vector<Measured> measure_groups(const Scope& scope, AggregateQuery query, UsageSource& usage) {
    for (const auto& key : scope.price().group_keys) query.group_by.push_back(property_field(key));
    return usage.measure(scope.metric().metric, query);
}

AggregateQuery beside(AggregateQuery query, const Group& group) {
    for (const auto& [key, value] : group) query.filter.parts.push_back(beside(key, value));
    return query;
}

// --- running totals ---

// Whether the running totals of a sum go on: over the first events when some are free, else until they exceed the free total
// (sum_service.rb:101).
bool runs_on(const Price& price, const RunningTotal& running) {
    if (price.free_events > 0) return running.length < price.free_events;
    return !price.free_total.is_zero() && running.last <= price.free_total;
}

void run_on(const Price& price, RunningTotal& running, const Decimal& step) {
    running.last += step;
    running.length += 1;
    if (running.length == price.free_events) running.at_free_events = running.last;
    if (running.last < price.free_total) running.below_free += 1;
}

// Running totals 1, 2, 3 ... of a count.
RunningTotal running_count(const Price& price, const Decimal& units) {
    if ((price.free_events.is_zero() && price.free_total.is_zero()) || units <= 0) return {};
    const auto below = at_least_zero(price.free_total.round(0, Rounding::ceil) - 1);
    return {.length = units, .last = units, .at_free_events = price.free_events, .below_free = std::min(units, below)};
}

// The steps whose sums are the running totals.
std::vector<EventStep> running_steps(const Scope& scope, const AggregateQuery& query, UsageSource& usage) {
    const auto& price = scope.price();
    const auto& metric = scope.metric().metric;
    constexpr auto all = std::numeric_limits<std::size_t>::max();
    if (price.free_events.is_zero()) return price.free_total.is_zero() ? std::vector<EventStep>() : usage.steps(metric, query, all, price.free_total);
    const auto first = smaller(price.free_events, Decimal(std::numeric_limits<std::ptrdiff_t>::max()));
    return usage.steps(metric, query, static_cast<std::size_t>(first.to_int64().value()), {});
}

// What each event of the period is worth by itself (compute_per_event_aggregation): a sum's number; of a maximum its own at the event that
// reached it first, else nothing; 1 for each event that is counted, whatever it does to a unique count.
std::vector<Decimal> event_values(const Scope& scope, const AggregateQuery& query, UsageSource& usage) {
    const auto steps = usage.steps(in_period(scope.metric()), query);
    const auto highest = std::ranges::max_element(steps, {}, &EventStep::value);
    std::vector<Decimal> values;
    for (auto step = steps.begin(); step != steps.end(); ++step) {
        const bool worthless = scope.metric().kind == Kind::max && step != highest;
        values.push_back(scope.counts() ? Decimal(1) : worthless ? Decimal() : step->value);
    }
    return values;
}

// What a percentage charge needs besides units: running totals for free units, each event's value for bounds per transaction.
void measure_percentage(const Scope& scope, const AggregateQuery& query, UsageSource& usage, Quantity& quantity) {
    const auto& price = scope.price();
    if (has_bounds(price, quantity)) {
        for (const auto& value : event_values(scope, query, usage)) quantity.bounded.add(price, value);
    }
    if (scope.counts()) quantity.running = running_count(price, quantity.units);
    if (scope.metric().kind != Kind::sum) return;  // others have no running totals
    for (const auto& step : running_steps(scope, query, usage)) run_on(price, quantity.running, step.value);
}

Quantity quantity_of(const Scope& scope, const AggregateQuery& query, UsageSource& usage, const Measured& measured) {
    Quantity quantity{.units = measured.value, .events = measured.events, .premium = scope.book.premium};
    if (scope.metric().kind == Kind::unique_count) quantity.events = measured.value.to_int64().value_or(0);
    if (scope.price().model == Model::dynamic) {
        quantity.precise_amount = quotient(usage.precise_total_cents(scope.metric().metric, query), scope.book.currency.subunits);
    }
    if (scope.price().model == Model::percentage) measure_percentage(scope, query, usage, quantity);
    return quantity;
}

// --- proration: the share of the period that a unit counts for (dossier 4.7) ---

// As long as Lago has it, where it is a floating-point number (prorated_aggregations/base_service.rb).
Decimal share_of(const Scope& scope, const Period& period) { return ratio(days_in(scope.subscription, period), scope.whole_days()); }

// What an event at that time pays of a prorated charge: from its day to the end of the billing period.
std::optional<Decimal> share_paid(const Scope& scope, Timestamp time) {
    if (!scope.charge.prorated) return {};
    return share_of(scope, {time, billing_period(scope.book.charges_interval, scope.subscription, time).to});
}

// The steps of the events of the period. What a recurring unique count had before is not added once more.
std::vector<EventStep> period_steps(const Scope& scope, const AggregateQuery& query, UsageSource& usage) {
    if (scope.metric().kind != Kind::unique_count) return usage.steps(in_period(scope.metric()), query);
    auto steps = usage.steps(scope.metric().metric, query);
    std::erase_if(steps, [&](const EventStep& step) { return step.time < query.period.from; });
    return steps;
}

// The numbers of the period's events, each for the days from its own to the end (sum_service.rb:164).
std::vector<ProratedEvent> prorated_numbers(const Scope& scope, const AggregateQuery& query, UsageSource& usage) {
    const auto whole = scope.whole_days();
    std::vector<ProratedEvent> events;
    for (const auto& step : period_steps(scope, query, usage)) {
        const auto days = days_in(scope.subscription, {std::max(step.time, scope.period.from), scope.period.to});
        events.push_back({step.value, step.value * postgres_quotient(days, whole)});
    }
    return events;
}

// Of a sum: what was there before the period, for all of it, then the events of the period.
std::vector<ProratedEvent> prorated_sum(const Scope& scope, const AggregateQuery& query, UsageSource& usage) {
    auto before = query;
    before.period = {Timestamp::min(), query.period.from};
    const auto older = usage.measure(in_period(scope.metric()), before).front().value;
    auto events = prorated_numbers(scope, query, usage);
    if (!older.is_zero()) events.insert(events.begin(), {older, older * share_of(scope, scope.period)});
    return events;
}

// A value of a unique count that was there: from its add to its removal, if there was one.
struct Presence {
    EventStep added;
    std::optional<EventStep> removed = {};
};

// What is removed and added again in one day was never away (unique_count_query.rb, ignore_remove_events_sql).
std::vector<Presence> presences(const Subscription& subscription, const std::vector<EventStep>& steps) {
    std::vector<Presence> list;
    std::map<std::uint32_t, std::size_t> last;
    for (const auto& step : steps) {
        const auto* known = value_at(last, step.item);
        auto* before = known ? &list[*known] : nullptr;
        if (step.value > 0) {
            if (before && before->removed && local_date(subscription, before->removed->time) == local_date(subscription, step.time)) {
                before->removed.reset();
                continue;
            }
            last[step.item] = list.size();
            list.push_back({step});
        } else if (step.value < 0 && before && !before->removed) {
            before->removed = step;
        }
    }
    return list;
}

// Of a unique count: each value for the days it was there, then its removal. Grouped, a value that was removed before the period has one day
// (dossier 4.7).
std::vector<ProratedEvent> prorated_items(const Scope& scope, const AggregateQuery& query, UsageSource& usage) {
    const auto day = [&](Timestamp time) { return std::chrono::sys_days(local_date(scope.subscription, time)); };
    const auto first = day(scope.period.from), last = day(last_moment(scope.period));
    const std::chrono::days least(scope.price().group_keys.empty() ? -1 : 0);
    const auto whole = scope.whole_days();
    std::vector<std::pair<std::pair<Timestamp, std::int64_t>, ProratedEvent>> placed;
    for (const auto& [added, removed] : presences(scope.subscription, usage.steps(scope.metric().metric, query))) {
        const auto until = removed ? std::min(day(removed->time), last) : last;
        const auto days = std::max(until - std::max(day(added.time), first), least).count() + 1;
        if (days == 0) continue;  // nor is its removal one of the period's (prorated_graduated_service.rb)
        placed.push_back({{added.time, added.sequence}, {1, postgres_quotient(days, whole)}});
        if (removed) placed.push_back({{removed->time, removed->sequence}, {-1, 0}});
    }
    std::ranges::sort(placed, [](const auto& a, const auto& b) { return a.first < b.first; });
    std::vector<ProratedEvent> events;
    for (const auto& each : placed) events.push_back(each.second);
    return events;
}

// --- what a pay-in-advance charge has come to (dossier 7.2) ---

struct Contribution {
    Decimal priced;  // units the event adds to what is priced
    Decimal shown;   // units its fee shows
};

// Up at 5 decimals (prorated_aggregations/base_service.rb).
Decimal prorated(const Decimal& units, const Decimal& share) { return (units * share).round(5, Rounding::ceil); }

// What the period's events have come to, event by event: prices follow the period's maximum.
struct AdvanceState {
    std::optional<Decimal> current, maximum;
    Decimal prorated_maximum = {};

    // One event of a sum (`step` its number) or a unique count (`step` 1, 0 or -1); a prorated charge pays the share of the period left.
    Contribution add(const Decimal& step, const std::optional<Decimal>& share) {
        Contribution contribution{at_least_zero(step), at_least_zero(step)};
        if (!current) {
            current = maximum = step;
        } else {
            current = *current + step;
            const auto above = at_least_zero(*current - *maximum);
            contribution.priced = above;
            if (!above.is_zero()) contribution.shown = above;
            if (!above.is_zero()) maximum = std::max(*current, above);
        }
        if (share) contribution.priced = prorated(contribution.priced, *share);
        prorated_maximum += contribution.priced;
        return contribution;
    }

    // What current usage is priced by (base_service.rb:194). Of a prorated charge the live units from before the period weigh `share` of it.
    Decimal paid(const Decimal& live, const std::optional<Decimal>& share) const {
        const auto now = current.value_or(Decimal());
        if (!share) return at_least_zero(live - now + maximum.value_or(Decimal()));
        return prorated(at_least_zero(live) - at_least_zero(now), *share) + prorated_maximum;
    }
};

// What the period's events have come to, each as it was paid when it came.
AdvanceState advance_state(const Scope& scope, const AggregateQuery& query, UsageSource& usage) {
    AdvanceState state;
    for (const auto& step : period_steps(scope, query, usage)) state.add(step.value, share_paid(scope, step.time));
    return state;
}

// The event's own number for a sum; its property, when present, must be a number (validate_creation_service.rb:83).
Decimal summed(const BillableMetric& metric, const Event& event) {
    const auto key = property_key(metric);
    const auto text = property_text(event.properties, key);
    if (!text) return {};
    const auto value = Decimal::parse(*text);
    if (!value) throw Error(ErrorCode::bad_value, "properties." + key, "value_is_not_valid_number");
    return *value;
}

// What the event does to a unique count: 1 for an add of an inactive value, -1 for a remove of an active one.
Decimal unique_step(const Scope& scope, const Event& event, AggregateQuery query, UsageSource& usage) {
    const auto& metric = scope.metric().metric;
    const auto value = property_text(event.properties, property_key(scope.metric()));
    if (!value) return {};
    const bool adds = property_text(event.properties, "operation_type").value_or("add") == "add";
    query.filter.parts.push_back(Filter::equals(metric.property, *value));
    const bool active = usage.measure(metric, query).front().value > 0;
    return adds == active ? Decimal() : Decimal(adds ? 1 : -1);
}

// `measured` is what the query comes to without the event.
Contribution contribution_of(const Scope& scope, const Event& event, Timestamp now, const AggregateQuery& query, const Measured& measured,
                             UsageSource& usage) {
    const auto& metric = scope.metric();
    if (metric.kind == Kind::count) return {1, 1};
    const bool unique = metric.kind == Kind::unique_count, carries = metric.metric.recurring;
    const auto step = unique ? unique_step(scope, event, query, usage) : summed(metric, event);
    const auto own = carries ? usage.measure(in_period(metric), query).front() : measured;
    AdvanceState state;
    if (own.falls || (unique && carries)) {
        state = advance_state(scope, query, usage);
    } else if (own.events > 0) {
        state.current = state.maximum = own.value;
    }
    return state.add(step, share_paid(scope, now));
}

// --- what a period has come to ---

// What a period's units are priced as: live units, the maximum paid in advance, or units weighed by their days.
struct Counted {
    Quantity quantity;
    std::vector<ProratedEvent> prorated;
};

Counted count_prorated(const Scope& scope, const AggregateQuery& query, const Measured& measured, UsageSource& usage) {
    const bool items = scope.metric().kind == Kind::unique_count;
    Counted counted{{.units = {}, .full_units = measured.value, .prorated = true, .events = measured.events},
                    items ? prorated_items(scope, query, usage) : prorated_sum(scope, query, usage)};
    auto& units = counted.quantity.units;
    if (scope.charge.pay_in_advance) {
        units = advance_state(scope, query, usage).paid(measured.value, share_of(scope, scope.period));
    } else {
        for (const auto& event : counted.prorated) units += event.prorated;
        units = units.round(5, Rounding::ceil);
    }
    units = rounded(scope.metric(), units);
    if (items) counted.quantity.events = measured.value.to_int64().value_or(0);
    return counted;
}

Counted count_period(const Scope& scope, const AggregateQuery& query, Measured measured, UsageSource& usage) {
    if (scope.charge.prorated) return count_prorated(scope, query, measured, usage);
    if (scope.charge.pay_in_advance && scope.metric().kind != Kind::count && measured.falls) {
        // It has been paid up to the period's maximum, which a live value below it does not bring back.
        const auto state = advance_state(scope, query, usage);
        if (state.current) measured.value = state.paid(measured.value, {});
    }
    return {quantity_of(scope, query, usage, measured), {}};
}

// Units as they stand at the end of the period, beside those that are priced: of a weighted sum all that was added, else the same.
Decimal total_units(const Scope& scope, const AggregateQuery& query, const Decimal& units, UsageSource& usage) {
    if (scope.metric().kind != Kind::weighted_sum) return units;
    auto sum = scope.metric().metric;
    sum.aggregation = Aggregation::sum;
    return usage.measure(sum, query).front().value;
}

// One of the groups of a question, and what of it is priced.
struct CountedGroup {
    AggregateQuery query;
    Group group;
    Measured measured;
    Counted counted;
};

// Without events there is one group of nothing (sum_service_spec.rb:938). A missing and an empty value are groups apart.
std::vector<CountedGroup> count_groups(const Scope& scope, const AggregateQuery& query, UsageSource& usage) {
    const auto& keys = scope.price().group_keys;
    auto rows = measure_groups(scope, query, usage);
    if (rows.empty()) rows.push_back({.group = std::vector<std::optional<std::string>>(keys.size()), .falls = false});
    const bool weighs_older = scope.metric().kind == Kind::weighted_sum && scope.metric().metric.recurring;
    std::vector<CountedGroup> groups;
    for (auto& row : rows) {
        auto& one = groups.emplace_back(CountedGroup{query, group_of(scope, row.group), std::move(row), {}});
        for (std::size_t i = 0; i < keys.size(); ++i) one.query.filter.parts.push_back(in_group(keys[i], one.measured.group[i]));
        one.measured.value = rounded(scope.metric(), one.measured.value);
        // What came before the period weighs, but is not counted (weighted_sum_service.rb:13).
        if (weighs_older) one.measured.events = usage.measure(in_period(scope.metric()), one.query).front().events;
        one.counted = count_period(scope, one.query, one.measured, usage);
    }
    return groups;
}

// ---- fees (dossier 3.2, 6) ----

// A fee's figures in smallest units (dossier 6.1). Each fee is rounded once; a unit's amount is cut, not rounded.
struct Figures {
    Decimal cents, precise_cents;
    Decimal unit_cents, unit_amount;
};

Figures figures(const Decimal& amount, const Decimal& unit_amount, Currency currency) {
    const Decimal subunits(currency.subunits);
    return {to_cents(amount, currency), amount * subunits, (unit_amount * subunits).round(0, Rounding::down), unit_amount};
}

// From a pricing unit, whose cents are hundredths, to money: what was rounded there is converted (pricing_unit_usage.rb:13).
Figures converted(const Figures& units, const Decimal& rate, Currency currency) {
    const auto hundredth = Decimal::scaled(1, 2);
    return figures(units.cents * rate * hundredth, units.unit_cents * rate * hundredth, currency);
}

// What lifts a charge to its minimum spending, which is prorated to the days billed (create_true_up_service.rb:16).
Decimal true_up_cents(const Decimal& minimum_cents, const Decimal& used_cents, int days, int period_days) {
    return at_least_zero(quotient(minimum_cents * days, period_days) - used_cents);
}

std::string time_text(Timestamp time) { return time.to_string(0); }

json item_json(const Scope& scope, const Fee& fee) {
    const auto& metric = scope.metric();
    return {{"type", "charge"},
            {"code", metric.metric.code},
            {"name", metric.name},
            {"description", filled_text(metric.description)},
            {"invoice_display_name", scope.charge.name.empty() ? metric.name : scope.charge.name},
            {"filters", scope.filter ? json(scope.filter->values) : json(nullptr)},
            {"filter_invoice_display_name", scope.filter ? filled_text(scope.filter->name) : json(nullptr)},
            {"lago_item_id", filled_text(metric.id)},
            {"item_type", "BillableMetric"},
            {"grouped_by", group_json(fee.group)}};
}

std::int64_t whole_cents(const Decimal& cents) {
    const auto value = cents.to_int64();
    if (!value) throw Error(ErrorCode::overflow, "amount_cents", "does not fit 64 bits: " + cents.to_string());
    return *value;
}

// As fee_serializer.rb:8-65 shows a fee that is not stored, and what it shows of all of these.
constexpr const char* fee_constants = R"({"lago_id": null, "lago_fixed_charge_id": null, "lago_invoice_id": null, "lago_true_up_fee_id": null,
    "lago_true_up_parent_fee_id": null, "lago_original_fee_id": null, "created_at": null, "succeeded_at": null, "failed_at": null,
    "refunded_at": null, "pricing_unit_details": null, "description": null, "taxes_amount_cents": 0, "taxes_precise_amount": "0.0",
    "taxes_rate": 0.0, "precise_coupons_amount_cents": "0.0", "payment_status": "pending", "self_billed": false,
    "presentation_breakdowns": [], "applied_taxes": []})";

json fee_json(const Scope& scope, const Fee& fee, json details) {
    static const json constants = json::parse(fee_constants);
    const auto cents = whole_cents(fee.amount_cents);
    auto out = constants;
    out.update({{"lago_charge_id", scope.charge.id},
                {"lago_charge_filter_id", scope.filter ? scope.filter->id : json(nullptr)},
                {"lago_subscription_id", scope.subscription.lago_id},
                {"external_subscription_id", filled_text(fee.subscription)},
                {"lago_customer_id", scope.subscription.lago_customer_id},
                {"external_customer_id", filled_text(fee.customer)},
                {"item", item_json(scope, fee)},
                {"pay_in_advance", fee.pay_in_advance},
                {"invoiceable", scope.charge.invoiceable},
                {"amount_cents", cents},
                {"amount_currency", fee.currency},
                {"precise_amount", ruby_text(fee.amount)},
                {"precise_total_amount", ruby_text(fee.amount)},
                {"total_aggregated_units", ruby_text(fee.units)},
                {"total_amount_cents", cents},
                {"total_amount_currency", fee.currency},
                {"units", ruby_text(fee.units)},
                {"precise_unit_amount", ruby_text(fee.unit_amount)},
                {"sub_total_excluding_taxes_amount_cents", cents},
                {"sub_total_excluding_taxes_precise_amount_cents", ruby_text(fee.amount * scope.book.currency.subunits)},
                {"events_count", fee.events},
                {"amount_details", std::move(details)},
                {"from_date", time_text(fee.period.from)},
                {"to_date", time_text(last_moment(fee.period))}});
    return out;
}

// What a fee says apart from its figures.
Fee empty_fee(const Scope& scope, Group group) {
    Fee fee;
    fee.charge = scope.charge.code;
    fee.metric = scope.metric().metric.code;
    fee.customer = scope.subscription.customer;
    fee.subscription = scope.subscription.id;
    fee.group = std::move(group);
    if (scope.filter) fee.filter = scope.filter->name.empty() ? json(scope.filter->values).dump() : scope.filter->name;
    fee.currency = scope.book.currency_code;
    fee.pay_in_advance = scope.charge.pay_in_advance;
    fee.period = scope.period;
    return fee;
}

// Amounts of a fee that is a difference of two totals: rounded on its own (dossier 7.3).
void set_amounts(Fee& fee, Priced priced, Currency currency) {
    fee.amount_cents = to_cents(priced.amount, currency);
    const auto rounded = priced.amount.round(currency.decimals, Rounding::half_up);
    fee.unit_amount = quotient(rounded, fee.units);
    fee.amount = priced.amount;
    fee.lines = std::move(priced.lines);
}

// Of priced units or an amount below zero nothing is billed, nor shown (charge_service.rb:275).
void clamp(Priced& priced, const Decimal& units, Decimal& shown) {
    shown = at_least_zero(shown);
    if (!units.is_negative() && !priced.amount.is_negative()) return;
    shown = {};
    raise_to(priced, {});
    lower_to(priced, {});
}

// The fee of one event, as fee_serializer.rb shows it.
Fee event_fee(const Scope& scope, Group group, const Event& event, const Decimal& units, Priced priced, json details) {
    auto fee = empty_fee(scope, std::move(group));
    fee.event = event.id;
    fee.units = units;
    fee.events = 1;
    set_amounts(fee, std::move(priced), scope.book.currency);
    fee.vendor = fee_json(scope, fee, std::move(details));
    fee.vendor["event_transaction_id"] = filled_text(event.id);
    return fee;
}

// --- of a period (dossier 4.4, 6, 7.4, 8) ---

Priced price_counted(const Price& price, const Counted& counted) {
    if (price.model == Model::graduated && counted.quantity.prorated)
        return price_prorated_graduated(price.tiers, counted.quantity.units, counted.prorated);
    return apply(price, counted.quantity);
}

// Amounts of a period's fee, in the plan's currency where the charge is in a pricing unit.
json set_period_amounts(const Scope& scope, const Quantity& quantity, Priced priced, Fee& fee) {
    const auto& rate = scope.charge.conversion_rate;  // a pricing unit has hundredths
    auto figures = lago::figures(priced.amount, unit_amount(scope.price(), quantity, priced.amount), rate ? Currency() : scope.book.currency);
    json pricing_unit;
    if (rate) {
        pricing_unit = {
            {"amount_cents", whole_cents(figures.cents)}, {"short_name", scope.charge.pricing_unit}, {"conversion_rate", rate->to_string()}};
        figures = converted(figures, *rate, scope.book.currency);
        convert_to(priced, quotient(figures.precise_cents, scope.book.currency.subunits), *rate);
    }
    fee.unit_amount = figures.unit_amount;
    fee.amount = priced.amount;
    fee.amount_cents = figures.cents;
    fee.lines = std::move(priced.lines);
    return pricing_unit;
}

Fee usage_fee(const Scope& scope, CountedGroup one, UsageSource& usage) {
    auto fee = empty_fee(scope, std::move(one.group));
    fee.units = one.measured.value;
    const auto& quantity = one.counted.quantity;
    auto priced = price_counted(scope.price(), one.counted);
    auto details = row_of(scope.price().model).details(scope.price(), quantity, priced);
    clamp(priced, quantity.units, fee.units);
    fee.events = quantity.events;
    auto pricing_unit = set_period_amounts(scope, quantity, std::move(priced), fee);
    fee.vendor = fee_json(scope, fee, std::move(details));
    fee.vendor["total_aggregated_units"] = ruby_text(total_units(scope, one.query, one.measured.value, usage));
    fee.vendor["pricing_unit_details"] = std::move(pricing_unit);
    return fee;
}

void add_bucket(const Scope& scope, UsageSource& usage, std::vector<Fee>& fees) {
    for (auto& group : count_groups(scope, scope.query(), usage)) fees.push_back(usage_fee(scope, std::move(group), usage));
}

// The charge's minimum spending, when its fees stay below it: one more fee of 1 unit.
void add_true_up(const Scope& scope, const Decimal& used_cents, std::vector<Fee>& fees) {
    const auto cents = true_up_cents(scope.charge.minimum_cents, used_cents, days_in(scope.subscription, scope.period), scope.whole_days());
    if (cents.is_zero()) return;
    const Decimal subunits(scope.book.currency.subunits);
    auto fee = empty_fee(scope, {});
    fee.units = 1;
    fee.amount = fee.unit_amount = quotient(cents, subunits);
    fee.amount_cents = to_cents(fee.amount, scope.book.currency);
    fee.lines = {{.step = Step::minimum, .amount = fee.amount}};
    fee.vendor = fee_json(scope, fee, json::object());
    fees.push_back(std::move(fee));
}

void add_charge(const Scope& whole, bool closing, UsageSource& usage, std::vector<Fee>& fees) {
    const auto first = fees.size();
    for (const auto& filter : whole.charge.filters) add_bucket(whole.within(filter), usage, fees);
    add_bucket(whole, usage, fees);
    if (!closing || whole.charge.minimum_cents.is_zero()) return;
    Decimal used;
    for (std::size_t i = first; i < fees.size(); ++i) used += fees[i].amount_cents;
    add_true_up(whole, used, fees);
}

// --- of single events: recorded ones (dossier 7), and estimates (dossier 3.1, 3.3) ---

// As Lago stores it: with what its metric's expression comes to.
Event stored(const BillableMetric& metric, Event event, Timestamp time) {
    if (metric.metric.expression.empty()) return event;
    try {
        const auto result = evaluate(expression_of(metric.metric, expressions), event, time);
        if (!metric.metric.property.empty()) event.properties[property_key(metric)] = result;
    } catch (const Error& error) {
        if (!error.field().empty()) throw;
        throw Error(ErrorCode::bad_value, "properties", "expression_evaluation_failed: " + error.reason());
    }
    return event;
}

// Nothing of an event that Lago refuses.
std::optional<Event> stored_if_taken(const BillableMetric& metric, const Event& event, Timestamp time) {
    try {
        return stored(metric, event, time);
    } catch (const Error& error) {
        if (error.field() != "properties") throw;
        return {};
    }
}

// Of two amount_details, what the event added (amount_details_calculator.rb:33-62).
Decimal detail(const json& details, const char* key) {
    const auto found = details.find(key);
    return found == details.end() ? Decimal() : Decimal::from_json(*found);
}

json added_percentage(const json& with, const json& without) {
    json added{{"rate", with.at("rate")}, {"fixed_fee_unit_amount", with.at("fixed_fee_unit_amount")}};
    for (const char* key : {"units", "paid_units", "free_events", "paid_events", "fixed_fee_total_amount", "min_max_adjustment_total_amount",
                            "per_unit_total_amount"}) {
        added[key] = (detail(with, key) - detail(without, key)).to_string();
    }
    added["free_units"] = (detail(added, "units") - detail(added, "paid_units")).to_string();
    return added;
}

json added_range(const json& with, const json& without) {
    const auto total = detail(with, "total_with_flat_amount") - detail(without, "total_with_flat_amount");
    const auto units = detail(with, "units") - detail(without, "units");
    return {{"from_value", with.at("from_value")},
            {"to_value", with.at("to_value")},
            {"rate", with.at("rate")},
            {"flat_unit_amount", (detail(with, "flat_unit_amount") - detail(without, "flat_unit_amount")).to_string()},
            {"units", units.to_string()},
            {"per_unit_total_amount", (units > 0 ? Decimal::divide(total, units, 2, Rounding::half_up) : Decimal()).to_string()},
            {"total_with_flat_amount", total.to_string()}};
}

json added_ranges(const json& with, const json& without) {
    auto ranges = json::array();
    for (const auto& range : with) {
        const auto same = std::find_if(without.begin(), without.end(), [&](const json& other) {
            return other.at("from_value") == range.at("from_value") && other.at("to_value") == range.at("to_value");
        });
        ranges.push_back(added_range(range, same == without.end() ? json::object() : *same));
    }
    return {{"graduated_percentage_ranges", std::move(ranges)}};
}

// Only percentages have details of a single event.
json added_details(const json& with, const json& without) {
    constexpr const char* ranges = "graduated_percentage_ranges";
    if (with.contains(ranges)) return added_ranges(with.at(ranges), without.value(ranges, json::array()));
    return with.contains("paid_events") ? added_percentage(with, without) : json::object();
}

// What is priced with an event and without it, and what the event adds.
struct AdvanceStep {
    Quantity with, without;
    Contribution contribution;
};

// The events of a pay-in-advance charge in one group, one by one in order of time.
struct AdvanceWalk {
    const Scope& scope;
    Quantity quantity = {.units = {}, .premium = scope.book.premium};
    AdvanceState state = {};

    // By itself for an event that brings no fee: from before the period, of a recurring metric, or without the property.
    void take(const Decimal& step, const Decimal& amount) {
        const auto& price = scope.price();
        quantity.units += step;
        quantity.events = scope.metric().kind == Kind::unique_count ? quantity.units.to_int64().value_or(0) : quantity.events + 1;
        quantity.precise_amount += amount;
        if (price.model != Model::percentage) return;
        if (scope.counts()) quantity.running = running_count(price, quantity.units);
        if (!scope.counts() && runs_on(price, quantity.running)) run_on(price, quantity.running, step);
    }

    AdvanceStep add(const EventStep& step, const Event& event) {
        const auto bounded = quantity.bounded;
        const auto amount = quotient(event.precise_total_amount_cents.value_or(Decimal()), scope.book.currency.subunits);
        take(step.value, amount);
        // A count's values never leave out the event (count_service.rb:66): on both sides the same, which are nothing to their difference.
        if (!scope.counts() && has_bounds(scope.price(), quantity)) quantity.bounded.add(scope.price(), step.value);
        const bool one = scope.metric().kind == Kind::count;
        AdvanceStep result{quantity, quantity, one ? Contribution{1, 1} : state.add(step.value, share_paid(scope, step.time))};
        auto& without = result.without;
        without.units -= result.contribution.priced;
        --without.events;
        without.without_event = true;
        without.precise_amount -= amount;
        without.bounded = bounded;
        return result;
    }
};

Fee advance_fee(const Scope& scope, const Group& group, const Event& event, const AdvanceStep& step) {
    const auto with = apply(scope.price(), step.with), without = apply(scope.price(), step.without);
    const auto details = row_of(scope.price().model).details;
    return event_fee(scope, group, event, step.contribution.shown, difference(with, without),
                     added_details(details(scope.price(), step.with, with), details(scope.price(), step.without, without)));
}

using PlacedFees = std::multimap<std::pair<Timestamp, std::int64_t>, Fee>;  // by time and sequence of their events

// Which events' fees are asked for: those of a period, or one of them.
struct AdvanceQuestion {
    Period period;
    std::optional<std::int64_t> sequence = {};
    bool wants(const EventStep& step) const { return period.contains(step.time) && (!sequence || *sequence == step.sequence); }
};

// Over the scope's period, which is a billing period. An event without the property to be counted has no fee (pay_in_advance_service.rb:59).
void add_advance_fees(const Scope& scope, const Group& group, const AdvanceQuestion& question, UsageSource& usage, PlacedFees& fees) {
    const auto& metric = scope.metric();
    auto query = beside(scope.query(), group);
    query.period.to = std::min(query.period.to, question.period.to);
    AdvanceWalk walk{scope};
    for (const auto& step : usage.steps(metric.metric, query)) {
        if (step.time < query.period.from || (metric.kind == Kind::unique_count && step.item == 0)) {
            walk.take(step.value, {});
            continue;
        }
        const bool wanted = question.wants(step);
        auto event = wanted || scope.price().model == Model::dynamic ? usage.event(step.sequence) : Event();
        if (wanted) event = stored(metric, std::move(event), step.time);
        const auto billed = walk.add(step, event);
        if (!wanted || billing_filter(scope.charge, event.properties) != scope.filter) continue;
        if (fees.size() == limits::advance_fees)
            throw Error(ErrorCode::too_large, "period", "has more than " + std::to_string(limits::advance_fees) + " fees");
        fees.emplace(std::pair(step.time, step.sequence), advance_fee(scope, group, event, billed));
    }
}

Fees in_order(const Catalogue& book, PlacedFees placed) {
    std::vector<Fee> list;
    for (auto& each : placed) list.push_back(std::move(each.second));
    return book.sum_up(std::move(list));
}

// Both sides of the estimate, of which `step` has only the one without the event. A sum's running totals have the event on both.
void add_event(const Scope& scope, const Event& event, AdvanceStep& step) {
    const auto value = scope.counts() ? Decimal(1) : summed(scope.metric(), event);
    auto& running = step.without.running;
    if (!scope.counts() && runs_on(scope.price(), running)) run_on(scope.price(), running, value);
    auto& with = step.with = step.without;
    with.units += step.contribution.priced;
    ++with.events;
    if (has_bounds(scope.price(), with)) with.bounded.add(scope.price(), value);
    with.precise_amount += quotient(event.precise_total_amount_cents.value_or(Decimal()), scope.book.currency.subunits);
}

Fee estimate(const Scope& scope, const Event& event, Timestamp now, UsageSource& usage) {
    auto group = group_of(scope, event);
    const auto query = beside(scope.query(), group);
    const auto measured = usage.measure(scope.metric().metric, query).front();
    AdvanceStep step{{}, quantity_of(scope, query, usage, measured), contribution_of(scope, event, now, query, measured, usage)};
    add_event(scope, event, step);
    const auto priced = difference(apply(scope.price(), step.with), apply(scope.price(), step.without));
    return event_fee(scope, std::move(group), event, step.contribution.shown, priced, json::object());
}

// As estimate_instant_fees: standard and percentage charges, the event priced alone, its units rounded as the metric says.
Fee instant(const Scope& scope, const Event& event) {
    const auto& metric = scope.metric();
    const auto units = rounded(metric, metric.kind == Kind::count ? Decimal(1) : summed(metric, event));
    auto fee = event_fee(scope, group_of(scope, event), event, at_least_zero(units), price_instant(scope.price(), units), nullptr);
    fee.vendor.erase("applied_taxes");
    fee.vendor["amount_cents"] = fee.vendor["total_amount_cents"] = ruby_text(fee.amount_cents);
    fee.vendor["precise_unit_amount"] = ruby_text(fee.unit_amount * scope.book.currency.subunits);
    return fee;
}

// ---- operations ----

// A percentage charge looks at single events: they are taken as equal, but that the last one has what is missing to the whole, and that a
// maximum is the first one's.
void spread_evenly(const Scope& scope, Quantity& quantity) {
    const auto& price = scope.price();
    const auto events = quantity.events;
    if (events < 0 || events > static_cast<std::int64_t>(limits::batch_events)) refuse("events", "is out of range");
    if (scope.counts()) quantity.running = running_count(price, quantity.units);
    const bool highest = scope.metric().kind == Kind::max;
    const auto share = highest ? Decimal() : quotient(quantity.units, events);
    for (std::int64_t i = 0; i < events; ++i) {
        const auto value = i == (highest ? 0 : events - 1) ? quantity.units - share * (events - 1) : share;
        if (scope.metric().kind == Kind::sum && runs_on(price, quantity.running)) run_on(price, quantity.running, value);
        if (has_bounds(price, quantity)) quantity.bounded.add(price, value);
    }
}

struct Operations final : Catalogue {
    bool serves(const std::string& subscription, const std::string& customer) const override {
        return !lists_subscriptions || std::ranges::any_of(subscriptions, [&](const Subscription& each) {
            return subscription.empty() ? !customer.empty() && each.customer == customer : each.id == subscription;
        });
    }
    bool prices_customer(const std::string& customer) const override { return lists_subscriptions && serves({}, customer); }
    std::vector<std::string> charge_names(const std::string& metric) const override {
        std::vector<std::string> codes;
        for (const auto& each : charges) {
            if (metric_code(each) == metric) codes.push_back(each.code);
        }
        return codes;
    }

    Period period_around(const UsageQuery& query, Timestamp at) const override {
        const auto asked = std::ranges::find_if(subscriptions, [&](const auto& each) { return is_about(query, each); });
        auto subscription = asked == subscriptions.end() ? Subscription() : *asked;
        subscription.active = {};
        return billing_period(charges_interval, subscription, at);
    }

    std::vector<std::string> subscriptions_of(const UsageQuery& query, Timestamp now) const override {
        std::vector<std::string> ids;
        for (const auto& [subscription, period] : asked_about(*this, query, now)) ids.push_back(subscription.id);
        return ids;
    }

    Fees usage(const UsageQuery& query, Timestamp now, UsageSource& usage) const override {
        std::vector<Fee> list;
        for (const auto& asked : asked_about(*this, query, now)) {
            ask_about_charges([&](const Charge& charge) {
                add_charge({*this, charge, nullptr, asked.first, asked.second}, query.closing, usage, list);
            });
        }
        return sum_up(std::move(list));
    }

    Fees estimate_fees(const Event& given, Timestamp now, UsageSource& usage) const override {
        const auto subscription = subscription_at(*this, given.subscription, now);
        const auto* known = find_by(billable_metrics, &BillableMetric::code, given.name);
        if (!known) not_found("name", "billable_metric_not_found");
        const Event event = stored(*known, given, now);
        if (known->kind == Kind::sum || known->kind == Kind::max || known->kind == Kind::latest) summed(*known, event);
        const auto whole = billing_period(charges_interval, subscription, now);
        const auto period = overlap(whole, up_to(whole.from, now));
        std::vector<Fee> list;
        ask_about_charges([&](const Charge& charge) {
            if (!charge.pay_in_advance || metric_code(charge) != event.name) return;
            list.push_back(estimate({*this, charge, filter_of(charge, event.properties), subscription, period}, event, now, usage));
            list.back().period = whole;
            list.back().vendor["to_date"] = time_text(last_moment(whole));
        });
        if (list.empty()) refuse("name", "does_not_match_an_instant_charge");
        return sum_up(std::move(list));
    }

    Fees estimate_instant_fees(const Event& given, Timestamp now) const override {
        const auto subscription = subscription_at(*this, given.subscription, now);
        const auto* known = find_by(billable_metrics, &BillableMetric::code, given.name);
        const Event event = known ? stored(*known, given, now) : given;
        const auto period = billing_period(charges_interval, subscription, now);
        std::vector<Fee> list;
        ask_about_charges([&](const Charge& charge) {
            if (!charge.pay_in_advance || metric_code(charge) != event.name) return;
            if (charge.price.model != Model::standard && charge.price.model != Model::percentage) return;
            list.push_back(instant({*this, charge, filter_of(charge, event.properties), subscription, period}, event));
        });
        return sum_up(std::move(list));
    }

    Fees advance_fees(const Event& given, UsageSource& usage) const override {
        const auto time = given.timestamp.value();
        const auto subscription = subscription_at(*this, given.subscription, time);
        const auto period = billing_period(charges_interval, subscription, time);
        PlacedFees fees;
        ask_about_charges([&](const Charge& charge) {
            if (!charge.pay_in_advance || metric_code(charge) != given.name) return;
            const auto event = stored_if_taken(billable_metrics[charge.metric], given, time);
            if (!event) return;
            const Scope scope{*this, charge, billing_filter(charge, event->properties), subscription, period};
            add_advance_fees(scope, group_of(scope, *event), {up_to(time, time), event->sequence}, usage, fees);
        });
        return in_order(*this, std::move(fees));
    }

    Fees advance_fees(const UsageQuery& query, Timestamp now, UsageSource& usage) const override {
        PlacedFees fees;
        const auto add = [&](const Scope& scope, const Period& asked) {
            std::set<Group> groups;  // to a fee of one event, a missing and an empty value are the same
            for (const auto& row : measure_groups(scope, scope.query(), usage)) groups.insert(group_of(scope, row.group));
            for (const auto& group : groups) add_advance_fees(scope, group, {asked}, usage, fees);
        };
        for (const auto& asked : asked_about(*this, query, now)) {
            for (const auto& period : cycles_of(asked.second, [&](Timestamp at) { return billing_period(charges_interval, asked.first, at); })) {
                ask_about_charges([&](const Charge& charge) {
                    if (!charge.pay_in_advance) return;
                    const Scope whole{*this, charge, nullptr, asked.first, period};
                    for (const auto& filter : charge.filters) add(whole.within(filter), asked.second);
                    add(whole, asked.second);
                });
            }
        }
        return in_order(*this, std::move(fees));
    }

    Fee price(std::string_view name, const Decimal& units, std::int64_t events) const override {
        const auto* charge = find_by(charges, &Charge::code, name);
        if (!charge) not_found("charge", "charge_not_found");
        const Subscription nobody;
        const Scope scope{*this, *charge, nullptr, nobody, {}};
        Quantity quantity{.units = units, .events = events, .premium = premium};
        if (charge->price.model == Model::percentage) spread_evenly(scope, quantity);
        auto priced = apply(charge->price, quantity);
        auto fee = empty_fee(scope, {});
        fee.units = units;
        fee.events = events;
        clamp(priced, units, fee.units);
        set_period_amounts(scope, quantity, std::move(priced), fee);
        return fee;
    }
};

}  // namespace lago

// ---------------------------------------------------------------------------------------------
// 8.3 FlexPrice: dossier sections 5 to 9
// ---------------------------------------------------------------------------------------------

namespace flexprice {

// ---- words and numbers ----

using Step = FeeLine::Step;

// Any other has 2 decimals (types/currency.go). The code's case does not count.
constexpr CurrencyRow currencies[] = {{"jpy krw vnd clp", {0, 1}}, {"kwd", {3, 1000}}, {"clf", {4, 10000}}};

Currency currency_of(const std::string& code) { return currency_in(currencies, lowercase(code)); }

Decimal rounded(const Decimal& amount, Currency currency) { return amount.round(currency.decimals, Rounding::half_up); }

// shopspring/decimal's division: 16 decimals, half away from zero; 0 for a zero divisor.
Decimal divided(const Decimal& a, const Decimal& b) { return b.is_zero() ? Decimal() : Decimal::divide(a, b, 16, Rounding::half_up); }

Decimal total(const std::vector<Decimal>& numbers) {
    Decimal sum;
    for (const auto& number : numbers) sum += number;
    return sum;
}

// Window sizes (window_size.go:29).
constexpr std::pair<std::string_view, Bin> window_sizes[] = {
    {"MINUTE", Bin::minute}, {"15MIN", Bin::minutes_15}, {"30MIN", Bin::minutes_30}, {"HOUR", Bin::hour}, {"3HOUR", Bin::hours_3},
    {"6HOUR", Bin::hours_6}, {"12HOUR", Bin::hours_12},  {"DAY", Bin::day},          {"WEEK", Bin::week}, {"MONTH", Bin::month},
};

// The windows of commitments: weeks from Monday; months from the day of the anchor or the period's beginning, clamped
// (billing_commitment.go:50-101).
BinOptions commitment_windows(Bin bin, const Period& period, const std::optional<Timestamp>& anchor) {
    BinOptions windows{.bin = bin};
    if (windows.bin == Bin::month) windows.anchor = midnight(date_of(anchor.value_or(period.from)));
    return windows;
}

constexpr std::pair<std::string_view, Stride> billing_periods[] = {
    {"", every_month},        {"DAILY", every_day},         {"WEEKLY", every_week},
    {"MONTHLY", every_month}, {"QUARTERLY", every_quarter}, {"HALF_YEARLY", every_half_year},
    {"ANNUAL", every_year}};

// ---- prices ----

enum class Model { flat, package, tiered };
constexpr std::pair<std::string_view, Model> models[] = {{"FLAT_FEE", Model::flat}, {"PACKAGE", Model::package}, {"TIERED", Model::tiered}};

enum class TierMode { none, volume, slab };
constexpr std::pair<std::string_view, TierMode> tier_modes[] = {{"", TierMode::none}, {"VOLUME", TierMode::volume}, {"SLAB", TierMode::slab}};

struct Price {
    Model model = Model::flat;
    TierMode mode = TierMode::none;
    Decimal amount = {}, divide_by = 1;
    bool round_down = false;
    std::vector<Tier> tiers = {};
    Currency currency = {};
    std::string currency_code = {};
};

Decimal at_least(const Node& at, std::string_view field, const Decimal& least, std::optional<Decimal> fallback = {}) {
    const auto value = at.at_least(field, least);
    if (!value && !fallback) at.refuse(field, "is required");
    return value ? *value : *fallback;
}

Decimal whole_at_least(const Node& at, std::string_view field, const Decimal& least) {
    const auto value = at_least(at, field, least);
    if (value.round(0, Rounding::floor) != value) at.refuse(field, "must be a whole number");
    return value;
}

// Sorted by limit, the open tier last; no check that limits differ or that an open tier exists, since FlexPrice makes none (9.3).
std::vector<Tier> read_tiers(const Node& at) {
    std::vector<Tier> tiers;
    for (const auto& each : at.list("tiers")) {
        auto& tier = tiers.emplace_back();
        if (each.find("up_to")) tier.up_to = whole_at_least(each, "up_to", 0);
        tier.rate = at_least(each, "unit_amount", 0);
        tier.flat = at_least(each, "flat_amount", 0, 0);
    }
    stack(tiers);
    return tiers;
}

Price read_price(const Node& at) {
    Price price;
    price.model = at.choice("billing_model", models);
    price.mode = at.choice("tier_mode", tier_modes);
    price.currency_code = at.text("currency");
    price.currency = currency_of(price.currency_code);
    if (price.model != Model::tiered) price.amount = at_least(at, "amount", 0);
    if (price.model == Model::package) {
        const auto transform = at.object("transform_quantity");
        price.divide_by = whole_at_least(transform, "divide_by", 1);
        price.round_down = transform.text("round") == "down";
    }
    if (price.model == Model::tiered) {
        price.tiers = read_tiers(at);
        if (price.tiers.empty()) at.refuse("tiers", "is required");
    }
    return price;
}

// The first tier that reaches the quantity, its limit included; else the last.
const Tier& tier_of(const std::vector<Tier>& tiers, const Decimal& units) {
    const auto* reached = tier_reaching(tiers, units);
    return reached ? *reached : tiers.back();
}

// The tier walk alone, which prices a bucket of 0 at the first tier's flat amount (9.7). Slab units beyond the last limit are free.
Priced price_tiers(const Price& price, const Decimal& units) {
    if (price.tiers.empty() || price.mode == TierMode::none) return {};
    return price.mode == TierMode::slab ? graduated(price.tiers, units) : only(tier_line(tier_of(price.tiers, units), units));
}

FeeLine package_line(const Price& price, const Decimal& units) {
    const auto count = divided(units, price.divide_by).round(0, price.round_down ? Rounding::floor : Rounding::ceil);
    return {.step = Step::package, .units = units, .rate = price.amount, .per = price.divide_by, .amount = count * price.amount};
}

// CalculateCost: unrounded; no units cost nothing under any model.
Priced price_units(const Price& price, const Decimal& units) {
    if (units.is_zero()) return {};
    if (price.model == Model::tiered) return price_tiers(price, units);
    return only(price.model == Model::flat ? units_line(units, price.amount) : package_line(price, units));
}

// Buckets of a bucketed meter: each is priced alone, tiers and packages start anew.
Priced price_buckets(const Price& price, const std::vector<Decimal>& buckets) {
    Priced priced;
    for (const auto& units : buckets) priced.append(price.model == Model::tiered ? price_tiers(price, units) : price_units(price, units));
    return priced;
}

// CalculateCostWithBreakup (9.6).
json breakup(const Price& price, const Decimal& units) {
    const auto cost = price_units(price, units).amount;
    Decimal unit;
    std::int64_t tier = -1;
    if (price.model == Model::package) {
        unit = divided(price.amount, price.divide_by);
    } else if (price.model == Model::flat) {
        unit = units.is_zero() ? Decimal() : price.amount;
    } else if (!units.is_zero() && price.mode != TierMode::none && !price.tiers.empty()) {
        const auto& reached = tier_of(price.tiers, units);
        unit = reached.rate;
        tier = &reached - price.tiers.data();
    }
    return {{"final_cost", cost.to_string()},
            {"effective_unit_cost", divided(cost, units).to_string()},
            {"tier_unit_amount", unit.to_string()},
            {"selected_tier_index", tier}};
}

// A fixed price without a quantity is for its least (9.11).
Decimal fixed_quantity(const Decimal& quantity, const Decimal& least) { return quantity.is_zero() ? least : quantity; }

// --- entitlements and grants (9.12) ---

// After what an entitlement's limit begins anew; never, without bins.
constexpr std::pair<std::string_view, Bin> resets[] = {{"DAILY", Bin::day}, {"MONTHLY", Bin::month}, {"NEVER", Bin::none}};

// What is billed of a quantity: what exceeds the limit, each day's or month's where it is theirs.
struct Entitlement {
    bool enabled = false;
    std::optional<Decimal> limit = {};  // none: everything is free
    std::optional<Bin> reset = {};      // none: with each bill

    Decimal billable(const Decimal& units) const {
        if (!enabled) return units;
        return limit ? at_least_zero(units - *limit) : Decimal();
    }
    Decimal billable(const std::vector<Decimal>& stretches) const {
        Decimal sum;
        for (const auto& units : stretches) sum += billable(units);
        return sum;
    }
};

// Where the limit is begun anew as often as bills are written, or by a word not known, it is with each bill (billing_meter_usage.go).
Entitlement read_entitlement(const Node& at, std::string_view billing_period) {
    Entitlement entitlement{.enabled = at.flag("is_enabled")};
    const auto word = at.text("usage_reset_period");
    for (const auto& [name, bin] : resets) {
        if (word == name && word != billing_period) entitlement.reset = bin;
    }
    if (at.find("usage_limit")) entitlement.limit = at_least(at, "usage_limit", 0);
    return entitlement;
}

// Units, or the money for them, that cost nothing in a time of their own.
struct Grant {
    bool money = false;
    Decimal quota = {};
    std::optional<Period> period = {};  // the bill's when absent

    Decimal overage(const Decimal& used) const { return at_least_zero(used - quota); }
};

Grant read_grant(const Node& at) {
    static constexpr std::pair<std::string_view, bool> measures[] = {{"quantity", false}, {"amount", true}};
    Grant grant{at.choice("measure", measures), at_least(at, "quota", 0), {}};
    const auto from = at.time("start_date"), to = at.time("end_date");
    if (from || to) grant.period = {from.value_or(Period().from), to.value_or(Period().to)};
    if (grant.period && grant.period->from >= grant.period->to) at.refuse("end_date", "is not after start_date");
    return grant;
}

// --- commitments (9.13 to 9.16) ---

struct Commitment {
    Decimal amount = {};  // money, or what the committed quantity costs
    Decimal overage_factor = {};
    bool true_up = false;

    bool counts() const { return amount > 0 && overage_factor > 1; }  // that of a subscription (9.15)
};

struct Committed {
    Decimal charge, utilized, overage, true_up;

    Committed& operator+=(const Committed& other) {
        charge += other.charge;
        utilized += other.utilized;
        overage += other.overage;
        true_up += other.true_up;
        return *this;
    }
};

// What the parts of a commitment are called.
struct CommitmentFields {
    std::string_view type, amount, quantity, factor, true_up;
};
constexpr CommitmentFields of_price{"type", "amount", "quantity", "overage_factor", "true_up_enabled"},
    of_line_item{"commitment_type", "commitment_amount", "commitment_quantity", "commitment_overage_factor", "commitment_true_up_enabled"},
    of_time_bucket{"commitment_type", "commitment_value", "commitment_value", "overage_factor", "true_up_enabled"},
    of_subscription{"", "commitment_amount", "", "overage_factor", "enable_true_up"};

// A commitment's quantity is worth what the price asks for it. A missing factor makes overage free.
Commitment read_commitment(const Node& at, const CommitmentFields& fields, const Price& price = {}) {
    const bool by_quantity = at.text(fields.type, at.find(fields.amount) ? "amount" : "quantity") == "quantity";
    const auto field = by_quantity ? fields.quantity : fields.amount;
    Commitment commitment{at_least(at, field, 0, 0), at_least(at, fields.factor, 0, 0), at.flag(fields.true_up)};
    if (by_quantity) commitment.amount = at.made(field, [&] { return price_units(price, commitment.amount).amount; });
    return commitment;
}

// What earlier billing periods used of a longer commitment is gone, and its last period makes up for what is missing (9.16).
Committed commit(const Commitment& commitment, const Decimal& cost, const Decimal& used_before = {}, bool last_period = true) {
    const auto within = std::min(cost, at_least_zero(commitment.amount - used_before));
    const auto overage = (cost - within) * commitment.overage_factor;
    const auto missing = last_period && commitment.true_up ? at_least_zero(commitment.amount - used_before - cost) : Decimal();
    return {within + overage + missing, within, overage, missing};
}

// What is missing to a commitment, of rounded money (billing_rounding_test.go:273).
Decimal missing_to(const Decimal& commitment, const Decimal& used, Currency currency) {
    return at_least_zero(rounded(commitment - rounded(used, currency), currency));
}

// What one unit of a charge counts as where a commitment ends in it.
Decimal unit_price(const Price& price, const Decimal& cost, const Decimal& units) {
    return price.model == Model::flat ? price.amount : divided(cost, units);
}

// The part of a charge that a commitment covers, and the part beyond it before the overage factor.
struct Split {
    Decimal covered, covered_units, beyond, beyond_units;
};

// Takes a charge off what is left of the subscription's commitment: all of it, or the whole units that still fit, or nothing (9.15).
Split split(const Decimal& cost, const Decimal& units, const Decimal& unit, Decimal& left) {
    const auto before = std::exchange(left, at_least_zero(left - cost));
    if (cost <= before) return {cost, units, {}, {}};
    if (before <= 0 || unit.is_zero()) return {{}, {}, cost, units};
    const auto fitting = divided(before, unit).round(0, Rounding::floor);
    return {fitting * unit, fitting, (units - fitting) * unit, units - fitting};
}

// The lines that make a cost what a commitment charges for it.
void settle(Priced& priced, const Committed& committed) {
    const auto beyond = at_least_zero(priced.amount - committed.utilized);
    if (!committed.true_up.is_zero()) priced.add({.step = Step::minimum, .amount = committed.true_up});
    if (committed.charge == priced.amount) return;
    priced.add(
        {.step = Step::overage, .units = beyond, .rate = divided(committed.overage - beyond, beyond), .amount = committed.charge - priced.amount});
}

// Minutes of the day, UTC, from which until which a price and commitment of their own hold.
struct TimeBucket {
    std::string id;
    int from = 0, to = 0;
    Price price;
    Commitment commitment;
};

int read_minute(const Node& at, std::string_view field) {
    const auto text = at.required_text(field);
    if (text.size() != 5 || text[2] != ':') at.refuse(field, "must be a time of day like 09:30");
    const auto digit = [&](std::size_t i) { return text[i] >= '0' && text[i] <= '9' ? text[i] - '0' : 100; };
    const int minutes = digit(3) * 10 + digit(4), minute = (digit(0) * 10 + digit(1)) * 60 + minutes;
    if (minutes > 59 || minute > 24 * 60) at.refuse(field, "must be a time of day like 09:30");
    return minute;
}

// Its price may stand in it, or be one of the catalogue's.
TimeBucket read_time_bucket(const Node& at, const std::optional<Price>& listed = {}) {
    TimeBucket bucket{at.text("id"), read_minute(at, "start"), read_minute(at, "end"), {}, {}};
    if (bucket.from >= bucket.to) at.refuse("end", "is not after start");
    bucket.price = at.find("price") || !listed ? read_price(at.object("price")) : *listed;
    bucket.commitment = read_commitment(at, of_time_bucket, bucket.price);
    return bucket;
}

// What came together in one bucket, day or month, or in all of a period: a sum for an average. A window of a commitment is one; without a known start
// no time bucket holds it.
struct Part {
    std::optional<Timestamp> start = {};
    Group group = {};
    Decimal units = {};
    std::int64_t events = 0;

    int minute() const { return static_cast<int>((start->micros() - midnight(date_of(*start)).micros()) / micros_per_minute); }
};

struct WindowedPrice {
    Price price;
    std::optional<Commitment> commitment;
    std::vector<TimeBucket> buckets;

    const TimeBucket* bucket_of(const Part& window) const {
        for (const auto& bucket : buckets) {
            if (window.start && bucket.from <= window.minute() && window.minute() < bucket.to) return &bucket;
        }
        return nullptr;
    }

    // What holds in the window: its time bucket's, else the item's own. A commitment of the item's that is worth nothing is none
    // (billing_commitment.go).
    std::pair<const Price*, const Commitment*> at(const Part& window) const {
        if (const auto* bucket = bucket_of(window)) return {&bucket->price, &bucket->commitment};
        return {&price, commitment && !commitment->amount.is_zero() ? &*commitment : nullptr};
    }

    // The rule of 9.13 for one window; a window out of all commitments pays its plain cost.
    Committed charge(const Part& window) const {
        const auto [rate, terms] = at(window);
        const auto cost = price_units(*rate, window.units).amount;
        return terms ? commit(*terms, cost) : Committed{cost, cost, {}, {}};
    }

    // Whether a window without events has something to make up for.
    bool fills(const Part& window) const {
        const auto* terms = at(window).second;
        return terms && terms->true_up;
    }

    // The windows in order, and between them the empty ones of the grid that are charged all the same.
    std::vector<Part> filled(std::vector<Part> windows, const BinGrid& grid) const {
        std::set<Timestamp> known;
        for (const auto& window : windows) known.insert(window.start.value_or(Timestamp()));
        for (std::int64_t i = 0; i < grid.count(); ++i) {
            const Part empty{.start = grid.start(i)};
            if (!known.contains(*empty.start) && fills(empty)) windows.push_back(empty);
        }
        std::ranges::stable_sort(windows, {}, &Part::start);
        return windows;
    }
};

// Every window under its commitment.
Priced price_windows(const WindowedPrice& terms, const std::vector<Part>& windows, Committed& committed) {
    Priced sum;
    for (const auto& window : windows) {
        auto priced = price_units(*terms.at(window).first, window.units);
        const auto charge = terms.charge(window);
        settle(priced, charge);
        committed += charge;
        sum.append(std::move(priced));
    }
    return sum;
}

// --- discounts (9.17) ---

// A percentage, or money.
struct Discount {
    bool money = false;
    Decimal value = {};

    // Rounded to the currency, never more than the price.
    Decimal off(const Decimal& price, Currency currency) const {
        return std::min(rounded(money ? value : divided(price * value, 100), currency), price);
    }
};

Discount read_discount(const Node& at) {
    static constexpr std::pair<std::string_view, bool> types[] = {{"percentage", false}, {"fixed", true}};
    const bool money = at.choice("type", types);
    return {money, at_least(at, money ? "amount_off" : "percentage_off", 0)};
}

// One after the other, each on what the one before left.
Decimal compound_discount(const Decimal& price, const std::vector<Discount>& discounts, Currency currency) {
    auto left = price;
    for (const auto& discount : discounts) {
        if (left > 0) left -= discount.off(left, currency);
    }
    return price - left;
}

// ---- the catalogue ----

// --- values and filters (4.8, 6.2, 6.3) ---

// A number as Go's %v writes it: of a float64, from a million up and below a ten-thousandth with an exponent (6.3).
std::string go_text(const Decimal& number) {
    std::array<char, 32> text{};
    const auto written = [&](std::chars_format format) {
        return std::string(text.data(), std::to_chars(text.data(), text.data() + text.size(), number.to_double(), format).ptr);
    };
    const std::string scientific = written(std::chars_format::scientific);
    const int exponent = std::stoi(scientific.substr(scientific.find('e') + 1));
    return exponent < -4 || exponent >= 6 ? scientific : written(std::chars_format::fixed);
}

// Property filters of a question read a missing property as "" (4.8); those of a meter do not.
constexpr Coercion property_filter{.missing = {empty_any, empty_any},
                                   .boolean = {text_any, text_any},
                                   .number = {text_any, text_any},
                                   .text = {text_any, text_any},
                                   .structure = {text_any, text_any}};
constexpr Coercion meter_filter = [] {
    auto filter = property_filter;
    filter.missing = {never_any, never_any};
    filter.stored_number = go_text;
    return filter;
}();

// Of the table meter_usage: dossier 6.2, 6.8; a meter's own windows 5.4, 5.5.
constexpr Rules metered_rules{.name = "flexprice",
                              .filter = {.properties = &meter_filter},
                              .asked_filter = FilterRules{.properties = &property_filter},
                              .numbers = {.text = NumberRules::Text::number, .zero = true, .missing = {}, .not_negative = true, .decimals = 15},
                              .groups = Blank::text,
                              .values = Blank::missing,
                              .values_in_parts = Blank::text,
                              .not_negative = true,
                              .multiplied_each = true,
                              .whole_seconds = true,
                              .weighting = Weighting::none,
                              .carrying = Carrying::added,
                              .week_start = std::chrono::Sunday,
                              .month_end = MonthEnd::overflow,
                              .dialect = &cel::expressions};

// Of the table events: dossier 5.3 to 5.12.
constexpr Rules event_rules{.name = "flexprice_events",
                            .filter = {.properties = &property_filter},
                            .numbers = {.text = NumberRules::Text::number, .zero = true, .missing = {}},
                            .groups = Blank::text,
                            .values = Blank::text,
                            .not_negative = true,
                            .whole_seconds = true,
                            .weighting = Weighting::remaining,
                            .carrying = Carrying::added,
                            .week_start = std::chrono::Sunday,
                            .month_end = MonthEnd::overflow};

// --- meters ---

constexpr std::pair<std::string_view, Aggregation> aggregations[] = {
    {"COUNT", Aggregation::count},
    {"SUM", Aggregation::sum},
    {"AVG", Aggregation::average},
    {"MAX", Aggregation::max},
    {"LATEST", Aggregation::latest},
    {"WEIGHTED_SUM", Aggregation::weighted_sum},
    {"COUNT_UNIQUE", Aggregation::unique_count},
    {"SUM_WITH_MULTIPLIER", Aggregation::sum},
};

constexpr std::string_view code_prefix = "flexprice:";  // before the id of a meter

std::string_view meter_id(const Metric& metric) { return std::string_view(metric.code).substr(code_prefix.size()); }

// Buckets: of MAX and SUM only, with groups of MAX only (5.13).
void read_buckets(const Node& aggregation, Metric& metric) {
    if (aggregation.text("bucket_size").empty()) {
        if (!aggregation.text("group_by").empty()) aggregation.refuse("group_by", "is for MAX with buckets only");
        return;
    }
    const auto type = aggregation.text("type");
    if (type != "MAX" && type != "SUM") aggregation.refuse("bucket_size", "is for MAX and SUM only");
    metric.bucket = aggregation.choice("bucket_size", window_sizes);
    const auto group = aggregation.text("group_by");
    if (group.empty()) return;
    if (type != "MAX") aggregation.refuse("group_by", "is for MAX only");
    metric.bucket_group = property_field(group);
}

// Of some types; it stands for the field, which is not read beside it (5.13). Its results stand under a name that no expression can read.
void read_expression(const Node& aggregation, Metric& metric) {
    metric.expression = cel::trimmed(aggregation.text("expression"));
    if (metric.expression.empty()) return;
    const auto type = aggregation.text("type");
    if (type != "SUM" && type != "AVG" && type != "MAX" && type != "LATEST")
        throw Error(ErrorCode::bad_value, aggregation.path("expression"), "is for SUM, AVG, MAX and LATEST only");
    expression_of(metric, cel::expressions, aggregation.path("expression"));
    metric.property = property_field("=");
    metric.multiplier = aggregation.decimal("multiplier");
}

Metric read_meter(const Node& at) {
    static constexpr std::pair<std::string_view, bool> carried[] = {{"", false}, {"BILLING_PERIOD", false}, {"NEVER", true}};
    const auto aggregation = at.object("aggregation");
    Metric metric{.code = std::string(code_prefix) + at.required_text("id"), .event = at.required_text("event_name"), .rules = "flexprice"};
    metric.aggregation = aggregation.choice("type", aggregations);
    read_expression(aggregation, metric);
    if (metric.aggregation != Aggregation::count && metric.expression.empty()) metric.property = property_field(aggregation.required_text("field"));
    if (aggregation.text("type") == "SUM_WITH_MULTIPLIER") metric.multiplier = aggregation.above_zero("multiplier");
    read_buckets(aggregation, metric);
    metric.recurring = at.choice("reset_usage", carried);
    for (const auto& filter : at.list("filters")) {
        const auto values = filter.texts("values");
        if (values.empty()) filter.refuse("values", "must not be empty");
        metric.filter.parts.push_back(Filter::where(property_field(filter.required_text("key")), Operator::in, json(values)));
    }
    return metric;
}

// --- subscriptions ---

struct Coupon {
    std::string id = {};
    Discount discount = {};
    Period active = {};      // both ends are in it
    Timestamp billed_until;  // bills that begin later are too many for it
    bool shown = true;       // in analytics (6.7)

    bool meets(const Period& period) const { return active.from <= period.to && period.from <= active.to; }
    bool reduces(const Period& bill) const { return meets(bill) && bill.from < billed_until; }
};

// A price that does not depend on usage.
struct Fixed {
    Decimal quantity = 1;
    std::optional<Stride> cycle = {};  // none: it is charged once
    bool advance = false;
};

// A price on the terms of one subscription.
struct Item {
    std::string id = {}, charge = {};
    Metric metric = {};
    std::optional<Fixed> fixed = {};
    WindowedPrice terms = {};
    bool windowed = false;  // the commitment is for each bucket
    Entitlement entitlement = {};
    std::vector<Grant> grants = {};
    Period active = {};
    std::vector<Coupon> coupons = {};

    const Price& price() const { return terms.price; }
    bool bucketed() const { return metric.bucket != Bin::none; }
    bool limited_apart() const { return entitlement.enabled && entitlement.reset && !bucketed(); }  // by days, months or all time
    bool commits() const { return terms.commitment || !terms.buckets.empty(); }
};

struct Subscription {
    std::string id = {}, customer = {};
    Period active = {};
    Stride stride = every_month;
    std::optional<Timestamp> anchor = {};  // without one bills are for calendar months, weeks from the first day of 1970, ...
    std::vector<Item> items = {};
    std::optional<Commitment> commitment = {};  // over all items (9.15)
    std::optional<Stride> commitment_stride = {};
    bool starts = true;  // its events have a price from the beginning (7.3): not of one that is paused or cancelled
    std::vector<Coupon> coupons = {};

    Cycle cycle(Stride each) const { return utc_cycle(each, anchor.value_or(Timestamp())); }
    Period period(Timestamp now) const { return overlap(cycle(stride).around(now), active); }
};

std::int64_t read_count(const Node& at, std::string_view field) { return at.whole(field, 1, 1000).value_or(1); }

// Nothing of what is charged once.
std::optional<Stride> read_cycle(const Node& at) {
    if (at.text("billing_period") == "ONETIME") return {};
    return repeated(at.choice("billing_period", billing_periods), read_count(at, "billing_period_count"));
}

Period read_period(const Node& at, std::string_view from, std::string_view to) {
    Period period{at.time(from).value_or(Period().from), at.time(to).value_or(Period().to)};
    if (period.to < period.from) at.refuse(to, "is before " + std::string(from));
    return period;
}

// How many bills a coupon comes off; nothing for all that are written in its time.
std::optional<std::int64_t> read_times(const Node& at) {
    const auto cadence = at.text("cadence", "forever");
    if (cadence == "once") return 1;
    if (cadence != "repeated" && cadence != "forever") at.refuse("cadence", "is not known: " + cadence);
    if (cadence == "forever" || !at.find("duration_in_periods")) return {};
    return read_count(at, "duration_in_periods");
}

// Those of the subscription, or of one of its line items, in the order in which they are taken off (coupon_selection.go).
std::vector<Coupon> read_coupons(const Node& at, const Subscription& subscription, const std::string& line_item) {
    const auto cycle = subscription.cycle(subscription.stride);
    std::vector<Coupon> coupons;
    for (const auto& each : at.list("coupon_associations")) {
        if (each.text("subscription_line_item_id") != line_item) continue;
        const auto from = each.object("coupon");
        Coupon coupon{each.text("id"), read_discount(from), read_period(each, "start_date", "end_date"), Period().to, true};
        coupon.shown = !coupon.discount.money && from.text("cadence") != "once";
        const auto first = std::max(coupon.active.from, subscription.active.from);
        if (const auto times = read_times(from)) coupon.billed_until = cycle.boundary(cycle.index(first) + *times);
        coupons.push_back(std::move(coupon));
    }
    std::ranges::sort(coupons, [](const Coupon& a, const Coupon& b) { return std::tie(a.active.from, a.id) < std::tie(b.active.from, b.id); });
    return coupons;
}

// Grants go with plain prices (9.12), windowed commitments with buckets (9.14).
void check_item(const Node& at, const Item& item) {
    const auto kind = item.metric.aggregation;
    if (item.windowed && !item.bucketed()) at.refuse("commitment_windowed", "needs a meter with buckets");
    if (item.grants.empty()) return;
    if (item.price().model == Model::tiered) at.refuse("grants", "are not for tiered prices");
    if (item.commits()) at.refuse("grants", "do not go with a commitment");
    if (kind == Aggregation::max || kind == Aggregation::average || kind == Aggregation::latest)
        at.refuse("grants", "are not for MAX, AVG and LATEST meters");
}

void read_usage_terms(const Node& at, const std::vector<Metric>& meters, Item& item) {
    item.metric = at.one_of(meters, meter_id, "meter_id", "meter");
    if (at.find("entitlement")) item.entitlement = read_entitlement(at.object("entitlement"), at.text("billing_period", "MONTHLY"));
    for (const auto& grant : at.list("grants")) item.grants.push_back(read_grant(grant));
    item.windowed = at.flag("commitment_windowed");
    if (at.find("commitment")) {
        item.terms.commitment = read_commitment(at.object("commitment"), of_price, item.price());
        item.windowed = at.object("commitment").flag("windowed", item.windowed);
    }
    for (const auto& bucket : at.list("commitment_time_buckets")) item.terms.buckets.push_back(read_time_bucket(bucket));
    check_item(at, item);
}

Item read_item(const Node& at, const std::vector<Metric>& meters) {
    static constexpr std::pair<std::string_view, bool> types[] = {{"USAGE", false}, {"FIXED", true}},
                                                       cadences[] = {{"ARREAR", false}, {"ADVANCE", true}};
    const bool fixed = at.choice("type", types, "USAGE");
    Item item{.id = at.text("id", at.text("meter_id")), .terms = {read_price(at), {}, {}}};
    item.charge = at.text("display_name", item.id);
    if (fixed)
        item.fixed = Fixed{at_least(at, "min_quantity", 0, 1), read_cycle(at), at.choice("invoice_cadence", cadences, "ARREAR")};
    else
        read_usage_terms(at, meters, item);
    return item;
}

const Item& listed(const Node& at, const std::vector<Item>& items) { return at.one_of(items, &Item::id, "price_id", "price"); }

// A price on the terms of a line item.
Item read_line_item(const Node& at, const std::vector<Item>& items) {
    auto item = listed(at, items);
    item.active = read_period(at, "start_date", "end_date");
    if (item.fixed) {
        item.fixed->quantity = fixed_quantity(at_least(at, "quantity", 0, 0), item.fixed->quantity);
        return item;
    }
    if (at_least(at, "commitment_amount", 0, 0) > 0 || at_least(at, "commitment_quantity", 0, 0) > 0)
        item.terms.commitment = read_commitment(at, of_line_item, item.price());
    item.windowed = at.flag("commitment_windowed", item.windowed);
    for (const auto& bucket : at.list("commitment_time_buckets"))
        item.terms.buckets.push_back(bucket.find("price") ? read_time_bucket(bucket) : read_time_bucket(bucket, listed(bucket, items).price()));
    check_item(at, item);
    return item;
}

// Those that are billed at all; a cancelled one until it was cancelled.
std::optional<Subscription> read_subscription(const Node& at, const std::vector<Item>& items) {
    const auto status = at.text("subscription_status", "active");
    const bool starts = status == "active" || status == "trialing";
    if (!starts && status != "paused" && status != "cancelled") return {};
    Subscription subscription{.id = at.required_text("id"), .customer = {}, .active = read_period(at, "start_date", "end_date"), .starts = starts};
    subscription.customer = at.find("customer") ? at.object("customer").required_text("external_id") : at.required_text("external_customer_id");
    if (status == "cancelled") subscription.active.to = std::min(subscription.active.to, at.time("cancelled_at").value_or(subscription.active.to));
    subscription.stride = repeated(at.choice("billing_period", billing_periods), read_count(at, "billing_period_count"));
    subscription.anchor = at.time("billing_anchor");
    if (!subscription.anchor) subscription.anchor = at.time("start_date");
    if (!at.find("line_items")) subscription.items = items;
    for (const auto& each : at.list("line_items")) {
        subscription.items.push_back(read_line_item(each, items));
        if (each.find("id")) subscription.items.back().coupons = read_coupons(at, subscription, each.text("id"));
    }
    for (auto& item : subscription.items) item.active.from = std::max(item.active.from, subscription.active.from);
    subscription.coupons = read_coupons(at, subscription, "");
    const auto commitment = read_commitment(at, of_subscription);
    if (commitment.counts()) subscription.commitment = commitment;
    const auto duration = at.text("commitment_duration");
    if (!duration.empty() && duration != at.text("billing_period"))
        subscription.commitment_stride = at.choice("commitment_duration", billing_periods);
    return subscription;
}

// --- the whole ---

// What a catalogue says, and the subscriptions a question is about.
struct Catalogue : Book::Impl {
    std::vector<Item> items;  // of the prices as they stand in the catalogue
    std::vector<Subscription> subscriptions;
    bool lists_subscriptions = false;

    // Those of the customer, or the one; without a list one that never began and never ends.
    std::vector<Subscription> chosen(const std::string& subscription, const std::string& customer) const {
        std::vector<Subscription> list;
        for (const auto& each : subscriptions) {
            const bool named = subscription.empty() || each.id == subscription;
            if (named && (customer.empty() || each.customer == customer) && !(subscription.empty() && customer.empty())) list.push_back(each);
        }
        if (!lists_subscriptions && !customer.empty()) list.push_back({.id = subscription, .customer = customer, .items = items});
        return list;
    }
};

// A price in a unit of its own as it is created, its amounts in money; one that FlexPrice shows has them already (9.10).
json in_money(const Node& at, const std::vector<Node>& units) {
    auto price = at.value();
    if (at.text("price_unit_type") != "CUSTOM" || at.find("amount") || at.find("tiers")) return price;
    const auto config = at.object("price_unit_config");
    const auto& unit = config.one_of(
        units, [](const Node& each) { return each.text("code"); }, "price_unit", "price unit");
    const auto rate = unit.above_zero("conversion_rate");
    const auto convert = [&](const Node& from, json& into, const char* field) {
        if (const auto value = from.decimal(field)) into[field] = (*value * rate).to_string();
    };
    convert(config, price, "amount");
    for (const auto& each : config.list("price_unit_tiers")) {
        auto& tier = price["tiers"].emplace_back(each.value());
        for (const char* field : {"unit_amount", "flat_amount"}) convert(each, tier, field);
    }
    return price;
}

void read_prices(const Node& root, Catalogue& book) {
    const auto units = root.list("price_units");
    for (const auto& at : root.list("prices")) {
        const auto in_currency = in_money(at, units);
        const auto& price = book.items.emplace_back(read_item(Node(in_currency, at.path()), book.metrics)).price();
        if (book.currency_code.empty()) book.currency_code = price.currency_code, book.currency = price.currency;
        if (price.currency_code != book.currency_code) at.refuse("currency", "differs from that of the first price");
    }
    if (book.items.empty()) refuse("prices", "must not be empty");
}

void read(const Node& root, Catalogue& book) {
    book.code = root.text("id", root.text("code", "flexprice"));
    for (const auto& meter : root.list("meters")) book.metrics.push_back(read_meter(meter));
    read_prices(root, book);
    book.lists_subscriptions = root.find("subscriptions").has_value();
    for (const auto& each : root.list("subscriptions")) {
        if (auto subscription = read_subscription(each, book.items)) book.subscriptions.push_back(std::move(*subscription));
    }
}

// ---- the account ----

// Events of a customer are used by all subscriptions it has; the events name none (dossier 6.5).
AggregateQuery query_of(const Catalogue& book, const Subscription& subscription, const Item& item, const Period& period) {
    AggregateQuery query;
    query.customer = subscription.customer;
    if (!book.lists_subscriptions) query.subscription = subscription.id;
    query.period = overlap(period, item.active);
    query.billing_anchor = subscription.anchor;
    return query;
}

// ---- measuring ----

// A meter over its period alone, to be measured part by part.
Metric part_metric(Metric metric) {
    metric.recurring = false;
    metric.bucket = Bin::none;
    metric.bucket_group.clear();
    if (metric.aggregation == Aggregation::average) metric.aggregation = Aggregation::sum;
    return metric;
}

// What a question about a meter came to, part by part.
struct Lot {
    AggregateQuery query = {};  // whose, and when
    Bin bin = Bin::none;
    std::vector<Part> parts = {};
};

AggregateQuery question_of(const Metric& metric, const Lot& lot) {
    auto query = lot.query;
    query.bin = lot.bin;
    query.week_start = std::chrono::Sunday;
    if (lot.bin == metric.bucket && !metric.bucket_group.empty()) query.group_by.push_back(metric.bucket_group);
    return query;
}

Lot lot_of(const Metric& metric, const AggregateQuery& query, Bin bin, UsageSource& usage) {
    Lot lot{query, bin};
    for (const auto& row : usage.measure(part_metric(metric), question_of(metric, lot)))
        lot.parts.push_back({row.bin, row.group, row.value, row.events});
    return lot;
}

std::vector<Decimal> values_of(const Metric& metric, const Lot& lot) {
    const bool shares = metric.aggregation == Aggregation::average;
    std::vector<Decimal> values;
    for (const auto& part : lot.parts) values.push_back(shares ? exact_share(part.units, std::max<std::int64_t>(part.events, 1)) : part.units);
    return values;
}

Decimal units_of(const Item& item, const Lot& lot) { return total(values_of(item.metric, lot)); }

std::int64_t events_of(const Lot& lot) {
    std::int64_t events = 0;
    for (const auto& part : lot.parts) events += part.events;
    return events;
}

// Everything that the bill of an item depends on.
struct Use {
    Lot whole;               // by buckets, if the meter has them
    std::vector<Lot> apart;  // what was used in the time of each grant; by days or months of an entitlement, or since the subscription began
    Decimal before;          // since the subscription began, up to the period, of an entitlement that never begins anew
};

Use measure(const Item& item, const Subscription& subscription, const AggregateQuery& query, UsageSource& usage) {
    Use use{lot_of(item.metric, query, item.metric.bucket, usage), {}, {}};
    auto asked = query;
    for (const auto& grant : item.grants) {
        asked.period = grant.period.value_or(query.period);
        use.apart.push_back(lot_of(item.metric, asked, Bin::none, usage));
    }
    if (!item.limited_apart()) return use;
    asked.period = query.period;
    if (*item.entitlement.reset == Bin::none) asked.period.from = subscription.active.from;
    use.apart.push_back(lot_of(item.metric, asked, *item.entitlement.reset, usage));
    asked.period.to = query.period.from;
    if (asked.period.from < asked.period.to) use.before = units_of(item, lot_of(item.metric, asked, Bin::none, usage));
    return use;
}

Decimal billable(const Item& item, const Use& use) {
    if (!item.limited_apart()) return item.entitlement.billable(units_of(item, use.whole));
    auto values = values_of(item.metric, use.apart.back());
    if (!use.before.is_zero()) values.front() -= use.before;
    return item.entitlement.billable(values);
}

// --- one event more ---

// The property that a metric's or filter's field names.
Scalar property_at(const Event& event, std::string_view field, std::string& keep) {
    return scalar_at(event.properties, field.substr(property_field("").size()), keep);
}

std::string text_at(const Event& event, std::string_view field) {
    std::string keep;
    return scalar_text(property_at(event, field, keep));
}

// What the metric's expression comes to for the event; nothing when metering skips it (6.2).
std::optional<Decimal> expressed(const Metric& metric, const Event& event) {
    try {
        return Decimal(evaluate(expression_of(metric, cel::expressions), event, Timestamp()));
    } catch (const Error& error) {
        if (!error.field().empty()) throw;
        return {};
    }
}

bool measures(const Metric& metric, const Event& event) {
    if (!metric.expression.empty() && !expressed(metric, event)) return false;
    return event.name == metric.event && std::ranges::all_of(metric.filter.parts, [&](const Filter& clause) {
               std::string keep;
               return meets(meter_filter, make_clause(clause), property_at(event, clause.field, keep));
           });
}

// What metering notes of the event (6.2).
Decimal quantity_of(const Metric& metric, const Event& event) {
    if (metric.aggregation == Aggregation::count) return 1;
    if (metric.aggregation == Aggregation::unique_count) return text_at(event, metric.property).empty() ? 0 : 1;
    std::string keep;
    const auto number = metric.expression.empty() ? scalar_number(property_at(event, metric.property, keep)) : expressed(metric, event);
    return at_least_zero((number.value_or(Decimal()) * metric.multiplier.value_or(Decimal(1))).round(15, Rounding::down));
}

// Of a unique count: nothing when the value is there already.
Decimal step_of(const Metric& metric, const Event& event, AggregateQuery query, UsageSource& usage) {
    const auto quantity = quantity_of(metric, event);
    if (metric.aggregation != Aggregation::unique_count || quantity.is_zero()) return quantity;
    query.filter = Filter::all({query.filter, Filter::equals(metric.property, text_at(event, metric.property))});
    return usage.measure(part_metric(metric), query).front().value > 0 ? Decimal() : quantity;
}

// Adds the event to the part it falls into, now.
void add_event(const Metric& metric, const Event& event, Timestamp now, UsageSource& usage, Lot& lot) {
    auto query = question_of(metric, lot);
    const bool grouped = !query.group_by.empty();
    const Group group = grouped ? Group{text_at(event, metric.bucket_group)} : Group();
    std::optional<Timestamp> start;
    if (lot.bin != Bin::none) {
        const auto stretch = Bins(bins_of(query, metered_rules)).around(now);
        start = stretch.from;
        query.period = overlap(query.period, stretch);
    }
    query.bin = Bin::none;
    query.group_by.clear();
    const auto found = std::ranges::find_if(lot.parts, [&](const Part& part) { return part.start == start && part.group == group; });
    Part& part = found == lot.parts.end() ? lot.parts.emplace_back(Part{start, group, {}, 0}) : *found;
    const auto step = step_of(metric, event, query, usage);
    ++part.events;
    if (metric.aggregation == Aggregation::latest)
        part.units = step;
    else if (metric.aggregation == Aggregation::max)
        part.units = std::max(part.units, step);
    else
        part.units += step;
}

void add_event(const Item& item, const Event& event, Timestamp now, UsageSource& usage, Use& use) {
    add_event(item.metric, event, now, usage, use.whole);
    for (auto& lot : use.apart) {
        if (lot.query.period.contains(now)) add_event(item.metric, event, now, usage, lot);
    }
}

// ---- fees ----

// What grants leave: of units, or money in place of them.
Priced price_grants(const Item& item, const Use& use) {
    Decimal units, money;
    for (std::size_t i = 0; i < item.grants.size(); ++i) {
        const auto used = units_of(item, use.apart.at(i));
        if (item.grants[i].money) money += item.grants[i].overage(price_units(item.price(), used).amount);
        if (!item.grants[i].money) units += item.grants[i].overage(used);
    }
    auto priced = price_units(item.price(), units);
    if (!money.is_zero()) priced.add({.step = Step::overage, .units = money, .rate = 1, .amount = money});
    return priced;
}

// Before commitments. What is left of buckets by an entitlement is priced as one quantity (billing_meter_usage.go).
Priced price_use(const Item& item, const Use& use) {
    if (!item.grants.empty()) return price_grants(item, use);
    const auto values = values_of(item.metric, use.whole);
    const auto units = total(values), left = billable(item, use);
    if (left == units && item.bucketed()) return price_buckets(item.price(), values);
    return after_free(units - left, price_units(item.price(), left));
}

// The windows up to now that a commitment is for (9.14).
std::vector<Part> windows_of(const Item& item, const Lot& lot, Timestamp now) {
    const Period elapsed{lot.query.period.from, std::min(lot.query.period.to, now)};
    if (elapsed.from >= elapsed.to || elapsed.from == Period().from) return lot.parts;
    auto options = commitment_windows(item.metric.bucket, elapsed, lot.query.billing_anchor);
    options.time_zone = lot.query.time_zone;
    const BinGrid grid(elapsed, options);
    if (grid.count() > static_cast<std::int64_t>(limits::aggregate_rows))
        throw Error(ErrorCode::too_large, "period", "has more than " + std::to_string(limits::aggregate_rows) + " windows of a commitment");
    return item.terms.filled(lot.parts, grid);
}

Priced commit_use(const Item& item, const Use& use, Priced priced, Timestamp now, Committed& committed) {
    if (!item.commits()) return priced;
    if (item.windowed) return price_windows(item.terms, windows_of(item, use.whole, now), committed);
    if (!item.terms.commitment) return priced;
    committed = commit(*item.terms.commitment, priced.amount);
    settle(priced, committed);
    return priced;
}

Fee fee_of(const Catalogue& book, const Item& item, const Decimal& units, Priced priced) {
    auto fee = book.priced_fee(units, std::move(priced));
    fee.charge = item.charge;
    fee.metric = item.metric.code;
    return fee;
}

Fee fee_for(const Subscription& subscription, const Period& period, std::int64_t events, Fee fee) {
    fee.customer = subscription.customer;
    fee.subscription = subscription.id;
    fee.period = period;
    fee.events = events;
    return fee;
}

json commitment_json(const Item& item, const Committed& committed) {
    if (!item.commits()) return nullptr;
    const auto of_item = item.terms.commitment.value_or(Commitment());
    return {{"commitment_info",
             {{"amount", of_item.amount.to_string()},
              {"overage_factor", of_item.overage_factor.to_string()},
              {"true_up_enabled", of_item.true_up},
              {"is_windowed", item.windowed},
              {"computed_commitment_utilized_amount", committed.utilized.to_string()},
              {"computed_overage_amount", committed.overage.to_string()},
              {"computed_true_up_amount", committed.true_up.to_string()}}}};
}

// --- bills ---

// An item's part of a bill before the commitments.
struct Charge {
    const Item* item;
    Use use;
    Priced priced;
};

FeeLine overage_line(const Decimal& money, const Decimal& factor) {
    return {.step = Step::overage, .units = money, .rate = factor, .amount = money * factor};
}

// What a subscription owes for a time, mostly a billing period.
class Bill {
public:
    Bill(const Catalogue& book, const Subscription& subscription, const Period& period, Timestamp now, UsageSource& usage)
        : book_(book), subscription_(subscription), period_(period), now_(now), usage_(usage) {
        add_usage();
        for (const auto& item : subscription.items) {
            if (item.fixed) add_fixed(item);
        }
        take_coupons();
    }

    void move_to(std::vector<Fee>& fees) {
        for (auto& line : lines_) fees.push_back(std::move(line.fee));
    }

private:
    struct Line {
        const Item* item;  // none: it is for the whole bill
        Fee fee;
    };

    void round(Priced& priced) const { round_to(priced, rounded(priced.amount, book_.currency)); }

    Fee& add(const Item* item, const Period& period, std::int64_t events, Fee fee) {
        return lines_.emplace_back(Line{item, fee_for(subscription_, period, events, std::move(fee))}).fee;
    }

    void add_extra(const char* charge, FeeLine line) { add(nullptr, period_, 0, fee_of(book_, {.charge = charge}, 1, only(std::move(line)))); }

    // Rounded to the currency before its commitment, and after (9.9).
    void add_charge(const Charge& charge, const Decimal& units, Priced priced, bool commits) {
        const auto& [item, use, plain] = charge;
        Committed committed;
        round(priced);
        if (commits) priced = commit_use(*item, use, std::move(priced), now_, committed);
        round(priced);
        auto& fee = add(item, use.whole.query.period, events_of(use.whole), fee_of(book_, *item, units, std::move(priced)));
        fee.vendor = commitment_json(*item, committed);
    }
    void add_charge(const Charge& charge) { add_charge(charge, units_of(*charge.item, charge.use.whole), charge.priced, true); }

    std::vector<Charge> charges(const Period& period) const {
        std::vector<Charge> list;
        for (const auto& item : subscription_.items) {
            const auto query = query_of(book_, subscription_, item, period);
            if (item.fixed || query.period.from >= query.period.to) continue;
            auto use = measure(item, subscription_, query, usage_);
            auto priced = price_use(item, use);
            round(priced);
            list.push_back({&item, std::move(use), std::move(priced)});
        }
        return list;
    }

    void add_usage() {
        const auto list = charges(period_);
        if (!subscription_.commitment) {
            for (const auto& charge : list) add_charge(charge);
            return;
        }
        const auto stride = subscription_.commitment_stride.value_or(subscription_.stride);
        const auto term = overlap(subscription_.cycle(stride).around(period_.from), subscription_.active);
        if (subscription_.commitment_stride && term.from < period_.from)
            add_cumulative(list, term);
        else
            add_committed(list);
    }

    // The commitment of a subscription for each billing period (9.15).
    void add_committed(const std::vector<Charge>& list) {
        const auto& commitment = *subscription_.commitment;
        auto left = commitment.amount;
        bool overage = false;
        for (const auto& charge : list) {
            const auto cost = charge.priced.amount, units = billable(*charge.item, charge.use);
            const auto unit = unit_price(charge.item->price(), cost, units);
            const auto parts = split(cost, units, unit, left);
            overage = overage || !parts.beyond.is_zero();
            if (parts.beyond.is_zero())
                add_charge(charge);
            else
                add_split(charge, unit, parts);
        }
        const auto missing = missing_to(commitment.amount, commitment.amount - left, book_.currency);
        if (commitment.true_up && !overage && !missing.is_zero()) add_extra("True Up", {.step = Step::minimum, .amount = missing});
    }

    // The item's own commitment is for what is covered.
    void add_split(const Charge& charge, const Decimal& unit, const Split& parts) {
        if (!parts.covered_units.is_zero()) add_charge(charge, parts.covered_units, only(units_line(parts.covered_units, unit)), true);
        add_charge(charge, parts.beyond_units, only(overage_line(parts.beyond, subscription_.commitment->overage_factor)), false);
    }

    // What the items came to from one moment to another, billing period by billing period.
    Decimal spent(const Period& before) const {
        Decimal sum;
        for (const auto& cycle : cycles_of(before, [&](Timestamp at) { return subscription_.period(at); })) {
            for (const auto& charge : charges(overlap(cycle, before))) sum += charge.priced.amount;
        }
        return sum;
    }

    // A commitment over several billing periods, of which this is not the first (9.16).
    void add_cumulative(const std::vector<Charge>& list, const Period& term) {
        const auto& commitment = *subscription_.commitment;
        Decimal cost;
        for (const auto& charge : list) cost += charge.priced.amount;
        const auto committed = commit(commitment, cost, spent({term.from, period_.from}), period_.to >= term.to);
        for (const auto& charge : list) {
            auto priced = charge.priced;
            lower_to(priced, divided(priced.amount, cost) * committed.utilized);
            add_charge(charge, units_of(*charge.item, charge.use.whole), std::move(priced), false);
        }
        const auto beyond = cost - committed.utilized;
        if (!beyond.is_zero()) add_extra("Overage", overage_line(beyond, commitment.overage_factor));
        if (!committed.true_up.is_zero()) add_extra("True Up", {.step = Step::minimum, .amount = committed.true_up});
    }

    // What falls due: in advance where a cycle begins, in arrears where it ends. One that is longer than the billing period counts from the item's
    // beginning and is paid whole; of others the share of time that the item is active (billing.go, CalculateFixedCharges).
    void add_fixed(const Item& item) {
        const auto& fixed = *item.fixed;
        if (!fixed.cycle) {
            if (period_.contains(item.active.from)) add_fixed(item, {item.active.from, item.active.from}, 1);
            return;
        }
        const bool longer = *fixed.cycle > subscription_.stride;
        const auto anchor = item.active.from > Period().from ? item.active.from : subscription_.anchor.value_or(Timestamp());
        const Cycle own = utc_cycle(*fixed.cycle, anchor);
        const auto around = [&](Timestamp at) { return longer ? overlap(own.around(at), item.active) : subscription_.period(at); };
        for (const auto& cycle : cycles_of(overlap(period_, item.active), around)) {
            const bool due = fixed.advance ? period_.contains(cycle.from) : period_.from < cycle.to && cycle.to <= period_.to;
            const auto active = overlap(cycle, item.active);
            if (due) add_fixed(item, active, divided((active.to - active.from).count(), (cycle.to - cycle.from).count()));
        }
    }

    void add_fixed(const Item& item, const Period& period, const Decimal& share) {
        auto priced = price_units(item.price(), item.fixed->quantity);
        lower_to(priced, priced.amount * share);
        round(priced);
        auto& fee = add(&item, period, 0, fee_of(book_, item, item.fixed->quantity, std::move(priced)));
        fee.pay_in_advance = item.fixed->advance;
    }

    // Coupons of an item come off its last line, each of the whole amount; then those of the subscription, one after the other, off what is left
    // of all lines (coupon_application.go).
    void take_coupons() {
        Decimal left;
        std::set<const Item*> seen{nullptr};
        for (auto line = lines_.rbegin(); line != lines_.rend(); ++line) {
            if (seen.insert(line->item).second) take_coupons(*line->item, line->fee);
            left += line->fee.amount;
        }
        for (const auto& coupon : subscription_.coupons) {
            if (left <= 0 || !coupon.reduces(period_)) continue;
            const auto off = coupon.discount.off(left, book_.currency);
            left -= off;
            add_extra("Coupon", {.step = Step::discount, .amount = -off});
        }
    }

    void take_coupons(const Item& item, Fee& fee) const {
        Priced priced{fee.amount, std::move(fee.lines)};
        for (const auto& coupon : item.coupons) {
            if (!coupon.reduces(period_)) continue;
            const auto off = std::min(coupon.discount.off(fee.amount, book_.currency), priced.amount);
            priced.add({.step = Step::discount, .amount = -off});
        }
        fee.amount = priced.amount;
        fee.amount_cents = to_cents(fee.amount, book_.currency);
        fee.lines = std::move(priced.lines);
    }

    const Catalogue& book_;
    const Subscription& subscription_;
    Period period_;
    Timestamp now_;
    UsageSource& usage_;
    std::vector<Line> lines_;
};

// --- analytics (dossier 6.5 to 6.7) ---

// Commitments are for all of an item's usage, so they are left out of what shows a part of it (6.6).
bool shows_a_part(const AnalyticsQuery& query) { return !query.filter.empty() || !query.sources.empty() || !query.group_by.empty(); }

std::vector<AnalyticsItem> plain_items(const Item& item, const AnalyticsQuery& query, UsageSource& usage) {
    auto metric = item.metric;
    metric.recurring = false;
    auto list = measured_items(metric, query, usage);
    for (auto& each : list) {
        each.cost = price_units(item.price(), each.usage).amount;
        for (auto& point : each.points) point.cost = price_units(item.price(), point.usage).amount;
        if (!item.terms.commitment || item.windowed || shows_a_part(query)) continue;
        const auto committed = commit(*item.terms.commitment, each.cost);
        each.cost = committed.charge;
        each.vendor = commitment_json(item, committed);
    }
    return list;
}

// Each bucket priced alone, and the sum rounded once. Wider windows of the question put buckets together: their sum or greatest, and what all of
// them cost. Buckets stay whole in narrower ones (6.6).
AnalyticsItem bucketed_item(const Catalogue& book, const Item& item, const AnalyticsQuery& query, const Lot& lot, Timestamp now) {
    const bool windowed = item.windowed && item.commits() && !shows_a_part(query);
    auto asked = lot.query;
    asked.bin = std::max(query.bin, item.metric.bucket);
    Bins bins(bins_of(asked, metered_rules));
    AnalyticsItem answer{.metric = item.metric.code, .events = events_of(lot)};
    std::map<Timestamp, AnalyticsPoint> points;
    Committed committed;
    for (const auto& window : windowed ? windows_of(item, lot, now) : lot.parts) {
        const auto cost = windowed ? price_windows(item.terms, {window}, committed).amount : price_buckets(item.price(), {window.units}).amount;
        const auto start = bins.around(*window.start).from;
        auto& point = points.try_emplace(start, AnalyticsPoint{.start = start}).first->second;
        point.usage = item.metric.aggregation == Aggregation::max ? std::max(point.usage, window.units) : point.usage + window.units;
        point.cost += cost;
        point.events += window.events;
        answer.usage += window.units;
        answer.cost += cost;
    }
    answer.cost = rounded(answer.cost, book.currency);
    if (windowed) answer.vendor = commitment_json(item, committed);
    if (query.bin == Bin::none) return answer;
    for (auto& [start, point] : points) answer.points.push_back(point);
    return answer;
}

std::vector<AnalyticsItem> bucketed_items(const Catalogue& book, const Item& item, const AnalyticsQuery& query, Timestamp now, UsageSource& usage) {
    if (query.top > 0) refuse("top", "has no meaning for the buckets of " + item.metric.code);
    auto asked = aggregate_query(query);
    asked.fill = false;
    std::map<Group, Lot> groups;
    if (query.group_by.empty()) groups[{}].query = asked;
    for (auto& part : lot_of(item.metric, asked, item.metric.bucket, usage).parts) {
        auto& lot = groups[{part.group.begin(), part.group.begin() + static_cast<std::ptrdiff_t>(query.group_by.size())}];
        lot.query = asked;
        lot.parts.push_back(std::move(part));
    }
    std::vector<AnalyticsItem> list;
    for (const auto& [group, lot] : groups) {
        list.push_back(bucketed_item(book, item, query, lot, now));
        list.back().group = group;
    }
    return list;
}

// What the coupons of that time take off.
Decimal shown_discount(const Catalogue& book, const Item& item, const Subscription& subscription, const Decimal& cost, const Period& period) {
    std::vector<Discount> discounts;
    for (const auto* coupons : {&item.coupons, &subscription.coupons}) {
        for (const auto& coupon : *coupons) {
            if (coupon.shown && coupon.meets(period)) discounts.push_back(coupon.discount);
        }
    }
    return compound_discount(cost, discounts, book.currency);
}

// A coupon of any part of the time is for all of it; with points, for those in its time (6.7).
void discount_item(const Catalogue& book, const Item& item, const Subscription& subscription, const Period& period, AnalyticsItem& answer) {
    if (answer.points.empty()) answer.discount = shown_discount(book, item, subscription, answer.cost, period);
    for (auto& point : answer.points) {
        point.discount = shown_discount(book, item, subscription, point.cost, {point.start, point.start});
        answer.discount += point.discount;
    }
}

// ---- operations ----

// The units and price(subscription, item) of every item that measures the event now.
template <class PriceItem>
Fees price_event(const Catalogue& book, const Event& event, Timestamp now, PriceItem&& price) {
    if (event.customer.empty() && !book.lists_subscriptions) refuse("customer", "is required");
    std::vector<Fee> list;
    for (const auto& subscription : book.chosen(event.subscription, event.customer)) {
        for (const auto& item : subscription.items) {
            if (item.fixed || !overlap(subscription.active, item.active).contains(now) || !measures(item.metric, event)) continue;
            auto [units, priced] = price(subscription, item);
            list.push_back(fee_for(subscription, subscription.period(now), 1, fee_of(book, item, units, std::move(priced))));
        }
    }
    return book.sum_up(std::move(list));
}

struct Operations final : Catalogue {
    bool serves(const std::string& subscription, const std::string& customer) const override { return !chosen(subscription, customer).empty(); }
    Period period_around(const UsageQuery& query, Timestamp at) const override {
        const auto list = chosen(query.subscription, query.customer);
        return list.empty() ? this_month(at) : list.front().period(at);
    }
    std::vector<std::string> subscriptions_of(const UsageQuery& query, Timestamp) const override {
        std::vector<std::string> ids;
        for (const auto& each : chosen(query.subscription, query.customer)) ids.push_back(each.id);
        return ids;
    }

    Fees usage(const UsageQuery& query, Timestamp now, UsageSource& usage) const override {
        if (query.customer.empty() && (!lists_subscriptions || query.subscription.empty())) refuse("customer", "is required");
        std::vector<Fee> list;
        for (const auto& subscription : chosen(query.subscription, query.customer)) {
            if (!query.period && !subscription.active.contains(now)) continue;
            const auto period = query.period ? overlap(*query.period, subscription.active) : subscription.period(now);
            if (period.from < period.to) Bill(*this, subscription, period, now, usage).move_to(list);
        }
        return sum_up(std::move(list));
    }

    // What the event adds to the bill of the billing period, up to now; not rounded, so that small prices are seen, and without the subscription's
    // commitment, which is for all items.
    Fees estimate_fees(const Event& event, Timestamp now, UsageSource& usage) const override {
        auto fees = price_event(*this, event, now, [&](const Subscription& subscription, const Item& item) {
            const auto query = query_of(*this, subscription, item, up_to(subscription.period(now).from, now));
            auto use = flexprice::measure(item, subscription, query, usage);
            const auto priced = [&] {
                Committed committed;
                return commit_use(item, use, price_use(item, use), now, committed);
            };
            const auto units = units_of(item, use.whole);
            const auto before = priced();
            add_event(item, event, now, usage, use);
            return std::pair(units_of(item, use.whole) - units, difference(priced(), before));
        });
        if (fees.fees.empty()) not_found("name", "no price measures events named " + event.name);
        return fees;
    }

    Fees estimate_instant_fees(const Event& event, Timestamp now) const override {
        return price_event(*this, event, now, [&](const Subscription&, const Item& item) {
            const auto units = quantity_of(item.metric, event);
            return std::pair(units, price_units(item.price(), units));
        });
    }

    Fee price(std::string_view charge, const Decimal& units, std::int64_t) const override {
        const auto* item = find_by(items, &Item::charge, charge);
        if (!item) not_found("charge", "charge_not_found");
        const auto quantity = item->fixed ? fixed_quantity(units, item->fixed->quantity) : units;
        const Lot all{.parts = {{.units = quantity, .events = 1}}};
        const Use use{all, std::vector<Lot>(item->grants.size() + 1, all), {}};
        Committed committed;
        auto fee = fee_of(*this, *item, quantity, commit_use(*item, use, price_use(*item, use), {}, committed));
        fee.vendor = breakup(item->price(), quantity);
        return fee;
    }

    // Each event priced alone, unrounded, under the first item of the customer that measures it. Which item that is is decided once for each meter,
    // at the time of the first such event (dossier 7.3).
    std::vector<std::optional<Decimal>> event_costs(std::span<const std::optional<Event>> events) const override {
        std::map<std::pair<std::string, std::string>, std::optional<Price>> found;
        const auto price_at = [&](const Event& event, const Metric& metric) -> std::optional<Price> {
            const auto time = event.timestamp.value();
            for (const auto& subscription : chosen({}, event.customer)) {
                for (const auto& item : subscription.items) {
                    const bool holds = subscription.starts && subscription.active.contains(time) && item.active.contains(time);
                    if (holds && item.metric.code == metric.code) return item.price();
                }
            }
            return std::nullopt;
        };
        const auto cost_of = [&](const Event& event) -> std::optional<Decimal> {
            const auto metric = std::ranges::find_if(metrics, [&](const Metric& each) { return measures(each, event); });
            if (metric == metrics.end()) return std::nullopt;
            const auto [place, fresh] = found.try_emplace({event.customer, metric->code});
            if (fresh) place->second = price_at(event, *metric);
            if (!place->second) return std::nullopt;
            return price_units(*place->second, quantity_of(*metric, event)).amount;
        };
        std::vector<std::optional<Decimal>> costs;
        for (const auto& event : events) costs.push_back(event ? cost_of(*event) : std::nullopt);
        return costs;
    }

    std::optional<std::vector<AnalyticsItem>> analytics(const Metric& metric, const AnalyticsQuery& query, Timestamp now,
                                                        UsageSource& usage) const override {
        const auto* known = find_by(metrics, &Metric::code, metric.code);
        const auto subscribed = chosen(query.subscription, query.customer);
        if (!known || subscribed.empty()) return std::nullopt;
        std::vector<AnalyticsItem> list;
        for (const auto& subscription : subscribed) {
            for (const auto& item : subscription.items) {
                if (item.metric.code != metric.code) continue;
                auto asked = query;
                if (lists_subscriptions) asked.subscription.clear();
                asked.customer = subscription.customer;
                asked.period = overlap(overlap(*query.period, subscription.active), item.active);
                if (asked.period->from >= asked.period->to) continue;
                for (auto& each : item.bucketed() ? bucketed_items(*this, item, asked, now, usage) : plain_items(item, asked, usage)) {
                    each.charge = item.charge;
                    each.currency = currency_code;
                    discount_item(*this, item, subscription, *asked.period, each);
                    list.push_back(std::move(each));
                }
            }
        }
        if (list.empty() && query.rules != "flexprice") return std::nullopt;  // FlexPrice does not show what the subscription does not price
        return list;
    }
};

}  // namespace flexprice

// ---------------------------------------------------------------------------------------------
// 8.4 Polar: dossier sections 6 to 11
// ---------------------------------------------------------------------------------------------

namespace polar {

// ---- words and numbers ----

constexpr std::int64_t int32_max = std::numeric_limits<std::int32_t>::max();

// Amounts are counts of the currency's smallest unit; an invoice has no fractions of it.
Decimal rounded_half_away(const Decimal& value) { return value.round(0, Rounding::half_up); }

Decimal power_of_two(int exponent) {
    Decimal power = 1;
    for (int i = 0; i < exponent; ++i) power += power;
    return power;
}

// unit_amount x units, rounded half away from zero. Polar's units are a double, which counts at its exact binary value
// (product_price.py:318): mantissa x 2^exponent, so the product is a quotient of integers that fit.
Decimal exact_amount(const Decimal& unit_amount, double units) {
    constexpr int mantissa_bits = 53, negligible = 86;  // below 2^-33 units, at less than 10^5 cents each
    constexpr int digits_kept = 28;                     // of the product, by Python's decimals
    int exponent = 0;
    const auto mantissa = static_cast<std::int64_t>(std::ldexp(std::frexp(units, &exponent), mantissa_bits));
    exponent -= mantissa_bits;
    const auto product = unit_amount * Decimal(mantissa);
    if (exponent >= 0) return rounded_half_away(product * power_of_two(std::min(exponent, 127)));
    if (-exponent > negligible) return {};
    return rounded_half_away(Decimal::divide_significant(product, power_of_two(-exponent), digits_kept, Rounding::half_even));
}

// Polar's numbers are doubles, added and divided as such.
Decimal double_sum(const Decimal& a, const Decimal& b) { return Decimal::from_double(a.to_double() + b.to_double()); }
Decimal double_quotient(const Decimal& a, const Decimal& b) { return Decimal::from_double(a.to_double() / b.to_double()); }

// With commas between thousands.
std::string grouped(std::string digits) {
    for (auto at = std::min(digits.find('.'), digits.size()); at > 3;) digits.insert(at -= 3, ",");
    return digits;
}

constexpr CurrencyRow currencies[] = {{"bif clp djf gnf jpy kmf krw mga pyg rwf vnd vuv xaf xof xpf", {0, 1}}};

// Cents as an amount in the currency, with at least its own decimals, as Babel writes it for en_US.
std::string money(const Decimal& cents, const std::string& code) {
    static constexpr std::pair<std::string_view, std::string_view> symbols[] = {
        {"usd", "$"},      {"eur", "\u20ac"}, {"gbp", "\u00a3"}, {"jpy", "\u00a5"},     {"aud", "A$"},  {"brl", "R$"},       {"cad", "CA$"},
        {"inr", "\u20b9"}, {"mxn", "MX$"},    {"nzd", "NZ$"},    {"hkd", "HK$"},        {"twd", "NT$"}, {"cny", "CN\u00a5"}, {"krw", "\u20a9"},
        {"ils", "\u20aa"}, {"php", "\u20b1"}, {"vnd", "\u20ab"}, {"xof", "F\u202fCFA"}, {"xaf", "FCFA"}};
    const auto currency = currency_in(currencies, code);
    const auto amount = cents * Decimal::scaled(1, currency.decimals);
    std::string symbol = code;
    std::transform(symbol.begin(), symbol.end(), symbol.begin(), [](unsigned char c) { return static_cast<char>(std::toupper(c)); });
    for (const auto& [known, sign] : symbols) {
        if (known == code) symbol = sign;
    }
    return symbol + grouped(amount.to_fixed(std::max(currency.decimals, amount.scale())));
}

// Three letters, which Polar writes small.
std::string read_currency(const Node& at) {
    auto code = lowercase(at.text("price_currency", at.text("currency", "usd")));
    const bool letters = std::ranges::all_of(code, [](char c) { return c >= 'a' && c <= 'z'; });
    if (code.size() != 3 || !letters) at.refuse("price_currency", "must be a code of three letters");
    return code;
}

// ---- prices ----

struct MeteredPrice {
    Decimal unit_amount;  // cents for one unit
    std::optional<Decimal> cap = {};
    std::string currency = "usd";
};

// Unit amounts have up to 12 decimals and 5 digits before them (product/schemas.py:421).
MeteredPrice read_metered(const Node& at) {
    MeteredPrice price{at.above_zero("unit_amount"), at.whole("cap_amount", 0, int32_max), read_currency(at)};
    if (price.unit_amount.scale() > 12) at.refuse("unit_amount", "must have at most 12 decimals");
    if (price.unit_amount >= 100000) at.refuse("unit_amount", "must be below 100000");
    return price;
}

Decimal units_to_pay(const Decimal& consumed, const Decimal& credited) { return at_least_zero(double_sum(consumed, -credited)); }

// Units beyond credits at the price, rounded, then capped.
Priced price_units(const MeteredPrice& price, const Decimal& consumed, const Decimal& credited) {
    const Decimal units = units_to_pay(consumed, credited);
    Priced priced;
    if (!credited.is_zero()) priced.add(free_line(at_least_zero(std::min(consumed, credited))));
    priced.add(units_line(units, price.unit_amount));
    round_to(priced, exact_amount(price.unit_amount, units.to_double()));
    if (price.cap) lower_to(priced, *price.cap);
    return priced;
}

// The units are those left to be paid.
std::string label(const MeteredPrice& price, const Decimal& units, const Priced& priced) {
    auto text =
        "(" + grouped(units.round(3, Rounding::half_even).to_string()) + " consumed units) \u00d7 " + money(price.unit_amount, price.currency);
    if (priced.lines.back().step == FeeLine::Step::maximum) text += " \u2014 Capped at " + money(*price.cap, price.currency);
    return text;
}

// --- tiers of seats and units (11) ---

struct Tiers {
    bool volume = false;
    std::vector<Tier> tiers;
};

// Sorted by bound, the open tier last. What is wrong is said in pydantic's words.
Tiers read_tiers(const Node& at) {
    static constexpr std::pair<std::string_view, bool> types[] = {{"volume", true}, {"graduated", false}};
    Tiers result{at.choice("type", types, "volume"), {}};
    for (const auto& each : at.list("tiers")) {
        Tier tier{.above = {}, .up_to = each.decimal("bound"), .rate = each.number("unit_amount"), .flat = {}, .from = {}};
        if (tier.up_to && !tier.up_to->to_int64()) each.refuse("bound", "int_from_float");
        if (tier.up_to && *tier.up_to <= 0) each.refuse("bound", "greater_than");
        if (!each.find("unit_amount")) each.refuse("unit_amount", "missing");
        if (tier.rate.is_negative()) each.refuse("unit_amount", "greater_than_equal");
        result.tiers.push_back(std::move(tier));
    }
    if (result.tiers.empty()) at.refuse("tiers", "too_short");
    stack(result.tiers);
    for (std::size_t i = 1; i < result.tiers.size(); ++i) {
        const auto& bound = result.tiers[i - 1].up_to;
        if (!bound) at.refuse("tiers", "unbounded_tier_not_last");
        if (bound == result.tiers[i].up_to) at.refuse("tiers", "duplicate_tier_bound");
    }
    return result;
}

// Seats are sold by tiers of min_seats to max_seats without gaps.
Tiers read_seat_tiers(const Node& at) {
    auto given = at.list("tiers");
    const auto least = [](const Node& tier) { return tier.whole("min_seats", 0, int32_max).value_or(1); };
    std::ranges::stable_sort(given, {}, least);
    json tiers = json::array();
    for (const auto& tier : given) {
        if (!tiers.empty() && tiers.back().at("bound") != least(tier) - 1) tier.refuse("min_seats", "gap");
        tiers.push_back({{"bound", tier.raw("max_seats")}, {"unit_amount", tier.raw("price_per_seat")}});
    }
    return read_tiers(Node(json{{"type", at.text("seat_tier_type", "volume")}, {"tiers", tiers}}, at.path()));
}

// Bounds are the last quantity included. A volume needs a tier that holds it; graduated units past the last bound are free.
Priced price_tiers(const Tiers& tiers, const Decimal& quantity) {
    if (quantity.is_negative()) refuse("quantity", "negative");
    if (quantity.is_zero()) return {};
    if (!tiers.volume) return graduated(tiers.tiers, quantity);
    const auto* tier = tier_reaching(tiers.tiers, quantity);
    if (!tier) refuse("quantity", "uncovered");
    return only(tier_line(*tier, quantity));
}

// Seats and units are whole, and so are the cents that they come to (product_price.py:426).
Priced price_bought(const Tiers& tiers, const Decimal& quantity) {
    auto priced = price_tiers(tiers, quantity);
    if (quantity.scale() > 0) refuse("quantity", "must be a whole number");
    if (priced.amount.scale() > 0) refuse("quantity", "comes to a fraction of a cent: " + priced.amount.to_string());
    return priced;
}

// ---- the catalogue ----

// --- how prices of a meter are shown: its scale makes the amount of one unit that of what the label names (meter/schemas.py:28) ---

struct MeterUnit {
    Decimal scale = 1;
    std::string label = "unit";
};

MeterUnit read_unit(const Node& at) {
    const auto name = at.text("unit", "scalar");
    if (name == "scalar") return {};
    if (name == "token") return {1000000, "1M tokens"};
    if (name != "custom") at.refuse("unit", "is not known: " + name);
    return {at.above_zero("custom_multiplier", 1), at.text("custom_label", "unit")};
}

// --- functions of meters (7) ---

constexpr std::pair<std::string_view, Aggregation> functions[] = {{"count", Aggregation::count}, {"sum", Aggregation::sum},
                                                                  {"max", Aggregation::max},     {"min", Aggregation::min},
                                                                  {"avg", Aggregation::average}, {"unique", Aggregation::unique_count}};

// Sums and counts may be added up.
bool is_summable(Aggregation function) { return function == Aggregation::count || function == Aggregation::sum; }

bool is_function(Aggregation function) {
    return std::ranges::any_of(functions, [&](const auto& row) { return row.second == function; });
}

// --- three evaluators of filters, which disagree where types differ (6.2); what is not written never matches ---

using enum Meeting;

// Quantities and balances (filter.py:52).
constexpr Coercion postgres{.boolean = {{number, never, never}, text_any},
                            .number = {{number, number, never}, text_any},
                            .text = {text_any, text_any},
                            .structure = {{}, text_any},
                            .asked_booleans = {"f", "t"}};

// What a meter bills (filter.py:127).
constexpr Coercion billing{.boolean = {{number, number, differ}, text_any},
                           .number = {{number, number, differ}, text_any},
                           .text = {{differ, differ, text}, text_any},
                           .structure = {{differ, differ, differ}, text_any},
                           .stored_booleans = {"False", "True"},
                           .asked_booleans = {"False", "True"}};

// Lists of events (tinybird/service.py:722).
constexpr Coercion clickhouse{.missing = {{zero, zero, empty}, empty_any},
                              .boolean = {{zero, zero, empty}, empty_any},
                              .number = {{number, number, empty}, empty_any},
                              .text = {{zero, zero, text}, text_any},
                              .structure = {{zero, zero, empty}, empty_any}};

// name and source meet texts alone, timestamp numbers alone, in every evaluator.
constexpr Coercion built_in{.number = {{never, number, never}, {never, text, never}}, .text = {{never, never, text}, {never, never, text}}};

// What a question asks beside the meter's filter: a text is what the property is written as (kit/metadata.py:138); numbers and booleans, which
// Polar's parameter does not have, are themselves.
constexpr Coercion parameter{.boolean = {{number, differ, text}, text_any},
                             .number = {{differ, number, text}, text_any},
                             .text = {{differ, differ, text}, text_any},
                             .structure = {{differ, differ, text}, text_any}};

// A time becomes whole seconds in the evaluator's own way. What a meter bills are also events that it would add a name of, as nothing.
constexpr Rules rules(std::string_view name, const Coercion& metadata, Rounding seconds) {
    return {.name = name,
            .filter = {&metadata, &built_in, seconds},
            .asked_filter = FilterRules{&parameter, &built_in, seconds},
            .numbers = {.text = NumberRules::Text::none, .text_fields_zero = &metadata == &billing, .missing = {}, .seconds = Rounding::half_up},
            .keeps_absent = true,
            .typed_values = true,
            .quotient = double_quotient,
            .add = double_sum};
}

constexpr Rules quantity_rules = rules("polar", postgres, Rounding::half_up);
constexpr Rules billing_rules = rules("polar_billing", billing, Rounding::down);
constexpr Rules list_rules = rules("polar_events", clickhouse, Rounding::down);

// The field of an event that is not in the log.
Scalar field_of(const Event& event, std::string_view field, Rounding seconds, std::string& keep) {
    const std::string prefix = property_field("");
    if (field.starts_with(prefix)) return scalar_at(event.properties, field.substr(prefix.size()), keep);
    if (field == "timestamp") return {Scalar::Kind::number, false, event.timestamp.value_or(Timestamp()).unix_seconds().round(0, seconds), {}};
    const std::string& text = field == "name" ? event.name : event.source;
    return {text.empty() ? Scalar::Kind::missing : Scalar::Kind::text, false, {}, text};
}

bool bills(const Filter& filter, const Event& event) {
    const auto each = [&](const Filter& part) { return bills(part, event); };
    if (filter.kind == Filter::Kind::all) return std::ranges::all_of(filter.parts, each);
    if (filter.kind == Filter::Kind::any) return std::ranges::any_of(filter.parts, each);
    std::string keep;
    const bool metadata = filter.field.starts_with(property_field(""));
    return meets(metadata ? billing : built_in, make_clause(filter), field_of(event, filter.field, *billing_rules.filter.seconds, keep));
}

// --- meters ---

// Text of at most 1000 characters, a 32-bit integer (1.0 is 1) or a boolean (filter.py:31).
json clause_value(const Node& at) {
    const json value = at.raw("value");
    if (value.is_number()) return *at.whole("value", -int32_max - 1, int32_max);
    if (value.is_boolean()) return value;
    if (!value.is_string()) at.refuse("value", "must be text, a whole number or true or false");
    const auto& text = value.get_ref<const std::string&>();
    if (const char* fault = text_fault(text)) at.refuse("value", fault);
    const auto characters = std::count_if(text.begin(), text.end(), [](char c) { return (static_cast<unsigned char>(c) & 0xC0) != 0x80; });
    if (characters > 1000) at.refuse("value", "is longer than 1000 characters");
    return value;
}

// Events that Polar itself makes have this source; those of all other sources reach Polar as the user's.
constexpr const char* system_source = "system";

Filter by_users() { return Filter::any({Filter::where("source", Operator::exists, false), Filter::where("source", Operator::ne, system_source)}); }

// Polar knows two sources, "user" and "system".
Filter source_clause(Operator op, const json& value) {
    const auto holds = [&](std::string_view source) {
        return meets(built_in, op, {Scalar::Kind::text, false, {}, source}, make_operand(value, "value"));
    };
    const bool user = holds("user"), system = holds(system_source);
    if (user) return system ? Filter() : by_users();
    return system ? Filter::equals("source", system_source) : Filter::any({});
}

// How Filter and Metric name a property; a leading "metadata." is dropped once. Unique counts never read the built-in ones.
std::string field_named(std::string property, bool built_in_too) {
    constexpr std::string_view prefix = "metadata.";
    if (property.starts_with(prefix)) property.erase(0, prefix.size());
    const bool named = property == "name" || property == "source" || property == "timestamp";
    return named && built_in_too ? property : property_field(property);
}

Filter read_clause(const Node& at) {
    static constexpr std::pair<std::string_view, Operator> operators[] = {
        {"eq", Operator::eq}, {"ne", Operator::ne},   {"gt", Operator::gt},         {"gte", Operator::gte},
        {"lt", Operator::lt}, {"lte", Operator::lte}, {"like", Operator::contains}, {"not_like", Operator::not_contains}};
    const auto field = field_named(at.required_text("property"), true);
    const auto op = at.choice("operator", operators);
    const auto value = clause_value(at);
    return field == "source" ? source_clause(op, value) : Filter::where(field, op, value);
}

Filter read_filter(const Node& at, std::size_t depth = 1) {
    static constexpr std::pair<std::string_view, bool> conjunctions[] = {{"and", true}, {"or", false}};
    if (depth > limits::json_depth) at.refuse("is nested too deep");
    const bool all = at.choice("conjunction", conjunctions, "and");
    std::vector<Filter> parts;
    for (const auto& clause : at.list("clauses")) parts.push_back(clause.find("clauses") ? read_filter(clause, depth + 1) : read_clause(clause));
    return all || parts.empty() ? Filter::all(std::move(parts)) : Filter::any(std::move(parts));
}

struct Meter {
    std::string id;
    Metric metric;
    MeterUnit unit;
};

std::string metric_code(const std::string& meter) { return "polar:" + meter; }

// The name that all events of the filter have, if it says so.
std::string event_name(const Filter& filter) {
    if (filter.kind == Filter::Kind::clause)
        return filter.field == "name" && filter.op == Operator::eq && filter.value.is_string() ? filter.value.get<std::string>() : "";
    if (filter.kind == Filter::Kind::any && filter.parts.size() != 1) return "";
    for (const auto& part : filter.parts) {
        if (auto name = event_name(part); !name.empty()) return name;
    }
    return "";
}

Metric read_metric(const Node& aggregation, Filter filter, std::string code) {
    Metric metric{.code = std::move(code), .event = event_name(filter), .aggregation = aggregation.choice("func", functions)};
    if (metric.aggregation != Aggregation::count) {
        metric.property = field_named(aggregation.required_text("property"), metric.aggregation != Aggregation::unique_count);
    }
    metric.filter = std::move(filter);
    metric.rules = "polar_billing";
    metric.every_event = metric.event.empty();
    return metric;
}

Meter read_meter(const Node& at) {
    const auto id = at.required_text("id");
    const auto filter = at.find("filter") ? read_filter(at.object("filter")) : Filter();
    return {id, read_metric(at.object("aggregation"), filter, metric_code(id)), read_unit(at)};
}

// --- subscriptions and charges ---

struct Subscription {
    std::string id, customer;  // events name the customer by its external id
    Period active = {}, current = {};
    Stride stride = {};
    std::optional<Timestamp> trial_end = {};
    Decimal seats = {}, units = {};
};

Subscription read_subscription(const Node& at) {
    static constexpr std::pair<std::string_view, Stride> intervals[] = {
        {"day", every_day}, {"week", every_week}, {"month", every_month}, {"year", every_year}};
    Subscription subscription{.id = at.required_text("id"), .customer = at.object("customer").required_text("external_id")};
    const auto start = at.time("current_period_start");
    if (!start) at.refuse("current_period_start", "is required");
    const auto interval = at.choice("recurring_interval", intervals, "month");
    subscription.stride = repeated(interval, at.whole("recurring_interval_count", 1, 999).value_or(1));
    const Timestamp next = utc_cycle(subscription.stride, *start).boundary(1);
    subscription.current = {*start, at.time("current_period_end").value_or(next)};
    subscription.active = {at.time("started_at").value_or(Timestamp::min()), at.time("ended_at").value_or(Period().to)};
    if (subscription.current.from >= subscription.current.to) at.refuse("current_period_end", "ends before it begins");
    if (subscription.active.from >= subscription.active.to) at.refuse("ended_at", "ends before it begins");
    subscription.trial_end = at.time("trial_end");
    subscription.seats = at.whole("seats", 0, int32_max).value_or(0);
    subscription.units = at.whole("units", 0, int32_max).value_or(0);
    return subscription;
}

struct Charge {
    std::string name;
    MeteredPrice price = {};                  // its currency code stands for tiers, too
    Decimal Subscription::*bought = nullptr;  // seats or units; else units are measured
    std::optional<Tiers> tiers = {};          // of those
    Meter meter = {};
    Decimal granted = {};
};

// What the product's benefits grant of a meter in each cycle.
Decimal granted_units(const Node& product, const std::string& meter) {
    Decimal units;
    for (const auto& benefit : product.list("benefits")) {
        if (benefit.text("type") != "meter_credit") continue;
        const auto properties = benefit.object("properties");
        if (properties.text("meter_id") == meter) units += properties.whole("units", 1, int32_max).value_or(0);
    }
    return units;
}

Charge read_charge(const Node& at, const Node& product, const std::vector<Meter>& meters) {
    static constexpr std::pair<std::string_view, Decimal Subscription::*> kinds[] = {
        {"metered_unit", nullptr}, {"seat_based", &Subscription::seats}, {"unit_based", &Subscription::units}};
    Charge charge{.name = at.text("id"), .bought = at.choice("amount_type", kinds, "metered_unit")};
    if (charge.bought) {
        const bool seats = charge.bought == &Subscription::seats;
        charge.price.currency = read_currency(at);
        charge.tiers = seats ? read_seat_tiers(at.object("seat_tiers")) : read_tiers(at.object("tiers"));
        if (charge.name.empty()) charge.name = seats ? "seats" : "units";
    } else {
        charge.meter = at.one_of(meters, &Meter::id, "meter_id", "meter");
        charge.price = read_metered(at);
        charge.granted = granted_units(product, charge.meter.id);
        if (charge.name.empty()) charge.name = charge.meter.id;
    }
    return charge;
}

// --- the whole ---

// What a product and its subscriptions say.
struct Catalogue : Book::Impl {
    std::vector<Charge> charges;
    std::vector<Subscription> subscriptions;
    bool lists_subscriptions = false;

    // That of the id or, without one, the customer's earliest; nothing when the catalogue lists none.
    const Subscription* find(const std::string& id, const std::string& customer, const std::optional<Timestamp>& active_at = {}) const {
        const auto found = std::ranges::find_if(subscriptions, [&](const Subscription& each) {
            if (active_at && !each.active.contains(*active_at)) return false;
            return id.empty() ? each.customer == customer : each.id == id;
        });
        return found == subscriptions.end() ? nullptr : &*found;
    }
};

void read(const Node& root, Catalogue& book) {
    const auto product = root.object("product");
    book.code = product.text("id", product.text("name", "polar"));
    std::vector<Meter> meters;
    for (const auto& at : root.list("meters")) {
        meters.push_back(read_meter(at));
        book.metrics.push_back(meters.back().metric);
    }
    for (const auto& price : product.list("prices")) {
        const auto type = price.text("amount_type");
        if (type == "fixed" || type == "custom" || type == "free") continue;
        auto charge = read_charge(price, product, meters);
        for (const auto& each : book.charges) {
            if (!charge.bought && each.meter.id == charge.meter.id) price.refuse("meter_id", "has another price, too");
        }
        book.charges.push_back(std::move(charge));
        if (book.charges.back().price.currency != book.charges.front().price.currency) product.refuse("has prices in several currencies");
    }
    if (book.charges.empty()) product.refuse("has no price by usage, seats or units");
    book.currency_code = book.charges.front().price.currency;
    book.currency = currency_in(currencies, book.currency_code);
    book.lists_subscriptions = root.find("subscriptions").has_value();
    for (const auto& at : root.list("subscriptions")) book.subscriptions.push_back(read_subscription(at));
    std::ranges::stable_sort(book.subscriptions, [](const Subscription& a, const Subscription& b) { return a.active.from < b.active.from; });
}

// ---- the account ----

// The current period as Polar says; others follow and precede it by the interval.
Period period_around(const Subscription& subscription, Timestamp now) {
    const auto& [from, to] = subscription.current;
    if (subscription.current.contains(now)) return subscription.current;
    const Timestamp anchor = now < from ? from : to;
    return overlap(utc_cycle(subscription.stride, anchor).around(now), subscription.active);
}

// Whose usage a bill is about, and which: what users did in the period, after a trial.
struct Account {
    const Subscription* subscription = nullptr;
    AggregateQuery query = {};

    bool on_trial(Timestamp time) const { return subscription && subscription->trial_end && time < *subscription->trial_end; }
};

// Where subscriptions are not listed, a customer is billed by calendar months.
Account open_account(const Catalogue& book, const std::string& subscription, const std::string& customer, Timestamp now) {
    Account account{book.find(subscription, customer, now)};
    if (book.lists_subscriptions && !account.subscription) not_found("subscription", "has no period now");
    if (!account.subscription && customer.empty()) refuse("customer", "is required");
    account.query.customer = account.subscription ? account.subscription->customer : customer;
    account.query.period = account.subscription ? period_around(*account.subscription, now) : this_month(now);
    if (account.subscription && account.subscription->trial_end) {
        const auto second = account.subscription->trial_end->unix_seconds().round(0, Rounding::ceil);
        account.query.filter = Filter::where("timestamp", Operator::gte, second.to_int64().value());
    }
    return account;
}

// ---- measuring ----

AggregateQuery of_users(AggregateQuery query) {
    query.filter = Filter::all({std::move(query.filter), by_users()});
    return query;
}

// --- credits (10.1, 10.2) ---

// Polar's own events of that name about the meter.
Metric system_metric(const char* name, const std::string& meter, Aggregation aggregation, const char* property) {
    return {.event = name,
            .aggregation = aggregation,
            .property = property,
            .filter = Filter::all({Filter::equals("source", system_source), Filter::equals("properties.meter_id", meter)})};
}

// In the order they came; what is taken away never leaves less than none. Nothing when there were none.
std::optional<Decimal> credited_units(const std::string& meter, const AggregateQuery& query, UsageSource& usage) {
    const auto metric = system_metric("meter.credited", meter, Aggregation::sum, "properties.units");
    std::optional<Decimal> credited;
    for (const auto& step : usage.steps(metric, query)) credited = at_least_zero(credited.value_or(Decimal()) + step.value);
    return credited;
}

Decimal credited_of(const Charge& charge, const Account& account, UsageSource& usage) {
    return credited_units(charge.meter.id, account.query, usage).value_or(charge.granted);
}

// --- one event more ---

// Events whose value is this one, by its type and all.
Filter identity(const std::string& field, const Scalar& value) {
    if (value.absent()) return Filter::where(field, Operator::exists, false);
    if (value.kind == Scalar::Kind::boolean) return Filter::equals(field, value.boolean);
    const auto text = scalar_text(value);
    const auto number = Decimal::parse(text);
    const auto as_number = [&](Operator op) { return Filter::where(field, op, json::parse(number->to_string())); };
    if (value.kind == Scalar::Kind::number) return as_number(Operator::eq);
    std::vector<Filter> parts{Filter::equals(field, text)};
    if (number) parts.push_back(as_number(Operator::ne));
    if (text == "true" || text == "false") parts.push_back(Filter::where(field, Operator::ne, text == "true"));
    return Filter::all(std::move(parts));
}

// What the meter comes to with one event more; nothing when it does not measure that.
std::optional<Decimal> consumed_with(const Metric& metric, const Event& event, const Measured& before, AggregateQuery query, UsageSource& usage) {
    if (event.source == system_source || !bills(metric.filter, event)) return std::nullopt;
    if (metric.aggregation == Aggregation::count) return before.value + 1;
    std::string keep;
    const auto value = field_of(event, metric.property, Rounding::half_up, keep);
    if (metric.aggregation == Aggregation::unique_count) {
        if (value.kind == Scalar::Kind::missing) return before.value;
        query.filter = Filter::all({std::move(query.filter), identity(metric.property, value)});
        return usage.measure(metric, query).front().value > 0 ? before.value : before.value + 1;
    }
    if (value.kind != Scalar::Kind::number) return std::nullopt;
    if (before.events == 0) return value.number;
    if (metric.aggregation == Aggregation::sum) return double_sum(before.value, value.number);
    if (metric.aggregation == Aggregation::max) return std::max(before.value, value.number);
    if (metric.aggregation == Aggregation::min) return std::min(before.value, value.number);
    auto sum = metric;
    sum.aggregation = Aggregation::sum;
    return double_quotient(double_sum(usage.measure(sum, query).front().value, value.number), before.events + 1);
}

// ---- fees ----

// Currency units, as fees have them, from Polar's cents.
Priced in_units(Priced priced, Currency currency) {
    const Decimal cent = quotient(1, currency.subunits);  // times, not divided by: exact
    for (auto& line : priced.lines) {
        line.rate *= cent;
        line.amount *= cent;
    }
    priced.amount *= cent;
    return priced;
}

Fee fee_of(const Catalogue& book, const Charge& charge, const Account& account, const Decimal& units, Priced priced) {
    auto fee = book.priced_fee(units, in_units(std::move(priced), book.currency));
    fee.charge = charge.name;
    fee.metric = charge.meter.metric.code;
    fee.customer = account.query.customer;
    if (account.subscription) fee.subscription = account.subscription->id;
    fee.pay_in_advance = charge.tiers.has_value();
    fee.period = account.query.period;
    return fee;
}

// The fee for what a meter has come to, with the words of the invoice (product_price.py:335).
Fee metered_fee(const Catalogue& book, const Charge& charge, const Account& account, UsageSource& usage) {
    const auto row = usage.measure(charge.meter.metric, of_users(account.query)).front();
    const auto credited = credited_of(charge, account, usage);
    const auto priced = price_units(charge.price, row.value, credited);
    auto fee = fee_of(book, charge, account, row.value, priced);
    fee.events = row.events;
    const auto& shown = charge.meter.unit;
    fee.vendor = {{"label", label(charge.price, units_to_pay(row.value, credited), priced)},
                  {"unit_price", money(charge.price.unit_amount * shown.scale, charge.price.currency) + " / " + shown.label},
                  {"meter_id", charge.meter.id},
                  {"consumed_units", row.value.to_string()},
                  {"credited_units", credited.to_string()},
                  {"amount", priced.amount.to_string()}};
    return fee;
}

// ---- operations ----

struct Operations final : Catalogue {
    bool serves(const std::string& subscription, const std::string& customer) const override {
        return lists_subscriptions ? find(subscription, customer) != nullptr : !customer.empty();
    }
    Period period_around(const UsageQuery& query, Timestamp at) const override {
        const auto* subscription = find(query.subscription, query.customer);
        return subscription ? polar::period_around(*subscription, at) : this_month(at);
    }
    std::vector<std::string> charge_names(const std::string& metric) const override {
        std::vector<std::string> names;
        for (const auto& each : charges) {
            if (!each.tiers && each.meter.metric.code == metric) names.push_back(each.name);
        }
        return names;
    }

    Fees usage(const UsageQuery& asked, Timestamp now, UsageSource& usage) const override {
        auto account = open_account(*this, asked.subscription, asked.customer, now);
        if (asked.period) account.query.period = *asked.period;
        std::vector<Fee> list;
        for (const auto& charge : charges) {
            if (!charge.tiers) {
                list.push_back(metered_fee(*this, charge, account, usage));
            } else if (account.subscription) {
                const auto& bought = account.subscription->*charge.bought;
                list.push_back(fee_of(*this, charge, account, bought, price_bought(*charge.tiers, bought)));
            }
        }
        return sum_up(std::move(list));
    }

    // What the event adds to the bill of its period, up to now.
    Fees estimate_fees(const Event& event, Timestamp now, UsageSource& usage) const override {
        auto account = open_account(*this, event.subscription, event.customer, now);
        account.query.period = overlap(account.query.period, up_to(Period().from, now));
        const auto query = of_users(account.query);
        auto happening = event;
        happening.timestamp = event.timestamp.value_or(now);
        std::vector<Fee> list;
        for (const auto& charge : charges) {
            if (charge.tiers) continue;
            const auto before = usage.measure(charge.meter.metric, query).front();
            auto after = consumed_with(charge.meter.metric, happening, before, query, usage);
            if (!after) continue;
            if (account.on_trial(*happening.timestamp)) after = before.value;
            const auto credited = credited_of(charge, account, usage);
            const auto added = difference(price_units(charge.price, *after, credited), price_units(charge.price, before.value, credited));
            list.push_back(fee_of(*this, charge, account, *after - before.value, added));
            list.back().events = 1;
        }
        if (list.empty()) not_found("name", "no price measures this event named " + quote(event.name));
        return sum_up(std::move(list));
    }

    Fee price(std::string_view name, const Decimal& units, std::int64_t) const override {
        const auto* charge = find_by(charges, &Charge::name, name);
        if (!charge) not_found("charge", "charge_not_found");
        return fee_of(*this, *charge, {}, units,
                      charge->tiers ? price_bought(*charge->tiers, units) : price_units(charge->price, units, charge->granted));
    }
};

// ---- meter quantities and customer meters (8 and 10.3) ----

// Intervals of meter quantities, and how many days a question may span at most (time_queries.py:46).
constexpr std::pair<Bin, int> most_days[] = {{Bin::hour, 7}, {Bin::day, 366}, {Bin::week, 371}, {Bin::month, 1460}, {Bin::year, 3650}};

// PostgreSQL takes a local time that the clock shows twice for the second of the two, and puts one that it skips as far behind the skip as the
// time would have been without it (DetermineTimeZoneOffset).
Timestamp postgres_time(std::int64_t local, const Zone& zone) {
    const Timestamp first = zone.to_utc(local);
    if (zone.to_local(first) != local) return Timestamp(local - zone.span_at(first.micros() - 1).offset);
    const std::int64_t change = zone.span_at(first.micros()).to;
    if (change - first.micros() > micros_per_day) return first;
    const Timestamp second(local - zone.span_at(change).offset);
    return second.micros() >= change ? second : first;
}

// The moments that have a row in the answer: the start, and on by one interval each, on the zone's clock, until the end has passed. Each is
// counted from the one before, so a 31st that a short month moved stays where it is. (generate_series in time_queries.py:32)
std::vector<Timestamp> quantity_rows(Timestamp start, Timestamp end, Bin interval, const Zone& zone) {
    const auto* most = find_by(most_days, row_name, interval);
    if (!most) refuse("interval", "must be hour, day, week, month or year");
    if (start < Timestamp::from_civil(2023, 1, 1)) refuse("start", "must not be before 2023-01-01");
    if (start > end) refuse("end", "is before the start");
    if (cut(end, micros_per_day) - cut(start, micros_per_day) > std::chrono::days(most->second))
        refuse("interval", "is too small for so long a time");
    const auto next = [&](Timestamp row) {
        if (interval == Bin::hour) return row + std::chrono::hours(1);
        return postgres_time(Cycle(stride_of(interval), zone.to_local(row), Zone({})).boundary(1).micros(), zone);
    };
    std::vector<Timestamp> rows;
    for (Timestamp row = start; row <= end; row = next(row)) rows.push_back(row);
    return rows;
}

// Of values that meters have come to; 0 of none.
Decimal folded(Aggregation function, const std::vector<Decimal>& values) {
    if (function == Aggregation::count) return values.size();
    if (function == Aggregation::unique_count) return std::set<Decimal>(values.begin(), values.end()).size();
    if (values.empty()) return {};
    if (function == Aggregation::max) return *std::ranges::max_element(values);
    if (function == Aggregation::min) return *std::ranges::min_element(values);
    const Decimal sum = std::accumulate(values.begin(), values.end(), Decimal(), double_sum);
    return function == Aggregation::average ? double_quotient(sum, values.size()) : sum;
}

// For every key of the metadata parameter one of its texts.
Filter parameter_filter(const json& metadata) {
    if (!metadata.is_object()) refuse("metadata", "must be an object");
    std::vector<Filter> parts;
    for (const auto& [key, value] : metadata.items()) {
        const json texts = value.is_array() ? value : json::array({value});
        const bool fits = std::all_of(texts.begin(), texts.end(), [](const json& text) { return text.is_string(); });
        if (key.empty() || !fits) refuse("metadata." + key, "must be a text or a list of texts");
        parts.push_back(Filter::where(property_field(key), Operator::in, texts));
    }
    return Filter::all(std::move(parts));
}

// A question about any of these customers; about all when there are none.
AggregateQuery of_customers(const std::vector<std::string>& customers) {
    AggregateQuery query;
    if (customers.size() == 1) query.customer = customers.front();
    if (customers.size() > 1) query.filter = Filter::where("customer", Operator::in, customers);
    return query;
}

// Of the bins that have events; where each customer has a row in one, what the function makes of these.
std::map<Timestamp, Decimal> quantities_by_bin(const Metric& metric, AggregateQuery asked, const std::optional<Aggregation>& over_customers,
                                               UsageSource& usage) {
    if (over_customers) asked.group_by = {"customer"};
    std::map<Timestamp, std::vector<Decimal>> values;
    for (const auto& row : usage.measure(metric, asked)) values[*row.bin].push_back(row.value);
    std::map<Timestamp, Decimal> found;
    for (const auto& [bin, each] : values) found[bin] = over_customers ? folded(*over_customers, each) : each.front();
    return found;
}

// The total of the rows that have events; an average or unique count is one over all events, whatever their time (service.py:360).
Decimal total_of(const Metric& metric, AggregateQuery asked, const std::vector<Decimal>& rows, UsageSource& usage) {
    const auto function = is_summable(metric.aggregation) ? Aggregation::sum : metric.aggregation;
    if (function != Aggregation::average && function != Aggregation::unique_count) return folded(function, rows);
    asked.bin = Bin::none;
    asked.period = {};
    return usage.measure(metric, asked).front().value;
}

// A row stands for the whole bin it falls into, also before the start.
Quantities quantities(Metric metric, const QuantitiesQuery& query, UsageSource& usage) {
    if (!is_function(metric.aggregation)) refuse("meter", "has an aggregation that Polar does not know");
    if (query.over_customers && !is_function(*query.over_customers)) refuse("over_customers", "is not one of Polar's functions");
    const auto times = quantity_rows(query.start, query.end, query.interval, Zone(query.time_zone));
    metric.rules = "polar";
    Bins bins({.bin = query.interval, .time_zone = query.time_zone});
    AggregateQuery asked = of_customers(query.customers);
    asked.period = {bins.around(times.front()).from, bins.around(times.back()).to};
    asked.bin = query.interval;
    asked.time_zone = query.time_zone;
    asked.filter = Filter::all({std::move(asked.filter), parameter_filter(query.metadata)});
    const auto by_bin = quantities_by_bin(metric, asked, query.over_customers, usage);
    Quantities answer;
    std::vector<Decimal> with_events;
    for (const Timestamp time : times) {
        const auto* found = value_at(by_bin, bins.around(time).from);
        answer.rows.push_back({time, found ? *found : Decimal()});
        if (found) with_events.push_back(*found);
    }
    answer.total = total_of(metric, asked, with_events, usage);
    return answer;
}

// Of what was recorded since the last reset happened. At the next one usage eats what does not roll over first (customer_meter/service.py:194).
CustomerMeter customer_meter(const std::string& id, Metric metric, const std::vector<std::string>& customers, UsageSource& usage) {
    if (customers.empty()) refuse("customers", "is empty");
    metric.rules = "polar";
    AggregateQuery asked = of_customers(customers);
    const auto reset = usage.measure(system_metric("meter.reset", id, Aggregation::max, "timestamp"), asked).front();
    if (reset.events > 0)
        asked.filter = Filter::all({asked.filter, Filter::where("recorded_at", Operator::gte, json::parse(reset.value.to_string()))});
    const auto credited = [&](const Filter& which) {
        auto query = asked;
        query.filter = Filter::all({asked.filter, which});
        return credited_units(id, query, usage).value_or(Decimal());
    };
    // Of a customer with two ids, Polar takes the property of all but sums and counts for one key, which a path is not (:430).
    const bool nested = std::count(metric.property.begin(), metric.property.end(), '.') > 1;
    const bool reads_nothing = nested && customers.size() > 1 && !is_summable(metric.aggregation);
    CustomerMeter answer;
    if (!reads_nothing) answer.consumed = usage.measure(metric, of_users(asked)).front().value;
    answer.credited = credited({});
    answer.balance = double_sum(answer.credited, -answer.consumed);
    const Decimal rolling = credited(Filter::equals("properties.rollover", true));
    const Decimal left = double_sum(credited(Filter::where("properties.rollover", Operator::ne, true)) + rolling, -answer.consumed);
    answer.rollover = at_least_zero(std::min(left.round(0, Rounding::down), rolling));
    return answer;
}

}  // namespace polar

// ---------------------------------------------------------------------------------------------
// 8.5 Autumn: dossier sections 3 to 7
// ---------------------------------------------------------------------------------------------

namespace autumn {

// ---- words and numbers ----

using Step = FeeLine::Step;

// decimal.js divides to 20 significant digits.
Decimal divided(const Decimal& a, const Decimal& b) { return b.is_zero() ? Decimal() : Decimal::divide_significant(a, b, 20, Rounding::half_up); }

constexpr int amount_decimals = 10;  // tier results are rounded to these, half up

// Which of two words there is; without any it is the first.
bool is_second(const Node& at, std::string_view key, std::string_view first, std::string_view second) {
    return at.choice(key, std::array{std::pair(first, false), std::pair(second, true)}, std::string(first));
}

constexpr CurrencyRow currencies[] = {{"bif clp djf gnf jpy kmf krw mga pyg rwf ugx vnd vuv xaf xof xpf", {0, 1}},
                                      {"bhd jod kwd omr tnd", {3, 1000}}};

Currency currency_of(const std::string& code) { return currency_in(currencies, lowercase(code)); }

// Smallest units as Stripe takes them: three-decimal currencies are rounded to ten (7.10).
Decimal minor_units(const Decimal& amount, Currency currency) {
    if (currency.subunits == 1) return amount.round(0, Rounding::half_up);
    return (amount * 100).round(0, Rounding::half_up) * (currency.subunits == 1000 ? 10 : 1);
}

// Of resets, prices and usage windows (getCycleIntervalFunctions.ts:27).
constexpr std::pair<std::string_view, Stride> intervals[] = {
    {"minute", {0, micros_per_minute}}, {"hour", {0, micros_per_hour}},   {"day", every_day},  {"week", every_week}, {"month", every_month},
    {"quarter", every_quarter},         {"semi_annual", every_half_year}, {"year", every_year}};

Stride stride_of(std::string_view interval, std::int64_t count = 1) {
    const auto* row = find_by(intervals, row_name, interval);
    if (!row) refuse("interval", quote(interval) + " is not an interval");
    return repeated(row->second, count);
}

// The billing cycle around a moment; neither end is before the floor (getCycleStart.ts:25, getCycleEnd.ts:25).
Period cycle_around(Timestamp now, Timestamp anchor, Stride stride, Timestamp floor = Timestamp::min()) {
    const Period cycle = utc_cycle(stride, anchor).around(now);
    return {std::max(cycle.from, floor), std::max(cycle.to, floor)};
}

// Where the calendar's own cycles are counted from, weeks from a Monday.
Timestamp calendar_anchor(Stride stride) {
    constexpr std::int64_t a_monday = 4, week = 7 * micros_per_day;  // 5 January 1970
    return Timestamp(stride.months == 0 && stride.micros % week == 0 ? a_monday * micros_per_day : 0);
}

// The window of a usage limit: the billing cycle when there is an anchor, else the calendar's, with weeks from Monday; nothing when
// it never ends (getUsageWindowBounds.ts:21).
std::optional<Period> usage_window(std::string_view interval, Timestamp now, const std::optional<Timestamp>& anchor) {
    if (interval == "lifetime") return std::nullopt;
    const auto stride = stride_of(interval);
    return cycle_around(now, anchor.value_or(calendar_anchor(stride)), stride);
}

// ---- prices ----

// --- plan items ---

struct Item {
    bool volume = false;
    bool prepaid = false, usage_based = false;
    Decimal included = {}, billing_units = 1;
    std::vector<Tier> tiers = {};  // limits without the included units; the rate is for one pack of billing units
};

// The limits of tiers are in total units to users and beyond the included ones inside (7.2); "inf" stays.
Decimal internal_limit(const Decimal& limit, const Decimal& included) { return limit > 0 ? limit - included : limit; }
Decimal user_limit(const Decimal& limit, const Decimal& included) { return limit > 0 ? limit + included : limit; }

std::optional<Decimal> read_limit(const Node& at) {
    const auto found = at.find("to");
    if (!found || found->value() == "inf") return {};
    const auto limit = at.decimal("to");
    return limit == Decimal(-1) ? std::nullopt : limit;
}

void add_tier(Item& item, const std::optional<Decimal>& limit, const Decimal& amount, const Decimal& flat) {
    const auto above = item.tiers.empty() ? Decimal() : item.tiers.back().up_to.value_or(Decimal());
    item.tiers.push_back({.above = above, .up_to = limit, .rate = amount, .flat = flat, .from = above});
}

// The amounts in a currency: its own block where there is one, else the base's (7.10).
Node in_currency(const Node& at, const std::string& currency) {
    if (currency.empty() || !at.find("currencies")) return at;
    const auto blocks = at.object("currencies");
    return blocks.find(currency) ? blocks.object(currency) : at;
}

// Limits of tiers count the included units with `limits_include_included`.
Item read_item(const Node& at, const Decimal& included, bool limits_include_included, const std::string& currency = {}) {
    Item item;
    item.volume = is_second(at, "tier_behavior", "graduated", "volume");
    item.prepaid = at.text("billing_method") == "prepaid";
    item.usage_based = at.text("billing_method") == "usage_based";
    item.included = included;
    item.billing_units = at.above_zero("billing_units", 1);
    const auto amounts = in_currency(at, currency);
    for (const auto& each : amounts.list(amounts.find("usage_tiers") ? "usage_tiers" : "tiers")) {
        auto limit = read_limit(each);
        if (limit && limits_include_included) limit = internal_limit(*limit, item.included);
        add_tier(item, limit, each.number("amount"), each.number("flat_amount"));
    }
    if (const auto amount = amounts.decimal("amount"); amount && item.tiers.empty()) add_tier(item, {}, *amount, {});
    return item;
}

// Limits as users write them.
void show_limits(std::vector<FeeLine>& lines, const Decimal& included) {
    for (auto& line : lines) {
        if (line.from) line.from = user_limit(*line.from, included);
        if (line.to) line.to = user_limit(*line.to, included);
    }
}

// To 10 decimals, and with the quantity's sign: a negative quantity gives back what the positive one costs.
Priced finished(Priced priced, bool negative) {
    round_to(priced, priced.amount.round(amount_decimals, Rounding::half_up));
    if (!negative) return priced;
    Priced reversed;
    for (auto& line : priced.lines) {
        line.units = -line.units;
        line.flat = -line.flat;
        line.amount = -line.amount;
        reversed.add(std::move(line));
    }
    return reversed;
}

// 7.4: flat amounts play no part, units beyond the last limit are free.
Priced price_graduated(const Item& item, const Decimal& units) {
    auto tiers = item.tiers;
    for (auto& tier : tiers) {
        tier.rate = divided(tier.rate, item.billing_units);
        tier.flat = {};
    }
    return units.is_zero() ? Priced() : graduated(tiers, units);
}

// 7.5: all units, the included ones too, at the rate of the tier they reach; within the included units nothing.
Priced price_volume(const Item& item, const Decimal& included, const Decimal& units) {
    if (included > 0 && units <= included) return only(free_line(units));
    const auto* tier = tier_reaching(item.tiers, units - included);
    if (!tier) return {};
    auto line = tier_line(*tier, units);
    line.rate = divided(tier->rate, item.billing_units);
    line.amount = divided(units * tier->rate, item.billing_units) + tier->flat;
    return only(std::move(line));
}

// What a quantity costs: beyond the included units for graduated tiers, in all for volume. Less than none costs nothing, or with
// `allow_negative` gives back.
Priced price_quantity(const Item& item, const Decimal& included, const Decimal& quantity, bool allow_negative) {
    if (item.tiers.empty()) refuse("usage_tiers", "usage_tiers_required");
    const bool negative = quantity.is_negative() && allow_negative;
    const auto packs = begun_packages(negative ? quantity.abs() : at_least_zero(quantity), item.billing_units);  // before any tier is walked (7.3)
    const auto units = packs * item.billing_units;
    auto priced = item.volume ? price_volume(item, included, units) : price_graduated(item, units);
    show_limits(priced.lines, item.included);
    return finished(std::move(priced), negative);
}

// --- prepaid and usage-based items (7.6) ---

// The requested quantity includes the included units; packs are bought for the rest.
Decimal prepaid_packs(const Item& item, const Decimal& quantity) {
    return begun_packages(at_least_zero(quantity - item.included), item.billing_units);
}

Priced price_prepaid(const Item& item, const Decimal& quantity) {
    const auto paid = prepaid_packs(item, quantity) * item.billing_units;
    return price_quantity(item, item.included, item.volume ? paid + item.included : paid, true);
}

// Free items have their allowance for each product bought, priced ones once.
Decimal starting_balance(const Item& item, const Decimal& packs, const Decimal& products) {
    if (item.prepaid) return item.included + packs * item.billing_units;
    return item.usage_based ? item.included : item.included * products;
}

// Entities' overages are added first, then priced as one.
Priced price_overage(const Item& item, const std::vector<Decimal>& usages) {
    Decimal overage;
    for (const auto& usage : usages) overage += at_least_zero(usage - item.included);
    return price_quantity(item, {}, overage, true);
}

// --- credit systems (6) ---

struct CreditSystem {
    std::string id;
    std::map<std::string, Decimal> costs;  // credits for one unit, by metered feature
};

CreditSystem read_credit_system(const Node& at, std::string_view id_field) {
    CreditSystem system{at.text(id_field), {}};
    for (const auto& each : at.list("credit_schema")) {
        const auto amount = each.at_least(each.find("credit_cost") ? "credit_cost" : "credit_amount", 0).value_or(Decimal());
        system.costs[each.required_text("metered_feature_id")] = divided(amount, each.above_zero("feature_amount", 1));
    }
    return system;
}

// Credits for that many units of a feature, as a JavaScript number keeps them; the system's own units are credits already.
Decimal credits(const CreditSystem& system, const std::string& feature, const Decimal& units) {
    if (feature == system.id) return units;
    const auto* cost = value_at(system.costs, feature);
    if (!cost) refuse("feature_id", "invalid_request");
    return Decimal::divide_significant(*cost * units, 1, 17, Rounding::half_up);
}

// --- tokens: what a request to a model takes from an AI credit system (4.8; aiCreditSystemUtils.ts) ---

struct TokenKind {
    std::string_view field, rate;  // in the request, and in a model's prices
    std::string_view otherwise;    // the rate of models that have none of this kind
    bool in_context;               // long contexts have a rate of their own
};

constexpr std::array<TokenKind, 7> token_kinds{{{"input_tokens", "input", "input", true},
                                                {"output_tokens", "output", "output", true},
                                                {"cache_read_tokens", "cache_read", "input", true},
                                                {"cache_write_tokens", "cache_write", "input", true},
                                                {"audio_input_tokens", "input_audio", "input", false},
                                                {"audio_output_tokens", "output_audio", "output", false},
                                                {"reasoning_tokens", "reasoning", "output", false}}};

// USD for a million tokens, by the name of the rate; those of contexts of more tokens than a size go before the others.
using TokenRates = std::map<std::string, Decimal, std::less<>>;
struct Model {
    TokenRates rates = {};
    std::map<Decimal, TokenRates> contexts = {};
};

// What is added to a model's prices, in percent: as said of the model, else of its provider, else of all.
struct Markups {
    std::map<std::string, Decimal> models = {}, providers = {};
    std::optional<Decimal> otherwise = {};
    std::map<std::string, Model> custom = {};  // models without prices elsewhere: "custom/..."
};

TokenRates read_token_rates(const Node& at, bool context) {
    TokenRates rates;
    for (const auto& kind : token_kinds) {
        if (context && !kind.in_context) continue;
        if (const auto rate = at.at_least(kind.rate, 0)) rates.emplace(kind.rate, *rate);
    }
    return rates;
}

Model read_model(const Node& at) {
    Model model{read_token_rates(at, false)};
    for (const auto* needed : {"input", "output"}) {
        if (!model.rates.contains(needed)) at.refuse(needed, "is required");
    }
    const auto contexts = at.list("tiers");
    for (const auto& each : contexts) model.contexts[each.object("tier").number("size")] = read_token_rates(each, true);
    if (contexts.empty() && at.find("context_over_200k")) model.contexts[200000] = read_token_rates(at.object("context_over_200k"), true);
    return model;
}

// Of a feature, or of its "config".
Markups read_markups(const Node& feature) {
    Markups markups;
    for (const auto& at : {feature, feature.find("config") ? feature.object("config") : feature}) {
        if (const auto markup = at.at_least("default_markup", -100)) markups.otherwise = markup;
        for (const auto& [provider, each] : at.members("provider_markups")) {
            if (const auto markup = each.at_least("markup", -100)) markups.providers[provider] = *markup;
        }
        for (const auto& [model, each] : at.members("model_markups")) {
            if (const auto markup = each.at_least("markup", -100)) markups.models[model] = *markup;
            const auto input = each.at_least("input_cost", 0), output = each.at_least("output_cost", 0);
            if (input && output) markups.custom[model] = {{{"input", *input}, {"output", *output}}, {}};
        }
    }
    return markups;
}

Decimal markup_of(const Markups& markups, const std::string& model) {
    if (const auto* own = value_at(markups.models, model)) return *own;
    if (const auto* of_all = value_at(markups.providers, model.substr(0, model.find('/')))) return *of_all;
    return markups.otherwise.value_or(Decimal());
}

using Tokens = std::array<Decimal, token_kinds.size()>;

// The size of the context is its text, whether it was in a cache or not. Of a custom model other kinds of tokens than text cost nothing.
Priced price_tokens(const Model& model, const Tokens& tokens, bool custom, const Decimal& markup) {
    const auto larger = model.contexts.lower_bound(tokens[0] + tokens[2] + tokens[3]);
    const TokenRates* context = larger == model.contexts.begin() ? nullptr : &std::prev(larger)->second;
    const auto rate = [&](std::string_view name) -> std::optional<Decimal> {
        for (const auto* rates : {context, &model.rates}) {
            if (!rates) continue;
            if (const auto found = rates->find(name); found != rates->end()) return found->second;
        }
        return {};
    };
    Priced priced;
    for (std::size_t i = 0; i < (custom ? 2 : tokens.size()); ++i) {
        if (tokens[i].is_zero()) continue;
        const auto per_million = rate(token_kinds[i].rate);
        priced.add(units_line(tokens[i], (per_million ? *per_million : *rate(token_kinds[i].otherwise)) * Decimal::scaled(1, 6)));
    }
    if (!markup.is_zero()) {
        auto line = units_line(priced.amount, percent(markup));
        line.step = Step::percentage;
        priced.add(std::move(line));
    }
    return priced;
}

// ---- the catalogue ----

struct Feature {
    std::string id;
    bool flag = false;                    // boolean: there or not, nothing is counted
    std::set<std::string> names;          // of the events that use it
    CreditSystem system;                  // without costs when it is none
    std::optional<Markups> markups = {};  // of an AI credit system
};

Feature read_feature(const Node& at) {
    const auto names = at.texts("event_names");
    Feature feature{at.required_text("id"), at.text("type") == "boolean", {names.begin(), names.end()}, read_credit_system(at, "id")};
    if (at.text("type") == "ai_credit_system") feature.markups = read_markups(at);
    feature.names.insert(feature.id);
    return feature;
}

// One balance that a plan grants. Nothing resets what is granted once, nothing bills again what is sold once.
struct PlanItem {
    std::string plan;
    bool add_on = false;  // the plan comes beside a main one
    std::string feature;
    Item item;
    bool flag = false, unlimited = false;
    std::string entity_feature = {};           // granted to each entity of this kind, when not to the customer
    Decimal quantity;                          // bought of a prepaid one, the included units counted
    std::optional<Decimal> max_purchase = {};  // overage at most
    std::optional<Stride> reset = {}, billed = {};
};

// Rules of plan items (7.1).
void check_item(const Node& at, const Node& price, const Item& item) {
    const auto tiers = price.list("tiers");
    if (price.find("amount").has_value() == !tiers.empty()) refuse(price.path("amount"), "exactly one of amount and tiers is required");
    if (item.tiers.empty()) refuse(price.path("currencies"), "have no amount in the book's currency");
    if (!item.prepaid && !item.usage_based) refuse(price.path("billing_method"), "must be prepaid or usage_based");
    if (item.volume && !item.prepaid) refuse(price.path("tier_behavior"), "volume is for prepaid items only");
    if (!item.prepaid && at.find("proration")) refuse(at.path("proration"), "is for prepaid items only");
    const auto reset = at.find("reset");
    if (!item.prepaid && reset && price.find("interval") && reset->text("interval") != price.text("interval"))
        refuse(price.path("interval"), "may differ from the reset's for prepaid items only");
    for (std::size_t i = 0; i < item.tiers.size(); ++i) {
        const auto path = price.path("tiers") + "[" + std::to_string(i) + "]";
        const auto& tier = item.tiers[i];
        if (i < tiers.size() && !tiers[i].find("to")) refuse(path + ".to", "is required");
        if (i < tiers.size() && !tiers[i].find("amount") && !tiers[i].find("flat_amount")) refuse(path + ".amount", "is required");
        if (tier.rate.is_negative() || tier.flat.is_negative()) refuse(path + ".amount", "must not be negative");
        if (!tier.flat.is_zero() && (!item.volume || item.tiers.size() < 2)) refuse(path + ".flat_amount", "is for volume with several tiers only");
        if (tier.up_to && *tier.up_to <= tier.above) refuse(path + ".to", i == 0 ? "must be above included" : "must be above the tier before");
        if (!tier.up_to != (i + 1 == item.tiers.size())) refuse(path + ".to", "only the last tier is open, with \"inf\"");
    }
}

Item read_amounts(const Node& at, const std::string& currency) {
    const auto included = at.number("included");
    if (included.is_negative() || included > Decimal(10000000000000)) at.refuse("included", "must be from 0 to 10^13");
    if (!at.find("price")) return {.included = included};
    const auto price = at.object("price");
    auto item = read_item(price, included, true, currency);
    check_item(at, price, item);
    return item;
}

// Nothing for what happens once.
std::optional<Stride> read_interval(const Node& at) {
    if (const auto name = at.text("interval"); name == "one_off" || name == "lifetime") return {};
    return repeated(at.choice("interval", intervals), at.whole("interval_count", 1, 1000).value_or(1));
}

PlanItem read_plan_item(const Node& at, const Node& plan, const std::string& currency) {
    PlanItem item{.plan = plan.text("id"), .feature = at.required_text("feature_id"), .item = read_amounts(at, currency), .quantity = {}};
    item.add_on = plan.flag("add_on");
    item.unlimited = at.flag("unlimited");
    item.entity_feature = at.text("entity_feature_id");
    item.quantity = at.at_least("quantity", 0).value_or(item.item.included);
    if (const auto price = at.find("price")) {
        item.billed = price->find("interval") ? read_interval(*price) : every_month;
        const auto most = price->at_least("max_purchase", 0);
        if (most && *most > 0) item.max_purchase = most;  // 0 is no limit (7.8)
    }
    item.reset = at.find("reset") ? read_interval(at.object("reset")) : item.billed;
    if (!at.find("price")) item.billed = item.reset;
    return item;
}

// Autumn writes moments as milliseconds.
std::optional<Timestamp> read_moment(const Node& at, std::string_view key) {
    const auto found = at.find(key);
    if (!found || found->value().is_string()) return at.time(key);
    const auto ms = at.number(key);
    if (ms < 0 || ms > Decimal(Timestamp::max().micros() / 1000)) found->refuse("must be milliseconds since 1970");
    return Timestamp::from_unix_ms(ms);
}

// When a customer or an entity has had the plan, and how much of it.
struct Subscription {
    std::optional<Timestamp> started = {}, expires = {};
    std::optional<Timestamp> anchor = {};  // of its cycles; the calendar when absent
    Decimal products = 1;
    std::map<std::string, Decimal> quantities = {};  // bought of prepaid features
    bool active(Timestamp now) const { return (!started || *started <= now) && (!expires || now < *expires); }
};

Subscription read_subscription(const Node& at) {
    Subscription subscription{.started = read_moment(at, "started_at"), .expires = read_moment(at, "expires_at")};
    if (subscription.started && subscription.expires && *subscription.expires < *subscription.started)
        at.refuse("expires_at", "is before started_at");
    subscription.products = at.at_least("quantity", 0).value_or(Decimal(1));
    for (const auto& each : at.list("feature_quantities"))
        subscription.quantities[each.required_text("feature_id")] = each.at_least("quantity", 0).value_or(Decimal());
    // Cycles go on from the start, unless the current one began elsewhere: after a trial, or a change of plans.
    const auto current = read_moment(at, "current_period_start");
    subscription.anchor = subscription.started;
    if (current && (!subscription.started || cycle_around(*current, *subscription.started, every_month).from != *current))
        subscription.anchor = current;
    return subscription;
}

// Of a feature (7.8): at most so much in each window, of the events with these properties.
struct UsageLimit {
    Decimal limit;
    std::string interval;
    bool utc = false, enabled = true;
    std::vector<std::pair<std::string, std::string>> properties = {};
};

// What overage may come to, in place of the items' max_purchase.
struct SpendLimit {
    bool enabled = false, percentage = false;
    std::optional<Decimal> limit = {};
    std::optional<bool> skip_billing = {};
};

// What a customer, an entity or a plan says about features, by feature.
struct Controls {
    std::map<std::string, std::vector<UsageLimit>> usage_limits = {};
    std::map<std::string, SpendLimit> spend_limits = {};
    std::map<std::string, bool> overage_allowed = {};
};

UsageLimit read_usage_limit(const Node& at) {
    UsageLimit limit{at.decimal("limit").value_or(Decimal(-1)), at.text("interval"), is_second(at, "anchor", "billing_cycle", "utc"),
                     at.flag("enabled", true)};
    if (limit.limit.is_negative()) at.refuse("limit", "must be a number, and not negative");
    if (limit.interval != "lifetime") at.choice("interval", intervals);
    if (!at.find("filter")) return limit;
    const auto properties = at.object("filter").object("properties");
    for (const auto& [key, value] : properties.value().items()) {
        if (value.is_structured() || value.is_null()) properties.refuse(key, "must be text, a number or a boolean");
        std::string keep;
        limit.properties.emplace_back(key, scalar_text(scalar_of(value, keep)));
    }
    return limit;
}

SpendLimit read_spend_limit(const Node& at) {
    SpendLimit limit{at.flag("enabled"), is_second(at, "limit_type", "absolute", "usage_percentage"), at.at_least("overage_limit", 0)};
    if (at.find("skip_overage_billing")) limit.skip_billing = at.flag("skip_overage_billing");
    return limit;
}

Controls read_controls(const Node& holder) {
    Controls controls;
    if (!holder.find("billing_controls")) return controls;
    const auto at = holder.object("billing_controls");
    for (const auto& each : at.list("usage_limits")) controls.usage_limits[each.required_text("feature_id")].push_back(read_usage_limit(each));
    for (const auto& each : at.list("spend_limits")) controls.spend_limits[each.text("feature_id")] = read_spend_limit(each);
    for (const auto& each : at.list("overage_allowed")) controls.overage_allowed[each.required_text("feature_id")] = each.flag("enabled");
    return controls;
}

// The stricter of two plans' words (usageLimit.ts:141, spendLimit.ts:41): one that is enabled, then the smaller.
bool stricter(const SpendLimit& a, const SpendLimit& b) {
    if (a.enabled != b.enabled) return a.enabled;
    return a.limit && (!b.limit || (a.percentage == b.percentage && *a.limit < *b.limit));
}

bool stricter(const UsageLimit& a, const UsageLimit& b) {
    const auto a_day = [](const UsageLimit& limit) {
        const auto stride = limit.interval == "lifetime" ? Stride{12000, 0} : stride_of(limit.interval);  // for ever is a thousand years
        const Decimal days = stride.months % 12 == 0 ? stride.months / 12 * 365 : stride.months * 30;
        return divided(limit.limit, days + divided(Decimal(stride.micros), Decimal(micros_per_day)));
    };
    if (a.enabled != b.enabled) return a.enabled;
    const auto ours = a_day(a), theirs = a_day(b);
    return ours < theirs || (ours == theirs && a.utc && !b.utc);
}

// What several plans say together: of each feature the stricter word.
template <class Value, class Stricter>
void add_stricter(std::map<std::string, Value>& all, const std::map<std::string, Value>& more, const Stricter& stricter) {
    for (const auto& [feature, value] : more) {
        const auto [place, fresh] = all.try_emplace(feature, value);
        if (!fresh && stricter(value, place->second)) place->second = value;
    }
}

void add_controls(Controls& all, const Controls& more) {
    add_stricter(all.spend_limits, more.spend_limits, [](const SpendLimit& a, const SpendLimit& b) { return stricter(a, b); });
    add_stricter(all.overage_allowed, more.overage_allowed, [](bool a, bool) { return !a; });
    for (const auto& [feature, limits] : more.usage_limits) {
        auto& list = all.usage_limits[feature];
        for (const auto& limit : limits) {
            auto* same = find_by(list, &UsageLimit::properties, limit.properties);
            if (!same)
                list.push_back(limit);
            else if (stricter(limit, *same))
                *same = limit;
        }
    }
}

// A customer, or one of its entities.
struct Holder {
    std::string id;
    std::string feature = {};                                // the kind of an entity; empty: not told
    std::map<std::string, Subscription> subscriptions = {};  // by plan
    Controls controls = {};
    std::vector<Holder> entities = {};
};

Holder read_holder(const Node& at) {
    Holder holder{at.required_text("id"), at.text("feature_id")};
    for (const auto* list : {"subscriptions", "purchases"}) {
        for (const auto& each : at.list(list)) {
            if (each.text("status") != "scheduled") holder.subscriptions[each.required_text("plan_id")] = read_subscription(each);
        }
    }
    holder.controls = read_controls(at);
    for (const auto& entity : at.list("entities")) holder.entities.push_back(read_holder(entity));
    return holder;
}

// What a catalogue says.
struct Catalogue : Book::Impl {
    std::vector<Feature> features;
    std::map<std::string, Model> models;  // by "provider/model"
    std::vector<PlanItem> items;
    std::map<std::string, Controls> controls;      // by plan
    std::optional<std::vector<Holder>> customers;  // when absent any customer, who has all plans

    const Feature& feature(const std::string& id) const { return *find_by(features, &Feature::id, id); }
};

// --- the whole ---

// A text asked for is the text that the property is written as (aggregate_simple.pipe:38). With numbers, numbers are compared.
constexpr Coercion exact_text{.missing = {differ_any, empty_any},
                              .boolean = {{Meeting::number, Meeting::differ, Meeting::text}, as_written},
                              .number = {{Meeting::differ, Meeting::number, Meeting::text}, as_written},
                              .text = {as_written, as_written},
                              .structure = {differ_any, as_written}};

constexpr Rules rules{.name = "autumn", .filter = {.properties = &exact_text}, .numbers = {.missing = 1}};

// An event counts its value, 1 when it has none: the rules of that name say so.
Metric feature_metric(const std::string& feature) {
    return {.code = "autumn:" + feature, .event = feature, .aggregation = Aggregation::sum, .property = "value", .filter = {}, .rules = "autumn"};
}

// Features that are only named, by an item or a credit system, are metered ones without more.
void complete(Catalogue& book) {
    std::set<std::string> named;
    for (const auto& item : book.items) named.insert(item.feature);
    for (const auto& feature : book.features) {
        for (const auto& [member, cost] : feature.system.costs) named.insert(member);
    }
    for (const auto& feature : book.features) named.erase(feature.id);
    for (const auto& id : named) book.features.push_back({id, false, {id}, {}});
    for (auto& item : book.items) item.flag = book.feature(item.feature).flag;
}

void read_plan(Catalogue& book, const Node& at) {
    const auto id = at.required_text("id");
    if (book.controls.contains(id)) at.refuse("id", "is there twice");
    book.controls[id] = read_controls(at);
    if (at.list("items").empty()) at.refuse("has no items");
    for (const auto& each : at.list("items")) book.items.push_back(read_plan_item(each, at, book.currency_code));
}

void read(const Node& root, Catalogue& book) {
    const auto list = root.list("plans");
    book.currency_code = root.text("currency", "usd");
    book.currency = currency_of(book.currency_code);
    if (list.empty() || root.find("plan")) read_plan(book, root.object("plan"));
    for (const auto& each : list) read_plan(book, each);
    book.code = root.text("id", book.items.front().plan);
    std::set<std::string> ids, names;
    for (const auto& each : root.list("features")) {
        book.features.push_back(read_feature(each));
        if (!ids.insert(book.features.back().id).second) each.refuse("id", "is there twice");
    }
    for (const auto& [provider, each] : root.members("models")) {
        for (const auto& [name, model] : each.members("models")) {
            if (model.value().is_object() && !model.find("cost")) continue;  // models.dev knows some without prices
            book.models.emplace(provider + "/" + name, read_model(model.object("cost")));
        }
    }
    if (root.find("customers")) book.customers.emplace();
    for (const auto& each : root.list("customers")) book.customers->push_back(read_holder(each));
    complete(book);
    for (const auto& feature : book.features) {
        if (!feature.flag) names.insert(feature.names.begin(), feature.names.end());
    }
    for (const auto& name : names) book.metrics.push_back(feature_metric(name));
}

// ---- the account: the balances of a customer, and which of them pays ----

// --- balances: which pays, and whether there is enough (5.2, 7.7) ---

struct Balance {
    Decimal balance, starting;
    bool overage_allowed = false, unlimited = false;
    std::optional<Decimal> least = {};  // how far down overage may go
    Decimal cost = 1;                   // of one unit, in the balance's own
    std::string_view shares = {};       // those that share this share how far down they may go together
};

enum class OverageBehavior { cap, reject, overflow };  // overflow: no balance has a floor or ceiling

// Takes `units` off the balance, or gives them back when they are negative, as far as there is room to `bound`; the rest stays in `units`.
void take(Balance& balance, Decimal& units, const std::optional<Decimal>& bound) {
    const auto wanted = units * balance.cost;
    auto taken = wanted;
    if (bound)
        taken = wanted.is_negative() ? std::max(wanted, -at_least_zero(*bound - balance.balance))
                                     : std::min(wanted, at_least_zero(balance.balance - *bound));
    balance.balance = (balance.balance - taken).round(amount_decimals, Rounding::half_up);
    units -= taken == wanted ? units : divided(taken, balance.cost);
}

// How far down overage may go when others have part of what they share.
std::optional<Decimal> floor_of(const Balance& balance, const std::vector<Balance>& all) {
    auto least = balance.least;
    for (const auto& other : all) {
        if (least && &other != &balance && !other.shares.empty() && other.shares == balance.shares) *least += at_least_zero(-other.balance);
    }
    return least;
}

// What is left of `value` that no balance took (7.7): nothing where one is unlimited. First every balance goes to 0, in order; then usage goes on
// to the floors of those that allow overage, a refund to where each started. With reject nothing moves unless all of it fits.
Decimal settle(std::vector<Balance>& balances, const Decimal& value, OverageBehavior behavior) {
    if (std::ranges::any_of(balances, [](const Balance& each) { return each.unlimited; })) return {};
    const bool refund = value.is_negative(), overflows = behavior == OverageBehavior::overflow;
    auto changed = balances;
    auto left = value;
    for (auto& balance : changed) take(balance, left, Decimal());
    for (auto& balance : changed) {
        const auto bound = refund ? std::optional(balance.starting) : floor_of(balance, changed);
        if (refund || balance.overage_allowed) take(balance, left, overflows ? std::nullopt : bound);
    }
    for (auto& balance : changed) {
        if (overflows) take(balance, left, {});
    }
    left = left.round(amount_decimals, Rounding::half_up);
    if (behavior != OverageBehavior::reject || left.is_zero()) balances = std::move(changed);
    return left;
}

bool over_limit(const Check& check) { return check.usage_limit_left && check.required > *check.usage_limit_left; }

// Whether the units may be used that a check of a balance requires; first rule that applies (5.2).
bool allowed(const Check& check) {
    if (check.flag || check.unlimited || check.required.is_negative()) return true;
    if (over_limit(check)) return false;
    if (!check.overage_allowed) return check.balance >= check.required;
    if (!check.overage_limit) return true;
    return at_least_zero(*check.overage_limit - check.overage) + check.balance >= check.required;
}

// --- whose they are ---

// A balance of an item, held by the customer or by one of its entities.
struct Holding {
    const PlanItem* item;
    std::string entity;  // empty: the customer's
    const Subscription* subscription;
    Balance state;
    Decimal used = {};        // since the last reset, in the item's units
    std::int64_t events = 0;  // that used it

    std::optional<Cycle> cycle(std::optional<Stride> stride) const {
        if (!stride) return {};
        return utc_cycle(*stride, subscription->anchor.value_or(calendar_anchor(*stride)));
    }
    // The time since the last reset; all time since the start when there are none.
    Period around(std::optional<Stride> stride, Timestamp now) const {
        const auto cycle = this->cycle(stride);
        Period period = cycle ? cycle->around(now) : Period{};
        if (subscription->started) period.from = std::max(period.from, *subscription->started);
        return period;
    }
};

// Who asks, and the balances there are.
struct Account {
    const Catalogue& book;
    std::string customer, entity;
    Timestamp now;
    const Holder* holder = nullptr;                       // the customer in the catalogue
    std::map<std::string, const Subscription*> own = {};  // the customer's, by plan
    Controls inherited = {};                              // from these plans
    std::vector<Holding> holdings = {};
    std::set<std::string> entities = {};  // those whose balances are among them
    bool alone = false;                   // it is about the use by the entity alone

    // The entity, if the catalogue has it.
    const Holder* part(const std::string& of_entity) const { return holder ? find_by(holder->entities, &Holder::id, of_entity) : nullptr; }
    // What the entity says goes before what the customer says, and that before the plan (7.6).
    template <class Value>
    const Value* control(std::map<std::string, Value> Controls::*which, const std::string& feature, const std::string& of_entity) const {
        const Holder* part = this->part(of_entity);
        for (const Controls* controls : {part ? &part->controls : nullptr, holder ? &holder->controls : nullptr, &inherited}) {
            if (!controls) continue;
            if (const auto* found = value_at(controls->*which, feature)) return found;
        }
        return nullptr;
    }
};

// The events of a period that it is about.
AggregateQuery query_of(const Account& account, const Period& period) {
    AggregateQuery query;
    query.customer = account.customer;
    query.subscription = account.alone ? account.entity : "";
    query.period = period;
    return query;
}

Decimal bought_units(const PlanItem& item, const Subscription& subscription) {
    const auto* bought = value_at(subscription.quantities, item.feature);
    return bought ? *bought : item.quantity;
}

// The overage that a spend limit leaves to a feature (spendLimit.ts:6); nothing without one.
std::optional<Decimal> spend_limit(const Account& account, const std::string& feature, const std::string& entity) {
    const auto* control = account.control(&Controls::spend_limits, feature, entity);
    if (!control || !control->enabled) return {};
    if (!control->limit || !control->percentage) return control->limit;
    Decimal granted;
    for (const auto& holding : account.holdings) {
        const bool main = holding.item->feature == feature && !holding.item->add_on;
        if (main && (holding.entity.empty() || holding.entity == entity)) granted += holding.state.starting;
    }
    return granted.is_zero() ? std::nullopt : std::optional(percent(*control->limit) * granted);
}

void add_holding(Account& account, const PlanItem& item, const std::string& entity, const Subscription& subscription) {
    Holding holding{&item, entity, &subscription, {}};
    const auto packs = prepaid_packs(item.item, bought_units(item, subscription));
    holding.state.starting = holding.state.balance = starting_balance(item.item, packs, subscription.products);
    holding.state.unlimited = item.unlimited;
    const auto* allowed = account.control(&Controls::overage_allowed, item.feature, entity);
    holding.state.overage_allowed = allowed ? *allowed : item.item.usage_based;
    account.holdings.push_back(std::move(holding));
}

// Down to where overage may take each balance (7.8).
void set_floors(Account& account) {
    for (auto& holding : account.holdings) {
        auto most = spend_limit(account, holding.item->feature, holding.entity);
        if (most) holding.state.shares = holding.item->feature;
        if (!most) most = holding.item->max_purchase;
        if (most) holding.state.least = -*most;
    }
}

// An entity's balances: of the items that are granted to each entity of its kind, of all kinds when it is not told, and of its own plans.
void open_entity(Account& account, const std::string& entity) {
    if (!account.entities.insert(entity).second) return;
    const Holder* part = account.part(entity);
    for (const auto& item : account.book.items) {
        const auto* own = value_at(account.own, item.plan);
        if (!own || item.entity_feature.empty()) continue;
        if (!part || part->feature.empty() || part->feature == item.entity_feature) add_holding(account, item, entity, **own);
    }
    if (!part) return;
    for (const auto& item : account.book.items) {
        const auto* own = value_at(part->subscriptions, item.plan);
        if (own && own->active(account.now)) add_holding(account, item, entity, *own);
    }
}

// The subscriptions that the customer has at a moment, and what their plans say.
void open_plans(Account& account) {
    static const Subscription anyone;
    if (!account.book.customers) {
        for (const auto& item : account.book.items) account.own[item.plan] = &anyone;
    }
    if (account.holder) {
        for (const auto& [plan, subscription] : account.holder->subscriptions) {
            if (subscription.active(account.now)) account.own[plan] = &subscription;
        }
    }
    for (const auto& [plan, subscription] : account.own) {
        if (const auto* controls = value_at(account.book.controls, plan)) add_controls(account.inherited, *controls);
    }
}

// The balances that the customer has at a moment: of its own plans, and of its entities' plans.
Account open_account(const Catalogue& book, const std::string& customer, const std::string& entity, Timestamp now) {
    Account account{book, customer, entity, now, book.customers ? find_by(*book.customers, &Holder::id, customer) : nullptr};
    if (customer.empty()) refuse("customer", "is required");
    if (book.customers && !account.holder) not_found("customer", "customer_not_found");
    open_plans(account);
    for (const auto& item : book.items) {
        const auto* own = value_at(account.own, item.plan);
        if (own && item.entity_feature.empty()) add_holding(account, item, {}, **own);
    }
    if (!entity.empty()) open_entity(account, entity);
    if (account.holder) {
        for (const auto& part : account.holder->entities) open_entity(account, part.id);
    }
    set_floors(account);
    return account;
}

bool visible(const Holding& holding, const std::string& entity) { return entity.empty() || holding.entity.empty() || holding.entity == entity; }

// What a unit of the feature costs in the item's own units, 1 where that says 0 (runDeductionOnContextV2.lua:52); nothing when the item does
// not pay for it.
std::optional<Decimal> cost_of(const Catalogue& book, const PlanItem& item, const std::string& feature) {
    if (item.flag) return {};
    if (item.feature == feature) return Decimal(1);
    const auto* cost = value_at(book.feature(item.feature).system.costs, feature);
    if (!cost) return {};
    return cost->is_zero() ? Decimal(1) : *cost;
}

// The balances that pay for the feature's use by an entity, in the order in which they do (7.7).
std::vector<std::size_t> payers(const Account& account, const std::string& feature, const std::string& entity) {
    std::vector<std::size_t> order;
    for (std::size_t i = 0; i < account.holdings.size(); ++i) {
        if (visible(account.holdings[i], entity) && cost_of(account.book, *account.holdings[i].item, feature)) order.push_back(i);
    }
    const auto rank = [&](std::size_t i) {
        const auto& holding = account.holdings[i];
        const auto stride = holding.item->reset.value_or(Stride());
        return std::tuple(!holding.state.unlimited, holding.entity.empty() == !entity.empty(), holding.item->feature != feature, !holding.item->reset,
                          stride, std::string_view(holding.entity), holding.item->add_on, holding.state.overage_allowed,
                          holding.subscription->started.value_or(Timestamp::min()));
    };
    std::ranges::stable_sort(order, {}, rank);
    return order;
}

// What a use takes off the balances, as far as they reach.
struct Takings {
    struct One {
        std::size_t holding;
        Decimal units, left;
    };
    std::vector<One> list;
    bool whole = true;  // one balance covers all of it, or there is none
};

Takings takings_of(const Account& account, const std::string& feature, const std::string& entity, const Decimal& units) {
    const auto order = payers(account, feature, entity);
    std::vector<Balance> balances;
    for (const auto i : order) {
        balances.push_back(account.holdings[i].state);
        balances.back().cost = *cost_of(account.book, *account.holdings[i].item, feature);
    }
    const auto uncovered = settle(balances, units, OverageBehavior::cap);
    Takings takings;
    for (std::size_t i = 0; i < order.size(); ++i) {
        const auto& state = account.holdings[order[i]].state;
        const auto taken = state.unlimited && i == 0 ? units * balances[i].cost : state.balance - balances[i].balance;
        if (!taken.is_zero()) takings.list.push_back({order[i], taken, balances[i].balance});
    }
    takings.whole = order.empty() || (uncovered.is_zero() && takings.list.size() <= 1);
    return takings;
}

void apply(Account& account, const Takings& takings, std::int64_t events) {
    for (const auto& one : takings.list) {
        auto& holding = account.holdings[one.holding];
        holding.state.balance = one.left;
        holding.used += one.units;
        holding.events += events;
    }
}

// ---- measuring: what the events of the log took from the balances ----

// What the events of one name and entity used of a feature.
struct Use {
    std::string feature, name, entity;
    Measured row;
};

// Of these features, or of all when there are none.
std::vector<Use> uses_of(const Catalogue& book, const std::set<std::string>& features, const AggregateQuery& query, UsageSource& usage) {
    std::vector<Use> list;
    for (const auto& feature : book.features) {
        if (!features.empty() && !features.contains(feature.id)) continue;
        for (const auto& name : feature.names) {
            for (auto& row : usage.measure(feature_metric(name), query)) {
                const auto entity = row.group.empty() ? query.subscription : row.group[0].value_or("");
                if (row.events > 0) list.push_back({feature.id, name, entity, std::move(row)});
            }
        }
    }
    return list;
}

// The features whose use may touch the same balances: those that share a credit system, directly or through others.
std::set<std::string> related(const Catalogue& book, const std::string& feature) {
    std::set<std::string> all{feature};
    for (std::size_t before = 0; before != all.size();) {
        before = all.size();
        for (const auto& system : book.features) {
            std::set<std::string> members{system.id};
            for (const auto& [member, cost] : system.system.costs) members.insert(member);
            const bool touches = std::ranges::any_of(members, [&](const auto& member) { return all.contains(member); });
            if (touches) all.merge(members);
        }
    }
    return all;
}

// What is to be followed: the use of these features.
struct Course {
    std::set<std::string> features;
    bool counts = false;  // also how many events took something off each balance
};

bool concerns(const Course& course, const Holding& holding) { return course.features.contains(holding.item->feature); }

// The balances that are followed, and such as entities may have that the log has yet to name.
std::vector<Holding> followed(const Account& account, const Course& course) {
    auto list = account.holdings;
    for (const auto& item : account.book.items) {
        const auto* own = value_at(account.own, item.plan);
        if (own && !item.entity_feature.empty()) list.push_back({&item, {}, *own, {}});
    }
    std::erase_if(list, [&](const Holding& holding) { return !concerns(course, holding); });
    return list;
}

// All at once where that comes to the same, else event by event: with refunds, and when a balance ends its events are to be counted.
void take_use(Account& account, const Course& course, const Use& used, AggregateQuery query, UsageSource& usage) {
    const auto takings = takings_of(account, used.feature, used.entity, used.row.value);
    if (!used.row.falls && (takings.whole || !course.counts)) return apply(account, takings, used.row.events);
    if (!query.group_by.empty() && used.entity.empty()) query.filter = Filter::where("subscription", Operator::exists, false);
    query.group_by.clear();
    query.subscription = used.entity;
    for (const auto& step : usage.steps(feature_metric(used.name), query, std::numeric_limits<std::size_t>::max(), {}))
        apply(account, takings_of(account, used.feature, used.entity, step.value), 1);
}

// All that was used in a stretch of time without resets.
void spend(Account& account, const Course& course, const Period& period, UsageSource& usage) {
    auto query = query_of(account, period);
    const bool entities = std::ranges::any_of(account.book.items, [](const auto& item) { return !item.entity_feature.empty(); }) ||
                          std::ranges::any_of(account.holdings, [](const auto& holding) { return !holding.entity.empty(); });
    if (entities && !account.alone) query.group_by = {"subscription"};
    const auto uses = uses_of(account.book, course.features, query, usage);
    for (const auto& used : uses) {
        if (!used.entity.empty()) open_entity(account, used.entity);
    }
    set_floors(account);
    for (const auto& used : uses) take_use(account, course, used, query, usage);
}

void refill(Account& account, const Course& course, Timestamp at) {
    for (auto& holding : account.holdings) {
        const auto cycle = concerns(course, holding) ? holding.cycle(holding.item->reset) : std::nullopt;
        if (!cycle || cycle->around(at).from != at) continue;
        holding.state.balance = holding.state.starting;
        holding.used = {};
        holding.events = 0;
    }
}

// The month of the first use; now when there is none.
Timestamp first_use(const Account& account, const Course& course, UsageSource& usage) {
    auto query = query_of(account, {});
    query.bin = Bin::month;
    Timestamp first = account.now;
    for (const auto& used : uses_of(account.book, course.features, query, usage)) first = std::min(first, used.row.bin.value());
    return first;
}

// Where the history begins that today's balances follow from, with the oldest of the current cycles, and every reset after it; of very many the
// last ones.
std::set<Timestamp> turns(const Account& account, const Course& course, UsageSource& usage) {
    constexpr std::size_t most = 1000;
    Timestamp from = account.now;
    const auto holdings = followed(account, course);
    for (const auto& holding : holdings) from = std::min(from, holding.around(holding.item->reset, account.now).from);
    const bool resetting = std::ranges::any_of(holdings, [](const Holding& holding) { return holding.item->reset.has_value(); });
    if (from == Timestamp::min() && resetting) from = first_use(account, course, usage);
    std::set<Timestamp> moments;
    for (const auto& holding : holdings) {
        const auto cycle = holding.cycle(holding.item->reset);
        if (!cycle) continue;
        auto k = cycle->index(account.now);
        for (std::size_t i = 0; i < most && cycle->boundary(k) > from; ++i) moments.insert(cycle->boundary(k--));
    }
    while (moments.size() > most) moments.erase(moments.begin());
    moments.insert(from);
    return moments;
}

// Brings the balances up to now: what was used from reset to reset.
void follow(Account& account, const Course& course, UsageSource& usage) {
    const auto moments = turns(account, course, usage);
    for (auto at = moments.begin(); at != moments.end(); ++at) {
        refill(account, course, *at);
        const auto next = std::next(at);
        spend(account, course, {*at, next == moments.end() ? up_to(*at, account.now).to : *next}, usage);
    }
}

// ---- fees ----

// The balances of an item together, and what they come to (7.6): the units bought of a prepaid one, else the overage.
struct Billed {
    const Holding* first = nullptr;  // nothing when there are none
    Decimal units = {};
    std::int64_t events = 0;
    Priced priced = {};
};

Billed billed(const Account& account, const PlanItem& item) {
    Billed all;
    std::vector<Decimal> usages;
    for (const auto& holding : account.holdings) {
        if (holding.item != &item) continue;
        if (!all.first) all.first = &holding;
        all.units += holding.used;
        all.events += holding.events;
        usages.push_back(item.item.included - holding.state.balance);
        if (!item.item.prepaid) continue;
        all.priced.append(price_prepaid(item.item, bought_units(item, *holding.subscription)));
    }
    const auto* control = account.control(&Controls::spend_limits, item.feature, account.entity);
    const bool skipped = control && control->skip_billing.value_or(false);
    if (item.item.usage_based && !skipped) all.priced = price_overage(item.item, usages);
    return all;
}

// Of a feature: so many units, and what they come to.
Fee fee_of(const Catalogue& book, const std::string& feature, const Decimal& units, std::int64_t events, Priced priced) {
    auto fee = book.priced_fee(units, std::move(priced));
    fee.charge = feature;
    fee.metric = feature_metric(feature).code;
    fee.events = events;
    fee.amount_cents = minor_units(fee.amount, book.currency);
    return fee;
}

// Of a period, or else of the billing cycle around now.
Fee fee_of(const Account& account, const PlanItem& item, Billed billed, const std::optional<Period>& period = {}) {
    auto fee = fee_of(account.book, item.feature, billed.units, billed.events, std::move(billed.priced));
    fee.customer = account.customer;
    fee.subscription = account.entity;
    fee.period = period.value_or(billed.first->around(item.billed, account.now));
    return fee;
}

// Balances that share no feature are followed apart: their resets do not cut each other's time.
void follow_all(Account& account, UsageSource& usage) {
    std::set<std::string> seen;
    for (const auto& item : account.book.items) {
        if (seen.contains(item.feature)) continue;
        const Course course{related(account.book, item.feature), true};
        follow(account, course, usage);
        seen.insert(course.features.begin(), course.features.end());
    }
}

// --- what may be used ---

// A feature's balances together, as one who may use them sees them; nothing when there are none.
std::optional<Check> balances_of(const Account& account, const std::string& feature, const std::string& entity) {
    std::optional<Check> check;
    Decimal most;
    bool limited = false, unlimited_overage = false;
    for (const auto& holding : account.holdings) {
        if (holding.item->feature != feature || !visible(holding, entity)) continue;
        const auto& [item, state] = std::tie(*holding.item, holding.state);
        if (!check) check.emplace(Check{.feature = feature});
        check->flag |= item.flag;
        check->unlimited |= state.unlimited;
        check->overage_allowed |= state.overage_allowed;
        check->granted += state.starting;
        check->usage += holding.used;
        check->balance += at_least_zero(state.balance);
        check->overage += at_least_zero(-state.balance);
        limited |= item.item.usage_based;
        unlimited_overage |= item.item.usage_based && !item.max_purchase;
        if (item.item.usage_based) most += item.max_purchase.value_or(Decimal());
        if (!item.reset) continue;
        const auto reset = holding.around(item.reset, account.now).to;
        check->next_reset = std::min(check->next_reset.value_or(reset), reset);
    }
    if (!check) return {};
    check->overage_limit = spend_limit(account, feature, entity);
    if (!check->overage_limit && limited && !unlimited_overage) check->overage_limit = most;
    return check;
}

// Credits that one unit of a member costs; the system's own units are credits.
std::map<std::string, Decimal> costs_of(const Feature& feature) {
    auto costs = feature.system.costs;
    costs[feature.id] = 1;
    return costs;
}

bool holds_for(const UsageLimit& limit, const json& properties) {
    return std::ranges::all_of(limit.properties, [&](const auto& wanted) { return property_text(properties, wanted.first) == wanted.second; });
}

// Where the cycles of the feature's balances are counted from, when that is known.
std::optional<Timestamp> anchor_of(const Account& account, const std::string& feature, const std::string& entity) {
    const auto found =
        std::ranges::find_if(account.holdings, [&](const Holding& each) { return each.item->feature == feature && visible(each, entity); });
    return found == account.holdings.end() ? std::nullopt : found->subscription->anchor;
}

// What is left of the usage limits of a feature that hold for the event; nothing without such limits (7.8).
std::optional<Decimal> headroom(const Account& account, const std::string& feature, const Event& event, UsageSource& usage) {
    const auto* limits = account.control(&Controls::usage_limits, feature, event.subscription);
    if (!limits) return {};
    const Holder* part = account.part(event.subscription);
    const bool own = part && part->controls.usage_limits.contains(feature);  // then only the entity's own use counts
    std::optional<Decimal> least;
    for (const auto& limit : *limits) {
        if (!limit.enabled || !holds_for(limit, event.properties)) continue;
        const auto anchor = limit.utc ? std::nullopt : anchor_of(account, feature, event.subscription);
        auto query = query_of(account, usage_window(limit.interval, account.now, anchor).value_or(Period()));
        if (own) query.subscription = event.subscription;
        for (const auto& [property, text] : limit.properties) query.filter.parts.push_back(Filter::equals(property_field(property), text));
        Decimal left = limit.limit;
        for (const auto& [member, cost] : costs_of(account.book.feature(feature))) {
            for (const auto& used : uses_of(account.book, {member}, query, usage)) left -= used.row.value * cost;
        }
        least = std::min(least.value_or(left), at_least_zero(left));
    }
    return least;
}

// The balance that answers for the feature (5.3): its own if that allows it, else a credit system's.
std::string answering(const Account& account, const Event& event, const Decimal& required, UsageSource& usage) {
    const auto held = [&](const std::string& feature) { return balances_of(account, feature, event.subscription); };
    const auto allows = [&](const std::string& feature) {
        auto check = held(feature);
        if (!check) return false;
        check->required = required;  // in the feature's units, also for credits
        check->usage_limit_left = headroom(account, feature, event, usage);
        return allowed(*check);
    };
    std::vector<std::string> systems, owned;
    for (const auto& feature : account.book.features) {
        if (!feature.system.costs.contains(event.name)) continue;
        systems.push_back(feature.id);
        if (held(feature.id)) owned.push_back(feature.id);
    }
    if (systems.empty() || allows(event.name)) return event.name;
    if (const auto first = std::ranges::find_if(owned, allows); first != owned.end()) return *first;
    return !owned.empty() ? owned.front() : held(event.name) ? event.name : systems.front();
}

// ---- operations ----

// The AI credit system that a request names; without one it is the only one there is.
const Feature& ai_system(const std::vector<Feature>& features, const std::string& id) {
    std::vector<const Feature*> found;
    for (const auto& each : features) {
        if (id.empty() ? each.markups.has_value() : each.id == id) found.push_back(&each);
    }
    if (found.empty()) not_found("feature_id", "feature_not_found");
    if (found.size() > 1 || !found[0]->markups) refuse("feature_id", "invalid_request");
    return *found[0];
}

struct Operations final : Catalogue {
    bool serves(const std::string&, const std::string& customer) const override {
        return !customer.empty() && (!customers || find_by(*customers, &Holder::id, customer));
    }
    bool has_balances() const override { return true; }
    bool knows_feature(const std::string& id) const override { return find_by(features, &Feature::id, id) != nullptr; }
    std::vector<std::string> charge_names(const std::string& metric) const override {
        std::set<std::string> names;
        for (const auto& each : items) {
            if (!each.flag && metric == "autumn:" + each.feature) names.insert(each.feature);
        }
        return {names.begin(), names.end()};
    }

    // That of the first item that is billed by the period.
    Period period_around(const UsageQuery& query, Timestamp at) const override {
        const auto account = open_account(*this, query.customer, query.subscription, at);
        for (const Holding& holding : account.holdings) {
            if (holding.item->billed) return holding.around(holding.item->billed, at);
        }
        return this_month(at);
    }

    // Of the period asked for, in which nothing is reset; else of every item's billing cycle around now, as far as it has come.
    Fees usage(const UsageQuery& asked, Timestamp now, UsageSource& usage) const override {
        auto account = open_account(*this, asked.customer, asked.subscription, now);
        account.alone = !asked.subscription.empty();
        if (account.alone) std::erase_if(account.holdings, [&](const Holding& holding) { return !visible(holding, asked.subscription); });
        if (asked.period) {
            spend(account, {{}, true}, *asked.period, usage);
        } else {
            follow_all(account, usage);
        }
        std::vector<Fee> list;
        for (const auto& item : items) {
            const auto all = billed(account, item);
            if (all.first && !item.flag) list.push_back(fee_of(account, item, all, asked.period));
        }
        return sum_up(std::move(list));
    }

    // What the event adds to the bill of the cycle under way.
    Fees estimate_fees(const Event& event, Timestamp now, UsageSource& usage) const override {
        auto before = open_account(*this, event.customer, event.subscription, now);
        std::set<std::string> used;
        for (const auto& feature : features) {
            if (feature.names.contains(event.name)) used.merge(related(*this, feature.id));
        }
        if (used.empty()) not_found("name", "no feature is used by events named " + event.name);
        follow(before, {used}, usage);
        auto after = before;
        const auto units = event.value.value_or(Decimal(1));
        for (const auto& feature : features) {
            if (feature.names.contains(event.name)) apply(after, takings_of(after, feature.id, event.subscription, units), 1);
        }
        std::vector<Fee> list;
        for (const auto& item : items) {
            const auto earlier = billed(before, item), later = billed(after, item);
            const Billed added{later.first, later.units - earlier.units, 1, difference(later.priced, earlier.priced)};
            if (!added.units.is_zero()) list.push_back(fee_of(after, item, added));
        }
        return sum_up(std::move(list));
    }

    Fee price(std::string_view charge, const Decimal& units, std::int64_t events) const override {
        for (const auto& item : items) {
            if (item.flag || item.feature != charge) continue;
            Priced priced;
            if (!item.item.tiers.empty()) priced = item.item.prepaid ? price_prepaid(item.item, units) : price_overage(item.item, {units});
            return fee_of(*this, item.feature, units, events, std::move(priced));
        }
        not_found("charge", "charge_not_found");
    }

    Fee price_tokens(const json& request) const override {
        const Node at(request);
        const auto& system = ai_system(features, at.text("feature_id"));
        const auto id = at.required_text("model_id");
        const bool custom = id.starts_with("custom/");
        const auto& known = custom ? system.markups->custom : models;
        const auto* model = value_at(known, id);
        if (!model) refuse("model_id", "invalid_request");
        Tokens tokens;
        for (std::size_t i = 0; i < tokens.size(); ++i) {
            tokens[i] = at.number(token_kinds[i].field);
            if (tokens[i].is_negative() || tokens[i] != tokens[i].round(0, Rounding::down))
                at.refuse(token_kinds[i].field, "must be a whole number, and not negative");
        }
        auto priced = autumn::price_tokens(*model, tokens, custom, markup_of(*system.markups, id));
        const auto cost = priced.amount;
        return fee_of(*this, system.id, cost, 1, std::move(priced));
    }

    Check check(const Event& event, Timestamp now, UsageSource& usage) const override {
        if (!knows_feature(event.name)) not_found("name", "feature_not_found");
        const auto units = event.value.value_or(Decimal(1));
        auto account = open_account(*this, event.customer, event.subscription, now);
        follow(account, {related(*this, event.name)}, usage);
        const auto feature = answering(account, event, units, usage);
        const auto held = balances_of(account, feature, event.subscription);
        auto check = held.value_or(Check{.feature = feature});
        check.required = units;
        check.usage_limit_left = headroom(account, feature, event, usage);
        if (feature != event.name) {
            const auto& system = this->feature(feature).system;
            check.required = credits(system, event.name, units);
            if (const auto members = headroom(account, event.name, event, usage)) {
                const auto left = credits(system, event.name, *members);
                check.usage_limit_left = std::min(check.usage_limit_left.value_or(left), left);
            }
        }
        check.allowed = held && allowed(check);
        if (!check.allowed) check.reason = !held ? "no_balance" : over_limit(check) ? "usage_limit" : "insufficient_balance";
        if (!check.overage_allowed) check.overage_limit.reset();
        return check;
    }
};

// ---- analytics: what events.aggregate answers (3) ----

// What an analytics range covers: the bins of the list, and the total beside them. Its last moment, a whole second, belongs to it.
struct Ranges {
    Period list, total;
};

// Without a billing cycle its ranges are the last day (aggregate.ts:90). The total of a range of days begins earlier than its list, with
// the day when bins are days and else with the hour (getCountAndSum.ts:79).
Ranges named_ranges(std::string_view name, Bin bin, Timestamp now, const std::optional<BillingCycle>& cycle) {
    const bool days = name.ends_with('h') || name.ends_with('d');
    const Period period = named_period(days || cycle ? name : "24h", cut(now, micros_per_second), cycle);
    const auto list = up_to(period.from, period.to);
    if (!days && cycle) return {list, list};
    return {list, {cut(list.from, bin == Bin::day ? micros_per_day : micros_per_hour), list.to}};
}

// Milliseconds are cut off at both ends (aggregate.ts:101).
Ranges custom_ranges(Timestamp from, Timestamp to) {
    const auto range = up_to(cut(from, micros_per_second), cut(to, micros_per_second));
    return {range, range};
}

constexpr std::string_view other_groups = "AUTUMN_RESERVED";

// The hours whose beginning belongs to the range: an event counts with its hour (aggregate_simple.pipe:30).
Period whole_hours(const Period& range) {
    const Timestamp from = cut(range.from, micros_per_hour);
    return {from == range.from ? from : from + std::chrono::hours(1), cut(range.to, micros_per_hour) + std::chrono::hours(1)};
}

// What the vendor's question cannot say (eventsAggregateParams.ts:5).
void check_analytics(const AnalyticsQuery& asked, std::span<const Metric> metrics) {
    const auto adds_up = [](const Metric& each) { return each.aggregation == Aggregation::sum || each.aggregation == Aggregation::count; };
    if (asked.metrics.empty()) refuse("metrics", "are required");
    if (!std::ranges::all_of(metrics, adds_up)) refuse("metrics", "must be sums or counts");
    if (asked.bin != Bin::none && asked.bin != Bin::hour && asked.bin != Bin::day && asked.bin != Bin::week && asked.bin != Bin::month)
        refuse("bin", "must be an hour, day, week or month");
    if (asked.group_by.size() > 1) refuse("group_by", "must be one field");
    if (asked.top < 0 || asked.top > 250) refuse("top", "must be from 1 to 250, or 0 for 9");
    if (!asked.time_zone.empty() && asked.time_zone != "UTC") refuse("time_zone", "must be UTC");
    if (asked.week_start != std::chrono::Monday) refuse("week_start", "must be a Monday");
    if (asked.billing_anchor) refuse("billing_anchor", "is not known to these rules");
}

// The period's end, which does not belong to it, is the vendor's one moment later.
Ranges ranges_of(const AnalyticsQuery& asked, Bin bin, Timestamp now) {
    if (!asked.period) return named_ranges(asked.range, bin, now, asked.billing_cycle);
    check_period(*asked.period);
    return custom_ranges(asked.period->from, last_moment(*asked.period));
}

// Bins that begin after now are left out, which no event can be in.
std::vector<Timestamp> bins_until(Timestamp now, const Period& range, Bin bin, std::size_t metrics) {
    const BinGrid grid(range, {.bin = bin});
    if (grid.count() > static_cast<std::int64_t>(limits::aggregate_rows / metrics))
        throw Error(ErrorCode::too_large, "bin", "the answer has more than " + std::to_string(limits::aggregate_rows) + " points");
    std::vector<Timestamp> starts;
    for (std::int64_t i = 0; i < grid.count() && grid.start(i) <= now; ++i) starts.push_back(grid.start(i));
    return starts;
}

Decimal shown(const Decimal& value) { return value.round(10, Rounding::half_up); }

// Of one metric, by group: the rest last, and one without a name where nothing is grouped.
using GroupKey = std::pair<bool, std::string>;
using GroupItems = std::map<GroupKey, AnalyticsItem>;

// With a point for every bin.
AnalyticsItem& item_at(GroupItems& items, const GroupKey& key, const Metric& metric, const std::vector<Timestamp>& bins, bool grouped) {
    const auto [place, fresh] = items.try_emplace(key, AnalyticsItem{.metric = metric.code, .rest = key.first});
    auto& item = place->second;
    if (!fresh) return item;
    if (grouped) item.group = {key.first ? std::nullopt : std::optional(key.second)};
    if (key.first) item.vendor = {{"group", other_groups}};
    for (const auto start : bins) item.points.push_back({.start = start});
    return item;
}

// What the metric comes to. The greatest groups of a bin keep their names, its rest goes together (aggregate_groupable.pipe:238). Events without
// a group, or of one without a name, are in none.
GroupItems items_of(const Metric& metric, const std::vector<Measured>& rows, const std::vector<Timestamp>& bins, bool grouped, std::size_t most) {
    std::map<Timestamp, std::vector<const Measured*>> by_bin;
    for (const auto& row : rows) {
        if (!grouped || !row.group[0].value_or("").empty()) by_bin[*row.bin].push_back(&row);
    }
    GroupItems items;
    for (std::size_t i = 0; i < bins.size(); ++i) {
        auto& cells = by_bin[bins[i]];
        std::ranges::stable_sort(cells, std::ranges::greater(), &Measured::value);
        for (std::size_t place = 0; place < cells.size(); ++place) {
            const bool rest = grouped && place >= most;
            auto& item = item_at(items, {rest, grouped && !rest ? *cells[place]->group[0] : ""}, metric, bins, grouped);
            item.usage += cells[place]->value;
            item.events += cells[place]->events;
            item.points[i].usage += cells[place]->value;
            item.points[i].events += cells[place]->events;
        }
    }
    return items;
}

// Every metric has an item for every group of any of them; without groups there is no item.
std::vector<AnalyticsItem> all_items(std::vector<GroupItems>& by_metric, std::span<const Metric> metrics, const std::vector<Timestamp>& bins,
                                     bool grouped) {
    std::set<GroupKey> keys;
    if (!grouped) keys.emplace(false, "");
    for (const auto& items : by_metric) {
        for (const auto& [key, item] : items) keys.insert(key);
    }
    if (metrics.size() * bins.size() * keys.size() > limits::aggregate_rows)
        throw Error(ErrorCode::too_large, "group_by", "the answer has more than " + std::to_string(limits::aggregate_rows) + " points");
    std::vector<AnalyticsItem> all;
    for (std::size_t i = 0; i < metrics.size(); ++i) {
        for (const auto& key : keys) {
            auto& item = all.emplace_back(std::move(item_at(by_metric[i], key, metrics[i], bins, grouped)));
            item.usage = shown(item.usage);
            for (auto& point : item.points) point.usage = shown(point.usage);
        }
    }
    return all;
}

// Of the metrics that have events, grouped or not. With a filter they go by the moment, not the hour, and their period may begin before the
// list's (getCountAndSum.ts:79 and 166).
std::vector<AnalyticsTotal> totals_of(std::span<const Metric> metrics, AggregateQuery query, const Period& range, UsageSource& usage) {
    query.group_by.clear();
    query.period = query.filter.empty() ? whole_hours(range) : range;
    std::vector<AnalyticsTotal> totals;
    if (query.period.from >= query.period.to) return totals;
    for (const auto& metric : metrics) {
        const auto row = usage.measure(metric, query).at(0);
        if (row.events > 0) totals.push_back({metric.code, shown(row.value), row.events});
    }
    return totals;
}

// events.aggregate: one question to the source for each metric's bins, and one for its total. `metrics` are those asked for.
Analytics analytics(const AnalyticsQuery& asked, std::span<const Metric> metrics, Timestamp now, UsageSource& usage) {
    check_analytics(asked, metrics);
    const Bin bin = asked.bin == Bin::none ? Bin::day : asked.bin;
    const auto ranges = ranges_of(asked, bin, now);
    const auto bins = bins_until(now, ranges.list, bin, metrics.size());
    auto hours = asked;
    hours.period = whole_hours(ranges.list);
    hours.top = 0;
    hours.fill = false;
    auto query = aggregate_query(hours);
    Analytics answer{.period = ranges.list};
    answer.totals = totals_of(metrics, query, ranges.total, usage);
    query.bin = bin;
    const bool grouped = !asked.group_by.empty();
    std::vector<GroupItems> items;
    for (const auto& metric : metrics) {
        const auto rows = query.period.from < query.period.to ? usage.measure(metric, query) : std::vector<Measured>();
        items.push_back(items_of(metric, rows, bins, grouped, static_cast<std::size_t>(asked.top == 0 ? 9 : asked.top)));
    }
    answer.items = all_items(items, metrics, bins, grouped);
    return answer;
}

}  // namespace autumn

// ---------------------------------------------------------------------------------------------
// 8.6 OpenMeter: its meters are metrics, under these rules
// ---------------------------------------------------------------------------------------------

namespace openmeter {

// ClickHouse's JSON_VALUE makes a text of every property, an empty one where there is none; all filters compare texts (meter_query.go:351).
constexpr Coercion json_value{.missing = {empty_any, empty_any},
                              .boolean = {text_any, text_any},
                              .number = {text_any, text_any},
                              .text = {text_any, text_any},
                              .structure = {empty_any, empty_any},
                              .null = "null"};

// A null is no value of a unique count, nor is the text that it is written as (meter_query.go:193).
constexpr Rules rules{.name = "openmeter",
                      .filter = {.properties = &json_value},
                      .numbers = {.text = NumberRules::Text::number, .missing = {}},
                      .groups = Blank::written,
                      .values = Blank::written,
                      .uncounted = "null",
                      .keeps_absent = true};

}  // namespace openmeter

// ---------------------------------------------------------------------------------------------
// 8.7 Vendors by name
// ---------------------------------------------------------------------------------------------

// ---- books ----

template <class Operations>
std::shared_ptr<Book::Impl> load(const json& catalogue) {
    auto book = std::make_shared<Operations>();
    read(Node(catalogue), *book);
    return book;
}

constexpr std::pair<std::string_view, std::shared_ptr<Book::Impl> (*)(const json&)> book_vendors[] = {{"lago", load<lago::Operations>},
                                                                                                      {"flexprice", load<flexprice::Operations>},
                                                                                                      {"polar", load<polar::Operations>},
                                                                                                      {"autumn", load<autumn::Operations>}};

// ---- rules by name ----

constexpr std::array<Rules, 9> all_rules{{
    {.name = ""},
    lago::rules,
    flexprice::metered_rules,
    flexprice::event_rules,
    polar::quantity_rules,
    polar::billing_rules,
    polar::list_rules,
    autumn::rules,
    openmeter::rules,
}};

const Rules& rules_named(std::string_view name, const char* field = "metric.rules") {
    const auto* rules = find_by(all_rules, &Rules::name, name);
    if (!rules) refuse(field, quote(name) + " are not known");
    return *rules;
}

// The cost of each event alone, in billionths of the currency's unit, under the first book that prices it; 0 when none does (FlexPrice, 7.2).
std::vector<Decimal> nano_costs(std::span<const std::optional<Event>> events, std::span<const Book::Impl* const> books) {
    std::vector<std::optional<Decimal>> costs(events.size());
    for (const Book::Impl* book : books) {
        const auto found = book->event_costs(events);
        for (std::size_t i = 0; i < events.size(); ++i) {
            if (!costs[i]) costs[i] = found[i];
        }
    }
    std::vector<Decimal> nanos;
    for (const auto& cost : costs) nanos.push_back(cost.value_or(Decimal()) * 1000000000);
    return nanos;
}

// ---- analytics: whose answer ----

// What an answer is drawn from, all of one moment.
struct AnalyticsSource {
    std::span<const Metric> metrics;
    std::span<const Book::Impl* const> books;  // of each the version in force
    Timestamp now;
    UsageSource& usage;
};

struct AnalyticsRules {
    std::string_view name;
    std::string_view range;  // when neither a period nor a range is given; all of time when empty
    std::chrono::weekday week_start;
    bool drops_unused;  // items without usage, events, points and commitment are left out (FlexPrice, 6.5)
    Analytics (*answer)(const AnalyticsQuery&, const AnalyticsRules&, const AnalyticsSource&);
};

// What the first book says that prices the metric for the customer; without one just what is measured.
std::vector<AnalyticsItem> items_of(const Metric& metric, const AnalyticsQuery& query, const AnalyticsSource& source) {
    for (const Book::Impl* book : source.books) {
        if (!book->serves(query.subscription, query.customer)) continue;
        if (auto items = book->analytics(metric, query, source.now, source.usage)) return std::move(*items);
    }
    return measured_items(metric, query, source.usage);
}

void add_items(std::vector<AnalyticsItem> items, bool drops_unused, Analytics& answer) {
    for (auto& item : items) {
        if (drops_unused && item.usage.is_zero() && item.events == 0 && item.points.empty() && item.vendor.is_null()) continue;
        if (answer.currency.empty()) answer.currency = item.currency;
        if (!item.currency.empty() && item.currency == answer.currency) {
            answer.cost += item.cost;
            answer.discount += item.discount;
        }
        answer.items.push_back(std::move(item));
    }
}

Analytics metered_analytics(const AnalyticsQuery& asked, const AnalyticsRules& rules, const AnalyticsSource& source) {
    AnalyticsQuery query = asked;
    if (!query.period) query.period = query.range.empty() ? Period() : named_period(query.range, source.now, query.billing_cycle);
    Analytics answer{.period = *query.period};
    for (Metric metric : source.metrics) {
        // What is added to a value from before the period is in no analytics (FlexPrice, 6.5).
        if (rules_named(metric.rules).carrying == Carrying::added) metric.recurring = false;
        add_items(items_of(metric, query, source), rules.drops_unused, answer);
        answer.totals.push_back(measured_total(metric, query, source.usage));
        if (answer.items.size() > limits::aggregate_rows) Slots::throw_too_many_rows();
    }
    return answer;
}

Analytics autumn_analytics(const AnalyticsQuery& query, const AnalyticsRules&, const AnalyticsSource& source) {
    return autumn::analytics(query, source.metrics, source.now, source.usage);
}

constexpr std::array<AnalyticsRules, 3> analytics_rules{{{"", "", std::chrono::Monday, false, metered_analytics},
                                                         {"flexprice", "7d", std::chrono::Sunday, true, metered_analytics},
                                                         {"autumn", "1bc", std::chrono::Monday, false, autumn_analytics}}};

const AnalyticsRules& analytics_rules_named(std::string_view name) {
    const auto* rules = find_by(analytics_rules, &AnalyticsRules::name, name);
    if (!rules) refuse("rules", quote(name) + " have no analytics");
    return *rules;
}

Analytics analytics(AnalyticsQuery query, const AnalyticsSource& source) {
    const AnalyticsRules& rules = analytics_rules_named(query.rules);
    if (query.period && !query.range.empty()) refuse("range", "does not go with a period");
    if (!query.period && query.range.empty()) query.range = rules.range;
    if (!query.week_start) query.week_start = rules.week_start;
    return rules.answer(query, rules, source);
}

bool deeper_than(const json& value, std::size_t levels) {
    if (!value.is_structured()) return false;
    return levels == 0 || std::any_of(value.begin(), value.end(), [&](const json& each) { return deeper_than(each, levels - 1); });
}

// A catalogue is copied and written out level by level. Filters of the greatest depth have two levels each.
void check_depth(const json& catalogue) {
    constexpr auto levels = 4 * limits::json_depth;
    if (!catalogue.is_object()) return;
    for (const auto& [key, value] : catalogue.items()) {
        if (deeper_than(value, levels)) throw Error(ErrorCode::bad_value, key, "nested more than " + std::to_string(levels) + " deep");
    }
}

}  // namespace

Book Book::lago(const json& catalogue) { return of("lago", catalogue); }
Book Book::flexprice(const json& catalogue) { return of("flexprice", catalogue); }
Book Book::polar(const json& catalogue) { return of("polar", catalogue); }
Book Book::autumn(const json& catalogue) { return of("autumn", catalogue); }

Book Book::of(std::string_view vendor, const json& catalogue) {
    check_depth(catalogue);
    const auto* row = find_by(book_vendors, row_name, vendor);
    if (!row) throw Error(ErrorCode::unsupported, "vendor", "no books of \"" + std::string(vendor) + "\"");
    auto book = row->second(catalogue);
    book->vendor = vendor;
    book->source = catalogue;
    return Book(std::move(book));
}

const std::string& Book::vendor() const noexcept { return impl_->vendor; }
const std::string& Book::code() const noexcept { return impl_->code; }
const json& Book::source() const noexcept { return impl_->source; }
std::vector<Metric> Book::metrics() const { return impl_->metrics; }
Fee Book::price(std::string_view charge, const Decimal& units, std::int64_t events) const { return impl_->price(charge, units, events); }
Fee Book::price_tokens(const json& request) const { return impl_->price_tokens(request); }

// =============================================================================================
// 9 wire: each vendor's requests, answers and rules, as tables. Pure. Uses 1-3.
// =============================================================================================

namespace {

// ---- requests: which member of an event becomes which member of the body ---------------------

enum class From { id, name, customer, subscription, timestamp, value, cents, source, properties, notice_body, severity, notify, extension, none };

enum class Form {
    text,
    unix_seconds,  ///< as text: Lago would read a JSON number through a double (lago dossier 1.3)
    unix_ms,       ///< whole milliseconds, cut
    iso,
    number,
    boolean,
    object,
    object_go,  ///< whole numbers a double cannot hold leave as text: FlexPrice reads numbers into float64 (flexprice dossier 2.3)
    text_component,
};

struct WireField {
    std::string_view key;  // "customer.email" is the member email of the object customer; such fields stand together
    From from;
    Form form = Form::text;
    bool required = false;           ///< the vendor takes no event without it
    std::string_view fallback = {};  // sent where the event has nothing
    bool always = false;             ///< sent even when it is empty
    std::string_view rival = {};     ///< a key of the event's extension that takes its place
    std::string_view other = {};     ///< a key of the event's extension that serves where this one is required
};

constexpr std::array lago_fields{
    WireField{.key = "transaction_id", .from = From::id},
    WireField{.key = "external_subscription_id", .from = From::subscription},
    WireField{.key = "code", .from = From::name},
    WireField{.key = "timestamp", .from = From::timestamp, .form = Form::unix_seconds},
    WireField{.key = "precise_total_amount_cents", .from = From::cents},
    WireField{.key = "properties", .from = From::properties, .form = Form::object},
};
constexpr std::array flexprice_fields{
    WireField{.key = "event_id", .from = From::id},
    WireField{.key = "event_name", .from = From::name, .required = true},
    WireField{.key = "external_customer_id", .from = From::customer, .required = true},
    WireField{.key = "timestamp", .from = From::timestamp, .form = Form::iso},
    WireField{.key = "source", .from = From::source},
    WireField{.key = "properties", .from = From::properties, .form = Form::object_go},
};
constexpr std::array polar_fields{
    WireField{.key = "name", .from = From::name},
    WireField{.key = "external_id", .from = From::id},
    WireField{.key = "external_customer_id", .from = From::customer, .required = true, .rival = "customer_id"},
    WireField{.key = "timestamp", .from = From::timestamp, .form = Form::iso},
    WireField{.key = "metadata", .from = From::properties, .form = Form::object},
};
constexpr std::array autumn_fields{
    WireField{.key = "customer_id", .from = From::customer, .required = true},
    WireField{.key = "feature_id", .from = From::name, .rival = "event_name"},
    WireField{.key = "entity_id", .from = From::subscription},
    WireField{.key = "value", .from = From::value, .form = Form::number},
    WireField{.key = "timestamp", .from = From::timestamp, .form = Form::unix_ms},
    WireField{.key = "idempotency_key", .from = From::id},
    WireField{.key = "properties", .from = From::properties, .form = Form::object},
};
// A name goes with an external id, empty or not: without one the server answers 200 and stores nothing (zyg dossier 5.4).
constexpr std::array zyg_fields{
    WireField{.key = "event", .from = From::name},
    WireField{.key = "body", .from = From::notice_body, .always = true},
    WireField{.key = "customer.customerId", .from = From::extension},
    WireField{.key = "customer.externalId", .from = From::customer, .required = true, .other = "customerId"},
    WireField{.key = "customer.email", .from = From::extension},
    WireField{.key = "customer.name", .from = From::extension, .always = true, .rival = "customerId"},
    WireField{.key = "notify", .from = From::notify, .form = Form::boolean},
    WireField{.key = "severity", .from = From::severity},
    WireField{.key = "timestamp", .from = From::timestamp, .form = Form::iso},
};
constexpr std::array zyg_workspace_fields{
    WireField{.key = "title", .from = From::name},
    WireField{.key = "components", .from = From::notice_body, .form = Form::text_component},
    WireField{.key = "customer.customerId", .from = From::extension},
    WireField{.key = "customer.externalId", .from = From::customer, .required = true, .rival = "customerId"},
    WireField{.key = "customer.name", .from = From::extension, .always = true, .rival = "customerId"},
    WireField{.key = "severity", .from = From::severity},
    WireField{.key = "timestamp", .from = From::timestamp, .form = Form::iso},
};
// id and source together tell copies apart (ingest-rules 1.2), so the source must not depend on anything that changes.
constexpr std::array openmeter_fields{
    WireField{.key = "specversion", .from = From::none, .fallback = "1.0"},   WireField{.key = "id", .from = From::id},
    WireField{.key = "source", .from = From::source, .fallback = "meter"},    WireField{.key = "type", .from = From::name},
    WireField{.key = "subject", .from = From::customer, .required = true},    WireField{.key = "time", .from = From::timestamp, .form = Form::iso},
    WireField{.key = "data", .from = From::properties, .form = Form::object},
};

// ---- answers: what a status means ---------------------------------------------------------------

enum class Meaning {
    delivered,  ///< accepted, if the body holds the vendor's proof
    duplicate,  ///< was there already
    indexed,    ///< some events are refused and the body names them; nothing was stored
    refused,    ///< one event is refused, the body does not say which
    too_large,  ///< fewer at a time
    wait,       ///< passes by itself
    pause,      ///< a person must act
};

struct StatusRule {
    int from, to;
    std::string_view code;  // only when the body says so: its "code", or any part of a body that is not JSON
    Meaning meaning;
    bool unknown = false;  // the events may have been stored all the same
};

constexpr std::array lago_rules{
    StatusRule{200, 299, "", Meaning::delivered},
    StatusRule{422, 422, "", Meaning::indexed},
};
constexpr std::array flexprice_rules{
    StatusRule{202, 202, "", Meaning::delivered},
    StatusRule{400, 400, "", Meaning::refused},
    StatusRule{422, 422, "", Meaning::refused},
};
constexpr std::array polar_rules{
    StatusRule{200, 200, "", Meaning::delivered},
    StatusRule{422, 422, "", Meaning::indexed},
};
constexpr std::array autumn_rules{
    StatusRule{200, 202, "", Meaning::delivered},
    StatusRule{400, 400, "invalid_api_version", Meaning::pause},
    StatusRule{400, 400, "", Meaning::indexed},
    StatusRule{404, 404, "feature_not_found", Meaning::refused},
    StatusRule{404, 404, "customer_not_found", Meaning::refused},
    StatusRule{404, 404, "entity_not_found", Meaning::refused},
    StatusRule{404, 404, "invalid_request", Meaning::refused},  // an event_name that belongs to no feature
    StatusRule{409, 409, "duplicate_idempotency_key", Meaning::duplicate},
    StatusRule{409, 409, "", Meaning::refused},
};
constexpr std::array zyg_rules{
    StatusRule{200, 299, "", Meaning::delivered},
    StatusRule{400, 400, "", Meaning::refused},
    StatusRule{422, 422, "", Meaning::refused},
};
constexpr std::array zyg_workspace_rules{
    StatusRule{200, 299, "", Meaning::delivered},
    StatusRule{400, 400, "", Meaning::refused},
    StatusRule{404, 404, "page not found", Meaning::pause},
    StatusRule{404, 404, "", Meaning::refused},
};
constexpr std::array openmeter_rules{
    StatusRule{202, 202, "", Meaning::delivered},
    StatusRule{204, 204, "", Meaning::delivered},
    StatusRule{400, 400, "", Meaning::refused},
};
// What holds for every vendor after its own rules.
constexpr std::array common_rules{
    StatusRule{200, 299, "", Meaning::wait, true},  // a success this vendor does not give: a portal, a proxy
    StatusRule{408, 408, "", Meaning::wait, true}, StatusRule{413, 413, "", Meaning::too_large}, StatusRule{425, 425, "", Meaning::wait},
    StatusRule{429, 429, "", Meaning::wait},       StatusRule{503, 503, "", Meaning::wait},      StatusRule{500, 599, "", Meaning::wait, true},
    StatusRule{100, 499, "", Meaning::pause},      StatusRule{0, 999, "", Meaning::wait, true},
};

enum class IndexStyle {
    none,
    error_details,  ///< {"error_details": {"3": ...}}
    loc,            ///< {"detail": [{"loc": ["body", "events", 3, ...], "msg": ...}]}
    prefix,         ///< {"message": "3.timestamp: ..."} or "[Validation Errors] 3: ...; 5: ..."
};

constexpr std::chrono::hours for_ever = std::chrono::hours::max();

struct Vendor {
    std::string_view name;
    std::string_view base_url = {}, prefix = {}, path;
    std::string_view key_header = "Authorization", key_scheme = "Bearer ";
    bool key_required = true;
    std::string_view version_header = {}, version = {};
    std::string_view content_type = "application/json";
    std::string_view open = {}, close = {};  ///< around the events, which a comma separates
    std::span<const WireField> fields;
    std::int64_t batch_events = 1;
    std::size_t batch_bytes = 4 * 1024 * 1024;
    std::span<const StatusRule> rules;
    std::string_view proof = {};  ///< what the body of a success holds, and of which type; empty: no body is needed
    json::value_t proof_type = json::value_t::null;
    IndexStyle index = IndexStyle::none;
    std::string_view early = {};                  ///< what a refusal of an event in the future says; empty: the vendor takes them
    std::chrono::hours resend_window = for_ever;  ///< how long a copy is recognised
    bool notices_only = false;
};

// Sources: the dossiers' sections on ingest, errors and retries, and ingest-rules. Where a vendor states no limit in bytes it is ours.
constexpr std::array vendors{
    Vendor{
        .name = "lago",
        .base_url = "https://api.getlago.com",
        .prefix = "/api/v1",
        .path = "/events/batch",
        .open = R"({"events":[)",
        .close = "]}",
        .fields = lago_fields,
        .batch_events = 100,
        .rules = lago_rules,
        .proof = "events",
        .proof_type = json::value_t::array,
        .index = IndexStyle::error_details,
    },
    Vendor{
        .name = "flexprice",
        .base_url = "https://us.api.flexprice.io",
        .prefix = "/v1",
        .path = "/events/bulk",
        .key_header = "x-api-key",
        .key_scheme = "",
        .open = R"({"events":[)",
        .close = "]}",
        .fields = flexprice_fields,
        .batch_events = 1000,
        .batch_bytes = 32 * 1024 * 1024,
        .rules = flexprice_rules,
        .proof = "message",
        .proof_type = json::value_t::string,
    },
    Vendor{
        .name = "polar",
        .base_url = "https://api.polar.sh",
        .prefix = "/v1",
        .path = "/events/ingest",
        .version_header = "Polar-Version",
        .version = "2026-04",
        .open = R"({"events":[)",
        .close = "]}",
        .fields = polar_fields,
        .batch_events = 500,
        .batch_bytes = 10 * 1024 * 1024,
        .rules = polar_rules,
        .proof = "inserted",
        .proof_type = json::value_t::number_unsigned,
        .index = IndexStyle::loc,
        .early = "must be in the past",
    },
    Vendor{
        .name = "autumn",
        .base_url = "https://api.useautumn.com",
        .prefix = "/v1",
        .path = "/balances.batch_track",
        .version_header = "x-api-version",
        .version = "2.1",
        .open = "[",
        .close = "]",
        .fields = autumn_fields,
        .batch_events = 1000,
        .rules = autumn_rules,
        .proof = "success",
        .proof_type = json::value_t::boolean,
        .index = IndexStyle::prefix,
        .early = "cannot be in the future",
        .resend_window = std::chrono::hours(24),
    },
    Vendor{
        .name = "zyg",
        .path = "/events",
        .key_required = false,
        .fields = zyg_fields,
        .rules = zyg_rules,
        .proof = "eventId",
        .proof_type = json::value_t::string,
        .resend_window = std::chrono::hours(0),
        .notices_only = true,
    },
    Vendor{
        .name = "zyg workspace",
        .path = "/customers/events/",
        .key_required = false,
        .fields = zyg_workspace_fields,
        .rules = zyg_workspace_rules,
        .proof = "eventId",
        .proof_type = json::value_t::string,
        .resend_window = std::chrono::hours(0),
        .notices_only = true,
    },
    Vendor{
        .name = "openmeter",
        .base_url = "https://openmeter.cloud",
        .prefix = "/api/v1",
        .path = "/events",
        .key_required = false,
        .content_type = "application/cloudevents-batch+json",
        .open = "[",
        .close = "]",
        .fields = openmeter_fields,
        .batch_events = 100,
        .rules = openmeter_rules,
        .resend_window = std::chrono::hours(32 * 24),
    },
};

const Vendor& vendor_named(std::string_view name) {
    for (const Vendor& v : vendors)
        if (v.name == name) return v;
    throw Error(ErrorCode::bad_value, "vendor", "unknown: " + std::string(name));
}

const Vendor& vendor_of(const Upstream& upstream) {
    return vendor_named(upstream.options().workspace.empty() ? upstream.vendor() : upstream.vendor() + " workspace");
}

std::string json_text(const json& value) { return value.dump(-1, ' ', false, json::error_handler_t::replace); }

// Whole numbers beyond 2^53 as text, at any depth.
json without_large_integers(const json& value) {
    constexpr std::int64_t largest = std::int64_t{1} << 53;
    if (value.is_number_unsigned() && value.get<std::uint64_t>() > static_cast<std::uint64_t>(largest)) return value.dump();
    if (value.is_number_integer() && !value.is_number_unsigned() && std::abs(value.get<std::int64_t>()) > largest) return value.dump();
    if (!value.is_structured()) return value;
    json copy = value;
    for (json& part : copy) part = without_large_integers(part);
    return copy;
}

// JSON text of properties for a reader of doubles.
std::string fit_for_doubles(std::string_view properties) {
    constexpr std::size_t always_exact = 15;  // digits
    std::size_t digits = 0, longest = 0;
    for (const char c : properties) {
        digits = c >= '0' && c <= '9' ? digits + 1 : 0;
        longest = std::max(longest, digits);
    }
    return longest <= always_exact ? std::string(properties) : json_text(without_large_integers(json::parse(properties)));
}

std::string timestamp_text(Timestamp t, Form form) {
    if (form == Form::unix_seconds) return t.unix_seconds().to_string();
    if (form == Form::iso) return t.to_string();
    return std::to_string(t.micros() / 1000);
}

// The text of a field, before it is quoted; empty when the event has nothing there. `scratch` holds what had to be made.
std::string_view plain_value(const WireField& field, const Event& event, std::string& scratch) {
    const auto made = [&](std::string text) -> std::string_view { return scratch = std::move(text); };
    switch (field.from) {
        case From::id:
            return event.id;
        case From::name:
            return event.name;
        case From::customer:
            return event.customer;
        case From::subscription:
            return event.subscription;
        case From::source:
            return event.source;
        case From::timestamp:
            return made(timestamp_text(event.timestamp.value_or(Timestamp()), field.form));
        case From::value:
            return event.value ? made(event.value->to_string()) : "";
        case From::cents:
            return event.precise_total_amount_cents ? made(event.precise_total_amount_cents->to_string()) : "";
        case From::notice_body:
            return event.notice ? std::string_view(event.notice->body) : "";
        case From::severity:
            return event.notice ? severity_name(event.notice->severity) : "";
        case From::notify:
            return event.notice && event.notice->notify ? "true" : "false";
        case From::properties:
        case From::extension:
        case From::none:
            return "";
    }
    return "";
}

std::string_view last_name(std::string_view key) { return key.substr(key.find('.') + 1); }
std::string_view first_name(std::string_view key) { return key.substr(0, key.find('.')); }

const json& extension_of(const Vendor& vendor, const Event& event) {
    static const json nothing = json::object();
    const auto found = event.extensions.find(std::string(vendor.name.substr(0, vendor.name.find(' '))));
    return found != event.extensions.end() && found->is_object() ? *found : nothing;
}

// The JSON text of a field, appended; nothing when nothing is to be sent.
void append_field(std::string& out, const WireField& field, const Event& event, std::string_view properties, const json& extension) {
    if (!field.rival.empty() && extension.contains(field.rival)) return;
    if (field.from == From::properties) {
        if (field.form == Form::object_go)
            out += fit_for_doubles(properties);
        else
            out += properties;
        return;
    }
    if (field.from == From::extension) {
        const auto found = extension.find(last_name(field.key));
        if (found != extension.end()) {
            out += json_text(*found);
            return;
        }
    }
    std::string scratch;
    std::string_view value = plain_value(field, event, scratch);
    if (value.empty()) value = field.fallback;
    if (value.empty() && !field.always) return;
    const bool bare = field.form == Form::unix_ms || field.form == Form::number || field.form == Form::boolean;
    if (field.form == Form::text_component) out += R"([{"componentText":{"text":)";
    if (bare)
        out += value;
    else
        append_json_text(out, value);
    if (field.form == Form::text_component) out += "}}]";
}

bool field_named(const Vendor& vendor, std::string_view key) {
    return std::any_of(vendor.fields.begin(), vendor.fields.end(),
                       [&](const WireField& f) { return first_name(f.key) == key || (f.from == From::extension && last_name(f.key) == key); });
}

// One event as the vendor's JSON, with its properties as the text they are stored as: every digit leaves as it came. What the extension has
// beyond the vendor's fields goes in as it is; it never replaces one.
void append_event_json(std::string& out, const Vendor& vendor, const Event& event, std::string_view properties) {
    const json& extension = extension_of(vendor, event);
    std::string_view open_object;
    const auto add_key = [&](std::string_view key) {
        if (out.back() != '{') out += ',';
        append_json_text(out, key);
        out += ':';
    };
    out += '{';
    for (const WireField& field : vendor.fields) {
        const std::string_view object = field.key.find('.') == std::string_view::npos ? std::string_view() : first_name(field.key);
        const std::size_t before = out.size();
        const std::string_view object_before = open_object;
        if (object != open_object) {
            if (!open_object.empty()) out += '}';
            if (!object.empty()) {
                add_key(object);
                out += '{';
            }
            open_object = object;
        }
        add_key(last_name(field.key));
        const std::size_t value = out.size();
        append_field(out, field, event, properties, extension);
        if (out.size() > value) continue;
        out.resize(before);  // nothing to send: not even its key
        open_object = object_before;
    }
    if (!open_object.empty()) out += '}';
    for (const auto& [key, value] : extension.items()) {
        if (field_named(vendor, key)) continue;
        add_key(key);
        out += json_text(value);
    }
    out += '}';
}

// Why the vendor's format cannot carry the event; empty when it can. Only what no answer would tell us (flexprice dossier 3.4, autumn
// dossier 4.5, zyg dossier 5.4): everything else is the vendor's to judge.
std::string unsendable_reason(const Vendor& vendor, const Event& event) {
    const json& extension = extension_of(vendor, event);
    for (const WireField& field : vendor.fields) {
        if (!field.required) continue;
        std::string scratch;
        if (plain_value(field, event, scratch).find_first_not_of(" \t\r\n") != std::string_view::npos) continue;
        const bool served = (!field.rival.empty() && extension.contains(std::string(field.rival))) ||
                            (!field.other.empty() && extension.contains(std::string(field.other)));
        if (!served) return std::string(field.key) + " is required";
    }
    return "";
}

std::string percent_encoded(std::string_view text) {
    static constexpr char hex[] = "0123456789ABCDEF";
    std::string out;
    for (const char c : text) {
        const auto byte = static_cast<unsigned char>(c);
        const bool plain = (c >= '0' && c <= '9') || (c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z') || c == '-' || c == '_' || c == '.' || c == '~';
        if (plain) {
            out += c;
        } else {
            out += '%';
            out += hex[byte >> 4];
            out += hex[byte & 15];
        }
    }
    return out;
}

// The vendor's address; the version prefix may stand in base_url already, as the vendors' own clients want it.
std::string root_url(const Vendor& vendor, const UpstreamOptions& options) {
    std::string url = options.base_url.empty() ? std::string(vendor.base_url) : options.base_url;
    while (!url.empty() && url.back() == '/') url.pop_back();
    if (!vendor.prefix.empty() && !url.ends_with(vendor.prefix)) url += vendor.prefix;
    if (!options.workspace.empty()) url += "/workspaces/" + percent_encoded(options.workspace);
    return url;
}

std::vector<std::pair<std::string, std::string>> request_headers(const Vendor& vendor, const UpstreamOptions& options) {
    std::vector<std::pair<std::string, std::string>> headers = {
        {"Content-Type", std::string(vendor.content_type)}, {"Accept", "application/json"}, {"User-Agent", "meter/" METER_VERSION}};
    if (!options.api_key.empty()) headers.emplace_back(vendor.key_header, std::string(vendor.key_scheme) + options.api_key);
    if (!vendor.version.empty()) headers.emplace_back(vendor.version_header, vendor.version);
    return headers;
}

HttpRequest ingest_request(const Vendor& vendor, const UpstreamOptions& options, std::string body) {
    HttpRequest request;
    request.url = root_url(vendor, options) + std::string(vendor.path);
    request.headers = request_headers(vendor, options);
    request.body = std::move(body);
    request.once = vendor.resend_window == std::chrono::hours(0);
    return request;
}

std::string_view url_host(std::string_view url) {
    std::string_view rest = url.substr(url.find("://") + 3);
    rest = rest.substr(0, rest.find_first_of("/?#"));
    if (rest.starts_with('[')) return rest.substr(0, rest.find(']') + 1);
    return rest.substr(0, rest.find(':'));
}

void check_url(const std::string& url, bool allow_http) {
    const auto fail = [](const char* reason) { throw Error(ErrorCode::bad_value, "base_url", reason); };
    if (url.find_first_of(" \t\r\n\"\\@?#") != std::string::npos) fail("must be a plain address without spaces, @, ? or #");
    const bool secure = url.starts_with("https://");
    if (!secure && !url.starts_with("http://")) fail("must begin with https://");
    const std::string_view host = url_host(url);
    if (host.empty()) fail("has no host");
    const bool loopback = host == "localhost" || host == "127.0.0.1" || host == "[::1]";
    if (!secure && !loopback && !allow_http) fail("must be https; set allow_http to send the key unprotected");
}

void check_header_text(const std::string& text, const char* field) {
    for (const char c : text)
        if (static_cast<unsigned char>(c) < 0x21 || static_cast<unsigned char>(c) > 0x7e)
            throw Error(ErrorCode::bad_value, field, "must be visible ASCII without spaces");
}

// ---- answers ------------------------------------------------------------------------------------

struct Blame {
    std::size_t index = 0;
    bool duplicate = false;  // was there already
    bool early = false;      ///< in the future, by the vendor's clock
    std::string text = {};
};

struct Answer {
    Meaning meaning = Meaning::wait;
    bool unknown = false;                ///< the events may have been stored all the same
    std::int64_t duplicates = 0;         ///< of a success, when the vendor counts them
    std::vector<Blame> blamed = {};      ///< of indexed, in order of index, each once
    bool early = false;                  ///< of refused: for the vendor's clock
    std::string text = {};               ///< the vendor's words, or the transport's
    std::chrono::seconds wait{0};        ///< asked for by the vendor
    std::optional<Timestamp> date = {};  // the vendor's clock
};

// Vendors' texts are kept short.
std::string shortened(std::string text, std::size_t limit = 1000) {
    if (text.size() <= limit) return text;
    while (limit > 0 && (static_cast<unsigned char>(text[limit]) & 0xC0) == 0x80) --limit;
    text.resize(limit);
    return text + "...";
}

// How deep brackets stand within one another, outside of texts.
std::size_t json_nesting(std::string_view text) noexcept {
    std::size_t depth = 0, deepest = 0;
    bool quoted = false;
    for (std::size_t at = 0; at < text.size(); ++at) {
        const char c = text[at];
        if (c == '"') quoted = !quoted;
        if (quoted && c == '\\') ++at;
        if (quoted) continue;
        if (c == '[' || c == '{') deepest = std::max(deepest, ++depth);
        if ((c == ']' || c == '}') && depth > 0) --depth;
    }
    return deepest;
}

// JSON from outside; discarded when it is not JSON, or nested deeper than an answer that repeats our events can be: what reads it recurses.
json parse_answer(const std::string& body) {
    constexpr std::size_t around_events = 16;
    if (json_nesting(body) > limits::json_depth + around_events) return json(json::value_t::discarded);
    return json::parse(body, nullptr, false);
}

// A body that is not JSON, fit to be shown.
std::string printable(std::string_view body) {
    std::string out;
    for (const char c : body.substr(0, 300)) {
        const bool shown = static_cast<unsigned char>(c) > 0x20 && static_cast<unsigned char>(c) < 0x7f;
        if (shown || (!out.empty() && out.back() != ' ')) out += shown ? c : ' ';
    }
    return out;
}

std::string text_member(const json& object, const char* key) {
    if (!object.is_object()) return "";
    const auto found = object.find(key);
    return found != object.end() && found->is_string() ? found->get<std::string>() : "";
}

std::string words(const json& value) { return value.is_string() ? value.get<std::string>() : json_text(value); }

// The words of an error body: message, error.message, error, detail, error_details, in the shapes the dossiers list.
std::string error_text(const json& body, const std::string& raw) {
    if (!body.is_object()) return printable(raw);
    for (const char* key : {"error_details", "message", "detail"})
        if (body.contains(key)) return shortened(words(body[key]));
    if (!body.contains("error")) return shortened(words(body));
    const json& error = body["error"];
    return shortened(error.is_object() && error.contains("message") ? words(error["message"]) : words(error));
}

std::optional<std::int64_t> whole_number(std::string_view text) {
    std::int64_t value = 0;
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
    if (error != std::errc() || end != text.data() + text.size() || value < 0) return std::nullopt;
    return value;
}

// "Sun, 06 Nov 1994 08:49:37 GMT" (RFC 9110, 5.6.7); the obsolete forms are not taken.
std::optional<Timestamp> http_date(std::string_view text) {
    static constexpr std::string_view months = "JanFebMarAprMayJunJulAugSepOctNovDec";
    if (text.size() != 29 || text.substr(3, 2) != ", " || text.substr(25) != " GMT" || text[19] != ':' || text[22] != ':') return std::nullopt;
    const std::size_t month = months.find(text.substr(8, 3));
    const auto day = whole_number(text.substr(5, 2)), year = whole_number(text.substr(12, 4)), hour = whole_number(text.substr(17, 2)),
               minute = whole_number(text.substr(20, 2)), second = whole_number(text.substr(23, 2));
    if (month == std::string_view::npos || month % 3 != 0 || !day || !year || !hour || !minute || !second) return std::nullopt;
    const std::chrono::year_month_day date{std::chrono::year(static_cast<int>(*year)), std::chrono::month(static_cast<unsigned>(month / 3 + 1)),
                                           std::chrono::day(static_cast<unsigned>(*day))};
    if (!date.ok() || *year == 0 || *hour > 23 || *minute > 59 || *second > 60) return std::nullopt;
    const std::int64_t days = std::chrono::sys_days(date).time_since_epoch().count();
    return Timestamp((days * 86400 + *hour * 3600 + *minute * 60 + *second) * 1000000);
}

// What the vendor asks us to wait: Retry-After (seconds, or a date seen from the answer's own Date), else a rate limit's reset
// (lago dossier 1.9, autumn dossier 1.5). At most a day: the number comes from outside.
std::chrono::seconds asked_wait(const HttpResponse& response, std::optional<Timestamp> date) {
    static constexpr std::int64_t longest = 86400;
    const auto bounded = [](std::int64_t seconds) { return std::chrono::seconds(std::clamp<std::int64_t>(seconds, 0, longest)); };
    if (const auto after = response.header("Retry-After")) {
        if (const auto seconds = whole_number(*after)) return bounded(*seconds);
        const auto until = http_date(*after);
        if (until && date) return bounded((*until - *date).count() / 1000000);
    }
    for (const char* name : {"X-RateLimit", "RateLimit"}) {
        const auto remaining = response.header(std::string(name) + "-Remaining"), reset = response.header(std::string(name) + "-Reset");
        const bool spent = response.status == 429 || (remaining && whole_number(*remaining) == 0);
        if (spent && reset && whole_number(*reset)) return bounded(*whole_number(*reset));
    }
    return std::chrono::seconds(0);
}

// Whether a body shows what this vendor's success shows (responses.json; zyg dossier 5.4): a portal's page does not.
bool proves(const Vendor& vendor, const json& body, std::size_t sent) {
    if (vendor.proof.empty()) return true;
    if (!body.is_object()) return false;
    const auto found = body.find(std::string(vendor.proof));
    if (found == body.end() || found->type() != vendor.proof_type) return false;
    switch (vendor.proof_type) {
        case json::value_t::array:
            return found->size() == sent;
        case json::value_t::string:
            return !found->get_ref<const std::string&>().empty();
        case json::value_t::number_unsigned:
            return found->get<std::uint64_t>() <= sent;
        default:
            return found->get<bool>();
    }
}

// Where the proof is a number, it is of the events that were new.
std::int64_t counted_duplicates(const Vendor& vendor, const json& body, std::size_t sent) {
    if (vendor.proof_type != json::value_t::number_unsigned) return 0;
    return static_cast<std::int64_t>(sent - body[std::string(vendor.proof)].get<std::size_t>());
}

// What the reader of one index style finds; nothing when the answer does not say which events are refused.
struct Blames {
    std::vector<Blame> events = {};
    bool too_large = false;
};

// Lago: error_details by index. An index outside the batch, or other keys, means the batch as a whole (lago dossier 1.10). When an id stands
// twice in one batch the second is blamed and neither is stored: no index helps then, the two must part.
std::optional<Blames> blame_by_key(const json& body, std::span<const std::string_view> ids) {
    const auto details = body.find("error_details");
    if (details == body.end() || !details->is_object()) return std::nullopt;
    Blames blames;
    for (const auto& [key, value] : details->items()) {
        const auto index = whole_number(key);
        if (!index && value.is_array() && value.size() == 1 && value[0] == "too_many_events") return Blames{{}, true};
        if (!index || static_cast<std::uint64_t>(*index) >= ids.size()) return std::nullopt;
        const auto at = static_cast<std::size_t>(*index);
        const bool exists = value == json{{"transaction_id", {"value_already_exist"}}};
        const auto before = ids.first(at);
        if (exists && std::find(before.begin(), before.end(), ids[at]) != before.end()) return std::nullopt;
        blames.events.push_back({at, exists, false, shortened(words(value))});
    }
    return blames;
}

// Polar: detail[].loc = body, events, index, shape, field. A bad event is reported for both shapes of event, so it is early when one shape
// has nothing else to say (polar dossier 2.6).
std::optional<Blames> blame_by_loc(const json& body, std::span<const std::string_view> ids, std::string_view early) {
    const auto detail = body.find("detail");
    if (detail == body.end() || !detail->is_array()) return std::nullopt;
    struct Shape {
        bool early = true;
        std::string text = {};
    };
    std::map<std::size_t, std::map<std::string, Shape>> found;
    for (const json& entry : *detail) {
        const json loc = entry.is_object() ? entry.value("loc", json::array()) : json::array();
        if (!loc.is_array() || loc.size() < 3 || loc[1] != "events" || !loc[2].is_number_unsigned()) return std::nullopt;
        const auto index = loc[2].get<std::size_t>();
        if (index >= ids.size()) return std::nullopt;
        Shape& shape = found[index][loc.size() > 3 ? words(loc[3]) : ""];
        const std::string message = text_member(entry, "msg");
        shape.early = shape.early && message.find(early) != std::string::npos;
        shape.text += (shape.text.empty() ? "" : "; ") + (loc.size() > 4 ? words(loc[4]) : words(loc.back())) + ": " + message;
    }
    Blames blames;
    for (const auto& [index, shapes] : found) {
        const auto chosen = std::min_element(shapes.begin(), shapes.end(), [](const auto& a, const auto& b) {
            return std::pair(!a.second.early, a.second.text.size()) < std::pair(!b.second.early, b.second.text.size());
        });
        blames.events.push_back({index, false, chosen->second.early, shortened(chosen->second.text)});
    }
    return blames;
}

// Autumn: the message begins with the index, or holds several such parts (autumn dossier 1.4, 4.5).
std::optional<Blames> blame_by_prefix(const json& body, std::span<const std::string_view> ids, std::string_view early) {
    std::string message = text_member(body, "message");
    constexpr std::string_view several = "[Validation Errors] ";
    if (message.starts_with(several)) message.erase(0, several.size());
    std::map<std::size_t, Blame> found;
    for (std::size_t from = 0; from < message.size();) {
        const std::size_t to = std::min(message.find("; ", from), message.size());
        const std::string_view part = std::string_view(message).substr(from, to - from);
        const auto index = whole_number(part.substr(0, std::min(part.find_first_of(".: "), part.size())));
        if (!index || static_cast<std::uint64_t>(*index) >= ids.size()) return std::nullopt;
        Blame& blame = found.try_emplace(static_cast<std::size_t>(*index), Blame{static_cast<std::size_t>(*index), false, true, ""}).first->second;
        blame.early = blame.early && part.find(early) != std::string_view::npos;
        blame.text = shortened(blame.text + (blame.text.empty() ? "" : "; ") + std::string(part));
        from = to + 2;
    }
    Blames blames;
    for (auto& [index, blame] : found) blames.events.push_back(std::move(blame));
    return blames;
}

std::optional<Blames> find_blames(const Vendor& vendor, const json& body, std::span<const std::string_view> ids) {
    if (!body.is_object()) return std::nullopt;
    switch (vendor.index) {
        case IndexStyle::none:
            return std::nullopt;
        case IndexStyle::error_details:
            return blame_by_key(body, ids);
        case IndexStyle::loc:
            return blame_by_loc(body, ids, vendor.early);
        case IndexStyle::prefix:
            return blame_by_prefix(body, ids, vendor.early);
    }
    return std::nullopt;
}

const StatusRule* find_rule(std::span<const StatusRule> rules, int status, const std::string& code, const std::string& raw) {
    for (const StatusRule& rule : rules) {
        if (status < rule.from || status > rule.to) continue;
        if (rule.code.empty() || code == rule.code || (code.empty() && raw.find(rule.code) != std::string::npos)) return &rule;
    }
    return nullptr;
}

// What an answer means for the events of one request, whose ids are given in the order they were sent.
Answer read_answer(const Vendor& vendor, const HttpResponse& response, std::span<const std::string_view> ids) {
    Answer answer;
    if (response.status == 0) {
        answer.unknown = response.sent;
        answer.text = response.error.empty() ? "no answer" : response.error;
        return answer;
    }
    const json body = parse_answer(response.body);
    if (const auto date = response.header("Date")) answer.date = http_date(*date);
    answer.wait = asked_wait(response, answer.date);
    const std::string code = text_member(body, "code");
    const StatusRule* rule = find_rule(vendor.rules, response.status, code, response.body);
    if (rule && rule->meaning == Meaning::delivered && !proves(vendor, body, ids.size())) rule = nullptr;
    if (!rule) rule = find_rule(common_rules, response.status, code, response.body);
    answer.meaning = rule->meaning;
    answer.unknown = rule->unknown;
    if (rule->meaning == Meaning::delivered) {
        answer.duplicates = counted_duplicates(vendor, body, ids.size());
        return answer;
    }
    answer.text = error_text(body, response.body);
    answer.early = !vendor.early.empty() && answer.text.find(vendor.early) != std::string::npos;
    if (rule->meaning == Meaning::wait && response.status < 300) answer.text = "not this vendor's answer: " + answer.text;
    if (rule->meaning != Meaning::indexed) return answer;
    auto blames = find_blames(vendor, body, ids);
    if (blames && blames->too_large)
        answer.meaning = Meaning::too_large;
    else if (!blames || blames->events.empty())
        answer.meaning = Meaning::refused;
    else
        answer.blamed = std::move(blames->events);
    return answer;
}

// ---- reading back ---------------------------------------------------------------------------------

// What a vendor shows of an event it holds. Where it shows no id of ours the content stands for it.
struct Shown {
    std::string id = {};
    std::string name = {}, customer = {};
    Timestamp time = {};
    std::optional<Decimal> value = {};
};

enum class Paging { page, offset, window };  // window: no paging; the period is cut until an answer is not full

// Sources: lago dossier 2, flexprice dossier 4, polar dossier 3, autumn dossier 2, ingest-rules 1.5.
struct ReadRule {
    std::string_view vendor;
    std::string_view method, path;
    std::string_view list;  // member that holds the rows; empty: the answer is the list
    std::string_view row;   // member of a row that holds the event; empty: the row
    std::string_view more;  // member, "a.b", that says whether there are more pages: a number, true or a text
    std::string_view id, name, customer, time, value;
    Paging paging;
    std::int64_t page_size;
    std::chrono::microseconds precision;  // to which times are kept
};

constexpr std::chrono::microseconds one_millisecond{1000}, one_second{1000000};
constexpr std::array read_rules{
    ReadRule{"lago", "GET", "/events", "events", "", "meta.next_page", "transaction_id", "code", "external_subscription_id", "timestamp", "",
             Paging::page, 100, one_millisecond},
    ReadRule{"flexprice", "POST", "/events/query", "events", "", "has_more", "id", "event_name", "external_customer_id", "timestamp", "",
             Paging::offset, 1000, one_millisecond},
    ReadRule{"polar", "GET", "/events/", "items", "", "", "", "name", "external_customer_id", "timestamp", "", Paging::page, 100, one_millisecond},
    ReadRule{"autumn", "POST", "/events.list", "list", "", "has_more", "", "feature_id", "customer_id", "timestamp", "value", Paging::offset, 1000,
             one_millisecond},
    ReadRule{"openmeter", "GET", "/events", "", "event", "", "id", "type", "subject", "time", "", Paging::window, 100, one_second},
};

const ReadRule* read_rule(const Vendor& vendor) {
    const auto found = std::find_if(read_rules.begin(), read_rules.end(), [&](const ReadRule& rule) { return rule.vendor == vendor.name; });
    return found == read_rules.end() ? nullptr : &*found;
}

// The period as the vendor's parameters, a little wider where its bounds are cut or exclusive: what lies outside is dropped afterwards.
HttpRequest read_request(const Vendor& vendor, const ReadRule& rule, const UpstreamOptions& options, const Period& period, std::int64_t page) {
    const Timestamp from = std::max(period.from, Timestamp::min() + one_second) - one_second,
                    to = std::min(period.to, Timestamp::max() - one_second) + one_second;
    const std::string first = percent_encoded(from.to_string(0)), last = percent_encoded(to.to_string(0)), number = std::to_string(page + 1);
    const std::int64_t offset = page * rule.page_size;
    HttpRequest request;
    request.method = rule.method;
    request.url = root_url(vendor, options) + std::string(rule.path);
    request.headers = request_headers(vendor, options);
    if (rule.vendor == "lago") request.url += "?timestamp_from=" + first + "&timestamp_to=" + last + "&per_page=100&page=" + number;
    if (rule.vendor == "polar") request.url += "?start_timestamp=" + first + "&end_timestamp=" + last + "&source=user&limit=100&page=" + number;
    if (rule.vendor == "openmeter") request.url += "?from=" + first + "&to=" + last + "&limit=100";
    if (rule.vendor == "flexprice")
        request.body =
            json{{"start_time", from.to_string(0)}, {"end_time", to.to_string(0)}, {"page_size", rule.page_size}, {"offset", offset}}.dump();
    if (rule.vendor == "autumn")
        request.body =
            json{{"custom_range", {{"start", from.micros() / 1000}, {"end", to.micros() / 1000}}}, {"limit", rule.page_size}, {"offset", offset}}
                .dump();
    return request;
}

struct ShownPage {
    std::vector<Shown> events = {};
    std::size_t rows = 0;
    bool more = false;
};

Shown read_shown(const ReadRule& rule, const json& row) {
    const auto text = [&](std::string_view key) { return key.empty() ? std::string() : text_member(row, std::string(key).c_str()); };
    Shown shown{text(rule.id), text(rule.name), text(rule.customer), {}, {}};
    const json time = row.value(std::string(rule.time), json());
    shown.time =
        time.is_number() ? Timestamp::from_unix_ms(Decimal::from_json(time)) : Timestamp::parse(time.is_string() ? time.get<std::string>() : "");
    if (!rule.value.empty() && row.contains(rule.value)) shown.value = Decimal::from_json(row[std::string(rule.value)]);
    return shown;
}

bool says_more(const ReadRule& rule, const json& body, std::size_t rows) {
    if (rule.more.empty()) return static_cast<std::int64_t>(rows) >= rule.page_size;
    const std::size_t dot = rule.more.find('.');
    const json* at = &body;
    if (dot != std::string_view::npos) at = at->contains(first_name(rule.more)) ? &(*at)[std::string(first_name(rule.more))] : nullptr;
    const std::string key(last_name(rule.more));
    if (!at || !at->is_object() || !at->contains(key)) return false;
    const json& more = (*at)[key];
    return more.is_boolean() ? more.get<bool>() : !more.is_null();
}

// Throws bad_value for a body that is not a list of events.
ShownPage read_page(const ReadRule& rule, const std::string& text) {
    const json body = parse_answer(text);
    const json* list = &body;
    if (!rule.list.empty()) list = body.is_object() && body.contains(rule.list) ? &body[std::string(rule.list)] : nullptr;
    if (!list || !list->is_array()) throw Error(ErrorCode::bad_value, "answer", "is not a list of events: " + printable(text));
    ShownPage page;
    page.rows = list->size();
    for (const json& row : *list) {
        const json* event = &row;
        if (!rule.row.empty()) event = row.is_object() && row.contains(rule.row) ? &row[std::string(rule.row)] : nullptr;
        if (!event || !event->is_object()) throw Error(ErrorCode::bad_value, "answer", "holds something that is not an event");
        page.events.push_back(read_shown(rule, *event));
    }
    page.more = says_more(rule, body, page.rows);
    return page;
}

// What stands for one event on both sides: its id, or where the vendor shows none what it shows.
std::string shown_key(const ReadRule& rule, const Shown& shown) {
    if (!rule.id.empty()) return shown.id;
    std::string key = shown.name + '\n' + shown.customer + '\n' + std::to_string(shown.time.micros() / rule.precision.count());
    if (!rule.value.empty()) key += '\n' + (shown.value ? shown.value->to_string() : "");
    return key;
}

// The event as this vendor would show it.
Shown as_shown(const ReadRule& rule, const Event& event) {
    const bool by_subscription = rule.customer == "external_subscription_id";
    Shown shown{event.id, event.name, by_subscription ? event.subscription : event.customer, event.timestamp.value_or(Timestamp()), {}};
    if (!rule.value.empty()) shown.value = event.value.value_or(Decimal(1));  // autumn dossier 4.1
    return shown;
}

bool same_shown(const ReadRule& rule, const Shown& a, const Shown& b) {
    const auto cut = [&](Timestamp t) { return t.micros() / rule.precision.count(); };
    return a.name == b.name && a.customer == b.customer && cut(a.time) == cut(b.time);
}

}  // namespace

std::optional<std::string_view> HttpResponse::header(std::string_view name) const noexcept {
    const auto lower = [](char c) { return c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c; };
    for (const auto& [key, value] : headers)
        if (std::equal(key.begin(), key.end(), name.begin(), name.end(), [&](char a, char b) { return lower(a) == lower(b); })) return value;
    return std::nullopt;
}

Upstream::Upstream(std::string vendor, UpstreamOptions options) : vendor_(std::move(vendor)), options_(std::move(options)) {
    if (!options_.workspace.empty() && vendor_ != "zyg") refuse("workspace", "is for Zyg alone");
    const Vendor& rules = vendor_of(*this);
    if (options_.name.empty()) options_.name = vendor_;
    if (const char* fault = text_fault(options_.name)) refuse("name", fault);
    if (options_.name.size() > limits::id_bytes) throw Error(ErrorCode::too_large, "name", "over limits::id_bytes");
    if (options_.base_url.empty() && rules.base_url.empty())
        throw Error(ErrorCode::bad_value, "base_url", vendor_ + " has no public address; give one");
    check_url(root_url(rules, options_), options_.allow_http);
    if (rules.key_required && options_.api_key.empty()) throw Error(ErrorCode::bad_value, "api_key", "is required");
    check_header_text(options_.api_key, "api_key");
    if (options_.request_timeout <= std::chrono::milliseconds(0)) throw Error(ErrorCode::bad_value, "request_timeout", "must be positive");
    if (options_.batch_events < 0 || options_.batch_events > 10000) throw Error(ErrorCode::bad_value, "batch_events", "must be 0 to 10000");
    try {
        check_filter(options_.selection);
    } catch (const Error& error) {
        throw Error(error.code(), "selection", error.what());
    }
}

Upstream Upstream::lago(UpstreamOptions options) { return Upstream("lago", std::move(options)); }
Upstream Upstream::flexprice(UpstreamOptions options) { return Upstream("flexprice", std::move(options)); }
Upstream Upstream::polar(UpstreamOptions options) { return Upstream("polar", std::move(options)); }
Upstream Upstream::autumn(UpstreamOptions options) { return Upstream("autumn", std::move(options)); }
Upstream Upstream::zyg(UpstreamOptions options) { return Upstream("zyg", std::move(options)); }
Upstream Upstream::openmeter(UpstreamOptions options) { return Upstream("openmeter", std::move(options)); }

// =============================================================================================
// 10 delivery: cursors, batches, waiting, parking. Uses 1-5, 9.
// =============================================================================================

namespace {

using Clock = std::function<Timestamp()>;
using Random = std::function<std::uint64_t()>;
using std::chrono::microseconds;
using std::chrono::milliseconds;
using std::chrono::seconds;
using SteadyTime = std::chrono::steady_clock::time_point;

// Every event up to the cursor is settled for the upstream, or has a row in exceptions. So with `base` the last sequence before
// the first event the upstream was given:
//   recorded  = last sequence - base - skipped
//   pending   = last sequence - cursor + exceptions that are not parked
//   recorded  = delivered + pending + parked, with delivered counted by itself
// `attempted`: events past the cursor up to this one were sent and the answer is unknown, the first time at attempted_at.
// `offline`: the wait began because there was no answer at all. Times are microseconds, 0 is never, `due` is by the vendor's clock.
constexpr const char* delivery_schema = R"sql(
CREATE TABLE upstreams(
    id INTEGER PRIMARY KEY,
    name TEXT NOT NULL UNIQUE,
    vendor TEXT NOT NULL,
    base INTEGER NOT NULL,
    cursor INTEGER NOT NULL,
    delivered INTEGER NOT NULL DEFAULT 0,
    duplicates INTEGER NOT NULL DEFAULT 0,
    skipped INTEGER NOT NULL DEFAULT 0,
    failures INTEGER NOT NULL DEFAULT 0,
    next_attempt INTEGER NOT NULL DEFAULT 0,
    offline INTEGER NOT NULL DEFAULT 0,
    paused INTEGER NOT NULL DEFAULT 0,
    reason TEXT NOT NULL DEFAULT '',
    skew INTEGER NOT NULL DEFAULT 0,
    skew_at INTEGER NOT NULL DEFAULT 0,
    attempted INTEGER NOT NULL DEFAULT 0,
    attempted_at INTEGER NOT NULL DEFAULT 0,
    lease_owner TEXT NOT NULL DEFAULT '',
    lease_until INTEGER NOT NULL DEFAULT 0,
    fence INTEGER NOT NULL DEFAULT 0
);
CREATE TABLE exceptions(
    upstream INTEGER NOT NULL,
    sequence INTEGER NOT NULL,
    state INTEGER NOT NULL,
    reason TEXT NOT NULL DEFAULT '',
    status INTEGER NOT NULL DEFAULT 0,
    text TEXT NOT NULL DEFAULT '',
    at INTEGER NOT NULL,
    due INTEGER NOT NULL DEFAULT 0,
    attempted_at INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY(upstream, sequence)
) WITHOUT ROWID;
CREATE INDEX exceptions_by_state ON exceptions(upstream, state, sequence);
CREATE TABLE devices(id TEXT PRIMARY KEY, through INTEGER NOT NULL) WITHOUT ROWID;  -- whose exports were imported here, how far
INSERT INTO meta VALUES('device', lower(hex(randomblob(16))));
)sql";

enum class ExceptionState : int { parked = 0, held = 1, released = 2 };

// ---- waiting ------------------------------------------------------------------------------------

constexpr seconds backoff_base{1};
constexpr seconds backoff_cap{300};
constexpr seconds longest_wait = std::chrono::hours(24) + backoff_cap;
constexpr std::chrono::hours skew_lifetime{24};  // a wrong clock met once must not hold events for ever

// Full jitter: anywhere between nothing and a bound that doubles with each failure up to the cap.
microseconds backoff(std::int64_t failures, std::uint64_t random) {
    const auto doublings = std::clamp<std::int64_t>(failures - 1, 0, 30);
    const std::int64_t bound = std::min<std::int64_t>(microseconds(backoff_base).count() << doublings, microseconds(backoff_cap).count());
    return microseconds(static_cast<std::int64_t>(random % static_cast<std::uint64_t>(bound + 1)));
}

// After a failure: what the vendor asked for, and on top of it jitter over as long a time, so that a fleet told the same does not come
// back as one.
microseconds wait_after(const Answer& answer, std::int64_t failures, std::uint64_t random) {
    constexpr seconds widest{60};
    const auto spread = static_cast<std::uint64_t>(microseconds(std::min(answer.wait, widest)).count());
    return answer.wait + std::max(backoff(failures, random), microseconds(static_cast<std::int64_t>(random % (spread + 1))));
}

// How far the vendor's clock is ahead, from the whole second in its Date and our clock before and after the exchange: nothing while that
// cannot be told from none at all, else the least it can be, so that no event is sent too early.
microseconds measured_skew(Timestamp date, Timestamp before, Timestamp after) {
    const microseconds least = date - after, most = date + microseconds(seconds(1)) - before;
    return least <= microseconds(0) && microseconds(0) <= most ? microseconds(0) : least;
}

// ---- selection and redaction ----------------------------------------------------------------------

// A property by its path; a key that holds dots itself is found too.
const json* find_property(const json& object, std::string_view path) {
    if (!object.is_object()) return nullptr;
    if (const auto whole = object.find(std::string(path)); whole != object.end()) return &*whole;
    for (std::size_t dot = path.find('.'); dot != std::string_view::npos; dot = path.find('.', dot + 1)) {
        const auto part = object.find(std::string(path.substr(0, dot)));
        if (part == object.end()) continue;
        if (const json* found = find_property(*part, path.substr(dot + 1))) return found;
    }
    return nullptr;
}

// Gives `copy` the property that `original` has at the path, if it has one.
void restore_property(json& copy, const json& original, std::string_view path) {
    if (!original.is_object() || !find_property(original, path)) return;
    if (!copy.is_object()) copy = json::object();
    if (const auto whole = original.find(std::string(path)); whole != original.end()) {
        copy[std::string(path)] = *whole;
        return;
    }
    for (std::size_t dot = path.find('.'); dot != std::string_view::npos; dot = path.find('.', dot + 1)) {
        const std::string key(path.substr(0, dot));
        const auto part = original.find(key);
        if (part == original.end() || !find_property(*part, path.substr(dot + 1))) continue;
        return restore_property(copy[key], *part, path.substr(dot + 1));
    }
}

// A filter asked about one event. `kept` holds the text of a list or object while the scalar is looked at.
Scalar event_scalar(const Event& event, const std::string& key, std::string& kept) {
    const auto text = [](std::string_view value) { return value.empty() ? Scalar{} : Scalar{Scalar::Kind::text, false, {}, value}; };
    const auto number = [](const Decimal& value) { return Scalar{Scalar::Kind::number, false, value, {}}; };
    if (key == fields::id) return text(event.id);
    if (key == fields::name) return text(event.name);
    if (key == fields::source) return text(event.source);
    if (key == fields::customer) return text(event.customer);
    if (key == fields::subscription) return text(event.subscription);
    if (key == fields::time) return number(event.timestamp.value_or(Timestamp()).micros());
    if (key == fields::recorded) return event.recorded_at ? number(event.recorded_at->micros()) : Scalar{};
    if (key == fields::value) return event.value ? number(*event.value) : Scalar{};
    if (key == fields::cents) return event.precise_total_amount_cents ? number(*event.precise_total_amount_cents) : Scalar{};
    const json* value = find_property(event.properties, std::string_view(key).substr(1));
    if (!value) return {};
    if (value->is_null()) return {Scalar::Kind::null, false, {}, {}};
    if (value->is_boolean()) return {Scalar::Kind::boolean, value->get<bool>(), {}, {}};
    if (value->is_number()) return number(Decimal::from_json(*value));
    if (value->is_string()) return {Scalar::Kind::text, false, {}, value->get_ref<const std::string&>()};
    if (value->is_object() && !value->empty()) return {Scalar::Kind::object, false, {}, {}};
    kept = value->dump();
    return {Scalar::Kind::json, false, {}, kept};
}

class Selection {
public:
    explicit Selection(const Filter& filter) : kind_(filter.kind) {
        for (const Filter& part : filter.parts) parts_.emplace_back(part);
        if (kind_ != Filter::Kind::clause) return;
        key_ = column_key(filter.field);
        clause_ = make_clause(fields::is_moment(key_) ? in_micros(filter) : filter);
    }

    bool holds(const Event& event) const {
        const auto part_holds = [&](const Selection& part) { return part.holds(event); };
        if (kind_ == Filter::Kind::all) return std::all_of(parts_.begin(), parts_.end(), part_holds);
        if (kind_ == Filter::Kind::any) return std::any_of(parts_.begin(), parts_.end(), part_holds);
        std::string kept;
        return clause_.holds(event_scalar(event, key_, kept));
    }

private:
    Filter::Kind kind_;
    std::vector<Selection> parts_;
    std::string key_;
    Clause clause_;
};

// ---- batches ------------------------------------------------------------------------------------

enum class Fate { open, delivered, duplicate, parked, held, skipped };

// A stretch of a shipment's text.
struct Slice {
    std::size_t at = 0, size = 0;
};

struct Item {
    std::int64_t sequence = 0;
    Fate fate = Fate::open;
    int status = 0;
    Slice id = {}, body = {};
    Timestamp timestamp = {};
    std::string_view reason = {};  // of parked: a literal
    std::string text = {};
    Timestamp due = {};                          // of held
    std::optional<Timestamp> attempted_at = {};  // sent before, with unknown outcome
    bool was_sent = false;
};

// A stretch of the log, or events set aside earlier that may go now. Fates are decided here and written down together.
struct Shipment {
    std::vector<Item> items = {};
    std::string text = {};  // ids and bodies of the items, in one piece: there are many, and they come and go together
    bool from_log = true;
    std::size_t suspects = 0;  // among the first so many open items is one the vendor refuses without saying which

    bool all_settled() const {
        return std::none_of(items.begin(), items.end(), [](const Item& item) { return item.fate == Fate::open; });
    }
    std::string_view view(Slice slice) const { return std::string_view(text).substr(slice.at, slice.size); }
    // Empty again, for the next ones; the memory is kept.
    void clear() {
        items.clear();
        text.clear();
        from_log = true;
        suspects = 0;
    }
};

// The items of the next request: the open ones in order, as many as fit. Where one of the suspects is refused half of them go, so that
// it stands alone after log2 requests.
std::vector<Item*> next_request(Shipment& batch, std::int64_t events, std::size_t bytes) {
    std::size_t most = static_cast<std::size_t>(events);
    if (batch.suspects > 0) most = std::min(most, (batch.suspects + 1) / 2);
    std::vector<Item*> chosen;
    std::size_t size = 0;
    for (Item& item : batch.items) {
        if (item.fate != Fate::open) continue;
        size += item.body.size + 1;
        if (chosen.size() == most || (!chosen.empty() && size > bytes)) break;
        chosen.push_back(&item);
    }
    return chosen;
}

// In place of an earlier body, whose memory is used again.
std::string request_body(const Vendor& vendor, const Shipment& batch, const std::vector<Item*>& items, std::string body) {
    body = vendor.open;
    for (const Item* item : items) {
        if (body.size() > vendor.open.size()) body += ',';
        body += batch.view(item->body);
    }
    body += vendor.close;
    return body;
}

void park(Item& item, std::string_view reason, std::string text, int status = 0) {
    item.fate = Fate::parked;
    item.reason = reason;
    item.text = std::move(text);
    item.status = status;
}

// Held for the vendor's clock; unless the event is past by that clock too, when the refusal means something else.
void hold_or_park(Item& item, const Answer& answer, Timestamp vendor_now, const std::string& text, int status) {
    constexpr seconds margin{1}, doubt{5};
    if (answer.date && item.timestamp + microseconds(doubt) < *answer.date) return park(item, "refused", text, status);
    item.fate = Fate::held;
    item.due = std::max(item.timestamp, vendor_now) + microseconds(margin);
}

// What the answer means for the items that were sent. Those it does not settle stay open.
void apply_answer(const Answer& answer, int status, Timestamp vendor_now, Shipment& batch, const std::vector<Item*>& sent) {
    const bool alone = sent.size() == 1;
    switch (answer.meaning) {
        case Meaning::delivered:
            // A vendor that counts duplicates does not say which: how many there are is all that is kept.
            for (std::size_t i = 0; i < sent.size(); ++i)
                sent[i]->fate = static_cast<std::int64_t>(i) < answer.duplicates ? Fate::duplicate : Fate::delivered;
            batch.suspects -= std::min(batch.suspects, sent.size());
            return;
        case Meaning::duplicate:
            if (alone) sent[0]->fate = Fate::duplicate;
            batch.suspects = alone ? 0 : sent.size();
            return;
        case Meaning::indexed:
            for (const Blame& blame : answer.blamed) {
                Item& item = *sent[blame.index];
                if (blame.duplicate)
                    item.fate = Fate::duplicate;
                else if (blame.early)
                    hold_or_park(item, answer, vendor_now, blame.text, status);
                else
                    park(item, "refused", blame.text, status);
            }
            batch.suspects = 0;
            return;
        case Meaning::refused:
            if (alone && answer.early)
                hold_or_park(*sent[0], answer, vendor_now, answer.text, status);
            else if (alone)
                park(*sent[0], "refused", answer.text, status);
            batch.suspects = alone ? 0 : sent.size();
            return;
        case Meaning::too_large:
            if (alone) park(*sent[0], "too_large", answer.text, status);
            return;
        case Meaning::wait:
        case Meaning::pause:
            return;
    }
}

// How many of some items have each fate that is settled.
struct Tally {
    std::int64_t delivered = 0, duplicates = 0, parked = 0, held = 0, skipped = 0;
};

Tally count_fates(std::span<const Item> items) {
    std::array<std::int64_t, 6> counts{};
    for (const Item& item : items) ++counts[static_cast<std::size_t>(item.fate)];
    const auto of = [&](Fate fate) { return counts[static_cast<std::size_t>(fate)]; };
    return {of(Fate::delivered), of(Fate::duplicate), of(Fate::parked), of(Fate::held), of(Fate::skipped)};
}

bool may_have_been_counted(std::chrono::hours window, Timestamp attempted_at, Timestamp now) {
    if (window == for_ever) return false;
    return window == std::chrono::hours(0) || now < attempted_at || now - attempted_at >= window;
}

// A property of the events of one name that a metric needs.
struct MeasuredProperty {
    std::string event = {}, path = {};
};

void add_measured(std::vector<MeasuredProperty>& all, const std::string& event, const std::string& field) {
    const std::string key = field.empty() ? field : column_key(field);
    if (key.starts_with('.')) all.push_back({event, key.substr(1)});
}

void add_measured(std::vector<MeasuredProperty>& all, const std::string& event, const Filter& filter) {
    add_measured(all, event, filter.field);
    for (const Filter& part : filter.parts) add_measured(all, event, part);
}

std::vector<MeasuredProperty> measured_properties(Connection& c) {
    std::vector<MeasuredProperty> all;
    for (const Metric& metric : all_metrics(c)) {
        const std::string& event = metric.event.empty() ? metric.code : metric.event;
        add_measured(all, event, metric.property);
        add_measured(all, event, metric.filter);
    }
    return all;
}

// A copy after before_send, with what identifies and counts the event put back.
Event redacted(const UpstreamOptions& options, std::span<const MeasuredProperty> measured, const Event& event) {
    if (!options.before_send) return event;
    Event copy = event;
    options.before_send(copy);
    copy.id = event.id;
    copy.name = event.name;
    copy.customer = event.customer;
    copy.subscription = event.subscription;
    copy.timestamp = event.timestamp;
    copy.value = event.value;
    copy.precise_total_amount_cents = event.precise_total_amount_cents;
    if (!copy.properties.is_object()) copy.properties = json::object();
    for (const std::string& path : options.pinned) restore_property(copy.properties, event.properties, path);
    for (const MeasuredProperty& property : measured)
        if (property.event == event.name) restore_property(copy.properties, event.properties, property.path);
    return copy;
}

struct ItemMaker {
    const Vendor& vendor;
    const UpstreamOptions& options;
    const Selection& selection;
    std::span<const MeasuredProperty> measured;
    Timestamp vendor_now;
    std::size_t bytes;
    std::string& text;  // of the shipment

    // From a row of the log. Its properties are taken apart only when someone looks into them.
    Item from_row(const Prepared& row, bool select) const {
        Event event = read_plain_event(row);
        if (vendor.notices_only && !event.notice && select) return skip(event.sequence);
        const bool selecting = select && !options.selection.empty();
        if (selecting || options.before_send) event.properties = json::parse(row.text(10));
        if (selecting && !selection.holds(event)) return skip(event.sequence);
        return make(event, row.text(10));
    }

    Item make(const Event& event, std::string_view properties) const {
        Item item;
        item.sequence = event.sequence;
        item.id = append([&] { text += event.id; });
        item.timestamp = event.timestamp.value_or(Timestamp());
        const std::string reason = unsendable_reason(vendor, event);
        if (!reason.empty()) {
            park(item, "unsendable", reason);
            return item;
        }
        try {
            item.body = append([&] { append_body(event, properties); });
        } catch (const std::exception& error) {
            park(item, "before_send", shortened(error.what()));
        }
        if (item.fate == Fate::open && item.body.size > bytes) park(item, "too_large", "over the vendor's limit on a request");
        if (item.fate == Fate::open && !vendor.early.empty() && item.timestamp > vendor_now) {
            item.fate = Fate::held;
            item.due = item.timestamp;
        }
        if (item.fate != Fate::open) text.resize(item.id.at + item.id.size), item.body = {};
        return item;
    }

    Item skip(std::int64_t sequence) const {
        Item item;
        item.sequence = sequence;
        item.fate = Fate::skipped;
        return item;
    }

private:
    template <class Write>
    Slice append(Write&& write) const {
        const std::size_t from = text.size();
        write();
        return {from, text.size() - from};
    }
    void append_body(const Event& event, std::string_view properties) const {
        if (!options.before_send) return append_event_json(text, vendor, event, properties);
        const Event sent = redacted(options, measured, event);
        append_event_json(text, vendor, sent, json_text(sent.properties));
    }
};

// ---- the rows -----------------------------------------------------------------------------------

struct UpstreamRow {
    std::int64_t id = 0;
    std::string vendor = {};
    std::int64_t base = 0, cursor = 0, delivered = 0, skipped = 0, failures = 0;
    Timestamp next_attempt = {};
    bool offline = false, paused = false;
    std::string reason = {};
    microseconds skew{0};  // known when skew_at is set
    Timestamp skew_at = {};
    std::int64_t attempted = 0;
    Timestamp attempted_at = {};
    std::string lease_owner = {};
    Timestamp lease_until = {};
    std::int64_t fence = 0;

    Timestamp vendor_time(Timestamp now) const {
        const bool fresh = skew_at <= now && now - skew_at < skew_lifetime;
        return fresh ? now + skew : now;
    }
    // A stored time further off than any wait means that the clock was set back: such a wait has ended.
    bool waits(Timestamp now) const { return now < next_attempt && next_attempt - now <= longest_wait; }
};

std::optional<UpstreamRow> find_upstream(Connection& c, const std::string& name) {
    const Prepared found = c.prepared(
        "SELECT id, vendor, base, cursor, delivered, skipped, failures, next_attempt, offline, paused, reason, skew, skew_at, attempted,"
        " attempted_at, lease_owner, lease_until, fence FROM upstreams WHERE name = ?");
    found.bind(name);
    if (!found.row()) return std::nullopt;
    const auto number = [&](int column) { return found.integer(column); };
    UpstreamRow row;
    row.id = number(0);
    row.vendor = found.text(1);
    row.base = number(2);
    row.cursor = number(3);
    row.delivered = number(4);
    row.skipped = number(5);
    row.failures = number(6);
    row.next_attempt = Timestamp(number(7));
    row.offline = number(8) != 0;
    row.paused = number(9) != 0;
    row.reason = found.text(10);
    row.skew = microseconds(number(11));
    row.skew_at = Timestamp(number(12));
    row.attempted = number(13);
    row.attempted_at = Timestamp(number(14));
    row.lease_owner = found.text(15);
    row.lease_until = Timestamp(number(16));
    row.fence = number(17);
    return row;
}

UpstreamRow get_upstream(Connection& c, const std::string& name) {
    auto row = find_upstream(c, name);
    if (!row) throw Error(ErrorCode::not_found, "upstream", "no upstream of that name: " + name);
    return *row;
}

std::int64_t count_exceptions(Connection& c, std::int64_t upstream, ExceptionState state) {
    return c.integer("SELECT count(*) FROM exceptions WHERE upstream = ? AND state = ?", upstream, static_cast<int>(state));
}

Balance read_balance(Connection& c, const UpstreamRow& row) {
    const std::int64_t last = last_sequence(c);
    Balance balance;
    balance.recorded = last - row.base - row.skipped;
    balance.delivered = row.delivered;
    balance.parked = count_exceptions(c, row.id, ExceptionState::parked);
    balance.pending = last - row.cursor + count_exceptions(c, row.id, ExceptionState::held) + count_exceptions(c, row.id, ExceptionState::released);
    balance.skipped = row.skipped;
    return balance;
}

// The first moment, by the vendor's clock, at which a held event may go.
std::optional<Timestamp> first_due(Connection& c, std::int64_t upstream) {
    const Prepared first = c.prepared("SELECT min(due) FROM exceptions WHERE upstream = ? AND state = ?");
    first.bind(upstream, static_cast<int>(ExceptionState::held));
    return first.row() && !first.null(0) ? std::optional(Timestamp(first.integer(0))) : std::nullopt;
}

std::optional<std::int64_t> oldest_pending(Connection& c, const UpstreamRow& row) {
    const std::int64_t set_aside = c.integer("SELECT min(sequence) FROM exceptions WHERE upstream = ? AND state <> 0", row.id);
    if (set_aside > 0) return set_aside;
    return last_sequence(c) > row.cursor ? std::optional(row.cursor + 1) : std::nullopt;
}

UpstreamStatus read_status(Connection& c, const std::string& name, const UpstreamRow& row, Timestamp now) {
    const Balance balance = read_balance(c, row);
    UpstreamStatus status;
    status.name = name;
    status.vendor = row.vendor;
    status.pending = balance.pending;
    status.parked = balance.parked;
    status.held = count_exceptions(c, row.id, ExceptionState::held);
    if (row.skew_at != Timestamp()) status.skew = row.skew;
    if (const auto oldest = oldest_pending(c, row)) {
        const auto event = event_at(c, *oldest);
        if (event && event->recorded_at) status.lag = std::max(microseconds(0), now - *event->recorded_at);
    }
    const auto due = first_due(c, row.id);
    const bool only_held = balance.pending > 0 && balance.pending == status.held && due && *due > row.vendor_time(now);
    if (row.paused) {
        status.state = UpstreamState::paused;
        status.reason = row.reason;
    } else if (balance.pending == 0) {
        status.state = UpstreamState::idle;
    } else if (row.waits(now)) {
        status.state = UpstreamState::waiting;
        status.reason = row.reason;
        status.next_attempt = row.next_attempt;
    } else if (only_held) {
        status.state = UpstreamState::waiting;
        status.reason = "held: in the future by the vendor's clock";
        status.next_attempt = now + (*due - row.vendor_time(now));
    } else {
        status.state = UpstreamState::pending;
    }
    return status;
}

// Events set aside that may go now, in order.
void read_released(Connection& c, const UpstreamRow& row, const ItemMaker& maker, std::int64_t limit, std::vector<Item>& items) {
    const Prepared next = c.prepared(
        "SELECT sequence, attempted_at FROM exceptions WHERE upstream = ? AND (state = 2 OR (state = 1 AND due <= ?)) ORDER BY sequence LIMIT ?");
    next.bind(row.id, maker.vendor_now.micros(), limit);
    while (maker.text.size() < maker.bytes && next.row()) {
        const Prepared event = c.prepared(METER_EVENT_COLUMNS "WHERE l.sequence = ?");
        event.bind(next.integer(0));
        items.push_back(event.row() ? maker.from_row(event, false) : maker.skip(next.integer(0)));
        if (next.integer(1) != 0) items.back().attempted_at = Timestamp(next.integer(1));
    }
}

// The next stretch of the log: enough for one request, one event in memory at a time.
void read_log(Connection& c, const UpstreamRow& row, const ItemMaker& maker, std::int64_t limit, std::vector<Item>& items) {
    constexpr std::size_t longest = 5000;
    const bool attempted = row.attempted > row.cursor;
    const Prepared next = c.prepared(METER_EVENT_COLUMNS "WHERE l.sequence > ? AND l.sequence <= ? ORDER BY l.sequence");
    next.bind(row.cursor, attempted ? row.attempted : std::numeric_limits<std::int64_t>::max());  // what was sent is never mixed with what was not
    std::int64_t open = 0;
    while (open < limit && maker.text.size() < maker.bytes && items.size() < longest && next.row()) {
        items.push_back(maker.from_row(next, true));
        if (attempted) items.back().attempted_at = row.attempted_at;
        if (items.back().fate == Fate::open) ++open;
    }
}

// ---- leases ---------------------------------------------------------------------------------------

// This process, as a lease names it: "pid:nonce".
std::string process_token() {
    static const std::string nonce = std::to_string((std::uint64_t{std::random_device{}()} << 32) ^ std::random_device{}());
#if METER_POSIX
    return std::to_string(::getpid()) + ":" + nonce;
#else
    return "0:" + nonce;
#endif
}

// Whether the process that took a lease is known to have ended. A wrong answer (another pid namespace) costs no more than an expiry that
// comes early: the fence keeps the books right.
bool has_ended(const std::string& owner) {
#if METER_POSIX
    const auto pid = whole_number(std::string_view(owner).substr(0, owner.find(':')));
    if (!pid || *pid <= 0) return false;
    if (*pid == ::getpid()) return !owner.starts_with(process_token() + ":");
    return ::kill(static_cast<pid_t>(*pid), 0) != 0 && errno == ESRCH;
#else
    return owner.empty();
#endif
}

constexpr std::chrono::hours longest_lease{2};

// An end further off than any lease means that the clock was set back.
bool lease_holds(const std::string& owner, Timestamp until, Timestamp now) {
    return !owner.empty() && now < until && until - now <= longest_lease && !has_ended(owner);
}

// ---- one flush of one upstream ------------------------------------------------------------------

// Settings of an upstream in this process.
struct Link {
    Upstream upstream;
    const Vendor& vendor;
    const Selection selection;
    std::shared_ptr<Transport> transport;
    std::atomic<std::int64_t> batch_events;  // less than the vendor's limit after a 413

    Link(const Upstream& u, std::shared_ptr<Transport> t)
        : upstream(u), vendor(vendor_of(u)), selection(u.options().selection), transport(std::move(t)), batch_events(limit()) {}
    std::int64_t limit() const { return upstream.options().batch_events > 0 ? upstream.options().batch_events : vendor_of(upstream).batch_events; }
    const std::string& name() const { return upstream.options().name; }
    void log(const std::string& line) const {
        if (upstream.options().log) upstream.options().log(name() + ": " + line);
    }
};

// What all flushes of one call share.
struct FlushContext {
    Store& store;
    const Clock& clock;
    const Random& random;
    SteadyTime deadline;
    std::function<bool()> stopped;
    std::function<void(const FlushProgress&)> progress;

    milliseconds left() const {
        const auto rest = std::chrono::duration_cast<milliseconds>(deadline - std::chrono::steady_clock::now());
        return std::max(rest, milliseconds(0));
    }
    bool over() const { return left() == milliseconds(0) || stopped(); }
};

constexpr seconds lease_slack{5};
constexpr std::size_t request_bytes = 4 * 1024 * 1024;  // of a request at most, whatever the vendor would take: memory is bounded by it

// One flusher of one upstream. Holds the lease while it runs; every write checks the fence, so that a flusher that was overtaken
// (stopped for longer than its lease) changes nothing.
class Sender {
public:
    Sender(FlushContext& context, Link& link, std::string owner) : context_(context), link_(link), owner_(std::move(owner)) {}

    UpstreamReport run() {
        const auto start = std::chrono::steady_clock::now();
        Step step = acquire() ? Step::more : Step::lost;
        try {
            while (step == Step::more && ready()) step = send_next();
        } catch (...) {
            give_back_lease();
            throw;
        }
        if (step != Step::lost) give_back_lease();
        finish_report(step == Step::lost);
        report_.duration = std::chrono::duration_cast<milliseconds>(std::chrono::steady_clock::now() - start);
        return report_;
    }

private:
    enum class Step { more, finished, lost };

    const Vendor& vendor() const { return link_.vendor; }
    const UpstreamOptions& options() const { return link_.upstream.options(); }
    Timestamp now() const { return context_.clock(); }

    // ---- the lease

    bool acquire() {
        while (!try_acquire()) {
            if (context_.over()) return false;
            std::this_thread::sleep_for(std::min(milliseconds(20), context_.left()));
        }
        return true;
    }

    bool try_acquire() {
        return context_.store.write([&](Connection& c) {
            row_ = get_upstream(c, link_.name());
            if (lease_holds(row_.lease_owner, row_.lease_until, now())) return false;
            ++row_.fence;
            c.prepared("UPDATE upstreams SET lease_owner = ?, lease_until = ?, fence = ? WHERE id = ?").run(owner_, lease_end(), row_.fence, row_.id);
            return true;
        });
    }

    // As long as one exchange may take, and some.
    std::int64_t lease_end() const { return (now() + microseconds(countable(options().request_timeout) + lease_slack)).micros(); }

    // Best effort: a lease that is not given back ends by itself.
    void give_back_lease() noexcept {
        try {
            context_.store.write([&](Connection& c) {
                c.prepared("UPDATE upstreams SET lease_owner = '', lease_until = 0 WHERE id = ? AND fence = ?").run(row_.id, row_.fence);
            });
        } catch (const std::exception& error) {
            link_.log(std::string("lease not given back: ") + error.what());
        }
    }

    // ---- one round: read, send, decide, write down

    bool ready() const { return !row_.paused && !row_.waits(now()) && !context_.over(); }

    Step send_next() {
        if (batch_.items.empty() && !fill()) return Step::finished;
        const std::vector<Item*> sent = next_request(batch_, link_.batch_events, std::min(vendor().batch_bytes, request_bytes));
        if (sent.empty()) return settle() ? Step::more : Step::lost;
        if (!mark_attempt(sent)) return Step::lost;
        HttpResponse response;
        const Answer answer = exchange(sent, response);
        if (response.status == 0 && context_.stopped()) return give_up(sent);
        decide(answer, response.status, sent);
        if (!settle()) return Step::lost;
        if (context_.progress) context_.progress(progress_);
        return row_.failures > 0 ? Step::finished : Step::more;  // also when the wait drawn is next to nothing
    }

    // The next batch: what was set aside and may go now, else the next stretch of the log.
    bool fill() {
        batch_.clear();
        context_.store.read([&](Connection& c) {
            const auto measured = options().before_send ? measured_properties(c) : std::vector<MeasuredProperty>();
            const ItemMaker maker{
                vendor(), options(), link_.selection, measured, row_.vendor_time(now()), std::min(vendor().batch_bytes, request_bytes), batch_.text};
            const std::int64_t stride = std::max<std::int64_t>(link_.batch_events, 500);  // several small requests from one look into the log
            read_released(c, row_, maker, stride, batch_.items);
            batch_.from_log = batch_.items.empty();
            if (batch_.from_log) read_log(c, row_, maker, stride, batch_.items);
        });
        for (Item& item : batch_.items)
            if (item.fate == Fate::open && item.attempted_at && may_have_been_counted(vendor().resend_window, *item.attempted_at, now()))
                park(item, "unknown", "sent at " + item.attempted_at->to_string() + " without an answer; a second copy could count twice");
        return !batch_.items.empty();
    }

    // For vendors that recognise a copy only for a time: that events are about to be sent is on disk before they are.
    bool mark_attempt(const std::vector<Item*>& sent) {
        before_ = {row_.attempted, row_.attempted_at};
        if (vendor().resend_window == for_ever) return true;
        const Timestamp at = now();
        if (batch_.from_log) {
            if (before_.attempted <= row_.cursor) row_.attempted_at = at;
            row_.attempted = std::max(before_.attempted, sent.back()->sequence);
        }
        return context_.store.write([&](Connection& c) {
            if (!write_row(c, row_.cursor, {})) return false;
            if (!batch_.from_log)
                for (const Item* item : sent) write_attempted_at(c, *item, item->attempted_at.value_or(at));
            return true;
        });
    }

    Answer exchange(const std::vector<Item*>& sent, HttpResponse& response) {
        HttpRequest request = ingest_request(vendor(), options(), request_body(vendor(), batch_, sent, std::move(body_)));
        request.cancelled = context_.stopped;
        std::vector<std::string_view> ids;
        ids.reserve(sent.size());
        for (Item* item : sent) {
            ids.push_back(batch_.view(item->id));
            item->was_sent = true;
        }
        ++report_.requests;
        report_.sent += static_cast<std::int64_t>(sent.size());
        report_.bytes += static_cast<std::int64_t>(request.body.size());
        const Timestamp before = now();
        response = link_.transport->exchange(request, std::max(milliseconds(1), std::min(options().request_timeout, context_.left())));
        Answer answer = read_answer(vendor(), response, ids);
        link_.log(std::to_string(sent.size()) + " events, " + std::to_string(request.body.size()) +
                  " bytes: " + (response.status ? "HTTP " + std::to_string(response.status) : answer.text));
        if (answer.date && answer.meaning != Meaning::wait && answer.meaning != Meaning::pause) {
            row_.skew_at = now();
            row_.skew = measured_skew(*answer.date, before, row_.skew_at);
        }
        body_ = std::move(request.body);
        return answer;
    }

    void decide(const Answer& answer, int status, const std::vector<Item*>& sent) {
        const Timestamp at = now();
        apply_answer(answer, status, row_.vendor_time(at), batch_, sent);
        if (answer.meaning == Meaning::too_large) link_.batch_events = std::max<std::int64_t>(1, static_cast<std::int64_t>(sent.size()) / 2);
        if (answer.meaning == Meaning::delivered) grow_batch(sent.size());
        if (!answer.unknown) {
            row_.attempted = before_.attempted;
            row_.attempted_at = before_.at;
        }
        for (Item* item : sent) {
            if (answer.unknown && !item->attempted_at) item->attempted_at = at;
            if (item->fate == Fate::open && answer.unknown && may_have_been_counted(vendor().resend_window, at, at))
                park(*item, "unknown", answer.text, status);
            if (item->fate == Fate::open || item->fate == Fate::held) ++report_.returned;
        }
        decide_wait(answer, status, at);
    }

    void decide_wait(const Answer& answer, int status, Timestamp at) {
        row_.failures = answer.meaning == Meaning::wait ? row_.failures + 1 : 0;
        row_.paused = answer.meaning == Meaning::pause;
        row_.offline = status == 0;
        row_.reason.clear();
        const microseconds wait = row_.failures > 0 ? wait_after(answer, row_.failures, context_.random()) : microseconds(answer.wait);
        row_.next_attempt = wait > microseconds(0) ? at + wait : Timestamp();
        if (row_.failures == 0 && !row_.paused) return;
        row_.reason = (status ? "HTTP " + std::to_string(status) + ": " : "") + answer.text;
        link_.log((row_.paused ? "paused: " : "waiting until " + row_.next_attempt.to_string() + ": ") + row_.reason);
    }

    // Back towards the limit, slowly, so that a server with a smaller one is not asked again and again.
    void grow_batch(std::size_t sent) {
        const std::int64_t size = link_.batch_events;
        if (static_cast<std::int64_t>(sent) == size) link_.batch_events = std::min(link_.limit(), size + std::max<std::int64_t>(1, size / 16));
    }

    // A cancelled exchange is no failure of the vendor's. What was marked before sending stays marked.
    Step give_up(const std::vector<Item*>& sent) {
        report_.returned += static_cast<std::int64_t>(sent.size());
        return Step::finished;
    }

    // ---- writing down

    // Commits the fates that are decided: of a stretch of the log as far as nothing is open. False when the lease was lost.
    bool settle() {
        const auto open = [](const Item& item) { return item.fate == Fate::open; };
        auto& items = batch_.items;
        const auto end =
            batch_.from_log ? std::find_if(items.begin(), items.end(), open) : std::stable_partition(items.begin(), items.end(), std::not_fn(open));
        const std::span<const Item> settled(items.begin(), end), rest(end, items.end());
        const std::int64_t cursor = batch_.from_log && !settled.empty() ? settled.back().sequence : row_.cursor;
        const Tally tally = count_fates(settled);
        const bool mine = context_.store.write([&](Connection& c) {
            if (!write_row(c, cursor, tally)) return false;
            for (const Item& item : settled) write_fate(c, item);
            if (!batch_.from_log)
                for (const Item& item : rest) write_attempted_at(c, item, item.attempted_at.value_or(Timestamp()));
            if (context_.progress) progress_ = read_progress(c);
            return true;
        });
        if (!mine) return false;
        row_.cursor = cursor;
        add_to_report(tally, settled);
        items.erase(items.begin(), end);
        return true;
    }

    void write_fate(Connection& c, const Item& item) const {
        if (item.fate == Fate::parked || item.fate == Fate::held) {
            const auto state = item.fate == Fate::parked ? ExceptionState::parked : ExceptionState::held;
            c.prepared("INSERT OR REPLACE INTO exceptions(upstream, sequence, state, reason, status, text, at, due) VALUES(?, ?, ?, ?, ?, ?, ?, ?)")
                .run(row_.id, item.sequence, static_cast<int>(state), item.reason, item.status, item.text, now().micros(), item.due.micros());
        } else if (!batch_.from_log) {
            c.prepared("DELETE FROM exceptions WHERE upstream = ? AND sequence = ?").run(row_.id, item.sequence);
        }
    }

    void write_attempted_at(Connection& c, const Item& item, Timestamp at) const {
        c.prepared("UPDATE exceptions SET attempted_at = ? WHERE upstream = ? AND sequence = ?").run(at.micros(), row_.id, item.sequence);
    }

    // The small row, and with it the lease for the next exchange. False, and nothing written, when the lease was lost.
    bool write_row(Connection& c, std::int64_t cursor, const Tally& tally) const {
        c.prepared(
             "UPDATE upstreams SET cursor = ?, delivered = delivered + ?, duplicates = duplicates + ?, skipped = skipped + ?, failures = ?,"
             " next_attempt = ?, offline = ?, paused = ?, reason = ?, skew = ?, skew_at = ?, attempted = ?, attempted_at = ?,"
             " lease_until = ? WHERE id = ? AND fence = ?")
            .run(cursor, tally.delivered + tally.duplicates, tally.duplicates, tally.skipped, row_.failures, row_.next_attempt.micros(), row_.offline,
                 row_.paused, row_.reason, row_.skew.count(), row_.skew_at.micros(), row_.attempted, row_.attempted_at.micros(), lease_end(), row_.id,
                 row_.fence);
        return c.changes() > 0;
    }

    // ---- the report

    void add_to_report(const Tally& tally, std::span<const Item> settled) {
        report_.delivered += tally.delivered + tally.duplicates;
        report_.duplicates += tally.duplicates;
        report_.held += tally.held;
        report_.skipped += tally.skipped;
        report_.parked += tally.parked;
        if (tally.parked == 0) return;
        for (const Item& item : settled)
            if (item.fate == Fate::parked) add_parked(item);
    }

    void add_parked(const Item& item) {
        if (!item.was_sent) ++report_.unsent;
        auto& by = report_.parked_by;
        const auto found = std::find_if(by.begin(), by.end(), [&](const auto& entry) { return entry.first == item.reason; });
        if (found != by.end())
            ++found->second;
        else
            by.emplace_back(item.reason, 1);
    }

    FlushProgress read_progress(Connection& c) const {
        const Balance balance = read_balance(c, get_upstream(c, link_.name()));
        return {link_.name(), balance.delivered, balance.parked, balance.pending};
    }

    void finish_report(bool lost) {
        for (const Item& item : batch_.items)  // decided, but not the events before them: they are sent again
            if (item.was_sent && (item.fate == Fate::delivered || item.fate == Fate::duplicate || item.fate == Fate::parked)) ++report_.returned;
        report_.status = context_.store.read([&](Connection& c) { return read_status(c, link_.name(), get_upstream(c, link_.name()), now()); });
        report_.pending = report_.status.pending;
        if (!lost) return;
        report_.status.state = UpstreamState::busy;
        report_.status.reason = "another flush has it";
    }

    struct Attempt {
        std::int64_t attempted = 0;
        Timestamp at = {};
    };

    FlushContext& context_;
    Link& link_;
    const std::string owner_;
    UpstreamRow row_;
    Shipment batch_;
    std::string body_;  // of the last request, for its memory
    Attempt before_;
    UpstreamReport report_;
    FlushProgress progress_;
};

// ---- files for an air gap ---------------------------------------------------------------------------

// JSON Lines: a header, {"sequence": n, "event": {a line as record_json takes it}} for each event, and an end that tells whether the file
// is whole. "after" and "through" are the stretch of the device's log that the file answers for.
constexpr std::int64_t export_format = 1;

std::string device_id(Connection& c) {
    const Prepared row = c.prepared("SELECT value FROM meta WHERE key = 'device'");
    return row.row() ? std::string(row.text(0)) : std::string();
}

// A row of the log as record_json takes it.
std::string record_line(const Prepared& row) {
    const Event event = read_plain_event(row);
    std::string out = "{\"id\":";
    append_json_text(out, event.id);
    const auto member = [&out](const char* key, const std::string& text) {
        if (text.empty()) return;
        out += std::string(",\"") + key + "\":";
        append_json_text(out, text);
    };
    member("name", event.name);
    member("customer", event.customer);
    member("subscription", event.subscription);
    member("source", event.source);
    member("timestamp", event.timestamp->to_string());
    if (event.value) out += ",\"value\":" + event.value->to_string();
    out += ",\"properties\":";
    out += row.text(10);
    const std::string_view extra = row.text(11);
    if (extra.size() > 2) {  // an object's members, between its braces
        out += ',';
        out += extra.substr(1, extra.size() - 2);
    }
    return out += '}';
}

void export_line(std::ostream& file, const Link& link, const Prepared& row, ExportReport& report) {
    if (link.vendor.notices_only || !link.upstream.options().selection.empty()) {
        const Event event = read_event(row);
        if ((link.vendor.notices_only && !event.notice) || !link.selection.holds(event)) return;
    }
    const std::int64_t sequence = row.integer(0);
    file << "{\"sequence\":" << sequence << ",\"event\":" << record_line(row) << "}\n";
    if (report.events++ == 0) report.first = sequence;
    report.last = sequence;
}

ExportReport write_export(Connection& c, const Link& link, std::ostream& file) {
    const UpstreamRow row = get_upstream(c, link.name());
    ExportReport report;
    report.through = last_sequence(c);
    file << json{{"meter", "export"},       {"format", export_format}, {"device", device_id(c)},
                 {"upstream", link.name()}, {"after", row.cursor},     {"through", report.through}}
                .dump()
         << '\n';
    const Prepared aside =
        c.prepared(METER_EVENT_COLUMNS "JOIN exceptions x ON x.sequence = l.sequence WHERE x.upstream = ? AND x.state <> 0 ORDER BY l.sequence");
    aside.bind(row.id);
    while (aside.row()) export_line(file, link, aside, report);
    const Prepared rest = c.prepared(METER_EVENT_COLUMNS "WHERE l.sequence > ? ORDER BY l.sequence");
    rest.bind(row.cursor);
    while (rest.row()) export_line(file, link, rest, report);
    file << json{{"meter", "end"}, {"events", report.events}}.dump() << '\n';
    return report;
}

struct ExportHeader {
    std::string device = {};
    std::int64_t after = 0, through = 0;
};

std::int64_t whole_member(const json& object, const char* key, const std::string& path) {
    const auto found = object.find(key);
    if (found == object.end() || !found->is_number_unsigned() || found->get<std::uint64_t>() > std::uint64_t{1} << 62)
        throw Error(ErrorCode::bad_value, path, std::string("has no sound ") + key);
    return found->get<std::int64_t>();
}

// Reads the header and looks for the end, so that nothing of a file cut short is taken.
ExportHeader check_export(std::istream& file, const std::string& path) {
    std::string line, last;
    std::getline(file, line);
    const json header = parse_answer(line);
    if (text_member(header, "meter") != "export") throw Error(ErrorCode::bad_value, path, "is not an export of meter");
    if (whole_member(header, "format", path) > export_format) throw Error(ErrorCode::newer_schema, path, "was written by a newer release");
    ExportHeader result{text_member(header, "device"), whole_member(header, "after", path), whole_member(header, "through", path)};
    if (result.device.empty() || result.device.size() > 64) throw Error(ErrorCode::bad_value, path, "names no device");
    std::int64_t lines = -1;
    while (std::getline(file, line)) {
        ++lines;
        std::swap(line, last);
    }
    const json end = parse_answer(last);
    if (text_member(end, "meter") != "end" || whole_member(end, "events", path) != lines)
        throw Error(ErrorCode::bad_value, path, "is cut short: its end is missing");
    return result;
}

// The event of a line; empty when the line is not one of an export.
std::string_view exported_event(std::string_view line) {
    constexpr std::string_view opening = ",\"event\":";
    const std::size_t at = line.find(opening);
    if (!line.starts_with("{\"sequence\":") || at == std::string_view::npos || !line.ends_with("}")) return {};
    return line.substr(at + opening.size(), line.size() - at - opening.size() - 1);
}

// Notes that a device's log has arrived up to `through`; answers the gap before `after`, if there is one.
std::optional<std::pair<std::int64_t, std::int64_t>> note_import(Connection& c, const ExportHeader& header) {
    const std::int64_t known = c.integer("SELECT through FROM devices WHERE id = ?", header.device);
    c.prepared("INSERT INTO devices(id, through) VALUES(?1, ?2) ON CONFLICT(id) DO UPDATE SET through = max(through, ?2)")
        .run(header.device, header.through);
    if (header.after <= known) return std::nullopt;
    return std::pair(known + 1, header.after);
}

// ---- all upstreams of a store ---------------------------------------------------------------------

// What class Meter offers of delivery. Any thread may call any function; stop() must have returned before the store goes.
// The last sequence up to which every upstream has had all events for good; without an upstream, any.
std::int64_t delivered_through(Connection& c) {
    return c.integer("SELECT min(coalesce((SELECT min(cursor) FROM upstreams), ?1), coalesce((SELECT min(sequence) - 1 FROM exceptions), ?1))",
                     std::numeric_limits<std::int64_t>::max());
}

class Delivery {
public:
    Delivery(Store& store, Clock clock, Random random) : store_(store), clock_(std::move(clock)), random_(std::move(random)) {}
    Delivery(const Delivery&) = delete;
    Delivery& operator=(const Delivery&) = delete;
    ~Delivery() { stop(); }

    void connect(const Upstream& upstream) {
        const std::string& name = upstream.options().name;
        auto transport = upstream.options().transport ? upstream.options().transport : shared_curl();
        auto link = std::make_shared<Link>(upstream, std::move(transport));
        store_.write([&](Connection& c) {
            const auto row = find_upstream(c, name);
            if (row && row->vendor != upstream.vendor())
                throw Error(ErrorCode::bad_value, "name", "belongs to an upstream of another vendor: " + row->vendor);
            if (row) return c.prepared("UPDATE upstreams SET paused = 0, reason = '' WHERE name = ? AND paused = 1").run(name);
            const std::int64_t base = first_sequence(c) - 1;
            c.prepared("INSERT INTO upstreams(name, vendor, base, cursor) VALUES(?, ?, ?, ?)").run(name, upstream.vendor(), base, base);
        });
        {
            const std::lock_guard lock(mutex_);
            links_[name] = std::move(link);
        }
        wake();
    }

    FlushReport flush(
        const FlushOptions& options, std::function<bool()> stopped = [] { return false; }) {
        if (options.deadline < milliseconds(0)) throw Error(ErrorCode::bad_value, "deadline", "must not be negative");
        const auto links = chosen(options.upstream);
        std::mutex one;
        FlushContext context{store_, clock_, random_, std::chrono::steady_clock::now() + countable(options.deadline), std::move(stopped), {}};
        if (options.progress)
            context.progress = [&](const FlushProgress& progress) {
                const std::lock_guard lock(one);
                options.progress(progress);
            };
        FlushReport report;
        report.upstreams.resize(links.size());
        each_in_its_thread(links.size(), [&](std::size_t i) { report.upstreams[i] = Sender(context, *links[i], new_owner()).run(); });
        return report;
    }

    std::vector<UpstreamStatus> upstreams() const {
        return store_.read([&](Connection& c) {
            std::vector<UpstreamStatus> all;
            for (const std::string& name : names(c)) all.push_back(read_status(c, name, get_upstream(c, name), clock_()));
            return all;
        });
    }

    std::vector<UpstreamMonitoring> monitoring() const {
        return store_.read([&](Connection& c) {
            std::vector<UpstreamMonitoring> all;
            for (const std::string& name : names(c)) {
                const UpstreamRow row = get_upstream(c, name);
                all.push_back({read_status(c, name, row, clock_()), read_balance(c, row)});
            }
            return all;
        });
    }

    Balance balance(const std::string& upstream) const {
        return store_.read([&](Connection& c) { return read_balance(c, get_upstream(c, upstream)); });
    }

    std::vector<Parked> parked(const std::string& upstream, std::int64_t limit, std::int64_t after_sequence) const {
        if (limit < 1 || limit > static_cast<std::int64_t>(limits::page_events)) throw Error(ErrorCode::bad_value, "limit", "must be 1 to 1000");
        return store_.read([&](Connection& c) {
            const Prepared row = c.prepared(
                "SELECT sequence, reason, status, text, at FROM exceptions WHERE upstream = ? AND state = 0 AND sequence > ? ORDER BY sequence LIMIT "
                "?");
            row.bind(get_upstream(c, upstream).id, after_sequence, limit);
            std::vector<Parked> all;
            while (row.row()) {
                Parked parked;
                parked.event = event_at(c, row.integer(0)).value_or(Event());
                parked.event.sequence = row.integer(0);
                parked.reason = row.text(1);
                parked.status = static_cast<int>(row.integer(2));
                parked.text = row.text(3);
                parked.at = Timestamp(row.integer(4));
                all.push_back(std::move(parked));
            }
            return all;
        });
    }

    std::int64_t release(const std::string& upstream, std::span<const std::int64_t> sequences) {
        const std::int64_t released = store_.write([&](Connection& c) {
            const std::int64_t id = get_upstream(c, upstream).id;
            std::int64_t changed = 0;
            if (sequences.empty()) {
                c.prepared("UPDATE exceptions SET state = 2, attempted_at = 0 WHERE upstream = ? AND state = 0").run(id);
                changed = c.changes();
            }
            for (const std::int64_t sequence : sequences) {
                c.prepared("UPDATE exceptions SET state = 2, attempted_at = 0 WHERE upstream = ? AND state = 0 AND sequence = ?").run(id, sequence);
                changed += c.changes();
            }
            return changed;
        });
        wake();
        return released;
    }

    void resume(const std::string& upstream) {
        store_.write([&](Connection& c) {
            const std::int64_t id = get_upstream(c, upstream).id;
            c.prepared("UPDATE upstreams SET paused = 0, failures = 0, next_attempt = 0, reason = '' WHERE id = ?").run(id);
        });
        wake();
    }

    // ---- read-back

    Confirmation confirm(const std::string& upstream, const Period& period) {
        const std::shared_ptr<Link> link = connected(upstream);
        const ReadRule* rule = read_rule(link->vendor);
        if (!rule) throw Error(ErrorCode::unsupported, "upstream", "this vendor cannot be read back");
        if (period.from >= period.to) throw Error(ErrorCode::bad_value, "period", "must end after it begins");
        std::map<std::string, std::vector<Shown>> shown;
        read_back(*link, *rule, period, shown);
        Confirmation result;
        each_delivered(*link, period, [&](const Event& event) { compare(*link, *rule, event, shown, result); });
        for (const auto& [key, events] : shown)
            for (const Shown& event : events)
                result.extra.push_back(event.id.empty() ? event.name + " of " + event.customer + " at " + event.time.to_string() : event.id);
        return result;
    }

    std::int64_t resend(const std::string& upstream, std::span<const std::int64_t> sequences) {
        const std::shared_ptr<Link> link = connected(upstream);
        const std::int64_t resent = store_.write([&](Connection& c) {
            const UpstreamRow row = get_upstream(c, upstream);
            std::int64_t changed = 0;
            for (const std::int64_t sequence : sequences) {
                const auto event = sequence > row.base && sequence <= row.cursor ? event_at(c, sequence) : std::nullopt;
                if (!event || !meant_for(*link, *event)) continue;
                c.prepared("INSERT OR IGNORE INTO exceptions(upstream, sequence, state, at) VALUES(?, ?, 2, ?)")
                    .run(row.id, sequence, clock_().micros());
                changed += c.changes();
            }
            c.prepared("UPDATE upstreams SET delivered = delivered - ? WHERE id = ?").run(changed, row.id);
            return changed;
        });
        wake();
        return resent;
    }

    // ---- the air gap

    ExportReport export_pending(const std::string& upstream, const std::string& path) const {
        const std::shared_ptr<Link> link = connected(upstream);
        if (path.empty()) throw Error(ErrorCode::bad_value, "path", "is empty");
        const std::string part = path + ".part";  // takes the name when it is whole
        ExportReport report;
        {
            std::ofstream file(part, std::ios::binary | std::ios::trunc);
            store_.read([&](Connection& c) { report = write_export(c, *link, file); });
            file.flush();
            if (!file) throw Error(ErrorCode::io, path, "cannot be written");
        }
        std::error_code fault;
        std::filesystem::rename(part, path, fault);
        if (fault) throw Error(ErrorCode::io, path, fault.message());
        return report;
    }

    std::int64_t acknowledge_export(const std::string& upstream, std::int64_t through) {
        const std::shared_ptr<Link> link = connected(upstream);
        std::int64_t delivered = 0, step = 1;
        for (bool more = true; more; delivered += step) {
            step = store_.write([&](Connection& c) {
                const UpstreamRow row = get_upstream(c, upstream);
                if (lease_holds(row.lease_owner, row.lease_until, clock_())) throw Error(ErrorCode::busy, "upstream", "is being flushed");
                if (through > last_sequence(c)) throw Error(ErrorCode::bad_value, "through", "is beyond the log");
                c.prepared("DELETE FROM exceptions WHERE upstream = ? AND state <> 0 AND sequence <= ?").run(row.id, std::min(through, row.cursor));
                std::int64_t found = c.changes(), skipped = 0, cursor = row.cursor;
                for (const Event& event : events_after(c, row.cursor, 1000)) {
                    if (event.sequence > through) break;
                    cursor = event.sequence;
                    if (meant_for(*link, event))
                        ++found;
                    else
                        ++skipped;
                }
                more = cursor > row.cursor;
                c.prepared("UPDATE upstreams SET cursor = ?, delivered = delivered + ?, skipped = skipped + ?, fence = fence + 1 WHERE id = ?")
                    .run(cursor, found, skipped, row.id);
                return found;
            });
        }
        return delivered;
    }

    // ---- the background worker

    void start(WorkerOptions options) {
        if (options.events < 1) throw Error(ErrorCode::bad_value, "events", "must be positive");
        if (options.bytes < 1) throw Error(ErrorCode::bad_value, "bytes", "must be positive");
        if (options.age <= milliseconds(0)) throw Error(ErrorCode::bad_value, "age", "must be positive");
        options.age = countable(options.age);
        stop();
        const std::lock_guard lock(worker_mutex_);
        stopping_ = false;
        woken_ = true;  // for what is left from earlier
        worker_options_ = options;
        worker_ = std::thread([this, options] { work(options); });
    }

    // Ends the exchange under way, if any. What was not sent stays pending.
    void stop() {
        std::thread worker;
        {
            const std::lock_guard lock(worker_mutex_);
            stopping_ = true;
            std::swap(worker, worker_);
        }
        work_wanted_.notify_all();
        if (worker.joinable()) worker.join();
    }

    // Events were recorded.
    void recorded(std::int64_t events, std::int64_t bytes) {
        bool full = false;
        {
            const std::lock_guard lock(worker_mutex_);
            if (new_events_ == 0) oldest_new_ = std::chrono::steady_clock::now();
            new_events_ += events;
            new_bytes_ += bytes;
            full = new_events_ == events || new_events_ >= worker_options_.events || new_bytes_ >= worker_options_.bytes;
        }
        if (full) work_wanted_.notify_all();
    }

    // Coming online ends the waits that began because nothing answered; a wait that a server asked for goes on.
    void set_online(bool online) {
        if (online) store_.write([](Connection& c) { c.prepared("UPDATE upstreams SET failures = 0, next_attempt = 0 WHERE offline = 1").run(); });
        {
            const std::lock_guard lock(worker_mutex_);
            online_ = online;
        }
        wake();
    }

private:
    static bool meant_for(const Link& link, const Event& event) { return (event.notice || !link.vendor.notices_only) && link.selection.holds(event); }

    // Of a vendor that pages. Throws when it does not answer with events.
    static ShownPage read_one(const Link& link, const ReadRule& rule, const Period& period, std::int64_t page) {
        const HttpResponse response =
            link.transport->exchange(read_request(link.vendor, rule, link.upstream.options(), period, page), link.upstream.options().request_timeout);
        if (response.status == 0) throw Error(ErrorCode::io, link.name(), response.error.empty() ? "no answer" : response.error);
        if (response.status != 200)
            throw Error(ErrorCode::io, link.name(), "HTTP " + std::to_string(response.status) + ": " + printable(response.body));
        return read_page(rule, response.body);
    }

    static void read_back(const Link& link, const ReadRule& rule, const Period& period, std::map<std::string, std::vector<Shown>>& shown) {
        constexpr std::int64_t most_pages = 10000;
        ShownPage page;
        for (std::int64_t number = 0; number == 0 || page.more; ++number) {
            if (number == most_pages) throw Error(ErrorCode::too_large, "period", "holds too many events; ask for a shorter one");
            page = read_one(link, rule, period, number);
            const microseconds length = period.to - period.from;
            if (rule.paging == Paging::window && page.more && length > one_second) {
                const Timestamp middle = period.from + length / 2;
                read_back(link, rule, {period.from, middle}, shown);
                return read_back(link, rule, {middle, period.to}, shown);
            }
            if (rule.paging == Paging::window) page.more = false;
            for (Shown& event : page.events)
                if (period.contains(event.time)) shown[shown_key(rule, event)].push_back(std::move(event));
        }
    }

    template <class Use>
    void each_delivered(const Link& link, const Period& period, Use&& use) const {
        constexpr std::int64_t piece = 500;
        std::int64_t after = store_.read([&](Connection& c) { return get_upstream(c, link.name()).base; });
        bool more = true;
        while (more) {
            std::vector<Event> delivered;
            store_.read([&](Connection& c) {
                const UpstreamRow row = get_upstream(c, link.name());
                const std::vector<Event> events = events_after(c, after, piece);
                for (const Event& event : events) {
                    after = event.sequence;
                    if (event.sequence > row.cursor) break;
                    const bool set_aside =
                        c.integer("SELECT count(*) FROM exceptions WHERE upstream = ? AND sequence = ?", row.id, event.sequence) > 0;
                    if (!set_aside && period.contains(*event.timestamp) && meant_for(link, event)) delivered.push_back(event);
                }
                more = !events.empty() && after < row.cursor;
            });
            for (const Event& event : delivered) use(event);
        }
    }

    void compare(const Link& link, const ReadRule& rule, const Event& event, std::map<std::string, std::vector<Shown>>& shown,
                 Confirmation& result) const {
        const Shown ours = as_shown(rule, event);
        const auto found = shown.find(shown_key(rule, ours));
        if (found == shown.end()) {
            result.missing.push_back(event.sequence);
            if (link.vendor.resend_window == for_ever || clock_() - event.recorded_at.value_or(Timestamp()) < link.vendor.resend_window)
                result.repairable.push_back(event.sequence);
            return;
        }
        if (same_shown(rule, ours, found->second.back()))
            ++result.matching;
        else
            result.different.push_back(event.sequence);
        found->second.pop_back();
        if (found->second.empty()) shown.erase(found);
    }

    std::shared_ptr<Link> connected(const std::string& name) const {
        const std::lock_guard lock(mutex_);
        const auto found = links_.find(name);
        if (found == links_.end()) throw Error(ErrorCode::not_found, "upstream", "not connected: " + name);
        return found->second;
    }

    // All when the name is empty.
    std::vector<std::shared_ptr<Link>> chosen(const std::string& name) const {
        if (!name.empty()) return {connected(name)};
        const std::lock_guard lock(mutex_);
        std::vector<std::shared_ptr<Link>> links;
        for (const auto& [key, link] : links_) links.push_back(link);
        return links;
    }

    // One stalled upstream does not hold up the others.
    template <class F>
    static void each_in_its_thread(std::size_t count, F&& f) {
        if (count == 1) return f(0);
        std::vector<std::exception_ptr> faults(count);
        const auto one = [&](std::size_t i) {
            try {
                f(i);
            } catch (...) {
                faults[i] = std::current_exception();
            }
        };
        std::vector<std::thread> threads;
        threads.reserve(count);
        for (std::size_t i = 0; i < count; ++i) {
            try {
                threads.emplace_back(one, i);
            } catch (const std::system_error&) {  // no thread to be had: in this one
                one(i);
            }
        }
        for (std::thread& thread : threads) thread.join();
        for (const std::exception_ptr& fault : faults)
            if (fault) std::rethrow_exception(fault);
    }

    static std::vector<std::string> names(Connection& c) {
        std::vector<std::string> all;
        const Prepared row = c.prepared("SELECT name FROM upstreams ORDER BY id");
        while (row.row()) all.emplace_back(row.text(0));
        return all;
    }

    std::string new_owner() { return process_token() + ":" + std::to_string(++flushes_); }

    std::shared_ptr<Transport> shared_curl() {
        const std::lock_guard lock(mutex_);
        if (!curl_) curl_ = curl_transport();
        return curl_;
    }

    void wake() {
        {
            const std::lock_guard lock(worker_mutex_);
            woken_ = true;
        }
        work_wanted_.notify_all();
    }

    // Waits until there is a reason to send: a threshold, a wake-up, or the time of the next attempt. False when it is to stop.
    bool wait_for_work(const WorkerOptions& options, std::optional<SteadyTime> next) {
        std::unique_lock lock(worker_mutex_);
        for (;;) {
            const SteadyTime now = std::chrono::steady_clock::now();
            if (stopping_) return false;
            const bool full = new_events_ >= options.events || new_bytes_ >= options.bytes;
            const bool aged = new_events_ > 0 && now - oldest_new_ >= options.age;
            if (online_ && (woken_ || full || aged || (next && now >= *next))) break;
            SteadyTime until = now + std::chrono::hours(1);
            if (online_ && next) until = std::min(until, *next);
            if (online_ && new_events_ > 0) until = std::min(until, oldest_new_ + options.age);
            work_wanted_.wait_until(lock, until);
        }
        woken_ = false;
        new_events_ = new_bytes_ = 0;
        return true;
    }

    void work(const WorkerOptions& options) {
        constexpr milliseconds round{600000};
        const auto stopped = [this] { return stopping_.load(); };
        std::optional<SteadyTime> next;
        while (wait_for_work(options, next)) {
            next = std::chrono::steady_clock::now() + options.age;  // other processes' events come without a word
            try {
                const FlushReport report = flush({.upstream = {}, .deadline = round, .progress = {}}, stopped);
                for (const UpstreamReport& upstream : report.upstreams) next = std::min(*next, next_look(upstream.status));
                if (options.done) options.done(report);
            } catch (const std::exception& error) {
                for (const auto& link : chosen("")) link->log(std::string("worker: ") + error.what());
            }
        }
    }

    SteadyTime next_look(const UpstreamStatus& status) const {
        constexpr milliseconds soonest{20};
        const SteadyTime now = std::chrono::steady_clock::now();
        if (status.state == UpstreamState::pending) return now + soonest;
        if (status.state != UpstreamState::waiting || !status.next_attempt) return now + std::chrono::hours(1);
        return now + std::max<microseconds>(soonest, *status.next_attempt - clock_());
    }

    Store& store_;
    const Clock clock_;
    const Random random_;
    mutable std::mutex mutex_;  // of links_ and curl_
    std::map<std::string, std::shared_ptr<Link>> links_;
    std::shared_ptr<Transport> curl_;
    std::atomic<std::uint64_t> flushes_{0};

    std::mutex worker_mutex_;  // of what follows
    std::condition_variable work_wanted_;
    std::thread worker_;
    WorkerOptions worker_options_;
    std::atomic<bool> stopping_{true};
    bool woken_ = false, online_ = true;
    std::int64_t new_events_ = 0, new_bytes_ = 0;
    SteadyTime oldest_new_ = {};
};

}  // namespace

std::int64_t& ImportReport::count(ReceiptStatus status) noexcept {
    switch (status) {
        case ReceiptStatus::stored:
            return stored;
        case ReceiptStatus::duplicate:
            return duplicates;
        case ReceiptStatus::conflict:
            return conflicts;
        case ReceiptStatus::refused:
        case ReceiptStatus::over_limit:
            break;
    }
    return refused;
}

bool FlushReport::complete() const noexcept {
    return std::all_of(upstreams.begin(), upstreams.end(), [](const UpstreamReport& report) { return report.pending == 0; });
}

// =============================================================================================
// 11 transport: one HTTP exchange through libcurl, when built with METER_CURL. Uses nothing.
// =============================================================================================

#ifdef METER_CURL
namespace {

// An easy handle and the multi handle that keeps its connections. Used by one exchange at a time.
struct CurlHandle {
    CURLM* multi = curl_multi_init();
    CURL* easy = curl_easy_init();
    CurlHandle() = default;
    CurlHandle(const CurlHandle&) = delete;
    CurlHandle& operator=(const CurlHandle&) = delete;
    ~CurlHandle() {
        curl_easy_cleanup(easy);
        curl_multi_cleanup(multi);
    }
};

struct CurlAnswer {
    HttpResponse response = {};
    std::size_t limit = 0;
    std::size_t received = 0;
};

std::size_t take_body(char* data, std::size_t size, std::size_t count, void* user) noexcept {
    auto& answer = *static_cast<CurlAnswer*>(user);
    answer.received += size * count;
    if (answer.received > answer.limit) return 0;
    try {
        answer.response.body.append(data, size * count);
    } catch (...) {
        return 0;
    }
    return size * count;
}

std::size_t take_header(char* data, std::size_t size, std::size_t count, void* user) noexcept {
    auto& answer = *static_cast<CurlAnswer*>(user);
    answer.received += size * count;
    if (answer.received > answer.limit) return 0;
    std::string_view line(data, size * count);
    while (!line.empty() && (line.back() == '\r' || line.back() == '\n' || line.back() == ' ')) line.remove_suffix(1);
    try {
        const std::size_t colon = line.find(':');
        if (line.starts_with("HTTP/")) {
            answer.response.headers.clear();  // of an interim answer
        } else if (colon != std::string_view::npos) {
            const std::size_t value = std::min(line.find_first_not_of(" \t", colon + 1), line.size());
            answer.response.headers.emplace_back(line.substr(0, colon), line.substr(value));
        }
    } catch (...) {
        return 0;
    }
    return size * count;
}

struct CurlList {
    curl_slist* list = nullptr;
    CurlList() = default;
    CurlList(const CurlList&) = delete;
    CurlList& operator=(const CurlList&) = delete;
    ~CurlList() { curl_slist_free_all(list); }
    void add(const std::string& line) {
        curl_slist* longer = curl_slist_append(list, line.c_str());
        if (!longer) throw std::bad_alloc();
        list = longer;
    }
};

class CurlTransport final : public Transport {
public:
    explicit CurlTransport(CurlOptions options) : options_(std::move(options)) {
        static const CURLcode started = curl_global_init(CURL_GLOBAL_DEFAULT);
        if (started != CURLE_OK) throw Error(ErrorCode::unsupported, "transport", curl_easy_strerror(started));
    }

    HttpResponse exchange(const HttpRequest& request, std::chrono::milliseconds timeout) override {
        CurlAnswer answer;
        answer.limit = options_.max_response_bytes;
        std::unique_ptr<CurlHandle> handle = take();
        CurlList headers;
        headers.add("Expect:");  // no waiting for 100 Continue
        for (const auto& [name, value] : request.headers) headers.add(name + ": " + value);
        prepare(handle->easy, request, timeout, answer, headers.list);
        curl_multi_add_handle(handle->multi, handle->easy);
        const CURLcode result = perform(*handle, request);
        finish(handle->easy, result, answer);
        curl_multi_remove_handle(handle->multi, handle->easy);
        curl_easy_reset(handle->easy);
        if (result == CURLE_OK) give_back(std::move(handle));
        return std::move(answer.response);
    }

private:
    void prepare(CURL* easy, const HttpRequest& request, std::chrono::milliseconds timeout, CurlAnswer& answer, curl_slist* headers) const {
        const auto bounded = [](std::chrono::milliseconds t) { return static_cast<long>(std::clamp<std::int64_t>(t.count(), 1, 86400000)); };
        curl_easy_setopt(easy, CURLOPT_URL, request.url.c_str());
#if LIBCURL_VERSION_NUM >= 0x075500
        curl_easy_setopt(easy, CURLOPT_PROTOCOLS_STR, "http,https");
#else
        curl_easy_setopt(easy, CURLOPT_PROTOCOLS, CURLPROTO_HTTP | CURLPROTO_HTTPS);
#endif
        curl_easy_setopt(easy, CURLOPT_HTTPHEADER, headers);
        if (request.method != "GET") {
            curl_easy_setopt(easy, CURLOPT_POSTFIELDS, request.body.data());
            curl_easy_setopt(easy, CURLOPT_POSTFIELDSIZE_LARGE, static_cast<curl_off_t>(request.body.size()));
            curl_easy_setopt(easy, CURLOPT_CUSTOMREQUEST, request.method.c_str());
        }
        curl_easy_setopt(easy, CURLOPT_FOLLOWLOCATION, 0L);
        curl_easy_setopt(easy, CURLOPT_NOSIGNAL, 1L);
        curl_easy_setopt(easy, CURLOPT_TCP_NODELAY, 1L);
        curl_easy_setopt(easy, CURLOPT_TCP_KEEPALIVE, 1L);
        curl_easy_setopt(easy, CURLOPT_TIMEOUT_MS, bounded(timeout));
        curl_easy_setopt(easy, CURLOPT_CONNECTTIMEOUT_MS, bounded(std::min(timeout, options_.connect_timeout)));
        curl_easy_setopt(easy, CURLOPT_SSL_VERIFYPEER, 1L);
        curl_easy_setopt(easy, CURLOPT_SSL_VERIFYHOST, 2L);
        if (!options_.ca_file.empty()) curl_easy_setopt(easy, CURLOPT_CAINFO, options_.ca_file.c_str());
        if (!options_.proxy.empty()) curl_easy_setopt(easy, CURLOPT_PROXY, options_.proxy.c_str());
        // On a kept connection that turns out dead libcurl sends the request again by itself; on a fresh one it does not.
        curl_easy_setopt(easy, CURLOPT_FRESH_CONNECT, request.once ? 1L : 0L);
        curl_easy_setopt(easy, CURLOPT_WRITEFUNCTION, take_body);
        curl_easy_setopt(easy, CURLOPT_WRITEDATA, &answer);
        curl_easy_setopt(easy, CURLOPT_HEADERFUNCTION, take_header);
        curl_easy_setopt(easy, CURLOPT_HEADERDATA, &answer);
    }

    static CURLcode perform(CurlHandle& handle, const HttpRequest& request) {
        constexpr int slice_ms = 100;
        for (int running = 1; running > 0;) {
            if (curl_multi_perform(handle.multi, &running) != CURLM_OK) return CURLE_FAILED_INIT;
            if (running == 0) break;
            if (request.cancelled && request.cancelled()) return CURLE_ABORTED_BY_CALLBACK;
            if (curl_multi_poll(handle.multi, nullptr, 0, slice_ms, nullptr) != CURLM_OK) return CURLE_FAILED_INIT;
        }
        int left = 0;
        const CURLMsg* message = curl_multi_info_read(handle.multi, &left);
        return message && message->msg == CURLMSG_DONE ? message->data.result : CURLE_FAILED_INIT;
    }

    static void finish(CURL* easy, CURLcode result, CurlAnswer& answer) {
        long status = 0;
        curl_off_t started = 0;
        curl_easy_getinfo(easy, CURLINFO_RESPONSE_CODE, &status);
        curl_easy_getinfo(easy, CURLINFO_PRETRANSFER_TIME_T, &started);
        if (result == CURLE_OK) {
            answer.response.status = static_cast<int>(status);
            return;
        }
        answer.response.sent = started > 0;
        answer.response.error = answer.received > answer.limit ? "answer over max_response_bytes" : curl_easy_strerror(result);
        answer.response.headers.clear();
        answer.response.body.clear();
    }

    std::unique_ptr<CurlHandle> take() {
        {
            const std::lock_guard lock(mutex_);
            if (!idle_.empty()) {
                std::unique_ptr<CurlHandle> handle = std::move(idle_.back());
                idle_.pop_back();
                return handle;
            }
        }
        auto handle = std::make_unique<CurlHandle>();
        if (!handle->easy || !handle->multi) throw std::bad_alloc();
        return handle;
    }

    void give_back(std::unique_ptr<CurlHandle> handle) {
        const std::lock_guard lock(mutex_);
        if (idle_.size() < 8) idle_.push_back(std::move(handle));
    }

    const CurlOptions options_;
    std::mutex mutex_;
    std::vector<std::unique_ptr<CurlHandle>> idle_;
};

}  // namespace

std::shared_ptr<Transport> curl_transport(CurlOptions options) { return std::make_shared<CurlTransport>(std::move(options)); }
#else
std::shared_ptr<Transport> curl_transport(CurlOptions) {
    throw Error(ErrorCode::unsupported, "transport", "this build has no libcurl (METER_CURL); give UpstreamOptions::transport");
}
#endif

// =============================================================================================
// 12 Meter: the facade: locks, threads, wiring. Uses all of them.
// =============================================================================================

namespace {

std::uint64_t system_random() {
    static thread_local std::mt19937_64 engine{(std::uint64_t{std::random_device{}()} << 32) ^ std::random_device{}()};
    return engine();
}

// What books ask, answered from the log.
class LogUsage : public UsageSource {
public:
    std::vector<Measured> measure(const Metric& metric, const AggregateQuery& query) override {
        auto rows = rows_of(metric, query);
        if (rows.empty() && query.group_by.empty() && query.bin == Bin::none) rows.push_back({{}, {}, {}, 0, false, false});
        return rows;
    }

    using UsageSource::steps;
    std::vector<EventStep> steps(const Metric& metric, const AggregateQuery& query, std::size_t limit, const std::optional<Decimal>& until) override {
        std::vector<EventStep> found;
        Decimal sum;
        const StepAccumulator accumulator = stepped(reader(), {metric, rules_named(metric.rules), query});
        for (const Step& step : accumulator.steps()) {
            if (found.size() >= limit || (until && sum > *until)) break;
            found.push_back({Timestamp(step.place.time), step.place.sequence, step.value, step.item});
            sum += step.value;
        }
        return found;
    }

    Event event(std::int64_t sequence) override {
        auto found = event_at(reader(), sequence);
        if (!found) damaged("log");
        return std::move(*found);
    }

    Decimal precise_total_cents(const Metric& metric, const AggregateQuery& query) override {
        Metric cents = metric;
        cents.aggregation = Aggregation::sum;
        cents.property = fields::cents;
        if (!metric.expression.empty()) cents.computed = computed_field(metric);
        const auto rows = rows_of(cents, query);
        return rows.empty() ? Decimal() : rows[0].value;
    }

protected:
    virtual Reader reader() = 0;
    virtual std::vector<Measured> rows_of(const Metric& metric, const AggregateQuery& query) {
        return meter::measure(reader(), metric, rules_named(metric.rules), query);
    }
};

// From a snapshot.
class StoreUsage final : public LogUsage {
public:
    explicit StoreUsage(const Reader& reader) : reader_(reader) {}

private:
    Reader reader() override { return reader_; }
    const Reader& reader_;
};

// Inside the transaction that records an event.
class GrowingUsage final : public LogUsage {
public:
    GrowingUsage(GrowingLog& log, RunningTotals& totals) : log_(log), totals_(totals) {}

private:
    Reader reader() override { return log_.whole(); }
    std::vector<Measured> rows_of(const Metric& metric, const AggregateQuery& query) override {
        return totals_.measure(log_, metric, rules_named(metric.rules), query);
    }
    GrowingLog& log_;
    RunningTotals& totals_;
};

// ---- books in force: which version of which book prices what, and when ----

using Books = std::vector<BookVersion>;  // by vendor, code and moment

Book read_book(const StoredBook& stored) {
    return from_file("books", [&] { return Book::of(stored.vendor, json::parse(stored.source)); });
}

std::string text_of_source(const Book& book) {
    try {
        return book.source().dump();
    } catch (const json::exception&) {
        refuse("book", "holds text that is not UTF-8");
    }
}

// The books of the database, read again when they have changed.
class Shelf {
public:
    std::shared_ptr<const Books> books(Connection& db) const {
        const std::lock_guard lock(mutex_);
        if (const std::int64_t mark = books_mark(db); !books_ || mark != mark_) {
            Books read;
            for (const StoredBook& stored : stored_books(db)) read.push_back({read_book(stored), stored.effective});
            books_ = std::make_shared<const Books>(std::move(read));
            mark_ = mark;
        }
        return books_;
    }

private:
    mutable std::mutex mutex_;
    mutable std::int64_t mark_ = 0;
    mutable std::shared_ptr<const Books> books_;
};

using Versions = std::vector<const BookVersion*>;

// The versions, of that code if any, that know the subscription or customer, those of one book together.
std::vector<Versions> serving(const Books& books, const UsageQuery& query, const std::string& code = {}) {
    std::vector<Versions> found;
    for (const BookVersion& each : books) {
        if (!code.empty() && each.book.code() != code) continue;
        if (!each.book.impl().serves(query.subscription, query.customer)) continue;
        const auto same = [&](const Book& other) { return other.vendor() == each.book.vendor() && other.code() == each.book.code(); };
        if (found.empty() || !same(found.back()[0]->book)) found.emplace_back();
        found.back().push_back(&each);
    }
    return found;
}

// Those of the first book.
Versions versions_for(const Books& books, const UsageQuery& query, const std::string& code = {}) {
    auto found = serving(books, query, code);
    if (!found.empty()) return std::move(found.front());
    if (!code.empty()) throw Error(ErrorCode::not_found, "book", "there is no " + quote(code) + " that prices this");
    throw Error(ErrorCode::not_found, query.subscription.empty() ? "customer" : "subscription", "no book that is loaded prices it");
}

struct InForce {
    const Book::Impl* book = nullptr;
    Timestamp since = Timestamp::min();
};

// Nothing before the first version. A version that takes effect within a billing period of the one before it follows when that ends, so that a
// period is priced by one version.
std::optional<InForce> in_force(std::span<const BookVersion* const> versions, const UsageQuery& query, Timestamp at) {
    if (versions.front()->effective_from > at) return std::nullopt;
    InForce found{&versions.front()->book.impl(), versions.front()->effective_from};
    for (const BookVersion* next : versions.subspan(1)) {
        if (next->effective_from > at) break;
        Timestamp change = found.since;
        if (next->effective_from > change) {
            const Period running = found.book->period_around(query, next->effective_from);
            change = running.from == next->effective_from ? running.from : running.to;
        }
        if (change > at) break;
        found = {&next->book.impl(), change};
    }
    return found;
}

// Of each book the last version that has taken effect.
std::vector<const Book::Impl*> books_now(const Books& books, Timestamp now) {
    std::vector<const Book::Impl*> found;
    for (const BookVersion& each : books) {
        if (each.effective_from > now) continue;
        const Book::Impl& book = each.book.impl();
        if (!found.empty() && found.back()->vendor == book.vendor && found.back()->code == book.code) found.pop_back();
        found.push_back(&book);
    }
    return found;
}

[[noreturn]] void throw_not_yet(const BookVersion& first) {
    throw Error(ErrorCode::not_found, "book", quote(first.book.code()) + " takes effect only at " + first.effective_from.to_string());
}

const Book::Impl& book_at(std::span<const BookVersion* const> versions, const UsageQuery& query, Timestamp at) {
    const auto found = in_force(versions, query, at);
    if (!found) throw_not_yet(*versions.front());
    return *found->book;
}

const Book::Impl& book_at(const Books& books, const Event& event, Timestamp at) {
    const UsageQuery query{.subscription = event.subscription, .customer = event.customer};
    return book_at(versions_for(books, query), query, at);
}

void check_usage(const UsageQuery& query) {
    if (query.subscription.empty() && query.customer.empty()) refuse("subscription", "a subscription or a customer is required");
    if (query.period) check_period(*query.period);
}

// The book for a question about a period, and the question as far as the book has been in force.
struct Asked {
    const Book::Impl* book = nullptr;
    UsageQuery query{};
};

Asked asked_of(std::span<const BookVersion* const> versions, const UsageQuery& query, Timestamp now) {
    const BookVersion& first = *versions.front();
    auto found = in_force(versions, query, query.period ? query.period->from : now);
    if (!found && query.period && first.effective_from < query.period->to) found = {&first.book.impl(), first.effective_from};
    if (!found) throw_not_yet(first);
    Asked asked{found->book, query};
    Period period = query.period.value_or(found->book->period_around(query, now));
    if (found->since > period.from) asked.query.period = Period{found->since, period.to};
    return asked;
}

void add_fees(Fees& sum, Fees more) {
    if (!sum.fees.empty() && !more.fees.empty() && sum.currency != more.currency)
        refuse("subscription", "is needed: this customer's are priced in " + sum.currency + " and " + more.currency);
    if (sum.fees.empty()) sum.currency = more.currency, sum.subunits = more.subunits;
    sum.amount_cents += more.amount_cents;
    std::move(more.fees.begin(), more.fees.end(), std::back_inserter(sum.fees));
}

// What `ask(book, query)` answers for each subscription that the question is about, by the version that prices it.
template <class Ask>
Fees ask_books(std::span<const BookVersion* const> versions, UsageQuery query, Timestamp now, Ask&& ask) {
    if (versions.size() == 1 && versions[0]->effective_from == Timestamp::min()) return ask(versions[0]->book.impl(), query);
    Fees fees;
    for (const std::string& subscription : versions.back()->book.impl().subscriptions_of(query, now)) {
        query.subscription = subscription;
        const Asked asked = asked_of(versions, query, now);
        add_fees(fees, ask(*asked.book, asked.query));
    }
    return fees;
}

// Of several books the first that allows it answers, else the first that has a balance at all.
Check check_books(const Books& books, const Event& event, Timestamp now, UsageSource& usage) {
    std::string without;
    bool served = false;
    std::optional<Check> refused;
    const UsageQuery query{.subscription = event.subscription, .customer = event.customer};
    for (const Versions& versions : serving(books, query)) {
        const auto current = in_force(versions, query, now);
        if (!current) continue;
        const Book::Impl& book = *current->book;
        if (!book.has_balances()) without = book.vendor;
        served = served || book.has_balances();
        if (!book.knows_feature(event.name)) continue;
        const Check answer = book.check(event, now, usage);
        if (answer.allowed) return answer;
        if (!refused || refused->reason == "no_balance") refused = answer;
    }
    if (refused) return *refused;
    if (served) throw Error(ErrorCode::not_found, "name", "no book with balances knows the feature " + event.name);
    if (without.empty()) throw Error(ErrorCode::not_found, "customer", "no book that is loaded has it");
    throw Error(ErrorCode::unsupported, "customer", "is priced by a book of " + without + ", which has no balances; Autumn's have");
}

// ---- limits on what is recorded ----

void check_limit(const Limit& limit) {
    check_question("limit.metric", limit.metric);
    check_question("limit.book", limit.book);
    if (limit.units.has_value() == limit.cents.has_value()) refuse("limit", "needs either units or cents");
    if (limit.units && limit.metric.empty()) refuse("limit.metric", "is needed for a limit in units");
    if (limit.units && limit.units->is_negative()) refuse("limit.units", "must not be negative");
    if (limit.cents && limit.cents->is_negative()) refuse("limit.cents", "must not be negative");
    if (limit.cents && limit.scope == LimitScope::all) refuse("limit.scope", "cannot be all for a fee: books price a subscription or a customer");
    if (limit.scope > LimitScope::all || limit.scope < LimitScope::customer) refuse("limit.scope", "is not a scope of limits");
    if (limit.period && limit.period->from >= limit.period->to) refuse("limit.period", "must end after it begins");
}

// Whose usage it is must be known.
void check_owner(const Draft& draft, const Limit& limit) {
    if (limit.scope == LimitScope::customer && draft.customer.empty()) refuse("customer", "is needed: the limit is a customer's");
    if (limit.scope == LimitScope::subscription && draft.subscription.empty()) refuse("subscription", "is needed: the limit is a subscription's");
}

// What a limit asks about one event.
struct LimitQuestion {
    const Limit* limit = nullptr;
    Timestamp time{};
    UsageQuery usage{};  // of a limit in cents
    Metric metric{};     // of a limit in units, as the rest
    AggregateQuery units{};
};

// Holds every event against the limits.
class Guard final : public Gate {
public:
    Guard(GrowingLog& log, RunningTotals& totals, std::span<const Limit> limits, std::shared_ptr<const Books> books, Timestamp now)
        : log_(log), usage_(log, totals), limits_(limits), books_(std::move(books)), now_(now) {}

    void before(const Draft& draft, Timestamp time, std::int64_t last, Receipt& receipt) override {
        log_.move_to(last);
        questions_.clear();
        for (const Limit& limit : limits_) {
            LimitCheck check;
            questions_.push_back(question_of(limit, draft, time, check.period));
            check.limit = limit.units ? *limit.units : *limit.cents;
            check.before = ask(questions_.back());
            receipt.limits.push_back(std::move(check));
        }
    }

    bool stays(Receipt& receipt) override {
        log_.add_event();
        bool stays = true;
        for (std::size_t i = 0; i < limits_.size(); ++i) {
            LimitCheck& check = receipt.limits[i];
            check.after = ask(questions_[i]);
            check.over = check.after > check.limit && check.after > check.before;
            if (!check.over || limits_[i].soft) continue;
            if (stays) name_limit(i, check, receipt);
            stays = false;
        }
        return stays;
    }

private:
    LimitQuestion question_of(const Limit& limit, const Draft& draft, Timestamp time, Period& period) const {
        LimitQuestion question{&limit, time, {}, {}, {}};
        UsageQuery& usage = question.usage;
        if (limit.scope != LimitScope::all) usage.customer = draft.customer;
        if (limit.scope == LimitScope::subscription) usage.subscription = draft.subscription;
        usage.period = limit.period;
        period = limit.period ? *limit.period : billing_period(limit, usage, time);
        if (!limit.units) return question;
        question.metric = metric_named(limit.metric);
        question.units.customer = limit.scope == LimitScope::customer ? usage.customer : std::string();
        question.units.subscription = usage.subscription;
        question.units.period = period;
        return question;
    }

    // The book's around the event; a limit in units needs no book, and has the calendar month then.
    Period billing_period(const Limit& limit, const UsageQuery& query, Timestamp time) const {
        const auto found = serving(*books_, query, limit.book);
        const auto current = found.empty() ? std::nullopt : in_force(found.front(), query, time);
        if (current) return current->book->period_around(query, time);
        if (limit.units && limit.book.empty()) return this_month(time);
        return book_at(versions_for(*books_, query, limit.book), query, time).period_around(query, time);
    }

    const Metric& metric_named(const std::string& code) const {
        const auto known = metrics_.find(code);
        return known != metrics_.end() ? known->second : metrics_.emplace(code, find_metric(log_.db, code, now_)).first->second;
    }

    Decimal ask(const LimitQuestion& question) {
        const Limit& limit = *question.limit;
        if (limit.units) return usage_.measure(question.metric, question.units).at(0).value;
        bool known = limit.metric.empty();
        const auto price = [&](const Book::Impl& book, const UsageQuery& asked) {
            for (const Metric& metric : book.metrics) known = known || metric.code == limit.metric;
            return book.usage(asked, moment_of(book, asked, question.time), usage_);
        };
        const Fees fees = ask_books(versions_for(*books_, question.usage, limit.book), question.usage, question.time, price);
        Decimal cents;
        for (const Fee& fee : fees.fees) {
            if (!limit.metric.empty() && fee.metric != limit.metric) continue;
            cents += fee.amount_cents;
            known = true;
        }
        if (!known) throw Error(ErrorCode::not_found, "metric", quote(limit.metric) + " is not in the book");
        return cents;
    }

    // Balances are followed up to a moment. All of the period is to count, whatever order its events come in.
    static Timestamp moment_of(const Book::Impl& book, const UsageQuery& query, Timestamp time) {
        return book.has_balances() ? book.period_around(query, time).to - std::chrono::microseconds(1) : time;
    }

    void name_limit(std::size_t i, const LimitCheck& check, Receipt& receipt) const {
        const Limit& limit = limits_[i];
        receipt.field = "limits[" + std::to_string(i) + "]." + (limit.units ? "units" : "cents");
        receipt.reason = "would be " + check.after.to_string() + (limit.metric.empty() ? "" : " of " + quote(limit.metric)) + ", and at most " +
                         check.limit.to_string() + " may be";
    }

    GrowingLog& log_;
    GrowingUsage usage_;
    std::span<const Limit> limits_;
    std::shared_ptr<const Books> books_;
    Timestamp now_;
    std::vector<LimitQuestion> questions_;
    mutable std::map<std::string, Metric> metrics_;
};

// ---- a dry run: the same log under two books ----

// What is asked about one customer after the other is measured once for all of them, grouped by customer.
class SharedUsage final : public LogUsage {
public:
    explicit SharedUsage(const Reader& reader) : reader_(reader) {}

private:
    using ByOwner = std::map<std::string, std::vector<Measured>>;
    struct Shared {
        std::optional<ByOwner> owners{};
        bool refused = false;
    };
    Reader reader() override { return reader_; }
    std::vector<Measured> rows_of(const Metric& metric, const AggregateQuery& query) override {
        const bool one_owner = query.customer.empty() != query.subscription.empty();
        const bool whole = query.group_by.empty() && query.bin == Bin::none;
        const bool other_in_parts = whole && rules_named(metric.rules).values_in_parts;  // a group of customers would count other values
        if (!one_owner || query.top != 0 || query.fill || other_in_parts) return LogUsage::rows_of(metric, query);
        const std::string field = query.customer.empty() ? "subscription" : "customer";
        AggregateQuery everyone = query;
        const std::string owner = std::exchange(query.customer.empty() ? everyone.subscription : everyone.customer, {});
        everyone.group_by.insert(everyone.group_by.begin(), field);
        const auto [known, first] = answers_.try_emplace(question_key(metric, everyone));
        Shared& shared = known->second;
        if (!first && !shared.owners && !shared.refused) share(shared, metric, everyone);
        if (!shared.owners) return LogUsage::rows_of(metric, query);  // also at first, as perhaps nobody else is asked about
        const auto rows = shared.owners->find(owner);
        return rows == shared.owners->end() ? std::vector<Measured>() : rows->second;
    }
    // One customer's numbers that cannot be added up, or too many groups, must not stand in the way of the others.
    void share(Shared& shared, const Metric& metric, const AggregateQuery& everyone) {
        try {
            shared.owners = by_owner(LogUsage::rows_of(metric, everyone));
        } catch (const Error& error) {
            if (error.code() != ErrorCode::overflow && error.code() != ErrorCode::too_large) throw;
            shared.refused = true;
        }
    }
    static ByOwner by_owner(std::vector<Measured> rows) {
        ByOwner owners;
        for (Measured& row : rows) {
            const auto owner = std::exchange(row.group.front(), {});
            row.group.erase(row.group.begin());
            if (owner) owners[*owner].push_back(std::move(row));
        }
        return owners;
    }
    const Reader& reader_;
    std::map<std::string, Shared> answers_;
};

// Who has events in the period: each customer with its subscriptions. A subscription belongs to the first customer it comes with; the customer
// is empty where none does.
std::map<std::string, std::set<std::string>> owners_of(const Reader& reader, const Period& period) {
    ScanQuestion question;
    question.from = period.from.micros();
    question.to = period.to.micros();
    const std::size_t customer = question.key(fields::customer), subscription = question.key(fields::subscription);
    std::set<std::pair<std::int64_t, std::int64_t>> pairs;
    for (const Source& source : sources(reader, question)) {
        const Batch batch = load(reader, source, question);
        std::pair<std::int64_t, std::int64_t> last{-1, -1};
        if (batch.rows > 0) {
            each_row(batch, [&](std::size_t row) {
                const std::pair met{batch.columns[customer].cells[row], batch.columns[subscription].cells[row]};
                if (met != last) pairs.insert(last = met);
            });
        }
    }
    std::map<std::string, std::string> customers;  // of each subscription
    std::map<std::string, std::set<std::string>> owners;
    for (const auto& [a, b] : pairs) {
        const std::string name = a == 0 ? std::string() : text_of(reader, a);
        if (!name.empty()) owners[name];
        if (b == 0) continue;
        std::string& known = customers[text_of(reader, b)];
        if (known.empty() || (!name.empty() && name < known)) known = name;
    }
    for (const auto& [id, name] : customers) owners[name].insert(id);
    return owners;
}

// What two metrics have in common that measure the same, whatever the vendors call it.
std::string measured_by(const Book& book, const std::string& code) {
    const auto metrics = book.metrics();
    const auto known = std::find_if(metrics.begin(), metrics.end(), [&](const Metric& metric) { return metric.code == code; });
    if (known == metrics.end()) return code;
    Metric same = *known;
    same.event = same.event.empty() ? same.code : same.event;
    same.property = same.property.empty() ? same.property : column_key(same.property);
    same.rounding.reset();
    same.rules.clear();
    return metric_definition(same).dump();
}

// One of the two books.
class Side {
public:
    Side(const Book& book, const Period& period, bool closing, Timestamp now, UsageSource& usage)
        : book_(book), query_{.subscription = {}, .customer = {}, .period = period, .closing = closing}, now_(now), usage_(usage) {}

    // The fees of a customer, or of a subscription without one; nothing when the book does not price it.
    ComparedFees fees(const std::string& customer, const std::set<std::string>& subscriptions, std::map<std::string, PricedMetric>& metrics) {
        ComparedFees answer;
        try {
            for (const UsageQuery& query : queries(customer, subscriptions)) {
                const Fees fees = book_.impl().usage(query, now_, usage_);
                if (!fees.currency.empty()) currency = fees.currency, subunits = fees.subunits;
                answer.cents = answer.cents.value_or(0) + fees.amount_cents;
                for (const Fee& fee : fees.fees) add(fee, metrics);
            }
        } catch (const Error& error) {
            if (error.code() == ErrorCode::corrupt || error.code() == ErrorCode::io) throw;
            answer = {{}, error.what()};
            metrics.clear();
        }
        return answer;
    }

    std::string currency{};
    int subunits = 100;

private:
    std::vector<UsageQuery> queries(const std::string& customer, const std::set<std::string>& subscriptions) const {
        UsageQuery query = query_;
        query.customer = customer;
        if (book_.impl().prices_customer(customer)) return {query};
        std::vector<UsageQuery> list;
        for (const std::string& subscription : subscriptions) {
            if (!book_.impl().serves(subscription, customer)) continue;
            query.subscription = subscription;
            query.customer.clear();
            list.push_back(query);
        }
        return list;
    }
    void add(const Fee& fee, std::map<std::string, PricedMetric>& metrics) {
        const auto [known, fresh] = keys_.try_emplace(fee.metric);
        if (fresh) known->second = measured_by(book_, fee.metric);
        PricedMetric& metric = metrics[known->second];
        metric.metric = fee.metric;
        metric.units += fee.units;
        metric.cents += fee.amount_cents;
    }
    const Book& book_;
    UsageQuery query_;
    Timestamp now_;
    UsageSource& usage_;
    std::map<std::string, std::string> keys_{};
};

CustomerComparison compare_customer(Side& a, Side& b, const std::string& customer, const std::set<std::string>& subscriptions) {
    CustomerComparison row;
    row.customer = customer;
    if (customer.empty()) row.subscription = *subscriptions.begin();
    std::map<std::string, PricedMetric> of_a, of_b;
    row.a = a.fees(customer, subscriptions, of_a);
    row.b = b.fees(customer, subscriptions, of_b);
    if (!a.currency.empty() && !b.currency.empty() && a.currency != b.currency)
        refuse("currency", "is " + a.currency + " in the one book and " + b.currency + " in the other");
    for (auto& [key, metric] : of_a) {
        MetricComparison& one = row.metrics.emplace_back();
        one.a = std::move(metric);
        if (const auto same = of_b.extract(key); !same.empty()) one.b = std::move(same.mapped());
    }
    for (auto& [key, metric] : of_b) row.metrics.push_back({{}, std::move(metric)});
    return row;
}

void add_to(Comparison& answer, CustomerComparison row) {
    answer.a += row.a.cents.value_or(0);
    answer.b += row.b.cents.value_or(0);
    if (!row.a.problem.empty() || !row.b.problem.empty()) ++answer.problems;
    answer.customers.push_back(std::move(row));
}

Comparison compare_books(const Reader& reader, const Book& a, const Book& b, const Period& period, bool closing, Timestamp now) {
    SharedUsage usage(reader);
    Side one(a, period, closing, now, usage), other(b, period, closing, now, usage);
    Comparison answer;
    answer.period = period;
    for (const auto& [customer, subscriptions] : owners_of(reader, period)) {
        if (!customer.empty()) {
            add_to(answer, compare_customer(one, other, customer, subscriptions));
            continue;
        }
        for (const std::string& subscription : subscriptions) add_to(answer, compare_customer(one, other, {}, {subscription}));
    }
    const Side& priced = one.currency.empty() ? other : one;
    answer.currency = priced.currency;
    answer.subunits = priced.subunits;
    return answer;
}

}  // namespace

struct Meter::Impl {
    explicit Impl(MeterOptions given)
        : options(complete(std::move(given))), store(store_options(options)), delivery(store, options.clock, options.random) {}

    static StoreOptions store_options(const MeterOptions& options) {
        StoreOptions store;
        store.path = options.path;
        store.sync_full = options.durability == Durability::full;
        store.busy_timeout = options.busy_timeout;
        store.max_bytes = options.max_bytes;
        store.cache_bytes = options.cache_bytes;
        store.index_bytes = options.index_bytes;
        store.page_bytes = options.page_bytes;
        store.chunk_events = options.chunk_events;
        store.clock = options.clock;
        store.schemas = {delivery_schema};
        return store;
    }

    static MeterOptions complete(MeterOptions options) {
        if (!options.clock) options.clock = Timestamp::now;
        if (!options.random) options.random = system_random;
        if (options.path.empty()) refuse("path", "is empty; \":memory:\" is the database in memory");
        if (options.path.find('\0') != std::string::npos) refuse("path", "contains a NUL character");
        if (options.max_bytes < 0) refuse("max_bytes", "must not be negative");
        if (options.busy_timeout.count() < 0) refuse("busy_timeout", "must not be negative");
        if (!std::has_single_bit(options.page_bytes) || options.page_bytes < 512 || options.page_bytes > 65536)
            refuse("page_bytes", "must be a power of two from 512 to 65536");
        if (options.chunk_events < min_chunk_events || options.chunk_events > max_segment_rows) {
            refuse("chunk_events", "must be from " + std::to_string(min_chunk_events) + " to " + std::to_string(max_segment_rows));
        }
        return options;
    }

    // Later than all before, whatever the clock says: ids made are in the order of their events.
    std::uint64_t next_moment(Timestamp now) {
        std::uint64_t last = last_moment, next = 0;
        do {
            next = std::max(uuid_moment(now), last + 1);
        } while (!last_moment.compare_exchange_weak(last, next));
        return next;
    }

    // Gives ids to drafts without one, and stores them all, or those that the limits let in.
    void append(Drafts& drafts, std::span<const Limit> limits = {}) {
        const Timestamp now = options.clock();
        if (now < Timestamp::min() || now > Timestamp::max()) refuse("clock", "is outside the years 1 to 9999");
        for (Draft& draft : drafts.accepted) {
            if (!draft.id.empty()) continue;
            draft.id = drafts.texts.emplace_front(make_uuid(next_moment(now), options.random()));
            drafts.receipts[draft.receipt].id = draft.id;
        }
        if (drafts.accepted.empty()) return;
        if (limits.empty()) {
            store.append(drafts, now);
        } else {
            append_guarded(drafts, limits, now);
        }
        delivery.recorded(static_cast<std::int64_t>(drafts.accepted.size()), static_cast<std::int64_t>(drafts.json_text.size()));
    }

    void append_guarded(Drafts& drafts, std::span<const Limit> limits, Timestamp now) {
        store.append(drafts, now, [&](Connection& db, ScanMemory& columns, std::uint64_t rollbacks, auto&& append) {
            GrowingLog log(db, columns, rollbacks);
            Guard guard(log, totals, limits, shelf.books(db), now);
            append(guard);
        });
    }

    static void check_batch(std::size_t events) {
        if (events > limits::batch_events) throw Error(ErrorCode::too_large, "events", "are more than " + std::to_string(limits::batch_events));
    }

    Metric polar_metric(const std::string& meter) const {
        try {
            return metric(polar::metric_code(meter));
        } catch (const Error& error) {
            if (error.code() != ErrorCode::not_found) throw;
            throw Error(ErrorCode::not_found, "meter", quote(meter) + " is in no Polar book that is loaded");
        }
    }

    Metric metric(const std::string& code) const {
        return store.read([&](Connection& db) { return find_metric(db, code, options.clock()); });
    }

    std::shared_ptr<const Books> books() const {
        return store.read([&](Connection& db) { return shelf.books(db); });
    }

    // What `ask(books, usage)` answers from one snapshot.
    template <class Ask>
    auto price(Ask&& ask) const {
        return store.scan([&](const Reader& reader) {
            const auto books = shelf.books(reader);
            StoreUsage usage(reader);
            return ask(*books, usage);
        });
    }

    // Each event on its own, all from one snapshot; an error says which event it is about.
    template <class Ask>
    std::vector<Fees> price_each(std::span<const Event> events, Ask&& ask) const {
        check_batch(events.size());
        return price([&](const Books& books, UsageSource& usage) {
            const Timestamp now = options.clock();
            std::vector<Fees> answers;
            answers.reserve(events.size());
            for (const Event& event : events) {
                answers.push_back(beneath("events[" + std::to_string(answers.size()) + "]", [&] {
                    draft_one(event);
                    return ask(book_at(books, event, now), event, now, usage);
                }));
            }
            return answers;
        });
    }

    std::vector<std::int64_t> locate(std::span<const std::string> ids) {
        std::set<std::int64_t> rows;
        for (const std::string& id : ids) {
            if (const std::int64_t row = store.locate(id)) rows.insert(row);
        }
        return {rows.begin(), rows.end()};
    }

    Page list(const ListQuery& query) {
        check_list(query);
        const FilterRules& rules = rules_named(query.rules, "rules").filter;
        const std::vector<std::int64_t> rows = locate(query.ids);
        return store.scan([&](const Reader& reader) { return list_page(reader, query, rules, query.ids.empty() ? nullptr : &rows); });
    }

    MeterOptions options;
    std::atomic<std::uint64_t> last_moment{0};
    Store store;
    Shelf shelf;
    RunningTotals totals;  // used in write transactions only
    Delivery delivery;     // after the store: it goes first
};

Meter::Meter(MeterOptions options) : impl_(std::make_unique<Impl>(std::move(options))) {}
Meter::~Meter() = default;
Meter::Meter(Meter&&) noexcept = default;
Meter& Meter::operator=(Meter&&) noexcept = default;

Receipt Meter::record(const Event& event) {
    Drafts drafts = draft_one(event);
    impl_->append(drafts);
    return std::move(drafts.receipts[0]);
}

std::vector<Receipt> Meter::record(std::span<const Event> events) {
    Impl::check_batch(events.size());
    Drafts drafts;
    drafts.accepted.reserve(events.size());
    drafts.receipts.reserve(events.size());
    for (const Event& event : events) add_draft(drafts, [&](Draft& draft) { draft_event(drafts, draft, event); });
    impl_->append(drafts);
    return std::move(drafts.receipts);
}

Receipt Meter::record(const Event& event, const Limit& limit) {
    check_limit(limit);
    Drafts drafts = draft_one(event);
    check_owner(drafts.accepted[0], limit);
    impl_->append(drafts, std::span(&limit, 1));
    return std::move(drafts.receipts[0]);
}

std::vector<Receipt> Meter::record(std::span<const Event> events, std::span<const Limit> limits) {
    Impl::check_batch(events.size());
    for (const Limit& limit : limits) check_limit(limit);
    Drafts drafts;
    for (const Event& event : events) {
        add_draft(drafts, [&](Draft& draft) {
            draft_event(drafts, draft, event);
            for (const Limit& limit : limits) check_owner(draft, limit);
        });
    }
    impl_->append(drafts, limits);
    return std::move(drafts.receipts);
}

std::vector<Receipt> Meter::record_json(std::string_view lines) {
    Drafts drafts;
    drafts.json_text.reserve(lines.size());
    for (std::size_t begin = 0; begin < lines.size();) {
        const std::size_t end = std::min(lines.find('\n', begin), lines.size());
        const std::string_view line = lines.substr(begin, end - begin);
        begin = end + 1;
        if (line.find_first_not_of(" \t\r") == std::string_view::npos) continue;
        Impl::check_batch(drafts.receipts.size() + 1);
        add_draft(drafts, [&](Draft& draft) { draft_line(drafts, draft, line); });
    }
    impl_->append(drafts);
    return std::move(drafts.receipts);
}

std::optional<Event> Meter::find(std::string_view id) const {
    const std::int64_t sequence = impl_->store.locate(id);
    if (sequence == 0) return std::nullopt;
    return impl_->store.read([sequence](Connection& db) { return event_at(db, sequence); });
}

Page Meter::list(const ListQuery& query) const { return impl_->list(query); }
Page Meter::list(const Cursor& cursor) const { return impl_->list(cursor_query(cursor)); }

NameList Meter::list_names(const NamesQuery& query) const {
    check_names(query);
    return impl_->store.scan([&](const Reader& reader) { return names_page(reader, query, {true, query.by_source}); });
}

NameList Meter::list_sources(const NamesQuery& query) const {
    check_names(query);
    return impl_->store.scan([&](const Reader& reader) { return names_page(reader, query, {false, true}); });
}

Monitoring Meter::monitoring(const MonitoringQuery& query) const {
    const Period period = query.period.value_or(last_days(1, impl_->options.clock()));
    check_period(period);
    Monitoring answer = impl_->store.scan([&](const Reader& reader) { return count_windows(reader, period, {query.bin, query.time_zone}); });
    answer.upstreams = impl_->delivery.monitoring();
    return answer;
}

PruneReport Meter::prune(const PruneOptions& options) {
    if (options.keep_bytes < 0) refuse("keep_bytes", "must not be negative");
    PruneReport report;
    const auto may_go = [&](Connection& db, const ChunkInfo& chunk) {
        const bool old = chunk.recorded < options.recorded_before.micros();
        const bool over = options.keep_bytes > 0 && used_bytes(db) > options.keep_bytes;
        return (old || over) && chunk.last <= delivered_through(db);
    };
    report.events = impl_->store.prune(may_go);
    return report;
}

void Meter::compact(const std::function<void(std::int64_t done, std::int64_t total)>& progress) { impl_->store.compact(progress); }

std::vector<std::string> Meter::verify(bool repair) { return impl_->store.verify(repair); }

void Meter::define(const Metric& metric) {
    if (metric.code.empty()) refuse("metric.code", "is empty");
    check_metric(metric);
    check_ruled(metric, rules_named(metric.rules));
    impl_->store.write([&](Connection& db) { store_metric(db, metric); });
}

std::vector<Metric> Meter::metrics() const {
    return impl_->store.read([&](Connection& db) { return metrics_at(db, impl_->options.clock()); });
}

Aggregate Meter::aggregate(const AggregateQuery& query) const { return aggregate(impl_->metric(query.metric), query); }

Quantities Meter::quantities(const QuantitiesQuery& query) const { return quantities(impl_->polar_metric(query.meter), query); }

Quantities Meter::quantities(const Metric& metric, const QuantitiesQuery& query) const {
    check_metric(metric);
    return impl_->store.scan([&](const Reader& reader) {
        StoreUsage usage(reader);
        return polar::quantities(metric, query, usage);
    });
}

CustomerMeter Meter::customer_meter(const std::string& meter, const std::vector<std::string>& customers) const {
    const Metric metric = impl_->polar_metric(meter);
    return impl_->store.scan([&](const Reader& reader) {
        StoreUsage usage(reader);
        return polar::customer_meter(meter, metric, customers, usage);
    });
}

Aggregate Meter::aggregate(const Metric& metric, const AggregateQuery& query) const {
    check_metric(metric);
    const Rules& rules = rules_named(metric.rules);
    return impl_->store.scan([&](const Reader& reader) {
        auto rows = measure(reader, metric, rules, query);
        Aggregate answer;
        answer.rows.reserve(rows.size());
        for (Measured& row : rows) answer.rows.push_back({row.bin, std::move(row.group), row.value, row.events, row.rest});
        return answer;
    });
}

ActiveValues Meter::active_values(const ActiveQuery& query) const {
    const Metric metric = impl_->metric(query.metric);
    check_active(metric, query);
    return impl_->store.scan([&](const Reader& reader) { return active_page(reader, metric, rules_named(metric.rules), query); });
}

Analytics Meter::analytics(const AnalyticsQuery& query) const {
    const Timestamp now = impl_->options.clock();
    return impl_->store.scan([&](const Reader& reader) {
        const auto books = impl_->shelf.books(reader);
        StoreUsage usage(reader);
        std::vector<Metric> metrics;
        for (const std::string& code : query.metrics) metrics.push_back(find_metric(reader, code, now));
        if (query.metrics.empty()) metrics = metrics_at(reader, now);
        return meter::analytics(query, {metrics, books_now(*books, now), now, usage});
    });
}

std::vector<Decimal> Meter::inference_costs(std::span<const std::string> ids) const {
    std::vector<std::optional<Event>> events;
    for (const std::string& id : ids) events.push_back(find(id));
    const auto books = impl_->books();
    return nano_costs(events, books_now(*books, impl_->options.clock()));
}

void Meter::load(const Book& book, Timestamp effective_from) {
    if (effective_from < Timestamp::min() || effective_from > Timestamp::max()) refuse("effective_from", "is outside the years 1 to 9999");
    const std::string source = text_of_source(book);
    const std::vector<Metric> metrics = book.metrics();
    impl_->store.write([&](Connection& db) {
        const std::int64_t id = put_book(db, book.vendor(), book.code(), effective_from, source);
        for (const Metric& metric : metrics) store_metric(db, metric, id);
    });
}

void Meter::remove_book(const std::string& vendor, const std::string& code, std::optional<Timestamp> effective_from) {
    impl_->store.write([&](Connection& db) {
        if (drop_books(db, vendor, code, effective_from) == 0)
            throw Error(ErrorCode::not_found, "book",
                        "there is no " + quote(code) + " of " + quote(vendor) + (effective_from ? " of that moment" : ""));
    });
}

std::vector<BookVersion> Meter::books() const { return *impl_->books(); }

Fees Meter::estimate_fees(const Event& event) const {
    draft_one(event);
    return impl_->price([&](const Books& books, UsageSource& usage) {
        const Timestamp now = impl_->options.clock();
        return book_at(books, event, now).estimate_fees(event, now, usage);
    });
}

std::vector<Fees> Meter::estimate_fees(std::span<const Event> events) const {
    return impl_->price_each(
        events, [](const Book::Impl& book, const Event& event, Timestamp now, UsageSource& usage) { return book.estimate_fees(event, now, usage); });
}

Fees Meter::estimate_instant_fees(const Event& event) const {
    draft_one(event);
    const auto books = impl_->books();
    const Timestamp now = impl_->options.clock();
    Fees fees = book_at(*books, event, now).estimate_instant_fees(event, now);
    if (fees.fees.empty()) refuse("name", "does_not_match_an_instant_charge");
    return fees;
}

std::vector<Fees> Meter::estimate_instant_fees(std::span<const Event> events) const {
    return impl_->price_each(
        events, [](const Book::Impl& book, const Event& event, Timestamp now, UsageSource&) { return book.estimate_instant_fees(event, now); });
}

Fees Meter::advance_fees(std::string_view id) const {
    const std::optional<Event> event = find(id);
    if (!event) throw Error(ErrorCode::not_found, "id", quote(id) + " is not in the log");
    return impl_->price(
        [&](const Books& books, UsageSource& usage) { return book_at(books, *event, *event->timestamp).advance_fees(*event, usage); });
}

Fees Meter::advance_fees(const UsageQuery& query) const {
    check_usage(query);
    return impl_->price([&](const Books& books, UsageSource& usage) {
        const Timestamp now = impl_->options.clock();
        return ask_books(versions_for(books, query), query, now,
                         [&](const Book::Impl& book, const UsageQuery& asked) { return book.advance_fees(asked, now, usage); });
    });
}

Fees Meter::usage(const UsageQuery& query) const {
    check_usage(query);
    return impl_->price([&](const Books& books, UsageSource& usage) {
        const Timestamp now = impl_->options.clock();
        return ask_books(versions_for(books, query), query, now,
                         [&](const Book::Impl& book, const UsageQuery& asked) { return book.usage(asked, now, usage); });
    });
}

Comparison Meter::compare(const Book& a, const Book& b, const Period& period, bool closing) const {
    check_period(period);
    return impl_->store.scan([&](const Reader& reader) { return compare_books(reader, a, b, period, closing, impl_->options.clock()); });
}

Check Meter::check(const Event& event) const {
    if (event.customer.empty()) refuse("customer", "is required");
    return impl_->price([&](const Books& books, UsageSource& usage) { return check_books(books, event, impl_->options.clock(), usage); });
}

void Meter::connect(const Upstream& upstream) { impl_->delivery.connect(upstream); }
FlushReport Meter::flush(const FlushOptions& options) { return impl_->delivery.flush(options); }
void Meter::start(const WorkerOptions& options) { impl_->delivery.start(options); }
void Meter::stop() { impl_->delivery.stop(); }
void Meter::set_online(bool online) { impl_->delivery.set_online(online); }
std::vector<UpstreamStatus> Meter::upstreams() const { return impl_->delivery.upstreams(); }
Balance Meter::balance(const std::string& upstream) const { return impl_->delivery.balance(upstream); }
std::vector<Parked> Meter::parked(const std::string& upstream, std::int64_t limit, std::int64_t after_sequence) const {
    return impl_->delivery.parked(upstream, limit, after_sequence);
}
std::int64_t Meter::release(const std::string& upstream, std::span<const std::int64_t> sequences) {
    return impl_->delivery.release(upstream, sequences);
}
Confirmation Meter::confirm(const std::string& upstream, const Period& period) { return impl_->delivery.confirm(upstream, period); }
std::int64_t Meter::resend(const std::string& upstream, std::span<const std::int64_t> sequences) {
    return impl_->delivery.resend(upstream, sequences);
}
ExportReport Meter::export_pending(const std::string& upstream, const std::string& path) const {
    return impl_->delivery.export_pending(upstream, path);
}
std::int64_t Meter::acknowledge_export(const std::string& upstream, std::int64_t through) {
    return impl_->delivery.acknowledge_export(upstream, through);
}

ImportReport Meter::import_events(const std::string& path) {
    constexpr std::size_t chunk = 256 * 1024;
    std::ifstream file(path, std::ios::binary);
    if (!file) throw Error(ErrorCode::io, path, "cannot be read");
    const ExportHeader header = check_export(file, path);
    file.clear();
    file.seekg(0);
    ImportReport report;
    std::string line, lines;
    const auto take = [&] {
        for (const Receipt& receipt : record_json(lines)) ++report.count(receipt.status);
        lines.clear();
    };
    while (std::getline(file, line)) {
        const std::string_view event = exported_event(line);
        if (event.empty()) continue;
        lines.append(event).push_back('\n');
        if (lines.size() >= chunk) take();
    }
    take();
    if (const auto gap = impl_->store.write([&](Connection& c) { return note_import(c, header); })) report.gap = *gap;
    return report;
}

void Meter::resume(const std::string& upstream) { impl_->delivery.resume(upstream); }

}  // namespace meter
