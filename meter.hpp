// meter: record usage events on the device, read and price them there, deliver them upstream.
// One header and one source file; SQLite through SQLiteCpp, JSON through nlohmann/json.
// SPDX-License-Identifier: MIT
//
//   1 errors      what the functions below throw          5 questions   lists, names, aggregates
//   2 numbers     Decimal: exact, 38 digits               6 prices      Book, Fee, Usage
//   3 time        Timestamp, Period, Bin                  7 delivery    Upstream, Transport, FlushReport
//   4 events      Event, Receipt, Filter, Metric          8 Meter       the one class that does it all
#ifndef METER_HPP
#define METER_HPP

#include <chrono>
#include <compare>
#include <concepts>
#include <cstdint>
#include <functional>
#include <initializer_list>
#include <memory>
#include <optional>
#include <span>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <nlohmann/json.hpp>

#define METER_VERSION "0.1.0"

namespace meter {

using json = nlohmann::json;

// ---------------------------------------------------------------------------------------------
// 1 errors
// ---------------------------------------------------------------------------------------------

enum class ErrorCode {
    bad_value,       ///< a value of the caller's is wrong; field and reason say which and why
    too_large,       ///< over one of the limits below
    overflow,        ///< an exact result needs more digits than Decimal has
    bad_cursor,      ///< a cursor that this library did not make, or for another question
    not_found,       ///< the named metric, book, upstream or event does not exist
    busy,            ///< another process holds the database longer than busy_timeout
    full,            ///< the disk, or MeterOptions::max_bytes, has no room; nothing was stored
    read_only,       ///< the database cannot be written
    io,              ///< the system refused to read or write
    corrupt,         ///< the database is damaged; it was left as it is. verify() says where, and makes again what is derived from the log
    not_a_database,  ///< the file is something else; it was left as it is
    newer_schema,    ///< the file was written by a newer release; it was left as it is
    unsupported,     ///< not available in this build
};

/// What every function here throws for a mistake of the caller's or a condition the caller must act on.
/// Trouble on the network is not an error but part of FlushReport.
class Error : public std::runtime_error {
public:
    Error(ErrorCode code, std::string field, std::string reason);
    ErrorCode code() const noexcept { return code_; }
    /// The parameter, property path or file the error is about; may be empty.
    const std::string& field() const noexcept { return field_; }
    const std::string& reason() const noexcept { return reason_; }

private:
    ErrorCode code_;
    std::string field_, reason_;
};

// ---------------------------------------------------------------------------------------------
// 2 numbers
// ---------------------------------------------------------------------------------------------

enum class Rounding {
    half_up,    ///< to nearest, ties away from zero
    half_even,  ///< to nearest, ties to the even neighbour
    up,         ///< away from zero
    down,       ///< towards zero
    ceil,       ///< towards positive infinity
    floor,      ///< towards negative infinity
};

/// An exact decimal number of up to 38 significant digits. Money and quantities are never double.
/// Always in lowest terms (no trailing zeros after the point, one zero), so equal numbers are equal member by member.
/// Values: coefficient x 10^-scale, |coefficient| < 10^38, 0 <= scale <= 76.
/// A result that does not fit is an Error(overflow), never a rounded number.
class Decimal {
public:
    static constexpr int max_digits = 38;
    static constexpr int max_scale = 76;

    constexpr Decimal() noexcept = default;
    template <std::integral T>
    Decimal(T value) noexcept : Decimal(from_integer(static_cast<std::uint64_t>(value), value < T{})) {}
    Decimal(bool) = delete;
    Decimal(double) = delete;  ///< use from_double, which says what it does
    Decimal(float) = delete;

    /// Plain ("-12.50", also "+1", ".5" and "5.") or exponent ("1.25e3") form, nothing around it. Throws bad_value, or overflow when
    /// it does not fit. The errors of this class name no field but scale and digits: the caller knows what the number was for.
    explicit Decimal(std::string_view text);
    explicit Decimal(const char* text) : Decimal(std::string_view(text)) {}
    /// As the constructor, but nothing instead of a throw.
    static std::optional<Decimal> parse(std::string_view text) noexcept;
    /// coefficient x 10^-scale. Throws bad_value for a scale not from 0 to max_scale.
    static Decimal scaled(std::int64_t coefficient, int scale);
    /// The shortest decimal that reads back as the same double: 0.1 is 0.1. Throws bad_value for NaN and infinities, overflow for
    /// what does not fit.
    static Decimal from_double(double value);
    /// A JSON number (a float enters by its shortest text) or a string holding one. Throws bad_value or overflow.
    static Decimal from_json(const json& value);

    std::string to_string() const;                          ///< plain form: "-12.5", "0"
    std::string to_fixed(int scale) const;                  ///< with exactly `scale` (0 to 76) decimals, rounded half up: "12.50"
    double to_double() const noexcept;                      ///< the nearest
    std::optional<std::int64_t> to_int64() const noexcept;  ///< nothing when not an integer of that size

    constexpr bool is_zero() const noexcept { return high_ == 0 && low_ == 0; }
    constexpr bool is_negative() const noexcept { return negative_; }
    constexpr int scale() const noexcept { return scale_; }
    int digits() const noexcept;  ///< significant digits; 1 for zero
    Decimal abs() const noexcept;

    Decimal operator-() const noexcept;
    friend Decimal operator+(const Decimal& a, const Decimal& b);
    friend Decimal operator-(const Decimal& a, const Decimal& b) { return a + -b; }
    friend Decimal operator*(const Decimal& a, const Decimal& b);
    Decimal& operator+=(const Decimal& other);
    Decimal& operator-=(const Decimal& other) { return *this = *this - other; }
    Decimal& operator*=(const Decimal& other) { return *this = *this * other; }
    /// a / b rounded to `scale` (0 to 76) decimals. Throws bad_value when b is zero.
    static Decimal divide(const Decimal& a, const Decimal& b, int scale, Rounding mode);
    /// a / b rounded to `digits` significant digits (1 to 38). Throws bad_value when b is zero.
    static Decimal divide_significant(const Decimal& a, const Decimal& b, int digits, Rounding mode);
    /// To `scale` decimals; a negative scale rounds to tens, hundreds, ...
    Decimal round(int scale, Rounding mode) const;

    friend bool operator==(const Decimal& a, const Decimal& b) noexcept = default;
    friend std::strong_ordering operator<=>(const Decimal& a, const Decimal& b) noexcept;

private:
    friend struct DecimalParts;
    static Decimal from_integer(std::uint64_t value, bool negative) noexcept;
    std::uint64_t high_ = 0, low_ = 0;
    std::int16_t scale_ = 0;
    bool negative_ = false;
};

// ---------------------------------------------------------------------------------------------
// 3 time
// ---------------------------------------------------------------------------------------------

/// A point in time: whole microseconds UTC, from year 1 to the end of year 9999 (proleptic Gregorian, no leap seconds).
class Timestamp {
public:
    constexpr Timestamp() noexcept = default;  ///< 1970-01-01T00:00:00Z
    constexpr explicit Timestamp(std::int64_t micros) noexcept : micros_(micros) {}
    static Timestamp now() noexcept;
    static constexpr Timestamp min() noexcept { return Timestamp(-62135596800000000); }
    static constexpr Timestamp max() noexcept { return Timestamp(253402300799999999); }

    /// ISO 8601 / RFC 3339: "2026-01-05T11:30:00.123456+01:00". Date and time are separated by T or one space, seconds may be
    /// missing, the fraction may have any number of digits (cut to microseconds), the offset is required: Z, +hh:mm, +hhmm or +hh.
    /// A bare date is midnight UTC. Throws bad_value.
    static Timestamp parse(std::string_view text);
    /// Seconds since 1970; what is finer than microseconds is cut, towards the past. Throws bad_value outside min()..max().
    static Timestamp from_unix(const Decimal& seconds);
    static Timestamp from_unix_ms(const Decimal& milliseconds);  ///< the same of milliseconds
    /// Throws bad_value for what is not in the calendar.
    static Timestamp from_civil(int year, unsigned month, unsigned day, unsigned hour = 0, unsigned minute = 0, unsigned second = 0);

    constexpr std::int64_t micros() const noexcept { return micros_; }
    Decimal unix_seconds() const;
    /// "2026-01-05T11:30:00Z", with 3 or 6 decimals when there is a fraction. Before min() as min(); after max() "10000-01-01T00:00:00Z", where
    /// open periods end.
    std::string to_string() const;
    /// With exactly `decimals` (0 to 6, else bad_value) decimals, cut.
    std::string to_string(int decimals) const;

    friend constexpr auto operator<=>(Timestamp, Timestamp) noexcept = default;
    friend constexpr Timestamp operator+(Timestamp t, std::chrono::microseconds d) noexcept { return Timestamp(t.micros_ + d.count()); }
    friend constexpr Timestamp operator-(Timestamp t, std::chrono::microseconds d) noexcept { return Timestamp(t.micros_ - d.count()); }
    friend constexpr std::chrono::microseconds operator-(Timestamp a, Timestamp b) noexcept {
        return std::chrono::microseconds(a.micros_ - b.micros_);
    }

private:
    std::int64_t micros_ = 0;
};

/// Half-open: from <= t < to. All of time by default.
struct Period {
    Timestamp from = Timestamp::min();
    Timestamp to = Timestamp::max() + std::chrono::microseconds(1);
    constexpr bool contains(Timestamp t) const noexcept { return from <= t && t < to; }
    friend constexpr bool operator==(const Period&, const Period&) noexcept = default;
};

/// The days up to `now`, 24 hours each, as far as they are in the calendar. Throws bad_value for a negative number.
Period last_days(int days, Timestamp now = Timestamp::now());
Period this_month(Timestamp now = Timestamp::now());  ///< the calendar month around `now`, UTC

/// When a subscription is billed.
struct BillingCycle {
    Period current = {};
    Timestamp subscribed_at = Timestamp::min();
};

/// The ranges that vendors know by name: "24h", "7d", "30d" and "90d" end now. So do "1bc" and "3bc", as long as one or three times the current
/// billing cycle. "last_cycle" is the stretch of that length before the current cycle, or the current cycle when the subscription began in it
/// (Autumn, analyticsUtils.ts:302). Throws bad_value for another name, and for the last three without a cycle.
Period named_period(std::string_view name, Timestamp now = Timestamp::now(), const std::optional<BillingCycle>& cycle = {});

/// Up to hour, bins have their length in elapsed time, aligned to the clock of the zone: the hour that autumn repeats is two bins. From 3 hours on
/// they are calendar stretches, as long as the zone's clock makes them: a day of 23 or 25 hours is one bin.
enum class Bin { none, minute, minutes_15, minutes_30, hour, hours_3, hours_6, hours_12, day, week, month, quarter, year };

// ---------------------------------------------------------------------------------------------
// 4 events
// ---------------------------------------------------------------------------------------------

/// Limits on what record() accepts; over one of them the event is refused with its field.
namespace limits {
inline constexpr std::size_t id_bytes = 256;
inline constexpr std::size_t text_bytes = 1024;         ///< name, customer, subscription, source
inline constexpr std::size_t properties_bytes = 65536;  ///< as JSON text
inline constexpr std::size_t json_depth = 32;
inline constexpr std::size_t expression_bytes = 4096;   ///< Metric::expression; nested at most 100 deep
inline constexpr std::size_t extra_bytes = 65536;       ///< notice and extensions together, as JSON text
inline constexpr std::size_t batch_events = 100000;     ///< in one call of record()
inline constexpr std::size_t page_events = 1000;        ///< ListQuery::limit
inline constexpr std::size_t sort_keys = 8;             ///< ListQuery::sort, NamesQuery::sort
inline constexpr std::size_t advance_fees = 10000;      ///< in one answer of advance_fees()
inline constexpr std::size_t aggregate_rows = 1000000;  ///< bins x groups of one answer
inline constexpr std::size_t carried_bins = 1000;       ///< of a recurring metric, each of which is a question of its own
}  // namespace limits

enum class Severity { info, warning, critical };

/// What Zyg shows to a person beside the event.
struct Notice {
    std::string body = {};
    Severity severity = Severity::info;
    bool notify = false;
    friend bool operator==(const Notice&, const Notice&) = default;
};

struct Event {
    std::string id = {};                      ///< idempotency key; a time-ordered UUID (version 7) is made when empty
    std::string name = {};                    ///< required: Lago's code, Polar's name, Autumn's feature_id, ...
    std::string customer = {};                ///< the customer's id in the app's own books
    std::string subscription = {};            ///< Lago's external_subscription_id, Autumn's entity_id
    std::optional<Timestamp> timestamp = {};  ///< when it happened; the clock's time when absent
    std::optional<Decimal> value = {};
    std::optional<Decimal> precise_total_amount_cents = {};  ///< Lago's dynamic charges
    std::string source = {};
    json properties = json::object();  ///< any JSON object
    std::optional<Notice> notice = {};
    json extensions = json::object();           ///< vendor -> object sent to that vendor alone: {"polar": {"parent_id": "..."}}
    std::int64_t sequence = 0;                  ///< place in the log, from 1; set on what is read back, ignored by record()
    std::optional<Timestamp> recorded_at = {};  ///< likewise
};

enum class ReceiptStatus {
    stored,      ///< new, and on disk
    duplicate,   ///< the same id with the same content is in the log already; nothing was stored
    conflict,    ///< the same id with other content is in the log already; nothing was stored
    refused,     ///< field and reason say why; nothing was stored
    over_limit,  ///< a Limit did not let it in: field and reason say which; nothing was stored
};

enum class LimitScope {
    customer,      ///< what the event's customer has used, whatever the subscription
    subscription,  ///< what its subscription has used; what Lago's plans without a list of subscriptions price
    all,           ///< what all have used together; for units only
};

/// How much may be used in a period, of a metric in its units, or under a book in money. An event is over it when with the event there would be
/// more than the limit, and more than without the event.
struct Limit {
    std::string metric = {};            ///< its code. Required for units; of cents, only the fees of this metric count. All fees when empty
    std::optional<Decimal> units = {};  ///< at most so many units
    std::optional<Decimal> cents = {};  ///< or fees of at most this as usage() has them, in the currency's smallest unit; one of both is required
    LimitScope scope = LimitScope::customer;
    std::string book = {};              ///< code of the book whose fees or period it is; the one usage() would ask when empty
    std::optional<Period> period = {};  ///< the book's billing period around the event when absent; where no book is loaded, its calendar month, UTC
    bool soft = false;                  ///< what is over the limit is stored all the same; the receipt says so
};

/// How an event stood to a limit when it was recorded, or was not.
struct LimitCheck {
    Decimal before = {}, after = {};  ///< used in the period without the event and with it
    Decimal limit = {};
    Period period = {};
    bool over = false;
};

struct Receipt {
    ReceiptStatus status = ReceiptStatus::refused;
    std::int64_t sequence = 0;  ///< of the stored event, or of the one already there; 0 when refused
    std::string id = {};
    std::string field = {}, reason = {};  ///< of a refusal, conflict or over_limit
    std::vector<LimitCheck> limits = {};  ///< one for each limit given, in order; none for a duplicate, conflict or refusal
};

enum class Operator { eq, ne, gt, gte, lt, lte, in, not_in, contains, not_contains, like, not_like, exists };

/// A condition on events: a tree of all (and), any (or) and clauses on one field each.
/// Fields: id, name, source, customer, subscription, timestamp, recorded_at, value, or the path of a property ("model", "request.region");
/// "properties.name" is the property even where a field has that name; a key with a dot in it is taken for a path.
/// Numbers compare as decimals, texts as texts (a number and a text holding a number are equal), timestamps as instants; a missing
/// property, like null, satisfies only ne, not_in, not_contains, not_like and exists false. So does an object with members, but that it satisfies
/// exists true and not false: name its members' paths instead. These three, and nothing else, are equal to null and to a null in a list. contains
/// and like look into what a value is written as; in like's pattern % stands for any text and _ for any character.
struct Filter {
    enum class Kind { all, any, clause };
    Kind kind = Kind::all;
    std::vector<Filter> parts = {};  ///< of all and any; no parts: all holds, any does not
    std::string field = {};
    Operator op = Operator::eq;
    json value = nullptr;

    static Filter all(std::vector<Filter> parts) { return {Kind::all, std::move(parts), {}, Operator::eq, nullptr}; }
    static Filter any(std::vector<Filter> parts) { return {Kind::any, std::move(parts), {}, Operator::eq, nullptr}; }
    static Filter where(std::string field, Operator op, json value) { return {Kind::clause, {}, std::move(field), op, std::move(value)}; }
    static Filter equals(std::string field, json value) { return where(std::move(field), Operator::eq, std::move(value)); }
    bool empty() const noexcept { return kind == Kind::all && parts.empty(); }

    /// {"all": [...]}, {"any": [...]} or {"field": "...", "operator": "eq", "value": ...}; from_json throws bad_value naming the path.
    json to_json() const;
    static Filter from_json(const json& tree);
};

enum class Aggregation {
    count,
    sum,
    average,
    min,
    max,
    unique_count,  ///< how many values there are
    active_count,  ///< how many values were added and not removed since, by the property "operation_type": "add", also when absent, or another
                   ///< word. Lago's unique count (unique_count_query.rb:12)
    latest,        ///< the number of the last event by timestamp, then sequence
    weighted_sum,  ///< numbers by the share of the time for which they stand: 10 from the middle of the period on are 5
};

/// How a result is rounded.
struct RoundTo {
    Rounding mode = Rounding::half_up;
    int scale = 0;  ///< decimals, from -38 to 38
    friend bool operator==(const RoundTo&, const RoundTo&) = default;
};

/// Which events are measured, and how.
struct Metric {
    std::string code = {};   ///< how questions and books name the metric
    std::string event = {};  ///< Event::name of the events measured; `code` when empty; all events when both are
    Aggregation aggregation = Aggregation::count;
    /// The property measured (a path), or "value"; not for count. Where a number is wanted, a missing, null, boolean or non-numeric property
    /// makes the event invisible, as in Lago (postgres_store.rb:508); text that is a number counts as that number. `rules` may say otherwise.
    std::string property = {};
    Filter filter = {};
    std::optional<Decimal> multiplier = {};  ///< the result times this
    std::optional<RoundTo> rounding = {};    ///< of the result, after all else
    /// What came before the period counts too: a value stands until it is changed. With bins each shows what stands at its end; at most
    /// limits::carried_bins. By FlexPrice's rules what came before is measured by itself and added, but not to bins (reset_usage NEVER).
    bool recurring = false;
    /// Measured in each bin of this size (and for each value of bucket_group, when given); the result is the sum of these. A bucket belongs to
    /// the bin in which it begins. Weeks begin as `rules` say: on Monday, FlexPrice's on Sunday. Not for recurring metrics, but by FlexPrice's
    /// rules.
    Bin bucket = Bin::none;
    std::string bucket_group = {};
    /// Whose rules say what a value counts as where types differ, what an average or weighted sum is rounded to, and how filters compare:
    /// meter's own as written here when empty, else "lago", "flexprice" (metered usage, as billed), "flexprice_events" (its usage queries),
    /// "polar" (quantities), "polar_billing", "polar_events" (its lists), "autumn" or "openmeter". An OpenMeter meter is a metric: its value property
    /// "$.usage.tokens" is the property "usage.tokens", as are the paths of its groups; its subject is the customer. (OpenMeter keeps
    /// whole seconds and answers doubles; here times and numbers are exact.)
    std::string rules = {};
    bool every_event = false;  ///< events of any name are measured, also when there is a code; `event` is empty then
    /// Computed for each event, in the language of the vendor whose `rules` these are: "lago" (its SQL expressions: "event.properties.a * 2", also
    /// event.timestamp and event.code; + - * /, round, ceil, floor, least, greatest, concat; numbers to 37 digits) or "flexprice" (of CEL what its
    /// custom expressions take: "ceil(duration_ms / 1000)"; arithmetic, comparisons, && || !, a ? b : c, max, min, pow, abs, ceil, floor, round,
    /// sqrt, log, double; in binary, as there). Others have none. An event for which it comes to nothing takes no part: Lago refuses such an event,
    /// FlexPrice passes it over. So it is without a property that is named (with FlexPrice a missing one is 0), with a text where a number is
    /// wanted, after a division by zero, and where a result is too large.
    std::string expression = {};
    /// The property in which the result stands, over what the event holds there; filters and groups see it. `property` when empty. By Lago's rules
    /// it is a text, of a number with a point: "3.0". What is recorded and delivered stays as it is: the vendor computes it for itself.
    std::string computed = {};
};

// ---------------------------------------------------------------------------------------------
// 5 questions
// ---------------------------------------------------------------------------------------------

/// One key of an order. Values of different kinds stand in this order: missing or null, false, true, numbers, texts (by bytes), lists; an object
/// counts as missing. `descending` turns all of it round.
struct SortKey {
    std::string field = {};
    bool descending = false;
};

/// Where a list goes on. Opaque text that holds the whole question in the clear, good for any process on the same database. What is changed in it
/// by accident is noticed; it is no secret and no signature.
struct Cursor {
    std::string text = {};
    explicit operator bool() const noexcept { return !text.empty(); }
};

struct ListQuery {
    std::string customer = {}, subscription = {};
    std::vector<std::string> names = {}, sources = {}, ids = {};  ///< any of them; no condition when empty
    Period period = {};
    Filter filter = {};
    /// Only events whose properties, as JSON without spaces, contain each of these; ASCII letters of either case. Reads every event that all else
    /// lets through. The pair key: value of Autumn's filter_by is the text "key":"value" with its quotes.
    std::vector<std::string> texts = {};
    std::string rules = {};  ///< by which the filter compares, as in Metric::rules: with "polar_events" it is that of Polar's events.list
    /// Fields as in Filter, at most limits::sort_keys; by timestamp, newest first, when empty. What is still equal goes by sequence, in the direction
    /// of the last key: a total order. Any other first key than the timestamp reads that column of the whole period.
    std::vector<SortKey> sort = {};
    std::int64_t limit = 100;  ///< 1 to limits::page_events
    std::int64_t offset = 0;   ///< of the events after the cursor, if there is one
    bool count = false;        ///< also count all that match, before the cursor too
    Cursor after = {};         ///< go on after that page, with the question it answered; only limit, offset and count may differ
};

struct Page {
    std::vector<Event> events = {};
    std::optional<std::int64_t> total = {};  ///< when asked for
    Cursor next = {};                        ///< empty on the last page
};

struct NamesQuery {
    std::string customer = {};
    std::string text = {};  ///< only names (or sources) that contain it; ASCII letters of either case
    Period period = {};
    Filter filter = {};
    bool by_source = false;  ///< list_names(): a row for each source that a name comes from
    /// By name, source, occurrences, first_seen and last_seen; last seen first when empty. What is still equal goes by name and source.
    std::vector<SortKey> sort = {};
    std::int64_t limit = 100;  ///< 1 to limits::page_events
    std::int64_t offset = 0;
};

struct NameInfo {
    std::string name = {};    ///< empty in list_sources()
    std::string source = {};  ///< empty where names are not told apart by it, and for events without one
    std::int64_t occurrences = 0;
    Timestamp first_seen = {}, last_seen = {};  ///< of the events' timestamps
};

struct NameList {
    std::vector<NameInfo> rows = {};
    std::int64_t total = 0;  ///< rows on all pages together
};

struct AggregateQuery {
    std::string metric = {};  ///< code of a metric declared with define() or loaded with a book
    std::string customer = {}, subscription = {};
    Period period = {};
    Bin bin = Bin::none;
    std::string time_zone = {};  ///< of the bins: an IANA name ("Europe/Paris"), an offset ("+02:00") or UTC when empty
    std::chrono::weekday week_start = std::chrono::Monday;
    /// Months, quarters and years begin on its day of the month and at its time of day; a 31st is the last day of a shorter month. By FlexPrice's
    /// rules months alone do, at midnight, and a 31st is the third day of the month after February (dossier 5.5).
    std::optional<Timestamp> billing_anchor = {};
    bool fill = false;                       ///< also bins without events, with 0, for every group of the answer. They reach from end to end
                                             ///< of the period; where that is open, of the bins that have events
    std::vector<std::string> group_by = {};  ///< fields as in Filter
    /// Only so many groups keep their names, those of the greatest value over the period (equal ones by name); the events of all others are
    /// measured together, in rows marked `rest`. All keep theirs when 0.
    std::int64_t top = 0;
    Filter filter = {};
    /// Of a weighted sum: the billing period of which `period` is the part to look at, so that its share is of the whole. `period` when absent.
    std::optional<Period> billing_period = {};
};

struct AggregateRow {
    std::optional<Timestamp> bin = {};                   ///< its start; nothing without bins
    std::vector<std::optional<std::string>> group = {};  ///< as group_by; nothing where the event lacks the property
    Decimal value = {};
    std::int64_t events = 0;  ///< that took part
    bool rest = false;        ///< of the groups beyond AggregateQuery::top
};

/// Rows in order of bin, then group (absent first, then by bytes; the rest last).
struct Aggregate {
    std::vector<AggregateRow> rows = {};
};

/// Usage of several metrics at once, and what it costs where a book that is loaded prices them: the first that has the customer, or subscription,
/// in the version in force now. Prices are for all that is asked about; an open period is no billing period.
struct AnalyticsQuery {
    std::vector<std::string> metrics = {};  ///< their codes; all that are declared or loaded when empty
    std::string customer = {}, subscription = {};
    std::vector<std::string> sources = {};                ///< only events from one of them; no condition when empty
    std::optional<Period> period = {};                    ///< when absent: `range`
    std::string range = {};                               ///< one that named_period() knows; when empty too, what `rules` say
    std::optional<BillingCycle> billing_cycle = {};       ///< for the ranges that need one
    Bin bin = Bin::none;                                  ///< with one, also the points of each item
    std::string time_zone = {};                           ///< of the bins, as in AggregateQuery
    std::optional<std::chrono::weekday> week_start = {};  ///< when absent, what `rules` say
    std::optional<Timestamp> billing_anchor = {};         ///< of months, quarters and years, as in AggregateQuery
    bool fill = false;                                    ///< also points without events
    std::vector<std::string> group_by = {};               ///< fields as in Filter, say "source" or "properties.model"
    std::int64_t top = 0;                                 ///< of the groups of each metric, as in AggregateQuery
    Filter filter = {};
    /// Whose question this is. Meter's own when empty: all of time, weeks from Monday. "flexprice", its events/analytics: the last 7 days, weeks
    /// from Sunday, no items without usage. "autumn", its events/aggregate (aggregate.ts:90): counts and sums by the hour, in bins of UTC that are
    /// always filled, days when none are named; the range "1bc"; one field in group_by, whose 9 (or `top`) greatest groups keep their names,
    /// bin by bin; totals that begin with the range's first day or hour; no costs. Its custom_range has its end inside: a Period ends a
    /// microsecond later. What values count as is said by each metric's rules, what they cost by its book.
    std::string rules = {};
};

/// A bin of an item.
struct AnalyticsPoint {
    Timestamp start = {};
    Decimal usage = {};
    std::int64_t events = 0;
    Decimal cost = {}, discount = {};  ///< of this usage alone: with tiers, packages or flat parts the points do not add up to their item
};

/// What one group of events came to under one metric and, where a book prices it, one charge.
struct AnalyticsItem {
    std::string metric = {};
    std::string charge = {};                             ///< as Book::price() knows it; empty when no book prices the metric
    std::vector<std::optional<std::string>> group = {};  ///< as group_by; nothing where the event lacks the property
    bool rest = false;                                   ///< of the groups beyond AnalyticsQuery::top
    Decimal usage = {};
    std::int64_t events = 0;
    Decimal cost = {}, discount = {};  ///< currency units; the cost is before the discount
    std::string currency = {};
    std::vector<AnalyticsPoint> points = {};  ///< in order of time
    json vendor = nullptr;                    ///< what only the vendor's own answer has
};

/// A metric over all groups, also of events that are in none.
struct AnalyticsTotal {
    std::string metric = {};
    Decimal usage = {};
    std::int64_t events = 0;
};

struct Analytics {
    std::vector<AnalyticsItem> items = {};    ///< in order of metric, charge, group
    std::vector<AnalyticsTotal> totals = {};  ///< of each metric, in the same order
    std::string currency = {};                ///< of the first item that is priced
    Decimal cost = {}, discount = {};         ///< sums of the items in that currency
    Period period = {};                       ///< what was looked at
};

/// What a meter of Polar's shows over time: GET /v1/meters/{id}/quantities.
struct QuantitiesQuery {
    std::string meter = {};                   ///< id of a meter of a Polar book that is loaded
    std::vector<std::string> customers = {};  ///< any of them; all when empty. Where Polar knows one by two ids, give both
    /// The first row stands at `start`, each next one `interval` later on the zone's clock, until `end` has passed; from 2023 on. Polar wants no
    /// more than 7 days by hours, 366 by days, 371 by weeks, 1460 by months, 3650 by years.
    Timestamp start = {}, end = {};
    Bin interval = Bin::day;     ///< hour, day, week (from Monday), month or year
    std::string time_zone = {};  ///< as in AggregateQuery
    /// Property -> text or list of texts: events that have one of these texts, as the property is written: {"model": ["lite", "pro"]}.
    json metadata = json::object();
    /// When given, the meter is measured for each customer, and this function taken of what they come to: count, sum, max, min, average or
    /// unique_count. The total of sums and counts is still the sum of the rows.
    std::optional<Aggregation> over_customers = {};
};

/// A row shows the whole bin that its time falls into: of the first day also what came before `start`. 0 without events.
struct Quantity {
    Timestamp time = {};
    Decimal quantity = {};
};

/// The total is the rows' sum, maximum or minimum; of an average or unique count it is that of all events, also those before and after.
struct Quantities {
    std::vector<Quantity> rows = {};
    Decimal total = {};
};

/// A customer's units of one of Polar's meters since it was last reset (Polar's customer meters).
struct CustomerMeter {
    Decimal consumed = {}, credited = {};
    Decimal balance = {};   ///< credited - consumed; may be negative
    Decimal rollover = {};  ///< units that a reset would carry over now
};

/// About the values that a metric counts.
struct ActiveQuery {
    std::string metric = {};  ///< code of one with Aggregation::active_count or unique_count
    std::string customer = {}, subscription = {};
    Period period = {};  ///< of a recurring metric only its end matters
    Filter filter = {};
    std::int64_t limit = 100;  ///< 1 to limits::page_events
    std::int64_t offset = 0;
};

struct ActiveValue {
    std::optional<std::string> value = {};  ///< nothing: that of events without the property, where the metric's rules count it
    Timestamp since = {};                   ///< of the add that made it active
    friend bool operator==(const ActiveValue&, const ActiveValue&) = default;
};

/// In order of the value, by bytes.
struct ActiveValues {
    std::vector<ActiveValue> values = {};
    std::int64_t total = 0;  ///< of all pages
};

// ---------------------------------------------------------------------------------------------
// 6 prices
// ---------------------------------------------------------------------------------------------

struct Fee;

/// One vendor's catalogue held locally: metrics, charges, subscriptions. Made from the vendor's own JSON; an impossible
/// field is an Error(bad_value) whose field() is its path. Immutable and cheap to copy.
class Book {
public:
    /// A plan as Lago's API shows it: {"plan": {"code", "amount_currency", "interval", "charges": [...]}, "billable_metrics": [...]},
    /// optionally with "subscriptions": [{"external_id", "external_customer_id", "started_at", "terminated_at", "subscription_at",
    /// "billing_time", "timezone"}]; without that list any subscription is taken, on calendar periods, UTC. "premium": false leaves out
    /// what needs Lago's premium licence to be priced. Expressions of metrics are evaluated (Metric::expression); charges over metrics with a script
    /// (custom_agg) are refused as unsupported, as are weighted sums with bounds per transaction, on which Lago itself fails; such metrics may be listed.
    static Book lago(const json& catalogue);

    /// {"meters": [...], "prices": [...]} as FlexPrice's API shows them; meters of every kind, with expressions, buckets, groups, filters and
    /// reset_usage. A price may carry "entitlement" (begun anew by billing period, DAILY, MONTHLY or NEVER), "grants" [{"measure", "quota",
    /// "start_date", "end_date"}], "commitment" (also for each bucket: "windowed") and "commitment_time_buckets"; one in a unit of its own, as it is
    /// created, needs that unit among "price_units" [{"code", "conversion_rate"}]. With "subscriptions": [{"id",
    /// "external_customer_id", "start_date", "end_date", "subscription_status", "cancelled_at", "billing_period", "billing_period_count",
    /// "billing_anchor", "line_items", "commitment_amount", "overage_factor", "enable_true_up", "commitment_duration",
    /// "coupon_associations"}] only these customers have prices, in their billing periods, those of line items on their terms; without that list any
    /// customer has all, in calendar months, UTC. usage() is what an invoice comes to, each line rounded to the currency: usage, the FIXED prices
    /// that fall due in the period (in ADVANCE where a billing period begins in it, in ARREAR where one ends, ONETIME where the line item begins;
    /// of a line item that begins or ends between, its share of the time), and coupons, those of cadence "once" or "repeated" on so many of the
    /// first bills. Taxes, credits and the proration of a subscription's own first period are not known. estimate_fees() is for usage alone, not
    /// rounded and before coupons. FlexPrice counts some copies of an id twice; here an id is one event.
    static Book flexprice(const json& catalogue);
    /// {"product": {"id", "prices": [...], "benefits": [...]}, "meters": [...]} as Polar's API shows them, optionally with "subscriptions":
    /// [{"id", "customer": {"external_id"}, "current_period_start", "current_period_end", "recurring_interval",
    /// "recurring_interval_count", "started_at", "ended_at", "trial_end", "seats", "units"}]; without that list any customer is taken, on
    /// calendar months, UTC. Prices by usage (metered_unit), and by seats and units (seat_based, unit_based), which are those of the
    /// subscription. Of what was used in a trial nothing is billed. Units come off that "meter.credited" events in the log have credited in
    /// the period (see Meter::customer_meter), or when there are none, those that the product's meter_credit benefits grant. Events with the
    /// source "system" are Polar's own, all others the user's, and only these are billed. Events belong to the period of their timestamp;
    /// Polar bills by when it received them. A fee's `vendor` has the words of the invoice ("label") and the price in the meter's own unit.
    static Book polar(const json& catalogue);
    /// {"plan": {"id", "items": [...]}, "features": [...], "currency": "usd"} as Autumn's API (2.1 and later) shows them, credit systems
    /// included, or "plans": [...], main plans and add-ons whose balances a customer has together. An item's "quantity" is what was bought of
    /// a prepaid one. An event uses the feature of its name (or with that name among its "event_names"): as many units as its value, 1 without
    /// one; its subscription is Autumn's entity.
    /// A feature of the type "ai_credit_system" has "model_markups", "provider_markups" and "default_markup" (percent), and the prices of models
    /// ("custom/..." ones apart, which have theirs in model_markups) stand in "models", as models.dev's api.json writes them: see price_tokens().
    /// Balances and bills run in cycles of an item's "reset" and "price" intervals (a price without one is monthly), on calendar periods, UTC,
    /// for any customer. With "customers": [{"id", "subscriptions": [{"plan_id", "started_at", "current_period_start", "expires_at",
    /// "quantity", "feature_quantities"}], "billing_controls", "entities": [...]}] only these customers have these plans, from when they
    /// started, and their cycles are counted from there; entities (of that same form, their kind in "feature_id") may have plans for
    /// themselves. "billing_controls" ("usage_limits", "spend_limits", "overage_allowed") are those of an entity, its customer or the plans,
    /// the first that names the feature. Usage limits decide checks; what was used beyond one is taken off balances all the same, where Autumn drops
    /// it. Rollovers are not known. The code is "id", or the first plan's.
    /// usage() of a customer adds up the overage of all entities before it is priced; with a subscription it is of that entity's events alone.
    /// Without a period it is of each item's cycle under way, as far as it has come; balances are not reset within a period that is given.
    static Book autumn(const json& catalogue);
    /// By the vendor's name: "lago", "flexprice", "polar" or "autumn". Throws unsupported for another.
    static Book of(std::string_view vendor, const json& catalogue);

    const std::string& vendor() const noexcept;
    const std::string& code() const noexcept;  ///< the plan's, or product's
    const json& source() const noexcept;       ///< the JSON it was made from, unknown fields included
    std::vector<Metric> metrics() const;
    /// What that many units would cost under the charge or price of that name, with the lines that lead to it; nothing is looked up.
    /// Lago's percentage charges are told how many events the units come from, and take them as equal. Throws not_found.
    Fee price(std::string_view charge, const Decimal& units, std::int64_t events = 0) const;
    /// What a request to a model takes from an AI credit system of Autumn's, in credits, which are USD: the value of the event to record. The
    /// request is track_tokens' body: {"model_id": "provider/model", "input_tokens", "output_tokens", "cache_read_tokens", "cache_write_tokens",
    /// "audio_input_tokens", "audio_output_tokens", "reasoning_tokens", "feature_id"}, the last only where there are several such systems. Not
    /// rounded. Throws not_found without such a system, bad_value for a model without prices, unsupported for books of others.
    Fee price_tokens(const json& request) const;

    struct Impl;
    explicit Book(std::shared_ptr<const Impl> impl) : impl_(std::move(impl)) {}
    const Impl& impl() const noexcept { return *impl_; }

private:
    std::shared_ptr<const Impl> impl_;
};

/// A book as the database keeps it.
struct BookVersion {
    Book book;
    Timestamp effective_from = Timestamp::min();  ///< which stands for always
};

/// One step on the way to a fee. The amounts of a fee's lines add up to its amount exactly.
struct FeeLine {
    enum class Step {
        units,       ///< units x rate
        tier,        ///< the units of one tier x rate, and the tier's flat part
        package,     ///< begun packages of `per` units x rate
        percentage,  ///< units x rate, the rate being a share of 1
        fixed,       ///< a fixed part for each of `units` events or items, x rate
        free,        ///< units that cost nothing
        given,       ///< an amount that came with the events
        minimum,     ///< what lifts the amount to a minimum
        maximum,     ///< what takes the amount down to a maximum
        advance,     ///< what was paid for before
        discount,
        conversion,  ///< from a pricing unit to the currency
        rounding,
        overage,  ///< `units` of money beyond a commitment x rate, the factor less 1 where their plain price is another line
    };
    Step step = Step::units;
    std::optional<Decimal> from = {}, to = {};  ///< bounds of the tier as the vendor writes them, in units
    Decimal units = {}, rate = {}, flat = {};
    Decimal per = 1;           ///< units in one package
    Decimal amount = {};       ///< currency units
    std::string text() const;  ///< for people: "tier 11 to 20: 5 units x 0.10 + 3"
};

struct Fee {
    std::string charge = {}, metric = {};
    std::string customer = {}, subscription = {};
    std::vector<std::pair<std::string, std::optional<std::string>>> group = {};  ///< of a charge priced by group
    std::string filter = {};                                                     ///< the charge filter's name, of a charge priced by filter
    std::string event = {};                                                      ///< its id, of the fee of one event
    std::string currency = {};
    Decimal units = {};
    std::int64_t events = 0;
    Decimal amount = {};        ///< currency units, before rounding (Lago's precise_amount)
    Decimal amount_cents = {};  ///< rounded to the currency's smallest unit, counted in it
    Decimal unit_amount = {};   ///< currency units (Lago's precise_unit_amount)
    bool pay_in_advance = false;
    Period period = {};
    std::vector<FeeLine> lines = {};
    json vendor = nullptr;  ///< the fee as the vendor's own API would show it
    json to_json() const;   ///< numbers as texts, with every digit
};

struct Fees {
    std::vector<Fee> fees = {};
    std::string currency = {};
    int subunits = 100;         ///< smallest units in one of the currency
    Decimal amount_cents = {};  ///< sum of the fees'
    json to_json() const;
    std::string to_text() const;  ///< for people: each fee with its lines, and the sum
};

/// Whether units may be used, and what stands behind the answer. Everything is in the units of `feature`, before the units asked for are used.
struct Check {
    bool allowed = false;
    /// Why not, in a word: no_balance (the plan grants nothing of it), insufficient_balance, usage_limit; empty when allowed.
    std::string reason = {};
    std::string feature = {};  ///< whose balance answers: the event's own, or a credit system that pays for it
    Decimal required = {};     ///< the event's units, in credits when a credit system answers
    bool flag = false;         ///< a boolean feature: it is there, and nothing is counted
    bool unlimited = false;
    bool overage_allowed = false;                  ///< use goes on when the balance is 0
    Decimal granted = {};                          ///< since the last reset, bought units included
    Decimal usage = {};                            ///< since the last reset; what balances did not cover is left out
    Decimal balance = {};                          ///< units left, never below 0
    Decimal overage = {};                          ///< units used beyond what was granted
    std::optional<Decimal> overage_limit = {};     ///< overage at most (max_purchase, or a spend limit); nothing: no limit
    std::optional<Decimal> usage_limit_left = {};  ///< what usage limits leave; nothing: no such limit
    std::optional<Timestamp> next_reset = {};      ///< the first of its balances'; nothing: never
    json to_json() const;                          ///< numbers and times as texts
};

struct UsageQuery {
    std::string subscription = {}, customer = {};  ///< one of them at least
    std::optional<Period> period = {};             ///< the plan's billing period around now when absent
    bool closing = false;                          ///< as billed at the end: with what minimum spendings add
};

/// One metric as one book prices it: the sum of its fees.
struct PricedMetric {
    std::string metric = {};  ///< Fee::metric
    Decimal units = {}, cents = {};
};

/// Metrics are the same when they measure the same events and property in the same way, whatever the books call them.
struct MetricComparison {
    std::optional<PricedMetric> a = {}, b = {};  ///< nothing where that book does not price it
    Decimal difference() const { return (b ? b->cents : Decimal()) - (a ? a->cents : Decimal()); }
};

struct ComparedFees {
    std::optional<Decimal> cents = {};  ///< nothing when the book does not price this customer, or cannot
    std::string problem = {};           ///< why it cannot
};

struct CustomerComparison {
    std::string customer = {};
    std::string subscription = {};  ///< of events that name a subscription, but no customer
    ComparedFees a = {}, b = {};
    std::vector<MetricComparison> metrics = {};
    Decimal difference() const { return b.cents.value_or(0) - a.cents.value_or(0); }
};

/// The same log under two books, by customer, then by subscription. All amounts are in the currency's smallest unit.
struct Comparison {
    Period period = {};
    std::string currency = {};
    int subunits = 100;
    std::vector<CustomerComparison> customers = {};
    Decimal a = {}, b = {};     ///< sums over the customers
    std::int64_t problems = 0;  ///< customers that one of the books could not price; the sums are without those fees
    Decimal difference() const { return b - a; }
};

// ---------------------------------------------------------------------------------------------
// 7 delivery
// ---------------------------------------------------------------------------------------------

struct HttpRequest {
    std::string method = "POST";
    std::string url = {};
    std::vector<std::pair<std::string, std::string>> headers = {};
    std::string body = {};
    bool once = false;                     ///< a second copy would count twice: never send it again, not even over a fresh connection
    std::function<bool()> cancelled = {};  ///< a transport that can asks it at least every 100 ms, and gives up when it says true
};

struct HttpResponse {
    int status = 0;  ///< 0: no answer; `error` says why
    std::vector<std::pair<std::string, std::string>> headers = {};
    std::string body = {};
    std::string error = {};
    bool sent = true;  ///< false when it is certain that the request did not reach the server
    /// The first header of that name, any case; nothing when there is none.
    std::optional<std::string_view> header(std::string_view name) const noexcept;
};

/// One HTTP exchange. An app without libcurl brings its own. Must be usable from any thread, must return within `timeout`, must not follow
/// redirects, and reports failure in the answer rather than by throwing.
class Transport {
public:
    virtual ~Transport() = default;
    virtual HttpResponse exchange(const HttpRequest& request, std::chrono::milliseconds timeout) = 0;
};

struct CurlOptions {
    std::string ca_file = {};  ///< PEM bundle instead of the system's
    std::string proxy = {};
    std::chrono::milliseconds connect_timeout{10000};
    std::size_t max_response_bytes = 4 * 1024 * 1024;
};
/// The bundled transport: libcurl, connections kept alive, certificates verified, redirects not followed. Throws unsupported in a build
/// without METER_CURL.
std::shared_ptr<Transport> curl_transport(CurlOptions options = {});

struct UpstreamOptions {
    std::string name = {};  ///< tells several upstreams apart; the vendor's name when empty
    std::string api_key = {};
    std::string base_url = {};  ///< the vendor's public address when empty; https unless on loopback or `allow_http`
    bool allow_http = false;
    std::shared_ptr<Transport> transport = {};  ///< the bundled one when empty
    std::chrono::milliseconds request_timeout{30000};
    std::int64_t batch_events = 0;  ///< events in a request at most; the vendor's limit when 0
    Filter selection = {};          ///< only these events; the others are passed over
    /// May take from a copy of the event what should not leave the device: source, properties, notice and extensions. What identifies and
    /// counts the event, the properties that metrics need and the `pinned` ones are put back afterwards. An event it throws for is
    /// parked. It must not call the Meter.
    std::function<void(Event&)> before_send = {};
    std::vector<std::string> pinned = {};  ///< paths of properties, besides those a metric measures or filters by
    std::string workspace = {};            ///< Zyg: the workspace, for a server that speaks the workspace API
    /// One line about each request and each decision, never with the key. Called on the thread that sends.
    std::function<void(std::string_view)> log = {};
};

/// Where events go: a vendor's wire format and rules, an address, a key, a selection. Making one throws bad_value, naming the option.
class Upstream {
public:
    static Upstream lago(UpstreamOptions options);
    static Upstream flexprice(UpstreamOptions options);
    static Upstream polar(UpstreamOptions options);
    static Upstream autumn(UpstreamOptions options);
    /// Only events with a notice. base_url is required, the key is not. Zyg cannot tell a copy from a new event, so an event whose
    /// fate is unknown is parked and not sent again.
    static Upstream zyg(UpstreamOptions options);
    static Upstream openmeter(UpstreamOptions options);
    const std::string& vendor() const noexcept { return vendor_; }
    const UpstreamOptions& options() const noexcept { return options_; }

private:
    Upstream(std::string vendor, UpstreamOptions options);
    std::string vendor_;
    UpstreamOptions options_;
};

enum class UpstreamState {
    idle,     ///< nothing pending
    pending,  ///< more can be sent at once
    waiting,  ///< for next_attempt: after a failure that passes by itself, or until held events may go
    paused,   ///< a person must act (the key, the address): connect() again, or resume()
    busy,     ///< another thread or process is flushing this upstream
};

struct UpstreamStatus {
    std::string name = {}, vendor = {};
    UpstreamState state = UpstreamState::idle;
    std::string reason = {};                             ///< of waiting and paused
    std::optional<Timestamp> next_attempt = {};          ///< of waiting
    std::int64_t pending = 0, held = 0, parked = 0;      ///< held: of the pending, those the vendor's clock would refuse
    std::chrono::microseconds lag{0};                    ///< since the oldest pending event was recorded
    std::optional<std::chrono::microseconds> skew = {};  ///< how far the vendor's clock is ahead of this one, once known
};

/// recorded = delivered + pending + parked, at every instant.
struct Balance {
    std::int64_t recorded = 0;  ///< events in the log meant for the upstream, as far as its selection has looked
    std::int64_t delivered = 0, pending = 0, parked = 0;
    std::int64_t skipped = 0;  ///< passed over by the selection, or deleted before the upstream was first connected; not in recorded
    bool holds() const noexcept { return recorded == delivered + pending + parked; }
    friend bool operator==(const Balance&, const Balance&) noexcept = default;
};

struct MonitoringQuery {
    std::optional<Period> period = {};  ///< by the events' timestamps; the last 24 hours when absent
    Bin bin = Bin::hour;                ///< the windows; none: no windows
    std::string time_zone = {};         ///< of the windows, as AggregateQuery's
};

struct MonitoringWindow {
    Timestamp start = {};  ///< the first window may begin before the period; what happened before that is not in it
    std::int64_t events = 0;
};

struct UpstreamMonitoring {
    UpstreamStatus status = {};
    Balance balance = {};
};

/// How much happens, and how far delivery has come. The windows are of one snapshot of the log, the upstreams of a later one.
struct Monitoring {
    Period period = {};
    std::int64_t events = 0;                     ///< of the period
    std::vector<MonitoringWindow> windows = {};  ///< all of the period, those without events too
    std::vector<UpstreamMonitoring> upstreams = {};
};

struct FlushProgress {
    std::string upstream = {};
    std::int64_t delivered = 0, parked = 0, pending = 0;
};

struct FlushOptions {
    std::string upstream = {};                  ///< all when empty
    std::chrono::milliseconds deadline{30000};  ///< flush returns by then, also from a stalled exchange
    /// After each answer, from one thread at a time; not from the calling one when several upstreams are flushed.
    std::function<void(const FlushProgress&)> progress = {};
};

/// What one flush did to one upstream. sent + unsent = delivered + parked + returned; parked is the sum of parked_by.
struct UpstreamReport {
    UpstreamStatus status = {};   ///< when flush returned
    std::int64_t sent = 0;        ///< events put into requests, once for each time
    std::int64_t unsent = 0;      ///< parked without being sent
    std::int64_t delivered = 0;   ///< accepted, duplicates included
    std::int64_t duplicates = 0;  ///< of these, already there
    std::int64_t parked = 0;
    std::int64_t returned = 0;  ///< came back without a final answer, to be sent again
    std::int64_t skipped = 0;   ///< passed over by the selection
    std::int64_t held = 0;      ///< set back because of the vendor's clock
    std::int64_t pending = 0;   ///< still to go when flush returned
    std::int64_t requests = 0;
    std::int64_t bytes = 0;                                            ///< of request bodies
    std::vector<std::pair<std::string, std::int64_t>> parked_by = {};  ///< reason and number
    std::chrono::milliseconds duration{0};
};

struct FlushReport {
    std::vector<UpstreamReport> upstreams = {};
    bool complete() const noexcept;  ///< nothing is pending anywhere
};

/// When the background worker sends: as soon as one of these is reached.
struct WorkerOptions {
    std::int64_t events = 100;                          ///< recorded since it last sent
    std::int64_t bytes = 256 * 1024;                    ///< likewise, of properties and notices
    std::chrono::milliseconds age{5000};                ///< since the oldest of these was recorded
    std::function<void(const FlushReport&)> done = {};  ///< after each round, on the worker's thread
};

/// An event set aside for one upstream. Nothing deletes it, prune() neither; release() sends it again.
struct Parked {
    Event event = {};
    /// In a word: refused (by the vendor), too_large, unsendable (the vendor's format has no place for it), before_send (it threw),
    /// unknown (sent, no answer, and a second copy could count twice).
    std::string reason = {};
    int status = 0;         ///< of the HTTP answer; 0 when there was none
    std::string text = {};  ///< the vendor's own words
    Timestamp at = {};
};

/// What the vendor shows beside what was delivered, for the events of a period. Where a vendor shows no id (Polar, Autumn) its name, customer,
/// time and value stand for an event, and none is different.
struct Confirmation {
    std::int64_t matching = 0;
    std::vector<std::int64_t> missing = {};     ///< sequences delivered that the vendor does not show
    std::vector<std::int64_t> different = {};   ///< shown with another name, customer or time
    std::vector<std::string> extra = {};        ///< shown, but not delivered from here: ids, or descriptions
    std::vector<std::int64_t> repairable = {};  ///< of the missing, those whose copies the vendor recognises: resend() them
};

struct ExportReport {
    std::int64_t events = 0;
    std::int64_t first = 0, last = 0;  ///< sequences of the first and last of them
    std::int64_t through = 0;          ///< the file answers for the log up to here: for acknowledge_export()
};

struct ImportReport {
    std::int64_t stored = 0, duplicates = 0, conflicts = 0, refused = 0;
    /// First and last sequence of the other device's log that no file imported here answers for, when there are any before this file's.
    std::optional<std::pair<std::int64_t, std::int64_t>> gap = {};
    std::int64_t& count(ReceiptStatus status) noexcept;
};

// ---------------------------------------------------------------------------------------------
// 8 Meter
// ---------------------------------------------------------------------------------------------

struct PruneOptions {
    Timestamp recorded_before = Timestamp::min();  ///< events recorded before this may go
    std::int64_t keep_bytes = 0;                   ///< so may the oldest while the database holds more than this; 0: no such rule
};

struct PruneReport {
    std::int64_t events = 0;  ///< removed
};

enum class Durability {
    full,     ///< record() returns after a commit that survives power loss
    process,  ///< ... that survives the end of this process; a power loss may take the last moments
};

struct MeterOptions {
    std::string path = ":memory:";
    Durability durability = Durability::full;
    std::chrono::milliseconds busy_timeout{5000};
    std::int64_t max_bytes = 0;                 ///< the database's size at most; 0: the disk's. Over it, record() throws full
    std::size_t cache_bytes = 8 * 1024 * 1024;  ///< of pages, for each of the up to three connections
    /// Of the pages of a new file, 512 to 65536, a power of two; a file keeps the size it was made with. Each commit writes whole pages and three
    /// more than it fills, so that small ones (1024) spare the disk of a device that records a few events at a time; larger ones waste less space.
    std::size_t page_bytes = 4096;
    /// Memory for the filters that make looking for an id quick: 2 bytes an event, newest first. What goes beyond it costs a disk access an id.
    std::size_t index_bytes = 64 * 1024 * 1024;
    /// Events after which a stretch of the log is sealed into columns. While that is done, and to answer questions about what is not sealed
    /// yet, about 100 to 200 bytes an event are in memory.
    std::int64_t chunk_events = 65536;
    std::function<Timestamp()> clock = {};       ///< the system's when empty; called from any thread
    std::function<std::uint64_t()> random = {};  ///< 64 random bits a call; the system's when empty; called from any thread
};

/// The database, and everything one can ask of it. Any thread may call any function at any time; several processes may hold the same
/// file. A function that throws has changed nothing unless it says otherwise. Besides what is said at each, every one may throw busy, io or corrupt,
/// those that write also full and read_only, those that count or price also overflow. One that was moved from can only be assigned to or destroyed.
class Meter {
public:
    /// Opens or makes the database (file mode 0600). Throws not_a_database, newer_schema, read_only, corrupt, io, busy.
    explicit Meter(MeterOptions options = {});
    ~Meter();
    Meter(Meter&&) noexcept;
    Meter& operator=(Meter&&) noexcept;

    /// Stores one event; it is on disk when this returns. Throws bad_value or too_large for an event that cannot be stored, naming
    /// the field; full, busy or io when the database cannot take it.
    Receipt record(const Event& event);
    /// Stores all acceptable events in one transaction and answers for each, in order. Refused events are named in their receipts and
    /// do not hold up the others. When it throws (full, busy, io, too_large for over limits::batch_events) none was stored.
    std::vector<Receipt> record(std::span<const Event> events);
    std::vector<Receipt> record(std::initializer_list<Event> events) { return record(std::span(events.begin(), events.size())); }
    /// As above from JSON Lines text: one event a line, keys named as Event's members, "timestamp" ISO 8601 text or Unix seconds.
    /// Numbers in properties keep every digit they have in the text. Empty lines get no receipt.
    std::vector<Receipt> record_json(std::string_view lines);

    /// Stores the event only if its customer or subscription stays within the limit; else the receipt says over_limit. That is decided in the
    /// transaction that stores it, on what is in the log then, so that no number of threads and processes overrun it together. An id that is in
    /// the log is answered as ever, whatever the limit. For counts, sums and extremes it takes the same time however long the log is; a metric
    /// that needs the events themselves, or a fee that does, is measured anew. Throws bad_value for a limit that cannot be, and for an event
    /// without the customer or subscription that it is about; not_found for a metric or book that is not there; and what record() and
    /// usage() throw. What it throws for was not stored.
    Receipt record(const Event& event, const Limit& limit);
    /// Each of the events within all of the limits, taken one after the other in one transaction: the first that fit are stored. Throws as above,
    /// but an event that cannot be stored, or lacks a customer or subscription, is refused in its receipt.
    std::vector<Receipt> record(std::span<const Event> events, std::span<const Limit> limits);

    /// The event of that id; nothing when there is none, or no longer.
    std::optional<Event> find(std::string_view id) const;
    /// Throws bad_value for a limit, offset, period, sort or text that cannot be, naming it; bad_cursor for a cursor of another question.
    Page list(const ListQuery& query = {}) const;
    /// The page after the one that gave the cursor, of the same size. No event is skipped or seen twice while others arrive. Throws bad_cursor.
    Page list(const Cursor& cursor) const;
    /// The names that events have, and how often, first and last. Throws bad_value as list() does.
    NameList list_names(const NamesQuery& query = {}) const;
    /// The same of sources; events without one are left out.
    NameList list_sources(const NamesQuery& query = {}) const;

    /// Events in each window of a period, and what each upstream has had and waits for. Throws bad_value for a period or zone that cannot be,
    /// too_large for more than limits::aggregate_rows windows.
    Monitoring monitoring(const MonitoringQuery& query = {}) const;

    /// Removes the oldest events, in whole sealed chunks (MeterOptions::chunk_events), as far as the options allow and every upstream has
    /// had them; parked events and all that follow stay. Ids of removed events are forgotten: the same id would be stored again. Throws
    /// bad_value for negative keep_bytes.
    PruneReport prune(const PruneOptions& options);
    /// Gives the room of removed events back to the disk, in short steps between which others write. `progress` is told pages.
    void compact(const std::function<void(std::int64_t done, std::int64_t total)>& progress = {});
    /// Compares everything derived (segments, index of ids) with the log, and the file with itself; answers what differs, nothing when all
    /// is well. With `repair`, what differs is made again from the log. Takes time in proportion to the log; others may read and write.
    std::vector<std::string> verify(bool repair = false);

    /// Declares a metric, in place of the one of that code. Throws bad_value, and of an expression unsupported, too_large or overflow, with the place
    /// in the reason.
    void define(const Metric& metric);
    /// Those in force, by code. Of several of one code (the app's own and those of books) that is the one given last; a book's, as long as the
    /// version it came with is in effect.
    std::vector<Metric> metrics() const;
    /// Throws not_found for an unknown metric, bad_value for a wrong period or field, too_large over limits::aggregate_rows.
    Aggregate aggregate(const AggregateQuery& query) const;
    /// The same of a metric that need not be declared; the query's `metric` does not count. Throws bad_value for one that define() would refuse.
    Aggregate aggregate(const Metric& metric, const AggregateQuery& query = {}) const;
    /// Rows and total as Polar's API gives them. Throws not_found for a meter that no loaded book of Polar's has, bad_value for what
    /// Polar refuses, naming the member.
    Quantities quantities(const QuantitiesQuery& query) const;
    /// The same of a metric that is given; its own `rules` do not count, Polar's do.
    Quantities quantities(const Metric& metric, const QuantitiesQuery& query) const;
    /// Balance of a meter of a loaded Polar book. `customers`: the ids that one customer goes by. Credits and resets are Polar's own events, as
    /// far as they are in the log: source "system", name "meter.credited" (properties meter_id, units, rollover) or "meter.reset"
    /// (meter_id). What was recorded from the moment of the last reset on counts, whenever it happened. Of a customer with several ids Polar reads
    /// no nested properties but for sums, and so it is here. Throws not_found, bad_value.
    CustomerMeter customer_meter(const std::string& meter, const std::vector<std::string>& customers) const;
    /// The values that a metric counts and that are active at the end of the period: added in it (or before, of a recurring metric) and not
    /// removed since (Lago's active unique values, unique_count_query.rb:12). As many as aggregate() says. Throws not_found for an unknown
    /// metric, bad_value for one that does not count values, and for a limit, offset, period or filter that cannot be. Takes memory for every
    /// event counted.
    ActiveValues active_values(const ActiveQuery& query) const;

    /// Usage, events and cost of several metrics, by group and over time, all from one snapshot. What a metric costs is what Book::price() says of
    /// its usage, with FlexPrice's books what its analytics say (meter_usage.go:2452). Throws not_found for an unknown metric, bad_value for what
    /// cannot be asked, naming it, too_large over limits::aggregate_rows.
    Analytics analytics(const AnalyticsQuery& query) const;
    /// What each of these events costs by itself, in billionths of the currency's unit (of a US dollar, nano-USD): as FlexPrice's Hugging Face call
    /// answers (meter_usage_event_debug.go:356). In the order of the ids. 0 means that the event is not known, or no FlexPrice book that is
    /// loaded prices it for its customer, or that it is free; what came before it does not count, tiers and packages begin with each event.
    std::vector<Decimal> inference_costs(std::span<const std::string> ids) const;
    std::vector<Decimal> inference_costs(std::initializer_list<std::string> ids) const { return inference_costs(std::span(ids.begin(), ids.size())); }

    /// Keeps a version of a book in the database, in place of the one of the same vendor, code and moment; its metrics become known to
    /// aggregate(), in place of others of their codes. A billing period is priced by one version, that in effect when it begins: a version
    /// that takes effect within a period follows when that ends. The first one of all has no say before it takes effect: it prices the rest
    /// of that period, though an estimate in it counts what came before. Estimates and limits go by the version of the billing period they are
    /// made in; a UsageQuery::period by the version of the moment it begins. Throws bad_value for a moment outside Timestamp::min() (always)
    /// to max().
    void load(const Book& book, Timestamp effective_from = Timestamp::min());
    /// Removes that version, or all of them, and the metrics that came with it; where such a metric had taken the place of another of its
    /// code, that one is back. Throws not_found when there is none.
    void remove_book(const std::string& vendor, const std::string& code, std::optional<Timestamp> effective_from = {});
    /// All versions, by vendor, code and moment.
    std::vector<BookVersion> books() const;
    /// What the event would cost if it happened now: one fee for each pay-in-advance charge of its metric on the subscription's plan.
    /// Nothing is recorded. Rules: Lago's POST /events/estimate_fees. Throws not_found and bad_value as that answers 404 and 422,
    /// and what record() throws for an event that cannot be.
    Fees estimate_fees(const Event& event) const;
    /// The same for each of up to limits::batch_events events, in order and from one snapshot: none counts for another. An error is thrown
    /// for the first event that has one, its field beneath "events[i]"; too_large for more events.
    std::vector<Fees> estimate_fees(std::span<const Event> events) const;
    std::vector<Fees> estimate_fees(std::initializer_list<Event> events) const { return estimate_fees(std::span(events.begin(), events.size())); }
    /// What the event costs taken alone, without the log: one fee for each standard or percentage pay-in-advance charge of its metric, no free
    /// units, units rounded as the metric says. Rules: Lago's POST /events/estimate_instant_fees. Throws not_found for the
    /// subscription, bad_value when the event meets no such charge or its property is not a number, unsupported for other vendors' books.
    Fees estimate_instant_fees(const Event& event) const;
    /// The same for each of up to limits::batch_events events, in order. As in Lago's batch_estimate_instant_fees, an event that meets no such
    /// charge has no fees; other errors are thrown for the first event that has one, its field beneath "events[i]".
    std::vector<Fees> estimate_instant_fees(std::span<const Event> events) const;
    std::vector<Fees> estimate_instant_fees(std::initializer_list<Event> events) const {
        return estimate_instant_fees(std::span(events.begin(), events.size()));
    }
    /// The fees that a recorded event is billed at once, one for each pay-in-advance charge of its metric; none when there is no such charge, or
    /// the event lacks the property to be counted. Each is what the event added to the highest its billing period had come to, the events
    /// taken by timestamp, then sequence, and is rounded on its own, as in Lago. Lago takes them as they arrive: an event it gets late
    /// is billed by what had come before. Throws not_found for the id, or for a subscription that was not active then; unsupported for
    /// other vendors' books.
    Fees advance_fees(std::string_view id) const;
    /// Those of all events of the period, in order of time: what Lago has invoiced in advance. Their sum may differ from what usage() says, since
    /// each is rounded. Throws as usage() does, and too_large for more than limits::advance_fees fees or 1200 billing periods.
    Fees advance_fees(const UsageQuery& query) const;
    /// Units and fees of every charge of the subscription's plan, or of what the customer has, over the period; by the first book loaded that
    /// prices it. Throws bad_value for a query without either or a period that ends before it begins; not_found when no book prices it, or none is
    /// in effect yet.
    Fees usage(const UsageQuery& query) const;
    /// Whether the event's customer (and entity: Event::subscription) may now use so many units (Event::value, 1 when absent) of the feature
    /// that the event names: Autumn's POST /check, by the balances that the events in the log have left. Nothing is recorded. Balances pay in
    /// Autumn's order, and what none covers is dropped, as with overage_behavior "cap" (apiBalanceToAllowed.ts:27). The events of a feature are
    /// taken in order of time; features that share a credit system one after the other. Usage limits count events as recorded: what they kept
    /// Autumn from taking off a balance is taken off here. Throws bad_value without a customer,
    /// not_found for a feature or customer that no book with balances knows, unsupported when the customer's books are other vendors': only
    /// Autumn's have balances.
    Check check(const Event& event) const;
    /// A dry run: what every customer that has events in the period would pay under each of two books, which need not be loaded; `closing` as in
    /// UsageQuery. A book that prices by subscription prices those the customer's events name, or its own list of the customer's. Fees that
    /// cannot be computed are named beside their customer and do not hold up the others. Other questions wait meanwhile. Throws bad_value for
    /// a period that ends before it begins, and for books in different currencies.
    Comparison compare(const Book& a, const Book& b, const Period& period, bool closing = false) const;

    /// Adds an upstream, or gives one of that name new settings, and ends a pause. A new one starts with the oldest event kept. Keys and callbacks
    /// are not stored: connect again after each opening. Throws bad_value for a name that belongs to another vendor's, unsupported without a
    /// transport.
    void connect(const Upstream& upstream);
    /// Sends what is pending until done, or something stops it, or the deadline. Never throws for the network's sake; not_found for a name that is
    /// not connected, bad_value for a negative deadline, and what the database throws: what was answered by then has been noted.
    FlushReport flush(const FlushOptions& options = {});
    /// Starts a thread that sends in the background; with other options when it runs already. Throws bad_value.
    void start(const WorkerOptions& options = {});
    /// Ends the background thread, and with it an exchange under way: at once with the bundled transport, with another as soon as that
    /// one gives up. What was not sent stays pending. The destructor does the same.
    void stop();
    /// Tells the background thread whether there is a network. Coming online ends the waits that began because nothing answered; a wait
    /// a server asked for goes on.
    void set_online(bool online);
    /// All that were ever connected, also those that are not now.
    std::vector<UpstreamStatus> upstreams() const;
    /// Throws not_found.
    Balance balance(const std::string& upstream) const;
    /// In order of sequence; `limit` is 1 to limits::page_events. The next page comes after the last sequence of this. Throws not_found, bad_value.
    std::vector<Parked> parked(const std::string& upstream, std::int64_t limit = 100, std::int64_t after_sequence = 0) const;
    /// Parked events become pending again: those of the given sequences, all when none are given. Answers how many. Throws not_found.
    std::int64_t release(const std::string& upstream, std::span<const std::int64_t> sequences = {});
    /// For devices that never go online: writes what is pending to a file (JSON Lines), to be imported by a Meter that delivers it. The
    /// events stay pending until acknowledge_export(). Throws not_found, io.
    ExportReport export_pending(const std::string& upstream, const std::string& path) const;
    /// Counts as delivered what an export held, up to ExportReport::through, once the file has arrived. Answers how many. Throws not_found,
    /// busy while a flush runs, bad_value.
    std::int64_t acknowledge_export(const std::string& upstream, std::int64_t through);
    /// Records what another Meter exported; importing a file twice stores nothing twice. Throws bad_value for a file that is not a whole export,
    /// before anything of it is stored; io, newer_schema, and what record_json() throws.
    ImportReport import_events(const std::string& path);
    /// Reads back what the vendor holds for a period (by event time) and compares. Vendors show events some time after taking them, so leave
    /// the last minutes out. Throws unsupported (Zyg), not_found, bad_value, too_large, and io when the vendor does not answer.
    Confirmation confirm(const std::string& upstream, const Period& period);
    /// Delivered events become pending again, for what confirm() found missing. Answers how many. Throws not_found.
    std::int64_t resend(const std::string& upstream, std::span<const std::int64_t> sequences);
    /// Ends a pause and any wait. Throws not_found.
    void resume(const std::string& upstream);

private:
    struct Impl;
    std::unique_ptr<Impl> impl_;
};

}  // namespace meter

#endif  // METER_HPP
