// Expressions: the engine of section 3 under both dialects, and what books make of them. Values are those that the vendors' own sources lead to.
#include "inside.hpp"

#include "support/noon.hpp"
#include "support/scratch.hpp"

#include <random>

using namespace meter;
using namespace meter_test;

namespace {

std::string result_of(const Dialect& dialect, std::string_view text, json properties = json::object()) {
    const Event event{.name = "call", .properties = std::move(properties)};
    try {
        return evaluate(ExpressionCompiler(text, dialect, "e").compile(), event, Timestamp::parse("2024-01-01T01:02:03.9Z"));
    } catch (const Error& error) {
        return (error.field().empty() ? "! " : "refused ") + error.reason();
    }
}

std::string sql(std::string_view text, json properties = json::object()) { return result_of(lago::expressions, text, std::move(properties)); }
std::string cel(std::string_view text, json properties = json::object()) { return result_of(flexprice::expressions, text, std::move(properties)); }

ErrorCode code_of(const Dialect& dialect, const std::string& text) {
    try {
        ExpressionCompiler(text, dialect, "e").compile();
    } catch (const Error& error) {
        return error.code();
    }
    FAIL("accepted: " << text);
    return ErrorCode::io;
}

std::string times(std::string_view part, std::size_t count) {
    std::string all;
    for (std::size_t i = 0; i < count; ++i) all += part;
    return all;
}

}  // namespace

TEST_CASE("Lago's expressions: precedence, signs, numbers") {
    CHECK(sql("1 + 2 * 3") == "7.0");
    CHECK(sql("(1 + 2) * 3") == "9.0");
    CHECK(sql("10 - 4 - 3") == "3.0");
    CHECK(sql("100 / 10 / 4") == "2.5");
    CHECK(sql("2 - -3") == "5.0");
    CHECK(sql("-2 * -3") == "6.0");
    CHECK(sql("-(1 + 2)*2") == "-6.0");
    CHECK(sql("0 * -1") == "0.0");
    CHECK(sql("12.50") == "12.5");
    CHECK(sql("   7   ") == "7.0");
    CHECK(sql("(123 - event.properties.property_1) / 10", {{"property_1", "1.23"}}) == "12.177");
    CHECK(sql("event.timestamp") == "1704070923.0");
    CHECK(sql("event.timestamp - event.properties.started_at", {{"started_at", 1704070000}}) == "923.0");
    CHECK(sql("event.properties.a + event.properties.b", {{"a", "1"}, {"b", "2"}}) == "3.0");
    CHECK(sql("event.properties.a + event.properties.a", {{"a", 0.1}}) == "0.2");
    // The storage example of Lago's guide.
    CHECK(sql("event.properties.gb * event.properties.replicas * (event.properties.ended_at - event.properties.started_at) / 3600",
              {{"gb", "1.5"}, {"replicas", 2}, {"started_at", 0}, {"ended_at", 5400}}) == "4.5");
}

TEST_CASE("Lago's expressions: functions, in three spellings") {
    CHECK(sql("ROUND(14.2355)") == "14.0");
    CHECK(sql("Round(14.2355, 2)") == "14.24");
    CHECK(sql("round(14.2355, -1)") == "10.0");
    CHECK(sql("round(-2.5)") == "-3.0");
    CHECK(sql("round(2.45, 1.9)") == "2.5");
    CHECK(sql("FLOOR(16.2365, 2)") == "16.23");
    CHECK(sql("floor(16.2365, -1)") == "10.0");
    CHECK(sql("floor(-0.5)") == "-1.0");
    CHECK(sql("CEIL(14.2345, 2)") == "14.24");
    CHECK(sql("ceil(14.2345, -1)") == "20.0");
    CHECK(sql("ceil(-0.5)") == "0.0");
    CHECK(sql("round(1, 1000)") == "1.0");
    CHECK(sql("LEAST(3, 1 + 1, 2.5)") == "2.0");
    CHECK(sql("Greatest(event.properties.memory_mb, 10.0)", {{"memory_mb", "9.99"}}) == "10.0");
    CHECK(sql("least(4)") == "4.0");
    CHECK(sql("round(ceil(floor(1.99) + 0.2) * 1.126, 2)") == "2.25");
    CHECK(sql("round (1.5)") == "2.0");
}

TEST_CASE("Lago's expressions: texts, and numbers written into them") {
    const json properties{{"user", "u1"}, {"id", "007"}, {"price", "1.50"}, {"none", nullptr}, {"yes", true}, {"month", "2024_01"}, {"n", 5}};
    CHECK(sql("'test'") == "test");
    CHECK(sql("'12'") == "12");
    CHECK(sql("concat(event.properties.user, '-', 'suffix')", properties) == "u1-suffix");
    CHECK(sql("CONCAT(event.properties.user, '-', event.code)", properties) == "u1-call");
    CHECK(sql("concat('test', '-', round(123))") == "test-123");
    CHECK(sql("concat(event.properties.id, '/', event.properties.price)", properties) == "7/1.50");  // numbers, with the decimals they had
    CHECK(sql("concat(event.properties.n, event.properties.none, event.properties.yes)", properties) == "5true");
    CHECK(sql("concat(event.properties.month)", properties) == "202401");  // BigDecimal passes over underscores
    CHECK(sql("concat(event.properties.price + 1, '|', event.properties.price * event.properties.price)", properties) == "2.50|2.2500");
    CHECK(sql("concat(round(3, 2), '|', round(12.345, -1), '|', 1 / 8, '|', 2.00 / 2)") == "3.00|10|0.125|1.00");
    CHECK(sql("concat(0.0000001, '|', 0.000001, '|', -0.00000123)") == "1E-7|0.000001|-0.00000123");
    CHECK(sql("concat(0.000000120, '|', 0.0000000)") == "1.20E-7|0E-7");
    CHECK(sql("concat('a')") == "a");
    CHECK(sql("event.properties.id", properties) == "7.0");
    CHECK(sql("event.properties.e + 0", {{"e", "1e3"}}) == "1000.0");
    CHECK(sql("event.properties.e + 0", {{"e", "+.5"}}) == "0.5");
    CHECK(sql("event.properties.e", {{"e", "_1"}}) == "_1");
    CHECK(sql("event.properties.e", {{"e", " 1"}}) == " 1");
    CHECK(sql("event.properties.e", {{"e", "1e"}}) == "1e");
}

TEST_CASE("Lago's expressions come to nothing for events that Lago refuses") {
    CHECK(sql("event.properties.a + event.properties.b", {{"a", "1"}}) == "! Variable: b not found");
    CHECK(sql("'1' + 1") == "! Expected a decimal");
    CHECK(sql("-event.properties.a", {{"a", "x"}}) == "! Expected a decimal");
    CHECK(sql("event.properties.a * 2", {{"a", true}}) == "! Expected a decimal");
    CHECK(sql("event.properties.a * 2", {{"a", nullptr}}) == "! Expected a decimal");
    CHECK(sql("event.code + 1") == "! Expected a decimal");
    CHECK(sql("round(1, 'x')") == "! Expected a decimal");
    CHECK(sql("round(1, 99999999999999999999)") == "! Expected a decimal");
    CHECK(sql("greatest(1, 'x')") == "! Expected a decimal");
    CHECK(sql("1 / event.properties.a", {{"a", "0.00"}}) == "! Division by zero");
    CHECK(sql("0 / 0") == "! Division by zero");
    CHECK(sql("event.properties.a * event.properties.a", {{"a", "1e20"}}) == "! the exact result needs more than 38 digits or 76 decimals");
    CHECK(sql("event.properties.a + event.properties.a", {{"a", "9e37"}}) == "! the exact result needs more than 38 digits or 76 decimals");
}

TEST_CASE("Lago's expressions keep 37 digits of what has more") {
    CHECK(sql("round(1 / 3 * 3 * (1 / 7) * 7, 30)") == "1.0");
    CHECK(sql("2 / 3") == "0.66666666666666666666666666666666666667");
    CHECK(sql("event.properties.a * event.properties.b", {{"a", "1.2345678901234567890123"}, {"b", "9.8765432109876543210987"}}) ==
          "12.193263113702179522617971343362968602");
    CHECK(sql("event.properties.a + event.properties.b", {{"a", "10000000000000000000000000000000"}, {"b", "0.123456789"}}) ==
          "10000000000000000000000000000000.12346");
    CHECK(sql("event.properties.a * event.properties.a", {{"a", "1e-40"}}) == "0.0");
    CHECK(sql("event.properties.a * event.properties.b", {{"a", "1e20"}, {"b", "1e17"}}) == "10000000000000000000000000000000000000.0");
}

TEST_CASE("Bad Lago expressions are refused, with the place") {
    CHECK(sql("") == "refused at 1: ends too early");
    CHECK(sql("1 +") == "refused at 4: ends too early");
    CHECK(sql("1 + * 2") == "refused at 5: \"*\" is not expected");
    CHECK(sql("(1 + 2") == "refused at 7: ends too early");
    CHECK(sql("1 + 2)") == "refused at 6: \")\" is not expected");
    CHECK(sql("1 2") == "refused at 3: \"2\" is not expected");
    CHECK(sql("1.1.1") == "refused at 4: \".\" is not expected");
    CHECK(sql(".5") == "refused at 1: \".\" is not expected");
    CHECK(sql("1.") == "refused at 2: \".\" is not expected");
    CHECK(sql("1e3") == "refused at 2: \"e3\" is not expected");
    CHECK(sql("--1") == "refused at 2: \"-\" is not expected");
    CHECK(sql("+1") == "refused at 1: \"+\" is not expected");
    CHECK(sql("1 % 2") == "refused at 3: \"%\" is not expected");
    CHECK(sql("1 < 2") == "refused at 3: \"<\" is not expected");
    CHECK(sql("1 ? 2 : 3") == "refused at 3: \"?\" is not expected");
    CHECK(sql("1\t+ 2") == "refused at 2: \"?\" is not expected");
    CHECK(sql("concat('a', 'b)") == "refused at 13: has no second quote");
    CHECK(sql("\"a\"") == "refused at 1: \"\"\" is not expected");
    CHECK(sql("a + 1") == "refused at 1: \"a\" is not the name of a property");
    CHECK(sql("event.properties. a") == "refused at 1: \"event.properties.\" is not the name of a property");
    CHECK(sql("event.properties._a") == "refused at 1: \"event.properties._a\" is not the name of a property");
    CHECK(sql("event.properties.a.b") == "refused at 1: \"event.properties.a.b\" is not the name of a property");
    CHECK(sql("event.propertiesa") == "refused at 1: \"event.propertiesa\" is not the name of a property");
    CHECK(sql("event.codes") == "refused at 1: \"event.codes\" is not the name of a property");
    CHECK(sql("round()") == "refused at 7: \")\" is not expected");
    CHECK(sql("1 + round(1, 2, 3)") == "refused at 5: \"round\" takes another number of arguments");
    CHECK(sql("concat(1,)") == "refused at 10: \")\" is not expected");
    CHECK(sql("concat(1") == "refused at 9: ends too early");
    CHECK(sql("rOUND(1)") == "refused at 1: \"rOUND\" is not a function known here");
    CHECK(sql("abs(1)") == "refused at 1: \"abs\" is not a function known here");
    CHECK(sql("true") == "refused at 1: \"true\" is not the name of a property");
    CHECK(sql(times("9", 39)) == "refused at 1: has more than 38 digits");
    CHECK(code_of(lago::expressions, "1 +") == ErrorCode::bad_value);
    CHECK(code_of(lago::expressions, "abs(1)") == ErrorCode::unsupported);
    CHECK(code_of(lago::expressions, times("9", 39)) == ErrorCode::overflow);
}

TEST_CASE("Depth and length of an expression have an end") {
    CHECK(sql(times("(", 100) + "1" + times(")", 100)) == "1.0");
    CHECK(sql(times("(", 101) + "1" + times(")", 101)) == "refused at 102: is nested too deep");
    CHECK(sql("1" + times("+1", 2000)) == "2001.0");
    CHECK(sql(times("round(", 100) + "1.5" + times(")", 100)) == "2.0");
    CHECK(cel("a + " + times("-", 2001) + "1") == "-1");
    CHECK(cel("a > 0 ? 1 : " + times("a > 0 ? 1 : ", 99) + "2") == "2");
    CHECK(cel("a > 0 ? 1 : " + times("a > 0 ? 1 : ", 120) + "2").ends_with("is nested too deep"));
    CHECK(code_of(lago::expressions, times("(", 4096)) == ErrorCode::bad_value);
    CHECK(code_of(lago::expressions, times(" ", limits::expression_bytes) + "1") == ErrorCode::too_large);
}

TEST_CASE("CEL expressions compute as FlexPrice does") {
    // FlexPrice's own cases (cel_evaluator_test.go), and its guide's.
    CHECK(cel("token * duration * pixel", {{"token", 10}, {"duration", 3}, {"pixel", 100}}) == "3000");
    CHECK(cel("double(duration_ms) / 1000.0", {{"duration_ms", 5000}}) == "5");
    CHECK(cel("total / 4", {{"total", 10}}) == "2.5");
    CHECK(cel("a + b", {{"a", 10}}) == "10");
    CHECK(cel("a + b") == "0");
    CHECK(cel("input_tokens * 2 + output_tokens", {{"input_tokens", 10}, {"output_tokens", 5}}) == "25");
    CHECK(cel("tokens * 3", {{"tokens", " 2\n"}}) == "6");
    CHECK(cel("amount * 1.0", {{"amount", "5.5"}}) == "5.5");
    CHECK(cel("ceil(duration_ms / 1000)", {{"duration_ms", 8100}}) == "9");
    CHECK(cel("duration <= 10 ? 0 : ceil(duration / 15) * 15", {{"duration", 18}}) == "30");
    CHECK(cel("duration <= 10 ? 0 : ceil(duration / 15) * 15", {{"duration", 10}}) == "0");
    CHECK(cel("min(api_calls, 1000)", {{"api_calls", 4200}}) == "1000");
    // In binary, as it does.
    CHECK(cel("a + b", {{"a", 0.1}, {"b", 0.2}}) == "0.30000000000000004");
    CHECK(cel("a / 3", {{"a", 1000000}}) == "333333.3333333333");
    CHECK(cel("pow(a, 2) + sqrt(a) + abs(0 - a)", {{"a", 9}}) == "93");
    CHECK(cel("log(a)", {{"a", 1}}) == "0");
    CHECK(cel("round(a) + floor(a)", {{"a", -2.5}}) == "-6");
    CHECK(cel("a * 1e-60 * .5", {{"a", 1}}) == "0");
    CHECK(cel("_a1 + 2E2", {{"_a1", 1}}) == "201");
}

TEST_CASE("CEL expressions: precedence and conditions") {
    CHECK(cel("a - 1 - 2 * 3 + 8 / 4", {{"a", 10}}) == "5");
    CHECK(cel("--a - -1", {{"a", 3}}) == "4");
    CHECK(cel("!(a > 1) ? 1 : 2", {{"a", 3}}) == "2");
    CHECK(cel("!!(a > 1) ? 1 : 2", {{"a", 3}}) == "1");
    CHECK(cel("a > 1 || a > 2 && false ? 1 : 2", {{"a", 3}}) == "1");
    CHECK(cel("a + 1 == 4 && a * 2 != 7 ? a : 0", {{"a", 3}}) == "3");
    CHECK(cel("a > 1 == true ? 1 : 2", {{"a", 3}}) == "1");
    CHECK(cel("a < 1 ? 1 : a < 2 ? 2 : a < 3 ? 3 : 4", {{"a", 2.5}}) == "3");
    CHECK(cel("(a >= 2 ? a : 0) + 1", {{"a", 2}}) == "3");
    CHECK(cel("b == 0 ? 0 : a / b", {{"a", 2}}) == "0");
    CHECK(cel("min(a / b, 100)", {{"a", 2}}) == "100");  // infinity is a number on the way
}

TEST_CASE("CEL expressions come to nothing where FlexPrice skips the event") {
    CHECK(cel("a * b", {{"a", 2}, {"b", "abc"}}) == "! property \"b\" is not a number");
    CHECK(cel("a", {{"a", nullptr}}) == "! property \"a\" is not a number");
    CHECK(cel("a", {{"a", true}}) == "! property \"a\" is not a number");
    CHECK(cel("a", {{"a", ""}}) == "! property \"a\" is not a number");
    CHECK(cel("a", {{"a", json::array({1})}}) == "! property \"a\" is not a number");
    CHECK(cel("true ? 1 : a", {{"a", "x"}}) == "! property \"a\" is not a number");
    for (const char* text : {"a / b", "0 / b", "sqrt(0 - a)", "log(b)", "pow(a, 1e10)", "max(0 / b, 1)"})
        CHECK(cel(text, {{"a", 10}}) == "! NaN and infinity are not decimal numbers");
    CHECK(cel("a * 1e37", {{"a", 100}}).starts_with("! "));
}

TEST_CASE("Bad and unknown CEL expressions are refused, with the place") {
    CHECK(cel("") == "refused at 1: ends too early");
    CHECK(cel("a + b +") == "refused at 8: ends too early");
    CHECK(cel("1 + 2") == "refused names no property");
    CHECK(cel("a > 1") == "refused does not come to a number");
    CHECK(cel("a && 1") == "refused at 3: \"&&\" is not for operands of these types");
    CHECK(cel("-(a > 1)") == "refused at 1: \"-\" is not for operands of these types");
    CHECK(cel("(a > 1) == a ? 1 : 2") == "refused at 9: \"==\" is not for operands of these types");
    CHECK(cel("a < 1 < 2 ? 1 : 2") == "refused at 7: \"<\" is not for operands of these types");
    CHECK(cel("a ? 1 : 2") == "refused at 3: needs a condition before it");
    CHECK(cel("a > 1 ? 1 : true") == "refused at 13: must be of the type before the colon");
    CHECK(cel("a > 1 ? 1") == "refused at 10: ends too early");
    CHECK(cel("max(a)") == "refused at 1: \"max\" takes another number of arguments");
    CHECK(cel("max(a, 1, 2)") == "refused at 1: \"max\" takes another number of arguments");
    CHECK(cel("while + 1") == "refused at 1: \"while\" is a reserved word");
    CHECK(cel("a & 1") == "refused at 3: \"&\" is not expected");
    CHECK(cel("a = 1") == "refused at 3: \"=\" is not expected");
    CHECK(cel("a // 2") == "refused at 4: \"/\" is not expected");
    CHECK(cel("5.") == "refused at 2: \".\" is not known here");
    for (const char* text : {"a.b + 1", "a % 2", "a + \"x\"", "a + 'x'", "a + [1]", "{a: 1}", "tan(a)", "int(a)", "MAX(a, 1)"})
        CHECK(code_of(flexprice::expressions, text) == ErrorCode::unsupported);
    for (const char* text : {"a +", "a b", "a && 1", "1 + 2", "null", "a in b", "0x10 + a", "1u + a"})
        CHECK(code_of(flexprice::expressions, text) == ErrorCode::bad_value);
}

// --- against a plain evaluator of trees ---

namespace {

// A random tree and what it comes to, written with as few parentheses as it may have, or some more.
struct Tree {
    std::string text;
    int precedence;  // of its outermost operator; 9 for none
    double value;
    bool condition = false;
};

class Trees {
public:
    Trees(unsigned seed, bool conditions) : engine_(seed), conditions_(conditions) {}
    std::size_t below(std::size_t count) { return engine_() % count; }
    json properties() {
        json made;
        for (std::size_t i = 0; i < values_.size(); ++i) {
            values_[i] = static_cast<double>(below(41)) / 4 - 5;
            made[name(i)] = values_[i];
        }
        return made;
    }
    Tree number(std::size_t depth) {
        switch (depth == 0 ? below(2) : below(conditions_ ? 7 : 6)) {
            case 0: {
                const auto i = below(values_.size());
                return {(conditions_ ? "" : "event.properties.") + name(i), 9, values_[i]};
            }
            case 1: {
                const auto quarters = below(40);
                return {Decimal::scaled(static_cast<std::int64_t>(quarters * 25), 2).to_string(), 9, static_cast<double>(quarters) / 4};
            }
            case 2: {
                const Tree part = number(depth - 1);
                return {"-" + spaced(inside(part, 8)), 7, -part.value};
            }
            case 3: {
                const Tree part = number(depth - 1);
                const auto which = below(3);
                const char* const names[] = {"ceil(", "floor(", "round("};
                return {names[which] + part.text + ")", 9,
                        which == 0   ? std::ceil(part.value)
                        : which == 1 ? std::floor(part.value)
                                     : std::round(part.value)};
            }
            case 6: {
                const Tree asked = condition(depth - 1), yes = number(depth - 1), no = number(depth - 1);
                return {"(" + inside(asked, 1) + " ? " + inside(yes, 1) + ":" + no.text + ")", 9, asked.value != 0 ? yes.value : no.value};
            }
            default:
                return binary(number(depth - 1), number(depth - 1));
        }
    }

private:
    static std::string name(std::size_t i) { return std::string(1, static_cast<char>('p' + i)); }
    std::string spaced(std::string text) { return std::string(below(3), ' ') + std::move(text) + std::string(below(2), ' '); }
    std::string inside(const Tree& part, int least) { return part.precedence < least || below(8) == 0 ? "(" + part.text + ")" : part.text; }
    Tree binary(const Tree& a, const Tree& b) {
        const auto which = below(3);
        const int precedence = which == 2 ? 5 : 4;
        return {inside(a, precedence) + spaced(std::string(1, "+-*"[which])) + inside(b, precedence + 1), precedence,
                which == 0   ? a.value + b.value
                : which == 1 ? a.value - b.value
                             : a.value * b.value};
    }
    Tree condition(std::size_t depth) {
        if (depth > 0 && below(3) == 0) {
            const Tree a = condition(depth - 1), b = condition(depth - 1);
            const bool both = below(2) == 0;
            const int precedence = both ? 2 : 1;
            const bool holds = both ? a.value != 0 && b.value != 0 : a.value != 0 || b.value != 0;
            return {inside(a, precedence) + (both ? " && " : "||") + inside(b, precedence + 1), precedence, holds ? 1.0 : 0.0, true};
        }
        const Tree a = number(depth), b = number(depth);
        const char* const signs[] = {"<", "<=", ">", ">=", "==", "!="};
        const auto which = below(6);
        const bool holds[] = {a.value<b.value, a.value <= b.value, a.value> b.value, a.value >= b.value, a.value == b.value, a.value != b.value};
        return {inside(a, 4) + spaced(signs[which]) + inside(b, 4), 3, holds[which] ? 1.0 : 0.0, true};
    }
    std::mt19937 engine_;
    bool conditions_;
    std::array<double, 4> values_{};
};

// Quarters multiplied a few times are exact in binary, too.
void compare_at_random(bool conditions) {
    for (unsigned seed = 0; seed < 600; ++seed) {
        Trees trees(seed, conditions);
        const json properties = trees.properties();
        const Tree tree = trees.number(1 + seed % 4);
        if (std::fabs(tree.value) > 1e9) continue;
        CAPTURE(seed, tree.text, properties.dump());
        const std::string result = conditions ? cel(tree.text + " + 0 * p", properties) : sql(tree.text, properties);
        REQUIRE(Decimal(result) == Decimal::from_double(tree.value));
    }
}

}  // namespace

TEST_CASE("Random expressions come to what a plain evaluator of their trees says") {
    compare_at_random(false);
    compare_at_random(true);
}

// --- through the face: Lago ---

namespace {

json lago_catalogue(json metric, json charge = json::object()) {
    charge.update({{"billable_metric_code", metric["code"]}});
    if (!charge.contains("charge_model")) charge["charge_model"] = "standard";
    if (!charge.contains("properties")) charge["properties"] = {{"amount", "10"}};
    return {{"plan", {{"code", "pro"}, {"amount_currency", "EUR"}, {"interval", "monthly"}, {"charges", {charge}}}}, {"billable_metrics", {metric}}};
}

json storage_metric(const char* type = "sum_agg") {
    return {{"code", "storage"}, {"aggregation_type", type}, {"field_name", "used"}, {"expression", "event.properties.gb * event.properties.hours"}};
}

Event stored_gb(json properties) {
    return {.name = "storage", .customer = "acme", .subscription = "s1", .timestamp = noon, .properties = std::move(properties)};
}

void seal_all(Meter& m) { m.record(std::vector<Event>(64, {.name = "filler", .timestamp = noon})); }

// The same before and after sealing.
template <class Ask>
void sealed_or_not(Meter& m, Ask&& ask) {
    ask();
    seal_all(m);
    ask();
}

std::string reason_of_refusal(std::function<void()> act) {
    try {
        act();
    } catch (const Error& error) {
        return error.field() + ": " + error.reason();
    }
    return "none";
}

}  // namespace

TEST_CASE("A Lago metric with an expression is measured, priced and grouped by what it comes to") {
    Meter m(options_for());
    m.load(Book::lago(lago_catalogue(storage_metric())));
    m.record({stored_gb({{"gb", "1.5"}, {"hours", 2}}), stored_gb({{"gb", 1}, {"hours", "3"}, {"used", "99"}}),
              stored_gb({{"gb", 0.1}, {"hours", 0.2}}), stored_gb({{"gb", 5}}), stored_gb({{"gb", "many"}, {"hours", 1}}), stored_gb({{"used", 7}})});
    sealed_or_not(m, [&] {
        const auto whole = m.aggregate({.metric = "storage"}).rows;
        REQUIRE(whole.size() == 1);
        CHECK(whole[0].value == Decimal("6.02"));
        CHECK(whole[0].events == 3);
        const auto groups = m.aggregate({.metric = "storage", .group_by = {"properties.used"}}).rows;
        REQUIRE(groups.size() == 2);
        CHECK(groups[0].group[0] == "0.02");
        CHECK(groups[1].group[0] == "3.0");
        CHECK(groups[1].value == 6);
        CHECK(m.aggregate({.metric = "storage", .filter = Filter::equals("used", "3.0")}).rows.at(0).events == 2);
        CHECK(m.aggregate({.metric = "storage", .filter = Filter::equals("used", "99")}).rows.empty());
        CHECK(m.aggregate({.metric = "storage", .filter = Filter::where("used", Operator::exists, true)}).rows.at(0).events == 3);
        CHECK(m.aggregate({.metric = "storage", .filter = Filter::where("used", Operator::exists, false)}).rows.empty());
        const auto bill = m.usage({.subscription = "s1"});
        CHECK(bill.fees.at(0).units == Decimal("6.02"));
        CHECK(bill.fees.at(0).events == 3);
        CHECK(bill.amount_cents == 6020);
        CHECK(m.analytics({.metrics = {"storage"}, .subscription = "s1"}).items.at(0).usage == Decimal("6.02"));
        const Book other = Book::lago(lago_catalogue(storage_metric(), {{"properties", {{"amount", "20"}}}}));
        const auto compared = m.compare(m.books().at(0).book, other, this_month(noon));
        CHECK(compared.a == 6020);
        CHECK(compared.b == 12040);
    });
    CHECK(m.list({.names = {"storage"}, .filter = Filter::equals("used", "99")}).events.size() == 1);  // what was recorded stays
}

TEST_CASE("Lago's other aggregations look at what an expression comes to") {
    const auto value = [](const char* type, const char* expression, std::vector<json> list) {
        json metric = storage_metric(type);
        metric["expression"] = expression;
        Meter m(options_for());
        m.load(Book::lago(lago_catalogue(metric)));
        Timestamp time = noon;
        for (json& each : list) {
            Event event = stored_gb(std::move(each));
            event.timestamp = time;
            time = time + std::chrono::minutes(1);
            m.record(event);
        }
        std::string all;
        sealed_or_not(m, [&] {
            const auto rows = m.aggregate({.metric = "storage", .period = this_month(noon)}).rows;
            all += all.empty() ? "" : " ";
            all += rows.empty() ? "none" : rows[0].value.to_string() + "/" + std::to_string(rows[0].events);
        });
        return all;
    };
    const std::vector<json> numbers{{{"a", 1}, {"b", 2}}, {{"a", "4"}, {"b", 1}}, {{"a", 2}}, {{"a", 1}, {"b", "2.0"}}};
    CHECK(value("max_agg", "event.properties.a + event.properties.b", numbers) == "5/3 5/3");
    CHECK(value("latest_agg", "event.properties.a - event.properties.b", numbers) == "0/3 0/3");
    CHECK(value("unique_count_agg", "event.properties.a + event.properties.b", numbers) == "2/3 2/3");
    CHECK(value("count_agg", "event.properties.a + event.properties.b", numbers) == "3/3 3/3");
    CHECK(value("sum_agg", "CONCAT(event.properties.a, 'x')", numbers) == "none none");  // texts that are no numbers
    CHECK(value("unique_count_agg", "CONCAT(event.properties.a, '-', event.properties.b)", numbers) == "3/3 3/3");
    CHECK(value("sum_agg", "event.timestamp - event.properties.a", {{{"a", noon.micros() / 1000000 - 5}}}) == "5/1 5/1");
    // A seat that is added and removed.
    CHECK(value("unique_count_agg", "CONCAT(event.properties.a, event.code)",
                {{{"a", "x"}}, {{"a", "y"}}, {{"a", "x"}, {"operation_type", "remove"}}}) == "1/3 1/3");
    Meter m(options_for());
    json metric = storage_metric("unique_count_agg");
    metric["expression"] = "CONCAT(event.properties.a, '-', 1.50)";
    m.load(Book::lago(lago_catalogue(metric)));
    m.record({stored_gb({{"a", "x"}}), stored_gb({{"a", 2}}), stored_gb({{"b", 2}})});
    const auto active = m.active_values({.metric = "storage"});
    REQUIRE(active.total == 2);
    CHECK(active.values[0].value == "2-1.50");
    CHECK(active.values[1].value == "x-1.50");
}

TEST_CASE("A Lago expression's estimates and fees in advance, and limits by it") {
    Meter m(options_for());
    const json model{{"pay_in_advance", true},
                     {"charge_model", "percentage"},
                     {"properties", {{"rate", "10"}, {"free_units_per_events", 1}, {"pricing_group_keys", {"used"}}}}};
    const json plain{{"pay_in_advance", true}, {"filters", {{{"values", {{"used", {"3.0"}}}}, {"properties", {{"amount", "1"}}}}}}};
    json metric = storage_metric();
    metric["filters"] = json::array({{{"key", "used"}, {"values", {"3.0"}}}});
    m.load(Book::lago(lago_catalogue(metric, plain)));
    const auto cents = [&](json properties) { return m.estimate_fees(stored_gb(std::move(properties))).amount_cents; };
    CHECK(cents({{"gb", 2}, {"hours", 2}}) == 4000);
    CHECK(cents({{"gb", 1.5}, {"hours", "2"}, {"used", "1"}}) == 300);  // the filter's price
    CHECK(m.estimate_instant_fees(stored_gb({{"gb", 1.5}, {"hours", 2}})).amount_cents == 300);
    CHECK(reason_of_refusal([&] { cents({{"gb", 2}}); }) == "properties: expression_evaluation_failed: Variable: hours not found");
    CHECK(reason_of_refusal([&] {
              m.estimate_fees({stored_gb({{"gb", 2}, {"hours", 1}}), stored_gb({{"gb", "x"}, {"hours", 1}})});
          }) == "events[1].properties: expression_evaluation_failed: Expected a decimal");
    CHECK(reason_of_refusal([&] {
              m.estimate_instant_fees(stored_gb({{"gb", 2}}));
          }) == "properties: expression_evaluation_failed: Variable: hours not found");

    auto event = stored_gb({{"gb", 1.5}, {"hours", 2}});
    event.id = "in-filter";
    m.record(event);
    event = stored_gb({{"gb", 2}, {"hours", 2}});
    event.id = "outside";
    m.record(event);
    event = stored_gb({{"gb", 2}});
    event.id = "refused-there";
    m.record(event);
    sealed_or_not(m, [&] {
        CHECK(m.advance_fees("in-filter").amount_cents == 300);
        CHECK(m.advance_fees("outside").amount_cents == 4000);
        CHECK(m.advance_fees("refused-there").fees.empty());
        CHECK(m.advance_fees(UsageQuery{.subscription = "s1"}).amount_cents == 4300);
        CHECK(m.usage({.subscription = "s1"}).amount_cents == 4300);
    });

    const Limit limit{.metric = "storage", .units = Decimal(10), .scope = LimitScope::subscription};
    CHECK(m.record(stored_gb({{"gb", 1}, {"hours", 3}}), limit).status == ReceiptStatus::stored);
    const auto over = m.record(stored_gb({{"gb", "0.1"}, {"hours", 1}}), limit);
    CHECK(over.status == ReceiptStatus::over_limit);
    CHECK(over.limits.at(0).after == Decimal("10.1"));
    CHECK(m.record(stored_gb({{"gb", 1}}), limit).status == ReceiptStatus::stored);  // it adds nothing
    m.load(Book::lago(lago_catalogue(metric, model)));
    CHECK(m.advance_fees("in-filter").fees.at(0).group.at(0).second == "3.0");
}

TEST_CASE("A Lago dynamic charge takes the cents of events that its metric's expression takes") {
    Meter m(options_for());
    m.load(Book::lago(lago_catalogue(storage_metric(), {{"charge_model", "dynamic"}, {"properties", {{"pricing_group_keys", {"used"}}}}})));
    for (const json& properties : {json{{"gb", 1}, {"hours", 2}}, json{{"gb", 2}, {"hours", 1}}, json{{"gb", 2}}, json{{"gb", 4}, {"hours", 1}}}) {
        auto event = stored_gb(properties);
        event.precise_total_amount_cents = 150;
        m.record(event);
    }
    const auto bill = m.usage({.subscription = "s1"});
    REQUIRE(bill.fees.size() == 2);
    CHECK(bill.fees[0].amount_cents == 300);
    CHECK(bill.fees[0].units == 4);
    CHECK(bill.fees[1].amount_cents == 150);
}

TEST_CASE("An expression's metric is kept with its book, and delivery sends the event as it was recorded") {
    const Scratch scratch;
    {
        Meter m(options_for(scratch.path()));
        m.load(Book::lago(lago_catalogue(storage_metric())));
        m.record(stored_gb({{"gb", 2}, {"hours", 3}}));
    }
    struct Catcher final : Transport {
        HttpResponse exchange(const HttpRequest& request, std::chrono::milliseconds) override {
            body = request.body;
            HttpResponse response;
            response.status = 200;
            response.body = R"({"events":[{}]})";
            return response;
        }
        std::string body = {};
    };
    const auto catcher = std::make_shared<Catcher>();
    Meter m(options_for(scratch.path()));
    const auto metrics = m.metrics();
    REQUIRE(metrics.size() == 1);
    CHECK(metrics[0].expression == "event.properties.gb * event.properties.hours");
    CHECK(metrics[0].property == "properties.used");
    CHECK(m.aggregate({.metric = "storage"}).rows.at(0).value == 6);
    m.connect(Upstream::lago({.api_key = "k", .transport = catcher}));
    const auto report = m.flush().upstreams.at(0);
    CAPTURE(report.sent, report.parked, report.returned, report.pending, report.held, report.status.reason);
    CHECK(report.delivered == 1);
    const json properties = json::parse(catcher->body).at("events").at(0).at("properties");
    CHECK(properties == json{{"gb", 2}, {"hours", 3}});
}

TEST_CASE("A metric of the app's own may have an expression") {
    Meter m(options_for());
    Metric metric{.code = "area", .event = "sheet", .aggregation = Aggregation::sum, .property = "area", .rules = "lago"};
    metric.expression = "event.properties.w * event.properties.h";
    m.define(metric);
    m.record({{.name = "sheet", .properties = {{"w", 2}, {"h", 3}}}, {.name = "sheet", .properties = {{"w", 1}}}});
    sealed_or_not(m, [&] { CHECK(m.aggregate({.metric = "area"}).rows.at(0).value == 6); });
    Metric counted{.code = "big", .event = "sheet", .filter = Filter::equals("area", "6.0"), .rules = "lago", .computed = "area"};
    counted.expression = metric.expression;
    CHECK(m.aggregate(counted).rows.at(0).value == 1);
    metric.expression = "event.properties.w *";
    CHECK(reason_of_refusal([&] { m.define(metric); }) == "metric.expression: at 21: ends too early");
    CHECK(reason_of_refusal([&] { m.aggregate(metric); }) == "metric.expression: at 21: ends too early");
    metric.rules = "";
    CHECK(reason_of_refusal([&] { m.define(metric); }) == "metric.expression: has no meaning by these rules");
    metric.rules = "flexprice_events";
    CHECK(reason_of_refusal([&] { m.define(metric); }) == "metric.expression: has no meaning by these rules");
    metric.rules = "lago";
    metric.property = "value";
    CHECK(reason_of_refusal([&] { m.define(metric); }) == "metric.property: must be a property, for the result of the expression to stand in");
    metric.expression.clear();
    metric.computed = "area";
    CHECK(reason_of_refusal([&] { m.define(metric); }) == "metric.computed: needs an expression");
}

TEST_CASE("An expression is found in files of many properties, too") {
    Meter m(options_for());
    m.load(Book::lago(lago_catalogue(storage_metric())));
    for (int i = 0; i < 80; ++i) {
        json properties{{"gb", 1}, {"hours", 2}};
        for (int k = 0; k < 30; ++k) properties["extra_" + std::to_string(i * 30 + k)] = k;
        m.record(stored_gb(properties));
    }
    CHECK(m.aggregate({.metric = "storage"}).rows.at(0).value == 160);
}

TEST_CASE("Expressions that cannot be are refused with the book, by path and place") {
    json metric = storage_metric();
    metric["expression"] = "1 + ";
    CHECK(reason_of_refusal([&] { Book::lago(lago_catalogue(metric)); }) == "billable_metrics[0].expression: at 5: ends too early");
    metric["expression"] = "sin(1)";
    CHECK(reason_of_refusal([&] { Book::lago(lago_catalogue(metric)); }) ==
          "billable_metrics[0].expression: at 1: \"sin\" is not a function known here");
    metric["expression"] = "";
    CHECK(reason_of_refusal([&] { Book::lago(lago_catalogue(metric)); }) == "none");
}

// --- through the face: FlexPrice ---

namespace {

json flexprice_catalogue(json aggregation, json more = json::object()) {
    json meter{{"id", "m"}, {"event_name", "call"}, {"aggregation", std::move(aggregation)}};
    meter.update(more);
    const json price{{"id", "p"}, {"type", "USAGE"}, {"meter_id", "m"}, {"currency", "usd"}, {"billing_model", "FLAT_FEE"}, {"amount", "2"}};
    return {{"meters", {meter}}, {"prices", {price}}};
}

std::string units_of_calls(json aggregation, const std::vector<json>& list, json more = json::object()) {
    Meter m(options_for());
    m.load(Book::flexprice(flexprice_catalogue(std::move(aggregation), std::move(more))));
    for (const json& properties : list) m.record({.name = "call", .customer = "acme", .timestamp = noon, .properties = properties});
    std::string all;
    sealed_or_not(m, [&] { all += (all.empty() ? "" : " ") + m.usage({.customer = "acme"}).fees.at(0).units.to_string(); });
    return all;
}

}  // namespace

TEST_CASE("A FlexPrice meter with an expression measures what it comes to for each event") {
    const std::vector<json> calls{{{"ms", 4200}}, {{"ms", "8100"}}, {{"ms", 500}}, {{"ms", "x"}}, {{"ms", nullptr}}};
    CHECK(units_of_calls({{"type", "SUM"}, {"expression", "ceil(ms / 1000)"}}, calls) == "15 15");
    CHECK(units_of_calls({{"type", "MAX"}, {"expression", " ceil(ms / 1000)\n"}}, calls) == "9 9");
    CHECK(units_of_calls({{"type", "AVG"}, {"expression", "ceil(ms / 1000)"}}, calls) == "5 5");
    CHECK(units_of_calls({{"type", "LATEST"}, {"expression", "ms * 2"}}, calls) == "1000 1000");
    CHECK(units_of_calls({{"type", "SUM"}, {"expression", "ceil(ms / 1000)"}, {"multiplier", "0.5"}}, calls) == "7.5 7.5");
    CHECK(units_of_calls({{"type", "SUM"}, {"expression", "1000 - ms"}}, calls) == "500 500");  // below 0 is 0, one by one
    CHECK(units_of_calls({{"type", "SUM"}, {"expression", "none + 1"}}, calls) == "5 5");       // missing is 0
    CHECK(units_of_calls({{"type", "SUM"}, {"expression", "ms / 3"}}, {{{"ms", 1}}, {{"ms", 2}}}) == "0.999999999999999 0.999999999999999");
    CHECK(units_of_calls({{"type", "SUM"}, {"expression", "1 / ms"}}, {{{"ms", 4}}, {{"ms", 0}}, json::object()}) == "0.25 0.25");
    CHECK(units_of_calls({{"type", "SUM"}, {"expression", "ms + 0"}}, calls, {{"filters", {{{"key", "ms"}, {"values", {"8100", "500"}}}}}}) ==
          "8600 8600");  // filters see the property
    CHECK(units_of_calls({{"type", "SUM"}, {"expression", "a > 1e20 ? 12345678901234567890 : a"}}, {{{"a", 1e21}}, {{"a", 0.25}}}) ==
          "12345678901234567000.25 12345678901234567000.25");
}

TEST_CASE("A FlexPrice expression's estimates take the event as metering would") {
    Meter m(options_for());
    m.load(Book::flexprice(flexprice_catalogue({{"type", "SUM"}, {"expression", "min(a, 10) * b"}, {"multiplier", "2"}})));
    const auto call = [](json properties) {
        return Event{.name = "call", .customer = "acme", .timestamp = noon, .properties = std::move(properties)};
    };
    const auto fees = m.estimate_fees(call({{"a", 12}, {"b", "1.5"}}));
    CHECK(fees.fees.at(0).units == 30);
    CHECK(fees.amount_cents == 6000);
    CHECK(m.estimate_instant_fees(call({{"a", 1}, {"b", 1}})).fees.at(0).units == 2);
    CHECK(reason_of_refusal([&] { m.estimate_fees(call({{"a", "x"}, {"b", 1}})); }) == "name: no price measures events named call");
    m.record(call({{"a", 3}, {"b", 1}}));
    CHECK(m.usage({.customer = "acme"}).fees.at(0).units == 6);
    const auto groups = m.aggregate({.metric = "flexprice:m", .group_by = {"properties.a"}}).rows;
    REQUIRE(groups.size() == 1);
    CHECK(groups[0].group[0] == "3");
    CHECK(m.inference_costs({m.list(ListQuery{}).events.at(0).id}).at(0) == Decimal("12000000000"));
}

TEST_CASE("A FlexPrice expression that cannot be is refused by path and place") {
    const auto refused = [](json aggregation) { return reason_of_refusal([&] { Book::flexprice(flexprice_catalogue(std::move(aggregation))); }); };
    CHECK(refused({{"type", "SUM"}, {"expression", "a +"}}) == "meters[0].aggregation.expression: at 4: ends too early");
    CHECK(refused({{"type", "SUM"}, {"expression", "a.b"}}) == "meters[0].aggregation.expression: at 2: \".\" is not known here");
    CHECK(refused({{"type", "COUNT"}, {"expression", "a"}}) == "meters[0].aggregation.expression: is for SUM, AVG, MAX and LATEST only");
    CHECK(refused({{"type", "SUM_WITH_MULTIPLIER"}, {"expression", "a"}, {"multiplier", "2"}}) ==
          "meters[0].aggregation.expression: is for SUM, AVG, MAX and LATEST only");
    CHECK(refused({{"type", "SUM"}, {"expression", " "}}) == "meters[0].aggregation.field: is required");
}
