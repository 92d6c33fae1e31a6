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

// =============================================================================================
// 8 books: how each vendor measures and prices, from its own JSON. Pure. Uses 1-3, 7.
// =============================================================================================

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
    std::string_view key;  ///< "customer.email" is the member email of the object customer; such fields stand together
    From from;
    Form form = Form::text;
    bool required = false;           ///< the vendor takes no event without it
    std::string_view fallback = {};  ///< sent where the event has nothing
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
    std::string_view code;  ///< only when the body says so: its "code", or any part of a body that is not JSON
    Meaning meaning;
    bool unknown = false;  ///< the events may have been stored all the same
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
    std::string_view base_url, prefix, path;
    std::string_view key_header, key_scheme;
    std::string_view version_header, version;
    std::string_view content_type;
    std::string_view open, close;  ///< around the events, which a comma separates
    std::int64_t batch_events;
    std::size_t batch_bytes;
    std::span<const WireField> fields;
    std::span<const StatusRule> rules;
    std::string_view proof;  ///< what the body of a success holds; an empty text: no body is needed
    IndexStyle index;
    std::string_view early;            ///< what a refusal of an event in the future says; empty: the vendor takes them
    std::chrono::hours resend_window;  ///< how long a copy is recognised
    bool key_required;
    bool notices_only;
};

// Sources: the dossiers' sections on ingest, errors and retries, and ingest-rules. Bytes are ours where the vendor states none.
constexpr std::size_t mebibyte = 1024 * 1024;
constexpr std::array vendors{
    Vendor{"lago",
           "https://api.getlago.com",
           "/api/v1",
           "/events/batch",
           "Authorization",
           "Bearer ",
           "",
           "",
           "application/json",
           R"({"events":[)",
           "]}",
           100,
           4 * mebibyte,
           lago_fields,
           lago_rules,
           "events",
           IndexStyle::error_details,
           "",
           for_ever,
           true,
           false},
    Vendor{"flexprice",
           "https://us.api.flexprice.io",
           "/v1",
           "/events/bulk",
           "x-api-key",
           "",
           "",
           "",
           "application/json",
           R"({"events":[)",
           "]}",
           1000,
           32 * mebibyte,
           flexprice_fields,
           flexprice_rules,
           "message",
           IndexStyle::none,
           "",
           for_ever,
           true,
           false},
    Vendor{"polar",
           "https://api.polar.sh",
           "/v1",
           "/events/ingest",
           "Authorization",
           "Bearer ",
           "Polar-Version",
           "2026-04",
           "application/json",
           R"({"events":[)",
           "]}",
           500,
           10 * mebibyte,
           polar_fields,
           polar_rules,
           "inserted",
           IndexStyle::loc,
           "must be in the past",
           for_ever,
           true,
           false},
    Vendor{"autumn",
           "https://api.useautumn.com",
           "/v1",
           "/balances.batch_track",
           "Authorization",
           "Bearer ",
           "x-api-version",
           "2.1",
           "application/json",
           "[",
           "]",
           1000,
           4 * mebibyte,
           autumn_fields,
           autumn_rules,
           "success",
           IndexStyle::prefix,
           "cannot be in the future",
           std::chrono::hours(24),
           true,
           false},
    Vendor{"zyg",
           "",
           "",
           "/events",
           "Authorization",
           "Bearer ",
           "",
           "",
           "application/json",
           "",
           "",
           1,
           mebibyte,
           zyg_fields,
           zyg_rules,
           "eventId",
           IndexStyle::none,
           "",
           std::chrono::hours(0),
           false,
           true},
    Vendor{"zyg workspace",
           "",
           "",
           "/customers/events/",
           "Authorization",
           "Bearer ",
           "",
           "",
           "application/json",
           "",
           "",
           1,
           mebibyte,
           zyg_workspace_fields,
           zyg_workspace_rules,
           "eventId",
           IndexStyle::none,
           "",
           std::chrono::hours(0),
           false,
           true},
    Vendor{"openmeter",
           "https://openmeter.cloud",
           "/api/v1",
           "/events",
           "Authorization",
           "Bearer ",
           "",
           "",
           "application/cloudevents-batch+json",
           "[",
           "]",
           100,
           4 * mebibyte,
           openmeter_fields,
           openmeter_rules,
           "",
           IndexStyle::none,
           "",
           std::chrono::hours(32 * 24),
           false,
           false},
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

/// Whole numbers beyond 2^53 as text, at any depth.
json without_large_integers(const json& value) {
    constexpr std::int64_t largest = std::int64_t{1} << 53;
    if (value.is_number_unsigned() && value.get<std::uint64_t>() > static_cast<std::uint64_t>(largest)) return value.dump();
    if (value.is_number_integer() && !value.is_number_unsigned() && value.get<std::int64_t>() < -largest) return value.dump();
    if (!value.is_structured()) return value;
    json copy = value;
    for (json& part : copy) part = without_large_integers(part);
    return copy;
}

std::string timestamp_text(Timestamp t, Form form) {
    if (form == Form::unix_seconds) return t.unix_seconds().to_string();
    if (form == Form::iso) return t.to_string();
    return std::to_string(t.micros() / 1000);
}

/// The text of a field, before it is quoted; empty when the event has nothing there.
std::string plain_value(const WireField& field, const Event& event) {
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
            return timestamp_text(event.timestamp.value_or(Timestamp()), field.form);
        case From::value:
            return event.value ? event.value->to_string() : "";
        case From::cents:
            return event.precise_total_amount_cents ? event.precise_total_amount_cents->to_string() : "";
        case From::notice_body:
            return event.notice ? event.notice->body : "";
        case From::severity:
            return event.notice ? std::string(severity_name(event.notice->severity)) : "";
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

/// The JSON text of a field; empty when nothing is to be sent.
std::string field_json(const WireField& field, const Event& event, const json& extension) {
    std::string out;
    if (!field.rival.empty() && extension.contains(std::string(field.rival))) return out;
    if (field.from == From::properties) {
        out += json_text(field.form == Form::object_go ? without_large_integers(event.properties) : event.properties);
        return out;
    }
    if (field.from == From::extension) {
        const auto found = extension.find(std::string(last_name(field.key)));
        if (found != extension.end()) {
            out += json_text(*found);
            return out;
        }
    }
    std::string value = plain_value(field, event);
    if (value.empty()) value = field.fallback;
    if (value.empty() && !field.always) return out;
    if (field.form == Form::text_component) {
        out += R"([{"componentText":{"text":)";
        append_json_text(out, value);
        out += "}}]";
        return out;
    }
    if (field.form == Form::unix_ms || field.form == Form::number || field.form == Form::boolean) return value;
    append_json_text(out, value);
    return out;
}

bool field_named(const Vendor& vendor, std::string_view key) {
    return std::any_of(vendor.fields.begin(), vendor.fields.end(),
                       [&](const WireField& f) { return first_name(f.key) == key || (f.from == From::extension && last_name(f.key) == key); });
}

/// One event as the vendor's JSON. What the extension has beyond the vendor's fields goes in as it is; it never replaces one.
std::string event_json(const Vendor& vendor, const Event& event) {
    const json& extension = extension_of(vendor, event);
    std::string out = "{", open_object;
    const auto comma = [&] {
        if (out.back() != '{') out += ',';
    };
    for (const WireField& field : vendor.fields) {
        const std::string value = field_json(field, event, extension);
        if (value.empty()) continue;
        const std::string_view object = field.key.find('.') == std::string_view::npos ? std::string_view() : first_name(field.key);
        if (object != open_object) {
            if (!open_object.empty()) out += '}';
            if (!object.empty()) {
                comma();
                append_json_text(out, object);
                out += ":{";
            }
            open_object = object;
        }
        comma();
        append_json_text(out, last_name(field.key));
        out += ':';
        out += value;
    }
    if (!open_object.empty()) out += '}';
    for (const auto& [key, value] : extension.items()) {
        if (field_named(vendor, key)) continue;
        comma();
        append_json_text(out, key);
        out += ':';
        out += json_text(value);
    }
    return out += '}';
}

/// Why the vendor's format cannot carry the event; empty when it can. Only what no answer would tell us (flexprice dossier 3.4, autumn
/// dossier 4.5, zyg dossier 5.4): everything else is the vendor's to judge.
std::string unsendable_reason(const Vendor& vendor, const Event& event) {
    const json& extension = extension_of(vendor, event);
    for (const WireField& field : vendor.fields) {
        if (!field.required) continue;
        if (plain_value(field, event).find_first_not_of(" \t\r\n") != std::string::npos) continue;
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

/// The vendor's address; the version prefix may stand in base_url already, as the vendors' own clients want it.
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
    bool duplicate = false;  ///< was there already
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
    std::optional<Timestamp> date = {};  ///< the vendor's clock
};

/// Vendors' texts are kept short.
std::string shortened(std::string text, std::size_t limit = 1000) {
    if (text.size() <= limit) return text;
    while (limit > 0 && (static_cast<unsigned char>(text[limit]) & 0xC0) == 0x80) --limit;
    text.resize(limit);
    return text + "...";
}

/// JSON from outside, without what lies deeper than anyone needs; discarded when it is not JSON.
json parse_answer(const std::string& body) {
    constexpr int depth_limit = 24;
    return json::parse(
        body, [](int depth, json::parse_event_t, json&) { return depth <= depth_limit; }, false);
}

/// A body that is not JSON, fit to be shown.
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

/// The words of an error body: message, error.message, error, detail, error_details, in the shapes the dossiers list.
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

/// "Sun, 06 Nov 1994 08:49:37 GMT" (RFC 9110, 5.6.7); the obsolete forms are not taken.
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

/// What the vendor asks us to wait: Retry-After (seconds, or a date seen from the answer's own Date), else a rate limit's reset
/// (lago dossier 1.9, autumn dossier 1.5). At most a day: the number comes from outside.
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

/// Whether a body shows what this vendor's success shows (responses.json; zyg dossier 5.4): a portal's page does not.
bool proves(const Vendor& vendor, const json& body, std::size_t sent) {
    if (vendor.proof.empty()) return true;
    if (!body.is_object()) return false;
    const auto found = body.find(std::string(vendor.proof));
    if (found == body.end()) return false;
    if (found->is_array()) return found->size() == sent;
    if (found->is_string()) return !found->get_ref<const std::string&>().empty();
    if (found->is_number_unsigned()) return found->get<std::uint64_t>() <= sent;
    return found->is_boolean() && found->get<bool>();
}

std::int64_t counted_duplicates(const Vendor& vendor, const json& body, std::size_t sent) {
    if (vendor.proof != "inserted") return 0;
    return static_cast<std::int64_t>(sent - std::min<std::size_t>(body["inserted"].get<std::size_t>(), sent));
}

/// What the reader of one index style finds; nothing when the answer does not say which events are refused.
struct Blames {
    std::vector<Blame> events = {};
    bool too_large = false;
};

/// Lago: error_details by index. An index outside the batch, or other keys, means the batch as a whole (lago dossier 1.10). When an id stands
/// twice in one batch the second is blamed and neither is stored: no index helps then, the two must part.
std::optional<Blames> blame_by_key(const json& body, std::span<const std::string> ids) {
    const auto details = body.find("error_details");
    if (details == body.end() || !details->is_object()) return std::nullopt;
    Blames blames;
    for (const auto& [key, value] : details->items()) {
        const auto index = whole_number(key);
        if (!index && value.is_array() && value.size() == 1 && value[0] == "too_many_events") return Blames{{}, true};
        if (!index || static_cast<std::size_t>(*index) >= ids.size()) return std::nullopt;
        const auto at = static_cast<std::size_t>(*index);
        const bool exists = value == json{{"transaction_id", {"value_already_exist"}}};
        if (exists && std::find(ids.begin(), ids.begin() + *index, ids[at]) != ids.begin() + *index) return std::nullopt;
        blames.events.push_back({at, exists, false, shortened(words(value))});
    }
    return blames;
}

/// Polar: detail[].loc = body, events, index, shape, field. A bad event is reported for both shapes of event, so it is early when one shape
/// has nothing else to say (polar dossier 2.6).
std::optional<Blames> blame_by_loc(const json& body, std::span<const std::string> ids, std::string_view early) {
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

/// Autumn: the message begins with the index, or holds several such parts (autumn dossier 1.4, 4.5).
std::optional<Blames> blame_by_prefix(const json& body, std::span<const std::string> ids, std::string_view early) {
    std::string message = text_member(body, "message");
    constexpr std::string_view several = "[Validation Errors] ";
    if (message.starts_with(several)) message.erase(0, several.size());
    std::map<std::size_t, Blame> found;
    for (std::size_t from = 0; from < message.size();) {
        const std::size_t to = std::min(message.find("; ", from), message.size());
        const std::string_view part = std::string_view(message).substr(from, to - from);
        const auto index = whole_number(part.substr(0, std::min(part.find_first_of(".: "), part.size())));
        if (!index || static_cast<std::size_t>(*index) >= ids.size()) return std::nullopt;
        Blame& blame = found.try_emplace(static_cast<std::size_t>(*index), Blame{static_cast<std::size_t>(*index), false, true, ""}).first->second;
        blame.early = blame.early && part.find(early) != std::string_view::npos;
        blame.text = shortened(blame.text + (blame.text.empty() ? "" : "; ") + std::string(part));
        from = to + 2;
    }
    Blames blames;
    for (auto& [index, blame] : found) blames.events.push_back(std::move(blame));
    return blames;
}

std::optional<Blames> find_blames(const Vendor& vendor, const json& body, std::span<const std::string> ids) {
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

/// What an answer means for the events of one request, whose ids are given in the order they were sent.
Answer read_answer(const Vendor& vendor, const HttpResponse& response, std::span<const std::string> ids) {
    Answer answer;
    if (response.status == 0) {
        answer.unknown = response.sent;
        answer.text = response.error.empty() ? "no answer" : response.error;
        return answer;
    }
    const json body = parse_answer(response.body);
    if (const auto date = response.header("Date")) answer.date = http_date(*date);
    answer.wait = asked_wait(response, answer.date);
    answer.text = error_text(body, response.body);
    answer.early = !vendor.early.empty() && answer.text.find(vendor.early) != std::string::npos;
    const std::string code = text_member(body, "code");
    const StatusRule* rule = find_rule(vendor.rules, response.status, code, response.body);
    if (rule && rule->meaning == Meaning::delivered && !proves(vendor, body, ids.size())) rule = nullptr;
    if (!rule) rule = find_rule(common_rules, response.status, code, response.body);
    answer.meaning = rule->meaning;
    answer.unknown = rule->unknown;
    if (rule->meaning == Meaning::delivered) answer.duplicates = counted_duplicates(vendor, body, ids.size());
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

}  // namespace

std::optional<std::string_view> HttpResponse::header(std::string_view name) const noexcept {
    const auto lower = [](char c) { return c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c; };
    for (const auto& [key, value] : headers)
        if (std::equal(key.begin(), key.end(), name.begin(), name.end(), [&](char a, char b) { return lower(a) == lower(b); })) return value;
    return std::nullopt;
}

Upstream::Upstream(std::string vendor, UpstreamOptions options) : vendor_(std::move(vendor)), options_(std::move(options)) {
    const Vendor& rules = vendor_of(*this);
    if (options_.name.empty()) options_.name = vendor_;
    if (options_.name.size() > limits::id_bytes) throw Error(ErrorCode::too_large, "name", "over limits::id_bytes");
    if (options_.base_url.empty() && rules.base_url.empty())
        throw Error(ErrorCode::bad_value, "base_url", vendor_ + " has no public address; give one");
    check_url(root_url(rules, options_), options_.allow_http);
    if (rules.key_required && options_.api_key.empty()) throw Error(ErrorCode::bad_value, "api_key", "is required");
    check_header_text(options_.api_key, "api_key");
    if (options_.request_timeout <= std::chrono::milliseconds(0)) throw Error(ErrorCode::bad_value, "request_timeout", "must be positive");
    if (options_.batch_events < 0 || options_.batch_events > 10000) throw Error(ErrorCode::bad_value, "batch_events", "must be 0 to 10000");
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

// =============================================================================================
// 11 transport: one HTTP exchange through libcurl, when built with METER_CURL. Uses nothing.
// =============================================================================================

#ifdef METER_CURL
namespace {

/// An easy handle and the multi handle that keeps its connections. Used by one exchange at a time.
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

}  // namespace meter
