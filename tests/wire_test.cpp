// Requests and answers of each vendor, as pure functions: bodies against what the official clients send, answers against the dossiers.
#include "inside.hpp"

#include <fstream>

#ifndef METER_TEST_DIR
#define METER_TEST_DIR "tests"
#endif

namespace meter {
namespace {

const Timestamp captured_at = Timestamp::parse("2024-10-21T12:34:56.789Z");

json captures() {
    std::ifstream file(METER_TEST_DIR "/data/captures.json");
    REQUIRE(file);
    return json::parse(file);
}

json take(json& object, const char* key) {
    if (!object.contains(key)) return nullptr;
    json value = object[key];
    object.erase(key);
    return value;
}

std::string take_text(json& object, const char* key) {
    const json value = take(object, key);
    return value.is_string() ? value.get<std::string>() : "";
}

// Texts and numbers that mean a time in a capture: Unix seconds, milliseconds, ISO.
Timestamp instant(const json& value) {
    if (value.is_string() && value.get<std::string>().find('T') != std::string::npos) return Timestamp::parse(value.get<std::string>());
    const Decimal number = Decimal::from_json(value);
    return number > Decimal(100000000000) ? Timestamp::from_unix_ms(number) : Timestamp::from_unix(number);
}

// The event an app would record to get the captured body: the vendor's fields to ours, all else to the extension.
Event event_of(const std::string& vendor, json body) {
    Event event;
    event.timestamp = captured_at;
    const char* time = vendor == "openmeter" ? "time" : "timestamp";
    if (const json t = take(body, time); !t.is_null()) event.timestamp = instant(t);
    const auto properties = [&](const char* key) {
        if (json p = take(body, key); p.is_object()) event.properties = p;
    };
    if (vendor == "lago") {
        event.id = take_text(body, "transaction_id");
        event.name = take_text(body, "code");
        event.subscription = take_text(body, "external_subscription_id");
        if (json cents = take(body, "precise_total_amount_cents"); !cents.is_null()) event.precise_total_amount_cents = Decimal::from_json(cents);
        properties("properties");
    } else if (vendor == "flexprice") {
        event.id = take_text(body, "event_id");
        event.name = take_text(body, "event_name");
        event.customer = take_text(body, "external_customer_id");
        event.source = take_text(body, "source");
        properties("properties");
    } else if (vendor == "polar") {
        event.id = take_text(body, "external_id");
        event.name = take_text(body, "name");
        event.customer = take_text(body, "external_customer_id");
        properties("metadata");
    } else if (vendor == "autumn") {
        event.name = take_text(body, "feature_id");
        event.customer = take_text(body, "customer_id");
        event.subscription = take_text(body, "entity_id");
        if (json value = take(body, "value"); !value.is_null()) event.value = Decimal::from_json(value);
        properties("properties");
    } else if (vendor == "openmeter") {
        take(body, "specversion");
        event.id = take_text(body, "id");
        event.name = take_text(body, "type");
        event.customer = take_text(body, "subject");
        event.source = take_text(body, "source");
        properties("data");
    } else {
        event.name = take_text(body, "event");
        event.notice = Notice{take_text(body, "body"), Severity::info, take(body, "notify").get<bool>()};
        const std::string severity = take_text(body, "severity");
        event.notice->severity = severity == "critical" ? Severity::critical : severity == "warning" ? Severity::warning : Severity::info;
        json customer = take(body, "customer");
        event.customer = take_text(customer, "externalId");
        body.update(customer);
    }
    if (!body.empty()) event.extensions[vendor] = body;
    return event;
}

json captured_events(const json& capture) {
    const json body = json::parse(capture["body"].get<std::string>());
    if (body.is_array()) return body;
    if (body.contains("events")) return body["events"];
    return json::array({body.contains("event") && body["event"].is_object() ? body["event"] : body});
}

std::string event_json(const Vendor& vendor, const Event& event) {
    std::string body;
    append_event_json(body, vendor, event, json_text(event.properties));
    return body;
}

// The capture's members must all be there with the same value; ours adds at most what a client of ours always sends.
void check_same(const std::string& vendor, json theirs, json ours) {
    const std::vector<const char*> always = {"timestamp",       "time",           "properties", "metadata",   "data",
                                             "idempotency_key", "transaction_id", "event_id",   "external_id"};
    for (const auto& [key, value] : theirs.items()) {
        CAPTURE(vendor, key);
        REQUIRE(ours.contains(key));
        if (key == "timestamp" || key == "time")
            CHECK(instant(ours[key]) == instant(value));
        else if (key == "customer")
            check_same(vendor, value, ours[key]);
        else
            CHECK(ours[key] == value);
        ours.erase(key);
    }
    for (const char* key : always) ours.erase(key);
    CHECK(ours.dump() == "{}");
}

TEST_CASE("wire: bodies hold, field for field, what the official clients send") {
    std::size_t compared = 0;
    std::set<std::string> seen;
    for (const json& capture : captures()) {
        const std::string name = capture["vendor"];
        const Vendor& vendor = vendor_named(name);
        for (const json& theirs : captured_events(capture)) {
            const Event event = event_of(name, theirs);
            INFO(capture["operation"].get<std::string>() << " " << theirs.dump());
            check_same(name, theirs, json::parse(event_json(vendor, event)));
            ++compared;
        }
        seen.insert(name);
    }
    CHECK(compared >= 25);
    CHECK(seen.size() == 6);
}

TEST_CASE("wire: batches, addresses and headers are those of the official clients") {
    for (const json& capture : captures()) {
        const std::string name = capture["vendor"], path = capture["path"];
        const Vendor& vendor = vendor_named(name);
        UpstreamOptions options;
        options.api_key = "<fake-key>";
        options.base_url = "https://host";
        const HttpRequest request = ingest_request(vendor, options, "");
        if (request.url != "https://host" + path) continue;  // the one-event call of a vendor that we send batches to
        const HttpResponse as_list{.headers = request.headers};
        for (const auto& [key, value] : capture["headers"].items()) {
            if (key == "polar-version" || key == "x-api-version" || (name == "zyg" && key == "authorization")) continue;
            CAPTURE(name, key);
            REQUIRE(as_list.header(key));
            CHECK(*as_list.header(key) == value.get<std::string>());
        }
        const std::string body = std::string(vendor.open) + "1" + (vendor.batch_events > 1 ? ",2" : "") + std::string(vendor.close);
        const json shape = json::parse(body), theirs = json::parse(capture["body"].get<std::string>());
        CHECK(shape.is_array() == theirs.is_array());
        if (name != "zyg") CHECK(shape.contains("events") == theirs.contains("events"));
    }
}

Event plain_event() {
    Event event;
    event.id = "id-1";
    event.name = "n";
    event.customer = "c";
    event.timestamp = captured_at;
    return event;
}

TEST_CASE("wire: what never needs to be guessed is always sent: id and time") {
    for (const Vendor& vendor : vendors) {
        Event event = plain_event();
        event.notice = Notice{"b", Severity::info, false};
        const std::string body = event_json(vendor, event);
        CAPTURE(vendor.name, body);
        CHECK((body.find("2024-10-21T12:34:56.789Z") != std::string::npos || body.find("1729514096") != std::string::npos));
        if (!vendor.notices_only) CHECK(body.find("\"id-1\"") != std::string::npos);
    }
}

TEST_CASE("wire: times keep every digit they have, in the vendor's form") {
    Event event = plain_event();
    event.timestamp = Timestamp::parse("2024-10-21T12:34:56.000001Z");
    CHECK(json::parse(event_json(vendor_named("lago"), event))["timestamp"] == "1729514096.000001");
    CHECK(json::parse(event_json(vendor_named("polar"), event))["timestamp"] == "2024-10-21T12:34:56.000001Z");
    CHECK(json::parse(event_json(vendor_named("autumn"), event))["timestamp"] == 1729514096000);
    event.timestamp = Timestamp::parse("2024-10-21T12:34:56Z");
    CHECK(json::parse(event_json(vendor_named("lago"), event))["timestamp"] == "1729514096");
}

TEST_CASE("wire: numbers leave as exactly as they came") {
    Event event = plain_event();
    event.value = Decimal("0.1");
    event.properties = {{"tenth", 0.1}, {"max", 9007199254740993}, {"deep", {{"list", {1, 9007199254740993}}}}, {"low", -9007199254740993}};
    CHECK(event_json(vendor_named("autumn"), event).find("\"value\":0.1,") != std::string::npos);
    const std::string lago = event_json(vendor_named("lago"), event);
    CHECK(lago.find("\"tenth\":0.1") != std::string::npos);
    CHECK(lago.find("\"max\":9007199254740993") != std::string::npos);
    const json flexprice = json::parse(event_json(vendor_named("flexprice"), event))["properties"];
    CHECK(flexprice["tenth"] == 0.1);
    CHECK(flexprice["max"] == "9007199254740993");
    CHECK(flexprice["low"] == "-9007199254740993");
    CHECK(flexprice["deep"]["list"] == json({1, "9007199254740993"}));
}

TEST_CASE("wire: an extension goes to its vendor alone, and replaces nothing that identifies the event") {
    Event event = plain_event();
    event.extensions = {{"polar", {{"parent_id", "p"}, {"external_id", "forged"}, {"timestamp", "forged"}}}, {"lago", {{"x", 1}}}};
    const json polar = json::parse(event_json(vendor_named("polar"), event));
    CHECK(polar["parent_id"] == "p");
    CHECK(polar["external_id"] == "id-1");
    CHECK(polar["timestamp"] == "2024-10-21T12:34:56.789Z");
    CHECK_FALSE(polar.contains("x"));
    CHECK(json::parse(event_json(vendor_named("lago"), event))["x"] == 1);
    event.extensions = {{"polar", {{"customer_id", "9f1f3a52-3a4c-4c0e-9a54-0d9e5c8a7b11"}}}};
    CHECK_FALSE(json::parse(event_json(vendor_named("polar"), event)).contains("external_customer_id"));  // never both (polar dossier 2.1)
    event.extensions = {{"autumn", {{"event_name", "chat"}}}};
    CHECK_FALSE(json::parse(event_json(vendor_named("autumn"), event)).contains("feature_id"));  // exactly one (autumn dossier 4.1)
}

TEST_CASE("wire: Zyg never gets an external id without a name, and can be spoken to in the workspace's way") {
    Event event = plain_event();
    event.notice = Notice{"details", Severity::warning, true};
    json body = json::parse(event_json(vendor_named("zyg"), event));
    CHECK(body["customer"] == json({{"externalId", "c"}, {"name", ""}}));
    event.extensions = {{"zyg", {{"customerId", "zc"}}}};
    body = json::parse(event_json(vendor_named("zyg"), event));
    CHECK(body["customer"] == json({{"customerId", "zc"}, {"externalId", "c"}}));
    event.extensions = json::object();
    body = json::parse(event_json(vendor_named("zyg workspace"), event));
    CHECK(body["title"] == "n");
    CHECK(body["components"] == json::parse(R"([{"componentText":{"text":"details"}}])"));
    UpstreamOptions options;
    options.base_url = "https://zyg.example/";
    options.workspace = "w 1";
    CHECK(ingest_request(vendor_named("zyg workspace"), options, "").url == "https://zyg.example/workspaces/w%201/customers/events/");
    CHECK(ingest_request(vendor_named("zyg workspace"), options, "").once);
}

TEST_CASE("wire: events that a vendor would lose without a word are not sent") {
    Event event = plain_event();
    event.customer = "";
    for (const char* name : {"flexprice", "polar", "autumn", "openmeter"})
        CHECK(unsendable_reason(vendor_named(name), event).find("required") != std::string::npos);
    CHECK(unsendable_reason(vendor_named("lago"), event).empty());
    event.extensions = {{"polar", {{"customer_id", "x"}}}, {"zyg", {{"customerId", "x"}}}};
    CHECK(unsendable_reason(vendor_named("polar"), event).empty());
    CHECK(unsendable_reason(vendor_named("zyg"), event).empty());
    event.customer = "c";
    event.name = "  ";
    CHECK_FALSE(unsendable_reason(vendor_named("flexprice"), event).empty());
}

// ---- answers -------------------------------------------------------------------------------------

Answer answer_of(const char* vendor, int status, const std::string& body, std::vector<std::string_view> ids = {"a", "b", "c"}) {
    return read_answer(vendor_named(vendor), HttpResponse{.status = status, .body = body}, ids);
}

TEST_CASE("wire: successes are taken from those who give them, and only with their proof") {
    CHECK(answer_of("lago", 200, R"({"events":[{},{},{}]})").meaning == Meaning::delivered);
    CHECK(answer_of("lago", 200, R"({"events":[{},{}]})").meaning == Meaning::wait);
    CHECK(answer_of("flexprice", 202, R"({"message":"Events accepted for processing"})").meaning == Meaning::delivered);
    CHECK(answer_of("flexprice", 200, R"({"message":"x"})").meaning == Meaning::wait);
    CHECK(answer_of("polar", 200, R"({"inserted":3,"duplicates":0})").meaning == Meaning::delivered);
    CHECK(answer_of("polar", 200, R"({"inserted":1,"duplicates":2})").duplicates == 2);
    CHECK(answer_of("polar", 200, R"({"inserted":1})").duplicates == 2);
    CHECK(answer_of("polar", 200, R"({"inserted":4})").meaning == Meaning::wait);
    CHECK(answer_of("polar", 200, R"({"inserted":-1})").meaning == Meaning::wait);
    CHECK(answer_of("polar", 200, R"({"inserted":"3"})").meaning == Meaning::wait);
    CHECK(answer_of("autumn", 200, R"({"success":true})").meaning == Meaning::delivered);
    CHECK(answer_of("autumn", 202, R"({"success":true})").meaning == Meaning::delivered);
    CHECK(answer_of("autumn", 200, R"({"success":false})").meaning == Meaning::wait);
    CHECK(answer_of("zyg", 201, R"({"eventId":"e","message":"m"})").meaning == Meaning::delivered);
    CHECK(answer_of("zyg", 200, R"({"eventId":"e"})").meaning == Meaning::delivered);
    CHECK(answer_of("zyg", 200, "").meaning == Meaning::wait);
    CHECK(answer_of("zyg", 200, "").unknown);
    CHECK(answer_of("openmeter", 204, "").meaning == Meaning::delivered);
    CHECK(answer_of("openmeter", 202, "").meaning == Meaning::delivered);
    CHECK(answer_of("openmeter", 200, "<html>").meaning == Meaning::wait);
    for (const Vendor& vendor : vendors) CHECK(answer_of(std::string(vendor.name).c_str(), 200, "<html>hello</html>").meaning == Meaning::wait);
}

TEST_CASE("wire: a success may repeat the deepest events, and is read in one go however many it repeats") {
    const auto nested = [](std::size_t depth) { return std::string(depth, '[') + R"("]]{\\")" + std::string(depth, ']'); };
    const auto answer_with = [](const std::string& event) { return answer_of("lago", 200, R"({"events":[)" + event + "]}", {"a"}).meaning; };
    CHECK(answer_with(R"({"properties":)" + nested(limits::json_depth) + "}") == Meaning::delivered);
    CHECK(answer_with(R"({"properties":)" + nested(limits::json_depth * 2) + "}") == Meaning::wait);
    CHECK(answer_of("flexprice", 400, nested(1'000'000)).meaning == Meaning::refused);
    std::string many = R"({"events":[{})";
    for (int i = 1; i < 200'000; ++i) many += ",{}";
    CHECK(answer_of("lago", 200, many + "]}", std::vector<std::string_view>(200'000, "a")).meaning == Meaning::delivered);
}

TEST_CASE("wire: Lago's 422 by index") {
    Answer answer =
        answer_of("lago", 422, R"({"error_details":{"1":{"timestamp":["invalid_format"]},"0":{"transaction_id":["value_already_exist"]}}})");
    REQUIRE(answer.meaning == Meaning::indexed);
    REQUIRE(answer.blamed.size() == 2);
    CHECK(answer.blamed[0].duplicate);
    CHECK(answer.blamed[0].index == 0);
    CHECK_FALSE(answer.blamed[1].duplicate);
    CHECK(answer.blamed[1].text == R"({"timestamp":["invalid_format"]})");

    answer = answer_of("lago", 422, R"({"error_details":{"2":"expression_evaluation_failed: Variable: b not found"}})");
    CHECK(answer.meaning == Meaning::indexed);
    CHECK(answer.blamed.at(0).text == "expression_evaluation_failed: Variable: b not found");

    answer = answer_of("lago", 422, R"({"error_details":{"0":{"transaction_id":["value_already_exist"],"code":["value_is_mandatory"]}}})");
    CHECK_FALSE(answer.blamed.at(0).duplicate);

    // the same id twice in one batch: the second is blamed and neither is stored (lago dossier 1.7)
    answer = answer_of("lago", 422, R"({"error_details":{"2":{"transaction_id":["value_already_exist"]}}})", {"x", "b", "x"});
    CHECK(answer.meaning == Meaning::refused);

    CHECK(answer_of("lago", 422, R"({"error_details":"whole batch"})").meaning == Meaning::refused);
    CHECK(answer_of("lago", 422, R"({"error_details":{"3":{"a":["b"]}}})").meaning == Meaning::refused);
    CHECK(answer_of("lago", 422, R"({"error_details":{"-1":{"a":["b"]}}})").meaning == Meaning::refused);
    CHECK(answer_of("lago", 422, R"({"error_details":{"1e0":{"a":["b"]}}})").meaning == Meaning::refused);
    CHECK(answer_of("lago", 422, R"({"error_details":{"99999999999999999999":{"a":["b"]}}})").meaning == Meaning::refused);
    CHECK(answer_of("lago", 422, R"({"error_details":{}})").meaning == Meaning::refused);
    CHECK(answer_of("lago", 422, R"({"error_details":{"events":["too_many_events"]}})").meaning == Meaning::too_large);
    CHECK(answer_of("lago", 422, R"({"error_details":{"events":["no_events"]}})").meaning == Meaning::refused);
}

TEST_CASE("wire: Polar's 422 by loc, both shapes of an event") {
    Answer answer = answer_of("polar", 422, R"({"error":"RequestValidationError","detail":[
        {"loc":["body","events",0,"EventCreateCustomer","timestamp"],"type":"value_error","msg":"Value error, Timestamp must be in the past."},
        {"loc":["body","events",0,"EventCreateCustomer","customer_id"],"type":"missing","msg":"Field required"},
        {"loc":["body","events",0,"EventCreateExternalCustomer","timestamp"],"type":"value_error","msg":"Value error, Timestamp must be in the past."},
        {"loc":["body","events",2,"EventCreateCustomer","customer_id"],"type":"missing","msg":"Field required"},
        {"loc":["body","events",2,"EventCreateExternalCustomer","metadata"],"type":"x","msg":"too long"}]})");
    REQUIRE(answer.meaning == Meaning::indexed);
    REQUIRE(answer.blamed.size() == 2);
    CHECK(answer.blamed[0].index == 0);
    CHECK(answer.blamed[0].early);
    CHECK(answer.blamed[1].index == 2);
    CHECK_FALSE(answer.blamed[1].early);
    answer = answer_of("polar", 422, R"({"error":"PolarRequestValidationError","detail":[
        {"loc":["body","events",1,"customer_id"],"type":"customer_id","msg":"Customer not found.","input":"CX"}]})");
    CHECK(answer.blamed.at(0).index == 1);
    CHECK(answer.blamed.at(0).text.find("Customer not found.") != std::string::npos);
    for (const char* body : {R"({"detail":[{"loc":["body"],"msg":"m"}]})", R"({"detail":[{"loc":["body","events"],"msg":"m"}]})",
                             R"({"detail":[{"loc":["body","events",7,"x"],"msg":"m"}]})", R"({"detail":[{"loc":["body","events",-1],"msg":"m"}]})",
                             R"({"detail":[]})", R"({"detail":"text"})", R"({"detail":[17]})", R"({"detail":[{"loc":"x"}]})"})
        CHECK(answer_of("polar", 422, body).meaning == Meaning::refused);
}

TEST_CASE("wire: Autumn's indices in the message, and its codes") {
    Answer answer = answer_of("autumn", 400, R"({"message":"1: Either feature_id or event_name must be provided","code":"invalid_inputs"})");
    CHECK(answer.meaning == Meaning::indexed);
    CHECK(answer.blamed.at(0).index == 1);
    answer = answer_of("autumn", 400,
                       R"({"message":"[Validation Errors] 0.timestamp: timestamp cannot be in the future; 2.value: bad","code":"invalid_inputs"})");
    REQUIRE(answer.blamed.size() == 2);
    CHECK(answer.blamed[0].early);
    CHECK_FALSE(answer.blamed[1].early);
    CHECK(answer_of("autumn", 400, R"({"message":"input: Too big","code":"invalid_inputs"})").meaning == Meaning::refused);
    CHECK(answer_of("autumn", 400, R"({"message":"9: x","code":"invalid_inputs"})").meaning == Meaning::refused);
    CHECK(answer_of("autumn", 400, R"({"message":"x","code":"invalid_api_version"})").meaning == Meaning::pause);
    CHECK(answer_of("autumn", 404, R"({"message":"Feature nope not found","code":"feature_not_found"})").meaning == Meaning::refused);
    CHECK(answer_of("autumn", 404, "<html>").meaning == Meaning::pause);
    CHECK(answer_of("autumn", 409, R"({"message":"x","code":"duplicate_idempotency_key"})").meaning == Meaning::duplicate);
    CHECK(answer_of("autumn", 409, R"({"message":"x","code":"lock_already_exists"})").meaning == Meaning::refused);
    CHECK(answer_of("autumn", 429, "Too many requests, please try again later.").meaning == Meaning::wait);
    CHECK_FALSE(answer_of("autumn", 503, "{}").unknown);
}

TEST_CASE("wire: what leaves the fate of the events open") {
    for (const int status : {408, 500, 502, 504, 520}) CHECK(answer_of("zyg", status, "").unknown);
    for (const int status : {400, 401, 403, 404, 413, 429, 503}) CHECK_FALSE(answer_of("zyg", status, "").unknown);
    const std::vector<std::string_view> ids = {"a"};
    CHECK(read_answer(vendor_named("zyg"), HttpResponse{.error = "reset", .sent = true}, ids).unknown);
    CHECK_FALSE(read_answer(vendor_named("zyg"), HttpResponse{.error = "refused", .sent = false}, ids).unknown);
}

TEST_CASE("wire: any bytes at all are an answer that does no harm") {
    std::mt19937 random(20260301);
    const std::vector<std::string> seeds = {R"({"error_details":{"1":{"a":["b"]}}})",
                                            R"({"detail":[{"loc":["body","events",1,"x","y"],"msg":"m"}]})",
                                            R"({"message":"1.a: b","code":"x"})",
                                            std::string(100000, '['),
                                            R"({"events":[1,2,3]})",
                                            "\xff\xfe"};
    for (int round = 0; round < 3000; ++round) {
        std::string body = seeds[random() % seeds.size()];
        for (int change = 0; change < 3 && !body.empty(); ++change) body[random() % body.size()] = static_cast<char>(random());
        for (const Vendor& vendor : vendors) {
            const int status = std::array{200, 202, 400, 404, 409, 422}[random() % 6];
            const Answer answer = answer_of(std::string(vendor.name).c_str(), status, body);
            CHECK(answer.text.size() <= 2000);
            for (const Blame& blame : answer.blamed) CHECK(blame.index < 3);
        }
        if (body.size() > 1000) round += 50;
    }
}

TEST_CASE("wire: HTTP dates") {
    CHECK(http_date("Sun, 06 Nov 1994 08:49:37 GMT") == Timestamp::parse("1994-11-06T08:49:37Z"));
    CHECK(http_date("Thu, 29 Feb 2024 23:59:60 GMT") == Timestamp::parse("2024-03-01T00:00:00Z"));
    for (const char* bad :
         {"", "Sunday, 06-Nov-94 08:49:37 GMT", "Sun, 06 Nov 1994 08:49:37 UTC", "Sun, 31 Feb 1994 08:49:37 GMT", "Sun, 06 Xxx 1994 08:49:37 GMT",
          "Sun, 06 anF 1994 08:49:37 GMT", "Sun, 06 Nov 1994 24:00:00 GMT", "Sun, -6 Nov 1994 08:49:37 GMT"})
        CHECK_FALSE(http_date(bad));
}

TEST_CASE("wire: full jitter stays within a bound that doubles up to the cap") {
    std::mt19937_64 random(7);
    for (std::int64_t failures = 1; failures <= 70; ++failures) {
        const auto bound = std::min<std::int64_t>(300000000, std::int64_t{1000000} << std::min<std::int64_t>(failures - 1, 20));
        std::int64_t largest = 0, smallest = bound;
        for (int i = 0; i < 400; ++i) {
            const std::int64_t wait = backoff(failures, random()).count();
            largest = std::max(largest, wait);
            smallest = std::min(smallest, wait);
        }
        CHECK(largest <= bound);
        CHECK(largest > bound * 9 / 10);
        CHECK(smallest < bound / 10);
    }
}

TEST_CASE("wire: the vendor's clock is learnt on the safe side") {
    const Timestamp t = Timestamp::parse("2026-03-01T12:00:00Z");
    const auto at = [&](double later) { return t + std::chrono::microseconds(static_cast<std::int64_t>(later * 1e6)); };
    CHECK(measured_skew(t, at(0.2), at(0.4)) == std::chrono::microseconds(0));          // within the second that Date cannot tell
    CHECK(measured_skew(t, at(10), at(10.2)) == std::chrono::microseconds(-10200000));  // we are ahead
    CHECK(measured_skew(t, at(-10), at(-9.8)) == std::chrono::microseconds(9800000));   // we are behind
}

TEST_CASE("wire: one refused event among many stands alone after log2 requests") {
    for (const std::size_t poison : {0u, 1u, 63u, 64u, 99u}) {
        Shipment batch;
        for (std::size_t i = 0; i < 100; ++i) {
            Item item;
            item.sequence = static_cast<std::int64_t>(i) + 1;
            item.body.size = 1;
            batch.items.push_back(item);
        }
        std::size_t requests = 0;
        while (!batch.all_settled()) {
            const auto sent = next_request(batch, 100, 1000000);
            REQUIRE_FALSE(sent.empty());
            ++requests;
            Answer answer;
            answer.meaning = Meaning::delivered;
            for (const Item* item : sent)
                if (item == &batch.items[poison]) answer.meaning = Meaning::refused;
            apply_answer(answer, 400, Timestamp(), batch, sent);
        }
        CHECK(requests <= 10);
        for (std::size_t i = 0; i < 100; ++i) CHECK((batch.items[i].fate == Fate::parked) == (i == poison));
    }
}

TEST_CASE("wire: requests keep to the limits by count and bytes, and always make progress") {
    Shipment batch;
    for (int i = 0; i < 10; ++i) {
        Item item;
        item.body.size = 100;
        batch.items.push_back(item);
    }
    CHECK(next_request(batch, 3, 100000).size() == 3);
    CHECK(next_request(batch, 100, 350).size() == 3);
    CHECK(next_request(batch, 100, 10).size() == 1);
}

TEST_CASE("wire: selections judge an event as lists do") {
    Event event = plain_event();
    event.value = Decimal("2.5");
    event.properties = {{"model", "large"}, {"request", {{"region", "eu"}}}, {"a.b", 1}, {"none", nullptr}, {"list", {1, 2}}};
    const auto holds = [&](const Filter& filter) { return Selection(filter).holds(event); };
    CHECK(holds({}));
    CHECK(holds(Filter::equals("model", "large")));
    CHECK(holds(Filter::equals("request.region", "eu")));
    CHECK(holds(Filter::equals("properties.request.region", "eu")));
    CHECK(holds(Filter::equals("a.b", 1)));
    CHECK(holds(Filter::equals("name", "n")));
    CHECK(holds(Filter::where("value", Operator::gt, 2)));
    CHECK(holds(Filter::where("timestamp", Operator::lt, "2025-01-01T00:00:00Z")));
    CHECK_FALSE(holds(Filter::where("timestamp", Operator::gt, "2025-01-01T00:00:00Z")));
    CHECK(holds(Filter::where("source", Operator::exists, false)));
    CHECK(holds(Filter::where("none", Operator::exists, false)));
    CHECK_FALSE(holds(Filter::any({})));
    CHECK(holds(Filter::any({Filter::equals("model", "x"), Filter::where("model", Operator::in, {"large", "small"})})));
    CHECK_FALSE(holds(Filter::all({Filter::equals("model", "large"), Filter::equals("customer", "other")})));
    CHECK_THROWS_AS(Selection(Filter::where("model", Operator::in, "x")), Error);
}

TEST_CASE("wire: before_send takes what should not leave, but not what counts") {
    Event event = plain_event();
    event.properties = {{"tokens", 5}, {"user", {{"email", "a@b"}, {"plan", "pro"}}}, {"a.b", 2}};
    event.value = Decimal(3);
    UpstreamOptions options;
    options.pinned = {"tokens", "user.plan", "a.b", "absent.path"};
    options.before_send = [](Event& e) {
        const std::string kept = e.properties.value("note", "kept");
        e = Event();
        e.properties = {{"note", kept}};
    };
    const Event sent = redacted(options, {}, event);
    CHECK(sent.id == "id-1");
    CHECK(sent.name == "n");
    CHECK(sent.customer == "c");
    CHECK(sent.timestamp == event.timestamp);
    CHECK(sent.value == event.value);
    CHECK(sent.properties == json::parse(R"({"note":"kept","tokens":5,"user":{"plan":"pro"},"a.b":2})"));
    options.before_send = [](Event& e) { e.properties = 17; };
    CHECK(redacted(options, {}, event).properties["tokens"] == 5);
}

}  // namespace
}  // namespace meter
