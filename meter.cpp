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

// =============================================================================================
// 2 time: timestamps, periods, bins. Pure; the only clock is Timestamp::now(). Uses 1.
// =============================================================================================

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

void append_quoted(std::string& out, std::string_view text) {
    static constexpr char hex[] = "0123456789abcdef";
    out += '"';
    for (const char c : text) {
        const auto byte = static_cast<unsigned char>(c);
        if (c == '"' || c == '\\') {
            out += '\\';
            out += c;
        } else if (byte >= 0x20) {
            out += c;
        } else {
            out += "\\u00";
            out += hex[byte >> 4];
            out += hex[byte & 15];
        }
    }
    out += '"';
}

void append_json(std::string& out, const json& value) { out += value.dump(-1, ' ', false, json::error_handler_t::replace); }

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

std::string_view severity_text(Severity severity) {
    switch (severity) {
        case Severity::info:
            return "info";
        case Severity::warning:
            return "warning";
        case Severity::critical:
            return "critical";
    }
    return "info";
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
            return event.notice ? std::string(severity_text(event.notice->severity)) : "";
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
        append_json(out, field.form == Form::object_go ? without_large_integers(event.properties) : event.properties);
        return out;
    }
    if (field.from == From::extension) {
        const auto found = extension.find(std::string(last_name(field.key)));
        if (found != extension.end()) {
            append_json(out, *found);
            return out;
        }
    }
    std::string value = plain_value(field, event);
    if (value.empty()) value = field.fallback;
    if (value.empty() && !field.always) return out;
    if (field.form == Form::text_component) {
        out += R"([{"componentText":{"text":)";
        append_quoted(out, value);
        out += "}}]";
        return out;
    }
    if (field.form == Form::unix_ms || field.form == Form::number || field.form == Form::boolean) return value;
    append_quoted(out, value);
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
                append_quoted(out, object);
                out += ":{";
            }
            open_object = object;
        }
        comma();
        append_quoted(out, last_name(field.key));
        out += ':';
        out += value;
    }
    if (!open_object.empty()) out += '}';
    for (const auto& [key, value] : extension.items()) {
        if (field_named(vendor, key)) continue;
        comma();
        append_quoted(out, key);
        out += ':';
        append_json(out, value);
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

std::string dumped(const json& value) {
    return value.is_string() ? value.get<std::string>() : value.dump(-1, ' ', false, json::error_handler_t::replace);
}

/// The words of an error body: message, error.message, error, detail, error_details, in the shapes the dossiers list.
std::string error_text(const json& body, const std::string& raw) {
    if (!body.is_object()) return printable(raw);
    for (const char* key : {"error_details", "message", "detail"})
        if (body.contains(key)) return shortened(dumped(body[key]));
    if (!body.contains("error")) return shortened(dumped(body));
    const json& error = body["error"];
    return shortened(error.is_object() && error.contains("message") ? dumped(error["message"]) : dumped(error));
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
        blames.events.push_back({at, exists, false, shortened(dumped(value))});
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
        Shape& shape = found[index][loc.size() > 3 ? dumped(loc[3]) : ""];
        const std::string message = text_member(entry, "msg");
        shape.early = shape.early && message.find(early) != std::string::npos;
        shape.text += (shape.text.empty() ? "" : "; ") + (loc.size() > 4 ? dumped(loc[4]) : dumped(loc.back())) + ": " + message;
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
