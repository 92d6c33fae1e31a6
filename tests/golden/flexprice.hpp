// FlexPrice's vectors: dossier section 10.1. The model names say which part of the pricing is meant.
#pragma once

#include <list>

namespace golden::flexprice_vectors {

namespace flexprice = meter::flexprice;
using meter::Node;

/// What creation refuses is priced all the same, at 0 (9.4, 9.5).
flexprice::Price price_from(const json& properties) {
    try {
        return flexprice::read_price(Node(properties));
    } catch (const meter::Error&) {
        return {.model = flexprice::Model::tiered};
    }
}

json texts(const std::vector<Decimal>& values) {
    auto list = json::array();
    for (const auto& value : values) list.push_back(text(value));
    return list;
}

flexprice::Price price_of(const json& vector) { return price_from(vector.at("properties")); }

meter::Currency currency_of(const json& vector) { return flexprice::currency_of(vector.at("properties").value("currency", "usd")); }

flexprice::Commitment read_commitment(const json& properties, const flexprice::Price& price) {
    return flexprice::read_commitment(Node(properties.at("commitment")), flexprice::of_price, price);
}

bool is_given(const json& object, const char* key) { return object.contains(key) && !object.at(key).empty(); }

Decimal units_of(const json& vector) {
    const auto& input = vector.at("input");
    if (input.value("method", "") != "fixed_charge") return number(input, "units");
    return flexprice::fixed_quantity(number(input, "units"), number(vector.at("properties"), "min_quantity", 1));
}

/// Invoice lines are rounded to the currency, costs are not.
bool is_invoice_line(const json& vector) {
    const auto method = vector.at("input").value("method", "");
    return method.starts_with("usage_charge") || method.starts_with("fixed_charge") || method.ends_with("Charges");
}

Decimal line_amount(const json& vector, const Decimal& amount) {
    return is_invoice_line(vector) ? flexprice::rounded(amount, currency_of(vector)) : amount;
}

/// Analytics of some of the events leave commitments out (6.6).
bool shows_a_part(const json& input) {
    const auto groups = input.value("group_by", std::vector<std::string>());
    const auto parts = [](const std::string& group) { return group == "source" || group.starts_with("properties."); };
    return is_given(input, "property_filters") || is_given(input, "sources") || std::any_of(groups.begin(), groups.end(), parts);
}

json units_price(const json& vector) {
    const auto price = price_of(vector);
    const auto& input = vector.at("input");
    auto cost = flexprice::price_units(price, units_of(vector)).amount;
    const auto& properties = vector.at("properties");
    if (is_given(properties, "commitment") && !shows_a_part(input)) {
        cost = flexprice::commit(read_commitment(properties, price), cost).charge;
    }
    auto out = flexprice::breakup(price, units_of(vector));
    const bool round = input.value("round", false) && price.model != flexprice::Model::package;
    out["amount"] = text(round ? flexprice::rounded(cost, price.currency) : line_amount(vector, cost));
    return out;
}

json buckets_price(const json& vector) {
    const auto price = price_of(vector);
    const auto buckets = numbers(vector.at("input"), "bucket_values");
    return {{"amount", text(flexprice::rounded(flexprice::price_buckets(price, buckets).amount, currency_of(vector)))},
            {"quantity", text(flexprice::total(buckets))}};
}

/// The prices' currency is the vector's.
std::vector<flexprice::Price> lines_of(const json& vector) {
    std::vector<flexprice::Price> lines;
    for (const auto& line : vector.at("properties").at("lines")) lines.push_back(price_from(line));
    return lines;
}

json multi_line(const json& vector) {
    const auto lines = lines_of(vector);
    const auto units = numbers(vector.at("input"), "line_units");
    std::vector<Decimal> amounts;
    for (std::size_t i = 0; i < lines.size(); ++i) {
        amounts.push_back(flexprice::rounded(flexprice::price_units(lines[i], units.at(i)).amount, currency_of(vector)));
    }
    return {{"amount", text(flexprice::total(amounts))}, {"line_amounts", texts(amounts)}};
}

/// The units of each day or month where the limit begins anew by it, else of the period.
json with_entitlement(const json& vector) {
    const auto source = vector.at("properties").value("entitlement", json());
    const auto entitlement = source.is_null() ? flexprice::Entitlement() : flexprice::read_entitlement(Node(source), "MONTHLY");
    const auto& input = vector.at("input");
    std::vector<Decimal> stretches{units_of(vector)};
    for (const char* key : {"daily_units", "monthly_units"}) {
        if (entitlement.reset && input.contains(key)) stretches = numbers(input, key);
    }
    const auto billable = entitlement.billable(stretches);
    return {{"amount", text(line_amount(vector, flexprice::price_units(price_of(vector), billable).amount))}, {"billable_units", text(billable)}};
}

json with_grants(const json& vector) {
    Decimal units, money;
    for (const auto& grant : vector.at("properties").at("grants")) {
        const auto read = flexprice::read_grant(Node(grant));
        (read.money ? money : units) += read.overage(number(grant, "usage", units_of(vector)));
    }
    return {{"amount", text(line_amount(vector, money + flexprice::price_units(price_of(vector), units).amount))}, {"billable_units", text(units)}};
}

json grant_overage(const json& vector) {
    const auto over = text(flexprice::Grant{.quota = number(vector.at("properties"), "quota")}.overage(units_of(vector)));
    return {{"amount", over}, {"overage_units", over}};
}

/// What a price without a quantity is for (9.11).
json fixed_quantity(const json& vector) {
    const auto quantity = flexprice::fixed_quantity(units_of(vector), number(vector.at("properties"), "min_quantity", 1));
    return {{"amount", text(quantity)}, {"quantity", text(quantity)}};
}

// --- commitments ---

json committed_json(const flexprice::Committed& committed) {
    return {{"amount", text(committed.charge)},
            {"commitment_utilized", text(committed.utilized)},
            {"overage_amount", text(committed.overage)},
            {"true_up_amount", text(committed.true_up)}};
}

/// Of a vector without a price the units are money.
Decimal cost_of(const json& vector) {
    return vector.at("properties").contains("billing_model") ? flexprice::price_units(price_of(vector), units_of(vector)).amount : units_of(vector);
}

json line_item_commitment(const json& vector) {
    const auto cost = cost_of(vector);
    if (shows_a_part(vector.at("input"))) return committed_json({cost, cost, {}, {}});
    return committed_json(flexprice::commit(read_commitment(vector.at("properties"), price_of(vector)), cost));
}

meter::Timestamp on_a_day(const std::string& clock) { return meter::Timestamp::parse("2026-01-05T" + clock + ":00Z"); }

std::optional<meter::Timestamp> start_of(const json& window, const json& input) {
    if (!window.contains("start") || !input.value("window_starts_known", true)) return {};
    const auto start = window.at("start").get<std::string>();
    return start.find('T') == std::string::npos ? on_a_day(start) : meter::Timestamp::parse(start);
}

/// A list of windows, or the 24 hours of a day with units in some of them, or the whole quantity as one window.
std::vector<flexprice::Part> windows_of(const json& input) {
    if (!input.contains("windows")) return {{.units = number(input, "units")}};
    const auto& source = input.at("windows");
    std::vector<flexprice::Part> windows;
    if (source.is_array()) {
        for (const auto& window : source) windows.push_back({.start = start_of(window, input), .units = number(window, "units")});
        return windows;
    }
    for (int hour = 0; hour < 24; ++hour) {
        const auto start = (hour < 10 ? "0" : "") + std::to_string(hour) + ":00";
        windows.push_back({.start = on_a_day(start), .units = number(source.at("units_by_start"), start.c_str(), number(source, "others"))});
    }
    return windows;
}

json windowed_commitment(const json& vector) {
    const auto& properties = vector.at("properties");
    flexprice::WindowedPrice price{price_of(vector), {}, {}};
    if (is_given(properties, "commitment")) price.commitment = read_commitment(properties, price.price);
    for (const auto& bucket : properties.value("commitment_time_buckets", json::array())) {
        price.buckets.push_back(flexprice::read_time_bucket(Node(bucket), flexprice::Price()));
    }
    flexprice::Committed total;
    std::vector<Decimal> amounts;
    std::map<std::string, std::pair<flexprice::Committed, std::pair<Decimal, Decimal>>> by_bucket;
    for (const auto& window : windows_of(vector.at("input"))) {
        const auto charge = price.charge(window);
        total += charge;
        amounts.push_back(charge.charge);
        if (const auto* bucket = price.bucket_of(window)) {
            auto& [sum, plain] = by_bucket[bucket->id];
            sum += charge;
            plain.first += window.units;
            plain.second += flexprice::price_units(bucket->price, window.units).amount;
        }
    }
    auto out = committed_json(total);
    out["window_amounts"] = texts(amounts);
    for (const auto& [id, sums] : by_bucket) {
        out["bucket_summaries"][id] = {{"total_usage", text(sums.second.first)},
                                       {"base_charge", text(sums.second.second)},
                                       {"computed_utilized", text(sums.first.utilized)},
                                       {"computed_overage", text(sums.first.overage)},
                                       {"computed_true_up", text(sums.first.true_up)}};
    }
    return out;
}

json split_charges(const json& vector) {
    const auto commitment = read_commitment(vector.at("properties"), {});
    Decimal normal, over;
    for (const auto& charge : vector.at("input").at("charges")) (charge.value("is_overage", false) ? over : normal) += number(charge, "amount");
    return {{"amount", text(flexprice::commit(commitment, normal).charge + over)}};
}

flexprice::Commitment subscription_commitment_of(const json& properties) {
    return {number(properties, "commitment_amount"), number(properties, "overage_factor"), properties.value("enable_true_up", false)};
}

/// A charge's cost, units, and the price of one.
using Charged = std::array<Decimal, 3>;

/// The subscription's charges, given with their units, amounts and unit prices, or as prices with the units of each.
std::vector<Charged> charges_of(const json& vector) {
    std::vector<Charged> charges;
    const auto& input = vector.at("input");
    if (!input.contains("charges")) {
        const auto prices = vector.at("properties").contains("lines") ? lines_of(vector) : std::vector{price_of(vector)};
        const auto units = input.contains("line_units") ? numbers(input, "line_units") : std::vector{units_of(vector)};
        for (std::size_t i = 0; i < prices.size(); ++i) {
            const auto cost = flexprice::price_units(prices[i], units.at(i)).amount;
            charges.push_back({cost, units[i], flexprice::unit_price(prices[i], cost, units[i])});
        }
        return charges;
    }
    for (const auto& charge : input.at("charges")) {
        const auto units = number(charge, "units", 1), amount = number(charge, "amount");
        charges.push_back({amount, units, number(charge, "unit_price", flexprice::divided(amount, units))});
    }
    return charges;
}

/// The charges of one billing period under the commitment of their subscription, if it has one that counts (9.15).
json subscription_commitment(const json& vector) {
    const auto commitment = subscription_commitment_of(vector.at("properties"));
    auto left = commitment.amount;
    Decimal plain, over;
    std::vector<Decimal> amounts;
    for (const auto& [cost, units, unit] : charges_of(vector)) {
        const auto split = commitment.counts() ? flexprice::split(cost, units, unit, left) : flexprice::Split{cost, units, {}, {}};
        plain += split.covered;
        over += split.beyond * commitment.overage_factor;
        if (!split.covered.is_zero()) amounts.push_back(split.covered);
        if (!split.beyond.is_zero()) amounts.push_back(split.beyond * commitment.overage_factor);
    }
    const auto missing = commitment.counts() && commitment.true_up && over.is_zero()
                             ? flexprice::missing_to(commitment.amount, commitment.amount - left, currency_of(vector))
                             : Decimal();
    auto out = committed_json({plain + over + missing, plain, over, missing});
    out["line_amounts"] = texts(amounts);
    out["has_overage"] = !over.is_zero();
    return out;
}

json cumulative_commitment(const json& vector) {
    const auto& input = vector.at("input");
    const auto commitment = subscription_commitment_of(vector.at("properties"));
    Decimal cost, before;
    for (const auto& charge : input.at("charges")) cost += number(charge, "amount");
    const auto prior = input.value("prior_invoice_lines", json::array());
    for (const auto& line : prior) {
        const auto factor = number(line, "overage_factor", commitment.overage_factor);
        before += line.value("is_overage", false) ? flexprice::divided(number(line, "amount"), factor) : number(line, "amount");
    }
    const bool last = input.value("is_last_period", input.value("last_period", false));
    return committed_json(prior.empty() ? flexprice::commit(commitment, cost) : flexprice::commit(commitment, cost, before, last));
}

json true_up(const json& vector) {
    return {{"amount", text(flexprice::missing_to(number(vector.at("properties"), "commitment_amount"), units_of(vector), currency_of(vector)))}};
}

// --- rounding and discounts ---

json rounding(const json& vector) { return {{"amount", text(flexprice::rounded(units_of(vector), currency_of(vector)))}}; }

json round_then_sum(const json& vector) {
    const auto& amounts = vector.at("input").at("amounts");
    Decimal sum;
    if (amounts.is_object())
        return {{"amount", text(flexprice::rounded(number(amounts, "amount"), currency_of(vector)) * integer(amounts, "repeat"))}};
    for (const auto& amount : amounts) sum += flexprice::rounded(Decimal::from_json(amount), currency_of(vector));
    return {{"amount", text(sum)}};
}

json discounted(const Decimal& price, const Decimal& off) {
    return {{"amount", text(price - off)}, {"discount", text(off)}, {"subtotal", text(price)}};
}

/// One coupon, or several one after the other.
json coupons(const json& vector) {
    const auto& properties = vector.at("properties");
    const auto list = properties.value("coupons", json::array({properties}));
    auto left = units_of(vector);
    for (const auto& each : list) {
        const auto coupon = flexprice::read_discount(Node(each));
        left -= coupon.off(left, currency_of(vector));
    }
    return discounted(units_of(vector), units_of(vector) - left);
}

std::vector<flexprice::Discount> percentages_of(const json& properties) {
    std::vector<flexprice::Discount> list;
    for (const char* key : {"line_item_percentages", "subscription_percentages"}) {
        for (const auto& each : numbers(properties, key)) list.push_back({false, each});
    }
    return list;
}

/// Each point of a windowed answer is discounted by the coupons active at its time.
json discounted_points(const std::vector<Decimal>& points, const std::vector<bool>& active, const json& vector) {
    std::vector<Decimal> discounts;
    for (std::size_t i = 0; i < points.size(); ++i) {
        const bool off = i >= active.size() || active[i];
        discounts.push_back(off ? flexprice::compound_discount(points[i], percentages_of(vector.at("properties")), currency_of(vector)) : Decimal());
    }
    auto out = discounted(flexprice::total(points), flexprice::total(discounts));
    out["point_discounts"] = texts(discounts);
    return out;
}

json discounted_whole(const Decimal& cost, const json& vector) {
    return discounted(cost, flexprice::compound_discount(cost, percentages_of(vector.at("properties")), currency_of(vector)));
}

json analytics_discount(const json& vector) {
    const auto& input = vector.at("input");
    if (!input.contains("points")) return discounted_whole(units_of(vector), vector);
    return discounted_points(numbers(input, "points"), input.value("coupon_active_on", std::vector<bool>()), vector);
}

/// How many points come before what is written as "between the 2nd and 3rd daily point"; all or none where it names no point.
std::size_t points_before(const json& properties, const char* key, std::size_t otherwise) {
    const auto prose = properties.value(key, "");
    const auto digit = prose.find_first_of("0123456789");
    return digit == std::string::npos ? otherwise : std::stoul(prose.substr(digit));
}

json flat_with_discount(const json& vector) {
    const auto price = price_of(vector);
    const auto& properties = vector.at("properties");
    const auto units = numbers(vector.at("input"), "points_units");
    if (units.empty()) return discounted_whole(cost_of(vector), vector);
    const auto begin = points_before(properties, "coupon_starts", 0), end = points_before(properties, "coupon_ends", units.size());
    std::vector<Decimal> points;
    std::vector<bool> active;
    for (const auto& each : units) {
        active.push_back(begin <= points.size() && points.size() < end);
        points.push_back(flexprice::price_units(price, each).amount);
    }
    return discounted_points(points, active, vector);
}

/// A vector by any other name, by what it holds.
json by_content(const json& vector) {
    struct Content {
        const char *where, *key;
        json (*run)(const json& vector);
    };
    constexpr Content contents[] = {{"input", "windows", windowed_commitment},
                                    {"input", "prior_invoice_lines", cumulative_commitment},
                                    {"properties", "overage_factor", subscription_commitment},
                                    {"properties", "commitment_amount", true_up},
                                    {"input", "charges", split_charges},
                                    {"input", "bucket_values", buckets_price},
                                    {"properties", "lines", multi_line},
                                    {"properties", "grants", with_grants},
                                    {"properties", "quota", grant_overage},
                                    {"properties", "entitlement", with_entitlement},
                                    {"input", "points", analytics_discount},
                                    {"properties", "line_item_percentages", flat_with_discount},
                                    {"properties", "percentage_off", coupons},
                                    {"properties", "amount_off", coupons},
                                    {"properties", "coupons", coupons},
                                    {"properties", "commitment", line_item_commitment},
                                    {"properties", "billing_model", units_price},
                                    {"input", "amounts", round_then_sum},
                                    {"properties", "currency", rounding}};
    for (const auto& content : contents) {
        if (vector.value(content.where, json::object()).contains(content.key)) return content.run(vector);
    }
    throw Unknown{};
}

}  // namespace golden::flexprice_vectors

namespace golden {

/// Any billing model with anything that changes what it is asked, and what has a name of its own.
inline Vendor flexprice_pricing() {
    using namespace flexprice_vectors;
    static const std::vector<Kind> variants{{"", units_price},
                                            {"_BUCKETED", buckets_price},
                                            {"_PER_GROUP", buckets_price},
                                            {"_WITH_ENTITLEMENT", with_entitlement},
                                            {"_WITH_GRANTS", with_grants},
                                            {"_WITH_COMMITMENT", line_item_commitment},
                                            {"_WITH_DISCOUNT", flat_with_discount}};
    Vendor vendor{"flexprice",
                  {{"MULTI_LINE", multi_line},
                   {"FIXED_QUANTITY", fixed_quantity},
                   {"GRANT_OVERAGE", grant_overage},
                   {"LINE_ITEM_COMMITMENT", line_item_commitment},
                   {"WINDOWED_COMMITMENT", windowed_commitment},
                   {"ITEM_COMMITMENT_ON_SPLIT_CHARGES", split_charges},
                   {"SUBSCRIPTION_COMMITMENT", subscription_commitment},
                   {"SUBSCRIPTION_OVERAGE", subscription_commitment},
                   {"CUMULATIVE_COMMITMENT", cumulative_commitment},
                   {"TRUE_UP", true_up},
                   {"ROUNDING", rounding},
                   {"ROUND_THEN_SUM", round_then_sum},
                   {"COUPON_PERCENTAGE", coupons},
                   {"COUPON_FIXED", coupons},
                   {"COUPONS", coupons},
                   {"ANALYTICS_DISCOUNT", analytics_discount},
                   {"*", by_content}}};
    static std::list<std::string> names;
    for (const auto model : {"FLAT_FEE", "PACKAGE", "TIERED_VOLUME", "TIERED_SLAB"}) {
        for (const auto& variant : variants) vendor.kinds.push_back({names.emplace_back(model + std::string(variant.name)), variant.run});
    }
    return vendor;
}

}  // namespace golden
