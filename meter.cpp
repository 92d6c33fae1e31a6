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
    static Decimal add(const Decimal& coarse, const Decimal& fine);
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
    constexpr std::int64_t most = std::int64_t{1} << 60;
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

/// `fine` has at least as many decimals as `coarse`.
Decimal DecimalParts::add(const Decimal& coarse, const Decimal& fine) {
    // A difference in scale leaves fine's last digit as the sum's. So when the sum fits, so does coarse in fine's decimals (it is under
    // 10^38 + 10^38 < 2^128).
    Words a = coefficient(coarse);
    const Words b = coefficient(fine);
    if (!multiply_by_power(a, fine.scale_ - coarse.scale_)) throw_overflow();
    if (coarse.negative_ != fine.negative_) {
        return a >= b ? make(meter::subtract(a, b), fine.scale_, coarse.negative_) : make(meter::subtract(b, a), fine.scale_, fine.negative_);
    }
    const Words sum = meter::add(a, b);
    if (sum < a) throw_overflow();
    return make(sum, fine.scale_, fine.negative_);
}

Decimal operator+(const Decimal& a, const Decimal& b) {
    const Decimal& coarse = a.scale_ <= b.scale_ ? a : b;
    const Decimal& fine = a.scale_ <= b.scale_ ? b : a;
    const int shift = fine.scale_ - coarse.scale_;
    const bool small = DecimalParts::is_small(a) && DecimalParts::is_small(b) && shift <= max_power64;
    if (!small || !product_is_small(coarse.low_, power64(shift)) || !product_is_small(fine.low_, 1)) return DecimalParts::add(coarse, fine);
    const std::uint64_t left = coarse.low_ * power64(shift), right = fine.low_;
    if (coarse.negative_ == fine.negative_) return DecimalParts::make(left + right, fine.scale_, fine.negative_);
    return left >= right ? DecimalParts::make(left - right, fine.scale_, coarse.negative_)
                         : DecimalParts::make(right - left, fine.scale_, fine.negative_);
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

namespace {

/// The units beyond `above` up to and including `up_to` (all of them when absent), at `rate` each, and `flat` once.
struct Tier {
    Decimal above;
    std::optional<Decimal> up_to;
    Decimal rate, flat;
    Decimal from;  ///< the lower bound as the vendor writes it
};

/// An amount in currency units and the lines that add up to it.
struct Priced {
    Decimal amount;
    std::vector<FeeLine> lines;

    void add(FeeLine line) {
        amount += line.amount;
        lines.push_back(std::move(line));
    }
};

/// a / b to 32 significant digits; 0 when b is 0.
Decimal quotient(const Decimal& a, const Decimal& b) { return b.is_zero() ? Decimal() : Decimal::divide_significant(a, b, 32, Rounding::half_up); }

Decimal percent(const Decimal& rate) { return rate * Decimal::scaled(1, 2); }

Decimal smaller(const Decimal& a, const std::optional<Decimal>& b) { return b && *b < a ? *b : a; }

Decimal at_least_zero(const Decimal& value) { return value.is_negative() ? Decimal() : value; }

FeeLine units_line(const Decimal& units, const Decimal& rate) { return {.units = units, .rate = rate, .amount = units * rate}; }

FeeLine free_line(const Decimal& units) { return {.step = FeeLine::Step::free, .units = units}; }

FeeLine tier_line(const Tier& tier, const Decimal& units) {
    return {.step = FeeLine::Step::tier,
            .from = tier.from,
            .to = tier.up_to,
            .units = units,
            .rate = tier.rate,
            .flat = tier.flat,
            .amount = units * tier.rate + tier.flat};
}

/// Graduated: every tier prices the units that fall into it, up to the first tier that reaches `units`. That includes the first tier
/// for no units at all, or less.
Priced graduated(std::span<const Tier> tiers, const Decimal& units) {
    Priced priced;
    priced.lines.reserve(tiers.size());
    for (const auto& tier : tiers) {
        priced.add(tier_line(tier, smaller(units, tier.up_to) - tier.above));
        if (!tier.up_to || *tier.up_to >= units) break;
    }
    return priced;
}

/// How many packages of `size` are begun by `units`.
Decimal begun_packages(const Decimal& units, const Decimal& size) { return Decimal::divide(units, size, 0, Rounding::ceil); }

/// Packages: each begun one is paid whole.
Priced packages(const Decimal& units, const Decimal& size, const Decimal& rate) {
    Priced priced;
    priced.add({.step = FeeLine::Step::package, .units = units, .rate = rate, .per = size, .amount = begun_packages(units, size) * rate});
    return priced;
}

FeeLine percentage_line(const Decimal& units, const Decimal& rate_percent) {
    const auto rate = percent(rate_percent);
    return {.step = FeeLine::Step::percentage, .units = units, .rate = rate, .amount = units * rate};
}

FeeLine fixed_line(const Decimal& times, const Decimal& amount) {
    return {.step = FeeLine::Step::fixed, .units = times, .rate = amount, .amount = times * amount};
}

/// What brings the amount to at least `minimum`, or nothing.
void raise_to(Priced& priced, const Decimal& minimum) {
    if (priced.amount < minimum) priced.add({.step = FeeLine::Step::minimum, .amount = minimum - priced.amount});
}

void lower_to(Priced& priced, const Decimal& maximum) {
    if (priced.amount > maximum) priced.add({.step = FeeLine::Step::maximum, .amount = maximum - priced.amount});
}

/// `with` less `without`, line by line: lines of the same step and bounds are subtracted from each other, what is equal in both vanishes.
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

/// What makes the amount that in another unit.
void convert_to(Priced& priced, const Decimal& amount, const Decimal& rate) {
    priced.add({.step = FeeLine::Step::conversion, .rate = rate, .amount = amount - priced.amount});
}

/// A currency's smallest unit: amounts are rounded to `decimals` and counted in units of 1 / `subunits`.
struct Currency {
    int decimals = 2;
    int subunits = 100;
};

/// Half up; a count of smallest units is whole (what MRO's fifths leave over is cut).
Decimal to_cents(const Decimal& amount, Currency currency) {
    return (amount.round(currency.decimals, Rounding::half_up) * Decimal(currency.subunits)).round(0, Rounding::down);
}

// --- fees as texts ---------------------------------------------------------------------------

std::string_view step_name(FeeLine::Step step) {
    static constexpr std::array<std::string_view, 13> names{"units",   "tier",    "package", "percentage", "fixed",      "free",    "given",
                                                            "minimum", "maximum", "advance", "discount",   "conversion", "rounding"};
    return names[static_cast<std::size_t>(step)];
}

std::string tier_text(const FeeLine& line) {
    auto text = "tier " + (line.from ? line.from->to_string() : "0") + (line.to ? " to " + line.to->to_string() : " and up");
    text += ": " + line.units.to_string() + " x " + line.rate.to_string();
    if (!line.flat.is_zero()) text += " + " + line.flat.to_string();
    return text;
}

json optional_text(const std::optional<Decimal>& value) { return value ? json(value->to_string()) : json(nullptr); }

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
    auto groups = json::object();
    for (const auto& [key, value] : group) groups[key] = value ? json(*value) : json(nullptr);
    auto steps = json::array();
    for (const auto& line : lines) steps.push_back(line_json(line));
    return {{"charge", charge},
            {"metric", metric},
            {"customer", customer},
            {"subscription", subscription},
            {"group", std::move(groups)},
            {"filter", filter},
            {"currency", currency},
            {"units", units.to_string()},
            {"events", events},
            {"amount", amount.to_string()},
            {"amount_cents", amount_cents.to_string()},
            {"unit_amount", unit_amount.to_string()},
            {"pay_in_advance", pay_in_advance},
            {"from", period.from.to_string()},
            {"to", period.to.to_string()},
            {"lines", std::move(steps)}};
}

json Fees::to_json() const {
    auto list = json::array();
    for (const auto& fee : fees) list.push_back(fee.to_json());
    return {{"currency", currency}, {"amount_cents", amount_cents.to_string()}, {"fees", std::move(list)}};
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
// 8 books: how each vendor measures and prices, from its own JSON. Pure. Uses 1-3, 7.
// =============================================================================================

/// What a book asks of the log. Which events: those of the metric and the query, as in Meter::aggregate; bins are not used.
struct Measured {
    std::vector<std::optional<std::string>> group;
    Decimal value;
    std::int64_t events = 0;
    bool falls = true;  ///< some event may have lowered the value: a negative number, a removal. True when not known
};

class UsageSource {
public:
    virtual ~UsageSource() = default;
    /// One row for each group; without group_by exactly one, also when there are no events.
    virtual std::vector<Measured> measure(const Metric& metric, const AggregateQuery& query) = 0;
    /// What each event adds to the value (a count's 1, a sum's number, a unique count's 1, 0 or -1), by time, then sequence. Ends after
    /// `limit` events, or with the one that brings the sum over `until`.
    virtual std::vector<Decimal> steps(const Metric& metric, const AggregateQuery& query, std::size_t limit, const std::optional<Decimal>& until) = 0;
    /// Sum of precise_total_amount_cents of the events that take part.
    virtual Decimal precise_total_cents(const Metric& metric, const AggregateQuery& query) = 0;
};

/// What every vendor's book can do. An answer depends on nothing but the arguments and the source.
struct Book::Impl {
    std::string vendor, code;
    json source;
    std::vector<Metric> metrics;

    virtual ~Impl() = default;
    /// Whether the book prices this subscription or, where the vendor has none, this customer.
    virtual bool serves(const std::string& subscription, const std::string& customer) const = 0;
    virtual Fees estimate_fees(const Event& event, Timestamp now, UsageSource& usage) const = 0;
    /// The event priced alone, without what came before it.
    virtual Fees estimate_instant_fees(const Event&, Timestamp) const {
        throw Error(ErrorCode::unsupported, "", vendor + " has no instant estimates");
    }
    virtual Fees usage(const UsageQuery& query, Timestamp now, UsageSource& usage) const = 0;
};

namespace {

/// A place in a vendor's JSON with the path that leads to it, for reading with errors that name it.
class Node {
public:
    explicit Node(const json& value, std::string path = {}) : value_(&value), path_(std::move(path)) {}

    const json& value() const { return *value_; }
    const std::string& path() const { return path_; }
    std::string path(std::string_view key) const { return path_.empty() ? std::string(key) : path_ + "." + std::string(key); }
    [[noreturn]] void refuse(std::string reason) const { throw Error(ErrorCode::bad_value, path_, std::move(reason)); }

    /// The member, unless it is missing or null.
    std::optional<Node> find(std::string_view key) const {
        if (!value_->is_object()) return {};
        const auto found = value_->find(std::string(key));
        if (found == value_->end() || found->is_null()) return {};
        return Node(*found, path(key));
    }

    Node object(std::string_view key) const {
        const auto found = find(key);
        if (!found || !found->value().is_object()) throw Error(ErrorCode::bad_value, path(key), "must be an object");
        return *found;
    }

    /// The elements of a list; none when it is missing.
    std::vector<Node> list(std::string_view key) const {
        const auto found = find(key);
        if (!found) return {};
        if (!found->value().is_array()) found->refuse("must be a list");
        std::vector<Node> elements;
        for (std::size_t i = 0; i < found->value().size(); ++i)
            elements.emplace_back(found->value()[i], found->path() + "[" + std::to_string(i) + "]");
        return elements;
    }

    std::string text(std::string_view key, std::string fallback = {}) const {
        const auto found = find(key);
        if (!found) return fallback;
        if (!found->value().is_string()) found->refuse("must be text");
        return found->value().get<std::string>();
    }

    std::string required_text(std::string_view key) const {
        auto found = text(key);
        if (found.empty()) throw Error(ErrorCode::bad_value, path(key), "is required");
        return found;
    }

    bool flag(std::string_view key, bool fallback = false) const {
        const auto found = find(key);
        if (!found) return fallback;
        if (!found->value().is_boolean()) found->refuse("must be true or false");
        return found->value().get<bool>();
    }

    std::optional<Decimal> decimal(std::string_view key) const {
        const auto found = find(key);
        if (!found) return {};
        try {
            return Decimal::from_json(found->value());
        } catch (const Error& error) {
            throw Error(error.code(), found->path(), error.reason());
        }
    }

    std::optional<Timestamp> time(std::string_view key) const {
        const auto found = find(key);
        if (!found) return {};
        if (!found->value().is_string()) found->refuse("must be an ISO 8601 time");
        try {
            return Timestamp::parse(found->value().get<std::string>());
        } catch (const Error& error) {
            throw Error(error.code(), found->path(), error.reason());
        }
    }

    /// The value of the table's row whose first member is the text under `key`.
    template <typename Table>
    auto choice(std::string_view key, const Table& table, std::string fallback = {}) const {
        const auto name = text(key, std::move(fallback));
        for (const auto& row : table) {
            if (row.first == name) return row.second;
        }
        throw Error(ErrorCode::bad_value, path(key), name.empty() ? "is required" : "is not known: " + name);
    }

private:
    const json* value_;
    std::string path_;
};

/// A rule of the vendor's that a field breaks, in the vendor's own word.
struct Problem {
    std::string path, field, code;
};
using Problems = std::vector<Problem>;

/// A JSON value as the text a vendor compares: text as it is, numbers and booleans as JSON writes them; nothing for null and what is missing.
std::optional<std::string> property_text(const json& properties, const std::string& key) {
    const auto found = properties.find(key);
    if (found == properties.end() || found->is_null()) return {};
    return found->is_string() ? found->get<std::string>() : found->dump();
}

std::chrono::year_month_day civil_date(Timestamp time) {
    return std::chrono::floor<std::chrono::days>(std::chrono::sys_time<std::chrono::microseconds>(std::chrono::microseconds(time.micros())));
}

Timestamp start_of(std::chrono::sys_days day) { return Timestamp(std::chrono::microseconds(day.time_since_epoch()).count()); }

/// The day of that number in the month, or the month's last when it is shorter.
std::chrono::sys_days day_in(std::chrono::year_month month, std::chrono::day day) {
    return std::min(month / day, std::chrono::year_month_day(month / std::chrono::last));
}

/// How Filter, Metric and AggregateQuery name the property of that key.
std::string property_field(const std::string& key) { return "properties." + key; }

// --- Lago: dossier sections 3 to 9 -----------------------------------------------------------

namespace lago {

using Step = FeeLine::Step;

// Exponents are those of the money gem, not of ISO 4217 (dossier 6.1).
constexpr std::array<std::pair<std::string_view, Currency>, 23> currencies{{
    {"BIF", {0, 1}}, {"CLP", {0, 1}},    {"DJF", {0, 1}},    {"GNF", {0, 1}},    {"HUF", {0, 1}},     {"ISK", {0, 1}},
    {"JPY", {0, 1}}, {"KMF", {0, 1}},    {"KRW", {0, 1}},    {"MGA", {0, 1}},    {"PYG", {0, 1}},     {"RWF", {0, 1}},
    {"UGX", {0, 1}}, {"VND", {0, 1}},    {"VUV", {0, 1}},    {"XAF", {0, 1}},    {"XOF", {0, 1}},     {"XPF", {0, 1}},
    {"MRO", {1, 5}}, {"BHD", {3, 1000}}, {"JOD", {3, 1000}}, {"KWD", {3, 1000}}, {"CLF", {4, 10000}},
}};

Currency currency_of(std::string_view code) {
    for (const auto& [name, currency] : currencies) {
        if (name == code) return currency;
    }
    return {};
}

/// BigDecimal's text: always with a point.
std::string ruby_text(const Decimal& value) {
    auto text = value.to_string();
    return text.find('.') == std::string::npos ? text + ".0" : text;
}

// --- the catalogue ---

enum class Kind { count, sum, max, unique_count, weighted_sum, latest, custom };
constexpr std::array<std::pair<std::string_view, Kind>, 7> kinds{{
    {"count_agg", Kind::count},
    {"sum_agg", Kind::sum},
    {"max_agg", Kind::max},
    {"unique_count_agg", Kind::unique_count},
    {"weighted_sum_agg", Kind::weighted_sum},
    {"latest_agg", Kind::latest},
    {"custom_agg", Kind::custom},
}};

struct BillableMetric {
    Kind kind = Kind::count;
    Metric metric;
    std::string id, name, description;
    std::string kind_name;
    std::optional<Rounding> rounding;
    int precision = 0;
    bool recurring = false;
    std::map<std::string, std::vector<std::string>> filters;  ///< allowed values by key
};

/// The key of the property that is measured.
std::string property_key(const BillableMetric& metric) { return metric.metric.property.substr(property_field("").size()); }

enum class Model { standard, graduated, graduated_percentage, package, percentage, volume, dynamic, custom };

/// Properties of a charge or of one of its filters; which of them count depends on the model.
struct Price {
    Model model = Model::standard;
    Decimal amount = {}, package_size = 1, free_units = {};
    Decimal rate = {}, fixed_amount = {}, free_total = {};
    std::int64_t free_events = 0;
    std::optional<Decimal> minimum = {}, maximum = {};
    std::vector<Tier> tiers = {};
    std::vector<std::string> group_keys = {};
};

using Values = std::map<std::string, std::vector<std::string>>;  ///< by key

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
    std::optional<Decimal> conversion_rate = {};  ///< from a pricing unit to the plan's currency
    std::string pricing_unit = {};
};

enum class Interval { weekly, monthly, quarterly, semiannual, yearly };
constexpr std::array<std::pair<std::string_view, Interval>, 5> intervals{{
    {"weekly", Interval::weekly},
    {"monthly", Interval::monthly},
    {"quarterly", Interval::quarterly},
    {"semiannual", Interval::semiannual},
    {"yearly", Interval::yearly},
}};

struct Subscription {
    std::string id = {}, customer = {};
    json lago_id = nullptr, lago_customer_id = nullptr;
    bool anniversary = false;
    Timestamp anchor = Timestamp::min();  ///< subscription_at: where anniversary periods start
    Period active = {};
};

// --- prices: reading and refusing (dossier 9) ---

struct Checking {
    Kind kind = Kind::sum;
    bool premium = true;
    Problems& problems;

    void report(const Node& at, std::string_view field, std::string code) const {
        problems.push_back({at.path(field), std::string(field), std::move(code)});
    }
};

/// Money and rates are texts holding a decimal that is not negative; a JSON number is refused (decimal_amount_service.rb:17).
Decimal amount(const Node& at, std::string_view field, const char* code, const Checking& checking, bool optional = false) {
    const auto found = at.find(field);
    if (!found && optional) return {};
    const auto value = found && found->value().is_string() ? Decimal::parse(found->value().get_ref<const std::string&>()) : std::nullopt;
    if (value && !value->is_negative()) return *value;
    checking.report(at, field, code);
    return {};
}

std::int64_t whole(const Node& at, std::string_view field, const char* code, std::int64_t least, const Checking& checking, bool optional = false) {
    const auto found = at.find(field);
    if (!found && optional) return 0;
    if (found && found->value().is_number_integer()) {
        const auto value = Decimal::from_json(found->value()).to_int64();
        if (value && *value >= least) return *value;
    }
    checking.report(at, field, code);
    return least;
}

/// How a model's ranges join, and what a range costs.
struct RangeRule {
    std::string_view list;
    std::string_view rate;  ///< the field of the rate
    const char* rate_code;
    bool as_percent;  ///< the rate is in percent
    bool may_touch;   ///< ranges whose `from` is the previous `to` are read as touching, when all of them are so
    int gap;          ///< `from` is the previous `to` + gap, or one more (range_bounds_validator.rb:5)
};
constexpr RangeRule graduated_rule{"graduated_ranges", "per_unit_amount", "invalid_amount", false, true, 0};
constexpr RangeRule graduated_percentage_rule{"graduated_percentage_ranges", "rate", "invalid_rate", true, false, 0};
constexpr RangeRule volume_rule{"volume_ranges", "per_unit_amount", "invalid_amount", false, false, 1};

std::optional<Decimal> bound(const Node& range, std::string_view field) {
    const auto found = range.find(field);
    if (!found || !found->value().is_number()) return {};
    return Decimal::from_json(found->value());
}

bool is_open(const Node& range) { return !range.find("to_value"); }

/// Whether each range starts where the one before ended, and only the last is open.
bool ranges_join(const std::vector<Node>& ranges, int gap) {
    Decimal start;
    for (std::size_t i = 0; i < ranges.size(); ++i) {
        const auto from = bound(ranges[i], "from_value"), to = bound(ranges[i], "to_value");
        if (!from || (*from != start && *from != start + 1)) return false;
        const bool last = i + 1 == ranges.size();
        if (last != is_open(ranges[i])) return false;
        if (last) return true;
        if (!to || *to <= *from) return false;
        start = *to + gap;
    }
    return false;
}

/// Whether the ranges are written 0-10, 10-20 rather than 0-10, 11-20 (graduated_service.rb:31).
bool ranges_touch(const std::vector<Tier>& tiers) {
    if (tiers.size() < 2) return false;
    for (std::size_t i = 1; i < tiers.size(); ++i) {
        if (!tiers[i - 1].up_to || tiers[i].from != *tiers[i - 1].up_to) return false;
    }
    return true;
}

/// A range from 11 holds what is above 10, unless it touches the one before.
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
    set_lower_bounds(tiers, rule.may_touch);
    return tiers;
}

void read_standard(const Node& properties, Price& price, const Checking& checking) {
    price.amount = amount(properties, "amount", "invalid_amount", checking);
}

void read_graduated(const Node& properties, Price& price, const Checking& checking) {
    price.tiers = read_ranges(properties, graduated_rule, checking);
}

void read_graduated_percentage(const Node& properties, Price& price, const Checking& checking) {
    price.tiers = read_ranges(properties, graduated_percentage_rule, checking);
    if (checking.kind == Kind::latest) checking.report(properties, "billable_metric", "invalid_value");
    if (!checking.premium) checking.report(properties, "charge_model", "graduated_percentage_requires_premium_license");
}

void read_volume(const Node& properties, Price& price, const Checking& checking) {
    price.tiers = read_ranges(properties, volume_rule, checking);
    std::stable_sort(price.tiers.begin(), price.tiers.end(), [](const Tier& a, const Tier& b) { return a.from < b.from; });
}

void read_package(const Node& properties, Price& price, const Checking& checking) {
    price.amount = amount(properties, "amount", "invalid_amount", checking);
    price.package_size = whole(properties, "package_size", "invalid_package_size", 1, checking);
    price.free_units = whole(properties, "free_units", "invalid_free_units", 0, checking);
}

void read_percentage(const Node& properties, Price& price, const Checking& checking) {
    price.rate = amount(properties, "rate", "invalid_rate", checking);
    price.fixed_amount = amount(properties, "fixed_amount", "invalid_fixed_amount", checking, true);
    price.free_events = whole(properties, "free_units_per_events", "invalid_free_units_per_events", 1, checking, true);
    price.free_total = amount(properties, "free_units_per_total_aggregation", "invalid_free_units_per_total_aggregation", checking, true);
    if (checking.kind == Kind::latest) checking.report(properties, "billable_metric", "invalid_value");
    if (!checking.premium) return;  // bounds per transaction are a premium feature: neither checked nor applied without
    const auto read_bound = [&](std::string_view field) -> std::optional<Decimal> {
        if (!properties.find(field)) return {};
        return amount(properties, field, "invalid_amount", checking);
    };
    price.minimum = read_bound("per_transaction_min_amount");
    price.maximum = read_bound("per_transaction_max_amount");
    if (price.minimum && price.maximum && *price.maximum < *price.minimum) {
        checking.report(properties, "per_transaction_max_amount", "per_transaction_max_lower_than_per_transaction_min");
    }
}

void read_nothing(const Node&, Price&, const Checking&) {}

std::vector<std::string> read_group_keys(const Node& properties, const Checking& checking) {
    const auto field = properties.find("pricing_group_keys") ? "pricing_group_keys" : "grouped_by";
    const auto found = properties.find(field);
    if (!found) return {};
    std::vector<std::string> keys;
    for (const auto& key : found->value()) {
        if (key.is_string() && !key.get_ref<const std::string&>().empty()) keys.push_back(key.get<std::string>());
    }
    if (!found->value().is_array() || keys.size() != found->value().size()) checking.report(properties, field, "invalid_type");
    return keys;
}

// --- prices: from units to amounts (dossier 5) ---

/// Running totals of a percentage charge (dossier 4.6), as far as the model looks at them.
struct RunningTotal {
    std::int64_t length = 0;
    Decimal last;
    Decimal at_free_events;       ///< after the last free event; counts only when `length` exceeds the free events
    std::int64_t below_free = 0;  ///< how many are below the free total
};

/// What is priced.
struct Quantity {
    Decimal units;
    std::optional<Decimal> full_units = {};  ///< before proration
    bool prorated = false;
    std::int64_t events = 0;
    RunningTotal running = {};
    std::vector<Decimal> values = {};  ///< each event's, in time order; only where a bound per transaction needs them
    Decimal precise_amount = {};       ///< sum of the events' own amounts, currency units
    bool without_event = false;        ///< the side of a difference that lacks the event
    bool premium = true;
};

Priced price_standard(const Price& price, const Quantity& quantity) {
    Priced priced;
    priced.add(units_line(quantity.units, price.amount));
    return priced;
}

/// Without the event, no units owe no flat part (graduated_service.rb:31).
Priced price_graduated(const Price& price, const Quantity& quantity) {
    if (quantity.without_event && quantity.units.is_zero()) return {};
    return graduated(price.tiers, quantity.units);
}

/// The first range that holds the units; one is chosen by full units and priced by prorated ones.
const Tier& volume_tier(const Price& price, const Decimal& units) {
    const auto ceiling = units.round(0, Rounding::ceil);
    for (const auto& tier : price.tiers) {
        if (tier.from <= ceiling && (!tier.up_to || units <= *tier.up_to)) return tier;
    }
    throw Error(ErrorCode::bad_value, "volume_ranges", "no range holds " + units.to_string() + " units");
}

const Decimal& counted_units(const Quantity& quantity) { return quantity.prorated && quantity.full_units ? *quantity.full_units : quantity.units; }

Priced price_volume(const Price& price, const Quantity& quantity) {
    Priced priced;
    priced.add(tier_line(volume_tier(price, counted_units(quantity)), quantity.units));
    return priced;
}

Priced price_package(const Price& price, const Quantity& quantity) {
    const auto paid = quantity.units - price.free_units;
    Priced priced;
    if (paid.is_negative()) {
        priced.add(free_line(quantity.units));
        return priced;
    }
    priced = packages(paid, price.package_size, price.amount);
    if (!price.free_units.is_zero()) priced.lines.insert(priced.lines.begin(), free_line(price.free_units));
    return priced;
}

Decimal percentage_free_units(const Price& price, const RunningTotal& running) {
    if (running.last.is_zero()) return {};
    if (price.free_events > 0 && price.free_events < running.length) return running.at_free_events;
    if (price.free_total.is_zero() || running.last <= price.free_total) return running.last;
    return price.free_total;
}

std::int64_t percentage_free_events(const Price& price, const RunningTotal& running) {
    if (price.free_events == 0 || running.below_free == 0) return std::max(price.free_events, running.below_free);
    return std::min(price.free_events, running.below_free);
}

bool has_bounds(const Price& price, const Quantity& quantity) { return quantity.premium && (price.minimum || price.maximum); }

Priced percentage_of_total(const Price& price, const Quantity& quantity) {
    Priced priced;
    const auto free_units = percentage_free_units(price, quantity.running);
    const auto paid = free_units > quantity.units ? Decimal() : quantity.units - free_units;
    if (!free_units.is_zero()) priced.add(free_line(free_units));
    priced.add(percentage_line(paid, price.rate));
    const auto paid_events = quantity.events - percentage_free_events(price, quantity.running);
    if (!quantity.units.is_zero() && paid_events > 0 && !price.fixed_amount.is_zero()) priced.add(fixed_line(paid_events, price.fixed_amount));
    return priced;
}

/// Event by event, each held between the bounds (percentage_service.rb:142-179). A free event starts the sum anew, as it does there.
Decimal percentage_by_event(const Price& price, const std::vector<Decimal>& values) {
    auto free_events = price.free_events;
    auto free_total = price.free_total;
    const auto rate = percent(price.rate);
    Decimal total;
    for (auto value : values) {
        if (free_events > 0 || free_total > 0) {
            --free_events;
            if (free_total <= 0 || free_total > value) {
                if (free_total > 0) free_total -= value;
                total = {};
                continue;
            }
            value -= free_total;
            free_total = {};
            free_events = 0;
        }
        auto amount = value * rate + price.fixed_amount;
        if (price.minimum && amount < *price.minimum) {
            amount = *price.minimum;
        } else if (price.maximum && amount > *price.maximum) {
            amount = *price.maximum;
        }
        total += amount;
    }
    return total;
}

Priced price_percentage(const Price& price, const Quantity& quantity) {
    auto priced = percentage_of_total(price, quantity);
    if (!has_bounds(price, quantity)) return priced;
    const auto bounded = percentage_by_event(price, quantity.values);
    raise_to(priced, bounded);
    lower_to(priced, bounded);
    return priced;
}

/// A custom metric's script brings the amount.
Priced price_custom(const Price&, const Quantity& quantity) {
    Priced priced;
    priced.add({.step = Step::given, .units = quantity.units, .amount = quantity.precise_amount});
    return priced;
}

/// The events bring their own amounts; none for no units (dossier 5.7).
Priced price_dynamic(const Price& price, const Quantity& quantity) { return quantity.units.is_zero() ? Priced() : price_custom(price, quantity); }

// --- prorated graduated (dossier 5.9): full units choose the tier, prorated ones are paid ---

struct ProratedEvent {
    Decimal full, prorated;

    Decimal share() const { return quotient(prorated, full); }
};

/// The tier that the running total has come to (prorated_graduated_service.rb). What overflows a tier upwards stands at the next
/// tier's first unit; a total resting on a tier's top moves on when units follow.
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

/// How far the total is beyond the tier, above or below.
Decimal overflow_of(const Tier& tier, const Decimal& total) {
    return tier.up_to && total >= *tier.up_to ? total - *tier.up_to : total - tier.from + 1;
}

/// An added unit that was removed before the period weighs nothing and counts nothing, nor does its removal.
bool is_void(const ProratedEvent& event, const Decimal& total) {
    return event.prorated.is_zero() && (event.full > 0 || (total + event.full).is_negative());
}

/// Prorated units that each tier has, and how high the running total went.
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
        if (++turns > (events.size() + 1) * (tiers.size() + 2)) throw Error(ErrorCode::bad_value, "graduated_ranges", "cannot be prorated");
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

// --- prices without history (estimate_instant_fees, dossier 3.4) ---

/// The fixed amount is due also for no units; free units and licences play no part.
Priced price_instant(const Price& price, const Decimal& units) {
    if (price.model == Model::standard) return price_standard(price, {.units = units});
    Priced priced;
    priced.add(percentage_line(units, price.rate));
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

json tiers_details(const Priced& priced, std::string_view list, bool as_percent) {
    auto ranges = json::array();
    for (const auto& line : priced.lines) {
        if (line.step == Step::tier) ranges.push_back(range_details(line, as_percent));
    }
    return {{std::string(list), std::move(ranges)}};
}

json details_none(const Price&, const Quantity&, const Priced&) { return json::object(); }

json details_graduated(const Price&, const Quantity&, const Priced& priced) { return tiers_details(priced, "graduated_ranges", false); }

json details_graduated_percentage(const Price&, const Quantity&, const Priced& priced) {
    return tiers_details(priced, "graduated_percentage_ranges", true);
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
    const auto free_events = std::min(percentage_free_events(price, quantity.running), quantity.events);
    const auto paid_events = quantity.events - free_events;
    Decimal by_rate, fixed, bounds;
    for (const auto& line : priced.lines) (line.step == Step::percentage ? by_rate : line.step == Step::fixed ? fixed : bounds) += line.amount;
    return {{"units", quantity.units.to_string()},
            {"free_units", free_units.to_string()},
            {"free_events", free_events},
            {"paid_units", at_least_zero(quantity.units - free_units).to_string()},
            {"rate", price.rate.to_string()},
            {"per_unit_total_amount", by_rate.to_string()},
            {"paid_events", paid_events},
            {"fixed_fee_unit_amount", paid_events > 0 ? price.fixed_amount.to_string() : "0"},
            {"fixed_fee_total_amount", fixed.to_string()},
            {"min_max_adjustment_total_amount", bounds.to_string()}};
}

// --- the models ---

struct ModelRow {
    Model model;
    void (*read)(const Node& properties, Price& price, const Checking& checking);
    Priced (*price)(const Price& price, const Quantity& quantity);
    json (*details)(const Price& price, const Quantity& quantity, const Priced& priced);
    const char* defaults;  ///< properties when they are left out (build_default_properties_service.rb:26)
};
constexpr const char* default_ranges = R"({"graduated_ranges": [{"from_value": 0, "per_unit_amount": "0", "flat_amount": "0"}],
    "volume_ranges": [{"from_value": 0, "per_unit_amount": "0", "flat_amount": "0"}],
    "graduated_percentage_ranges": [{"from_value": 0, "rate": "0", "flat_amount": "0"}]})";

using ModelTable = std::array<std::pair<std::string_view, ModelRow>, 8>;
constexpr ModelTable models{{
    {"standard", {Model::standard, read_standard, price_standard, details_none, R"({"amount": "0"})"}},
    {"graduated", {Model::graduated, read_graduated, price_graduated, details_graduated, default_ranges}},
    {"graduated_percentage", {Model::graduated_percentage, read_graduated_percentage, price_graduated, details_graduated_percentage, default_ranges}},
    {"package", {Model::package, read_package, price_package, details_package, R"({"package_size": 1, "free_units": 0, "amount": "0"})"}},
    {"percentage", {Model::percentage, read_percentage, price_percentage, details_percentage, R"({"rate": "0"})"}},
    {"volume", {Model::volume, read_volume, price_volume, details_volume, default_ranges}},
    {"dynamic", {Model::dynamic, read_nothing, price_dynamic, details_none, "{}"}},
    {"custom", {Model::custom, read_nothing, price_custom, details_none, "{}"}},
}};

const ModelRow& row_of(Model model) {
    return std::find_if(models.begin(), models.end(), [&](const auto& row) { return row.second.model == model; })->second;
}

Price read_price(const ModelRow& row, const Node& properties, const Checking& checking) {
    Price price{.model = row.model};
    row.read(properties, price, checking);
    price.group_keys = read_group_keys(properties, checking);
    return price;
}

Priced apply(const Price& price, const Quantity& quantity) { return row_of(price.model).price(price, quantity); }

/// Per full unit; a package's by paid units (package_service.rb), a volume's by those that chose the range.
Decimal unit_amount(const Price& price, const Quantity& quantity, const Decimal& amount) {
    if (price.model == Model::package) return quotient(amount, at_least_zero(quantity.units - price.free_units));
    if (price.model == Model::volume) return quotient(amount, counted_units(quantity));
    return quotient(amount, quantity.full_units.value_or(quantity.units));
}

// --- the plan, read from Lago's JSON ---

Values read_values(const Node& at, std::string_view field, const BillableMetric* declared) {
    Values values;
    const auto found = at.find(field);
    if (!found) return values;
    if (!found->value().is_object()) found->refuse("must be an object of lists");
    for (const auto& [key, list] : found->value().items()) {
        const Node entry(list, found->path(key));
        for (const auto& value : list) {
            if (!value.is_string()) entry.refuse("must be a list of texts");
            values[key].push_back(value.get<std::string>());
        }
        if (!declared || values[key] != std::vector<std::string>{"__ALL_FILTER_VALUES__"}) continue;
        const auto all = declared->filters.find(key);  // all that the metric declares, not anything (charge_filter.rb:72)
        if (all == declared->filters.end()) entry.refuse("is not a filter of the metric");
        values[key] = all->second;
    }
    return values;
}

std::optional<Rounding> read_rounding(const Node& at) {
    static constexpr std::array<std::pair<std::string_view, Rounding>, 3> functions{
        {{"round", Rounding::half_up}, {"ceil", Rounding::ceil}, {"floor", Rounding::floor}}};
    if (!at.find("rounding_function")) return {};
    return at.choice("rounding_function", functions);
}

BillableMetric read_metric(const Node& at) {
    static constexpr std::array<std::pair<Kind, Aggregation>, 3> measured{
        {{Kind::count, Aggregation::count}, {Kind::sum, Aggregation::sum}, {Kind::unique_count, Aggregation::unique_count}}};
    BillableMetric metric;
    metric.kind = at.choice("aggregation_type", kinds);
    metric.kind_name = at.text("aggregation_type");
    const auto row = std::find_if(measured.begin(), measured.end(), [&](const auto& pair) { return pair.first == metric.kind; });
    if (row == measured.end()) throw Error(ErrorCode::unsupported, at.path("aggregation_type"), metric.kind_name + " is not measured here");
    metric.metric = {.code = at.required_text("code"), .event = {}, .aggregation = row->second, .property = {}, .filter = {}};
    if (metric.kind != Kind::count) metric.metric.property = property_field(at.required_text("field_name"));
    metric.id = at.text("lago_id");
    metric.name = at.text("name", metric.metric.code);
    metric.description = at.text("description");
    metric.rounding = read_rounding(at);
    metric.precision = static_cast<int>(at.decimal("rounding_precision").value_or(Decimal()).to_int64().value_or(0));
    metric.recurring = at.flag("recurring");
    for (const auto& filter : at.list("filters"))
        metric.filters[filter.required_text("key")] = filter.value().value("values", std::vector<std::string>());
    return metric;
}

/// Rules between a charge and its metric (charge.rb:118-180).
void check_charge(const Node& at, const Charge& charge, const BillableMetric& metric, const Checking& checking) {
    const auto model = charge.price.model;
    const bool countable = metric.kind == Kind::count || metric.kind == Kind::sum || metric.kind == Kind::unique_count || metric.kind == Kind::custom;
    if (charge.pay_in_advance && (model == Model::volume || !countable)) {
        checking.report(at, "pay_in_advance", "invalid_aggregation_type_or_charge_model");
    }
    const bool prorates =
        charge.pay_in_advance ? model == Model::standard : model == Model::standard || model == Model::volume || model == Model::graduated;
    if (charge.prorated && !(metric.recurring && prorates)) checking.report(at, "prorated", "invalid_billable_metric_or_charge_model");
    if (model == Model::dynamic && metric.kind != Kind::sum) checking.report(at, "charge_model", "invalid_aggregation_type_or_charge_model");
    if (charge.pay_in_advance && !charge.minimum_cents.is_zero()) checking.report(at, "min_amount_cents", "not_compatible_with_pay_in_advance");
}

Price read_properties(const Node& at, const ModelRow& row, const Checking& checking) {
    if (at.find("properties")) return read_price(row, at.object("properties"), checking);
    const auto defaults = json::parse(row.defaults);
    return read_price(row, Node(defaults, at.path("properties")), checking);
}

ChargeFilter read_filter(const Node& at, const ModelRow& row, const BillableMetric& metric, const Checking& checking) {
    ChargeFilter filter;
    filter.values = read_values(at, "values", &metric);
    filter.name = at.text("invoice_display_name");
    filter.id = at.value().value("lago_id", json());
    filter.price = read_properties(at, row, checking);
    return filter;
}

std::size_t find_metric(const Node& at, const std::vector<BillableMetric>& metrics) {
    const auto code = at.text("billable_metric_code"), id = at.text("lago_billable_metric_id");
    for (std::size_t i = 0; i < metrics.size(); ++i) {
        if (code.empty() ? !id.empty() && metrics[i].id == id : metrics[i].metric.code == code) return i;
    }
    throw Error(ErrorCode::bad_value, at.path("billable_metric_code"), "no such billable metric: " + (code.empty() ? id : code));
}

/// A plan that exists was made under a licence that allowed it; which licence prices it is Plan::premium.
Charge read_charge(const Node& at, const std::vector<BillableMetric>& metrics) {
    constexpr bool premium = true;
    Problems problems;
    Charge charge;
    charge.metric = find_metric(at, metrics);
    const auto& metric = metrics[charge.metric];
    const Checking checking{metric.kind, premium, problems};
    const auto row = at.choice("charge_model", models);
    charge.id = at.value().value("lago_id", json());
    charge.code = at.text("code", metric.metric.code);
    charge.name = at.text("invoice_display_name");
    charge.pay_in_advance = at.flag("pay_in_advance");
    charge.invoiceable = at.flag("invoiceable", true);
    charge.prorated = at.flag("prorated");
    charge.minimum_cents = at.decimal("min_amount_cents").value_or(Decimal());
    if (at.find("applied_pricing_unit")) {
        charge.conversion_rate = at.object("applied_pricing_unit").decimal("conversion_rate");
        charge.pricing_unit = at.object("applied_pricing_unit").text("code");
    }
    charge.price = read_properties(at, row, checking);
    for (const auto& filter : at.list("filters")) charge.filters.push_back(read_filter(filter, row, metric, checking));
    check_charge(at, charge, metric, checking);
    if (!problems.empty()) throw Error(ErrorCode::bad_value, problems.front().path, problems.front().code);
    if (charge.prorated) throw Error(ErrorCode::unsupported, at.path("prorated"), "prorated charges are not measured here");
    return charge;
}

Subscription read_subscription(const Node& at) {
    Subscription subscription;
    subscription.id = at.required_text("external_id");
    subscription.customer = at.text("external_customer_id");
    subscription.lago_id = at.value().value("lago_id", json());
    subscription.lago_customer_id = at.value().value("lago_customer_id", json());
    subscription.anniversary = at.text("billing_time") == "anniversary";
    if (const auto started = at.time("started_at")) subscription.active.from = *started;
    if (const auto ended = at.time("terminated_at")) subscription.active.to = *ended + std::chrono::microseconds(1);
    subscription.anchor = at.time("subscription_at").value_or(subscription.active.from);
    return subscription;
}

// --- billing periods (dossier 4.2) ---

constexpr int months_in(Interval interval) {
    switch (interval) {
        case Interval::weekly:
            return 0;
        case Interval::monthly:
            return 1;
        case Interval::quarterly:
            return 3;
        case Interval::semiannual:
            return 6;
        case Interval::yearly:
            return 12;
    }
    return 0;
}

/// Weeks from Monday, or from the anchor's weekday.
Period week_around(std::chrono::sys_days today, const Subscription& subscription) {
    using namespace std::chrono;
    const auto first = subscription.anniversary ? weekday(sys_days(civil_date(subscription.anchor))) : Monday;
    const auto from = today - (weekday(today) - first);
    return {start_of(from), start_of(from + weeks(1))};
}

/// Months from January's first day, or from the anchor's day, which a short month clips.
Period months_around(std::chrono::sys_days today, int count, const Subscription& subscription) {
    using namespace std::chrono;
    const auto anchor = subscription.anniversary ? civil_date(subscription.anchor) : year(1970) / January / day(1);
    const auto anchor_month = anchor.year() / anchor.month();
    const auto date = year_month_day(today);
    auto passed = static_cast<int>((date.year() / date.month() - anchor_month).count());
    if (today < day_in(date.year() / date.month(), anchor.day())) --passed;
    const auto whole = (passed >= 0 ? passed : passed - count + 1) / count * count;
    return {start_of(day_in(anchor_month + months(whole), anchor.day())), start_of(day_in(anchor_month + months(whole + count), anchor.day()))};
}

Period billing_period(Interval interval, const Subscription& subscription, Timestamp now) {
    const std::chrono::sys_days today(civil_date(now));
    const auto period = interval == Interval::weekly ? week_around(today, subscription) : months_around(today, months_in(interval), subscription);
    return {std::max(period.from, subscription.active.from), std::min(period.to, subscription.active.to)};
}

// --- charge filters (dossier 4.5) ---

bool holds(const std::vector<std::string>& list, const std::string& value) { return std::find(list.begin(), list.end(), value) != list.end(); }

bool matches(const Values& values, const json& properties) {
    return std::all_of(values.begin(), values.end(), [&](const auto& entry) {
        const auto text = property_text(properties, entry.first);
        return text && holds(entry.second, *text);
    });
}

/// The filter that prices an event: of those that match, the first with the most keys; none: the charge's own price.
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

/// Whether `other` has each key of `filter` with a value in common.
bool overlaps(const Values& filter, const Values& other) {
    return std::all_of(filter.begin(), filter.end(), [&](const auto& entry) {
        const auto found = other.find(entry.first);
        return found != other.end() &&
               std::any_of(entry.second.begin(), entry.second.end(), [&](const auto& value) { return holds(found->second, value); });
    });
}

std::vector<std::string> without(const std::vector<std::string>& values, const std::vector<std::string>& others) {
    std::vector<std::string> rest;
    std::copy_if(values.begin(), values.end(), std::back_inserter(rest), [&](const auto& value) { return !holds(others, value); });
    return rest;
}

/// Whether all values of `part` are in `whole`, which has the same keys.
bool within(const Values& part, const Values& whole) {
    return std::all_of(part.begin(), part.end(), [&](const auto& entry) { return without(entry.second, whole.at(entry.first)).empty(); });
}

/// What the bucket of `charge.filters[index]` leaves to other filters (matching_and_ignored_service.rb:72-130). The filters are in order
/// of creation.
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

/// Keeps the events that do not match the entry; an empty list in it counts for nothing, an entry of nothing else excludes nothing.
Filter excluding(const Values& entry) {
    auto misses = Filter::any({});
    for (const auto& [key, values] : entry) {
        if (!values.empty()) misses.parts.push_back(Filter::where(property_field(key), Operator::not_in, json(values)));
    }
    return misses.parts.empty() ? Filter() : misses;
}

/// The events priced by the filter, or by the charge itself when there is none.
Filter bucket(const Charge& charge, const ChargeFilter* filter) {
    auto result = Filter::all({});
    std::vector<Values> all;
    for (const auto& each : charge.filters) all.push_back(each.values);
    if (filter) {
        for (const auto& [key, values] : filter->values) result.parts.push_back(Filter::where(property_field(key), Operator::in, json(values)));
        all = ignored_values(all, static_cast<std::size_t>(filter - charge.filters.data()));
    }
    for (const auto& entry : all) {
        auto part = excluding(entry);
        if (!part.empty()) result.parts.push_back(std::move(part));
    }
    return result;
}

/// A missing group property and an empty one are one group.
Filter in_group(const std::string& key, const std::optional<std::string>& value) {
    const auto field = property_field(key);
    if (value) return Filter::equals(field, *value);
    return Filter::any({Filter::where(field, Operator::exists, false), Filter::equals(field, ""), Filter::equals(field, nullptr)});
}

// --- one event of a pay-in-advance charge (dossier 7.2) ---

/// What the period's events have come to, event by event: prices follow the period's maximum.
struct AdvanceState {
    std::optional<Decimal> current, maximum;
};

struct Contribution {
    Decimal priced;  ///< units the event adds to what is priced
    Decimal shown;   ///< units its fee shows
};

/// One event of a sum (`step` its number) or a unique count (`step` 1, 0 or -1).
Contribution contribute(AdvanceState& state, const Decimal& step) {
    if (!state.current) {
        state.current = state.maximum = step;
        return {at_least_zero(step), at_least_zero(step)};
    }
    *state.current += step;
    if (*state.current <= *state.maximum) return {Decimal(), at_least_zero(step)};
    const auto above = *state.current - *state.maximum;
    state.maximum = std::max(*state.current, above);
    return {above, above};
}

/// The same for a prorated charge, paid by the share of the period left at each event; up at 5 decimals (prorated_aggregations/base_service.rb).
struct ProratedAdvance {
    AdvanceState state;
    Decimal maximum;

    void add(const Decimal& step, const Decimal& share) {
        const auto before = state.maximum;
        const auto paid = (contribute(state, step).priced * share).round(5, Rounding::ceil);
        if (!before || *state.maximum > *before) maximum += paid;
    }

    /// What current usage is priced by; `live` includes units from before the period, which weigh `share` of it.
    Decimal paid(const Decimal& live, const Decimal& share) const {
        const auto older = at_least_zero(live) - at_least_zero(state.current.value_or(Decimal()));
        return (older * share).round(5, Rounding::ceil) + maximum;
    }
};

// --- a book of one plan ---

struct Plan final : Book::Impl {
    std::string currency_code;
    Currency currency;
    Interval charges_interval = Interval::monthly;
    bool premium = true;
    std::vector<BillableMetric> billable_metrics;
    std::vector<Charge> charges;
    std::vector<Subscription> subscriptions;
    bool lists_subscriptions = false;

    bool serves(const std::string& subscription, const std::string& customer) const override {
        return !lists_subscriptions || std::any_of(subscriptions.begin(), subscriptions.end(), [&](const Subscription& each) {
            return subscription.empty() ? !customer.empty() && each.customer == customer : each.id == subscription;
        });
    }
    Fees estimate_fees(const Event& event, Timestamp now, UsageSource& usage) const override;
    Fees estimate_instant_fees(const Event& event, Timestamp now) const override;
    Fees usage(const UsageQuery& query, Timestamp now, UsageSource& usage) const override;
};

/// One question about one charge: where its units are counted, and how they are priced.
struct Scope {
    const Plan& plan;
    const Charge& charge;
    const ChargeFilter* filter;
    const Subscription& subscription;
    Period period;

    const Price& price() const { return filter ? filter->price : charge.price; }
    const BillableMetric& metric() const { return plan.billable_metrics[charge.metric]; }
    AggregateQuery query() const {
        AggregateQuery query;
        query.subscription = subscription.id;
        query.period = period;
        query.filter = bucket(charge, filter);
        return query;
    }
};

using Group = std::vector<std::pair<std::string, std::optional<std::string>>>;

void keep_group(AggregateQuery& query, const Group& group) {
    for (const auto& [key, value] : group) query.filter.parts.push_back(in_group(key, value));
}

Decimal sum_of(const std::vector<Decimal>& values) {
    Decimal sum;
    for (const auto& value : values) sum += value;
    return sum;
}

/// Running totals over these steps.
RunningTotal running_total(const Price& price, const std::vector<Decimal>& steps) {
    RunningTotal running;
    for (const auto& step : steps) {
        running.last += step;
        if (++running.length == price.free_events) running.at_free_events = running.last;
        if (running.last < price.free_total) ++running.below_free;
    }
    return running;
}

/// Running totals 1, 2, 3 ... of a count.
RunningTotal running_count(const Price& price, const Decimal& units) {
    const auto length = units.to_int64().value_or(0);
    const auto below = at_least_zero(price.free_total.round(0, Rounding::ceil) - 1).to_int64().value_or(length);
    return {.length = length, .last = units, .at_free_events = price.free_events, .below_free = std::min(length, below)};
}

/// What a percentage charge needs besides units: running totals for free units, each event's value for bounds per transaction.
void measure_percentage(const Scope& scope, const AggregateQuery& query, UsageSource& usage, Quantity& quantity) {
    const auto& price = scope.price();
    const bool counts = scope.metric().kind != Kind::sum;
    const auto every = std::numeric_limits<std::size_t>::max();
    if (has_bounds(price, quantity)) {
        if (counts) {
            quantity.values.assign(static_cast<std::size_t>(quantity.units.to_int64().value_or(0)), Decimal(1));
        } else {
            quantity.values = usage.steps(scope.metric().metric, query, every, {});
        }
    }
    if (price.free_events == 0 && price.free_total.is_zero()) return;
    if (counts) {
        quantity.running = running_count(price, quantity.units);
    } else if (price.free_events > 0) {
        quantity.running = running_total(price, usage.steps(scope.metric().metric, query, static_cast<std::size_t>(price.free_events), {}));
    } else {
        quantity.running = running_total(price, usage.steps(scope.metric().metric, query, every, price.free_total));
    }
}

Quantity quantity_of(const Scope& scope, const AggregateQuery& query, UsageSource& usage, const Measured& measured) {
    Quantity quantity{.units = measured.value, .events = measured.events, .premium = scope.plan.premium};
    if (scope.metric().kind == Kind::unique_count) quantity.events = measured.value.to_int64().value_or(0);
    if (scope.price().model == Model::dynamic) {
        quantity.precise_amount = quotient(usage.precise_total_cents(scope.metric().metric, query), scope.plan.currency.subunits);
    }
    if (scope.price().model == Model::percentage) measure_percentage(scope, query, usage, quantity);
    return quantity;
}

// --- fees (dossier 3.2, 6) ---

/// A fee's figures in smallest units (dossier 6.1). Each fee is rounded once; a unit's amount is cut, not rounded.
struct Figures {
    Decimal cents, precise_cents;
    Decimal unit_cents, unit_amount;
};

Figures figures(const Decimal& amount, const Decimal& unit_amount, Currency currency) {
    const Decimal subunits(currency.subunits);
    return {to_cents(amount, currency), amount * subunits, (unit_amount * subunits).round(0, Rounding::down), unit_amount};
}

/// From a pricing unit, whose cents are hundredths, to money: what was rounded there is converted (pricing_unit_usage.rb:13).
Figures converted(const Figures& units, const Decimal& rate, Currency currency) {
    const auto hundredth = Decimal::scaled(1, 2);
    return figures(units.cents * rate * hundredth, units.unit_cents * rate * hundredth, currency);
}

/// What lifts a charge to its minimum spending, which is prorated to the days billed (create_true_up_service.rb:16).
Decimal true_up_cents(const Decimal& minimum_cents, const Decimal& used_cents, int days, int period_days) {
    return at_least_zero(quotient(minimum_cents * days, period_days) - used_cents);
}

std::string time_text(Timestamp time) { return time.to_string(0); }

json group_json(const Group& group) {
    auto object = json::object();
    for (const auto& [key, value] : group) object[key] = value ? json(*value) : json(nullptr);
    return object;
}

json item_json(const Scope& scope, const Fee& fee) {
    const auto& metric = scope.metric();
    return {{"type", "charge"},
            {"code", metric.metric.code},
            {"name", metric.name},
            {"description", metric.description.empty() ? json(nullptr) : json(metric.description)},
            {"invoice_display_name", scope.charge.name.empty() ? metric.name : scope.charge.name},
            {"filters", scope.filter ? json(scope.filter->values) : json(nullptr)},
            {"filter_invoice_display_name", scope.filter && !scope.filter->name.empty() ? json(scope.filter->name) : json(nullptr)},
            {"lago_item_id", metric.id.empty() ? json(nullptr) : json(metric.id)},
            {"item_type", "BillableMetric"},
            {"grouped_by", group_json(fee.group)}};
}

std::int64_t whole_cents(const Decimal& cents) {
    const auto value = cents.to_int64();
    if (!value) throw Error(ErrorCode::overflow, "amount_cents", "does not fit 64 bits: " + cents.to_string());
    return *value;
}

/// As fee_serializer.rb:8-65 shows a fee that is not stored.
json fee_json(const Scope& scope, const Fee& fee, json details) {
    const auto cents = whole_cents(fee.amount_cents);
    const auto text = [](const std::string& value) { return value.empty() ? json(nullptr) : json(value); };
    json out{{"lago_id", nullptr},
             {"lago_charge_id", scope.charge.id},
             {"lago_charge_filter_id", scope.filter ? scope.filter->id : json(nullptr)},
             {"lago_subscription_id", scope.subscription.lago_id},
             {"external_subscription_id", text(fee.subscription)},
             {"lago_customer_id", scope.subscription.lago_customer_id},
             {"external_customer_id", text(fee.customer)},
             {"item", item_json(scope, fee)},
             {"pay_in_advance", fee.pay_in_advance},
             {"invoiceable", scope.charge.invoiceable},
             {"amount_cents", cents},
             {"amount_currency", fee.currency},
             {"precise_amount", ruby_text(fee.amount)},
             {"precise_total_amount", ruby_text(fee.amount)},
             {"taxes_amount_cents", 0},
             {"taxes_precise_amount", "0.0"},
             {"taxes_rate", 0.0},
             {"total_aggregated_units", ruby_text(fee.units)},
             {"total_amount_cents", cents},
             {"total_amount_currency", fee.currency},
             {"units", ruby_text(fee.units)},
             {"description", nullptr},
             {"precise_unit_amount", ruby_text(fee.unit_amount)},
             {"precise_coupons_amount_cents", "0.0"},
             {"sub_total_excluding_taxes_amount_cents", cents},
             {"sub_total_excluding_taxes_precise_amount_cents", ruby_text(fee.amount * scope.plan.currency.subunits)},
             {"events_count", fee.events},
             {"payment_status", "pending"},
             {"amount_details", std::move(details)},
             {"self_billed", false},
             {"presentation_breakdowns", json::array()},
             {"from_date", time_text(fee.period.from)},
             {"to_date", time_text(fee.period.to - std::chrono::microseconds(1))},
             {"applied_taxes", json::array()}};
    for (const char* absent : {"lago_fixed_charge_id", "lago_invoice_id", "lago_true_up_fee_id", "lago_true_up_parent_fee_id", "lago_original_fee_id",
                               "created_at", "succeeded_at", "failed_at", "refunded_at", "pricing_unit_details"}) {
        out[absent] = nullptr;
    }
    return out;
}

/// What a fee says apart from its figures.
Fee empty_fee(const Scope& scope, Group group) {
    Fee fee;
    fee.charge = scope.charge.code;
    fee.metric = scope.metric().metric.code;
    fee.customer = scope.subscription.customer;
    fee.subscription = scope.subscription.id;
    fee.group = std::move(group);
    if (scope.filter) fee.filter = scope.filter->name.empty() ? json(scope.filter->values).dump() : scope.filter->name;
    fee.currency = scope.plan.currency_code;
    fee.pay_in_advance = scope.charge.pay_in_advance;
    fee.period = scope.period;
    return fee;
}

/// Amounts of a fee that is a difference of two totals: rounded on its own (dossier 7.3).
void set_amounts(Fee& fee, Priced priced, Currency currency) {
    fee.amount_cents = to_cents(priced.amount, currency);
    const auto rounded = priced.amount.round(currency.decimals, Rounding::half_up);
    fee.unit_amount = quotient(rounded, fee.units);
    fee.amount = priced.amount;
    fee.lines = std::move(priced.lines);
}

/// Units or an amount below zero are shown as zero (charge_service.rb:275).
void clamp(Priced& priced, Decimal& units) {
    if (!units.is_negative() && !priced.amount.is_negative()) return;
    units = {};
    raise_to(priced, {});
    lower_to(priced, {});
}

Fees sum_up(const Plan& plan, std::vector<Fee> list) {
    Fees fees{.fees = std::move(list), .currency = plan.currency_code, .subunits = plan.currency.subunits, .amount_cents = {}};
    for (const auto& fee : fees.fees) fees.amount_cents += fee.amount_cents;
    return fees;
}

// --- the fee of a recorded event (dossier 7) ---

/// Of two amount_details, what the event added (amount_details_calculator.rb:33-62).
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

/// Only percentages have details of a single event.
json added_details(const json& with, const json& without) {
    constexpr const char* ranges = "graduated_percentage_ranges";
    if (with.contains(ranges)) return added_ranges(with.at(ranges), without.value(ranges, json::array()));
    return with.contains("paid_events") ? added_percentage(with, without) : json::object();
}

/// The event's effect, it being the last of those that `query` chooses.
Contribution last_contribution(const Scope& scope, const AggregateQuery& query, UsageSource& usage) {
    if (scope.metric().kind == Kind::count) return {1, 1};
    AdvanceState state;
    Contribution last;
    for (const auto& step : usage.steps(scope.metric().metric, query, std::numeric_limits<std::size_t>::max(), {})) last = contribute(state, step);
    return last;
}

Quantity without_event(const Scope& scope, Quantity quantity, const Event& event, const Contribution& contribution) {
    quantity.units -= contribution.priced;
    --quantity.events;
    quantity.without_event = true;
    quantity.precise_amount -= quotient(event.precise_total_amount_cents.value_or(Decimal()), scope.plan.currency.subunits);
    if (scope.metric().kind == Kind::sum && !quantity.values.empty()) quantity.values.pop_back();
    return quantity;
}

Group group_of(const Scope& scope, const Event& event) {
    Group group;
    for (const auto& key : scope.price().group_keys) group.emplace_back(key, property_text(event.properties, key));
    return group;
}

/// The fee of an event in the log under a pay-in-advance charge; scope's period ends with the event. Nothing when the event has no
/// value to count.
std::optional<Fee> advance_fee(const Scope& scope, const Event& event, UsageSource& usage) {
    const auto& metric = scope.metric();
    if (metric.kind != Kind::count && !property_text(event.properties, property_key(metric))) return {};
    auto group = group_of(scope, event);
    auto query = scope.query();
    keep_group(query, group);
    const auto contribution = last_contribution(scope, query, usage);
    const auto after = quantity_of(scope, query, usage, usage.measure(metric.metric, query).front());
    const auto before = without_event(scope, after, event, contribution);
    const auto with = apply(scope.price(), after), without = apply(scope.price(), before);
    auto fee = empty_fee(scope, std::move(group));
    fee.units = contribution.shown;
    fee.events = 1;
    set_amounts(fee, difference(with, without), scope.plan.currency);
    const auto details = row_of(scope.price().model).details;
    fee.vendor = fee_json(scope, fee, added_details(details(scope.price(), after, with), details(scope.price(), before, without)));
    fee.vendor["event_transaction_id"] = event.id;
    return fee;
}

// --- estimate_fees (dossier 3.1, 3.3) ---

[[noreturn]] void not_found(const char* field, const char* reason) { throw Error(ErrorCode::not_found, field, reason); }

/// The subscription active now, under the plan. A plan without a list of subscriptions takes any, on calendar periods.
Subscription subscription_at(const Plan& plan, const std::string& id, Timestamp now) {
    if (id.empty()) not_found("subscription", "subscription_not_found");
    if (!plan.lists_subscriptions) return {.id = id, .active = {}};
    for (const auto& each : plan.subscriptions) {
        if (each.id == id && each.active.contains(now)) return each;
    }
    not_found("subscription", "subscription_not_found");
}

/// The event's own number for a sum; its property, when present, must be a number (validate_creation_service.rb:83).
Decimal summed(const BillableMetric& metric, const Event& event) {
    const auto key = property_key(metric);
    const auto text = property_text(event.properties, key);
    if (!text) return {};
    const auto value = Decimal::parse(*text);
    if (!value) throw Error(ErrorCode::bad_value, "properties." + key, "value_is_not_valid_number");
    return *value;
}

/// What the event does to a unique count: 1 for an add of an inactive value, -1 for a remove of an active one.
Decimal unique_step(const Scope& scope, const Event& event, AggregateQuery query, UsageSource& usage) {
    const auto& metric = scope.metric().metric;
    const auto value = property_text(event.properties, property_key(scope.metric()));
    if (!value) return {};
    const bool adds = property_text(event.properties, "operation_type").value_or("add") == "add";
    query.filter.parts.push_back(Filter::equals(metric.property, *value));
    const bool active = usage.measure(metric, query).front().value > 0;
    return adds == active ? Decimal() : Decimal(adds ? 1 : -1);
}

Contribution contribution_of(const Scope& scope, const Event& event, const AggregateQuery& query, UsageSource& usage, const Measured& measured) {
    const auto& metric = scope.metric();
    if (metric.kind == Kind::count) return {1, 1};
    const auto step = metric.kind == Kind::sum ? summed(metric, event) : unique_step(scope, event, query, usage);
    AdvanceState state;
    if (measured.falls) {
        for (const auto& each : usage.steps(metric.metric, query, std::numeric_limits<std::size_t>::max(), {})) contribute(state, each);
    } else if (measured.events > 0) {
        state.current = state.maximum = measured.value;
    }
    return contribute(state, step);
}

/// The quantity once the event has been added to it.
Quantity with_event(const Scope& scope, Quantity quantity, const Event& event, const Contribution& contribution) {
    quantity.units += contribution.priced;
    ++quantity.events;
    if (scope.metric().kind == Kind::sum) {
        const auto value = summed(scope.metric(), event);
        auto& running = quantity.running;
        running.last += value;
        if (++running.length == scope.price().free_events) running.at_free_events = running.last;
        if (running.last < scope.price().free_total) ++running.below_free;
        quantity.values.push_back(value);  // a count's values never include the event (count_service.rb:66)
    }
    quantity.precise_amount += quotient(event.precise_total_amount_cents.value_or(Decimal()), scope.plan.currency.subunits);
    return quantity;
}

Fee estimate(const Scope& scope, const Event& event, UsageSource& usage) {
    auto group = group_of(scope, event);
    auto query = scope.query();
    keep_group(query, group);
    const auto measured = usage.measure(scope.metric().metric, query).front();
    const auto contribution = contribution_of(scope, event, query, usage, measured);
    const auto before = quantity_of(scope, query, usage, measured);
    const auto after = with_event(scope, before, event, contribution);
    auto fee = empty_fee(scope, std::move(group));
    fee.units = contribution.shown;
    fee.events = 1;
    set_amounts(fee, difference(apply(scope.price(), after), apply(scope.price(), before)), scope.plan.currency);
    fee.vendor = fee_json(scope, fee, json::object());
    fee.vendor["event_transaction_id"] = event.id.empty() ? json(nullptr) : json(event.id);
    return fee;
}

Decimal rounded(const BillableMetric& metric, const Decimal& value) {
    return metric.rounding ? value.round(metric.precision, *metric.rounding) : value;
}

/// As estimate_instant_fees: standard and percentage charges, the event priced alone, its units rounded as the metric says.
Fee instant(const Scope& scope, const Event& event) {
    const auto& metric = scope.metric();
    auto fee = empty_fee(scope, group_of(scope, event));
    fee.units = at_least_zero(rounded(metric, metric.kind == Kind::count ? Decimal(1) : summed(metric, event)));
    fee.events = 1;
    set_amounts(fee, price_instant(scope.price(), fee.units), scope.plan.currency);
    fee.vendor = fee_json(scope, fee, nullptr);
    fee.vendor.erase("applied_taxes");
    fee.vendor["amount_cents"] = fee.vendor["total_amount_cents"] = ruby_text(fee.amount_cents);
    fee.vendor["precise_unit_amount"] = ruby_text(fee.unit_amount * scope.plan.currency.subunits);
    fee.vendor["event_transaction_id"] = event.id.empty() ? json(nullptr) : json(event.id);
    return fee;
}

Fees Plan::estimate_instant_fees(const Event& event, Timestamp now) const {
    const auto subscription = subscription_at(*this, event.subscription, now);
    std::vector<Fee> list;
    for (const auto& charge : charges) {
        const bool instantly = charge.price.model == Model::standard || charge.price.model == Model::percentage;
        if (!charge.pay_in_advance || !instantly || billable_metrics[charge.metric].metric.code != event.name) continue;
        list.push_back(
            instant({*this, charge, filter_of(charge, event.properties), subscription, billing_period(charges_interval, subscription, now)}, event));
    }
    if (list.empty()) throw Error(ErrorCode::bad_value, "name", "does_not_match_an_instant_charge");
    return sum_up(*this, std::move(list));
}

Fees Plan::estimate_fees(const Event& event, Timestamp now, UsageSource& usage_source) const {
    const auto subscription = subscription_at(*this, event.subscription, now);
    const auto known =
        std::any_of(billable_metrics.begin(), billable_metrics.end(), [&](const auto& each) { return each.metric.code == event.name; });
    if (!known) not_found("name", "billable_metric_not_found");
    auto period = billing_period(charges_interval, subscription, now);
    const auto whole = period;
    period.to = std::min(period.to, now + std::chrono::microseconds(1));
    std::vector<Fee> list;
    for (const auto& charge : charges) {
        if (!charge.pay_in_advance || billable_metrics[charge.metric].metric.code != event.name) continue;
        const Scope scope{*this, charge, filter_of(charge, event.properties), subscription, period};
        list.push_back(estimate(scope, event, usage_source));
        list.back().period = whole;
        list.back().vendor["to_date"] = time_text(whole.to - std::chrono::microseconds(1));
    }
    if (list.empty()) throw Error(ErrorCode::bad_value, "name", "does_not_match_an_instant_charge");
    return sum_up(*this, std::move(list));
}

// --- usage of a period (dossier 4.4, 6, 7.4, 8) ---

/// A pay-in-advance charge has been paid up to the period's maximum, which a live value below it does not bring back.
Decimal paid_in_advance(const Scope& scope, const AggregateQuery& query, UsageSource& usage, const Measured& measured) {
    if (scope.metric().kind == Kind::count || !measured.falls) return measured.value;
    AdvanceState state;
    for (const auto& step : usage.steps(scope.metric().metric, query, std::numeric_limits<std::size_t>::max(), {})) contribute(state, step);
    if (!state.current) return measured.value;
    return at_least_zero(measured.value - *state.current + *state.maximum);
}

/// Of the plan, or of the pricing unit that the charge is written in, which has hundredths.
Currency currency_of(const Scope& scope) { return scope.charge.conversion_rate ? Currency() : scope.plan.currency; }

json pricing_unit_json(const Charge& charge, const Figures& figures) {
    if (!charge.conversion_rate) return nullptr;
    return {
        {"amount_cents", whole_cents(figures.cents)}, {"short_name", charge.pricing_unit}, {"conversion_rate", charge.conversion_rate->to_string()}};
}

Fee usage_fee(const Scope& scope, Measured measured, UsageSource& usage) {
    Group group;
    for (std::size_t i = 0; i < measured.group.size(); ++i) group.emplace_back(scope.price().group_keys[i], measured.group[i]);
    auto query = scope.query();
    keep_group(query, group);
    auto fee = empty_fee(scope, std::move(group));
    fee.units = measured.value = rounded(scope.metric(), measured.value);
    if (scope.charge.pay_in_advance) measured.value = paid_in_advance(scope, query, usage, measured);
    const auto quantity = quantity_of(scope, query, usage, measured);
    auto priced = apply(scope.price(), quantity);
    auto details = row_of(scope.price().model).details(scope.price(), quantity, priced);
    clamp(priced, fee.units);
    fee.events = quantity.events;
    auto figures = lago::figures(priced.amount, unit_amount(scope.price(), quantity, priced.amount), currency_of(scope));
    const auto pricing_unit = pricing_unit_json(scope.charge, figures);
    if (scope.charge.conversion_rate) {
        figures = converted(figures, *scope.charge.conversion_rate, scope.plan.currency);
        convert_to(priced, quotient(figures.precise_cents, scope.plan.currency.subunits), *scope.charge.conversion_rate);
    }
    fee.unit_amount = figures.unit_amount;
    fee.amount = priced.amount;
    fee.amount_cents = figures.cents;
    fee.lines = std::move(priced.lines);
    fee.vendor = fee_json(scope, fee, std::move(details));
    fee.vendor["total_aggregated_units"] = ruby_text(measured.value);
    fee.vendor["pricing_unit_details"] = pricing_unit;
    return fee;
}

/// Groups as the database answers them: a missing and an empty property are one; without events one group of nothing.
std::vector<Measured> measured_groups(const Scope& scope, UsageSource& usage) {
    auto query = scope.query();
    const auto& keys = scope.price().group_keys;
    for (const auto& key : keys) query.group_by.push_back(property_field(key));
    auto rows = usage.measure(scope.metric().metric, query);
    for (auto& row : rows) {
        for (auto& value : row.group) value = value && value->empty() ? std::nullopt : value;
    }
    if (rows.empty()) rows.push_back({.group = std::vector<std::optional<std::string>>(keys.size()), .value = {}, .events = 0, .falls = false});
    return rows;
}

void add_bucket(const Scope& scope, UsageSource& usage, std::vector<Fee>& fees) {
    for (auto& row : measured_groups(scope, usage)) fees.push_back(usage_fee(scope, std::move(row), usage));
}

int days_in(const Period& period) {
    const auto day = std::chrono::days(1);
    return static_cast<int>((period.to - period.from + day - std::chrono::microseconds(1)) / day);
}

/// The charge's minimum spending, when its fees stay below it: one more fee of 1 unit.
void add_true_up(const Scope& scope, const Decimal& used_cents, std::vector<Fee>& fees) {
    const auto whole = billing_period(scope.plan.charges_interval,
                                      {.anniversary = scope.subscription.anniversary, .anchor = scope.subscription.anchor}, scope.period.from);
    const auto cents = true_up_cents(scope.charge.minimum_cents, used_cents, days_in(scope.period), days_in(whole));
    if (cents.is_zero()) return;
    const Decimal subunits(scope.plan.currency.subunits);
    auto fee = empty_fee(scope, {});
    fee.units = 1;
    fee.amount = fee.unit_amount = quotient(cents, subunits);
    fee.amount_cents = to_cents(fee.amount, scope.plan.currency);
    fee.lines = {{.step = Step::minimum, .amount = fee.amount}};
    fee.vendor = fee_json(scope, fee, json::object());
    fees.push_back(std::move(fee));
}

void add_charge(const Plan& plan, const Charge& charge, const Subscription& subscription, const Period& period, bool closing, UsageSource& usage,
                std::vector<Fee>& fees) {
    const auto first = fees.size();
    const Scope whole{plan, charge, nullptr, subscription, period};
    for (const auto& filter : charge.filters) add_bucket({plan, charge, &filter, subscription, period}, usage, fees);
    add_bucket(whole, usage, fees);
    if (!closing || charge.minimum_cents.is_zero()) return;
    Decimal used;
    for (std::size_t i = first; i < fees.size(); ++i) used += fees[i].amount_cents;
    add_true_up(whole, used, fees);
}

Fees Plan::usage(const UsageQuery& query, Timestamp now, UsageSource& usage_source) const {
    std::vector<Subscription> asked;
    for (const auto& each : subscriptions) {
        const bool chosen =
            (query.subscription.empty() || each.id == query.subscription) && (query.customer.empty() || each.customer == query.customer);
        if (chosen && (query.period || each.active.contains(now))) asked.push_back(each);
    }
    if (!lists_subscriptions && !query.subscription.empty()) asked.push_back({.id = query.subscription, .customer = query.customer});
    if (query.subscription.empty() && query.customer.empty())
        throw Error(ErrorCode::bad_value, "subscription", "a subscription or a customer is required");
    if (asked.empty()) not_found("subscription", "no_active_subscription");
    std::vector<Fee> list;
    for (const auto& subscription : asked) {
        auto period = query.period.value_or(billing_period(charges_interval, subscription, now));
        period = {std::max(period.from, subscription.active.from), std::min(period.to, subscription.active.to)};
        if (!(period.from < period.to)) continue;
        for (const auto& charge : charges) add_charge(*this, charge, subscription, period, query.closing, usage_source, list);
    }
    return sum_up(*this, std::move(list));
}

std::shared_ptr<const Book::Impl> load(const json& catalogue) {
    const Node root(catalogue);
    const auto at = root.object("plan");
    auto plan = std::make_shared<Plan>();
    plan->vendor = "lago";
    plan->code = at.required_text("code");
    plan->source = catalogue;
    plan->currency_code = at.required_text("amount_currency");
    if (plan->currency_code.size() != 3) throw Error(ErrorCode::bad_value, at.path("amount_currency"), "must be a currency's three letters");
    plan->currency = currency_of(plan->currency_code);
    plan->charges_interval = at.choice("interval", intervals, "monthly");
    if (at.flag("bill_charges_monthly")) plan->charges_interval = Interval::monthly;
    plan->premium = root.flag("premium", true);
    for (const auto& metric : root.list("billable_metrics")) {
        plan->billable_metrics.push_back(read_metric(metric));
        plan->metrics.push_back(plan->billable_metrics.back().metric);
    }
    for (const auto& charge : at.list("charges")) plan->charges.push_back(read_charge(charge, plan->billable_metrics));
    plan->lists_subscriptions = root.find("subscriptions").has_value();
    for (const auto& each : root.list("subscriptions")) plan->subscriptions.push_back(read_subscription(each));
    return plan;
}

}  // namespace lago

// --- FlexPrice: dossier sections 5, 6 and 9 --------------------------------------------------

namespace flexprice {

using Step = FeeLine::Step;

constexpr std::array<std::pair<std::string_view, int>, 6> decimals_table{{{"jpy", 0}, {"krw", 0}, {"vnd", 0}, {"clp", 0}, {"kwd", 3}, {"clf", 4}}};

/// Decimals of a currency; any other has 2 (types/currency.go). The code's case does not count.
Currency currency_of(std::string code) {
    std::transform(code.begin(), code.end(), code.begin(), [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
    for (const auto& [name, decimals] : decimals_table) {
        if (name == code) return {decimals, decimals == 0 ? 1 : decimals == 3 ? 1000 : 10000};
    }
    return {};
}

Decimal rounded(const Decimal& amount, Currency currency) { return amount.round(currency.decimals, Rounding::half_up); }

/// shopspring/decimal's division: 16 decimals, half away from zero; 0 for a zero divisor.
Decimal divided(const Decimal& a, const Decimal& b) { return b.is_zero() ? Decimal() : Decimal::divide(a, b, 16, Rounding::half_up); }

// --- prices ---

enum class Model { flat, package, tiered };
constexpr std::array<std::pair<std::string_view, Model>, 3> models{
    {{"FLAT_FEE", Model::flat}, {"PACKAGE", Model::package}, {"TIERED", Model::tiered}}};

enum class TierMode { none, volume, slab };
constexpr std::array<std::pair<std::string_view, TierMode>, 3> tier_modes{
    {{"", TierMode::none}, {"VOLUME", TierMode::volume}, {"SLAB", TierMode::slab}}};

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
    const auto value = at.decimal(field);
    if (!value && fallback) return *fallback;
    if (!value) throw Error(ErrorCode::bad_value, at.path(field), "is required");
    if (*value < least) throw Error(ErrorCode::bad_value, at.path(field), "must be at least " + least.to_string());
    return *value;
}

/// Sorted by limit, the open tier last; no check that limits differ or that an open tier exists, since FlexPrice makes none (9.3).
std::vector<Tier> read_tiers(const Node& at) {
    std::vector<Tier> tiers;
    for (const auto& each : at.list("tiers")) {
        tiers.push_back({.above = {},
                         .up_to = each.decimal("up_to"),
                         .rate = at_least(each, "unit_amount", 0),
                         .flat = at_least(each, "flat_amount", 0, 0),
                         .from = {}});
    }
    std::stable_sort(tiers.begin(), tiers.end(), [](const Tier& a, const Tier& b) { return a.up_to && (!b.up_to || *a.up_to < *b.up_to); });
    for (std::size_t i = 1; i < tiers.size(); ++i) tiers[i].above = tiers[i].from = tiers[i - 1].up_to.value_or(Decimal());
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
        price.divide_by = at_least(transform, "divide_by", 1);
        price.round_down = transform.text("round") == "down";
    }
    if (price.model == Model::tiered) {
        price.tiers = read_tiers(at);
        if (price.tiers.empty()) throw Error(ErrorCode::bad_value, at.path("tiers"), "is required");
    }
    return price;
}

/// The first tier that reaches the quantity, its limit included; else the last.
const Tier& volume_tier(const std::vector<Tier>& tiers, const Decimal& units) {
    for (const auto& tier : tiers) {
        if (!tier.up_to || units <= *tier.up_to) return tier;
    }
    return tiers.back();
}

/// The tier walk alone, which prices a bucket of 0 at the first tier's flat amount (9.7). Slab units beyond the last limit are free.
Priced price_tiers(const Price& price, const Decimal& units) {
    Priced priced;
    if (price.tiers.empty() || price.mode == TierMode::none) return priced;
    if (price.mode == TierMode::slab) return graduated(price.tiers, units);
    priced.add(tier_line(volume_tier(price.tiers, units), units));
    return priced;
}

Decimal package_count(const Price& price, const Decimal& units) {
    return divided(units, price.divide_by).round(0, price.round_down ? Rounding::floor : Rounding::ceil);
}

/// CalculateCost: unrounded; no units cost nothing under any model.
Priced price_units(const Price& price, const Decimal& units) {
    Priced priced;
    if (units.is_zero()) return priced;
    if (price.model == Model::tiered) return price_tiers(price, units);
    if (price.model == Model::flat) {
        priced.add(units_line(units, price.amount));
    } else {
        priced.add({.step = Step::package,
                    .units = units,
                    .rate = price.amount,
                    .per = price.divide_by,
                    .amount = package_count(price, units) * price.amount});
    }
    return priced;
}

/// Buckets of a bucketed meter: each is priced alone, tiers and packages start anew.
Priced price_buckets(const Price& price, const std::vector<Decimal>& buckets) {
    Priced priced;
    for (const auto& units : buckets) {
        for (auto& line : (price.model == Model::tiered ? price_tiers(price, units) : price_units(price, units)).lines) priced.add(std::move(line));
    }
    return priced;
}

/// CalculateCostWithBreakup (9.6).
struct Breakup {
    Decimal cost, unit_cost, tier_unit_amount;
    int tier = -1;
};

Breakup breakup(const Price& price, const Decimal& units) {
    Breakup result;
    result.cost = price_units(price, units).amount;
    result.unit_cost = divided(result.cost, units);
    if (price.model == Model::package) result.tier_unit_amount = divided(price.amount, price.divide_by);
    if (units.is_zero()) return result;
    if (price.model == Model::flat) result.tier_unit_amount = price.amount;
    if (price.model == Model::tiered && price.mode != TierMode::none) {
        const auto reached =
            std::find_if(price.tiers.begin(), price.tiers.end() - 1, [&](const Tier& tier) { return !tier.up_to || units <= *tier.up_to; });
        result.tier = static_cast<int>(reached - price.tiers.begin());
        result.tier_unit_amount = reached->rate;
    }
    return result;
}

// --- entitlements and grants (9.12) ---

/// What is billed of a quantity: what exceeds the limit, each day's for a daily limit.
struct Entitlement {
    bool enabled = false;
    std::optional<Decimal> limit = {};  ///< none: everything is free
    bool daily = false;

    Decimal billable(const Decimal& units) const {
        if (!enabled) return units;
        return limit ? at_least_zero(units - *limit) : Decimal();
    }
    Decimal billable(const std::vector<Decimal>& days) const {
        Decimal sum;
        for (const auto& units : days) sum += billable(units);
        return sum;
    }
};

Entitlement read_entitlement(const Node& at) { return {at.flag("is_enabled"), at.decimal("usage_limit"), at.text("usage_reset_period") == "DAILY"}; }

Decimal overage(const Decimal& usage, const Decimal& quota) { return at_least_zero(usage - quota); }

// --- commitments (9.13 to 9.16) ---

struct Commitment {
    Decimal amount = {};  ///< money, or what the committed quantity costs
    Decimal overage_factor = {};
    bool true_up = false;
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

/// A commitment's quantity is worth what the price asks for it. A missing factor makes overage free.
Commitment read_commitment(const Node& at, const Price& price) {
    const bool by_quantity = at.text("type", at.text("commitment_type")) == "quantity";
    const auto value = at.decimal(by_quantity ? "quantity" : "amount").value_or(at.decimal("commitment_value").value_or(Decimal()));
    return {by_quantity ? price_units(price, value).amount : value, at.decimal("overage_factor").value_or(Decimal()), at.flag("true_up_enabled")};
}

Committed commit(const Commitment& commitment, const Decimal& cost) {
    if (cost >= commitment.amount) {
        const auto overage = (cost - commitment.amount) * commitment.overage_factor;
        return {commitment.amount + overage, commitment.amount, overage, {}};
    }
    const auto missing = commitment.true_up ? commitment.amount - cost : Decimal();
    return {cost + missing, cost, {}, missing};
}

/// A commitment longer than the billing period: what earlier invoices used of it is gone (9.16).
Committed commit_rest(const Commitment& commitment, const Decimal& used_before, const Decimal& cost) {
    const auto within = std::min(cost, at_least_zero(commitment.amount - used_before));
    const auto overage = (cost - within) * commitment.overage_factor;
    return {within + overage, within, overage, {}};
}

/// Minutes of the day from which until which a price and commitment of their own hold.
struct TimeBucket {
    std::string id;
    int from = 0, to = 0;
    Price price;
    Commitment commitment;

    bool holds(int minute) const { return from <= minute && minute < to; }
};

int read_minute(const Node& at, std::string_view field) {
    const auto text = at.required_text(field);
    if (text.size() != 5 || text[2] != ':') throw Error(ErrorCode::bad_value, at.path(field), "must be a time of day like 09:30");
    const auto hours = Decimal::parse(text.substr(0, 2)), minutes = Decimal::parse(text.substr(3));
    if (!hours || !minutes || *hours > 24 || *minutes > 59) throw Error(ErrorCode::bad_value, at.path(field), "must be a time of day like 09:30");
    return static_cast<int>(hours->to_int64().value() * 60 + minutes->to_int64().value());
}

TimeBucket read_time_bucket(const Node& at) {
    TimeBucket bucket{at.text("id"), read_minute(at, "start"), read_minute(at, "end"), {}, {}};
    if (at.find("price")) bucket.price = read_price(at.object("price"));
    bucket.commitment = read_commitment(at, bucket.price);
    return bucket;
}

/// One window of a windowed commitment; without a known start no time bucket holds it.
struct Window {
    std::optional<int> minute;
    Decimal units;
};

struct WindowedPrice {
    Price price;
    std::optional<Commitment> commitment;
    std::vector<TimeBucket> buckets;

    const TimeBucket* bucket_of(const Window& window) const {
        if (!window.minute) return nullptr;
        const auto found = std::find_if(buckets.begin(), buckets.end(), [&](const TimeBucket& bucket) { return bucket.holds(*window.minute); });
        return found == buckets.end() ? nullptr : &*found;
    }

    /// The rule of 9.13 for one window; a window out of all commitments pays its plain cost.
    Committed charge(const Window& window) const {
        if (const auto* bucket = bucket_of(window)) return commit(bucket->commitment, price_units(bucket->price, window.units).amount);
        const auto cost = price_units(price, window.units).amount;
        return commitment ? commit(*commitment, cost) : Committed{cost, cost, {}, {}};
    }
};

// --- discounts (9.17) ---

/// Rounded to the currency, never more than the price.
Decimal discount(const Decimal& price, const Decimal& off, Currency currency) { return std::min(rounded(off, currency), price); }

Decimal percentage_discount(const Decimal& price, const Decimal& percentage, Currency currency) {
    return discount(price, price * percent(percentage), currency);
}

/// One after the other, each on what the one before left.
Decimal compound_discount(const Decimal& price, const std::vector<Decimal>& percentages, Currency currency) {
    auto left = price;
    for (const auto& percentage : percentages) left -= percentage_discount(left, percentage, currency);
    return price - left;
}

}  // namespace flexprice

// --- Polar: dossier sections 9 to 11 ---------------------------------------------------------

namespace polar {

/// Amounts are counts of the currency's smallest unit; an invoice has no fractions of it.
Decimal rounded_half_away(const Decimal& value) { return value.round(0, Rounding::half_up); }

/// Unit amounts have up to 12 decimals and 5 digits before them; caps are 32-bit integers (product/schemas.py:421).
constexpr int rate_decimals = 12, rate_whole_digits = 5;

struct MeteredPrice {
    Decimal unit_amount;  ///< cents for one unit
    std::optional<Decimal> cap = {};
    std::string currency = "usd";
};

MeteredPrice read_metered(const Node& at) {
    MeteredPrice price{at.decimal("unit_amount").value_or(Decimal()), at.decimal("cap_amount"),
                       at.text("price_currency", at.text("currency", "usd"))};
    const auto refuse = [&](std::string_view field, const char* reason) { throw Error(ErrorCode::bad_value, at.path(field), reason); };
    if (price.unit_amount <= 0) refuse("unit_amount", "must be above 0");
    if (price.unit_amount.scale() > rate_decimals) refuse("unit_amount", "must have at most 12 decimals");
    if (price.unit_amount.round(0, Rounding::floor).digits() > rate_whole_digits) refuse("unit_amount", "must be below 100000");
    if (price.cap && (price.cap->is_negative() || price.cap->scale() > 0 || *price.cap > std::numeric_limits<std::int32_t>::max())) {
        refuse("cap_amount", "must be a whole number from 0 to 2147483647");
    }
    return price;
}

Decimal power_of_two(int exponent) {
    Decimal power = 1;
    for (int i = 0; i < exponent; ++i) power += power;
    return power;
}

/// unit_amount x units, rounded half away from zero. Polar's units are a double, which counts at its exact binary value
/// (product_price.py:318): mantissa x 2^exponent, so the product is a quotient of integers that fit.
Decimal exact_amount(const Decimal& unit_amount, double units) {
    constexpr int mantissa_bits = 53, negligible = 86;  // below 2^-33 units, at less than 10^5 cents each
    int exponent = 0;
    const auto mantissa = static_cast<std::int64_t>(std::ldexp(std::frexp(units, &exponent), mantissa_bits));
    exponent -= mantissa_bits;
    const auto product = unit_amount * Decimal(mantissa);
    if (exponent >= 0) return rounded_half_away(product * power_of_two(std::min(exponent, 127)));
    return -exponent > negligible ? Decimal() : Decimal::divide(product, power_of_two(-exponent), 0, Rounding::half_up);
}

/// Units beyond credits at the price, rounded, then capped.
Priced price_units(const MeteredPrice& price, double consumed, std::int64_t credited) {
    const double units = std::max(0.0, consumed - static_cast<double>(credited));
    Priced priced;
    priced.add({.units = Decimal::from_double(units), .rate = price.unit_amount, .amount = exact_amount(price.unit_amount, units)});
    if (price.cap) lower_to(priced, *price.cap);
    return priced;
}

// --- the words on the invoice ---

std::string grouped(std::string digits) {
    auto point = digits.find('.');
    if (point == std::string::npos) point = digits.size();
    const auto first = static_cast<std::ptrdiff_t>(digits.front() == '-' ? 1 : 0);
    for (auto i = static_cast<std::ptrdiff_t>(point) - 3; i > first; i -= 3) digits.insert(static_cast<std::size_t>(i), ",");
    return digits;
}

/// Amount in the currency with at least its own decimals.
std::string money(const Decimal& cents, const std::string& currency) {
    static constexpr std::array<std::string_view, 15> whole{"bif", "clp", "djf", "gnf", "jpy", "kmf", "krw", "mga",
                                                            "pyg", "rwf", "vnd", "vuv", "xaf", "xof", "xpf"};
    static constexpr std::array<std::pair<std::string_view, std::string_view>, 4> symbols{{{"usd", "$"}, {"eur", "€"}, {"gbp", "£"}, {"jpy", "¥"}}};
    const int decimals = std::find(whole.begin(), whole.end(), currency) == whole.end() ? 2 : 0;
    const auto amount = cents * Decimal::scaled(1, decimals);
    std::string symbol = currency + " ";
    for (const auto& [code, sign] : symbols) {
        if (code == currency) symbol = sign;
    }
    return symbol + grouped(amount.to_fixed(std::max(decimals, amount.scale())));
}

std::string label(const MeteredPrice& price, double consumed, const Priced& priced) {
    auto text = "(" + grouped(Decimal::from_double(consumed).round(3, Rounding::half_even).to_string()) + " consumed units) × " +
                money(price.unit_amount, price.currency);
    if (priced.lines.size() > 1) text += " — Capped at " + money(*price.cap, price.currency);
    return text;
}

// --- a billing run (10.5) ---

enum class Function { count, sum, max, min, avg, unique };
constexpr std::array<std::pair<std::string_view, Function>, 6> functions{{{"count", Function::count},
                                                                          {"sum", Function::sum},
                                                                          {"max", Function::max},
                                                                          {"min", Function::min},
                                                                          {"avg", Function::avg},
                                                                          {"unique", Function::unique}}};

/// Sums and counts can be split between prices; the other functions hold over all entries only.
bool is_summable(Function function) { return function == Function::count || function == Function::sum; }

/// Over user events; doubles, added in order, as Polar does.
double aggregated(Function function, const std::vector<double>& values) {
    if (function == Function::count) return static_cast<double>(values.size());
    if (function == Function::unique) return static_cast<double>(std::unordered_set<double>(values.begin(), values.end()).size());
    if (values.empty()) return 0;
    if (function == Function::max) return *std::max_element(values.begin(), values.end());
    if (function == Function::min) return *std::min_element(values.begin(), values.end());
    double sum = 0;
    for (const double value : values) sum += value;
    return function == Function::avg ? sum / static_cast<double>(values.size()) : sum;
}

/// Credits in the order they came; what is taken away never leaves less than none.
std::int64_t credited_units(const std::vector<std::int64_t>& credits) {
    std::int64_t sum = 0;
    for (const auto units : credits) sum = std::max<std::int64_t>(0, sum + units);
    return sum;
}

// --- tiers of seats and units (11) ---

struct Tiers {
    bool volume = false;
    std::vector<Tier> tiers;
};

/// Sorted by bound, the open tier last. Problems carry pydantic's words.
Tiers read_tiers(const Node& at, Problems& problems) {
    static constexpr std::array<std::pair<std::string_view, bool>, 2> types{{{"volume", true}, {"graduated", false}}};
    Tiers result{at.choice("type", types, "volume"), {}};
    for (const auto& each : at.list("tiers")) {
        Tier tier{.above = {}, .up_to = each.decimal("bound"), .rate = each.decimal("unit_amount").value_or(Decimal()), .flat = {}, .from = {}};
        if (tier.up_to && *tier.up_to <= 0) problems.push_back({each.path("bound"), "bound", "greater_than"});
        if (tier.rate.is_negative()) problems.push_back({each.path("unit_amount"), "unit_amount", "greater_than_equal"});
        result.tiers.push_back(std::move(tier));
    }
    if (result.tiers.empty()) problems.push_back({at.path("tiers"), "tiers", "too_short"});
    std::stable_sort(result.tiers.begin(), result.tiers.end(),
                     [](const Tier& a, const Tier& b) { return a.up_to && (!b.up_to || *a.up_to < *b.up_to); });
    for (std::size_t i = 1; i < result.tiers.size(); ++i) {
        const auto& bound = result.tiers[i - 1].up_to;
        if (!bound) problems.push_back({at.path("tiers"), "tiers", "unbounded_tier_not_last"});
        if (bound && bound == result.tiers[i].up_to) problems.push_back({at.path("tiers"), "tiers", "duplicate_tier_bound"});
        result.tiers[i].above = result.tiers[i].from = bound.value_or(Decimal());
    }
    return result;
}

/// Bounds are the last quantity included. A volume needs a tier that holds it; graduated units past the last bound are free.
Priced price_tiers(const Tiers& tiers, const Decimal& quantity) {
    if (quantity.is_negative()) throw Error(ErrorCode::bad_value, "quantity", "negative");
    if (quantity.is_zero()) return {};
    if (!tiers.volume) return graduated(tiers.tiers, quantity);
    for (const auto& tier : tiers.tiers) {
        if (tier.up_to && quantity > *tier.up_to) continue;
        Priced priced;
        priced.add(tier_line(tier, quantity));
        return priced;
    }
    throw Error(ErrorCode::bad_value, "quantity", "uncovered");
}

}  // namespace polar

// --- Autumn: dossier sections 5 to 7 ---------------------------------------------------------

namespace autumn {

using Step = FeeLine::Step;

/// decimal.js divides to 20 significant digits.
Decimal divided(const Decimal& a, const Decimal& b) { return b.is_zero() ? Decimal() : Decimal::divide_significant(a, b, 20, Rounding::half_up); }

/// Up to whole billing units, once, before any tier is walked (7.3).
Decimal whole_units(const Decimal& quantity, const Decimal& billing_units) { return begun_packages(quantity, billing_units) * billing_units; }

constexpr int amount_decimals = 10;  ///< tier results are rounded to these, half up

// --- plan items ---

struct Item {
    bool volume = false;
    bool prepaid = false, usage_based = false;
    Decimal included = {}, billing_units = 1;
    std::vector<Tier> tiers = {};  ///< limits without the included units; the rate is for one unit
};

/// The limits of tiers are in total units to users and beyond the included ones inside (7.2); "inf" stays.
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
    item.tiers.push_back({.above = above, .up_to = limit, .rate = divided(amount, item.billing_units), .flat = flat, .from = above});
}

/// The amounts in a currency: its own block where there is one, else the base's (7.10).
Node in_currency(const Node& at, const std::string& currency) {
    const auto blocks = at.find("currencies");
    const auto block = blocks && !currency.empty() ? blocks->find(currency) : std::nullopt;
    return block.value_or(at);
}

Item read_item(const Node& at, bool limits_include_included, const std::string& currency = {}) {
    static constexpr std::array<std::pair<std::string_view, bool>, 3> behaviors{{{"", false}, {"graduated", false}, {"volume", true}}};
    Item item;
    item.volume = at.choice("tier_behavior", behaviors);
    item.prepaid = at.text("billing_method") == "prepaid";
    item.usage_based = at.text("billing_method") == "usage_based";
    item.included = at.decimal("included").value_or(Decimal());
    item.billing_units = at.decimal("billing_units").value_or(Decimal(1));
    if (item.billing_units <= 0) throw Error(ErrorCode::bad_value, at.path("billing_units"), "must be above 0");
    const auto amounts = in_currency(at, currency);
    for (const auto& each : amounts.list(amounts.find("usage_tiers") ? "usage_tiers" : "tiers")) {
        auto limit = read_limit(each);
        if (limit && limits_include_included) limit = internal_limit(*limit, item.included);
        add_tier(item, limit, each.decimal("amount").value_or(Decimal()), each.decimal("flat_amount").value_or(Decimal()));
    }
    if (const auto amount = amounts.decimal("amount"); amount && item.tiers.empty()) add_tier(item, {}, *amount, {});
    return item;
}

/// To 10 decimals, and with the quantity's sign: a negative quantity gives back what the positive one costs.
Priced finished(Priced priced, bool negative) {
    const auto rounded = priced.amount.round(amount_decimals, Rounding::half_up);
    if (rounded != priced.amount) priced.add({.step = Step::rounding, .amount = rounded - priced.amount});
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

/// 7.4: flat amounts play no part, units beyond the last limit are free.
Priced price_graduated(const Item& item, const Decimal& units) {
    auto tiers = item.tiers;
    for (auto& tier : tiers) tier.flat = {};
    return units.is_zero() ? Priced() : graduated(tiers, units);
}

/// 7.5: all units, the included ones too, at the rate of the tier they reach; within the included units nothing.
Priced price_volume(const Item& item, const Decimal& included, const Decimal& units) {
    Priced priced;
    if (included > 0 && units <= included) {
        priced.add(free_line(units));
        return priced;
    }
    for (const auto& tier : item.tiers) {
        if (tier.up_to && units > *tier.up_to + included) continue;
        priced.add(tier_line(tier, units));
        break;
    }
    return priced;
}

/// What a quantity costs: beyond the included units for graduated tiers, in all for volume. Less than none costs nothing, or with
/// `allow_negative` gives back.
Priced price_quantity(const Item& item, const Decimal& included, const Decimal& quantity, bool allow_negative) {
    if (item.tiers.empty()) throw Error(ErrorCode::bad_value, "usage_tiers", "usage_tiers_required");
    const bool negative = quantity.is_negative() && allow_negative;
    const auto units = whole_units(negative ? quantity.abs() : at_least_zero(quantity), item.billing_units);
    return finished(item.volume ? price_volume(item, included, units) : price_graduated(item, units), negative);
}

// --- prepaid and usage-based items (7.6) ---

/// The requested quantity includes the included units; packs are bought for the rest.
Decimal prepaid_packs(const Item& item, const Decimal& quantity) {
    return begun_packages(at_least_zero(quantity - item.included), item.billing_units);
}

Priced price_prepaid(const Item& item, const Decimal& quantity) {
    const auto paid = prepaid_packs(item, quantity) * item.billing_units;
    return price_quantity(item, item.included, item.volume ? paid + item.included : paid, true);
}

/// Free items have their allowance for each product bought, priced ones once.
Decimal starting_balance(const Item& item, const Decimal& packs, const Decimal& products) {
    if (item.prepaid) return item.included + packs * item.billing_units;
    return item.usage_based ? item.included : item.included * products;
}

/// Entities' overages are added first, then priced as one.
Priced price_overage(const Item& item, const std::vector<Decimal>& usages) {
    Decimal overage;
    for (const auto& usage : usages) overage += at_least_zero(usage - item.included);
    return price_quantity(item, {}, overage, true);
}

// --- credit systems (6) ---

struct CreditSystem {
    std::string id;
    std::map<std::string, Decimal> costs;  ///< credits for one unit, by metered feature
};

CreditSystem read_credit_system(const Node& at, std::string_view id_field) {
    CreditSystem system{at.text(id_field), {}};
    for (const auto& each : at.list("credit_schema")) {
        const auto amount = at_least_zero(each.decimal("credit_cost").value_or(each.decimal("credit_amount").value_or(Decimal())));
        system.costs[each.required_text("metered_feature_id")] = divided(amount, each.decimal("feature_amount").value_or(Decimal(1)));
    }
    return system;
}

/// Credits for that many units of a feature; the system's own units are credits already.
Decimal credits(const CreditSystem& system, const std::string& feature, const Decimal& units) {
    if (feature == system.id) return units;
    const auto found = system.costs.find(feature);
    if (found == system.costs.end()) throw Error(ErrorCode::bad_value, "feature_id", "invalid_request");
    return found->second * units;
}

// --- balances: which pays, and whether there is enough (5.2, 7.7) ---

struct Balance {
    std::string id;
    Decimal balance, starting;
    bool overage_allowed = false, unlimited = false;
    std::optional<Decimal> least = {};  ///< how far down overage may go
    Decimal cost = 1;                   ///< of one unit, in the balance's own
};

enum class OverageBehavior { cap, reject, overflow };

/// Takes `units` off `balance` down to `floor`, as far as there is any room; what could not be taken is left in `units`.
void take(Balance& balance, Decimal& units, const std::optional<Decimal>& floor) {
    const auto wanted = units * balance.cost;
    const auto taken = floor ? std::min(wanted, at_least_zero(balance.balance - *floor)) : wanted;
    balance.balance = (balance.balance - taken).round(amount_decimals, Rounding::half_up);
    units -= taken == wanted ? units : divided(taken, balance.cost);
}

/// Gives `units` back to `balance` up to `ceiling`.
void give(Balance& balance, Decimal& units, const std::optional<Decimal>& ceiling) {
    const auto wanted = units * balance.cost;
    const auto given = ceiling ? std::min(wanted, at_least_zero(*ceiling - balance.balance)) : wanted;
    balance.balance = (balance.balance + given).round(amount_decimals, Rounding::half_up);
    units -= given == wanted ? units : divided(given, balance.cost);
}

/// Usage: every balance down to 0 in order, then those that allow overage down to their floor.
Decimal deduct(std::vector<Balance>& balances, Decimal units, OverageBehavior behavior) {
    for (auto& balance : balances) {
        if (balance.unlimited) return {};
        take(balance, units, Decimal());
    }
    for (auto& balance : balances) {
        const bool overflows = behavior == OverageBehavior::overflow;
        if (balance.overage_allowed || overflows) take(balance, units, overflows ? std::nullopt : balance.least);
    }
    return units;
}

/// A refund: negative balances up to 0, then every balance up to where it started; the rest only where overage is allowed.
Decimal refund(std::vector<Balance>& balances, Decimal units) {
    for (auto& balance : balances) give(balance, units, Decimal());
    for (auto& balance : balances) give(balance, units, balance.starting);
    for (auto& balance : balances) {
        if (balance.overage_allowed) give(balance, units, {});
    }
    return units;
}

/// What is left of `value` that no balance took; with reject nothing moves unless all of it fits.
Decimal settle(std::vector<Balance>& balances, const Decimal& value, OverageBehavior behavior) {
    auto changed = balances;
    const auto left = value.is_negative() ? -refund(changed, -value) : deduct(changed, value, behavior);
    if (behavior != OverageBehavior::reject || left.is_zero()) balances = std::move(changed);
    return left;
}

struct Standing {
    Decimal remaining, overage;
    bool unlimited = false, overage_allowed = false;
    std::optional<Decimal> max_purchase = {};  ///< overage at most; unbounded when absent
};

/// Whether `required` more units may be used; first rule that applies (5.2).
bool allowed(const Standing& standing, const Decimal& required) {
    if (standing.unlimited || required.is_negative()) return true;
    if (!standing.overage_allowed) return standing.remaining >= required;
    if (!standing.max_purchase) return true;
    return at_least_zero(*standing.max_purchase - standing.overage) + standing.remaining >= required;
}

// --- money ---

/// Smallest units as Stripe takes them: three-decimal currencies are rounded to ten (7.10).
Decimal minor_units(const Decimal& amount, std::string currency) {
    static constexpr std::array<std::string_view, 16> whole{"bif", "clp", "djf", "gnf", "jpy", "kmf", "krw", "mga",
                                                            "pyg", "rwf", "ugx", "vnd", "vuv", "xaf", "xof", "xpf"};
    static constexpr std::array<std::string_view, 5> thousandths{"bhd", "jod", "kwd", "omr", "tnd"};
    std::transform(currency.begin(), currency.end(), currency.begin(), [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
    const auto is_in = [&](const auto& list) { return std::find(list.begin(), list.end(), currency) != list.end(); };
    if (is_in(whole)) return amount.round(0, Rounding::half_up);
    const auto hundredths = (amount * 100).round(0, Rounding::half_up);
    return is_in(thousandths) ? hundredths * 10 : hundredths;
}

}  // namespace autumn
}  // namespace

Book Book::lago(const json& catalogue) { return Book(meter::lago::load(catalogue)); }

const std::string& Book::vendor() const noexcept { return impl_->vendor; }
const std::string& Book::code() const noexcept { return impl_->code; }
const json& Book::source() const noexcept { return impl_->source; }
std::vector<Metric> Book::metrics() const { return impl_->metrics; }

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
