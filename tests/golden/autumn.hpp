// Autumn's vectors: dossier section 8.
#pragma once

namespace golden::autumn_vectors {

namespace autumn = meter::autumn;
using meter::Node;

autumn::Item item_of(const json& vector) {
    const auto& properties = vector.at("properties");
    const auto& input = vector.at("input");
    const auto currency = input.contains("currency") && input.at("currency").is_string() ? input.at("currency").get<std::string>() : "";
    return autumn::read_item(Node(properties), properties.value("tier_to_includes_included", false), currency);
}

json tiers(const json& vector) {
    const auto& input = vector.at("input");
    try {
        const auto priced =
            autumn::price_quantity(item_of(vector), number(input, "allowance"), number(input, "overage"), input.value("allow_negative", true));
        return {{"amount", text(priced.amount)}};
    } catch (const meter::Error& error) {
        return {{"error", error.reason()}};
    }
}

json fixed(const json& vector) {
    const auto& input = vector.at("input");
    const auto amounts = autumn::in_currency(Node(vector.at("properties")), input.value("currency", ""));
    return {{"amount", text(amounts.decimal("amount").value() * number(input, "multiplier", 1))}};
}

json minor_units(const json& vector) {
    return {{"minor_units", text(autumn::minor_units(number(vector.at("input"), "amount"), vector.at("properties").at("currency")))}};
}

json plan_item_prepaid(const json& vector) {
    const auto item = item_of(vector);
    const auto quantity = number(vector.at("input"), "quantity");
    const auto amount = autumn::price_prepaid(item, quantity).amount;
    return {{"item_amount", text(amount)},
            {"invoice_total", text(amount + number(vector.at("properties"), "fixed_base_price"))},
            {"balance", text(autumn::starting_balance(item, autumn::prepaid_packs(item, quantity), 1))}};
}

json plan_item_prepaid_update(const json& vector) {
    const auto item = item_of(vector);
    const auto& input = vector.at("input");
    const auto change =
        autumn::price_prepaid(item, number(input, "new_quantity")).amount - autumn::price_prepaid(item, number(input, "old_quantity")).amount;
    return {{"delta", text(change * (Decimal(1) - number(input, "cycle_elapsed_fraction")))}};
}

json plan_item_usage_based(const json& vector) {
    const auto& input = vector.at("input");
    const auto usages = input.contains("usage_by_entity") ? numbers(input, "usage_by_entity") : std::vector<Decimal>{number(input, "usage")};
    const auto amount = autumn::price_overage(item_of(vector), usages).amount;
    return {{"overage_amount", text(amount)}, {"invoice_total", text(amount + number(vector.at("properties"), "fixed_base_price"))}};
}

json starting_balance(const json& vector) {
    const auto& input = vector.at("input");
    return {{"starting_balance", text(autumn::starting_balance(item_of(vector), number(input, "packs"), number(input, "product_quantity", 1)))}};
}

json prepaid_display_quantity(const json& vector) {
    auto item = item_of(vector);
    item.prepaid = true;
    return {{"quantity", text(autumn::starting_balance(item, number(vector.at("input"), "packs"), 1))}};
}

json tier_boundary(const json& vector) {
    const auto included = number(vector.at("properties"), "included");
    const bool to_user = vector.at("input").at("direction") == "internal_to_user";
    auto limits = json::array();
    for (const auto& limit : vector.at("input").at("to")) {
        if (limit == "inf") {
            limits.push_back(limit);
            continue;
        }
        const auto value = Decimal::from_json(limit);
        limits.push_back(text(to_user ? autumn::user_limit(value, included) : autumn::internal_limit(value, included)));
    }
    return {{"to", limits}};
}

json credit_cost(const json& vector) {
    const auto system = autumn::read_credit_system(Node(vector.at("properties")), "credit_feature_id");
    try {
        return {{"credits", text(autumn::credits(system, vector.at("input").at("feature_id"), number(vector.at("input"), "amount", 1)))}};
    } catch (const meter::Error& error) {
        return {{"error", error.reason()}};
    }
}

json deduction(const json& vector) {
    const auto& properties = vector.at("properties");
    std::vector<autumn::Balance> balances;
    for (const auto& source : properties.at("balances")) {
        autumn::Balance balance{source.at("id"), number(source, "balance"), number(source, "starting_balance")};
        balance.overage_allowed = source.value("usage_allowed", false);
        balance.unlimited = source.value("unlimited", false);
        if (source.contains("min_balance") && !source.at("min_balance").is_null()) balance.least = number(source, "min_balance");
        balance.cost = number(source, "credit_cost", 1);
        balances.push_back(std::move(balance));
    }
    const auto behavior = properties.value("overage_behavior", "cap");
    const auto left = autumn::settle(balances, number(vector.at("input"), "value"),
                                     behavior == "reject"     ? autumn::OverageBehavior::reject
                                     : behavior == "overflow" ? autumn::OverageBehavior::overflow
                                                              : autumn::OverageBehavior::cap);
    json out{{"balances", json::object()}, {"remaining", text(left)}};
    for (const auto& balance : balances) out["balances"][balance.id] = text(balance.balance);
    return out;
}

json check(const json& vector) {
    const auto& properties = vector.at("properties");
    autumn::Standing standing{number(properties, "remaining"), number(properties, "overage")};
    standing.unlimited = properties.value("unlimited", false);
    standing.overage_allowed = properties.value("overage_allowed", false);
    if (!properties.at("max_purchase").is_null()) standing.max_purchase = number(properties, "max_purchase");
    return {{"allowed", autumn::allowed(standing, number(vector.at("input"), "required_balance", 1))}};
}

}  // namespace golden::autumn_vectors

namespace golden {

inline Vendor autumn_pricing() {
    using namespace autumn_vectors;
    return {"autumn",
            {{"graduated", tiers},
             {"volume", tiers},
             {"fixed", fixed},
             {"minor_units", minor_units},
             {"plan_item_prepaid", plan_item_prepaid},
             {"plan_item_prepaid_update", plan_item_prepaid_update},
             {"plan_item_usage_based", plan_item_usage_based},
             {"starting_balance", starting_balance},
             {"prepaid_display_quantity", prepaid_display_quantity},
             {"tier_boundary", tier_boundary},
             {"credit_cost", credit_cost},
             {"deduction", deduction},
             {"check", check}}};
}

}  // namespace golden
