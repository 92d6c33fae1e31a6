// FlexPrice's vectors: dossier section 10.1. The model names say which part of the pricing is meant.
#pragma once

namespace golden::flexprice_vectors {

namespace flexprice = meter::flexprice;
using meter::Node;

flexprice::Price price_of(const json& vector) { return flexprice::read_price(Node(vector.at("properties"))); }

meter::Currency currency_of(const json& vector) { return flexprice::currency_of(vector.at("properties").value("currency", "usd")); }

Decimal units_of(const json& vector) {
    const auto& input = vector.at("input");
    if (input.value("method", "") != "fixed_charge") return number(input, "units");
    return flexprice::fixed_quantity(number(input, "units"), Node(vector.at("properties")).decimal("min_quantity"));
}

/// Invoice lines are rounded to the currency, costs are not.
bool is_invoice_line(const json& vector) {
    const auto method = vector.at("input").value("method", "");
    return method == "usage_charge_rounded" || method == "fixed_charge" || method == "usage_charge" || method == "CalculateUsageCharges";
}

Decimal line_amount(const json& vector, const Decimal& amount) {
    return is_invoice_line(vector) ? flexprice::rounded(amount, currency_of(vector)) : amount;
}

json units_price(const json& vector) {
    const auto price = price_of(vector);
    const auto& input = vector.at("input");
    auto cost = flexprice::price_units(price, units_of(vector)).amount;
    const auto& properties = vector.at("properties");
    if (properties.contains("commitment") && !input.contains("property_filters")) {
        cost = flexprice::commit(flexprice::read_commitment(Node(properties.at("commitment")), price), cost).charge;
    }
    const auto breakup = flexprice::breakup(price, units_of(vector));
    const bool round = input.value("round", false) && price.model != flexprice::Model::package;
    return {{"amount", text(round ? flexprice::rounded(cost, price.currency) : line_amount(vector, cost))},
            {"effective_unit_cost", text(breakup.unit_cost)},
            {"tier_unit_amount", text(breakup.tier_unit_amount)},
            {"selected_tier_index", breakup.tier}};
}

json buckets_price(const json& vector) {
    const auto price = price_of(vector);
    const auto buckets = numbers(vector.at("input"), "bucket_values");
    Decimal units;
    for (const auto& bucket : buckets) units += bucket;
    return {{"amount", text(flexprice::rounded(flexprice::price_buckets(price, buckets).amount, price.currency))}, {"quantity", text(units)}};
}

json multi_line(const json& vector) {
    const auto& lines = vector.at("properties").at("lines");
    const auto units = numbers(vector.at("input"), "line_units");
    Decimal sum;
    auto amounts = json::array();
    for (std::size_t i = 0; i < lines.size(); ++i) {
        const auto amount =
            flexprice::rounded(flexprice::price_units(flexprice::read_price(Node(lines[i])), units.at(i)).amount, currency_of(vector));
        sum += amount;
        amounts.push_back(text(amount));
    }
    return {{"amount", text(sum)}, {"line_amounts", amounts}};
}

json with_entitlement(const json& vector) {
    const auto& source = vector.at("properties").at("entitlement");
    const auto entitlement = source.is_null() ? flexprice::Entitlement() : flexprice::read_entitlement(Node(source), "MONTHLY");
    const auto& input = vector.at("input");
    const auto billable =
        entitlement.reset == flexprice::Reset::day ? entitlement.billable(numbers(input, "daily_units")) : entitlement.billable(units_of(vector));
    return {{"amount", text(line_amount(vector, flexprice::price_units(price_of(vector), billable).amount))}, {"billable_units", text(billable)}};
}

json with_grants(const json& vector) {
    Decimal units, money;
    for (const auto& grant : vector.at("properties").at("grants")) {
        const auto read = flexprice::read_grant(Node(grant));
        (read.money ? money : units) += read.overage(number(grant, "usage"));
    }
    return {{"amount", text(money + flexprice::price_units(price_of(vector), units).amount)}, {"billable_units", text(units)}};
}

json grant_overage(const json& vector) {
    const auto over = text(flexprice::Grant{.quota = number(vector.at("properties"), "quota")}.overage(units_of(vector)));
    return {{"amount", over}, {"overage_units", over}};
}

// --- commitments ---

json committed_json(const flexprice::Committed& committed) {
    return {{"amount", text(committed.charge)},
            {"commitment_utilized", text(committed.utilized)},
            {"overage_amount", text(committed.overage)},
            {"true_up_amount", text(committed.true_up)}};
}

json line_item_commitment(const json& vector) {
    const auto price = price_of(vector);
    const auto commitment = flexprice::read_commitment(Node(vector.at("properties").at("commitment")), price);
    return committed_json(flexprice::commit(commitment, flexprice::price_units(price, units_of(vector)).amount));
}

meter::Timestamp on_a_day(const std::string& clock) { return meter::Timestamp::parse("2026-01-05T" + clock + ":00Z"); }

std::optional<meter::Timestamp> start_of(const json& window, const json& input) {
    if (!window.contains("start") || !input.value("window_starts_known", true)) return {};
    const auto start = window.at("start").get<std::string>();
    return start.find('T') == std::string::npos ? on_a_day(start) : meter::Timestamp::parse(start);
}

/// A list of windows, or the 24 hours of a day with units in some of them, or the whole quantity as one window.
std::vector<flexprice::Window> windows_of(const json& input) {
    if (!input.contains("windows")) return {{{}, number(input, "units")}};
    const auto& source = input.at("windows");
    std::vector<flexprice::Window> windows;
    if (source.is_array()) {
        for (const auto& window : source) windows.push_back({start_of(window, input), number(window, "units")});
        return windows;
    }
    for (int hour = 0; hour < 24; ++hour) {
        const auto start = (hour < 10 ? "0" : "") + std::to_string(hour) + ":00";
        windows.push_back({on_a_day(start), number(source.at("units_by_start"), start.c_str(), number(source, "others"))});
    }
    return windows;
}

json windowed_commitment(const json& vector) {
    const auto& properties = vector.at("properties");
    flexprice::WindowedPrice price{price_of(vector), {}, {}};
    if (!properties.at("commitment").is_null()) price.commitment = flexprice::read_commitment(Node(properties.at("commitment")), price.price);
    for (const auto& bucket : properties.value("commitment_time_buckets", json::array())) {
        price.buckets.push_back(flexprice::read_time_bucket(Node(bucket)));
    }
    flexprice::Committed total;
    auto amounts = json::array();
    std::map<std::string, std::pair<flexprice::Committed, std::pair<Decimal, Decimal>>> by_bucket;
    for (const auto& window : windows_of(vector.at("input"))) {
        const auto charge = price.charge(window);
        total += charge;
        amounts.push_back(text(charge.charge));
        if (const auto* bucket = price.bucket_of(window)) {
            auto& [sum, plain] = by_bucket[bucket->id];
            sum += charge;
            plain.first += window.units;
            plain.second += flexprice::price_units(bucket->price, window.units).amount;
        }
    }
    auto out = committed_json(total);
    out["window_amounts"] = amounts;
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
    const auto commitment = flexprice::read_commitment(Node(vector.at("properties").at("commitment")), {});
    Decimal normal, over;
    for (const auto& charge : vector.at("input").at("charges")) (charge.value("is_overage", false) ? over : normal) += number(charge, "amount");
    return {{"amount", text(flexprice::commit(commitment, normal).charge + over)}};
}

json cumulative_commitment(const json& vector) {
    const auto& properties = vector.at("properties");
    const auto& input = vector.at("input");
    const flexprice::Commitment commitment{number(properties, "commitment_amount"), number(properties, "overage_factor"),
                                           properties.value("enable_true_up", false)};
    Decimal cost, before;
    for (const auto& charge : input.at("charges")) cost += number(charge, "amount");
    for (const auto& line : input.at("prior_invoice_lines")) {
        before +=
            line.value("is_overage", false) ? flexprice::divided(number(line, "amount"), number(line, "overage_factor")) : number(line, "amount");
    }
    return committed_json(input.at("prior_invoice_lines").empty() ? flexprice::commit(commitment, cost)
                                                                  : flexprice::commit_rest(commitment, before, cost, false));
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

json coupon_percentage(const json& vector) {
    return discounted(units_of(vector),
                      flexprice::percentage_discount(units_of(vector), number(vector.at("properties"), "percentage_off"), currency_of(vector)));
}

json coupon_fixed(const json& vector) {
    return discounted(units_of(vector), flexprice::discount(units_of(vector), number(vector.at("properties"), "amount_off"), currency_of(vector)));
}

std::vector<Decimal> percentages_of(const json& properties) {
    auto list = numbers(properties, "line_item_percentages");
    for (const auto& each : numbers(properties, "subscription_percentages")) list.push_back(each);
    return list;
}

/// Each point of a windowed answer is discounted by the coupons active at its time.
json discounted_points(const std::vector<Decimal>& points, const std::vector<bool>& active, const json& vector) {
    Decimal price, off;
    auto discounts = json::array();
    for (std::size_t i = 0; i < points.size(); ++i) {
        const auto each =
            active.at(i) ? flexprice::compound_discount(points[i], percentages_of(vector.at("properties")), currency_of(vector)) : Decimal();
        price += points[i];
        off += each;
        discounts.push_back(text(each));
    }
    auto out = discounted(price, off);
    out["point_discounts"] = discounts;
    return out;
}

json analytics_discount(const json& vector) {
    const auto& input = vector.at("input");
    if (input.contains("points")) return discounted_points(numbers(input, "points"), input.at("coupon_active_on").get<std::vector<bool>>(), vector);
    return discounted(units_of(vector), flexprice::compound_discount(units_of(vector), percentages_of(vector.at("properties")), currency_of(vector)));
}

/// `coupon_starts` is prose: "between the 2nd and 3rd daily point" makes the points from the third on discounted.
json flat_with_discount(const json& vector) {
    const auto price = price_of(vector);
    const auto& input = vector.at("input");
    if (!input.contains("points_units")) {
        const auto cost = flexprice::price_units(price, units_of(vector)).amount;
        return discounted(cost, flexprice::compound_discount(cost, percentages_of(vector.at("properties")), currency_of(vector)));
    }
    const auto prose = vector.at("properties").value("coupon_starts", "");
    const auto digit = prose.find_first_of("0123456789");
    const auto before = digit == std::string::npos ? std::size_t{0} : static_cast<std::size_t>(prose[digit] - '0');
    std::vector<Decimal> points;
    std::vector<bool> active;
    for (const auto& units : numbers(input, "points_units")) {
        active.push_back(points.size() >= before);
        points.push_back(flexprice::price_units(price, units).amount);
    }
    return discounted_points(points, active, vector);
}

}  // namespace golden::flexprice_vectors

namespace golden {

inline Vendor flexprice_pricing() {
    using namespace flexprice_vectors;
    return {"flexprice",
            {{"FLAT_FEE", units_price},
             {"PACKAGE", units_price},
             {"TIERED_VOLUME", units_price},
             {"TIERED_SLAB", units_price},
             {"FLAT_FEE_BUCKETED", buckets_price},
             {"PACKAGE_BUCKETED", buckets_price},
             {"TIERED_VOLUME_BUCKETED", buckets_price},
             {"TIERED_SLAB_BUCKETED", buckets_price},
             {"TIERED_VOLUME_PER_GROUP", buckets_price},
             {"TIERED_SLAB_PER_GROUP", buckets_price},
             {"MULTI_LINE", multi_line},
             {"FLAT_FEE_WITH_ENTITLEMENT", with_entitlement},
             {"PACKAGE_WITH_ENTITLEMENT", with_entitlement},
             {"TIERED_VOLUME_WITH_ENTITLEMENT", with_entitlement},
             {"TIERED_SLAB_WITH_ENTITLEMENT", with_entitlement},
             {"FLAT_FEE_WITH_GRANTS", with_grants},
             {"GRANT_OVERAGE", grant_overage},
             {"LINE_ITEM_COMMITMENT", line_item_commitment},
             {"WINDOWED_COMMITMENT", windowed_commitment},
             {"ITEM_COMMITMENT_ON_SPLIT_CHARGES", split_charges},
             {"CUMULATIVE_COMMITMENT", cumulative_commitment},
             {"TRUE_UP", true_up},
             {"ROUNDING", rounding},
             {"ROUND_THEN_SUM", round_then_sum},
             {"COUPON_PERCENTAGE", coupon_percentage},
             {"COUPON_FIXED", coupon_fixed},
             {"ANALYTICS_DISCOUNT", analytics_discount},
             {"FLAT_FEE_WITH_DISCOUNT", flat_with_discount}}};
}

}  // namespace golden
