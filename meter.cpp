// meter: see meter.hpp for what it does. This file is one room with twelve corners, in order of dependency; a section uses only those
// above it. Pure in the middle (1-3, 7-9: no database, clock, socket or thread), effects at the edge. SQL stands only in 4-6 and 10,
// a vendor's name only in 8 and 9.
// SPDX-License-Identifier: MIT
//
//    1 decimal    exact numbers                       7 fees        from units to amounts
//    2 time       timestamps, periods, bins           8 books       how each vendor measures and prices
//    3 values     JSON text, paths, filters           9 wire        requests, answers and rules of each vendor
//    4 store      SQLite: schema, log, segments      10 delivery    cursors, batches, waiting, parking
//    5 reading    find, list, names                  11 transport   libcurl (optional)
//    6 measuring  scan, aggregate                    12 Meter       the facade: locks, threads, wiring

#include "meter.hpp"

#include <SQLiteCpp/SQLiteCpp.h>
#include <sqlite3.h>

#include <algorithm>
#include <array>
#include <bit>
#include <charconv>
#include <cmath>
#include <condition_variable>
#include <cstring>
#include <limits>
#include <map>
#include <mutex>
#include <random>
#include <thread>
#include <unordered_map>
#include <unordered_set>

#ifdef METER_CURL
#include <curl/curl.h>
#endif

namespace meter {

Error::Error(ErrorCode code, std::string field, std::string reason)
    : std::runtime_error(field.empty() ? reason : field + ": " + reason), code_(code), field_(std::move(field)), reason_(std::move(reason)) {}

// =============================================================================================
// 1 decimal: exact numbers. A sign, a 128-bit coefficient in two words, a scale. Uses nothing.
// =============================================================================================

namespace {

/// An unsigned 128-bit integer; the members' order makes the defaulted comparison the numeric one.
struct Words {
    std::uint64_t high = 0, low = 0;
    friend constexpr auto operator<=>(const Words&, const Words&) noexcept = default;
};

/// An unsigned integer for what lies between exact operands and an exact result: at most 10^190, the numerator of a division
/// (10^38 moved by both scales). Little-endian; no zero limb at `size - 1`.
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

/// False, and a value without meaning, when the product needs more than 128 bits.
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

/// Divides in place and answers the remainder.
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

/// Of a number of at most four limbs.
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

/// value -= factor * other * 2^(32 * shift), limb by limb; true when that went below zero (the value is then 2^32-complemented).
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

/// Schoolbook division (Knuth, The Art of Computer Programming, volume 2, 4.3.1, algorithm D). The divisor is not zero.
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

/// Whether a quotient cut towards zero moves one step away from zero. `half` compares the remainder with half of the divisor.
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

/// True when a * b < 2^63 for certain, so that another such number can be added.
bool product_is_small(std::uint64_t a, std::uint64_t b) noexcept { return std::countl_zero(a) + std::countl_zero(b) > 64; }

constexpr bool is_digit(char c) noexcept { return c >= '0' && c <= '9'; }

[[noreturn]] void throw_overflow() { throw Error(ErrorCode::overflow, "", "the exact result needs more than 38 digits or 76 decimals"); }

/// Text from outside for an error's reason: its beginning, in printable ASCII.
std::string quote(std::string_view text) {
    constexpr std::size_t shown = 40;
    std::string quoted = "\"";
    for (const char c : text.substr(0, shown)) quoted += c >= ' ' && c <= '~' ? c : '?';
    return quoted + (text.size() <= shown ? "\"" : "...\"");
}

}  // namespace

/// What the functions of this section need of Decimal's inside.
struct DecimalParts {
    static Words coefficient(const Decimal& value) noexcept { return {value.high_, value.low_}; }
    static bool is_small(const Decimal& value) noexcept { return value.high_ == 0; }

    /// From a number in lowest terms that fits.
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

    /// A negative scale stands for zeros before the point.
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

/// Appends `zeros` zeros and one digit. False when that is more digits than a Decimal holds.
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

/// Reads "e", a sign and digits to the end of the text; nothing when it is something else. Saturates far outside of what fits.
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

/// The ordinary case, all in 64 bits; false, and nothing done, in any other. `sum` may be `a`: a running total is then updated in
/// place, three times as fast as through a temporary (its 16-byte copy would have to wait for two 8-byte stores).
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

/// The scale may be negative here: to tens, hundreds, ...
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

/// Reads a timestamp from left to right; every function throws when the text goes on in another way.
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
    /// The digits after a point, cut to microseconds.
    std::int64_t fraction() {
        std::int64_t micros = 0, unit = micros_per_second / 10;
        do {
            micros += digit() * unit;
            unit /= 10;
        } while (!at_end() && is_digit(text_[at_]));
        return micros;
    }
    /// Minutes east of UTC.
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

/// `value` in units of 10^-decimals microseconds' worth: 6 for seconds, 3 for milliseconds.
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
    const std::int64_t known = (now.micros() - Timestamp::min().micros()) / micros_per_day;
    return {days <= known ? Timestamp(now.micros() - days * micros_per_day) : Timestamp::min(), now};
}

Period this_month(Timestamp now) {
    using namespace std::chrono;
    const auto date = date_of(now);
    const year_month_day first = date.year() / date.month() / day(1);
    return {midnight(first), midnight(first + months(1))};
}

// =============================================================================================
// 3 values: JSON text (scanner, writer, canonical form), property paths, filters. Pure. Uses 1, 2.
// =============================================================================================

// =============================================================================================
// 4 store: the SQLite file: schema, connections, transactions, the event log. Uses 1-3.
// =============================================================================================

// =============================================================================================
// 5 reading: find, list, names. Uses 1-4.
// =============================================================================================

// =============================================================================================
// 6 measuring: the scan, and aggregates over it. Uses 1-5.
// =============================================================================================

// =============================================================================================
// 7 fees: tiers, packages, percentages, rounding to a currency. Pure. Uses 1-3.
// =============================================================================================

// =============================================================================================
// 8 books: how each vendor measures and prices, from its own JSON. Pure. Uses 1-3, 7.
// =============================================================================================

// =============================================================================================
// 9 wire: each vendor's requests, answers and rules, as tables. Pure. Uses 1-3.
// =============================================================================================

// =============================================================================================
// 10 delivery: cursors, batches, waiting, parking. Uses 1-5, 9.
// =============================================================================================

// =============================================================================================
// 11 transport: one HTTP exchange through libcurl, when built with METER_CURL. Uses nothing.
// =============================================================================================

// =============================================================================================
// 12 Meter: the facade: locks, threads, wiring. Uses all of them.
// =============================================================================================

}  // namespace meter
