// JSON as it comes in and goes out, checked against nlohmann/json; UTF-8; paths of properties.
#include <random>

#include "../meter.hpp"
#include "support/scratch.hpp"
#include "testing.hpp"

using namespace meter;
using namespace meter_test;

namespace {

MeterOptions options() {
    MeterOptions made;
    made.clock = [] { return Timestamp::parse("2026-03-01T12:00:00Z"); };
    return made;
}

// Trees with all kinds of values, texts with all kinds of characters.
class Trees {
public:
    explicit Trees(std::uint64_t seed) : random_(seed) {}
    std::size_t pick(std::size_t count) { return static_cast<std::size_t>(random_() % count); }

    std::string text() {
        static const std::vector<std::string> pieces{"a",
                                                     "Z",
                                                     "\"",
                                                     "\\",
                                                     "/",
                                                     "\b",
                                                     "\f",
                                                     "\n",
                                                     "\r",
                                                     "\t",
                                                     "\x01",
                                                     "\x1F",
                                                     "\x7F",
                                                     "'",
                                                     "\xC3\xA9",
                                                     "\xE2\x82\xAC",
                                                     "\xEF\xBF\xBF",
                                                     "\xF0\x9F\x98\x80",
                                                     "\xF4\x8F\xBF\xBF",
                                                     " ",
                                                     "."};
        std::string made;
        for (std::size_t i = pick(12); i > 0; --i) made += pieces[pick(pieces.size())];
        return made;
    }
    json tree(std::size_t depth = 0) {
        switch (pick(depth < 4 ? 9 : 7)) {
            case 0:
                return nullptr;
            case 1:
                return pick(2) == 0;
            case 2:
                return static_cast<std::int64_t>(random_());
            case 3:
                return random_();
            case 4:
                return static_cast<double>(static_cast<std::int64_t>(random_() % 2000001) - 1000000) / 1024;
            case 5:
            case 6:
                return text();
            case 7: {
                json list = json::array();
                for (std::size_t i = pick(4); i > 0; --i) list.push_back(tree(depth + 1));
                return list;
            }
            default:
                return object(depth + 1);
        }
    }
    json object(std::size_t depth = 0) {
        json made = json::object();
        for (std::size_t i = pick(5); i > 0; --i) made[text()] = tree(depth + 1);
        return made;
    }
    std::string changed(std::string made) {
        static const std::string tokens = "{}[]:,\"\\-+.eE0123456789truefalsn \t\x01\x80\xC3";
        for (std::size_t changes = 1 + pick(2); changes > 0 && !made.empty(); --changes) {
            const std::size_t at = pick(made.size());
            if (pick(3) == 0)
                made.erase(at, 1);
            else if (pick(2) == 0)
                made[at] = tokens[pick(tokens.size())];
            else
                made.insert(at, 1, tokens[pick(tokens.size())]);
        }
        return made;
    }

private:
    std::mt19937_64 random_;
};

}  // namespace

TEST_CASE("Any tree goes in as an Event or as a line, and comes back the same") {
    const std::uint64_t seed = test_seed();
    CAPTURE(seed);
    Trees trees(seed);
    Meter m(options());
    for (int i = 0; i < 400; ++i) {
        const json tree = trees.object();
        const bool escaped = trees.pick(2) == 0;
        CAPTURE(tree.dump());
        Event event{.id = "e" + std::to_string(i), .name = "a"};
        event.properties = tree;
        REQUIRE(m.record(event).status == ReceiptStatus::stored);
        REQUIRE(m.find(event.id).value().properties == tree);
        const std::string line = "{\"name\":\"a\",\"id\":\"" + event.id + "\",\"properties\":" + tree.dump(-1, ' ', escaped) + "}";
        REQUIRE(m.record_json(line).at(0).status == ReceiptStatus::duplicate);
    }
}

TEST_CASE("A line is JSON when nlohmann/json says so, but for the limits this library names") {
    const std::uint64_t seed = test_seed();
    CAPTURE(seed);
    Trees trees(seed);
    Meter m(options());
    int accepted = 0, refused = 0;
    for (int i = 0; i < 4000; ++i) {
        const std::string text = trees.changed(trees.object().dump());
        if (text.find('\n') != std::string::npos) continue;
        const json tree = json::parse(text, nullptr, false);
        const Receipt receipt = m.record_json("{\"name\":\"a\",\"properties\":" + text + "}").at(0);
        CAPTURE(text, receipt.field, receipt.reason);
        const bool object = !tree.is_discarded() && tree.is_object();
        if (receipt.status == ReceiptStatus::stored) {
            ++accepted;
            // A changed brace may also have closed properties early; then the rest were members of the line, which are all refused.
            REQUIRE(object);
            REQUIRE(m.find(receipt.id).value().properties == tree);
        } else {
            ++refused;
            REQUIRE(receipt.status == ReceiptStatus::refused);
            const bool limit = receipt.reason.find("stands twice") != std::string::npos || receipt.reason.find("38 digits") != std::string::npos ||
                               receipt.reason.find("NUL") != std::string::npos;
            REQUIRE((!object || limit));
        }
    }
    CHECK(accepted > 300);
    CHECK(refused > 300);
}

TEST_CASE("Exactly what Unicode calls UTF-8 is accepted") {
    Meter m(options());
    const auto valid = [](const std::string& text) {  // nlohmann/json writes valid UTF-8 only
        try {
            json(text).dump();
            return true;
        } catch (const json::exception&) {
            return false;
        }
    };
    std::vector<std::string> texts;
    for (int a = 0x80; a < 0x100; ++a) {
        const std::string first(1, static_cast<char>(a));
        texts.push_back(first);
        for (const int b : {0x00, 0x7F, 0x80, 0x8F, 0x90, 0x9F, 0xA0, 0xBF, 0xC0, 0xFF}) {
            const std::string second = first + static_cast<char>(b);
            texts.push_back(second);
            for (const int c : {0x7F, 0x80, 0xBF, 0xC0}) {
                texts.push_back(second + static_cast<char>(c));
                texts.push_back(second + static_cast<char>(c) + '\x80');
                texts.push_back(second + static_cast<char>(c) + "\xBF.");
            }
        }
    }
    std::vector<Event> events;
    std::string lines;
    for (const std::string& text : texts) {
        events.push_back({.name = "a" + text});
        lines += "{\"name\":\"a" + text + "\"}\n";
    }
    const auto receipts = m.record(events), line_receipts = m.record_json(lines);
    REQUIRE(line_receipts.size() == texts.size());
    for (std::size_t i = 0; i < texts.size(); ++i) {
        CAPTURE(i, json(std::vector<unsigned char>(texts[i].begin(), texts[i].end())).dump());
        const bool expected = valid(texts[i]) && texts[i].find('\0') == std::string::npos;
        REQUIRE((receipts[i].status == ReceiptStatus::stored) == expected);
        REQUIRE((line_receipts[i].status == ReceiptStatus::stored) == expected);
    }
}

TEST_CASE("Escapes are decoded in keys and texts, half a pair is refused") {
    Meter m(options());
    const auto receipts = m.record_json(
        R"({"id":"x","name":"\u0041\"\\\/\b\f\n\r\t\u20ac\ud83d\ude00","\u0063ustomer":"c","properties":{"\u006bey":"\u0041","a\"b":1}}
{"name":"\ud83d"}
{"name":"\ude00"}
{"name":"\ud83d\u0041"}
{"name":"\ud83dx"}
{"name":"\u00g0"}
{"name":"\u00"})");
    REQUIRE(receipts.size() == 7);
    for (std::size_t i = 1; i < receipts.size(); ++i) CHECK(receipts[i].status == ReceiptStatus::refused);
    const Event event = m.find("x").value();
    CHECK(event.name == "A\"\\/\b\f\n\r\t\xE2\x82\xAC\xF0\x9F\x98\x80");
    CHECK(event.customer == "c");
    CHECK(m.list({.filter = Filter::equals("key", "A")}).events.size() == 1);
    CHECK(m.list({.filter = Filter::equals("a\"b", 1)}).events.size() == 1);
}

TEST_CASE("Paths lead through objects; arrays and empty objects are values; properties. tells a property from a field") {
    Meter m(options());
    m.record_json(
        R"({"id":"x","name":"a","customer":"field","properties":{"customer":"property","a":{"b":{"c":1},"d":[1,2],"e":{}},"p.q":2,"properties":{"z":3}}})");
    const auto matches = [&](const std::string& field, const json& value) {
        return m.list({.filter = Filter::equals(field, value)}).events.size() == 1;
    };
    CHECK(matches("customer", "field"));
    CHECK(matches("properties.customer", "property"));
    CHECK(matches("a.b.c", 1));
    CHECK(matches("properties.a.b.c", 1));
    CHECK(matches("p.q", 2));
    CHECK(matches("a.d", "[1,2]"));
    CHECK(matches("a.e", "{}"));
    CHECK(matches("properties.properties.z", 3));
    CHECK_FALSE(matches("a.b.c.d", 1));
    CHECK(m.list({.filter = Filter::where("a.d.0", Operator::exists, false)}).events.size() == 1);
}
