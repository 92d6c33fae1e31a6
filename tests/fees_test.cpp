// Section 7: tiers, packages, rounding, lines.
#include "inside.hpp"

using namespace meter;

namespace {

Decimal number(const char* text) { return Decimal(text); }

// Tiers 0-10, 10-20, 20-... at the given rates, with flat parts.
std::vector<Tier> ladder() {
    return {{.above = 0, .up_to = Decimal(10), .rate = number("0.1"), .flat = 1, .from = 0},
            {.above = 10, .up_to = Decimal(20), .rate = number("0.05"), .flat = 2, .from = 11},
            {.above = 20, .up_to = {}, .rate = number("0.02"), .flat = 4, .from = 21}};
}

Decimal sum_of_lines(const Priced& priced) {
    Decimal sum;
    for (const auto& line : priced.lines) sum += line.amount;
    return sum;
}

// One unit of a hundredth after the other, the obvious way.
Decimal naive(const std::vector<Tier>& tiers, int hundredths) {
    Decimal sum = tiers.front().flat;
    std::size_t at = 0;
    for (int i = 1; i <= hundredths; ++i) {
        if (tiers[at].up_to && Decimal::scaled(i, 2) > *tiers[at].up_to) sum += tiers[++at].flat;
        sum += tiers[at].rate * Decimal::scaled(1, 2);
    }
    return sum;
}

struct RandomInput {
    std::uint64_t seed = std::random_device{}();
    std::mt19937_64 engine{seed};
    int below(int limit) { return static_cast<int>(engine() % static_cast<std::uint64_t>(limit)); }
    Decimal decimal(int limit, int scale) { return Decimal::scaled(below(limit), scale); }
    std::vector<Tier> tiers() {
        std::vector<Tier> list;
        Decimal above;
        const int count = 1 + below(6);
        for (int i = 0; i < count; ++i) {
            std::optional<Decimal> up_to;
            if (i + 1 < count) up_to = above + decimal(500, 2) + Decimal::scaled(1, 2);
            list.push_back({.above = above, .up_to = up_to, .rate = decimal(10000, 4), .flat = decimal(300, 2), .from = above});
            if (up_to) above = *up_to;
        }
        return list;
    }
};

}  // namespace

TEST_CASE("graduated tiers include their upper bound and add the flat part of each tier entered", "[fees]") {
    const auto amount = [](const char* units) { return graduated(ladder(), number(units)).amount; };
    CHECK(amount("0") == 1);
    CHECK(amount("10") == 2);
    CHECK(amount("10.5") == number("4.025"));
    CHECK(amount("11") == number("4.05"));
    CHECK(amount("20") == number("4.5"));
    CHECK(amount("25") == number("8.6"));
    CHECK(amount("-5") == number("0.5"));
    CHECK(graduated(ladder(), 25).lines.size() == 3);
    CHECK(graduated({}, 5).amount.is_zero());
}

TEST_CASE("units beyond a bounded last tier cost nothing", "[fees]") {
    auto tiers = ladder();
    tiers.pop_back();
    CHECK(graduated(tiers, 100).amount == graduated(tiers, 20).amount);
}

TEST_CASE("the tier walk agrees with counting unit by unit", "[fees]") {
    RandomInput random;
    CAPTURE(random.seed);
    for (int i = 0; i < 300; ++i) {
        const auto tiers = random.tiers();
        const int hundredths = random.below(3000);
        CAPTURE(i, hundredths);
        REQUIRE(graduated(tiers, Decimal::scaled(hundredths, 2)).amount == naive(tiers, hundredths));
    }
}

TEST_CASE("packages are begun, not filled", "[fees]") {
    const auto amount = [](const char* units) { return packages(number(units), 100, 5).amount; };
    CHECK(amount("0").is_zero());
    CHECK(amount("0.5") == 5);
    CHECK(amount("100") == 5);
    CHECK(amount("100.000000000000000001") == 10);
    CHECK(amount("1000") == 50);
}

TEST_CASE("cents follow the currency and round half away from zero", "[fees]") {
    CHECK(to_cents(number("1.005"), {2, 100}) == 101);
    CHECK(to_cents(number("-1.005"), {2, 100}) == -101);
    CHECK(to_cents(number("1.004999999999999999999"), {2, 100}) == 100);
    CHECK(to_cents(number("100.5"), {0, 1}) == 101);
    CHECK(to_cents(number("100.5"), {3, 1000}) == 100500);
    CHECK(to_cents(number("1.26"), {1, 5}) == 6);
}

TEST_CASE("bounds are lines of their own", "[fees]") {
    auto priced = packages(250, 100, 5);
    raise_to(priced, 20);
    CHECK(priced.amount == 20);
    CHECK(priced.lines.back().step == FeeLine::Step::minimum);
    lower_to(priced, 12);
    CHECK(priced.amount == 12);
    CHECK(priced.lines.back().amount == -8);
    lower_to(priced, 12);
    CHECK(priced.lines.size() == 3);
    CHECK(sum_of_lines(priced) == priced.amount);
}

TEST_CASE("a difference has the lines that changed, and they add up", "[fees]") {
    const auto change = difference(graduated(ladder(), 12), graduated(ladder(), 9));
    CHECK(change.amount == graduated(ladder(), 12).amount - graduated(ladder(), 9).amount);
    REQUIRE(change.lines.size() == 2);
    CHECK(change.lines[0].units == 1);
    CHECK(change.lines[0].flat.is_zero());
    CHECK(change.lines[1].units == 2);
    CHECK(change.lines[1].flat == 2);
    CHECK(difference(graduated(ladder(), 9), graduated(ladder(), 9)).lines.empty());
}

TEST_CASE("lines add up to the amount, whatever was priced", "[fees]") {
    RandomInput random;
    CAPTURE(random.seed);
    for (int i = 0; i < 300; ++i) {
        const auto tiers = random.tiers();
        auto priced = difference(graduated(tiers, random.decimal(3000, 2)), graduated(tiers, random.decimal(3000, 2)));
        priced.add(percentage_line(random.decimal(100000, 3), random.decimal(3000, 2)));
        raise_to(priced, random.decimal(10000, 3));
        lower_to(priced, random.decimal(10000, 3));
        round_to(priced, priced.amount.round(2, Rounding::half_up));
        REQUIRE(sum_of_lines(priced) == priced.amount);
    }
}

TEST_CASE("what does not fit is an error, not a wrong number", "[fees]") {
    const Decimal huge(std::string(38, '9'));
    const auto code = [&](auto&& price) {
        try {
            price();
        } catch (const Error& error) {
            return error.code();
        }
        return ErrorCode::bad_value;
    };
    CHECK(code([&] { graduated(ladder(), huge); }) == ErrorCode::overflow);
    CHECK(code([&] { packages(huge, Decimal("0.001"), huge); }) == ErrorCode::overflow);
}

TEST_CASE("fees read well", "[fees]") {
    Fee fee;
    fee.charge = "calls";
    fee.currency = "EUR";
    fee.units = 25;
    fee.group = {{"region", "eu"}};
    auto priced = graduated(ladder(), 25);
    fee.amount = priced.amount;
    fee.amount_cents = 860;
    fee.lines = std::move(priced.lines);
    const Fees fees{.fees = {fee}, .currency = "EUR", .subunits = 100, .amount_cents = 860};
    const auto text = fees.to_text();
    CHECK(text.find("calls, region eu: 25 units") != std::string::npos);
    CHECK(text.find("tier 11 to 20: 10 x 0.05 + 2") != std::string::npos);
    CHECK(text.find("tier 21 and up: 5 x 0.02 + 4") != std::string::npos);
    CHECK(text.find("total EUR") != std::string::npos);
    CHECK(text.find("8.60") != std::string::npos);
    const auto tree = fees.to_json();
    CHECK(tree["amount_cents"] == "860");
    CHECK(tree["fees"][0]["group"]["region"] == "eu");
    CHECK(tree["fees"][0]["lines"].size() == 3);
    CHECK(tree["fees"][0]["lines"][1]["step"] == "tier");
    CHECK(tree["fees"][0]["lines"][2]["to"].is_null());
}

TEST_CASE("every step has its words", "[fees]") {
    FeeLine line{.units = 10, .rate = number("0.015"), .per = 5};
    using Step = FeeLine::Step;
    const std::vector<std::pair<Step, std::string>> words{{Step::units, "10 x 0.015"},
                                                          {Step::package, "10 in packages of 5 x 0.015"},
                                                          {Step::percentage, "10 x 1.5 %"},
                                                          {Step::fixed, "10 times 0.015"},
                                                          {Step::free, "10 free"},
                                                          {Step::given, "given with the events"},
                                                          {Step::minimum, "up to the minimum"},
                                                          {Step::maximum, "down to the maximum"},
                                                          {Step::advance, "paid before"},
                                                          {Step::discount, "discount"},
                                                          {Step::conversion, "converted at 0.015"},
                                                          {Step::rounding, "rounded"}};
    for (const auto& [step, text] : words) {
        line.step = step;
        CHECK(line.text() == text);
    }
}
